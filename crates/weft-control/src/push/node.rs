// SPDX-License-Identifier: Apache-2.0
//! One node in the pusher's book: what it should hold, what it said it holds. No await, no lock.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;
use weft_model::{NodeFeatures, ResourceName, Root};
use weft_xds::server::{Peer, SessionKey};
use weft_xds::{Entry, NodeId, NodeInfo, Rejected, View};

use super::book::{NodeScope, Resources};
use super::hold::{Hold, Touched, Turn, Whole};
use super::status::{ProxyStatus, Refused};

#[derive(Debug)]
pub(super) struct Node {
    info: NodeInfo,
    /// What it knows: the rest is said to it in another way.
    features: NodeFeatures,
    peer: Peer,
    /// `None` while the Mesh does not know the node yet: its stream waits.
    pub scope: Option<Arc<dyn NodeScope>>,
    pub hold: Hold,
    /// What it should hold.
    pub view: Arc<View>,
    pub session: Option<OpenSession>,
    pub since_ms: u64,
    pub reason: Option<Arc<str>>,
    pub sent: Option<u64>,
    /// What it said it holds. Survives the stream, for people; a new stream starts at `None`.
    pub acked: Option<Arc<View>>,
    pub acked_at_ms: Option<u64>,
    pub rejected: Vec<Rejected>,
    /// Its own listeners that it took at least once. Outlives its streams: a ready pod must not
    /// become unready because a stream broke, the server restarted it or a listener changed.
    pub accepted: BTreeSet<Root>,
    pub transactions: u64,
    pub bytes: u64,
}

#[derive(Debug)]
pub(super) struct OpenSession {
    pub number: u64,
    pub views: watch::Sender<Option<Arc<View>>>,
}

// === impl Node ===

impl Node {
    pub fn new(info: NodeInfo, peer: Peer, scope: Option<Arc<dyn NodeScope>>, now_ms: u64) -> Self {
        Self {
            features: info.known_features(),
            info,
            peer,
            scope,
            hold: Hold::default(),
            view: Arc::default(),
            session: None,
            since_ms: now_ms,
            reason: None,
            sent: None,
            acked: None,
            acked_at_ms: None,
            rejected: Vec::new(),
            accepted: BTreeSet::new(),
            transactions: 0,
            bytes: 0,
        }
    }

    /// Whether a session is the node's newest, and open.
    pub fn is_of(&self, key: &SessionKey) -> bool {
        self.session.as_ref().is_some_and(|s| s.number == key.number)
    }

    /// Offers the first view, also when it is empty.
    pub fn begin(&mut self, generation: u64, whole: &Whole) {
        let (Some(scope), true) = (self.scope.clone(), self.session.is_some()) else { return };
        let resources = self.hold.begin(whole, &*scope);
        let resources = self.said(resources);
        self.offer(generation, resources);
    }

    /// Its scope is another one.
    pub fn rescope(&mut self, generation: u64, whole: &Whole) {
        let (Some(scope), true) = (self.scope.clone(), self.session.is_some()) else { return };
        let resources = self.hold.begin(whole, &*scope);
        self.rebuild(generation, resources);
    }

    /// Something changed in the whole.
    pub fn change(&mut self, generation: u64, touched: &[Touched], whole: &Whole) {
        let Some(scope) = self.scope.clone() else { return };
        let scope = &*scope;
        if self.hold.weigh(touched, scope, whole.limits) {
            let resources = self.hold.gather(whole, scope);
            return self.rebuild(generation, resources);
        }
        let turn = match self.hold.is_concerned(touched, scope) {
            true => self.hold.follow(whole, scope),
            false => Turn::default(),
        };
        // Cloning a persistent map is one reference count.
        let mut resources = self.view.resources.clone();
        for Touched { name, new, .. } in touched {
            let sent = |e: &&Arc<Entry>| {
                scope.sees(name, &e.resource) && self.hold.holds(scope, &name.root)
            };
            match new.as_ref().filter(sent) {
                Some(entry) => drop(resources.insert(name.clone(), self.form(entry))),
                None => drop(resources.remove(name)),
            }
        }
        self.turn(&mut resources, &turn, whole, scope);
        self.publish(generation, resources);
    }

    /// It asks for other names than before.
    pub fn follow(&mut self, generation: u64, whole: &Whole) {
        let Some(scope) = self.scope.clone() else { return };
        let turn = self.hold.follow(whole, &*scope);
        let mut resources = self.view.resources.clone();
        self.turn(&mut resources, &turn, whole, &*scope);
        self.publish(generation, resources);
    }

    fn turn(&self, resources: &mut Resources, turn: &Turn, whole: &Whole, scope: &dyn NodeScope) {
        for root in &turn.went {
            let family = resources.range(root.own()..).take_while(|(n, _)| n.root == *root);
            let names: Vec<ResourceName> = family.map(|(n, _)| n.clone()).collect();
            for name in names {
                resources.remove(&name);
            }
        }
        for (name, entry) in turn.came.iter().flat_map(|root| whole.family(root)) {
            if scope.sees(name, &entry.resource) {
                resources.insert(name.clone(), self.form(entry));
            }
        }
    }

    /// A resource as this node can take it.
    fn form(&self, entry: &Arc<Entry>) -> Arc<Entry> {
        entry.for_features(self.features)
    }

    fn said(&self, mut resources: Resources) -> Resources {
        let all = NodeFeatures::all();
        if all.without(self.features).is_empty() {
            return resources;
        }
        let lacking = |e: &Entry| !e.needs.without(self.features).is_empty();
        let other: Vec<(ResourceName, Arc<Entry>)> = resources
            .iter()
            .filter(|(_, entry)| lacking(entry))
            .map(|(name, entry)| (name.clone(), self.form(entry)))
            .collect();
        resources.extend(other);
        resources
    }

    /// Everything anew, sharing with the last view what did not change.
    fn rebuild(&mut self, generation: u64, resources: Resources) {
        let wanted = self.said(resources);
        let mut out = self.view.resources.clone();
        for item in self.view.resources.diff(&wanted) {
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
        self.publish(generation, out);
    }

    /// Offers a view to the node's stream when it differs from the last one.
    fn publish(&mut self, generation: u64, resources: Resources) {
        let same = self.view.resources.diff(&resources).next().is_none()
            && self.view.asked.diff(&self.hold.asked).next().is_none()
            && self.view.partial == self.hold.partial;
        if !same {
            self.offer(generation, resources);
        }
    }

    fn offer(&mut self, generation: u64, resources: Resources) {
        let Some(session) = &self.session else { return };
        let Hold { partial, asked, .. } = &self.hold;
        let (partial, asked) = (*partial, asked.clone());
        self.view = Arc::new(View { generation, resources, partial, asked });
        session.views.send_replace(Some(self.view.clone()));
    }

    /// Whether it answered everything that concerns it up to a generation.
    pub fn holds(&self, generation: u64) -> bool {
        let acked = self.acked.as_ref();
        acked.is_some_and(|a| a.generation >= generation || Arc::ptr_eq(a, &self.view))
    }

    pub fn accept(&mut self, view: &View, rejected: &[Rejected]) {
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

    pub fn acked_once(&self) -> bool {
        self.acked.is_some() || !self.accepted.is_empty()
    }

    pub fn may_hold(&self, root: Option<&Root>) -> bool {
        let Some(root) = root else { return true };
        let own = root.own();
        let has = |view: &View| view.resources.contains_key(&own);
        // Before its first answer, what it holds from before is unknown.
        has(&self.view) || self.acked.as_ref().is_none_or(|a| has(a))
    }

    pub fn status(&self, id: &NodeId) -> ProxyStatus {
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
            partial: self.view.partial,
            asked: self.view.asked.len(),
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
