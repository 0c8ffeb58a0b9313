// SPDX-License-Identifier: Apache-2.0
//! A seeded simulation of the log: clients that write, compare, lease and let go of their calls
//! half-way, watchers of different speed, a clock that jumps, a drive that fails and a machine that
//! loses its power at any moment. An oracle on the clients' side knows what was acknowledged.
//! Safety at every step; when the faults end, liveness. Over memory (without loss) and redb.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use weft_base::clock::{Clock, ManualClock};
use weft_base::rng::Rng;

use super::power::{Platter, open_on};
use crate::{
    Class, Compare, Event, EventKind, LeaseId, MemoryStore, Op, Revision, Store, StoreError, Txn,
    Watch, WatchError,
};

const KEYS: u64 = 12;
const STEPS: usize = 400;
/// Seeds that once failed stay here.
const SEEDS: std::ops::Range<u64> = 1..25;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    value: String,
    at: Revision,
    class: Class,
    lease: Option<LeaseId>,
}

/// One watcher: what it was told since it listed.
struct Watcher {
    prefix: &'static str,
    watch: Watch,
    from: Revision,
    told: Vec<(Revision, String, EventKind)>,
    /// It reads at one of so many steps.
    slowness: u64,
}

struct Sim {
    rng: Rng,
    clock: Clock,
    time: Arc<ManualClock>,
    /// `None` for the engine that is in memory.
    platter: Option<Arc<Mutex<Platter>>>,
    store: Option<Arc<dyn Store>>,
    /// What was acknowledged.
    model: BTreeMap<String, Kept>,
    leases: BTreeMap<LeaseId, (Duration, u64)>,
    /// Every event of the present history, by revision.
    log: Vec<(Revision, String, EventKind)>,
    watchers: Vec<Watcher>,
    newest: Revision,
    written: u64,
    losses: u64,
}

impl Sim {
    async fn new(seed: u64, durable: bool) -> Self {
        let (clock, time) = Clock::manual();
        let platter = durable.then(|| Arc::new(Mutex::new(Platter::default())));
        let mut sim = Self {
            rng: Rng::seeded(seed),
            clock,
            time,
            platter,
            store: None,
            model: BTreeMap::new(),
            leases: BTreeMap::new(),
            log: Vec::new(),
            watchers: Vec::new(),
            newest: Revision(0),
            written: 0,
            losses: 0,
        };
        sim.open().await;
        sim
    }

    fn store(&self) -> Arc<dyn Store> {
        self.store.clone().expect("it is open")
    }

    fn now(&self) -> u64 {
        self.clock.now().0
    }

    /// Opens what there is; everybody lists and watches anew, leases have their full time.
    async fn open(&mut self) {
        let seed = self.rng.next_u64();
        self.store = Some(match &self.platter {
            Some(platter) => Arc::new(open_on(platter, seed, self.clock.clone()).unwrap()),
            None => Arc::new(MemoryStore::new(self.clock.clone())),
        });
        let now = self.now();
        for (ttl, due) in self.leases.values_mut() {
            *due = now + u64::try_from(ttl.as_millis()).unwrap();
        }
        self.log.clear();
        self.watchers.clear();
        for (prefix, slowness) in [("/", 1), ("/k/1", 3), ("/", 40)] {
            self.watch(prefix, slowness).await;
        }
    }

    async fn watch(&mut self, prefix: &'static str, slowness: u64) {
        let at = self.store().range(prefix, 0, None).await.unwrap().revision;
        assert!(at >= self.newest, "the revision went back from {} to {at}", self.newest);
        let watch = self.store().watch(prefix, at.next()).unwrap();
        self.watchers.push(Watcher { prefix, watch, from: at.next(), told: vec![], slowness });
    }

    fn key(&mut self) -> String {
        format!("/k/{}", self.rng.below(KEYS))
    }

    fn op(&mut self, key: String) -> Op {
        self.written += 1;
        let value = format!("{}-{}", self.written, "v".repeat(self.written as usize % 300));
        let leases: Vec<LeaseId> = self.leases.keys().copied().collect();
        let lease = (!leases.is_empty() && self.rng.below(4) == 0)
            .then(|| leases[usize::try_from(self.rng.below(leases.len() as u64)).unwrap()]);
        let class = if self.rng.below(3) == 0 { Class::Ephemeral } else { Class::Synced };
        match self.rng.below(6) {
            0 => Op::delete(key),
            _ => Op::Put { key: key.into(), value: value.into(), class, lease },
        }
    }

    fn txn(&mut self) -> Txn {
        if self.rng.below(25) == 0 {
            let digit = self.rng.below(10);
            return Txn::of([Op::DeletePrefix { prefix: format!("/k/{digit}").into() }]);
        }
        let keys: BTreeSet<String> = (0..1 + self.rng.below(4)).map(|_| self.key()).collect();
        let mut txn = Txn::of(keys.iter().map(|key| self.op(key.clone())).collect::<Vec<_>>());
        if let Some(key) = keys.first().filter(|_| self.rng.below(2) == 0) {
            let stale = self.rng.below(4) == 0;
            let compare = match self.model.get(key) {
                Some(kept) if !stale => Compare::ModRevision(key.as_str().into(), kept.at),
                Some(_) => Compare::Absent(key.as_str().into()),
                None if stale => Compare::Exists(key.as_str().into()),
                None => Compare::Absent(key.as_str().into()),
            };
            txn = txn.when(compare);
        }
        txn
    }

    fn holds(&self, txn: &Txn) -> bool {
        txn.compares.iter().all(|compare| {
            let kept = self.model.get(&**compare.key());
            match compare {
                Compare::Absent(_) => kept.is_none(),
                Compare::Exists(_) => kept.is_some(),
                Compare::ModRevision(_, at) => kept.is_some_and(|k| k.at == *at),
            }
        })
    }

    /// What a transaction does to the model, at a revision.
    fn apply(&mut self, txn: &Txn, at: Revision) {
        self.newest = self.newest.max(at);
        for op in &txn.ops {
            let gone: Vec<String> = match op {
                Op::Put { key, value, class, lease } => {
                    let value = String::from_utf8(value.to_vec()).unwrap();
                    let kept = Kept { value, at, class: *class, lease: *lease };
                    self.model.insert(key.to_string(), kept);
                    self.log.push((at, key.to_string(), EventKind::Put));
                    continue;
                }
                Op::Delete { key } => {
                    self.model.contains_key(&**key).then(|| key.to_string()).into_iter().collect()
                }
                Op::DeletePrefix { prefix } => {
                    let under = self.model.keys().filter(|k| k.starts_with(&**prefix));
                    under.cloned().collect()
                }
            };
            self.remove(gone, at);
        }
    }

    fn remove(&mut self, keys: Vec<String>, at: Revision) {
        for key in keys {
            self.model.remove(&key);
            self.log.push((at, key, EventKind::Delete));
        }
    }

    async fn write(&mut self) {
        let txn = self.txn();
        match self.store().txn(txn.clone()).await {
            Ok(out) => {
                assert_eq!(out.succeeded, self.holds(&txn), "{txn:?}");
                assert!(out.revision >= self.newest, "a revision went back");
                if out.succeeded {
                    self.apply(&txn, out.revision);
                }
            }
            Err(StoreError::Storage(_)) => self.after_failure(&txn).await,
            Err(error) => panic!("{error}"),
        }
    }

    /// A client that is cut off from its call: it may have been done or not, but not in part.
    async fn let_go(&mut self) {
        let txn = self.txn();
        let held = self.holds(&txn);
        let store = self.store();
        let mut call = store.txn(txn.clone());
        let answered = (&mut call).now_or_never();
        drop(call);
        if let Some(Ok(out)) = answered {
            if out.succeeded {
                self.apply(&txn, out.revision);
            }
            return;
        }
        // The writer is one: what is asked after it is done after it.
        let settle = Txn::of([Op::put_ephemeral("/settle", self.written.to_string())]);
        let after = store.txn(settle.clone()).await;
        self.resolve(&txn, held).await;
        if let Ok(out) = after {
            self.apply(&settle, out.revision);
        }
    }

    /// Finds out by reading whether a transaction was done, all of it.
    async fn resolve(&mut self, txn: &Txn, held: bool) {
        let page = self.store().range("/k/", 0, None).await.unwrap();
        let found = |key: &str| page.entries.iter().find(|(k, _)| &**k == key).map(|(_, e)| e);
        let mut done = BTreeSet::new();
        let mut at = Revision(0);
        for op in &txn.ops {
            match op {
                Op::Put { key, value, .. } => {
                    let entry = found(key).filter(|e| e.value == *value);
                    at = at.max(entry.map_or(at, |e| e.modified));
                    done.insert(entry.is_some());
                }
                Op::Delete { key } if self.model.contains_key(&**key) => {
                    done.insert(found(key).is_none());
                }
                Op::Delete { .. } => {}
                Op::DeletePrefix { prefix } => {
                    for key in self.model.keys().filter(|k| k.starts_with(&**prefix)) {
                        done.insert(found(key).is_none());
                    }
                }
            }
        }
        assert!(done.len() <= 1, "half of {txn:?} was done");
        if done.contains(&true) {
            assert!(held, "it was done though it did not hold: {txn:?}");
            // Deletions alone do not tell their revision; it is after all that was known.
            let at = if at == Revision(0) { self.newest.next() } else { at };
            self.apply(txn, at);
        }
    }

    /// A commit failed: the file was opened anew, or will be.
    async fn after_failure(&mut self, txn: &Txn) {
        if let Some(platter) = &self.platter {
            platter.lock().unwrap().broken = false;
        }
        let held = self.holds(txn);
        let nudge = Txn::of([Op::put_ephemeral("/settle", "again")]);
        let out = self.store().txn(nudge.clone()).await.expect("it writes again");
        self.resolve(txn, held).await;
        self.apply(&nudge, out.revision);
        self.losses += 1;
        self.restart_watchers().await;
    }

    async fn restart_watchers(&mut self) {
        self.log.clear();
        let old = std::mem::take(&mut self.watchers);
        for watcher in old {
            self.watch(watcher.prefix, watcher.slowness).await;
        }
        self.check().await;
    }

    /// The power goes, with a call under way.
    async fn lose_power(&mut self) {
        let Some(platter) = self.platter.clone() else { return };
        let txn = self.txn();
        let held = self.holds(&txn);
        {
            let store = self.store();
            drop((&mut store.txn(txn.clone())).now_or_never());
        }
        let mut image = platter.lock().unwrap().clone();
        image.lose_power(&mut self.rng);
        self.watchers.clear();
        self.store = None;
        *platter.lock().unwrap() = image;
        // Memory is gone, and nobody was told.
        self.model.retain(|_, kept| kept.class == Class::Synced);
        self.losses += 1;
        self.open().await;
        let gone: Vec<_> = txn.ops.iter().filter(|op| is_ephemeral(op)).collect();
        if gone.is_empty() {
            self.resolve(&txn, held).await;
        } else {
            self.adopt(&txn).await;
        }
        self.log.clear();
        let watchers: Vec<_> = std::mem::take(&mut self.watchers);
        for watcher in watchers {
            self.watch(watcher.prefix, watcher.slowness).await;
        }
        self.check().await;
    }

    /// Of a call of both classes only what is durable can be seen; that part is whole or not there.
    async fn adopt(&mut self, txn: &Txn) {
        let page = self.store().range("/k/", 0, None).await.unwrap();
        let entry = |key: &str| page.entries.iter().find(|(k, _)| &**k == key).map(|(_, e)| e);
        let synced = txn.ops.iter().find_map(|op| match op {
            Op::Put { key, value, class: Class::Synced, .. } => Some((key, value)),
            _ => None,
        });
        let done = match synced {
            Some((key, value)) => entry(key).is_some_and(|e| e.value == *value),
            None => txn
                .ops
                .iter()
                .any(|op| self.model.contains_key(&**op.key()) && entry(op.key()).is_none()),
        };
        if done {
            let at = synced.and_then(|(key, _)| entry(key)).map_or(self.newest, |e| e.modified);
            self.apply(txn, at);
            self.model.retain(|_, kept| kept.class == Class::Synced);
        }
    }

    async fn lease(&mut self) {
        if self.rng.below(3) == 0
            && let Some(id) = self.leases.keys().next().copied()
        {
            let (ttl, _) = self.leases[&id];
            let kept = self.store().lease_keep_alive(id).await;
            assert_eq!(kept.expect("it has not ended"), ttl);
            let due = self.now() + u64::try_from(ttl.as_millis()).unwrap();
            self.leases.insert(id, (ttl, due));
            return;
        }
        let ttl = Duration::from_secs(5 + self.rng.below(60));
        if let Ok(id) = self.store().lease_grant(ttl).await {
            assert!(!self.leases.contains_key(&id), "a lease's number was given twice");
            let due = self.now() + u64::try_from(ttl.as_millis()).unwrap();
            self.leases.insert(id, (ttl, due));
        }
    }

    /// Time jumps, by seconds or by hours.
    async fn jump(&mut self) {
        let far = self.rng.below(20) == 0;
        let by = if far { 7_200_000 } else { self.rng.below(6_000) };
        self.time.advance(Duration::from_millis(by));
        self.store().tick().await.unwrap();
        let now = self.now();
        let over: Vec<(u64, LeaseId)> = self
            .leases
            .iter()
            .filter(|(_, (_, due))| *due <= now)
            .map(|(id, l)| (l.1, *id))
            .collect();
        let ended: BTreeSet<(u64, LeaseId)> = over.into_iter().collect();
        for (_, id) in ended {
            self.leases.remove(&id);
            let on_it = |k: &Kept| k.lease == Some(id);
            let keys: Vec<String> =
                self.model.iter().filter(|(_, k)| on_it(k)).map(|(k, _)| k.clone()).collect();
            if !keys.is_empty() {
                let at = self.newest.next();
                self.newest = at;
                self.remove(keys, at);
            }
        }
        self.newest = self.newest.max(self.store().barrier().await.unwrap());
    }

    /// Everything that is there is what was acknowledged, and nothing else is.
    async fn check(&mut self) {
        let page = self.store().range("/", 0, None).await.unwrap();
        let there: BTreeMap<String, Kept> = page
            .entries
            .iter()
            .map(|(key, e)| {
                let value = String::from_utf8(e.value.to_vec()).unwrap();
                let kept = Kept { value, at: e.modified, class: e.class, lease: e.lease };
                (key.to_string(), kept)
            })
            .collect();
        assert_eq!(there, self.model, "after {} losses", self.losses);
        assert!(page.revision >= self.newest);
        self.newest = page.revision;
    }

    async fn read_watches(&mut self, all: bool) {
        for at in 0..self.watchers.len() {
            if !all && self.rng.below(self.watchers[at].slowness) != 0 {
                continue;
            }
            match self.watchers[at].watch.try_next() {
                Ok(events) => {
                    let told =
                        events.into_iter().map(|e: Event| (e.revision, e.key.to_string(), e.kind));
                    self.watchers[at].told.extend(told);
                }
                Err(WatchError::Closed) => panic!("a watch ended by itself"),
                // It may list again at once.
                Err(_) => {
                    let Watcher { prefix, slowness, .. } = self.watchers.remove(at);
                    self.watch(prefix, slowness).await;
                    return;
                }
            }
        }
    }

    /// In order, without a gap or a repeat.
    fn check_watches(&self) {
        for watcher in &self.watchers {
            let due = self
                .log
                .iter()
                .filter(|(at, key, _)| *at >= watcher.from && key.starts_with(watcher.prefix));
            let due: Vec<_> = due.cloned().collect();
            let told = &watcher.told;
            assert!(told.len() <= due.len(), "more than happened: {told:?}");
            let keyed = |list: &[(Revision, String, EventKind)]| {
                list.iter().map(|(_, key, kind)| (key.clone(), *kind)).collect::<Vec<_>>()
            };
            assert_eq!(keyed(told), keyed(&due[..told.len()]), "from {}", watcher.from);
            assert!(told.is_sorted_by_key(|(at, ..)| *at));
        }
    }

    async fn step(&mut self) {
        match self.rng.below(100) {
            0..=59 => self.write().await,
            60..=69 => self.let_go().await,
            70..=79 => self.lease().await,
            80..=91 => self.jump().await,
            92..=94 => {
                if let Some(platter) = &self.platter {
                    platter.lock().unwrap().broken = true;
                }
                self.write().await;
                if let Some(platter) = &self.platter {
                    platter.lock().unwrap().broken = false;
                }
            }
            95..=97 => self.lose_power().await,
            _ => self.check().await,
        }
        self.read_watches(false).await;
        self.check_watches();
    }

    /// The faults are over: every write is acknowledged, every watcher comes to the present, every
    /// lease that nobody keeps ends.
    async fn come_to_rest(&mut self) {
        for _ in 0..20 {
            let (before, txn) = (self.newest, self.txn());
            let holds = self.holds(&txn);
            let out = self.store().txn(txn.clone()).await.expect("no fault, no refusal");
            assert_eq!(out.succeeded, holds);
            if out.succeeded {
                self.apply(&txn, out.revision);
            }
            assert!(out.revision >= before);
        }
        self.time.advance(Duration::from_secs(600));
        self.jump().await;
        assert!(self.leases.is_empty());
        self.check().await;
        for _ in 0..50 {
            self.read_watches(true).await;
        }
        self.check_watches();
        for watcher in &self.watchers {
            assert!(watcher.watch.position() > self.newest, "a watcher stays behind");
        }
    }
}

fn is_ephemeral(op: &Op) -> bool {
    matches!(op, Op::Put { class: Class::Ephemeral, .. })
}

async fn run(seed: u64, durable: bool) -> (u64, u64) {
    let mut sim = Sim::new(seed, durable).await;
    for _ in 0..STEPS {
        sim.step().await;
    }
    sim.come_to_rest().await;
    (sim.losses, sim.written)
}

#[tokio::test]
async fn memory_does_what_its_clients_were_told() {
    for seed in SEEDS {
        println!("seed {seed}");
        run(seed, false).await;
    }
}

#[tokio::test]
async fn redb_does_what_its_clients_were_told_through_power_cuts_and_broken_drives() {
    let (mut losses, mut written) = (0, 0);
    for seed in SEEDS {
        println!("seed {seed}");
        let (lost, wrote) = run(seed, true).await;
        losses += lost;
        written += wrote;
    }
    assert!(losses > 100 && written > 5_000, "{losses} losses, {written} writes");
}
