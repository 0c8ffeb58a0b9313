// SPDX-License-Identifier: Apache-2.0
//! Sessions that outgrow HTTP: a connection is upgraded to SPDY/3.1 or WebSocket and becomes
//! streams. What flows in them is of `exec` and `portforward`.
//!
//! Sessions are counted and belong to the door's tasks: they end when the server drains.

use std::future::Future;
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use http::header::{CONNECTION, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_tungstenite::WebSocketStream;
use weft_base::limits::STREAM_SESSIONS_MAX;

use super::status::ApiError;

pub(super) mod pipes;
pub(super) mod spdy;
pub(super) mod spdy_conn;
pub(super) mod websocket;

const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const WS_KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
const WS_VERSION: HeaderName = HeaderName::from_static("sec-websocket-version");
const WS_PROTOCOL: HeaderName = HeaderName::from_static("sec-websocket-protocol");
const WS_ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");

/// Places for sessions.
#[derive(Clone, Debug)]
pub(super) struct Sessions(Arc<Semaphore>);

/// What a client asked to become, and its connection once it has.
#[derive(Debug)]
pub(super) struct Upgrade {
    pub(super) kind: Kind,
    /// Of the list that was offered; empty when the client named none.
    pub(super) protocol: &'static str,
    on: OnUpgrade,
    place: OwnedSemaphorePermit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Spdy,
    WebSocket,
}

/// An upgraded connection.
pub(super) type Io = TokioIo<Upgraded>;

/// The names of sub-protocols that a subresource speaks over each transport.
#[derive(Clone, Copy, Debug)]
pub(super) struct Protocols {
    pub(super) spdy: &'static [&'static str],
    pub(super) websocket: &'static [&'static str],
}

// === impl Sessions ===

impl Default for Sessions {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(STREAM_SESSIONS_MAX)))
    }
}

impl Sessions {
    /// Reads what the client wants, and the answer that grants it.
    pub(super) fn negotiate(
        &self,
        parts: &mut Parts,
        offered: Protocols,
    ) -> Result<(Upgrade, Response), ApiError> {
        let headers = &parts.headers;
        let wants = |what: &str| {
            has_token(headers, &CONNECTION, "upgrade") && has_token(headers, &UPGRADE, what)
        };
        let (kind, protocol, mut response) = if wants("websocket") {
            let (protocol, response) = websocket_answer(headers, offered.websocket)?;
            (Kind::WebSocket, protocol, response)
        } else if wants("SPDY/3.1") {
            let (protocol, response) = spdy_answer(headers, offered.spdy)?;
            (Kind::Spdy, protocol, response)
        } else {
            return Err(ApiError::bad_request(
                "Upgrade request required: ask with `Upgrade: websocket` or `Upgrade: SPDY/3.1` \
                 over HTTP/1.1, as kubectl does",
            ));
        };
        let on = parts.extensions.remove::<OnUpgrade>();
        let on = on.ok_or_else(|| {
            ApiError::bad_request("this connection cannot be upgraded: use HTTP/1.1")
        })?;
        let place = self.0.clone().try_acquire_owned().map_err(|_| {
            let why = format!("{STREAM_SESSIONS_MAX} sessions are open already; end some");
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", why)
        })?;
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        Ok((Upgrade { kind, protocol, on, place }, response))
    }
}

// === impl Upgrade ===

impl Upgrade {
    /// Waits for the connection, then runs the session; the place is free again after it.
    pub(super) async fn run<F, S>(self, session: F)
    where
        F: FnOnce(Io) -> S,
        S: Future<Output = ()>,
    {
        let Self { on, place, .. } = self;
        match on.await {
            Ok(upgraded) => session(TokioIo::new(upgraded)).await,
            Err(why) => tracing::debug!(%why, "a connection was not upgraded"),
        }
        drop(place);
    }
}

pub(super) async fn websocket(io: Io) -> WebSocketStream<Io> {
    websocket::server(io).await
}

/// Runs a connection and its session side by side. When the client is gone the session is
/// dropped; when the session is over the connection writes out what is left.
pub(super) async fn together(
    connection: impl Future<Output = ()>,
    session: impl Future<Output = ()>,
) {
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        () = &mut connection => return,
        () = session => {}
    }
    connection.await;
}

fn websocket_answer(
    headers: &HeaderMap,
    offered: &[&'static str],
) -> Result<(&'static str, Response), ApiError> {
    let text = |name: &HeaderName| headers.get(name).and_then(|v| v.to_str().ok()).map(str::trim);
    if text(&WS_VERSION) != Some("13") {
        return Err(ApiError::bad_request("only version 13 of WebSocket is spoken here"));
    }
    let Some(key) = text(&WS_KEY).filter(|k| !k.is_empty()) else {
        return Err(ApiError::bad_request("the WebSocket handshake has no Sec-WebSocket-Key"));
    };
    let asked = list(headers, &WS_PROTOCOL);
    let protocol = choose(&asked, offered)?;
    let mut response = Response::new(Body::empty());
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
    let accept = HeaderValue::from_str(&websocket::accept_key(key));
    let accept = accept.map_err(|_| ApiError::bad_request("the WebSocket key cannot be read"))?;
    response.headers_mut().insert(WS_ACCEPT, accept);
    if !protocol.is_empty() {
        response.headers_mut().insert(WS_PROTOCOL, HeaderValue::from_static(protocol));
    }
    Ok((protocol, response))
}

fn spdy_answer(
    headers: &HeaderMap,
    offered: &[&'static str],
) -> Result<(&'static str, Response), ApiError> {
    let protocol = choose(&list(headers, &STREAM_PROTOCOL), offered)?;
    let mut response = Response::new(Body::empty());
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    if !protocol.is_empty() {
        response.headers_mut().insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
    }
    Ok((protocol, response))
}

/// The client's first choice that is offered; empty when it does not care.
fn choose(asked: &[&str], offered: &[&'static str]) -> Result<&'static str, ApiError> {
    if asked.is_empty() {
        return Ok("");
    }
    let find = |name: &&str| offered.iter().find(|o| *o == name).copied();
    asked.iter().find_map(find).ok_or_else(|| {
        let why = format!(
            "unable to upgrade: unable to negotiate protocol: client supports {asked:?}, server \
             accepts {offered:?}"
        );
        ApiError::new(StatusCode::FORBIDDEN, "Forbidden", why)
    })
}

/// A header's values, whether in one line or in several.
fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Vec<&'a str> {
    let values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).map(str::trim).filter(|v| !v.is_empty()).take(16).collect()
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    list(headers, name).iter().any(|t| t.eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_common_protocol_is_taken() {
        let offered = ["v4.channel.k8s.io", "channel.k8s.io"];
        assert_eq!(
            choose(&["v9", "channel.k8s.io", "v4.channel.k8s.io"], &offered).unwrap(),
            offered[1]
        );
        assert_eq!(choose(&[], &offered).unwrap(), "");
        let refused = choose(&["v9"], &offered).unwrap_err();
        assert!(
            refused.message.contains("v9") && refused.message.contains("v4.channel"),
            "{refused:?}"
        );
    }

    #[test]
    fn the_handshake_is_that_of_the_rfc() {
        // RFC 6455, section 1.3.
        let accept = websocket::accept_key("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn an_upgrade_needs_its_headers() {
        let sessions = Sessions::default();
        let offered = Protocols { spdy: &["a"], websocket: &["b"] };
        for headers in [
            &[][..],
            &[("upgrade", "websocket")],
            &[("connection", "upgrade"), ("upgrade", "h2c")],
            &[("connection", "upgrade"), ("upgrade", "websocket")],
            &[("connection", "upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "8")],
            // Everything right, but not a connection that can be upgraded.
            &[("connection", "Upgrade"), ("upgrade", "SPDY/3.1")],
        ] {
            let mut request = http::Request::builder();
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let (mut parts, ()) = request.body(()).unwrap().into_parts();
            let refused = sessions.negotiate(&mut parts, offered).unwrap_err();
            assert_eq!(refused.code, StatusCode::BAD_REQUEST, "{headers:?}");
        }
    }
}
