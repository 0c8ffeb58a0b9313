// SPDX-License-Identifier: Apache-2.0
//! The attempt loop: pick, send, judge, and again while verdict and budget allow. Called by the
//! phases once the backend is known; knows no route and no filter.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use http::header::{HOST, HeaderValue};
use http::request::Parts;
use http::{Request, Response, Uri, Version};
use tokio::time::Instant;
use weft_model::decide::{Failure, Verdict, is_idempotent, retry_verdict};
use weft_model::{Protocol, Retry, Timeouts, Transport};

use super::body::{AttemptBody, BodyLimits, Replay, ReplyBody};
use super::headers::{self, FLAGS, NOT_FORWARDED};
use super::reply::{Cause, Refusal};
use crate::observe::record::{Record, grpc_status, is_server_fault};
use crate::table::BackendEntry;
use crate::upstream::pick::{LocalBackend, LocalEndpoint};
use crate::upstream::pool::{Answered, How, InFlight, Lease, SendError, Wire};
use crate::worker::Worker;

/// Longest wait between two attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// One request on its way to one backend.
#[derive(Debug)]
pub struct Call<'a> {
    pub worker: &'a Rc<Worker>,
    pub backend: Rc<RefCell<LocalBackend>>,
    pub head: Parts,
    pub body: Replay,
    /// `host[:port]` that the upstream sees.
    pub authority: String,
    pub scheme: &'static str,
    /// HTTP version of the client, for ports that do not declare theirs.
    pub version: Version,
    pub timeouts: &'a Timeouts,
    pub retry: &'a Retry,
}

/// How one attempt ended.
enum Ended {
    Answer(Box<Response<Answered>>, Lease),
    Failed(Failure, Cause, String),
    /// Nothing to judge: the client is gone or its body broke.
    Over(Refusal),
}

/// Sends a request until there is an answer to pass on.
///
/// # Errors
/// The refusal to answer with when there is none.
pub async fn forward(call: &Call<'_>, record: &mut Record) -> Result<Response<ReplyBody>, Refusal> {
    let (allowed, patience) = (limit(call.timeouts.request_ms), patience(call, record));
    let shortest = allowed.into_iter().chain(patience).min();
    let deadline = shortest.map(|d| (Instant::now() + d, d));
    let mut tried: Vec<Rc<LocalEndpoint>> = Vec::new();
    call.backend.borrow_mut().budget.request(call.worker.clock.now());
    loop {
        let picked = pick(call, &tried).ok_or_else(|| no_instance(call))?;
        record.endpoint = Some(picked.clone());
        record.backend = Some(call.backend.borrow().entry.clone());
        record.attempts += 1;
        let attempt_limit = limit(call.retry.per_try_timeout_ms)
            .or_else(|| limit(call.timeouts.backend_request_ms))
            .map(|d| (Instant::now() + d, d));
        let began = Instant::now();
        let until = earlier(deadline, attempt_limit);
        let ended = attempt(call, &picked, until, record.is_grpc).await;
        record.upstream_ms = Some(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX));
        note(call, &picked, &ended, record);
        let (failure, answer, refusal) = match ended {
            Ended::Over(refusal) => return Err(refusal),
            Ended::Answer(response, lease) => match judged(&response, &picked) {
                None => return Ok(pass_on(call, *response, lease, until)),
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
            let own = patience.is_some() && patience == shortest;
            let whose = if own { " (grpc-timeout of its client)" } else { "" };
            return Err(Refusal::new(Cause::RequestTimeout, refusal.detail + whose));
        }
        match again(call, failure, record.attempts) {
            Ok(()) => {}
            Err(why) => return stop(call, answer, refusal, why, record, until),
        }
        call.worker.metrics.cells.retries.add(1);
        tried.push(picked);
        back_off(call, failure, &tried, deadline).await;
    }
}

/// How long a gRPC client itself waits; longer than a year is for ever.
fn patience(call: &Call<'_>, record: &Record) -> Option<Duration> {
    let named = record.is_grpc.then(|| headers::grpc_timeout(&call.head.headers)).flatten();
    named.filter(|d| *d < Duration::from_secs(86_400 * 365))
}

fn pick(call: &Call<'_>, tried: &[Rc<LocalEndpoint>]) -> Option<Rc<LocalEndpoint>> {
    let mut backend = call.backend.borrow_mut();
    let (mut rng, now) = (call.worker.rng.borrow_mut(), call.worker.clock.now());
    if tried.is_empty() {
        backend.pick(&mut rng, now)
    } else {
        backend.pick_again(&mut rng, now, tried)
    }
}

async fn attempt(
    call: &Call<'_>,
    picked: &Rc<LocalEndpoint>,
    until: Option<(Instant, Duration)>,
    grpc: bool,
) -> Ended {
    let (policy, protocol) = {
        let backend = call.backend.borrow();
        (backend.entry.backend.policy.clone(), backend.entry.protocol)
    };
    if let Some(most) = policy.limits.requests_max
        && call.backend.borrow().in_flight() >= u64::from(most)
    {
        let detail = format!("{most} requests are in flight, its limit");
        return Ended::Over(Refusal::new(Cause::Overload, detail));
    }
    let transport = picked.entry.endpoint.transport;
    let upgrade = call.head.headers.contains_key(http::header::UPGRADE);
    let wire = if upgrade { Wire::H1 } else { wire(protocol, transport, call.version, grpc) };
    if let Some(most) = policy.limits.connections_max
        && is_full(call, picked, wire, most)
    {
        let detail = format!("{most} connections are open, its limit, and all are busy");
        return Ended::Over(Refusal::new(Cause::Overload, detail));
    }
    let how = How {
        wire,
        connect_timeout: Duration::from_millis(policy.connect_timeout_ms.max(1)),
        careful: !is_idempotent(call.head.method.as_str()) && !call.retry.declared_idempotent,
        body: call.body.clone(),
    };
    let request = match build(call, picked, wire) {
        Ok(request) => request,
        Err(why) => return Ended::Over(Refusal::new(Cause::BadRequest, why)),
    };
    let flight = InFlight::begin(picked, call.worker.id);
    let idle = idle_limit(call);
    let (at, limit, whole) = match until {
        Some((at, limit)) => (at, limit, true),
        None => (Instant::now() + idle, idle, false),
    };
    let address = picked.entry.endpoint.address;
    match tokio::time::timeout_at(at, picked.pool.send(request, &how)).await {
        Ok(Ok((mut response, lease))) => {
            if !picked.pool.peer.is_mesh() {
                // Only proxies may use these names; from here on they can be believed.
                headers::strip_own(response.headers_mut());
            }
            Ended::Answer(Box::new(response), lease.counted(flight))
        }
        Ok(Err(error)) => failed(call, error, address),
        Err(_) => {
            let ms = limit.as_millis();
            let what = if whole { "no response" } else { "no byte" };
            let why = format!("{address}: {what} within {ms} ms");
            Ended::Failed(Failure::AttemptTimeout, Cause::AttemptTimeout, why)
        }
    }
}

/// Whether an attempt would need a connection beyond the backend's limit. Workers have equal
/// shares of it.
fn is_full(call: &Call<'_>, picked: &LocalEndpoint, wire: Wire, most: u32) -> bool {
    let share = usize::try_from(most).unwrap_or(usize::MAX) / call.worker.config.workers.max(1);
    !picked.pool.has_room(wire) && call.backend.borrow().connections() >= share.max(1)
}

fn failed(call: &Call<'_>, error: SendError, address: std::net::SocketAddr) -> Ended {
    let why = match &error {
        SendError::Connect(_) => error.to_string(),
        _ => format!("{address}: {error}"),
    };
    match error {
        SendError::Connect(_) | SendError::Refused(_) => {
            Ended::Failed(Failure::NotSent, Cause::ConnectFailed, why)
        }
        SendError::Reset(_) => Ended::Failed(Failure::Reset, Cause::Reset, why),
        SendError::Garbage(_) => Ended::Failed(Failure::Reset, Cause::Garbage, why),
        SendError::Client(_) => {
            let cause = match call.body.failure() {
                Some(super::body::BodyError::TooLarge(_)) => Cause::BodyTooLarge,
                Some(super::body::BodyError::Malformed(_)) => Cause::BadRequest,
                _ => Cause::ClientGone,
            };
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
        && [&b"UC"[..], b"UPE"].contains(&flags.as_bytes())
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

/// Whether to send it again; otherwise why not.
fn again(call: &Call<'_>, failure: Failure, attempt: u32) -> Result<(), String> {
    let method = call.head.method.as_str();
    let replayable = call.body.can_replay();
    match retry_verdict(call.retry, method, failure, attempt, replayable) {
        Verdict::Stop(why) => return Err(why.to_string()),
        Verdict::Retry => {}
    }
    let mut backend = call.backend.borrow_mut();
    let budget = backend.entry.backend.policy.retry_budget.clone();
    let workers = call.worker.config.workers;
    if backend.budget.take(&budget, workers, call.worker.clock.now()) {
        return Ok(());
    }
    call.worker.metrics.cells.retries_denied.add(1);
    Err("the retry budget is used up, so it was not sent again".into())
}

/// No further attempt: an answer of the upstream is passed on as it is, anything else refused.
fn stop(
    call: &Call<'_>,
    answer: Option<(Box<Response<Answered>>, Lease)>,
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
        Some((response, lease)) => Ok(pass_on(call, *response, lease, until)),
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
        drop(lease);
        return Response::from_parts(head, ReplyBody::empty());
    }
    Response::from_parts(head, ReplyBody::upstream(body, lease, limits))
}

fn note(call: &Call<'_>, picked: &LocalEndpoint, ended: &Ended, record: &mut Record) {
    let ok = match ended {
        Ended::Over(_) => return,
        Ended::Failed(..) => false,
        Ended::Answer(response, _) => match judged(response, picked) {
            // How a gRPC call went is said at its end.
            None if record.is_grpc && grpc_status(response.headers()).is_none() => {
                let entry = call.backend.borrow().entry.clone();
                record.unjudged = Some((entry, picked.entry.clone()));
                return;
            }
            None => true,
            Some((Failure::Status(status), _)) => status < 500,
            Some((Failure::Grpc(code), _)) => !is_server_fault(code),
            Some(_) => false,
        },
    };
    let entry = call.backend.borrow().entry.clone();
    call.worker.shared.reporter.note(&entry, &picked.entry, ok);
}

/// Waits before the next attempt; not at all when nothing was sent and another endpoint is there.
async fn back_off(
    call: &Call<'_>,
    failure: Failure,
    tried: &[Rc<LocalEndpoint>],
    deadline: Option<(Instant, Duration)>,
) {
    let others = call.backend.borrow().candidates().len() > tried.len();
    if failure == Failure::NotSent && others {
        return;
    }
    let doubled = 1u64 << tried.len().saturating_sub(1).min(10);
    let base = Duration::from_millis(call.retry.backoff_ms.max(1).saturating_mul(doubled));
    let wait = call.worker.rng.borrow_mut().jitter(base / 2, 100).min(BACKOFF_MAX);
    let at = Instant::now() + wait;
    let at = deadline.map_or(at, |(end, _)| end.min(at));
    tokio::time::sleep_until(at).await;
}

/// The request as this endpoint gets it.
fn build(
    call: &Call<'_>,
    picked: &LocalEndpoint,
    wire: Wire,
) -> Result<Request<AttemptBody>, String> {
    let mut request = Request::new(call.body.attempt());
    *request.method_mut() = call.head.method.clone();
    let path = call.head.uri.path_and_query().map_or("/", |p| p.as_str());
    *request.headers_mut() = call.head.headers.clone();
    let headers = request.headers_mut();
    if picked.pool.peer.is_mesh() {
        let names = &call.worker.names;
        let source = format!("{}.{}", names.workload, names.namespace);
        if let Ok(source) = HeaderValue::from_str(&source) {
            headers.insert(headers::SOURCE, source);
        }
    }
    match wire {
        Wire::H1 => {
            headers::join_cookies(headers);
            let host = HeaderValue::from_str(&call.authority).map_err(|e| e.to_string())?;
            headers.insert(HOST, host);
            *request.uri_mut() = path.parse().map_err(|_| "its path is not valid".to_owned())?;
            *request.version_mut() = Version::HTTP_11;
        }
        Wire::H2 => {
            headers.remove(HOST);
            *request.uri_mut() = Uri::builder()
                .scheme(call.scheme)
                .authority(call.authority.as_str())
                .path_and_query(path)
                .build()
                .map_err(|e| e.to_string())?;
            *request.version_mut() = Version::HTTP_2;
        }
    }
    Ok(request)
}

/// A declared protocol decides; an undeclared one is passed on as the client speaks it. Between
/// sidecars HTTP/1.1 may travel as HTTP/2 when the far end is told the protocol.
fn wire(protocol: Protocol, transport: Transport, version: Version, grpc: bool) -> Wire {
    let like_client = if version == Version::HTTP_2 { Wire::H2 } else { Wire::H1 };
    match (protocol, transport) {
        (Protocol::Http2 | Protocol::Grpc, _) => Wire::H2,
        (Protocol::Http1, Transport::MeshH2 | Transport::Hbone) => Wire::H2,
        (Protocol::Http1, _) if grpc => like_client,
        (Protocol::Http1, _) => Wire::H1,
        _ => like_client,
    }
}

fn no_instance(call: &Call<'_>) -> Refusal {
    let backend = call.backend.borrow();
    let entry: &BackendEntry = &backend.entry;
    let detail = match (entry.total(), entry.healthy) {
        (0, _) => "it has no instances".to_owned(),
        (total, 0) => format!("all {total} instances fail their checks or are leaving"),
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
