// SPDX-License-Identifier: Apache-2.0
//! The pods of a Job as its controller sees them: which run, which ended and how, and what the
//! Job's failure policy says of those that failed. Pure.

use std::sync::Arc;

use serde_json::Value;
use weft_kinds::views::View;
use weft_kinds::views::batch::{ExitCodes, FailureRule, JobSpec};
use weft_kinds::world::Object;

use crate::objects::admit::annotation;

pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// On a pod whose end is in the Job's status already.
pub(super) const COUNTED: &str = "weft.dev/counted";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Active,
    Succeeded,
    Failed,
    /// Told to go by this controller; it counts for nothing.
    Dropped,
}

/// One pod of a Job.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub object: Arc<Object>,
    pub outcome: Outcome,
    pub counted: bool,
    pub ready: bool,
    pub restarts: u64,
    /// There may still be a process.
    pub alive: bool,
    pub index: Option<u32>,
    pub ended_ms: u64,
    pub ruling: Ruling,
}

/// What the failure policy says of a pod that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ruling {
    Count,
    Ignore,
    FailIndex,
    FailJob(String),
}

// === impl Attempt ===

impl Attempt {
    pub(super) fn of(object: Arc<Object>, spec: &JobSpec) -> Self {
        let raw = &object.raw;
        let (finished, ready) = match &object.view {
            View::Pod(pod) => (pod.is_finished(), pod.is_ready()),
            _ => (false, false),
        };
        let counted = annotation(raw, COUNTED) == "true";
        let (deleting, phase) = (object.meta.is_deleting(), raw["status"]["phase"].as_str());
        let outcome = match phase {
            Some("Succeeded") => Outcome::Succeeded,
            Some("Failed") => Outcome::Failed,
            _ if deleting && counted => Outcome::Dropped,
            // Somebody else ended it: as good as failed.
            _ if deleting => Outcome::Failed,
            _ => Outcome::Active,
        };
        let restarts = statuses(raw).filter_map(|s| s["restartCount"].as_u64()).sum();
        let index = annotation(raw, INDEX).parse().ok().filter(|_| spec.is_indexed());
        let ruling = match outcome {
            Outcome::Failed => rule(&object, spec),
            _ => Ruling::Count,
        };
        let ended_ms = ended_ms(&object);
        let alive = !finished;
        Self { object, outcome, counted, ready, restarts, alive, index, ended_ms, ruling }
    }

    pub(super) fn is_active(&self) -> bool {
        self.outcome == Outcome::Active
    }

    /// It counts against the Job's limits.
    pub(super) fn is_failure(&self) -> bool {
        self.outcome == Outcome::Failed && self.ruling != Ruling::Ignore
    }
}

fn statuses(pod: &Value) -> impl Iterator<Item = &Value> {
    let of = |field: &str| pod["status"][field].as_array().into_iter().flatten();
    of("initContainerStatuses").chain(of("containerStatuses"))
}

/// When a pod ended: when its last container did, else when it was no longer ready.
fn ended_ms(pod: &Object) -> u64 {
    let moment = |value: &Value| {
        let time: jiff::Timestamp = value.as_str()?.parse().ok()?;
        u64::try_from(time.as_millisecond()).ok()
    };
    let ends = statuses(&pod.raw).filter_map(|s| moment(&s["state"]["terminated"]["finishedAt"]));
    let conditions = pod.raw["status"]["conditions"].as_array().into_iter().flatten();
    let mut unready = conditions.filter(|c| c["type"] == "Ready" && c["status"] == "False");
    let unready = unready.find_map(|c| moment(&c["lastTransitionTime"]));
    let gone = moment(&pod.raw["metadata"]["deletionTimestamp"]);
    ends.max().or(unready).or(gone).unwrap_or_else(|| pod.meta.created_ms())
}

/// The first rule that a failed pod meets.
fn rule(pod: &Object, spec: &JobSpec) -> Ruling {
    for (i, rule) in spec.pod_failure_policy.rules.iter().enumerate() {
        let Some(why) = meets(pod, rule) else { continue };
        return match &*rule.action {
            "Ignore" => Ruling::Ignore,
            "FailIndex" if spec.is_indexed() => Ruling::FailIndex,
            "FailJob" => Ruling::FailJob(format!("{why} matching FailJob rule at index {i}")),
            _ => Ruling::Count,
        };
    }
    Ruling::Count
}

fn meets(pod: &Object, rule: &FailureRule) -> Option<String> {
    let name = format!("{}/{}", pod.key.namespace, pod.key.name);
    if let Some(codes) = &rule.on_exit_codes {
        let (container, code) = exited(&pod.raw, codes)?;
        return Some(format!("Container {container} for pod {name} failed with exit code {code}"));
    }
    let conditions = pod.raw["status"]["conditions"].as_array()?;
    let met = rule.on_pod_conditions.iter().find(|wanted| {
        let same = |c: &Value| c["type"] == *wanted.kind && c["status"] == *wanted.status;
        conditions.iter().any(same)
    })?;
    Some(format!("Pod {name} has condition {}", met.kind))
}

/// The first container whose exit code the requirement means.
fn exited(pod: &Value, codes: &ExitCodes) -> Option<(String, i64)> {
    statuses(pod).find_map(|status| {
        let name = status["name"].as_str().unwrap_or_default();
        if codes.container_name.as_deref().is_some_and(|wanted| wanted != name) {
            return None;
        }
        let code = status["state"]["terminated"]["exitCode"].as_i64().filter(|c| *c != 0)?;
        let listed = codes.values.contains(&code);
        let meant = if &*codes.operator == "NotIn" { !listed } else { listed };
        meant.then(|| (name.to_owned(), code))
    })
}
