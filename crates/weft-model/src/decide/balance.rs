// SPDX-License-Identifier: Apache-2.0
//! Candidates and whose turn it is. State lives with the caller (one per worker); chance comes in
//! as a number.

mod ewma;
mod hash;
mod locality;
mod outlier;
mod shares;

use crate::{Backend, EndpointSet, Health};

pub use ewma::PeakEwma;
pub use hash::{HashRing, key_hash, within_bound};
pub use locality::{Own, PlaceRule, Places, ZoneRule, places};
pub use outlier::*;
pub use shares::{Member, Shares, Standing, warm_basis_points};

/// Smooth weighted round robin (nginx's algorithm): exact over each cycle of ΣR picks, and the
/// picks of one endpoint are spread evenly over the cycle.
#[derive(Clone, Debug, Default)]
pub struct SmoothWeighted {
    current: Vec<i64>,
}

/// The endpoints of a backend by index into its set, as `weft explain` shows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidates {
    /// May take a new request, ejection aside.
    pub open: Vec<usize>,
    /// Selected by the backend, whatever their health.
    pub total: usize,
    pub healthy: usize,
}

// === impl SmoothWeighted ===

impl SmoothWeighted {
    /// Begins a new cycle: what was owed in other weights says nothing any more.
    pub fn reset(&mut self) {
        self.current.clear();
    }

    /// The next index into `weights`; `None` when all are 0. When the number of weights changes
    /// the cycle starts anew, so the caller keeps one state per candidate set.
    pub fn next(&mut self, weights: &[u32]) -> Option<usize> {
        if self.current.len() != weights.len() {
            self.current.clear();
            self.current.resize(weights.len(), 0);
        }
        let mut total = 0i64;
        let mut best: Option<(usize, i64)> = None;
        for (i, (current, weight)) in self.current.iter_mut().zip(weights).enumerate() {
            if *weight == 0 {
                continue;
            }
            *current += i64::from(*weight);
            total += i64::from(*weight);
            if best.is_none_or(|(_, b)| *current > b) {
                best = Some((i, *current));
            }
        }
        let (i, _) = best?;
        if let Some(current) = self.current.get_mut(i) {
            *current -= total;
        }
        Some(i)
    }
}

/// Weighted choice: `point` is uniform in `0..sum of weights`; see [`total_weight`].
pub fn weighted_at(weights: &[u32], point: u64) -> Option<usize> {
    let mut below = 0u64;
    weights.iter().position(|w| {
        below += u64::from(*w);
        point < below
    })
}

pub fn total_weight(weights: &[u32]) -> u64 {
    weights.iter().copied().map(u64::from).sum()
}

/// Which endpoints of the set a backend may use.
pub fn candidates(backend: &Backend, set: &EndpointSet) -> Candidates {
    let mut out = Candidates::default();
    for (i, endpoint) in set.endpoints.iter().enumerate() {
        if !backend.selects(endpoint) {
            continue;
        }
        out.total += 1;
        if endpoint.health == Health::Healthy {
            out.healthy += 1;
        }
        if endpoint.is_candidate() {
            out.open.push(i);
        }
    }
    out
}

#[cfg(test)]
mod tests;
