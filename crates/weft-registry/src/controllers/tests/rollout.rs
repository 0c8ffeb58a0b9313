// SPDX-License-Identifier: Apache-2.0
//! Rollouts of Deployments: Kubernetes' arithmetic, what `kubectl rollout` reads, and thousands of
//! random steps that never take more away, or put more there, than the Deployment allows.

use weft_base::rng::Rng;
use weft_kinds::views::core::IntOrString;

use super::*;

impl Sim {
    fn rolled(replicas: u32, surge: Value, unavailable: Value) -> Self {
        let mut sim = Self::new();
        let mut raw = deployment("user", replicas, "user:1");
        raw["spec"]["strategy"] = json!({ "type": "RollingUpdate",
            "rollingUpdate": { "maxSurge": surge, "maxUnavailable": unavailable } });
        sim.create(KindId::Deployment, NS, raw);
        sim.run();
        sim
    }

    fn edit(&mut self, f: impl FnOnce(&mut Value)) {
        self.change(KindId::Deployment, "user", f);
        self.settle();
    }

    /// What each set is told to have, oldest revision first.
    fn sizes(&self) -> Vec<u64> {
        let mut sets: Vec<(u64, u64)> = self
            .all(KindId::ReplicaSet)
            .iter()
            .map(|s| {
                let revision = annotation(&s.raw, deployment::REVISION_ANNOTATION);
                (revision.parse().unwrap(), s.raw["spec"]["replicas"].as_u64().unwrap())
            })
            .collect();
        sets.sort_unstable();
        sets.into_iter().map(|(_, n)| n).collect()
    }

    fn progressing(&self) -> String {
        let object = self.object(KindId::Deployment, "user");
        let all = object.raw["status"]["conditions"].as_array().unwrap().clone();
        let found = all.iter().find(|c| c["type"] == "Progressing").unwrap();
        found["reason"].as_str().unwrap().to_owned()
    }
}

#[test]
fn the_first_step_is_as_large_as_surge_and_unavailable_allow() {
    // Replicas, maxSurge, maxUnavailable; old and new after the first step.
    for (replicas, surge, unavailable, old, new) in [
        (10, json!("25%"), json!("25%"), 8, 5),
        (10, json!(0), json!(3), 7, 3),
        (10, json!(3), json!(0), 10, 3),
        (4, json!("1%"), json!(0), 4, 1),
        // 25 % of 3 is nothing, rounded down; then one may be away.
        (3, json!(0), json!("25%"), 2, 1),
        (1, json!("25%"), json!("25%"), 1, 1),
        (5, json!("100%"), json!("100%"), 0, 5),
    ] {
        let mut sim = Sim::rolled(replicas, surge.clone(), unavailable.clone());
        sim.edit(|d| *template(d) = json!("user:2"));
        assert_eq!(sim.sizes(), [old, new], "{replicas} {surge} {unavailable}");
        sim.run();
        assert_eq!(sim.sizes(), [0, u64::from(replicas)]);
    }
}

#[test]
fn scaling_in_the_middle_of_a_rollout_keeps_the_shares() {
    // From Kubernetes' documentation: 10 replicas, maxSurge 3, maxUnavailable 2.
    let mut sim = Sim::rolled(10, json!(3), json!(2));
    sim.edit(|d| *template(d) = json!("broken"));
    sim.agent(0);
    sim.settle();
    assert_eq!(sim.sizes(), [8, 5]);
    sim.edit(|d| d["spec"]["replicas"] = json!(15));
    assert_eq!(sim.sizes(), [11, 7], "3 more of the old, 2 of the new");
    sim.edit(|d| *template(d) = json!("user:1"));
    sim.run();
    assert_eq!(sim.sizes(), [0, 15], "back with what was");
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut sim = Sim::rolled(2, json!(1), json!(0));
    sim.edit(|d| {
        d["spec"]["paused"] = json!(true);
        *template(d) = json!("user:2");
    });
    assert_eq!(sim.sizes(), [2]);
    assert_eq!(sim.progressing(), "DeploymentPaused");
    sim.edit(|d| d["spec"]["replicas"] = json!(4));
    sim.run();
    assert_eq!(sim.sizes(), [4]);
    sim.edit(|d| d["spec"]["paused"] = json!(false));
    sim.run();
    assert_eq!(sim.sizes(), [0, 4]);
    assert_eq!(sim.progressing(), "NewReplicaSetAvailable");
}

#[test]
fn sets_keep_what_undo_brings_back() {
    let mut sim = Sim::rolled(1, json!(1), json!(0));
    let cause = "kubernetes.io/change-cause";
    for n in 1..=3 {
        sim.edit(|d| {
            *template(d) = json!(format!("user:{n}"));
            d["metadata"]["annotations"][cause] = json!(format!("version {n}"));
            d["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"] =
                json!("{}");
        });
        sim.run();
    }
    let note = |sim: &Sim, image: &str, name: &str| {
        let sets = sim.all(KindId::ReplicaSet);
        let of =
            |s: &&Arc<Object>| s.raw["spec"]["template"]["spec"]["containers"][0]["image"] == image;
        annotation(&sets.iter().find(of).unwrap().raw, name).to_owned()
    };
    assert_eq!(note(&sim, "user:2", cause), "version 2");
    assert_eq!(note(&sim, "user:2", "kubectl.kubernetes.io/last-applied-configuration"), "");
    assert_eq!(note(&sim, "user:3", deployment::REVISION_ANNOTATION), "3");
    // Undo: the template and notes of revision 2 again.
    sim.edit(|d| *template(d) = json!("user:2"));
    sim.run();
    assert_eq!(note(&sim, "user:2", deployment::REVISION_ANNOTATION), "4");
    assert_eq!(note(&sim, "user:2", "deployment.kubernetes.io/revision-history"), "2");
}

#[test]
fn history_is_kept_up_to_its_limit() {
    let mut sim = Sim::rolled(1, json!(1), json!(0));
    sim.edit(|d| d["spec"]["revisionHistoryLimit"] = json!(2));
    for n in 2..8 {
        sim.edit(|d| *template(d) = json!(format!("user:{n}")));
        sim.run();
    }
    assert_eq!(sim.sizes(), [0, 0, 1]);
}

#[test]
fn a_pod_counts_when_it_was_ready_for_long_enough() {
    let mut sim = Sim::rolled(2, json!(1), json!(0));
    sim.edit(|d| {
        d["spec"]["minReadySeconds"] = json!(30);
        *template(d) = json!("user:2");
    });
    sim.agent(1);
    assert_eq!(sim.sizes(), [2, 1], "the new one is ready, and not yet available");
    sim.later(29);
    assert_eq!(sim.sizes(), [2, 1]);
    sim.later(2);
    assert_eq!(sim.sizes(), [1, 2]);
}

#[test]
fn what_was_rolled_out_stays_so_whatever_its_pods_do() {
    let mut sim = Sim::rolled(2, json!(1), json!(0));
    let pod = sim.names(KindId::Pod)[0].clone();
    sim.set_ready(&pod, false);
    sim.edit(|d| d["spec"]["replicas"] = json!(4));
    sim.later(2000);
    assert_eq!(sim.progressing(), "NewReplicaSetAvailable");
    let status = sim.object(KindId::Deployment, "user").raw["status"].clone();
    assert_eq!(status["conditions"][0]["status"], "False", "but it is not available: {status}");
    // The next template has a deadline of its own, from its first pod on.
    sim.edit(|d| {
        d["spec"]["progressDeadlineSeconds"] = json!(60);
        *template(d) = json!("broken");
    });
    assert_ne!(sim.progressing(), "NewReplicaSetAvailable");
    sim.later(59);
    assert_ne!(sim.progressing(), "ProgressDeadlineExceeded");
    sim.later(2);
    assert_eq!(sim.progressing(), "ProgressDeadlineExceeded");
}

#[test]
fn random_rollouts_stay_within_their_bounds() {
    for seed in 0..60 {
        let mut rng = Rng::seeded(seed);
        let mut pick = |n: u64| u32::try_from(rng.below(n)).unwrap();
        let shares = [json!(0), json!(1), json!(3), json!("25%"), json!("40%"), json!("100%")];
        let surge = shares[pick(6) as usize].clone();
        let unavailable = shares[pick(6) as usize].clone();
        let mut sim = Sim::rolled(1 + pick(9), surge.clone(), unavailable.clone());
        for step in 0..60 {
            let before = sim.ready();
            match pick(10) {
                0 => {
                    let replicas = pick(12);
                    sim.edit(|d| d["spec"]["replicas"] = json!(replicas));
                }
                1 => {
                    let image = format!("user:{}", pick(4));
                    sim.edit(|d| *template(d) = json!(image));
                }
                2 => {
                    let paused = pick(2) == 0;
                    sim.edit(|d| d["spec"]["paused"] = json!(paused));
                }
                n => sim.agent(n as usize % 4),
            }
            let wanted = sim.object(KindId::Deployment, "user").raw["spec"]["replicas"].clone();
            let wanted = u32::try_from(wanted.as_u64().unwrap()).unwrap();
            let part = |v: &Value, up| {
                let share: IntOrString = serde_json::from_value(v.clone()).unwrap();
                share.of(wanted, up).unwrap()
            };
            let (most, mut away) = (part(&surge, true), part(&unavailable, false));
            if most == 0 && away == 0 {
                away = 1;
            }
            let total: u64 = sim.sizes().iter().sum();
            let what = format!("seed {seed} step {step}: {:?} for {wanted}", sim.sizes());
            assert!(total <= u64::from(wanted + most), "too many: {what}");
            if step % 4 == 0 {
                sim.check_woken();
            }
            let least = before.min(wanted.saturating_sub(away) as usize);
            assert!(sim.ready() >= least, "{} of {least} ready: {what}", sim.ready());
        }
        sim.edit(|d| d["spec"]["paused"] = json!(false));
        sim.run();
        let wanted = sim.object(KindId::Deployment, "user").raw["spec"]["replicas"].clone();
        assert_eq!(sim.sizes().last(), wanted.as_u64().as_ref(), "seed {seed}");
        let total: u64 = sim.sizes().iter().sum();
        assert_eq!(Some(total), wanted.as_u64(), "seed {seed}");
    }
}
