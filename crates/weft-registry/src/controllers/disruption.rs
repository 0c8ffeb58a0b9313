// SPDX-License-Identifier: Apache-2.0
//! PodDisruptionBudgets: how many pods of a selection may go now. The eviction door takes from
//! the number; this controller counts anew whenever pods change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use weft_kinds::views::View;
use weft_kinds::views::policy::BudgetSpec;
use weft_kinds::world::{KindId, Object, ObjectKey, World};

use super::job::millis;
use super::plan::Context;
use super::pod::set_condition;

/// An eviction that was allowed counts as gone for this long; then it did not happen.
const PROMISED_MS: u64 = 120_000;

pub fn reconcile(ctx: &mut Context<'_>, key: &ObjectKey) {
    let Some(object) = ctx.object(key) else { return };
    let View::DisruptionBudget(budget) = &object.view else { return };
    if object.meta.is_deleting() {
        return;
    }
    let pods = selected(ctx.world, &object.key.namespace, &budget.spec);
    let promised = promised(ctx, &object, &pods);
    let healthy = |pod: &&Arc<Object>| {
        matches!(&pod.view, View::Pod(p) if p.is_ready())
            && !pod.meta.is_deleting()
            && !promised.contains_key(&*pod.key.name)
    };
    let current = count(pods.iter().filter(healthy).count());
    let (expected, desired) = wanted(ctx.world, &pods, &budget.spec);
    let allowed = if expected == 0 { 0 } else { current.saturating_sub(desired) };
    let mut status = object.raw["status"].clone();
    if !status.is_object() {
        status = json!({});
    }
    status["observedGeneration"] = json!(object.meta.generation);
    status["currentHealthy"] = json!(current);
    status["desiredHealthy"] = json!(desired);
    status["expectedPods"] = json!(expected);
    status["disruptionsAllowed"] = json!(allowed);
    match promised.is_empty() {
        true => drop(status.as_object_mut().map(|s| s.remove("disruptedPods"))),
        false => status["disruptedPods"] = json!(promised),
    }
    let (answer, reason) = match allowed {
        0 => ("False", "InsufficientPods"),
        _ => ("True", "SufficientPods"),
    };
    let known = status["conditions"].as_array().and_then(|l| l.first());
    let same = known.filter(|c| c["status"] == answer);
    let since = same.and_then(|c| c["lastTransitionTime"].as_str()).map(str::to_owned);
    let condition = json!({ "type": "DisruptionAllowed", "status": answer, "reason": reason,
        "message": "", "observedGeneration": object.meta.generation,
        "lastTransitionTime": since.unwrap_or_else(|| ctx.now()) });
    set_condition(&mut status, condition);
    ctx.status(&object, status);
}

/// The budgets of a pod.
pub fn budgets_of<'w>(world: &'w World, pod: &Object) -> Vec<&'w Arc<Object>> {
    let all = world.objects(KindId::PodDisruptionBudget, Some(&pod.key.namespace));
    let selects = |budget: &&Arc<Object>| match &budget.view {
        View::DisruptionBudget(b) => {
            b.spec.selector.as_ref().is_some_and(|s| s.matches(&pod.meta.labels))
        }
        _ => false,
    };
    all.filter(selects).collect()
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn selected(world: &World, namespace: &str, spec: &BudgetSpec) -> Vec<Arc<Object>> {
    let Some(selector) = &spec.selector else { return Vec::new() };
    let counts = |pod: &&Arc<Object>| {
        selector.matches(&pod.meta.labels) && matches!(&pod.view, View::Pod(p) if !p.is_finished())
    };
    world.objects(KindId::Pod, Some(namespace)).filter(counts).cloned().collect()
}

/// Evictions that were allowed and did not happen yet.
fn promised(
    ctx: &mut Context<'_>,
    budget: &Object,
    pods: &[Arc<Object>],
) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    for (name, time) in budget.raw["status"]["disruptedPods"].as_object().into_iter().flatten() {
        let there = pods.iter().any(|p| *p.key.name == **name && !p.meta.is_deleting());
        let Some(time) = time.as_str().filter(|_| there) else { continue };
        let until = millis(time).unwrap_or(0).saturating_add(PROMISED_MS);
        let left = until.saturating_sub(ctx.wall_ms);
        if left > 0 {
            ctx.again(Duration::from_millis(left));
            out.insert(name.clone(), time.to_owned());
        }
    }
    out
}

/// How many pods there should be, and how many of them must be well.
fn wanted(world: &World, pods: &[Arc<Object>], spec: &BudgetSpec) -> (u32, u32) {
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(away), _) => {
            let expected = expected(world, pods);
            (expected, expected.saturating_sub(away.of(expected, true).unwrap_or(0)))
        }
        (None, Some(least)) => {
            let whole = matches!(least, weft_kinds::views::core::IntOrString::Int(_));
            let expected = if whole { count(pods.len()) } else { expected(world, pods) };
            (expected, least.of(expected, true).unwrap_or(u32::MAX))
        }
        (None, None) => (count(pods.len()), 0),
    }
}

/// The replicas of all that manages these pods; one that nobody manages counts as one.
fn expected(world: &World, pods: &[Arc<Object>]) -> u32 {
    let mut seen = BTreeSet::new();
    let mut sum = 0u32;
    for pod in pods {
        let manager = manager(world, pod).and_then(|set| manager(world, set).or(Some(set)));
        let replicas = manager.and_then(|m| m.raw["spec"]["replicas"].as_u64());
        match (manager, replicas) {
            (Some(manager), Some(replicas)) => {
                if seen.insert(manager.meta.uid.clone()) {
                    sum = sum.saturating_add(u32::try_from(replicas).unwrap_or(u32::MAX));
                }
            }
            _ => sum = sum.saturating_add(1),
        }
    }
    sum
}

fn manager<'w>(world: &'w World, object: &Object) -> Option<&'w Arc<Object>> {
    super::garbage::owner(world, &object.key, object.meta.controller()?)
}

/// A budget that allows one eviction less, for the pod that goes; `None` when it allows none.
pub fn promise(budget: &Value, pod: &str, now: &str) -> Option<Value> {
    let allowed = budget["status"]["disruptionsAllowed"].as_u64().filter(|n| *n > 0)?;
    let mut new = budget.clone();
    new["status"]["disruptionsAllowed"] = json!(allowed - 1);
    if !new["status"]["disruptedPods"].is_object() {
        new["status"]["disruptedPods"] = json!({});
    }
    new["status"]["disruptedPods"][pod] = json!(now);
    Some(new)
}
