// SPDX-License-Identifier: Apache-2.0
//! Catalog records made at the Consul door: nodes, service instances, checks and their results.
//!
//! The registry's catalog writes these (they serialise), the World folds them, the Consul door
//! reads them. JSON field names here are the store's, not the door's.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Labels;

/// `/c/n/<node>`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeRecord {
    pub id: Arc<str>,
    pub node: Arc<str>,
    pub address: Arc<str>,
    pub datacenter: Arc<str>,
    pub tagged_addresses: Labels,
    pub meta: Labels,
}

/// `/c/i/<ns>/<node>/<service-id>`: one registered instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Registration {
    /// As registered; the key holds it percent-encoded.
    pub id: Arc<str>,
    /// The service's name as registered.
    pub service: Arc<str>,
    pub node: Arc<str>,
    pub namespace: Arc<str>,
    /// Empty means the node's address.
    pub address: Arc<str>,
    pub port: u16,
    pub tags: Vec<Arc<str>>,
    pub meta: Labels,
    pub weights: Weights,
    pub tagged_addresses: BTreeMap<Arc<str>, TaggedAddress>,
    pub kind: Arc<str>,
    pub enable_tag_override: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality: Option<Value>,
    /// Registered through the agent's endpoints (its checks are run by the agent).
    pub agent: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Weights {
    pub passing: u32,
    pub warning: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaggedAddress {
    pub address: Arc<str>,
    pub port: u16,
}

/// `/c/k/<ns>/<node>/<check-id>`: a check and how it is run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckRecord {
    pub id: Arc<str>,
    pub name: Arc<str>,
    pub node: Arc<str>,
    pub namespace: Arc<str>,
    /// Empty for a check of the node itself, which counts for every instance on it.
    pub service_id: Arc<str>,
    /// The service's name as registered.
    pub service_name: Arc<str>,
    pub notes: Arc<str>,
    /// `http`, `tcp`, `grpc`, `ttl`; empty for one that outside software reports.
    #[serde(rename = "type")]
    pub kind: Arc<str>,
    /// What the runner needs, as registered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub definition: Option<Value>,
    /// Status before the first result.
    pub initial: Status,
}

/// `/e/k/<ns>/<node>/<check-id>`: the newest result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckStatus {
    pub status: Status,
    pub output: Arc<str>,
    /// Which run of which server wrote it, where several share one store.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub by: Arc<str>,
}

/// Ordered: the worst is the greatest.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Passing,
    Warning,
    #[default]
    Critical,
}

// === impl Status ===

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

// === impl Weights ===

impl Default for Weights {
    fn default() -> Self {
        Self { passing: 1, warning: 1 }
    }
}
