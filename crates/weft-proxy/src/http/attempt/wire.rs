// SPDX-License-Identifier: Apache-2.0
//! Which HTTP an attempt speaks, and whether there is a connection for it. Part of `attempt.rs`;
//! sends nothing.

use http::header::{HeaderValue, UPGRADE};
use http::request::Parts;
use http::{Method, Version};
use tokio::time::{Instant, timeout_at};
use weft_model::{Protocol, Speaks, Transport};

use super::{Call, Cause, Due, Ended, PATIENCE, Refusal, failed, late};
use crate::h1::head::{elements, is_token};
use crate::http::present;
use crate::upstream::breaker::{Found, Grant};
use crate::upstream::connect::ConnectError;
use crate::upstream::pick::LocalEndpoint;
use crate::upstream::pool::{How, SendError, Wire};

/// What an attempt speaks, and the protocol that it asks for over HTTP/2 if it does.
pub(super) fn choose(
    call: &Call<'_>,
    (declared, said): (Protocol, Option<Speaks>),
    transport: Transport,
    grpc: bool,
) -> (Wire, Option<HeaderValue>) {
    let declared = spoken(declared, said, call.version);
    if !present::has(&call.head.headers, &UPGRADE) {
        let follows = call.worker.config.follows_client;
        return (wire(declared, transport, call.version, grpc, follows), None);
    }
    let asked = over_h2(&call.head, call.body.is_empty(), declared);
    (if asked.is_some() { Wire::H2 } else { Wire::H1 }, asked)
}

/// What a backend's policy makes of what its port declares.
fn spoken(declared: Protocol, said: Option<Speaks>, version: Version) -> Protocol {
    match said {
        // gRPC has nothing else.
        _ if declared == Protocol::Grpc => declared,
        None => declared,
        Some(Speaks::Http2) => Protocol::Http2,
        Some(Speaks::LikeClient) if version == Version::HTTP_2 => Protocol::Http2,
        Some(Speaks::LikeClient) => Protocol::Http1,
    }
}

/// A declared protocol decides. An undeclared one is passed on as the client speaks it where the
/// proxy `follows` that; gateways do not, whose clients chose HTTP/2 because the gateway offers it,
/// and say HTTP/1.1 to all but gRPC. Between sidecars HTTP/1.1 may travel as HTTP/2 when the far
/// end is told the protocol.
fn wire(
    protocol: Protocol,
    transport: Transport,
    version: Version,
    grpc: bool,
    follows: bool,
) -> Wire {
    let like_client = if version == Version::HTTP_2 { Wire::H2 } else { Wire::H1 };
    match (protocol, transport) {
        (Protocol::Http2 | Protocol::Grpc, _) => Wire::H2,
        (Protocol::Http1, Transport::MeshH2 | Transport::Hbone) => Wire::H2,
        _ if grpc => like_client,
        (Protocol::Http1, _) => Wire::H1,
        _ if follows => like_client,
        _ => Wire::H1,
    }
}

/// What an upgrade asks a port for that is declared to speak HTTP/2, if HTTP/2 can say it: that
/// has one protocol for a stream, no method besides, and no body before it is granted (RFC 8441).
/// Of several a WebSocket will do.
fn over_h2(head: &Parts, bodiless: bool, declared: Protocol) -> Option<HeaderValue> {
    let h2 = matches!(declared, Protocol::Http2 | Protocol::Grpc);
    if !h2 || !bodiless || head.method != Method::GET {
        return None;
    }
    let asked = head.headers.get(UPGRADE)?.as_bytes();
    if elements(asked).any(|p| p.eq_ignore_ascii_case(b"websocket")) {
        return Some(HeaderValue::from_static("websocket"));
    }
    let mut all = elements(asked);
    let (one, more) = (all.next()?, all.next());
    let token = more.is_none() && one.iter().all(|b| is_token(*b));
    HeaderValue::from_bytes(one).ok().filter(|_| token)
}

/// Sees to it that an attempt, which `began` then, can have its connection; with `asks` also
/// whether the endpoint takes protocols over HTTP/2, or gets them over HTTP/1.1. `Some` is how the
/// attempt ended instead.
pub(super) async fn settle(
    call: &Call<'_>,
    picked: &LocalEndpoint,
    how: &mut How<'_>,
    (began, due): (Instant, Due),
    asks: bool,
) -> Option<Ended> {
    loop {
        let refused = room(call, picked, how, (began, due)).await;
        if refused.is_some() || !asks {
            return refused;
        }
        let asking = Box::pin(picked.pool.wire_of_protocols(how));
        let asked = timeout_at(due.at(&call.body), asking).await;
        let address = picked.entry.endpoint.address;
        return match asked {
            Ok(Ok(Wire::H2)) => None,
            Ok(Ok(Wire::H1)) => {
                // Which is another connection.
                how.wire = Wire::H1;
                room(call, picked, how, (began, due)).await
            }
            Ok(Err(ConnectError::Full { .. })) => continue,
            Ok(Err(error)) => Some(failed(call, SendError::Connect(error), address)),
            Err(_) => Some(late(address, due)),
        };
    }
}

/// Waits in line while an attempt would need a connection beyond the backend's limit and all are
/// busy, on all workers: one that is idle gives way. Who is in line again has waited since it
/// `began`; nobody waits there for longer than its request may take.
async fn room(
    call: &Call<'_>,
    picked: &LocalEndpoint,
    how: &mut How<'_>,
    (began, due): (Instant, Due),
) -> Option<Ended> {
    let most = call.backend.borrow().entry.backend.policy.limits.connections_max?;
    let entry = call.backend.borrow().entry.clone();
    let limits = &entry.backend.policy.limits;
    let breaker = call.backend.borrow().breaker.clone();
    let look = || {
        if picked.pool.has_room(how) {
            return Found::Room(None);
        }
        match breaker.place(most) {
            Found::Room(taken) => Found::Room(Some(taken)),
            Found::Soon => Found::Soon,
            Found::Nothing => Found::Nothing,
        }
    };
    let ask = || call.worker.shared.neighbours.ask_for_way(call.worker.id, &entry);
    let patience = (began + PATIENCE, PATIENCE);
    let sooner = match due {
        Due::At(at, _) => Some(at).filter(|at| *at < patience.0),
        // Silence is judged of what was sent.
        Due::Quiet { .. } => None,
    };
    let patience = sooner.map_or(patience, |at| (at, at.saturating_duration_since(began)));
    match breaker.wait(limits, patience, look, ask).await {
        Ok(taken) => {
            how.grant = Grant::of(breaker, most, taken);
            None
        }
        Err(detail) if sooner.is_some_and(|at| at <= Instant::now()) => {
            // Nothing was sent to anybody: no instance is to blame, and nobody is asked again.
            Some(Ended::Over(Refusal::new(Cause::AttemptTimeout, detail)))
        }
        Err(detail) => Some(Ended::Over(Refusal::new(Cause::Overload, detail))),
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn asked(method: &str, upgrade: &'static str, bodiless: bool) -> Option<HeaderValue> {
        let request = Request::builder().method(method).header(UPGRADE, upgrade).body(()).unwrap();
        let head = request.into_parts().0;
        assert_eq!(over_h2(&head, bodiless, Protocol::Http1), None);
        let [http2, grpc] =
            [Protocol::Http2, Protocol::Grpc].map(|declared| over_h2(&head, bodiless, declared));
        assert_eq!(http2, grpc);
        http2
    }

    #[test]
    fn gateways_say_http1_to_ports_that_declare_nothing() {
        let (plain, h2) = (Transport::Plaintext, Version::HTTP_2);
        for undeclared in [Protocol::Detect, Protocol::Tcp, Protocol::Tls] {
            for transport in [plain, Transport::MeshH2, Transport::Hbone] {
                let spoken =
                    |version, grpc, follows| wire(undeclared, transport, version, grpc, follows);
                assert_eq!(spoken(h2, false, false), Wire::H1, "{undeclared:?} {transport:?}");
                assert_eq!(spoken(h2, true, false), Wire::H2, "gRPC has nothing else");
                assert_eq!(spoken(h2, false, true), Wire::H2, "a sidecar passes it on");
                assert_eq!(spoken(Version::HTTP_11, false, true), Wire::H1);
            }
        }
        for follows in [false, true] {
            assert_eq!(wire(Protocol::Http2, plain, Version::HTTP_11, false, follows), Wire::H2);
            assert_eq!(wire(Protocol::Http1, plain, h2, false, follows), Wire::H1);
            assert_eq!(wire(Protocol::Http1, plain, h2, true, follows), Wire::H2);
        }
    }

    #[test]
    fn a_policy_goes_before_what_is_declared() {
        use Protocol::{Detect, Grpc, Http1, Http2};
        for declared in [Detect, Http1, Http2] {
            for version in [Version::HTTP_11, Version::HTTP_2] {
                assert_eq!(spoken(declared, None, version), declared);
                assert_eq!(spoken(declared, Some(Speaks::Http2), version), Http2);
            }
            let like = |version| spoken(declared, Some(Speaks::LikeClient), version);
            assert_eq!((like(Version::HTTP_11), like(Version::HTTP_2)), (Http1, Http2));
        }
        for said in [None, Some(Speaks::Http2), Some(Speaks::LikeClient)] {
            assert_eq!(spoken(Grpc, said, Version::HTTP_11), Grpc);
        }
    }

    #[test]
    fn only_what_http2_can_say_travels_over_it() {
        for (upgrade, protocol) in [
            ("websocket", "websocket"),
            ("WebSocket", "websocket"),
            ("websocket, foo", "websocket"),
            ("foo ,WEBSOCKET", "websocket"),
            ("foo", "foo"),
        ] {
            assert_eq!(asked("GET", upgrade, true).unwrap(), protocol, "{upgrade}");
            assert_eq!(asked("POST", upgrade, true), None, "{upgrade}");
            assert_eq!(asked("GET", upgrade, false), None, "{upgrade}");
        }
        for upgrade in ["foo, bar", "TLS/1.2", "foo bar", ",", ""] {
            assert_eq!(asked("GET", upgrade, true), None, "{upgrade}");
        }
    }
}
