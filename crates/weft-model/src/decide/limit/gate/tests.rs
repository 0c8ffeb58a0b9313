// SPDX-License-Identifier: Apache-2.0
//! The gate before a simulated server with a line without end, which does not hear that clients
//! go away. What is not overload loses no request that is answered without a gate.

mod busy;
mod sim;

use super::*;
use sim::{Class, Outcome, SECOND, Service, run};

/// Of servers and clients at random.
const ROUNDS: u64 = 300;

fn steady(per_second: u64, seconds: u64, patience_us: u64, service: fn(u64) -> u64) -> Class {
    let to_us = seconds * SECOND;
    Class { per_second, from_us: 0, to_us, patience_us, service: Service::By(service), whole: true }
}

/// With and without a gate: as many are answered, but for a part in a thousand.
fn loses_nothing(name: &str, places: usize, classes: &[Class]) -> Vec<Outcome> {
    let (without, _) = run(Vec::new(), places, classes);
    let (with, _) = run(vec![Gate::new(8)], places, classes);
    for (i, (with, without)) in with.iter().zip(&without).enumerate() {
        assert!(with.good * 1_000 >= without.good * 999, "{name} {i}: {with:?}, else {without:?}");
    }
    with
}

#[test]
fn five_times_too_much_and_nothing_configured() {
    for patience in [500_000, SECOND, 2 * SECOND, 5 * SECOND] {
        let class = [steady(1_000, 12, patience, |_| 100_000)];
        let (without, _) = run(Vec::new(), 20, &class);
        let (with, gate) = run(vec![Gate::new(8)], 20, &class);
        let limit = gate[0].limit();
        println!("patience {patience}: {with:?}, else {without:?}, limit {limit:?}");
        // With five seconds it takes longer than that until clients leave.
        let least = if patience == 5 * SECOND { 50 } else { 75 };
        assert!(with[0].good * 100 >= 2_400 * least, "patience {patience}: {:?}", with[0]);
    }
}

/// Of a server whose answers do not all take as long, from several workers that see a part each.
#[test]
fn workers_of_five_times_too_much() {
    fn steady_pace(_: u64) -> u64 {
        100_000
    }
    fn some(now: u64) -> u64 {
        75_000 + now / 10 * 7_919 % 50_000
    }
    fn wide(now: u64) -> u64 {
        50_000 + now / 10 * 7_919 % 100_000
    }
    let all = [("steady", steady_pace as fn(u64) -> u64), ("some", some), ("wide", wide)];
    for (name, service) in all {
        for workers in [1, 2, 4] {
            let least = (16u32 / workers).max(4);
            let gates = (0..workers).map(|_| Gate::new(least)).collect();
            let (with, _) = run(gates, 20, &[steady(1_000, 12, SECOND, service)]);
            println!("{name}, {workers} workers: {:?}", with[0]);
            assert!(with[0].good * 100 >= 2_400 * 85, "{name} {workers}: {:?}", with[0]);
        }
    }
}

#[test]
fn what_a_server_can_do_never_waits() {
    for (places, us, offered) in [(20, 100_000u64, 150), (500, 900_000, 400), (4, 10_000, 300)] {
        let service = match us {
            100_000 => |_| 100_000,
            900_000 => |_| 900_000,
            _ => |_| 10_000,
        };
        let class = [steady(offered, 20, 10 * SECOND, service)];
        let with = loses_nothing("enough", places, &class);
        assert!(with[0].longest_us <= us + 1_000, "{with:?}");
    }
}

#[test]
fn quick_and_slow_requests_of_one_backend() {
    let slow = steady(50, 20, 3 * SECOND, |_| 2 * SECOND);
    let quick = steady(500, 20, 300_000, |_| 5_000);
    let with = loses_nothing("bimodal", 1_000, &[quick, slow]);
    assert!(with[0].longest_us <= 10_000, "{with:?}");
    // Mostly slow ones, which begin at once, and few quick ones.
    let slow = Class { from_us: 2 * SECOND, ..steady(400, 20, 3 * SECOND, |_| 2 * SECOND) };
    let quick = steady(50, 20, 300_000, |_| 5_000);
    loses_nothing("mostly slow", 2_000, &[quick, slow]);
    // Clients of the slow ones always give up.
    let slow = steady(200, 20, SECOND, |_| 2 * SECOND);
    let quick = steady(100, 20, 300_000, |_| 5_000);
    loses_nothing("slow is given up", 2_000, &[quick, slow]);
}

#[test]
fn a_backend_that_becomes_three_times_slower_with_room_to_spare() {
    fn step(now: u64) -> u64 {
        if now < 5 * SECOND { 100_000 } else { 300_000 }
    }
    for (rate, patience) in [(500, SECOND), (500, 500_000), (2_000, SECOND), (100, 400_000)] {
        loses_nothing("slower", 2_000, &[steady(rate, 20, patience, step)]);
    }
    fn far(now: u64) -> u64 {
        if now < 5 * SECOND { 20_000 } else { 600_000 }
    }
    loses_nothing("thirty times", 2_000, &[steady(500, 20, 3 * SECOND, far)]);
}

/// A backend that waits for something else, has no limit of its own, and becomes slower and slower
/// until it is stable. Meanwhile that looks like a line; afterwards nobody waits at the gate, or
/// leaves who would have had an answer.
#[test]
fn slower_and_slower_with_room_to_spare_ends_as_without_a_gate() {
    fn steep(now: u64) -> u64 {
        (now.saturating_sub(9 * SECOND) / 2).clamp(SECOND / 2, 6 * SECOND)
    }
    fn flat(now: u64) -> u64 {
        (SECOND / 10 + now.saturating_sub(10 * SECOND) * 3 / 10).min(4 * SECOND)
    }
    for (rate, patience, service) in [
        (200, 60 * SECOND, steep as fn(u64) -> u64),
        (200, 9 * SECOND, steep),
        (1_000, 60 * SECOND, steep),
        // Just as long as one may wait here and for an answer: all leave just before that comes.
        (100, 9 * SECOND, flat),
    ] {
        let early = steady(rate, 60, patience, service);
        let late = Class { from_us: 60 * SECOND, to_us: 80 * SECOND, ..early };
        let (without, _) = run(Vec::new(), 20_000, &[early, late]);
        let (with, _) = run(vec![Gate::new(8)], 20_000, &[early, late]);
        println!("{rate}/s for {patience}: {with:?}, else {without:?}");
        assert_eq!(with[1], without[1], "{rate}/s for {patience}");
    }
}

#[test]
fn a_cold_start() {
    // Three seconds each until it is warm; clients wait, or most of them do not.
    fn cold(now: u64) -> u64 {
        if now < 5 * SECOND { 3 * SECOND } else { 20_000 }
    }
    for patience in [10 * SECOND, 4 * SECOND, SECOND] {
        loses_nothing("cold", 4_000, &[steady(500, 20, patience, cold)]);
    }
    // And of little width, so that there is a line while it is cold.
    fn slow(now: u64) -> u64 {
        if now < 3 * SECOND { 200_000 } else { 10_000 }
    }
    for patience in [10 * SECOND, 5 * SECOND] {
        loses_nothing("cold and narrow", 20, &[steady(300, 20, patience, slow)]);
    }
}

#[test]
fn bursts_and_clients_that_wait() {
    let usual = steady(200, 12, 10 * SECOND, |_| 20_000);
    let burst = Class {
        from_us: 5 * SECOND,
        to_us: 5 * SECOND + SECOND / 10,
        ..steady(50_000, 12, 10 * SECOND, |_| 20_000)
    };
    loses_nothing("burst", 40, &[usual, burst]);
    // Twice too much for ten seconds, and everybody waits.
    let much = [steady(400, 10, 60 * SECOND, |_| 100_000)];
    let with = loses_nothing("patient", 20, &much);
    assert_eq!(with[0].good, with[0].came);
}

#[test]
fn long_polls_and_slow_uploads() {
    // Nothing happens for clients that wait for half a minute; others go on.
    let polls = steady(20, 60, 25 * SECOND, |_| 30 * SECOND);
    let quick = steady(200, 60, SECOND, |_| 5_000);
    loses_nothing("polls", 5_000, &[quick, polls]);
    // Only polls, which are answered at odd times while more and more come.
    fn event(now: u64) -> u64 {
        (now / 1_000 * 7_919) % (20 * SECOND)
    }
    loses_nothing("events", 5_000, &[steady(40, 60, 25 * SECOND, event)]);
    // Uploads that last and are given up before the backend has them.
    let trickle = Class { whole: false, ..steady(300, 30, SECOND, |_| 5 * SECOND) };
    let quick = steady(100, 30, 200_000, |_| 5_000);
    loses_nothing("trickle", 5_000, &[quick, trickle]);
}

#[test]
fn one_clients_given_up_requests_keep_nobody_out() {
    // As many as it can, of the slow kind, and never waits; the server has room for all of it.
    let attack = Class { from_us: 2 * SECOND, ..steady(500, 30, 200_000, |_| SECOND) };
    let honest = steady(60, 30, SECOND, |_| 5_000);
    loses_nothing("given up", 5_000, &[honest, attack]);
}

#[test]
fn it_opens_when_overload_is_over() {
    let much = steady(1_000, 5, SECOND, |_| 100_000);
    let usual = steady(100, 30, SECOND, |_| 100_000);
    let (_, gate) = run(vec![Gate::new(8)], 20, &[much, usual]);
    assert_eq!(gate[0].limit(), None);
}

/// A number below another one.
fn rng(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move |n| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % n
    }
}

/// Servers and clients at random.
fn random(below: &mut impl FnMut(u64) -> u64) -> (usize, Vec<Class>) {
    let wide = 1 + 20 * usize::from(below(3) == 0);
    let places = 1 + usize::try_from(below(60)).unwrap() * wide;
    let classes = (0..=below(3)).map(|_| {
        let base = 2_000 << below(9);
        let mut step = |from: u64| (from, base * (1 + below(3) * below(4)));
        let steps = [step(0), step(4 * SECOND), step(8 * SECOND)];
        let from_us = below(5) * SECOND;
        Class {
            per_second: 1 + below(40) * (1 + below(20)),
            from_us,
            to_us: from_us + (1 + below(10)) * SECOND,
            patience_us: 100_000 << below(8),
            service: Service::Steps(steps),
            whole: below(5) > 0,
        }
    });
    (places, classes.collect())
}

/// Where no client gives up without a gate, none does with one, but in one of a thousand; where
/// some do, the sum of what is answered is larger, and it is seldom less.
#[test]
fn whatever_comes_a_gate_does_little_harm() {
    let mut below = rng(0x2545_f491_4f6c_dd1d);
    let (mut more, mut fewer, mut broken, mut well) = (0, 0, 0, 0);
    let (mut sum, mut sum_without) = (0, 0);
    for _ in 0..ROUNDS {
        let (places, classes) = random(&mut below);
        let (without, _) = run(Vec::new(), places, &classes);
        let (with, _) = run(vec![Gate::new(8)], places, &classes);
        let good = |all: &[Outcome]| all.iter().map(|o| o.good).sum::<u64>();
        let (a, b) = (good(&with), good(&without));
        let came: u64 = with.iter().map(|o| o.came).sum();
        let bar = came / 100;
        more += u64::from(a > b + bar);
        fewer += u64::from(b > a + bar);
        well += u64::from(b == came);
        broken += u64::from(b == came && a + bar < came);
        (sum, sum_without) = (sum + a, sum_without + b);
    }
    println!(
        "of {ROUNDS}: more in {more}, fewer in {fewer}; {well} were well, {broken} of them not; \
         {sum} answers, {sum_without} without"
    );
    assert!(broken <= 1 && well > ROUNDS / 3, "{broken} of {well}");
    assert!(fewer * 2 < more, "{fewer} {more}");
    assert!(sum > sum_without, "{sum} {sum_without}");
}
