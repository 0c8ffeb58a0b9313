// SPDX-License-Identifier: Apache-2.0
//! TrafficPolicy, a policy attachment in Gateway API's sense: who it is about, which of several
//! counts, and what it makes of a backend's policy or of a route's rules. Services and routes ask
//! [`Attached`]; a policy's own unit gives its status only.
//!
//! Of the policies about one target the oldest counts. One about a part (a port, a rule, a
//! listener) counts there in the place of one about the whole. What a DestinationRule says too,
//! the TrafficPolicy says louder.

use std::sync::Arc;

use weft_base::issue::{FieldPath, Issues};
use weft_kinds::views::core::{ServicePort, ServiceSpec};
use weft_kinds::views::gateway::ParentRef;
use weft_kinds::views::traffic_policy::{self as view, TargetRef, TrafficPolicySpec, target_key};
use weft_kinds::views::{Meta, View};
use weft_kinds::world::{Index, KindId, Object};
use weft_model::{
    Adaptive, Backend, BackendPolicy, Cache, CheckKind, Failover, FailureShare, Filter, HashBy,
    HashCookie, HashTable, Hashing, HealthCheck, HttpCheck, LbPolicy, LimitBy, LocalityPolicy,
    Origin, Outlier, OutlierWindow, Protection, Protocol, ProxyVersion, RateLimit, Rule, Timeouts,
    Warmup,
};

use super::duration::parse_ms;
use super::{Output, Reader, origin, pool_terms, protocol, sources};
use crate::status::{Condition, ParentStatus, StatusBody, StatusUpdate};

const RING_POINTS_MIN: u32 = 1_024;
const MAGLEV_SIZE: u32 = 65_537;

/// The policies about one object, the oldest first.
#[derive(Debug)]
pub(super) struct Attached<'w> {
    policies: Vec<(&'w Object, &'w TrafficPolicySpec)>,
    kind: &'static str,
    name: Arc<str>,
}

/// One policy as it counts for a target.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effective<'a, 'w> {
    object: &'w Object,
    spec: &'w TrafficPolicySpec,
    /// Which of its targets.
    target: &'w TargetRef,
    of: &'a Attached<'w>,
}

// === impl Attached ===

impl<'w> Attached<'w> {
    pub fn read(reader: &Reader<'w>, kind: &'static str, namespace: &str, name: &str) -> Self {
        let found =
            reader.index(Index::TrafficPoliciesByTarget, &target_key(kind, namespace, name));
        let mut policies: Vec<_> = found
            .into_iter()
            .filter_map(|object| match &object.view {
                View::TrafficPolicy(policy) => Some((&**object, &policy.spec)),
                _ => None,
            })
            .collect();
        policies.sort_by_key(|(o, _)| (o.meta.created_ms(), o.key.name.clone()));
        Self { policies, kind, name: name.into() }
    }

    /// Puts what is said about a Service's port into a backend of it.
    pub fn protect(&self, port: &str, backend: &mut Backend) {
        if let Some(effective) = self.effective(Some(port)) {
            effective.apply(&mut backend.policy);
            backend.origin = Some(effective.origin());
        }
    }

    /// Puts what is said about a route into its rules.
    pub fn limit(&self, rules: &mut [Rule]) {
        for rule in rules {
            if let Some(effective) = self.effective(Some(&rule.name)) {
                sources::of_rule(&mut rule.sources, effective.object, &rule.timeouts);
                rule.filters.splice(..0, effective.filters());
                rule.timeouts.fill(&effective.timeouts());
            }
        }
    }

    /// What counts for a part of the object, or for all of it.
    pub fn effective(&self, section: Option<&str>) -> Option<Effective<'_, 'w>> {
        let about = |target: &TargetRef| target.kind() == self.kind && target.name == self.name;
        let find = |section: Option<&str>| {
            self.policies.iter().find_map(|&(object, spec)| {
                let mut targets = spec.target_refs.iter().filter(|t| about(t));
                let target = targets.find(|t| t.section_name.as_deref() == section)?;
                Some(Effective { object, spec, target, of: self })
            })
        };
        section.and_then(|s| find(Some(s))).or_else(|| find(None))
    }
}

// === impl Effective ===

impl Effective<'_, '_> {
    pub fn origin(&self) -> Origin {
        origin(self.object, "spec")
    }

    /// What it makes of a Service's backend.
    pub fn apply(&self, policy: &mut BackendPolicy) {
        let spec = self.spec;
        sources::of_policy(&mut policy.sources, self.object);
        if let Some(lb) = &spec.load_balancer {
            balance(lb, policy);
        }
        if let Some(connections) = &spec.connections {
            connect(connections, policy);
        }
        if let Some(budget) = &spec.retry_budget {
            let old = &mut policy.retry_budget;
            old.basis_points = budget.percent.map_or(old.basis_points, |n| n * 100);
            old.min_per_second = budget.min_per_second.unwrap_or(old.min_per_second);
            old.min_concurrent = budget.min_concurrent.unwrap_or(old.min_concurrent);
            let interval = budget.interval.as_deref().and_then(parse_ms).filter(|ms| *ms > 0);
            let interval = interval.and_then(|ms| u32::try_from(ms).ok());
            old.interval_ms = interval.unwrap_or(old.interval_ms);
        }
        if let Some(outlier) = &spec.outlier {
            policy.outlier = eject(outlier, &policy.outlier);
        }
        let protection = Protection {
            health_check: spec.health_check.as_ref().map(check),
            adaptive: spec.adaptive_concurrency.as_ref().map(adaptive),
            rate_limits: self.rate_limits(),
            timeouts: self.timeouts(),
            body_bytes_max: self.body_bytes_max(),
            ungated: spec.overload_gate.as_deref() == Some("Disabled"),
        };
        let some = protection != Protection::default();
        policy.protection = some.then(|| Box::new(protection));
    }

    /// What it makes of a route's rule, or of all that arrives at a listener.
    pub fn filters(&self) -> Vec<Filter> {
        let limits = self.rate_limits().into_iter().map(Filter::RateLimit);
        let cache = self.cache().map(Filter::Cache);
        limits.chain(self.body_bytes_max().map(Filter::BodyLimit)).chain(cache).collect()
    }

    fn cache(&self) -> Option<Arc<Cache>> {
        let said = self.spec.cache.as_ref()?;
        let ms = |text: &Option<Arc<str>>| text.as_deref().and_then(parse_ms);
        let usual = Cache::default();
        Some(Arc::new(Cache {
            name: format!("{} spec.cache", self.object.key).into(),
            object_bytes_max: said.object_bytes.unwrap_or(usual.object_bytes_max),
            heuristic_ms_max: ms(&said.heuristic_max_age).unwrap_or(usual.heuristic_ms_max),
            set_cookie: said.cookies.unwrap_or(usual.set_cookie),
            wait_ms: ms(&said.wait).unwrap_or(usual.wait_ms),
        }))
    }

    pub fn timeouts(&self) -> Timeouts {
        let Some(timeouts) = &self.spec.timeouts else { return Timeouts::default() };
        let ms = |text: &Option<Arc<str>>| text.as_deref().and_then(parse_ms);
        Timeouts {
            request_ms: ms(&timeouts.request),
            backend_request_ms: ms(&timeouts.backend_request),
            idle_ms: ms(&timeouts.idle),
            stream_ms: ms(&timeouts.stream),
            receive_ms: None,
        }
    }

    /// Who limits the bodies of requests, if it does.
    pub fn body_origin(&self) -> Option<Origin> {
        self.body_bytes_max().map(|_| origin(self.object, "spec.requestLimits.bodyBytes"))
    }

    fn body_bytes_max(&self) -> Option<u64> {
        self.spec.request_limits.as_ref()?.body_bytes
    }

    /// Every target counts for itself, also two parts of one object.
    fn rate_limits(&self) -> Vec<Arc<RateLimit>> {
        let (key, of) = (&self.object.key, self.of);
        let whose = match (self.spec.target_refs.len(), &self.target.section_name) {
            (0 | 1, _) => format!("{key}"),
            (_, None) => format!("{key} for {} {}", of.kind, of.name),
            (_, Some(section)) => format!("{key} for {} {} {section}", of.kind, of.name),
        };
        let each = self.spec.rate_limits.iter().enumerate();
        each.map(|(i, limit)| Arc::new(rate_limit(limit, &format!("{whose} spec.rateLimits[{i}]"))))
            .collect()
    }
}

fn rate_limit(limit: &view::RateLimit, name: &str) -> RateLimit {
    let by = limit.by.iter().filter_map(|by| match (&*by.kind, &by.header) {
        ("Client", _) => Some(LimitBy::Client),
        ("Identity", _) => Some(LimitBy::Identity),
        ("Header", Some(name)) => Some(LimitBy::Header(name.to_ascii_lowercase().into())),
        _ => None,
    });
    RateLimit {
        name: name.into(),
        requests: limit.requests,
        per_ms: limit.per.as_deref().and_then(parse_ms).filter(|ms| *ms > 0).unwrap_or(1_000),
        burst: limit.burst.unwrap_or(0),
        by: by.collect(),
        keys_max: limit.clients.unwrap_or(0),
    }
}

fn balance(lb: &view::LoadBalancer, policy: &mut BackendPolicy) {
    match lb.kind.as_deref() {
        Some("RoundRobin") => policy.lb = LbPolicy::RoundRobin,
        Some("Random") => policy.lb = LbPolicy::Random,
        Some("LeastRequest") => policy.lb = LbPolicy::LeastRequest,
        Some("PeakEwma") => policy.lb = LbPolicy::PeakEwma,
        _ => {}
    }
    if let Some(hashing) = lb.consistent_hash.as_ref().and_then(hashing) {
        policy.lb = LbPolicy::Hash(Box::new(hashing));
    }
    match lb.locality.as_deref() {
        Some("Any") => policy.locality = LocalityPolicy::Any,
        Some("PreferClose") => policy.locality = LocalityPolicy::Failover(Failover::default()),
        _ => {}
    }
    if let Some(percent) = lb.panic_percent {
        policy.panic_basis_points = percent.min(100) * 100;
    }
    if let Some(warmup) = &lb.warmup {
        let duration_ms = parse_ms(&warmup.duration).filter(|ms| *ms > 0);
        policy.warmup = duration_ms.map(|duration_ms| Warmup {
            duration_ms,
            min_basis_points: warmup.minimum_percent.map_or(1_000, |n| n * 100),
            aggression_permille: 1_000,
        });
    }
}

fn hashing(hash: &view::ConsistentHash) -> Option<Hashing> {
    let by = if let Some(name) = &hash.header {
        HashBy::Header(name.to_ascii_lowercase().into())
    } else if let Some(name) = &hash.cookie {
        HashBy::Cookie(HashCookie {
            name: name.clone(),
            ttl_ms: Some(hash.cookie_ttl.as_deref().and_then(parse_ms).unwrap_or(0)),
            path: "/".into(),
            attributes: Vec::new(),
        })
    } else if let Some(name) = &hash.query_parameter {
        HashBy::Query(name.clone())
    } else if hash.source_ip == Some(true) {
        HashBy::SourceIp
    } else {
        return None;
    };
    let table = match hash.table.as_deref() {
        Some("Maglev") => HashTable::Maglev { size: MAGLEV_SIZE },
        _ => HashTable::Ring { points_min: RING_POINTS_MIN },
    };
    Some(Hashing { by, table, load_max_basis_points: hash.max_load_percent.map(|n| n * 100) })
}

fn connect(connections: &view::Connections, policy: &mut BackendPolicy) {
    pool_terms::of_policy(connections, policy);
    let ms = |text: &Option<Arc<str>>| text.as_deref().and_then(parse_ms);
    let limits = &mut policy.limits;
    limits.connections_max = connections.max.or(limits.connections_max);
    limits.pending_max = connections.pending.or(limits.pending_max);
    limits.requests_max = connections.requests.or(limits.requests_max);
    limits.retries_max = connections.retries.or(limits.retries_max);
    policy.connect_timeout_ms =
        ms(&connections.connect_timeout).unwrap_or(policy.connect_timeout_ms);
    policy.idle_timeout_ms = ms(&connections.idle_timeout).unwrap_or(policy.idle_timeout_ms);
    match connections.proxy_protocol.as_deref() {
        Some("V1") => policy.proxy_protocol = Some(ProxyVersion::V1),
        Some("V2") => policy.proxy_protocol = Some(ProxyVersion::V2),
        Some("None") => policy.proxy_protocol = None,
        _ => {}
    }
}

/// What is not said stays as it was.
fn eject(o: &view::Outlier, before: &Outlier) -> Outlier {
    let ms = |text: &Option<Arc<str>>| text.as_deref().and_then(parse_ms);
    let window = before.window.clone().unwrap_or_default();
    let window = OutlierWindow {
        interval_ms: ms(&o.interval).unwrap_or(window.interval_ms),
        failure_share: o
            .failure_percent
            .map(|n| FailureShare { basis_points: n * 100, ..FailureShare::default() })
            .or(window.failure_share.clone()),
        ..*window
    };
    let judges = window.failure_share.is_some() || window.success_rate.is_some();
    let base_ejection_ms = ms(&o.base_ejection_time).unwrap_or(before.base_ejection_ms);
    Outlier {
        consecutive_failures: o.consecutive_errors.unwrap_or(before.consecutive_failures),
        consecutive_gateway: o.consecutive_gateway_errors.unwrap_or(before.consecutive_gateway),
        consecutive_local: o.consecutive_local_errors.or(before.consecutive_local),
        statuses: if o.statuses.is_empty() { before.statuses.clone() } else { o.statuses.clone() },
        window: judges.then(|| Box::new(window)),
        base_ejection_ms,
        max_ejection_ms: before.max_ejection_ms.max(base_ejection_ms),
        max_ejection_basis_points: o
            .max_ejection_percent
            .map_or(before.max_ejection_basis_points, |n| n.min(100) * 100),
    }
}

fn check(check: &view::HealthCheck) -> HealthCheck {
    let ms = |text: &Option<Arc<str>>| text.as_deref().and_then(parse_ms).filter(|ms| *ms > 0);
    let usual = HealthCheck::default();
    let host = check.host.clone().unwrap_or_default();
    let bytes = |text: &Arc<str>| text.as_bytes().to_vec();
    let kind = match check.kind.as_deref() {
        Some("GRPC") => {
            let service = check.service.clone().unwrap_or_default();
            CheckKind::Grpc { service, authority: host }
        }
        Some("TCP") => CheckKind::Tcp {
            send: check.send.as_ref().map(bytes).unwrap_or_default(),
            expect: check.expect.iter().map(bytes).collect(),
        },
        _ => {
            let ranges = check.expected_statuses.iter();
            let http = HttpCheck::default();
            CheckKind::Http(HttpCheck {
                method: check.method.clone().unwrap_or(http.method),
                path: check.path.clone().unwrap_or(http.path),
                host,
                headers: Vec::new(),
                statuses: ranges.map(|r| (r.from, r.to.unwrap_or(r.from))).collect(),
                http2: check.http2 == Some(true),
            })
        }
    };
    HealthCheck {
        kind,
        interval_ms: ms(&check.interval).unwrap_or(usual.interval_ms),
        timeout_ms: ms(&check.timeout).unwrap_or(usual.timeout_ms),
        unhealthy_interval_ms: ms(&check.unhealthy_interval),
        jitter_basis_points: check.jitter_percent.map_or(usual.jitter_basis_points, |n| n * 100),
        healthy: check.healthy_threshold.unwrap_or(usual.healthy),
        unhealthy: check.unhealthy_threshold.unwrap_or(usual.unhealthy),
        port: check.port,
    }
}

fn adaptive(said: &view::AdaptiveConcurrency) -> Adaptive {
    let usual = Adaptive::default();
    Adaptive {
        limit_min: said.min_limit.unwrap_or(usual.limit_min),
        limit_max: said.max_limit.unwrap_or(usual.limit_max),
        tolerance_permille: said.tolerance_percent.map_or(usual.tolerance_permille, |n| n * 10),
        wait_ms: usual.wait_ms,
    }
}

// === the policy's own unit ===

pub(super) fn compile(reader: &Reader<'_>, object: &Object, spec: &TrafficPolicySpec) -> Output {
    let each = spec.target_refs.iter().enumerate().map(|(i, target)| {
        let at = FieldPath::new("spec.targetRefs").index(i);
        let mut issues = Issues::default();
        let accepted = accepted(reader, object, target, &at, &mut issues);
        let conditions = std::iter::once(accepted).chain(Condition::warning(&issues)).collect();
        ParentStatus { parent: ancestor(object, target), conditions }
    });
    let status = StatusUpdate {
        object: object.key.clone(),
        generation: object.meta.generation,
        body: StatusBody::Ancestors(each.collect()),
    };
    Output { status: Some(status), ..Output::default() }
}

/// The target as a status names it.
fn ancestor(object: &Object, target: &TargetRef) -> ParentRef {
    ParentRef {
        group: Some(target.group.clone().unwrap_or_default()),
        kind: Some(target.kind().into()),
        namespace: Some(object.key.namespace.clone()),
        name: target.name.clone(),
        section_name: target.section_name.clone(),
        ..ParentRef::default()
    }
}

fn accepted(
    reader: &Reader<'_>,
    object: &Object,
    target: &TargetRef,
    at: &FieldPath,
    issues: &mut Issues,
) -> Condition {
    let no = |reason, message: String| Condition::new("Accepted", false, reason, message);
    let namespace = &object.key.namespace;
    let (kind, name) = (target.kind(), &target.name);
    let (group, id) = match kind {
        "Service" => ("", KindId::Service),
        "HTTPRoute" => (weft_kinds::views::gateway::GROUP, KindId::HttpRoute),
        "GRPCRoute" => (weft_kinds::views::gateway::GROUP, KindId::GrpcRoute),
        "Gateway" => (weft_kinds::views::gateway::GROUP, KindId::Gateway),
        "ListenerSet" => (weft_kinds::views::gateway::GROUP, KindId::ListenerSet),
        other => return no("Invalid", format!("{at}.kind: {other} is no target")),
    };
    if target.group.as_deref().is_some_and(|g| !g.is_empty() && g != group) {
        return no("Invalid", format!("{at}.group: a {kind} is of group {group:?}"));
    }
    let Some(found) = reader.object(id, namespace, name) else {
        return no("TargetNotFound", format!("{at}: there is no {kind} {namespace}/{name}"));
    };
    if let Some(section) = target.section_name.as_deref()
        && !has_section(found, section)
    {
        let text = format!("{at}.sectionName: {kind} {namespace}/{name} has no part {section}");
        return no("TargetNotFound", text);
    }
    let kind: &'static str = id.row().kind;
    let attached = Attached::read(reader, kind, namespace, name);
    let first = attached.effective(target.section_name.as_deref());
    if let Some(first) = first.filter(|first| first.object.key != object.key) {
        let text = format!("not used: the older {} decides about {kind} {name}", first.object.key);
        return no("Conflicted", text);
    }
    if let (View::Service(service), View::TrafficPolicy(policy)) = (&found.view, &object.view) {
        let section = target.section_name.as_deref();
        unread(&found.meta, &service.spec, section, &policy.spec, at, issues);
    }
    Condition::new("Accepted", true, "Accepted", format!("in effect for {kind} {namespace}/{name}"))
}

/// What is said about requests counts for none on a port whose bytes are passed on unread.
fn unread(
    meta: &Meta,
    service: &ServiceSpec,
    section: Option<&str>,
    policy: &TrafficPolicySpec,
    at: &FieldPath,
    issues: &mut Issues,
) {
    if service.ports.iter().all(|p| &*p.protocol == "UDP") {
        issues.warning(at.clone(), "it has ports for datagrams only; balancing alone counts there");
        return;
    }
    let opaque = |port: &&ServicePort| {
        let speaks = protocol::of_service(meta, service, port);
        matches!(speaks, Protocol::Tcp | Protocol::Tls | Protocol::Udp)
    };
    let named = service.ports.iter().filter(|p| section.is_none_or(|s| &*p.name == s));
    let ports: Vec<String> = named.filter(opaque).map(|p| p.port.to_string()).collect();
    let said: Vec<&str> = [
        ("rateLimits", !policy.rate_limits.is_empty()),
        ("requestLimits", policy.request_limits.is_some()),
        ("timeouts", policy.timeouts.is_some()),
        ("adaptiveConcurrency", policy.adaptive_concurrency.is_some()),
        ("overloadGate", policy.overload_gate.is_some()),
        ("retryBudget", policy.retry_budget.is_some()),
    ]
    .into_iter()
    .filter_map(|(name, said)| said.then_some(name))
    .collect();
    if !ports.is_empty() && !said.is_empty() {
        let (ports, said) = (ports.join(", "), said.join(", "));
        let text = format!(
            "no HTTP is declared for port {ports}, whose bytes are passed on unread: {said} \
             do nothing there (appProtocol says what a port speaks)"
        );
        issues.warning(at.clone(), text);
    }
}

fn has_section(object: &Object, section: &str) -> bool {
    match &object.view {
        View::Service(service) => service.spec.ports.iter().any(|p| &*p.name == section),
        View::HttpRoute(route) | View::GrpcRoute(route) => {
            route.spec.rules.iter().any(|rule| &*rule.name == section)
        }
        View::Gateway(gateway) => gateway.spec.listeners.iter().any(|l| &*l.name == section),
        View::ListenerSet(set) => set.spec.listeners.iter().any(|l| &*l.name == section),
        _ => false,
    }
}
