// SPDX-License-Identifier: Apache-2.0
//! One request and its answer on a client's connection. A client that resets the stream ends the
//! work for it at once.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::ext::Protocol;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::header::{
    CONTENT_LENGTH, EXPECT, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, UPGRADE,
};
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body;
use tokio::sync::oneshot;
use tokio::time::Instant;
use weft_base::limits::HEADERS_MAX;

use super::super::fields;
use super::super::incoming::{Incoming, length};
use super::super::pump::{Pump, Stopped};
use super::super::tunnel::Tunnel;
use super::Service;
use crate::guards;
use crate::h1::alarm::Alarm;
use crate::h1::{Handover, Upgraded, Wrong};
use crate::http::interim::Interim;
use crate::overload::stuck::Stuck;

/// What a CONNECT is promised.
struct Promised {
    to: oneshot::Sender<Upgraded>,
    recv: RecvStream,
    /// It asks for a protocol (RFC 8441): 101 is what grants it, and is said as 200.
    extended: bool,
}

/// Has one request answered, of which `wrong` was seen before the h2 crate read it; the stream is
/// done with when this ends.
pub(super) async fn answer<S: Service>(
    service: Rc<S>,
    mut request: Request<RecvStream>,
    wrong: Option<Wrong>,
    mut respond: SendResponse<Bytes>,
    patience: Duration,
) {
    let interim = Rc::new(Interim::default());
    let head = request.method() == Method::HEAD;
    fields::trim(request.headers_mut());
    let wrong = wrong.or_else(|| self::wrong(&request));
    let (request, promised) = received(request, &interim);
    let response = match wrong {
        Some(wrong) => Some(service.refuse(wrong)),
        None => {
            let mut call = pin!(service.call(request));
            poll_fn(|cx| poll_answer(call.as_mut(), &mut respond, &interim, cx)).await
        }
    };
    let Some(mut response) = response else { return };
    match promised {
        Some(promised) if promised.is_granted(response.status()) => {
            return promised.keep(response, &mut respond);
        }
        // Without the protocol no answer may look as if it were spoken.
        Some(promised) if promised.extended && response.status().is_success() => {
            *response.status_mut() = StatusCode::BAD_GATEWAY;
        }
        _ => {}
    }
    send::<S>(response, &mut respond, head, patience).await;
}

/// What no rule needs to see.
fn wrong<B>(request: &Request<B>) -> Option<Wrong> {
    if request.headers().len() > HEADERS_MAX && guards::on("h2-headers") {
        return Some(Wrong::TooManyHeaders);
    }
    let mut expected = request.headers().get_all(EXPECT).iter();
    if !expected.all(|e| e.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        return Some(Wrong::Expectation);
    }
    // One token, that is; and HTTP/2 in cleartext would let requests pass unseen.
    let protocol = request.extensions().get::<Protocol>()?.as_str();
    let token = HeaderName::from_bytes(protocol.as_bytes()).is_ok();
    let smuggles = !token || protocol.eq_ignore_ascii_case("h2c");
    (smuggles && guards::on("h2-protocol")).then_some(Wrong::Protocol)
}

/// Waits for the answer while the client does; `None` when it does no longer.
fn poll_answer<B>(
    call: Pin<&mut impl Future<Output = Response<B>>>,
    respond: &mut SendResponse<Bytes>,
    interim: &Interim,
    cx: &mut Context<'_>,
) -> Poll<Option<Response<B>>> {
    if respond.poll_reset(cx).is_ready() {
        return Poll::Ready(None);
    }
    let polled = call.poll(cx);
    while let Some(head) = interim.take() {
        if respond.send_informational(head).is_err() {
            return Poll::Ready(None);
        }
    }
    polled.map(Some)
}

/// The request as the phases know it: one that asks for a protocol looks as it does in HTTP/1.1,
/// so that rules mean the same for both.
fn received(
    request: Request<RecvStream>,
    interim: &Rc<Interim>,
) -> (Request<Incoming>, Option<Promised>) {
    let (mut parts, recv) = request.into_parts();
    if parts.method != Method::CONNECT {
        // Of anything else `wrong` has had its say.
        let held = parts.headers.remove(EXPECT).is_some();
        let body = Incoming::new(recv, length(&parts.headers)).with_interim(interim.clone(), held);
        return (Request::from_parts(parts, body), None);
    }
    let (to, handover) = Handover::new();
    parts.extensions.insert(handover);
    let protocol = parts.extensions.remove::<Protocol>();
    let protocol = protocol.and_then(|p| HeaderValue::from_str(p.as_str()).ok());
    let promised = Promised { to, recv, extended: protocol.is_some() };
    if let Some(protocol) = protocol {
        parts.method = Method::GET;
        parts.headers.insert(UPGRADE, protocol);
    }
    (Request::from_parts(parts, Incoming::empty()), Some(promised))
}

/// Writes an answer to its last byte, or until the client takes no more.
async fn send<S: Service>(
    response: Response<S::Body>,
    respond: &mut SendResponse<Bytes>,
    head: bool,
    patience: Duration,
) {
    let (mut parts, body) = response.into_parts();
    fields::of_answer(&mut parts.headers);
    let length = body.size_hint().exact();
    let bodiless = parts.status.is_informational() || parts.status == StatusCode::NO_CONTENT;
    if let Some(length) = length.filter(|n| *n > 0 && !bodiless) {
        parts.headers.entry(CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
    let end = head || bodiless || body.is_end_stream();
    // `send_response` sees no version but in what it was given.
    parts.version = Version::HTTP_2;
    let Ok(to) = respond.send_response(Response::from_parts(parts, ()), end) else { return };
    if end {
        return pass_over(body).await;
    }
    let mut pump = Pump::new(to, body, Reason::INTERNAL_ERROR);
    let (mut alarm, mut stalled, mut stuck) = (Alarm::default(), None, Stuck::default());
    poll_fn(|cx| {
        if let Poll::Ready(done) = pump.poll(cx) {
            match done {
                Ok(()) => {}
                Err(Stopped::Peer(error)) => {
                    tracing::debug!(%error, "a client takes no more of an answer");
                }
                Err(Stopped::Body(why)) => tracing::debug!(why, "an answer broke off"),
            }
            return Poll::Ready(());
        }
        if !pump.is_blocked() {
            stalled = None;
            stuck.moved();
            return Poll::Pending;
        }
        S::drive(pump.body(), cx);
        let sent = pump.sent();
        let since = stalled.filter(|(_, then)| *then == sent);
        if since.is_none() {
            stuck.moved();
        }
        if stuck.poll(cx).is_ready() {
            pump.reset(Reason::ENHANCE_YOUR_CALM);
            return Poll::Ready(());
        }
        let since = since.unwrap_or_else(|| (Instant::now(), sent));
        stalled = Some(since);
        ready!(alarm.poll(cx, since.0 + patience));
        pump.reset(Reason::CANCEL);
        Poll::Ready(())
    })
    .await;
}

/// Takes what is there of a body that is not sent: whoever counts sees it end.
async fn pass_over<B: Body + Unpin>(mut body: B) {
    poll_fn(|cx| {
        while let Poll::Ready(Some(Ok(_))) = Pin::new(&mut body).poll_frame(cx) {}
        Poll::Ready(())
    })
    .await;
}

// === impl Promised ===

impl Promised {
    fn is_granted(&self, status: StatusCode) -> bool {
        let switched = status == StatusCode::SWITCHING_PROTOCOLS;
        if self.extended { switched } else { status.is_success() }
    }

    /// Grants it and hands the stream over.
    fn keep<B>(self, response: Response<B>, respond: &mut SendResponse<Bytes>) {
        let (mut parts, body) = response.into_parts();
        if self.extended {
            parts.status = StatusCode::OK;
            parts.headers.remove(SEC_WEBSOCKET_ACCEPT);
        }
        fields::of_answer(&mut parts.headers);
        parts.version = Version::HTTP_2;
        let Ok(send) = respond.send_response(Response::from_parts(parts, ()), false) else {
            return;
        };
        drop(body);
        // Whoever asked for it may be gone; then it is reset.
        let _ = self.to.send(Upgraded::new(Bytes::new(), Tunnel::new(send, self.recv)));
    }
}

#[cfg(test)]
pub(super) fn future_bytes<S: Service>() -> usize {
    fn of<A, B, C, D, E, F>(_: impl Fn(A, B, C, D, E) -> F) -> usize {
        std::mem::size_of::<F>()
    }
    of(answer::<S>)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_100_continue_is_expected_in_any_case() {
        let judged = |expected: &[&str]| {
            let mut request = Request::builder();
            for value in expected {
                request = request.header(EXPECT, *value);
            }
            wrong(&request.body(()).unwrap())
        };
        for fine in [&[][..], &["100-continue"], &["100-Continue"], &["100-CONTINUE"; 2]] {
            assert_eq!(judged(fine), None, "{fine:?}");
        }
        for bad in [&["200-ok"][..], &[""], &["100-continue, x"], &["100-continue", "x"]] {
            assert_eq!(judged(bad), Some(Wrong::Expectation), "{bad:?}");
        }
    }
}
