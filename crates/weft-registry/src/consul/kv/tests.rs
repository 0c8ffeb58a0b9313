// SPDX-License-Identifier: Apache-2.0
//! Verbs on pairs, one look at a time.

use std::sync::Arc;

use weft_store::{Event, EventKind, Revision};

use super::*;
use crate::consul::Topic;

fn put(state: &mut State, revision: u64, key: &str, pair: &Pair) {
    let value: Bytes = pair.write().unwrap().into();
    let (revision, kind) = (Revision(revision), EventKind::Put);
    let class = weft_store::Class::Synced;
    state.apply(&Event { revision, key: key.into(), kind, value, prev: None, class });
}

fn delete(state: &mut State, revision: u64, key: &str) {
    let (revision, kind) = (Revision(revision), EventKind::Delete);
    let class = weft_store::Class::Synced;
    let value = Bytes::new();
    state.apply(&Event { revision, key: key.into(), kind, value, prev: None, class });
}

fn pair(value: &str) -> Pair {
    Pair { value: Bytes::copy_from_slice(value.as_bytes()), ..Pair::default() }
}

#[test]
fn values_are_binary_safe() {
    let pair = Pair {
        flags: u64::MAX,
        lock_index: 3,
        session: "s\"1".into(),
        value: Bytes::from_static(b"\n\0\xff{}\n"),
    };
    assert_eq!(Pair::read(&pair.write().unwrap()), Some(pair));
}

#[test]
fn an_index_moves_only_for_what_a_query_sees() {
    let mut state = State::default();
    put(&mut state, 5, "/k/v/default/a/x", &pair("1"));
    put(&mut state, 6, "/k/v/default/b", &pair("1"));
    let under = |p: &str| Topic::Under(format!("/k/v/default/{p}").into());
    let key = |k: &str| Topic::Key(format!("/k/v/default/{k}").into());
    assert_eq!(state.index(&under("a/")), 5);
    assert_eq!(state.index(&under("")), 6);
    assert_eq!(state.index(&key("a/x")), 5);
    assert_eq!(state.index(&key("nope")), 1);
    delete(&mut state, 9, "/k/v/default/a/x");
    assert_eq!(state.index(&under("a/")), 9, "a deletion counts");
    assert_eq!(state.index(&key("a/x")), 9);
    assert_eq!(state.index(&key("b")), 6);
    assert_eq!(state.index(&under("b")), 6);
}

#[test]
fn each_verb_of_a_draft_sees_those_before_it() {
    let mut state = State::default();
    put(&mut state, 5, "/k/v/default/a", &pair("1"));
    let mut draft = Draft::new(&state);
    assert!(!draft.cas("/k/v/default/a", Bytes::from_static(b"2"), 0, 4));
    assert!(draft.cas("/k/v/default/a", Bytes::from_static(b"2"), 0, 5));
    assert!(!draft.cas("/k/v/default/a", Bytes::from_static(b"3"), 0, 5), "changed just now");
    draft.set("/k/v/default/b", Bytes::from_static(b"4"), 7);
    assert_eq!(draft.tree("/k/v/default/").len(), 2);
    draft.delete_tree("/k/v/default/");
    assert!(draft.get("/k/v/default/a").is_none());
    let txn = draft.into_txn().unwrap();
    assert_eq!(txn.ops, [Op::delete("/k/v/default/a")], "b never was");
    assert!(txn.compares.contains(&Compare::ModRevision("/k/v/default/a".into(), Revision(5))));
    assert!(txn.compares.contains(&Compare::Absent("/k/v/default/b".into())));
}

#[test]
fn an_equal_pair_is_not_written_again() {
    let mut state = State::default();
    put(&mut state, 5, "/k/v/default/a", &pair("1"));
    let mut draft = Draft::new(&state);
    draft.set("/k/v/default/a", Bytes::from_static(b"1"), 0);
    assert!(!draft.writes());
    assert_eq!(draft.into_txn().unwrap().ops, []);
}

#[test]
fn a_lock_needs_a_session_and_has_one_holder() {
    let mut state = State::default();
    let mut draft = Draft::new(&state);
    let none = draft.lock("/k/v/default/a", Bytes::new(), 0, "nope");
    assert!(matches!(none, Err(ConsulError::InvalidSession { .. })));
    drop(draft);
    let holder = Pair { session: "s1".into(), lock_index: 1, ..pair("1") };
    put(&mut state, 5, "/k/v/default/a", &holder);
    let mut draft = Draft::new(&state);
    assert!(!draft.unlock("/k/v/default/a", Bytes::new(), 0, "s2"));
    assert!(draft.unlock("/k/v/default/a", Bytes::new(), 0, "s1"));
    let free = draft.get("/k/v/default/a").unwrap();
    assert_eq!((&*free.pair.session, free.pair.lock_index), ("", 1));
    assert_eq!(state.ghosts(), [Arc::<str>::from("s1")], "a holder that is no session");
}
