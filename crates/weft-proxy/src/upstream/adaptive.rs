// SPDX-License-Identifier: Apache-2.0
//! Adaptive concurrency of one backend on one worker: counts attempts until their answer's head
//! came, and asks the model's arithmetic whether one more fits. Called by the attempt loop. Streams
//! that go on after their head count no more: how long they are says nothing of load.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use tokio::time::Instant;
use weft_model::Adaptive;
use weft_model::decide::Limiter;

#[derive(Debug)]
pub struct AdaptiveLimit {
    policy: Adaptive,
    since: Instant,
    limiter: RefCell<Limiter>,
    in_flight: Cell<u32>,
}

/// Counts an attempt until it is dropped.
#[derive(Debug)]
pub struct Permit {
    of: Rc<AdaptiveLimit>,
    began: Instant,
    answered: bool,
}

// === impl AdaptiveLimit ===

impl AdaptiveLimit {
    pub fn new(policy: Adaptive) -> Rc<Self> {
        Rc::new(Self {
            policy,
            since: Instant::now(),
            limiter: RefCell::default(),
            in_flight: Cell::new(0),
        })
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
        let at = self.micros(began);
        match self.limiter.borrow_mut().begin(self.in_flight.get(), at) {
            Ok(()) => {
                self.in_flight.set(self.in_flight.get() + 1);
                Ok(Permit { of: self.clone(), began, answered: false })
            }
            Err(limit) => Err(format!(
                "its answers become slow while requests pile up, so that only {limit} may be in \
                 flight now"
            )),
        }
    }

    fn micros(&self, at: Instant) -> u64 {
        u64::try_from(at.duration_since(self.since).as_micros()).unwrap_or(u64::MAX)
    }
}

// === impl Permit ===

impl Permit {
    /// It ended by itself; one that is dropped without that was given up, and the upstream may
    /// still work on it.
    pub fn ended(mut self) {
        self.answered = true;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let (of, now) = (&self.of, Instant::now());
        let left = of.in_flight.get().saturating_sub(1);
        of.in_flight.set(left);
        let took = u64::try_from(now.duration_since(self.began).as_micros()).unwrap_or(u64::MAX);
        let mut limiter = of.limiter.borrow_mut();
        match self.answered {
            true => limiter.end(&of.policy, took, left, of.micros(now)),
            false => limiter.gone(&of.policy, left, of.micros(now)),
        }
    }
}
