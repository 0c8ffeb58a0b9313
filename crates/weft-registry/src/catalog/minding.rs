// SPDX-License-Identifier: Apache-2.0
//! Which of several servers minds a check: counts its time to live, and says when that is over. A
//! result names the server that heard it and ends with it; what nobody has heard is the leader's.
//! So a client may move from one server to another, and a heartbeat that says nothing new writes
//! nothing but at that moment. Alone on its store a server minds them all.

use std::time::Duration;

use weft_kinds::views::catalog::CheckStatus;
use weft_kinds::world::{CheckKey, World};

use super::Handle;

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
    pub(super) fn is_anothers(&self, known: Option<&CheckStatus>) -> bool {
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
