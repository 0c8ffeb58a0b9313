// SPDX-License-Identifier: Apache-2.0
//! Routes: which listeners and hosts they are for, and their rules.

use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use serde_json::Value;
use weft_envoy::read::Message;
use weft_model::decide::host_fit;
use weft_model::{
    Action, Dialect, Filter, GatewayListener, HeaderEdit, Listener, ListenerKind, Match, Matching,
    Mirror, NamedMatch, Parent, PathMatch, Protocol, Rank, Redirect, Resource, Retry, Root, Route,
    Rule, Scope, Section, Share, StringMatch, Timeouts, WeightedBackend,
};

use super::{Context, backend, origin, sources};

/// What only requests have, or an answer to one.
const OF_REQUESTS: &[&str] = &[
    "path",
    "method",
    "headers",
    "query",
    "redirect",
    "answer",
    "mirror",
    "timeout",
    "retry",
    "rewrite",
    "request_headers",
    "response_headers",
    "filters",
    "session",
];

/// Reads one route: the same rules for each of its listeners.
pub fn read(message: &Message<'_>, index: usize, context: &Context<'_>) {
    let name = message.text("name").map_or_else(|| format!("route-{index}"), str::to_owned);
    if name.contains('/') {
        message.error("name", "a name has no /");
    }
    let mut hostnames = hosts(message, context);
    // `*` alone is what no list says; beside names it takes what they leave.
    if hostnames.iter().all(|h| &**h == "*") {
        hostnames.clear();
    }
    let matching = match message.choice("matching").unwrap_or("most_specific") {
        "most_specific" => Matching::MostSpecific,
        "first_match" => Matching::FirstMatch,
        other => {
            message.error("matching", format!("{other:?}: expected most_specific or first_match"));
            Matching::MostSpecific
        }
    };
    let mut rules = Vec::new();
    let mut place = 0;
    let named = message.texts("listeners");
    let opaque =
        named.into_iter().find(|name| context.listeners.iter().any(|(n, http)| n == name && !http));
    message.each("rules", |each| {
        if let Some(listener) = opaque {
            for field in OF_REQUESTS.iter().filter(|field| each.is_set(field)) {
                let why = format!("listener {listener:?} passes bytes on and reads no requests");
                each.error(field, why);
            }
        }
        rules.extend(rule(&each, &name, place, context));
        place += 1;
    });
    if place == 0 {
        message.error("rules", "a route needs one");
    }
    let listeners = listeners(message, context);
    served(message, &hostnames, &listeners, context);
    for listener in listeners {
        if !context.is_first(message, &format!("route of listener {listener:?}"), &name) {
            break;
        }
        let root = Root::listener(listener.as_str());
        let route = Route {
            parent: Parent::Listener {
                root: root.clone(),
                sections: sections(context, &root),
                hostnames: hostnames.clone(),
            },
            scope: Scope::Any,
            matching,
            rank: Rank {
                dialect: Dialect::ProducerHttpRoute,
                created_ms: index as u64,
                name: name.as_str().into(),
            },
            rules: rules.clone(),
            origin: origin("route", &name, ""),
        };
        context.put(root.child(format!("route/file/{name}")), Resource::Route(route));
    }
}

fn hosts(message: &Message<'_>, context: &Context<'_>) -> Vec<Arc<str>> {
    let path = message.at().path().field("hosts");
    let each = message.texts("hosts").into_iter().enumerate().filter_map(|(i, text)| {
        let read = super::host(text);
        read.map_err(|why| context.wrong(path.index(i), why)).ok()
    });
    each.collect()
}

/// Hosts are to be some section's of the listeners.
fn served(message: &Message<'_>, hosts: &[Arc<str>], listeners: &[String], context: &Context<'_>) {
    let resources = context.resources.borrow();
    let mut patterns: Vec<&str> = Vec::new();
    for name in listeners {
        let own = resources.get(&Root::listener(name.as_str()).own());
        let Some(Resource::Listener(Listener { kind: ListenerKind::Gateway(gateway), .. })) = own
        else {
            return;
        };
        if !hosts.is_empty() && !reads_names(gateway) {
            let why = format!(
                "listener {name:?} passes bytes on and reads no name; protocol tls reads which one \
                 a client asks for"
            );
            message.error("hosts", why);
            return;
        }
        for section in &gateway.sections {
            let Some(pattern) = section.hostname.as_deref() else { return };
            patterns.push(pattern);
        }
    }
    for host in hosts.iter().filter(|_| !patterns.is_empty()) {
        if !patterns.iter().any(|pattern| overlap(pattern, host)) {
            let why = format!(
                "{host}: no listener of this route serves it; they serve {}",
                patterns.join(", ")
            );
            message.error("hosts", why);
        }
    }
}

/// Whether a client's name is known before its bytes are passed on.
fn reads_names(gateway: &GatewayListener) -> bool {
    let opaque = |s: &Section| matches!(s.protocol, Protocol::Tcp | Protocol::Udp);
    !gateway.sections.iter().any(|s| s.tls.is_none() && opaque(s))
}

/// Whether some host fits two patterns.
fn overlap(one: &str, other: &str) -> bool {
    let some = |pattern: &str| match pattern.strip_prefix('*') {
        Some(rest) => format!("x{rest}"),
        None => pattern.to_owned(),
    };
    host_fit(one, &some(other)).is_some() || host_fit(other, &some(one)).is_some()
}

fn listeners(message: &Message<'_>, context: &Context<'_>) -> Vec<String> {
    if !message.is_set("listeners") {
        let all = context.listeners.iter().filter(|(_, http)| *http);
        return all.map(|(name, _)| name.clone()).collect();
    }
    let named = message.texts("listeners");
    for name in &named {
        if !context.listeners.iter().any(|(known, _)| known == name) {
            let all: Vec<&str> = context.listeners.iter().map(|(n, _)| n.as_str()).collect();
            let why = format!("no listener has the name {name:?}; there are: {}", all.join(", "));
            message.error("listeners", why);
        }
    }
    named.into_iter().map(str::to_owned).collect()
}

/// All sections of a listener: a route's own hosts say which it is for.
fn sections(context: &Context<'_>, root: &Root) -> Vec<Arc<str>> {
    let resources = context.resources.borrow();
    match resources.get(&root.own()) {
        Some(Resource::Listener(Listener { kind: ListenerKind::Gateway(gateway), .. })) => {
            gateway.sections.iter().map(|s| s.name.clone()).collect()
        }
        _ => Vec::new(),
    }
}

fn rule(message: &Message<'_>, route: &str, place: usize, context: &Context<'_>) -> Option<Rule> {
    let name: Arc<str> = message.text("name").unwrap_or("").into();
    let mut matches: Vec<Match> = context.model(message, "matches").unwrap_or_default();
    if let Some(short) = short_match(message, context) {
        if matches.is_empty() {
            matches.push(short);
        } else {
            message.error("matches", "either these, or path, method and headers beside them");
        }
    }
    let mut filters: Vec<Filter> = context.model(message, "filters").unwrap_or_default();
    for (i, filter) in filters.iter().enumerate() {
        if let Filter::Mirror(Mirror { target, .. }) = filter
            && !backend::is_known(context, target)
        {
            let why = "no such backend; write mirror: [{to: NAME}] beside filters";
            let path = message.at().path().field("filters").index(i);
            context.wrong(path.field("mirror").field("target"), why);
        }
    }
    for (field, filter) in [
        ("request_headers", Filter::RequestHeaders as fn(HeaderEdit) -> Filter),
        ("response_headers", Filter::ResponseHeaders),
    ] {
        filters.extend(edit(message, field).map(filter));
    }
    message.each("mirror", |copy| filters.extend(mirror(&copy, context)));
    if let Some(rewrite) = context.model(message, "rewrite") {
        filters.push(Filter::Rewrite(rewrite));
    }
    let mut timeouts: Timeouts = context.model(message, "timeouts").unwrap_or_default();
    timeouts.request_ms = context.duration(message, "timeout").or(timeouts.request_ms);
    let retry: Retry = match message.item("retry").map(|i| i.value) {
        Some(Value::Number(_)) => {
            Retry { attempts: message.number("retry").unwrap_or(0), ..Retry::default() }
        }
        _ => context.model(message, "retry").unwrap_or_default(),
    };
    let path = message.at().path().field("retry").field("statuses");
    context.statuses(&path, &retry.statuses);
    let session = context.model(message, "session");
    let action = action(message, context)?;
    let field = format!("rules[{place}]");
    let origin = origin("route", route, &field);
    let sources = sources::of_rule(message, &origin);
    Some(Rule { name, matches, filters, action, timeouts, retry, session, origin, sources })
}

/// `path: /users` takes it and what is below it; `path: =/users` only it; `path: ~/v[0-9]+/.*` by
/// expression.
fn short_match(message: &Message<'_>, context: &Context<'_>) -> Option<Match> {
    let mut out = Match::default();
    let given = ["path", "method", "headers", "query"].iter().any(|f| message.is_set(f));
    if let Some(text) = message.text("path") {
        out.path = match (text.strip_prefix('='), text.strip_prefix('~')) {
            (Some(exact), _) => Some(PathMatch::Exact(exact.into())),
            (None, Some(source)) => match weft_model::Regex::new(source) {
                Ok(regex) => Some(PathMatch::Regex(regex)),
                Err(why) => {
                    message.error("path", why);
                    None
                }
            },
            (None, None) => Some(PathMatch::ElementPrefix(text.into())),
        };
        let is_path = |p: &str| p.starts_with('/');
        if !is_path(text.trim_start_matches(['=', '~'])) && !text.starts_with('~') {
            message.error("path", format!("{text:?}: a path begins with /"));
        }
    }
    out.method = message.text("method").map(|m| StringMatch::Exact(m.into()));
    out.headers = named(message, "headers", context, true);
    out.query = named(message, "query", context, false);
    given.then_some(out)
}

/// Names with values: text is compared exactly, anything else is the model's own form.
fn named(
    message: &Message<'_>,
    field: &str,
    context: &Context<'_>,
    lower: bool,
) -> Vec<NamedMatch> {
    let Some(item) = message.item(field) else { return Vec::new() };
    let Some(map) = item.value.as_object() else {
        message.error(field, "expected names with their values");
        return Vec::new();
    };
    let each = map.iter().filter_map(|(name, value)| {
        let name: Arc<str> = if lower { name.to_ascii_lowercase() } else { name.clone() }.into();
        let value = match value {
            Value::String(text) => StringMatch::Exact(text.as_str().into()),
            other => match serde_json::from_value(other.clone()) {
                Ok(value) => value,
                Err(error) => {
                    let path = item.at.path().field(&name);
                    let issue = weft_base::issue::Issue::error(path, error.to_string());
                    context.issues.borrow_mut().push(issue);
                    return None;
                }
            },
        };
        Some(NamedMatch { name, value })
    });
    each.collect()
}

/// Why a header is not a rule's to edit: what it says is the connection's own business.
fn not_edited(name: &str, request: bool) -> Option<&'static str> {
    match name {
        "host" if request => Some("is the upstream's name: say it under rewrite"),
        "connection" | "content-length" | "http2-settings" | "keep-alive" | "proxy-connection"
        | "te" | "trailer" | "transfer-encoding" | "upgrade" => {
            Some("belongs to the connection and is made anew on each")
        }
        name if name.starts_with(':') => Some("is no header"),
        _ => None,
    }
}

/// Header edits: `set` and `add` with names and values, `remove` with names.
fn edit(message: &Message<'_>, field: &str) -> Option<HeaderEdit> {
    let edit = message.message(field)?;
    let pairs = |field: &str| -> Vec<(Arc<str>, Arc<str>)> {
        let Some(item) = edit.item(field) else { return Vec::new() };
        let Some(map) = item.value.as_object() else {
            edit.error(field, "expected names with their values");
            return Vec::new();
        };
        let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
        map.iter().map(|(k, v)| (k.to_ascii_lowercase().into(), text(v).into())).collect()
    };
    for (field, pairs) in [("set", pairs("set")), ("add", pairs("add"))] {
        for (name, value) in &pairs {
            if HeaderName::from_bytes(name.as_bytes()).is_err() {
                edit.error(field, format!("{name:?} is no name of a header"));
            } else if HeaderValue::from_str(value).is_err() {
                edit.error(field, format!("{name:?} has a value that no header can have"));
            }
        }
    }
    let remove = edit.texts("remove").into_iter().map(|n| n.to_ascii_lowercase().into()).collect();
    let made = HeaderEdit { set: pairs("set"), add: pairs("add"), remove };
    let names = |pairs: &[(Arc<str>, Arc<str>)]| pairs.iter().map(|(n, _)| n.clone()).collect();
    for (place, names) in
        [("set", names(&made.set)), ("add", names(&made.add)), ("remove", made.remove.clone())]
    {
        let names: Vec<Arc<str>> = names;
        for name in &names {
            if let Some(why) = not_edited(name, field == "request_headers") {
                edit.error(place, format!("{name:?} {why}"));
            }
        }
    }
    Some(made)
}

/// Copies for one backend, of all requests or of some percent of them.
fn mirror(copy: &Message<'_>, context: &Context<'_>) -> Option<Filter> {
    let percent = copy.number::<u64>("percent").unwrap_or(100);
    if percent > 100 {
        copy.error("percent", format!("{percent} is more than all of them, 100"));
    }
    let Some(name) = copy.text("to") else {
        copy.error("to", "copies need the name of a backend");
        return None;
    };
    match backend::target(context, name) {
        Ok(target) => {
            let share = Share::of(percent, 100);
            Some(Filter::Mirror(Mirror { target, share, mark_host: false }))
        }
        Err(why) => {
            copy.error("to", why);
            None
        }
    }
}

fn action(message: &Message<'_>, context: &Context<'_>) -> Option<Action> {
    let said: Vec<&str> =
        ["to", "redirect", "answer"].into_iter().filter(|f| message.is_set(f)).collect();
    match said.as_slice() {
        ["to"] => forward(message, context),
        ["redirect"] => {
            let mut redirect: Redirect = context.model(message, "redirect")?;
            if redirect.status == 0 {
                redirect.status = 302;
            }
            if !matches!(redirect.status, 301 | 302 | 303 | 307 | 308) {
                message.error("redirect", format!("{} is no redirect", redirect.status));
            }
            Some(Action::Redirect(redirect))
        }
        ["answer"] => {
            let answer = message.message("answer")?;
            let status = answer.number::<u16>("status").unwrap_or(200);
            if !(200..600).contains(&status) {
                answer.error("status", format!("{status} is no status of an answer"));
            }
            Some(Action::Direct { status, body: answer.text("body").unwrap_or("").into() })
        }
        _ => {
            message.error("to", "a rule does one of: to, redirect, answer");
            None
        }
    }
}

fn forward(message: &Message<'_>, context: &Context<'_>) -> Option<Action> {
    let plain = |target, weight| WeightedBackend { target, weight, filters: Vec::new() };
    if let Some(name) = message.item("to").and_then(|i| i.value.as_str()) {
        return match backend::target(context, name) {
            Ok(target) => Some(Action::Forward(vec![plain(target, 1)])),
            Err(why) => {
                message.error("to", why);
                None
            }
        };
    }
    let mut shares = Vec::new();
    message.each("to", |share| {
        let weight = share.number("weight").unwrap_or(1);
        let filters = context.model(&share, "filters").unwrap_or_default();
        let Some(name) = share.text("backend") else {
            share.error("backend", "a share needs the name of a backend");
            return;
        };
        match backend::target(context, name) {
            Ok(target) => shares.push(WeightedBackend { filters, ..plain(target, weight) }),
            Err(why) => share.error("backend", why),
        }
    });
    Some(Action::Forward(shares))
}
