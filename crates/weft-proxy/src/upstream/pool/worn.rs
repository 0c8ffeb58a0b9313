// SPDX-License-Identifier: Apache-2.0
//! How much a connection was used, and whether that is enough: what a backend's policy says of the
//! requests and the age of its connections. Called by the pool before a connection is used again.
//! Pure.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::Instant;
use weft_base::clock::moment;
use weft_model::Connections;

#[derive(Debug)]
pub(super) struct Worn {
    since: Instant,
    served: Cell<u32>,
}

// === impl Worn ===

impl Worn {
    pub(super) fn new() -> Self {
        Self { since: moment(), served: Cell::new(0) }
    }

    /// One more request goes out on it.
    pub(super) fn used(&self) {
        self.served.set(self.served.get().saturating_add(1));
    }

    /// Whether it takes no further request. One that has served nobody takes its first.
    pub(super) fn is_out(&self, terms: Option<&Connections>) -> bool {
        let Some(terms) = terms.filter(|_| self.served.get() > 0) else { return false };
        let most = terms.requests_max.filter(|most| *most > 0);
        let age = terms.age_ms_max.filter(|ms| *ms > 0).map(Duration::from_millis);
        most.is_some_and(|most| self.served.get() >= most)
            || age.is_some_and(|age| moment().saturating_duration_since(self.since) >= age)
    }
}
