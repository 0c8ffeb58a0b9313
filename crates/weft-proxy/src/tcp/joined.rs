// SPDX-License-Identifier: Apache-2.0
//! Two byte streams that belong together: bytes go both ways, each way ends on its own, and both
//! end once nothing has moved for too long. Called by `relay` and by `http/upgrade.rs`; knows
//! neither what the bytes are nor who counts them.
//!
//! Bytes are read into a buffer of the thread and written at once, so that a pair that is idle
//! holds none. A direction that keeps moving much between two sockets is left to the kernel. Where
//! too much memory is used nothing is read until there is room (`overload::dose`).

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use super::pipe::Pipe;
use super::socket::Socket;
use crate::overload::dose;

/// Bytes per read: larger ones cost more CPU on loopback.
const BUFFER_BYTES: usize = 16 * 1024;
/// So many full buffers in a row are a bulk transfer.
const BULK_READS: u32 = 4;
/// A transfer of less than this at a time, so many times, is none any more.
const TRICKLE_BYTES: usize = BUFFER_BYTES;
const TRICKLES: u32 = 4;
/// Bytes that one direction moves before others have their turn.
const TURN_BYTES: usize = 1024 * 1024;
/// Silence is looked at so many times within its limit.
const LOOKS: u32 = 8;

thread_local! {
    static BUFFER: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// Who counts what moves.
pub trait Tally {
    /// Bytes of the first stream, as they are read.
    fn first(&self, _bytes: usize) {}
    /// The same of the second.
    fn second(&self, _bytes: usize) {}
    /// One of them broke.
    fn broke(&self, _first: bool) {}
}

impl Tally for () {}

/// Why a pair ended before both of its sides did. The system has a time-out of its own, for peers
/// that are gone: that is no silence.
#[derive(Debug, Error)]
pub enum Ended {
    #[error("no byte in either direction for {} ms", .0.as_millis())]
    Silence(Duration),
    #[error(transparent)]
    Broke(#[from] io::Error),
}

/// Moves bytes both ways until both have ended.
///
/// # Errors
/// A stream broke, or no byte moved in either direction for `idle`.
pub async fn join<A, B>(
    a: &mut A,
    b: &mut B,
    idle: Duration,
    tally: &impl Tally,
) -> Result<(), Ended>
where
    A: Socket,
    B: Socket,
{
    let (mut there, mut back) = (Flow::default(), Flow::default());
    let mut silence = Silence::new(idle);
    let moved = Cell::new(false);
    let note = |bytes: usize| moved.set(moved.get() || bytes > 0);
    poll_fn(|cx| -> Poll<Result<(), Ended>> {
        let first = |bytes| {
            note(bytes);
            tally.first(bytes);
        };
        let second = |bytes| {
            note(bytes);
            tally.second(bytes);
        };
        let went = there.poll(cx, a, b, &first).map_err(|error| {
            tally.broke(!there.at_writer);
            error
        })?;
        let came = back.poll(cx, b, a, &second).map_err(|error| {
            tally.broke(back.at_writer);
            error
        })?;
        if went.is_ready() && came.is_ready() {
            return Poll::Ready(Ok(()));
        }
        silence.poll(cx, &moved).map(|()| Err(Ended::Silence(idle)))
    })
    .await
}

/// One direction.
#[derive(Debug, Default)]
struct Flow {
    end: End,
    /// Read and not yet taken by the other side.
    left: Vec<u8>,
    written: usize,
    /// What was written may still lie in the writer.
    unflushed: bool,
    way: Way,
    /// Which end was at work last; not told when the kernel moves bytes.
    at_writer: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum End {
    #[default]
    Open,
    /// The reader has ended, and the writer is told.
    Telling,
    Told,
}

/// How bytes are moved.
#[derive(Debug)]
enum Way {
    /// Through our memory; so many full buffers came in a row.
    Copy { full: u32 },
    /// By the kernel, through a pipe while there are bytes; so many transfers in a row were small.
    Splice { pipe: Option<Pipe>, small: u32 },
}

// === impl Flow ===

impl Flow {
    fn poll<R: Socket, W: Socket>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        note: &impl Fn(usize),
    ) -> Poll<io::Result<()>> {
        let mut turn = 0;
        while turn < TURN_BYTES {
            self.at_writer = true;
            match self.end {
                End::Told => return Poll::Ready(Ok(())),
                End::Telling => {
                    ready!(Pin::new(&mut *writer).poll_shutdown(cx))?;
                    self.end = End::Told;
                    continue;
                }
                End::Open => {}
            }
            ready!(self.poll_left(cx, writer))?;
            self.at_writer = false;
            let step = match (&mut self.way, reader.socket(), writer.socket()) {
                (Way::Splice { pipe, small }, Some(from), Some(to)) => {
                    match poll_splice(cx, pipe, small, from, to) {
                        Poll::Ready(Ok(None)) => {
                            self.way = Way::default();
                            continue;
                        }
                        other => other.map_ok(Option::unwrap_or_default),
                    }
                }
                _ => self.poll_copy(cx, reader, writer),
            };
            match step {
                Poll::Ready(Ok(Moved::Bytes(n))) => {
                    note(n);
                    turn += n;
                }
                Poll::Ready(Ok(Moved::On)) => {}
                Poll::Ready(Ok(Moved::End)) => self.end = End::Telling,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    if self.unflushed && Pin::new(&mut *writer).poll_flush(cx)?.is_ready() {
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes what is left of an earlier read.
    fn poll_left<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut W,
    ) -> Poll<io::Result<()>> {
        while let Some(rest) = self.left.get(self.written..).filter(|rest| !rest.is_empty()) {
            self.written += ready!(write(cx, writer, rest))?;
        }
        if !self.left.is_empty() {
            (self.left, self.written) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }

    /// One read, and what of it can be written at once.
    fn poll_copy<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
    ) -> Poll<io::Result<Moved>> {
        ready!(dose::poll_may_read(cx));
        let mut buffer = BUFFER.take().unwrap_or_else(|| vec![0; BUFFER_BYTES].into());
        let polled = self.poll_through(cx, reader, writer, &mut buffer);
        BUFFER.set(Some(buffer));
        polled
    }

    fn poll_through<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        buffer: &mut [u8],
    ) -> Poll<io::Result<Moved>> {
        let mut read = ReadBuf::new(buffer);
        ready!(Pin::new(reader).poll_read(cx, &mut read))?;
        let bytes = read.filled();
        let n = bytes.len();
        if n == 0 {
            return Poll::Ready(Ok(Moved::End));
        }
        self.way = match self.way {
            Way::Copy { full } if n == BUFFER_BYTES && full + 1 >= BULK_READS => {
                Way::Splice { pipe: None, small: 0 }
            }
            Way::Copy { full } if n == BUFFER_BYTES => Way::Copy { full: full + 1 },
            _ => Way::default(),
        };
        self.unflushed = true;
        self.at_writer = true;
        let mut rest = bytes;
        while !rest.is_empty() {
            match write(cx, writer, rest) {
                Poll::Ready(Ok(n)) => rest = rest.get(n..).unwrap_or_default(),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    // What went on is held by nobody here.
                    dose::note(rest.len());
                    self.left = rest.to_vec();
                    break;
                }
            }
        }
        Poll::Ready(Ok(Moved::Bytes(n)))
    }
}

/// What one step did.
#[derive(Clone, Copy, Debug, Default)]
enum Moved {
    Bytes(usize),
    /// Nothing was read, and there may be more to do.
    #[default]
    On,
    End,
}

fn write<W: AsyncWrite + Unpin>(
    cx: &mut Context<'_>,
    writer: &mut W,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    match ready!(Pin::new(writer).poll_write(cx, bytes))? {
        0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        n => Poll::Ready(Ok(n)),
    }
}

/// Empties the pipe, or fills it; `None` when bytes have to be copied from now on.
fn poll_splice(
    cx: &mut Context<'_>,
    lent: &mut Option<Pipe>,
    small: &mut u32,
    from: &TcpStream,
    to: &TcpStream,
) -> Poll<io::Result<Option<Moved>>> {
    if let Some(pipe) = lent.as_mut().filter(|pipe| !pipe.is_empty()) {
        ready!(to.poll_write_ready(cx))?;
        return match to.try_io(Interest::WRITABLE, || pipe.pour(to)) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(Some(Moved::On))),
        };
    }
    if *small >= TRICKLES {
        return Poll::Ready(Ok(None));
    }
    let ready = match dose::poll_may_read(cx) {
        Poll::Ready(()) => from.poll_read_ready(cx),
        Poll::Pending => Poll::Pending,
    };
    match ready {
        Poll::Ready(ready) => ready?,
        Poll::Pending => {
            // Others may need it meanwhile.
            *lent = None;
            return Poll::Pending;
        }
    }
    if lent.is_none() {
        *lent = Pipe::borrow();
    }
    let Some(pipe) = lent else { return Poll::Ready(Ok(None)) };
    match from.try_io(Interest::READABLE, || pipe.fill(from)) {
        Ok(0) => Poll::Ready(Ok(Some(Moved::End))),
        Ok(n) => {
            *small = if n < TRICKLE_BYTES { *small + 1 } else { 0 };
            Poll::Ready(Ok(Some(Moved::Bytes(n))))
        }
        Err(error) => match error.kind() {
            io::ErrorKind::WouldBlock => Poll::Ready(Ok(Some(Moved::On))),
            // Not every kernel does it for every socket.
            io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported => Poll::Ready(Ok(None)),
            _ => Poll::Ready(Err(error)),
        },
    }
}

/// Notices that nothing moved for long, by looking a few times within that time: bytes that move
/// touch no timer.
struct Silence {
    every: Duration,
    quiet: u32,
    timer: Pin<Box<Sleep>>,
    armed: Option<Waker>,
}

// === impl Silence ===

impl Silence {
    fn new(limit: Duration) -> Self {
        let every = (limit / LOOKS).max(Duration::from_millis(1));
        Self { every, quiet: 0, timer: Box::pin(sleep(every)), armed: None }
    }

    /// Ready when it lasted too long.
    fn poll(&mut self, cx: &mut Context<'_>, moved: &Cell<bool>) -> Poll<()> {
        let armed = self.armed.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        if armed && !self.timer.is_elapsed() {
            return Poll::Pending;
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            self.quiet = if moved.take() { 0 } else { self.quiet + 1 };
            if self.quiet >= LOOKS {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(Instant::now() + self.every);
        }
        self.armed = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Default for Way {
    fn default() -> Self {
        Self::Copy { full: 0 }
    }
}

#[cfg(test)]
mod tests;
