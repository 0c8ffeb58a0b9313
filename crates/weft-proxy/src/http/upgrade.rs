// SPDX-License-Identifier: Apache-2.0
//! WebSocket and friends: an HTTP/1.1 upgrade is passed on, and only after the upstream said 101
//! do bytes flow freely. Any other answer ends the connection, since what a client sent behind
//! its upgrade cannot be trusted to be a request.

use std::rc::Rc;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::request::Parts;
use http::{Extensions, Response, StatusCode, Version};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::attempt::{self, Call};
use super::body::ReplyBody;
use super::reply::Refusal;
use crate::h1::{Handover, Upgraded};
use crate::observe::record::Record;
use crate::worker::Conn;

/// A client's wish to leave HTTP.
#[derive(Debug)]
pub struct Upgrade {
    protocol: HeaderValue,
    client: Handover,
}

/// The stream behind a CONNECT, of either codec.
#[derive(Debug)]
pub enum Promise {
    H1(Handover),
    H2(OnUpgrade),
}

// === impl Promise ===

impl Promise {
    pub fn take(extensions: &mut Extensions) -> Option<Self> {
        match extensions.remove::<Handover>() {
            Some(handover) => Some(Self::H1(handover)),
            None => extensions.remove::<OnUpgrade>().map(Self::H2),
        }
    }

    /// The stream, once the answer that grants it is written.
    pub async fn stream(self) -> Option<Upgraded> {
        match self {
            Self::H1(handover) => handover.stream().await,
            Self::H2(promised) => {
                let stream = promised.await.ok()?;
                Some(Upgraded::new(Bytes::new(), TokioIo::new(stream)))
            }
        }
    }
}

/// Takes the wish out of a request's head; the codec has judged whether it is one. HTTP/2 over
/// cleartext upgrades are not.
pub fn wanted(head: &mut Parts, _conn: &Rc<Conn>) -> Option<Upgrade> {
    if head.version != Version::HTTP_11 {
        return None;
    }
    let client = head.extensions.remove::<Handover>()?;
    Some(Upgrade { protocol: head.headers.get(UPGRADE)?.clone(), client })
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
    if let Some(upstream) = response.extensions_mut().remove::<Handover>() {
        let client = upgrade.client;
        call.worker.conns.spawn_local("upgraded", async move {
            let (client, upstream) = tokio::join!(client.stream(), upstream.stream());
            let (Some(mut client), Some(mut upstream)) = (client, upstream) else { return };
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
