// SPDX-License-Identifier: Apache-2.0
//! Serving HTTP and stopping politely: on SIGTERM a service first goes on answering for a
//! moment (not ready, `connection: close`), then takes no more, and ends when the requests in
//! flight are answered. Called by the three services.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::ListenerExt;
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::Common;

/// Largest request body.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// How long requests in flight may take to end once the service stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// The two steps of stopping.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle {
    /// Asked to stop: not ready any more, requests still served.
    pub draining: CancellationToken,
    /// Takes no new connections; requests in flight are finished.
    pub stopping: CancellationToken,
}

/// An answer that is not a success, as JSON `{"error": sentence, "field": path}`.
#[derive(Debug)]
pub struct Refusal {
    /// HTTP status.
    pub status: StatusCode,
    /// What is wrong and what to do.
    pub error: String,
    /// The field of the body that is wrong, if one is.
    pub field: Option<&'static str>,
}

// === impl Lifecycle ===

impl Lifecycle {
    /// Listens for SIGTERM and SIGINT. A second signal skips the draining.
    pub fn start(drain: Duration) -> io::Result<Lifecycle> {
        let life = Lifecycle::default();
        let (mut term, mut int) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let task = life.clone();
        tokio::spawn(async move {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            task.draining.cancel();
            tokio::select! {
                () = tokio::time::sleep(drain) => {}
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            task.stopping.cancel();
        });
        Ok(life)
    }
}

// === impl Refusal ===

impl Refusal {
    /// A refusal that names no field.
    pub fn new(status: StatusCode, error: impl Into<String>) -> Refusal {
        Refusal { status, error: error.into(), field: None }
    }

    /// A body field is wrong.
    pub fn field(status: StatusCode, field: &'static str, error: impl Into<String>) -> Refusal {
        Refusal { status, error: error.into(), field: Some(field) }
    }
}

impl From<crate::db::DbError> for Refusal {
    fn from(error: crate::db::DbError) -> Refusal {
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = match self.field {
            Some(field) => json!({ "error": self.error, "field": field }),
            None => json!({ "error": self.error }),
        };
        json_response(self.status, &body)
    }
}

// === functions ===

/// Runs a service on one thread and turns its end into an exit code.
pub fn run(name: &str, service: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.map_err(anyhow::Error::from).and_then(|r| r.block_on(service));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log(name, "failed", json!({ "error": format!("{error:#}") }));
            ExitCode::FAILURE
        }
    }
}

/// Binds a port; the error says which.
pub async fn bind(addr: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(addr).await.map_err(|e| {
        anyhow::anyhow!("cannot listen on {addr}: {e}; choose another with --listen and --port")
    })
}

/// Prints the one line that says the service is up, for people and for tests.
pub fn announce(service: &str, common: &Common, http: SocketAddr, grpc: Option<SocketAddr>) {
    let database = std::path::absolute(&common.database).unwrap_or(common.database.clone());
    let line = json!({
        "event": "listening",
        "service": service,
        "version": common.version,
        "instance": common.instance,
        "http": http,
        "grpc": grpc,
        "database": database,
        "pid": std::process::id(),
    });
    println!("{line}");
}

/// Writes one JSON line to standard error.
pub fn log(service: &str, event: &str, details: serde_json::Value) {
    eprintln!("{}", json!({ "event": event, "service": service, "details": details }));
}

/// Serves until the life cycle says stop and the last request is answered.
pub async fn serve_http(
    listener: TcpListener,
    routes: Router,
    common: &Common,
    life: &Lifecycle,
) -> anyhow::Result<()> {
    let stamp = Stamp::new(common, life);
    let app = routes
        .route("/healthz", get(healthz).with_state(life.clone()))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(stamp, stamp_response));
    let listener = listener.tap_io(|io| {
        // Small answers must not wait for Nagle's algorithm; a socket that refuses still works.
        let _ = io.set_nodelay(true);
    });
    let stop = life.stopping.clone();
    let server = axum::serve(listener, app).with_graceful_shutdown(stop.clone().cancelled_owned());
    finish("http", &stop, server.into_future()).await
}

/// Awaits a server; once it should stop it gets [`STOP_TIMEOUT`] to finish.
pub async fn finish<E: Into<anyhow::Error>>(
    what: &str,
    stop: &CancellationToken,
    server: impl Future<Output = Result<(), E>>,
) -> anyhow::Result<()> {
    let late = async {
        stop.cancelled().await;
        tokio::time::sleep(STOP_TIMEOUT).await;
    };
    tokio::select! {
        done = server => done.map_err(Into::into),
        () = late => Err(anyhow::anyhow!(
            "{what}: requests still ran {} s after the stop, they are cut", STOP_TIMEOUT.as_secs()
        )),
    }
}

/// A JSON answer.
pub fn json_response<T: Serialize>(status: StatusCode, body: &T) -> Response {
    let bytes = serde_json::to_vec(body).unwrap_or_else(|_| b"null".to_vec());
    (status, [(header::CONTENT_TYPE, "application/json")], bytes).into_response()
}

// === helpers ===

#[derive(Clone)]
struct Stamp {
    life: Lifecycle,
    version: HeaderValue,
    instance: HeaderValue,
}

impl Stamp {
    fn new(common: &Common, life: &Lifecycle) -> Stamp {
        let value =
            |text: &str| HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("?"));
        Stamp {
            life: life.clone(),
            version: value(&common.version),
            instance: value(&common.instance),
        }
    }
}

async fn stamp_response(State(stamp): State<Stamp>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(HeaderName::from_static("x-shop-version"), stamp.version);
    headers.insert(HeaderName::from_static("x-shop-instance"), stamp.instance);
    if stamp.life.draining.is_cancelled() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn healthz(State(life): State<Lifecycle>) -> Response {
    if life.draining.is_cancelled() {
        return Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "stopping").into_response();
    }
    json_response(StatusCode::OK, &json!({ "status": "ok" }))
}

async fn no_such_path(request: Request) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, format!("nothing is at {}", request.uri().path()))
}

async fn no_such_method(request: Request) -> Refusal {
    let error = format!("{} is not possible on {}", request.method(), request.uri().path());
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, error)
}
