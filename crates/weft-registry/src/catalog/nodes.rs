// SPDX-License-Identifier: Apache-2.0
//! The catalog's verbs about nodes, and about checks that do not come with their service. As
//! those of [`super::Handle`] they plan, write one transaction, and return once the World shows it.

use weft_kinds::views::catalog::{CheckRecord, NodeRecord};
use weft_kinds::world::World;

use super::{CatalogError, Handle, check_key, has_joined, plan};

// === impl Handle ===

impl Handle {
    /// Writes a node's record, or with `update` unset only when there is none.
    ///
    /// # Errors
    /// When the store refuses.
    pub async fn register_node(&self, node: &NodeRecord, update: bool) -> Result<(), CatalogError> {
        self.register_on((node, update), &[]).await
    }

    /// Adds or replaces a check.
    ///
    /// # Errors
    /// When its service is unknown, a limit is passed, or the store refuses.
    pub async fn register_check(
        &self,
        node: &NodeRecord,
        check: CheckRecord,
    ) -> Result<(), CatalogError> {
        self.register_on((node, false), std::slice::from_ref(&check)).await
    }

    /// Writes a node, as [`Handle::register_node`] does, with checks of its own or of what is on
    /// it: all at one revision.
    ///
    /// # Errors
    /// When a service is unknown, a limit is passed, or the store refuses.
    pub async fn register_on(
        &self,
        (node, update): (&NodeRecord, bool),
        checks: &[CheckRecord],
    ) -> Result<(), CatalogError> {
        if checks.iter().any(|check| check.id.is_empty()) {
            return Err(CatalogError::Invalid("a check needs an id".to_owned()));
        }
        // One that is there will do, and is not looked for again.
        let is_there = || self.0.world.load().catalog().node(&node.node).is_some();
        if checks.is_empty() && !update && is_there() {
            return Ok(());
        }
        let begun = self.begun();
        // Of the node where there is none.
        let of = checks.iter().map(|check| &*check.service_id);
        let none = checks.is_empty().then_some("");
        let _turns = self.turns(&node.node, of.chain(none)).await;
        let plan = |world: &World| plan::register_on(world.catalog(), (node, update), checks);
        self.change(begun, plan).await?;
        checks.iter().for_each(|check| self.watch(&check_key(check)));
        Ok(())
    }

    /// Removes a node with all that is on it.
    ///
    /// # Errors
    /// When the store refuses.
    pub async fn deregister_node(&self, node: &str) -> Result<(), CatalogError> {
        let mut world = self.known().await?;
        loop {
            let joined = has_joined(&world, node);
            let txn = plan::deregister_node(world.catalog(), node, joined);
            if txn.ops.is_empty() {
                return Ok(());
            }
            self.write(txn).await?;
            world = self.0.world.load();
        }
    }
}
