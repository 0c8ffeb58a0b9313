// SPDX-License-Identifier: Apache-2.0
//! A pseudo-terminal: our side as asynchronous halves, the other for a program.
//!
//! Used by `exec`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::process::Command;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Our side.
#[derive(Debug)]
pub(super) struct Terminal(Arc<AsyncFd<OwnedFd>>);

/// The program's side.
#[derive(Debug)]
pub(super) struct Inner(OwnedFd);

#[derive(Debug)]
pub(crate) struct Reader(Arc<AsyncFd<OwnedFd>>);

#[derive(Clone, Debug)]
pub(crate) struct Writer(Arc<AsyncFd<OwnedFd>>);

// === impl Terminal ===

impl Terminal {
    pub(super) fn open() -> io::Result<(Self, Inner)> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let outer = openpt(flags)?;
        grantpt(&outer)?;
        unlockpt(&outer)?;
        let inner = ioctl_tiocgptpeer(&outer, flags)?;
        rustix::io::ioctl_fionbio(&outer, true)?;
        Ok((Self(Arc::new(crate::sys::watch(outer)?)), Inner(inner)))
    }

    pub(super) fn split(self) -> (Reader, Writer) {
        (Reader(self.0.clone()), Writer(self.0))
    }
}

// === impl Inner ===

impl Inner {
    /// Makes it the three standard streams of a program.
    pub(super) fn give_to(self, command: &mut Command) -> io::Result<()> {
        command.stdin(self.0.try_clone()?).stdout(self.0.try_clone()?).stderr(self.0);
        Ok(())
    }
}

// === impl Reader ===

impl AsyncRead for Reader {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let read = |fd: &AsyncFd<OwnedFd>| {
                Ok(rustix::io::read(fd.as_fd(), buf.initialize_unfilled())?)
            };
            if let Ok(got) = guard.try_io(read) {
                buf.advance(got?);
                return Poll::Ready(Ok(()));
            }
        }
    }
}

// === impl Writer ===

impl Writer {
    pub(super) fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(self.0.as_fd(), size)?)
    }
}

impl AsyncWrite for Writer {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            let write = |fd: &AsyncFd<OwnedFd>| Ok(rustix::io::write(fd.as_fd(), buf)?);
            if let Ok(put) = guard.try_io(write) {
                return Poll::Ready(put);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
