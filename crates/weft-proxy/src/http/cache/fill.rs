// SPDX-License-Identifier: Apache-2.0
//! An answer's body on its way to a client and into the store. Part of the reply's body: it sees
//! what passes, keeps a copy within its limits, and stores it when all of it has passed. What
//! breaks off, grows too large or is left by its client is never stored. Who waits for the answer
//! waits for its origin, not for the client that fetches it: see [`Fill::watch`].

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use weft_base::clock::{Clock, Mono};

use super::object::Object;
use super::room::Room;
use super::store::{Lead, Ticket};
use super::{FAILING_MS, PASS_MS};

/// A copy that has not grown for so long is silent.
const SILENT_MS: u64 = 100;

/// More than that is not allocated for what may come.
const GROWTH_MAX: usize = 1 << 20;

/// A copy under way.
#[derive(Debug)]
pub struct Fill {
    slot: Arc<Slot>,
    clock: Clock,
}

/// Where it is, for those who may give it up.
#[derive(Debug)]
pub struct Slot {
    copy: Mutex<Option<Copying>>,
    /// When its client asked for more the last time.
    asked: AtomicU64,
    /// Its origin has not sent that yet.
    awaits_origin: AtomicBool,
}

#[derive(Debug)]
struct Copying {
    /// Without its body.
    object: Object,
    body: Vec<u8>,
    bytes_max: u64,
    /// What its head said.
    length: Option<u64>,
    room: Room,
    ticket: Ticket,
    /// Others wait for it.
    lead: Option<Lead>,
}

/// How long nobody waits for the like of a copy that is given up.
type Pass = Option<u64>;

// === impl Fill ===

impl Fill {
    pub fn new(
        object: Object,
        (length, bytes_max): (Option<u64>, u64),
        ticket: Ticket,
        lead: Option<Lead>,
        clock: Clock,
    ) -> Self {
        let (now, store) = (clock.now(), ticket.store.clone());
        let (own, room) = (object.bytes(), Room::new(&store));
        let body = Vec::new();
        let mut copy = Copying { object, body, bytes_max, length, room, ticket, lead };
        let copy = match copy.room.take(own, now) {
            true => Some(copy),
            false => {
                copy.over(Some(FAILING_MS), now);
                None
            }
        };
        let (copy, asked) = (Mutex::new(copy), AtomicU64::new(now.0));
        let slot = Arc::new(Slot { copy, asked, awaits_origin: AtomicBool::new(false) });
        store.rooms.begin(&slot);
        Self { slot, clock }
    }

    /// There is no body.
    pub fn end(&mut self) {
        self.note::<std::convert::Infallible>(None, true);
    }

    /// What has passed; `ended` when nothing comes behind it.
    pub fn note<E>(&mut self, frame: Option<&Result<Frame<Bytes>, E>>, ended: bool) {
        let now = self.clock.now();
        self.slot.awaits_origin.store(false, Ordering::Relaxed);
        self.slot.asked.store(now.0, Ordering::Relaxed);
        let mut slot = self.slot.copy();
        let Some(copy) = slot.as_mut() else { return };
        let kept: Result<(), Pass> = match frame {
            None => Ok(()),
            Some(Ok(frame)) => match frame.data_ref() {
                Some(data) => copy.keep(data, now),
                // Trailers cannot be given with the stored answer.
                None => Err(Some(PASS_MS)),
            },
            Some(Err(_)) => Err(None),
        };
        if kept.is_ok() && frame.is_some() && !ended {
            return;
        }
        let over = slot.take();
        drop(slot);
        match (over, kept) {
            (Some(whole), Ok(())) => whole.store(),
            (Some(copy), Err(pass)) => copy.over(pass, now),
            (None, _) => {}
        }
    }

    /// Its client asked for more than its origin has sent.
    pub fn awaits_origin(&self) {
        self.slot.awaits_origin.store(true, Ordering::Relaxed);
    }

    /// Lets those go on who wait for this copy once its client reads nothing; `None` when nobody
    /// does.
    pub fn watch(&self) -> Option<impl Future<Output = ()> + 'static> {
        let (slot, clock) = (Arc::downgrade(&self.slot), self.clock.clone());
        let waited_for = self.slot.copy().as_ref().is_some_and(|copy| copy.lead.is_some());
        waited_for.then_some(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(SILENT_MS)).await;
                let Some(slot) = slot.upgrade() else { return };
                let is_read = slot.awaits_origin.load(Ordering::Relaxed);
                let stuck = !is_read && slot.silent_since(clock.now()).is_some();
                let mut copy = slot.copy();
                let lead = copy.as_mut().map(|copy| &mut copy.lead);
                match lead.filter(|lead| lead.is_some()) {
                    Some(_) if !stuck => {}
                    Some(lead) => return drop(lead.take()),
                    None => return,
                }
            }
        })
    }
}

// === impl Slot ===

impl Slot {
    /// Since when it has not grown, if that is long ago.
    pub fn silent_since(&self, now: Mono) -> Option<Mono> {
        let asked = self.asked.load(Ordering::Relaxed);
        (now.0 >= asked + SILENT_MS).then_some(Mono(asked))
    }

    /// It is not stored. One that somebody is at this very moment is left alone.
    pub fn give_up(&self) {
        let copy = self.copy.try_lock().ok().and_then(|mut slot| slot.take());
        drop(copy);
    }

    fn copy(&self) -> MutexGuard<'_, Option<Copying>> {
        self.copy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Copying ===

impl Copying {
    fn keep(&mut self, data: &Bytes, now: Mono) -> Result<(), Pass> {
        let wanted = self.body.len().saturating_add(data.len());
        if wanted as u64 > self.bytes_max {
            return Err(Some(PASS_MS));
        }
        if wanted > self.body.capacity() {
            // What is taken is what is allocated, and that follows what has come.
            let most = usize::try_from(self.length.unwrap_or(self.bytes_max)).unwrap_or(usize::MAX);
            let had = self.body.capacity();
            let grown = had.saturating_add(had.min(GROWTH_MAX)).min(most).max(wanted);
            if !self.room.take((grown - had) as u64, now) {
                return Err(Some(FAILING_MS));
            }
            self.body.reserve_exact(grown - self.body.len());
        }
        self.body.extend_from_slice(data);
        Ok(())
    }

    fn store(self) {
        let Self { object, body, length, ticket, lead, .. } = self;
        if length.is_some_and(|length| length != body.len() as u64) {
            return;
        }
        let store = ticket.store.clone();
        store.put(&ticket, Arc::new(Object { body: body.into_boxed_slice().into(), ..object }));
        // Then those who wait look again.
        drop(lead);
    }

    /// It is not stored, and for a while nobody waits for its like.
    fn over(self, pass: Pass, now: Mono) {
        if let Some(ms) = pass {
            self.ticket.store.pass(&self.ticket.url, &self.object.lane, now, ms);
        }
    }
}

#[cfg(test)]
mod tests;
