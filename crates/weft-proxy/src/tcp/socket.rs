// SPDX-License-Identifier: Apache-2.0
//! Streams that may be plain sockets, whose bytes the kernel can move by itself. Implemented by
//! what `relay` relays; knows nothing of what the bytes are.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::prefixed::Prefixed;
use crate::h1::Upgraded;

pub trait Socket: AsyncRead + AsyncWrite + Unpin {
    /// The socket, when nothing stands between it and the bytes.
    fn socket(&self) -> Option<&TcpStream> {
        None
    }
}

impl Socket for TcpStream {
    fn socket(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

impl<I: Socket> Socket for Prefixed<I> {
    fn socket(&self) -> Option<&TcpStream> {
        self.plain().and_then(Socket::socket)
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> Socket for TlsStream<I> {}
impl Socket for Upgraded {}
#[cfg(any(test, feature = "testing"))]
impl Socket for tokio::io::DuplexStream {}
