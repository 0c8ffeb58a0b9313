// SPDX-License-Identifier: Apache-2.0
//! An upstream's answer on its way to the client: knows when it ended, idled or broke, and gives
//! its connection back. Part of `body.rs`; buffers nothing.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::time::{Instant, Sleep};

use super::{BodyError, BodyLimits, LOOKS, Motion};
use crate::upstream::pool::{Answered, Lease};

#[derive(Debug)]
pub struct UpstreamBody {
    /// Goes first, too: who is given the connection may be in flight at once.
    lease: Option<Lease>,
    pub(super) body: Answered,
    limits: BodyLimits,
    /// While its client sends, nobody is idle.
    request: Motion,
    timer: Option<Pin<Box<Sleep>>>,
    /// Anything came since the last look; and the looks in a row that found nothing.
    moved: bool,
    quiet: u32,
}

// === impl UpstreamBody ===

impl UpstreamBody {
    pub(super) fn new(body: Answered, lease: Lease, limits: BodyLimits, request: Motion) -> Self {
        let (lease, timer) = (Some(lease), None);
        let mut made = Self { body, lease, limits, request, timer, moved: false, quiet: 0 };
        made.settle();
        made
    }

    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                self.moved = true;
                if frame.is_none() {
                    self.give_back();
                } else {
                    self.settle();
                }
                Poll::Ready(frame.map(|f| f.map_err(|e| BodyError::Upstream(e.why, e.by))))
            }
            Poll::Pending => self.poll_late(cx).map(|error| Some(Err(error))),
        }
    }

    /// Ready when the next byte is overdue.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        if self.timer.is_none() {
            let Some(at) = self.limits.look(Instant::now()) else { return Poll::Pending };
            // Silence begins here.
            self.moved = false;
            self.timer = Some(Box::pin(tokio::time::sleep_until(at)));
        }
        let Some(timer) = &mut self.timer else { return Poll::Pending };
        loop {
            ready!(timer.as_mut().poll(cx));
            let now = Instant::now();
            if let Some((_, limit)) = self.limits.deadline.filter(|(at, _)| *at <= now) {
                return Poll::Ready(BodyError::Deadline(limit));
            }
            let moved = std::mem::take(&mut self.moved) | self.request.any();
            self.quiet = if moved { 0 } else { self.quiet + 1 };
            match self.limits.look(now) {
                Some(at) if self.quiet < LOOKS => timer.as_mut().reset(at),
                _ => return Poll::Ready(BodyError::Idle(self.limits.idle)),
            }
        }
    }

    /// Gives the connection back as soon as nothing more will come.
    fn settle(&mut self) {
        if self.body.is_end_stream() {
            self.give_back();
        }
    }

    fn give_back(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.finished(&mut self.body);
        }
    }
}
