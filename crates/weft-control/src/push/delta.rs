// SPDX-License-Identifier: Apache-2.0
//! What the compile loop hands over: changed resources, and whose scope changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_model::{Resource, ResourceName};
use weft_xds::NodeId;

/// What changed from one World to a later one.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    /// Revision of the World that these resources were compiled from. Submit one for every
    /// revision, also when nothing changed, so that waiters learn that it was looked at.
    pub generation: u64,
    pub upserts: BTreeMap<ResourceName, Arc<Resource>>,
    /// Removing a root's own resource removes its children.
    pub removes: BTreeSet<ResourceName>,
    pub rescope: Rescope,
}

/// Whose [`super::Nodes::scope`] must be asked again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Rescope {
    #[default]
    Nobody,
    Nodes(BTreeSet<NodeId>),
    Everybody,
}

// === impl Delta ===

impl Delta {
    /// Nothing but a newer generation.
    pub fn at(generation: u64) -> Self {
        Self { generation, ..Self::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.removes.is_empty() && self.rescope == Rescope::Nobody
    }

    /// Whether it only moves endpoints, which does not wait.
    pub fn is_urgent(&self) -> bool {
        let endpoints = |r: &Arc<Resource>| matches!(**r, Resource::Endpoints(_));
        self.removes.is_empty()
            && self.rescope == Rescope::Nobody
            && self.upserts.values().all(endpoints)
    }

    /// Takes a later delta in; the later word counts.
    pub fn merge(&mut self, later: Delta) {
        self.generation = self.generation.max(later.generation);
        for name in later.removes {
            if name.child.is_empty() {
                self.upserts.retain(|n, _| n.root != name.root);
            } else {
                self.upserts.remove(&name);
            }
            self.removes.insert(name);
        }
        // Removals are applied first, so an earlier one of the same name stays harmless, and one
        // of its root must stay.
        self.upserts.extend(later.upserts);
        self.rescope.merge(later.rescope);
    }
}

// === impl Rescope ===

impl Rescope {
    fn merge(&mut self, later: Rescope) {
        match (&mut *self, later) {
            (_, Rescope::Nobody) | (Rescope::Everybody, _) => {}
            (Rescope::Nodes(have), Rescope::Nodes(more)) => have.extend(more),
            (_, later) => *self = later,
        }
    }

    pub(super) fn includes(&self, node: &NodeId) -> bool {
        match self {
            Self::Nobody => false,
            Self::Nodes(nodes) => nodes.contains(node),
            Self::Everybody => true,
        }
    }
}
