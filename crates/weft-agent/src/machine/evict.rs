// SPDX-License-Identifier: Apache-2.0
//! Eviction: a pod that uses more than it may ends for good, as the kubelet does it. It has
//! failed, whatever its restart policy, and stays to be looked at until somebody removes it;
//! whoever made it makes another.

use std::time::Duration;

use weft_base::clock::Mono;

use super::{Life, Machine};

/// What programs of an evicted pod have from SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(1);

// === impl Machine ===

impl Machine {
    pub(super) fn on_evict(&mut self, why: String, now: Mono) {
        if self.life != Life::Up || self.deleting {
            return;
        }
        self.changed = true;
        self.note(true, "Evicted", why.clone());
        self.evicted = Some(why);
        self.stop_apps(now.plus(GRACE), GRACE, now);
    }

    /// Why the pod was evicted.
    pub fn evicted(&self) -> Option<&str> {
        self.evicted.as_deref()
    }

    /// It was evicted, and no process of it is left: what it kept on disk can go.
    pub fn is_evicted_whole(&self) -> bool {
        let proxy = self.proxy.as_ref().is_some_and(|p| p.is_running());
        self.evicted.is_some() && self.running_apps() == 0 && !proxy
    }
}
