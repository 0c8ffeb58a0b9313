// SPDX-License-Identifier: Apache-2.0
//! Defaults of the built-in kinds, as the real API server shows them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::workloads;
use crate::kind::KindId;

/// Fills in what the kind's server-side code would; objects stay as they are where they speak.
/// Callers have checked the types; a wrong one is not an error here, and not kept either.
pub fn complete(kind: KindId, object: &mut Value) {
    match kind {
        KindId::Service => service(object),
        KindId::Deployment => deployment(object),
        KindId::ReplicaSet => {
            let spec = part(object, "spec");
            set(spec, "replicas", json!(1));
            template(spec);
        }
        KindId::StatefulSet
        | KindId::DaemonSet
        | KindId::Job
        | KindId::CronJob
        | KindId::HorizontalPodAutoscaler => workloads::complete(kind, object),
        KindId::Pod => {
            pod_spec(part(object, "spec"));
        }
        KindId::Secret => secret(object),
        KindId::Namespace => namespace(object),
        KindId::EndpointSlice => {
            for port in list(object, "ports") {
                set(port, "name", json!(""));
                set(port, "protocol", json!("TCP"));
            }
        }
        KindId::Endpoints => {
            for subset in list(object, "subsets") {
                list(subset, "ports").for_each(|p| set(p, "protocol", json!("TCP")));
            }
        }
        _ => {}
    }
}

fn service(object: &mut Value) {
    let spec = part(object, "spec");
    set(spec, "type", json!("ClusterIP"));
    set(spec, "sessionAffinity", json!("None"));
    let external = spec["type"] == "ExternalName";
    if !external {
        set(spec, "internalTrafficPolicy", json!("Cluster"));
        set(spec, "ipFamilies", json!(["IPv4"]));
        set(spec, "ipFamilyPolicy", json!("SingleStack"));
    }
    if matches!(spec["type"].as_str(), Some("NodePort" | "LoadBalancer")) {
        set(spec, "externalTrafficPolicy", json!("Cluster"));
    }
    if spec["sessionAffinity"] == "ClientIP" {
        set(spec, "sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 10800}}));
    }
    for port in list(spec, "ports") {
        set(port, "protocol", json!("TCP"));
        let number = port["port"].clone();
        if matches!(port["targetPort"].as_str(), Some("")) || port["targetPort"] == 0 {
            port["targetPort"] = number;
        } else if !number.is_null() {
            set(port, "targetPort", number);
        }
    }
}

fn deployment(object: &mut Value) {
    let spec = part(object, "spec");
    set(spec, "replicas", json!(1));
    set(spec, "revisionHistoryLimit", json!(10));
    set(spec, "progressDeadlineSeconds", json!(600));
    let strategy = part(spec, "strategy");
    set(strategy, "type", json!("RollingUpdate"));
    if strategy["type"] == "RollingUpdate" {
        let rolling = part(strategy, "rollingUpdate");
        set(rolling, "maxUnavailable", json!("25%"));
        set(rolling, "maxSurge", json!("25%"));
    }
    template(spec);
}

pub(super) fn template(spec: &mut Value) {
    if let Some(template) = spec.get_mut("template").filter(|t| t.is_object()) {
        pod_spec(part(template, "spec"));
    }
}

fn pod_spec(spec: &mut Value) {
    set(spec, "restartPolicy", json!("Always"));
    set(spec, "terminationGracePeriodSeconds", json!(30));
    set(spec, "dnsPolicy", json!("ClusterFirst"));
    set(spec, "securityContext", json!({}));
    set(spec, "schedulerName", json!("default-scheduler"));
    let account = spec.get("serviceAccountName").or(spec.get("serviceAccount")).cloned();
    if let Some(account) = account {
        set(spec, "serviceAccountName", account.clone());
        set(spec, "serviceAccount", account);
    }
    for field in ["initContainers", "containers"] {
        list(spec, field).for_each(container);
    }
    for volume in list(spec, "volumes") {
        for source in ["configMap", "secret", "downwardAPI", "projected"] {
            if let Some(source) = volume.get_mut(source).filter(|s| s.is_object()) {
                set(source, "defaultMode", json!(420));
            }
        }
        // A volume that names no source is an empty folder.
        if volume.as_object().is_some_and(|v| v.len() == 1) {
            set(volume, "emptyDir", json!({}));
        }
    }
}

fn container(container: &mut Value) {
    let image = container["image"].as_str().unwrap_or_default();
    let name = image.rsplit('/').next().unwrap_or_default();
    let latest = !image.contains('@') && (!name.contains(':') || name.ends_with(":latest"));
    let policy = if latest { "Always" } else { "IfNotPresent" };
    set(container, "imagePullPolicy", json!(policy));
    set(container, "terminationMessagePath", json!("/dev/termination-log"));
    set(container, "terminationMessagePolicy", json!("File"));
    set(container, "resources", json!({}));
    list(container, "ports").for_each(|p| set(p, "protocol", json!("TCP")));
    for variable in list(container, "env") {
        if let Some(field) = variable.pointer_mut("/valueFrom/fieldRef") {
            set(field, "apiVersion", json!("v1"));
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.get_mut(probe).filter(|p| p.is_object()) else { continue };
        set(probe, "timeoutSeconds", json!(1));
        set(probe, "periodSeconds", json!(10));
        set(probe, "successThreshold", json!(1));
        set(probe, "failureThreshold", json!(3));
        if let Some(http) = probe.get_mut("httpGet").filter(|h| h.is_object()) {
            set(http, "path", json!("/"));
            set(http, "scheme", json!("HTTP"));
        }
        if let Some(grpc) = probe.get_mut("grpc").filter(|g| g.is_object()) {
            set(grpc, "service", json!(""));
        }
    }
}

fn secret(object: &mut Value) {
    set(object, "type", json!("Opaque"));
    let plain = object.as_object_mut().and_then(|o| o.shift_remove("stringData"));
    for (name, text) in plain.iter().filter_map(Value::as_object).flatten() {
        let text = STANDARD.encode(text.as_str().unwrap_or_default());
        if let Some(data) = part(object, "data").as_object_mut() {
            data.insert(name.clone(), json!(text));
        }
    }
}

fn namespace(object: &mut Value) {
    set(part(object, "spec"), "finalizers", json!(["kubernetes"]));
    let name = object["metadata"]["name"].clone();
    if name.is_string() {
        let labels = part(part(object, "metadata"), "labels");
        if let Some(labels) = labels.as_object_mut() {
            labels.insert("kubernetes.io/metadata.name".into(), name);
        }
    }
}

/// A child object, made when it is absent.
pub(super) fn part<'a>(value: &'a mut Value, name: &str) -> &'a mut Value {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    let child = &mut value[name];
    if child.is_null() {
        *child = Value::Object(Map::new());
    }
    child
}

pub(super) fn list<'a>(value: &'a mut Value, name: &str) -> impl Iterator<Item = &'a mut Value> {
    let items = value.get_mut(name).and_then(Value::as_array_mut);
    items.into_iter().flatten().filter(|v| v.is_object())
}

pub(super) fn set(value: &mut Value, name: &str, default: Value) {
    if let Some(map) = value.as_object_mut()
        && map.get(name).is_none_or(Value::is_null)
    {
        map.insert(name.to_owned(), default);
    }
}
