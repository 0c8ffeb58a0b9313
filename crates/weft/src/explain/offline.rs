// SPDX-License-Identifier: Apache-2.0
//! A Mesh from files alone: what the server would compile when everything in them runs.
//!
//! Workloads are stood in for by as many pods as they ask for, all of them ready, so that shares
//! and candidates can be told; addresses are made up. Nothing is started and nobody is asked.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use serde_json::{Value, json};
use weft_control::compile::{ADDRESS_ANNOTATION, Env};
use weft_control::compiler::Compiler;
use weft_control::mesh::Mesh;
use weft_kinds::world::{KindId, ObjectKey, World};

use crate::manifest::{self, Manifest};

/// Replicas of one workload that are stood in for.
const REPLICAS_MAX: u64 = 20;

/// When objects are made that were not yet.
const LAST: &str = "9999-12-30T00:00:00Z";

/// A pod that would run.
struct Stand {
    namespace: String,
    labels: BTreeMap<String, String>,
    name: String,
    ip: String,
}

pub fn mesh(paths: &[PathBuf]) -> Result<Mesh> {
    let manifests = manifest::load(paths)?;
    let mut world = World::new();
    let mut stands = Vec::new();
    // Every server has this one.
    let class = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
        "metadata": {"name": "weft"}, "spec": {"controllerName": "weft.dev/gateway"},
    });
    put(&mut world, KindId::GatewayClass, "", "weft", &class);
    let mut gateways = 0;
    for manifest in &manifests {
        let mut object = manifest.object.clone();
        set(&mut object, &["metadata", "namespace"], json!(manifest.namespace));
        // What is applied now is younger than all that has a time already.
        if object.pointer("/metadata/creationTimestamp").is_none_or(Value::is_null) {
            set(&mut object, &["metadata", "creationTimestamp"], json!(LAST));
        }
        if manifest.kind == KindId::Gateway && object.pointer("/spec/addresses").is_none() {
            let at = ["metadata", "annotations", ADDRESS_ANNOTATION];
            // Each has one of its own, as from a server.
            let address = format!("127.128.{}.{}", gateways / 250 % 250, gateways % 250 + 1);
            set(&mut object, &at, json!(address));
            gateways += 1;
        }
        put(&mut world, manifest.kind, &manifest.namespace, &manifest.name, &object);
        if matches!(manifest.kind, KindId::Deployment | KindId::StatefulSet) {
            stand_in(manifest, &mut stands, &mut world);
        }
    }
    for service in manifests.iter().filter(|m| m.kind == KindId::Service) {
        slice(service, &stands, &mut world);
    }
    Ok(Compiler::new(Env::default(), &world).0.mesh().clone())
}

fn put(world: &mut World, kind: KindId, namespace: &str, name: &str, object: &Value) {
    let key = ObjectKey::new(kind, namespace, name);
    let revision = world.revision() + 1;
    world.apply(&key.store_key(), Some(object.to_string().as_bytes()), revision);
}

/// The pods that a workload asks for.
fn stand_in(workload: &Manifest, stands: &mut Vec<Stand>, world: &mut World) {
    let spec = &workload.object["spec"];
    let replicas = spec["replicas"].as_u64().unwrap_or(1).min(REPLICAS_MAX);
    let template = &spec["template"];
    for i in 0..replicas {
        let n = stands.len() + 1;
        let stand = Stand {
            namespace: workload.namespace.clone(),
            labels: texts(&template["metadata"]["labels"]),
            name: format!("{}-{i}", workload.name),
            ip: format!("127.64.{}.{}", n / 250, n % 250 + 1),
        };
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": stand.name, "namespace": stand.namespace, "labels": stand.labels,
                "annotations": template["metadata"]["annotations"],
            },
            "spec": template["spec"],
            "status": {"podIP": stand.ip, "phase": "Running"},
        });
        put(world, KindId::Pod, &stand.namespace, &stand.name, &object);
        stands.push(stand);
    }
}

/// The ready instances of a Service.
fn slice(service: &Manifest, stands: &[Stand], world: &mut World) {
    let spec = &service.object["spec"];
    let selector = texts(&spec["selector"]);
    if selector.is_empty() {
        return;
    }
    let selected = stands.iter().filter(|s| {
        s.namespace == service.namespace && selector.iter().all(|(k, v)| s.labels.get(k) == Some(v))
    });
    let endpoints: Vec<Value> = selected
        .map(|s| {
            json!({
                "addresses": [s.ip], "conditions": {"ready": true},
                "targetRef": {"kind": "Pod", "name": s.name},
            })
        })
        .collect();
    let ports: Vec<Value> = spec["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|p| {
            let to = p["targetPort"].as_u64().or_else(|| p["port"].as_u64()).unwrap_or(80);
            json!({"name": p["name"].as_str().unwrap_or(""), "port": to})
        })
        .collect();
    let name = format!("{}-0", service.name);
    let object = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": name, "namespace": service.namespace,
            "labels": {"kubernetes.io/service-name": service.name},
        },
        "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
    });
    put(world, KindId::EndpointSlice, &service.namespace, &name, &object);
}

fn texts(map: &Value) -> BTreeMap<String, String> {
    let each = map.as_object().into_iter().flatten();
    each.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect()
}

/// Sets a field; objects on the way are made.
fn set(object: &mut Value, path: &[&str], value: Value) {
    let mut at = object;
    for part in path {
        if !at.is_object() {
            *at = json!({});
        }
        at = &mut at[*part];
    }
    *at = value;
}
