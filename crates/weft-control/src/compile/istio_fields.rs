// SPDX-License-Identifier: Apache-2.0
//! Every field that a VirtualService and a DestinationRule have, and what becomes of it. Called by
//! both kinds' own files: what is written and not served is a warning in the object's status, and
//! so is what this table does not know. The committed schemas and `docs/istio.md` are held against
//! it by a test. Judges no values; that is the business of whoever reads a field.

use std::borrow::Cow;

use serde_json::Value;
use weft_base::issue::{FieldPath, Issues};

/// What becomes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// As Istio's reference says.
    Served,
    /// The same, with this to know.
    Noted(&'static str),
    /// Not at all: a warning that says why.
    Not(&'static str),
}

use Field::{Not, Noted, Served};

/// Fields of `spec` by path; `[]` is any item of a list. What ends a path may be a whole map.
pub type Fields = &'static [(&'static str, Field)];

const ADDRESS: &str = "an address or a range; what cannot be read takes nothing";
const SOURCES: &str = "on a Gateway its own labels and namespace are the source";

pub const VIRTUAL_SERVICE: Fields = &[
    ("hosts", Served),
    ("gateways", Served),
    ("exportTo", Served),
    ("http[].name", Served),
    ("http[].match[].name", Served),
    ("http[].match[].uri", Served),
    ("http[].match[].ignoreUriCase", Served),
    ("http[].match[].scheme", Served),
    ("http[].match[].method", Served),
    ("http[].match[].authority", Noted("as the client wrote it, with a port if it wrote one")),
    ("http[].match[].headers", Noted(PRESENT)),
    ("http[].match[].withoutHeaders", Noted(PRESENT)),
    ("http[].match[].queryParams", Noted(STAR)),
    ("http[].match[].port", Served),
    ("http[].match[].sourceLabels", Noted(SOURCES)),
    ("http[].match[].sourceNamespace", Noted(SOURCES)),
    ("http[].match[].gateways", Served),
    ("http[].match[].statPrefix", Not("metrics are named as all others are")),
    ("http[].route[].destination.host", Served),
    ("http[].route[].destination.subset", Served),
    ("http[].route[].destination.port.number", Served),
    ("http[].route[].weight", Served),
    ("http[].route[].headers.request.set", Noted("`host` is a rewrite, behind the rule's")),
    ("http[].route[].headers.request.add", Noted("`host` is a rewrite, behind the rule's")),
    ("http[].route[].headers.request.remove", Served),
    ("http[].route[].headers.response.set", Served),
    ("http[].route[].headers.response.add", Served),
    ("http[].route[].headers.response.remove", Served),
    ("http[].redirect.uri", Served),
    ("http[].redirect.authority", Served),
    ("http[].redirect.port", Served),
    (
        "http[].redirect.derivePort",
        Noted("without it and `port` the port that the client wrote stays with the host"),
    ),
    ("http[].redirect.scheme", Served),
    ("http[].redirect.redirectCode", Served),
    ("http[].redirect.prefixRewrite", Noted("`uri` goes before it")),
    ("http[].directResponse.status", Served),
    ("http[].directResponse.body.string", Served),
    ("http[].directResponse.body.bytes", Noted("text in UTF-8; other bytes are an error")),
    ("http[].delegate.name", Served),
    ("http[].delegate.namespace", Served),
    ("http[].rewrite.uri", Served),
    ("http[].rewrite.authority", Served),
    ("http[].rewrite.uriRegexRewrite.match", Served),
    ("http[].rewrite.uriRegexRewrite.rewrite", Served),
    ("http[].timeout", Served),
    ("http[].retries.attempts", Served),
    ("http[].retries.perTryTimeout", Served),
    ("http[].retries.retryOn", Noted("only what may be repeated is: see [retries](retries.md)")),
    ("http[].retries.backoff", Served),
    ("http[].retries.retryIgnorePreviousHosts", Served),
    (
        "http[].retries.retryRemoteLocalities",
        Noted("retries always leave a locality that has nobody else"),
    ),
    ("http[].fault.delay.fixedDelay", Served),
    ("http[].fault.delay.percentage.value", Noted("without it nobody waits")),
    ("http[].fault.delay.percent", Served),
    ("http[].fault.delay.exponentialDelay", Not("Istio itself has none; say fixedDelay")),
    ("http[].fault.abort.httpStatus", Served),
    ("http[].fault.abort.grpcStatus", Served),
    ("http[].fault.abort.http2Error", Not("Istio itself has none; say httpStatus or grpcStatus")),
    ("http[].fault.abort.percentage.value", Noted("without it nobody is aborted")),
    ("http[].mirror.host", Served),
    ("http[].mirror.subset", Served),
    ("http[].mirror.port.number", Served),
    ("http[].mirrorPercentage.value", Served),
    ("http[].mirrorPercent", Served),
    ("http[].mirror_percent", Served),
    ("http[].mirrors[].destination.host", Served),
    ("http[].mirrors[].destination.subset", Served),
    ("http[].mirrors[].destination.port.number", Served),
    ("http[].mirrors[].percentage.value", Served),
    ("http[].corsPolicy.allowOrigin", Noted("where `allowOrigins` says nothing")),
    ("http[].corsPolicy.allowOrigins[]", Served),
    ("http[].corsPolicy.allowMethods", Served),
    ("http[].corsPolicy.allowHeaders", Served),
    ("http[].corsPolicy.exposeHeaders", Served),
    ("http[].corsPolicy.maxAge", Served),
    ("http[].corsPolicy.allowCredentials", Served),
    ("http[].corsPolicy.unmatchedPreflights", Served),
    ("http[].headers.request.set", Noted("`host` is a rewrite")),
    ("http[].headers.request.add", Noted("`host` is a rewrite")),
    ("http[].headers.request.remove", Served),
    ("http[].headers.response.set", Served),
    ("http[].headers.response.add", Served),
    ("http[].headers.response.remove", Served),
    ("tls[].match[].sniHosts", Served),
    ("tls[].match[].destinationSubnets", Noted(ADDRESS)),
    ("tls[].match[].port", Served),
    ("tls[].match[].sourceLabels", Noted(SOURCES)),
    ("tls[].match[].sourceNamespace", Noted(SOURCES)),
    ("tls[].match[].gateways", Served),
    ("tls[].route[].destination.host", Served),
    ("tls[].route[].destination.subset", Served),
    ("tls[].route[].destination.port.number", Served),
    ("tls[].route[].weight", Served),
    ("tcp[].match[].destinationSubnets", Noted(ADDRESS)),
    ("tcp[].match[].sourceSubnet", Noted(ADDRESS)),
    ("tcp[].match[].port", Served),
    ("tcp[].match[].sourceLabels", Noted(SOURCES)),
    ("tcp[].match[].sourceNamespace", Noted(SOURCES)),
    ("tcp[].match[].gateways", Served),
    ("tcp[].route[].destination.host", Served),
    ("tcp[].route[].destination.subset", Served),
    ("tcp[].route[].destination.port.number", Served),
    ("tcp[].route[].weight", Served),
];

/// What holds for `trafficPolicy` holds for those of ports and of subsets.
pub const DESTINATION_RULE: Fields = &[
    ("host", Served),
    ("exportTo", Served),
    ("workloadSelector.matchLabels", Noted("sidecars alone; see above")),
    ("subsets[].name", Served),
    ("subsets[].labels", Served),
    ("trafficPolicy.portLevelSettings[].port.number", Served),
    ("trafficPolicy.loadBalancer.simple", Noted("`PASSTHROUGH`: see above")),
    ("trafficPolicy.loadBalancer.consistentHash.httpHeaderName", Served),
    ("trafficPolicy.loadBalancer.consistentHash.httpCookie.name", Served),
    ("trafficPolicy.loadBalancer.consistentHash.httpCookie.path", Served),
    ("trafficPolicy.loadBalancer.consistentHash.httpCookie.ttl", Served),
    ("trafficPolicy.loadBalancer.consistentHash.httpCookie.attributes[].name", Served),
    ("trafficPolicy.loadBalancer.consistentHash.httpCookie.attributes[].value", Served),
    ("trafficPolicy.loadBalancer.consistentHash.useSourceIp", Served),
    ("trafficPolicy.loadBalancer.consistentHash.httpQueryParameterName", Served),
    ("trafficPolicy.loadBalancer.consistentHash.ringHash.minimumRingSize", Served),
    ("trafficPolicy.loadBalancer.consistentHash.maglev.tableSize", Served),
    ("trafficPolicy.loadBalancer.consistentHash.minimumRingSize", Served),
    ("trafficPolicy.loadBalancer.localityLbSetting.enabled", Served),
    ("trafficPolicy.loadBalancer.localityLbSetting.distribute[].from", Served),
    ("trafficPolicy.loadBalancer.localityLbSetting.distribute[].to", Served),
    ("trafficPolicy.loadBalancer.localityLbSetting.failover[].from", Served),
    ("trafficPolicy.loadBalancer.localityLbSetting.failover[].to", Served),
    ("trafficPolicy.loadBalancer.localityLbSetting.failoverPriority", Served),
    ("trafficPolicy.loadBalancer.zoneAwareLbSetting.enabled", Served),
    ("trafficPolicy.loadBalancer.zoneAwareLbSetting.minClusterSize", Served),
    ("trafficPolicy.loadBalancer.zoneAwareLbSetting.failover[].from", Served),
    ("trafficPolicy.loadBalancer.zoneAwareLbSetting.failover[].to", Served),
    ("trafficPolicy.loadBalancer.zoneAwareLbSetting.failoverPriority", Served),
    ("trafficPolicy.loadBalancer.warmup.duration", Served),
    ("trafficPolicy.loadBalancer.warmup.minimumPercent", Served),
    ("trafficPolicy.loadBalancer.warmup.aggression", Served),
    ("trafficPolicy.loadBalancer.warmupDurationSecs", Served),
    ("trafficPolicy.connectionPool.tcp.maxConnections", Served),
    ("trafficPolicy.connectionPool.tcp.connectTimeout", Served),
    ("trafficPolicy.connectionPool.tcp.idleTimeout", Served),
    ("trafficPolicy.connectionPool.tcp.tcpKeepalive.probes", Noted("3 when it is not said")),
    ("trafficPolicy.connectionPool.tcp.tcpKeepalive.time", Noted("a minute when it is not said")),
    ("trafficPolicy.connectionPool.tcp.tcpKeepalive.interval", Noted("10 s when it is not said")),
    ("trafficPolicy.connectionPool.tcp.maxConnectionDuration", Noted(AGE)),
    ("trafficPolicy.connectionPool.http.http1MaxPendingRequests", Served),
    ("trafficPolicy.connectionPool.http.http2MaxRequests", Served),
    ("trafficPolicy.connectionPool.http.maxRequestsPerConnection", Served),
    ("trafficPolicy.connectionPool.http.maxRetries", Served),
    ("trafficPolicy.connectionPool.http.idleTimeout", Served),
    ("trafficPolicy.connectionPool.http.h2UpgradePolicy", Noted(WIRE)),
    ("trafficPolicy.connectionPool.http.useClientProtocol", Served),
    ("trafficPolicy.connectionPool.http.maxConcurrentStreams", Noted("100 at most")),
    ("trafficPolicy.connectionPool.http.http2KeepAlive.interval", Served),
    ("trafficPolicy.connectionPool.http.http2KeepAlive.timeout", Noted("20 s when it is not said")),
    ("trafficPolicy.outlierDetection.consecutiveErrors", Served),
    ("trafficPolicy.outlierDetection.consecutive5xxErrors", Served),
    ("trafficPolicy.outlierDetection.consecutiveGatewayErrors", Served),
    ("trafficPolicy.outlierDetection.consecutiveLocalOriginFailures", Served),
    ("trafficPolicy.outlierDetection.splitExternalLocalOriginErrors", Served),
    ("trafficPolicy.outlierDetection.outlierDetectionHttpErrorCodes", Served),
    ("trafficPolicy.outlierDetection.interval", Served),
    ("trafficPolicy.outlierDetection.baseEjectionTime", Served),
    ("trafficPolicy.outlierDetection.maxEjectionPercent", Served),
    ("trafficPolicy.outlierDetection.minHealthPercent", Served),
    ("trafficPolicy.tls.mode", Noted("see [backends that speak TLS](backend-tls.md)")),
    ("trafficPolicy.tls.credentialName", Served),
    ("trafficPolicy.tls.sni", Served),
    ("trafficPolicy.tls.subjectAltNames", Served),
    ("trafficPolicy.tls.insecureSkipVerify", Served),
    ("trafficPolicy.tls.caCertificates", Noted("`system` only; no files of proxies")),
    ("trafficPolicy.tls.clientCertificate", Noted("refused: no files of proxies")),
    ("trafficPolicy.tls.privateKey", Noted("refused: no files of proxies")),
    ("trafficPolicy.tls.caCrl", Noted("a warning: revocation lists are not read")),
    ("trafficPolicy.tunnel.protocol", Noted("`CONNECT`, in HTTP/1.1; no connection with `POST`")),
    ("trafficPolicy.tunnel.targetHost", Noted(TUNNEL)),
    ("trafficPolicy.tunnel.targetPort", Served),
    ("trafficPolicy.proxyProtocol.version", Served),
    ("trafficPolicy.retryBudget.percent", Served),
    ("trafficPolicy.retryBudget.minRetryConcurrency", Served),
    ("trafficPolicy.retryBudget.budgetInterval", Noted("ten seconds when it is not said")),
];

const STAR: &str = "compared decoded; `regex: \"*\"`: whoever has one";
const PRESENT: &str = "`regex: \"*\"`: whoever has one; claims of tokens are an error";
const AGE: &str =
    "requests under way are finished; a connection of bytes is reset, with the flag DT";
const WIRE: &str = "without UPGRADE what a port is declared to speak decides";
const TUNNEL: &str = "of connections of bytes (`tcp[]` and `tls[]` routes); requests do not go so";

/// A warning for each field that is written and not served.
pub(super) fn judge(fields: Fields, spec: &Value, issues: &mut Issues) {
    walk(fields, spec, &mut String::new(), &FieldPath::new("spec"), issues);
}

fn walk(fields: Fields, value: &Value, at: &mut String, path: &FieldPath, issues: &mut Issues) {
    if let Some(field) = find(fields, at) {
        if let (Not(why), true) = (field, is_said(value)) {
            issues.warning(path.clone(), format!("not applied; the rest is: {why}"));
        }
        return;
    }
    let length = at.len();
    match value {
        Value::Object(inner) => {
            for (name, value) in inner {
                at.push_str(if at.is_empty() { "" } else { "." });
                at.push_str(name);
                walk(fields, value, at, &path.field(name), issues);
                at.truncate(length);
            }
        }
        Value::Array(items) => {
            at.push_str("[]");
            for (i, value) in items.iter().enumerate() {
                walk(fields, value, at, &path.index(i), issues);
            }
            at.truncate(length);
        }
        Value::Null => {}
        _ => issues.warning(path.clone(), "not known to this version of weft; it is not applied"),
    }
}

/// What becomes of a field, wherever its policy stands.
pub fn find(fields: Fields, path: &str) -> Option<Field> {
    let name = canonical(fields, path);
    fields.iter().find(|(known, _)| *known == name).map(|(_, field)| *field)
}

/// A field by the name that the table has for it: policies of subsets and of ports are told of
/// once, as those of the whole.
pub fn canonical<'a>(fields: Fields, path: &'a str) -> Cow<'a, str> {
    let is_known = |path: &str| fields.iter().any(|(known, _)| *known == path);
    if is_known(path) {
        return path.into();
    }
    let path = path.strip_prefix("subsets[].").unwrap_or(path);
    if is_known(path) {
        return path.into();
    }
    path.replacen("trafficPolicy.portLevelSettings[].", "trafficPolicy.", 1).into()
}

/// Whether a value asks for anything: Istio's own defaults do not.
fn is_said(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(text) => !matches!(&**text, "" | "DEFAULT"),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        Value::Bool(true) => true,
    }
}
