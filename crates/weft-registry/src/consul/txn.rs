// SPDX-License-Identifier: Apache-2.0
//! Transactions over pairs and the catalog at once: all of it at one revision, or nothing.

use std::sync::Arc;

use weft_kinds::views::catalog::{CheckRecord, NodeRecord, Registration, Since};
use weft_kinds::world::{CheckKey, RegistrationKey, StoreKey, World};
use weft_store::{Compare, Op, Txn};

use super::error::ConsulError;
use super::state::State;
use super::{COORDINATES, Draft, Handle, keys};
use crate::catalog::{CatalogError, ServiceRequest, plan};

/// When a record was written that a [`CatalogDraft`] writes: the revision is known once it is done.
pub const UNWRITTEN: Since = Since(u64::MAX);

/// One change of the catalog.
#[derive(Clone, Debug)]
pub enum CatalogOp {
    SetNode(NodeRecord),
    DeleteNode(Arc<str>),
    SetService(Registration),
    DeleteService(RegistrationKey),
    SetCheck(CheckRecord),
    DeleteCheck(CheckKey),
}

/// Changes of the catalog, made one after the other on a look at the [`World`]; each sees those
/// before it.
#[derive(Debug)]
pub struct CatalogDraft {
    /// As it is with them.
    now: World,
    txn: Txn,
    checks: Vec<CheckKey>,
}

impl Handle {
    /// Does verbs on pairs and changes the catalog; `verbs` may run several times, each time on
    /// a newer state. `seen`: what must not have changed since the caller looked; else it is
    /// [`CatalogError::Overtaken`], and the caller looks again. `is_fresh`: the caller has caught
    /// up with the store, or need not.
    ///
    /// # Errors
    /// What `verbs` refuses with, or when the store refuses.
    pub async fn transact<T>(
        &self,
        (seen, is_fresh): (&[(StoreKey, Option<u64>)], bool),
        verbs: impl Fn(&mut Draft, &mut CatalogDraft) -> Result<T, ConsulError>,
    ) -> Result<(u64, T), ConsulError> {
        let given: Vec<Compare> = seen.iter().map(crate::catalog::unchanged).collect();
        let (revision, (checks, out)) = self
            .attempt_given((!is_fresh).then(|| self.begun()), &given, |state| {
                let mut draft = Draft::new(state);
                let mut catalog = CatalogDraft::new((*self.world()).clone());
                let out = verbs(&mut draft, &mut catalog)?;
                let mut txn = draft.into_txn()?;
                let is_needed = |op: &Op| !is_coordinate_that_is_not_there(state, op);
                txn.ops.extend(catalog.txn.ops.into_iter().filter(is_needed));
                txn.compares.extend(catalog.txn.compares);
                Ok::<_, ConsulError>((txn, (catalog.checks, out)))
            })
            .await?;
        for check in &checks {
            self.catalog().watch(check);
        }
        Ok((revision, out))
    }

    /// The revision that last changed a record of the catalog; reads show it, or a later one.
    ///
    /// # Errors
    /// When the store cannot say, or the registry stops.
    pub async fn modified(&self, key: &StoreKey) -> Result<Option<u64>, ConsulError> {
        let (revision, entry) = self.store().get(&key.to_string()).await?;
        self.reached(revision.0).await?;
        Ok(entry.map(|entry| entry.modified.0))
    }
}

// === impl CatalogDraft ===

impl CatalogDraft {
    fn new(now: World) -> Self {
        Self { now, txn: Txn::default(), checks: Vec::new() }
    }

    /// The World with the changes made so far; what they wrote is [`UNWRITTEN`].
    pub fn world(&self) -> &World {
        &self.now
    }

    /// Makes one more change. A refused one leaves the draft as it was.
    ///
    /// # Errors
    /// When the catalog cannot have it.
    pub fn make(&mut self, change: CatalogOp) -> Result<(), CatalogError> {
        let part = planned(&self.now, &change)?;
        for compare in part.compares {
            // What this draft made or took away itself need not be so before.
            let own = self.txn.ops.iter().any(|op| op.key() == compare.key());
            if !own && !self.txn.compares.contains(&compare) {
                self.txn.compares.push(compare);
            }
        }
        for op in part.ops {
            let value = match &op {
                Op::Put { value, .. } => Some(&**value),
                Op::Delete { .. } | Op::DeletePrefix { .. } => None,
            };
            self.now.apply(op.key(), value, UNWRITTEN.0);
            // A later write of a key takes the place of an earlier one.
            self.txn.ops.retain(|old| old.key() != op.key());
            self.txn.ops.push(op);
        }
        if let CatalogOp::SetCheck(check) = &change {
            self.checks.push(plan::check_key(check));
        }
        Ok(())
    }
}

// === helpers ===

/// Whether it takes away where a node is of which nobody said that: it costs room and does nothing.
fn is_coordinate_that_is_not_there(state: &State, op: &Op) -> bool {
    let all = keys::record(COORDINATES, "");
    let name = op.key().strip_prefix(all.as_str());
    matches!(op, Op::Delete { .. })
        && name.is_some_and(|name| state.record(COORDINATES, name).is_none())
}

fn planned(world: &World, change: &CatalogOp) -> Result<Txn, CatalogError> {
    let catalog = world.catalog();
    let node_of = |name: &str| {
        let known = catalog.node(name).map(|node| (**node).clone());
        known.ok_or_else(|| CatalogError::Invalid(format!("node {name:?} is not known")))
    };
    match change {
        CatalogOp::SetNode(node) => plan::register_on(catalog, (node, true), &[]),
        CatalogOp::DeleteNode(node) => {
            let txn = plan::deregister_node(catalog, node, crate::catalog::has_joined(world, node));
            match txn.ops.iter().any(|op| **op.key() == *StoreKey::Node(node.clone()).to_string()) {
                false if !txn.ops.is_empty() => Err(CatalogError::Invalid(format!(
                    "node {node:?} has more on it than one transaction can delete; use \
                     /v1/catalog/deregister"
                ))),
                _ => Ok(txn),
            }
        }
        CatalogOp::SetService(registration) => {
            crate::catalog::refuse_foreign(world, &registration.namespace, &registration.service)?;
            let (registration, node) = (registration.clone(), node_of(&registration.node)?);
            plan::register(catalog, ServiceRequest { registration, node, ..Default::default() })
        }
        CatalogOp::DeleteService(key) => match plan::deregister(catalog, key) {
            Err(CatalogError::UnknownService { .. }) => Ok(Txn::default()),
            other => other,
        },
        CatalogOp::SetCheck(check) => {
            plan::register_check(catalog, &node_of(&check.node)?, check.clone())
        }
        CatalogOp::DeleteCheck(key) => match plan::deregister_check(catalog, key) {
            Err(CatalogError::UnknownCheck { .. }) => Ok(Txn::default()),
            other => other,
        },
    }
}
