// SPDX-License-Identifier: Apache-2.0
//! The records behind a name, from one look at the World. Pure but for the shuffle, whose
//! randomness is a parameter. Only instances that may take new requests are answered with.

use std::net::IpAddr;
use std::sync::Arc;

use domain::base::iana::Rtype;
use weft_base::rng::Rng;
use weft_kinds::kind::KindId;
use weft_kinds::views::View as KindView;
use weft_kinds::views::catalog::Status;
use weft_kinds::views::core::{Service, ServicePort};
use weft_kinds::world::Instance;

use super::names::{Lookup, Zone, Zones, to_dashed, to_hex};
use crate::consul::view::{Entry, View};

/// Answers and what goes with them, names as text below the zone's apex.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Whether the name exists: with it NODATA, without it NXDOMAIN.
    pub exists: bool,
    pub answers: Vec<Data>,
    /// Addresses of the targets in `answers`: absolute names.
    pub additional: Vec<(String, IpAddr)>,
}

/// One record's data; its owner is the name asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    Address(IpAddr),
    Srv {
        weight: u16,
        port: u16,
        target: String,
    },
    Cname(String),
    /// The zone's own start of authority and name server.
    Soa,
    Ns,
}

/// Looks a name up.
pub fn find(
    view: &View,
    zones: &Zones,
    zone: Zone,
    lookup: &Lookup,
    rtype: Rtype,
    rng: &mut Rng,
) -> Found {
    let mut found = match lookup {
        Lookup::Nothing => Found::default(),
        Lookup::Between => Found::nodata(),
        Lookup::Apex => apex(view, zone, zones, rtype),
        Lookup::NameServer => addresses([own_address(view)].into_iter().flatten(), rtype),
        Lookup::Address(address) => addresses([*address], rtype),
        Lookup::Node(name) => node(view, name, rtype),
        Lookup::ConsulService { namespace, service, tag } => {
            consul_service(view, zones, (namespace, service, tag.as_deref()), rtype)
        }
        Lookup::Service { namespace, service } => {
            kubernetes_service(view, zones, namespace, service, rtype)
        }
        Lookup::Port { namespace, service, port, protocol } => {
            kubernetes_port(view, zones, (namespace, service), (port, protocol), rtype)
        }
        Lookup::Endpoint { namespace, service, address } => {
            let instances = view.world.instances(namespace, service);
            let known = instances.values().any(|i| i.address == *address && takes(i));
            if known { addresses([*address], rtype) } else { Found::default() }
        }
    };
    shuffle(&mut found.answers, rng);
    found
}

// === zones ===

fn apex(view: &View, zone: Zone, zones: &Zones, rtype: Rtype) -> Found {
    let mut found = Found::nodata();
    match rtype {
        Rtype::SOA => found.answers.push(Data::Soa),
        Rtype::NS => {
            found.answers.push(Data::Ns);
            found.additional.extend(own_address(view).map(|a| (name_server(zone, zones), a)));
        }
        Rtype::ANY => found.answers.extend([Data::Soa, Data::Ns]),
        _ => {}
    }
    found
}

/// `consul` or the cluster domain.
pub fn apex_name(zone: Zone, zones: &Zones) -> &str {
    match zone {
        Zone::Consul => "consul",
        Zone::Cluster => &zones.cluster_domain,
    }
}

pub fn name_server(zone: Zone, zones: &Zones) -> String {
    format!("ns.{}", apex_name(zone, zones))
}

fn own_address(view: &View) -> Option<IpAddr> {
    view.own.node.address.parse().ok()
}

// === Consul's scheme ===

fn node(view: &View, name: &str, rtype: Rtype) -> Found {
    let Some(node) = view.node_ignoring_case(name) else { return Found::default() };
    match node.address.parse() {
        Ok(address) => addresses([address], rtype),
        Err(_) => Found {
            exists: true,
            answers: vec![Data::Cname(node.address.to_string())],
            ..Found::default()
        },
    }
}

fn consul_service(
    view: &View,
    zones: &Zones,
    (namespace, service, tag): (&str, &str, Option<&str>),
    rtype: Rtype,
) -> Found {
    let mut entries = view.entries_ignoring_case(namespace, service);
    entries.retain(|entry| {
        entry.status() != Status::Critical
            && !entry.draining
            && tag.is_none_or(|tag| entry.service.tags.iter().any(|t| t.eq_ignore_ascii_case(tag)))
    });
    if entries.is_empty() {
        // As Consul answers: a service that nobody serves is not there.
        return Found::default();
    }
    if rtype == Rtype::SRV {
        return consul_srv(zones, &entries);
    }
    let parsed: Vec<IpAddr> = entries.iter().filter_map(|e| e.address().parse().ok()).collect();
    if parsed.is_empty() {
        let name = entries.first().map(|e| Data::Cname(e.address().to_string()));
        return Found { exists: true, answers: name.into_iter().collect(), ..Found::default() };
    }
    addresses(parsed, rtype)
}

fn consul_srv(zones: &Zones, entries: &[Entry]) -> Found {
    let mut found = Found::nodata();
    for entry in entries {
        let address: Option<IpAddr> = entry.address().parse().ok();
        let target = match address {
            Some(_) if entry.service.address.is_empty() && is_label(&entry.node.node) => {
                format!("{}.node.{}.consul", entry.node.node, zones.datacenter)
            }
            Some(address) => format!("{}.addr.{}.consul", to_hex(address), zones.datacenter),
            None => entry.address().to_string(),
        };
        if let Some(address) = address {
            found.push_additional(&target, address);
        }
        let weight = u16::try_from(entry.weight()).unwrap_or(u16::MAX);
        found.answers.push(Data::Srv { weight, port: entry.service.port, target });
    }
    found
}

// === Kubernetes' scheme ===

fn kubernetes_service(
    view: &View,
    zones: &Zones,
    namespace: &str,
    service: &str,
    rtype: Rtype,
) -> Found {
    let known = object(view, namespace, service);
    if let Some(spec) = known.as_ref().map(|s| &s.spec)
        && &*spec.kind == "ExternalName"
    {
        let name = Data::Cname(spec.external_name.to_string());
        return Found { exists: true, answers: vec![name], ..Found::default() };
    }
    let instances = view.world.instances(namespace, service);
    if known.is_none() && instances.is_empty() {
        return Found::default();
    }
    if rtype == Rtype::SRV {
        let ports = known.as_ref().map(|s| s.spec.ports.as_slice()).unwrap_or_default();
        return kubernetes_srv(view, zones, (namespace, service), known.as_ref(), ports);
    }
    match known.as_ref().and_then(cluster_ips) {
        Some(own) => addresses(own, rtype),
        None => addresses(ready(view, namespace, service).iter().map(|i| i.address), rtype),
    }
}

fn kubernetes_port(
    view: &View,
    zones: &Zones,
    (namespace, service): (&str, &str),
    (port, protocol): (&str, &str),
    rtype: Rtype,
) -> Found {
    let Some(known) = object(view, namespace, service) else { return Found::default() };
    let ports: Vec<ServicePort> = known
        .spec
        .ports
        .iter()
        .filter(|p| p.name.eq_ignore_ascii_case(port) && p.protocol.eq_ignore_ascii_case(protocol))
        .cloned()
        .collect();
    match (ports.is_empty(), rtype) {
        (true, _) => Found::default(),
        (false, Rtype::SRV | Rtype::ANY) => {
            kubernetes_srv(view, zones, (namespace, service), Some(&known), &ports)
        }
        (false, _) => Found::nodata(),
    }
}

fn kubernetes_srv(
    view: &View,
    zones: &Zones,
    (namespace, service): (&str, &str),
    known: Option<&Service>,
    ports: &[ServicePort],
) -> Found {
    let mut found = Found::nodata();
    let domain = format!("{service}.{namespace}.svc.{}", zones.cluster_domain);
    if let Some(own) = known.and_then(cluster_ips) {
        for port in ports {
            let target = domain.clone();
            found.answers.push(Data::Srv { weight: 1, port: port.port, target });
        }
        for address in own {
            found.push_additional(&domain, address);
        }
        return found;
    }
    for instance in ready(view, namespace, service) {
        let target = format!("{}.{domain}", to_dashed(instance.address));
        let weight = u16::try_from(instance.weight).unwrap_or(u16::MAX);
        let mut any = false;
        for port in &instance.ports {
            if known.is_none() || ports.iter().any(|p| p.name == port.name) {
                let target = target.clone();
                found.answers.push(Data::Srv { weight, port: port.port, target });
                any = true;
            }
        }
        if any {
            found.push_additional(&target, instance.address);
        }
    }
    found
}

fn object(view: &View, namespace: &str, service: &str) -> Option<Service> {
    match &view.world.get(KindId::Service, namespace, service)?.view {
        KindView::Service(service) => Some(service.clone()),
        _ => None,
    }
}

/// The service's own addresses; `None` when it is headless or has none yet.
fn cluster_ips(service: &Service) -> Option<Vec<IpAddr>> {
    let spec = &service.spec;
    let all = spec.cluster_ips.iter().chain([&spec.cluster_ip]);
    let mut out: Vec<IpAddr> = all.filter_map(|text| text.parse().ok()).collect();
    out.sort();
    out.dedup();
    (!out.is_empty()).then_some(out)
}

fn ready(view: &View, namespace: &str, service: &str) -> Vec<Arc<Instance>> {
    let all = object(view, namespace, service)
        .is_some_and(|service| service.spec.publish_not_ready_addresses);
    let instances = view.world.instances(namespace, service).values();
    instances.filter(|i| (all || takes(i)) && i.hostname.is_none()).cloned().collect()
}

/// Whether an instance may take new requests.
fn takes(instance: &Instance) -> bool {
    instance.health != Status::Critical && !instance.draining
}

// === helpers ===

impl Found {
    fn nodata() -> Self {
        Self { exists: true, ..Self::default() }
    }

    fn push_additional(&mut self, name: &str, address: IpAddr) {
        if !self.additional.iter().any(|(n, a)| n == name && *a == address) {
            self.additional.push((name.to_owned(), address));
        }
    }
}

/// Addresses of the family asked for, each once.
fn addresses(all: impl IntoIterator<Item = IpAddr>, rtype: Rtype) -> Found {
    let mut found = Found::nodata();
    for address in all {
        let wanted = match rtype {
            Rtype::A => address.is_ipv4(),
            Rtype::AAAA => address.is_ipv6(),
            Rtype::ANY => true,
            _ => false,
        };
        if wanted && !found.answers.contains(&Data::Address(address)) {
            found.answers.push(Data::Address(address));
        }
    }
    found
}

/// Fisher and Yates; clients that take the first answer still spread.
fn shuffle<T>(items: &mut [T], rng: &mut Rng) {
    for last in (1..items.len()).rev() {
        let other = usize::try_from(rng.below(last as u64 + 1)).unwrap_or(0);
        items.swap(last, other);
    }
}

fn is_label(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}
