// SPDX-License-Identifier: Apache-2.0
//! Between the h2 crate and the socket: sees every frame of both directions, and once its peer has
//! used up a purse of [`super::budget`] reads no further frame. Its driver, which holds the same
//! [`Watch`], says GOAWAY. Changes no byte.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::budget::{Abuse, Budget, Peer};
use super::frames::{
    ACK, CONTINUATION, DATA, GOAWAY, HEAD_BYTES, PREFACE_BYTES, RST_STREAM, SETTINGS, Scanner,
};
use super::paths::Paths;
use crate::overload::{self, dose};

/// How long a closing connection reads on, so that its peer gets to see the GOAWAY: unread bytes
/// would make the kernel reset it.
const LINGER_TIME: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 4 * 1024 * 1024;
/// While memory is short, this long after each read nothing is read: windows that were given allow
/// more than there is time to give up anybody.
const BRAKE: Duration = Duration::from_millis(20);
/// Data of less than that is worth less than its frame, which the h2 crate counts until it is read.
const SMALL_BYTES: u32 = 256;
/// Of such, so many are read before the streams' readers have their turn.
const SMALL_MAX: u32 = 8 * 1024;

// A turn uses up a part of the h2 crate's patience, which is half of the window.
const _: () = assert!(SMALL_MAX * SMALL_BYTES <= super::WINDOW / 8);

/// A socket with its counts.
pub struct Guard<I> {
    io: I,
    watch: Rc<Watch>,
    received: Scanner,
    sent: Scanner,
    /// Of the frame that was found last, with those before it of its block of headers.
    frame: usize,
    linger: Option<(Pin<Box<Sleep>>, usize)>,
    /// Small frames of data since others had their turn.
    small: u32,
    brake: Option<Pin<Box<Sleep>>>,
}

/// What the driver of a connection knows of its frames.
#[derive(Debug)]
pub struct Watch {
    began: Instant,
    budget: RefCell<Budget>,
    paths: RefCell<Box<Paths>>,
    abuse: Cell<Option<Abuse>>,
    /// Since when a frame or a block of headers lacks its end.
    unfinished: Cell<Option<Instant>>,
    /// What has come of it.
    begun: Cell<usize>,
    /// Anything was received since this was asked last.
    heard: Cell<bool>,
    /// The peer has said what it takes.
    settled: Cell<bool>,
    /// The peer wants no new streams.
    leaving: Cell<bool>,
}

// === impl Guard ===

impl<I> Guard<I> {
    pub fn new(io: I, peer: Peer) -> (Self, Rc<Watch>) {
        let paths = match peer {
            Peer::Server => Paths::of_answers(),
            Peer::Client | Peer::MeshClient => Paths::default(),
        };
        let watch = Rc::new(Watch {
            began: Instant::now(),
            budget: RefCell::new(Budget::new(peer, 0)),
            paths: RefCell::new(Box::new(paths)),
            abuse: Cell::new(None),
            unfinished: Cell::new(None),
            begun: Cell::new(0),
            heard: Cell::new(false),
            settled: Cell::new(false),
            leaving: Cell::new(false),
        });
        let preface = |sends: bool| Scanner::new(if sends { PREFACE_BYTES } else { 0 });
        let server = peer == Peer::Server;
        let (received, sent) = (preface(!server), preface(server));
        let made = Self {
            io,
            watch: watch.clone(),
            received,
            sent,
            frame: 0,
            linger: None,
            small: 0,
            brake: None,
        };
        (made, watch)
    }

    /// How many of the bytes may be seen: all, or those before the frame that is too much.
    fn admit(&mut self, bytes: &[u8]) -> usize {
        let (mut at, watch) = (0, &self.watch);
        let mut budget = watch.budget.borrow_mut();
        let mut paths = watch.paths.borrow_mut();
        paths.payload(bytes);
        if paths.has_wrong_trailers() {
            watch.abuse.set(Some(Abuse::Trailers));
            return 0;
        }
        while let Some((head, end)) = self.received.next(bytes.get(at..).unwrap_or_default()) {
            if let Err(abuse) = budget.received(head, || watch.ms()) {
                watch.abuse.set(Some(abuse));
                return at;
            }
            if head.kind == SETTINGS && !head.has(ACK) {
                watch.settled.set(true);
            }
            if head.kind == GOAWAY {
                watch.leaving.set(true);
            }
            if head.kind == DATA && head.bytes < SMALL_BYTES {
                self.small += 1;
            }
            let before = if head.kind == CONTINUATION { self.frame } else { 0 };
            self.frame = before.saturating_add(HEAD_BYTES + size(head.bytes));
            at += end;
            paths.frame(head, bytes.get(at..).unwrap_or_default());
            if paths.has_wrong_trailers() {
                watch.abuse.set(Some(Abuse::Trailers));
                return at.saturating_sub(HEAD_BYTES);
            }
        }
        watch.heard.set(true);
        let unfinished = budget.is_in_block() || self.received.is_midway();
        if unfinished != watch.unfinished.get().is_some() {
            watch.unfinished.set(unfinished.then(Instant::now));
        }
        // The few bytes of a frame's own head do not count.
        let left = size(self.received.left());
        let begun = unfinished && (left > 0 || budget.is_in_block());
        watch.begun.set(if begun { self.frame.saturating_sub(left) } else { 0 });
        bytes.len()
    }

    fn note_sent(&mut self, bytes: &[u8]) {
        let (mut rest, watch) = (bytes, &self.watch);
        let mut budget = watch.budget.borrow_mut();
        while let Some((head, end)) = self.sent.next(rest) {
            rest = rest.get(end..).unwrap_or_default();
            let code = rest.first_chunk().filter(|_| head.kind == RST_STREAM);
            let code = code.map(|code| u32::from_be_bytes(*code));
            if head.kind == RST_STREAM {
                watch.paths.borrow_mut().given_up(head.stream);
            }
            if let Err(abuse) = budget.sent(head, code, || watch.ms()) {
                watch.abuse.set(Some(abuse));
            }
        }
    }
}

impl<I> std::fmt::Debug for Guard<I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").field("watch", &self.watch).finish_non_exhaustive()
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Guard<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        if let Some(abuse) = me.watch.abuse.get() {
            return me.watch.stopped(abuse);
        }
        if me.small >= SMALL_MAX {
            // Those who read them are next, and then this goes on.
            me.small = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(dose::poll_may_read(cx));
        if let Some(brake) = &mut me.brake {
            ready!(brake.as_mut().poll(cx));
            me.brake = None;
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut me.io).poll_read(cx, buf);
        if polled.is_pending() {
            me.small = 0;
        }
        let new = buf.filled().get(before..).unwrap_or_default();
        if !new.is_empty() {
            dose::note(new.len());
            me.brake = overload::is_short().then(|| Box::pin(tokio::time::sleep(BRAKE)));
            let admitted = me.admit(new);
            buf.set_filled(before + admitted);
            if let (0, Some(abuse)) = (admitted, me.watch.abuse.get()) {
                return me.watch.stopped(abuse);
            }
        }
        polled
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guard<I> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let polled = Pin::new(&mut me.io).poll_write(cx, bytes);
        if let Poll::Ready(Ok(n)) = polled {
            me.note_sent(bytes.get(..n).unwrap_or_default());
        }
        polled
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let polled = Pin::new(&mut me.io).poll_write_vectored(cx, bufs);
        if let Poll::Ready(Ok(mut n)) = polled {
            for bytes in bufs {
                let written = n.min(bytes.len());
                me.note_sent(bytes.get(..written).unwrap_or_default());
                n -= written;
            }
        }
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    /// Closes; over a peer that sent too much it reads on for a while first.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let closed = std::task::ready!(Pin::new(&mut me.io).poll_shutdown(cx));
        if closed.is_err() || me.watch.abuse.get().is_none() {
            return Poll::Ready(closed);
        }
        let sleep = || (Box::pin(tokio::time::sleep(LINGER_TIME)), 0);
        let (until, thrown) = me.linger.get_or_insert_with(sleep);
        let mut bytes = [0u8; 4096];
        while *thrown < LINGER_BYTES {
            let mut buf = ReadBuf::new(&mut bytes);
            match Pin::new(&mut me.io).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => *thrown += buf.filled().len(),
                Poll::Ready(_) => break,
                Poll::Pending => return until.as_mut().poll(cx).map(Ok),
            }
        }
        Poll::Ready(Ok(()))
    }
}

// === impl Watch ===

impl Watch {
    /// What the peer is stopped for.
    pub fn abuse(&self) -> Option<Abuse> {
        self.abuse.get()
    }

    /// The driver's own finding: nothing is read from now on.
    pub fn stop(&self, abuse: Abuse) {
        self.abuse.set(Some(abuse));
    }

    pub fn unfinished(&self) -> Option<Instant> {
        self.unfinished.get()
    }

    /// Whether memory is too short to wait for the end of what has begun. Proxies of the mesh are
    /// few, and their connections carry the requests of many clients.
    pub fn is_shed(&self) -> bool {
        overload::gives_up(self.begun.get()) && self.budget.borrow().peer() == Peer::Client
    }

    /// Whether the request of a stream has a fragment in its path. Asked once for each, in the
    /// order of their numbers.
    pub fn has_fragment(&self, stream: u32) -> bool {
        self.paths.borrow_mut().take(stream)
    }

    /// Whether a server's answer has a field that begins with a colon and may not be there.
    pub fn is_wrong(&self, stream: u32) -> bool {
        self.paths.borrow().is_wrong(stream)
    }

    /// Whether anything came since this was asked last.
    pub fn take_heard(&self) -> bool {
        self.heard.take()
    }

    /// Whether the peer's settings have begun to arrive.
    pub fn is_settled(&self) -> bool {
        self.settled.get()
    }

    /// Whether the peer has said GOAWAY.
    pub fn is_leaving(&self) -> bool {
        self.leaving.get()
    }

    fn ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A client waits for its GOAWAY; with a server there is nothing to talk about.
    fn stopped<T>(&self, abuse: Abuse) -> Poll<io::Result<T>> {
        match self.budget.borrow().peer() {
            Peer::Server => Poll::Ready(Err(io::Error::other(abuse))),
            Peer::Client | Peer::MeshClient => Poll::Pending,
        }
    }
}

fn size(bytes: u32) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::frames::{DATA, END_HEADERS, HEADERS};
    use super::*;
    use crate::overload::tests::SHORT_HERE;

    fn frame(kind: u8, flags: u8, bytes: usize) -> Vec<u8> {
        let length = u32::try_from(bytes).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], &vec![0; bytes]].concat()
    }

    #[tokio::test]
    async fn what_has_come_of_headers_is_counted_until_their_end() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        let (mut guard, watch) = Guard::new(ours, Peer::Client);
        let headers = frame(HEADERS, 0, 5_000);
        let (next, last) = (frame(CONTINUATION, 0, 100), frame(CONTINUATION, END_HEADERS, 100));
        let data = frame(DATA, 0, 9_000);
        let steps: [(&[u8], usize); 12] = [
            (&[0; 20], 0),
            (&[0; 4], 0),
            (&frame(SETTINGS, 0, 0), 0),
            (&headers[..2_509], 2_509),
            (&headers[2_509..], 5_009),
            (&next, 5_118),
            (&last[..5], 5_118),
            (&last[5..10], 5_128),
            (&last[10..], 0),
            (&data[..6_000], 0),
            (&data[6_000..], 0),
            (&headers[..5], 0),
        ];
        for (n, (bytes, begun)) in steps.into_iter().enumerate() {
            theirs.write_all(bytes).await.unwrap();
            guard.read_exact(&mut vec![0; bytes.len()]).await.unwrap();
            assert_eq!(watch.begun.get(), begun, "step {n}");
        }
    }

    #[tokio::test]
    async fn long_headers_without_an_end_are_shed_where_memory_is_short() {
        let cases = [
            (Peer::Client, 5_000, true, true),
            (Peer::Client, 5_000, false, false),
            (Peer::Client, 4_000, true, false),
            (Peer::MeshClient, 5_000, true, false),
        ];
        for (peer, bytes, short, shed) in cases {
            SHORT_HERE.set(short);
            let (ours, mut theirs) = tokio::io::duplex(1 << 16);
            let (mut guard, watch) = Guard::new(ours, peer);
            let bytes = [vec![0; 24], frame(HEADERS, 0, bytes)].concat();
            theirs.write_all(&bytes).await.unwrap();
            guard.read_exact(&mut vec![0; bytes.len()]).await.unwrap();
            assert_eq!(watch.is_shed(), shed, "{peer:?} {} {short}", bytes.len());
        }
    }
}
