// SPDX-License-Identifier: Apache-2.0
//! What Consul's access lists let DNS show: services and nodes that may be read, nothing else.

use weft_identity::permission::{Kind, Names, Permission, Permissions, Verb};

use super::*;

fn reader(rows: &[(Kind, &str)]) -> Who {
    let row = |&(kind, name): &(Kind, &str)| Permission {
        subject: "p".into(),
        kind,
        namespace: None,
        names: Names::Exactly(name.into()),
        verb: Some(Verb::Read),
    };
    let table = Permissions::new(rows.iter().map(row).collect(), false);
    Who { table: Some(Arc::new(table)), ..Who::anybody() }
}

/// Everything that a name can lead to, and the questions that lead there.
fn rig() -> (Rig, Vec<(&'static str, Rtype, &'static str)>) {
    let mut rig = Rig::new();
    rig.register("w1", "Web", "10.0.0.1", &["v1"]);
    let proxy = json!({
        "id": "p1", "service": "web-proxy", "node": "n1", "namespace": "default",
        "address": "10.0.0.2", "port": 21000, "kind": "connect-proxy",
        "proxy": {"DestinationServiceName": "Web"},
        "tagged_addresses": {},
    });
    let mut registration: Registration = serde_json::from_value(proxy).unwrap();
    let place = |id: &str| RegistrationKey {
        namespace: "default".into(),
        node: "n1".into(),
        id: id.into(),
    };
    rig.put(&StoreKey::Registration(place("p1")).to_string(), &registration);
    registration.kind = "".into();
    registration.proxy = None;
    registration.id = "g1".into();
    registration.service = "gate".into();
    registration.address = "10.0.0.3".into();
    rig.put(&StoreKey::Registration(place("g1")).to_string(), &registration);
    let ingress = json!({"Kind": "ingress-gateway", "Name": "gate", "Listeners": [
        {"Port": 80, "Services": [{"Name": "web"}]}]});
    let key = weft_registry::consul::keys::record("config", "ingress-gateway/gate");
    record(&mut rig, &key, &ingress);
    prepared(&mut rig, "q1", json!({"Name": "ask", "Service": {"Service": "Web"}}));
    let asked = vec![
        ("web.service.consul", Rtype::A, "A 10.0.0.1"),
        ("v1.web.service.consul", Rtype::A, "A 10.0.0.1"),
        ("web.connect.consul", Rtype::A, "A 10.0.0.2"),
        ("web.ingress.consul", Rtype::A, "A 10.0.0.3"),
        ("ask.query.consul", Rtype::A, "A 10.0.0.1"),
        ("n1.node.consul", Rtype::A, "A 127.0.0.1"),
        ("consul.service.consul", Rtype::A, "A 127.0.0.1"),
        ("1.0.0.10.in-addr.arpa", Rtype::PTR, "PTR Web.service.dc1.consul."),
    ];
    (rig, asked)
}

#[test]
fn without_rights_no_name_of_consuls_leads_anywhere() {
    let (mut rig, asked) = rig();
    for (name, rtype, answer) in &asked {
        rig.check(name, *rtype, "NOERROR", &[answer]);
    }
    // What was answered and kept is nothing to who may not see it.
    rig.who = Who::without_rights();
    for (name, rtype, _) in &asked {
        let rcode = if *rtype == Rtype::PTR { "REFUSED" } else { "NXDOMAIN" };
        rig.check(name, *rtype, rcode, &[]);
    }
    // The cluster's own names are not Consul's.
    rig.service("user", json!({"clusterIP": "10.96.0.7"}), &[]);
    rig.check("user.shop.svc.cluster.local", Rtype::A, "NOERROR", &["A 10.96.0.7"]);
    rig.who = Who::anybody();
    rig.check("web.service.consul", Rtype::A, "NOERROR", &["A 10.0.0.1"]);
}

#[test]
fn a_name_is_answered_with_what_may_be_read() {
    let (mut rig, asked) = rig();
    let web = (Kind::Service, "Web");
    let node = (Kind::Node, "n1");
    for (rows, shown) in [
        (vec![web], vec!["PTR Web.service.dc1.consul."]),
        (vec![node], vec!["A 127.0.0.1 n1"]),
        (
            vec![web, node],
            vec!["A 10.0.0.1 web", "A 10.0.0.1 v1", "A 10.0.0.1 ask", "A 127.0.0.1 n1"],
        ),
        (vec![(Kind::Service, "consul"), node], vec!["A 127.0.0.1 consul", "A 127.0.0.1 n1"]),
        (vec![(Kind::Service, "gate"), node], vec!["A 10.0.0.3 web", "A 127.0.0.1 n1"]),
        // Who speaks for a service takes the right to both.
        (vec![(Kind::Service, "web-proxy"), node], vec!["A 127.0.0.1 n1"]),
    ] {
        rig.who = reader(&rows);
        let mut seen = Vec::new();
        for (name, rtype, answer) in &asked {
            for got in rig.ask(name, *rtype).answers {
                assert_eq!(&got, answer, "{name} with {rows:?}");
                let first = name.split('.').next().unwrap();
                let by = if *rtype == Rtype::PTR { String::new() } else { format!(" {first}") };
                seen.push(format!("{got}{by}"));
            }
        }
        for wanted in &shown {
            assert!(seen.iter().any(|s| s == wanted), "{wanted} with {rows:?}: {seen:?}");
        }
        if rows == [node] {
            assert_eq!(seen, ["A 127.0.0.1 n1"]);
        }
    }
    rig.who = reader(&[web, (Kind::Service, "web-proxy"), node]);
    rig.check("web.connect.consul", Rtype::A, "NOERROR", &["A 10.0.0.2"]);
}

#[test]
fn a_prepared_query_is_run_with_its_own_token() {
    let (mut rig, _) = rig();
    for (id, token) in [("own", "all"), ("lost", "nobody")] {
        let query = json!({"Name": id, "Service": {"Service": "Web"}, "Token": token});
        prepared(&mut rig, id, query);
    }
    rig.who = Who::without_rights();
    rig.check("own.query.consul", Rtype::A, "NOERROR", &["A 10.0.0.1"]);
    rig.check("lost.query.consul", Rtype::A, "NXDOMAIN", &[]);
    rig.who = Who::anybody();
    rig.check("lost.query.consul", Rtype::A, "NXDOMAIN", &[]);
}
