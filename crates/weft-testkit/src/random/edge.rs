// SPDX-License-Identifier: Apache-2.0
//! VirtualServices on an Istio Gateway.

use serde_json::{Value, json};

use super::{Chance, PATTERNS, block, delegating, istio_rule, leaf_rule, meta, virtual_service};
use crate::reference::istio::NAMESPACE;

/// A Gateway of Istio's and VirtualServices for its hosts, each host of one of them.
pub fn gateway(chance: &mut Chance) -> Vec<Value> {
    let served: Vec<&str> = match chance.below(3) {
        0 => vec!["*"],
        1 => vec!["*.x"],
        _ => vec!["*.x", "y"],
    };
    let mut out = vec![json!({
        "apiVersion": "networking.istio.io/v1", "kind": "Gateway",
        "metadata": {
            "name": "edge", "namespace": NAMESPACE,
            "annotations": {"weft.dev/address": "127.0.0.1"},
        },
        "spec": {
            "selector": {"istio": "ingress"},
            "servers": [{
                "port": {"number": 8000, "name": "http", "protocol": "HTTP"}, "hosts": served,
            }],
        },
    })];
    let mut free: Vec<&str> = PATTERNS.to_vec();
    for v in 0..=chance.below(3) {
        let mut hosts = Vec::new();
        for _ in 0..=chance.below(2) {
            if !free.is_empty() {
                hosts.push(free.remove(chance.below(free.len())));
            }
        }
        if hosts.is_empty() {
            break;
        }
        let name = format!("v{v}");
        let mut http = Vec::new();
        for r in 0..=chance.below(4) {
            if chance.one_in(6) {
                let leaf = format!("{name}-leaf-{r}");
                http.push(delegating(chance, &leaf));
                let rules: Vec<Value> =
                    (0..=chance.below(2)).map(|_| here(leaf_rule(chance))).collect();
                out.push(virtual_service(&leaf, &Value::Null, &rules));
            } else {
                let n = chance.below(3);
                let matches: Vec<Value> = (0..n).map(|_| at_gateway(chance)).collect();
                http.push(here(istio_rule(chance, matches)));
            }
        }
        // What no rule is for at all is nobody's virtual host, and no text says so.
        http.push(json!({"match": [{"uri": {"prefix": "/b"}}], "route": [{"destination": {"host": "b"}}]}));
        let mut vs = virtual_service(&name, &json!(hosts), &http);
        vs["spec"]["gateways"] = match chance.below(3) {
            0 => json!(["edge"]),
            1 => json!(["mesh", format!("{NAMESPACE}/edge")]),
            _ => json!([format!("{NAMESPACE}/edge"), "other/edge"]),
        };
        vs["metadata"]["creationTimestamp"] =
            format!("2026-01-0{}T00:00:00Z", 1 + chance.below(2)).into();
        out.push(vs);
    }
    out.push(json!({
        "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": meta("c"),
        "spec": {"host": "c", "subsets": [
            {"name": "v1", "labels": {"version": "v1"}},
            {"name": "v2", "labels": {"version": "v2"}},
            {"name": "v3", "labels": {"version": "v3"}},
        ]},
    }));
    out
}

/// Which port a redirect keeps that names none, where the client's `Host` has none and the
/// gateway's is not the scheme's, no text says: there are none here.
fn here(mut rule: Value) -> Value {
    if let Some(fields) = rule.as_object_mut()
        && fields.remove("redirect").is_some()
    {
        rule["directResponse"] = json!({"status": 403, "body": {"string": "said"}});
    }
    rule
}

/// A block whose port, gateways and labels are sometimes this gateway's.
fn at_gateway(chance: &mut Chance) -> Value {
    let mut out = block(chance);
    if !out["port"].is_null() {
        out["port"] = [8000, 81][chance.below(2)].into();
    }
    if !out["sourceLabels"].is_null() {
        out["sourceLabels"] = json!({"istio": chance.one(&["ingress", "other"])});
    }
    out
}
