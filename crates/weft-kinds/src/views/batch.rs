// SPDX-License-Identifier: Apache-2.0
//! Views of `batch` Job and CronJob. Templates stay raw: controllers copy them.

use std::sync::Arc;

use serde::Deserialize;

use super::LabelSelector;

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Job {
    pub spec: JobSpec,
    pub status: JobStatus,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JobSpec {
    /// Absent means 1.
    pub parallelism: Option<u32>,
    /// Absent: done when any pod succeeds and none is left.
    pub completions: Option<u32>,
    pub completion_mode: Arc<str>,
    pub backoff_limit: Option<u32>,
    pub backoff_limit_per_index: Option<u32>,
    pub max_failed_indexes: Option<u32>,
    pub active_deadline_seconds: Option<u64>,
    pub ttl_seconds_after_finished: Option<u64>,
    pub suspend: bool,
    /// `Failed`: a pod is replaced when it is gone, not when it begins to go.
    pub pod_replacement_policy: Arc<str>,
    pub pod_failure_policy: FailurePolicy,
    pub selector: LabelSelector,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct FailurePolicy {
    pub rules: Vec<FailureRule>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FailureRule {
    /// `FailJob`, `FailIndex`, `Ignore` or `Count`.
    pub action: Arc<str>,
    pub on_exit_codes: Option<ExitCodes>,
    pub on_pod_conditions: Vec<PodCondition>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExitCodes {
    pub container_name: Option<Arc<str>>,
    /// `In` or `NotIn`.
    pub operator: Arc<str>,
    pub values: Vec<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PodCondition {
    #[serde(rename = "type")]
    pub kind: Arc<str>,
    pub status: Arc<str>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JobStatus {
    pub succeeded: u32,
    pub failed: u32,
    /// `0,2-4`.
    pub completed_indexes: Arc<str>,
    pub failed_indexes: Option<Arc<str>>,
    pub start_time: Option<Arc<str>>,
    pub completion_time: Option<Arc<str>>,
    pub conditions: Vec<super::core::Condition>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct CronJob {
    pub spec: CronJobSpec,
    pub status: CronJobStatus,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CronJobSpec {
    pub schedule: Arc<str>,
    pub time_zone: Option<Arc<str>>,
    pub starting_deadline_seconds: Option<u64>,
    /// `Allow`, `Forbid` or `Replace`.
    pub concurrency_policy: Arc<str>,
    pub suspend: bool,
    pub successful_jobs_history_limit: Option<u32>,
    pub failed_jobs_history_limit: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CronJobStatus {
    pub last_schedule_time: Option<Arc<str>>,
}

// === impl Job ===

impl JobSpec {
    pub fn is_indexed(&self) -> bool {
        &*self.completion_mode == "Indexed"
    }
}

impl JobStatus {
    pub fn is(&self, condition: &str) -> bool {
        self.conditions.iter().any(|c| &*c.kind == condition && &*c.status == "True")
    }

    /// It is over, one way or the other.
    pub fn is_finished(&self) -> bool {
        self.is("Complete") || self.is("Failed")
    }
}
