// SPDX-License-Identifier: Apache-2.0
//! The gate of one backend on one worker, where nobody configured a limit: counts requests until
//! their answer's head came, and lets those wait that the model's arithmetic holds back. Called by
//! the attempt loop, before an endpoint is chosen. Refuses nobody; a request's own deadline may end
//! here. Requests whose body is still on its way pass and are not judged: their client may be what
//! is slow.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use weft_model::decide::{Entry, Gate};

use crate::observe::metrics::{GateSeries, WorkerCells};

/// Requests of a whole proxy that always go, and at least of each worker.
const LEAST: usize = 16;
const LEAST_OF_WORKER: usize = 4;
/// Requests in line on one worker; what comes beyond goes on.
const LINE_MAX: usize = 16 * 1024;
/// Places that may stay in the line although their requests left, beside as many as wait.
const LEFT_MIN: usize = 32;

#[derive(Debug)]
pub struct BackendGate {
    since: Instant,
    gate: RefCell<Gate>,
    flying: Cell<u32>,
    line: Line,
    seen: Seen,
}

/// Who waits, in the order in which they came. Who leaves stays as a dead place until it is passed
/// by, or until most places are dead: to leave costs the same however long the line is.
#[derive(Debug, Default)]
struct Line {
    places: RefCell<VecDeque<Rc<Place>>>,
    waiting: Cell<usize>,
    /// Places looked at to find the dead.
    #[cfg(test)]
    swept: Cell<usize>,
}

/// Where its numbers are shown, from the first request on that had to wait.
#[derive(Debug)]
struct Seen {
    cells: Arc<WorkerCells>,
    backend: Arc<str>,
    series: OnceCell<Arc<GateSeries>>,
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
    /// Of one of so many workers, whose `cells` show under the `backend`'s name what it holds back.
    pub fn new(workers: usize, cells: Arc<WorkerCells>, backend: Arc<str>) -> Rc<Self> {
        let least = LEAST.div_ceil(workers.max(1)).max(LEAST_OF_WORKER);
        Rc::new(Self {
            since: Instant::now(),
            gate: RefCell::new(Gate::new(u32::try_from(least).unwrap_or(1))),
            flying: Cell::new(0),
            line: Line::default(),
            seen: Seen { cells, backend, series: OnceCell::new() },
        })
    }

    /// A request comes; `None`: it has to wait.
    pub fn arrive(self: &Rc<Self>, now: Instant) -> Option<Permit> {
        let waiting = self.line.waiting.get();
        let count = u32::try_from(waiting).unwrap_or(u32::MAX);
        let entry = self.gate.borrow_mut().arrive(self.flying.get(), count, self.micros(now));
        if entry == Entry::Go && waiting > 0 {
            // Nobody goes before those in line but when the gate opens: then it does for all.
            self.admit();
        }
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
                // As if its client had left.
                return None;
            }
            let waited = micros(now.saturating_duration_since(came));
            let more = self.gate.borrow().more_us(waited, self.micros(now));
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
            let Some(next) = self.line.next(newest) else { return };
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
        if of.line.waiting.get() > 0 {
            of.admit();
        }
    }
}

// === impl Line ===

impl Line {
    fn join(&self) -> Rc<Place> {
        let place = Rc::new(Place { turn: Cell::new(Turn::Waits), wake: Notify::new() });
        self.places.borrow_mut().push_back(place.clone());
        self.waiting.set(self.waiting.get() + 1);
        place
    }

    /// Takes out who goes next.
    fn next(&self, newest: bool) -> Option<Rc<Place>> {
        let mut places = self.places.borrow_mut();
        while self.waiting.get() > 0 {
            let place = if newest { places.pop_back() } else { places.pop_front() }?;
            if place.turn.get() == Turn::Waits {
                self.waiting.set(self.waiting.get() - 1);
                return Some(place);
            }
        }
        places.clear();
        None
    }

    /// One left whose place is dead now.
    fn left(&self) {
        let waiting = self.waiting.get().saturating_sub(1);
        self.waiting.set(waiting);
        let mut places = self.places.borrow_mut();
        if places.len() > 2 * waiting + LEFT_MIN {
            #[cfg(test)]
            self.swept.set(self.swept.get() + places.len());
            places.retain(|place| place.turn.get() == Turn::Waits);
        }
    }
}

// === impl Seen ===

impl Seen {
    fn series(&self) -> &GateSeries {
        self.series.get_or_init(|| self.cells.gate(&self.backend))
    }
}

// === impl InLine ===

impl InLine {
    fn at_the_end(of: &Rc<BackendGate>) -> Self {
        let series = of.seen.series();
        series.held.add(1);
        series.waiting.add(1);
        Self { of: of.clone(), place: of.line.join() }
    }

    fn leave(&self) {
        if self.place.turn.replace(Turn::Over) == Turn::Waits {
            self.of.line.left();
        }
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        self.of.seen.series().waiting.sub(1);
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
