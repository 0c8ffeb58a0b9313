// SPDX-License-Identifier: Apache-2.0
//! The copy of a request body for a mirror: fed by the body that the client sends, read by the
//! mirror's own attempt. Bounded; the client's body never waits for it.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use weft_base::limits::RETRY_BODY_BYTES_MAX;

use super::body::{BodyError, SMALL_BYTES};

/// What arrived of a request's body and its copy has not sent yet.
#[derive(Debug, Default)]
pub struct Copied {
    frames: VecDeque<Frame<Bytes>>,
    /// Small pieces behind them.
    tail: BytesMut,
    bytes: usize,
    pub hint: SizeHint,
    end: Option<Result<(), BodyError>>,
    waker: Option<Waker>,
}

// === impl Copied ===

impl Copied {
    /// `hint` is what is known of the body's size before any of it arrived.
    pub fn new(hint: SizeHint) -> Self {
        Self { hint, ..Self::default() }
    }

    pub fn push(&mut self, frame: &Frame<Bytes>) {
        if self.end.is_some() {
            return;
        }
        if let Some(data) = frame.data_ref() {
            self.bytes += data.len();
            if data.len() < SMALL_BYTES {
                self.tail.extend_from_slice(data);
            } else {
                self.seal();
                self.frames.push_back(Frame::data(data.clone()));
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            self.seal();
            self.frames.push_back(Frame::trailers(trailers.clone()));
        }
        if self.bytes > RETRY_BODY_BYTES_MAX {
            (self.frames, self.tail) = (VecDeque::new(), BytesMut::new());
            return self.close(Err(BodyError::GivenUp));
        }
        self.wake();
    }

    pub fn close(&mut self, end: Result<(), BodyError>) {
        self.end.get_or_insert(end);
        self.wake();
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.frames.push_back(Frame::data(self.tail.split().freeze()));
        }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.frames.is_empty() {
            self.seal();
        }
        if let Some(frame) = self.frames.pop_front() {
            let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
            self.bytes = self.bytes.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if let Some(left) = self.hint.exact() {
                self.hint.set_exact(left.saturating_sub(bytes));
            }
            return Poll::Ready(Some(Ok(frame)));
        }
        match &self.end {
            Some(Ok(())) => Poll::Ready(None),
            Some(Err(error)) => Poll::Ready(Some(Err(error.clone()))),
            None => {
                self.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Whether all of it was handed on.
    pub fn is_ended(&self) -> bool {
        self.frames.is_empty() && self.tail.is_empty() && matches!(self.end, Some(Ok(())))
    }
}
