// SPDX-License-Identifier: Apache-2.0
//! A connection over any byte stream: the proxy passes its mTLS connector in, so that this crate
//! needs to know neither certificates nor socket options.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::transport::{Channel, Endpoint};
use tower_service::Service;

use super::{Connect, chain, endpoint};

/// Dials with a function; every new stream dials anew (and so uses the newest certificate).
pub struct Dial<F> {
    /// `127.0.0.1:15012`, for the request's authority and for error messages.
    authority: String,
    dial: Arc<F>,
}

// === impl Dial ===

impl<F> Dial<F> {
    pub fn new(authority: impl Into<String>, dial: F) -> Self {
        Self { authority: authority.into(), dial: Arc::new(dial) }
    }
}

impl<F, Fut, IO> Connect for Dial<F>
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = io::Result<IO>> + Send + 'static,
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    fn connect(&self) -> BoxFuture<'_, Result<Channel, String>> {
        Box::pin(async move {
            let connector = Connector { dial: self.dial.clone() };
            let connected = endpoint(&self.authority)?.connect_with_connector(connector).await;
            connected.map_err(|e| format!("cannot reach {}: {}", self.authority, chain(&e)))
        })
    }
}

impl<F> fmt::Debug for Dial<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dial").field("authority", &self.authority).finish_non_exhaustive()
    }
}

/// A channel that dials with a function when a call needs a connection.
pub(crate) fn lazy<F, Fut, IO>(endpoint: &Endpoint, dial: F) -> Channel
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = io::Result<IO>> + Send + 'static,
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    endpoint.connect_with_connector_lazy(Connector { dial: Arc::new(dial) })
}

/// The function in the form that tonic takes.
struct Connector<F> {
    dial: Arc<F>,
}

impl<F, Fut, IO> Service<http::Uri> for Connector<F>
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = io::Result<IO>> + Send + 'static,
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Response = TokioIo<IO>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<IO>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        let dialled = (self.dial)();
        Box::pin(async move { dialled.await.map(TokioIo::new) })
    }
}
