// SPDX-License-Identifier: Apache-2.0
//! The gate of one backend on one worker, where nobody configured a limit: counts requests until
//! their answer's head came, and lets those wait that the model's arithmetic holds back. Called by
//! the attempt loop, before an endpoint is chosen. Requests whose body is still on its way pass and
//! are not judged: their client may be what is slow.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use weft_model::decide::{Entry, Gate};

/// Requests of a whole proxy that always go, and at least of each worker.
const LEAST: usize = 16;
const LEAST_OF_WORKER: usize = 4;
/// Requests in line on one worker; what comes beyond goes on.
const LINE_MAX: usize = 16 * 1024;

#[derive(Debug)]
pub struct BackendGate {
    since: Instant,
    gate: RefCell<Gate>,
    flying: Cell<u32>,
    /// In the order in which they came.
    line: RefCell<VecDeque<Rc<Place>>>,
}

/// Counts a request until it is dropped.
#[derive(Debug)]
pub struct Permit {
    of: Rc<BackendGate>,
    came: Instant,
    pub began: Instant,
    /// Others that were under way then.
    ahead: u32,
    end: End,
}

#[derive(Clone, Copy, Debug)]
enum End {
    /// Unless something else is said.
    GivenUp,
    Answered(Instant),
    /// It failed, which says nothing of how long answers take.
    Failed,
}

#[derive(Debug)]
struct Place {
    turn: Cell<Turn>,
    wake: Notify,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Waits,
    /// It may go, and is counted already.
    Go,
    /// It is over, and not since its client left.
    Over,
}

/// A place in the line; leaving it passes on what was not used.
#[derive(Debug)]
struct InLine {
    of: Rc<BackendGate>,
    place: Rc<Place>,
}

// === impl BackendGate ===

impl BackendGate {
    pub fn new(workers: usize) -> Rc<Self> {
        let least = LEAST.div_ceil(workers.max(1)).max(LEAST_OF_WORKER);
        Rc::new(Self {
            since: Instant::now(),
            gate: RefCell::new(Gate::new(u32::try_from(least).unwrap_or(1))),
            flying: Cell::new(0),
            line: RefCell::default(),
        })
    }

    /// A request comes; `None`: it has to wait.
    pub fn arrive(self: &Rc<Self>, now: Instant) -> Option<Permit> {
        let waiting = self.line.borrow().len();
        let count = u32::try_from(waiting).unwrap_or(u32::MAX);
        let entry = self.gate.borrow_mut().arrive(self.flying.get(), count, self.micros(now));
        let goes = entry == Entry::Go || waiting >= LINE_MAX;
        goes.then(|| self.permit(now, now))
    }

    /// Waits in line from `came` on, and not beyond `until`; `None` when that has come.
    /// Cancel-safe: who goes away leaves the line.
    pub async fn wait(self: Rc<Self>, came: Instant, until: Option<Instant>) -> Option<Permit> {
        let line = InLine::at_the_end(&self);
        let mut now = came;
        loop {
            if line.place.turn.get() == Turn::Go {
                line.leave();
                return Some(self.counted(came, now));
            }
            if until.is_some_and(|until| until <= now) {
                line.leave();
                return None;
            }
            let more = self.gate.borrow().more_us(micros(now.saturating_duration_since(came)));
            if more == 0 {
                line.leave();
                return Some(self.permit(came, now));
            }
            let end = now + Duration::from_micros(more);
            let end = until.map_or(end, |until| until.min(end));
            // Told or not: what there is to do is looked up.
            let _ = timeout_at(end, line.place.wake.notified()).await;
            now = Instant::now();
        }
    }

    fn permit(self: &Rc<Self>, came: Instant, began: Instant) -> Permit {
        self.flying.set(self.flying.get() + 1);
        self.counted(came, began)
    }

    fn counted(self: &Rc<Self>, came: Instant, began: Instant) -> Permit {
        let ahead = self.flying.get().saturating_sub(1);
        Permit { of: self.clone(), came, began, ahead, end: End::GivenUp }
    }

    /// Lets those go that there is room for.
    fn admit(&self) {
        while self.gate.borrow().has_room(self.flying.get()) {
            let newest = self.gate.borrow().newest_first();
            let mut line = self.line.borrow_mut();
            let next = if newest { line.pop_back() } else { line.pop_front() };
            drop(line);
            let Some(next) = next else { return };
            self.flying.set(self.flying.get() + 1);
            next.turn.set(Turn::Go);
            next.wake.notify_one();
        }
    }

    fn landed(&self) -> u32 {
        let left = self.flying.get().saturating_sub(1);
        self.flying.set(left);
        left
    }

    fn micros(&self, at: Instant) -> u64 {
        micros(at.saturating_duration_since(self.since))
    }
}

// === impl Permit ===

impl Permit {
    /// The head of its answer came.
    pub fn answered(mut self, now: Instant) {
        self.end = End::Answered(now);
    }

    /// It ended by itself, without an answer.
    pub fn failed(mut self) {
        self.end = End::Failed;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let (of, left) = (&self.of, self.of.landed());
        let mut gate = of.gate.borrow_mut();
        match self.end {
            End::Answered(now) => {
                let took = micros(now.saturating_duration_since(self.began));
                gate.answered((true, self.ahead), took, left, of.micros(now));
            }
            End::GivenUp => {
                let now = Instant::now();
                let held = micros(self.began.saturating_duration_since(self.came));
                let flew = micros(now.saturating_duration_since(self.began));
                gate.given_up(held, flew, left, of.micros(now));
            }
            End::Failed => gate.answered((false, 0), 0, left, of.micros(self.began)),
        }
        drop(gate);
        if !of.line.borrow().is_empty() {
            of.admit();
        }
    }
}

// === impl InLine ===

impl InLine {
    fn at_the_end(of: &Rc<BackendGate>) -> Self {
        let place = Rc::new(Place { turn: Cell::new(Turn::Waits), wake: Notify::new() });
        of.line.borrow_mut().push_back(place.clone());
        Self { of: of.clone(), place }
    }

    fn leave(&self) {
        if self.place.turn.replace(Turn::Over) == Turn::Waits {
            self.of.line.borrow_mut().retain(|p| !Rc::ptr_eq(p, &self.place));
        }
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        match self.place.turn.get() {
            Turn::Over => {}
            Turn::Go => {
                self.of.landed();
                self.of.admit();
            }
            Turn::Waits => {
                self.leave();
                self.of.gate.borrow_mut().left_line();
            }
        }
    }
}

fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
