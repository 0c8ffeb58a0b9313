// SPDX-License-Identifier: Apache-2.0
//! A place for each pod: a node (`schedule.rs`), an address of its own, and where other machines
//! reach it. What runs there is the agent's to say.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::{Value, json};
use weft_kinds::views::View;
use weft_kinds::world::{
    HOST_ADDRESS_ANNOTATION, KindId, MESH_ADDRESS_ANNOTATION, Object, ObjectKey, PODS_ANNOTATION,
    PodsMode, has_sidecar,
};

use super::plan::Context;
use super::schedule;
use crate::objects::addresses::{self, PodAddresses};
use crate::objects::admit;
use crate::objects::mesh_ports;
use crate::{DeleteOptions, EventNote, Propagation};

const COMPONENT: &str = "default-scheduler";

/// Labels that say where a node is; its pods get them too, as newer Kubernetes does, so that
/// policies know what is near.
const PLACE_LABELS: [&str; 3] =
    ["topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone"];

/// How long the pods of a node without an agent are waited for.
const NODE_GRACE: Duration = Duration::from_secs(60);

pub fn reconcile(ctx: &mut Context<'_>, key: &ObjectKey) {
    let Some(object) = ctx.object(key) else { return };
    let View::Pod(pod) = &object.view else { return };
    if pod.is_finished() || (is_placed(&object) && goes(ctx, &object)) {
        return;
    }
    if object.meta.is_deleting() || (is_placed(&object) && !pod.status.pod_ip.is_empty()) {
        return;
    }
    let node = match is_placed(&object) {
        true => match schedule::forbidden(ctx.world, &object) {
            // Without an address its agent is not told of it, nor of the secrets that it names.
            Some(why) => return unplaced(ctx, &object, &why),
            None => pod.spec.node_name.clone(),
        },
        false => match schedule::choose(ctx.world, &object) {
            Ok(node) => node,
            Err(why) => return unplaced(ctx, &object, &why),
        },
    };
    let mode = match PodsMode::of(&object.meta) {
        PodsMode::Machine => PodsMode::Machine,
        _ => ctx.world.pods_mode_of(&node),
    };
    let machine = machine(ctx, &node);
    let given = addresses::pod(ctx.world, &object.raw, mode, machine);
    let given = given.and_then(|(given, mut extra)| {
        let mesh = match machine.filter(|_| has_sidecar(&object.meta)) {
            // In the pod network a sidecar has the usual port.
            Some(ip) if mode != PodsMode::Namespace => {
                Some(mesh_ports::give(ctx.world, &object.raw, &node, ip, &mut extra)?)
            }
            _ => None,
        };
        Ok((given, mesh, extra))
    });
    match given {
        Ok((given, mesh, extra)) => {
            let mut new = placed(&object.raw, &node, mode, &given, &ctx.now());
            locate(ctx, &node, &mut new);
            if let Some(mesh) = mesh {
                admit::annotate(&mut new, MESH_ADDRESS_ANNOTATION, mesh.to_string());
            }
            ctx.write_with(&object, new, extra);
            let pod = format!("{}/{}", key.namespace, key.name);
            let text = format!("Successfully assigned {pod} to {node}");
            ctx.note(EventNote::about(&object, "Scheduled", text).by(COMPONENT));
        }
        Err(e) => unplaced(ctx, &object, &e.to_string()),
    }
}

/// Whether a placed pod is removed from where it is.
fn goes(ctx: &mut Context<'_>, pod: &Object) -> bool {
    !stays(ctx, pod) || is_expelled(ctx, pod) || moves(ctx, pod)
}

/// Whether the pod's machine joined again with a token that does not allow it any more. It is
/// removed at once, whoever made it: its machine must not hear of its secrets again.
fn is_expelled(ctx: &mut Context<'_>, pod: &Object) -> bool {
    let View::Pod(view) = &pod.view else { return false };
    // One without an address was never told to its machine.
    let Some(why) = schedule::forbidden(ctx.world, pod).filter(|_| !view.status.pod_ip.is_empty())
    else {
        return false;
    };
    let options = DeleteOptions { grace_s: Some(0), ..DeleteOptions::default() };
    ctx.delete_with(pod, &options);
    ctx.note(EventNote::about(pod, "NodeForbidden", why).warning().by(COMPONENT));
    true
}

/// Whether a placed pod's node is still there, or may come back soon. A pod that nobody runs any
/// more is removed when something will replace it, or when it was to go anyway.
fn stays(ctx: &mut Context<'_>, pod: &Object) -> bool {
    let View::Pod(view) = &pod.view else { return true };
    if pod.meta.controller().is_none() && !pod.meta.is_deleting() {
        return true;
    }
    let node = ctx.world.get(KindId::Node, "", &view.spec.node_name);
    let since = node.map_or(Some(0), |n| unready_since(&n.raw));
    let Some(since) = since else { return true };
    let waited = Duration::from_millis(ctx.wall_ms.saturating_sub(since));
    if node.is_some() && waited < NODE_GRACE {
        ctx.again(NODE_GRACE.saturating_sub(waited));
        return true;
    }
    let text = format!("node {} has no agent; removing the pod", view.spec.node_name);
    let options = DeleteOptions { grace_s: Some(0), ..DeleteOptions::default() };
    ctx.delete_with(pod, &options);
    ctx.note(EventNote::about(pod, "NodeNotReady", text).warning().by(COMPONENT));
    false
}

/// A machine's address, when others reach it at one.
fn machine(ctx: &Context<'_>, node: &str) -> Option<IpAddr> {
    let node = ctx.world.get(KindId::Node, "", node)?;
    schedule::addresses(&node.raw).into_iter().next().filter(|ip| !ip.is_loopback())
}

/// Whether the pod's machine has another address than when the pod was placed: it is replaced,
/// since its sidecar listens where nobody will come.
fn moves(ctx: &mut Context<'_>, pod: &Object) -> bool {
    let View::Pod(view) = &pod.view else { return false };
    let given = pod.meta.annotation(MESH_ADDRESS_ANNOTATION);
    let Some(given) = given.and_then(|a| a.parse::<SocketAddr>().ok()) else { return false };
    let same = machine(ctx, &view.spec.node_name).is_none_or(|now| now == given.ip());
    // Programs of the machine are declared anew by their agent; who made another pod alone has
    // to make it again.
    let comes_again =
        pod.meta.controller().is_some() || PodsMode::of(&pod.meta) == PodsMode::Machine;
    if same || !comes_again || pod.meta.is_deleting() {
        return false;
    }
    let text = format!("node {} has another address now; replacing the pod", view.spec.node_name);
    ctx.delete(pod, Propagation::Background);
    ctx.note(EventNote::about(pod, "NodeAddressChanged", text).warning().by(COMPONENT));
    true
}

/// Since when a node is not ready, milliseconds; `None` when it is.
fn unready_since(node: &Value) -> Option<u64> {
    let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    let mut unready = conditions.filter(|c| c["type"] == "Ready" && c["status"] != "True");
    let at = unready.next()?["lastTransitionTime"].as_str().unwrap_or("").parse();
    Some(at.ok().and_then(|t: jiff::Timestamp| t.as_millisecond().try_into().ok()).unwrap_or(0))
}

/// Whether a pod has a node.
pub fn is_placed(pod: &Object) -> bool {
    matches!(&pod.view, View::Pod(p) if !p.spec.node_name.is_empty())
}

fn placed(raw: &Value, node: &str, mode: PodsMode, given: &PodAddresses, now: &str) -> Value {
    let mut new = raw.clone();
    new["spec"]["nodeName"] = json!(node);
    if mode == PodsMode::Namespace {
        admit::annotate(&mut new, PODS_ANNOTATION, mode.as_str().to_owned());
    }
    if let Some(host) = given.host {
        admit::annotate(&mut new, HOST_ADDRESS_ANNOTATION, host.to_string());
    }
    let status = &mut new["status"];
    if !status.is_object() {
        *status = json!({});
    }
    if status["phase"].as_str().unwrap_or("").is_empty() {
        status["phase"] = json!("Pending");
    }
    status["podIP"] = given.ips.first().map(|ip| json!(ip.to_string())).unwrap_or_default();
    status["podIPs"] = given.ips.iter().map(|ip| json!({ "ip": ip.to_string() })).collect();
    let scheduled = json!({ "type": "PodScheduled", "status": "True", "lastTransitionTime": now });
    set_condition(status, scheduled);
    new
}

/// Copies where a node is to its pod, unless the pod says anything about that itself.
fn locate(ctx: &Context<'_>, node: &str, pod: &mut Value) {
    let said = |name: &str| pod["metadata"]["labels"][name].is_string();
    let Some(node) = ctx.world.get(KindId::Node, "", node) else { return };
    if PLACE_LABELS.iter().any(|name| said(name)) || said("istio-locality") {
        return;
    }
    for name in PLACE_LABELS {
        if let Some(place) = node.meta.label(name) {
            pod["metadata"]["labels"][name] = json!(place);
        }
    }
}

fn unplaced(ctx: &mut Context<'_>, pod: &Object, why: &str) {
    let known = pod.raw["status"]["conditions"].as_array().into_iter().flatten();
    let mut known = known.filter(|c| c["type"] == "PodScheduled");
    if known.any(|c| c["status"] == "False" && c["message"] == why) {
        return;
    }
    let mut status = pod.raw["status"].clone();
    if !status.is_object() {
        status = json!({});
    }
    status["phase"] = json!("Pending");
    set_condition(
        &mut status,
        json!({
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": why,
            "lastTransitionTime": ctx.now(),
        }),
    );
    ctx.status(pod, status);
    ctx.note(EventNote::about(pod, "FailedScheduling", why).warning().by(COMPONENT));
}

/// Puts a condition in the place of the one of its type.
pub(crate) fn set_condition(status: &mut Value, condition: Value) {
    if !status.is_object() {
        *status = json!({});
    }
    let list = &mut status["conditions"];
    if !list.is_array() {
        *list = json!([]);
    }
    let Some(list) = list.as_array_mut() else { return };
    match list.iter_mut().find(|c| c["type"] == condition["type"]) {
        Some(place) => *place = condition,
        None => list.push(condition),
    }
}
