// SPDX-License-Identifier: Apache-2.0
//! WebSocket and friends: an HTTP/1.1 upgrade is passed on, and only after the upstream said 101
//! do bytes flow freely. Any other answer ends the connection, since what a client sent behind
//! its upgrade cannot be trusted to be a request.

use std::rc::Rc;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderMap, HeaderValue, UPGRADE};
use http::request::Parts;
use http::{Extensions, Response, StatusCode, Version};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::attempt::{self, Call};
use super::body::ReplyBody;
use super::reply::{Cause, Refusal};
use crate::h1::head::elements;
use crate::h1::{Handover, Upgraded};
use crate::observe::record::Record;
use crate::tcp::joined::join;
use crate::worker::{Conn, OpenConnection};

/// A client's wish to leave HTTP.
#[derive(Debug)]
pub struct Upgrade {
    /// All that were asked for, in one line.
    protocols: HeaderValue,
    client: Handover,
    open: Option<Rc<OpenConnection>>,
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

/// Takes the wish out of a request's head; the codec has judged whether it is one. One that names
/// HTTP/2 over cleartext is not.
pub fn wanted(head: &mut Parts, conn: &Conn) -> Option<Upgrade> {
    if head.version != Version::HTTP_11 {
        return None;
    }
    let client = head.extensions.remove::<Handover>()?;
    let lines: Vec<&[u8]> = head.headers.get_all(UPGRADE).iter().map(|v| v.as_bytes()).collect();
    let protocols = HeaderValue::from_bytes(&lines.join(&b", "[..])).ok()?;
    Some(Upgrade { protocols, client, open: conn.open.clone() })
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
    headers.insert(UPGRADE, upgrade.protocols.clone());
    let mut response = attempt::forward(&call, record).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response);
    }
    fits(&upgrade.protocols, response.headers())
        .map_err(|why| Refusal::new(Cause::Garbage, why))?;
    if let Some(upstream) = response.extensions_mut().remove::<Handover>() {
        let Upgrade { client, open, .. } = upgrade;
        let idle = call.worker.config.limits.tunnel_idle_timeout;
        let lease = response.body_mut().take_left();
        call.worker.conns.spawn_local("upgraded", async move {
            // Both ends stay counted for as long as this lasts.
            let _counted = (open, lease);
            let (client, upstream) = tokio::join!(client.stream(), upstream.stream());
            let (Some(mut client), Some(mut upstream)) = (client, upstream) else { return };
            if let Err(error) = join(&mut client, &mut upstream, idle).await {
                tracing::debug!(%error, "an upgraded connection ended");
            }
        });
    }
    Ok(response)
}

/// An upstream may switch only to what its client asked for (RFC 9110 §7.8).
fn fits(asked: &HeaderValue, answer: &HeaderMap) -> Result<(), String> {
    let mut given = answer.get_all(UPGRADE).iter().flat_map(|v| elements(v.as_bytes())).peekable();
    if given.peek().is_none() {
        return Err("it switched protocols and does not say to which".into());
    }
    let is_asked = |to: &[u8]| elements(asked.as_bytes()).any(|e| e.eq_ignore_ascii_case(to));
    match given.find(|to| !is_asked(to)) {
        None => Ok(()),
        Some(to) => Err(format!(
            "it switched to {:?}, and {asked:?} was asked for",
            String::from_utf8_lossy(to)
        )),
    }
}
