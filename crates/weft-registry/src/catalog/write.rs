// SPDX-License-Identifier: Apache-2.0
//! How the catalog's changes get into the store, which other servers may write to as well. Called
//! by [`super::Handle`]'s verbs, which hold the turn of what they change.

use std::sync::Arc;

use weft_kinds::world::World;
use weft_store::Txn;

use super::{CatalogError, Handle};
use crate::consul::Barriers;

/// How often what was overtaken is planned anew.
const ATTEMPTS: usize = 10;

// === impl Handle ===

impl Handle {
    pub(crate) fn barriers(&self) -> &Barriers {
        &self.0.barriers
    }

    /// How many barriers were begun. Asked before a turn is waited for: all who wait share one.
    pub(super) fn begun(&self) -> u64 {
        self.0.barriers.begun()
    }

    /// The World with all in it that other servers wrote before this call: what looks done in an
    /// older one may have been undone.
    pub(super) async fn caught_up(&self) -> Result<Arc<World>, CatalogError> {
        self.caught_up_since(self.begun()).await
    }

    /// The same of what was acknowledged when so many barriers were begun.
    async fn caught_up_since(&self, begun: u64) -> Result<Arc<World>, CatalogError> {
        let head = self.0.barriers.pass(begun, &*self.0.store).await?;
        let mut worlds = self.0.world.clone();
        loop {
            let world = worlds.load();
            if world.revision() >= head.0 {
                return Ok(world);
            }
            if !worlds.changed().await {
                return Err(CatalogError::Closed);
            }
        }
    }

    /// The World, with all that other servers acknowledged before where there may be some.
    pub(super) async fn known(&self) -> Result<Arc<World>, CatalogError> {
        match self.0.leader.is_shared() {
            true => self.caught_up().await,
            false => Ok(self.0.world.load()),
        }
    }

    /// Writes what is planned. What looks done already, or cannot be done, may be another matter
    /// in what another server acknowledged since: before that is said it is planned anew on that.
    /// `begun`: the barriers that were begun when the request came.
    pub(super) async fn change(
        &self,
        mut begun: u64,
        plan: impl Fn(&World) -> Result<Txn, CatalogError>,
    ) -> Result<(), CatalogError> {
        let planned = plan(&self.0.world.load());
        let writes = planned.as_ref().is_ok_and(|txn| !txn.ops.is_empty());
        if writes || !self.0.leader.is_shared() {
            match self.write(planned?).await {
                Err(CatalogError::Contended) => begun = self.begun(),
                done => return done,
            }
        }
        for _ in 1..ATTEMPTS {
            let world = self.caught_up_since(begun).await?;
            match self.write(plan(&world)?).await {
                Err(CatalogError::Contended) => begun = self.begun(),
                done => return done,
            }
        }
        Err(CatalogError::Contended)
    }

    /// One transaction; returns once the World shows it.
    pub(super) async fn write(&self, mut txn: Txn) -> Result<(), CatalogError> {
        if txn.ops.is_empty() {
            return Ok(());
        }
        let own = txn.compares.len();
        // What the plan compares itself counts once.
        let more: Vec<_> =
            self.1.iter().filter(|one| !txn.compares.contains(one)).cloned().collect();
        txn.compares.extend(more);
        let outcome = self.0.store.txn(txn).await?;
        if !outcome.succeeded {
            return Err(match outcome.failed {
                Some(at) if at >= own => CatalogError::Overtaken,
                _ => CatalogError::Contended,
            });
        }
        let mut world = self.0.world.clone();
        while world.load().revision() < outcome.revision.0 {
            if !world.changed().await {
                return Err(CatalogError::Closed);
            }
        }
        Ok(())
    }
}
