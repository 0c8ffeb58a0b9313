// SPDX-License-Identifier: Apache-2.0
//! Faults that a test can ask for, each happening once: the named marker file is made by
//! whoever has the fault, so that with several replicas only one has it. Off unless asked for.

use std::fs::OpenOptions;
use std::path::PathBuf;

use rustix::process::{Signal, getpid, kill_process};

/// Switches.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct Faults {
    /// Kill this process once, after stock was reserved and before the order is written.
    #[arg(long, env = "SHOP_CRASH_AFTER_RESERVE_ONCE", value_name = "MARKER", hide = true)]
    crash_after_reserve: Option<PathBuf>,

    /// Stop this process once, as with SIGSTOP, at the same point.
    #[arg(long, env = "SHOP_STOP_AFTER_RESERVE_ONCE", value_name = "MARKER", hide = true)]
    stop_after_reserve: Option<PathBuf>,

    /// Fail once to write the order after stock was reserved.
    #[arg(long, env = "SHOP_FAIL_AFTER_RESERVE_ONCE", value_name = "MARKER", hide = true)]
    fail_after_reserve: Option<PathBuf>,
}

// === impl Faults ===

impl Faults {
    /// Called between reserve and write. Returns true when the write shall fail.
    pub(super) fn after_reserve(&self) -> bool {
        if claim(self.crash_after_reserve.as_ref()) {
            // SIGKILL to ourselves: nothing is flushed, no destructor runs.
            let _ = kill_process(getpid(), Signal::KILL);
        }
        if claim(self.stop_after_reserve.as_ref()) {
            let _ = kill_process(getpid(), Signal::STOP);
        }
        claim(self.fail_after_reserve.as_ref())
    }
}

fn claim(marker: Option<&PathBuf>) -> bool {
    marker.is_some_and(|m| OpenOptions::new().write(true).create_new(true).open(m).is_ok())
}
