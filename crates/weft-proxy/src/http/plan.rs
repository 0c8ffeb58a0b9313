// SPDX-License-Identifier: Apache-2.0
//! What a rule asks to be done to a request and its answer, collected before anything is. Called
//! by the phases; does nothing itself.

use std::sync::Arc;

use http::Response;
use weft_model::decide::{Found, total_weight, weighted_at};
use weft_model::{
    Access, Cache, Cors, Fault, Filter, HeaderEdit, Match, Mirror, RateLimit, Retry, Rewrite,
    Timeouts, WeightedBackend,
};

use super::body::ReplyBody;
use super::headers;
use super::reply::{Cause, Refusal};
use super::session::Kept;
use crate::table::Door;
use crate::worker::Worker;

/// What a rule asks to be done, collected before the request is sent.
#[derive(Debug, Default)]
pub(super) struct Plan<'t> {
    pub(super) request_edits: Vec<&'t HeaderEdit>,
    pub(super) response_edits: Vec<&'t HeaderEdit>,
    pub(super) rewrite: Option<&'t Rewrite>,
    pub(super) fault: Option<&'t Fault>,
    pub(super) mirrors: Vec<&'t Mirror>,
    pub(super) cors: Option<&'t Cors>,
    pub(super) limits: Vec<&'t Arc<RateLimit>>,
    pub(super) body_bytes_max: Option<u64>,
    pub(super) access: Vec<&'t Access>,
    /// A browser's question is answered before anybody asks who it is.
    pub(super) cors_first: bool,
    pub(super) cache: Option<&'t Arc<Cache>>,
    /// For what a request may leave HTTP.
    pub(super) upgrades: Option<&'t [Arc<str>]>,
    pub(super) kept: Option<Kept<'t>>,
    pub(super) matched: Option<&'t Match>,
    pub(super) timeouts: Timeouts,
    pub(super) retry: Retry,
}

// === impl Plan ===

impl<'t> Plan<'t> {
    /// What is done when no rule says anything.
    pub(super) fn at(door: &Door) -> Self {
        let mut plan = Self::default();
        if door.is_inbound() {
            // The client (or its sidecar) judges, and it has other instances to go to.
            plan.retry = Retry { attempts: 0, on_reset: false, ..Retry::default() };
        }
        plan
    }

    /// What a rule says of everything that it takes.
    pub(super) fn take(&mut self, found: &Found<'t>) {
        self.matched = found.matched;
        self.timeouts = found.rule.timeouts.clone();
        self.retry = found.rule.retry.clone();
        self.filters(&found.rule.filters);
    }

    /// The least of several limits counts.
    pub(super) fn narrow(&mut self, bytes: u64) {
        self.body_bytes_max = Some(self.body_bytes_max.map_or(bytes, |before| before.min(bytes)));
    }

    pub(super) fn edit_response(&self, response: &mut Response<ReplyBody>) {
        for edit in &self.response_edits {
            headers::edit(response.headers_mut(), edit);
        }
    }

    /// What the proxy answers itself has the headers, too, that its rule writes: those that a
    /// client must not miss when something is wrong.
    pub(super) fn said(&self, mut refusal: Refusal) -> Refusal {
        refusal.edits = self.response_edits.iter().map(|edit| (*edit).clone()).collect();
        refusal
    }

    pub(super) fn filters(&mut self, filters: &'t [Filter]) {
        for filter in filters {
            match filter {
                Filter::RequestHeaders(edit) => self.request_edits.push(edit),
                Filter::ResponseHeaders(edit) => self.response_edits.push(edit),
                Filter::Rewrite(rewrite) => self.rewrite = Some(rewrite),
                Filter::Fault(fault) => self.fault = Some(fault),
                Filter::Mirror(mirror) => self.mirrors.push(mirror),
                Filter::Cors(cors) => self.cors = Some(cors),
                Filter::RateLimit(limit) => self.limits.push(limit),
                Filter::BodyLimit(bytes) => self.narrow(*bytes),
                Filter::Access(access) => {
                    self.cors_first |= self.access.is_empty() && self.cors.is_some();
                    self.access.push(access);
                }
                // A gateway's stands before its routes' own.
                Filter::Cache(cache) => self.cache = Some(cache),
                Filter::Upgrades(among) => self.upgrades = Some(among),
            }
        }
    }
}

/// The backend whose turn it is, by weight.
pub(super) fn share<'t>(
    worker: &Worker,
    backends: &'t [WeightedBackend],
) -> Result<&'t WeightedBackend, Refusal> {
    if let [only] = backends
        && only.weight > 0
    {
        return Ok(only);
    }
    let weights: Vec<u32> = backends.iter().map(|b| b.weight).collect();
    let point = worker.rng.borrow_mut().below(total_weight(&weights));
    weighted_at(&weights, point)
        .and_then(|i| backends.get(i))
        .ok_or_else(|| Refusal::new(Cause::Misconfigured, "all its backends have weight 0"))
}
