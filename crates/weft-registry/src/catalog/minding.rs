// SPDX-License-Identifier: Apache-2.0
//! Which of several servers minds a check: counts its time to live, and says when that is over. A
//! result names the server that heard it and ends with it; what nobody has heard is the leader's.
//! So a client may move from one server to another, and a heartbeat that says nothing new writes
//! nothing but at that moment. Alone on its store a server minds them all.

use std::time::Duration;

use weft_kinds::views::catalog::{CheckStatus, Status};
use weft_kinds::world::{CheckKey, RegistrationKey, StoreKey, World};
use weft_store::Compare;

use super::{CatalogError, Handle};

/// How often a leader looks for deadlines that other servers set.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl Handle {
    /// When to look next, which among others is at least every second.
    pub(super) fn look_soon(&self, wait: Option<Duration>) -> Option<Duration> {
        match self.0.leader.is_shared() {
            true => Some(wait.unwrap_or(LOOK_EVERY).min(LOOK_EVERY)),
            false => wait,
        }
    }

    /// Takes up a definition that another server may have been given.
    pub(super) fn learn(&self, key: &CheckKey) {
        if self.0.leader.is_shared()
            && let Some(check) = self.0.world.load().catalog().check(key)
        {
            self.timers().watch(check, self.0.clock.now());
        }
    }

    /// Whether a result is not this server's, so that it is written again although it is the same:
    /// what another server heard ends with that server.
    pub fn is_anothers(&self, known: Option<&CheckStatus>) -> bool {
        match known {
            Some(known) => *known.by != *self.0.leader.run_id(),
            None => self.0.leader.is_shared(),
        }
    }

    /// Of several servers each minds the checks whose results are its own, and the leader those
    /// without a result: nobody has reported yet, or the server that heard them is gone.
    pub(super) fn is_mine(&self, world: &World, key: &CheckKey) -> bool {
        match world.catalog().result(key) {
            Some(result) => *result.by == *self.0.leader.run_id(),
            None => self.0.leader.is_here(),
        }
    }

    /// Who says that a check's time is over: this server of what it heard, the leader of what
    /// nobody heard. A leader that was overtaken writes nothing, nor does one whose check is heard
    /// by now.
    pub(super) fn minder(&self, key: &CheckKey, result: Option<&CheckStatus>) -> Self {
        match result {
            Some(_) => self.clone(),
            None => {
                let at = StoreKey::CheckStatus(key.clone()).to_string();
                self.held([Compare::Absent(at.into())].into_iter().chain(self.0.leader.fence()))
            }
        }
    }

    /// Removes an instance that was critical for too long, as the leader, and only while its check
    /// is critical in the store as well: the World may not show yet that it passes.
    pub(super) async fn reap(&self, key: &CheckKey, service_id: &str) -> Result<(), CatalogError> {
        if !self.0.leader.is_here() {
            return Ok(());
        }
        let fence = self.0.leader.fence();
        let at = StoreKey::CheckStatus(key.clone()).to_string();
        let (_, result) = self.0.store.get(&at).await?;
        let world = self.0.world.load();
        let (status, same) = match &result {
            None => {
                let check = world.catalog().check(key);
                (check.map(|c| c.initial), Compare::Absent(at.into()))
            }
            Some(entry) => {
                let said = serde_json::from_slice::<CheckStatus>(&entry.value).ok();
                (said.map(|s| s.status), Compare::ModRevision(at.into(), entry.modified))
            }
        };
        if status != Some(Status::Critical) {
            return Ok(());
        }
        tracing::info!(
            service = service_id, check = ?key.id, node = ?key.node,
            "deregistering a service that was critical for too long"
        );
        let instance = RegistrationKey {
            namespace: key.namespace.clone(),
            node: key.node.clone(),
            id: service_id.into(),
        };
        self.held([same].into_iter().chain(fence)).deregister_service(&instance).await
    }

    /// Takes up deadlines that other servers set: who leads has them all.
    pub(super) fn adopt(&self, world: &World) {
        if !self.0.leader.is_shared() || !self.0.leader.is_here() {
            return;
        }
        let (now, mut timers) = (self.0.clock.now(), self.timers());
        let mut late = Vec::new();
        for (key, check) in world.catalog().checks() {
            timers.watch(check, now);
            // The time to live begins anew with whoever minds it from now on.
            match world.catalog().result(key) {
                Some(result) if *result.by != *self.0.leader.run_id() => late.push(key),
                None if !timers.is_armed(key) => late.push(key),
                _ => {}
            }
        }
        late.into_iter().for_each(|key| timers.beat(key, now));
    }
}
