// SPDX-License-Identifier: Apache-2.0
//! Attempts whose upstream takes nothing of the request's body, or whose client sends nothing of
//! it: what came of it is held meanwhile, up to a window's worth. Where memory is short those that
//! have waited longest are given up; never one whose body came whole, which waits for its answer.
//! Called by the attempt; touches no body.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use super::body::{BodyError, HeldUp, Replay};
use super::reply::{Cause, Refusal};
use crate::overload::is_watched;
use crate::overload::stuck::Stuck;

/// What was sent.
///
/// # Errors
/// Why it cannot be, or not any longer.
pub(super) async fn unless_shed<T>(
    body: &Replay,
    sending: impl Future<Output = Result<T, String>>,
) -> Result<T, Refusal> {
    let (mut sending, mut stuck, mut moved) = (pin!(sending), Stuck::default(), None);
    poll_fn(|cx| {
        if let Poll::Ready(sent) = sending.as_mut().poll(cx) {
            return Poll::Ready(sent.map_err(|why| Refusal::new(Cause::BadRequest, why)));
        }
        if body.is_empty() || !is_watched() {
            return Poll::Pending;
        }
        let Some(held_up) = body.held_up() else {
            stuck.moved();
            return Poll::Pending;
        };
        let last = body.moved();
        if std::mem::replace(&mut moved, last) != last {
            stuck.moved();
        }
        stuck.poll(cx).map(|()| Err(Refusal::new(Cause::Shed, held_up.sentence())))
    })
    .await
}

// === impl HeldUp ===

impl HeldUp {
    fn sentence(self) -> &'static str {
        match self {
            Self::Client => "the client sends nothing of the body",
            Self::Upstream { begun: false } => "the upstream takes nothing of the body",
            Self::Upstream { begun: true } => {
                "the upstream has some of the body, and takes nothing more of it"
            }
        }
    }
}

// === impl BodyError ===

impl BodyError {
    /// Of a request that its client, or what came of it, ended.
    pub(super) fn cause(&self) -> Cause {
        match self {
            Self::TooLarge(_) => Cause::BodyTooLarge,
            Self::Malformed(_) => Cause::BadRequest,
            Self::Shed => Cause::Shed,
            _ => Cause::ClientGone,
        }
    }
}

#[cfg(test)]
mod tests;
