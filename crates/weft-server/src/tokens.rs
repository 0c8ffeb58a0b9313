// SPDX-License-Identifier: Apache-2.0
//! `/v1/weft/tokens`: join tokens, for who runs `weft token` on the API door.
//!
//! The door admits its callers (loopback, Host and Origin); whoever is let in may make tokens.
//! What a token is and where its hash is kept is behind [`Tokens`].

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get};
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error;

/// Largest request that is read, bytes.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// What somebody wants a token for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TokenAsk {
    /// The name of the host that may use it; any free name when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// An hour when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// `NAMESPACE/SERVICE-ACCOUNT`; those of every pod placed on the host when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TokenError {
    #[error("{0}")]
    Invalid(String),
    #[error("no token {0}; `weft token list` shows those there are")]
    NotFound(String),
    #[error("{0}")]
    Unavailable(String),
}

/// Who keeps tokens.
pub trait Tokens: Send + Sync + 'static {
    /// A new token, its secret included: the only time that it is told.
    fn create(&self, ask: TokenAsk) -> BoxFuture<'static, Result<Value, TokenError>>;
    fn list(&self) -> BoxFuture<'static, Result<Value, TokenError>>;
    /// By id, or the beginning of one.
    fn delete(&self, id: String) -> BoxFuture<'static, Result<(), TokenError>>;
}

type Keeper = Arc<dyn Tokens>;

/// The tokens' routes.
pub fn router(tokens: Keeper) -> Router {
    Router::new()
        .route("/v1/weft/tokens", get(list).post(create))
        .route("/v1/weft/tokens/{id}", delete(remove))
        .with_state(tokens)
}

async fn list(State(tokens): State<Keeper>) -> Response {
    match tokens.list().await {
        Ok(all) => answer(StatusCode::OK, &all),
        Err(error) => refused(&error),
    }
}

async fn create(State(tokens): State<Keeper>, headers: HeaderMap, body: Bytes) -> Response {
    // Forms of foreign pages cannot send this type.
    let json = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    if !json.starts_with("application/json") {
        let why = "content-type: only application/json is read here";
        return refused(&TokenError::Invalid(why.into()));
    }
    if body.len() > BODY_BYTES_MAX {
        return refused(&TokenError::Invalid(format!("more than {BODY_BYTES_MAX} bytes")));
    }
    let ask = match body.is_empty() {
        true => Ok(TokenAsk::default()),
        false => serde_json::from_slice(&body),
    };
    match ask {
        Err(error) => refused(&TokenError::Invalid(error.to_string())),
        Ok(ask) => match tokens.create(ask).await {
            Ok(made) => answer(StatusCode::CREATED, &made),
            Err(error) => refused(&error),
        },
    }
}

async fn remove(State(tokens): State<Keeper>, Path(id): Path<String>) -> Response {
    match tokens.delete(id).await {
        Ok(()) => answer(StatusCode::OK, &json!({})),
        Err(error) => refused(&error),
    }
}

fn refused(error: &TokenError) -> Response {
    let code = match error {
        TokenError::Invalid(_) => StatusCode::BAD_REQUEST,
        TokenError::NotFound(_) => StatusCode::NOT_FOUND,
        TokenError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    answer(code, &json!({ "message": error.to_string() }))
}

fn answer(code: StatusCode, value: &Value) -> Response {
    (code, [(CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}
