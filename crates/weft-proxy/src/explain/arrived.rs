// SPDX-License-Identifier: Apache-2.0
//! A question as it is when routes are asked: written as its client would write it in HTTP/1.1,
//! read by the codec, made fit by the same step of the phases. What none of these takes is refused
//! here.
//! Called by `explain`; knows no routes.

use std::sync::Arc;

use bytes::{BufMut as _, BytesMut};
use http::header::{HOST, HeaderMap, HeaderValue, UPGRADE};
use http::request::Parts;
use http::{Request, Version};
use weft_base::rng::Rng;
use weft_model::Edge;
use weft_model::decide::Authority;

use super::steps::default_step;
use super::{Answer, Step, of_refusal, refused};
use crate::h1::head::{Scan, take_request};
use crate::h1::wrong::Wrong;
use crate::http::reply::{Cause, Refusal};
use crate::http::slashes::{self, Settled};
use crate::http::{clean, handshake, normalise, upgrade};
use crate::worker::Conn;

/// What random ids begin with: nothing of an explanation depends on them.
const SEED: u64 = 1;

/// A request that a proxy would look for routes for.
#[derive(Debug)]
pub(super) struct Arrived {
    pub head: Parts,
    pub authority: Authority,
    /// What was done to the headers that it came with.
    pub changes: Vec<Step>,
    /// The protocols that it asks to go on with.
    protocols: Option<HeaderValue>,
}

/// Reads a question as the proxy would.
///
/// # Errors
/// What it is answered instead.
pub(super) fn read(request: &Request<()>) -> Result<Arrived, Answer> {
    let taken = take_request(&mut written(request), &mut Scan::default());
    let head = match taken {
        Ok(Some(head)) => head,
        Ok(None) => return Err(wrong(Wrong::HeadTruncated)),
        Err(why) => return Err(wrong(why)),
    };
    let lines: Vec<&[u8]> =
        head.parts.headers.get_all(UPGRADE).iter().map(|v| v.as_bytes()).collect();
    let protocols = head.upgrade.then(|| HeaderValue::from_bytes(&lines.join(&b", "[..])).ok());
    let head = Request::from_parts(head.parts, ());
    let authority = normalise::canonical(&head, None)
        .map_err(|why| refused(Cause::BadRequest, format!("the request is ambiguous: {why}")))?;
    let (head, ()) = head.into_parts();
    Ok(Arrived { head, authority, changes: Vec::new(), protocols: protocols.flatten() })
}

// === impl Arrived ===

impl Arrived {
    /// Its headers as routes see them. `edge` is that of a gateway's listener.
    ///
    /// # Errors
    /// What it is answered instead.
    pub fn cleaned(mut self, conn: &Conn, edge: Option<Edge>) -> Result<Self, Answer> {
        let came = self.head.headers.clone();
        let rng = &mut Rng::seeded(SEED);
        clean::fit(conn, edge, "", &mut self.head.headers, rng).map_err(|why| of_refusal(&why))?;
        self.changes = changes(&came, &self.head.headers);
        let slashes = edge.unwrap_or_default().slashes;
        let settled = slashes::settle(slashes, &self.head.uri, &came);
        match settled.map_err(|why| of_refusal(&why))? {
            None => {}
            Some(Settled::Passed(uri)) => {
                self.changes.push(default_step("path", format!("{:?} for routes", uri.path())));
                self.head.uri = uri;
            }
            Some(Settled::Moved(to)) => {
                let (kind, status) = ("redirect".into(), Some(307));
                return Err(Answer { kind, status, text: to, ..Answer::default() });
            }
        }
        Ok(self)
    }

    /// What a request is answered that would be forwarded, and asks for another protocol than its
    /// rule knows, if that says which ones, or for a WebSocket wrongly.
    pub fn misled(&self, known: Option<&[Arc<str>]>) -> Option<Answer> {
        let protocols = self.protocols.as_ref()?;
        let judged = upgrade::judge(Some(protocols), known)
            .and_then(|()| handshake::judge(&self.head, Version::HTTP_11, protocols));
        judged.err().map(|refusal| of_refusal(&refusal))
    }
}

/// A head as HTTP/1.1 writes it.
fn written(request: &Request<()>) -> BytesMut {
    let mut out = BytesMut::new();
    out.put_slice(request.method().as_str().as_bytes());
    out.put_slice(format!(" {} HTTP/1.1\r\n", request.uri()).as_bytes());
    for (name, value) in request.headers() {
        out.put_slice(name.as_str().as_bytes());
        out.put_slice(b": ");
        out.put_slice(value.as_bytes());
        out.put_slice(b"\r\n");
    }
    out.put_slice(b"\r\n");
    out
}

fn wrong(wrong: Wrong) -> Answer {
    let why = Refusal::new(Cause::BadRequest, wrong.sentence()).with_status(wrong.status());
    // The codec answers all alike.
    Answer { grpc: None, ..of_refusal(&why) }
}

/// Headers that routes see otherwise than the client wrote them.
fn changes(came: &HeaderMap, now: &HeaderMap) -> Vec<Step> {
    let shown = |map: &HeaderMap, name| {
        let all: Vec<_> =
            map.get_all(name).iter().map(|v| String::from_utf8_lossy(v.as_bytes())).collect();
        all.join(", ")
    };
    let differ =
        came.keys().filter(|name| *name != HOST && shown(came, *name) != shown(now, *name));
    let each = differ.map(|name| {
        let value = match now.contains_key(name) {
            true => format!("{:?} for routes, whatever its client says", shown(now, name)),
            false => "taken away before routes are asked".to_owned(),
        };
        default_step(&format!("header {name}"), value)
    });
    each.collect()
}
