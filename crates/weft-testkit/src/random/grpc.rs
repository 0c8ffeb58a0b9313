// SPDX-License-Identifier: Apache-2.0
//! GRPCRoutes on a gateway, and calls.

use serde_json::{Value, json};

use super::{Chance, PATTERNS, backend, listeners, meta, modifier};
use crate::Ask;

const SERVICES: [&str; 4] = ["a.A", "a.AB", "b.A", "c"];
const METHODS: [&str; 3] = ["Get", "Put", "GetAll"];

/// A gateway with listeners on one port, and GRPCRoutes.
pub fn gateway(chance: &mut Chance) -> Vec<Value> {
    let (gateway, count) = listeners(chance);
    let mut out = vec![gateway];
    for r in 0..=chance.below(4) {
        let mut parent = json!({"name": "edge"});
        if chance.one_in(4) {
            parent["sectionName"] = format!("l{}", chance.below(count)).into();
        }
        let hostnames: Vec<&str> = PATTERNS.iter().copied().filter(|_| chance.one_in(3)).collect();
        let rules: Vec<Value> = (0..=chance.below(4)).map(|_| rule(chance)).collect();
        let mut spec = json!({"parentRefs": [parent], "rules": rules});
        if !hostnames.is_empty() {
            spec["hostnames"] = json!(hostnames);
        }
        let mut meta = meta(&format!("g{r}"));
        meta["creationTimestamp"] = format!("2026-01-0{}T00:00:00Z", 1 + chance.below(2)).into();
        out.push(json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GRPCRoute", "metadata": meta,
            "spec": spec,
        }));
    }
    out
}

fn rule(chance: &mut Chance) -> Value {
    let matches: Vec<Value> = (0..chance.below(3)).map(|_| method_match(chance)).collect();
    let mut filters = Vec::new();
    if chance.one_in(3) {
        filters.push(json!({
            "type": "RequestHeaderModifier", "requestHeaderModifier": modifier(chance, "x"),
        }));
    }
    if chance.one_in(4) {
        filters.push(json!({
            "type": "ResponseHeaderModifier", "responseHeaderModifier": modifier(chance, "x"),
        }));
    }
    let backends: Vec<Value> = (0..=chance.below(2)).map(|_| backend(chance)).collect();
    json!({"matches": matches, "filters": filters, "backendRefs": backends})
}

/// Exact ones: how long an expression is as a match no text says.
fn method_match(chance: &mut Chance) -> Value {
    let mut out = json!({});
    if !chance.one_in(6) {
        let mut method = json!({});
        if !chance.one_in(3) {
            method["service"] = chance.one(&SERVICES).into();
        }
        if method["service"].is_null() || chance.one_in(2) {
            method["method"] = chance.one(&METHODS).into();
        }
        out["method"] = method;
    }
    let mut headers = Vec::new();
    for name in ["x-a", "X-B"] {
        if chance.one_in(4) {
            headers.push(json!({"name": name, "value": chance.one(&["1", "2"])}));
        }
    }
    if !headers.is_empty() {
        out["headers"] = json!(headers);
    }
    out
}

/// A call, as far as routing sees it: no length of its messages matters.
pub fn call(chance: &mut Chance) -> Ask {
    let mut ask = super::request(chance, super::Scene::Gateway);
    ask.method = "POST";
    ask.path = format!("/{}/{}", chance.one(&SERVICES), chance.one(&METHODS));
    ask.query = String::new();
    ask
}
