// SPDX-License-Identifier: Apache-2.0
//! What only Consul's API knows, folded from the store's log, and the indexes of its parts.
//! Persistent: a reader keeps its own look. Pure, but for nothing: `shelf.rs` shares it.
//!
//! An index is that of the newest change below a [`Topic`]; deletions count, and are remembered
//! key by key, so a change of anything else moves no index.

use std::ops::Bound;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use serde_json::Value;
use weft_store::{Entry, Event as StoreEvent, EventKind};

use super::event::Event;
use super::keys;
use super::kv::Pair;
use super::session::Session;

/// Deletions remembered one by one. When there are more, all count as deleted at the last one's
/// index, which wakes queries once for nothing.
const GRAVES_MAX: usize = 65_536;

/// What an answer depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    /// One store key.
    Key(Arc<str>),
    /// All store keys that begin so.
    Under(Arc<str>),
}

#[derive(Clone, Debug)]
pub struct Item {
    pub created: u64,
    pub modified: u64,
    pub what: What,
}

#[derive(Clone, Debug)]
pub enum What {
    Pair(Arc<Pair>),
    Session(Arc<Session>),
    Event(Arc<Event>),
    Record(Arc<Value>),
    /// There, with nothing to say: a session's beat, a lock's delay.
    Mark,
}

#[derive(Clone, Debug, Default)]
pub struct State {
    items: OrdMap<Arc<str>, Item>,
    graves: OrdMap<Arc<str>, u64>,
    /// The index of what is not there and has no grave.
    floor: u64,
    revision: u64,
    /// Sessions' store keys by their ids.
    sessions: OrdMap<Arc<str>, Arc<str>>,
    /// The pairs that a session holds.
    held: OrdMap<Arc<str>, OrdSet<Arc<str>>>,
}

// === impl State ===

impl State {
    /// Everything as it is in the store now. Deletions before that are not known: what is not
    /// there counts as gone now, so that clients that waited look again.
    pub fn load<'a>(
        entries: impl Iterator<Item = (&'a Arc<str>, &'a Entry)>,
        revision: u64,
    ) -> Self {
        let mut state = Self { floor: revision.max(1), revision, ..Self::default() };
        for (key, entry) in entries.filter(|(key, _)| key.starts_with(keys::ROOT)) {
            if let Some(what) = read(key, &entry.value) {
                state.put(key, what, entry.created.0, entry.modified.0);
            }
        }
        state
    }

    /// Takes over one event; whether it was about this.
    pub fn apply(&mut self, event: &StoreEvent) -> bool {
        self.revision = self.revision.max(event.revision.0);
        if !event.key.starts_with(keys::ROOT) {
            return false;
        }
        let now = event.revision.0;
        let what = match event.kind {
            EventKind::Put => read(&event.key, &event.value),
            EventKind::Delete => None,
        };
        match what {
            Some(what) => {
                let created = self.items.get(&event.key).map_or(now, |item| item.created);
                self.put(&event.key, what, created, now);
            }
            None => self.remove(&event.key, now),
        }
        true
    }

    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn item(&self, key: &str) -> Option<&Item> {
        self.items.get(key)
    }

    /// The items under a prefix, in order.
    pub fn under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a Arc<str>, &'a Item)> {
        let range = (Bound::Included(prefix), Bound::Unbounded);
        self.items.range::<_, str>(range).take_while(move |(key, _)| key.starts_with(prefix))
    }

    /// The newest change of what a topic is about; never 0.
    pub fn index(&self, topic: &Topic) -> u64 {
        let newest = match topic {
            Topic::Key(key) => match self.items.get(key) {
                Some(item) => Some(item.modified),
                None => self.graves.get(key).copied(),
            },
            Topic::Under(prefix) => {
                let range = (Bound::Included(&**prefix), Bound::Unbounded);
                let graves = self.graves.range::<_, str>(range);
                let graves = graves.take_while(|(key, _)| key.starts_with(&**prefix));
                let items = self.under(prefix).map(|(_, item)| item.modified);
                // What is listed may be older than what was not remembered.
                items.chain(graves.map(|(_, at)| *at)).max().map(|newest| newest.max(self.floor))
            }
        };
        newest.unwrap_or(self.floor).max(1)
    }

    /// A session by its id, with its store key.
    pub fn session(&self, id: &str) -> Option<(&Arc<str>, &Arc<Session>, &Item)> {
        let key = self.sessions.get(id)?;
        let item = self.items.get(key)?;
        match &item.what {
            What::Session(session) => Some((key, session, item)),
            _ => None,
        }
    }

    pub fn sessions(&self) -> impl Iterator<Item = &Arc<Session>> {
        self.sessions.keys().filter_map(|id| self.session(id)).map(|(_, session, _)| session)
    }

    /// The pairs that a session holds, alive or not.
    pub fn held_by(&self, session: &str) -> impl Iterator<Item = &Arc<str>> {
        self.held.get(session).into_iter().flatten()
    }

    /// Ids of sessions that hold pairs and are gone.
    pub fn ghosts(&self) -> Vec<Arc<str>> {
        self.held.keys().filter(|id| !self.sessions.contains_key(*id)).cloned().collect()
    }

    fn put(&mut self, key: &Arc<str>, what: What, created: u64, modified: u64) {
        self.let_go(key);
        match &what {
            What::Pair(pair) if !pair.session.is_empty() => {
                self.held.entry(pair.session.clone()).or_default().insert(key.clone());
            }
            What::Session(session) => {
                self.sessions.insert(session.id.clone(), key.clone());
            }
            _ => {}
        }
        self.graves.remove(key);
        self.items.insert(key.clone(), Item { created, modified, what });
    }

    fn remove(&mut self, key: &Arc<str>, now: u64) {
        self.let_go(key);
        if self.items.remove(key).is_none() {
            return;
        }
        // Old events make room for new ones, delays end: nobody waits for that.
        if key.starts_with(keys::EVENTS) || key.starts_with(keys::DELAYS) {
            return;
        }
        self.graves.insert(key.clone(), now);
        if self.graves.len() > GRAVES_MAX {
            self.graves.clear();
            self.floor = now;
        }
    }

    /// Unties what the key's present item is tied to.
    fn let_go(&mut self, key: &Arc<str>) {
        match self.items.get(key).map(|item| item.what.clone()) {
            Some(What::Pair(pair)) if !pair.session.is_empty() => {
                let Some(keys) = self.held.get_mut(&pair.session) else { return };
                keys.remove(key);
                if keys.is_empty() {
                    self.held.remove(&pair.session);
                }
            }
            Some(What::Session(session)) => {
                self.sessions.remove(&session.id);
            }
            _ => {}
        }
    }
}

// === helpers ===

/// A value by the room that its key is in; `None` for what no weft of this version wrote.
fn read(key: &str, value: &[u8]) -> Option<What> {
    let json = |value| serde_json::from_slice(value).ok();
    let rooms = [keys::PAIRS, keys::SESSIONS, keys::EVENTS, keys::RECORDS];
    match rooms.into_iter().find(|room| key.starts_with(room)) {
        Some(keys::PAIRS) => Pair::read(value).map(|pair| What::Pair(Arc::new(pair))),
        Some(keys::SESSIONS) => {
            serde_json::from_slice(value).ok().map(|s| What::Session(Arc::new(s)))
        }
        Some(keys::EVENTS) => serde_json::from_slice(value).ok().map(|e| What::Event(Arc::new(e))),
        Some(_) => json(value).map(|record| What::Record(Arc::new(record))),
        None => Some(What::Mark),
    }
}
