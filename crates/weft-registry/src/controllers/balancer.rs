// SPDX-License-Identifier: Apache-2.0
//! What a Service of type LoadBalancer that a user made causes: a ServiceAccount (its identity)
//! and a pod that is nothing but a proxy, which listens on the Service's address of the host's
//! side and passes connections on through the mesh. Both are its own and go with it; a pod that
//! ends is replaced. `status.loadBalancer` says the address once a proxy has been ready there.
//! Called by the controllers' loop; never decides what is passed on where. A Gateway's Service is
//! the Gateway's (`gateway.rs`).

use std::sync::Arc;

use serde_json::{Value, json};
use weft_kinds::views::View;
use weft_kinds::world::{KindId, Object, ObjectKey, PROXY_ANNOTATION, balancer_node};

use super::gateway::{GATEWAY_ANNOTATION, NAME_LABEL, fields};
use super::plan::{Context, controller_ref};
use super::replica_set::owned;
use crate::Propagation;
use crate::objects::admit::{ADDRESS_ANNOTATION, annotation, is_balanced};

const GRACE_S: u64 = 30;

pub fn reconcile(ctx: &mut Context<'_>, key: &ObjectKey) {
    let Some(service) = ctx.object(key) else { return };
    if service.meta.is_deleting() {
        return;
    }
    let pods = owned(ctx.world, &service, KindId::Pod);
    // Every Service is asked, and those of the catalog are kept as text.
    let raw = service.raw.fresh();
    if !is_balanced(&raw) {
        let accounts = owned(ctx.world, &service, KindId::ServiceAccount);
        let caused: Vec<_> = pods.iter().chain(&accounts).collect();
        caused.iter().for_each(|object| ctx.delete(object, Propagation::Background));
        let told = &raw["status"]["loadBalancer"]["ingress"];
        let others = service.meta.controller().is_some() || raw["spec"]["type"] == "LoadBalancer";
        if !told.is_null() && !others {
            tell(ctx, &service, json!({}));
        }
        return;
    }
    account(ctx, &service);
    replace(ctx, &service, &pods);
    let serves = |pod: &Arc<Object>| matches!(&pod.view, View::Pod(p) if p.is_ready());
    let known = raw["status"]["loadBalancer"].clone();
    let wanted = balancer(&raw);
    // An address that was told stays told while its proxy is replaced.
    let told = known["ingress"][0]["ip"] == wanted["ingress"][0]["ip"];
    if told || pods.iter().any(serves) {
        tell(ctx, &service, wanted);
    }
}

/// The name of what a Service causes.
fn caused_name(service: &Object) -> String {
    format!("{}-balancer", service.key.name)
}

/// Its identity. One that a user made is used as it is.
fn account(ctx: &mut Context<'_>, service: &Object) {
    let (namespace, name) = (&service.key.namespace, caused_name(service));
    if ctx.world.get(KindId::ServiceAccount, namespace, &name).is_none() {
        let owner = controller_ref(service);
        let account = json!({ "metadata": { "name": name, "ownerReferences": [owner] } });
        ctx.create(KindId::ServiceAccount, namespace, account);
    }
}

/// While a pod is on its way out, its listeners are still bound: the next waits.
fn replace(ctx: &mut Context<'_>, service: &Object, pods: &[Arc<Object>]) {
    let ended = |pod: &Arc<Object>| matches!(&pod.view, View::Pod(p) if p.is_finished());
    for pod in pods.iter().filter(|p| ended(p) && !p.meta.is_deleting()) {
        ctx.delete(pod, Propagation::Background);
    }
    if pods.is_empty() {
        ctx.create(KindId::Pod, &service.key.namespace, pod(service));
    }
}

fn pod(service: &Object) -> Value {
    let (name, node) = (caused_name(service), balancer_node(&service.key.name));
    let ports: Vec<Value> = tcp_ports(&service.raw.fresh())
        .map(|port| json!({ "containerPort": port, "protocol": "TCP" }))
        .collect();
    json!({
        "metadata": {
            "generateName": format!("{name}-"),
            "labels": { NAME_LABEL: node },
            "annotations": { PROXY_ANNOTATION: "gateway", GATEWAY_ANNOTATION: node },
            "ownerReferences": [controller_ref(service)],
        },
        "spec": {
            "serviceAccountName": name,
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": GRACE_S,
            "containers": [{ "name": "weft-proxy", "image": "weft", "ports": ports }],
        },
        "status": { "phase": "Pending" },
    })
}

fn tcp_ports(service: &Value) -> impl Iterator<Item = u64> {
    let all = service["spec"]["ports"].as_array().into_iter().flatten();
    let tcp = |p: &&Value| p["protocol"].as_str().unwrap_or("TCP") == "TCP";
    all.filter(tcp).filter_map(|p| p["port"].as_u64())
}

/// Where the Service is reached from outside. Datagrams are not forwarded.
fn balancer(service: &Value) -> Value {
    let ip = annotation(service, ADDRESS_ANNOTATION);
    let ports: Vec<Value> =
        tcp_ports(service).map(|p| json!({ "port": p, "protocol": "TCP" })).collect();
    json!({ "ingress": [{ "ip": ip, "ipMode": "Proxy", "ports": ports }] })
}

fn tell(ctx: &mut Context<'_>, service: &Object, balancer: Value) {
    let mut new = service.raw.fresh().into_owned();
    fields(&mut new["status"]).insert("loadBalancer".into(), balancer);
    ctx.write(service, new);
}
