// SPDX-License-Identifier: Apache-2.0
//! What DestinationRules for patterns can cost others: a bounded number of backends of each host.

use serde_json::{Value, json};
use weft_base::limits::RULE_CLIENTS_MAX;
use weft_control::compile::{Env, Unit, compile};
use weft_control::compiler::{Compiler, Update};
use weft_control::status::StatusBody;
use weft_kinds::world::{KindId, ObjectKey, World};
use weft_model::Resource;

use crate::common::put;

const SERVICES: usize = 3;

/// A rule made at a minute.
fn rule(namespace: &str, name: &str, minute: usize, spec: &Value) -> Value {
    let created = format!("2026-01-01T{:02}:{:02}:00Z", minute / 60, minute % 60);
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "spec": spec,
        "metadata": {"namespace": namespace, "name": name, "creationTimestamp": created},
    })
}

/// Services of namespace `shop`, and rules.
fn world_of(rules: &[Value]) -> World {
    let mut world = World::new();
    for i in 0..SERVICES {
        let metadata = json!({"namespace": "shop", "name": format!("s{i}")});
        put(
            &mut world,
            &json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata,
            "spec": {"ports": [{"name": "http", "port": 80}]}}),
        );
    }
    for rule in rules {
        put(&mut world, rule);
    }
    world
}

fn compiled(rules: &[Value]) -> (Compiler, Update) {
    Compiler::new(Env::default(), &world_of(rules))
}

/// The clients that a service has backends for, beside everybody.
fn clients(compiler: &Compiler, service: &str) -> Vec<String> {
    let root = format!("host:{service}.shop.svc.cluster.local");
    let backends = compiler.mesh().resources().iter().filter(|(name, resource)| {
        matches!(***resource, Resource::Backend(_)) && name.root.to_string() == root
    });
    let marks = backends.filter_map(|(name, _)| Some(name.child.split_once("~for~")?.1.to_owned()));
    marks.collect()
}

/// What the status of a rule warns of.
fn warnings(update: &Update, namespace: &str) -> Vec<String> {
    let own = update.statuses.iter().filter(|s| &*s.object.namespace == namespace);
    let conditions = own.flat_map(|status| match &status.body {
        StatusBody::Conditions(conditions) => conditions.clone(),
        _ => Vec::new(),
    });
    conditions.filter(|c| c.kind != "Accepted").map(|c| c.message.to_string()).collect()
}

fn random(host: &str) -> Value {
    json!({"host": host, "trafficPolicy": {"loadBalancer": {"simple": "RANDOM"}}})
}

#[test]
fn patterns_of_many_namespaces_make_a_bounded_number_of_backends() {
    let many = RULE_CLIENTS_MAX + 6;
    let named = |i: usize| format!("n{i:03}");
    // The last in the alphabet is the oldest.
    let mut rules: Vec<Value> =
        (0..many).map(|i| rule(&named(i), "all", many - i, &random("*.local"))).collect();
    let (compiler, update) = compiled(&rules);
    for i in 0..SERVICES {
        let kept: Vec<String> = (6..many).map(named).collect();
        assert_eq!(clients(&compiler, &format!("s{i}")), kept);
    }
    for i in 0..many {
        let told = warnings(&update, &named(i)).join("\n");
        assert_eq!(told.contains("not used for hosts of other namespaces"), i < 6, "{i}: {told}");
    }
    // Whoever names a host in full is not one of them, and a wider pattern goes first.
    rules.push(rule("n000", "one", 500, &random("s1.shop.svc.cluster.local")));
    rules.push(rule("late", "all", 600, &random("*")));
    let (compiler, update) = compiled(&rules);
    let of = |service: &str| clients(&compiler, service);
    assert!(of("s1").contains(&"n000".to_owned()));
    assert!(!of("s0").contains(&"n000".to_owned()));
    assert_eq!((of("s0").len(), of("s1").len()), (RULE_CLIENTS_MAX, RULE_CLIENTS_MAX + 1));
    assert!(of("s0").contains(&"late".to_owned()) && !of("s0").contains(&"n006".to_owned()));
    assert!(warnings(&update, "late").is_empty());
}

#[test]
fn one_namespaces_selectors_leave_room_for_the_others() {
    let selecting = |i: usize| {
        let mut spec = random("*");
        spec["workloadSelector"] = json!({"matchLabels": {"app": format!("a{i:03}")}});
        rule("evil", &format!("r{i:03}"), i, &spec)
    };
    let mut rules: Vec<Value> = (0..2 * RULE_CLIENTS_MAX).map(selecting).collect();
    rules.push(rule("web", "all", 1_000, &random("*")));
    let (compiler, update) = compiled(&rules);
    let clients = clients(&compiler, "s0");
    assert_eq!(clients.len(), RULE_CLIENTS_MAX);
    assert!(clients.contains(&"web".to_owned()), "{clients:?}");
    let told = warnings(&update, "evil");
    assert_eq!(told.len(), RULE_CLIENTS_MAX + 1);
    assert!(told.iter().all(|t| t.contains("not used: ")), "{told:?}");
}

#[test]
fn a_selector_that_goes_makes_room_for_the_next() {
    let client = |i: usize| format!("n{i:03}");
    let choosing = |minute| {
        let mut spec = random("*");
        spec["workloadSelector"] = json!({"matchLabels": {"app": "x"}});
        (minute, spec)
    };
    let mut rules: Vec<Value> =
        (0..RULE_CLIENTS_MAX - 1).map(|i| rule(&client(i), "all", 1, &random("*"))).collect();
    // The last that counts, and the first that does not.
    for (i, (minute, spec)) in [(0, choosing(2)), (1, choosing(3))] {
        rules.push(rule(&client(i), "second", minute, &spec));
    }
    let mut world = world_of(&rules);
    let (mut compiler, _) = Compiler::new(Env::default(), &world);
    let told = |compiler: &Compiler| -> Vec<String> {
        let all = compiler.statuses().map(|s| format!("{:?} {:?}", s.object, s.body));
        all.filter(|status| status.contains("not used")).collect()
    };
    assert!(told(&compiler)[0].contains("n001"), "{:?}", told(&compiler));
    let delta = put(&mut world, &rule(&client(0), "second", 2, &random("*")));
    compiler.update(&world, &delta);
    let (anew, _) = Compiler::new(Env::default(), &world);
    assert_eq!((told(&compiler), told(&anew)), (Vec::new(), Vec::new()));
    assert_eq!(clients(&compiler, "s0"), clients(&anew, "s0"));
    assert_eq!(clients(&compiler, "s0").len(), RULE_CLIENTS_MAX);
}

#[test]
fn many_rules_for_a_pattern_are_not_read_by_each_of_them() {
    const RULES: usize = 2_000;
    let mut rules: Vec<Value> =
        (0..RULES).map(|i| rule("evil", &format!("r{i:04}"), 0, &random("*"))).collect();
    rules.extend((0..RULES / 2).map(|i| rule(&format!("n{i:04}"), "all", 1, &random("*"))));
    let world = world_of(&rules);
    let shared = std::rc::Rc::default();
    let reads = |kind, namespace: &str, name: &str| {
        let unit = Unit::Object(ObjectKey::new(kind, namespace, name));
        compile(&unit, &world, &Env::default(), &shared).1.len()
    };
    assert!(reads(KindId::DestinationRule, "evil", "r1999") < 20);
    assert!(reads(KindId::DestinationRule, "n0999", "all") < 20);
    // The rules of all clients that count, of the one that has many as many as there may be.
    let of_service = reads(KindId::Service, "shop", "s0");
    assert!(of_service < 2 * RULE_CLIENTS_MAX + 40, "{of_service}");
}

#[test]
fn a_list_of_namespaces_makes_a_bounded_number_of_backends() {
    let to: Vec<String> = (0..RULE_CLIENTS_MAX * 2).map(|i| format!("n{i:03}")).collect();
    let exported = |to: &[String]| {
        let mut spec = random("*.shop.svc.cluster.local");
        spec["exportTo"] = json!(to);
        spec
    };
    let (compiler, update) = compiled(&[rule("shop", "all", 0, &exported(&to))]);
    assert_eq!(clients(&compiler, "s0"), to[..RULE_CLIENTS_MAX]);
    let told = warnings(&update, "shop").join("\n");
    assert!(told.contains("names 128 namespaces; the first 64 are used"), "{told}");
    // Those that another namespace names are nobody's here.
    let (compiler, _) = compiled(&[rule("evil", "all", 0, &exported(&to))]);
    assert_eq!(clients(&compiler, "s0"), ["evil"]);
}
