// SPDX-License-Identifier: Apache-2.0
//! The end of HTTP on a connection: an answer without a body, whose record is written when what
//! goes on after it has ended. Part of `body.rs`.

use tokio::sync::oneshot;

use super::{ReplyBody, ReplyInner};
use crate::observe::record::Record;
use crate::sys::pooled::Pooled;
use crate::upstream::pool::Lease;

/// The record of an answer that opened a tunnel, for whoever serves that. Nothing comes when the
/// request was given up before its answer.
pub type Heir = oneshot::Receiver<Pooled<Record>>;

// === impl ReplyBody ===

impl ReplyBody {
    /// The end of HTTP on an upstream's connection.
    pub fn left(lease: Lease) -> Self {
        Self { inner: ReplyInner::Left(lease), record: None, fill: None, encoder: None }
    }

    /// No body, and a record that somebody else writes.
    pub fn bequeathed() -> (Self, Heir) {
        let (to, heir) = oneshot::channel();
        let inner = ReplyInner::Bequeathed(to);
        (Self { inner, record: None, fill: None, encoder: None }, heir)
    }

    /// What keeps a connection counted that has left HTTP, and its record's heir; once.
    pub fn take_left(&mut self) -> Option<(Lease, Heir)> {
        match std::mem::replace(&mut self.inner, ReplyInner::Empty) {
            ReplyInner::Left(lease) => {
                let (body, heir) = Self::bequeathed();
                *self = body;
                Some((lease, heir))
            }
            other => {
                self.inner = other;
                None
            }
        }
    }

    /// Attaches the record that is written when the body ends, or when the tunnel does.
    pub fn recorded(mut self, record: Pooled<Record>) -> Self {
        match std::mem::replace(&mut self.inner, ReplyInner::Empty) {
            // Who served the tunnel may be gone: then it ends with this.
            ReplyInner::Bequeathed(to) => self.record = to.send(record).err(),
            inner => (self.inner, self.record) = (inner, Some(record)),
        }
        self
    }
}
