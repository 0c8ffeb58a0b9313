// SPDX-License-Identifier: Apache-2.0
//! A Deployment that is scaled while it rolls, or while it is paused: every set takes its share of
//! the difference, so that a bad template does not spread by scaling. Kubernetes' arithmetic, with
//! what it notes on the sets.

use super::{Bounds, Set};
use crate::objects::admit::annotation;

/// On sets: the replicas of the Deployment when it wrote them last, and with what may be above.
pub(super) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub(super) const MOST: &str = "deployment.kubernetes.io/max-replicas";

/// Whether the Deployment was scaled since a set that has pods was written.
pub(super) fn is_scaled(new: Option<&Set>, old: &[Set], wanted: u32) -> bool {
    let noted = |set: &Set| annotation(&set.object.raw, DESIRED).parse::<u32>().ok();
    let active = new.into_iter().chain(old).filter(|s| s.wanted > 0);
    active.filter_map(noted).any(|desired| desired != wanted)
}

/// Shares the difference out.
pub(super) fn scale(new: Option<&mut Set>, old: &mut [Set], wanted: u32, bounds: Bounds) {
    let active = new.as_ref().is_some_and(|s| s.wanted > 0) as usize
        + old.iter().filter(|s| s.wanted > 0).count();
    let is_full = new.as_ref().is_some_and(|s| s.wanted == wanted && s.available() == wanted);
    // The new one counts as the newest, the old ones are in order of age.
    let mut all: Vec<&mut Set> = old.iter_mut().chain(new).collect();
    if active <= 1 {
        let place = all.iter().position(|s| s.wanted > 0).or(all.len().checked_sub(1));
        if let Some(set) = place.and_then(|at| all.get_mut(at)) {
            set.wanted = wanted;
        }
        return;
    }
    if is_full {
        let last = all.len() - 1;
        all.into_iter().take(last).for_each(|s| s.wanted = 0);
        return;
    }
    if !bounds.recreate {
        all.retain(|s| s.wanted > 0);
        share(&mut all, wanted, bounds);
    }
}

/// Oldest first in, each with its part of what may be there at most.
fn share(all: &mut [&mut Set], wanted: u32, bounds: Bounds) {
    let most = if wanted == 0 { 0 } else { i64::from(wanted) + i64::from(bounds.surge) };
    let total: i64 = all.iter().map(|s| i64::from(s.wanted)).sum();
    let add = most - total;
    if add == 0 {
        return;
    }
    // The largest first; of equal ones the newer when growing, the older when shrinking.
    let mut order: Vec<usize> = (0..all.len()).collect();
    order.sort_by_key(|&i| {
        let size = all.get(i).map_or(0, |s| s.wanted);
        let age = if add > 0 { std::cmp::Reverse(i) } else { std::cmp::Reverse(all.len() - i) };
        (std::cmp::Reverse(size), age)
    });
    let mut added = 0;
    let mut sizes: Vec<(usize, i64)> = Vec::new();
    for &i in &order {
        let Some(set) = all.get(i) else { continue };
        let left = add - added;
        let part = fraction(set, wanted, most, total);
        let part = if add > 0 { part.min(left) } else { part.max(left) };
        added += part;
        sizes.push((i, i64::from(set.wanted) + part));
    }
    for (place, (i, size)) in sizes.into_iter().enumerate() {
        let leftover = if place == 0 { add - added } else { 0 };
        if let Some(set) = all.get_mut(i) {
            set.wanted = u32::try_from((size + leftover).max(0)).unwrap_or(u32::MAX);
        }
    }
}

/// How much a set grows or shrinks to keep its share, rounded to the nearest.
fn fraction(set: &Set, wanted: u32, most: i64, total: i64) -> i64 {
    let now = i64::from(set.wanted);
    if wanted == 0 {
        return -now;
    }
    let noted = annotation(&set.object.raw, MOST).parse::<i64>().ok().filter(|n| *n > 0);
    let before = noted.unwrap_or(total).max(1);
    (now * most * 2 + before) / (before * 2) - now
}
