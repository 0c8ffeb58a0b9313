// SPDX-License-Identifier: Apache-2.0
//! Jobs and CronJobs beside what Kubernetes documents of them.

use super::*;

fn job(name: &str, spec: Value) -> Value {
    let mut raw = json!({ "metadata": { "name": name }, "spec": { "template": { "spec": {
        "restartPolicy": "Never", "containers": [{ "name": "main", "image": "work:1" }] } } } });
    for (field, value) in spec.as_object().unwrap() {
        raw["spec"][field] = value.clone();
    }
    weft_kinds::builtin::complete(KindId::Job, &mut raw);
    raw
}

impl Sim {
    fn with_job(spec: Value) -> Self {
        let mut sim = Self::new();
        sim.create(KindId::Job, NS, job("work", spec));
        sim.settle();
        sim
    }

    /// The active pods of all Jobs.
    fn working(&self) -> Vec<String> {
        let over = |o: &Arc<Object>| matches!(&o.view, View::Pod(p) if p.is_finished());
        let pods = self.all(KindId::Pod);
        let active = pods.iter().filter(|p| !p.meta.is_deleting() && !over(p));
        active.map(|p| p.key.name.to_string()).collect()
    }

    /// A pod's only container ends with a code.
    fn exit(&mut self, pod: &str, code: i64) {
        let now = crate::objects::meta::timestamp(self.clock.wall_ms());
        self.change(KindId::Pod, pod, |raw| {
            raw["status"]["phase"] = json!(if code == 0 { "Succeeded" } else { "Failed" });
            raw["status"]["containerStatuses"] = json!([{ "name": "main", "restartCount": 0,
                "state": { "terminated": { "exitCode": code, "finishedAt": now } } }]);
        });
        self.settle();
    }

    fn job_status(&self) -> Value {
        self.object(KindId::Job, "work").raw["status"].clone()
    }

    fn job_says(&self, condition: &str) -> Option<String> {
        let status = self.job_status();
        let found = status["conditions"].as_array()?.iter().find(|c| c["type"] == condition)?;
        (found["status"] == "True").then(|| found["reason"].as_str().unwrap_or("").to_owned())
    }
}

#[test]
fn a_job_runs_to_completion_in_parallel() {
    let mut sim = Sim::with_job(json!({ "completions": 5, "parallelism": 2 }));
    let object = sim.object(KindId::Job, "work");
    let uid = &object.raw["metadata"]["uid"];
    assert_eq!(
        object.raw["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"],
        *uid
    );
    let mut ended = 0;
    while let Some(pod) = sim.working().first().cloned() {
        assert_eq!(sim.working().len(), 2.min(5 - ended), "after {ended}");
        let labels = sim.object(KindId::Pod, &pod).meta.labels.clone();
        assert_eq!(labels.get("job-name").map(|v| &**v), Some("work"));
        sim.exit(&pod, 0);
        ended += 1;
    }
    let status = sim.job_status();
    assert_eq!((ended, &status["succeeded"]), (5, &json!(5)));
    assert!(status["completionTime"].is_string() && status.get("active").is_none(), "{status}");
    assert_eq!(sim.job_says("Complete").as_deref(), Some("CompletionsReached"));
    // What ended may be removed; it stays counted.
    for pod in sim.names(KindId::Pod) {
        sim.delete(KindId::Pod, &pod, Propagation::Background);
    }
    sim.settle();
    assert_eq!(sim.job_status()["succeeded"], 5);
    assert_eq!(sim.all(KindId::Pod).len(), 0, "a finished Job makes no more");
}

#[test]
fn failures_wait_longer_each_time_up_to_the_limit() {
    let mut sim = Sim::with_job(json!({ "backoffLimit": 3 }));
    for wait in [10, 20, 40] {
        let pod = sim.working()[0].clone();
        sim.exit(&pod, 1);
        sim.later(wait - 1);
        assert_eq!(sim.working().len(), 0, "before {wait} s are over");
        sim.later(1);
        assert_eq!(sim.working().len(), 1, "after {wait} s");
    }
    let pod = sim.working()[0].clone();
    sim.exit(&pod, 1);
    assert_eq!(sim.job_says("Failed").as_deref(), Some("BackoffLimitExceeded"));
    assert_eq!(sim.job_status()["failed"], 4);
    sim.later(1000);
    assert_eq!(sim.all(KindId::Pod).len(), 4);
}

#[test]
fn a_success_forgets_the_backoff() {
    let mut sim = Sim::with_job(json!({ "completions": 3, "parallelism": 1 }));
    let pod = sim.working()[0].clone();
    sim.exit(&pod, 1);
    sim.later(10);
    let pod = sim.working()[0].clone();
    sim.later(5);
    sim.exit(&pod, 0);
    assert_eq!(sim.working().len(), 1, "at once");
}

#[test]
fn without_completions_one_success_is_enough() {
    let mut sim = Sim::with_job(json!({ "parallelism": 3 }));
    let pods = sim.working();
    assert_eq!(pods.len(), 3);
    sim.exit(&pods[0], 0);
    assert_eq!(sim.working().len(), 2, "the others may finish");
    assert_eq!(sim.job_says("Complete"), None);
    sim.exit(&pods[1], 0);
    sim.exit(&pods[2], 1);
    assert!(sim.job_says("Complete").is_some());
    let status = sim.job_status();
    assert_eq!((&status["succeeded"], &status["failed"]), (&json!(2), &json!(1)));
}

#[test]
fn a_deadline_ends_what_runs() {
    let mut sim = Sim::with_job(json!({ "activeDeadlineSeconds": 60, "parallelism": 2 }));
    sim.agent(2);
    sim.later(59);
    assert_eq!(sim.job_says("FailureTarget"), None);
    sim.later(1);
    assert_eq!(sim.job_says("FailureTarget").as_deref(), Some("DeadlineExceeded"));
    assert_eq!(sim.job_says("Failed"), None, "while pods are on their way out");
    sim.agent(0);
    assert_eq!(sim.job_says("Failed").as_deref(), Some("DeadlineExceeded"));
    assert!(sim.job_status().get("failed").is_none(), "what the Job ended itself did not fail");
}

#[test]
fn a_suspended_job_has_no_pods_and_goes_on_later() {
    let mut sim = Sim::with_job(json!({ "suspend": true }));
    assert_eq!(sim.all(KindId::Pod).len(), 0);
    assert_eq!(sim.job_says("Suspended").as_deref(), Some("JobSuspended"));
    assert!(sim.job_status().get("startTime").is_none());
    let suspend = |sim: &mut Sim, yes: bool| {
        sim.change(KindId::Job, "work", |j| j["spec"]["suspend"] = json!(yes));
        sim.settle();
    };
    suspend(&mut sim, false);
    assert_eq!(sim.working().len(), 1);
    assert_eq!(sim.job_says("Suspended"), None);
    assert!(sim.job_status()["startTime"].is_string());
    sim.agent(1);
    suspend(&mut sim, true);
    assert_eq!(sim.working().len(), 0);
    sim.agent(0);
    assert!(sim.job_status().get("failed").is_none());
    suspend(&mut sim, false);
    let pod = sim.working()[0].clone();
    sim.exit(&pod, 0);
    assert!(sim.job_says("Complete").is_some());
}

#[test]
fn each_index_succeeds_once() {
    let spec = json!({ "completionMode": "Indexed", "completions": 4, "parallelism": 4 });
    let mut sim = Sim::with_job(spec);
    let index = |sim: &Sim, pod: &str| {
        let pod = sim.object(KindId::Pod, pod);
        let index = pod.meta.label("batch.kubernetes.io/job-completion-index").unwrap().to_owned();
        assert!(pod.key.name.starts_with(&format!("work-{index}-")));
        assert_eq!(pod.raw["spec"]["hostname"], format!("work-{index}"));
        let env = &pod.raw["spec"]["containers"][0]["env"][0];
        assert_eq!(env["name"], "JOB_COMPLETION_INDEX");
        index
    };
    let pods = sim.working();
    let all: BTreeSet<String> = pods.iter().map(|p| index(&sim, p)).collect();
    assert_eq!(all, ["0", "1", "2", "3"].map(str::to_owned).into());
    for (i, pod) in pods.iter().enumerate() {
        sim.exit(pod, i64::from(i == 2));
    }
    assert_eq!(sim.job_status()["completedIndexes"], "0,1,3");
    sim.later(10);
    let again = sim.working();
    assert_eq!(again.iter().map(|p| index(&sim, p)).collect::<Vec<_>>(), ["2"]);
    sim.exit(&again[0], 0);
    assert_eq!(sim.job_status()["completedIndexes"], "0-3");
    assert!(sim.job_says("Complete").is_some());
}

#[test]
fn indexes_may_fail_on_their_own() {
    let spec = json!({ "completionMode": "Indexed", "completions": 3, "parallelism": 3,
        "backoffLimitPerIndex": 1 });
    let mut sim = Sim::with_job(spec);
    let bad = |sim: &Sim| {
        let of = |p: &String| sim.object(KindId::Pod, p).raw["spec"]["hostname"] == "work-1";
        sim.working().into_iter().find(of)
    };
    let pod = bad(&sim).unwrap();
    sim.exit(&pod, 1);
    sim.later(10);
    let pod = bad(&sim).expect("it is tried once more");
    sim.exit(&pod, 1);
    sim.later(100);
    assert_eq!(bad(&sim), None);
    assert_eq!(sim.job_status()["failedIndexes"], "1");
    for pod in sim.working() {
        sim.exit(&pod, 0);
    }
    assert_eq!(sim.job_says("Failed").as_deref(), Some("FailedIndexes"));
    assert_eq!(sim.job_status()["completedIndexes"], "0,2");
}

#[test]
fn a_failure_policy_rules() {
    let rules = json!([
        { "action": "FailJob", "onExitCodes": { "operator": "In", "values": [42] } },
        { "action": "Ignore", "onPodConditions": [{ "type": "DisruptionTarget",
            "status": "True" }] },
    ]);
    let spec = json!({ "backoffLimit": 0, "podFailurePolicy": { "rules": rules } });
    let mut sim = Sim::with_job(spec);
    let pod = sim.working()[0].clone();
    sim.change(KindId::Pod, &pod, |p| {
        p["status"]["conditions"] = json!([{ "type": "DisruptionTarget", "status": "True" }]);
    });
    sim.exit(&pod, 1);
    assert_eq!(sim.working().len(), 1, "a disruption counts for nothing");
    assert!(sim.job_status().get("failed").is_none());
    let pod = sim.working()[0].clone();
    sim.exit(&pod, 42);
    assert_eq!(sim.job_says("Failed").as_deref(), Some("PodFailurePolicy"));
    let said = sim.job_status()["conditions"].to_string();
    assert!(said.contains("exit code 42 matching FailJob rule at index 0"), "{said}");
}

#[test]
fn a_pod_that_somebody_deletes_has_failed() {
    let mut sim = Sim::with_job(json!({ "backoffLimit": 0 }));
    sim.agent(1);
    let pod = sim.working()[0].clone();
    sim.delete(KindId::Pod, &pod, Propagation::Background);
    sim.settle();
    sim.agent(0);
    assert_eq!(sim.job_says("Failed").as_deref(), Some("BackoffLimitExceeded"));
    assert_eq!(sim.job_status()["failed"], 1);
}

#[test]
fn restarts_in_a_pod_count_as_well() {
    let mut sim = Sim::with_job(json!({ "backoffLimit": 2, "template": { "spec": {
        "restartPolicy": "OnFailure", "containers": [{ "name": "main", "image": "i" }] } } }));
    sim.agent(1);
    for restarts in [1, 2] {
        assert_eq!(sim.job_says("FailureTarget"), None);
        let pod = sim.working()[0].clone();
        sim.change(KindId::Pod, &pod, |p| {
            p["status"]["containerStatuses"] =
                json!([{ "name": "main", "restartCount": restarts, "state": {} }]);
        });
        sim.settle();
    }
    sim.agent(0);
    assert_eq!(sim.job_says("Failed").as_deref(), Some("BackoffLimitExceeded"));
}

#[test]
fn a_finished_job_goes_with_its_pods_when_its_time_is_over() {
    let mut sim = Sim::with_job(json!({ "ttlSecondsAfterFinished": 30 }));
    let pod = sim.working()[0].clone();
    sim.exit(&pod, 0);
    sim.later(29);
    assert_eq!(sim.names(KindId::Job), ["work"]);
    sim.later(2);
    sim.run();
    assert!(sim.all(KindId::Job).is_empty() && sim.all(KindId::Pod).is_empty());
}

fn cron(spec: Value) -> Sim {
    let mut sim = Sim::new();
    let mut raw = json!({ "metadata": { "name": "tick" }, "spec": { "schedule": "*/5 * * * *",
        "jobTemplate": { "metadata": { "labels": { "of": "tick" } }, "spec": { "template": {
            "spec": { "restartPolicy": "Never",
                "containers": [{ "name": "main", "image": "work:1" }] } } } } } });
    for (field, value) in spec.as_object().unwrap() {
        raw["spec"][field] = value.clone();
    }
    // The manual clock begins somewhere within a minute.
    sim.later(60 - sim.clock.wall_ms() / 1000 % 60);
    while sim.clock.wall_ms() / 60_000 % 5 != 1 {
        sim.later(60);
    }
    sim.create(KindId::CronJob, NS, raw);
    sim.settle();
    sim
}

impl Sim {
    fn finish_all(&mut self) {
        for pod in self.working() {
            self.exit(&pod, 0);
        }
    }

    fn cron_status(&self) -> Value {
        self.object(KindId::CronJob, "tick").raw["status"].clone()
    }
}

#[test]
fn a_cron_job_makes_a_job_at_each_time_and_keeps_three() {
    let mut sim = cron(json!({}));
    sim.later(239);
    assert_eq!(sim.all(KindId::Job).len(), 0);
    sim.later(1);
    let first = sim.names(KindId::Job);
    assert_eq!(first, [format!("tick-{}", sim.clock.wall_ms() / 60_000)]);
    assert_eq!(sim.object(KindId::Job, &first[0]).meta.label("of"), Some("tick"));
    assert_eq!(sim.cron_status()["active"][0]["name"], *first[0]);
    assert_eq!(sim.object(KindId::Job, &first[0]).raw["spec"]["completions"], 1);
    sim.finish_all();
    assert!(sim.cron_status().get("active").is_none());
    assert!(sim.cron_status()["lastSuccessfulTime"].is_string());
    for _ in 0..5 {
        sim.later(300);
        sim.finish_all();
        sim.run();
    }
    assert_eq!(sim.all(KindId::Job).len(), 3);
    assert!(!sim.names(KindId::Job).contains(&first[0]));
}

#[test]
fn concurrency_is_as_the_policy_says() {
    for (policy, after, pods) in [("Allow", 3, 3), ("Forbid", 1, 1), ("Replace", 1, 1)] {
        let mut sim = cron(json!({ "concurrencyPolicy": policy }));
        sim.later(240);
        let first = sim.names(KindId::Job);
        sim.later(600);
        sim.run();
        let jobs = sim.names(KindId::Job);
        assert_eq!((jobs.len(), sim.working().len()), (after, pods), "{policy}");
        assert_eq!(jobs.contains(&first[0]), policy != "Replace", "{policy}");
        if policy == "Forbid" {
            sim.finish_all();
            assert_eq!(sim.working().len(), 1, "what was held back runs now");
        }
    }
}

#[test]
fn missed_times_are_made_up_for_once_within_the_deadline() {
    for (deadline, jobs) in [(json!(null), 1), (json!(120), 0), (json!(200), 1)] {
        let mut sim = cron(json!({ "suspend": true, "startingDeadlineSeconds": deadline }));
        // Three hours and three minutes asleep.
        sim.later(3 * 3600 + 240 + 180);
        assert_eq!(sim.all(KindId::Job).len(), 0);
        sim.change(KindId::CronJob, "tick", |c| c["spec"]["suspend"] = json!(false));
        sim.settle();
        assert_eq!(sim.all(KindId::Job).len(), jobs, "{deadline}");
    }
}

/// Pods end well, badly or are removed, at random; users suspend, resume and change parallelism.
/// Never are there more at work than allowed, each end is counted once, and in the end it is done.
#[test]
fn random_jobs_count_each_end_once() {
    for seed in 0..80 {
        let mut rng = weft_base::rng::Rng::seeded(seed);
        let mut pick = |n: u64| u32::try_from(rng.below(n)).unwrap();
        let (wanted, indexed) = (1 + pick(6), pick(2) == 0);
        let mode = if indexed { "Indexed" } else { "NonIndexed" };
        let mut sim = Sim::with_job(json!({ "completions": wanted, "parallelism": 1 + pick(4),
            "backoffLimit": 1000, "completionMode": mode }));
        let (mut succeeded, mut failed) = (0, 0);
        for step in 0..60 {
            let what = format!("seed {seed} step {step}");
            let working = sim.working();
            let chosen = working.get(pick(4) as usize).cloned();
            match (pick(12), chosen) {
                (0, _) => {
                    let parallel = 1 + pick(4);
                    sim.change(KindId::Job, "work", |j| j["spec"]["parallelism"] = json!(parallel));
                    sim.settle();
                }
                (1, _) if sim.job_says("Complete").is_none() => {
                    let suspend = pick(2) == 0;
                    sim.change(KindId::Job, "work", |j| j["spec"]["suspend"] = json!(suspend));
                    sim.settle();
                }
                (2, _) => {
                    // Somebody tidies up what ended.
                    let over = |o: &Arc<Object>| matches!(&o.view, View::Pod(p) if p.is_finished());
                    for pod in sim.all(KindId::Pod).into_iter().filter(over) {
                        sim.delete(KindId::Pod, &pod.key.name, Propagation::Background);
                    }
                    sim.settle();
                }
                (3, Some(pod))
                    if sim.object(KindId::Pod, &pod).raw["spec"]["nodeName"].is_string() =>
                {
                    sim.delete(KindId::Pod, &pod, Propagation::Background);
                    sim.settle();
                    failed += 1;
                }
                (4..=6, Some(pod)) => {
                    sim.exit(&pod, 1);
                    failed += 1;
                }
                (7 | 8, Some(pod)) => {
                    sim.exit(&pod, 0);
                    succeeded += 1;
                }
                (9, _) => sim.agent(2),
                _ => sim.later(u64::from(pick(700))),
            }
            let object = sim.object(KindId::Job, "work");
            let spec = &object.raw["spec"];
            let parallel =
                if spec["suspend"] == true { 0 } else { spec["parallelism"].as_u64().unwrap() };
            assert!(sim.working().len() as u64 <= parallel, "too many at work: {what}");
            let status = sim.job_status();
            let counted = |field: &str| status[field].as_u64().unwrap_or(0);
            assert_eq!((counted("succeeded"), counted("failed")), (succeeded, failed), "{what}");
            assert!(succeeded <= u64::from(wanted), "{what}");
            sim.check_woken();
        }
        sim.change(KindId::Job, "work", |j| j["spec"]["suspend"] = json!(false));
        sim.settle();
        for _ in 0..200 {
            sim.agent(0);
            if sim.job_says("Complete").is_some() {
                break;
            }
            sim.later(700);
            if let Some(pod) = sim.working().first().cloned() {
                sim.exit(&pod, 0);
            }
        }
        assert!(sim.job_says("Complete").is_some(), "seed {seed}: {}", sim.job_status());
        assert_eq!(sim.job_status()["succeeded"], wanted, "seed {seed}");
        assert_eq!(sim.job_status()["failed"].as_u64().unwrap_or(0), failed, "seed {seed}");
    }
}
