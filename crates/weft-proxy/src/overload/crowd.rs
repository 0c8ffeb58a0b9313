// SPDX-License-Identifier: Apache-2.0
//! How many requests one worker has under way, and how many of them came lately. What a request
//! will hold is not in use yet when it is taken: thousands that come at once would all be taken
//! while there seems to be room. Kept by each request's record, asked before one is taken; and what
//! the workers know of one another's, so that all of them together count, and each only once.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// A worker says how many it has when they are so many more or fewer than it has said.
const STEP: u64 = 8;

/// Requests under way on one worker.
#[derive(Debug, Default)]
pub struct Crowd {
    now: Cell<u64>,
    /// The fewest that there were in this period, and in the one before it.
    fewest: Cell<[u64; 2]>,
    period: Cell<u64>,
    /// What the others know, and since which period.
    said: Cell<(u64, u64)>,
    slot: Arc<AtomicU64>,
}

/// What each worker has said: a period above, and how many of its requests are young below.
#[derive(Debug, Default)]
pub(super) struct Crowds(Box<[OnceLock<Arc<AtomicU64>>]>);

/// The half of a slot that one of them takes.
const HALF: u64 = u32::MAX as u64;

// === impl Crowd ===

impl Crowd {
    pub fn begin(&self) {
        self.now.set(self.now.get() + 1);
    }

    pub fn end(&self) {
        let now = self.now.get().saturating_sub(1);
        self.now.set(now);
        // Of those that were said to be young some are over.
        let (period, said) = self.said.get();
        let left = now.saturating_sub(self.fewest.get().into_iter().min().unwrap_or(0));
        if said >= left + STEP {
            self.say(period, left);
        }
    }

    fn say(&self, period: u64, young: u64) {
        self.said.set((period, young));
        self.slot.store(period << 32 | young.min(HALF), Ordering::Relaxed);
    }

    /// How many more there are than in the quietest moment of this period and the last.
    pub(super) fn young(&self, period: u64) -> u64 {
        let (now, [this, last]) = (self.now.get(), self.fewest.get());
        let fewest = match period.saturating_sub(self.period.replace(period)) {
            0 => [this.min(now), last],
            1 => [now, this],
            // Nobody came meanwhile.
            _ => [now, now],
        };
        self.fewest.set(fewest);
        now - fewest.into_iter().min().unwrap_or(0).min(now)
    }
}

// === impl Crowds ===

impl Crowds {
    pub fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| OnceLock::new()).collect())
    }

    /// How many are young: of this worker, and of the others, of each within [`STEP`]. Who has
    /// taken nothing for two periods has none.
    pub fn young(&self, crowd: &Crowd, worker: usize, period: u64) -> u64 {
        let own = crowd.young(period);
        if let Some(slot) = self.0.get(worker) {
            slot.get_or_init(|| crowd.slot.clone());
        }
        let (when, said) = crowd.said.get();
        if when != period || said.abs_diff(own) >= STEP {
            crowd.say(period, own);
        }
        let others = self.0.iter().enumerate().filter(|(n, _)| *n != worker);
        let others = others.filter_map(|(_, slot)| slot.get()).map(|slot| {
            let said = slot.load(Ordering::Relaxed);
            // One that has looked at the clock a moment later is a period ahead.
            let age = period.wrapping_sub(said >> 32) & HALF;
            if (2..HALF).contains(&age) { 0 } else { said & HALF }
        });
        others.fold(own, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_count_together_and_each_for_itself() {
        let crowds = Crowds::new(3);
        let (one, two) = (Crowd::default(), Crowd::default());
        let young = |crowd, worker, period| crowds.young(crowd, worker, period);
        assert_eq!((young(&one, 0, 7), young(&two, 1, 7)), (0, 0));
        (0..100).for_each(|_| one.begin());
        assert_eq!((young(&one, 0, 7), young(&two, 1, 7)), (100, 100));
        // A few are not worth a word.
        (1..STEP).for_each(|_| one.end());
        assert_eq!((young(&one, 0, 7), young(&two, 1, 7)), (101 - STEP, 100));
        one.end();
        assert_eq!((young(&one, 0, 7), young(&two, 1, 7)), (100 - STEP, 100 - STEP));
        assert_eq!(young(&two, 1, 6), 100 - STEP, "it is a period ahead");
        assert_eq!((young(&two, 1, 8), young(&two, 1, 9)), (100 - STEP, 0), "they are in use");
        assert_eq!(Crowds::default().young(&one, 0, 7), 100 - STEP, "nobody else is known");
        // A burst that is over counts for nobody, though its worker is asked for nothing more.
        assert_eq!((young(&one, 0, 7), young(&two, 1, 7)), (100 - STEP, 100 - STEP));
        (0..90).for_each(|_| one.end());
        assert!(young(&two, 1, 7) < 2 * STEP, "{}", young(&two, 1, 7));
        // Nor does it where others of the worker last.
        (0..50).for_each(|_| one.begin());
        assert_eq!((young(&one, 0, 9), young(&one, 0, 12), young(&two, 1, 12)), (0, 0, 0));
        (0..50).for_each(|_| one.begin());
        assert_eq!((young(&one, 0, 12), young(&two, 1, 12)), (50, 50));
        (0..50).for_each(|_| one.end());
        assert!(young(&two, 1, 12) < STEP, "{}", young(&two, 1, 12));
    }

    #[test]
    fn those_are_young_that_came_within_two_periods() {
        let crowd = Crowd::default();
        let mut seen = Vec::new();
        let mut at = |period, begin: u64, end: u64| {
            (0..end).for_each(|_| crowd.end());
            (0..begin).for_each(|_| crowd.begin());
            seen.push(crowd.young(period));
        };
        at(0, 5, 0);
        at(0, 5, 0);
        at(1, 0, 0);
        at(2, 0, 0);
        // Those that are there for two periods are no longer; others come and go.
        at(2, 7, 7);
        at(3, 3, 0);
        at(3, 0, 13);
        at(9, 4, 0);
        at(9, 1, 0);
        assert_eq!(seen, [5, 10, 10, 0, 0, 3, 0, 0, 1]);
    }
}
