// SPDX-License-Identifier: Apache-2.0
//! Why a request would be answered as it would be: the words of `weft explain`. A table and a
//! request go through the very decisions that serve requests; nothing is sent, nothing is picked.
//! Called by the server and by the command line; never by a worker.

mod answer;
mod arrived;
mod asked;
mod bodies;
mod candidates;
mod doors;
mod policy;
mod shares;
mod steps;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use http::{Method, Request};
use serde::Serialize;
use weft_base::clock::Mono;
use weft_model::decide::{
    AccessVerdict, Authority, Client, CorsVerdict, Found, Lost, Routes, access_verdict,
    cors_verdict, explain_rules, grpc_of_http, http_of_grpc, pick_section, redirect_location,
    shown_match, total_weight,
};
use weft_model::{AbortAnswer, Action, Filter, Origin, Rule, Share, Target, WeightedBackend};

use self::answer::{FORWARDED, closed, failing, forwarded, of_refusal, refused};
use self::arrived::Arrived;
use self::doors::Met;
use crate::http::normalise::HeaderView;
use crate::http::reply::{Cause, Refusal};
use crate::http::rewritten::unfit;
use crate::http::route::{self, Choice};
use crate::http::tunnel;
use crate::table::{BackendEntry, Door, Table};
use crate::worker::Conn;

pub use answer::Answer;
pub use asked::Asked;
pub use candidates::{Candidate, Checked, Ejected, Live};
pub use steps::DEFAULT;

/// Who asks, as far as it decides.
#[derive(Clone, Debug)]
pub struct Place {
    pub door: Door,
    /// Where the client connects to.
    pub local: SocketAddr,
    pub scheme: &'static str,
    /// What its TLS asks for.
    pub server_name: Option<Arc<str>>,
}

/// The whole answer, in the order in which a proxy decides.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Explanation {
    pub request: String,
    pub door: String,
    /// The section of a gateway's listener, or the host and port that are meant.
    pub target: String,
    pub route: Option<Taken>,
    pub lost: Vec<NotTaken>,
    pub steps: Vec<Step>,
    pub shares: Vec<ShareRow>,
    pub candidates: Vec<Candidate>,
    pub answer: Answer,
    /// When the proxy that was asked answers; nothing of it is told.
    #[serde(skip)]
    now: Option<Mono>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Taken {
    /// `HTTPRoute shop/users`
    pub object: String,
    pub field: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub rule: Arc<str>,
    pub matched: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct NotTaken {
    pub object: String,
    pub field: String,
    pub why: String,
}

/// Something that is done to the request or its answer, and who says so.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Step {
    pub what: String,
    /// The backend that it is about, when it is about one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub of: String,
    pub value: String,
    pub object: String,
    pub field: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ShareRow {
    pub backend: String,
    pub weight: u32,
    pub percent: f64,
    /// What its share is answered with, when it cannot be followed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fails: String,
}

/// Explains one request by a table that nobody serves from. Its URI is in origin or absolute form;
/// its `Host` header counts.
pub fn explain(table: &Table, place: &Place, request: &Request<()>) -> Explanation {
    explained(table, place, request, None)
}

/// The same in the proxy that serves from this table: what it knows of its instances counts.
pub fn explain_live(table: &Table, place: &Place, request: &Request<()>, now: Mono) -> Explanation {
    explained(table, place, request, Some(now))
}

fn explained(
    table: &Table,
    place: &Place,
    request: &Request<()>,
    now: Option<Mono>,
) -> Explanation {
    let mut conn = Conn::new(place.door.clone(), place.local, place.local);
    conn.scheme = place.scheme;
    // Where bytes are passed on as they are nobody reads which name they ask for.
    let unread = matches!(&place.door, Door::Gateway(name)
        if table.gateway(name).is_some_and(|entry| entry.is_opaque()));
    conn.server_name = place.server_name.clone().filter(|_| !unread);
    let mut out = Explanation {
        request: format!("{} {}", request.method(), request.uri()),
        door: said(&place.door, place.local),
        now,
        ..Explanation::default()
    };
    let outcome = match &place.door {
        Door::Gateway(name) => at_gateway(table, name, place, (&conn, request), &mut out),
        door => at_sidecar(table, door, (&conn, request), &mut out),
    };
    if let Err(answer) = outcome {
        out.answer = answer;
    }
    out.answer.is_asked_by(request.headers());
    out
}

fn at_gateway(
    table: &Table,
    name: &str,
    place: &Place,
    (conn, request): (&Conn, &Request<()>),
    out: &mut Explanation,
) -> Result<(), Answer> {
    let entry =
        table.gateway(name).ok_or_else(|| closed(format!("the listener {name} is gone")))?;
    match doors::met(entry, place).map_err(closed)? {
        Met::Http => {
            let arrived = arrived::read(request)?;
            asked_http(table, conn, arrived.cleaned(conn, Some(entry.listener.edge))?, out);
        }
        Met::Bytes | Met::Datagrams => doors::gateway_bytes(table, entry, conn, out),
    }
    Ok(())
}

fn at_sidecar(
    table: &Table,
    door: &Door,
    (conn, request): (&Conn, &Request<()>),
    out: &mut Explanation,
) -> Result<(), Answer> {
    let connects = request.method() == Method::CONNECT;
    if connects && *door != Door::Forward {
        return Err(of_refusal(&Refusal::new(Cause::MethodRefused, "")));
    }
    // A pod's program that speaks TLS itself asks its proxy for a tunnel, and nobody reads on.
    if *door == Door::Forward && (connects || conn.scheme == "https") {
        let named = request.uri().authority().and_then(|named| Authority::parse(named.as_str()));
        let Some(Authority { host, port }) = named else {
            return Err(of_refusal(&Refusal::new(Cause::BadRequest, "CONNECT names no host")));
        };
        if connects && port.is_none() {
            return Err(of_refusal(&Refusal::new(Cause::BadRequest, "CONNECT names no port")));
        }
        doors::tunnel(table, &host, port.unwrap_or(443), conn, out);
        return Ok(());
    }
    asked_http(table, conn, arrived::read(request)?.cleaned(conn, None)?, out);
    Ok(())
}

fn asked_http(table: &Table, conn: &Conn, arrived: Arrived, out: &mut Explanation) {
    let head = &arrived.head;
    let asked = route::asked(conn, &arrived.authority);
    let headers = HeaderView(&head.headers);
    let view = route::view(head, &headers, conn.scheme, &asked);
    let none = Routes::default();
    let (routes, section) = routes(table, &conn.door, (&asked.host, asked.port), out);
    let explained = explain_rules(routes.unwrap_or(&none), section, &view);
    out.lost = explained.lost.iter().map(not_taken).collect();
    out.steps.clone_from(&arrived.changes);
    let chosen = route::choose(table, conn, &view).map_err(|why| tunnel::unrouted(head, why));
    let mut upgrades = None;
    if let Ok(Choice::Rule(found)) = &chosen {
        upgrades = found.rule.filters.iter().rev().find_map(|filter| match filter {
            Filter::Upgrades(known) => Some(known.as_slice()),
            _ => None,
        });
    }
    let long = chosen.as_ref().ok().and_then(|to| bodies::too_large(table, to, &head.headers));
    match chosen {
        Err(refusal) => out.answer = of_refusal(&refusal),
        Ok(Choice::Rule(found)) => match tunnel::permit(head, &found) {
            Ok(()) => rule(table, &found, &view, out),
            Err(refusal) => out.answer = of_refusal(&refusal),
        },
        Ok(Choice::Backend(entry)) => whole(entry, out),
        Ok(Choice::Own(entry)) => whole(&entry, out),
        Ok(Choice::Outside(Authority { host, port })) => {
            let port = port.unwrap_or(80);
            out.answer = forwarded(format!("it is not in the mesh; it goes to {host}:{port}"));
        }
    }
    if out.answer.kind == FORWARDED
        && let Some(answer) = arrived.misled(upgrades).or(long)
    {
        out.answer = answer;
    }
}

/// The routes that a door searches, and the section that serves the host.
fn routes<'t>(
    table: &'t Table,
    door: &Door,
    (host, port): (&str, u16),
    out: &mut Explanation,
) -> (Option<&'t Routes>, Option<&'t str>) {
    if let Door::Gateway(name) = door {
        let Some(entry) = table.gateway(name) else { return (None, None) };
        let Some(section) = pick_section(&entry.listener, host) else {
            out.target = format!("no section of {name} serves {host}");
            return (None, None);
        };
        out.target = doors::named(section);
        return (Some(&entry.routes), Some(&section.name));
    }
    let Some(entry) = table.host(host) else {
        out.target = format!("{host} is no host of the mesh");
        return (None, None);
    };
    out.target = format!("{} port {port}", entry.host.name);
    (Some(&entry.routes), None)
}

fn taken(found: &Found<'_>) -> Taken {
    Taken {
        object: object(&found.rule.origin),
        field: found.rule.origin.field.to_string(),
        rule: found.rule.name.clone(),
        matched: found.matched.map_or_else(|| "everything".into(), shown_match),
    }
}

fn not_taken(lost: &Lost<'_>) -> NotTaken {
    let origin = lost.rule.map_or(&lost.route.origin, |rule| &rule.origin);
    let field = origin.field.to_string();
    NotTaken { object: object(origin), field, why: lost.why.to_string() }
}

fn rule(
    table: &Table,
    found: &Found<'_>,
    view: &weft_model::decide::Request<'_>,
    out: &mut Explanation,
) {
    out.route = Some(taken(found));
    out.steps.extend(steps::of_rule(found, view));
    let preflight = found.rule.filters.iter().position(|filter| match filter {
        Filter::Cors(cors) => matches!(cors_verdict(cors, view), CorsVerdict::Preflight(_)),
        _ => false,
    });
    let access = found.rule.filters.iter().position(|f| matches!(f, Filter::Access(_)));
    let first = preflight.is_some_and(|at| access.is_some_and(|access| at < access));
    if let Some(why) = not_allowed(found, view).filter(|_| !first) {
        out.answer = refused(Cause::NotAllowed, why);
        return;
    }
    if preflight.is_some() {
        let text = "the rule's CORS policy answers the browser's question".to_owned();
        out.answer =
            Answer { kind: "preflight".into(), status: Some(204), text, ..Answer::default() };
        return;
    }
    match &found.rule.action {
        Action::Forward(_) => forward(table, found, Some(view.path), out),
        Action::Redirect(redirect) => {
            let location = redirect_location(redirect, view, found.matched);
            let (kind, status) = ("redirect".into(), Some(redirect.status));
            out.answer = Answer { kind, status, text: location, ..Answer::default() };
        }
        Action::Direct { status, body } => {
            let (kind, status) = ("direct".into(), Some(*status));
            out.answer = Answer { kind, status, text: body.to_string(), ..Answer::default() };
        }
        Action::Fail { status, reason } => out.answer = failing(*status, reason),
    }
    // Where it would have gone is told all the same.
    if let Some((status, code, what)) = aborted(&found.rule.filters) {
        let text = format!("the rule's fault answers every request{what}");
        out.answer = refused(Cause::Fault, text).with(status, code);
    }
}

/// What a fault answers that aborts every request; of several the last one holds.
fn aborted(filters: &[Filter]) -> Option<(u16, u16, String)> {
    let mut faults = filters.iter().filter_map(|filter| match filter {
        Filter::Fault(fault) => Some(fault),
        _ => None,
    });
    let abort = faults.next_back()?.abort.as_ref().filter(|abort| abort.share == Share::ALL)?;
    Some(match abort.answer {
        AbortAnswer::Http(status) => (status, grpc_of_http(status), String::new()),
        AbortAnswer::Grpc(code) => (http_of_grpc(code), code, format!(" with grpc-status {code}")),
    })
}

/// Why an access list refuses the request, of a client that nobody knows more of.
fn not_allowed(found: &Found<'_>, view: &weft_model::decide::Request<'_>) -> Option<String> {
    let client = Client { ip: Ipv4Addr::LOCALHOST.into(), identity: None, names: &[] };
    let verdict = found.rule.filters.iter().find_map(|filter| match filter {
        Filter::Access(access) => match access_verdict(access, view, &client) {
            AccessVerdict::Refuse(by) => Some(by),
            AccessVerdict::Pass(_) => None,
        },
        _ => None,
    });
    let by = match verdict? {
        Some(policy) => format!("the policy {:?} denies it", &*policy.name),
        None => "no policy allows it".to_owned(),
    };
    Some(format!("{by}, to a client of this machine without a certificate"))
}

/// Where a rule sends a request, or with no path the bytes of a connection.
fn forward(table: &Table, found: &Found<'_>, path: Option<&str>, out: &mut Explanation) {
    let all = found.rule.shares();
    let weights: Vec<u32> = all.iter().map(|s| s.weight).collect();
    let total = total_weight(&weights);
    let (mut takes, mut own) = (Vec::new(), Vec::new());
    for (place, share) in all.iter().enumerate() {
        let mut row = ShareRow {
            weight: share.weight,
            percent: percent(share.weight.into(), total),
            ..ShareRow::default()
        };
        takes.push(share_of(table, found, (share, path), &mut row, out));
        own.extend(shares::of_share(found.rule, (place, share), &row.backend));
        out.shares.push(row);
    }
    // Behind the backends' own, which are told once.
    out.steps.extend(own);
    let failing = out.shares.iter().find(|row| !row.fails.is_empty() && row.weight > 0);
    out.answer = match (failing, takes.contains(&true)) {
        _ if total == 0 => refused(Cause::Misconfigured, "all its backends have weight 0".into()),
        (_, true) => forwarded("an instance answers".into()),
        (Some(row), false) => {
            let why = row.fails.split_once(": ").map_or(&*row.fails, |(_, why)| why);
            refused(row_cause(row), why.to_owned()).with_status(row_status(row))
        }
        (None, false) => refused(Cause::NoInstance, "no instance can take the request".into()),
    };
    if let Action::Fail { status, reason } = &found.rule.action {
        out.answer = answer::failing(*status, reason);
    }
}

/// Explains one of a rule's backends; whether it takes requests.
fn share_of(
    table: &Table,
    found: &Found<'_>,
    (share, path): (&WeightedBackend, Option<&str>),
    row: &mut ShareRow,
    out: &mut Explanation,
) -> bool {
    let name = match &share.target {
        Target::Backend(name) => name,
        Target::Fail { status, reason } => {
            row.fails = format!("{status} NC: {reason}");
            return false;
        }
    };
    let Some(entry) = table.backend(name) else {
        row.backend = name.to_string();
        let why = table.fail(name).map_or("it is not known", |f| &*f.reason);
        row.fails = format!("503 NC: {why}");
        return false;
    };
    row.backend = entry.label();
    let filters = found.rule.filters.iter().chain(&share.filters);
    if let Some(unfit) = path.and_then(|path| unfit(path, filters, found.matched)) {
        row.fails = format!("{} DPE: {}", unfit.status, unfit.why);
        return false;
    }
    share.weight > 0 && backend(entry, Some(found.rule), row, out)
}

/// What a backend's policy says, and its instances; whether one takes requests now.
fn backend(
    entry: &BackendEntry,
    rule: Option<&Rule>,
    row: &mut ShareRow,
    out: &mut Explanation,
) -> bool {
    let told = |out: &Explanation| out.steps.iter().any(|s| s.of == row.backend);
    // One that stands in two shares is told once.
    if !told(out) {
        out.steps.extend(policy::of_backend(entry, rule, out.now));
        out.candidates.extend(candidates::of(entry, out.now));
    }
    let mut own = out.candidates.iter().filter(|c| c.backend == row.backend);
    let open = own.any(|c| c.percent > 0.0);
    if let Some(why) = policy::full(entry).filter(|_| open && out.now.is_some()) {
        row.fails = format!("503 UO: {why}");
        return false;
    }
    open
}

fn row_status(row: &ShareRow) -> u16 {
    row.fails.split(' ').next().and_then(|s| s.parse().ok()).unwrap_or(503)
}

/// Why a share cannot be followed, as far as it decides what is answered.
fn row_cause(row: &ShareRow) -> Cause {
    match row.fails.split([' ', ':']).nth(1) {
        Some("DPE") => Cause::BadRequest,
        Some("UO") => Cause::Overload,
        _ => Cause::NoBackend,
    }
}

/// A service that no route speaks about, or one instance.
fn whole(entry: &Arc<BackendEntry>, out: &mut Explanation) {
    let mut row =
        ShareRow { backend: entry.label(), weight: 1, percent: 100.0, ..ShareRow::default() };
    out.answer = match (backend(entry, None, &mut row, out), row.fails.split_once(": ")) {
        (true, _) => forwarded("an instance answers; no route speaks about it".into()),
        (false, Some((_, why))) => refused(Cause::Overload, why.to_owned()),
        (false, None) => refused(Cause::NoInstance, "no instance can take the request".into()),
    };
    out.shares.push(row);
}

fn percent(part: u64, whole: u64) -> f64 {
    let points = (part * 1_000_000).checked_div(whole).unwrap_or(0).min(1_000_000);
    f64::from(u32::try_from(points).unwrap_or(1_000_000)) / 10_000.0
}

fn object(origin: &Origin) -> String {
    format!("{} {}/{}", origin.kind, origin.namespace, origin.name)
}

fn said(door: &Door, local: SocketAddr) -> String {
    match door {
        Door::Gateway(name) | Door::Datagrams(name) => {
            format!("gateway listener {name} at {local}")
        }
        Door::Forward => "the sidecar's forward proxy".into(),
        Door::Outbound => "captured by the sidecar".into(),
        Door::Upstream { host, port } => format!("the sidecar's port for {host}:{port}"),
        Door::Mesh | Door::Inbound => "the called pod's sidecar".into(),
    }
}
