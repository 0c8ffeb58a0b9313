// SPDX-License-Identifier: Apache-2.0
//! How much of what it may see a node is sent. Everything, while that fits into a proxy; beyond
//! that its own part ([`NodeScope::keeps`]), the hosts that it asks for by name, and the hosts
//! that the routes of all these send requests to.
//!
//! Plain state of the pusher's book: no await, no clock, no encoding.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use weft_base::limits::{PROXY_BACKENDS_MAX, PROXY_BYTES_MAX};
use weft_model::{Resource, ResourceName, Root};
use weft_xds::{Asked, Entry};

use super::book::{NodeScope, Resources};
use crate::compiler::targets_of;

/// What a proxy holds without asking.
#[derive(Clone, Copy, Debug)]
pub struct HoldLimits {
    pub backends_max: usize,
    /// Of everything under hosts, on the wire.
    pub bytes_max: usize,
}

/// Every resource in wire form, and what asking by name needs to find.
#[derive(Debug, Default)]
pub(super) struct Whole {
    resources: Resources,
    /// Routes under hosts.
    routes: BTreeSet<ResourceName>,
    /// What hosts are called beside their own name.
    aliases: BTreeSet<(Arc<str>, Root)>,
    /// Of hosts, and of their instances. Made when a node first asks for an address.
    addresses: OnceLock<BTreeSet<(IpAddr, ResourceName)>>,
    pub limits: HoldLimits,
}

/// One name that changed.
#[derive(Debug)]
pub(super) struct Touched {
    pub name: ResourceName,
    pub old: Option<Arc<Entry>>,
    pub new: Option<Arc<Entry>>,
}

/// One node's part.
#[derive(Debug, Default)]
pub(super) struct Hold {
    /// Of all that it may see, held or not.
    weight: Weight,
    pub partial: bool,
    pub asked: imbl::OrdMap<Arc<str>, Asked>,
    /// Those of them that are addresses.
    addresses: BTreeSet<IpAddr>,
    /// Hosts that it holds beside its own.
    far: BTreeSet<Root>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Weight {
    backends: usize,
    bytes: usize,
}

/// Hosts that a node holds now and did not before, and the reverse.
#[derive(Debug, Default)]
pub(super) struct Turn {
    pub came: Vec<Root>,
    pub went: Vec<Root>,
}

// === impl HoldLimits ===

impl Default for HoldLimits {
    fn default() -> Self {
        Self { backends_max: PROXY_BACKENDS_MAX, bytes_max: PROXY_BYTES_MAX }
    }
}

// === impl Whole ===

impl Whole {
    pub fn new(limits: HoldLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    pub fn resources(&self) -> &Resources {
        &self.resources
    }

    /// Whether this very form is there already.
    pub fn has(&self, name: &ResourceName, entry: &Entry) -> bool {
        self.resources.get(name).is_some_and(|have| **have == *entry)
    }

    /// Applies a change: removals first, a root's children with it.
    pub fn apply(
        &mut self,
        upserts: Vec<(ResourceName, Arc<Entry>)>,
        removes: BTreeSet<ResourceName>,
    ) -> Vec<Touched> {
        let mut removed = self.remove(removes);
        let mut out = Vec::with_capacity(upserts.len() + removed.len());
        for (name, entry) in upserts {
            let gone = removed.remove(&name);
            if gone.is_none() && self.has(&name, &entry) {
                continue;
            }
            let before = self.resources.insert(name.clone(), entry.clone());
            out.push(Touched { name, old: gone.or(before), new: Some(entry) });
        }
        let gone = removed.into_iter();
        out.extend(gone.map(|(name, old)| Touched { name, old: Some(old), new: None }));
        for touched in &out {
            self.index(touched);
        }
        out
    }

    fn remove(
        &mut self,
        removes: BTreeSet<ResourceName>,
    ) -> imbl::OrdMap<ResourceName, Arc<Entry>> {
        let mut out = Resources::default();
        for name in removes {
            if name.child.is_empty() {
                let family = self.family(&name.root);
                out.extend(family.map(|(n, e)| (n.clone(), e.clone())));
            } else if let Some(entry) = self.resources.get(&name) {
                out.insert(name, entry.clone());
            }
        }
        for name in out.keys() {
            self.resources.remove(name);
        }
        out
    }

    fn index(&mut self, touched: &Touched) {
        let Touched { name, old, new } = touched;
        if !matches!(name.root, Root::Host(_)) {
            return;
        }
        if let Some(old) = old {
            for alias in aliases(old) {
                self.aliases.remove(&(alias.clone(), name.root.clone()));
            }
            if let Some(all) = self.addresses.get_mut() {
                for address in addresses(old) {
                    all.remove(&(address, name.clone()));
                }
            }
            self.routes.remove(name);
        }
        if let Some(new) = new {
            self.aliases.extend(aliases(new).iter().map(|a| (a.clone(), name.root.clone())));
            if let Some(all) = self.addresses.get_mut() {
                all.extend(addresses(new).map(|a| (a, name.clone())));
            }
            if matches!(*new.resource, Resource::Route(_)) {
                self.routes.insert(name.clone());
            }
        }
    }

    /// A root with its children.
    pub fn family<'w>(
        &'w self,
        root: &'w Root,
    ) -> impl Iterator<Item = (&'w ResourceName, &'w Arc<Entry>)> {
        self.resources.range(root.own()..).take_while(move |(name, _)| name.root == *root)
    }

    /// The host that a name means to a node, or all hosts that have something at an address.
    fn find(&self, scope: &dyn NodeScope, asked: &Arc<str>) -> Vec<Root> {
        let seen = |root: &Root| {
            let own = root.own();
            self.resources.get(&own).is_some_and(|e| scope.sees(&own, &e.resource))
        };
        let canonical = Root::Host(asked.clone());
        if seen(&canonical) {
            return vec![canonical];
        }
        let first = Root::Listener("".into());
        let aliases = self.aliases.range((asked.clone(), first.clone())..);
        let mut aliases = aliases.take_while(|(alias, _)| alias == asked).map(|(_, root)| root);
        if let Some(root) = aliases.find(|root| seen(root)) {
            return vec![root.clone()];
        }
        let Ok(ip) = asked.parse::<IpAddr>() else { return Vec::new() };
        let addresses = self.addresses().range((ip, first.own())..);
        let roots = addresses.take_while(|(a, _)| *a == ip).map(|(_, name)| &name.root);
        roots.filter(|root| seen(root)).cloned().collect()
    }

    fn addresses(&self) -> &BTreeSet<(IpAddr, ResourceName)> {
        self.addresses.get_or_init(|| {
            let hosts = self.resources.iter().filter(|(n, _)| matches!(n.root, Root::Host(_)));
            hosts.flat_map(|(n, entry)| addresses(entry).map(|a| (a, n.clone()))).collect()
        })
    }

    /// The hosts that a route sends this node's requests to.
    fn targets<'w>(
        &'w self,
        scope: &'w dyn NodeScope,
        route: &'w ResourceName,
    ) -> impl Iterator<Item = &'w Root> {
        let entry = self.resources.get(route).filter(|e| scope.sees(route, &e.resource));
        let route = entry.and_then(|e| match &*e.resource {
            Resource::Route(route) => Some(route),
            _ => None,
        });
        route.into_iter().flat_map(targets_of).map(|target| &target.root)
    }
}

// === impl Hold ===

impl Hold {
    /// Whether a host is sent of those that the node may see.
    pub fn holds(&self, scope: &dyn NodeScope, root: &Root) -> bool {
        !self.partial || scope.keeps(root) || self.far.contains(root)
    }

    /// The node asks for these names. `number` counts askings.
    pub fn ask(&mut self, asks: &BTreeSet<Arc<str>>, number: &mut u64) {
        let over: Vec<Arc<str>> =
            self.asked.keys().filter(|name| !asks.contains(*name)).cloned().collect();
        for name in over {
            self.asked.remove(&name);
        }
        for name in asks {
            if !self.asked.contains_key(name) {
                *number += 1;
                self.asked.insert(name.clone(), Asked { number: *number, exists: false });
            }
        }
        self.addresses = self.asked.keys().filter_map(|name| name.parse().ok()).collect();
    }

    /// Everything anew, for a new scope: what the node is sent.
    pub fn begin(&mut self, whole: &Whole, scope: &dyn NodeScope) -> Resources {
        let sees = |(n, e): &(&ResourceName, &Arc<Entry>)| scope.sees(n, &e.resource);
        self.weight = Weight::default();
        for (name, entry) in whole.resources.iter().filter(sees) {
            self.weight.add(name, entry);
        }
        self.settle(scope, whole.limits);
        self.gather(whole, scope)
    }

    /// Everything that the node is sent.
    pub fn gather(&mut self, whole: &Whole, scope: &dyn NodeScope) -> Resources {
        self.follow(whole, scope);
        let all = &whole.resources;
        let sent = |(name, entry): &(&ResourceName, &Arc<Entry>)| {
            self.holds(scope, &name.root) && scope.sees(name, &entry.resource)
        };
        // Whichever is smaller is done: adding what is sent to nothing, or taking what is not out
        // of everything, which shares the rest.
        let count = all.iter().filter(sent).count();
        if count * 2 < all.len() {
            return all.iter().filter(sent).map(|(n, e)| (n.clone(), e.clone())).collect();
        }
        let mut out = all.clone();
        for (name, _) in all.iter().filter(|item| !sent(item)) {
            out.remove(name);
        }
        out
    }

    /// Weighs a change; whether the node is to be sent everything now, or a part now.
    pub fn weigh(
        &mut self,
        touched: &[Touched],
        scope: &dyn NodeScope,
        limits: HoldLimits,
    ) -> bool {
        for Touched { name, old, new } in touched {
            if let Some(entry) = old.as_ref().filter(|e| scope.sees(name, &e.resource)) {
                self.weight.take(name, entry);
            }
            if let Some(entry) = new.as_ref().filter(|e| scope.sees(name, &e.resource)) {
                self.weight.add(name, entry);
            }
        }
        self.settle(scope, limits)
    }

    fn settle(&mut self, scope: &dyn NodeScope, limits: HoldLimits) -> bool {
        let Weight { backends, bytes } = self.weight;
        let over = backends > limits.backends_max || bytes > limits.bytes_max;
        let room = |limit: usize| limit - limit / 10;
        let fits = backends <= room(limits.backends_max) && bytes <= room(limits.bytes_max);
        // Not to and fro at the limit: everything is sent again only when there is room.
        let partial = scope.asks() && (over || (self.partial && !fits));
        std::mem::replace(&mut self.partial, partial) != partial
    }

    /// Whether a change may move hosts into or out of what is held.
    pub fn is_concerned(&self, touched: &[Touched], scope: &dyn NodeScope) -> bool {
        touched.iter().any(|Touched { name, old, new }| {
            let Root::Host(host) = &name.root else { return false };
            [old, new].into_iter().flatten().any(|entry| match &*entry.resource {
                // With a host its instances come within reach, or go out of it.
                Resource::Host(_) => !self.addresses.is_empty() || self.asks_for(host, entry),
                Resource::Endpoints(_) => self.asks_for(host, entry),
                Resource::Route(_) => self.partial && self.holds(scope, &name.root),
                _ => false,
            })
        })
    }

    fn asks_for(&self, name: &str, entry: &Entry) -> bool {
        !self.asked.is_empty()
            && (self.asked.contains_key(name)
                || aliases(entry).iter().any(|a| self.asked.contains_key(&**a))
                || addresses(entry).any(|a| self.addresses.contains(&a)))
    }

    /// Finds anew what the asked names mean, and which hosts follow from them and from routes.
    pub fn follow(&mut self, whole: &Whole, scope: &dyn NodeScope) -> Turn {
        let mut open: Vec<Root> = Vec::new();
        let mut found = Vec::new();
        for (name, asked) in &self.asked {
            let roots = whole.find(scope, name);
            if asked.exists == roots.is_empty() {
                found.push((name.clone(), Asked { exists: !roots.is_empty(), ..*asked }));
            }
            open.extend(roots);
        }
        self.asked.extend(found);
        let mut far = BTreeSet::new();
        if self.partial {
            let kept = whole.routes.iter().filter(|route| scope.keeps(&route.root));
            open.extend(kept.flat_map(|route| whole.targets(scope, route)).cloned());
            while let Some(root) = open.pop() {
                if scope.keeps(&root) || !far.insert(root.clone()) {
                    continue;
                }
                let routes = whole.routes.range(root.own()..).take_while(|r| r.root == root);
                open.extend(routes.flat_map(|route| whole.targets(scope, route)).cloned());
            }
        }
        let came = far.difference(&self.far).cloned().collect();
        let went = self.far.difference(&far).cloned().collect();
        self.far = far;
        Turn { came, went }
    }
}

// === impl Weight ===

impl Weight {
    fn of(name: &ResourceName, entry: &Entry) -> Self {
        match &name.root {
            Root::Listener(_) => Self::default(),
            Root::Host(_) => Self {
                backends: usize::from(matches!(*entry.resource, Resource::Backend(_))),
                bytes: entry.size,
            },
        }
    }

    fn add(&mut self, name: &ResourceName, entry: &Entry) {
        let Self { backends, bytes } = Self::of(name, entry);
        self.backends += backends;
        self.bytes += bytes;
    }

    fn take(&mut self, name: &ResourceName, entry: &Entry) {
        let Self { backends, bytes } = Self::of(name, entry);
        self.backends = self.backends.saturating_sub(backends);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

fn aliases(entry: &Entry) -> &[Arc<str>] {
    match &*entry.resource {
        Resource::Host(host) => &host.aliases,
        _ => &[],
    }
}

/// Where clients may find a host, or its instances.
fn addresses(entry: &Entry) -> impl Iterator<Item = IpAddr> {
    let (host, instances) = match &*entry.resource {
        Resource::Host(host) => (host.addresses.as_slice(), [].as_slice()),
        Resource::Endpoints(set) => ([].as_slice(), set.endpoints.as_slice()),
        _ => ([].as_slice(), [].as_slice()),
    };
    host.iter().copied().chain(instances.iter().map(|e| e.address.ip()))
}
