// SPDX-License-Identifier: Apache-2.0
//! Which fields of an object set which values of a policy, for `weft explain`: read from the object
//! as it was written, so that a value that was written and is the default all the same is known for
//! what it is. Called where policies are made of objects; decides nothing.

use serde_json::Value;
use weft_base::issue::FieldPath;
use weft_kinds::views::gateway::HttpRouteFilter;
use weft_kinds::world::Object;
use weft_model::{Sources, Timeouts, value};

use super::origin;

/// A value, and the fields of which any sets it; the one that counts comes first.
type Row = (&'static str, &'static [&'static str]);

/// Of a DestinationRule's traffic policy, or of one of its ports.
const OF_PORT: &[Row] = &[
    (value::BALANCING, &["loadBalancer.consistentHash", "loadBalancer.simple"]),
    (value::LOCALITY, &["loadBalancer.zoneAwareLbSetting", "loadBalancer.localityLbSetting"]),
    (value::SLOW_START, &["loadBalancer.warmup", "loadBalancer.warmupDurationSecs"]),
    (value::CONNECT_TIMEOUT, &["connectionPool.tcp.connectTimeout"]),
    (
        value::IDLE_CONNECTIONS,
        &["connectionPool.http.idleTimeout", "connectionPool.tcp.idleTimeout"],
    ),
    (value::CONNECTIONS, &["connectionPool.tcp.maxConnections"]),
    (value::WAITING, &["connectionPool.http.http1MaxPendingRequests"]),
    (value::IN_FLIGHT, &["connectionPool.http.http2MaxRequests"]),
    (value::RETRIES_IN_FLIGHT, &["connectionPool.http.maxRetries"]),
    (value::CONNECTION_REQUESTS, &["connectionPool.http.maxRequestsPerConnection"]),
    (value::CONNECTION_AGE, &["connectionPool.tcp.maxConnectionDuration"]),
    (value::STREAMS, &["connectionPool.http.maxConcurrentStreams"]),
    (value::KEEPALIVE, &["connectionPool.tcp.tcpKeepalive"]),
    (value::PINGS, &["connectionPool.http.http2KeepAlive"]),
    (
        value::PROTOCOL,
        &["connectionPool.http.useClientProtocol", "connectionPool.http.h2UpgradePolicy"],
    ),
    (value::PANIC, &["outlierDetection.minHealthPercent"]),
    // What is left out of it has defaults of Istio's, which it asks for too.
    (
        value::EJECTION,
        &[
            "outlierDetection.consecutive5xxErrors",
            "outlierDetection.consecutiveErrors",
            "outlierDetection",
        ],
    ),
    (value::EJECTION_TIME, &["outlierDetection.baseEjectionTime", "outlierDetection"]),
    (value::EJECTED_SHARE, &["outlierDetection.maxEjectionPercent", "outlierDetection"]),
];

/// Of a DestinationRule's traffic policy as a whole.
const OF_LAYER: &[Row] = &[
    (value::RETRY_BUDGET, &["retryBudget"]),
    (value::PROXY_PROTOCOL, &["proxyProtocol"]),
    (value::TUNNEL, &["tunnel"]),
];

/// Annotations of a DestinationRule.
const OF_ANNOTATIONS: &[Row] = &[
    (value::BALANCING, &[super::traffic_policy::LOAD_BALANCER_ANNOTATION]),
    (
        value::EJECTION_WINDOW,
        &[super::traffic_policy::FAILURE_ANNOTATION, super::traffic_policy::SUCCESS_ANNOTATION],
    ),
];

/// Of a TrafficPolicy about a Service.
const OF_POLICY: &[Row] = &[
    (value::BALANCING, &["loadBalancer.consistentHash", "loadBalancer.type"]),
    (value::LOCALITY, &["loadBalancer.locality"]),
    (value::PANIC, &["loadBalancer.panicPercent"]),
    (value::SLOW_START, &["loadBalancer.warmup"]),
    (value::CONNECT_TIMEOUT, &["connections.connectTimeout"]),
    (value::IDLE_CONNECTIONS, &["connections.idleTimeout"]),
    (value::CONNECTIONS, &["connections.max"]),
    (value::WAITING, &["connections.pending"]),
    (value::IN_FLIGHT, &["connections.requests"]),
    (value::RETRIES_IN_FLIGHT, &["connections.retries"]),
    (value::PROXY_PROTOCOL, &["connections.proxyProtocol"]),
    (value::CONNECTION_REQUESTS, &["connections.requestsPerConnection"]),
    (value::CONNECTION_AGE, &["connections.maxAge"]),
    (value::STREAMS, &["connections.streamsPerConnection"]),
    (value::KEEPALIVE, &["connections.keepalive"]),
    (value::PINGS, &["connections.ping"]),
    (value::PROTOCOL, &["connections.protocol"]),
    (value::RETRY_BUDGET, &["retryBudget"]),
    (
        value::EJECTION,
        &[
            "outlier.consecutiveErrors",
            "outlier.consecutiveGatewayErrors",
            "outlier.consecutiveLocalErrors",
            "outlier.statuses",
        ],
    ),
    (value::EJECTION_TIME, &["outlier.baseEjectionTime"]),
    (value::EJECTED_SHARE, &["outlier.maxEjectionPercent"]),
    (value::EJECTION_WINDOW, &["outlier.failurePercent", "outlier.interval"]),
    (value::HEALTH_CHECK, &["healthCheck"]),
    (value::ADAPTIVE, &["adaptiveConcurrency"]),
    (value::GATE, &["overloadGate"]),
    (value::REQUEST_TIMEOUT, &["timeouts.request"]),
    (value::ATTEMPT_TIMEOUT, &["timeouts.backendRequest"]),
    (value::IDLE_TIMEOUT, &["timeouts.idle"]),
    (value::STREAM_TIMEOUT, &["timeouts.stream"]),
    (value::BODY, &["requestLimits.bodyBytes"]),
];

/// Settings that are taken whole from the innermost layer that has them.
const SETTINGS: [&str; 4] = ["loadBalancer", "connectionPool", "outlierDetection", "tls"];

/// Notes what a DestinationRule's layers (`spec.trafficPolicy`, a subset's), the outer before the
/// inner, set for a port.
pub(super) fn of_layers(sources: &mut Sources, object: &Object, layers: &[&str], port: u16) {
    for setting in SETTINGS {
        let has = |at: &&&str| {
            own_of(object, at, port).is_some()
                || lookup(&object.raw, &format!("{at}.{setting}")).is_some()
        };
        let Some(at) = layers.iter().rev().find(has) else { continue };
        let place = own_of(object, at, port).unwrap_or_else(|| (*at).to_owned());
        let rows = OF_PORT.iter().copied();
        let rows = rows.filter(|(_, fields)| fields.iter().all(|f| f.starts_with(setting)));
        note(sources, object, &place, &rows.collect::<Vec<_>>());
        let begun = lookup(&object.raw, &format!("{place}.tls.mode")).and_then(Value::as_str);
        if setting == "tls" && begun.is_some_and(|mode| matches!(mode, "SIMPLE" | "MUTUAL")) {
            sources.set(value::TLS, origin(object, format!("{place}.tls")));
        }
    }
    for at in layers {
        note(sources, object, at, OF_LAYER);
    }
}

/// Where a layer speaks of a port.
fn own_of(object: &Object, at: &str, port: u16) -> Option<String> {
    let ports = lookup(&object.raw, &format!("{at}.portLevelSettings")).and_then(Value::as_array);
    let own = ports.into_iter().flatten().position(|p| p["port"]["number"] == port)?;
    Some(format!("{at}.portLevelSettings[{own}]"))
}

/// Notes what a DestinationRule's annotations set.
pub(super) fn of_annotations(sources: &mut Sources, object: &Object) {
    for (value, names) in OF_ANNOTATIONS {
        let said = names.iter().find(|name| object.meta.annotation(name).is_some());
        if let Some(name) = said {
            sources.set(value, origin(object, format!("metadata.annotations.{name}")));
        }
    }
}

/// Notes what a TrafficPolicy sets of a Service's backend.
pub(super) fn of_policy(sources: &mut Sources, object: &Object) {
    note(sources, object, "spec", OF_POLICY);
}

/// Notes what a TrafficPolicy sets of a rule that said nothing `before`.
pub(super) fn of_rule(sources: &mut Sources, object: &Object, before: &Timeouts) {
    let free = |value: &str| match value {
        value::REQUEST_TIMEOUT => before.request_ms.is_none(),
        value::ATTEMPT_TIMEOUT => before.backend_request_ms.is_none(),
        value::IDLE_TIMEOUT => before.idle_ms.is_none(),
        value::STREAM_TIMEOUT => before.stream_ms.is_none(),
        value::BODY => true,
        _ => false,
    };
    let rows = OF_POLICY.iter().copied().filter(|(value, _)| free(value));
    note(sources, object, "spec", &rows.collect::<Vec<_>>());
}

/// What a rule's filters set, each by its own place.
pub(super) fn of_filters(
    object: &Object,
    rule: &FieldPath,
    filters: &[HttpRouteFilter],
) -> Sources {
    let mut out = Sources::default();
    for (i, filter) in filters.iter().enumerate() {
        let (value, field) = match &*filter.kind {
            "RequestHeaderModifier" => (value::REQUEST_HEADERS, "requestHeaderModifier"),
            "ResponseHeaderModifier" => (value::RESPONSE_HEADERS, "responseHeaderModifier"),
            "URLRewrite" => (value::REWRITE, "urlRewrite"),
            // Copies may be several, and are told by their list.
            "CORS" => (value::CORS, "cors"),
            _ => continue,
        };
        let at = rule.field("filters").index(i).field(field);
        out.set(value, origin(object, at.as_str()));
    }
    out
}

fn note(sources: &mut Sources, object: &Object, place: &str, rows: &[Row]) {
    let Some(said) = lookup(&object.raw, place) else { return };
    for (value, fields) in rows {
        let field = fields.iter().find(|field| lookup(said, field).is_some());
        if let Some(field) = field {
            sources.set(value, origin(object, format!("{place}.{field}")));
        }
    }
}

/// The value at a path such as `spec.subsets[1].trafficPolicy`, when it is there and not null.
fn lookup<'v>(root: &'v Value, path: &str) -> Option<&'v Value> {
    let mut at = root;
    for part in path.split('.') {
        let (name, index) = match part.split_once('[') {
            Some((name, index)) => (name, index.strip_suffix(']')?.parse::<usize>().ok()),
            None => (part, None),
        };
        at = at.get(name)?;
        if let Some(index) = index {
            at = at.get(index)?;
        }
    }
    Some(at).filter(|found| !found.is_null())
}
