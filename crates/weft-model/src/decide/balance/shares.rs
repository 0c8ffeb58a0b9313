// SPDX-License-Identifier: Apache-2.0
//! Who of a backend's endpoints gets which share of its requests, and why the others get none:
//! health, ejection, panic, places and warm-up put together. Pure; a worker asks again only when
//! one of these changed, and buffers are reused.

use std::fmt;

use super::locality::{PlaceRule, ZoneRule};
use crate::{Health, Warmup};

/// A place carries its part as long as this share of its endpoints is left (Envoy's
/// overprovisioning factor of 1.4: 72 % of the endpoints carry all).
const OVERPROVISION_BASIS_POINTS: u64 = 14_000;
const WHOLE: u64 = 10_000;
/// What the shares of several places sum up to, about.
const FINE: u128 = 1 << 24;

/// An endpoint as its share is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    pub weight: u32,
    pub health: Health,
    /// It fails this proxy's own health check.
    pub failing: bool,
    pub ejected: bool,
    /// It asked for a pause (429 or 503 with `Retry-After`).
    pub pausing: bool,
    /// Part of its weight that a new endpoint has already.
    pub warm_basis_points: u32,
    pub place: Option<u32>,
}

/// Why an endpoint gets requests or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Open,
    /// In spite of its health or ejection, since too few are left.
    Panic,
    Unhealthy,
    /// The same, by this proxy's own check.
    Failing,
    Draining,
    NoWeight,
    Ejected,
    Pausing,
    /// Its place has no share for clients from here.
    NoPlace,
    /// Nearer places carry everything.
    Standby,
}

/// Shares by index of endpoint.
#[derive(Clone, Debug, Default)]
pub struct Shares {
    /// 0 gets nothing. Plain weights while one place carries all and nobody warms up.
    pub weights: Vec<u32>,
    pub standings: Vec<Standing>,
    places: Vec<Place>,
    /// What falls into panic together.
    groups: Vec<Group>,
}

/// Places that stand in for one another whatever happens: others are asked before those that are
/// out come back (Envoy's priorities).
#[derive(Clone, Copy, Debug, Default)]
struct Group {
    /// Its endpoints, and those of them that are open.
    of: Place,
    /// Those that are out come back, all of them.
    panic: bool,
}

/// Who comes back of those that are out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Back {
    /// Those of groups in panic, beside others that can be asked.
    Beside,
    /// Whoever counts as open carries its place's part.
    Counted,
    /// Everybody of several groups, none of which has enough, or of places with weights, which
    /// do not count then.
    All,
}

#[derive(Clone, Copy, Debug, Default)]
struct Place {
    all: u64,
    open: u64,
    /// Of its open endpoints.
    weight: u64,
    share: u64,
}

/// The part of its weight that an endpoint has at an age.
pub fn warm_basis_points(warmup: &Warmup, age_ms: u64) -> u32 {
    if age_ms >= warmup.duration_ms {
        return 10_000;
    }
    let ratio = float(age_ms) / float(warmup.duration_ms.max(1));
    let bent = ratio.powf(1_000.0 / f64::from(warmup.aggression_permille.max(1)));
    // Between 0 and 10,000 by construction.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let part = (bent * 10_000.0).clamp(1.0, 10_000.0) as u32;
    part.max(warmup.min_basis_points.min(10_000))
}

#[allow(clippy::cast_precision_loss)]
fn float(n: u64) -> f64 {
    n as f64
}

// === impl Shares ===

impl Shares {
    /// Decides anew.
    pub fn settle(&mut self, members: &[Member], rule: &PlaceRule, panic_basis_points: u32) {
        self.standings.clear();
        self.standings.extend(members.iter().map(Standing::of));
        let back = self.relent(members, rule, panic_basis_points);
        self.count(members, rule, back);
        match rule {
            // Nobody is known to be better than others: each endpoint gets the same.
            PlaceRule::Weights { weights, rest: false } if back == Back::All => {
                for (place, weight) in self.places.iter_mut().zip(weights) {
                    place.share = if *weight > 0 { place.all } else { 0 };
                }
            }
            _ if back == Back::All => self.places.iter_mut().for_each(|p| p.share = p.all),
            PlaceRule::Any => self.places.iter_mut().for_each(|p| p.share = WHOLE),
            PlaceRule::Levels => share_by_level(&mut self.places, WHOLE),
            PlaceRule::Zones(zones) => self.share_by_zone(zones),
            PlaceRule::Weights { weights, rest } => self.share_by_weight(weights, *rest),
        }
        self.weigh(members);
    }

    /// Where too few are left, those that are out come back: everybody but the leaving in panic,
    /// else the ejected and pausing, since no answer is worse than a guess. Nobody is in panic
    /// while the groups carry everything together (Envoy's normalised total availability), and
    /// nobody comes back to a group that has nobody left while another group has.
    fn relent(&mut self, members: &[Member], rule: &PlaceRule, panic_basis_points: u32) -> Back {
        self.group(members, rule);
        let there = self.groups.iter().filter(|g| g.of.all > 0).count();
        let carried: u64 = self.groups.iter().map(|g| g.of.capacity()).sum();
        let panic_at = u64::from(panic_basis_points);
        let enough = carried >= WHOLE;
        for group in &mut self.groups {
            group.panic = !enough && group.of.open * WHOLE < group.of.all * panic_at;
        }
        let none = self.groups.iter().all(|g| g.of.open == 0);
        let in_panic = self.groups.iter().filter(|g| g.panic).count();
        let weighted = matches!(rule, PlaceRule::Weights { .. });
        let back = match in_panic {
            n if n > 0 && n == there && (there > 1 || weighted) => Back::All,
            _ if there <= 1 || none => Back::Counted,
            _ => Back::Beside,
        };
        for (member, standing) in members.iter().zip(&mut self.standings) {
            let group = rule.group_of(member.place).and_then(|g| self.groups.get(g));
            let panic = group.is_some_and(|g| g.panic && (back != Back::Beside || g.of.open > 0));
            let comes = match standing {
                Standing::Ejected | Standing::Pausing => panic || none,
                Standing::Unhealthy | Standing::Failing => panic,
                _ => false,
            };
            if comes {
                *standing = Standing::Panic;
            }
        }
        back
    }

    /// Counts endpoints by group.
    fn group(&mut self, members: &[Member], rule: &PlaceRule) {
        self.groups.clear();
        for (member, standing) in members.iter().zip(&self.standings) {
            let Some(at) = rule.group_of(member.place) else { continue };
            if at >= self.groups.len() {
                self.groups.resize(at + 1, Group::default());
            }
            let Some(group) = self.groups.get_mut(at) else { continue };
            group.of.all += u64::from(standing.counts());
            group.of.open += u64::from(*standing == Standing::Open);
        }
    }

    fn count(&mut self, members: &[Member], rule: &PlaceRule, back: Back) {
        let several = members.iter().filter_map(|m| m.place).max().map_or(0, |n| n as usize + 1);
        let n = match rule {
            PlaceRule::Weights { weights, .. } => weights.len(),
            PlaceRule::Zones(zones) => several.max(zones.callers.len()),
            PlaceRule::Any | PlaceRule::Levels => several,
        };
        self.places.clear();
        self.places.resize(n, Place::default());
        for (member, standing) in members.iter().zip(&self.standings) {
            let Some(place) = member.place.and_then(|p| self.places.get_mut(p as usize)) else {
                continue;
            };
            place.all += u64::from(standing.counts());
            if standing.is_in() {
                place.open += u64::from(back != Back::Beside || *standing == Standing::Open);
                place.weight += member.warm_weight();
            }
        }
    }

    /// Each place loses with its endpoints.
    fn share_by_weight(&mut self, weights: &[u32], rest: bool) {
        for (place, weight) in self.places.iter_mut().zip(weights) {
            place.share = u64::from(*weight) * place.capacity();
        }
        if rest && self.places.iter().all(|p| p.share == 0) {
            self.places.iter_mut().for_each(|p| p.share = p.weight);
        }
    }

    /// Zones carry together what a nearest level would.
    fn share_by_zone(&mut self, rule: &ZoneRule) {
        let (near, far) = self.places.split_at_mut(rule.callers.len());
        let sum = |part: fn(&Place) -> u64| near.iter().map(part).sum();
        let together = Place { all: sum(|p| p.all), open: sum(|p| p.open), ..Place::default() };
        let carried = together.capacity();
        share_among_zones(near, rule, together.open);
        for zone in near {
            zone.share = zone.share * carried / WHOLE;
        }
        share_by_level(far, WHOLE - carried);
    }

    fn weigh(&mut self, members: &[Member]) {
        let shares: u64 = self.places.iter().map(|p| p.share).sum();
        let sharing = self.places.iter().filter(|p| p.share > 0 && p.open > 0).count();
        let cold = members.iter().zip(&self.standings).any(|(m, s)| s.is_in() && m.is_cold());
        let plain = sharing <= 1 && !cold;
        self.weights.clear();
        for (member, standing) in members.iter().zip(&mut self.standings) {
            let place = member.place.and_then(|p| self.places.get(p as usize));
            let weight = match place {
                Some(place) if standing.is_in() && place.share == 0 => {
                    *standing = Standing::Standby;
                    0
                }
                Some(_) if standing.is_in() && plain => member.weight,
                Some(place) if standing.is_in() => {
                    let parts = u128::from(place.weight.max(1)) * u128::from(shares.max(1));
                    let own = u128::from(member.warm_weight()) * u128::from(place.share);
                    u32::try_from((own * FINE / parts).max(1)).unwrap_or(u32::MAX)
                }
                _ => 0,
            };
            self.weights.push(weight);
        }
    }
}

fn share_by_level(places: &mut [Place], mut left: u64) {
    for place in places {
        place.share = place.capacity().min(left);
        left -= place.share;
    }
}

/// Envoy's zone-aware rule: a zone that has at least its callers' part of the endpoints takes all
/// of theirs; another takes what it has, and the rest goes to zones with more than their part. So
/// every endpoint has the same load when each caller sends the same.
fn share_among_zones(zones: &mut [Place], rule: &ZoneRule, open: u64) {
    let parts = |n: u64, of: u64| (WHOLE * n).checked_div(of).unwrap_or(0);
    let callers = |i: usize| rule.callers.get(i).copied().map_or(0, u64::from);
    let own = zones.first().map_or(0, |zone| zone.open);
    if open < u64::from(rule.endpoints_min) || own == 0 {
        let weight: u64 = zones.iter().map(|zone| zone.weight).sum();
        zones.iter_mut().for_each(|zone| zone.share = parts(zone.weight, weight));
        return;
    }
    let (have, want) = (parts(own, open), parts(callers(0), u64::from(rule.callers_all)));
    let stays = if have >= want { WHOLE } else { parts(have, want) };
    let mut spare = 0;
    for (i, zone) in zones.iter_mut().enumerate().skip(1) {
        let callers = parts(callers(i), u64::from(rule.callers_all));
        zone.share = parts(zone.open, open).saturating_sub(callers);
        spare += zone.share;
    }
    for (i, zone) in zones.iter_mut().enumerate() {
        zone.share = match i {
            0 => stays,
            _ => ((WHOLE - stays) * zone.share).checked_div(spare).unwrap_or(0),
        };
    }
    // Roundings leave nothing over, and nobody has more than its part.
    if spare == 0
        && let Some(own) = zones.first_mut()
    {
        own.share = WHOLE;
    }
}

// === impl PlaceRule ===

impl PlaceRule {
    /// The group of a place. Zones of one region are one, as are places with weights: each of them
    /// is meant to be asked.
    fn group_of(&self, place: Option<u32>) -> Option<usize> {
        let place = usize::try_from(place?).ok()?;
        Some(match self {
            Self::Any | Self::Weights { .. } => 0,
            Self::Levels => place,
            Self::Zones(zones) => (place + 1).saturating_sub(zones.callers.len()),
        })
    }
}

// === impl Place ===

impl Place {
    /// Of 10,000: what it can carry with those that are left.
    fn capacity(&self) -> u64 {
        (OVERPROVISION_BASIS_POINTS * self.open).checked_div(self.all).unwrap_or(0).min(WHOLE)
    }
}

// === impl Member ===

impl Member {
    fn is_cold(&self) -> bool {
        self.warm_basis_points < 10_000
    }

    fn warm_weight(&self) -> u64 {
        u64::from(self.weight) * u64::from(self.warm_basis_points)
    }
}

// === impl Standing ===

impl Standing {
    fn of(member: &Member) -> Self {
        match member.health {
            Health::Draining => Self::Draining,
            _ if member.weight == 0 => Self::NoWeight,
            _ if member.place.is_none() => Self::NoPlace,
            Health::Unhealthy => Self::Unhealthy,
            Health::Healthy if member.failing => Self::Failing,
            Health::Healthy if member.ejected => Self::Ejected,
            Health::Healthy if member.pausing => Self::Pausing,
            Health::Healthy => Self::Open,
        }
    }

    /// Whether it may get requests, unless nearer ones take all.
    pub fn is_in(self) -> bool {
        matches!(self, Self::Open | Self::Panic)
    }

    /// Whether it belongs to what a share of endpoints is measured by.
    fn counts(self) -> bool {
        !matches!(self, Self::Draining | Self::NoWeight | Self::NoPlace)
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "takes requests",
            Self::Panic => "takes requests in spite of its state, since too few others are left",
            Self::Unhealthy => "fails its checks",
            Self::Failing => "fails this proxy's health check",
            Self::Draining => "is leaving",
            Self::NoWeight => "its weight is 0",
            Self::Ejected => "is ejected after failures",
            Self::Pausing => "asked for a pause",
            Self::NoPlace => "its locality has no share for clients from here",
            Self::Standby => "stands by while nearer localities carry everything",
        })
    }
}
