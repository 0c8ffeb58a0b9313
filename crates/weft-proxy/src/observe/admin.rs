// SPDX-License-Identifier: Apache-2.0
//! The proxy's own doors: metrics (15020), readiness (15021) and admin (15000) with Envoy's paths
//! where the meaning is the same. Runs on the control runtime; reads published values only.

mod control;
mod dump;
mod explained;
pub(super) mod stats;

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, ORIGIN,
};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use weft_base::clock::{Clock, Mono};
use weft_base::limits::CHECK_HEADER;
use weft_base::snapshot::Snapshot;
use weft_base::task::TaskGroup;
use weft_identity::Svid;
use weft_model::Health;
use weft_model::decide::Authority;

use self::stats::{Baseline, Query};
use super::access_log::Reopen;
use super::certificates;
use super::exposition::{ProxyCollector, render, render_classic};
use super::metrics::WorkerCells;
use crate::config::ProxyConfig;
use crate::guards;
use crate::http::cache::Store;
use crate::ingest::Status;
use crate::table::{BackendEntry, EndpointEntry, Table};
use crate::worker::{Command, Names};

const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Which of the three doors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Admin,
    Metrics,
    Ready,
}

/// What the doors read.
#[derive(Debug)]
pub struct Admin {
    config: Arc<ProxyConfig>,
    names: Names,
    status: Status,
    cells: Vec<Arc<WorkerCells>>,
    quit: CancellationToken,
    cache: Arc<Store>,
    identity: Option<Snapshot<Svid>>,
    clock: Clock,
    /// Somebody asked to be taken for not ready.
    failing: AtomicBool,
    /// Nothing new is taken.
    draining: AtomicBool,
    workers: Vec<mpsc::Sender<Command>>,
    reopen: Reopen,
    baseline: Baseline,
}

/// Method, path, what it shows; `/help` is made of it.
const PATHS: &[(&str, &str, &str)] = &[
    ("GET", "/help", "this list"),
    ("GET", "/ready", "LIVE once configured, 503 before"),
    ("GET", "/server_info", "version, node and state"),
    ("GET", "/stats", "counters and gauges; ?filter=REGEX ?usedonly ?format=json|prometheus"),
    ("GET", "/stats/prometheus", "all metrics; ?filter=REGEX ?usedonly"),
    ("GET", "/metrics", "the same"),
    ("GET", "/clusters", "backends and endpoints; ?format=json"),
    ("GET", "/listeners", "open doors and their addresses; ?format=json"),
    ("GET", "/config_dump", "the table in use, without keys (?resource=hosts&mask=host.name)"),
    ("GET", "/explain", "why it would answer a request so; ?url=URL &method=M &header=N:V"),
    ("GET", "/certs", "certificates in use, without keys"),
    ("GET", "/memory", "resident memory"),
    ("GET", "/cache", "what gateways have stored: counts and bytes"),
    ("POST", "/cache/purge", "forget the stored answers of URLs that begin with ?prefix=URL"),
    ("POST", "/healthcheck/fail", "be taken for not ready until /healthcheck/ok"),
    ("POST", "/healthcheck/ok", "be ready again"),
    ("POST", "/reset_counters", "counters of /stats begin at 0 again; not those of Prometheus"),
    ("POST", "/logging", "levels of this process's log; ?level=L ?NAME=L ?paths=NAME:L,..."),
    ("POST", "/reopen_logs", "open the access log's file again, as SIGUSR1 does"),
    ("POST", "/drain_listeners", "take nothing new; ?graceful ?inboundonly ?skip_exit"),
    ("POST", "/quitquitquit", "finish what is open, take nothing new, end"),
];

/// What a health check that a client defined may ask of these doors: it comes from this machine,
/// which may do more than the client.
const FOR_CHECKS: [&str; 4] = ["/ready", "/healthz/ready", "/metrics", "/stats/prometheus"];

/// Serves one door until the group stops.
pub async fn serve(socket: TcpListener, admin: Arc<Admin>, role: Role, tasks: TaskGroup) {
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = tasks.draining() => return,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (admin, draining) = (admin.clone(), tasks.clone());
        tasks.spawn("admin connection", async move {
            let service = service_fn(|request| {
                let answer = admin.answer(role, &request);
                async move { Ok::<_, Infallible>(answer) }
            });
            let serving = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                // A client that leaves is nobody's trouble.
                _ = serving => {}
                () = draining.draining() => {}
            }
        });
    }
}

// === impl Admin ===

impl Admin {
    pub fn new(
        config: Arc<ProxyConfig>,
        names: Names,
        status: Status,
        cells: Vec<Arc<WorkerCells>>,
        quit: CancellationToken,
        cache: Arc<Store>,
    ) -> Self {
        let (identity, clock) = (None, Clock::system());
        Self {
            config,
            names,
            status,
            cells,
            quit,
            cache,
            identity,
            clock,
            failing: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            workers: Vec::new(),
            reopen: Reopen::default(),
            baseline: Baseline::default(),
        }
    }

    /// The same, with whom to tell that nothing new is to be taken, and who writes the access log.
    #[must_use]
    pub fn over(self, workers: Vec<mpsc::Sender<Command>>, reopen: Reopen) -> Self {
        Self { workers, reopen, ..self }
    }

    /// The same for a proxy with an identity, whose certificate it shows.
    #[must_use]
    pub fn identified(self, identity: Option<Snapshot<Svid>>, clock: Clock) -> Self {
        Self { identity, clock, ..self }
    }

    fn answer<B>(&self, role: Role, request: &Request<B>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        if is_out_of_bounds(request.headers(), path) {
            let why = "health checks that clients define may ask a proxy for its health only\n";
            return text(StatusCode::FORBIDDEN, why.into());
        }
        if role == Role::Admin && !is_local(request.headers()) {
            return text(StatusCode::FORBIDDEN, "ask by address, and not from a web page\n".into());
        }
        let path = if path == "/" { "/help" } else { path };
        let method = match (role, path) {
            (_, "/metrics" | "/stats/prometheus" | "/ready" | "/healthz/ready") => Some("GET"),
            (Role::Ready | Role::Metrics, _) => None,
            (Role::Admin, _) => PATHS.iter().find(|(_, p, _)| *p == path).map(|(m, ..)| *m),
        };
        let read = request.method() == Method::GET || request.method() == Method::HEAD;
        match method {
            None if role == Role::Admin => {
                text(StatusCode::NOT_FOUND, format!("not found\n{}", help()))
            }
            None => text(StatusCode::NOT_FOUND, "not found\n".into()),
            Some("GET") if read => self.show(path, request),
            Some("POST") if request.method() == Method::POST || !guards::on("admin-post") => {
                self.change(path, request.uri().query().unwrap_or(""))
            }
            Some(method) => {
                let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, format!("use {method}\n"));
                refused.headers_mut().insert(ALLOW, HeaderValue::from_static(method));
                refused
            }
        }
    }

    /// Everything that only shows.
    fn show<B>(&self, path: &str, request: &Request<B>) -> Response<Full<Bytes>> {
        if path == "/explain" {
            return self.explained(request.uri().query().unwrap_or(""));
        }
        let query = match Query::parse(request.uri().query().unwrap_or("")) {
            Ok(query) => query,
            Err(why) => return text(StatusCode::BAD_REQUEST, why),
        };
        let is_json = query.format == Some("json");
        match path {
            "/metrics" | "/stats/prometheus" => self.metrics(request.headers(), &query),
            "/stats" if query.format == Some("prometheus") => {
                self.metrics(request.headers(), &query)
            }
            "/stats" if is_json => json(&stats::as_json(&self.stats(), &query)),
            "/stats" => text(StatusCode::OK, stats::as_text(&self.stats(), &query)),
            "/ready" | "/healthz/ready" => self.ready(),
            "/server_info" => json(&self.server_info()),
            "/clusters" if is_json => json(&self.clusters()),
            "/clusters" => text(StatusCode::OK, self.clusters_text()),
            "/listeners" if is_json => json(&self.listeners_json()),
            "/listeners" => text(StatusCode::OK, self.listeners()),
            "/config_dump" => match dump::Asked::parse(request.uri().query().unwrap_or("")) {
                Ok(asked) => json(&dump::dumped(&self.status.table.load(), &asked)),
                Err(why) => text(StatusCode::BAD_REQUEST, why),
            },
            "/certs" => {
                let svid = self.identity.as_ref().map(Snapshot::load);
                let table = self.status.table.load();
                json(&certificates::shown(svid.as_deref(), &table, self.clock.wall_ms()))
            }
            "/cache" => json(&self.cache.shown()),
            "/memory" => json(&stats::memory()),
            _ => text(StatusCode::OK, help()),
        }
    }

    /// Everything that changes something; asked for by POST.
    fn change(&self, path: &str, query: &str) -> Response<Full<Bytes>> {
        match path {
            "/healthcheck/fail" => self.failing.store(true, Ordering::Relaxed),
            "/cache/purge" => return self.purge(query),
            "/healthcheck/ok" => self.failing.store(false, Ordering::Relaxed),
            "/reset_counters" => {
                self.baseline.reset(stats::all(&self.collector(), &self.status.table.load()));
            }
            "/reopen_logs" => self.reopen.ask(),
            "/logging" => return control::logging(&self.config, query),
            "/drain_listeners" => return self.drain_listeners(query),
            _ => self.quit.cancel(),
        }
        text(StatusCode::OK, "OK\n".into())
    }

    /// The process goes on, and whatever is open in it.
    fn drain_listeners(&self, query: &str) -> Response<Full<Bytes>> {
        let leave = match control::leave(query) {
            Ok(leave) => leave,
            Err(why) => return text(StatusCode::BAD_REQUEST, why),
        };
        self.draining.store(true, Ordering::Relaxed);
        let told = self.workers.iter().map(|w| w.try_send(Command::Leave(leave)));
        let busy = told.filter(Result::is_err).count();
        match busy {
            0 => text(StatusCode::OK, "OK\n".into()),
            _ => text(StatusCode::SERVICE_UNAVAILABLE, "workers are busy: ask again\n".into()),
        }
    }

    fn purge(&self, query: &str) -> Response<Full<Bytes>> {
        let Some(prefix) = query.strip_prefix("prefix=").filter(|prefix| !prefix.is_empty()) else {
            let how = "say of what: /cache/purge?prefix=https://HOST/PATH (the URL as it is)\n";
            return text(StatusCode::BAD_REQUEST, how.into());
        };
        json(&json!({ "forgotten": self.cache.purge(prefix) }))
    }

    /// Ready: a table was committed. The mesh door is open only with a certificate, so an
    /// identity is there by then.
    fn ready(&self) -> Response<Full<Bytes>> {
        if self.is_leaving() {
            return text(StatusCode::SERVICE_UNAVAILABLE, "DRAINING\n".into());
        }
        if self.status.is_configured() {
            return text(StatusCode::OK, "LIVE\n".into());
        }
        text(StatusCode::SERVICE_UNAVAILABLE, "PRE_INITIALIZING: no configuration yet\n".into())
    }

    fn is_leaving(&self) -> bool {
        let told = [&self.failing, &self.draining];
        self.quit.is_cancelled() || told.iter().any(|told| told.load(Ordering::Relaxed))
    }

    fn collector(&self) -> ProxyCollector {
        ProxyCollector {
            cells: self.cells.clone(),
            status: self.status.clone(),
            names: self.names.clone(),
            cache: self.cache.clone(),
            clock: self.clock.clone(),
        }
    }

    /// OpenMetrics for those who ask for it, the classic text format for all others.
    fn metrics(&self, headers: &HeaderMap, query: &Query<'_>) -> Response<Full<Bytes>> {
        let asked = headers
            .get(ACCEPT)
            .is_some_and(|a| a.to_str().is_ok_and(|a| a.contains("application/openmetrics-text")));
        let (rendered, kind) = match asked {
            true => (render(self.collector()), OPENMETRICS),
            false => (render_classic(self.collector()), CLASSIC),
        };
        match rendered {
            Ok(rendered) => {
                let mut response = text(StatusCode::OK, query.narrowed(rendered));
                let kind = HeaderValue::from_static(kind);
                response.headers_mut().insert(CONTENT_TYPE, kind);
                response
            }
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    fn stats(&self) -> Vec<stats::Stat> {
        self.baseline.since(stats::all(&self.collector(), &self.status.table.load()))
    }

    fn server_info(&self) -> Value {
        let state = match (self.is_leaving(), self.status.is_configured()) {
            (true, _) => "DRAINING",
            (false, true) => "LIVE",
            (false, false) => "PRE_INITIALIZING",
        };
        json!({
            "version": concat!("weft/", env!("CARGO_PKG_VERSION")),
            "state": state,
            "node": { "id": self.config.node.to_string() },
            "command_line_options": { "concurrency": self.config.workers },
            "weft": {
                "generation": self.status.generation.load(Ordering::Relaxed),
                "from_last_good": self.status.from_last_good.load(Ordering::Relaxed),
                "principal": &*self.names.principal,
                // Why the newest file is not in use.
                "refused": self.status.refused(),
            },
        })
    }

    fn explained(&self, query: &str) -> Response<Full<Bytes>> {
        if query.is_empty() {
            let how = "name the request: /explain?url=http://HOST/PATH (percent-encoded), and if \
                       need be &method=POST, &header=NAME:VALUE, &listener=NAME\n";
            return text(StatusCode::BAD_REQUEST, how.into());
        }
        let table = self.status.table.load();
        match explained::answer(&self.config, &table, self.clock.now(), query) {
            Ok(said) => json(&said),
            Err(why) => text(StatusCode::BAD_REQUEST, format!("{why}\n")),
        }
    }

    fn clusters(&self) -> Value {
        let table = self.status.table.load();
        let status = |b: &Arc<BackendEntry>| {
            let hosts: Vec<Value> = b.endpoints.iter().map(|e| self.host(e)).collect();
            json!({ "name": &*b.cluster, "added_via_api": true, "host_statuses": hosts })
        };
        json!({ "cluster_statuses": all_backends(&table).map(status).collect::<Vec<_>>() })
    }

    fn host(&self, entry: &EndpointEntry) -> Value {
        let e = &entry.endpoint;
        let health = match e.health {
            Health::Healthy => "HEALTHY",
            Health::Unhealthy => "UNHEALTHY",
            Health::Draining => "DRAINING",
        };
        let active = entry.shared.in_flight().to_string();
        json!({
            "address": { "socket_address": {
                "address": e.address.ip().to_string(),
                "port_value": e.address.port(),
            } },
            "stats": [
                { "type": "GAUGE", "name": "rq_active", "value": active },
            ],
            "health_status": {
                "eds_health_status": health,
                "failed_active_health_check": entry.shared.is_failing(),
                "failed_outlier_check": entry.shared.is_ejected(self.clock.now()),
            },
            "weight": e.weight,
            "hostname": &*e.id,
        })
    }

    fn clusters_text(&self) -> String {
        let (mut out, now) = (String::new(), self.clock.now());
        for backend in all_backends(&self.status.table.load()) {
            for entry in &backend.endpoints {
                let (name, e) = (&backend.cluster, &entry.endpoint);
                let health = health_flags(entry, now);
                let _ = writeln!(out, "{name}::{}::health_flags::{health}", e.address);
                let _ = writeln!(out, "{name}::{}::weight::{}", e.address, e.weight);
                let active = entry.shared.in_flight();
                let _ = writeln!(out, "{name}::{}::rq_active::{active}", e.address);
            }
        }
        out
    }

    fn listeners(&self) -> String {
        let mut out = String::new();
        for (door, address) in self.status.sockets() {
            let _ = writeln!(out, "{door:?}::{address}");
        }
        out
    }

    fn listeners_json(&self) -> Value {
        let sockets = self.status.sockets();
        let status = |(door, at): &(crate::table::Door, std::net::SocketAddr)| {
            let (address, port_value) = (at.ip().to_string(), at.port());
            let socket = json!({ "address": address, "port_value": port_value });
            json!({ "name": format!("{door:?}"), "local_address": { "socket_address": socket } })
        };
        json!({ "listener_statuses": sockets.iter().map(status).collect::<Vec<_>>() })
    }
}

/// What is wrong with an endpoint, in Envoy's words.
fn health_flags(entry: &EndpointEntry, now: Mono) -> String {
    let said = match entry.endpoint.health {
        Health::Healthy => "",
        Health::Unhealthy => "/failed_eds_health",
        Health::Draining => "/eds_status_draining",
    };
    let failing = if entry.shared.is_failing() { "/failed_active_hc" } else { "" };
    let ejected = if entry.shared.is_ejected(now) { "/failed_outlier_check" } else { "" };
    let all = [said, failing, ejected].concat();
    if all.is_empty() { "/healthy".to_owned() } else { all }
}

/// A web page must not reach the admin door through its reader's browser: pages send Origin, and
/// a name that was rebound to this address is no address.
fn is_local(headers: &HeaderMap) -> bool {
    let host = headers.get(HOST).and_then(|h| h.to_str().ok()).and_then(Authority::parse);
    let by_address = host.is_some_and(|a| a.ip().is_some() || a.host == "localhost");
    (by_address && !headers.contains_key(ORIGIN)) || !guards::on("admin-local")
}

fn is_out_of_bounds(headers: &HeaderMap, path: &str) -> bool {
    headers.contains_key(CHECK_HEADER) && !FOR_CHECKS.contains(&path) && guards::on("client-checks")
}

pub(super) fn all_backends(table: &Table) -> impl Iterator<Item = &Arc<BackendEntry>> {
    table.backends().chain(table.inbounds().map(|i| &i.backend))
}

fn help() -> String {
    let mut out = String::new();
    for (method, path, what) in PATHS {
        let _ = writeln!(out, "{method:5} {path:20} {what}");
    }
    out
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if guards::on("admin-nosniff") {
        headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn json(value: &Value) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::OK, format!("{value:#}\n"));
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
