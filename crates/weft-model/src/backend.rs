// SPDX-License-Identifier: Apache-2.0
//! Backends (Envoy's clusters): what a subset or a client's policy makes of an endpoint set, and
//! everything that decides who of it gets a request. Control compiles it, the proxy obeys it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    Clients, Connections, Endpoint, Labels, Locality, Origin, Protection, Sources, UpstreamTls,
};

/// A named upstream group with its policy: what a subset or a client's policy makes of a set.
/// Named `host:FQDN/backend/PORT` or `host:FQDN/backend/PORT/SUBSET`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// `user.shop.svc.cluster.local`.
    pub service: Arc<str>,
    pub port: u16,
    /// Empty for the whole set.
    #[serde(default)]
    pub subset: Arc<str>,
    /// Labels an endpoint must have.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub selector: Labels,
    pub policy: BackendPolicy,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct BackendPolicy {
    pub lb: LbPolicy,
    pub connect_timeout_ms: u64,
    /// Idle upstream connections are closed after this.
    pub idle_timeout_ms: u64,
    /// What else is said of them; of most nothing is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<Arc<Connections>>,
    pub outlier: Outlier,
    pub retry_budget: RetryBudget,
    pub limits: Limits,
    #[serde(skip_serializing_if = "LocalityPolicy::is_any")]
    pub locality: LocalityPolicy,
    /// When less than this share of the endpoints can be used, all are, whatever their health
    /// (Envoy's panic threshold). 0: ejection alone gives way, and only when nobody else is left.
    #[serde(skip_serializing_if = "is_zero")]
    pub panic_basis_points: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup: Option<Warmup>,
    /// What protects it, and us from it; most have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protection: Option<Box<Protection>>,
    /// Its instances speak TLS themselves; it takes the place of the mesh's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Box<UpstreamTls>>,
    /// Connections of bytes begin with the PROXY protocol's header, which says who the client is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ProxyVersion>,
    /// Who set which of these.
    #[serde(skip_serializing_if = "Sources::is_empty")]
    pub sources: Sources,
}

/// Versions of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProxyVersion {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LbPolicy {
    /// Smooth weighted round robin; plain round robin when all weights are equal.
    #[default]
    RoundRobin,
    /// Weighted random.
    Random,
    /// Power of two choices over requests in flight.
    LeastRequest,
    /// Power of two choices over response time, as a moving average that follows peaks at once,
    /// times requests in flight.
    PeakEwma,
    /// The same key goes to the same endpoint while that can be used.
    Hash(Box<Hashing>),
    /// The address that a captured connection was made to. Where that is the service's own, or
    /// there is none, as `Random`.
    Passthrough,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Hashing {
    pub by: HashBy,
    pub table: HashTable,
    /// No endpoint has more requests in flight than this share of its part of all (12,500 is a
    /// quarter more); further ones go to the next. `None` is no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_max_basis_points: Option<u32>,
}

/// What of a request is hashed. A request that lacks it goes anywhere.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HashBy {
    /// In lower case.
    Header(Arc<str>),
    Cookie(HashCookie),
    SourceIp,
    Query(Arc<str>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HashCookie {
    pub name: Arc<str>,
    /// Whether a client without the cookie is given one; 0 lasts for its session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
    #[serde(default)]
    pub path: Arc<str>,
    /// Further attributes as they are written: `SameSite=Strict`.
    #[serde(default)]
    pub attributes: Vec<Arc<str>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HashTable {
    /// Points on a ring, at least so many in all.
    Ring { points_min: u32 },
    /// Google's Maglev; its size is made prime.
    Maglev { size: u32 },
}

/// Which places get a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LocalityPolicy {
    /// All alike.
    #[default]
    Any,
    /// Shares by place; the first entry whose `from` takes the client counts.
    Distribute(Vec<Distribution>),
    /// Places by their very names, and their shares of all clients (Envoy's weights of localities).
    /// Those that are not named get requests when none of these has anybody left.
    Weights(Vec<(Locality, u32)>),
    /// The nearest first, the next ones as far as it lacks endpoints.
    Failover(Failover),
    /// Zones of the own region: requests stay in their own as far as it has its part of the
    /// endpoints; the rest goes to zones that have more than theirs. Other regions are further
    /// places of the same kind as `Failover`'s.
    Zones(ZoneAware),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct ZoneAware {
    /// With fewer endpoints that can be used, all zones are alike.
    pub endpoints_min: u32,
    pub failover: Failover,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Distribution {
    pub from: LocalityPattern,
    /// The first pattern that takes an endpoint gives its place the weight.
    pub to: Vec<(LocalityPattern, u32)>,
}

/// `region/zone/sub-zone`, where `*` or nothing takes all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LocalityPattern(pub Arc<str>);

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Failover {
    /// Which region comes after the own one: from, to.
    pub regions: Vec<(Arc<str>, Arc<str>)>,
    /// `label` or `label=value`: an endpoint is nearer the more of these, from the first on, it
    /// shares with the client. Empty compares region, zone and sub-zone.
    pub labels: Vec<Arc<str>>,
}

/// A new endpoint's share grows from `min_basis_points` of its weight to all of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Warmup {
    pub duration_ms: u64,
    pub min_basis_points: u32,
    /// 1,000 grows evenly, more grows sooner.
    pub aggression_permille: u32,
}

/// Passive ejection.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Outlier {
    /// Consecutive 5xx answers, gRPC server faults and, unless counted apart, failures of our own
    /// side of the connection; 0 switches this judgement off.
    pub consecutive_failures: u32,
    /// The same for 502, 503 and 504 alone.
    #[serde(skip_serializing_if = "is_zero")]
    pub consecutive_gateway: u32,
    /// Local-origin failures (no connection, reset, time-out) are counted apart, and so many in a
    /// row eject; 0 never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consecutive_local: Option<u32>,
    /// Statuses that count as failures in the place of 5xx.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub statuses: Vec<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Box<OutlierWindow>>,
    pub base_ejection_ms: u64,
    pub max_ejection_ms: u64,
    /// At most this share of a backend's endpoints is ejected; one always may be.
    pub max_ejection_basis_points: u32,
}

/// Judgement by what all requests of a window of time say.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct OutlierWindow {
    pub interval_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub success_rate: Option<SuccessRate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_share: Option<FailureShare>,
}

/// Ejects who succeeds much less often than the others: below mean − factor × deviation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct SuccessRate {
    pub factor_permille: u32,
    /// Judged only when so many endpoints had so many requests in the window.
    pub endpoints_min: u32,
    pub requests_min: u32,
}

/// Ejects whose requests fail at this share or more.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct FailureShare {
    pub basis_points: u32,
    pub endpoints_min: u32,
    pub requests_min: u32,
}

/// Retries may be at most this share of recent requests, and at least `min_per_second` fit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct RetryBudget {
    pub basis_points: u32,
    pub min_per_second: u32,
    /// So many retries may be under way at a time, whatever the share.
    #[serde(skip_serializing_if = "is_zero")]
    pub min_concurrent: u32,
    /// What is recent.
    pub interval_ms: u32,
}

/// Circuit breakers; `None` is no limit beyond the proxy's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    pub connections_max: Option<u32>,
    /// Requests that may wait for one of these connections.
    pub pending_max: Option<u32>,
    pub requests_max: Option<u32>,
    /// Retries in flight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries_max: Option<u32>,
}

/// What follows the port in the names of children that are about datagrams: a service may have
/// one port number for both.
pub const UDP_MARK: &str = "~udp";

/// What ends the names of children that are for Gateways alone: they may speak another TLS to a
/// service than its sidecars do, and show other certificates.
pub const GATEWAYS_MARK: &str = "~gateways";

/// What stands before the namespace in the names of children that only its own proxies are sent:
/// they take the place of the child whose name comes before it.
pub const CLIENTS_MARK: &str = "~for~";

/// A child's name without [`CLIENTS_MARK`], and whom it is for.
pub fn for_clients(child: &str) -> Option<(&str, Clients<'_>)> {
    let (child, whom) = child.split_once(CLIENTS_MARK)?;
    Some((child, Clients::parse(whom)))
}

/// The child name of a backend.
pub fn backend_child(port: u16, subset: &str) -> String {
    if subset.is_empty() { format!("backend/{port}") } else { format!("backend/{port}/{subset}") }
}

/// The child name of a backend for datagrams.
pub fn udp_backend_child(port: u16) -> String {
    format!("backend/{port}{UDP_MARK}")
}

// === impl Backend ===

impl Backend {
    pub fn selects(&self, endpoint: &Endpoint) -> bool {
        self.selector.iter().all(|(k, v)| endpoint.labels.get(k) == Some(v))
    }
}

// === impl BackendPolicy ===

impl BackendPolicy {
    /// Whether requests are shared by the callers' zones.
    pub fn is_zoned(&self) -> bool {
        matches!(self.locality, LocalityPolicy::Zones(_))
    }
}

// === impl Outlier ===

impl Outlier {
    /// No judgement at all.
    pub fn off() -> Self {
        Self { consecutive_failures: 0, ..Self::default() }
    }

    pub fn is_off(&self) -> bool {
        let streaks = [self.consecutive_failures, self.consecutive_gateway];
        streaks == [0, 0] && self.consecutive_local.unwrap_or(0) == 0 && self.window.is_none()
    }
}

// === impl LocalityPolicy ===

impl LocalityPolicy {
    pub fn is_any(&self) -> bool {
        *self == Self::Any
    }
}

// Its signature is serde's.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

// === defaults ===

impl Default for ZoneAware {
    /// Envoy's.
    fn default() -> Self {
        Self { endpoints_min: 6, failover: Failover::default() }
    }
}

impl Default for BackendPolicy {
    fn default() -> Self {
        Self {
            lb: LbPolicy::default(),
            connect_timeout_ms: 1_000,
            idle_timeout_ms: 60_000,
            connections: None,
            outlier: Outlier::default(),
            retry_budget: RetryBudget::default(),
            limits: Limits::default(),
            locality: LocalityPolicy::default(),
            panic_basis_points: 0,
            warmup: None,
            protection: None,
            tls: None,
            proxy_protocol: None,
            sources: Sources::default(),
        }
    }
}

impl Default for Outlier {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            consecutive_gateway: 0,
            consecutive_local: None,
            statuses: Vec::new(),
            window: None,
            base_ejection_ms: 10_000,
            max_ejection_ms: 300_000,
            max_ejection_basis_points: 5_000,
        }
    }
}

impl Default for OutlierWindow {
    fn default() -> Self {
        Self { interval_ms: 10_000, success_rate: None, failure_share: None }
    }
}

/// Envoy's defaults.
impl Default for SuccessRate {
    fn default() -> Self {
        Self { factor_permille: 1_900, endpoints_min: 5, requests_min: 100 }
    }
}

/// Envoy's defaults.
impl Default for FailureShare {
    fn default() -> Self {
        Self { basis_points: 8_500, endpoints_min: 5, requests_min: 50 }
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { basis_points: 2_000, min_per_second: 10, min_concurrent: 0, interval_ms: 10_000 }
    }
}
