// SPDX-License-Identifier: Apache-2.0
//! Which rule takes a request.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::net::IpAddr;

use smallvec::SmallVec;

use super::host::{HostFit, host_fit};
use crate::guards;
use crate::{
    ConnectionMatch, Match, Matching, NamedMatch, Parent, PathMatch, Route, Rule, StringMatch,
};

/// Read access to a request's headers, whatever library holds them.
pub trait Headers {
    /// Calls `f` with each value of the header `name` (lower case) until it says `true`; returns
    /// whether it did.
    fn any(&self, name: &str, f: &mut dyn FnMut(&[u8]) -> bool) -> bool;

    /// What is known where there is no HTTP and so no header: whose bytes these are.
    fn connection(&self) -> Option<Addresses> {
        None
    }
}

/// The two ends of a connection of opaque bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    pub client: IpAddr,
    /// What it dialled; `None` when it named a host and no address.
    pub dialled: Option<IpAddr>,
}

/// The parts of a request that routing reads, already canonical.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    pub method: &'a str,
    pub scheme: &'a str,
    /// Canonical host, no port.
    pub host: &'a str,
    /// Port that the client asked for.
    pub port: u16,
    /// Port that the client wrote behind the host.
    pub written: Option<u16>,
    /// Path without query, beginning with `/`.
    pub path: &'a str,
    /// Without `?`; empty when there is none.
    pub query: &'a str,
    pub headers: &'a dyn Headers,
}

/// The rule that took a request.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    pub route: &'a Route,
    pub rule: &'a Rule,
    pub rule_index: usize,
    /// The match that held; `None` when the rule matches everything.
    pub matched: Option<&'a Match>,
}

/// Finds the rule for a request among the routes of one parent. `section` is the gateway section
/// that took it. Routes of a weaker dialect are not looked at when a stronger one is present.
pub fn find_rule<'a, I>(routes: I, section: Option<&str>, req: &Request<'_>) -> Option<Found<'a>>
where
    I: IntoIterator<Item = &'a Route>,
{
    // Few speak about one host: no memory is taken for them.
    let mut open: SmallVec<[(HostFit, &Route); 8]> =
        routes.into_iter().filter_map(|r| Some((parent_fit(r, section, req)?, r))).collect();
    let strongest = open.iter().map(|(_, r)| r.rank.dialect).min()?;
    open.retain(|(_, r)| r.rank.dialect == strongest);
    open.sort_by(|(a_fit, a), (b_fit, b)| b_fit.cmp(a_fit).then_with(|| a.rank.cmp(&b.rank)));
    let first_match = open.first().is_some_and(|(_, r)| r.matching == Matching::FirstMatch);
    if first_match { find_first(&open, req) } else { find_most_specific(&open, req) }
}

/// Whether all parts of a match hold.
pub fn holds(m: &Match, req: &Request<'_>) -> bool {
    m.path.as_ref().is_none_or(|p| path_holds(p, req.path))
        && m.method.as_ref().is_none_or(|s| string_holds(s, req.method.as_bytes()))
        && m.authority.as_ref().is_none_or(|s| authority_holds(s, req))
        && m.scheme.as_ref().is_none_or(|s| string_holds(s, req.scheme.as_bytes()))
        && m.port.is_none_or(|p| p == req.port)
        && m.headers.iter().all(|h| header_holds(h, req))
        && !m.without_headers.iter().any(|h| header_holds(h, req))
        && m.query.iter().all(|q| query_holds(q, req.query))
        && m.connection.as_ref().is_none_or(|c| connection_holds(c, req))
}

/// The match of a rule that holds: `Some(None)` when the rule has no matches and takes all.
pub fn rule_match<'a>(rule: &'a Rule, req: &Request<'_>) -> Option<Option<&'a Match>> {
    if rule.matches.is_empty() {
        return Some(None);
    }
    rule.matches.iter().filter(|m| holds(m, req)).min_by_key(|m| specificity(m)).map(Some)
}

pub(super) fn parent_fit(
    route: &Route,
    section: Option<&str>,
    req: &Request<'_>,
) -> Option<HostFit> {
    if !attached(route, section, req.port) {
        return None;
    }
    match &route.parent {
        Parent::Listener { hostnames, .. } if !hostnames.is_empty() => {
            hostnames.iter().filter_map(|h| host_fit(h, req.host)).max()
        }
        Parent::Listener { .. } | Parent::Host { .. } => host_fit("*", req.host),
    }
}

/// Whether a route is for a section and a port, whatever the host.
pub(super) fn attached(route: &Route, section: Option<&str>, port: u16) -> bool {
    match &route.parent {
        Parent::Listener { sections, .. } => {
            section.is_none_or(|s| sections.iter().any(|x| &**x == s))
        }
        Parent::Host { port: only, .. } => only.is_none_or(|p| p == port),
    }
}

/// In order, of the routes for the most specific host name alone: as with Envoy's virtual hosts,
/// what these do not take no other name's routes take (Istio, VirtualService `hosts`).
fn find_first<'a>(open: &[(HostFit, &'a Route)], req: &Request<'_>) -> Option<Found<'a>> {
    let (best, _) = open.first()?;
    open.iter().take_while(|(fit, _)| fit == best).find_map(|(_, route)| {
        route.rules.iter().enumerate().find_map(|(rule_index, rule)| {
            let matched = first_match(rule, req)?;
            Some(Found { route, rule, rule_index, matched })
        })
    })
}

/// The first match of a rule that holds: where order decides, it decides which prefix is replaced
/// too. As [`rule_match`] else.
fn first_match<'a>(rule: &'a Rule, req: &Request<'_>) -> Option<Option<&'a Match>> {
    if rule.matches.is_empty() {
        return Some(None);
    }
    rule.matches.iter().find(|m| holds(m, req)).map(Some)
}

/// Gateway API's order: host, then path, method, headers, query of the match, then age and name
/// of the route, then the rule's place. `open` is sorted by host, age and name, so the first of
/// equals wins.
fn find_most_specific<'a>(open: &[(HostFit, &'a Route)], req: &Request<'_>) -> Option<Found<'a>> {
    let mut best: Option<((Reverse<HostFit>, Specificity), Found<'a>)> = None;
    for (fit, route) in open {
        for (rule_index, rule) in route.rules.iter().enumerate() {
            let Some(matched) = rule_match(rule, req) else { continue };
            let key = (Reverse(*fit), matched.map_or_else(Specificity::default, specificity));
            if best.as_ref().is_none_or(|(b, _)| key < *b) {
                best = Some((key, Found { route, rule, rule_index, matched }));
            }
        }
    }
    best.map(|(_, found)| found)
}

/// Smaller is more specific.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Specificity {
    path_kind: u8,
    path_len: Reverse<usize>,
    no_method: bool,
    headers: Reverse<usize>,
    query: Reverse<usize>,
}

impl Specificity {
    /// By what it is weaker than another.
    pub fn weaker_by(&self, best: &Self) -> Option<&'static str> {
        let parts = [
            (self.path_kind > best.path_kind, "its kind of path match is weaker"),
            (self.path_len > best.path_len, "its path is less specific"),
            (self.no_method && !best.no_method, "it does not name the method"),
            (self.headers > best.headers, "it matches fewer headers"),
            (self.query > best.query, "it matches fewer query parameters"),
        ];
        parts.iter().find(|(weaker, _)| *weaker).map(|(_, part)| *part)
    }
}

impl Default for Specificity {
    fn default() -> Self {
        specificity(&Match::default())
    }
}

/// How an expression begins that takes whatever stands first in a path.
const ANY_ELEMENT: &str = "/[^/]+/";

pub(super) fn specificity(m: &Match) -> Specificity {
    let rest = Specificity {
        path_kind: 0,
        path_len: Reverse(0),
        no_method: m.method.is_none(),
        headers: Reverse(m.headers.len()),
        query: Reverse(m.query.len()),
    };
    let (path_kind, len) = match &m.path {
        Some(PathMatch::Exact(p) | PathMatch::ExactNoCase(p)) => (0, p.len()),
        // Such as a gRPC method of any service: "characters in a matching service" come first
        // (GRPCRoute), so it is weaker than a prefix that has any, and stronger than everything.
        Some(PathMatch::Regex(r)) if r.source().starts_with(ANY_ELEMENT) => {
            return Specificity { path_kind: 2, path_len: Reverse(1), no_method: false, ..rest };
        }
        Some(PathMatch::Regex(r)) => (1, r.source().len()),
        Some(
            PathMatch::ElementPrefix(p)
            | PathMatch::StringPrefix(p)
            | PathMatch::StringPrefixNoCase(p),
        ) => (2, p.len()),
        // "If no matches are specified, the default is a prefix path match on '/'" (Gateway API).
        None => (2, 1),
    };
    Specificity { path_kind, path_len: Reverse(len), ..rest }
}

pub(super) fn path_holds(m: &PathMatch, path: &str) -> bool {
    match m {
        PathMatch::Exact(p) if !guards::on("literals") => guards::like(p, path.as_bytes()),
        PathMatch::Exact(p) if !guards::on("path-case") => path.eq_ignore_ascii_case(p),
        PathMatch::Exact(p) => path == &**p,
        PathMatch::ElementPrefix(p) => {
            let p = p.strip_suffix('/').unwrap_or(p);
            path.strip_prefix(p).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
        PathMatch::StringPrefix(p) => path.starts_with(&**p),
        PathMatch::Regex(r) => r.is_match(path.as_bytes()),
        PathMatch::ExactNoCase(p) => path.eq_ignore_ascii_case(p),
        PathMatch::StringPrefixNoCase(p) => {
            path.get(..p.len()).is_some_and(|head| head.eq_ignore_ascii_case(p))
        }
    }
}

fn string_holds(m: &StringMatch, text: &[u8]) -> bool {
    m.holds(text)
}

/// The authority as the client wrote it decides, with its port only if there was one (Envoy).
fn authority_holds(m: &StringMatch, req: &Request<'_>) -> bool {
    string_holds(m, written_authority(req).as_bytes())
}

/// The canonical host, with the port that the client wrote.
pub(super) fn written_authority<'a>(req: &Request<'a>) -> Cow<'a, str> {
    match (req.written, req.host.contains(':')) {
        (None, false) => req.host.into(),
        (None, true) => format!("[{}]", req.host).into(),
        (Some(port), false) => format!("{}:{port}", req.host).into(),
        (Some(port), true) => format!("[{}]:{port}", req.host).into(),
    }
}

fn connection_holds(m: &ConnectionMatch, req: &Request<'_>) -> bool {
    let Some(ends) = req.headers.connection() else { return false };
    let dialled = || ends.dialled.is_some_and(|to| m.destinations.iter().any(|r| r.takes(to)));
    (m.sources.is_empty() || m.sources.iter().any(|r| r.takes(ends.client)))
        && (m.destinations.is_empty() || dialled())
}

fn header_holds(m: &NamedMatch, req: &Request<'_>) -> bool {
    // HTTP/2 has no line `host`.
    if matches!(&*m.name, "host" | ":authority") {
        return authority_holds(&m.value, req);
    }
    req.headers.any(&m.name, &mut |value| string_holds(&m.value, value))
}

/// The first parameter of the name decides (Gateway API: behaviour on repeats is ours to fix).
fn query_holds(m: &NamedMatch, query: &str) -> bool {
    let value = query.split('&').find_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (percent_decoded(name) == m.name.as_bytes()).then(|| percent_decoded(value))
    });
    value.is_some_and(|v| string_holds(&m.value, &v))
}

/// `application/x-www-form-urlencoded` decoding; a bad escape stays as it is.
fn percent_decoded(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'+' => out.push(b' '),
            b'%' => {
                let mut ahead = bytes.clone();
                let hex = |b: Option<u8>| char::from(b?).to_digit(16);
                match (hex(ahead.next()), hex(ahead.next())) {
                    (Some(hi), Some(lo)) => {
                        out.push(u8::try_from(hi * 16 + lo).unwrap_or(b'%'));
                        bytes = ahead;
                    }
                    _ => out.push(b),
                }
            }
            _ => out.push(b),
        }
    }
    out
}

impl std::fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}://{}:{}{}", self.method, self.scheme, self.host, self.port, self.path)
    }
}
