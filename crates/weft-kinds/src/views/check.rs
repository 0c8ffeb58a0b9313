// SPDX-License-Identifier: Apache-2.0
//! How a Consul-type check finds out: the typed form of [`CheckRecord::definition`].
//!
//! The Consul door parses clients' bodies into it, the registry stores it, the agent runs it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::catalog::{CheckRecord, Packed, Status};

/// The check that says whether a node itself is reachable; every node has it.
pub const SERF_HEALTH: &str = "serfHealth";
/// Where a node's own check of that name lies: a node is one, whatever the namespace.
pub const SERF_NAMESPACE: &str = "default";
/// The check that marks a whole node as in maintenance.
pub const NODE_MAINTENANCE: &str = "_node_maintenance";
/// With a service id behind it: the check that marks one instance as in maintenance.
pub const SERVICE_MAINTENANCE: &str = "_service_maintenance:";

/// The shortest interval between two questions of one check.
const INTERVAL_MS_MIN: u64 = 1_000;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckDefinition {
    pub probe: Probe,
    #[serde(skip_serializing_if = "is_zero")]
    pub interval_ms: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub timeout_ms: u64,
    /// An instance critical for this long is deregistered; 0 never.
    #[serde(skip_serializing_if = "is_zero")]
    pub deregister_after_ms: u64,
    /// Results in a row before the status turns; 0 is at once.
    #[serde(skip_serializing_if = "is_zero")]
    pub success_before_passing: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub failures_before_warning: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub failures_before_critical: u64,
    /// The output before the first result.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub initial_output: String,
    /// At most this much of an output is kept; 0 is as much as there may be.
    #[serde(skip_serializing_if = "is_zero")]
    pub output_bytes_max: u64,
    /// Registered through the agent's endpoints: the agent runs it.
    #[serde(skip_serializing_if = "is_false")]
    pub agent: bool,
}

/// What is asked. Never a script: weft runs no commands on a client's behalf.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum Probe {
    /// Nobody runs it: its status is written from outside.
    #[default]
    None,
    /// Its owner reports at least this often.
    Ttl { ttl_ms: u64 },
    Http {
        url: String,
        /// Empty is GET.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        method: String,
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        header: BTreeMap<String, Vec<String>>,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        body: String,
        #[serde(default, skip_serializing_if = "is_false")]
        tls_skip_verify: bool,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        tls_server_name: String,
    },
    /// `host:port`; connecting is enough.
    Tcp {
        address: String,
        #[serde(default, skip_serializing_if = "is_false")]
        tls: bool,
        #[serde(default, skip_serializing_if = "is_false")]
        tls_skip_verify: bool,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        tls_server_name: String,
    },
    /// `host:port[/service]`, the gRPC health protocol.
    Grpc {
        target: String,
        #[serde(default, skip_serializing_if = "is_false")]
        tls: bool,
        #[serde(default, skip_serializing_if = "is_false")]
        tls_skip_verify: bool,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        tls_server_name: String,
    },
    /// `host:port`; an empty datagram is sent, and only that nobody takes it is a failure.
    Udp { address: String },
    /// `host:port`, an HTTP/2 PING.
    H2Ping {
        address: String,
        #[serde(default, skip_serializing_if = "is_false")]
        tls: bool,
        #[serde(default, skip_serializing_if = "is_false")]
        tls_skip_verify: bool,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        tls_server_name: String,
    },
    /// As healthy as an instance, or without one as a node. The catalog works it out.
    Alias {
        node: String,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        service_id: String,
    },
    /// `weft run` holds the instance up at least this often; with it the instance goes.
    Process { ttl_ms: u64 },
}

// === impl CheckDefinition ===

impl CheckDefinition {
    /// How often it is asked, in milliseconds; 0 is as often as is usual. A shorter interval than
    /// there may be is raised, as Consul raises it: a check is no hammer.
    pub fn every_ms(&self) -> u64 {
        match self.interval_ms {
            0 => 0,
            ms => ms.max(INTERVAL_MS_MIN),
        }
    }
}

// === impl Probe ===

impl Probe {
    /// Whether `host:port` can be connected to, without TLS.
    pub fn tcp(address: impl Into<String>) -> Self {
        let (tls, tls_skip_verify, tls_server_name) = (false, false, String::new());
        Self::Tcp { address: address.into(), tls, tls_skip_verify, tls_server_name }
    }

    /// Consul's `Type` of a check.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::None => "",
            Self::Ttl { .. } => "ttl",
            Self::Http { .. } => "http",
            Self::Tcp { .. } => "tcp",
            Self::Grpc { .. } => "grpc",
            Self::Udp { .. } => "udp",
            Self::H2Ping { .. } => "h2ping",
            Self::Alias { .. } => "alias",
            Self::Process { .. } => "process",
        }
    }

    /// Whether somebody goes and asks; the others are told, or worked out.
    pub fn is_asked(&self) -> bool {
        is_asked(self.kind())
    }

    /// How long its owner's word holds.
    pub fn ttl_ms(&self) -> Option<u64> {
        match self {
            Self::Ttl { ttl_ms } | Self::Process { ttl_ms } => Some(*ttl_ms),
            _ => None,
        }
    }
}

/// The same of a kind as [`Probe::kind`] names it.
fn is_asked(kind: &str) -> bool {
    !["", "ttl", "alias", "process"].contains(&kind)
}

// === impl CheckRecord ===

impl CheckRecord {
    /// Whether somebody may go and ask, as its kind says; its definition is not read for it.
    pub fn is_asked(&self) -> bool {
        is_asked(&self.kind)
    }

    /// How it is run; nothing runs a definition that does not read.
    pub fn typed(&self) -> CheckDefinition {
        let read = self.definition.as_ref().and_then(|d| d.read().ok());
        read.unwrap_or_default()
    }

    /// What it shows before its first result. Asked of every check that is shown: most say nothing,
    /// and are not read for it.
    pub fn initial_output(&self) -> Arc<str> {
        match &self.definition {
            Some(definition) if definition.mentions("initial_output") => {
                self.typed().initial_output.into()
            }
            _ => Arc::default(),
        }
    }

    /// The same check with this definition, its `type` included.
    #[must_use]
    pub fn with(mut self, definition: &CheckDefinition) -> Self {
        self.kind = definition.probe.kind().into();
        // A struct of plain fields always becomes JSON.
        self.definition = Packed::new(definition).ok();
        self
    }

    /// Whether an operator, not a probe, made it.
    pub fn is_maintenance(&self) -> bool {
        &*self.id == NODE_MAINTENANCE || self.id.starts_with(SERVICE_MAINTENANCE)
    }
}

// === impl Status ===

impl Status {
    /// The words that clients write; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "passing" => Some(Self::Passing),
            "warning" => Some(Self::Warning),
            "critical" => Some(Self::Critical),
            _ => None,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(b: &bool) -> bool {
    !*b
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_comes_back_from_the_record() {
        let definition = CheckDefinition {
            probe: Probe::tcp("127.0.0.1:80"),
            interval_ms: 10_000,
            ..CheckDefinition::default()
        };
        let record = CheckRecord::default().with(&definition);
        let stored = serde_json::to_vec(&record).unwrap();
        let read: CheckRecord = serde_json::from_slice(&stored).unwrap();
        assert_eq!((&*read.kind, read.typed()), ("tcp", definition));
        assert_eq!(CheckRecord::default().typed(), CheckDefinition::default());
    }
}
