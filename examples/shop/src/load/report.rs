// SPDX-License-Identifier: Apache-2.0
//! What the load client saw: counts and latencies per kind, the first failures word for word,
//! the ids of all orders, and per second who answered.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

/// Failures that are kept word for word.
const FAILURES_KEPT: usize = 20;
/// Longest body that is kept of a failure.
const BODY_CHARS_MAX: usize = 1000;

/// Kinds of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// GET /users/N
    User,
    /// GET /products
    Products,
    /// GET /products/N
    Product,
    /// GET /orders
    Orders,
    /// POST /orders
    Order,
}

/// One answer.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    status: Option<u16>,
    body: Bytes,
    instance: Option<String>,
    request_id: Option<String>,
    order: Option<i64>,
    reserved_by: Option<String>,
    failure: Option<String>,
}

/// Everything seen.
#[derive(Debug, Default)]
pub struct Report {
    /// Length of the run.
    pub seconds: f64,
    kinds: BTreeMap<Kind, Seen>,
    failures: Vec<Value>,
    ids: Vec<i64>,
    per_second: BTreeMap<u64, Second>,
}

#[derive(Debug, Default)]
struct Seen {
    ok: u64,
    failed: u64,
    statuses: BTreeMap<String, u64>,
    latencies_us: Vec<u64>,
}

#[derive(Debug, Default)]
struct Second {
    ok: u64,
    failed: u64,
    instances: BTreeMap<String, u64>,
    reserved_by: BTreeMap<String, u64>,
}

// === impl Kind ===

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 5] =
        [Kind::User, Kind::Products, Kind::Product, Kind::Orders, Kind::Order];

    /// Its name in `--mix` and in the report.
    pub fn name(self) -> &'static str {
        match self {
            Kind::User => "user",
            Kind::Products => "products",
            Kind::Product => "product",
            Kind::Orders => "orders",
            Kind::Order => "order",
        }
    }

    fn want(self) -> u16 {
        if self == Kind::Order { 201 } else { 200 }
    }
}

// === impl Answer ===

impl Answer {
    /// No answer came.
    pub fn failed(why: String) -> Answer {
        Answer { failure: Some(why), ..Answer::default() }
    }

    /// An answer came; [`Answer::judge`] says whether it is right.
    pub fn new(parts: &http::response::Parts, body: Bytes) -> Answer {
        let text = |name: &str| Some(parts.headers.get(name)?.to_str().ok()?.to_owned());
        Answer {
            status: Some(parts.status.as_u16()),
            body,
            instance: text("x-shop-instance"),
            request_id: text("x-request-id"),
            ..Answer::default()
        }
    }

    /// Compares status and body with what the kind of request promises.
    pub fn judge(mut self, kind: Kind, right: impl FnOnce(&Value) -> bool) -> Answer {
        if self.status != Some(kind.want()) {
            self.failure = Some(format!("status is not {}", kind.want()));
            return self;
        }
        match serde_json::from_slice::<Value>(&self.body) {
            Ok(body) if right(&body) => {
                if kind == Kind::Order {
                    self.order = body["id"].as_i64();
                    self.reserved_by = body["reserved_by"].as_str().map(str::to_owned);
                }
            }
            _ => self.failure = Some("the body is not what was asked for".into()),
        }
        self
    }
}

// === impl Report ===

impl Report {
    /// Counts one answer to a request that was due at `due` after the start.
    pub fn add(&mut self, kind: Kind, due: Duration, latency: Duration, answer: Answer) {
        let second = self.per_second.entry(due.as_secs()).or_default();
        let seen = self.kinds.entry(kind).or_default();
        let status = answer.status.map_or_else(|| "none".to_owned(), |s| s.to_string());
        *seen.statuses.entry(status).or_default() += 1;
        seen.latencies_us.push(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
        // A 201 is an order whatever else was wrong with the answer.
        if let Some(id) = answer.order {
            self.ids.push(id);
        }
        let Some(why) = answer.failure else {
            seen.ok += 1;
            second.ok += 1;
            let name = answer.instance.filter(|i| !i.is_empty());
            *second.instances.entry(name.unwrap_or_else(|| "?".into())).or_default() += 1;
            if let Some(version) = answer.reserved_by {
                *second.reserved_by.entry(version).or_default() += 1;
            }
            return;
        };
        seen.failed += 1;
        second.failed += 1;
        if self.failures.len() < FAILURES_KEPT {
            let body: String =
                String::from_utf8_lossy(&answer.body).chars().take(BODY_CHARS_MAX).collect();
            self.failures.push(json!({
                "kind": kind.name(),
                "at_ms": u64::try_from(due.as_millis()).unwrap_or(u64::MAX),
                "latency_ms": u64::try_from(latency.as_millis()).unwrap_or(u64::MAX),
                "why": why,
                "status": answer.status,
                "request_id": answer.request_id,
                "body": body,
            }));
        }
    }

    /// How many requests failed.
    pub fn failed(&self) -> u64 {
        self.kinds.values().map(|k| k.failed).sum()
    }

    /// The ids of all 201, one per line.
    pub fn ids_text(&self) -> String {
        self.ids.iter().map(|id| format!("{id}\n")).collect()
    }

    /// The whole report as JSON.
    pub fn to_json(&self) -> Value {
        let kinds: serde_json::Map<String, Value> = self
            .kinds
            .iter()
            .map(|(kind, seen)| (kind.name().to_owned(), seen.to_json()))
            .collect();
        let per_second: Vec<Value> = self
            .per_second
            .iter()
            .map(|(second, s)| {
                json!({ "second": second, "ok": s.ok, "failed": s.failed,
                        "instances": s.instances, "reserved_by": s.reserved_by })
            })
            .collect();
        let sent: u64 = self.kinds.values().map(|k| k.ok + k.failed).sum();
        json!({
            "seconds": self.seconds,
            "sent": sent,
            "ok": sent - self.failed(),
            "failed": self.failed(),
            "orders": self.ids.len(),
            "kinds": kinds,
            "failures": self.failures,
            "per_second": per_second,
        })
    }
}

// === impl Seen ===

impl Seen {
    fn to_json(&self) -> Value {
        let mut sorted = self.latencies_us.clone();
        sorted.sort_unstable();
        let ms = |p: usize| percentile(&sorted, p) as f64 / 1000.0;
        json!({
            "ok": self.ok,
            "failed": self.failed,
            "statuses": self.statuses,
            "p50_ms": ms(50),
            "p90_ms": ms(90),
            "p99_ms": ms(99),
            "max_ms": ms(100),
        })
    }
}

/// The smallest value that at least `p` percent of the sorted values do not exceed.
fn percentile(sorted: &[u64], p: usize) -> u64 {
    let rank = (sorted.len() * p).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_rank() {
        let values: Vec<u64> = (1..=200).collect();
        let got = [50, 90, 99, 100].map(|p| percentile(&values, p));
        assert_eq!(got, [100, 180, 198, 200]);
        assert_eq!(percentile(&[], 99), 0);
    }

    #[test]
    fn a_wrong_answer_is_a_failure_and_is_kept_word_for_word() {
        let mut report = Report::default();
        let (mut parts, ()) = http::Response::new(()).into_parts();
        parts.status = http::StatusCode::SERVICE_UNAVAILABLE;
        let answer = Answer::new(&parts, Bytes::from_static(b"no healthy upstream"));
        report.add(Kind::User, Duration::ZERO, Duration::ZERO, answer.judge(Kind::User, |_| true));
        assert_eq!(report.failed(), 1);
        let json = report.to_json();
        assert_eq!(json["failures"][0]["status"], 503);
        assert_eq!(json["failures"][0]["body"], "no healthy upstream");
        assert_eq!(json["kinds"]["user"]["failed"], 1);
    }
}
