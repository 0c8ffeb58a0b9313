// SPDX-License-Identifier: Apache-2.0
//! Read buffers of one worker's connections, lent while bytes are on their way and given back as
//! soon as a connection idles. Called by the drivers; a buffer whose slices are still in use is
//! used again once they are gone.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::AsyncRead;

use crate::overload::{self, dose};

/// One buffer for bodies; also how much is read at a time.
pub const BUFFER_BYTES: usize = 16 * 1024;
/// What the first read of a message takes: most heads fit, and many bodies.
const FIRST_BYTES: usize = 4 * 1024;
/// No more is set aside: it would not fit what is read next, or be worth a copy.
const ASIDE_BYTES_MAX: usize = 1024;
/// Less room is not read into.
const ROOM_MIN: usize = 1024;
/// Buffers of either size that wait for their next use.
const KEPT_MAX: usize = 32;
const KEPT_FIRST_MAX: usize = 128;
/// Buffers that others still have slices of, looked at again when one is needed.
const LENT_MAX: usize = 64;
const LENT_TRIES: usize = 4;
/// What a head and a small body take when they are written, and the most of it that waits.
const SMALL_BYTES: usize = 2 * 1024;
const SMALL_BYTES_MAX: usize = 4 * 1024;
const SMALL_KEPT_MAX: usize = 64;

thread_local! {
    static SMALL: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    static FREE: RefCell<Free> = const {
        RefCell::new(Free { first: Vec::new(), more: Vec::new(), lent: VecDeque::new() })
    };
}

/// What is about to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// A message's beginning.
    First,
    /// What follows it.
    More,
}

struct Free {
    first: Vec<BytesMut>,
    more: Vec<BytesMut>,
    /// Of either size, with slices that others still have.
    lent: VecDeque<BytesMut>,
}

// === impl Read ===

impl Read {
    fn bytes(self) -> usize {
        match self {
            Self::First => FIRST_BYTES,
            Self::More => BUFFER_BYTES,
        }
    }
}

// === impl Free ===

impl Free {
    fn take(&mut self, read: Read) -> Option<BytesMut> {
        if let Some(free) = self.of(read).pop() {
            return Some(free);
        }
        for _ in 0..LENT_TRIES {
            let oldest = self.lent.pop_front()?;
            self.keep(oldest);
            if let Some(free) = self.of(read).pop() {
                return Some(free);
            }
        }
        None
    }

    fn of(&mut self, read: Read) -> &mut Vec<BytesMut> {
        match read {
            Read::First => &mut self.first,
            Read::More => &mut self.more,
        }
    }

    /// Keeps an empty buffer among its like; one that is still in use waits.
    fn keep(&mut self, mut buffer: BytesMut) {
        let (read, most) = if buffer.try_reclaim(BUFFER_BYTES) {
            (Read::More, KEPT_MAX)
        } else if buffer.try_reclaim(FIRST_BYTES) {
            (Read::First, KEPT_FIRST_MAX)
        } else {
            if self.lent.len() < LENT_MAX {
                self.lent.push_back(buffer);
            }
            return;
        };
        // Larger ones were made for one long head.
        let fits = buffer.capacity() < 2 * read.bytes();
        let kept = self.of(read);
        if fits && kept.len() < most {
            kept.push(buffer);
        }
    }
}

/// An empty buffer.
pub fn take(read: Read) -> BytesMut {
    let free = FREE.with_borrow_mut(|free| free.take(read));
    free.unwrap_or_else(|| BytesMut::with_capacity(read.bytes()))
}

/// Takes a buffer back; nothing is left in its place.
pub fn give_back(buffer: &mut BytesMut) {
    let mut buffer = std::mem::take(buffer);
    if buffer.capacity() == 0 {
        return;
    }
    buffer.clear();
    FREE.with_borrow_mut(|free| free.keep(buffer));
}

/// An empty buffer to write a head to.
pub fn take_small() -> Vec<u8> {
    SMALL.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(SMALL_BYTES))
}

/// Takes such a buffer back when all of it was written; nothing is left in its place.
pub fn give_back_small(buffer: &mut Vec<u8>) {
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

/// Keeps the few bytes that have come of a message in as much room as they take while nobody knows
/// when the next will.
pub fn set_aside(buffer: &mut BytesMut) {
    if (1..=ASIDE_BYTES_MAX).contains(&buffer.len()) && buffer.capacity() > 2 * ASIDE_BYTES_MAX {
        let mut few = BytesMut::with_capacity(buffer.len());
        few.extend_from_slice(buffer);
        give_back(&mut std::mem::replace(buffer, few));
    }
}

/// Reads more of a message. A connection without a buffer keeps one only when bytes came: whoever
/// waits costs nothing.
pub fn poll_fill<I: AsyncRead + Unpin>(
    io: &mut I,
    buffer: &mut BytesMut,
    read: Read,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    ready!(dose::poll_may_read(cx));
    let polled = poll_read(io, buffer, read, cx);
    if let Poll::Ready(Ok(bytes)) = polled {
        dose::note(bytes);
    }
    polled
}

fn poll_read<I: AsyncRead + Unpin>(
    io: &mut I,
    buffer: &mut BytesMut,
    read: Read,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    if buffer.capacity() - buffer.len() >= ROOM_MIN {
        return tokio_util::io::poll_read_buf(Pin::new(io), cx, buffer);
    }
    if !buffer.is_empty() {
        // Far more than one buffer's worth is one long head: it has a buffer of its own, twice as
        // long each time, and those that are kept stay as they are.
        let wanted = 2 * buffer.len();
        // What was set aside is a beginning yet.
        let read = if buffer.len() <= ASIDE_BYTES_MAX { read } else { Read::More };
        let long = wanted > BUFFER_BYTES;
        let mut longer = if long { BytesMut::with_capacity(wanted) } else { take(read) };
        longer.extend_from_slice(buffer);
        give_back(&mut std::mem::replace(buffer, longer));
        return tokio_util::io::poll_read_buf(Pin::new(io), cx, buffer);
    }
    // Where memory is short many may read at once: each takes less.
    let read = if read == Read::More && overload::is_short() { Read::First } else { read };
    let mut lent = take(read);
    let polled = tokio_util::io::poll_read_buf(Pin::new(io), cx, &mut lent);
    give_back(&mut std::mem::replace(buffer, lent));
    if buffer.is_empty() {
        give_back(buffer);
    }
    polled
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn a_few_bytes_that_are_set_aside_hold_no_buffer_and_go_on() {
        let mut buffer = take(Read::First);
        buffer.extend_from_slice(b"GET / HT");
        set_aside(&mut buffer);
        assert_eq!((&*buffer, buffer.capacity()), (&b"GET / HT"[..], 8));
        let kept = || FREE.with_borrow(|free| (free.first.len(), free.more.len()));
        assert_eq!(kept(), (1, 0), "its buffer is another's");
        let mut rest = &b"TP/1.1\r\n\r\n"[..];
        poll_fn(|cx| poll_fill(&mut rest, &mut buffer, Read::First, cx)).await.unwrap();
        assert_eq!(&*buffer, b"GET / HTTP/1.1\r\n\r\n");
        assert_eq!(kept(), (0, 0), "it goes on in the first's size");
        // More than few bytes stay where they are.
        buffer.resize(ASIDE_BYTES_MAX + 1, b'x');
        set_aside(&mut buffer);
        assert!(buffer.capacity() >= FIRST_BYTES);
    }

    #[tokio::test]
    async fn a_long_head_is_copied_a_few_times_and_takes_no_kept_buffer() {
        const HEAD: usize = 60 * 1024;
        give_back(&mut BytesMut::with_capacity(BUFFER_BYTES));
        let kept = || FREE.with_borrow(|free| free.more.len());
        assert_eq!(kept(), 1);
        let (mut io, mut buffer) = (&[b'x'; HEAD][..], BytesMut::new());
        let (mut capacity, mut growths) = (0, 0);
        while buffer.len() < HEAD {
            let read = poll_fn(|cx| poll_fill(&mut io, &mut buffer, Read::First, cx)).await;
            assert!(read.unwrap() > 0);
            growths += usize::from(std::mem::replace(&mut capacity, buffer.capacity()) < capacity);
        }
        assert!(growths <= 4, "{growths} buffers, the first among them");
        assert_eq!(kept(), 1, "the kept buffer was used up");
    }
}
