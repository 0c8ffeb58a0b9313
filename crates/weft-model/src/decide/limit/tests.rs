// SPDX-License-Identifier: Apache-2.0
//! Rates, rows of checks, and adaptive concurrency against a simulated server.

use std::collections::{BTreeMap, BinaryHeap};

use super::*;
use crate::Adaptive;

fn limit(requests: u32, per_ms: u64, burst: u32) -> RateLimit {
    RateLimit { name: "t".into(), requests, per_ms, burst, by: vec![], keys_max: 0 }
}

#[test]
fn a_bucket_gives_its_burst_and_then_its_rate() {
    let rate = Rate::of(&limit(10, 1_000, 0));
    let (mut state, now) = (0, 5_000_000_000);
    let mut granted = 0;
    while let Grant::Yes(next) = rate.take(state, now, 1) {
        (state, granted) = (next, granted + 1);
    }
    assert_eq!(granted, 10);
    assert_eq!(rate.take(state, now, 1), Grant::No(100_000_000), "one in a tenth of a second");
    assert!(matches!(rate.take(state, now + 100_000_000, 1), Grant::Yes(_)));
    assert_eq!(rate.room(state, now + 350_000_000), 3);
    // Over a minute: never more than the burst and the rate.
    let mut count = 0;
    for ms in 0..60_000 {
        if let Grant::Yes(next) = rate.take(state, now + ms * 1_000_000, 1) {
            (state, count) = (next, count + 1);
        }
    }
    assert_eq!(count, 599);
}

#[test]
fn nothing_is_nothing_and_odd_rates_are_never_exceeded() {
    let rate = Rate::of(&limit(0, 1_000, 5));
    assert_eq!(rate.take(0, 9, 1), Grant::No(1_000_000_000));
    let rate = Rate::of(&limit(7, 1_000, 1));
    let (mut state, mut count) = (0, 0);
    for us in 0..10_000_000u64 {
        if let Grant::Yes(next) = rate.take(state, us * 1_000, 1) {
            (state, count) = (next, count + 1);
        }
    }
    assert!((69..=70).contains(&count), "{count}");
}

#[test]
fn checks_in_a_row_decide_and_the_first_decides_alone() {
    let check = HealthCheck { healthy: 2, unhealthy: 3, ..HealthCheck::default() };
    let run = |script: &str| -> String {
        let mut row = CheckRow::default();
        let each = script.chars().map(|c| {
            let seen = match c {
                '+' => Probe::Pass,
                '!' => Probe::Refuses,
                _ => Probe::Fail,
            };
            if row.note(&check, seen) { 'o' } else { 'i' }
        });
        each.collect()
    };
    assert_eq!(run("+--+---"), "iiiiiio");
    assert_eq!(run("-++-++"), "ooiiii");
    assert_eq!(run("-+-++"), "ooooi");
    assert_eq!(run("+!+"), "ioo");
}

/// `places` requests at a time, each `ms` long, the rest in a line; `offered` per second for
/// `seconds`. Returns answers within a second, refusals, and the limit at the end.
/// Clients wait for a second; the server does not hear that they went away.
fn serve(gate: &mut Gate, places: usize, ms: u64, offered: u64, seconds: u64) -> [u64; 3] {
    // Ends as negative numbers, so that the earliest is on top.
    let mut busy: BinaryHeap<(i64, u64)> = BinaryHeap::new();
    let (mut line, mut waiting) = (std::collections::VecDeque::new(), BTreeMap::new());
    let (mut good, mut refused) = (0, 0);
    let start = 1_000_000_000u64;
    let flying = |waiting: &BTreeMap<u64, u32>| u32::try_from(waiting.len()).unwrap();
    for i in 0..offered * seconds {
        let now = start + i * 1_000_000 / offered;
        while let Some((end, came)) = busy.peek().copied().filter(|(e, _)| -e <= now as i64) {
            busy.pop();
            let end = (-end) as u64;
            if let Some(ahead) = waiting.remove(&came) {
                gate.answered((true, ahead), end - came, flying(&waiting), end);
                good += 1;
            }
            if let Some(next) = line.pop_front() {
                busy.push((-((end + ms * 1_000) as i64), next));
            }
        }
        while let Some(came) = waiting.keys().next().copied().filter(|c| c + 1_000_000 <= now) {
            waiting.remove(&came);
            gate.given_up(0, now - came, flying(&waiting), now);
        }
        let ahead = flying(&waiting);
        if gate.arrive(ahead, 0, now) == Entry::Wait {
            refused += 1;
            continue;
        }
        waiting.insert(now, ahead);
        match busy.len() < places {
            true => busy.push((-((now + ms * 1_000) as i64), now)),
            false => line.push_back(now),
        }
    }
    [good, refused, gate.limit().map_or(0, u64::from)]
}

#[test]
fn five_times_too_much_keeps_the_server_busy_and_answers_in_time() {
    let mut gate = Gate::by(&Adaptive::default());
    let [good, refused, limit] = serve(&mut gate, 20, 100, 1_000, 12);
    // 200 per second is all that it can do.
    assert!(good >= 2_200, "{good} good of 2,400, {refused} refused, limit {limit}");
    assert!((20..=80).contains(&limit), "{limit}");
}

#[test]
fn what_a_server_can_do_is_never_refused() {
    for (places, ms, offered) in [(20, 100, 150), (500, 900, 400), (4, 10, 300)] {
        let mut gate = Gate::by(&Adaptive::default());
        let [_, refused, limit] = serve(&mut gate, places, ms, offered, 20);
        assert_eq!((refused, limit), (0, 0), "{places} places of {ms} ms, {offered}/s");
    }
}

#[test]
fn a_server_that_became_slower_and_wider_gets_its_requests_back() {
    let mut gate = Gate::by(&Adaptive::default());
    serve(&mut gate, 1_000, 20, 500, 5);
    // Ten times slower all at once, and still able to do everything.
    let [good, refused, _] = serve(&mut gate, 1_000, 400, 500, 30);
    assert!(refused * 10 < good, "{refused} refused, {good} good");
    let [_, refused, limit] = serve(&mut gate, 1_000, 400, 500, 10);
    assert_eq!((refused, limit), (0, 0), "in the end there is no limit");
}

#[test]
fn a_mix_of_quick_and_slow_is_no_overload() {
    let mut gate = Gate::by(&Adaptive::default());
    let mut ends: BinaryHeap<(i64, u64, u32)> = BinaryHeap::new();
    let (mut flying, mut refused) = (0, 0);
    for i in 0..20_000u64 {
        let now = 1_000_000 + i * 2_000;
        while let Some((end, came, ahead)) = ends.peek().copied().filter(|e| -e.0 <= now as i64) {
            ends.pop();
            flying -= 1;
            let end = (-end) as u64;
            gate.answered((true, ahead), end - came, flying, end);
        }
        // Every 50th takes two seconds, the others 5 ms.
        let ms = if i % 50 == 0 { 2_000 } else { 5 };
        match gate.arrive(flying, 0, now) {
            Entry::Wait => refused += 1,
            Entry::Go => {
                ends.push((-((now + ms * 1_000) as i64), now, flying));
                flying += 1;
            }
        }
    }
    assert_eq!(refused, 0);
}
