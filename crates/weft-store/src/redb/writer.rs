// SPDX-License-Identifier: Apache-2.0
//! The one writer: takes what is waiting, drafts it in order, makes it durable with one commit,
//! then shows it to readers and watches, then acknowledges. Nothing is acknowledged before.
//!
//! After a failed commit the file is opened again, if that fails at the next write. What the failed
//! commit left on disk is then not known event by event, so watches are cut off and list again.

use std::sync::Arc;
use std::time::Duration;

use redb::Database;
use tokio::sync::{mpsc, oneshot};
use weft_base::clock::moment;

use super::disk::{self, NoDisk, Opener};
use super::{Shared, View};
use crate::draft::{Draft, State, Table};
use crate::{Class, Event, LeaseId, Op, Revision, StoreError, Txn, TxnOutcome};

/// Requests of one commit.
const BATCH: usize = 256;
/// Revisions reserved on disk at once.
const RESERVE: u64 = 1 << 16;

type Reply<R> = oneshot::Sender<Result<R, StoreError>>;

/// What the writer is asked.
#[derive(Debug)]
pub(super) enum Request {
    Txn(Txn, Reply<TxnOutcome>),
    Grant(Duration, Reply<LeaseId>),
    Revoke(LeaseId, Reply<Revision>),
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    opener: Opener,
    /// `None` after a failure.
    db: Option<Database>,
    reserved: Revision,
}

// === impl Writer ===

impl Writer {
    pub fn new(shared: Arc<Shared>, opener: Opener, db: Database, reserved: Revision) -> Self {
        Self { shared, opener, db: Some(db), reserved }
    }

    /// Until nobody can ask any more.
    pub fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut batch = Vec::new();
        while requests.blocking_recv_many(&mut batch, BATCH) > 0 {
            self.serve(std::mem::take(&mut batch));
        }
        if let Err(e) = self.close() {
            tracing::warn!(error = %e, "the last revision is not noted; some will be skipped");
        }
    }

    fn serve(&mut self, batch: Vec<Request>) {
        self.shared.counts.requests.add(u64::try_from(batch.len()).unwrap_or(u64::MAX));
        if self.db.is_none()
            && let Err(e) = self.reopen()
        {
            self.shared.counts.failures.add(1);
            batch.into_iter().for_each(|r| r.refuse(&e));
            return;
        }
        match self.commit(&batch) {
            Ok((answers, events)) => {
                let revision = self.shared.view().state.revision;
                if !events.is_empty() {
                    self.shared.history.append(self.shared.clock.now(), revision, events);
                }
                let pairs = batch.into_iter().zip(answers);
                pairs.for_each(|(request, answer)| answer.send(request, &self.shared));
            }
            Err(e) => {
                self.shared.counts.failures.add(1);
                tracing::error!(error = %e, "a commit failed; its writes are not acknowledged");
                if matches!(e, StoreError::Storage(_)) {
                    self.db = None;
                    // Readers need a file that is open; writers try again themselves.
                    if let Err(e) = self.reopen() {
                        tracing::warn!(error = %e, "the store is opened again at the next write");
                    }
                }
                batch.into_iter().for_each(|r| r.refuse(&e));
            }
        }
    }

    /// Drafts a batch, makes it durable and publishes it.
    fn commit(&mut self, batch: &[Request]) -> Result<(Vec<Outcome>, Vec<Event>), StoreError> {
        let db = self.db.as_ref().ok_or(StoreError::Closed)?;
        let view = self.shared.view();
        let mut state = view.state.clone();
        let keys = view.keys.clone().ok_or(StoreError::Closed)?;
        let room = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        let reserve = state.revision.0.saturating_add(room) > self.reserved.0;
        if !reserve && !batch.iter().any(|r| r.touches_disk(&state, &keys)) {
            let mut table = NoDisk(&keys);
            let (answers, events, _) = draft(batch, &mut state, &mut table)?;
            self.shared.publish(View { state, keys: Some(keys) });
            return Ok((answers, events));
        }
        let began = moment();
        let txn = db.begin_write().map_err(StoreError::storage)?;
        let (answers, events, synced) = {
            let mut tables = disk::tables(&txn)?;
            draft(batch, &mut state, &mut tables)?
        };
        if !synced && !reserve {
            txn.abort().map_err(StoreError::storage)?;
            self.shared.publish(View { state, keys: Some(keys) });
            return Ok((answers, events));
        }
        if reserve || state.next_lease != view.state.next_lease {
            let reserved = match reserve {
                true => Revision(state.revision.0.saturating_add(RESERVE)),
                false => self.reserved,
            };
            disk::reserve(&txn, reserved, state.next_lease)?;
            self.reserved = reserved;
        }
        txn.commit().map_err(StoreError::storage)?;
        self.shared.counts.commits.add(1);
        self.shared.meter.committed(moment().duration_since(began), batch.len());
        let keys = Arc::new(disk::snapshot(db)?);
        self.shared.publish(View { state, keys: Some(keys) });
        Ok((answers, events))
    }

    /// Opens the file again after a failure. The failed commit may be on disk or not: revisions
    /// jump over all that it may have used, and watches start again.
    fn reopen(&mut self) -> Result<(), StoreError> {
        let view = self.shared.view();
        let (ephemeral, before) = (view.state.ephemeral.clone(), view.state.revision);
        self.shared.publish(View { state: view.state.clone(), keys: None });
        drop(view);
        let opened = disk::open(&self.opener)?;
        let mut state: State = opened.state;
        state.revision = state.revision.max(self.reserved).max(before).next();
        for (key, entry) in &ephemeral {
            let lease = entry.lease.and_then(|id| state.leases.get_mut(&id));
            if let Some(lease) = lease {
                lease.keys.insert(key.clone());
            }
        }
        state.ephemeral = ephemeral;
        self.reserved = opened.reserved;
        self.db = Some(opened.db);
        self.shared.meter.broke();
        self.shared.history.reset(state.revision);
        self.shared.publish(View { state, keys: Some(Arc::new(opened.keys)) });
        tracing::info!("the store is open again after a failure");
        Ok(())
    }

    fn close(&mut self) -> Result<(), StoreError> {
        let Some(db) = self.db.take() else { return Ok(()) };
        let state = self.shared.view().state.clone();
        let txn = db.begin_write().map_err(StoreError::storage)?;
        disk::reserve(&txn, state.revision, state.next_lease)?;
        txn.commit().map_err(StoreError::storage)
    }
}

/// What drafting a request came to.
enum Outcome {
    Txn(Result<TxnOutcome, StoreError>),
    Grant(Result<LeaseId, StoreError>),
    Revoke(Result<Revision, StoreError>),
}

type Drafted = (Vec<Outcome>, Vec<Event>, bool);

/// Drafts a batch in order. `Err` only when the file failed, which fails all of it.
fn draft<T: Table>(
    batch: &[Request],
    state: &mut State,
    table: &mut T,
) -> Result<Drafted, StoreError> {
    let mut draft = Draft::new(state, table);
    let mut answers = Vec::with_capacity(batch.len());
    for request in batch {
        answers.push(match request {
            Request::Txn(txn, _) => Outcome::Txn(unless_failed(draft.txn(txn))?),
            Request::Grant(ttl, _) => Outcome::Grant(unless_failed(draft.grant(*ttl))?),
            Request::Revoke(id, _) => Outcome::Revoke(unless_failed(draft.revoke(*id))?),
        });
    }
    Ok((answers, draft.events, draft.synced))
}

/// Splits what fails one request from what fails the batch.
fn unless_failed<R>(r: Result<R, StoreError>) -> Result<Result<R, StoreError>, StoreError> {
    match r {
        Err(e @ (StoreError::Storage(_) | StoreError::Corrupt { .. })) => Err(e),
        r => Ok(r),
    }
}

// === impl Request ===

impl Request {
    fn refuse(self, err: &StoreError) {
        let err = err.clone();
        match self {
            Self::Txn(_, reply) => drop(reply.send(Err(err))),
            Self::Grant(_, reply) => drop(reply.send(Err(err))),
            Self::Revoke(_, reply) => drop(reply.send(Err(err))),
        }
    }

    /// Whether this can change what is on disk. Deleting what is not there counts; that is rare.
    fn touches_disk(&self, state: &State, keys: &disk::ReadKeys) -> bool {
        let Self::Txn(txn, _) = self else { return true };
        txn.ops.iter().any(|op| match op {
            Op::Put { class: Class::Synced, .. } | Op::DeletePrefix { .. } => true,
            Op::Put { key, .. } => {
                !state.ephemeral.contains_key(key)
                    && disk::get(keys, key).map_or(true, |found| found.is_some())
            }
            Op::Delete { key } => !state.ephemeral.contains_key(key),
        })
    }
}

// === impl Outcome ===

impl Outcome {
    /// Tells who asked; who has gone does not mind.
    fn send(self, request: Request, shared: &Shared) {
        match (self, request) {
            (Self::Txn(r), Request::Txn(_, reply)) => drop(reply.send(r)),
            (Self::Grant(r), Request::Grant(ttl, reply)) => {
                if let Ok(id) = &r {
                    shared.deadlines(|d, now| d.start(*id, ttl, now));
                }
                drop(reply.send(r));
            }
            (Self::Revoke(r), Request::Revoke(_, reply)) => drop(reply.send(r)),
            _ => weft_base::bug!("an answer met another request"),
        }
    }
}
