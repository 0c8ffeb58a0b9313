// SPDX-License-Identifier: Apache-2.0
//! Whether a request body is there to its end, and if not, who keeps it from coming. Asked by what
//! judges how long answers take (until then its client may be what is slow), and by what gives
//! uploads up.

use tokio::time::Instant;

use super::super::serve::Received;
use super::{Replay, Source};

/// Who keeps a body from being sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeldUp {
    /// The client sends nothing.
    Client,
    /// The upstream takes nothing; whether it has some of it already.
    Upstream { begun: bool },
}

// === impl Replay ===

impl Replay {
    /// When the last of it came; `Some(None)` when there was none of it to wait for.
    pub fn ended_at(&self) -> Option<Option<Instant>> {
        self.0.as_ref().map_or(Some(None), |s| s.borrow().ended.map(Some))
    }

    /// Whether this is a copy that broke because its reader was too slow.
    pub fn fell_behind(&self) -> bool {
        self.0.as_ref().is_some_and(|shared| match &shared.borrow().source {
            Source::Copy(copied) => copied.borrow().fell_behind(),
            Source::Client(_) => false,
        })
    }

    /// All of it came from the client, or there is none.
    pub fn is_whole(&self) -> bool {
        self.0.as_ref().is_none_or(|state| state.borrow().ended.is_some())
    }

    /// Nobody, once all of it is here: an upstream may have it, and be about to answer. Nor is it
    /// said of a client whose codec waits for itself, nor of a copy, which has the original's.
    pub fn held_up(&self) -> Option<HeldUp> {
        let state = self.0.as_ref()?.borrow();
        match &state.source {
            _ if state.ended.is_some() || state.failed.is_some() => None,
            _ if !state.pace.is_starved() => Some(HeldUp::Upstream { begun: state.given }),
            Source::Client(Received::H2(_)) => Some(HeldUp::Client),
            Source::Client(Received::H1(..)) | Source::Copy(_) => None,
        }
    }
}
