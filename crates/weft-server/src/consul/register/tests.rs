// SPDX-License-Identifier: Apache-2.0
//! Bodies as real clients send them.

use serde_json::json;

use super::*;

fn map(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

fn refused(result: Result<impl std::fmt::Debug, Refusal>) -> String {
    result.unwrap_err().text
}

#[test]
fn python_consuls_registration_is_understood() {
    let body = map(json!({
        "name": "foo", "id": "foo-1", "address": "10.0.0.1", "port": 8080, "tags": ["a"],
        "check": {"tcp": "127.0.0.1:8080", "interval": "10s", "timeout": "2s",
                  "DeregisterCriticalServiceAfter": "90m"},
        "enabletagoverride": true,
    }));
    let service = service(&body, "", "Name", true).unwrap();
    assert_eq!((&*service.id, &*service.service, service.port), ("foo-1", "foo", 8080));
    assert!(service.enable_tag_override && service.agent);
    let checks = service_checks(&body, &service).unwrap();
    let definition = checks[0].typed();
    assert_eq!((&*checks[0].id, &*checks[0].name), ("service:foo-1", "Service 'foo' check"));
    assert_eq!(definition.probe, Probe::Tcp { address: "127.0.0.1:8080".into(), tls: false });
    assert_eq!((definition.interval_ms, definition.timeout_ms), (10_000, 2_000));
    assert_eq!(definition.deregister_after_ms, 5_400_000);
    assert_eq!(checks[0].initial, Status::Critical);
}

#[test]
fn several_checks_are_numbered_in_order() {
    let body = map(json!({"Name": "w", "Check": {}, "Checks": [
        {"TTL": "10s"}, {"HTTP": "http://127.0.0.1/", "Interval": 10}, {"CheckID": "mine", "GRPC": "h:1/s", "Interval": "1s"}
    ]}));
    let service = service(&body, "", "Name", true).unwrap();
    let checks = service_checks(&body, &service).unwrap();
    let ids: Vec<&str> = checks.iter().map(|c| &*c.id).collect();
    assert_eq!(ids, ["service:w:1", "service:w:2", "mine"]);
}

#[test]
fn reg_59_a_script_check_is_never_taken() {
    for body in [
        json!({"Args": ["sh", "-c", "id"], "Interval": "1s"}),
        json!({"script": "id", "interval": "1s"}),
        json!({"ScriptArgs": ["id"], "Interval": "1s"}),
        json!({"docker_container_id": "x", "shell": "sh", "interval": "1s"}),
    ] {
        assert_eq!(refused(check(&map(body), true)), SCRIPTS);
    }
}

#[test]
fn wrong_fields_are_named() {
    let of = |body: Value| refused(service(&map(body), "", "Name", true));
    assert_eq!(of(json!({"ID": "x"})), "Missing service name");
    assert!(of(json!({"Name": "x", "Port": 70_000})).contains("Port: expected a whole number"));
    assert!(of(json!({"Name": "x", "Tags": "a"})).contains("Tags: expected a list"));
    assert!(of(json!({"Name": "x", "Weights": {"Passing": 0}})).contains("Invalid weights"));
    assert!(of(json!({"Name": "x", "Address": "0.0.0.0"})).contains("Invalid service address"));
    let of = |body: Value| refused(check(&map(body), true));
    assert!(of(json!({"TCP": "nohost", "Interval": "1s"})).contains("not host:port"));
    assert!(
        of(json!({"HTTP": "ftp://x", "Interval": "1s"})).contains("not an http:// or https://")
    );
    assert!(of(json!({"TCP": "h:1"})).contains("Interval must be > 0"));
    assert!(of(json!({})).contains("TTL must be > 0"));
    assert_eq!(of(json!({"TTL": "1s", "Status": "ok"})), "Invalid check status: 'ok'");
}

#[test]
fn a_sidecar_is_named_after_its_service() {
    let body = map(json!({"name": "web", "port": 80, "connect": {"sidecar_service": {}}}));
    let parent = service(&body, "", "Name", true).unwrap();
    let sidecar = sidecar(&body, &parent).unwrap().unwrap();
    assert_eq!((&*sidecar.id, &*sidecar.kind), ("web-sidecar-proxy", "connect-proxy"));
    assert_eq!(sidecar.proxy.unwrap()["LocalServicePort"], 80);
    assert_eq!(parent.connect, None);
}
