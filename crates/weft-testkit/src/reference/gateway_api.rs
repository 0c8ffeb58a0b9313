// SPDX-License-Identifier: Apache-2.0
//! Gateway API v1.6: the fields' own texts of Gateway and HTTPRoute, one function each.

use std::cmp::Reverse;

use serde_json::Value;

use super::{Edits, Forward, Retry, Share, To, Verdict, is_service, items, millis, named, of_kind};
use super::{refuse, same_path, text, whole};
use crate::{Ask, with_query};

/// How well a host name fits: characters of a non-wildcard name, then of any.
pub(super) type HostFit = (usize, usize);
/// How well a match fits, greatest first: kind of path, its length, method, headers, parameters.
type Strength = (u8, usize, bool, usize, usize);

/// A rule that could take the request.
struct Candidate<'a> {
    rank: (Reverse<HostFit>, Reverse<Strength>, String, String, usize),
    rule: &'a Value,
    matched: Value,
    label: String,
}

/// What a gateway of these objects does with a request on its port.
pub fn judge(objects: &[Value], ask: &Ask) -> Verdict {
    let Some((gateway, listener)) = serving(objects, ask) else { return refuse(None, 404) };
    let mut candidates: Vec<Candidate<'_>> = of_kind(objects, "HTTPRoute")
        .filter(|route| is_attached(route, gateway, listener))
        .filter_map(|route| Some((route_fit(route, listener, &ask.host)?, route)))
        .flat_map(|(fit, route)| candidates_of(route, fit, ask))
        .collect();
    candidates.sort_by(|a, b| a.rank.cmp(&b.rank));
    match candidates.into_iter().next() {
        Some(candidate) => follow(objects, candidate, listener, ask),
        None => refuse(None, 404),
    }
}

/// The gateway, and of its listeners the one that serves the host: "the most specific matching
/// Hostname" does, and serves what it matches alone.
pub(super) fn serving<'a>(objects: &'a [Value], ask: &Ask) -> Option<(&'a Value, &'a Value)> {
    let gateway = of_kind(objects, "Gateway").next()?;
    let listeners = items(&gateway["spec"]["listeners"]);
    let fits = listeners.filter_map(|l| Some((host_fit(l["hostname"].as_str(), &ask.host)?, l)));
    fits.max_by_key(|(fit, _)| *fit).map(|(_, listener)| (gateway, listener))
}

/// "When unspecified, all hostnames are matched"; a wildcard takes one or more labels.
pub(super) fn host_fit(pattern: Option<&str>, host: &str) -> Option<HostFit> {
    match pattern {
        None | Some("") => Some((0, 0)),
        Some(pattern) => match pattern.strip_prefix("*.") {
            Some(rest) => {
                let suffix = format!(".{rest}");
                let fits = host.ends_with(&suffix) && host.len() > suffix.len();
                fits.then_some((0, pattern.len()))
            }
            None => pattern.eq_ignore_ascii_case(host).then_some((pattern.len(), pattern.len())),
        },
    }
}

pub(super) fn is_attached(route: &Value, gateway: &Value, listener: &Value) -> bool {
    items(&route["spec"]["parentRefs"]).any(|parent| {
        let section = parent["sectionName"].as_str();
        parent["name"] == gateway["metadata"]["name"]
            && section.is_none_or(|s| listener["name"] == s)
    })
}

/// "precedence must be given to rules from the HTTPRoute with the largest number of characters in
/// a matching non-wildcard hostname, in a matching hostname". A name that has nothing in common
/// with the Listener's is ignored.
pub(super) fn route_fit(route: &Value, listener: &Value, host: &str) -> Option<HostFit> {
    let names = route["spec"]["hostnames"].as_array().filter(|list| !list.is_empty());
    let Some(names) = names else { return Some((0, 0)) };
    let common = names.iter().filter(|name| overlap(listener["hostname"].as_str(), name.as_str()));
    common.filter_map(|name| host_fit(name.as_str(), host)).max()
}

fn overlap(listener: Option<&str>, route: Option<&str>) -> bool {
    let (Some(a), Some(b)) = (listener, route) else { return true };
    let inside = |wide: &str, narrow: &str| {
        let narrow = narrow.strip_prefix('*').unwrap_or(narrow);
        wide.strip_prefix('*').is_some_and(|suffix| narrow.ends_with(suffix))
    };
    a == b || inside(a, b) || inside(b, a)
}

fn candidates_of<'a>(route: &'a Value, fit: HostFit, ask: &Ask) -> Vec<Candidate<'a>> {
    let age = text(&route["metadata"]["creationTimestamp"]);
    let mut out = Vec::new();
    for (i, rule) in items(&route["spec"]["rules"]).enumerate() {
        let everything = Value::Array(vec![serde_json::json!({})]);
        // "If no matches are specified, the default is a prefix path match on '/'".
        let matches = match rule["matches"].as_array() {
            Some(list) if !list.is_empty() => &rule["matches"],
            _ => &everything,
        };
        for m in items(matches) {
            if let Some(strength) = strength(m, ask) {
                out.push(Candidate {
                    rank: (Reverse(fit), Reverse(strength), age.clone(), named(route), i),
                    rule,
                    matched: m.clone(),
                    label: format!("HTTPRoute {} spec.rules[{i}]", named(route)),
                });
            }
        }
    }
    out
}

/// `None` when the match does not hold: all its parts must.
fn strength(m: &Value, ask: &Ask) -> Option<Strength> {
    let path = &m["path"];
    let value = path["value"].as_str().unwrap_or("/");
    let (kind, fits) = match path["type"].as_str().unwrap_or("PathPrefix") {
        "Exact" => (2, ask.path == value),
        // Its precedence is the implementation's: weft's is between the other two.
        "RegularExpression" => (1, whole(value, &ask.path)),
        _ => (0, has_prefix(&ask.path, value)),
    };
    let method = m["method"].as_str();
    let headers = first_of_each(&m["headers"], true);
    let parameters = first_of_each(&m["queryParams"], false);
    let holds = fits
        && method.is_none_or(|method| method == ask.method)
        && headers.iter().all(|h| value_fits(h, ask.header(&text(&h["name"]))))
        && parameters.iter().all(|p| value_fits(p, ask.parameter(&text(&p["name"]))));
    holds.then_some((kind, value.len(), method.is_some(), headers.len(), parameters.len()))
}

/// "only the first entry with an equivalent name must be considered for a match".
pub(super) fn first_of_each(list: &Value, no_case: bool) -> Vec<&Value> {
    let mut out: Vec<&Value> = Vec::new();
    for entry in items(list) {
        let name = text(&entry["name"]);
        let known = out.iter().any(|other| match no_case {
            true => text(&other["name"]).eq_ignore_ascii_case(&name),
            false => other["name"] == entry["name"],
        });
        if !known {
            out.push(entry);
        }
    }
    out
}

pub(super) fn value_fits(entry: &Value, got: Option<&str>) -> bool {
    let wanted = text(&entry["value"]);
    got.is_some_and(|got| match entry["type"].as_str().unwrap_or("Exact") {
        "RegularExpression" => whole(&wanted, got),
        _ => got == wanted,
    })
}

/// "a path element refers to the list of labels in the path split by '/'"; a trailing slash of
/// the prefix is ignored.
fn has_prefix(path: &str, prefix: &str) -> bool {
    let wanted: Vec<&str> = prefix.split('/').filter(|e| !e.is_empty()).collect();
    let elements: Vec<&str> = path.split('/').skip(1).collect();
    elements.len() >= wanted.len() && elements.iter().zip(&wanted).all(|(a, b)| a == b)
}

fn follow(objects: &[Value], taken: Candidate<'_>, listener: &Value, ask: &Ask) -> Verdict {
    let Candidate { rule, matched, label, .. } = taken;
    let (mut request, mut response) = (Vec::new(), Vec::new());
    let (mut path, mut host) = (ask.path.clone(), ask.host.clone());
    for filter in items(&rule["filters"]) {
        match filter["type"].as_str() {
            Some("RequestHeaderModifier") => {
                request.extend(Edits::of_filter(&filter["requestHeaderModifier"]));
            }
            Some("ResponseHeaderModifier") => {
                response.extend(Edits::of_filter(&filter["responseHeaderModifier"]));
            }
            Some("URLRewrite") => {
                let rewrite = &filter["urlRewrite"];
                path = modified(&ask.path, &rewrite["path"], &matched);
                host = rewrite["hostname"].as_str().unwrap_or(&ask.host).to_owned();
            }
            Some("RequestRedirect") => {
                let location = location(&filter["requestRedirect"], &matched, listener, ask);
                let status = &filter["requestRedirect"]["statusCode"];
                let status = status.as_u64().and_then(|s| u16::try_from(s).ok()).unwrap_or(302);
                return Verdict::Redirect { rule: label, status, location };
            }
            _ => {}
        }
    }
    let shares: Vec<Share> =
        items(&rule["backendRefs"]).map(|backend| share(objects, backend)).collect();
    if shares.iter().all(|s| s.weight == 0) {
        return refuse(Some(label), 500);
    }
    let (request, response) = (Edits(request), Edits(response));
    let target = if path == ask.path { same_path(ask) } else { with_query(&path, &ask.query) };
    let limit = millis(&rule["timeouts"]["request"]);
    let timeout = limit.map(|ms| (ms, format!("{label}.timeouts.request")));
    let retry = retry(&rule["retry"]).map(|retry| (retry, format!("{label}.retry")));
    let rule = Some(label);
    Verdict::Forward(Forward { rule, shares, target, host, request, response, timeout, retry })
}

/// HTTPRouteRetry: "Attempts specifies the maximum number of times an individual request from the
/// gateway to a backend should be retried"; "Codes defines the HTTP response status codes for which
/// a backend request should be retried".
fn retry(said: &Value) -> Option<Retry> {
    let attempts = usize::try_from(said["attempts"].as_u64()?).ok()?;
    let codes = items(&said["codes"]).filter_map(|c| u16::try_from(c.as_u64()?).ok());
    Some(Retry { attempts, statuses: codes.map(|code| (code, code)).collect() })
}

/// "When a BackendRef refers to a Service that does not exist, 500".
pub(super) fn share(objects: &[Value], backend: &Value) -> Share {
    let name = text(&backend["name"]);
    let mut request = Vec::new();
    for filter in items(&backend["filters"]) {
        request.extend(Edits::of_filter(&filter["requestHeaderModifier"]));
    }
    let to = match is_service(objects, &name) {
        true => To::Service { name, subset: String::new(), labels: Vec::new() },
        false => To::Error(500),
    };
    let weight = backend["weight"].as_u64().unwrap_or(1);
    Share { weight, to, request: Edits(request), response: Edits::default() }
}

/// The table in the text of HTTPPathModifier.
fn modified(path: &str, modifier: &Value, matched: &Value) -> String {
    if let Some(full) = modifier["replaceFullPath"].as_str() {
        return full.to_owned();
    }
    let Some(new) = modifier["replacePrefixMatch"].as_str() else { return path.to_owned() };
    let old = matched["path"]["value"].as_str().unwrap_or("/").trim_end_matches('/');
    let rest = path.strip_prefix(old).unwrap_or_default();
    let out = format!("{}{rest}", new.trim_end_matches('/'));
    if out.is_empty() { "/".to_owned() } else { out }
}

/// The texts of HTTPRequestRedirectFilter's fields; "the path is kept when unspecified".
fn location(redirect: &Value, matched: &Value, listener: &Value, ask: &Ask) -> String {
    let scheme = redirect["scheme"].as_str();
    let host = redirect["hostname"].as_str().unwrap_or(&ask.host);
    let known = |scheme: &str| if scheme == "https" { 443 } else { 80 };
    let port = match (redirect["port"].as_u64(), scheme) {
        (Some(port), _) => port,
        (None, Some(scheme)) => known(scheme),
        (None, None) => listener["port"].as_u64().unwrap_or(80),
    };
    let scheme = scheme.unwrap_or("http");
    let port = if port == known(scheme) { String::new() } else { format!(":{port}") };
    let path = modified(&ask.path, &redirect["path"], matched);
    format!("{scheme}://{host}{port}{}", with_query(&path, &ask.query))
}
