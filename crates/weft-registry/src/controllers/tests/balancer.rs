// SPDX-License-Identifier: Apache-2.0
//! Services of type LoadBalancer that users made.

use super::*;

fn ingress(sim: &Sim) -> Value {
    sim.object(KindId::Service, "user").raw["status"]["loadBalancer"]["ingress"].clone()
}

fn of_type(sim: &mut Sim, kind: &str) {
    sim.change(KindId::Service, "user", |s| s["spec"]["type"] = json!(kind));
    sim.settle();
}

#[test]
fn a_balancer_has_an_address_a_proxy_and_an_account_that_go_with_its_type() {
    let mut sim = Sim::user_and_service(1);
    of_type(&mut sim, "LoadBalancer");
    let service = sim.object(KindId::Service, "user");
    let address = annotation(&service.raw, ADDRESS_ANNOTATION).to_owned();
    assert!(address.starts_with("127.1"), "{address}");
    assert!(sim.world.setting(&format!("addresses/{address}")).is_some());
    assert_eq!(ingress(&sim), Value::Null, "nobody listens there yet");
    sim.run();
    assert_eq!(ingress(&sim)[0]["ip"], *address);
    assert_eq!(ingress(&sim)[0]["ports"], json!([{ "port": 80, "protocol": "TCP" }]));
    let all = sim.all(KindId::Pod);
    let proxy = all.iter().find(|p| p.meta.annotation("weft.dev/proxy") == Some("gateway"));
    let proxy = proxy.unwrap();
    assert_eq!(proxy.raw["spec"]["serviceAccountName"], "user-balancer");
    assert_eq!(sim.endpoints("user").len(), 1, "the proxy is no instance of the Service");
    // A proxy that ends is replaced; the address stays.
    sim.delete(KindId::Pod, &proxy.key.name.clone(), Propagation::Background);
    sim.settle();
    assert_eq!(ingress(&sim)[0]["ip"], *address);
    sim.run();
    assert_eq!(sim.ready(), 2);
    of_type(&mut sim, "ClusterIP");
    sim.run();
    assert_eq!((sim.ready(), ingress(&sim)), (1, Value::Null));
    assert!(sim.world.setting(&format!("addresses/{address}")).is_none());
    assert!(!sim.names(KindId::ServiceAccount).contains(&"user-balancer".to_owned()));
    of_type(&mut sim, "LoadBalancer");
    sim.run();
    assert_eq!(ingress(&sim)[0]["ip"], *address, "the same name has the same place");
    sim.delete(KindId::Service, "user", Propagation::Background);
    sim.run();
    assert_eq!(sim.ready(), 1);
    assert!(sim.world.setting(&format!("addresses/{address}")).is_none());
}

#[test]
fn a_users_address_is_taken_and_another_class_is_left_alone() {
    let mut sim = Sim::user_and_service(1);
    sim.change(KindId::Service, "user", |s| {
        s["spec"]["type"] = json!("LoadBalancer");
        s["spec"]["loadBalancerIP"] = json!("127.0.0.1");
    });
    sim.run();
    assert_eq!(ingress(&sim)[0]["ip"], "127.0.0.1");
    let mut sim = Sim::user_and_service(1);
    sim.change(KindId::Service, "user", |s| {
        s["spec"]["type"] = json!("LoadBalancer");
        s["spec"]["loadBalancerClass"] = json!("example.com/other");
    });
    sim.run();
    assert_eq!((sim.ready(), ingress(&sim)), (1, Value::Null));
    // A Gateway's Service is the Gateway's.
    let gateway = json!({ "metadata": { "name": "shop" }, "spec": { "gatewayClassName": "weft",
        "listeners": [{ "name": "http", "port": 8000, "protocol": "HTTP" }] } });
    sim.create(KindId::Gateway, NS, gateway);
    sim.run();
    let service = sim.object(KindId::Service, "shop-weft");
    assert_eq!(annotation(&service.raw, ADDRESS_ANNOTATION), "");
    assert_eq!(sim.ready(), 2);
}
