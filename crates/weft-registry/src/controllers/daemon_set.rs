// SPDX-License-Identifier: Apache-2.0
//! DaemonSets: one pod on each node that fits. A pod names its node from the start, so no place is
//! looked for; one on a node that is away stays until the node's pods are given up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use weft_kinds::views::apps::DaemonSetSpec;
use weft_kinds::views::core::IntOrString;
use weft_kinds::views::{Labels, View};
use weft_kinds::world::{KindId, Object, ObjectKey};

use super::plan::{Context, controller_ref};
use super::replica_set::{Replica, adopted, count, fits, replicas};
use super::revision::{HASH_LABEL, Revisions};
use super::schedule::{is_allowed, is_repelled};
use crate::objects::meta::metadata_mut;
use crate::{EventNote, Propagation};

const COMPONENT: &str = "daemonset-controller";
/// A pod is replaced no sooner than this after it was made, when it ended.
const ENDED_WAITS_MS: u64 = 10_000;

/// A set at one moment.
struct Run<'a> {
    object: &'a Object,
    spec: &'a DaemonSetSpec,
    hash: String,
    /// The nodes that fit, and whether each takes pods now.
    nodes: BTreeMap<Arc<str>, bool>,
    pods: Vec<Replica>,
}

pub fn reconcile(ctx: &mut Context<'_>, key: &ObjectKey) {
    let Some(object) = ctx.object(key) else { return };
    let View::DaemonSet(set) = &object.view else { return };
    if object.meta.is_deleting() || adopt(ctx, &object, &set.spec) {
        return;
    }
    let revisions = Revisions::of(ctx, &object);
    let pods = replicas(ctx, &object);
    let nodes = nodes(ctx, &object, &pods);
    let run = Run { object: &object, spec: &set.spec, hash: revisions.hash.clone(), nodes, pods };
    run.step(ctx);
    run.write_status(ctx);
    let prefix = &object.key.name;
    let live: Vec<String> = run.pods.iter().map(|r| format!("{prefix}-{}", hash_of(r))).collect();
    let live: BTreeSet<&str> = live.iter().map(String::as_str).collect();
    revisions.forget(ctx, set.spec.revision_history_limit, &live);
}

/// Takes over pods that fit and that nobody manages.
fn adopt(ctx: &mut Context<'_>, object: &Object, spec: &DaemonSetSpec) -> bool {
    let pods = ctx.world.objects(KindId::Pod, Some(&object.key.namespace));
    let orphans: Vec<Arc<Object>> = pods.filter(|p| fits(&spec.selector, p)).cloned().collect();
    orphans.iter().for_each(|pod| ctx.write(pod, adopted(pod, object)));
    !orphans.is_empty()
}

fn nodes(ctx: &Context<'_>, object: &Object, pods: &[Replica]) -> BTreeMap<Arc<str>, bool> {
    let spec = &object.raw["spec"]["template"]["spec"];
    let account = spec["serviceAccountName"].as_str().filter(|n| !n.is_empty());
    let account = account.unwrap_or("default");
    let selector: Labels = serde_json::from_value(spec["nodeSelector"].clone()).unwrap_or_default();
    let named = spec["nodeName"].as_str().filter(|n| !n.is_empty());
    let fits = |node: &&Arc<Object>| {
        selector.iter().all(|(k, v)| node.meta.labels.get(k) == Some(v))
            && named.is_none_or(|n| n == &*node.key.name)
            && !node.meta.is_deleting()
            // A pod comes with its secrets: a host has those only that its token allows.
            && is_allowed(node, &object.key.namespace, account)
            // A taint keeps new pods away; what runs goes on.
            && (!is_repelled(&node.raw, spec) || pods.iter().any(|p| node_of(p) == &*node.key.name))
    };
    let all = ctx.world.objects(KindId::Node, None).filter(fits);
    all.map(|node| (node.key.name.clone(), is_ready(&node.raw))).collect()
}

fn is_ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    conditions.filter(|c| c["type"] == "Ready").all(|c| c["status"] == "True")
}

fn hash_of(pod: &Replica) -> &str {
    pod.object.meta.label(HASH_LABEL).unwrap_or("")
}

fn node_of(pod: &Replica) -> &str {
    pod.object.raw["spec"]["nodeName"].as_str().unwrap_or("")
}

// === impl Run ===

impl Run<'_> {
    fn on<'s>(&'s self, node: &'s str) -> impl Iterator<Item = &'s Replica> {
        self.pods.iter().filter(move |r| node_of(r) == node)
    }

    fn step(&self, ctx: &mut Context<'_>) {
        for pod in self.pods.iter().filter(|r| !r.deleting) {
            let young = pod.object.meta.created_ms().saturating_add(ENDED_WAITS_MS);
            let left = young.saturating_sub(ctx.wall_ms);
            match pod.ended {
                // One that ended makes room for the next, not all the time.
                true if left > 0 => ctx.again(Duration::from_millis(left)),
                true => self.remove(ctx, pod),
                false if !self.nodes.contains_key(node_of(pod)) => self.remove(ctx, pod),
                false => {}
            }
        }
        for (node, ready) in &self.nodes {
            if self.on(node).next().is_none() {
                if *ready {
                    self.make(ctx, node);
                }
                continue;
            }
            let mut active: Vec<&Replica> = self.on(node).filter(|r| r.is_active()).collect();
            active.sort_by_key(|r| (!r.ready, r.object.meta.created_ms(), r.object.revision));
            active.into_iter().skip(1).for_each(|pod| self.remove(ctx, pod));
        }
        if !self.spec.update_strategy.is_on_delete() {
            self.update(ctx);
        }
    }

    /// Replaces pods of older templates: those that serve nobody at once, others as many as may
    /// be away.
    fn update(&self, ctx: &mut Context<'_>) {
        let wanted = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        let rolling = &self.spec.update_strategy.rolling_update.max_unavailable;
        let most = rolling.as_ref().unwrap_or(&IntOrString::Int(1)).of(wanted, true);
        let most = usize::try_from(most.unwrap_or(1).max(1)).unwrap_or(1);
        let well = |node: &&Arc<str>| self.on(node).any(|r| r.is_active() && r.available);
        let away = self.nodes.len() - self.nodes.keys().filter(well).count();
        let mut room = most.saturating_sub(away);
        for node in self.nodes.keys() {
            let mut active = self.on(node).filter(|r| r.is_active());
            let Some(pod) = active.next().filter(|r| hash_of(r) != self.hash) else { continue };
            if active.next().is_some() {
                continue;
            }
            if pod.available {
                if room == 0 {
                    continue;
                }
                room -= 1;
            }
            self.remove(ctx, pod);
        }
    }

    fn make(&self, ctx: &mut Context<'_>, node: &str) {
        let template = &self.object.raw["spec"]["template"];
        let mut raw = json!({ "metadata": {}, "spec": template["spec"] });
        for field in ["labels", "annotations", "finalizers"] {
            if let Some(value) = template["metadata"].get(field) {
                raw["metadata"][field] = value.clone();
            }
        }
        raw["metadata"]["generateName"] = json!(format!("{}-", self.object.key.name));
        raw["metadata"]["ownerReferences"] = json!([controller_ref(self.object)]);
        let labels = metadata_mut(&mut raw).entry("labels").or_insert_with(|| json!({}));
        if labels.is_object() {
            labels[HASH_LABEL] = json!(self.hash);
            labels["pod-template-generation"] = json!(self.object.meta.generation.to_string());
        }
        if raw["spec"].is_null() {
            raw["spec"] = json!({});
        }
        if raw["spec"].is_object() {
            raw["spec"]["nodeName"] = json!(node);
        }
        raw["status"] = json!({ "phase": "Pending" });
        if let Some(name) = ctx.create(KindId::Pod, &self.object.key.namespace, raw) {
            self.note(ctx, "SuccessfulCreate", format!("Created pod: {name}"));
        }
    }

    fn remove(&self, ctx: &mut Context<'_>, pod: &Replica) {
        ctx.delete(&pod.object, Propagation::Background);
        self.note(ctx, "SuccessfulDelete", format!("Deleted pod: {}", pod.object.key.name));
    }

    fn note(&self, ctx: &mut Context<'_>, reason: &'static str, text: String) {
        ctx.note(EventNote::about(self.object, reason, text).by(COMPONENT));
    }

    fn write_status(&self, ctx: &mut Context<'_>) {
        let mut status = self.object.raw["status"].clone();
        if !status.is_object() {
            status = json!({});
        }
        let with = |test: fn(&Replica) -> bool| {
            let any = |node: &&Arc<str>| self.on(node).any(|r| r.is_active() && test(r));
            self.nodes.keys().filter(any).count()
        };
        let wanted = self.nodes.len();
        let stray = |r: &&Replica| r.is_active() && !self.nodes.contains_key(node_of(r));
        let newest =
            |node: &&Arc<str>| self.on(node).any(|r| r.is_active() && hash_of(r) == self.hash);
        let available = with(|r| r.available);
        status["observedGeneration"] = json!(self.object.meta.generation);
        status["desiredNumberScheduled"] = json!(wanted);
        status["currentNumberScheduled"] = json!(with(|_| true));
        status["numberMisscheduled"] = json!(self.pods.iter().filter(stray).count());
        status["numberReady"] = json!(with(|r| r.ready));
        count(&mut status, "updatedNumberScheduled", self.nodes.keys().filter(newest).count());
        count(&mut status, "numberAvailable", available);
        count(&mut status, "numberUnavailable", wanted - available);
        ctx.status(self.object, status);
    }
}
