// SPDX-License-Identifier: Apache-2.0
//! The World as one compile step sees it: every question asked is noted, so that the step runs
//! again when, and only when, an answer changed.

use std::cell::RefCell;
use std::collections::HashSet;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use weft_base::name::ServiceKey;
use weft_kinds::views::View;
use weft_kinds::views::core::Service;
use weft_kinds::world::{
    Index, Instance, InstanceId, KindId, Object, ObjectKey, PODS_SETTING, PodsMode, ReadKey, World,
    resolved_setting,
};

use super::rule_clients::Shared;

#[derive(Debug)]
pub struct Reader<'w> {
    world: &'w World,
    reads: RefCell<HashSet<ReadKey>>,
    shared: Rc<Shared<'w>>,
}

// === impl Reader ===

impl<'w> Reader<'w> {
    pub fn new(world: &'w World) -> Self {
        Self::sharing(world, Rc::default())
    }

    /// One of several units of one World, which share what is made of it.
    pub fn sharing(world: &'w World, shared: Rc<Shared<'w>>) -> Self {
        Self { world, reads: RefCell::default(), shared }
    }

    pub fn shared(&self) -> &Shared<'w> {
        &self.shared
    }

    /// The questions asked so far.
    pub fn into_reads(self) -> HashSet<ReadKey> {
        self.reads.into_inner()
    }

    pub fn object(&self, kind: KindId, namespace: &str, name: &str) -> Option<&'w Arc<Object>> {
        self.key(&ObjectKey::new(kind, namespace, name))
    }

    pub fn key(&self, key: &ObjectKey) -> Option<&'w Arc<Object>> {
        self.note(ReadKey::Object(key.clone()));
        self.world.object(key)
    }

    pub fn service(&self, key: &ServiceKey) -> Option<(&'w Object, &'w Service)> {
        let object = self.object(KindId::Service, key.namespace.as_str(), key.name.as_str())?;
        match &object.view {
            View::Service(service) => Some((object, service)),
            _ => None,
        }
    }

    /// The objects under one value of an index, in order of their keys.
    pub fn index(&self, index: Index, value: &str) -> Vec<&'w Arc<Object>> {
        self.note(ReadKey::Index(index, value.into()));
        let found: Vec<_> = self.world.index(index, value).collect();
        found.iter().for_each(|o| self.note(ReadKey::Object(o.key.clone())));
        found
    }

    /// The same, of which nothing is noted: see [`Self::note_list`] and [`Self::note_object`].
    pub fn listed(&self, index: Index, value: &str) -> impl Iterator<Item = &'w Arc<Object>> {
        self.world.index(index, value)
    }

    /// Notes that a list was read.
    pub fn note_list(&self, index: Index, value: &str) {
        self.note(ReadKey::Index(index, value.into()));
    }

    /// Notes that an object was read.
    pub fn note_object(&self, key: &ObjectKey) {
        self.note(ReadKey::Object(key.clone()));
    }

    /// Whether anything stands under one value of an index.
    pub fn index_has(&self, index: Index, value: &str) -> bool {
        self.note(ReadKey::Index(index, value.into()));
        self.world.index(index, value).next().is_some()
    }

    /// All objects of a kind, of one namespace or of all.
    pub fn kind(&self, kind: KindId, namespace: Option<&str>) -> Vec<&'w Arc<Object>> {
        self.note(match namespace {
            Some(ns) => ReadKey::KindIn(kind, ns.into()),
            None => ReadKey::Kind(kind),
        });
        let found: Vec<_> = self.world.objects(kind, namespace).collect();
        found.iter().for_each(|o| self.note(ReadKey::Object(o.key.clone())));
        found
    }

    pub fn instances(&self, service: &ServiceKey) -> &'w imbl::OrdMap<InstanceId, Arc<Instance>> {
        self.note(ReadKey::Instances(service.clone()));
        self.world.instances(service.namespace.as_str(), service.name.as_str())
    }

    /// The services that a pod is an instance of.
    pub fn services_of_pod(&self, namespace: &str, pod: &str) -> Vec<ServiceKey> {
        self.note(ReadKey::ServicesOfPod(weft_kinds::world::pair(namespace, pod)));
        self.world.services_of_pod(namespace, pod).cloned().collect()
    }

    /// How pods run unless their node says otherwise.
    pub fn pods_mode(&self) -> PodsMode {
        self.note(ReadKey::Setting(PODS_SETTING.into()));
        self.world.pods_mode()
    }

    /// What a name outside of the mesh resolves to.
    pub fn resolved(&self, name: &str) -> Vec<IpAddr> {
        self.note(ReadKey::Setting(resolved_setting(name).into()));
        self.world.resolved(name)
    }

    fn note(&self, key: ReadKey) {
        self.reads.borrow_mut().insert(key);
    }
}
