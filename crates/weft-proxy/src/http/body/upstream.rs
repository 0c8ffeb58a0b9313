// SPDX-License-Identifier: Apache-2.0
//! An upstream's answer on its way to the client: knows when it ended, idled or broke, and gives
//! its connection back. Part of `body.rs`; buffers nothing.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::time::{Instant, Sleep};

use super::{BodyError, BodyLimits, Motion};
use crate::upstream::pool::{Answered, Lease};

#[derive(Debug)]
pub struct UpstreamBody {
    pub(super) body: Answered,
    lease: Option<Lease>,
    limits: BodyLimits,
    /// While its client sends, nobody is idle.
    request: Motion,
    timer: Option<Pin<Box<Sleep>>>,
}

// === impl UpstreamBody ===

impl UpstreamBody {
    pub(super) fn new(body: Answered, lease: Lease, limits: BodyLimits, request: Motion) -> Self {
        let mut made = Self { body, lease: Some(lease), limits, request, timer: None };
        made.settle();
        made
    }

    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                if let Some(timer) = &mut self.timer
                    && let Some(at) = self.limits.next(Instant::now())
                {
                    timer.as_mut().reset(at);
                }
                if frame.is_none() {
                    self.give_back();
                } else {
                    self.settle();
                }
                Poll::Ready(frame.map(|f| f.map_err(|e| BodyError::Upstream(e.to_string()))))
            }
            Poll::Pending => self.poll_late(cx).map(|error| Some(Err(error))),
        }
    }

    /// Ready when the next byte is overdue.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        if self.timer.is_none() {
            let Some(at) = self.limits.next(Instant::now()) else { return Poll::Pending };
            self.timer = Some(Box::pin(tokio::time::sleep_until(at)));
        }
        let Some(timer) = &mut self.timer else { return Poll::Pending };
        loop {
            ready!(timer.as_mut().poll(cx));
            let now = Instant::now();
            if let Some((_, limit)) = self.limits.deadline.filter(|(at, _)| *at <= now) {
                return Poll::Ready(BodyError::Deadline(limit));
            }
            let next = self.request.last().and_then(|moved| self.limits.next(moved));
            let Some(at) = next.filter(|at| *at > now) else {
                return Poll::Ready(BodyError::Idle(self.limits.idle));
            };
            timer.as_mut().reset(at);
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
