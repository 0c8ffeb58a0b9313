// SPDX-License-Identifier: Apache-2.0
//! Adaptive concurrency of one backend on one worker, where a policy asks for it: counts attempts
//! until their answer's head came, and asks the model's gate whether one more fits. Called by the
//! attempt loop; nobody waits here. Streams that go on after their head count no more: how long
//! they are says nothing of load.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use tokio::time::Instant;
use weft_model::Adaptive;
use weft_model::decide::{Entry, Gate};

#[derive(Debug)]
pub struct AdaptiveLimit {
    policy: Adaptive,
    since: Instant,
    gate: RefCell<Gate>,
    in_flight: Cell<u32>,
}

/// Counts an attempt until it is dropped.
#[derive(Debug)]
pub struct Permit {
    of: Rc<AdaptiveLimit>,
    began: Instant,
    /// Others that were under way then.
    ahead: u32,
    end: Option<bool>,
}

// === impl AdaptiveLimit ===

impl AdaptiveLimit {
    pub fn new(policy: Adaptive) -> Rc<Self> {
        let gate = RefCell::new(Gate::by(&policy));
        Rc::new(Self { policy, since: Instant::now(), gate, in_flight: Cell::new(0) })
    }

    pub fn is_for(&self, policy: &Adaptive) -> bool {
        self.policy == *policy
    }

    /// Takes room for an attempt.
    ///
    /// # Errors
    /// The sentence to refuse it with.
    pub fn begin(self: &Rc<Self>) -> Result<Permit, String> {
        let began = Instant::now();
        let (at, ahead) = (self.micros(began), self.in_flight.get());
        let mut gate = self.gate.borrow_mut();
        if gate.arrive(ahead, 0, at) == Entry::Go {
            self.in_flight.set(ahead + 1);
            return Ok(Permit { of: self.clone(), began, ahead, end: None });
        }
        let limit = gate.limit().unwrap_or(1);
        Err(format!(
            "its answers become slow while requests pile up, so that only {limit} may be in flight \
             now"
        ))
    }

    fn micros(&self, at: Instant) -> u64 {
        u64::try_from(at.duration_since(self.since).as_micros()).unwrap_or(u64::MAX)
    }
}

// === impl Permit ===

impl Permit {
    /// It ended by itself, with an answer or not; one that is dropped without that was given up,
    /// and the upstream may still work on it.
    pub fn ended(mut self, answered: bool) {
        self.end = Some(answered);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let (of, now) = (&self.of, Instant::now());
        let left = of.in_flight.get().saturating_sub(1);
        of.in_flight.set(left);
        let took = u64::try_from(now.duration_since(self.began).as_micros()).unwrap_or(u64::MAX);
        let mut gate = of.gate.borrow_mut();
        match self.end {
            Some(answered) => gate.answered((answered, self.ahead), took, left, of.micros(now)),
            None => gate.given_up(0, took, left, of.micros(now)),
        }
    }
}
