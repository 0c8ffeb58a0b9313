// SPDX-License-Identifier: Apache-2.0
//! `/v1/event/*`: small messages that whoever asks sees for a while.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use serde_json::{Value, json};
use uuid::Uuid;
use weft_identity::permission::{Kind, Verb};
use weft_registry::consul::{Event, PAYLOAD_BYTES_MAX, Topic, keys};

use super::Door;
use super::error::Refusal;
use super::http::Ask;
use super::reply::Reply;
use crate::guards;

/// Longest pattern of a filter.
const FILTER_BYTES_MAX: usize = 1024;

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

    pub(super) async fn event_list(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let name = ask.params.filled("name");
        let at = keys::events(name);
        let blocking = ask.params.blocking()?;
        self.read_shelf(Topic::Under(at.into()), &blocking, |state| {
            let events = state.events(name).into_iter().map(|(_, event, _)| event);
            let may =
                |event: &Event| ask.who.may(Verb::Read, Kind::Event, &ask.namespace, &event.name);
            let shown: Vec<Value> = events.filter(|e| may(e)).map(|e| shape(&e)).collect();
            Ok(Reply::json(Value::Array(shown)))
        })
        .await
    }
}

// === helpers ===

fn pattern(ask: &Ask, name: &str) -> Result<String, Refusal> {
    let text = ask.params.get(name).unwrap_or_default();
    if text.len() > FILTER_BYTES_MAX || regex::Regex::new(text).is_err() {
        return Err(Refusal::bad(format!("Invalid {name} filter: no usable regular expression")));
    }
    Ok(text.to_owned())
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
