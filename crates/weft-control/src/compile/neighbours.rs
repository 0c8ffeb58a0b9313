// SPDX-License-Identifier: Apache-2.0
//! Which ports of a Gateway's addresses others have. Called by `gateway`; judges others' listeners
//! only as far as they hold a place, and says nothing of them but that.
//!
//! Gateways' own listeners come before those of any ListenerSet: who may add a listener to one
//! Gateway takes no port from another. Among equals the older Gateway counts first.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use weft_kinds::views::View;
use weft_kinds::views::gateway::Gateway;
use weft_kinds::world::{Index, KindId, Object};

use super::gateway::{self, Addresses};
use super::listeners::{Failed, Judged, Place, Whole, is_udp};
use super::{Env, Reader};

/// Places that a Gateway cannot have, with who has them.
#[derive(Debug, Default)]
pub(super) struct Taken {
    own: BTreeMap<Place, String>,
    /// What its sets cannot have beside these.
    sets: BTreeMap<Place, String>,
}

/// Ports that other Gateways have on these addresses.
pub(super) fn taken<'w>(
    reader: &Reader<'w>,
    env: &Env,
    whole: &Whole<'w>,
    addresses: &Addresses,
) -> Taken {
    let mut out = Taken::default();
    let ips = addresses.as_deref().unwrap_or_default();
    let age = |o: &Object| (o.meta.created_ms(), o.key.clone());
    for other in around(reader, ips) {
        let View::Gateway(view) = &other.view else { continue };
        let (is_older, has_sets) = (age(other) < age(whole.object), !whole.sets.is_empty());
        let matters = other.key != whole.object.key && (is_older || has_sets);
        if !matters || !gateway::is_ours(reader, view) {
            continue;
        }
        let theirs = gateway::addresses(other, view).unwrap_or_default();
        if let Some(ip) = theirs.iter().find(|ip| ips.iter().any(|own| overlap(*own, **ip))) {
            let whole = read(reader, other, view, is_older && has_sets);
            for judged in whole.judged(reader, env, &Taken::default()) {
                out.note(env, other, *ip, is_older, &judged);
            }
        }
    }
    out
}

/// A Gateway with the sets that it takes, or without.
fn read<'w>(
    reader: &Reader<'w>,
    object: &'w Object,
    gateway: &'w Gateway,
    with_sets: bool,
) -> Whole<'w> {
    match with_sets {
        true => Whole::read(reader, object, gateway),
        false => Whole::alone(object, gateway),
    }
}

/// The Gateways that may bind one of some addresses, these addresses' own among them.
fn around<'w>(reader: &Reader<'w>, ips: &[IpAddr]) -> Vec<&'w Object> {
    if ips.iter().any(IpAddr::is_unspecified) {
        return reader.kind(KindId::Gateway, None).into_iter().map(|o| &**o).collect();
    }
    let mut out = BTreeMap::new();
    for ip in ips {
        let any: IpAddr = match ip {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        for at in [*ip, any] {
            let found = reader.index(Index::GatewaysByAddress, &at.to_string());
            out.extend(found.into_iter().map(|o| (&o.key, &**o)));
        }
    }
    out.into_values().collect()
}

/// Whether one socket cannot be bound while the other is.
fn overlap(a: IpAddr, b: IpAddr) -> bool {
    a == b || a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified())
}

// === impl Taken ===

impl Taken {
    /// Who has a place that a Gateway's own listener wants, or one of its sets'.
    pub fn by(&self, place: Place, is_set: bool) -> Option<&str> {
        let beside = self.sets.get(&place).filter(|_| is_set);
        self.own.get(&place).or(beside).map(String::as_str)
    }

    /// Notes another's listener when it holds its place. One of a set does so while nothing of its
    /// own Gateway keeps it from being served; a Gateway's own one also while its certificate is
    /// amiss, since it comes back. That a third Gateway may have the place is not asked: on one
    /// address somebody has it then all the same, and of several addresses who may have which
    /// would hang on chains of Gateways.
    fn note(&mut self, env: &Env, other: &Object, ip: IpAddr, is_older: bool, its: &Judged<'_>) {
        let is_own = its.owner.key == other.key;
        let holds = match &its.section {
            Ok(_) => true,
            Err(Failed::Unresolved) => is_own,
            Err(Failed::Conflict(_) | Failed::Refused(_)) => false,
        };
        if !holds {
            return;
        }
        let port = env.bind_port(its.listener.port);
        let noted = if is_own && is_older { &mut self.own } else { &mut self.sets };
        let text = || format!("{} has {ip}:{port} already", other.key);
        noted.entry((port, is_udp(its.listener))).or_insert_with(text);
    }
}
