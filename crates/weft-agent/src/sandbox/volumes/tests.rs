// SPDX-License-Identifier: Apache-2.0
//! Volumes: what is planned from a pod, and updates that no reader sees half.

use serde_json::{Value, json};
use weft_kinds::world::PodsMode;

use super::*;
use crate::pod::{Configs, Data};

fn desired(volume: Value) -> DesiredPod {
    let map = |k: &str, v: &str| BTreeMap::from([(Arc::from(k), Data::Text(v.into()))]);
    let bytes = BTreeMap::from([(Arc::from("raw"), Data::of(vec![0xff, 0]))]);
    DesiredPod {
        object: Arc::new(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"app": "x"}},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "500m"}}}],
                     "volumes": [volume]},
        })),
        address: "10.244.1.2".parse().unwrap(),
        addresses: Vec::new(),
        admin_address: "127.64.0.5".parse().unwrap(),
        mode: PodsMode::Namespace,
        upstreams: Vec::new(),
        configs: Configs {
            config_maps: BTreeMap::from([("cm".into(), map("mode", "fast"))]),
            secrets: BTreeMap::from([("s".into(), bytes)]),
        },
    }
}

fn planned(volume: Value) -> Result<Content, VolumeError> {
    let mut volume = volume;
    volume["name"] = json!("v");
    let desired = desired(volume);
    let pod = desired.read().unwrap();
    let facts = Facts {
        desired: &desired,
        pod: &pod,
        container: &pod.spec.containers[0],
        proxy: None,
        host_ip: "127.0.0.1".parse().unwrap(),
        machine: (2, 1 << 30),
    };
    plan(&facts, &[PathBuf::from("/var/lib/weft")]).map(|mut p| p.remove("v").unwrap())
}

fn text(content: &Content) -> Vec<(String, String, u32)> {
    let Content::Files(files) = content else { panic!("{content:?}") };
    let row = |(p, (b, m)): (&String, &(Arc<[u8]>, u32))| {
        (p.clone(), String::from_utf8_lossy(b).into_owned(), *m)
    };
    files.iter().map(row).collect()
}

#[test]
fn config_maps_secrets_and_fields_become_files() {
    let all = planned(json!({"configMap": {"name": "cm", "defaultMode": 0o440}})).unwrap();
    assert_eq!(text(&all), [("mode".into(), "fast".into(), 0o440)]);
    let chosen = planned(json!({"configMap": {"name": "cm",
        "items": [{"key": "mode", "path": "a/b", "mode": 0o600}]}}));
    assert_eq!(text(&chosen.unwrap()), [("a/b".into(), "fast".into(), 0o600)]);
    let Content::Files(secret) = planned(json!({"secret": {"secretName": "s"}})).unwrap() else {
        panic!("no files")
    };
    assert_eq!(*secret["raw"].0, [0xff, 0]);
    let fields = planned(json!({"projected": {"sources": [
        {"downwardAPI": {"items": [
            {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
            {"path": "cpu", "resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}]}},
        {"configMap": {"name": "cm"}}, {"secret": {"name": "none", "optional": true}},
        {"serviceAccountToken": {"path": "token"}}]}}));
    let names = [("cpu", "500"), ("labels", "app=\"x\""), ("mode", "fast")];
    let names = names.map(|(n, v)| (n.to_owned(), v.to_owned(), 0o644));
    assert_eq!(text(&fields.unwrap()), names);
}

#[test]
fn what_is_missing_or_leads_out_is_refused() {
    for (volume, part) in [
        (json!({"configMap": {"name": "none"}}), "no ConfigMap"),
        (json!({"configMap": {"name": "cm", "items": [{"key": "k", "path": "k"}]}}), "no key"),
        (json!({"configMap": {"name": "cm", "items": [{"key": "mode", "path": "../k"}]}}), "`..`"),
        (json!({"nfs": {"server": "x"}}), "nfs"),
        (json!({"hostPath": {"path": "/"}}), "weft's own data"),
        (json!({"hostPath": {"path": "/no/such"}}), "is not there"),
        (json!({"emptyDir": {"sizeLimit": "much"}}), "sizeLimit"),
    ] {
        let why = planned(volume.clone()).unwrap_err().to_string();
        assert!(why.contains(part), "{volume}: {why}");
    }
    let memory = planned(json!({"emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}));
    assert_eq!(memory.unwrap(), Content::Empty { memory: Some(1 << 20) });
}

#[test]
fn an_update_changes_all_files_at_once_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let files = |list: &[(&str, &str)]| -> Files {
        list.iter().map(|(p, b)| ((*p).to_owned(), (b.as_bytes().into(), 0o644))).collect()
    };
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).ok();
    write(dir.path(), &files(&[("a", "1"), ("sub/b", "1"), ("gone", "1")]), None).unwrap();
    assert_eq!((read("a"), read("sub/b")), (Some("1".into()), Some("1".into())));
    let before = std::fs::read_link(dir.path().join("..data")).unwrap();
    // The same again is no update.
    write(dir.path(), &files(&[("a", "1"), ("sub/b", "1"), ("gone", "1")]), None).unwrap();
    assert_eq!(std::fs::read_link(dir.path().join("..data")).unwrap(), before);
    // Someone who holds the directory open sees the old content to the end.
    let held = std::fs::File::open(dir.path().join("a")).unwrap();
    write(dir.path(), &files(&[("a", "2"), ("sub/b", "2")]), None).unwrap();
    assert_eq!(std::io::read_to_string(held).unwrap(), "1");
    assert_eq!(
        (read("a"), read("sub/b"), read("gone")),
        (Some("2".into()), Some("2".into()), None)
    );
    let left = std::fs::read_dir(dir.path()).unwrap().flatten().count();
    assert_eq!(left, 4, "..data, its directory, a, sub");
}
