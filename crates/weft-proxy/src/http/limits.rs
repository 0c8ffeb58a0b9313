// SPDX-License-Identifier: Apache-2.0
//! Local rate limits: who is beyond one is answered 429, with when to come again. Counts belong to
//! the whole proxy and outlive tables. Called by the phases, only for requests that a limit is
//! said for; decides nothing, the model's arithmetic does.
//!
//! One count is one atomic number. A limit without keys that allows many requests at once is
//! leased to workers in slices, so that they do not write one cache line per request; what they
//! hold at a time is at most an eighth of that burst. Clients are told apart in a table of fixed
//! size: a place whose count has run out is as good as none and may be taken by another client.
//! Who finds no place shares one count with all others that found none.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue, RETRY_AFTER};
use weft_model::decide::{Grant, Rate};
use weft_model::{LimitBy, RateLimit};

use super::reply::{Cause, Refusal};
use crate::worker::{Conn, Worker};

/// Places that are looked at for one client.
const PROBES: usize = 8;
/// Slices of a burst, for all workers together.
const SLICES: u64 = 8;
/// Counts remembered that no rule asks for any more.
const IDLE_MAX: usize = 1_024;

/// The counts of a proxy, by the limits' names.
#[derive(Debug, Default)]
pub struct Buckets(Mutex<HashMap<Arc<str>, Arc<Bucket>>>);

/// What a worker knows of them.
#[derive(Debug, Default)]
pub struct LocalBuckets(RefCell<HashMap<Arc<str>, Rc<Leased>>>);

/// One limit's counts.
#[derive(Debug)]
pub struct Bucket {
    limit: Arc<RateLimit>,
    rate: Rate,
    /// Of all together, or of those without a place of their own.
    shared: AtomicU64,
    places: OnceLock<Box<[Place]>>,
    keys: RandomState,
}

/// One client's count; key 0 is nobody.
#[derive(Debug, Default)]
struct Place {
    key: AtomicU64,
    state: AtomicU64,
}

#[derive(Debug)]
struct Leased {
    bucket: Arc<Bucket>,
    left: Cell<u64>,
}

/// What a client beyond a limit is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quota {
    requests: u32,
    window_s: u64,
    wait_s: u64,
}

/// Counts a request for each limit in turn.
///
/// # Errors
/// The refusal of the first that has no room; those before it have counted it.
pub fn admit(
    worker: &Worker,
    conn: &Conn,
    headers: &HeaderMap,
    limits: &[&Arc<RateLimit>],
) -> Result<(), Refusal> {
    let Some(now) = (!limits.is_empty()).then(|| worker.clock.now().0.saturating_mul(1_000_000))
    else {
        return Ok(());
    };
    for limit in limits {
        let leased = worker.limits.of(limit, &worker.shared.buckets);
        if let Err(wait_ns) = leased.take(conn, headers, worker.config.workers, now) {
            worker.metrics.cells.rate_limited.add(1);
            let quota = Quota::of(limit, wait_ns);
            let detail = format!("{limit} ({}); again in {} s", limit.name, quota.wait_s);
            return Err(Refusal::new(Cause::RateLimited, detail).with_quota(quota));
        }
    }
    Ok(())
}

// === impl Buckets ===

impl Buckets {
    fn of(&self, limit: &Arc<RateLimit>) -> Arc<Bucket> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() > IDLE_MAX {
            known.retain(|_, bucket| Arc::strong_count(bucket) > 1);
        }
        match known.get(&limit.name) {
            Some(bucket) if *bucket.limit == **limit => bucket.clone(),
            _ => {
                let made = Arc::new(Bucket::new(limit.clone()));
                known.insert(limit.name.clone(), made.clone());
                made
            }
        }
    }
}

// === impl LocalBuckets ===

impl LocalBuckets {
    /// The counts of a limit. The lock is taken the first time only, and after a change.
    fn of(&self, limit: &Arc<RateLimit>, all: &Buckets) -> Rc<Leased> {
        let mut known = self.0.borrow_mut();
        if let Some(leased) = known.get(&limit.name)
            && (Arc::ptr_eq(&leased.bucket.limit, limit) || *leased.bucket.limit == **limit)
        {
            return leased.clone();
        }
        if known.len() > IDLE_MAX {
            known.clear();
        }
        let leased = Rc::new(Leased { bucket: all.of(limit), left: Cell::new(0) });
        known.insert(limit.name.clone(), leased.clone());
        leased
    }
}

// === impl Leased ===

impl Leased {
    fn take(&self, conn: &Conn, headers: &HeaderMap, workers: usize, now: u64) -> Result<(), u64> {
        let limit = &self.bucket.limit;
        if !limit.by.is_empty() {
            return self.bucket.take_for(self.bucket.key(conn, headers), now);
        }
        let workers = workers.max(1) as u64;
        let burst = u64::from(limit.burst());
        if workers == 1 || burst < SLICES * workers {
            return self.bucket.take(&self.bucket.shared, 1, now);
        }
        if self.left.get() == 0 {
            let slice = burst / (SLICES * workers);
            if self.bucket.take(&self.bucket.shared, slice, now).is_err() {
                return self.bucket.take(&self.bucket.shared, 1, now);
            }
            self.left.set(slice);
        }
        self.left.set(self.left.get() - 1);
        Ok(())
    }
}

// === impl Bucket ===

impl Bucket {
    fn new(limit: Arc<RateLimit>) -> Self {
        Self {
            rate: Rate::of(&limit),
            limit,
            shared: AtomicU64::new(0),
            places: OnceLock::new(),
            keys: RandomState::new(),
        }
    }

    fn take(&self, state: &AtomicU64, n: u64, now: u64) -> Result<(), u64> {
        let mut seen = state.load(Ordering::Relaxed);
        loop {
            let next = match self.rate.take(seen, now, n) {
                Grant::No(wait) => return Err(wait),
                Grant::Yes(next) => next,
            };
            match state.compare_exchange_weak(seen, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(newer) => seen = newer,
            }
        }
    }

    fn take_for(&self, key: u64, now: u64) -> Result<(), u64> {
        let size = self.limit.keys().next_power_of_two() as usize;
        let places = self.places.get_or_init(|| (0..size).map(|_| Place::default()).collect());
        let state = Self::place(places, key, now).map_or(&self.shared, |place| &place.state);
        self.take(state, 1, now)
    }

    /// The client's place, or one that is free.
    fn place(places: &[Place], key: u64, now: u64) -> Option<&Place> {
        let mask = places.len().checked_sub(1)?;
        // The low bits of a keyed hash are as good as any.
        #[allow(clippy::cast_possible_truncation)]
        let first = key as usize;
        let near = || (0..PROBES).filter_map(|i| places.get(first.wrapping_add(i) & mask));
        if let Some(own) = near().find(|place| place.key.load(Ordering::Relaxed) == key) {
            return Some(own);
        }
        near().find(|place| {
            let holder = place.key.load(Ordering::Relaxed);
            let free = holder == 0 || place.state.load(Ordering::Relaxed) <= now;
            let taken =
                || place.key.compare_exchange(holder, key, Ordering::AcqRel, Ordering::Acquire);
            // Another worker may have given it to the same client this moment.
            holder == key || (free && taken().map_or_else(|now| now == key, |_| true))
        })
    }

    fn key(&self, conn: &Conn, headers: &HeaderMap) -> u64 {
        use std::hash::{Hash, Hasher};
        let mut hasher = self.keys.build_hasher();
        for by in &self.limit.by {
            match by {
                LimitBy::Client => conn.remote.ip().to_canonical().hash(&mut hasher),
                LimitBy::Header(name) => {
                    headers.get(&**name).map(HeaderValue::as_bytes).hash(&mut hasher);
                }
                LimitBy::Identity => {
                    conn.peer.as_ref().map(|peer| peer.as_str()).hash(&mut hasher);
                }
            }
        }
        hasher.finish().max(1)
    }
}

// === impl Quota ===

impl Quota {
    fn of(limit: &RateLimit, wait_ns: u64) -> Self {
        Self {
            requests: limit.requests,
            window_s: limit.per_ms.div_ceil(1_000),
            wait_s: wait_ns.div_ceil(1_000_000_000).max(1),
        }
    }

    /// `Retry-After`, and the header fields of draft-ietf-httpapi-ratelimit-headers-10.
    pub fn tell(&self, headers: &mut HeaderMap) {
        headers.insert(RETRY_AFTER, HeaderValue::from(self.wait_s));
        let policy = format!("\"weft\";q={};w={}", self.requests, self.window_s);
        let left = format!("\"weft\";r=0;t={}", self.wait_s);
        for (name, value) in [("ratelimit-policy", policy), ("ratelimit", left)] {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
    }
}

#[cfg(test)]
mod tests;
