// SPDX-License-Identifier: Apache-2.0
//! ReplicaSets: as many pods as are wanted. Pods that ended are replaced; of too many, those go
//! first that do least: not placed, not ready, then the youngest.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use weft_kinds::views::apps::ReplicaSet;
use weft_kinds::views::core::Pod;
use weft_kinds::views::{LabelSelector, View};
use weft_kinds::world::{Index, KindId, Object, ObjectKey, World};

use super::plan::{Context, controller_ref};
use crate::objects::meta::{self, check_form};
use crate::{EventNote, Propagation};

const COMPONENT: &str = "replicaset-controller";
/// Pods made in one go; the rest follow at once.
const AT_ONCE: usize = 64;
/// Pods of one set.
const PODS_MAX: usize = 1000;
/// Pods that ended and are kept so that their logs can be read.
const ENDED_KEPT: usize = 1;

/// What counts about a pod of a set.
#[derive(Clone, Debug)]
pub struct Replica {
    pub object: Arc<Object>,
    pub placed: bool,
    pub ready: bool,
    /// Ready for as long as the set asks.
    pub available: bool,
    pub deleting: bool,
    pub ended: bool,
}

pub fn reconcile(ctx: &mut Context<'_>, key: &ObjectKey) {
    let Some(object) = ctx.object(key) else { return };
    let View::ReplicaSet(set) = &object.view else { return };
    if object.meta.is_deleting() {
        return;
    }
    let replicas = replicas(ctx, &object);
    let active: Vec<&Replica> = replicas.iter().filter(|r| r.is_active()).collect();
    let asked = usize::try_from(set.spec.wanted()).unwrap_or(usize::MAX);
    let wanted = asked.min(PODS_MAX);
    if active.len() < wanted {
        let missing = wanted - active.len();
        if adopt(ctx, &object, set) {
            return;
        }
        if asked > wanted {
            let text = format!("{asked} pods are over the limit of {PODS_MAX} for one set");
            let note = EventNote::about(&object, "FailedCreate", text);
            ctx.note(note.warning().by(COMPONENT));
        }
        for _ in 0..missing.min(AT_ONCE) {
            let pod = pod(&object);
            if let Some(name) = ctx.create(KindId::Pod, &key.namespace, pod) {
                let text = format!("Created pod: {name}");
                ctx.note(EventNote::about(&object, "SuccessfulCreate", text).by(COMPONENT));
            }
        }
        if missing > AT_ONCE {
            ctx.again(Duration::ZERO);
        }
    } else {
        for victim in victims(&active).into_iter().take(active.len() - wanted) {
            ctx.delete(&victim.object, Propagation::Background);
            let text = format!("Deleted pod: {}", victim.object.key.name);
            ctx.note(EventNote::about(&object, "SuccessfulDelete", text).by(COMPONENT));
        }
    }
    forget_ended(ctx, &replicas);
    let status = status(&object, &active);
    ctx.status(&object, status);
}

/// Takes over pods that fit and that nobody manages, as many as are missing at most. Whether
/// there were any: what they count for shows when they are ours.
fn adopt(ctx: &mut Context<'_>, object: &Object, set: &ReplicaSet) -> bool {
    let fits = |pod: &&Arc<Object>| {
        fits(&set.spec.selector, pod) && matches!(&pod.view, View::Pod(p) if !p.is_finished())
    };
    let pods = ctx.world.objects(KindId::Pod, Some(&object.key.namespace));
    let orphans: Vec<Arc<Object>> = pods.filter(fits).cloned().collect();
    orphans.iter().for_each(|pod| ctx.write(pod, adopted(pod, object)));
    !orphans.is_empty()
}

/// Whether an object that nobody manages meets a selector that says something.
pub(super) fn fits(selector: &LabelSelector, object: &Object) -> bool {
    let says = !selector.match_labels.is_empty() || !selector.match_expressions.is_empty();
    says && check_form(object.key.kind, &object.raw).is_ok()
        && object.meta.controller().is_none()
        && !object.meta.is_deleting()
        && selector.matches(&object.meta.labels)
}

/// An object under a new owner.
pub(super) fn adopted(object: &Object, owner: &Object) -> Value {
    let mut new = Value::clone(&object.raw);
    let mut owners = new["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
    owners.push(controller_ref(owner));
    new["metadata"]["ownerReferences"] = json!(owners);
    new
}

/// The pods that a set made, in order of name.
pub fn replicas(ctx: &mut Context<'_>, set: &Object) -> Vec<Replica> {
    let settle = set.raw["spec"]["minReadySeconds"].as_u64().unwrap_or(0);
    let (wall, mut wait) = (ctx.wall_ms, None::<u64>);
    let unreadable = Pod::default();
    let mut out = Vec::new();
    for object in owned(ctx.world, set, KindId::Pod) {
        // One that cannot be read counts as one that is not ready, or it would be made for ever.
        let pod = match &object.view {
            View::Pod(pod) => pod,
            _ => &unreadable,
        };
        let ready = pod.is_ready();
        let left = match ready {
            true => (ready_since(&object.raw) + settle * 1000).saturating_sub(wall),
            false => 0,
        };
        if settle > 0 && left > 0 {
            wait = Some(wait.map_or(left, |w| w.min(left)));
        }
        out.push(Replica {
            placed: !pod.spec.node_name.is_empty(),
            ready,
            available: ready && (settle == 0 || left == 0),
            deleting: object.meta.is_deleting(),
            ended: pod.is_finished(),
            object: object.clone(),
        });
    }
    if let Some(ms) = wait {
        ctx.again(Duration::from_millis(ms));
    }
    out
}

/// Objects of a kind that an object manages.
pub fn owned(world: &World, owner: &Object, kind: KindId) -> Vec<Arc<Object>> {
    let uid = &owner.meta.uid;
    let all = world.index(Index::ByOwner, uid).filter(|o| o.key.kind == kind);
    all.filter(|o| o.meta.controller().is_some_and(|c| c.uid == *uid)).cloned().collect()
}

/// When a pod became ready, milliseconds; 0 when it does not say.
fn ready_since(pod: &Value) -> u64 {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let mut ready = conditions.filter(|c| c["type"] == "Ready");
    let at = ready.find_map(|c| c["lastTransitionTime"].as_str()?.parse().ok());
    at.and_then(|t: jiff::Timestamp| u64::try_from(t.as_millisecond()).ok()).unwrap_or(0)
}

fn pod(set: &Object) -> Value {
    let template = &set.raw["spec"]["template"];
    let mut raw = json!({ "metadata": {}, "spec": template["spec"] });
    for field in ["labels", "annotations", "finalizers"] {
        if let Some(value) = template["metadata"].get(field) {
            raw["metadata"][field] = value.clone();
        }
    }
    raw["metadata"]["generateName"] = json!(format!("{}-", set.key.name));
    raw["metadata"]["ownerReferences"] = json!([controller_ref(set)]);
    raw["status"] = json!({ "phase": "Pending" });
    raw
}

/// Those that are missed least first.
fn victims<'r>(active: &[&'r Replica]) -> Vec<&'r Replica> {
    let mut out = active.to_vec();
    out.sort_by_key(|r| {
        let age = std::cmp::Reverse(r.object.meta.created_ms());
        (r.placed, r.ready, age, r.object.key.name.clone())
    });
    out
}

fn forget_ended(ctx: &mut Context<'_>, replicas: &[Replica]) {
    let mut ended: Vec<&Replica> = replicas.iter().filter(|r| r.ended && !r.deleting).collect();
    ended.sort_by_key(|r| (r.object.meta.created_ms(), r.object.revision));
    let over = ended.len().saturating_sub(ENDED_KEPT);
    for replica in ended.into_iter().take(over) {
        ctx.delete(&replica.object, Propagation::Background);
    }
}

fn status(set: &Object, active: &[&Replica]) -> Value {
    let labels = set.raw["spec"]["template"]["metadata"]["labels"].as_object();
    let labelled = |r: &&&Replica| {
        let own = &r.object.raw["metadata"]["labels"];
        labels.is_none_or(|l| l.iter().all(|(k, v)| own.get(k) == Some(v)))
    };
    let mut status = set.raw["status"].clone();
    if !status.is_object() {
        status = json!({});
    }
    status["replicas"] = json!(active.len());
    status["observedGeneration"] = json!(set.meta.generation);
    count(&mut status, "fullyLabeledReplicas", active.iter().filter(labelled).count());
    count(&mut status, "readyReplicas", active.iter().filter(|r| r.ready).count());
    count(&mut status, "availableReplicas", active.iter().filter(|r| r.available).count());
    status
}

/// Kubernetes leaves counts of zero out.
pub(super) fn count(status: &mut Value, field: &str, n: usize) {
    match n {
        0 => drop(status.as_object_mut().map(|s| s.remove(field))),
        n => status[field] = json!(n),
    }
}

// === impl Replica ===

impl Replica {
    /// It counts: neither ended nor on its way out.
    pub fn is_active(&self) -> bool {
        !self.deleting && !self.ended
    }
}

/// The hash by which pods, sets and templates are matched.
pub fn template_hash(template: &Value) -> String {
    let mut plain = template.clone();
    let labels = plain.pointer_mut("/metadata/labels");
    if let Some(labels) = labels.and_then(Value::as_object_mut) {
        labels.remove(super::deployment::HASH_LABEL);
    }
    meta::safe_hash(weft_base::name::fnv1a(super::plan::canonical(&plain).as_bytes()))
}
