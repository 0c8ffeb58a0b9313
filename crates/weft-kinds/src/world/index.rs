// SPDX-License-Identifier: Apache-2.0
//! Reverse indexes: which objects stand under which value. Computed from the view alone, so an
//! object leaves exactly the places where it stood.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::Object;
use crate::views::discovery::SERVICE_NAME_LABEL;
use crate::views::gateway::ParentRef;
use crate::views::{Meta, View};

/// On Gateways whose address is weft's to choose: which one that is.
const GATEWAY_ADDRESS_ANNOTATION: &str = "weft.dev/address";

/// The World's indexes over objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Index {
    /// HTTPRoutes and GRPCRoutes by parent Gateway, `namespace/name`.
    RoutesByGateway,
    /// ListenerSets by parent Gateway, `namespace/name`.
    ListenerSetsByGateway,
    /// HTTPRoutes and GRPCRoutes by parent Service, `namespace/name`.
    RoutesByService,
    /// VirtualServices for sidecars by host, as [`host_key`] writes it.
    VirtualServicesByHost,
    /// VirtualServices by Istio Gateway, `namespace/name`.
    VirtualServicesByGateway,
    /// DestinationRules by host, as [`host_key`] writes it.
    DestinationRulesByHost,
    /// ServiceEntries by host, as [`host_key`] writes it.
    ServiceEntriesByHost,
    /// EndpointSlices by service, `namespace/name`.
    SlicesByService,
    /// EndpointSlices by pod, `namespace/name`.
    SlicesByPod,
    /// Gateways by class name.
    GatewaysByClass,
    /// Gateways by each address that they ask for or were given, as [`IpAddr`] writes it.
    GatewaysByAddress,
    /// TrafficPolicies by target, as [`TargetRef::at`](crate::views::traffic_policy::TargetRef::at)
    /// writes it.
    TrafficPoliciesByTarget,
    /// BackendTLSPolicies by target, in the same form.
    BackendTlsPoliciesByTarget,
    /// HTTPRoutes and their like by each Service that they send to, `namespace/name`.
    RoutesByBackend,
    /// Any object by the uid of each of its owners.
    ByOwner,
    /// Pods by the node that they run on.
    PodsByNode,
}

/// One form for the many ways to write a service's host, without knowing the cluster domain:
/// `product` (of namespace shop), `product.shop.svc` and `product.shop.svc.cluster.local` are all
/// `product.shop.svc`. Other hosts, wildcards included, stay as they are, in lower case.
pub fn host_key(host: &str, namespace: &str) -> Arc<str> {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    if !host.contains('.') && host != "*" {
        return format!("{host}.{namespace}.svc").into();
    }
    let mut dots = host.match_indices('.').map(|(at, _)| at);
    let (second, third) = (dots.nth(1), dots.next());
    let is_service = second.is_some_and(|at| {
        let rest = &host[at + 1..];
        rest == "svc" || rest.starts_with("svc.")
    });
    match third {
        Some(end) if is_service => host[..end].into(),
        _ => host.into(),
    }
}

/// `namespace/name`, the form of most index values.
pub fn pair(namespace: &str, name: &str) -> Arc<str> {
    format!("{namespace}/{name}").into()
}

pub(super) type Entries = BTreeSet<(Index, Arc<str>)>;

/// The host of a DestinationRule that chooses other clients than before: it stands where it stood
/// in the list of its host's rules, and whose rules the list has is not what it was.
pub(super) fn chooses_others(old: Option<&Object>, new: Option<&Object>) -> Option<Arc<str>> {
    let rule = |object: Option<&Object>| match &object?.view {
        View::DestinationRule(rule) => {
            let host = host_key(&rule.spec.host, &object?.key.namespace);
            Some((host, rule.spec.workload_selector.clone()))
        }
        _ => None,
    };
    let (was, is) = (rule(old)?, rule(new)?);
    (was.0 == is.0 && was.1 != is.1).then_some(is.0)
}

pub(super) fn entries(object: &Object) -> Entries {
    let mut out = Entries::new();
    for owner in &object.meta.owner_references {
        out.insert((Index::ByOwner, owner.uid.clone()));
    }
    let ns = &*object.key.namespace;
    match &object.view {
        View::HttpRoute(route) | View::GrpcRoute(route) | View::StreamRoute(route) => {
            for parent in &route.spec.parent_refs {
                let at = pair(parent.namespace.as_deref().unwrap_or(ns), &parent.name);
                if parent.is_gateway() {
                    out.insert((Index::RoutesByGateway, at));
                } else if parent.is_service() && !matches!(object.view, View::StreamRoute(_)) {
                    out.insert((Index::RoutesByService, at));
                }
            }
            let backends = route.spec.rules.iter().flat_map(|rule| &rule.backend_refs);
            for target in backends.map(|backend| &backend.target) {
                if target.kind.as_deref().is_none_or(|kind| kind == "Service") {
                    let at = pair(target.namespace.as_deref().unwrap_or(ns), &target.name);
                    out.insert((Index::RoutesByBackend, at));
                }
            }
        }
        View::VirtualService(vs) => {
            for gateway in vs.spec.gateways.iter().filter(|g| &***g != "mesh") {
                out.insert((Index::VirtualServicesByGateway, gateway_ref(gateway, ns)));
            }
            let mesh = if vs.spec.is_mesh() { &*vs.spec.hosts } else { &[] };
            out.extend(mesh.iter().map(|h| (Index::VirtualServicesByHost, host_key(h, ns))));
        }
        View::DestinationRule(rule) => {
            out.insert((Index::DestinationRulesByHost, host_key(&rule.spec.host, ns)));
        }
        View::ServiceEntry(entry) => {
            let hosts = entry.spec.hosts.iter().map(|h| host_key(h, ns));
            out.extend(hosts.map(|h| (Index::ServiceEntriesByHost, h)));
        }
        View::EndpointSlice(slice) => {
            if let Some(service) = service_of(&object.meta) {
                out.insert((Index::SlicesByService, pair(ns, service)));
            }
            for target in slice.endpoints.iter().filter_map(|e| e.target_ref.as_ref()) {
                if &*target.kind == "Pod" {
                    out.insert((Index::SlicesByPod, pair(ns, &target.name)));
                }
            }
        }
        View::Gateway(gateway) => {
            out.insert((Index::GatewaysByClass, gateway.spec.gateway_class_name.clone()));
            let asked = gateway.spec.addresses.iter().map(|a| &*a.value);
            let all = asked.chain(object.meta.annotation(GATEWAY_ADDRESS_ANNOTATION));
            out.extend(all.filter_map(by_address));
        }
        View::ListenerSet(set) => out.extend(parent_gateway(&set.spec.parent_ref, ns)),
        View::Pod(pod) if !pod.spec.node_name.is_empty() => {
            out.insert((Index::PodsByNode, pod.spec.node_name.clone()));
        }
        View::TrafficPolicy(policy) => {
            let targets = policy.spec.target_refs.iter().map(|t| t.at(ns));
            out.extend(targets.map(|at| (Index::TrafficPoliciesByTarget, at)));
        }
        View::BackendTlsPolicy(policy) => {
            let targets = policy.spec.target_refs.iter().map(|t| t.at(ns));
            out.extend(targets.map(|at| (Index::BackendTlsPoliciesByTarget, at)));
        }
        _ => {}
    }
    out
}

/// A Gateway's place by one of its addresses, where that is one and no name.
fn by_address(value: &str) -> Option<(Index, Arc<str>)> {
    let ip: IpAddr = value.parse().ok()?;
    Some((Index::GatewaysByAddress, ip.to_string().into()))
}

/// The Gateway that a ListenerSet is for.
fn parent_gateway(parent: &ParentRef, namespace: &str) -> Option<(Index, Arc<str>)> {
    let at = || pair(parent.namespace.as_deref().unwrap_or(namespace), &parent.name);
    parent.is_gateway().then(|| (Index::ListenerSetsByGateway, at()))
}

/// An Istio gateway reference: `name` or `namespace/name`, `./name` being the own namespace.
pub fn gateway_ref(reference: &str, namespace: &str) -> Arc<str> {
    match reference.split_once('/') {
        None | Some((".", _)) => pair(namespace, reference.trim_start_matches("./")),
        Some(_) => reference.into(),
    }
}

/// The service that a slice is of.
pub fn service_of(meta: &Meta) -> Option<&str> {
    meta.label(SERVICE_NAME_LABEL).filter(|s| !s.is_empty())
}
