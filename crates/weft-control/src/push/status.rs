// SPDX-License-Identifier: Apache-2.0
//! What doors show of a proxy and of pushing.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;
use weft_base::metrics::Cell;
use weft_xds::Rejected;

/// One proxy, as `weft proxy status` lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProxyStatus {
    pub node: String,
    pub connected: bool,
    /// Milliseconds since the Unix epoch, of the last connect or disconnect.
    pub since_ms: u64,
    /// Why it is not connected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Arc<str>>,
    pub address: Option<SocketAddr>,
    /// As its connection authenticated it.
    pub identity: Option<Arc<str>>,
    pub release: Arc<str>,
    pub model_version: u32,
    /// Resources that it is sent.
    pub resources: usize,
    /// It may see more than a proxy holds: it asks for hosts by name, and for so many now.
    pub partial: bool,
    pub asked: usize,
    /// The newest generation that changed anything for it.
    pub desired_generation: u64,
    /// Last generation on its way.
    pub sent_generation: Option<u64>,
    /// Last generation answered; everything up to it is in every worker, but for `rejected`.
    pub acked_generation: Option<u64>,
    pub acked_at_ms: Option<u64>,
    /// It holds everything that it should.
    pub synced: bool,
    /// Push transactions, and bytes of names and values in them, since it connected.
    pub transactions: u64,
    pub bytes: u64,
    /// Refused now, each with the proxy's reason; the last good form is in use.
    pub rejected: Vec<Refused>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refused {
    pub name: String,
    pub reason: String,
    /// The sections of a listener that it is about, where it is not about all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sections: Vec<String>,
}

/// Counters for the metrics door.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Push transactions sent.
    pub transactions: Cell,
    /// Resources in them.
    pub resources: Cell,
    /// Names removed in them.
    pub removed: Cell,
    /// Bytes of names and values in them.
    pub bytes: Cell,
    /// Answers that newly refused something.
    pub nacks: Cell,
    /// Streams opened.
    pub connects: Cell,
    /// Resources that could not be encoded or were too large.
    pub failed: Cell,
}

// === impl Refused ===

impl From<&Rejected> for Refused {
    fn from(r: &Rejected) -> Self {
        Self { name: r.name.clone(), reason: r.reason.clone(), sections: r.sections.clone() }
    }
}
