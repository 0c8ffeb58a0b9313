// SPDX-License-Identifier: Apache-2.0
//! Consul's index: for each thing that a query may ask, the revision at which the answer last
//! changed. A blocked query waits for its own topic alone; a change of anything else neither
//! wakes it nor moves its index.
//!
//! An index is a revision of the store, so those of several servers, and of one before and after a
//! restart, are of one order, though not the same: what has not changed since a server was opened
//! has the revision that it opened at, and of several changes taken over together all have the
//! last one's. A client may move between servers all the same. Its index is at most the revision
//! that it saw, so whatever it has not seen has a later one everywhere; one that is past the
//! server's own for the same waits for the next change, and is told no lesser one
//! ([`super::params::Blocking`]), so that two servers behind one address do not send it to and fro;
//! and a server that is behind it waits until it is not ([`super::Door`]'s `catch_up`). Indexes
//! that are the same everywhere, as those of single records are ([`super::stamp`]), would need
//! graves of what is gone in the store.
//!
//! One task feeds it the pump's Worlds ([`Indexes::advance`]); endpoints read World and index
//! together, so an index is never newer than the data it came with.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use weft_kinds::views::catalog::Status;
use weft_kinds::world::{World, WorldDelta};

use super::stamp::Stamps;
use super::view::{Identity, View};

mod moved;

use moved::{is_server, moved};

/// What a query's answer depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    /// The names and tags of a namespace's services.
    Services(Arc<str>),
    /// A service's instances, not their health. By slug.
    Catalog(Arc<str>, Arc<str>),
    /// A service's instances with their checks.
    Health(Arc<str>, Arc<str>),
    /// The list of nodes.
    Nodes,
    /// A node and the instances on it.
    Node(Arc<str>),
    /// Its checks, and those of the instances on it.
    NodeHealth(Arc<str>),
    /// Any check.
    Checks,
    /// Those in one state.
    State(Status),
    /// Any instance of a namespace, its node or its checks.
    Instances(Arc<str>),
    /// What speaks Connect for a service, not its health. By slug.
    Connect(Arc<str>, Arc<str>),
    /// The same with its checks.
    ConnectHealth(Arc<str>, Arc<str>),
    /// Nothing that ever changes.
    Still,
}

/// The table. One per door.
#[derive(Debug)]
pub struct Indexes {
    own: Arc<Identity>,
    state: Mutex<State>,
    /// The revision that reads here show.
    reached: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    world: Arc<World>,
    topics: HashMap<Topic, Kept>,
    /// The index of what has not changed since this.
    base: u64,
    /// The index of services and nodes that are not there: when the last one went.
    gone: u64,
    stamps: Stamps,
}

/// What is known of a topic. Most have nobody who waits.
#[derive(Debug)]
struct Kept {
    index: u64,
    moves: Option<watch::Sender<u64>>,
}

/// A wait for one topic. Letting go of the last one lets go of a topic that is not there.
#[derive(Debug)]
pub struct Subscription {
    moves: Option<watch::Receiver<u64>>,
    topic: Topic,
    indexes: Arc<Indexes>,
}

// === impl Subscription ===

impl Subscription {
    /// Resolves when the index moved since the last call. Cancel-safe.
    pub async fn moved(&mut self) {
        let gone = match &mut self.moves {
            Some(moves) => moves.changed().await.is_err(),
            None => true,
        };
        if gone {
            std::future::pending::<()>().await;
        }
    }

    /// Whether the index has not moved since the last call of [`Subscription::moved`], or since the
    /// subscription.
    pub fn is_still(&self) -> bool {
        self.moves.as_ref().is_some_and(|moves| moves.has_changed().is_ok_and(|moved| !moved))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.moves = None;
        let mut state = self.indexes.state();
        let Some(kept) = state.topics.get_mut(&self.topic) else { return };
        if kept.moves.as_ref().is_some_and(|moves| moves.receiver_count() > 0) {
            return;
        }
        kept.moves = None;
        let index = kept.index;
        if state.may_let_go(&self.indexes.own, &self.topic, index) {
            state.topics.remove(&self.topic);
        }
    }
}

// === impl Indexes ===

impl Indexes {
    /// Every answer counts as changed at the World's revision, so that a client that knew an
    /// older one looks again.
    pub fn new(own: Arc<Identity>, world: Arc<World>) -> Self {
        let base = world.revision().max(1);
        let stamps = Stamps::since(base);
        let state = State { world, topics: HashMap::new(), base, gone: base, stamps };
        Self { own, state: Mutex::new(state), reached: watch::Sender::new(base) }
    }

    /// Waits until reads show everything up to a revision: read your own writes. Cancel-safe.
    pub async fn reached(&self, revision: u64) {
        // The table itself holds the sender, so this cannot fail.
        let _ = self.reached.subscribe().wait_for(|now| *now >= revision).await;
    }

    /// Up to which revision everything is known. To be read before what it is about.
    pub fn head(&self) -> u64 {
        *self.reached.borrow()
    }

    /// What is true now, and since when the topic's answer is as it is.
    pub fn read(&self, topic: &Topic) -> (View, u64) {
        let state = self.state();
        let view = state.view(&self.own);
        let index = state.index(&self.own, topic);
        (view, index)
    }

    pub fn view(&self) -> View {
        self.state().view(&self.own)
    }

    /// Tells when the topic's index moves. To miss nothing, subscribe before reading.
    pub fn subscribe(self: &Arc<Self>, topic: &Topic) -> Subscription {
        let mut state = self.state();
        let index = state.index(&self.own, topic);
        let kept = state.topics.entry(topic.clone()).or_insert(Kept { index, moves: None });
        let moves = kept.moves.get_or_insert_with(|| watch::Sender::new(index)).subscribe();
        drop(state);
        Subscription { moves: Some(moves), topic: topic.clone(), indexes: self.clone() }
    }

    /// How many topics are kept, for metrics and tests.
    pub fn len(&self) -> usize {
        self.state().topics.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes over the next World. Without a delta (some were missed) everything moves.
    pub fn advance(&self, world: Arc<World>, delta: Option<&WorldDelta>) {
        let now = world.revision().max(1);
        let before = self.view();
        let after = View::new(world.clone(), self.own.clone());
        let Some(delta) = delta else {
            let mut state = self.state();
            state.world = world;
            state.base = now;
            state.gone = now;
            state.stamps = Stamps::since(now);
            for kept in state.topics.values_mut() {
                kept.move_on(now);
            }
            drop(state);
            self.reached.send_replace(now);
            return;
        };
        let mut stamps = before.stamps.clone();
        let (moved, left) = moved(&before, &after, delta, &mut stamps);
        let mut state = self.state();
        state.world = world;
        state.stamps = stamps;
        for topic in moved {
            let there = match &topic {
                Topic::Connect(..) | Topic::ConnectHealth(..) => !left.contains(&topic),
                _ => exists(&after.own, &after.world, &topic),
            };
            state.bump(topic, now, there);
        }
        drop(state);
        self.reached.send_replace(now);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl State ===

impl State {
    fn view(&self, own: &Arc<Identity>) -> View {
        View { world: self.world.clone(), own: own.clone(), stamps: self.stamps.clone() }
    }

    fn index(&self, own: &Identity, topic: &Topic) -> u64 {
        if let Some(kept) = self.topics.get(topic) {
            return kept.index;
        }
        if exists(own, &self.world, topic) { self.base } else { self.gone }
    }

    /// Whether a topic that nobody waits for may be forgotten: its index is not less without.
    fn may_let_go(&self, own: &Identity, topic: &Topic, index: u64) -> bool {
        match topic {
            Topic::Connect(..) | Topic::ConnectHealth(..) => index <= self.gone,
            _ => !exists(own, &self.world, topic),
        }
    }

    /// Moves a topic on. One of something that is gone, and that nobody waits for, is let go.
    fn bump(&mut self, topic: Topic, now: u64, there: bool) {
        if !there {
            self.gone = now;
        }
        let kept = self.topics.entry(topic.clone()).or_insert(Kept { index: now, moves: None });
        kept.move_on(now);
        if !there && kept.moves.is_none() {
            self.topics.remove(&topic);
        }
    }
}

impl Kept {
    fn move_on(&mut self, now: u64) {
        self.index = now;
        if let Some(moves) = &self.moves {
            moves.send_replace(now);
        }
    }
}

// === helpers ===

/// Whether what the topic is about is there; the index of what is not is `gone`. What speaks
/// Connect for a name only a look at every registration would say: none counts as there unless it
/// is known to have changed.
fn exists(own: &Identity, world: &World, topic: &Topic) -> bool {
    match topic {
        Topic::Services(_)
        | Topic::Nodes
        | Topic::Checks
        | Topic::State(_)
        | Topic::Instances(_)
        | Topic::Still => true,
        Topic::Connect(..) | Topic::ConnectHealth(..) => false,
        Topic::Catalog(ns, slug) | Topic::Health(ns, slug) => {
            is_server(ns, slug) || !world.instances(ns, slug).is_empty()
        }
        Topic::Node(name) | Topic::NodeHealth(name) => {
            *name == own.node.node
                || world.catalog().node(name).is_some()
                || world.catalog().on_node(name).next().is_some()
        }
    }
}

#[cfg(test)]
mod tests;
