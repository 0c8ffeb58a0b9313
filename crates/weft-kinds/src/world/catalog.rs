// SPDX-License-Identifier: Apache-2.0
//! The catalog part of the World: nodes, registrations, checks and their newest results, as the
//! Consul door's records say. Knows nothing of objects.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use weft_base::name::{ServiceKey, slug};

use super::{CheckKey, ReadKey, RegistrationKey, WorldDelta};
use crate::views::catalog::{CheckRecord, CheckStatus, NodeRecord, Registration, Status};

/// Immutable as the World is: clones share.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Catalog {
    nodes: OrdMap<Arc<str>, Arc<NodeRecord>>,
    registrations: OrdMap<RegistrationKey, Arc<Registration>>,
    checks: OrdMap<CheckKey, Arc<CheckRecord>>,
    statuses: OrdMap<CheckKey, Arc<CheckStatus>>,
    by_service: OrdMap<ServiceKey, OrdSet<RegistrationKey>>,
    by_node: OrdMap<Arc<str>, OrdSet<RegistrationKey>>,
    checks_of: OrdMap<RegistrationKey, OrdSet<CheckKey>>,
    checks_on: OrdMap<Arc<str>, OrdSet<CheckKey>>,
    aliases: OrdSet<CheckKey>,
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
        self.registrations.iter()
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
        let keys = self.by_service.get(service).into_iter().flatten();
        keys.filter_map(|k| self.registrations.get_key_value(k))
    }

    pub fn on_node(
        &self,
        node: &str,
    ) -> impl Iterator<Item = (&RegistrationKey, &Arc<Registration>)> {
        let keys = self.by_node.get(node).into_iter().flatten();
        keys.filter_map(|k| self.registrations.get_key_value(k))
    }

    pub fn check(&self, key: &CheckKey) -> Option<&Arc<CheckRecord>> {
        self.checks.get(key)
    }

    pub fn checks(&self) -> impl Iterator<Item = (&CheckKey, &Arc<CheckRecord>)> {
        self.checks.iter()
    }

    /// The checks of one instance, without those of its node.
    pub fn checks_of(
        &self,
        key: &RegistrationKey,
    ) -> impl Iterator<Item = (&CheckKey, &Arc<CheckRecord>)> {
        let keys = self.checks_of.get(key).into_iter().flatten();
        keys.filter_map(|k| self.checks.get_key_value(k))
    }

    /// Every check on a node: its own and those of its instances.
    pub fn checks_on(&self, node: &str) -> impl Iterator<Item = (&CheckKey, &Arc<CheckRecord>)> {
        let keys = self.checks_on.get(node).into_iter().flatten();
        keys.filter_map(|k| self.checks.get_key_value(k))
    }

    /// The checks of a node itself.
    pub fn node_checks(&self, node: &str) -> impl Iterator<Item = (&CheckKey, &Arc<CheckRecord>)> {
        let key = node_target(node);
        let keys = self.checks_of.get(&key).into_iter().flatten();
        keys.filter_map(|k| self.checks.get_key_value(k))
    }

    /// The checks that are as healthy as what they name.
    pub fn aliases(&self) -> impl Iterator<Item = (&CheckKey, &Arc<CheckRecord>)> {
        self.aliases.iter().filter_map(|k| self.checks.get_key_value(k))
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
        new: Option<Registration>,
        delta: &mut WorldDelta,
    ) -> Vec<ServiceKey> {
        let old = self.registrations.get(&key).cloned();
        let new = new.map(Arc::new);
        if old == new {
            return Vec::new();
        }
        let was = old.as_deref().and_then(|r| service_of(&key, r));
        let is = new.as_deref().and_then(|r| service_of(&key, r));
        if was != is {
            if let Some(service) = &was {
                unlink(&mut self.by_service, service, &key);
            }
            if let Some(service) = &is {
                link(&mut self.by_service, service, &key);
            }
        }
        match (&old, &new) {
            (None, Some(_)) => link(&mut self.by_node, &key.node, &key),
            (Some(_), None) => unlink(&mut self.by_node, &key.node, &key),
            _ => {}
        }
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
        new: Option<CheckRecord>,
        delta: &mut WorldDelta,
    ) -> Vec<ServiceKey> {
        let old = self.checks.get(&key).cloned();
        let new = new.map(Arc::new);
        if old == new {
            return Vec::new();
        }
        let targets: Vec<_> =
            [&old, &new].into_iter().flatten().map(|check| target(&key, check)).collect();
        let mut services = self.services_of(&targets);
        if let Some(was) = &old {
            unlink(&mut self.checks_of, &target(&key, was), &key);
            unlink(&mut self.checks_on, &key.node, &key);
        }
        if let Some(is) = &new {
            link(&mut self.checks_of, &target(&key, is), &key);
            link(&mut self.checks_on, &key.node, &key);
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
        new: Option<CheckStatus>,
        delta: &mut WorldDelta,
    ) -> Vec<ServiceKey> {
        let new = new.map(Arc::new);
        if self.statuses.get(&key) == new.as_ref() {
            return Vec::new();
        }
        put(&mut self.statuses, &key, new);
        // A result without its check says nothing yet.
        let Some(check) = self.checks.get(&key) else { return Vec::new() };
        let services = self.services_of(&[target(&key, check)]);
        delta.touch(ReadKey::CatalogNode(key.node.clone()));
        self.touch(&services, delta);
        services
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
    RegistrationKey { namespace: "".into(), node: node.into(), id: "".into() }
}

fn put<K: Ord + Clone, V: Clone>(map: &mut OrdMap<K, V>, key: &K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key.clone(), value),
        None => map.remove(key),
    };
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
