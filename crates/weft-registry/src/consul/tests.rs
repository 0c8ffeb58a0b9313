// SPDX-License-Identifier: Apache-2.0
//! Pairs, sessions and records over a registry with a memory store.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use weft_base::clock::Clock;
use weft_kinds::views::catalog::{CheckRecord, NodeRecord, Registration};
use weft_store::MemoryStore;

use super::*;
use crate::Registry;
use crate::catalog::ServiceRequest;

mod behind;
mod ending;

struct Rig {
    registry: Registry,
    time: Arc<weft_base::clock::ManualClock>,
    store: Arc<MemoryStore>,
}

async fn rig() -> Rig {
    let (clock, time) = Clock::manual();
    let store = Arc::new(MemoryStore::new(clock.clone()));
    let registry = Registry::open(store.clone(), clock, TaskGroup::new()).await.unwrap();
    let node = NodeRecord { node: "n1".into(), address: "127.0.0.1".into(), ..Default::default() };
    registry.catalog().register_node(&node, true).await.unwrap();
    Rig { registry, time, store }
}

impl Rig {
    fn handle(&self) -> &Handle {
        self.registry.consul()
    }

    async fn session(&self, id: &str, ttl_ms: u64, behavior: Behavior) -> Session {
        let session = Session {
            id: id.into(),
            namespace: "default".into(),
            node: "n1".into(),
            ttl_ms,
            behavior,
            lock_delay_ms: 15_000,
            ..Session::default()
        };
        self.handle().create_session(session).await.unwrap()
    }

    async fn lock(&self, key: &str, session: &str) -> bool {
        let key = keys::pair("default", key);
        let locked = self.handle().pairs(&key, |d| d.lock(&key, Bytes::new(), 0, session)).await;
        locked.unwrap().1
    }

    fn holder(&self, key: &str) -> Option<Arc<str>> {
        let state = self.handle().state();
        match &state.item(&keys::pair("default", key))?.what {
            What::Pair(pair) => Some(pair.session.clone()),
            _ => None,
        }
    }

    async fn until(&self, done: impl Fn(&State) -> bool) {
        while !done(&self.handle().state()) {
            self.store.tick().await.unwrap();
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn a_session_ends_twice_its_time_after_its_last_sign_of_life_and_its_locks_are_free() {
    let rig = rig().await;
    rig.session("s1", 10_000, Behavior::Release).await;
    rig.session("s2", 0, Behavior::Release).await;
    assert!(rig.lock("leader", "s1").await);
    assert!(rig.lock("leader", "s1").await, "again, by its holder");
    assert!(!rig.lock("leader", "s2").await);
    rig.time.advance(Duration::from_secs(15));
    rig.store.tick().await.unwrap();
    rig.handle().renew_session("default", "s1").await.unwrap();
    rig.time.advance(Duration::from_secs(15));
    rig.store.tick().await.unwrap();
    assert!(rig.handle().state().session("s1").is_some());
    rig.time.advance(Duration::from_secs(6));
    rig.until(|state| state.session("s1").is_none()).await;
    assert_eq!(rig.holder("leader").as_deref(), Some(""));
    let gone = rig.handle().renew_session("default", "s1").await;
    assert!(matches!(gone, Err(ConsulError::UnknownSession { .. })));
    assert!(!rig.lock("leader", "s2").await, "the delay of the last holder");
    rig.time.advance(Duration::from_secs(16));
    let delay = keys::delay(&keys::pair("default", "leader"));
    rig.until(|state| state.item(&delay).is_none()).await;
    assert!(rig.lock("leader", "s2").await);
}

#[tokio::test]
async fn a_session_of_behavior_delete_takes_its_pairs_with_it_however_many() {
    let rig = rig().await;
    rig.session("s1", 0, Behavior::Delete).await;
    for i in 0..100 {
        assert!(rig.lock(&format!("k/{i}"), "s1").await);
    }
    rig.handle().destroy_session("s1").await.unwrap();
    let state = rig.handle().state();
    assert_eq!(state.under(&keys::pair("default", "k/")).count(), 0);
    assert!(state.session("s1").is_none());
}

#[tokio::test]
async fn a_session_ends_with_its_node() {
    let rig = rig().await;
    rig.session("s1", 0, Behavior::Release).await;
    rig.registry.catalog().deregister_node("n1").await.unwrap();
    rig.until(|state| state.session("s1").is_none()).await;
}

#[tokio::test]
async fn writers_of_one_pair_overtake_each_other_without_a_loss() {
    let rig = rig().await;
    let key = keys::pair("default", "counter");
    let add = async |_: usize| {
        let read = |d: &mut Draft| {
            let old = d.get(&key).map_or(0, |seen| seen.pair.flags);
            d.set(&key, Bytes::new(), old + 1);
        };
        // Not `pairs`: that would let them go one after the other.
        rig.handle()
            .attempt(|state| {
                let mut draft = Draft::new(state);
                read(&mut draft);
                Ok::<_, ConsulError>((draft.into_txn()?, ()))
            })
            .await
            .unwrap();
    };
    futures_util::future::join_all((0..20).map(add)).await;
    let state = rig.handle().state();
    let What::Pair(pair) = &state.item(&key).unwrap().what else { panic!("no pair") };
    assert_eq!(pair.flags, 20);
}

#[tokio::test]
async fn records_are_compared_and_an_equal_one_moves_no_index() {
    let rig = rig().await;
    let put = |value: serde_json::Value| {
        rig.handle().change("t", move |_| {
            Ok::<_, ConsulError>((vec![Change::Put("a".into(), value.clone())], ()))
        })
    };
    let (first, ()) = put(json!({"x": 1})).await.unwrap();
    put(json!({"x": 1})).await.unwrap();
    let state = rig.handle().state();
    assert_eq!(state.record("t", "a").unwrap().1.modified, first);
    put(json!({"x": 2})).await.unwrap();
    assert!(rig.handle().state().record("t", "a").unwrap().1.modified > first);
}

#[tokio::test]
async fn a_registry_that_opens_again_knows_what_was_written() {
    let rig = rig().await;
    rig.session("s1", 10_000, Behavior::Release).await;
    assert!(rig.lock("leader", "s1").await);
    let clock = rig.registry.clock().clone();
    let again = Registry::open(rig.store.clone(), clock, TaskGroup::new()).await.unwrap();
    let state = again.consul().state();
    assert!(state.session("s1").is_some());
    assert_eq!(state.held_by("s1").count(), 1);
}

#[tokio::test]
async fn a_thousand_idle_waits_are_not_woken_by_another_key() {
    let rig = rig().await;
    let shelf = rig.handle().shelf();
    let mut waits: Vec<Waiter> = (0..500)
        .flat_map(|i| {
            let key = keys::pair("default", &format!("idle/{i}/"));
            [Topic::Key(key.as_str().into()), Topic::Under(key.into())]
        })
        .map(|topic| shelf.wait(topic))
        .collect();
    assert_eq!(shelf.waited_for(), 1000);
    let mut near = shelf.wait(Topic::Under(keys::pair("default", "id").into()));
    let write = async |key: &str| {
        let key = keys::pair("default", key);
        let set = |d: &mut Draft| {
            d.set(&key, Bytes::new(), 1);
            Ok(())
        };
        rig.handle().pairs(&key, set).await.unwrap();
    };
    write("other").await;
    for wait in waits.iter_mut().chain([&mut near]) {
        assert!(futures_util::poll!(std::pin::pin!(wait.moved())).is_pending());
    }
    write("idle/7/x").await;
    let mut woken = 0;
    for wait in &mut waits {
        woken += usize::from(futures_util::poll!(std::pin::pin!(wait.moved())).is_ready());
    }
    assert_eq!(woken, 1);
    assert!(futures_util::poll!(std::pin::pin!(near.moved())).is_ready());
    drop((waits, near));
    assert_eq!(shelf.waited_for(), 0);
}

#[tokio::test]
async fn a_transaction_over_many_services_checks_compares_little_of_those_that_stay() {
    let rig = rig().await;
    let check = |n: usize, notes: &str| CheckRecord {
        id: format!("c{n}").into(),
        namespace: "default".into(),
        node: "n1".into(),
        service_id: format!("s{n}").into(),
        notes: notes.into(),
        ..CheckRecord::default()
    };
    for n in 0..100 {
        let registration = Registration {
            id: format!("s{n}").into(),
            service: format!("s{n}").into(),
            node: "n1".into(),
            namespace: "default".into(),
            ..Registration::default()
        };
        let node = NodeRecord { node: "n1".into(), ..NodeRecord::default() };
        let (checks, more) = (vec![check(n, "old")], ServiceRequest::default());
        let request = ServiceRequest { registration, checks, node, ..more };
        rig.registry.catalog().register_service(request).await.unwrap();
    }
    let all = |_: &mut Draft, catalog: &mut CatalogDraft| {
        for n in 0..100 {
            let notes = if n == 50 { "new" } else { "old" };
            catalog.make(CatalogOp::SetCheck(check(n, notes)))?;
        }
        Ok(())
    };
    rig.handle().transact((&[], false), all).await.unwrap();
    let world = rig.registry.now();
    let changed = world.catalog().checks().filter(|(_, check)| &*check.notes == "new");
    assert_eq!(changed.count(), 1);
}
