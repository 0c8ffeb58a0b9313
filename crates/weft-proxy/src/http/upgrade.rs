// SPDX-License-Identifier: Apache-2.0
//! WebSocket and friends: an HTTP/1.1 upgrade is passed on, and only after the upstream said 101
//! do bytes flow freely. Any other answer ends the connection, since what a client sent behind
//! its upgrade cannot be trusted to be a request.

use std::rc::Rc;
use std::sync::atomic::Ordering;

use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt as _;

use super::attempt::{self, Call};
use super::body::ReplyBody;
use super::reply::Refusal;
use crate::observe::record::Record;
use crate::worker::{Conn, Worker};

/// A client's wish to leave HTTP.
#[derive(Debug)]
pub struct Upgrade {
    protocol: HeaderValue,
    client: OnUpgrade,
}

/// A request after whose bytes something may follow that is not HTTP: CONNECT, or any upgrade.
/// From there on the guard does not look at what the client sends.
#[derive(Debug)]
pub struct WayOut(Option<OnUpgrade>);

pub fn way_out<B>(request: &Request<B>) -> Option<WayOut> {
    let asked = request.method() == Method::CONNECT || request.headers().contains_key(UPGRADE);
    asked.then(|| WayOut(request.extensions().get::<OnUpgrade>().cloned()))
}

impl WayOut {
    /// It was refused: nothing behind it is served. The codec gives the stream up once the answer
    /// is written; closing it properly is left to us, or the client would see a reset only.
    pub fn close(self, worker: &Worker, conn: &Conn) {
        conn.refused.store(true, Ordering::Relaxed);
        let Some(given_up) = self.0 else { return };
        worker.conns.spawn_local("refused", async move {
            if let Ok(stream) = given_up.await {
                // The guard below reads on for a moment; whatever comes, this is the end.
                let _ = TokioIo::new(stream).shutdown().await;
            }
        });
    }
}

/// Whether an answer grants that. If HTTP goes on instead, what the client sent behind its wish
/// cannot be told from a request, and the connection must end.
pub fn left(method: &Method, status: StatusCode) -> bool {
    let connected = method == Method::CONNECT && status.is_success();
    connected || status == StatusCode::SWITCHING_PROTOCOLS
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
