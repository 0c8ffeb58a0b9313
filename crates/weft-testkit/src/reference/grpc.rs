// SPDX-License-Identifier: Apache-2.0
//! Gateway API v1.6: the texts of GRPCRoute's own fields. What it shares with HTTPRoute is read by
//! the same functions.

use std::cmp::Reverse;

use serde_json::Value;

use super::gateway_api::{
    HostFit, first_of_each, is_attached, route_fit, serving, share, value_fits,
};
use super::{Edits, Forward, Share, Verdict, items, named, of_kind, refuse, same_path, text};
use crate::Ask;

/// Characters of the service and of the method, headers; greatest first.
type Strength = (usize, usize, usize);

struct Candidate<'a> {
    rank: (Reverse<HostFit>, Reverse<Strength>, String, String, usize),
    rule: &'a Value,
    label: String,
}

/// What a gateway of these objects does with a call on its port.
pub fn judge(objects: &[Value], ask: &Ask) -> Verdict {
    let Some((gateway, listener)) = serving(objects, ask) else { return refuse(None, 404) };
    let mut candidates = Vec::new();
    for route in of_kind(objects, "GRPCRoute").filter(|r| is_attached(r, gateway, listener)) {
        let Some(fit) = route_fit(route, listener, &ask.host) else { continue };
        let age = text(&route["metadata"]["creationTimestamp"]);
        for (i, rule) in items(&route["spec"]["rules"]).enumerate() {
            // "If no matches are specified, the implementation MUST match every gRPC request."
            let everything = Value::Array(vec![serde_json::json!({})]);
            let given = rule["matches"].as_array().is_some_and(|list| !list.is_empty());
            let matches = if given { &rule["matches"] } else { &everything };
            for strength in items(matches).filter_map(|m| strength(m, ask)) {
                candidates.push(Candidate {
                    rank: (Reverse(fit), Reverse(strength), age.clone(), named(route), i),
                    rule,
                    label: format!("GRPCRoute {} spec.rules[{i}]", named(route)),
                });
            }
        }
    }
    candidates.sort_by(|a, b| a.rank.cmp(&b.rank));
    match candidates.into_iter().next() {
        Some(candidate) => follow(objects, candidate, ask),
        None => refuse(None, 404),
    }
}

/// "Value of the service to match against. If left empty or omitted, will match any service"; the
/// same of the method. `None` when the match does not hold.
fn strength(m: &Value, ask: &Ask) -> Option<Strength> {
    let (service, method) = ask.path.strip_prefix('/')?.split_once('/')?;
    let wanted = |key: &str| m["method"][key].as_str().filter(|text| !text.is_empty());
    let headers = first_of_each(&m["headers"], true);
    let holds = wanted("service").is_none_or(|s| s == service)
        && wanted("method").is_none_or(|m| m == method)
        && headers.iter().all(|h| value_fits(h, ask.header(&text(&h["name"]))));
    let length = |key: &str| wanted(key).map_or(0, str::len);
    holds.then(|| (length("service"), length("method"), headers.len()))
}

fn follow(objects: &[Value], taken: Candidate<'_>, ask: &Ask) -> Verdict {
    let Candidate { rule, label, .. } = taken;
    let (mut request, mut response) = (Vec::new(), Vec::new());
    for filter in items(&rule["filters"]) {
        request.extend(Edits::of_filter(&filter["requestHeaderModifier"]));
        response.extend(Edits::of_filter(&filter["responseHeaderModifier"]));
    }
    let shares: Vec<Share> = items(&rule["backendRefs"]).map(|b| share(objects, b)).collect();
    if shares.iter().all(|s| s.weight == 0) {
        return refuse(Some(label), 500);
    }
    Verdict::Forward(Forward {
        rule: Some(label),
        shares,
        target: same_path(ask),
        host: ask.host.clone(),
        request: Edits(request),
        response: Edits(response),
        timeout: None,
        retry: None,
    })
}
