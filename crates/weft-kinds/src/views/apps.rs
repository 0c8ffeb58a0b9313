// SPDX-License-Identifier: Apache-2.0
//! Views of `apps` Deployment and ReplicaSet. Templates stay raw: controllers copy them.

use serde::Deserialize;

use super::{LabelSelector, Meta};

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Deployment {
    pub spec: ReplicasSpec,
    pub status: ReplicasStatus,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ReplicaSet {
    pub spec: ReplicasSpec,
    pub status: ReplicasStatus,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ReplicasSpec {
    /// Absent means 1.
    pub replicas: Option<u32>,
    pub paused: bool,
    pub selector: LabelSelector,
    pub template: Template,
}

/// A template's metadata; its spec is read raw.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Template {
    pub metadata: Meta,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicasStatus {
    pub replicas: u32,
    pub ready_replicas: u32,
    pub available_replicas: u32,
    pub updated_replicas: u32,
    pub observed_generation: i64,
}

impl ReplicasSpec {
    pub fn wanted(&self) -> u32 {
        self.replicas.unwrap_or(1)
    }
}
