// SPDX-License-Identifier: Apache-2.0
//! Asks a container what its lifecycle hooks say: a command, a request, a connection, or a pause.
//! Ordered by `worker`, which hears when it is over.

use std::time::Duration;

use super::{Run, watch};
use crate::machine::{Event, HookKind};
use crate::pod::Probe;
use crate::pod::inside::Hook;

/// The longest that a hook may take after a start; one before an end has the grace period.
const POST_START_MAX: Duration = Duration::from_secs(300);

// === impl Run ===

impl Run {
    /// Asks, and tells the pod.
    pub(crate) async fn hook(&self, kind: HookKind) {
        let failed = self.ask_hook(kind).await.err();
        let (part, attempt) = (self.part, self.attempt);
        self.tell(Event::HookDone { part, attempt, hook: kind, failed }).await;
    }

    async fn ask_hook(&self, kind: HookKind) -> Result<(), String> {
        let Some(container) = self.container() else { return Ok(()) };
        let hook = match kind {
            HookKind::PostStart => &container.lifecycle.post_start,
            HookKind::PreStop => &container.lifecycle.pre_stop,
        };
        let Some(Hook { exec, http_get, tcp_socket, sleep }) = hook.clone() else { return Ok(()) };
        let limit = match kind {
            HookKind::PostStart => POST_START_MAX,
            HookKind::PreStop => Duration::from_secs(self.pod.grace_seconds()),
        };
        if let Some(sleep) = sleep {
            tokio::time::sleep(Duration::from_secs(sleep.seconds).min(limit)).await;
            return Ok(());
        }
        let timeout_seconds = limit.as_secs();
        let question = Probe { exec, http_get, tcp_socket, timeout_seconds, ..Probe::default() };
        watch::once(self, container, &question).await
    }
}
