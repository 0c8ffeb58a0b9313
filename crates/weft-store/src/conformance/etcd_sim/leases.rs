// SPDX-License-Identifier: Apache-2.0
//! Leases in the simulation. Each has keys of its own, written together once; nobody else touches
//! them, so whoever finds them gone knows that the lease ended. It may not end before its time
//! since the last sign of life that was acknowledged, as this process's clock counts it; it takes
//! all its keys at one revision, which everybody is told alike; it never comes back; and it ends.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::Sim;
use crate::{Class, Event, EventKind, LeaseId, Op, Revision, StoreError, Txn};

/// Where the keys on leases are.
pub const UNDER: &str = "/l/";
/// Of each lease.
const KEYS: [&str; 2] = ["a", "b"];
/// At a time.
const MAX: usize = 6;
/// How long after their time the last ones may take: etcd begins each anew when it starts.
const END_MAX: Duration = Duration::from_secs(120);

/// All that were granted.
#[derive(Default)]
pub struct Leases {
    all: BTreeMap<u64, Lease>,
    next: u64,
    /// Signs of life that were acknowledged.
    pub kept: u64,
}

struct Lease {
    id: LeaseId,
    ttl: Duration,
    /// When the last sign of life that was acknowledged was sent: it counts from later.
    sent: Instant,
    /// Whether its keys were written, if that is known.
    written: Option<bool>,
    /// When it ended, as the first watcher was told.
    ended: Option<Revision>,
    /// A watcher that had to list again found it gone: perhaps nobody is told.
    missed: bool,
}

/// What one watcher was told of each key.
#[derive(Default)]
pub struct Seen(BTreeMap<String, EventKind>);

// === impl Lease ===

impl Lease {
    fn new(id: LeaseId, ttl: Duration, sent: Instant) -> Self {
        Self { id, ttl, sent, written: None, ended: None, missed: false }
    }

    fn had_its_time(&self) -> bool {
        self.sent.elapsed() >= self.ttl
    }
}

// === impl Leases ===

impl Leases {
    /// How many ended with their keys.
    pub fn ended(&self) -> u64 {
        self.all.values().filter(|lease| lease.ended.is_some()).map(|_| 1).sum()
    }

    fn open(&self) -> impl Iterator<Item = u64> {
        self.all.iter().filter(|(_, lease)| !lease.had_its_time()).map(|(n, _)| *n)
    }

    /// Judges what a watcher was told of a key.
    pub fn told(&mut self, seen: &mut Seen, event: &Event) {
        let number = event.key[UNDER.len()..].split('/').next().and_then(|n| n.parse().ok());
        let lease = number.and_then(|n: u64| self.all.get_mut(&n)).expect("one of these");
        let before = seen.0.insert(event.key.to_string(), event.kind);
        match event.kind {
            EventKind::Put => {
                assert_eq!(before, None, "{} was written once", event.key);
                assert_ne!(lease.written, Some(false), "{} was refused", event.key);
                assert!(lease.ended.is_none_or(|at| event.revision < at), "written on no lease");
                lease.written = Some(true);
            }
            EventKind::Delete => {
                assert_ne!(before, Some(EventKind::Delete), "{} ended twice", event.key);
                let at = *lease.ended.get_or_insert(event.revision);
                assert_eq!(at, event.revision, "{} ended apart from its lease", event.key);
                let (since, ttl) = (lease.sent.elapsed(), lease.ttl);
                assert!(since >= ttl, "lease {:?} of {ttl:?} ended after {since:?}", lease.id);
            }
        }
    }
}

impl Sim {
    /// A new lease with its keys, or a sign of life of one that is there.
    pub(super) async fn lease(&mut self) {
        // As many draws whatever follows: which leases are open is no seed's.
        let mut draw = |below| usize::try_from(self.rng.below(below)).unwrap();
        let (at, other, turn) = (draw(2), draw(2), draw(MAX as u64));
        let ttl = Duration::from_secs(1 + self.rng.below(3));
        let open: Vec<u64> = self.leases.open().collect();
        match open.get(turn) {
            Some(number) => self.keep(at, *number).await,
            None => self.grant((at, other), ttl).await,
        }
    }

    /// The keys are written at the one server, or at the other.
    async fn grant(&mut self, (at, other): (usize, usize), ttl: Duration) {
        let (sent, number) = (Instant::now(), self.leases.next);
        let id = match self.stores[at].lease_grant(ttl).await {
            Ok(id) => id,
            Err(StoreError::Unreachable { .. }) => return,
            Err(error) => panic!("{error}"),
        };
        self.leases.next += 1;
        let known = self.leases.all.values().any(|lease| lease.id == id);
        assert!(!known, "a lease's number was given twice");
        // It is known before its keys are there: a watcher may be told while the answer is awaited.
        self.leases.all.insert(number, Lease::new(id, ttl, sent));
        let ops = KEYS.map(|key| Op::Put {
            key: format!("{UNDER}{number}/{key}").into(),
            value: number.to_string().into(),
            class: Class::Synced,
            lease: Some(id),
        });
        let written = match self.stores[other].txn(Txn::of(ops)).await {
            Ok(out) => Some(out.succeeded),
            Err(StoreError::NoLease(gone)) => {
                assert_eq!(gone, id);
                assert!(sent.elapsed() >= ttl, "it was gone after {:?}", sent.elapsed());
                Some(false)
            }
            Err(StoreError::Unreachable { unknown, .. }) => (!unknown).then_some(false),
            Err(error) => panic!("{error}"),
        };
        self.leases.all.entry(number).and_modify(|lease| lease.written = written);
    }

    async fn keep(&mut self, at: usize, number: u64) {
        let Some(lease) = self.leases.all.get_mut(&number) else { return };
        let sent = Instant::now();
        match self.stores[at].lease_keep_alive(lease.id).await {
            Ok(ttl) => {
                assert!(ttl >= lease.ttl, "it has {ttl:?} of {:?}", lease.ttl);
                assert_eq!(lease.ended, None, "a lease that ended is alive");
                lease.sent = sent;
                self.leases.kept += 1;
            }
            Err(StoreError::NoLease(gone)) => {
                assert_eq!(gone, lease.id);
                assert!(lease.had_its_time(), "it ended after {:?}", lease.sent.elapsed());
            }
            // It may have come there all the same: then it has more time, which is no harm.
            Err(StoreError::Unreachable { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }

    /// Both servers show all keys of a lease that has time left, and of each lease all or none.
    pub(super) async fn check_leases(&self) {
        for store in 0..2 {
            let there = self.leased(store).await;
            for (number, lease) in &self.leases.all {
                let count = KEYS.iter().filter(|key| there.contains(&format!("{number}/{key}")));
                let count = count.count();
                assert!(count == 0 || count == KEYS.len(), "half of lease {number} at {store}");
                if count == 0 {
                    let lost = lease.written == Some(true) && !lease.had_its_time();
                    assert!(!lost, "the keys of lease {number} are gone early at {store}");
                } else {
                    assert_ne!(lease.written, Some(false), "lease {number} was refused its keys");
                }
            }
            let known = |key: &&String| self.leases.all.keys().any(|n| is_of(key, *n));
            assert_eq!(there.iter().find(|key| !known(key)), None, "nobody's key");
        }
    }

    /// A watcher begins again: what is gone by now it may not be told.
    pub(super) async fn relist_leases(&mut self, store: usize) {
        let there = self.leased(store).await;
        for (number, lease) in &mut self.leases.all {
            lease.missed |= !there.iter().any(|key| is_of(key, *number));
        }
    }

    async fn leased(&self, store: usize) -> BTreeSet<String> {
        loop {
            self.barrier(store).await;
            if let Ok(page) = self.stores[store].range(UNDER, 0, None).await {
                let keys = page.entries.iter().filter_map(|(key, _)| key.strip_prefix(UNDER));
                return keys.map(str::to_owned).collect();
            }
        }
    }

    /// Nobody keeps them any more: each ends, everybody is told, and none comes back.
    pub(super) async fn leases_end(&mut self) {
        let end = Instant::now() + END_MAX;
        loop {
            self.follow(true).await;
            let left = self.leased(0).await.len() + self.leased(1).await.len();
            let untold = |lease: &&Lease| {
                lease.written == Some(true) && lease.ended.is_none() && !lease.missed
            };
            let untold = self.leases.all.values().filter(untold).count();
            if left + untold == 0 {
                break;
            }
            assert!(Instant::now() < end, "{left} keys on leases are left, {untold} ends untold");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for lease in self.leases.all.values() {
            // One without keys is nobody's to be told of.
            if lease.ended.is_none() {
                continue;
            }
            let kept = self.stores[0].lease_keep_alive(lease.id).await;
            assert!(matches!(kept, Err(StoreError::NoLease(_))), "{kept:?}");
        }
    }
}

fn is_of(key: &str, number: u64) -> bool {
    key.split_once('/').is_some_and(|(of, _)| of == number.to_string())
}
