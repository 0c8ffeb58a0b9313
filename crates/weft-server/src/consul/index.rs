// SPDX-License-Identifier: Apache-2.0
//! Consul's index: for each thing that a query may ask, the revision at which the answer last
//! changed. A blocked query waits for its own topic alone; a change of anything else neither
//! wakes it nor moves its index.
//!
//! One task feeds it the pump's Worlds ([`Indexes::advance`]); endpoints read World and index
//! together, so an index is never newer than the data it came with.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use weft_base::name::ServiceKey;
use weft_kinds::world::{ReadKey, World, WorldDelta};

use super::stamp::Stamps;
use super::view::{CONSUL_SERVICE, DEFAULT_NAMESPACE, Entry, Identity, View};

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
    /// Its checks.
    NodeHealth(Arc<str>),
    /// Any check.
    Checks,
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
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.moves = None;
        let mut state = self.indexes.state();
        let there = exists(&self.indexes.own, &state.world, &self.topic);
        let Some(kept) = state.topics.get_mut(&self.topic) else { return };
        if kept.moves.as_ref().is_some_and(|moves| moves.receiver_count() > 0) {
            return;
        }
        kept.moves = None;
        if !there {
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
        let moved = moved(&before, &after, delta, &mut stamps);
        let mut state = self.state();
        state.world = world;
        state.stamps = stamps;
        for topic in moved {
            state.bump(topic, now, &after);
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

    /// Moves a topic on. One of something that is gone, and that nobody waits for, is let go.
    fn bump(&mut self, topic: Topic, now: u64, after: &View) {
        let there = exists(&after.own, &after.world, &topic);
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

/// Whether what the topic is about is there; the index of what is not is `gone`.
fn exists(own: &Identity, world: &World, topic: &Topic) -> bool {
    match topic {
        Topic::Services(_) | Topic::Nodes | Topic::Checks | Topic::Still => true,
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

/// The topics whose answer differs between two looks.
fn moved(before: &View, after: &View, delta: &WorldDelta, stamps: &mut Stamps) -> Vec<Topic> {
    let mut services: BTreeSet<ServiceKey> = BTreeSet::new();
    let mut nodes: BTreeSet<Arc<str>> = BTreeSet::new();
    for key in delta.iter() {
        match key {
            ReadKey::Instances(service) | ReadKey::Catalog(service) => {
                services.insert(service.clone());
            }
            ReadKey::CatalogNode(name) => {
                nodes.insert(name.clone());
            }
            ReadKey::Node(name) => {
                nodes.insert(name.clone());
                services.extend(on_node(before, name));
                services.extend(on_node(after, name));
            }
            _ => {}
        }
    }
    let mut out = Vec::new();
    let mut checks = false;
    for service in &services {
        let (was, is) = (entries(before, service), entries(after, service));
        if was != is {
            stamps.entries(&was, &is, after.world.revision());
            moved_service((&was, &is), (before, after), service, &mut nodes, &mut out);
            checks = true;
        }
    }
    for node in nodes {
        checks |= moved_node(before, after, node, stamps, &mut out);
    }
    if checks {
        out.push(Topic::Checks);
    }
    let names: BTreeSet<Arc<str>> =
        services.iter().map(|s| Arc::from(s.namespace.as_str())).collect();
    for ns in names {
        if services_differ(before, after, &ns, &services) {
            out.push(Topic::Services(ns));
        }
    }
    out
}

fn entries(view: &View, service: &ServiceKey) -> Vec<Entry> {
    view.entries_by_slug(service.namespace.as_str(), service.name.as_str())
}

fn moved_service(
    (was, is): (&[Entry], &[Entry]),
    (before, after): (&View, &View),
    service: &ServiceKey,
    nodes: &mut BTreeSet<Arc<str>>,
    out: &mut Vec<Topic>,
) {
    let (ns, slug): (Arc<str>, Arc<str>) =
        (service.namespace.as_str().into(), service.name.as_str().into());
    for entry in was.iter().chain(is) {
        let name = &entry.node.node;
        let on = |entries: &[Entry]| entries.iter().any(|e| e.node.node == *name);
        // A node may be listed only for the pods on it.
        if on(was) != on(is) && before.has_node(name) != after.has_node(name) {
            out.push(Topic::Nodes);
        }
        nodes.insert(name.clone());
    }
    out.push(Topic::Health(ns.clone(), slug.clone()));
    if !same_instances(was, is) {
        out.push(Topic::Catalog(ns, slug));
    }
}

fn moved_node(
    before: &View,
    after: &View,
    node: Arc<str>,
    stamps: &mut Stamps,
    out: &mut Vec<Topic>,
) -> bool {
    let (was, is) = (before.node(&node), after.node(&node));
    let known = |view: &View| view.world.catalog().node(&node).is_some();
    let now = after.world.revision();
    let own = node == after.own.node.node;
    if was != is || (!own && known(before) != known(after)) {
        stamps.node_changed(&node, own || known(before), own || known(after), now);
        out.push(Topic::Nodes);
    }
    // A node's own topics follow anything on it: fewer are asked than services.
    out.push(Topic::Node(node.clone()));
    out.push(Topic::NodeHealth(node.clone()));
    let (was, is) = (before.node_checks(&node), after.node_checks(&node));
    stamps.checks(&was, &is, now);
    if was != is && own {
        // The servers' own service is on this node.
        out.push(Topic::Health(DEFAULT_NAMESPACE.into(), CONSUL_SERVICE.into()));
    }
    was != is
}

/// Whether this is the service that every datacentre lists.
fn is_server(ns: &str, slug: &str) -> bool {
    ns == DEFAULT_NAMESPACE && slug == CONSUL_SERVICE
}

fn same_instances(was: &[Entry], is: &[Entry]) -> bool {
    was.len() == is.len()
        && was.iter().zip(is).all(|(a, b)| a.node == b.node && a.service == b.service)
}

/// Whether names or tags of any touched service differ.
fn services_differ(before: &View, after: &View, ns: &str, touched: &BTreeSet<ServiceKey>) -> bool {
    let shown = |view: &View, service: &ServiceKey| -> BTreeSet<(Arc<str>, Vec<Arc<str>>)> {
        let entries = view.entries_by_slug(ns, service.name.as_str());
        let mut out: std::collections::BTreeMap<Arc<str>, BTreeSet<Arc<str>>> =
            std::collections::BTreeMap::new();
        for entry in entries {
            let tags = out.entry(entry.service.service.clone()).or_default();
            tags.extend(entry.service.tags.iter().cloned());
        }
        out.into_iter().map(|(name, tags)| (name, tags.into_iter().collect())).collect()
    };
    touched
        .iter()
        .filter(|s| s.namespace.as_str() == ns)
        .any(|service| shown(before, service) != shown(after, service))
}

fn on_node(view: &View, node: &str) -> Vec<ServiceKey> {
    let here = view.world.catalog().on_node(node);
    here.filter_map(|(key, r)| {
        ServiceKey::new(&key.namespace, &weft_base::name::slug(&r.service)).ok()
    })
    .collect()
}

#[cfg(test)]
mod tests;
