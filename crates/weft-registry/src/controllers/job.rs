// SPDX-License-Identifier: Apache-2.0
//! Jobs: pods until enough of them succeeded, or too many failed. Each end of a pod is counted
//! once, in the transaction that also notes so on the pod; so a pod may be removed at any time
//! after it ended. One that is removed by force while it runs counts for nothing.
//!
//! `job/attempt.rs` reads the pods, `job/indexes.rs` the lists of indexes.

mod attempt;
mod indexes;

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use weft_kinds::views::View;
use weft_kinds::views::batch::{Job, JobSpec};
use weft_kinds::world::{KindId, Object, ObjectKey};

use self::attempt::{Attempt, COUNTED, INDEX, Outcome, Ruling};
use super::plan::{Context, controller_ref};
use super::pod::set_condition;
use super::replica_set::{count, owned};
use crate::objects::admit::{Extra, annotate};
use crate::objects::meta::metadata_mut;
use crate::{EventNote, Propagation};

const COMPONENT: &str = "job-controller";
/// Pods made or removed in one go; the rest follow at once.
const AT_ONCE: usize = 64;
/// Pods of one Job at the same time.
const PODS_MAX: u32 = 1000;
const BACKOFF_LIMIT: u32 = 6;
const FIRST_BACKOFF_MS: u64 = 10_000;
const LAST_BACKOFF_MS: u64 = 600_000;

/// What is known of a Job at one moment.
struct Run<'a> {
    job: &'a Job,
    object: &'a Object,
    attempts: Vec<Attempt>,
    succeeded: u32,
    failed: u32,
    done: BTreeSet<u32>,
    failed_indexes: BTreeSet<u32>,
    status: Value,
}

/// How a Job ends: the condition that says so, and why.
struct End {
    success: bool,
    reason: String,
    message: String,
}

pub fn reconcile(ctx: &mut Context<'_>, key: &ObjectKey) {
    let Some(object) = ctx.object(key) else { return };
    let View::Job(job) = &object.view else { return };
    if object.meta.is_deleting() {
        return;
    }
    if job.status.is_finished() {
        return expire(ctx, &object, job);
    }
    let mut run = Run::of(ctx, &object, job);
    let extra = run.count_ended(ctx);
    run.start(ctx);
    match run.end(ctx) {
        Some(end) => run.finish(ctx, &end),
        None if job.spec.suspend => run.drop_all(ctx),
        None => run.go_on(ctx),
    }
    run.write_counts();
    let mut new = Value::clone(&object.raw);
    new["status"] = run.status;
    ctx.write_with(&object, new, extra);
}

/// A finished Job goes when its time is over.
fn expire(ctx: &mut Context<'_>, object: &Object, job: &Job) {
    let Some(ttl) = job.spec.ttl_seconds_after_finished else { return };
    let conditions = object.raw["status"]["conditions"].as_array().into_iter().flatten();
    let over = |c: &&Value| c["type"] == "Complete" || c["type"] == "Failed";
    let mut over = conditions.filter(over);
    let since = over.find_map(|c| millis(c["lastTransitionTime"].as_str()?));
    let due = since.unwrap_or(0).saturating_add(ttl.saturating_mul(1000));
    match due.checked_sub(ctx.wall_ms).filter(|left| *left > 0) {
        Some(left) => ctx.again(Duration::from_millis(left)),
        None => ctx.delete(object, Propagation::Foreground),
    }
}

/// A time of an object's status in milliseconds.
pub(super) fn millis(text: &str) -> Option<u64> {
    let time: jiff::Timestamp = text.parse().ok()?;
    u64::try_from(time.as_millisecond()).ok()
}

// === impl Run ===

impl<'a> Run<'a> {
    fn of(ctx: &Context<'_>, object: &'a Object, job: &'a Job) -> Self {
        let pods = owned(ctx.world, object, KindId::Pod);
        let attempts = pods.into_iter().map(|pod| Attempt::of(pod, &job.spec)).collect();
        let end = job.spec.completions.unwrap_or(0);
        let mut status = object.raw["status"].clone();
        if !status.is_object() {
            status = json!({});
        }
        Self {
            job,
            object,
            attempts,
            succeeded: job.status.succeeded,
            failed: job.status.failed,
            done: indexes::parse(&job.status.completed_indexes, end),
            failed_indexes: indexes::parse(job.status.failed_indexes.as_deref().unwrap_or(""), end),
            status,
        }
    }

    fn spec(&self) -> &'a JobSpec {
        &self.job.spec
    }

    fn active(&self) -> impl Iterator<Item = &Attempt> {
        self.attempts.iter().filter(|a| a.is_active())
    }

    /// Takes pods that ended into the counts; returns what notes that on the pods.
    fn count_ended(&mut self, ctx: &mut Context<'_>) -> Extra {
        let mut extra = Extra::default();
        let end = self.spec().completions.unwrap_or(0);
        let ended = |a: &Attempt| matches!(a.outcome, Outcome::Succeeded | Outcome::Failed);
        for attempt in self.attempts.iter().filter(|a| ended(a) && !a.counted) {
            let index = attempt.index.filter(|i| *i < end);
            match attempt.outcome {
                Outcome::Succeeded => {
                    let known = index.is_some_and(|i| !self.done.insert(i));
                    let stray = self.spec().is_indexed() && index.is_none();
                    self.succeeded += u32::from(!known && !stray);
                }
                _ if attempt.ruling == Ruling::Ignore => {}
                _ => self.failed += 1,
            }
            let mut new = Value::clone(&attempt.object.raw);
            annotate(&mut new, COUNTED, "true".to_owned());
            let Some(more) = ctx.along(&attempt.object, new) else { continue };
            extra.compares.extend(more.compares);
            extra.ops.extend(more.ops);
        }
        if self.spec().is_indexed() {
            self.succeeded = u32::try_from(self.done.len()).unwrap_or(u32::MAX);
            self.fail_indexes();
        }
        extra
    }

    /// Indexes that failed too often, or for good.
    fn fail_indexes(&mut self) {
        let Some(limit) = self.spec().backoff_limit_per_index else { return };
        let end = self.spec().completions.unwrap_or(0);
        for attempt in self.attempts.iter().filter(|a| a.is_failure()) {
            let Some(index) = attempt.index.filter(|i| *i < end) else { continue };
            if self.done.contains(&index) {
                continue;
            }
            let failures = self.failures_of(index).count();
            let many = u32::try_from(failures).unwrap_or(u32::MAX) > limit;
            if many || attempt.ruling == Ruling::FailIndex {
                self.failed_indexes.insert(index);
            }
        }
    }

    fn failures_of(&self, index: u32) -> impl Iterator<Item = &Attempt> {
        self.attempts.iter().filter(move |a| a.is_failure() && a.index == Some(index))
    }

    /// Begins, stops and begins again; says so in conditions.
    fn start(&mut self, ctx: &mut Context<'_>) {
        let suspended = self.job.status.is("Suspended");
        match (self.spec().suspend, suspended) {
            (true, false) => {
                self.condition(ctx, "Suspended", ["True", "JobSuspended", "Job suspended"]);
                self.unset("startTime");
                self.note(ctx, "Suspended", "Job suspended");
            }
            (false, true) => {
                self.condition(ctx, "Suspended", ["False", "JobResumed", "Job resumed"]);
                self.status["startTime"] = json!(ctx.now());
                self.note(ctx, "Resumed", "Job resumed");
            }
            (false, false) if self.job.status.start_time.is_none() => {
                self.status["startTime"] = json!(ctx.now());
            }
            _ => {}
        }
    }

    /// Whether and how it ends.
    fn end(&self, ctx: &mut Context<'_>) -> Option<End> {
        let conditions = self.object.raw["status"]["conditions"].as_array().into_iter().flatten();
        for known in conditions.filter(|c| c["status"] == "True") {
            let success = known["type"] == "SuccessCriteriaMet";
            if success || known["type"] == "FailureTarget" {
                let word = |field: &str| known[field].as_str().unwrap_or_default().to_owned();
                return Some(End { success, reason: word("reason"), message: word("message") });
            }
        }
        let failed = |reason: &str, message: &str| {
            Some(End { success: false, reason: reason.into(), message: message.into() })
        };
        let ruled = self.attempts.iter().find_map(|a| match &a.ruling {
            Ruling::FailJob(why) => Some(why),
            _ => None,
        });
        if let Some(why) = ruled {
            return failed("PodFailurePolicy", why);
        }
        if self.is_past_backoff() {
            let message = "Job has reached the specified backoff limit";
            return failed("BackoffLimitExceeded", message);
        }
        if self.is_past_deadline(ctx) {
            return failed("DeadlineExceeded", "Job was active longer than specified deadline");
        }
        if let Some(end) = self.end_by_indexes() {
            return Some(end);
        }
        let active = self.active().count();
        let complete = match self.spec().completions {
            None => self.succeeded > 0 && active == 0,
            Some(wanted) => self.succeeded >= wanted,
        };
        let message = "Reached expected number of succeeded pods";
        complete.then(|| End {
            success: true,
            reason: "CompletionsReached".into(),
            message: message.into(),
        })
    }

    fn end_by_indexes(&self) -> Option<End> {
        self.spec().backoff_limit_per_index?;
        let wanted = usize::try_from(self.spec().completions?).ok()?;
        let failed = self.failed_indexes.len();
        let over = self.spec().max_failed_indexes.and_then(|m| usize::try_from(m).ok());
        let (reason, message) = if over.is_some_and(|max| failed > max) {
            let message = "Job has exceeded the specified maximal number of failed indexes";
            ("MaxFailedIndexesExceeded", message)
        } else if failed > 0 && failed + self.done.len() >= wanted {
            ("FailedIndexes", "Job has failed indexes")
        } else {
            return None;
        };
        Some(End { success: false, reason: reason.into(), message: message.into() })
    }

    fn is_past_backoff(&self) -> bool {
        let per_index = self.spec().backoff_limit_per_index.is_some();
        let default = if per_index { u32::MAX } else { BACKOFF_LIMIT };
        let limit = self.spec().backoff_limit.unwrap_or(default);
        if self.failed > limit {
            return true;
        }
        let policy = &self.object.raw["spec"]["template"]["spec"]["restartPolicy"];
        let restarts: u64 = self.active().map(|a| a.restarts).sum();
        // Containers that are restarted in their pods count as well.
        policy == "OnFailure" && restarts > 0 && (limit == 0 || restarts >= u64::from(limit))
    }

    fn is_past_deadline(&self, ctx: &mut Context<'_>) -> bool {
        let (Some(seconds), false) = (self.spec().active_deadline_seconds, self.spec().suspend)
        else {
            return false;
        };
        let start = self.status["startTime"].as_str().and_then(millis).unwrap_or(ctx.wall_ms);
        let due = start.saturating_add(seconds.saturating_mul(1000));
        match due.checked_sub(ctx.wall_ms).filter(|left| *left > 0) {
            Some(left) => {
                ctx.again(Duration::from_millis(left));
                false
            }
            None => true,
        }
    }

    /// What still runs is ended; when nothing is left, the last condition is set.
    fn finish(&mut self, ctx: &mut Context<'_>, end: &End) {
        let before = if end.success { "SuccessCriteriaMet" } else { "FailureTarget" };
        let words = ["True", &end.reason, &end.message];
        self.condition(ctx, before, words);
        let alive = self.attempts.iter().filter(|a| a.alive).count();
        self.drop_all(ctx);
        if alive > 0 {
            return;
        }
        self.condition(ctx, if end.success { "Complete" } else { "Failed" }, words);
        if end.success {
            self.status["completionTime"] = json!(ctx.now());
            self.note(ctx, "Completed", "Job completed");
        } else {
            let message = end.message.clone();
            let note = EventNote::about(self.object, reason(&end.reason), message);
            ctx.note(note.warning().by(COMPONENT));
        }
        if let Some(ttl) = self.spec().ttl_seconds_after_finished {
            ctx.again(Duration::from_secs(ttl));
        }
    }

    /// As many pods as there is work left for.
    fn go_on(&mut self, ctx: &mut Context<'_>) {
        let active = self.active().count();
        let parallel = self.spec().parallelism.unwrap_or(1).min(PODS_MAX);
        let wanted = match self.spec().completions {
            None if self.succeeded > 0 => u32::try_from(active).unwrap_or(0),
            None => parallel,
            Some(all) => all.saturating_sub(self.succeeded).min(parallel),
        };
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        let twice = self.twice();
        if active > wanted || !twice.is_empty() {
            let least = twice.len();
            let other = |a: &Attempt| twice.iter().all(|t| t.object.key != a.object.key);
            let others: Vec<Attempt> = self.victims().into_iter().filter(other).collect();
            let over = active.saturating_sub(wanted).max(least);
            let few: Vec<Attempt> = twice.into_iter().chain(others).take(over).collect();
            few.iter().for_each(|attempt| self.drop_one(ctx, attempt));
            return;
        }
        let replaced_when_gone = &*self.spec().pod_replacement_policy == "Failed";
        let going = self.attempts.iter().filter(|a| a.alive && !a.is_active()).count();
        let going = if replaced_when_gone { going } else { 0 };
        let missing = wanted.saturating_sub(active + going);
        if missing == 0 {
            return;
        }
        if self.spec().is_indexed() {
            return self.create_indexed(ctx, missing);
        }
        if let Some(left) = backoff(ctx.wall_ms, self.attempts.iter().collect()) {
            return ctx.again(left);
        }
        for _ in 0..missing.min(AT_ONCE) {
            self.create(ctx, None);
        }
        if missing > AT_ONCE {
            ctx.again(Duration::ZERO);
        }
    }

    fn create_indexed(&self, ctx: &mut Context<'_>, missing: usize) {
        let end = self.spec().completions.unwrap_or(0);
        let busy: BTreeSet<u32> =
            self.attempts.iter().filter(|a| a.is_active()).filter_map(|a| a.index).collect();
        let per_index = self.spec().backoff_limit_per_index.is_some();
        let mut made = 0;
        if !per_index && let Some(left) = backoff(ctx.wall_ms, self.attempts.iter().collect()) {
            return ctx.again(left);
        }
        let free = |i: &u32| {
            !busy.contains(i) && !self.done.contains(i) && !self.failed_indexes.contains(i)
        };
        for index in (0..end).filter(free) {
            if made == missing.min(AT_ONCE) {
                break;
            }
            if per_index && let Some(left) = backoff(ctx.wall_ms, self.failures_of(index).collect())
            {
                ctx.again(left);
                continue;
            }
            self.create(ctx, Some(index));
            made += 1;
        }
        if missing > AT_ONCE {
            ctx.again(Duration::ZERO);
        }
    }

    fn create(&self, ctx: &mut Context<'_>, index: Option<u32>) {
        let raw = pod(self.object, index);
        if let Some(name) = ctx.create(KindId::Pod, &self.object.key.namespace, raw) {
            self.note(ctx, "SuccessfulCreate", &format!("Created pod: {name}"));
        }
    }

    /// Active pods whose index another one has, or that is none.
    fn twice(&self) -> Vec<Attempt> {
        if !self.spec().is_indexed() {
            return Vec::new();
        }
        let end = self.spec().completions.unwrap_or(0);
        let mut seen = self.done.clone();
        let fresh = |a: &&Attempt| !a.index.is_some_and(|i| i < end && seen.insert(i));
        self.active().filter(fresh).cloned().collect()
    }

    /// Active pods, those first that are missed least.
    fn victims(&self) -> Vec<Attempt> {
        let mut out: Vec<Attempt> = self.active().cloned().collect();
        out.sort_by_key(|a| {
            let age = std::cmp::Reverse((a.object.meta.created_ms(), a.object.revision));
            (a.ready, std::cmp::Reverse(a.index), age)
        });
        out
    }

    fn drop_all(&mut self, ctx: &mut Context<'_>) {
        self.victims().iter().for_each(|attempt| self.drop_one(ctx, attempt));
    }

    /// Ends a pod that then counts for nothing.
    fn drop_one(&mut self, ctx: &mut Context<'_>, attempt: &Attempt) {
        let mut marked = Object::clone(&attempt.object);
        let mut raw = Value::clone(&marked.raw);
        annotate(&mut raw, COUNTED, "true".to_owned());
        marked.raw = raw.into();
        ctx.delete(&marked, Propagation::Background);
        let name = &attempt.object.key.name;
        self.note(ctx, "SuccessfulDelete", &format!("Deleted pod: {name}"));
        let uid = attempt.object.meta.uid.clone();
        for known in self.attempts.iter_mut().filter(|a| a.object.meta.uid == uid) {
            known.outcome = Outcome::Dropped;
        }
    }

    fn write_counts(&mut self) {
        let active = self.active().count();
        let ready = self.active().filter(|a| a.ready).count();
        let going = self.attempts.iter().filter(|a| a.alive && !a.is_active()).count();
        let whole = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
        count(&mut self.status, "active", active);
        count(&mut self.status, "succeeded", whole(self.succeeded));
        count(&mut self.status, "failed", whole(self.failed));
        self.status["ready"] = json!(ready);
        self.status["terminating"] = json!(going);
        self.status["uncountedTerminatedPods"] = json!({});
        if self.spec().is_indexed() {
            self.status["completedIndexes"] = json!(indexes::write(&self.done));
            if self.done.is_empty() {
                self.unset("completedIndexes");
            }
        }
        if self.spec().backoff_limit_per_index.is_some() {
            self.status["failedIndexes"] = json!(indexes::write(&self.failed_indexes));
        }
    }

    fn condition(&mut self, ctx: &Context<'_>, kind: &str, [answer, reason, message]: [&str; 3]) {
        let known = self.status["conditions"].as_array();
        let known = known.and_then(|l| l.iter().find(|c| c["type"] == kind));
        if known.is_some_and(|c| c["status"] == answer) {
            return;
        }
        let now = ctx.now();
        let new = json!({ "type": kind, "status": answer, "lastProbeTime": now,
            "lastTransitionTime": now, "reason": reason, "message": message });
        set_condition(&mut self.status, new);
    }

    fn unset(&mut self, field: &str) {
        if let Some(status) = self.status.as_object_mut() {
            status.remove(field);
        }
    }

    fn note(&self, ctx: &mut Context<'_>, reason: &'static str, message: &str) {
        ctx.note(EventNote::about(self.object, reason, message).by(COMPONENT));
    }
}

/// A Job's reason as an event's word.
fn reason(text: &str) -> &'static str {
    const ALL: [&str; 5] = [
        "BackoffLimitExceeded",
        "DeadlineExceeded",
        "PodFailurePolicy",
        "MaxFailedIndexesExceeded",
        "FailedIndexes",
    ];
    ALL.into_iter().find(|known| *known == text).unwrap_or("Failed")
}

/// How long the next pod waits after failures since the last success: 10 s, 20 s, 40 s, …
fn backoff(now_ms: u64, attempts: Vec<&Attempt>) -> Option<Duration> {
    let succeeded = attempts.iter().filter(|a| a.outcome == Outcome::Succeeded);
    let success = succeeded.map(|a| a.ended_ms).max().unwrap_or(0);
    let since = attempts.iter().filter(|a| a.is_failure() && a.ended_ms > success);
    let ends: Vec<u64> = since.map(|a| a.ended_ms).collect();
    let last = ends.iter().max()?;
    let times = u32::try_from(ends.len()).unwrap_or(u32::MAX) - 1;
    let wait = FIRST_BACKOFF_MS.saturating_mul(1u64.checked_shl(times.min(16)).unwrap_or(1 << 16));
    let left = last.saturating_add(wait.min(LAST_BACKOFF_MS)).saturating_sub(now_ms);
    (left > 0).then(|| Duration::from_millis(left))
}

/// A pod of the Job's template; one with an index knows it.
fn pod(job: &Object, index: Option<u32>) -> Value {
    let template = &job.raw["spec"]["template"];
    let mut raw = json!({ "metadata": {}, "spec": template["spec"] });
    for field in ["labels", "annotations", "finalizers"] {
        if let Some(value) = template["metadata"].get(field) {
            raw["metadata"][field] = value.clone();
        }
    }
    let name = &job.key.name;
    raw["metadata"]["ownerReferences"] = json!([controller_ref(job)]);
    raw["metadata"]["generateName"] = json!(format!("{name}-"));
    raw["status"] = json!({ "phase": "Pending" });
    let Some(index) = index else { return raw };
    raw["metadata"]["generateName"] = json!(format!("{name}-{index}-"));
    annotate(&mut raw, INDEX, index.to_string());
    let labels = metadata_mut(&mut raw).entry("labels").or_insert_with(|| json!({}));
    if labels.is_object() {
        labels[INDEX] = json!(index.to_string());
    }
    let own = raw["spec"]["hostname"].as_str().is_some_and(|h| !h.is_empty());
    if !own && raw["spec"].is_object() {
        raw["spec"]["hostname"] = json!(format!("{name}-{index}"));
    }
    let path = format!("metadata.labels['{INDEX}']");
    let variable = json!({ "name": "JOB_COMPLETION_INDEX",
        "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": path } } });
    for field in ["initContainers", "containers"] {
        let containers = raw["spec"].get_mut(field).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter(|c| c.is_object()) {
            let given = container["env"].as_array().cloned().unwrap_or_default();
            if given.iter().all(|v| v["name"] != "JOB_COMPLETION_INDEX") {
                container["env"] = json!([given, vec![variable.clone()]].concat());
            }
        }
    }
    raw
}
