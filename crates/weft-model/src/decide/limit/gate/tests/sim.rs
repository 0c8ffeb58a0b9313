// SPDX-License-Identifier: Apache-2.0
//! A simulated server with a line without end, which does not hear that clients go away, gates
//! before it, and clients that do. Each of the three may stand still for a while, as on a machine
//! that is busy with something else: what happens to it meanwhile, it sees afterwards.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::super::*;

pub(super) const SECOND: u64 = 1_000_000;

/// How long the server works on a request that it begins at some time.
#[derive(Clone, Copy, Debug)]
pub(super) enum Service {
    By(fn(u64) -> u64),
    /// From when on, and how long.
    Steps([(u64, u64); 3]),
}

/// Requests of one kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Class {
    pub per_second: u64,
    pub from_us: u64,
    pub to_us: u64,
    /// Its client goes away then.
    pub patience_us: u64,
    /// How long the server works on it, by when it begins.
    pub service: Service,
    /// The server has it whole when it is sent.
    pub whole: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    pub came: u64,
    pub good: u64,
    pub longest_us: u64,
}

/// Times in which somebody does nothing, from and to, in order.
pub(super) type Pauses = Vec<(u64, u64)>;

#[derive(Clone, Debug, Default)]
pub(super) struct Busy {
    pub clients: Pauses,
    pub proxy: Pauses,
    pub server: Pauses,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Line,
    Backend,
    Over,
}

struct Request {
    class: usize,
    worker: usize,
    /// When its client sent it, and when the proxy took it and passed it on.
    asked: u64,
    came: u64,
    sent: u64,
    ahead: u32,
    at: At,
    gone: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A client sends the nth of a class, or goes away.
    Ask(usize, u64),
    Leave(usize),
    /// The server has an answer.
    Done(usize),
    /// The proxy sees them.
    Come(usize),
    Gone(usize),
    Answer(usize),
    /// It has waited for as long as it may.
    Late(usize),
}

pub(super) struct Sim<'a> {
    /// Of workers that get requests in turn; none is one worker without a gate.
    pub gates: Vec<Gate>,
    pub classes: &'a [Class],
    pub places: usize,
    /// What has to wait is refused.
    pub refuses: bool,
    /// Of ten requests the first worker gets so many more than its part.
    pub skew: usize,
    pub busy: Busy,
    working: usize,
    requests: Vec<Request>,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    pushed: u64,
    /// In the server, and at the gate.
    server: VecDeque<usize>,
    lines: Vec<VecDeque<usize>>,
    flying: Vec<u32>,
    pub outcomes: Vec<Outcome>,
}

pub(super) fn run(gates: Vec<Gate>, places: usize, classes: &[Class]) -> (Vec<Outcome>, Vec<Gate>) {
    let mut sim = Sim::new(gates, places, classes);
    sim.run();
    (sim.outcomes, sim.gates)
}

// === impl Sim ===

impl<'a> Sim<'a> {
    pub fn new(gates: Vec<Gate>, places: usize, classes: &'a [Class]) -> Self {
        let workers = gates.len().max(1);
        Self {
            gates,
            classes,
            places,
            refuses: false,
            skew: 0,
            busy: Busy::default(),
            working: 0,
            requests: Vec::new(),
            events: BinaryHeap::new(),
            pushed: 0,
            server: VecDeque::new(),
            lines: vec![VecDeque::new(); workers],
            flying: vec![0; workers],
            outcomes: vec![Outcome::default(); classes.len()],
        }
    }

    pub fn run(&mut self) {
        for (i, class) in self.classes.iter().enumerate() {
            self.at(class.from_us, Event::Ask(i, 0));
        }
        while let Some(Reverse((now, _, event))) = self.events.pop() {
            self.step(now, event);
        }
    }

    /// Once whom it concerns sees it.
    fn at(&mut self, time: u64, event: Event) {
        let pauses = match event {
            Event::Ask(..) | Event::Leave(_) => &self.busy.clients,
            Event::Done(_) => &self.busy.server,
            _ => &self.busy.proxy,
        };
        let next = pauses.partition_point(|(_, to)| *to <= time);
        let pause = pauses.get(next).filter(|(from, _)| *from <= time);
        self.pushed += 1;
        self.events.push(Reverse((pause.map_or(time, |(_, to)| *to), self.pushed, event)));
    }

    fn step(&mut self, now: u64, event: Event) {
        match event {
            Event::Ask(class, n) => self.ask(class, n, now),
            Event::Leave(i) => self.at(now, Event::Gone(i)),
            Event::Come(i) => self.come(i, now),
            Event::Done(i) => {
                self.working -= 1;
                self.work(now);
                self.at(now, Event::Answer(i));
            }
            Event::Answer(i) => self.answer(i, now),
            Event::Gone(i) => self.gone(i, now),
            Event::Late(i) => self.late(i, now),
        }
    }

    fn ask(&mut self, class: usize, n: u64, now: u64) {
        let what = self.classes[class];
        let next = what.from_us + (n + 1) * SECOND / what.per_second;
        if next < what.to_us {
            self.at(next.max(now), Event::Ask(class, n + 1));
        }
        self.outcomes[class].came += 1;
        let i = self.requests.len();
        let workers = self.lines.len();
        let worker = if i * 7 % 10 < self.skew { 0 } else { i % workers };
        self.requests.push(Request {
            class,
            worker,
            asked: now,
            came: now,
            sent: 0,
            ahead: 0,
            at: At::Over,
            gone: false,
        });
        self.at(now, Event::Come(i));
        self.at(now + what.patience_us, Event::Leave(i));
    }

    fn come(&mut self, i: usize, now: u64) {
        let request = &mut self.requests[i];
        (request.came, request.at) = (now, At::Line);
        let (worker, whole) = (request.worker, self.classes[request.class].whole);
        let waiting = u32::try_from(self.lines[worker].len()).unwrap();
        let flying = self.flying[worker];
        let gate = self.gates.get_mut(worker).filter(|_| whole);
        match gate.map_or(Entry::Go, |g| g.arrive(flying, waiting, now)) {
            Entry::Go => self.send(i, now),
            Entry::Wait if self.refuses => self.requests[i].at = At::Over,
            Entry::Wait => {
                self.lines[worker].push_back(i);
                self.at(now, Event::Late(i));
            }
        }
    }

    fn late(&mut self, i: usize, now: u64) {
        if self.requests[i].at != At::Line {
            return;
        }
        let worker = self.requests[i].worker;
        let more = self.gates[worker].more_us(now - self.requests[i].came, now);
        if more > 0 {
            return self.at(now + more, Event::Late(i));
        }
        self.lines[worker].retain(|other| *other != i);
        self.send(i, now);
    }

    fn send(&mut self, i: usize, now: u64) {
        self.requests[i].at = At::Backend;
        self.requests[i].sent = now;
        let worker = self.requests[i].worker;
        self.requests[i].ahead = self.flying[worker];
        self.flying[worker] += u32::from(self.classes[self.requests[i].class].whole);
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

    fn answer(&mut self, i: usize, now: u64) {
        let request = &mut self.requests[i];
        if request.gone {
            return;
        }
        request.at = At::Over;
        let (took, class, ahead) = (now - request.sent, request.class, request.ahead);
        let (worker, all) = (request.worker, now - request.asked);
        self.flying[worker] -= u32::from(self.classes[class].whole);
        let outcome = &mut self.outcomes[class];
        // It may be too late all the same, and the proxy does not know that yet.
        outcome.good += u64::from(all <= self.classes[class].patience_us);
        outcome.longest_us = outcome.longest_us.max(all);
        let (whole, flying) = (self.classes[class].whole, self.flying[worker]);
        if let Some(gate) = self.gates.get_mut(worker).filter(|_| whole) {
            gate.answered((true, ahead), took, flying, now);
        }
        self.admit(worker, now);
    }

    fn gone(&mut self, i: usize, now: u64) {
        let request = &mut self.requests[i];
        let worker = request.worker;
        match std::mem::replace(&mut request.at, At::Over) {
            At::Over => {}
            At::Line => {
                self.lines[worker].retain(|other| *other != i);
                self.gates[worker].left_line();
            }
            At::Backend => {
                request.gone = true;
                self.flying[worker] -= u32::from(self.classes[request.class].whole);
                let (held, flew) = (request.sent - request.came, now - request.sent);
                let (whole, flying) = (self.classes[request.class].whole, self.flying[worker]);
                if let Some(gate) = self.gates.get_mut(worker).filter(|_| whole) {
                    gate.given_up(held, flew, flying, now);
                }
                self.admit(worker, now);
            }
        }
    }

    fn admit(&mut self, worker: usize, now: u64) {
        while self.gates.get(worker).is_some_and(|g| g.has_room(self.flying[worker])) {
            let newest = self.gates[worker].newest_first();
            let line = &mut self.lines[worker];
            let next = if newest { line.pop_back() } else { line.pop_front() };
            let Some(i) = next else { return };
            self.send(i, now);
        }
    }
}
