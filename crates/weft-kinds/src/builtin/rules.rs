// SPDX-License-Identifier: Apache-2.0
//! Rules of the built-in kinds that their schemas do not state, in the API server's words.

use std::collections::HashSet;

use serde_json::Value;
use weft_base::issue::Issues;
use weft_base::name::Label;

use super::workloads;
use crate::check::{Path, found, shown};
use crate::codes::{DUPLICATE, FORBIDDEN, INVALID, NOT_SUPPORTED, REQUIRED};
use crate::kind::KindId;

/// Bytes of all annotations of one object.
const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;

/// Findings of one object; `old` is what it replaces.
pub fn judge(kind: KindId, object: &Value, old: Option<&Value>) -> Issues {
    let mut out = Issues::default();
    let root = Path::root();
    metadata(object, &mut out);
    let (spec, path) = (&object["spec"], root.field("spec"));
    match kind {
        KindId::Service => service(spec, old.map(|o| &o["spec"]), path, &mut out),
        KindId::Deployment | KindId::ReplicaSet => {
            workload(spec, path, &mut out);
            if kind == KindId::Deployment {
                workloads::rolling(&spec["strategy"], path.field("strategy"), &mut out);
            }
            if let Some(old) = old
                && old["spec"]["selector"] != spec["selector"]
            {
                immutable(&path.field("selector"), &spec["selector"], &mut out);
            }
        }
        KindId::StatefulSet
        | KindId::DaemonSet
        | KindId::Job
        | KindId::CronJob
        | KindId::HorizontalPodAutoscaler
        | KindId::PodDisruptionBudget => {
            workloads::judge(kind, object, old, &mut out);
        }
        KindId::Pod => {
            pod_spec(spec, path, &mut out);
            if let Some(old) = old {
                pod_change(&old["spec"], spec, path, &mut out);
            }
        }
        KindId::ConfigMap | KindId::Secret => data(kind, object, old, &mut out),
        _ => {}
    }
    out
}

fn metadata(object: &Value, out: &mut Issues) {
    let root = Path::root();
    let meta = root.field("metadata");
    labels(&object["metadata"]["labels"], meta.field("labels"), out);
    let path = meta.field("annotations");
    let mut bytes = 0;
    for (key, value) in object["metadata"]["annotations"].as_object().into_iter().flatten() {
        bytes += key.len() + value.as_str().map_or(0, str::len);
        if let Some(wrong) = qualified_name(key) {
            found(out, &path, INVALID, format!("Invalid value: {key:?}: {wrong}"));
        }
    }
    if bytes > ANNOTATIONS_BYTES_MAX {
        let message = format!("Too long: may not be more than {ANNOTATIONS_BYTES_MAX} bytes");
        found(out, &path, INVALID, message);
    }
}

pub(super) fn labels(map: &Value, path: Path<'_>, out: &mut Issues) {
    for (key, value) in map.as_object().into_iter().flatten() {
        if let Some(wrong) = qualified_name(key) {
            found(out, &path, INVALID, format!("Invalid value: {key:?}: {wrong}"));
        }
        let value = value.as_str().unwrap_or_default();
        if !is_label_value(value) {
            let message = format!(
                "Invalid value: {value:?}: a valid label must be an empty string or consist of at \
                 most 63 alphanumeric characters, '-', '_' or '.', and must start and end with an \
                 alphanumeric character"
            );
            found(out, &path.field(key), INVALID, message);
        }
    }
}

fn service(spec: &Value, old: Option<&Value>, path: Path<'_>, out: &mut Issues) {
    let kind = spec["type"].as_str().unwrap_or("ClusterIP");
    let kinds = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    one_of(kind, &kinds, path.field("type"), out);
    let affinity = spec["sessionAffinity"].as_str().unwrap_or("None");
    one_of(affinity, &["ClientIP", "None"], path.field("sessionAffinity"), out);
    labels(&spec["selector"], path.field("selector"), out);
    if kind == "ExternalName" {
        if spec["externalName"].as_str().unwrap_or_default().is_empty() {
            found(out, &path.field("externalName"), REQUIRED, "Required value".into());
        }
        return;
    }
    let ports = spec["ports"].as_array().map_or(&[][..], Vec::as_slice);
    if ports.is_empty() && spec["clusterIP"] != "None" {
        found(out, &path.field("ports"), REQUIRED, "Required value".into());
    }
    let own = path.field("ports");
    let mut seen = HashSet::new();
    for (i, port) in ports.iter().enumerate() {
        service_port(port, ports.len() > 1, &mut seen, own.index(i), out);
    }
    if let Some(old) = old {
        let (was, is) = (old["clusterIP"].as_str(), spec["clusterIP"].as_str());
        if was.is_some() && is.is_some_and(|is| !is.is_empty()) && was != is {
            immutable(&path.field("clusterIP"), &spec["clusterIP"], out);
        }
    }
}

/// `seen` holds the names and numbers of the ports before.
fn service_port(
    port: &Value,
    several: bool,
    seen: &mut HashSet<String>,
    path: Path<'_>,
    out: &mut Issues,
) {
    let name = port["name"].as_str().unwrap_or_default();
    if name.is_empty() && several {
        found(out, &path.field("name"), REQUIRED, "Required value".into());
    }
    if !name.is_empty() {
        if Label::new(name).is_err() {
            let message = format!("Invalid value: {name:?}: a port's name is a DNS label");
            found(out, &path.field("name"), INVALID, message);
        }
        if !seen.insert(format!("name {name}")) {
            found(out, &path.field("name"), DUPLICATE, format!("Duplicate value: {name:?}"));
        }
    }
    if !seen.insert(format!("port {} {}", port["port"], port["protocol"])) {
        let message = format!("Duplicate value: {}", shown(port));
        found(out, &path, DUPLICATE, message);
    }
    number(&port["port"], path.field("port"), out);
    match &port["targetPort"] {
        Value::Number(_) => number(&port["targetPort"], path.field("targetPort"), out),
        Value::String(name) if !is_port_name(name) => {
            let message = format!(
                "Invalid value: {name:?}: a port's name has at most 15 characters, lower-case \
                 letters, digits and '-', and at least one letter"
            );
            found(out, &path.field("targetPort"), INVALID, message);
        }
        _ => {}
    }
    let protocol = port["protocol"].as_str().unwrap_or("TCP");
    one_of(protocol, &["SCTP", "TCP", "UDP"], path.field("protocol"), out);
}

pub(super) fn workload(spec: &Value, path: Path<'_>, out: &mut Issues) {
    if spec["replicas"].as_i64().is_some_and(|n| n < 0) {
        let message =
            format!("Invalid value: {}: must be greater than or equal to 0", spec["replicas"]);
        found(out, &path.field("replicas"), INVALID, message);
    }
    let (selector, at) = (&spec["selector"], path.field("selector"));
    let empty = |v: &Value| v.as_object().is_none_or(serde_json::Map::is_empty);
    if empty(&selector["matchLabels"]) && selector["matchExpressions"].is_null() {
        let message = "Invalid value: {}: empty selector is invalid for deployment";
        found(out, &at, INVALID, message.into());
    }
    labels(&selector["matchLabels"], at.field("matchLabels"), out);
    let template = path.field("template");
    let meta = template.field("metadata");
    let own = &spec["template"]["metadata"]["labels"];
    labels(own, meta.field("labels"), out);
    let wanted = selector["matchLabels"].as_object().into_iter().flatten();
    if wanted.clone().any(|(k, v)| own.get(k) != Some(v)) {
        let message =
            format!("Invalid value: {}: `selector` does not match template `labels`", shown(own));
        found(out, &meta.field("labels"), INVALID, message);
    }
    let pod = template.field("spec");
    pod_spec(&spec["template"]["spec"], pod, out);
    let restart = spec["template"]["spec"]["restartPolicy"].as_str().unwrap_or("Always");
    if restart != "Always" {
        let message = format!("Unsupported value: {restart:?}: supported values: \"Always\"");
        found(out, &pod.field("restartPolicy"), NOT_SUPPORTED, message);
    }
}

pub(super) fn pod_spec(spec: &Value, path: Path<'_>, out: &mut Issues) {
    let restart = spec["restartPolicy"].as_str().unwrap_or("Always");
    one_of(restart, &["Always", "Never", "OnFailure"], path.field("restartPolicy"), out);
    let containers = spec["containers"].as_array().map_or(&[][..], Vec::as_slice);
    if containers.is_empty() {
        found(out, &path.field("containers"), REQUIRED, "Required value".into());
    }
    let volumes = spec["volumes"].as_array().map_or(&[][..], Vec::as_slice);
    let mut names: HashSet<&str> = HashSet::new();
    for field in ["initContainers", "containers"] {
        let own = path.field(field);
        for (i, one) in spec[field].as_array().into_iter().flatten().enumerate() {
            container(one, volumes, own.index(i), out);
            let name = one["name"].as_str().unwrap_or_default();
            if !name.is_empty() && !names.insert(name) {
                let at = own.index(i);
                found(out, &at.field("name"), DUPLICATE, format!("Duplicate value: {name:?}"));
            }
        }
    }
}

fn container(one: &Value, volumes: &[Value], path: Path<'_>, out: &mut Issues) {
    let name = one["name"].as_str().unwrap_or_default();
    if name.is_empty() {
        found(out, &path.field("name"), REQUIRED, "Required value".into());
    } else if let Err(error) = Label::new(name) {
        found(out, &path.field("name"), INVALID, format!("Invalid value: {error}"));
    }
    if one["image"].as_str().unwrap_or_default().trim().is_empty() {
        found(out, &path.field("image"), REQUIRED, "Required value".into());
    }
    let policy = one["imagePullPolicy"].as_str().unwrap_or("Always");
    one_of(policy, &["Always", "IfNotPresent", "Never"], path.field("imagePullPolicy"), out);
    let own = path.field("ports");
    for (i, port) in one["ports"].as_array().into_iter().flatten().enumerate() {
        let at = own.index(i);
        number(&port["containerPort"], at.field("containerPort"), out);
        let protocol = port["protocol"].as_str().unwrap_or("TCP");
        one_of(protocol, &["SCTP", "TCP", "UDP"], at.field("protocol"), out);
        let name = port["name"].as_str().unwrap_or_default();
        if !name.is_empty() && !is_port_name(name) {
            let message = format!(
                "Invalid value: {name:?}: must be no more than 15 characters, lower-case \
                 letters, digits and '-'"
            );
            found(out, &at.field("name"), INVALID, message);
        }
    }
    let own = path.field("env");
    for (i, variable) in one["env"].as_array().into_iter().flatten().enumerate() {
        let at = own.index(i);
        if variable["name"].as_str().unwrap_or_default().is_empty() {
            found(out, &at.field("name"), REQUIRED, "Required value".into());
        }
        if variable.get("value").is_some_and(|v| v != "") && variable.get("valueFrom").is_some() {
            let message = "Invalid value: may not be specified when `value` is not empty";
            found(out, &at.field("valueFrom"), INVALID, message.into());
        }
    }
    let own = path.field("volumeMounts");
    for (i, mount) in one["volumeMounts"].as_array().into_iter().flatten().enumerate() {
        if !volumes.iter().any(|v| v["name"] == mount["name"]) {
            let at = own.index(i);
            found(out, &at.field("name"), INVALID, format!("Not found: {}", mount["name"]));
        }
    }
    for field in ["livenessProbe", "readinessProbe", "startupProbe"] {
        probe(&one[field], path.field(field), out);
    }
}

fn probe(probe: &Value, path: Path<'_>, out: &mut Issues) {
    if !probe.is_object() {
        return;
    }
    let handlers = ["exec", "httpGet", "tcpSocket", "grpc"];
    let given = handlers.iter().filter(|h| probe.get(**h).is_some()).count();
    if given == 0 {
        found(out, &path, REQUIRED, "Required value: must specify a handler type".into());
    }
    if given > 1 {
        let message = "Forbidden: may not specify more than 1 handler type";
        found(out, &path, FORBIDDEN, message.into());
    }
}

/// A pod's spec stays what it was, but for its images and few other fields.
fn pod_change(old: &Value, new: &Value, path: Path<'_>, out: &mut Issues) {
    let mut same = new.clone();
    for field in ["activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds"] {
        same[field] = old[field].clone();
    }
    for field in ["containers", "initContainers"] {
        let was = old[field].as_array().into_iter().flatten();
        for (one, was) in same[field].as_array_mut().into_iter().flatten().zip(was) {
            one["image"] = was["image"].clone();
            one["imagePullPolicy"] = was["imagePullPolicy"].clone();
        }
    }
    if !equal_but_nulls(&same, old) {
        let message = "Forbidden: pod updates may not change fields other than \
             `spec.containers[*].image`, `spec.initContainers[*].image`, \
             `spec.activeDeadlineSeconds`, `spec.tolerations` and \
             `spec.terminationGracePeriodSeconds`";
        found(out, &path, FORBIDDEN, message.into());
    }
}

pub(super) fn equal_but_nulls(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let covers = |x: &serde_json::Map<String, Value>,
                          y: &serde_json::Map<String, Value>| {
                x.iter().all(|(k, v)| {
                    v.is_null() || y.get(k).is_some_and(|other| equal_but_nulls(v, other))
                })
            };
            covers(a, b) && covers(b, a)
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal_but_nulls(a, b))
        }
        (a, b) => a == b,
    }
}

fn data(kind: KindId, object: &Value, old: Option<&Value>, out: &mut Issues) {
    let root = Path::root();
    for field in ["data", "binaryData"] {
        let path = root.field(field);
        for key in object[field].as_object().into_iter().flatten().map(|(k, _)| k) {
            let ok = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if key.is_empty() || key.len() > 253 || !key.chars().all(ok) || key == ".." {
                let message = format!(
                    "Invalid value: {key:?}: a valid config key must consist of alphanumeric \
                     characters, '-', '_' or '.'"
                );
                found(out, &path.field(key), INVALID, message);
            }
        }
    }
    let Some(old) = old else { return };
    if kind == KindId::Secret && old["type"] != object["type"] {
        immutable(&root.field("type"), &object["type"], out);
    }
    if old["immutable"] == true {
        let changed = ["data", "binaryData", "immutable"].iter().find(|f| old[**f] != object[**f]);
        if let Some(field) = changed {
            let message = "Forbidden: field is immutable when `immutable` is set";
            found(out, &root.field(field), FORBIDDEN, message.into());
        }
    }
}

pub(super) fn immutable(path: &Path<'_>, value: &Value, out: &mut Issues) {
    let message = format!("Invalid value: {}: field is immutable", shown(value));
    found(out, path, INVALID, message);
}

pub(super) fn one_of(value: &str, all: &[&str], path: Path<'_>, out: &mut Issues) {
    if !all.contains(&value) {
        let all: Vec<_> = all.iter().map(|v| format!("{v:?}")).collect();
        let message = format!("Unsupported value: {value:?}: supported values: {}", all.join(", "));
        found(out, &path, NOT_SUPPORTED, message);
    }
}

fn number(port: &Value, path: Path<'_>, out: &mut Issues) {
    if port.as_i64().is_some_and(|n| !(1..=65535).contains(&n)) {
        let message = format!("Invalid value: {port}: must be between 1 and 65535, inclusive");
        found(out, &path, INVALID, message);
    }
}

fn is_port_name(name: &str) -> bool {
    let ok = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=15).contains(&name.len())
        && name.chars().all(ok)
        && name.chars().any(|c| c.is_ascii_lowercase())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--")
}

fn is_label_value(value: &str) -> bool {
    let ok = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let edge = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    value.len() <= 63
        && value.chars().all(ok)
        && edge(value.chars().next())
        && edge(value.chars().next_back())
}

/// What is wrong with a label's or annotation's key.
fn qualified_name(key: &str) -> Option<&'static str> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let prefix_ok = prefix.is_none_or(|p| weft_base::name::ObjectName::new(p).is_ok());
    if !prefix_ok {
        return Some("the part before '/' must be a DNS name such as example.com");
    }
    (name.is_empty() || !is_label_value(name)).then_some(
        "name part must consist of at most 63 alphanumeric characters, '-', '_' or '.', and must \
         start and end with an alphanumeric character",
    )
}
