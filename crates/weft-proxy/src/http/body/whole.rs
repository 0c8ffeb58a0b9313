// SPDX-License-Identifier: Apache-2.0
//! Whether a request body is there to its end. Asked by what judges how long answers take: until
//! then its client may be what is slow.

use super::Replay;

// === impl Replay ===

impl Replay {
    /// All of it came from the client, or there is none.
    pub fn is_whole(&self) -> bool {
        self.0.as_ref().is_none_or(|state| state.borrow().ended)
    }
}
