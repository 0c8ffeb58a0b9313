// SPDX-License-Identifier: Apache-2.0
//! `/v1/weft/drain`: an instance is picked no more, or again, for who runs `weft drain` on the API
//! door. Who does it is behind [`Drains`]; this module only gives it an address.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error;

/// Largest request that is read, bytes.
const BODY_BYTES_MAX: usize = 16 * 1024;

/// What somebody wants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DrainAsk {
    /// A pod's name, `NODE/ID` of a registration, or its id alone.
    pub instance: String,
    /// Any when absent, if only one has such an instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Let it be picked again.
    pub undo: bool,
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DrainError {
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Unavailable(String),
}

/// Who drains.
pub trait Drains: Send + Sync + 'static {
    /// Returns once every proxy that knows the instance has heard, or was waited for long enough.
    fn drain(&self, ask: DrainAsk) -> BoxFuture<'static, Result<Value, DrainError>>;
}

/// The route.
pub fn router(drains: Arc<dyn Drains>) -> Router {
    Router::new().route("/v1/weft/drain", post(drain)).with_state(drains)
}

async fn drain(State(drains): State<Arc<dyn Drains>>, headers: HeaderMap, body: Bytes) -> Response {
    // Forms of foreign pages cannot send this type.
    let json = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    let ask = if !json.starts_with("application/json") {
        Err("content-type: only application/json is read here".to_owned())
    } else if body.len() > BODY_BYTES_MAX {
        Err(format!("more than {BODY_BYTES_MAX} bytes"))
    } else {
        serde_json::from_slice(&body).map_err(|e| e.to_string())
    };
    let done = match ask {
        Ok(ask) => drains.drain(ask).await,
        Err(why) => Err(DrainError::Invalid(why)),
    };
    let (code, value) = match done {
        Ok(value) => (StatusCode::OK, value),
        Err(error) => {
            let code = match error {
                DrainError::Invalid(_) => StatusCode::BAD_REQUEST,
                DrainError::NotFound(_) => StatusCode::NOT_FOUND,
                DrainError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            };
            (code, json!({ "message": error.to_string() }))
        }
    };
    (code, [(CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}
