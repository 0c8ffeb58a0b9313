// SPDX-License-Identifier: Apache-2.0
//! Which of several servers on one store does what only one may do: controllers, statuses, reaping.
//! A key of the store on a lease that the leader keeps alive. Whoever leads writes under a fence:
//! its transactions hold only while the key is as this server wrote it, so that one that was
//! paused and overtaken writes nothing, whatever it believes. So do controllers, statuses, reaping,
//! ends of sessions, and what is said of checks and hosts that no server hears.
//!
//! A server that has its store to itself leads always, and writes without a fence.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use weft_base::clock::{Clock, Mono};
use weft_base::rng::Rng;
use weft_base::task::TaskGroup;
use weft_store::{
    Class, Compare, EventKind, LeaseId, Op, Revision, Store, StoreError, Txn, WatchError,
};

/// Who leads; its lease is the leader's.
pub const KEY: &str = "/e/leader";
/// Servers that are there, by name.
pub const SERVERS: &str = "/e/s/";
/// How long after its leader's last sign of life a mesh has another one.
pub const TTL: Duration = Duration::from_secs(5);
const KEEP_EVERY: Duration = Duration::from_millis(1500);
const AGAIN: Duration = Duration::from_millis(500);
/// A server that is not told of a change looks by itself.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Whether this server leads. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Leader(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clock: Clock,
    /// This server among those on the store; `None` when it has the store to itself.
    name: Option<Arc<str>>,
    /// Tells this run from another of the same name.
    run: Arc<str>,
    term: Mutex<Term>,
    /// Runs of the servers that are there, as the store said last.
    runs: Mutex<Option<BTreeSet<Arc<str>>>>,
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Term {
    /// When this server leads: the revision of its key, and until when that is sure.
    own: Option<(Revision, Mono)>,
    /// Who leads, as far as this server knows.
    name: Option<Arc<str>>,
    /// How often this server became the leader.
    times: u64,
}

// === impl Leader ===

impl Leader {
    /// The only server of its store.
    pub fn alone(clock: Clock) -> Self {
        Self::new(clock, None)
    }

    /// One of several.
    pub fn among(name: &str, clock: Clock) -> Self {
        Self::new(clock, Some(name.into()))
    }

    fn new(clock: Clock, name: Option<Arc<str>>) -> Self {
        let run = format!("{:016x}", Rng::from_system().next_u64()).into();
        let (term, runs) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Inner { clock, name, run, term, runs, changes: watch::Sender::new(0) }))
    }

    /// Whether other servers may be on the same store.
    pub fn is_shared(&self) -> bool {
        self.0.name.is_some()
    }

    /// Whether this server leads, for sure. Costs no call.
    pub fn is_here(&self) -> bool {
        let Some(_) = self.0.name else { return true };
        let now = self.0.clock.now();
        self.term().own.is_some_and(|(_, until)| now < until)
    }

    /// What every write of a leader is held to; `None` when there is nobody else.
    pub fn fence(&self) -> Option<Compare> {
        self.0.name.as_ref()?;
        // Without a term no revision is right, and nothing is written.
        let at = self.term().own.map_or(Revision(u64::MAX >> 1), |(at, _)| at);
        Some(Compare::ModRevision(KEY.into(), at))
    }

    /// This server's name among others, and a word for this very run of it.
    pub fn own_name(&self) -> Option<&Arc<str>> {
        self.0.name.as_ref()
    }

    /// A word for this run of this server; empty when it has the store to itself.
    pub fn run_id(&self) -> &str {
        if self.is_shared() { &self.0.run } else { "" }
    }

    /// The store said which runs of servers are there.
    pub(crate) fn note_runs(&self, runs: BTreeSet<Arc<str>>) {
        *self.0.runs.lock().unwrap_or_else(PoisonError::into_inner) = Some(runs);
    }

    /// Whether a run of a server is there, as far as is known: nobody is gone before the store
    /// was asked.
    pub(crate) fn is_there(&self, run: &str) -> bool {
        let runs = self.0.runs.lock().unwrap_or_else(PoisonError::into_inner);
        *run == *self.run_id() || runs.as_ref().is_none_or(|runs| runs.contains(run))
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// Who leads, as far as is known.
    pub fn who(&self) -> Option<Arc<str>> {
        self.term().name.clone()
    }

    /// How often this server became the leader.
    pub fn times(&self) -> u64 {
        self.term().times
    }

    /// Tells when this server begins or ceases to lead.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Takes part until the tasks drain, and then hands over at once.
    pub(crate) fn start(&self, store: &Arc<dyn Store>, tasks: &TaskGroup) {
        let Some(name) = self.0.name.clone() else { return };
        let (leader, store, group) = (self.clone(), store.clone(), tasks.clone());
        tasks.spawn("leader", async move {
            let campaign = Campaign { leader: leader.clone(), store: store.clone(), name };
            let mut held = None;
            tokio::select! {
                () = group.draining() => {}
                () = campaign.run(&mut held) => {}
            }
            leader.step_down("this server is ending");
            if let Some(lease) = held {
                let _ = tokio::time::timeout(AGAIN, store.lease_revoke(lease)).await;
            }
        });
    }

    pub(crate) fn lead(&self, at: Revision, until: Mono) {
        let mut term = self.term();
        let new = term.own.is_none_or(|(old, _)| old != at);
        term.own = Some((at, until));
        term.name.clone_from(&self.0.name);
        if new {
            term.times += 1;
            drop(term);
            tracing::info!(server = self.0.name.as_deref(), "this server leads");
            self.stir();
        }
    }

    fn step_down(&self, why: &str) {
        let mut term = self.term();
        if term.own.take().is_some() {
            term.name = None;
            drop(term);
            tracing::warn!(server = self.0.name.as_deref(), why, "this server leads no more");
            self.stir();
        }
    }

    fn note(&self, who: Option<Arc<str>>) {
        let mut term = self.term();
        if term.own.is_none() && term.name != who {
            term.name = who;
        }
    }

    fn stir(&self) {
        self.0.changes.send_modify(|n| *n = n.wrapping_add(1));
    }

    fn term(&self) -> MutexGuard<'_, Term> {
        self.0.term.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One server's part in who leads.
struct Campaign {
    leader: Leader,
    store: Arc<dyn Store>,
    name: Arc<str>,
}

// === impl Campaign ===

impl Campaign {
    async fn run(&self, held: &mut Option<LeaseId>) {
        loop {
            match self.wait_for_turn().await {
                Ok(()) => {}
                Err(error) => {
                    tracing::debug!(%error, "who leads is not known");
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            }
            match self.stand().await {
                Ok(Some((lease, at, until))) => {
                    *held = Some(lease);
                    self.leader.lead(at, until);
                    let why = self.hold(lease, at, until).await;
                    self.leader.step_down(&why);
                    *held = None;
                    // What is left of it makes nobody wait.
                    let _ = tokio::time::timeout(AGAIN, self.store.lease_revoke(lease)).await;
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(%error, "this server could not try to lead");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    /// Until nobody leads.
    async fn wait_for_turn(&self) -> Result<(), StoreError> {
        loop {
            let (at, entry) = self.store.get(KEY).await?;
            let Some(entry) = entry else { return Ok(()) };
            self.leader.note(named(&entry.value));
            let gone = async {
                let mut log = self.store.watch(KEY, at.next())?;
                loop {
                    let events = log.next().await?;
                    if events.iter().any(|e| &*e.key == KEY && e.kind == EventKind::Delete) {
                        return Ok::<_, WatchError>(());
                    }
                    for event in events.iter().filter(|e| &*e.key == KEY) {
                        self.leader.note(named(&event.value));
                    }
                }
            };
            match tokio::time::timeout(LOOK_EVERY, gone).await {
                Ok(Err(WatchError::Closed)) => return Err(StoreError::Closed),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "the log of who leads was lost");
                    tokio::time::sleep(AGAIN).await;
                }
                Ok(Ok(())) | Err(_) => {}
            }
        }
    }

    /// Tries to become the leader: the lease, the key's revision, and until when it is sure.
    async fn stand(&self) -> Result<Option<(LeaseId, Revision, Mono)>, StoreError> {
        // Counted from before the call: the store counts from later.
        let until = self.leader.0.clock.now().plus(TTL);
        let lease = self.store.lease_grant(TTL).await?;
        let value = Bytes::copy_from_slice(self.name.as_bytes());
        let (key, class) = (KEY.into(), Class::Ephemeral);
        let put = Op::Put { key, value, class, lease: Some(lease) };
        let done = self.store.txn(Txn::of([put]).when(Compare::Absent(KEY.into()))).await;
        match done {
            Ok(done) if done.succeeded => Ok(Some((lease, done.revision, until))),
            other => {
                let _ = self.store.lease_revoke(lease).await;
                other.map(|_| None)
            }
        }
    }

    /// Keeps leading; why it ended.
    async fn hold(&self, lease: LeaseId, at: Revision, until: Mono) -> String {
        let mut sure = until;
        loop {
            let before = self.leader.0.clock.now();
            let left = sure.since(before);
            if left.is_zero() {
                return "its store could not be reached for as long as its lease".into();
            }
            match tokio::time::timeout(left, self.store.lease_keep_alive(lease)).await {
                Ok(Ok(ttl)) => {
                    sure = before.plus(ttl.min(TTL));
                    self.leader.lead(at, sure);
                }
                Ok(Err(StoreError::NoLease(_))) => return "its lease ended".into(),
                Ok(Err(error)) => tracing::debug!(%error, "the leader's lease was not renewed"),
                Err(_) => continue,
            }
            match self.store.get(KEY).await {
                Ok((_, Some(entry))) if entry.modified == at => {}
                Ok(_) => return "another server leads".into(),
                Err(error) => tracing::debug!(%error, "who leads could not be looked at"),
            }
            tokio::time::sleep(KEEP_EVERY).await;
        }
    }
}

fn named(value: &[u8]) -> Option<Arc<str>> {
    std::str::from_utf8(value).ok().map(Into::into)
}

#[cfg(test)]
mod tests;
