// SPDX-License-Identifier: Apache-2.0
//! How much is read between two looks at how much memory is used. A clock alone does not bound
//! that: in ten milliseconds many windows of uploads come in, and where the machine is busy the
//! watcher waits for its turn much longer. So each worker counts what it reads, and behind a dose,
//! which is the smaller the less room there is, it looks itself. Where too much is used then,
//! nobody reads before the watcher has looked and done what it can. Called by the codecs with all
//! that they read, by relays with what they could not pass on at once, and by [`super::watch`].

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, RawWakerVTable, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::Pressure;

/// The smallest dose, as a part of the limit: looking costs, too.
const SMALLEST_PART: u64 = 256;
/// All workers' doses together are this part of the room that is left.
const SHARE: u64 = 2;
/// Nobody waits for longer at a time, however much is used: who may not read answers nobody.
const HELD_MAX: Duration = Duration::from_millis(500);
/// About what a connection holds that has said nothing yet.
pub const CONNECTION_BYTES: usize = 4 * 1024;
/// What was seen is used again for so long, so that a worker seldom waits for files of the system.
const SEEN_FOR: Duration = Duration::from_millis(1);
/// Tasks that wait to read, on one worker. Those beyond read: with no place to be woken from they
/// would wait for good, or ask again and again.
const WAITING_MAX: usize = 64 * 1024;

thread_local! {
    static READER: Reader = const {
        Reader {
            pressure: RefCell::new(None),
            read: Cell::new(0),
            waiting: RefCell::new(None),
        }
    };
}

/// What tells tasks apart: as long as somebody has a waker of it, no other task is at its address.
type Task = (*const (), *const RawWakerVTable);

/// What one worker reads.
struct Reader {
    /// Of its proxy; none outside of a worker.
    pressure: RefCell<Option<Arc<Pressure>>>,
    /// Since it has looked.
    read: Cell<u64>,
    /// However often a task asks, it waits once. There is no table until somebody does.
    waiting: RefCell<Option<HashMap<Task, Waker>>>,
}

/// What all workers may read.
#[derive(Debug)]
pub(super) struct Doses {
    workers: u64,
    /// A worker's dose in bytes; without an end while nobody watches.
    bytes: AtomicU64,
    /// Nobody reads now.
    held: AtomicBool,
    began: Instant,
    /// When a worker looked last, in microseconds from `began` on; what was used then, with what
    /// all of them have read since.
    seen_at: AtomicU64,
    seen: AtomicU64,
    /// The watcher is to look at once.
    asked: Notify,
    /// Whoever waits may read again.
    freed: Notify,
}

/// Ready when bytes may be read; otherwise the task is woken when they may.
pub fn poll_may_read(cx: &Context<'_>) -> Poll<()> {
    READER.with(|reader| {
        let held = reader.pressure.borrow().as_ref().is_some_and(|p| p.doses.is_held());
        if !held {
            return Poll::Ready(());
        }
        if reader.keep(cx.waker()) { Poll::Pending } else { Poll::Ready(()) }
    })
}

/// So many bytes were read and may stay, or will be held soon.
pub fn note(bytes: usize) {
    READER.with(|reader| {
        let pressure = reader.pressure.borrow();
        let Some(pressure) = &*pressure else { return };
        let read = reader.read.get().saturating_add(bytes as u64);
        let is_due = read >= pressure.doses.bytes.load(Ordering::Relaxed);
        reader.read.set(if is_due { 0 } else { read });
        if is_due {
            pressure.look_again(read, Instant::now());
        }
    });
}

/// Has this thread's codecs keep to the doses of its proxy, and wakes those that waited.
pub async fn keep(pressure: Arc<Pressure>) {
    READER.with(|reader| *reader.pressure.borrow_mut() = Some(pressure.clone()));
    loop {
        pressure.doses.freed.notified().await;
        READER.with(Reader::wake);
    }
}

// === impl Reader ===

impl Reader {
    /// Whether there is a place for a task, or it has one.
    fn keep(&self, waker: &Waker) -> bool {
        let mut waiting = self.waiting.borrow_mut();
        let waiting = waiting.get_or_insert_default();
        let task = (waker.data(), ptr::from_ref(waker.vtable()));
        let has_place = waiting.len() < WAITING_MAX || waiting.contains_key(&task);
        if has_place {
            waiting.entry(task).or_insert_with(|| waker.clone());
        }
        has_place
    }

    fn wake(&self) {
        let waiting = self.waiting.take();
        waiting.into_iter().flat_map(HashMap::into_values).for_each(Waker::wake);
    }
}

// === impl Doses ===

impl Doses {
    pub fn new(workers: usize) -> Self {
        Self {
            workers: workers.max(1) as u64,
            bytes: AtomicU64::new(u64::MAX),
            held: AtomicBool::new(false),
            began: Instant::now(),
            seen_at: AtomicU64::new(0),
            // Nobody has looked: there may be no room.
            seen: AtomicU64::new(u64::MAX / 2),
            asked: Notify::new(),
            freed: Notify::new(),
        }
    }

    fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    /// There is room for so many bytes of a limit.
    pub fn measure(&self, room: u64, limit: u64) {
        let bytes = (room / SHARE / self.workers).max(limit / SMALLEST_PART);
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// What a worker saw lately, with all that was read since, as if all of it stayed; `None` where
    /// nobody looked lately.
    pub fn seen_lately(&self, read: u64, now: Instant) -> Option<u64> {
        let age = self.micros(now).saturating_sub(self.seen_at.load(Ordering::Relaxed));
        let seen = self.seen.fetch_add(read, Ordering::Relaxed);
        (u128::from(age) < SEEN_FOR.as_micros()).then(|| seen.saturating_add(read))
    }

    /// A worker has looked.
    pub fn saw(&self, used: u64, now: Instant) {
        self.seen.store(used, Ordering::Relaxed);
        self.seen_at.store(self.micros(now), Ordering::Relaxed);
    }

    fn micros(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.began);
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }

    /// Nobody reads until the watcher has looked.
    pub fn hold(&self) {
        if !self.held.swap(true, Ordering::Relaxed) {
            self.asked.notify_one();
        }
    }

    /// The watcher has looked; where there `is_room`, or there is none for too long, everybody goes
    /// on. `since` is when it first saw that they wait.
    pub fn looked(&self, is_room: bool, since: &mut Option<Instant>, now: Instant) {
        if !self.is_held() {
            *since = None;
        } else if is_room || now.saturating_duration_since(*since.get_or_insert(now)) >= HELD_MAX {
            *since = None;
            self.held.store(false, Ordering::Relaxed);
            self.freed.notify_waiters();
        }
    }

    /// Resolves when the watcher is to look at once.
    pub async fn asked(&self) {
        self.asked.notified().await;
    }
}

impl Default for Doses {
    fn default() -> Self {
        Self::new(1)
    }
}

#[cfg(test)]
pub(crate) mod tests;
