// SPDX-License-Identifier: Apache-2.0
//! A request's body, read off the client's connection by whoever forwards it: no task and no
//! channel lies between. Made by [`super::server`], read through `http/body.rs`.

use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use thiserror::Error;

use super::wrong::Wrong;

/// Why a request's body broke off.
#[derive(Clone, Debug, Error)]
pub enum BodyFailure {
    #[error("{0}")]
    Gone(Rc<str>),
    #[error("{0}")]
    Malformed(Wrong),
    #[error("memory is short, and the client sends nothing of it")]
    Shed,
}

/// A connection as its bodies see it. `number` is the request's: a body that outlived its request
/// must not read the next one's.
pub(super) trait Source {
    fn poll_body(
        &self,
        number: u64,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFailure>>>;
    /// Whether all was read, and what is left if that was said.
    fn left(&self, number: u64) -> (bool, Option<u64>);
    /// Nobody will read it any more.
    fn dropped(&self, number: u64);
}

/// The body.
pub struct Incoming {
    source: Option<Rc<dyn Source>>,
    number: u64,
}

impl Incoming {
    pub(super) fn empty() -> Self {
        Self { source: None, number: 0 }
    }

    pub(super) fn of(source: Rc<dyn Source>, number: u64) -> Self {
        Self { source: Some(source), number }
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = BodyFailure;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFailure>>> {
        match &self.source {
            None => Poll::Ready(None),
            Some(source) => source.poll_body(self.number, cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.source.as_ref().is_none_or(|s| s.left(self.number).0)
    }

    fn size_hint(&self) -> SizeHint {
        let left = self.source.as_ref().map_or(Some(0), |s| s.left(self.number).1);
        left.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some(source) = &self.source {
            source.dropped(self.number);
        }
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").field("number", &self.number).finish_non_exhaustive()
    }
}
