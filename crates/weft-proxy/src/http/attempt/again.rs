// SPDX-License-Identifier: Apache-2.0
//! Whether a request is sent again, and when. Part of `attempt.rs`; sends nothing.

use std::rc::Rc;
use std::time::Duration;

use http::Response;
use tokio::time::Instant;
use weft_model::decide::{Failure, Verdict, retry_verdict};

use super::Call;
use crate::upstream::ask::pause_ms;
use crate::upstream::breaker::Taken;
use crate::upstream::budget::Granted;
use crate::upstream::pick::LocalEndpoint;
use crate::upstream::pool::Answered;

/// Longest wait between two attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Longest pause that an upstream asks for and a request waits through.
const PAUSE_MS_MAX: u64 = 5_000;

/// Whether to send it again; otherwise why not.
pub(super) fn again(
    call: &Call<'_>,
    failure: Failure,
    attempt: u32,
) -> Result<(Option<Taken>, Granted), String> {
    let method = call.head.method.as_str();
    let replayable = call.body.can_replay();
    match retry_verdict(call.retry, method, failure, attempt, replayable) {
        Verdict::Stop(why) => return Err(why.to_string()),
        Verdict::Retry => {}
    }
    let backend = call.backend.borrow();
    let policy = &backend.entry.backend.policy;
    let counted = backend.breaker.retry(&policy.limits).and_then(|counted| {
        let room = backend.entry.budget.take(&policy.retry_budget, call.worker.clock.now());
        let used_up = || "the retry budget is used up, so it was not sent again".to_owned();
        room.map(|granted| (counted, granted)).ok_or_else(used_up)
    });
    counted.inspect_err(|_| call.worker.metrics.cells.retries_denied.add(1))
}

/// When the next attempt begins: at once when nothing was sent and another endpoint is there, at
/// the end of the pause that the upstream asked for when no other one is, else after a back-off.
///
/// # Errors
/// Why waiting is in vain.
pub(super) fn wait(
    call: &Call<'_>,
    failure: Failure,
    answer: Option<&Response<Answered>>,
    tried: &[Rc<LocalEndpoint>],
    deadline: Option<(Instant, Duration)>,
) -> Result<Option<Instant>, String> {
    let others = call.backend.borrow_mut().has_other(tried, call.worker.clock.now());
    if failure == Failure::NotSent && others {
        return Ok(None);
    }
    let pause = answer.and_then(|r| pause_ms(r, &call.worker.clock)).filter(|_| !others);
    if let Some(ms) = pause {
        let at = Instant::now() + Duration::from_millis(ms);
        if ms > PAUSE_MS_MAX || deadline.is_some_and(|(end, _)| end <= at) {
            return Err(format!("it asks for a pause of {ms} ms, and there is no other instance"));
        }
        return Ok(Some(at));
    }
    let doubled = 1u64 << tried.len().saturating_sub(1).min(10);
    let base = Duration::from_millis(call.retry.backoff_ms.max(1).saturating_mul(doubled));
    let wait = call.worker.rng.borrow_mut().jitter(base / 2, 100).min(BACKOFF_MAX);
    let at = Instant::now() + wait;
    Ok(Some(deadline.map_or(at, |(end, _)| end.min(at))))
}
