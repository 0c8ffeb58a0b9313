// SPDX-License-Identifier: Apache-2.0
//! How long an upstream may be silent: until a set time, or for as long as nothing of its request
//! moves either. Asked by the attempt and the answer's body; holds no body and no timer. A piece
//! that moves reads no clock: whoever waits does, when it looks.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::{LOOKS, Replay, ReplayState};

/// When an attempt has waited for long enough.
#[derive(Clone, Copy, Debug)]
pub enum Due {
    /// At this time, whatever happens, and the limit that says so.
    At(Instant, Duration),
    /// That long after it began, or after the last piece of its request.
    Quiet { since: Instant, limit: Duration },
}

/// Whether pieces of a request's body move, when one was seen to, and whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Pace {
    fresh: Cell<bool>,
    starved: Cell<bool>,
    seen: Cell<Option<Instant>>,
}

/// Whether the request of an answer still moves. Keeps nothing of it alive.
#[derive(Debug, Default)]
pub struct Motion(Weak<RefCell<ReplayState>>);

// === impl Due ===

impl Due {
    /// As things are with the request's body now.
    pub fn at(self, body: &Replay) -> Instant {
        match self {
            Self::At(at, _) => at,
            Self::Quiet { since, limit } => body.moved().map_or(since, |m| m.max(since)) + limit,
        }
    }

    /// When to look at the latest whether the body has moved, for one who waits until `at`.
    pub fn look(self, body: &Replay, at: Instant) -> Instant {
        match self {
            Self::Quiet { limit, .. } if !body.is_empty() => at.min(Instant::now() + limit / LOOKS),
            _ => at,
        }
    }

    /// What did not happen, and within which time.
    pub fn missed(self) -> (&'static str, Duration) {
        match self {
            Self::At(_, limit) => ("no response", limit),
            Self::Quiet { limit, .. } => ("no byte", limit),
        }
    }
}

// === impl Pace ===

impl Pace {
    /// A piece was handed on.
    pub(super) fn step(&self) {
        self.fresh.set(true);
    }

    /// The attempt asked for more; whether there was none.
    pub(super) fn starves(&self, starved: bool) {
        self.starved.set(starved);
    }

    pub(super) fn is_starved(&self) -> bool {
        self.starved.get()
    }

    fn last(&self) -> Option<Instant> {
        if self.fresh.take() {
            self.seen.set(Some(Instant::now()));
        }
        self.seen.get()
    }
}

// === impl Motion ===

impl Motion {
    /// Whether a piece of the request was handed on since this was asked last.
    pub fn any(&self) -> bool {
        self.0.upgrade().is_some_and(|body| body.borrow().pace.fresh.take())
    }
}

// === impl Replay ===

impl Replay {
    /// When a piece of it was last seen to have been handed on.
    pub fn moved(&self) -> Option<Instant> {
        self.0.as_ref()?.borrow().pace.last()
    }

    pub fn motion(&self) -> Motion {
        self.0.as_ref().map_or_else(Motion::default, |s| Motion(Rc::downgrade(s)))
    }

    /// The request has no body.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}
