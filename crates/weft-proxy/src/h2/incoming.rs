// SPDX-License-Identifier: Apache-2.0
//! The body of a message as its stream brings it. A window is given back when its bytes are taken,
//! so a peer sends as fast as somebody reads. Called by the phases through `http/serve.rs`, and by
//! `upstream/pool`.

use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use http::header::{CONTENT_LENGTH, HeaderMap};
use http_body::{Body, Frame, SizeHint};

use super::fields;
use crate::http::body::SMALL_BYTES;
use crate::http::interim::Interim;

/// A request's or an answer's body.
#[derive(Debug)]
pub struct Incoming {
    stream: Option<RecvStream>,
    /// What was taken off it for a reader that is slow.
    kept: Option<Box<Kept>>,
    /// What is left of a length that was announced; h2 sees to it that it is right.
    left: Option<u64>,
    /// Its request's interim answers.
    interim: Option<Rc<Interim>>,
    /// The client waits for 100 before it sends it.
    held: bool,
}

/// What a stream brought that nobody has read yet; no more than its window, which is given back
/// when it is read. Small frames are one piece.
#[derive(Debug, Default)]
struct Kept {
    pieces: VecDeque<Bytes>,
    /// Behind them.
    tail: BytesMut,
}

// === impl Kept ===

impl Kept {
    fn push(&mut self, data: Bytes) {
        if data.len() < SMALL_BYTES {
            self.tail.extend_from_slice(&data);
        } else {
            self.seal();
            self.pieces.push_back(data);
        }
    }

    fn pop(&mut self) -> Option<Bytes> {
        if self.pieces.is_empty() {
            self.seal();
        }
        self.pieces.pop_front()
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push_back(self.tail.split().freeze());
        }
    }

    fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.tail.is_empty()
    }
}

// === impl Incoming ===

impl Incoming {
    pub(super) fn new(stream: RecvStream, length: Option<u64>) -> Self {
        Self { stream: Some(stream), kept: None, left: length, interim: None, held: false }
    }

    pub(super) fn empty() -> Self {
        Self { stream: None, kept: None, left: Some(0), interim: None, held: false }
    }

    /// Takes over what has come while nobody reads. The h2 crate keeps each frame by itself, and
    /// ends a connection with all its streams over too many small ones of one of them.
    pub(super) fn absorb(&mut self, cx: &mut Context<'_>) {
        let Some(stream) = &mut self.stream else { return };
        // An end or an error is found again behind what is kept.
        while let Poll::Ready(Some(Ok(data))) = stream.poll_data(cx) {
            self.kept.get_or_insert_default().push(data);
        }
    }

    /// What is next of that.
    fn kept(&mut self) -> Option<Bytes> {
        let piece = self.kept.as_mut()?.pop();
        if piece.is_none() {
            self.kept = None;
        }
        piece
    }

    pub(super) fn with_interim(mut self, interim: Rc<Interim>, held: bool) -> Self {
        (self.interim, self.held) = (Some(interim), held);
        self
    }

    /// Where answers before the answer go.
    pub fn interim(&self) -> Option<Rc<Interim>> {
        self.interim.clone()
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let me = self.get_mut();
        let kept = me.kept();
        let Some(stream) = &mut me.stream else { return Poll::Ready(None) };
        let polled = match kept {
            Some(piece) => Poll::Ready(Some(Ok(piece))),
            None => stream.poll_data(cx),
        };
        if let (true, Some(interim)) = (std::mem::take(&mut me.held), &me.interim)
            && polled.is_pending()
        {
            interim.want();
        }
        match ready!(polled) {
            Some(Ok(data)) => {
                let bytes = data.len();
                // It fails for bytes that were never received only.
                let _ = stream.flow_control().release_capacity(bytes);
                if let Some(left) = &mut me.left {
                    *left = left.saturating_sub(bytes as u64);
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Err(error)) => {
                me.stream = None;
                Poll::Ready(Some(Err(error)))
            }
            None => {
                let trailers = ready!(stream.poll_trailers(cx)).transpose();
                me.stream = None;
                let trimmed = |mut trailers: HeaderMap| {
                    fields::trim(&mut trailers);
                    Frame::trailers(trailers)
                };
                Poll::Ready(trailers.map(|t| t.map(trimmed)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.kept.as_ref().is_none_or(|kept| kept.is_empty())
            && self.stream.as_ref().is_none_or(RecvStream::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match self.left {
            _ if self.is_end_stream() => SizeHint::with_exact(0),
            Some(left) => SizeHint::with_exact(left),
            None => SizeHint::new(),
        }
    }
}

/// The length that a head announces; h2 has judged it.
pub(super) fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
