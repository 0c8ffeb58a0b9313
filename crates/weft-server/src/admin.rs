// SPDX-License-Identifier: Apache-2.0
//! The operators' part of the API door: `/v1/weft/*`, Prometheus discovery, `/metrics`.
//!
//! Facts are computed by the binary, which sees every plane, and come in through [`Facts`]; this
//! module only gives them addresses.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::future::BoxFuture;
use serde_json::Value;

/// What an operator can ask. Calls answer from snapshots and never wait, unless they say so.
pub trait Facts: Send + Sync + 'static {
    /// Services with their load, proxies in sync, problems with reason and next step.
    fn status(&self) -> Value;
    /// What each proxy was sent, applied and refused.
    fn proxies(&self) -> Value;
    /// Who takes traffic; empty arguments mean all.
    fn endpoints(&self, namespace: &str, service: &str) -> Value;
    /// Why a request would be answered as it would be; an error is a sentence for who asked.
    /// Asks the running proxy, and so may wait for it.
    fn explain(&self, question: Value) -> BoxFuture<'_, Result<Value, String>>;
    /// Encrypted or not, bypassable or not, per service.
    fn mtls(&self) -> Value;
    /// Prometheus HTTP service discovery: a list of `{targets, labels}`.
    fn targets(&self) -> Value;
    /// The server's own metrics, Prometheus text format 0.0.4.
    fn metrics(&self) -> String;
    /// The server's log as of one revision; an error says what to do instead.
    fn backup(&self) -> Result<Vec<u8>, String>;
}

/// The operators' routes.
pub fn router(facts: Arc<dyn Facts>) -> Router {
    Router::new()
        .route(
            "/v1/weft/status",
            get(|State(f): State<Arc<dyn Facts>>| async move { json(f.status()) }),
        )
        .route(
            "/v1/weft/proxies",
            get(|State(f): State<Arc<dyn Facts>>| async move { json(f.proxies()) }),
        )
        .route("/v1/weft/endpoints", get(endpoints))
        .route("/v1/weft/explain", post(explain))
        .route(
            "/v1/weft/mtls",
            get(|State(f): State<Arc<dyn Facts>>| async move { json(f.mtls()) }),
        )
        .route(
            "/v1/prometheus/targets",
            get(|State(f): State<Arc<dyn Facts>>| async move { json(f.targets()) }),
        )
        .route("/v1/weft/store/backup", get(backup))
        .route("/metrics", get(metrics))
        .with_state(facts)
}

async fn endpoints(
    State(facts): State<Arc<dyn Facts>>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Response {
    let part = |key: &str| query.get(key).map_or("", String::as_str);
    json(facts.endpoints(part("namespace"), part("service")))
}

async fn explain(State(facts): State<Arc<dyn Facts>>, question: Bytes) -> Response {
    let refused = |why: String| {
        let body = serde_json::json!({ "message": why });
        (StatusCode::BAD_REQUEST, json(body)).into_response()
    };
    let found = match serde_json::from_slice(&question) {
        Ok(question) => facts.explain(question).await,
        Err(e) => Err(e.to_string()),
    };
    found.map_or_else(refused, json)
}

async fn backup(State(facts): State<Arc<dyn Facts>>) -> Response {
    // It reads a file from end to end; others' requests do not wait for it.
    let made = tokio::task::spawn_blocking(move || facts.backup()).await;
    match made.unwrap_or_else(|_| Err("it could not be read".to_owned())) {
        Ok(data) => ([(CONTENT_TYPE, "application/octet-stream")], data).into_response(),
        Err(why) => (StatusCode::CONFLICT, why).into_response(),
    }
}

async fn metrics(State(facts): State<Arc<dyn Facts>>) -> Response {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], facts.metrics()).into_response()
}

fn json(value: Value) -> Response {
    ([(CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}
