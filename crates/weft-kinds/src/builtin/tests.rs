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
