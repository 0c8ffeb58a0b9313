// SPDX-License-Identifier: Apache-2.0
//! Who may use a door, and what becomes of a CONNECT that came to one. Called by the phases before
//! anything of a request is looked at but its authority.

use std::rc::Rc;

use http::header::{self, HeaderValue};
use http::{Request, Response};
use weft_model::Protocol;
use weft_model::decide::Authority;

use super::body::ReplyBody;
use super::reply::{Cause, Refusal};
use super::serve::Received;
use crate::guards;
use crate::h1::Handover;
use crate::observe::record::Record;
use crate::table::Door;
use crate::tcp::relay;
use crate::worker::{Conn, Worker};

/// A strict port admits only sidecars; the forward proxy only its own app, which knows the pod's
/// credential. None admits anybody while memory is short.
pub(super) fn admit<B>(worker: &Worker, conn: &Conn, request: &Request<B>) -> Result<(), Refusal> {
    if !worker.shared.pressure.admits(&worker.metrics.crowd, worker.id) {
        return Err(shed(worker));
    }
    if conn.plaintext_refused {
        let port = conn.app_port.unwrap_or_default();
        return Err(Refusal::new(Cause::Plaintext, format!("port {port} takes mesh mTLS only")));
    }
    if conn.door != Door::Forward || conn.admitted.get() {
        return Ok(());
    }
    let Some(expected) = &worker.config.credential else { return Ok(()) };
    let given = request.headers().get(header::PROXY_AUTHORIZATION).map(HeaderValue::as_bytes);
    if given.is_some_and(|given| credential_fits(given, expected)) {
        conn.admitted.set(true);
        return Ok(());
    }
    let detail = if given.is_some() { "its credential is wrong" } else { "it has no credential" };
    Err(Refusal::new(Cause::Credential, detail))
}

/// Memory is short: what is under way ends, nothing new begins.
fn shed(worker: &Worker) -> Refusal {
    worker.metrics.cells.shed.add(1);
    Refusal::new(Cause::Shed, "")
}

/// Answers CONNECT and goes on inside it. Where bytes are all that follows, what they are for is
/// connected first: a client that is told that it may speak is not told wrongly.
pub(super) async fn connect(
    worker: &Rc<Worker>,
    conn: &Rc<Conn>,
    mut request: Request<Received>,
    authority: &Authority,
    record: &mut Record,
) -> Result<Response<ReplyBody>, Refusal> {
    let h1 = request.version() < http::Version::HTTP_2;
    let served = match conn.door {
        Door::Forward => h1 && conn.tunnel.is_none(),
        // Over HTTP/2 the authority names the port.
        Door::Mesh => h1 || authority.port.is_some(),
        _ => false,
    };
    if !served && guards::on("connect-door") {
        return Err(Refusal::new(Cause::MethodRefused, ""));
    }
    if conn.door == Door::Forward && authority.port.is_none() {
        return Err(Refusal::new(Cause::BadRequest, "CONNECT names no port"));
    }
    let Some(client) = request.extensions_mut().remove::<Handover>() else {
        return Err(Refusal::new(Cause::MethodRefused, ""));
    };
    let (version, target) = (request.version(), authority.clone());
    let (inner, protocol) = relay::inside(worker, conn, target, version).await;
    if matches!(protocol, Protocol::Tcp | Protocol::Tls | Protocol::Udp) {
        let opening = relay::asked(worker, &inner, relay::begin(worker, &inner)).await?;
        record.status = 200;
        let (body, heir) = ReplyBody::bequeathed();
        relay::go_on(worker, &inner, (client, heir), opening);
        return Ok(Response::new(body));
    }
    record.status = 200;
    relay::after_connect(worker, inner, client, protocol);
    Ok(Response::new(ReplyBody::empty()))
}

/// Compares `Basic base64(user:password)` without telling how much of it fits.
fn credential_fits(given: &[u8], expected: &str) -> bool {
    let Some(encoded) = given
        .split_at_checked(6)
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"basic "))
        .map(|(_, encoded)| encoded.trim_ascii())
    else {
        return false;
    };
    let expected = base64(expected.as_bytes());
    let differ = encoded.iter().zip(expected.as_bytes()).fold(0u8, |d, (a, b)| d | (a ^ b));
    encoded.len() == expected.len() && differ == 0
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
