// SPDX-License-Identifier: Apache-2.0
//! What a DestinationRule's connection pool says of how long connections are used, what they
//! speak and how a peer that is gone is noticed. Called by `traffic_policy`; reads no other object.

use std::sync::Arc;

use weft_kinds::views::istio::{ConnectionPool, Http2KeepAlive, HttpPool, TcpKeepalive, TcpPool};
use weft_model::{
    BackendPolicy, Connections, PING_TIMEOUT_MS, Pings, Speaks, TcpKeepalive as Probes,
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
    terms.pings = http.http2_keep_alive.as_ref().and_then(pings).or(terms.pings);
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

/// In whole seconds, as the kernel counts them.
fn probes(said: &TcpKeepalive) -> Probes {
    let seconds = |text: &Option<Arc<str>>| {
        let ms = text.as_deref().and_then(parse_ms)?;
        u32::try_from(ms.div_ceil(1_000)).ok().filter(|n| *n > 0)
    };
    Probes {
        idle_s: seconds(&said.time),
        interval_s: seconds(&said.interval),
        probes: said.probes.filter(|n| *n > 0),
    }
}

fn pings(said: &Http2KeepAlive) -> Option<Pings> {
    let ms = |text: &Option<Arc<str>>| {
        text.as_deref().and_then(parse_ms).and_then(|ms| u32::try_from(ms).ok()).filter(|n| *n > 0)
    };
    let timeout_ms = ms(&said.timeout).unwrap_or(PING_TIMEOUT_MS);
    Some(Pings { interval_ms: ms(&said.interval)?, timeout_ms })
}
