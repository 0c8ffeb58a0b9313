// SPDX-License-Identifier: Apache-2.0
//! A client's connection: takes requests off it, has each answered in a task of its own, and says
//! GOAWAY when the client is too much, when it is idle, or when the proxy is leaving. Called by
//! `http/serve.rs`; what a request means is its [`Service`]'s business.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, Connection};
use h2::{Ping, PingPong};
use http::{Request, Response};
use http_body::Body;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use weft_base::limits::HEADER_BYTES_MAX;
use weft_base::task::TaskGroup;

use super::budget::{Abuse, Peer};
use super::gather::Gather;
use super::guard::{Guard, Watch};
use super::{ANSWER_BUFFER, Incoming, STREAM_WINDOW, STREAMS_MAX, WINDOW};
use crate::guards;
use crate::h1::Wrong;
use crate::h1::alarm::Alarm;
use crate::http::bounds::Bounds;
use crate::sys::pooled::Pooled;

mod stream;

/// Bytes that one request's future holds.
#[cfg(test)]
pub fn stream_bytes<S: Service>() -> usize {
    stream::future_bytes::<S>()
}

/// Looks at an idle connection in the time that it may be idle.
const LOOKS: u32 = 5;
/// How long a client that is told to go has to take that.
const CLOSING_TIME: Duration = Duration::from_secs(2);
/// Streams that a client may reset before we have seen them.
const UNSEEN_RESETS_MAX: usize = 20;
/// Streams that we reset and whose late frames are passed over for a second: more than once all
/// that a client may have at a time, for uploads that are refused one after the other.
const RESET_STREAMS_MAX: usize = 8 * STREAMS_MAX as usize;

/// Who answers.
pub trait Service: 'static {
    type Body: Body<Data = Bytes, Error: std::fmt::Display> + Unpin + 'static;

    fn call(&self, request: Request<Incoming>) -> impl Future<Output = Response<Self::Body>>;

    /// The answer to something that is too much to be a request.
    fn refuse(&self, wrong: Wrong) -> Response<Self::Body>;

    /// When the connection takes no more requests.
    fn bounds(&self) -> Bounds {
        Bounds::NONE
    }

    /// Goes on with sending the request's body while its answer's reader is slow.
    fn drive(body: &mut Self::Body, cx: &mut Context<'_>);
}

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// For its first bytes, and for headers once they have begun; also for the answer to a PING.
    pub head: Duration,
    /// Without any request.
    pub idle: Duration,
    /// Without taking any byte of an answer that waits for its window.
    pub body: Duration,
    /// At a time, where that is less than usual.
    pub streams: Option<u32>,
}

/// Why a connection ended before its client wanted that.
#[derive(Debug, Error)]
pub enum Ended {
    #[error("{}", crate::http::cause(.0))]
    Broken(#[from] h2::Error),
    #[error("it broke before HTTP/2 began: {0}")]
    Lost(#[from] io::Error),
    #[error("it was told to go: {0}")]
    Abuse(Abuse),
    #[error("it did not begin HTTP/2 in time")]
    NoPreface,
    #[error("it does not answer")]
    Silent,
}

struct Driver<I, S> {
    conn: Connection<Guard<Gather<I>>, Bytes>,
    watch: Rc<Watch>,
    /// Where what the streams of one turn wrote waits for its end.
    gathered: Gather<I>,
    service: Rc<S>,
    tasks: TaskGroup,
    times: Times,
    alarm: Alarm,
    pings: Option<PingPong>,
    /// When a PING was sent that nothing has followed yet.
    asked: Option<Instant>,
    look_at: Instant,
    /// Looks in a row that found no stream.
    idle_looks: u32,
    requests: u64,
    requests_seen: u64,
    draining: bool,
    /// When it is closed whatever the client does.
    closing: Option<Instant>,
}

/// Serves a connection, of which [`super::begin`] has seen what it begins with, until it ends; once
/// `draining` is ready its client is told to go and its streams are finished. Streams are tasks of
/// `tasks`.
///
/// # Errors
/// Why it ended in the middle of something.
pub async fn serve<I, S>(
    io: I,
    peer: Peer,
    service: Rc<S>,
    times: Times,
    tasks: &TaskGroup,
    draining: impl Future<Output = ()>,
) -> Result<(), Ended>
where
    I: AsyncRead + AsyncWrite + Unpin,
    S: Service,
{
    let io = Gather::new(io);
    let gathered = io.handle();
    let (io, watch) = Guard::new(io, peer);
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_concurrent_streams(times.streams.map_or(STREAMS_MAX, |n| n.min(STREAMS_MAX)))
        .max_send_buffer_size(if guards::on("h2-buffer") { ANSWER_BUFFER } else { 1 << 30 })
        .max_header_list_size(u32::try_from(HEADER_BYTES_MAX).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(UNSEEN_RESETS_MAX)
        .max_concurrent_reset_streams(RESET_STREAMS_MAX)
        .enable_connect_protocol();
    let handshake = tokio::time::timeout(times.head, builder.handshake::<_, Bytes>(io)).await;
    let mut conn = handshake.map_err(|_| Ended::NoPreface)??;
    gathered.driven();
    let mut driver = Driver {
        pings: conn.ping_pong(),
        conn,
        watch,
        gathered,
        service,
        tasks: tasks.clone(),
        times,
        alarm: Alarm::default(),
        asked: None,
        look_at: Instant::now() + times.idle / LOOKS,
        idle_looks: 0,
        requests: 0,
        requests_seen: 0,
        draining: false,
        closing: None,
    };
    let mut draining = pin!(draining);
    poll_fn(|cx| {
        let polled = driver.poll(cx, draining.as_mut());
        if polled.is_pending() {
            driver.gathered.end_turn(cx);
        }
        polled
    })
    .await
}

// === impl Driver ===

impl<I, S> Driver<I, S>
where
    I: AsyncRead + AsyncWrite + Unpin,
    S: Service,
{
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut draining: Pin<&mut impl Future<Output = ()>>,
    ) -> Poll<Result<(), Ended>> {
        loop {
            match self.conn.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    self.requests += 1;
                    let service = self.service.clone();
                    // Boxed, so that the task's wrappers hold no copies of it.
                    let body = self.times.body;
                    let id = respond.stream_id().as_u32();
                    let wrong = self.watch.has_fragment(id).then_some(Wrong::Fragment);
                    let answer =
                        Pooled::pin(|| stream::answer(service, request, wrong, respond, body));
                    self.tasks.spawn_local("http/2", answer);
                    self.end_if(self.service.bounds().is_last(self.requests));
                    continue;
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(self.ended(error))),
                Poll::Ready(None) => return Poll::Ready(self.abused()),
                Poll::Pending => {}
            }
            if self.closing.is_none() && self.watch.is_shed() {
                self.watch.stop(Abuse::Shed);
            }
            if self.closing.is_none()
                && let Some(abuse) = self.watch.abuse()
            {
                self.calm(abuse);
                continue;
            }
            // What the client has sent already was read first: closing is for idle connections.
            if !self.draining && draining.as_mut().poll(cx).is_ready() {
                self.draining = true;
                self.conn.graceful_shutdown();
                continue;
            }
            if self.asked.is_some()
                && let Some(pings) = &mut self.pings
                && pings.poll_pong(cx).is_ready()
            {
                self.asked = None;
            }
            match self.poll_clock(cx) {
                Poll::Ready(Ok(())) => {}
                other => return other,
            }
        }
    }

    /// Tells the client that it is too much, and reads nothing more of it.
    fn calm(&mut self, abuse: Abuse) {
        self.closing = Some(Instant::now() + CLOSING_TIME);
        self.conn.abrupt_shutdown(abuse.reason());
    }

    /// Ready when time has changed something.
    fn poll_clock(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        if let Some(end) = self.closing {
            return self.alarm.poll(cx, end).map(|()| self.abused().and(Err(Ended::Silent)));
        }
        let unfinished = self.watch.unfinished().filter(|_| guards::on("h2-unfinished"));
        let unfinished = unfinished.map(|since| since + self.times.head);
        let unanswered = self.asked.map(|since| since + self.times.head);
        let end = self.service.bounds().end.filter(|_| !self.draining);
        let due = [unfinished, unanswered, end].into_iter().flatten().min();
        let due = due.map_or(self.look_at, |due| due.min(self.look_at));
        std::task::ready!(self.alarm.poll(cx, due));
        let now = Instant::now();
        let heard = self.watch.take_heard();
        if unfinished.is_some_and(|end| end <= now) {
            self.watch.stop(Abuse::Unfinished);
        } else if unanswered.is_some_and(|end| end <= now) {
            if !heard {
                return Poll::Ready(Err(Ended::Silent));
            }
            // It is there, with other things to say.
            self.asked = Some(now);
        }
        if self.look_at <= now {
            self.look(now, heard);
        }
        self.end_if(self.service.bounds().is_over());
        Poll::Ready(Ok(()))
    }

    /// Tells the client to ask elsewhere from now on, once; what it has asked is answered.
    fn end_if(&mut self, over: bool) {
        if over && !self.draining {
            self.draining = true;
            self.conn.graceful_shutdown();
        }
    }

    /// Sees whether the client is there, and whether it wants anything.
    fn look(&mut self, now: Instant, heard: bool) {
        self.look_at = now + self.times.idle / LOOKS;
        let busy = self.conn.has_streams() || self.requests != self.requests_seen;
        self.requests_seen = self.requests;
        self.idle_looks = if busy { 0 } else { self.idle_looks + 1 };
        if self.idle_looks >= LOOKS && !self.draining {
            self.draining = true;
            self.conn.graceful_shutdown();
        } else if !heard
            && self.asked.is_none()
            && let Some(pings) = &mut self.pings
            && pings.send_ping(Ping::opaque()).is_ok()
        {
            self.asked = Some(now);
        }
    }

    fn ended(&self, error: h2::Error) -> Ended {
        self.watch.abuse().map_or(Ended::Broken(error), Ended::Abuse)
    }

    fn abused(&self) -> Result<(), Ended> {
        self.watch.abuse().map_or(Ok(()), |abuse| Err(Ended::Abuse(abuse)))
    }
}
