// SPDX-License-Identifier: Apache-2.0
//! Which backend an opaque connection to a service goes to: what the `tcp` rules of its routes
//! say, or the service itself. Called once per connection by `relay`; never looks at bytes.

use std::sync::Arc;
use std::time::Duration;

use weft_base::rng::Rng;
use weft_model::decide::{Headers, Request, find_rule, pick_section, total_weight, weighted_at};
use weft_model::{Action, Dialect, Parent, Protocol, Route, Target, Timeouts};

use crate::table::{BackendEntry, Table};

/// Longer than any process lasts.
const FOR_EVER: Duration = Duration::from_secs(86_400 * 365);

/// Where a connection of a listener goes, and what its rule says of silence.
#[derive(Clone, Debug)]
pub struct Way {
    pub backend: Arc<BackendEntry>,
    /// No byte in either direction; `None` leaves it to the proxy.
    pub idle: Option<Duration>,
}

/// Nothing of HTTP is known about opaque bytes.
struct NoHeaders;

impl Headers for NoHeaders {
    fn any(&self, _: &str, _: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        false
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
    rng: &mut Rng,
) -> Option<Result<Arc<BackendEntry>, String>> {
    let entry = table.host(host)?;
    let port = entry.port(port)?;
    // Rules for HTTP say nothing about bytes that are none, so only declared ports have routes.
    if matches!(port.protocol, Protocol::Tcp | Protocol::Tls) {
        let routes: Vec<&Route> = entry
            .routes
            .iter()
            .map(|r| &**r)
            .filter(|r| r.rank.dialect == Dialect::VirtualService)
            .collect();
        let request = Request {
            method: "",
            scheme: "",
            host: &entry.host.name,
            port: port.port,
            path: "",
            query: "",
            headers: &NoHeaders,
        };
        if let Some(found) = find_rule(routes, None, &request) {
            let rule = &found.rule;
            return Some(
                target(table, &rule.action, rng)
                    .map_err(|why| format!("{why}; route: {}", rule.origin)),
            );
        }
    }
    // Who is known and fails is not unknown: nothing goes there past its sentence.
    Some(entry.default_backend(port).cloned().ok_or_else(|| match entry.fails.get(&port.backend) {
        Some(fail) => fail.reason.to_string(),
        None => format!("{} has no backend {:?}", entry.host.name, port.backend),
    }))
}

/// The way of a gateway's listener that looks at no bytes; `host` is the server name that TLS
/// asked for, if any.
///
/// # Errors
/// Why there is none.
pub fn backend_of_listener(
    table: &Table,
    name: &str,
    host: &str,
    rng: &mut Rng,
) -> Result<Way, String> {
    let entry = table.gateway(name).ok_or_else(|| format!("the listener {name} is gone"))?;
    let section = pick_section(&entry.listener, host)
        .ok_or_else(|| format!("no listener serves the server name {host:?}"))?;
    let request =
        Request { method: "", scheme: "", host, port: 0, path: "", query: "", headers: &NoHeaders };
    let found = entry.routes.find(Some(&section.name), &request).ok_or_else(|| match host {
        "" if entry.routes.iter().any(|r| serves_names(r)) => {
            format!("TLS asks for no server name, and every route of {name} is for some")
        }
        "" => format!("the listener {name} has no route with a healthy instance yet"),
        host => format!("the listener {name} has no route for the server name {host:?}"),
    })?;
    let backend = target(table, &found.rule.action, rng)
        .map_err(|why| format!("{why}; route: {}", found.rule.origin))?;
    Ok(Way { backend, idle: idle(&found.rule.timeouts) })
}

/// What a rule says of silence: 0 is no limit.
pub fn idle(timeouts: &Timeouts) -> Option<Duration> {
    let ms = timeouts.idle_ms?;
    Some(if ms == 0 { FOR_EVER } else { Duration::from_millis(ms) })
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
