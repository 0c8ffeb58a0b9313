// SPDX-License-Identifier: Apache-2.0
//! The tail of the log that watches read: a bounded ring of events in memory. Engines append to
//! it after a write is durable; watches hold only a cursor, so a slow one costs nothing and stalls
//! nobody. History does not outlive the process: ephemeral keys do not either, and a watch that
//! resumed across a restart would never hear that they are gone.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use weft_base::clock::Mono;
use weft_base::limits;

use crate::{Event, EventKind, Revision, WatchError};

/// Who lost a watch is back within this: so long all of it is kept that the limits let.
pub(crate) const FRESH: Duration = Duration::from_secs(60);
/// Of what is older only this part of the bytes: a mesh at rest does not hold a log as large as
/// itself.
const REST_PART: usize = 8;

/// How much of the log is kept. What is first reached ends the oldest revisions.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    pub events: usize,
    pub bytes: usize,
    pub age: Duration,
}

/// Shared by one engine and its watches.
#[derive(Debug)]
pub(crate) struct History {
    log: Mutex<Log>,
    head: watch::Sender<Head>,
    watches: AtomicUsize,
    retention: Retention,
}

/// What watches are told when something was appended.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Head {
    pub revision: Revision,
    pub closed: bool,
}

#[derive(Debug)]
struct Log {
    events: VecDeque<(Mono, Event)>,
    bytes: usize,
    /// Revisions up to here are no longer complete in `events`.
    compacted: Revision,
    /// The newest revision appended.
    head: Revision,
}

/// Where one watch is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor {
    /// Everything before this revision was delivered or skipped.
    pub next: Revision,
    /// The watch has once reached the head; from then on it must keep up.
    pub live: bool,
}

// === impl Retention ===

impl Default for Retention {
    fn default() -> Self {
        Self { events: 20_000, bytes: 4 * 1024 * 1024, age: Duration::from_secs(600) }
    }
}

// === impl History ===

impl History {
    /// A log that begins after `start`.
    pub fn new(start: Revision, retention: Retention) -> Arc<Self> {
        let log = Log { events: VecDeque::new(), bytes: 0, compacted: start, head: start };
        let (head, _) = watch::channel(Head { revision: start, closed: false });
        Arc::new(Self { log: Mutex::new(log), head, watches: AtomicUsize::new(0), retention })
    }

    /// Appends the events of one or more revisions, in order, and wakes the watches.
    pub fn append(&self, now: Mono, revision: Revision, events: impl IntoIterator<Item = Event>) {
        let mut log = self.lock();
        for event in events {
            log.bytes += cost(&event);
            log.events.push_back((now, event));
        }
        log.head = log.head.max(revision);
        log.trim(&self.retention, now);
        drop(log);
        self.head.send_modify(|h| h.revision = h.revision.max(revision));
    }

    /// Forgets what is too old.
    pub fn expire(&self, now: Mono) {
        let mut log = self.lock();
        log.trim(&self.retention, now);
        if log.events.capacity() / 4 > log.events.len() {
            let room = 2 * log.events.len();
            log.events.shrink_to(room);
        }
    }

    pub fn compact(&self, upto: Revision) {
        let mut log = self.lock();
        let upto = upto.min(log.head);
        while log.front_revision().is_some_and(|r| r <= upto) {
            log.pop_front();
        }
        log.compacted = log.compacted.max(upto);
    }

    /// Ends all watches.
    pub fn close(&self) {
        self.head.send_modify(|h| h.closed = true);
    }

    pub fn subscribe(&self) -> Result<watch::Receiver<Head>, WatchError> {
        let counted = self.watches.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
            (n < limits::WATCHERS_MAX).then_some(n + 1)
        });
        counted.map(|_| self.head.subscribe()).map_err(|_| WatchError::TooManyWatches)
    }

    /// Up to where everything was appended.
    pub fn head(&self) -> Revision {
        self.lock().head
    }

    /// Tells the engine itself of every change of the head.
    pub fn heads(&self) -> watch::Receiver<Head> {
        self.head.subscribe()
    }

    /// How many watches there are, and how many events and bytes are kept for them.
    pub fn stats(&self) -> (usize, usize, usize) {
        let log = self.lock();
        (self.watches.load(Ordering::Relaxed), log.events.len(), log.bytes)
    }

    pub fn unsubscribe(&self) {
        self.watches.fetch_sub(1, Ordering::Relaxed);
    }

    /// Starts again after `start`: what happened up to there is not known event by event.
    pub fn reset(&self, start: Revision) {
        let mut log = self.lock();
        log.events.clear();
        log.bytes = 0;
        log.compacted = start;
        log.head = start;
        drop(log);
        self.head.send_modify(|h| h.revision = start);
    }

    /// Whether the log still holds everything from the cursor on.
    pub fn check(&self, cursor: &Cursor) -> Result<(), WatchError> {
        self.lock().check(cursor)
    }

    /// The next events under `prefix`: whole revisions, about `limit` of them. Moves the cursor
    /// over what it looked at, so an empty answer means that there is nothing up to the head.
    pub fn read(
        &self,
        cursor: &mut Cursor,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<Event>, WatchError> {
        let log = self.lock();
        log.check(cursor)?;
        let start = log.events.partition_point(|(_, e)| e.revision < cursor.next);
        if cursor.live && log.events.len() - start > limits::STORE_WATCH_BACKLOG_MAX {
            return Err(WatchError::TooSlow);
        }
        let mut out: Vec<Event> = Vec::new();
        for (_, event) in log.events.range(start..) {
            let boundary = event.revision >= cursor.next;
            if boundary && out.len() >= limit {
                return Ok(out);
            }
            if event.key.starts_with(prefix) {
                out.push(event.clone());
            }
            cursor.next = event.revision.next();
        }
        cursor.next = cursor.next.max(log.head.next());
        cursor.live = true;
        Ok(out)
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        // A poisoned log is still a log: every change to it is one push or pop.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Log ===

impl Log {
    fn check(&self, cursor: &Cursor) -> Result<(), WatchError> {
        match cursor.next <= self.compacted {
            true if cursor.live => Err(WatchError::TooSlow),
            true => Err(WatchError::Compacted { from: cursor.next, compacted: self.compacted }),
            false => Ok(()),
        }
    }

    fn front_revision(&self) -> Option<Revision> {
        self.events.front().map(|(_, e)| e.revision)
    }

    fn pop_front(&mut self) {
        if let Some((_, event)) = self.events.pop_front() {
            self.bytes = self.bytes.saturating_sub(cost(&event));
        }
    }

    /// Drops whole revisions from the front while a limit is passed.
    fn trim(&mut self, keep: &Retention, now: Mono) {
        while let Some((at, event)) = self.events.front() {
            let age = now.since(*at);
            let bytes = if age > FRESH { keep.bytes / REST_PART } else { keep.bytes };
            let over = self.events.len() > keep.events || self.bytes > bytes || age > keep.age;
            if !over {
                return;
            }
            let revision = event.revision;
            if revision == self.head {
                // Watches must get a chance to see even the largest transaction.
                return;
            }
            while self.front_revision() == Some(revision) {
                self.pop_front();
            }
            self.compacted = self.compacted.max(revision);
        }
    }
}

/// Roughly what an event holds in memory, at most. What was there before is a copy of its own when
/// it was read from a file; a deletion's is its value.
fn cost(event: &Event) -> usize {
    let copied = event.kind == EventKind::Put;
    let prev = event.prev.as_ref().filter(|_| copied).map_or(0, Bytes::len);
    event.key.len() + event.value.len() + prev + std::mem::size_of::<Event>()
}
