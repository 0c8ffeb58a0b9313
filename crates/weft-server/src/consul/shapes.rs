// SPDX-License-Identifier: Apache-2.0
//! Consul's JSON, exactly: casing, order, and what is `[]`, `{}`, `null` or left out.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use weft_kinds::views::Labels;
use weft_kinds::views::catalog::{NodeRecord, Registration};
use weft_kinds::views::check::{CheckDefinition, Probe};

use super::duration;
use super::stamp::Stamp;
use super::view::{CheckView, Entry, Identity, View, aggregated};

/// A node as `catalog/nodes` and `health/service` list it.
pub fn node(node: &NodeRecord, own: &Identity, stamp: Stamp) -> Value {
    let mut tagged = node.tagged_addresses.clone();
    // As an agent says it of its node; of others as much as was written.
    if node.server || node.node == own.node.node {
        for (name, address) in usual_addresses(&node.address) {
            tagged.entry(name).or_insert(address);
        }
    }
    let tagged = if tagged.is_empty() { Value::Null } else { json!(tagged) };
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

/// The addresses that an agent names besides its node's: all of them that one.
pub fn usual_addresses(address: &Arc<str>) -> Labels {
    let family = if address.contains(':') { "ipv6" } else { "ipv4" };
    let names = ["lan", "wan"].map(|name| [name.to_owned(), format!("{name}_{family}")]);
    names.into_iter().flatten().map(|name| (name.into(), address.clone())).collect()
}

/// Whether a node of either family has a tagged address of this name.
pub fn is_usual_address(name: &str) -> bool {
    let family = name.strip_prefix("lan").or_else(|| name.strip_prefix("wan"));
    matches!(family, Some("" | "_ipv4" | "_ipv6"))
}

/// A node by its name.
pub fn own_node(view: &View, name: &str) -> Value {
    let record = view.node(name);
    node(&record, &view.own, view.stamps.node(&record))
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
    let node = node(&entry.node, &view.own, view.stamps.node(&entry.node));
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
        "Definition": if definition.agent { json!({}) } else { written(&definition) },
        "CreateIndex": stamp.0,
        "ModifyIndex": stamp.1,
    })
}

/// An entry of `health/service`.
pub fn health_entry(entry: &Entry, view: &View) -> Value {
    let stamps = &view.stamps;
    let checks: Vec<Value> = entry.checks.iter().map(|c| check(c, stamps.check(c))).collect();
    json!({
        "Node": node(&entry.node, &view.own, stamps.node(&entry.node)),
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

/// What was written of a check that others run: they read here what they are to do. Without what
/// is not set.
fn written(definition: &CheckDefinition) -> Value {
    let Value::Object(mut fields) = probe(&definition.probe) else { return json!({}) };
    let times = [
        ("Interval", definition.interval_ms),
        ("Timeout", definition.timeout_ms),
        ("DeregisterCriticalServiceAfter", definition.deregister_after_ms),
    ];
    for (name, ms) in times {
        let time = if ms == 0 { String::new() } else { duration::format(ms) };
        fields.insert(name.to_owned(), json!(time));
    }
    fields.retain(|name, value| {
        let unset = [json!(""), json!(false), json!({})].contains(value);
        !unset || name == "H2PingUseTLS" || name.starts_with("Alias")
    });
    Value::Object(fields)
}

fn probe(probe: &Probe) -> Value {
    match probe {
        Probe::None | Probe::Process { .. } => json!({}),
        Probe::Ttl { ttl_ms } => json!({"TTL": duration::format(*ttl_ms)}),
        Probe::Http { url, method, header, body, tls_skip_verify, tls_server_name } => json!({
            "HTTP": url, "Method": method, "Header": header, "Body": body,
            "TLSSkipVerify": tls_skip_verify, "TLSServerName": tls_server_name,
        }),
        Probe::Tcp { address, tls, tls_skip_verify, tls_server_name } => json!({
            "TCP": address, "TCPUseTLS": tls,
            "TLSSkipVerify": tls_skip_verify, "TLSServerName": tls_server_name,
        }),
        Probe::Grpc { target, tls, tls_skip_verify, tls_server_name } => json!({
            "GRPC": target, "GRPCUseTLS": tls,
            "TLSSkipVerify": tls_skip_verify, "TLSServerName": tls_server_name,
        }),
        Probe::Udp { address } => json!({"UDP": address}),
        Probe::H2Ping { address, tls, tls_skip_verify, tls_server_name } => json!({
            "H2PING": address, "H2PingUseTLS": tls,
            "TLSSkipVerify": tls_skip_verify, "TLSServerName": tls_server_name,
        }),
        Probe::Alias { node, service_id } => {
            json!({"AliasNode": node, "AliasService": service_id})
        }
    }
}
