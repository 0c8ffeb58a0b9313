// SPDX-License-Identifier: Apache-2.0
//! Which hosts this proxy asks for by name: those that requests wait for, those that it was given,
//! and names that are no hosts (so that it is told when they become some). Ingest owns it and
//! publishes the whole set; the client machine says the differences.
//!
//! State without I/O. A host is given back when there are more than a proxy holds, it was not used
//! for a while and is the longest unused; never while disconnected, since nobody could bring it
//! again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use weft_base::clock::Mono;
use weft_base::limits::LAST_GOOD_EVICTED_MAX;
use weft_model::{ResourceName, Root};
use weft_xds::last_good::Notes;
use weft_xds::{Transaction, Upsert};

use crate::config::OnDemandLimits;
use crate::on_demand::{Answer, Ask};
use crate::table::{Table, Unheld};

/// What a proxy asks for.
pub type Wanted = BTreeSet<Arc<str>>;

#[derive(Debug)]
pub(super) struct Wants {
    limits: OnDemandLimits,
    partial: bool,
    pub connected: bool,
    /// Names that the table holds something for.
    held: BTreeSet<Arc<str>>,
    /// Names that are no hosts, oldest first.
    absent: VecDeque<Arc<str>>,
    /// Names that were not answered yet, with those who wait.
    pending: BTreeMap<Arc<str>, Vec<oneshot::Sender<Answer>>>,
    /// Hosts that were given back; they stay in the last-good file.
    evicted: BTreeSet<Root>,
    /// Bytes of what is held under hosts.
    sizes: BTreeMap<ResourceName, usize>,
    bytes: usize,
    wanted: watch::Sender<Wanted>,
}

// === impl Wants ===

impl Wants {
    pub fn new(limits: OnDemandLimits) -> Self {
        Self {
            limits,
            partial: false,
            connected: false,
            held: BTreeSet::new(),
            absent: VecDeque::new(),
            pending: BTreeMap::new(),
            evicted: BTreeSet::new(),
            sizes: BTreeMap::new(),
            bytes: 0,
            wanted: watch::channel(Wanted::new()).0,
        }
    }

    pub fn subscribe(&self) -> watch::Receiver<Wanted> {
        self.wanted.subscribe()
    }

    /// Starts from what a last-good file kept. All of it is in the table.
    pub fn restore(&mut self, resources: &[Upsert], notes: Notes) {
        self.weigh(resources);
        let Notes { partial, asked, evicted } = notes;
        (self.partial, self.held, self.evicted) = (partial, asked, evicted);
        self.publish();
    }

    /// What a last-good file keeps of it.
    pub fn notes(&self) -> Notes {
        let (asked, evicted) = (self.held.clone(), self.evicted.clone());
        Notes { partial: self.partial, asked, evicted }
    }

    /// Whether time alone may change anything.
    pub fn is_active(&self) -> bool {
        self.partial && !(self.held.is_empty() && self.pending.is_empty())
    }

    /// What the next table says of hosts that it does not hold.
    pub fn unheld(&self) -> Unheld {
        Unheld { partial: self.partial, absent: self.absent.iter().cloned().collect() }
    }

    /// A request needs a name judged.
    pub fn ask(&mut self, ask: Ask, table: &Table) {
        let Ask { name, answer } = ask;
        let known = if table.means(&name).next().is_some() {
            Some(Answer::Held)
        } else if !self.partial || table.unheld.absent.contains(&name) {
            Some(Answer::Absent)
        } else {
            None
        };
        if let Some(known) = known {
            // One that went away needs no answer, here and below.
            let _ = answer.send(known);
            return;
        }
        self.pending.entry(name).or_default().push(answer);
        self.publish();
    }

    /// Notes a transaction before the table is built from it.
    pub fn take(&mut self, transaction: &Transaction) {
        let turned_partial = transaction.partial && !self.partial;
        self.partial = transaction.partial;
        for name in transaction.removes.iter().filter(|n| matches!(n.root, Root::Host(_))) {
            self.bytes = self.bytes.saturating_sub(self.sizes.remove(name).unwrap_or(0));
            if name.child.is_empty() {
                self.lost(&name.root, turned_partial);
            }
        }
        self.weigh(&transaction.upserts);
        let roots = transaction.upserts.iter().filter(|u| u.name.child.is_empty());
        for upsert in roots {
            self.evicted.remove(&upsert.name.root);
        }
        for name in &transaction.absent {
            self.evicted.remove(&Root::Host(name.clone()));
            self.held.remove(name);
            self.absent.retain(|n| n != name);
            self.absent.push_back(name.clone());
        }
        while self.absent.len() > self.limits.absent_max {
            self.absent.pop_front();
        }
    }

    fn weigh(&mut self, upserts: &[Upsert]) {
        for upsert in upserts.iter().filter(|u| matches!(u.name.root, Root::Host(_))) {
            let before = self.sizes.insert(upsert.name.clone(), upsert.bytes).unwrap_or(0);
            self.bytes = self.bytes.saturating_sub(before) + upsert.bytes;
        }
    }

    /// A host is removed: it was given back, or it is no more, in which case its name stays asked
    /// for.
    fn lost(&mut self, root: &Root, evicted: bool) {
        let Root::Host(name) = root else { return };
        if evicted {
            self.evicted.insert(root.clone());
        }
        if self.held.remove(name) {
            self.absent.push_back(name.clone());
        }
        while self.evicted.len() > LAST_GOOD_EVICTED_MAX {
            self.evicted.pop_first();
        }
    }

    /// The table is in every worker: those who waited for what it decides go on.
    pub fn settle(&mut self, table: &Table) {
        let is_held = |name: &Arc<str>| table.means(name).next().is_some();
        let found: Vec<Arc<str>> = self.absent.iter().filter(|n| is_held(n)).cloned().collect();
        self.absent.retain(|name| !found.contains(name));
        self.held.extend(found.iter().filter_map(|name| asked_name(table, name)));
        let mut open = BTreeMap::new();
        for (name, answers) in std::mem::take(&mut self.pending) {
            let answer = if let Some(asked) = asked_name(table, &name) {
                self.held.insert(asked);
                Answer::Held
            } else if !self.partial || self.absent.contains(&name) {
                Answer::Absent
            } else {
                open.insert(name, answers);
                continue;
            };
            for waiting in answers {
                let _ = waiting.send(answer);
            }
        }
        self.pending = open;
        if !self.partial {
            // Everything is held: nothing need be asked for.
            self.held.clear();
            self.absent.clear();
        }
        self.publish();
    }

    /// Forgets those who gave up waiting, and gives back what is too much.
    pub fn tidy(&mut self, table: &Table, now: Mono) {
        for answers in self.pending.values_mut() {
            answers.retain(|a| !a.is_closed());
        }
        self.pending.retain(|_, answers| !answers.is_empty());
        if self.connected && self.partial {
            self.evict(table, now);
        }
        self.publish();
    }

    fn evict(&mut self, table: &Table, now: Mono) {
        let (mut backends, mut bytes) = (table.backends().count(), self.bytes);
        let over = |backends: usize, bytes: usize| {
            backends > self.limits.backends_max || bytes > self.limits.bytes_max
        };
        if !over(backends, bytes) {
            return;
        }
        let used = |name: &Arc<str>| table.means(name).map(|e| e.used_ms()).max().unwrap_or(0);
        let mut oldest: Vec<(u64, Arc<str>)> =
            self.held.iter().map(|name| (used(name), name.clone())).collect();
        oldest.sort();
        for (used_ms, name) in oldest {
            let idle = now.since(Mono(used_ms));
            if idle < self.limits.idle || !over(backends, bytes) {
                break;
            }
            for entry in table.means(&name) {
                let root = Root::Host(entry.host.name.clone());
                backends = backends.saturating_sub(entry.backends.len());
                let family = self.sizes.range(root.own()..).take_while(|(n, _)| n.root == root);
                bytes = bytes.saturating_sub(family.map(|(_, size)| size).sum());
                self.evicted.insert(root);
            }
            self.held.remove(&name);
        }
    }

    fn publish(&self) {
        let mut wanted = self.held.clone();
        wanted.extend(self.absent.iter().cloned());
        wanted.extend(self.pending.keys().cloned());
        self.wanted.send_if_modified(|old| {
            let changed = *old != wanted;
            *old = wanted;
            changed
        });
    }
}

/// Under which name a host is asked for from now on: its own, whatever a request called it. An
/// address may mean several, so it stays.
fn asked_name(table: &Table, name: &Arc<str>) -> Option<Arc<str>> {
    if name.parse::<std::net::IpAddr>().is_ok() {
        return table.means(name).next().map(|_| name.clone());
    }
    table.host(name).map(|entry| entry.host.name.clone())
}

impl Default for OnDemandLimits {
    fn default() -> Self {
        use weft_base::limits::*;
        Self {
            backends_max: PROXY_BACKENDS_MAX,
            bytes_max: PROXY_BYTES_MAX,
            waiting_max: ON_DEMAND_WAITING_MAX,
            wait: Duration::from_millis(ON_DEMAND_WAIT_MS),
            idle: Duration::from_millis(ON_DEMAND_IDLE_MS),
            absent_max: ON_DEMAND_ABSENT_MAX,
        }
    }
}

#[cfg(test)]
mod tests;
