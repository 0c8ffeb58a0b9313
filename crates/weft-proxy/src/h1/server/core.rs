// SPDX-License-Identifier: Apache-2.0
//! What a client's connection and the body of its request have in common: the stream, what was
//! read of it, and where in the body it is. Borrowed for the length of one poll, never longer.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Frame;
use socket2::SockRef;
use tokio::time::Instant;

use super::{Ended, Next};
use crate::h1::alarm::Alarm;
use crate::h1::body::{Decoder, Piece};
use crate::h1::buffers::{self, Read};
use crate::h1::encode;
use crate::h1::framing::Framing;
use crate::h1::head::{self, Scan};
use crate::h1::incoming::{BodyFailure, Incoming, Source};
use crate::h1::outbox::Outbox;
use crate::h1::wrong::Wrong;
use crate::overload;
use crate::overload::stuck::Stuck;
use crate::tcp::socket::Socket;

pub(super) struct Core<I> {
    /// Gone once the connection left HTTP or is closing.
    pub(super) io: Option<I>,
    pub(super) inbuf: BytesMut,
    pub(super) out: Outbox,
    decoder: Decoder,
    /// Requests so far; a body of another one reads nothing.
    number: u64,
    /// Somebody may still read the request's body.
    wanted: bool,
    /// The client waits to be told to send its body.
    expects: bool,
    failed: Option<BodyFailure>,
    progress: bool,
    driver: Option<Waker>,
    silence: Duration,
    silent_since: Option<Instant>,
    stuck: Stuck,
    alarm: Alarm,
}

impl<I> Core<I> {
    pub(super) fn new(io: I, silence: Duration) -> Self {
        Self {
            io: Some(io),
            inbuf: BytesMut::new(),
            out: Outbox::default(),
            decoder: Decoder::Done,
            number: 0,
            wanted: false,
            expects: false,
            failed: None,
            progress: false,
            driver: None,
            silence,
            silent_since: None,
            stuck: Stuck::default(),
            alarm: Alarm::default(),
        }
    }

    /// Requests that are over.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Remembers whom to wake when the body is read by another task.
    pub(super) fn register(&mut self, cx: &Context<'_>) {
        if !self.driver.as_ref().is_some_and(|d| d.will_wake(cx.waker())) {
            self.driver = Some(cx.waker().clone());
        }
    }

    fn wake_driver(&self, cx: &Context<'_>) {
        if let Some(driver) = self.driver.as_ref().filter(|d| !d.will_wake(cx.waker())) {
            driver.wake_by_ref();
        }
    }

    /// Whether another request may follow, as far as this one's body goes. An answer that `ends`
    /// the matter makes the rest of it useless.
    pub(super) fn may_keep(&self, ends: bool) -> bool {
        let read = self.decoder.is_done() || (self.wanted && !ends);
        // Whether a client that was never told to go on sends its body is anyone's guess.
        let guess = !self.decoder.is_done() && self.expects;
        self.failed.is_none() && !guess && (read || self.is_short(super::DRAIN_BYTES))
    }

    /// The answer begins: whoever waits to be told to go on has been told enough (RFC 9110
    /// §10.1.1).
    pub(super) fn answering(&mut self) {
        self.expects = false;
    }

    /// What is left of the body is not worth a new connection.
    pub(super) fn is_short(&self, most: u64) -> bool {
        self.failed.is_none() && self.decoder.left().is_none_or(|left| left <= most)
    }

    /// The client may have sent something that was not read.
    pub(super) fn has_more(&self) -> bool {
        !self.decoder.is_done() || self.failed.is_some() || !self.inbuf.is_empty()
    }

    /// The request is over; whether its body was read whole.
    pub(super) fn finish(&mut self) -> bool {
        self.number += 1;
        self.wanted = false;
        self.stuck.moved();
        self.decoder.is_done() && self.failed.is_none()
    }

    pub(super) fn take_progress(&mut self) -> bool {
        std::mem::take(&mut self.progress)
    }
}

impl<I: Socket> Core<I> {
    /// Whether the connection is reset when it goes. Of TLS the last words are missing instead.
    pub(super) fn resets(&self, resets: bool) {
        let Some(socket) = self.io.as_ref().and_then(Socket::socket) else { return };
        let linger = resets.then_some(Duration::ZERO);
        if let Err(error) = SockRef::from(socket).set_linger(linger) {
            tracing::debug!(%error, "a broken answer's connection may end in order");
        }
    }
}

impl<I: Socket + 'static> Core<I> {
    /// The body of the request whose head was just read.
    pub(super) fn begin(this: &Rc<RefCell<Self>>, framing: Framing, expects: bool) -> Incoming {
        let mut core = this.borrow_mut();
        core.decoder = Decoder::new(framing);
        core.silent_since = None;
        if core.decoder.is_done() {
            core.expects = false;
            return Incoming::empty();
        }
        core.expects = expects;
        core.wanted = true;
        Incoming::of(this.clone(), core.number)
    }

    /// Reads until a head is complete. Between requests no buffer is held.
    pub(super) fn poll_head(
        &mut self,
        scan: &mut Scan,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Next, Ended>> {
        let Some(io) = &mut self.io else { return Poll::Ready(Ok(Next::End)) };
        loop {
            if self.inbuf.is_empty() {
                buffers::give_back(&mut self.inbuf);
            } else {
                match head::take_request(&mut self.inbuf, scan) {
                    Ok(Some(head)) => return Poll::Ready(Ok(Next::Request(head))),
                    Ok(None) if overload::gives_up(self.inbuf.len()) => {
                        return Poll::Ready(Ok(Next::End));
                    }
                    Ok(None) => {}
                    Err(wrong) => return Poll::Ready(Ok(Next::Refused(wrong))),
                }
            }
            let read = match poll_readable(io, cx) {
                Poll::Ready(()) => buffers::poll_fill(io, &mut self.inbuf, Read::First, cx)?,
                Poll::Pending => Poll::Pending,
            };
            match read {
                Poll::Ready(0) => return Poll::Ready(Ok(Next::End)),
                Poll::Ready(_) => {}
                Poll::Pending => {
                    // Its rest may never come.
                    buffers::set_aside(&mut self.inbuf);
                    return Poll::Pending;
                }
            }
        }
    }

    /// Ready once everything is written.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Some(io) => {
                let mut written = false;
                let flushed = self.out.poll_flush(io, cx, &mut written);
                if written {
                    // While its answer flows nobody is silent.
                    (self.progress, self.silent_since) = (true, None);
                }
                flushed
            }
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    /// Ready when the client has left. Looks only where nobody else reads, and not beyond what
    /// fits one buffer: a client may send its next request early, but not all of them.
    pub(super) fn poll_watch(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        let Some(io) = &mut self.io else { return Poll::Ready(Ended::Gone) };
        if !self.decoder.is_done() || !self.inbuf.is_empty() {
            return Poll::Pending;
        }
        ready!(poll_readable(io, cx));
        match ready!(buffers::poll_fill(io, &mut self.inbuf, Read::First, cx)) {
            Ok(0) => Poll::Ready(Ended::Gone),
            Ok(_) => Poll::Pending,
            Err(error) => Poll::Ready(Ended::Io(error)),
        }
    }

    /// A client that sends without reading must not wait for itself: what nobody wants of its
    /// body is thrown away while its answer is stuck.
    pub(super) fn poll_discard(&mut self, cx: &mut Context<'_>) {
        while !self.wanted && self.failed.is_none() && !self.decoder.is_done() {
            let Poll::Ready(Some(Ok(_))) = self.poll_piece(cx) else { return };
        }
    }

    /// Throws the rest of a body away; ready with whether its end came before `most` bytes.
    pub(super) fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        thrown: &mut u64,
        most: u64,
    ) -> Poll<bool> {
        loop {
            match ready!(self.poll_piece(cx)) {
                None => return Poll::Ready(true),
                Some(Err(_)) => return Poll::Ready(false),
                Some(Ok(Piece::Data(data))) => *thrown += data.len() as u64,
                Some(Ok(Piece::Trailers(_))) => {}
            }
            if *thrown > most {
                return Poll::Ready(false);
            }
        }
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Piece, BodyFailure>>> {
        loop {
            match self.decoder.next(&mut self.inbuf) {
                Ok(Some(piece)) => {
                    self.decoder.look_ahead(&mut self.inbuf);
                    return Poll::Ready(Some(Ok(piece)));
                }
                Ok(None) if self.decoder.is_done() => return Poll::Ready(None),
                Ok(None) => {}
                Err(wrong) => {
                    return Poll::Ready(Some(Err(self.fail(BodyFailure::Malformed(wrong)))));
                }
            }
            let gone = |why: &str| BodyFailure::Gone(why.into());
            let Some(io) = &mut self.io else {
                return Poll::Ready(Some(Err(gone("the connection is closed"))));
            };
            let failure = match buffers::poll_fill(io, &mut self.inbuf, Read::More, cx) {
                Poll::Ready(Ok(0)) => gone(Wrong::Truncated.sentence()),
                Poll::Ready(Ok(_)) => {
                    self.silent_since = None;
                    self.stuck.moved();
                    // Nor is anybody stuck whose request is still wanted, and comes.
                    self.progress |= self.wanted;
                    continue;
                }
                Poll::Ready(Err(error)) => gone(&error.to_string()),
                // What nobody wants holds only its connection, which has waits of its own.
                Poll::Pending if self.wanted && self.stuck.poll(cx).is_ready() => BodyFailure::Shed,
                Poll::Pending => {
                    let since = *self.silent_since.get_or_insert_with(Instant::now);
                    ready!(self.alarm.poll(cx, since + self.silence));
                    gone("the client was silent for too long")
                }
            };
            return Poll::Ready(Some(Err(self.fail(failure))));
        }
    }

    fn fail(&mut self, failure: BodyFailure) -> BodyFailure {
        self.failed = Some(failure.clone());
        failure
    }
}

impl<I: Socket + 'static> Source for RefCell<Core<I>> {
    fn poll_body(
        &self,
        number: u64,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFailure>>> {
        let mut core = self.borrow_mut();
        if core.number != number {
            let over = BodyFailure::Gone("its request is over".into());
            return Poll::Ready(Some(Err(over)));
        }
        if let Some(failure) = &core.failed {
            return Poll::Ready(Some(Err(failure.clone())));
        }
        if std::mem::take(&mut core.expects) {
            core.out.head().extend_from_slice(encode::CONTINUE);
            core.wake_driver(cx);
        }
        let piece = ready!(core.poll_piece(cx));
        if core.decoder.is_done() || core.failed.is_some() {
            core.wake_driver(cx);
        }
        Poll::Ready(piece.map(|piece| {
            piece.map(|piece| match piece {
                Piece::Data(data) => Frame::data(data),
                Piece::Trailers(trailers) => Frame::trailers(trailers),
            })
        }))
    }

    fn left(&self, number: u64) -> (bool, Option<u64>) {
        let core = self.borrow();
        if core.number != number {
            return (false, None);
        }
        (core.decoder.is_done() && core.failed.is_none(), core.decoder.left())
    }

    fn dropped(&self, number: u64) {
        let mut core = self.borrow_mut();
        if core.number == number {
            core.wanted = false;
            core.stuck.moved();
        }
    }
}

/// Whether there may be something to read: asked before a buffer is taken where mostly there is
/// not. What is wrong with a stream its read says.
fn poll_readable<I: Socket>(io: &I, cx: &mut Context<'_>) -> Poll<()> {
    io.socket().map_or(Poll::Ready(()), |socket| socket.poll_read_ready(cx).map(drop))
}
