// SPDX-License-Identifier: Apache-2.0
//! Whether a request may go to its backend now, where nobody configured a limit. Part of
//! `attempt.rs`, before an endpoint is chosen: what waited must not go to one that left meanwhile.

use std::time::Duration;

use http::Method;
use http::header::UPGRADE;
use tokio::time::Instant;
use weft_model::decide::Failure;

use super::{Call, Ended};
use crate::http::present;
use crate::upstream::gate::Permit;

/// What an attempt holds while it is judged.
#[derive(Debug, Default)]
pub(super) struct Gated(Option<Permit>);

/// Takes part in the backend's gate, and waits there if need be, until the request's `deadline` at
/// most. Says when the attempt began, too, which is later after a wait.
///
/// # Errors
/// It waited until its deadline: why there was no room.
pub(super) async fn enter(
    call: &Call<'_>,
    began: Instant,
    deadline: Option<(Instant, Duration)>,
) -> Result<(Gated, Instant), String> {
    let Some(gate) = call.backend.borrow().gate.clone() else { return Ok((Gated(None), began)) };
    let tunnel = call.head.method == Method::CONNECT || present::has(&call.head.headers, &UPGRADE);
    if tunnel || !call.body.is_whole() {
        return Ok((Gated(None), began));
    }
    let permit = match gate.arrive(began) {
        Some(permit) => permit,
        None => {
            let waiting = Box::pin(gate.wait(began, deadline.map(|(at, _)| at)));
            waiting.await.ok_or_else(|| {
                let ms = deadline.map_or(0, |(_, limit)| limit.as_millis());
                format!("the backend's answers become slow; there was no room within {ms} ms")
            })?
        }
    };
    let began = permit.began;
    Ok((Gated(Some(permit)), began))
}

// === impl Gated ===

impl Gated {
    /// Tells the gate how it went; what is dropped instead was given up.
    pub(super) fn over(self, ended: &Ended, now: Instant) {
        let Some(permit) = self.0 else { return };
        match ended {
            Ended::Answer(..) => permit.answered(now),
            // It is given up, and the backend has it still.
            Ended::Failed(Failure::AttemptTimeout, ..) => drop(permit),
            Ended::Failed(..) | Ended::Over(_) => permit.failed(),
        }
    }
}
