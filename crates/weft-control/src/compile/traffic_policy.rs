// SPDX-License-Identifier: Apache-2.0
//! What a DestinationRule's traffic policy makes of a backend's: balancing, locality, warm-up,
//! ejection, circuit breakers. Called by `destination_rule`; reads no other object.
//!
//! Istio's fields say most; what they cannot say stands in annotations of the rule.

use std::sync::Arc;

use serde_json::Number;
use weft_base::issue::{FieldPath, Issues};
use weft_kinds::views::Meta;
use weft_kinds::views::balancing::{self, ConsistentHash, LocalityLb, ZoneAwareLb};
use weft_kinds::views::istio::{
    ConnectionPool, LoadBalancer, OutlierDetection, PortTrafficPolicy, TrafficPolicy,
};
use weft_model::{
    BackendPolicy, Distribution, Failover, FailureShare, HashBy, HashCookie, HashTable, Hashing,
    LbPolicy, LocalityPattern, LocalityPolicy, Outlier, OutlierWindow, ProxyVersion, RetryBudget,
    SuccessRate, Warmup, ZoneAware,
};

use super::destination_rule::not_done;
use super::duration::parse_ms;
use super::pool_terms;

/// `peak-ewma`: the endpoint that answers soonest, as Linkerd balances.
pub const LOAD_BALANCER_ANNOTATION: &str = "weft.dev/load-balancer";
/// `"125"`: with `consistentHash`, nobody has more than 1.25 times its part of the requests in
/// flight.
pub const HASH_LOAD_ANNOTATION: &str = "weft.dev/hash-load-max-percent";
/// `"85"`: ejects whose requests fail at this percentage or more within `interval`.
pub const FAILURE_ANNOTATION: &str = "weft.dev/outlier-failure-percent";
/// `"1.9"`: ejects who succeeds less often than the mean minus so many standard deviations.
pub const SUCCESS_ANNOTATION: &str = "weft.dev/outlier-success-rate-factor";

/// Istio's own for rings; Envoy's prime for Maglev.
const RING_POINTS_MIN: u32 = 1_024;
const MAGLEV_SIZE: u32 = 65_537;

/// The settings that count for one port.
#[derive(Clone, Copy, Default)]
struct Layer<'a> {
    lb: Option<&'a LoadBalancer>,
    pool: Option<&'a ConnectionPool>,
    outlier: Option<&'a OutlierDetection>,
}

/// Layers over what is there, the outer before the inner: each setting is taken whole from the
/// innermost that has it, and what speaks of a port has them all (Istio).
pub(super) fn apply(layers: &[&TrafficPolicy], port: u16, policy: &mut BackendPolicy) {
    let mut said = Layer::default();
    for layer in layers {
        said = said.with(layer, port);
    }
    if let Some(lb) = said.lb {
        apply_lb(lb, policy);
    }
    if let Some(pool) = said.pool {
        apply_pool(pool, policy);
    }
    if let Some(outlier) = said.outlier {
        apply_outlier(outlier, policy);
    }
    for layer in layers {
        apply_rest(layer, policy);
    }
}

/// What no port has of its own.
fn apply_rest(layer: &TrafficPolicy, policy: &mut BackendPolicy) {
    if let Some(header) = &layer.proxy_protocol {
        let second = header.get("version").and_then(|v| v.as_str()) == Some("V2");
        let version = if second { ProxyVersion::V2 } else { ProxyVersion::V1 };
        policy.proxy_protocol = Some(version);
    }
    if let Some(tunnel) = &layer.tunnel {
        pool_terms::go_through(tunnel, policy);
    }
    if let Some(budget) = &layer.retry_budget {
        policy.retry_budget = retry_budget(budget);
    }
}

/// What the rule's annotations add, after all layers.
pub(super) fn annotate(meta: &Meta, policy: &mut BackendPolicy) {
    if meta.annotation(LOAD_BALANCER_ANNOTATION) == Some("peak-ewma") {
        policy.lb = LbPolicy::PeakEwma;
    }
    if let LbPolicy::Hash(hashing) = &mut policy.lb {
        hashing.load_max_basis_points =
            percent_of(meta, HASH_LOAD_ANNOTATION).map(|n| n.max(10_000));
    }
    let failure_share = percent_of(meta, FAILURE_ANNOTATION)
        .map(|basis_points| FailureShare { basis_points, ..FailureShare::default() });
    let success_rate = thousandths_of(meta, SUCCESS_ANNOTATION)
        .map(|factor_permille| SuccessRate { factor_permille, ..SuccessRate::default() });
    let judges = failure_share.is_some() || success_rate.is_some();
    let window = policy.outlier.window.take().unwrap_or_default();
    let window = Box::new(OutlierWindow { failure_share, success_rate, ..*window });
    policy.outlier.window = judges.then_some(window);
}

/// What holds where no rule speaks: with a Service's `trafficDistribution` the near come first.
pub(super) fn usual(preference: Option<&str>) -> BackendPolicy {
    let near = matches!(preference, Some("PreferClose" | "PreferSameZone" | "PreferSameNode"));
    let near = near.then(|| LocalityPolicy::Failover(Failover::default()));
    BackendPolicy { locality: near.unwrap_or_default(), ..BackendPolicy::default() }
}

fn apply_lb(lb: &LoadBalancer, policy: &mut BackendPolicy) {
    match lb.simple.as_deref() {
        Some("ROUND_ROBIN") => policy.lb = LbPolicy::RoundRobin,
        Some("RANDOM") => policy.lb = LbPolicy::Random,
        Some("LEAST_REQUEST" | "LEAST_CONN") => policy.lb = LbPolicy::LeastRequest,
        Some("PASSTHROUGH") => policy.lb = LbPolicy::Passthrough,
        _ => {}
    }
    if let Some(hashing) = lb.consistent_hash.as_ref().and_then(hashing) {
        policy.lb = LbPolicy::Hash(Box::new(hashing));
    }
    if let Some(setting) = &lb.locality_lb_setting {
        policy.locality = locality(setting);
    }
    if let Some(setting) = lb.zone_aware_lb_setting.as_ref().filter(|s| s.enabled != Some(false)) {
        policy.locality = zones(setting);
    }
    let old = lb.warmup_duration_secs.as_ref().map(|duration| balancing::Warmup {
        duration: duration.clone(),
        ..balancing::Warmup::default()
    });
    if let Some(warmup) = lb.warmup.as_ref().or(old.as_ref()) {
        policy.warmup = warm(warmup);
    }
}

fn hashing(hash: &ConsistentHash) -> Option<Hashing> {
    let by = if let Some(name) = &hash.http_header_name {
        HashBy::Header(name.to_ascii_lowercase().into())
    } else if let Some(cookie) = &hash.http_cookie {
        HashBy::Cookie(HashCookie {
            name: cookie.name.clone(),
            ttl_ms: cookie.ttl.as_deref().and_then(parse_ms),
            path: cookie.path.clone(),
            attributes: cookie.attributes.iter().map(attribute).collect(),
        })
    } else if let Some(name) = &hash.http_query_parameter_name {
        HashBy::Query(name.clone())
    } else if hash.use_source_ip == Some(true) {
        HashBy::SourceIp
    } else {
        return None;
    };
    let size = |n: Option<u64>, usual: u32| {
        n.filter(|n| *n > 0).map_or(usual, |n| u32::try_from(n).unwrap_or(u32::MAX))
    };
    let table = match (&hash.maglev, &hash.ring_hash) {
        (Some(maglev), _) => HashTable::Maglev { size: size(maglev.table_size, MAGLEV_SIZE) },
        (None, ring) => {
            let points = ring.as_ref().and_then(|r| r.minimum_ring_size);
            let points = points.or(hash.minimum_ring_size);
            HashTable::Ring { points_min: size(points, RING_POINTS_MIN) }
        }
    };
    Some(Hashing { by, table, load_max_basis_points: None })
}

fn attribute(attribute: &balancing::CookieAttribute) -> Arc<str> {
    match &attribute.value {
        Some(value) => format!("{}={value}", attribute.name).into(),
        None => attribute.name.clone(),
    }
}

fn locality(setting: &LocalityLb) -> LocalityPolicy {
    if setting.enabled == Some(false) {
        return LocalityPolicy::Any;
    }
    if setting.distribute.is_empty() {
        let regions = setting.failover.iter().map(|f| (f.from.clone(), f.to.clone())).collect();
        let labels = setting.failover_priority.clone();
        return LocalityPolicy::Failover(Failover { regions, labels });
    }
    let list = setting.distribute.iter().map(|d| {
        let mut to: Vec<_> =
            d.to.iter().map(|(place, weight)| (LocalityPattern(place.clone()), *weight)).collect();
        // The most specific pattern takes an endpoint first.
        to.sort_by_key(|(p, _)| p.0.split('/').filter(|part| *part != "*").count());
        to.reverse();
        Distribution { from: LocalityPattern(d.from.clone()), to }
    });
    LocalityPolicy::Distribute(list.collect())
}

fn zones(setting: &ZoneAwareLb) -> LocalityPolicy {
    let regions = setting.failover.iter().map(|f| (f.from.clone(), f.to.clone())).collect();
    let failover = Failover { regions, labels: setting.failover_priority.clone() };
    let usual = ZoneAware::default();
    let endpoints_min = setting.min_cluster_size.unwrap_or(usual.endpoints_min);
    LocalityPolicy::Zones(ZoneAware { endpoints_min, failover })
}

fn warm(warmup: &balancing::Warmup) -> Option<Warmup> {
    let duration_ms = parse_ms(&warmup.duration).filter(|ms| *ms > 0)?;
    Some(Warmup {
        duration_ms,
        min_basis_points: warmup.minimum_percent.as_ref().map_or(1_000, |n| scaled(n, 100.0)),
        aggression_permille: warmup.aggression.as_ref().map_or(1_000, |n| scaled(n, 1_000.0)),
    })
}

fn apply_pool(pool: &ConnectionPool, policy: &mut BackendPolicy) {
    let ms = |text: &Option<Arc<str>>| text.as_deref().and_then(parse_ms);
    if let Some(tcp) = &pool.tcp {
        policy.connect_timeout_ms = ms(&tcp.connect_timeout).unwrap_or(policy.connect_timeout_ms);
        policy.idle_timeout_ms = ms(&tcp.idle_timeout).unwrap_or(policy.idle_timeout_ms);
        policy.limits.connections_max = tcp.max_connections.or(policy.limits.connections_max);
    }
    if let Some(http) = &pool.http {
        policy.idle_timeout_ms = ms(&http.idle_timeout).unwrap_or(policy.idle_timeout_ms);
        let limits = &mut policy.limits;
        // 0 is Istio's word for its default.
        let pending = http.http1_max_pending_requests.filter(|n| *n > 0);
        limits.pending_max = pending.or(limits.pending_max);
        limits.requests_max = http.http2_max_requests.filter(|n| *n > 0).or(limits.requests_max);
        limits.retries_max = http.max_retries.filter(|n| *n > 0).or(limits.retries_max);
    }
    pool_terms::apply(pool, policy);
}

/// Istio's documented defaults for what the author leaves out: writing `outlierDetection` asks
/// for Istio's ejection, not for weft's.
fn apply_outlier(o: &OutlierDetection, policy: &mut BackendPolicy) {
    let ms = |text: &Option<Arc<str>>| text.as_deref().and_then(parse_ms);
    let base = ms(&o.base_ejection_time).unwrap_or(30_000);
    let split = o.split_external_local_origin_errors == Some(true);
    let interval_ms = ms(&o.interval).unwrap_or(10_000);
    policy.outlier = Outlier {
        consecutive_failures: o.consecutive_5xx_errors.or(o.consecutive_errors).unwrap_or(5),
        consecutive_gateway: o.consecutive_gateway_errors.unwrap_or(0),
        consecutive_local: split.then(|| o.consecutive_local_origin_failures.unwrap_or(5)),
        statuses: o.outlier_detection_http_error_codes.clone(),
        // For the judgements that annotations add; without any it goes again.
        window: Some(Box::new(OutlierWindow { interval_ms, ..OutlierWindow::default() })),
        base_ejection_ms: base,
        max_ejection_ms: base.max(300_000),
        max_ejection_basis_points: o.max_ejection_percent.unwrap_or(10).min(100) * 100,
    };
    policy.panic_basis_points = o.min_health_percent.unwrap_or(0).min(100) * 100;
}

/// Without an interval Istio counts retries at one moment against requests at that moment, weft
/// those of the last seconds; the percentage means the same.
fn retry_budget(budget: &balancing::RetryBudget) -> RetryBudget {
    let usual = RetryBudget::default();
    let interval = budget.budget_interval.as_deref().and_then(parse_ms).filter(|ms| *ms > 0);
    let interval = interval.map(|ms| u32::try_from(ms).unwrap_or(u32::MAX));
    RetryBudget {
        basis_points: budget.percent.as_ref().map_or(2_000, |n| scaled(n, 100.0)),
        min_per_second: 0,
        min_concurrent: budget.min_retry_concurrency.unwrap_or(3),
        interval_ms: interval.unwrap_or(usual.interval_ms),
    }
}

fn percent_of(meta: &Meta, name: &str) -> Option<u32> {
    whole(meta.annotation(name)?.parse::<f64>().ok()? * 100.0)
}

fn thousandths_of(meta: &Meta, name: &str) -> Option<u32> {
    whole(meta.annotation(name)?.parse::<f64>().ok()? * 1_000.0)
}

fn scaled(n: &Number, by: f64) -> u32 {
    n.as_f64().and_then(|n| whole(n * by)).unwrap_or(0)
}

// In range by its test.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(n: f64) -> Option<u32> {
    (0.0..4e9).contains(&n).then(|| n.round() as u32)
}

// === impl Layer ===

impl<'a> Layer<'a> {
    /// With what an inner layer says of a port.
    fn with(self, inner: &'a TrafficPolicy, port: u16) -> Self {
        if let Some(own) = inner.port_level_settings.iter().find(|p| p.port.number == port) {
            return Self::port(own);
        }
        let inner = Self::whole(inner);
        Self {
            lb: inner.lb.or(self.lb),
            pool: inner.pool.or(self.pool),
            outlier: inner.outlier.or(self.outlier),
        }
    }

    fn whole(policy: &'a TrafficPolicy) -> Self {
        Self {
            lb: policy.load_balancer.as_ref(),
            pool: policy.connection_pool.as_ref(),
            outlier: policy.outlier_detection.as_ref(),
        }
    }

    fn port(policy: &'a PortTrafficPolicy) -> Self {
        Self {
            lb: policy.load_balancer.as_ref(),
            pool: policy.connection_pool.as_ref(),
            outlier: policy.outlier_detection.as_ref(),
        }
    }
}

// === what is not done as written ===

pub(super) fn judge(policy: &TrafficPolicy, path: &FieldPath, issues: &mut Issues) {
    judge_layer(&Layer::whole(policy), path, issues);
    if let Some(tunnel) = &policy.tunnel {
        pool_terms::judge_tunnel(tunnel, path, issues);
    }
    for (i, port) in policy.port_level_settings.iter().enumerate() {
        let path = path.field("portLevelSettings").index(i);
        judge_layer(&Layer::port(port), &path, issues);
    }
}

/// Annotations whose words say nothing.
pub(super) fn judge_annotations(meta: &Meta, issues: &mut Issues) {
    let mut wrong = |name: &str, what: &str| {
        let at = FieldPath::new("metadata.annotations").field(name);
        issues.warning(at, format!("{what}; it is not applied"));
    };
    if let Some(other) = meta.annotation(LOAD_BALANCER_ANNOTATION).filter(|v| *v != "peak-ewma") {
        wrong(LOAD_BALANCER_ANNOTATION, &format!("{other:?} is not known; say peak-ewma"));
    }
    for name in [HASH_LOAD_ANNOTATION, FAILURE_ANNOTATION, SUCCESS_ANNOTATION] {
        let number = meta.annotation(name).filter(|v| v.parse::<f64>().is_err());
        if let Some(other) = number {
            wrong(name, &format!("{other:?} is no number"));
        }
    }
}

fn judge_layer(layer: &Layer<'_>, path: &FieldPath, issues: &mut Issues) {
    let Some(simple) = layer.lb.and_then(|lb| lb.simple.as_deref()) else { return };
    let known =
        ["ROUND_ROBIN", "RANDOM", "LEAST_REQUEST", "LEAST_CONN", "PASSTHROUGH", "UNSPECIFIED"];
    if !known.contains(&simple) {
        not_done(issues, &path.field("loadBalancer").field("simple"));
    }
}
