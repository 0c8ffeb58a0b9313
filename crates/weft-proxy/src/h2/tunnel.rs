// SPDX-License-Identifier: Apache-2.0
//! Bytes on a stream after a CONNECT was granted (RFC 9113 §8.5, RFC 8441). Whoever holds the
//! promise of it reads and writes it as a socket.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The largest piece written at once.
const PIECE_BYTES: usize = 16 * 1024;

#[derive(Debug)]
pub(super) struct Tunnel {
    send: SendStream<Bytes>,
    recv: RecvStream,
    /// Received, not yet taken.
    rest: Bytes,
    ended: bool,
}

// === impl Tunnel ===

impl Tunnel {
    pub(super) fn new(send: SendStream<Bytes>, recv: RecvStream) -> Self {
        Self { send, recv, rest: Bytes::new(), ended: false }
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        while me.rest.is_empty() {
            match ready!(me.recv.poll_data(cx)) {
                Some(Ok(data)) => me.rest = data,
                Some(Err(error)) => return Poll::Ready(broken(error)),
                None => return Poll::Ready(Ok(())),
            }
        }
        let bytes = me.rest.len().min(buf.remaining());
        buf.put_slice(me.rest.get(..bytes).unwrap_or_default());
        me.rest.advance(bytes);
        // It fails for bytes that were never received only.
        let _ = me.recv.flow_control().release_capacity(bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if me.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        me.send.reserve_capacity(bytes.len().min(PIECE_BYTES));
        while me.send.capacity() == 0 {
            match ready!(me.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let piece = bytes.get(..me.send.capacity().min(bytes.len()).min(PIECE_BYTES));
        let piece = piece.unwrap_or_default();
        me.send.send_data(Bytes::copy_from_slice(piece), false).map_err(io::Error::other)?;
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        if !std::mem::replace(&mut me.ended, true) {
            me.send.reserve_capacity(0);
            me.send.send_data(Bytes::new(), true).map_err(io::Error::other)?;
        }
        Poll::Ready(Ok(()))
    }
}

/// A reset without an error is an end; others break what was on its way.
fn broken(error: h2::Error) -> io::Result<()> {
    if error.is_remote() && error.reason() == Some(Reason::NO_ERROR) {
        return Ok(());
    }
    Err(error.into_io().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()))
}
