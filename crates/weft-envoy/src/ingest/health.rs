// SPDX-License-Identifier: Apache-2.0
//! Active health checks.

use std::sync::Arc;

use weft_model::{CheckKind, HealthCheck, HttpCheck};

use super::options::{self, NotDone};
use crate::read::Message;

const EVENTS: &str = "a change of an instance's health is a line of weft's log";
const NOT_DONE: NotDone = &[
    ("reuse_connection", &["false"], "each check has a connection of its own"),
    ("initial_jitter", &["0s"], "first checks have no jitter of their own"),
    ("event_log_path", &[""], EVENTS),
    ("event_logger", &["[]"], EVENTS),
    ("always_log_health_check_failures", &["false"], EVENTS),
    ("always_log_health_check_success", &["false"], EVENTS),
];

/// Reads one check of a cluster, whose name is the host that is asked for where the check names
/// none.
pub fn read(check: &Message<'_>, cluster: &str) -> Option<HealthCheck> {
    options::not_done(check, NOT_DONE);
    intervals(check);
    let interval_ms = required(check, "interval")?;
    let timeout_ms = required(check, "timeout")?;
    let jitter = check.duration("interval_jitter").unwrap_or(0);
    let percent = check.number::<u64>("interval_jitter_percent").unwrap_or(0);
    let share = percent * 100 + jitter * 10_000 / interval_ms.max(1);
    Some(HealthCheck {
        kind: kind(check, cluster)?,
        interval_ms,
        timeout_ms,
        unhealthy_interval_ms: check.duration("unhealthy_interval"),
        jitter_basis_points: u32::try_from(share.min(10_000)).unwrap_or(10_000),
        healthy: required_number(check, "healthy_threshold")?,
        unhealthy: required_number(check, "unhealthy_threshold")?,
        port: check.number("alt_port"),
    })
}

/// Says which intervals are not kept: there is one for those that are well, one for the others.
fn intervals(check: &Message<'_>) {
    let usual = check.text("interval").unwrap_or_default();
    let unhealthy = check.text("unhealthy_interval").unwrap_or(usual);
    for (field, done) in [
        ("no_traffic_interval", usual),
        ("no_traffic_healthy_interval", usual),
        ("healthy_edge_interval", usual),
        ("unhealthy_edge_interval", unhealthy),
    ] {
        let why = "instances are checked at interval, and at unhealthy_interval while they are not \
                   well";
        check.not_done(field, &[done], why);
    }
}

fn required(check: &Message<'_>, field: &str) -> Option<u64> {
    let found = check.duration(field).filter(|ms| *ms > 0);
    if found.is_none() {
        check.error(field, "a health check needs it, more than 0");
    }
    found
}

fn required_number(check: &Message<'_>, field: &str) -> Option<u32> {
    let found = check.number(field);
    if found.is_none() {
        check.error(field, "a health check needs it");
    }
    found
}

fn kind(check: &Message<'_>, cluster: &str) -> Option<CheckKind> {
    if let Some(http) = check.message("http_health_check") {
        return Some(CheckKind::Http(of_http(&http, cluster)));
    }
    if let Some(grpc) = check.message("grpc_health_check") {
        return Some(CheckKind::Grpc {
            service: grpc.text("service_name").unwrap_or("").into(),
            authority: named(&grpc, "authority", cluster),
        });
    }
    if let Some(tcp) = check.message("tcp_health_check") {
        let send = tcp.message("send").and_then(|p| payload(&p)).unwrap_or_default();
        let expect = tcp.map("receive", |p| payload(&p));
        return Some(CheckKind::Tcp { send, expect });
    }
    if let Some(custom) = check.message("custom_health_check") {
        custom.waive();
        check.unsupported("custom_health_check", "checks are http, grpc or tcp");
        return None;
    }
    check.error("http_health_check", "a health check is http, grpc or tcp");
    None
}

fn named(message: &Message<'_>, field: &str, cluster: &str) -> Arc<str> {
    message.text(field).filter(|text| !text.is_empty()).unwrap_or(cluster).into()
}

fn of_http(http: &Message<'_>, cluster: &str) -> HttpCheck {
    let mut statuses = Vec::new();
    http.each("expected_statuses", |range| {
        let start = range.number::<u16>("start").unwrap_or(0);
        // The end of the range is not in it.
        let end = range.number::<u16>("end").unwrap_or(0);
        if end > start {
            statuses.push((start, end - 1));
        } else {
            range.error("end", "it must be after start");
        }
    });
    let mut headers = Vec::new();
    http.each("request_headers_to_add", |option| {
        option.not_done("append", &["true"], "headers are added");
        option.not_done("append_action", &["APPEND_IF_EXISTS_OR_ADD"], "headers are added");
        let Some(header) = option.message("header") else { return };
        let name = header.text("key").unwrap_or("").to_ascii_lowercase();
        headers.push((name.into(), header.text("value").unwrap_or("").into()));
    });
    let http2 = match http.word("codec_client_type").as_deref().unwrap_or("HTTP1") {
        "HTTP1" => false,
        "HTTP2" => true,
        other => {
            http.unsupported("codec_client_type", format!("{other} is not spoken"));
            false
        }
    };
    HttpCheck {
        method: http.word("method").as_deref().unwrap_or("GET").into(),
        path: http.text("path").unwrap_or("/").into(),
        host: named(http, "host", cluster),
        headers,
        statuses,
        http2,
    }
}

/// Bytes in hexadecimal, or in base64.
fn payload(message: &Message<'_>) -> Option<Vec<u8>> {
    if let Some(hex) = message.text("text") {
        let digits: Option<Vec<u8>> =
            hex.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect();
        let digits = digits.filter(|d| d.len() % 2 == 0);
        if digits.is_none() {
            message.error("text", "bytes are written in pairs of hexadecimal digits");
        }
        let pairs = digits?;
        return Some(pairs.chunks(2).map(|p| p.iter().fold(0, |byte, d| byte * 16 + d)).collect());
    }
    use base64::Engine as _;
    let text = message.text("binary")?;
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}
