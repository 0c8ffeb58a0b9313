// SPDX-License-Identifier: Apache-2.0
//! Below [`super::guard`]: what many streams write in one turn of their connection's task goes to
//! the socket at once. The h2 crate flushes behind every larger piece of a body; here a flush
//! means nothing until the driver of the connection, which has the other handle, says that the turn
//! is over. Changes no byte and no order; holds nothing while its connection is idle.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Gathered bytes that go out before more are taken.
const FULL_BYTES: usize = 32 * 1024;
/// A piece from here on is written from where it is, behind what was gathered.
const LARGE_BYTES: usize = 8 * 1024;

thread_local! {
    /// The buffer of whoever's turn it is. A slow socket keeps its own meanwhile.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A socket that is shared by the codec, which writes, and the driver, which ends turns.
pub struct Gather<I>(Rc<RefCell<Gathered<I>>>);

struct Gathered<I> {
    io: I,
    out: Vec<u8>,
    /// Of `out`, gone already.
    written: usize,
    /// The stream below (TLS, say) may hold some of what it was given.
    unflushed: bool,
    /// The driver ends turns; until then every flush is one.
    driven: bool,
    failed: Option<io::ErrorKind>,
}

// === impl Gather ===

impl<I> Gather<I> {
    pub fn new(io: I) -> Self {
        let (out, written) = (Vec::new(), 0);
        let gathered = Gathered { io, out, written, unflushed: false, driven: false, failed: None };
        Self(Rc::new(RefCell::new(gathered)))
    }

    /// The driver's handle.
    pub fn handle(&self) -> Self {
        Self(self.0.clone())
    }

    /// From now on the driver ends turns.
    pub fn driven(&self) {
        self.0.borrow_mut().driven = true;
    }
}

impl<I: AsyncWrite + Unpin> Gather<I> {
    /// The turn is over: writes what was gathered, as far as the socket takes it; the task is woken
    /// to go on. That it broke is said to whoever reads or writes next.
    pub fn end_turn(&self, cx: &mut Context<'_>) {
        let mut gathered = self.0.borrow_mut();
        if let Poll::Ready(Err(error)) = gathered.poll_out(cx) {
            gathered.failed = Some(error.kind());
            cx.waker().wake_by_ref();
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Gather<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut gathered = self.0.borrow_mut();
        gathered.check()?;
        Pin::new(&mut gathered.io).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Gather<I> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_take(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathered = self.0.borrow_mut();
        gathered.check()?;
        if gathered.driven { Poll::Ready(Ok(())) } else { gathered.poll_out(cx) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathered = self.0.borrow_mut();
        ready!(gathered.poll_out(cx))?;
        Pin::new(&mut gathered.io).poll_shutdown(cx)
    }
}

impl<I> std::fmt::Debug for Gather<I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gather")
    }
}

// === impl Gathered ===

impl<I> Gathered<I> {
    fn check(&self) -> io::Result<()> {
        self.failed.map_or(Ok(()), |kind| Err(kind.into()))
    }

    /// Gathered and not gone.
    fn left(&self) -> usize {
        self.out.len() - self.written
    }
}

impl<I: AsyncWrite + Unpin> Gathered<I> {
    /// Takes bytes of the codec: all of them to the rest, or a large piece to the socket.
    fn poll_take(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.check()?;
        let bytes: usize = bufs.iter().map(|b| b.len()).sum();
        if bytes >= LARGE_BYTES {
            return self.poll_large(cx, bufs);
        }
        if self.left() + bytes > FULL_BYTES {
            ready!(self.poll_written(cx))?;
        }
        if self.out.capacity() == 0 {
            self.out = SPARE.take();
            self.out.reserve_exact(FULL_BYTES);
        } else if self.out.len() + bytes > FULL_BYTES {
            self.out.drain(..self.written);
            self.written = 0;
        }
        bufs.iter().for_each(|b| self.out.extend_from_slice(b));
        Poll::Ready(Ok(bytes))
    }

    /// Writes what was gathered, and a large piece behind it; how much of that one.
    fn poll_large(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.unflushed = true;
        loop {
            let left = self.left();
            let n = if left == 0 {
                ready!(Pin::new(&mut self.io).poll_write_vectored(cx, bufs))?
            } else {
                let gathered = self.out.get(self.written..).unwrap_or_default();
                let mut slices = [IoSlice::new(&[]); 4];
                let all = std::iter::once(gathered).chain(bufs.iter().map(|b| &**b));
                slices.iter_mut().zip(all).for_each(|(slice, b)| *slice = IoSlice::new(b));
                ready!(Pin::new(&mut self.io).poll_write_vectored(cx, &slices))?
            };
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.gone(n.min(left));
            if n > left {
                return Poll::Ready(Ok(n - left));
            }
        }
    }

    /// Ready once all that was gathered has left.
    fn poll_written(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.left() > 0 {
            let rest = self.out.get(self.written..).unwrap_or_default();
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, rest))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = true;
            self.gone(n);
        }
        Poll::Ready(Ok(()))
    }

    /// The same, and the stream below holds nothing either.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        ready!(self.poll_written(cx))?;
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// So many gathered bytes were written; with the last the buffer is the next one's.
    fn gone(&mut self, bytes: usize) {
        self.written += bytes;
        if self.written == self.out.len() && self.out.capacity() > 0 {
            self.written = 0;
            let mut out = std::mem::take(&mut self.out);
            out.clear();
            SPARE.set(out);
        }
    }
}

#[cfg(test)]
mod tests;
