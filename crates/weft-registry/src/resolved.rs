// SPDX-License-Identifier: Apache-2.0
//! Addresses of names outside of the mesh, as whoever looks them up tells them. They live in
//! memory: after a restart they are looked up again.

use std::net::IpAddr;

use weft_kinds::world::{RESOLVED_SETTINGS, resolved_setting, resolved_value};
use weft_store::{Op, StoreError, Txn};

use crate::Registry;

impl Registry {
    /// Notes what a name resolves to; writes only what is news.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn note_resolved(&self, name: &str, found: &[IpAddr]) -> Result<(), StoreError> {
        if self.now().resolved(name) == found {
            return Ok(());
        }
        let key = format!("/s/{}", resolved_setting(name));
        self.note_setting(Op::put_ephemeral(key, resolved_value(found).to_string())).await
    }

    /// Forgets the names that `wanted` does not hold.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn forget_resolved(&self, wanted: impl Fn(&str) -> bool) -> Result<(), StoreError> {
        let world = self.now();
        for (setting, _) in world.settings() {
            if setting.strip_prefix(RESOLVED_SETTINGS).is_some_and(|name| !wanted(name)) {
                self.note_setting(Op::delete(format!("/s/{setting}"))).await?;
            }
        }
        Ok(())
    }

    async fn note_setting(&self, op: Op) -> Result<(), StoreError> {
        let done = self.store().txn(Txn::of([op])).await?;
        self.wait_revision(done.revision).await;
        Ok(())
    }
}
