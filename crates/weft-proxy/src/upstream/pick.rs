// SPDX-License-Identifier: Apache-2.0
//! Which endpoint takes the next attempt. One [`LocalBackend`] per backend and worker holds the
//! turn; the candidates come from the newest table, whatever table the request has pinned, so
//! that a retry never goes to an endpoint that is gone. No I/O; a pick allocates nothing.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use weft_base::clock::Mono;
use weft_base::rng::Rng;
use weft_model::decide::{
    Member, PeakEwma, Shares, SmoothWeighted, Standing, total_weight, weighted_at, within_bound,
};
use weft_model::{Hashing, Health, LbPolicy};

use super::adaptive::AdaptiveLimit;
use super::breaker::{Breaker, Breakers};
use super::gate::BackendGate;
use super::pool::Pool;
use crate::observe::flags::Flags;
use crate::observe::metrics::{RequestProtocol, RequestSeries, WorkerCells};
use crate::pinned::Pinned;
use crate::table::{BackendEntry, EndpointEntry};

/// A backend as one worker uses it.
#[derive(Debug)]
pub struct LocalBackend {
    pub entry: Pinned<BackendEntry>,
    candidates: Vec<Rc<LocalEndpoint>>,
    view: View,
    turn: Turn,
    pub breaker: Rc<Breaker>,
    pub adaptive: Option<Rc<AdaptiveLimit>>,
    /// Where its policy sets no limit of its own, and does not say that there is none.
    pub gate: Option<Rc<BackendGate>>,
    /// In a proxy that has gates: how many workers, and this one's numbers.
    gated: Option<(usize, Arc<WorkerCells>)>,
    breakers: Rc<Breakers>,
}

/// Who gets which share, until something changes: by endpoint of the entry, since those that are
/// no candidates count too. Its buffers are reused.
#[derive(Debug, Default)]
struct View {
    shares: Shares,
    members: Vec<Member>,
    /// Endpoints with a share; plain turns go over these when all shares are equal.
    open: Vec<usize>,
    equal: bool,
    /// Shares without those that were tried.
    masked: Vec<u32>,
    /// The candidate of each endpoint of the entry.
    of_endpoint: Vec<Option<usize>>,
    changes: u64,
    until: u64,
}

#[derive(Debug)]
struct Turn {
    cursor: usize,
    smooth: SmoothWeighted,
}

/// An endpoint as one worker uses it.
#[derive(Debug)]
pub struct LocalEndpoint {
    pub entry: Arc<EndpointEntry>,
    pub pool: Rc<Pool>,
    /// How fast it answered this worker; kept over changes of the table.
    pace: Rc<Cell<PeakEwma>>,
    /// Metric series of requests that this proxy sent to it, by how they ended.
    series: RefCell<Vec<(Ending, Arc<RequestSeries>)>>,
}

/// What of a request the choice depends on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ask<'a> {
    /// Of its key, where the policy hashes and it has one.
    pub hash: Option<u64>,
    /// Endpoints that had an attempt.
    pub tried: &'a [Rc<LocalEndpoint>],
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
/// So many times less must another endpoint have to do that is asked in spite of weights.
const MUCH_LESS: f64 = 2.5;

// === impl LocalBackend ===

impl LocalBackend {
    pub fn new(
        entry: Arc<BackendEntry>,
        rng: &mut Rng,
        pool: impl FnMut(&EndpointEntry) -> Rc<Pool>,
    ) -> Self {
        // Workers and proxies do not all begin with the first endpoint.
        let cursor = usize::try_from(rng.below(1 << 16)).unwrap_or(0);
        let mut made = Self {
            entry: Pinned::new(entry.clone()),
            candidates: Vec::new(),
            view: View::default(),
            turn: Turn { cursor, smooth: SmoothWeighted::default() },
            breaker: Rc::default(),
            adaptive: None,
            gate: None,
            gated: None,
            breakers: Rc::default(),
        };
        made.update(entry, pool);
        made
    }

    /// It is one worker's, which counts by these.
    pub fn set_breakers(&mut self, breakers: Rc<Breakers>) {
        self.breakers = breakers;
        self.count_with();
    }

    /// Counts by the limits of its entry from now on.
    fn count_with(&mut self) {
        self.breaker = self.breakers.of(self.entry.quotas.as_ref());
        self.candidates.iter().for_each(|c| c.pool.tell(&self.breaker));
    }

    /// Takes the newest form of the backend; its turn goes on.
    pub fn update(
        &mut self,
        entry: Arc<BackendEntry>,
        mut pool: impl FnMut(&EndpointEntry) -> Rc<Pool>,
    ) {
        let old = std::mem::take(&mut self.candidates);
        let pace_of = |e: &EndpointEntry| {
            let known = old.iter().find(|o| Arc::ptr_eq(&o.entry.shared, &e.shared));
            known.map(|o| o.pace.clone()).unwrap_or_default()
        };
        self.view.of_endpoint.clear();
        for endpoint in &entry.endpoints {
            let usable = entry.is_usable(&endpoint.endpoint);
            self.view.of_endpoint.push(usable.then_some(self.candidates.len()));
            if usable {
                let (pool, pace) = (pool(endpoint), pace_of(endpoint));
                pool.tell(&self.breaker);
                self.candidates.push(LocalEndpoint::new(endpoint.clone(), pool, pace));
            }
        }
        self.entry = Pinned::new(entry);
        if !self.breaker.is_of(self.entry.quotas.as_ref()) {
            self.count_with();
        }
        self.view.until = 0;
        self.adapt();
    }

    /// It has a gate where its policy sets no limit, on one of so many workers.
    pub fn set_gated(&mut self, workers: usize, cells: Arc<WorkerCells>) {
        self.gated = Some((workers, cells));
        self.adapt();
    }

    /// What was learnt stays while the policy does.
    fn adapt(&mut self) {
        let policy = &self.entry.backend.policy;
        let limits = &policy.limits;
        let protection = policy.protection.as_ref();
        let own = protection.and_then(|p| p.adaptive.as_ref());
        self.adaptive = own.map(|policy| {
            let known = self.adaptive.take().filter(|limit| limit.is_for(policy));
            known.unwrap_or_else(|| AdaptiveLimit::new(policy.clone()))
        });
        let said = own.is_some()
            || limits.requests_max.is_some()
            || limits.connections_max.is_some()
            || protection.is_some_and(|p| p.ungated);
        let known = self.gate.take();
        self.gate = self.gated.as_ref().filter(|_| !said).map(|(workers, cells)| {
            let label = || self.entry.label().into();
            known.unwrap_or_else(|| BackendGate::new(*workers, cells.clone(), label()))
        });
    }

    /// The endpoint for an attempt: by the policy's turn over what is open, and elsewhere first
    /// when some were tried. Round robin is exact per cycle while nothing changes.
    pub fn pick(&mut self, ask: Ask<'_>, rng: &mut Rng, now: Mono) -> Option<Rc<LocalEndpoint>> {
        self.refresh(now);
        let again = !ask.tried.is_empty();
        if again {
            self.mask(ask.tried);
        }
        let view = &self.view;
        let weights = if again { &view.masked } else { &view.shares.weights };
        let plain = view.equal && !again;
        let i = match &self.entry.backend.policy.lb {
            LbPolicy::RoundRobin if plain => {
                self.turn.cursor = self.turn.cursor.wrapping_add(1);
                *view.open.get(self.turn.cursor.checked_rem(view.open.len())?)?
            }
            LbPolicy::RoundRobin if !again => self.turn.smooth.next(weights)?,
            LbPolicy::LeastRequest => self.lighter(rng, weights, |_, busy| float(busy))?,
            LbPolicy::PeakEwma => self.lighter(rng, weights, |e, busy| e.cost(busy, now))?,
            LbPolicy::Hash(hashing) if ask.hash.is_some() => {
                self.hashed(hashing, ask.hash?, weights)?
            }
            _ if plain => {
                *view.open.get(usize::try_from(rng.below(view.open.len() as u64)).ok()?)?
            }
            _ => weighted_at(weights, rng.below(total_weight(weights)))?,
        };
        self.at(i).cloned()
    }

    /// The candidate that an endpoint of the entry is.
    fn at(&self, endpoint: usize) -> Option<&Rc<LocalEndpoint>> {
        self.candidates.get(self.view.of_endpoint.get(endpoint).copied().flatten()?)
    }

    /// Whether an endpoint that was not tried takes requests now.
    pub fn has_other(&mut self, tried: &[Rc<LocalEndpoint>], now: Mono) -> bool {
        self.refresh(now);
        let open = self.view.open.iter().filter_map(|i| Some((i, self.at(*i)?)));
        let standings = &self.view.shares.standings;
        let mut other = open.filter(|(i, _)| standings.get(**i) == Some(&Standing::Open));
        other.any(|(_, c)| !was_tried(tried, c))
    }

    /// Decides shares anew when an ejection, a pause or a warm-up has moved on.
    fn refresh(&mut self, now: Mono) {
        let changes = self.entry.set.changes();
        if now.0 < self.view.until && changes == self.view.changes {
            return;
        }
        let view = &mut self.view;
        (view.changes, view.until) = (changes, u64::MAX);
        view.members.clear();
        for (index, endpoint) in self.entry.endpoints.iter().enumerate() {
            let (member, until) = self.entry.member(index, endpoint, now);
            view.until = view.until.min(until);
            view.members.push(member);
        }
        let panic = self.entry.backend.policy.panic_basis_points;
        view.masked.clone_from(&view.shares.weights);
        view.shares.settle(&view.members, &self.entry.places.rule, panic);
        view.open.clear();
        let weights = &view.shares.weights;
        view.open.extend(weights.iter().enumerate().filter(|(_, w)| **w > 0).map(|(i, _)| i));
        let mut shares = view.open.iter().filter_map(|i| weights.get(*i));
        let first = shares.next();
        view.equal = shares.all(|w| Some(w) == first);
        if view.masked != *weights {
            self.turn.smooth.reset();
        }
    }

    /// Leaves out what was tried; when nothing else is open, those that stand by, are ejected or
    /// pause come before the same again: no answer is worse than a guess.
    fn mask(&mut self, tried: &[Rc<LocalEndpoint>]) {
        let view = &mut self.view;
        let (shares, slots) = (&view.shares, &view.of_endpoint);
        let untried = |i: usize| {
            let slot = slots.get(i).copied().flatten();
            slot.and_then(|i| self.candidates.get(i)).is_some_and(|c| !was_tried(tried, c))
        };
        view.masked.clear();
        let open = shares.weights.iter().enumerate();
        view.masked.extend(open.map(|(i, w)| if untried(i) { *w } else { 0 }));
        if total_weight(&view.masked) > 0 {
            return;
        }
        view.masked.clear();
        let all = view.members.iter().zip(&shares.standings).enumerate();
        view.masked.extend(all.map(|(i, (member, standing))| match standing {
            Standing::Standby | Standing::Ejected | Standing::Pausing if untried(i) => {
                member.weight
            }
            _ => 0,
        }));
        if total_weight(&view.masked) == 0 {
            view.masked.clone_from(&shares.weights);
        }
    }

    /// Power of two different choices. `load` is what so many requests in flight cost.
    fn lighter(
        &self,
        rng: &mut Rng,
        weights: &[u32],
        load: impl Fn(&LocalEndpoint, u64) -> f64,
    ) -> Option<usize> {
        let (a, b) = self.two(rng, weights)?;
        let Some((b, at_a, at_b)) = b.and_then(|b| Some((b, self.at(a)?, self.at(b)?))) else {
            return Some(a);
        };
        let weight = |i: usize| weights.get(i).copied().map_or(1.0, f64::from);
        let (of_a, of_b) = (at_a.in_flight(), at_b.in_flight());
        let (one_more_a, one_more_b) = (load(at_a, of_a + 1), load(at_b, of_b + 1));
        let lighter = if weights.get(a) == weights.get(b) {
            one_more_b < one_more_a
        } else {
            // `a` was drawn by its weight, so all is well as it is. `b` is taken where it has less
            // to do for its weight even with this request and without one of those that `a` has,
            // or where it is far from as busy or as slow.
            let fewer = of_a > 1 && one_more_b * weight(a) <= load(at_a, of_a - 1) * weight(b);
            let most = weight(a).max(weight(b));
            fewer || MUCH_LESS * one_more_b * most < one_more_a * weight(b)
        };
        Some(if lighter { b } else { a })
    }

    /// An endpoint by its weight, and another one of its place: what each place gets is decided.
    fn two(&self, rng: &mut Rng, weights: &[u32]) -> Option<(usize, Option<usize>)> {
        let a = weighted_at(weights, rng.below(total_weight(weights)))?;
        let place = |i: usize| self.view.members.get(i).and_then(|member| member.place);
        let own = place(a);
        let beside = |(i, weight): (usize, &u32)| match i != a && place(i) == own {
            true => u64::from(*weight),
            false => 0,
        };
        let others = || weights.iter().enumerate().map(beside);
        let mut point = rng.below(others().sum());
        let b = others().position(|weight| {
            let is_it = point < weight;
            point = point.saturating_sub(weight);
            is_it
        });
        Some((a, b))
    }

    /// The first endpoint on the key's way that is open and within the bound.
    fn hashed(&self, hashing: &Hashing, hash: u64, weights: &[u32]) -> Option<usize> {
        let ring = self.entry.ring(hashing.table);
        let weight = |i: usize| weights.get(i).copied().unwrap_or(0);
        let bounded = hashing.load_max_basis_points.and_then(|bound| {
            let (all, total) = (self.in_flight(), total_weight(weights));
            let load = |i: usize| self.entry.endpoints.get(i).map_or(0, |e| e.shared.in_flight());
            ring.find(hash, |i| {
                let own = u64::from(weight(i));
                own > 0 && within_bound(load(i), all, own, total, bound)
            })
        });
        let found = bounded.or_else(|| ring.find(hash, |i| weight(i) > 0));
        // A table has a place for everybody; a key without one would still belong to somebody.
        found.or_else(|| weighted_at(weights, hash.checked_rem(total_weight(weights))?))
    }

    /// Requests in flight to all its endpoints, from all workers.
    pub fn in_flight(&self) -> u64 {
        self.entry.endpoints.iter().map(|e| e.shared.in_flight()).sum()
    }

    /// Whether a session may stay with a candidate: it is well, though it may stand by or pause,
    /// or gets requests all the same.
    pub fn keeps(&mut self, candidate: &EndpointEntry, now: Mono) -> bool {
        self.refresh(now);
        let endpoints = &self.entry.endpoints;
        let at = endpoints.iter().position(|e| Arc::ptr_eq(&e.shared, &candidate.shared));
        let share = at.and_then(|i| self.view.shares.weights.get(i)).copied().unwrap_or(0);
        let well = candidate.endpoint.health == Health::Healthy;
        share > 0 || (well && !candidate.shared.is_ejected(now))
    }

    pub fn candidates(&self) -> &[Rc<LocalEndpoint>] {
        &self.candidates
    }
}

/// Exact far beyond any number of requests.
#[allow(clippy::cast_precision_loss)]
fn float(n: u64) -> f64 {
    n as f64
}

fn was_tried(tried: &[Rc<LocalEndpoint>], c: &LocalEndpoint) -> bool {
    tried.iter().any(|t| t.entry.endpoint.address == c.entry.endpoint.address)
}

// === impl LocalEndpoint ===

impl LocalEndpoint {
    fn new(entry: Arc<EndpointEntry>, pool: Rc<Pool>, pace: Rc<Cell<PeakEwma>>) -> Rc<Self> {
        Rc::new(Self { entry, pool, pace, series: RefCell::default() })
    }

    /// The same endpoint by other connections.
    pub fn through(&self, pool: Rc<Pool>) -> Rc<Self> {
        Self::new(self.entry.clone(), pool, self.pace.clone())
    }

    /// Notes how long an attempt took, and whether it brought an answer.
    pub fn note_pace(&self, took: std::time::Duration, answered: bool, now: Mono) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let mut pace = self.pace.get();
        let at = now.0.saturating_mul(1_000);
        if answered {
            pace.answered(took, at)
        } else {
            pace.failed(took, at)
        }
        self.pace.set(pace);
    }

    fn in_flight(&self) -> u64 {
        self.entry.shared.in_flight()
    }

    /// What so many requests in flight cost.
    fn cost(&self, in_flight: u64, now: Mono) -> f64 {
        self.pace.get().load(in_flight.saturating_sub(1), now.0.saturating_mul(1_000))
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
