// SPDX-License-Identifier: Apache-2.0
//! StatefulSets and DaemonSets beside what Kubernetes documents of them.

use super::*;
use crate::hosts::ALLOWED_ANNOTATION;

fn set(kind: KindId, spec: Value) -> Value {
    let mut raw = json!({ "metadata": { "name": "db" }, "spec": {
        "selector": { "matchLabels": { "app": "db" } },
        "template": { "metadata": { "labels": { "app": "db" } },
            "spec": { "containers": [{ "name": "main", "image": "db:1" }] } } } });
    for (field, value) in spec.as_object().unwrap() {
        raw["spec"][field] = value.clone();
    }
    weft_kinds::builtin::complete(kind, &mut raw);
    raw
}

impl Sim {
    fn stateful(spec: Value) -> Self {
        let mut sim = Self::new();
        sim.create(KindId::StatefulSet, NS, set(KindId::StatefulSet, spec));
        sim.settle();
        sim
    }

    fn image(&self, pod: &str) -> String {
        let image = &self.object(KindId::Pod, pod).raw["spec"]["containers"][0]["image"];
        image.as_str().unwrap().to_owned()
    }

    fn images(&self) -> Vec<String> {
        self.names(KindId::Pod).iter().map(|p| self.image(p)).collect()
    }

    fn set_status(&self, kind: KindId) -> Value {
        self.object(kind, "db").raw["status"].clone()
    }

    fn alter(&mut self, kind: KindId, f: impl FnOnce(&mut Value)) {
        self.change(kind, "db", f);
        self.settle();
        self.check_woken();
    }
}

#[test]
fn pods_come_in_order_and_go_in_reverse() {
    let mut sim = Sim::stateful(json!({ "replicas": 3, "serviceName": "dbs" }));
    for n in 1..=3 {
        assert_eq!(sim.names(KindId::Pod).len(), n, "one at a time");
        sim.agent(1);
    }
    assert_eq!(sim.names(KindId::Pod), ["db-0", "db-1", "db-2"]);
    let pod = sim.object(KindId::Pod, "db-1");
    assert_eq!(pod.raw["spec"]["hostname"], "db-1");
    assert_eq!(pod.raw["spec"]["subdomain"], "dbs");
    assert_eq!(pod.meta.label("statefulset.kubernetes.io/pod-name"), Some("db-1"));
    assert_eq!(pod.meta.label("apps.kubernetes.io/pod-index"), Some("1"));
    let status = sim.set_status(KindId::StatefulSet);
    assert_eq!((&status["readyReplicas"], &status["currentReplicas"]), (&json!(3), &json!(3)));
    assert_eq!(status["currentRevision"], status["updateRevision"]);
    sim.alter(KindId::StatefulSet, |s| s["spec"]["replicas"] = json!(1));
    let going = |sim: &Sim| -> Vec<String> {
        let pods = sim.all(KindId::Pod);
        let going = pods.iter().filter(|p| p.meta.is_deleting());
        going.map(|p| p.key.name.to_string()).collect()
    };
    assert_eq!(going(&sim), ["db-2"]);
    sim.agent(0);
    assert_eq!(going(&sim), ["db-1"]);
    sim.run();
    assert_eq!(sim.names(KindId::Pod), ["db-0"]);
}

#[test]
fn one_that_is_not_well_holds_the_next_up() {
    let mut sim = Sim::stateful(json!({ "replicas": 3 }));
    sim.agent(0);
    assert_eq!(sim.names(KindId::Pod), ["db-0"]);
    sim.run();
    sim.set_ready("db-0", false);
    sim.delete(KindId::Pod, "db-2", Propagation::Background);
    sim.settle();
    sim.agent(0);
    assert_eq!(sim.names(KindId::Pod), ["db-0", "db-1"], "db-2 waits for db-0");
    sim.run();
    assert_eq!(sim.ready(), 3);
}

#[test]
fn in_parallel_all_come_at_once() {
    let spec = json!({ "replicas": 3, "podManagementPolicy": "Parallel",
        "ordinals": { "start": 5 } });
    let mut sim = Sim::stateful(spec);
    assert_eq!(sim.names(KindId::Pod), ["db-5", "db-6", "db-7"]);
    sim.run();
    sim.alter(KindId::StatefulSet, |s| s["spec"]["replicas"] = json!(0));
    assert!(sim.all(KindId::Pod).iter().all(|p| p.meta.is_deleting()));
}

#[test]
fn an_update_begins_at_the_end_and_stops_at_the_partition() {
    let mut sim = Sim::stateful(json!({ "replicas": 3 }));
    sim.run();
    sim.alter(KindId::StatefulSet, |s| {
        *template(s) = json!("db:2");
        s["spec"]["updateStrategy"]["rollingUpdate"]["partition"] = json!(1);
    });
    for _ in 0..20 {
        let ready = sim.ready();
        assert!(ready >= 2, "only one at a time is away, {ready} are there");
        sim.agent(1);
    }
    assert_eq!(sim.images(), ["db:1", "db:2", "db:2"]);
    let status = sim.set_status(KindId::StatefulSet);
    assert_eq!((&status["updatedReplicas"], &status["currentReplicas"]), (&json!(2), &json!(1)));
    // One below the partition comes back as it was.
    sim.delete(KindId::Pod, "db-0", Propagation::Background);
    sim.run();
    assert_eq!(sim.images(), ["db:1", "db:2", "db:2"]);
    sim.alter(KindId::StatefulSet, |s| {
        s["spec"]["updateStrategy"]["rollingUpdate"]["partition"] = json!(0);
    });
    sim.run();
    assert_eq!(sim.images(), ["db:2", "db:2", "db:2"]);
    let status = sim.set_status(KindId::StatefulSet);
    assert_eq!(status["currentRevision"], status["updateRevision"]);
    let revisions = sim.all(KindId::ControllerRevision);
    let numbers: BTreeSet<i64> =
        revisions.iter().map(|r| r.raw["revision"].as_i64().unwrap()).collect();
    assert_eq!(numbers, [1, 2].into());
    let patch = &revisions[0].raw["data"]["spec"]["template"];
    assert_eq!(patch["$patch"], "replace", "undo applies it as it stands");
}

#[test]
fn a_broken_template_is_undone_without_help() {
    let mut sim = Sim::stateful(json!({ "replicas": 2 }));
    sim.run();
    sim.alter(KindId::StatefulSet, |s| *template(s) = json!("broken"));
    for _ in 0..3 {
        sim.agent(0);
    }
    assert_eq!(sim.images(), ["db:1", "broken"]);
    sim.alter(KindId::StatefulSet, |s| *template(s) = json!("db:1"));
    sim.run();
    assert_eq!((sim.images(), sim.ready()), (vec!["db:1".to_owned(); 2], 2));
}

#[test]
fn on_delete_waits_for_the_user() {
    let mut sim = Sim::stateful(json!({ "replicas": 2, "updateStrategy": { "type": "OnDelete" } }));
    sim.run();
    sim.alter(KindId::StatefulSet, |s| *template(s) = json!("db:2"));
    sim.run();
    assert_eq!(sim.images(), ["db:1", "db:1"]);
    sim.delete(KindId::Pod, "db-0", Propagation::Background);
    sim.run();
    assert_eq!(sim.images(), ["db:2", "db:1"]);
}

#[test]
fn a_foreign_pod_of_the_name_is_left_alone() {
    let mut sim = Sim::new();
    let pod = json!({ "metadata": { "name": "db-0", "labels": { "app": "other" } },
        "spec": { "containers": [{ "name": "main", "image": "other" }] } });
    sim.create(KindId::Pod, NS, pod);
    sim.create(KindId::StatefulSet, NS, set(KindId::StatefulSet, json!({})));
    sim.run();
    assert_eq!(sim.image("db-0"), "other");
    sim.delete(KindId::Pod, "db-0", Propagation::Background);
    sim.run();
    sim.later(6);
    assert_eq!(sim.image("db-0"), "db:1");
}

fn node(name: &str, ready: bool) -> Value {
    let answer = if ready { "True" } else { "False" };
    json!({ "metadata": { "name": name, "labels": { "disk": "ssd" } }, "status": {
        "conditions": [{ "type": "Ready", "status": answer }] } })
}

#[test]
fn each_node_that_fits_has_one_pod() {
    let mut sim = Sim::new();
    sim.create(KindId::DaemonSet, NS, set(KindId::DaemonSet, json!({})));
    sim.run();
    sim.create(KindId::Node, "", node("n2", true));
    sim.create(KindId::Node, "", node("n3", false));
    sim.run();
    let nodes = |sim: &Sim| -> BTreeSet<String> {
        let pods = sim.all(KindId::Pod);
        pods.iter().map(|p| p.raw["spec"]["nodeName"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(nodes(&sim), ["n1", "n2"].map(str::to_owned).into());
    assert!(sim.all(KindId::Pod).iter().all(|p| p.raw["status"]["podIP"].is_string()));
    let status = sim.set_status(KindId::DaemonSet);
    assert_eq!(status["desiredNumberScheduled"], 3);
    assert_eq!((&status["numberReady"], &status["numberUnavailable"]), (&json!(2), &json!(1)));
    sim.alter(KindId::DaemonSet, |d| {
        d["spec"]["template"]["spec"]["nodeSelector"] = json!({ "disk": "ssd" });
    });
    sim.run();
    assert_eq!(nodes(&sim), ["n2"].map(str::to_owned).into());
}

#[test]
fn a_daemon_keeps_away_from_nodes_that_may_not_run_it() {
    let mut sim = Sim::new();
    let joined = |name: &str, only: &str| {
        let mut raw = node(name, true);
        raw["metadata"]["annotations"] = json!({ ALLOWED_ANNOTATION: only });
        raw
    };
    // A host whose token allows one identity sees no pods, and so no secrets, of others.
    let own = format!(r#"{{"only":[["{NS}","default"]]}}"#);
    sim.create(KindId::Node, "", joined("own", &own));
    sim.create(KindId::Node, "", joined("strange", r#"{"only":[["shop","order"]]}"#));
    let mut tainted = node("tainted", true);
    tainted["spec"] = json!({ "taints": [{ "key": "gpu", "effect": "NoSchedule" }] });
    sim.create(KindId::Node, "", tainted);
    sim.create(KindId::DaemonSet, NS, set(KindId::DaemonSet, json!({})));
    sim.run();
    let nodes = |sim: &Sim| -> Vec<String> {
        let pods = sim.all(KindId::Pod);
        let mut all: Vec<String> =
            pods.iter().map(|p| p.raw["spec"]["nodeName"].as_str().unwrap().to_owned()).collect();
        all.sort();
        all
    };
    assert_eq!(nodes(&sim), ["n1", "own"]);
    sim.alter(KindId::DaemonSet, |d| {
        d["spec"]["template"]["spec"]["tolerations"] = json!([{ "operator": "Exists" }]);
    });
    sim.run();
    for _ in 0..10 {
        sim.agent(1);
    }
    assert_eq!(nodes(&sim), ["n1", "own", "tainted"]);
    assert_eq!(sim.set_status(KindId::DaemonSet)["desiredNumberScheduled"], 3);
}

#[test]
fn daemons_are_replaced_as_many_at_a_time_as_may_be_away() {
    let mut sim = Sim::new();
    for n in 2..=4 {
        sim.create(KindId::Node, "", node(&format!("n{n}"), true));
    }
    sim.create(KindId::DaemonSet, NS, set(KindId::DaemonSet, json!({})));
    sim.run();
    assert_eq!(sim.ready(), 4);
    sim.alter(KindId::DaemonSet, |d| *template(d) = json!("db:2"));
    for _ in 0..20 {
        assert!(sim.ready() >= 3, "{} ready", sim.ready());
        sim.agent(1);
    }
    assert_eq!(sim.images(), ["db:2"; 4]);
    let status = sim.set_status(KindId::DaemonSet);
    assert_eq!(status["updatedNumberScheduled"], 4);
    assert_eq!(sim.all(KindId::ControllerRevision).len(), 2);
}

fn budget(spec: Value) -> Sim {
    let mut sim = Sim::user_and_service(4);
    let mut raw = json!({ "metadata": { "name": "user" }, "spec": spec });
    raw["spec"]["selector"] = json!({ "matchLabels": { "app": "user" } });
    sim.create(KindId::PodDisruptionBudget, NS, raw);
    sim.settle();
    sim
}

impl Sim {
    /// Allowed, healthy now, healthy wanted, expected.
    fn budget(&self) -> [u64; 4] {
        let status = &self.object(KindId::PodDisruptionBudget, "user").raw["status"];
        ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"]
            .map(|field| status[field].as_u64().unwrap())
    }
}

#[test]
fn a_budget_counts_what_may_go() {
    for (spec, expect) in [
        (json!({ "minAvailable": 3 }), [1, 4, 3, 4]),
        (json!({ "minAvailable": "50%" }), [2, 4, 2, 4]),
        (json!({ "maxUnavailable": 1 }), [1, 4, 3, 4]),
        (json!({ "maxUnavailable": "30%" }), [2, 4, 2, 4]),
        (json!({ "minAvailable": 9 }), [0, 4, 9, 4]),
    ] {
        assert_eq!(budget(spec.clone()).budget(), expect, "{spec}");
    }
    let mut sim = budget(json!({ "maxUnavailable": 1 }));
    let pods = sim.names(KindId::Pod);
    sim.set_ready(&pods[0], false);
    sim.settle();
    assert_eq!(sim.budget(), [0, 3, 3, 4]);
    sim.set_ready(&pods[0], true);
    sim.settle();
    // What was promised to somebody counts as gone, for two minutes.
    let known = sim.object(KindId::PodDisruptionBudget, "user");
    let now = crate::objects::meta::timestamp(sim.clock.wall_ms());
    let promised = crate::controllers::disruption::promise(&known.raw, &pods[1], &now).unwrap();
    assert!(crate::controllers::disruption::promise(&promised, &pods[2], &now).is_none());
    sim.change(KindId::PodDisruptionBudget, "user", |b| b["status"] = promised["status"].clone());
    sim.settle();
    assert_eq!(sim.budget(), [0, 3, 3, 4]);
    sim.later(121);
    assert_eq!(sim.budget(), [1, 4, 3, 4]);
    sim.change(KindId::Deployment, "user", |d| d["spec"]["replicas"] = json!(6));
    sim.settle();
    assert_eq!(sim.budget(), [0, 4, 5, 6], "it is the Deployment that says how many");
}
