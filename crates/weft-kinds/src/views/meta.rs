// SPDX-License-Identifier: Apache-2.0
//! Views of what every Kubernetes-style object has: metadata, owners, label selectors.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Deserializer};

pub type Labels = BTreeMap<Arc<str>, Arc<str>>;

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub uid: Arc<str>,
    pub generation: i64,
    pub labels: Labels,
    /// Without kubectl's copy of the whole object.
    #[serde(deserialize_with = "annotations")]
    pub annotations: Labels,
    /// RFC 3339, as stored.
    pub creation_timestamp: Arc<str>,
    pub deletion_timestamp: Option<Arc<str>>,
    pub owner_references: Vec<OwnerReference>,
    pub finalizers: Vec<Arc<str>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerReference {
    pub api_version: Arc<str>,
    pub kind: Arc<str>,
    pub name: Arc<str>,
    pub uid: Arc<str>,
    pub controller: bool,
    pub block_owner_deletion: bool,
}

/// `matchLabels` and `matchExpressions`, all of which must hold; empty selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    pub match_labels: Labels,
    pub match_expressions: Vec<Requirement>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Requirement {
    pub key: Arc<str>,
    /// `In`, `NotIn`, `Exists`, `DoesNotExist`.
    pub operator: Arc<str>,
    pub values: Vec<Arc<str>>,
}

/// An object with only its metadata read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct MetaOnly {
    pub metadata: Meta,
}

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

// === impl Meta ===

impl Meta {
    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.get(name).map(|v| &**v)
    }

    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.get(name).map(|v| &**v)
    }

    pub fn is_deleting(&self) -> bool {
        self.deletion_timestamp.is_some()
    }

    /// When it was created, milliseconds since the epoch; 0 when unknown.
    pub fn created_ms(&self) -> u64 {
        self.creation_timestamp
            .parse::<jiff::Timestamp>()
            .ok()
            .and_then(|t| u64::try_from(t.as_millisecond()).ok())
            .unwrap_or(0)
    }

    /// The owner that controls it, if any.
    pub fn controller(&self) -> Option<&OwnerReference> {
        self.owner_references.iter().find(|o| o.controller)
    }
}

// === impl LabelSelector ===

impl LabelSelector {
    pub fn matches(&self, labels: &Labels) -> bool {
        self.match_labels.iter().all(|(k, v)| labels.get(k) == Some(v))
            && self.match_expressions.iter().all(|r| r.holds(labels))
    }
}

impl Requirement {
    fn holds(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        let listed = value.is_some_and(|v| self.values.contains(v));
        match &*self.operator {
            "In" => listed,
            "NotIn" => !listed,
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            // An operator that nobody defined selects nothing.
            _ => false,
        }
    }
}

fn annotations<'de, D: Deserializer<'de>>(d: D) -> Result<Labels, D::Error> {
    let mut map = Labels::deserialize(d)?;
    map.remove(LAST_APPLIED);
    Ok(map)
}
