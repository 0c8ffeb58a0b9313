// SPDX-License-Identifier: Apache-2.0
//! Listeners: one gateway listener of the model each, a section for every filter chain.

use std::sync::Arc;

use weft_model::{
    GatewayListener, Listener, ListenerKind, Origin, Protocol, ProxyHeader, Resource, Root, Section,
};

use super::options::{Clients, NotDone};
use super::{Context, address, connection, options, tls};
use crate::read::Message;

const MANAGER: &str =
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const TCP: &str = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const TLS_INSPECTOR: &str = "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";
const HTTP_INSPECTOR: &str = "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector";
const PROXY_PROTOCOL: &str = "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol";

const PASSED_OVER: &[&str] =
    &["stat_prefix", "traffic_direction", "per_connection_buffer_limit_bytes", "metadata"];

const WORKERS: &str =
    "each worker has a socket of its own on the address, as the kernel shares out";
const NOT_DONE: NotDone = &[
    ("enable_reuse_port", &["true"], WORKERS),
    ("reuse_port", &["true"], WORKERS),
    ("connection_balance_config", &["{}"], WORKERS),
    ("tcp_backlog_size", &["1024", "128"], "1024 connections wait to be accepted"),
    ("listener_filters_timeout", &["15s"], "how long a client may say nothing is weft's own"),
    ("drain_type", &["DEFAULT"], "a listener drains whenever its process does"),
    ("ignore_global_conn_limit", &["false"], "what guards a process guards all listeners"),
];

/// Of what reads a name out of TLS.
const INSPECTOR: NotDone = &[
    ("enable_ja3_fingerprinting", &["false"], "clients are not told by their TLS"),
    ("enable_ja4_fingerprinting", &["false"], "clients are not told by their TLS"),
];

/// Reads one listener.
pub fn read(listener: &Message<'_>, context: &Context<'_>) {
    listener.pass_over(PASSED_OVER);
    options::not_done(listener, NOT_DONE);
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
    let mut clients: Vec<Clients> = Vec::new();
    let mut index = 0;
    let mut read = |chain: &Message<'_>, (names, passes): (Vec<Arc<str>>, bool)| {
        let made = chain_of(chain, (&root, &name, index), (&names, passes), context);
        index += 1;
        let Some((made, said)) = made else { return };
        clients.extend(said);
        sections.extend(made);
    };
    listener.each("filter_chains", |chain| read(&chain, chosen(&chain)));
    if let Some(chain) = listener.message("default_filter_chain") {
        read(&chain, (Vec::new(), false));
    }
    let first = clients.first().cloned();
    if clients.iter().any(|said| Some(said) != first.as_ref()) {
        let why = "all chains of a listener serve their clients for as long and as much, and \
                   believe the same of what they say";
        listener.unsupported("filter_chains", why);
    }
    pass_on(listener, &mut sections);
    check(listener, &sections);
    let origin = Origin {
        kind: "Envoy".into(),
        namespace: name.as_str().into(),
        name: "listener".into(),
        field: "".into(),
    };
    let edge = first.as_ref().map(|said| said.edge).unwrap_or_default();
    let limits = first.map(|said| Arc::new(said.limits));
    let made = GatewayListener::new(bind, sections);
    let gateway = GatewayListener { proxy_header, edge, limits, ..made };
    let kind = ListenerKind::Gateway(gateway);
    let made = Listener { name: name.as_str().into(), kind, origin: Some(origin) };
    context.put(root.own(), Resource::Listener(made));
}

/// Without TLS of their own the chains of server names read only which name a client asks for, and
/// pass its TLS on. One for all others beside them has TLS alone.
fn pass_on(listener: &Message<'_>, sections: &mut [Section]) {
    let opaque = |s: &Section| s.tls.is_none() && s.protocol == Protocol::Tcp;
    for section in sections.iter_mut().filter(|s| opaque(s) && s.hostname.is_some()) {
        section.protocol = Protocol::Tls;
    }
    if !sections.iter().any(|s| s.protocol == Protocol::Tls) {
        return;
    }
    for section in sections.iter_mut().filter(|s| opaque(s)) {
        section.protocol = Protocol::Tls;
        let why = "beside chains of server names a connection without TLS is closed; say \
                   transport_protocol: tls in the one for all others";
        listener.unsupported("filter_chains", why);
    }
}

/// What cannot stand together on one socket.
fn check(listener: &Message<'_>, sections: &[Section]) {
    if sections.is_empty() {
        listener.error("filter_chains", "a listener needs one that can be served");
        return;
    }
    // What is passed on unopened stands beside anything else.
    let ended = || sections.iter().filter(|s| s.protocol != Protocol::Tls);
    let secure = ended().filter(|s| s.tls.is_some()).count();
    if secure != ended().count() && (secure != 0 || ended().count() != sections.len()) {
        let why = "all chains of a listener have TLS, or none";
        listener.error("filter_chains", why);
    }
    if secure == 0 && ended().count() > 1 {
        listener.unsupported("filter_chains", "without TLS there is one chain");
    }
    let first = ended().next().map(|s| s.protocol == Protocol::Tcp);
    if ended().any(|s| Some(s.protocol == Protocol::Tcp) != first) {
        listener.unsupported("filter_chains", "all chains of a listener are HTTP, or all are TCP");
    }
    // A request's own host chooses the section once a connection stands, so that a client could
    // go round what another chain asks of its certificate.
    let clients = |s: &Section| s.tls.as_ref().and_then(|t| t.clients.clone());
    let asks = ended().next().and_then(clients);
    if ended().any(|s| clients(s) != asks) {
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
            TLS_INSPECTOR => {
                config.pass_over(&["initial_read_buffer_size"]);
                options::not_done(&config, INSPECTOR);
            }
            HTTP_INSPECTOR => {}
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

/// The server names of a chain's match, and whether it has TLS alone that it does not end;
/// everything else that it may ask is reported.
fn chosen(chain: &Message<'_>) -> (Vec<Arc<str>>, bool) {
    let Some(found) = chain.message("filter_chain_match") else { return (Vec::new(), false) };
    // What is left out of a match lets more clients in.
    found.firm(true);
    let secure = chain.is_set("transport_socket");
    let protocol = found.text("transport_protocol");
    match protocol {
        None | Some("" | "tls") => {}
        Some("raw_buffer") if !secure => {}
        Some(_) => found.unsupported("transport_protocol", "a listener has TLS or it has not"),
    }
    let names = found.texts("server_names");
    let names = names.into_iter().map(|n| n.to_ascii_lowercase().into());
    (names.collect(), protocol == Some("tls") && !secure)
}

/// The sections of one chain, one for each of its names or one for all, and what it says of its
/// clients.
fn chain_of(
    chain: &Message<'_>,
    (root, listener, index): (&Root, &str, usize),
    (names, passes): (&[Arc<str>], bool),
    context: &Context<'_>,
) -> Option<(Vec<Section>, Option<Clients>)> {
    chain.pass_over(&["name", "metadata"]);
    let why = "how long a handshake may take is weft's own";
    chain.not_done("transport_socket_connect_timeout", &[], why);
    let tls = tls::downstream(chain, context);
    let first: Arc<str> = index.to_string().into();
    let more = (1..names.len()).map(|n| format!("{index}.{n}").into());
    let sections: Vec<Arc<str>> = std::iter::once(first).chain(more).collect();
    let at = (root.clone(), listener, sections, index);
    let (mut protocol, mut clients) = (None, None);
    chain.each("filters", |filter| {
        filter.pass_over(&["name"]);
        let Some((kind, config)) = filter.any("typed_config") else { return };
        match kind {
            _ if protocol.is_some() => {
                config.waive();
                filter.unsupported("typed_config", "one filter takes the whole connection");
            }
            MANAGER => {
                let (spoken, said) = connection::http(&config, &at, context);
                (protocol, clients) = (Some(spoken), Some(said));
            }
            TCP => {
                connection::tcp(&config, &at, context);
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
    let mut protocol = protocol?;
    if passes {
        if protocol != Protocol::Tcp {
            chain.error("transport_socket", "what is inside of TLS is read where that is ended");
        }
        protocol = Protocol::Tls;
    }
    let mut names = names.iter();
    let sections = at.2.into_iter();
    let sections = sections.map(|name| {
        let hostname = names.next().cloned();
        Section { name, hostname, protocol, tls: tls.clone() }
    });
    Some((sections.collect(), clients))
}
