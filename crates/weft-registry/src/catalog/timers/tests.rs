// SPDX-License-Identifier: Apache-2.0
//! Deadlines under a clock of our own.

use weft_kinds::views::catalog::CheckStatus;
use weft_kinds::views::check::{CheckDefinition, Probe};
use weft_kinds::world::{StoreKey, World};

use super::*;

fn check(id: &str, definition: CheckDefinition) -> CheckRecord {
    let record = CheckRecord {
        id: id.into(),
        namespace: "default".into(),
        node: "n".into(),
        service_id: "web".into(),
        ..CheckRecord::default()
    };
    record.with(&definition)
}

fn ttl(ttl_ms: u64) -> CheckRecord {
    let probe = Probe::Ttl { ttl_ms };
    check("t", CheckDefinition { probe, agent: true, ..CheckDefinition::default() })
}

fn world(check: &CheckRecord) -> World {
    let mut world = World::new();
    let at = StoreKey::Check(key(&check.id)).to_string();
    world.apply(&at, Some(&serde_json::to_vec(check).unwrap()), 1);
    world
}

fn key(id: &str) -> CheckKey {
    CheckKey { namespace: "default".into(), node: "n".into(), id: id.into() }
}

#[test]
fn a_ttl_expires_once_and_a_beat_moves_it() {
    let ttl = ttl(100);
    let world = world(&ttl);
    let mut timers = Timers::default();
    timers.watch(&ttl, Mono(0));
    assert_eq!(timers.next(), Some(Mono(100)));
    timers.beat(&key("t"), Mono(60));
    timers.watch(&ttl, Mono(90)); // the same definition again is no sign of life
    assert_eq!(timers.step(world.catalog(), Mono(159)), []);
    assert_eq!(timers.step(world.catalog(), Mono(160)), [Due::Expired(key("t"))]);
    assert_eq!(timers.step(world.catalog(), Mono(9999)), [], "expired once");
    timers.beat(&key("t"), Mono(10_000));
    assert_eq!(timers.next(), Some(Mono(10_100)), "a late beat arms it again");
    let empty = World::new();
    assert_eq!(timers.step(empty.catalog(), Mono(20_000)), [], "no definition, no expiry");
}

#[test]
fn what_others_wrote_to_the_catalog_is_not_timed() {
    let probe = Probe::Ttl { ttl_ms: 100 };
    let c = check("t", CheckDefinition { probe, ..CheckDefinition::default() });
    let mut timers = Timers::default();
    timers.watch(&ttl(100), Mono(0));
    timers.watch(&c, Mono(50)); // the agent's check became one that somebody else writes
    assert_eq!(timers.next(), None);
    assert_eq!(timers.step(world(&c).catalog(), Mono(9_999)), []);
}

#[test]
fn an_output_is_flushed_at_the_first_date_given() {
    let c = ttl(1_000_000);
    let world = world(&c);
    let mut timers = Timers::default();
    timers.flush_at(&key("t"), Mono(50));
    timers.flush_at(&key("t"), Mono(80));
    assert_eq!(timers.step(world.catalog(), Mono(50)), [Due::Flush(key("t"))]);
    assert_eq!(timers.step(world.catalog(), Mono(80)), []);
}

#[test]
fn reaps_only_what_stayed_critical_for_all_of_the_time() {
    let probe = Probe::tcp("127.0.0.1:1");
    let definition =
        CheckDefinition { probe, deregister_after_ms: 5_000, ..CheckDefinition::default() };
    // One that was only written to the catalog is for whoever asks it to act upon.
    let written = check("h", definition.clone());
    let c = check("h", CheckDefinition { agent: true, ..definition });
    let mut world = world(&c);
    let mut timers = Timers::default();
    timers.watch(&written, Mono(0));
    assert_eq!(timers.next(), None);
    timers.watch(&c, Mono(0));
    assert_eq!(timers.step(world.catalog(), Mono(1_000)), []);
    let at = StoreKey::CheckStatus(key("h")).to_string();
    let mut tell = |status| {
        let status = CheckStatus { status, ..CheckStatus::default() };
        world.apply(&at, Some(&serde_json::to_vec(&status).unwrap()), 7);
        world.clone()
    };
    let passing = tell(Status::Passing);
    assert_eq!(timers.step(passing.catalog(), Mono(4_000)), [], "recovered");
    let critical = tell(Status::Critical);
    assert_eq!(timers.step(critical.catalog(), Mono(7_000)), [], "critical anew");
    assert_eq!(timers.step(critical.catalog(), Mono(11_999)), []);
    let reap = Due::Reap { key: key("h"), service_id: "web".into() };
    assert_eq!(timers.step(critical.catalog(), Mono(13_000)), [reap]);
}

#[test]
fn an_expiry_that_was_not_written_falls_due_again_unless_it_was_renewed() {
    let c = ttl(100);
    let world = world(&c);
    let mut timers = Timers::default();
    timers.watch(&c, Mono(0));
    assert_eq!(timers.step(world.catalog(), Mono(100)), [Due::Expired(key("t"))]);
    timers.again(&key("t"), Mono(100));
    assert_eq!(timers.step(world.catalog(), Mono(1_099)), []);
    assert_eq!(timers.step(world.catalog(), Mono(1_100)), [Due::Expired(key("t"))]);
    assert!(timers.is_expired(&key("t"), Mono(1_100)));
    timers.beat(&key("t"), Mono(1_150));
    timers.again(&key("t"), Mono(1_200));
    assert_eq!(timers.step(world.catalog(), Mono(1_249)), []);
    assert_eq!(timers.step(world.catalog(), Mono(1_250)), [Due::Expired(key("t"))]);
    assert_eq!(timers.step(world.catalog(), Mono(9_000)), []);
}
