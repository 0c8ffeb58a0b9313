// SPDX-License-Identifier: Apache-2.0
//! The order service's HTTP face: decodes and checks, hands orders to `saga.rs`.

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use axum::routing::get;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::saga::Sagas;
use super::store::{self, Ask};
use crate::db::Db;
use crate::headers::Propagated;
use crate::server::{Refusal, json_response};

/// Most pieces in one order.
const QUANTITY_MAX: i64 = 1000;
/// Longest `Idempotency-Key`.
const CLIENT_KEY_BYTES_MAX: usize = 128;

#[derive(Clone)]
struct App {
    db: Db,
    sagas: Sagas,
}

/// The HTTP paths.
pub(super) fn routes(db: Db, sagas: Sagas) -> Router {
    Router::new()
        .route("/orders", get(list).post(place))
        .route("/orders/{id}", get(one))
        .with_state(App { db, sagas })
}

#[derive(Deserialize)]
struct ListQuery {
    #[serde(default = "fifty")]
    limit: i64,
}

fn fifty() -> i64 {
    50
}

async fn list(State(app): State<App>, Query(query): Query<ListQuery>) -> Result<Response, Refusal> {
    let limit = query.limit.clamp(1, 1000);
    let orders = app.db.read(move |conn| store::newest(conn, limit)).await?;
    Ok(json_response(StatusCode::OK, &orders))
}

async fn one(State(app): State<App>, Path(id): Path<String>) -> Result<Response, Refusal> {
    let missing = || Refusal::new(StatusCode::NOT_FOUND, format!("order {id} does not exist"));
    let number: i64 = id.parse().map_err(|_| missing())?;
    let found = app.db.read(move |conn| store::get(conn, number)).await?;
    Ok(json_response(StatusCode::OK, &found.ok_or_else(missing)?))
}

async fn place(
    State(app): State<App>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refusal> {
    let ask = Ask { client_key: client_key(&headers)?, ..parse(&body)? };
    let placed = app.sagas.place(ask, Propagated::from_headers(&headers)).await?;
    let mut answer = json!(placed.order);
    answer["reserved_by"] = json!(placed.reserved_by);
    let mut response = json_response(StatusCode::CREATED, &answer);
    if let Ok(place) = HeaderValue::from_str(&format!("/orders/{}", placed.order.id)) {
        response.headers_mut().insert(header::LOCATION, place);
    }
    Ok(response)
}

/// The optional key under which the client may repeat its order.
fn client_key(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    match value.to_str() {
        Ok(text) if !text.is_empty() && text.len() <= CLIENT_KEY_BYTES_MAX => {
            Ok(Some(text.to_owned()))
        }
        _ => Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            format!("Idempotency-Key: not 1 to {CLIENT_KEY_BYTES_MAX} characters of plain text"),
        )),
    }
}

/// Reads an order; the reply to a bad one names the field.
fn parse(body: &[u8]) -> Result<Ask, Refusal> {
    let bad = |error: String| Refusal::new(StatusCode::BAD_REQUEST, error);
    let value: Value =
        serde_json::from_slice(body).map_err(|e| bad(format!("the body is not JSON: {e}")))?;
    let Value::Object(fields) = value else {
        return Err(bad("the body is not a JSON object".into()));
    };
    if let Some(name) =
        fields.keys().find(|k| !["user", "product", "quantity"].contains(&k.as_str()))
    {
        return Err(bad(format!(
            "unknown field '{name}'; an order has user, product and quantity"
        )));
    }
    let number = |name: &'static str, max: i64| {
        let refuse = |error: String| Refusal::field(StatusCode::BAD_REQUEST, name, error);
        let value = fields.get(name).ok_or_else(|| refuse(format!("{name}: missing")))?;
        match value.as_i64() {
            Some(n) if (1..=max).contains(&n) => Ok(n),
            _ => Err(refuse(format!("{name}: {value} is not a whole number from 1 to {max}"))),
        }
    };
    Ok(Ask {
        user: number("user", i64::MAX)?,
        product: number("product", i64::MAX)?,
        quantity: number("quantity", QUANTITY_MAX)?,
        key: Uuid::new_v4().to_string(),
        client_key: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: &str, field: Option<&str>, says: &str) {
        let refusal = parse(body.as_bytes()).unwrap_err();
        assert_eq!(refusal.status, StatusCode::BAD_REQUEST);
        assert_eq!(refusal.field, field, "{body}");
        assert!(refusal.error.contains(says), "{body}: {}", refusal.error);
    }

    #[test]
    fn a_bad_order_names_its_field() {
        check("{", None, "not JSON");
        check("[]", None, "not a JSON object");
        check(r#"{"user":1,"product":2}"#, Some("quantity"), "missing");
        check(r#"{"user":1,"product":2,"quantity":0}"#, Some("quantity"), "0 is not");
        check(r#"{"user":"1","product":2,"quantity":1}"#, Some("user"), "\"1\" is not");
        check(r#"{"user":1,"produkt":2,"quantity":1}"#, None, "'produkt'");
        assert!(parse(br#"{"user":1,"product":2,"quantity":1}"#).is_ok());
    }
}
