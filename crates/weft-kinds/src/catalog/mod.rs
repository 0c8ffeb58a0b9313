// SPDX-License-Identifier: Apache-2.0
//! Consul's nouns as they lie in the log: nodes, registrations, check definitions, check states.
//! `weft-registry::catalog` writes them, [`Catalog`] (part of `World`) folds them. Field names
//! here are ours; the Consul door alone knows Consul's casing.

mod fold;
pub mod key;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use fold::{Catalog, Check, Touched, Versioned};

/// The check that says whether the node itself is reachable; every node has it.
pub const SERF_HEALTH: &str = "serfHealth";
/// The check that marks a whole node as in maintenance.
pub const NODE_MAINTENANCE: &str = "_node_maintenance";
/// With a service id behind it: the check that marks one instance as in maintenance.
pub const SERVICE_MAINTENANCE: &str = "_service_maintenance:";

/// A machine that services are registered on. Key `/c/n/<node>`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Node {
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    pub address: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tagged_addresses: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
}

/// One registered service instance. Key `/c/i/<ns>/<node>/<id>`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Registration {
    /// As the client wrote it; also the last segment of the key.
    pub id: String,
    pub namespace: String,
    pub node: String,
    /// As the client wrote it.
    pub service: String,
    /// The object name that it has through the other doors: `weft_base::name::slug(service)`.
    pub slug: String,
    /// Empty: the node's address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub address: String,
    pub port: u16,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tagged_addresses: BTreeMap<String, TaggedAddress>,
    pub weights: Weights,
    #[serde(skip_serializing_if = "is_false")]
    pub enable_tag_override: bool,
    /// Consul's `Kind`: empty, `connect-proxy`, `mesh-gateway`, ...
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<serde_json::Value>,
    /// Whether the service speaks Connect itself (`Connect.Native`).
    #[serde(skip_serializing_if = "is_false")]
    pub native: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality: Option<serde_json::Value>,
    /// Made through the agent's endpoints (listed in `agent/services`), not `catalog/register`.
    #[serde(skip_serializing_if = "is_false")]
    pub agent: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaggedAddress {
    pub address: String,
    pub port: u16,
}

/// Shares of an instance by its health.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weights {
    pub passing: u32,
    pub warning: u32,
}

/// What a check does. Key `/c/k/<ns>/<node>/<check-id>`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckDefinition {
    pub id: String,
    pub namespace: String,
    pub node: String,
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub notes: String,
    /// The instance it speaks for; empty for a check of the whole node.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service_id: String,
    pub probe: Probe,
    #[serde(skip_serializing_if = "is_zero")]
    pub interval_ms: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub timeout_ms: u64,
    /// An instance critical for this long is deregistered; 0 never.
    #[serde(skip_serializing_if = "is_zero")]
    pub deregister_after_ms: u64,
    #[serde(skip_serializing_if = "is_zero32")]
    pub success_before_passing: u32,
    #[serde(skip_serializing_if = "is_zero32")]
    pub failures_before_warning: u32,
    #[serde(skip_serializing_if = "is_zero32")]
    pub failures_before_critical: u32,
    /// The state until one is reported, and after a restart lost what was.
    pub initial: Status,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub initial_output: String,
    #[serde(skip_serializing_if = "is_false")]
    pub agent: bool,
}

/// How a check finds out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum Probe {
    /// Nobody runs it: its state is written from outside (`catalog/register`, maintenance).
    #[default]
    None,
    /// Its owner reports at least this often.
    Ttl {
        ttl_ms: u64,
    },
    Http {
        url: String,
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
    /// `host:port`.
    Tcp {
        address: String,
        #[serde(default, skip_serializing_if = "is_false")]
        tls: bool,
    },
    Udp {
        address: String,
    },
    /// `host:port[/service]`.
    Grpc {
        target: String,
        #[serde(default, skip_serializing_if = "is_false")]
        tls: bool,
        #[serde(default, skip_serializing_if = "is_false")]
        tls_skip_verify: bool,
    },
    /// As healthy as another service on the same node.
    Alias {
        #[serde(default, skip_serializing_if = "String::is_empty")]
        node: String,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        service_id: String,
    },
}

/// A check's state; the worst of several wins, so they are ordered.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Passing,
    Warning,
    #[default]
    Critical,
    /// Only ever an aggregate: an operator took it out of service.
    Maintenance,
}

/// What a check last found. Key `/e/k/<ns>/<node>/<check-id>`, ephemeral.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckState {
    pub status: Status,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub output: String,
}

// === impl Weights ===

impl Default for Weights {
    fn default() -> Self {
        Self { passing: 1, warning: 1 }
    }
}

// === impl Status ===

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Warning => "warning",
            Self::Critical => "critical",
            Self::Maintenance => "maintenance",
        }
    }

    /// The three states a client may write; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "passing" | "pass" => Some(Self::Passing),
            "warning" | "warn" => Some(Self::Warning),
            "critical" | "fail" => Some(Self::Critical),
            _ => None,
        }
    }
}

// === impl Probe ===

impl Probe {
    /// Consul's `Type` of a check.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::None => "",
            Self::Ttl { .. } => "ttl",
            Self::Http { .. } => "http",
            Self::Tcp { .. } => "tcp",
            Self::Udp { .. } => "udp",
            Self::Grpc { .. } => "grpc",
            Self::Alias { .. } => "alias",
        }
    }
}

// === helpers ===

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(b: &bool) -> bool {
    !*b
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero32(n: &u32) -> bool {
    *n == 0
}
