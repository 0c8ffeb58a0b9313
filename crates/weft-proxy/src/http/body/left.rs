// SPDX-License-Identifier: Apache-2.0
//! The end of HTTP on an upstream's connection: an answer without a body, which holds what keeps
//! the connection counted. Part of `body.rs`.

use super::{ReplyBody, ReplyInner};
use crate::upstream::pool::Lease;

// === impl ReplyBody ===

impl ReplyBody {
    /// The end of HTTP on an upstream's connection.
    pub fn left(lease: Lease) -> Self {
        Self { inner: ReplyInner::Left(lease), record: None, fill: None, encoder: None }
    }

    /// What keeps a connection counted that has left HTTP; once.
    pub fn take_left(&mut self) -> Option<Lease> {
        match std::mem::replace(&mut self.inner, ReplyInner::Empty) {
            ReplyInner::Left(lease) => Some(lease),
            other => {
                self.inner = other;
                None
            }
        }
    }
}
