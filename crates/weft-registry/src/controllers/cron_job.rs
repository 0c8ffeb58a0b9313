// SPDX-License-Identifier: Apache-2.0
//! CronJobs: a Job at each time of a schedule. Of several times that were missed the latest
//! counts; the name of a Job tells its time, so none is made twice.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use weft_kinds::cron::Schedule;
use weft_kinds::views::View;
use weft_kinds::views::batch::{CronJob, CronJobSpec, JobStatus};
use weft_kinds::world::{KindId, Object, ObjectKey};

use super::job::millis;
use super::plan::{Context, controller_ref};
use super::replica_set::owned;
use crate::objects::admit::annotate;
use crate::{EventNote, Propagation};

const COMPONENT: &str = "cronjob-controller";
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
const SUCCEEDED_KEPT: u32 = 3;
const FAILED_KEPT: u32 = 1;
/// The longest sleep; a clock that was set is noticed after it.
const SLEEP_MAX: Duration = Duration::from_secs(600);

pub fn reconcile(ctx: &mut Context<'_>, key: &ObjectKey) {
    let Some(object) = ctx.object(key) else { return };
    let View::CronJob(cron) = &object.view else { return };
    if object.meta.is_deleting() {
        return;
    }
    let jobs = owned(ctx.world, &object, KindId::Job);
    let mut status = object.raw["status"].clone();
    if !status.is_object() {
        status = json!({});
    }
    note_ended(ctx, &object, &jobs, &mut status);
    forget_history(ctx, &jobs, &cron.spec);
    let mut active: Vec<Arc<Object>> = jobs.into_iter().filter(is_active).collect();
    if let Some(time) = due(ctx, &object, cron) {
        start(ctx, &object, &cron.spec, time, &mut active, &mut status);
    }
    let references: Vec<Value> = active.iter().map(|job| reference(job)).collect();
    match references.is_empty() {
        true => drop(status.as_object_mut().map(|s| s.remove("active"))),
        false => status["active"] = json!(references),
    }
    ctx.status(&object, status);
}

fn is_active(job: &Arc<Object>) -> bool {
    !job.meta.is_deleting() && finished(job).is_none()
}

/// The status of a Job that is over.
fn finished(job: &Object) -> Option<&JobStatus> {
    match &job.view {
        View::Job(view) => Some(&view.status).filter(|s| s.is_finished()),
        _ => None,
    }
}

fn reference(job: &Object) -> Value {
    json!({ "apiVersion": "batch/v1", "kind": "Job", "namespace": &*job.key.namespace,
        "name": &*job.key.name, "uid": &*job.meta.uid })
}

/// Says of Jobs that were active that they ended, and keeps when the last one succeeded.
fn note_ended(ctx: &mut Context<'_>, cron: &Object, jobs: &[Arc<Object>], status: &mut Value) {
    let known = cron.raw["status"]["active"].as_array().into_iter().flatten();
    let known: Vec<&str> = known.filter_map(|r| r["uid"].as_str()).collect();
    for job in jobs {
        let Some(over) = finished(job) else { continue };
        if known.contains(&&*job.meta.uid) {
            let word = if over.is("Complete") { "Complete" } else { "Failed" };
            let text = format!("Saw completed job: {}, condition: {word}", job.key.name);
            ctx.note(EventNote::about(cron, "SawCompletedJob", text).by(COMPONENT));
        }
        if let Some(time) = over.completion_time.as_deref().filter(|_| over.is("Complete"))
            && status["lastSuccessfulTime"].as_str().and_then(millis) < millis(time)
        {
            status["lastSuccessfulTime"] = json!(time);
        }
    }
}

fn forget_history(ctx: &mut Context<'_>, jobs: &[Arc<Object>], spec: &CronJobSpec) {
    let kept = |limit: Option<u32>, default| usize::try_from(limit.unwrap_or(default)).unwrap_or(0);
    for (word, keep) in [
        ("Complete", kept(spec.successful_jobs_history_limit, SUCCEEDED_KEPT)),
        ("Failed", kept(spec.failed_jobs_history_limit, FAILED_KEPT)),
    ] {
        let over = |job: &&Arc<Object>| {
            !job.meta.is_deleting() && finished(job).is_some_and(|status| status.is(word))
        };
        let mut all: Vec<&Arc<Object>> = jobs.iter().filter(over).collect();
        all.sort_by_key(|job| (job.meta.created_ms(), job.key.name.clone()));
        let many = all.len().saturating_sub(keep);
        all.into_iter().take(many).for_each(|job| ctx.delete(job, Propagation::Background));
    }
}

/// The time whose Job is to be made now; sees to it that the next one is not missed.
fn due(ctx: &mut Context<'_>, object: &Object, cron: &CronJob) -> Option<Timestamp> {
    let spec = &cron.spec;
    if spec.suspend {
        return None;
    }
    let schedule = match Schedule::parse(&spec.schedule, spec.time_zone.as_deref()) {
        Ok(schedule) => schedule,
        Err(why) => {
            let text = format!("unparseable schedule {:?}: {why}", spec.schedule);
            let note = EventNote::about(object, "UnparseableSchedule", text);
            ctx.note(note.warning().by(COMPONENT));
            return None;
        }
    };
    let now = Timestamp::from_millisecond(i64::try_from(ctx.wall_ms).ok()?).ok()?;
    if let Some(next) = schedule.next(now) {
        let left = next.as_millisecond().saturating_sub(now.as_millisecond());
        let left = Duration::from_millis(u64::try_from(left).unwrap_or(0));
        ctx.again(left.min(SLEEP_MAX));
    }
    let last = cron.status.last_schedule_time.as_deref();
    let since: Timestamp = last.unwrap_or(&object.meta.creation_timestamp).parse().ok()?;
    let mut since = since;
    if let Some(deadline) = spec.starting_deadline_seconds {
        let seconds = i64::try_from(deadline).unwrap_or(i64::MAX);
        let earliest = now.as_second().saturating_sub(seconds);
        let earliest = Timestamp::from_second(earliest).unwrap_or(Timestamp::MIN);
        if earliest > since {
            if let Some(missed) = schedule.latest(since, earliest)
                && schedule.latest(earliest, now).is_none()
            {
                let text = format!("Missed scheduled time to start a job: {missed}");
                let note = EventNote::about(object, "MissSchedule", text);
                ctx.note(note.warning().by(COMPONENT));
            }
            since = earliest;
        }
    }
    schedule.latest(since, now)
}

fn start(
    ctx: &mut Context<'_>,
    cron: &Object,
    spec: &CronJobSpec,
    time: Timestamp,
    active: &mut Vec<Arc<Object>>,
    status: &mut Value,
) {
    let name = job_name(&cron.key.name, time);
    if ctx.world.get(KindId::Job, &cron.key.namespace, &name).is_some() {
        // Made before, and the status was not written since.
        status["lastScheduleTime"] = json!(time.to_string());
        return;
    }
    match &*spec.concurrency_policy {
        "Forbid" if !active.is_empty() => {
            let text = "Not starting job because prior execution is running and concurrency \
                 policy is Forbid";
            ctx.note(EventNote::about(cron, "JobAlreadyActive", text).by(COMPONENT));
            return;
        }
        "Replace" => {
            for job in active.drain(..) {
                ctx.delete(&job, Propagation::Background);
                let text = format!("Deleted job {}", job.key.name);
                ctx.note(EventNote::about(cron, "SuccessfulDelete", text).by(COMPONENT));
            }
        }
        _ => {}
    }
    let raw = job(cron, &name, time);
    if ctx.create(KindId::Job, &cron.key.namespace, raw).is_some() {
        let text = format!("Created job {name}");
        ctx.note(EventNote::about(cron, "SuccessfulCreate", text).by(COMPONENT));
        status["lastScheduleTime"] = json!(time.to_string());
    }
}

/// Kubernetes names Jobs by the minute; times within a minute need the second.
fn job_name(cron: &str, time: Timestamp) -> String {
    let second = time.as_second();
    let number = if second % 60 == 0 { second / 60 } else { second };
    format!("{cron}-{number}")
}

fn job(cron: &Object, name: &str, time: Timestamp) -> Value {
    let template = &cron.raw["spec"]["jobTemplate"];
    let mut raw = json!({ "metadata": { "name": name }, "spec": template["spec"] });
    for field in ["labels", "annotations"] {
        if let Some(value) = template["metadata"].get(field) {
            raw["metadata"][field] = value.clone();
        }
    }
    raw["metadata"]["ownerReferences"] = json!([controller_ref(cron)]);
    annotate(&mut raw, SCHEDULED, time.to_string());
    weft_kinds::builtin::complete(KindId::Job, &mut raw);
    raw
}
