// SPDX-License-Identifier: Apache-2.0
//! The downstream codec: serves one connection as HTTP/1.1 or HTTP/2 and hands each request to
//! [`super::phases`]. With `upstream/pool` the only place that names a codec.

use std::convert::Infallible;
use std::pin::pin;
use std::rc::Rc;

use http::{Request, Response};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use weft_base::limits::{HEADER_BYTES_MAX, HEADERS_MAX};

use super::body::ReplyBody;
use super::guard::Guard;
use super::phases;
use crate::upstream::pool::{LocalExecutor, Wire};
use crate::worker::{Conn, Worker};

/// A request's body as the codec yields it.
pub type Received = hyper::body::Incoming;

/// See `upstream/pool/h2.rs`: never adaptive, never small.
const WINDOW: u32 = 16 * 1024 * 1024;
/// Streams of one client connection at a time.
const STREAMS_MAX: u32 = 128;
/// Answers' bytes that wait for one stream's window.
const SEND_BUFFER: usize = 64 * 1024;

/// Serves a connection until it ends or, while draining, has nothing left to do.
pub async fn serve<I>(io: I, worker: Rc<Worker>, conn: Rc<Conn>, wire: Wire)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let ended = match wire {
        Wire::H1 => serve_h1(io, &worker, &conn).await,
        Wire::H2 => Box::pin(serve_h2(io, &worker, &conn)).await,
    };
    if let Err(error) = ended {
        tracing::debug!(remote = %conn.remote, error = super::cause(&error), "a client left");
    }
}

async fn serve_h1<I>(io: I, worker: &Rc<Worker>, conn: &Rc<Conn>) -> Result<(), hyper::Error>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let guard = Guard::new(io, conn, worker.config.limits);
    let service = service_fn(|request| answer(worker.clone(), conn.clone(), request));
    let serving = http1::Builder::new()
        .max_headers(HEADERS_MAX)
        .max_header_size(HEADER_BYTES_MAX)
        .max_buf_size(HEADER_BYTES_MAX + 8 * 1024)
        .serve_connection(TokioIo::new(guard), service)
        .with_upgrades();
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
    request: Request<Received>,
) -> Result<Response<ReplyBody>, Infallible> {
    Ok(phases::handle(worker, conn, request).await)
}
