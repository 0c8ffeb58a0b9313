// SPDX-License-Identifier: Apache-2.0
//! `/v1/catalog/gateway-services/*`: what the config entries of Consul's gateways lead to, which
//! DNS asks too. The entries are kept and shown; weft's own gateways are Kubernetes' Gateways.

use serde_json::{Map, Value, json};
use weft_identity::permission::{Kind, Verb};
use weft_registry::consul::{State, Topic, keys};

use super::Door;
use super::body::{self, Fields};
use super::config::{self, record};
use super::error::Refusal;
use super::http::Ask;
use super::reply::Reply;

const INGRESS: &str = "ingress-gateway";
const TERMINATING: &str = "terminating-gateway";

impl Door {
    pub(super) async fn gateway_services(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let name = ask.argument.clone();
        if name.is_empty() {
            return Err(Refusal::bad("Missing gateway name"));
        }
        ask.who.demand(Verb::Read, Kind::Service, &ask.namespace, &name)?;
        let topic = Topic::Under(keys::record(config::TABLE, "").into());
        self.read_shelf(topic, &ask.params.blocking()?, |state| {
            let may =
                |service: &str| ask.who.may(Verb::Read, Kind::Service, &ask.namespace, service);
            let mut rows = of_ingress(state, &name)?;
            rows.extend(of_terminating(state, &name)?);
            rows.retain(|row| may(body::word(body::part(row, "Service"), "Name")));
            Ok(Reply::json(Value::Array(rows)))
        })
        .await
    }
}

// === helpers ===

/// The entry of a gateway and its indexes.
fn entry(state: &State, kind: &str, name: &str) -> Option<(Map<String, Value>, u64, u64)> {
    let (entry, item) = state.record(config::TABLE, &record(kind, name))?;
    Some((entry.as_object()?.clone(), item.created, item.modified))
}

fn of_ingress(state: &State, name: &str) -> Result<Vec<Value>, Refusal> {
    let Some((entry, created, modified)) = entry(state, INGRESS, name) else {
        return Ok(Vec::new());
    };
    let led = led_to(&entry)?.into_iter().map(|led| {
        let mut row = row(name, INGRESS, &led.service);
        row.insert("Port".into(), json!(led.port));
        row.insert("Protocol".into(), json!(led.protocol));
        if !led.hosts.is_empty() {
            row.insert("Hosts".into(), json!(led.hosts));
        }
        stamped(row, created, modified)
    });
    Ok(led.collect())
}

/// A service behind a listener of an ingress gateway.
struct Led {
    port: u64,
    protocol: String,
    /// As written: `*` is every one.
    service: String,
    hosts: Vec<String>,
}

fn led_to(entry: &Map<String, Value>) -> Result<Vec<Led>, Refusal> {
    let mut out = Vec::new();
    for listener in Fields::new(entry, "").objects("Listeners")? {
        let fields = Fields::new(listener, "Listeners.");
        let port = fields.number("Port", 65_535)?.unwrap_or(0);
        let protocol = fields.text("Protocol")?;
        for service in fields.objects("Services")? {
            let of = Fields::new(service, "Listeners.Services.");
            let (service, hosts) = (of.text("Name")?, of.list("Hosts")?);
            out.push(Led { port, protocol: protocol.clone(), service, hosts });
        }
    }
    Ok(out)
}

/// What moves with the config entries of ingress gateways.
pub(super) fn ingress_topic() -> Topic {
    Topic::Under(keys::record(config::TABLE, &record(INGRESS, "")).into())
}

/// Names of the ingress gateways whose config entries lead to a service.
pub(crate) fn ingress_gateways(state: &State, service: &str) -> Vec<String> {
    let leads = |entry: &Value| {
        let led = entry.as_object().and_then(|entry| led_to(entry).ok()).unwrap_or_default();
        led.iter().any(|led| led.service == "*" || led.service.eq_ignore_ascii_case(service))
    };
    let all = state.records(config::TABLE).into_iter().map(|(entry, _)| entry);
    let gateways = all.filter(|entry| body::word(entry, "Kind") == INGRESS && leads(entry));
    gateways.map(|entry| body::word(&entry, "Name").to_owned()).collect()
}

fn of_terminating(state: &State, name: &str) -> Result<Vec<Value>, Refusal> {
    let Some((entry, created, modified)) = entry(state, TERMINATING, name) else {
        return Ok(Vec::new());
    };
    let mut rows = Vec::new();
    for service in Fields::new(&entry, "").objects("Services")? {
        let of = Fields::new(service, "Services.");
        let mut row = row(name, TERMINATING, &of.text("Name")?);
        for field in ["CAFile", "CertFile", "KeyFile", "SNI"] {
            let text = of.text(field)?;
            if !text.is_empty() {
                row.insert(field.into(), json!(text));
            }
        }
        rows.push(stamped(row, created, modified));
    }
    Ok(rows)
}

fn row(gateway: &str, kind: &str, service: &str) -> Map<String, Value> {
    let of = |name: &str| json!({"Name": name});
    let mut row = Map::new();
    row.insert("Gateway".into(), of(gateway));
    row.insert("Service".into(), of(service));
    row.insert("GatewayKind".into(), json!(kind));
    if service == "*" {
        row.insert("FromWildcard".into(), json!(true));
    }
    row
}

fn stamped(mut row: Map<String, Value>, created: u64, modified: u64) -> Value {
    row.insert("CreateIndex".into(), json!(created));
    row.insert("ModifyIndex".into(), json!(modified));
    Value::Object(row)
}
