// SPDX-License-Identifier: Apache-2.0
//! A place for each pod: the node with the fewest pods among those that fit, and an address of
//! its own. What runs there is the agent's to say.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use weft_kinds::views::{Labels, View};
use weft_kinds::world::{
    HOST_ADDRESS_ANNOTATION, Index, KindId, Object, ObjectKey, PODS_ANNOTATION, PodsMode,
};

use super::plan::Context;
use crate::objects::addresses::{self, PodAddresses};
use crate::objects::admit;
use crate::{DeleteOptions, EventNote};

const COMPONENT: &str = "default-scheduler";

/// How long the pods of a node without an agent are waited for.
const NODE_GRACE: Duration = Duration::from_secs(60);

pub fn reconcile(ctx: &mut Context<'_>, key: &ObjectKey) {
    let Some(object) = ctx.object(key) else { return };
    let View::Pod(pod) = &object.view else { return };
    if pod.is_finished() || (is_placed(&object) && !stays(ctx, &object)) {
        return;
    }
    if object.meta.is_deleting() || (is_placed(&object) && !pod.status.pod_ip.is_empty()) {
        return;
    }
    let node = match is_placed(&object) {
        true => pod.spec.node_name.clone(),
        false => match choose(ctx, &object) {
            Ok(node) => node,
            Err(why) => return unplaced(ctx, &object, &why),
        },
    };
    let mode = ctx.world.pods_mode_of(&node);
    match addresses::pod(ctx.world, &object.raw, mode) {
        Ok((given, extra)) => {
            let new = placed(&object.raw, &node, mode, &given, &ctx.now());
            ctx.write_with(&object, new, extra);
            let pod = format!("{}/{}", key.namespace, key.name);
            let text = format!("Successfully assigned {pod} to {node}");
            ctx.note(EventNote::about(&object, "Scheduled", text).by(COMPONENT));
        }
        Err(e) => unplaced(ctx, &object, &e.to_string()),
    }
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

fn choose(ctx: &Context<'_>, pod: &Object) -> Result<Arc<str>, String> {
    let selector: Labels =
        serde_json::from_value(pod.raw["spec"]["nodeSelector"].clone()).unwrap_or_default();
    let (mut all, mut wrong, mut unready, mut full) = (0, 0, 0, 0);
    let mut best: Option<(usize, Arc<str>)> = None;
    for node in ctx.world.objects(KindId::Node, None) {
        all += 1;
        if !selector.iter().all(|(k, v)| node.meta.labels.get(k) == Some(v)) {
            wrong += 1;
            continue;
        }
        if !is_usable(&node.raw) {
            unready += 1;
            continue;
        }
        let pods = ctx.world.index(Index::PodsByNode, &node.key.name).count();
        if pods >= pods_max(&node.raw) {
            full += 1;
            continue;
        }
        if best.as_ref().is_none_or(|(fewest, _)| pods < *fewest) {
            best = Some((pods, node.key.name.clone()));
        }
    }
    best.map(|(_, name)| name).ok_or_else(|| {
        let mut why = format!("0/{all} nodes are available");
        if wrong > 0 {
            why.push_str(&format!(", {wrong} did not match the pod's node selector"));
        }
        if unready > 0 {
            why.push_str(&format!(", {unready} were not ready or unschedulable"));
        }
        if full > 0 {
            why.push_str(&format!(", {full} had too many pods"));
        }
        why
    })
}

/// How many pods a node takes; Kubernetes' default when it does not say.
fn pods_max(node: &Value) -> usize {
    let text = node["status"]["allocatable"]["pods"].as_str();
    text.and_then(|n| n.parse().ok()).unwrap_or(110)
}

fn is_usable(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    let ready = conditions.into_iter().filter(|c| c["type"] == "Ready");
    node["spec"]["unschedulable"] != true && ready.into_iter().all(|c| c["status"] == "True")
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
