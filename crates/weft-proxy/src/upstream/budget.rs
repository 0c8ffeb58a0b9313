// SPDX-License-Identifier: Apache-2.0
//! The retry budget of a backend: retries may be a share of recent requests, so that a failing
//! upstream never sees more than that much extra load. It is the whole proxy's and exact: workers
//! together never send more again than the policy says, and any of them gets at the last retry.
//! Each worker counts its own requests, which costs no other one anything; what is shared is
//! written only when a request is sent again. No locks, no I/O.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use weft_base::clock::Mono;
use weft_model::RetryBudget;

/// What is recent is so many slots long.
const SLOTS: u32 = 10;

/// Requests and retries of a policy's interval; see [`Budget::after`] for what outlives a change
/// of that.
#[derive(Debug)]
pub struct Budget {
    workers: usize,
    slot_ms: u64,
    /// Retries that were ever granted, counted round and round.
    granted: AtomicU32,
    under_way: Arc<AtomicU32>,
    /// Once there was a request: of thousands of backends most are never used by a proxy.
    counts: OnceLock<Box<Counts>>,
}

#[derive(Debug)]
struct Counts {
    /// First attempts of each worker, which alone writes them.
    requests: Box<[Requests]>,
    /// How many retries had been granted when a slot began in which somebody asked for one.
    marks: Slots,
}

/// Each is the number of a slot and what was counted in that; see [`packed`].
type Slots = [AtomicU64; SLOTS as usize];

#[derive(Debug, Default)]
#[repr(align(128))]
struct Requests(Slots);

/// A retry of the budget while it lasts.
#[derive(Debug)]
pub struct Granted(Arc<AtomicU32>);

// === impl Budget ===

impl Budget {
    pub fn new(policy: &RetryBudget, workers: usize) -> Arc<Self> {
        Arc::new(Self::of(slot_ms(policy), workers, Arc::default()))
    }

    /// The budget of a backend's newer form: the same one, unless the policy's interval is another:
    /// then what is recent begins anew, while retries under way go on being counted.
    pub fn after(before: &Arc<Self>, policy: &RetryBudget) -> Arc<Self> {
        let slot_ms = slot_ms(policy);
        if slot_ms == before.slot_ms {
            return before.clone();
        }
        Arc::new(Self::of(slot_ms, before.workers, before.under_way.clone()))
    }

    fn of(slot_ms: u64, workers: usize, under_way: Arc<AtomicU32>) -> Self {
        Self {
            workers: workers.max(1),
            slot_ms,
            granted: AtomicU32::new(0),
            under_way,
            counts: OnceLock::new(),
        }
    }

    /// Notes a first attempt of a worker.
    pub fn request(&self, worker: usize, now: Mono) {
        let slot = self.slot(now);
        let own = self.counts().requests.get(worker);
        let Some(cell) = own.and_then(|own| own.0.get(index(slot))) else { return };
        let (of, count) = unpacked(cell.load(Ordering::Relaxed));
        let count = if of == slot { count.saturating_add(1) } else { 1 };
        cell.store(packed(slot, count), Ordering::Relaxed);
    }

    /// Takes room for one retry; `None` when there is none.
    pub fn take(&self, policy: &RetryBudget, now: Mono) -> Option<Granted> {
        if self.grant(policy, now) {
            self.under_way.fetch_add(1, Ordering::Relaxed);
            return Some(Granted(self.under_way.clone()));
        }
        // Some may be under way at any time, and count as retries like all others.
        let more = |n: u32| (n < policy.min_concurrent).then_some(n + 1);
        self.under_way.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        self.granted.fetch_add(1, Ordering::AcqRel);
        Some(Granted(self.under_way.clone()))
    }

    /// Counts one more, if the policy's share or its minimum has room for that.
    fn grant(&self, policy: &RetryBudget, now: Mono) -> bool {
        let slot = self.slot(now);
        let since = self.mark(slot);
        let share = self.recent(slot) * u64::from(policy.basis_points) / 10_000;
        let interval_ms = self.slot_ms * u64::from(SLOTS);
        let floor = u64::from(policy.min_per_second) * interval_ms / 1_000;
        let most = share.max(floor);
        let more = |granted: u32| {
            let recent = u64::from(granted.wrapping_sub(since));
            (recent < most).then(|| granted.wrapping_add(1))
        };
        self.granted.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    /// Marks where a slot begins if nobody did, and says how many had been granted before what is
    /// recent now.
    fn mark(&self, slot: u32) -> u32 {
        let (marks, granted) = (&self.counts().marks, self.granted.load(Ordering::Acquire));
        if let Some(own) = marks.get(index(slot)) {
            let marked = |before: u64| (unpacked(before).0 != slot).then(|| packed(slot, granted));
            // Whoever was first has marked it.
            let _ = own.fetch_update(Ordering::AcqRel, Ordering::Acquire, marked);
        }
        // Where nobody asked nothing was granted.
        let oldest_first = (0..SLOTS).rev().map(|ago| slot.wrapping_sub(ago));
        let mut found = oldest_first.filter_map(|slot| {
            let (of, mark) = unpacked(marks.get(index(slot))?.load(Ordering::Acquire));
            (of == slot).then_some(mark)
        });
        found.next().unwrap_or(granted)
    }

    /// First attempts of all workers that are recent.
    fn recent(&self, slot: u32) -> u64 {
        let counted = self.counts().requests.iter().flat_map(|own| &own.0).map(|cell| {
            let (of, count) = unpacked(cell.load(Ordering::Relaxed));
            let recent = slot.wrapping_sub(of) < SLOTS;
            if recent { u64::from(count) } else { 0 }
        });
        counted.sum()
    }

    fn counts(&self) -> &Counts {
        self.counts.get_or_init(|| {
            let requests = (0..self.workers).map(|_| Requests::default()).collect();
            Box::new(Counts { requests, marks: Slots::default() })
        })
    }

    /// Numbers of slots begin at 1, so that what was never written is of none.
    fn slot(&self, now: Mono) -> u32 {
        u32::try_from((now.0 / self.slot_ms + 1) & u64::from(u32::MAX)).unwrap_or(0)
    }
}

// === impl Granted ===

impl Drop for Granted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// In milliseconds.
fn slot_ms(policy: &RetryBudget) -> u64 {
    u64::from(policy.interval_ms).div_ceil(SLOTS.into()).max(1)
}

fn index(slot: u32) -> usize {
    usize::try_from(slot % SLOTS).unwrap_or(0)
}

fn packed(slot: u32, count: u32) -> u64 {
    u64::from(slot) << 32 | u64::from(count)
}

fn unpacked(both: u64) -> (u32, u32) {
    let low = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(0);
    (low(both >> 32), low(both))
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;

    const T: Mono = Mono(5_000);
    const NONE: RetryBudget =
        RetryBudget { basis_points: 0, min_per_second: 0, min_concurrent: 0, interval_ms: 10_000 };

    fn granted(budget: &Budget, policy: &RetryBudget, now: Mono) -> usize {
        (0..1_000).filter(|_| budget.take(policy, now).is_some()).count()
    }

    #[test]
    fn retries_are_a_share_of_requests_and_recover() {
        let policy = RetryBudget { basis_points: 2_000, min_per_second: 1, ..NONE };
        let budget = Budget::new(&policy, 1);
        for _ in 0..1_000 {
            budget.request(0, T);
        }
        assert_eq!(granted(&budget, &policy, T), 200);
        // The window passes: only the minimum is left, then requests earn retries again.
        assert_eq!(granted(&budget, &policy, T.plus(Duration::from_secs(11))), 10);
    }

    /// Each slot gives back what was granted in it ten slots ago, no sooner and no later.
    #[test]
    fn what_was_granted_is_recent_for_the_interval() {
        let policy = RetryBudget { min_per_second: 1, ..NONE };
        let budget = Budget::new(&policy, 1);
        let at = |secs: u64| Mono(secs * 1_000);
        for secs in [1, 3] {
            for _ in 0..5 {
                assert!(budget.take(&policy, at(secs)).is_some(), "{secs}");
            }
        }
        assert_eq!(granted(&budget, &policy, at(10)), 0);
        assert_eq!(granted(&budget, &policy, at(11)), 5);
        assert_eq!(granted(&budget, &policy, at(12)), 0);
        assert_eq!(granted(&budget, &policy, at(13)), 5);
    }

    #[test]
    fn the_policy_says_what_is_recent() {
        let interval = |interval_ms| RetryBudget { basis_points: 2_000, interval_ms, ..NONE };
        for (policy, later) in [(interval(1_000), 0), (interval(60_000), 20)] {
            let budget = Budget::new(&policy, 1);
            for _ in 0..100 {
                budget.request(0, T);
            }
            let passed = T.plus(Duration::from_secs(2));
            assert_eq!(granted(&budget, &policy, passed), later, "{policy:?}");
        }
    }

    #[test]
    fn some_may_be_under_way_whatever_the_share() {
        let policy = RetryBudget { min_concurrent: 3, ..NONE };
        let budget = Budget::new(&policy, 4);
        let held: Vec<_> = (0..5).filter_map(|_| budget.take(&policy, T)).collect();
        assert_eq!(held.len(), 3);
        // With another interval what is recent begins anew; these are under way all the same.
        let longer = RetryBudget { interval_ms: 60_000, ..policy.clone() };
        let after = Budget::after(&budget, &longer);
        assert!(after.take(&longer, T).is_none());
        drop(held);
        assert!(after.take(&longer, T).is_some());
        assert!(Arc::ptr_eq(&after, &Budget::after(&after, &longer)));
    }

    #[test]
    fn an_idle_backend_can_retry_its_first_request() {
        let policy = RetryBudget::default();
        let budget = Budget::new(&policy, 8);
        budget.request(7, Mono(0));
        assert!(budget.take(&policy, Mono(0)).is_some());
    }

    /// Eight threads ask and ask again as fast as they can: together they get exactly what the
    /// policy says of all their requests, and no more at a time.
    #[test]
    fn a_budget_is_exact_over_workers() {
        const WORKERS: usize = 8;
        let cases = [
            (RetryBudget { basis_points: 2_000, ..NONE }, 160),
            (RetryBudget { min_per_second: 3, ..NONE }, 30),
            (RetryBudget { min_concurrent: 3, ..NONE }, 3),
        ];
        for (policy, most) in cases {
            let budget = Budget::new(&policy, WORKERS);
            let asked = std::sync::Barrier::new(WORKERS);
            let held: Vec<Granted> = thread::scope(|scope| {
                let one = |worker| {
                    let (budget, policy, asked) = (&budget, &policy, &asked);
                    scope.spawn(move || {
                        for _ in 0..100 {
                            budget.request(worker, T);
                        }
                        asked.wait();
                        (0..1_000).filter_map(|_| budget.take(policy, T)).collect::<Vec<_>>()
                    })
                };
                let all: Vec<_> = (0..WORKERS).map(one).collect();
                all.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
            });
            assert_eq!(held.len(), most, "{policy:?}");
        }
    }
}
