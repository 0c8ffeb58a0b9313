// SPDX-License-Identifier: Apache-2.0
//! Response time as a moving average that follows peaks at once and forgets them slowly (Finagle's
//! peak EWMA, as Linkerd balances). Pure; one per endpoint and worker.

/// Half of what is known is forgotten after about seven seconds.
const DECAY_US: f64 = 10_000_000.0;
/// An endpoint that has not answered yet is tried with one request at a time.
const UNKNOWN_US: f64 = 1_000_000.0;
/// What a failure is thought to have cost, at least: failing fast must not look like being fast.
const FAILURE_US_MIN: f64 = 20_000.0;
const COST_US_MAX: f64 = 60_000_000.0;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PeakEwma {
    cost_us: f64,
    at_us: u64,
}

// === impl PeakEwma ===

impl PeakEwma {
    /// Notes how long an answer took.
    pub fn answered(&mut self, took_us: u64, now_us: u64) {
        let took = as_f64(took_us).max(1.0);
        let old = self.weight(now_us);
        let mean = self.cost_us * old + took * (1.0 - old);
        let known = self.cost_us > 0.0 && took < self.cost_us;
        self.set(if known { mean } else { took }, now_us);
    }

    /// Notes an attempt that brought no answer: it is thought twice as slow as before.
    pub fn failed(&mut self, took_us: u64, now_us: u64) {
        let doubled = self.now(now_us) * 2.0;
        self.set(doubled.max(as_f64(took_us)).max(FAILURE_US_MIN), now_us);
    }

    /// What one more request would cost with so many in flight; smaller is better.
    pub fn load(&self, in_flight: u64, now_us: u64) -> f64 {
        let busy = as_f64(in_flight);
        match self.now(now_us) {
            cost if cost > 0.0 => cost * (busy + 1.0),
            _ if in_flight > 0 => UNKNOWN_US * busy,
            _ => 0.0,
        }
    }

    fn now(&self, now_us: u64) -> f64 {
        self.cost_us * self.weight(now_us)
    }

    fn weight(&self, now_us: u64) -> f64 {
        (-as_f64(now_us.saturating_sub(self.at_us)) / DECAY_US).exp()
    }

    fn set(&mut self, cost_us: f64, now_us: u64) {
        *self = Self { cost_us: cost_us.min(COST_US_MAX), at_us: now_us };
    }
}

/// Exact far beyond any time or count that occurs here.
#[allow(clippy::cast_precision_loss)]
fn as_f64(n: u64) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_count_at_once_and_are_forgotten_slowly() {
        let mut e = PeakEwma::default();
        assert!(e.load(0, 0) < 1.0, "who is unknown is tried");
        assert!(e.load(1, 0) > 100_000.0, "with one request");
        e.answered(1_000, 0);
        e.answered(50_000, 1_000);
        assert!((e.load(0, 1_000) - 50_000.0).abs() < 1.0);
        // One good answer a second later mends a tenth of it.
        e.answered(1_000, 1_001_000);
        let load = e.load(0, 1_001_000);
        assert!((44_000.0..47_000.0).contains(&load), "{load}");
        // Left alone it becomes worth another try.
        assert!(e.load(0, 60_000_000) < 1_000.0);
        assert!((e.load(3, 1_001_000) - 4.0 * load).abs() < 1.0);
    }

    #[test]
    fn failing_fast_is_not_being_fast() {
        let (mut good, mut bad) = (PeakEwma::default(), PeakEwma::default());
        for n in 0..10 {
            good.answered(5_000, n * 1_000);
            bad.failed(100, n * 1_000);
        }
        assert!(bad.load(0, 10_000) > 100.0 * good.load(0, 10_000));
        assert!(bad.load(0, 10_000) <= COST_US_MAX);
    }
}
