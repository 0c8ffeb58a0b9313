// SPDX-License-Identifier: Apache-2.0
//! Pods and the nodes that have room for them, or stay away.

use super::*;

#[test]
fn pods_of_a_node_that_stays_away_are_replaced() {
    let mut sim = Sim::user_and_service(2);
    let bare = json!({ "metadata": { "name": "bare" }, "spec": {} });
    sim.create(KindId::Pod, NS, bare);
    sim.run();
    let old = sim.names(KindId::Pod);
    let second = json!({ "metadata": { "name": "n2" },
        "status": { "conditions": [{ "type": "Ready", "status": "True" }] } });
    sim.create(KindId::Node, "", second);
    let gone = crate::objects::meta::timestamp(sim.clock.wall_ms());
    sim.change(KindId::Node, "n1", |n| {
        n["status"]["conditions"] = json!([{ "type": "Ready", "status": "False",
            "lastTransitionTime": gone }]);
    });
    sim.settle();
    assert_eq!(sim.names(KindId::Pod), old, "it may come back");
    sim.time.advance(std::time::Duration::from_secs(61));
    let items = old.iter().map(|p| Item::Pod(sim.object(KindId::Pod, p).key.clone()));
    let items: Vec<Item> = items.collect();
    sim.queue.extend(items);
    sim.run();
    let now = sim.names(KindId::Pod);
    assert!(now.contains(&"bare".to_owned()), "what nobody would replace stays");
    let moved: Vec<_> = sim.all(KindId::Pod);
    let moved = moved.iter().filter(|p| &*p.key.name != "bare");
    assert!(moved.clone().all(|p| p.raw["spec"]["nodeName"] == "n2"));
    assert_eq!(moved.count(), 2);
}

#[test]
fn a_set_and_a_node_have_limits() {
    let mut sim = Sim::new();
    sim.change(KindId::Node, "n1", |n| n["status"]["allocatable"] = json!({ "pods": "3" }));
    sim.create(KindId::Deployment, NS, deployment("user", 5, "user:1"));
    sim.run();
    let placed = sim.all(KindId::Pod).iter().filter(|p| pod::is_placed(p)).count();
    assert_eq!((sim.all(KindId::Pod).len(), placed), (5, 3));
    let waiting = sim.all(KindId::Pod).into_iter().find(|p| !pod::is_placed(p)).unwrap();
    let message = waiting.raw["status"]["conditions"][0]["message"].clone();
    assert_eq!(message, "0/1 nodes are available, 1 had too many pods");
    // One that goes makes room.
    sim.change(KindId::Deployment, "user", |d| d["spec"]["replicas"] = json!(3));
    sim.run();
    assert_eq!(sim.ready(), 3);
    let first = sim.names(KindId::Pod)[0].clone();
    sim.change(KindId::Deployment, "user", |d| d["spec"]["replicas"] = json!(4));
    sim.run();
    sim.change(KindId::Deployment, "user", |d| d["spec"]["replicas"] = json!(4));
    sim.delete(KindId::Pod, &first, Propagation::Background);
    sim.run();
    assert_eq!(sim.ready(), 3, "the one that waited has the place");
}

#[test]
fn pods_wait_for_a_node_that_fits() {
    let mut sim = Sim::new();
    sim.change(KindId::Node, "n1", |n| n["spec"]["unschedulable"] = json!(true));
    sim.create(KindId::Pod, NS, json!({ "metadata": { "name": "p" }, "spec": {} }));
    sim.settle();
    let condition = &sim.object(KindId::Pod, "p").raw["status"]["conditions"][0];
    assert_eq!(condition["reason"], "Unschedulable");
    assert_eq!(condition["message"], "0/1 nodes are available, 1 were not ready or unschedulable");
    sim.change(KindId::Node, "n1", |n| n["spec"]["unschedulable"] = json!(false));
    sim.settle();
    let pod = sim.object(KindId::Pod, "p");
    assert_eq!(pod.raw["spec"]["nodeName"], "n1");
    assert_eq!(pod.raw["status"]["conditions"][0]["status"], "True");
}
