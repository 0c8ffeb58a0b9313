// SPDX-License-Identifier: Apache-2.0
//! Where a request goes: the connection's door says what its host may mean, the model's decisions
//! choose the rule. Pure but for the pinned table.

use std::sync::Arc;

use http::request::Parts;
use weft_model::decide::{
    Authority, Captured, Found, Request, Routes, by_original_dst_and_host, pick_section,
};
use weft_model::{GatewayListener, HostPort, Match, Parent, PathMatch, Protocol, Route, Section};

use super::made::{self, Text};
use super::normalise::{HeaderView, readings};
use super::reply::{Cause, Refusal};
use crate::guards;
use crate::table::{BackendEntry, Door, HostEntry, Table};
use crate::tcp::route::is_for_bytes;
use crate::worker::Conn;

/// What a request is answered by.
#[derive(Debug)]
pub enum Choice<'t> {
    /// A rule of a route.
    Rule(Found<'t>),
    /// A service no route speaks about, or the app behind this sidecar.
    Backend(&'t Arc<BackendEntry>),
    /// One instance, made for this request.
    Own(Arc<BackendEntry>),
    /// Something outside the mesh, by name or address and port.
    Outside(Authority),
}

/// What the connection's door makes of the request's host.
#[derive(Debug)]
pub struct Asked {
    /// Canonical host for matching.
    pub host: String,
    pub port: u16,
    /// What the client itself wrote behind the host.
    pub written: Option<u16>,
    /// Send this instead of the authority that the client used.
    pub authority: Option<String>,
}

impl Drop for Asked {
    fn drop(&mut self) {
        made::keep(std::mem::take(&mut self.host));
    }
}

/// The model's view of a request.
pub fn view<'a>(
    head: &'a Parts,
    headers: &'a HeaderView<'a>,
    scheme: &'a str,
    asked: &'a Asked,
) -> Request<'a> {
    Request {
        method: head.method.as_str(),
        scheme,
        host: &asked.host,
        port: asked.port,
        written: asked.written,
        path: guards::loose_path(head.uri.path()),
        query: head.uri.query().unwrap_or(""),
        headers,
    }
}

/// Host and port that a request is for, as its door sees it.
pub fn asked(conn: &Conn, authority: &Authority) -> Asked {
    match &conn.door {
        // The port that was dialled decides; what the program put into Host says nothing.
        Door::Upstream { host, port } => {
            let shown = Some(format!("{host}:{port}"));
            // As who calls it by name would write it.
            let written = (*port != 80).then_some(*port);
            Asked { host: host.to_string(), port: *port, written, authority: shown }
        }
        Door::Forward => {
            let target = conn.tunnel.as_ref().unwrap_or(authority);
            Asked {
                host: made::string(&target.host),
                port: target.port.unwrap_or(80),
                written: authority.port,
                authority: None,
            }
        }
        Door::Mesh | Door::Inbound => Asked {
            host: made::string(&authority.host),
            port: conn.app_port.unwrap_or(conn.local.port()),
            written: authority.port,
            authority: None,
        },
        Door::Outbound => Asked {
            host: made::string(&authority.host),
            port: conn.dialled().port(),
            written: authority.port,
            authority: None,
        },
        Door::Gateway(_) | Door::Datagrams(_) => Asked {
            host: made::string(&authority.host),
            // The listener's port, whatever the client calls it: redirects and matches name that.
            port: conn.local.port(),
            written: authority.port,
            authority: None,
        },
    }
}

/// Chooses among what the door offers.
///
/// # Errors
/// The refusal to answer with.
pub fn choose<'t>(table: &'t Table, conn: &Conn, req: &Request<'_>) -> Result<Choice<'t>, Refusal> {
    match &conn.door {
        Door::Gateway(name) | Door::Datagrams(name) => gateway(table, name, conn, req),
        Door::Mesh | Door::Inbound => app(table, conn),
        Door::Outbound => captured(table, conn, req),
        Door::Upstream { host, .. } => {
            let entry = table.host(host).ok_or_else(|| unknown_service(req))?;
            service(entry, req)
        }
        Door::Forward => match table.host(req.host) {
            Some(entry) if entry.port(req.port).is_some() => service(entry, req),
            // A mesh host on a port that it does not declare is outside all the same.
            _ => Ok(Choice::Outside(Authority { host: req.host.to_owned(), port: Some(req.port) })),
        },
    }
}

/// The app's port behind this sidecar.
fn app<'t>(table: &'t Table, conn: &Conn) -> Result<Choice<'t>, Refusal> {
    let port = conn.app_port.unwrap_or_default();
    match (table.inbound(port), conn.app) {
        (Some(entry), Some(app)) if entry.listener.app != app => {
            Ok(Choice::Own(BackendEntry::app(app, Some(entry))))
        }
        (Some(entry), _) => Ok(Choice::Backend(&entry.backend)),
        (None, Some(app)) => Ok(Choice::Own(BackendEntry::app(app, None))),
        (None, None) => {
            let detail = format!("this instance has no port {port}");
            Err(Refusal::new(Cause::ConnectFailed, detail))
        }
    }
}

/// The address that was dialled decides; the host refines it where that leaves a choice.
fn captured<'t>(table: &'t Table, conn: &Conn, req: &Request<'_>) -> Result<Choice<'t>, Refusal> {
    let to = conn.dialled();
    match by_original_dst_and_host(table, to, req.host) {
        Captured::Service { host, .. } => {
            let entry = table.host(&host.name).ok_or_else(|| unknown_service(req))?;
            service(entry, req)
        }
        Captured::Instance(found) => {
            let own = BackendEntry::instance(table, &found);
            own.map(Choice::Own).map_err(|why| Refusal::new(Cause::NoBackend, why))
        }
        Captured::NoSuchPort { host } => {
            let detail = format!("{} has no port {}", host.name, to.port());
            Err(Refusal::new(Cause::NoService, detail))
        }
        Captured::Outside => {
            Ok(Choice::Outside(Authority { host: to.ip().to_string(), port: Some(to.port()) }))
        }
    }
}

fn gateway<'t>(
    table: &'t Table,
    name: &str,
    conn: &Conn,
    req: &Request<'_>,
) -> Result<Choice<'t>, Refusal> {
    let no_route = |what: String| Refusal::new(Cause::NoRoute, what);
    let entry = table
        .gateway(name)
        .ok_or_else(|| no_route(format!("the gateway listener {name} is gone")))?;
    let section = pick_section(&entry.listener, req.host).ok_or_else(|| {
        no_route(format!("no listener of this gateway serves the host {:?}", req.host))
    })?;
    if conn.scheme == "https" {
        directed(&entry.listener, conn, section, req.host)?;
    }
    match one_rule(&entry.routes, Some(&section.name), req)? {
        Some(found) => Ok(Choice::Rule(found)),
        None => Err(no_route(format!("host {:?}, path {:?}", req.host, req.path))),
    }
}

/// A connection was made for one section, with its certificate and what it asks of clients; another
/// section's host is not served on it (RFC 9110 §7.4).
fn directed(
    listener: &GatewayListener,
    conn: &Conn,
    section: &Section,
    host: &str,
) -> Result<(), Refusal> {
    let named = conn.server_name.as_deref();
    let one = listener.sections.len() == 1 || !guards::on("misdirected");
    if one || named.is_some_and(|n| n.eq_ignore_ascii_case(host)) {
        return Ok(());
    }
    let name = named.unwrap_or("").to_ascii_lowercase();
    let served = pick_section(listener, &name);
    let asks = |s: &Section| s.tls.as_ref().is_some_and(|tls| tls.clients.is_some());
    // Who named nobody may ask for everybody that asks nothing of clients.
    let same = served.is_some_and(|s| s.name == section.name);
    if same || (named.is_none() && !asks(section)) {
        return Ok(());
    }
    let detail = format!(
        "its connection was made for {name:?}, and {host:?} is of another listener, {:?}",
        &*section.name
    );
    Err(Refusal::new(Cause::BadRequest, detail).with_status(421))
}

fn service<'t>(entry: &'t Arc<HostEntry>, req: &Request<'_>) -> Result<Choice<'t>, Refusal> {
    let port: &HostPort = entry.port(req.port).ok_or_else(|| unknown_service(req))?;
    if entry.routes.iter().any(|r| speaks_for(r, req.port)) {
        return match one_rule(&entry.routes, None, req)? {
            Some(found) => Ok(Choice::Rule(found)),
            None => Err(Refusal::new(
                Cause::NoRoute,
                format!("{} has routes, but none takes path {:?}", entry.host.name, req.path),
            )),
        };
    }
    if let Some(backend) = entry.default_backend(port) {
        return Ok(Choice::Backend(backend));
    }
    Err(Refusal::new(Cause::NoBackend, entry.why_missing(port)))
}

/// The rule that takes a request, whichever way its path is read: a server behind that unescapes,
/// merges slashes or drops path parameters must not see a path that another rule is there for.
fn one_rule<'t>(
    routes: &'t Routes,
    section: Option<&str>,
    req: &Request<'_>,
) -> Result<Option<Found<'t>>, Refusal> {
    // `OPTIONS *` is about a host as a whole (RFC 9112 §3.2.4): who has its root answers.
    let root = Request { path: if req.path == "*" { "/" } else { req.path }, ..*req };
    let found = routes.find(section, &root);
    if found.as_ref().and_then(|f| f.matched).is_some_and(spells_out) {
        return Ok(found);
    }
    for path in readings(req.path) {
        let other = routes.find(section, &Request { path: &path, ..*req });
        let same = match (&found, &other) {
            (Some(one), Some(other)) => std::ptr::eq(one.rule, other.rule),
            (one, other) => one.is_none() && other.is_none(),
        };
        if !same {
            let name = |f: &Option<Found<'_>>| f.as_ref().map_or_else(|| "no rule".into(), label);
            let detail = format!(
                "its path {:?} is for {}, but read as {path:?} it is for {}",
                req.path,
                name(&found),
                name(&other)
            );
            return Err(Refusal::new(Cause::BadRequest, detail));
        }
    }
    Ok(found)
}

/// Whoever wrote the match has such paths in mind.
fn spells_out(matched: &Match) -> bool {
    if !guards::on("path-spelled") {
        return false;
    }
    let text: &str = match &matched.path {
        Some(PathMatch::Exact(text) | PathMatch::ExactNoCase(text)) => text,
        Some(PathMatch::ElementPrefix(text)) => text,
        Some(PathMatch::StringPrefix(text) | PathMatch::StringPrefixNoCase(text)) => text,
        Some(PathMatch::Regex(regex)) => regex.source(),
        None => return false,
    };
    text.contains(['%', ';']) || text.contains("//")
}

fn speaks_for(route: &Route, port: u16) -> bool {
    match &route.parent {
        Parent::Host { port: only, .. } => only.is_none_or(|p| p == port) && !is_for_bytes(route),
        Parent::Listener { .. } => false,
    }
}

fn unknown_service(req: &Request<'_>) -> Refusal {
    Refusal::new(Cause::NoService, format!("{}:{} is not known here", req.host, req.port))
}

/// What a host's port speaks, for connections that carry no HTTP of their own.
pub fn declared(table: &Table, host: &str, port: u16) -> Option<Protocol> {
    Some(table.host(host)?.port(port)?.protocol)
}

/// How people name a rule: `HTTPRoute shop/users spec.rules[0]`.
pub fn label(found: &Found<'_>) -> Text {
    // As its `Display`, without the formatter.
    let origin = &found.rule.origin;
    let parts = [&*origin.kind, " ", &*origin.namespace, "/", &*origin.name, " ", &*origin.field];
    let used = if origin.field.is_empty() { 5 } else { 7 };
    Text::of(|out| parts.iter().take(used).for_each(|part| out.push_str(part)))
}
