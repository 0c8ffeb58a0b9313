// SPDX-License-Identifier: Apache-2.0
//! ServiceEntry to hosts of the mesh that are no Services: each of its host names with ports,
//! backends and endpoints. Endpoints are written in the entry, or were looked up by the server
//! ([`World::resolved`](weft_kinds::world::World::resolved)); nothing is looked up here.
//!
//! A host without endpoints (resolution `NONE`, or a name that was not found yet) is no host of
//! the mesh: what goes there passes as it is. Ports that a DestinationRule has TLS begun on are
//! the mesh's all the same, and fail: nothing goes there in plaintext.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use weft_base::issue::{FieldPath, Issues};
use weft_kinds::views::View;
use weft_kinds::views::istio::DestinationRule;
use weft_kinds::views::service_entry::{EntryEndpoint, EntryPort, ServiceEntry, ServiceEntrySpec};
use weft_kinds::world::{Index, Object, host_key};
use weft_model::{
    Backend, BackendPolicy, Endpoint, EndpointSet, GATEWAYS_MARK, Health, Host, HostPort, Locality,
    Protocol, Resource, Root, Transport, backend_child, endpoints_child,
};

use super::client_tls::{self, Said, Secured};
use super::destination_rule::{self, Rules, SubsetRef, not_done};
use super::peer_authentication::ROOT_NAMESPACE;
use super::rule_clients::{self, Client};
use super::service::{lack, lacking_subset, unknown_subset};
use super::{Env, Output, Reader, names, origin, protocol};
use crate::status::{Condition, StatusBody, StatusUpdate};

struct Build<'a, 'w> {
    reader: &'a Reader<'w>,
    object: &'a Object,
    entry: &'a ServiceEntry,
    issues: Issues,
    out: Output,
}

pub(super) fn compile(
    reader: &Reader<'_>,
    env: &Env,
    object: &Object,
    entry: &ServiceEntry,
) -> Output {
    let (issues, out) = (Issues::default(), Output::default());
    let mut build = Build { reader, object, entry, issues, out };
    build.judge();
    let mut taken = Vec::new();
    for (i, host) in entry.spec.hosts.iter().enumerate() {
        match build.owner(env, host) {
            Ok(()) => build.host(host, i),
            Err(why) => taken.push(format!("spec.hosts[{i}]: {why}")),
        }
    }
    build.finish(taken)
}

/// The entry in effect for a host: the oldest that names it.
pub(super) fn find<'w>(
    reader: &Reader<'w>,
    host: &str,
    namespace: &str,
) -> Option<(&'w Object, &'w ServiceEntry)> {
    let found = reader.index(Index::ServiceEntriesByHost, &host_key(host, namespace));
    let entries = found.into_iter().filter_map(|o| match &o.view {
        View::ServiceEntry(entry) => Some((&**o, entry)),
        _ => None,
    });
    entries.min_by_key(|(o, _)| (o.meta.created_ms(), o.key.clone()))
}

fn secured(
    reader: &Reader<'_>,
    rules: &Rules<'_>,
    host: &str,
    (port, subset): (u16, Option<&SubsetRef<'_>>),
) -> Secured {
    client_tls::secured(reader, rules.tls(port, subset), host)
}

/// How an entry's host is spoken to, by whom.
pub(super) fn formed(reader: &Reader<'_>, host: &str, port: u16, client: &str) -> Secured {
    let Some((object, _)) = find(reader, host, "") else { return Secured::default() };
    let own = &*object.key.namespace;
    // Other namespaces begin no TLS with it.
    let client = (own == client).then_some(client);
    let rules = destination_rule::rules_for_host(reader, host, own, client);
    secured(reader, &rules, host, (port, None))
}

/// What a DestinationRule about an entry's host should know of it.
pub(super) fn judge_rule(object: &Object, rule: &DestinationRule, issues: &mut Issues) {
    let View::ServiceEntry(entry) = &object.view else { return };
    let policy = rule.spec.traffic_policy.as_ref();
    if policy.is_some_and(client_tls::originates_any) && is_without(&entry.spec) {
        let text = format!("nothing is sent there: {} {WITHOUT}", object.key);
        issues.warning(FieldPath::new("spec.trafficPolicy.tls"), text);
    }
}

/// Whether a rule of another namespace is not used for its clients: before an address of the host
/// is known, nobody could keep what they send from passing in plaintext, and nobody else may have
/// the host closed for it.
pub(super) fn is_left_out(entry: &Object, object: &Object, rule: &DestinationRule) -> bool {
    let (own, theirs) = (&entry.key.namespace, &object.key.namespace);
    own != theirs && **theirs != *ROOT_NAMESPACE && destination_rule::originates(rule)
}

/// Whether rules have TLS begun on a port.
fn is_begun(rules: &Rules<'_>, port: &EntryPort) -> bool {
    rules.tls(port.number, None).is_some_and(|(_, tls)| client_tls::originates(tls))
}

/// Whether an entry says not where its hosts are.
fn is_without(spec: &ServiceEntrySpec) -> bool {
    &*spec.resolution != "STATIC" && !spec.is_dns()
}

const WITHOUT: &str = "names no address to begin TLS with; say resolution: DNS, or STATIC and \
                       endpoints";

/// The root of a host that an entry names.
pub(super) fn root_of(host: &str) -> Root {
    Root::host(host.to_ascii_lowercase())
}

/// The port's protocol, in Istio's word for it.
pub(super) fn speaks(port: &EntryPort) -> Protocol {
    protocol::by_name(&port.protocol).unwrap_or(Protocol::Tcp)
}

impl Build<'_, '_> {
    /// Whether a host is this entry's to define.
    fn owner(&self, env: &Env, host: &str) -> Result<(), String> {
        let own = &self.object.key.namespace;
        if let Some(service) = names::service_of_host(host, own, env)
            && names::is_of_mesh(host, env)
        {
            return Err(format!("{host} is Service {service}'s name; choose one of your own"));
        }
        match find(self.reader, host, own) {
            Some((first, _)) if first.key != self.object.key => {
                Err(format!("not used: the older {} defines {host}", first.key))
            }
            _ => Ok(()),
        }
    }

    fn host(&mut self, name: &str, i: usize) {
        let spec = &self.entry.spec;
        let path = FieldPath::new("spec.hosts").index(i);
        let own = &self.object.key.namespace;
        let rules = destination_rule::rules_for_host(self.reader, name, own, None);
        let patterns = destination_rule::patterns_of(name, own);
        let mut by_client = rule_clients::by_client(self.reader, &patterns, own);
        by_client.retain(|(client, rules)| match client {
            Some(Client { namespace, .. })
                if namespace != own && &**namespace != ROOT_NAMESPACE =>
            {
                !rules.originate_in(namespace)
            }
            _ => true,
        });
        // Who closes a host without endpoints: what holds for the entry's own namespace, too.
        let mine = by_client.iter().find(|(client, _)| {
            client.as_ref().is_some_and(|c| c.namespace == *own && c.chosen.is_none())
        });
        if name.contains('*') {
            let mut text =
                "a pattern has no endpoints of its own; what goes there passes as it is".to_owned();
            if spec.ports.iter().any(|port| is_begun(&rules, port)) {
                text =
                    format!("{text}, without the TLS of {}: name its hosts in full", rules.names());
            }
            self.issues.warning(path, text);
            return;
        }
        let endpoints = self.endpoints(name);
        if endpoints.is_empty() {
            self.closed(name, &path, mine.map_or(&rules, |(_, mine)| mine));
            return;
        }
        let root = root_of(name);
        let service: Arc<str> = name.to_ascii_lowercase().into();
        for port in &spec.ports {
            let set = EndpointSet {
                service: service.clone(),
                namespace: self.object.key.namespace.clone(),
                port: port.number,
                protocol: speaks(port),
                endpoints: endpoints.iter().map(|(e, ip)| self.endpoint(e, *ip, port)).collect(),
            };
            self.out.add(root.child(endpoints_child(port.number)), Resource::Endpoints(set));
            let Some((_, whole)) = by_client.first() else { continue };
            for (client, rules) in &by_client {
                self.backends(&root, port, client.as_ref(), rules);
                let Some(client) = client else { continue };
                for name in rules.lacking(whole) {
                    let plain = root.child(backend_child(port.number, &name));
                    lack(&plain, client, &lacking_subset(&name, client, rules), &mut self.out);
                }
            }
        }
        self.publish(name, spec.ports.iter());
    }

    /// The backends of a port, whole and by subset, for everybody or for a namespace's clients.
    fn backends(
        &mut self,
        root: &Root,
        port: &EntryPort,
        client: Option<&Client>,
        rules: &Rules<'_>,
    ) {
        let clients = client.map_or(String::new(), Client::mark);
        let subsets = rules.subsets();
        for subset in std::iter::once(None).chain(subsets.iter().map(Some)) {
            let said = subset.map(SubsetRef::origin).or_else(|| rules.origin());
            let backend = Backend {
                service: root.name().clone(),
                port: port.number,
                subset: subset.map_or("".into(), |s| s.view.name.clone()),
                selector: subset.map(|s| s.view.labels.clone()).unwrap_or_default(),
                policy: rules.policy(BackendPolicy::default(), port.number, subset),
                origin: said.or_else(|| Some(origin(self.object, "spec"))),
            };
            let spoken = secured(self.reader, rules, root.name(), (port.number, subset));
            let child = backend_child(port.number, &backend.subset);
            let chosen = client.is_some_and(|c| c.chosen.is_some());
            if let Some(form) = spoken.gateways.as_ref().filter(|_| !chosen) {
                let whole = root.child(format!("{child}{GATEWAYS_MARK}"));
                if let (Some(client), false) = (client, self.out.resources.contains_key(&whole)) {
                    self.out.add(whole, unknown_subset(&backend.subset, client, &backend));
                }
                let child = root.child(format!("{child}{GATEWAYS_MARK}{clients}"));
                self.out.add(child, client_tls::formed(&backend, form));
            }
            let plain = root.child(child.as_str());
            if let (Some(client), false) = (client, self.out.resources.contains_key(&plain)) {
                self.out.add(plain, unknown_subset(&backend.subset, client, &backend));
            }
            let child = root.child(format!("{child}{clients}"));
            self.out.add(child, client_tls::formed(&backend, &spoken.all));
        }
    }

    /// A host without endpoints: ports with TLS of which nobody knows where to begin it.
    fn closed(&mut self, name: &str, path: &FieldPath, rules: &Rules<'_>) {
        let spec = &self.entry.spec;
        let ports: Vec<_> = spec.ports.iter().filter(|port| is_begun(rules, port)).collect();
        if ports.is_empty() {
            return;
        }
        let why = match &*spec.resolution {
            _ if is_without(spec) => format!("{} {WITHOUT}", self.object.key),
            "STATIC" => format!("{} has no endpoint with an address", self.object.key),
            _ => format!("no address of {name} is known (yet)"),
        };
        let rule = rules.names();
        let text = format!("nothing is sent there, because {rule} has TLS begun with it: {why}");
        self.issues.warning(path.clone(), text.clone());
        let root = root_of(name);
        let unknown = Said { reason: text, origin: origin(self.object, "spec") };
        for port in &ports {
            let spoken = secured(self.reader, rules, name, (port.number, None));
            let child = backend_child(port.number, "");
            if spoken.gateways.is_some() {
                let child = root.child(format!("{child}{GATEWAYS_MARK}"));
                self.out.add(child, unknown.fail());
            }
            let said = match &spoken.all {
                Some(Err(said)) => said,
                _ => &unknown,
            };
            self.out.add(root.child(child), said.fail());
        }
        self.publish(name, ports.into_iter());
    }

    /// The host itself, with some of its ports.
    fn publish<'p>(&mut self, name: &str, ports: impl Iterator<Item = &'p EntryPort>) {
        let (spec, root) = (&self.entry.spec, root_of(name));
        let ports = ports.map(|port| HostPort {
            port: port.number,
            name: port.name.clone(),
            protocol: speaks(port),
            backend: backend_child(port.number, "").into(),
            upstream_port: None,
        });
        let host = Host {
            name: root.name().clone(),
            aliases: Vec::new(),
            addresses: spec.addresses.iter().filter_map(|a| a.parse().ok()).collect(),
            ports: ports.collect(),
        };
        self.out.add(root.own(), Resource::Host(host));
        let list = spec.export_to.iter().map(|s| &**s);
        if let Some(to) = names::exported(list, &self.object.key.namespace) {
            self.out.restricted.push((root, Arc::new(to)));
        }
    }

    /// Each endpoint with an address: as written, or as found.
    fn endpoints(&self, host: &str) -> Vec<(EntryEndpoint, IpAddr)> {
        let spec = &self.entry.spec;
        let resolve = |name: &str| match name.parse::<IpAddr>() {
            Ok(ip) => vec![ip],
            Err(_) if spec.is_dns() => self.reader.resolved(name),
            Err(_) => Vec::new(),
        };
        if is_without(spec) {
            return Vec::new();
        }
        if spec.is_dns() && spec.endpoints.is_empty() {
            let one = EntryEndpoint { address: host.into(), ..EntryEndpoint::default() };
            return resolve(host).into_iter().map(|ip| (one.clone(), ip)).collect();
        }
        let each = spec.endpoints.iter();
        each.flat_map(|e| resolve(&e.address).into_iter().map(|ip| (e.clone(), ip))).collect()
    }

    fn endpoint(&self, endpoint: &EntryEndpoint, ip: IpAddr, port: &EntryPort) -> Endpoint {
        let target = endpoint.ports.get(&port.name).copied().unwrap_or(port.target());
        let mut place = endpoint.locality.split('/').map(Arc::<str>::from);
        let mut next = || place.next().unwrap_or_default();
        Endpoint {
            id: ip.to_string().into(),
            address: SocketAddr::new(ip, target),
            labels: endpoint.labels.clone(),
            locality: Locality { region: next(), zone: next(), sub_zone: next() },
            weight: endpoint.weight.unwrap_or(1),
            health: Health::Healthy,
            identity: None,
            transport: Transport::Plaintext,
            mesh_address: None,
            workload: self.object.key.name.clone(),
        }
    }

    /// What is read and not done.
    fn judge(&mut self) {
        let spec = &self.entry.spec;
        let at = FieldPath::new("spec");
        if spec.workload_selector.is_some() {
            not_done(&mut self.issues, &at.field("workloadSelector"));
        }
        if !spec.subject_alt_names.is_empty() {
            not_done(&mut self.issues, &at.field("subjectAltNames"));
        }
        for (i, address) in spec.addresses.iter().enumerate() {
            if address.parse::<IpAddr>().is_err() {
                let text = format!("{address} is no single address; it is not matched");
                self.issues.warning(at.field("addresses").index(i), text);
            }
        }
        for (i, endpoint) in spec.endpoints.iter().enumerate() {
            if &*spec.resolution == "STATIC" && endpoint.address.parse::<IpAddr>().is_err() {
                let text =
                    format!("{} is no address; resolution STATIC needs one", endpoint.address);
                self.issues.warning(at.field("endpoints").index(i).field("address"), text);
            }
        }
    }

    fn finish(mut self, taken: Vec<String>) -> Output {
        let spec = &self.entry.spec;
        let all = spec.hosts.len();
        let accepted = match taken.is_empty() {
            true => Condition::new("Accepted", true, "Accepted", "its hosts are the mesh's"),
            false => Condition::new("Accepted", taken.len() < all, "Conflicted", taken.join("; ")),
        };
        let missing: Vec<&str> = spec
            .names_to_resolve()
            .filter(|n| self.reader.resolved(n).is_empty())
            .map(|n| &**n)
            .collect();
        let resolved = match (spec.is_dns(), missing.is_empty()) {
            (false, _) => None,
            (true, true) => {
                Some(Condition::new("Resolved", true, "Resolved", "every name is found"))
            }
            (true, false) => {
                let text = format!("no address of {} is known (yet)", missing.join(", "));
                Some(Condition::new("Resolved", false, "NotFound", text))
            }
        };
        let conditions = std::iter::once(accepted).chain(resolved);
        let conditions = conditions.chain(Condition::warning(&self.issues)).collect();
        self.out.status = Some(StatusUpdate {
            object: self.object.key.clone(),
            generation: self.object.meta.generation,
            body: StatusBody::Conditions(conditions),
        });
        self.out
    }
}
