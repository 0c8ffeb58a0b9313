// SPDX-License-Identifier: Apache-2.0
//! A seeded simulation over a real etcd: two servers' stores write, compare, delete and lease while
//! the etcd is killed, stopped for a moment or cut off under a call, and each server's clock jumps
//! by seconds or hours; watchers of different speed follow both. An oracle on the clients' side
//! knows what was acknowledged, and that what was refused outright was not done. Safety at every
//! step; when the faults end, liveness.
//!
//! A seed brings back what is asked of whom, in which order, which fault comes under which call,
//! and how far which clock jumps. It does not bring back how etcd's process, the wire and this one
//! were scheduled meanwhile: whether a call that a fault hit was done before or not at all, and
//! when a lease ends, differ from run to run, and the oracle takes either. Over memory and redb a
//! seed brings back everything (`redb/tests/sim.rs`).
//!
//! The clocks that jump are the servers', which only go on: by them history is let go and etcd is
//! compacted. Leases are counted by etcd, by its system's monotonic clock, which a step of the wall
//! clock does not move (drill F18 steps that one, under a server and its proxies). It cannot be set
//! under etcd alone: a Go program reads it from the kernel's page, past any library in between. As
//! much as a process can see of a jump is that it was stopped, which etcd is here, for longer than
//! leases last.
//!
//! `WEFT_SIM_SEEDS=50` runs more seeds than CI does.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use weft_base::clock::{Clock, ManualClock};
use weft_base::rng::Rng;

use self::leases::Leases;
use super::etcd::{Lagging, PATIENCE, Server, open_with};
use crate::{
    Compare, EtcdConfig, EventKind, Op, Retention, Revision, Store, StoreError, Txn, Watch,
    WatchError,
};

mod leases;

const KEYS: u64 = 12;
/// Every write is for as long as nobody wrote here: what was cut off can be ended so.
const FENCE: &str = "/fence";
const STEPS: usize = 150;
const SEEDS: u64 = 3;

type Told = Vec<(String, EventKind)>;

/// One watcher: what it was told since it listed, which is the log from there on.
struct Watcher {
    store: usize,
    prefix: &'static str,
    watch: Watch,
    /// How much had happened when it listed.
    from: usize,
    told: Told,
    /// What it was told of keys on leases.
    leased: leases::Seen,
    last: Revision,
    slowness: u64,
}

struct Sim {
    rng: Rng,
    server: Server,
    /// Before the second server's member.
    wire: Lagging,
    stores: [Arc<dyn Store>; 2],
    /// The servers' own.
    times: [Arc<ManualClock>; 2],
    leases: Leases,
    fence: Revision,
    /// Values and the revisions that wrote them.
    model: BTreeMap<String, (String, Revision)>,
    log: Told,
    watchers: Vec<Watcher>,
    written: u64,
    lost: u64,
    relisted: u64,
    jumps: u64,
}

enum Fault {
    Kill,
    Stop,
    Cut,
}

impl Sim {
    async fn new(seed: u64) -> Self {
        let server = Server::start();
        let [(clock, time), (other, other_time)] = [Clock::manual(), Clock::manual()];
        let first = server.open_with(small(), clock).await;
        let wire = Lagging::before(server.client()).await;
        let config = EtcdConfig::parse(&format!("etcd://{}/t", wire.address())).unwrap();
        let second = open_with(config, other, small()).await;
        let fence = first.txn(Txn::of([Op::put(FENCE, "0")])).await.unwrap().revision;
        let mut sim = Self {
            rng: Rng::seeded(seed),
            server,
            wire,
            stores: [first, second],
            times: [time, other_time],
            leases: Leases::default(),
            fence,
            model: BTreeMap::new(),
            log: Told::new(),
            watchers: Vec::new(),
            written: 0,
            lost: 0,
            relisted: 0,
            jumps: 0,
        };
        for (store, prefix, slowness) in [(0, "/", 1), (1, "/", 2), (1, "/k/1", 3), (0, "/", 60)] {
            sim.watch(store, prefix, slowness).await;
        }
        sim
    }

    async fn watch(&mut self, store: usize, prefix: &'static str, slowness: u64) {
        let (at, watch) = loop {
            let at = self.barrier(store).await;
            match self.stores[store].watch(prefix, at.next()) {
                Ok(watch) => break (at, watch),
                Err(WatchError::Compacted { .. } | WatchError::TooSlow) => {}
                Err(error) => panic!("{error}"),
            }
        };
        let (from, told) = (self.log.len(), Told::new());
        let leased = leases::Seen::default();
        self.watchers.push(Watcher {
            store,
            prefix,
            watch,
            from,
            told,
            leased,
            last: at,
            slowness,
        });
    }

    /// A store's answer, however long the etcd needs to come back.
    async fn barrier(&self, store: usize) -> Revision {
        let answered = async {
            loop {
                if let Ok(revision) = self.stores[store].barrier().await {
                    return revision;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, answered).await.expect("it comes back")
    }

    fn txn(&mut self) -> Txn {
        let keys: BTreeSet<String> =
            (0..1 + self.rng.below(4)).map(|_| format!("/k/{}", self.rng.below(KEYS))).collect();
        let mut ops = Vec::new();
        for key in &keys {
            self.written += 1;
            ops.push(match self.rng.below(5) {
                0 => Op::delete(key.as_str()),
                _ => Op::put(key.as_str(), self.written.to_string()),
            });
        }
        let txn = Txn::of(ops);
        let Some(key) = keys.first().filter(|_| self.rng.below(2) == 0) else { return txn };
        let stale = self.rng.below(4) == 0;
        txn.when(match self.model.get(key) {
            Some((_, at)) if !stale => Compare::ModRevision(key.as_str().into(), *at),
            None if stale => Compare::Exists(key.as_str().into()),
            _ => Compare::Absent(key.as_str().into()),
        })
    }

    fn holds(&self, txn: &Txn) -> bool {
        txn.compares.iter().all(|compare| {
            let known = self.model.get(&**compare.key());
            match compare {
                Compare::Absent(_) => known.is_none(),
                Compare::Exists(_) => known.is_some(),
                Compare::ModRevision(_, at) => known.is_some_and(|(_, known)| known == at),
            }
        })
    }

    fn apply(&mut self, txn: &Txn, at: Revision) {
        for op in &txn.ops {
            match op {
                Op::Put { key, value, .. } => {
                    let value = String::from_utf8(value.to_vec()).unwrap();
                    self.model.insert(key.to_string(), (value, at));
                    self.log.push((key.to_string(), EventKind::Put));
                }
                Op::Delete { key } if self.model.remove(&**key).is_some() => {
                    self.log.push((key.to_string(), EventKind::Delete));
                }
                _ => {}
            }
        }
    }

    /// A write, with a fault under it or without one.
    async fn write(&mut self, fault: Option<Fault>) {
        let txn = self.txn();
        let held = self.holds(&txn);
        let txn = txn.when(Compare::ModRevision(FENCE.into(), self.fence));
        let at = usize::try_from(self.rng.below(2)).unwrap();
        let (before, mut during) = (self.rng.below(20), 50 + self.rng.below(400));
        if let Some(Fault::Stop) = fault {
            // For longer than leases last, now and then.
            during *= 5;
        }
        let store = self.stores[at].clone();
        let answer = match fault {
            None => store.txn(txn.clone()).await,
            Some(fault) => {
                let trouble = async {
                    tokio::time::sleep(Duration::from_millis(before)).await;
                    self.server.trouble(&fault, &self.wire);
                    tokio::time::sleep(Duration::from_millis(during)).await;
                    self.server.heal(&fault);
                };
                tokio::join!(store.txn(txn.clone()), trouble).0
            }
        };
        match answer {
            Ok(out) => {
                assert_eq!(out.succeeded, held, "{txn:?}");
                if out.succeeded {
                    self.apply(&txn, out.revision);
                }
            }
            Err(StoreError::Unreachable { unknown, .. }) => {
                self.lost += 1;
                self.resolve(&txn, held, unknown).await;
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Moves the fence, so that what was cut off and is under way yet, in a socket or in the etcd,
    /// comes too late whenever it comes.
    async fn end_what_is_under_way(&self) -> Revision {
        let moved = async {
            loop {
                self.barrier(0).await;
                match self.stores[0].get(FENCE).await {
                    Ok((_, Some(now))) if now.modified > self.fence => return now.modified,
                    _ => {}
                }
                // Each try is for the same revision, so one of them is done, answered or not.
                let holds = Compare::ModRevision(FENCE.into(), self.fence);
                match self.stores[0].txn(Txn::of([Op::put(FENCE, "")]).when(holds)).await {
                    Ok(_) | Err(StoreError::Unreachable { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, moved).await.expect("it comes back")
    }

    /// Finds out by reading whether a write whose answer was lost was done: all of it or nothing,
    /// and only if that was open.
    async fn resolve(&mut self, txn: &Txn, held: bool, unknown: bool) {
        let fence = self.end_what_is_under_way().await;
        let there = self.read(0).await;
        let mut done = BTreeSet::new();
        let mut at = Revision(0);
        for op in &txn.ops {
            let found = there.get(&**op.key());
            match op {
                Op::Put { value, .. } => {
                    let own = found.filter(|(text, _)| text.as_bytes() == value);
                    at = at.max(own.map_or(at, |(_, modified)| *modified));
                    done.insert(own.is_some());
                }
                _ if self.model.contains_key(&**op.key()) => {
                    done.insert(found.is_none());
                }
                _ => {}
            }
        }
        assert!(done.len() <= 1, "half of {txn:?} was done");
        if done.contains(&true) {
            assert!(held && unknown, "it was done though it was refused: {txn:?}");
            assert!(at < fence, "it was done after {fence}: {txn:?}");
            self.apply(txn, at);
        }
        self.fence = fence;
        self.log.push((FENCE.to_owned(), EventKind::Put));
    }

    async fn read(&self, store: usize) -> BTreeMap<String, (String, Revision)> {
        let page = loop {
            self.barrier(store).await;
            if let Ok(page) = self.stores[store].range("/k/", 0, None).await {
                break page;
            }
        };
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        page.entries.iter().map(|(k, e)| (k.to_string(), (text(&e.value), e.modified))).collect()
    }

    /// Both servers show what was acknowledged, and nothing else.
    async fn check(&self) {
        for store in 0..2 {
            assert_eq!(self.read(store).await, self.model, "at {store}, {} lost", self.lost);
        }
    }

    /// In order, without a gap or a repeat. One that was too slow lists again.
    async fn follow(&mut self, all: bool) {
        for at in (0..self.watchers.len()).rev() {
            let watcher = &mut self.watchers[at];
            if !all && self.rng.below(watcher.slowness) != 0 {
                continue;
            }
            match watcher.watch.try_next() {
                Ok(events) => {
                    for event in events {
                        assert!(event.revision >= watcher.last, "{event:?} after {}", watcher.last);
                        watcher.last = event.revision;
                        // Nobody writes at the moment when a lease ends: those keys are apart.
                        match event.key.starts_with(leases::UNDER) {
                            true => self.leases.told(&mut watcher.leased, &event),
                            false => watcher.told.push((event.key.to_string(), event.kind)),
                        }
                    }
                    let own = |(key, _): &&(String, EventKind)| key.starts_with(watcher.prefix);
                    let due: Told = self.log[watcher.from..].iter().filter(own).cloned().collect();
                    let told = &watcher.told;
                    assert!(told.len() <= due.len(), "more than happened: {told:?} of {due:?}");
                    assert_eq!(told, &due[..told.len()]);
                }
                Err(WatchError::Closed) => panic!("a watch ended by itself"),
                Err(_) => {
                    let Watcher { store, prefix, slowness, .. } = self.watchers.remove(at);
                    self.relisted += 1;
                    self.watch(store, prefix, slowness).await;
                    self.relist_leases(store).await;
                }
            }
        }
    }

    async fn step(&mut self) {
        let fault = match self.rng.below(100) {
            0..=2 => Some(Fault::Kill),
            3..=4 => Some(Fault::Stop),
            5..=8 => Some(Fault::Cut),
            _ => None,
        };
        self.write(fault).await;
        match self.rng.below(100) {
            0..=19 => self.lease().await,
            20..=27 => self.jump().await,
            _ => {}
        }
        self.follow(false).await;
        if self.rng.below(20) == 0 {
            self.check().await;
            self.check_leases().await;
        }
    }

    /// A server's clock goes on by seconds or hours at once: it lets go of history that nobody had
    /// the time to read, and etcd of what all had had.
    async fn jump(&mut self) {
        let at = usize::try_from(self.rng.below(2)).unwrap();
        let far = self.rng.below(4) == 0;
        let by = if far { 7_200_000 } else { self.rng.below(6_000) };
        self.times[at].advance(Duration::from_millis(by));
        self.jumps += 1;
        match self.stores[at].tick().await {
            Ok(_) | Err(StoreError::Unreachable { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }

    /// The faults are over: writes are answered, every watcher comes to the present.
    async fn come_to_rest(&mut self) {
        self.barrier(0).await;
        self.barrier(1).await;
        // No fault, no refusal; but that the machine stood still may be one yet.
        let (mut answered, mut tries) = (0, 0);
        while answered < 10 {
            let lost = self.lost;
            self.write(None).await;
            answered = if self.lost == lost { answered + 1 } else { 0 };
            tries += 1;
            assert!(tries < 100, "{} refusals", self.lost);
        }
        self.check().await;
        let all = async {
            loop {
                self.follow(true).await;
                if self.watchers.iter().all(|w| w.is_complete(&self.log)) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, all).await.expect("all come to the present");
        self.leases_end().await;
    }
}

impl Watcher {
    fn is_complete(&self, log: &Told) -> bool {
        let own = log[self.from..].iter().filter(|(key, _)| key.starts_with(self.prefix));
        own.count() == self.told.len()
    }
}

impl Server {
    fn trouble(&mut self, fault: &Fault, wire: &Lagging) {
        match fault {
            Fault::Kill => self.kill(),
            Fault::Stop => self.signal("-STOP"),
            Fault::Cut => wire.lag(0),
        }
    }

    fn heal(&mut self, fault: &Fault) {
        match fault {
            Fault::Kill => self.restart(),
            Fault::Stop => self.signal("-CONT"),
            Fault::Cut => {}
        }
    }

    fn signal(&self, which: &str) {
        let sent = Command::new("kill").args([which, &self.pid().to_string()]).status().unwrap();
        assert!(sent.success());
    }
}

/// A short history, so that slow watchers are left behind.
fn small() -> Retention {
    Retention { events: 60, ..Retention::default() }
}

#[tokio::test]
async fn etcd_does_what_its_clients_were_told_while_it_is_killed_stopped_and_cut_off() {
    #[allow(clippy::disallowed_methods)] // how long a test runs is said by whoever runs it
    let seeds = std::env::var("WEFT_SIM_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(SEEDS);
    let (mut lost, mut relisted, mut written, mut jumps) = (0, 0, 0, 0);
    let (mut ended, mut kept) = (0, 0);
    for seed in 1..=seeds {
        println!("seed {seed}");
        let mut sim = Sim::new(seed).await;
        for _ in 0..STEPS {
            sim.step().await;
        }
        sim.come_to_rest().await;
        lost += sim.lost;
        relisted += sim.relisted;
        written += sim.written;
        jumps += sim.jumps;
        ended += sim.leases.ended();
        kept += sim.leases.kept;
    }
    println!(
        "{seeds} seeds: {written} writes, {lost} answers lost, {relisted} watchers relisted, \
         {jumps} jumps of a clock, {ended} leases ended, {kept} signs of life"
    );
    assert!(lost > 0 && relisted > 0 && written > 300 * seeds, "{lost} {relisted} {written}");
    assert!(jumps > 0 && ended > 5 && kept > 0, "{jumps} {ended} {kept}");
}
