// SPDX-License-Identifier: Apache-2.0
//! DestinationRule: policies and subsets of a service's backends.
//!
//! Rules count in the namespace of their service. Of several for one host the oldest one's
//! policy counts and their subsets are joined, the oldest one's first.

use weft_base::issue::{FieldPath, Issues};
use weft_base::name::ServiceKey;
use weft_kinds::views::View;
use weft_kinds::views::istio::{
    self, ConnectionPool, LoadBalancer, OutlierDetection, Subset, TrafficPolicy,
};
use weft_kinds::world::{Index, Object};
use weft_model::{BackendPolicy, LbPolicy, Origin, Outlier};

use super::duration::parse_ms;
use super::{Env, Output, Reader, names, origin};
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
    for pattern in names::host_patterns(service, env) {
        let found = reader.index(Index::DestinationRulesByHost, &pattern);
        let mut rules: Vec<_> = found
            .into_iter()
            .filter(|o| &*o.key.namespace == service.namespace.as_str())
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
    if rule.spec.workload_selector.is_some() {
        not_done(&mut issues, &FieldPath::new("spec.workloadSelector"));
    }
    if let Some(policy) = &rule.spec.traffic_policy {
        judge(policy, &FieldPath::new("spec.trafficPolicy"), &mut issues);
    }
    for (i, subset) in rule.spec.subsets.iter().enumerate() {
        let path = FieldPath::new("spec.subsets").index(i).field("trafficPolicy");
        if let Some(policy) = &subset.traffic_policy {
            judge(policy, &path, &mut issues);
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

fn acceptance(
    reader: &Reader<'_>,
    env: &Env,
    object: &Object,
    rule: &istio::DestinationRule,
    issues: &mut Issues,
) -> Condition {
    let no = |reason, message: String| Condition::new("Accepted", false, reason, message);
    let host = &rule.spec.host;
    if host.contains('*') {
        return Condition::new("Accepted", true, "Accepted", format!("in effect for {host}"));
    }
    let Some(service) = names::service_of_host(host, &object.key.namespace, env) else {
        return no("HostNotFound", format!("spec.host: {host} is no service of this mesh"));
    };
    if service.namespace.as_str() != &*object.key.namespace {
        return no(
            "NotInServiceNamespace",
            format!(
                "not used: rules for {service} are read from its own namespace; move this one to \
                 {}",
                service.namespace
            ),
        );
    }
    if reader.service(&service).is_none() {
        return no("HostNotFound", format!("spec.host: there is no Service {service}"));
    }
    let rules = rules_for(reader, env, &service);
    let first = rules.0.first().map(|(o, _)| &o.key);
    if first.is_some_and(|first| *first != object.key) && rule.spec.traffic_policy.is_some() {
        let older = first.map(ToString::to_string).unwrap_or_default();
        issues.warning(
            FieldPath::new("spec.trafficPolicy"),
            format!("not used: the older {older} decides the policy of {service}"),
        );
    }
    Condition::new("Accepted", true, "Accepted", format!("in effect for {service}"))
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

    /// The policy of one port, of a subset or the whole.
    pub fn policy(&self, port: u16, subset: Option<&SubsetRef<'_>>) -> BackendPolicy {
        let mut policy = BackendPolicy::default();
        let rule = match subset {
            Some(subset) => Some(subset.rule),
            None => self.0.first().map(|(_, rule)| *rule),
        };
        let outer = rule.and_then(|r| r.spec.traffic_policy.as_ref());
        let inner = subset.and_then(|s| s.view.traffic_policy.as_ref());
        for layer in [outer, inner].into_iter().flatten() {
            apply_policy(layer, port, &mut policy);
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

// === policy ===

/// One layer over what is there; a port's own settings replace the layer's for that port.
fn apply_policy(layer: &TrafficPolicy, port: u16, policy: &mut BackendPolicy) {
    match layer.port_level_settings.iter().find(|p| p.port.number == port) {
        Some(own) => {
            apply_lb(own.load_balancer.as_ref(), policy);
            apply_pool(own.connection_pool.as_ref(), policy);
            apply_outlier(own.outlier_detection.as_ref(), policy);
        }
        None => {
            apply_lb(layer.load_balancer.as_ref(), policy);
            apply_pool(layer.connection_pool.as_ref(), policy);
            apply_outlier(layer.outlier_detection.as_ref(), policy);
        }
    }
}

fn apply_lb(lb: Option<&LoadBalancer>, policy: &mut BackendPolicy) {
    match lb.and_then(|lb| lb.simple.as_deref()) {
        Some("ROUND_ROBIN") => policy.lb = LbPolicy::RoundRobin,
        Some("RANDOM") => policy.lb = LbPolicy::Random,
        Some("LEAST_REQUEST" | "LEAST_CONN") => policy.lb = LbPolicy::LeastRequest,
        _ => {}
    }
}

fn apply_pool(pool: Option<&ConnectionPool>, policy: &mut BackendPolicy) {
    let Some(pool) = pool else { return };
    let ms = |text: &Option<std::sync::Arc<str>>| text.as_deref().and_then(parse_ms);
    if let Some(tcp) = &pool.tcp {
        policy.connect_timeout_ms = ms(&tcp.connect_timeout).unwrap_or(policy.connect_timeout_ms);
        policy.idle_timeout_ms = ms(&tcp.idle_timeout).unwrap_or(policy.idle_timeout_ms);
        policy.limits.connections_max = tcp.max_connections.or(policy.limits.connections_max);
    }
    if let Some(http) = &pool.http {
        policy.idle_timeout_ms = ms(&http.idle_timeout).unwrap_or(policy.idle_timeout_ms);
        let limits = &mut policy.limits;
        limits.pending_max = http.http1_max_pending_requests.or(limits.pending_max);
        limits.requests_max = http.http2_max_requests.or(limits.requests_max);
    }
}

/// Istio's documented defaults for what the author leaves out: writing `outlierDetection` asks
/// for Istio's ejection, not for weft's.
fn apply_outlier(outlier: Option<&OutlierDetection>, policy: &mut BackendPolicy) {
    let Some(o) = outlier else { return };
    let count = o.consecutive_5xx_errors.or(o.consecutive_gateway_errors).or(o.consecutive_errors);
    let base = o.base_ejection_time.as_deref().and_then(parse_ms).unwrap_or(30_000);
    policy.outlier = Outlier {
        consecutive_failures: count.unwrap_or(5),
        base_ejection_ms: base,
        max_ejection_ms: base.max(300_000),
        max_ejection_basis_points: o.max_ejection_percent.unwrap_or(10).min(100) * 100,
    };
}

// === what is not done as written ===

fn judge(policy: &TrafficPolicy, path: &FieldPath, issues: &mut Issues) {
    let lb = policy.load_balancer.as_ref();
    judge_parts(
        lb,
        policy.connection_pool.as_ref(),
        policy.outlier_detection.as_ref(),
        path,
        issues,
    );
    judge_tls(policy.tls.as_ref(), path, issues);
    for (set, name) in [
        (policy.tunnel.is_some(), "tunnel"),
        (policy.proxy_protocol.is_some(), "proxyProtocol"),
        (policy.retry_budget.is_some(), "retryBudget"),
    ] {
        if set {
            not_done(issues, &path.field(name));
        }
    }
    for (i, port) in policy.port_level_settings.iter().enumerate() {
        let path = path.field("portLevelSettings").index(i);
        let lb = port.load_balancer.as_ref();
        let (pool, outlier) = (port.connection_pool.as_ref(), port.outlier_detection.as_ref());
        judge_parts(lb, pool, outlier, &path, issues);
        judge_tls(port.tls.as_ref(), &path, issues);
    }
}

fn judge_parts(
    lb: Option<&LoadBalancer>,
    pool: Option<&ConnectionPool>,
    outlier: Option<&OutlierDetection>,
    path: &FieldPath,
    issues: &mut Issues,
) {
    let mut check = |set: bool, at: FieldPath| {
        if set {
            not_done(issues, &at);
        }
    };
    if let Some(lb) = lb {
        let path = path.field("loadBalancer");
        let known = ["ROUND_ROBIN", "RANDOM", "LEAST_REQUEST", "LEAST_CONN", "UNSPECIFIED"];
        check(lb.simple.as_deref().is_some_and(|s| !known.contains(&s)), path.field("simple"));
        check(lb.consistent_hash.is_some(), path.field("consistentHash"));
        check(lb.locality_lb_setting.is_some(), path.field("localityLbSetting"));
        check(lb.warmup.is_some(), path.field("warmup"));
        check(lb.warmup_duration_secs.is_some(), path.field("warmupDurationSecs"));
    }
    if let Some(tcp) = pool.and_then(|p| p.tcp.as_ref()) {
        let path = path.field("connectionPool").field("tcp");
        check(tcp.tcp_keepalive.is_some(), path.field("tcpKeepalive"));
        check(tcp.max_connection_duration.is_some(), path.field("maxConnectionDuration"));
    }
    if let Some(http) = pool.and_then(|p| p.http.as_ref()) {
        let path = path.field("connectionPool").field("http");
        let per_connection = http.max_requests_per_connection.is_some_and(|n| n != 0);
        check(per_connection, path.field("maxRequestsPerConnection"));
        check(http.max_retries.is_some(), path.field("maxRetries"));
        check(http.h2_upgrade_policy.is_some(), path.field("h2UpgradePolicy"));
        check(http.use_client_protocol.is_some(), path.field("useClientProtocol"));
    }
    if let Some(o) = outlier {
        let path = path.field("outlierDetection");
        check(o.min_health_percent.is_some_and(|n| n != 0), path.field("minHealthPercent"));
        let split = o.split_external_local_origin_errors == Some(true);
        check(split, path.field("splitExternalLocalOriginErrors"));
    }
}

/// The mesh's own mTLS is always there; anything else is not done yet.
fn judge_tls(tls: Option<&serde_json::Value>, path: &FieldPath, issues: &mut Issues) {
    if tls.is_some_and(|tls| tls["mode"] != "ISTIO_MUTUAL") {
        not_done(issues, &path.field("tls"));
    }
}

pub(super) fn not_done(issues: &mut Issues, path: &FieldPath) {
    issues.warning(path.clone(), "not applied by this version of weft; the rest is");
}
