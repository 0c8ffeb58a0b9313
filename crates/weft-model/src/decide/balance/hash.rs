// SPDX-License-Identifier: Apache-2.0
//! Consistent hashing: which endpoint a key belongs to, and who stands in while that one cannot be
//! used. Tables are made of who is there, not of who is well: an endpoint that fails its checks
//! for a while costs only its own keys their place, and they come back to it.

use crate::HashTable;

/// Most points that a ring has, whatever it is asked for, and one more per endpoint.
const POINTS_MAX: u64 = 1 << 17;
/// Points that one endpoint of a ring has at most.
const POINTS_OF_ONE_MAX: u64 = 1 << 14;
/// Maglev tables are between these; the defaults of Istio and Envoy lie within.
const MAGLEV_MIN: u32 = 11;
const MAGLEV_MAX: u32 = 5_000_011;

/// A table of endpoints by index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashRing {
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    /// Sorted by point.
    Ring(Box<[(u64, u32)]>),
    Maglev(Box<[u32]>),
}

/// The hash of a key: the same in every proxy and release, since clients meet several of them.
pub fn key_hash(key: &[u8]) -> u64 {
    let fnv = key.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, byte| {
        (h ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    mixed(fnv)
}

/// Spreads what FNV leaves close together.
fn mixed(mut h: u64) -> u64 {
    h = (h ^ (h >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h = (h ^ (h >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

/// Whether an endpoint may have one more request: it has at most its part of all in flight times
/// the bound, and always room for one.
pub fn within_bound(
    own: u64,
    all: u64,
    weight: u64,
    weights: u64,
    bound_basis_points: u32,
) -> bool {
    let bound = u128::from(bound_basis_points.max(10_000));
    let room = u128::from(all + 1) * bound * u128::from(weight);
    let per = 10_000 * u128::from(weights.max(1));
    u128::from(own) < room.div_ceil(per)
}

// === impl HashRing ===

impl HashRing {
    /// A table for endpoints by name and weight; one with weight 0 has no place in it.
    pub fn new(table: HashTable, members: &[(&str, u32)]) -> Self {
        let kind = match table {
            HashTable::Ring { points_min } => Kind::Ring(ring(points_min, members)),
            HashTable::Maglev { size } => Kind::Maglev(maglev(size, members)),
        };
        Self { kind }
    }

    /// The first endpoint on the key's way that `open` takes. Every endpoint is asked at last.
    pub fn find(&self, hash: u64, mut open: impl FnMut(usize) -> bool) -> Option<usize> {
        match &self.kind {
            Kind::Ring(points) => {
                let from = points.partition_point(|(point, _)| *point < hash);
                let (before, behind) = points.split_at(from);
                let mut way = behind.iter().chain(before).map(|(_, i)| *i as usize);
                way.find(|i| open(*i))
            }
            Kind::Maglev(slots) => {
                let size = slots.len() as u64;
                // A few fresh draws spread the keys of a closed endpoint over all others.
                let draws = (0..8u64).map(|n| if n == 0 { hash } else { mixed(hash ^ n) });
                let drawn = draws.filter_map(|h| slots.get(slot(h, size)?));
                let (before, behind) = slots.split_at(slot(hash, size).unwrap_or(0));
                let mut way = drawn.chain(behind).chain(before).map(|i| *i as usize);
                way.find(|i| open(*i))
            }
        }
    }
}

fn slot(hash: u64, size: u64) -> Option<usize> {
    usize::try_from(hash.checked_rem(size)?).ok()
}

/// Ketama: every endpoint has points by its weight, the lightest one as many as make the ring as
/// large as it must be, and a power of two: one endpoint more seldom changes what the others have.
fn ring(points_min: u32, members: &[(&str, u32)]) -> Box<[(u64, u32)]> {
    let total: u64 = members.iter().map(|(_, w)| u64::from(*w)).sum();
    let lightest = members.iter().map(|(_, w)| u64::from(*w)).filter(|w| *w > 0).min().unwrap_or(1);
    let least = (u64::from(points_min) * lightest).div_ceil(total.max(1)).max(1);
    let least = least.min(POINTS_OF_ONE_MAX).next_power_of_two();
    let room = POINTS_MAX * lightest / total.max(1);
    let least = room.checked_ilog2().map_or(1, |log| least.min(1 << log));
    let mut out: Vec<(u64, u32)> = Vec::new();
    for (i, (name, weight)) in (0u32..).zip(members).filter(|(_, (_, w))| *w > 0) {
        let weight = u64::from(*weight);
        // Weights that lie far apart leave the light ones a point each.
        let part = (POINTS_MAX * weight / total).max(1);
        let points = (least * weight / lightest).min(POINTS_OF_ONE_MAX).min(part);
        let base = key_hash(name.as_bytes());
        out.extend((0..points).map(|n| (mixed(base.wrapping_add(mixed(n + 1))), i)));
    }
    out.sort_unstable();
    out.into()
}

/// Maglev's population by permutations; a heavier endpoint takes its turns more often.
fn maglev(size: u32, members: &[(&str, u32)]) -> Box<[u32]> {
    struct Turn {
        index: u32,
        offset: u64,
        skip: u64,
        next: u64,
        weight: f64,
        target: f64,
    }
    let heaviest = members.iter().map(|(_, w)| *w).max().unwrap_or(0);
    if heaviest == 0 {
        return Box::default();
    }
    // Everybody has a slot.
    let size = size.clamp(MAGLEV_MIN, MAGLEV_MAX).max(u32::try_from(members.len()).unwrap_or(0));
    let size = u64::from(prime_from(size));
    let mut turns: Vec<Turn> = Vec::with_capacity(members.len());
    for (index, (name, weight)) in (0u32..).zip(members).filter(|(_, (_, w))| *w > 0) {
        let hash = key_hash(name.as_bytes());
        turns.push(Turn {
            index,
            offset: hash % size,
            skip: mixed(hash ^ 0x5bd1) % (size - 1) + 1,
            next: 0,
            weight: f64::from(*weight) / f64::from(heaviest),
            target: 0.0,
        });
    }
    // The order of names decides who begins, not the order in which endpoints were listed.
    turns.sort_by_key(|t| (t.offset, t.skip));
    let mut slots = vec![u32::MAX; usize::try_from(size).unwrap_or(0)];
    let (mut filled, mut round) = (0, 0.0);
    while filled < slots.len() {
        round += 1.0;
        for turn in &mut turns {
            if round * turn.weight < turn.target || filled == slots.len() {
                continue;
            }
            turn.target += 1.0;
            loop {
                let at = slot(turn.offset + turn.skip * turn.next, size);
                turn.next += 1;
                if let Some(free) = at.and_then(|at| slots.get_mut(at)).filter(|s| **s == u32::MAX)
                {
                    *free = turn.index;
                    filled += 1;
                    break;
                }
            }
        }
    }
    slots.into()
}

fn prime_from(n: u32) -> u32 {
    let is_prime = |n: u32| (2u32..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d));
    (n..).find(|n| is_prime(*n)).unwrap_or(n)
}
