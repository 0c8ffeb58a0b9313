// SPDX-License-Identifier: Apache-2.0
//! Connections of the API door: accepted within limits, drained with their group, and guarded
//! against pages in a browser (DNS rebinding by Host, cross-site requests by Origin).
//!
//! Called by the binary with the routes of `k8s`, `admin` and, later, the dashboard. Knows nothing
//! of what is behind a route.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HOST, ORIGIN, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use weft_base::limits::{CHECK_HEADER, HEADER_BYTES_MAX, HEADERS_MAX, WATCHERS_MAX};
use weft_base::task::TaskGroup;

use crate::guards;

/// Open connections of the API door; watches hold theirs.
const API_CONNECTIONS_MAX: usize = if WATCHERS_MAX < 4096 { WATCHERS_MAX } else { 4096 };
/// Time for a request's head: a silent connection is closed after it.
const HEAD_TIME_MAX: Duration = Duration::from_secs(30);
/// Pause when the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Names besides loopback addresses and `localhost` that requests may be for.
pub type Hosts = Arc<[String]>;

/// Serves a door on a loopback listener until the group drains.
pub async fn serve(listener: TcpListener, router: Router, hosts: Hosts, tasks: TaskGroup) {
    let router = guarded(router, hosts);
    let places = Arc::new(Semaphore::new(API_CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            () = tasks.draining() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(why) => {
                tracing::warn!(%why, "the API door could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::warn!(max = API_CONNECTIONS_MAX, "the API door is full; connection closed");
            continue;
        };
        let (router, group) = (router.clone(), tasks.clone());
        tasks.spawn("api connection", async move {
            connection(stream, router, group).await;
            drop(place);
        });
    }
}

/// The routes behind the guard and with the headers that every answer has.
pub fn guarded(router: Router, hosts: Hosts) -> Router {
    router.layer(from_fn_with_state(hosts, guard))
}

async fn connection(stream: TcpStream, router: Router, tasks: TaskGroup) {
    // Answers are small and waited for; a failure here costs only time.
    let _ = stream.set_nodelay(true);
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .max_headers(HEADERS_MAX)
        .max_buf_size(4 * HEADER_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(256)
        .max_header_list_size(u32::try_from(HEADER_BYTES_MAX).unwrap_or(u32::MAX))
        .keep_alive_interval(Duration::from_secs(60));
    let connection = builder
        .serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = tasks.draining() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(why) = ended {
        tracing::debug!(%why, "a connection to the API door ended early");
    }
}

/// What a health check that a client defined may ask of this door: it comes from this machine,
/// which may do more than the client.
const FOR_CHECKS: [&str; 5] = ["/healthz", "/livez", "/readyz", "/version", "/metrics"];

async fn guard(State(hosts): State<Hosts>, request: Request, next: Next) -> Response {
    if is_out_of_bounds(request.headers(), request.uri()) {
        let why = "health checks that clients define may ask this door for its health only";
        return with_headers(status(StatusCode::FORBIDDEN, "Forbidden", why));
    }
    if let Err(why) = admit(request.headers(), request.uri(), &hosts) {
        return with_headers(refuse(&why));
    }
    let response = next.run(request).await;
    let bare = !response.headers().contains_key(http::header::CONTENT_TYPE);
    if response.status() == StatusCode::NOT_FOUND && bare {
        // No route: say so in the form that every client of this door reads.
        let why = "the server could not find the requested resource";
        return with_headers(status(StatusCode::NOT_FOUND, "NotFound", why));
    }
    with_headers(response)
}

fn is_out_of_bounds(headers: &HeaderMap, uri: &Uri) -> bool {
    headers.contains_key(CHECK_HEADER)
        && !FOR_CHECKS.contains(&uri.path())
        && guards::on("client-checks")
}

fn with_headers(mut response: Response) -> Response {
    let always: [(HeaderName, &'static str); 5] = [
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (CACHE_CONTROL, "no-cache, private"),
        (REFERRER_POLICY, "no-referrer"),
        (CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    ];
    for (name, value) in always {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// A page in a browser reaches loopback under a name of its own (Host) or from another site
/// (Origin). Neither is for us.
fn admit(headers: &HeaderMap, uri: &Uri, hosts: &[String]) -> Result<(), String> {
    let named = headers.get(HOST).map(|h| h.to_str().unwrap_or("?").to_owned());
    let host = named.or_else(|| uri.authority().map(|a| a.as_str().to_owned()));
    let Some(host) = host else { return Ok(()) };
    if !is_ours(host_of(&host), hosts) {
        return Err(format!("requests for the host {host:?} are not answered here"));
    }
    let Some(origin) = headers.get(ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or("?");
    let site = origin.split_once("://").map_or(origin, |(_, site)| site);
    if site.eq_ignore_ascii_case(&host) {
        return Ok(());
    }
    Err(format!("requests from pages of {origin:?} are not answered here"))
}

fn host_of(authority: &str) -> &str {
    match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, _)) => v6,
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    }
}

fn is_ours(host: &str, hosts: &[String]) -> bool {
    host.parse::<IpAddr>().is_ok()
        || host.eq_ignore_ascii_case("localhost")
        || hosts.iter().any(|h| h.eq_ignore_ascii_case(host))
}

fn refuse(why: &str) -> Response {
    let message = format!("{why}; use 127.0.0.1 or localhost");
    status(StatusCode::FORBIDDEN, "Forbidden", &message)
}

fn status(code: StatusCode, reason: &str, message: &str) -> Response {
    let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "reason": reason, "code": code.as_u16(), "message": message});
    let json = [(http::header::CONTENT_TYPE, "application/json")];
    (code, json, body.to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(host: &str, origin: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, host.parse().unwrap());
        if !origin.is_empty() {
            headers.insert(ORIGIN, origin.parse().unwrap());
        }
        admit(&headers, &Uri::from_static("/"), &["weft.test".into()]).is_ok()
    }

    #[test]
    fn reg_58_a_clients_check_asks_this_door_for_its_health_only() {
        let out = |path: &str, header: &str| {
            let mut headers = HeaderMap::new();
            headers
                .insert(HeaderName::from_bytes(header.as_bytes()).unwrap(), "1".parse().unwrap());
            is_out_of_bounds(&headers, &path.parse().unwrap())
        };
        let secrets = "/api/v1/namespaces/shop/secrets";
        for path in [secrets, "/v1/weft/tokens", "/", "/healthz/x", "/metrics/../api", "/readyz/"] {
            assert!(out(path, "X-Weft-Check"), "{path}");
            assert!(!out(path, "x-other"), "{path}");
        }
        assert!(!out("/healthz?verbose", "x-weft-check") && !out("/metrics", "x-weft-check"));
    }

    #[test]
    fn only_loopback_names_and_own_pages_are_answered() {
        for (host, origin) in [
            ("127.0.0.1:7080", ""),
            ("localhost", ""),
            ("[::1]:7080", "http://[::1]:7080"),
            ("weft.test:7080", "http://weft.test:7080"),
        ] {
            assert!(ask(host, origin), "{host} {origin}");
        }
        for (host, origin) in [
            ("evil.example", ""),
            ("127.0.0.1.evil.example:7080", ""),
            ("127.0.0.1:7080", "http://evil.example"),
            ("127.0.0.1:7080", "http://127.0.0.1:9999"),
            ("127.0.0.1:7080", "null"),
        ] {
            assert!(!ask(host, origin), "{host} {origin}");
        }
    }
}
