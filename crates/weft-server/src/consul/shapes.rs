// SPDX-License-Identifier: Apache-2.0
//! Consul's JSON, exactly: casing, order, and what is `[]`, `{}`, `null` or left out.

use serde_json::{Map, Value, json};
use weft_kinds::views::catalog::{NodeRecord, Registration};
use weft_kinds::views::check::Probe;

use super::duration;
use super::stamp::Stamp;
use super::view::{CheckView, Entry, Identity, View, aggregated};

/// A node as `catalog/nodes` and `health/service` list it.
pub fn node(node: &NodeRecord, own: &Identity, stamp: Stamp) -> Value {
    let mut tagged = Map::new();
    for (name, address) in &node.tagged_addresses {
        tagged.insert(name.to_string(), json!(address));
    }
    let family = if node.address.contains(':') { "ipv6" } else { "ipv4" };
    for name in ["lan", "wan"] {
        for name in [name.to_owned(), format!("{name}_{family}")] {
            tagged.entry(name).or_insert_with(|| json!(node.address));
        }
    }
    json!({
        "ID": node.id,
        "Node": node.node,
        "Address": node.address,
        "Datacenter": own.datacenter,
        "TaggedAddresses": tagged,
        "Meta": node.meta,
        "CreateIndex": stamp.0,
        "ModifyIndex": stamp.1,
    })
}

/// A node by its name.
pub fn own_node(view: &View, name: &str) -> Value {
    let record = view.node(name);
    node(&record, &view.own, view.stamps.node(&record.node))
}

/// A service as `health/service` and `catalog/node` show it.
pub fn service(service: &Registration, stamp: Stamp) -> Value {
    let mut out = Map::new();
    if !service.kind.is_empty() {
        out.insert("Kind".into(), json!(service.kind));
    }
    out.insert("ID".into(), json!(service.id));
    out.insert("Service".into(), json!(service.service));
    out.insert("Tags".into(), json!(service.tags));
    out.insert("Address".into(), json!(service.address));
    tagged_addresses(service, "TaggedAddresses", &mut out);
    out.insert("Meta".into(), json!(service.meta));
    out.insert("Port".into(), json!(service.port));
    out.insert("Weights".into(), weights(service));
    out.insert("EnableTagOverride".into(), json!(service.enable_tag_override));
    out.insert("Proxy".into(), proxy(service));
    out.insert("Connect".into(), connect(service));
    if let Some(locality) = &service.locality {
        out.insert("Locality".into(), Value::clone(locality));
    }
    out.insert("PeerName".into(), json!(""));
    out.insert("CreateIndex".into(), json!(stamp.0));
    out.insert("ModifyIndex".into(), json!(stamp.1));
    Value::Object(out)
}

/// A service as `agent/services` shows it: without what is not set.
pub fn agent_service(service: &Registration, own: &Identity) -> Value {
    let mut out = Map::new();
    if !service.kind.is_empty() {
        out.insert("Kind".into(), json!(service.kind));
    }
    out.insert("ID".into(), json!(service.id));
    out.insert("Service".into(), json!(service.service));
    out.insert("Tags".into(), json!(service.tags));
    out.insert("Meta".into(), json!(service.meta));
    out.insert("Port".into(), json!(service.port));
    out.insert("Address".into(), json!(service.address));
    tagged_addresses(service, "TaggedAddresses", &mut out);
    out.insert("Weights".into(), weights(service));
    out.insert("EnableTagOverride".into(), json!(service.enable_tag_override));
    if service.proxy.is_some() {
        out.insert("Proxy".into(), proxy(service));
    }
    if let Some(connect) = &service.connect {
        out.insert("Connect".into(), Value::clone(connect));
    }
    if let Some(locality) = &service.locality {
        out.insert("Locality".into(), Value::clone(locality));
    }
    out.insert("Datacenter".into(), json!(own.datacenter));
    Value::Object(out)
}

/// An instance as `catalog/service` flattens it.
pub fn catalog_service(entry: &Entry, view: &View) -> Value {
    let node = node(&entry.node, &view.own, view.stamps.node(&entry.node.node));
    let stamp = view.stamps.service(entry);
    let field = |name: &str| node.get(name).cloned().unwrap_or(Value::Null);
    let service = &entry.service;
    let mut out = Map::new();
    for name in ["ID", "Node", "Address", "Datacenter", "TaggedAddresses"] {
        out.insert(name.into(), field(name));
    }
    out.insert("NodeMeta".into(), field("Meta"));
    out.insert("ServiceKind".into(), json!(service.kind));
    out.insert("ServiceID".into(), json!(service.id));
    out.insert("ServiceName".into(), json!(service.service));
    out.insert("ServiceTags".into(), json!(service.tags));
    out.insert("ServiceAddress".into(), json!(service.address));
    tagged_addresses(service, "ServiceTaggedAddresses", &mut out);
    out.insert("ServiceWeights".into(), weights(service));
    out.insert("ServiceMeta".into(), json!(service.meta));
    out.insert("ServicePort".into(), json!(service.port));
    out.insert("ServiceSocketPath".into(), json!(""));
    out.insert("ServiceEnableTagOverride".into(), json!(service.enable_tag_override));
    out.insert("ServiceProxy".into(), proxy(service));
    out.insert("ServiceConnect".into(), connect(service));
    out.insert("ServiceLocality".into(), json!(service.locality));
    out.insert("CreateIndex".into(), json!(stamp.0));
    out.insert("ModifyIndex".into(), json!(stamp.1));
    Value::Object(out)
}

/// A check, as every endpoint shows it.
pub fn check(check: &CheckView, stamp: Stamp) -> Value {
    let record = &check.record;
    let definition = record.typed();
    // What is written for others is shown as it was.
    let interval = if definition.agent { definition.every_ms() } else { definition.interval_ms };
    let time = |ms: u64| if ms == 0 { String::new() } else { duration::format(ms) };
    json!({
        "Node": record.node,
        "CheckID": record.id,
        "Name": record.name,
        "Status": check.status.as_str(),
        "Notes": record.notes,
        "Output": check.output,
        "ServiceID": record.service_id,
        "ServiceName": record.service_name,
        "ServiceTags": check.tags,
        "Type": record.kind,
        "Interval": time(interval),
        "Timeout": time(definition.timeout_ms),
        "ExposedPort": 0,
        "Definition": if definition.agent { json!({}) } else { probe(&definition.probe) },
        "CreateIndex": stamp.0,
        "ModifyIndex": stamp.1,
    })
}

/// An entry of `health/service`.
pub fn health_entry(entry: &Entry, view: &View) -> Value {
    let stamps = &view.stamps;
    let checks: Vec<Value> = entry.checks.iter().map(|c| check(c, stamps.check(c))).collect();
    json!({
        "Node": node(&entry.node, &view.own, stamps.node(&entry.node.node)),
        "Service": service(&entry.service, stamps.service(entry)),
        "Checks": checks,
    })
}

/// An entry of `agent/health/service`.
pub fn agent_health(entry: &Entry, own: &Identity) -> Value {
    let checks: Vec<Value> = entry.checks.iter().map(|c| check(c, (0, 0))).collect();
    json!({
        "AggregatedStatus": aggregated(&entry.checks),
        "Service": agent_service(&entry.service, own),
        "Checks": checks,
    })
}

// === helpers ===

fn weights(service: &Registration) -> Value {
    json!({"Passing": service.weights.passing, "Warning": service.weights.warning})
}

fn tagged_addresses(service: &Registration, name: &str, out: &mut Map<String, Value>) {
    if service.tagged_addresses.is_empty() {
        return;
    }
    let tagged: Map<String, Value> = service
        .tagged_addresses
        .iter()
        .map(|(k, a)| (k.to_string(), json!({"Address": a.address, "Port": a.port})))
        .collect();
    out.insert(name.into(), Value::Object(tagged));
}

fn proxy(service: &Registration) -> Value {
    let none = || json!({"Mode": "", "MeshGateway": {}, "Expose": {}});
    service.proxy.as_deref().cloned().unwrap_or_else(none)
}

fn connect(service: &Registration) -> Value {
    service.connect.as_deref().cloned().unwrap_or_else(|| json!({}))
}

fn probe(probe: &Probe) -> Value {
    match probe {
        Probe::None | Probe::Ttl { .. } | Probe::Process { .. } => json!({}),
        Probe::Http { url, method, .. } => json!({"HTTP": url, "Method": method}),
        Probe::Tcp { address, .. } => json!({"TCP": address}),
        Probe::Grpc { target, .. } => json!({"GRPC": target}),
        Probe::Udp { address } => json!({"UDP": address}),
        Probe::H2Ping { address, tls, .. } => json!({"H2PING": address, "H2PingUseTLS": tls}),
        Probe::Alias { node, service_id } => {
            json!({"AliasNode": node, "AliasService": service_id})
        }
    }
}
