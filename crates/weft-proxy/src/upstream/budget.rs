// SPDX-License-Identifier: Apache-2.0
//! The retry budget: retries may be a share of recent requests, so that a failing upstream never
//! sees more than that much extra load. Pure; one per backend and worker.

use weft_base::clock::Mono;
use weft_model::RetryBudget;

const SLOTS: usize = 10;
const SLOT_MS: u64 = 1_000;

/// Requests and retries of the last ten seconds.
#[derive(Clone, Debug, Default)]
pub struct Budget {
    requests: [u64; SLOTS],
    retries: [u64; SLOTS],
    slot: u64,
}

// === impl Budget ===

impl Budget {
    /// Notes a first attempt.
    pub fn request(&mut self, now: Mono) {
        let i = self.turn(now);
        if let Some(n) = self.requests.get_mut(i) {
            *n += 1;
        }
    }

    /// Takes room for one retry; `false` when there is none. `workers` share the minimum.
    pub fn take(&mut self, policy: &RetryBudget, workers: usize, now: Mono) -> bool {
        let i = self.turn(now);
        let requests: u64 = self.requests.iter().sum();
        let retries: u64 = self.retries.iter().sum();
        let share = requests * u64::from(policy.basis_points) / 10_000;
        let floor = u64::from(policy.min_per_second) * SLOTS as u64 / workers.max(1) as u64;
        if retries >= share.max(floor) {
            return false;
        }
        if let Some(n) = self.retries.get_mut(i) {
            *n += 1;
        }
        true
    }

    /// Moves on to the slot of `now`, emptying those that were passed.
    fn turn(&mut self, now: Mono) -> usize {
        let slot = now.0 / SLOT_MS;
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

fn index(slot: u64) -> usize {
    usize::try_from(slot % SLOTS as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn retries_are_a_share_of_requests_and_recover() {
        let policy = RetryBudget { basis_points: 2_000, min_per_second: 1 };
        let mut budget = Budget::default();
        let t = Mono(5_000);
        for _ in 0..1_000 {
            budget.request(t);
        }
        let granted = (0..1_000).filter(|_| budget.take(&policy, 1, t)).count();
        assert_eq!(granted, 200);
        // The window passes: only the minimum is left, then requests earn retries again.
        let later = t.plus(Duration::from_secs(11));
        let granted = (0..1_000).filter(|_| budget.take(&policy, 1, later)).count();
        assert_eq!(granted, 10);
    }

    #[test]
    fn an_idle_backend_can_retry_its_first_request() {
        let mut budget = Budget::default();
        budget.request(Mono(0));
        assert!(budget.take(&RetryBudget::default(), 8, Mono(0)));
    }
}
