// SPDX-License-Identifier: Apache-2.0
//! Whether a config entry means something: what Consul checks of each kind, in its words, and what
//! it fills in. Works on entries that `form` has read. Pure.

mod access;
mod gateways;
mod routing;

use serde_json::{Map, Value, json};

use super::{INTENTIONS, kinds};
use crate::consul::body::{part, word};

const META_PAIRS_MAX: usize = 64;
const META_KEY_BYTES_MAX: usize = 128;
pub(super) const META_VALUE_BYTES_MAX: usize = 512;
const METHODS: [&str; 9] =
    ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE"];
const TLS_VERSIONS: [&str; 6] = ["", "TLS_AUTO", "TLSv1_0", "TLSv1_1", "TLSv1_2", "TLSv1_3"];
/// Of TLS 1.2, as Envoy can be told.
const CIPHERS: [&str; 14] = [
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
];

/// An entry as Consul would keep it.
///
/// # Errors
/// Consul's sentence.
pub fn judge(kind: &str, mut entry: Map<String, Value>) -> Result<Map<String, Value>, String> {
    fill(kind, &mut entry);
    let entry = Value::Object(entry);
    meta(&entry)?;
    match kind {
        "service-defaults" => service_defaults(&entry),
        "proxy-defaults" => proxy_defaults(&entry),
        "service-router" => routing::router(&entry),
        "service-splitter" => routing::splitter(&entry),
        "service-resolver" => routing::resolver(&entry),
        "ingress-gateway" => gateways::ingress(&entry),
        "terminating-gateway" => gateways::terminating(&entry),
        "api-gateway" => gateways::api(&entry),
        INTENTIONS => access::intentions(&entry),
        "jwt-provider" => access::provider(&entry),
        "exported-services" => access::exported(&entry),
        "mesh" => mesh(&entry),
        "inline-certificate" => certificate(&entry),
        "tcp-route" if items(&entry, "Services").len() > 1 => {
            Err("tcp-route currently only supports one service".to_owned())
        }
        _ => Ok(()),
    }?;
    match entry {
        Value::Object(entry) => Ok(entry),
        _ => Ok(Map::new()),
    }
}

/// Whether there is such a kind.
pub fn is_kind(kind: &str) -> bool {
    kinds::KINDS.iter().any(|(known, _)| *known == kind)
}

// === what is filled in ===

fn fill(kind: &str, entry: &mut Map<String, Value>) {
    let mut usual = |name: &str, value: Value| {
        entry.entry(name).or_insert(value);
    };
    match kind {
        "service-defaults" => {
            usual("Protocol", json!(""));
            for name in ["TransparentProxy", "MeshGateway", "Expose"] {
                usual(name, json!({}));
            }
            each(entry.get_mut("Protocol"), lower);
        }
        "proxy-defaults" => {
            usual("Config", Value::Null);
            for name in ["TransparentProxy", "MeshGateway", "Expose", "AccessLogs"] {
                usual(name, json!({}));
            }
        }
        "service-router" => {
            usual("Routes", Value::Null);
            of_each(entry, "Routes", |route| {
                each(route.pointer_mut("/Match/HTTP/Methods"), upper);
            });
        }
        "service-splitter" => usual("Splits", Value::Null),
        "ingress-gateway" => {
            usual("TLS", json!({}));
            if let Some(Value::Object(tls)) = entry.get_mut("TLS") {
                tls.entry("Enabled").or_insert(json!(false));
            }
            if let Some(Value::Object(usual)) = entry.get_mut("Defaults") {
                for limit in ["MaxConnections", "MaxPendingRequests", "MaxConcurrentRequests"] {
                    usual.entry(limit).or_insert(json!(0));
                }
            }
            of_each(entry, "Listeners", |listener| {
                if let Value::Object(listener) = listener {
                    listener.entry("Protocol").or_insert(json!("tcp"));
                }
                each(listener.get_mut("Protocol"), lower);
            });
        }
        INTENTIONS => {
            let destination = entry.get("Name").and_then(Value::as_str).unwrap_or_default();
            let destination = destination.to_owned();
            of_each(entry, "Sources", |source| access::fill(source, &destination));
            if let Some(Value::Array(sources)) = entry.get_mut("Sources") {
                sources.sort_by_key(|s| std::cmp::Reverse(part(s, "Precedence").as_u64()));
            }
        }
        "jwt-provider" => usual("ClockSkewSeconds", json!(30)),
        _ => {}
    }
}

fn of_each(entry: &mut Map<String, Value>, name: &str, change: impl Fn(&mut Value)) {
    if let Some(Value::Array(items)) = entry.get_mut(name) {
        items.iter_mut().for_each(change);
    }
}

/// A text or each of a list.
pub(super) fn each(value: Option<&mut Value>, change: fn(&str) -> String) {
    match value {
        Some(Value::String(text)) => *text = change(text),
        Some(Value::Array(items)) => items.iter_mut().for_each(|v| each(Some(v), change)),
        _ => {}
    }
}

fn lower(text: &str) -> String {
    text.to_ascii_lowercase()
}

pub(super) fn upper(text: &str) -> String {
    text.to_ascii_uppercase()
}

// === kinds ===

fn service_defaults(entry: &Value) -> Result<(), String> {
    if word(entry, "Name") == "*" {
        return Err(
            "service-defaults name must be the name of a service, and not a wildcard".into()
        );
    }
    modes(entry)?;
    balance(entry, "BalanceInboundConnections", "balance_inbound_connections")?;
    let (upstreams, external) = (part(entry, "UpstreamConfig"), part(entry, "Destination"));
    if !upstreams.is_null() && !external.is_null() {
        let why = "UpstreamConfig and Destination are mutually exclusive for service defaults";
        return Err(why.into());
    }
    for one in items(upstreams, "Overrides") {
        let name = word(one, "Name");
        let wrong = |why: String| format!("error in upstream override for {name}: {why}");
        if name.is_empty() {
            return Err(wrong("Name is required".into()));
        }
        upstream(one).map_err(wrong)?;
    }
    let usual = part(upstreams, "Defaults");
    let wrong = |why: String| format!("error in upstream defaults: {why}");
    if !word(usual, "Name").is_empty() {
        return Err(wrong("Name must be empty".into()));
    }
    upstream(usual).map_err(wrong)?;
    if !external.is_null() {
        destination(external)?;
    }
    extensions(entry)
}

fn destination(external: &Value) -> Result<(), String> {
    let addresses = items(external, "Addresses");
    if addresses.is_empty() {
        return Err("Destination must contain at least one valid address".into());
    }
    for (i, address) in addresses.iter().enumerate() {
        let text = address.as_str().unwrap_or_default();
        if addresses.iter().take(i).any(|other| *other == *address) {
            return Err(format!("Duplicate address '{text}' is not allowed"));
        }
        if text.parse::<std::net::IpAddr>().is_err() && (text.contains('*') || !is_name(text)) {
            return Err(format!(
                "Destination address '{text}' is invalid Could not validate address {text} as an \
                 IP or Hostname"
            ));
        }
    }
    match part(external, "Port").as_i64().unwrap_or(0) {
        1..=65_535 => Ok(()),
        port => Err(format!("Invalid Port number {port}")),
    }
}

fn upstream(one: &Value) -> Result<(), String> {
    gateway_mode(part(one, "MeshGateway"))?;
    balance(one, "BalanceOutboundConnections", "balance_outbound_connections")?;
    for limit in ["MaxConnections", "MaxPendingRequests", "MaxConcurrentRequests"] {
        if part(part(one, "Limits"), limit).as_i64().is_some_and(|n| n < 0) {
            return Err(format!("Limits.{limit} must be 0 or more"));
        }
    }
    passive(part(one, "PassiveHealthCheck"))
}

pub(super) fn passive(check: &Value) -> Result<(), String> {
    let is_negative = |field: &str| part(check, field).as_i64().is_some_and(|nanos| nanos < 0);
    if is_negative("Interval") {
        return Err("passive health check interval cannot be negative".into());
    }
    for field in ["EnforcingConsecutive5xx", "MaxEjectionPercent"] {
        if part(check, field).as_i64().is_some_and(|n| !(0..=100).contains(&n)) {
            return Err(format!("passive health check {field} must be a value between 0 and 100"));
        }
    }
    match is_negative("BaseEjectionTime") {
        true => Err("passive health check base_ejection_time cannot be negative".into()),
        false => Ok(()),
    }
}

fn proxy_defaults(entry: &Value) -> Result<(), String> {
    if !part(entry, "Config").is_null() && !part(entry, "Config").is_object() {
        return Err("'Config' expected an object".into());
    }
    modes(entry)?;
    failover_mode(part(entry, "FailoverPolicy"))?;
    let logs = part(entry, "AccessLogs");
    let (kind, path) = (word(logs, "Type"), word(logs, "Path"));
    if !["", "stdout", "stderr", "file"].contains(&kind) {
        return Err(format!("invalid access log type: {kind}"));
    }
    if (kind == "file") == path.is_empty() {
        return Err(match kind {
            "file" => "path must be specified when using file type access logs".to_owned(),
            _ => "path is only valid for file type access logs".to_owned(),
        });
    }
    let (json, text) = (word(logs, "JSONFormat"), word(logs, "TextFormat"));
    if !json.is_empty() && !text.is_empty() {
        return Err("cannot specify both access log JSONFormat and TextFormat".into());
    }
    if !json.is_empty() && serde_json::from_str::<Map<String, Value>>(json).is_err() {
        return Err("invalid JSON object for access log JSON format".into());
    }
    extensions(entry)
}

fn mesh(entry: &Value) -> Result<(), String> {
    for (way, field) in [("incoming", "Incoming"), ("outgoing", "Outgoing")] {
        let tls = part(part(entry, "TLS"), field);
        versions(tls).map_err(|why| format!("error in {way} TLS configuration: {why}"))?;
    }
    let incoming = part(part(entry, "HTTP"), "Incoming");
    let paths = part(incoming, "RequestNormalization");
    one_of(
        paths,
        "PathWithEscapedSlashesAction",
        &[
            "IMPLEMENTATION_SPECIFIC_DEFAULT",
            "KEEP_UNCHANGED",
            "REJECT_REQUEST",
            "UNESCAPE_AND_REDIRECT",
            "UNESCAPE_AND_FORWARD",
        ],
    )?;
    one_of(paths, "HeadersWithUnderscoresAction", &["ALLOW", "REJECT_REQUEST", "DROP_HEADER"])
}

fn certificate(entry: &Value) -> Result<(), String> {
    for field in ["Certificate", "PrivateKey"] {
        if word(entry, field).is_empty() {
            return Err(format!("{field} is required"));
        }
    }
    let (chain, key) = (word(entry, "Certificate"), word(entry, "PrivateKey"));
    weft_identity::outside::is_pair(chain, key)
        .map_err(|why| format!("failed to parse Certificate and PrivateKey: {why}"))
}

// === parts that several kinds have ===

fn meta(entry: &Value) -> Result<(), String> {
    let pairs = part(entry, "Meta").as_object();
    if pairs.is_some_and(|pairs| pairs.len() > META_PAIRS_MAX) {
        return Err(format!("Meta exceeds maximum element count {META_PAIRS_MAX}"));
    }
    for (key, value) in pairs.into_iter().flatten() {
        if key.len() > META_KEY_BYTES_MAX {
            return Err(format!("Meta key {key:?} exceeds maximum length {META_KEY_BYTES_MAX}"));
        }
        if value.as_str().is_some_and(|text| text.len() > META_VALUE_BYTES_MAX) {
            return Err(format!(
                "Meta value for key {key:?} exceeds maximum length {META_VALUE_BYTES_MAX}"
            ));
        }
    }
    Ok(())
}

fn modes(entry: &Value) -> Result<(), String> {
    let mode = word(entry, "Mode");
    if !["", "transparent", "direct"].contains(&mode) {
        return Err(format!("Invalid Proxy Mode: {mode:?}"));
    }
    let mutual = word(entry, "MutualTLSMode");
    if !["", "strict", "permissive"].contains(&mutual) {
        return Err(format!(
            "Invalid MutualTLSMode {mutual:?}. Must be one of \"\", \"strict\", or \"permissive\"."
        ));
    }
    for path in items(part(entry, "Expose"), "Paths") {
        let protocol = word(path, "Protocol");
        if !["", "http", "http2"].contains(&protocol) {
            return Err(format!(
                "protocol '{protocol}' not supported for path: {}, must be http or http2",
                word(path, "Path")
            ));
        }
    }
    gateway_mode(part(entry, "MeshGateway"))
}

fn gateway_mode(gateway: &Value) -> Result<(), String> {
    match word(gateway, "Mode") {
        "" | "none" | "local" | "remote" => Ok(()),
        mode => Err(format!("Invalid Mesh Gateway Mode: {mode:?}")),
    }
}

pub(super) fn failover_mode(policy: &Value) -> Result<(), String> {
    match word(policy, "Mode") {
        "" | "default" | "sequential" | "order-by-locality" => Ok(()),
        mode => Err(format!(
            "Failover policy must be one of '', 'default', 'sequential', or 'order-by-locality', \
             not {mode:?}"
        )),
    }
}

fn balance(one: &Value, field: &str, shown: &str) -> Result<(), String> {
    match word(one, field) {
        "" | "exact_balance" => Ok(()),
        other => Err(format!("invalid value for {shown}: {other}")),
    }
}

fn extensions(entry: &Value) -> Result<(), String> {
    for (i, one) in items(entry, "EnvoyExtensions").iter().enumerate() {
        if word(one, "Name").is_empty() {
            return Err(format!("invalid EnvoyExtensions[{i}]: Name is required"));
        }
    }
    Ok(())
}

pub(super) fn versions(tls: &Value) -> Result<(), String> {
    let at = |field: &str| {
        let text = word(tls, field);
        TLS_VERSIONS
            .iter()
            .position(|known| *known == text)
            .ok_or_else(|| format!("configured {field} is not a supported TLS version: {text:?}"))
    };
    let (min, max) = (at("TLSMinVersion")?, at("TLSMaxVersion")?);
    if min > 1 && max > 1 && min > max {
        return Err(format!(
            "configuring max version {} less than the configured min version {} is invalid",
            word(tls, "TLSMaxVersion"),
            word(tls, "TLSMinVersion")
        ));
    }
    let suites = items(tls, "CipherSuites");
    if !suites.is_empty() && word(tls, "TLSMinVersion") == "TLSv1_3" {
        return Err("configuring CipherSuites is only applicable to connections negotiated with \
                    TLS 1.2 or earlier, TLSMinVersion is set to TLSv1_3"
            .into());
    }
    let unknown = suites.iter().filter_map(Value::as_str).find(|s| !CIPHERS.contains(s));
    unknown.map_or(Ok(()), |suite| Err(format!("unsupported Envoy TLS cipher suite: {suite}")))
}

/// The one judge of what routes and permissions match: `at` is what messages begin with.
pub(super) fn http_match(http: &Value, at: &str, rewritable: &str) -> Result<usize, String> {
    let mut paths = 0;
    for field in ["PathExact", "PathPrefix", "PathRegex"] {
        let text = word(http, field);
        paths += usize::from(!text.is_empty());
        if field != "PathRegex" && !text.is_empty() && !text.starts_with('/') {
            return Err(format!("{at}{rewritable}{field} doesn't start with '/': {text:?}"));
        }
    }
    if paths > 1 {
        return Err(format!(
            "{at} should only contain at most one of PathExact, PathPrefix, or PathRegex"
        ));
    }
    let ways: [(&str, &[&str], &str); 2] = [
        (
            "Header",
            &["Present", "Exact", "Prefix", "Suffix", "Contains", "Regex"],
            "Present, Exact, Prefix, Suffix, Contains, or Regex",
        ),
        ("QueryParam", &["Present", "Exact", "Regex"], "Present, Exact, or Regex"),
    ];
    let mut parts = paths;
    for (list, ways, named) in ways {
        for (j, one) in items(http, list).iter().enumerate() {
            let at = format!("{at}{rewritable}{list}[{j}]");
            if word(one, "Name").is_empty() {
                return Err(format!("{at} missing required Name field"));
            }
            if ways.iter().filter(|way| !part(one, way).is_null()).count() != 1 {
                return Err(format!("{at} should only contain one of {named}"));
            }
            let regex = word(one, "Regex");
            regex::Regex::new(regex)
                .map_err(|_| format!("{at} Regex {regex:?} is no regular expression"))?;
            parts += 1;
        }
    }
    let methods: Vec<&str> = items(http, "Methods").iter().filter_map(Value::as_str).collect();
    for (j, method) in methods.iter().enumerate() {
        if !METHODS.contains(method) {
            return Err(format!("{at}{rewritable}Methods contains an invalid method {method:?}"));
        }
        if methods.iter().take(j).any(|other| other == method) {
            return Err(format!("{at}{rewritable}Methods contains {method:?} more than once"));
        }
    }
    Ok(parts + usize::from(!methods.is_empty()))
}

fn one_of(part_of: &Value, field: &str, known: &[&str]) -> Result<(), String> {
    let text = word(part_of, field);
    match text.is_empty() || known.contains(&text) {
        true => Ok(()),
        false => Err(format!("no value for {field} as {text:?}; use {}", known.join(", "))),
    }
}

pub fn items<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    part(value, name).as_array().map(Vec::as_slice).unwrap_or_default()
}

/// A host's name, as DNS has them.
pub(super) fn is_name(text: &str) -> bool {
    let label = |l: &str| (1..=63).contains(&l.len()) && l.bytes().all(|b| b.is_ascii_graphic());
    text.len() <= 253 && text.strip_suffix('.').unwrap_or(text).split('.').all(label)
}
