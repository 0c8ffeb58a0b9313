// SPDX-License-Identifier: Apache-2.0
//! The catalog's deadlines, sans-io: TTL checks that nobody renewed, outputs held back, services
//! critical for too long. `catalog::Handle` feeds it and does what falls due; it never writes.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use weft_base::clock::Mono;
use weft_kinds::views::catalog::{CheckRecord, Status};
use weft_kinds::world::{Catalog, CheckKey};

/// How often the state of services that may be reaped is looked at.
pub const REAP_LOOK_MS: u64 = 1_000;

/// When an expiry that was not written is tried again.
const AGAIN_MS: u64 = 1_000;

/// What fell due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Due {
    /// The check's time to live has passed.
    Expired(CheckKey),
    /// An output held back may be written now.
    Flush(CheckKey),
    /// The check's service has been critical for as long as its definition bears.
    Reap { key: CheckKey, service_id: String },
}

#[derive(Debug, Default)]
pub struct Timers {
    ttl: HashMap<CheckKey, (Duration, Mono)>,
    flush: HashMap<CheckKey, Mono>,
    order: BTreeSet<(Mono, Kind, CheckKey)>,
    /// Checks whose service may be reaped: when it was first seen critical.
    reapable: HashMap<CheckKey, Option<Mono>>,
    next_look: Mono,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Ttl,
    Flush,
}

// === impl Timers ===

impl Timers {
    /// Takes up a definition; one that is known with the same time to live keeps its deadline.
    /// What was written to the catalog for others has none: only an agent's checks are timed, and
    /// only an agent takes away what is critical for too long, as in Consul.
    pub fn watch(&mut self, check: &CheckRecord, now: Mono) {
        let key = super::plan::check_key(check);
        let definition = check.typed();
        match definition.probe.ttl_ms().filter(|_| definition.agent) {
            Some(ttl_ms) => {
                let ttl = Duration::from_millis(ttl_ms);
                if self.ttl.get(&key).is_none_or(|(old, _)| *old != ttl) {
                    self.arm(key.clone(), ttl, now);
                }
            }
            None => self.disarm(&key),
        }
        let reaps = definition.agent && definition.deregister_after_ms > 0;
        if reaps && !check.service_id.is_empty() {
            self.reapable.entry(key).or_insert(None);
        } else {
            self.reapable.remove(&key);
        }
    }

    /// A sign of life of a TTL check.
    pub fn beat(&mut self, key: &CheckKey, now: Mono) {
        if let Some((ttl, _)) = self.ttl.get(key).copied() {
            self.arm(key.clone(), ttl, now);
        }
    }

    /// Whether a check's time to live has passed and nobody renewed it since.
    pub fn is_expired(&self, key: &CheckKey, now: Mono) -> bool {
        self.ttl.get(key).is_some_and(|(_, at)| *at <= now)
    }

    /// What fell due and could not be written falls due again, unless it was renewed meanwhile.
    pub fn again(&mut self, key: &CheckKey, now: Mono) {
        if let Some((ttl, at)) = self.ttl.get(key).copied()
            && at <= now
        {
            let at = now.plus(Duration::from_millis(AGAIN_MS));
            self.order.insert((at, Kind::Ttl, key.clone()));
            self.ttl.insert(key.clone(), (ttl, at));
        }
    }

    /// Whether its time to live is being counted, or does not matter.
    pub fn is_armed(&self, key: &CheckKey) -> bool {
        let counted =
            |(_, at): &(Duration, Mono)| self.order.contains(&(*at, Kind::Ttl, key.clone()));
        self.ttl.get(key).is_none_or(counted)
    }

    /// Writes a held-back output at `at`; an earlier date stays.
    pub fn flush_at(&mut self, key: &CheckKey, at: Mono) {
        if !self.flush.contains_key(key) {
            self.flush.insert(key.clone(), at);
            self.order.insert((at, Kind::Flush, key.clone()));
        }
    }

    /// Lets go of a check that is no more.
    pub fn forget(&mut self, key: &CheckKey) {
        self.disarm(key);
        self.reapable.remove(key);
        if let Some(at) = self.flush.remove(key) {
            self.order.remove(&(at, Kind::Flush, key.clone()));
        }
    }

    /// What falls due by `now`. CheckKeys that the catalog no longer has are let go.
    pub fn step(&mut self, catalog: &Catalog, now: Mono) -> Vec<Due> {
        let mut due = Vec::new();
        while let Some((at, _, _)) = self.order.first()
            && *at <= now
        {
            let Some((_, kind, key)) = self.order.pop_first() else { break };
            let known = catalog.check(&key).is_some();
            match kind {
                Kind::Ttl => {
                    // Stays known, so that the next sign of life arms it again.
                    if !known {
                        self.ttl.remove(&key);
                        continue;
                    }
                    due.push(Due::Expired(key));
                }
                Kind::Flush => {
                    self.flush.remove(&key);
                    if known {
                        due.push(Due::Flush(key));
                    }
                }
            }
        }
        if now >= self.next_look && !self.reapable.is_empty() {
            self.next_look = now.plus(Duration::from_millis(REAP_LOOK_MS));
            self.look_for_reaping(catalog, now, &mut due);
        }
        due
    }

    /// When to step next, whatever happens before.
    pub fn next(&self) -> Option<Mono> {
        let look = (!self.reapable.is_empty()).then_some(self.next_look);
        self.order.first().map(|(at, _, _)| *at).into_iter().chain(look).min()
    }

    fn look_for_reaping(&mut self, catalog: &Catalog, now: Mono, due: &mut Vec<Due>) {
        self.reapable.retain(|key, since| {
            let Some(check) = catalog.check(key) else { return false };
            if catalog.status(key) != Status::Critical {
                *since = None;
                return true;
            }
            let first = *since.get_or_insert(now);
            let bears = Duration::from_millis(check.typed().deregister_after_ms);
            if now.since(first) < bears {
                return true;
            }
            // Looked at again in a second, should the removal fail.
            let service_id = check.service_id.to_string();
            due.push(Due::Reap { key: key.clone(), service_id });
            true
        });
    }

    fn arm(&mut self, key: CheckKey, ttl: Duration, now: Mono) {
        self.disarm(&key);
        let at = now.plus(ttl);
        self.order.insert((at, Kind::Ttl, key.clone()));
        self.ttl.insert(key, (ttl, at));
    }

    fn disarm(&mut self, key: &CheckKey) {
        if let Some((_, at)) = self.ttl.remove(key) {
            self.order.remove(&(at, Kind::Ttl, key.clone()));
        }
    }
}

#[cfg(test)]
mod tests;
