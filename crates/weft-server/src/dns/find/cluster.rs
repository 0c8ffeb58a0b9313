// SPDX-License-Identifier: Apache-2.0
//! Kubernetes' names, as its DNS specification says: Services, their ports and endpoints, pods'
//! host names, and from an address that weft gave back to a name. Called by `find.rs`; pure.

use std::net::IpAddr;
use std::sync::Arc;

use domain::base::iana::Rtype;
use weft_kinds::kind::KindId;
use weft_kinds::views::View as KindView;
use weft_kinds::views::core::{Service, ServicePort, ServiceSpec};
use weft_kinds::world::{Door, Instance, Object};
use weft_registry::objects::addresses as given;

use super::super::names::{Zones, to_dashed};
use super::{Data, Found, addresses, takes, ttl_of};
use crate::consul::view::View;

/// On a Service: how long its answers may be kept, `30s`.
const TTL_ANNOTATION: &str = "weft.dev/dns-ttl";

pub fn service(view: &View, zones: &Zones, namespace: &str, service: &str, rtype: Rtype) -> Found {
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
        return srv(view, zones, (namespace, service), known.as_ref(), ports);
    }
    let mut found = match known.as_ref().and_then(cluster_ips) {
        Some(own) => addresses(own, rtype),
        None => {
            let spec = known.as_ref().map(|s| &s.spec);
            let all = ready(view, namespace, service);
            addresses(all.iter().flat_map(|i| own_addresses(view, spec, i)), rtype)
        }
    };
    found.ttl = annotated_ttl(view, namespace, service);
    found
}

/// The Service's own addresses, for `NAME.virtual.consul`.
pub fn virtual_addresses(view: &View, namespace: &str, service: &str) -> Option<Vec<IpAddr>> {
    object(view, namespace, service).as_ref().and_then(cluster_ips)
}

/// One endpoint of a Service by its dashed address.
pub fn endpoint(
    view: &View,
    namespace: &str,
    service: &str,
    address: IpAddr,
    rtype: Rtype,
) -> Found {
    let mut instances = view.world.instances(namespace, service).values();
    match instances.any(|i| i.address == address && takes(i)) {
        true => addresses([address], rtype),
        false => Found::default(),
    }
}

fn annotated_ttl(view: &View, namespace: &str, service: &str) -> Option<u32> {
    let object = view.world.get(KindId::Service, namespace, service)?;
    ttl_of(object.meta.annotation(TTL_ANNOTATION)?)
}

pub fn port(
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
            srv(view, zones, (namespace, service), Some(&known), &ports)
        }
        (false, _) => Found::nodata(),
    }
}

fn srv(
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
        found.additional.extend(own.into_iter().map(|address| (domain.clone(), address)));
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
            let own = own_addresses(view, spec, &instance);
            found.additional.extend(own.into_iter().map(|address| (target.clone(), address)));
        }
    }
    found
}

/// A pod that calls itself by this name below this service, as pods of StatefulSets do.
pub fn pod_hostname(
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

pub fn reverse(view: &View, zones: &Zones, address: IpAddr, rtype: Rtype) -> Found {
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
