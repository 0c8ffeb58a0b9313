// SPDX-License-Identifier: Apache-2.0
//! Parts of a chain that follow from one entry, or from two of them: a resolver's node, splits
//! below each other, who is named. Pure.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::consul::body::{part, word};
use crate::consul::config::judge::items;
use crate::consul::duration;

/// The other services that an entry names.
pub fn related(kind: &str, entry: &Map<String, Value>) -> BTreeSet<String> {
    let entry = Value::Object(entry.clone());
    let of = |place: &Value| word(place, "Service").to_owned();
    let mut out: BTreeSet<String> = match kind {
        "service-router" => {
            items(&entry, "Routes").iter().map(|r| of(part(r, "Destination"))).collect()
        }
        "service-splitter" => items(&entry, "Splits").iter().map(of).collect(),
        "service-resolver" => {
            let failovers = part(&entry, "Failover").as_object().into_iter().flatten();
            let places =
                failovers.flat_map(|(_, f)| items(f, "Targets").iter().chain(std::iter::once(f)));
            // A peer's services are not ours to judge.
            let ours = places.chain([part(&entry, "Redirect")]);
            ours.filter(|place| word(place, "Peer").is_empty()).map(of).collect()
        }
        _ => BTreeSet::new(),
    };
    out.remove("");
    out.remove(word(&entry, "Name"));
    out
}

/// A resolver as a chain shows it.
pub fn node(resolver: &Value, id: &str, timeout: &str, failover: Option<Value>) -> Value {
    let steers = [
        "DefaultSubset",
        "Subsets",
        "Redirect",
        "Failover",
        "ConnectTimeout",
        "RequestTimeout",
        "LoadBalancer",
    ];
    let mut own = Map::new();
    if steers.iter().all(|field| part(resolver, field).is_null()) {
        own.insert("Default".into(), json!(true));
    }
    own.insert("ConnectTimeout".into(), json!(timeout));
    // Consul shows this one as a number.
    let request = duration::parse(word(resolver, "RequestTimeout"));
    let nanos = request.and_then(|span| u64::try_from(span.as_nanos()).ok()).filter(|n| *n > 0);
    if let Some(nanos) = nanos {
        own.insert("RequestTimeout".into(), json!(nanos));
    }
    own.insert("Target".into(), json!(id));
    own.extend(failover.map(|failover| ("Failover".to_owned(), failover)));
    let mut node = Map::new();
    node.insert("Type".into(), json!("resolver"));
    node.insert("Name".into(), json!(id));
    node.insert("Resolver".into(), Value::Object(own));
    let balancer = part(resolver, "LoadBalancer");
    if !balancer.is_null() {
        node.insert("LoadBalancer".into(), balancer.clone());
    }
    Value::Object(node)
}

/// A split below another one, with what that does to headers: requests meet the upper one first,
/// answers last.
pub fn merged(above: &Map<String, Value>, mut below: Map<String, Value>) -> Map<String, Value> {
    for (field, later_is_above) in [("RequestHeaders", false), ("ResponseHeaders", true)] {
        let (upper, lower) = (above.get(field), below.get(field));
        let (first, last) = match later_is_above {
            true => (lower.or(upper), upper.or(lower)),
            false => (upper.or(lower), lower.or(upper)),
        };
        let (Some(first), Some(last)) = (first, last) else { continue };
        let mut out = Map::new();
        for way in ["Add", "Set"] {
            let pairs = [first, last].map(|h| part(h, way).as_object().cloned());
            let all: Map<String, Value> = pairs.into_iter().flatten().flatten().collect();
            if !all.is_empty() {
                out.insert(way.into(), Value::Object(all));
            }
        }
        let mut gone: Vec<Value> = Vec::new();
        for one in [first, last].iter().flat_map(|h| items(h, "Remove")) {
            if !gone.contains(one) {
                gone.push(one.clone());
            }
        }
        if !gone.is_empty() {
            out.insert("Remove".into(), Value::Array(gone));
        }
        below.insert(field.into(), Value::Object(out));
    }
    below
}
