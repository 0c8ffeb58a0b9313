// SPDX-License-Identifier: Apache-2.0
//! Pods of several machines: where their sidecars are reached, and what becomes of them when a
//! machine moves or stays away.

use std::net::SocketAddr;

use weft_kinds::world::MESH_ADDRESS_ANNOTATION;

use super::*;
use crate::hosts::ALLOWED_ANNOTATION;

fn at(ip: &str, ready: bool, now: &str) -> Value {
    json!({
        "addresses": [{ "type": "InternalIP", "address": ip }],
        "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" },
                         "lastTransitionTime": now }],
    })
}

impl Sim {
    /// The server's own machine and two others, each at its address.
    fn machines() -> Self {
        let mut sim = Self::new();
        sim.machine("n1", "10.9.0.1", true);
        for (name, ip) in [("m1", "10.9.0.2"), ("m2", "10.9.0.3")] {
            sim.create(KindId::Node, "", json!({ "metadata": { "name": name } }));
            sim.machine(name, ip, true);
        }
        sim.settle();
        sim
    }

    fn machine(&mut self, name: &str, ip: &str, ready: bool) {
        let now = crate::objects::meta::timestamp(self.clock.wall_ms());
        self.change(KindId::Node, name, |node| node["status"] = at(ip, ready, &now));
        self.settle();
    }

    /// Node and mesh address of every pod.
    fn mesh(&self) -> Vec<(String, SocketAddr)> {
        let pods = self.all(KindId::Pod);
        let one = |pod: &Arc<Object>| {
            let node = pod.raw["spec"]["nodeName"].as_str().unwrap().to_owned();
            (node, annotation(&pod.raw, MESH_ADDRESS_ANNOTATION).parse().unwrap())
        };
        pods.iter().map(one).collect()
    }

    fn held_ports(&self) -> usize {
        let all = self.store.range("/s/mesh-ports/", 0, None).now_or_never().unwrap().unwrap();
        all.entries.len()
    }
}

#[test]
fn each_pod_is_reached_at_its_machine_and_at_no_other_pods_port() {
    let mut sim = Sim::machines();
    sim.create(KindId::Deployment, NS, deployment("user", 6, "user:1"));
    sim.run();
    let mesh = sim.mesh();
    let ips = [("n1", "10.9.0.1"), ("m1", "10.9.0.2"), ("m2", "10.9.0.3")];
    for (name, ip) in ips {
        let here: Vec<_> = mesh.iter().filter(|(node, _)| node == name).collect();
        assert_eq!(here.len(), 2, "two of six on {name}");
        assert!(here.iter().all(|(_, at)| at.ip().to_string() == ip));
        assert_ne!(here[0].1.port(), here[1].1.port());
    }
    assert_eq!(sim.held_ports(), 6);
    sim.change(KindId::Deployment, "user", |d| d["spec"]["replicas"] = json!(1));
    sim.run();
    assert_eq!(sim.held_ports(), 1, "what goes gives its port back");
}

#[test]
fn a_pod_that_names_a_machine_that_may_not_run_it_gets_no_place_there() {
    let mut sim = Sim::machines();
    let only = json!({ "annotations": { ALLOWED_ANNOTATION: r#"{"only":[["shop","order"]]}"# } });
    sim.create(KindId::Node, "", json!({ "metadata": { "name": "m3" } }));
    sim.change(KindId::Node, "m3", |node| {
        node["metadata"]["annotations"] = only["annotations"].clone();
    });
    sim.machine("m3", "10.9.0.4", true);
    let mut raw = json!({ "metadata": { "name": "spy" }, "spec": {
        "nodeName": "m3", "containers": [{ "name": "main", "image": "spy:1" }] } });
    weft_kinds::builtin::complete(KindId::Pod, &mut raw);
    sim.create(KindId::Pod, NS, raw);
    sim.settle();
    let status = &sim.object(KindId::Pod, "spy").raw["status"];
    // Without an address no agent is told of it, nor of the secrets that it names.
    assert_eq!(status["podIP"].as_str().unwrap_or_default(), "");
    let said = status["conditions"].to_string();
    assert!(said.contains("host m3") && said.contains(&format!("{NS}/default")), "{said}");
}

#[test]
fn a_machine_that_joins_again_for_less_loses_what_it_may_not_run() {
    let mut sim = Sim::machines();
    sim.create(KindId::Deployment, NS, deployment("user", 3, "user:1"));
    sim.run();
    let on_m1 = |sim: &Sim| sim.mesh().iter().filter(|(node, _)| node == "m1").count();
    assert_eq!(on_m1(&sim), 1);
    let joins = |sim: &mut Sim, allowed: &str| {
        sim.change(KindId::Node, "m1", |node| {
            node["metadata"]["annotations"] = json!({ ALLOWED_ANNOTATION: allowed });
        });
        sim.run();
    };
    joins(&mut sim, &format!(r#"{{"only":[["{NS}","default"]]}}"#));
    assert_eq!(on_m1(&sim), 1, "that is what runs there");
    joins(&mut sim, r#"{"only":[["shop","order"]]}"#);
    assert_eq!(on_m1(&sim), 0);
    assert_eq!(sim.mesh().len(), 3, "it runs elsewhere");
}

#[test]
fn one_machine_alone_needs_no_mesh_addresses() {
    let mut sim = Sim::new();
    sim.machine("n1", "127.0.0.1", true);
    sim.create(KindId::Deployment, NS, deployment("user", 1, "user:1"));
    sim.run();
    let pod = &sim.all(KindId::Pod)[0];
    assert_eq!(annotation(&pod.raw, MESH_ADDRESS_ANNOTATION), "");
    assert_eq!(sim.held_ports(), 0);
}

#[test]
fn pods_of_a_machine_with_another_address_are_replaced() {
    let mut sim = Sim::machines();
    sim.create(KindId::Deployment, NS, deployment("user", 3, "user:1"));
    sim.run();
    let before = sim.names(KindId::Pod);
    sim.machine("m1", "10.9.0.9", true);
    sim.run();
    let kept = sim.names(KindId::Pod).iter().filter(|p| before.contains(p)).count();
    assert_eq!(kept, 2);
    let mesh = sim.mesh();
    assert!(mesh.iter().all(|(node, at)| (node == "m1") == (at.ip().to_string() == "10.9.0.9")));
    assert_eq!(mesh.len(), 3);
    assert_eq!(sim.held_ports(), 3);
}

#[test]
fn a_machine_that_stays_away_loses_its_pods_to_the_others() {
    let mut sim = Sim::machines();
    sim.create(KindId::Deployment, NS, deployment("user", 3, "user:1"));
    sim.run();
    let before = sim.names(KindId::Pod);
    sim.machine("m2", "10.9.0.3", false);
    sim.later(30);
    sim.settle();
    assert_eq!(sim.names(KindId::Pod), before, "a short absence moves nothing");
    sim.machine("m2", "10.9.0.3", true);
    sim.later(120);
    sim.settle();
    assert_eq!(sim.names(KindId::Pod), before, "nor one that is over");

    sim.machine("m2", "10.9.0.3", false);
    sim.later(61);
    sim.run();
    let mesh = sim.mesh();
    assert_eq!(mesh.len(), 3);
    assert!(mesh.iter().all(|(node, _)| node != "m2"), "{mesh:?}");
    // New ones come there again once it is back.
    sim.machine("m2", "10.9.0.3", true);
    sim.change(KindId::Deployment, "user", |d| d["spec"]["replicas"] = json!(4));
    sim.run();
    assert_eq!(sim.mesh().iter().filter(|(node, _)| node == "m2").count(), 1);
}

#[test]
fn pods_are_where_their_machine_is_unless_they_say_otherwise() {
    const ZONE: &str = "topology.kubernetes.io/zone";
    let mut sim = Sim::machines();
    for name in ["n1", "m1", "m2"] {
        sim.change(KindId::Node, name, |node| {
            node["metadata"]["labels"] = json!({ ZONE: format!("zone-{name}") });
        });
    }
    sim.create(KindId::Deployment, NS, deployment("user", 3, "user:1"));
    sim.run();
    for pod in sim.all(KindId::Pod) {
        let node = pod.raw["spec"]["nodeName"].as_str().unwrap();
        assert_eq!(pod.meta.label(ZONE), Some(&*format!("zone-{node}")));
    }
    let mut own = deployment("own", 1, "user:1");
    own["spec"]["template"]["metadata"]["labels"]["topology.kubernetes.io/region"] = json!("eu");
    sim.create(KindId::Deployment, NS, own);
    sim.run();
    let pods = sim.all(KindId::Pod);
    let own = pods.iter().find(|p| p.meta.label("topology.kubernetes.io/region").is_some());
    assert_eq!(own.unwrap().meta.label(ZONE), None, "half of a place is no place");
}
