// SPDX-License-Identifier: Apache-2.0
//! How a person or a supervisor asks a long-running role to end. Used by `up`, `server`
//! and `agent`.

use anyhow::Result;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Ctrl-C, SIGTERM (`weft down`), and a terminal that is closed.
pub struct Asked {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

// === impl Asked ===

impl Asked {
    /// # Errors
    /// When the process may not listen to signals.
    pub fn listen() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Resolves at the first of them.
    pub async fn end_wanted(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
