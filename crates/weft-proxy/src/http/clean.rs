// SPDX-License-Identifier: Apache-2.0
//! A message's headers on their way: what must not pass is removed, what every request has is
//! added, by what a look at their names found. Called by the phases; routes and decides nothing.

use http::header::{HeaderMap, HeaderValue};
use http::request::Parts;

use super::present::Present;
use super::reply::{Cause, Refusal};
use super::{headers, trust};
use crate::observe::record::Record;
use crate::table::Door;
use crate::worker::{Conn, Names, Worker};

/// Removes from a request what must not pass, and adds what every request has.
///
/// # Errors
/// A name of its headers is another one's double.
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
    let underscores = edge.is_none_or(|edge| edge.underscores);
    let present = Present::of(&head.headers);
    if present.has(Present::UNDERSCORE) {
        trust::check_names(&head.headers, underscores)
            .map_err(|why| Refusal::new(Cause::BadRequest, why))?;
    }
    if conn.door == Door::Mesh && present.has(Present::OWN) {
        record.source = head.headers.get(headers::SOURCE).cloned();
    }
    strip(&mut head.headers, present);
    record.forwarded_for = match &conn.door {
        Door::Gateway(_) => {
            let (edge, remote) = (edge.unwrap_or_default(), conn.remote.ip());
            trust::from_outside(&mut head.headers, present, remote, conn.scheme, edge)
        }
        _ if present.has(Present::TOLD) => head.headers.get(headers::FORWARDED_FOR).cloned(),
        _ => None,
    };
    match &conn.door {
        Door::Mesh | Door::Inbound => {
            // What the client's sidecar proved replaces what anyone wrote.
            if present.has(Present::TOLD) {
                head.headers.remove(headers::CLIENT_CERT);
            }
            if let Some(value) = proved(conn, &worker.names) {
                head.headers.insert(headers::CLIENT_CERT, value);
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
        headers::join_cookies(&mut head.headers);
    }
    let rng = &mut worker.rng.borrow_mut();
    record.request_id = headers::identify(&mut head.headers, present, rng);
    record.note_request(&head.headers);
    Ok(())
}

/// Who the client proved to be, as an app reads it; the same for all requests of its connection.
fn proved(conn: &Conn, names: &Names) -> Option<HeaderValue> {
    if let Some(known) = conn.proved.get() {
        return Some((**known).clone());
    }
    let uri = conn.peer.as_ref()?.as_str();
    let value = HeaderValue::try_from(format!("By={};URI={uri}", names.principal)).ok()?;
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
