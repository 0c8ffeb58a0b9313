// SPDX-License-Identifier: Apache-2.0
//! `bug!`: an impossible-but-survivable state. Counts and logs in production, panics in tests.

use std::sync::atomic::{AtomicU64, Ordering};

static BUGS: AtomicU64 = AtomicU64::new(0);

/// How many impossible states were met since the process started (`weft_bugs_total`).
pub fn bugs_total() -> u64 {
    BUGS.load(Ordering::Relaxed)
}

#[doc(hidden)]
pub fn count_bug() {
    BUGS.fetch_add(1, Ordering::Relaxed);
}

/// Reports a state that the code calls impossible but can survive.
#[macro_export]
macro_rules! bug {
    ($($arg:tt)+) => {{
        $crate::error::count_bug();
        if cfg!(test) || cfg!(debug_assertions) {
            ::std::panic!($($arg)+);
        } else {
            ::tracing::error!(bug = true, $($arg)+);
        }
    }};
}
