// SPDX-License-Identifier: Apache-2.0
//! The downstream codecs: serves one connection as HTTP/1.1 or HTTP/2 and hands each request to
//! [`super::phases`]. With `upstream/pool` the only place that names them.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{DATE, HeaderValue};
use http::{Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use weft_base::clock;

use super::body::{BodyError, ReplyBody};
use super::bounds::{Bounds, Served};
use super::interim::Interim;
use super::phases;
use super::present;
use super::reply::{Cause, Refusal};
use crate::h1::incoming::BodyFailure;
use crate::h1::{self, Wrong, server};
use crate::h2;
use crate::h2::begin;
use crate::h2::budget::Peer;
use crate::observe::record::Record;
use crate::sys::pooled::Pooled;
use crate::table::Door;
use crate::tcp::accept::last_words;
use crate::tcp::socket::Socket;
use crate::upstream::pool::Wire;
use crate::worker::{Conn, Worker};

/// A request's body as the codec yields it.
#[derive(Debug)]
pub enum Received {
    H1(h1::Incoming, Rc<Interim>),
    H2(h2::Incoming),
}

/// Why a request's body broke off.
#[derive(Debug, Error)]
pub enum ReceiveError {
    #[error(transparent)]
    H1(#[from] BodyFailure),
    #[error("{}", super::cause(.0))]
    H2(#[from] ::h2::Error),
}

/// Answers one connection's requests.
struct Requests {
    worker: Rc<Worker>,
    conn: Rc<Conn>,
    served: Served,
    /// Of HTTP/1, which has one request at a time.
    interim: Rc<Interim>,
}

/// Serves a connection until it ends or, while draining, has nothing left to do. In a task of its
/// own: what found out what it speaks is over, and an idle connection keeps nothing of that.
pub fn serve<I>(io: I, worker: Rc<Worker>, conn: Rc<Conn>, wire: Wire)
where
    I: Socket + Send + 'static,
{
    let tasks = worker.conns.clone();
    // Boxed once, since every wrapper of a task would hold its own copy of the future.
    match wire {
        Wire::H1 => {
            let served = served(&worker, &conn);
            let connection = server::Connection::new(io, times(&worker, &served));
            let requests = Requests { worker, conn, served, interim: Rc::default() };
            tasks.spawn_local("connection", in_turns(Box::pin(serve_h1(connection, requests))));
        }
        Wire::H2 => tasks.spawn_local("connection", Box::pin(ended_h2(io, worker, conn))),
    }
}

/// Reads the clock once in each poll.
fn in_turns<T>(mut future: Pin<Box<impl Future<Output = T>>>) -> impl Future<Output = T> {
    poll_fn(move |cx| {
        let _turn = clock::turn();
        future.as_mut().poll(cx)
    })
}

fn times(worker: &Worker, served: &Served) -> server::Times {
    let limits = &worker.config.limits;
    server::Times {
        head: served.head(limits),
        idle: served.idle(limits),
        body: limits.stream_idle_timeout,
    }
}

/// What a connection's listener says of its clients.
fn served(worker: &Worker, conn: &Conn) -> Served {
    let Door::Gateway(name) = &conn.door else { return Served::default() };
    let table = worker.table();
    Served::new(table.gateway(name).and_then(|gateway| gateway.listener.limits.clone()))
}

async fn serve_h1<I>(connection: server::Connection<I>, requests: Requests)
where
    I: Socket + Send + 'static,
{
    let draining = pin!(requests.worker.idle_is_over());
    if let Err(error) = connection.serve(&requests, draining).await {
        let remote = requests.conn.remote;
        tracing::debug!(%remote, %error, "a client's connection ended early");
    }
}

/// Whoever has not begun HTTP/2 holds its stream and little more: anybody may connect.
async fn ended_h2<I>(io: I, worker: Rc<Worker>, conn: Rc<Conn>)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (remote, by) = (conn.remote, begun_by(&worker, &conn));
    let begun = tokio::select! {
        biased;
        begun = begin::begun(io, by) => begun,
        // Nothing was asked: a draining proxy does not wait for it.
        () = last_words(&worker) => return,
    };
    let ended = match begun {
        Ok(io) => Box::pin(serve_h2(io, worker, conn)).await,
        Err(ended) => Err(ended),
    };
    if let Err(error) = ended {
        tracing::debug!(%remote, %error, "a client's connection ended early");
    }
}

/// When a connection's preface and SETTINGS must have come.
fn begun_by(worker: &Worker, conn: &Conn) -> Instant {
    let by = Instant::now() + served(worker, conn).head(&worker.config.limits);
    conn.first_by.map_or(by, |first| first.min(by))
}

async fn serve_h2<I>(io: I, worker: Rc<Worker>, conn: Rc<Conn>) -> Result<(), h2::server::Ended>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (limits, served) = (&worker.config.limits, served(&worker, &conn));
    let times = h2::server::Times {
        head: served.head(limits),
        idle: served.idle(limits),
        body: limits.stream_idle_timeout,
        streams: served.streams(),
    };
    // A proxy of the mesh has many clients, whose leaving is not its fault.
    let peer = if conn.door == Door::Mesh { Peer::MeshClient } else { Peer::Client };
    let requests =
        Rc::new(Requests { worker: worker.clone(), conn, served, interim: Rc::default() });
    let tasks = &worker.conns;
    h2::server::serve(io, peer, requests, times, tasks, tasks.draining()).await
}

/// Bytes that an idle connection of HTTP/1 holds: its future, and its stream with all buffers.
#[cfg(test)]
pub fn connection_bytes() -> (usize, usize) {
    fn of<A, B, F>(_: impl Fn(A, B) -> F) -> usize {
        size_of::<F>()
    }
    type Io = crate::tcp::prefixed::Prefixed<tokio::net::TcpStream>;
    (of(serve_h1::<Io>), server::stream_bytes::<Io>())
}

/// Bytes that a connection of HTTP/2 holds before its SETTINGS came.
#[cfg(test)]
pub fn beginning_bytes() -> usize {
    fn of<A, B, C, F>(_: impl Fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }
    of(ended_h2::<crate::tcp::prefixed::Prefixed<tokio::net::TcpStream>>)
}

/// The time as answers carry it, made once in a second (RFC 9110 §6.6.1).
pub(super) fn date(worker: &Worker) -> Option<HeaderValue> {
    thread_local! {
        static LAST: RefCell<Option<(u64, HeaderValue)>> = const { RefCell::new(None) };
    }
    let second = worker.clock.wall_ms() / 1000;
    LAST.with_borrow_mut(|last| {
        if let Some((_, value)) = last.as_ref().filter(|(at, _)| *at == second) {
            return Some(value.clone());
        }
        let at = jiff::Timestamp::from_second(i64::try_from(second).ok()?).ok()?;
        let printer = jiff::fmt::rfc2822::DateTimePrinter::new();
        let text = printer.timestamp_to_rfc9110_string(&at).ok()?;
        let value = HeaderValue::try_from(text).ok()?;
        *last = Some((second, value.clone()));
        Some(value)
    })
}

// === impl Requests ===

impl Requests {
    async fn answer(&self, request: Request<Received>) -> Response<ReplyBody> {
        if let Some(wrong) = self.served.wrong(request.headers()) {
            return self.refused(wrong);
        }
        let mut response = phases::handle(self.worker.clone(), self.conn.clone(), request).await;
        if !response.status().is_informational()
            && !present::has(response.headers(), &DATE)
            && let Some(date) = date(&self.worker)
        {
            response.headers_mut().insert(DATE, date);
        }
        response
    }

    /// What cannot be read as a request still has a record.
    fn refused(&self, wrong: Wrong) -> Response<ReplyBody> {
        let mut request = Request::new(());
        // Access logs say `-` for what is not known.
        *request.method_mut() = Method::from_bytes(b"-").unwrap_or_default();
        let mut record = Pooled::new(Record::begin(&self.worker, &self.conn, &request));
        let refusal = Refusal::new(Cause::BadRequest, wrong.sentence()).with_status(wrong.status());
        let response = refusal.answer(&mut record);
        record.status = response.status().as_u16();
        response.map(|body| body.recorded(record))
    }
}

impl server::Service for Requests {
    type Body = ReplyBody;

    fn call(&self, request: Request<h1::Incoming>) -> impl Future<Output = Response<ReplyBody>> {
        self.answer(request.map(|body| Received::H1(body, self.interim.clone())))
    }

    fn refuse(&self, wrong: Wrong) -> Response<ReplyBody> {
        self.refused(wrong)
    }

    fn interim(&self) -> Option<&Interim> {
        Some(&self.interim)
    }

    fn bounds(&self) -> Bounds {
        Bounds { first: self.conn.first_by, ..self.served.bounds() }
    }

    fn drive(body: &mut ReplyBody, cx: &mut Context<'_>) {
        body.drive(cx);
    }
}

impl h2::server::Service for Requests {
    type Body = ReplyBody;

    fn call(&self, request: Request<h2::Incoming>) -> impl Future<Output = Response<ReplyBody>> {
        self.answer(request.map(Received::H2))
    }

    fn refuse(&self, wrong: Wrong) -> Response<ReplyBody> {
        self.refused(wrong)
    }

    fn bounds(&self) -> Bounds {
        Bounds { first: self.conn.first_by, ..self.served.bounds() }
    }

    fn drive(body: &mut ReplyBody, cx: &mut Context<'_>) {
        body.drive(cx);
    }
}

// === impl Received ===

impl Received {
    /// Where answers before the answer go, if the client's codec passes them on.
    pub fn interim(&self) -> Option<Rc<Interim>> {
        match self {
            Self::H1(_, interim) => Some(interim.clone()),
            Self::H2(body) => body.interim(),
        }
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = ReceiveError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ReceiveError>>> {
        match self.get_mut() {
            Self::H1(body, _) => Pin::new(body).poll_frame(cx).map_err(ReceiveError::H1),
            Self::H2(body) => Pin::new(body).poll_frame(cx).map_err(ReceiveError::H2),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::H1(body, _) => body.is_end_stream(),
            Self::H2(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::H1(body, _) => body.size_hint(),
            Self::H2(body) => body.size_hint(),
        }
    }
}

// === impl ReceiveError ===

/// What a request body that cannot be read means: the client left, or it sends nonsense, or nothing
/// while memory is short.
impl From<ReceiveError> for BodyError {
    fn from(error: ReceiveError) -> Self {
        let text = error.to_string().into();
        match error {
            ReceiveError::H1(BodyFailure::Shed) => Self::Shed,
            ReceiveError::H1(BodyFailure::Malformed(_)) => Self::Malformed(text),
            ReceiveError::H2(error) if error.is_library() => Self::Malformed(text),
            ReceiveError::H1(BodyFailure::Gone(_)) | ReceiveError::H2(_) => Self::Client(text),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn size_of_what_every_request_of_http2_has() {
        let bytes = crate::h2::server::stream_bytes::<super::Requests>();
        assert!((1_000..=2_600).contains(&bytes), "a stream's future holds {bytes} bytes");
    }
}
