// SPDX-License-Identifier: Apache-2.0
//! A connection that has left HTTP, and how it gets to whoever goes on with it. What was read
//! behind the last head comes first. Made by the drivers, taken by `http/upgrade.rs` and
//! `tcp/relay.rs`.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

use crate::tcp::prefixed::Prefixed;

trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// The bytes after HTTP.
pub struct Upgraded(Prefixed<Box<dyn Duplex>>);

/// The promise of an [`Upgraded`]; whoever asks first gets it. An extension of the request, or of
/// the answer 101.
#[derive(Clone, Debug)]
pub struct Handover(Arc<Mutex<Option<oneshot::Receiver<Upgraded>>>>);

// === impl Handover ===

impl Handover {
    pub fn new() -> (oneshot::Sender<Upgraded>, Self) {
        let (tx, rx) = oneshot::channel();
        (tx, Self(Arc::new(Mutex::new(Some(rx)))))
    }

    /// One that is there already.
    pub fn ready(upgraded: Upgraded) -> Self {
        let (tx, handover) = Self::new();
        // The receiver is in `handover`.
        let _ = tx.send(upgraded);
        handover
    }

    /// The stream, once its last head is written; `None` when HTTP went on, or somebody has it.
    pub async fn stream(&self) -> Option<Upgraded> {
        let receiver = self.0.lock().ok()?.take()?;
        receiver.await.ok()
    }
}

// === impl Upgraded ===

impl Upgraded {
    pub fn new<I>(prefix: Bytes, io: I) -> Self
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        Self(Prefixed::new(prefix, Box::new(io)))
    }
}

impl std::fmt::Debug for Upgraded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Upgraded")
    }
}

impl AsyncRead for Upgraded {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Upgraded {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}
