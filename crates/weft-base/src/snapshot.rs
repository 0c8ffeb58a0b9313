// SPDX-License-Identifier: Apache-2.0
//! One writer publishes immutable values; readers pin one per request. No lock on reading.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

/// The writing end. Not `Clone`: there is one writer.
#[derive(Debug)]
pub struct Publisher<T> {
    cell: Arc<ArcSwap<T>>,
    changed: watch::Sender<u64>,
}

/// A reading end.
#[derive(Debug)]
pub struct Snapshot<T> {
    cell: Arc<ArcSwap<T>>,
    changed: watch::Receiver<u64>,
}

/// A publisher and its first reader.
pub fn snapshot<T>(first: T) -> (Publisher<T>, Snapshot<T>) {
    let cell = Arc::new(ArcSwap::from_pointee(first));
    let (changed, rx) = watch::channel(0);
    (Publisher { cell: cell.clone(), changed }, Snapshot { cell, changed: rx })
}

// === impl Publisher ===

impl<T> Publisher<T> {
    pub fn publish(&self, value: impl Into<Arc<T>>) {
        self.cell.store(value.into());
        self.changed.send_modify(|n| *n += 1);
    }

    pub fn load(&self) -> Arc<T> {
        self.cell.load_full()
    }

    pub fn subscribe(&self) -> Snapshot<T> {
        Snapshot { cell: self.cell.clone(), changed: self.changed.subscribe() }
    }
}

// === impl Snapshot ===

impl<T> Snapshot<T> {
    /// Pins the newest value.
    pub fn load(&self) -> Arc<T> {
        self.cell.load_full()
    }

    /// Waits until a value newer than the last one waited for is published; `false` when the
    /// publisher is gone. Cancel-safe.
    pub async fn changed(&mut self) -> bool {
        self.changed.changed().await.is_ok()
    }
}

impl<T> Clone for Snapshot<T> {
    fn clone(&self) -> Self {
        Self { cell: self.cell.clone(), changed: self.changed.clone() }
    }
}
