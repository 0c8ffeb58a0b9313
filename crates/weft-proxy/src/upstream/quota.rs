// SPDX-License-Identifier: Apache-2.0
//! A limit of the whole proxy, whose units workers lease in slices. It is exact: workers together
//! never have more than the limit. In the steady state a unit is taken from and put back into the
//! worker's own hand; a worker whose hand is empty takes a slice of what is left, and then what
//! others have spare, so that any worker gets at the last unit. Small limits know no slices.
//!
//! A worker may say that it waits. What becomes free is then handed to one that waits, by a rule
//! that evens out what workers have and lets nobody go without. Called by [`super::breaker`] and
//! by the doors; knows neither connections nor requests.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Limits of fewer units for each worker than this are not leased in slices.
const SLICES: u64 = 8;
/// Largest slice.
const SLICE_MAX: u64 = 64;
/// A worker that has nothing of a limit waits so much longer than one that does have, before it
/// is given something of that.
const TURN_MS: u64 = 100;

/// One limit.
#[derive(Debug)]
pub struct Quota {
    workers: usize,
    /// What it was when somebody took from it last.
    most: AtomicU64,
    /// Units in hands, used or spare.
    taken: AtomicU64,
    /// Workers that wait.
    waiting: AtomicUsize,
    /// By worker, once somebody takes: most limits of most backends are never asked.
    hands: OnceLock<Box<[Hand]>>,
}

/// What one worker has. Others write it only where something ran out.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Hand {
    spare: AtomicU64,
    used: AtomicU64,
    /// Since when it waits, in milliseconds; 0: it does not.
    since: AtomicU64,
    wake: Notify,
}

// === impl Quota ===

impl Quota {
    pub fn new(workers: usize) -> Self {
        Self {
            workers: workers.max(1),
            most: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            hands: OnceLock::new(),
        }
    }

    /// Takes a unit for a worker; `false`: all `most` are in use, or belong to workers that wait.
    pub fn take(&self, worker: usize, most: u32) -> bool {
        let most = u64::from(most);
        if self.most.load(Ordering::Relaxed) != most {
            self.most.store(most, Ordering::Relaxed);
        }
        let hands = self.hands();
        let Some(own) = hands.get(worker) else { return false };
        let within = self.taken.load(Ordering::SeqCst) <= most;
        let got = (within && own.less_spare()) || self.lease(own, most) || self.steal(worker, most);
        if got {
            own.used.fetch_add(1, Ordering::Relaxed);
        }
        got
    }

    /// Puts a unit back that the worker used.
    pub fn put(&self, worker: usize) {
        let Some(own) = self.hands().get(worker) else { return };
        own.used.fetch_sub(1, Ordering::Relaxed);
        if let Some(next) = self.due(worker, 0) {
            next.spare.fetch_add(1, Ordering::SeqCst);
            next.wake.notify_one();
            return;
        }
        let (most, slice) = (self.most.load(Ordering::Relaxed), self.slice());
        if slice == 0 || self.taken.load(Ordering::SeqCst) > most {
            self.taken.fetch_sub(1, Ordering::SeqCst);
        } else {
            let spare = own.spare.fetch_add(1, Ordering::SeqCst) + 1;
            if spare >= 2 * slice && own.less(slice) {
                self.taken.fetch_sub(slice, Ordering::SeqCst);
            }
        }
        // Who began to wait meanwhile has not seen it, perhaps.
        if let Some(next) = self.due(worker, 0) {
            next.wake.notify_one();
        }
    }

    /// Whether what the worker has idle belongs to another one that waits.
    pub fn is_owed(&self, worker: usize) -> bool {
        self.due(worker, 1).is_some()
    }

    /// The same for a worker that has waited for long and has nothing at all: it is owed even what
    /// is never idle.
    pub fn is_owed_in_earnest(&self, worker: usize, now_ms: u64) -> bool {
        self.due(worker, 1).is_some_and(|next| {
            let since = next.since.load(Ordering::Relaxed);
            next.has_nothing() && since + TURN_MS <= now_ms
        })
    }

    /// Notes since when the worker waits, in milliseconds that only go up and are never 0; `None`:
    /// it does no more, and what it was given goes on.
    pub fn waits(&self, worker: usize, since: Option<u64>) {
        let Some(own) = self.hands().get(worker) else { return };
        let before = own.since.swap(since.unwrap_or(0), Ordering::SeqCst);
        match (before, since) {
            (0, Some(_)) => {
                self.waiting.fetch_add(1, Ordering::SeqCst);
            }
            (1.., None) => {
                self.waiting.fetch_sub(1, Ordering::SeqCst);
                while let Some(next) = self.due(worker, 0).filter(|_| own.less_spare()) {
                    next.spare.fetch_add(1, Ordering::SeqCst);
                    next.wake.notify_one();
                }
            }
            _ => {}
        }
    }

    /// Resolves when another worker let something go while this one waits. Cancel-safe.
    pub async fn given(&self, worker: usize) {
        match self.hands().get(worker) {
            Some(own) => own.wake.notified().await,
            None => std::future::pending().await,
        }
    }

    /// Gives back what a worker has spare and used nothing of for a while.
    pub fn rest(&self, worker: usize) {
        let own = self.hands.get().and_then(|hands| hands.get(worker));
        if let Some(own) = own.filter(|own| own.used.load(Ordering::Relaxed) == 0) {
            let spare = own.spare.swap(0, Ordering::SeqCst);
            self.taken.fetch_sub(spare, Ordering::SeqCst);
        }
    }

    /// Units that all workers use.
    pub fn used(&self) -> u64 {
        let hands = self.hands.get().map(|hands| &**hands).unwrap_or_default();
        hands.iter().map(|hand| hand.used.load(Ordering::Relaxed)).sum()
    }

    /// Units that a worker uses.
    pub fn used_by(&self, worker: usize) -> u64 {
        let own = self.hands.get().and_then(|hands| hands.get(worker));
        own.map_or(0, |own| own.used.load(Ordering::Relaxed))
    }

    fn hands(&self) -> &[Hand] {
        self.hands.get_or_init(|| (0..self.workers).map(|_| Hand::default()).collect())
    }

    /// How many units a worker leases at once, and keeps; 0: none beyond what it uses.
    fn slice(&self) -> u64 {
        let (most, workers) = (self.most.load(Ordering::Relaxed), self.workers as u64);
        if workers == 1 || most < SLICES * workers {
            return 0;
        }
        (most / (SLICES * workers)).min(SLICE_MAX)
    }

    /// Takes a slice of what nobody has: one to use, the rest to spare.
    fn lease(&self, own: &Hand, most: u64) -> bool {
        let slice = self.slice().max(1);
        let more = |taken: u64| (taken + slice).min(most);
        let leased = self.taken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |taken| {
            (taken < most).then(|| more(taken))
        });
        let Ok(before) = leased else { return false };
        let spare = more(before) - before - 1;
        if spare > 0 {
            own.spare.fetch_add(spare, Ordering::SeqCst);
        }
        true
    }

    /// Takes what another one has spare, unless that waits itself and was given it.
    fn steal(&self, worker: usize, most: u64) -> bool {
        if self.taken.load(Ordering::SeqCst) > most {
            // The limit was lowered: what is spare is beyond it.
            self.reclaim();
            return self.hands().get(worker).is_some_and(|own| self.lease(own, most));
        }
        let others = self.hands().iter().cycle().skip(worker + 1).take(self.workers - 1);
        let mut idle = others.filter(|hand| hand.since.load(Ordering::SeqCst) == 0);
        idle.any(Hand::less_spare)
    }

    fn reclaim(&self) {
        for hand in self.hands() {
            let spare = hand.spare.swap(0, Ordering::SeqCst);
            self.taken.fetch_sub(spare, Ordering::SeqCst);
        }
    }

    /// Who is to have what `worker` lets go, of which `less` are counted as used yet, if it may not
    /// keep it for itself: of those that wait and were given nothing yet, who has waited longest. A
    /// worker that waits itself gives to those that have less, and takes turns with those that have
    /// nothing.
    fn due(&self, worker: usize, less: u64) -> Option<&Hand> {
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return None;
        }
        let hands = self.hands();
        let own = hands.get(worker)?;
        let mine = own.since.load(Ordering::SeqCst);
        let left = own.used.load(Ordering::Relaxed).saturating_sub(less);
        let waits = |hand: &&Hand| {
            let since = hand.since.load(Ordering::SeqCst);
            let has = hand.used.load(Ordering::Relaxed);
            let fair = mine == 0 || has < left || (has == 0 && since + TURN_MS < mine);
            since > 0 && fair && hand.spare.load(Ordering::SeqCst) == 0
        };
        let others = hands.iter().enumerate().filter(|(i, _)| *i != worker).map(|(_, hand)| hand);
        let first = |hand: &&Hand| (!hand.has_nothing(), hand.since.load(Ordering::SeqCst));
        others.filter(waits).min_by_key(first)
    }
}

// === impl Hand ===

impl Hand {
    fn has_nothing(&self) -> bool {
        self.used.load(Ordering::Relaxed) == 0
    }

    fn less_spare(&self) -> bool {
        self.less(1)
    }

    /// Takes so many of what is spare, if there are so many.
    fn less(&self, units: u64) -> bool {
        let less = |spare: u64| spare.checked_sub(units);
        self.spare.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok()
    }
}

#[cfg(test)]
mod tests;
