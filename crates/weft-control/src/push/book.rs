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
use super::hold::{Hold, HoldLimits, Whole};
use super::node::{Node, OpenSession};
use super::status::ProxyStatus;
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

    /// Whether the node can ask for hosts by name. One that cannot is sent all that it sees.
    fn asks(&self) -> bool {
        false
    }

    /// Of what it sees: whether it is sent this root without asking, however much there is.
    fn keeps(&self, _root: &Root) -> bool {
        true
    }
}

pub(super) type Resources = imbl::OrdMap<ResourceName, Arc<Entry>>;

#[derive(Debug, Default)]
pub(super) struct Book {
    generation: u64,
    /// Whether the first change is in. Before it nothing is offered: a proxy that runs from its
    /// last good table would lose it.
    ready: bool,
    whole: Whole,
    nodes: BTreeMap<NodeId, Node>,
    sessions: u64,
    /// Counts names that nodes asked for.
    askings: u64,
    /// Counts rescopes, so that a scope asked before one is not used after it.
    scope_epoch: u64,
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
    pub(super) fn new(limits: HoldLimits) -> Self {
        Self { whole: Whole::new(limits), ..Self::default() }
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
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
        let Change { generation, upserts, removes, scopes } = change;
        self.generation = self.generation.max(generation);
        let touched = self.whole.apply(upserts, removes);
        let rescoped = self.rescope(scopes);
        let generation = self.generation;
        let first = !std::mem::replace(&mut self.ready, true);
        for (id, node) in &mut self.nodes {
            if first {
                node.begin(generation, &self.whole);
            } else if node.session.is_some() && !rescoped.contains(id) {
                node.change(generation, &touched, &self.whole);
            }
        }
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
                    node.scope = Some(scope);
                    if known {
                        node.rescope(self.generation, &self.whole);
                    } else {
                        node.begin(self.generation, &self.whole);
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
        asks: &BTreeSet<Arc<str>>,
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
        let (views, rx) = watch::channel(None);
        let accepted = self.nodes.get(&id).map(|old| old.accepted.clone()).unwrap_or_default();
        let mut node = Node::new(info, peer.clone(), scope, now_ms);
        node.accepted = accepted;
        node.session = Some(OpenSession { number, views });
        node.hold.ask(asks, &mut self.askings);
        if self.ready {
            node.begin(self.generation, &self.whole);
        }
        self.nodes.insert(id.clone(), node);
        Ok(Session { key: SessionKey { node: id, number }, views: rx })
    }

    /// The node asks for these names now.
    pub(super) fn wanted(&mut self, key: &SessionKey, asks: &BTreeSet<Arc<str>>) {
        let Some(node) = self.nodes.get_mut(&key.node).filter(|node| node.is_of(key)) else {
            return;
        };
        node.hold.ask(asks, &mut self.askings);
        if self.ready {
            node.follow(self.generation, &self.whole);
        }
    }

    /// Forgets those that have been away since before.
    fn forget(&mut self, before_ms: u64) {
        self.nodes.retain(|_, node| node.session.is_some() || node.since_ms >= before_ms);
    }

    /// The node of a session that is still the node's own.
    fn of(&mut self, key: &SessionKey) -> Option<&mut Node> {
        self.nodes.get_mut(&key.node).filter(|node| node.is_of(key))
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
            node.hold = Hold::default();
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
        self.whole.resources().clone()
    }

    pub(super) fn view(&self, id: &NodeId) -> Option<Arc<View>> {
        self.nodes.get(id).map(|node| node.view.clone())
    }
}
