// SPDX-License-Identifier: Apache-2.0
//! What belongs to a Service: slices, Consul's instances, and what a change of one costs.

use super::*;

#[test]
fn slices_tell_ready_and_draining() {
    let mut sim = Sim::user_and_service(2);
    let ready = |e: &[(String, bool, bool, bool)]| e.iter().filter(|e| e.1).count();
    assert_eq!(ready(&sim.endpoints("user")), 2);
    let slice = sim.all(KindId::EndpointSlice)[0].clone();
    assert_eq!(slice.raw["ports"], json!([{ "name": "", "port": 8080, "protocol": "TCP" }]));
    assert_eq!((slice.meta.label("team"), &slice.raw["addressType"]), (Some("a"), &json!("IPv4")));
    assert_eq!(sim.world.instances(NS, "user").len(), 2, "the World reads them");

    let pods = sim.names(KindId::Pod);
    sim.set_ready(&pods[0], false);
    sim.settle();
    assert_eq!(ready(&sim.endpoints("user")), 1);
    sim.set_ready(&pods[0], true);
    sim.delete(KindId::Pod, &pods[0], Propagation::Background);
    sim.settle();
    let draining: Vec<_> = sim.endpoints("user").into_iter().filter(|e| e.3).collect();
    assert_eq!(draining.len(), 1);
    assert!(!draining[0].1 && draining[0].2, "not ready, still serving what it has");
    assert_eq!(sim.all(KindId::EndpointSlice).len(), 1, "the slice keeps its name");
    sim.run();
    assert_eq!(ready(&sim.endpoints("user")), 2);

    // A selector that meets nobody leaves an empty slice; no selector none.
    sim.change(KindId::Service, "user", |s| s["spec"]["selector"] = json!({ "app": "none" }));
    sim.settle();
    assert_eq!((sim.endpoints("user").len(), sim.all(KindId::EndpointSlice).len()), (0, 1));
    sim.delete(KindId::Service, "user", Propagation::Background);
    sim.settle();
    assert_eq!(sim.all(KindId::EndpointSlice).len(), 0, "they go with the Service");
}

#[test]
fn a_label_change_moves_a_pod_between_services() {
    let mut sim = Sim::user_and_service(1);
    let other = json!({ "metadata": { "name": "other" }, "spec": {
        "selector": { "app": "other" }, "ports": [{ "port": 80 }] } });
    sim.create(KindId::Service, NS, other);
    sim.run();
    let pod = sim.names(KindId::Pod)[0].clone();
    sim.change(KindId::Pod, &pod, |p| p["metadata"]["labels"]["app"] = json!("other"));
    sim.settle();
    assert_eq!((sim.endpoints("user").len(), sim.endpoints("other").len()), (0, 1));
}

#[test]
fn what_consul_clients_register_is_mirrored_read_only() {
    let mut sim = Sim::new();
    let register = |sim: &mut Sim, ns: &str, id: &str, port: u16| {
        let record = json!({ "id": id, "service": "Web_1", "node": "laptop", "namespace": ns,
            "address": "127.0.0.1", "port": port, "meta": { "protocol": "http" } });
        let op = Op::put(format!("/c/i/{ns}/laptop/{id}"), record.to_string());
        sim.store.txn(Txn::of([op])).now_or_never().unwrap().unwrap();
        sim.fold();
        sim.settle();
    };
    register(&mut sim, NS, "web-a", 5000);
    register(&mut sim, NS, "web-b", 5001);
    let name = weft_base::name::service_slug("Web_1");
    let service = sim.object(KindId::Service, &name);
    assert!(is_mirror(&service.meta));
    assert_eq!(service.raw["spec"]["ports"][0]["port"], 5000);
    assert_eq!(service.raw["spec"]["ports"][0]["appProtocol"], "http");
    assert!(service.raw["spec"]["clusterIP"].as_str().unwrap().starts_with("127."));
    assert_eq!(sim.endpoints(&name).len(), 2);
    assert_eq!(sim.world.instances(NS, &name).len(), 2, "nothing counts twice");

    let sick = json!({ "status": "critical", "output": "" }).to_string();
    let check = json!({ "id": "c", "node": "laptop", "namespace": NS, "service_id": "web-b" });
    let ops = [
        Op::put(format!("/c/k/{NS}/laptop/c"), check.to_string()),
        Op::put_ephemeral(format!("/e/k/{NS}/laptop/c"), sick),
    ];
    sim.store.txn(Txn::of(ops)).now_or_never().unwrap().unwrap();
    sim.fold();
    sim.settle();
    let ready = sim.endpoints(&name).iter().filter(|e| e.1).count();
    assert_eq!(ready, 1, "a critical one is not ready");

    register(&mut sim, "elsewhere", "web-c", 5002);
    assert!(sim.world.get(KindId::Namespace, "", "elsewhere").is_some());
    for id in ["web-a", "web-b"] {
        let op = Op::delete(format!("/c/i/{NS}/laptop/{id}"));
        sim.store.txn(Txn::of([op])).now_or_never().unwrap().unwrap();
        sim.fold();
        sim.settle();
    }
    assert_eq!(sim.names(KindId::Service), [""; 0]);
    assert_eq!(sim.names(KindId::EndpointSlice), [""; 0]);
}

#[test]
fn an_event_costs_what_it_touches() {
    let mut few = Sim::user_and_service(2);
    let mut many = Sim::user_and_service(2);
    for i in 0..200 {
        let service = json!({ "metadata": { "name": format!("s{i}") },
            "spec": { "selector": { "app": format!("s{i}") }, "ports": [{ "port": 80 }] } });
        many.create(KindId::Service, NS, service);
    }
    many.run();
    let cost = |sim: &mut Sim| {
        let pod = sim.names(KindId::Pod)[0].clone();
        sim.steps = 0;
        sim.set_ready(&pod, false);
        sim.settle();
        sim.steps
    };
    assert_eq!(cost(&mut few), cost(&mut many));
}
