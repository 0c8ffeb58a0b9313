// SPDX-License-Identifier: Apache-2.0
//! The gate before a simulated server with a line without end, which does not hear that clients
//! go away. What is not overload loses no request that is answered without a gate.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::*;

const SECOND: u64 = 1_000_000;
/// Of servers and clients at random.
const ROUNDS: u64 = 300;

/// How long the server works on a request that it begins at some time.
#[derive(Clone, Copy, Debug)]
enum Service {
    By(fn(u64) -> u64),
    /// From when on, and how long.
    Steps([(u64, u64); 3]),
}

/// Requests of one kind.
#[derive(Clone, Copy, Debug)]
struct Class {
    per_second: u64,
    from_us: u64,
    to_us: u64,
    /// Its client goes away then.
    patience_us: u64,
    /// How long the server works on it, by when it begins.
    service: Service,
    /// The server has it whole when it is sent.
    whole: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Outcome {
    came: u64,
    good: u64,
    longest_us: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Line,
    Backend,
    Over,
}

struct Request {
    class: usize,
    came: u64,
    sent: u64,
    ahead: u32,
    at: At,
    gone: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrive(usize),
    Done(usize),
    GiveUp(usize),
    Late(usize),
}

struct Sim<'a> {
    gate: Option<Gate>,
    classes: &'a [Class],
    places: usize,
    working: usize,
    requests: Vec<Request>,
    events: BinaryHeap<Reverse<(u64, usize, Event)>>,
    /// In the server, and at the gate.
    server: VecDeque<usize>,
    line: VecDeque<usize>,
    flying: u32,
    outcomes: Vec<Outcome>,
}

fn run(gate: Option<Gate>, places: usize, classes: &[Class]) -> (Vec<Outcome>, Option<Gate>) {
    let outcomes = vec![Outcome::default(); classes.len()];
    let mut sim = Sim {
        gate,
        classes,
        places,
        working: 0,
        requests: Vec::new(),
        events: BinaryHeap::new(),
        server: VecDeque::new(),
        line: VecDeque::new(),
        flying: 0,
        outcomes,
    };
    for (i, class) in classes.iter().enumerate() {
        sim.at(class.from_us, Event::Arrive(i));
    }
    while let Some(Reverse((now, _, event))) = sim.events.pop() {
        sim.step(now, event);
    }
    (sim.outcomes, sim.gate)
}

impl Sim<'_> {
    fn at(&mut self, time: u64, event: Event) {
        let seq = self.requests.len() * 8 + self.events.len();
        self.events.push(Reverse((time, seq, event)));
    }

    fn step(&mut self, now: u64, event: Event) {
        match event {
            Event::Arrive(class) => self.arrive(class, now),
            Event::Done(i) => self.done(i, now),
            Event::GiveUp(i) => self.give_up(i, now),
            Event::Late(i) if self.requests[i].at == At::Line => {
                let more = self.gate.as_ref().unwrap().more_us(now - self.requests[i].came);
                if more > 0 {
                    return self.at(now + more, Event::Late(i));
                }
                self.line.retain(|other| *other != i);
                self.send(i, now);
            }
            Event::Late(_) => {}
        }
    }

    fn arrive(&mut self, class: usize, now: u64) {
        let what = self.classes[class];
        let next = now + SECOND / what.per_second;
        if next < what.to_us {
            self.at(next, Event::Arrive(class));
        }
        self.outcomes[class].came += 1;
        let i = self.requests.len();
        self.requests.push(Request {
            class,
            came: now,
            sent: 0,
            ahead: 0,
            at: At::Line,
            gone: false,
        });
        self.at(now + what.patience_us, Event::GiveUp(i));
        let waiting = u32::try_from(self.line.len()).unwrap();
        let flying = self.flying;
        let gate = self.gate.as_mut().filter(|_| what.whole);
        let entry = gate.map_or(Entry::Go, |g| g.arrive(flying, waiting, now));
        match entry {
            Entry::Go => self.send(i, now),
            Entry::Wait => {
                self.line.push_back(i);
                self.at(now, Event::Late(i));
            }
        }
    }

    fn send(&mut self, i: usize, now: u64) {
        self.requests[i].at = At::Backend;
        self.requests[i].sent = now;
        self.requests[i].ahead = self.flying;
        self.flying += u32::from(self.classes[self.requests[i].class].whole);
        self.server.push_back(i);
        self.work(now);
    }

    fn work(&mut self, now: u64) {
        while self.working < self.places
            && let Some(i) = self.server.pop_front()
        {
            self.working += 1;
            let us = match self.classes[self.requests[i].class].service {
                Service::By(of) => of(now),
                Service::Steps(steps) => steps.iter().rfind(|s| s.0 <= now).map_or(0, |s| s.1),
            };
            self.at(now + us, Event::Done(i));
        }
    }

    fn done(&mut self, i: usize, now: u64) {
        self.working -= 1;
        self.work(now);
        let request = &mut self.requests[i];
        if request.gone {
            return;
        }
        request.at = At::Over;
        let (took, class, ahead) = (now - request.sent, request.class, request.ahead);
        let all = now - request.came;
        self.flying -= u32::from(self.classes[class].whole);
        let outcome = &mut self.outcomes[class];
        outcome.good += 1;
        outcome.longest_us = outcome.longest_us.max(all);
        let (whole, flying) = (self.classes[class].whole, self.flying);
        if let Some(gate) = self.gate.as_mut().filter(|_| whole) {
            gate.answered((true, ahead), took, flying, now);
        }
        self.admit(now);
    }

    fn give_up(&mut self, i: usize, now: u64) {
        let request = &mut self.requests[i];
        match std::mem::replace(&mut request.at, At::Over) {
            At::Over => {}
            At::Line => {
                self.line.retain(|other| *other != i);
                self.gate.as_mut().unwrap().left_line();
            }
            At::Backend => {
                request.gone = true;
                self.flying -= u32::from(self.classes[request.class].whole);
                let (held, flew) = (request.sent - request.came, now - request.sent);
                let (whole, flying) = (self.classes[request.class].whole, self.flying);
                if let Some(gate) = self.gate.as_mut().filter(|_| whole) {
                    gate.given_up(held, flew, flying, now);
                }
                self.admit(now);
            }
        }
    }

    fn admit(&mut self, now: u64) {
        while self.gate.as_ref().is_some_and(|g| g.has_room(self.flying)) {
            let newest = self.gate.as_ref().unwrap().newest_first();
            let next = if newest { self.line.pop_back() } else { self.line.pop_front() };
            let Some(i) = next else { return };
            self.send(i, now);
        }
    }
}

fn steady(per_second: u64, seconds: u64, patience_us: u64, service: fn(u64) -> u64) -> Class {
    let to_us = seconds * SECOND;
    Class { per_second, from_us: 0, to_us, patience_us, service: Service::By(service), whole: true }
}

/// With and without a gate: as many are answered, but for a part in a thousand.
fn loses_nothing(name: &str, places: usize, classes: &[Class]) -> Vec<Outcome> {
    let (without, _) = run(None, places, classes);
    let (with, _) = run(Some(Gate::new(8)), places, classes);
    for (i, (with, without)) in with.iter().zip(&without).enumerate() {
        assert!(with.good * 1_000 >= without.good * 999, "{name} {i}: {with:?}, else {without:?}");
    }
    with
}

#[test]
fn five_times_too_much_and_nothing_configured() {
    for patience in [500_000, SECOND, 2 * SECOND, 5 * SECOND] {
        let class = [steady(1_000, 12, patience, |_| 100_000)];
        let (without, _) = run(None, 20, &class);
        let (with, gate) = run(Some(Gate::new(8)), 20, &class);
        let limit = gate.unwrap().limit();
        println!("patience {patience}: {with:?}, else {without:?}, limit {limit:?}");
        // With five seconds it takes longer than that until clients leave.
        let least = if patience == 5 * SECOND { 50 } else { 75 };
        assert!(with[0].good * 100 >= 2_400 * least, "patience {patience}: {:?}", with[0]);
    }
}

#[test]
fn two_workers_of_five_times_too_much() {
    // Each sees half of the arrivals and of the answers.
    let class = [steady(500, 12, SECOND, |_| 100_000)];
    let (with, _) = run(Some(Gate::new(8)), 10, &class);
    assert!(with[0].good * 100 >= 1_200 * 80, "{:?}", with[0]);
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
    let (_, gate) = run(Some(Gate::new(8)), 20, &[much, usual]);
    assert_eq!(gate.unwrap().limit(), None);
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
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut below = |n: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % n
    };
    let (mut more, mut fewer, mut broken, mut well) = (0, 0, 0, 0);
    let (mut sum, mut sum_without) = (0, 0);
    for _ in 0..ROUNDS {
        let (places, classes) = random(&mut below);
        let (without, _) = run(None, places, &classes);
        let (with, _) = run(Some(Gate::new(8)), places, &classes);
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
