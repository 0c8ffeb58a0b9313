// SPDX-License-Identifier: Apache-2.0
//! Pairs, and what each verb on them does, planned over a look at the [`State`] as one store
//! transaction. Pure: `mod.rs` writes the plan and tries again when it was overtaken.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use weft_store::{Compare, Op, Revision, Txn};

use super::error::ConsulError;
use super::keys;
use super::state::{Item, State, What};

/// Largest value, bytes, as in Consul.
pub const VALUE_BYTES_MAX: usize = 512 * 1024;

/// A key's value with what belongs to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pair {
    pub flags: u64,
    /// How often it was locked.
    pub lock_index: u64,
    /// Who holds it; empty for nobody.
    pub session: Arc<str>,
    pub value: Bytes,
}

/// What precedes the value in the store, as one line.
#[derive(Deserialize, Serialize)]
struct Head {
    #[serde(default)]
    flags: u64,
    #[serde(default)]
    lock: u64,
    #[serde(default)]
    session: Arc<str>,
}

/// Verbs on pairs, done one after the other on a look at the state; each sees those before it.
#[derive(Debug)]
pub struct Draft<'a> {
    state: &'a State,
    now: BTreeMap<Arc<str>, Option<Arc<Pair>>>,
    /// What was deleted since: a pair that is set again is another one, however equal.
    gone: BTreeSet<Arc<str>>,
    /// What the outcome depends on.
    looked: BTreeSet<Arc<str>>,
    /// Sessions that are to be as they were, by the revision of that.
    sessions: BTreeMap<Arc<str>, u64>,
    delays: BTreeSet<String>,
}

/// A pair as a draft sees it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its store key.
    pub key: Arc<str>,
    pub pair: Arc<Pair>,
    /// `None` when this draft wrote it: the revision is known once it is done.
    pub item: Option<Item>,
    /// When it was made; `None` when by this draft.
    pub created: Option<u64>,
}

// === impl Pair ===

impl Pair {
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let end = bytes.iter().position(|b| *b == b'\n')?;
        let head: Head = serde_json::from_slice(bytes.get(..end)?).ok()?;
        let value = Bytes::copy_from_slice(bytes.get(end + 1..)?);
        Some(Self { flags: head.flags, lock_index: head.lock, session: head.session, value })
    }

    pub fn write(&self) -> Result<Vec<u8>, ConsulError> {
        let session = self.session.clone();
        let head = Head { flags: self.flags, lock: self.lock_index, session };
        let mut out = serde_json::to_vec(&head)?;
        out.push(b'\n');
        out.extend_from_slice(&self.value);
        Ok(out)
    }
}

// === impl Draft ===

impl<'a> Draft<'a> {
    pub fn new(state: &'a State) -> Self {
        Self {
            state,
            now: BTreeMap::new(),
            gone: BTreeSet::new(),
            looked: BTreeSet::new(),
            sessions: BTreeMap::new(),
            delays: BTreeSet::new(),
        }
    }

    pub fn get(&mut self, key: &str) -> Option<Seen> {
        self.looked.insert(key.into());
        self.peek(key)
    }

    /// Everything under a prefix.
    pub fn tree(&mut self, prefix: &str) -> Vec<Seen> {
        let mut found: BTreeSet<Arc<str>> =
            self.state.under(prefix).map(|(key, _)| key.clone()).collect();
        found.extend(self.now.keys().filter(|key| key.starts_with(prefix)).cloned());
        self.looked.extend(found.iter().cloned());
        found.iter().filter_map(|key| self.peek(key)).collect()
    }

    /// Writes value and flags; who holds the pair goes on to.
    pub fn set(&mut self, key: &str, value: Bytes, flags: u64) {
        let old = self.get(key).map(|seen| (*seen.pair).clone()).unwrap_or_default();
        self.put(key, Pair { value, flags, ..old });
    }

    /// The same if the pair was last changed at `index`; 0 means that there is none.
    pub fn cas(&mut self, key: &str, value: Bytes, flags: u64, index: u64) -> bool {
        let holds = match self.get(key) {
            None => index == 0,
            Some(seen) => index != 0 && seen.item.is_some_and(|item| item.modified == index),
        };
        if holds {
            self.set(key, value, flags);
        }
        holds
    }

    /// Takes the pair for a session, unless another has it or its last holder's delay runs.
    ///
    /// # Errors
    /// When there is no such session, or it is ending.
    pub fn lock(
        &mut self,
        key: &str,
        value: Bytes,
        flags: u64,
        session: &str,
    ) -> Result<bool, ConsulError> {
        let alive = self.state.session(session).filter(|(_, session, _)| !session.ending);
        let Some((at, _, item)) = alive else {
            return Err(ConsulError::InvalidSession { id: session.to_owned() });
        };
        self.sessions.insert(at.clone(), item.modified);
        let old = self.get(key).map(|seen| (*seen.pair).clone()).unwrap_or_default();
        let mut lock_index = old.lock_index;
        if *old.session != *session {
            let delay = keys::delay(key);
            if !old.session.is_empty() || self.state.item(&delay).is_some() {
                return Ok(false);
            }
            self.delays.insert(delay);
            lock_index += 1;
        }
        self.put(key, Pair { flags, lock_index, session: session.into(), value });
        Ok(true)
    }

    /// Gives the pair back, if the session has it.
    pub fn unlock(&mut self, key: &str, value: Bytes, flags: u64, session: &str) -> bool {
        let Some(old) = self.get(key).map(|seen| seen.pair) else { return false };
        let holds = !old.session.is_empty() && *old.session == *session;
        if holds {
            let lock_index = old.lock_index;
            self.put(key, Pair { flags, lock_index, session: "".into(), value });
        }
        holds
    }

    pub fn delete(&mut self, key: &str) {
        if self.get(key).is_some() {
            self.take(key.into());
        }
    }

    /// Deletes the pair if it was last changed at `index`. One that is not there is gone.
    pub fn delete_cas(&mut self, key: &str, index: u64) -> bool {
        match self.get(key) {
            None => true,
            Some(Seen { item: Some(item), .. }) if item.modified == index => {
                self.take(key.into());
                true
            }
            Some(_) => false,
        }
    }

    /// Deletes what is under a prefix now.
    pub fn delete_tree(&mut self, prefix: &str) {
        let mut keys: Vec<Arc<str>> = self.state.under(prefix).map(|(k, _)| k.clone()).collect();
        keys.extend(self.now.keys().filter(|key| key.starts_with(prefix)).cloned());
        keys.into_iter().for_each(|key| self.take(key));
    }

    /// Whether anything would be written.
    pub fn writes(&self) -> bool {
        self.now.iter().any(|(key, pair)| self.differs(key, pair.as_ref()))
    }

    /// The plan: all of it, if nothing that it depends on changes before. Also where nothing of it
    /// is written: what is written along with it depends on that too.
    ///
    /// # Errors
    /// When a pair cannot be written.
    pub fn into_txn(self) -> Result<Txn, ConsulError> {
        let mut txn = Txn::default();
        for (key, pair) in &self.now {
            match pair {
                _ if !self.differs(key, pair.as_ref()) => {}
                None => txn.ops.push(Op::delete(key.clone())),
                Some(pair) => txn.ops.push(Op::put(key.clone(), pair.write()?)),
            }
        }
        for key in self.looked {
            txn.compares.push(match self.state.item(&key) {
                Some(item) => Compare::ModRevision(key, Revision(item.modified)),
                None => Compare::Absent(key),
            });
        }
        let same = |(key, modified)| Compare::ModRevision(key, Revision(modified));
        txn.compares.extend(self.sessions.into_iter().map(same));
        txn.compares.extend(self.delays.into_iter().map(|key| Compare::Absent(key.into())));
        Ok(txn)
    }

    fn peek(&self, key: &str) -> Option<Seen> {
        let item = self.state.item(key);
        let before = item.and_then(|item| match &item.what {
            What::Pair(pair) => Some((pair, item)),
            _ => None,
        });
        let created = before.map(|(_, item)| item.created);
        match self.now.get(key) {
            Some(None) => None,
            Some(Some(pair)) => {
                let kept = before.filter(|(old, _)| *old == pair && !self.gone.contains(key));
                let same = kept.map(|(_, item)| item.clone());
                Some(Seen { key: key.into(), pair: pair.clone(), item: same, created })
            }
            None => before.map(|(pair, item)| Seen {
                key: key.into(),
                pair: pair.clone(),
                item: Some(item.clone()),
                created,
            }),
        }
    }

    fn take(&mut self, key: Arc<str>) {
        self.gone.insert(key.clone());
        self.now.insert(key, None);
    }

    fn put(&mut self, key: &str, pair: Pair) {
        self.now.insert(key.into(), Some(Arc::new(pair)));
    }

    /// An equal pair is not written again: its index stays.
    fn differs(&self, key: &str, pair: Option<&Arc<Pair>>) -> bool {
        match (self.state.item(key).map(|item| &item.what), pair) {
            (Some(What::Pair(old)), Some(new)) => old != new || self.gone.contains(key),
            (None, None) => false,
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests;
