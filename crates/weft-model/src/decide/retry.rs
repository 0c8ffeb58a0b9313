// SPDX-License-Identifier: Apache-2.0
//! Whether a failed attempt may be made again. Safe by default: what may have had an effect is
//! not repeated unless its method (RFC 9110 §9.2.2) or its owner says that it may.

use weft_base::limits::ATTEMPTS_MAX;

use crate::Retry;

/// How an attempt ended without a response that goes to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection was established, the request was refused unprocessed (HTTP/2
    /// REFUSED_STREAM, GOAWAY beyond it), or the peer's sidecar says that it did not forward it.
    NotSent,
    /// The connection ended before a response head; the request may have been processed.
    Reset,
    /// The attempt's own time ran out.
    AttemptTimeout,
    /// A response with this HTTP status.
    Status(u16),
    /// A gRPC response with this `grpc-status`, known before any message was passed on.
    Grpc(u16),
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Retry,
    /// Pass the failure on, and why.
    Stop(StopReason),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// This kind of failure is not to be retried.
    NotRetriable,
    /// The request may have had an effect, and nobody declared that repeating it is safe.
    NotIdempotent,
    /// All attempts were used.
    Attempts,
    /// Its body is gone: larger than what is kept, or still streaming.
    BodyGone,
}

/// Whether a method promises that repeating it changes nothing (RFC 9110 §9.2.2).
pub fn is_idempotent(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE")
}

/// Judges attempt number `attempt` (1 is the first). The caller asks the budget afterwards.
pub fn retry_verdict(
    retry: &Retry,
    method: &str,
    failure: Failure,
    attempt: u32,
    body_replayable: bool,
) -> Verdict {
    let wanted = match failure {
        Failure::NotSent => true,
        // Its time-out resets an attempt, too (Envoy's words have none for it).
        Failure::Reset | Failure::AttemptTimeout => retry.on_reset,
        Failure::Status(code) => retry.statuses.contains(&code),
        Failure::Grpc(code) => retry.grpc_statuses.contains(&code),
    };
    let safe = failure == Failure::NotSent || retry.declared_idempotent || is_idempotent(method);
    match () {
        () if !wanted => Verdict::Stop(StopReason::NotRetriable),
        () if !safe => Verdict::Stop(StopReason::NotIdempotent),
        () if attempt > retry.attempts.min(ATTEMPTS_MAX - 1) => Verdict::Stop(StopReason::Attempts),
        () if !body_replayable => Verdict::Stop(StopReason::BodyGone),
        () => Verdict::Retry,
    }
}

impl std::fmt::Display for StopReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotRetriable => "this failure is not retried",
            Self::NotIdempotent => {
                "the request may have had an effect and is not declared idempotent, so it was not \
                 sent again"
            }
            Self::Attempts => "all attempts were used",
            Self::BodyGone => "its body could not be sent again",
        })
    }
}
