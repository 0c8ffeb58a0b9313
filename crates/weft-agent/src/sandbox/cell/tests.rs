// SPDX-License-Identifier: Apache-2.0
//! What a pod's own files and mounts say, without any namespace.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use weft_kinds::world::PodsMode;

use super::*;
use crate::pod::Configs;

fn desired(spec: Value) -> DesiredPod {
    DesiredPod {
        object: Arc::new(json!({
            "metadata": {"name": "user-1", "namespace": "shop", "uid": "u1"}, "spec": spec,
        })),
        address: "10.244.1.2".parse().unwrap(),
        addresses: vec!["10.244.1.2".parse().unwrap(), "fd00:7766::aaf4:102".parse().unwrap()],
        admin_address: "127.64.0.5".parse().unwrap(),
        mode: PodsMode::Namespace,
        upstreams: Vec::new(),
        configs: Configs::default(),
    }
}

#[test]
fn hosts_names_the_pod_and_its_aliases() {
    let desired = desired(json!({
        "hostname": "db-0", "subdomain": "db",
        "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["old", "older"]}],
    }));
    let text = hosts(&desired.read().unwrap(), &desired);
    assert!(text.contains("10.244.1.2\tdb-0.db.shop.svc.cluster.local\tdb-0\n"), "{text}");
    assert!(text.contains("fd00:7766::aaf4:102\tdb-0.db"), "{text}");
    assert!(text.contains("10.0.0.1\told\tolder\n"), "{text}");
}

#[test]
fn names_are_looked_for_as_in_a_cluster() {
    let of = |spec: Value| resolver(&desired(spec).read().unwrap());
    let usual = of(json!({}));
    assert!(usual.contains("search shop.svc.cluster.local svc.cluster.local cluster.local\n"));
    assert!(usual.contains("nameserver 10.96.0.10\n") && usual.contains("options ndots:5\n"));
    let own = of(json!({"dnsConfig": {"searches": ["x.y"],
        "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}));
    assert!(
        own.contains("cluster.local x.y\n") && own.contains("options ndots:2 edns0\n"),
        "{own}"
    );
    let none = of(json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["9.9.9.9"]}}));
    assert_eq!(none, "nameserver 9.9.9.9\n");
}

#[test]
fn mounts_come_outer_before_inner_and_refuse_ways_out() {
    let dir = tempfile::tempdir().unwrap();
    let plan: BTreeMap<Arc<str>, Content> = [
        ("data".into(), Content::Empty { memory: None }),
        ("conf".into(), Content::Files(volumes::Files::new())),
    ]
    .into();
    let of = |mounts: Value| {
        let desired = desired(json!({"containers": [{"name": "c", "volumeMounts": mounts}]}));
        let pod = desired.read().unwrap();
        let mut env = Env::default();
        env.set("POD_NAME", "user-1");
        super::mounts(dir.path(), &pod.spec.containers[0], &plan, &env)
    };
    let got = of(json!([
        {"name": "conf", "mountPath": "/data/conf"},
        {"name": "data", "mountPath": "/data", "subPathExpr": "$(POD_NAME)/x"},
        {"name": "conf", "mountPath": "/etc/hosts", "subPath": "hosts"},
    ]))
    .unwrap();
    let targets: Vec<&str> = got.iter().map(|m| m.target.to_str().unwrap()).collect();
    assert_eq!(targets, ["/data", "/etc/hostname", "/etc/resolv.conf", "/data/conf", "/etc/hosts"]);
    assert!(got.iter().filter(|m| m.target.starts_with("/data/conf")).all(|m| m.read_only));
    assert_eq!(got[0].beneath.as_deref(), Some(Path::new("user-1/x")));
    assert!(dir.path().join("volumes/data/user-1/x").is_dir());
    for bad in [
        json!([{"name": "nothing", "mountPath": "/x"}]),
        json!([{"name": "data", "mountPath": "x"}]),
        json!([{"name": "data", "mountPath": "/x/../y"}]),
        json!([{"name": "data", "mountPath": "/x", "subPath": "../y"}]),
    ] {
        of(bad).unwrap_err();
    }
}

#[test]
fn what_is_not_captured_is_read_from_annotations() {
    let mut desired = desired(json!({}));
    let mut object = Value::clone(&desired.object);
    object["metadata"]["annotations"] = json!({
        "weft.dev/exclude-inbound-ports": "9000, nine, 9001",
        "traffic.sidecar.istio.io/excludeOutboundIPRanges": "10.1.0.0/16,fd00::1,1.2.3.4/99",
    });
    desired.object = Arc::new(object);
    let capture = Capture::of(&desired.read().unwrap());
    assert_eq!(capture.exclude_inbound_ports, [9000, 9001]);
    let wanted = [("10.1.0.0".parse().unwrap(), 16), ("fd00::1".parse().unwrap(), 128)];
    assert_eq!(capture.exclude_outbound, wanted);
}
