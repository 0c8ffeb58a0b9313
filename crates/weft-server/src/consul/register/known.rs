// SPDX-License-Identifier: Apache-2.0
//! What registrations may say: the fields that Consul's own structures have, and what of their
//! values it refuses. A field that nobody knows is a mistake of who wrote it: a service whose
//! `Chek` was left out would never be looked after. Pure.

use std::collections::BTreeSet;

use serde_json::{Map, Value};
use weft_base::name::Label;
use weft_kinds::views::Labels;
use weft_kinds::views::catalog::Registration;

use crate::consul::body::{Fields, same, word};
use crate::consul::error::Refusal;

/// Pairs of one node's or instance's meta, and bytes of their parts, as in Consul.
const PAIRS_MAX: usize = 64;
const KEY_BYTES_MAX: usize = 128;
const VALUE_BYTES_MAX: usize = 512;
const KINDS: [&str; 7] = [
    "",
    "typical",
    "connect-proxy",
    "mesh-gateway",
    "terminating-gateway",
    "ingress-gateway",
    "api-gateway",
];

/// `agent/service/register`, and its `Connect.SidecarService`.
pub const AGENT_SERVICE: &[&str] = &[
    "ID",
    "Name",
    "Kind",
    "Tags",
    "Address",
    "TaggedAddresses",
    "Meta",
    "Port",
    "Ports",
    "SocketPath",
    "EnableTagOverride",
    "Check",
    "Checks",
    "Weights",
    "Token",
    "Proxy",
    "Connect",
    "Namespace",
    "Partition",
    "Locality",
];
/// `Service` of `catalog/register` and of transactions.
pub const SERVICE: &[&str] = &[
    "ID",
    "Service",
    "Kind",
    "Tags",
    "Address",
    "TaggedAddresses",
    "Meta",
    "Port",
    "Ports",
    "SocketPath",
    "EnableTagOverride",
    "Weights",
    "Proxy",
    "Connect",
    "Namespace",
    "Partition",
    "Locality",
    "PeerName",
    "Datacenter",
    "ContentHash",
    "CreateIndex",
    "ModifyIndex",
    "EnterpriseMeta",
    "LocallyRegisteredAsSidecar",
];
/// A check of an agent, or of the catalog with its `Definition`; `WeftProcess` is `weft run`'s.
pub const CHECK: &[&str] = &[
    "ID",
    "CheckID",
    "Name",
    "Node",
    "Status",
    "Notes",
    "Output",
    "ServiceID",
    "ServiceName",
    "ServiceTags",
    "Type",
    "Token",
    "Namespace",
    "Partition",
    "Definition",
    "Script",
    "ScriptArgs",
    "Args",
    "HTTP",
    "Header",
    "Method",
    "Body",
    "DisableRedirects",
    "TCP",
    "TCPUseTLS",
    "UDP",
    "GRPC",
    "GRPCUseTLS",
    "H2PING",
    "H2PingUseTLS",
    "OSService",
    "AliasNode",
    "AliasService",
    "DockerContainerID",
    "Shell",
    "TLSServerName",
    "TLSSkipVerify",
    "TTL",
    "Interval",
    "Timeout",
    "IntervalDuration",
    "TimeoutDuration",
    "DeregisterCriticalServiceAfterDuration",
    "DeregisterCriticalServiceAfter",
    "SuccessBeforePassing",
    "FailuresBeforeWarning",
    "FailuresBeforeCritical",
    "OutputMaxSize",
    "ProxyHTTP",
    "ProxyGRPC",
    "ExposedPort",
    "PeerName",
    "CreateIndex",
    "ModifyIndex",
    "EnterpriseMeta",
    "WeftProcess",
];
/// The body of `catalog/register`.
pub const REGISTRATION: &[&str] = &[
    "ID",
    "Node",
    "Address",
    "Datacenter",
    "TaggedAddresses",
    "NodeMeta",
    "Service",
    "Check",
    "Checks",
    "SkipNodeUpdate",
    "Namespace",
    "Partition",
    "Locality",
    "PeerName",
    "Segment",
    "WriteRequest",
    "Token",
    "EnterpriseMeta",
    "RaftIndex",
];

/// # Errors
/// 400 with Consul's sentence for a field that is none of these.
pub fn fields(map: &Map<String, Value>, known: &[&str]) -> Result<(), Refusal> {
    let other = map.keys().find(|key| !known.iter().any(|name| same(key, name)));
    match other {
        None => Ok(()),
        Some(other) => {
            let other: String = other.chars().take(64).collect();
            let text = format!("Request decode failed: json: unknown field {other:?}");
            Err(Refusal::bad(text))
        }
    }
}

/// Where what is registered belongs: there is one partition, and nobody's peers.
///
/// # Errors
/// 501 for others; 400 for a namespace that has no name of one.
pub fn place(of: &Fields) -> Result<(), Refusal> {
    if !["", "default"].contains(&&*of.text("Partition")?) {
        return Err(Refusal::not_offered("weft has no partitions besides \"default\""));
    }
    if !of.text("PeerName")?.is_empty() {
        return Err(Refusal::not_offered("weft has no peering of clusters: leave PeerName out"));
    }
    let namespace = of.text("Namespace")?;
    if namespace.is_empty() { Ok(()) } else { self::namespace(&namespace) }
}

/// # Errors
/// 400 for what is no name of a namespace: nobody could see what is in it.
pub fn namespace(named: &str) -> Result<(), Refusal> {
    match Label::new(named) {
        Ok(_) => Ok(()),
        Err(why) => Err(Refusal::bad(format!("the namespace does not do: {why}"))),
    }
}

/// What a service is, and what it must say then.
///
/// # Errors
/// 400 with Consul's sentence.
pub fn service(new: &Registration) -> Result<(), Refusal> {
    if !KINDS.contains(&&*new.kind) {
        return Err(Refusal::bad(format!("Invalid service kind {:?}: no such kind", new.kind)));
    }
    let proxy = new.proxy.as_deref();
    let destination = proxy.map_or("", |proxy| named(proxy, "DestinationServiceName"));
    let native = new.connect.is_some();
    if &*new.kind == "connect-proxy" {
        let why = match destination {
            "" => "Proxy.DestinationServiceName must be non-empty for Connect proxy services",
            "*" => {
                "Proxy.DestinationServiceName must not be a wildcard (\"*\") for Connect proxy \
                 services"
            }
            _ if native => "A Proxy cannot also be Connect Native, only typical services",
            _ => return upstreams(proxy),
        };
        return Err(Refusal::bad(why));
    }
    let gateway = match &*new.kind {
        "mesh-gateway" => "Mesh Gateways",
        "terminating-gateway" => "Terminating Gateways",
        "ingress-gateway" => "Ingress Gateways",
        "api-gateway" => "API Gateways",
        _ => return Ok(()),
    };
    match destination.is_empty() {
        true => Ok(()),
        false => Err(Refusal::bad(format!(
            "The Proxy.DestinationServiceName configuration is invalid for {gateway}"
        ))),
    }
}

/// What speaks Connect is called somewhere.
///
/// # Errors
/// 400 with Consul's sentence.
pub fn port(new: &Registration) -> Result<(), Refusal> {
    let what = match (&*new.kind, new.connect.is_some()) {
        _ if new.port != 0 => return Ok(()),
        ("connect-proxy", _) => "a connect-proxy",
        (_, true) => "a Connect native service.",
        _ => return Ok(()),
    };
    Err(Refusal::bad(format!("Port or SocketPath must be set for {what}")))
}

/// What a proxy is to listen for, each at a place of its own.
fn upstreams(proxy: Option<&Value>) -> Result<(), Refusal> {
    let Some(proxy) = proxy.and_then(Value::as_object) else { return Ok(()) };
    let mut taken = BTreeSet::new();
    for one in Fields::new(proxy, "Proxy.").objects("Upstreams")? {
        let of = Fields::new(one, "Proxy.Upstreams.");
        let (name, path) = (of.text("DestinationName")?, of.text("LocalBindSocketPath")?);
        let (kind, address) = (of.text("DestinationType")?, of.text("LocalBindAddress")?);
        let port = of.number("LocalBindPort", 65_535)?.unwrap_or(0);
        let address = if address.is_empty() { "127.0.0.1" } else { &address };
        let at = if path.is_empty() { format!("{address}:{port}") } else { path.clone() };
        // Filled in from config entries: those have no place to listen at.
        let central = of.flag("CentrallyConfigured")?;
        let why = match (port, path.is_empty()) {
            _ if !["", "service", "prepared_query"].contains(&&*kind) => {
                format!("unknown upstream destination type: {kind:?}")
            }
            _ if name.is_empty() => "upstream destination name cannot be empty".to_owned(),
            _ if central => continue,
            _ if name == "*" => "upstream destination name cannot be a wildcard".to_owned(),
            (0, true) => {
                "upstream local bind port or local socket path must be defined and nonzero"
                    .to_owned()
            }
            (1.., false) => {
                "only one of upstream local bind port or local socket path can be defined and \
                 nonzero"
                    .to_owned()
            }
            _ if !taken.insert(at.clone()) => format!(
                "upstreams cannot contain duplicates by local bind address and port or unix path; \
                 {at:?} is specified twice"
            ),
            _ => continue,
        };
        return Err(Refusal::bad(format!("Proxy.Upstreams: {name:?}: {why}")));
    }
    Ok(())
}

/// # Errors
/// 400 with Consul's sentence for pairs that it does not take. `reserved`: its own are taken too.
pub fn meta(of: &str, meta: &Labels, reserved: bool) -> Result<(), Refusal> {
    if meta.len() > PAIRS_MAX {
        return Err(Refusal::bad(format!(
            "Invalid {of} Meta: Node metadata cannot contain more than {PAIRS_MAX} key/value pairs"
        )));
    }
    // Points and slashes besides: where an instance is (`topology.kubernetes.io/zone`) is read
    // from its meta.
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    for (key, value) in meta {
        let why = match () {
            () if key.is_empty() => "Key cannot be blank".to_owned(),
            () if !key.chars().all(plain) => "Key contains invalid characters".to_owned(),
            () if key.len() > KEY_BYTES_MAX => {
                format!("Key is too long (limit: {KEY_BYTES_MAX} characters)")
            }
            () if key.starts_with("consul-") && !reserved => {
                "Key prefix 'consul-' is reserved for internal use".to_owned()
            }
            () if value.len() > VALUE_BYTES_MAX => {
                format!("Value is too long (limit: {VALUE_BYTES_MAX} characters)")
            }
            () => continue,
        };
        let (key, value): (String, String) =
            (key.chars().take(64).collect(), value.chars().take(64).collect());
        return Err(Refusal::bad(format!(
            "Invalid {of} Meta: Couldn't load metadata pair ('{key}', '{value}'): {why}"
        )));
    }
    Ok(())
}

/// The text of a part whatever its case and underscores.
fn named<'a>(record: &'a Value, name: &str) -> &'a str {
    let known = record.as_object().and_then(|map| map.keys().find(|key| same(key, name)));
    known.map_or("", |key| word(record, key))
}
