// SPDX-License-Identifier: Apache-2.0
//! `pods/log`: the output of containers, from whoever runs them.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use serde_json::Value;
use thiserror::Error;
use weft_kinds::kind::KindId;

use super::path::Objects;
use super::status::ApiError;
use super::{Ask, Door};
use crate::json::Fields;

/// Where the output of pods is kept; the agent's side of `kubectl logs`.
pub trait PodLogs: Send + Sync + 'static {
    /// Opens the output of one container.
    fn open(&self, request: LogRequest) -> BoxFuture<'_, Result<LogPieces, LogError>>;
}

/// Pieces of output, whole lines; ends when all is told and nothing is followed.
pub type LogPieces = BoxStream<'static, std::io::Result<Bytes>>;

/// What is wanted of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogRequest {
    pub namespace: String,
    pub pod: String,
    pub uid: String,
    pub container: String,
    pub follow: bool,
    /// The process before the present one.
    pub previous: bool,
    pub timestamps: bool,
    pub tail_lines: Option<u64>,
    /// Only lines from then on, in milliseconds of the wall clock.
    pub since_wall_ms: Option<u64>,
    pub limit_bytes: Option<u64>,
}

#[derive(Clone, Debug, Error)]
pub enum LogError {
    /// There is no output yet, or not of that process; the sentence says which.
    #[error("{0}")]
    NotThere(String),
    #[error("the log cannot be read: {0}")]
    Unreadable(String),
}

impl Door {
    pub(super) async fn log(&self, target: &Objects, ask: &Ask) -> Result<Response, ApiError> {
        let namespace = target.namespace.clone().unwrap_or_default();
        let pod = target.name.clone().unwrap_or_default();
        let object = self.registry.objects().get(KindId::Pod, &namespace, &pod)?;
        let query = &ask.query;
        let since = match query.text("sinceTime") {
            "" => {
                let seconds = query.number("sinceSeconds")?;
                seconds.map(|s| self.now_ms().saturating_sub(s.saturating_mul(1000)))
            }
            time => {
                let then = time.parse::<jiff::Timestamp>().map_err(|_| {
                    ApiError::bad_request(format!("sinceTime {time:?} is not a time"))
                })?;
                Some(u64::try_from(then.as_millisecond()).unwrap_or(0))
            }
        };
        let container = container(&object, query.text("container"), &pod)?;
        // While it waits to be started again, its last process is the one before.
        let previous = query.flag("previous") && !waits_after_end(&object, &container);
        let request = LogRequest {
            container,
            uid: object.at("metadata").at("uid").as_str().unwrap_or_default().to_owned(),
            namespace,
            pod,
            follow: query.flag("follow"),
            previous,
            timestamps: query.flag("timestamps"),
            tail_lines: query.number("tailLines")?,
            since_wall_ms: since,
            limit_bytes: query.number("limitBytes")?,
        };
        let pieces = self.logs.open(request).await.map_err(|error| match error {
            LogError::NotThere(_) => ApiError::bad_request(error.to_string()),
            LogError::Unreadable(_) => {
                ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", error.to_string())
            }
        })?;
        // A follower shall not hold up the server's end.
        let tasks = self.registry.tasks().clone();
        let pieces = pieces.take_until(async move { tasks.draining().await });
        let mut response = Response::new(Body::from_stream(pieces));
        let text = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, text);
        Ok(response)
    }
}

/// Whether a container's newest process has ended and another is to come.
fn waits_after_end(pod: &Value, container: &str) -> bool {
    let status = pod.at("status");
    let lists = ["containerStatuses", "initContainerStatuses"].map(|f| status.at(f).as_array());
    let mut all = lists.into_iter().flatten().flatten();
    let own = all.find(|c| c.at("name").as_str() == Some(container));
    own.is_some_and(|c| {
        c.at("state").at("waiting").is_object() && c.at("lastState").at("terminated").is_object()
    })
}

/// The container that is meant; a pod with one needs no name.
pub(super) fn container(pod: &Value, named: &str, name: &str) -> Result<String, ApiError> {
    let list = |field: &str| -> Vec<String> {
        let all = pod.at("spec").at(field).as_array().into_iter().flatten();
        all.filter_map(|c| c.at("name").as_str().map(str::to_owned)).collect()
    };
    let (containers, init) = (list("containers"), list("initContainers"));
    if named.is_empty() {
        return match containers.as_slice() {
            [one] => Ok(one.clone()),
            many => Err(ApiError::bad_request(format!(
                "a container name must be specified for pod {name}, choose one of: [{}]",
                many.join(" ")
            ))),
        };
    }
    // The sidecar is weft's own and not in the spec.
    if containers.iter().chain(&init).any(|c| c == named) || named == "weft-proxy" {
        return Ok(named.to_owned());
    }
    Err(ApiError::bad_request(format!("container {named} is not valid for pod {name}")))
}
