// SPDX-License-Identifier: Apache-2.0
//! User events: the newest are kept for whoever asks; older ones make room.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use weft_store::{Class, Op, Txn};

use super::error::ConsulError;
use super::state::{State, What};
use super::{Handle, keys};

/// Events kept, as in Consul.
pub const EVENTS_MAX: usize = 256;
/// Largest payload, bytes: what Consul's gossip would carry.
pub const PAYLOAD_BYTES_MAX: usize = 512;

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Event {
    pub id: Arc<str>,
    pub name: Arc<str>,
    /// In base 64; absent when nothing was sent.
    pub payload: Option<String>,
    pub node_filter: String,
    pub service_filter: String,
    pub tag_filter: String,
    /// Counts up.
    #[serde(default)]
    pub ltime: u64,
}

// === impl State ===

impl State {
    /// All events, or those of a name, oldest first.
    pub fn events(&self, name: Option<&str>) -> Vec<(Arc<str>, Arc<Event>, u64)> {
        let mut out: Vec<_> = self
            .under(&keys::events(name))
            .filter_map(|(key, item)| match &item.what {
                What::Event(event) => Some((key.clone(), event.clone(), item.created)),
                _ => None,
            })
            .collect();
        out.sort_by_key(|(_, event, _)| event.ltime);
        out
    }
}

impl Handle {
    /// Keeps an event; its id is fresh.
    ///
    /// # Errors
    /// When the store refuses.
    pub async fn fire(&self, event: Event) -> Result<Event, ConsulError> {
        let _turn = self.turn(keys::EVENTS).await;
        let plan = |state: &State| {
            let known = state.events(None);
            let ltime = known.last().map_or(1, |(_, last, _)| last.ltime + 1);
            let event = Event { ltime, ..event.clone() };
            let key = keys::event(&event.name, &event.id).into();
            let value = serde_json::to_vec(&event)?.into();
            let put = Op::Put { key, value, class: Class::Ephemeral, lease: None };
            let old = known.len().saturating_sub(EVENTS_MAX - 1).min(64);
            let mut txn = Txn::of([put]);
            txn.ops.extend(known.into_iter().take(old).map(|(key, ..)| Op::delete(key)));
            Ok::<_, ConsulError>((txn, event))
        };
        Ok(self.attempt(plan).await?.1)
    }
}
