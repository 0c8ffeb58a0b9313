// SPDX-License-Identifier: Apache-2.0
//! Transactions over pairs and the catalog at once: all of it at one revision, or nothing.

use std::sync::Arc;

use weft_kinds::views::catalog::{CheckRecord, NodeRecord, Registration};
use weft_kinds::world::{CheckKey, RegistrationKey, StoreKey, World};
use weft_store::{Compare, Op, Txn};

use super::error::ConsulError;
use super::{Draft, Handle};
use crate::catalog::{CatalogError, ServiceRequest, plan};

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

impl Handle {
    /// Does verbs on pairs and changes the catalog; `verbs` may run several times, each time on
    /// a newer state, and says what is to become of the catalog. `seen`: what must not have
    /// changed since the caller looked; else it is [`CatalogError::Overtaken`], and the caller
    /// looks again.
    ///
    /// # Errors
    /// What `verbs` refuses with; [`ConsulError::Refused`] for a change of the catalog, by its
    /// place among them; or when the store refuses.
    pub async fn transact<T>(
        &self,
        seen: &[(StoreKey, Option<u64>)],
        verbs: impl Fn(&mut Draft, &World) -> Result<(Vec<(usize, CatalogOp)>, T), ConsulError>,
    ) -> Result<(u64, T), ConsulError> {
        let mut checks = Vec::new();
        let given: Vec<Compare> = seen.iter().map(crate::catalog::unchanged).collect();
        let done = {
            let checks = std::sync::Mutex::new(&mut checks);
            self.attempt_given(&given, |state| {
                let world = self.world();
                let mut draft = Draft::new(state);
                let (changes, out) = verbs(&mut draft, &world)?;
                let mut txn = draft.into_txn()?;
                catalog_ops(&mut txn, &world, &changes)?;
                if let Ok(mut checks) = checks.lock() {
                    **checks = changes.into_iter().filter_map(|(_, op)| set_check(op)).collect();
                }
                Ok::<_, ConsulError>((txn, out))
            })
            .await?
        };
        for check in &checks {
            self.catalog().watch(check);
        }
        Ok(done)
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

// === helpers ===

fn set_check(op: CatalogOp) -> Option<CheckKey> {
    match op {
        CatalogOp::SetCheck(check) => Some(plan::check_key(&check)),
        _ => None,
    }
}

fn catalog_ops(
    txn: &mut Txn,
    world: &World,
    changes: &[(usize, CatalogOp)],
) -> Result<(), ConsulError> {
    let mut refused = Vec::new();
    for (at, change) in changes {
        match planned(world, changes, change) {
            Ok(part) => merge(txn, part),
            Err(why) => refused.push((*at, why.to_string())),
        }
    }
    if refused.is_empty() { Ok(()) } else { Err(ConsulError::Refused(refused)) }
}

fn planned(
    world: &World,
    changes: &[(usize, CatalogOp)],
    change: &CatalogOp,
) -> Result<Txn, CatalogError> {
    let catalog = world.catalog();
    match change {
        CatalogOp::SetNode(node) => plan::register_node(catalog, node, true),
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
            let node = node_of(world, changes, &registration.node)?;
            let checks = changes.iter().filter_map(|(_, op)| match op {
                CatalogOp::SetCheck(check) if is_of(check, registration) => Some(check.clone()),
                _ => None,
            });
            let (registration, checks) = (registration.clone(), checks.collect());
            plan::register(
                catalog,
                ServiceRequest { registration, checks, node, ..Default::default() },
            )
        }
        CatalogOp::DeleteService(key) => match plan::deregister(catalog, key) {
            Err(CatalogError::UnknownService { .. }) => Ok(Txn::default()),
            other => other,
        },
        // Planned along with its service.
        CatalogOp::SetCheck(check) if changes.iter().any(|(_, op)| sets_service_of(op, check)) => {
            Ok(Txn::default())
        }
        CatalogOp::SetCheck(check) => {
            let node = node_of(world, changes, &check.node)?;
            plan::register_check(catalog, &node, check.clone())
        }
        CatalogOp::DeleteCheck(key) => match plan::deregister_check(catalog, key) {
            Err(CatalogError::UnknownCheck { .. }) => Ok(Txn::default()),
            other => other,
        },
    }
}

fn is_of(check: &CheckRecord, service: &Registration) -> bool {
    check.service_id == service.id && check.node == service.node
}

fn sets_service_of(op: &CatalogOp, check: &CheckRecord) -> bool {
    matches!(op, CatalogOp::SetService(service) if is_of(check, service))
}

/// A node as it is, or as this transaction makes it.
fn node_of(
    world: &World,
    changes: &[(usize, CatalogOp)],
    name: &str,
) -> Result<NodeRecord, CatalogError> {
    let made = changes.iter().find_map(|(_, op)| match op {
        CatalogOp::SetNode(node) if *node.node == *name => Some(node.clone()),
        _ => None,
    });
    let known = || world.catalog().node(name).map(|node| (**node).clone());
    made.or_else(known).ok_or_else(|| CatalogError::Invalid(format!("node {name:?} is not known")))
}

/// Later writes of a key take the place of earlier ones.
fn merge(txn: &mut Txn, part: Txn) {
    for op in part.ops {
        txn.ops.retain(|old| old.key() != op.key());
        txn.ops.push(op);
    }
    for compare in part.compares {
        // What this transaction itself makes need not be there before.
        let made =
            txn.ops.iter().any(|op| op.key() == compare.key() && matches!(op, Op::Put { .. }));
        if !made && !txn.compares.contains(&compare) {
            txn.compares.push(compare);
        }
    }
}
