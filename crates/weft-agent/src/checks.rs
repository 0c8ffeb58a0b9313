// SPDX-License-Identifier: Apache-2.0
//! Consul-type health checks: HTTP, TCP, UDP, gRPC and HTTP/2 pings are asked at intervals, TTL
//! checks expire.
//!
//! [`CheckMachine`] is pure (thresholds, jittered start, expiry); [`Runner`] asks and reports
//! what changed. No check runs a command: registering one never executes anything here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use weft_base::clock::Mono;
use weft_base::limits::CHECK_OUTPUT_BYTES_MAX;
use weft_base::rng::Rng;
use weft_kinds::views::catalog::Status;
use weft_kinds::views::check::{CheckDefinition, Probe};

mod ask;
mod h2ping;
mod places;
mod reach;
mod run;
mod runs;

pub(crate) use reach::reachable;
pub use run::{CheckSink, Runner};
pub use runs::Runs;

const INTERVAL_DEFAULT: Duration = Duration::from_secs(10);
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
/// The first question comes within this, or within the interval if that is shorter.
const START_JITTER: Duration = Duration::from_millis(500);

/// Names one check.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CheckKey {
    pub namespace: Arc<str>,
    pub node: Arc<str>,
    pub id: Arc<str>,
}

/// A check that should run here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckSpec {
    pub definition: Arc<CheckDefinition>,
    /// What the catalog says now, so that nothing is reported that is known.
    pub status: Status,
    /// That is what an answer said, here or before a restart; not what it was registered with.
    pub heard: bool,
}

/// All checks of this node.
pub type Checks = BTreeMap<CheckKey, CheckSpec>;

/// A new result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckReport {
    pub key: CheckKey,
    pub status: Status,
    pub output: String,
}

/// One check's thresholds and times.
#[derive(Debug)]
pub struct CheckMachine {
    status: Status,
    /// What the catalog says. A result may end there without the agent's doing, when the server
    /// that heard it is gone or was away from its store.
    shown: Status,
    output: String,
    successes: u64,
    failures: u64,
    before_passing: u64,
    before_warning: u64,
    before_critical: u64,
    interval: Duration,
    /// Where in the interval this check has its place, once the first answer is there.
    phase: Option<Duration>,
    ttl: Option<Duration>,
    due: Mono,
    output_max: usize,
}

// === impl CheckMachine ===

impl CheckMachine {
    pub fn new(spec: &CheckSpec, now: Mono, rng: &mut Rng) -> Self {
        let definition = &spec.definition;
        let ttl = match definition.probe {
            Probe::Ttl { ttl_ms } => Some(Duration::from_millis(ttl_ms)),
            _ => None,
        };
        let below = |rng: &mut Rng, most: Duration| {
            Duration::from_millis(rng.below(u64::try_from(most.as_millis()).unwrap_or(u64::MAX)))
        };
        let interval = match definition.every_ms() {
            0 => INTERVAL_DEFAULT,
            ms => Duration::from_millis(ms),
        };
        // Only the first question comes as soon as a shorter interval asks for.
        let start = match definition.interval_ms {
            0 => START_JITTER,
            ms => START_JITTER.min(Duration::from_millis(ms)),
        };
        let before_critical = definition.failures_before_critical;
        let due = match ttl {
            Some(ttl) => now.plus(ttl),
            None => now.plus(below(rng, start)),
        };
        Self {
            status: spec.status,
            shown: spec.status,
            output: definition.initial_output.clone(),
            // As in Consul the first answer counts at once, whatever the thresholds say. After a
            // restart it is not the first.
            successes: if spec.heard { 0 } else { definition.success_before_passing },
            failures: if spec.heard { 0 } else { before_critical },
            before_passing: definition.success_before_passing,
            before_warning: match definition.failures_before_warning {
                0 => before_critical,
                n => n,
            },
            before_critical,
            interval,
            phase: Some(below(rng, interval)),
            ttl,
            due,
            output_max: output_max(definition),
        }
    }

    /// When to ask next, or when the TTL ends.
    pub fn due(&self) -> Mono {
        self.due
    }

    pub fn status(&self) -> Status {
        self.status
    }

    /// The catalog says this now.
    pub fn shows(&mut self, status: Status) {
        self.shown = status;
    }

    /// One answer. Returns status and output when either changed, and also when the catalog says
    /// something else.
    pub fn result(&mut self, status: Status, output: &str, now: Mono) -> Option<(Status, String)> {
        // Many that begin together are asked spread over their interval from then on.
        self.due = now.plus(self.phase.take().unwrap_or(self.interval));
        let next = if status == Status::Critical {
            self.failures = self.failures.saturating_add(1);
            self.successes = 0;
            if self.failures >= self.before_critical {
                Status::Critical
            } else if self.failures >= self.before_warning {
                Status::Warning
            } else {
                return None;
            }
        } else {
            self.successes = self.successes.saturating_add(1);
            self.failures = 0;
            if self.successes < self.before_passing {
                return None;
            }
            status
        };
        self.become_(next, output)
    }

    /// A TTL check's owner reported: it is due again after its TTL.
    pub fn heartbeat(
        &mut self,
        status: Status,
        output: &str,
        now: Mono,
    ) -> Option<(Status, String)> {
        if let Some(ttl) = self.ttl {
            self.due = now.plus(ttl);
        }
        self.become_(status, output)
    }

    /// A TTL check whose time is over becomes critical, once.
    pub fn expire(&mut self, now: Mono) -> Option<(Status, String)> {
        let ttl = self.ttl.filter(|_| self.due <= now)?;
        self.due = now.plus(ttl);
        if self.status == Status::Critical {
            return None;
        }
        self.become_(Status::Critical, "TTL expired")
    }

    fn become_(&mut self, status: Status, output: &str) -> Option<(Status, String)> {
        let output = cut(output, self.output_max);
        if self.status == status && self.shown == status && self.output == output {
            return None;
        }
        self.status = status;
        self.output.clone_from(&output);
        Some((status, output))
    }
}

fn output_max(definition: &CheckDefinition) -> usize {
    match usize::try_from(definition.output_bytes_max) {
        Ok(most @ 1..=CHECK_OUTPUT_BYTES_MAX) => most,
        _ => CHECK_OUTPUT_BYTES_MAX,
    }
}

/// The beginning of a text, to a character's border.
fn cut(text: &str, most: usize) -> String {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
