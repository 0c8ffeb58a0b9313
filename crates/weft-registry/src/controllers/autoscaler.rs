// SPDX-License-Identifier: Apache-2.0
//! HorizontalPodAutoscalers: replicas by what pods use. Looks every few seconds; what it
//! recommended before comes back as [`Memory`], since a plan remembers nothing.
//!
//! `autoscaler/metric.rs` reads one metric, `autoscaler/behavior.rs` limits how fast it goes.

mod behavior;
mod metric;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use weft_kinds::kind::Subresource;
use weft_kinds::views::autoscaling::AutoscalerSpec;
use weft_kinds::views::{LabelSelector, View};
use weft_kinds::world::{KindId, Object, ObjectKey};

use self::behavior::Ask;
pub use self::behavior::Memory;
use self::metric::{Proposal, Target, Trouble};
use super::plan::Context;
use super::pod::set_condition;
use crate::EventNote;

const COMPONENT: &str = "horizontal-pod-autoscaler";
/// How often metrics are looked at.
const EVERY: Duration = Duration::from_secs(5);

/// One look at a target.
struct Look<'a> {
    object: &'a Object,
    spec: &'a AutoscalerSpec,
    status: Value,
}

/// What came of the metrics.
struct Sum {
    desired: u32,
    name: String,
    statuses: Vec<Value>,
}

pub fn reconcile(ctx: &mut Context<'_>, key: &ObjectKey) {
    let Some(object) = ctx.object(key) else { return };
    let View::Autoscaler(view) = &object.view else { return };
    if object.meta.is_deleting() {
        return;
    }
    let mut memory = ctx.memory().cloned().unwrap_or_default();
    let (next, every) = (memory.looked_ms + millis(EVERY), millis(EVERY));
    let same = memory.generation == object.meta.generation;
    if same && ctx.wall_ms < next && next - ctx.wall_ms <= every {
        // Its own status woke it.
        ctx.again(Duration::from_millis(next - ctx.wall_ms));
        return ctx.remember(memory);
    }
    (memory.looked_ms, memory.generation) = (ctx.wall_ms, object.meta.generation);
    ctx.again(EVERY);
    let mut look = Look { object: &object, spec: &view.spec, status: object.raw["status"].clone() };
    if !look.status.is_object() {
        look.status = json!({});
    }
    look.status["observedGeneration"] = json!(object.meta.generation);
    match look.target(ctx) {
        Ok(target) => look.scale(ctx, &target, &mut memory),
        Err(why) => {
            let message =
                format!("the HPA controller was unable to get the target's current scale: {why}");
            look.condition(ctx, "AbleToScale", ["False", "FailedGetScale", &message]);
            look.warn(ctx, "FailedGetScale", why);
        }
    }
    ctx.remember(memory);
    ctx.status(&object, look.status);
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

// === impl Look ===

impl Look<'_> {
    /// What is scaled.
    fn target(&self, ctx: &Context<'_>) -> Result<Arc<Object>, String> {
        let reference = &self.spec.scale_target_ref;
        let api = match &*reference.api_version {
            "" => "apps/v1",
            given => given,
        };
        let kind = KindId::by_api(api, &reference.kind);
        let kind = kind
            .filter(|k| k.row().has(Subresource::Scale))
            .ok_or_else(|| format!("{} of {api} is nothing that can be scaled", reference.kind))?;
        let key = ObjectKey::new(kind, self.object.key.namespace.clone(), reference.name.clone());
        let found = ctx.object(&key);
        found.ok_or_else(|| format!("{} {:?} not found", kind.row().resource(), reference.name))
    }

    fn scale(&mut self, ctx: &mut Context<'_>, target: &Object, memory: &mut Memory) {
        let current = target.raw["spec"]["replicas"].as_u64().unwrap_or(1);
        let current = u32::try_from(current).unwrap_or(u32::MAX);
        let message = "the HPA controller was able to get the target's current scale";
        self.condition(ctx, "AbleToScale", ["True", "SucceededGetScale", message]);
        memory.begin(ctx.wall_ms, current);
        self.status["currentReplicas"] = json!(current);
        let least = self.spec.min_replicas.unwrap_or(1).max(1);
        let (desired, reason) = if current == 0 {
            let message = "scaling is disabled since the replica count of the target is zero";
            self.condition(ctx, "ScalingActive", ["False", "ScalingDisabled", message]);
            (0, String::new())
        } else if current > self.spec.max_replicas {
            let reason = "Current number of replicas above Spec.MaxReplicas";
            (self.spec.max_replicas, reason.to_owned())
        } else if current < least {
            (least, "Current number of replicas below Spec.MinReplicas".to_owned())
        } else {
            match self.by_metrics(ctx, target, current, memory) {
                Some(found) => found,
                None => return,
            }
        };
        self.status["desiredReplicas"] = json!(desired);
        if desired == current {
            return;
        }
        let mut new = Value::clone(&target.raw);
        new["spec"]["replicas"] = json!(desired);
        ctx.write(target, new);
        memory.changed(ctx.wall_ms, current, desired, &self.spec.behavior);
        self.status["lastScaleTime"] = json!(ctx.now());
        let message =
            format!("the HPA controller was able to update the target scale to {desired}");
        self.condition(ctx, "AbleToScale", ["True", "SucceededRescale", &message]);
        let text = format!("New size: {desired}; reason: {reason}");
        ctx.note(EventNote::about(self.object, "SuccessfulRescale", text).by(COMPONENT));
    }

    /// The replicas that the metrics ask for within all limits, and why.
    fn by_metrics(
        &mut self,
        ctx: &mut Context<'_>,
        target: &Object,
        current: u32,
        memory: &mut Memory,
    ) -> Option<(u32, String)> {
        let sum = match self.sum(ctx, target, current) {
            Ok(sum) => sum,
            Err(trouble) => {
                let why = trouble.message;
                let message = format!("the HPA was unable to compute the replica count: {why}");
                self.condition(ctx, "ScalingActive", ["False", trouble.reason, &message]);
                self.warn(ctx, "FailedComputeMetricsReplicas", message);
                return None;
            }
        };
        self.status["currentMetrics"] = json!(sum.statuses);
        let message =
            format!("the HPA was able to successfully calculate a replica count from {}", sum.name);
        self.condition(ctx, "ScalingActive", ["True", "ValidMetricFound", &message]);
        let least = self.spec.min_replicas.unwrap_or(1).max(1);
        let most = self.spec.max_replicas;
        let mut ask = Ask { now_ms: ctx.wall_ms, current, desired: sum.desired, least, most };
        let behavior = &self.spec.behavior;
        let steady = memory.stabilize(&ask, behavior);
        let words = match () {
            () if steady == sum.desired => {
                ["True", "ReadyForNewScale", "recommended size matches current size"]
            }
            () if sum.desired >= current => [
                "True",
                "ScaleUpStabilized",
                "recent recommendations were lower than current one, applying the lowest recent \
                 recommendation",
            ],
            () => [
                "True",
                "ScaleDownStabilized",
                "recent recommendations were higher than current one, applying the highest \
                 recent recommendation",
            ],
        };
        self.condition(ctx, "AbleToScale", words);
        ask.desired = steady;
        let limited = memory.limit(&ask, behavior);
        let answer = if limited.limited { "True" } else { "False" };
        self.condition(ctx, "ScalingLimited", [answer, limited.reason, limited.message]);
        let reason = match limited.replicas > current {
            true => format!("{} above target", sum.name),
            false => "All metrics below target".to_owned(),
        };
        Some((limited.replicas, reason))
    }

    /// The most that any metric asks for. One that says nothing only keeps from going down.
    fn sum(&self, ctx: &Context<'_>, target: &Object, current: u32) -> Result<Sum, Trouble> {
        let selector = target.raw["spec"]["selector"].clone();
        let selector: LabelSelector = serde_json::from_value(selector).map_err(|_| Trouble {
            reason: "InvalidSelector",
            message: "the HPA target's scale is missing a selector".to_owned(),
        })?;
        let namespace = &*self.object.key.namespace;
        let counts = |pod: &&Arc<Object>| {
            selector.matches(&pod.meta.labels)
                && !pod.meta.is_deleting()
                && matches!(&pod.view, View::Pod(p) if !p.is_finished())
        };
        let pods = ctx.world.objects(KindId::Pod, Some(namespace)).filter(counts).cloned();
        let (pods, usage) = (pods.collect(), ctx.usage());
        let behavior = &self.spec.behavior;
        let now_ms = ctx.wall_ms;
        let target = Target { namespace, now_ms, current, pods, usage, behavior };
        let mut best: Option<Proposal> = None;
        let (mut statuses, mut trouble) = (Vec::new(), None);
        for metric in &self.spec.metrics {
            match target.judge(metric) {
                Ok(proposal) => {
                    statuses.push(proposal.status.clone());
                    if best.as_ref().is_none_or(|b| proposal.replicas > b.replicas) {
                        best = Some(proposal);
                    }
                }
                Err(why) => {
                    // The status keeps its place, so that targets and values stay side by side.
                    statuses.push(json!({ "type": "" }));
                    trouble = trouble.or(Some(why));
                }
            }
        }
        match (best, trouble) {
            (Some(best), trouble) if trouble.is_none() || best.replicas >= current => {
                Ok(Sum { desired: best.replicas, name: best.name, statuses })
            }
            (_, Some(trouble)) => Err(trouble),
            (_, None) => Err(Trouble {
                reason: "InvalidMetricSourceType",
                message: "no metrics are given".to_owned(),
            }),
        }
    }

    fn condition(&mut self, ctx: &Context<'_>, kind: &str, [answer, reason, message]: [&str; 3]) {
        let known = self.status["conditions"].as_array();
        let known = known.and_then(|l| l.iter().find(|c| c["type"] == kind));
        let same = known.filter(|c| c["status"] == answer);
        let since = same.and_then(|c| c["lastTransitionTime"].as_str()).map(str::to_owned);
        let since = since.unwrap_or_else(|| ctx.now());
        let new = json!({ "type": kind, "status": answer, "lastTransitionTime": since,
            "reason": reason, "message": message });
        set_condition(&mut self.status, new);
    }

    fn warn(&self, ctx: &mut Context<'_>, reason: &'static str, message: String) {
        ctx.note(EventNote::about(self.object, reason, message).warning().by(COMPONENT));
    }
}
