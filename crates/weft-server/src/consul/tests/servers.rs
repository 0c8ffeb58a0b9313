// SPDX-License-Identifier: Apache-2.0
//! Two servers on one store, which is in memory here: what Consul's clients are told of them.

use weft_registry::Leader;
use weft_registry::leader::SERVERS;
use weft_store::Store;

use super::*;

async fn server(store: &Arc<dyn Store>, clock: &Clock, name: &str) -> Rig {
    let tasks = TaskGroup::new();
    let leader = Leader::among(name, clock.clone());
    let opened = Registry::open_as(store.clone(), clock.clone(), tasks.clone(), leader);
    let registry = opened.await.unwrap();
    let config = Config {
        node_name: name.into(),
        node_id: format!("0190a6c8-0000-7000-8000-00000000000{name}"),
        address: "127.0.0.1".parse().unwrap(),
        datacenter: "dc1".into(),
        version: "0.1.0".into(),
        hosts: Vec::new(),
    };
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
    let clock = Clock::system();
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

/// Two servers that were opened at different times have different indexes for the same. A client
/// that is sent to them in turn waits at both, is told no index less than its own, and misses
/// nothing.
#[tokio::test]
async fn a_client_that_is_sent_to_two_servers_in_turn_waits_and_misses_nothing() {
    let clock = Clock::system();
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
            let began = clock.now();
            let said = rig.get(&format!("{path}?index={index}&wait=100ms")).await;
            assert!(
                clock.now().since(began) >= Duration::from_millis(100),
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
    let clock = Clock::system();
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
