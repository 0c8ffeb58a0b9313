// SPDX-License-Identifier: Apache-2.0
//! Two servers on one store, which is in memory here: what Consul's clients are told of them. Their
//! clock stands still: no lease ends, and the store is in reach, however slow the machine is.

use weft_kinds::kind::KindId;
use weft_registry::hosts::JOIN_ANNOTATION;
use weft_registry::leader::SERVERS;
use weft_registry::servers::{Said, Server};
use weft_registry::{Leader, WriteOptions};
use weft_store::Store;

use super::sync::SyncAsk;
use super::*;

fn config(name: &str) -> Config {
    Config {
        node_name: name.into(),
        node_id: format!("0190a6c8-0000-7000-8000-00000000000{name}"),
        address: "127.0.0.1".parse().unwrap(),
        datacenter: "dc1".into(),
        version: "0.1.0".into(),
        hosts: Vec::new(),
    }
}

pub(super) async fn server(store: &Arc<dyn Store>, clock: &Clock, name: &str) -> Rig {
    let tasks = TaskGroup::new();
    let leader = Leader::among(name, clock.clone());
    let opened = Registry::open_as(store.clone(), clock.clone(), tasks.clone(), leader);
    let registry = opened.await.unwrap();
    let config = config(name);
    let door = Door::with_access(&registry, config, Access::default(), &tasks);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks.spawn("consul door", door.clone().serve(listener, tasks.clone()));
    Rig { address, door, registry, tasks }
}

impl Rig {
    async fn until_it_says(&self, path: &str, wanted: &Value) {
        let asked = async {
            while self.get(path).await.json() != *wanted {
                tokio::task::yield_now().await;
            }
        };
        let said = tokio::time::timeout(Duration::from_secs(60), asked).await;
        assert!(said.is_ok(), "{path}: {} is not {wanted}", self.get(path).await.text);
    }
}

#[tokio::test]
async fn both_servers_name_both_and_the_one_that_leads() {
    let (clock, _) = Clock::manual();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(clock.clone()));
    let a = server(&store, &clock, "a").await;
    a.until_it_says("/v1/status/leader", &json!("")).await;
    let said = |name: &str, port: u16| {
        let value = json!({"api": format!("127.0.0.1:{port}"), "id": format!("id of {name}")});
        Op::put_ephemeral(format!("{SERVERS}{name}"), value.to_string())
    };
    store.txn(Txn::of([said("a", 1), said("b", 2)])).await.unwrap();
    // The first one leads, as it was alone when it began.
    a.until_it_says("/v1/status/leader", &json!("127.0.0.1:1")).await;
    let b = server(&store, &clock, "b").await;
    for rig in [&a, &b] {
        rig.until_it_says("/v1/status/peers", &json!(["127.0.0.1:1", "127.0.0.1:2"])).await;
        rig.until_it_says("/v1/status/leader", &json!("127.0.0.1:1")).await;
        let raft = rig.get("/v1/operator/raft/configuration").await.json();
        let shown: Vec<_> = raft["Servers"].as_array().unwrap().iter().collect();
        let of = |i: usize| (&shown[i]["Node"], &shown[i]["ID"], &shown[i]["Leader"]);
        assert_eq!(of(0), (&json!("a"), &json!("id of a"), &json!(true)));
        assert_eq!(of(1), (&json!("b"), &json!("id of b"), &json!(false)));
        let health = rig.get("/v1/operator/autopilot/health").await.json();
        assert_eq!((&health["Healthy"], &health["FailureTolerance"]), (&json!(true), &json!(1)));
    }
    let stats = |answer: Answer| answer.json()["Stats"]["consul"]["leader"].clone();
    assert_eq!(stats(a.get("/v1/agent/self").await), "true");
    assert_eq!(stats(b.get("/v1/agent/self").await), "false");
    // What one acknowledged the other shows to who asks for it consistent.
    let node = json!({"Node": "n9", "Address": "10.0.0.9"});
    a.put("/v1/catalog/register", node).await;
    let nodes = b.get("/v1/catalog/nodes?consistent").await;
    assert!(nodes.text.contains("n9"), "{}", nodes.text);
    assert_eq!(nodes.headers["x-consul-effective-consistency"], "consistent");
    assert_eq!(nodes.headers["x-consul-knownleader"], "true");
    // And to who says nothing, as Consul's leader would; not to who takes what is there.
    for n in 0..50 {
        a.put(&format!("/v1/kv/k{n}"), json!(n)).await;
        let seen = b.get(&format!("/v1/kv/k{n}?raw")).await;
        assert_eq!((seen.status, &*seen.text), (200, &*n.to_string()));
        let web =
            json!({"Node": "n9", "Address": "10.0.0.9", "Service": {"Service": format!("s{n}")}});
        a.put("/v1/catalog/register", web).await;
        let seen = b.get(&format!("/v1/health/service/s{n}")).await;
        assert_eq!(seen.json().as_array().map(Vec::len), Some(1), "{n}: {}", seen.text);
        assert_eq!(seen.headers["x-consul-effective-consistency"], "leader");
    }
    // Whatever it is that is asked for.
    for n in 0..50 {
        let path = format!("/v1/connect/intentions/exact?source=s{n}&destination=db");
        a.put(&path, json!({"Action": "allow"})).await;
        let seen = b.get(&format!("{path}&consistent")).await;
        assert_eq!(seen.status, 200, "{n}: {}", seen.text);
    }
    for rig in [a, b] {
        rig.tasks.stop();
    }
}

/// The same, which says as its node that it is there until it is killed.
async fn announced(store: &Arc<dyn Store>, clock: &Clock, name: &str) -> Rig {
    let said = Said { run: name.into(), place: name.into(), ..Said::default() };
    let own = Server::claim(store.clone(), name, said).await.unwrap();
    let rig = server(store, clock, name).await;
    let (own, registry) = (own.of_node(config(name).server_node()), rig.registry.clone());
    rig.tasks.spawn("among servers", async move { own.stay(&registry).await });
    rig
}

#[tokio::test]
async fn every_servers_catalog_lists_all_servers_and_how_they_are() {
    let (clock, _) = Clock::manual();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(clock.clone()));
    let a = announced(&store, &clock, "a").await;
    let b = announced(&store, &clock, "b").await;
    let c = server(&store, &clock, "c").await;
    // Each with the service that servers are, alive, whomever one asks.
    let passing = json!(["a passing", "b passing"]);
    for rig in [&a, &b] {
        rig.until_servers_are(&passing).await;
    }
    let shape = |mut answer: Value| {
        // An index is of one order at all, and not the same.
        strip(&mut answer);
        answer
    };
    for path in [
        "/v1/catalog/nodes",
        "/v1/catalog/service/consul",
        "/v1/health/service/consul",
        "/v1/catalog/node/a",
        "/v1/catalog/node/b",
        "/v1/health/node/b",
        "/v1/agent/members",
        "/v1/agent/members?wan",
        "/v1/coordinate/nodes",
        "/v1/coordinate/datacenters",
    ] {
        let (at_a, at_b) = (a.get(path).await, b.get(path).await);
        assert_eq!((at_a.status, at_b.status), (200, 200), "{path}");
        assert_eq!(shape(at_a.json()), shape(at_b.json()), "{path}");
        let named = if path.ends_with("/a") { "\"a\"" } else { "\"b" };
        assert!(at_a.text.contains(named), "{path}: {}", at_a.text);
    }
    let nodes = a.get("/v1/catalog/nodes").await.json();
    assert_eq!(nodes[1]["ID"], config("b").node_id);
    // What others write of a server's node does not stay.
    let wrong = json!({"Node": "b", "Address": "6.6.6.6"});
    a.put("/v1/catalog/register", wrong).await;
    a.until(|nodes| nodes[1]["Address"] == "127.0.0.1", "/v1/catalog/nodes").await;
    a.put("/v1/catalog/deregister", json!({"Node": "b"})).await;
    a.until_servers_are(&passing).await;

    // One goes. Who waits for the servers' health is told, and everybody says the same.
    let known = a.get("/v1/health/service/consul").await;
    let waiting = format!("/v1/health/service/consul?wait=60s&index={}", known.index());
    let gone = async {
        b.tasks.stop();
        let over = Op::delete(format!("{SERVERS}b"));
        store.txn(Txn::of([over])).await.unwrap();
    };
    let (told, ()) = tokio::join!(a.get(&waiting), gone);
    assert_eq!(servers_of(&told.json()), json!(["a passing", "b critical"]));
    let members = a.get("/v1/agent/members").await.json();
    assert_eq!((&members[0]["Status"], &members[1]["Status"]), (&json!(1), &json!(4)));
    assert_eq!(members[1]["Tags"]["role"], "consul");
    let passing = a.get("/v1/health/service/consul?passing").await.json();
    assert_eq!(servers_of(&passing), json!(["a passing"]));
    // One that comes later reads it all from the store.
    c.until_servers_are(&json!(["a passing", "b critical", "c passing"])).await;
    // Who never returns is let go of by hand.
    a.put("/v1/catalog/deregister", json!({"Node": "b"})).await;
    a.until_servers_are(&json!(["a passing"])).await;
    for rig in [a, c] {
        rig.tasks.stop();
    }
}

/// A machine of this name is in the mesh.
async fn joined(rig: &Rig, name: &str) {
    let machine = json!({"metadata": {"name": name, "annotations": {JOIN_ANNOTATION: "j"}}});
    let objects = rig.registry.objects();
    objects.create(KindId::Node, "", machine, WriteOptions::SYSTEM).await.unwrap();
}

/// One is killed.
async fn ends(store: &Arc<dyn Store>, rig: &Rig, name: &str) {
    rig.tasks.stop();
    store.txn(Txn::of([Op::delete(format!("{SERVERS}{name}"))])).await.unwrap();
}

#[tokio::test]
async fn a_name_that_was_a_servers_and_is_a_machines_is_listed_no_more_and_who_waits_is_told() {
    let (clock, _) = Clock::manual();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(clock.clone()));
    let a = announced(&store, &clock, "a").await;
    let b = announced(&store, &clock, "b").await;
    a.until_servers_are(&json!(["a passing", "b passing"])).await;
    ends(&store, &b, "b").await;
    a.until_servers_are(&json!(["a passing", "b critical"])).await;
    let paths = ["/v1/health/service/consul", "/v1/catalog/service/consul"];
    let mut waiting = Vec::new();
    for path in paths {
        let known = a.get(path).await;
        assert_eq!(count(&known), 2, "{}", known.text);
        waiting.push(format!("{path}?wait=60s&index={}", known.index()));
    }
    let (health, catalog, ()) =
        tokio::join!(a.get(&waiting[0]), a.get(&waiting[1]), joined(&a, "b"));
    assert_eq!((count(&health), count(&catalog)), (1, 1), "{} {}", health.text, catalog.text);
    // One that a version wrote which did not take it back.
    a.door.catalog().register_node(&config("b").server_node(), true).await.unwrap();
    a.until(|found| found.as_array().is_some_and(|all| all.len() == 1), paths[0]).await;
    a.tasks.stop();
}

#[tokio::test]
async fn a_server_of_a_machines_name_is_listed_while_it_is_there() {
    let (clock, _) = Clock::manual();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(clock.clone()));
    let a = announced(&store, &clock, "a").await;
    let record = json!({"Node": "b", "Address": "10.0.0.2", "NodeMeta": {"rack": "7"}});
    joined(&a, "b").await;
    a.put("/v1/catalog/register", record.clone()).await;
    let b = announced(&store, &clock, "b").await;
    let path = "/v1/catalog/service/consul";
    let both = |found: &Value| {
        let is_b = |one: &Value| one["Node"] == "b" && one["Address"] == "10.0.0.2";
        found.as_array().is_some_and(|all| all.len() == 2 && is_b(&all[1]))
    };
    a.until(both, path).await;
    // Also after its machine wrote the node anew.
    a.registry.catalog().deregister_node("b").await.unwrap();
    a.put("/v1/catalog/register", record).await;
    a.until(both, path).await;
    let node = a.get("/v1/catalog/node/b").await.json();
    assert_eq!(node["Node"]["Meta"]["rack"], "7", "the rest of it is the machine's");
    ends(&store, &b, "b").await;
    a.until(|found| found.as_array().is_some_and(|all| all.len() == 1), path).await;
    a.tasks.stop();
}

#[tokio::test]
async fn a_machine_that_changed_its_family_keeps_no_address_of_the_other() {
    let (clock, _) = Clock::manual();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(clock.clone()));
    let a = server(&store, &clock, "a").await;
    let whole = || SyncAsk { whole: true, ..SyncAsk::default() };
    a.door.sync("m", "10.0.0.9".parse().unwrap(), whole()).await.unwrap();
    let before = json!({"Node": "m", "Address": "10.0.0.9", "TaggedAddresses": {
        "lan": "10.0.0.9", "lan_ipv4": "10.0.0.9", "wan": "1.2.3.4", "wan_ipv4": "1.2.3.4",
        "lan_ipv6": "2001:db8::9", "vpn": "10.8.0.9"}});
    a.put("/v1/catalog/register", before).await;
    a.door.sync("m", "10.0.0.9".parse().unwrap(), whole()).await.unwrap();
    let node = a.get("/v1/catalog/node/m").await.json();
    assert_eq!(node["Node"]["TaggedAddresses"]["lan_ipv6"], "2001:db8::9", "somebody wrote it");
    a.door.sync("m", "fd00::9".parse().unwrap(), whole()).await.unwrap();
    let node = a.get("/v1/catalog/node/m").await.json();
    assert_eq!(
        node["Node"]["TaggedAddresses"],
        json!({"lan": "fd00::9", "lan_ipv6": "fd00::9", "wan": "fd00::9", "wan_ipv6": "fd00::9",
            "vpn": "10.8.0.9"})
    );
    a.tasks.stop();
}

impl Rig {
    async fn until(&self, holds: impl Fn(&Value) -> bool, path: &str) {
        let asked = async {
            while !holds(&self.get(path).await.json()) {
                tokio::task::yield_now().await;
            }
        };
        let said = tokio::time::timeout(Duration::from_secs(60), asked).await;
        assert!(said.is_ok(), "{path}: {}", self.get(path).await.text);
    }

    async fn until_servers_are(&self, wanted: &Value) {
        self.until(|found| servers_of(found) == *wanted, "/v1/health/service/consul").await;
    }
}

/// Each server's name with its serfHealth.
fn servers_of(health: &Value) -> Value {
    let named = |entry: &Value| {
        let checks = entry["Checks"].as_array().unwrap();
        let serf = checks.iter().find(|check| check["CheckID"] == "serfHealth");
        let status = serf.map_or("unknown", |check| check["Status"].as_str().unwrap());
        format!("{} {status}", entry["Node"]["Node"].as_str().unwrap())
    };
    health.as_array().unwrap().iter().map(named).collect()
}

fn strip(value: &mut Value) {
    match value {
        Value::Array(all) => all.iter_mut().for_each(strip),
        Value::Object(fields) => {
            fields.remove("CreateIndex");
            fields.remove("ModifyIndex");
            fields.values_mut().for_each(strip);
        }
        _ => {}
    }
}

/// Two servers that were opened at different times have different indexes for the same. A client
/// that is sent to them in turn waits at both, is told no index less than its own, and misses
/// nothing.
#[tokio::test]
async fn a_client_that_is_sent_to_two_servers_in_turn_waits_and_misses_nothing() {
    let (clock, _) = Clock::manual();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(clock.clone()));
    let a = server(&store, &clock, "a").await;
    let web = |port: u16| {
        let service = json!({"Service": "web", "Port": port});
        json!({"Node": "n9", "Address": "10.0.0.9", "Service": service})
    };
    a.put("/v1/catalog/register", web(1)).await;
    a.put("/v1/kv/k", json!(1)).await;
    for n in 0..20 {
        a.put(&format!("/v1/kv/other/{n}"), json!(n)).await;
    }
    let b = server(&store, &clock, "b").await;
    for (path, change) in
        [("/v1/health/service/web", "/v1/catalog/register"), ("/v1/kv/k", "/v1/kv/k")]
    {
        let (at_a, at_b) = (a.get(path).await.index(), b.get(path).await.index());
        // A pair has its own index in the store.
        assert!(at_a < at_b || path == change, "the same index at both: {at_a}, {at_b}");
        let mut index = at_b;
        for (turn, rig) in [&a, &b, &a, &b].into_iter().enumerate() {
            let real = Clock::system();
            let began = real.now();
            let said = rig.get(&format!("{path}?index={index}&wait=100ms")).await;
            assert!(
                real.now().since(began) >= Duration::from_millis(100),
                "{path}: at once, turn {turn}"
            );
            assert!(said.index() >= index, "{path}: {} after {index}", said.index());
            index = said.index();
        }
        for (turn, rig) in [&a, &b, &a, &b].into_iter().enumerate() {
            // What changes at the other one, while it waits here.
            let other = if turn % 2 == 0 { &b } else { &a };
            let body = if path == change { json!(turn + 2) } else { web(turn as u16 + 2) };
            let asked = format!("{path}?index={index}&wait=60s");
            let (said, _) = tokio::join!(rig.get(&asked), other.put(change, body));
            assert!(said.index() > index, "{path}: {} after {index}", said.index());
            index = said.index();
        }
    }
    for rig in [a, b] {
        rig.tasks.stop();
    }
}

#[tokio::test]
async fn what_a_client_is_told_never_goes_back_when_it_comes_to_a_server_that_is_behind() {
    let (clock, _) = Clock::manual();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(clock.clone()));
    let a = server(&store, &clock, "a").await;
    a.until_it_says("/v1/status/peers", &json!([])).await;
    // Another server has told of this already; this one hears of it while it is asked.
    let ahead = store.barrier().await.unwrap().0 + 1;
    let path = format!("/v1/catalog/nodes?index={ahead}&wait=60s");
    let (said, ()) = tokio::join!(a.get(&path), async {
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
        let node = json!({"node": "n9", "address": "10.0.0.9"}).to_string();
        for put in [Op::put("/x", "1"), Op::put("/c/n/n9", node)] {
            store.txn(Txn::of([put])).await.unwrap();
        }
    });
    assert!(said.text.contains("n9"), "{}", said.text);
    assert!(said.index() >= ahead);
    a.tasks.stop();
}

/// `CreateIndex` and `ModifyIndex` of a node, its services and its checks.
async fn indexes(rig: &Rig, node: &str) -> Value {
    let of = |record: &Value| json!([record["CreateIndex"], record["ModifyIndex"]]);
    let on = rig.get(&format!("/v1/catalog/node/{node}?consistent")).await.json();
    let checks = rig.get(&format!("/v1/health/node/{node}?consistent")).await.json();
    let checks: Vec<Value> = checks.as_array().unwrap().iter().map(of).collect();
    let services = on["Services"].as_object().unwrap().values().map(of).collect::<Vec<_>>();
    json!({"node": of(&on["Node"]), "services": services, "checks": checks})
}

/// What a client was told by one server it may compare with at another, and after a restart.
#[tokio::test]
async fn records_have_the_same_indexes_at_every_server_and_after_a_start() {
    let (clock, _) = Clock::manual();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(clock.clone()));
    let a = server(&store, &clock, "a").await;
    let web = |port: u16, status: &str| {
        json!({"Node": "n9", "Address": "10.0.0.9", "Service": {"Service": "web", "Port": port},
            "Check": {"CheckID": "up", "Name": "up", "ServiceID": "web", "Status": status}})
    };
    a.put("/v1/catalog/register", web(1, "passing")).await;
    a.put("/v1/kv/k", json!(1)).await;
    a.put("/v1/catalog/register", web(1, "critical")).await;
    a.put("/v1/agent/service/register", json!({"Name": "api", "Check": {"TTL": "600s"}})).await;
    a.put("/v1/agent/check/pass/service:api", json!(null)).await;
    a.put("/v1/kv/k", json!(2)).await;
    let b = server(&store, &clock, "b").await;
    let first = indexes(&a, "n9").await;
    assert_eq!(indexes(&b, "n9").await, first);
    let (service, check) = (&first["services"][0], &first["checks"][0]);
    assert!(service[0] == service[1] && check[0].as_u64() < check[1].as_u64(), "{first}");
    // A check that its owner reports.
    let api = "/v1/health/checks/api?consistent";
    let (at_a, at_b) = (a.get(api).await.json(), b.get(api).await.json());
    assert_eq!(at_a[0]["ModifyIndex"], at_b[0]["ModifyIndex"], "{at_a} {at_b}");
    let cas = |index: &Value, port: u16| {
        let service = json!({"ID": "web", "Service": "web", "Port": port, "ModifyIndex": index});
        json!([{"Service": {"Verb": "cas", "Node": "n9", "Service": service}}]).to_string()
    };
    let done = b.ask("PUT", "/v1/txn", &cas(&service[1], 2)).await;
    assert_eq!(done.status, 200, "{}", done.text);
    let second = indexes(&a, "n9").await;
    let late = a.ask("PUT", "/v1/txn", &cas(&service[1], 3)).await;
    assert!(late.status == 409 && late.text.contains("index is stale"), "{}", late.text);
    assert_eq!(second["services"][0][0], service[0]);
    assert_eq!(second["checks"], first["checks"], "nobody wrote them");
    for rig in [a, b] {
        rig.tasks.stop();
    }
    let c = server(&store, &clock, "c").await;
    assert_eq!(indexes(&c, "n9").await, second);
    let done = c.ask("PUT", "/v1/txn", &cas(&second["services"][0][1], 4)).await;
    assert_eq!(done.status, 200, "{}", done.text);
    c.tasks.stop();
}

/// What programs registered with a server's agent is nowhere but in the store.
#[tokio::test]
async fn what_a_servers_agent_has_is_not_taken_away_at_another_server() {
    let (clock, _) = Clock::manual();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(clock.clone()));
    let a = announced(&store, &clock, "a").await;
    let b = announced(&store, &clock, "b").await;
    a.until_servers_are(&json!(["a passing", "b passing"])).await;
    let web = json!({"Name": "web", "Port": 80, "Check": {"TTL": "600s", "Status": "passing"}});
    b.put("/v1/agent/service/register", web).await;
    let instance = json!({"ID": "web", "Service": "web", "Port": 81});
    let sick = json!({"Node": "b", "CheckID": "service:web", "ServiceID": "web",
        "Status": "critical"});
    for (path, body) in [
        ("agent/force-leave/b", json!(null)),
        ("agent/force-leave/b?prune", json!(null)),
        ("catalog/deregister", json!({"Node": "b", "ServiceID": "web"})),
        ("catalog/deregister", json!({"Node": "b", "CheckID": "service:web"})),
        ("catalog/deregister", json!({"Node": "b"})),
        (
            "catalog/register",
            json!({"Node": "b", "SkipNodeUpdate": true, "Service": instance, "Check": sick}),
        ),
        ("txn", json!([{"Service": {"Verb": "delete", "Node": "b", "Service": instance}}])),
        ("txn", json!([{"Service": {"Verb": "set", "Node": "b", "Service": instance}}])),
        ("txn", json!([{"Check": {"Verb": "set", "Check": sick}}])),
        ("txn", json!([{"Node": {"Verb": "delete", "Node": {"Node": "b"}}}])),
    ] {
        a.put(&format!("/v1/{path}"), body.clone()).await;
        let now = a.get("/v1/health/service/web?passing").await;
        assert_eq!(count(&now), 1, "{path} {body}");
        assert_eq!(now.json()[0]["Service"]["Port"], 80, "{path} {body}");
    }
    for rig in [a, b] {
        rig.tasks.stop();
    }
}
