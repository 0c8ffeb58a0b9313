// SPDX-License-Identifier: Apache-2.0
//! The downstream codecs: serves one connection as HTTP/1.1 or HTTP/2 and hands each request to
//! [`super::phases`]. With `upstream/pool` the only place that names them.

use std::cell::RefCell;
use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{DATE, HeaderValue};
use http::{Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use weft_base::limits::HEADER_BYTES_MAX;

use super::body::ReplyBody;
use super::phases;
use super::reply::{Cause, Refusal};
use crate::h1::incoming::BodyFailure;
use crate::h1::server::{Ended, Service, Times, serve as serve_connection};
use crate::h1::{Incoming, Wrong};
use crate::observe::record::Record;
use crate::upstream::pool::{LocalExecutor, Wire};
use crate::worker::{Conn, Worker};

/// A request's body as the codec yields it.
#[derive(Debug)]
pub enum Received {
    H1(Incoming),
    H2(hyper::body::Incoming),
}

/// Why a request's body broke off.
#[derive(Debug, Error)]
pub enum ReceiveError {
    #[error(transparent)]
    H1(#[from] BodyFailure),
    #[error("{}", super::cause(.0))]
    H2(#[from] hyper::Error),
}

/// See `upstream/pool/h2.rs`: never adaptive, never small.
const WINDOW: u32 = 16 * 1024 * 1024;
/// Streams of one client connection at a time.
const STREAMS_MAX: u32 = 128;
/// Answers' bytes that wait for one stream's window.
const SEND_BUFFER: usize = 64 * 1024;

/// Answers one HTTP/1 connection's requests.
struct Requests {
    worker: Rc<Worker>,
    conn: Rc<Conn>,
}

/// Serves a connection until it ends or, while draining, has nothing left to do.
pub async fn serve<I>(io: I, worker: Rc<Worker>, conn: Rc<Conn>, wire: Wire)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let remote = conn.remote;
    match wire {
        Wire::H1 => {
            if let Err(error) = serve_h1(io, worker, conn).await {
                tracing::debug!(%remote, %error, "a client's connection ended early");
            }
        }
        Wire::H2 => {
            if let Err(error) = Box::pin(serve_h2(io, &worker, &conn)).await {
                tracing::debug!(%remote, error = super::cause(&error), "a client left");
            }
        }
    }
}

async fn serve_h1<I>(io: I, worker: Rc<Worker>, conn: Rc<Conn>) -> Result<(), Ended>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = &worker.config.limits;
    let times = Times {
        head: limits.header_timeout,
        idle: limits.idle_timeout,
        body: limits.stream_idle_timeout,
    };
    let requests = Requests { worker: worker.clone(), conn };
    serve_connection(io, &requests, times, worker.conns.draining()).await
}

async fn serve_h2<I>(io: I, worker: &Rc<Worker>, conn: &Rc<Conn>) -> Result<(), hyper::Error>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = {
        let (worker, conn) = (worker.clone(), conn.clone());
        service_fn(move |request| answer(worker.clone(), conn.clone(), request))
    };
    let limits = &worker.config.limits;
    let serving = http2::Builder::new(LocalExecutor(worker.conns.clone()))
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_concurrent_streams(STREAMS_MAX)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(u32::try_from(HEADER_BYTES_MAX).unwrap_or(u32::MAX))
        .keep_alive_interval(limits.idle_timeout / 5)
        .keep_alive_timeout(limits.header_timeout)
        .serve_connection(TokioIo::new(io), service);
    let mut serving = pin!(serving);
    tokio::select! {
        // What the client has sent already is read first: closing is for idle connections.
        biased;
        ended = serving.as_mut() => return ended,
        () = worker.conns.draining() => {}
    }
    serving.as_mut().graceful_shutdown();
    serving.await
}

async fn answer(
    worker: Rc<Worker>,
    conn: Rc<Conn>,
    request: Request<hyper::body::Incoming>,
) -> Result<Response<ReplyBody>, Infallible> {
    Ok(phases::handle(worker, conn, request.map(Received::H2)).await)
}

/// The time as answers carry it, made once in a second (RFC 9110 §6.6.1).
fn date(worker: &Worker) -> Option<HeaderValue> {
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

impl Service for Requests {
    type Body = ReplyBody;

    async fn call(&self, request: Request<Incoming>) -> Response<ReplyBody> {
        let request = request.map(Received::H1);
        let mut response = phases::handle(self.worker.clone(), self.conn.clone(), request).await;
        if !response.status().is_informational()
            && !response.headers().contains_key(DATE)
            && let Some(date) = date(&self.worker)
        {
            response.headers_mut().insert(DATE, date);
        }
        response
    }

    /// What cannot be read as a request still has a record.
    fn refuse(&self, wrong: Wrong) -> Response<ReplyBody> {
        let mut request = Request::new(());
        // Access logs say `-` for what is not known.
        *request.method_mut() = Method::from_bytes(b"-").unwrap_or_default();
        let mut record = Box::new(Record::begin(&self.worker, &self.conn, &request));
        let refusal = Refusal::new(Cause::BadRequest, wrong.sentence()).with_status(wrong.status());
        let response = refusal.answer(&mut record);
        record.status = response.status().as_u16();
        response.map(|body| body.recorded(record))
    }

    fn drive(body: &mut ReplyBody, cx: &mut Context<'_>) {
        body.drive(cx);
    }
}

// === impl Received ===

impl Body for Received {
    type Data = Bytes;
    type Error = ReceiveError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ReceiveError>>> {
        match self.get_mut() {
            Self::H1(body) => Pin::new(body).poll_frame(cx).map_err(ReceiveError::H1),
            Self::H2(body) => Pin::new(body).poll_frame(cx).map_err(ReceiveError::H2),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::H1(body) => body.is_end_stream(),
            Self::H2(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::H1(body) => body.size_hint(),
            Self::H2(body) => body.size_hint(),
        }
    }
}

// === impl ReceiveError ===

impl ReceiveError {
    /// The client sends nonsense; otherwise it left.
    pub fn is_malformed(&self) -> bool {
        matches!(self, Self::H1(BodyFailure::Malformed(_)))
    }
}
