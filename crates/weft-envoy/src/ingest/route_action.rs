// SPDX-License-Identifier: Apache-2.0
//! What a route does: forward, redirect, answer; with its rewrites, time-outs, retries, copies.

use std::sync::Arc;

use weft_model::decide::Authority;
use weft_model::{
    Action, Cors, Filter, HashBy, HashCookie, Labels, Mirror, PathRewrite, Redirect, RedirectPort,
    RegexRewrite, Retry, Rewrite, Share, Target, Timeouts, WeightedBackend,
};

use super::filter::{self, Chain};
use super::upgrade::Upgrades;
use super::{Context, edit, matching};
use crate::read::Message;

/// Envoy's time for a whole request when a route says nothing.
const TIMEOUT_MS: u64 = 15_000;

/// What a route inherits.
#[derive(Debug)]
pub struct Defaults {
    pub filters: Vec<Filter>,
    pub retry: Option<Retry>,
    pub cors: Option<Cors>,
    pub upgrades: Upgrades,
    pub timeouts: Timeouts,
}

/// A route without its match.
#[derive(Debug)]
pub struct Made {
    pub filters: Vec<Filter>,
    pub action: Action,
    pub timeouts: Timeouts,
    pub retry: Retry,
}

/// Envoy repeats nothing unless it is told to.
pub fn no_retry() -> Retry {
    Retry { attempts: 0, on_reset: false, ..Retry::default() }
}

/// Reads the action of a route; `None` when it has none that weft has, which was reported.
pub fn read(
    route: &Message<'_>,
    defaults: &Defaults,
    mut chain: Chain,
    context: &Context<'_>,
) -> Option<Made> {
    chain.judge_order(route, "typed_per_filter_config");
    let mut made = Made {
        filters: chain.filters().collect(),
        action: Action::Forward(Vec::new()),
        timeouts: defaults.timeouts.clone(),
        retry: defaults.retry.clone().unwrap_or_else(no_retry),
    };
    made.filters.extend(edit::filters(route));
    made.filters.extend(defaults.filters.iter().cloned());
    if let Some(action) = route.message("route") {
        forward(&action, defaults, context, &mut made)?;
        return Some(made);
    }
    if let Some(redirect) = route.message("redirect") {
        made.action = Action::Redirect(redirected(&redirect));
        return Some(made);
    }
    if let Some(direct) = route.message("direct_response") {
        let status = direct.number::<u16>("status").unwrap_or(200);
        if !(200..600).contains(&status) {
            direct.error("status", format!("{status} is no status of an answer"));
        }
        let body = context.data(&direct, "body").unwrap_or_default();
        made.action = Action::Direct { status, body };
        return Some(made);
    }
    let other = ["filter_action", "non_forwarding_action"].into_iter().find(|f| route.is_set(f));
    match other {
        Some(field) => {
            if let Some(m) = route.message(field) {
                m.waive();
            }
            route.unsupported(field, "a route forwards, redirects or answers");
        }
        None => route.error("route", "a route needs route, redirect or direct_response"),
    }
    None
}

fn forward(
    action: &Message<'_>,
    defaults: &Defaults,
    context: &Context<'_>,
    made: &mut Made,
) -> Option<()> {
    action.pass_over(&["cluster_not_found_response_code"]);
    action.not_done("include_vh_rate_limits", &["false"], "limits by descriptors are not offered");
    if !matches!(action.word("priority").as_deref(), None | Some("DEFAULT")) {
        action.unsupported("priority", "requests have one priority");
    }
    let policy = action.message("cors").map(|policy| filter::cors(&policy));
    made.filters.extend(policy.or_else(|| defaults.cors.clone()).map(Filter::Cors));
    made.filters.extend(rewrite(action).map(Filter::Rewrite));
    action.each("request_mirror_policies", |mirror| {
        let share = mirror.message("runtime_fraction");
        let share = share.and_then(|f| {
            f.pass_over(&["runtime_key"]);
            matching::share(&f, "default_value")
        });
        let mark_host = mirror.flag("disable_shadow_host_suffix_append") != Some(true);
        let share = share.unwrap_or(Share::ALL);
        if let Some(target) = context.target(&mirror, "cluster", "") {
            made.filters.push(Filter::Mirror(Mirror { target, share, mark_host }));
        }
    });
    made.timeouts.request_ms = Some(action.duration("timeout").unwrap_or(TIMEOUT_MS));
    if let Some(idle) = action.duration("idle_timeout") {
        made.timeouts.idle_ms = Some(idle);
    }
    // 0 lifts what the connection manager says.
    let longest = action.message("max_stream_duration");
    if let Some(ms) = longest.and_then(|longest| longest.duration("max_stream_duration")) {
        made.timeouts.stream_ms = Some(ms).filter(|ms| *ms > 0);
    }
    if let Some(policy) = action.message("retry_policy") {
        made.retry = retry(&policy);
    }
    made.filters.push(defaults.upgrades.with(action).filter());
    let clusters = targets(action, context)?;
    hashed(action, &clusters, context);
    made.action = Action::Forward(clusters);
    Some(())
}

fn targets(action: &Message<'_>, context: &Context<'_>) -> Option<Vec<WeightedBackend>> {
    let outer = labels(action);
    let plain = |target, weight| WeightedBackend { target, weight, filters: Vec::new() };
    if action.is_set("cluster") && action.is_set("weighted_clusters") {
        if let Some(weighted) = action.message("weighted_clusters") {
            weighted.waive();
        }
        action.error("weighted_clusters", "a route forwards to this or to cluster, not to both");
    }
    if action.is_set("cluster") {
        let target = part(action, "cluster", outer, context)?;
        return Some(vec![plain(target, 1)]);
    }
    if let Some(weighted) = action.message("weighted_clusters") {
        weighted.pass_over(&["runtime_key_prefix", "total_weight"]);
        let mut whole = true;
        let shares = weighted.map("clusters", |cluster| {
            let weight = cluster.number::<u32>("weight").unwrap_or(0);
            let own = labels(&cluster);
            let target = part(&cluster, "name", own.or_else(|| outer.clone()), context);
            whole &= target.is_some();
            let filters = edit::filters(&cluster);
            Some(WeightedBackend { filters, ..plain(target?, weight) })
        });
        if whole && shares.iter().all(|share| share.weight == 0) {
            weighted.error("clusters", "their weights sum up to 0");
        }
        return whole.then_some(shares);
    }
    let other = ["cluster_header", "cluster_specifier_plugin", "inline_cluster_specifier_plugin"];
    match other.into_iter().find(|f| action.is_set(f)) {
        Some(field) => action.unsupported(field, "a route names its clusters"),
        None => action.error("cluster", "a route forwards to cluster or weighted_clusters"),
    }
    None
}

/// A cluster, or the part of it that has some labels.
fn part(
    message: &Message<'_>,
    field: &str,
    labels: Option<Labels>,
    context: &Context<'_>,
) -> Option<Target> {
    let Some(labels) = labels else { return context.target(message, field, "") };
    let named: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let subset = named.join(",").replace('/', "~");
    let target = context.target(message, field, &subset)?;
    let cluster = message.text(field)?.to_owned();
    context.subsets.borrow_mut().entry(cluster).or_default().insert(subset, labels);
    Some(target)
}

/// `metadata_match` of the namespace that balancers look at.
fn labels(message: &Message<'_>) -> Option<Labels> {
    let metadata = message.message("metadata_match")?;
    let labels = super::cluster::labels(&metadata);
    (!labels.is_empty()).then_some(labels)
}

fn rewrite(action: &Message<'_>) -> Option<Rewrite> {
    let prefix = action.text("prefix_rewrite").filter(|p| !p.is_empty());
    let path = prefix.map(|p| PathRewrite::Prefix(p.into()));
    let path = path.or_else(|| regex_rewrite(action));
    let host = action.text("host_rewrite_literal").map(Arc::from);
    (path.is_some() || host.is_some()).then_some(Rewrite { host, path })
}

fn regex_rewrite(message: &Message<'_>) -> Option<PathRewrite> {
    let rewrite = message.message("regex_rewrite")?;
    let with = rewrite.text("substitution").unwrap_or("");
    let find = matching::regex_source(&rewrite, "pattern")?;
    match RegexRewrite::new(find, with) {
        Ok(rewrite) => Some(PathRewrite::Regex(rewrite)),
        Err(why) => {
            rewrite.error("pattern", why);
            None
        }
    }
}

fn redirected(message: &Message<'_>) -> Redirect {
    let https = message.flag("https_redirect").unwrap_or(false).then(|| Arc::from("https"));
    let scheme = https.or_else(|| message.text("scheme_redirect").map(Arc::from));
    let path = message.text("path_redirect").map(|p| PathRewrite::Full(p.into()));
    let prefix = || message.text("prefix_rewrite").map(|p| PathRewrite::Prefix(p.into()));
    let path = path.or_else(prefix).or_else(|| regex_rewrite(message));
    if message.flag("strip_query") == Some(true) {
        message.unsupported("strip_query", "a redirect keeps its query");
    }
    let status = match message.word("response_code").as_deref().unwrap_or("MOVED_PERMANENTLY") {
        "MOVED_PERMANENTLY" => 301,
        "FOUND" => 302,
        "SEE_OTHER" => 303,
        "TEMPORARY_REDIRECT" => 307,
        "PERMANENT_REDIRECT" => 308,
        other => {
            message.error("response_code", format!("{other:?} is none"));
            301
        }
    };
    let named = message.text("host_redirect").filter(|h| !h.is_empty());
    let named = named.and_then(|host| {
        let authority = Authority::parse(host);
        if authority.is_none() {
            message.error("host_redirect", format!("{host:?} is no host"));
        }
        authority
    });
    let port = message.number::<u16>("port_redirect").filter(|p| *p != 0);
    let port = port.or_else(|| named.as_ref().and_then(|authority| authority.port));
    let host = named.map(|authority| authority.host.into());
    Redirect { scheme, host, port, path, status, port_from: RedirectPort::Written }
}

/// `RetryPolicy`. weft repeats what cannot have had an effect, and idempotent requests; Envoy's
/// conditions name failures, not requests, so that other methods are not repeated after bytes
/// were sent.
pub fn retry(policy: &Message<'_>) -> Retry {
    let mut out = Retry {
        attempts: policy.number::<u32>("num_retries").unwrap_or(1),
        per_try_timeout_ms: policy.duration("per_try_timeout").filter(|ms| *ms > 0),
        ..no_retry()
    };
    let codes = policy.item("retriable_status_codes");
    let codes = codes.and_then(|c| c.value.as_array().cloned()).unwrap_or_default();
    let codes: Vec<u16> =
        codes.iter().filter_map(|c| c.as_u64().and_then(|c| u16::try_from(c).ok())).collect();
    for condition in policy.text("retry_on").unwrap_or("").split(',').map(str::trim) {
        match condition {
            "" | "connect-failure" | "refused-stream" | "reset-before-request" => {}
            "reset" => out.on_reset = true,
            "gateway-error" => {
                out.on_reset = true;
                out.statuses.extend([502, 503, 504]);
            }
            "5xx" => {
                out.on_reset = true;
                out.statuses.extend(500..600);
            }
            "retriable-4xx" => out.statuses.push(409),
            "retriable-status-codes" => out.statuses.extend(&codes),
            "cancelled" => out.grpc_statuses.push(1),
            "deadline-exceeded" => out.grpc_statuses.push(4),
            "resource-exhausted" => out.grpc_statuses.push(8),
            "internal" => out.grpc_statuses.push(13),
            "unavailable" => out.grpc_statuses.push(14),
            other => policy.unsupported("retry_on", format!("weft does not know {other:?}")),
        }
    }
    out.statuses.sort_unstable();
    out.statuses.dedup();
    if let Some(backoff) = policy.message("retry_back_off") {
        out.backoff_ms = backoff.duration("base_interval").unwrap_or(out.backoff_ms);
    }
    // Another host first is what weft always does.
    policy.each("retry_host_predicate", |predicate| {
        predicate.waive();
        if predicate.text("name") != Some("envoy.retry_host_predicates.previous_hosts") {
            predicate.unsupported("name", "hosts that were tried come last, and that is all");
        }
    });
    // However often it takes.
    policy.pass_over(&["host_selection_retry_max_attempts"]);
    out
}

/// Tells the clusters of a route by what they hash.
fn hashed(action: &Message<'_>, clusters: &[WeightedBackend], context: &Context<'_>) {
    let mut found = Vec::new();
    action.each("hash_policy", |policy| {
        policy.pass_over(&["terminal"]);
        found.extend(hash_by(&policy));
    });
    tell(action, &found, clusters, context);
}

/// The same of a TCP proxy, whose connections have an address alone.
pub fn hashed_connections(
    proxy: &Message<'_>,
    clusters: &[WeightedBackend],
    context: &Context<'_>,
) {
    let found =
        proxy.map("hash_policy", |policy| policy.message("source_ip").map(|_| HashBy::SourceIp));
    tell(proxy, &found, clusters, context);
}

fn tell(
    action: &Message<'_>,
    found: &[HashBy],
    clusters: &[WeightedBackend],
    context: &Context<'_>,
) {
    let Some(by) = found.first() else { return };
    if found.len() > 1 {
        action.unsupported("hash_policy", "one thing of a request is hashed");
    }
    for cluster in clusters.iter().filter_map(|c| c.target.backend()) {
        let name = cluster.root.to_string();
        let before = context.hashed.borrow_mut().insert(name, by.clone());
        if before.is_some_and(|before| before != *by) {
            action.unsupported("hash_policy", "the routes of a cluster hash the same thing");
        }
    }
}

fn hash_by(policy: &Message<'_>) -> Option<HashBy> {
    if let Some(header) = policy.message("header") {
        return header.text("header_name").map(|n| HashBy::Header(n.to_ascii_lowercase().into()));
    }
    if let Some(cookie) = policy.message("cookie") {
        let attributes = cookie.map("attributes", |attribute| {
            let name = attribute.text("name")?;
            Some(match attribute.text("value") {
                Some(value) => format!("{name}={value}").into(),
                None => name.into(),
            })
        });
        return Some(HashBy::Cookie(HashCookie {
            name: cookie.text("name")?.into(),
            ttl_ms: cookie.duration("ttl"),
            path: cookie.text("path").unwrap_or("").into(),
            attributes,
        }));
    }
    if let Some(connection) = policy.message("connection_properties") {
        return (connection.flag("source_ip") == Some(true)).then_some(HashBy::SourceIp);
    }
    let query = policy.message("query_parameter")?;
    query.text("name").map(|n| HashBy::Query(n.into()))
}
