// SPDX-License-Identifier: Apache-2.0
//! HTTP/2 connections: few, shared by many requests. One is opened at a time, for as many as it
//! will have room for.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, Shared, WeakShared};
use h2::client::SendRequest;
use h2::ext::Protocol;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{Method, Request, Response, StatusCode};
use tokio::time::Instant;
use weft_identity::Alpn;
use weft_model::Connections;

use super::worn::Worn;
use super::{
    Answered, H2_STREAMS_MAX, How, Lease, LeaseKind, OpenGuard, Pool, Room, SendError, Wire,
};
use crate::h1::Handover;
use crate::h2::client::{self, Failure, MESH_PINGS, Pings, exchange};
use crate::http::body::{AttemptBody, Replay};
use crate::http::websocket;
use crate::observe::facts;
use crate::upstream::breaker::Breaker;
use crate::upstream::connect::{ConnectError, Opening, Peer};

type UnderWay = LocalBoxFuture<'static, Result<Rc<Connection>, ConnectError>>;

/// Connections that are being opened by those who wait for them. When the last of one has given up
/// so has the attempt: nobody would go on with it.
#[derive(Default)]
pub(super) struct Connecting(RefCell<Vec<(WeakShared<UnderWay>, Rc<()>)>>);

#[derive(Debug)]
pub(super) struct Connection {
    sender: SendRequest<Bytes>,
    shared: Rc<client::Shared>,
    last: Cell<Instant>,
    worn: Worn,
    room: Rc<Room>,
    pool: Weak<Pool>,
    /// Its task has its place until it is closed.
    place: Weak<OpenGuard>,
    facts: Option<Rc<facts::Upstream>>,
}

/// One stream; it is counted while this lives.
#[derive(Debug)]
pub(super) struct Stream(Rc<Connection>);

// === impl Connecting ===

impl Connecting {
    /// Waits for one together with others, as many as it has room for; with a place there while it
    /// waits.
    ///
    /// # Errors
    /// What `open` says.
    fn join(
        &self,
        room: usize,
        open: impl FnOnce() -> Result<UnderWay, ConnectError>,
    ) -> Result<(Shared<UnderWay>, Rc<()>), ConnectError> {
        let joined = self.0.borrow().iter().find_map(|(opening, waiting)| {
            // One of them is its own.
            let fits = Rc::strong_count(waiting) <= room;
            Some((opening.upgrade().filter(|_| fits)?, waiting.clone()))
        });
        if let Some(joined) = joined {
            return Ok(joined);
        }
        let (made, place) = (open()?.shared(), Rc::new(()));
        let mut all = self.0.borrow_mut();
        all.retain(|(opening, _)| opening.upgrade().is_some());
        all.extend(made.downgrade().map(|opening| (opening, place.clone())));
        Ok((made, place))
    }

    /// Whoever comes from now on needs others than those that have come to their end.
    fn clear(&self) {
        let goes_on =
            |opening: &WeakShared<UnderWay>| opening.upgrade().map(|o| o.peek().is_none());
        self.0.borrow_mut().retain(|(opening, _)| goes_on(opening) == Some(true));
    }
}

// === impl Connection ===

impl Connection {
    /// On the terms of the backend whose request wants room.
    pub(super) fn has_room(&self, terms: Option<&Connections>) -> bool {
        let own = streams(terms);
        // A peer that allows none at all still gets one request, which then waits.
        let most = self.shared.peer_max.get().clamp(1, own);
        let over = self.shared.closed.get() || self.shared.leaving.get();
        !over && self.shared.active.get() < most && !self.worn.is_out(terms)
    }

    pub(super) fn keep(&self, now: Instant, limit: Duration, terms: Option<&Connections>) -> bool {
        let fresh = now.duration_since(self.last.get()) < limit && !self.worn.is_out(terms);
        !self.shared.closed.get() && (self.shared.active.get() > 0 || fresh)
    }

    /// Whether it is counted by `line`.
    pub(super) fn is_of(&self, line: &Breaker) -> bool {
        self.place.upgrade().is_some_and(|place| place.is_of(line))
    }

    pub(super) fn idle_since(&self) -> Option<Instant> {
        (self.shared.active.get() == 0).then(|| self.last.get())
    }

    /// Whether the peer says within `limit` that it takes protocols (RFC 8441).
    async fn takes_protocols(&self, limit: Duration) -> bool {
        let known = tokio::time::timeout(limit, self.shared.settled()).await.is_ok();
        known && self.sender.is_extended_connect_protocol_enabled()
    }
}

// === impl Stream ===

impl Stream {
    fn begin(connection: Rc<Connection>) -> Self {
        connection.shared.active.set(connection.shared.active.get() + 1);
        connection.worn.used();
        Self(connection)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let active = &self.0.shared.active;
        active.set(active.get().saturating_sub(1));
        self.0.last.set(Instant::now());
        if active.get() == 0 && self.0.place.upgrade().is_some_and(|place| place.is_owed()) {
            // Another worker has none, and waits.
            let pool = self.0.pool.upgrade();
            return pool.iter().for_each(|pool| pool.forget(&self.0));
        }
        self.0.room.freed();
    }
}

// === impl Pool ===

impl Pool {
    /// Sends one request. Resolves with the response head; dropping the future gives the attempt
    /// up and closes its stream.
    pub async fn send_h2(
        self: &Rc<Self>,
        mut request: Request<AttemptBody>,
        how: &How<'_>,
    ) -> Result<(Response<Answered>, Lease), SendError> {
        if request.headers().contains_key(UPGRADE) {
            return Box::pin(self.send_protocol(request, how)).await;
        }
        let mut last = None;
        for _ in 0..3 {
            let stream = Stream::begin(self.h2_connection(how).await?);
            how.has(&stream.0.facts);
            let mut sender = stream.0.sender.clone();
            let on = (&mut sender, &*stream.0.shared);
            match exchange(on, request, |head| how.say(head)).await {
                Ok(response) => {
                    let kind = LeaseKind::H2(stream);
                    return Ok((
                        response.map(|body| Answered::H2(Box::new(body))),
                        Lease { kind, flight: None },
                    ));
                }
                Err(Failure::Unsent(back, error)) => {
                    last = Some(crate::http::cause(&error));
                    self.forget(&stream.0);
                    request = *back;
                }
                Err(failure) => return Err(explain(failure, &how.body)),
            }
        }
        Err(SendError::Refused(last.unwrap_or_default()))
    }

    /// How a port that is declared to speak HTTP/2 gets an upgrade: as a protocol over HTTP/2 (RFC
    /// 8441) if it says itself that it takes such.
    ///
    /// # Errors
    /// There is no connection to ask on.
    pub async fn wire_of_protocols(self: &Rc<Self>, how: &How<'_>) -> Result<Wire, ConnectError> {
        let connection = self.h2_connection(how).await?;
        let taken = connection.takes_protocols(how.connect_timeout).await;
        Ok(if taken { Wire::H2 } else { Wire::H1 })
    }

    /// Sends an upgrade of HTTP/1.1 as a CONNECT with a protocol; granted, it looks like 101.
    async fn send_protocol(
        self: &Rc<Self>,
        request: Request<AttemptBody>,
        how: &How<'_>,
    ) -> Result<(Response<Answered>, Lease), SendError> {
        let (mut parts, _) = request.into_parts();
        let protocol = parts.headers.remove(UPGRADE);
        let protocol = protocol.unwrap_or(HeaderValue::from_static("websocket"));
        parts.headers.remove(CONNECTION);
        let key = parts.headers.remove(SEC_WEBSOCKET_KEY);
        parts.method = Method::CONNECT;
        parts.extensions.insert(Protocol::from(protocol.to_str().unwrap_or_default()));
        let mut request = Request::from_parts(parts, ());
        let mut last = None;
        for _ in 0..3 {
            let stream = Stream::begin(self.h2_connection(how).await?);
            how.has(&stream.0.facts);
            if !stream.0.takes_protocols(how.connect_timeout).await {
                last = Some("it takes no protocols over HTTP/2".into());
                break;
            }
            let mut sender = stream.0.sender.clone();
            match client::extended((&mut sender, &*stream.0.shared), request).await {
                Ok((answer, _)) if !answer.status().is_success() => {
                    let shared = stream.0.shared.clone();
                    let lease = Lease { kind: LeaseKind::H2(stream), flight: None };
                    let answered = |recv| Answered::H2(Box::new(client::plain(recv, &shared)));
                    return Ok((answer.map(answered), lease));
                }
                Ok((answer, send)) => {
                    let lease = Lease { kind: LeaseKind::H2(stream), flight: None };
                    return Ok((switched(answer, send, protocol, key.as_ref()), lease));
                }
                Err(Failure::Unsent(back, error)) => {
                    last = Some(crate::http::cause(&error));
                    self.forget(&stream.0);
                    request = *back;
                }
                Err(failure) => return Err(explain(failure, &how.body)),
            }
        }
        Err(SendError::Refused(last.unwrap_or_default()))
    }

    fn forget(&self, connection: &Rc<Connection>) {
        self.h2.borrow_mut().retain(|c| !Rc::ptr_eq(c, connection));
    }

    async fn h2_connection(self: &Rc<Self>, how: &How<'_>) -> Result<Rc<Connection>, ConnectError> {
        let terms = how.connections.as_deref();
        loop {
            self.h2.borrow_mut().retain(|c| !c.shared.closed.get());
            if let Some(open) = self.h2.borrow().iter().find(|c| c.has_room(terms)) {
                how.grant.release();
                return Ok(open.clone());
            }
            self.let_go(terms);
            let opening = || {
                let place = self.place(how)?;
                Ok(open(self.clone(), how.opening(), place).boxed_local())
            };
            let (joined, _waiting) = self.connecting.join(room_of_new(terms), opening)?;
            // What another one opens has its own place.
            how.grant.release();
            let result = joined.await;
            // The first to wake clears the way; a full connection makes the loop open another.
            self.connecting.clear();
            let connection = result?;
            if connection.has_room(terms) {
                return Ok(connection);
            }
        }
    }

    /// Those that have served for long enough end with their last stream.
    fn let_go(&self, terms: Option<&Connections>) {
        if terms.is_some() {
            self.h2.borrow_mut().retain(|c| !c.worn.is_out(terms));
        }
    }
}

/// Streams that a connection has at a time, as far as we say.
fn streams(terms: Option<&Connections>) -> usize {
    let said = terms.and_then(|t| t.streams_max).and_then(|n| usize::try_from(n).ok());
    said.filter(|n| *n > 0).map_or(H2_STREAMS_MAX, |n| n.min(H2_STREAMS_MAX))
}

/// Requests that a new connection can take at once.
fn room_of_new(terms: Option<&Connections>) -> usize {
    let said = terms.and_then(|t| t.requests_max).and_then(|n| usize::try_from(n).ok());
    said.filter(|n| *n > 0).unwrap_or(usize::MAX).min(streams(terms))
}

async fn open(
    pool: Rc<Pool>,
    opening: Opening,
    place: OpenGuard,
) -> Result<Rc<Connection>, ConnectError> {
    let dialling = pool.context.dialer.connect(&pool.peer, Alpn::H2, opening);
    let io = pool.doubt.opens(dialling).await?;
    let noting = pool.context.noting;
    let facts = noting.then(|| facts::Upstream::of(&io, Some(Wire::H2)).into());
    let lost = |error| ConnectError::Tcp {
        address: pool.peer.connect,
        reason: crate::http::cause(&error).into(),
    };
    let (sender, driver) =
        client::connect(io, pings_of(&pool.peer, opening)).await.map_err(lost)?;
    let shared = driver.known();
    let place = Rc::new(place);
    let known = Rc::downgrade(&place);
    // Boxed, so that the task's wrappers hold no copies of it.
    let driver = Box::pin(driver);
    pool.context.tasks.spawn_local("upstream http/2", async move {
        if let Err(error) = driver.await {
            tracing::debug!(%error, "an upstream connection ended");
        }
        drop(place);
    });
    let (last, room) = (Cell::new(Instant::now()), pool.room.clone());
    let worn = Worn::new();
    let made = Rc::new(Connection {
        sender,
        shared,
        last,
        worn,
        room,
        pool: Rc::downgrade(&pool),
        place: known,
        facts,
    });
    if !pool.retired.get() {
        pool.h2.borrow_mut().push(made.clone());
    }
    pool.room.each_line(Breaker::opened);
    Ok(made)
}

/// A protocol that was granted, as HTTP/1.1 says it.
fn switched(
    answer: Response<RecvStream>,
    send: SendStream<Bytes>,
    protocol: HeaderValue,
    key: Option<&HeaderValue>,
) -> Response<Answered> {
    let (mut parts, recv) = answer.into_parts();
    parts.status = StatusCode::SWITCHING_PROTOCOLS;
    parts.headers.insert(UPGRADE, protocol);
    parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(accept) = key.and_then(websocket::accept) {
        parts.headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    parts.extensions.insert(Handover::ready(client::joined(send, recv)));
    Response::from_parts(parts, Answered::H1(None))
}

/// Only proxies of the mesh are asked whether they are there, unless the backend's policy says
/// otherwise.
fn pings_of(peer: &Peer, opening: Opening) -> Option<Pings> {
    let said = opening.pings.map(|said| Pings {
        every: Duration::from_millis(said.interval_ms.max(1).into()),
        within: Duration::from_millis(said.timeout_ms.max(1).into()),
        always: true,
    });
    said.or_else(|| peer.is_mesh().then_some(MESH_PINGS))
}

/// What a failure of the codec means for the request.
fn explain<B>(failure: Failure<B>, body: &Replay) -> SendError {
    if let Some(failure) = body.failure() {
        return SendError::Client(failure.to_string());
    }
    match failure {
        Failure::Unsent(_, error) => SendError::Refused(crate::http::cause(&error)),
        Failure::Body(why) => SendError::Client(why),
        Failure::Garbage(why) => SendError::Garbage(why.into()),
        Failure::Stream(error) if error.is_remote() && (error.is_reset() || is_refusal(&error)) => {
            let unprocessed = is_refusal(&error);
            SendError::Stream { why: crate::http::cause(&error), unprocessed }
        }
        Failure::Stream(error) if error.is_library() => {
            SendError::Garbage(crate::http::cause(&error))
        }
        Failure::Stream(error) => SendError::Reset(crate::http::cause(&error)),
    }
}

/// Whether a peer says with it that it did not look at the request: REFUSED_STREAM, or a graceful
/// GOAWAY that the request came after.
fn is_refusal(error: &h2::Error) -> bool {
    match error.reason() {
        Some(Reason::REFUSED_STREAM) => true,
        Some(Reason::NO_ERROR) => error.is_go_away(),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
