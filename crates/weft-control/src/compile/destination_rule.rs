// SPDX-License-Identifier: Apache-2.0
//! DestinationRule: policies and subsets of a service's backends.
//!
//! A client's rules are those of its own namespace, else those that the service's namespace exports
//! to it, else those of the root namespace. Of several for one host the oldest one's policy counts
//! and their subsets are joined, the oldest one's first. Those with one `workloadSelector` are a
//! list of their own, which goes before the others for the clients of their namespace that fit.

use std::sync::Arc;

use weft_base::issue::{FieldPath, Issues};
use weft_base::limits::{RULE_CLIENTS_MAX, SUBSETS_MAX};
use weft_base::name::ServiceKey;
use weft_kinds::views::istio::{self, ClientTls, Subset, TrafficPolicy};
use weft_kinds::world::{Object, ObjectKey, host_key};
use weft_model::{BackendPolicy, Origin};

use super::peer_authentication::ROOT_NAMESPACE;
use super::rule_clients::Found;
use super::{
    Env, Output, Reader, client_tls, istio_fields, names, origin, rule_clients, service_entry,
    sources, traffic_policy,
};
use crate::status::{Condition, StatusBody, StatusUpdate};

/// The DestinationRules in effect for one service, the oldest first.
#[derive(Debug)]
pub(super) struct Rules<'w>(
    Vec<(&'w Object, &'w istio::DestinationRule)>,
    /// Whether patterns among them define subsets: of services of other namespaces they do not, or
    /// one object would make as many backends as the mesh has services.
    bool,
);

/// A subset and the rule that defines it.
#[derive(Clone, Copy, Debug)]
pub(super) struct SubsetRef<'w> {
    object: &'w Object,
    rule: &'w istio::DestinationRule,
    index: usize,
    pub view: &'w Subset,
}

/// The rules for a service that hold for clients of whom nothing else is said.
pub(super) fn rules_for<'w>(reader: &Reader<'w>, env: &Env, service: &ServiceKey) -> Rules<'w> {
    let patterns = names::host_patterns(service, env);
    Found::read(reader, &patterns, service.namespace.as_str()).rules_for(None)
}

/// Those for the clients of a namespace.
pub(super) fn rules_for_client<'w>(
    reader: &Reader<'w>,
    env: &Env,
    service: &ServiceKey,
    client: &str,
) -> Rules<'w> {
    let patterns = names::host_patterns(service, env);
    Found::read(reader, &patterns, service.namespace.as_str()).rules_for(Some(client))
}

/// The same for a host that a ServiceEntry of a namespace defines.
pub(super) fn rules_for_host<'w>(
    reader: &Reader<'w>,
    host: &str,
    namespace: &str,
    client: Option<&str>,
) -> Rules<'w> {
    Found::read(reader, &patterns_of(host, namespace), namespace).rules_for(client)
}

/// The host patterns that take a host that is no Service, most specific first.
pub(super) fn patterns_of(host: &str, namespace: &str) -> Vec<String> {
    let host = host_key(host, namespace);
    let parents = host.match_indices('.').map(|(at, _)| format!("*{}", &host[at..]));
    std::iter::once(host.to_string()).chain(parents).chain(["*".to_owned()]).collect()
}

/// The rule's own unit gives its status only; backends belong to their service.
pub(super) fn compile(
    reader: &Reader<'_>,
    env: &Env,
    object: &Object,
    rule: &istio::DestinationRule,
) -> Output {
    let mut issues = Issues::default();
    let accepted = acceptance(reader, env, object, rule, &mut issues);
    judge_subsets(object, rule, &mut issues);
    traffic_policy::judge_annotations(&object.meta, &mut issues);
    istio_fields::judge(istio_fields::DESTINATION_RULE, &object.raw["spec"], &mut issues);
    if let Some(policy) = &rule.spec.traffic_policy {
        let path = FieldPath::new("spec.trafficPolicy");
        traffic_policy::judge(policy, &path, &mut issues);
        judge_tls(reader, object, policy, &path, &mut issues);
    }
    for (i, subset) in rule.spec.subsets.iter().enumerate() {
        let path = FieldPath::new("spec.subsets").index(i).field("trafficPolicy");
        if let Some(policy) = &subset.traffic_policy {
            traffic_policy::judge(policy, &path, &mut issues);
            judge_tls(reader, object, policy, &path, &mut issues);
        }
    }
    let conditions = std::iter::once(accepted).chain(Condition::warning(&issues)).collect();
    let status = StatusUpdate {
        object: object.key.clone(),
        generation: object.meta.generation,
        body: StatusBody::Conditions(conditions),
    };
    Output { status: Some(status), ..Output::default() }
}

fn judge_tls(
    reader: &Reader<'_>,
    object: &Object,
    policy: &TrafficPolicy,
    path: &FieldPath,
    issues: &mut Issues,
) {
    client_tls::judge(reader, object, policy.tls.as_ref(), path, issues);
    for (i, port) in policy.port_level_settings.iter().enumerate() {
        let path = path.field("portLevelSettings").index(i);
        client_tls::judge(reader, object, port.tls.as_ref(), &path, issues);
    }
}

fn acceptance(
    reader: &Reader<'_>,
    env: &Env,
    object: &Object,
    rule: &istio::DestinationRule,
    issues: &mut Issues,
) -> Condition {
    let host = &rule.spec.host;
    if host.contains('*') {
        judge_pattern(rule, issues);
        judge_count(reader, env, object, rule, issues);
        return Condition::new("Accepted", true, "Accepted", format!("in effect for {host}"));
    }
    let (rules, name) = match in_effect(reader, env, object, rule, issues) {
        Ok(found) => found,
        Err((reason, message)) => return Condition::new("Accepted", false, reason, message),
    };
    let first = rules.0.first().map(|(o, _)| &o.key);
    if first.is_some_and(|first| *first != object.key) && rule.spec.traffic_policy.is_some() {
        let older = first.map(ToString::to_string).unwrap_or_default();
        issues.warning(
            FieldPath::new("spec.trafficPolicy"),
            format!("not used: the older {older} decides the policy of {name}"),
        );
    }
    Condition::new("Accepted", true, "Accepted", format!("in effect for {name}"))
}

/// The rules of a host, which this rule is one of, and its name; or why it is in effect for none,
/// as a condition's reason and a sentence.
fn in_effect<'w>(
    reader: &Reader<'w>,
    env: &Env,
    object: &Object,
    rule: &istio::DestinationRule,
    issues: &mut Issues,
) -> Result<(Rules<'w>, String), (&'static str, String)> {
    let (host, own) = (&rule.spec.host, &object.key.namespace);
    let selector = rule.spec.workload_selector.as_ref().map(|s| &s.match_labels);
    // For whom, when that is not everybody.
    let whom = |name: String, namespace: &str| match &**own {
        own if selector.is_some() => {
            format!("{name}, called by the sidecars of namespace {own} that it selects")
        }
        own if own == namespace => name,
        ROOT_NAMESPACE => format!("{name}, where no other namespace says anything"),
        own => format!("{name}, called from namespace {own}"),
    };
    let service = names::service_of_host(host, own, env);
    let is_service = service.as_ref().is_some_and(|s| reader.service(s).is_some());
    // `example.com` reads as Service `com/example`, too.
    let is_mesh = is_service || names::is_of_mesh(host, env);
    if !is_mesh && let Some((entry, _)) = service_entry::find(reader, host, own) {
        if service_entry::is_left_out(entry, object, rule) {
            let text = format!(
                "not used: TLS with {host} of {} is begun by rules of its own namespace; move this \
                 one to {}",
                entry.key, entry.key.namespace
            );
            return Err(("NotInServiceNamespace", text));
        }
        service_entry::judge_rule(entry, rule, issues);
        let owner = &*entry.key.namespace;
        let rules = Found::read(reader, &patterns_of(host, own), owner).own((own, selector));
        return Ok((Rules::new(rules, true), whom(host.to_string(), owner)));
    }
    match service {
        None => Err(("HostNotFound", format!("spec.host: {host} is no service of this mesh"))),
        Some(service) if is_service => {
            let patterns = names::host_patterns(&service, env);
            let owner = service.namespace.as_str();
            let rules = Found::read(reader, &patterns, owner).own((own, selector));
            Ok((Rules::new(rules, true), whom(service.to_string(), owner)))
        }
        Some(service) => Err(("HostNotFound", format!("spec.host: there is no Service {service}"))),
    }
}

/// Whether a rule has TLS begun with anybody.
pub(super) fn originates(rule: &istio::DestinationRule) -> bool {
    let inner = rule.spec.subsets.iter().filter_map(|s| s.traffic_policy.as_ref());
    inner.chain(&rule.spec.traffic_policy).any(client_tls::originates_any)
}

/// Subsets that are not defined though they are written.
fn judge_subsets(object: &Object, rule: &istio::DestinationRule, issues: &mut Issues) {
    let (own, subsets) = (&*object.key.namespace, &rule.spec.subsets);
    if subsets.len() > SUBSETS_MAX {
        let text = format!("there are {}; the first {SUBSETS_MAX} are used", subsets.len());
        issues.warning(FieldPath::new("spec.subsets"), text);
    }
    let to = rule.spec.export_to.len();
    if to > RULE_CLIENTS_MAX {
        let text = format!("names {to} namespaces; the first {RULE_CLIENTS_MAX} are used");
        issues.warning(FieldPath::new("spec.exportTo"), text);
    }
    if rule.spec.host.contains('*') && !subsets.is_empty() && own != ROOT_NAMESPACE {
        let text = format!(
            "defined for hosts of namespace {own} alone, because spec.host is a pattern; name \
             hosts of others in full"
        );
        issues.warning(FieldPath::new("spec.subsets"), text);
    }
}

/// What only a pattern takes is no host of the mesh, so nobody begins TLS with it.
fn judge_pattern(rule: &istio::DestinationRule, issues: &mut Issues) {
    let host = &rule.spec.host;
    if originates(rule) {
        let text = format!(
            "{host}: TLS is begun with Services and with hosts that a ServiceEntry of this \
             namespace names in full; other names that fit pass as they are, in plaintext when \
             the application speaks it"
        );
        issues.warning(FieldPath::new("spec.host"), text);
    }
}

/// Of rules for patterns, those of a limited number of clients count.
fn judge_count(
    reader: &Reader<'_>,
    env: &Env,
    object: &Object,
    rule: &istio::DestinationRule,
    issues: &mut Issues,
) {
    let own = &*object.key.namespace;
    let is_chosen = rule.spec.workload_selector.is_some();
    if rule_clients::counts(reader, env, object, rule) || (own == ROOT_NAMESPACE && !is_chosen) {
        return;
    }
    let what = if is_chosen { "" } else { " for hosts of other namespaces" };
    let text = format!(
        "not used{what}: of rules for patterns those of {RULE_CLIENTS_MAX} namespaces and workload \
         selectors count, {RULE_CLIENTS_MAX} of each; others come before this one; name hosts \
         in full"
    );
    issues.warning(FieldPath::new("spec.host"), text);
}

// === impl Rules ===

impl<'w> Rules<'w> {
    pub fn new(rules: Vec<(&'w Object, &'w istio::DestinationRule)>, with_patterns: bool) -> Self {
        Self(rules, with_patterns)
    }

    /// The rule that decides the policy.
    pub fn origin(&self) -> Option<Origin> {
        self.0.first().map(|(o, _)| origin(o, "spec"))
    }

    /// Whether a namespace's own rules among them have TLS begun with anybody.
    pub fn originate_in(&self, namespace: &str) -> bool {
        self.0.iter().filter(|(o, _)| *o.key.namespace == *namespace).any(|(_, r)| originates(r))
    }

    pub fn keys(&self) -> Vec<&ObjectKey> {
        self.0.iter().map(|(o, _)| &o.key).collect()
    }

    /// For people: which rules there are.
    pub fn names(&self) -> String {
        let names: Vec<_> = self.0.iter().map(|(o, _)| o.key.to_string()).collect();
        names.join(", ")
    }

    /// The oldest rule's first, as many as there may be.
    pub fn subsets(&self) -> Vec<SubsetRef<'w>> {
        let mut out: Vec<SubsetRef<'w>> = Vec::new();
        for (object, rule) in &self.0 {
            if rule.spec.host.contains('*') && !self.1 {
                continue;
            }
            for (index, view) in rule.spec.subsets.iter().enumerate() {
                if out.len() >= SUBSETS_MAX {
                    return out;
                }
                if !out.iter().any(|s| s.view.name == view.name) {
                    out.push(SubsetRef { object, rule, index, view });
                }
            }
        }
        out
    }

    pub fn has_subset(&self, name: &str) -> bool {
        self.subsets().iter().any(|s| &*s.view.name == name)
    }

    /// Those that everybody has and who follows these rules has not.
    pub fn lacking(&self, everybody: &Rules<'w>) -> Vec<Arc<str>> {
        let all = everybody.subsets().into_iter().map(|s| s.view.name.clone());
        all.filter(|name| !self.has_subset(name)).collect()
    }

    /// The TLS that clients of one port speak, by the innermost layer that says so.
    pub fn tls(
        &self,
        port: u16,
        subset: Option<&SubsetRef<'w>>,
    ) -> Option<(&'w Object, &'w ClientTls)> {
        let rule = match subset {
            Some(subset) => Some((subset.object, subset.rule)),
            None => self.0.first().copied(),
        };
        let (object, rule) = rule?;
        let inner = subset.and_then(|s| s.view.traffic_policy.as_ref());
        let mut layers = [inner, rule.spec.traffic_policy.as_ref()].into_iter().flatten();
        // What speaks of the port speaks of its TLS, too: without any there is none.
        let tls = layers.find_map(|layer| {
            let own = layer.port_level_settings.iter().find(|p| p.port.number == port);
            own.map_or(layer.tls.as_ref().map(Some), |own| Some(own.tls.as_ref()))
        });
        Some((object, tls??))
    }

    /// The policy of one port, of a subset or the whole, over what is usual.
    pub fn policy(
        &self,
        mut policy: BackendPolicy,
        port: u16,
        subset: Option<&SubsetRef<'_>>,
    ) -> BackendPolicy {
        let rule = match subset {
            Some(subset) => Some((subset.object, subset.rule)),
            None => self.0.first().copied(),
        };
        let outer = rule.and_then(|(_, r)| r.spec.traffic_policy.as_ref());
        let inner = subset.and_then(|s| s.view.traffic_policy.as_ref());
        let layers: Vec<_> = [outer, inner].into_iter().flatten().collect();
        traffic_policy::apply(&layers, port, &mut policy);
        if let Some((object, _)) = rule {
            traffic_policy::annotate(&object.meta, &mut policy);
            let inner = subset.map(|s| format!("spec.subsets[{}].trafficPolicy", s.index));
            let at: Vec<&str> =
                std::iter::once("spec.trafficPolicy").chain(inner.as_deref()).collect();
            sources::of_layers(&mut policy.sources, object, &at, port);
            sources::of_annotations(&mut policy.sources, object);
        }
        policy
    }
}

// === impl SubsetRef ===

impl SubsetRef<'_> {
    pub fn origin(&self) -> Origin {
        origin(self.object, format!("spec.subsets[{}]", self.index))
    }
}

pub(super) fn not_done(issues: &mut Issues, path: &FieldPath) {
    issues.warning(path.clone(), "not applied by this version of weft; the rest is");
}
