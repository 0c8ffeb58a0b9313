// SPDX-License-Identifier: Apache-2.0
//! That limits are exact over all workers, that no unit is lost or hidden from anybody, and that
//! the usual case writes nothing that is shared.

use std::sync::atomic::AtomicBool;
use std::thread;

use proptest::prelude::*;

use super::*;

/// Units in hands, used and spare.
fn counted(quota: &Quota) -> (u64, u64) {
    let sum = |part: fn(&Hand) -> &AtomicU64| {
        quota.hands().iter().map(|hand| part(hand).load(Ordering::SeqCst)).sum::<u64>()
    };
    (sum(|hand| &hand.used), sum(|hand| &hand.spare))
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Take(usize),
    Put(usize),
    Wait(usize),
    Leave(usize),
    Rest(usize),
}

fn steps() -> impl Strategy<Value = (usize, u32, Vec<Step>)> {
    (1usize..=8, 0u32..200).prop_flat_map(|(workers, most)| {
        let worker = 0..workers;
        let step = prop_oneof![
            5 => worker.clone().prop_map(Step::Take),
            4 => worker.clone().prop_map(Step::Put),
            1 => worker.clone().prop_map(Step::Wait),
            1 => worker.clone().prop_map(Step::Leave),
            1 => worker.prop_map(Step::Rest),
        ];
        (Just(workers), Just(most), prop::collection::vec(step, 0..400))
    })
}

proptest! {
    /// Whatever workers do: never more than the limit is in use; what is taken is in some hand;
    /// and who takes while nobody waits gets a unit exactly when one is left anywhere.
    #[test]
    fn a_limit_is_exact((workers, most, steps) in steps()) {
        let quota = Quota::new(workers);
        let (mut used, mut waits) = (vec![0u64; workers], vec![false; workers]);
        for (at, step) in (1..).zip(steps) {
            match step {
                Step::Take(worker) => {
                    let got = quota.take(worker, most);
                    used[worker] += u64::from(got);
                    let all: u64 = used.iter().sum();
                    prop_assert!(all <= u64::from(most));
                    if !waits.contains(&true) {
                        prop_assert_eq!(got, all - u64::from(got) < u64::from(most));
                    }
                }
                Step::Put(worker) if used[worker] > 0 => {
                    used[worker] -= 1;
                    quota.put(worker);
                }
                Step::Wait(worker) => {
                    // Who waits has looked, and found nothing.
                    if used.iter().sum::<u64>() == u64::from(most) {
                        waits[worker] = true;
                        quota.waits(worker, Some(at));
                    }
                }
                Step::Leave(worker) => {
                    waits[worker] = false;
                    quota.waits(worker, None);
                }
                Step::Rest(worker) => quota.rest(worker),
                Step::Put(_) => {}
            }
            let (in_use, spare) = counted(&quota);
            prop_assert_eq!(in_use, used.iter().sum::<u64>());
            prop_assert_eq!(in_use + spare, quota.taken.load(Ordering::SeqCst));
            prop_assert!(in_use + spare <= u64::from(most));
        }
    }

    /// A limit that is lowered holds for all that comes; what is spare beyond it goes.
    #[test]
    fn a_lowered_limit_holds(before in 1u32..300, after in 0u32..300, workers in 1usize..=8) {
        let quota = Quota::new(workers);
        let taken = (0..before).filter(|i| quota.take(*i as usize % workers, before)).count();
        prop_assert_eq!(taken, before as usize);
        for _ in 0..before / 2 {
            quota.put((0..workers).find(|w| quota.used_by(*w) > 0).unwrap());
        }
        let left = u64::from(before - before / 2);
        let more = (0..600).filter(|i| quota.take(i % workers, after)).count() as u64;
        prop_assert_eq!(left + more, left.max(u64::from(after)));
    }
}

/// Eight threads take and put as fast as they can; `most` is small and large.
#[test]
fn threads_never_have_more_than_the_limit_and_lose_nothing() {
    for most in [1u32, 3, 8, 64, 100, 1_000] {
        let quota = Quota::new(8);
        let in_use = AtomicU64::new(0);
        thread::scope(|scope| {
            for worker in 0..8 {
                let (quota, in_use) = (&quota, &in_use);
                scope.spawn(move || {
                    let mut held = 0u64;
                    for round in 0..20_000u64 {
                        if !(round / 7 + worker as u64).is_multiple_of(3) {
                            if quota.take(worker, most) {
                                let now = in_use.fetch_add(1, Ordering::SeqCst) + 1;
                                assert!(now <= u64::from(most), "{now} of {most}");
                                held += 1;
                            }
                        } else if held > 0 {
                            held -= 1;
                            in_use.fetch_sub(1, Ordering::SeqCst);
                            quota.put(worker);
                        }
                    }
                    for _ in 0..held {
                        in_use.fetch_sub(1, Ordering::SeqCst);
                        quota.put(worker);
                    }
                });
            }
        });
        // Whoever asks last may have all of it.
        let all = (0..most).filter(|_| quota.take(3, most)).count();
        assert_eq!(all, most as usize);
        assert!(!quota.take(5, most));
    }
}

/// Workers that wait as the breaker's line does: everybody gets its turn, none is left behind.
#[test]
fn every_worker_gets_its_turn_of_a_limit_smaller_than_their_number() {
    for most in [1u32, 3] {
        let quota = Quota::new(8);
        let (clock, stuck) = (AtomicU64::new(1), AtomicBool::new(false));
        thread::scope(|scope| {
            for worker in 0..8 {
                let (quota, clock, stuck) = (&quota, &clock, &stuck);
                scope.spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread();
                    let runtime = { runtime }.enable_time().build().unwrap();
                    runtime.block_on(async {
                        for _ in 0..300 {
                            let mut took = quota.take(worker, most);
                            if !took {
                                let since = clock.fetch_add(1, Ordering::SeqCst);
                                quota.waits(worker, Some(since));
                                let turn = async {
                                    while !quota.take(worker, most) {
                                        quota.given(worker).await;
                                    }
                                };
                                let patience = std::time::Duration::from_secs(30);
                                took = tokio::time::timeout(patience, turn).await.is_ok();
                                quota.waits(worker, None);
                            }
                            if !took {
                                return stuck.store(true, Ordering::SeqCst);
                            }
                            tokio::task::yield_now().await;
                            quota.put(worker);
                        }
                    });
                });
            }
        });
        assert!(!stuck.load(Ordering::SeqCst), "a worker waited in vain, limit {most}");
        assert_eq!(counted(&quota), (0, 0));
    }
}

#[test]
fn what_a_worker_takes_and_puts_back_again_and_again_moves_no_shared_count() {
    let quota = Quota::new(8);
    for worker in 0..8 {
        assert!(quota.take(worker, 1_000));
    }
    let before = quota.taken.load(Ordering::SeqCst);
    assert_eq!(before, 8 * 15, "a slice each");
    for _ in 0..100 {
        for worker in 0..8 {
            let more = (0..10).filter(|_| quota.take(worker, 1_000)).count();
            assert_eq!(more, 10);
            (0..10).for_each(|_| quota.put(worker));
        }
    }
    assert_eq!(quota.taken.load(Ordering::SeqCst), before);
    // What is not needed for a while goes back, and what is too much at once.
    (0..8).for_each(|worker| quota.put(worker));
    (0..8).for_each(|worker| quota.rest(worker));
    assert_eq!(quota.taken.load(Ordering::SeqCst), 0);
    assert_eq!((0..500).filter(|_| quota.take(0, 1_000)).count(), 500);
    (0..500).for_each(|_| quota.put(0));
    assert!(quota.taken.load(Ordering::SeqCst) < 2 * 15);
}

#[test]
fn what_becomes_free_goes_to_who_has_less_and_to_who_has_nothing_in_turn() {
    let quota = Quota::new(3);
    assert_eq!((0..6).filter(|i| quota.take(usize::from(*i == 5), 6)).count(), 6);
    quota.waits(1, Some(10));
    quota.waits(0, Some(5));
    // 5 and 1: given away until they are even, whoever waits for longer.
    for expected in [2, 3] {
        quota.put(0);
        assert!(!quota.take(0, 6) && quota.take(1, 6));
        assert_eq!(quota.used_by(1), expected);
    }
    quota.put(0);
    assert!(quota.take(0, 6), "3 and 3: each keeps its own");
    // Who has nothing is given something when it has waited for longer than a turn.
    quota.waits(2, Some(11));
    quota.waits(1, None);
    assert!(quota.is_owed(1), "who waits for nothing gives at once");
    assert!(!quota.is_owed_in_earnest(1, 11 + TURN_MS - 1));
    assert!(quota.is_owed_in_earnest(1, 11 + TURN_MS));
    quota.put(1);
    assert!(!quota.take(0, 6), "it is promised");
    // Who leaves passes on what it was given.
    quota.waits(2, None);
    assert!(quota.take(0, 6));
}
