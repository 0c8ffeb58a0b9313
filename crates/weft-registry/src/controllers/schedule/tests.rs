// SPDX-License-Identifier: Apache-2.0
//! Where pods are placed, from Worlds that say it all.

use serde_json::json;

use super::*;

fn world(objects: &[(KindId, &str, Value)]) -> World {
    let mut world = World::new();
    for (i, (kind, namespace, raw)) in objects.iter().enumerate() {
        let mut raw = raw.clone();
        let name = raw["metadata"]["name"].as_str().unwrap().to_owned();
        raw["metadata"]["namespace"] = json!(namespace);
        raw["metadata"]["uid"] = json!(format!("uid-{name}"));
        let key = kind.row().key(namespace, &name);
        world.apply(&key, Some(raw.to_string().as_bytes()), i as u64 + 1);
    }
    world
}

fn node(name: &str, more: Value) -> (KindId, &'static str, Value) {
    let mut raw = json!({
        "metadata": { "name": name, "labels": { "name": name } },
        "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
    });
    for (field, value) in more.as_object().unwrap() {
        for (key, value) in value.as_object().unwrap() {
            raw[field][key] = value.clone();
        }
    }
    (KindId::Node, "", raw)
}

fn pod(name: &str, owner: &str, spec: Value) -> (KindId, &'static str, Value) {
    let raw = json!({
        "metadata": {
            "name": name,
            "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner,
                                  "uid": owner, "controller": true }],
        },
        "spec": spec,
    });
    (KindId::Pod, "shop", raw)
}

fn place(world: &World, name: &str) -> Result<String, String> {
    let pod = world.get(KindId::Pod, "shop", name).unwrap();
    choose(world, pod).map(|n| n.to_string())
}

#[test]
fn pods_that_wait_together_spread_by_owner_and_number() {
    let mut objects: Vec<_> = ["n1", "n2", "n3"].map(|n| node(n, json!({}))).into();
    for owner in ["user", "product"] {
        objects.extend((0..3).map(|i| pod(&format!("{owner}-{i}"), owner, json!({}))));
    }
    let world = world(&objects);
    for owner in ["user", "product"] {
        let mut at: Vec<String> =
            (0..3).map(|i| place(&world, &format!("{owner}-{i}")).unwrap()).collect();
        at.sort();
        assert_eq!(at, ["n1", "n2", "n3"], "{owner}");
    }
}

#[test]
fn what_runs_already_counts() {
    let on = |node: &str| json!({ "nodeName": node });
    let world = world(&[
        node("n1", json!({})),
        node("n2", json!({})),
        pod("a-0", "a", on("n1")),
        pod("a-1", "a", json!({})),
        pod("b-0", "b", on("n2")),
        pod("b-1", "b", on("n2")),
        pod("c-0", "c", json!({})),
    ]);
    // Spreading its owner's pods counts more than an even number of all.
    assert_eq!(place(&world, "a-1").unwrap(), "n2");
    assert_eq!(place(&world, "c-0").unwrap(), "n1");
}

#[test]
fn nodes_that_do_not_do_are_named() {
    let taint = json!({ "taints": [{ "key": "gpu", "value": "yes", "effect": "NoSchedule" }] });
    let unready = json!({ "conditions": [{ "type": "Ready", "status": "False" }] });
    let only = json!({ ALLOWED_ANNOTATION: r#"{"only":[["shop","order"]]}"# });
    let mut objects = vec![
        node("full", json!({ "status": { "allocatable": { "pods": "0" } } })),
        node("off", json!({ "spec": { "unschedulable": true } })),
        node("silent", json!({ "status": unready })),
        node("strict", json!({ "metadata": { "annotations": only } })),
        node("tainted", json!({ "spec": taint })),
        pod("plain", "x", json!({})),
        pod("picky", "x", json!({ "nodeSelector": { "name": "tainted" } })),
        pod("order", "x", json!({ "serviceAccountName": "order" })),
    ];
    for (name, toleration) in [
        ("equal", json!({ "key": "gpu", "value": "yes", "effect": "NoSchedule" })),
        ("exists", json!({ "key": "gpu", "operator": "Exists" })),
        ("all", json!({ "operator": "Exists" })),
        ("wrong", json!({ "key": "gpu", "value": "no" })),
        ("other", json!({ "key": "gpu", "operator": "Exists", "effect": "NoExecute" })),
    ] {
        objects.push(pod(name, name, json!({ "tolerations": [toleration] })));
    }
    let world = world(&objects);
    assert_eq!(
        place(&world, "plain").unwrap_err(),
        "0/5 nodes are available, 2 were not ready or unschedulable, 1 had a taint that the pod \
         does not tolerate, 1 had too many pods, 1 may not run the pod's service account"
    );
    assert!(place(&world, "picky").unwrap_err().contains("4 did not match"));
    assert_eq!(place(&world, "order").unwrap(), "strict");
    for name in ["equal", "exists", "all"] {
        assert_eq!(place(&world, name).unwrap(), "tainted", "{name}");
    }
    for name in ["wrong", "other"] {
        assert!(place(&world, name).is_err(), "{name}");
    }
}

#[test]
fn gateways_are_where_their_address_is_or_where_the_server_is() {
    let joined =
        json!({ "annotations": { JOIN_ANNOTATION: "j1", ALLOWED_ANNOTATION: "\"placed\"" } });
    let at = |ip: &str| json!({ "addresses": [{ "type": "InternalIP", "address": ip }] });
    let gateway = |name: &str, ip: &str| {
        let raw = json!({
            "metadata": { "name": name },
            "spec": { "gatewayClassName": "weft", "listeners": [],
                      "addresses": [{ "type": "IPAddress", "value": ip }] },
        });
        (KindId::Gateway, "shop", raw)
    };
    let gateway_pod = |name: &str, of: &str| {
        let (kind, namespace, mut raw) = pod(name, of, json!({}));
        raw["metadata"]["annotations"] =
            json!({ PROXY_ANNOTATION: "gateway", GATEWAY_ANNOTATION: of });
        (kind, namespace, raw)
    };
    let mut busy: Vec<_> =
        (0..5).map(|i| pod(&format!("x-{i}"), "x", json!({ "nodeName": "server" }))).collect();
    busy.extend([
        node("m1", json!({ "metadata": joined, "status": at("10.9.0.2") })),
        node("server", json!({ "status": at("10.9.0.1") })),
        gateway("local", "127.0.0.1"),
        gateway("edge", "10.9.0.2"),
        gateway_pod("local-0", "local"),
        gateway_pod("edge-0", "edge"),
    ]);
    let world = world(&busy);
    assert_eq!(place(&world, "local-0").unwrap(), "server");
    assert_eq!(place(&world, "edge-0").unwrap(), "m1");
}
