// SPDX-License-Identifier: Apache-2.0
//! The one [`State`] of this process and who waits for its parts. The pump folds the log into it
//! before it publishes the World of the same revision; the Consul door reads it. Nothing here
//! writes to the store.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};
use weft_store::{Event, Page};

use super::keys;
use super::state::{State, Topic};

#[derive(Debug, Default)]
pub struct Shelf {
    state: Mutex<State>,
    waits: Mutex<Waits>,
    /// A session, or a session's beat, came or went.
    pub(super) sessions_stir: Notify,
}

#[derive(Debug, Default)]
struct Waits {
    topics: HashMap<Topic, watch::Sender<()>>,
    /// How many prefixes of each length are waited for.
    lengths: BTreeMap<usize, usize>,
}

/// A wait for one topic. The last one to go takes the topic with it.
#[derive(Debug)]
pub struct Waiter {
    moves: Option<watch::Receiver<()>>,
    topic: Topic,
    shelf: Arc<Shelf>,
}

// === impl Shelf ===

impl Shelf {
    /// What is true now.
    pub fn state(&self) -> State {
        self.lock().clone()
    }

    /// Tells when something below the topic changes. To miss nothing, wait before reading.
    pub fn wait(self: &Arc<Self>, topic: Topic) -> Waiter {
        let mut waits = self.waits();
        if let (Topic::Under(prefix), false) = (&topic, waits.topics.contains_key(&topic)) {
            *waits.lengths.entry(prefix.len()).or_default() += 1;
        }
        let sender = waits.topics.entry(topic.clone()).or_insert_with(|| watch::Sender::new(()));
        let moves = sender.subscribe();
        drop(waits);
        Waiter { moves: Some(moves), topic, shelf: self.clone() }
    }

    /// How many topics are waited for.
    pub fn waited_for(&self) -> usize {
        self.waits().topics.len()
    }

    /// Starts anew from the whole store.
    pub(crate) fn reset(&self, page: &Page) {
        let entries = page.entries.iter().map(|(key, entry)| (key, entry));
        *self.lock() = State::load(entries, page.revision.0);
        for sender in self.waits().topics.values() {
            sender.send_replace(());
        }
        self.sessions_stir.notify_one();
    }

    /// Takes over a part of the log.
    pub(crate) fn fold(&self, events: &[Event]) {
        let mut changed = Vec::new();
        let mut state = self.lock();
        for event in events {
            if state.apply(event) {
                changed.push(&event.key);
            }
        }
        drop(state);
        let stirs =
            |key: &&Arc<str>| key.starts_with(keys::SESSIONS) || key.starts_with(keys::BEATS);
        if changed.iter().any(stirs) {
            self.sessions_stir.notify_one();
        }
        if !changed.is_empty() {
            self.waits().wake(&changed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waits(&self) -> MutexGuard<'_, Waits> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Waits ===

impl Waits {
    fn wake(&self, changed: &[&Arc<str>]) {
        for key in changed {
            if let Some(sender) = self.topics.get(&Topic::Key((*key).clone())) {
                sender.send_replace(());
            }
            for length in self.lengths.keys() {
                let Some(prefix) = key.get(..*length) else { continue };
                if let Some(sender) = self.topics.get(&Topic::Under(prefix.into())) {
                    sender.send_replace(());
                }
            }
        }
    }
}

// === impl Waiter ===

impl Waiter {
    /// Resolves when something changed since the last call. Cancel-safe.
    pub async fn moved(&mut self) {
        let gone = match &mut self.moves {
            Some(moves) => moves.changed().await.is_err(),
            None => true,
        };
        if gone {
            std::future::pending::<()>().await;
        }
    }

    /// Whether nothing changed since the last call of [`Waiter::moved`], or since the wait began.
    pub fn is_still(&self) -> bool {
        self.moves.as_ref().is_some_and(|moves| moves.has_changed().is_ok_and(|moved| !moved))
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.moves = None;
        let mut waits = self.shelf.waits();
        if waits.topics.get(&self.topic).is_none_or(|sender| sender.receiver_count() > 0) {
            return;
        }
        waits.topics.remove(&self.topic);
        if let Topic::Under(prefix) = &self.topic
            && let Some(count) = waits.lengths.get_mut(&prefix.len())
        {
            *count -= 1;
            if *count == 0 {
                waits.lengths.remove(&prefix.len());
            }
        }
    }
}
