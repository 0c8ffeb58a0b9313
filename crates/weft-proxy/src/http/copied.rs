// SPDX-License-Identifier: Apache-2.0
//! The copy of a request body for a mirror: fed by the body that the client sends, read by the
//! mirror's own attempt. The client's body never waits for it: what a mirror that connects, or is
//! slow, has not taken yet is held, so much of one copy and so much of all of a thread's.

use std::cell::Cell;
use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use weft_base::limits::{MIRROR_BYTES_MAX, MIRRORS_BYTES_MAX, RETRY_BODY_BYTES_MAX};

use super::body::{BodyError, SMALL_BYTES};
use crate::overload;

thread_local! {
    /// Bytes that the copies of this thread hold.
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// What arrived of a request's body and its copy has not sent yet.
#[derive(Debug)]
pub struct Copied {
    frames: VecDeque<Frame<Bytes>>,
    /// Small pieces behind them.
    tail: BytesMut,
    bytes: usize,
    pub hint: SizeHint,
    end: Option<Result<(), BodyError>>,
    /// It fell behind by more than may be held, and broke.
    behind: bool,
    waker: Option<Waker>,
}

// === impl Copied ===

impl Copied {
    /// `hint` is what is known of the body's size before any of it arrived.
    pub fn new(hint: SizeHint) -> Self {
        Self {
            frames: VecDeque::new(),
            tail: BytesMut::new(),
            bytes: 0,
            hint,
            end: None,
            behind: false,
            waker: None,
        }
    }

    pub fn push(&mut self, frame: &Frame<Bytes>) {
        if self.end.is_some() {
            return;
        }
        if let Some(data) = frame.data_ref() {
            self.hold(data.len());
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
        if self.is_too_much() {
            (self.frames, self.tail) = (VecDeque::new(), BytesMut::new());
            self.let_go(self.bytes);
            self.behind = true;
            return self.close(Err(BodyError::GivenUp));
        }
        self.wake();
    }

    fn is_too_much(&self) -> bool {
        let most = if overload::is_short() { RETRY_BODY_BYTES_MAX } else { MIRROR_BYTES_MAX };
        // Who holds little breaks for nobody else.
        let large = self.bytes > RETRY_BODY_BYTES_MAX;
        self.bytes > most || (large && HELD.get() > MIRRORS_BYTES_MAX)
    }

    fn hold(&mut self, bytes: usize) {
        self.bytes += bytes;
        HELD.set(HELD.get() + bytes);
    }

    fn let_go(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
        // The thread may be ending.
        let _ = HELD.try_with(|held| held.set(held.get().saturating_sub(bytes)));
    }

    /// Whether the mirror was too slow for it.
    pub fn fell_behind(&self) -> bool {
        self.behind
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
            self.let_go(frame.data_ref().map_or(0, Bytes::len));
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

impl Drop for Copied {
    fn drop(&mut self) {
        self.let_go(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_copy_holds_so_much_and_all_together_so_much() {
        let piece = Frame::data(Bytes::from(vec![0; 64 * 1024]));
        let filled = |pieces: usize| {
            let mut copy = Copied::new(SizeHint::new());
            (0..pieces).for_each(|_| copy.push(&piece));
            copy
        };
        let whole = MIRROR_BYTES_MAX / (64 * 1024);
        assert!(!filled(whole).fell_behind() && filled(whole + 1).fell_behind());
        assert_eq!(HELD.get(), 0, "what was dropped is held no more");
        let all: Vec<Copied> = (0..16).map(|_| filled(whole)).collect();
        assert!(all.iter().all(|copy| !copy.fell_behind()));
        assert!(!filled(1).fell_behind(), "a little is held of everybody");
        assert!(filled(2).fell_behind(), "there is no room for more");
        drop(all);
        assert_eq!(HELD.get(), 0);
        // What is taken makes room.
        let mut copy = filled(whole);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(copy.poll_frame(&mut cx).is_ready());
        copy.push(&piece);
        assert!(!copy.fell_behind());
    }
}
