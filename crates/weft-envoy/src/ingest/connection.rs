// SPDX-License-Identifier: Apache-2.0
//! The HTTP connection manager and the TCP proxy: what happens on one filter chain.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use weft_base::issue::FieldPath;
use weft_model::{
    Action, Dialect, Filter, HeaderEdit, Matching, Origin, Parent, Protocol, Rank, Resource, Root,
    Route, Rule, Scope, Timeouts, WeightedBackend,
};

use super::filter::Chain;
use super::options::{Clients, NotDone};
use super::route::{self, Place};
use super::upgrade::Upgrades;
use super::{Context, Log, options, route_action};
use crate::read::Message;

const FILE_LOG: &str = "envoy.extensions.access_loggers.file.v3.FileAccessLog";
const STDOUT_LOG: &str = "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog";
/// Envoy's longest silence of a TCP connection when nothing is said; 0 is no limit.
const TCP_IDLE_MS: u64 = 3_600_000;

const NOT_DONE: NotDone = &[
    ("generate_request_id", &["true"], "every request has an id"),
    ("always_set_request_id_in_response", &["true"], "every answer has its request's id"),
    ("drain_timeout", &["5s"], "how long a client may still ask after it was told is weft's own"),
    ("delayed_close_timeout", &["1s"], "how long a client may still read is weft's own"),
];

/// Instances that are tried for a connection, one behind the other.
const CONNECTS: u32 = 3;
const KEPT_PORT: &str = "hosts are compared without their port, and backends get it as it came";

/// What is asked for is done only when it is what weft does anyhow.
const FLAGS: &[(&str, bool, &str)] = &[
    ("normalize_path", true, "paths that are not in their normal form are refused"),
    ("preserve_external_request_id", false, "request ids of clients are weft's own to judge"),
    ("strip_matching_host_port", false, KEPT_PORT),
    ("strip_any_host_port", false, KEPT_PORT),
];

/// The same of what is said by a word.
const WORDS: &[(&str, &[&str], &str)] = &[(
    "forward_client_cert_details",
    &["SANITIZE"],
    "backends are not told of clients' certificates, and clients tell them nothing of any",
)];

/// Where a chain stands: its listener, with the name, its sections, and which chain of it it is.
pub type At<'a> = (Root, &'a str, Vec<Arc<str>>, usize);

/// Reads an `HttpConnectionManager`: its protocol, and how its clients are served.
pub fn http(
    manager: &Message<'_>,
    (root, listener, sections, index): &At<'_>,
    context: &Context<'_>,
) -> (Protocol, Clients) {
    manager.pass_over(&["stat_prefix"]);
    options::not_done(manager, NOT_DONE);
    let (clients, timeouts) = options::clients(manager);
    options::flags(manager, FLAGS);
    options::words(manager, WORDS);
    let protocol = match manager.word("codec_type").as_deref().unwrap_or("AUTO") {
        "AUTO" => Protocol::Http1,
        "HTTP1" => {
            manager.unsupported("codec_type", "HTTP1: HTTP/2 is served, too");
            Protocol::Http1
        }
        "HTTP2" => Protocol::Http2,
        other => {
            manager.unsupported("codec_type", format!("{other} is not served"));
            Protocol::Http1
        }
    };
    let place = Place {
        root,
        listener,
        sections,
        index: *index,
        chain: &Chain::read(manager),
        upgrades: &Upgrades::default().with(manager),
        timeouts: &timeouts,
        server: server(manager),
    };
    logs(manager, context);
    match manager.message("route_config") {
        Some(config) => route::read(&config, &place, context),
        None => {
            if let Some(rds) = manager.message("rds") {
                rds.waive();
                manager.unsupported("rds", "routes stand in route_config");
            } else {
                manager.error("route_config", "there is none");
            }
        }
    }
    (protocol, clients)
}

/// What answers say of who serves. Envoy says that it is itself where nothing else is said; weft
/// leaves it to backends, unless it is told.
fn server(manager: &Message<'_>) -> Option<Filter> {
    let name = manager.text("server_name").filter(|name| !name.is_empty());
    let own = match manager.word("server_header_transformation").as_deref() {
        None => name?,
        Some("OVERWRITE") => name.unwrap_or("envoy"),
        Some("PASS_THROUGH") => return None,
        Some(other) => {
            let why = format!("{other}: a backend's word is replaced in any case, or passed on");
            manager.unsupported("server_header_transformation", why);
            return None;
        }
    };
    let set = vec![("server".into(), own.into())];
    Some(Filter::ResponseHeaders(HeaderEdit { set, ..HeaderEdit::default() }))
}

/// Reads a `TcpProxy`.
pub fn tcp(proxy: &Message<'_>, (root, listener, sections, index): &At<'_>, context: &Context<'_>) {
    proxy.pass_over(&["stat_prefix"]);
    if proxy.number::<u32>("max_connect_attempts").is_some_and(|n| n > CONNECTS) {
        let why = format!("while none is connected, {CONNECTS} instances are tried, no more");
        proxy.unsupported("max_connect_attempts", why);
    }
    logs(proxy, context);
    let mut shares = Vec::new();
    let plain = |target, weight| WeightedBackend { target, weight, filters: Vec::new() };
    if proxy.is_set("cluster") {
        shares.extend(context.target(proxy, "cluster", "").map(|t| plain(t, 1)));
    } else if let Some(weighted) = proxy.message("weighted_clusters") {
        shares = weighted.map("clusters", |cluster| {
            let weight = cluster.number::<u32>("weight").unwrap_or(0);
            Some(plain(context.target(&cluster, "name", "")?, weight))
        });
    } else {
        proxy.error("cluster", "a TCP proxy needs cluster or weighted_clusters");
    }
    route_action::hashed_connections(proxy, &shares, context);
    let idle_ms = Some(proxy.duration("idle_timeout").unwrap_or(TCP_IDLE_MS));
    let stream_ms = proxy.duration("max_downstream_connection_duration").filter(|ms| *ms > 0);
    let origin = Origin {
        kind: "Envoy".into(),
        namespace: (*listener).into(),
        name: "tcp_proxy".into(),
        field: "cluster".into(),
    };
    let rule = Rule {
        name: "".into(),
        matches: Vec::new(),
        filters: Vec::new(),
        action: Action::Forward(shares),
        timeouts: Timeouts { idle_ms, stream_ms, ..Timeouts::default() },
        retry: route_action::no_retry(),
        session: None,
        origin: origin.clone(),
        sources: weft_model::Sources::default(),
    };
    let route = Route {
        parent: Parent::Listener {
            root: root.clone(),
            sections: sections.clone(),
            hostnames: Vec::new(),
        },
        scope: Scope::Any,
        matching: Matching::FirstMatch,
        rank: Rank { dialect: Dialect::VirtualService, created_ms: 0, name: "tcp".into() },
        rules: vec![rule],
        origin,
    };
    context.put(root.child(format!("route/envoy/{index}/tcp")), Resource::Route(route));
}

/// The access logs of one chain; only one of them is written.
fn logs(message: &Message<'_>, context: &Context<'_>) {
    let mut any = false;
    message.each("access_log", |log| {
        log.pass_over(&["name"]);
        if let Some(filter) = log.message("filter") {
            filter.waive();
            log.unsupported("filter", "an access log has every request");
        }
        let Some((kind, config)) = log.any("typed_config") else { return };
        let path = match kind {
            FILE_LOG => config.text("path").map(PathBuf::from),
            STDOUT_LOG => None,
            other => {
                config.waive();
                log.unsupported("typed_config", format!("{other} is none of weft's"));
                return;
            }
        };
        // `/dev/stdout` is what the process has.
        let path = path.filter(|p| p.as_os_str() != "/dev/stdout");
        let (format, omit_empty) = format(&config);
        context.logs.borrow_mut().push(Some(Log { path, format, omit_empty }));
        any = true;
    });
    if !any {
        context.logs.borrow_mut().push(None);
    }
}

/// A log's format, and whether values that are not there are left out.
fn format(config: &Message<'_>) -> (Option<(FieldPath, Value)>, bool) {
    let given = |message: &Message<'_>, field: &str| {
        let item = message.item(field)?;
        Some((item.at.path(), item.value.clone()))
    };
    let Some(format) = config.message("log_format") else {
        return (given(config, "format").or_else(|| given(config, "json_format")), false);
    };
    format.pass_over(&["content_type"]);
    let omit = format.flag("omit_empty_values").unwrap_or(false);
    let source = format.message("text_format_source");
    let inline = source.and_then(|source| given(&source, "inline_string"));
    let own = || given(&format, "text_format").or_else(|| given(&format, "json_format"));
    (inline.or_else(own), omit)
}
