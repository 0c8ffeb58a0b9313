// SPDX-License-Identifier: Apache-2.0
//! Which endpoint takes the next attempt. One [`LocalBackend`] per backend and worker holds the
//! turn; the candidates come from the newest table, whatever table the request has pinned, so
//! that a retry never goes to an endpoint that is gone. No I/O.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use weft_base::clock::Mono;
use weft_base::rng::Rng;
use weft_model::LbPolicy;
use weft_model::decide::{SmoothWeighted, total_weight, weighted_at};

use super::budget::Budget;
use super::pool::Pool;
use crate::observe::flags::Flags;
use crate::observe::metrics::{RequestProtocol, RequestSeries};
use crate::pinned::Pinned;
use crate::table::{BackendEntry, EndpointEntry};

/// A backend as one worker uses it.
#[derive(Debug)]
pub struct LocalBackend {
    pub entry: Pinned<BackendEntry>,
    candidates: Vec<Rc<LocalEndpoint>>,
    weights: Vec<u32>,
    equal: bool,
    cursor: usize,
    smooth: SmoothWeighted,
    pub budget: Budget,
}

/// An endpoint as one worker uses it.
#[derive(Debug)]
pub struct LocalEndpoint {
    pub entry: Arc<EndpointEntry>,
    pub pool: Rc<Pool>,
    /// Metric series of requests that this proxy sent to it, by how they ended.
    series: RefCell<Vec<(Ending, Arc<RequestSeries>)>>,
}

/// What tells the requests to one endpoint apart in the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    pub protocol: RequestProtocol,
    pub code: u16,
    pub grpc_status: Option<u16>,
    pub flags: Flags,
}

/// Endings remembered per endpoint; others are looked up by their labels.
const ENDINGS_MAX: usize = 8;

// === impl LocalBackend ===

impl LocalBackend {
    pub fn new(
        entry: Arc<BackendEntry>,
        rng: &mut Rng,
        pool: impl FnMut(&EndpointEntry) -> Rc<Pool>,
    ) -> Self {
        let mut made = Self {
            entry: Pinned::new(entry.clone()),
            candidates: Vec::new(),
            weights: Vec::new(),
            equal: true,
            // Workers and proxies do not all begin with the first endpoint.
            cursor: usize::try_from(rng.below(1 << 16)).unwrap_or(0),
            smooth: SmoothWeighted::default(),
            budget: Budget::default(),
        };
        made.update(entry, pool);
        made
    }

    /// Takes the newest form of the backend; turn and budget go on.
    pub fn update(
        &mut self,
        entry: Arc<BackendEntry>,
        mut pool: impl FnMut(&EndpointEntry) -> Rc<Pool>,
    ) {
        self.candidates = entry
            .endpoints
            .iter()
            .filter(|e| e.endpoint.is_candidate())
            .map(|e| LocalEndpoint::new(e.clone(), pool(e)))
            .collect();
        self.weights = self.candidates.iter().map(|c| c.entry.endpoint.weight).collect();
        self.equal = self.weights.windows(2).all(|w| w.first() == w.last());
        self.entry = Pinned::new(entry);
    }

    /// The endpoint for a first attempt: round robin is exact per cycle over what is not ejected.
    pub fn pick(&mut self, rng: &mut Rng, now: Mono) -> Option<Rc<LocalEndpoint>> {
        if now.0 < self.entry.ejected_until.load(Ordering::Relaxed)
            && self.candidates.iter().any(|c| c.entry.shared.is_ejected(now))
        {
            return self.pick_among(rng, now, &[]);
        }
        let i = match self.entry.backend.policy.lb {
            LbPolicy::RoundRobin if self.equal => {
                self.cursor = self.cursor.wrapping_add(1);
                self.cursor.checked_rem(self.candidates.len())?
            }
            LbPolicy::RoundRobin => self.smooth.next(&self.weights)?,
            LbPolicy::Random => weighted_at(&self.weights, rng.below(total_weight(&self.weights)))?,
            LbPolicy::LeastRequest => self.least_request(rng, &self.weights)?,
        };
        self.candidates.get(i).cloned()
    }

    /// The endpoint for another attempt: one that was not tried yet, if there is one.
    pub fn pick_again(
        &mut self,
        rng: &mut Rng,
        now: Mono,
        tried: &[Rc<LocalEndpoint>],
    ) -> Option<Rc<LocalEndpoint>> {
        self.pick_among(rng, now, tried)
    }

    /// Leaves out what was tried and what is ejected; when nothing else is left these are taken
    /// after all, ejected ones first: ejection is a guess, and no answer is worse.
    fn pick_among(
        &mut self,
        rng: &mut Rng,
        now: Mono,
        tried: &[Rc<LocalEndpoint>],
    ) -> Option<Rc<LocalEndpoint>> {
        let was_tried = |c: &LocalEndpoint| {
            tried.iter().any(|t| t.entry.endpoint.address == c.entry.endpoint.address)
        };
        let masked = |keep: &dyn Fn(&LocalEndpoint) -> bool| -> Vec<u32> {
            let weight = |c: &Rc<LocalEndpoint>| if keep(c) { c.entry.endpoint.weight } else { 0 };
            self.candidates.iter().map(weight).collect()
        };
        let mut weights = masked(&|c| !was_tried(c) && !c.entry.shared.is_ejected(now));
        if total_weight(&weights) == 0 {
            weights = masked(&|c| !was_tried(c));
        }
        if total_weight(&weights) == 0 {
            weights = self.weights.clone();
        }
        let i = match self.entry.backend.policy.lb {
            LbPolicy::RoundRobin if tried.is_empty() => self.smooth.next(&weights)?,
            LbPolicy::LeastRequest => self.least_request(rng, &weights)?,
            _ => weighted_at(&weights, rng.below(total_weight(&weights)))?,
        };
        self.candidates.get(i).cloned()
    }

    /// Power of two different choices over requests in flight of all workers.
    fn least_request(&self, rng: &mut Rng, weights: &[u32]) -> Option<usize> {
        let total = total_weight(weights);
        let a = weighted_at(weights, rng.below(total))?;
        let skipped = u64::from(weights.get(a).copied().unwrap_or(0));
        let point = rng.below(total - skipped);
        // The same walk without `a`: points at or behind it move on by its weight.
        let before: u64 = weights.iter().take(a).copied().map(u64::from).sum();
        let point = if point >= before { point + skipped } else { point };
        let Some(b) = weighted_at(weights, point).filter(|_| total > skipped) else {
            return Some(a);
        };
        let load = |i: usize| self.candidates.get(i).map_or(0, |c| c.entry.shared.in_flight());
        Some(if load(b) < load(a) { b } else { a })
    }

    /// Requests in flight to all its endpoints, from all workers.
    pub fn in_flight(&self) -> u64 {
        self.entry.endpoints.iter().map(|e| e.shared.in_flight()).sum()
    }

    /// Connections of this worker to all its candidates.
    pub fn connections(&self) -> usize {
        self.candidates.iter().map(|c| c.pool.connections()).sum()
    }

    pub fn candidates(&self) -> &[Rc<LocalEndpoint>] {
        &self.candidates
    }
}

// === impl LocalEndpoint ===

impl LocalEndpoint {
    pub fn new(entry: Arc<EndpointEntry>, pool: Rc<Pool>) -> Rc<Self> {
        Rc::new(Self { entry, pool, series: RefCell::default() })
    }

    /// Calls `f` with the series of an ending; `find` looks it up the first time.
    pub fn with_series(
        &self,
        ending: Ending,
        find: impl FnOnce() -> Arc<RequestSeries>,
        f: impl FnOnce(&RequestSeries),
    ) {
        let mut known = self.series.borrow_mut();
        if let Some((_, series)) = known.iter().find(|(e, _)| *e == ending) {
            return f(series);
        }
        let found = find();
        f(&found);
        if known.len() < ENDINGS_MAX {
            known.push((ending, found));
        }
    }
}

#[cfg(test)]
mod tests;
