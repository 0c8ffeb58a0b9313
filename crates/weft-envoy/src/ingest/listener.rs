// SPDX-License-Identifier: Apache-2.0
//! Listeners: one gateway listener of the model each, a section for every filter chain.

use std::sync::Arc;

use weft_model::{
    ClientLimits, GatewayListener, Listener, ListenerKind, Origin, Protocol, ProxyHeader, Resource,
    Root, Section,
};

use super::{Context, address, connection, tls};
use crate::read::Message;

const MANAGER: &str =
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const TCP: &str = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const TLS_INSPECTOR: &str = "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";
const HTTP_INSPECTOR: &str = "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector";
const PROXY_PROTOCOL: &str = "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol";

const PASSED_OVER: &[&str] = &[
    "stat_prefix",
    "traffic_direction",
    "per_connection_buffer_limit_bytes",
    "enable_reuse_port",
    "reuse_port",
    "connection_balance_config",
    "tcp_backlog_size",
    "listener_filters_timeout",
    "drain_type",
    "metadata",
    "ignore_global_conn_limit",
];

/// Reads one listener.
pub fn read(listener: &Message<'_>, context: &Context<'_>) {
    listener.pass_over(PASSED_OVER);
    let Some(bound) = address(listener, "address") else { return };
    let name = listener.text("name").map_or_else(|| bound.to_string(), str::to_owned);
    let name = super::rooted(&name);
    let mut bind = vec![bound];
    listener.each("additional_addresses", |more| bind.extend(address(&more, "address")));
    if listener.flag("bind_to_port") == Some(false) {
        listener.unsupported("bind_to_port", "every listener is a socket");
    }
    let proxy_header = listener_filters(listener);
    let root = Root::listener(name.as_str());
    let mut sections: Vec<Section> = Vec::new();
    let mut limits: Vec<ClientLimits> = Vec::new();
    listener.each("filter_chains", |chain| {
        let names = chain_names(&chain);
        let made = section(&chain, &root, &name, sections.len(), context);
        let Some((made, said)) = made else { return };
        limits.extend(said);
        if names.is_empty() {
            sections.push(made);
        } else if names.len() > 1 {
            chain.unsupported(
                "filter_chain_match.server_names",
                "a chain serves one server name; repeat the chain for others",
            );
        } else {
            let hostname = names.into_iter().next();
            sections.push(Section { hostname, ..made });
        }
    });
    if let Some(chain) = listener.message("default_filter_chain") {
        let made = section(&chain, &root, &name, sections.len(), context);
        limits.extend(made.iter().filter_map(|(_, said)| said.clone()));
        sections.extend(made.map(|(section, _)| section));
    }
    let first = limits.first().cloned();
    if limits.iter().any(|said| Some(said) != first.as_ref()) {
        let why = "all chains of a listener serve their clients for as long and as much";
        listener.unsupported("filter_chains", why);
    }
    check(listener, &sections);
    let origin = Origin {
        kind: "Envoy".into(),
        namespace: name.as_str().into(),
        name: "listener".into(),
        field: "".into(),
    };
    let limits = first.map(Arc::new);
    let gateway = GatewayListener { proxy_header, limits, ..GatewayListener::new(bind, sections) };
    let kind = ListenerKind::Gateway(gateway);
    let made = Listener { name: name.as_str().into(), kind, origin: Some(origin) };
    context.put(root.own(), Resource::Listener(made));
}

/// What cannot stand together on one socket.
fn check(listener: &Message<'_>, sections: &[Section]) {
    if sections.is_empty() {
        listener.error("filter_chains", "a listener needs one that can be served");
        return;
    }
    let secure = sections.iter().filter(|s| s.tls.is_some()).count();
    if secure != 0 && secure != sections.len() {
        let why = "all chains of a listener have TLS, or none";
        listener.error("filter_chains", why);
    }
    if secure == 0 && sections.len() > 1 {
        listener.unsupported("filter_chains", "without TLS there is one chain");
    }
    let first = sections.first().map(|s| s.protocol == Protocol::Tcp);
    if sections.iter().any(|s| Some(s.protocol == Protocol::Tcp) != first) {
        listener.unsupported("filter_chains", "all chains of a listener are HTTP, or all are TCP");
    }
    // A request's own host chooses the section once a connection stands, so that a client could
    // go round what another chain asks of its certificate.
    let clients = |s: &Section| s.tls.as_ref().and_then(|t| t.clients.clone());
    let asks = sections.first().and_then(clients);
    if sections.iter().any(|s| clients(s) != asks) {
        let why = "all chains of a listener ask the same of clients' certificates";
        listener.error("filter_chains", why);
    }
}

fn listener_filters(listener: &Message<'_>) -> ProxyHeader {
    let mut out = ProxyHeader::Off;
    listener.each("listener_filters", |filter| {
        filter.pass_over(&["name"]);
        let Some((kind, config)) = filter.any("typed_config") else { return };
        match kind {
            TLS_INSPECTOR | HTTP_INSPECTOR => config.waive(),
            PROXY_PROTOCOL => {
                let optional = config.flag("allow_requests_without_proxy_protocol");
                out = match optional {
                    Some(true) => ProxyHeader::Optional,
                    _ => ProxyHeader::Required,
                };
            }
            other => {
                config.waive();
                filter.unsupported("typed_config", format!("{other} is none of weft's"));
            }
        }
    });
    out
}

/// The server names of a chain's match; everything else that it may ask is reported.
fn chain_names(chain: &Message<'_>) -> Vec<Arc<str>> {
    let Some(found) = chain.message("filter_chain_match") else { return Vec::new() };
    // What is left out of a match lets more clients in.
    found.firm(true);
    let secure = chain.is_set("transport_socket");
    match found.text("transport_protocol") {
        None | Some("") => {}
        Some("tls") if secure => {}
        Some("raw_buffer") if !secure => {}
        Some(_) => found.unsupported("transport_protocol", "a listener has TLS or it has not"),
    }
    let names = found.texts("server_names");
    names.into_iter().map(|n| n.to_ascii_lowercase().into()).collect()
}

fn section(
    chain: &Message<'_>,
    root: &Root,
    listener: &str,
    index: usize,
    context: &Context<'_>,
) -> Option<(Section, Option<ClientLimits>)> {
    chain.pass_over(&["name", "metadata", "transport_socket_connect_timeout"]);
    let tls = tls::downstream(chain, context);
    let name: Arc<str> = index.to_string().into();
    let place = (root.clone(), listener, name.clone(), index);
    let (mut protocol, mut limits) = (None, None);
    chain.each("filters", |filter| {
        filter.pass_over(&["name"]);
        let Some((kind, config)) = filter.any("typed_config") else { return };
        match kind {
            _ if protocol.is_some() => {
                config.waive();
                filter.unsupported("typed_config", "one filter takes the whole connection");
            }
            MANAGER => {
                let (spoken, said) = connection::http(&config, &place, context);
                (protocol, limits) = (Some(spoken), Some(said));
            }
            TCP => {
                connection::tcp(&config, &place, context);
                protocol = Some(Protocol::Tcp);
            }
            other => {
                config.waive();
                super::filter::unknown(&filter, "typed_config", other);
            }
        }
    });
    if protocol.is_none() {
        chain.error("filters", "a chain ends in a connection manager or a TCP proxy");
    }
    Some((Section { name, hostname: None, protocol: protocol?, tls }, limits))
}
