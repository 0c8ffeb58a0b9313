// SPDX-License-Identifier: Apache-2.0
//! Cells of the kinds that make pods or count them, in kubectl users' words.

use serde_json::Value;
use weft_kinds::kind::KindId;

use super::cells::{age, human, list, or, pairs, word};
use crate::json::Fields;

/// The cell of a computed column; `None` when it is no column of these kinds.
pub(super) fn computed(kind: KindId, column: &str, object: &Value, now_ms: u64) -> Option<Value> {
    let (spec, status) = (object.at("spec"), object.at("status"));
    let template = match kind {
        KindId::CronJob => spec.at("jobTemplate").at("spec").at("template"),
        _ => spec.at("template"),
    };
    let containers = |field: &str| {
        let all = list(template.at("spec").at("containers"));
        Value::from(all.map(|c| word(c.at(field))).collect::<Vec<_>>().join(","))
    };
    let shared = match column {
        "Containers" => Some(containers("name")),
        "Images" => Some(containers("image")),
        "Selector" if kind == KindId::CronJob => Some("<none>".into()),
        "Selector" => Some(pairs(spec.at("selector").at("matchLabels")).into()),
        _ => None,
    };
    match kind {
        KindId::Deployment | KindId::ReplicaSet | KindId::StatefulSet => {
            shared.or_else(|| Some(counted(kind, column, spec, status)))
        }
        KindId::DaemonSet => shared.or_else(|| Some(daemon_set(column, template, status))),
        KindId::Job => shared.or_else(|| Some(job(column, object, now_ms))),
        KindId::CronJob => shared.or_else(|| Some(cron_job(column, spec, status, now_ms))),
        KindId::HorizontalPodAutoscaler => Some(autoscaler(column, spec, status)),
        KindId::PodDisruptionBudget => Some(match column {
            "Min Available" => share(spec.at("minAvailable")),
            "Max Unavailable" => share(spec.at("maxUnavailable")),
            _ => number(status.at("disruptionsAllowed")).into(),
        }),
        KindId::ControllerRevision => {
            let owners = list(object.at("metadata").at("ownerReferences"));
            let mut owners = owners.filter(|o| o.at("controller") == true);
            Some(owners.next().map_or("<none>".into(), |o| {
                let group = word(o.at("apiVersion")).split('/').next().unwrap_or("");
                let kind = word(o.at("kind")).to_lowercase();
                format!("{kind}.{group}/{}", word(o.at("name"))).into()
            }))
        }
        _ => None,
    }
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

fn counted(kind: KindId, column: &str, spec: &Value, status: &Value) -> Value {
    let wanted = spec.at("replicas").as_i64().unwrap_or(1);
    match (kind, column) {
        (KindId::Deployment | KindId::StatefulSet, "Ready") => {
            format!("{}/{wanted}", number(status.at("readyReplicas"))).into()
        }
        (_, "Ready") => number(status.at("readyReplicas")).into(),
        (_, "Up-to-date") => number(status.at("updatedReplicas")).into(),
        (_, "Available") => number(status.at("availableReplicas")).into(),
        (_, "Desired") => wanted.into(),
        (_, "Current") => number(status.at("replicas")).into(),
        _ => "".into(),
    }
}

fn daemon_set(column: &str, template: &Value, status: &Value) -> Value {
    let field = match column {
        "Desired" => "desiredNumberScheduled",
        "Current" => "currentNumberScheduled",
        "Ready" => "numberReady",
        "Up-to-date" => "updatedNumberScheduled",
        "Available" => "numberAvailable",
        _ => return pairs(template.at("spec").at("nodeSelector")).into(),
    };
    number(status.at(field)).into()
}

fn job(column: &str, job: &Value, now_ms: u64) -> Value {
    let (spec, status) = (job.at("spec"), job.at("status"));
    match column {
        "Status" => {
            let is = |kind: &str| {
                list(status.at("conditions"))
                    .any(|c| c.at("type") == kind && c.at("status") == "True")
            };
            let deleting = job.at("metadata").at("deletionTimestamp").is_string();
            match () {
                () if is("Complete") => "Complete",
                () if is("Failed") => "Failed",
                () if deleting => "Terminating",
                () if is("Suspended") => "Suspended",
                () if is("FailureTarget") => "FailureTarget",
                () if is("SuccessCriteriaMet") => "SuccessCriteriaMet",
                () => "Running",
            }
            .into()
        }
        "Completions" => {
            let done = number(status.at("succeeded"));
            match (spec.at("completions").as_i64(), number(spec.at("parallelism"))) {
                (Some(all), _) => format!("{done}/{all}"),
                (None, several) if several > 1 => format!("{done}/1 of {several}"),
                (None, _) => format!("{done}/1"),
            }
            .into()
        }
        "Duration" => {
            let moment = |name: &str| word(status.at(name)).parse::<jiff::Timestamp>().ok();
            let Some(start) = moment("startTime") else { return "".into() };
            let now = i64::try_from(now_ms / 1000).unwrap_or(i64::MAX);
            let end = moment("completionTime").map_or(now, |t| t.as_second());
            human(end - start.as_second()).into()
        }
        _ => "".into(),
    }
}

fn cron_job(column: &str, spec: &Value, status: &Value, now_ms: u64) -> Value {
    match column {
        "Timezone" => or(word(spec.at("timeZone")), "<none>").into(),
        "Suspend" => if spec.at("suspend") == true { "True" } else { "False" }.into(),
        "Active" => list(status.at("active")).len().into(),
        "Last Schedule" => match word(status.at("lastScheduleTime")) {
            "" => "<none>".into(),
            last => age(last, now_ms).into(),
        },
        _ => "".into(),
    }
}

fn share(value: &Value) -> Value {
    match value {
        Value::Null => "N/A".into(),
        Value::String(text) => text.clone().into(),
        other => other.to_string().into(),
    }
}

fn autoscaler(column: &str, spec: &Value, status: &Value) -> Value {
    match column {
        "Reference" => {
            let target = spec.at("scaleTargetRef");
            format!("{}/{}", word(target.at("kind")), word(target.at("name"))).into()
        }
        "Targets" => targets(spec.at("metrics"), status.at("currentMetrics")).into(),
        "MinPods" => match spec.at("minReplicas").as_i64() {
            Some(least) => least.to_string().into(),
            None => "<unset>".into(),
        },
        "MaxPods" => number(spec.at("maxReplicas")).into(),
        _ => number(status.at("currentReplicas")).into(),
    }
}

/// What is, over what is wanted, of at most two metrics.
fn targets(specs: &Value, statuses: &Value) -> String {
    let all: Vec<String> = list(specs)
        .enumerate()
        .map(|(i, metric)| {
            let (source, word_of) = match word(metric.at("type")) {
                "Resource" => ("resource", "cpu"),
                "Pods" => ("pods", ""),
                "Object" => ("object", ""),
                _ => ("external", ""),
            };
            let own = metric.at(source);
            let nothing = Value::Null;
            let now = statuses.as_array().and_then(|s| s.get(i)).unwrap_or(&nothing);
            let now = now.at(source).at("current");
            let target = own.at("target");
            let text = |value: &Value, unit: &str| match value {
                Value::Null => "<unknown>".to_owned(),
                Value::String(text) => format!("{text}{unit}"),
                other => format!("{other}{unit}"),
            };
            let pair = |field: &str, unit: &str| {
                format!("{}/{}", text(now.at(field), unit), text(target.at(field), unit))
            };
            let what = match pair_field(target) {
                "averageUtilization" => pair("averageUtilization", "%"),
                "averageValue" if matches!(source, "object" | "external") => {
                    format!("{} (avg)", pair("averageValue", ""))
                }
                field => pair(field, ""),
            };
            match source {
                "resource" => format!("{}: {what}", or(word(own.at("name")), word_of)),
                _ => what,
            }
        })
        .collect();
    match all.as_slice() {
        [] => "<none>".to_owned(),
        [a, b, rest @ ..] if !rest.is_empty() => format!("{a}, {b} + {} more...", rest.len()),
        few => few.join(", "),
    }
}

/// Which of a target's values is meant.
fn pair_field(target: &Value) -> &'static str {
    let fields = ["averageValue", "averageUtilization", "value"];
    fields.into_iter().find(|f| !target.at(f).is_null()).unwrap_or("value")
}
