// SPDX-License-Identifier: Apache-2.0
//! The embedded engine: one redb file, one writer thread that commits whatever is waiting
//! together, readers on a snapshot that the writer swaps after each commit.
//!
//! `Ephemeral` keys, history and deadlines are in memory; the revision that numbers both classes
//! is reserved on disk in advance, so it never goes back.

mod disk;
pub mod tools;
mod writer;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::ready;
use tokio::sync::{mpsc, oneshot};
use weft_base::clock::Clock;
use weft_base::metrics::Cell;

use self::disk::{Opener, ReadKeys};
use self::writer::{Request, Writer};
use crate::draft::{State, check, merge, under};
use crate::history::{History, Retention};
use crate::lease::Deadlines;
use crate::meter::{Meter, Renewal};
use crate::{
    BoxFuture, DataDir, Entry, Key, LeaseId, Page, Revision, Stats, Store, StoreError, Txn,
    TxnOutcome, Watch, WatchError,
};

/// Writes that may wait for the writer; more of them wait for room.
const QUEUE: usize = 1024;

/// A store in a data directory.
#[derive(Debug)]
pub struct RedbStore {
    shared: Arc<Shared>,
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<JoinHandle<()>>,
    /// Released after the writer has ended.
    _dir: Option<Arc<DataDir>>,
}

/// What readers, watches and the writer share.
#[derive(Debug)]
struct Shared {
    view: RwLock<Arc<View>>,
    history: Arc<History>,
    deadlines: Mutex<Deadlines>,
    clock: Clock,
    counts: Counts,
    meter: Meter,
}

/// Written by the writer alone.
#[derive(Debug, Default)]
struct Counts {
    requests: Cell,
    commits: Cell,
    failures: Cell,
}

/// One consistent moment: disk and memory at the same revision.
#[derive(Debug)]
struct View {
    state: State,
    /// `None` while the file is being opened again after a failure.
    keys: Option<Arc<ReadKeys>>,
}

// === impl RedbStore ===

impl RedbStore {
    /// Opens `store/log.redb` in the data directory, or makes it. A file left by a crash is
    /// repaired first.
    ///
    /// # Errors
    /// When the file cannot be opened, or was written by a newer weft.
    pub fn open(dir: Arc<DataDir>, clock: Clock) -> Result<Self, StoreError> {
        let path = dir.sub("store")?.join("log.redb");
        let mut store = Self::open_with(disk::file(path), clock, Retention::default())?;
        store._dir = Some(dir);
        Ok(store)
    }

    /// The same without a data directory around it: tests and tools.
    ///
    /// # Errors
    /// As for [`RedbStore::open`].
    pub fn open_file(path: &Path, clock: Clock, retention: Retention) -> Result<Self, StoreError> {
        Self::open_with(disk::file(path.to_owned()), clock, retention)
    }

    fn open_with(opener: Opener, clock: Clock, retention: Retention) -> Result<Self, StoreError> {
        let opened = disk::open(&opener)?;
        let (state, now) = (opened.state, clock.now());
        let history = History::new(state.revision, retention);
        let mut deadlines = Deadlines::default();
        for (id, lease) in &state.leases {
            deadlines.start(*id, lease.ttl, now);
        }
        let view = View { state, keys: Some(Arc::new(opened.keys)) };
        let shared = Arc::new(Shared {
            view: RwLock::new(Arc::new(view)),
            history,
            deadlines: Mutex::new(deadlines),
            clock,
            counts: Counts::default(),
            meter: Meter::file(),
        });
        let (tx, rx) = mpsc::channel(QUEUE);
        let writer = Writer::new(shared.clone(), opener, opened.db, opened.reserved);
        let thread = std::thread::Builder::new().name("weft-store".into());
        let writer = thread.spawn(move || writer.run(rx)).map_err(StoreError::storage)?;
        Ok(Self { shared, requests: Some(tx), writer: Some(writer), _dir: None })
    }

    async fn ask<R>(
        &self,
        make: impl FnOnce(oneshot::Sender<Result<R, StoreError>>) -> Request,
    ) -> Result<R, StoreError> {
        let (tx, rx) = oneshot::channel();
        let requests = self.requests.as_ref().ok_or(StoreError::Closed)?;
        requests.send(make(tx)).await.map_err(|_| StoreError::Closed)?;
        rx.await.map_err(|_| StoreError::Closed)?
    }
}

impl Store for RedbStore {
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, StoreError>> {
        async move {
            check(&txn)?;
            self.ask(|reply| Request::Txn(txn, reply)).await
        }
        .boxed()
    }

    fn get<'a>(
        &'a self,
        key: &'a str,
    ) -> BoxFuture<'a, Result<(Revision, Option<Entry>), StoreError>> {
        async move {
            let view = self.shared.view();
            let entry = match view.state.ephemeral.get(key) {
                Some(entry) => Some(entry.clone()),
                None => disk::get(view.keys()?, key)?,
            };
            Ok((view.state.revision, entry))
        }
        .boxed()
    }

    fn range<'a>(
        &'a self,
        prefix: &'a str,
        limit: usize,
        after: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Page, StoreError>> {
        async move {
            let view = self.shared.view();
            let synced = disk::scan(view.keys()?, prefix, after)?;
            let own = |(k, e): (&Key, &Entry)| (k.clone(), e.clone());
            let ephemeral = under(&view.state.ephemeral, prefix, after).map(own);
            merge(view.state.revision, limit, synced, ephemeral)
        }
        .boxed()
    }

    fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, WatchError> {
        Watch::new(&self.shared.history, prefix, from)
    }

    fn compact(&self, upto: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        self.shared.history.compact(upto);
        ready(Ok(())).boxed()
    }

    fn lease_grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
        self.ask(move |reply| Request::Grant(ttl, reply)).boxed()
    }

    fn lease_keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<Duration, StoreError>> {
        let kept = self.shared.deadlines(|d, now| d.keep_alive(lease, now));
        let what = if kept.is_some() { Renewal::Kept } else { Renewal::Ended };
        self.shared.meter.renewal(what);
        ready(kept.ok_or(StoreError::NoLease(lease))).boxed()
    }

    fn lease_revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<Revision, StoreError>> {
        async move {
            self.shared.deadlines(|d, _| d.stop(lease));
            self.ask(|reply| Request::Revoke(lease, reply)).await
        }
        .boxed()
    }

    fn barrier(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        // The view is swapped before a write is acknowledged.
        ready(Ok(self.shared.view().state.revision)).boxed()
    }

    fn stats(&self) -> Stats {
        let (watches, history_events, history_bytes) = self.shared.history.stats();
        let counts = &self.shared.counts;
        Stats {
            revision: self.shared.view().state.revision,
            requests: counts.requests.get(),
            commits: counts.commits.get(),
            commit_failures: counts.failures.get(),
            watches,
            history_events,
            history_bytes,
        }
    }

    fn meter(&self) -> Option<&Meter> {
        Some(&self.shared.meter)
    }

    fn tick(&self) -> BoxFuture<'_, Result<usize, StoreError>> {
        async move {
            self.shared.history.expire(self.shared.clock.now());
            let due = self.shared.deadlines(|d, now| d.take_due(now));
            let mut ended = 0;
            for lease in due {
                match self.ask(|reply| Request::Revoke(lease, reply)).await {
                    Ok(_) => ended += 1,
                    Err(StoreError::NoLease(_)) => {}
                    Err(e) => {
                        // Not forgotten: it is due again at the next tick.
                        self.shared.deadlines(|d, now| d.start(lease, Duration::ZERO, now));
                        return Err(e);
                    }
                }
            }
            Ok(ended)
        }
        .boxed()
    }
}

impl Drop for RedbStore {
    fn drop(&mut self) {
        // The writer ends when nobody can ask any more, and writes the exact revision.
        self.requests = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the store's writer panicked; unacknowledged writes are lost");
        }
        self.shared.history.close();
    }
}

// === impl Shared ===

impl Shared {
    fn view(&self) -> Arc<View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn publish(&self, view: View) {
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(view);
    }

    fn deadlines<R>(&self, f: impl FnOnce(&mut Deadlines, weft_base::clock::Mono) -> R) -> R {
        let mut deadlines = self.deadlines.lock().unwrap_or_else(PoisonError::into_inner);
        f(&mut deadlines, self.clock.now())
    }
}

// === impl View ===

impl View {
    fn keys(&self) -> Result<&ReadKeys, StoreError> {
        let none = || std::io::Error::other("the file is being opened again; try again shortly");
        self.keys.as_deref().ok_or_else(|| StoreError::storage(none()))
    }
}

#[cfg(test)]
mod tests;
