// SPDX-License-Identifier: Apache-2.0
//! Which backend an opaque connection to a service goes to: what the `tcp` rules of its routes
//! say, or the service itself. Called once per connection by `relay`; never looks at bytes.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use weft_base::rng::Rng;
use weft_model::decide::{
    Addresses, Found, Headers, Request, find_rule, pick_section, total_weight, weighted_at,
};
use weft_model::{Action, Dialect, HostPort, Match, Parent, Protocol, Route, Target, Timeouts};

use crate::table::{BackendEntry, Door, GatewayEntry, HostEntry, Table};
use crate::worker::Conn;

/// Longer than any process lasts.
pub const FOR_EVER: Duration = Duration::from_secs(86_400 * 365);

/// Where a connection of a listener goes, and what its rule says of silence.
#[derive(Clone, Debug)]
pub struct Way {
    pub backend: Arc<BackendEntry>,
    /// No byte in either direction; `None` leaves it to the proxy.
    pub idle: Option<Duration>,
    /// From its first byte to its end; `None` is for ever.
    pub longest: Option<Duration>,
}

/// Whose opaque bytes they are: all that rules can ask about them.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    ends: Addresses,
    /// The server name that TLS asked for; empty when there is none.
    name: &'a str,
}

impl<'a> Who<'a> {
    pub fn of(conn: &'a Conn) -> Self {
        let dialled = match (&conn.door, &conn.tunnel) {
            (_, Some(target)) => target.ip(),
            (Door::Gateway(_), None) => Some(conn.local.ip()),
            (_, None) => conn.original.map(|to| to.ip()),
        };
        let ends = Addresses { client: conn.remote.ip(), dialled };
        Self { ends, name: conn.server_name.as_deref().unwrap_or_default() }
    }

    /// What rules see of it, on its way to a host.
    pub fn request(&'a self, host: &'a str, port: u16) -> Request<'a> {
        let (written, scheme) = (None, "");
        Request { method: "", scheme, host, port, written, path: "", query: "", headers: self }
    }

    /// One of whom only the address is known.
    pub fn at(client: IpAddr) -> Self {
        Self { ends: Addresses { client, dialled: None }, name: "" }
    }
}

impl Headers for Who<'_> {
    fn any(&self, _: &str, _: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        false
    }

    fn connection(&self) -> Option<Addresses> {
        Some(self.ends)
    }
}

/// The backend of a service's port; `None` when the table does not know the service or its port.
///
/// # Errors
/// Why a rule leads nowhere.
pub fn backend_of(
    table: &Table,
    host: &str,
    port: u16,
    who: Who<'_>,
    rng: &mut Rng,
) -> Option<Result<Arc<BackendEntry>, String>> {
    let Taken { entry, port, found } = taken(table, host, port, who)?;
    if let Some(found) = found {
        let rule = &found.rule;
        return Some(
            target(table, &rule.action, rng)
                .map_err(|why| format!("{why}; route: {}", rule.origin)),
        );
    }
    // Who is known and fails is not unknown: nothing goes there past its sentence.
    Some(entry.default_backend(port).cloned().ok_or_else(|| entry.why_missing(port)))
}

/// What an opaque connection to a service meets: its port, and the rule if one takes it. `None`
/// when the table does not know the service or its port.
#[derive(Debug)]
pub struct Taken<'t> {
    pub entry: &'t HostEntry,
    pub port: &'t HostPort,
    pub found: Option<Found<'t>>,
}

pub fn taken<'t>(table: &'t Table, host: &str, port: u16, who: Who<'_>) -> Option<Taken<'t>> {
    let entry = table.host(host)?;
    let port = entry.port(port)?;
    let routes = opaque_routes(entry, port.protocol);
    // Who names a host has dialled its address.
    let own = entry.host.addresses.first().copied();
    let ends = Addresses { dialled: who.ends.dialled.or(own), ..who.ends };
    let who = Who { ends, ..who };
    let host = if port.protocol == Protocol::Tls { who.name } else { &entry.host.name };
    let found = find_rule(routes, None, &who.request(host, port.port));
    Some(Taken { entry, port, found })
}

/// The routes of a host that speak of opaque bytes. Rules for HTTP say nothing about bytes that are
/// none: where both may come, only rules count that are for bytes alone.
fn opaque_routes(entry: &HostEntry, protocol: Protocol) -> Vec<&Route> {
    let all = entry.routes.iter().map(|r| &**r);
    let all = all.filter(|r| r.rank.dialect == Dialect::VirtualService);
    match protocol {
        Protocol::Tcp | Protocol::Tls => all.collect(),
        Protocol::Detect => all.filter(|r| is_for_bytes(r)).collect(),
        _ => Vec::new(),
    }
}

/// Whether a route takes bytes that are no HTTP, and no request.
pub fn is_for_bytes(route: &Route) -> bool {
    let for_bytes = |m: &Match| m.connection.is_some();
    let mut rules = route.rules.iter();
    rules.all(|r| !r.matches.is_empty() && r.matches.iter().all(for_bytes))
}

/// Whether a rule of a service's port asks which server name TLS asks for.
pub fn asks_name(table: &Table, host: &str, port: u16) -> bool {
    let Some(entry) = table.host(host) else { return false };
    let tls = entry.port(port).is_some_and(|p| p.protocol == Protocol::Tls);
    let asks = |route: &&Route| {
        let mut matches = route.rules.iter().flat_map(|rule| &rule.matches);
        matches.any(|m| m.authority.is_some())
    };
    tls && opaque_routes(entry, Protocol::Tls).iter().any(asks)
}

/// The way of a gateway's listener that looks at no bytes.
///
/// # Errors
/// Why there is none.
pub fn backend_of_listener(
    table: &Table,
    name: &str,
    who: Who<'_>,
    rng: &mut Rng,
) -> Result<Way, String> {
    let entry = table.gateway(name).ok_or_else(|| format!("the listener {name} is gone"))?;
    let found = rule_of_listener(entry, who)?;
    let backend = target(table, &found.rule.action, rng)
        .map_err(|why| format!("{why}; route: {}", found.rule.origin))?;
    let timeouts = &found.rule.timeouts;
    Ok(Way { backend, idle: idle(timeouts), longest: longest(timeouts) })
}

/// The rule of a listener that takes an opaque connection.
///
/// # Errors
/// Why there is none.
pub fn rule_of_listener<'t>(entry: &'t GatewayEntry, who: Who<'_>) -> Result<Found<'t>, String> {
    let (host, name) = (who.name, &entry.name);
    let section = pick_section(&entry.listener, host)
        .ok_or_else(|| format!("no listener serves the server name {host:?}"))?;
    let found = entry.routes.find(Some(&section.name), &who.request(host, 0));
    found.ok_or_else(|| match host {
        "" if entry.routes.iter().any(|r| serves_names(r)) => {
            let why = match entry.is_opaque() {
                true => "no server name is read here",
                false => "TLS asks for no server name",
            };
            format!("{why}, and every route of {name} is for some")
        }
        "" => format!("the listener {name} has no route with a healthy instance yet"),
        host => format!("the listener {name} has no route for the server name {host:?}"),
    })
}

/// What a rule says of silence: 0 is no limit.
pub fn idle(timeouts: &Timeouts) -> Option<Duration> {
    let ms = timeouts.idle_ms?;
    Some(if ms == 0 { FOR_EVER } else { Duration::from_millis(ms) })
}

/// How long a rule lets a tunnel last; `None` is for ever.
pub fn longest(timeouts: &Timeouts) -> Option<Duration> {
    timeouts.stream_ms.filter(|ms| *ms > 0).map(Duration::from_millis)
}

fn serves_names(route: &Route) -> bool {
    matches!(&route.parent, Parent::Listener { hostnames, .. } if !hostnames.is_empty())
}

fn target(table: &Table, action: &Action, rng: &mut Rng) -> Result<Arc<BackendEntry>, String> {
    let backends = match action {
        Action::Forward(backends) => backends,
        Action::Fail { reason, .. } => return Err(reason.to_string()),
        Action::Redirect(_) | Action::Direct { .. } => {
            return Err("the rule gives an HTTP answer, and the port is not HTTP".to_owned());
        }
    };
    let weights: Vec<u32> = backends.iter().map(|b| b.weight).collect();
    let chosen = weighted_at(&weights, rng.below(total_weight(&weights)));
    match chosen.and_then(|i| backends.get(i)).map(|b| &b.target) {
        None => Err("all backends of the rule have weight 0".to_owned()),
        Some(Target::Fail { reason, .. }) => Err(reason.to_string()),
        Some(Target::Backend(name)) => table.backend(name).cloned().ok_or_else(|| {
            let known = table.fail(name).map(|f| f.reason.to_string());
            known.unwrap_or_else(|| format!("{name} is not known here"))
        }),
    }
}
