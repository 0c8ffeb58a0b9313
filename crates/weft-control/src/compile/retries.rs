// SPDX-License-Identifier: Apache-2.0
//! Retries as users write them, and who may declare a call idempotent.
//!
//! weft's rule: what may have had an effect is not sent again, unless its method is idempotent
//! (RFC 9110 §9.2.2) or its owner declares it. The declaration is the owner's own word about the
//! calls, apart from how often to try: annotation `weft.dev/idempotent: "true"` on the route
//! object for all its rules, or `weft.dev/idempotent-routes: "reserve,get"` for rules by name.
//! Without `retries` weft's own default stays (two more attempts where that is safe); Istio's
//! documented default would repeat calls after a 503 whatever their method.

use weft_base::issue::{FieldPath, Issues};
use weft_kinds::views::Meta;
use weft_kinds::views::istio::Retries;
use weft_model::Retry;

use super::duration::parse_ms;

/// `"true"`: every call that this route takes may be repeated.
pub const IDEMPOTENT_ANNOTATION: &str = "weft.dev/idempotent";
/// Names of this route's rules whose calls may be repeated, with commas between.
pub const IDEMPOTENT_ROUTES_ANNOTATION: &str = "weft.dev/idempotent-routes";

/// Whether the owner declares the calls of a rule idempotent.
pub(super) fn declared(meta: &Meta, rule: &str) -> bool {
    let list = meta.annotation(IDEMPOTENT_ROUTES_ANNOTATION).unwrap_or("");
    meta.annotation(IDEMPOTENT_ANNOTATION) == Some("true")
        || (!rule.is_empty() && list.split(',').any(|name| name.trim() == rule))
}

/// Istio's `retries`.
pub(super) fn read(
    retries: Option<&Retries>,
    idempotent: bool,
    path: &FieldPath,
    issues: &mut Issues,
) -> Retry {
    let default = Retry { declared_idempotent: idempotent, ..Retry::default() };
    let Some(retries) = retries else { return default };
    let ms = |text: &Option<std::sync::Arc<str>>| text.as_deref().and_then(parse_ms);
    let mut retry = Retry {
        attempts: retries.attempts.unwrap_or(default.attempts),
        per_try_timeout_ms: ms(&retries.per_try_timeout).filter(|ms| *ms > 0),
        backoff_ms: ms(&retries.backoff).unwrap_or(default.backoff_ms),
        tried_too: retries.retry_ignore_previous_hosts == Some(false),
        ..default
    };
    match &retries.retry_on {
        None => {
            // Istio's documented default, as far as repeating is safe.
            retry.statuses.push(503);
            retry.grpc_statuses.extend([1, 14]);
        }
        Some(words) => {
            retry.on_reset = false;
            for word in words.split(',').map(str::trim).filter(|w| !w.is_empty()) {
                if !apply(word, &mut retry) {
                    issues.warning(
                        path.field("retryOn"),
                        format!("{word:?} is not known to weft; the other conditions apply"),
                    );
                }
            }
        }
    }
    retry.statuses.sort_unstable();
    retry.statuses.dedup();
    retry.grpc_statuses.sort_unstable();
    retry.grpc_statuses.dedup();
    retry
}

/// One condition of `retryOn` (Envoy's words); whether it is known.
fn apply(word: &str, retry: &mut Retry) -> bool {
    match word {
        "5xx" => {
            retry.statuses.extend(500..600);
            retry.on_reset = true;
        }
        // A broken connection is one, too (Envoy, `wouldRetryFromReset`).
        "gateway-error" => {
            retry.statuses.extend([502, 503, 504]);
            retry.on_reset = true;
        }
        "retriable-4xx" => retry.statuses.push(409),
        "reset" | "reset-before-request" => retry.on_reset = true,
        // Connections never established and refused streams are always tried elsewhere.
        "connect-failure" | "refused-stream" | "retriable-status-codes" => {}
        "cancelled" => retry.grpc_statuses.push(1),
        "deadline-exceeded" => retry.grpc_statuses.push(4),
        "resource-exhausted" => retry.grpc_statuses.push(8),
        "internal" => retry.grpc_statuses.push(13),
        "unavailable" => retry.grpc_statuses.push(14),
        code => match code.parse::<u16>() {
            Ok(code) if (100..600).contains(&code) => retry.statuses.push(code),
            _ => return false,
        },
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(retry_on: Option<&str>) -> (Retry, Issues) {
        let retries = Retries { retry_on: retry_on.map(Into::into), ..Retries::default() };
        let mut issues = Issues::default();
        let retry = read(Some(&retries), false, &FieldPath::new("retries"), &mut issues);
        (retry, issues)
    }

    #[test]
    fn conditions_are_read_as_envoy_words() {
        let (retry, issues) = check(Some("connect-failure,reset, unavailable,gateway-error,409"));
        assert!(issues.is_empty() && retry.on_reset && !retry.declared_idempotent);
        assert_eq!(retry.statuses, [409, 502, 503, 504]);
        assert_eq!(retry.grpc_statuses, [14]);
        assert!(check(Some("gateway-error")).0.on_reset);
        assert!(!check(Some("connect-failure,503")).0.on_reset);
        let (retry, issues) = check(Some("gateway-errors"));
        assert!(!retry.on_reset && retry.statuses.is_empty());
        assert!(issues.to_string().contains("\"gateway-errors\" is not known"), "{issues}");
    }

    #[test]
    fn nothing_written_keeps_wefts_safe_default() {
        let mut issues = Issues::default();
        assert_eq!(read(None, false, &FieldPath::root(), &mut issues), Retry::default());
        assert_eq!(check(None).0.statuses, [503]);
    }

    #[test]
    fn only_an_annotation_declares() {
        let meta = |key: &str, value: &str| Meta {
            annotations: [(key.into(), value.into())].into(),
            ..Meta::default()
        };
        assert!(declared(&meta(IDEMPOTENT_ANNOTATION, "true"), ""));
        assert!(!declared(&meta(IDEMPOTENT_ANNOTATION, "yes"), ""));
        assert!(declared(&meta(IDEMPOTENT_ROUTES_ANNOTATION, "reserve, get"), "get"));
        assert!(!declared(&meta(IDEMPOTENT_ROUTES_ANNOTATION, "reserve,"), ""));
    }
}
