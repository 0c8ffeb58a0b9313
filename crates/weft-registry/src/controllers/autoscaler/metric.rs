// SPDX-License-Identifier: Apache-2.0
//! One metric of an autoscaler: what it is now, and how many replicas it asks for. weft measures
//! processor and memory of pods, and the mesh's own `requests_per_second` of pods and services.
//! Pure; the ratios are Kubernetes', with its care for pods that are not ready or not measured.

use std::sync::Arc;

use serde_json::{Value, json};
use weft_kinds::views::View;
use weft_kinds::views::autoscaling::{Behavior, Metric, MetricSource, Quantity, ResourceSource};
use weft_kinds::world::Object;

use crate::usage::Usage;

const REQUESTS: &str = "requests_per_second";
const TOLERANCE: f64 = 0.1;
/// What was measured longer ago says nothing any more.
const STALE_MS: u64 = 60_000;

/// What a metric asks for.
#[derive(Clone, Debug)]
pub(super) struct Proposal {
    pub replicas: u32,
    /// As conditions and events name it.
    pub name: String,
    /// Its entry in `status.currentMetrics`.
    pub status: Value,
}

/// Why a metric says nothing.
#[derive(Clone, Debug)]
pub(super) struct Trouble {
    pub reason: &'static str,
    pub message: String,
}

/// The pods of a target and what is known of them.
pub(super) struct Target<'a> {
    pub namespace: &'a str,
    pub now_ms: u64,
    pub current: u32,
    pub pods: Vec<Arc<Object>>,
    pub usage: &'a Usage,
    pub behavior: &'a Behavior,
}

/// A pod beside one metric.
struct Sample {
    value: Option<u64>,
    /// What it should be.
    goal: u64,
    /// What it counts as while it is not measured and the others do little.
    fallback: u64,
    ready: bool,
}

// === impl Target ===

impl Target<'_> {
    pub(super) fn judge(&self, metric: &Metric) -> Result<Proposal, Trouble> {
        let none = |reason| Trouble { reason, message: "its source is missing".to_owned() };
        match &*metric.kind {
            "Resource" => {
                let source = metric.resource.as_ref();
                self.resource(source.ok_or_else(|| none("FailedGetResourceMetric"))?)
            }
            "Pods" => {
                let source = metric.pods.as_ref();
                self.pods_metric(source.ok_or_else(|| none("FailedGetPodsMetric"))?)
            }
            "Object" => {
                let source = metric.object.as_ref();
                let source = source.ok_or_else(|| none("FailedGetObjectMetric"))?;
                let object = &source.described_object;
                let service = (&*object.kind == "Service").then(|| object.name.to_string());
                let described = json!({ "apiVersion": &*object.api_version,
                    "kind": &*object.kind, "name": &*object.name });
                let mut out = self.service(source, service, "FailedGetObjectMetric", "object")?;
                out.status["object"]["describedObject"] = described;
                Ok(out)
            }
            "External" => {
                let source = metric.external.as_ref();
                let source = source.ok_or_else(|| none("FailedGetExternalMetric"))?;
                let service = source.metric.selector.match_labels.get("service");
                let service = service.map(ToString::to_string);
                self.service(source, service, "FailedGetExternalMetric", "external")
            }
            other => Err(Trouble {
                reason: "InvalidMetricSourceType",
                message: format!("unknown metric source type {other:?}"),
            }),
        }
    }

    fn resource(&self, source: &ResourceSource) -> Result<Proposal, Trouble> {
        let reason = "FailedGetResourceMetric";
        let cpu = &*source.name == "cpu";
        let used = |pod: &Object| {
            let found = self.usage.resources.get(&*key(pod))?;
            if found.wall_ms + STALE_MS < self.now_ms {
                return None;
            }
            Some(if cpu { found.cpu_milli } else { found.memory_bytes.saturating_mul(1000) })
        };
        let utilization = source.target.average_utilization;
        let mut samples = Vec::new();
        for pod in &self.pods {
            let (goal, fallback) = match (utilization, source.target.average_value) {
                (Some(percent), _) => {
                    let request = request(pod, &source.name)
                        .map_err(|message| Trouble { reason, message })?;
                    let of = |percent: u32| request.saturating_mul(u64::from(percent)) / 100;
                    (of(percent), of(percent.max(100)))
                }
                (None, Some(Quantity(goal))) => (goal, goal),
                (None, None) => {
                    let message = "it has neither utilization nor average value".to_owned();
                    return Err(Trouble { reason, message });
                }
            };
            // What a pod does before it is ready is no measure of its work.
            let ready = is_ready(pod) || (!cpu && !is_pending(pod));
            samples.push(Sample { value: used(pod), goal, fallback, ready });
        }
        let (replicas, average, ratio) = self.weigh(samples, reason)?;
        let mut current = json!({ "averageValue": Quantity(average).to_string() });
        let mut name = format!("{} resource", source.name);
        if let Some(percent) = utilization {
            let now = (ratio * f64::from(percent)).floor();
            current["averageUtilization"] = json!(whole(now));
            name = format!("{} resource utilization (percentage of request)", source.name);
        }
        let status = json!({ "type": "Resource",
            "resource": { "name": &*source.name, "current": current } });
        Ok(Proposal { replicas, name, status })
    }

    fn pods_metric(&self, source: &MetricSource) -> Result<Proposal, Trouble> {
        let reason = "FailedGetPodsMetric";
        self.known(source, reason)?;
        let Some(Quantity(goal)) = source.target.average_value else {
            let message = "it has no average value".to_owned();
            return Err(Trouble { reason, message });
        };
        let sample = |pod: &Arc<Object>| Sample {
            value: self.usage.requests.get(&*key(pod)).copied(),
            goal,
            fallback: goal,
            ready: !is_pending(pod),
        };
        let samples = self.pods.iter().map(sample).collect();
        let (replicas, average, _) = self.weigh(samples, reason)?;
        let status = json!({ "type": "Pods", "pods": {
            "metric": { "name": &*source.metric.name },
            "current": { "averageValue": Quantity(average).to_string() } } });
        Ok(Proposal { replicas, name: format!("pods metric {}", source.metric.name), status })
    }

    /// Requests of a service of the mesh, in total or for each replica.
    fn service(
        &self,
        source: &MetricSource,
        service: Option<String>,
        reason: &'static str,
        field: &str,
    ) -> Result<Proposal, Trouble> {
        self.known(source, reason)?;
        let Some(service) = service else {
            let message = format!("{REQUESTS} is known of Services; name one");
            return Err(Trouble { reason, message });
        };
        let place = format!("{}/{service}", self.namespace);
        let now = self.usage.service_requests.get(place.as_str()).copied().unwrap_or(0);
        let (goal, each) = match (source.target.average_value, source.target.value) {
            (Some(Quantity(goal)), _) => (goal.saturating_mul(u64::from(self.current)), true),
            (None, Some(Quantity(goal))) => (goal, false),
            (None, None) => {
                let message = "it has neither value nor average value".to_owned();
                return Err(Trouble { reason, message });
            }
        };
        let ratio = share(now, goal.max(1));
        let ready = self.pods.iter().filter(|p| is_ready(p)).count();
        let of = if each { f64::from(self.current) } else { float(ready as u64) };
        let replicas =
            if self.tolerates(ratio) { self.current } else { whole((ratio * of).ceil()) };
        let average = now.div_ceil(u64::from(self.current.max(1)));
        let current = match each {
            true => json!({ "averageValue": Quantity(average).to_string() }),
            false => json!({ "value": Quantity(now).to_string() }),
        };
        let mut status = json!({ "type": if field == "object" { "Object" } else { "External" } });
        status[field] = json!({ "metric": { "name": &*source.metric.name }, "current": current });
        Ok(Proposal { replicas, name: format!("{field} metric {}", source.metric.name), status })
    }

    fn known(&self, source: &MetricSource, reason: &'static str) -> Result<(), Trouble> {
        let name = &source.metric.name;
        match &**name {
            REQUESTS => Ok(()),
            _ => Err(Trouble {
                reason,
                message: format!("unable to get metric {name}: weft measures {REQUESTS}"),
            }),
        }
    }

    /// The replicas that samples ask for, their average and their ratio to the goal.
    fn weigh(
        &self,
        samples: Vec<Sample>,
        reason: &'static str,
    ) -> Result<(u32, u64, f64), Trouble> {
        let (ready, unready): (Vec<Sample>, Vec<Sample>) =
            samples.into_iter().partition(|s| s.ready);
        let (mut known, missing): (Vec<Sample>, Vec<Sample>) =
            ready.into_iter().partition(|s| s.value.is_some());
        if known.is_empty() {
            let message = "did not receive metrics for targeted pods (pods might be unready)";
            return Err(Trouble { reason, message: message.to_owned() });
        }
        let (ratio, measured) = (of_all(&known), known.len());
        let sum: u64 = known.iter().filter_map(|s| s.value).sum();
        let average = sum / measured as u64;
        let busy = ratio > 1.0 && !unready.is_empty();
        let keep = Ok((self.current, average, ratio));
        if !busy && missing.is_empty() {
            if self.tolerates(ratio) {
                return keep;
            }
            return Ok((whole((ratio * float(measured as u64)).ceil()), average, ratio));
        }
        for mut sample in missing {
            sample.value = Some(if ratio < 1.0 { sample.fallback } else { 0 });
            known.push(sample);
        }
        if busy {
            known.extend(unready.into_iter().map(|s| Sample { value: Some(0), ..s }));
        }
        let again = of_all(&known);
        let turned = (ratio < 1.0 && again > 1.0) || (ratio > 1.0 && again < 1.0);
        if self.tolerates(again) || turned {
            return keep;
        }
        let replicas = whole((again * float(known.len() as u64)).ceil());
        let wrong =
            (again < 1.0 && replicas > self.current) || (again > 1.0 && replicas < self.current);
        if wrong { keep } else { Ok((replicas, average, ratio)) }
    }

    fn tolerates(&self, ratio: f64) -> bool {
        let of = |given: Option<Quantity>| given.map_or(TOLERANCE, |Quantity(n)| share(n, 1000));
        let down = of(self.behavior.scale_down.tolerance);
        (1.0 - down..=1.0 + of(self.behavior.scale_up.tolerance)).contains(&ratio)
    }
}

fn of_all(samples: &[Sample]) -> f64 {
    let used: u64 = samples.iter().filter_map(|s| s.value).fold(0, u64::saturating_add);
    let goal: u64 = samples.iter().map(|s| s.goal).fold(0, u64::saturating_add);
    share(used, goal.max(1))
}

/// `namespace/name`.
fn key(pod: &Object) -> String {
    format!("{}/{}", pod.key.namespace, pod.key.name)
}

fn is_ready(pod: &Object) -> bool {
    matches!(&pod.view, View::Pod(p) if p.is_ready())
}

fn is_pending(pod: &Object) -> bool {
    matches!(&pod.view, View::Pod(p) if matches!(&*p.status.phase, "" | "Pending"))
}

/// What a pod's containers ask for together, in thousandths.
fn request(pod: &Object, resource: &str) -> Result<u64, String> {
    let containers = pod.raw["spec"]["containers"].as_array().into_iter().flatten();
    containers.map(|c| (c, &c["resources"])).try_fold(0u64, |sum, (container, resources)| {
        let asked = [&resources["requests"][resource], &resources["limits"][resource]];
        let text = asked.into_iter().find(|v| !v.is_null()).map(|v| match v.as_str() {
            Some(text) => text.to_owned(),
            None => v.to_string(),
        });
        let quantity = text.and_then(|t| Quantity::parse(&t)).filter(|q| q.0 > 0);
        let Some(Quantity(n)) = quantity else {
            let name = container["name"].as_str().unwrap_or_default();
            let pod = &pod.key.name;
            return Err(format!("missing request for {resource} in container {name} of Pod {pod}"));
        };
        Ok(sum.saturating_add(n))
    })
}

#[allow(clippy::cast_precision_loss, reason = "figures of pods are far below 2^52")]
fn float(n: u64) -> f64 {
    n as f64
}

fn share(part: u64, of: u64) -> f64 {
    float(part) / float(of)
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped before")]
fn whole(n: f64) -> u32 {
    n.clamp(0.0, f64::from(u32::MAX)) as u32
}
