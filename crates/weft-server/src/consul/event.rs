// SPDX-License-Identifier: Apache-2.0
//! `/v1/event/*`: small messages that whoever asks sees for a while.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use regex::Regex;
use serde_json::{Value, json};
use uuid::Uuid;
use weft_identity::permission::{Kind, Verb};
use weft_registry::consul::{Event, PAYLOAD_BYTES_MAX, Topic, keys};

use super::Door;
use super::error::Refusal;
use super::http::Ask;
use super::params::Blocking;
use super::query_run;
use super::reply::Reply;
use super::view::View;
use super::wait::Later;
use crate::guards;

/// Longest pattern of a filter.
const FILTER_BYTES_MAX: usize = 1024;
/// Patterns that are kept compiled: more than the events that are kept can have.
const PATTERNS_MAX: usize = 1024;

/// Filters' patterns, each compiled once: a list judges every event, for everybody who waits.
#[derive(Debug, Default)]
pub(super) struct Patterns(Mutex<HashMap<String, Option<Regex>>>);

// === impl Patterns ===

impl Patterns {
    /// Whether one of the texts fits. An empty pattern asks for nothing; none is wrong, since each
    /// was judged when its event was fired.
    fn fit<'a>(&self, pattern: &str, mut texts: impl Iterator<Item = &'a str>) -> bool {
        let fits = |pattern: Regex| texts.any(|text| pattern.is_match(text));
        pattern.is_empty() || self.compiled(pattern).is_some_and(fits)
    }

    fn compiled(&self, text: &str) -> Option<Regex> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pattern) = known.get(text) {
            return pattern.clone();
        }
        if known.len() >= PATTERNS_MAX {
            known.clear();
        }
        let pattern = query_run::pattern(text);
        known.insert(text.to_owned(), pattern.clone());
        pattern
    }
}

// === impl Door ===

impl Door {
    pub(super) async fn event_fire(&self, ask: &Ask) -> Result<Reply, Refusal> {
        if ask.argument.is_empty() {
            return Err(Refusal::bad("Missing name"));
        }
        ask.who.demand(Verb::Write, Kind::Event, &ask.namespace, &ask.argument)?;
        if ask.body.len() > PAYLOAD_BYTES_MAX && guards::on("value-size") {
            return Err(Refusal::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!(
                    "the event's payload of {} bytes is over the limit of {PAYLOAD_BYTES_MAX}; \
                     put it into the KV store and send its key",
                    ask.body.len()
                ),
            ));
        }
        let event = Event {
            id: Uuid::new_v4().to_string().into(),
            name: ask.argument.as_str().into(),
            payload: (!ask.body.is_empty()).then(|| STANDARD.encode(&ask.body)),
            node_filter: pattern(ask, "node")?,
            service_filter: pattern(ask, "service")?,
            tag_filter: pattern(ask, "tag")?,
            ltime: 0,
        };
        if !event.tag_filter.is_empty() && event.service_filter.is_empty() {
            return Err(Refusal::bad("Cannot provide tag filter without service filter"));
        }
        let fired = self.consul().fire(event).await?;
        // Its time is the receivers' to say.
        Ok(Reply::json(shape(&Event { ltime: 0, ..fired })))
    }

    /// Answers once another event is the last one. The index is that one's id as a number: clients
    /// look for the event that has it to leave out what they had before.
    pub(super) async fn event_list(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let name = ask.params.filled("name");
        let asked = ask.params.blocking()?;
        // Such an index says nothing of what this server must have heard of.
        let blocking = &Box::pin(self.catch_up(&Blocking { index: 0, ..asked.clone() })).await;
        let node = match &ask.who.host {
            Some(host) => host.node.clone(),
            None => self.own().node.node.clone(),
        };
        let may = |event: &Event| ask.who.may(Verb::Read, Kind::Event, &ask.namespace, &event.name);
        let look = || {
            let events = self.consul().state().events(name).into_iter().map(|(_, event, _)| event);
            let view = self.view();
            let shown: Vec<_> =
                events.filter(|e| may(e) && is_for(e, &view, &node, &self.0.patterns)).collect();
            let index = shown.last().map_or(1, |last| number(&last.id));
            (shown, index)
        };
        let is_new = |index: u64| asked.over || asked.index == 0 || asked.index != index;
        let answer = |(shown, index): (Vec<Arc<Event>>, u64)| {
            let shown = shown.iter().map(|event| shape(event)).collect();
            Ok(Reply::json(Value::Array(shown)).at(index, blocking))
        };
        let now = look();
        if is_new(now.1) {
            return answer(now);
        }
        // Looked at again with the wait begun: nothing is missed.
        let moves = self.consul().shelf().wait(Topic::Under(keys::events(name).into()));
        let now = look();
        match is_new(now.1) {
            true => answer(now),
            false => Ok(Reply::later(Later::new(moves, blocking.wait))),
        }
    }
}

// === helpers ===

fn pattern(ask: &Ask, name: &str) -> Result<String, Refusal> {
    let text = ask.params.get(name).unwrap_or_default();
    if text.len() > FILTER_BYTES_MAX || query_run::pattern(text).is_none() {
        return Err(Refusal::bad(format!("Invalid {name} filter: no usable regular expression")));
    }
    Ok(text.to_owned())
}

/// Whether an event is for a node's agent: by its name, and by the ids and tags of what is
/// registered with it.
fn is_for(event: &Event, view: &View, node: &str, patterns: &Patterns) -> bool {
    let of_service = || {
        let mut own = view.world.catalog().on_node(node).filter(|(_, one)| one.agent);
        own.any(|(_, one)| {
            patterns.fit(&event.service_filter, [&*one.id].into_iter())
                && patterns.fit(&event.tag_filter, one.tags.iter().map(|tag| &**tag))
        })
    };
    patterns.fit(&event.node_filter, [node].into_iter())
        && (event.service_filter.is_empty() || of_service())
}

/// An event's id as Consul's clients make an index of it: one half of its bits xor the other.
fn number(id: &str) -> u64 {
    Uuid::parse_str(id).map_or(1, |id| {
        let (upper, lower) = id.as_u64_pair();
        (upper ^ lower).max(1)
    })
}

fn shape(event: &Event) -> Value {
    json!({
        "ID": event.id,
        "Name": event.name,
        "Payload": event.payload,
        "NodeFilter": event.node_filter,
        "ServiceFilter": event.service_filter,
        "TagFilter": event.tag_filter,
        "Version": 1,
        "LTime": event.ltime,
    })
}
