// SPDX-License-Identifier: Apache-2.0
//! WebSocket and friends: an HTTP/1.1 upgrade is passed on, and only after the upstream said 101
//! do bytes flow freely. Any other answer ends the connection, since what a client sent behind
//! its upgrade cannot be trusted to be a request.

use std::rc::Rc;
use std::sync::Arc;

use http::header::{
    CONNECTION, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE,
};
use http::request::Parts;
use http::{Response, StatusCode, Version};

use super::attempt::{self, Call};
use super::body::ReplyBody;
use super::handshake;
use super::recorded;
use super::reply::{Cause, Refusal};
use super::websocket;
use crate::h1::Handover;
use crate::h1::head::elements;
use crate::observe::record::Record;
use crate::tcp::route::{idle, longest};
use crate::worker::{Conn, OpenConnection};

/// A client's wish to leave HTTP.
#[derive(Debug)]
pub struct Upgrade {
    /// All that were asked for, in one line.
    protocols: HeaderValue,
    client: Handover,
    open: Option<Rc<OpenConnection>>,
}

/// Takes the wish out of a request's head; the codec has judged whether it is one. One that names
/// HTTP/2 over cleartext is not.
pub fn wanted(head: &mut Parts, conn: &Conn) -> Option<Upgrade> {
    if head.version < Version::HTTP_11 {
        return None;
    }
    let client = head.extensions.remove::<Handover>()?;
    let lines: Vec<&[u8]> = head.headers.get_all(UPGRADE).iter().map(|v| v.as_bytes()).collect();
    let protocols = HeaderValue::from_bytes(&lines.join(&b", "[..])).ok()?;
    Some(Upgrade { protocols, client, open: conn.open.clone() })
}

impl Upgrade {
    /// What it asks to go on with.
    pub fn protocols(&self) -> &HeaderValue {
        &self.protocols
    }
}

/// Whether its rule lets a request leave HTTP for the protocols that it asks for. `weft explain`
/// asks this, too.
///
/// # Errors
/// What it may not ask for.
pub fn judge(protocols: Option<&HeaderValue>, among: Option<&[Arc<str>]>) -> Result<(), Refusal> {
    let (Some(protocols), Some(among)) = (protocols, among) else { return Ok(()) };
    let is_known = |to: &[u8]| among.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(to));
    match elements(protocols.as_bytes()).find(|to| !is_known(to)) {
        None => Ok(()),
        Some(to) => {
            let why = format!("no rule lets it leave HTTP for {:?}", String::from_utf8_lossy(to));
            Err(Refusal::new(Cause::NotAllowed, why))
        }
    }
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
    handshake::judge(&call.head, call.version, &upgrade.protocols)?;
    let headers = &mut call.head.headers;
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, upgrade.protocols.clone());
    let mut made = None;
    if call.version == Version::HTTP_2 && upgrade.protocols == "websocket" {
        // RFC 8441 has no key; RFC 6455 wants one of its server's client.
        let key = websocket::key(&mut call.worker.rng.borrow_mut());
        made = websocket::accept(&key);
        headers.insert(SEC_WEBSOCKET_KEY, key);
    }
    let mut response = attempt::forward(&call, record).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response);
    }
    fits(&upgrade.protocols, response.headers())
        .map_err(|why| Refusal::new(Cause::Garbage, why))?;
    if made.is_some() && response.headers().get(SEC_WEBSOCKET_ACCEPT) != made.as_ref() {
        return Err(Refusal::new(Cause::Garbage, "it did not accept the WebSocket's key"));
    }
    let left = response.body_mut().take_left();
    if let Some(upstream) = response.extensions_mut().remove::<Handover>()
        && let Some((lease, heir)) = left
    {
        let Upgrade { client, open, .. } = upgrade;
        let usual = call.worker.config.limits.tunnel_idle_timeout;
        let idle = idle(call.timeouts).unwrap_or(usual);
        let longest = longest(call.timeouts);
        call.worker.conns.spawn_local("upgraded", async move {
            // Both ends stay counted for as long as this lasts.
            let _counted = (open, lease);
            let Ok(mut record) = heir.await else { return };
            let (client, upstream) = tokio::join!(client.stream(), upstream.stream());
            // Without its client the record says that this has left.
            let (Some(mut client), Some(mut upstream)) = (client, upstream) else { return };
            recorded::join(&mut record, (&mut client, &mut upstream), idle, longest).await;
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
