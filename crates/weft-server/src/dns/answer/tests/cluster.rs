// SPDX-License-Identifier: Apache-2.0
//! Names of the cluster, and the aliases that Services and mesh hosts are.

use super::*;

#[test]
fn kubernetes_names_answer_by_the_services_form() {
    let mut rig = Rig::new();
    let ports = json!([{"name": "http", "port": 80, "protocol": "TCP"}]);
    let spec = json!({"clusterIP": "127.96.0.1", "clusterIPs": ["127.96.0.1"], "ports": ports});
    rig.service("user", spec, &[("127.64.0.2", true)]);
    let spec = json!({"clusterIP": "None", "ports": ports});
    rig.service("db", spec, &[("127.64.0.3", true), ("127.64.0.4", false)]);
    let spec = json!({"type": "ExternalName", "externalName": "db.example.com"});
    rig.service("ext", spec, &[]);
    let at = |name: &str| format!("{name}.shop.svc.cluster.local");
    rig.check(&at("user"), Rtype::A, "NOERROR", &["A 127.96.0.1"]);
    rig.check(&at("user"), Rtype::AAAA, "NOERROR", &[]);
    rig.check(
        &at("_http._tcp.user"),
        Rtype::SRV,
        "NOERROR",
        &["SRV 1 1 80 user.shop.svc.cluster.local"],
    );
    rig.check(&at("_http._udp.user"), Rtype::SRV, "NXDOMAIN", &[]);
    rig.check(&at("db"), Rtype::A, "NOERROR", &["A 127.64.0.3"]);
    rig.check(
        &at("_http._tcp.db"),
        Rtype::SRV,
        "NOERROR",
        &["SRV 1 1 8080 127-64-0-3.db.shop.svc.cluster.local"],
    );
    rig.check(&at("127-64-0-3.db"), Rtype::A, "NOERROR", &["A 127.64.0.3"]);
    rig.check(&at("127-64-0-4.db"), Rtype::A, "NXDOMAIN", &[]);
    rig.check(&at("ext"), Rtype::A, "NOERROR", &["CNAME db.example.com."]);
    rig.check(&at("nope"), Rtype::A, "NXDOMAIN", &[]);
    rig.check("shop.svc.cluster.local", Rtype::A, "NOERROR", &[]);
    // The same truth by the other name.
    rig.check("user.service.shop.ns.consul", Rtype::A, "NOERROR", &["A 127.64.0.2"]);
    for name in ["cluster.local", "consul", "user.service.shop.ns.consul", "n1.node.consul"] {
        let got = rig.ask(name, Rtype::SOA);
        assert_eq!((got.answers.len(), got.authority.len()), (1, 0), "{name}: {got:?}");
    }
    rig.check("nope.service.consul", Rtype::SOA, "NXDOMAIN", &[]);
    rig.check("nope.service.consul", Rtype::NS, "NXDOMAIN", &[]);
    let got = rig.ask("n1.node.consul", Rtype::NS);
    assert_eq!(got.answers, ["NS ns.consul."]);
    assert_eq!(got.additional, ["ns.consul A 127.0.0.1"]);
    let bytes = rig.raw(&query("n1.node.consul", Rtype::SOA, None), Carrier::Udp).unwrap();
    let message = Message::from_octets(&bytes).unwrap();
    let owner = message.answer().unwrap().next().unwrap().unwrap().owner().to_string();
    assert_eq!(owner, "consul", "no name below is a zone of its own");
    rig.check("consul", Rtype::NS, "NOERROR", &["NS ns.consul."]);
    rig.check("ns.consul", Rtype::A, "NOERROR", &["A 127.0.0.1"]);
}

#[test]
fn short_names_are_completed_for_who_has_a_namespace() {
    let mut rig = Rig::new();
    let spec = json!({"clusterIP": "127.96.0.9", "ports": [{"name": "http", "port": 80}]});
    rig.service("web", spec, &[("127.64.0.1", true)]);
    let mut ask = |name: &str, namespace: Option<&str>| {
        let how = How { carrier: Carrier::Udp, recursive: true, proven: true, cookie: None };
        match rig.step(&query(name, Rtype::A, None), &how, namespace) {
            (Step::Answer, answer) => shown(&answer).answers.join(" "),
            (other, _) => format!("{other:?}"),
        }
    };
    for name in ["web", "WEB", "web.shop", "web.shop.svc", "web.shop.svc.cluster.local"] {
        let answer = ask(name, Some("shop"));
        assert!(answer.ends_with("127.96.0.9") && !answer.contains("CNAME"), "{name}: {answer}");
    }
    assert!(ask("web.shop", Some("other")).ends_with("127.96.0.9"));
    // Somebody else's names, some of which would mean something below the cluster's domain.
    for name in ["web.", "shop", "svc", "ns", "shop.svc", "web.com", "a.web.shop.com", "."] {
        let namespace = if name == "web." { "other" } else { "shop" };
        assert_eq!(ask(name, Some(namespace)), "Outside", "{name}");
    }
    // Who has none completes names himself.
    assert_eq!(ask("web", None), "Outside");
}

#[test]
fn pods_of_a_stateful_set_have_names_and_addresses_of_both_families() {
    let mut rig = Rig::new();
    rig.stateful(
        "db",
        &[
            ("db-0", "10.244.1.1", "fd00:7766::af4:101"),
            ("db-1", "10.244.1.2", "fd00:7766::af4:102"),
        ],
    );
    let at = |name: &str| format!("{name}.shop.svc.cluster.local");
    rig.check(&at("db-1.db"), Rtype::A, "NOERROR", &["A 10.244.1.2"]);
    rig.check(&at("db-1.db"), Rtype::AAAA, "NOERROR", &["AAAA fd00:7766::af4:102"]);
    rig.check(&at("db-2.db"), Rtype::A, "NXDOMAIN", &[]);
    rig.check(&at("db"), Rtype::A, "NOERROR", &["A 10.244.1.1", "A 10.244.1.2"]);
    let both = ["AAAA fd00:7766::af4:101", "AAAA fd00:7766::af4:102"];
    rig.check(&at("db"), Rtype::AAAA, "NOERROR", &both);
    rig.check(
        &at("_http._tcp.db"),
        Rtype::SRV,
        "NOERROR",
        &[
            "SRV 1 1 8080 db-0.db.shop.svc.cluster.local",
            "SRV 1 1 8080 db-1.db.shop.svc.cluster.local",
        ],
    );
    // And back.
    let name = "PTR db-0.db.shop.svc.cluster.local.";
    rig.check("1.1.244.10.in-addr.arpa", Rtype::PTR, "NOERROR", &[name]);
    let v6 = "1.0.1.0.4.f.a.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.6.7.7.0.0.d.f.ip6.arpa";
    rig.check(v6, Rtype::PTR, "NOERROR", &[name]);
    rig.check("9.9.244.10.in-addr.arpa", Rtype::PTR, "NXDOMAIN", &[]);
}

#[test]
fn hosts_of_service_entries_are_answered_where_they_are_known() {
    let mut rig = Rig::new();
    let mut put = |name: &str, spec: Value| {
        let object = json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec});
        rig.put(&format!("/o/networking.istio.io/serviceentries/shop/{name}"), &object);
    };
    put(
        "vip",
        json!({"hosts": ["Vip.example.com"], "addresses": ["192.0.2.10"],
        "resolution": "DNS"}),
    );
    put(
        "static",
        json!({"hosts": ["static.example.com"], "resolution": "STATIC",
        "endpoints": [{"address": "192.0.2.1"}, {"address": "2001:db8::1"}]}),
    );
    put("dns", json!({"hosts": ["dns.example.com"], "resolution": "DNS"}));
    rig.check("vip.example.com", Rtype::A, "NOERROR", &["A 192.0.2.10"]);
    rig.check("vip.example.com", Rtype::AAAA, "NOERROR", &[]);
    rig.check("static.example.com", Rtype::AAAA, "NOERROR", &["AAAA 2001:db8::1"]);
    rig.check("dns.example.com", Rtype::A, "REFUSED", &[]);
}

#[test]
fn an_alias_is_followed_while_it_stays_with_us() {
    let mut rig = Rig::new();
    let external = |to: &str| json!({"type": "ExternalName", "externalName": to});
    rig.service("user", json!({"clusterIP": "10.96.1.1"}), &[]);
    rig.service("old", external("user.shop.svc.cluster.local"), &[]);
    rig.service("older", external("old.shop.svc.cluster.local"), &[]);
    rig.service("round", external("round.shop.svc.cluster.local"), &[]);
    let at = |name: &str| format!("{name}.shop.svc.cluster.local");
    rig.check(
        &at("older"),
        Rtype::A,
        "NOERROR",
        &["A 10.96.1.1", "CNAME old.shop.svc.cluster.local.", "CNAME user.shop.svc.cluster.local."],
    );
    rig.check(&at("old"), Rtype::CNAME, "NOERROR", &["CNAME user.shop.svc.cluster.local."]);
    // An alias of itself ends all the same, and so do two of each other.
    let got = rig.ask(&at("round"), Rtype::A);
    assert_eq!((got.rcode.as_str(), got.answers.len()), ("NOERROR", 1));
    rig.service("to", external("Fro.shop.svc.cluster.local"), &[]);
    rig.service("fro", external("to.shop.svc.cluster.local"), &[]);
    let got = rig.ask(&at("to"), Rtype::A);
    assert_eq!((got.rcode.as_str(), got.answers.len()), ("NOERROR", 2), "{:?}", got.answers);
    for n in 0..20 {
        rig.service(&format!("far{n}"), external(&at(&format!("far{}", n + 1))), &[]);
    }
    assert_eq!(rig.ask(&at("far0"), Rtype::A).answers.len(), 1 + ALIASES_MAX);
}
