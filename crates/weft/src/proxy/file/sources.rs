// SPDX-License-Identifier: Apache-2.0
//! Which fields of a file set which values, for `weft explain`: what is written is known for what
//! it is, also when it is the default all the same. Decides nothing.

use serde_json::Value;
use weft_envoy::read::Message;
use weft_model::{Origin, Sources, value};

/// A value, and the fields of which any sets it; the one that counts comes first.
type Row = (&'static str, &'static [&'static str]);

const OF_RULE: &[Row] = &[
    (value::REQUEST_TIMEOUT, &["timeout", "timeouts.request_ms"]),
    (value::ATTEMPT_TIMEOUT, &["timeouts.backend_request_ms"]),
    (value::TRY_TIMEOUT, &["retry.per_try_timeout_ms"]),
    (value::IDLE_TIMEOUT, &["timeouts.idle_ms"]),
    (value::STREAM_TIMEOUT, &["timeouts.stream_ms"]),
    (value::RECEIVE_TIMEOUT, &["timeouts.receive_ms"]),
    (value::RETRIES, &["retry"]),
    (value::REWRITE, &["rewrite"]),
    (value::REQUEST_HEADERS, &["request_headers"]),
    (value::RESPONSE_HEADERS, &["response_headers"]),
    (value::COPIES, &["mirror"]),
    ("session", &["session"]),
];

/// Of a rule's `filters`, by the word that each begins with.
const OF_FILTERS: &[(&str, &str)] = &[
    ("rewrite", value::REWRITE),
    ("request_headers", value::REQUEST_HEADERS),
    ("response_headers", value::RESPONSE_HEADERS),
    ("mirror", value::COPIES),
    ("fault", value::FAULT),
    ("cors", value::CORS),
    ("upgrades", value::UPGRADES),
    ("body_limit", value::BODY),
    ("access", "access"),
];
/// The same of those that have names, by which they are told apart.
const OF_NAMED: &[(&str, &str)] = &[("rate_limit", value::RATE_LIMIT), ("cache", value::CACHE)];

const OF_BACKEND: &[Row] = &[
    (value::BALANCING, &["policy.lb"]),
    (value::LOCALITY, &["policy.locality"]),
    (value::PANIC, &["policy.panic_basis_points"]),
    (value::SLOW_START, &["policy.warmup"]),
    (value::CONNECT_TIMEOUT, &["connect_timeout", "policy.connect_timeout_ms"]),
    (value::IDLE_CONNECTIONS, &["policy.idle_timeout_ms"]),
    (value::CONNECTIONS, &["policy.limits.connections_max"]),
    (value::WAITING, &["policy.limits.pending_max"]),
    (value::IN_FLIGHT, &["policy.limits.requests_max"]),
    (value::RETRIES_IN_FLIGHT, &["policy.limits.retries_max"]),
    (value::CONNECTION_REQUESTS, &["policy.connections.requests_max"]),
    (value::CONNECTION_AGE, &["policy.connections.age_ms_max"]),
    (value::STREAMS, &["policy.connections.streams_max"]),
    (value::KEEPALIVE, &["policy.connections.keepalive"]),
    (value::PINGS, &["policy.connections.pings"]),
    (value::PROTOCOL, &["policy.connections.speaks"]),
    (value::TUNNEL, &["policy.connections.through"]),
    (value::RETRY_BUDGET, &["policy.retry_budget"]),
    (value::EJECTION, &["policy.outlier"]),
    (value::EJECTION_TIME, &["policy.outlier.base_ejection_ms"]),
    (value::EJECTED_SHARE, &["policy.outlier.max_ejection_basis_points"]),
    (value::EJECTION_WINDOW, &["policy.outlier.window"]),
    (value::PROXY_PROTOCOL, &["policy.proxy_protocol"]),
    (value::TLS, &["tls", "policy.tls"]),
    (value::HEALTH_CHECK, &["policy.protection.health_check"]),
    (value::ADAPTIVE, &["policy.protection.adaptive"]),
    (value::GATE, &["policy.protection.ungated"]),
    (value::BODY, &["policy.protection.body_bytes_max"]),
    (value::REQUEST_TIMEOUT, &["policy.protection.timeouts.request_ms"]),
    (value::ATTEMPT_TIMEOUT, &["policy.protection.timeouts.backend_request_ms"]),
    (value::IDLE_TIMEOUT, &["policy.protection.timeouts.idle_ms"]),
    (value::STREAM_TIMEOUT, &["policy.protection.timeouts.stream_ms"]),
];

/// What a rule says, `own` being the rule.
pub fn of_rule(rule: &Message<'_>, own: &Origin) -> Sources {
    let mut out = noted(rule, own, OF_RULE);
    let filters = rule.item("filters").and_then(|item| item.value.as_array());
    for (i, filter) in filters.into_iter().flatten().enumerate() {
        for (word, value) in OF_FILTERS.iter().filter(|(word, _)| filter.get(word).is_some()) {
            out.set(value, within(own, &format!("filters[{i}].{word}")));
        }
        for (word, value) in OF_NAMED {
            let name = filter.get(word).and_then(|it| it.get("name")).and_then(Value::as_str);
            if let Some(name) = name {
                out.set(&format!("{value} {name}"), within(own, &format!("filters[{i}].{word}")));
            }
        }
    }
    out
}

/// What a backend says, `own` being the backend.
pub fn of_backend(backend: &Message<'_>, own: &Origin) -> Sources {
    let mut out = noted(backend, own, OF_BACKEND);
    let policy = backend.item("policy");
    let limits = policy.and_then(|item| item.value.pointer("/protection/rate_limits"));
    for (i, limit) in limits.and_then(Value::as_array).into_iter().flatten().enumerate() {
        if let Some(name) = limit.get("name").and_then(Value::as_str) {
            let field = format!("policy.protection.rate_limits[{i}]");
            out.set(&format!("{} {name}", value::RATE_LIMIT), within(own, &field));
        }
    }
    out
}

fn noted(message: &Message<'_>, own: &Origin, rows: &[Row]) -> Sources {
    let mut out = Sources::default();
    for (value, fields) in rows {
        if let Some(field) = fields.iter().find(|field| is_said(message, field)) {
            out.set(value, within(own, field));
        }
    }
    out
}

fn is_said(message: &Message<'_>, path: &str) -> bool {
    let (first, rest) = path.split_once('.').unwrap_or((path, ""));
    let Some(item) = message.item(first) else { return false };
    let mut parts = rest.split('.').filter(|part| !part.is_empty());
    parts.try_fold(item.value, |at, part| at.get(part)).is_some_and(|said| *said != Value::Null)
}

fn within(own: &Origin, field: &str) -> Origin {
    let field = match &*own.field {
        "" => field.to_owned(),
        outer => format!("{outer}.{field}"),
    };
    Origin { field: field.into(), ..own.clone() }
}
