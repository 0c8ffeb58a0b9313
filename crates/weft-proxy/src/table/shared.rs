// SPDX-License-Identifier: Apache-2.0
//! What all workers share about an endpoint and about its set; it outlives table swaps. Written
//! rarely, except for the cells, of which each worker owns its own. Called by the picker, the
//! ejector and whoever sends; decides nothing.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use weft_base::clock::Mono;
use weft_base::metrics::Cell;
use weft_model::decide::{Ejection, Outcome, Seen, Streaks};

use crate::observe::metrics::lock;

/// Facts about an endpoint.
#[derive(Debug)]
pub struct EndpointShared {
    workers: usize,
    /// By worker, once one of them sends anything: of thousands most are never used by a proxy.
    in_flight: OnceLock<Box<[Cell]>>,
    /// Requests and failures by worker, once a policy asks for windows.
    seen: OnceLock<Box<[(Cell, Cell)]>>,
    /// What the last window's end saw; the ejector's own.
    base: [AtomicU64; 2],
    /// Failures in a row; only failures and the success that ends them write these.
    failures: AtomicU32,
    gateway: AtomicU32,
    local: AtomicU32,
    /// Milliseconds of monotonic time until which it is ejected; 0 when it is not.
    pub ejected_until: AtomicU64,
    /// The same for the pause that it asked for itself.
    pausing_until: AtomicU64,
    /// How often in a row it was ejected.
    pub ejections: AtomicU32,
    /// Since when its checks hold; 0 while they do not.
    healthy_since: AtomicU64,
    /// It fails the proxy's own health check.
    failing: AtomicBool,
    /// For people; most endpoints have nothing to tell.
    told: Mutex<Option<Box<Told>>>,
}

/// What was last found out about an endpoint, for people.
#[derive(Debug, Default)]
struct Told {
    failing: Option<Arc<str>>,
    /// When its check was last answered, and what was wrong with the answer.
    checked: Option<(Mono, Option<Arc<str>>)>,
    ejection: Option<Ejection>,
}

/// Backends of one set whose ejections are counted.
const EJECTING_MAX: usize = 256;

/// Facts about an endpoint set.
#[derive(Debug, Default)]
pub struct SetShared {
    /// Goes up when an ejection or a pause begins, so that workers look at endpoints only then.
    changes: AtomicU64,
    /// Ejections since the set was first heard of, by the backend whose policy it was: the whole
    /// host, or a subset.
    ejections: Mutex<Vec<(Arc<str>, u64)>>,
}

/// When a backend's window for outlier detection ends.
#[derive(Debug, Default)]
pub struct WindowEnd(AtomicU64);

// === impl EndpointShared ===

impl EndpointShared {
    pub fn new(workers: usize) -> Self {
        Self {
            workers: workers.max(1),
            in_flight: OnceLock::new(),
            seen: OnceLock::new(),
            base: [AtomicU64::new(0), AtomicU64::new(0)],
            failures: AtomicU32::new(0),
            gateway: AtomicU32::new(0),
            local: AtomicU32::new(0),
            ejected_until: AtomicU64::new(0),
            pausing_until: AtomicU64::new(0),
            ejections: AtomicU32::new(0),
            healthy_since: AtomicU64::new(0),
            failing: AtomicBool::new(false),
            told: Mutex::default(),
        }
    }

    /// Requests in flight to it from all workers.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.get().map_or(0, |cells| cells.iter().map(Cell::get).sum())
    }

    pub fn begin(&self, worker: usize) {
        let cells =
            self.in_flight.get_or_init(|| (0..self.workers).map(|_| Cell::default()).collect());
        if let Some(cell) = cells.get(worker) {
            cell.add(1);
        }
    }

    pub fn end(&self, worker: usize) {
        if let Some(cell) = self.in_flight.get().and_then(|cells| cells.get(worker)) {
            cell.sub(1);
        }
    }

    pub fn is_ejected(&self, now: Mono) -> bool {
        now.0 < self.ejected_until.load(Ordering::Relaxed)
    }

    pub fn is_pausing(&self, now: Mono) -> bool {
        now.0 < self.pausing_until.load(Ordering::Relaxed)
    }

    /// When the next of its states ends by itself; never, when there is none.
    pub fn changes_at(&self, now: Mono) -> u64 {
        let times = [&self.ejected_until, &self.pausing_until].map(|t| t.load(Ordering::Relaxed));
        times.into_iter().filter(|t| now.0 < *t).min().unwrap_or(u64::MAX)
    }

    /// No new requests until then, if others are there.
    pub fn pause_until(&self, until: Mono) {
        self.pausing_until.fetch_max(until.0, Ordering::Relaxed);
    }

    /// Notes whether its checks hold.
    pub fn set_healthy(&self, healthy: bool, now: Mono) {
        let since = self.healthy_since.load(Ordering::Relaxed);
        match (healthy, since) {
            (true, 0) => self.healthy_since.store(now.0.max(1), Ordering::Relaxed),
            (false, 1..) => self.healthy_since.store(0, Ordering::Relaxed),
            _ => {}
        }
    }

    /// Whether it fails the proxy's own health check.
    pub fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// Why it does; for people.
    pub fn failing_why(&self) -> Option<Arc<str>> {
        self.told().as_ref()?.failing.clone()
    }

    fn told(&self) -> MutexGuard<'_, Option<Box<Told>>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, f: impl FnOnce(&mut Told)) {
        f(self.told().get_or_insert_default());
    }

    /// When its check was last answered, and what was wrong then.
    pub fn checked(&self) -> Option<(Mono, Option<Arc<str>>)> {
        self.told().as_ref()?.checked.clone()
    }

    /// Notes an answer to its check, whatever that decides.
    pub fn set_checked(&self, at: Mono, wrong: Option<&str>) {
        self.tell(|told| told.checked = Some((at, wrong.map(Into::into))));
    }

    /// For how many milliseconds more it is ejected, how often that was in a row, and for what.
    pub fn ejection(&self, now: Mono) -> Option<(u64, u32, Option<Ejection>)> {
        let left = self.ejected_until.load(Ordering::Relaxed).saturating_sub(now.0);
        let why = self.told().as_ref().and_then(|told| told.ejection);
        (left > 0).then(|| (left, self.ejections.load(Ordering::Relaxed), why))
    }

    /// Notes for what it is ejected.
    pub fn set_ejection(&self, why: Ejection) {
        self.tell(|told| told.ejection = Some(why));
    }

    /// For how many milliseconds more it asked for a pause.
    pub fn pausing_ms(&self, now: Mono) -> Option<u64> {
        let left = self.pausing_until.load(Ordering::Relaxed).saturating_sub(now.0);
        (left > 0).then_some(left)
    }

    /// Notes what its health check says; returns whether it failed before.
    pub fn set_failing(&self, why: Option<&str>) -> bool {
        if why.is_some() || self.failing_why().is_some() {
            self.tell(|told| told.failing = why.map(Into::into));
        }
        self.failing.swap(why.is_some(), Ordering::Relaxed)
    }

    pub fn healthy_ms(&self, now: Mono) -> u64 {
        now.0.saturating_sub(self.healthy_since.load(Ordering::Relaxed))
    }

    /// Notes how a request ended; returns failures in a row when it was one.
    pub fn note(&self, outcome: Outcome, local_apart: bool) -> Option<Streaks> {
        let add = |counter: &AtomicU32| counter.fetch_add(1, Ordering::Relaxed) + 1;
        let get = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
        // Reads only, in the good case: no cache line is written by two workers.
        let clear = |counter: &AtomicU32| {
            if get(counter) != 0 {
                counter.store(0, Ordering::Relaxed);
            }
            0
        };
        let all = [&self.failures, &self.gateway, &self.local];
        let [failures, gateway, local] = match outcome {
            Outcome::Success => {
                for counter in all {
                    clear(counter);
                }
                return None;
            }
            Outcome::Failure => [add(&self.failures), clear(&self.gateway), clear(&self.local)],
            Outcome::Gateway => [add(&self.failures), add(&self.gateway), clear(&self.local)],
            Outcome::Local if local_apart => {
                [get(&self.failures), get(&self.gateway), add(&self.local)]
            }
            // As if a gateway had said that it reached nobody.
            Outcome::Local => [add(&self.failures), add(&self.gateway), get(&self.local)],
        };
        Some(Streaks { failures, gateway, local })
    }

    pub fn streaks(&self) -> Streaks {
        let [failures, gateway, local] =
            [&self.failures, &self.gateway, &self.local].map(|c| c.load(Ordering::Relaxed));
        Streaks { failures, gateway, local }
    }

    pub fn set_streaks(&self, streaks: Streaks) {
        self.failures.store(streaks.failures, Ordering::Relaxed);
        self.gateway.store(streaks.gateway, Ordering::Relaxed);
        self.local.store(streaks.local, Ordering::Relaxed);
    }

    /// Counts a request for the window's judgement.
    pub fn count(&self, worker: usize, failed: bool) {
        let cells =
            self.seen.get_or_init(|| (0..self.workers).map(|_| Default::default()).collect());
        if let Some((requests, failures)) = cells.get(worker) {
            requests.add(1);
            if failed {
                failures.add(1);
            }
        }
    }

    /// What was seen since the last call; the ejector is the only caller.
    pub fn window(&self) -> Seen {
        let cells = self.seen.get().map(|cells| &**cells).unwrap_or_default();
        let requests = cells.iter().map(|(requests, _)| requests.get()).sum::<u64>();
        let failures = cells.iter().map(|(_, failures)| failures.get()).sum::<u64>();
        let since = |base: &AtomicU64, now: u64| now - base.swap(now, Ordering::Relaxed).min(now);
        let [first, second] = &self.base;
        Seen { requests: since(first, requests), failures: since(second, failures) }
    }
}

// === impl SetShared ===

impl SetShared {
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    pub fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// One of its endpoints was ejected, by this backend's policy.
    pub fn ejected(&self, cluster: &Arc<str>) {
        let mut all = lock(&self.ejections);
        if let Some((_, count)) = all.iter_mut().find(|(known, _)| known == cluster) {
            *count += 1;
        } else if all.len() < EJECTING_MAX {
            all.push((cluster.clone(), 1));
        }
        drop(all);
        self.changed();
    }

    pub fn ejections(&self, cluster: &str) -> u64 {
        lock(&self.ejections).iter().find(|(known, _)| **known == *cluster).map_or(0, |(_, n)| *n)
    }
}

// === impl WindowEnd ===

impl WindowEnd {
    /// The same window, for a newer form of the backend.
    pub fn goes_on(&self) -> Self {
        Self(AtomicU64::new(self.0.load(Ordering::Relaxed)))
    }

    /// Whether the window ended; only the first caller is told, and the next window begins.
    pub fn ended(&self, interval_ms: u64, now: Mono) -> bool {
        let ends = self.0.load(Ordering::Relaxed);
        if now.0 < ends {
            return false;
        }
        let next = now.0 + interval_ms.max(1);
        let swapped = self.0.compare_exchange(ends, next, Ordering::Relaxed, Ordering::Relaxed);
        // Before the first window there was nothing to judge.
        swapped.is_ok() && ends != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ejections_are_those_of_the_backend_whose_policy_it_was() {
        let (set, whole) = (SetShared::default(), Arc::<str>::from("outbound|80||h"));
        set.ejected(&whole);
        set.ejected(&whole);
        assert_eq!((set.ejections(&whole), set.ejections("outbound|80|v1|h")), (2, 0));
        assert_eq!(set.changes(), 2);
    }
}
