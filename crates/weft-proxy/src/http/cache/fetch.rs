// SPDX-License-Identifier: Apache-2.0
//! What becomes of an answer that was fetched: stored while it passes, taken as news of a stored
//! one, or a reason to forget some. Part of the cache; the phases hand it what the origin said.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::{
    CONTENT_LENGTH, CONTENT_LOCATION, DATE, ETAG, HeaderMap, LAST_MODIFIED, LOCATION,
};
use http::{Response, StatusCode, Uri};
use http_body::Body as _;
use weft_base::clock::Mono;
use weft_model::decide::Authority;
use weft_model::{Cache, Timeouts};

use super::conditional::is_conditional;
use super::directives::Directives;
use super::fill::Fill;
use super::object::{Exchange, Object, is_its_own, own_headers, storable, varies};
use super::status::{self, Details, Forward, Outcome};
use super::store::{Lead, Store, Ticket};
use super::{FAILING_MS, PASS_MS, add, given, only_if_cached, url};
use crate::http::body::ReplyBody;
use crate::http::reply::Refusal;
use crate::http::serve;
use crate::observe::flags::Flag;
use crate::observe::record::Record;
use crate::worker::Worker;

/// A request that goes on.
#[derive(Debug)]
pub struct Fetch {
    pub worker: Rc<Worker>,
    pub forward: Forward,
    /// How long it waited for another's.
    pub waited: Option<Duration>,
    pub mode: Mode,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // Nearly all are the large one.
pub enum Mode {
    /// Its answer is not stored.
    Pass,
    /// It may change what is stored under its URL.
    Change(Arc<str>),
    Store(Storing),
}

/// What is known of a fetch whose answer may be stored.
#[derive(Debug)]
pub struct Storing {
    pub rule: Arc<Cache>,
    pub lane: Arc<str>,
    pub ticket: Ticket,
    pub lead: Option<Lead>,
    /// What its client sent, without what was added to ask whether a stored answer holds.
    pub asked: HeaderMap,
    pub said: Directives,
    pub head: bool,
    pub began: Mono,
    /// The answer that is there already, and whether the origin is asked about that one.
    pub kept: Option<Arc<Object>>,
    pub validates: bool,
}

/// What a fetch came to: the answer, and what the record says of it.
type Came = (Result<Response<ReplyBody>, Refusal>, Outcome);

// === impl Fetch ===

impl Fetch {
    /// Stores what may be stored, and says what the client gets.
    ///
    /// # Errors
    /// The refusal that it was handed, when nothing stored may stand in for it.
    pub fn answered(
        self,
        sent: Result<Response<ReplyBody>, Refusal>,
        record: &mut Record,
    ) -> Result<Response<ReplyBody>, Refusal> {
        let usual = record.cache.unwrap_or(Outcome::Miss);
        let (result, outcome) = self.came(sent);
        let outcome = if outcome == Outcome::Miss { usual } else { outcome };
        record.cache = Some(outcome);
        if outcome.is_stored() {
            record.flags.add(Flag::RFCF);
        }
        result
    }

    /// What its request may take besides the time that it waited.
    pub fn shorten(&self, timeouts: &mut Timeouts) {
        let waited = self.waited.map_or(0, |waited| waited.as_millis());
        let waited = u64::try_from(waited).unwrap_or(u64::MAX);
        // 0 would be no limit.
        let limit = timeouts.request_ms.as_mut().filter(|ms| **ms > 0);
        limit.into_iter().for_each(|ms| *ms = ms.saturating_sub(waited).max(1));
    }

    pub fn came(self, sent: Result<Response<ReplyBody>, Refusal>) -> Came {
        let Self { worker, forward, waited, mode } = self;
        let details = Details { collapsed: waited.is_some(), ..Details::default() };
        let told = |mut response: Response<ReplyBody>| {
            status::forwarded(response.headers_mut(), forward, details);
            response
        };
        match mode {
            Mode::Pass => (sent.map(told), Outcome::Miss),
            Mode::Change(url) => {
                if let Ok(response) = &sent {
                    changed(&worker.shared.cache, &url, response);
                }
                (sent.map(told), Outcome::Miss)
            }
            Mode::Store(storing) => storing.came(&worker, sent, (forward, details)),
        }
    }
}

/// RFC 9111 §4.4: a change that went well makes void what is stored of it, and of what the answer
/// names at the same origin.
fn changed(store: &Store, url: &str, response: &Response<ReplyBody>) {
    if !response.status().is_success() && !response.status().is_redirection() {
        return;
    }
    store.invalidate(url);
    let named = [LOCATION, CONTENT_LOCATION];
    let named = named.iter().filter_map(|name| response.headers().get(name)?.to_str().ok());
    named.filter_map(|text| same_origin(url, text)).for_each(|other| {
        store.invalidate(&other);
    });
}

/// What a reference means that was given for a URL, if it is of the same origin.
pub fn same_origin(at: &str, reference: &str) -> Option<Arc<str>> {
    let at: Uri = at.parse().ok()?;
    let reference = reference.split('#').next().unwrap_or_default();
    let named: Uri = reference.parse().ok().filter(|_| !reference.starts_with("//"))?;
    let (scheme, authority) = (at.scheme_str()?, at.authority()?.as_str());
    let own = Authority::parse(authority)?;
    let base = url(scheme, &own, &named);
    match (named.scheme_str(), named.authority()) {
        (None, None) if reference.starts_with('/') => Some(base),
        (Some(other), Some(whose)) if other.eq_ignore_ascii_case(scheme) => {
            let theirs = url(scheme, &Authority::parse(whose.as_str())?, &named);
            (theirs == base).then_some(theirs)
        }
        _ => None,
    }
}

// === impl Storing ===

impl Storing {
    fn came(
        self,
        worker: &Rc<Worker>,
        sent: Result<Response<ReplyBody>, Refusal>,
        (forward, details): (Forward, Details),
    ) -> Came {
        let store = &worker.shared.cache;
        let now = worker.clock.now();
        let status = match &sent {
            Ok(response) => response.status().as_u16(),
            Err(refusal) => refusal.status.unwrap_or(refusal.cause.row().status),
        };
        let details = Details { status: Some(status), ..details };
        let failed = matches!(status, 500 | 502 | 503 | 504);
        if failed
            && let Some(kept) = self.kept.as_ref()
            && kept.instead_of_error(&self.said, now)
        {
            add(&store.counts.stale);
            let mut response = given(kept, &self.asked, self.head, now);
            let (ttl_s, why) = (Some(kept.times.ttl_s(now)), Some("stale-if-error"));
            status::forwarded(response.headers_mut(), forward, Details { why, ttl_s, ..details });
            return (Ok(response), Outcome::InsteadOfError);
        }
        let mut response = match sent {
            Ok(response) => response,
            Err(refusal) => {
                self.nobody_waits(store, now, FAILING_MS);
                return (Err(refusal), Outcome::Miss);
            }
        };
        // RFC 9110 §6.6.1: whoever stores it must know how old it is.
        if !response.headers().contains_key(DATE)
            && let Some(date) = serve::date(worker)
        {
            response.headers_mut().insert(DATE, date);
        }
        let wall_ms = worker.clock.wall_ms();
        let exchange = Exchange { asked: self.began, came: now, wall_ms };
        if self.validates && status == 304 {
            return self.validated(worker, &response, exchange, (forward, details));
        }
        if self.head {
            self.looked_at(store, &response, exchange);
            status::forwarded(response.headers_mut(), forward, details);
            return (Ok(response), Outcome::Miss);
        }
        let details = self.keep(worker, &mut response, exchange, details);
        status::forwarded(response.headers_mut(), forward, details);
        (Ok(response), Outcome::Miss)
    }

    /// The origin says that the stored answer holds (§4.3.4).
    fn validated(
        self,
        worker: &Worker,
        response: &Response<ReplyBody>,
        exchange: Exchange,
        (forward, details): (Forward, Details),
    ) -> Came {
        let store = &worker.shared.cache;
        let Some(kept) = &self.kept else { return (Ok(only_if_cached()), Outcome::Miss) };
        let newer = kept.freshened(response.headers(), &self.asked, &self.rule, exchange);
        let (object, stored) = match newer.map(Arc::new) {
            Ok(newer) => {
                let stored = store.put(&self.ticket, newer.clone());
                (newer, stored)
            }
            Err(why) => {
                if !is_its_own(Some(why), &self.asked, response.headers()) {
                    store.forget(&self.ticket.url, kept);
                }
                (kept.clone(), false)
            }
        };
        add(&store.counts.revalidated);
        let mut response = given(&object, &self.asked, self.head, exchange.came);
        let ttl_s = Some(object.times.ttl_s(exchange.came));
        let details = Details { stored, ttl_s, ..details };
        status::forwarded(response.headers_mut(), forward, details);
        (Ok(response), Outcome::Revalidated)
    }

    /// An answer to HEAD says whether the stored one to GET still holds (§4.3.5).
    fn looked_at(&self, store: &Store, response: &Response<ReplyBody>, exchange: Exchange) {
        let Some(kept) = self.kept.as_ref().filter(|_| response.status() == StatusCode::OK) else {
            return;
        };
        let (new, old) = (response.headers(), &kept.headers);
        let length = kept.body.len().to_string();
        let same = [ETAG, LAST_MODIFIED].iter().all(|name| new.get(name) == old.get(name))
            && new.get(CONTENT_LENGTH).is_none_or(|n| n.as_bytes() == length.as_bytes());
        let newer = kept.freshened(new, &self.asked, &self.rule, exchange);
        let why = newer.as_ref().err().copied();
        match newer.map(Arc::new) {
            Ok(newer) if same => {
                store.put(&self.ticket, newer);
            }
            _ if is_its_own(why, &self.asked, new) => {}
            _ => store.forget(&self.ticket.url, kept),
        }
    }

    /// Copies the answer into the store while it passes, if it may be stored.
    fn keep(
        self,
        worker: &Worker,
        response: &mut Response<ReplyBody>,
        exchange: Exchange,
        details: Details,
    ) -> Details {
        let store = &worker.shared.cache;
        let status = response.status().as_u16();
        match self.object(worker, response, exchange) {
            Ok((object, length)) => {
                let ttl_s = Some(object.times.ttl_s(exchange.came));
                let limits = (length, self.rule.object_bytes_max.min(Cache::OBJECT_BYTES_MAX));
                let clock = worker.clock.clone();
                let mut fill = Fill::new(object, limits, self.ticket, self.lead, clock);
                if response.body().is_end_stream() {
                    fill.end();
                } else {
                    if let Some(watch) = fill.watch() {
                        worker.conns.spawn_local("cache lead", watch);
                    }
                    response.body_mut().copy_to(fill);
                }
                Details { stored: true, ttl_s, ..details }
            }
            Err(why) => {
                // Others may be answered with what can be stored, or is.
                if is_its_own(Some(why), &self.asked, response.headers()) {
                    return Details { why: Some(why), ..details };
                }
                let ms = if status >= 500 { FAILING_MS } else { PASS_MS };
                self.nobody_waits(store, exchange.came, ms);
                // What the origin has now is not what was stored.
                if let Some(kept) = self.kept.as_ref().filter(|_| status < 500) {
                    store.forget(&self.ticket.url, kept);
                }
                Details { why: Some(why), ..details }
            }
        }
    }

    /// The answer as it would be stored, without its body, and the body's length.
    fn object(
        &self,
        worker: &Worker,
        response: &Response<ReplyBody>,
        exchange: Exchange,
    ) -> Result<(Object, Option<u64>), &'static str> {
        let (status, headers) = (response.status(), response.headers());
        let (said, times) = storable(&self.asked, status, headers, &self.rule, exchange)?;
        // What was asked with a condition or for a part may be an answer to that.
        if !self.validates && status != StatusCode::OK && is_conditional(&self.asked) {
            return Err("conditional");
        }
        if worker.shared.pressure.is_high() {
            return Err("memory-is-short");
        }
        let length = response.body().size_hint().exact();
        if length.is_some_and(|length| length > self.rule.object_bytes_max) {
            return Err("too-large");
        }
        let vary = varies(headers, &self.asked)?;
        let headers = own_headers(headers)?;
        let (body, lane) = (Default::default(), self.lane.clone());
        Ok((Object { status, headers, body, said, times, vary, lane }, length))
    }

    /// Those who waited for this go on by themselves, and who comes next does not wait.
    fn nobody_waits(&self, store: &Store, now: Mono, ms: u64) {
        if self.lead.is_some() {
            store.pass(&self.ticket.url, &self.lane, now, ms);
        }
    }
}
