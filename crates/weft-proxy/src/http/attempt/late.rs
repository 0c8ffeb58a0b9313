// SPDX-License-Identifier: Apache-2.0
//! Requests that must have come whole in a time of their own, where a rule says so: who sends a
//! body drop by drop is answered, unless the answer has begun before. Part of `attempt.rs`.

use std::pin::pin;

use http::Response;
use tokio::time::timeout_at;

use super::{Call, forward, limit};
use crate::http::body::ReplyBody;
use crate::http::reply::{Cause, Refusal};
use crate::observe::record::Record;

/// Sends a request as [`forward`] does, whose body must be whole in time.
///
/// # Errors
/// As [`forward`], and that it is not.
pub async fn whole(call: &Call<'_>, record: &mut Record) -> Result<Response<ReplyBody>, Refusal> {
    let allowed = limit(call.timeouts.receive_ms);
    let at = allowed.and_then(|allowed| Some((record.started.checked_add(allowed)?, allowed)));
    let mut sending = pin!(forward(call, record));
    let Some((end, allowed)) = at else { return sending.await };
    match timeout_at(end, sending.as_mut()).await {
        Ok(answered) => answered,
        Err(_) if call.body.is_whole() => sending.await,
        Err(_) => {
            let detail = format!("its body was not complete within {} ms", allowed.as_millis());
            Err(Refusal::new(Cause::RequestLate, detail))
        }
    }
}
