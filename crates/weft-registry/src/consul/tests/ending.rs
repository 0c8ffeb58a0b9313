// SPDX-License-Identifier: Apache-2.0
//! A session's end and a lock that is asked for meanwhile, in every order that the store may see.

use super::*;
use crate::doctored::Doctored;

/// What became of a lock that was written after so many writes of the session's end: whether it
/// was taken, and the state.
async fn lock_amid_the_end(after: usize) -> (bool, State) {
    let (clock, _time) = Clock::manual();
    let store = Doctored::new(clock.clone());
    let registry = Registry::open(store.clone(), clock, TaskGroup::new()).await.unwrap();
    let node = NodeRecord { node: "n1".into(), address: "127.0.0.1".into(), ..Default::default() };
    registry.catalog().register_node(&node, true).await.unwrap();
    let session = Session {
        id: "s1".into(),
        namespace: "default".into(),
        node: "n1".into(),
        behavior: Behavior::Delete,
        lock_delay_ms: 15_000,
        ..Session::default()
    };
    registry.consul().create_session(session).await.unwrap();
    let state = registry.consul().state();
    let key = keys::pair("default", "leader");
    let mut draft = Draft::new(&state);
    assert!(draft.lock(&key, Bytes::new(), 0, "s1").unwrap());
    store.precede(keys::SESSIONS, after, draft.into_txn().unwrap());
    registry.consul().destroy_session("s1").await.unwrap();
    let taken = store.preceded();
    (taken.expect("the end writes the session so often"), registry.consul().state())
}

#[tokio::test]
async fn a_lock_taken_just_before_its_session_ends_is_let_go_as_the_session_says() {
    let (taken, state) = lock_amid_the_end(0).await;
    assert!(taken, "the session was alive");
    let key = keys::pair("default", "leader");
    assert!(state.session("s1").is_none() && state.ghosts().is_empty());
    assert!(state.item(&key).is_none(), "behavior delete");
    assert!(state.item(&keys::delay(&key)).is_some(), "its delay runs");
}

#[tokio::test]
async fn a_session_that_is_ending_takes_no_lock() {
    let (taken, state) = lock_amid_the_end(1).await;
    assert!(!taken);
    assert!(state.session("s1").is_none() && state.ghosts().is_empty());
    assert!(state.item(&keys::pair("default", "leader")).is_none());
}

#[tokio::test]
async fn an_end_that_was_begun_is_finished_by_whoever_finds_it() {
    let rig = rig().await;
    let session = rig.session("s1", 0, Behavior::Delete).await;
    assert!(rig.lock("leader", "s1").await);
    let at = keys::session("default", "n1", "s1");
    let ending = serde_json::to_vec(&Session { ending: true, ..session }).unwrap();
    rig.store.txn(Txn::of([Op::put(at, ending)])).await.unwrap();
    rig.until(|state| state.session("s1").is_none()).await;
    assert_eq!(rig.holder("leader"), None, "behavior delete");
    let key = keys::pair("default", "leader");
    assert!(rig.handle().state().item(&keys::delay(&key)).is_some());
}
