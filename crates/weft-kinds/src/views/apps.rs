// SPDX-License-Identifier: Apache-2.0
//! Views of `apps` Deployment, ReplicaSet, StatefulSet and DaemonSet. Templates stay raw:
//! controllers copy them.

use std::sync::Arc;

use serde::Deserialize;

use super::core::IntOrString;
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

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct StatefulSet {
    pub spec: StatefulSetSpec,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatefulSetSpec {
    /// Absent means 1.
    pub replicas: Option<u32>,
    pub selector: LabelSelector,
    pub service_name: Arc<str>,
    /// `Parallel`, or one after the other.
    pub pod_management_policy: Arc<str>,
    pub update_strategy: UpdateStrategy,
    pub ordinals: Ordinals,
    pub min_ready_seconds: u64,
    pub revision_history_limit: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Ordinals {
    pub start: u32,
}

/// How a StatefulSet or DaemonSet replaces pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct UpdateStrategy {
    /// `OnDelete`, or rolling.
    #[serde(rename = "type")]
    pub kind: Arc<str>,
    pub rolling_update: RollingUpdate,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RollingUpdate {
    pub partition: u32,
    pub max_unavailable: Option<IntOrString>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct DaemonSet {
    pub spec: DaemonSetSpec,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DaemonSetSpec {
    pub selector: LabelSelector,
    pub update_strategy: UpdateStrategy,
    pub min_ready_seconds: u64,
    pub revision_history_limit: Option<u64>,
}

impl StatefulSetSpec {
    pub fn wanted(&self) -> u32 {
        self.replicas.unwrap_or(1)
    }

    pub fn is_ordered(&self) -> bool {
        &*self.pod_management_policy != "Parallel"
    }
}

impl UpdateStrategy {
    pub fn is_on_delete(&self) -> bool {
        &*self.kind == "OnDelete"
    }
}
