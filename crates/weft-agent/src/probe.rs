// SPDX-License-Identifier: Apache-2.0
//! Kubernetes' probes: the thresholds as a pure machine, the asking in `probe::ask`.
//! One task per probe of a running container (`worker`) drives a [`ProbeMachine`].

use std::fmt;
use std::time::Duration;

use weft_base::clock::Mono;
use weft_base::rng::Rng;

use crate::pod::Probe;

pub mod ask;

/// How often a program that is not ready yet is asked.
const EAGER: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProbeKind {
    Startup,
    Readiness,
    Liveness,
}

/// Turns single results into verdicts.
#[derive(Debug)]
pub struct ProbeMachine {
    kind: ProbeKind,
    period: Duration,
    success_threshold: u32,
    failure_threshold: u32,
    due: Mono,
    /// Before this, a program that never answered is young rather than unready.
    grown_up: Mono,
    verdict: Option<bool>,
    in_row: u32,
    last: Option<bool>,
}

// === impl ProbeKind ===

impl fmt::Display for ProbeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Startup => "startup",
            Self::Readiness => "readiness",
            Self::Liveness => "liveness",
        })
    }
}

// === impl ProbeMachine ===

impl ProbeMachine {
    /// A new container's probe: the first question after the initial delay. Liveness is put off
    /// by up to a period, so that a restarted machine's probes do not all fire together.
    pub fn new(kind: ProbeKind, probe: &Probe, now: Mono, rng: &mut Rng) -> Self {
        let period = Duration::from_secs(probe.period_seconds.max(1));
        let mut delay = Duration::from_secs(probe.initial_delay_seconds);
        if kind == ProbeKind::Liveness {
            delay = rng.jitter(delay + period, 50);
        }
        Self {
            kind,
            period,
            // Kubernetes allows only 1 for these two.
            success_threshold: match kind {
                ProbeKind::Readiness => probe.success_threshold.max(1),
                _ => 1,
            },
            failure_threshold: probe.failure_threshold.max(1),
            due: now.plus(delay),
            grown_up: now.plus(delay + period * probe.failure_threshold.saturating_sub(1)),
            verdict: None,
            in_row: 0,
            last: None,
        }
    }

    pub fn due(&self) -> Mono {
        self.due
    }

    /// One result. Returns the verdict when it changed, or failed again after a restart-worthy
    /// failure (a liveness failure is told once).
    pub fn result(&mut self, ok: bool, now: Mono) -> Option<bool> {
        self.in_row = if self.last == Some(ok) { self.in_row.saturating_add(1) } else { 1 };
        self.last = Some(ok);
        let enough = if ok { self.success_threshold } else { self.failure_threshold };
        let young = !ok && self.verdict.is_none() && now < self.grown_up;
        let young = young && self.kind == ProbeKind::Readiness;
        let turned = self.in_row >= enough && self.verdict != Some(ok) && !young;
        if turned {
            self.verdict = Some(ok);
        }
        self.due = now.plus(self.pause(ok));
        turned.then_some(ok)
    }

    /// Whether there is nothing more to ask: a startup probe that succeeded.
    pub fn is_over(&self) -> bool {
        self.kind == ProbeKind::Startup && self.verdict == Some(true)
    }

    /// Until an app first answered, it is asked more often than its period says: waiting 10 s
    /// for a program that needs 100 ms to start helps nobody.
    fn pause(&self, ok: bool) -> Duration {
        let eager = self.verdict != Some(true) && self.kind != ProbeKind::Liveness;
        if eager && !ok {
            // A startup probe's failures are counted, so that its period stays.
            let counts = self.kind == ProbeKind::Startup;
            if counts { self.period } else { self.period.min(EAGER) }
        } else if eager {
            self.period.min(EAGER)
        } else {
            self.period
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(kind: ProbeKind, probe: &Probe) -> ProbeMachine {
        ProbeMachine::new(kind, probe, Mono(0), &mut Rng::seeded(1))
    }

    fn verdicts(mut m: ProbeMachine, results: &str) -> String {
        let mut out = String::new();
        for (i, r) in results.chars().enumerate() {
            let now = Mono(u64::try_from(i).unwrap() * 1000);
            out.push(match m.result(r == '+', now) {
                Some(true) => 'Y',
                Some(false) => 'N',
                None => '.',
            });
        }
        out
    }

    #[test]
    fn thresholds_count_results_in_a_row() {
        let (success_threshold, failure_threshold, period_seconds) = (2, 3, 1);
        let probe =
            Probe { success_threshold, failure_threshold, period_seconds, ..Probe::default() };
        let check = |kind, results: &str, expect: &str| {
            assert_eq!(verdicts(machine(kind, &probe), results), expect, "{results}");
        };
        check(ProbeKind::Readiness, "++-+--+---++", ".Y.......N.Y");
        check(ProbeKind::Readiness, "---", "..N");
        // Liveness: one success is enough, whatever the Pod says.
        check(ProbeKind::Liveness, "+--+---", "Y.....N");
        check(ProbeKind::Startup, "--+", "..Y");
    }

    #[test]
    fn the_first_question_waits_for_the_delay_and_a_young_app_is_asked_often() {
        let probe = Probe { initial_delay_seconds: 5, ..Probe::default() };
        let mut m = machine(ProbeKind::Readiness, &probe);
        assert_eq!(m.due(), Mono(5_000));
        m.result(false, Mono(5_000));
        assert_eq!(m.due(), Mono(5_100));
        m.result(true, Mono(5_100));
        assert_eq!(m.due(), Mono(15_100), "once ready, its own period");
        let liveness = machine(ProbeKind::Liveness, &probe);
        assert!(liveness.due() >= Mono(15_000) && liveness.due() <= Mono(22_500));
    }

    #[test]
    fn a_program_that_is_still_starting_is_no_failure() {
        let mut m = machine(ProbeKind::Readiness, &Probe::default());
        for ms in (0..20_000).step_by(100) {
            assert_eq!(m.result(false, Mono(ms)), None, "at {ms}");
        }
        assert_eq!(m.result(false, Mono(20_000)), Some(false));
        assert_eq!(m.result(true, Mono(20_100)), Some(true));
        // From now on its own threshold counts.
        assert_eq!(m.result(false, Mono(30_100)), None);
        assert_eq!(m.result(false, Mono(40_100)), None);
        assert_eq!(m.result(false, Mono(50_100)), Some(false));
    }

    #[test]
    fn a_startup_probe_ends_with_its_success() {
        let mut m = machine(ProbeKind::Startup, &Probe::default());
        assert!(!m.is_over());
        m.result(true, Mono(0));
        assert!(m.is_over());
    }
}
