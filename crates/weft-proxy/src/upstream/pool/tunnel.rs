// SPDX-License-Identifier: Apache-2.0
//! Raw bytes to an endpoint: straight TCP, or `CONNECT` within the mesh's TLS.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Method, Request, StatusCode};
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use weft_identity::Alpn;

use super::Pool;
use crate::http::body::AttemptBody;
use crate::upstream::connect::{ConnectError, UpstreamIo};

/// A byte stream to an endpoint.
#[derive(Debug)]
pub enum Tunnel {
    Raw(UpstreamIo),
    Connect(TokioIo<Upgraded>),
}

impl Pool {
    /// Opens a byte stream; never taken from or given back to the pool.
    pub async fn tunnel(self: &Rc<Self>, limit: Duration) -> Result<Tunnel, ConnectError> {
        let io = self.context.dialer.connect(&self.peer, Alpn::Http11, limit).await?;
        if !self.peer.is_mesh() {
            return Ok(Tunnel::Raw(io));
        }
        let address = self.peer.connect;
        let failed =
            |e: hyper::Error| ConnectError::Tcp { address, reason: crate::http::cause(&e).into() };
        let guard = self.opened();
        let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(failed)?;
        self.context.tasks.spawn_local("tunnel", async move {
            let _guard = guard;
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a tunnel's connection ended");
            }
        });
        let authority = format!("{}:{}", address.ip(), self.peer.port);
        let request = Request::builder()
            .method(Method::CONNECT)
            .uri(&authority)
            .header(http::header::HOST, &authority)
            .body(AttemptBody::empty())
            .map_err(|e| ConnectError::Tcp { address, reason: e.to_string().into() })?;
        let response = tokio::time::timeout(limit, sender.send_request(request))
            .await
            .map_err(|_| ConnectError::Timeout {
                address,
                ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
            })?
            .map_err(failed)?;
        if response.status() != StatusCode::OK {
            return Err(ConnectError::Tunnel { address, status: response.status().as_u16() });
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(failed)?;
        Ok(Tunnel::Connect(TokioIo::new(upgraded)))
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Raw(s) => Pin::new(s).poll_read(cx, buf),
            Self::Connect(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Raw(s) => Pin::new(s).poll_write(cx, buf),
            Self::Connect(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Raw(s) => Pin::new(s).poll_flush(cx),
            Self::Connect(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Raw(s) => Pin::new(s).poll_shutdown(cx),
            Self::Connect(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}
