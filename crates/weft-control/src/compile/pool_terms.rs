// SPDX-License-Identifier: Apache-2.0
//! What a DestinationRule's connection pool says of how long connections are used, what they
//! speak and how a peer that is gone is noticed. Called by `traffic_policy`; reads no other object.

use std::net::IpAddr;
use std::sync::Arc;

use weft_base::issue::{FieldPath, Issues};
use weft_kinds::views::istio::{ConnectionPool, HttpPool, TcpKeepalive, TcpPool, Tunnel};
use weft_kinds::views::traffic_policy as view;
use weft_model::decide::Authority;
use weft_model::{
    BackendPolicy, Connections, PING_TIMEOUT_MS, Pings, Speaks, TcpKeepalive as Probes, Through,
    ThroughMethod,
};

use super::duration::parse_ms;

/// One layer over what is there. What it does not say stays as it was.
pub(super) fn apply(pool: &ConnectionPool, policy: &mut BackendPolicy) {
    let mut terms = policy.connections.as_deref().cloned().unwrap_or_default();
    if let Some(tcp) = &pool.tcp {
        of_tcp(tcp, &mut terms);
    }
    if let Some(http) = &pool.http {
        of_http(http, &mut terms);
    }
    policy.connections = (!terms.is_usual()).then(|| Arc::new(terms));
}

/// What a TrafficPolicy says over what is there.
pub(super) fn of_policy(said: &view::Connections, policy: &mut BackendPolicy) {
    let mut terms = policy.connections.as_deref().cloned().unwrap_or_default();
    let age = said.max_age.as_deref().and_then(parse_ms).filter(|ms| *ms > 0);
    terms.age_ms_max = age.or(terms.age_ms_max);
    terms.requests_max = said.requests_per_connection.or(terms.requests_max);
    terms.streams_max = said.streams_per_connection.or(terms.streams_max);
    let keepalive = said.keepalive.as_ref().map(|k| Probes {
        idle_s: seconds(k.idle.as_deref()),
        interval_s: seconds(k.interval.as_deref()),
        probes: k.probes,
    });
    terms.keepalive = keepalive.or(terms.keepalive);
    let ping = said.ping.as_ref().and_then(|p| pings(Some(&p.interval), p.timeout.as_deref()));
    terms.pings = ping.or(terms.pings);
    terms.speaks = match said.protocol.as_deref() {
        Some("HTTP2") => Some(Speaks::Http2),
        Some("SameAsClient") => Some(Speaks::LikeClient),
        Some("Declared") => None,
        _ => terms.speaks,
    };
    policy.connections = (!terms.is_usual()).then(|| Arc::new(terms));
}

/// Bytes go through another proxy. What is no target is refused by who would connect.
pub(super) fn go_through(tunnel: &Tunnel, policy: &mut BackendPolicy) {
    let mut terms = policy.connections.as_deref().cloned().unwrap_or_default();
    let method = match &*tunnel.protocol {
        "POST" => ThroughMethod::Post,
        _ => ThroughMethod::Connect,
    };
    let (host, port) = (tunnel.target_host.clone(), tunnel.target_port);
    terms.through = Some(Through { host, port, method });
    policy.connections = Some(Arc::new(terms));
}

/// What of a tunnel cannot be done.
pub(super) fn judge_tunnel(tunnel: &Tunnel, path: &FieldPath, issues: &mut Issues) {
    let path = path.field("tunnel");
    if !matches!(&*tunnel.protocol, "" | "CONNECT") {
        let text = "tunnels are asked for by CONNECT; until it says so no connection is made";
        issues.warning(path.field("protocol"), text);
    }
    let host = &*tunnel.target_host;
    let named = Authority::parse(host).is_some_and(|named| named.port.is_none());
    if !named && host.parse::<IpAddr>().is_err() {
        let text = format!("{host:?} is no host name or address; no connection is made");
        issues.warning(path.field("targetHost"), text);
    }
    if tunnel.target_port == 0 {
        issues.warning(path.field("targetPort"), "a tunnel needs one; no connection is made");
    }
}

fn of_tcp(tcp: &TcpPool, terms: &mut Connections) {
    let age = tcp.max_connection_duration.as_deref().and_then(parse_ms);
    terms.age_ms_max = age.filter(|ms| *ms > 0).or(terms.age_ms_max);
    terms.keepalive = tcp.tcp_keepalive.as_ref().map(probes).or(terms.keepalive);
}

/// 0 is Istio's word for its default.
fn of_http(http: &HttpPool, terms: &mut Connections) {
    let said = |n: Option<u32>| n.filter(|n| *n > 0);
    terms.requests_max = said(http.max_requests_per_connection).or(terms.requests_max);
    terms.streams_max = said(http.max_concurrent_streams).or(terms.streams_max);
    let ping = http.http2_keep_alive.as_ref();
    let ping = ping.and_then(|p| pings(p.interval.as_deref(), p.timeout.as_deref()));
    terms.pings = ping.or(terms.pings);
    // The client's own protocol makes an upgrade ineffective. Without either, what a port declares
    // is spoken, which is not to upgrade.
    terms.speaks = match (http.use_client_protocol, http.h2_upgrade_policy.as_deref()) {
        (Some(true), _) => Some(Speaks::LikeClient),
        (_, Some("UPGRADE")) => Some(Speaks::Http2),
        (_, Some("DO_NOT_UPGRADE")) => None,
        (Some(false), _) if terms.speaks == Some(Speaks::LikeClient) => None,
        _ => terms.speaks,
    };
}

fn probes(said: &TcpKeepalive) -> Probes {
    Probes {
        idle_s: seconds(said.time.as_deref()),
        interval_s: seconds(said.interval.as_deref()),
        probes: said.probes.filter(|n| *n > 0),
    }
}

/// In whole seconds, as the kernel counts them.
fn seconds(text: Option<&str>) -> Option<u32> {
    let ms = text.and_then(parse_ms)?;
    u32::try_from(ms.div_ceil(1_000)).ok().filter(|n| *n > 0)
}

fn pings(interval: Option<&str>, timeout: Option<&str>) -> Option<Pings> {
    let ms = |text: Option<&str>| {
        text.and_then(parse_ms).and_then(|ms| u32::try_from(ms).ok()).filter(|n| *n > 0)
    };
    let timeout_ms = ms(timeout).unwrap_or(PING_TIMEOUT_MS);
    Some(Pings { interval_ms: ms(interval)?, timeout_ms })
}
