// SPDX-License-Identifier: Apache-2.0
//! Routers, splitters and resolvers: what Consul checks of each by itself. Whether they do
//! together is `chain`'s to say.

use serde_json::Value;

use super::{failover_mode, http_match, items};
use crate::consul::body::{part, word};
use crate::consul::filter::{Filter, typed};

const RETRY_ON: [&str; 12] = [
    "5xx",
    "gateway-error",
    "reset",
    "connect-failure",
    "envoy-ratelimited",
    "retriable-4xx",
    "refused-stream",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];
const POLICIES: [&str; 6] = ["", "random", "round_robin", "least_request", "ring_hash", "maglev"];

pub fn router(entry: &Value) -> Result<(), String> {
    for (i, route) in items(entry, "Routes").iter().enumerate() {
        let at = format!("Route[{i}]");
        let http = part(part(route, "Match"), "HTTP");
        http_match(http, &at, " ")?;
        let to = part(route, "Destination");
        let path = !word(http, "PathExact").is_empty() || !word(http, "PathPrefix").is_empty();
        if !word(to, "PrefixRewrite").is_empty() && !path {
            return Err(format!(
                "{at} cannot make use of PrefixRewrite without configuring either PathExact or \
                 PathPrefix"
            ));
        }
        let unknown = |on: &&str| !RETRY_ON.contains(on);
        if let Some(on) = items(to, "RetryOn").iter().filter_map(Value::as_str).find(unknown) {
            return Err(format!("{at} contains an invalid retry condition: {on:?}"));
        }
        for field in ["RequestTimeout", "IdleTimeout"] {
            if word(to, field).starts_with('-') {
                return Err(format!("{at} {field} must be >= 0"));
            }
        }
    }
    Ok(())
}

pub fn splitter(entry: &Value) -> Result<(), String> {
    let splits = items(entry, "Splits");
    if splits.is_empty() {
        return Err("no splits configured".into());
    }
    let own = word(entry, "Name");
    let places: Vec<[&str; 4]> = splits
        .iter()
        .map(|split| {
            let service = word(split, "Service");
            let service = if service.is_empty() { own } else { service };
            let (subset, ns) = (word(split, "ServiceSubset"), word(split, "Namespace"));
            [service, subset, ns, word(split, "Partition")]
        })
        .collect();
    for (i, place) in places.iter().enumerate() {
        if places.iter().take(i).any(|other| other == place) {
            let [service, subset, namespace, partition] = place;
            return Err(format!(
                "split destination occurs more than once: service={service:?}, subset={subset:?}, \
                 namespace={namespace:?}, partition={partition:?}"
            ));
        }
    }
    let weights = splits.iter().map(|split| part(split, "Weight").as_f64().unwrap_or(0.0));
    let sum: f64 = weights.map(|weight| (weight * 100.0).round()).sum();
    match (sum - 10_000.0).abs() < 0.5 {
        true => Ok(()),
        false => Err(format!("the sum of all split weights must be 100, not {:.6}", sum / 100.0)),
    }
}

pub fn resolver(entry: &Value) -> Result<(), String> {
    let own = word(entry, "Name");
    let subsets = part(entry, "Subsets").as_object();
    let is_subset = |name: &str| subsets.is_some_and(|known| known.contains_key(name));
    for (name, subset) in subsets.into_iter().flatten() {
        if name.is_empty() {
            return Err("Subset defined with empty name".into());
        }
        let label = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if !label || name.len() > 63 || name.starts_with('-') || name.ends_with('-') {
            return Err(format!("Subset {name:?} is invalid: must be a valid DNS label"));
        }
        let filter = word(subset, "Filter");
        if !filter.is_empty() {
            Filter::of(filter, typed::HEALTH).map_err(|why| {
                format!("Filter for subset {name:?} is not a valid expression: {}", why.text)
            })?;
        }
    }
    let usual = word(entry, "DefaultSubset");
    if !usual.is_empty() && !is_subset(usual) {
        return Err(format!("DefaultSubset {usual:?} is not a valid subset"));
    }
    redirect(entry, own, &is_subset)?;
    for (subset, failover) in part(entry, "Failover").as_object().into_iter().flatten() {
        let known = subset == "*" || is_subset(subset);
        self::failover(failover, (own, known), &is_subset)
            .map_err(|why| format!("Bad Failover[{subset:?}]{why}"))?;
    }
    for field in ["ConnectTimeout", "RequestTimeout"] {
        let span = word(entry, field);
        if span.starts_with('-') {
            return Err(format!("Bad {field} '{span}', must be >= 0"));
        }
    }
    balancer(part(entry, "LoadBalancer"))
}

fn redirect(entry: &Value, own: &str, is_subset: &dyn Fn(&str) -> bool) -> Result<(), String> {
    let to = part(entry, "Redirect");
    let Some(fields) = to.as_object() else { return Ok(()) };
    if !part(entry, "Failover").is_null() {
        return Err("Redirect and Failover cannot both be set".into());
    }
    if fields.is_empty() {
        return Err("Redirect is empty".into());
    }
    let set = |name: &str| !word(to, name).is_empty();
    for other in ["ServiceSubset", "Partition", "Datacenter"] {
        if set("Peer") && set(other) {
            return Err(match other {
                "Partition" => "Redirect.Partition cannot be set with Redirect.Peer".to_owned(),
                other => format!("Redirect.Peer cannot be set with Redirect.{other}"),
            });
        }
    }
    for other in ["ServiceSubset", "Namespace", "Partition", "Peer"] {
        if !set("Service") && set(other) {
            return Err(format!("Redirect.{other} defined without Redirect.Service"));
        }
    }
    let subset = word(to, "ServiceSubset");
    match set("ServiceSubset") && word(to, "Service") == own && !is_subset(subset) {
        true => Err(format!("Redirect.ServiceSubset {subset:?} is not a valid subset of {own:?}")),
        false => Ok(()),
    }
}

/// What is wrong, as it follows `Bad Failover["v1"]`.
fn failover(
    one: &Value,
    (own, known): (&str, bool),
    is_subset: &dyn Fn(&str) -> bool,
) -> Result<(), String> {
    if !known {
        return Err(": not a valid subset subset".into());
    }
    let set = |name: &str| match part(one, name) {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        _ => true,
    };
    let leads =
        ["Service", "ServiceSubset", "Namespace", "Datacenters", "Targets", "SamenessGroup"];
    if !leads.iter().any(|name| set(name)) {
        return Err(": one of Service, ServiceSubset, Namespace, Targets, SamenessGroup, or \
                    Datacenters is required"
            .into());
    }
    failover_mode(part(one, "Policy")).map_err(|why| format!(": {why}"))?;
    let foreign = |place: &Value| {
        let (service, subset) = (word(place, "Service"), word(place, "ServiceSubset"));
        let here = service.is_empty() || service == own;
        !subset.is_empty() && here && !is_subset(subset)
    };
    if foreign(one) {
        let subset = word(one, "ServiceSubset");
        return Err(format!(": ServiceSubset {subset:?} is not a valid subset of {own:?}"));
    }
    for other in ["Datacenters", "ServiceSubset", "Service"] {
        if set("Targets") && set(other) {
            return Err(format!(": Targets cannot be set with {other}"));
        }
    }
    for (i, target) in items(one, "Targets").iter().enumerate() {
        let has = |name: &str| !word(target, name).is_empty();
        let at = format!(".Targets[{i}]: ");
        let pairs = [
            ("Peer", "ServiceSubset", "Peer cannot be set with ServiceSubset"),
            ("Peer", "Partition", "Partition cannot be set with Peer"),
            ("Peer", "Datacenter", "Peer cannot be set with Datacenter"),
            ("Partition", "Datacenter", "Partition cannot be set with Datacenter"),
        ];
        if let Some((_, _, why)) = pairs.iter().find(|(a, b, _)| has(a) && has(b)) {
            return Err(format!("{at}{why}"));
        }
        if foreign(target) {
            let subset = word(target, "ServiceSubset");
            return Err(format!("{at}ServiceSubset {subset:?} is not a valid subset of {own:?}"));
        }
    }
    match items(one, "Datacenters").iter().any(|dc| dc.as_str() == Some("")) {
        true => Err(".Datacenters: found empty datacenter".into()),
        false => Ok(()),
    }
}

fn balancer(one: &Value) -> Result<(), String> {
    let policy = word(one, "Policy");
    if !POLICIES.contains(&policy) {
        return Err(format!("Bad LoadBalancer policy: {policy:?} is not supported"));
    }
    for (field, of) in [("RingHashConfig", "ring_hash"), ("LeastRequestConfig", "least_request")] {
        if policy != of && !part(one, field).is_null() {
            return Err(format!(
                "Bad LoadBalancer configuration. {field} specified for incompatible load \
                 balancing policy {policy:?}"
            ));
        }
    }
    let policies = items(one, "HashPolicies");
    if !policies.is_empty() && !["ring_hash", "maglev"].contains(&policy) {
        return Err(format!(
            "Bad LoadBalancer configuration: HashPolicies specified for non-hash-based Policy: \
             {policy:?}"
        ));
    }
    for (i, hash) in policies.iter().enumerate() {
        hash_policy(hash).map_err(|why| format!("Bad LoadBalancer HashPolicy[{i}]: {why}"))?;
    }
    Ok(())
}

fn hash_policy(hash: &Value) -> Result<(), String> {
    let (field, value) = (word(hash, "Field"), word(hash, "FieldValue"));
    let (source, cookie) = (*part(hash, "SourceIP") == true, part(hash, "CookieConfig"));
    if !["", "header", "cookie", "query_parameter"].contains(&field) {
        return Err(format!("{field:?} is not a supported field"));
    }
    if source && !field.is_empty() {
        return Err(format!(
            "A single hash policy cannot hash both a source address and a {field:?}"
        ));
    }
    if source && !value.is_empty() {
        return Err("A FieldValue cannot be specified when hashing SourceIP".into());
    }
    if !field.is_empty() && value.is_empty() {
        return Err(format!("Field {field:?} was specified without a FieldValue"));
    }
    if field.is_empty() && !value.is_empty() {
        return Err("FieldValue requires a Field to apply to".into());
    }
    if !cookie.is_null() && field != "cookie" {
        return Err(format!("cookie_config provided for {field:?}"));
    }
    match *part(cookie, "Session") == true && !part(cookie, "TTL").is_null() {
        true => Err("a session cookie cannot have an associated TTL".into()),
        false => Ok(()),
    }
}
