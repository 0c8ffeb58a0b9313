// SPDX-License-Identifier: Apache-2.0
//! What the store of answers sees of an answer's body while it passes. Part of `body.rs`; stores
//! nothing itself.

use std::task::Poll;

use bytes::Bytes;
use http_body::{Body, Frame};

use super::{BodyError, ReplyBody, ReplyInner};
use crate::http::cache::Fill;

// === impl ReplyBody ===

impl ReplyBody {
    /// What passes goes there, too.
    pub fn copy_to(&mut self, fill: Fill) {
        self.fill = Some(Box::new(fill));
    }

    /// It is asked for what has not come yet.
    pub(super) fn awaits_origin<T>(&self) -> Poll<T> {
        self.fill.iter().for_each(|fill| fill.awaits_origin());
        Poll::Pending
    }

    pub(super) fn fill(&mut self, frame: &Option<Result<Frame<Bytes>, BodyError>>) {
        let Some(fill) = &mut self.fill else { return };
        let ended = match &self.inner {
            ReplyInner::Upstream(upstream) => upstream.body.is_end_stream(),
            ReplyInner::Full(bytes) => bytes.is_empty(),
            ReplyInner::Empty | ReplyInner::Left(_) | ReplyInner::Bequeathed(_) => true,
        };
        fill.note(frame.as_ref(), ended);
    }
}
