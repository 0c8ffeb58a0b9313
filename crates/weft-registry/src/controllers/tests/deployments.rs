// SPDX-License-Identifier: Apache-2.0
//! Deployments and their sets: rolling, scaling, adoption, deletion.

use super::*;

#[test]
fn a_deployment_becomes_pods_with_kubernetes_names_and_owners() {
    let sim = Sim::user_and_service(2);
    let sets = sim.all(KindId::ReplicaSet);
    assert_eq!(sets.len(), 1);
    let hash = sets[0].meta.label(deployment::HASH_LABEL).unwrap().to_owned();
    assert_eq!(&*sets[0].key.name, format!("user-{hash}"));
    assert_eq!(sets[0].raw["spec"]["selector"]["matchLabels"]["pod-template-hash"], *hash);
    assert_eq!(annotation(&sets[0].raw, deployment::REVISION_ANNOTATION), "1");
    let pods = sim.all(KindId::Pod);
    assert_eq!(pods.len(), 2);
    let mut addresses = BTreeSet::new();
    for pod in &pods {
        let suffix = pod.key.name.strip_prefix(&format!("user-{hash}-")).unwrap();
        assert_eq!(suffix.len(), 5);
        assert_eq!(pod.meta.label("app"), Some("user"));
        assert_eq!(pod.meta.annotation("a"), Some("b"));
        let owner = pod.meta.controller().unwrap();
        assert_eq!((&*owner.kind, &owner.uid), ("ReplicaSet", &sets[0].meta.uid));
        assert_eq!(pod.raw["spec"]["nodeName"], "n1");
        assert_eq!(pod.raw["spec"]["serviceAccountName"], "default");
        let ip: std::net::Ipv4Addr = pod.raw["status"]["podIP"].as_str().unwrap().parse().unwrap();
        assert!((64..96).contains(&ip.octets()[1]) && addresses.insert(ip), "{ip}");
    }
    let status = &sim.object(KindId::Deployment, "user").raw["status"];
    assert_eq!(status["readyReplicas"], 2);
    assert_eq!(status["availableReplicas"], 2);
    assert_eq!(status["updatedReplicas"], 2);
    assert_eq!(status["observedGeneration"], 1);
    assert!(status.get("unavailableReplicas").is_none(), "zero is left out");
    let reasons: Vec<_> =
        status["conditions"].as_array().unwrap().iter().map(|c| &c["reason"]).collect();
    assert_eq!(reasons, ["MinimumReplicasAvailable", "NewReplicaSetAvailable"]);
}

#[test]
fn scaling_down_takes_those_that_do_least() {
    let mut sim = Sim::user_and_service(4);
    let pods = sim.names(KindId::Pod);
    sim.set_ready(&pods[1], false);
    sim.settle();
    sim.time.advance(std::time::Duration::from_secs(60));
    sim.change(KindId::Deployment, "user", |d| d["spec"]["replicas"] = json!(5));
    sim.run();
    sim.set_ready(&pods[1], false);
    sim.settle();
    let young: Vec<String> =
        sim.names(KindId::Pod).into_iter().filter(|p| !pods.contains(p)).collect();
    assert_eq!(young.len(), 1);
    sim.change(KindId::Deployment, "user", |d| d["spec"]["replicas"] = json!(3));
    sim.settle();
    let going: BTreeSet<String> = sim
        .all(KindId::Pod)
        .iter()
        .filter(|p| p.meta.is_deleting())
        .map(|p| p.key.name.to_string())
        .collect();
    assert_eq!(going, [pods[1].clone(), young[0].clone()].into(), "not ready, then the youngest");
}

#[test]
fn a_new_template_rolls_without_a_moment_of_fewer() {
    let mut sim = Sim::user_and_service(4);
    sim.change(KindId::Deployment, "user", |d| *template(d) = json!("user:2"));
    for round in 0.. {
        assert!(round < 60, "the rollout never ends");
        sim.settle();
        let (pods, ready) = (sim.all(KindId::Pod), sim.ready());
        assert!(ready >= 4, "only {ready} ready in round {round}");
        let alive = pods.iter().filter(|p| !p.meta.is_deleting()).count();
        assert!(alive <= 5, "{alive} pods in round {round}");
        let new = |p: &&Arc<Object>| p.raw["spec"]["containers"][0]["image"] == "user:2";
        if pods.len() == 4 && pods.iter().filter(new).count() == 4 && ready == 4 {
            break;
        }
        sim.agent(1);
    }
    let sets = sim.all(KindId::ReplicaSet);
    let mut wanted: Vec<_> = sets
        .iter()
        .map(|s| (annotation(&s.raw, deployment::REVISION_ANNOTATION), &s.raw["spec"]["replicas"]))
        .collect();
    wanted.sort_by_key(|(revision, _)| *revision);
    assert_eq!(wanted, [("1", &json!(0)), ("2", &json!(4))]);
    // Back again: the old set is the new one.
    sim.change(KindId::Deployment, "user", |d| *template(d) = json!("user:1"));
    sim.run();
    let sets = sim.all(KindId::ReplicaSet);
    assert_eq!(sets.len(), 2);
    let back = sets.iter().find(|s| s.raw["spec"]["replicas"] == 4).unwrap();
    let deployment = sim.object(KindId::Deployment, "user");
    for object in [back, &deployment] {
        assert_eq!(annotation(&object.raw, deployment::REVISION_ANNOTATION), "3");
    }
}

#[test]
fn a_broken_template_stops_and_what_served_goes_on() {
    let mut sim = Sim::user_and_service(3);
    let good = sim.names(KindId::Pod);
    sim.change(KindId::Deployment, "user", |d| *template(d) = json!("broken"));
    for _ in 0..5 {
        sim.settle();
        sim.agent(0);
    }
    assert_eq!(sim.ready(), 3);
    assert!(good.iter().all(|p| sim.names(KindId::Pod).contains(p)));
    sim.time.advance(std::time::Duration::from_secs(601));
    sim.queue.insert(Item::Deployment(sim.object(KindId::Deployment, "user").key.clone()));
    sim.settle();
    let status = sim.object(KindId::Deployment, "user").raw["status"].clone();
    let progressing = &status["conditions"][1];
    assert_eq!(progressing["reason"], "ProgressDeadlineExceeded", "{status}");
    // Repaired, it goes on from there.
    sim.change(KindId::Deployment, "user", |d| *template(d) = json!("user:3"));
    sim.run();
    let status = sim.object(KindId::Deployment, "user").raw["status"].clone();
    assert_eq!(status["conditions"][1]["reason"], "NewReplicaSetAvailable");
}

#[test]
fn recreate_ends_the_old_before_the_new() {
    let mut sim = Sim::user_and_service(2);
    sim.change(KindId::Deployment, "user", |d| {
        d["spec"]["strategy"] = json!({ "type": "Recreate" });
        *template(d) = json!("user:2");
    });
    sim.settle();
    assert_eq!(sim.ready(), 0);
    assert_eq!(sim.all(KindId::Pod).len(), 2, "the old are on their way out");
    sim.run();
    assert_eq!(sim.ready(), 2);
    let new = |p: &Arc<Object>| p.raw["spec"]["containers"][0]["image"] == "user:2";
    assert!(sim.all(KindId::Pod).iter().all(new));
}

#[test]
fn pods_that_end_or_vanish_are_replaced() {
    let mut sim = Sim::user_and_service(2);
    let pods = sim.names(KindId::Pod);
    sim.change(KindId::Pod, &pods[0], |p| p["status"]["phase"] = json!("Failed"));
    sim.settle();
    let now = sim.names(KindId::Pod);
    assert_eq!(now.len(), 3, "the one that ended stays for its logs");
    sim.delete(KindId::Pod, &pods[1], Propagation::Background);
    sim.run();
    assert_eq!(sim.ready(), 2);
    for pod in sim.names(KindId::Pod) {
        sim.change(KindId::Pod, &pod, |p| p["status"]["phase"] = json!("Failed"));
    }
    sim.run();
    assert_eq!(sim.ready(), 2);
    assert_eq!(sim.all(KindId::Pod).len(), 3, "only the last that ended is kept");
}

#[test]
fn a_deleted_deployment_takes_everything_along() {
    for how in [Propagation::Background, Propagation::Foreground] {
        let mut sim = Sim::user_and_service(2);
        sim.delete(KindId::Deployment, "user", how);
        sim.settle();
        let waits = sim.world.get(KindId::Deployment, NS, "user").is_some();
        assert_eq!(waits, how == Propagation::Foreground, "{how:?}");
        sim.run();
        for kind in [KindId::Deployment, KindId::ReplicaSet, KindId::Pod] {
            assert_eq!(sim.names(kind), [""; 0], "{how:?}");
        }
        let held = sim.world.settings().filter(|(k, _)| k.starts_with("addresses/127.6"));
        assert_eq!(held.count(), 0, "addresses are given back");
    }
}

#[test]
fn an_orphaned_set_lives_on() {
    let mut sim = Sim::user_and_service(2);
    sim.delete(KindId::Deployment, "user", Propagation::Orphan);
    sim.run();
    assert!(sim.world.get(KindId::Deployment, NS, "user").is_none());
    let sets = sim.all(KindId::ReplicaSet);
    assert_eq!((sets.len(), sim.ready()), (1, 2));
    assert!(sets[0].meta.owner_references.is_empty());
}

#[test]
fn a_deployment_made_again_takes_over_what_was_left() {
    let mut sim = Sim::user_and_service(2);
    let (sets, pods) = (sim.names(KindId::ReplicaSet), sim.names(KindId::Pod));
    sim.delete(KindId::Deployment, "user", Propagation::Orphan);
    sim.run();
    sim.create(KindId::Deployment, NS, deployment("user", 2, "user:1"));
    sim.run();
    assert_eq!(sim.names(KindId::ReplicaSet), sets);
    assert_eq!(sim.names(KindId::Pod), pods);
    let owner = sim.all(KindId::ReplicaSet)[0].meta.controller().unwrap().clone();
    assert_eq!(owner.uid, sim.object(KindId::Deployment, "user").meta.uid);
    assert_eq!(sim.object(KindId::Deployment, "user").raw["status"]["readyReplicas"], 2);
    // The same one level below.
    sim.delete(KindId::ReplicaSet, &sets[0], Propagation::Orphan);
    sim.run();
    assert_eq!(sim.names(KindId::Pod), pods);
    assert_eq!(sim.ready(), 2);
}
