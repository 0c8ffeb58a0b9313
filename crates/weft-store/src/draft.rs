// SPDX-License-Identifier: Apache-2.0
//! The rules of the log, the same in every engine and without I/O of their own: compare, write,
//! number, attach to leases, and say what happened. An engine lends a [`Table`] for what is on
//! disk and keeps the [`State`] that a draft leaves behind only once that is durable.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use imbl::{OrdMap, OrdSet};
use weft_base::limits;

use crate::{
    Class, Compare, DELETE_PREFIX_KEYS_MAX, Entry, Event, EventKind, Key, LeaseId, Op, Page,
    Revision, StoreError, Txn, TxnOutcome,
};

/// The durable keys as one open transaction sees them.
pub(crate) trait Table {
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;
    fn put(&mut self, key: &str, entry: &Entry) -> Result<(), StoreError>;
    fn remove(&mut self, key: &str) -> Result<(), StoreError>;
    /// At most `max` keys that begin with `prefix`.
    fn keys(&self, prefix: &str, max: usize) -> Result<Vec<Key>, StoreError>;
    fn put_lease(&mut self, lease: LeaseId, ttl: Option<Duration>) -> Result<(), StoreError>;
}

/// What an engine keeps in memory. Cheap to clone: drafts work on a clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    pub revision: Revision,
    pub ephemeral: OrdMap<Key, Entry>,
    pub leases: OrdMap<LeaseId, Lease>,
    pub next_lease: u64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Lease {
    pub ttl: Duration,
    pub keys: OrdSet<Key>,
}

/// Changes under way.
#[derive(Debug)]
pub(crate) struct Draft<'a, T> {
    pub state: &'a mut State,
    pub table: &'a mut T,
    /// What happened so far, in order.
    pub events: Vec<Event>,
    /// Something must be made durable.
    pub synced: bool,
}

// === impl Draft ===

impl<'a, T: Table> Draft<'a, T> {
    pub fn new(state: &'a mut State, table: &'a mut T) -> Self {
        Self { state, table, events: Vec::new(), synced: false }
    }

    /// Applies all of a transaction or nothing. After a [`StoreError::Storage`] the whole draft
    /// must be thrown away; any other error left it untouched.
    pub fn txn(&mut self, txn: &Txn) -> Result<TxnOutcome, StoreError> {
        let revision = self.state.revision;
        for (i, compare) in txn.compares.iter().enumerate() {
            if !self.holds(compare)? {
                return Ok(TxnOutcome { revision, succeeded: false, failed: Some(i) });
            }
        }
        let doomed = self.judge(txn)?;
        let next = revision.next();
        let before = self.events.len();
        for op in &txn.ops {
            match op {
                Op::Put { key, value, class, lease } => {
                    self.put(next, key, value.clone(), *class, *lease)?;
                }
                Op::Delete { key } => self.delete(next, key)?,
                Op::DeletePrefix { .. } => {}
            }
        }
        for key in &doomed {
            self.delete(next, key)?;
        }
        if self.events.len() > before {
            self.state.revision = next;
        }
        Ok(TxnOutcome { revision: self.state.revision, succeeded: true, failed: None })
    }

    pub fn grant(&mut self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.state.next_lease += 1;
        let id = LeaseId(self.state.next_lease);
        self.state.leases.insert(id, Lease { ttl, keys: OrdSet::new() });
        self.table.put_lease(id, Some(ttl))?;
        self.synced = true;
        Ok(id)
    }

    /// Ends a lease and deletes its keys, all at one revision.
    pub fn revoke(&mut self, id: LeaseId) -> Result<Revision, StoreError> {
        let lease = self.state.leases.get(&id).cloned().ok_or(StoreError::NoLease(id))?;
        let next = self.state.revision.next();
        let before = self.events.len();
        for key in &lease.keys {
            self.delete(next, key)?;
        }
        if self.events.len() > before {
            self.state.revision = next;
        }
        self.state.leases.remove(&id);
        self.table.put_lease(id, None)?;
        self.synced = true;
        Ok(self.state.revision)
    }

    fn holds(&self, compare: &Compare) -> Result<bool, StoreError> {
        let entry = self.entry(compare.key())?;
        Ok(match compare {
            Compare::Absent(_) => entry.is_none(),
            Compare::Exists(_) => entry.is_some(),
            Compare::ModRevision(_, at) => entry.is_some_and(|e| e.modified == *at),
        })
    }

    /// Checks what can only be known here, and finds the keys under deleted prefixes, so that
    /// applying cannot fail half-way but for I/O.
    fn judge(&self, txn: &Txn) -> Result<BTreeSet<Key>, StoreError> {
        let mut doomed = BTreeSet::new();
        for op in &txn.ops {
            match op {
                Op::Put { lease: Some(lease), .. } if !self.state.leases.contains_key(lease) => {
                    return Err(StoreError::NoLease(*lease));
                }
                Op::DeletePrefix { prefix } => doomed.extend(self.under(prefix)?),
                _ => {}
            }
        }
        Ok(doomed)
    }

    fn under(&self, prefix: &Key) -> Result<Vec<Key>, StoreError> {
        let mut keys = self.table.keys(prefix, DELETE_PREFIX_KEYS_MAX + 1)?;
        let ephemeral = under(&self.state.ephemeral, prefix, None).map(|(k, _)| k.clone());
        keys.extend(ephemeral.take(DELETE_PREFIX_KEYS_MAX + 1));
        match keys.len() > DELETE_PREFIX_KEYS_MAX {
            true => Err(StoreError::TooManyKeys {
                prefix: prefix.clone(),
                keys: keys.len(),
                max: DELETE_PREFIX_KEYS_MAX,
            }),
            false => Ok(keys),
        }
    }

    fn entry(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        match self.state.ephemeral.get(key) {
            Some(entry) => Ok(Some(entry.clone())),
            None => self.table.get(key),
        }
    }

    fn put(
        &mut self,
        revision: Revision,
        key: &Key,
        value: Bytes,
        class: Class,
        lease: Option<LeaseId>,
    ) -> Result<(), StoreError> {
        let old = self.entry(key)?;
        let created = old.as_ref().map_or(revision, |e| e.created);
        let entry = Entry { value: value.clone(), created, modified: revision, class, lease };
        self.detach(key, old.as_ref());
        if let Some(holder) = lease.and_then(|id| self.state.leases.get_mut(&id)) {
            holder.keys.insert(key.clone());
        }
        let was = old.as_ref().map(|e| e.class);
        match class {
            Class::Synced => {
                self.state.ephemeral.remove(key);
                self.table.put(key, &entry)?;
                self.synced = true;
            }
            Class::Ephemeral => {
                if was == Some(Class::Synced) {
                    self.table.remove(key)?;
                    self.synced = true;
                }
                self.state.ephemeral.insert(key.clone(), entry);
            }
        }
        let prev = old.map(|e| e.value);
        let key = key.clone();
        self.events.push(Event { revision, key, kind: EventKind::Put, value, prev, class });
        Ok(())
    }

    fn delete(&mut self, revision: Revision, key: &Key) -> Result<(), StoreError> {
        let Some(old) = self.entry(key)? else { return Ok(()) };
        self.detach(key, Some(&old));
        match old.class {
            Class::Synced => {
                self.table.remove(key)?;
                self.synced = true;
            }
            Class::Ephemeral => {
                self.state.ephemeral.remove(key);
            }
        }
        self.events.push(Event {
            revision,
            key: key.clone(),
            kind: EventKind::Delete,
            value: old.value.clone(),
            prev: Some(old.value),
            class: old.class,
        });
        Ok(())
    }

    fn detach(&mut self, key: &Key, old: Option<&Entry>) {
        let lease = old.and_then(|e| e.lease);
        if let Some(holder) = lease.and_then(|id| self.state.leases.get_mut(&id)) {
            holder.keys.remove(key);
        }
    }
}

/// Refuses what no engine takes, before it is queued.
pub(crate) fn check(txn: &Txn) -> Result<(), StoreError> {
    let max = limits::STORE_TXN_OPS_MAX;
    let ops = txn.ops.len().max(txn.compares.len());
    if ops > max {
        return Err(StoreError::TooManyOps { ops, max });
    }
    let mut seen = BTreeSet::new();
    for op in &txn.ops {
        check_key(op.key())?;
        if let Op::Put { key, value, .. } = op
            && value.len() > limits::STORE_VALUE_BYTES_MAX
        {
            let (len, max) = (value.len(), limits::STORE_VALUE_BYTES_MAX);
            return Err(StoreError::ValueTooLarge { key: key.clone(), len, max });
        }
        if !seen.insert(op.key()) {
            return Err(StoreError::DuplicateKey { key: op.key().clone() });
        }
    }
    for op in &txn.ops {
        let Op::DeletePrefix { prefix } = op else { continue };
        let mut others = txn.ops.iter().filter(|o| !std::ptr::eq(*o, op));
        if let Some(other) = others.find(|o| o.key().starts_with(&**prefix)) {
            return Err(StoreError::DuplicateKey { key: other.key().clone() });
        }
    }
    txn.compares.iter().try_for_each(|c| check_key(c.key()))
}

fn check_key(key: &str) -> Result<(), StoreError> {
    let max = limits::STORE_KEY_BYTES_MAX;
    match key.len() {
        0 => Err(StoreError::EmptyKey),
        len if len > max => {
            let key = key.chars().take(64).collect();
            Err(StoreError::KeyTooLong { key, len, max })
        }
        _ => Ok(()),
    }
}

/// The entries of a map under a prefix, after a key when one is given.
pub(crate) fn under<'m>(
    map: &'m OrdMap<Key, Entry>,
    prefix: &str,
    after: Option<&str>,
) -> impl Iterator<Item = (&'m Key, &'m Entry)> {
    let prefix: Key = prefix.into();
    let start: Key = after.map_or_else(|| prefix.clone(), |a| a.max(&prefix).into());
    let skip: Option<Key> = after.map(Into::into);
    map.range(start..)
        .take_while(move |(k, _)| k.starts_with(&*prefix))
        .filter(move |(k, _)| skip.as_ref().is_none_or(|s| *k > s))
}

/// Two sorted runs of entries as one page.
pub(crate) fn merge(
    revision: Revision,
    limit: usize,
    synced: impl Iterator<Item = Result<(Key, Entry), StoreError>>,
    ephemeral: impl Iterator<Item = (Key, Entry)>,
) -> Result<Page, StoreError> {
    let limit = if limit == 0 { usize::MAX } else { limit };
    let (mut left, mut right) = (synced.peekable(), ephemeral.peekable());
    let mut page = Page { revision, ..Page::default() };
    loop {
        let take_left = match (left.peek(), right.peek()) {
            (None, None) => return Ok(page),
            (Some(Ok((l, _))), Some((r, _))) => l < r,
            (left, _) => left.is_some(),
        };
        if page.entries.len() == limit {
            page.more = true;
            return Ok(page);
        }
        let next = match take_left {
            true => left.next().transpose()?,
            false => right.next(),
        };
        page.entries.extend(next);
    }
}
