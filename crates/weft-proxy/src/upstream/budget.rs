// SPDX-License-Identifier: Apache-2.0
//! The retry budget: retries may be a share of recent requests, so that a failing upstream never
//! sees more than that much extra load. Pure; one per backend and worker.

use std::cell::Cell;
use std::rc::Rc;

use weft_base::clock::Mono;
use weft_model::RetryBudget;

/// What is recent is so many slots long.
const SLOTS: usize = 10;

/// Requests and retries of the policy's interval.
#[derive(Clone, Debug, Default)]
pub struct Budget {
    requests: [u64; SLOTS],
    retries: [u64; SLOTS],
    slot: u64,
    slot_ms: u64,
    under_way: Rc<Cell<usize>>,
}

/// A retry of the budget while it lasts.
#[derive(Debug)]
pub struct Granted(Rc<Cell<usize>>);

// === impl Budget ===

impl Budget {
    /// Notes a first attempt.
    pub fn request(&mut self, policy: &RetryBudget, now: Mono) {
        let i = self.turn(policy, now);
        if let Some(n) = self.requests.get_mut(i) {
            *n += 1;
        }
    }

    /// Takes room for one retry; `None` when there is none. `workers` share what is granted
    /// whatever the share of requests.
    pub fn take(&mut self, policy: &RetryBudget, workers: usize, now: Mono) -> Option<Granted> {
        let i = self.turn(policy, now);
        let requests: u64 = self.requests.iter().sum();
        let retries: u64 = self.retries.iter().sum();
        let share = requests * u64::from(policy.basis_points) / 10_000;
        let workers = workers.max(1);
        let interval_ms = self.slot_ms * SLOTS as u64;
        let floor = u64::from(policy.min_per_second) * interval_ms / 1_000 / workers as u64;
        let at_once = usize::try_from(policy.min_concurrent).unwrap_or(usize::MAX);
        let fits = self.under_way.get() < at_once.div_ceil(workers);
        if retries >= share.max(floor) && !fits {
            return None;
        }
        if let Some(n) = self.retries.get_mut(i) {
            *n += 1;
        }
        self.under_way.set(self.under_way.get() + 1);
        Some(Granted(self.under_way.clone()))
    }

    /// Moves on to the slot of `now`, emptying those that were passed. With another interval it
    /// begins anew.
    fn turn(&mut self, policy: &RetryBudget, now: Mono) -> usize {
        let slot_ms = u64::from(policy.interval_ms).div_ceil(SLOTS as u64).max(1);
        if self.slot_ms != slot_ms {
            let under_way = self.under_way.clone();
            *self = Self { slot_ms, slot: now.0 / slot_ms, under_way, ..Self::default() };
        }
        let slot = now.0 / slot_ms;
        let passed = slot.saturating_sub(self.slot).min(SLOTS as u64);
        for step in 1..=passed {
            let i = index(self.slot + step);
            if let (Some(a), Some(b)) = (self.requests.get_mut(i), self.retries.get_mut(i)) {
                (*a, *b) = (0, 0);
            }
        }
        self.slot = self.slot.max(slot);
        index(self.slot)
    }
}

// === impl Granted ===

impl Drop for Granted {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

fn index(slot: u64) -> usize {
    usize::try_from(slot % SLOTS as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const T: Mono = Mono(5_000);

    fn granted(budget: &mut Budget, policy: &RetryBudget, now: Mono) -> usize {
        (0..1_000).filter(|_| budget.take(policy, 1, now).is_some()).count()
    }

    #[test]
    fn retries_are_a_share_of_requests_and_recover() {
        let policy =
            RetryBudget { basis_points: 2_000, min_per_second: 1, ..RetryBudget::default() };
        let mut budget = Budget::default();
        for _ in 0..1_000 {
            budget.request(&policy, T);
        }
        assert_eq!(granted(&mut budget, &policy, T), 200);
        // The window passes: only the minimum is left, then requests earn retries again.
        assert_eq!(granted(&mut budget, &policy, T.plus(Duration::from_secs(11))), 10);
    }

    #[test]
    fn the_policy_says_what_is_recent() {
        let interval = |interval_ms| RetryBudget {
            basis_points: 2_000,
            min_per_second: 0,
            interval_ms,
            ..RetryBudget::default()
        };
        for (policy, later) in [(interval(1_000), 0), (interval(60_000), 20)] {
            let mut budget = Budget::default();
            for _ in 0..100 {
                budget.request(&policy, T);
            }
            let passed = T.plus(Duration::from_secs(2));
            assert_eq!(granted(&mut budget, &policy, passed), later, "{policy:?}");
        }
    }

    #[test]
    fn some_may_be_under_way_whatever_the_share() {
        let policy = RetryBudget {
            basis_points: 0,
            min_per_second: 0,
            min_concurrent: 3,
            ..RetryBudget::default()
        };
        let mut budget = Budget::default();
        let held: Vec<_> = (0..5).filter_map(|_| budget.take(&policy, 1, T)).collect();
        assert_eq!(held.len(), 3);
        drop(held);
        assert!(budget.take(&policy, 1, T).is_some());
        // Each of four workers has one at least.
        let held: Vec<_> = (0..5).filter_map(|_| budget.take(&policy, 4, T)).collect();
        assert_eq!(held.len(), 1);
    }

    #[test]
    fn an_idle_backend_can_retry_its_first_request() {
        let (mut budget, policy) = (Budget::default(), RetryBudget::default());
        budget.request(&policy, Mono(0));
        assert!(budget.take(&policy, 8, Mono(0)).is_some());
    }
}
