// SPDX-License-Identifier: Apache-2.0
//! Which topics move with which change.

use weft_kinds::views::catalog::{CheckRecord, CheckStatus, NodeRecord, Registration, Status};
use weft_kinds::world::{CheckKey, RegistrationKey, StoreKey};

use super::*;
use crate::consul::view::speaks_connect;

struct Rig {
    world: World,
    table: Arc<Indexes>,
}

impl Rig {
    fn new() -> Self {
        let node =
            NodeRecord { node: "n".into(), address: "127.0.0.1".into(), ..Default::default() };
        let own = Identity { node: Arc::new(node), datacenter: "dc1".into(), version: "1".into() };
        let world = World::new();
        let table = Arc::new(Indexes::new(Arc::new(own), Arc::new(world.clone())));
        Self { world, table }
    }

    fn put(&mut self, key: StoreKey, value: Option<&impl serde::Serialize>) {
        let bytes = value.map(|v| serde_json::to_vec(v).unwrap());
        let revision = self.world.revision() + 10;
        let delta = self.world.apply(&key.to_string(), bytes.as_deref(), revision);
        self.table.advance(Arc::new(self.world.clone()), Some(&delta));
    }

    fn register(&mut self, service: &str, tags: &[&str]) {
        let registration = Registration {
            id: service.into(),
            service: service.into(),
            node: "n".into(),
            namespace: "default".into(),
            tags: tags.iter().map(|t| (*t).into()).collect(),
            ..Registration::default()
        };
        self.put(StoreKey::Registration(place(service)), Some(&registration));
        let check = CheckRecord {
            id: format!("service:{service}").into(),
            node: "n".into(),
            namespace: "default".into(),
            service_id: service.into(),
            ..CheckRecord::default()
        };
        self.put(StoreKey::Check(check_place(service)), Some(&check));
    }

    fn tell(&mut self, service: &str, status: Status, output: &str) {
        let status = CheckStatus { status, output: output.into(), ..CheckStatus::default() };
        self.put(StoreKey::CheckStatus(check_place(service)), Some(&status));
    }

    fn at(&self, topic: &Topic) -> u64 {
        self.table.read(topic).1
    }
}

fn place(id: &str) -> RegistrationKey {
    RegistrationKey { namespace: "default".into(), node: "n".into(), id: id.into() }
}

fn check_place(service: &str) -> CheckKey {
    let id = format!("service:{service}").into();
    CheckKey { namespace: "default".into(), node: "n".into(), id }
}

fn services() -> Topic {
    Topic::Services("default".into())
}

fn catalog(of: &str) -> Topic {
    Topic::Catalog("default".into(), of.into())
}

fn health(of: &str) -> Topic {
    Topic::Health("default".into(), of.into())
}

#[test]
fn an_index_moves_only_for_what_its_query_sees() {
    let mut rig = Rig::new();
    rig.register("web", &["a"]);
    rig.register("api", &[]);
    let (names, web, api) = (rig.at(&services()), rig.at(&catalog("web")), rig.at(&health("api")));
    rig.tell("web", Status::Passing, "");
    let now = rig.world.revision();
    assert_eq!(rig.at(&health("web")), now, "its health moved");
    assert_eq!(rig.at(&Topic::Checks), now);
    assert_eq!(rig.at(&catalog("web")), web, "its registration did not");
    assert_eq!(rig.at(&services()), names, "nor the list of services");
    assert_eq!(rig.at(&health("api")), api, "nor another's health");
    rig.register("web", &["a", "b"]);
    assert!(rig.at(&services()) > names, "a tag is in the list");
    assert!(rig.at(&catalog("web")) > web);
}

#[test]
fn a_removal_moves_the_index_of_what_is_gone_and_of_nothing_else() {
    let mut rig = Rig::new();
    rig.register("web", &[]);
    rig.register("api", &[]);
    let (web, api) = (rig.at(&health("web")), rig.at(&health("api")));
    rig.put(StoreKey::Check(check_place("web")), None::<&CheckRecord>);
    rig.put(StoreKey::Registration(place("web")), None::<&Registration>);
    assert!(rig.at(&health("web")) > web);
    assert_eq!(rig.at(&health("api")), api);
    let gone = rig.at(&health("web"));
    rig.tell("api", Status::Passing, "");
    assert_eq!(rig.at(&health("web")), gone, "what is not there does not change");
}

#[tokio::test]
async fn a_wait_for_what_is_not_there_ends_when_it_comes_and_leaves_nothing_behind() {
    let mut rig = Rig::new();
    rig.register("api", &[]);
    let kept = rig.table.len();
    for n in 0..100 {
        drop(rig.table.subscribe(&health(&format!("nobody-{n}"))));
    }
    assert_eq!(rig.table.len(), kept, "topics of nothing are let go");
    let mut wait = rig.table.subscribe(&health("web"));
    let before = rig.at(&health("web"));
    rig.register("web", &[]);
    wait.moved().await;
    assert!(rig.at(&health("web")) > before);
}

#[test]
fn the_servers_own_service_moves_with_its_node_alone() {
    let mut rig = Rig::new();
    rig.register("web", &[]);
    let before = rig.at(&health("consul"));
    rig.put(StoreKey::Check(check_place("web")), None::<&CheckRecord>);
    rig.put(StoreKey::Registration(place("web")), None::<&Registration>);
    assert_eq!(rig.at(&health("consul")), before, "another's removal is none of its");
    let key = CheckKey { namespace: "default".into(), node: "n".into(), id: "up".into() };
    let check = CheckRecord { id: "up".into(), node: "n".into(), ..CheckRecord::default() };
    rig.put(StoreKey::Check(key), Some(&check));
    assert!(rig.at(&health("consul")) > before, "a check of its node");
}

#[tokio::test]
async fn missed_changes_move_everything() {
    let mut rig = Rig::new();
    rig.register("web", &[]);
    let mut wait = rig.table.subscribe(&health("web"));
    rig.world.apply("/s/other", Some(b"{}"), 9_000);
    rig.table.advance(Arc::new(rig.world.clone()), None);
    wait.moved().await;
    assert_eq!((rig.at(&health("web")), rig.at(&services())), (9_000, 9_000));
    rig.table.reached(9_000).await;
}

/// Checks, each with its node: they may be asked for by what that says of itself.
fn checks(view: &View, wanted: impl Fn(Status) -> bool) -> String {
    let mut checks = view.all_checks("default", None);
    checks.retain(|check| wanted(check.status));
    let nodes: Vec<_> = checks.iter().map(|check| view.node(&check.record.node)).collect();
    format!("{checks:?} {nodes:?}")
}

/// Answers as clients see them, without the indexes in them.
fn answers(view: &View) -> Vec<(Topic, String)> {
    let mut out = vec![
        (services(), format!("{:?}", view.services("default"))),
        (Topic::Nodes, format!("{:?}", view.nodes())),
        (Topic::Checks, checks(view, |_| true)),
        (Topic::Instances("default".into()), instances(view)),
    ];
    for state in [Status::Passing, Status::Critical] {
        out.push((Topic::State(state), checks(view, |status| status == state)));
    }
    for name in ["web", "api", "consul"] {
        let entries = view.entries("default", name);
        let plain: Vec<_> = entries.iter().map(|e| (&e.node, &e.service)).collect();
        if name != "consul" {
            out.push((catalog(name), format!("{plain:?}")));
        }
        out.push((health(name), format!("{entries:?}")));
        let all = ["web", "api"].into_iter().flat_map(|name| view.entries("default", name));
        let mut speaks: Vec<_> =
            all.filter(|e| speaks_connect(&e.service).any(|of| of == name)).collect();
        let topic = Topic::ConnectHealth("default".into(), name.into());
        out.push((topic, format!("{speaks:?}")));
        let plain: Vec<_> = speaks.drain(..).map(|e| (e.node, e.service)).collect();
        out.push((Topic::Connect("default".into(), name.into()), format!("{plain:?}")));
    }
    for node in ["n", "m"] {
        let on = view.on_node("default", node);
        let on: Vec<_> = on.iter().map(|e| (&e.node, &e.service)).collect();
        out.push((Topic::Node(node.into()), format!("{on:?} {:?}", view.node(node))));
        let listed = view.has_node(node);
        let checks = if listed { view.checks_on_node("default", node) } else { Vec::new() };
        out.push((Topic::NodeHealth(node.into()), format!("{checks:?}")));
    }
    out
}

fn instances(view: &View) -> String {
    let all = ["web", "api"].map(|name| view.entries("default", name));
    format!("{all:?}")
}

/// A random put or deletion of a record, from few names so that they meet.
fn random_event(rng: &mut weft_base::rng::Rng) -> (StoreKey, Option<serde_json::Value>) {
    let mut one = |of: &[&'static str]| of[usize::try_from(rng.below(of.len() as u64)).unwrap()];
    let (node, service, tag) = (one(&["n", "m"]), one(&["web", "api"]), one(&["a", "b", ""]));
    let (id, subject) = (one(&["1", "2"]), one(&["1", "2", ""]));
    let (kind, status) = (one(&["i", "k", "s", "s", "node"]), one(&["passing", "critical"]));
    let gone = one(&["", "", "gone"]) == "gone";
    let address = one(&["10.0.0.1", "10.0.0.2"]);
    let speaks = one(&["", "native", "proxy"]);
    let instance =
        RegistrationKey { namespace: "default".into(), node: node.into(), id: id.into() };
    let check = CheckKey { namespace: "default".into(), node: node.into(), id: id.into() };
    let (key, value) = match kind {
        "i" => {
            let tags: Vec<&str> = [tag].into_iter().filter(|t| !t.is_empty()).collect();
            let (kind, proxy) = match speaks {
                "proxy" => ("connect-proxy", serde_json::json!({"DestinationServiceName": "api"})),
                _ => ("", serde_json::Value::Null),
            };
            let value = serde_json::json!({"id": id, "service": service, "node": node,
                "namespace": "default", "tags": tags, "address": address, "kind": kind,
                "proxy": proxy, "connect": {"Native": speaks == "native"}});
            (StoreKey::Registration(instance), value)
        }
        "k" => {
            let value = serde_json::json!({"id": id, "node": node, "namespace": "default",
                "service_id": subject, "notes": tag, "initial": status});
            (StoreKey::Check(check), value)
        }
        "s" => {
            let value = serde_json::json!({"status": status, "output": tag});
            (StoreKey::CheckStatus(check), value)
        }
        _ => {
            let value = serde_json::json!({"node": node, "address": address});
            (StoreKey::Node(node.into()), value)
        }
    };
    (key, (!gone).then_some(value))
}

/// Whether an instance comes to be one of another service.
fn is_of_another_service(world: &World, key: &StoreKey, value: Option<&serde_json::Value>) -> bool {
    let StoreKey::Registration(instance) = key else { return false };
    let known = world.catalog().registration(instance).map(|r| r.service.clone());
    let named = value.and_then(|value| value["service"].as_str());
    known.zip(named).is_some_and(|(was, is)| *was != *is)
}

#[test]
fn an_index_moves_when_its_answer_changes_and_only_then() {
    for seed in 0..30 {
        let mut rng = weft_base::rng::Rng::seeded(seed);
        let mut rig = Rig::new();
        let mut before = answers(&rig.table.view());
        // Waited for, so that topics of what is not there are exact as well.
        let _waits: Vec<_> = before.iter().map(|(topic, _)| rig.table.subscribe(topic)).collect();
        let mut indexes: Vec<u64> = before.iter().map(|(topic, _)| rig.at(topic)).collect();
        for step in 0..200 {
            let (key, value) = random_event(&mut rng);
            let what = format!("seed {seed} step {step}: {key} = {value:?}");
            // What is listed by service may be in another order then, with nothing else changed.
            let elsewhere = is_of_another_service(&rig.world, &key, value.as_ref());
            rig.put(key, value.as_ref());
            let after = answers(&rig.table.view());
            for (at, (topic, answer)) in after.iter().enumerate() {
                let index = rig.at(topic);
                let (changed, moved) = (*answer != before[at].1, index != indexes[at]);
                assert!(index >= indexes[at], "{what}: {topic:?} went back");
                assert!(!changed || moved, "{what}: {topic:?} changed, its index did not");
                assert!(
                    changed || !moved || elsewhere,
                    "{what}: {topic:?} moved for nothing that it shows"
                );
                indexes[at] = index;
            }
            before = after;
        }
    }
}
