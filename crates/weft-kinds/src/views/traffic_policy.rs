// SPDX-License-Identifier: Apache-2.0
//! View of `weft.dev` TrafficPolicy: how traffic to Services, routes and Gateways is balanced,
//! checked and limited. A view only; control gives it its meaning.

use std::sync::Arc;

use serde::Deserialize;

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct TrafficPolicy {
    pub spec: TrafficPolicySpec,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficPolicySpec {
    pub target_refs: Vec<TargetRef>,
    pub load_balancer: Option<LoadBalancer>,
    pub connections: Option<Connections>,
    pub retry_budget: Option<RetryBudget>,
    pub outlier: Option<Outlier>,
    pub health_check: Option<HealthCheck>,
    pub adaptive_concurrency: Option<AdaptiveConcurrency>,
    /// `Disabled`, which is all that can be said.
    pub overload_gate: Option<Arc<str>>,
    pub timeouts: Option<Timeouts>,
    pub rate_limits: Vec<RateLimit>,
    pub request_limits: Option<RequestLimits>,
    pub cache: Option<Cache>,
}

/// Gateway API's `LocalPolicyTargetReferenceWithSectionName`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TargetRef {
    pub group: Option<Arc<str>>,
    /// Absent is a Service.
    pub kind: Option<Arc<str>>,
    pub name: Arc<str>,
    pub section_name: Option<Arc<str>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancer {
    #[serde(rename = "type")]
    pub kind: Option<Arc<str>>,
    pub consistent_hash: Option<ConsistentHash>,
    pub locality: Option<Arc<str>>,
    pub panic_percent: Option<u32>,
    pub warmup: Option<Warmup>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConsistentHash {
    pub header: Option<Arc<str>>,
    pub cookie: Option<Arc<str>>,
    #[serde(rename = "cookieTTL")]
    pub cookie_ttl: Option<Arc<str>>,
    pub query_parameter: Option<Arc<str>>,
    #[serde(rename = "sourceIP")]
    pub source_ip: Option<bool>,
    pub table: Option<Arc<str>>,
    pub max_load_percent: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Warmup {
    pub duration: Arc<str>,
    pub minimum_percent: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Connections {
    pub max: Option<u32>,
    pub pending: Option<u32>,
    pub requests: Option<u32>,
    pub retries: Option<u32>,
    pub connect_timeout: Option<Arc<str>>,
    pub idle_timeout: Option<Arc<str>>,
    pub proxy_protocol: Option<Arc<str>>,
    pub requests_per_connection: Option<u32>,
    pub max_age: Option<Arc<str>>,
    pub streams_per_connection: Option<u32>,
    pub protocol: Option<Arc<str>>,
    pub keepalive: Option<Keepalive>,
    pub ping: Option<Ping>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Keepalive {
    pub idle: Option<Arc<str>>,
    pub interval: Option<Arc<str>>,
    pub probes: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ping {
    pub interval: Arc<str>,
    pub timeout: Option<Arc<str>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RetryBudget {
    pub percent: Option<u32>,
    pub min_per_second: Option<u32>,
    pub min_concurrent: Option<u32>,
    pub interval: Option<Arc<str>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Outlier {
    pub consecutive_errors: Option<u32>,
    pub consecutive_gateway_errors: Option<u32>,
    pub consecutive_local_errors: Option<u32>,
    pub statuses: Vec<u16>,
    pub failure_percent: Option<u32>,
    pub interval: Option<Arc<str>>,
    pub base_ejection_time: Option<Arc<str>>,
    pub max_ejection_percent: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HealthCheck {
    #[serde(rename = "type")]
    pub kind: Option<Arc<str>>,
    pub interval: Option<Arc<str>>,
    pub timeout: Option<Arc<str>>,
    pub unhealthy_interval: Option<Arc<str>>,
    pub jitter_percent: Option<u32>,
    pub healthy_threshold: Option<u32>,
    pub unhealthy_threshold: Option<u32>,
    pub port: Option<u16>,
    pub path: Option<Arc<str>>,
    pub host: Option<Arc<str>>,
    pub method: Option<Arc<str>>,
    pub expected_statuses: Vec<StatusRange>,
    pub http2: Option<bool>,
    pub service: Option<Arc<str>>,
    pub send: Option<Arc<str>>,
    pub expect: Vec<Arc<str>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct StatusRange {
    pub from: u16,
    pub to: Option<u16>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AdaptiveConcurrency {
    pub min_limit: Option<u32>,
    pub max_limit: Option<u32>,
    pub tolerance_percent: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Timeouts {
    pub request: Option<Arc<str>>,
    pub backend_request: Option<Arc<str>>,
    pub idle: Option<Arc<str>>,
    pub stream: Option<Arc<str>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RateLimit {
    pub requests: u32,
    pub per: Option<Arc<str>>,
    pub burst: Option<u32>,
    pub by: Vec<LimitBy>,
    pub clients: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct LimitBy {
    #[serde(rename = "type")]
    pub kind: Arc<str>,
    pub header: Option<Arc<str>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestLimits {
    pub body_bytes: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Cache {
    pub object_bytes: Option<u64>,
    pub heuristic_max_age: Option<Arc<str>>,
    pub cookies: Option<bool>,
    pub wait: Option<Arc<str>>,
}

// === impl TargetRef ===

impl TargetRef {
    pub fn kind(&self) -> &str {
        self.kind.as_deref().unwrap_or("Service")
    }

    /// `Kind/namespace/name`: how the World's index names a target.
    pub fn at(&self, namespace: &str) -> Arc<str> {
        target_key(self.kind(), namespace, &self.name)
    }

    /// Whether it takes in a part of its object; `None` asks for the object itself.
    pub fn takes(&self, section: Option<&str>) -> bool {
        self.section_name.is_none() || self.section_name.as_deref() == section
    }
}

/// The index value of an object that policies may be about.
pub fn target_key(kind: &str, namespace: &str, name: &str) -> Arc<str> {
    format!("{kind}/{namespace}/{name}").into()
}
