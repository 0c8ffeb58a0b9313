// SPDX-License-Identifier: Apache-2.0
//! The attempt loop: pick, send, judge, and again while verdict and budget allow. Called by the
//! phases once the backend is known; knows no route and no filter.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use http::header::{HOST, HeaderMap, HeaderName, HeaderValue, SET_COOKIE, UPGRADE};
use http::request::Parts;
use http::{Request, Response, Uri, Version};
use tokio::time::Instant;
use weft_base::clock::moment;
use weft_base::limits::PENDING_MS_MAX;
use weft_model::decide::{Failure, Outcome, is_idempotent, outcome_of_grpc, outcome_of_status};
use weft_model::{LbPolicy, Retry, Timeouts};

use super::body::{AttemptBody, BodyLimits, Due, Replay, ReplyBody};
use super::headers::{self, FLAGS, NOT_FORWARDED};
use super::interim::Interim;
use super::made::{self, Text};
use super::present::Present;
use super::reply::{Cause, Refusal};
use super::shed::unless_shed;
use crate::h1::encode::Instead;
use crate::observe::record::{Record, grpc_status};
use crate::table::BackendEntry;
use crate::tcp::half_open;
use crate::upstream::ask::{Key, pause_ms};
use crate::upstream::breaker::Grant;
use crate::upstream::connect::ConnectError;
use crate::upstream::pick::{Ask, LocalBackend, LocalEndpoint};
use crate::upstream::pool::{Answered, Client, Facts, How, InFlight, Lease, SendError, Wire};
use crate::worker::Worker;

mod again;
mod gated;
mod late;
mod on;
mod wire;

use again::{again, wait};
pub use late::whole;
use on::On;

/// How long a request waits for one of its backend's connections.
const PATIENCE: Duration = Duration::from_millis(PENDING_MS_MAX);

/// One request on its way to one backend.
#[derive(Debug)]
pub struct Call<'a> {
    pub worker: &'a Rc<Worker>,
    pub backend: Rc<RefCell<LocalBackend>>,
    pub head: Parts,
    pub body: Replay,
    /// `host[:port]` that the upstream sees.
    pub authority: Text,
    pub scheme: &'static str,
    /// HTTP version of the client, for ports that do not declare theirs
    /// ([`follows_client`](crate::ProxyConfig::follows_client)) and for gRPC.
    pub version: Version,
    pub timeouts: &'a Timeouts,
    pub retry: &'a Retry,
    /// Where answers before the answer go.
    pub interim: Option<Rc<Interim>>,
    /// The endpoint that the client's session belongs to; it is tried first.
    pub pinned: Option<Rc<LocalEndpoint>>,
    pub client: Client<'a>,
}

/// When a time is over, and how long it was.
type Until = Option<(Instant, Duration)>;

/// How one attempt ended.
#[allow(clippy::large_enum_variant)] // Most are answers, and it is moved once.
enum Ended {
    Answer(Response<Answered>, Lease),
    Failed(Failure, Cause, String),
    /// Nothing to judge: the client is gone or its body broke.
    Over(Refusal),
}

/// Sends a request until there is an answer to pass on.
///
/// # Errors
/// The refusal to answer with when there is none.
pub async fn forward(call: &Call<'_>, record: &mut Record) -> Result<Response<ReplyBody>, Refusal> {
    let key = {
        let (lb, client) = (&call.backend.borrow().entry.backend.policy.lb, record.client());
        Key::of(lb, &call.head.headers, &call.head.uri, client, &mut call.worker.rng.borrow_mut())
    };
    let mut response = attempts(call, key.hash, record).await?;
    if let Some(cookie) = key.given {
        response.headers_mut().append(SET_COOKIE, cookie);
    }
    Ok(response)
}

async fn attempts(
    call: &Call<'_>,
    hash: Option<u64>,
    record: &mut Record,
) -> Result<Response<ReplyBody>, Refusal> {
    let (allowed, patience) = (limit(call.timeouts.whole_ms()), patience(call, record));
    let shortest = allowed.into_iter().chain(patience).min();
    let mut began = moment();
    let deadline = shortest.map(|d| (began + d, d));
    let own = patience.is_some() && patience == shortest;
    let (mut tried, mut retrying) = (Vec::<Rc<LocalEndpoint>>::new(), None);
    note_first(call, began);
    loop {
        let entered = gated::enter(call, began, deadline).await;
        let (gated, at) = entered.map_err(|why| overdue(why, own))?;
        began = at;
        let picked = pick(call, hash, &tried, began).ok_or_else(|| no_instance(call))?;
        record.endpoint = Some(picked.clone());
        record.backend = Some(call.backend.borrow().entry.clone());
        record.attempts += 1;
        let within = |ms| limit(ms).map(|d| (began + d, d));
        let whole = earlier(deadline, within(call.timeouts.backend_request_ms));
        // An attempt's own time ends with the beginning of its answer, which may be a long one.
        let until = earlier(whole, within(call.retry.per_try_timeout_ms));
        let kind = (record.is_grpc, record.attempts == 1);
        let ended = attempt(call, &picked, (began, until, whole), kind, &mut record.upstream).await;
        let now = moment();
        gated.over(&ended, now);
        let took = now.saturating_duration_since(began);
        record.upstream_ms = Some(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        note(call, &picked, &ended, (now, took), record);
        let (failure, answer, refusal) = match ended {
            Ended::Over(why) => return Err(why),
            Ended::Answer(response, lease) => match judged(&response, &picked) {
                None => return Ok(pass_on(call, response, lease, whole)),
                Some((Failure::NotSent, why)) => {
                    (Failure::NotSent, None, Refusal::new(Cause::ConnectFailed, why))
                }
                Some((failure, why)) => {
                    (failure, Some((response, lease)), Refusal::new(Cause::Reset, why))
                }
            },
            Ended::Failed(failure, cause, why) => (failure, None, Refusal::new(cause, why)),
        };
        record.last_cause = Some(refusal.detail.clone());
        if deadline.is_some_and(|(at, _)| Instant::now() >= at) {
            return Err(overdue(refusal.detail, own));
        }
        tried.push(picked);
        // The one that just ended has no part in whether there may be another.
        drop(retrying.take());
        let wait = match again(call, failure, record.attempts) {
            Ok(counted) => {
                retrying = Some(counted);
                wait(call, failure, answer.as_ref().map(|(r, _)| r), &tried, deadline)
            }
            Err(why) => Err(why),
        };
        let wait = match wait {
            Ok(wait) => wait,
            Err(why) => return stop(call, answer, refusal, why, record, whole),
        };
        drop(answer);
        call.worker.metrics.cells.retries.add(1);
        if let Some(at) = wait {
            tokio::time::sleep_until(at).await;
        }
        began = Instant::now();
    }
}

/// Sends a request once and judges nothing: the copy of one that somebody else answers.
pub async fn once(call: &Call<'_>, grpc: bool) -> Option<Response<ReplyBody>> {
    let now = Instant::now();
    let picked = pick(call, None, &[], now)?;
    match attempt(call, &picked, (now, None, None), (grpc, true), &mut None).await {
        Ended::Answer(response, lease) => Some(pass_on(call, response, lease, None)),
        Ended::Failed(_, _, why) => {
            tracing::debug!(%why, "a mirrored request failed");
            None
        }
        Ended::Over(refusal) => {
            tracing::debug!(why = %refusal.detail, "a mirrored request failed");
            None
        }
    }
}

/// A first attempt earns its backend retries.
fn note_first(call: &Call<'_>, now: Instant) {
    let backend = call.backend.borrow();
    backend.entry.budget.request(call.worker.id, call.worker.clock.at(now));
}

/// How long a gRPC client itself waits; longer than a year is for ever.
fn patience(call: &Call<'_>, record: &Record) -> Option<Duration> {
    let named = record.is_grpc.then(|| headers::grpc_timeout(&call.head.headers)).flatten();
    named.filter(|d| *d < Duration::from_secs(86_400 * 365))
}

/// The request's deadline came, which may be its client's `own`.
fn overdue(why: String, own: bool) -> Refusal {
    let whose = if own { " (grpc-timeout of its client)" } else { "" };
    Refusal::new(Cause::RequestTimeout, why + whose)
}

fn pick(
    call: &Call<'_>,
    hash: Option<u64>,
    tried: &[Rc<LocalEndpoint>],
    now: Instant,
) -> Option<Rc<LocalEndpoint>> {
    // Where a rule says so those that were tried are no worse than others.
    let tried = if call.retry.tried_too { &[] } else { tried };
    let picked = choose(call, hash, tried, now)?;
    let version = call.backend.borrow().entry.backend.policy.proxy_protocol;
    Some(match version {
        None => picked,
        Some(version) => call.client.introduced(picked, version),
    })
}

fn choose(
    call: &Call<'_>,
    hash: Option<u64>,
    tried: &[Rc<LocalEndpoint>],
    now: Instant,
) -> Option<Rc<LocalEndpoint>> {
    let mut backend = call.backend.borrow_mut();
    let (mut rng, now) = (call.worker.rng.borrow_mut(), call.worker.clock.at(now));
    if tried.is_empty() && call.pinned.is_some() {
        return call.pinned.clone();
    }
    let picked = backend.pick(Ask { hash, tried }, &mut rng, now)?;
    if !picked.pool.is_doubted() {
        return Some(picked);
    }
    let mut avoided = tried.to_vec();
    avoided.push(picked.clone());
    let other = backend.has_other(&avoided, now);
    let other = other.then(|| backend.pick(Ask { hash, tried: &avoided }, &mut rng, now));
    // Nobody else: then it is asked, and waited for.
    Some(other.flatten().unwrap_or(picked))
}

async fn attempt(
    call: &Call<'_>,
    picked: &Rc<LocalEndpoint>,
    (began, until, whole): (Instant, Until, Until),
    (grpc, first): (bool, bool),
    noted: &mut Facts,
) -> Ended {
    let on = On::new(noted);
    let entry = call.backend.borrow().entry.clone();
    let (policy, protocol) = (&entry.backend.policy, entry.protocol);
    let transport = picked.entry.endpoint.transport;
    let said = policy.connections.as_ref().and_then(|c| c.speaks);
    let (wire, over_h2) = wire::choose(call, (protocol, said), transport, grpc);
    let again = first && may_move_on(call);
    let mut how = How {
        wire,
        connect_timeout: Duration::from_millis(policy.connect_timeout_ms.max(1)),
        connections: policy.connections.clone(),
        careful: !again,
        again: Cell::new(again),
        body: call.body.clone(),
        interim: call.interim.clone(),
        grant: Grant::default(),
        on: Some(&on.it),
    };
    let due = match until {
        Some((at, limit)) => Due::At(at, limit),
        None => Due::Quiet { since: began, limit: idle_limit(call) },
    };
    loop {
        let asks = over_h2.is_some() && how.wire == Wire::H2;
        if let Some(ended) = wire::settle(call, picked, &mut how, (began, due), asks).await {
            return ended;
        }
        let over_h2 = over_h2.clone().filter(|_| how.wire == Wire::H2);
        let mut with: Vec<_> = over_h2.map(|protocol| (UPGRADE, protocol)).into_iter().collect();
        if let Some((end, _)) = whole.filter(|_| grpc) {
            with.extend(shortened(call, end.saturating_duration_since(began)));
        }
        if let Some(ended) = settled(call, picked, &how, due, with).await {
            return ended;
        }
    }
}

/// Whether a request may be sent on another connection, without asking anybody, when one that was
/// kept turns out to be closed. What a client sends to this proxy's own app may be: that nothing is
/// repeated here is for its client to make up for, and an app's keep-alive ends when it likes.
fn may_move_on(call: &Call<'_>) -> bool {
    let safe = is_idempotent(call.head.method.as_str()) || call.retry.declared_idempotent;
    let own = matches!(&call.client, Client::Of(conn) if conn.door.is_inbound());
    safe && (own || call.retry.attempts > 0)
}

/// Sends an attempt that is to have its connection, from here on as a request in flight. `None`:
/// what it was to share with others has no room for it, and it is in line again, like any of them.
async fn settled(
    call: &Call<'_>,
    picked: &Rc<LocalEndpoint>,
    how: &How<'_>,
    due: Due,
    with: Vec<(HeaderName, HeaderValue)>,
) -> Option<Ended> {
    let overload = |detail| Some(Ended::Over(Refusal::new(Cause::Overload, detail)));
    let (counted, adaptive) = {
        let backend = call.backend.borrow();
        let counted = backend.breaker.request(&backend.entry.backend.policy.limits);
        (counted, backend.adaptive.clone())
    };
    let counted = match counted {
        Ok(counted) => counted,
        Err(detail) => return overload(detail),
    };
    let permit = match adaptive.map(|limit| limit.begin()).transpose() {
        Ok(permit) => permit,
        Err(detail) => return overload(detail),
    };
    let flight = InFlight::within(picked, call.worker.id, counted);
    let address = picked.entry.endpoint.address;
    let sent = match unless_shed(&call.body, send(call, picked, how, due, with)).await {
        Ok(sent) => sent,
        Err(refusal) => return Some(Ended::Over(refusal)),
    };
    if let (Some(sent), Some(permit)) = (&sent, permit) {
        permit.ended(sent.is_ok());
    }
    Some(match sent {
        Some(Ok((mut response, lease))) => {
            if !picked.pool.peer.is_mesh() && Present::of(response.headers()).has(Present::OWN) {
                // Only proxies may use these names; from here on they can be believed.
                headers::strip_own(response.headers_mut());
            }
            Ended::Answer(response, lease.counted(flight))
        }
        Some(Err(SendError::Connect(ConnectError::Full { .. }))) => return None,
        Some(Err(error)) => failed(call, error, address),
        None => late(address, due),
    })
}

fn late(address: SocketAddr, due: Due) -> Ended {
    let (what, limit) = due.missed();
    let why = format!("{address}: {what} within {} ms", limit.as_millis());
    Ended::Failed(Failure::AttemptTimeout, Cause::AttemptTimeout, why)
}

type Sent = Result<(Response<Answered>, Lease), SendError>;

/// Sends a request to one endpoint, `with` these headers in place of its own; `None` when there is
/// no answer in time.
///
/// # Errors
/// It cannot be said over HTTP/2.
async fn send(
    call: &Call<'_>,
    picked: &LocalEndpoint,
    how: &How<'_>,
    due: Due,
    mut with: Vec<(HeaderName, HeaderValue)>,
) -> Result<Option<Sent>, String> {
    if picked.pool.peer.is_mesh() {
        with.extend(source(call));
    }
    match how.wire {
        Wire::H1 => {
            let instead = Instead { host: Some(&call.authority), with: &with };
            Ok(picked.pool.send_h1((&call.head, instead), how, due).await)
        }
        Wire::H2 => {
            let mut sending = pin!(picked.pool.send_h2(build(call, with)?, how));
            loop {
                let at = due.look(&call.body, due.at(&call.body));
                match tokio::time::timeout_at(at, sending.as_mut()).await {
                    Ok(sent) => return Ok(Some(sent)),
                    // Its body may have moved meanwhile.
                    Err(_) if due.at(&call.body) > at => {}
                    Err(_) => return Ok(None),
                }
            }
        }
    }
}

fn failed(call: &Call<'_>, error: SendError, address: SocketAddr) -> Ended {
    let why = match &error {
        SendError::Connect(_) => error.to_string(),
        _ => format!("{address}: {error}"),
    };
    if let SendError::Connect(ConnectError::Timeout { address, .. }) = &error {
        call.worker.metrics.cells.half_open.add(half_open::look_at(*address) as u64);
    }
    match error {
        SendError::Connect(_) | SendError::Refused(_) => {
            Ended::Failed(Failure::NotSent, Cause::ConnectFailed, why)
        }
        SendError::Stream { unprocessed: true, .. } => {
            Ended::Failed(Failure::NotSent, Cause::StreamRefused, why)
        }
        SendError::Stream { .. } => Ended::Failed(Failure::Reset, Cause::StreamReset, why),
        SendError::Reset(_) => Ended::Failed(Failure::Reset, Cause::Reset, why),
        SendError::Garbage(_) => Ended::Failed(Failure::Reset, Cause::Garbage, why),
        SendError::Client(_) => {
            let cause = call.body.failure().map_or(Cause::ClientGone, |failure| failure.cause());
            Ended::Over(Refusal::new(cause, why))
        }
    }
}

/// What of an answer counts as a failure that another attempt might mend.
fn judged(response: &Response<Answered>, picked: &LocalEndpoint) -> Option<(Failure, String)> {
    let address = picked.entry.endpoint.address;
    if picked.pool.peer.is_mesh() && response.headers().contains_key(NOT_FORWARDED) {
        let why = format!("{address}: its sidecar could not reach the app");
        return Some((Failure::NotSent, why));
    }
    if picked.pool.peer.is_mesh()
        && let Some(flags) = response.headers().get(FLAGS)
        && [&b"UC"[..], b"UPE", b"UR"].contains(&flags.as_bytes())
    {
        let why = format!("{address}: the app closed the connection before it answered");
        return Some((Failure::Reset, why));
    }
    if let Some(code) = grpc_status(response.headers())
        && code != 0
    {
        return Some((Failure::Grpc(code), format!("{address}: grpc-status {code}")));
    }
    let status = response.status().as_u16();
    (status >= 400).then(|| (Failure::Status(status), format!("{address}: status {status}")))
}

/// No further attempt: an answer of the upstream is passed on as it is, anything else refused.
fn stop(
    call: &Call<'_>,
    answer: Option<(Response<Answered>, Lease)>,
    mut refusal: Refusal,
    why: String,
    record: &mut Record,
    until: Option<(Instant, Duration)>,
) -> Result<Response<ReplyBody>, Refusal> {
    let exhausted = record.attempts > 1;
    if exhausted {
        record.flags.add(crate::observe::flags::Flag::URX);
    }
    match answer {
        Some((response, lease)) => Ok(pass_on(call, response, lease, until)),
        None => {
            refusal.retries = Some(why);
            Err(refusal)
        }
    }
}

fn pass_on(
    call: &Call<'_>,
    response: Response<Answered>,
    lease: Lease,
    until: Option<(Instant, Duration)>,
) -> Response<ReplyBody> {
    let limits = BodyLimits { idle: idle_limit(call), deadline: until };
    let (head, body) = response.into_parts();
    if head.status == http::StatusCode::SWITCHING_PROTOCOLS {
        // The connection is the tunnel's now; it must not go back to the pool.
        return Response::from_parts(head, ReplyBody::left(lease));
    }
    Response::from_parts(head, ReplyBody::upstream(body, lease, limits, &call.body))
}

/// Tells everybody who learns from an attempt how it went: the ejector, the balancer's pace, and
/// all workers when the upstream asks for a pause.
fn note(
    call: &Call<'_>,
    picked: &LocalEndpoint,
    ended: &Ended,
    (now, took): (Instant, Duration),
    record: &mut Record,
) {
    record.headed = Some(now);
    let entry = call.backend.borrow().entry.clone();
    let policy = &entry.backend.policy;
    let now = call.worker.clock.at(now);
    if policy.lb == LbPolicy::PeakEwma && !matches!(ended, Ended::Over(_)) {
        picked.note_pace(took, matches!(ended, Ended::Answer(..)), now);
    }
    if let Ended::Answer(response, _) = ended
        && let Some(ms) = pause_ms(response, &call.worker.clock)
    {
        picked.entry.shared.pause_until(now.plus(Duration::from_millis(ms)));
        entry.set.changed();
    }
    let outcome = match ended {
        Ended::Over(_) => return,
        Ended::Failed(..) => Outcome::Local,
        Ended::Answer(response, _) => match judged(response, picked) {
            // How a gRPC call went is said at its end.
            None if record.is_grpc && grpc_status(response.headers()).is_none() => {
                record.unjudged = Some((entry, picked.entry.clone()));
                return;
            }
            None | Some((Failure::Status(_), _)) => {
                outcome_of_status(&policy.outlier, response.status().as_u16())
            }
            Some((Failure::Grpc(code), _)) => outcome_of_grpc(code),
            Some(_) => Outcome::Gateway,
        },
    };
    call.worker.shared.reporter.note(&entry, &picked.entry, outcome, call.worker.id);
}

/// Who asks, for a sidecar on the other end.
fn source(call: &Call<'_>) -> Option<(HeaderName, HeaderValue)> {
    let names = &call.worker.names;
    let source = Text::of(|out| {
        out.push_str(&names.workload);
        out.push('.');
        out.push_str(&names.namespace);
    });
    Some((headers::SOURCE, made::value(source.as_bytes())?))
}

/// What a gRPC client's patience has become, where it said how long that is.
fn shortened(call: &Call<'_>, left: Duration) -> Option<(HeaderName, HeaderValue)> {
    let said = call.head.headers.get(headers::GRPC_TIMEOUT)?;
    let mut one = HeaderMap::from_iter([(headers::GRPC_TIMEOUT, said.clone())]);
    headers::shorten_grpc_timeout(&mut one, left);
    one.remove(headers::GRPC_TIMEOUT).map(|value| (headers::GRPC_TIMEOUT, value))
}

/// The request as an endpoint gets it over HTTP/2.
fn build(
    call: &Call<'_>,
    with: Vec<(HeaderName, HeaderValue)>,
) -> Result<Request<AttemptBody>, String> {
    let mut request = Request::new(call.body.attempt());
    *request.method_mut() = call.head.method.clone();
    let path = call.head.uri.path_and_query().map_or("/", |p| p.as_str());
    *request.headers_mut() = call.head.headers.clone();
    let headers = request.headers_mut();
    for (name, value) in with {
        headers.insert(name, value);
    }
    headers.remove(HOST);
    *request.uri_mut() = Uri::builder()
        .scheme(call.scheme)
        .authority(&*call.authority)
        .path_and_query(path)
        .build()
        .map_err(|e| e.to_string())?;
    *request.version_mut() = Version::HTTP_2;
    Ok(request)
}

fn no_instance(call: &Call<'_>) -> Refusal {
    let backend = call.backend.borrow();
    let entry: &BackendEntry = &backend.entry;
    let failing = entry.endpoints.iter().filter(|e| e.shared.is_failing()).count();
    let why = entry
        .endpoints
        .iter()
        .find_map(|e| e.shared.failing_why().map(|why| (e.endpoint.address, why)));
    let detail = match (entry.total(), entry.healthy) {
        (0, _) => "it has no instances".to_owned(),
        (total, 0) => format!("all {total} instances fail their checks or are leaving"),
        (total, _) if failing > 0 => {
            let example = why.as_ref().map(|(at, why)| format!(" ({at}: {why})"));
            let example = example.unwrap_or_default();
            format!("{failing} of {total} fail this proxy's health check{example}")
        }
        (total, healthy) => format!("{healthy} of {total} are healthy, but their weights are 0"),
    };
    Refusal::new(Cause::NoInstance, detail)
}

/// `None` is no limit; the model's `Some(0)` says the same.
fn limit(ms: Option<u64>) -> Option<Duration> {
    ms.filter(|ms| *ms > 0).map(Duration::from_millis)
}

fn idle_limit(call: &Call<'_>) -> Duration {
    match call.timeouts.idle_ms {
        Some(0) => Duration::from_secs(86_400 * 365),
        Some(ms) => Duration::from_millis(ms),
        None => call.worker.config.limits.stream_idle_timeout,
    }
}

fn earlier(
    a: Option<(Instant, Duration)>,
    b: Option<(Instant, Duration)>,
) -> Option<(Instant, Duration)> {
    match (a, b) {
        (Some(a), Some(b)) => Some(if b.0 < a.0 { b } else { a }),
        (a, b) => a.or(b),
    }
}
