// SPDX-License-Identifier: Apache-2.0
//! How many requests one worker has under way, and how many of them came lately. What a request
//! will hold is not in use yet when it is taken: thousands that come at once would all be taken
//! while there seems to be room. Kept by each request's record, asked before one is taken.

use std::cell::Cell;

/// Requests under way on one worker.
#[derive(Debug, Default)]
pub struct Crowd {
    now: Cell<u64>,
    /// The fewest that there were in this period, and in the one before it.
    fewest: Cell<[u64; 2]>,
    period: Cell<u64>,
}

// === impl Crowd ===

impl Crowd {
    pub fn begin(&self) {
        self.now.set(self.now.get() + 1);
    }

    pub fn end(&self) {
        self.now.set(self.now.get().saturating_sub(1));
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

#[cfg(test)]
mod tests {
    use super::*;

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
