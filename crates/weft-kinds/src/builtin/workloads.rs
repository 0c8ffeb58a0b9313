// SPDX-License-Identifier: Apache-2.0
//! Defaults and rules of the kinds that make pods or count them: StatefulSet, DaemonSet, Job,
//! CronJob, HorizontalPodAutoscaler, PodDisruptionBudget. Part of [`super::complete`] and
//! [`super::judge`]; looks at one object only.

use serde_json::{Value, json};
use weft_base::issue::Issues;

use super::defaults::{list, part, set, template};
use super::rules::{equal_but_nulls, immutable, labels, one_of, pod_spec, workload};
use crate::check::{Path, found, shown};
use crate::codes::{FORBIDDEN, INVALID, NOT_SUPPORTED, REQUIRED};
use crate::cron::Schedule;
use crate::kind::KindId;

/// A CronJob's Jobs end with eleven characters of their own.
const CRON_NAME_MAX: usize = 52;
const INDEXED_PARALLELISM_MAX: i64 = 100_000;

// === defaults ===

pub(super) fn complete(kind: KindId, object: &mut Value) {
    match kind {
        KindId::StatefulSet => stateful_set(part(object, "spec")),
        KindId::DaemonSet => daemon_set(part(object, "spec")),
        KindId::Job => {
            job(part(object, "spec"));
            let own = object.pointer("/spec/template/metadata/labels").cloned();
            if let Some(own) = own.filter(|l| l.as_object().is_some_and(|l| !l.is_empty())) {
                set(part(object, "metadata"), "labels", own);
            }
        }
        KindId::CronJob => {
            let spec = part(object, "spec");
            set(spec, "concurrencyPolicy", json!("Allow"));
            set(spec, "suspend", json!(false));
            set(spec, "successfulJobsHistoryLimit", json!(3));
            set(spec, "failedJobsHistoryLimit", json!(1));
            // What is a default of Jobs is filled in when one is made; its pods' are shown here.
            template(part(part(spec, "jobTemplate"), "spec"));
        }
        KindId::HorizontalPodAutoscaler => autoscaler(part(object, "spec")),
        _ => {}
    }
}

fn stateful_set(spec: &mut Value) {
    set(spec, "replicas", json!(1));
    set(spec, "revisionHistoryLimit", json!(10));
    set(spec, "podManagementPolicy", json!("OrderedReady"));
    let strategy = part(spec, "updateStrategy");
    set(strategy, "type", json!("RollingUpdate"));
    if strategy["type"] == "RollingUpdate" {
        set(part(strategy, "rollingUpdate"), "partition", json!(0));
    }
    let retention = part(spec, "persistentVolumeClaimRetentionPolicy");
    set(retention, "whenDeleted", json!("Retain"));
    set(retention, "whenScaled", json!("Retain"));
    template(spec);
}

fn daemon_set(spec: &mut Value) {
    set(spec, "revisionHistoryLimit", json!(10));
    let strategy = part(spec, "updateStrategy");
    set(strategy, "type", json!("RollingUpdate"));
    if strategy["type"] == "RollingUpdate" {
        let rolling = part(strategy, "rollingUpdate");
        set(rolling, "maxUnavailable", json!(1));
        set(rolling, "maxSurge", json!(0));
    }
    template(spec);
}

fn job(spec: &mut Value) {
    if spec["completions"].is_null() && spec["parallelism"].is_null() {
        set(spec, "completions", json!(1));
    }
    set(spec, "parallelism", json!(1));
    let per_index = !spec["backoffLimitPerIndex"].is_null();
    set(spec, "backoffLimit", json!(if per_index { i32::MAX } else { 6 }));
    set(spec, "completionMode", json!("NonIndexed"));
    set(spec, "suspend", json!(false));
    set(spec, "manualSelector", json!(false));
    let policy = !spec["podFailurePolicy"].is_null();
    set(spec, "podReplacementPolicy", json!(if policy { "Failed" } else { "TerminatingOrFailed" }));
    for rule in spec.pointer_mut("/podFailurePolicy/rules").map(rows).into_iter().flatten() {
        list(rule, "onPodConditions").for_each(|c| set(c, "status", json!("True")));
    }
    template(spec);
}

fn rows(value: &mut Value) -> impl Iterator<Item = &mut Value> {
    value.as_array_mut().into_iter().flatten()
}

fn autoscaler(spec: &mut Value) {
    set(spec, "minReplicas", json!(1));
    let metrics = spec["metrics"].as_array().is_none_or(Vec::is_empty);
    if metrics {
        spec["metrics"] = json!([{ "type": "Resource", "resource": { "name": "cpu",
            "target": { "type": "Utilization", "averageUtilization": 80 } } }]);
    }
    if !spec["behavior"].is_object() {
        return;
    }
    let up = part(part(spec, "behavior"), "scaleUp");
    set(up, "stabilizationWindowSeconds", json!(0));
    set(up, "selectPolicy", json!("Max"));
    let policies = json!([{ "type": "Pods", "value": 4, "periodSeconds": 15 },
        { "type": "Percent", "value": 100, "periodSeconds": 15 }]);
    set(up, "policies", policies);
    let down = part(part(spec, "behavior"), "scaleDown");
    set(down, "selectPolicy", json!("Max"));
    let policies = json!([{ "type": "Percent", "value": 100, "periodSeconds": 15 }]);
    set(down, "policies", policies);
}

// === rules ===

pub(super) fn judge(kind: KindId, object: &Value, old: Option<&Value>, out: &mut Issues) {
    let root = Path::root();
    let (spec, path) = (&object["spec"], root.field("spec"));
    let was = old.map(|o| &o["spec"]);
    match kind {
        KindId::StatefulSet => {
            workload(spec, path, out);
            stateful_rules(spec, was, path, out);
        }
        KindId::DaemonSet => {
            workload(spec, path, out);
            daemon_rules(spec, was, path, out);
        }
        KindId::Job => job_rules(spec, was, path, out),
        KindId::CronJob => cron_rules(object, path, out),
        KindId::HorizontalPodAutoscaler => autoscaler_rules(spec, path, out),
        KindId::PodDisruptionBudget => {
            let both = ["minAvailable", "maxUnavailable"].iter().all(|f| !spec[*f].is_null());
            if both {
                let message = format!(
                    "Invalid value: {}: minAvailable and maxUnavailable cannot be both set",
                    shown(spec)
                );
                found(out, &path, INVALID, message);
            }
            for field in ["minAvailable", "maxUnavailable"] {
                share(&spec[field], path.field(field), out);
            }
            labels(&spec["selector"]["matchLabels"], path.field("selector"), out);
        }
        _ => {}
    }
}

/// What a rolling update may cost: numbers or percents, not both nothing.
pub(super) fn rolling(strategy: &Value, path: Path<'_>, out: &mut Issues) {
    let kind = strategy["type"].as_str().unwrap_or("RollingUpdate");
    one_of(kind, &["Recreate", "RollingUpdate"], path.field("type"), out);
    let (parts, own) = (&strategy["rollingUpdate"], path.field("rollingUpdate"));
    if kind == "Recreate" {
        if parts.is_object() {
            let message = "Forbidden: may not be specified when strategy `type` is 'Recreate'";
            found(out, &own, FORBIDDEN, message.into());
        }
        return;
    }
    share(&parts["maxSurge"], own.field("maxSurge"), out);
    share(&parts["maxUnavailable"], own.field("maxUnavailable"), out);
    let nothing = |v: &Value| v.as_i64() == Some(0) || v == "0%";
    if nothing(&parts["maxSurge"]) && nothing(&parts["maxUnavailable"]) {
        let message = "Invalid value: may not be 0 when `maxSurge` is 0";
        found(out, &own.field("maxUnavailable"), INVALID, message.into());
    }
}

/// A whole number from 0, or a percentage.
fn share(value: &Value, path: Path<'_>, out: &mut Issues) {
    let ok = match value {
        Value::Null => true,
        Value::Number(n) => n.as_i64().is_some_and(|n| n >= 0),
        Value::String(text) => text.strip_suffix('%').is_some_and(|n| {
            !n.is_empty() && n.len() < 10 && n.bytes().all(|b| b.is_ascii_digit())
        }),
        _ => false,
    };
    if !ok {
        let message = format!(
            "Invalid value: {value}: must be a number from 0 or a percentage such as \"25%\""
        );
        found(out, &path, INVALID, message);
    }
}

fn stateful_rules(spec: &Value, old: Option<&Value>, path: Path<'_>, out: &mut Issues) {
    let policy = spec["podManagementPolicy"].as_str().unwrap_or("OrderedReady");
    one_of(policy, &["OrderedReady", "Parallel"], path.field("podManagementPolicy"), out);
    let (strategy, at) = (&spec["updateStrategy"], path.field("updateStrategy"));
    let kind = strategy["type"].as_str().unwrap_or("RollingUpdate");
    one_of(kind, &["OnDelete", "RollingUpdate"], at.field("type"), out);
    let rolling = at.field("rollingUpdate");
    natural(&strategy["rollingUpdate"]["partition"], rolling.field("partition"), out);
    share(&strategy["rollingUpdate"]["maxUnavailable"], rolling.field("maxUnavailable"), out);
    let claims = spec["volumeClaimTemplates"].as_array().is_some_and(|c| !c.is_empty());
    if claims {
        let message = "Forbidden: weft keeps no volumes beyond a pod's life yet; let the program \
             write below a folder of your own (workdir), or use emptyDir";
        found(out, &path.field("volumeClaimTemplates"), FORBIDDEN, message.into());
    }
    let Some(old) = old else { return };
    for field in ["selector", "serviceName", "podManagementPolicy", "volumeClaimTemplates"] {
        if !equal_but_nulls(&old[field], &spec[field]) {
            let message = "Forbidden: updates to statefulset spec for fields other than \
                 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', \
                 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
            found(out, &path, FORBIDDEN, message.into());
            return;
        }
    }
}

fn daemon_rules(spec: &Value, old: Option<&Value>, path: Path<'_>, out: &mut Issues) {
    let (strategy, at) = (&spec["updateStrategy"], path.field("updateStrategy"));
    let kind = strategy["type"].as_str().unwrap_or("RollingUpdate");
    one_of(kind, &["OnDelete", "RollingUpdate"], at.field("type"), out);
    let rolling = at.field("rollingUpdate");
    share(&strategy["rollingUpdate"]["maxUnavailable"], rolling.field("maxUnavailable"), out);
    let surge = &strategy["rollingUpdate"]["maxSurge"];
    if !surge.is_null() && surge.as_i64() != Some(0) && surge != "0%" {
        let message = "Forbidden: weft runs one pod of a DaemonSet per node at a time; leave it 0";
        found(out, &rolling.field("maxSurge"), FORBIDDEN, message.into());
    }
    if let Some(old) = old
        && old["selector"] != spec["selector"]
    {
        immutable(&path.field("selector"), &spec["selector"], out);
    }
}

fn natural(value: &Value, path: Path<'_>, out: &mut Issues) {
    if value.as_i64().is_some_and(|n| n < 0) {
        let message = format!("Invalid value: {value}: must be greater than or equal to 0");
        found(out, &path, INVALID, message);
    }
}

fn job_rules(spec: &Value, old: Option<&Value>, path: Path<'_>, out: &mut Issues) {
    for field in [
        "parallelism",
        "completions",
        "backoffLimit",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
        "ttlSecondsAfterFinished",
    ] {
        natural(&spec[field], path.field(field), out);
    }
    let deadline = &spec["activeDeadlineSeconds"];
    if deadline.as_i64().is_some_and(|n| n < 1) {
        let message = format!("Invalid value: {deadline}: must be greater than or equal to 1");
        found(out, &path.field("activeDeadlineSeconds"), INVALID, message);
    }
    job_template(&spec["template"], path, out);
    job_modes(spec, path, out);
    failure_policy(&spec["podFailurePolicy"], &path, out);
    let Some(old) = old else { return };
    let indexed = spec["completionMode"] == "Indexed";
    for field in ["selector", "template", "completionMode", "podFailurePolicy"] {
        // A suspended Job that never ran may still be told where to run; weft asks for a new one.
        if !equal_but_nulls(&old[field], &spec[field]) {
            immutable(&path.field(field), &spec[field], out);
        }
    }
    let elastic = indexed && spec["completions"] == spec["parallelism"];
    if old["completions"] != spec["completions"] && !elastic {
        immutable(&path.field("completions"), &spec["completions"], out);
    }
}

fn job_template(template: &Value, path: Path<'_>, out: &mut Issues) {
    let at = path.field("template");
    let pod = at.field("spec");
    pod_spec(&template["spec"], pod, out);
    let meta = at.field("metadata");
    labels(&template["metadata"]["labels"], meta.field("labels"), out);
    let restart = template["spec"]["restartPolicy"].as_str().unwrap_or("Always");
    if !matches!(restart, "OnFailure" | "Never") {
        let message =
            format!("Unsupported value: {restart:?}: supported values: \"OnFailure\", \"Never\"");
        found(out, &pod.field("restartPolicy"), NOT_SUPPORTED, message);
    }
}

fn job_modes(spec: &Value, path: Path<'_>, out: &mut Issues) {
    let mode = spec["completionMode"].as_str().unwrap_or("NonIndexed");
    one_of(mode, &["Indexed", "NonIndexed"], path.field("completionMode"), out);
    if mode == "Indexed" {
        if spec["completions"].is_null() {
            let message = "Required value: when completion mode is Indexed";
            found(out, &path.field("completions"), REQUIRED, message.into());
        }
        for field in ["completions", "parallelism"] {
            if spec[field].as_i64().is_some_and(|n| n > INDEXED_PARALLELISM_MAX) {
                let message = format!(
                    "Invalid value: {}: must be less than or equal to {INDEXED_PARALLELISM_MAX} \
                     when completion mode is Indexed",
                    spec[field]
                );
                found(out, &path.field(field), INVALID, message);
            }
        }
    } else {
        for field in ["backoffLimitPerIndex", "maxFailedIndexes"] {
            if !spec[field].is_null() {
                let message = "Invalid value: requires indexed completion mode";
                found(out, &path.field(field), INVALID, message.into());
            }
        }
    }
    if !spec["successPolicy"].is_null() {
        let message = "Forbidden: weft does not follow success policies; leave it out";
        found(out, &path.field("successPolicy"), FORBIDDEN, message.into());
    }
}

fn failure_policy(policy: &Value, path: &Path<'_>, out: &mut Issues) {
    let own = path.field("podFailurePolicy");
    let rules = own.field("rules");
    for (i, rule) in policy["rules"].as_array().into_iter().flatten().enumerate() {
        let at = rules.index(i);
        let action = rule["action"].as_str().unwrap_or_default();
        one_of(action, &["Count", "FailIndex", "FailJob", "Ignore"], at.field("action"), out);
        let codes = !rule["onExitCodes"].is_null();
        let conditions = rule["onPodConditions"].as_array().is_some_and(|c| !c.is_empty());
        if codes == conditions {
            let message = "Invalid value: specifying one of OnExitCodes and OnPodConditions is \
                 required";
            found(out, &at, INVALID, message.into());
        }
    }
}

fn cron_rules(object: &Value, path: Path<'_>, out: &mut Issues) {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    if name.len() > CRON_NAME_MAX {
        let root = Path::root();
        let meta = root.field("metadata");
        let message =
            format!("Invalid value: {name:?}: must be no more than {CRON_NAME_MAX} characters");
        found(out, &meta.field("name"), INVALID, message);
    }
    let spec = &object["spec"];
    let schedule = spec["schedule"].as_str().unwrap_or_default();
    if schedule.is_empty() {
        found(out, &path.field("schedule"), REQUIRED, "Required value".into());
    } else if schedule.contains("TZ=") {
        let message = format!(
            "Invalid value: {schedule:?}: cannot use TZ or CRON_TZ in schedule, use timeZone \
             field instead"
        );
        found(out, &path.field("schedule"), INVALID, message);
    } else if let Err(error) = Schedule::parse(schedule, None) {
        let message = format!("Invalid value: {schedule:?}: {error}");
        found(out, &path.field("schedule"), INVALID, message);
    }
    if let Some(zone) = spec["timeZone"].as_str()
        && let Err(error) = crate::cron::zone(zone)
    {
        let message = format!("Invalid value: {zone:?}: {error}");
        found(out, &path.field("timeZone"), INVALID, message);
    }
    let policy = spec["concurrencyPolicy"].as_str().unwrap_or("Allow");
    one_of(policy, &["Allow", "Forbid", "Replace"], path.field("concurrencyPolicy"), out);
    for field in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"]
    {
        natural(&spec[field], path.field(field), out);
    }
    let template = path.field("jobTemplate");
    job_template(&spec["jobTemplate"]["spec"]["template"], template.field("spec"), out);
}

fn autoscaler_rules(spec: &Value, path: Path<'_>, out: &mut Issues) {
    let (least, most) = (spec["minReplicas"].as_i64().unwrap_or(1), spec["maxReplicas"].as_i64());
    if least < 1 {
        let message = format!("Invalid value: {least}: must be greater than or equal to 1");
        found(out, &path.field("minReplicas"), INVALID, message);
    }
    match most {
        Some(most) if most < 1 => {
            let message = format!("Invalid value: {most}: must be greater than 0");
            found(out, &path.field("maxReplicas"), INVALID, message);
        }
        Some(most) if most < least => {
            let message =
                format!("Invalid value: {most}: must be greater than or equal to `minReplicas`");
            found(out, &path.field("maxReplicas"), INVALID, message);
        }
        _ => {}
    }
    let target = path.field("scaleTargetRef");
    for field in ["kind", "name"] {
        if spec["scaleTargetRef"][field].as_str().unwrap_or_default().is_empty() {
            found(out, &target.field(field), REQUIRED, "Required value".into());
        }
    }
    let own = path.field("metrics");
    for (i, metric) in spec["metrics"].as_array().into_iter().flatten().enumerate() {
        metric_rules(metric, own.index(i), out);
    }
    let behavior = path.field("behavior");
    for way in ["scaleUp", "scaleDown"] {
        let (rules, at) = (&spec["behavior"][way], behavior.field(way));
        let window = &rules["stabilizationWindowSeconds"];
        if window.as_i64().is_some_and(|n| !(0..=3600).contains(&n)) {
            let message = format!("Invalid value: {window}: must be from 0 to 3600");
            found(out, &at.field("stabilizationWindowSeconds"), INVALID, message);
        }
        let select = rules["selectPolicy"].as_str().unwrap_or("Max");
        one_of(select, &["Disabled", "Max", "Min"], at.field("selectPolicy"), out);
    }
}

fn metric_rules(metric: &Value, path: Path<'_>, out: &mut Issues) {
    let kind = metric["type"].as_str().unwrap_or_default();
    let source = match kind {
        "Resource" => "resource",
        "Pods" => "pods",
        "Object" => "object",
        "External" => "external",
        "ContainerResource" => {
            let message = "Forbidden: weft measures pods, not their containers; use Resource";
            return found(out, &path.field("type"), FORBIDDEN, message.into());
        }
        _ => {
            let all = ["External", "Object", "Pods", "Resource"];
            return one_of(kind, &all, path.field("type"), out);
        }
    };
    let (own, at) = (&metric[source], path.field(source));
    if !own.is_object() {
        let message = "Required value: must populate the given metric source";
        return found(out, &at, REQUIRED, message.into());
    }
    let target = &own["target"];
    let goals = ["averageUtilization", "averageValue", "value"];
    if goals.iter().all(|g| target[*g].is_null()) {
        let message = "Required value: must set a target value";
        found(out, &at.field("target"), REQUIRED, message.into());
    }
    let name = own["metric"]["name"].as_str().or(own["name"].as_str()).unwrap_or_default();
    if source == "resource" && !matches!(name, "cpu" | "memory") {
        let message = format!("Unsupported value: {name:?}: supported values: \"cpu\", \"memory\"");
        found(out, &at.field("name"), NOT_SUPPORTED, message);
    }
}
