// SPDX-License-Identifier: Apache-2.0
//! The door's HTTP: connections, limits, who may ask (Host and Origin), dispatch, and an answer's
//! bytes. Knows nothing of services.

use std::convert::Infallible;
use std::io::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, EXPECT, HOST, ORIGIN};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body as HttpBody, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, SemaphorePermit};
use weft_base::limits::{CHECK_HEADER, CONNECTIONS_MAX, HEADERS_MAX};
use weft_base::task::TaskGroup;

use super::error::Refusal;
use super::params::Params;
use super::reply::{Body, Reply};
use super::routes::{self, Endpoint};
use super::who::Who;
use super::{Door, view};
use crate::guard;

/// Time for a request's head, and for its body.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// What is read of a body that was refused for its size, and for how long, so that its sender
/// comes to read the answer instead of a broken connection.
const LINGER_BYTES_MAX: usize = 128 * 1024 * 1024;
const LINGER: Duration = Duration::from_secs(10);
/// Smaller answers are not compressed.
const GZIP_BYTES_MIN: usize = 1400;
/// How often a request is judged while what it is judged by keeps changing.
const ADMISSIONS_MAX: usize = 5;

/// What a health check that a client defined may ask of this door.
const FOR_CHECKS: [&str; 3] = ["/", "/v1/status/leader", "/v1/status/peers"];

/// One request, read and taken apart.
#[derive(Clone, Debug)]
pub struct Ask {
    /// What follows the endpoint's path, decoded.
    pub argument: String,
    pub params: Params,
    pub body: Bytes,
    /// `?ns=` or `default`.
    pub namespace: Arc<str>,
    pub method: Method,
    /// Who asks, and what they may.
    pub who: Who,
}

impl Door {
    /// Serves connections until the group drains.
    pub async fn serve(self, listener: TcpListener, tasks: TaskGroup) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let accepted = tokio::select! {
                () = tasks.draining() => return,
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(why) => {
                    tracing::warn!(%why, "the Consul door could not accept a connection");
                    // Out of descriptors: give others time to close theirs.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Ok(place) = places.clone().try_acquire_owned() else {
                tracing::warn!(max = CONNECTIONS_MAX, "the Consul door is full; connection closed");
                continue;
            };
            let (door, group) = (self.clone(), tasks.clone());
            tasks.spawn("consul connection", async move {
                door.connection(stream, group).await;
                drop(place);
            });
        }
    }

    async fn connection(self, stream: TcpStream, tasks: TaskGroup) {
        // Answers are small and waited for.
        let _ = stream.set_nodelay(true);
        let service = service_fn(|request| {
            let door = self.clone();
            async move { Ok::<_, Infallible>(door.handle(request).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(READ_TIMEOUT)
            .max_headers(HEADERS_MAX)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = tasks.draining() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(why) = ended {
            tracing::debug!(%why, "a connection to the Consul door ended early");
        }
    }

    /// Answers one request, whatever carries it.
    pub async fn handle(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let gzip = accepts_gzip(request.headers());
        let pretty = request.uri().query().is_some_and(|q| {
            q.split('&').any(|part| part == "pretty" || part.starts_with("pretty="))
        });
        let reply = match self.answer(request).await {
            Ok(reply) => reply,
            Err(refusal) => refusal.into(),
        };
        render(reply, gzip, pretty)
    }

    async fn answer<B>(&self, request: Request<B>) -> Result<Reply, Refusal>
    where
        B: HttpBody<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        admit(&head.headers, &self.0.hosts)?;
        let path = head.uri.path().to_owned();
        if is_out_of_bounds(&head.headers, &path) {
            let why = "health checks that clients define may ask this door for its leader only";
            return Err(Refusal::new(StatusCode::FORBIDDEN, why));
        }
        if head.method == Method::OPTIONS {
            return Ok(Reply::empty().with("Allow", routes::allowed(&path)?));
        }
        let (endpoint, argument) = routes::find(&head.method, &path)?;
        let params = Params::parse(head.uri.query())?;
        self.check_place(&params)?;
        let waits = head.headers.contains_key(EXPECT);
        // Nothing of a body is kept before it is known whose it is.
        let admitted = self.who(&head.headers, &params).and_then(|who| {
            let turn = self.turn(endpoint, &who)?;
            Ok((who, turn))
        });
        let (who, _turn) = match admitted {
            Ok(admitted) => admitted,
            Err(refusal) => {
                forget(body, waits).await;
                return Err(refusal);
            }
        };
        let body = read(body, waits, routes::body_bytes_max(endpoint)).await?;
        let namespace = params.filled("ns").unwrap_or(view::DEFAULT_NAMESPACE).into();
        // A query may wait for minutes: the head is not kept for that.
        let method = head.method.clone();
        drop(head);
        let ask = Ask { argument, params, body, namespace, method, who };
        for _ in 1..ADMISSIONS_MAX {
            match self.dispatch(endpoint, &ask).await {
                Err(Refusal { again: true, .. }) => {}
                other => return other,
            }
        }
        self.dispatch(endpoint, &ask).await
    }

    /// Snapshots are large, so they are taken and put back one at a time, by who may.
    fn turn(&self, endpoint: Endpoint, who: &Who) -> Result<Option<SemaphorePermit<'_>>, Refusal> {
        if endpoint != Endpoint::Snapshot {
            return Ok(None);
        }
        who.demand_management()?;
        self.0.snapshots.try_acquire().map(Some).map_err(|_| {
            Refusal::new(
                StatusCode::TOO_MANY_REQUESTS,
                "another snapshot is being taken or put back; try again later",
            )
        })
    }

    /// Requests are for this datacentre; others are not reachable from here.
    fn check_place(&self, params: &Params) -> Result<(), Refusal> {
        if params.filled("dc").is_some_and(|dc| !dc.eq_ignore_ascii_case(&self.own().datacenter)) {
            return Err(Refusal::internal("No path to datacenter"));
        }
        if params.filled("partition").is_some_and(|p| p != "default") {
            return Err(Refusal::bad("weft has no partitions besides \"default\""));
        }
        match params.filled("ns") {
            Some("*") => Err(Refusal::bad("name one namespace; ?ns=* is not served")),
            _ => Ok(()),
        }
    }
}

// === helpers ===

/// Pages of other sites reach loopback doors through a browser: by rebinding a name of theirs
/// (Host), or by plain cross-site requests (Origin). Neither is for us.
fn admit(headers: &HeaderMap, hosts: &[String]) -> Result<(), Refusal> {
    let refuse = |what: &str, found: &str| {
        Err(Refusal::new(
            StatusCode::FORBIDDEN,
            format!("{what} {found:?} is not this server; use localhost or its IP address"),
        ))
    };
    if let Some(host) = headers.get(HOST) {
        let host = host.to_str().unwrap_or("?");
        if !host.is_empty() && !is_own(host, hosts) {
            return refuse("Host", host);
        }
    }
    if let Some(origin) = headers.get(ORIGIN) {
        let origin = origin.to_str().unwrap_or("?");
        let host = origin.split_once("://").map_or(origin, |(_, host)| host);
        if !is_own(host, hosts) {
            return refuse("Origin", origin);
        }
    }
    Ok(())
}

/// It comes from this machine, and not from who defined it.
fn is_out_of_bounds(headers: &HeaderMap, path: &str) -> bool {
    headers.contains_key(CHECK_HEADER) && !FOR_CHECKS.contains(&path) && guard::on("checks")
}

fn is_own(host: &str, hosts: &[String]) -> bool {
    let bare = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, _)) => v6,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    bare.parse::<IpAddr>().is_ok()
        || bare.eq_ignore_ascii_case("localhost")
        || hosts.iter().any(|own| own.eq_ignore_ascii_case(bare))
}

/// `waits`: the sender asked before sending (`Expect`), so a refusal alone is enough.
async fn read<B>(body: B, waits: bool, max: usize) -> Result<Bytes, Refusal>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let max = if guard::on("body-size") { max } else { usize::MAX };
    let too_large = || {
        Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("Request body too large, max size: {max} bytes"),
        )
    };
    if usize::try_from(body.size_hint().lower()).is_ok_and(|n| n > max) {
        forget(body, waits).await;
        return Err(too_large());
    }
    let mut body = Box::pin(body);
    let whole = Limited::new(body.as_mut(), max).collect();
    match tokio::time::timeout(READ_TIMEOUT, whole).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(why)) if why.is::<LengthLimitError>() => {
            linger(body.as_mut()).await;
            Err(too_large())
        }
        Ok(Err(why)) => Err(Refusal::bad(format!("the request body ended early: {why}"))),
        Err(_) => Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "the request body took too long")),
    }
}

/// What is done about the body of a request that was refused by its head.
async fn forget<B: HttpBody<Data = Bytes>>(body: B, waits: bool) {
    if !waits && !body.is_end_stream() {
        linger(Box::pin(body).as_mut()).await;
    }
}

/// Reads on and forgets.
async fn linger<B: HttpBody<Data = Bytes>>(mut body: std::pin::Pin<&mut B>) {
    let forget = async {
        let mut left = LINGER_BYTES_MAX;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                return;
            }
        }
    };
    // However it ended, the answer is next.
    let _ = tokio::time::timeout(LINGER, forget).await;
}

fn render(reply: Reply, gzip: bool, pretty: bool) -> Response<Full<Bytes>> {
    let (kind, mut bytes) = match reply.body {
        Body::Empty => (None, Vec::new()),
        Body::Text(text) => (Some("text/plain; charset=utf-8"), text.into_bytes()),
        Body::Json(value) => (Some("application/json"), encode(&value, pretty)),
        Body::Bytes(kind, bytes) => (Some(kind), bytes.to_vec()),
    };
    let mut response = Response::new(Full::default());
    *response.status_mut() = reply.status;
    let headers = response.headers_mut();
    let mut set = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    set("x-content-type-options", "nosniff");
    set("vary", "Accept-Encoding");
    if let Some(kind) = kind {
        set("content-type", kind);
    }
    if gzip
        && bytes.len() >= GZIP_BYTES_MIN
        && let Some(small) = compress(&bytes)
    {
        set("content-encoding", "gzip");
        bytes = small;
    }
    for (name, value) in &reply.headers {
        if let (Ok(name), Ok(value)) =
            (http::HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value))
        {
            response.headers_mut().insert(name, value);
        }
    }
    *response.body_mut() = Full::new(bytes.into());
    response
}

fn encode(value: &Value, pretty: bool) -> Vec<u8> {
    let made = match pretty {
        true => serde_json::to_vec_pretty(value),
        false => serde_json::to_vec(value),
    };
    let mut bytes = made.expect("a JSON value is always written");
    if pretty {
        bytes.push(b'\n');
    }
    bytes
}

fn compress(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).ok()?;
    out.finish().ok()
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get(ACCEPT_ENCODING).and_then(|v| v.to_str().ok()).unwrap_or_default();
    accepted.split(',').any(|part| {
        let mut words = part.split(';').map(str::trim);
        words.next() == Some("gzip") && words.all(|q| q != "q=0" && q != "q=0.0")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_are_admitted() {
        let ask = |host: &str, origin: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, host.parse().unwrap());
            if let Some(origin) = origin {
                headers.insert(ORIGIN, origin.parse().unwrap());
            }
            admit(&headers, &["consul.lan".to_owned()]).is_ok()
        };
        for host in ["localhost:8500", "127.0.0.1:8500", "[::1]:8500", "10.0.0.1", "consul.lan:80"]
        {
            assert!(ask(host, None), "{host}");
        }
        for host in ["evil.example:8500", "localhost.evil.example", "127.0.0.1.nip.io:8500"] {
            assert!(!ask(host, None), "{host}");
        }
        assert!(ask("localhost", Some("http://localhost:3000")));
        assert!(!ask("localhost", Some("https://evil.example")));
        assert!(!ask("localhost", Some("null")));
    }

    #[tokio::test]
    async fn reg_58_a_clients_check_asks_this_door_for_its_leader_only() {
        let out = |path: &str, header: &str| {
            let header = http::HeaderName::from_bytes(header.as_bytes()).unwrap();
            is_out_of_bounds(&HeaderMap::from_iter([(header, HeaderValue::from_static(""))]), path)
        };
        let leave = "/v1/agent/leave";
        for path in [leave, "/v1/kv/x", "/v1/acl/tokens", "/v1/status/leader/", "/V1/status/peers"]
        {
            assert!(out(path, "X-Weft-Check"), "{path}");
            assert!(!out(path, "x-other"), "{path}");
        }
        assert!(!out("/", "x-weft-check") && !out("/v1/status/leader", "x-weft-check"));
        assert!(!guard::without("checks", async { out(leave, "x-weft-check") }).await);
    }

    #[test]
    fn gzip_is_for_who_accepts_it() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, text.parse().unwrap());
            accepts_gzip(&headers)
        };
        assert!(of("gzip, deflate") && of("deflate, gzip;q=0.5"));
        assert!(!of("deflate") && !of("gzip;q=0"));
    }
}
