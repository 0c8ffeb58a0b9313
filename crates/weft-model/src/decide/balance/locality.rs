// SPDX-License-Identifier: Apache-2.0
//! Where an endpoint stands as seen from one client: which share or which turn its place has.
//! Pure; made once per endpoint set.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::{Endpoint, Failover, Labels, Locality, LocalityPattern, LocalityPolicy, ZoneAware};

/// What of the client itself decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    pub locality: Locality,
    pub labels: Labels,
    /// Its name as an endpoint of its own service.
    pub id: Arc<str>,
    /// Instances of its own service by zone, in its region; empty when nobody knows.
    pub callers: BTreeMap<Arc<str>, u32>,
}

/// Endpoints by place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    pub rule: PlaceRule,
    /// The place of each endpoint; `None` gets nothing from here. Empty when all are in one place.
    of: Vec<Option<u32>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PlaceRule {
    /// One place.
    #[default]
    Any,
    /// Places in order; a later one gets what the earlier ones cannot carry.
    Levels,
    /// Weights of places. Where none of those that have one has anybody left, the `rest` gets
    /// requests, or nobody.
    Weights { weights: Vec<u32>, rest: bool },
    /// Zones first, the own one foremost; then places in order.
    Zones(ZoneRule),
}

/// What decides how zones of one region share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ZoneRule {
    /// Callers by zone, the own one foremost.
    pub callers: Vec<u32>,
    /// With those of zones that have no endpoint.
    pub callers_all: u32,
    pub endpoints_min: u32,
}

const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";
const SUB_ZONE: &str = "topology.istio.io/subzone";

/// Sorts endpoints into places. A client that does not know where it is treats all alike.
pub fn places<'e>(
    policy: &LocalityPolicy,
    own: &Own,
    endpoints: impl Iterator<Item = &'e Endpoint>,
) -> Places {
    match policy {
        LocalityPolicy::Any => Places::default(),
        LocalityPolicy::Distribute(list) => {
            let Some(found) = list.iter().find(|d| d.from.takes(&own.locality)) else {
                return Places::default();
            };
            let place = |e: &Endpoint| {
                let at = found.to.iter().position(|(to, _)| to.takes(&e.locality))?;
                u32::try_from(at).ok()
            };
            Places {
                rule: PlaceRule::Weights {
                    weights: found.to.iter().map(|(_, weight)| *weight).collect(),
                    rest: false,
                },
                of: endpoints.map(place).collect(),
            }
        }
        LocalityPolicy::Weights(named) => {
            let place = |e: &Endpoint| {
                let at = named.iter().position(|(at, _)| *at == e.locality);
                u32::try_from(at.unwrap_or(named.len())).ok()
            };
            let weights = named.iter().map(|(_, weight)| *weight).chain([0]).collect();
            Places {
                rule: PlaceRule::Weights { weights, rest: true },
                of: endpoints.map(place).collect(),
            }
        }
        LocalityPolicy::Failover(failover) => {
            let blind = own.locality.is_unknown() && failover.labels.is_empty();
            if blind {
                return Places::default();
            }
            Places {
                rule: PlaceRule::Levels,
                of: endpoints.map(|e| Some(level(failover, own, e))).collect(),
            }
        }
        LocalityPolicy::Zones(_) if own.locality.zone.is_empty() => Places::default(),
        LocalityPolicy::Zones(policy) => zones(policy, own, &endpoints.collect::<Vec<_>>()),
    }
}

fn zones(policy: &ZoneAware, own: &Own, endpoints: &[&Endpoint]) -> Places {
    let far = |e: &Endpoint| match &policy.failover {
        failover if failover.labels.is_empty() => region_level(failover, own, e),
        failover => level(failover, own, e),
    };
    let mut zones: Vec<&Arc<str>> = vec![&own.locality.zone];
    for endpoint in endpoints.iter().filter(|e| far(e) == 0) {
        if !zones.contains(&&endpoint.locality.zone) {
            zones.push(&endpoint.locality.zone);
        }
    }
    let place = |e: &&Endpoint| {
        let level = usize::try_from(far(e)).ok()?;
        let at = match level {
            0 => zones.iter().position(|zone| **zone == e.locality.zone)?,
            level => zones.len() + level - 1,
        };
        u32::try_from(at).ok()
    };
    let of = endpoints.iter().map(place).collect();
    // Whoever knows of nobody else counts itself.
    let alone = BTreeMap::from([(own.locality.zone.clone(), 1)]);
    let callers = if own.callers.is_empty() { &alone } else { &own.callers };
    let rule = ZoneRule {
        callers: zones.iter().map(|zone| callers.get(*zone).copied().unwrap_or(0)).collect(),
        callers_all: callers.values().sum(),
        endpoints_min: policy.endpoints_min,
    };
    Places { rule: PlaceRule::Zones(rule), of }
}

/// How far an endpoint's region is.
fn region_level(failover: &Failover, own: &Own, endpoint: &Endpoint) -> u32 {
    let (here, there) = (&own.locality.region, &endpoint.locality.region);
    let next = failover.regions.iter().any(|(from, to)| from == here && to == there);
    match (here == there, next) {
        (true, _) => 0,
        (false, true) => 1,
        (false, false) => 2,
    }
}

/// How far an endpoint is: 0 is nearest.
fn level(failover: &Failover, own: &Own, endpoint: &Endpoint) -> u32 {
    if !failover.labels.is_empty() {
        let shared = failover.labels.iter().take_while(|want| shares(want, own, endpoint)).count();
        return u32::try_from(failover.labels.len() - shared).unwrap_or(u32::MAX);
    }
    let (here, there) = (&own.locality, &endpoint.locality);
    if here.region != there.region {
        let next = failover.regions.iter().find(|(from, _)| *from == here.region);
        return if next.is_some_and(|(_, to)| *to == there.region) { 3 } else { 4 };
    }
    match (here.zone == there.zone, here.sub_zone == there.sub_zone) {
        (true, true) => 0,
        (true, false) => 1,
        (false, _) => 2,
    }
}

fn shares(want: &str, own: &Own, endpoint: &Endpoint) -> bool {
    let theirs = |key: &str| label(&endpoint.labels, &endpoint.locality, key);
    match want.split_once('=') {
        Some((key, value)) => theirs(key) == Some(value),
        None => {
            let mine = label(&own.labels, &own.locality, want);
            mine.is_some() && theirs(want) == mine
        }
    }
}

fn label<'a>(labels: &'a Labels, locality: &'a Locality, key: &str) -> Option<&'a str> {
    let of_place = match key {
        REGION => &locality.region,
        ZONE => &locality.zone,
        SUB_ZONE => &locality.sub_zone,
        _ => return labels.get(key).map(|v| &**v),
    };
    Some(&**of_place).filter(|text| !text.is_empty()).or_else(|| labels.get(key).map(|v| &**v))
}

// === impl Places ===

impl Places {
    /// The place of an endpoint by its index in the set.
    pub fn of(&self, index: usize) -> Option<u32> {
        match self.rule {
            PlaceRule::Any => Some(0),
            _ => self.of.get(index).copied().flatten(),
        }
    }
}

// === impl Locality ===

impl Locality {
    /// Where an instance says that it is: Istio's `istio-locality`, else the topology labels
    /// that Kubernetes gives to pods.
    pub fn of_labels(labels: &Labels) -> Self {
        let get = |key: &str| labels.get(key).cloned().unwrap_or_default();
        if let Some(text) = labels.get("istio-locality") {
            // Label values have no slash; Istio takes a dot in its place.
            let separator = if text.contains('/') { '/' } else { '.' };
            let mut parts = text.splitn(3, separator).map(Arc::<str>::from);
            let mut next = || parts.next().unwrap_or_default();
            return Self { region: next(), zone: next(), sub_zone: next() };
        }
        Self { region: get(REGION), zone: get(ZONE), sub_zone: get(SUB_ZONE) }
    }

    /// Reads `region/zone/sub-zone`; later parts may be absent.
    pub fn parse(text: &str) -> Self {
        let mut parts = text.splitn(3, '/').map(Arc::<str>::from);
        let mut next = || parts.next().unwrap_or_default();
        Self { region: next(), zone: next(), sub_zone: next() }
    }
}

// === impl LocalityPattern ===

impl LocalityPattern {
    pub fn takes(&self, locality: &Locality) -> bool {
        let parts = [&locality.region, &locality.zone, &locality.sub_zone];
        let mut wanted = self.0.splitn(3, '/');
        parts.into_iter().all(|part| match wanted.next() {
            None | Some("*" | "") => true,
            Some(text) => text == &**part,
        })
    }
}
