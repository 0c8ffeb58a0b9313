// SPDX-License-Identifier: Apache-2.0
//! What a program finds in its environment.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::pod::{Configs, Data, Upstream};

fn desired(container: Value) -> DesiredPod {
    let upstream = |service: &str, name: &str, port, local_port| Upstream {
        service: service.into(),
        port_name: name.into(),
        port,
        local_port,
        address: None,
    };
    let map = |k: &str, v: &str| BTreeMap::from([(Arc::from(k), Data::Text(v.into()))]);
    DesiredPod {
        object: Arc::new(json!({
            "metadata": {"name": "order-1", "namespace": "shop", "uid": "u1",
                         "labels": {"app": "order"}},
            "spec": {"containers": [container], "serviceAccountName": "order", "nodeName": "n1"},
        })),
        address: "127.64.0.5".parse().unwrap(),
        addresses: vec!["127.64.0.5".parse().unwrap()],
        admin_address: "127.64.0.5".parse().unwrap(),
        mode: PodsMode::Process,
        upstreams: vec![
            upstream("product-api", "http", 80, 20001),
            upstream("product-api", "grpc", 50051, 20002),
            upstream("user", "", 80, 20003),
        ],
        configs: Configs {
            config_maps: BTreeMap::from([("cm".into(), map("mode", "fast"))]),
            secrets: BTreeMap::from([("s".into(), map("pw", "hush"))]),
        },
    }
}

fn env_of(container: Value) -> Result<Env, EnvError> {
    let desired = desired(container);
    let pod = desired.read().unwrap();
    let facts = Facts {
        desired: &desired,
        pod: &pod,
        container: &pod.spec.containers[0],
        proxy: Some((15001, "s3cret")),
        host_ip: "127.0.0.1".parse().unwrap(),
        machine: (2, 8 << 30),
    };
    build(&[("PATH".into(), "/bin".into())], &facts)
}

#[test]
fn a_program_is_told_where_it_is_and_how_to_reach_others() {
    let env = env_of(json!({"ports": [
        {"name": "http", "containerPort": 8080}, {"name": "grpc", "containerPort": 50051}]}))
    .unwrap();
    for (name, value) in [
        ("PATH", "/bin"),
        ("POD_IP", "127.64.0.5"),
        ("POD_NAME", "order-1"),
        ("POD_NAMESPACE", "shop"),
        ("PORT", "8080"),
        ("HTTP_PORT", "8080"),
        ("GRPC_PORT", "50051"),
        ("PRODUCT_API_ADDR", "127.64.0.5:20001"),
        ("PRODUCT_API_ADDR_GRPC", "127.64.0.5:20002"),
        ("PRODUCT_API_SERVICE_HOST", "127.64.0.5"),
        ("PRODUCT_API_SERVICE_PORT", "20001"),
        ("PRODUCT_API_SERVICE_PORT_GRPC", "20002"),
        ("USER_ADDR", "127.64.0.5:20003"),
        ("HTTP_PROXY", "http://pod:s3cret@127.64.0.5:15001"),
        ("http_proxy", "http://pod:s3cret@127.64.0.5:15001"),
        ("NO_PROXY", "localhost,127.0.0.1,::1,127.64.0.5"),
    ] {
        assert_eq!(env.get(name), Some(value), "{name}");
    }
}

#[test]
fn values_come_from_fields_objects_and_earlier_variables() {
    let from = |what: Value| json!({"valueFrom": what});
    let with = |name: &str, mut v: Value| {
        v["name"] = json!(name);
        v
    };
    let env = env_of(json!({
        "resources": {"limits": {"cpu": "1500m", "memory": "64Mi"}},
        "env": [
            {"name": "A", "value": "x"},
            {"name": "B", "value": "$(A)-$(POD_IP)-$(LATER)-$$(A)"},
            {"name": "LATER", "value": "l"},
            with("UID_", from(json!({"fieldRef": {"fieldPath": "metadata.uid"}}))),
            with("APP", from(json!({"fieldRef": {"fieldPath": "metadata.labels['app']"}}))),
            with("CPU", from(json!({"resourceFieldRef": {"resource": "limits.cpu"}}))),
            with("MEM", from(json!({"resourceFieldRef":
                {"resource": "limits.memory", "divisor": "1Mi"}}))),
            with("MODE", from(json!({"configMapKeyRef": {"name": "cm", "key": "mode"}}))),
            with("PW", from(json!({"secretKeyRef": {"name": "s", "key": "pw"}}))),
            with("NOT", from(json!({"secretKeyRef": {"name": "t", "key": "x", "optional": true}}))),
            {"name": "HTTP_PROXY", "value": ""},
        ],
        "envFrom": [{"prefix": "CM_", "configMapRef": {"name": "cm"}}],
    }))
    .unwrap();
    for (name, value) in [
        ("B", "x-127.64.0.5-$(LATER)-$(A)"),
        ("UID_", "u1"),
        ("APP", "order"),
        ("CPU", "2"),
        ("MEM", "64"),
        ("MODE", "fast"),
        ("PW", "hush"),
        ("CM_mode", "fast"),
        ("HTTP_PROXY", ""),
    ] {
        assert_eq!(env.get(name), Some(value), "{name}");
    }
    assert_eq!(env.get("NOT"), None);
}

#[test]
fn what_is_missing_is_named() {
    let check = |from: Value, expect: &str| {
        let text = env_of(json!({"env": [{"name": "X", "valueFrom": from}]})).unwrap_err();
        assert!(text.to_string().contains(expect), "{text}");
    };
    check(json!({"configMapKeyRef": {"name": "no", "key": "k"}}), "no ConfigMap \"no\"");
    check(json!({"secretKeyRef": {"name": "s", "key": "k"}}), "Secret \"s\" has no key \"k\"");
    check(json!({"fieldRef": {"fieldPath": "spec.x"}}), "\"spec.x\"");
    check(json!({"resourceFieldRef": {"resource": "limits.gpu"}}), "limits.gpu");
}

#[test]
fn expansion_is_kubernetes() {
    let mut env = Env::default();
    env.set("A", "1");
    env.set("B", "$(A)");
    for (input, expect) in [
        ("$(A)", "1"),
        ("$(B)", "$(A)"),
        ("$(X)", "$(X)"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$(A", "$(A"),
        ("$A", "$A"),
        ("a$", "a$"),
        ("$()", "$()"),
        ("\u{e4}$(A)\u{e4}", "\u{e4}1\u{e4}"),
    ] {
        assert_eq!(env.expand(input), expect, "{input}");
    }
}

#[test]
fn quantities() {
    for (text, milli) in [
        (json!("100m"), Some(100)),
        (json!("2"), Some(2000)),
        (json!(2), Some(2000)),
        (json!("0.5"), Some(500)),
        (json!("1Ki"), Some(1_024_000)),
        (json!("x"), None),
        (json!("1Q"), None),
    ] {
        assert_eq!(quantity_milli(&text), milli, "{text}");
    }
}

#[test]
fn in_namespaces_services_are_at_their_own_addresses() {
    let mut desired = desired(json!({"name": "c", "ports": [{"containerPort": 8080}]}));
    desired.mode = PodsMode::Namespace;
    for (index, upstream) in desired.upstreams.iter_mut().enumerate() {
        // The last is headless.
        upstream.address = (index < 2).then(|| "10.96.1.2".parse().unwrap());
    }
    let pod = desired.read().unwrap();
    let facts = Facts {
        desired: &desired,
        pod: &pod,
        container: &pod.spec.containers[0],
        proxy: Some((15001, "hush")),
        host_ip: "127.0.0.1".parse().unwrap(),
        machine: (2, 1 << 30),
    };
    let env = build(&[], &facts).unwrap();
    assert_eq!(env.get("PRODUCT_API_SERVICE_HOST"), Some("10.96.1.2"));
    assert_eq!(env.get("PRODUCT_API_SERVICE_PORT"), Some("80"));
    assert_eq!(env.get("PRODUCT_API_SERVICE_PORT_GRPC"), Some("50051"));
    assert_eq!(env.get("PRODUCT_API_ADDR_GRPC"), Some("10.96.1.2:50051"));
    assert_eq!((env.get("USER_ADDR"), env.get("HTTP_PROXY")), (None, None));
}
