// SPDX-License-Identifier: Apache-2.0
//! Service to host: its names, addresses and ports, and a backend per port and subset.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use weft_base::name::ServiceKey;
use weft_kinds::views::core;
use weft_kinds::world::Object;
use weft_model::{
    Backend, Fail, GATEWAYS_MARK, Host, HostPort, Labels, Resource, ResourceName, backend_child,
    udp_backend_child, value,
};

use super::backend_tls::{self, Policies};
use super::client_tls;
use super::destination_rule::{Rules, SubsetRef};
use super::policy_attachment::Attached;
use super::rule_clients::{self, Client};
use super::{Env, Output, Reader, balancer, names, origin, protocol, proxy_header, traffic_policy};

/// JSON `{"80": 20001}`: where each pod's sidecar listens for programs that ignore proxies.
/// Written by the addresses controller.
pub const UPSTREAM_PORTS_ANNOTATION: &str = "weft.dev/upstream-ports";

const EXPORT_TO: &str = "networking.istio.io/exportTo";

pub(super) fn compile(
    reader: &Reader<'_>,
    env: &Env,
    object: &Object,
    service: &core::Service,
) -> Output {
    let mut out = Output::default();
    let Ok(key) = ServiceKey::new(&object.key.namespace, &object.key.name) else { return out };
    if &*service.spec.kind == "ExternalName" {
        return out;
    }
    let root = names::host_root(&key, env);
    let patterns = names::host_patterns(&key, env);
    let by_client = rule_clients::by_client(reader, &patterns, key.namespace.as_str());
    let Some((_, whole)) = by_client.first() else { return out };
    let upstream: BTreeMap<String, u16> = object
        .meta
        .annotation(UPSTREAM_PORTS_ANNOTATION)
        .and_then(|json| serde_json::from_str(json).ok())
        .unwrap_or_default();
    let attached = Attached::read(reader, "Service", &object.key.namespace, &object.key.name);
    let policies = Policies::read(reader, &object.key.namespace, &object.key.name);
    let mut ports = Vec::new();
    for port in service.spec.ports.iter().filter(|p| is_meshed(p)) {
        ports.push(HostPort {
            port: port.port,
            name: port.name.clone(),
            protocol: protocol::of_service(&object.meta, &service.spec, port),
            backend: backend_child(port.port, "").into(),
            upstream_port: upstream.get(&port.port.to_string()).copied(),
        });
        let of = Of { reader, env, key: &key, object, spec: &service.spec, whole };
        for (client, rules) in &by_client {
            of.port(port, client.as_ref(), rules, (&attached, &policies), &mut out);
        }
    }
    for port in service.spec.ports.iter().filter(|p| is_udp(p)) {
        // Gateways alone forward datagrams, and what holds for everybody is said to them.
        let rules = by_client.first().map(|(_, rules)| rules);
        let of = Of { reader, env, key: &key, object, spec: &service.spec, whole };
        let each = rules.map(|rules| of.backends(port.port, rules));
        let whole = each.into_iter().flatten().next();
        if let Some((_, mut backend)) = whole {
            attached.protect(&port.name, &mut backend);
            backend.policy.proxy_protocol = None;
            out.add(root.child(udp_backend_child(port.port)), Resource::Backend(backend));
        }
    }
    let host = Host {
        name: key.host(&env.cluster_domain).as_str().into(),
        aliases: aliases(&key),
        addresses: addresses(&service.spec),
        ports,
    };
    out.add(root.own(), Resource::Host(host));
    balancer::compile(env, object, service, &mut out);
    let list = object.meta.annotation(EXPORT_TO).map(|text| text.split(','));
    let exported = names::exported(list.into_iter().flatten(), &object.key.namespace);
    out.restricted.extend(exported.map(|to| (root, Arc::new(to))));
    out
}

/// What others than the clients of a namespace get of a subset that only these have.
pub(super) fn unknown_subset(name: &str, client: &Client, backend: &Backend) -> Resource {
    let reason = format!("the subset {name:?} is defined for clients of {client} alone");
    Resource::Fail(Fail { reason: reason.into(), origin: backend.origin.clone() })
}

/// What the clients of a namespace get of a subset that their own rules do not define: these take
/// the place of all others, with what they ask of every connection.
pub(super) fn lacking_subset(name: &str, client: &Client, rules: &Rules<'_>) -> Resource {
    let reason = format!(
        "the subset {name:?} is not defined by {}, which decides for clients of {client}; define \
         it there too",
        rules.names()
    );
    Resource::Fail(Fail { reason: reason.into(), origin: rules.origin() })
}

/// Puts what a client lacks in the place of what everybody has, in both of its forms.
pub(super) fn lack(plain: &ResourceName, client: &Client, fail: &Resource, out: &mut Output) {
    let (child, mark) = (&plain.child, client.mark());
    let gateways = plain.root.child(format!("{child}{GATEWAYS_MARK}"));
    if client.chosen.is_none() && out.resources.contains_key(&gateways) {
        out.add(plain.root.child(format!("{child}{GATEWAYS_MARK}{mark}")), fail.clone());
    }
    out.add(plain.root.child(format!("{child}{mark}")), fail.clone());
}

/// Datagrams are forwarded by Gateways alone.
pub(super) fn is_meshed(port: &core::ServicePort) -> bool {
    &*port.protocol != "UDP" && port.port != 0
}

pub(super) fn is_udp(port: &core::ServicePort) -> bool {
    &*port.protocol == "UDP" && port.port != 0
}

/// Names with a dot mean the same everywhere. A name without one is completed with the client's
/// own namespace by its sidecar, so it is no alias.
fn aliases(key: &ServiceKey) -> Vec<Arc<str>> {
    let (ns, name) = (&key.namespace, &key.name);
    let mut out: Vec<Arc<str>> = vec![
        format!("{name}.{ns}.svc").into(),
        format!("{name}.{ns}").into(),
        format!("{name}.service.{ns}.ns.consul").into(),
    ];
    if ns.as_str() == "default" {
        out.push(format!("{name}.service.consul").into());
    }
    out
}

fn addresses(spec: &core::ServiceSpec) -> Vec<IpAddr> {
    let mut out = Vec::new();
    for text in std::iter::once(&spec.cluster_ip).chain(&spec.cluster_ips) {
        if let Ok(ip) = text.parse()
            && !out.contains(&ip)
        {
            out.push(ip);
        }
    }
    out
}

/// What backends are made of.
struct Of<'a, 'w> {
    reader: &'a Reader<'w>,
    env: &'a Env,
    key: &'a ServiceKey,
    object: &'a Object,
    spec: &'a core::ServiceSpec,
    /// What holds for everybody.
    whole: &'a Rules<'w>,
}

impl<'w> Of<'_, 'w> {
    /// What is sent of one port, for everybody or for a namespace's clients.
    fn port(
        &self,
        port: &core::ServicePort,
        client: Option<&Client>,
        rules: &Rules<'w>,
        (attached, policies): (&Attached<'_>, &Policies<'_>),
        out: &mut Output,
    ) {
        let root = names::host_root(self.key, self.env);
        let clients = client.map_or(String::new(), Client::mark);
        for (subset, mut backend) in self.backends(port.port, rules) {
            attached.protect(&port.name, &mut backend);
            let (named, place) = (subset.as_ref(), (port, &*backend.service));
            let spoken = backend_tls::secured(self.reader, policies, rules, place, named);
            let child = backend_child(port.port, &backend.subset);
            let chosen = client.is_some_and(|c| c.chosen.is_some());
            if let Some(form) = spoken.gateways.as_ref().filter(|_| !chosen) {
                let whole = root.child(format!("{child}{GATEWAYS_MARK}"));
                if let (Some(client), false) = (client, out.resources.contains_key(&whole)) {
                    out.add(whole, unknown_subset(&backend.subset, client, &backend));
                }
                let child = root.child(format!("{child}{GATEWAYS_MARK}{clients}"));
                let mut theirs = backend.clone();
                if let Some(by) = policies.origin(&port.name) {
                    theirs.policy.sources.set(value::TLS, by);
                }
                out.add(child, client_tls::formed(&theirs, form));
            }
            let plain = root.child(child.as_str());
            if let (Some(client), false) = (client, out.resources.contains_key(&plain)) {
                out.add(plain, unknown_subset(&backend.subset, client, &backend));
            }
            let child = root.child(format!("{child}{clients}"));
            out.add(child, client_tls::formed(&backend, &spoken.all));
        }
        let Some(client) = client else { return };
        for name in rules.lacking(self.whole) {
            let fail = lacking_subset(&name, client, rules);
            lack(&root.child(backend_child(port.port, &name)), client, &fail, out);
        }
    }

    /// The backends of one port: the whole set, and each subset.
    fn backends(&self, port: u16, rules: &Rules<'w>) -> Vec<(Option<SubsetRef<'w>>, Backend)> {
        let service: Arc<str> = self.key.host(&self.env.cluster_domain).as_str().into();
        let make = |subset: Arc<str>, selector: Labels, policy, origin| Backend {
            service: service.clone(),
            port,
            subset,
            selector,
            policy,
            origin,
        };
        let mut usual = traffic_policy::usual(self.spec.traffic_distribution.as_deref());
        usual.proxy_protocol = proxy_header::sent(&self.object.meta);
        if usual.proxy_protocol.is_some() {
            let field = format!("metadata.annotations.{}", proxy_header::SEND_ANNOTATION);
            usual.sources.set(value::PROXY_PROTOCOL, origin(self.object, field));
        }
        if self.spec.traffic_distribution.is_some() {
            let field = origin(self.object, "spec.trafficDistribution");
            usual.sources.set(value::LOCALITY, field);
        }
        let policy = |subset: Option<&SubsetRef<'_>>| rules.policy(usual.clone(), port, subset);
        let whole = make("".into(), Labels::new(), policy(None), rules.origin());
        let mut out = vec![(None, whole)];
        for subset in rules.subsets() {
            let backend = make(
                subset.view.name.clone(),
                subset.view.labels.clone(),
                policy(Some(&subset)),
                Some(subset.origin()),
            );
            out.push((Some(subset), backend));
        }
        out
    }
}
