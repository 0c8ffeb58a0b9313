// SPDX-License-Identifier: Apache-2.0
//! Connections to one endpoint, of one worker. With `http/serve.rs` the only place that names a
//! codec: whoever calls sees requests, answers and [`SendError`]s that say what may be repeated.

mod doubt;
mod h1;
mod h2;
mod own;
mod tunnel;
mod worn;

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use thiserror::Error;
use weft_base::task::TaskGroup;
use weft_model::Connections;

use super::breaker::{Breaker, Grant, Taken};
use super::connect::{ConnectError, Dialer, Opening, Peer};
use super::pick::LocalEndpoint;
use crate::http::body::{AttemptBody, Replay};
use crate::http::interim::Interim;
use crate::observe::facts;

pub use own::{Client, OwnPools};
pub use tunnel::{GRANT_EXTRA, Tunnel};

/// An answer's body as the codec yields it.
#[derive(Debug)]
pub enum Answered {
    /// With its connection, unless that left HTTP.
    H1(Option<Box<h1::Connection>>),
    H2(Box<crate::h2::Exchange<AttemptBody>>),
}

/// Why an answer's body broke off.
#[derive(Debug, Error)]
#[error("{why}")]
pub struct Broken {
    pub why: String,
    pub by: Break,
}

/// What broke it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// Its connection ended.
    Closed,
    /// The peer ended its stream alone.
    Reset,
    /// What came is not HTTP.
    Garbage,
}

/// Requests at a time on one HTTP/2 connection.
const H2_STREAMS_MAX: usize = 100;
// What nobody reads of some never takes the window from the others.
const _: () = assert!(H2_STREAMS_MAX <= crate::h2::STREAMS_MAX as usize);
/// A connection idle for longer is not trusted with what cannot be sent again: the peer may be
/// closing it this moment.
const CAREFUL_IDLE: Duration = Duration::from_millis(1_000);
/// Reused connections that are tried before a new one is opened.
const REUSE_TRIES: usize = 2;

/// What is known of a connection, where lines of the access log tell of that.
pub type Facts = Option<Rc<facts::Upstream>>;

/// Which HTTP an attempt speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    H1,
    H2,
}

/// How one attempt is to be sent.
#[derive(Debug)]
pub struct How<'a> {
    pub wire: Wire,
    pub connect_timeout: Duration,
    /// What its backend says of connections.
    pub connections: Option<Arc<Connections>>,
    /// The request must not be sent twice: use no connection that may be closing.
    pub careful: bool,
    /// It may be sent once more, without asking anybody, when a connection that was kept turns out
    /// to be closed.
    pub again: Cell<bool>,
    pub body: Replay,
    /// Where answers before the answer go.
    pub interim: Option<Rc<Interim>>,
    /// What a new connection is counted by.
    pub grant: Grant,
    /// Where it is noted which connection it has.
    pub on: Option<&'a RefCell<Facts>>,
}

/// Why an attempt has no response head.
#[derive(Debug, Error)]
pub enum SendError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The peer says that it did not process the request.
    #[error("the upstream refused the request unprocessed: {0}")]
    Refused(String),
    /// The peer ended the request's stream; `unprocessed`: and says that it did not look at it.
    #[error("the upstream reset the request's stream: {why}")]
    Stream { why: String, unprocessed: bool },
    #[error("the connection was closed before a response: {0}")]
    Reset(String),
    #[error("the upstream sent something that is not HTTP: {0}")]
    Garbage(String),
    #[error("the client went away while its request was being sent: {0}")]
    Client(String),
}

/// What all pools of a worker share.
#[derive(Debug)]
pub struct PoolContext {
    pub dialer: Arc<Dialer>,
    pub tasks: TaskGroup,
    pub opened: Cell<u64>,
    /// Lines of the access log tell of their upstream connection.
    pub noting: bool,
}

/// Connections to one endpoint.
pub struct Pool {
    pub peer: Peer,
    context: Rc<PoolContext>,
    h1: RefCell<Vec<h1::Idle>>,
    h2: RefCell<Vec<Rc<h2::Connection>>>,
    connecting: h2::Connecting,
    doubt: Rc<doubt::Doubt>,
    room: Rc<Room>,
    children: own::Children,
    /// The pool that it is one client's part of is gone.
    retired: Cell<bool>,
}

/// When a connection that was closed is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    Now,
    Soon,
}

/// What a pool's connections tell those that wait for one.
#[derive(Debug, Default)]
struct Room {
    /// Open connections, both kinds.
    open: Cell<usize>,
    /// Of the backends that use the pool.
    lines: RefCell<Vec<Weak<Breaker>>>,
}

/// Holds what an answer needs until its body ended; then the connection is free again.
#[derive(Debug)]
pub struct Lease {
    /// Goes first: who is given the connection may be in flight at once.
    flight: Option<InFlight>,
    kind: LeaseKind,
}

#[derive(Debug)]
enum LeaseKind {
    H1(Rc<Pool>),
    H2(#[allow(dead_code)] h2::Stream),
    /// An HTTP/1.1 connection that has left HTTP.
    Left(#[allow(dead_code)] OpenGuard),
}

/// Counts one request to an endpoint while it lasts.
#[derive(Debug)]
pub struct InFlight {
    endpoint: Rc<LocalEndpoint>,
    worker: usize,
    /// What it has of its backend's limit.
    _taken: Option<Taken>,
}

/// One less open connection when it goes, and one less of its backend's limit.
#[derive(Debug)]
struct OpenGuard {
    room: Rc<Room>,
    taken: Option<Taken>,
}

// === impl How ===

impl How<'_> {
    /// How its connection is opened, if it needs another one.
    fn opening(&self) -> Opening {
        Opening::of(self.connect_timeout, self.connections.as_deref())
    }

    /// The attempt has a connection.
    fn has(&self, facts: &Facts) {
        if let Some(on) = self.on {
            on.borrow_mut().clone_from(facts);
        }
    }

    /// Passes on an answer before the answer.
    fn say(&self, head: Response<()>) {
        if let Some(interim) = &self.interim {
            interim.push(head);
        }
    }
}

// === impl Pool ===

impl Pool {
    pub fn new(peer: Peer, context: Rc<PoolContext>) -> Rc<Self> {
        Rc::new(Self::made(peer, context))
    }

    fn made(peer: Peer, context: Rc<PoolContext>) -> Self {
        Self {
            peer,
            context,
            h1: RefCell::default(),
            h2: RefCell::default(),
            connecting: h2::Connecting::default(),
            doubt: Rc::default(),
            room: Rc::default(),
            children: own::Children::default(),
            retired: Cell::new(false),
        }
    }

    /// Closes what was idle for longer than `limit`, and what has served for long enough.
    pub fn sweep(&self, limit: Duration, terms: Option<&Connections>) {
        let now = tokio::time::Instant::now();
        self.h1.borrow_mut().retain_mut(|idle| idle.keep(now, limit, terms));
        self.h2.borrow_mut().retain(|connection| connection.keep(now, limit, terms));
        self.children.each().iter().for_each(|own| own.sweep(limit, terms));
    }

    /// Whether a request can go out without another connection. A careful one takes none that
    /// may be closing.
    pub fn has_room(&self, how: &How<'_>) -> bool {
        match how.wire {
            Wire::H1 => self.trusts_kept() && self.has_idle(how),
            Wire::H2 => self.h2.borrow().iter().any(|c| c.has_room(how.connections.as_deref())),
        }
    }

    /// Since when the connection has been idle that has been so for longest, of those that are
    /// counted by `line`.
    pub fn idle_since(&self, line: &Breaker) -> Option<tokio::time::Instant> {
        let h1 = self.h1.borrow().iter().find(|idle| idle.is_of(line)).map(h1::Idle::since);
        let own = |c: &&Rc<h2::Connection>| c.is_of(line);
        let h2 = self.h2.borrow().iter().filter(own).filter_map(|c| c.idle_since()).min();
        let own = h1.into_iter().chain(h2).min();
        if self.children.is_empty() {
            return own;
        }
        self.children.each().iter().filter_map(|own| own.idle_since(line)).chain(own).min()
    }

    /// Closes that connection, so that another may be opened, here or elsewhere; at once, or in a
    /// moment.
    pub fn close_idle(&self, line: &Breaker) -> Option<Closed> {
        let oldest = self.idle_since(line)?;
        let is_it = |since: tokio::time::Instant| since == oldest;
        let children = self.children.each();
        if let Some(own) = children.iter().find(|own| own.idle_since(line).is_some_and(is_it)) {
            return own.close_idle(line);
        }
        let is_first = |idle: &h1::Idle| idle.is_of(line) && is_it(idle.since());
        let first = self.h1.borrow().iter().position(is_first);
        if let Some(first) = first {
            let closed = self.h1.borrow_mut().remove(first);
            drop(closed);
            return Some(Closed::Now);
        }
        let mut h2 = self.h2.borrow_mut();
        let at = h2.iter().position(|c| c.is_of(line) && c.idle_since().is_some_and(is_it))?;
        let closed = h2.remove(at);
        drop(h2);
        // Its task says goodbye, and has it counted until then.
        drop(closed);
        Some(Closed::Soon)
    }

    /// Takes no more requests on one that has some, so that it comes to an end; `false` when there
    /// is none.
    pub fn leave_one(&self, line: &Breaker) -> bool {
        let mut h2 = self.h2.borrow_mut();
        let left = h2.iter().rposition(|c| c.is_of(line)).map(|at| h2.remove(at));
        drop(h2);
        left.is_some() || self.children.each().iter().any(|own| own.leave_one(line))
    }

    /// Tells `line` from now on when there may be room again, and lets it have what is idle.
    pub fn tell(self: &Rc<Self>, line: &Rc<Breaker>) {
        let mut lines = self.room.lines.borrow_mut();
        lines.retain(|known| known.strong_count() > 0);
        if !lines.iter().any(|known| known.as_ptr() == Rc::as_ptr(line)) {
            lines.push(Rc::downgrade(line));
            line.counts(self);
        }
    }

    /// Whether the endpoint may be gone: who has another one goes there.
    pub fn is_doubted(&self) -> bool {
        self.doubt.is_raised()
    }

    /// Open connections.
    pub fn connections(&self) -> usize {
        self.room.open.get()
    }

    fn opened(&self, taken: Option<Taken>) -> OpenGuard {
        self.room.open.set(self.room.open.get() + 1);
        self.context.opened.set(self.context.opened.get() + 1);
        OpenGuard { room: self.room.clone(), taken }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("peer", &self.peer)
            .field("open", &self.room.open.get())
            .finish()
    }
}

// === impl Lease ===

impl Lease {
    /// Counts the request until the lease ends.
    pub fn counted(mut self, flight: InFlight) -> Self {
        self.flight = Some(flight);
        self
    }

    /// The answer's body was read to its end: its connection may serve others.
    pub fn finished(self, body: &mut Answered) {
        drop(self.flight);
        if let (LeaseKind::H1(pool), Answered::H1(connection)) = (self.kind, body)
            && let Some(connection) = connection.take_if(|c| c.exchange.is_reusable())
        {
            pool.give_back(connection);
        }
    }
}

// === impl Answered ===

impl Answered {
    /// Goes on with sending the request while nobody reads the answer.
    pub fn drive(&mut self, cx: &mut Context<'_>) {
        match self {
            Self::H1(Some(connection)) => connection.drive(cx),
            Self::H1(None) => {}
            Self::H2(exchange) => exchange.drive(cx),
        }
    }
}

impl Body for Answered {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.get_mut() {
            Self::H1(None) => Poll::Ready(None),
            Self::H1(Some(c)) => {
                c.exchange.poll_frame(cx).map_err(|why| Broken { why, by: Break::Closed })
            }
            Self::H2(body) => Pin::new(&mut **body)
                .poll_frame(cx)
                .map_err(|error| Broken { why: crate::http::cause(&error), by: Break::of(&error) }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::H1(connection) => connection.as_ref().is_none_or(|c| c.exchange.is_done()),
            Self::H2(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::H1(connection) => {
                let left = connection.as_ref().map_or(Some(0), |c| c.exchange.left());
                left.map_or_else(SizeHint::new, SizeHint::with_exact)
            }
            Self::H2(body) => body.size_hint(),
        }
    }
}

// === impl Break ===

impl Break {
    fn of(error: &::h2::Error) -> Self {
        let remote = error.is_remote();
        match error.reason() {
            Some(_) if remote && error.is_reset() => Self::Reset,
            Some(::h2::Reason::PROTOCOL_ERROR) if !remote => Self::Garbage,
            _ => Self::Closed,
        }
    }
}

// === impl InFlight ===

impl InFlight {
    pub fn begin(endpoint: &Rc<LocalEndpoint>, worker: usize) -> Self {
        Self::within(endpoint, worker, None)
    }

    /// The same for one that has `taken` of its backend's limit.
    pub fn within(endpoint: &Rc<LocalEndpoint>, worker: usize, taken: Option<Taken>) -> Self {
        endpoint.entry.shared.begin(worker);
        Self { endpoint: endpoint.clone(), worker, _taken: taken }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.endpoint.entry.shared.end(self.worker);
    }
}

impl OpenGuard {
    fn is_of(&self, line: &Breaker) -> bool {
        self.taken.as_ref().is_some_and(|taken| taken.is_of(line))
    }

    /// Whether its place is for another worker once nobody needs it here.
    fn is_owed(&self) -> bool {
        self.taken.as_ref().is_some_and(Taken::is_owed)
    }
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.room.open.set(self.room.open.get().saturating_sub(1));
        drop(self.taken.take());
        self.room.freed();
    }
}

// === impl Room ===

impl Room {
    /// A connection has room for one more request, or there is room for another connection.
    fn freed(&self) {
        self.each_line(Breaker::freed);
    }

    fn each_line(&self, tell: impl Fn(&Breaker)) {
        let lines = self.lines.borrow();
        lines.iter().filter_map(Weak::upgrade).for_each(|line| tell(&line));
    }
}
