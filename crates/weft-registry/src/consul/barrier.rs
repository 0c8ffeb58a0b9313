// SPDX-License-Identifier: Apache-2.0
//! The store's barriers, shared: however many ask at once, the store is asked once for all who came
//! before. Called by [`super::Handle`] for each read that must show what any server acknowledged.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;
use weft_store::{Revision, Store, StoreError};

#[derive(Debug, Default)]
pub(crate) struct Barriers {
    /// How many were begun.
    begun: AtomicU64,
    /// The last one that ended: its number and what came of it. Held by who is at one.
    turn: Mutex<Option<(u64, Result<Revision, StoreError>)>>,
}

// === impl Barriers ===

impl Barriers {
    /// How many were begun: one that is begun later shows what was acknowledged by now.
    pub fn begun(&self) -> u64 {
        self.begun.load(Ordering::SeqCst)
    }

    /// The revision that shows everything that was acknowledged when so many were begun.
    /// Cancel-safe.
    ///
    /// # Errors
    /// When the store cannot say; then nobody who waited asks it again by themselves.
    pub async fn pass(&self, before: u64, store: &dyn Store) -> Result<Revision, StoreError> {
        let mut last = self.turn.lock().await;
        if let Some((number, said)) = &*last
            && *number > before
        {
            return said.clone();
        }
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let said = store.barrier().await;
        *last = Some((number, said.clone()));
        said
    }
}
