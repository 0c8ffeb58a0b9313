// SPDX-License-Identifier: Apache-2.0
//! A store that refuses some writes, as one that cannot be reached for a moment. Tests of the
//! catalog and of hosts use it; it changes nothing by itself.

use std::sync::{Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use weft_store::{
    Entry, LeaseId, MemoryStore, Page, Stats, StoreError, TxnOutcome, Watch, WatchError,
};

use super::*;

#[derive(Debug)]
pub(crate) struct Failing {
    inner: MemoryStore,
    /// So many of the next writes to keys that begin so.
    next: Mutex<Option<(String, usize)>>,
}

impl Failing {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { inner: MemoryStore::new(clock), next: Mutex::default() }
    }

    pub(crate) fn fail(&self, prefix: &str, times: usize) {
        *self.lock() = Some((prefix.to_owned(), times));
    }

    /// How many writes it has to refuse yet.
    pub(crate) fn left(&self) -> usize {
        self.lock().as_ref().map_or(0, |(_, left)| *left)
    }

    fn lock(&self) -> MutexGuard<'_, Option<(String, usize)>> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fails(&self, txn: &Txn) -> bool {
        match &mut *self.lock() {
            Some((prefix, left @ 1..)) => {
                let hit = txn.ops.iter().any(|op| op.key().starts_with(&**prefix));
                *left -= usize::from(hit);
                hit
            }
            _ => false,
        }
    }
}

impl Store for Failing {
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, StoreError>> {
        if self.fails(&txn) {
            let (member, why) = ("test".to_owned(), "as told".to_owned());
            let lost = StoreError::Unreachable { member, why, unknown: false };
            return std::future::ready(Err(lost)).boxed();
        }
        self.inner.txn(txn)
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
