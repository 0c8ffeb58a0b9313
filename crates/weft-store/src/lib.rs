// SPDX-License-Identifier: Apache-2.0
//! L1: the one truth, a revisioned log of keys and values, and the engines that keep it.
//!
//! `weft-registry` is the only caller. Everything that happened has a [`Revision`]; a transaction
//! compares and then writes at most 128 keys at one revision; a watch tells, in order, without a
//! gap and without a repeat, what happened to a prefix from a revision on.
//!
//! Architecture invariant: this crate knows no kind. Keys are text, values are bytes.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing))]

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
pub use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

pub mod backup;
#[cfg(test)]
mod conformance;
mod draft;
mod error;
pub mod etcd;
mod history;
mod lease;
mod lock;
pub mod memory;
mod meter;
pub mod redb;
mod watch;

pub use error::{StoreError, WatchError};
pub use etcd::{EtcdConfig, EtcdConfigError, EtcdStore};
pub use history::Retention;
pub use lock::DataDir;
pub use memory::MemoryStore;
pub use meter::Meter;
pub use redb::RedbStore;

pub use watch::Watch;

/// A key: text, at most `limits::STORE_KEY_BYTES_MAX` bytes.
pub type Key = Arc<str>;

/// The order of all that happened in one store. Grows by one for each transaction that changed
/// something; may jump ahead when a store is opened again; never goes back.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

/// A lease's name within its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseId(pub u64);

/// How a key is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Class {
    /// On disk before the write is acknowledged.
    #[default]
    Synced,
    /// Heartbeats and check results: gone when the server that wrote them is.
    Ephemeral,
}

/// A condition on one key, judged before anything is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The key does not exist.
    Absent(Key),
    /// The key exists, in whatever form.
    Exists(Key),
    /// The key was last changed at exactly this revision.
    ModRevision(Key, Revision),
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Put {
        key: Key,
        value: Bytes,
        class: Class,
        lease: Option<LeaseId>,
    },
    Delete {
        key: Key,
    },
    /// Deletes every key that begins so; at most `DELETE_PREFIX_KEYS_MAX` of them.
    DeletePrefix {
        prefix: Key,
    },
}

/// All of `ops` at one revision when all of `compares` hold, and nothing otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    pub compares: Vec<Compare>,
    pub ops: Vec<Op>,
}

/// What became of a [`Txn`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxnOutcome {
    /// The revision written; when nothing changed, the revision that was looked at.
    pub revision: Revision,
    pub succeeded: bool,
    /// The first comparison that did not hold.
    pub failed: Option<usize>,
}

/// One key's present state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub value: Bytes,
    pub created: Revision,
    /// The revision that last changed it.
    pub modified: Revision,
    pub class: Class,
    pub lease: Option<LeaseId>,
}

/// Some keys in order, all as of `revision`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub revision: Revision,
    pub entries: Vec<(Key, Entry)>,
    /// There are more keys after the last one.
    pub more: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Put,
    Delete,
}

/// One key's change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub revision: Revision,
    pub key: Key,
    pub kind: EventKind,
    /// The new value; for a deletion the value that the key had last.
    pub value: Bytes,
    /// The value before this change.
    pub prev: Option<Bytes>,
    pub class: Class,
}

/// A store's own figures, for `/metrics`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub revision: Revision,
    /// Transactions, grants and revocations answered, whether they held or not.
    pub requests: u64,
    /// Times that something was made durable; several requests share one.
    pub commits: u64,
    /// Times that this failed, and nothing was acknowledged.
    pub commit_failures: u64,
    pub watches: usize,
    pub history_events: usize,
    pub history_bytes: usize,
}

/// Keys that one `DeletePrefix` may take with it.
pub const DELETE_PREFIX_KEYS_MAX: usize = 1024;

/// A store, whatever keeps it. All methods may be called from any task; a future that is dropped
/// may or may not have written, as with any store behind a wire.
pub trait Store: Debug + Send + Sync + 'static {
    /// Writes, or says which comparison failed. Resolves once `Synced` keys are durable.
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, StoreError>>;

    /// One key, and the revision at which it was read.
    fn get<'a>(
        &'a self,
        key: &'a str,
    ) -> BoxFuture<'a, Result<(Revision, Option<Entry>), StoreError>>;

    /// Keys that begin with `prefix`, in order, after `after` when given; all of them when
    /// `limit` is 0. One call sees one revision.
    fn range<'a>(
        &'a self,
        prefix: &'a str,
        limit: usize,
        after: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Page, StoreError>>;

    /// What happens to keys that begin with `prefix` at and after revision `from`. To follow a
    /// `range` read at revision R, watch from R + 1.
    ///
    /// # Errors
    /// [`WatchError::Compacted`] when the log no longer holds `from`.
    fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, WatchError>;

    /// Forgets the events of revisions up to and including `upto`. Present values stay.
    fn compact(&self, upto: Revision) -> BoxFuture<'_, Result<(), StoreError>>;

    /// A lease that ends `ttl` after its last sign of life, and takes its keys with it.
    fn lease_grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>>;

    /// A sign of life. Writes nothing.
    fn lease_keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<Duration, StoreError>>;

    /// Ends a lease now, and its keys with it.
    fn lease_revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<Revision, StoreError>>;

    /// A revision at or after every write acknowledged before the call, for linearizable reads.
    fn barrier(&self) -> BoxFuture<'_, Result<Revision, StoreError>>;

    /// The store's own figures.
    fn stats(&self) -> Stats;

    /// What it counts besides, where it does.
    fn meter(&self) -> Option<&Meter> {
        None
    }

    /// Ends the leases that are due and forgets old history; returns how many leases ended.
    /// The owner calls this about twice a second: engines hold no timers.
    fn tick(&self) -> BoxFuture<'_, Result<usize, StoreError>>;
}

// === impl Revision ===

impl Revision {
    /// The revision after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl std::fmt::Display for Revision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(&self.0, f)
    }
}

// === impl Compare ===

impl Compare {
    pub fn key(&self) -> &Key {
        match self {
            Self::Absent(key) | Self::Exists(key) | Self::ModRevision(key, _) => key,
        }
    }
}

// === impl Op ===

impl Op {
    /// A durable write without a lease.
    pub fn put(key: impl Into<Key>, value: impl Into<Bytes>) -> Self {
        Self::Put { key: key.into(), value: value.into(), class: Class::Synced, lease: None }
    }

    /// A write that lives in memory only.
    pub fn put_ephemeral(key: impl Into<Key>, value: impl Into<Bytes>) -> Self {
        Self::Put { key: key.into(), value: value.into(), class: Class::Ephemeral, lease: None }
    }

    pub fn delete(key: impl Into<Key>) -> Self {
        Self::Delete { key: key.into() }
    }

    /// The key, or the prefix.
    pub fn key(&self) -> &Key {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
            Self::DeletePrefix { prefix } => prefix,
        }
    }
}

// === impl Txn ===

impl Txn {
    /// Writes without a condition.
    pub fn of(ops: impl IntoIterator<Item = Op>) -> Self {
        Self { compares: Vec::new(), ops: ops.into_iter().collect() }
    }

    /// Adds a condition.
    #[must_use]
    pub fn when(mut self, compare: Compare) -> Self {
        self.compares.push(compare);
        self
    }

    /// Adds a write.
    #[must_use]
    pub fn then(mut self, op: Op) -> Self {
        self.ops.push(op);
        self
    }
}
