// SPDX-License-Identifier: Apache-2.0
//! A watch of one kind, as Kubernetes tells it: ADDED, MODIFIED, DELETED with whole objects.

use serde_json::Value;
use weft_kinds::kind::{KindId, parse_key};
use weft_store::{Event, EventKind, Revision, Watch, WatchError};

use super::{ObjectError, meta};

/// One change of one object.
#[derive(Clone, Debug, PartialEq)]
pub struct ObjectEvent {
    pub revision: u64,
    pub namespace: String,
    pub name: String,
    /// The object now, with its resourceVersion; for a deletion as it was last, at the
    /// deletion's revision.
    pub object: Value,
    /// The object before; `None` when it is new.
    pub before: Option<Value>,
    pub deleted: bool,
}

/// Follows the objects of a kind, in one namespace or all.
#[derive(Debug)]
pub struct ObjectWatch {
    log: Watch,
}

// === impl ObjectWatch ===

impl ObjectWatch {
    pub(super) fn new(
        store: &dyn weft_store::Store,
        kind: KindId,
        namespace: Option<&str>,
        from: u64,
    ) -> Result<Self, ObjectError> {
        let row = kind.row();
        let prefix = match namespace.filter(|_| row.namespaced) {
            Some(ns) => format!("{}{ns}/", row.prefix()),
            None => row.prefix(),
        };
        let log = store.watch(&prefix, Revision(from).next()).map_err(|e| expired(e, from))?;
        Ok(Self { log })
    }

    /// The next changes, at least one. Cancel-safe.
    ///
    /// # Errors
    /// [`ObjectError::Expired`] when the watch fell behind or the log is gone: list again.
    pub async fn next(&mut self) -> Result<Vec<ObjectEvent>, ObjectError> {
        loop {
            let from = self.log.position().0;
            let events = self.log.next().await.map_err(|e| expired(e, from))?;
            let events: Vec<_> = events.into_iter().filter_map(read).collect();
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }

    /// Everything up to this resourceVersion was told: what a bookmark carries.
    pub fn position(&self) -> u64 {
        self.log.position().0.saturating_sub(1)
    }
}

fn expired(err: WatchError, from: u64) -> ObjectError {
    match err {
        WatchError::Compacted { compacted, .. } => {
            ObjectError::Expired { from, oldest: compacted.0.saturating_add(1) }
        }
        WatchError::TooSlow => ObjectError::Expired { from, oldest: from.saturating_add(1) },
        WatchError::TooManyWatches => ObjectError::Busy(err.to_string()),
        WatchError::Closed => ObjectError::Store(weft_store::StoreError::Closed),
    }
}

fn read(event: Event) -> Option<ObjectEvent> {
    let (_, namespace, name) = parse_key(&event.key)?;
    let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).ok();
    let object = meta::present(&parse(&event.value)?, event.revision.0);
    Some(ObjectEvent {
        revision: event.revision.0,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        object,
        before: event.prev.as_deref().and_then(parse),
        deleted: event.kind == EventKind::Delete,
    })
}
