// SPDX-License-Identifier: Apache-2.0
//! Nodes: a machine with an agent, as the Kubernetes door shows it and pods are placed on it.
//! Called by whoever starts the agent.

use std::net::IpAddr;

use serde_json::{Value, json};
use weft_kinds::kind::KindId;
use weft_kinds::world::Index;

use crate::controllers::pod::set_condition;
use crate::objects::meta;
use crate::{Change, ObjectError, Objects, Part, Registry, WriteOptions};

/// What an agent says of its machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    pub name: String,
    pub address: IpAddr,
    /// weft's version, shown where Kubernetes shows the kubelet's.
    pub version: String,
    pub kernel: String,
    pub cpus: usize,
    pub memory_bytes: u64,
    pub pods_max: usize,
}

// === impl Registry ===

impl Registry {
    /// Makes a node known and ready. The agent that calls this has just started, so none of the
    /// node's pods runs yet, whatever was last said of them: they stop counting as ready until
    /// the agent says so again.
    ///
    /// # Errors
    /// When the objects cannot be written.
    pub async fn register_node(&self, info: &NodeInfo) -> Result<(), ObjectError> {
        let now = meta::timestamp(self.clock().wall_ms());
        let why = ("AgentRestarted", "the agent started anew and has not run this pod yet");
        let objects = self.objects();
        self.pods_stopped(&objects, &info.name, why).await?;
        let object = node(info, &now);
        let made = objects.create(KindId::Node, "", object.clone(), WriteOptions::SYSTEM);
        match made.await {
            Err(ObjectError::AlreadyExists { .. }) => {}
            other => return other.map(drop),
        }
        change_node(&objects, &info.name, |old| {
            let mut new = old.clone();
            set_labels(&mut new, &object["metadata"]["labels"]);
            new["status"] = object["status"].clone();
            new
        })
        .await
    }

    /// The agent is gone or going: no new pods are placed there, and those that are there are
    /// waited for from now on.
    ///
    /// # Errors
    /// When there is no such node.
    pub async fn node_gone(&self, name: &str, why: &str) -> Result<(), ObjectError> {
        self.node_gone_with(&self.objects(), name, why).await
    }

    /// The same with a door of the caller's own, which may hold its writes to more.
    pub(crate) async fn node_gone_with(
        &self,
        objects: &Objects,
        name: &str,
        why: &str,
    ) -> Result<(), ObjectError> {
        let now = meta::timestamp(self.clock().wall_ms());
        change_node(objects, name, |old| {
            let mut new = old.clone();
            set_condition(&mut new["status"], ready("False", "AgentGone", why, &now));
            new
        })
        .await
    }

    /// None of a node's pods counts as ready until its agent says so again; `why` is a word and a
    /// sentence.
    pub(crate) async fn pods_stopped(
        &self,
        objects: &Objects,
        node: &str,
        why: (&str, &str),
    ) -> Result<(), ObjectError> {
        let now = meta::timestamp(self.clock().wall_ms());
        let world = self.now();
        for pod in world.index(Index::PodsByNode, node) {
            if matches!(pod.raw["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
                continue;
            }
            let status = not_running(&pod.raw["status"], why, &now);
            let (ns, name) = (&pod.key.namespace, &pod.key.name);
            match objects.write_status(KindId::Pod, ns, name, &status).await {
                Ok(_) | Err(ObjectError::NotFound { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

async fn change_node(
    objects: &Objects,
    name: &str,
    mut f: impl FnMut(&Value) -> Value,
) -> Result<(), ObjectError> {
    let (kind, options) = (KindId::Node, WriteOptions::SYSTEM);
    let change = Change { kind, namespace: "", name, part: Part::All, options };
    objects.modify(change, |old| Ok(f(old))).await.map(drop)
}

/// Adds labels to a node's.
pub(crate) fn set_labels(node: &mut Value, more: &Value) {
    let labels = meta::metadata_mut(node).entry("labels").or_insert_with(|| json!({}));
    if !labels.is_object() {
        *labels = json!({});
    }
    for (label, value) in more.as_object().into_iter().flatten() {
        labels[label] = value.clone();
    }
}

/// Whether a node says that it is ready.
pub(crate) fn is_ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

pub(crate) fn node(info: &NodeInfo, now: &str) -> Value {
    let (arch, os) = (architecture(), std::env::consts::OS);
    let capacity = json!({
        "cpu": info.cpus.to_string(),
        "memory": format!("{}Ki", info.memory_bytes / 1024),
        "pods": info.pods_max.to_string(),
    });
    json!({
        "metadata": {
            "name": info.name,
            "labels": {
                "kubernetes.io/hostname": info.name,
                "kubernetes.io/os": os,
                "kubernetes.io/arch": arch,
            },
        },
        "spec": {},
        "status": {
            "capacity": capacity,
            "allocatable": capacity,
            "conditions": [ready("True", "KubeletReady", "the weft agent is ready", now)],
            "addresses": [
                { "type": "InternalIP", "address": info.address.to_string() },
                { "type": "Hostname", "address": info.name },
            ],
            "nodeInfo": {
                "kubeletVersion": info.version,
                "kubeProxyVersion": info.version,
                "containerRuntimeVersion": "weft://processes",
                "kernelVersion": info.kernel,
                "operatingSystem": os,
                "architecture": arch,
                "osImage": os,
                "machineID": "",
                "systemUUID": "",
                "bootID": "",
            },
        },
    })
}

/// Kubernetes' word for the processor.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub(crate) fn ready(status: &str, reason: &str, message: &str, now: &str) -> Value {
    json!({
        "type": "Ready",
        "status": status,
        "reason": reason,
        "message": message,
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    })
}

/// A pod's status with nothing running or ready.
fn not_running(status: &Value, why: (&str, &str), now: &str) -> Value {
    let mut out = status.clone();
    if !out.is_object() {
        out = json!({});
    }
    let list = |field: &str| out.get(field).and_then(Value::as_array).cloned();
    let (mut conditions, mut containers) = (list("conditions"), list("containerStatuses"));
    for condition in conditions.iter_mut().flatten().filter(|c| c.is_object()) {
        let word = condition["type"].as_str();
        let falls = matches!(word, Some("Ready" | "ContainersReady" | "weft.dev/MeshReady"));
        if falls && condition["status"] == "True" {
            condition["status"] = json!("False");
            condition["reason"] = json!(why.0);
            condition["message"] = json!(why.1);
            condition["lastTransitionTime"] = json!(now);
        }
    }
    for container in containers.iter_mut().flatten().filter(|c| c.is_object()) {
        container["ready"] = json!(false);
    }
    for (field, list) in [("conditions", conditions), ("containerStatuses", containers)] {
        if let Some(list) = list {
            out[field] = Value::Array(list);
        }
    }
    out
}
