// SPDX-License-Identifier: Apache-2.0
//! Bodies of registrations as catalog records: the agent's form and the catalog's. Pure.
//! Validation speaks Consul's sentences where clients know them.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};
use weft_base::limits::STORE_TXN_OPS_MAX;
use weft_kinds::views::catalog::{
    CheckRecord, NodeRecord, Registration, Status, TaggedAddress, Weights,
};
use weft_kinds::views::check::{CheckDefinition, Probe, SERF_HEALTH};

use super::body::Fields;
use super::error::Refusal;
use crate::guards;

pub mod bodies;
pub mod known;

const PORT_MAX: u64 = 65_535;
/// Consul's default when a check that asks something names no timeout.
const TIMEOUT_MS: u64 = 10_000;
const SCRIPTS: &str = "Scripts are disabled on this agent: weft runs no commands on a client's \
                       behalf; use an HTTP, TCP, gRPC or TTL check";
/// The largest `OutputMaxSize` that is understood; less is kept.
const OUTPUT_MAX: u64 = 1 << 30;
/// `weft run` renews its instance at least this often, and at most.
const PROCESS_MS: std::ops::RangeInclusive<u64> = 500..=60_000;

/// A service in either form of body. `name` is the field that holds its name.
///
/// # Errors
/// When a field is wrong; the text names it.
pub fn service(
    body: &Map<String, Value>,
    at: &str,
    name: &str,
    agent: bool,
) -> Result<Registration, Refusal> {
    let fields = Fields::new(body, at);
    known::place(&fields)?;
    let service = fields.text(name)?;
    let id = fields.text("ID")?;
    if service.is_empty() {
        return Err(Refusal::bad(if agent {
            "Missing service name"
        } else {
            "Must provide service name (Service.Service) with ID"
        }));
    }
    let address = fields.text("Address")?;
    if matches!(address.as_str(), "0.0.0.0" | "::" | "[::]") {
        return Err(Refusal::bad(
            "Invalid service address: 0.0.0.0, :: and [::] are not addresses that clients can use",
        ));
    }
    for (field, what) in [("SocketPath", "on Unix sockets"), ("Ports", "with several ports")] {
        let is_said = |value: &Value| match value {
            Value::String(text) => !text.is_empty(),
            Value::Array(items) => !items.is_empty(),
            _ => true,
        };
        if fields.value(field).is_some_and(is_said) {
            return Err(Refusal::not_offered(format!(
                "weft does not offer services {what}: leave {at}{field} out"
            )));
        }
    }
    let port = fields.number("Port", PORT_MAX)?.unwrap_or(0);
    let registration = Registration {
        id: if id.is_empty() { service.as_str().into() } else { id.into() },
        service: service.into(),
        address: address.into(),
        port: u16::try_from(port).unwrap_or(0),
        tags: fields.list("Tags")?.into_iter().map(Into::into).collect(),
        meta: labels(fields.text_map("Meta")?),
        weights: weights(&fields, agent)?,
        tagged_addresses: tagged_addresses(&fields)?,
        kind: fields.text("Kind")?.into(),
        enable_tag_override: fields.flag("EnableTagOverride")?,
        proxy: fields.value("Proxy").cloned().map(Box::new),
        connect: connect(&fields)?.map(Box::new),
        locality: fields.value("Locality").cloned().map(Box::new),
        agent,
        ..Registration::default()
    };
    // A sidecar's proxy is filled in by its agent.
    if !at.starts_with("Connect.") {
        known::service(&registration)?;
        known::port(&registration)?;
    }
    let is_gateway = registration.kind.ends_with("-gateway");
    if agent {
        known::meta("Service", &registration.meta, is_gateway)?;
    }
    Ok(registration)
}

/// The checks that come with a service: `Check`, then `Checks`, with Consul's ids.
///
/// # Errors
/// When a field is wrong; the text names it.
pub fn service_checks(
    body: &Map<String, Value>,
    of: &Registration,
) -> Result<Vec<CheckRecord>, Refusal> {
    let fields = Fields::new(body, "");
    let mut bodies: Vec<&Map<String, Value>> = fields.object("Check")?.into_iter().collect();
    // Clients send an empty object for no check.
    bodies.retain(|b| b.values().any(|v| !v.is_null() && v.as_str() != Some("")));
    bodies.extend(fields.objects("Checks")?);
    if bodies.len() > STORE_TXN_OPS_MAX {
        let (found, most) = (bodies.len(), STORE_TXN_OPS_MAX);
        let text = format!("Checks: {found} in one request, of {most} at most; send them in parts");
        return Err(Refusal::bad(text));
    }
    let many = bodies.len() > 1;
    let mut out = Vec::with_capacity(bodies.len());
    for (index, body) in bodies.into_iter().enumerate() {
        let mut check = check(body, true)
            .map_err(|r| Refusal { text: format!("Invalid check: {}", r.text), ..r })?;
        if check.id.is_empty() {
            check.id = match many {
                true => format!("service:{}:{}", of.id, index + 1).into(),
                false => format!("service:{}", of.id).into(),
            };
        }
        if check.name.is_empty() {
            check.name = format!("Service '{}' check", of.service).into();
        }
        check.service_id.clone_from(&of.id);
        check.service_name.clone_from(&of.service);
        put(&mut out, check);
    }
    Ok(out)
}

/// Of checks of one id the last one counts.
fn put(checks: &mut Vec<CheckRecord>, check: CheckRecord) {
    checks.retain(|known| known.id != check.id);
    checks.push(check);
}

/// A check that the agent is to run or hear of.
///
/// # Errors
/// When a field is wrong; the text names it.
pub fn check(body: &Map<String, Value>, agent: bool) -> Result<CheckRecord, Refusal> {
    known::fields(body, known::CHECK)?;
    let fields = Fields::new(body, "");
    known::place(&fields)?;
    let mut definition = CheckDefinition {
        probe: probe(&fields, agent)?,
        interval_ms: fields.duration_ms("Interval")?,
        timeout_ms: fields.duration_ms("Timeout")?,
        deregister_after_ms: fields.duration_ms("DeregisterCriticalServiceAfter")?,
        success_before_passing: fields.number("SuccessBeforePassing", 1000)?.unwrap_or(0),
        failures_before_warning: fields.number("FailuresBeforeWarning", 1000)?.unwrap_or(0),
        failures_before_critical: fields.number("FailuresBeforeCritical", 1000)?.unwrap_or(0),
        initial_output: fields.text("Output")?,
        output_bytes_max: fields.number("OutputMaxSize", OUTPUT_MAX)?.unwrap_or(0),
        agent,
    };
    let runs = definition.probe.is_asked();
    if agent {
        let has_ttl = fields.duration_ms("TTL")? > 0;
        let why = match &definition.probe {
            _ if has_ttl && definition.interval_ms > 0 => {
                "Interval and TTL cannot both be specified"
            }
            Probe::Alias { .. } if has_ttl => "TTL must be not be set for Alias checks",
            _ if definition.failures_before_warning > definition.failures_before_critical => {
                "FailuresBeforeWarning can't be higher than FailuresBeforeCritical"
            }
            _ => "",
        };
        if !why.is_empty() {
            return Err(Refusal::bad(why));
        }
    }
    if agent && runs && definition.interval_ms == 0 {
        return Err(Refusal::bad(
            "Interval must be > 0 for HTTP, H2PING, TCP, UDP or OSService checks",
        ));
    }
    if agent && definition.probe == Probe::None {
        return Err(Refusal::bad(
            "TTL must be > 0 for TTL checks; give one of HTTP, TCP, UDP, GRPC, H2PING, TTL or an \
             alias",
        ));
    }
    if runs && definition.timeout_ms == 0 {
        definition.timeout_ms = TIMEOUT_MS;
    }
    let id = fields.text_of(&["CheckID", "ID"])?;
    if agent {
        no_life(&id)?;
    }
    let status = fields.text("Status")?;
    let initial = match status.as_str() {
        "" => Status::Critical,
        text => Status::parse(text).ok_or_else(|| Refusal::bad(bad_status(text)))?,
    };
    let record = CheckRecord {
        id: id.into(),
        name: fields.text("Name")?.into(),
        notes: fields.text("Notes")?.into(),
        service_id: fields.text("ServiceID")?.into(),
        initial,
        ..CheckRecord::default()
    };
    Ok(record.with(&definition))
}

/// A node of `catalog/register`.
///
/// # Errors
/// When its name or address is missing, or a field is wrong.
pub fn node(body: &Map<String, Value>, datacenter: &Arc<str>) -> Result<NodeRecord, Refusal> {
    let fields = Fields::new(body, "");
    known::place(&fields)?;
    let (name, address) = (fields.text("Node")?, fields.text("Address")?);
    if name.is_empty() {
        return Err(Refusal::bad("Must provide node"));
    }
    if address.is_empty() && !fields.flag("SkipNodeUpdate")? {
        return Err(Refusal::bad("Must provide address if SkipNodeUpdate is not set"));
    }
    let id = fields.text("ID")?;
    if !id.is_empty() && uuid::Uuid::try_parse(&id).is_err() {
        return Err(Refusal::internal(format!("Bad node ID: {id:?} is no UUID")));
    }
    let meta = labels(fields.text_map("NodeMeta")?);
    known::meta("Node", &meta, true)?;
    Ok(NodeRecord {
        id: id.into(),
        node: name.into(),
        address: address.into(),
        datacenter: datacenter.clone(),
        tagged_addresses: labels(fields.text_map("TaggedAddresses")?),
        meta,
        ..NodeRecord::default()
    })
}

/// The checks of `catalog/register`: nobody runs them, their status is what is written. One that
/// names no service is its node's, also beside a service.
///
/// # Errors
/// When a field is wrong.
pub fn catalog_checks(body: &Map<String, Value>) -> Result<Vec<CheckRecord>, Refusal> {
    let fields = Fields::new(body, "");
    let mut bodies: Vec<&Map<String, Value>> = fields.object("Check")?.into_iter().collect();
    bodies.extend(fields.objects("Checks")?);
    let mut out = Vec::with_capacity(bodies.len());
    for body in bodies {
        let given = Fields::new(body, "Check.");
        let (at, outer) = (given.text("Node")?, fields.text("Node")?);
        if !at.is_empty() && !at.eq_ignore_ascii_case(&outer) {
            let text = format!("check node {at:?} does not match node {outer:?}");
            return Err(Refusal::internal(text));
        }
        let mut record = catalog_check(body)?;
        if record.name.is_empty() && record.id.is_empty() {
            return Err(Refusal::bad("Must provide a name or CheckID for each check"));
        }
        if record.id.is_empty() {
            record.id.clone_from(&record.name);
        }
        put(&mut out, record);
    }
    Ok(out)
}

/// A check that is only written to the catalog. Its probe, if any, is one level down, for whoever
/// watches external nodes.
///
/// # Errors
/// When a field is wrong; the text names it.
pub fn catalog_check(body: &Map<String, Value>) -> Result<CheckRecord, Refusal> {
    let record = check(body, false)?;
    match Fields::new(body, "Check.").object("Definition")? {
        Some(nested) => Ok(record.with(&check(nested, false)?.typed())),
        None => Ok(record),
    }
}

/// # Errors
/// When a check that clients register has the id by which nodes are said to be there.
pub fn no_life(id: &str) -> Result<(), Refusal> {
    match id {
        SERF_HEALTH => Err(Refusal::bad(format!(
            "the check {SERF_HEALTH:?} says whether a node is there, which is not for its clients \
             to say; give this one another CheckID"
        ))),
        _ => Ok(()),
    }
}

pub fn bad_status(text: &str) -> String {
    format!("Invalid check status: '{text}'")
}

// === helpers ===

/// `agent`: it is to be asked here. What only the catalog is to show is whoever's who asks it.
fn probe(fields: &Fields, agent: bool) -> Result<Probe, Refusal> {
    let is_none = |target: &str| agent && host_port(target).is_none();
    for script in ["ScriptArgs", "Args", "Script", "DockerContainerID", "Shell"] {
        let given = fields
            .value(script)
            .is_some_and(|v| v.as_str() != Some("") && *v != Value::Array(vec![]));
        if given && guards::on("script-checks") {
            return Err(Refusal::bad(SCRIPTS));
        }
    }
    if !fields.text("OSService")?.is_empty() {
        return Err(Refusal::bad(
            "OSService checks are not run by weft, which knows no service manager; use an HTTP, \
             TCP, gRPC or TTL check",
        ));
    }
    let (node, service_id) = (fields.text("AliasNode")?, fields.text("AliasService")?);
    if !node.is_empty() || !service_id.is_empty() {
        return Ok(Probe::Alias { node, service_id });
    }
    match fields.duration_ms("WeftProcess")? {
        0 => {}
        ttl_ms if PROCESS_MS.contains(&ttl_ms) => return Ok(Probe::Process { ttl_ms }),
        _ => return Err(Refusal::bad("WeftProcess: expected 500ms to 1m")),
    }
    let http = fields.text("HTTP")?;
    if !http.is_empty() {
        return http_probe(fields, http, agent);
    }
    let tcp = fields.text("TCP")?;
    if !tcp.is_empty() {
        if is_none(&tcp) {
            return Err(Refusal::bad(format!("TCP: {tcp:?} is not host:port")));
        }
        return Ok(Probe::Tcp {
            address: tcp,
            tls: fields.flag("TCPUseTLS")?,
            tls_skip_verify: fields.flag("TLSSkipVerify")?,
            tls_server_name: fields.text("TLSServerName")?,
        });
    }
    let grpc = fields.text("GRPC")?;
    if !grpc.is_empty() {
        if is_none(grpc.split('/').next().unwrap_or_default()) {
            return Err(Refusal::bad(format!("GRPC: {grpc:?} is not host:port or host:port/name")));
        }
        return Ok(Probe::Grpc {
            target: grpc,
            tls: fields.flag("GRPCUseTLS")?,
            tls_skip_verify: fields.flag("TLSSkipVerify")?,
            tls_server_name: fields.text("TLSServerName")?,
        });
    }
    if let Some(probe) = datagram_or_ping(fields, is_none)? {
        return Ok(probe);
    }
    Ok(match fields.duration_ms("TTL")? {
        0 => Probe::None,
        ttl_ms => Probe::Ttl { ttl_ms },
    })
}

fn datagram_or_ping(
    fields: &Fields,
    is_none: impl Fn(&str) -> bool,
) -> Result<Option<Probe>, Refusal> {
    let address = fields.text("UDP")?;
    if !address.is_empty() {
        if is_none(&address) {
            return Err(Refusal::bad(format!("UDP: {address:?} is not host:port")));
        }
        return Ok(Some(Probe::Udp { address }));
    }
    let address = fields.text("H2PING")?;
    if address.is_empty() {
        return Ok(None);
    }
    if is_none(&address) {
        return Err(Refusal::bad(format!("H2PING: {address:?} is not host:port")));
    }
    Ok(Some(Probe::H2Ping {
        address,
        // As in Consul TLS is meant unless it is said otherwise.
        tls: fields.value("H2PingUseTLS").is_none() || fields.flag("H2PingUseTLS")?,
        tls_skip_verify: fields.flag("TLSSkipVerify")?,
        tls_server_name: fields.text("TLSServerName")?,
    }))
}

fn http_probe(fields: &Fields, url: String, agent: bool) -> Result<Probe, Refusal> {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let is_none = rest.is_none_or(|rest| rest.is_empty() || rest.starts_with('/'));
    if agent && is_none && guards::on("field-paths") {
        return Err(Refusal::bad(format!("HTTP: {url:?} is not an http:// or https:// URL")));
    }
    let mut header = BTreeMap::new();
    if let Some(map) = fields.object("Header")? {
        let names = Fields::new(map, "Header.");
        for name in map.keys() {
            header.insert(name.clone(), names.list(name)?);
        }
    }
    Ok(Probe::Http {
        url,
        method: fields.text("Method")?,
        header,
        body: fields.text("Body")?,
        tls_skip_verify: fields.flag("TLSSkipVerify")?,
        tls_server_name: fields.text("TLSServerName")?,
    })
}

fn host_port(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok().filter(|p| *p > 0)?;
    Some((host, port))
}

fn weights(fields: &Fields, agent: bool) -> Result<Weights, Refusal> {
    let Some(body) = fields.object("Weights")? else { return Ok(Weights::default()) };
    let given = Fields::new(body, "Weights.");
    let default = Weights::default();
    let read = |name: &str, or: u32| -> Result<u32, Refusal> {
        let n = given.number(name, PORT_MAX)?;
        Ok(n.and_then(|n| u32::try_from(n).ok()).unwrap_or(or))
    };
    let weights = Weights {
        passing: read("Passing", default.passing)?,
        warning: read("Warning", default.warning)?,
    };
    // Go's catalog client sends zeros for weights that nobody set.
    if !agent && weights.passing == 0 && weights.warning == 0 {
        return Ok(default);
    }
    if weights.passing == 0 {
        return Err(Refusal::bad("Invalid weights: Passing must be greater than 0"));
    }
    Ok(weights)
}

fn tagged_addresses(fields: &Fields) -> Result<BTreeMap<Arc<str>, TaggedAddress>, Refusal> {
    let mut out = BTreeMap::new();
    for (name, value) in fields.object("TaggedAddresses")?.into_iter().flatten() {
        let Some(body) = value.as_object() else {
            return Err(Refusal::bad(format!("TaggedAddresses.{name}: expected an object")));
        };
        let given = Fields::new(body, "TaggedAddresses.");
        let port = given.number("Port", PORT_MAX)?.unwrap_or(0);
        let address = given.text("Address")?;
        if matches!(address.as_str(), "0.0.0.0" | "::" | "[::]") {
            return Err(Refusal::bad(format!(
                "Invalid tagged address {name:?}: {address} is no address that clients can use"
            )));
        }
        let address = address.into();
        let tagged = TaggedAddress { address, port: u16::try_from(port).unwrap_or(0) };
        out.insert(name.as_str().into(), tagged);
    }
    Ok(out)
}

/// `Connect` without the sidecar, which becomes a registration of its own.
fn connect(fields: &Fields) -> Result<Option<Value>, Refusal> {
    let Some(body) = fields.object("Connect")? else { return Ok(None) };
    let native = Fields::new(body, "Connect.").flag("Native")?;
    Ok(native.then(|| serde_json::json!({"Native": true})))
}

fn labels(map: BTreeMap<String, String>) -> weft_kinds::views::Labels {
    map.into_iter().map(|(k, v)| (k.into(), v.into())).collect()
}

#[cfg(test)]
mod tests;
