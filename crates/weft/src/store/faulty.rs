// SPDX-License-Identifier: Apache-2.0
//! A store of tests that can be out of reach, or lose the answer to a write that it did.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use weft_store::{
    BoxFuture, Entry, LeaseId, MemoryStore, Page, Revision, Stats, Store, StoreError, Txn,
    TxnOutcome, Watch, WatchError,
};

/// What happens to writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Writes {
    Answered,
    /// Nothing is written.
    Unreached,
    /// The next one is written, and nobody is told.
    LostAnswer,
}

#[derive(Debug)]
pub struct Faulty {
    inner: MemoryStore,
    writes: AtomicU8,
}

// === impl Faulty ===

impl Faulty {
    pub fn new(inner: MemoryStore) -> Self {
        Self { inner, writes: AtomicU8::new(Writes::Answered as u8) }
    }

    pub fn set(&self, writes: Writes) {
        self.writes.store(writes as u8, Ordering::SeqCst);
    }

    async fn write(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        let lost = |unknown| {
            let (member, why) = ("test".to_owned(), "as told".to_owned());
            StoreError::Unreachable { member, why, unknown }
        };
        match self.writes.load(Ordering::SeqCst) {
            n if n == Writes::Unreached as u8 => Err(lost(false)),
            n if n == Writes::LostAnswer as u8 => {
                self.set(Writes::Answered);
                self.inner.txn(txn).await?;
                Err(lost(true))
            }
            _ => self.inner.txn(txn).await,
        }
    }
}

impl Store for Faulty {
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, StoreError>> {
        Box::pin(self.write(txn))
    }

    fn get<'a>(
        &'a self,
        key: &'a str,
    ) -> BoxFuture<'a, Result<(Revision, Option<Entry>), StoreError>> {
        self.inner.get(key)
    }

    fn range<'a>(
        &'a self,
        prefix: &'a str,
        limit: usize,
        after: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Page, StoreError>> {
        self.inner.range(prefix, limit, after)
    }

    fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, WatchError> {
        self.inner.watch(prefix, from)
    }

    fn compact(&self, upto: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.compact(upto)
    }

    fn lease_grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
        self.inner.lease_grant(ttl)
    }

    fn lease_keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<Duration, StoreError>> {
        self.inner.lease_keep_alive(lease)
    }

    fn lease_revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.inner.lease_revoke(lease)
    }

    fn barrier(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.inner.barrier()
    }

    fn stats(&self) -> Stats {
        self.inner.stats()
    }

    fn tick(&self) -> BoxFuture<'_, Result<usize, StoreError>> {
        self.inner.tick()
    }
}
