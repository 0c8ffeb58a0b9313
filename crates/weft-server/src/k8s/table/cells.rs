// SPDX-License-Identifier: Apache-2.0
//! Cells that the API server computes for its own kinds, in kubectl users' words.

use serde_json::Value;
use weft_kinds::kind::KindId;

use super::workloads;
use crate::json::Fields;

/// The cell of a computed column.
pub(super) fn computed(kind: KindId, column: &str, object: &Value, now_ms: u64) -> Value {
    if column == "Age" {
        return age(word(object.at("metadata").at("creationTimestamp")), now_ms).into();
    }
    if let Some(cell) = workloads::computed(kind, column, object, now_ms) {
        return cell;
    }
    let (spec, status) = (object.at("spec"), object.at("status"));
    match (kind, column) {
        (KindId::Service, _) => service(column, spec, status),
        (KindId::Pod, _) => pod(column, object, now_ms),
        (KindId::Namespace, "Status") => or(word(status.at("phase")), "Active").into(),
        (KindId::ConfigMap, "Data") => {
            (length(object.at("data")) + length(object.at("binaryData"))).into()
        }
        (KindId::Secret, "Data") => length(object.at("data")).into(),
        (KindId::ServiceAccount, "Secrets") => length(object.at("secrets")).into(),
        (KindId::Event, _) => event(column, object, now_ms).into(),
        (KindId::Endpoints, "Endpoints") => endpoints(object).into(),
        (KindId::EndpointSlice, "Ports") => {
            let ports = list(object.at("ports")).filter_map(|p| p.at("port").as_u64());
            several(ports.map(|p| p.to_string()).collect(), "<unset>").into()
        }
        (KindId::EndpointSlice, "Endpoints") => {
            let all = list(object.at("endpoints")).flat_map(|e| list(e.at("addresses")));
            several(all.map(|a| word(a).to_owned()).collect(), "<unset>").into()
        }
        (KindId::Node, _) => node(column, object).into(),
        _ => "".into(),
    }
}

/// How long ago a time was, as `kubectl get` says it: `45s`, `5m3s`, `3h`, `12d`, `2y`.
pub(super) fn age(time: &str, now_ms: u64) -> String {
    let Ok(then) = time.parse::<jiff::Timestamp>() else { return "<unknown>".into() };
    let now = i64::try_from(now_ms).unwrap_or(i64::MAX);
    human((now - then.as_millisecond()) / 1000)
}

/// A duration in at most two units.
pub(super) fn human(seconds: i64) -> String {
    if seconds < 0 {
        return "0s".into();
    }
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let two = |big: i64, unit: char, small: i64, sub: char| match small {
        0 => format!("{big}{unit}"),
        small => format!("{big}{unit}{small}{sub}"),
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, 'm', seconds % 60, 's'),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, 'h', minutes % 60, 'm'),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, 'd', hours % 24, 'h'),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => two(days / 365, 'y', days % 365, 'd'),
        _ => format!("{}y", days / 365),
    }
}

fn service(column: &str, spec: &Value, status: &Value) -> Value {
    match column {
        "Cluster-IP" => or(word(spec.at("clusterIP")), "<none>").into(),
        "External-IP" => {
            if spec.at("type") == "ExternalName" {
                return or(word(spec.at("externalName")), "<none>").into();
            }
            let ingress = list(status.at("loadBalancer").at("ingress"))
                .map(|i| or(word(i.at("ip")), word(i.at("hostname"))).to_owned());
            let given = list(spec.at("externalIPs")).map(|ip| word(ip).to_owned());
            let all: Vec<String> = ingress.chain(given).filter(|s| !s.is_empty()).collect();
            match (all.is_empty(), word(spec.at("type"))) {
                (false, _) => all.join(",").into(),
                (true, "LoadBalancer") => "<pending>".into(),
                (true, _) => "<none>".into(),
            }
        }
        "Port(s)" => {
            let ports = list(spec.at("ports")).map(|p| {
                let node = p.at("nodePort").as_u64().map_or(String::new(), |n| format!(":{n}"));
                format!("{}{node}/{}", p.at("port"), or(word(p.at("protocol")), "TCP"))
            });
            or(&ports.collect::<Vec<_>>().join(","), "<none>").into()
        }
        "Selector" => pairs(spec.at("selector")).into(),
        _ => "".into(),
    }
}

fn pod(column: &str, pod: &Value, now_ms: u64) -> Value {
    let (spec, status) = (pod.at("spec"), pod.at("status"));
    let containers = || list(status.at("containerStatuses"));
    match column {
        "Ready" => {
            let ready = containers().filter(|c| c.at("ready") == true).count();
            format!("{ready}/{}", length(spec.at("containers"))).into()
        }
        "Status" => pod_status(pod).into(),
        "Restarts" => {
            let count: u64 = containers().filter_map(|c| c.at("restartCount").as_u64()).sum();
            let last = containers()
                .filter_map(|c| c.at("lastState").at("terminated").at("finishedAt").as_str())
                .max();
            match last.filter(|_| count > 0) {
                Some(last) => format!("{count} ({} ago)", age(last, now_ms)).into(),
                None => count.to_string().into(),
            }
        }
        "IP" => or(word(status.at("podIP")), "<none>").into(),
        "Node" => or(word(spec.at("nodeName")), "<none>").into(),
        "Nominated Node" => or(word(status.at("nominatedNodeName")), "<none>").into(),
        "Readiness Gates" => "<none>".into(),
        _ => "".into(),
    }
}

/// The one word that says how a pod is doing.
fn pod_status(pod: &Value) -> String {
    let status = pod.at("status");
    let mut reason =
        or(word(status.at("reason")), or(word(status.at("phase")), "Unknown")).to_owned();
    let (mut running, mut completed) = (false, false);
    for container in list(status.at("containerStatuses")) {
        let state = container.at("state");
        let waiting = word(state.at("waiting").at("reason"));
        let ended = state.at("terminated");
        if !waiting.is_empty() {
            reason = waiting.to_owned();
        } else if ended.is_object() {
            let why = word(ended.at("reason"));
            completed |= why == "Completed";
            reason = match (why, ended.at("signal").as_i64().unwrap_or(0)) {
                ("", 0) => format!("ExitCode:{}", ended.at("exitCode")),
                ("", signal) => format!("Signal:{signal}"),
                (why, _) => why.to_owned(),
            };
        } else if state.at("running").is_object() && container.at("ready") == true {
            running = true;
        }
    }
    // One container is done, another works: the pod runs.
    if completed && reason == "Completed" && running {
        let ready = list(status.at("conditions"))
            .any(|c| c.at("type") == "Ready" && c.at("status") == "True");
        reason = if ready { "Running" } else { "NotReady" }.to_owned();
    }
    if pod.at("metadata").at("deletionTimestamp").is_string() {
        reason = "Terminating".to_owned();
    }
    reason
}

fn event(column: &str, event: &Value, now_ms: u64) -> String {
    let first = or(word(event.at("firstTimestamp")), word(event.at("eventTime")));
    let series = word(event.at("series").at("lastObservedTime"));
    let last = or(series, or(word(event.at("lastTimestamp")), first));
    let object = event.at("involvedObject");
    match column {
        "Last Seen" => age(last, now_ms),
        "First Seen" => age(first, now_ms),
        "Object" => {
            format!("{}/{}", word(object.at("kind")).to_lowercase(), word(object.at("name")))
        }
        "Subobject" => word(object.at("fieldPath")).to_owned(),
        "Source" => {
            let from = event.at("source");
            let parts = [word(from.at("component")), word(from.at("host"))];
            parts.into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join(", ")
        }
        "Count" => event.at("count").as_u64().unwrap_or(1).to_string(),
        _ => String::new(),
    }
}

fn endpoints(object: &Value) -> String {
    let mut all = Vec::new();
    for subset in list(object.at("subsets")) {
        for address in list(subset.at("addresses")) {
            let ip = word(address.at("ip"));
            if length(subset.at("ports")) == 0 {
                all.push(ip.to_owned());
            }
            all.extend(list(subset.at("ports")).map(|p| format!("{ip}:{}", p.at("port"))));
        }
    }
    several(all, "<none>")
}

fn node(column: &str, node: &Value) -> String {
    let (status, info) = (node.at("status"), node.at("status").at("nodeInfo"));
    let address = |kind: &str| {
        let mut all = list(status.at("addresses"));
        let found = all.find(|a| a.at("type") == kind).map(|a| word(a.at("address")).to_owned());
        found.unwrap_or_else(|| "<none>".into())
    };
    match column {
        "Status" => {
            let ready = list(status.at("conditions")).find(|c| c.at("type") == "Ready");
            let ready = match ready.map(|c| word(c.at("status"))) {
                Some("True") => "Ready",
                Some(_) => "NotReady",
                None => "Unknown",
            };
            let cordon = if node.at("spec").at("unschedulable") == true {
                ",SchedulingDisabled"
            } else {
                ""
            };
            format!("{ready}{cordon}")
        }
        "Roles" => {
            let labels = node.at("metadata").at("labels").as_object().into_iter().flatten();
            let roles: Vec<&str> = labels
                .filter_map(|(k, _)| k.strip_prefix("node-role.kubernetes.io/"))
                .filter(|r| !r.is_empty())
                .collect();
            or(&roles.join(","), "<none>").to_owned()
        }
        "Version" => word(info.at("kubeletVersion")).to_owned(),
        "Internal-IP" => address("InternalIP"),
        "External-IP" => address("ExternalIP"),
        "OS-Image" => or(word(info.at("osImage")), "<unknown>").to_owned(),
        "Kernel-Version" => or(word(info.at("kernelVersion")), "<unknown>").to_owned(),
        "Container-Runtime" => or(word(info.at("containerRuntimeVersion")), "<unknown>").to_owned(),
        _ => String::new(),
    }
}

/// At most three, and how many more.
fn several(all: Vec<String>, none: &str) -> String {
    match all.as_slice() {
        [] => none.to_owned(),
        [a, b, c, rest @ ..] if !rest.is_empty() => {
            format!("{a},{b},{c} + {} more...", rest.len())
        }
        few => few.join(","),
    }
}

pub(super) fn pairs(map: &Value) -> String {
    let all: Vec<String> =
        map.as_object().into_iter().flatten().map(|(k, v)| format!("{k}={}", word(v))).collect();
    or(&all.join(","), "<none>").to_owned()
}

pub(super) fn list(value: &Value) -> std::slice::Iter<'_, Value> {
    value.as_array().map_or(&[][..], Vec::as_slice).iter()
}

fn length(value: &Value) -> usize {
    value.as_array().map(Vec::len).or(value.as_object().map(serde_json::Map::len)).unwrap_or(0)
}

pub(super) fn word(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

pub(super) fn or<'a>(text: &'a str, other: &'a str) -> &'a str {
    if text.is_empty() { other } else { text }
}
