// SPDX-License-Identifier: Apache-2.0
//! The Kubernetes-style door: kubectl, client libraries and GitOps tools find an API server with
//! the kinds of `weft_kinds::kind::KINDS`.
//!
//! Called by the binary, which merges [`router`] with other routes and serves them. It decodes,
//! defaults, validates and shows; storing, ownership and garbage are the registry's.

mod body;
mod definitions;
mod delete;
mod discovery;
mod evict;
mod exec;
pub mod fuzz;
mod logs;
mod metrics;
mod path;
mod portforward;
mod present;
mod protobuf;
mod query;
mod read;
mod review;
mod scale;
mod selector;
mod status;
mod stream;
mod table;
mod visit;
mod watch;
mod write;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode};
use serde_json::{Value, json};
use weft_kinds::kind::{KindId, Subresource};
use weft_kinds::openapi;
use weft_registry::Registry;

pub use logs::{LogError, LogPieces, LogRequest, PodLogs};
pub use metrics::Meter;
use path::{Objects, Target};
use query::Query;
use status::{ApiError, json_response};
pub use visit::{
    Ending, Opened, PodRef, PodStreams, StreamError, TerminalSize, Visit, VisitIo, VisitWhat,
    connection,
};

/// The Kubernetes that clients compare themselves with.
const KUBERNETES_MINOR: &str = "33";

/// Whoever runs the pods, as the door knows it.
#[derive(Clone)]
pub struct Pods {
    /// Where their output is.
    pub logs: Arc<dyn PodLogs>,
    /// Who runs programs in them and connects to their ports.
    pub streams: Arc<dyn PodStreams>,
    /// Who measures what they use.
    pub meter: Arc<dyn Meter>,
}

/// What the door needs of the rest.
#[derive(Clone)]
pub struct Door {
    registry: Registry,
    logs: Arc<dyn PodLogs>,
    streams: Arc<dyn PodStreams>,
    meter: Arc<dyn Meter>,
    /// weft's own version.
    version: &'static str,
    sessions: stream::Sessions,
}

/// One request, taken apart.
struct Ask {
    parts: Parts,
    query: Query,
}

type Answer = Result<Response, ApiError>;

/// The door's routes: `/api`, `/apis`, `/openapi`, `/version` and the health paths.
pub fn router(door: Door) -> Router {
    let handler = any(handle);
    let mut router = Router::new();
    for path in [
        "/api",
        "/api/",
        "/api/{*rest}",
        "/apis",
        "/apis/",
        "/apis/{*rest}",
        "/openapi/{*rest}",
        "/version",
        "/version/",
        "/livez",
        "/readyz",
        "/healthz",
        "/livez/{*rest}",
        "/readyz/{*rest}",
        "/healthz/{*rest}",
    ] {
        router = router.route(path, handler.clone());
    }
    router.with_state(Arc::new(door))
}

async fn handle(State(door): State<Arc<Door>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let ask = Ask { query: Query::parse(parts.uri.query()), parts };
    let answer = door.answer(ask, body).await;
    answer.unwrap_or_else(IntoResponse::into_response)
}

// === impl Pods ===

impl std::fmt::Debug for Pods {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("k8s::Pods")
    }
}

// === impl Door ===

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("k8s::Door").field("version", &self.version).finish_non_exhaustive()
    }
}

impl Door {
    pub fn new(registry: Registry, pods: Pods, version: &'static str) -> Self {
        let Pods { logs, streams, meter } = pods;
        Self { registry, logs, streams, meter, version, sessions: stream::Sessions::default() }
    }

    async fn answer(&self, ask: Ask, body: Body) -> Answer {
        // Kubernetes' names hold no encoded slashes, so decoding first is safe here.
        let path = query::decode(&ask.parts.uri.path().replace('+', "%2B"));
        match path.trim_end_matches('/') {
            "/version" => return Ok(json_response(StatusCode::OK, &self.version())),
            "/livez" | "/readyz" | "/healthz" => return Ok("ok".into_response()),
            p if p.starts_with("/livez/") || p.starts_with("/readyz/") => {
                return Ok("ok".into_response());
            }
            "/openapi/v2" => return Ok(openapi_v2(&ask)),
            p if p.starts_with("/openapi/") => return self.openapi(p, &ask.query),
            _ => {}
        }
        let Some(target) = path::parse(&path) else { return Err(ApiError::no_such_path()) };
        match target {
            Target::Objects(objects) => self.objects(objects, ask, body).await,
            Target::Figures(figures) => self.figures(&figures, &ask).await,
            Target::Review { kind, group } if ask.parts.method == Method::POST => {
                let body = body::read(body).await?;
                review::answer(&group, kind, ask.content_type(), &body)
            }
            Target::Review { kind, .. } => Err(ApiError::method(&ask.parts.method, kind)),
            Target::Definitions { name } => self.definitions(name.as_deref(), &ask, body).await,
            _ if ask.parts.method != Method::GET && ask.parts.method != Method::HEAD => {
                Err(ApiError::method(&ask.parts.method, "discovery"))
            }
            discovery => discover(&discovery, &ask),
        }
    }

    async fn objects(&self, target: Objects, ask: Ask, body: Body) -> Answer {
        let method = ask.parts.method.clone();
        let what = target.kind.row().plural;
        match (method.as_str(), target.sub.as_deref(), target.name.is_some()) {
            ("GET" | "HEAD", None, false) => self.list_or_watch(target, &ask).await,
            ("GET" | "HEAD", None, true) => self.get(target, &ask).await,
            ("POST", None, false) => self.create(target, &ask, body).await,
            ("PUT", None, true) => self.update(target, &ask, body).await,
            ("PATCH", None, true) => self.patch(target, &ask, body).await,
            ("DELETE", None, true) => self.delete(target, &ask, body).await,
            ("DELETE", None, false) => self.delete_all(target, &ask, body).await,
            (verb, Some("status"), true) if target.kind.row().has(Subresource::Status) => {
                match verb {
                    "GET" | "HEAD" => self.get(target, &ask).await,
                    "PUT" => self.update(target, &ask, body).await,
                    "PATCH" => self.patch(target, &ask, body).await,
                    _ => Err(ApiError::method(&method, what)),
                }
            }
            (verb, Some("scale"), true) if target.kind.row().has(Subresource::Scale) => {
                match verb {
                    "GET" | "HEAD" => self.get_scale(&target, &ask),
                    "PUT" | "PATCH" => self.set_scale(&target, &ask, body).await,
                    _ => Err(ApiError::method(&method, what)),
                }
            }
            ("POST", Some("eviction"), true) if target.kind.row().has(Subresource::Eviction) => {
                self.evict(&target, &ask, body).await
            }
            ("GET", Some("log"), true) if target.kind.row().has(Subresource::Log) => {
                self.log(&target, &ask).await
            }
            ("GET" | "POST", Some(sub), true) if target.kind == KindId::Pod => match sub {
                "exec" | "attach" => self.exec(&target, ask).await,
                "portforward" => self.port_forward(&target, ask),
                _ => Err(ApiError::no_such_path()),
            },
            (_, Some(_), _) => Err(ApiError::no_such_path()),
            _ => Err(ApiError::method(&method, what)),
        }
    }

    fn version(&self) -> Value {
        json!({
            "major": "1", "minor": KUBERNETES_MINOR,
            "gitVersion": format!("v1.{KUBERNETES_MINOR}.0+weft.{}", self.version),
            "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
            "goVersion": "none", "compiler": "rustc",
            "platform": format!("{}/{}", std::env::consts::OS, platform()),
        })
    }

    fn openapi(&self, path: &str, query: &Query) -> Answer {
        let Some(rest) = path.strip_prefix("/openapi/v3") else {
            return Err(ApiError::no_such_path());
        };
        if rest.is_empty() {
            let hash = openapi::hash();
            let mut paths = serde_json::Map::new();
            for (group, version) in openapi::group_versions() {
                let path = openapi::path_of(group, version);
                let url = format!("/openapi/v3/{path}?hash={hash}");
                paths.insert(path, json!({"serverRelativeURL": url}));
            }
            return Ok(json_response(StatusCode::OK, &json!({"paths": paths})));
        }
        let mut parts = rest.trim_matches('/').split('/');
        let found = match (parts.next(), parts.next(), parts.next()) {
            (Some("api"), Some(version), None) => openapi::document("", version),
            (Some("apis"), Some(group), Some(version)) => openapi::document(group, version),
            _ => None,
        };
        match found {
            Some(document) => {
                let mut response = json_response(StatusCode::OK, &document);
                if query.text("hash") == openapi::hash() {
                    // The URL changes with the content, so clients may keep it.
                    let forever = HeaderValue::from_static("public, immutable, max-age=31536000");
                    response.headers_mut().insert(http::header::CACHE_CONTROL, forever);
                }
                Ok(response)
            }
            None => Err(ApiError::no_such_path()),
        }
    }

    fn now_ms(&self) -> u64 {
        self.registry.clock().wall_ms()
    }

    fn timestamp(&self) -> String {
        weft_registry::objects::meta::timestamp(self.now_ms())
    }
}

// === impl Ask ===

impl Ask {
    fn content_type(&self) -> Option<&str> {
        self.parts.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok())
    }

    /// Who changes fields: `fieldManager`, or the client program's name.
    fn manager(&self) -> String {
        let named = self.query.text("fieldManager");
        if !named.is_empty() {
            return named.chars().take(128).collect();
        }
        let agent = self.parts.headers.get(USER_AGENT).and_then(|v| v.to_str().ok());
        let agent = agent.unwrap_or_default().split('/').next().unwrap_or_default();
        let agent: String = agent.chars().filter(|c| c.is_ascii_graphic()).take(128).collect();
        if agent.is_empty() { "unknown".to_owned() } else { agent }
    }
}

fn discover(target: &Target, ask: &Ask) -> Answer {
    let accept = ask.parts.headers.get(http::header::ACCEPT).and_then(|v| v.to_str().ok());
    let form = discovery::Form::of(accept.unwrap_or_default());
    let (value, form) = match target {
        Target::Core => (discovery::core(form), form),
        Target::Groups => (discovery::groups(form), form),
        Target::Group(name) => (discovery::group(name)?, discovery::Form::Legacy),
        Target::Resources { group, version } => {
            (discovery::resources(group, version)?, discovery::Form::Legacy)
        }
        Target::Objects(_)
        | Target::Figures(_)
        | Target::Review { .. }
        | Target::Definitions { .. } => return Err(ApiError::no_such_path()),
    };
    let mut response = json_response(StatusCode::OK, &value);
    if let Ok(media) = HeaderValue::from_str(&form.content_type()) {
        response.headers_mut().insert(CONTENT_TYPE, media);
    }
    response.headers_mut().insert(http::header::VARY, HeaderValue::from_static("Accept"));
    Ok(response)
}

/// An OpenAPI v2 document that describes nothing: kubectl asks for it before it says that a kind
/// is unknown, and takes the version 3 documents for all that is known.
fn openapi_v2(ask: &Ask) -> Response {
    const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    let accept = ask.parts.headers.get(http::header::ACCEPT).and_then(|v| v.to_str().ok());
    if accept.is_some_and(|a| a.contains("proto-openapi.spec.v2")) {
        // The empty message has no bytes.
        return ([(CONTENT_TYPE, PROTOBUF)], Body::empty()).into_response();
    }
    let empty = json!({"swagger": "2.0", "info": {"title": "weft", "version": "0"}, "paths": {},
        "definitions": {}});
    json_response(StatusCode::OK, &empty)
}

/// The machine's architecture in Go's words, which clients expect.
fn platform() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests;
