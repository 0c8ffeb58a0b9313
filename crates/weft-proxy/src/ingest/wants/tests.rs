// SPDX-License-Identifier: Apache-2.0
//! What is asked for, answered and given back, with a table and a clock that the test moves.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use weft_base::clock::{Clock, ManualClock};
use weft_model::{ResourceName, Root};
use weft_xds::Transaction;

use super::*;
use crate::ingest::source::transaction;
use crate::table::Builder;
use crate::tests::bed::{fqdn, http_service};

/// A proxy's ingest without sockets.
struct Bench {
    wants: Wants,
    builder: Builder,
    clock: Clock,
    hand: Arc<ManualClock>,
    table: Arc<Table>,
}

impl Bench {
    fn new(limits: OnDemandLimits) -> Self {
        let (clock, hand) = Clock::manual();
        let mut wants = Wants::new(limits);
        wants.connected = true;
        let builder = Builder::new(1, clock.clone(), "own".into());
        Self { wants, builder, clock, hand, table: Arc::default() }
    }

    fn apply(&mut self, transaction: Transaction) {
        self.wants.take(&transaction);
        self.builder.set_unheld(self.wants.unheld());
        let upserts = transaction.upserts.into_iter().map(|u| (u.name, u.resource)).collect();
        self.table = self.builder.apply(1, upserts, &transaction.removes).0;
        self.wants.settle(&self.table);
    }

    /// What the server sends for these services and absent names, and takes away.
    fn bring(&mut self, services: &[&str], absent: &[&str], gone: &[&str]) {
        let resources = services.iter().flat_map(|name| http_service(name, &[]));
        let removes: Vec<ResourceName> =
            gone.iter().flat_map(|name| http_service(name, &[])).map(|(name, _)| name).collect();
        let absent = absent.iter().map(|name| (*name).into()).collect();
        let brought = transaction(1, resources).unwrap();
        self.apply(Transaction { absent, removes, partial: true, ..brought });
    }

    fn ask(&mut self, name: &str) -> oneshot::Receiver<Answer> {
        let (answer, rx) = oneshot::channel();
        self.wants.ask(Ask { name: name.into(), answer }, &self.table);
        rx
    }

    /// Asks and is given.
    fn fetch(&mut self, name: &str) {
        let mut answer = self.ask(name);
        self.bring(&[name], &[], &[]);
        assert_eq!(answer.try_recv(), Ok(Answer::Held), "{name}");
    }

    fn pass(&mut self, time: Duration) {
        self.hand.advance(time);
        self.wants.tidy(&self.table, self.clock.now());
    }

    fn wanted(&self) -> Vec<String> {
        self.wants.wanted.borrow().iter().map(ToString::to_string).collect()
    }
}

fn limits() -> OnDemandLimits {
    OnDemandLimits { backends_max: 3, absent_max: 2, ..OnDemandLimits::default() }
}

fn fqdns(names: &[&str]) -> Vec<String> {
    names.iter().map(|n| fqdn(n)).collect()
}

const IDLE: Duration = Duration::from_secs(60);

#[test]
fn those_who_wait_are_answered_by_what_comes_or_by_its_absence() {
    let mut bench = Bench::new(limits());
    assert_eq!(bench.ask("a").try_recv(), Ok(Answer::Absent), "all is held: nothing is asked");
    bench.bring(&["near"], &[], &[]);
    assert_eq!(bench.ask("near").try_recv(), Ok(Answer::Held));
    let mut waiting = [bench.ask("a"), bench.ask("a"), bench.ask("b")];
    assert_eq!(bench.wanted(), ["a", "b"]);
    bench.bring(&[], &[], &[]);
    assert!(waiting.iter_mut().all(|w| w.try_recv().is_err()), "something else was pushed");
    bench.bring(&["a"], &["b"], &[]);
    let answers: Vec<Answer> = waiting.iter_mut().map(|w| w.try_recv().unwrap()).collect();
    assert_eq!(answers, [Answer::Held, Answer::Held, Answer::Absent]);
    // What is held goes by its own name; what is absent stays asked for, since it may come.
    assert_eq!(bench.wanted(), ["a.shop.svc.cluster.local", "b"]);
    assert_eq!(bench.ask("b").try_recv(), Ok(Answer::Absent));
    bench.bring(&["b"], &[], &[]);
    assert_eq!(bench.wanted(), fqdns(&["a", "b"]));
    // A host that is deleted is absent from then on, without being asked for again.
    bench.bring(&[], &[], &["a"]);
    assert_eq!(bench.ask(&fqdn("a")).try_recv(), Ok(Answer::Absent));
    assert_eq!(bench.wanted(), fqdns(&["a", "b"]));
}

#[test]
fn absent_names_are_few_and_who_gives_up_is_forgotten() {
    let mut bench = Bench::new(limits());
    bench.bring(&[], &[], &[]);
    for name in ["a", "b", "c"] {
        let mut answer = bench.ask(name);
        bench.bring(&[], &[name], &[]);
        assert_eq!(answer.try_recv(), Ok(Answer::Absent));
    }
    assert_eq!(bench.wanted(), ["b", "c"], "the oldest goes");
    let (given_up, waits) = (bench.ask("d"), bench.ask("e"));
    drop(given_up);
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.wanted(), ["b", "c", "e"]);
    // The server says that everything is held: nobody waits any more, nothing is asked for.
    bench.apply(Transaction::default());
    assert_eq!({ waits }.try_recv(), Ok(Answer::Absent));
    assert!(bench.wanted().is_empty());
}

#[test]
fn the_longest_unused_are_given_back_when_there_are_too_many() {
    let mut bench = Bench::new(limits());
    bench.bring(&["near"], &[], &[]);
    for name in ["a", "b", "c", "d"] {
        bench.fetch(name);
        bench.hand.advance(Duration::from_secs(2));
    }
    bench.pass(Duration::ZERO);
    assert_eq!(bench.wanted(), fqdns(&["a", "b", "c", "d"]), "none was idle long enough");
    bench.hand.advance(IDLE);
    bench.table.host("a").unwrap().touch(bench.clock.now().0);
    bench.wants.connected = false;
    bench.pass(Duration::ZERO);
    assert_eq!(bench.wanted(), fqdns(&["a", "b", "c", "d"]), "nobody could bring it again");
    bench.wants.connected = true;
    bench.pass(Duration::ZERO);
    // Five are two too many; `near` was never asked for, so it is not given back.
    assert_eq!(bench.wanted(), fqdns(&["a", "d"]));
    let evicted = ["b", "c"].map(|n| Root::host(fqdn(n)));
    assert_eq!(bench.wants.notes().evicted, evicted.into());
    // Its going is no news of its end.
    bench.bring(&[], &[], &["b", "c"]);
    assert_eq!(bench.wanted(), fqdns(&["a", "d"]));
    bench.pass(IDLE);
    assert_eq!(bench.wanted(), fqdns(&["a", "d"]), "three fit");
    // Asked for again, it is no longer away.
    bench.fetch("b");
    assert_eq!(bench.wants.notes().evicted, [Root::host(fqdn("c"))].into());
    // One that was deleted meanwhile is not kept either.
    let mut answer = bench.ask(&fqdn("c"));
    bench.bring(&[], &[&fqdn("c")], &[]);
    assert_eq!(answer.try_recv(), Ok(Answer::Absent));
    assert!(bench.wants.notes().evicted.is_empty());
}

#[test]
fn bytes_are_a_reason_too() {
    let few = OnDemandLimits { bytes_max: 1_500, ..OnDemandLimits::default() };
    let mut bench = Bench::new(few);
    bench.bring(&[], &[], &[]);
    for name in ["a", "b", "c", "d", "e"] {
        bench.fetch(name);
        bench.hand.advance(Duration::from_secs(2));
    }
    assert!(bench.wants.bytes > 1_500, "{}", bench.wants.bytes);
    bench.pass(IDLE);
    let left = bench.wanted();
    assert!(!left.is_empty() && left.len() < 5 && left.contains(&fqdn("e")), "{left:?}");
    let gone: Vec<&str> =
        ["a", "b", "c", "d"].into_iter().filter(|n| !left.contains(&fqdn(n))).collect();
    bench.bring(&[], &[], &gone);
    assert!(bench.wants.bytes <= 1_500, "{}", bench.wants.bytes);
}

/// Everything fitted until now: what goes was in use, and may be asked for again.
#[test]
fn what_goes_when_the_mesh_becomes_too_large_is_kept_in_the_file() {
    let mut bench = Bench::new(limits());
    let all = ["a", "b"].iter().flat_map(|name| http_service(name, &[]));
    bench.apply(transaction(1, all).unwrap());
    bench.bring(&[], &[], &["b"]);
    assert_eq!(bench.wants.notes().evicted, [Root::host(fqdn("b"))].into());
    assert!(bench.wants.notes().partial && bench.table.unheld.partial);
    let mut answer = bench.ask("b");
    assert!(answer.try_recv().is_err(), "it is asked for, not called absent");
}
