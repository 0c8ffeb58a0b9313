// SPDX-License-Identifier: Apache-2.0
//! WebSocket and friends: an HTTP/1.1 upgrade is passed on, and only after the upstream said 101
//! do bytes flow freely. Any other answer ends the connection, since what a client sent behind
//! its upgrade cannot be trusted to be a request.

use std::rc::Rc;

use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::request::Parts;
use http::{Response, StatusCode, Version};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::attempt::{self, Call};
use super::body::ReplyBody;
use super::reply::Refusal;
use crate::observe::record::Record;
use crate::worker::Conn;

/// A client's wish to leave HTTP.
#[derive(Debug)]
pub struct Upgrade {
    protocol: HeaderValue,
    client: OnUpgrade,
}

/// Takes the wish out of a request's head. HTTP/2 over cleartext upgrades are not one.
pub fn wanted(head: &mut Parts, _conn: &Rc<Conn>) -> Option<Upgrade> {
    if head.version != Version::HTTP_11 {
        return None;
    }
    let named = head.headers.get_all(CONNECTION).iter().any(|v| {
        v.to_str().is_ok_and(|v| v.split(',').any(|t| t.trim().eq_ignore_ascii_case("upgrade")))
    });
    let protocol = head.headers.get(UPGRADE)?.clone();
    if !named || protocol.as_bytes().eq_ignore_ascii_case(b"h2c") {
        return None;
    }
    let client = head.extensions.remove::<OnUpgrade>()?;
    Some(Upgrade { protocol, client })
}

/// Sends the request with its wish; on 101 both sides are joined.
///
/// # Errors
/// As [`attempt::forward`].
pub async fn forward(
    upgrade: Upgrade,
    mut call: Call<'_>,
    record: &mut Record,
) -> Result<Response<ReplyBody>, Refusal> {
    let headers = &mut call.head.headers;
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, upgrade.protocol);
    let mut response = attempt::forward(&call, record).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response);
    }
    if let Some(upstream) = response.extensions_mut().remove::<OnUpgrade>() {
        let client = upgrade.client;
        call.worker.conns.spawn_local("upgraded", async move {
            let (Ok(client), Ok(upstream)) = tokio::join!(client, upstream) else { return };
            let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
            let size = crate::tcp::relay::BUFFER_BYTES;
            let copy =
                tokio::io::copy_bidirectional_with_sizes(&mut client, &mut upstream, size, size);
            if let Err(error) = copy.await {
                tracing::debug!(%error, "an upgraded connection ended");
            }
        });
    }
    Ok(response)
}
