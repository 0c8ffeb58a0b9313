// SPDX-License-Identifier: Apache-2.0
//! Answers from a store, for gateways whose rule asks for it (RFC 9111). The phases call [`ask`]
//! before a request goes on: it answers from the store, waits for a fetch that is under way, or
//! makes the request one that fetches; `Fetch::answered` sees the answer before anybody else.
//! Neither routes nor sends: access, limits and header edits are the phases', for stored answers
//! as for others.
//!
//! The key is what the origin is asked: scheme, host and port as the client named them, path and
//! query byte for byte. Under one key answers differ by lane (backend, rewritten target, edits of
//! the rule, and headers that origins are known to answer by without saying so) and by `Vary`. So
//! nobody is given what another rule, another backend or another claim about the host made.

mod conditional;
mod directives;
mod fetch;
mod fill;
mod object;
mod passes;
mod room;
mod sieve;
mod status;
mod store;

use std::cell::RefCell;
use std::fmt::Write as _;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::header::{AGE, AUTHORIZATION, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Response, StatusCode, Uri};
use http_body::Body as _;
use tokio::time::Instant;
use weft_base::clock::Mono;
use weft_model::decide::Authority;
use weft_model::{Cache, Timeouts};

use self::conditional::{ask_whether, is_conditional};
pub(crate) use self::conditional::{is_for_the_origin, unconditional};
use self::directives::Directives;
pub(crate) use self::directives::Directives as Said;
use self::fetch::{Fetch, Mode, Storing};
pub use self::fill::Fill;
pub use self::object::date;
pub(crate) use self::object::varies;
use self::object::{Object, Verdict};
use self::status::Forward;
pub use self::status::Outcome;
pub use self::store::{Counts, Store};
use self::store::{Found, Lead, Turn};
use super::attempt::{self, Call};
use super::body::{Replay, ReplyBody};
use super::plan::Plan;
use super::reply::{Cause, Refusal};
use super::{limits, mirror};
use crate::guards;
use crate::observe::flags::Flag;
use crate::observe::record::{Record, is_grpc};
use crate::overload::Pressure;
use crate::table::Door;
use crate::upstream::pick::LocalBackend;
use crate::upstream::pool::Client;
use crate::worker::{Conn, Worker};

/// Longest URL that is looked up.
const URL_BYTES_MAX: usize = 8 * 1024;
/// How long asking behind a client may take where its rule limits nothing.
const PATIENCE: Duration = Duration::from_secs(15);
/// For so long nobody waits for an origin that fails, or where there was no room.
const FAILING_MS: u64 = 1_000;
/// Nor for so long for what cannot be stored.
const PASS_MS: u64 = 10_000;
/// Fetches that a request waits for before it goes on by itself.
const WAITS_MAX: u32 = 3;
/// How often is looked whether memory is short.
const SHED: Duration = Duration::from_secs(1);
/// What origins make answers of without naming it in `Vary`, besides all that begins as
/// [`FORWARDED`]: whoever sends one of these has answers of his own.
const CLAIMS: &[&str] = &[
    "forwarded",
    "front-end-https",
    "x-url-scheme",
    "x-scheme",
    "x-arr-ssl",
    "x-host",
    "x-original-host",
    "x-original-proto",
    "x-original-uri",
    "x-original-url",
    "x-rewrite-url",
    "x-http-host-override",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
];
const FORWARDED: &str = "x-forwarded";
/// All but this one: it names clients, and every client has another.
const CLIENTS: &str = "x-forwarded-for";

/// A request as its backend would get it.
#[derive(Debug)]
pub(super) struct Asking<'a, 't> {
    pub worker: &'a Rc<Worker>,
    pub conn: &'a Conn,
    pub head: &'a mut Parts,
    pub body: &'a Replay,
    pub authority: &'a str,
    pub scheme: &'static str,
    pub backend: &'a Rc<RefCell<LocalBackend>>,
    pub plan: &'a Plan<'t>,
    pub rule: &'a Arc<Cache>,
    pub url: Arc<str>,
}

/// What a request gets from the store.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // Moved once.
pub(super) enum Given {
    Answer(Response<ReplyBody>),
    /// It goes on, and its answer comes back here.
    Fetch(Box<Fetch>),
    /// Its time is over.
    Refused(Refusal),
}

/// What is stored for a request.
#[allow(clippy::large_enum_variant)] // Moved once.
enum Looked {
    Answer(Response<ReplyBody>),
    /// It goes on for this reason; the stored answer may hold still.
    On(Option<Arc<Object>>, Forward),
}

/// How long a request waits for others' fetches.
struct Waiting {
    began: Instant,
    /// When it goes on by itself, and when its own time is over.
    until: Instant,
    end: Option<Instant>,
    times: u32,
}

/// A rule's cache, and what its answer is stored under.
pub(super) type Ruled<'t> = (&'t Arc<Cache>, Arc<str>);

/// The cache that a request is a matter of: those of gateways, for what is plain HTTP.
pub(super) fn rule<'t>(
    conn: &Conn,
    plan: &Plan<'t>,
    authority: &Authority,
    head: &Parts,
) -> Option<Ruled<'t>> {
    let rule = plan.cache.filter(|rule| rule.object_bytes_max > 0)?;
    let gateway = matches!(conn.door, Door::Gateway(_));
    (gateway && !is_grpc(&head.headers)).then(|| (rule, url(conn.scheme, authority, &head.uri)))
}

/// What an answer is stored under.
pub(super) fn url(scheme: &str, authority: &Authority, uri: &Uri) -> Arc<str> {
    let Authority { host, port } = authority;
    let usual = if scheme == "https" { 443 } else { 80 };
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let mut out = format!("{scheme}://");
    let _ = match host.contains(':') {
        true => write!(out, "[{host}]"),
        false => write!(out, "{host}"),
    };
    if let Some(port) = port.filter(|port| *port != usual) {
        let _ = write!(out, ":{port}");
    }
    out.push_str(path);
    out.into()
}

/// Answers from the store, or says how the request goes on.
pub(super) async fn ask(asking: Asking<'_, '_>, record: &mut Record) -> Given {
    let store = asking.worker.shared.cache.clone();
    if let Some(fetch) = not_ours(&asking) {
        add(&store.counts.bypassed);
        record.cache = Some(Outcome::Bypass);
        return Given::Fetch(Box::new(fetch));
    }
    let said = Directives::of_request(&asking.head.headers);
    let lane = lane(&asking);
    let mut waiting = Waiting::of(&asking);
    let mut lead = None;
    let (kept, forward) = loop {
        let (kept, forward) = match look(&asking, &lane, &said, &mut lead, record) {
            Looked::Answer(response) => return Given::Answer(response),
            Looked::On(kept, forward) => (kept, forward),
        };
        if said.only_if_cached {
            record.cache = Some(Outcome::OnlyIfCached);
            return Given::Answer(only_if_cached());
        }
        if lead.is_some() || !waits(&asking, kept.as_deref(), forward) {
            break (kept, forward);
        }
        let now = asking.worker.clock.now();
        match store.turn(&asking.url, &lane, &asking.head.headers, now) {
            // Whoever had it before may just have stored an answer.
            Turn::Lead(mine) => lead = Some(mine),
            Turn::Wait(flight) if waiting.goes_on() => {
                let Some(_place) = store.place_to_wait() else { break (kept, forward) };
                waiting.times += 1;
                let _ = tokio::time::timeout_at(waiting.until, flight.cancelled()).await;
            }
            Turn::Wait(_) | Turn::Alone => break (kept, forward),
        }
    };
    add(&store.counts.misses);
    let waited = waiting.waited();
    waited.is_some().then(|| add(&store.counts.collapsed));
    record.cache = Some(Outcome::Miss);
    let worker = asking.worker.clone();
    let mode = match asking.head.method == Method::HEAD && kept.is_none() {
        true => Mode::Pass,
        false => Mode::Store(storing(asking, lane, said, kept, lead)),
    };
    let fetch = Fetch { worker, forward, waited, mode };
    match waiting.over() {
        None => Given::Fetch(Box::new(fetch)),
        Some(refusal) => {
            fetch.answered(Err(refusal), record).map_or_else(Given::Refused, Given::Answer)
        }
    }
}

/// What is stored for a request, and whether it may have that.
fn look(
    asking: &Asking<'_, '_>,
    lane: &Arc<str>,
    said: &Directives,
    lead: &mut Option<Lead>,
    record: &mut Record,
) -> Looked {
    let (store, now) = (&asking.worker.shared.cache, asking.worker.clock.now());
    let object = match store.find(&asking.url, lane, &asking.head.headers) {
        Found::Nothing { others: false } => return Looked::On(None, Forward::UriMiss),
        Found::Nothing { others: true } => return Looked::On(None, Forward::VaryMiss),
        Found::Object(object) => object,
    };
    let outcome = match object.verdict(said, now) {
        Verdict::Fresh => Outcome::Hit,
        Verdict::Stale => Outcome::Stale,
        Verdict::Refresh => {
            refresh(asking, lane, said, &object, lead.take());
            Outcome::Stale
        }
        Verdict::Validate => {
            let fresh = object.times.ttl_s(now) > 0 && !object.said.no_cache;
            let forward = if fresh { Forward::Request } else { Forward::Stale };
            return Looked::On(Some(object), forward);
        }
    };
    Looked::Answer(give(asking, &object, outcome, record))
}

/// What the store has no part in, or only to forget.
fn not_ours(asking: &Asking<'_, '_>) -> Option<Fetch> {
    let Asking { worker, head, body, url, .. } = asking;
    let fetch =
        |forward, mode| Some(Fetch { worker: (*worker).clone(), forward, waited: None, mode });
    match head.method {
        Method::GET | Method::HEAD => {}
        Method::OPTIONS | Method::TRACE => return fetch(Forward::Method, Mode::Pass),
        _ => return fetch(Forward::Method, Mode::Change(url.clone())),
    }
    // A body would be part of the question and is not part of the key.
    let asks = !body.is_empty() && guards::on("cache-body");
    let odd = asks || url.len() > URL_BYTES_MAX || is_for_the_origin(&head.headers);
    let unwanted = Directives::of_request(&head.headers).no_store;
    if odd || unwanted { fetch(Forward::Bypass, Mode::Pass) } else { None }
}

/// Whether one fetch may serve several requests.
fn waits(asking: &Asking<'_, '_>, kept: Option<&Object>, forward: Forward) -> bool {
    let reusable = |object: &Object| !object.said.no_cache && object.times.lifetime_s > 0;
    let headers = &asking.head.headers;
    let whole = kept.is_some() || !is_conditional(headers);
    asking.head.method == Method::GET
        && for_all(headers, kept)
        && asking.rule.wait_ms > 0
        && forward != Forward::Request
        && whole
        && kept.is_none_or(reusable)
}

/// Whether what is answered may be for others: those with credentials have answers of their own,
/// unless their origin says otherwise.
fn for_all(asked: &HeaderMap, kept: Option<&Object>) -> bool {
    !asked.contains_key(AUTHORIZATION) || kept.is_some_and(|object| object.said.is_shared())
}

/// Makes the request one that fetches.
fn storing(
    asking: Asking<'_, '_>,
    lane: Arc<str>,
    said: Directives,
    kept: Option<Arc<Object>>,
    lead: Option<Lead>,
) -> Storing {
    let Asking { worker, head, rule, url, .. } = asking;
    let asked = head.headers.clone();
    let validates = kept.as_ref().is_some_and(|object| ask_whether(&mut head.headers, object));
    Storing {
        rule: rule.clone(),
        lane,
        ticket: worker.shared.cache.ticket(&url),
        lead,
        asked,
        said,
        head: head.method == Method::HEAD,
        began: worker.clock.now(),
        kept,
        validates,
    }
}

/// What must be the same besides the URL.
fn lane(asking: &Asking<'_, '_>) -> Arc<str> {
    let Asking { head, authority, backend, plan, .. } = asking;
    let path = head.uri.path_and_query().map_or("/", |p| p.as_str());
    let mut out = format!("{} {authority} {path}", backend.borrow().entry.name);
    for edit in &plan.request_edits {
        let _ = write!(out, " {edit:?}");
    }
    for (name, value) in claims(&head.headers) {
        let _ = write!(out, " {name}: {value:?}");
    }
    out.into()
}

/// What a request says of where it was for, in one order.
fn claims(headers: &HeaderMap) -> Vec<(&str, &HeaderValue)> {
    let named = headers.iter().map(|(name, value)| (name.as_str(), value));
    let is_one =
        |name: &str| CLAIMS.contains(&name) || (name.starts_with(FORWARDED) && name != CLIENTS);
    let mut claims: Vec<_> = named.filter(|(name, _)| is_one(name)).collect();
    // Stable: the lines of one name stay as they came.
    claims.sort_by_key(|(name, _)| *name);
    claims
}

/// What limits a request's time: its rule, then its backend.
fn timeouts(asking: &Asking<'_, '_>) -> Timeouts {
    let mut timeouts = asking.plan.timeouts.clone();
    if let Some(protection) = &asking.backend.borrow().entry.backend.policy.protection {
        timeouts.fill(&protection.timeouts);
    }
    timeouts
}

/// Whether the backend's own limits allow what is asked for behind a client.
fn is_admitted(asking: &Asking<'_, '_>) -> bool {
    let entry = asking.backend.borrow().entry.clone();
    let Some(protection) = entry.backend.policy.protection.as_deref() else { return true };
    let own: Vec<_> = protection.rate_limits.iter().collect();
    limits::admit(asking.worker, asking.conn, &asking.head.headers, &own).is_ok()
}

/// The client's answer from a stored one.
fn give(
    asking: &Asking<'_, '_>,
    object: &Object,
    outcome: Outcome,
    record: &mut Record,
) -> Response<ReplyBody> {
    let head = asking.head.method == Method::HEAD;
    let counts = &asking.worker.shared.cache.counts;
    add(if outcome == Outcome::Hit { &counts.hits } else { &counts.stale });
    record.cache = Some(outcome);
    record.flags.add(Flag::RFCF);
    let now = asking.worker.clock.now();
    let mut response = given(object, &asking.head.headers, head, now);
    status::hit(response.headers_mut(), object.times.ttl_s(now), None);
    response
}

fn given(object: &Object, asked: &HeaderMap, head: bool, now: Mono) -> Response<ReplyBody> {
    let part = conditional::part(asked, head, object);
    let mut response = conditional::answer(object, &part, head);
    response.headers_mut().insert(AGE, HeaderValue::from(object.times.age_s(now)));
    response
}

/// RFC 9111 §5.2.1.7.
fn only_if_cached() -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::empty());
    *response.status_mut() = StatusCode::GATEWAY_TIMEOUT;
    status::only_if_cached(response.headers_mut());
    response
}

/// Asks the origin while a client has its stale answer; one at a time for each answer.
fn refresh(
    asking: &Asking<'_, '_>,
    lane: &Arc<str>,
    said: &Directives,
    object: &Arc<Object>,
    lead: Option<Lead>,
) {
    if !for_all(&asking.head.headers, Some(object)) {
        return;
    }
    let store = &asking.worker.shared.cache;
    let turn = || store.turn(&asking.url, lane, &asking.head.headers, asking.worker.clock.now());
    let lead = lead.or_else(|| match turn() {
        Turn::Lead(lead) => Some(lead),
        Turn::Wait(_) | Turn::Alone => None,
    });
    let (Some(lead), Some(place)) = (lead, store.place_to_refresh()) else { return };
    if !is_admitted(asking) {
        return;
    }
    let mut head = mirror::copied(asking.head);
    head.method = Method::GET;
    unconditional(&mut head.headers);
    let (kept, url) = (Some(object.clone()), asking.url.clone());
    let copy = Asking { head: &mut head, url, ..*asking };
    let storing = storing(copy, lane.clone(), said.clone(), kept, Some(lead));
    let mode = Mode::Store(storing);
    let worker = asking.worker.clone();
    let fetch = Fetch { worker: worker.clone(), forward: Forward::Stale, waited: None, mode };
    let (timeouts, retry) = (timeouts(asking), asking.plan.retry.clone());
    let (backend, scheme) = (asking.backend.clone(), asking.scheme);
    let authority = asking.authority.into();
    let client = Client::Past(Box::new((asking.conn.remote, asking.conn.dialled())));
    let tasks = worker.conns.clone();
    tasks.spawn_local("cache refresh", async move {
        let _place = place;
        let version = head.version;
        let call = Call {
            worker: &worker,
            backend,
            head,
            body: Replay::default(),
            authority,
            scheme,
            version,
            timeouts: &timeouts,
            retry: &retry,
            interim: None,
            pinned: None,
            client,
        };
        let most = timeouts.request_ms.filter(|ms| *ms > 0);
        let exchange = async {
            let Some(response) = attempt::once(&call, false).await else { return };
            let Ok(response) = fetch.came(Ok(response)).0 else { return };
            let mut body = std::pin::pin!(response.into_body());
            while let Some(Ok(_)) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {}
        };
        let limit = most.map_or(PATIENCE, Duration::from_millis);
        if tokio::time::timeout(limit, exchange).await.is_err() {
            tracing::debug!("a stale answer's origin took longer than {} ms", limit.as_millis());
        }
    });
}

/// Gives stored answers up while memory is short, a quarter each time.
pub async fn watch(store: Arc<Store>, pressure: Arc<Pressure>) {
    loop {
        tokio::time::sleep(SHED).await;
        if pressure.is_high() {
            store.shed();
        }
    }
}

// === impl Waiting ===

impl Waiting {
    fn of(asking: &Asking<'_, '_>) -> Self {
        let began = Instant::now();
        let limit = timeouts(asking).request_ms.filter(|ms| *ms > 0);
        let end = limit.map(|ms| began + Duration::from_millis(ms));
        let until = began + Duration::from_millis(asking.rule.wait_ms);
        let until = end.map_or(until, |end| end.min(until));
        Self { began, until, end, times: 0 }
    }

    fn goes_on(&self) -> bool {
        self.times < WAITS_MAX && Instant::now() < self.until
    }

    fn waited(&self) -> Option<Duration> {
        (self.times > 0).then(|| self.began.elapsed())
    }

    /// Why it goes no further: all its time went into waiting.
    fn over(&self) -> Option<Refusal> {
        let end = self.end.filter(|end| self.times > 0 && *end <= Instant::now())?;
        let ms = end.duration_since(self.began).as_millis();
        let why = format!("another request asks for the same, and had no answer within {ms} ms");
        Some(Refusal::new(Cause::RequestTimeout, why))
    }
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests;
