// SPDX-License-Identifier: Apache-2.0
//! VirtualService: first-match routes on the service hosts and Istio Gateways that it names.
//!
//! One route per service port, since a destination without a port keeps the one the traffic came
//! for. Rules with `sourceLabels` or `sourceNamespace` make further routes, one per combination
//! of sources, so that each proxy is sent only the rules that can take its requests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_base::issue::{FieldPath, Issues, Severity};
use weft_base::name::ServiceKey;
use weft_kinds::views::Labels;
use weft_kinds::views::istio::{HttpRoute, VirtualService};
use weft_kinds::views::service_entry::ServiceEntry;
use weft_kinds::world::{Index, KindId, Object, gateway_ref, host_key, pair};
use weft_model::{
    Action, Dialect, Match, Matching, Parent, Protocol, Rank, Resource, Retry, Root, Route, Rule,
    Scope, Timeouts,
};

use super::http_route::{consumers_of, producers_of};
use super::istio_gateway::{self, Carries, ServerSection};
use super::vs_everything::{self, BEHIND_ALL_MS, EVERYTHING};
use super::vs_rule::{Context, Place, Prepared, Source};
use super::{
    Env, Output, Reader, backend_tls, istio_fields, names, origin, protocol, service,
    service_entry, vs_delegate,
};
use crate::mesh::gateway_root;
use crate::status::{Condition, StatusBody, StatusUpdate};

/// What ends the name of the route that leaves nothing of a host to others.
pub(crate) const UNMATCHED: &str = "/unmatched";

/// Different sources in one VirtualService; their combinations are what is compiled.
const SOURCES_MAX: usize = 4;

struct Build<'a, 'w> {
    cx: Context<'a, 'w>,
    vs: &'a VirtualService,
    out: Output,
    /// Objects that decide instead of this one.
    overridden: Vec<String>,
    attached: bool,
}

pub(super) fn compile(
    reader: &Reader<'_>,
    env: &Env,
    object: &Object,
    vs: &VirtualService,
) -> Output {
    let cx = Context { reader, env, object, issues: Issues::default(), unresolved: Vec::new() };
    let mut build =
        Build { cx, vs, out: Output::default(), overridden: Vec::new(), attached: false };
    if vs.spec.is_mesh() {
        for (service, fits) in build.services() {
            build.attached = true;
            if fits {
                build.mesh(&service);
            }
        }
    }
    if vs.spec.is_mesh() {
        for host in build.outside() {
            build.attached = true;
            build.mesh_outside(&host);
        }
    }
    for gateway in vs.spec.gateways.iter().filter(|g| &***g != "mesh") {
        build.gateway(gateway);
    }
    let spec = &object.raw["spec"];
    istio_fields::judge(istio_fields::VIRTUAL_SERVICE, spec, &mut build.cx.issues);
    build.finish()
}

impl Build<'_, '_> {
    /// The services that `spec.hosts` names, each with whether no more specific VirtualService
    /// takes it.
    fn services(&mut self) -> BTreeMap<ServiceKey, bool> {
        let mut found = BTreeMap::new();
        let own = &*self.cx.object.key.namespace;
        for (i, host) in self.vs.spec.hosts.iter().enumerate() {
            if host.contains('*') {
                let pattern = host_key(host, own);
                for (service, patterns) in self.all_services() {
                    if let Some(at) = patterns.iter().position(|p| **p == *pattern) {
                        let taken = self.more_specific(patterns.get(..at).unwrap_or_default());
                        found.entry(service).or_insert(!taken);
                    }
                }
                continue;
            }
            let service = names::service_of_host(host, own, self.cx.env);
            match service.filter(|s| self.cx.reader.service(s).is_some()) {
                Some(service) => {
                    found.insert(service, true);
                }
                None if self.entry(host).is_some() => {}
                None if self.vs.spec.gateways.is_empty() => self.cx.issues.warning(
                    FieldPath::new("spec.hosts").index(i),
                    format!("{host} is no service of this mesh; no request is taken by it"),
                ),
                None => {}
            }
        }
        found
    }

    fn all_services(&self) -> Vec<(ServiceKey, Vec<String>)> {
        let objects = self.cx.reader.kind(KindId::Service, None);
        let keys =
            objects.iter().filter_map(|o| ServiceKey::new(&o.key.namespace, &o.key.name).ok());
        keys.map(|key| (key.clone(), names::host_patterns(&key, self.cx.env))).collect()
    }

    fn more_specific(&self, patterns: &[String]) -> bool {
        patterns.iter().any(|p| self.cx.reader.index_has(Index::VirtualServicesByHost, p))
    }

    // === sidecars ===

    fn mesh(&mut self, key: &ServiceKey) {
        let Some((object, view)) = self.cx.reader.service(key) else { return };
        for winner in producers_of(self.cx.reader, key) {
            self.overridden.push(format!("{winner} decides for the clients of {key} instead"));
        }
        for winner in consumers_of(self.cx.reader, key) {
            let ns = &winner.namespace;
            self.overridden.push(format!("clients of {key} in namespace {ns} follow {winner}"));
        }
        let root = names::host_root(key, self.cx.env);
        let own = self.cx.object.key.namespace.clone();
        let export = names::exported(self.vs.spec.export_to.iter().map(|s| &**s), &own);
        for port in view.spec.ports.iter().filter(|p| service::is_meshed(p)) {
            let speaks = protocol::of_service(&object.meta, &view.spec, port);
            let place = Place { gateway: "mesh", port: port.port, service: Some(key) };
            let parent = Parent::Host { root: root.clone(), port: Some(port.port) };
            for (rules, suffix) in self.rules(speaks, place) {
                self.emit(parent.clone(), &rules, export.as_ref(), (&suffix, 0));
            }
        }
    }

    /// The entry that defines a host which is no Service.
    fn entry(&self, host: &str) -> Option<&ServiceEntry> {
        let own = &*self.cx.object.key.namespace;
        service_entry::find(self.cx.reader, host, own).map(|(_, entry)| entry)
    }

    /// The hosts of `spec.hosts` that ServiceEntries define.
    fn outside(&self) -> Vec<Arc<str>> {
        let own = &*self.cx.object.key.namespace;
        let is_service = |host: &str| {
            let key = names::service_of_host(host, own, self.cx.env);
            key.is_some_and(|key| self.cx.reader.service(&key).is_some())
        };
        let hosts = self.vs.spec.hosts.iter().filter(|h| !h.contains('*') && !is_service(h));
        hosts.filter(|h| self.entry(h).is_some()).cloned().collect()
    }

    fn mesh_outside(&mut self, host: &str) {
        let Some(entry) = self.entry(host) else { return };
        let ports: Vec<_> =
            entry.spec.ports.iter().map(|p| (p.number, service_entry::speaks(p))).collect();
        let root = service_entry::root_of(host);
        let own = self.cx.object.key.namespace.clone();
        let export = names::exported(self.vs.spec.export_to.iter().map(|s| &**s), &own);
        for (port, speaks) in ports {
            let parent = Parent::Host { root: root.clone(), port: Some(port) };
            let place = Place { gateway: "mesh", port, service: None };
            for (rules, suffix) in self.rules(speaks, place) {
                self.emit(parent.clone(), &rules, export.as_ref(), (&suffix, 0));
            }
        }
    }

    /// The rules for a port of the mesh by what it carries, each with the end of their route's
    /// name.
    fn rules(&mut self, speaks: Protocol, place: Place<'_>) -> Vec<(Vec<Prepared>, String)> {
        let name = place.port.to_string();
        match speaks {
            Protocol::Tcp | Protocol::Udp => vec![(self.tcp_rules(place, false), name)],
            Protocol::Tls => {
                let mut rules = self.tls_rules(place);
                rules.extend(self.tcp_rules(place, false));
                vec![(rules, name)]
            }
            Protocol::Detect => {
                let bytes = format!("{name}/tcp");
                vec![(self.http_rules(place), name), (self.tcp_rules(place, true), bytes)]
            }
            Protocol::Http1 | Protocol::Http2 | Protocol::Grpc => {
                vec![(self.http_rules(place), name)]
            }
        }
    }

    fn http_rules(&mut self, place: Place<'_>) -> Vec<Prepared> {
        let each = self.vs.spec.http.iter().enumerate();
        each.flat_map(|(i, r)| self.http(r, i, place)).collect()
    }

    fn tcp_rules(&mut self, place: Place<'_>, undeclared: bool) -> Vec<Prepared> {
        let each = self.vs.spec.tcp.iter().enumerate();
        each.filter_map(|(i, r)| self.cx.tcp(r, i, place, undeclared)).collect()
    }

    fn tls_rules(&mut self, place: Place<'_>) -> Vec<Prepared> {
        let each = self.vs.spec.tls.iter().enumerate();
        each.filter_map(|(i, r)| self.cx.tls(r, i, place)).collect()
    }

    /// A rule, or those of the VirtualService that it delegates to.
    fn http(&mut self, route: &HttpRoute, i: usize, place: Place<'_>) -> Vec<Prepared> {
        let Some(to) = &route.delegate else {
            return self.cx.http(route, i, place).into_iter().collect();
        };
        let path = FieldPath::new("spec.http").index(i).field("delegate");
        let (object, delegate) = match vs_delegate::find(self.cx.reader, self.cx.object, to) {
            Ok(found) => found,
            Err(why) => {
                self.cx.unresolved.push(format!("{path}: {why}"));
                return self.cx.http(route, i, place).into_iter().collect();
            }
        };
        let (reader, env) = (self.cx.reader, self.cx.env);
        let mut cx =
            Context { reader, env, object, issues: Issues::default(), unresolved: Vec::new() };
        let mut out = Vec::new();
        for (j, leaf) in delegate.spec.http.iter().enumerate() {
            match vs_delegate::merge(route, leaf) {
                Some(merged) => out.extend(cx.http(&merged, j, place).map(|mut prepared| {
                    let own = FieldPath::new("spec.http").index(i);
                    for (value, field) in vs_delegate::inherited(route, leaf) {
                        let at = own.field(field);
                        let by = origin(self.cx.object, at.as_str());
                        prepared.rule.sources.set(value, by);
                    }
                    prepared
                })),
                None => {
                    let text = format!("{} spec.http[{j}] matches nothing of this", object.key);
                    self.cx.issues.warning(path.clone(), text);
                }
            }
        }
        for issue in cx.issues.0 {
            self.cx.issues.warning(path.clone(), format!("{} {issue}", object.key));
        }
        let unresolved = cx.unresolved.iter().map(|text| format!("{} {text}", object.key));
        self.cx.unresolved.extend(unresolved);
        out
    }

    // === gateways ===

    fn gateway(&mut self, reference: &str) {
        let own = self.cx.object.key.namespace.clone();
        let at = gateway_ref(reference, &own);
        let (ns, name) = at.split_once('/').unwrap_or((&own, &at));
        let Some((object, gateway)) = istio_gateway::find(self.cx.reader, ns, name) else {
            let text = format!("there is no Gateway {at}");
            self.cx.issues.warning(FieldPath::new("spec.gateways"), text);
            return;
        };
        let mut labels = object.meta.labels.clone();
        labels.extend(gateway.spec.selector.clone());
        for (port, sections) in istio_gateway::sections(gateway) {
            for carries in [Carries::Http, Carries::Names, Carries::Bytes] {
                let fits = |s: &&ServerSection<'_>| s.carries == carries && !s.is_redirected();
                let sections: Vec<_> = sections.iter().filter(fits).collect();
                let place = Place { gateway: &at, port, service: None };
                self.sections(place, (ns, name, &labels), carries, &sections);
            }
        }
    }

    /// The sections of a Gateway's port that carry the same.
    fn sections(
        &mut self,
        place: Place<'_>,
        (ns, name, labels): (&str, &str, &Labels),
        carries: Carries,
        sections: &[&ServerSection<'_>],
    ) {
        let own = self.cx.object.key.namespace.clone();
        let mut names_here: Vec<Arc<str>> = Vec::new();
        let mut hostnames: BTreeSet<Arc<str>> = BTreeSet::new();
        for section in sections {
            let hosts = section.common_hosts(&self.vs.spec.hosts, &own, ns);
            if !hosts.is_empty() {
                names_here.push(section.name.clone());
                // Who speaks no TLS names no host.
                hostnames.extend(if section.is_nameless() { vec!["*".into()] } else { hosts });
            }
        }
        if names_here.is_empty() {
            return;
        }
        let (mut rules, suffix) = match carries {
            Carries::Http => (self.http_rules(place), ""),
            Carries::Names => (self.tls_rules(place), "tls"),
            Carries::Bytes => (self.tcp_rules(place, false), "tcp"),
        };
        self.attached |= carries == Carries::Http || !rules.is_empty();
        rules.retain_mut(|prepared| {
            of_gateway(prepared, ns, labels);
            let rule = std::slice::from_mut(&mut prepared.rule);
            backend_tls::for_gateways(self.cx.reader, self.cx.env, ns, rule);
            !prepared.alternatives.is_empty()
        });
        let root = gateway_root(ns, name, place.port);
        // One `*` takes every host of the section, whatever else is listed.
        let all = hostnames.contains("*");
        let hostnames: Vec<_> = hostnames.into_iter().filter(|_| !all).collect();
        let parent = Parent::Listener { root: root.clone(), sections: names_here, hostnames };
        let (rules, last) = match carries {
            Carries::Http => vs_everything::split(rules),
            Carries::Names | Carries::Bytes => (rules, Vec::new()),
        };
        let end = if rules.is_empty() { suffix } else { EVERYTHING };
        self.emit(parent.clone(), &rules, None, (suffix, 0));
        self.emit(parent.clone(), &last, None, (end, BEHIND_ALL_MS));
        if carries == Carries::Http && !rules.is_empty() && last.is_empty() && !all {
            self.unmatched(&root, parent);
        }
    }

    /// What no rule for a host takes is nobody's: a host that is named leaves nothing to those
    /// that are only patterns.
    fn unmatched(&mut self, root: &Root, parent: Parent) {
        let (ns, name) = (&self.cx.object.key.namespace, &self.cx.object.key.name);
        let reason = format!("VirtualService {ns}/{name} has no rule for this request");
        let rule = Rule {
            name: "".into(),
            matches: Vec::new(),
            filters: Vec::new(),
            action: Action::Fail { status: 404, reason: reason.into() },
            timeouts: Timeouts::default(),
            retry: Retry::default(),
            session: None,
            origin: origin(self.cx.object, "spec.http"),
            sources: weft_model::Sources::default(),
        };
        let route = Route {
            parent,
            scope: Scope::Any,
            matching: Matching::FirstMatch,
            // After the rules of all that serve the same host.
            rank: Rank {
                dialect: Dialect::VirtualService,
                created_ms: u64::MAX,
                name: pair(ns, name),
            },
            rules: vec![rule],
            origin: origin(self.cx.object, ""),
        };
        let child = format!("route/virtualservice/{ns}/{name}{UNMATCHED}");
        self.out.draft(root.child(child), Resource::Route(route), false);
    }

    // === routes ===

    /// One route per combination of sources, the narrower before the wider; with what ends its
    /// name, and by how much it is behind others of the object's age, in milliseconds.
    fn emit(
        &mut self,
        parent: Parent,
        rules: &[Prepared],
        export: Option<&BTreeSet<Arc<str>>>,
        (suffix, behind): (&str, u64),
    ) {
        let (Parent::Listener { root, .. } | Parent::Host { root, .. }) = &parent;
        let sources = self.sources(rules);
        let mut routes = Vec::new();
        for combination in combinations(&sources) {
            let rules: Vec<Rule> = rules.iter().filter_map(|r| rule_for(r, &combination)).collect();
            if rules.is_empty() {
                continue;
            }
            for scope in scopes(&combination, export) {
                // The same clients have had their rules from a narrower combination.
                if !routes.iter().any(|(s, _)| *s == scope) {
                    routes.push((scope, rules.clone()));
                }
            }
        }
        let (ns, name) = (&self.cx.object.key.namespace, &self.cx.object.key.name);
        let several = routes.len() > 1;
        for (i, (scope, rules)) in routes.into_iter().enumerate() {
            let mut child = format!("route/virtualservice/{ns}/{name}");
            if !suffix.is_empty() {
                child = format!("{child}/{suffix}");
            }
            let mut rank = pair(ns, name);
            if several {
                child = format!("{child}/{i}");
                // Rank orders them: `#` and a fixed width keep the narrower first.
                rank = format!("{rank}#{i:03}").into();
            }
            let unresolved = !self.cx.unresolved.is_empty();
            let route = Route {
                parent: parent.clone(),
                scope,
                matching: Matching::FirstMatch,
                rank: Rank {
                    dialect: Dialect::VirtualService,
                    created_ms: self.cx.object.meta.created_ms().saturating_add(behind),
                    name: rank,
                },
                rules,
                origin: origin(self.cx.object, ""),
            };
            self.out.draft(root.child(child), Resource::Route(route), unresolved);
        }
    }

    fn sources(&mut self, rules: &[Prepared]) -> Vec<Source> {
        let mut all: BTreeSet<Source> = rules
            .iter()
            .flat_map(|r| &r.alternatives)
            .map(|(source, _)| source.clone())
            .filter(|source| *source != Source::default())
            .collect();
        if all.len() > SOURCES_MAX {
            let message = format!(
                "{} different sources are matched; rules of more than {SOURCES_MAX} are not \
                 applied; split this VirtualService",
                all.len()
            );
            self.cx.issues.error(FieldPath::new("spec.http"), message);
            all = all.into_iter().take(SOURCES_MAX).collect();
        }
        all.into_iter().collect()
    }

    // === status ===

    fn finish(mut self) -> Output {
        let mut issues = Issues::default();
        for issue in std::mem::take(&mut self.cx.issues.0) {
            // Rules are read once per port; a finding counts once.
            if !issues.0.contains(&issue) {
                issues.0.push(issue);
            }
        }
        let errors: Vec<_> = issues.0.iter().filter(|i| i.severity == Severity::Error).collect();
        let mut conditions = Vec::new();
        conditions.push(if !errors.is_empty() {
            let text: Vec<_> = errors.iter().map(ToString::to_string).collect();
            Condition::new("Accepted", false, "Invalid", text.join("; "))
        } else if self.attached {
            Condition::new("Accepted", true, "Accepted", "attached")
        } else if vs_delegate::is_delegate(self.vs) {
            let roots = vs_delegate::roots_of(self.cx.reader, self.cx.object);
            if roots.is_empty() {
                let text = "it has no hosts, and no VirtualService delegates to it";
                Condition::new("Accepted", false, "NotReferenced", text)
            } else {
                let text = format!("used by {}, which say how it fits", roots.join(", "));
                Condition::new("Accepted", true, "Delegate", text)
            }
        } else {
            let text = "spec.hosts names no service of this mesh and no gateway takes it";
            Condition::new("Accepted", false, "NoMatchingHost", text)
        });
        let mut unresolved = std::mem::take(&mut self.cx.unresolved);
        unresolved.sort();
        unresolved.dedup();
        conditions.push(if unresolved.is_empty() {
            Condition::new("ResolvedRefs", true, "ResolvedRefs", "every destination exists")
        } else {
            Condition::new("ResolvedRefs", false, "DestinationNotFound", unresolved.join("; "))
        });
        if !self.overridden.is_empty() {
            let text = self.overridden.join("; ");
            conditions.push(Condition::new("weft.dev/Effective", false, "Overridden", text));
        }
        conditions.extend(Condition::warning(&issues));
        self.out.status = Some(StatusUpdate {
            object: self.cx.object.key.clone(),
            generation: self.cx.object.meta.generation,
            body: StatusBody::Conditions(conditions),
        });
        self.out
    }
}

/// On a Gateway the sources are the Gateway itself: it stands for the client, or the match is for
/// others.
fn of_gateway(prepared: &mut Prepared, namespace: &str, labels: &Labels) {
    prepared.alternatives.retain_mut(|(source, _)| {
        let source = std::mem::take(source);
        source.namespace.is_none_or(|ns| *ns == *namespace)
            && source.labels.iter().all(|(k, v)| labels.get(k) == Some(v))
    });
}

/// Every set of sources that one client may satisfy at once, larger sets first; the last is empty.
fn combinations(sources: &[Source]) -> Vec<Vec<&Source>> {
    let mut out: Vec<Vec<&Source>> = (0..1usize << sources.len())
        .map(|bits| {
            let each = sources.iter().enumerate();
            each.filter(|(i, _)| bits & (1 << i) != 0).map(|(_, s)| s).collect()
        })
        .collect();
    out.sort_by_key(|set: &Vec<&Source>| std::cmp::Reverse(set.len()));
    out
}

/// The rule as clients of exactly these sources see it; `None` when it is for none of them.
fn rule_for(prepared: &Prepared, sources: &[&Source]) -> Option<Rule> {
    let open: Vec<&Option<Match>> = prepared
        .alternatives
        .iter()
        .filter(|(source, _)| *source == Source::default() || sources.contains(&source))
        .map(|(_, m)| m)
        .collect();
    if open.is_empty() {
        return None;
    }
    let mut rule = prepared.rule.clone();
    if open.iter().all(|m| m.is_some()) {
        rule.matches = open.into_iter().flatten().cloned().collect();
    }
    Some(rule)
}

/// The scopes of a combination under an export list; none when they contradict each other.
fn scopes(sources: &[&Source], export: Option<&BTreeSet<Arc<str>>>) -> Vec<Scope> {
    let mut namespace: Option<Arc<str>> = None;
    let mut labels = weft_model::Labels::new();
    for source in sources {
        if let Some(ns) = &source.namespace {
            if namespace.as_ref().is_some_and(|have| have != ns) {
                return Vec::new();
            }
            namespace = Some(ns.clone());
        }
        for (k, v) in &source.labels {
            if labels.insert(k.clone(), v.clone()).is_some_and(|have| have != *v) {
                return Vec::new();
            }
        }
    }
    let make = |ns: Option<Arc<str>>| match (ns, labels.is_empty()) {
        (None, true) => Scope::Any,
        (Some(ns), true) => Scope::Namespace(ns),
        (ns, false) => {
            Scope::Workload { namespace: ns.unwrap_or_default(), labels: labels.clone() }
        }
    };
    match (export, namespace) {
        (None, ns) => vec![make(ns)],
        (Some(to), Some(ns)) if to.contains(&ns) => vec![make(Some(ns))],
        (Some(_), Some(_)) => Vec::new(),
        (Some(to), None) => to.iter().map(|ns| make(Some(ns.clone()))).collect(),
    }
}
