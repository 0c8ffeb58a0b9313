// SPDX-License-Identifier: Apache-2.0
//! Consul's names: services, nodes, prepared queries, what speaks for a service in its mesh, and
//! from an address back to a node or service. Called by `find.rs`; pure.

use std::net::IpAddr;
use std::sync::Arc;

use domain::base::iana::Rtype;
use weft_base::limits::DNS_ANSWERS_MAX;
use weft_kinds::world::{Door, Instance, RegistrationKey};

use super::super::names::{Zones, to_hex};
use super::{Data, Found, Look, addresses, cluster, takes, texts, ttl_of};
use crate::consul::view::{CONSUL_SERVICE, DEFAULT_NAMESPACE, Entry, SERVER_RPC_PORT, View};
use crate::consul::{gateways, query_run};

/// In a registration's meta: how long answers with it may be kept, `30s`.
const TTL_META: &str = "dns-ttl";
/// Keys of a node's meta that stand for themselves in a TXT record (Consul's convention).
const BARE_TXT: &str = "rfc1035-";
/// Addresses under which a service is reached through Consul's mesh.
const VIRTUAL: [&str; 2] = ["consul-virtual", "virtual"];

pub fn node(look: &mut Look, name: &str, rtype: Rtype) -> Found {
    let Some(node) = look.directory.node(look.view, name) else { return Found::default() };
    let meta = node.meta.iter().map(|(key, value)| match key.starts_with(BARE_TXT) {
        true => value.to_string(),
        false => format!("{key}={value}"),
    });
    let txt = texts(meta, rtype);
    match node.address.parse() {
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
        return servers(look.view, look.zones, rtype);
    }
    let Some(key) = look.directory.service(look.view, namespace, service) else {
        return Found::default();
    };
    let all = look.view.world.instances(key.namespace.as_str(), key.name.as_str()).values();
    let tagged =
        |i: &Instance| tag.is_none_or(|tag| i.tags.iter().any(|own| own.eq_ignore_ascii_case(tag)));
    let fitting: Vec<Target> = all
        .filter(|i| takes(i) && tagged(i))
        .take(DNS_ANSWERS_MAX)
        .map(|i| Target::of(look.view, i))
        .collect();
    records(look.zones, &fitting, rtype)
}

/// A prepared query by its name or id; other datacentres are not reachable from here.
pub fn query(look: &mut Look, name: &str, rtype: Rtype) -> Found {
    let Some(state) = look.records else { return Found::default() };
    let Some(query) = look.directory.query(state, name) else {
        return Found { passing: true, ..Found::default() };
    };
    let ran = query_run::run(look.view, &query, DEFAULT_NAMESPACE);
    let targets: Vec<Target> =
        ran.entries.iter().take(DNS_ANSWERS_MAX).map(Target::of_entry).collect();
    let ttl = ttl_of(&ran.ttl);
    let found = records(look.zones, &targets, rtype);
    Found { ttl: ttl.or(found.ttl), passing: true, ..found }
}

/// What speaks Connect for a service: its sidecars, and instances that do it themselves.
pub fn connect(look: &mut Look, (namespace, service): (&str, &str), rtype: Rtype) -> Found {
    let keys = look.directory.connect(look.view, namespace, service);
    let targets: Vec<Target> = keys
        .iter()
        .filter_map(|key| look.view.registered(key))
        .filter(|entry| entry.takes())
        .take(DNS_ANSWERS_MAX)
        .map(|entry| Target::of_entry(&entry))
        .collect();
    records(look.zones, &targets, rtype)
}

/// The one address of a service as a whole.
pub fn virtual_address(look: &mut Look, (namespace, service): (&str, &str), rtype: Rtype) -> Found {
    if let Some(own) = cluster::virtual_addresses(look.view, namespace, service) {
        return addresses(own, rtype);
    }
    let Some(key) = look.directory.service(look.view, namespace, service) else {
        return Found::default();
    };
    let (namespace, service) = (key.namespace.as_str(), key.name.as_str());
    if let Some(own) = cluster::virtual_addresses(look.view, namespace, service) {
        return addresses(own, rtype);
    }
    let registered = look.view.world.catalog().of_service(&key);
    let tagged = registered.filter_map(|(_, registration)| {
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
    let gateways = look.records.map(|state| gateways::ingress_gateways(state, service));
    let mut targets = Vec::new();
    for gateway in gateways.into_iter().flatten() {
        let Some(key) = look.directory.service(look.view, namespace, &gateway) else { continue };
        let all = look.view.world.instances(namespace, key.name.as_str()).values();
        targets.extend(all.filter(|i| takes(i)).map(|i| Target::of(look.view, i)));
    }
    targets.truncate(DNS_ANSWERS_MAX);
    Found { passing: true, ..records(look.zones, &targets, rtype) }
}

/// Who has an address: a node, or else a service's instance. `None` when nobody here.
pub fn reverse(look: &mut Look, address: IpAddr, rtype: Rtype) -> Option<Found> {
    let name = look.directory.holder(look.view, look.zones, address)?;
    Some(match rtype {
        Rtype::PTR | Rtype::ANY => {
            Found { exists: true, answers: vec![Data::Ptr(name)], ..Found::default() }
        }
        _ => Found::nodata(),
    })
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
    fn of(view: &View, instance: &Instance) -> Self {
        let address = match &instance.hostname {
            // This machine's own node, which nobody had to register.
            Some(name) if name.is_empty() => Place::of(&view.node(&instance.node).address),
            Some(name) => Place::Name(name.clone()),
            None => Place::Address(instance.address),
        };
        let registered = || {
            let (node, id) = instance.id.split_once('/')?;
            let namespace = instance.service.namespace.as_str();
            let key =
                RegistrationKey { namespace: namespace.into(), node: node.into(), id: id.into() };
            view.world.catalog().registration(&key)
        };
        let at_node = instance.origin == Door::Consul
            && registered().is_some_and(|registration| registration.address.is_empty());
        Self {
            address,
            port: instance.ports.first().map_or(0, |port| port.port),
            weight: u16::try_from(instance.weight).unwrap_or(u16::MAX),
            node: at_node.then(|| instance.node.clone()),
            ttl: instance.meta(TTL_META).and_then(|text| ttl_of(text)),
        }
    }

    fn of_entry(entry: &Entry) -> Self {
        let service = &entry.service;
        Self {
            address: Place::of(entry.address()),
            port: service.port,
            weight: u16::try_from(entry.weight()).unwrap_or(u16::MAX),
            node: service.address.is_empty().then(|| entry.node.node.clone()),
            ttl: service.meta.get(TTL_META).and_then(|text| ttl_of(text)),
        }
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
fn servers(view: &View, zones: &Zones, rtype: Rtype) -> Found {
    let target = Target {
        address: Place::of(&view.own.node.address),
        port: SERVER_RPC_PORT,
        weight: 1,
        node: Some(view.own.node.node.clone()),
        ttl: None,
    };
    records(zones, &[target], rtype)
}

fn is_label(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}
