// SPDX-License-Identifier: Apache-2.0
//! StatefulSets: pods with names and numbers that stay. Made one after the other, each when the
//! one before is available, unless they may come in parallel; removed and replaced from the
//! highest number down.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};
use weft_kinds::views::View;
use weft_kinds::views::apps::StatefulSetSpec;
use weft_kinds::world::{KindId, Object, ObjectKey};

use super::plan::{Context, controller_ref};
use super::replica_set::{Replica, adopted, count, fits, replicas};
use super::revision::{HASH_LABEL, Revisions};
use crate::objects::meta::metadata_mut;
use crate::{EventNote, Propagation};

const COMPONENT: &str = "statefulset-controller";
const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";
/// Pods of one set.
const PODS_MAX: u32 = 1000;
/// When a pod that has a name of ours without being ours is looked at again.
const FOREIGN: Duration = Duration::from_secs(5);

/// A set at one moment.
struct Run<'a> {
    object: &'a Object,
    spec: &'a StatefulSetSpec,
    revisions: Revisions,
    /// Name of the revision that all pods had last.
    current: String,
    pods: BTreeMap<u32, Replica>,
}

pub fn reconcile(ctx: &mut Context<'_>, key: &ObjectKey) {
    let Some(object) = ctx.object(key) else { return };
    let View::StatefulSet(set) = &object.view else { return };
    if object.meta.is_deleting() {
        return;
    }
    let revisions = Revisions::of(ctx, &object);
    let known = object.raw["status"]["currentRevision"].as_str().filter(|r| !r.is_empty());
    let current = known.unwrap_or(&revisions.name).to_owned();
    let numbered = |r: Replica| Some((ordinal(&object, &r.object.key.name)?, r));
    let pods = replicas(ctx, &object).into_iter().filter_map(numbered).collect();
    let run = Run { object: &object, spec: &set.spec, revisions, current, pods };
    run.step(ctx);
    run.write_status(ctx);
    let mut live: BTreeSet<&str> = run.pods.values().map(revision_of).collect();
    live.insert(&run.current);
    run.revisions.forget(ctx, set.spec.revision_history_limit, &live);
}

/// The number of a pod by its name.
fn ordinal(set: &Object, pod: &str) -> Option<u32> {
    let number = pod.strip_prefix(&*set.key.name)?.strip_prefix('-')?;
    number.parse().ok().filter(|n: &u32| n.to_string() == number)
}

fn revision_of(pod: &Replica) -> &str {
    pod.object.meta.label(HASH_LABEL).unwrap_or("")
}

// === impl Run ===

impl Run<'_> {
    fn wanted(&self) -> std::ops::Range<u32> {
        let start = self.spec.ordinals.start;
        start..start.saturating_add(self.spec.wanted().min(PODS_MAX))
    }

    /// The next step: what is missing, then what is too much, then what is old.
    fn step(&self, ctx: &mut Context<'_>) {
        let ordered = self.spec.is_ordered();
        let mut waits = false;
        for number in self.wanted() {
            let settled = match self.pods.get(&number) {
                None => {
                    self.make(ctx, number);
                    false
                }
                Some(pod) if pod.ended && !pod.deleting => {
                    self.remove(ctx, pod);
                    false
                }
                Some(pod) if self.is_stuck(number, pod) => {
                    self.remove(ctx, pod);
                    false
                }
                Some(pod) => pod.available && !pod.deleting,
            };
            waits |= !settled;
            if waits && ordered {
                return;
            }
        }
        let surplus = self.pods.iter().rev().filter(|(n, _)| !self.wanted().contains(n));
        for (_, pod) in surplus {
            if !pod.deleting {
                self.remove(ctx, pod);
            }
            if ordered {
                return;
            }
        }
        if !self.spec.update_strategy.is_on_delete() {
            self.update(ctx);
        }
    }

    /// A pod of an older template that does not come up, so that a repaired template, or an undo,
    /// need not wait for it.
    fn is_stuck(&self, number: u32, pod: &Replica) -> bool {
        let partition = self.spec.update_strategy.rolling_update.partition;
        let kept = number < self.wanted().start.saturating_add(partition)
            || self.spec.update_strategy.is_on_delete();
        let containers = pod.object.raw["status"]["containerStatuses"].as_array();
        let mut containers = containers.into_iter().flatten();
        let waits = containers.any(|c| c["state"]["waiting"]["reason"] == "CrashLoopBackOff");
        let down = waits || pod.object.raw["status"]["phase"] == "Pending";
        !kept && !pod.deleting && !pod.ready && down && revision_of(pod) != self.revisions.name
    }

    /// Replaces one pod of an older template, the highest first, when those above are well.
    fn update(&self, ctx: &mut Context<'_>) {
        let partition = self.spec.update_strategy.rolling_update.partition;
        let least = self.wanted().start.saturating_add(partition);
        for number in self.wanted().rev().take_while(|n| *n >= least) {
            let Some(pod) = self.pods.get(&number) else { return };
            if revision_of(pod) != self.revisions.name && !pod.deleting {
                return self.remove(ctx, pod);
            }
            if !pod.available || pod.deleting {
                return;
            }
        }
    }

    fn make(&self, ctx: &mut Context<'_>, number: u32) {
        let name = format!("{}-{number}", self.object.key.name);
        let namespace = &self.object.key.namespace;
        if let Some(there) = ctx.world.get(KindId::Pod, namespace, &name).cloned() {
            match fits(&self.spec.selector, &there) {
                true => ctx.write(&there, adopted(&there, self.object)),
                // Somebody else's: its end wakes nobody here.
                false => ctx.again(FOREIGN),
            }
            return;
        }
        let partition = self.spec.update_strategy.rolling_update.partition;
        let old = number < self.wanted().start.saturating_add(partition)
            && !self.spec.update_strategy.is_on_delete();
        let kept = self.revisions.template(&self.current).filter(|_| old);
        let revision = if kept.is_some() { &self.current } else { &self.revisions.name };
        let template = kept.unwrap_or_else(|| self.object.raw["spec"]["template"].clone());
        let raw = self.pod(&template, (&name, number), revision);
        if ctx.create(KindId::Pod, namespace, raw).is_some() {
            let set = &self.object.key.name;
            let text = format!("create Pod {name} in StatefulSet {set} successful");
            self.note(ctx, "SuccessfulCreate", text);
        }
    }

    fn pod(&self, template: &Value, (name, number): (&str, u32), revision: &str) -> Value {
        let mut raw = json!({ "metadata": { "name": name }, "spec": template["spec"] });
        for field in ["labels", "annotations", "finalizers"] {
            if let Some(value) = template["metadata"].get(field) {
                raw["metadata"][field] = value.clone();
            }
        }
        raw["metadata"]["ownerReferences"] = json!([controller_ref(self.object)]);
        let labels = metadata_mut(&mut raw).entry("labels").or_insert_with(|| json!({}));
        if labels.is_object() {
            labels[POD_NAME] = json!(name);
            labels[POD_INDEX] = json!(number.to_string());
            labels[HASH_LABEL] = json!(revision);
        }
        if raw["spec"].is_object() {
            raw["spec"]["hostname"] = json!(name);
            if !self.spec.service_name.is_empty() {
                raw["spec"]["subdomain"] = json!(&*self.spec.service_name);
            }
        }
        raw["status"] = json!({ "phase": "Pending" });
        raw
    }

    fn remove(&self, ctx: &mut Context<'_>, pod: &Replica) {
        ctx.delete(&pod.object, Propagation::Background);
        let (name, set) = (&pod.object.key.name, &self.object.key.name);
        let text = format!("delete Pod {name} in StatefulSet {set} successful");
        self.note(ctx, "SuccessfulDelete", text);
    }

    fn note(&self, ctx: &mut Context<'_>, reason: &'static str, text: String) {
        ctx.note(EventNote::about(self.object, reason, text).by(COMPONENT));
    }

    fn write_status(&self, ctx: &mut Context<'_>) {
        let mut status = self.object.raw["status"].clone();
        if !status.is_object() {
            status = json!({});
        }
        let there = || self.pods.values().filter(|r| !r.ended);
        let active = || there().filter(|r| !r.deleting);
        let at = |name: &str| active().filter(|r| revision_of(r) == name).count();
        let (all, ready) = (there().count(), there().filter(|r| r.ready).count());
        let wanted = self.wanted().len();
        let (updated, mut current) = (at(&self.revisions.name), at(&self.current));
        let mut current_name = &self.current;
        let rolling = !self.spec.update_strategy.is_on_delete();
        if rolling && updated == wanted && ready == wanted && all == wanted {
            // All of them are of the present template: it is the current one from now on.
            (current_name, current) = (&self.revisions.name, updated);
        }
        status["observedGeneration"] = json!(self.object.meta.generation);
        status["replicas"] = json!(all);
        status["availableReplicas"] = json!(there().filter(|r| r.available).count());
        count(&mut status, "readyReplicas", ready);
        count(&mut status, "currentReplicas", current);
        count(&mut status, "updatedReplicas", updated);
        status["currentRevision"] = json!(current_name);
        status["updateRevision"] = json!(self.revisions.name);
        status["collisionCount"] = json!(0);
        ctx.status(self.object, status);
    }
}
