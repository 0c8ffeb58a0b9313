// SPDX-License-Identifier: Apache-2.0
//! What Consul's names of services and nodes lead to.

use super::*;

#[test]
fn consuls_names_answer_with_healthy_instances_only() {
    let mut rig = Rig::new();
    rig.register("w1", "web", "10.0.0.1", &["v1"]);
    rig.register("w2", "web", "10.0.0.2", &["v2"]);
    rig.register("w3", "web", "fd00::3", &["v2"]);
    rig.check("web.service.consul", Rtype::A, "NOERROR", &["A 10.0.0.1", "A 10.0.0.2"]);
    rig.check("WEB.Service.Consul", Rtype::AAAA, "NOERROR", &["AAAA fd00::3"]);
    rig.check("v2.web.service.dc1.consul", Rtype::A, "NOERROR", &["A 10.0.0.2"]);
    rig.check("_web._v1.service.consul", Rtype::A, "NOERROR", &["A 10.0.0.1"]);
    rig.check("web.service.consul", Rtype::TXT, "NOERROR", &[]);
    rig.tell("w1", Status::Critical);
    rig.tell("w2", Status::Warning);
    rig.check("web.service.consul", Rtype::A, "NOERROR", &["A 10.0.0.2"]);
    rig.check("v1.web.service.consul", Rtype::A, "NXDOMAIN", &[]);
    rig.tell("w2", Status::Critical);
    rig.check("web.service.consul", Rtype::A, "NOERROR", &[]);
    rig.tell("w3", Status::Critical);
    rig.check("web.service.consul", Rtype::A, "NXDOMAIN", &[]);
    rig.check("nope.service.consul", Rtype::A, "NXDOMAIN", &[]);
    rig.check("service.consul", Rtype::A, "NOERROR", &[]);
    rig.check("n1.node.consul", Rtype::A, "NOERROR", &["A 127.0.0.1"]);
    rig.check("n2.node.consul", Rtype::A, "NXDOMAIN", &[]);
    rig.check("consul.service.consul", Rtype::A, "NOERROR", &["A 127.0.0.1"]);
    rig.check("example.com", Rtype::A, "REFUSED", &[]);
    rig.check("1.0.0.127.in-addr.arpa", Rtype::PTR, "REFUSED", &[]);
}

#[test]
fn of_protocols_only_tcp_stands_for_every_instance_and_ports_need_no_word_for_services() {
    let mut rig = Rig::new();
    rig.register("d1", "dns", "10.0.0.1", &["tcp"]);
    rig.register("d2", "dns", "10.0.0.2", &["udp"]);
    rig.register("web", "web", "10.0.0.3", &[]);
    let both = &["A 10.0.0.1", "A 10.0.0.2"];
    rig.check("_dns._tcp.service.consul", Rtype::A, "NOERROR", both);
    rig.check("_dns._udp.service.consul", Rtype::A, "NOERROR", &["A 10.0.0.2"]);
    rig.check("_web._udp.service.consul", Rtype::A, "NXDOMAIN", &[]);
    for end in ["consul", "dc1.consul", "dc1.dc.consul", "default.ns.consul"] {
        for (name, rtype, found) in [
            ("_dns._tcp", Rtype::SRV, 2),
            ("_dns._udp", Rtype::SRV, 1),
            ("_web._udp", Rtype::SRV, 0),
            ("_dns._tcp", Rtype::A, 0),
            ("dns.tcp", Rtype::SRV, 0),
        ] {
            let got = rig.ask(&format!("{name}.{end}"), rtype);
            let code = if found == 0 { "NXDOMAIN" } else { "NOERROR" };
            assert_eq!((got.rcode.as_str(), got.answers.len()), (code, found), "{name}.{end}");
        }
    }
}

#[test]
fn instances_whose_checks_warn_are_there_unless_only_those_that_pass_are_asked_for() {
    for (only_passing, shown) in
        [(false, &["A 10.0.0.1", "A 10.0.0.2"][..]), (true, &["A 10.0.0.1"])]
    {
        let mut rig = Rig { only_passing, ..Rig::new() };
        rig.register("w1", "web", "10.0.0.1", &["v1"]);
        rig.register("w2", "web", "10.0.0.2", &["v2"]);
        rig.tell("w2", Status::Warning);
        rig.check("web.service.consul", Rtype::A, "NOERROR", shown);
        let code = if only_passing { "NXDOMAIN" } else { "NOERROR" };
        let second = shown.get(1).copied();
        rig.check("v2.web.service.consul", Rtype::A, code, second.as_slice());
    }
}

#[test]
fn a_services_original_name_is_found_whatever_its_case() {
    let mut rig = Rig::new();
    rig.register("w1", "Web_API", "10.0.0.1", &[]);
    rig.check("web_api.service.consul", Rtype::A, "NOERROR", &["A 10.0.0.1"]);
    rig.register("s1", "Solo", "10.0.0.5", &[]);
    rig.check("solo.service.consul", Rtype::A, "NOERROR", &["A 10.0.0.5"]);
}

#[test]
fn instances_registered_in_several_spellings_are_one_service() {
    let mut rig = Rig::new();
    for (id, name, address) in
        [("a", "MyApp", "10.0.0.1"), ("b", "myapp", "10.0.0.2"), ("c", "MYAPP", "10.0.0.3")]
    {
        rig.register(id, name, address, &[]);
    }
    let all = ["A 10.0.0.1", "A 10.0.0.2", "A 10.0.0.3"];
    rig.check("MyApp.service.consul", Rtype::A, "NOERROR", &all);
}

#[test]
fn srv_targets_can_be_resolved() {
    let mut rig = Rig::new();
    rig.register("w1", "web", "10.0.0.1", &[]);
    rig.register("w2", "web", "", &[]);
    let got = rig.ask("_web._tcp.service.consul", Rtype::SRV);
    let mut answers = got.answers.clone();
    answers.sort();
    assert_eq!(
        answers,
        ["SRV 1 1 8080 0a000001.addr.dc1.consul", "SRV 1 1 8080 n1.node.dc1.consul"]
    );
    let mut additional = got.additional.clone();
    additional.sort();
    assert_eq!(
        additional,
        ["0a000001.addr.dc1.consul A 10.0.0.1", "n1.node.dc1.consul A 127.0.0.1"]
    );
    rig.check("0a000001.addr.dc1.consul", Rtype::A, "NOERROR", &["A 10.0.0.1"]);
    rig.check("n1.node.dc1.consul", Rtype::A, "NOERROR", &["A 127.0.0.1"]);
}

#[test]
fn a_family_is_answered_with_the_address_that_is_tagged_for_it() {
    let mut rig = Rig::new();
    let node = |name: &str, address: &str, tag: &str, other: &str| {
        let tagged = json!({tag: other});
        json!({"node": name, "address": address, "tagged_addresses": tagged})
    };
    rig.put("/c/n/ds", &node("ds", "10.5.5.1", "lan_ipv6", "2001:db8::51"));
    rig.put("/c/n/six", &node("six", "2001:db8::61", "lan_ipv4", "10.6.6.1"));
    let mut put = |node: &str, id: &str, service: &str, address: &str, tagged: Value| {
        let key = RegistrationKey { namespace: "default".into(), node: node.into(), id: id.into() };
        let instance = json!({"id": id, "service": service, "node": node, "namespace": "default",
            "address": address, "port": 443, "tagged_addresses": tagged});
        rig.put(&StoreKey::Registration(key).to_string(), &instance);
    };
    let own = json!({"lan_ipv6": {"address": "2001:db8::52", "port": 443}});
    put("ds", "d1", "dual", "10.5.5.2", own);
    put("ds", "d2", "atnode", "", json!({}));
    put("ds", "d3", "elsewhere", "10.5.5.3", json!({}));
    put("six", "s1", "sixth", "", json!({}));
    let broken = json!({"lan_ipv4": {"address": "2001:db8::1", "port": 1}});
    put("ds", "d4", "broken", "10.5.5.4", broken);
    prepared(&mut rig, "q1", json!({"Name": "near", "Service": {"Service": "dual"}}));
    for (name, rtype, expected) in [
        ("ds.node.consul", Rtype::AAAA, "AAAA 2001:db8::51"),
        ("ds.node.consul", Rtype::A, "A 10.5.5.1"),
        ("six.node.consul", Rtype::A, "A 10.6.6.1"),
        ("dual.service.consul", Rtype::AAAA, "AAAA 2001:db8::52"),
        ("dual.service.consul", Rtype::A, "A 10.5.5.2"),
        ("atnode.service.consul", Rtype::AAAA, "AAAA 2001:db8::51"),
        ("sixth.service.consul", Rtype::A, "A 10.6.6.1"),
        ("sixth.service.consul", Rtype::AAAA, "AAAA 2001:db8::61"),
        ("near.query.consul", Rtype::AAAA, "AAAA 2001:db8::52"),
        ("broken.service.consul", Rtype::A, "A 10.5.5.4"),
    ] {
        rig.check(name, rtype, "NOERROR", &[expected]);
    }
    // An instance that has an address of its own is not where its node is.
    rig.check("elsewhere.service.consul", Rtype::AAAA, "NOERROR", &[]);
    let srv = rig.ask("dual.service.consul", Rtype::SRV);
    assert_eq!(srv.answers, ["SRV 1 1 443 0a050502.addr.dc1.consul"]);
}

#[test]
fn what_speaks_for_a_service_has_names() {
    let mut rig = Rig::new();
    let mut put = |id: &str, service: &str, address: &str, more: Value| {
        let mut registration = serde_json::to_value(Registration {
            id: id.into(),
            service: service.into(),
            node: "n1".into(),
            namespace: "default".into(),
            address: address.into(),
            port: 21000,
            ..Registration::default()
        })
        .unwrap();
        for (key, value) in more.as_object().unwrap() {
            registration[key] = value.clone();
        }
        let place =
            RegistrationKey { namespace: "default".into(), node: "n1".into(), id: id.into() };
        rig.put(&StoreKey::Registration(place).to_string(), &registration);
    };
    put(
        "w1",
        "web",
        "10.0.0.1",
        json!({"tagged_addresses":
        {"consul-virtual": {"address": "240.0.0.7", "port": 80}}}),
    );
    let proxy = json!({"kind": "connect-proxy", "proxy": {"DestinationServiceName": "web"}});
    put("w1-sidecar-proxy", "web-sidecar-proxy", "10.0.0.21", proxy);
    put("n", "native", "10.0.0.3", json!({"connect": {"Native": true}}));
    put("g", "front", "10.0.0.4", json!({"kind": "ingress-gateway"}));
    let spec = json!({"clusterIP": "127.96.0.5", "ports": [{"name": "http", "port": 80}]});
    rig.service("shop", spec, &[("127.64.0.2", true)]);
    rig.check("web.connect.consul", Rtype::A, "NOERROR", &["A 10.0.0.21"]);
    let target = ["SRV 1 1 21000 0a000015.addr.dc1.consul"];
    rig.check("web.connect.dc1.consul", Rtype::SRV, "NOERROR", &target);
    rig.check("native.connect.consul", Rtype::A, "NOERROR", &["A 10.0.0.3"]);
    rig.check("front.connect.consul", Rtype::A, "NXDOMAIN", &[]);
    rig.check("web.virtual.consul", Rtype::A, "NOERROR", &["A 240.0.0.7"]);
    rig.check("shop.virtual.shop.ns.consul", Rtype::A, "NOERROR", &["A 127.96.0.5"]);
    rig.check("native.virtual.consul", Rtype::A, "NXDOMAIN", &[]);
    rig.check("web.ingress.consul", Rtype::A, "NXDOMAIN", &[]);
    let key = weft_registry::consul::keys::record("config", "ingress-gateway/front");
    let services = json!([{"Name": "web"}]);
    let entry = json!({"Kind": "ingress-gateway", "Name": "front",
        "Listeners": [{"Port": 8080, "Protocol": "http", "Services": services}]});
    record(&mut rig, &key, &entry);
    rig.check("web.ingress.consul", Rtype::A, "NOERROR", &["A 10.0.0.4"]);
    rig.check("native.ingress.consul", Rtype::A, "NXDOMAIN", &[]);
    // All are those that there are, and that a gateway can reach.
    let all = json!([{"Name": "*"}]);
    let entry = json!({"Kind": "ingress-gateway", "Name": "front",
        "Listeners": [{"Port": 8080, "Protocol": "http", "Services": all}]});
    record(&mut rig, &key, &entry);
    for (name, found) in [("web", 1), ("native", 1), ("shop", 0), ("front", 0), ("nobody", 0)] {
        let got = rig.ask(&format!("{name}.ingress.consul"), Rtype::A);
        assert_eq!(got.answers.len(), found, "{name}");
    }
}

#[test]
fn nodes_have_texts_and_addresses_have_names() {
    let mut rig = Rig::new();
    let node = NodeRecord {
        node: "Rack-7".into(),
        address: "10.9.0.7".into(),
        meta: [("zone", "b"), ("rfc1035-note", "as it is")]
            .map(|(key, value)| (key.into(), value.into()))
            .into_iter()
            .collect(),
        ..NodeRecord::default()
    };
    rig.put(&StoreKey::Node("Rack-7".into()).to_string(), &node);
    rig.register("w1", "web", "10.9.1.1", &[]);
    rig.check("rack-7.node.consul", Rtype::A, "NOERROR", &["A 10.9.0.7"]);
    let txt = ["TXT \"as it is\"", "TXT \"zone=b\""];
    rig.check("rack-7.node.consul", Rtype::TXT, "NOERROR", &txt);
    rig.check("7.0.9.10.in-addr.arpa", Rtype::PTR, "NOERROR", &["PTR Rack-7.node.dc1.consul."]);
    rig.check("1.1.9.10.in-addr.arpa", Rtype::PTR, "NOERROR", &["PTR web.service.dc1.consul."]);
    rig.check("1.1.9.10.in-addr.arpa", Rtype::A, "NOERROR", &[]);
    rig.check("2.1.9.10.in-addr.arpa", Rtype::PTR, "REFUSED", &[]);
    rig.check("dns-version.cluster.local", Rtype::TXT, "NOERROR", &["TXT \"1.1.0\""]);
}

#[test]
fn a_service_may_say_how_long_its_answers_are_kept() {
    let mut rig = Rig::new();
    rig.register("w1", "web", "10.0.0.1", &[]);
    let of = |rig: &mut Rig, name: &str| {
        ttls(&rig.raw(&query(name, Rtype::A, None), Carrier::Udp).unwrap())
    };
    assert_eq!(of(&mut rig, "web.service.consul"), [0]);
    for (id, ttl) in [("w1", "30s"), ("w2", "10s"), ("w3", "soon")] {
        let registration = json!({"id": id, "service": "web", "node": "n1",
            "namespace": "default", "address": format!("10.0.0.{id}").replace('w', ""),
            "port": 80, "meta": {"dns-ttl": ttl}});
        let place =
            RegistrationKey { namespace: "default".into(), node: "n1".into(), id: id.into() };
        rig.put(&StoreKey::Registration(place).to_string(), &registration);
    }
    assert_eq!(of(&mut rig, "web.service.consul"), [10; 3], "the shortest of them");
    let meta = json!({"name": "api", "namespace": "shop",
        "annotations": {"weft.dev/dns-ttl": "1m"}});
    let spec = json!({"clusterIP": "127.96.0.5", "ports": [{"name": "http", "port": 80}]});
    rig.put("/o/core/services/shop/api", &json!({"metadata": meta, "spec": spec}));
    assert_eq!(of(&mut rig, "api.shop.svc.cluster.local"), [60]);
}

#[test]
fn what_was_said_is_not_said_again_when_it_is_no_longer_so() {
    let mut rig = Rig::new();
    rig.register("w1", "web", "10.0.0.1", &[]);
    rig.register("w2", "web", "10.0.0.2", &[]);
    for _ in 0..3 {
        rig.check("web.service.consul", Rtype::A, "NOERROR", &["A 10.0.0.1", "A 10.0.0.2"]);
    }
    rig.tell("w1", Status::Critical);
    rig.check("web.service.consul", Rtype::A, "NOERROR", &["A 10.0.0.2"]);
    rig.tell("w1", Status::Passing);
    rig.check("web.service.consul", Rtype::A, "NOERROR", &["A 10.0.0.1", "A 10.0.0.2"]);
}
