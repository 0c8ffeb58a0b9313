// SPDX-License-Identifier: Apache-2.0
//! Istio: the texts of VirtualService, its delegates and DestinationRule's subsets, for a client
//! of the mesh that calls a service on its port 80, and for a Gateway's clients on its port 8000.

use serde_json::Value;

use super::gateway_api::{HostFit, host_fit};
use super::{Edits, Forward, Retry, Share, To, Verdict, is_service, items, millis, named, of_kind};
use super::{refuse, same_path, text, whole};
use crate::{Ask, with_query};

/// Where the client is.
pub const NAMESPACE: &str = "shop";

/// Whose requests they are, as far as rules ask.
struct Side {
    gateways: &'static [&'static str],
    label: (&'static str, &'static str),
    port: u64,
}

const MESH: Side = Side { gateways: &["mesh"], label: ("app", "client"), port: 80 };
/// What it selects gateways by is theirs.
const EDGE: Side =
    Side { gateways: &["edge", "shop/edge"], label: ("istio", "ingress"), port: 8000 };

/// A rule with the block that matched.
struct Taken {
    rule: Value,
    matched: Value,
    label: String,
    /// The root's rule, and what the delegate has of it.
    root: Option<(String, Vec<&'static str>)>,
}

/// What a Gateway does with a request on its port.
pub fn judge_at_gateway(objects: &[Value], ask: &Ask) -> Verdict {
    let servers = of_kind(objects, "Gateway").flat_map(|g| items(&g["spec"]["servers"]));
    let mut served = servers.flat_map(|s| items(&s["hosts"])).filter_map(Value::as_str);
    if !served.any(|host| fit(host, &ask.host).is_some()) {
        return refuse(None, 404);
    }
    let bound = of_kind(objects, "VirtualService").filter(|vs| {
        let mut names = items(&vs["spec"]["gateways"]).filter_map(Value::as_str);
        names.any(|name| EDGE.gateways.contains(&name))
    });
    // One virtual host takes a request: the one with the most specific name.
    let best = bound.filter_map(|vs| {
        let hosts = items(&vs["spec"]["hosts"]).filter_map(Value::as_str);
        Some((hosts.filter_map(|host| fit(host, &ask.host)).max()?, vs))
    });
    let Some((_, vs)) = best.max_by_key(|(fit, _)| *fit) else { return refuse(None, 404) };
    let mut rules = items(&vs["spec"]["http"]).enumerate();
    match rules.find_map(|(i, rule)| take(objects, vs, i, rule, ask, &EDGE)) {
        Some(taken) => follow(objects, &taken, ask),
        // It is the VirtualService that takes the host, and none of its rules the request.
        None => refuse(Some(format!("VirtualService {} spec.http", named(vs))), 404),
    }
}

fn fit(pattern: &str, host: &str) -> Option<HostFit> {
    host_fit(Some(pattern).filter(|p| *p != "*"), host)
}

/// What the client's sidecar does with a request.
pub fn judge(objects: &[Value], ask: &Ask) -> Verdict {
    let fqdn = format!("{}.{NAMESPACE}.svc.cluster.local", ask.host);
    let speaks = |vs: &&Value| items(&vs["spec"]["hosts"]).any(|h| *h == ask.host || *h == fqdn);
    let Some(vs) = of_kind(objects, "VirtualService").find(speaks) else {
        return unrouted(ask);
    };
    // What is for other ports, gateways or clients says nothing here; with nothing left the
    // service has no VirtualService for this client.
    let rules = items(&vs["spec"]["http"]).enumerate().filter(|(_, rule)| is_ours(rule, &MESH));
    let rules: Vec<(usize, &Value)> = rules.collect();
    if rules.is_empty() {
        return unrouted(ask);
    }
    // "The first rule matching an incoming request is used."
    let taken = rules.into_iter().find_map(|(i, rule)| take(objects, vs, i, rule, ask, &MESH));
    match taken {
        Some(taken) => follow(objects, &taken, ask),
        None => refuse(None, 404),
    }
}

/// Whether any block of a rule is for this client at all.
fn is_ours(rule: &Value, side: &Side) -> bool {
    let blocks = rule["match"].as_array().filter(|list| !list.is_empty());
    blocks.is_none_or(|list| list.iter().any(|m| is_for_us(m, side)))
}

fn is_for_us(m: &Value, side: &Side) -> bool {
    let labels = m["sourceLabels"].as_object().into_iter().flatten();
    let given = |key: &str| !m[key].is_null();
    (!given("port") || m["port"] == side.port)
        && labels.into_iter().all(|(k, v)| *k == side.label.0 && v == side.label.1)
        && (!given("sourceNamespace") || m["sourceNamespace"] == NAMESPACE)
        && (!given("gateways")
            || items(&m["gateways"]).any(|g| side.gateways.iter().any(|s| g == s)))
}

fn unrouted(ask: &Ask) -> Verdict {
    let to = To::Service { name: ask.host.clone(), subset: String::new(), labels: Vec::new() };
    let none = Edits::default;
    Verdict::Forward(Forward {
        rule: None,
        shares: vec![Share { weight: 1, to, request: none(), response: none() }],
        target: same_path(ask),
        host: ask.host.clone(),
        request: none(),
        response: none(),
        timeout: None,
        retry: None,
    })
}

fn take(
    objects: &[Value],
    vs: &Value,
    index: usize,
    rule: &Value,
    ask: &Ask,
    side: &Side,
) -> Option<Taken> {
    let label = |vs: &Value, i: usize| format!("VirtualService {} spec.http[{i}]", named(vs));
    let Some(name) = rule["delegate"]["name"].as_str() else {
        let matched = block(rule, ask, side)?;
        return Some(Taken { rule: rule.clone(), matched, label: label(vs, index), root: None });
    };
    let outer = block(rule, ask, side)?;
    let leaf = of_kind(objects, "VirtualService").find(|o| o["metadata"]["name"] == name)?;
    items(&leaf["spec"]["http"]).enumerate().find_map(|(i, inner)| {
        let mut matched = block(inner, ask, side)?;
        if matched["uri"].is_null() {
            matched = outer.clone();
        }
        // "the delegate's own fields win; what it does not say the root says".
        let mut merged = inner.clone();
        let mut inherited = Vec::new();
        for field in ["rewrite", "headers", "fault", "timeout", "retries"] {
            if merged[field].is_null() && !rule[field].is_null() {
                merged[field] = rule[field].clone();
                inherited.push(field);
            }
        }
        let root = Some((label(vs, index), inherited));
        Some(Taken { rule: merged, matched, label: label(leaf, i), root })
    })
}

/// The first block that holds: "the rule is matched if any one of the match blocks succeed".
fn block(rule: &Value, ask: &Ask, side: &Side) -> Option<Value> {
    match rule["match"].as_array().filter(|list| !list.is_empty()) {
        None => Some(Value::Null),
        Some(list) => list.iter().find(|m| holds(m, ask, side)).cloned(),
    }
}

/// "All conditions inside a single match block have AND semantics".
fn holds(m: &Value, ask: &Ask, side: &Side) -> bool {
    let map = |key: &'static str| m[key].as_object().into_iter().flatten();
    let uri = |no_case: bool| match no_case && !m["uri"]["regex"].is_string() {
        false => fits(&m["uri"], Some(&ask.path)),
        true => fits(&lowered(&m["uri"]), Some(&ask.path.to_lowercase())),
    };
    let given = |key: &str| !m[key].is_null();
    (!given("uri") || uri(m["ignoreUriCase"] == true))
        && (!given("method") || fits(&m["method"], Some(ask.method)))
        && (!given("scheme") || fits(&m["scheme"], Some("http")))
        && (!given("authority") || fits(&m["authority"], Some(&ask.host)))
        && is_for_us(m, side)
        && map("headers").all(|(name, value)| fits(value, ask.header(name)))
        // "withoutHeader has the same syntax with the header, but has opposite meaning."
        && !map("withoutHeaders").any(|(name, value)| fits(value, ask.header(name)))
        && map("queryParams").all(|(name, value)| fits(value, ask.parameter(name)))
}

/// StringMatch; "if the value is empty and only the name is specified, presence is checked".
fn fits(m: &Value, got: Option<&str>) -> bool {
    let Some(got) = got else { return false };
    match (m["exact"].as_str(), m["prefix"].as_str(), m["regex"].as_str()) {
        (Some(exact), ..) => got == exact,
        (_, Some(prefix), _) => got.starts_with(prefix),
        (.., Some(regex)) => whole(regex, got),
        _ => true,
    }
}

/// "the case will be ignored only in the case of exact and prefix URI matches".
fn lowered(m: &Value) -> Value {
    let mut out = m.clone();
    for kind in ["exact", "prefix"] {
        if let Some(text) = m[kind].as_str() {
            out[kind] = text.to_lowercase().into();
        }
    }
    out
}

fn follow(objects: &[Value], taken: &Taken, ask: &Ask) -> Verdict {
    let Taken { rule, matched, label, root } = taken;
    let abort = &rule["fault"]["abort"];
    if let Some(status) = abort["httpStatus"].as_u64()
        && abort["percentage"]["value"] == 100
    {
        return refuse(Some(label.clone()), u16::try_from(status).unwrap_or(500));
    }
    if !rule["redirect"].is_null() {
        let redirect = &rule["redirect"];
        let host = redirect["authority"].as_str().unwrap_or(&ask.host);
        // "the entire path will be replaced, irrespective of the request URI being matched as an
        // exact path or prefix".
        let path = redirect["uri"].as_str().unwrap_or(&ask.path);
        let status = redirect["redirectCode"].as_u64().and_then(|s| u16::try_from(s).ok());
        let location = format!("http://{host}{}", with_query(path, &ask.query));
        return Verdict::Redirect { rule: label.clone(), status: status.unwrap_or(301), location };
    }
    if let Some(status) = rule["directResponse"]["status"].as_u64() {
        let body = text(&rule["directResponse"]["body"]["string"]);
        let status = u16::try_from(status).unwrap_or(500);
        return Verdict::Direct { rule: label.clone(), status, body };
    }
    let field = |name: &str| match root {
        Some((root, inherited)) if inherited.contains(&name) => format!("{root}.{name}"),
        _ => format!("{label}.{name}"),
    };
    let single = items(&rule["route"]).count() == 1;
    let shares = items(&rule["route"]).map(|to| share(objects, to, single)).collect();
    let path = rewritten(rule, matched, ask);
    Verdict::Forward(Forward {
        rule: Some(label.clone()),
        shares,
        target: with_query(&path, &ask.query),
        host: rule["rewrite"]["authority"].as_str().unwrap_or(&ask.host).to_owned(),
        request: Edits(Edits::of_operations(&rule["headers"]["request"])),
        response: Edits(Edits::of_operations(&rule["headers"]["response"])),
        timeout: millis(&rule["timeout"]).map(|ms| (ms, field("timeout"))),
        retry: retry(&rule["retries"]).map(|retry| (retry, field("retries"))),
    })
}

/// HTTPRetry: "Number of retries to be allowed for a given request", and Envoy's words of
/// `retry_on`: "5xx" is "any 5xx response code", "gateway-error" 502, 503 and 504, and numbers are
/// codes of their own.
fn retry(said: &Value) -> Option<Retry> {
    let attempts = usize::try_from(said["attempts"].as_u64()?).ok()?;
    let words = said["retryOn"].as_str().unwrap_or_default().split(',');
    let statuses = words.filter_map(|word| match word {
        "5xx" => Some((500, 599)),
        "gateway-error" => Some((502, 504)),
        code => code.parse().ok().map(|code| (code, code)),
    });
    Some(Retry { attempts, statuses: statuses.collect() })
}

/// "If the original URI was matched based on prefix, the value provided in this field will
/// replace the corresponding matched prefix", else the path.
fn rewritten(rule: &Value, matched: &Value, ask: &Ask) -> String {
    let Some(new) = rule["rewrite"]["uri"].as_str() else { return ask.path.clone() };
    match matched["uri"]["prefix"].as_str() {
        Some(prefix) => format!("{new}{}", ask.path.get(prefix.len()..).unwrap_or_default()),
        None => new.to_owned(),
    }
}

fn share(objects: &[Value], to: &Value, single: bool) -> Share {
    let host = text(&to["destination"]["host"]);
    let name = host.split('.').next().unwrap_or_default().to_owned();
    let subset = text(&to["destination"]["subset"]);
    // A destination alone takes everything.
    let weight = if single { 1 } else { to["weight"].as_u64().unwrap_or(0) };
    let labels = (!subset.is_empty()).then(|| labels_of(objects, &name, &subset));
    let to_ = match (is_service(objects, &name), labels) {
        (false, _) | (true, Some(None)) => To::Error(503),
        (true, labels) => {
            let labels = labels.flatten().unwrap_or_default();
            To::Service { name, subset, labels }
        }
    };
    Share {
        weight,
        to: to_,
        request: Edits(Edits::of_operations(&to["headers"]["request"])),
        response: Edits(Edits::of_operations(&to["headers"]["response"])),
    }
}

/// The labels of a subset, when a DestinationRule of the service names it.
fn labels_of(objects: &[Value], service: &str, subset: &str) -> Option<Vec<(String, String)>> {
    let about = |rule: &&Value| text(&rule["spec"]["host"]).split('.').next() == Some(service);
    let rules = of_kind(objects, "DestinationRule").filter(about);
    let found =
        rules.flat_map(|rule| items(&rule["spec"]["subsets"])).find(|s| s["name"] == subset)?;
    let labels = found["labels"].as_object().into_iter().flatten();
    Some(labels.map(|(k, v)| (k.clone(), text(v))).collect())
}
