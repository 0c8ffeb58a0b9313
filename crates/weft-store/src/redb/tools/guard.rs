// SPDX-License-Identifier: Apache-2.0
//! redb tells some damage by an error and other damage by a panic. Whoever works on a log at rest
//! is told both as [`StoreError::Damaged`], and nothing is printed of a panic.

use std::cell::Cell;
use std::error::Error;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Once;

use redb::{
    CommitError, CompactionError, DatabaseError, StorageError, TableError, TransactionError,
};

use crate::StoreError;

thread_local! {
    /// A panic of this thread is caught and told.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Does it; what redb finds damaged is [`StoreError::Damaged`].
pub(super) fn guarded<T>(
    path: &Path,
    f: impl FnOnce() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    hush();
    let before = GUARDED.replace(true);
    let done = catch_unwind(AssertUnwindSafe(f));
    GUARDED.set(before);
    let damaged = |why: String| StoreError::Damaged { path: path.to_owned(), why };
    match done {
        Ok(done) => done.map_err(|error| match &error {
            StoreError::Storage(why) => damage(&**why).map_or(error, damaged),
            _ => error,
        }),
        Err(_) => Err(damaged("it holds what was never written there".to_owned())),
    }
}

/// The hook for panics passes over those that are caught here.
fn hush() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let told = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !GUARDED.get() {
                told(panic);
            }
        }));
    });
}

/// What is wrong with the file, when it is that and not the disk.
fn damage(why: &(dyn Error + Send + Sync + 'static)) -> Option<String> {
    let storage = |error: &StorageError| match error {
        StorageError::Corrupted(why) => Some(why.clone()),
        StorageError::Io(e) if matches!(e.kind(), ErrorKind::UnexpectedEof) => {
            Some("it is cut off".to_owned())
        }
        _ => None,
    };
    if let Some(error) = why.downcast_ref::<StorageError>() {
        return storage(error);
    }
    match (why.downcast_ref(), why.downcast_ref(), why.downcast_ref()) {
        (Some(TableError::Storage(error)), _, _)
        | (_, Some(DatabaseError::Storage(error)), _)
        | (_, _, Some(TransactionError::Storage(error))) => return storage(error),
        _ => {}
    }
    match (why.downcast_ref(), why.downcast_ref()) {
        (Some(CommitError::Storage(error)), _) | (_, Some(CompactionError::Storage(error))) => {
            storage(error)
        }
        _ => None,
    }
}
