// SPDX-License-Identifier: Apache-2.0
//! A client's connection: one request after the other, each answered whole before the next is
//! looked at. Called by `http/serve.rs`; what a request means is its [`Service`]'s business.

use std::cell::RefCell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body;
use thiserror::Error;
use tokio::sync::oneshot;
use tokio::time::Instant;
use weft_base::clock::moment;

use super::alarm::Alarm;
use super::buffers::{self, Read};
use super::courtesy::Courtesy;
use super::encode;
use super::framing::Framing;
use super::head::{RequestHead, Scan};
use super::incoming::Incoming;
use super::upgraded::{Handover, Upgraded};
use super::wrong::Wrong;
use crate::guards;
use crate::http::bounds::Bounds;
use crate::http::interim::Interim;
use crate::overload::stuck::Stuck;
use crate::sys::pooled::Pooled;
use crate::tcp::socket::Socket;

mod core;
mod reply;

use self::core::Core;
use self::reply::Reply;

/// What is read and thrown away behind the last answer, and for how long.
const LINGER_BYTES: usize = 32 * 1024 * 1024;
const LINGER_TIME: Duration = Duration::from_secs(2);
/// What is read of a body that nobody wanted, to keep its connection.
const DRAIN_BYTES: u64 = 64 * 1024;
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// Who answers.
pub trait Service {
    type Body: Body<Data = Bytes> + Unpin;

    fn call(&self, request: Request<Incoming>) -> impl Future<Output = Response<Self::Body>>;

    /// The answer to something that is no request.
    fn refuse(&self, wrong: Wrong) -> Response<Self::Body>;

    /// Answers before the answer, of the request under way.
    fn interim(&self) -> Option<&Interim> {
        None
    }

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
    /// For a head, once it has begun.
    pub head: Duration,
    /// Between requests.
    pub idle: Duration,
    /// Without any byte of a body, in either direction.
    pub body: Duration,
}

/// Why a connection ended before its client wanted that.
#[derive(Debug, Error)]
pub enum Ended {
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error("a request was refused: {0}")]
    Refused(Wrong),
    #[error("the client went away")]
    Gone,
    #[error("the client took nothing for too long")]
    Stalled,
    #[error("an answer broke off")]
    Broke,
    #[error("memory is short, and the client takes nothing")]
    Shed,
}

#[allow(clippy::large_enum_variant)] // Moved once, and most are requests.
enum Next {
    Request(RequestHead),
    Refused(Wrong),
    End,
}

/// What becomes of a connection after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Keep,
    Close,
    Switch,
}

struct Driver<'s, I, S> {
    core: Rc<RefCell<Core<I>>>,
    service: &'s S,
    times: Times,
    alarm: Alarm,
    scan: Scan,
    drained: bool,
}

/// Bytes of a stream with what belongs to it.
#[cfg(test)]
pub fn stream_bytes<I>() -> usize {
    size_of::<RefCell<Core<I>>>()
}

/// Serves a stream until it ends.
#[cfg(test)]
pub async fn serve<I, S>(
    io: I,
    service: &S,
    times: Times,
    draining: impl Future<Output = ()>,
) -> Result<(), Ended>
where
    I: Socket + Send + 'static,
    S: Service,
{
    Connection::new(io, times).serve(service, std::pin::pin!(draining)).await
}

/// A connection before its first request. The stream has its place here already, so that none of
/// the futures that serve it has room for one of its own.
pub struct Connection<I> {
    core: Rc<RefCell<Core<I>>>,
    times: Times,
}

// === impl Connection ===

impl<I> Connection<I>
where
    I: Socket + Send + 'static,
{
    pub fn new(io: I, times: Times) -> Self {
        Self { core: Rc::new(RefCell::new(Core::new(io, times.body))), times }
    }

    /// Serves it until it ends, or `draining` is ready and nothing is asked.
    ///
    /// # Errors
    /// Why it ended in the middle of something.
    pub async fn serve<S: Service>(
        self,
        service: &S,
        draining: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), Ended> {
        let Self { core, times } = self;
        let (alarm, scan) = (Alarm::default(), Scan::default());
        let driver = Driver { core, service, times, alarm, scan, drained: false };
        run(driver, draining).await
    }
}

impl<I> fmt::Debug for Connection<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("times", &self.times).finish_non_exhaustive()
    }
}

async fn run<I, S>(
    mut driver: Driver<'_, I, S>,
    mut draining: Pin<&mut impl Future<Output = ()>>,
) -> Result<(), Ended>
where
    I: Socket + Send + 'static,
    S: Service,
{
    loop {
        match driver.next(draining.as_mut()).await? {
            // Boxed, this and what follows: an idle connection keeps no room for it.
            Next::End => return Box::pin(driver.close(false)).await,
            Next::Refused(wrong) => {
                let refusal = Reply::refusal(driver.service.refuse(wrong));
                Box::pin(driver.send(refusal)).await?;
                Box::pin(driver.close(true)).await?;
                return Err(Ended::Refused(wrong));
            }
            Next::Request(head) => match Pooled::pin(|| driver.request(head)).await? {
                After::Keep => {}
                After::Close => {
                    let more = driver.core.borrow().has_more();
                    return Box::pin(driver.close(more)).await;
                }
                After::Switch => return Ok(()),
            },
        }
    }
}

// === impl Driver ===

impl<I, S> Driver<'_, I, S>
where
    I: Socket + Send + 'static,
    S: Service,
{
    /// Waits for the next request.
    async fn next(
        &mut self,
        mut draining: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Next, Ended> {
        let mut idle_since = None;
        let mut began = None;
        poll_fn(|cx| {
            if let Poll::Ready(next) = self.core.borrow_mut().poll_head(&mut self.scan, cx)? {
                return Poll::Ready(Ok(next));
            }
            let (idle, number) = {
                let core = self.core.borrow();
                (core.inbuf.is_empty(), core.number())
            };
            if idle {
                self.drained = self.drained || draining.as_mut().poll(cx).is_ready();
                if self.drained {
                    // What the client has sent already was read first.
                    return Poll::Ready(Ok(Next::End));
                }
            }
            let bounds = self.service.bounds();
            let deadline = if idle {
                let since = *idle_since.get_or_insert_with(moment);
                bounds.sooner(since + self.times.idle)
            } else {
                *began.get_or_insert_with(Instant::now) + self.times.head
            };
            let first = bounds.first.filter(|_| number == 0);
            let deadline = first.map_or(deadline, |first| first.min(deadline));
            ready!(self.alarm.poll(cx, deadline));
            if !guards::on("head-time") {
                return Poll::Pending;
            }
            let late = if idle { Next::End } else { Next::Refused(Wrong::HeadTimeout) };
            Poll::Ready(Ok(late))
        })
        .await
    }

    /// Has one request answered.
    async fn request(&mut self, head: RequestHead) -> Result<After, Ended> {
        let method = head.parts.method.clone();
        let (version, keep_alive) = (head.parts.version, head.keep_alive);
        let leaves = head.upgrade || head.framing == Framing::Tunnel;
        let body = Core::begin(&self.core, head.framing, head.expects);
        let mut request = Request::from_parts(head.parts, body);
        let promised = leaves.then(|| {
            let (tx, handover) = Handover::new();
            request.extensions_mut().insert(handover);
            tx
        });
        let response = self.answer(request).await?;
        let granted = match &promised {
            Some(_) if method == Method::CONNECT => response.status().is_success(),
            Some(_) => response.status() == StatusCode::SWITCHING_PROTOCOLS,
            None => false,
        };
        let ends = response.status().as_u16() >= 400;
        let stays = !leaves || granted || !guards::on("way-out");
        let more = !self.service.bounds().is_last(self.core.borrow().number() + 1);
        let fit = keep_alive && stays && more && self.core.borrow().may_keep(ends);
        self.core.borrow_mut().answering();
        let reply = Reply::new(response, &method, version, fit, granted);
        let keep = reply.keeps();
        self.send(reply).await?;
        if let Some(promised) = promised.filter(|_| granted) {
            return Ok(self.switch(promised));
        }
        let kept = keep && (!guards::on("drain") || self.drain().await);
        Ok(if kept { After::Keep } else { After::Close })
    }

    /// Waits for the answer, and for the client to leave.
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<S::Body>, Ended> {
        let version = request.version();
        let mut call = pin!(self.service.call(request));
        poll_fn(|cx| {
            self.core.borrow_mut().register(cx);
            let polled = call.as_mut().poll(cx);
            loop {
                let all = self.early(version);
                if let Poll::Ready(response) = polled {
                    self.forget_early();
                    return Poll::Ready(Ok(response));
                }
                let mut core = self.core.borrow_mut();
                match core.poll_flush(cx) {
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                    Poll::Ready(Ok(())) if !all => {}
                    _ => return core.poll_watch(cx).map(Err),
                }
            }
        })
        .await
    }

    /// Writes what comes before the answer, while there is room for it; whether that was all.
    /// HTTP/1.0 knows no such thing.
    fn early(&self, version: Version) -> bool {
        let Some(interim) = self.service.interim() else { return true };
        loop {
            let mut core = self.core.borrow_mut();
            if !core.out.has_room() {
                return false;
            }
            let Some(head) = interim.take() else { return true };
            if version == Version::HTTP_11 {
                let out = core.out.head();
                encode::response(out, version, head.status(), head.headers());
                encode::framing(out, Framing::Empty);
            }
        }
    }

    /// Behind its answer nobody wants it, nor is it of the next request.
    fn forget_early(&self) {
        if let Some(interim) = self.service.interim() {
            while interim.take().is_some() {}
        }
    }

    /// Writes an answer to its last byte.
    async fn send(&mut self, mut reply: Reply<S::Body>) -> Result<(), Ended> {
        reply.begin(&mut self.core.borrow_mut());
        // Cut short it must not look whole: until it is, any end of the connection is a reset.
        let unmarked = reply.ends_by_close();
        if unmarked {
            self.core.borrow().resets(true);
        }
        let (mut stalled, mut stuck, mut courtesy) = (None, Stuck::default(), Courtesy::default());
        let sent = poll_fn(|cx| {
            self.core.borrow_mut().register(cx);
            loop {
                // The body may be fed by this very connection: it is polled without a borrow.
                let fed = reply.poll_fill(&self.core, cx);
                ready!(courtesy.poll(cx));
                let mut core = self.core.borrow_mut();
                match core.poll_flush(cx) {
                    Poll::Ready(Ok(_)) => {
                        stalled = None;
                        stuck.moved();
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                    Poll::Pending => {
                        drop(core);
                        S::drive(reply.body(), cx);
                        let mut core = self.core.borrow_mut();
                        core.poll_discard(cx);
                        let progress = core.take_progress();
                        if progress {
                            stuck.moved();
                        }
                        if stuck.poll(cx).is_ready() {
                            return Poll::Ready(Err(Ended::Shed));
                        }
                        let now = Instant::now();
                        let since = if progress { now } else { stalled.unwrap_or(now) };
                        stalled = Some(since);
                        ready!(self.alarm.poll(cx, since + self.times.body));
                        return Poll::Ready(Err(Ended::Stalled));
                    }
                }
                match fed {
                    Poll::Ready(Ok(true)) => return Poll::Ready(Ok(())),
                    Poll::Ready(Ok(false)) => {}
                    Poll::Ready(Err(ended)) => return Poll::Ready(Err(ended)),
                    Poll::Pending => return core.poll_watch(cx).map(Err),
                }
            }
        })
        .await;
        let mut core = self.core.borrow_mut();
        core.out.release();
        if unmarked && sent.is_ok() {
            core.resets(false);
        }
        sent
    }

    /// Hands the connection to whoever was promised it.
    fn switch(&self, promised: oneshot::Sender<Upgraded>) -> After {
        let mut core = self.core.borrow_mut();
        let prefix = std::mem::take(&mut core.inbuf).freeze();
        if let Some(io) = core.io.take() {
            // Whoever asked for it may be gone; then it closes.
            let _ = promised.send(Upgraded::new(prefix, io));
        }
        After::Switch
    }

    /// Reads over what is left of a request's body; whether the connection can go on.
    async fn drain(&mut self) -> bool {
        if self.core.borrow_mut().finish() {
            return true;
        }
        if !self.core.borrow().is_short(DRAIN_BYTES) {
            return false;
        }
        let deadline = Instant::now() + DRAIN_TIME;
        let mut thrown = 0;
        let drained =
            poll_fn(|cx| match self.core.borrow_mut().poll_drain(cx, &mut thrown, DRAIN_BYTES) {
                Poll::Ready(done) => Poll::Ready(done),
                Poll::Pending => self.alarm.poll(cx, deadline).map(|()| false),
            });
        drained.await
    }

    /// Closes. Over unread bytes that would reset the connection, and the client would never see
    /// its answer: then they are read first.
    async fn close(&mut self, linger: bool) -> Result<(), Ended> {
        let Some(mut io) = self.core.borrow_mut().io.take() else { return Ok(()) };
        // TLS has last words too, which a client may never take.
        let deadline = Instant::now() + LINGER_TIME;
        poll_fn(|cx| match Pin::new(&mut io).poll_shutdown(cx) {
            Poll::Ready(done) => Poll::Ready(done.map_err(Ended::Io)),
            Poll::Pending => self.alarm.poll(cx, deadline).map(|()| Err(Ended::Stalled)),
        })
        .await?;
        if !linger {
            return Ok(());
        }
        let deadline = Instant::now() + LINGER_TIME;
        let mut buffer = buffers::take(Read::More);
        let mut thrown = 0;
        poll_fn(|cx| {
            while thrown < LINGER_BYTES {
                match buffers::poll_fill(&mut io, &mut buffer, Read::More, cx) {
                    Poll::Ready(Ok(n)) if n > 0 => thrown += n,
                    Poll::Ready(_) => break,
                    Poll::Pending => return self.alarm.poll(cx, deadline),
                }
                buffer.clear();
            }
            Poll::Ready(())
        })
        .await;
        buffers::give_back(&mut buffer);
        Ok(())
    }
}
