// SPDX-License-Identifier: Apache-2.0
//! What a connection's bytes travel on: TCP, or a Unix socket, whose other end is a client or, for
//! HTTPS, the task that speaks TLS (`secure`). Nothing here waits but for readiness.

use std::io::{ErrorKind, Result};
use std::mem::MaybeUninit;
use std::task::{Context, Poll};

use bytes::BytesMut;
use socket2::SockRef;
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::{TcpStream, UnixStream};

#[derive(Debug)]
pub enum Wire {
    Tcp(TcpStream),
    /// No page of a browser comes this way.
    Unix(UnixStream),
}

// === impl Wire ===

impl Wire {
    pub fn is_direct(&self) -> bool {
        matches!(self, Self::Unix(_))
    }

    pub async fn readable(&self) -> Result<()> {
        match self {
            Self::Tcp(stream) => stream.readable().await,
            Self::Unix(stream) => stream.readable().await,
        }
    }

    pub async fn writable(&self) -> Result<()> {
        match self {
            Self::Tcp(stream) => stream.writable().await,
            Self::Unix(stream) => stream.writable().await,
        }
    }

    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_read_ready(cx),
            Self::Unix(stream) => stream.poll_read_ready(cx),
        }
    }

    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_write_ready(cx),
            Self::Unix(stream) => stream.poll_write_ready(cx),
        }
    }

    pub fn try_read_buf(&self, into: &mut BytesMut) -> Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read_buf(into),
            Self::Unix(stream) => stream.try_read_buf(into),
        }
    }

    pub fn try_write(&self, bytes: &[u8]) -> Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write(bytes),
            Self::Unix(stream) => stream.try_write(bytes),
        }
    }

    /// Resolves when the other end has closed, or when something came from it: `true` for closed.
    pub async fn is_closed(&self) -> bool {
        match self {
            Self::Tcp(stream) => matches!(stream.peek(&mut [0]).await, Ok(0) | Err(_)),
            Self::Unix(stream) => loop {
                if stream.readable().await.is_err() {
                    return true;
                }
                let look = || SockRef::from(stream).peek(&mut [MaybeUninit::uninit()]);
                match stream.try_io(Interest::READABLE, look) {
                    Ok(count) => return count == 0,
                    Err(why) if why.kind() == ErrorKind::WouldBlock => {}
                    Err(_) => return true,
                }
            },
        }
    }

    pub async fn shutdown(&mut self) -> Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown().await,
            Self::Unix(stream) => stream.shutdown().await,
        }
    }
}

impl From<TcpStream> for Wire {
    fn from(stream: TcpStream) -> Self {
        // Answers are small and waited for.
        let _ = stream.set_nodelay(true);
        Self::Tcp(stream)
    }
}

impl From<UnixStream> for Wire {
    fn from(stream: UnixStream) -> Self {
        Self::Unix(stream)
    }
}
