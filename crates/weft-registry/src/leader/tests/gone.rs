// SPDX-License-Identifier: Apache-2.0
//! Servers that are gone, with what is on their nodes, and names that two servers want.

use weft_kinds::views::check::{SERF_HEALTH, SERF_NAMESPACE};

use super::*;
use crate::servers::ClaimError;

fn said(place: &str, run: &str) -> Said {
    let (run, place, api) = (run.into(), place.to_owned(), format!("api of {place}"));
    Said { run, place, api, ..Said::default() }
}

/// What is registered on a server's own node; it has no check, or one that passes.
fn on_node(node: &str) -> ServiceRequest {
    let registration = Registration {
        id: "web".into(),
        service: "web".into(),
        node: node.into(),
        namespace: "default".into(),
        ..Registration::default()
    };
    let node = NodeRecord { node: node.into(), address: "10.0.0.1".into(), ..<_>::default() };
    ServiceRequest { registration, node, ..ServiceRequest::default() }
}

fn health(of: &Server) -> Vec<Status> {
    of.registry.now().instances("default", "web").values().map(|i| i.health).collect()
}

fn liveness(of: &Server, node: &str) -> Option<Status> {
    let (namespace, id) = (SERF_NAMESPACE.into(), SERF_HEALTH.into());
    let key = CheckKey { namespace, node: node.into(), id };
    let world = of.registry.now();
    world.catalog().check(&key).map(|_| world.catalog().status(&key))
}

#[tokio::test]
async fn what_is_on_a_dead_servers_node_is_critical_and_its_sessions_end() {
    let rig = Rig::new();
    let a = rig.server("a").await;
    rig.until("a leads", || a.leads()).await;
    let b = rig.server("b").await;
    rig.until("each is alive", || {
        ["a", "b"].iter().all(|name| liveness(&a, name) == Some(Status::Passing))
    })
    .await;
    b.registry.catalog().register_service(on_node("b")).await.unwrap();
    let lock = |id: &str, node: &str| Session {
        id: id.into(),
        namespace: "default".into(),
        node: node.into(),
        node_checks: vec![SERF_HEALTH.into()],
        ..Session::default()
    };
    b.registry.consul().create_session(lock("of-b", "b")).await.unwrap();
    let own = NodeRecord { node: "a".into(), address: "10.0.0.2".into(), ..<_>::default() };
    a.registry.catalog().register_node(&own, true).await.unwrap();
    a.registry.consul().create_session(lock("of-a", "a")).await.unwrap();
    rig.until("a sees it", || health(&a) == [Status::Passing]).await;

    b.kill().await;
    rig.until("its instances are out", || health(&a) == [Status::Critical]).await;
    assert_eq!(liveness(&a, "b"), Some(Status::Critical));
    let held = |id: &str| a.registry.consul().state().session(id).is_some();
    rig.until("its sessions are over", || !held("of-b")).await;
    assert!(held("of-a") && liveness(&a, "a") == Some(Status::Passing), "nobody else's");

    // Started again, from the same data directory: at once.
    let b = rig.server("b").await;
    let is_well = || health(&a) == [Status::Passing] && liveness(&b, "b") == Some(Status::Passing);
    rig.until("all is well", is_well).await;
}

#[tokio::test]
async fn a_dead_servers_node_is_given_up_whatever_words_somebody_wrote_of_it() {
    let rig = Rig::new();
    let a = rig.server("a").await;
    rig.until("a leads", || a.leads()).await;
    let b = rig.server("b").await;
    rig.until("b is alive", || liveness(&a, "b") == Some(Status::Passing)).await;
    b.kill().await;
    rig.until("it is given up", || liveness(&a, "b") == Some(Status::Critical)).await;
    let node = NodeRecord { node: "b".into(), ..<_>::default() };
    let check = CheckRecord {
        id: SERF_HEALTH.into(),
        name: "somebody's".into(),
        node: "b".into(),
        namespace: SERF_NAMESPACE.into(),
        initial: Status::Passing,
        ..CheckRecord::default()
    };
    a.registry.catalog().register_check(&node, check).await.unwrap();
    rig.until("it is given up again", || liveness(&a, "b") == Some(Status::Critical)).await;
}

#[tokio::test]
async fn a_dead_leaders_node_is_noted_by_the_next_one() {
    let rig = Rig::new();
    let a = rig.server("a").await;
    rig.until("a leads", || a.leads()).await;
    let b = rig.server("b").await;
    a.registry.catalog().register_service(on_node("a")).await.unwrap();
    rig.until("b sees it", || liveness(&b, "a") == Some(Status::Passing)).await;
    a.kill().await;
    rig.until("it is out", || health(&b) == [Status::Critical]).await;
    assert!(b.leads());
}

#[tokio::test]
async fn a_name_is_one_servers_until_it_is_gone() {
    let rig = Rig::new();
    // No test waits for as long as a lease.
    let patience = Duration::from_millis(10);
    let claim = |said: Said| servers::Server::claim_within(rig.store.clone(), "a", said, patience);
    let first = claim(said("here", "1")).await.unwrap();
    let listed = async || {
        let (_, entry) = rig.store.get("/e/s/a").await.unwrap();
        entry.map(|entry| Said::read(&entry.value))
    };
    // The same data directory: it was killed, and is back.
    let again = claim(said("here", "2")).await.unwrap();
    assert_eq!(listed().await.unwrap().run, "2".into());
    first.leave().await.unwrap();
    assert!(!listed().await.unwrap().leaving, "the name is the second run's");
    // Another one, while it lives.
    let why = claim(said("there", "3")).await.unwrap_err();
    assert!(matches!(why, ClaimError::Taken { .. }), "{why:?}");
    assert_eq!(
        why.to_string(),
        "another server of the name \"a\" is on this store, its API at api of here; give each \
         server a --node of its own"
    );
    // One that ended in an orderly way has left its name, and its node counts as heard meanwhile.
    again.leave().await.unwrap();
    assert!(listed().await.unwrap().leaving);
    claim(said("there", "3")).await.unwrap();
    assert_eq!(listed().await.unwrap(), said("there", "3"));
    // The lease of one that died has ended.
    rig.store.txn(Txn::of([Op::delete("/e/s/a")])).await.unwrap();
    claim(said("elsewhere", "4")).await.unwrap();
}

#[tokio::test]
async fn a_server_that_ends_in_an_orderly_way_may_be_started_anew() {
    let rig = Rig::new();
    let a = rig.server("a").await;
    rig.until("a leads", || a.leads()).await;
    let own = servers::Server::claim(rig.store.clone(), "b", said("b", "1")).await.unwrap();
    let b = Server { name: "b", store: rig.store.clone(), ..rig.server("c").await };
    let staying = b.registry.clone();
    let there = own.clone();
    b.tasks.spawn("among servers", async move { there.stay(&staying).await });
    rig.until("b is alive", || liveness(&a, "b") == Some(Status::Passing)).await;
    b.registry.catalog().register_service(on_node("b")).await.unwrap();
    b.tasks.stop();
    own.leave().await.unwrap();
    let peers = || a.registry.consul().contact().peers();
    rig.until("it is no peer", || peers().iter().all(|peer| &*peer.name != "b")).await;
    assert_eq!(health(&a), [Status::Passing], "its node is not given up yet");
    rig.until("nobody started it", || health(&a) == [Status::Critical]).await;
}

/// A machine's agent and a server of one name: the agent speaks for the node, and nobody besides.
#[tokio::test]
async fn a_server_says_nothing_of_a_machine_of_its_name() {
    let rig = Rig::new();
    let a = rig.server("a").await;
    rig.until("a leads", || a.leads()).await;
    let hosts = Hosts::start(a.registry.clone(), "a", &a.tasks).await.unwrap();
    hosts.join("b", false, "j", &json!("placed")).await.unwrap();
    hosts.heartbeat(&host("b")).await.unwrap();
    // Its server was there before the machine joined, and is there again.
    rig.store.txn(Txn::of([Op::put("/t/servers/b", "")])).await.unwrap();
    let own = servers::Server::claim(rig.store.clone(), "b", said("b", "1")).await.unwrap();
    a.registry.catalog().register_service(on_node("b")).await.unwrap();
    let gone = async || {
        let (catalog, leader) = (a.registry.catalog(), a.registry.leader());
        servers::silence(&*rig.store, catalog, leader).await.unwrap();
    };

    rig.store.txn(Txn::of([Op::delete("/e/s/b")])).await.unwrap();
    gone().await;
    assert!(!hosts.heartbeat(&host("b")).await.unwrap(), "nobody spoke for it");
    assert_eq!(health(&a), [Status::Passing], "its agent is heard");

    rig.until("its agent is silent", || health(&a) == [Status::Critical]).await;
    own.say(&a.registry).await.unwrap();
    assert_eq!(health(&a), [Status::Critical], "its server is there, and its agent is not");

    // A machine that is no more has no agent.
    let options = crate::DeleteOptions::default();
    a.registry.objects().delete(KindId::Node, "", "b", &options).await.unwrap();
    let joined = || a.registry.now().get(KindId::Node, "", "b").is_some();
    rig.until("it is no machine", || !joined()).await;
    own.say(&a.registry).await.unwrap();
    rig.until("it is a server's node", || health(&a) == [Status::Passing]).await;
}

#[tokio::test]
async fn no_machine_joins_under_the_name_of_a_server_that_is_there() {
    let rig = Rig::new();
    let a = rig.server("a").await;
    let b = rig.server("b").await;
    let hosts = Hosts::start(a.registry.clone(), "a", &a.tasks).await.unwrap();
    let known = || a.registry.consul().contact().peers().iter().any(|peer| &*peer.name == "b");
    rig.until("a knows of b", known).await;
    for name in ["a", "b", "B"] {
        let refused = hosts.join(name, true, "j", &json!("placed")).await.unwrap_err();
        assert_eq!(
            refused.to_string(),
            format!("{name} is a server's own name; choose another --name")
        );
    }
    // Its name is free once it is gone.
    b.kill().await;
    rig.until("a knows that it is gone", || !known()).await;
    hosts.join("b", true, "j", &json!("placed")).await.unwrap();
}
