// SPDX-License-Identifier: Apache-2.0
//! One watch: a cursor into the history and a way to be woken. Never holds events of its own.

use std::sync::Arc;

use tokio::sync::watch;

use crate::history::{Cursor, Head, History};
use crate::{Event, Revision, WatchError};

/// Events handed out at once, unless one revision has more.
const BATCH: usize = 256;

/// What happens to a prefix, in order. Dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    history: Arc<History>,
    head: watch::Receiver<Head>,
    prefix: Box<str>,
    cursor: Cursor,
}

// === impl Watch ===

impl Watch {
    pub(crate) fn new(
        history: &Arc<History>,
        prefix: &str,
        from: Revision,
    ) -> Result<Self, WatchError> {
        let head = history.subscribe()?;
        let cursor = Cursor { next: from.max(Revision(1)), live: false };
        let watch = Self { history: history.clone(), head, prefix: prefix.into(), cursor };
        // A start that is compacted already is told at once rather than at the first wait.
        watch.history.check(&watch.cursor)?;
        Ok(watch)
    }

    /// The next events: at least one, whole revisions, in order. Cancel-safe.
    ///
    /// # Errors
    /// When the watch is over; what was delivered before stays true.
    pub async fn next(&mut self) -> Result<Vec<Event>, WatchError> {
        loop {
            let closed = self.head.borrow_and_update().closed;
            let events = self.history.read(&mut self.cursor, &self.prefix, BATCH)?;
            if !events.is_empty() {
                return Ok(events);
            }
            if closed || self.head.changed().await.is_err() {
                return Err(WatchError::Closed);
            }
        }
    }

    /// What is there already, perhaps nothing.
    ///
    /// # Errors
    /// When the watch is over.
    pub fn try_next(&mut self) -> Result<Vec<Event>, WatchError> {
        self.history.read(&mut self.cursor, &self.prefix, BATCH)
    }

    /// Everything before this revision was delivered (or is not under the prefix).
    pub fn position(&self) -> Revision {
        self.cursor.next
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.history.unsubscribe();
    }
}
