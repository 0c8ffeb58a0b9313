// SPDX-License-Identifier: Apache-2.0
//! How long an upstream may be silent: until a set time, or for as long as nothing of its request
//! moves either. Asked by the attempt and the answer's body; holds no body and no timer.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::{Replay, ReplayState};

/// When an attempt has waited for long enough.
#[derive(Clone, Copy, Debug)]
pub enum Due {
    /// At this time, whatever happens, and the limit that says so.
    At(Instant, Duration),
    /// That long after it began, or after the last piece of its request.
    Quiet { since: Instant, limit: Duration },
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

    /// What did not happen, and within which time.
    pub fn missed(self) -> (&'static str, Duration) {
        match self {
            Self::At(_, limit) => ("no response", limit),
            Self::Quiet { limit, .. } => ("no byte", limit),
        }
    }
}

// === impl Motion ===

impl Motion {
    /// When a piece of the request was last handed on.
    pub fn last(&self) -> Option<Instant> {
        self.0.upgrade()?.borrow().moved
    }
}

// === impl Replay ===

impl Replay {
    /// When a piece of it was last handed on.
    pub fn moved(&self) -> Option<Instant> {
        self.0.as_ref()?.borrow().moved
    }

    pub fn motion(&self) -> Motion {
        self.0.as_ref().map_or_else(Motion::default, |s| Motion(Rc::downgrade(s)))
    }

    /// The request has no body.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}
