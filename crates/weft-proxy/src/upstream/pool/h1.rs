// SPDX-License-Identifier: Apache-2.0
//! HTTP/1.1 connections: a stack of idle ones, newest first. A request and its connection live in
//! the task that wants the answer; an idle connection has no task.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Context;
use std::time::Duration;

use http::request::Parts;
use http::{Response, StatusCode};
use tokio::time::Instant;
use weft_base::clock::moment;
use weft_identity::Alpn;
use weft_model::Connections;

use super::worn::Worn;
use super::{
    Answered, CAREFUL_IDLE, How, Lease, LeaseKind, OpenGuard, Pool, REUSE_TRIES, SendError, Wire,
};
use crate::h1::client::Failure;
use crate::h1::courtesy::Courtesy;
use crate::h1::encode::Instead;
use crate::h1::{Exchange, Handover, Upgraded};
use crate::http::body::{AttemptBody, Due};
use crate::observe::facts;
use crate::upstream::breaker::Breaker;
use crate::upstream::connect::{ConnectError, Opening, UpstreamIo};

/// One open connection.
#[derive(Debug)]
pub struct Connection {
    pub(super) exchange: Exchange<UpstreamIo, AttemptBody>,
    open: OpenGuard,
    pub(super) facts: Option<Rc<facts::Upstream>>,
    worn: Worn,
    /// What the backend of its last request says of connections.
    terms: Option<Arc<Connections>>,
}

#[derive(Debug)]
pub(super) struct Idle {
    connection: Box<Connection>,
    since: Instant,
}

// === impl Connection ===

impl Connection {
    /// Leaves HTTP; whoever goes on with it keeps it counted.
    pub(super) fn upgraded(self) -> (Upgraded, OpenGuard) {
        let (io, prefix) = self.exchange.into_parts();
        (Upgraded::new(prefix, io), self.open)
    }

    /// Goes on with sending while its answer is not read.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) {
        self.exchange.drive(cx);
    }
}

// === impl Idle ===

impl Idle {
    /// Whether it is counted by `line`.
    pub(super) fn is_of(&self, line: &Breaker) -> bool {
        self.connection.open.is_of(line)
    }

    pub(super) fn since(&self) -> Instant {
        self.since
    }

    pub(super) fn keep(
        &mut self,
        now: Instant,
        limit: Duration,
        terms: Option<&Connections>,
    ) -> bool {
        let fresh = now.duration_since(self.since) < limit && !self.connection.worn.is_out(terms);
        fresh && self.connection.exchange.is_silent()
    }
}

// === impl Pool ===

impl Pool {
    /// Sends one request as it is, but for what is said instead; `None` when there is no answer
    /// when it is due. Nothing of it is copied but to the wire.
    pub async fn send_h1(
        self: &Rc<Self>,
        (head, instead): (&Parts, Instead<'_>),
        how: &How<'_>,
        due: Due,
    ) -> Option<Result<(Response<Answered>, Lease), SendError>> {
        // Of a connection that was closed already: the next one has its place.
        let mut place = None;
        for tries in 0..=REUSE_TRIES {
            let kept = tries < REUSE_TRIES && self.trusts_kept();
            let idle = if kept { self.idle(how) } else { None };
            let reused = idle.is_some();
            let mut connection = match idle {
                Some(connection) => connection,
                None => {
                    let opening = match place.take().map_or_else(|| self.place(how), Ok) {
                        Ok(place) => Box::pin(self.open_h1(how.opening(), place)),
                        Err(error) => return Some(Err(error.into())),
                    };
                    match tokio::time::timeout_at(due.at(&how.body), opening).await.ok()? {
                        Ok(connection) => connection,
                        Err(error) => return Some(Err(error.into())),
                    }
                }
            };
            how.has(&connection.facts);
            connection.worn.used();
            connection.terms.clone_from(&how.connections);
            connection.exchange.begin_with(head, instead, how.body.attempt());
            let mut courtesy = Courtesy::default();
            poll_fn(|cx| courtesy.poll(cx)).await;
            let exchange = &mut connection.exchange;
            let asking = poll_fn(|cx| {
                let polled = exchange.poll_head_until(cx, || due.at(&how.body));
                exchange.take_early().for_each(|head| how.say(head));
                polled
            });
            let waiting = self.doubt.asks(moment());
            let asked = asking.await?;
            drop(waiting);
            let failure = match asked {
                Ok(parts) => {
                    self.doubt.heard(moment());
                    return Some(Ok(self.answered(connection, parts)));
                }
                Err(failure) => failure,
            };
            // A reused connection may have been closed before the request came: another one may
            // have it if nothing was written, or once if doing it twice does no harm (RFC 9110
            // §9.2.2). A peer that ends each of them over the request is no such case: whoever
            // sends it again and again asks the retry budget.
            let again = reused
                && how.body.can_replay()
                && match &failure {
                    Failure::Unsent(_) => true,
                    Failure::Reset { silent, .. } => *silent && !how.careful && how.again.take(),
                    Failure::Garbage(_) | Failure::Body(_) => false,
                };
            if !again {
                return Some(Err(explain(failure, how)));
            }
            let Connection { exchange, open, .. } = *connection;
            drop(exchange);
            place = Some(open);
        }
        // The last try is on a new connection and returns.
        Some(Err(SendError::Refused("no connection could be used".into())))
    }

    fn answered(
        self: &Rc<Self>,
        connection: Box<Connection>,
        mut parts: http::response::Parts,
    ) -> (Response<Answered>, Lease) {
        let (kind, body) = if parts.status == StatusCode::SWITCHING_PROTOCOLS {
            let (upgraded, open) = connection.upgraded();
            parts.extensions.insert(Handover::ready(upgraded));
            (LeaseKind::Left(open), Answered::H1(None))
        } else {
            (LeaseKind::H1(self.clone()), Answered::H1(Some(connection)))
        };
        (Response::from_parts(parts, body), Lease { kind, flight: None })
    }

    pub(super) fn give_back(&self, connection: Box<Connection>) {
        let worn = connection.worn.is_out(connection.terms.as_deref());
        if self.retired.get() || worn || connection.open.is_owed() {
            return;
        }
        self.h1.borrow_mut().push(Idle { connection, since: moment() });
        self.room.freed();
    }

    /// Whether connections that were kept may be used.
    pub(super) fn trusts_kept(&self) -> bool {
        self.doubt.trusts_kept(self.peer.connect, moment())
    }

    fn idle(&self, how: &How<'_>) -> Option<Box<Connection>> {
        let newest = self.has_idle(how).then(|| self.h1.borrow_mut().pop());
        newest.flatten().map(|idle| idle.connection)
    }

    /// Whether the newest connection may be used; those that are closed go, and those that have
    /// served for long enough.
    pub(super) fn has_idle(&self, how: &How<'_>) -> bool {
        let mut stack = self.h1.borrow_mut();
        while let Some(idle) = stack.last_mut() {
            let connection = &mut idle.connection;
            let serves = !connection.worn.is_out(how.connections.as_deref());
            if serves && connection.exchange.is_silent() {
                // Older ones are no safer. They are left to requests that may be sent again.
                return !how.careful || idle.since.elapsed() <= CAREFUL_IDLE;
            }
            stack.pop();
        }
        false
    }

    /// A place for one more connection. Counted from here on: others must see that the limit is
    /// used up.
    pub(super) fn place(&self, how: &How<'_>) -> Result<OpenGuard, ConnectError> {
        let full = |most| ConnectError::Full { address: self.peer.connect, most };
        Ok(self.opened(how.grant.claim().map_err(full)?))
    }

    pub(super) async fn open_h1(
        &self,
        opening: Opening,
        open: OpenGuard,
    ) -> Result<Box<Connection>, ConnectError> {
        let dialling = self.context.dialer.connect(&self.peer, Alpn::Http11, opening);
        let io = self.doubt.opens(dialling).await?;
        let facts = self.context.noting.then(|| facts::Upstream::of(&io, Some(Wire::H1)).into());
        let (exchange, worn) = (Exchange::new(io), Worn::new());
        Ok(Box::new(Connection { exchange, open, facts, worn, terms: None }))
    }
}

/// What a failure of the codec means for the request.
fn explain(failure: Failure, how: &How<'_>) -> SendError {
    if let Some(failure) = how.body.failure() {
        return SendError::Client(failure.to_string());
    }
    match failure {
        Failure::Body(why) => SendError::Client(why),
        Failure::Garbage(wrong) => SendError::Garbage(wrong.to_string()),
        Failure::Unsent(why) => SendError::Refused(why),
        Failure::Reset { why, .. } => SendError::Reset(why),
    }
}

#[cfg(test)]
mod tests;
