// SPDX-License-Identifier: Apache-2.0
//! The World: all that users and health checks said, folded from the store's log.
//!
//! The registry's pump is the one writer: it calls [`World::apply`] for each store event and
//! publishes clones (cheap: persistent maps). The doors, the controllers and the compiler read.
//! It never does I/O, and it never judges: a bad object is kept as [`View::Invalid`].
//!
//! Architecture invariant: folding is incremental (an event costs what it touches, whatever the
//! size of the World) and exact (the delta names the questions whose answers changed, no others).

mod catalog;
mod delta;
mod index;
mod instance;
mod key;
mod pods;
mod raw;
mod resolved;
mod same;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use serde::de::DeserializeOwned;
use serde_json::Value;
use weft_base::issue::{FieldPath, Issues};
use weft_base::name::ServiceKey;

pub use crate::kind::KindId;
pub use catalog::{Catalog, service_of as service_of_registration};
pub use delta::{ReadKey, WorldDelta};
pub use index::{Index, gateway_ref, host_key, pair, service_of};
pub use instance::{
    DRAIN_ANNOTATION, Door, INJECT_ANNOTATION, Instance, InstanceId, InstancePort,
    MESH_ADDRESS_ANNOTATION, OWNER_ANNOTATION, PROXY_ANNOTATION, WEIGHT_ANNOTATION, balancer_node,
    has_sidecar, is_mirror, workload,
};
pub use key::{CheckKey, ObjectKey, RegistrationKey, StoreKey, encode};
pub use pods::{HOST_ADDRESS_ANNOTATION, PODS_ANNOTATION, PODS_SETTING, PodsMode, host_address};
pub use raw::Raw;
pub use resolved::{RESOLVED_SETTINGS, resolved_setting, resolved_value};

use crate::views::catalog::{Registration, Since};
use crate::views::meta::MetaOnly;
use crate::views::{self, Meta, View};
use catalog::{link, unlink};

/// One stored object: raw, and what weft reads of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    pub key: ObjectKey,
    /// The store revision that wrote it: its `metadata.resourceVersion`.
    pub revision: u64,
    pub raw: Raw,
    pub meta: Meta,
    pub view: View,
}

/// An immutable value; `clone` shares everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct World {
    revision: u64,
    objects: OrdMap<ObjectKey, Arc<Object>>,
    /// One flat set: most values have one object, and a set of its own costs a whole tree node.
    index: OrdSet<(Index, Arc<str>, Option<ObjectKey>)>,
    catalog: Catalog,
    instances: OrdMap<ServiceKey, OrdMap<InstanceId, Arc<Instance>>>,
    services_of_pod: OrdMap<Arc<str>, OrdSet<ServiceKey>>,
    /// By node: the services of which a pod is on it. Pods on no machine that is named are under
    /// an empty one.
    services_on: OrdMap<Arc<str>, OrdSet<ServiceKey>>,
    settings: OrdMap<Arc<str>, Arc<Value>>,
    /// Always empty: the answer for a service without instances.
    none: OrdMap<InstanceId, Arc<Instance>>,
}

/// Which of a service's instances are to be folded again.
#[derive(Debug)]
enum Again {
    All,
    Some(BTreeSet<RegistrationKey>),
}

/// When a key was last written and, where that is known, first.
#[derive(Clone, Copy, Debug)]
struct At {
    created: Option<u64>,
    modified: u64,
}

// === impl At ===

impl At {
    /// When a record was made, of which `known` was said before, and when it was last written.
    fn since(self, known: Option<Since>) -> (Since, Since) {
        let now = Since(self.modified);
        (self.created.map(Since).or(known).unwrap_or(now), now)
    }
}

// === impl Again ===

impl Again {
    fn none() -> Self {
        Self::Some(BTreeSet::new())
    }

    /// One more of them, or all. With a `/` in its name one may have the id that another has.
    fn add(&mut self, one: Option<RegistrationKey>) {
        let one = one.filter(|key| !key.node.contains('/') && !key.id.contains('/'));
        match (self, one) {
            (Self::All, _) => {}
            (Self::Some(keys), Some(one)) => drop(keys.insert(one)),
            (all, None) => *all = Self::All,
        }
    }
}

// === reading ===

impl World {
    pub fn new() -> Self {
        Self::default()
    }

    /// The newest store revision folded.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn object(&self, key: &ObjectKey) -> Option<&Arc<Object>> {
        self.objects.get(key)
    }

    /// One object; the namespace is empty for cluster-scoped kinds.
    pub fn get(&self, kind: KindId, namespace: &str, name: &str) -> Option<&Arc<Object>> {
        self.objects.get(&ObjectKey::new(kind, namespace, name))
    }

    /// All objects of a kind, of one namespace or of all, in order of namespace and name.
    pub fn objects<'w, 'n>(
        &'w self,
        kind: KindId,
        namespace: Option<&'n str>,
    ) -> impl Iterator<Item = &'w Arc<Object>> + use<'w, 'n> {
        let from = ObjectKey::new(kind, namespace.unwrap_or(""), "");
        self.objects
            .range(from..)
            .take_while(move |(k, _)| {
                k.kind == kind && namespace.is_none_or(|ns| &*k.namespace == ns)
            })
            .map(|(_, o)| o)
    }

    /// Every object of every kind.
    pub fn all_objects(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.objects.values()
    }

    /// The objects under one value of an index, in order of their keys.
    pub fn index(&self, index: Index, value: &str) -> impl Iterator<Item = &Arc<Object>> {
        let value: Arc<str> = value.into();
        let from = (index, value.clone(), None);
        let under =
            self.index.range(from..).take_while(move |(i, v, _)| *i == index && *v == value);
        under.filter_map(|(_, _, key)| self.objects.get(key.as_ref()?))
    }

    /// The instances of a service, whichever door made them.
    pub fn instances(&self, namespace: &str, service: &str) -> &OrdMap<InstanceId, Arc<Instance>> {
        let key = ServiceKey::new(namespace, service).ok();
        key.and_then(|k| self.instances.get(&k)).unwrap_or(&self.none)
    }

    /// Whether Kubernetes made the Service of this name: registrations are none of its instances.
    /// The doors let nobody make both; a store of older versions, or a race, may have them.
    pub fn is_foreign(&self, service: &ServiceKey) -> bool {
        let (namespace, name) = (service.namespace.as_str(), service.name.as_str());
        self.get(KindId::Service, namespace, name).is_some_and(|s| !is_mirror(&s.meta))
    }

    /// The registrations that are instances of a service: all of its name, or none.
    pub fn joined(
        &self,
        service: &ServiceKey,
    ) -> impl Iterator<Item = (&RegistrationKey, &Arc<Registration>)> {
        let foreign = self.is_foreign(service);
        self.catalog.of_service(service).filter(move |_| !foreign)
    }

    /// Every service that has instances.
    pub fn services_with_instances(
        &self,
    ) -> impl Iterator<Item = (&ServiceKey, &OrdMap<InstanceId, Arc<Instance>>)> {
        self.instances.iter()
    }

    /// The services that a pod is an instance of.
    pub fn services_of_pod(&self, namespace: &str, pod: &str) -> impl Iterator<Item = &ServiceKey> {
        self.services_of_pod.get(&pair(namespace, pod)).into_iter().flatten()
    }

    /// The services of which a pod is on a node; those on no machine that is named are on an empty
    /// one.
    pub fn services_on(&self, node: &str) -> impl Iterator<Item = &ServiceKey> {
        self.services_on.get(node).into_iter().flatten()
    }

    /// The nodes that pods which are instances of something are on.
    pub fn nodes_of_pods(&self) -> impl Iterator<Item = &Arc<str>> {
        self.services_on.keys()
    }

    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// A setting (`/s/<name>`).
    pub fn setting(&self, name: &str) -> Option<&Arc<Value>> {
        self.settings.get(name)
    }

    pub fn settings(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Value>)> {
        self.settings.iter()
    }
}

// === folding ===

impl World {
    /// Folds one store event: a put (`Some`) or a deletion of a key at a revision.
    pub fn apply(&mut self, key: &str, value: Option<&[u8]>, revision: u64) -> WorldDelta {
        self.apply_all([(key, value, revision)])
    }

    /// The same of several that are seen together: a service's instances are folded once, however
    /// many of them change.
    pub fn apply_all<'e>(
        &mut self,
        events: impl IntoIterator<Item = (&'e str, Option<&'e [u8]>, u64)>,
    ) -> WorldDelta {
        let at = |modified| At { created: None, modified };
        self.fold_all(events.into_iter().map(|(key, value, revision)| (key, value, at(revision))))
    }

    fn fold_all<'e>(
        &mut self,
        events: impl IntoIterator<Item = (&'e str, Option<&'e [u8]>, At)>,
    ) -> WorldDelta {
        let (mut delta, mut again) = (WorldDelta::default(), BTreeMap::new());
        for (key, value, at) in events {
            self.revision = self.revision.max(at.modified);
            for (service, part) in self.fold_one(key, value, at, &mut delta) {
                again.entry(service).or_insert_with(Again::none).add(part);
            }
        }
        for (service, again) in again {
            self.fold_instances(&service, &again, &mut delta);
        }
        delta
    }

    /// Takes over a key of a store that is read for the first time: what [`World::apply`] cannot
    /// know is when it was first written.
    pub fn load(&mut self, key: &str, value: &[u8], created: u64, modified: u64) {
        let at = At { created: Some(created), modified };
        let _ = self.fold_all([(key, Some(value), at)]);
    }

    /// Folds what an event says; the services whose instances may be others now, and which one of
    /// them where it is one.
    fn fold_one(
        &mut self,
        key: &str,
        value: Option<&[u8]>,
        at: At,
        delta: &mut WorldDelta,
    ) -> Vec<(ServiceKey, Option<RegistrationKey>)> {
        let touched = match StoreKey::parse(key) {
            Some(StoreKey::Object(key)) => {
                let all = self.fold_object(key, value, at.modified, delta);
                return all.into_iter().map(|service| (service, None)).collect();
            }
            Some(StoreKey::Node(name)) => {
                self.catalog.fold_node(name, record(key, value), at, delta)
            }
            Some(StoreKey::Registration(k)) => {
                let touched = self.catalog.fold_registration(k, record(key, value), at, delta);
                for (service, one) in &touched {
                    let its = self.catalog.of_service(service).filter(|(key, _)| *key == one);
                    self.warn_if_left_out(service, its);
                }
                touched
            }
            Some(StoreKey::Check(k)) => self.catalog.fold_check(k, record(key, value), at, delta),
            Some(StoreKey::CheckStatus(k)) => {
                self.catalog.fold_status(k, record(key, value), at, delta)
            }
            Some(StoreKey::Setting(name)) => {
                self.fold_setting(name, record(key, value), delta);
                Vec::new()
            }
            None => Vec::new(),
        };
        touched.into_iter().map(|(service, one)| (service, Some(one))).collect()
    }

    fn fold_object(
        &mut self,
        key: ObjectKey,
        value: Option<&[u8]>,
        revision: u64,
        delta: &mut WorldDelta,
    ) -> Vec<ServiceKey> {
        let old = self.objects.get(&key).cloned();
        let new = value.map(|bytes| Arc::new(Object::read(key.clone(), bytes, revision)));
        if old.is_none() && new.is_none() {
            return Vec::new();
        }
        let mut again = BTreeSet::new();
        self.services_behind(old.as_deref(), &mut again);
        match &new {
            Some(object) => self.objects.insert(key.clone(), object.clone()),
            None => self.objects.remove(&key),
        };
        self.fold_index(old.as_deref(), new.as_deref(), delta);
        self.services_behind(new.as_deref(), &mut again);
        if key.kind == KindId::Service {
            again.extend(self.changed_hands(&key, old.as_deref()));
        }
        delta.touch(ReadKey::Raw(key.clone()));
        if old.is_some() != new.is_some() {
            delta.touch(ReadKey::Kind(key.kind));
            delta.touch(ReadKey::KindIn(key.kind, key.namespace.clone()));
        }
        let same = matches!((&old, &new), (Some(a), Some(b)) if a.says_the_same(b));
        if !same {
            delta.touch(ReadKey::Object(key));
        }
        again.into_iter().collect()
    }

    fn fold_index(&mut self, old: Option<&Object>, new: Option<&Object>, delta: &mut WorldDelta) {
        let was = old.map(index::entries).unwrap_or_default();
        let is = new.map(index::entries).unwrap_or_default();
        let Some(key) = old.or(new).map(|o| o.key.clone()) else { return };
        for entry in was.difference(&is) {
            self.index.remove(&(entry.0, entry.1.clone(), Some(key.clone())));
            delta.touch(ReadKey::Index(entry.0, entry.1.clone()));
        }
        for entry in is.difference(&was) {
            self.index.insert((entry.0, entry.1.clone(), Some(key.clone())));
            delta.touch(ReadKey::Index(entry.0, entry.1.clone()));
        }
        if let Some(host) = index::chooses_others(old, new) {
            delta.touch(ReadKey::Index(Index::DestinationRulesByHost, host));
        }
    }

    /// The services whose instances an object takes part in.
    fn services_behind(&self, object: Option<&Object>, out: &mut BTreeSet<ServiceKey>) {
        let Some(object) = object else { return };
        let ns = &*object.key.namespace;
        let mut add = |meta: &Meta| {
            out.extend(service_of(meta).and_then(|name| ServiceKey::new(ns, name).ok()));
        };
        match &object.view {
            // A mirror of the catalog has no instances of its own.
            View::EndpointSlice(_) if is_mirror(&object.meta) => {}
            View::EndpointSlice(_) => add(&object.meta),
            // An invalid slice may replace a valid one of another service; its label says which.
            View::Invalid(_) if object.key.kind == KindId::EndpointSlice => add(&object.meta),
            _ if object.key.kind == KindId::Pod => {
                let pod = pair(ns, &object.key.name);
                self.index(Index::SlicesByPod, &pod).for_each(|slice| add(&slice.meta));
            }
            _ => {}
        }
    }

    /// The service of an object that others than before may be instances of.
    fn changed_hands(&self, key: &ObjectKey, old: Option<&Object>) -> Option<ServiceKey> {
        let service = ServiceKey::new(&key.namespace, &key.name).ok()?;
        let was = old.is_some_and(|old| !is_mirror(&old.meta));
        let mut registered = self.catalog.of_service(&service).peekable();
        if was == self.is_foreign(&service) || registered.peek().is_none() {
            return None;
        }
        self.warn_if_left_out(&service, registered);
        Some(service)
    }

    /// Says it once of each: where it is registered, or where its Service comes from Kubernetes.
    fn warn_if_left_out<'r>(
        &self,
        service: &ServiceKey,
        registered: impl IntoIterator<Item = (&'r RegistrationKey, &'r Arc<Registration>)>,
    ) {
        if !self.is_foreign(service) {
            return;
        }
        for (key, registration) in registered {
            tracing::warn!(
                service = %registration.service,
                id = %key.id,
                node = %key.node,
                namespace = %key.namespace,
                "left out: the Service {:?} of this name was made through the Kubernetes API, so \
                 nothing is sent to this registration; register it under another name, or delete \
                 the Service",
                service.name.as_str()
            );
        }
    }

    fn fold_instances(&mut self, service: &ServiceKey, again: &Again, delta: &mut WorldDelta) {
        let old = self.instances.get(service).cloned().unwrap_or_default();
        let new = match again {
            Again::All => instance::fold(self, service),
            Again::Some(keys) => instance::fold_some(self, service, &old, keys),
        };
        if new.ptr_eq(&old) || old == new {
            return;
        }
        delta.touch(ReadKey::Instances(service.clone()));
        if matches!(again, Again::All) {
            self.fold_services_of_pods(service, &old, &new, delta);
            self.fold_services_on(service, &old, &new);
        }
        if new.is_empty() {
            self.instances.remove(service);
        } else {
            self.instances.insert(service.clone(), new);
        }
    }

    fn fold_services_of_pods(
        &mut self,
        service: &ServiceKey,
        old: &OrdMap<InstanceId, Arc<Instance>>,
        new: &OrdMap<InstanceId, Arc<Instance>>,
        delta: &mut WorldDelta,
    ) {
        let pods = |map: &OrdMap<InstanceId, Arc<Instance>>| -> BTreeSet<Arc<str>> {
            let made_here = map.values().filter(|i| i.origin == Door::Kubernetes);
            made_here.map(|i| pair(service.namespace.as_str(), &i.id)).collect()
        };
        let (was, is) = (pods(old), pods(new));
        for pod in was.difference(&is) {
            unlink(&mut self.services_of_pod, pod, service);
            delta.touch(ReadKey::ServicesOfPod(pod.clone()));
        }
        for pod in is.difference(&was) {
            link(&mut self.services_of_pod, pod, service);
            delta.touch(ReadKey::ServicesOfPod(pod.clone()));
        }
    }

    fn fold_services_on(
        &mut self,
        service: &ServiceKey,
        old: &OrdMap<InstanceId, Arc<Instance>>,
        new: &OrdMap<InstanceId, Arc<Instance>>,
    ) {
        let nodes = |map: &OrdMap<InstanceId, Arc<Instance>>| -> BTreeSet<Arc<str>> {
            let made_here = map.values().filter(|i| i.origin == Door::Kubernetes);
            made_here.map(|i| i.node.clone()).collect()
        };
        let (was, is) = (nodes(old), nodes(new));
        was.difference(&is).for_each(|node| unlink(&mut self.services_on, node, service));
        is.difference(&was).for_each(|node| link(&mut self.services_on, node, service));
    }

    fn fold_setting(&mut self, name: Arc<str>, new: Option<Value>, delta: &mut WorldDelta) {
        let new = new.map(Arc::new);
        if self.settings.get(&name) == new.as_ref() {
            return;
        }
        match new {
            Some(value) => self.settings.insert(name.clone(), value),
            None => self.settings.remove(&name),
        };
        delta.touch(ReadKey::Setting(name));
    }
}

// === impl Object ===

impl Object {
    /// Reads stored bytes. Bytes that are no JSON become an invalid object, not an error.
    pub fn read(key: ObjectKey, bytes: &[u8], revision: u64) -> Self {
        let mut parsed = Ok(());
        let raw = serde_json::from_slice(bytes).unwrap_or_else(|e| {
            parsed = Err(e);
            Value::Null
        });
        let meta = views::read::<MetaOnly>(&raw).map(|m| m.metadata).unwrap_or_default();
        let mut view = match parsed {
            Ok(()) => View::read(key.kind, &raw),
            Err(e) => {
                let mut issues = Issues::default();
                issues.error(FieldPath::root(), format!("stored bytes are no JSON: {e}"));
                View::Invalid(issues)
            }
        };
        let mut meta = meta;
        if meta.name.is_empty() {
            meta.name = key.name.clone();
        }
        if meta.namespace.is_empty() {
            meta.namespace = key.namespace.clone();
        }
        // What the catalog says already is kept small: there are as many as services.
        let raw = match is_mirror(&meta) {
            true => Raw::packed(bytes),
            false => Raw::from(raw),
        };
        if let (View::EndpointSlice(slice), true) = (&mut view, is_mirror(&meta)) {
            slice.endpoints = Vec::new();
        }
        Self { key, revision, raw, meta, view }
    }

    fn says_the_same(&self, other: &Self) -> bool {
        if self.meta != other.meta || self.view != other.view {
            return false;
        }
        match self.view {
            View::Other | View::Invalid(_) => same_but_status(&self.raw, &other.raw),
            _ => true,
        }
    }
}

fn same_but_status(a: &Value, b: &Value) -> bool {
    let spoken = |v: &Value| -> Vec<(String, Value)> {
        let fields = v.as_object().into_iter().flatten();
        let mut out: Vec<_> = fields
            .filter(|(k, _)| *k != "status" && *k != "metadata")
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        out.sort_by(|a, b| a.0.cmp(&b.0));
        out
    };
    spoken(a) == spoken(b)
}

/// Reads a catalog record or setting. One that does not parse counts as absent, with a log line:
/// only the registry writes them, and it writes what these types serialise to.
fn record<T: DeserializeOwned>(key: &str, value: Option<&[u8]>) -> Option<T> {
    let bytes = value?;
    serde_json::from_slice(bytes)
        .inspect_err(|e| tracing::warn!(key, error = %e, "unreadable record in the store"))
        .ok()
}

#[cfg(test)]
mod tests;
