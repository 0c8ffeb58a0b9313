// SPDX-License-Identifier: Apache-2.0
//! BackendTLSPolicy: TLS that Gateways speak to a Service. `service` asks which policy counts for
//! a port, routes of Gateways which of their backends have such a form; a policy's own unit gives
//! its status only.
//!
//! Of the policies about one port the oldest counts, those that name the port before those about
//! the whole Service. A policy without a usable authority fails its backend: nothing goes there.

use std::collections::BTreeSet;
use std::sync::Arc;

use weft_base::issue::FieldPath;
use weft_base::name::ServiceKey;
use weft_kinds::views::View;
use weft_kinds::views::backend_tls::{BackendTlsPolicySpec, SubjectAltName};
use weft_kinds::views::core::ServicePort;
use weft_kinds::views::gateway::{GROUP, ObjectRef, ParentRef};
use weft_kinds::views::traffic_policy::{TargetRef, target_key};
use weft_kinds::world::{Index, Object, pair};
use weft_model::{
    Filter, GATEWAYS_MARK, Names, ResourceName, Root, Rule, Target, Trust, UpstreamTls,
};

use super::client_tls::{self, Said, Secured};
use super::destination_rule::{self, Rules, SubsetRef};
use super::{Env, Output, Reader, gateway, listener_tls, names, origin, service_entry};
use crate::status::{Condition, ParentStatus, StatusBody, StatusUpdate};

/// The policies about one Service, the oldest first.
#[derive(Debug)]
pub(super) struct Policies<'w>(Vec<(&'w Object, &'w BackendTlsPolicySpec)>, Arc<str>);

// === impl Policies ===

impl<'w> Policies<'w> {
    pub fn read(reader: &Reader<'w>, namespace: &str, service: &str) -> Self {
        let at = target_key("Service", namespace, service);
        let found = reader.index(Index::BackendTlsPoliciesByTarget, &at);
        let mut policies: Vec<_> = found
            .into_iter()
            .filter_map(|object| match &object.view {
                View::BackendTlsPolicy(policy) => Some((&**object, &policy.spec)),
                _ => None,
            })
            .collect();
        policies.sort_by_key(|(o, _)| (o.meta.created_ms(), o.key.name.clone()));
        Self(policies, service.into())
    }

    /// What counts for a port, or for every port that none is named for.
    fn effective(&self, port: Option<&str>) -> Option<(&'w Object, &'w BackendTlsPolicySpec)> {
        let about = |target: &TargetRef, section: Option<&str>| {
            is_service(target) && target.name == self.1 && target.section_name.as_deref() == section
        };
        let find = |section: Option<&str>| {
            let mut each = self.0.iter();
            each.find(|(_, spec)| spec.target_refs.iter().any(|t| about(t, section))).copied()
        };
        port.and_then(|port| find(Some(port))).or_else(|| find(None))
    }
}

fn is_service(target: &TargetRef) -> bool {
    target.kind() == "Service" && target.group.as_deref().is_none_or(str::is_empty)
}

impl Policies<'_> {
    /// Who says how TLS with a port is spoken.
    pub fn origin(&self, port: &str) -> Option<weft_model::Origin> {
        self.effective(Some(port)).map(|(object, _)| origin(object, "spec.validation"))
    }
}

/// TLS with one port of a Service, or of one of its subsets.
pub(super) fn secured(
    reader: &Reader<'_>,
    policies: &Policies<'_>,
    rules: &Rules<'_>,
    (port, host): (&ServicePort, &str),
    subset: Option<&SubsetRef<'_>>,
) -> Secured {
    let mut out = client_tls::secured(reader, rules.tls(port.port, subset), host);
    if let Some((object, spec)) = policies.effective(Some(&port.name)) {
        let failed = |reason| Said { reason, origin: origin(object, "spec.validation") };
        out.gateways = Some(Some(spoken(reader, object, spec).map_err(failed)));
        out.only = None;
    }
    out
}

fn spoken(
    reader: &Reader<'_>,
    object: &Object,
    spec: &BackendTlsPolicySpec,
) -> Result<UpstreamTls, String> {
    let trust = match authorities(reader, object, spec) {
        (Some(trust), _) => trust,
        (None, wrong) => return Err(unusable(object, &wrong)),
    };
    let name = |name: &SubjectAltName| match &*name.kind {
        "URI" => name.uri.clone(),
        _ => name.hostname.clone(),
    };
    let names: Vec<Arc<str>> = spec.validation.subject_alt_names.iter().filter_map(name).collect();
    Ok(UpstreamTls {
        server_name: Some(spec.validation.hostname.clone()),
        trust,
        names: if names.is_empty() { Names::ServerName } else { Names::OneOf(names) },
        certificate: None,
        only_13: false,
        anonymous: false,
    })
}

fn unusable(object: &Object, wrong: &[Wrong]) -> String {
    let each: Vec<&str> = wrong.iter().map(|(_, text)| &**text).collect();
    format!("{} trusts nobody, so nothing is sent: {}", object.key, each.join("; "))
}

/// The condition's reason and a sentence.
type Wrong = (&'static str, String);

/// Whom a policy trusts, if anybody, and what of its references is wrong.
fn authorities(
    reader: &Reader<'_>,
    object: &Object,
    spec: &BackendTlsPolicySpec,
) -> (Option<Trust>, Vec<Wrong>) {
    let at = FieldPath::new("spec.validation");
    if let Some(known) = &spec.validation.well_known_authorities {
        return match &**known {
            "System" => (Some(Trust::System), Vec::new()),
            other => {
                let text = format!(
                    "{}: {other} is not known; System is",
                    at.field("wellKnownCACertificates")
                );
                (None, vec![("Invalid", text)])
            }
        };
    }
    let (mut found, mut wrong) = (String::new(), Vec::new());
    for (i, reference) in spec.validation.ca_certificate_refs.iter().enumerate() {
        match authority(reader, &object.key.namespace, reference) {
            Ok(pem) => {
                found.push_str(pem);
                found.push('\n');
            }
            Err((reason, text)) => {
                wrong.push((reason, format!("{}: {text}", at.field("caCertificateRefs").index(i))));
            }
        }
    }
    if found.is_empty() && wrong.is_empty() {
        wrong.push(("InvalidCACertificateRef", format!("{at} names no authority")));
    }
    ((!found.is_empty()).then(|| Trust::Authorities(found.into())), wrong)
}

fn authority<'w>(
    reader: &Reader<'w>,
    namespace: &str,
    reference: &ObjectRef,
) -> Result<&'w str, Wrong> {
    let (group, kind) = (reference.group.as_deref(), reference.kind.as_deref());
    if group.is_some_and(|g| !g.is_empty()) || kind.is_some_and(|k| k != "ConfigMap") {
        let kind = kind.unwrap_or("ConfigMap");
        return Err(("InvalidKind", format!("a {kind} holds no authorities; name a ConfigMap")));
    }
    let found = listener_tls::config_map_roots(reader, namespace, &reference.name);
    found.map_err(|text| ("InvalidCACertificateRef", text))
}

// === routes of Gateways ===

/// Has the rules of a Gateway's route name the forms of backends that are for Gateways of its
/// namespace.
pub(super) fn for_gateways(reader: &Reader<'_>, env: &Env, namespace: &str, rules: &mut [Rule]) {
    let rename = |target: &mut Target| {
        if let Target::Backend(name) = target
            && formed(reader, env, name, namespace).is_for_gateways_of(namespace)
        {
            name.child = format!("{}{GATEWAYS_MARK}", name.child).into();
        }
    };
    for rule in rules {
        for filter in &mut rule.filters {
            if let Filter::Mirror(mirror) = filter {
                rename(&mut mirror.target);
            }
        }
        if let weft_model::Action::Forward(shares) = &mut rule.action {
            for share in shares {
                rename(&mut share.target);
                for filter in &mut share.filters {
                    if let Filter::Mirror(mirror) = filter {
                        rename(&mut mirror.target);
                    }
                }
            }
        }
    }
}

/// How a backend is spoken to by clients of a namespace.
fn formed(reader: &Reader<'_>, env: &Env, name: &ResourceName, client: &str) -> Secured {
    let Root::Host(host) = &name.root else { return Secured::default() };
    let mut parts = name.child.split('/').skip(1);
    let port = parts.next().and_then(|port| port.parse::<u16>().ok());
    let (Some(port), subset) = (port, parts.next()) else { return Secured::default() };
    let service = names::service_of_host(host, "", env);
    let found = service.and_then(|key| Some((reader.service(&key)?.1, key)));
    let Some((service, key)) = found else {
        return service_entry::formed(reader, host, port, client);
    };
    let Some(port) = service.spec.ports.iter().find(|p| p.port == port) else {
        return Secured::default();
    };
    let policies = Policies::read(reader, key.namespace.as_str(), key.name.as_str());
    let rules = destination_rule::rules_for_client(reader, env, &key, client);
    let subset =
        subset.and_then(|name| rules.subsets().into_iter().find(|s| &*s.view.name == name));
    secured(reader, &policies, &rules, (port, host), subset.as_ref())
}

// === the policy's own unit ===

pub(super) fn compile(reader: &Reader<'_>, object: &Object, spec: &BackendTlsPolicySpec) -> Output {
    let judged = judged(reader, object, spec);
    let each = ancestors(reader, object, spec).into_iter().map(|(namespace, name)| ParentStatus {
        parent: ParentRef {
            group: Some(GROUP.into()),
            kind: Some("Gateway".into()),
            namespace: Some(namespace),
            name,
            ..ParentRef::default()
        },
        conditions: judged.clone(),
    });
    let status = StatusUpdate {
        object: object.key.clone(),
        generation: object.meta.generation,
        body: StatusBody::Ancestors(each.collect()),
    };
    Output { status: Some(status), ..Output::default() }
}

/// Gateways of ours whose routes send to what the policy is about.
fn ancestors(
    reader: &Reader<'_>,
    object: &Object,
    spec: &BackendTlsPolicySpec,
) -> BTreeSet<(Arc<str>, Arc<str>)> {
    let mut out = BTreeSet::new();
    for target in spec.target_refs.iter().filter(|t| is_service(t)) {
        let at = pair(&object.key.namespace, &target.name);
        for route in reader.index(Index::RoutesByBackend, &at) {
            let (View::HttpRoute(view) | View::GrpcRoute(view) | View::StreamRoute(view)) =
                &route.view
            else {
                continue;
            };
            for parent in &view.spec.parent_refs {
                let found = gateway::behind(reader, &route.key.namespace, parent);
                out.extend(found.map(|key| (key.namespace.clone(), key.name.clone())));
            }
        }
    }
    out
}

fn judged(reader: &Reader<'_>, object: &Object, spec: &BackendTlsPolicySpec) -> Vec<Condition> {
    let (trust, wrong) = authorities(reader, object, spec);
    let resolved = match wrong.first() {
        None => Condition::new("ResolvedRefs", true, "ResolvedRefs", "its authorities are there"),
        Some((reason, _)) => {
            let each: Vec<&str> = wrong.iter().map(|(_, text)| &**text).collect();
            Condition::new("ResolvedRefs", false, reason, each.join("; "))
        }
    };
    let no = |reason, text: String| Condition::new("Accepted", false, reason, text);
    let accepted = match (missing(reader, object, spec), displaced(reader, object, spec)) {
        (Some(text), _) => no("TargetNotFound", text),
        (None, Some(text)) => no("Conflicted", text),
        _ if trust.is_none() => no("NoValidCACertificate", unusable(object, &wrong)),
        _ => Condition::new("Accepted", true, "Accepted", "in effect for Gateways"),
    };
    vec![accepted, resolved]
}

/// Why none of its targets is there.
fn missing(reader: &Reader<'_>, object: &Object, spec: &BackendTlsPolicySpec) -> Option<String> {
    let ns = &object.key.namespace;
    let mut why = None;
    for (i, target) in spec.target_refs.iter().enumerate() {
        let at = FieldPath::new("spec.targetRefs").index(i);
        if !is_service(target) {
            why = Some(format!("{at}.kind: {} is no target; a Service is", target.kind()));
            continue;
        }
        let key = ServiceKey::new(ns, &target.name).ok();
        let found = key.and_then(|key| reader.service(&key));
        let section = target.section_name.as_deref();
        match found {
            None => why = Some(format!("{at}: there is no Service {ns}/{}", target.name)),
            Some((_, service)) => {
                let mut ports = service.spec.ports.iter();
                if section.is_none_or(|s| ports.any(|p| &*p.name == s)) {
                    return None;
                }
                let port = section.unwrap_or_default();
                why = Some(format!("{at}: Service {ns}/{} has no port {port}", target.name));
            }
        }
    }
    why
}

/// Who decides about all of its targets in its place.
fn displaced(reader: &Reader<'_>, object: &Object, spec: &BackendTlsPolicySpec) -> Option<String> {
    let mut by = None;
    for target in spec.target_refs.iter().filter(|t| is_service(t)) {
        let policies = Policies::read(reader, &object.key.namespace, &target.name);
        let (first, _) = policies.effective(target.section_name.as_deref())?;
        if first.key == object.key {
            return None;
        }
        by = Some(format!("not used: the older {} decides about {}", first.key, target.name));
    }
    by
}
