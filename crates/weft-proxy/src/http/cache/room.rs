// SPDX-License-Identifier: Apache-2.0
//! Room for answers on their way into the store: a share of its bytes besides. When it becomes
//! short, copies that do not grow are given up, the longest silent first: clients that read slowly
//! do not keep the answers of others from being stored. Part of the store; copies nothing itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use weft_base::clock::Mono;

use super::fill::Slot;
use super::store::Store;

/// How seldom is looked for copies to give up.
const LOOK_MS: u64 = 10;
/// So many are known before those that have ended are looked for.
const KNOWN_MIN: usize = 64;

/// All of it.
#[derive(Debug)]
pub struct Rooms {
    bytes_max: u64,
    taken: AtomicU64,
    known: Mutex<Known>,
}

/// Copies under way, and some that have ended.
#[derive(Debug)]
struct Known {
    slots: Vec<Weak<Slot>>,
    /// When those that have ended are taken out.
    many: usize,
    looked: Option<Mono>,
}

/// What one copy has taken.
#[derive(Debug)]
pub struct Room {
    store: Arc<Store>,
    bytes: u64,
}

// === impl Rooms ===

impl Rooms {
    pub fn new(bytes_max: u64) -> Self {
        let known = Known { slots: Vec::new(), many: KNOWN_MIN, looked: None };
        Self { bytes_max, taken: AtomicU64::new(0), known: Mutex::new(known) }
    }

    /// A copy begins, which may be given up.
    pub fn begin(&self, slot: &Arc<Slot>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.slots.len() >= known.many {
            known.slots.retain(|slot| slot.strong_count() > 0);
            known.many = (known.slots.len() * 2).max(KNOWN_MIN);
        }
        known.slots.push(Arc::downgrade(slot));
    }

    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: u64, now: Mono) -> bool {
        self.takes(bytes) || {
            self.give_up(bytes, now);
            self.takes(bytes)
        }
    }

    fn takes(&self, bytes: u64) -> bool {
        let before = self.taken.fetch_add(bytes, Ordering::Relaxed);
        let fits = before.saturating_add(bytes) <= self.bytes_max;
        if !fits {
            self.taken.fetch_sub(bytes, Ordering::Relaxed);
        }
        fits
    }

    /// Gives up what is silent until there is room for that many bytes, and some more: the next one
    /// need not look again.
    fn give_up(&self, bytes: u64, now: Mono) {
        let mut silent: Vec<(Mono, Arc<Slot>)> = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if known.looked.is_some_and(|at| now.0 < at.0 + LOOK_MS) {
                return;
            }
            known.looked = Some(now);
            let all = known.slots.iter().filter_map(Weak::upgrade);
            all.filter_map(|slot| Some((slot.silent_since(now)?, slot))).collect()
        };
        silent.sort_by_key(|(since, _)| *since);
        let enough = self.bytes_max / 4 * 3;
        for (_, slot) in silent {
            if self.taken().saturating_add(bytes) <= enough {
                return;
            }
            slot.give_up();
        }
    }
}

// === impl Room ===

impl Room {
    pub fn new(store: &Arc<Store>) -> Self {
        Self { store: store.clone(), bytes: 0 }
    }

    /// More of it; `false` when there is none.
    pub fn take(&mut self, bytes: u64, now: Mono) -> bool {
        let taken = self.store.rooms.take(bytes, now);
        self.bytes += if taken { bytes } else { 0 };
        taken
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.store.rooms.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
