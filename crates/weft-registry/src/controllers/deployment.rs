// SPDX-License-Identifier: Apache-2.0
//! Deployments: one ReplicaSet per template, and the way from the old ones to the new one. With
//! the defaults a new pod is ready before an old one goes.

mod scale;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use weft_kinds::views::core::IntOrString;
use weft_kinds::views::{LabelSelector, View};
use weft_kinds::world::{KindId, Object, ObjectKey};

use super::plan::{Context, controller_ref};
use super::pod::set_condition;
use super::replica_set::{Replica, adopted, count, fits, owned, replicas, template_hash};
use crate::objects::admit::{annotate, annotation};
use crate::objects::meta::check_form;
use crate::{EventNote, Propagation};

pub const HASH_LABEL: &str = "pod-template-hash";
pub const REVISION_ANNOTATION: &str = "deployment.kubernetes.io/revision";
const HISTORY_ANNOTATION: &str = "deployment.kubernetes.io/revision-history";
/// What a set and its Deployment do not share.
const NOT_SHARED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION_ANNOTATION,
    HISTORY_ANNOTATION,
    scale::DESIRED,
    scale::MOST,
    "deprecated.deployment.rollback.to",
];
const COMPONENT: &str = "deployment-controller";
const PROGRESS_DEADLINE_S: u64 = 600;
const HISTORY: u64 = 10;

/// One ReplicaSet of a Deployment, with its pods.
struct Set {
    object: Arc<Object>,
    /// What it is told to have; changed by the plan.
    wanted: u32,
    pods: Vec<Replica>,
}

/// How far a rollout may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bounds {
    recreate: bool,
    surge: u32,
    unavailable: u32,
}

pub fn reconcile(ctx: &mut Context<'_>, key: &ObjectKey) {
    let Some(object) = ctx.object(key) else { return };
    let View::Deployment(deployment) = &object.view else { return };
    if object.meta.is_deleting() {
        return;
    }
    if adopt(ctx, &object, &deployment.spec.selector) {
        return;
    }
    let wanted = deployment.spec.wanted();
    let hash = template_hash(&object.raw["spec"]["template"]);
    let (mut new, mut old) = sets(ctx, &object, &hash);
    let bounds = Bounds::of(&object.raw["spec"]["strategy"], wanted);
    let revision = old.iter().map(Set::revision).max().unwrap_or(0) + 1;
    let before: Vec<u32> = new.iter().chain(&old).map(|s| s.wanted).collect();
    let mut made = None;
    if deployment.spec.paused || scale::is_scaled(new.as_ref(), &old, wanted) {
        scale::scale(new.as_mut(), &mut old, wanted, bounds);
    } else {
        match &mut new {
            Some(new) => roll(new, &mut old, wanted, bounds),
            None if bounds.recreate && old.iter().any(|s| !s.is_empty()) => {
                old.iter_mut().for_each(|s| s.wanted = 0);
            }
            None => made = first_set(ctx, &object, &old, (&hash, revision), bounds),
        }
    }
    for (set, was) in new.iter().chain(&old).zip(before) {
        let is_new = new.as_ref().is_some_and(|n| Arc::ptr_eq(&n.object, &set.object));
        set.write(ctx, was, is_new.then_some((&*object, revision)), (wanted, bounds));
        scaled(ctx, &object, &set.object.key.name, was, set.wanted);
    }
    forget_history(ctx, &object, &old);
    status(ctx, &object, new.as_ref(), &old, (bounds, made));
}

/// The set of a new template, as large as there is room.
fn first_set(
    ctx: &mut Context<'_>,
    deployment: &Object,
    old: &[Set],
    (hash, revision): (&str, u64),
    bounds: Bounds,
) -> Option<String> {
    let View::Deployment(view) = &deployment.view else { return None };
    let wanted = view.spec.wanted();
    let total = old.iter().fold(0u32, |n, s| n.saturating_add(s.wanted));
    let first = wanted.min(wanted.saturating_add(bounds.surge).saturating_sub(total));
    let mut set = replica_set(deployment, hash, first, revision);
    for (name, value) in notes(deployment, wanted, bounds) {
        annotate(&mut set, name, value);
    }
    let name = ctx.create(KindId::ReplicaSet, &deployment.key.namespace, set)?;
    scaled(ctx, deployment, &name, 0, first);
    Some(name)
}

/// What a new set is told of its Deployment; `kubectl rollout undo` brings it back.
fn notes(deployment: &Object, wanted: u32, bounds: Bounds) -> BTreeMap<&str, String> {
    let own = deployment.raw["metadata"]["annotations"].as_object().into_iter().flatten();
    let shared = own.filter(|(name, _)| !NOT_SHARED.contains(&name.as_str()));
    let mut out: BTreeMap<&str, String> = shared
        .filter_map(|(name, value)| Some((name.as_str(), value.as_str()?.to_owned())))
        .collect();
    out.extend(sizes(wanted, bounds));
    out
}

/// The size that the sets were written for.
fn sizes(wanted: u32, bounds: Bounds) -> [(&'static str, String); 2] {
    let most = if bounds.recreate { wanted } else { wanted.saturating_add(bounds.surge) };
    [(scale::DESIRED, wanted.to_string()), (scale::MOST, most.to_string())]
}

/// Takes over sets that fit and that nobody manages: an earlier Deployment of this name may have
/// left them. Looked for only while there is no set of its own.
fn adopt(ctx: &mut Context<'_>, object: &Object, selector: &LabelSelector) -> bool {
    if !owned(ctx.world, object, KindId::ReplicaSet).is_empty() {
        return false;
    }
    let sets = ctx.world.objects(KindId::ReplicaSet, Some(&object.key.namespace));
    let orphans: Vec<Arc<Object>> = sets.filter(|s| fits(selector, s)).cloned().collect();
    orphans.iter().for_each(|set| ctx.write(set, adopted(set, object)));
    !orphans.is_empty()
}

/// The set of the present template, and the others, oldest first.
fn sets(ctx: &mut Context<'_>, deployment: &Object, hash: &str) -> (Option<Set>, Vec<Set>) {
    let found = owned(ctx.world, deployment, KindId::ReplicaSet);
    let (mut new, mut old) = (None, Vec::new());
    for object in found.into_iter().filter(|o| !o.meta.is_deleting() && is_well(o)) {
        let View::ReplicaSet(view) = &object.view else { continue };
        let (wanted, is_new) = (view.spec.wanted(), object.meta.label(HASH_LABEL) == Some(hash));
        let pods = replicas(ctx, &object);
        let set = Set { object, wanted, pods };
        match is_new {
            true => new = Some(set),
            false => old.push(set),
        }
    }
    old.sort_by_key(|s| (s.revision(), s.object.key.name.clone()));
    (new, old)
}

/// One step of the way from old to new, within the bounds.
fn roll(new: &mut Set, old: &mut [Set], wanted: u32, bounds: Bounds) {
    if bounds.recreate {
        old.iter_mut().for_each(|s| s.wanted = 0);
        if old.iter().all(Set::is_empty) {
            new.wanted = wanted;
        }
        return;
    }
    let total = sum(new, old, |s| s.wanted);
    if new.wanted > wanted {
        new.wanted = wanted;
    } else {
        let room = wanted.saturating_add(bounds.surge).saturating_sub(total);
        new.wanted += room.min(wanted - new.wanted);
    }
    let least = wanted.saturating_sub(bounds.unavailable);
    // Those that serve nobody go first and cost nothing.
    let coming = new.wanted.saturating_sub(new.available());
    let total = sum(new, old, |s| s.wanted);
    let mut room = total.saturating_sub(least.saturating_add(coming));
    for set in old.iter_mut() {
        let idle = set.wanted.saturating_sub(set.available()).min(room);
        set.wanted -= idle;
        room -= idle;
    }
    let available = sum(new, old, Set::available);
    let mut room = available.saturating_sub(least).min(room);
    for set in old.iter_mut() {
        let less = set.wanted.min(room);
        set.wanted -= less;
        room -= less;
    }
}

fn sum(new: &Set, old: &[Set], f: fn(&Set) -> u32) -> u32 {
    old.iter().fold(f(new), |n, set| n.saturating_add(f(set)))
}

fn replica_set(deployment: &Object, hash: &str, replicas: u32, revision: u64) -> Value {
    let spec = &deployment.raw["spec"];
    let mut template = spec["template"].clone();
    let label = |object: &mut Value, path: &str| {
        let labels = &mut object[path];
        if !labels.is_object() {
            *labels = json!({});
        }
        labels[HASH_LABEL] = json!(hash);
    };
    if !template.is_object() {
        template = json!({});
    }
    if !template["metadata"].is_object() {
        template["metadata"] = json!({});
    }
    label(&mut template["metadata"], "labels");
    let mut selector = spec["selector"].clone();
    if !selector.is_object() {
        selector = json!({});
    }
    label(&mut selector, "matchLabels");
    let mut set = json!({
        "metadata": {
            "name": format!("{}-{hash}", deployment.key.name),
            "labels": template["metadata"]["labels"],
            "ownerReferences": [controller_ref(deployment)],
        },
        "spec": { "replicas": replicas, "selector": selector, "template": template },
        "status": { "replicas": 0 },
    });
    if let Some(seconds) = spec.get("minReadySeconds") {
        set["spec"]["minReadySeconds"] = seconds.clone();
    }
    annotate(&mut set, REVISION_ANNOTATION, revision.to_string());
    set
}

/// It can be changed, and copied from.
fn is_well(set: &Object) -> bool {
    check_form(set.key.kind, &set.raw).is_ok()
}

fn scaled(ctx: &mut Context<'_>, deployment: &Object, set: &str, from: u32, to: u32) {
    if from != to {
        let way = if to > from { "up" } else { "down" };
        let text = format!("Scaled {way} replica set {set} from {from} to {to}");
        ctx.note(EventNote::about(deployment, "ScalingReplicaSet", text).by(COMPONENT));
    }
}

fn forget_history(ctx: &mut Context<'_>, deployment: &Object, old: &[Set]) {
    let keep = deployment.raw["spec"]["revisionHistoryLimit"].as_u64().unwrap_or(HISTORY);
    let idle: Vec<&Set> = old.iter().filter(|s| s.wanted == 0 && s.pods.is_empty()).collect();
    let over = idle.len().saturating_sub(usize::try_from(keep).unwrap_or(usize::MAX));
    for set in idle.into_iter().take(over) {
        ctx.delete(&set.object, Propagation::Background);
    }
}

fn status(
    ctx: &mut Context<'_>,
    deployment: &Object,
    new: Option<&Set>,
    old: &[Set],
    (bounds, made): (Bounds, Option<String>),
) {
    let View::Deployment(view) = &deployment.view else { return };
    let wanted = usize::try_from(view.spec.wanted()).unwrap_or(usize::MAX);
    let pods: Vec<&Replica> =
        new.into_iter().chain(old).flat_map(|s| &s.pods).filter(|r| r.is_active()).collect();
    let updated = new.map_or(0, |s| s.pods.iter().filter(|r| r.is_active()).count());
    let ready = pods.iter().filter(|r| r.ready).count();
    let available = pods.iter().filter(|r| r.available).count();
    let mut status = deployment.raw["status"].clone();
    if !status.is_object() {
        status = json!({});
    }
    status["observedGeneration"] = json!(deployment.meta.generation);
    count(&mut status, "replicas", pods.len());
    count(&mut status, "updatedReplicas", updated);
    count(&mut status, "readyReplicas", ready);
    count(&mut status, "availableReplicas", available);
    count(&mut status, "unavailableReplicas", wanted.max(pods.len()).saturating_sub(available));
    let unavailable = usize::try_from(bounds.unavailable).unwrap_or(0);
    let enough = available >= wanted.saturating_sub(unavailable);
    let (answer, reason, message) = match enough {
        true => ("True", "MinimumReplicasAvailable", "Deployment has minimum availability."),
        false => {
            let message = "Deployment does not have minimum availability.";
            ("False", "MinimumReplicasUnavailable", message)
        }
    };
    let moved = counts(&status) != counts(&deployment.raw["status"]);
    condition(ctx, &mut status, "Available", [answer, reason, message], false);
    let done = updated == wanted && pods.len() == wanted && available == wanted;
    let name =
        new.map_or_else(|| deployment.key.name.to_string(), |s| s.object.key.name.to_string());
    match made {
        Some(made) => begun(ctx, deployment, &mut status, &made),
        None => progress(ctx, deployment, &mut status, &name, done, moved),
    }
    let mut raw = Value::clone(&deployment.raw);
    raw["status"] = status;
    if let Some(set) = new {
        let newest = old.iter().map(|s| s.revision() + 1).max();
        let number = set.revision().max(newest.unwrap_or(1)).to_string();
        annotate(&mut raw, REVISION_ANNOTATION, number);
    }
    ctx.write(deployment, raw);
}

fn counts(status: &Value) -> [u64; 4] {
    ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"]
        .map(|field| status[field].as_u64().unwrap_or(0))
}

/// A rollout begins: its deadline runs from here.
fn begun(ctx: &mut Context<'_>, deployment: &Object, status: &mut Value, set: &str) {
    let message = format!("Created new replica set {set:?}");
    let words = ["True", "NewReplicaSetCreated", &message];
    condition(ctx, status, "Progressing", words, true);
    ctx.again(Duration::from_secs(deadline(deployment)));
}

fn deadline(deployment: &Object) -> u64 {
    let spec = &deployment.raw["spec"];
    spec["progressDeadlineSeconds"].as_u64().unwrap_or(PROGRESS_DEADLINE_S)
}

fn progress(
    ctx: &mut Context<'_>,
    deployment: &Object,
    status: &mut Value,
    set: &str,
    done: bool,
    moved: bool,
) {
    const KIND: &str = "Progressing";
    let paused = deployment.raw["spec"]["paused"] == true;
    let was_paused = list_has(status, KIND, "DeploymentPaused");
    if paused && !list_has(status, KIND, "ProgressDeadlineExceeded") {
        let words = ["Unknown", "DeploymentPaused", "Deployment is paused"];
        return condition(ctx, status, KIND, words, false);
    }
    if was_paused {
        // The deadline begins anew.
        let words = ["Unknown", "DeploymentResumed", "Deployment is resumed"];
        condition(ctx, status, KIND, words, true);
    }
    if done {
        let message = format!("ReplicaSet {set:?} has successfully progressed.");
        return condition(ctx, status, KIND, ["True", "NewReplicaSetAvailable", &message], moved);
    }
    // What was rolled out stays so, whatever becomes of its pods and however many there should be.
    let all_new = status["replicas"] == status["updatedReplicas"];
    if all_new && list_has(status, KIND, "NewReplicaSetAvailable") {
        return;
    }
    let deadline = deadline(deployment);
    let since = time_of(status, KIND, "lastUpdateTime").unwrap_or(ctx.wall_ms);
    let left = (since + deadline * 1000).saturating_sub(ctx.wall_ms);
    let changed = deployment.raw["status"]["observedGeneration"] != deployment.meta.generation;
    let given_up = list_has(status, KIND, "ProgressDeadlineExceeded");
    if (left == 0 || given_up) && !moved && !changed {
        let message = format!("ReplicaSet {set:?} has timed out progressing.");
        let words = ["False", "ProgressDeadlineExceeded", &message];
        return condition(ctx, status, KIND, words, false);
    }
    ctx.again(Duration::from_millis(left.max(1000)));
    let message = format!("ReplicaSet {set:?} is progressing.");
    condition(ctx, status, KIND, ["True", "ReplicaSetUpdated", &message], moved || changed);
}

/// Sets a condition; its times move only when it says something else, or when `touch` is set.
fn condition(
    ctx: &Context<'_>,
    status: &mut Value,
    kind: &str,
    [answer, reason, message]: [&str; 3],
    touch: bool,
) {
    let list = status["conditions"].as_array();
    let known = list.and_then(|l| l.iter().find(|c| c["type"] == kind)).cloned();
    let now = ctx.now();
    let time = |field: &str, same: bool| match &known {
        Some(known) if same => known[field].as_str().unwrap_or(&now).to_owned(),
        _ => now.clone(),
    };
    let turned = known.as_ref().is_some_and(|k| k["status"] == answer);
    let said =
        turned && known.as_ref().is_some_and(|k| k["reason"] == reason && k["message"] == message);
    let new = json!({
        "type": kind,
        "status": answer,
        "lastUpdateTime": time("lastUpdateTime", said && !touch),
        "lastTransitionTime": time("lastTransitionTime", turned),
        "reason": reason,
        "message": message,
    });
    set_condition(status, new);
}

fn list_has(status: &Value, kind: &str, reason: &str) -> bool {
    let list = status["conditions"].as_array().into_iter().flatten();
    list.into_iter().any(|c| c["type"] == kind && c["reason"] == reason)
}

fn time_of(status: &Value, kind: &str, field: &str) -> Option<u64> {
    let list = status["conditions"].as_array()?;
    let text = list.iter().find(|c| c["type"] == kind)?[field].as_str()?;
    let at: jiff::Timestamp = text.parse().ok()?;
    u64::try_from(at.as_millisecond()).ok()
}

// === impl Set ===

impl Set {
    fn revision(&self) -> u64 {
        annotation(&self.object.raw, REVISION_ANNOTATION).parse().unwrap_or(0)
    }

    /// Pods that can be counted on; never more than the set is told to have.
    fn available(&self) -> u32 {
        let n = self.pods.iter().filter(|r| r.is_active() && r.available).count();
        u32::try_from(n).unwrap_or(u32::MAX).min(self.wanted)
    }

    fn is_empty(&self) -> bool {
        self.wanted == 0 && self.pods.iter().all(|r| r.ended)
    }

    /// Writes what changes: its size, and on the set of the present template what its Deployment
    /// and the revision say.
    fn write(
        &self,
        ctx: &mut Context<'_>,
        was: u32,
        newest: Option<(&Object, u64)>,
        (wanted, bounds): (u32, Bounds),
    ) {
        let mut new = Value::clone(&self.object.raw);
        if was != self.wanted {
            new["spec"]["replicas"] = json!(self.wanted);
        }
        if self.wanted > 0 || newest.is_some() {
            for (name, value) in sizes(wanted, bounds) {
                annotate(&mut new, name, value);
            }
        }
        if let Some((deployment, revision)) = newest {
            for (name, value) in notes(deployment, wanted, bounds) {
                annotate(&mut new, name, value);
            }
            if self.revision() < revision {
                let past = annotation(&self.object.raw, HISTORY_ANNOTATION);
                let past = [past, annotation(&self.object.raw, REVISION_ANNOTATION)];
                let past: Vec<&str> = past.into_iter().filter(|p| !p.is_empty()).collect();
                annotate(&mut new, HISTORY_ANNOTATION, past.join(","));
                annotate(&mut new, REVISION_ANNOTATION, revision.to_string());
            }
            let settle = &deployment.raw["spec"]["minReadySeconds"];
            if new["spec"]["minReadySeconds"].as_u64().unwrap_or(0) != settle.as_u64().unwrap_or(0)
            {
                new["spec"]["minReadySeconds"] = json!(settle.as_u64().unwrap_or(0));
            }
        }
        ctx.write(&self.object, new);
    }
}

// === impl Bounds ===

impl Bounds {
    /// As the Deployment says; where it says nothing, 25 % more and none fewer.
    fn of(strategy: &Value, wanted: u32) -> Self {
        let recreate = strategy["type"] == "Recreate";
        let rolling = &strategy["rollingUpdate"];
        let part = |field: &str, up: bool| {
            serde_json::from_value::<IntOrString>(rolling[field].clone()).ok()?.of(wanted, up)
        };
        let surge = part("maxSurge", true).unwrap_or(wanted.div_ceil(4));
        let unavailable = part("maxUnavailable", false).unwrap_or(0).min(wanted);
        // Neither more nor fewer would never move.
        let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
        Self { recreate, surge, unavailable }
    }
}
