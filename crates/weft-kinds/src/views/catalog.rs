// SPDX-License-Identifier: Apache-2.0
//! Catalog records made at the Consul door: nodes, service instances, checks and their results.
//!
//! The registry's catalog writes these (they serialise), the World folds them, the Consul door
//! reads them. JSON field names here are the store's, not the door's.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::Labels;

/// A revision of the store at which a record was made, or last became what it is; 0 where the store
/// has none. It is about the record and no part of it: records that say the same are equal.
#[derive(Clone, Copy, Default, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Since(pub u64);

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
    /// One of the servers that share the store, which wrote this itself.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub server: bool,
    #[serde(skip)]
    pub created: Since,
    #[serde(skip)]
    pub modified: Since,
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
    pub proxy: Option<Box<Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect: Option<Box<Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality: Option<Box<Value>>,
    /// Registered through the agent's endpoints (its checks are run by the agent).
    pub agent: bool,
    #[serde(skip)]
    pub created: Since,
    #[serde(skip)]
    pub modified: Since,
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
    pub definition: Option<Packed>,
    /// Status before the first result.
    pub initial: Status,
    #[serde(skip)]
    pub created: Since,
    #[serde(skip)]
    pub modified: Since,
}

/// JSON as text: there may be very many that are seldom looked at. Equal when written alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed(Arc<str>);

/// `/e/k/<ns>/<node>/<check-id>`: the newest result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckStatus {
    pub status: Status,
    pub output: Arc<str>,
    /// Which run of which server wrote it, where several share one store.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub by: Arc<str>,
    /// Since when the check is so and says so. Written where the result was written again since.
    #[serde(rename = "since", skip_serializing_if = "Since::is_unknown")]
    pub modified: Since,
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

// === impl Since ===

impl Since {
    pub fn is_unknown(&self) -> bool {
        self.0 == 0
    }

    /// The one that is known, this one first.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        if self.is_unknown() { other } else { self }
    }
}

impl PartialEq for Since {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// What is equal is printed alike.
impl fmt::Debug for Since {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Since(..)")
    }
}

// === impl Registration ===

impl Registration {
    /// The names that it speaks Connect for: a proxy for its destination, a native one for itself.
    pub fn speaks_for(&self) -> impl Iterator<Item = &str> {
        let native = self
            .connect
            .as_ref()
            .is_some_and(|c| c.get("Native").is_some_and(|native| *native == Value::Bool(true)));
        let proxied = self.proxy.as_ref().filter(|_| &*self.kind == "connect-proxy");
        let proxied = proxied.and_then(|p| p.get("DestinationServiceName")?.as_str());
        native.then_some(&*self.service).into_iter().chain(proxied)
    }
}

// === impl CheckStatus ===

impl CheckStatus {
    /// Whether another result says the same, whoever wrote it.
    pub fn says_the_same(&self, other: &Self) -> bool {
        self.status == other.status && self.output == other.output
    }
}

// === impl Packed ===

impl Packed {
    pub fn new(value: &impl Serialize) -> serde_json::Result<Self> {
        serde_json::to_string(value).map(|text| Self(text.into()))
    }

    /// Whether a word stands anywhere in it.
    pub fn mentions(&self, word: &str) -> bool {
        self.0.contains(word)
    }

    /// Reads it as what the caller knows it to be.
    pub fn read<'a, T: Deserialize<'a>>(&'a self) -> serde_json::Result<T> {
        serde_json::from_str(&self.0)
    }
}

impl Serialize for Packed {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let value: Value = self.read().map_err(serde::ser::Error::custom)?;
        value.serialize(to)
    }
}

impl<'de> Deserialize<'de> for Packed {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(from)?;
        Self::new(&value).map_err(serde::de::Error::custom)
    }
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
