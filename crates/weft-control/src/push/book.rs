// SPDX-License-Identifier: Apache-2.0
//! The pusher's book: every resource in its wire form, and for every node what it should hold and
//! what it said it holds. Plain state behind the pusher's lock; no await, no encoding in here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;
use weft_model::{Resource, ResourceName, Root};
use weft_xds::server::{Peer, Refusal, Sent, Session, SessionKey};
use weft_xds::{Entry, NodeId, NodeInfo, NodeKind, Rejected, View};

use super::delta::Rescope;
use super::status::{ProxyStatus, Refused};
use crate::mesh::inbound_root;

/// Nodes remembered, connected or not.
const NODES_MAX: usize = 20_000;
/// A disconnected node is shown this long.
const REMEMBER_MS: u64 = 10 * 60 * 1_000;

/// Decides whom a stream may speak for and what a node sees. The assembly implements it over the
/// registry's pods and control's scoping.
pub trait Nodes: Send + Sync + 'static {
    /// Whether the authenticated peer may speak for this node.
    ///
    /// # Errors
    /// A sentence that says why not.
    fn admit(&self, peer: &Peer, node: &NodeId) -> Result<(), String>;

    /// What the node sees; `None` when there is no such node (any more, or yet: an admitted
    /// stream waits for it).
    fn scope(&self, node: &NodeId) -> Option<Arc<dyn NodeScope>>;
}

/// What one node sees. Pure: asked once for each changed resource.
pub trait NodeScope: fmt::Debug + Send + Sync + 'static {
    fn sees(&self, name: &ResourceName, resource: &Resource) -> bool;
}

type Resources = imbl::OrdMap<ResourceName, Arc<Entry>>;

#[derive(Debug, Default)]
pub(super) struct Book {
    generation: u64,
    /// Whether the first change is in. Before it nothing is offered: a proxy that runs from its
    /// last good table would lose it.
    ready: bool,
    resources: Resources,
    nodes: BTreeMap<NodeId, Node>,
    sessions: u64,
    /// Counts rescopes, so that a scope asked before one is not used after it.
    scope_epoch: u64,
}

#[derive(Debug)]
struct Node {
    info: NodeInfo,
    peer: Peer,
    /// `None` while the Mesh does not know the node yet: its stream waits.
    scope: Option<Arc<dyn NodeScope>>,
    /// What it should hold.
    view: Arc<View>,
    session: Option<OpenSession>,
    since_ms: u64,
    reason: Option<Arc<str>>,
    sent: Option<u64>,
    /// What it said it holds. Survives the stream, for people; a new stream starts at `None`.
    acked: Option<Arc<View>>,
    acked_at_ms: Option<u64>,
    rejected: Vec<Rejected>,
    /// Its own listeners that it took at least once. Outlives its streams: a ready pod must not
    /// become unready because a stream broke, the server restarted it or a listener changed.
    accepted: BTreeSet<Root>,
    transactions: u64,
    bytes: u64,
}

#[derive(Debug)]
struct OpenSession {
    number: u64,
    views: watch::Sender<Option<Arc<View>>>,
}

/// A delta in wire form.
#[derive(Debug, Default)]
pub(super) struct Change {
    pub generation: u64,
    /// Each name once.
    pub upserts: Vec<(ResourceName, Arc<Entry>)>,
    pub removes: BTreeSet<ResourceName>,
    /// New scopes; `None`: the node is gone, or not there yet.
    pub scopes: Vec<(NodeId, Option<Arc<dyn NodeScope>>)>,
}

// === impl Book ===

impl Book {
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether this very form is there already.
    pub(super) fn has(&self, name: &ResourceName, entry: &Entry) -> bool {
        self.resources.get(name).is_some_and(|have| **have == *entry)
    }

    pub(super) fn scope_epoch(&self) -> u64 {
        self.scope_epoch
    }

    /// The nodes of a rescope.
    pub(super) fn concerned(&mut self, rescope: &Rescope) -> Vec<NodeId> {
        self.scope_epoch += u64::from(*rescope != Rescope::Nobody);
        self.nodes.keys().filter(|node| rescope.includes(node)).cloned().collect()
    }

    /// Applies a change to the whole and to every node's view.
    pub(super) fn apply(&mut self, change: Change) {
        let Change { generation, mut upserts, removes, scopes } = change;
        self.generation = self.generation.max(generation);
        let mut removed = self.remove(removes);
        upserts.retain(|(name, entry)| !self.has(name, entry));
        for (name, entry) in &upserts {
            removed.remove(name);
            self.resources.insert(name.clone(), entry.clone());
        }
        let rescoped = self.rescope(scopes);
        let generation = self.generation;
        let first = !std::mem::replace(&mut self.ready, true);
        for (id, node) in &mut self.nodes {
            if let (true, Some(scope)) = (first, &node.scope) {
                let resources = select(&self.resources, &**scope);
                node.begin(generation, resources);
            }
            if node.session.is_none() || rescoped.contains(id) {
                continue;
            }
            node.change(generation, &upserts, &removed);
        }
    }

    /// Takes names out, a root's children with it; returns what was there.
    fn remove(&mut self, removes: BTreeSet<ResourceName>) -> BTreeSet<ResourceName> {
        let mut out = BTreeSet::new();
        for name in removes {
            if name.child.is_empty() {
                let family = self.resources.range(name.clone()..).map(|(n, _)| n);
                out.extend(family.take_while(|n| n.root == name.root).cloned());
            } else if self.resources.contains_key(&name) {
                out.insert(name);
            }
        }
        for name in &out {
            self.resources.remove(name);
        }
        out
    }

    fn rescope(&mut self, scopes: Vec<(NodeId, Option<Arc<dyn NodeScope>>)>) -> BTreeSet<NodeId> {
        let mut done = BTreeSet::new();
        for (id, scope) in scopes {
            let Some(node) = self.nodes.get_mut(&id) else { continue };
            match (scope, node.scope.is_some()) {
                (None, false) => {}
                (None, true) => {
                    // Its session's views end with it.
                    self.nodes.remove(&id);
                }
                (Some(scope), known) => {
                    let resources = rebuild(&node.view.resources, &self.resources, &*scope);
                    node.scope = Some(scope);
                    if known {
                        node.publish(self.generation, resources);
                    } else {
                        node.begin(self.generation, resources);
                    }
                    done.insert(id);
                }
            }
        }
        done
    }

    /// Begins a session; one of the same node that is still open ends.
    pub(super) fn open(
        &mut self,
        info: NodeInfo,
        peer: &Peer,
        scope: Option<Arc<dyn NodeScope>>,
        now_ms: u64,
    ) -> Result<Session, Refusal> {
        let id = info.id.clone();
        self.forget(now_ms.saturating_sub(REMEMBER_MS));
        if self.nodes.len() >= NODES_MAX && !self.nodes.contains_key(&id) {
            let text = format!("this server serves {NODES_MAX} proxies and no more");
            return Err(Refusal::Unavailable(text));
        }
        self.sessions += 1;
        let number = self.sessions;
        let resources = scope.as_ref().map(|s| select(&self.resources, &**s));
        let offer = self.ready && resources.is_some();
        let resources = resources.unwrap_or_default();
        let view = Arc::new(View { generation: self.generation, resources, ..View::default() });
        let (views, rx) = watch::channel(offer.then(|| view.clone()));
        let node = Node {
            info,
            peer: peer.clone(),
            scope,
            view,
            session: Some(OpenSession { number, views }),
            since_ms: now_ms,
            reason: None,
            sent: None,
            acked: None,
            acked_at_ms: None,
            rejected: Vec::new(),
            accepted: self.nodes.get(&id).map(|old| old.accepted.clone()).unwrap_or_default(),
            transactions: 0,
            bytes: 0,
        };
        self.nodes.insert(id.clone(), node);
        Ok(Session { key: SessionKey { node: id, number }, views: rx })
    }

    /// Forgets those that have been away since before.
    fn forget(&mut self, before_ms: u64) {
        self.nodes.retain(|_, node| node.session.is_some() || node.since_ms >= before_ms);
    }

    /// The node of a session that is still the node's own.
    fn of(&mut self, key: &SessionKey) -> Option<&mut Node> {
        let node = self.nodes.get_mut(&key.node)?;
        let current = node.session.as_ref().is_some_and(|s| s.number == key.number);
        current.then_some(node)
    }

    pub(super) fn sent(&mut self, key: &SessionKey, sent: Sent) {
        if let Some(node) = self.of(key) {
            node.sent = Some(sent.generation);
            node.transactions += 1;
            node.bytes += u64::try_from(sent.bytes).unwrap_or(u64::MAX);
        }
    }

    /// Returns whether something is refused that was not refused before.
    pub(super) fn answered(
        &mut self,
        key: &SessionKey,
        view: Arc<View>,
        rejected: Vec<Rejected>,
        now_ms: u64,
    ) -> bool {
        let Some(node) = self.of(key) else { return false };
        node.accept(&view, &rejected);
        node.acked = Some(view);
        node.acked_at_ms = Some(now_ms);
        let new = rejected.iter().any(|r| !node.rejected.contains(r));
        node.rejected = rejected;
        new
    }

    pub(super) fn closed(&mut self, key: &SessionKey, why: &str, now_ms: u64) {
        if let Some(node) = self.of(key) {
            node.session = None;
            node.since_ms = now_ms;
            node.reason = Some(why.into());
            // It is rebuilt when the node comes back.
            node.view = Arc::new(View { generation: node.view.generation, ..View::default() });
        }
    }

    /// Connected nodes that see `root` (any root, when `None`) and have not answered everything
    /// up to `generation`.
    pub(super) fn behind(&self, root: Option<&Root>, generation: u64) -> Vec<NodeId> {
        let late = self.nodes.iter().filter(|(_, node)| {
            // A node that the Mesh does not know (yet) would be waited for in vain.
            let listens = node.session.is_some() && node.scope.is_some();
            listens && !node.holds(generation) && node.may_hold(root)
        });
        late.map(|(id, _)| id.clone()).collect()
    }

    /// Whether the pod's sidecar has ever taken the inbound listeners of these ports.
    pub(super) fn inbound_acked(&self, namespace: &str, pod: &str, ports: &[u16]) -> bool {
        let Ok(id) = NodeId::new(NodeKind::Sidecar, namespace, pod) else { return false };
        let Some(node) = self.nodes.get(&id) else { return false };
        let taken = |port: &u16| node.accepted.contains(&inbound_root(namespace, pod, *port));
        node.acked_once() && ports.iter().all(taken)
    }

    pub(super) fn status(&self) -> Vec<ProxyStatus> {
        self.nodes.iter().map(|(id, node)| node.status(id)).collect()
    }

    pub(super) fn connected(&self) -> usize {
        self.nodes.values().filter(|node| node.session.is_some()).count()
    }

    pub(super) fn resources(&self) -> Resources {
        self.resources.clone()
    }

    pub(super) fn view(&self, id: &NodeId) -> Option<Arc<View>> {
        self.nodes.get(id).map(|node| node.view.clone())
    }
}

// === impl Node ===

impl Node {
    fn change(
        &mut self,
        generation: u64,
        upserts: &[(ResourceName, Arc<Entry>)],
        removed: &BTreeSet<ResourceName>,
    ) {
        let Some(scope) = &self.scope else { return };
        // Cloning a persistent map is one reference count.
        let mut resources = self.view.resources.clone();
        for name in removed {
            resources.remove(name);
        }
        for (name, entry) in upserts {
            if scope.sees(name, &entry.resource) {
                resources.insert(name.clone(), entry.clone());
            } else {
                resources.remove(name);
            }
        }
        self.publish(generation, resources);
    }

    /// Offers the first view, also when it is empty.
    fn begin(&mut self, generation: u64, resources: Resources) {
        self.view = Arc::new(View { generation, resources, ..View::default() });
        if let Some(session) = &self.session {
            session.views.send_replace(Some(self.view.clone()));
        }
    }

    /// Offers a view to the node's stream when it differs from the last one.
    fn publish(&mut self, generation: u64, resources: Resources) {
        let Some(session) = &self.session else { return };
        if self.view.resources.diff(&resources).next().is_none() {
            return;
        }
        self.view = Arc::new(View { generation, resources, ..View::default() });
        session.views.send_replace(Some(self.view.clone()));
    }

    /// Whether it answered everything that concerns it up to a generation.
    fn holds(&self, generation: u64) -> bool {
        let acked = self.acked.as_ref();
        acked.is_some_and(|a| a.generation >= generation || Arc::ptr_eq(a, &self.view))
    }

    fn accept(&mut self, view: &View, rejected: &[Rejected]) {
        let first = Root::Listener("".into()).own();
        let listeners = view.resources.range(first..).map(|(name, _)| name);
        let listeners: Vec<&ResourceName> = listeners
            .take_while(|name| matches!(name.root, Root::Listener(_)))
            .filter(|name| name.child.is_empty())
            .collect();
        self.accepted.retain(|root| listeners.iter().any(|name| name.root == *root));
        for name in listeners {
            let text = name.to_string();
            if rejected.iter().all(|r| r.name != text) {
                self.accepted.insert(name.root.clone());
            }
        }
    }

    fn acked_once(&self) -> bool {
        self.acked.is_some() || !self.accepted.is_empty()
    }

    fn may_hold(&self, root: Option<&Root>) -> bool {
        let Some(root) = root else { return true };
        let own = root.own();
        let has = |view: &View| view.resources.contains_key(&own);
        // Before its first answer, what it holds from before is unknown.
        has(&self.view) || self.acked.as_ref().is_none_or(|a| has(a))
    }

    fn status(&self, id: &NodeId) -> ProxyStatus {
        let connected = self.session.is_some();
        ProxyStatus {
            node: id.to_string(),
            connected,
            since_ms: self.since_ms,
            reason: self.reason.clone(),
            address: self.peer.address,
            identity: self.peer.spiffe_id.clone(),
            release: self.info.release.clone(),
            model_version: self.info.model_version,
            resources: self.view.resources.len(),
            desired_generation: self.view.generation,
            sent_generation: self.sent,
            acked_generation: self.acked.as_ref().map(|a| a.generation),
            acked_at_ms: self.acked_at_ms,
            synced: connected && self.acked.as_ref().is_some_and(|a| Arc::ptr_eq(a, &self.view)),
            transactions: self.transactions,
            bytes: self.bytes,
            rejected: self.rejected.iter().map(Refused::from).collect(),
        }
    }
}

/// A node's part of everything. Whichever is smaller is done: adding what it sees to nothing, or
/// taking what it does not see out of everything, which shares the rest.
fn select(all: &Resources, scope: &dyn NodeScope) -> Resources {
    let sees = |(name, entry): &(&ResourceName, &Arc<Entry>)| scope.sees(name, &entry.resource);
    let seen = all.iter().filter(sees).count();
    if seen * 2 < all.len() {
        return all.iter().filter(sees).map(|(n, e)| (n.clone(), e.clone())).collect();
    }
    let mut out = all.clone();
    for (name, _) in all.iter().filter(|item| !sees(item)) {
        out.remove(name);
    }
    out
}

/// The same from the node's last view, so that both share what did not change.
fn rebuild(last: &Resources, all: &Resources, scope: &dyn NodeScope) -> Resources {
    let wanted = select(all, scope);
    let mut out = last.clone();
    for item in last.diff(&wanted) {
        match item {
            imbl::ordmap::DiffItem::Add(name, entry)
            | imbl::ordmap::DiffItem::Update { new: (name, entry), .. } => {
                out.insert(name.clone(), entry.clone());
            }
            imbl::ordmap::DiffItem::Remove(name, _) => {
                out.remove(name);
            }
        }
    }
    out
}
