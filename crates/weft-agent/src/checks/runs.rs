// SPDX-License-Identifier: Apache-2.0
//! How often checks were asked and with what result, and how often one was asked late: the first
//! sign of a machine with too much to do. Written by `run`, read for `/metrics`.

use std::fmt::Write as _;
use std::time::Duration;

use weft_base::metrics::Cell;
use weft_kinds::views::catalog::Status;

/// What is asked, by `Probe::kind`. What is none of them is the last.
const KINDS: [&str; 6] = ["http", "tcp", "udp", "grpc", "h2ping", "other"];
const RESULTS: [&str; 3] = ["passing", "warning", "critical"];
/// A check that is asked so long after its time is late.
const LATE: Duration = Duration::from_secs(1);

/// The counts of one runner.
#[derive(Debug, Default)]
pub struct Runs {
    asked: [[Cell; RESULTS.len()]; KINDS.len()],
    late: Cell,
}

// === impl Runs ===

impl Runs {
    pub(super) fn note(&self, kind: &str, result: Status) {
        let at = KINDS.iter().position(|known| *known == kind).unwrap_or(KINDS.len() - 1);
        let result = match result {
            Status::Passing => 0,
            Status::Warning => 1,
            Status::Critical => 2,
        };
        if let Some(cell) = self.asked.get(at).and_then(|results| results.get(result)) {
            cell.add(1);
        }
    }

    /// One was asked so long after its time.
    pub(super) fn note_lag(&self, lag: Duration) {
        if lag >= LATE {
            self.late.add(1);
        }
    }

    /// Prometheus text format 0.0.4.
    pub fn text(&self) -> String {
        let name = "weft_checks_total";
        let mut out = format!(
            "# HELP {name} Checks of this node that were asked, by kind and result.\n\
             # TYPE {name} counter\n"
        );
        for (kind, results) in KINDS.iter().zip(&self.asked) {
            for (result, cell) in RESULTS.iter().zip(results) {
                // Writing to a String does not fail.
                let _ =
                    writeln!(out, "{name}{{kind=\"{kind}\",result=\"{result}\"}} {}", cell.get());
            }
        }
        let name = "weft_checks_late_total";
        let _ = write!(
            out,
            "# HELP {name} Checks that were asked a second or more after their time.\n\
             # TYPE {name} counter\n{name} {}\n",
            self.late.get()
        );
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_counted_by_kind_and_result() {
        let runs = Runs::default();
        runs.note("http", Status::Passing);
        runs.note("http", Status::Critical);
        runs.note("new", Status::Warning);
        runs.note_lag(Duration::from_millis(999));
        runs.note_lag(Duration::from_secs(1));
        let text = runs.text();
        for line in [
            "weft_checks_total{kind=\"http\",result=\"passing\"} 1\n",
            "weft_checks_total{kind=\"http\",result=\"critical\"} 1\n",
            "weft_checks_total{kind=\"other\",result=\"warning\"} 1\n",
            "weft_checks_late_total 1\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
    }
}
