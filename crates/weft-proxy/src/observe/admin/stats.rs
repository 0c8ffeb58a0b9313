// SPDX-License-Identifier: Apache-2.0
//! What `/stats` and `/memory` of the admin door show, and the questions that narrow
//! them. Called by the admin door only.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

use regex::Regex;
use serde_json::{Value, json};
use weft_base::clock::Mono;

use crate::observe::certificates;
use crate::observe::exposition::{ProxyCollector, ejected};
use crate::table::{BackendEntry, EndpointEntry, Table};

/// Longest expression, and the most that it may compile to.
const FILTER_BYTES_MAX: usize = 1024;
const FILTER_SIZE_MAX: usize = 1 << 20;

/// The parts of a query that the door knows.
#[derive(Debug, Default)]
pub struct Query<'q> {
    pub format: Option<&'q str>,
    pub filter: Option<Regex>,
    pub used_only: bool,
}

/// What counters were when somebody asked to reset them.
#[derive(Debug, Default)]
pub struct Baseline(Mutex<BTreeMap<String, u64>>);

/// One line of `/stats`.
#[derive(Debug)]
pub struct Stat {
    pub name: String,
    pub value: u64,
    pub is_counter: bool,
}

// === impl Query ===

impl<'q> Query<'q> {
    /// # Errors
    /// A sentence for whoever asked.
    pub fn parse(query: &'q str) -> Result<Self, String> {
        let mut out = Self::default();
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match name {
                "format" => out.format = Some(value),
                "filter" => out.filter = Some(filter(value)?),
                // Envoy's older form of ?format=prometheus.
                "prometheus" => out.format = Some("prometheus"),
                "usedonly" => out.used_only = true,
                _ => {}
            }
        }
        match out.format {
            None | Some("text" | "json" | "prometheus") => Ok(out),
            Some(other) => Err(format!("format={other:?}: text, json or prometheus\n")),
        }
    }

    fn takes(&self, name: &str, value: u64) -> bool {
        self.filter.as_ref().is_none_or(|f| f.is_match(name)) && !(self.used_only && value == 0)
    }

    /// The families and samples of an exposition that are asked for.
    pub fn narrowed(&self, exposition: String) -> String {
        if self.filter.is_none() && !self.used_only {
            return exposition;
        }
        let mut out = String::new();
        for line in exposition.lines() {
            let name = match line.strip_prefix("# ") {
                Some("EOF") => "",
                Some(comment) => comment.split(' ').nth(1).unwrap_or_default(),
                None => line.split(['{', ' ']).next().unwrap_or_default(),
            };
            let unused = !line.starts_with('#') && line.ends_with(" 0");
            let wanted = name.is_empty() || self.takes(name, u64::from(!unused));
            if wanted {
                out.push_str(line);
                out.push('\n');
            }
        }
        out
    }
}

fn filter(text: &str) -> Result<Regex, String> {
    let text = percent_decoded(text);
    if text.len() > FILTER_BYTES_MAX {
        return Err(format!("the filter is longer than {FILTER_BYTES_MAX} bytes\n"));
    }
    let made = regex::RegexBuilder::new(&text).size_limit(FILTER_SIZE_MAX).build();
    made.map_err(|e| format!("the filter is no regular expression: {e}\n"))
}

pub fn percent_decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = |at: usize| char::from(*tail.get(at)?).to_digit(16);
        match (first, hex(0), hex(1)) {
            (b'%', Some(hi), Some(lo)) => {
                out.push(u8::try_from(hi * 16 + lo).unwrap_or(b'%'));
                rest = tail.get(2..).unwrap_or_default();
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

// === impl Baseline ===

impl Baseline {
    /// Counters begin at 0 again, on this page; what Prometheus reads never goes back.
    pub fn reset(&self, now: Vec<Stat>) {
        let counters = now.into_iter().filter(|s| s.is_counter).map(|s| (s.name, s.value));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = counters.collect();
    }

    pub fn since(&self, mut stats: Vec<Stat>) -> Vec<Stat> {
        let then = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for stat in &mut stats {
            stat.value = stat.value.saturating_sub(then.get(&stat.name).copied().unwrap_or(0));
        }
        stats
    }
}

/// Everything that `/stats` has, by name.
pub fn all(collector: &ProxyCollector, table: &Table) -> Vec<Stat> {
    let stat = |name: String, value, is_counter| Stat { name, value, is_counter };
    let (mut out, now) = (Vec::new(), collector.clock.now());
    for (name, _, value) in collector.counters() {
        out.push(stat(name.to_owned(), value, true));
    }
    for (name, _, value) in collector.gauges() {
        out.push(stat(name.to_owned(), value, false));
    }
    for backend in super::all_backends(table) {
        let cluster = |what: &str| format!("cluster.{}.{what}", backend.cluster);
        let active = backend.endpoints.iter().map(|e| e.shared.in_flight()).sum();
        let taking = backend.endpoints.iter().filter(|e| takes(backend, e, now)).count();
        let healthy = u64::try_from(taking).unwrap_or(u64::MAX);
        let (ejected, ejections) = ejected(backend, now);
        let total = u64::try_from(backend.total()).unwrap_or(u64::MAX);
        out.push(stat(cluster("membership_healthy"), healthy, false));
        out.push(stat(cluster("membership_total"), total, false));
        out.push(stat(cluster("upstream_rq_active"), active, false));
        out.push(stat(cluster("outlier_detection.ejections_active"), ejected, false));
        let enforced = cluster("outlier_detection.ejections_enforced_total");
        out.push(stat(enforced, ejections, true));
    }
    let left = certificates::seconds_left(table, collector.clock.wall_ms());
    if let Some((.., soonest)) = left.first() {
        let days = u64::try_from(soonest / 86_400).unwrap_or(0);
        out.push(stat("server.days_until_first_cert_expiring".into(), days, false));
    }
    out.sort_by(|a, b| a.name.cmp(&b.name));
    out
}

/// Whether an endpoint is there for a pick.
fn takes(backend: &BackendEntry, entry: &EndpointEntry, now: Mono) -> bool {
    let shared = &entry.shared;
    backend.is_usable(&entry.endpoint) && !shared.is_failing() && !shared.is_ejected(now)
}

pub fn as_text(stats: &[Stat], query: &Query<'_>) -> String {
    let mut out = String::new();
    for stat in stats.iter().filter(|s| query.takes(&s.name, s.value)) {
        // Writing into a text does not fail.
        let _ = writeln!(out, "{}: {}", stat.name, stat.value);
    }
    out
}

pub fn as_json(stats: &[Stat], query: &Query<'_>) -> Value {
    let taken = stats.iter().filter(|s| query.takes(&s.name, s.value));
    let list: Vec<Value> = taken.map(|s| json!({"name": s.name, "value": s.value})).collect();
    json!({ "stats": list })
}

/// Resident memory, as the kernel counts it. Envoy shows texts here.
pub fn memory() -> Value {
    let pages = std::fs::read_to_string("/proc/self/statm").ok().and_then(|text| {
        let resident = text.split(' ').nth(1)?;
        resident.parse::<u64>().ok()
    });
    let page = u64::try_from(crate::sys::program::page_size()).unwrap_or(4096);
    json!({ "total_physical_bytes": pages.map(|pages| (pages * page).to_string()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_narrow_what_is_shown() {
        let text =
            "# HELP a_total A.\n# TYPE a_total counter\na_total{x=\"y\"} 0\nb 2\n".to_owned();
        let narrowed = |q: &str| Query::parse(q).unwrap().narrowed(text.clone());
        assert_eq!(narrowed(""), text);
        assert_eq!(narrowed("filter=^b$"), "b 2\n");
        assert!(!narrowed("usedonly").contains("a_total{"));
        assert_eq!(narrowed("filter=%5Eb%24&usedonly"), "b 2\n");
        assert_eq!(Query::parse("format=json").unwrap().format, Some("json"));
        assert_eq!(Query::parse("prometheus").unwrap().format, Some("prometheus"));
        assert!(Query::parse("format=html").is_err());
        assert!(Query::parse("filter=(").unwrap_err().contains("no regular expression"));
        assert!(Query::parse(&format!("filter={}", "a".repeat(2_000))).is_err());
    }

    #[test]
    fn counters_begin_again_and_gauges_do_not() {
        let stats = |counter| {
            vec![
                Stat { name: "c".into(), value: counter, is_counter: true },
                Stat { name: "g".into(), value: 5, is_counter: false },
            ]
        };
        let baseline = Baseline::default();
        baseline.reset(stats(7));
        let shown = baseline.since(stats(9));
        assert_eq!(as_text(&shown, &Query::default()), "c: 2\ng: 5\n");
        let used = Query { used_only: true, ..Query::default() };
        assert_eq!(as_text(&baseline.since(stats(7)), &used), "g: 5\n");
    }
}
