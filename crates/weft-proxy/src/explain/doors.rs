// SPDX-License-Identifier: Apache-2.0
//! What becomes of a connection before there is a request: which of a gateway's listeners its
//! server name chooses, whether its TLS is ended, passed on unopened or closed. The same decisions
//! as `tcp::accept` makes of real connections.

use std::time::Duration;

use weft_model::decide::{explain_rules, pick_section};
use weft_model::{Rule, Section, value};

use super::steps::{default_step, of_silence};
use super::{Explanation, Place, Step, closed, forward, forwarded, not_taken, taken, whole};
use crate::config::ProxyLimits;
use crate::table::{GatewayEntry, Table};
use crate::tcp::route::{self, Who};
use crate::udp::ANSWERED_IDLE;
use crate::worker::Conn;

/// What a client's first bytes meet.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Met {
    /// HTTP is read.
    Http,
    /// Bytes are passed on unread.
    Bytes,
    /// So are datagrams.
    Datagrams,
}

const BYTES: &str = "its bytes are passed on unread";
const DATAGRAMS: &str =
    "the listener takes datagrams: each flow is passed on unread to one instance";
/// What a policy says that counts for nothing where no request is read.
const OF_REQUESTS: &[&str] = &[
    value::REQUEST_TIMEOUT,
    value::ATTEMPT_TIMEOUT,
    value::IDLE_TIMEOUT,
    value::STREAM_TIMEOUT,
    value::IDLE_CONNECTIONS,
    value::CONNECTION_REQUESTS,
    value::STREAMS,
    value::PINGS,
    value::RETRY_BUDGET,
    value::BODY,
];
const NO_NAME: &str = "the listener reads the server name of TLS, and this client begins without \
                       TLS; ask with https";
const NO_TLS: &str = "the listener has no TLS, and this client begins with it; ask with http";
const ONLY_TLS: &str = "the listener has TLS, and this client begins without; ask with https";

/// What a client meets at a gateway's listener.
///
/// # Errors
/// Why its connection is closed.
pub(super) fn met(entry: &GatewayEntry, place: &Place) -> Result<Met, String> {
    let name = place.server_name.as_deref();
    let section = pick_section(&entry.listener, name.unwrap_or_default());
    let ends = section.is_some_and(|s| s.tls.is_some());
    match (entry.passes_tls_on(), place.scheme == "https") {
        _ if entry.is_opaque() => return Ok(Met::Bytes),
        _ if entry.takes_datagrams() => return Ok(Met::Datagrams),
        (true, false) => return Err(NO_NAME.into()),
        (true, true) if !ends => return Ok(Met::Bytes),
        (false, tls) if entry.tls.is_empty() => {
            return if tls { Err(NO_TLS.into()) } else { Ok(Met::Http) };
        }
        (false, false) => return Err(ONLY_TLS.into()),
        (_, true) => {}
    }
    if entry.tls_for(name).is_none() {
        let name = name.unwrap_or_default();
        let served = served(entry);
        return Err(format!("no certificate serves the name {name:?}; {served}"));
    }
    Ok(match section.is_some_and(|s| !s.protocol.is_http()) {
        true => Met::Bytes,
        false => Met::Http,
    })
}

/// Which names have a certificate.
fn served(entry: &GatewayEntry) -> String {
    let named = |usable: bool| {
        let of = entry.tls.iter().filter(|(_, config)| config.is_some() == usable);
        of.map(|(name, _)| &**name).collect::<Vec<_>>().join(", ")
    };
    match (named(true), named(false)) {
        (good, bad) if bad.is_empty() => format!("there are those of {good}"),
        (good, bad) if good.is_empty() => format!("those of {bad} cannot be used"),
        (good, bad) => format!("there are those of {good}; those of {bad} cannot be used"),
    }
}

pub(super) fn named(section: &Section) -> String {
    let host = section.hostname.as_deref().unwrap_or("every host");
    format!("section {} ({host})", section.name)
}

/// What a gateway passes on unread.
pub(super) fn gateway_bytes(
    table: &Table,
    entry: &GatewayEntry,
    conn: &Conn,
    out: &mut Explanation,
) {
    let passed = if entry.takes_datagrams() { DATAGRAMS } else { BYTES };
    let name = conn.server_name.as_deref().unwrap_or_default();
    let who = Who::of(conn);
    if let Some(section) = pick_section(&entry.listener, name) {
        out.target = named(section);
        let request = who.request(name, 0);
        let lost = explain_rules(&entry.routes, Some(&section.name), &request).lost;
        out.lost = lost.iter().map(not_taken).collect();
    }
    match route::rule_of_listener(entry, who) {
        Ok(found) => {
            out.route = Some(taken(&found));
            forward(table, &found, None, out);
            unread(Some(found.rule), passed, out);
        }
        Err(why) => out.answer = closed(why),
    }
}

/// What a pod sends through its proxy in a tunnel, which it asks for to speak TLS itself.
pub(super) fn tunnel(table: &Table, host: &str, port: u16, conn: &Conn, out: &mut Explanation) {
    let Some(met) = route::taken(table, host, port, Who::of(conn)) else {
        out.target = format!("{host}:{port} is no port of the mesh");
        out.answer = forwarded(format!("it is not in the mesh; it goes to {host}:{port}"));
        return;
    };
    out.target = format!("{} port {port}", met.entry.host.name);
    let rule = met.found.as_ref().map(|found| found.rule);
    match (&met.found, met.entry.default_backend(met.port)) {
        (Some(found), _) => {
            out.route = Some(taken(found));
            forward(table, found, None, out);
        }
        (None, Some(backend)) => whole(backend, out),
        (None, None) => out.answer = closed(met.entry.why_missing(met.port)),
    }
    unread(rule, BYTES, out);
}

/// A flow of a question and its answer is over sooner.
fn of_answered(rule: Option<&Rule>) -> Step {
    let said = rule.and_then(|r| r.timeouts.idle_ms).filter(|ms| *ms > 0);
    let ms = said.map_or(ANSWERED_IDLE, Duration::from_millis).min(ANSWERED_IDLE).as_millis();
    default_step("idle timeout once answered", format!("{ms} ms"))
}

/// Nobody on the way answers for what nobody reads, and what only requests have counts for none.
fn unread(rule: Option<&Rule>, passed: &str, out: &mut Explanation) {
    let limits = ProxyLimits::default();
    let idle =
        if passed == DATAGRAMS { limits.udp_idle_timeout } else { limits.tunnel_idle_timeout };
    out.steps.retain(|step| !OF_REQUESTS.contains(&&*step.what));
    match &*out.answer.kind {
        "forwarded" => {
            out.steps.extend(of_silence(rule, idle));
            if passed == DATAGRAMS {
                out.steps.push(of_answered(rule));
            }
            out.answer = forwarded(passed.into());
        }
        _ => out.answer = closed(std::mem::take(&mut out.answer.text)),
    }
}
