// SPDX-License-Identifier: Apache-2.0
//! Which of several servers minds a check: counts its time to live, and says when that is over. A
//! result names the run of the server that heard it, and outlasts it. Those of servers that are
//! gone, and what nobody has heard, are the leader's to mind: it gives each its whole time to live
//! from when it took it up. So a client may move from one server to another, a heartbeat that says
//! nothing new writes nothing but at that moment, and no check ends because its server did. Alone
//! on its store a server minds them all.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use weft_kinds::views::catalog::{CheckStatus, Status};
use weft_kinds::world::{CheckKey, RegistrationKey, StoreKey, World};
use weft_store::{Compare, Entry, Key, Op, Txn};

use super::{CatalogError, Handle};
use crate::servers;

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
    /// who minds it is told by it.
    pub fn is_anothers(&self, known: Option<&CheckStatus>) -> bool {
        self.0.leader.is_shared() && known.is_none_or(|known| *known.by != *self.0.leader.run_id())
    }

    /// Of several servers each minds the checks whose results are its own, and the leader those
    /// that no server hears.
    pub(super) fn is_mine(&self, world: &World, key: &CheckKey) -> bool {
        self.minds(world.catalog().result(key).map(|result| &*result.by))
    }

    fn minds(&self, heard_by: Option<&str>) -> bool {
        let leader = &self.0.leader;
        let own = heard_by.is_some_and(|by| by == leader.run_id());
        let unheard = || heard_by.is_none_or(|by| !leader.is_there(by));
        !leader.is_shared() || own || (leader.is_here() && unheard())
    }

    /// Who says that a check's time is over: this server of what it heard, the leader of what
    /// nobody hears. Its writes hold as long as the check's result is as it is now; a leader that
    /// was overtaken writes nothing. None when the check is another's to mind by now.
    pub(super) async fn minder(&self, key: &CheckKey) -> Result<Option<Self>, CatalogError> {
        if !self.0.leader.is_shared() {
            return Ok(Some(self.clone()));
        }
        let at: Key = StoreKey::CheckStatus(key.clone()).to_string().into();
        let (_, entry) = self.0.store.get(&at).await?;
        let said = |entry: &Entry| serde_json::from_slice::<CheckStatus>(&entry.value).ok();
        let by = entry.as_ref().map(|entry| said(entry).unwrap_or_default().by);
        if !self.minds(by.as_deref()) {
            return Ok(None);
        }
        let own = by.as_ref().is_some_and(|by| **by == *self.0.leader.run_id());
        if let Some(by) = by.filter(|_| !own) {
            // Asked now: a server may have come since they were listed last.
            let runs = servers::runs(&*self.0.store).await?;
            let there = runs.contains(&by);
            self.0.leader.note_runs(runs);
            if there {
                return Ok(None);
            }
        }
        let fence = self.0.leader.fence().filter(|_| !own);
        let same = match entry {
            Some(entry) => Compare::ModRevision(at, entry.modified),
            None => Compare::Absent(at),
        };
        Ok(Some(self.held([same].into_iter().chain(fence))))
    }

    pub(super) async fn write_status(
        &self,
        key: &CheckKey,
        status: Status,
        output: Arc<str>,
    ) -> Result<(), CatalogError> {
        let by = self.0.leader.run_id().into();
        let mut said = CheckStatus { status, output, by, ..CheckStatus::default() };
        let world = self.0.world.load();
        if let Some(known) = world.catalog().result(key).filter(|k| k.says_the_same(&said)) {
            // It is written again, and has been so since.
            said.modified = known.modified;
        }
        let value = serde_json::to_vec(&said)?;
        let at = StoreKey::CheckStatus(key.clone()).to_string();
        let exists = Compare::Exists(StoreKey::Check(key.clone()).to_string().into());
        // Among several servers it outlasts the one that heard it. Alone it waits for no disk; a
        // copy on disk follows ([`super::remember`]).
        let put = match self.0.leader.is_shared() {
            true => Op::put(at, value),
            false => Op::put_ephemeral(at, value),
        };
        match self.write(Txn::of([put]).when(exists)).await {
            // Deregistered meanwhile.
            Err(CatalogError::Contended) => {
                Err(CatalogError::UnknownCheck { id: key.id.to_string() })
            }
            other => other,
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

    /// Takes up deadlines that other servers set: who leads has them all. The time to live of what
    /// another server hears begins anew for as long as it is there; and who begins to lead knows of
    /// none of them when they were heard.
    pub(super) fn adopt(&self, world: &World) {
        let leader = &self.0.leader;
        if !leader.is_shared() || !leader.is_here() {
            return;
        }
        let new = self.0.adopted.swap(leader.times(), Ordering::Relaxed) != leader.times();
        let (now, mut timers) = (self.0.clock.now(), self.timers());
        let mut late = Vec::new();
        for (key, check) in world.catalog().checks() {
            timers.watch(check, now);
            let begins = match world.catalog().result(key) {
                Some(result) if *result.by == *leader.run_id() => false,
                Some(result) => new || leader.is_there(&result.by) || !timers.is_armed(key),
                None => !timers.is_armed(key),
            };
            if begins {
                late.push(key);
            }
        }
        late.into_iter().for_each(|key| timers.beat(key, now));
    }
}
