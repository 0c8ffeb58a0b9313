// SPDX-License-Identifier: Apache-2.0
//! Consul's names: services, nodes, prepared queries, what speaks for a service in its mesh, and
//! from an address back to a node or service. Called by `find.rs`; pure.

use std::net::IpAddr;
use std::sync::Arc;

use domain::base::iana::Rtype;
use weft_base::limits::DNS_ANSWERS_MAX;
use weft_base::name::{ServiceKey, service_slug};
use weft_identity::permission::{Kind, Verb};
use weft_kinds::views::catalog::{NodeRecord, Registration, Status};
use weft_kinds::world::{Door, Instance, RegistrationKey};

use super::super::directory::Holder;
use super::super::names::{Zones, to_hex};
use super::{Data, Found, Look, addresses, cluster, shows, texts, ttl_of};
use crate::consul::near::Near;
use crate::consul::view::{CONSUL_SERVICE, DEFAULT_NAMESPACE, Entry, View};
use crate::consul::{Who, gateways, query_run};

/// In a registration's meta: how long answers with it may be kept, `30s`.
const TTL_META: &str = "dns-ttl";
/// Keys of a node's meta that stand for themselves in a TXT record (Consul's convention).
const BARE_TXT: &str = "rfc1035-";
/// Addresses under which a service is reached through Consul's mesh.
const VIRTUAL: [&str; 2] = ["consul-virtual", "virtual"];

pub fn node(look: &mut Look, name: &str, rtype: Rtype) -> Found {
    let known = look.directory.node(look.view, name);
    let Some(node) = known.filter(|node| may(look.who, Kind::Node, DEFAULT_NAMESPACE, &node.node))
    else {
        return Found::default();
    };
    let meta = node.meta.iter().map(|(key, value)| match key.starts_with(BARE_TXT) {
        true => value.to_string(),
        false => format!("{key}={value}"),
    });
    let txt = texts(meta, rtype);
    let tagged = tag_of(rtype).and_then(|tag| node.tagged_addresses.get(tag));
    let tagged = tagged.and_then(|address| of_type(address, rtype));
    match tagged.map_or_else(|| node.address.parse(), Ok) {
        Ok(address) => {
            let mut found = addresses([address], rtype);
            found.answers.extend(txt.answers);
            found
        }
        Err(_) if rtype == Rtype::TXT => txt,
        Err(_) => Found::alias(&node.address),
    }
}

pub fn service(
    look: &mut Look,
    (namespace, service, tag): (&str, &str, Option<&str>),
    rtype: Rtype,
) -> Found {
    if service == CONSUL_SERVICE && namespace == DEFAULT_NAMESPACE {
        return servers(look, rtype);
    }
    let Some(key) = known(look.view, namespace, service) else {
        return Found::default();
    };
    let all = look.view.world.instances(key.namespace.as_str(), key.name.as_str()).values();
    let tagged =
        |i: &Instance| tag.is_none_or(|tag| i.tags.iter().any(|own| own.eq_ignore_ascii_case(tag)));
    let (view, who, only) = (look.view, look.who, look.only_passing);
    let fitting: Vec<Target> = all
        .filter(|i| shows(i, only) && tagged(i) && sees(view, who, i))
        .take(DNS_ANSWERS_MAX)
        .map(|i| Target::of(look.view, i, rtype))
        .collect();
    records(look.zones, &fitting, rtype)
}

/// A prepared query by its name or id; other datacentres are not reachable from here.
pub fn query(look: &mut Look, name: &str, rtype: Rtype) -> Found {
    let Some(state) = look.records else { return Found::default() };
    let Some(query) = look.directory.query(state, name) else {
        return Found { passing: true, ..Found::default() };
    };
    let mut ran = match query_run::token(&query) {
        "" => query_run::run(look.view, &query, DEFAULT_NAMESPACE, look.who),
        own => query_run::run(look.view, &query, DEFAULT_NAMESPACE, &(look.holder)(own)),
    };
    let from = match query_run::near(&query) {
        "" => None,
        // Of who asks only an address is known: what is near this server is told.
        "_agent" | "_ip" => Some(look.view.own.node.node.clone()),
        named => Some(look.view.spelled(named)),
    };
    let near = from.map(|from| Near::new(from, state.clone()));
    // Where nobody knows how far anything is, all are told in turn.
    let near = near.filter(Near::is_known);
    if let Some(near) = &near {
        near.sort(&mut ran.entries, |entry| &entry.node.node);
    }
    let targets: Vec<Target> =
        ran.entries.iter().take(DNS_ANSWERS_MAX).map(|e| Target::of_entry(e, rtype)).collect();
    let ttl = ttl_of(&ran.ttl);
    let found = records(look.zones, &targets, rtype);
    Found { ttl: ttl.or(found.ttl), passing: true, in_order: near.is_some(), ..found }
}

/// What speaks Connect for a service: its sidecars, and instances that do it themselves.
pub fn connect(look: &mut Look, (namespace, service): (&str, &str), rtype: Rtype) -> Found {
    let keys = look.directory.connect(look.view, namespace, service);
    let (who, only) = (look.who, look.only_passing);
    let shown = |entry: &Entry| {
        let stands_for = entry.service.speaks_for().any(|name| {
            name.eq_ignore_ascii_case(service) && may(who, Kind::Service, namespace, name)
        });
        let shows = entry.takes() && (!only || entry.status() == Status::Passing);
        shows && stands_for && sees_entry(who, entry)
    };
    let targets: Vec<Target> = keys
        .iter()
        .filter_map(|key| look.view.registered(key))
        .filter(shown)
        .take(DNS_ANSWERS_MAX)
        .map(|entry| Target::of_entry(&entry, rtype))
        .collect();
    records(look.zones, &targets, rtype)
}

/// The one address of a service as a whole.
pub fn virtual_address(look: &mut Look, (namespace, service): (&str, &str), rtype: Rtype) -> Found {
    let who = look.who;
    let may = |name: &str| may(who, Kind::Service, namespace, name);
    let Ok(key) = ServiceKey::new(namespace, &service_slug(service)) else {
        return Found::default();
    };
    // By the names that their makers gave; what nobody registered has the one that was asked for.
    let registered = || look.view.world.joined(&key).map(|(_, r)| r);
    let seen = match registered().next() {
        Some(_) => registered().any(|registration| may(&registration.service)),
        None => may(service),
    };
    if let Some(own) = cluster::virtual_addresses(look.view, namespace, key.name.as_str()) {
        return if seen { addresses(own, rtype) } else { Found::default() };
    }
    let seen = registered().filter(|registration| may(&registration.service));
    let tagged = seen.filter_map(|registration| {
        let named = VIRTUAL.iter().find_map(|name| registration.tagged_addresses.get(*name));
        named?.address.parse::<IpAddr>().ok()
    });
    match tagged.min() {
        Some(address) => addresses([address], rtype),
        None => Found::default(),
    }
}

/// Where the ingress gateways listen that config entries name for a service.
pub fn ingress(look: &mut Look, (namespace, service): (&str, &str), rtype: Rtype) -> Found {
    let view = look.view;
    let gateways =
        look.records.map(|state| gateways::ingress_gateways(view, state, namespace, service));
    let (mut targets, only) = (Vec::new(), look.only_passing);
    for gateway in gateways.into_iter().flatten() {
        let Some(key) = known(look.view, namespace, &gateway) else { continue };
        let all = look.view.world.instances(namespace, key.name.as_str()).values();
        let shown = all.filter(|i| shows(i, only) && sees(look.view, look.who, i));
        targets.extend(shown.map(|i| Target::of(look.view, i, rtype)));
    }
    targets.truncate(DNS_ANSWERS_MAX);
    Found { passing: true, ..records(look.zones, &targets, rtype) }
}

/// Who has an address: a node, or else a service's instance. `None` when nobody here, or nobody who
/// may be seen.
pub fn reverse(look: &mut Look, address: IpAddr, rtype: Rtype) -> Option<Found> {
    let Holder { name, kind, namespace, own } =
        look.directory.holder(look.view, look.zones, address)?;
    if !may(look.who, kind, &namespace, &own) {
        return None;
    }
    Some(match rtype {
        Rtype::PTR | Rtype::ANY => {
            Found { exists: true, answers: vec![Data::Ptr(name)], ..Found::default() }
        }
        _ => Found::nodata(),
    })
}

/// A service that has instances, however its name is written.
fn known(view: &View, namespace: &str, name: &str) -> Option<ServiceKey> {
    let key = ServiceKey::new(namespace, &service_slug(name)).ok()?;
    (!view.world.instances(namespace, key.name.as_str()).is_empty()).then_some(key)
}

// === rights ===

fn may(who: &Who, kind: Kind, namespace: &str, name: &str) -> bool {
    who.may(Verb::Read, kind, namespace, name)
}

/// Whether an instance may be seen: its service, by the name that its maker gave it, and its node.
fn sees(view: &View, who: &Who, instance: &Instance) -> bool {
    if who.may_all() {
        return true;
    }
    let (namespace, slug) = (instance.service.namespace.as_str(), instance.service.name.as_str());
    let own = registration(view, instance).map_or(slug, |registration| &registration.service);
    let node = if instance.node.is_empty() { &view.own.node.node } else { &instance.node };
    may(who, Kind::Service, namespace, own) && may(who, Kind::Node, namespace, node)
}

fn sees_entry(who: &Who, entry: &Entry) -> bool {
    let namespace = &entry.service.namespace;
    may(who, Kind::Service, namespace, &entry.service.service)
        && may(who, Kind::Node, namespace, &entry.node.node)
}

/// What a Consul client registered as this instance.
fn registration<'a>(view: &'a View, instance: &Instance) -> Option<&'a Arc<Registration>> {
    if instance.origin != Door::Consul {
        return None;
    }
    let (node, id) = instance.id.split_once('/')?;
    let namespace = instance.service.namespace.as_str().into();
    let key = RegistrationKey { namespace, node: node.into(), id: id.into() };
    view.world.catalog().registration(&key)
}

// === targets ===

/// One instance as answers name it.
struct Target {
    address: Place,
    port: u16,
    weight: u16,
    /// Its node, when it is reached at its node's own address.
    node: Option<Arc<str>>,
    ttl: Option<u32>,
}

enum Place {
    Address(IpAddr),
    Name(Arc<str>),
}

impl Place {
    fn of(text: &Arc<str>) -> Self {
        text.parse().map_or_else(|_| Self::Name(text.clone()), Self::Address)
    }
}

impl Target {
    /// `rtype`: what is asked for.
    fn of(view: &View, instance: &Instance, rtype: Rtype) -> Self {
        let own = registration(view, instance);
        let at_node = own.is_some_and(|own| own.address.is_empty());
        let tagged = own.and_then(|own| tagged(own, rtype, || view.node(&own.node)));
        let address = match (tagged, &instance.hostname) {
            (Some(address), _) => Place::Address(address),
            // This machine's own node, which nobody had to register.
            (None, Some(name)) if name.is_empty() => Place::of(&view.node(&instance.node).address),
            (None, Some(name)) => Place::Name(name.clone()),
            (None, None) => Place::Address(instance.address),
        };
        Self {
            address,
            port: instance.ports.first().map_or(0, |port| port.port),
            weight: u16::try_from(instance.weight).unwrap_or(u16::MAX),
            node: at_node.then(|| instance.node.clone()),
            ttl: instance.meta(TTL_META).and_then(|text| ttl_of(text)),
        }
    }

    fn of_entry(entry: &Entry, rtype: Rtype) -> Self {
        let service = &entry.service;
        let tagged = tagged(service, rtype, || entry.node.clone());
        Self {
            address: tagged.map_or_else(|| Place::of(entry.address()), Place::Address),
            port: service.port,
            weight: u16::try_from(entry.weight()).unwrap_or(u16::MAX),
            node: service.address.is_empty().then(|| entry.node.node.clone()),
            ttl: service.meta.get(TTL_META).and_then(|text| ttl_of(text)),
        }
    }
}

/// Where Consul's clients keep a dual-stack instance's or node's address of one family.
fn tag_of(rtype: Rtype) -> Option<&'static str> {
    match rtype {
        Rtype::A => Some("lan_ipv4"),
        Rtype::AAAA => Some("lan_ipv6"),
        _ => None,
    }
}

fn of_type(address: &str, rtype: Rtype) -> Option<IpAddr> {
    address.parse().ok().filter(|address: &IpAddr| address.is_ipv4() == (rtype == Rtype::A))
}

/// The address of the family that is asked for: its own, or that of its node where it is reached at
/// its node's.
fn tagged(
    own: &Registration,
    rtype: Rtype,
    node: impl FnOnce() -> Arc<NodeRecord>,
) -> Option<IpAddr> {
    let tag = tag_of(rtype)?;
    match own.tagged_addresses.get(tag) {
        Some(tagged) => of_type(&tagged.address, rtype),
        None if own.address.is_empty() => of_type(node().tagged_addresses.get(tag)?, rtype),
        None => None,
    }
}

/// As Consul answers: a service that nobody serves is not there.
fn records(zones: &Zones, targets: &[Target], rtype: Rtype) -> Found {
    if targets.is_empty() {
        return Found::default();
    }
    let mut found = match rtype {
        Rtype::SRV => srv(zones, targets),
        _ => {
            let known = targets.iter().filter_map(|target| match target.address {
                Place::Address(address) => Some(address),
                Place::Name(_) => None,
            });
            let mut known = known.peekable();
            match (known.peek(), targets.first().map(|target| &target.address)) {
                (None, Some(Place::Name(name))) => Found::alias(name),
                _ => addresses(known, rtype),
            }
        }
    };
    found.ttl = targets.iter().filter_map(|target| target.ttl).min();
    found
}

fn srv(zones: &Zones, targets: &[Target]) -> Found {
    let mut found = Found::nodata();
    for target in targets {
        let name = match (&target.address, &target.node) {
            (Place::Address(_), Some(node)) if is_label(node) => {
                format!("{node}.node.{}.consul", zones.datacenter)
            }
            (Place::Address(address), _) => {
                format!("{}.addr.{}.consul", to_hex(*address), zones.datacenter)
            }
            (Place::Name(name), _) => name.to_string(),
        };
        if let Place::Address(address) = target.address {
            found.additional.push((name.clone(), address));
        }
        found.answers.push(Data::Srv { weight: target.weight, port: target.port, target: name });
    }
    found
}

/// The service that every Consul datacentre lists: its servers.
fn servers(look: &Look, rtype: Rtype) -> Found {
    let (who, only) = (look.who, look.only_passing);
    let shown = |entry: &Entry| {
        let shows = entry.takes() && (!only || entry.status() == Status::Passing);
        shows && sees_entry(who, entry)
    };
    let targets: Vec<Target> = look
        .view
        .server_entries()
        .filter(shown)
        .take(DNS_ANSWERS_MAX)
        .map(|entry| Target::of_entry(&entry, rtype))
        .collect();
    records(look.zones, &targets, rtype)
}

fn is_label(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}
