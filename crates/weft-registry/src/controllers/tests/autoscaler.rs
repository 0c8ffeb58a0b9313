// SPDX-License-Identifier: Apache-2.0
//! Autoscalers beside what Kubernetes documents of them.

use super::*;
use crate::usage::Resources;

/// A Deployment whose pods ask for 100m, all ready, and an autoscaler of it.
fn scaled(replicas: u32, spec: Value) -> Sim {
    let mut sim = Sim::new();
    let mut raw = deployment("web", replicas, "web:1");
    raw["spec"]["template"]["spec"]["containers"][0]["resources"] =
        json!({ "requests": { "cpu": "100m", "memory": "64Mi" } });
    sim.create(KindId::Deployment, NS, raw);
    sim.run();
    let mut raw = json!({ "metadata": { "name": "web" }, "spec": {
        "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": "web" },
        "maxReplicas": 10 } });
    for (field, value) in spec.as_object().unwrap() {
        raw["spec"][field] = value.clone();
    }
    weft_kinds::builtin::complete(KindId::HorizontalPodAutoscaler, &mut raw);
    sim.create(KindId::HorizontalPodAutoscaler, NS, raw);
    sim
}

fn rps(average: &str) -> Value {
    json!([{ "type": "Pods", "pods": { "metric": { "name": "requests_per_second" },
        "target": { "type": "AverageValue", "averageValue": average } } }])
}

impl Sim {
    /// Every ready pod uses this much.
    fn burn(&mut self, cpu_milli: u64, requests: u64) {
        self.usage = crate::Usage::default();
        for pod in self.all(KindId::Pod) {
            let name: Arc<str> = format!("{NS}/{}", pod.key.name).into();
            let memory_bytes = 64 << 20;
            let wall_ms = self.clock.wall_ms();
            let measured = Resources { cpu_milli, memory_bytes, wall_ms };
            self.usage.resources.insert(name.clone(), measured);
            self.usage.requests.insert(name, requests);
        }
    }

    /// The autoscaler looks, and the pods come and go.
    fn look(&mut self) -> u64 {
        self.later(5);
        self.run();
        self.object(KindId::Deployment, "web").raw["spec"]["replicas"].as_u64().unwrap()
    }

    fn hpa(&self) -> Value {
        self.object(KindId::HorizontalPodAutoscaler, "web").raw["status"].clone()
    }

    fn hpa_says(&self, condition: &str) -> (String, String) {
        let status = self.hpa();
        let found = status["conditions"].as_array().unwrap().iter();
        let found = found.into_iter().find(|c| c["type"] == condition).unwrap();
        let word = |f: &str| found[f].as_str().unwrap().to_owned();
        (word("status"), word("reason"))
    }
}

#[test]
fn the_ratio_decides_beyond_a_tolerance() {
    // Replicas, millicores of each pod (of 100m, wanted 50 %), replicas after.
    for (replicas, cpu, after) in [
        (4, 50, 4),
        (4, 54, 4),
        (4, 55, 4),
        (4, 56, 5),
        (4, 100, 8),
        (4, 46, 4),
        // Down waits five minutes.
        (4, 10, 4),
        (1, 300, 5),
    ] {
        let metrics = json!([{ "type": "Resource", "resource": { "name": "cpu",
            "target": { "type": "Utilization", "averageUtilization": 50 } } }]);
        let mut sim = scaled(replicas, json!({ "metrics": metrics }));
        sim.burn(cpu, 0);
        assert_eq!(sim.look(), after, "{replicas} pods at {cpu}m");
        let now = &sim.hpa()["currentMetrics"][0]["resource"]["current"];
        assert_eq!(now["averageUtilization"], cpu, "{now}");
        assert_eq!(now["averageValue"], format!("{cpu}m"));
        assert_eq!(sim.hpa_says("ScalingActive"), ("True".into(), "ValidMetricFound".into()));
    }
}

#[test]
fn the_meshs_own_request_rate_scales_up_and_down() {
    let mut sim = scaled(2, json!({ "metrics": rps("10"), "minReplicas": 2, "maxReplicas": 6 }));
    sim.burn(0, 25_000);
    assert_eq!(sim.look(), 5);
    assert_eq!(sim.hpa()["currentMetrics"][0]["pods"]["current"]["averageValue"], "25");
    sim.burn(0, 20_000);
    sim.later(20);
    sim.run();
    assert_eq!(sim.look(), 6, "no more than the most");
    assert_eq!(sim.hpa_says("ScalingLimited"), ("True".into(), "TooManyReplicas".into()));
    sim.burn(0, 1_000);
    for _ in 0..50 {
        assert_eq!(sim.look(), 6);
        assert_eq!(sim.hpa_says("AbleToScale").1, "ScaleDownStabilized");
    }
    for _ in 0..12 {
        sim.look();
    }
    assert_eq!(sim.look(), 2, "after five quiet minutes, to the least");
}

#[test]
fn a_window_of_the_users_own_is_followed() {
    let behavior = json!({ "scaleDown": { "stabilizationWindowSeconds": 0,
        "policies": [{ "type": "Pods", "value": 1, "periodSeconds": 60 }] } });
    let mut sim = scaled(5, json!({ "metrics": rps("10"), "behavior": behavior }));
    sim.burn(0, 1_000);
    assert_eq!(sim.look(), 4);
    assert_eq!(sim.hpa_says("ScalingLimited").1, "ScaleDownLimit");
    for _ in 0..11 {
        assert_eq!(sim.look(), 4, "one a minute");
    }
    assert_eq!(sim.look(), 3);
}

#[test]
fn pods_that_are_not_measured_damp_it() {
    let mut sim = scaled(4, json!({ "metrics": rps("10") }));
    sim.burn(0, 30_000);
    // Two of four were not measured: they count as idle when it goes up, 6 instead of 12.
    let known: Vec<Arc<str>> = sim.usage.requests.keys().take(2).cloned().collect();
    sim.usage.requests.retain(|name, _| !known.contains(name));
    assert_eq!(sim.look(), 6);
}

#[test]
fn without_measures_nothing_moves_and_it_says_why() {
    let mut sim = scaled(3, json!({ "metrics": rps("10") }));
    assert_eq!(sim.look(), 3);
    assert_eq!(sim.hpa_says("ScalingActive"), ("False".into(), "FailedGetPodsMetric".into()));
    let metrics = json!([{ "type": "Pods", "pods": { "metric": { "name": "queue_length" },
        "target": { "type": "AverageValue", "averageValue": "1" } } }]);
    let mut sim = scaled(3, json!({ "metrics": metrics }));
    sim.burn(0, 1);
    assert_eq!(sim.look(), 3);
    assert!(sim.hpa().to_string().contains("weft measures requests_per_second"));
}

#[test]
fn what_was_measured_long_ago_counts_for_nothing() {
    let mut sim = scaled(2, json!({}));
    sim.burn(200, 0);
    sim.time.advance(std::time::Duration::from_secs(61));
    assert_eq!(sim.look(), 2);
    assert_eq!(sim.hpa_says("ScalingActive").1, "FailedGetResourceMetric");
    sim.burn(200, 0);
    assert_eq!(sim.look(), 5);
}

#[test]
fn one_metric_that_fails_only_keeps_from_going_down() {
    let both = |first: Value| {
        let other = json!({ "type": "Pods", "pods": { "metric": { "name": "unknown" },
            "target": { "type": "AverageValue", "averageValue": "1" } } });
        json!([first[0], other])
    };
    let behavior = json!({ "scaleDown": { "stabilizationWindowSeconds": 0 } });
    let spec = json!({ "metrics": both(rps("10")), "behavior": behavior });
    let mut sim = scaled(3, spec);
    sim.burn(0, 1_000);
    assert_eq!(sim.look(), 3);
    sim.burn(0, 20_000);
    assert_eq!(sim.look(), 6);
}

#[test]
fn a_service_as_the_measure() {
    let metrics = json!([{ "type": "Object", "object": {
        "metric": { "name": "requests_per_second" },
        "describedObject": { "apiVersion": "v1", "kind": "Service", "name": "web" },
        "target": { "type": "AverageValue", "averageValue": "20" } } }]);
    let mut sim = scaled(2, json!({ "metrics": metrics }));
    sim.usage.service_requests.insert(format!("{NS}/web").into(), 100_000);
    assert_eq!(sim.look(), 5);
    // The same from outside, in total.
    let metrics = json!([{ "type": "External", "external": {
        "metric": { "name": "requests_per_second",
            "selector": { "matchLabels": { "service": "web" } } },
        "target": { "type": "Value", "value": "50" } } }]);
    let mut sim = scaled(2, json!({ "metrics": metrics }));
    sim.usage.service_requests.insert(format!("{NS}/web").into(), 100_000);
    assert_eq!(sim.look(), 4);
    assert_eq!(sim.hpa()["currentMetrics"][0]["external"]["current"]["value"], "100");
}

#[test]
fn bounds_come_first_and_what_cannot_be_scaled_is_said() {
    let mut sim = scaled(1, json!({ "metrics": rps("10"), "minReplicas": 3 }));
    sim.settle();
    let replicas = &sim.object(KindId::Deployment, "web").raw["spec"]["replicas"].clone();
    assert_eq!(replicas, 3, "at once, without measures");
    sim.change(KindId::Deployment, "web", |d| d["spec"]["replicas"] = json!(0));
    assert_eq!(sim.look(), 0);
    assert_eq!(sim.hpa_says("ScalingActive").1, "ScalingDisabled");
    sim.delete(KindId::Deployment, "web", Propagation::Background);
    sim.later(5);
    assert_eq!(sim.hpa_says("AbleToScale"), ("False".into(), "FailedGetScale".into()));
}
