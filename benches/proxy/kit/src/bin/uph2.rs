// SPDX-License-Identifier: Apache-2.0
//! An upstream over HTTP/2 with prior knowledge: 1 KiB for every request; for gRPC one message and
//! the trailers of success.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

/// The request's body is read to its end before an answer to gRPC goes out.
struct Answer {
    asked: Option<Incoming>,
    data: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

#[derive(Clone)]
struct Local;

fn main() -> io::Result<()> {
    let address = kit::Args::read().address("--listen");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async move {
        let listener = tokio::net::TcpListener::bind(address).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let serving = http2::Builder::new(Local)
                .max_concurrent_streams(1000)
                .serve_connection(TokioIo::new(stream), service_fn(answer));
            tokio::task::spawn_local(serving);
        }
    })
}

async fn answer(request: Request<Incoming>) -> Result<Response<Answer>, Infallible> {
    let kind = request.headers().get("content-type");
    let grpc = kind.is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"));
    let mut answer = Answer { asked: None, data: None, trailers: None };
    if grpc {
        let mut message = vec![0, 0, 0, 0, 64];
        message.extend_from_slice(&[b'a'; 64]);
        answer.data = Some(message.into());
        let status = ("grpc-status".parse(), HeaderValue::from_static("0"));
        answer.trailers = status.0.ok().map(|name| HeaderMap::from_iter([(name, status.1)]));
        answer.asked = Some(request.into_body());
    } else {
        answer.data = Some(Bytes::from_static(&[b'x'; 1024]));
    }
    let mut response = Response::new(answer);
    let kind = if grpc { "application/grpc" } else { "text/plain" };
    response.headers_mut().insert("content-type", HeaderValue::from_static(kind));
    Ok(response)
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        while let Some(asked) = &mut self.asked {
            match Pin::new(asked).poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(None) => self.asked = None,
            }
        }
        let data = self.data.take().map(Frame::data);
        Poll::Ready(data.or_else(|| self.trailers.take().map(Frame::trailers)).map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.asked.is_none() && self.data.is_none() && self.trailers.is_none()
    }
}

impl<F: Future + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}
