// SPDX-License-Identifier: Apache-2.0
//! The engine for tests: everything in memory, nothing survives.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::ready;
use imbl::OrdMap;
use weft_base::clock::Clock;

use crate::draft::{Draft, State, Table, check, merge, under};
use crate::history::{History, Retention};
use crate::lease::Deadlines;
use crate::{
    BoxFuture, Entry, Key, LeaseId, Page, Revision, Stats, Store, StoreError, Txn, TxnOutcome,
    Watch, WatchError,
};

/// A store that is gone when it is dropped.
#[derive(Debug)]
pub struct MemoryStore {
    inner: Mutex<Inner>,
    history: Arc<History>,
    clock: Clock,
}

#[derive(Debug, Default)]
struct Inner {
    state: State,
    table: MemoryTable,
    deadlines: Deadlines,
    requests: u64,
}

/// `Synced` keys, which here are in memory as well.
#[derive(Clone, Debug, Default)]
struct MemoryTable(OrdMap<Key, Entry>);

// === impl MemoryStore ===

impl MemoryStore {
    pub fn new(clock: Clock) -> Self {
        Self::with_retention(clock, Retention::default())
    }

    pub fn with_retention(clock: Clock, retention: Retention) -> Self {
        let history = History::new(Revision(0), retention);
        Self { inner: Mutex::default(), history, clock }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Changes are made on clones and swapped in, so a panic cannot leave half of one.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a draft and keeps it when it worked.
    fn write<R>(
        &self,
        f: impl FnOnce(&mut Draft<'_, MemoryTable>) -> Result<R, StoreError>,
    ) -> Result<R, StoreError> {
        let mut inner = self.lock();
        let (mut state, mut table) = (inner.state.clone(), inner.table.clone());
        inner.requests += 1;
        let mut draft = Draft::new(&mut state, &mut table);
        let out = f(&mut draft)?;
        let events = std::mem::take(&mut draft.events);
        let revision = state.revision;
        (inner.state, inner.table) = (state, table);
        if !events.is_empty() {
            // Appended under the lock: history is in the order of the log.
            self.history.append(self.clock.now(), revision, events);
        }
        Ok(out)
    }

    fn do_txn(&self, txn: &Txn) -> Result<TxnOutcome, StoreError> {
        check(txn)?;
        self.write(|draft| draft.txn(txn))
    }

    fn do_grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let id = self.write(|draft| draft.grant(ttl))?;
        self.lock().deadlines.start(id, ttl, self.clock.now());
        Ok(id)
    }

    fn do_revoke(&self, lease: LeaseId) -> Result<Revision, StoreError> {
        let revision = self.write(|draft| draft.revoke(lease))?;
        self.lock().deadlines.stop(lease);
        Ok(revision)
    }

    fn do_tick(&self) -> Result<usize, StoreError> {
        let now = self.clock.now();
        self.history.expire(now);
        let due = self.lock().deadlines.take_due(now);
        for lease in &due {
            self.write(|draft| draft.revoke(*lease))?;
        }
        Ok(due.len())
    }
}

impl Store for MemoryStore {
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, StoreError>> {
        async move { self.do_txn(&txn) }.boxed()
    }

    fn get<'a>(
        &'a self,
        key: &'a str,
    ) -> BoxFuture<'a, Result<(Revision, Option<Entry>), StoreError>> {
        let inner = self.lock();
        let entry = inner.state.ephemeral.get(key).or_else(|| inner.table.0.get(key)).cloned();
        ready(Ok((inner.state.revision, entry))).boxed()
    }

    fn range<'a>(
        &'a self,
        prefix: &'a str,
        limit: usize,
        after: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Page, StoreError>> {
        let (state, table) = {
            let inner = self.lock();
            (inner.state.clone(), inner.table.clone())
        };
        let own = |(k, e): (&Key, &Entry)| (k.clone(), e.clone());
        let synced = under(&table.0, prefix, after).map(own).map(Ok);
        let ephemeral = under(&state.ephemeral, prefix, after).map(own);
        ready(merge(state.revision, limit, synced, ephemeral)).boxed()
    }

    fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, WatchError> {
        Watch::new(&self.history, prefix, from)
    }

    fn compact(&self, upto: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        self.history.compact(upto);
        ready(Ok(())).boxed()
    }

    fn lease_grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
        async move { self.do_grant(ttl) }.boxed()
    }

    fn lease_keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<Duration, StoreError>> {
        let now = self.clock.now();
        let kept = self.lock().deadlines.keep_alive(lease, now);
        ready(kept.ok_or(StoreError::NoLease(lease))).boxed()
    }

    fn lease_revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<Revision, StoreError>> {
        async move { self.do_revoke(lease) }.boxed()
    }

    fn barrier(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        ready(Ok(self.lock().state.revision)).boxed()
    }

    fn stats(&self) -> Stats {
        let (revision, requests) = {
            let inner = self.lock();
            (inner.state.revision, inner.requests)
        };
        let (watches, history_events, history_bytes) = self.history.stats();
        Stats {
            revision,
            requests,
            commits: requests,
            commit_failures: 0,
            watches,
            history_events,
            history_bytes,
        }
    }

    fn tick(&self) -> BoxFuture<'_, Result<usize, StoreError>> {
        async move { self.do_tick() }.boxed()
    }
}

impl Drop for MemoryStore {
    fn drop(&mut self) {
        self.history.close();
    }
}

// === impl MemoryTable ===

impl Table for MemoryTable {
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.0.get(key).cloned())
    }

    fn put(&mut self, key: &str, entry: &Entry) -> Result<(), StoreError> {
        self.0.insert(key.into(), entry.clone());
        Ok(())
    }

    fn remove(&mut self, key: &str) -> Result<(), StoreError> {
        self.0.remove(key);
        Ok(())
    }

    fn keys(&self, prefix: &str, max: usize) -> Result<Vec<Key>, StoreError> {
        Ok(under(&self.0, prefix, None).map(|(k, _)| k.clone()).take(max).collect())
    }

    fn put_lease(&mut self, _: LeaseId, _: Option<Duration>) -> Result<(), StoreError> {
        Ok(())
    }
}
