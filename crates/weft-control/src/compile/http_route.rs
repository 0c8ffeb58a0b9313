// SPDX-License-Identifier: Apache-2.0
//! HTTPRoute, and the other kinds, which are read as one: where it attaches (gateway listeners, or
//! a Service's mesh clients), and its status in Gateway API's own words.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_base::name::ServiceKey;
use weft_kinds::views::View;
use weft_kinds::views::gateway::{HttpRoute, Listener, ParentRef};
use weft_kinds::world::{Index, KindId, Object, ObjectKey, pair};
use weft_model::{
    Dialect, Filter, Matching, Origin, Parent, Rank, Resource, Root, Route, Scope, value,
};

use super::http_rule::{self, Rules};
use super::listeners::{self, in_namespaces};
use super::{
    Env, Output, Reader, backend_tls, gateway, listener_set, names, origin, policy_attachment,
};
use crate::mesh::gateway_namespace;
use crate::status::{Condition, ParentStatus, StatusBody, StatusUpdate};

/// Where a route attached: per gateway port its sections and host names, and mesh hosts.
#[derive(Debug, Default)]
struct Attached {
    listeners: BTreeMap<Root, Vec<OnPort>>,
    hosts: BTreeMap<(Root, Option<u16>), Dialect>,
}

/// What a route has on those sections of a gateway's port that the same policies are about; no
/// host names are all that the sections have.
#[derive(Debug, Default)]
struct OnPort {
    sections: Vec<Arc<str>>,
    hostnames: BTreeSet<Arc<str>>,
    /// What policies say about the Gateway itself, or about these sections in its place.
    filters: Vec<Filter>,
    /// Who limits bodies among them, which their name does not say.
    body: Option<Origin>,
}

// === impl OnPort ===

impl OnPort {
    fn add(&mut self, section: &Arc<str>, hostnames: Vec<Arc<str>>) {
        if !self.sections.contains(section) {
            self.sections.push(section.clone());
        }
        self.hostnames.extend(hostnames);
    }
}

pub(super) fn compile(
    reader: &Reader<'_>,
    env: &Env,
    object: &Object,
    route: &HttpRoute,
) -> Output {
    let mut out = Output::default();
    let rules = http_rule::read(reader, env, object, route);
    let mut attached = Attached::default();
    let mut parents = Vec::new();
    for parent in &route.spec.parent_refs {
        let accepted = if parent.is_gateway() || parent.is_listener_set() {
            attach_gateway(reader, object, route, parent, &mut attached, &mut out)
        } else if parent.is_service() && is_stream(object) {
            let text = "this kind of route is served by Gateways; no Service's clients follow it";
            refuse("UnsupportedValue", text)
        } else if parent.is_service() {
            attach_service(reader, env, object, parent, &mut attached)
        } else {
            None
        };
        // A parent that is not ours is somebody else's to speak of.
        let Some((accepted, extra)) = accepted else { continue };
        let conditions = conditions(accepted, extra, &rules);
        parents.push(ParentStatus { parent: parent.clone(), conditions });
    }
    emit((reader, env), object, &rules, attached, &mut out);
    out.status = Some(StatusUpdate {
        object: object.key.clone(),
        generation: object.meta.generation,
        body: StatusBody::Parents(parents),
    });
    out
}

fn emit(
    (reader, env): (&Reader<'_>, &Env),
    object: &Object,
    rules: &Rules,
    attached: Attached,
    out: &mut Output,
) {
    let (ns, name) = (&object.key.namespace, &object.key.name);
    let make = |parent, scope, dialect| Route {
        parent,
        scope,
        matching: Matching::MostSpecific,
        rank: Rank { dialect, created_ms: object.meta.created_ms(), name: pair(ns, name) },
        rules: rules.rules.clone(),
        origin: origin(object, ""),
    };
    let kind = object.key.kind.row().singular;
    let child = format!("route/{kind}/{ns}/{name}");
    let each = attached.listeners.into_iter();
    let each = each.flat_map(|(root, parts)| parts.into_iter().map(move |p| (root.clone(), p)));
    let mut named = BTreeSet::new();
    for (root, OnPort { sections, hostnames, filters, body }) in each {
        // One of several is named for its first section: no other of them has it.
        let child = match (named.insert(root.clone()), sections.first()) {
            (false, Some(section)) => format!("{child}/{section}"),
            _ => child.clone(),
        };
        let hostnames = hostnames.into_iter().collect();
        let parent = Parent::Listener { root: root.clone(), sections, hostnames };
        let mut route = make(parent, Scope::Any, Dialect::ProducerHttpRoute);
        for rule in &mut route.rules {
            drop(rule.filters.splice(..0, filters.clone()));
            if let Some(by) = &body {
                rule.sources.set(value::BODY, by.clone());
            }
        }
        backend_tls::for_gateways(reader, env, gateway_namespace(&root), &mut route.rules);
        let route = Resource::Route(route);
        out.draft(root.child(child), route, rules.may_come);
    }
    for ((root, port), dialect) in attached.hosts {
        let scope = match dialect {
            Dialect::ConsumerHttpRoute => Scope::Namespace(ns.clone()),
            _ => Scope::Any,
        };
        let child = match port {
            Some(port) => format!("{child}/{port}"),
            None => child.clone(),
        };
        let route =
            Resource::Route(make(Parent::Host { root: root.clone(), port }, scope, dialect));
        out.draft(root.child(child), route, rules.may_come);
    }
}

fn conditions(accepted: Condition, extra: Option<Condition>, rules: &Rules) -> Vec<Condition> {
    let mut out = Vec::new();
    let failed = |r: &weft_model::Rule| matches!(r.action, weft_model::Action::Fail { .. });
    let all_bad = !rules.unsupported.is_empty() && rules.rules.iter().all(failed);
    let unsupported = rules.unsupported.join("; ");
    if accepted.holds && all_bad {
        out.push(Condition::new("Accepted", false, "UnsupportedValue", unsupported.clone()));
    } else {
        out.push(accepted);
    }
    out.push(match rules.unresolved.first() {
        None => Condition::new("ResolvedRefs", true, "ResolvedRefs", "every backend exists"),
        Some((reason, _)) => {
            let all: Vec<_> = rules.unresolved.iter().map(|(_, text)| text.clone()).collect();
            Condition::new("ResolvedRefs", false, reason, all.join("; "))
        }
    });
    if !unsupported.is_empty() && !all_bad {
        let text = format!("not done as written: {unsupported}");
        out.push(Condition::new("PartiallyInvalid", true, "UnsupportedValue", text));
    }
    out.extend(extra);
    out.extend(Condition::warning(&rules.issues));
    out
}

type Verdict = Option<(Condition, Option<Condition>)>;

fn refuse(reason: &'static str, text: impl Into<String>) -> Verdict {
    Some((Condition::new("Accepted", false, reason, text), None))
}

/// TLSRoute, TCPRoute, UDPRoute.
fn is_stream(object: &Object) -> bool {
    matches!(object.view, View::StreamRoute(_))
}

// === gateways ===

/// A Gateway or a ListenerSet as routes meet it.
struct Door<'w> {
    gateway: &'w Object,
    owner: &'w Object,
    listeners: &'w [Listener],
}

impl<'w> Door<'w> {
    /// `None` when it is not ours to speak of.
    fn find(
        reader: &Reader<'w>,
        namespace: &str,
        parent: &ParentRef,
    ) -> Option<Result<Self, (&'static str, String)>> {
        let ns = parent.namespace.as_deref().unwrap_or(namespace);
        if parent.is_gateway() {
            let owner = reader.object(KindId::Gateway, ns, &parent.name)?;
            let View::Gateway(view) = &owner.view else { return None };
            let listeners = &view.spec.listeners[..];
            return gateway::is_ours(reader, view).then_some(Ok(Self {
                gateway: owner,
                owner,
                listeners,
            }));
        }
        let owner = reader.object(KindId::ListenerSet, ns, &parent.name)?;
        let View::ListenerSet(set) = &owner.view else { return None };
        let (gateway, view) = match listener_set::parent(reader, owner, set)? {
            Ok(found) => found,
            Err(text) => return Some(Err(("NoMatchingParent", text))),
        };
        if !listener_set::is_taken(reader, (gateway, view), owner) {
            let text = format!("{} is not taken by {}", owner.key, gateway.key);
            return Some(Err(("NotAllowedByListeners", text)));
        }
        Some(Ok(Self { gateway, owner, listeners: &set.spec.listeners }))
    }
}

fn attach_gateway(
    reader: &Reader<'_>,
    object: &Object,
    route: &HttpRoute,
    parent: &ParentRef,
    attached: &mut Attached,
    out: &mut Output,
) -> Verdict {
    let (own, kind) = (&*object.key.namespace, object.key.kind.row().kind);
    let door = match Door::find(reader, own, parent)? {
        Ok(door) => door,
        Err((reason, text)) => return refuse(reason, text),
    };
    let at = &door.owner.key;
    let named: Vec<&Listener> = door.listeners.iter().filter(|l| is_named(parent, l)).collect();
    if named.is_empty() {
        return refuse("NoMatchingParent", format!("{at} has no such listener"));
    }
    let allowed: Vec<&Listener> =
        named.into_iter().filter(|l| allows(reader, l, kind, (&at.namespace, own))).collect();
    if allowed.is_empty() {
        let text =
            format!("no listener of {at} takes {kind}s of namespace {own}; see its allowedRoutes");
        return refuse("NotAllowedByListeners", text);
    }
    let policies = ListenerPolicies::read(reader, &door);
    let mut any = false;
    for listener in allowed {
        let Some(hostnames) = intersect(listener.hostname.as_deref(), &route.spec.hostnames) else {
            continue;
        };
        any = true;
        out.attached.push((at.clone(), listener.name.clone()));
        let root = listeners::root_of(&door.gateway.key, listener);
        let parts = attached.listeners.entry(root).or_default();
        let section = listeners::section_name(door.owner, listener);
        let policy = policies.of(listener);
        let filters = policy.map(|p| p.filters()).unwrap_or_default();
        let part = part_with(parts, filters);
        part.body = part.body.take().or_else(|| policy.and_then(|p| p.body_origin()));
        part.add(&section, hostnames);
    }
    if !any {
        let text = format!("spec.hostnames and the host names of {at} have nothing in common");
        return refuse("NoMatchingListenerHostname", text);
    }
    Some((Condition::new("Accepted", true, "Accepted", "attached"), None))
}

/// What policies say about the listeners of a door: a set's own speak before its Gateway's, of
/// which those about single listeners are about the Gateway's own.
struct ListenerPolicies<'w> {
    gateway: policy_attachment::Attached<'w>,
    set: Option<policy_attachment::Attached<'w>>,
}

impl<'w> ListenerPolicies<'w> {
    fn read(reader: &Reader<'w>, door: &Door<'_>) -> Self {
        let read = |object: &Object| {
            let key = &object.key;
            let kind = key.kind.row().kind;
            policy_attachment::Attached::read(reader, kind, &key.namespace, &key.name)
        };
        let is_set = door.owner.key != door.gateway.key;
        Self { gateway: read(door.gateway), set: is_set.then(|| read(door.owner)) }
    }

    fn of(&self, listener: &Listener) -> Option<policy_attachment::Effective<'_, 'w>> {
        let name = Some(&*listener.name);
        match &self.set {
            None => self.gateway.effective(name),
            Some(set) => set.effective(name).or_else(|| self.gateway.effective(None)),
        }
    }
}

fn part_with(parts: &mut Vec<OnPort>, filters: Vec<Filter>) -> &mut OnPort {
    let at = parts.iter().position(|part| part.filters == filters).unwrap_or_else(|| {
        parts.push(OnPort { filters, ..OnPort::default() });
        parts.len() - 1
    });
    &mut parts[at]
}

fn is_named(parent: &ParentRef, listener: &Listener) -> bool {
    parent.section_name.as_ref().is_none_or(|s| *s == listener.name)
        && parent.port.is_none_or(|p| p == listener.port)
}

/// Whether a listener takes routes of a kind and a namespace.
fn allows(
    reader: &Reader<'_>,
    listener: &Listener,
    kind: &str,
    (owner_ns, route_ns): (&str, &str),
) -> bool {
    listeners::taken_kinds(listener).contains(&kind)
        && in_namespaces(reader, &listener.allowed_routes.namespaces, "Same", owner_ns, route_ns)
}

/// The host names that a route serves on a listener: `None` is none in common; empty is all that
/// the listener has. They stay as the route has them: the listener's own name is judged before,
/// and among routes "characters in a matching hostname" are the route's.
fn intersect(listener: Option<&str>, route: &[Arc<str>]) -> Option<Vec<Arc<str>>> {
    if route.is_empty() {
        return Some(Vec::new());
    }
    let Some(listener) = listener.filter(|l| !l.is_empty()) else { return Some(route.to_vec()) };
    let common: Vec<_> =
        route.iter().filter(|host| narrower(listener, host).is_some()).cloned().collect();
    (!common.is_empty()).then_some(common)
}

/// The narrower of two host patterns when one takes in the other.
pub(super) fn narrower(a: &str, b: &str) -> Option<Arc<str>> {
    let (a, b) = (a.to_ascii_lowercase(), b.to_ascii_lowercase());
    let takes = |wide: &str, narrow: &str| {
        wide == "*"
            || wide == narrow
            || wide.strip_prefix('*').is_some_and(|suffix| {
                let narrow = narrow.strip_prefix('*').unwrap_or(narrow);
                narrow.len() > suffix.len() && narrow.ends_with(suffix)
            })
    };
    if takes(&a, &b) {
        Some(b.into())
    } else if takes(&b, &a) {
        Some(a.into())
    } else {
        None
    }
}

// === Services ===

/// A route on a Service is its producer's word to every client when it lives beside the Service,
/// and a consumer's own word for its namespace's clients when it does not.
fn attach_service(
    reader: &Reader<'_>,
    env: &Env,
    object: &Object,
    parent: &ParentRef,
    attached: &mut Attached,
) -> Verdict {
    let own = &*object.key.namespace;
    let ns = parent.namespace.as_deref().unwrap_or(own);
    let missing =
        || refuse("NoMatchingParent", format!("there is no Service {ns}/{}", parent.name));
    let Ok(key) = ServiceKey::new(ns, &parent.name) else { return missing() };
    let Some((_, service)) = reader.service(&key) else { return missing() };
    let section = parent.section_name.as_deref();
    let named: Vec<u16> = service
        .spec
        .ports
        .iter()
        .filter(|p| section.is_none_or(|s| &*p.name == s))
        .filter(|p| parent.port.is_none_or(|n| p.port == n))
        .map(|p| p.port)
        .collect();
    if named.is_empty() {
        return refuse("NoMatchingParent", format!("Service {key} has no such port"));
    }
    let dialect = if ns == own { Dialect::ProducerHttpRoute } else { Dialect::ConsumerHttpRoute };
    let root = names::host_root(&key, env);
    if section.is_none() && parent.port.is_none() {
        attached.hosts.insert((root, None), dialect);
    } else {
        attached.hosts.extend(named.iter().map(|p| ((root.clone(), Some(*p)), dialect)));
    }
    let extra = (dialect == Dialect::ProducerHttpRoute)
        .then(|| overridden(reader, &key, &object.key))
        .flatten();
    Some((Condition::new("Accepted", true, "Accepted", "attached"), extra))
}

/// What a producer's route says when consumers have their own.
fn overridden(reader: &Reader<'_>, service: &ServiceKey, own: &ObjectKey) -> Option<Condition> {
    let consumers = consumers_of(reader, service);
    let others: Vec<_> = consumers
        .iter()
        .filter(|k| **k != *own)
        .map(|k| format!("clients in namespace {} follow {k} instead", k.namespace))
        .collect();
    (!others.is_empty())
        .then(|| Condition::new("weft.dev/Effective", false, "PartlyOverridden", others.join("; ")))
}

/// HTTPRoutes of other namespaces on a Service.
pub(super) fn consumers_of(reader: &Reader<'_>, service: &ServiceKey) -> Vec<ObjectKey> {
    let (ns, name) = (service.namespace.as_str(), service.name.as_str());
    let routes = reader.index(Index::RoutesByService, &pair(ns, name));
    routes.iter().filter(|o| &*o.key.namespace != ns).map(|o| o.key.clone()).collect()
}

/// HTTPRoutes of a Service's own namespace on it.
pub(super) fn producers_of(reader: &Reader<'_>, service: &ServiceKey) -> Vec<ObjectKey> {
    let (ns, name) = (service.namespace.as_str(), service.name.as_str());
    let routes = reader.index(Index::RoutesByService, &pair(ns, name));
    routes.iter().filter(|o| &*o.key.namespace == ns).map(|o| o.key.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_meet_in_the_narrower_one() {
        for (a, b, want) in [
            ("*.example.com", "api.example.com", Some("api.example.com")),
            ("api.example.com", "*.example.com", Some("api.example.com")),
            ("*.example.com", "*.a.example.com", Some("*.a.example.com")),
            ("*", "API.example.com", Some("api.example.com")),
            ("*.example.com", "example.com", None),
            ("a.example.com", "b.example.com", None),
        ] {
            assert_eq!(narrower(a, b).as_deref(), want, "{a} {b}");
        }
    }
}
