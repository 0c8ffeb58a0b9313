// SPDX-License-Identifier: Apache-2.0
//! The user service: who may order. HTTP only; it never changes anything after its first start.

use axum::Router;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::get;
use http::StatusCode;
use rusqlite::{OptionalExtension, Row, Transaction};
use serde::{Deserialize, Serialize};

use crate::config::Common;
use crate::db::{Db, Schema};
use crate::server::{self, Lifecycle, Refusal, json_response};

/// Tables of this service.
pub const SCHEMA: Schema = Schema { version: 1, apply: migrate, argument: 0 };

/// A customer.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct User {
    /// Number.
    pub id: i64,
    /// Full name.
    pub name: String,
    /// Address for letters.
    pub email: String,
}

/// Runs the service until SIGTERM.
pub async fn serve(common: Common) -> anyhow::Result<()> {
    let life = Lifecycle::start(common.drain)?;
    let db = Db::open(&common.database, SCHEMA)?;
    let listener = server::bind(common.http_addr()).await?;
    server::announce("user", &common, listener.local_addr()?, None);
    server::serve_http(listener, routes(db), &common, &life).await
}

/// The HTTP paths.
pub fn routes(db: Db) -> Router {
    Router::new().route("/users", get(list)).route("/users/{id}", get(one)).with_state(db)
}

async fn list(State(db): State<Db>) -> Result<Response, Refusal> {
    let users = db
        .read(|conn| {
            let mut query =
                conn.prepare_cached("SELECT id, name, email FROM users ORDER BY id LIMIT 1000")?;
            query.query_map([], user)?.collect::<Result<Vec<_>, _>>()
        })
        .await?;
    Ok(json_response(StatusCode::OK, &users))
}

async fn one(State(db): State<Db>, Path(id): Path<String>) -> Result<Response, Refusal> {
    let missing = || Refusal::new(StatusCode::NOT_FOUND, format!("user {id} does not exist"));
    let number: i64 = id.parse().map_err(|_| missing())?;
    let found = db
        .read(move |conn| {
            let mut query =
                conn.prepare_cached("SELECT id, name, email FROM users WHERE id = ?1")?;
            query.query_row([number], user).optional()
        })
        .await?;
    Ok(json_response(StatusCode::OK, &found.ok_or_else(missing)?))
}

fn user(row: &Row<'_>) -> rusqlite::Result<User> {
    Ok(User { id: row.get(0)?, name: row.get(1)?, email: row.get(2)? })
}

fn migrate(tx: &Transaction<'_>, _: i64) -> rusqlite::Result<()> {
    tx.execute_batch(
        "CREATE TABLE IF NOT EXISTS users (
             id INTEGER PRIMARY KEY, name TEXT NOT NULL, email TEXT NOT NULL UNIQUE
         ) STRICT;
         INSERT OR IGNORE INTO users VALUES (1, 'Ada Lovelace', 'ada@example.com');
         INSERT OR IGNORE INTO users VALUES (2, 'Alan Turing', 'alan@example.com');",
    )
}
