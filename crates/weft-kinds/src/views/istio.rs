// SPDX-License-Identifier: Apache-2.0
//! Views of `networking.istio.io` (v1, v1beta1, v1alpha3 have one form): VirtualService,
//! DestinationRule, Gateway. Fields that weft does not do yet are read as raw JSON, so that
//! the compiler can name them in a warning instead of ignoring them.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::Labels;
use super::balancing::{ConsistentHash, LocalityLb, RetryBudget, Warmup, ZoneAwareLb};

pub const GROUP: &str = "networking.istio.io";

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct VirtualService {
    pub spec: VirtualServiceSpec,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VirtualServiceSpec {
    pub hosts: Vec<Arc<str>>,
    /// Empty means `mesh`.
    pub gateways: Vec<Arc<str>>,
    pub http: Vec<HttpRoute>,
    pub tcp: Vec<TcpRoute>,
    pub tls: Vec<TcpRoute>,
    /// Empty means `*`.
    pub export_to: Vec<Arc<str>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRoute {
    pub name: Arc<str>,
    #[serde(rename = "match")]
    pub matches: Vec<HttpMatch>,
    pub route: Vec<HttpDestination>,
    pub redirect: Option<Redirect>,
    pub direct_response: Option<DirectResponse>,
    pub rewrite: Option<Rewrite>,
    pub timeout: Option<Arc<str>>,
    pub retries: Option<Retries>,
    pub headers: Option<Headers>,
    pub fault: Option<Fault>,
    pub mirror: Option<Destination>,
    pub mirror_percentage: Option<Percent>,
    /// Deprecated, and in two spellings.
    #[serde(alias = "mirror_percent")]
    pub mirror_percent: Option<u32>,
    pub mirrors: Vec<HttpMirror>,
    pub cors_policy: Option<CorsPolicy>,
    pub delegate: Option<Delegate>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Fault {
    pub delay: Option<FaultDelay>,
    pub abort: Option<FaultAbort>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FaultDelay {
    pub fixed_delay: Option<Arc<str>>,
    pub exponential_delay: Option<Arc<str>>,
    pub percentage: Option<Percent>,
    pub percent: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FaultAbort {
    pub http_status: Option<u16>,
    pub grpc_status: Option<Arc<str>>,
    #[serde(rename = "http2Error")]
    pub http2_error: Option<Arc<str>>,
    pub percentage: Option<Percent>,
}

/// Out of 100; an empty one is 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Percent {
    pub value: Option<serde_json::Number>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct HttpMirror {
    pub destination: Destination,
    pub percentage: Option<Percent>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CorsPolicy {
    /// Exact texts, the form before `allowOrigins`.
    pub allow_origin: Vec<Arc<str>>,
    pub allow_origins: Vec<StringMatch>,
    pub allow_methods: Vec<Arc<str>>,
    pub allow_headers: Vec<Arc<str>>,
    pub expose_headers: Vec<Arc<str>>,
    pub max_age: Option<Arc<str>>,
    pub allow_credentials: Option<bool>,
    /// `FORWARD` (or absent) or `IGNORE`.
    pub unmatched_preflights: Option<Arc<str>>,
}

/// Another VirtualService whose rules are used for what this rule matches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Delegate {
    pub name: Arc<str>,
    pub namespace: Arc<str>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpMatch {
    pub name: Arc<str>,
    pub uri: Option<StringMatch>,
    pub ignore_uri_case: bool,
    pub scheme: Option<StringMatch>,
    pub method: Option<StringMatch>,
    pub authority: Option<StringMatch>,
    pub headers: BTreeMap<Arc<str>, StringMatch>,
    pub without_headers: BTreeMap<Arc<str>, StringMatch>,
    pub query_params: BTreeMap<Arc<str>, StringMatch>,
    pub port: Option<u16>,
    pub source_labels: Labels,
    pub source_namespace: Option<Arc<str>>,
    pub gateways: Vec<Arc<str>>,
}

/// One of them; none (an empty object) asks only for presence.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct StringMatch {
    pub exact: Option<Arc<str>>,
    pub prefix: Option<Arc<str>>,
    pub regex: Option<Arc<str>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct HttpDestination {
    pub destination: Destination,
    pub weight: Option<u32>,
    pub headers: Option<Headers>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Destination {
    pub host: Arc<str>,
    pub subset: Arc<str>,
    pub port: Option<PortNumber>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PortNumber {
    pub number: u16,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Redirect {
    pub uri: Option<Arc<str>>,
    pub authority: Option<Arc<str>>,
    pub port: Option<u16>,
    pub derive_port: Option<Arc<str>>,
    pub scheme: Option<Arc<str>>,
    pub redirect_code: Option<u16>,
    /// In the place of the prefix that matched.
    pub prefix_rewrite: Option<Arc<str>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct DirectResponse {
    pub status: u16,
    pub body: Option<DirectBody>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct DirectBody {
    pub string: Option<Arc<str>>,
    /// Base64.
    pub bytes: Option<Arc<str>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rewrite {
    pub uri: Option<Arc<str>>,
    pub authority: Option<Arc<str>>,
    pub uri_regex_rewrite: Option<RegexRewrite>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RegexRewrite {
    #[serde(rename = "match")]
    pub find: Arc<str>,
    pub rewrite: Arc<str>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Retries {
    pub attempts: Option<u32>,
    pub per_try_timeout: Option<Arc<str>>,
    pub retry_on: Option<Arc<str>>,
    pub backoff: Option<Arc<str>>,
    pub retry_ignore_previous_hosts: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Headers {
    pub request: Option<HeaderOperations>,
    pub response: Option<HeaderOperations>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct HeaderOperations {
    pub set: BTreeMap<Arc<str>, Arc<str>>,
    pub add: BTreeMap<Arc<str>, Arc<str>>,
    pub remove: Vec<Arc<str>>,
}

/// Of `tcp[]` and of `tls[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct TcpRoute {
    #[serde(rename = "match")]
    pub matches: Vec<L4Match>,
    pub route: Vec<HttpDestination>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct L4Match {
    pub port: Option<u16>,
    pub source_labels: Labels,
    pub source_namespace: Option<Arc<str>>,
    pub gateways: Vec<Arc<str>>,
    pub destination_subnets: Vec<Arc<str>>,
    pub source_subnet: Option<Arc<str>>,
    /// Of `tls[]` only, which needs some.
    pub sni_hosts: Vec<Arc<str>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct DestinationRule {
    pub spec: DestinationRuleSpec,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DestinationRuleSpec {
    pub host: Arc<str>,
    pub traffic_policy: Option<TrafficPolicy>,
    pub subsets: Vec<Subset>,
    pub export_to: Vec<Arc<str>>,
    pub workload_selector: Option<WorkloadSelector>,
}

/// Clients of the object's own namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadSelector {
    pub match_labels: Labels,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Subset {
    pub name: Arc<str>,
    pub labels: Labels,
    pub traffic_policy: Option<TrafficPolicy>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficPolicy {
    pub load_balancer: Option<LoadBalancer>,
    pub connection_pool: Option<ConnectionPool>,
    pub outlier_detection: Option<OutlierDetection>,
    pub tls: Option<ClientTls>,
    pub tunnel: Option<Tunnel>,
    pub proxy_protocol: Option<Value>,
    pub retry_budget: Option<RetryBudget>,
    pub port_level_settings: Vec<PortTrafficPolicy>,
}

/// Bytes go to their host through another proxy, which the rule's host is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Tunnel {
    pub protocol: Arc<str>,
    pub target_host: Arc<str>,
    /// 0 for what is no port, of which the rule's status warns: nothing else of it is lost.
    #[serde(deserialize_with = "port_or_none")]
    pub target_port: u16,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortTrafficPolicy {
    pub port: PortNumber,
    pub load_balancer: Option<LoadBalancer>,
    pub connection_pool: Option<ConnectionPool>,
    pub outlier_detection: Option<OutlierDetection>,
    pub tls: Option<ClientTls>,
}

/// How clients of a host speak TLS to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientTls {
    /// `DISABLE` (or absent), `SIMPLE`, `MUTUAL`, `ISTIO_MUTUAL`
    pub mode: Arc<str>,
    pub client_certificate: Option<Arc<str>>,
    pub private_key: Option<Arc<str>>,
    /// A file of the proxy's machine, or `system`.
    pub ca_certificates: Option<Arc<str>>,
    pub ca_crl: Option<Arc<str>>,
    /// A Secret.
    pub credential_name: Option<Arc<str>>,
    pub subject_alt_names: Vec<Arc<str>>,
    pub sni: Option<Arc<str>>,
    pub insecure_skip_verify: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancer {
    pub simple: Option<Arc<str>>,
    pub consistent_hash: Option<ConsistentHash>,
    pub locality_lb_setting: Option<LocalityLb>,
    pub zone_aware_lb_setting: Option<ZoneAwareLb>,
    pub warmup: Option<Warmup>,
    /// Deprecated by `warmup`.
    pub warmup_duration_secs: Option<Arc<str>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ConnectionPool {
    pub tcp: Option<TcpPool>,
    pub http: Option<HttpPool>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpPool {
    pub max_connections: Option<u32>,
    pub connect_timeout: Option<Arc<str>>,
    pub idle_timeout: Option<Arc<str>>,
    pub tcp_keepalive: Option<TcpKeepalive>,
    pub max_connection_duration: Option<Arc<str>>,
}

/// Empty asks for it as it usually is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct TcpKeepalive {
    pub probes: Option<u32>,
    pub time: Option<Arc<str>>,
    pub interval: Option<Arc<str>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpPool {
    #[serde(rename = "http1MaxPendingRequests")]
    pub http1_max_pending_requests: Option<u32>,
    #[serde(rename = "http2MaxRequests")]
    pub http2_max_requests: Option<u32>,
    pub idle_timeout: Option<Arc<str>>,
    pub max_requests_per_connection: Option<u32>,
    pub max_retries: Option<u32>,
    pub max_concurrent_streams: Option<u32>,
    /// `DEFAULT`, `DO_NOT_UPGRADE`, `UPGRADE`
    pub h2_upgrade_policy: Option<Arc<str>>,
    pub use_client_protocol: Option<bool>,
    pub http2_keep_alive: Option<Http2KeepAlive>,
}

/// PINGs of HTTP/2.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Http2KeepAlive {
    pub interval: Option<Arc<str>>,
    pub timeout: Option<Arc<str>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OutlierDetection {
    #[serde(rename = "consecutive5xxErrors")]
    pub consecutive_5xx_errors: Option<u32>,
    pub consecutive_gateway_errors: Option<u32>,
    pub consecutive_errors: Option<u32>,
    pub interval: Option<Arc<str>>,
    pub base_ejection_time: Option<Arc<str>>,
    pub max_ejection_percent: Option<u32>,
    pub min_health_percent: Option<u32>,
    pub split_external_local_origin_errors: Option<bool>,
    pub consecutive_local_origin_failures: Option<u32>,
    pub outlier_detection_http_error_codes: Vec<u16>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Gateway {
    pub spec: GatewaySpec,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct GatewaySpec {
    pub selector: Labels,
    pub servers: Vec<Server>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Server {
    pub port: ServerPort,
    pub hosts: Vec<Arc<str>>,
    pub tls: Option<ServerTls>,
    pub name: Arc<str>,
    pub bind: Option<Arc<str>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ServerPort {
    pub number: u16,
    pub protocol: Arc<str>,
    pub name: Arc<str>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServerTls {
    pub mode: Arc<str>,
    pub credential_name: Arc<str>,
    pub credential_names: Vec<Arc<str>>,
    /// A Secret or a ConfigMap with the authorities of clients' certificates.
    pub ca_cert_credential_name: Arc<str>,
    pub https_redirect: bool,
    pub insecure_skip_verify: Option<bool>,
    pub min_protocol_version: Option<Arc<str>>,
    pub max_protocol_version: Option<Arc<str>>,
    pub cipher_suites: Vec<Arc<str>>,
    pub subject_alt_names: Vec<Arc<str>>,
    pub verify_certificate_spki: Vec<Arc<str>>,
    pub verify_certificate_hash: Vec<Arc<str>>,
    pub ca_crl: Option<Arc<str>>,
    pub server_certificate: Option<Arc<str>>,
    pub tls_certificates: Vec<Value>,
}

fn port_or_none<'de, D: Deserializer<'de>>(from: D) -> Result<u16, D::Error> {
    let value = Value::deserialize(from)?;
    let number = value.as_u64().or_else(|| value.as_str()?.parse().ok());
    Ok(number.and_then(|n| u16::try_from(n).ok()).unwrap_or_default())
}

// === impl VirtualService ===

impl VirtualServiceSpec {
    /// Whether it speaks for sidecars (Istio's reserved gateway `mesh`).
    pub fn is_mesh(&self) -> bool {
        self.gateways.is_empty() || self.gateways.iter().any(|g| &**g == "mesh")
    }
}
