// SPDX-License-Identifier: Apache-2.0
//! Rows of `kubectl get` as its users know them.

use serde_json::json;
use weft_kinds::kind::KindId;

use super::*;

const NOW: u64 = 1_767_225_600_000; // 2026-01-01T00:00:00Z

fn cells(kind: KindId, object: Value, wide: bool) -> Vec<String> {
    let row = kind.row();
    let table = table(row, &[object], Include::Metadata, json!({}), NOW);
    let columns = table["columnDefinitions"].as_array().unwrap();
    let all = table["rows"][0]["cells"].as_array().unwrap();
    assert_eq!(columns.len(), all.len());
    let shown = columns.iter().zip(all).filter(|(c, _)| wide || c["priority"] == 0);
    shown.map(|(_, v)| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect()
}

#[test]
fn pods_as_kubectl_shows_them() {
    let pod = json!({
        "metadata": {"name": "p", "creationTimestamp": "2025-12-31T23:54:57Z"},
        "spec": {"nodeName": "here", "containers": [{"name": "a"}, {"name": "b"}]},
        "status": {"phase": "Running", "podIP": "127.64.0.1", "containerStatuses": [
            {"ready": true, "restartCount": 1, "state": {"running": {}},
             "lastState": {"terminated": {"finishedAt": "2025-12-31T23:59:00Z"}}},
            {"ready": false, "restartCount": 0,
             "state": {"waiting": {"reason": "CrashLoopBackOff"}}},
        ]},
    });
    assert_eq!(
        cells(KindId::Pod, pod.clone(), true),
        [
            "p",
            "1/2",
            "CrashLoopBackOff",
            "1 (60s ago)",
            "5m3s",
            "127.64.0.1",
            "here",
            "<none>",
            "<none>"
        ]
    );
    let mut going = pod;
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    assert_eq!(cells(KindId::Pod, going, false)[2], "Terminating");
    let new = json!({"metadata": {"name": "n", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"containers": [{}]}, "status": {"phase": "Pending"}});
    assert_eq!(cells(KindId::Pod, new, false), ["n", "0/1", "Pending", "0", "0s"]);
}

#[test]
fn services_deployments_and_gateways() {
    let service = json!({
        "metadata": {"name": "web", "creationTimestamp": "2025-12-31T20:00:00Z"},
        "spec": {"type": "ClusterIP", "clusterIP": "127.96.0.5", "selector": {"app": "web"},
            "ports": [{"port": 80, "protocol": "TCP"}, {"port": 443, "nodePort": 30443}]},
    });
    assert_eq!(
        cells(KindId::Service, service, true),
        ["web", "ClusterIP", "127.96.0.5", "<none>", "80/TCP,443:30443/TCP", "4h", "app=web"]
    );
    let deployment = json!({
        "metadata": {"name": "d", "creationTimestamp": "2025-12-01T00:00:00Z"},
        "spec": {"replicas": 3}, "status": {"readyReplicas": 2, "updatedReplicas": 3,
            "availableReplicas": 2},
    });
    assert_eq!(cells(KindId::Deployment, deployment, false), ["d", "2/3", "3", "2", "31d"]);
    let gateway = json!({
        "metadata": {"name": "g", "creationTimestamp": "2025-12-31T23:59:15Z"},
        "spec": {"gatewayClassName": "weft"},
        "status": {"addresses": [{"value": "127.0.0.1"}, {"value": "::1"}], "conditions": [
            {"type": "Accepted", "status": "False"}, {"type": "Programmed", "status": "True"}]},
    });
    assert_eq!(
        cells(KindId::Gateway, gateway, false),
        ["g", "weft", "127.0.0.1,::1", "True", "45s"]
    );
    let route = json!({"metadata": {"name": "r", "creationTimestamp": "x"},
        "spec": {"hostnames": ["a.example"]}});
    assert_eq!(cells(KindId::HttpRoute, route, false), ["r", "[\"a.example\"]", "<unknown>"]);
}

#[test]
fn every_computed_column_has_a_cell() {
    for row in weft_kinds::kind::KINDS {
        let bare = json!({"metadata": {"name": "x", "creationTimestamp": "2026-01-01T00:00:00Z"}});
        let all = cells(row.id, bare, true);
        assert_eq!(all.len(), row.columns.len(), "{}", row.kind);
    }
}

#[test]
fn jobs_schedules_and_sets() {
    let job = |spec: Value, status: Value| {
        let object = json!({"metadata": {"name": "j", "creationTimestamp": "2025-12-31T23:55:00Z"},
            "spec": spec, "status": status});
        cells(KindId::Job, object, false)[1..4].to_vec()
    };
    let start = "2025-12-31T23:55:00Z";
    let done = json!({"succeeded": 3, "startTime": start, "completionTime": "2025-12-31T23:55:42Z",
        "conditions": [{"type": "Complete", "status": "True"}]});
    assert_eq!(job(json!({"completions": 3}), done), ["Complete", "3/3", "42s"]);
    let going =
        json!({"startTime": start, "conditions": [{"type": "Suspended", "status": "False"}]});
    assert_eq!(job(json!({"parallelism": 4}), going), ["Running", "0/1 of 4", "5m"]);
    let failed = json!({"conditions": [{"type": "Failed", "status": "True"}]});
    assert_eq!(job(json!({"completions": 1}), failed), ["Failed", "0/1", ""]);
    let cron = json!({"metadata": {"name": "c", "creationTimestamp": start},
        "spec": {"schedule": "@daily", "suspend": true},
        "status": {"active": [{}], "lastScheduleTime": "2025-12-31T23:59:00Z"}});
    assert_eq!(
        cells(KindId::CronJob, cron, false),
        ["c", "@daily", "<none>", "True", "1", "60s", "5m"]
    );
    let set = json!({"metadata": {"name": "s", "creationTimestamp": start},
        "spec": {"replicas": 3}, "status": {"readyReplicas": 2}});
    assert_eq!(cells(KindId::StatefulSet, set, false), ["s", "2/3", "5m"]);
    let daemons = json!({"metadata": {"name": "d", "creationTimestamp": start},
        "spec": {"template": {"spec": {"nodeSelector": {"disk": "ssd"}}}},
        "status": {"desiredNumberScheduled": 2, "currentNumberScheduled": 2, "numberReady": 1}});
    assert_eq!(
        cells(KindId::DaemonSet, daemons, false),
        ["d", "2", "2", "1", "0", "0", "disk=ssd", "5m"]
    );
}

#[test]
fn autoscalers_show_what_is_beside_what_is_wanted() {
    let hpa = json!({
        "metadata": {"name": "h", "creationTimestamp": "2025-12-31T23:55:00Z"},
        "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "web"}, "minReplicas": 1,
            "maxReplicas": 9, "metrics": [
                {"type": "Resource", "resource": {"name": "cpu",
                    "target": {"averageUtilization": 50}}},
                {"type": "Pods", "pods": {"target": {"averageValue": "5"}}},
                {"type": "Object", "object": {"target": {"averageValue": "20"}}},
            ]},
        "status": {"currentReplicas": 2, "currentMetrics": [
            {"type": "Resource", "resource": {"current": {"averageUtilization": 61}}},
            {"type": "Pods", "pods": {"current": {"averageValue": "7500m"}}},
        ]},
    });
    assert_eq!(
        cells(KindId::HorizontalPodAutoscaler, hpa, false),
        ["h", "Deployment/web", "cpu: 61%/50%, 7500m/5 + 1 more...", "1", "9", "2", "5m"]
    );
}
