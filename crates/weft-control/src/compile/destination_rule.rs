// SPDX-License-Identifier: Apache-2.0
//! DestinationRule: policies and subsets of a service's backends.
//!
//! Rules count in the namespace of their service. Of several for one host the oldest one's
//! policy counts and their subsets are joined, the oldest one's first.

use weft_base::issue::{FieldPath, Issues};
use weft_base::name::ServiceKey;
use weft_kinds::views::View;
use weft_kinds::views::istio::{self, ClientTls, Subset, TrafficPolicy};
use weft_kinds::world::{Index, Object, host_key};
use weft_model::{BackendPolicy, Origin};

use super::{Env, Output, Reader, client_tls, names, origin, service_entry, traffic_policy};
use crate::status::{Condition, StatusBody, StatusUpdate};

/// The DestinationRules in effect for one service, the oldest first.
#[derive(Debug)]
pub(super) struct Rules<'w>(Vec<(&'w Object, &'w istio::DestinationRule)>);

/// A subset and the rule that defines it.
#[derive(Clone, Copy, Debug)]
pub(super) struct SubsetRef<'w> {
    object: &'w Object,
    rule: &'w istio::DestinationRule,
    index: usize,
    pub view: &'w Subset,
}

/// The rules for a service: of the most specific host that has any.
pub(super) fn rules_for<'w>(reader: &Reader<'w>, env: &Env, service: &ServiceKey) -> Rules<'w> {
    first_of(reader, names::host_patterns(service, env), service.namespace.as_str())
}

/// The same for a host that a ServiceEntry of a namespace defines.
pub(super) fn rules_for_host<'w>(reader: &Reader<'w>, host: &str, namespace: &str) -> Rules<'w> {
    let host = host_key(host, namespace);
    let parents = host.match_indices('.').map(|(at, _)| format!("*{}", &host[at..]));
    let patterns: Vec<String> =
        std::iter::once(host.to_string()).chain(parents).chain(["*".to_owned()]).collect();
    first_of(reader, patterns, namespace)
}

fn first_of<'w>(reader: &Reader<'w>, patterns: Vec<String>, namespace: &str) -> Rules<'w> {
    for pattern in patterns {
        let found = reader.index(Index::DestinationRulesByHost, &pattern);
        let mut rules: Vec<_> = found
            .into_iter()
            .filter(|o| &*o.key.namespace == namespace)
            .filter_map(|o| match &o.view {
                View::DestinationRule(rule) => Some((&**o, &**rule)),
                _ => None,
            })
            .collect();
        if !rules.is_empty() {
            rules.sort_by_key(|(o, _)| (o.meta.created_ms(), o.key.name.clone()));
            return Rules(rules);
        }
    }
    Rules(Vec::new())
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
    traffic_policy::judge_annotations(&object.meta, &mut issues);
    if rule.spec.workload_selector.is_some() {
        not_done(&mut issues, &FieldPath::new("spec.workloadSelector"));
    }
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
    let elsewhere = |name: &str, ns: &str| {
        let text = format!(
            "not used: rules for {name} are read from its own namespace; move this one to {ns}"
        );
        Err(("NotInServiceNamespace", text))
    };
    let service = names::service_of_host(host, own, env);
    let is_service = service.as_ref().is_some_and(|s| reader.service(s).is_some());
    let is_own = service.as_ref().is_some_and(|s| s.namespace.as_str() == &**own);
    // `example.com` reads as Service `com/example`, too.
    let is_mesh = (is_own && is_service) || names::is_of_mesh(host, env);
    if !is_mesh && let Some((entry, _)) = service_entry::find(reader, host, own) {
        if entry.key.namespace != *own {
            return elsewhere(&format!("{host} of {}", entry.key), &entry.key.namespace);
        }
        service_entry::judge_rule(entry, rule, issues);
        return Ok((rules_for_host(reader, host, own), host.to_string()));
    }
    match service {
        None => Err(("HostNotFound", format!("spec.host: {host} is no service of this mesh"))),
        Some(service) if !is_own => elsewhere(&service.to_string(), service.namespace.as_str()),
        Some(service) if is_service => Ok((rules_for(reader, env, &service), service.to_string())),
        Some(service) => Err(("HostNotFound", format!("spec.host: there is no Service {service}"))),
    }
}

/// What only a pattern takes is no host of the mesh, so nobody begins TLS with it.
fn judge_pattern(rule: &istio::DestinationRule, issues: &mut Issues) {
    let (spec, host) = (&rule.spec, &rule.spec.host);
    let inner = spec.subsets.iter().filter_map(|s| s.traffic_policy.as_ref());
    if inner.chain(&spec.traffic_policy).any(client_tls::originates_any) {
        let text = format!(
            "{host}: TLS is begun with Services and with hosts that a ServiceEntry of this \
             namespace names in full; other names that fit pass as they are, in plaintext when \
             the application speaks it"
        );
        issues.warning(FieldPath::new("spec.host"), text);
    }
}

// === impl Rules ===

impl<'w> Rules<'w> {
    /// The rule that decides the policy.
    pub fn origin(&self) -> Option<Origin> {
        self.0.first().map(|(o, _)| origin(o, "spec"))
    }

    /// For people: which rules there are.
    pub fn names(&self) -> String {
        let names: Vec<_> = self.0.iter().map(|(o, _)| o.key.to_string()).collect();
        names.join(", ")
    }

    pub fn subsets(&self) -> Vec<SubsetRef<'w>> {
        let mut out: Vec<SubsetRef<'w>> = Vec::new();
        for (object, rule) in &self.0 {
            for (index, view) in rule.spec.subsets.iter().enumerate() {
                if !out.iter().any(|s| s.view.name == view.name) {
                    out.push(SubsetRef { object, rule, index, view });
                }
            }
        }
        out
    }

    pub fn has_subset(&self, name: &str) -> bool {
        self.0.iter().any(|(_, r)| r.spec.subsets.iter().any(|s| &*s.name == name))
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
        let tls = layers.find_map(|layer| {
            let own = layer.port_level_settings.iter().find(|p| p.port.number == port);
            own.map_or(layer.tls.as_ref(), |own| own.tls.as_ref())
        });
        Some((object, tls?))
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
        for layer in [outer, inner].into_iter().flatten() {
            traffic_policy::apply(layer, port, &mut policy);
        }
        if let Some((object, _)) = rule {
            traffic_policy::annotate(&object.meta, &mut policy);
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
