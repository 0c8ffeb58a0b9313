// SPDX-License-Identifier: Apache-2.0
//! Bytes on their way out: small ones are gathered, a large one is written from where it is.
//! Holds at most one of those, so that a slow reader stops its writer. Called by the drivers.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;

use super::buffers;

/// Up to this a copy costs less than another slice.
const COPY_MAX: usize = 1024;
/// Gathered bytes that wait while more may be added.
const GATHER_MAX: usize = 8 * 1024;
/// What an emptied gathering buffer may keep.
const KEEP_MAX: usize = 4 * 1024;

/// In this order: `small`, `large`, `end`.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    small: Vec<u8>,
    /// Of these, how many were written; never all.
    sent: usize,
    large: Bytes,
    end: &'static [u8],
    /// Written, but the stream (TLS, say) may still hold some of it.
    unflushed: bool,
}

impl Outbox {
    /// Where a head is encoded. Only while [`Self::has_room`].
    pub(super) fn head(&mut self) -> &mut Vec<u8> {
        if self.small.capacity() == 0 {
            self.small = buffers::take_small();
        }
        &mut self.small
    }

    /// Memory of what was written is free again once all of it was.
    pub(super) fn has_room(&self) -> bool {
        self.large.is_empty() && self.end.is_empty() && self.small.len() < GATHER_MAX
    }

    pub(super) fn is_empty(&self) -> bool {
        self.small.is_empty() && self.large.is_empty() && self.end.is_empty()
    }

    /// Everything has left this process.
    pub(super) fn is_flushed(&self) -> bool {
        self.is_empty() && !self.unflushed
    }

    /// Adds data and what follows it. Only while [`Self::has_room`].
    pub(super) fn push(&mut self, data: Bytes, end: &'static [u8]) {
        if data.len() <= COPY_MAX {
            self.head().extend_from_slice(&data);
            self.small.extend_from_slice(end);
        } else {
            (self.large, self.end) = (data, end);
        }
    }

    /// Forgets everything: nobody will read it.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Hands the gathering buffer's memory back, if nothing waits.
    pub(super) fn release(&mut self) {
        if self.is_empty() {
            buffers::give_back_small(&mut self.small);
        }
    }

    /// Ready once everything is written and flushed; `progress` is set when any byte went out.
    pub(super) fn poll_flush<I: AsyncWrite + Unpin>(
        &mut self,
        io: &mut I,
        cx: &mut Context<'_>,
        progress: &mut bool,
    ) -> Poll<io::Result<()>> {
        if self.is_flushed() {
            return Poll::Ready(Ok(()));
        }
        while !self.is_empty() {
            let n = if self.large.is_empty() && self.end.is_empty() {
                ready!(Pin::new(&mut *io).poll_write(cx, self.unsent()))?
            } else {
                let slices = [
                    IoSlice::new(self.unsent()),
                    IoSlice::new(&self.large),
                    IoSlice::new(self.end),
                ];
                let used = if self.small.is_empty() { slices.get(1..) } else { slices.get(..) };
                ready!(Pin::new(&mut *io).poll_write_vectored(cx, used.unwrap_or(&slices)))?
            };
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *progress = true;
            self.unflushed = true;
            self.written(n);
        }
        ready!(Pin::new(io).poll_flush(cx))?;
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }

    fn unsent(&self) -> &[u8] {
        self.small.get(self.sent..).unwrap_or_default()
    }

    fn written(&mut self, n: usize) {
        let small = n.min(self.unsent().len());
        let large = (n - small).min(self.large.len());
        let end = (n - small - large).min(self.end.len());
        self.sent += small;
        if self.sent == self.small.len() {
            self.small.clear();
            self.sent = 0;
            if self.small.capacity() > KEEP_MAX {
                self.small = Vec::new();
            }
        }
        self.large.advance(large);
        if self.large.is_empty() {
            // What it was a slice of may be free now.
            self.large = Bytes::new();
        }
        self.end = self.end.get(end..).unwrap_or_default();
    }
}
