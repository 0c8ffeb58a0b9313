// SPDX-License-Identifier: Apache-2.0
//! A store whose writes meet with what a test wants: they do not get there, their answer is lost,
//! or somebody else comes first. A module of the tests of each crate that needs it; never in a
//! build of weft. It does nothing by itself.
#![allow(dead_code)] // No crate needs all of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use weft_base::clock::Clock;
use weft_store::{
    BoxFuture, Entry, LeaseId, MemoryStore, Page, Revision, Stats, Store, StoreError, Txn,
    TxnOutcome, Watch, WatchError,
};

/// What happens to a write.
#[derive(Clone, Debug)]
enum Fate {
    /// Nothing is written.
    Unreached,
    /// It is written, and nobody is told.
    LostAnswer,
    /// Another is written just before it.
    Preceded(Txn),
}

/// For writes to keys that begin so: after some of them, so many.
#[derive(Clone, Debug)]
struct Plan {
    prefix: String,
    after: usize,
    times: usize,
    fate: Fate,
}

#[derive(Debug)]
pub(crate) struct Doctored {
    inner: MemoryStore,
    plan: Mutex<Option<Plan>>,
    /// Whether the write that came before another did what it wanted.
    preceded: Mutex<Option<bool>>,
}

// === impl Doctored ===

impl Doctored {
    pub(crate) fn new(clock: Clock) -> Arc<Self> {
        let inner = MemoryStore::new(clock);
        Arc::new(Self { inner, plan: Mutex::default(), preceded: Mutex::default() })
    }

    /// So many of the next writes to keys that begin so do not get here.
    pub(crate) fn fail(&self, prefix: &str, times: usize) {
        self.meet(prefix, 0, times, Fate::Unreached);
    }

    /// The next write is done, and its answer is lost.
    pub(crate) fn lose_an_answer(&self) {
        self.meet("", 0, 1, Fate::LostAnswer);
    }

    /// Another write comes first, once, after so many to keys that begin so.
    pub(crate) fn precede(&self, prefix: &str, after: usize, other: Txn) {
        self.meet(prefix, after, 1, Fate::Preceded(other));
    }

    /// From now on all is well.
    pub(crate) fn heal(&self) {
        *lock(&self.plan) = None;
    }

    /// How many writes are to meet with something yet.
    pub(crate) fn left(&self) -> usize {
        lock(&self.plan).as_ref().map_or(0, |plan| plan.times)
    }

    /// Whether the write that came first did what it wanted; nothing before it came.
    pub(crate) fn preceded(&self) -> Option<bool> {
        *lock(&self.preceded)
    }

    fn meet(&self, prefix: &str, after: usize, times: usize, fate: Fate) {
        *lock(&self.plan) = Some(Plan { prefix: prefix.to_owned(), after, times, fate });
    }

    fn fate(&self, txn: &Txn) -> Option<Fate> {
        let mut plan = lock(&self.plan);
        let plan = plan.as_mut()?;
        if plan.times == 0 || !txn.ops.iter().any(|op| op.key().starts_with(&*plan.prefix)) {
            return None;
        }
        if plan.after > 0 {
            plan.after -= 1;
            return None;
        }
        plan.times -= 1;
        Some(plan.fate.clone())
    }

    async fn write(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        let lost = |unknown| {
            let (member, why) = ("test".to_owned(), "as told".to_owned());
            StoreError::Unreachable { member, why, unknown }
        };
        match self.fate(&txn) {
            None => self.inner.txn(txn).await,
            Some(Fate::Unreached) => Err(lost(false)),
            Some(Fate::LostAnswer) => {
                self.inner.txn(txn).await?;
                Err(lost(true))
            }
            Some(Fate::Preceded(other)) => {
                let done = self.inner.txn(other).await?.succeeded;
                *lock(&self.preceded) = Some(done);
                self.inner.txn(txn).await
            }
        }
    }
}

fn lock<T>(held: &Mutex<T>) -> MutexGuard<'_, T> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store for Doctored {
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
