// SPDX-License-Identifier: Apache-2.0
//! Read buffers of one worker's connections, lent while bytes are on their way and given back as
//! soon as a connection idles. Called by the drivers; a buffer whose slices are still in use is
//! used again once they are gone.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, ReadBuf};

/// One buffer; also how much is read at a time.
pub const BUFFER_BYTES: usize = 16 * 1024;
/// Buffers that wait for their next use.
const KEPT_MAX: usize = 32;
/// What the first read of a message takes: most heads fit.
const FIRST_READ: usize = 4 * 1024;

/// Buffers that others still have slices of, looked at again when one is needed.
const LENT_MAX: usize = 32;
const LENT_TRIES: usize = 4;
/// What a head and a small body take when they are written, and the most of it that waits.
const SMALL_BYTES: usize = 2 * 1024;
const SMALL_BYTES_MAX: usize = 4 * 1024;
const SMALL_KEPT_MAX: usize = 64;

thread_local! {
    static SMALL: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
    static KEPT: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
    static LENT: RefCell<VecDeque<BytesMut>> = const { RefCell::new(VecDeque::new()) };
}

/// An empty buffer.
pub fn take() -> BytesMut {
    let free = KEPT.with_borrow_mut(Vec::pop).or_else(|| LENT.with_borrow_mut(returned));
    free.unwrap_or_else(|| BytesMut::with_capacity(BUFFER_BYTES))
}

/// One of the oldest that were lent, if its last slice is gone.
fn returned(lent: &mut VecDeque<BytesMut>) -> Option<BytesMut> {
    for _ in 0..LENT_TRIES {
        let mut oldest = lent.pop_front()?;
        if oldest.try_reclaim(BUFFER_BYTES) {
            return Some(oldest);
        }
        lent.push_back(oldest);
    }
    None
}

/// Takes a buffer back; nothing is left in its place.
pub fn give_back(buffer: &mut BytesMut) {
    let mut buffer = std::mem::take(buffer);
    if buffer.capacity() == 0 {
        return;
    }
    buffer.clear();
    if !buffer.try_reclaim(BUFFER_BYTES) {
        LENT.with_borrow_mut(|lent| {
            if lent.len() < LENT_MAX {
                lent.push_back(buffer);
            }
        });
    } else if buffer.capacity() < 2 * BUFFER_BYTES {
        // Larger ones were made for one long head.
        KEPT.with_borrow_mut(|kept| {
            if kept.len() < KEPT_MAX {
                kept.push(buffer);
            }
        });
    }
}

/// An empty buffer to write a head to.
pub fn take_small() -> BytesMut {
    SMALL.with_borrow_mut(Vec::pop).unwrap_or_else(|| BytesMut::with_capacity(SMALL_BYTES))
}

/// Takes such a buffer back when all of it was written; nothing is left in its place.
pub fn give_back_small(buffer: &mut BytesMut) {
    let mut buffer = std::mem::take(buffer);
    if (SMALL_BYTES..=SMALL_BYTES_MAX).contains(&buffer.capacity()) {
        buffer.clear();
        SMALL.with_borrow_mut(|kept| {
            if kept.len() < SMALL_KEPT_MAX {
                kept.push(buffer);
            }
        });
    }
}

/// Reads more of a message. A connection without a buffer gets one when bytes are there, not
/// before: whoever waits costs nothing.
pub fn poll_fill<I: AsyncRead + Unpin>(
    io: &mut I,
    buffer: &mut BytesMut,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    if buffer.is_empty() && buffer.capacity() < FIRST_READ {
        let mut first = [MaybeUninit::uninit(); FIRST_READ];
        let mut first = ReadBuf::uninit(&mut first);
        ready!(Pin::new(io).poll_read(cx, &mut first))?;
        if !first.filled().is_empty() {
            *buffer = take();
            buffer.extend_from_slice(first.filled());
        }
        return Poll::Ready(Ok(first.filled().len()));
    }
    if buffer.capacity() - buffer.len() < FIRST_READ {
        buffer.reserve(BUFFER_BYTES);
    }
    tokio_util::io::poll_read_buf(Pin::new(io), cx, buffer)
}
