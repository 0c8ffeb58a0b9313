// SPDX-License-Identifier: Apache-2.0
//! Why a rule took a request, and why each other did not. The winner is found by [`Routes::find`]
//! itself; what is added here is only the reasons, from the same parts.

use std::cmp::Reverse;
use std::sync::Arc;

use super::host::host_fit;
use super::index::Routes;
use super::route::{
    Found, Request, Specificity, holds, parent_fit, rule_match, specificity, written_authority,
};
use crate::{
    AddressRange, ConnectionMatch, Dialect, Match, Matching, NamedMatch, Parent, PathMatch, Route,
    Rule, StringMatch,
};

/// The rule that takes a request and the reasons of all that do not.
#[derive(Debug)]
pub struct Explained<'a> {
    pub found: Option<Found<'a>>,
    pub lost: Vec<Lost<'a>>,
}

/// A rule, or a whole route, that does not take a request.
#[derive(Debug)]
pub struct Lost<'a> {
    pub route: &'a Route,
    pub rule: Option<&'a Rule>,
    pub why: Why,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is not attached to the listener's section that serves the host.
    Section,
    /// None of its host names fits.
    Host(Vec<Arc<str>>),
    /// It is for another port.
    Port(u16),
    /// A stronger kind of route speaks for the same host.
    Dialect(Dialect),
    /// Routes for a more specific name speak for the same host.
    Name,
    /// No match holds: what each of them misses.
    Match(Vec<Miss>),
    /// A rule before it took the request.
    Earlier,
    /// It matches too, and loses by this.
    Weaker(&'static str),
}

/// The first part of a match that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Miss {
    /// `path`, `header x-user`, …
    pub part: String,
    pub wanted: String,
    pub got: String,
}

/// Explains a choice among the routes of one parent.
pub fn explain_rules<'a>(
    routes: &'a Routes,
    section: Option<&str>,
    req: &Request<'_>,
) -> Explained<'a> {
    let found = routes.find(section, req);
    let fits: Vec<_> = routes.iter().map(|r| parent_fit(r, section, req)).collect();
    let open = routes.iter().zip(&fits).filter(|(_, fit)| fit.is_some());
    let strongest = open.map(|(r, _)| r.rank.dialect).min();
    let speaks = routes.iter().zip(&fits).filter(|(r, _)| Some(r.rank.dialect) == strongest);
    let best = speaks.filter_map(|(_, fit)| *fit).max();
    let mut lost = Vec::new();
    for (route, fit) in routes.iter().zip(&fits) {
        let whole = match (fit, strongest) {
            (None, _) => Some(parent_miss(route, section, req)),
            (_, Some(strongest)) if route.rank.dialect != strongest => {
                Some(Why::Dialect(strongest))
            }
            // Where order decides, the most specific name's routes decide alone.
            _ if route.matching == Matching::FirstMatch && *fit < best => Some(Why::Name),
            _ => None,
        };
        if let Some(why) = whole {
            lost.push(Lost { route, rule: None, why });
            continue;
        }
        for (i, rule) in route.rules.iter().enumerate() {
            let is_winner =
                found.as_ref().is_some_and(|f| std::ptr::eq(f.rule, rule) && f.rule_index == i);
            if !is_winner {
                let why = why_not(route, rule, found.as_ref(), section, req);
                lost.push(Lost { route, rule: Some(rule), why });
            }
        }
    }
    Explained { found, lost }
}

const LESS_SPECIFIC: &str = "its host name is less specific";

fn why_not(
    route: &Route,
    rule: &Rule,
    winner: Option<&Found<'_>>,
    section: Option<&str>,
    req: &Request<'_>,
) -> Why {
    let Some(matched) = rule_match(rule, req) else {
        return Why::Match(rule.matches.iter().filter_map(|m| miss(m, req)).collect());
    };
    let Some(winner) = winner else { return Why::Earlier };
    if winner.route.matching == Matching::FirstMatch {
        return Why::Earlier;
    }
    let key = |route: &Route, matched: Option<&Match>| {
        let fit = Reverse(parent_fit(route, section, req));
        (fit, matched.map_or_else(Specificity::default, specificity))
    };
    let (own_fit, own) = key(route, matched);
    let (best_fit, best) = key(winner.route, winner.matched);
    Why::Weaker(match () {
        () if own_fit != best_fit => LESS_SPECIFIC,
        () => match own.weaker_by(&best) {
            Some(part) => part,
            None if route.rank.created_ms != winner.route.rank.created_ms => "its route is younger",
            None if route.rank.name != winner.route.rank.name => {
                "its route is as old and its name comes later"
            }
            None => "it stands later in its route",
        },
    })
}

fn parent_miss(route: &Route, section: Option<&str>, req: &Request<'_>) -> Why {
    match &route.parent {
        Parent::Listener { sections, hostnames, .. } => {
            match section.is_none_or(|s| sections.iter().any(|x| &**x == s)) {
                false => Why::Section,
                true => Why::Host(hostnames.clone()),
            }
        }
        Parent::Host { port, .. } => Why::Port(port.unwrap_or(req.port)),
    }
}

/// What a match misses first, in the order in which its parts are judged.
pub fn miss(m: &Match, req: &Request<'_>) -> Option<Miss> {
    if holds(m, req) {
        return None;
    }
    let alone = |part: Match| !holds(&part, req);
    let say = |part: &str, wanted: String, got: &str| {
        Some(Miss { part: part.to_owned(), wanted, got: got.to_owned() })
    };
    if alone(Match { path: m.path.clone(), ..Match::default() }) {
        return say("path", m.path.as_ref().map(shown_path).unwrap_or_default(), req.path);
    }
    if alone(Match { method: m.method.clone(), ..Match::default() }) {
        return say("method", shown(m.method.as_ref()), req.method);
    }
    if alone(Match { authority: m.authority.clone(), ..Match::default() }) {
        return say("authority", shown(m.authority.as_ref()), &written_authority(req));
    }
    if alone(Match { scheme: m.scheme.clone(), ..Match::default() }) {
        return say("scheme", shown(m.scheme.as_ref()), req.scheme);
    }
    if alone(Match { port: m.port, ..Match::default() }) {
        let wanted = m.port.map(|p| p.to_string()).unwrap_or_default();
        return say("port", wanted, &req.port.to_string());
    }
    if alone(Match { connection: m.connection.clone(), ..Match::default() }) {
        let got = match req.headers.connection() {
            Some(ends) => format!("a connection of {}", ends.client),
            None => "a request".to_owned(),
        };
        return say("connection", shown_connection(m.connection.as_deref()), &got);
    }
    for h in &m.headers {
        if alone(Match { headers: vec![h.clone()], ..Match::default() }) {
            return say(&format!("header {}", h.name), shown(Some(&h.value)), &header(h, req));
        }
    }
    for h in &m.without_headers {
        if alone(Match { without_headers: vec![h.clone()], ..Match::default() }) {
            let wanted = format!("not {}", shown(Some(&h.value)));
            return say(&format!("header {}", h.name), wanted, &header(h, req));
        }
    }
    let query =
        m.query.iter().find(|q| alone(Match { query: vec![(*q).clone()], ..Match::default() }))?;
    say(&format!("query parameter {}", query.name), shown(Some(&query.value)), req.query)
}

/// A match in few words: `path prefix /users, header x-user = "a"`.
pub fn shown_match(m: &Match) -> String {
    let named = |what: &str, list: &[NamedMatch]| -> Vec<String> {
        list.iter().map(|n| format!("{what} {} {}", n.name, shown(Some(&n.value)))).collect()
    };
    let one = |what: &str, text: &Option<StringMatch>| {
        text.as_ref().map(|t| format!("{what} {}", shown(Some(t))))
    };
    let mut parts: Vec<String> = Vec::new();
    parts.extend(m.path.as_ref().map(|p| format!("path {}", shown_path(p))));
    parts.extend(one("method", &m.method));
    parts.extend(one("authority", &m.authority));
    parts.extend(one("scheme", &m.scheme));
    parts.extend(m.port.map(|p| format!("port {p}")));
    parts.extend(m.connection.as_deref().map(|c| shown_connection(Some(c))));
    parts.extend(named("header", &m.headers));
    parts.extend(named("no header", &m.without_headers));
    parts.extend(named("query parameter", &m.query));
    if parts.is_empty() { "everything".into() } else { parts.join(", ") }
}

fn shown_connection(m: Option<&ConnectionMatch>) -> String {
    let list = |what: &str, ranges: &[AddressRange]| {
        let each: Vec<_> = ranges.iter().map(|r| format!("{}/{}", r.base, r.bits)).collect();
        (!each.is_empty()).then(|| format!(" {what} {}", each.join(" or ")))
    };
    let (from, to) =
        m.map_or((None, None), |m| (list("of", &m.sources), list("to", &m.destinations)));
    format!("bytes{}{}", from.unwrap_or_default(), to.unwrap_or_default())
}

fn shown_path(path: &PathMatch) -> String {
    match path {
        PathMatch::Exact(p) => format!("= {p}"),
        PathMatch::ElementPrefix(p) | PathMatch::StringPrefix(p) => format!("prefix {p}"),
        PathMatch::Regex(r) => format!("regex {}", r.source()),
        PathMatch::ExactNoCase(p) => format!("= {p} (any case)"),
        PathMatch::StringPrefixNoCase(p) => format!("prefix {p} (any case)"),
    }
}

fn shown(text: Option<&StringMatch>) -> String {
    match text {
        Some(StringMatch::Exact(s)) => format!("= {s:?}"),
        Some(StringMatch::Prefix(s)) => format!("prefix {s:?}"),
        Some(StringMatch::Regex(r)) => format!("regex {}", r.source()),
        Some(StringMatch::Present) | None => "present".into(),
    }
}

fn header(m: &NamedMatch, req: &Request<'_>) -> String {
    let mut found = Vec::new();
    req.headers.any(&m.name, &mut |value| {
        found.push(String::from_utf8_lossy(value).into_owned());
        false
    });
    if found.is_empty() { "absent".into() } else { found.join(", ") }
}

// === impl Why ===

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Section => f.write_str("it is not attached to the section that serves this host"),
            Self::Host(names) => write!(f, "it serves {} only", names.join(", ")),
            Self::Port(port) => write!(f, "it is for port {port}"),
            Self::Dialect(stronger) => {
                let who = match stronger {
                    Dialect::ConsumerHttpRoute => "a consumer's HTTPRoute",
                    Dialect::ProducerHttpRoute => "an HTTPRoute",
                    Dialect::VirtualService => "a VirtualService",
                    Dialect::Consul => "a Consul entry",
                };
                write!(f, "{who} decides instead")
            }
            Self::Name => f.write_str("routes for a more specific host name decide alone"),
            Self::Match(misses) => {
                for (i, miss) in misses.iter().enumerate() {
                    let Miss { part, wanted, got } = miss;
                    let or = if i == 0 { "" } else { "; " };
                    write!(f, "{or}{part} is {got:?}, not {wanted}")?;
                }
                Ok(())
            }
            Self::Earlier => f.write_str("a rule before it took the request"),
            Self::Weaker(by) => write!(f, "it matches too, but {by}"),
        }
    }
}

/// Whether a host pattern serves a host, for whoever explains a listener.
pub fn serves(pattern: Option<&str>, host: &str) -> bool {
    host_fit(pattern.unwrap_or("*"), host).is_some()
}

#[cfg(test)]
mod tests;
