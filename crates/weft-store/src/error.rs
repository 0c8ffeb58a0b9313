// SPDX-License-Identifier: Apache-2.0
//! What can go wrong in a store, in words that say what to do next.

use std::path::PathBuf;
use std::sync::Arc;

use crate::{Key, LeaseId, Revision};

/// Why a read or write was not done. `Clone`, since one failed commit fails many writers.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    #[error("a transaction of {ops} operations is over the limit of {max}; split it")]
    TooManyOps { ops: usize, max: usize },
    #[error("the key {key:?} is {len} bytes long, over the limit of {max}; use a shorter name")]
    KeyTooLong { key: String, len: usize, max: usize },
    #[error("a key is empty; name what is to be written")]
    EmptyKey,
    #[error(
        "the value of {key:?} is {len} bytes long, over the limit of {max}; \
         split the object or move large data out of it"
    )]
    ValueTooLarge { key: Key, len: usize, max: usize },
    #[error("one transaction writes {key:?} twice; write each key once")]
    DuplicateKey { key: Key },
    #[error("deleting {prefix:?} would take {keys} keys, over the limit of {max}; narrow it")]
    TooManyKeys { prefix: Key, keys: usize, max: usize },
    #[error("there is no lease {}; it ended or was never granted, so grant a new one", .0.0)]
    NoLease(LeaseId),
    #[error("the store is closed")]
    Closed,
    #[error("the store could not write or read its file, and acknowledged nothing: {0}")]
    Storage(#[source] Arc<dyn std::error::Error + Send + Sync>),
    #[error(
        "{member} cannot be reached ({why}){}; see that most members of etcd run and answer",
        if *unknown { ", and whether it wrote is not known" } else { ", and nothing was written" }
    )]
    Unreachable { member: String, why: String, unknown: bool },
    #[error("{member} refused ({why}); {hint}")]
    Refused { member: String, why: String, hint: &'static str },
    #[error("{key:?} holds a record that cannot be read; restore the data directory from a backup")]
    Corrupt { key: String },
    #[error(
        "{path} is empty, but a log was there: it was cut off; restore a backup with `weft store \
         restore`, or delete the file to begin anew without what it held"
    )]
    Emptied { path: PathBuf },
    #[error("{path} is damaged ({why}); try `weft store repair`, else restore a backup")]
    Damaged { path: PathBuf, why: String },
    #[error(
        "{path} is beyond repair ({why}) and left as it was; restore a backup with `weft store \
         restore --force`"
    )]
    BeyondRepair { path: PathBuf, why: String },
    #[error("{path} cannot be restored from: {why}")]
    Backup { path: PathBuf, why: &'static str },
    #[error("{path}: {source}; check that the directory exists and belongs to you")]
    Path { path: PathBuf, source: Arc<std::io::Error> },
    #[error(
        "{path} is in use by another weft{}; stop it first (`weft down --data {path}`) or choose \
         another data directory", pid.map(|p| format!(" (process {p})")).unwrap_or_default()
    )]
    Locked { path: PathBuf, pid: Option<u32> },
    #[error(
        "{path} was written by a newer weft (format {found}, this one knows up to {known}); \
         use that weft, or choose another data directory"
    )]
    Newer { path: PathBuf, found: u64, known: u64 },
}

/// Why a watch ended. List again and watch from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    #[error("revision {from} is compacted, the log begins after {compacted}; list again")]
    Compacted { from: Revision, compacted: Revision },
    #[error("the watch fell too far behind and was cut off; list again")]
    TooSlow,
    #[error("too many watches are open; close some")]
    TooManyWatches,
    #[error("the store is closed")]
    Closed,
}

// === impl StoreError ===

impl StoreError {
    /// Whether the same may work a moment later.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Storage(_) | Self::Closed | Self::Unreachable { .. })
    }

    /// Whether the disk has no room, or this user's part of it has none.
    pub fn is_full(&self) -> bool {
        let Self::Storage(why) = self else { return false };
        // The engine's errors quote the system's, and do not hand it on as their source.
        let text = why.to_string();
        ["(os error 28)", "(os error 122)"].iter().any(|code| text.contains(code))
    }

    pub(crate) fn storage(err: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Storage(Arc::new(err))
    }

    /// The same of a log that repairing could not mend.
    pub(crate) fn beyond_repair(self) -> Self {
        match self {
            Self::Damaged { path, why } => Self::BeyondRepair { path, why },
            other => other,
        }
    }

    /// Whether it says that the log itself is not as it was written.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Damaged { .. }
                | Self::BeyondRepair { .. }
                | Self::Emptied { .. }
                | Self::Corrupt { .. }
        )
    }

    pub(crate) fn path(path: &std::path::Path, source: std::io::Error) -> Self {
        Self::Path { path: path.to_owned(), source: Arc::new(source) }
    }
}
