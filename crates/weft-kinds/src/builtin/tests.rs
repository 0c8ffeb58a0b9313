// SPDX-License-Identifier: Apache-2.0
//! Built-in defaults and rules beside what the real API server shows and says.

use serde_json::{Value, json};

use super::*;
use crate::check;
use crate::kind::KindId;
use crate::schema::stored;

fn findings(kind: KindId, mut object: Value, old: Option<&Value>) -> Vec<String> {
    let schema = stored(kind);
    check::fill(&schema, &mut object);
    complete(kind, &mut object);
    let mut found = check::validate(&schema, &object, old).0;
    found.extend(judge(kind, &object, old).0);
    found.iter().map(ToString::to_string).collect()
}

fn service(spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": spec})
}

fn deployment() -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {
        "selector": {"matchLabels": {"app": "d"}},
        "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [
            {"name": "c", "image": "user-service:1.0", "readinessProbe": {"httpGet": {"port": 80}}},
        ]}},
    }})
}

#[test]
fn a_service_shows_what_a_real_server_shows() {
    let mut object = service(json!({"selector": {"app": "s"}, "ports": [{"port": 80}]}));
    complete(KindId::Service, &mut object);
    assert_eq!(
        object["spec"],
        json!({
            "selector": {"app": "s"},
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
            "type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
        })
    );
}

#[test]
fn a_deployment_gets_its_strategy_and_its_pods_defaults() {
    let mut object = deployment();
    complete(KindId::Deployment, &mut object);
    let spec = &object["spec"];
    assert_eq!(spec["replicas"], 1);
    assert_eq!(
        spec["strategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {
            "maxUnavailable": "25%", "maxSurge": "25%"}})
    );
    let container = &spec["template"]["spec"]["containers"][0];
    assert_eq!(container["imagePullPolicy"], "IfNotPresent");
    assert_eq!(container["readinessProbe"]["periodSeconds"], 10);
    assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/");
    let before = object.clone();
    complete(KindId::Deployment, &mut object);
    assert_eq!(object, before, "completing twice changes nothing");
    assert_eq!(findings(KindId::Deployment, object, None), Vec::<String>::new());
}

#[test]
fn secrets_and_namespaces() {
    let mut secret = json!({"metadata": {"name": "s"}, "stringData": {"a": "b"}});
    complete(KindId::Secret, &mut secret);
    assert_eq!(secret["data"], json!({"a": "Yg=="}));
    assert_eq!(secret["type"], "Opaque");
    let mut ns = json!({"metadata": {"name": "shop"}});
    complete(KindId::Namespace, &mut ns);
    assert_eq!(ns["metadata"]["labels"]["kubernetes.io/metadata.name"], "shop");
}

#[test]
fn services_that_cannot_work_are_refused_with_the_field() {
    let found =
        findings(KindId::Service, service(json!({"ports": [{"port": 80}, {"port": 80}]})), None);
    assert!(found.contains(&"spec.ports[0].name: Required value (W1003)".into()), "{found:?}");
    assert!(found.iter().any(|f| f.starts_with("spec.ports[1]: Duplicate value")), "{found:?}");
    let found = findings(KindId::Service, service(json!({"ports": [{"port": 0}]})), None);
    assert!(found[0].contains("must be between 1 and 65535"), "{found:?}");
    let found = findings(KindId::Service, service(json!({"type": "Loadbalancer"})), None);
    assert!(found.iter().any(|f| f.contains("Unsupported value: \"Loadbalancer\"")), "{found:?}");
    assert!(findings(KindId::Service, service(json!({"clusterIP": "None"})), None).is_empty());
}

#[test]
fn deployments_that_cannot_work_are_refused_with_the_field() {
    let mut object = deployment();
    object["spec"]["template"]["metadata"]["labels"] = json!({"app": "e"});
    let found = findings(KindId::Deployment, object, None);
    assert!(found[0].contains("`selector` does not match template `labels`"), "{found:?}");
    let mut object = deployment();
    object["spec"]["template"]["spec"]["containers"] = json!([{"name": "A_b"}]);
    let found = findings(KindId::Deployment, object, None);
    assert!(
        found.iter().any(|f| f.starts_with("spec.template.spec.containers[0].image: Required"))
    );
    assert!(found.iter().any(|f| f.starts_with("spec.template.spec.containers[0].name: Invalid")));
    let old = deployment();
    let mut object = deployment();
    object["spec"]["selector"]["matchLabels"]["app"] = "x".into();
    object["spec"]["template"]["metadata"]["labels"]["app"] = "x".into();
    let found = findings(KindId::Deployment, object, Some(&old));
    assert!(found[0].starts_with("spec.selector: Invalid value"), "{found:?}");
    assert!(found[0].contains("field is immutable"), "{found:?}");
}

#[test]
fn a_pod_changes_only_its_images() {
    let pod = |image: &str, command: &str| {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [
            {"name": "c", "image": image, "command": [command]}]}});
        complete(KindId::Pod, &mut pod);
        pod
    };
    let old = pod("a:1", "x");
    assert!(findings(KindId::Pod, pod("a:2", "x"), Some(&old)).is_empty());
    let found = findings(KindId::Pod, pod("a:1", "y"), Some(&old));
    assert!(found[0].starts_with("spec: Forbidden: pod updates may not change"), "{found:?}");
}

#[test]
fn labels_have_a_form() {
    let mut object = service(json!({"ports": [{"port": 80}]}));
    object["metadata"]["labels"] = json!({"a b": "x", "ok.io/a": "bad value"});
    let found = findings(KindId::Service, object, None);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[1].starts_with("metadata.labels[\"ok.io/a\"]: Invalid value: \"bad value\""));
}

fn of(kind: KindId, spec: Value) -> Value {
    json!({"apiVersion": kind.row().api_version(), "kind": kind.row().kind,
        "metadata": {"name": "x"}, "spec": spec})
}

fn pods() -> Value {
    json!({"metadata": {"labels": {"app": "x"}}, "spec": {"restartPolicy": "Never",
        "containers": [{"name": "c", "image": "i"}]}})
}

#[test]
fn jobs_and_schedules_get_kubernetes_defaults() {
    let mut job = of(KindId::Job, json!({"template": pods()}));
    complete(KindId::Job, &mut job);
    let spec = &job["spec"];
    for (field, value) in [
        ("completions", json!(1)),
        ("parallelism", json!(1)),
        ("backoffLimit", json!(6)),
        ("completionMode", json!("NonIndexed")),
        ("suspend", json!(false)),
        ("podReplacementPolicy", json!("TerminatingOrFailed")),
    ] {
        assert_eq!(spec[field], value, "{field}");
    }
    assert_eq!(job["metadata"]["labels"], json!({"app": "x"}));
    let mut queue = of(KindId::Job, json!({"parallelism": 3, "template": pods()}));
    complete(KindId::Job, &mut queue);
    assert!(queue["spec"].get("completions").is_none(), "a work queue has no number");
    let mut cron = of(
        KindId::CronJob,
        json!({"schedule": "@daily",
        "jobTemplate": {"spec": {"template": pods()}}}),
    );
    complete(KindId::CronJob, &mut cron);
    assert_eq!(cron["spec"]["successfulJobsHistoryLimit"], 3);
    assert_eq!(cron["spec"]["failedJobsHistoryLimit"], 1);
    let pod = &cron["spec"]["jobTemplate"]["spec"]["template"]["spec"];
    assert_eq!(pod["dnsPolicy"], "ClusterFirst");
    let mut hpa = of(
        KindId::HorizontalPodAutoscaler,
        json!({"maxReplicas": 3,
        "scaleTargetRef": {"kind": "Deployment", "name": "x"}, "behavior": {}}),
    );
    complete(KindId::HorizontalPodAutoscaler, &mut hpa);
    assert_eq!(hpa["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
    assert_eq!(hpa["spec"]["behavior"]["scaleUp"]["stabilizationWindowSeconds"], 0);
    for object in [job, cron, hpa] {
        let kind = KindId::by_api(
            object["apiVersion"].as_str().unwrap(),
            object["kind"].as_str().unwrap(),
        );
        let kind = kind.unwrap();
        assert_eq!(findings(kind, object.clone(), Some(&object)), Vec::<String>::new(), "{kind}");
    }
}

#[test]
fn workloads_that_cannot_work_are_refused_with_the_field() {
    let selector = json!({"matchLabels": {"app": "x"}});
    let always = json!({"metadata": {"labels": {"app": "x"}}, "spec": {
        "containers": [{"name": "c", "image": "i"}]}});
    let target = json!({"kind": "Deployment", "name": "x"});
    let no_goal = json!([{"type": "Pods", "pods": {"metric": {"name": "m"},
        "target": {"type": "AverageValue"}}}]);
    for (kind, spec, says) in [
        (KindId::Job, json!({"template": always}), "spec.template.spec.restartPolicy: Unsupported"),
        (
            KindId::Job,
            json!({"template": pods(), "completionMode": "Indexed", "parallelism": 1}),
            "spec.completions: Required value: when completion mode is Indexed",
        ),
        (
            KindId::Job,
            json!({"template": pods(), "backoffLimitPerIndex": 1}),
            "spec.backoffLimitPerIndex: Invalid value: requires indexed completion mode",
        ),
        (
            KindId::Job,
            json!({"template": pods(), "podFailurePolicy": {"rules": [{"action": "FailJob"}]}}),
            "spec.podFailurePolicy.rules[0]: Invalid value: specifying one of",
        ),
        (
            KindId::CronJob,
            json!({"schedule": "* * * *", "jobTemplate": {"spec": {"template": pods()}}}),
            "spec.schedule: Invalid value: \"* * * *\": expected exactly 5 fields",
        ),
        (
            KindId::CronJob,
            json!({"schedule": "@daily", "timeZone": "Moon/Base",
                "jobTemplate": {"spec": {"template": pods()}}}),
            "spec.timeZone: Invalid value: \"Moon/Base\": unknown time zone",
        ),
        (
            KindId::CronJob,
            json!({"schedule": "@daily", "concurrencyPolicy": "Queue",
                "jobTemplate": {"spec": {"template": pods()}}}),
            "spec.concurrencyPolicy: Unsupported value: \"Queue\"",
        ),
        (
            KindId::StatefulSet,
            json!({"selector": selector, "template": always, "podManagementPolicy": "Any"}),
            "spec.podManagementPolicy: Unsupported value: \"Any\"",
        ),
        (
            KindId::DaemonSet,
            json!({"selector": selector, "template": always,
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}),
            "spec.updateStrategy.rollingUpdate.maxSurge: Forbidden",
        ),
        (
            KindId::Deployment,
            json!({"selector": selector, "template": always, "strategy": {
                "rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}}),
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: may not be 0",
        ),
        (
            KindId::Deployment,
            json!({"selector": selector, "template": always, "strategy": {
                "rollingUpdate": {"maxSurge": "a lot"}}}),
            "spec.strategy.rollingUpdate.maxSurge: Invalid value: \"a lot\"",
        ),
        (
            KindId::HorizontalPodAutoscaler,
            json!({"scaleTargetRef": target, "minReplicas": 5, "maxReplicas": 3}),
            "spec.maxReplicas: Invalid value: 3",
        ),
        (
            KindId::HorizontalPodAutoscaler,
            json!({"scaleTargetRef": target, "maxReplicas": 3, "metrics": no_goal}),
            "spec.metrics[0].pods.target: Required value: must set a target value",
        ),
        (
            KindId::PodDisruptionBudget,
            json!({"minAvailable": 1, "maxUnavailable": 1}),
            "minAvailable and maxUnavailable cannot be both set",
        ),
    ] {
        let found = findings(kind, of(kind, spec), None);
        assert!(found.iter().any(|f| f.contains(says)), "{kind}: {says}: {found:?}");
    }
    let mut long = of(
        KindId::CronJob,
        json!({"schedule": "@daily",
        "jobTemplate": {"spec": {"template": pods()}}}),
    );
    long["metadata"]["name"] = "n".repeat(53).into();
    let found = findings(KindId::CronJob, long, None);
    assert!(found[0].contains("must be no more than 52 characters"), "{found:?}");
}

#[test]
fn a_job_keeps_its_template_and_may_change_its_width() {
    let job = |parallelism: u32, image: &str| {
        let mut job = of(KindId::Job, json!({"parallelism": parallelism, "template": pods()}));
        job["spec"]["template"]["spec"]["containers"][0]["image"] = image.into();
        complete(KindId::Job, &mut job);
        job
    };
    let old = job(1, "a");
    assert_eq!(findings(KindId::Job, job(4, "a"), Some(&old)), Vec::<String>::new());
    let found = findings(KindId::Job, job(1, "b"), Some(&old));
    assert!(found[0].starts_with("spec.template: Invalid value"), "{found:?}");
}
