// SPDX-License-Identifier: Apache-2.0
//! When leases end. Pure: the engine says what time it is. Deadlines are not part of the log, so
//! a store that is opened again gives every lease its full time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use weft_base::clock::Mono;

use crate::LeaseId;

#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    ttl: BTreeMap<LeaseId, (Duration, Mono)>,
    due: BTreeSet<(Mono, LeaseId)>,
}

// === impl Deadlines ===

impl Deadlines {
    pub fn start(&mut self, lease: LeaseId, ttl: Duration, now: Mono) {
        self.stop(lease);
        let at = now.plus(ttl);
        self.ttl.insert(lease, (ttl, at));
        self.due.insert((at, lease));
    }

    /// Gives the lease its full time again; `None` when there is none.
    pub fn keep_alive(&mut self, lease: LeaseId, now: Mono) -> Option<Duration> {
        let (ttl, _) = *self.ttl.get(&lease)?;
        self.start(lease, ttl, now);
        Some(ttl)
    }

    pub fn stop(&mut self, lease: LeaseId) {
        if let Some((_, at)) = self.ttl.remove(&lease) {
            self.due.remove(&(at, lease));
        }
    }

    /// Stops the leases whose time is over, the longest overdue first. A sign of life that comes
    /// later finds no lease.
    pub fn take_due(&mut self, now: Mono) -> Vec<LeaseId> {
        let over = self.due.iter().take_while(|(at, _)| *at <= now);
        let over: Vec<LeaseId> = over.map(|(_, id)| *id).collect();
        over.iter().for_each(|id| self.stop(*id));
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_ends_ttl_after_its_last_sign_of_life() {
        let (mut d, id, s) = (Deadlines::default(), LeaseId(7), Duration::from_secs);
        d.start(id, s(10), Mono(0));
        assert_eq!(d.take_due(Mono(9_999)), []);
        assert_eq!(d.keep_alive(id, Mono(9_000)), Some(s(10)));
        assert_eq!(d.take_due(Mono(18_999)), []);
        assert_eq!(d.take_due(Mono(19_000)), [id]);
        assert_eq!(d.take_due(Mono(99_000)), []);
        assert_eq!(d.keep_alive(id, Mono(99_000)), None);
    }
}
