// SPDX-License-Identifier: Apache-2.0
//! Metric cells: plain atomics, one padded set per worker, summed when they are read. No lock
//! and no shared cache line on the request path.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter or gauge written by one worker, alone on its cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Cell(AtomicU64);

/// Bucket bounds in milliseconds: Istio's for `istio_request_duration_milliseconds`.
pub const DURATION_MS_BOUNDS: [u64; 20] = [
    1, 2, 3, 5, 7, 10, 15, 25, 40, 60, 100, 200, 400, 700, 1000, 2500, 5000, 10_000, 30_000, 60_000,
];

/// A histogram with fixed bounds, written by one worker; `counts[i]` is of values ≤ `bounds[i]`,
/// the last of the rest.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [u64],
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
}

// === impl Cell ===

impl Cell {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

// === impl Histogram ===

impl Histogram {
    pub fn new(bounds: &'static [u64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum: AtomicU64::new(0) }
    }

    pub fn observe(&self, value: u64) {
        let at = self.bounds.partition_point(|b| *b < value);
        if let Some(cell) = self.counts.get(at) {
            count(cell, 1);
        }
        count(&self.sum, value);
    }

    pub fn bounds(&self) -> &'static [u64] {
        self.bounds
    }

    /// Counts per bucket (not cumulative), the overflow bucket last.
    pub fn counts(&self) -> Vec<u64> {
        self.counts.iter().map(|c| c.load(Ordering::Relaxed)).collect()
    }

    pub fn sum(&self) -> u64 {
        self.sum.load(Ordering::Relaxed)
    }

    pub fn count(&self) -> u64 {
        self.counts().iter().sum()
    }

    /// The value below which `q` (0 to 1) of the observations lie, by linear interpolation within
    /// the bucket; `None` when nothing was observed.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        quantile(self.bounds, &self.counts(), q)
    }
}

/// Adds to what only one worker writes: others may read meanwhile, so nothing need be locked.
pub fn count(cell: &AtomicU64, n: u64) {
    cell.store(cell.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

/// See [`Histogram::quantile`]; for counts that were summed over workers.
#[allow(clippy::cast_precision_loss)]
pub fn quantile(bounds: &[u64], counts: &[u64], q: f64) -> Option<f64> {
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return None;
    }
    let rank = q * total as f64;
    let mut below = 0.0;
    for (i, n) in counts.iter().enumerate() {
        let n = *n as f64;
        let upper = bounds.get(i).or(bounds.last()).copied().unwrap_or(0) as f64;
        if n > 0.0 && below + n >= rank {
            let lower = i.checked_sub(1).and_then(|j| bounds.get(j)).copied().unwrap_or(0) as f64;
            return Some(lower + (upper - lower) * ((rank - below) / n).clamp(0.0, 1.0));
        }
        below += n;
    }
    bounds.last().map(|b| *b as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate() {
        let h = Histogram::new(&DURATION_MS_BOUNDS);
        for v in 1..=100 {
            h.observe(v);
        }
        assert_eq!(h.count(), 100);
        assert_eq!(h.sum(), 5050);
        let p50 = h.quantile(0.5).unwrap();
        assert!((40.0..=60.0).contains(&p50), "{p50}");
        assert!(Histogram::new(&DURATION_MS_BOUNDS).quantile(0.5).is_none());
    }
}
