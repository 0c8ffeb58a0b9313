// SPDX-License-Identifier: Apache-2.0
//! HTTP/2 connections: few, shared by many requests; one is opened at a time.

use std::cell::{Cell, RefCell};
use std::error::Error as _;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, Shared};
use http::{Request, Response};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::Instant;
use weft_base::limits::HEADER_BYTES_MAX;
use weft_base::task::TaskGroup;
use weft_identity::Alpn;

use super::{
    Answered, H2_STREAMS_MAX, How, Lease, LeaseKind, OpenGuard, Pool, Room, SendError, classify,
};
use crate::http::body::AttemptBody;
use crate::upstream::breaker::Breaker;
use crate::upstream::connect::ConnectError;

/// Flow-control windows: small ones stall big bodies, and a proxied connection must never use
/// adaptive windows (h2 then takes small frames for an attack).
const WINDOW: u32 = 16 * 1024 * 1024;
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_WITHIN: Duration = Duration::from_secs(5);

type Sender = http2::SendRequest<AttemptBody>;
pub(super) type Connecting = Shared<LocalBoxFuture<'static, Result<Rc<Connection>, ConnectError>>>;

#[derive(Debug)]
pub(super) struct Connection {
    sender: Sender,
    active: Cell<usize>,
    /// What the peer allows; known once its settings arrived.
    peer_max: Rc<Cell<usize>>,
    last: Cell<Instant>,
    room: Rc<Room>,
    /// Its task has it too: whoever is first ends the count.
    open: Rc<RefCell<Option<OpenGuard>>>,
}

/// One stream; it is counted while this lives.
#[derive(Debug)]
pub(super) struct Stream(Rc<Connection>);

/// Runs the codec's tasks on this worker.
#[derive(Clone, Debug)]
pub struct LocalExecutor(pub TaskGroup);

// === impl Connection ===

impl Connection {
    pub(super) fn has_room(&self) -> bool {
        // A peer that allows none at all still gets one request, which then waits.
        let most = self.peer_max.get().clamp(1, H2_STREAMS_MAX);
        !self.sender.is_closed() && self.active.get() < most
    }

    pub(super) fn keep(&self, now: Instant, limit: Duration) -> bool {
        let busy = self.active.get() > 0 || now.duration_since(self.last.get()) < limit;
        !self.sender.is_closed() && busy
    }

    pub(super) fn idle_since(&self) -> Option<Instant> {
        (self.active.get() == 0).then(|| self.last.get())
    }

    /// It is closed a moment after the last hold on it goes, but counted no more from now on.
    pub(super) fn discount(&self) {
        let open = self.open.borrow_mut().take();
        drop(open);
    }
}

// === impl Stream ===

impl Stream {
    fn begin(connection: Rc<Connection>) -> Self {
        connection.active.set(connection.active.get() + 1);
        Self(connection)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get().saturating_sub(1));
        self.0.last.set(Instant::now());
        self.0.room.freed();
    }
}

// === impl Pool ===

impl Pool {
    pub(super) async fn send_h2(
        self: &Rc<Self>,
        mut request: Request<AttemptBody>,
        how: &How,
    ) -> Result<(Response<Answered>, Lease), SendError> {
        let mut last = None;
        for _ in 0..3 {
            let stream = Stream::begin(self.h2_connection(how).await?);
            let mut sender = stream.0.sender.clone();
            match sender.try_send_request(request).await {
                Ok(response) => {
                    let kind = LeaseKind::H2(stream);
                    return Ok((response.map(Answered::H2), Lease { kind, flight: None }));
                }
                Err(mut error) => match error.take_message() {
                    Some(back) => {
                        last = Some(crate::http::cause(error.error()));
                        self.forget(&stream.0);
                        request = back;
                    }
                    None => return Err(classify(error.error(), &how.body)),
                },
            }
        }
        Err(SendError::Refused(last.unwrap_or_default()))
    }

    fn forget(&self, connection: &Rc<Connection>) {
        self.h2.borrow_mut().retain(|c| !Rc::ptr_eq(c, connection));
    }

    async fn h2_connection(self: &Rc<Self>, how: &How) -> Result<Rc<Connection>, ConnectError> {
        loop {
            self.h2.borrow_mut().retain(|c| !c.sender.is_closed());
            if let Some(open) = self.h2.borrow().iter().find(|c| c.has_room()) {
                return Ok(open.clone());
            }
            let waiting = self.connecting.borrow().clone();
            let connecting = waiting.unwrap_or_else(|| {
                let made = open(self.clone(), how.connect_timeout).boxed_local().shared();
                *self.connecting.borrow_mut() = Some(made.clone());
                made
            });
            let result = connecting.await;
            // The first to wake clears the way; a full connection makes the loop open another.
            self.connecting.borrow_mut().take_if(|c| c.peek().is_some());
            let connection = result?;
            if connection.has_room() {
                return Ok(connection);
            }
        }
    }
}

async fn open(pool: Rc<Pool>, limit: Duration) -> Result<Rc<Connection>, ConnectError> {
    // Counted from here on: others must see that the limit is used up.
    let open = Rc::new(RefCell::new(Some(pool.opened())));
    let io = pool.context.dialer.connect(&pool.peer, Alpn::H2, limit).await?;
    let (sender, connection) = http2::Builder::new(LocalExecutor(pool.context.tasks.clone()))
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_header_list_size(u32::try_from(HEADER_BYTES_MAX).unwrap_or(u32::MAX))
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_WITHIN)
        .handshake(TokioIo::new(io))
        .await
        .map_err(|e| ConnectError::Tcp {
            address: pool.peer.connect,
            reason: crate::http::cause(&e).into(),
        })?;
    let peer_max = Rc::new(Cell::new(usize::MAX));
    let seen = peer_max.clone();
    let guard = open.clone();
    pool.context.tasks.spawn_local("upstream http/2", async move {
        let mut connection = Box::pin(connection);
        let running = std::future::poll_fn(|cx| {
            let polled = connection.as_mut().poll(cx);
            seen.set(connection.current_max_send_streams());
            polled
        });
        if let Err(error) = running.await {
            tracing::debug!(%error, "an upstream connection ended");
        }
        let open = guard.borrow_mut().take();
        drop(open);
    });
    let made = Rc::new(Connection {
        sender,
        active: Cell::new(0),
        peer_max,
        last: Cell::new(Instant::now()),
        room: pool.room.clone(),
        open,
    });
    pool.h2.borrow_mut().push(made.clone());
    pool.room.each_line(Breaker::opened);
    Ok(made)
}

/// Whether the peer says that it did not look at the request: REFUSED_STREAM, or a graceful
/// GOAWAY that the request came after.
pub(super) fn refusal(error: &hyper::Error) -> Option<String> {
    let mut source = error.source();
    while let Some(e) = source {
        if let Some(e) = e.downcast_ref::<h2::Error>() {
            let reason = e.reason()?;
            let refused = reason == h2::Reason::REFUSED_STREAM
                || (e.is_go_away() && e.is_remote() && reason == h2::Reason::NO_ERROR);
            return refused.then(|| e.to_string());
        }
        source = e.source();
    }
    None
}

// === impl LocalExecutor ===

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future + 'static,
{
    fn execute(&self, future: F) {
        // See worker.rs: boxed, so that the task's wrappers hold no copies of it.
        let future = Box::pin(future);
        self.0.spawn_local("http/2", async move {
            drop(future.await);
        });
    }
}
