// SPDX-License-Identifier: Apache-2.0
//! What pods use now: an immutable value, replaced as a whole by whoever measures. The agent's
//! sampler writes processor and memory ([`crate::Registry::note_resources`]), the scraper of the
//! proxies requests ([`crate::Registry::note_requests`]); autoscalers and `kubectl top` read it.
//! Never stored: after a start it is measured anew.

use std::collections::BTreeMap;
use std::sync::Arc;

/// `namespace/name`.
pub type Name = Arc<str>;

/// Processor and memory of one pod, all its containers together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a processor, averaged over some seconds.
    pub cpu_milli: u64,
    pub memory_bytes: u64,
    /// When it was measured.
    pub wall_ms: u64,
}

/// The newest figures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of pods, and as `namespace/pod/container` of each container.
    pub resources: BTreeMap<Name, Resources>,
    /// Of whole machines, by the node's name.
    pub nodes: BTreeMap<Name, Resources>,
    /// Thousandths of requests per second that reach a pod.
    pub requests: BTreeMap<Name, u64>,
    /// The same of a service, as its callers count them.
    pub service_requests: BTreeMap<Name, u64>,
}
