// SPDX-License-Identifier: Apache-2.0
//! The catalog as a persistent value: folds one log event at a time, cheap to clone. `World`
//! holds one; the Consul door and DNS read it. It never decides what an instance means to the
//! mesh: that is `World`'s fold, which asks here for the touched service.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use serde::de::DeserializeOwned;

use super::key::{self, CatalogKey};
use super::{CheckDefinition, CheckState, NODE_MAINTENANCE, Node, Registration, Status};

/// A record with the revisions at which it came and last changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned<T> {
    pub created: u64,
    pub modified: u64,
    pub value: T,
}

/// A check: its definition, and the state that it last reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub definition: CheckDefinition,
    pub state: Option<CheckState>,
}

/// What one event may have changed. Services are named by namespace and slug.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    pub node: Option<Arc<str>>,
    pub services: Vec<(Arc<str>, Arc<str>)>,
}

type Place = (Arc<str>, Arc<str>, Arc<str>);

#[derive(Clone, Debug, Default)]
pub struct Catalog {
    nodes: OrdMap<Arc<str>, Arc<Versioned<Node>>>,
    /// By (namespace, node, id).
    instances: OrdMap<Place, Arc<Versioned<Registration>>>,
    checks: OrdMap<Place, Arc<Versioned<Check>>>,
    /// States whose definition has not come (yet).
    early: OrdMap<Place, CheckState>,
    /// (namespace, slug) → (node, id).
    by_service: OrdMap<(Arc<str>, Arc<str>), OrdSet<(Arc<str>, Arc<str>)>>,
    /// (namespace, node, service id or empty) → check ids.
    by_subject: OrdMap<Place, OrdSet<Arc<str>>>,
}

// === impl Catalog ===

impl Catalog {
    /// Folds one event. `None`: the key is no catalog record's. A value that does not decode
    /// counts as absent: an old record never stops the log.
    pub fn apply(&mut self, key: &str, value: Option<&[u8]>, revision: u64) -> Option<Touched> {
        Some(match key::parse(key)? {
            CatalogKey::Node { node } => self.fold_node(node.into(), decode(value), revision),
            CatalogKey::Instance { namespace, node, id } => {
                let place = (namespace.into(), node.into(), id.into());
                self.fold_instance(place, decode(value), revision)
            }
            CatalogKey::Check { namespace, node, id } => {
                let place = (namespace.into(), node.into(), id.into());
                self.fold_check(place, decode(value), revision)
            }
            CatalogKey::State { namespace, node, id } => {
                let place = (namespace.into(), node.into(), id.into());
                self.fold_state(place, decode(value), revision)
            }
        })
    }

    pub fn node(&self, name: &str) -> Option<&Arc<Versioned<Node>>> {
        self.nodes.get(name)
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Versioned<Node>>> {
        self.nodes.values()
    }

    pub fn instance(
        &self,
        ns: &str,
        node: &str,
        id: &str,
    ) -> Option<&Arc<Versioned<Registration>>> {
        self.instances.get(&(ns.into(), node.into(), id.into()))
    }

    /// All registrations of a service, by its slug, ordered by node and id.
    pub fn service<'a>(
        &'a self,
        ns: &'a str,
        slug: &str,
    ) -> impl Iterator<Item = &'a Arc<Versioned<Registration>>> + 'a {
        let members = self.by_service.get(&(Arc::from(ns), Arc::from(slug)));
        members.into_iter().flatten().filter_map(move |(node, id)| {
            self.instances.get(&(Arc::from(ns), node.clone(), id.clone()))
        })
    }

    /// (namespace, slug) of every service that has a registration.
    pub fn services(&self) -> impl Iterator<Item = (&str, &str)> {
        self.by_service.keys().map(|(ns, slug)| (&**ns, &**slug))
    }

    /// Registrations on a node, in one namespace.
    pub fn on_node<'a>(
        &'a self,
        ns: &'a str,
        node: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Versioned<Registration>>> + 'a {
        range(&self.instances, ns, node)
    }

    pub fn check(&self, ns: &str, node: &str, id: &str) -> Option<&Arc<Versioned<Check>>> {
        self.checks.get(&(ns.into(), node.into(), id.into()))
    }

    /// Checks on a node, those of its services included.
    pub fn checks_on_node<'a>(
        &'a self,
        ns: &'a str,
        node: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Versioned<Check>>> + 'a {
        range(&self.checks, ns, node)
    }

    pub fn checks(&self) -> impl Iterator<Item = &Arc<Versioned<Check>>> {
        self.checks.values()
    }

    pub fn instances(&self) -> impl Iterator<Item = &Arc<Versioned<Registration>>> {
        self.instances.values()
    }

    /// The checks that decide about one instance: its own and its node's.
    pub fn checks_of<'a>(
        &'a self,
        registration: &'a Registration,
    ) -> impl Iterator<Item = &'a Arc<Versioned<Check>>> + 'a {
        let (ns, node) = (&registration.namespace, &registration.node);
        let own = (!registration.id.is_empty()).then_some(registration.id.as_str());
        std::iter::once("").chain(own).flat_map(move |subject| self.checks_for(ns, node, subject))
    }

    /// The checks of one instance alone, or with an empty id those of the node alone.
    pub fn checks_for<'a>(
        &'a self,
        ns: &'a str,
        node: &'a str,
        service_id: &str,
    ) -> impl Iterator<Item = &'a Arc<Versioned<Check>>> + 'a {
        let ids = self.by_subject.get(&(ns.into(), node.into(), service_id.into()));
        ids.into_iter()
            .flatten()
            .filter_map(move |id| self.checks.get(&(Arc::from(ns), Arc::from(node), id.clone())))
    }

    /// The worst state of the checks that decide about an instance; passing when it has none.
    pub fn health_of(&self, registration: &Registration) -> Status {
        let worst = self.checks_of(registration).map(|c| c.value.aggregate()).max();
        worst.unwrap_or(Status::Passing)
    }

    fn fold_node(&mut self, name: Arc<str>, node: Option<Node>, revision: u64) -> Touched {
        put(&mut self.nodes, name.clone(), node, revision);
        // An instance without an address of its own has its node's.
        let services = self.services_on(&name);
        Touched { node: Some(name), services }
    }

    fn fold_instance(
        &mut self,
        place: Place,
        value: Option<Registration>,
        revision: u64,
    ) -> Touched {
        let (ns, node, id) = place.clone();
        let mut services = Vec::new();
        if let Some(old) = self.instances.get(&place) {
            let key = (ns.clone(), Arc::from(old.value.slug.as_str()));
            let mut members = self.by_service.get(&key).cloned().unwrap_or_default();
            members.remove(&(node.clone(), id.clone()));
            if members.is_empty() {
                self.by_service.remove(&key);
            } else {
                self.by_service.insert(key.clone(), members);
            }
            services.push(key);
        }
        if let Some(new) = &value {
            let key = (ns, Arc::from(new.slug.as_str()));
            let mut members = self.by_service.get(&key).cloned().unwrap_or_default();
            members.insert((node.clone(), id));
            self.by_service.insert(key.clone(), members);
            if !services.contains(&key) {
                services.push(key);
            }
        }
        put(&mut self.instances, place, value, revision);
        Touched { node: Some(node), services }
    }

    fn fold_check(
        &mut self,
        place: Place,
        value: Option<CheckDefinition>,
        revision: u64,
    ) -> Touched {
        let mut services = self.services_of_check(&place);
        let held = self.checks.get(&place).and_then(|c| c.value.state.clone());
        let check = match value {
            Some(definition) => {
                let state = held.or_else(|| self.early.remove(&place));
                Some(Check { definition, state })
            }
            None => {
                // The state's own deletion comes as another event.
                if let Some(state) = held {
                    self.early.insert(place.clone(), state);
                }
                None
            }
        };
        let node = place.1.clone();
        self.index_subject(&place, check.as_ref().map(|c| c.definition.service_id.as_str()));
        put(&mut self.checks, place.clone(), check, revision);
        for service in self.services_of_check(&place) {
            if !services.contains(&service) {
                services.push(service);
            }
        }
        Touched { node: Some(node), services }
    }

    fn fold_state(&mut self, place: Place, state: Option<CheckState>, revision: u64) -> Touched {
        let Some(check) = self.checks.get(&place).cloned() else {
            match state {
                Some(state) => self.early.insert(place, state),
                None => self.early.remove(&place),
            };
            return Touched::default();
        };
        let services = self.services_of_check(&place);
        let node = place.1.clone();
        let value = Check { definition: check.value.definition.clone(), state };
        put(&mut self.checks, place, Some(value), revision);
        Touched { node: Some(node), services }
    }

    /// Moves a check's id to the subject it now speaks for; `None` takes it out.
    fn index_subject(&mut self, place: &Place, now: Option<&str>) {
        let (ns, node, id) = place;
        let before = self.checks.get(place).map(|c| c.value.definition.service_id.clone());
        if before.as_deref() == now {
            return;
        }
        if let Some(before) = before {
            let subject = (ns.clone(), node.clone(), before.into());
            let mut ids = self.by_subject.get(&subject).cloned().unwrap_or_default();
            ids.remove(id);
            if ids.is_empty() {
                self.by_subject.remove(&subject);
            } else {
                self.by_subject.insert(subject, ids);
            }
        }
        if let Some(now) = now {
            let subject = (ns.clone(), node.clone(), now.into());
            let mut ids = self.by_subject.get(&subject).cloned().unwrap_or_default();
            ids.insert(id.clone());
            self.by_subject.insert(subject, ids);
        }
    }

    /// The services whose health a check decides.
    fn services_of_check(&self, place: &Place) -> Vec<(Arc<str>, Arc<str>)> {
        let Some(check) = self.checks.get(place) else { return Vec::new() };
        let (ns, node, _) = place;
        let of = check.value.definition.service_id.as_str();
        if !of.is_empty() {
            let instance = self.instance(ns, node, of);
            return instance
                .map(|r| (ns.clone(), r.value.slug.as_str().into()))
                .into_iter()
                .collect();
        }
        let mut out: Vec<(Arc<str>, Arc<str>)> = self
            .on_node(ns, node)
            .map(|r| (ns.clone(), Arc::from(r.value.slug.as_str())))
            .collect();
        out.sort();
        out.dedup();
        out
    }

    fn services_on(&self, node: &str) -> Vec<(Arc<str>, Arc<str>)> {
        let mut out: Vec<(Arc<str>, Arc<str>)> = self
            .instances
            .iter()
            .filter(|((_, on, _), _)| &**on == node)
            .map(|((ns, _, _), r)| (ns.clone(), Arc::from(r.value.slug.as_str())))
            .collect();
        out.sort();
        out.dedup();
        out
    }
}

// === impl Check ===

impl Check {
    /// What it last reported, or what its definition says until it does.
    pub fn status(&self) -> Status {
        self.state.as_ref().map_or(self.definition.initial, |s| s.status)
    }

    pub fn output(&self) -> &str {
        self.state.as_ref().map_or(&self.definition.initial_output, |s| &s.output)
    }

    /// The same, with a maintenance check told apart from a failing one.
    pub fn aggregate(&self) -> Status {
        let id = &self.definition.id;
        let maintenance = id == NODE_MAINTENANCE || id.starts_with(super::SERVICE_MAINTENANCE);
        if maintenance { Status::Maintenance } else { self.status() }
    }
}

// === helpers ===

fn decode<T: DeserializeOwned>(value: Option<&[u8]>) -> Option<T> {
    let bytes = value?;
    serde_json::from_slice(bytes)
        .inspect_err(|why| tracing::warn!(%why, "a catalog record does not decode; it is left out"))
        .ok()
}

fn put<K: Ord + Clone, T>(
    map: &mut OrdMap<K, Arc<Versioned<T>>>,
    key: K,
    value: Option<T>,
    revision: u64,
) {
    match value {
        Some(value) => {
            let created = map.get(&key).map_or(revision, |old| old.created);
            map.insert(key, Arc::new(Versioned { created, modified: revision, value }));
        }
        None => {
            map.remove(&key);
        }
    }
}

fn range<'a, T>(
    map: &'a OrdMap<Place, Arc<Versioned<T>>>,
    ns: &'a str,
    node: &'a str,
) -> impl Iterator<Item = &'a Arc<Versioned<T>>> + 'a {
    let from: Place = (ns.into(), node.into(), "".into());
    map.range(from..)
        .take_while(move |((n, on, _), _)| &**n == ns && &**on == node)
        .map(|(_, value)| value)
}

#[cfg(test)]
mod tests;
