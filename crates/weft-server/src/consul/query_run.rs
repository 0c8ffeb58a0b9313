// SPDX-License-Identifier: Apache-2.0
//! Prepared queries executed: found by id, name or template, filled in, and answered with
//! healthy instances. Other datacentres are not reachable from here, so nothing fails over to
//! them; targets of a failover that are other services' are none either.

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
use super::reply::Reply;
use super::shapes;
use super::view::Entry;

/// Memory that one compiled pattern may take.
const REGEX_BYTES_MAX: usize = 64 * 1024;

/// A template's pattern, if it is usable. An empty one matches nothing.
pub(super) fn pattern(text: &str) -> Option<Regex> {
    regex::RegexBuilder::new(text).size_limit(REGEX_BYTES_MAX).build().ok()
}

/// A query by its id or name, or the template of the longest name that the name begins with,
/// filled in.
pub(super) fn resolve(state: &State, name: &str) -> Option<Value> {
    if let Some((query, _)) = state.record(TABLE, name) {
        return Some(fill(query, name));
    }
    let all = state.records(TABLE);
    let templated = |query: &Value| word(part(query, "Template"), "Type") == "name_prefix_match";
    let exact =
        all.iter().find(|(q, _)| word(q, "Name") == name && !name.is_empty() && !templated(q));
    let fits = |query: &Value| name.starts_with(word(query, "Name"));
    let best = || {
        let fitting = all.iter().filter(|(q, _)| templated(q) && fits(q));
        fitting.max_by_key(|(q, _)| word(q, "Name").len())
    };
    exact.or_else(best).map(|(query, _)| fill(query, name))
}

impl Door {
    pub(super) async fn query_execute(&self, ask: &Ask, name: &str) -> Result<Reply, Refusal> {
        let blocking = ask.params.blocking()?;
        if blocking.consistent {
            self.consul().barrier().await?;
        }
        let state = self.consul().state();
        let Some(query) = resolve(&state, name) else {
            return Err(Refusal::not_found("Query not found"));
        };
        let limit = match ask.params.filled("limit") {
            None => usize::MAX,
            Some(text) => match text.parse() {
                Ok(0) => usize::MAX,
                Ok(limit) => limit,
                Err(_) => return Err(Refusal::bad(format!("Bad limit: {text:?} is no number"))),
            },
        };
        let view = self.view();
        let service = part(&query, "Service");
        let name = word(service, "Service");
        let near = ask.params.filled("near").or(Some(word(service, "Near")));
        let mut entries = self.query_entries(ask, service, name, &view)?;
        {
            let rng = &mut self.0.rng.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            shuffle(&mut entries, rng);
        }
        let near = match near {
            Some("_agent" | "_ip") => Some(&*self.own().node.node),
            other => other.filter(|node| !node.is_empty()),
        };
        if let Some(near) = near {
            // Without coordinates near is the node itself, then the others.
            entries.sort_by_key(|entry| *entry.node.node != *near);
        }
        entries.truncate(limit);
        let nodes: Vec<Value> = entries.iter().map(|e| shapes::health_entry(e, &view)).collect();
        let reply = Reply::json(json!({
            "Service": name,
            "Namespace": ask.namespace,
            "Nodes": nodes,
            "DNS": part(&query, "DNS"),
            "Datacenter": self.own().datacenter,
            "Failovers": 0,
            "KnownLeader": true,
            "LastContact": 0,
        }));
        Ok(reply.at(state.revision(), &blocking))
    }

    fn query_entries(
        &self,
        ask: &Ask,
        service: &Value,
        name: &str,
        view: &super::view::View,
    ) -> Result<Vec<Entry>, Refusal> {
        let texts = |field: &str| -> Vec<&str> {
            let list = part(service, field).as_array().into_iter().flatten();
            list.filter_map(Value::as_str).collect()
        };
        let pairs = |field: &str| -> Vec<(String, String)> {
            let map = part(service, field).as_object().into_iter().flatten();
            map.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect()
        };
        let wanted = Wanted {
            namespace: ask.namespace.clone(),
            service: name.to_owned(),
            tags: Vec::new(),
            meta: pairs("NodeMeta"),
            connect: *part(service, "Connect") == true,
            foreign: !word(service, "Peer").is_empty(),
            who: ask.who.clone(),
        };
        ask.who.demand(Verb::Read, Kind::Service, &ask.namespace, name)?;
        let ignored = texts("IgnoreCheckIDs");
        let only_passing = *part(service, "OnlyPassing") == true;
        let (tags, meta) = (texts("Tags"), pairs("ServiceMeta"));
        let mut entries = wanted.entries(view);
        entries.retain_mut(|entry| {
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
        Ok(entries)
    }
}

// === helpers ===

fn shuffle(entries: &mut [Entry], rng: &mut weft_base::rng::Rng) {
    for last in (1..entries.len()).rev() {
        let other = usize::try_from(rng.below(last as u64 + 1)).unwrap_or(0);
        entries.swap(last, other);
    }
}

/// Puts the name that was asked for into a template's texts.
fn fill(query: &Value, name: &str) -> Value {
    let mut out = query.clone();
    let template = part(query, "Template");
    if word(template, "Type") != "name_prefix_match" {
        return out;
    }
    let prefix = word(query, "Name");
    let text = word(template, "Regexp");
    let found: Vec<String> = match pattern(text).filter(|_| !text.is_empty()) {
        None => Vec::new(),
        Some(regex) => regex.captures(name).map_or_else(Vec::new, |found| {
            found.iter().map(|m| m.map_or("", |m| m.as_str()).to_owned()).collect()
        }),
    };
    let suffix = name.strip_prefix(prefix).unwrap_or_default();
    let render = |text: &str| -> String {
        let mut out = text.replace("${name.full}", name).replace("${name.prefix}", prefix);
        out = out.replace("${name.suffix}", suffix);
        out = out.replace("${agent.segment}", "");
        for at in 0..10 {
            let value = found.get(at).map_or("", String::as_str);
            out = out.replace(&format!("${{match({at})}}"), value);
        }
        out
    };
    let Some(service) = part(query, "Service").as_object().cloned() else { return out };
    let mut filled: Map<String, Value> =
        service.into_iter().map(|(key, value)| (key, rendered(value, &render))).collect();
    if *part(template, "RemoveEmptyTags") == true
        && let Some(Value::Array(tags)) = filled.get_mut("Tags")
    {
        tags.retain(|tag| tag != "");
    }
    if let Value::Object(map) = &mut out {
        map.insert("Service".into(), Value::Object(filled));
        map.insert("DNS".into(), rendered(part(query, "DNS").clone(), &render));
    }
    out
}

fn rendered(value: Value, render: &impl Fn(&str) -> String) -> Value {
    match value {
        Value::String(text) => Value::String(render(&text)),
        Value::Array(items) => items.into_iter().map(|v| rendered(v, render)).collect(),
        Value::Object(map) => {
            map.into_iter().map(|(k, v)| (k, rendered(v, render))).collect::<Map<_, _>>().into()
        }
        other => other,
    }
}
