// SPDX-License-Identifier: Apache-2.0
//! Which connection an attempt has. Its record is told when the attempt is over, also when it is
//! given up. Part of `attempt.rs`; where no line tells of connections there is nothing to note.

use std::cell::RefCell;

use crate::upstream::pool::Facts;

/// Tells when it goes.
pub(super) struct On<'a> {
    noted: &'a mut Facts,
    /// Where the pool notes it.
    pub it: RefCell<Facts>,
}

// === impl On ===

impl<'a> On<'a> {
    pub fn new(noted: &'a mut Facts) -> Self {
        Self { noted, it: RefCell::default() }
    }
}

impl Drop for On<'_> {
    fn drop(&mut self) {
        *self.noted = self.it.take();
    }
}
