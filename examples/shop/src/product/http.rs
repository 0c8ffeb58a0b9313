// SPDX-License-Identifier: Apache-2.0
//! The product service's HTTP face: reading only.

use axum::Router;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::get;
use http::StatusCode;

use super::stock;
use crate::db::Db;
use crate::server::{Refusal, json_response};

/// The HTTP paths.
pub(super) fn routes(db: Db) -> Router {
    Router::new().route("/products", get(list)).route("/products/{id}", get(one)).with_state(db)
}

async fn list(State(db): State<Db>) -> Result<Response, Refusal> {
    Ok(json_response(StatusCode::OK, &db.read(stock::list).await?))
}

async fn one(State(db): State<Db>, Path(id): Path<String>) -> Result<Response, Refusal> {
    let missing = || Refusal::new(StatusCode::NOT_FOUND, format!("product {id} does not exist"));
    let number: i64 = id.parse().map_err(|_| missing())?;
    let found = db.read(move |conn| stock::get(conn, number)).await?;
    Ok(json_response(StatusCode::OK, &found.ok_or_else(missing)?))
}
