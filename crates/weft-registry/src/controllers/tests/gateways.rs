// SPDX-License-Identifier: Apache-2.0
//! What a Gateway causes: a proxy, an address, a Service of its own.

use super::*;

#[test]
fn a_gateway_has_one_proxy_pod_and_an_address() {
    let mut sim = Sim::new();
    let gateway = json!({ "metadata": { "name": "shop" }, "spec": { "gatewayClassName": "weft",
        "listeners": [{ "name": "http", "port": 8000 }, { "name": "b", "port": 8000 }] } });
    sim.create(KindId::Gateway, NS, gateway.clone());
    let mut foreign = gateway;
    foreign["metadata"]["name"] = json!("foreign");
    foreign["spec"]["gatewayClassName"] = json!("nginx");
    sim.create(KindId::Gateway, NS, foreign);
    sim.run();
    let pods = sim.all(KindId::Pod);
    assert_eq!(pods.len(), 1);
    let pod = &pods[0];
    assert_eq!(pod.meta.annotation("weft.dev/proxy"), Some("gateway"));
    assert_eq!(pod.meta.annotation(gateway::GATEWAY_ANNOTATION), Some("shop"));
    assert_eq!(pod.raw["spec"]["serviceAccountName"], "shop-weft");
    assert_eq!(pod.raw["spec"]["containers"][0]["ports"].as_array().unwrap().len(), 1);
    assert!(!annotation(&sim.object(KindId::Gateway, "shop").raw, ADDRESS_ANNOTATION).is_empty());
    // Its class comes later.
    let class = json!({ "metadata": { "name": "nginx" },
        "spec": { "controllerName": "weft.dev/gateway" } });
    sim.create(KindId::GatewayClass, "", class);
    sim.run();
    assert_eq!(sim.all(KindId::Pod).len(), 2);
    assert!(
        !annotation(&sim.object(KindId::Gateway, "foreign").raw, ADDRESS_ANNOTATION).is_empty()
    );
    // The pod dies and comes back; the Gateway goes and takes it along.
    let name = pod.key.name.clone();
    sim.delete(KindId::Pod, &name, Propagation::Background);
    sim.settle();
    assert_eq!(sim.all(KindId::Pod).len(), 2, "the next waits until the port is free");
    sim.run();
    assert!(!sim.names(KindId::Pod).contains(&name.to_string()));
    assert_eq!(sim.ready(), 2);
    sim.delete(KindId::Gateway, "shop", Propagation::Background);
    sim.run();
    assert_eq!(sim.all(KindId::Pod).len(), 1);
}

#[test]
fn what_a_gateway_causes_is_its_own_and_goes_with_it() {
    let mut sim = Sim::new();
    let gateway = json!({ "metadata": { "name": "shop" }, "spec": {
        "gatewayClassName": "weft",
        "addresses": [{ "value": "127.0.0.1" }],
        "infrastructure": { "labels": { "team": "a" }, "annotations": { "note": "b" } },
        "listeners": [
            { "name": "http", "port": 8000, "protocol": "HTTP" },
            { "name": "more", "port": 8000, "protocol": "HTTP", "hostname": "x.example" },
        ],
    } });
    sim.create(KindId::Gateway, NS, gateway);
    sim.run();
    let service = sim.object(KindId::Service, "shop-weft");
    let spec = &service.raw["spec"];
    assert_eq!(
        spec["ports"],
        json!([{ "name": "http", "port": 8000, "targetPort": 8000,
        "protocol": "TCP", "appProtocol": "http" }])
    );
    assert!(spec["clusterIP"].as_str().unwrap().starts_with("127."), "{spec}");
    assert_eq!(service.raw["status"]["loadBalancer"]["ingress"][0]["ip"], "127.0.0.1");
    for kind in [KindId::Service, KindId::ServiceAccount, KindId::Pod] {
        let all = sim.all(kind);
        let caused = all.iter().find(|o| o.meta.label(gateway::NAME_LABEL) == Some("shop"));
        let caused = caused.unwrap_or_else(|| panic!("{kind}"));
        assert_eq!(caused.meta.label("team"), Some("a"), "{kind}");
        assert_eq!(caused.meta.annotation("note"), Some("b"), "{kind}");
        assert_eq!(&*caused.meta.controller().unwrap().kind, "Gateway");
    }
    // The proxy is the Service's instance.
    let slices = sim.all(KindId::EndpointSlice);
    let pod = sim.all(KindId::Pod)[0].key.name.to_string();
    assert_eq!(slices[0].raw["endpoints"][0]["targetRef"]["name"], pod.as_str());
    // A new listener is a new port; what is deleted comes back.
    sim.change(KindId::Gateway, "shop", |g| {
        let tcp = json!({ "name": "db", "port": 5432, "protocol": "TCP" });
        g["spec"]["listeners"].as_array_mut().unwrap().push(tcp);
    });
    sim.run();
    let ports = sim.object(KindId::Service, "shop-weft").raw["spec"]["ports"].clone();
    assert_eq!((ports.as_array().unwrap().len(), &ports[1]["name"]), (2, &json!("db")));
    // A ListenerSet adds ports while the Gateway takes it.
    let parent = json!({ "name": "shop" });
    let set = json!({ "metadata": { "name": "s" }, "spec": { "parentRef": parent, "listeners": [
        { "name": "db", "port": 6000, "protocol": "TCP" },
        { "name": "again", "port": 8000, "protocol": "HTTP", "hostname": "y.example" },
    ] } });
    sim.create(KindId::ListenerSet, NS, set);
    let ports = |sim: &mut Sim| {
        sim.run();
        let service = sim.object(KindId::Service, "shop-weft");
        let all = service.raw["spec"]["ports"].as_array().unwrap().iter();
        all.map(|p| format!("{} {}", p["name"], p["port"])).collect::<Vec<_>>()
    };
    let own = ["\"http\" 8000", "\"db\" 5432"];
    assert_eq!(ports(&mut sim), own);
    sim.change(KindId::Gateway, "shop", |g| {
        g["spec"]["allowedListeners"] = json!({ "namespaces": { "from": "Same" } });
    });
    assert_eq!(ports(&mut sim), [&own[..], &["\"port-6000\" 6000"]].concat());
    sim.delete(KindId::ListenerSet, "s", Propagation::Background);
    assert_eq!(ports(&mut sim), own);
    for kind in [KindId::Service, KindId::ServiceAccount] {
        sim.delete(kind, "shop-weft", Propagation::Background);
        sim.run();
        assert!(sim.world.get(kind, NS, "shop-weft").is_some(), "{kind}");
    }
    sim.delete(KindId::Gateway, "shop", Propagation::Background);
    sim.run();
    assert_eq!(sim.names(KindId::ServiceAccount), ["default"]);
    assert!(sim.all(KindId::Service).is_empty() && sim.all(KindId::Pod).is_empty());
    assert_eq!(sim.world.settings().filter(|(n, _)| n.starts_with("addresses/")).count(), 0);
}

#[test]
fn a_gateways_service_has_ports_of_bytes_and_of_datagrams() {
    let mut sim = Sim::new();
    let long = "x".repeat(64);
    let gateway = json!({ "metadata": { "name": "shop" }, "spec": { "gatewayClassName": "weft",
        "listeners": [
            { "name": "dns", "port": 53, "protocol": "UDP" },
            { "name": "dns-tcp", "port": 53, "protocol": "TCP" },
            { "name": "a.b", "port": 80, "protocol": "HTTP" },
            { "name": long, "port": 80, "protocol": "UDP" },
            { "name": "port-81-udp", "port": 90, "protocol": "TCP" },
            { "name": "a.c", "port": 81, "protocol": "UDP" },
            { "name": "again", "port": 81, "protocol": "UDP" },
        ] } });
    sim.create(KindId::Gateway, NS, gateway);
    sim.run();
    let ports = sim.object(KindId::Service, "shop-weft").raw["spec"]["ports"].clone();
    let each = ports.as_array().unwrap().iter();
    let text = |v: &Value| v.as_str().unwrap_or("?").to_owned();
    let told: Vec<String> = each
        .map(|p| format!("{} {} {}", text(&p["name"]), p["port"], text(&p["protocol"])))
        .collect();
    assert_eq!(
        told,
        [
            "dns 53 UDP",
            "dns-tcp 53 TCP",
            "port-80 80 TCP",
            "port-80-udp 80 UDP",
            "port-81-udp 90 TCP",
            "port-81-udp-2 81 UDP",
        ]
    );
    let pod = &sim.all(KindId::Pod)[0].raw["spec"]["containers"][0]["ports"];
    assert_eq!(pod.as_array().unwrap().len(), 6, "{pod}");
}

#[test]
fn an_address_without_a_value_is_chosen_here() {
    let mut sim = Sim::new();
    let gateway = json!({ "metadata": { "name": "shop" }, "spec": { "gatewayClassName": "weft",
        "addresses": [{ "type": "IPAddress" }, { "value": "127.0.0.1" }],
        "listeners": [{ "name": "http", "port": 8000, "protocol": "HTTP" }] } });
    sim.create(KindId::Gateway, NS, gateway);
    sim.run();
    let given = annotation(&sim.object(KindId::Gateway, "shop").raw, ADDRESS_ANNOTATION).to_owned();
    assert!(given.starts_with("127."), "{given}");
    let status = &sim.object(KindId::Service, "shop-weft").raw["status"]["loadBalancer"]["ingress"];
    let ips: Vec<_> = status.as_array().unwrap().iter().map(|i| i["ip"].clone()).collect();
    assert_eq!(ips, [json!("127.0.0.1"), json!(given)]);
}

#[test]
fn a_users_own_service_of_that_name_stays() {
    let mut sim = Sim::new();
    let own = json!({ "metadata": { "name": "shop-weft" }, "spec": { "ports": [{ "port": 1 }] } });
    sim.create(KindId::Service, NS, own);
    let before = sim.object(KindId::Service, "shop-weft").raw.clone();
    let gateway = json!({ "metadata": { "name": "shop" }, "spec": { "gatewayClassName": "weft",
        "listeners": [{ "name": "http", "port": 8000, "protocol": "HTTP" }] } });
    sim.create(KindId::Gateway, NS, gateway);
    sim.run();
    assert_eq!(sim.ready(), 1, "the Gateway works without");
    assert_eq!(sim.object(KindId::Service, "shop-weft").raw, before);
}
