// SPDX-License-Identifier: Apache-2.0
//! A connection to an upstream and the exchange on it: sends one request while it reads the
//! answer, both from the task that wants them. Called by `upstream/pool`.
//!
//! An answer may come before the request is sent: it is passed on all the same, even when the
//! peer closed on what was left of the request. Such a connection is never used again.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Method, Response, StatusCode, request, response};
use http_body::{Body, Frame};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::alarm::Alarm;
use super::body::{Decoder, Piece};
use super::buffers::{self, Read};
use super::encode;
use super::framing::Framing;
use super::head::{self, Scan};
use super::outbox::Outbox;
use super::wrong::Wrong;
use crate::guards;

/// A peer that says nothing to `Expect: 100-continue` gets the body after this.
const CONTINUE_WAIT: Duration = Duration::from_secs(1);
/// Interim answers to one request; a peer that sends more means harm.
const INTERIM_MAX: u32 = 32;

/// One connection.
pub struct Exchange<I, B> {
    io: I,
    inbuf: BytesMut,
    out: Outbox,
    scan: Scan,
    decoder: Decoder,
    upload: Upload<B>,
    /// How the request's body is framed, and what is left of a counted one.
    framing: Framing,
    left: u64,
    method: Method,
    upgrade: bool,
    keep: bool,
    /// Any byte of this request was written.
    written: bool,
    /// Any byte of its answer was read.
    answered: bool,
    interim: u32,
    /// Of these, what is for the client.
    early: Vec<Response<()>>,
    write_error: Option<io::Error>,
    alarm: Alarm,
}

#[derive(Debug)]
enum Upload<B> {
    Done,
    /// Until the peer says that it wants it.
    Held(B, Instant),
    Sending(B),
    GivenUp,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Failure {
    /// Not a byte of the request was written.
    Unsent(String),
    /// The connection ended; `silent` when not a byte of an answer had come.
    Reset {
        why: String,
        silent: bool,
    },
    Garbage(Wrong),
    /// The request's own body broke.
    Body(String),
}

// === impl Exchange ===

impl<I, B> Exchange<I, B> {
    pub fn new(io: I) -> Self {
        Self {
            io,
            inbuf: BytesMut::new(),
            out: Outbox::default(),
            scan: Scan::default(),
            decoder: Decoder::Done,
            upload: Upload::Done,
            framing: Framing::Empty,
            left: 0,
            method: Method::GET,
            upgrade: false,
            keep: true,
            written: false,
            answered: false,
            interim: 0,
            early: Vec::new(),
            write_error: None,
            alarm: Alarm::default(),
        }
    }

    /// The stream, and what was read behind the last head.
    pub fn into_parts(self) -> (I, Bytes) {
        (self.io, self.inbuf.freeze())
    }

    /// The interim answers that came meanwhile.
    pub fn take_early(&mut self) -> impl Iterator<Item = Response<()>> {
        self.early.drain(..)
    }

    /// The answer was read to its end.
    pub fn is_done(&self) -> bool {
        self.decoder.is_done()
    }

    /// What is left of the answer, if that is known.
    pub fn left(&self) -> Option<u64> {
        self.decoder.left()
    }

    /// Whether another request may follow: everything was sent, everything was read, and nothing
    /// came that nobody asked for.
    pub fn is_reusable(&self) -> bool {
        self.keep
            && self.decoder.is_done()
            && matches!(self.upload, Upload::Done)
            && self.inbuf.is_empty()
            && self.out.is_flushed()
            && self.write_error.is_none()
    }
}

impl<I, B> Exchange<I, B>
where
    I: AsyncRead + AsyncWrite + Unpin,
    B: Body<Data = Bytes> + Unpin,
    B::Error: fmt::Display,
{
    /// Encodes a request; [`Self::poll_head`] sends it.
    pub fn begin(&mut self, head: &request::Parts, body: B) {
        self.begin_with(head, encode::Instead::default(), body);
    }

    /// The same with other words in the place of some of its headers.
    pub fn begin_with(&mut self, head: &request::Parts, instead: encode::Instead<'_>, body: B) {
        self.method = head.method.clone();
        self.decoder = Decoder::UntilClose;
        (self.keep, self.written, self.answered, self.interim) = (true, false, false, 0);
        self.early.clear();
        self.scan = Scan::default();
        let out = self.out.head();
        let said = encode::request(out, (&head.method, &head.uri), &head.headers, instead);
        self.upgrade = said.upgrade;
        if self.upgrade {
            out.extend_from_slice(b"connection: upgrade\r\n");
        } else if said.te {
            out.extend_from_slice(b"connection: te\r\n");
        }
        self.framing = framing(&head.method, said.length, &body);
        let expects_length = matches!(head.method, Method::POST | Method::PUT | Method::PATCH);
        if self.framing == Framing::Empty && (expects_length || said.length.is_some()) {
            encode::length(out, 0);
        }
        encode::framing(out, self.framing);
        self.left = if let Framing::Length(n) = self.framing { n } else { 0 };
        self.upload = match self.framing {
            Framing::Length(_) | Framing::Chunked => {
                if said.expects {
                    Upload::Held(body, Instant::now())
                } else {
                    Upload::Sending(body)
                }
            }
            _ => Upload::Done,
        };
    }

    /// Sends the request until its answer's head is there.
    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<response::Parts, Failure>> {
        loop {
            self.upload(cx).map_err(Failure::Body)?;
            let held = matches!(self.upload, Upload::Held(..));
            if let Some(parts) = self.take_head().map_err(Failure::Garbage)? {
                return Poll::Ready(Ok(parts));
            }
            if held && !matches!(self.upload, Upload::Held(..)) {
                // The peer asked for the body.
                continue;
            }
            match buffers::poll_fill(&mut self.io, &mut self.inbuf, Read::First, cx) {
                Poll::Ready(Ok(0)) => {
                    let why = "the peer closed the connection".to_owned();
                    return Poll::Ready(Err(self.lost(why)));
                }
                Poll::Ready(Ok(_)) => self.answered = true,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.lost(error.to_string()))),
                Poll::Pending => {
                    ready!(self.poll_patience(cx));
                }
            }
        }
    }

    /// The same, or `None` when there is no answer at `deadline`, which may move. The timer is the
    /// connection's.
    pub fn poll_head_until(
        &mut self,
        cx: &mut Context<'_>,
        deadline: impl FnOnce() -> Instant,
    ) -> Poll<Option<Result<response::Parts, Failure>>> {
        match self.poll_head(cx) {
            Poll::Ready(head) => Poll::Ready(Some(head)),
            Poll::Pending => self.alarm.poll(cx, deadline()).map(|()| None),
        }
    }

    /// The answer's body. Goes on sending the request's meanwhile.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, String>>> {
        self.drive(cx);
        loop {
            match self.decoder.next_of_answer(&mut self.inbuf) {
                Ok(Some(piece)) => {
                    self.decoder.look_ahead(&mut self.inbuf);
                    self.settle();
                    let frame = match piece {
                        Piece::Data(data) => Frame::data(data),
                        Piece::Trailers(trailers) => Frame::trailers(trailers),
                    };
                    return Poll::Ready(Some(Ok(frame)));
                }
                Ok(None) if self.decoder.is_done() => {
                    self.settle();
                    return Poll::Ready(None);
                }
                Ok(None) => {}
                Err(wrong) => return self.broke(wrong.to_string()),
            }
            match ready!(buffers::poll_fill(&mut self.io, &mut self.inbuf, Read::More, cx)) {
                Ok(0) => {
                    self.keep = false;
                    if let Err(wrong) = self.decoder.end_of_stream() {
                        return self.broke(wrong.to_string());
                    }
                }
                Ok(_) => {}
                Err(error) => return self.broke(error.to_string()),
            }
        }
    }

    /// Goes on with sending the request's body. If that breaks, the answer is still read.
    pub fn drive(&mut self, cx: &mut Context<'_>) {
        if matches!(self.upload, Upload::Done | Upload::GivenUp) && self.out.is_flushed() {
            return;
        }
        if self.upload(cx).is_err() {
            self.give_up();
        }
    }

    /// Whether an idle connection is still good: open, and silent.
    pub fn is_silent(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let mut room = [0; 1];
        Pin::new(&mut self.io).poll_read(&mut cx, &mut ReadBuf::new(&mut room)).is_pending()
    }

    fn broke(&mut self, why: String) -> Poll<Option<Result<Frame<Bytes>, String>>> {
        self.keep = false;
        // What is left of it cannot be read.
        self.decoder = Decoder::Done;
        self.inbuf = BytesMut::new();
        Poll::Ready(Some(Err(why)))
    }

    /// A connection that nothing is read from any more holds no buffer.
    fn settle(&mut self) {
        if self.decoder.is_done() && self.inbuf.is_empty() {
            buffers::give_back(&mut self.inbuf);
            self.out.release();
        }
    }

    fn give_up(&mut self) {
        self.upload = Upload::GivenUp;
        self.out.clear();
        self.keep = false;
    }

    fn lost(&self, why: String) -> Failure {
        let why = match &self.write_error {
            Some(error) => format!("{why} ({error})"),
            None => why,
        };
        match self.written {
            false => Failure::Unsent(why),
            true => Failure::Reset { why, silent: !self.answered },
        }
    }

    /// Takes heads off the buffer up to the final one.
    fn take_head(&mut self) -> Result<Option<response::Parts>, Wrong> {
        while !self.inbuf.is_empty() {
            let taken = head::take_response(&mut self.inbuf, &mut self.scan, &self.method)?;
            let Some(head) = taken else { return Ok(None) };
            let status = head.parts.status;
            if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
                self.interim += 1;
                if self.interim > INTERIM_MAX {
                    return Err(Wrong::HeadTooLarge);
                }
                if status == StatusCode::CONTINUE {
                    self.release_body();
                } else {
                    self.early.push(Response::from_parts(head.parts, ()));
                }
                continue;
            }
            if status == StatusCode::SWITCHING_PROTOCOLS && !self.upgrade {
                return Err(Wrong::Switched);
            }
            if matches!(self.upload, Upload::Held(..)) {
                // Without its body the request is not complete, and never will be.
                self.give_up();
            }
            self.keep &= head.keep_alive;
            self.decoder = Decoder::new(head.framing);
            return Ok(Some(head.parts));
        }
        Ok(None)
    }

    fn release_body(&mut self) {
        self.upload = match std::mem::replace(&mut self.upload, Upload::Done) {
            Upload::Held(body, _) => Upload::Sending(body),
            other => other,
        };
    }

    /// Ready when a body was held for long enough.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Upload::Held(_, since) = &self.upload else { return Poll::Pending };
        let deadline = *since + CONTINUE_WAIT;
        ready!(self.alarm.poll(cx, deadline));
        self.release_body();
        Poll::Ready(())
    }

    /// Writes what can be written. A peer that takes no more may have answered already, so that
    /// is no error yet; one of the request's own body is.
    fn upload(&mut self, cx: &mut Context<'_>) -> Result<(), String> {
        loop {
            let fed = self.feed(cx)?;
            match self.out.poll_flush(&mut self.io, cx, &mut self.written) {
                Poll::Ready(Ok(())) if fed => {}
                Poll::Ready(Ok(())) | Poll::Pending => return Ok(()),
                Poll::Ready(Err(error)) => {
                    self.write_error = Some(error);
                    self.give_up();
                    return Ok(());
                }
            }
        }
    }

    /// Moves the body to the outbox while there is room; whether more may be there.
    fn feed(&mut self, cx: &mut Context<'_>) -> Result<bool, String> {
        while let Upload::Sending(body) = &mut self.upload {
            if !self.out.has_room() {
                return Ok(true);
            }
            let frame = match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Some(frame)) => frame.map_err(|e| e.to_string())?,
                Poll::Ready(None) => {
                    if self.left > 0 && guards::on("body-length") {
                        return Err("the body is shorter than its Content-Length".into());
                    }
                    if self.framing == Framing::Chunked {
                        self.out.head().extend_from_slice(encode::LAST_CHUNK);
                    }
                    self.upload = Upload::Done;
                    return Ok(false);
                }
            };
            let ended = body.is_end_stream();
            match frame.into_data() {
                Ok(data) => self.send_data(data, ended)?,
                Err(frame) => {
                    let Ok(trailers) = frame.into_trailers() else { continue };
                    if self.framing == Framing::Chunked {
                        encode::trailers(self.out.head(), &trailers);
                        self.upload = Upload::Done;
                    }
                }
            }
        }
        Ok(false)
    }

    fn send_data(&mut self, data: Bytes, ended: bool) -> Result<(), String> {
        if data.is_empty() {
            return Ok(());
        }
        let chunked = self.framing == Framing::Chunked;
        if !chunked {
            let left = self.left.checked_sub(data.len() as u64);
            self.left = match left {
                None if guards::on("body-length") => {
                    return Err("the body is longer than its Content-Length".into());
                }
                left => left.unwrap_or(0),
            };
        }
        encode::data(&mut self.out, self.framing, data, ended);
        if (chunked && ended) || (!chunked && self.left == 0) {
            self.upload = Upload::Done;
        }
        Ok(())
    }
}

impl<I, B> fmt::Debug for Exchange<I, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("decoder", &self.decoder).finish_non_exhaustive()
    }
}

/// How a request's body is delimited: by what it is, or else by the length that its headers say.
fn framing<B: Body>(method: &Method, length: Option<u64>, body: &B) -> Framing {
    if method == Method::CONNECT || body.is_end_stream() {
        return Framing::Empty;
    }
    match body.size_hint().exact().or(length) {
        Some(0) => Framing::Empty,
        Some(n) => Framing::Length(n),
        None => Framing::Chunked,
    }
}
