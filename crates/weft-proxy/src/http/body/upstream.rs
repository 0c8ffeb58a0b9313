// SPDX-License-Identifier: Apache-2.0
//! An upstream's answer on its way to the client: knows when it ended, idled or broke, and gives
//! its connection back. Part of `body.rs`; buffers nothing.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::time::{Instant, Sleep};

use super::{BodyError, BodyLimits};
use crate::upstream::pool::{Answered, Lease};

#[derive(Debug)]
pub struct UpstreamBody {
    pub(super) body: Answered,
    pub(super) lease: Option<Lease>,
    pub(super) limits: BodyLimits,
    pub(super) timer: Option<Pin<Box<Sleep>>>,
}

// === impl UpstreamBody ===

impl UpstreamBody {
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                if self.timer.is_some()
                    && let Some((at, _)) = self.expires()
                    && let Some(timer) = &mut self.timer
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
            Poll::Pending => {
                let Some((at, error)) = self.expires() else { return Poll::Pending };
                let timer =
                    self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
                ready!(timer.as_mut().poll(cx));
                Poll::Ready(Some(Err(error)))
            }
        }
    }

    /// When the next byte is due, and what it means when it does not come.
    fn expires(&self) -> Option<(Instant, BodyError)> {
        let idle = self.limits.idle;
        let idle_at = (!idle.is_zero()).then(|| (Instant::now() + idle, BodyError::Idle(idle)));
        let end = self.limits.deadline.map(|(at, limit)| (at, BodyError::Deadline(limit)));
        match (idle_at, end) {
            (Some(idle), Some(end)) => Some(if end.0 < idle.0 { end } else { idle }),
            (idle, end) => idle.or(end),
        }
    }

    /// Gives the connection back as soon as nothing more will come.
    pub(super) fn settle(&mut self) {
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
