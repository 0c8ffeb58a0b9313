// SPDX-License-Identifier: Apache-2.0
//! What was read of a World and what changed in it, in one vocabulary.
//!
//! A reader notes each question it asked as a [`ReadKey`]; folding one store event yields the
//! [`WorldDelta`] of exactly those questions whose answer changed. Whoever's reads meet the
//! delta thinks again; nobody else does.

use std::collections::BTreeSet;
use std::sync::Arc;

use weft_base::name::ServiceKey;

use super::{Index, KindId, ObjectKey};

/// A question to the World.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ReadKey {
    /// What one object says: its metadata and view (for kinds without a view: everything but
    /// status). Status, managed fields and revision are no part of it.
    Object(ObjectKey),
    /// All of one object's stored JSON and its revision.
    Raw(ObjectKey),
    /// Which objects of a kind exist.
    Kind(KindId),
    /// Which objects of a kind exist in one namespace.
    KindIn(KindId, Arc<str>),
    /// Which objects stand under one value of an index.
    Index(Index, Arc<str>),
    /// The instances of a service.
    Instances(ServiceKey),
    /// Which services a pod (`namespace/name`) is an instance of.
    ServicesOfPod(Arc<str>),
    /// A catalog node's record.
    Node(Arc<str>),
    /// All that the catalog holds of a service: registrations, their checks, statuses, outputs.
    Catalog(ServiceKey),
    /// All that the catalog holds of a node: registrations, checks, statuses, outputs.
    CatalogNode(Arc<str>),
    Setting(Arc<str>),
}

/// The questions whose answers one change touched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorldDelta {
    touched: BTreeSet<ReadKey>,
}

// === impl WorldDelta ===

impl WorldDelta {
    pub fn touch(&mut self, key: ReadKey) {
        self.touched.insert(key);
    }

    pub fn contains(&self, key: &ReadKey) -> bool {
        self.touched.contains(key)
    }

    pub fn iter(&self) -> impl Iterator<Item = &ReadKey> {
        self.touched.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.touched.is_empty()
    }

    pub fn len(&self) -> usize {
        self.touched.len()
    }

    /// Adds what another change touched.
    pub fn merge(&mut self, other: Self) {
        self.touched.extend(other.touched);
    }

    /// The objects whose stored form changed in any way.
    pub fn objects(&self) -> impl Iterator<Item = &ObjectKey> {
        self.touched.iter().filter_map(|k| match k {
            ReadKey::Raw(key) => Some(key),
            _ => None,
        })
    }
}

impl FromIterator<ReadKey> for WorldDelta {
    fn from_iter<I: IntoIterator<Item = ReadKey>>(keys: I) -> Self {
        Self { touched: keys.into_iter().collect() }
    }
}
