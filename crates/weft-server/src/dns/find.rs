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
use weft_kinds::views::core::{Service, ServicePort, ServiceSpec};
use weft_kinds::world::{Door, Index, Instance, Object};
use weft_registry::objects::addresses as given;

use super::names::{Lookup, Zone, Zones, to_dashed, to_hex};
use crate::consul::view::{Entry, View};

/// Answers and what goes with them, names as text below the zone's apex.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Whether the name exists: with it NODATA, without it NXDOMAIN.
    pub exists: bool,
    pub answers: Vec<Data>,
    /// What the alias in `answers` leads to: absolute names and their data.
    pub chain: Vec<(String, Data)>,
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
    Ptr(String),
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
        Lookup::Hostname { namespace, service, hostname } => {
            kubernetes_hostname(view, namespace, service, hostname, rtype)
        }
        Lookup::Reverse(address) => reverse(view, zones, *address, rtype),
    };
    shuffle(&mut found.answers, rng);
    found
}

/// A host of a ServiceEntry that says where it is; what has to be looked up is not ours to say.
pub fn entry(view: &View, name: &str, rtype: Rtype, rng: &mut Rng) -> Option<Found> {
    let objects = view.world.index(Index::ServiceEntriesByHost, name);
    let entries = objects.filter_map(|o| match &o.view {
        KindView::ServiceEntry(entry) => Some((o.meta.created_ms(), &o.key, &entry.spec)),
        _ => None,
    });
    let (_, _, spec) = entries.min_by_key(|(age, key, _)| (*age, (*key).clone()))?;
    let own: Vec<IpAddr> = spec.addresses.iter().filter_map(|a| a.parse().ok()).collect();
    let all = match own.is_empty() {
        false => own,
        true if &*spec.resolution == "STATIC" => {
            spec.endpoints.iter().filter_map(|e| e.address.parse().ok()).collect()
        }
        true => return None,
    };
    let mut found = addresses(all, rtype);
    shuffle(&mut found.answers, rng);
    Some(found)
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

/// `consul`, the cluster domain, or where reverse names hang.
pub fn apex_name(zone: Zone, zones: &Zones) -> &str {
    match zone {
        Zone::Consul => "consul",
        Zone::Cluster => &zones.cluster_domain,
        Zone::ReverseV4 => "in-addr.arpa",
        Zone::ReverseV6 => "ip6.arpa",
    }
}

pub fn name_server(zone: Zone, zones: &Zones) -> String {
    match zone {
        Zone::Consul => "ns.consul".to_owned(),
        Zone::Cluster | Zone::ReverseV4 | Zone::ReverseV6 => format!("ns.{}", zones.cluster_domain),
    }
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
        None => {
            let spec = known.as_ref().map(|s| &s.spec);
            let all = ready(view, namespace, service);
            addresses(all.iter().flat_map(|i| own_addresses(view, spec, i)), rtype)
        }
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
    let spec = known.map(|s| &s.spec);
    for instance in ready(view, namespace, service) {
        let own = hostname(view, service, &instance);
        let target = match own {
            Some(hostname) => format!("{hostname}.{domain}"),
            None => format!("{}.{domain}", to_dashed(instance.address)),
        };
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
            for address in own_addresses(view, spec, &instance) {
                found.push_additional(&target, address);
            }
        }
    }
    found
}

/// A pod that calls itself by this name below this service, as pods of StatefulSets do.
fn kubernetes_hostname(
    view: &View,
    namespace: &str,
    service: &str,
    name: &str,
    rtype: Rtype,
) -> Found {
    let all = ready(view, namespace, service);
    let mut named =
        all.iter().filter(|i| hostname(view, service, i).is_some_and(|own| own == name)).peekable();
    if named.peek().is_none() {
        return Found::default();
    }
    let known = object(view, namespace, service);
    let spec = known.as_ref().map(|s| &s.spec);
    addresses(named.flat_map(|i| own_addresses(view, spec, i)), rtype)
}

fn pod_of<'v>(view: &'v View, instance: &Instance) -> Option<&'v Arc<Object>> {
    let namespace = instance.service.namespace.as_str();
    (instance.origin == Door::Kubernetes)
        .then(|| view.world.get(KindId::Pod, namespace, &instance.id))
        .flatten()
}

/// The name that a pod has below a service.
fn hostname<'v>(view: &'v View, service: &str, instance: &Instance) -> Option<&'v str> {
    let spec = pod_of(view, instance)?.raw.get("spec")?;
    let text = |field: &str| spec.get(field).and_then(serde_json::Value::as_str);
    text("hostname").filter(|_| text("subdomain") == Some(service))
}

/// An instance's addresses of the families that its service has.
fn own_addresses(view: &View, spec: Option<&ServiceSpec>, instance: &Instance) -> Vec<IpAddr> {
    let families = spec.map(|s| s.ip_families.as_slice()).unwrap_or_default();
    let has = |word: &str| families.iter().any(|f| &**f == word);
    let mut out = vec![instance.address];
    if has("IPv6")
        && let Some(pod) = pod_of(view, instance)
    {
        let all = pod.raw.pointer("/status/podIPs").and_then(|l| l.as_array());
        let each =
            all.into_iter().flatten().filter_map(|a| a.get("ip")?.as_str()?.parse::<IpAddr>().ok());
        out.extend(each);
    }
    out.retain(|ip| families.is_empty() || has(if ip.is_ipv4() { "IPv4" } else { "IPv6" }));
    out
}

// === from address to name ===

fn reverse(view: &View, zones: &Zones, address: IpAddr, rtype: Rtype) -> Found {
    let holder = given::holder(&view.world, address);
    let named = holder.as_deref().and_then(|h| {
        let (kind, object) = h.split_once(' ')?;
        let (namespace, name) = object.split_once('/')?;
        let domain = &zones.cluster_domain;
        match kind {
            "Service" => Some(format!("{name}.{namespace}.svc.{domain}")),
            "Pod" => Some(pod_name(view, zones, (namespace, name), address)),
            _ => None,
        }
    });
    match (named, rtype) {
        (None, _) => Found::default(),
        (Some(name), Rtype::PTR | Rtype::ANY) => {
            Found { exists: true, answers: vec![Data::Ptr(name)], ..Found::default() }
        }
        (Some(_), _) => Found::nodata(),
    }
}

/// A pod's name below a service that it is an instance of, or by its address alone.
fn pod_name(view: &View, zones: &Zones, (ns, pod): (&str, &str), address: IpAddr) -> String {
    let dashed = to_dashed(address);
    let domain = &zones.cluster_domain;
    let mut first = None;
    for service in view.world.services_of_pod(ns, pod) {
        let name = service.name.as_str();
        let instance = view.world.instances(ns, name).get(pod);
        if let Some(own) = instance.and_then(|i| hostname(view, name, i)) {
            return format!("{own}.{name}.{ns}.svc.{domain}");
        }
        first = first.or(Some(name));
    }
    match first {
        Some(service) => format!("{dashed}.{service}.{ns}.svc.{domain}"),
        None => format!("{dashed}.{ns}.pod.{domain}"),
    }
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
    /// The alias that this answer ends with, when another type was asked for.
    pub fn loose_end(&self, rtype: Rtype) -> Option<String> {
        if matches!(rtype, Rtype::CNAME | Rtype::ANY) {
            return None;
        }
        let last = self.chain.last().map(|(_, data)| data).or_else(|| self.answers.last());
        match last {
            Some(Data::Cname(target)) => Some(target.clone()),
            _ => None,
        }
    }

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
