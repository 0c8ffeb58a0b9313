// SPDX-License-Identifier: Apache-2.0
//! Consul's `CreateIndex` and `ModifyIndex` of records: when each was made and last changed. Of the
//! catalog's records the store knows it: they are the same at every server and after each start.
//! What is no record there (instances that Kubernetes made, a lone server's own node and service)
//! has indexes of this server's: kept by the index table from the Worlds that it is fed; what has
//! not changed since the door opened has the revision that it opened at. Persistent: a look at the
//! World keeps its own.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;

use imbl::OrdMap;
use weft_kinds::views::catalog::{NodeRecord, Since};

use super::view::{CheckView, Entry};

/// (created, modified)
pub type Stamp = (u64, u64);

/// A record that has indexes, as a number: there are two for each instance, and their names would
/// take five times the room. Two that had the same would show each other's indexes; of a million
/// records that is one chance in thirty million.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Record(u64);

/// What there are records of.
#[derive(Clone, Copy, Debug, Hash)]
enum Noun {
    Node,
    Service,
    Check,
}

#[derive(Clone, Debug, Default)]
pub struct Stamps {
    base: u64,
    names: RandomState,
    changed: OrdMap<Record, Stamp>,
}

// === impl Stamps ===

impl Stamps {
    /// Everything is as old as this.
    pub fn since(base: u64) -> Self {
        Self { base, ..Self::default() }
    }

    pub fn node(&self, node: &NodeRecord) -> Stamp {
        let kept = || self.of(&self.node_record(&node.node));
        stored(node.created, node.modified).unwrap_or_else(kept)
    }

    pub fn service(&self, entry: &Entry) -> Stamp {
        let kept = || self.of(&self.service_record(entry));
        stored(entry.service.created, entry.service.modified).unwrap_or_else(kept)
    }

    pub fn check(&self, view: &CheckView) -> Stamp {
        let kept = || self.of(&self.check_record(view));
        stored(view.record.created, view.modified).unwrap_or_else(kept)
    }

    fn of(&self, record: &Record) -> Stamp {
        self.changed.get(record).copied().unwrap_or((self.base, self.base))
    }

    /// Notes what differs between two lists of a service's entries.
    pub fn entries<'e>(&mut self, was: &'e [Entry], is: &'e [Entry], now: u64) {
        let records = |entries: &'e [Entry]| -> BTreeMap<Record, &'e Entry> {
            let own = entries.iter().filter(|e| e.service.modified.is_unknown());
            own.map(|e| (self.service_record(e), e)).collect()
        };
        let (old, new) = (records(was), records(is));
        for (record, entry) in &new {
            match old.get(record) {
                None => self.made(*record, now),
                Some(old) if old.service != entry.service => self.touched(*record, now),
                Some(_) => {}
            }
        }
        for record in old.keys().filter(|record| !new.contains_key(record)) {
            self.changed.remove(record);
        }
        let own = |entries: &[Entry]| -> Vec<CheckView> {
            let all = entries.iter().flat_map(|e| &e.checks);
            all.filter(|c| !c.record.service_id.is_empty()).cloned().collect()
        };
        self.checks(&own(was), &own(is), now);
    }

    /// Notes what differs between two lists of checks.
    pub fn checks<'c>(&mut self, was: &'c [CheckView], is: &'c [CheckView], now: u64) {
        let records = |checks: &'c [CheckView]| -> BTreeMap<Record, &'c CheckView> {
            let own = checks.iter().filter(|c| c.record.modified.is_unknown());
            own.map(|c| (self.check_record(c), c)).collect()
        };
        let (old, new) = (records(was), records(is));
        for (record, view) in &new {
            match old.get(record) {
                None => self.made(*record, now),
                Some(old) if old != view => self.touched(*record, now),
                Some(_) => {}
            }
        }
        for record in old.keys().filter(|record| !new.contains_key(record)) {
            self.changed.remove(record);
        }
    }

    /// Notes that a node came, changed or went.
    pub fn node_changed(&mut self, name: &Arc<str>, was: bool, is: bool, now: u64) {
        let record = self.node_record(name);
        match (was, is) {
            (_, false) => {
                self.changed.remove(&record);
            }
            (false, true) => self.made(record, now),
            (true, true) => self.touched(record, now),
        }
    }

    fn made(&mut self, record: Record, now: u64) {
        self.changed.insert(record, (now, now));
    }

    fn touched(&mut self, record: Record, now: u64) {
        let (created, _) = self.of(&record);
        self.changed.insert(record, (created, now));
    }

    fn node_record(&self, name: &str) -> Record {
        self.record((Noun::Node, name))
    }

    fn service_record(&self, entry: &Entry) -> Record {
        let service = &entry.service;
        self.record((Noun::Service, &service.namespace, &entry.node.node, &service.id))
    }

    fn check_record(&self, view: &CheckView) -> Record {
        let record = &view.record;
        self.record((Noun::Check, &record.namespace, &record.node, &record.id))
    }

    fn record(&self, named: impl Hash) -> Record {
        Record(self.names.hash_one(named))
    }
}

/// The indexes of a record that the store has.
fn stored(created: Since, modified: Since) -> Option<Stamp> {
    (!modified.is_unknown()).then_some((created.0, modified.0))
}
