// SPDX-License-Identifier: Apache-2.0
//! The catalog part of the World: nodes, registrations, checks and their newest results, as the
//! Consul door's records say. Knows nothing of objects.
//!
//! There may be a hundred thousand of each: keys are held once, what stands under what is one flat
//! set each (a set for each instance costs a whole tree node each), and texts that a record shares
//! with its key or with others of its service are held once (`same.rs`).

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use weft_base::name::{ServiceKey, slug};

use super::same;
use super::{CheckKey, ReadKey, RegistrationKey, WorldDelta};
use crate::views::catalog::{CheckRecord, CheckStatus, NodeRecord, Registration, Status};

/// Immutable as the World is: clones share.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Catalog {
    nodes: OrdMap<Arc<str>, Arc<NodeRecord>>,
    registrations: OrdMap<Arc<RegistrationKey>, Arc<Registration>>,
    checks: OrdMap<Arc<CheckKey>, Arc<CheckRecord>>,
    statuses: OrdMap<Arc<CheckKey>, Arc<CheckStatus>>,
    by_service: OrdSet<(ServiceKey, Arc<RegistrationKey>)>,
    by_node: OrdSet<(Arc<str>, Arc<RegistrationKey>)>,
    /// By what they speak for: an instance, or a node.
    checks_of: OrdSet<(Arc<RegistrationKey>, Arc<CheckKey>)>,
    checks_on: OrdSet<(Arc<str>, Arc<CheckKey>)>,
    aliases: OrdSet<Arc<CheckKey>>,
}

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
        let mut last: Option<&ServiceKey> = None;
        self.by_service.iter().filter_map(move |(service, _)| {
            (last.replace(service) != Some(service)).then_some(service)
        })
    }

    pub fn of_service(
        &self,
        service: &ServiceKey,
    ) -> impl Iterator<Item = (&RegistrationKey, &Arc<Registration>)> {
        under(&self.by_service, service).filter_map(|k| self.registered(k))
    }

    pub fn on_node(
        &self,
        node: &str,
    ) -> impl Iterator<Item = (&RegistrationKey, &Arc<Registration>)> {
        under(&self.by_node, &Arc::from(node)).filter_map(|k| self.registered(k))
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
        under(&self.checks_on, &Arc::from(node)).filter_map(|k| self.defined(k))
    }

    /// The checks of a node itself.
    pub fn node_checks(&self, node: &str) -> impl Iterator<Item = (&CheckKey, &Arc<CheckRecord>)> {
        self.speaking_for(Arc::new(node_target(node)))
    }

    /// The checks that are as healthy as what they name.
    pub fn aliases(&self) -> impl Iterator<Item = (&CheckKey, &Arc<CheckRecord>)> {
        self.aliases.iter().filter_map(|k| self.defined(k))
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

// === folding: each returns the services whose instances must be folded again ===

impl Catalog {
    pub(super) fn fold_node(
        &mut self,
        name: Arc<str>,
        new: Option<NodeRecord>,
        delta: &mut WorldDelta,
    ) -> Vec<ServiceKey> {
        let new = new.map(Arc::new);
        if self.nodes.get(&name) == new.as_ref() {
            return Vec::new();
        }
        put(&mut self.nodes, &name, new);
        delta.touch(ReadKey::Node(name.clone()));
        self.on_node(&name).filter_map(|(k, r)| service_of(k, r)).collect()
    }

    pub(super) fn fold_registration(
        &mut self,
        key: RegistrationKey,
        mut new: Option<Registration>,
        delta: &mut WorldDelta,
    ) -> Vec<ServiceKey> {
        let (key, old) = match self.registrations.get_key_value(&key) {
            Some((key, old)) => (key.clone(), Some(old.clone())),
            None => (Arc::new(self.shared_key(key)), None),
        };
        let is = new.as_ref().and_then(|r| service_of(&key, r));
        if let Some(new) = &mut new {
            let sibling = is.as_ref().and_then(|service| self.of_service(service).next());
            same::registration(new, &key, sibling.map(|(_, r)| &**r));
        }
        let new = new.map(Arc::new);
        if old == new {
            return Vec::new();
        }
        let was = old.as_deref().and_then(|r| service_of(&key, r));
        if was != is {
            if let Some(service) = &was {
                self.by_service.remove(&(service.clone(), key.clone()));
            }
            if let Some(service) = &is {
                self.by_service.insert((service.clone(), key.clone()));
            }
        }
        let here = (key.node.clone(), key.clone());
        match (&old, &new) {
            (None, Some(_)) => self.by_node.insert(here),
            (Some(_), None) => self.by_node.remove(&here),
            _ => None,
        };
        put(&mut self.registrations, &key, new);
        delta.touch(ReadKey::CatalogNode(key.node.clone()));
        let mut services: Vec<_> = was.into_iter().chain(is).collect();
        services.dedup();
        self.touch(&services, delta);
        services
    }

    pub(super) fn fold_check(
        &mut self,
        key: CheckKey,
        mut new: Option<CheckRecord>,
        delta: &mut WorldDelta,
    ) -> Vec<ServiceKey> {
        let (key, old) = match self.checks.get_key_value(&key) {
            Some((key, old)) => (key.clone(), Some(old.clone())),
            None => {
                let here = under(&self.checks_on, &key.node).next().map(|k| &**k);
                (Arc::new(same::check_key(key, here)), None)
            }
        };
        if let Some(new) = &mut new {
            let of = self.registered(&target(&key, new));
            let service = of.and_then(|(k, r)| service_of(k, r));
            let first = service.and_then(|service| self.of_service(&service).next());
            let sibling = first.and_then(|(k, _)| self.checks_of(k).next());
            same::check(new, &key, of.map(|(_, r)| &**r), sibling.map(|(_, c)| &**c));
        }
        let new = new.map(Arc::new);
        if old == new {
            return Vec::new();
        }
        let targets: Vec<_> =
            [&old, &new].into_iter().flatten().map(|check| target(&key, check)).collect();
        let mut services = self.services_of(&targets);
        let here = (key.node.clone(), key.clone());
        if let Some(was) = &old {
            self.checks_of.remove(&(self.target(&key, was), key.clone()));
            self.checks_on.remove(&here);
        }
        if let Some(is) = &new {
            self.checks_of.insert((self.target(&key, is), key.clone()));
            self.checks_on.insert(here);
        }
        match new.as_ref().is_some_and(|is| &*is.kind == "alias") {
            true => self.aliases.insert(key.clone()),
            false => self.aliases.remove(&key),
        };
        put(&mut self.checks, &key, new);
        services.sort();
        services.dedup();
        delta.touch(ReadKey::CatalogNode(key.node.clone()));
        self.touch(&services, delta);
        services
    }

    pub(super) fn fold_status(
        &mut self,
        key: CheckKey,
        mut new: Option<CheckStatus>,
        delta: &mut WorldDelta,
    ) -> Vec<ServiceKey> {
        let old = self.statuses.get(&key);
        if let Some(new) = &mut new {
            same::result(new, old.map(|old| &**old));
        }
        let new = new.map(Arc::new);
        if old == new.as_ref() {
            return Vec::new();
        }
        let known = self.checks.get_key_value(&key).map(|(key, _)| key.clone());
        let key = known.unwrap_or_else(|| Arc::new(key));
        put(&mut self.statuses, &key, new);
        // A result without its check says nothing yet.
        let Some(check) = self.checks.get(&key) else { return Vec::new() };
        let services = self.services_of(&[target(&key, check)]);
        delta.touch(ReadKey::CatalogNode(key.node.clone()));
        self.touch(&services, delta);
        services
    }

    /// A key with the texts that the catalog has already.
    fn shared_key(&self, key: RegistrationKey) -> RegistrationKey {
        let here = under(&self.by_node, &key.node).next().map(|k| &**k);
        let node = self.nodes.get_key_value(&key.node).map(|(name, _)| name);
        same::registration_key(key, here, node)
    }

    /// The key of what a check speaks for, as the catalog holds it when it does.
    fn target(&self, key: &CheckKey, check: &CheckRecord) -> Arc<RegistrationKey> {
        let target = target(key, check);
        let known = self.registrations.get_key_value(&target).map(|(key, _)| key.clone());
        known.unwrap_or_else(|| Arc::new(target))
    }

    fn services_of(&self, targets: &[RegistrationKey]) -> Vec<ServiceKey> {
        let mut out = Vec::new();
        for target in targets {
            if target.id.is_empty() {
                out.extend(self.on_node(&target.node).filter_map(|(k, r)| service_of(k, r)));
            } else if let Some(registration) = self.registrations.get(target) {
                out.extend(service_of(target, registration));
            }
        }
        out
    }

    fn touch(&self, services: &[ServiceKey], delta: &mut WorldDelta) {
        for service in services {
            delta.touch(ReadKey::Catalog(service.clone()));
        }
    }
}

/// The service that a registration belongs to: its namespace and its name's slug.
pub fn service_of(key: &RegistrationKey, registration: &Registration) -> Option<ServiceKey> {
    ServiceKey::new(&key.namespace, &slug(&registration.service)).ok()
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
