// SPDX-License-Identifier: Apache-2.0
//! `/v1/catalog/gateway-services/*`: what the config entries of Consul's gateways lead to, which
//! DNS asks too. The entries are kept and shown; weft's own gateways are Kubernetes' Gateways.

use std::cell::LazyCell;
use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use weft_identity::permission::{Kind, Verb};
use weft_registry::consul::{State, Topic, keys};

use super::Door;
use super::body::{self, Fields};
use super::config::{self, record};
use super::error::Refusal;
use super::http::Ask;
use super::index;
use super::reply::Reply;
use super::view::{CONSUL_SERVICE, View};

const INGRESS: &str = "ingress-gateway";
const TERMINATING: &str = "terminating-gateway";
/// In an entry: every service that is there and that such a gateway can lead to.
const ALL: &str = "*";

impl Door {
    pub(super) async fn gateway_services(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let name = ask.argument.clone();
        if name.is_empty() {
            return Err(Refusal::bad("Missing gateway name"));
        }
        ask.who.demand(Verb::Read, Kind::Service, &ask.namespace, &name)?;
        let (topic, blocking) =
            (Topic::Under(keys::record(config::TABLE, "").into()), ask.params.blocking()?);
        let may = |service: &str| ask.who.may(Verb::Read, Kind::Service, &ask.namespace, service);
        let build = |view: &View, state: &State| {
            let mut rows = of_ingress(state, &name)?;
            rows.extend(of_terminating(state, &name)?);
            let mut rows = expanded(rows, view, &ask.namespace);
            rows.retain(|row| may(body::word(body::part(row, "Service"), "Name")));
            Ok(Value::Array(rows))
        };
        // What is there matters only to entries that lead to all of it; one that becomes such an
        // entry moves itself.
        match leads_to_all(&self.consul().state(), &name) {
            true => {
                let instances = index::Topic::Instances(ask.namespace.clone());
                self.read_both((instances, topic), &blocking, build).await
            }
            false => {
                let shown = |state: &State| Ok(Reply::json(build(&self.view(), state)?));
                self.read_shelf(topic, &blocking, shown).await
            }
        }
    }
}

// === helpers ===

/// With every service that there is in the place of a `*`, but those that the entry names
/// themselves. In order of their names, then of the ports that lead to them.
fn expanded(rows: Vec<Value>, view: &View, ns: &str) -> Vec<Value> {
    let name_of = |row: &Value| body::word(body::part(row, "Service"), "Name").to_owned();
    let place = |row: &Value, name: &str| {
        let port = body::part(row, "Port").as_u64().unwrap_or(0);
        (name.to_ascii_lowercase(), port, body::word(row, "GatewayKind").to_owned())
    };
    let (all, named): (Vec<Value>, Vec<Value>) =
        rows.into_iter().partition(|row| name_of(row) == ALL);
    let mut out: BTreeMap<_, Value> =
        named.into_iter().map(|row| (place(&row, &name_of(&row)), row)).collect();
    for row in all {
        let connect = body::word(&row, "GatewayKind") == INGRESS;
        for name in led_by_all(view, ns, connect) {
            out.entry(place(&row, &name)).or_insert_with(|| {
                let own = [("Service", json!({ "Name": name })), ("FromWildcard", json!(true))];
                let row = row.as_object().into_iter().flatten();
                let row = row.map(|(name, value)| (name.clone(), value.clone()));
                row.chain(own.map(|(name, value)| (name.to_owned(), value))).collect()
            });
        }
    }
    out.into_values().collect()
}

/// What a `*` stands for: services that are no proxies or gateways themselves. From inside
/// (`connect`) a gateway reaches what speaks Connect, or has a sidecar that does; to the outside
/// it leads to what has an instance that does not.
fn led_by_all(view: &View, ns: &str, connect: bool) -> Vec<String> {
    let names = view.services(ns).into_keys().filter(|name| **name != *CONSUL_SERVICE);
    names.filter(|name| fits(view, ns, name, connect)).map(|name| name.to_string()).collect()
}

fn fits(view: &View, ns: &str, service: &str, connect: bool) -> bool {
    let entries = view.entries(ns, service);
    let mut usual = entries.iter().filter(|entry| entry.service.kind.is_empty()).peekable();
    if usual.peek().is_none() {
        return false;
    }
    let speaks = |name: &str| name.eq_ignore_ascii_case(service);
    match connect {
        true => {
            view.speakers(ns, service).iter().any(|entry| entry.service.speaks_for().any(speaks))
        }
        false => usual.any(|entry| entry.service.speaks_for().next().is_none()),
    }
}

fn leads_to_all(state: &State, name: &str) -> bool {
    let is_all = |service: &Value| body::word(service, "Name") == ALL;
    let has = |part: &Value| {
        body::part(part, "Services").as_array().is_some_and(|all| all.iter().any(is_all))
    };
    let entry = |kind| state.record(config::TABLE, &record(kind, name)).map(|(entry, _)| entry);
    let listens = |entry: &Value| {
        body::part(entry, "Listeners").as_array().is_some_and(|all| all.iter().any(has))
    };
    entry(INGRESS).is_some_and(|entry| listens(entry)) || entry(TERMINATING).is_some_and(|e| has(e))
}

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
    /// As written.
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

/// Names of the ingress gateways whose config entries lead to a service: by its name, or to all,
/// where it is one that such a gateway reaches.
pub(crate) fn ingress_gateways(view: &View, state: &State, ns: &str, service: &str) -> Vec<String> {
    let by_all = LazyCell::new(|| {
        !service.eq_ignore_ascii_case(CONSUL_SERVICE) && fits(view, ns, service, true)
    });
    let leads = |entry: &Value| {
        let led = entry.as_object().and_then(|entry| led_to(entry).ok()).unwrap_or_default();
        led.iter().any(|led| match led.service.as_str() {
            ALL => *by_all,
            name => name.eq_ignore_ascii_case(service),
        })
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
    row
}

fn stamped(mut row: Map<String, Value>, created: u64, modified: u64) -> Value {
    row.insert("CreateIndex".into(), json!(created));
    row.insert("ModifyIndex".into(), json!(modified));
    Value::Object(row)
}
