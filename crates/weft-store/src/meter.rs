// SPDX-License-Identifier: Apache-2.0
//! What an engine did, counted: how long it took to make writes durable, how many shared one
//! commit, leases' signs of life, and what became of the way to an etcd. Written by the engines,
//! read by `/metrics`; every label comes from a list here.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use weft_base::metrics::Cell;

/// Upper bounds of a commit's time, in microseconds, and as Prometheus is told them, in seconds.
const COMMIT_US: [u64; 13] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    5_000_000,
];
/// Upper bounds of how many requests share a commit.
const GROUP: [u64; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];
/// What may become of a lease's sign of life.
const RENEWALS: [&str; 3] = ["kept", "ended", "failed"];
/// What may become of a call to an etcd.
const CALLS: [&str; 3] = ["answered", "refused", "unreachable"];

/// Counts of one store.
#[derive(Debug)]
pub struct Meter {
    engine: Engine,
    commits: Spread<13>,
    groups: Spread<9>,
    renewals: [Cell; 3],
    /// Times that the file was opened again, or that etcd's log was let go of.
    breaks: Cell,
    resumes: Cell,
    compactions: Cell,
    calls: [Cell; 3],
    passed: Cell,
}

/// Which of the counts there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Engine {
    File,
    Etcd,
}

/// What became of a lease's sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Renewal {
    Kept,
    Ended,
    Failed,
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Answered,
    Refused,
    Unreachable,
}

/// A histogram that anybody writes.
#[derive(Debug)]
struct Spread<const N: usize> {
    bounds: [u64; N],
    counts: [AtomicU64; N],
    over: AtomicU64,
    sum: AtomicU64,
}

// === impl Meter ===

impl Meter {
    pub(crate) fn file() -> Self {
        Self::new(Engine::File)
    }

    pub(crate) fn etcd() -> Self {
        Self::new(Engine::Etcd)
    }

    fn new(engine: Engine) -> Self {
        Self {
            engine,
            commits: Spread::new(COMMIT_US),
            groups: Spread::new(GROUP),
            renewals: Default::default(),
            breaks: Cell::default(),
            resumes: Cell::default(),
            compactions: Cell::default(),
            calls: Default::default(),
            passed: Cell::default(),
        }
    }

    /// Something was made durable.
    pub(crate) fn committed(&self, took: Duration, requests: usize) {
        self.commits.observe(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        self.groups.observe(u64::try_from(requests).unwrap_or(u64::MAX));
    }

    pub(crate) fn renewal(&self, what: Renewal) {
        if let Some(cell) = self.renewals.get(what as usize) {
            cell.add(1);
        }
    }

    /// The file was opened again after a failure, or a stream of etcd's log ended.
    pub(crate) fn broke(&self) {
        self.breaks.add(1);
    }

    /// etcd's log is followed again from where a stream of it ended.
    pub(crate) fn resumed(&self) {
        self.resumes.add(1);
    }

    /// etcd no longer had what came after that: all watches list again.
    pub(crate) fn compaction_met(&self) {
        self.compactions.add(1);
    }

    pub(crate) fn call(&self, what: Call) {
        if let Some(cell) = self.calls.get(what as usize) {
            cell.add(1);
        }
    }

    /// Another member is asked from now on.
    pub(crate) fn passed(&self) {
        self.passed.add(1);
    }

    /// Prometheus text format 0.0.4.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let help = match self.engine {
            Engine::File => "Time that a commit to the file took",
            Engine::Etcd => "Time until etcd answered a write, or it was given up",
        };
        self.commits.write(&mut out, "weft_store_commit_duration_seconds", help, seconds);
        let help = "Signs of life of leases by what became of them";
        let name = "weft_store_lease_renewals_total";
        labelled(&mut out, name, help, &RENEWALS, &self.renewals);
        match self.engine {
            Engine::File => self.of_file(&mut out),
            Engine::Etcd => self.of_etcd(&mut out),
        }
        out
    }

    fn of_file(&self, out: &mut String) {
        let help = "Requests that one commit made durable";
        self.groups.write(out, "weft_store_commit_requests", help, |n| n.to_string());
        let help = "Times that the file was opened again after a failure";
        one(out, "weft_store_reopens_total", help, &self.breaks);
    }

    fn of_etcd(&self, out: &mut String) {
        let help = "Calls to etcd by what became of them";
        labelled(out, "weft_store_etcd_calls_total", help, &CALLS, &self.calls);
        let help = "Times that another member was asked, since one did not answer in time";
        one(out, "weft_store_etcd_member_changes_total", help, &self.passed);
        let help = "Times that the stream of etcd's log ended, and another was begun";
        one(out, "weft_store_reconnects_total", help, &self.breaks);
        let help = "Times that the log was followed on from where such a stream had ended";
        one(out, "weft_store_watch_resumes_total", help, &self.resumes);
        let help = "Times that etcd had compacted what was not read yet: all watches list again";
        one(out, "weft_store_compactions_met_total", help, &self.compactions);
    }
}

// === impl Spread ===

impl<const N: usize> Spread<N> {
    fn new(bounds: [u64; N]) -> Self {
        let counts = std::array::from_fn(|_| AtomicU64::default());
        Self { bounds, counts, over: AtomicU64::default(), sum: AtomicU64::default() }
    }

    fn observe(&self, value: u64) {
        let at = self.bounds.partition_point(|bound| *bound < value);
        self.counts.get(at).unwrap_or(&self.over).fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    /// `shown` writes a bound, and the sum, in the metric's unit.
    fn write(&self, out: &mut String, name: &str, help: &str, shown: impl Fn(u64) -> String) {
        let _ = writeln!(out, "# HELP {name} {help}.\n# TYPE {name} histogram");
        let mut below = 0;
        for (bound, count) in self.bounds.iter().zip(&self.counts) {
            below += count.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}_bucket{{le=\"{}\"}} {below}", shown(*bound));
        }
        below += self.over.load(Ordering::Relaxed);
        let sum = shown(self.sum.load(Ordering::Relaxed));
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {below}");
        let _ = writeln!(out, "{name}_sum {sum}\n{name}_count {below}");
    }
}

// === helpers ===

/// Microseconds as seconds, exactly.
fn seconds(us: u64) -> String {
    let text = format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

// Writing to a String does not fail.
fn one(out: &mut String, name: &str, help: &str, cell: &Cell) {
    let _ = writeln!(out, "# HELP {name} {help}.\n# TYPE {name} counter\n{name} {}", cell.get());
}

fn labelled(out: &mut String, name: &str, help: &str, words: &[&str], cells: &[Cell]) {
    let _ = writeln!(out, "# HELP {name} {help}.\n# TYPE {name} counter");
    for (word, cell) in words.iter().zip(cells) {
        let _ = writeln!(out, "{name}{{result=\"{word}\"}} {}", cell.get());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_all_that_is_below_them_and_units_are_seconds() {
        let meter = Meter::file();
        for (ms, requests) in [(1, 1), (2, 3), (40, 300), (9_000, 2)] {
            meter.committed(Duration::from_millis(ms), requests);
        }
        let text = meter.text();
        let name = "weft_store_commit_duration_seconds";
        for line in [
            format!("{name}_bucket{{le=\"0.0005\"}} 0\n"),
            format!("{name}_bucket{{le=\"0.001\"}} 1\n"),
            format!("{name}_bucket{{le=\"0.05\"}} 3\n"),
            format!("{name}_bucket{{le=\"5\"}} 3\n"),
            format!("{name}_bucket{{le=\"+Inf\"}} 4\n"),
            format!("{name}_sum 9.043\n"),
            format!("{name}_count 4\n"),
            "weft_store_commit_requests_bucket{le=\"4\"} 3\n".to_owned(),
            "weft_store_commit_requests_bucket{le=\"256\"} 3\n".to_owned(),
            "weft_store_commit_requests_sum 306\n".to_owned(),
        ] {
            assert!(text.contains(&line), "{line} in {text}");
        }
        assert!(!text.contains("etcd"), "a file has none");
    }

    #[test]
    fn each_thing_has_a_count_of_its_own() {
        let meter = Meter::etcd();
        meter.renewal(Renewal::Ended);
        meter.call(Call::Unreachable);
        meter.call(Call::Unreachable);
        meter.broke();
        meter.resumed();
        meter.compaction_met();
        meter.passed();
        let text = meter.text();
        for line in [
            "weft_store_lease_renewals_total{result=\"kept\"} 0\n",
            "weft_store_lease_renewals_total{result=\"ended\"} 1\n",
            "weft_store_etcd_calls_total{result=\"unreachable\"} 2\n",
            "weft_store_etcd_member_changes_total 1\n",
            "weft_store_reconnects_total 1\n",
            "weft_store_watch_resumes_total 1\n",
            "weft_store_compactions_met_total 1\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
