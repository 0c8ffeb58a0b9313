// SPDX-License-Identifier: Apache-2.0
//! Overload on a machine that is busy with something else, from the first moment on: clients, proxy
//! and server stand still at random times, timers are late, and answers come in lumps. All that is
//! known must be learnt before clients leave, for afterwards nobody is answered any more.

use super::sim::{Busy, Pauses, Sim};
use super::*;

const SEEDS: u64 = 8;
const SECONDS: u64 = 8;

/// A row of pauses of `1..most_ms` with gaps of `1..3 * most_ms` between them.
fn pauses(below: &mut impl FnMut(u64) -> u64, most_ms: u64) -> Pauses {
    let (mut out, mut at) = (Vec::new(), 0);
    while most_ms > 0 && at < 2 * SECONDS * SECOND {
        let from = at + 1_000 * (1 + below(3 * most_ms));
        at = from + 1_000 * (1 + below(most_ms));
        out.push((from, at));
    }
    out
}

/// What a server of twenty places did in time of what it could have done in eight seconds, of a
/// hundred; each of the three stands still for so many milliseconds at most.
fn goodput(gates: Vec<Gate>, refuses: bool, seed: u64, most_ms: [u64; 3]) -> u64 {
    fn late(now: u64) -> u64 {
        100_000 + now / 10 * 7_919 % 20_000
    }
    let mut below = rng(seed);
    let [clients, proxy, server] = most_ms.map(|most| pauses(&mut below, most));
    let end = SECONDS * SECOND;
    let still: u64 = server.iter().map(|(from, to)| (*to).min(end).saturating_sub(*from)).sum();
    let class = [Class {
        per_second: 1_000,
        from_us: 0,
        to_us: end,
        patience_us: SECOND,
        service: Service::By(late),
        whole: true,
    }];
    let mut sim = Sim::new(gates, 20, &class);
    (sim.refuses, sim.busy) = (refuses, Busy { clients, proxy, server });
    sim.skew = usize::try_from(below(8)).unwrap();
    sim.run();
    let could = (end - still) * 20 / 110_000;
    100 * sim.outcomes[0].good / could
}

/// The least of all seeds, the second, and the median.
fn worst(workers: u32, refuses: bool, most_ms: [u64; 3]) -> [u64; 3] {
    let gate = || match refuses {
        true => Gate::by(&Adaptive::default()),
        false => Gate::new(16 / workers),
    };
    let gates = || (0..workers).map(|_| gate()).collect();
    let mut all: Vec<u64> =
        (1..=SEEDS).map(|seed| goodput(gates(), refuses, seed, most_ms)).collect();
    all.sort_unstable();
    [all[0], all[1], all[all.len() / 2]]
}

/// A gate that never closes answers 9 to 17 of a hundred, those of the first moment.
#[test]
fn five_times_too_much_on_a_busy_machine() {
    for (most_ms, bars) in
        [([100, 100, 100], [70, 75, 85]), ([0, 300, 0], [30, 40, 75]), ([0, 0, 300], [25, 40, 75])]
    {
        for (workers, refuses) in [(1, false), (1, true), (2, false), (2, true)] {
            let got = worst(workers, refuses, most_ms);
            let what = format!("{most_ms:?}, {workers} workers, refuses {refuses}: {got:?}");
            println!("{what}");
            assert!(got.iter().zip(bars).all(|(got, bar)| *got >= bar), "{what}, not {bars:?}");
        }
    }
}
