// SPDX-License-Identifier: Apache-2.0
//! The stored answers of a whole proxy, shared by its workers: found by URL, bounded in bytes, and
//! one fetch at a time for what is asked for by many. Called by the phases' cache only; a request
//! of a rule without a cache never comes here. Each lock guards a sixteenth of the URLs and is held
//! for a look or a change, never over an await. Knows times and headers as [`Object`] judges them.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::HeaderMap;
use serde_json::Value;
use tokio_util::sync::{CancellationToken, DropGuard};
use weft_base::clock::Mono;

use super::object::Object;
use super::passes::Passes;
use super::room::Rooms;
use super::sieve::Sieve;

const SHARDS: usize = 16;
/// Answers under one URL: those of different clients, by `Vary`, and of different rules.
const VARIANTS_MAX: usize = 32;
/// Bodies on their way in may have this share of the bytes besides.
const FILLING_SHARE: u64 = 4;
/// Requests that wait for another's fetch, and answers that are asked for behind their clients.
const WAITING_MAX: usize = 4_096;
const REFRESHING_MAX: usize = 64;

/// All stored answers.
#[derive(Debug)]
pub struct Store {
    shards: Box<[Mutex<Shard>]>,
    keys: RandomState,
    bytes_max: u64,
    bytes: AtomicU64,
    pub(super) rooms: Rooms,
    waiting: AtomicUsize,
    refreshing: AtomicUsize,
    pub counts: Counts,
}

/// What happened so far.
#[derive(Debug, Default)]
pub struct Counts {
    pub hits: AtomicU64,
    pub stale: AtomicU64,
    pub revalidated: AtomicU64,
    pub misses: AtomicU64,
    pub collapsed: AtomicU64,
    pub bypassed: AtomicU64,
    pub stored: AtomicU64,
    pub evicted: AtomicU64,
    pub invalidated: AtomicU64,
}

#[derive(Debug, Default)]
struct Shard {
    urls: HashMap<Arc<str>, Entry>,
    objects: Sieve<(Arc<str>, Arc<Object>)>,
    flights: HashMap<(Arc<str>, u64), CancellationToken>,
    passes: Passes,
}

/// What is known of one URL.
#[derive(Debug, Default)]
struct Entry {
    places: Vec<usize>,
    /// Fetches under way, and how often what they fetch was declared void.
    fetches: usize,
    voided: u64,
}

/// What is there for a request.
#[derive(Clone, Debug)]
pub enum Found {
    Object(Arc<Object>),
    /// Nothing under this URL, or nothing for this request.
    Nothing {
        others: bool,
    },
}

/// Who fetches.
#[derive(Debug)]
pub enum Turn {
    Lead(Lead),
    Wait(CancellationToken),
    /// Everybody for himself.
    Alone,
}

/// The fetch that others wait for; they wait no longer when it is dropped.
#[derive(Debug)]
pub struct Lead {
    store: Arc<Store>,
    key: (Arc<str>, u64),
    _ended: DropGuard,
}

/// Leave to store what a fetch brings, unless the URL is changed meanwhile.
#[derive(Debug)]
pub struct Ticket {
    pub store: Arc<Store>,
    pub url: Arc<str>,
    voided: u64,
}

/// One of a bounded number.
#[derive(Debug)]
pub struct Place {
    store: Arc<Store>,
    of: fn(&Store) -> &AtomicUsize,
}

// === impl Store ===

impl Store {
    pub fn new(bytes_max: u64) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            keys: RandomState::new(),
            bytes_max,
            bytes: AtomicU64::new(0),
            rooms: Rooms::new(bytes_max / FILLING_SHARE),
            waiting: AtomicUsize::new(0),
            refreshing: AtomicUsize::new(0),
            counts: Counts::default(),
        }
    }

    /// The newest answer that a request may be given, if its time allows.
    pub fn find(&self, url: &str, lane: &str, asked: &HeaderMap) -> Found {
        let mut shard = self.shard(url);
        let Some(entry) = shard.urls.get(url) else { return Found::Nothing { others: false } };
        let all = entry.places.iter().filter_map(|at| Some((*at, &shard.objects.get(*at)?.1)));
        let fitting = all.filter(|(_, object)| object.is_for(lane, asked));
        let newest = fitting.max_by_key(|(_, object)| object.times.newness());
        match newest.map(|(place, object)| (place, object.clone())) {
            Some((place, object)) => {
                shard.objects.visit(place);
                Found::Object(object)
            }
            None => Found::Nothing { others: !entry.places.is_empty() },
        }
    }

    /// Leave to fetch what nobody fetches, or to wait for who does. Requests whose answers may
    /// differ, as far as is known, do not wait for each other.
    pub fn turn(
        self: &Arc<Self>,
        url: &Arc<str>,
        lane: &str,
        asked: &HeaderMap,
        now: Mono,
    ) -> Turn {
        let mut shard = self.shard(url);
        if shard.passes.has(self.keys.hash_one((url, lane)), now) {
            return Turn::Alone;
        }
        let entry = shard.urls.get(url);
        let known = entry.and_then(|e| shard.objects.get(*e.places.last()?));
        let names = known.map(|(_, object)| &*object.vary).unwrap_or_default();
        let values = names.iter().map(|(name, _)| asked.get(name).map(|v| v.as_bytes()));
        let key = (url.clone(), self.keys.hash_one((lane, values.collect::<Vec<_>>())));
        if let Some(flight) = shard.flights.get(&key) {
            return Turn::Wait(flight.clone());
        }
        let flight = CancellationToken::new();
        let ended = flight.clone().drop_guard();
        shard.flights.insert(key.clone(), flight);
        Turn::Lead(Lead { store: self.clone(), key, _ended: ended })
    }

    /// Nobody waits for this for a while: its answers cannot be stored.
    pub fn pass(&self, url: &Arc<str>, lane: &str, now: Mono, ms: u64) {
        let key = self.keys.hash_one((url, lane));
        self.shard(url).passes.note(key, Mono(now.0 + ms));
    }

    pub fn ticket(self: &Arc<Self>, url: &Arc<str>) -> Ticket {
        let mut shard = self.shard(url);
        let entry = shard.urls.entry(url.clone()).or_default();
        entry.fetches += 1;
        Ticket { store: self.clone(), url: url.clone(), voided: entry.voided }
    }

    /// Stores an answer in the place of the one that it follows. `false` when what it was fetched
    /// from has changed since, a newer one is there already, or there is no room.
    pub fn put(&self, ticket: &Ticket, object: Arc<Object>) -> bool {
        let bytes = object.bytes() + ticket.url.len() as u64;
        if bytes > self.bytes_max {
            return false;
        }
        let mut shard = self.shard(&ticket.url);
        let Shard { urls, objects, passes, .. } = &mut *shard;
        let Some(entry) = urls.get_mut(&ticket.url).filter(|e| e.voided == ticket.voided) else {
            return false;
        };
        let follows = |at: &usize| {
            objects.get(*at).is_some_and(|(_, o)| o.lane == object.lane && o.vary == object.vary)
        };
        let mut old: Vec<usize> = entry.places.iter().copied().filter(follows).collect();
        let newness = |at: &usize| objects.get(*at).map(|(_, o)| o.times.newness());
        if old.iter().filter_map(newness).any(|known| known > object.times.newness()) {
            // It was long under way: its client read slowly, or its origin's answer was old.
            return false;
        }
        passes.forget(self.keys.hash_one((&ticket.url, &*object.lane)));
        if old.is_empty() && entry.places.len() >= VARIANTS_MAX {
            old.extend(entry.places.first());
        }
        entry.places.retain(|at| !old.contains(at));
        let freed: u64 = old.into_iter().filter_map(|at| objects.remove(at)).map(size).sum();
        entry.places.push(objects.insert((ticket.url.clone(), object)));
        // Before anybody can take it out again.
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        drop(shard);
        self.bytes.fetch_sub(freed, Ordering::Relaxed);
        self.counts.stored.fetch_add(1, Ordering::Relaxed);
        self.make_room(&ticket.url);
        true
    }

    /// Forgets one answer, if it is there still.
    pub fn forget(&self, url: &str, object: &Arc<Object>) {
        let mut shard = self.shard(url);
        let Shard { urls, objects, .. } = &mut *shard;
        let Some(entry) = urls.get_mut(url) else { return };
        let it = |at: &usize| objects.get(*at).is_some_and(|(_, o)| Arc::ptr_eq(o, object));
        if let Some(at) = entry.places.iter().copied().find(it) {
            entry.places.retain(|place| *place != at);
            let freed = objects.remove(at).map_or(0, size);
            shard.drop_if_empty(url);
            self.bytes.fetch_sub(freed, Ordering::Relaxed);
        }
    }

    /// Forgets all that is stored under a URL, and what is being fetched for it. How many answers
    /// that were.
    pub fn invalidate(&self, url: &str) -> usize {
        let mut shard = self.shard(url);
        let (count, freed) = shard.clear(url);
        drop(shard);
        self.bytes.fetch_sub(freed, Ordering::Relaxed);
        self.counts.invalidated.fetch_add(count as u64, Ordering::Relaxed);
        count
    }

    /// The same of every URL that begins so.
    pub fn purge(&self, prefix: &str) -> usize {
        let mut total = 0;
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let urls = shard.urls.keys().filter(|url| url.starts_with(prefix));
            let urls: Vec<Arc<str>> = urls.cloned().collect();
            let cleared = urls.iter().map(|url| shard.clear(url));
            let (count, freed) = cleared.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
            drop(shard);
            self.bytes.fetch_sub(freed, Ordering::Relaxed);
            total += count;
        }
        self.counts.invalidated.fetch_add(total as u64, Ordering::Relaxed);
        total
    }

    pub fn place_to_wait(self: &Arc<Self>) -> Option<Place> {
        Place::take(self, |store| &store.waiting, WAITING_MAX)
    }

    pub fn place_to_refresh(self: &Arc<Self>) -> Option<Place> {
        Place::take(self, |store| &store.refreshing, REFRESHING_MAX)
    }

    /// What happened so far, for metrics: name, help, number.
    pub fn counters(&self) -> Vec<(&'static str, &'static str, u64)> {
        let counts = &self.counts;
        [
            ("weft_cache_hits", "Requests answered with a fresh stored answer", &counts.hits),
            ("weft_cache_stale", "Requests answered with a stale one, as allowed", &counts.stale),
            ("weft_cache_misses", "Requests of rules with a cache that went on", &counts.misses),
            ("weft_cache_bypassed", "Requests that are no matter of a cache", &counts.bypassed),
            ("weft_cache_revalidated", "Stored answers that hold", &counts.revalidated),
            ("weft_cache_collapsed", "Misses that had waited for another", &counts.collapsed),
            ("weft_cache_stored", "Answers stored", &counts.stored),
            ("weft_cache_evicted", "Answers given up for newer ones", &counts.evicted),
            ("weft_cache_invalidated", "Answers made void by a change", &counts.invalidated),
        ]
        .map(|(name, help, count)| (name, help, count.load(Ordering::Relaxed)))
        .into()
    }

    /// The same for people.
    pub fn shown(&self) -> Value {
        let mut out: serde_json::Map<String, Value> = self
            .counters()
            .into_iter()
            .map(|(name, _, n)| (name.trim_start_matches("weft_cache_").to_owned(), n.into()))
            .collect();
        out.insert("objects".into(), self.objects().into());
        out.insert("bytes".into(), self.bytes().into());
        out.insert("bytes_max".into(), self.bytes_max.into());
        Value::Object(out)
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub fn objects(&self) -> usize {
        let lock =
            |s: &Mutex<Shard>| s.lock().unwrap_or_else(PoisonError::into_inner).objects.len();
        self.shards.iter().map(lock).sum()
    }

    /// Gives a quarter of what is stored up: memory is short.
    pub fn shed(&self) {
        self.shrink(self.bytes() / 4 * 3, 0);
    }

    /// Gives answers up until the rest fits: of the shard that grew first, then of the others.
    fn make_room(&self, grown: &str) {
        self.shrink(self.bytes_max, self.index(grown));
    }

    fn shrink(&self, bytes_max: u64, first: usize) {
        for index in (first..first + SHARDS).map(|i| i % SHARDS) {
            let Some(shard) = self.shards.get(index) else { return };
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            while self.bytes() > bytes_max {
                let Some(victim) = shard.objects.victim() else { break };
                let Some((url, object)) = shard.objects.remove(victim) else { break };
                if let Some(entry) = shard.urls.get_mut(&url) {
                    entry.places.retain(|place| *place != victim);
                }
                shard.drop_if_empty(&url);
                self.bytes.fetch_sub(size((url, object)), Ordering::Relaxed);
                self.counts.evicted.fetch_add(1, Ordering::Relaxed);
            }
            if self.bytes() <= bytes_max {
                return;
            }
        }
    }

    #[allow(clippy::cast_possible_truncation)] // Only the low bits are of interest.
    fn index(&self, url: &str) -> usize {
        self.keys.hash_one(url) as usize % SHARDS
    }

    fn shard(&self, url: &str) -> MutexGuard<'_, Shard> {
        let shard =
            self.shards.get(self.index(url)).expect("an index is below the number of shards");
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn size((url, object): (Arc<str>, Arc<Object>)) -> u64 {
    object.bytes() + url.len() as u64
}

// === impl Shard ===

impl Shard {
    /// How many answers went, and their bytes.
    fn clear(&mut self, url: &str) -> (usize, u64) {
        let Some(entry) = self.urls.get_mut(url) else { return (0, 0) };
        entry.voided += 1;
        let places = std::mem::take(&mut entry.places);
        let gone = places.into_iter().filter_map(|at| self.objects.remove(at));
        let (count, freed) = gone.fold((0, 0), |(n, sum), one| (n + 1, sum + size(one)));
        self.drop_if_empty(url);
        (count, freed)
    }

    fn drop_if_empty(&mut self, url: &str) {
        let empty = |e: &Entry| e.places.is_empty() && e.fetches == 0;
        if self.urls.get(url).is_some_and(empty) {
            self.urls.remove(url);
        }
    }
}

// === impl Lead ===

impl Drop for Lead {
    fn drop(&mut self) {
        self.store.shard(&self.key.0).flights.remove(&self.key);
    }
}

// === impl Ticket ===

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut shard = self.store.shard(&self.url);
        if let Some(entry) = shard.urls.get_mut(&self.url) {
            entry.fetches = entry.fetches.saturating_sub(1);
        }
        shard.drop_if_empty(&self.url);
    }
}

// === impl Place ===

impl Place {
    fn take(store: &Arc<Store>, of: fn(&Store) -> &AtomicUsize, most: usize) -> Option<Self> {
        let before = of(store).fetch_add(1, Ordering::Relaxed);
        let place = Self { store: store.clone(), of };
        (before < most).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        (self.of)(&self.store).fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
