// SPDX-License-Identifier: Apache-2.0
//! Who is ejected, for what and for how long. Pure; the counts live with the proxy.

use std::fmt;

use crate::{Outlier, OutlierWindow};

/// How a request to an endpoint ended, as far as the endpoint is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    /// A 5xx, or a gRPC status that is the server's fault.
    Failure,
    /// 502, 503 or 504: what it stands for could not be reached.
    Gateway,
    /// No answer: no connection, a reset, a time-out.
    Local,
}

/// Failures in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streaks {
    pub failures: u32,
    pub gateway: u32,
    pub local: u32,
}

/// What an endpoint saw in one window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub requests: u64,
    pub failures: u64,
}

/// Why an endpoint is ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ejection {
    Failures(u32),
    Gateway(u32),
    Local(u32),
    /// Basis points: its own, and what the others' demand.
    SuccessRate {
        own: u32,
        least: u32,
    },
    FailureShare {
        own: u32,
    },
}

/// What an HTTP status says about who sent it.
pub fn outcome_of_status(policy: &Outlier, status: u16) -> Outcome {
    let listed = policy.statuses.contains(&status);
    match status {
        502..=504 if policy.statuses.is_empty() || listed => Outcome::Gateway,
        500..=599 if policy.statuses.is_empty() => Outcome::Failure,
        _ if listed => Outcome::Failure,
        _ => Outcome::Success,
    }
}

/// What a gRPC status says: UNKNOWN, INTERNAL, UNAVAILABLE and DATA_LOSS are the server's fault.
pub fn outcome_of_grpc(status: u16) -> Outcome {
    match status {
        14 => Outcome::Gateway,
        2 | 13 | 15 => Outcome::Failure,
        _ => Outcome::Success,
    }
}

/// Whether failures in a row are enough.
pub fn judge_streaks(policy: &Outlier, streaks: Streaks) -> Option<Ejection> {
    let reached = |limit: u32, n: u32| limit > 0 && n >= limit;
    if reached(policy.consecutive_failures, streaks.failures) {
        return Some(Ejection::Failures(streaks.failures));
    }
    if reached(policy.consecutive_gateway, streaks.gateway) {
        return Some(Ejection::Gateway(streaks.gateway));
    }
    let local = policy.consecutive_local.unwrap_or(0);
    reached(local, streaks.local).then_some(Ejection::Local(streaks.local))
}

/// Who is to be ejected for what a window saw, by index, the worst first.
pub fn judge_window(window: &OutlierWindow, seen: &[Seen]) -> Vec<(usize, Ejection)> {
    let mut out: Vec<(usize, Ejection)> = Vec::new();
    if let Some(rule) = &window.failure_share {
        let judged = judged(seen, rule.endpoints_min, rule.requests_min);
        let bad = judged.filter(|(_, s)| s.failed() >= rule.basis_points);
        out.extend(bad.map(|(i, s)| (i, Ejection::FailureShare { own: s.failed() })));
    }
    if let Some(rule) = &window.success_rate {
        let rates: Vec<(usize, f64)> = judged(seen, rule.endpoints_min, rule.requests_min)
            .map(|(i, s)| (i, 10_000.0 - f64::from(s.failed())))
            .collect();
        let n = f64::from(u32::try_from(rates.len()).unwrap_or(u32::MAX)).max(1.0);
        let mean = rates.iter().map(|(_, r)| r).sum::<f64>() / n;
        let variance = rates.iter().map(|(_, r)| (r - mean).powi(2)).sum::<f64>() / n;
        let least = mean - variance.sqrt() * f64::from(rule.factor_permille) / 1_000.0;
        for (i, rate) in rates.into_iter().filter(|(_, r)| *r < least) {
            if out.iter().all(|(known, _)| *known != i) {
                out.push((i, Ejection::SuccessRate { own: points(rate), least: points(least) }));
            }
        }
    }
    out.sort_by_key(|(i, _)| std::cmp::Reverse(seen.get(*i).map_or(0, |s| s.failed())));
    out
}

/// Those with enough requests, if there are enough of them.
fn judged(
    seen: &[Seen],
    endpoints_min: u32,
    requests_min: u32,
) -> impl Iterator<Item = (usize, Seen)> {
    let busy = move |s: &Seen| s.requests >= u64::from(requests_min.max(1));
    let enough = seen.iter().filter(|s| busy(s)).count() as u64 >= u64::from(endpoints_min);
    seen.iter().copied().enumerate().filter(move |(_, s)| enough && busy(s))
}

/// How many of `total` endpoints may be ejected at a time: the share, but always one of several.
pub fn ejections_allowed(total: usize, max_basis_points: u32) -> usize {
    let share = usize::try_from(max_basis_points).unwrap_or(usize::MAX).min(10_000);
    let allowed = total * share / 10_000;
    if total > 1 && share > 0 { allowed.max(1) } else { allowed.min(total.saturating_sub(1)) }
}

/// For how long, when it was ejected so many times in a row before.
pub fn ejection_ms(policy: &Outlier, times: u32) -> u64 {
    policy.base_ejection_ms.saturating_mul(u64::from(times) + 1).min(policy.max_ejection_ms)
}

// Basis points of a rate between 0 and 1.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn points(rate: f64) -> u32 {
    rate.clamp(0.0, 10_000.0) as u32
}

// === impl Seen ===

impl Seen {
    /// Basis points of its requests that failed.
    fn failed(&self) -> u32 {
        let share = (self.failures.min(self.requests) * 10_000).checked_div(self.requests);
        share.and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
    }
}

// === impl Streaks ===

impl Streaks {
    /// On probation: one more failure of any kind ejects again.
    pub fn on_probation(policy: &Outlier) -> Self {
        Self {
            failures: policy.consecutive_failures.saturating_sub(1),
            gateway: policy.consecutive_gateway.saturating_sub(1),
            local: policy.consecutive_local.unwrap_or(0).saturating_sub(1),
        }
    }
}

impl fmt::Display for Ejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |points: &u32| f64::from(*points) / 100.0;
        match self {
            Self::Failures(n) => write!(f, "{n} failures in a row"),
            Self::Gateway(n) => write!(f, "{n} gateway errors in a row"),
            Self::Local(n) => write!(f, "{n} times no answer in a row"),
            Self::SuccessRate { own, least } => {
                write!(f, "{} % succeed, {} % are expected", percent(own), percent(least))
            }
            Self::FailureShare { own } => write!(f, "{} % of its requests fail", percent(own)),
        }
    }
}
