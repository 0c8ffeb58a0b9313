// SPDX-License-Identifier: Apache-2.0
//! EndpointSlices of a Service with a selector: its pods' addresses, with Kubernetes' conditions
//! (a pod that is being deleted is `terminating`: it finishes what it has, takes nothing new).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use weft_base::name::fnv1a;
use weft_kinds::views::View;
use weft_kinds::views::core::{IntOrString, Pod, Service, ServicePort};
use weft_kinds::views::discovery::SERVICE_NAME_LABEL;
use weft_kinds::world::{DRAIN_ANNOTATION, Index, KindId, Object, ObjectKey, pair};

use super::plan::{Context, controller_ref};
use super::selects;
use crate::Propagation;
use crate::objects::meta::safe_hash;

pub const MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
pub const MANAGER: &str = "endpointslice-controller.weft.dev";
/// Endpoints of one slice.
const ENDPOINTS_MAX: usize = 500;

/// Slices by what they have in common: the address family and the resolved ports.
type Groups = BTreeMap<(&'static str, String), (Value, Vec<Value>)>;

pub fn reconcile(ctx: &mut Context<'_>, key: &ObjectKey) {
    let known: Vec<Arc<Object>> = ctx
        .world
        .index(Index::SlicesByService, &pair(&key.namespace, &key.name))
        .filter(|s| s.meta.label(MANAGED_BY_LABEL) == Some(MANAGER))
        .cloned()
        .collect();
    let mut wanted = BTreeMap::new();
    if let Some(object) = ctx.object(key)
        && let View::Service(service) = &object.view
        && !service.spec.selector.is_empty()
        && &*service.spec.kind != "ExternalName"
        && !object.meta.is_deleting()
    {
        let groups = groups(ctx, &object, service);
        wanted = slices(&object, groups);
    }
    for slice in &known {
        match wanted.remove(&*slice.key.name) {
            Some(new) => replace(ctx, slice, &new),
            None => ctx.delete(slice, Propagation::Background),
        }
    }
    for (_, slice) in wanted {
        ctx.create(KindId::EndpointSlice, &key.namespace, slice);
    }
}

/// Writes what differs, and leaves the rest of the object alone.
pub(super) fn replace(ctx: &mut Context<'_>, slice: &Object, new: &Value) {
    if ctx.object(&slice.key).is_none() {
        return ctx.delete(slice, Propagation::Background);
    }
    let mut out = slice.raw.fresh().into_owned();
    for field in ["addressType", "endpoints", "ports"] {
        out[field] = new[field].clone();
    }
    for (field, value) in new["metadata"].as_object().into_iter().flatten() {
        out["metadata"][field] = value.clone();
    }
    ctx.write(slice, out);
}

fn groups(ctx: &Context<'_>, object: &Object, service: &Service) -> Groups {
    let mut out = Groups::new();
    for pod in ctx.world.objects(KindId::Pod, Some(&object.key.namespace)) {
        let View::Pod(view) = &pod.view else { continue };
        if !selects(service, pod) || view.is_finished() || view.status.pod_ip.is_empty() {
            continue;
        }
        let ports = ports(service, view);
        let family = if view.status.pod_ip.contains(':') { "IPv6" } else { "IPv4" };
        let entry = out.entry((family, ports.to_string())).or_insert_with(|| (ports, Vec::new()));
        entry.1.push(endpoint(service, pod, view));
    }
    if out.is_empty() {
        // Kubernetes keeps one empty slice, so that the Service is known to have nobody.
        let ports = ports(service, &Pod::default());
        out.insert(("IPv4", ports.to_string()), (ports, Vec::new()));
    }
    out
}

/// The Service's ports as this pod has them.
fn ports(service: &Service, pod: &Pod) -> Value {
    let port = |p: &ServicePort| {
        let number = target(p, pod)?;
        let mut out = json!({ "name": &*p.name, "port": number, "protocol": &*p.protocol });
        if let Some(app) = &p.app_protocol {
            out["appProtocol"] = json!(&**app);
        }
        Some(out)
    };
    service.spec.ports.iter().filter_map(port).collect()
}

fn target(port: &ServicePort, pod: &Pod) -> Option<u16> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(n)) => u16::try_from(*n).ok(),
        Some(IntOrString::String(name)) => {
            let named = |p: &&weft_kinds::views::core::ContainerPort| {
                p.name == *name && p.protocol == port.protocol
            };
            pod.ports().find(named).map(|p| p.container_port).or_else(|| name.parse().ok())
        }
    }
}

fn endpoint(service: &Service, pod: &Object, view: &Pod) -> Value {
    let drained = pod.meta.annotation(DRAIN_ANNOTATION).is_some();
    let (serving, terminating) = (view.is_ready(), drained || pod.meta.is_deleting());
    let unasked = service.spec.publish_not_ready_addresses && !drained;
    let ready = unasked || (serving && !terminating);
    let mut out = json!({
        "addresses": [&*view.status.pod_ip],
        "conditions": { "ready": ready, "serving": serving, "terminating": terminating },
        "targetRef": {
            "kind": "Pod",
            "namespace": &*pod.key.namespace,
            "name": &*pod.key.name,
            "uid": &*pod.meta.uid,
        },
    });
    if !view.spec.node_name.is_empty() {
        out["nodeName"] = json!(&*view.spec.node_name);
    }
    out
}

/// The slices by name. Names depend on what does not change while pods come and go.
fn slices(service: &Object, groups: Groups) -> BTreeMap<String, Value> {
    let mut out = BTreeMap::new();
    for ((family, key), (ports, endpoints)) in groups {
        let mut chunks: Vec<&[Value]> = endpoints.chunks(ENDPOINTS_MAX).collect();
        if chunks.is_empty() {
            chunks.push(&[]);
        }
        for (i, chunk) in chunks.into_iter().enumerate() {
            let hash = fnv1a(format!("{}/{family}/{key}/{i}", service.meta.uid).as_bytes());
            let name = slice_name(&service.key.name, hash);
            let slice = slice(service, &name, family, &ports, chunk);
            out.insert(name, slice);
        }
    }
    out
}

/// `<service>-<5 characters>`, as Kubernetes names slices.
pub(super) fn slice_name(service: &str, hash: u64) -> String {
    let suffix: String = safe_hash(hash).chars().take(5).collect();
    format!("{service}-{suffix:b<5}")
}

fn slice(service: &Object, name: &str, family: &str, ports: &Value, endpoints: &[Value]) -> Value {
    let mut labels = service.raw["metadata"]["labels"].clone();
    if !labels.is_object() {
        labels = json!({});
    }
    labels[SERVICE_NAME_LABEL] = json!(&*service.key.name);
    labels[MANAGED_BY_LABEL] = json!(MANAGER);
    if service.raw["spec"]["clusterIP"] == "None" {
        labels["service.kubernetes.io/headless"] = json!("");
    }
    json!({
        "metadata": {
            "name": name,
            "labels": labels,
            "ownerReferences": [controller_ref(service)],
        },
        "addressType": family,
        "endpoints": endpoints,
        "ports": ports,
    })
}
