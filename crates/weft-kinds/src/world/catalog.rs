// SPDX-License-Identifier: Apache-2.0
//! The catalog part of the World: nodes, registrations, checks and their newest results, as the
//! Consul door's records say. Knows nothing of objects.
//!
//! There may be a hundred thousand of each: keys are held once, what stands under what is one flat
//! set each (a set for each instance costs a whole tree node each) or follows from the order of the
//! keys, and texts that a record shares with its key or with others of its service are held once
//! (`same.rs`).

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use weft_base::name::{ServiceKey, service_slug};

use super::same;
use super::{At, CheckKey, ReadKey, RegistrationKey, WorldDelta};
use crate::views::catalog::{CheckRecord, CheckStatus, NodeRecord, Registration, Since, Status};

/// Immutable as the World is: clones share.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Catalog {
    nodes: OrdMap<Arc<str>, Arc<NodeRecord>>,
    registrations: OrdMap<Arc<RegistrationKey>, Arc<Registration>>,
    checks: OrdMap<Arc<CheckKey>, Arc<CheckRecord>>,
    statuses: OrdMap<Arc<CheckKey>, Arc<CheckStatus>>,
    by_service: OrdMap<ServiceKey, Arc<Registered>>,
    /// By what they speak for: an instance, or a node.
    checks_of: OrdSet<(Arc<RegistrationKey>, Arc<CheckKey>)>,
    /// Nodes, with each namespace that something on them is of, and how much: what is on a node
    /// stands together in each namespace's part of the keys.
    places: OrdMap<(Arc<str>, Arc<str>), usize>,
    aliases: OrdSet<Arc<CheckKey>>,
    /// The checks that somebody goes and asks.
    asked: OrdSet<Arc<CheckKey>>,
    /// What speaks Connect for a service, by the slug of its name.
    speakers: OrdSet<(ServiceKey, Arc<RegistrationKey>)>,
}

/// A service's registrations in order of their keys.
type Registered = Vec<(Arc<RegistrationKey>, Arc<Registration>)>;

/// A service, and the one of its instances that an event is about.
pub(super) type Touched = (ServiceKey, RegistrationKey);

// === reading ===

impl Catalog {
    pub fn node(&self, name: &str) -> Option<&Arc<NodeRecord>> {
        self.nodes.get(name)
    }

    pub fn nodes(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<NodeRecord>)> {
        self.nodes.iter()
    }

    pub fn registration(&self, key: &RegistrationKey) -> Option<&Arc<Registration>> {
        self.registrations.get(key)
    }

    pub fn registrations(&self) -> impl Iterator<Item = (&RegistrationKey, &Arc<Registration>)> {
        self.registrations.iter().map(|(k, r)| (&**k, r))
    }

    /// How many registrations there are; costs nothing.
    pub fn registration_count(&self) -> usize {
        self.registrations.len()
    }

    /// Services that have registrations, in order.
    pub fn services(&self) -> impl Iterator<Item = &ServiceKey> {
        self.by_service.keys()
    }

    pub fn of_service(
        &self,
        service: &ServiceKey,
    ) -> impl Iterator<Item = (&RegistrationKey, &Arc<Registration>)> {
        let all = self.by_service.get(service);
        all.into_iter().flat_map(|all| all.iter().map(|(k, r)| (&**k, r)))
    }

    /// What speaks Connect for a service of this name, or of another with the same slug.
    pub fn speakers(
        &self,
        service: &ServiceKey,
    ) -> impl Iterator<Item = (&RegistrationKey, &Arc<Registration>)> {
        under(&self.speakers, service).filter_map(|key| self.registered(key))
    }

    /// The nodes that something is on, whether or not anybody registered them.
    pub fn places_with_something(&self) -> impl Iterator<Item = &Arc<str>> {
        let mut last = None;
        let names = self.places.iter().map(|((node, _), _)| node);
        names.filter(move |node| last.replace(*node) != Some(*node))
    }

    pub fn on_node(
        &self,
        node: &str,
    ) -> impl Iterator<Item = (&RegistrationKey, &Arc<Registration>)> {
        self.places(node).flat_map(|(node, namespace)| {
            let (namespace, node) = (namespace.clone(), node.clone());
            let at = RegistrationKey { namespace, node, id: Arc::default() };
            let from = self.registrations.range(at.clone()..);
            let here = from.take_while(move |(k, _)| k.place() == at.place());
            here.map(|(k, r)| (&**k, r))
        })
    }

    pub fn check(&self, key: &CheckKey) -> Option<&Arc<CheckRecord>> {
        self.checks.get(key)
    }

    pub fn checks(&self) -> impl Iterator<Item = (&CheckKey, &Arc<CheckRecord>)> {
        self.checks.iter().map(|(k, c)| (&**k, c))
    }

    /// The checks of one instance, without those of its node.
    pub fn checks_of(
        &self,
        key: &RegistrationKey,
    ) -> impl Iterator<Item = (&CheckKey, &Arc<CheckRecord>)> {
        self.speaking_for(Arc::new(key.clone()))
    }

    /// Every check on a node: its own and those of its instances.
    pub fn checks_on(&self, node: &str) -> impl Iterator<Item = (&CheckKey, &Arc<CheckRecord>)> {
        self.places(node).flat_map(|(node, namespace)| {
            let (namespace, node) = (namespace.clone(), node.clone());
            let at = CheckKey { namespace, node, id: Arc::default() };
            let from = self.checks.range(at.clone()..);
            let here = from.take_while(move |(k, _)| k.place() == at.place());
            here.map(|(k, c)| (&**k, c))
        })
    }

    /// The checks of a node itself.
    pub fn node_checks(&self, node: &str) -> impl Iterator<Item = (&CheckKey, &Arc<CheckRecord>)> {
        self.speaking_for(Arc::new(node_target(node)))
    }

    /// The checks that are as healthy as what they name.
    pub fn aliases(&self) -> impl Iterator<Item = (&CheckKey, &Arc<CheckRecord>)> {
        self.aliases.iter().filter_map(|k| self.defined(k))
    }

    /// The checks on a node that somebody goes and asks; how many others there are costs nothing.
    pub fn asked_on(&self, node: &str) -> impl Iterator<Item = (&CheckKey, &Arc<CheckRecord>)> {
        self.places(node).flat_map(|(node, namespace)| {
            let (namespace, node) = (namespace.clone(), node.clone());
            let at = CheckKey { namespace, node, id: Arc::default() };
            let from = self.asked.range(at.clone()..);
            let here = from.take_while(move |k| k.place() == at.place());
            here.filter_map(|k| self.defined(k))
        })
    }

    /// A check's newest result, if there was one since the server started.
    pub fn result(&self, key: &CheckKey) -> Option<&Arc<CheckStatus>> {
        self.statuses.get(key)
    }

    /// A check's status now: its newest result, or what it was registered with.
    pub fn status(&self, key: &CheckKey) -> Status {
        match (self.statuses.get(key), self.checks.get(key)) {
            (Some(result), _) => result.status,
            (None, Some(check)) => check.initial,
            (None, None) => Status::Critical,
        }
    }

    /// Whether an operator took an instance or its node out of service.
    pub fn is_in_maintenance(&self, key: &RegistrationKey) -> bool {
        let own = self.checks_of(key).chain(self.node_checks(&key.node));
        own.map(|(_, check)| check).any(|check| check.is_maintenance())
    }

    /// An instance's health: the worst of its own checks and its node's.
    pub fn health(&self, key: &RegistrationKey) -> Status {
        let own = self.checks_of(key).map(|(k, _)| self.status(k));
        let node = self.node_checks(&key.node).map(|(k, _)| self.status(k));
        own.chain(node).max().unwrap_or(Status::Passing)
    }

    /// A node, with each namespace that something on it is of.
    fn places(&self, node: &str) -> impl Iterator<Item = &(Arc<str>, Arc<str>)> {
        let node: Arc<str> = node.into();
        let from = self.places.range((node.clone(), Arc::default())..);
        from.map(|(place, _)| place).take_while(move |(known, _)| *known == node)
    }

    fn registered(&self, key: &RegistrationKey) -> Option<(&RegistrationKey, &Arc<Registration>)> {
        self.registrations.get_key_value(key).map(|(k, r)| (&**k, r))
    }

    fn defined(&self, key: &CheckKey) -> Option<(&CheckKey, &Arc<CheckRecord>)> {
        self.checks.get_key_value(key).map(|(k, c)| (&**k, c))
    }

    fn speaking_for(
        &self,
        target: Arc<RegistrationKey>,
    ) -> impl Iterator<Item = (&CheckKey, &Arc<CheckRecord>)> {
        under(&self.checks_of, &target).filter_map(|k| self.defined(k))
    }
}

// === folding: each returns what instances must be folded again ===

impl Catalog {
    pub(super) fn fold_node(
        &mut self,
        name: Arc<str>,
        mut new: Option<NodeRecord>,
        at: At,
        delta: &mut WorldDelta,
    ) -> Vec<Touched> {
        let old = self.nodes.get(&name).cloned();
        if let Some(new) = &mut new {
            (new.created, new.modified) = at.since(old.as_ref().map(|old| old.created));
        }
        let new = new.map(Arc::new);
        let same = old == new;
        put(&mut self.nodes, &name, new);
        if same {
            return Vec::new();
        }
        delta.touch(ReadKey::Node(name.clone()));
        self.touched_on(&name).collect()
    }

    pub(super) fn fold_registration(
        &mut self,
        key: RegistrationKey,
        mut new: Option<Registration>,
        at: At,
        delta: &mut WorldDelta,
    ) -> Vec<Touched> {
        let (key, old) = match self.registrations.get_key_value(&key) {
            Some((key, old)) => (key.clone(), Some(old.clone())),
            None => (Arc::new(self.shared_key(key)), None),
        };
        let mut is = new.as_ref().and_then(|r| service_of(&key, r));
        if let Some(new) = &mut new {
            let known = is.as_ref().and_then(|service| self.by_service.get_key_value(service));
            let sibling = known.and_then(|(_, all)| all.first());
            same::registration(new, &key, sibling.map(|(_, r)| &**r));
            is = known.map(|(service, _)| service.clone()).or(is);
            (new.created, new.modified) = at.since(old.as_ref().map(|old| old.created));
        }
        let new = new.map(Arc::new);
        let same = old == new;
        let was = old.as_deref().and_then(|r| service_of(&key, r));
        if let Some(service) = was.as_ref().filter(|was| Some(*was) != is.as_ref()) {
            self.list(service, &key, None);
        }
        if let (Some(service), Some(new)) = (&is, &new) {
            self.list(service, &key, Some(new));
        }
        self.settle(key.place(), old.is_some(), new.is_some());
        if !same {
            for service in old.as_deref().map(|r| spoken_for(&key, r)).unwrap_or_default() {
                self.speakers.remove(&(service, key.clone()));
            }
            for service in new.as_deref().map(|r| spoken_for(&key, r)).unwrap_or_default() {
                self.speakers.insert((service, key.clone()));
            }
        }
        put(&mut self.registrations, &key, new);
        if same {
            return Vec::new();
        }
        delta.touch(ReadKey::CatalogNode(key.node.clone()));
        let mut services: Vec<_> = was.into_iter().chain(is).collect();
        services.dedup();
        self.touch(&services, delta);
        services.into_iter().map(|service| (service, RegistrationKey::clone(&key))).collect()
    }

    pub(super) fn fold_check(
        &mut self,
        key: CheckKey,
        mut new: Option<CheckRecord>,
        at: At,
        delta: &mut WorldDelta,
    ) -> Vec<Touched> {
        let (key, old) = match self.checks.get_key_value(&key) {
            Some((key, old)) => (key.clone(), Some(old.clone())),
            None => {
                let place = self.places(&key.node).next();
                (Arc::new(same::check_key(key, place)), None)
            }
        };
        if let Some(new) = &mut new {
            let of = self.registered(&target(&key, new));
            let service = of.and_then(|(k, r)| service_of(k, r));
            let first = service.and_then(|service| self.of_service(&service).next());
            let sibling = first.and_then(|(k, _)| self.checks_of(k).next());
            same::check(new, &key, of.map(|(_, r)| &**r), sibling.map(|(_, c)| &**c));
            (new.created, new.modified) = at.since(old.as_ref().map(|old| old.created));
        }
        let new = new.map(Arc::new);
        if old == new {
            put(&mut self.checks, &key, new);
            return Vec::new();
        }
        let targets: Vec<_> =
            [&old, &new].into_iter().flatten().map(|check| target(&key, check)).collect();
        let touched = self.touched(&targets);
        if let Some(was) = &old {
            self.checks_of.remove(&(self.target(&key, was), key.clone()));
        }
        if let Some(is) = &new {
            self.checks_of.insert((self.target(&key, is), key.clone()));
        }
        self.settle(key.place(), old.is_some(), new.is_some());
        let is = new.as_deref();
        mark(&mut self.aliases, &key, is.is_some_and(|is| &*is.kind == "alias"));
        mark(&mut self.asked, &key, is.is_some_and(CheckRecord::is_asked));
        put(&mut self.checks, &key, new);
        delta.touch(ReadKey::CatalogNode(key.node.clone()));
        self.touch(touched.iter().map(|(service, _)| service), delta);
        touched
    }

    pub(super) fn fold_status(
        &mut self,
        key: CheckKey,
        mut new: Option<CheckStatus>,
        at: At,
        delta: &mut WorldDelta,
    ) -> Vec<Touched> {
        let old = self.statuses.get(&key);
        if let Some(new) = &mut new {
            same::result(new, old.map(|old| &**old));
            // One of the future was written to another store, and moved.
            let said = new.modified.0 <= at.modified;
            new.modified =
                if said { new.modified.or(Since(at.modified)) } else { Since(at.modified) };
        }
        let new = new.map(Arc::new);
        if old == new.as_ref() {
            if let (Some(known), Some(new)) = (self.statuses.get_mut(&key), new) {
                *known = new;
            }
            return Vec::new();
        }
        let known = self.checks.get_key_value(&key).map(|(key, _)| key.clone());
        let key = known.unwrap_or_else(|| Arc::new(key));
        put(&mut self.statuses, &key, new);
        // A result without its check says nothing yet.
        let Some(check) = self.checks.get(&key) else { return Vec::new() };
        let touched = self.touched(&[target(&key, check)]);
        delta.touch(ReadKey::CatalogNode(key.node.clone()));
        self.touch(touched.iter().map(|(service, _)| service), delta);
        touched
    }

    /// Puts a registration into its service's list, or takes it out. No empty list is kept.
    fn list(
        &mut self,
        service: &ServiceKey,
        key: &Arc<RegistrationKey>,
        new: Option<&Arc<Registration>>,
    ) {
        let all = self.by_service.entry(service.clone()).or_default();
        let list = Arc::make_mut(all);
        match (list.binary_search_by(|(known, _)| known.cmp(key)), new) {
            (Ok(at), Some(new)) => list[at] = (key.clone(), new.clone()),
            (Err(at), Some(new)) => {
                list.reserve_exact(1);
                list.insert(at, (key.clone(), new.clone()));
            }
            (Ok(at), None) => drop(list.remove(at)),
            (Err(_), None) => {}
        }
        if list.is_empty() {
            self.by_service.remove(service);
        }
    }

    /// A key with the texts that the catalog has already.
    fn shared_key(&self, key: RegistrationKey) -> RegistrationKey {
        let place = self.places(&key.node).next();
        let node = self.nodes.get_key_value(&key.node).map(|(name, _)| name);
        same::registration_key(key, place, node)
    }

    /// Counts what came to a namespace's part of a node, or left it.
    fn settle(&mut self, (namespace, node): (&Arc<str>, &Arc<str>), was: bool, is: bool) {
        let place = (node.clone(), namespace.clone());
        match (was, is) {
            (false, true) => *self.places.entry(place).or_default() += 1,
            (true, false) => match self.places.get(&place) {
                Some(more @ 2..) => drop(self.places.insert(place, more - 1)),
                _ => drop(self.places.remove(&place)),
            },
            _ => {}
        }
    }

    /// The key of what a check speaks for, as the catalog holds it when it does.
    fn target(&self, key: &CheckKey, check: &CheckRecord) -> Arc<RegistrationKey> {
        let target = target(key, check);
        let known = self.registrations.get_key_value(&target).map(|(key, _)| key.clone());
        known.unwrap_or_else(|| Arc::new(target))
    }

    /// The instances that checks of these speak for.
    fn touched(&self, targets: &[RegistrationKey]) -> Vec<Touched> {
        let mut out = Vec::new();
        for target in targets {
            if target.id.is_empty() {
                out.extend(self.touched_on(&target.node));
            } else if let Some(registration) = self.registrations.get(target) {
                out.extend(service_of(target, registration).map(|at| (at, target.clone())));
            }
        }
        out
    }

    fn touched_on(&self, node: &str) -> impl Iterator<Item = Touched> {
        self.on_node(node).filter_map(|(k, r)| Some((service_of(k, r)?, k.clone())))
    }

    fn touch<'s>(
        &self,
        services: impl IntoIterator<Item = &'s ServiceKey>,
        delta: &mut WorldDelta,
    ) {
        for service in services {
            delta.touch(ReadKey::Catalog(service.clone()));
        }
    }
}

/// The service that a registration belongs to: its namespace and its name's slug, however the
/// name was written: as in Consul `Web` is `web`.
pub fn service_of(key: &RegistrationKey, registration: &Registration) -> Option<ServiceKey> {
    ServiceKey::new(&key.namespace, &service_slug(&registration.service)).ok()
}

/// The services that a registration speaks Connect for.
fn spoken_for(key: &RegistrationKey, registration: &Registration) -> Vec<ServiceKey> {
    let named = registration.speaks_for();
    named.filter_map(|name| ServiceKey::new(&key.namespace, &service_slug(name)).ok()).collect()
}

/// Lists a key, or takes it off.
fn mark(listed: &mut OrdSet<Arc<CheckKey>>, key: &Arc<CheckKey>, is: bool) {
    match is {
        true => listed.insert(key.clone()),
        false => listed.remove(key),
    };
}

/// What a check speaks for: an instance, or a whole node.
fn target(key: &CheckKey, check: &CheckRecord) -> RegistrationKey {
    if check.service_id.is_empty() {
        node_target(&key.node)
    } else {
        RegistrationKey {
            namespace: key.namespace.clone(),
            node: key.node.clone(),
            id: check.service_id.clone(),
        }
    }
}

fn node_target(node: &str) -> RegistrationKey {
    RegistrationKey { node: node.into(), ..RegistrationKey::default() }
}

fn put<K: Ord + Clone, V: Clone>(map: &mut OrdMap<K, V>, key: &K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key.clone(), value),
        None => map.remove(key),
    };
}

/// What stands under a key.
fn under<'s, K: Ord + Clone, V: Ord + Clone + Default>(
    set: &'s OrdSet<(K, V)>,
    key: &K,
) -> impl Iterator<Item = &'s V> + use<'s, K, V> {
    let key = key.clone();
    let from = (key.clone(), V::default());
    set.range(from..).take_while(move |(k, _)| *k == key).map(|(_, v)| v)
}

pub(super) fn link<K: Ord + Clone, V: Ord + Clone>(
    map: &mut OrdMap<K, OrdSet<V>>,
    key: &K,
    value: &V,
) {
    map.entry(key.clone()).or_default().insert(value.clone());
}

/// Empty sets are removed, so that equal contents are equal Worlds.
pub(super) fn unlink<K: Ord + Clone, V: Ord + Clone>(
    map: &mut OrdMap<K, OrdSet<V>>,
    key: &K,
    value: &V,
) {
    if let Some(set) = map.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            map.remove(key);
        }
    }
}
