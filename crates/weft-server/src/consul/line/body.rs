// SPDX-License-Identifier: Apache-2.0
//! A request's body as it comes: so many bytes, or chunks. Called through [`http_body::Body`] by
//! whoever reads a request. Bounds what is said between chunks beside their sizes; who reads bounds
//! the rest.

use std::io::{Error, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::Notify;

use super::{Framing, Manner, READ_BYTES, Wire};

/// Extensions of chunks and trailers, altogether. Bare sizes are not counted: how small the chunks
/// of a large body are is its sender's affair.
const ASIDE_BYTES_MAX: usize = 16 * 1024;
/// Digits of a chunk's size.
const SIZE_DIGITS_MAX: usize = 16;
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

#[derive(Debug)]
pub struct Incoming<'l> {
    stream: &'l Wire,
    held: &'l mut BytesMut,
    left: Left,
    /// The client waits to be told that its body is wanted.
    expects: &'static [u8],
    /// Told when the body has come whole, and nothing after it.
    over: &'l Notify,
}

/// What is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    Bytes(u64),
    Chunks { at: At, aside: usize },
}

/// Where in its chunks a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// A size line.
    Size,
    Data(u64),
    /// The line end after a chunk's data.
    DataEnd,
    /// Trailers, line by line.
    Trailer,
    End,
}

/// A step through what was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    Data(Bytes),
    End,
    /// More has to be read first.
    More,
    Wrong,
}

// === impl Incoming ===

impl<'l> Incoming<'l> {
    pub fn new(stream: &'l Wire, held: &'l mut BytesMut, manner: Manner, over: &'l Notify) -> Self {
        let left = Left::new(manner.framing);
        let expects = if manner.expects { CONTINUE } else { &[] };
        let mut body = Self { stream, held, left, expects, over };
        body.rest();
        body
    }

    /// Resolves when the client has gone away after all of its body came. A client that has sent
    /// more already is not looked after: what it sent is in the way.
    pub fn gone(&self) -> impl Future<Output = ()> + use<'l> {
        let (stream, over) = (self.stream, self.over);
        async move {
            over.notified().await;
            if !stream.is_closed().await {
                std::future::pending().await
            }
        }
    }

    /// The answer may be minutes away: no buffer is kept for that.
    fn rest(&mut self) {
        if self.left.is_over() && self.held.is_empty() {
            *self.held = BytesMut::new();
            self.over.notify_one();
        }
    }

    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            self.held.reserve(READ_BYTES);
            match self.stream.try_read_buf(self.held) {
                Ok(0) => return Poll::Ready(Err(ErrorKind::UnexpectedEof.into())),
                Ok(_) => return Poll::Ready(Ok(())),
                Err(why) if why.kind() == ErrorKind::WouldBlock => {}
                Err(why) => return Poll::Ready(Err(why)),
            }
        }
    }

    fn poll_expected(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        while !self.expects.is_empty() {
            ready!(self.stream.poll_write_ready(cx))?;
            match self.stream.try_write(self.expects) {
                Ok(n) => self.expects = self.expects.get(n..).unwrap_or_default(),
                Err(why) if why.kind() == ErrorKind::WouldBlock => {}
                Err(why) => return Poll::Ready(Err(why)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Body for Incoming<'_> {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        loop {
            let step = this.left.step(this.held);
            this.rest();
            match step {
                Step::Data(bytes) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Step::End => return Poll::Ready(None),
                Step::Wrong => {
                    let why = Error::new(ErrorKind::InvalidData, "its chunks are malformed");
                    return Poll::Ready(Some(Err(why)));
                }
                Step::More => {
                    let sent = ready!(this.poll_expected(cx));
                    let more = match sent {
                        Ok(()) => ready!(this.poll_more(cx)),
                        Err(why) => Err(why),
                    };
                    if let Err(why) = more {
                        return Poll::Ready(Some(Err(why)));
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_over()
    }

    fn size_hint(&self) -> SizeHint {
        match self.left {
            Left::Bytes(left) => SizeHint::with_exact(left),
            Left::Chunks { .. } => SizeHint::default(),
        }
    }
}

// === impl Left ===

impl Left {
    pub fn new(framing: Framing) -> Self {
        match framing {
            Framing::Length(length) => Self::Bytes(length),
            Framing::Chunked => Self::Chunks { at: At::Size, aside: 0 },
        }
    }

    pub fn is_over(self) -> bool {
        matches!(self, Self::Bytes(0) | Self::Chunks { at: At::End, .. })
    }

    /// Takes what it can off what was read.
    pub fn step(&mut self, held: &mut BytesMut) -> Step {
        match self {
            Self::Bytes(0) => Step::End,
            Self::Bytes(left) => data(left, held),
            Self::Chunks { at, aside } => loop {
                match at {
                    At::End => return Step::End,
                    At::Data(0) => *at = At::DataEnd,
                    At::Data(left) => return data(left, held),
                    At::DataEnd if held.len() < 2 => return Step::More,
                    At::DataEnd if held.starts_with(b"\r\n") => {
                        held.advance(2);
                        *at = At::Size;
                    }
                    At::DataEnd => return Step::Wrong,
                    At::Size | At::Trailer => match line(*at, held, aside) {
                        Ok(Some(text)) => match next(*at, &text) {
                            Some(next) => *at = next,
                            None => return Step::Wrong,
                        },
                        Ok(None) => return Step::More,
                        Err(()) => return Step::Wrong,
                    },
                }
            },
        }
    }
}

// === helpers ===

fn data(left: &mut u64, held: &mut BytesMut) -> Step {
    if held.is_empty() {
        return Step::More;
    }
    let take = usize::try_from(*left).unwrap_or(usize::MAX).min(held.len());
    *left -= take as u64;
    Step::Data(held.split_to(take).freeze())
}

/// A whole line without its end, if there is one.
fn line(at: At, held: &mut BytesMut, aside: &mut usize) -> Result<Option<BytesMut>, ()> {
    let end = held.iter().position(|b| *b == b'\n');
    let length = end.map_or(held.len(), |end| end + 1);
    let size = match at {
        At::Size => held.iter().take(SIZE_DIGITS_MAX).take_while(|b| b.is_ascii_hexdigit()).count(),
        _ => 0,
    };
    // Neither the size nor the line's end is said aside.
    let said = *aside + length.saturating_sub(size + 2);
    if said > ASIDE_BYTES_MAX {
        return Err(());
    }
    let Some(end) = end else { return Ok(None) };
    *aside = said;
    let mut text = held.split_to(end + 1);
    if !text.ends_with(b"\r\n") {
        return Err(());
    }
    text.truncate(end - 1);
    Ok(Some(text))
}

/// Where it goes on after a line; nowhere when that is none.
fn next(at: At, text: &[u8]) -> Option<At> {
    if at == At::Trailer {
        return Some(if text.is_empty() { At::End } else { At::Trailer });
    }
    let digits = text.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let (size, rest) = text.split_at_checked(digits)?;
    let extended = rest.trim_ascii_start().starts_with(b";") || rest.is_empty();
    if digits == 0 || digits > SIZE_DIGITS_MAX || !extended || rest.contains(&b'\r') {
        return None;
    }
    let size = u64::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()?;
    Some(if size == 0 { At::Trailer } else { At::Data(size) })
}
