// SPDX-License-Identifier: Apache-2.0
//! The arithmetic of limits: rate limits by the generic cell rate algorithm, adaptive concurrency,
//! and what a row of health checks says. Pure: time comes in as a number, state is the caller's.

mod gate;

pub use gate::{Entry, Gate};

use crate::{HealthCheck, RateLimit};

/// A rate as the cell rate algorithm reads it: one number of state, the time at which a bucket is
/// full again. A state that lies in the past says nothing and may be forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Nanoseconds that one request costs.
    cost: u64,
    /// How far ahead of now the state may be.
    ahead: u64,
    /// The window in which nothing at all is granted.
    window: u64,
}

/// What a bucket says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// The new state.
    Yes(u64),
    /// Nanoseconds until there is room.
    No(u64),
}

/// What one health check saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    Pass,
    /// No answer, or none that can be read.
    Fail,
    /// It says itself that it is not well: one such answer is enough.
    Refuses,
}

/// What the checks of one endpoint say so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckRow {
    asked: bool,
    out: bool,
    /// In a row, of the kind that would change `out`.
    against: u32,
}

// === impl Rate ===

impl Rate {
    pub fn of(limit: &RateLimit) -> Self {
        let window = limit.per_ms.max(1).saturating_mul(1_000_000);
        if limit.requests == 0 {
            return Self { cost: window, ahead: 0, window };
        }
        // Rounded up: never more than was said.
        let cost = window.div_ceil(u64::from(limit.requests)).max(1);
        Self { cost, ahead: cost.saturating_mul(u64::from(limit.burst())), window }
    }

    /// Takes room for `n` requests from a bucket, all or none.
    pub fn take(&self, state: u64, now: u64, n: u64) -> Grant {
        let next = state.max(now).saturating_add(self.cost.saturating_mul(n));
        let latest = now.saturating_add(self.ahead);
        if next <= latest {
            return Grant::Yes(next);
        }
        match self.ahead {
            0 => Grant::No(self.window),
            _ => Grant::No(next - latest),
        }
    }

    /// Requests that a bucket has room for.
    pub fn room(&self, state: u64, now: u64) -> u64 {
        now.saturating_add(self.ahead).saturating_sub(state.max(now)) / self.cost
    }
}

// === impl CheckRow ===

impl CheckRow {
    /// Whether the endpoint is out after a further check.
    pub fn note(&mut self, check: &HealthCheck, seen: Probe) -> bool {
        let bad = seen != Probe::Pass;
        if !std::mem::replace(&mut self.asked, true) {
            self.out = bad;
            return self.out;
        }
        if bad == self.out {
            self.against = 0;
            return self.out;
        }
        self.against += 1;
        let enough = match (seen, self.out) {
            (Probe::Refuses, _) => 1,
            (_, true) => check.healthy.max(1),
            (_, false) => check.unhealthy.max(1),
        };
        if self.against >= enough {
            (self.out, self.against) = (bad, 0);
        }
        self.out
    }
}

#[cfg(test)]
mod tests;
