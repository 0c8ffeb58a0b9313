// SPDX-License-Identifier: Apache-2.0
//! Prepared queries executed: found by id, name or template, filled in, and answered with
//! healthy instances, or those of the first failover target that has some. Other datacentres are
//! not reachable from here, so nothing fails over to them. Called by the HTTP endpoint and by DNS.

use std::sync::Arc;

use regex::Regex;
use serde_json::{Map, Value, json};
use weft_identity::permission::{Kind, Verb};
use weft_kinds::views::catalog::Status;
use weft_registry::consul::State;

use super::Door;
use super::body::{part, word};
use super::catalog::Wanted;
use super::error::Refusal;
use super::http::Ask;
use super::query::TABLE;
use super::query_text::Asked;
use super::reply::Reply;
use super::shapes;
use super::view::{Entry, View};
use super::who::Who;

/// Memory that one compiled pattern may take.
const REGEX_BYTES_MAX: usize = 64 * 1024;

/// A template's pattern, if it is usable. An empty one matches nothing.
pub(crate) fn pattern(text: &str) -> Option<Regex> {
    regex::RegexBuilder::new(text).size_limit(REGEX_BYTES_MAX).build().ok()
}

/// A query by its id or name, or the template of the longest name that the name begins with,
/// filled in.
pub(super) fn resolve(state: &State, name: &str) -> Option<Value> {
    if let Some((query, _)) = state.record(TABLE, name) {
        return Some(fill(query, name, &mut pattern));
    }
    resolve_among(&all(state), name, &mut pattern)
}

/// Every prepared query.
pub(crate) fn all(state: &State) -> Vec<Arc<Value>> {
    state.records(TABLE).into_iter().map(|(query, _)| query).collect()
}

/// The same among queries at hand, with patterns that somebody may have compiled before. Without
/// regard to case, as names are asked for in DNS.
pub(crate) fn resolve_among(
    all: &[Arc<Value>],
    name: &str,
    compiled: &mut dyn FnMut(&str) -> Option<Regex>,
) -> Option<Value> {
    let templated = |query: &Value| word(part(query, "Template"), "Type") == "name_prefix_match";
    let by_id = || all.iter().find(|q| word(q, "ID") == name);
    let exact = |q: &&Arc<Value>| {
        !name.is_empty() && word(q, "Name").eq_ignore_ascii_case(name) && !templated(q)
    };
    let fits = |query: &Value| {
        let prefix = word(query, "Name");
        name.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix))
    };
    let best = || {
        let fitting = all.iter().filter(|q| templated(q) && fits(q));
        fitting.max_by_key(|q| word(q, "Name").len())
    };
    let found = by_id().or_else(|| all.iter().find(exact)).or_else(best)?;
    Some(fill(found, name, compiled))
}

/// What a query came to.
#[derive(Debug)]
pub(crate) struct Ran {
    /// The service that answered.
    pub service: String,
    pub namespace: Arc<str>,
    pub entries: Vec<Entry>,
    /// Failover targets that were tried.
    pub failovers: usize,
    /// `DNS.TTL`, as it was written.
    pub ttl: String,
}

/// Runs a filled-in query with somebody's eyes.
pub(crate) fn run(view: &View, query: &Value, namespace: &str, who: &Who) -> Ran {
    run_as(view, query, &namespace.into(), who)
}

/// The query's own token, with whose rights it is run; empty when it has none.
pub(crate) fn token(query: &Value) -> &str {
    word(query, "Token")
}

/// The node that it is to be answered nearest to, as it was written; empty when there is none.
pub(crate) fn near(query: &Value) -> &str {
    word(part(query, "Service"), "Near")
}

impl Door {
    pub(super) async fn query_execute(&self, ask: &Ask, name: &str) -> Result<Reply, Refusal> {
        let blocking = self.fresh(ask).await?;
        let state = self.consul().state();
        let Some(mut query) = resolve(&state, name) else {
            return Err(Refusal::not_found("Query not found"));
        };
        if asked_connect(ask)?
            && let Some(service) = query.get_mut("Service").and_then(Value::as_object_mut)
        {
            service.insert("Connect".into(), Value::Bool(true));
        }
        let limit = match ask.params.filled("limit") {
            None => usize::MAX,
            Some(text) => match text.parse() {
                Ok(0) => usize::MAX,
                Ok(limit) => limit,
                Err(_) => return Err(Refusal::bad(format!("Bad limit: {text:?} is no number"))),
            },
        };
        let view = self.view();
        let asked_near = ask.params.filled("near").unwrap_or_else(|| near(&query));
        let ran = run_as(&view, &query, &ask.namespace, &self.runs_as(ask, &query)?);
        let mut entries = ran.entries;
        {
            let rng = &mut self.0.rng.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            shuffle(&mut entries, rng);
        }
        if let Some(near) = self.near_to(ask, asked_near) {
            near.sort(&mut entries, |entry| &entry.node.node);
        }
        entries.truncate(limit);
        let nodes: Vec<Value> = entries.iter().map(|e| shapes::health_entry(e, &view)).collect();
        let reply = Reply::json(json!({
            "Service": ran.service,
            "Namespace": ran.namespace,
            "Nodes": nodes,
            "DNS": part(&query, "DNS"),
            "Datacenter": self.own().datacenter,
            "Failovers": ran.failovers,
            "KnownLeader": self.consul().contact().is_known(),
            "LastContact": 0,
        }));
        Ok(reply.at(state.revision(), &blocking))
    }

    /// Whose eyes a query is run with: its own token's, or those of who asks.
    fn runs_as(&self, ask: &Ask, query: &Value) -> Result<Who, Refusal> {
        match token(query) {
            secret if self.acl().is_on() && !secret.is_empty() => self.acl().resolve(self, secret),
            _ => Ok(ask.who.clone()),
        }
    }
}

// === running ===

fn bare(query: &Value, namespace: &Arc<str>) -> Ran {
    Ran {
        service: word(part(query, "Service"), "Service").to_owned(),
        namespace: namespace.clone(),
        entries: Vec::new(),
        failovers: 0,
        ttl: word(part(query, "DNS"), "TTL").to_owned(),
    }
}

/// The query's own service, or the first failover target of this datacentre that has instances.
/// What the eyes may not see has no instances.
fn run_as(view: &View, query: &Value, namespace: &Arc<str>, who: &Who) -> Ran {
    let service = part(query, "Service");
    let mut ran = bare(query, namespace);
    ran.entries = selected(view, service, &ran.service, namespace, who);
    let targets = part(part(service, "Failover"), "Targets").as_array();
    for target in targets.into_iter().flatten() {
        if !ran.entries.is_empty() {
            break;
        }
        let elsewhere = !word(target, "Peer").is_empty()
            || !["", &*view.own.datacenter].contains(&word(target, "Datacenter"));
        if elsewhere {
            continue;
        }
        let own = |field: &str, usual: &str| match word(target, field) {
            "" => usual.to_owned(),
            text => text.to_owned(),
        };
        let name = own("Service", word(service, "Service"));
        let namespace: Arc<str> = own("Namespace", namespace).into();
        ran.failovers += 1;
        let entries = selected(view, service, &name, &namespace, who);
        if !entries.is_empty() {
            ran = Ran { service: name, namespace, entries, ..ran };
        }
    }
    ran
}

fn selected(
    view: &View,
    service: &Value,
    name: &str,
    namespace: &Arc<str>,
    who: &Who,
) -> Vec<Entry> {
    if !who.may(Verb::Read, Kind::Service, namespace, name) {
        return Vec::new();
    }
    let texts = |field: &str| -> Vec<&str> {
        let list = part(service, field).as_array().into_iter().flatten();
        list.filter_map(Value::as_str).collect()
    };
    let pairs = |field: &str| -> Vec<(String, String)> {
        let map = part(service, field).as_object().into_iter().flatten();
        map.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect()
    };
    let wanted = Wanted {
        namespace: namespace.clone(),
        service: name.to_owned(),
        tags: Vec::new(),
        meta: pairs("NodeMeta"),
        connect: *part(service, "Connect") == true,
        foreign: !word(service, "Peer").is_empty(),
        who: who.clone(),
        near: None,
    };
    let ignored = texts("IgnoreCheckIDs");
    let only_passing = *part(service, "OnlyPassing") == true;
    let (tags, meta) = (texts("Tags"), pairs("ServiceMeta"));
    let mut entries = wanted.entries(view);
    entries.retain(|entry| {
        let counted = entry.checks.iter().filter(|c| !ignored.contains(&&*c.record.id));
        let worst = counted.map(|check| check.status).max().unwrap_or(Status::Passing);
        let healthy = match only_passing {
            true => worst == Status::Passing,
            false => worst != Status::Critical,
        };
        let has = |tag: &str| entry.service.tags.iter().any(|t| t.eq_ignore_ascii_case(tag));
        let tagged = tags.iter().all(|tag| match tag.strip_prefix('!') {
            Some(tag) => !has(tag),
            None => has(tag),
        });
        let marked = meta
            .iter()
            .all(|(k, v)| entry.service.meta.get(k.as_str()).is_some_and(|m| **m == **v));
        healthy && tagged && marked && !entry.draining
    });
    entries
}

// === helpers ===

/// Whether only what speaks Connect is asked for, whatever the query says.
fn asked_connect(ask: &Ask) -> Result<bool, Refusal> {
    match ask.params.get("connect").unwrap_or_default() {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "" | "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => Err(Refusal::bad(format!("Error parsing 'connect' value: {other:?} is no bool"))),
    }
}

fn shuffle(entries: &mut [Entry], rng: &mut weft_base::rng::Rng) {
    for last in (1..entries.len()).rev() {
        let other = usize::try_from(rng.below(last as u64 + 1)).unwrap_or(0);
        entries.swap(last, other);
    }
}

/// Puts the name that was asked for into a template's texts.
fn fill(query: &Value, name: &str, compiled: &mut dyn FnMut(&str) -> Option<Regex>) -> Value {
    let mut out = query.clone();
    let template = part(query, "Template");
    if word(template, "Type") != "name_prefix_match" {
        return out;
    }
    let prefix = word(query, "Name");
    let text = word(template, "Regexp");
    let regex = if text.is_empty() { None } else { compiled(text) };
    let found: Vec<String> = match regex {
        None => Vec::new(),
        Some(regex) => regex.captures(name).map_or_else(Vec::new, |found| {
            found.iter().map(|m| m.map_or("", |m| m.as_str()).to_owned()).collect()
        }),
    };
    let suffix = name.get(prefix.len()..).unwrap_or_default();
    let asked = Asked { full: name, prefix, suffix, found };
    let Some(service) = part(query, "Service").as_object().cloned() else { return out };
    let mut filled: Map<String, Value> =
        service.into_iter().map(|(key, value)| (key, asked.fill(value))).collect();
    if *part(template, "RemoveEmptyTags") == true
        && let Some(Value::Array(tags)) = filled.get_mut("Tags")
    {
        tags.retain(|tag| tag != "");
    }
    if let Value::Object(map) = &mut out {
        map.insert("Service".into(), Value::Object(filled));
        map.insert("DNS".into(), asked.fill(part(query, "DNS").clone()));
    }
    out
}
