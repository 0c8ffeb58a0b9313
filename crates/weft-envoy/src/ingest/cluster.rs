// SPDX-License-Identifier: Apache-2.0
//! Clusters: a host of the model each, with one backend for all of it and one for each part that
//! routes name. Endpoints that are names become a [`DnsSet`], which its owner resolves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde_json::{Map, Value};
use weft_model::{
    Backend, BackendPolicy, Endpoint, EndpointSet, HashTable, Hashing, Host, HostPort, Labels,
    LbPolicy, Limits, Origin, Outlier, Protection, Protocol, Resource, ResourceName, RetryBudget,
    Root, Warmup, backend_child, endpoints_child,
};

use super::options::{NotDone, Upstream};
use super::{Context, endpoints, health, options, outlier, tls};
use crate::read::Message;

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const CONNECT_MS: u64 = 5_000;
const REFRESH_MS: u64 = 5_000;
/// Envoy's limits of a cluster that says nothing.
const USUAL: Limits = Limits {
    connections_max: Some(1_024),
    pending_max: Some(1_024),
    requests_max: Some(1_024),
    retries_max: Some(3),
};
const PANIC_BASIS_POINTS: u32 = 5_000;

const PASSED_OVER: &[&str] = &["alt_stat_name", "metadata", "per_connection_buffer_limit_bytes"];

const METRICS: &str = "metrics are weft's own, /stats/prometheus of the admin door shows them";
const NAMES: &str = "names are asked for at dns_refresh_rate, whatever the answer";
const AHEAD: &str = "no connection is opened before it is needed";
const NOT_DONE: NotDone = &[
    ("track_timeout_budgets", &["false"], METRICS),
    ("track_cluster_stats", &["{}"], METRICS),
    ("wait_for_warm_on_init", &["true"], "when listeners open is weft's own"),
    ("dns_jitter", &["0s"], NAMES),
];
const PRECONNECT: NotDone = &[
    ("per_upstream_preconnect_ratio", &["1", "1.0"], AHEAD),
    ("predictive_preconnect_ratio", &["0", "0.0", "1", "1.0"], AHEAD),
];
const DNS_FAILURES: NotDone = &[("base_interval", &[], NAMES), ("max_interval", &[], NAMES)];
const COMMON_LB: NotDone = &[
    ("update_merge_window", &["0s"], "a change of an instance counts at once"),
    ("ignore_new_hosts_until_first_hc", &["false"], "when a new instance counts is weft's own"),
];
const BREAKER: NotDone = &[
    ("track_remaining", &["false"], METRICS),
    ("max_connection_pools", &["4294967295"], "a cluster's pools have no limit of their own"),
];
const RING: NotDone = &[
    ("maximum_ring_size", &["8388608"], "a ring is as large as its weights ask for"),
    ("hash_function", &["XX_HASH"], "what is hashed is hashed by weft's own function"),
];

/// What is asked for is done only when it is what weft does anyhow.
const FLAGS: &[(&str, bool, &str)] = &[
    ("respect_dns_ttl", false, "names are asked for at dns_refresh_rate"),
    ("connection_pool_per_downstream_connection", false, "clients share connections"),
];

/// A set whose endpoints are named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsSet {
    pub name: ResourceName,
    pub refresh_ms: u64,
    /// Only the first address of each name counts.
    logical: bool,
    family: Family,
    set: EndpointSet,
    /// Those that have names; their addresses are made up.
    named: Vec<(Arc<str>, Endpoint)>,
}

/// What names were found to mean. A name that nobody could resolve keeps what it meant.
pub type Resolved = BTreeMap<Arc<str>, Vec<IpAddr>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Any,
    V4,
    V6,
    /// IPv6 when there is any, otherwise IPv4.
    V6First,
    V4First,
}

/// The port of every cluster: its first endpoint's. Routes name backends by it.
pub fn ports(map: &Map<String, Value>) -> BTreeMap<&str, u16> {
    let get = |v: &Value, names: [&str; 2]| names.iter().find_map(|n| v.get(*n).cloned());
    let resources = map.get("static_resources").or_else(|| map.get("staticResources"));
    let clusters = resources.and_then(|r| r.get("clusters")).and_then(Value::as_array);
    let each = clusters.into_iter().flatten();
    each.filter_map(|cluster| {
        let name = cluster.get("name")?.as_str()?;
        let first = || {
            let load = get(cluster, ["load_assignment", "loadAssignment"])?;
            let group = load.get("endpoints")?.as_array()?.first()?.clone();
            let endpoint =
                get(&group, ["lb_endpoints", "lbEndpoints"])?.as_array()?.first()?.clone();
            let address = endpoint.get("endpoint")?.get("address")?.clone();
            let socket = get(&address, ["socket_address", "socketAddress"])?;
            let port = get(&socket, ["port_value", "portValue"])?;
            port.as_u64().and_then(|p| u16::try_from(p).ok())
        };
        Some((name, first().unwrap_or(0)))
    })
    .collect()
}

/// Reads one cluster.
pub fn read(cluster: &Message<'_>, context: &Context<'_>) {
    not_served(cluster);
    let Some(name) = cluster.text("name") else {
        cluster.error("name", "a cluster needs a name");
        return;
    };
    let port = context.clusters.get(name).copied().unwrap_or(0);
    let service: Arc<str> = super::rooted(name).into();
    let root = Root::host(service.clone());
    let origin = Origin {
        kind: "Envoy".into(),
        namespace: "cluster".into(),
        name: name.into(),
        field: "".into(),
    };
    let mut upstream = Upstream::default();
    let protocol = protocol(cluster, &mut upstream);
    let mut policy = policy(cluster, &root, context);
    used(upstream, &mut policy);
    let set = EndpointSet {
        service: service.clone(),
        namespace: "".into(),
        port,
        protocol,
        endpoints: Vec::new(),
    };
    let endpoints_name = root.child(endpoints_child(port));
    let (set, named) = endpoints::read(cluster, set, &mut policy);
    let discovery = cluster.word("type");
    let discovery = discovery.as_deref().unwrap_or("STATIC");
    let dns = dns(cluster, discovery, endpoints_name.clone(), set, named);
    let ports = vec![HostPort {
        port,
        name: "".into(),
        protocol,
        backend: backend_child(port, "").into(),
        upstream_port: None,
    }];
    let host = Host { name: service.clone(), aliases: Vec::new(), addresses: Vec::new(), ports };
    context.put(root.own(), Resource::Host(host));
    let made = |subset: &str, selector: Labels| Backend {
        service: service.clone(),
        port,
        subset: subset.into(),
        selector,
        policy: policy.clone(),
        origin: Some(origin.clone()),
    };
    let subsets = context.subsets.borrow().get(name).cloned().unwrap_or_default();
    let keys = subset_keys(cluster);
    for (subset, selector) in subsets {
        // A part that no selector speaks of is all of the cluster.
        let known = keys.iter().any(|keys| selector.keys().all(|k| keys.contains(&**k)));
        let selector = if known { selector } else { Labels::new() };
        let child = root.child(backend_child(port, &subset));
        context.put(child, Resource::Backend(made(&subset, selector)));
    }
    let whole = Resource::Backend(made("", Labels::new()));
    context.put(root.child(backend_child(port, "")), whole);
    match dns {
        Ok(set) => context.put(endpoints_name, Resource::Endpoints(set)),
        Err(set) => {
            let none = set.endpoints(&Resolved::new());
            context.put(endpoints_name, Resource::Endpoints(none));
            context.names.borrow_mut().push(*set);
        }
    }
}

/// Passes over what changes nothing, and lists what does.
fn not_served(cluster: &Message<'_>) {
    cluster.pass_over(PASSED_OVER);
    options::not_done(cluster, NOT_DONE);
    options::http_1(cluster);
    options::flags(cluster, FLAGS);
    if let Some(preconnect) = cluster.message("preconnect_policy") {
        options::not_done(&preconnect, PRECONNECT);
    }
    if let Some(rate) = cluster.message("dns_failure_refresh_rate") {
        options::not_done(&rate, DNS_FAILURES);
    }
}

/// A set as it is, or the names to resolve for it.
fn dns(
    cluster: &Message<'_>,
    discovery: &str,
    name: ResourceName,
    set: EndpointSet,
    named: Vec<(Arc<str>, Endpoint)>,
) -> Result<EndpointSet, Box<DnsSet>> {
    let family = match cluster.word("dns_lookup_family").as_deref().unwrap_or("AUTO") {
        "AUTO" => Family::V6First,
        "V4_ONLY" => Family::V4,
        "V6_ONLY" => Family::V6,
        "V4_PREFERRED" => Family::V4First,
        "ALL" => Family::Any,
        other => {
            cluster.error("dns_lookup_family", format!("{other:?} is none"));
            Family::Any
        }
    };
    let refresh_ms = cluster.duration("dns_refresh_rate").unwrap_or(REFRESH_MS).max(100);
    let logical = discovery == "LOGICAL_DNS";
    match discovery {
        "STATIC" => {
            if let Some((host, _)) = named.first() {
                let why =
                    format!("{host:?} is no IP address; names need STRICT_DNS or LOGICAL_DNS");
                cluster.error("load_assignment", why);
            }
            Ok(set)
        }
        "STRICT_DNS" | "LOGICAL_DNS" if named.is_empty() => Ok(set),
        "STRICT_DNS" | "LOGICAL_DNS" => {
            Err(Box::new(DnsSet { name, refresh_ms, logical, family, set, named }))
        }
        other => {
            cluster.unsupported("type", format!("{other}: endpoints are STATIC or DNS names"));
            Ok(set)
        }
    }
}

/// What a cluster's instances speak, and how connections to them are used.
fn protocol(cluster: &Message<'_>, upstream: &mut Upstream) -> Protocol {
    let mut out = Protocol::Http1;
    believed(cluster);
    upstream.kept_alive(cluster);
    upstream.requests(cluster);
    upstream.common(cluster);
    if upstream.http_2(cluster) {
        out = Protocol::Http2;
    }
    cluster.entries("typed_extension_protocol_options", |name, config| {
        let Some((kind, given)) = config.typed() else { return };
        if kind != HTTP_OPTIONS {
            given.waive();
            given.unsupported("@type", format!("{name}: {kind} is none of weft's"));
            return;
        }
        believed(&given);
        upstream.common(&given);
        if let Some(explicit) = given.message("explicit_http_config") {
            options::http_1(&explicit);
            if upstream.http_2(&explicit) {
                out = Protocol::Http2;
            }
        } else if let Some(like) = given.message("use_downstream_protocol_config") {
            options::http_1(&like);
            upstream.http_2(&like);
            out = Protocol::Detect;
        }
    });
    out
}

/// `UpstreamHttpProtocolOptions`: which name a server's certificate must have.
fn believed(message: &Message<'_>) {
    if let Some(options) = message.message("upstream_http_protocol_options") {
        tls::judged_by_sni(&options, "auto_san_validation");
    }
}

/// What is said of a cluster's connections.
fn used(upstream: Upstream, policy: &mut BackendPolicy) {
    let Upstream { connections, idle_ms, stream_ms } = upstream;
    policy.idle_timeout_ms = idle_ms.unwrap_or(policy.idle_timeout_ms);
    policy.connections = (!connections.is_usual()).then(|| Arc::new(connections));
    if stream_ms.is_some() {
        let protection = policy.protection.get_or_insert_default();
        protection.timeouts.stream_ms = stream_ms;
    }
}

fn policy(cluster: &Message<'_>, root: &Root, context: &Context<'_>) -> BackendPolicy {
    let (tls, proxy_protocol) = tls::upstream(cluster, context);
    let mut out = BackendPolicy {
        lb: balancing(cluster, root, context),
        connect_timeout_ms: cluster.duration("connect_timeout").unwrap_or(CONNECT_MS),
        limits: USUAL,
        outlier: Outlier::off(),
        warmup: warmup(cluster),
        panic_basis_points: PANIC_BASIS_POINTS,
        tls: tls.map(Box::new),
        proxy_protocol,
        ..BackendPolicy::default()
    };
    if let Some(breakers) = cluster.message("circuit_breakers") {
        breakers.each("thresholds", |limits| breaker(&limits, &mut out));
        breakers.each("per_host_thresholds", |limits| {
            limits.waive();
            breakers.unsupported("per_host_thresholds", "limits are of a whole cluster");
        });
    }
    if let Some(detection) = cluster.message("outlier_detection") {
        out.outlier = outlier::read(&detection);
    }
    let mut checks = cluster.map("health_checks", |check| {
        health::read(&check, cluster.text("name").unwrap_or_default())
    });
    if checks.len() > 1 {
        cluster.unsupported("health_checks", "a cluster has one health check");
    }
    if let Some(check) = checks.pop() {
        let protection = Protection { health_check: Some(check), ..Protection::default() };
        out.protection = Some(Box::new(protection));
    }
    if let Some(common) = cluster.message("common_lb_config") {
        options::not_done(&common, COMMON_LB);
        let kept = "connections of those that stay are kept";
        options::flags(&common, &[("close_connections_on_host_set_change", false, kept)]);
        // Weights of places; the endpoints' reader asks for them.
        drop(common.message("locality_weighted_lb_config"));
        if let Some(hashing) = common.message("consistent_hashing_lb_config") {
            let percent = hashing.number::<u32>("hash_balance_factor").filter(|n| *n > 0);
            if let LbPolicy::Hash(hash) = &mut out.lb {
                hash.load_max_basis_points = percent.map(|n| n.saturating_mul(100));
            }
        }
        if let Some(panic) = common.message("healthy_panic_threshold") {
            out.panic_basis_points = basis_points(panic.float("value").unwrap_or(0.0));
        }
    }
    out
}

fn breaker(limits: &Message<'_>, out: &mut BackendPolicy) {
    options::not_done(limits, BREAKER);
    if !matches!(limits.word("priority").as_deref(), None | Some("DEFAULT")) {
        limits.waive();
        limits.unsupported("priority", "requests have one priority");
        return;
    }
    let get = |field, usual: Option<u32>| limits.number::<u32>(field).or(usual);
    out.limits = Limits {
        connections_max: get("max_connections", USUAL.connections_max),
        pending_max: get("max_pending_requests", USUAL.pending_max),
        requests_max: get("max_requests", USUAL.requests_max),
        retries_max: get("max_retries", USUAL.retries_max),
    };
    if let Some(budget) = limits.message("retry_budget") {
        let percent = budget.message("budget_percent");
        let percent = percent.and_then(|p| p.float("value")).unwrap_or(20.0);
        let usual = RetryBudget::default();
        let interval = budget.duration("budget_interval").filter(|ms| *ms > 0);
        let interval = interval.map(|ms| u32::try_from(ms).unwrap_or(u32::MAX));
        out.retry_budget = RetryBudget {
            basis_points: basis_points(percent),
            min_per_second: 0,
            min_concurrent: budget.number::<u32>("min_retry_concurrency").unwrap_or(3),
            interval_ms: interval.unwrap_or(usual.interval_ms),
        };
        out.limits.retries_max = None;
    }
}

/// Per cent as basis points.
fn basis_points(percent: f64) -> u32 {
    let points = (percent.clamp(0.0, 100.0) * 100.0).round();
    // Without a cast: the clamp leaves at most 10,000.
    format!("{points:.0}").parse().unwrap_or(0)
}

fn balancing(cluster: &Message<'_>, root: &Root, context: &Context<'_>) -> LbPolicy {
    if cluster.is_set("load_balancing_policy") {
        if let Some(policy) = cluster.message("load_balancing_policy") {
            policy.waive();
        }
        cluster.unsupported("load_balancing_policy", "use lb_policy");
    }
    let by = || context.hashed.borrow().get(&root.to_string()).cloned();
    let hash = |table| match by() {
        Some(by) => LbPolicy::Hash(Box::new(Hashing { by, table, load_max_basis_points: None })),
        // Envoy chooses by chance when no route says what to hash.
        None => LbPolicy::Random,
    };
    match cluster.word("lb_policy").as_deref().unwrap_or("ROUND_ROBIN") {
        "ROUND_ROBIN" => LbPolicy::RoundRobin,
        "LEAST_REQUEST" => LbPolicy::LeastRequest,
        "RANDOM" => LbPolicy::Random,
        "RING_HASH" => {
            let config = cluster.message("ring_hash_lb_config");
            let size = config.and_then(|config| {
                options::not_done(&config, RING);
                config.number::<u32>("minimum_ring_size")
            });
            hash(HashTable::Ring { points_min: size.unwrap_or(1_024) })
        }
        "MAGLEV" => {
            let config = cluster.message("maglev_lb_config");
            let size = config.and_then(|config| config.number::<u32>("table_size"));
            hash(HashTable::Maglev { size: size.unwrap_or(65_537) })
        }
        other => {
            cluster.unsupported("lb_policy", format!("weft does not balance by {other}"));
            LbPolicy::RoundRobin
        }
    }
}

/// How new endpoints begin.
fn warmup(cluster: &Message<'_>) -> Option<Warmup> {
    let fields = ["round_robin_lb_config", "least_request_lb_config"];
    let config = fields.iter().find_map(|field| cluster.message(field))?;
    if let Some(bias) = config.message("active_request_bias") {
        bias.pass_over(&["runtime_key"]);
        let why = "what is under way counts as it is, 1.0";
        bias.not_done("default_value", &["1", "1.0"], why);
    }
    if config.number::<u32>("choice_count").is_some_and(|n| n != 2) {
        config.unsupported("choice_count", "two are compared");
    }
    let slow = config.message("slow_start_config")?;
    let aggression = slow.message("aggression");
    let aggression = aggression.and_then(|a| {
        a.pass_over(&["runtime_key"]);
        a.float("default_value")
    });
    let least = slow.message("min_weight_percent").and_then(|p| p.float("value"));
    let permille = aggression.map_or(1_000, |a| basis_points(a.clamp(0.1, 10.0) * 10.0));
    Some(Warmup {
        duration_ms: slow.duration("slow_start_window").unwrap_or(0),
        min_basis_points: basis_points(least.unwrap_or(10.0)),
        aggression_permille: permille.max(1),
    })
}

/// The keys by which parts of a cluster may be named.
fn subset_keys(cluster: &Message<'_>) -> Vec<BTreeSet<String>> {
    let Some(config) = cluster.message("lb_subset_config") else { return Vec::new() };
    if !matches!(config.word("fallback_policy").as_deref(), None | Some("NO_FALLBACK")) {
        config.unsupported("fallback_policy", "a part without endpoints serves nothing");
    }
    config.map("subset_selectors", |selector| {
        if !matches!(
            selector.word("fallback_policy").as_deref(),
            None | Some("NOT_DEFINED" | "NO_FALLBACK")
        ) {
            selector.unsupported("fallback_policy", "a part without endpoints serves nothing");
        }
        Some(selector.texts("keys").into_iter().map(str::to_owned).collect())
    })
}

/// What balancers read of metadata.
pub fn labels(metadata: &Message<'_>) -> Labels {
    metadata.pass_over(&["typed_filter_metadata"]);
    let mut out = Labels::new();
    let Some(item) = metadata.item("filter_metadata") else { return out };
    let Some(map) = item.value.get("envoy.lb").and_then(Value::as_object) else { return out };
    for (key, value) in map {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        out.insert(key.as_str().into(), text.into());
    }
    out
}

// === impl DnsSet ===

impl DnsSet {
    /// A set all of whose IPv4 addresses count, or its IPv6 ones where there are no others; of
    /// those in `named` only the port is known.
    pub fn new(name: ResourceName, set: EndpointSet, named: Vec<(Arc<str>, Endpoint)>) -> Self {
        let (refresh_ms, family) = (REFRESH_MS, Family::V4First);
        Self { name, refresh_ms, logical: false, family, set, named }
    }

    /// The names to resolve.
    pub fn hosts(&self) -> impl Iterator<Item = &Arc<str>> {
        self.named.iter().map(|(host, _)| host)
    }

    /// The set, as far as its names are known.
    pub fn endpoints(&self, resolved: &Resolved) -> EndpointSet {
        let mut out = self.set.clone();
        for (host, endpoint) in &self.named {
            let all = resolved.get(host).map(Vec::as_slice).unwrap_or_default();
            let most = if self.logical { 1 } else { usize::MAX };
            for ip in self.family.of(all).into_iter().take(most) {
                let address = SocketAddr::new(ip, endpoint.address.port());
                let id = format!("{}@{ip}", endpoint.id);
                out.endpoints.push(Endpoint { id: id.into(), address, ..endpoint.clone() });
            }
        }
        out
    }
}

impl Family {
    fn of(self, all: &[IpAddr]) -> Vec<IpAddr> {
        let only = |v4: bool| -> Vec<IpAddr> {
            all.iter().copied().filter(|ip| ip.is_ipv4() == v4).collect()
        };
        let first = |v4: bool| match only(v4) {
            some if !some.is_empty() => some,
            _ => only(!v4),
        };
        match self {
            Self::Any => all.to_vec(),
            Self::V4 => only(true),
            Self::V6 => only(false),
            Self::V4First => first(true),
            Self::V6First => first(false),
        }
    }
}
