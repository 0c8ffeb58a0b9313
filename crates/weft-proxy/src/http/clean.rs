// SPDX-License-Identifier: Apache-2.0
//! A message's headers on their way: what must not pass is removed, what every request has is
//! added, by what a look at their names found. Called by the phases and by `weft explain`; routes
//! and decides nothing.

use http::header::{HeaderMap, HeaderValue};
use http::request::Parts;
use weft_base::rng::Rng;
use weft_model::Edge;

use super::present::Present;
use super::reply::{Cause, Refusal};
use super::{headers, trust};
use crate::observe::record::Record;
use crate::table::Door;
use crate::worker::{Conn, Worker};

/// What was seen of a request's headers while they were made fit.
#[derive(Debug)]
pub struct Seen {
    /// Who a sidecar says that it speaks for; on the mesh port only.
    source: Option<HeaderValue>,
    forwarded_for: Option<HeaderValue>,
    request_id: Option<HeaderValue>,
}

/// Makes a request's headers fit, and tells its record of them.
///
/// # Errors
/// As [`fit`].
pub fn request(
    worker: &Worker,
    conn: &Conn,
    head: &mut Parts,
    record: &mut Record,
) -> Result<(), Refusal> {
    let edge = match &conn.door {
        Door::Gateway(name) => worker.edge(name),
        _ => None,
    };
    let (principal, rng) = (&worker.names.principal, &mut worker.rng.borrow_mut());
    let seen = fit(conn, edge, principal, &mut head.headers, rng)?;
    record.source = seen.source;
    record.forwarded_for = seen.forwarded_for;
    record.request_id = seen.request_id;
    record.note_request(&head.headers);
    Ok(())
}

/// Removes from a request's headers what must not pass, and adds what every request has. `edge` is
/// that of a gateway's listener, `principal` this proxy's own. `weft explain` asks this, too.
///
/// # Errors
/// A name of its headers is another one's double.
pub fn fit(
    conn: &Conn,
    edge: Option<Edge>,
    principal: &str,
    headers: &mut HeaderMap,
    rng: &mut Rng,
) -> Result<Seen, Refusal> {
    let underscores = edge.is_none_or(|edge| edge.underscores);
    let present = Present::of(headers);
    if present.has(Present::UNDERSCORE) {
        trust::check_names(headers, underscores)
            .map_err(|why| Refusal::new(Cause::BadRequest, why))?;
    }
    let told = conn.door == Door::Mesh && present.has(Present::OWN);
    let source = told.then(|| headers.get(headers::SOURCE).cloned()).flatten();
    strip(headers, present);
    let forwarded_for = match &conn.door {
        Door::Gateway(_) => {
            let (edge, remote) = (edge.unwrap_or_default(), conn.remote.ip());
            trust::from_outside(headers, present, remote, conn.scheme, edge)
        }
        _ if present.has(Present::TOLD) => headers.get(headers::FORWARDED_FOR).cloned(),
        _ => None,
    };
    match &conn.door {
        Door::Mesh | Door::Inbound => {
            // What the client's sidecar proved replaces what anyone wrote.
            if present.has(Present::TOLD) {
                headers.remove(headers::CLIENT_CERT);
            }
            if let Some(value) = proved(conn, principal) {
                headers.insert(headers::CLIENT_CERT, value);
            }
        }
        Door::Gateway(_)
        | Door::Forward
        | Door::Upstream { .. }
        | Door::Outbound
        | Door::Datagrams(_) => {}
    }
    if present.has(Present::COOKIE) {
        // HTTP/2 may split what HTTP/1.1 servers want whole.
        headers::join_cookies(headers);
    }
    let request_id = headers::identify(headers, present, rng);
    Ok(Seen { source, forwarded_for, request_id })
}

/// Who the client proved to be, as an app reads it; the same for all requests of its connection.
fn proved(conn: &Conn, principal: &str) -> Option<HeaderValue> {
    if let Some(known) = conn.proved.get() {
        return Some((**known).clone());
    }
    let uri = conn.peer.as_ref()?.as_str();
    let value = HeaderValue::try_from(format!("By={principal};URI={uri}")).ok()?;
    Some((**conn.proved.get_or_init(|| Box::new(value))).clone())
}

/// Removes what must not pass, of what a message has.
pub fn strip(headers: &mut HeaderMap, present: Present) {
    if present.has(Present::HOP) {
        headers::strip_hop_by_hop(headers);
    }
    if present.has(Present::OWN) {
        headers::strip_own(headers);
    }
}
