// SPDX-License-Identifier: Apache-2.0
//! Objects through their public door, over a real (memory) store.

use std::sync::Arc;

use serde_json::json;
use weft_base::clock::{Clock, ManualClock};
use weft_base::task::TaskGroup;
use weft_store::{MemoryStore, Store};

use super::*;

const USER: WriteOptions = WriteOptions { dry_run: false, system: false };
const CM: KindId = KindId::ConfigMap;

async fn registry() -> (Registry, Arc<ManualClock>) {
    let (clock, time) = Clock::manual();
    let store = Arc::new(MemoryStore::new(clock.clone()));
    (Registry::open(store, clock, TaskGroup::new()).await.unwrap(), time)
}

async fn objects() -> Objects {
    registry().await.0.objects()
}

fn named(name: &str) -> Value {
    json!({ "metadata": { "name": name } })
}

fn deployment(replicas: u32) -> Value {
    json!({ "metadata": { "name": "web" }, "spec": { "replicas": replicas } })
}

fn foreground() -> DeleteOptions {
    DeleteOptions { propagation: Some(Propagation::Foreground), ..DeleteOptions::default() }
}

fn spec<'a>(kind: KindId, name: &'a str) -> Change<'a> {
    Change { kind, namespace: "default", name, part: Part::Spec, options: USER }
}

#[tokio::test]
async fn a_new_object_gets_what_the_server_gives() {
    let o = objects().await;
    let mut raw = deployment(2);
    raw["status"] = json!({ "replicas": 99 });
    let made = o.create(KindId::Deployment, "default", raw, USER).await.unwrap();
    let meta = &made["metadata"];
    assert_eq!(meta["namespace"], "default");
    assert_eq!(meta["generation"], 1);
    assert_eq!(meta["creationTimestamp"], "2023-11-14T22:13:20Z");
    let uid: uuid::Uuid = meta["uid"].as_str().unwrap().parse().unwrap();
    assert_eq!(uid.get_version_num(), 7);
    assert_eq!((&made["apiVersion"], &made["kind"]), (&json!("apps/v1"), &json!("Deployment")));
    assert_eq!(made["status"], json!({}), "a user writes no status");
    assert_eq!(o.get(KindId::Deployment, "default", "web").unwrap(), made, "read your own write");
    let again = o.create(KindId::Deployment, "default", deployment(1), USER).await.unwrap_err();
    assert_eq!(again.to_string(), "deployments.apps \"web\" already exists");
    assert_eq!((again.code(), again.reason()), (409, "AlreadyExists"));
}

#[tokio::test]
async fn names_are_generated_and_judged() {
    let o = objects().await;
    let raw = json!({ "metadata": { "generateName": "job-" } });
    let a = o.create(CM, "default", raw.clone(), USER).await.unwrap();
    let b = o.create(CM, "default", raw, USER).await.unwrap();
    let (a, b) = (text(&a, "name").to_owned(), text(&b, "name").to_owned());
    assert!(a.starts_with("job-") && a.len() == 9 && a != b, "{a} {b}");
    for bad in [json!({}), named("Not_a_Name"), named("a/b")] {
        let err = o.create(CM, "default", bad, USER).await.unwrap_err();
        assert_eq!(err.code(), 422, "{err}");
        assert!(err.to_string().contains("metadata.name"), "{err}");
    }
    let err = o.create(CM, "nowhere", named("a"), USER).await.unwrap_err();
    assert_eq!(err.to_string(), "namespaces \"nowhere\" not found");
}

#[tokio::test]
async fn an_object_of_no_form_is_refused_with_the_field() {
    let o = objects().await;
    for (raw, field) in [
        (json!({ "metadata": { "name": "a" }, "spec": "text" }), "spec"),
        (json!({ "metadata": { "name": "a" }, "status": [1] }), "status"),
        (json!({ "metadata": { "name": "a", "labels": ["x"] } }), "metadata.labels"),
        (json!({ "metadata": { "name": "a", "annotations": { "x": 1 } } }), "metadata.annotations"),
        (json!({ "metadata": "a" }), "metadata"),
        (json!(["a"]), "an object is expected"),
    ] {
        for kind in [KindId::Service, KindId::Namespace, KindId::Pod, KindId::Gateway] {
            let err = o.create(kind, "default", raw.clone(), USER).await.unwrap_err();
            assert_eq!(err.code(), 422, "{kind} {raw}");
            assert!(err.to_string().contains(field), "{err}");
        }
    }
}

#[tokio::test]
async fn a_change_of_the_spec_moves_the_generation_and_a_status_does_not() {
    let o = objects().await;
    let made = o.create(KindId::Deployment, "default", deployment(2), USER).await.unwrap();
    let mut new = made.clone();
    new["spec"]["replicas"] = json!(3);
    new["status"] = json!({ "replicas": 7 });
    let changed = o.update(KindId::Deployment, "default", new, Part::Spec, USER).await.unwrap();
    assert_eq!(changed["metadata"]["generation"], 2);
    assert_eq!(changed["status"], json!({}), "not through the main resource");
    let status = json!({ "replicas": 3 });
    let write = || o.write_status(KindId::Deployment, "default", "web", &status);
    assert!(write().await.unwrap());
    let now = o.get(KindId::Deployment, "default", "web").unwrap();
    assert_eq!((&now["metadata"]["generation"], &now["status"]), (&json!(2), &status));
    assert!(!write().await.unwrap(), "an equal status writes nothing");
    let same = o.update(KindId::Deployment, "default", now.clone(), Part::Spec, USER).await;
    assert_eq!(same.unwrap(), now, "an equal object moves no resourceVersion");
}

#[tokio::test]
async fn a_stale_writer_is_told() {
    let o = objects().await;
    let made = o.create(CM, "default", named("a"), USER).await.unwrap();
    let mut new = made.clone();
    new["data"] = json!({ "k": "1" });
    o.update(CM, "default", new.clone(), Part::Spec, USER).await.unwrap();
    new["data"] = json!({ "k": "2" });
    let err = o.update(CM, "default", new.clone(), Part::Spec, USER).await.unwrap_err();
    assert_eq!((err.code(), err.reason()), (409, "Conflict"));
    assert!(err.to_string().contains("the object has been modified"), "{err}");
    metadata(&mut new).remove("resourceVersion");
    o.update(CM, "default", new.clone(), Part::Spec, USER).await.unwrap();
    metadata(&mut new).insert("uid".into(), json!("other"));
    let err = o.update(CM, "default", new, Part::Spec, USER).await.unwrap_err();
    assert!(err.to_string().contains("UID in precondition"), "{err}");
}

fn metadata(object: &mut Value) -> &mut serde_json::Map<String, Value> {
    meta::metadata_mut(object)
}

#[tokio::test]
async fn concurrent_modifications_all_happen() {
    let o = objects().await;
    o.create(CM, "default", json!({ "metadata": { "name": "n" }, "data": { "n": "0" } }), USER)
        .await
        .unwrap();
    let one = |o: Objects| async move {
        for _ in 0..5 {
            o.modify(spec(CM, "n"), |old| {
                let n: u32 = old["data"]["n"].as_str().unwrap().parse().unwrap();
                let mut new = old.clone();
                new["data"]["n"] = json!((n + 1).to_string());
                Ok(new)
            })
            .await
            .unwrap();
        }
    };
    futures_util::future::join_all((0..4).map(|_| one(o.clone()))).await;
    assert_eq!(o.get(CM, "default", "n").unwrap()["data"]["n"], "20");
}

#[tokio::test]
async fn finalizers_hold_an_object_until_the_last_is_gone() {
    let o = objects().await;
    let raw = json!({ "metadata": { "name": "a", "finalizers": ["x/y"] } });
    o.create(CM, "default", raw, USER).await.unwrap();
    let deleted = o.delete(CM, "default", "a", &DeleteOptions::default()).await.unwrap();
    assert!(!deleted.gone);
    let held = o.get(CM, "default", "a").unwrap();
    assert!(meta::is_deleting(&held));
    let more = o.modify(spec(CM, "a"), |old| {
        let mut new = old.clone();
        metadata(&mut new).insert("finalizers".into(), json!(["x/y", "late"]));
        Ok(new)
    });
    assert_eq!(more.await.unwrap_err().code(), 403);
    o.modify(spec(CM, "a"), |old| Ok(meta::without_finalizer(old, "x/y"))).await.unwrap();
    assert_eq!(o.get(CM, "default", "a").unwrap_err().code(), 404);
}

#[tokio::test]
async fn a_deletion_is_refused_unless_its_preconditions_hold() {
    let o = objects().await;
    let made = o.create(CM, "default", named("a"), USER).await.unwrap();
    let with = |preconditions| DeleteOptions { preconditions, ..DeleteOptions::default() };
    let wrong = Preconditions { uid: Some("other".into()), revision: None };
    assert_eq!(o.delete(CM, "default", "a", &with(wrong)).await.unwrap_err().code(), 409);
    let right = Preconditions { uid: Some(text(&made, "uid").into()), revision: None };
    assert!(o.delete(CM, "default", "a", &with(right)).await.unwrap().gone);
    let err = o.delete(CM, "default", "a", &DeleteOptions::default()).await.unwrap_err();
    assert_eq!(err.to_string(), "configmaps \"a\" not found");
    let err = o.delete(KindId::Namespace, "", "default", &foreground()).await.unwrap_err();
    assert_eq!(err.code(), 403);
}

#[tokio::test]
async fn a_running_pod_is_given_time_and_goes_when_its_agent_says_so() {
    let o = objects().await;
    let pod = json!({
        "metadata": { "name": "p" },
        "spec": { "nodeName": "n", "terminationGracePeriodSeconds": 5 },
        "status": { "podIP": "127.64.0.9" },
    });
    o.create(KindId::Pod, "default", pod, WriteOptions::SYSTEM).await.unwrap();
    let kill = |grace_s| DeleteOptions { grace_s, ..DeleteOptions::default() };
    let marked = o.delete(KindId::Pod, "default", "p", &kill(None)).await.unwrap();
    assert_eq!(marked.object["metadata"]["deletionGracePeriodSeconds"], 5);
    assert!(!marked.gone);
    let status = json!({ "phase": "Running" });
    o.write_status(KindId::Pod, "default", "p", &status).await.unwrap();
    let now = o.get(KindId::Pod, "default", "p").unwrap();
    assert_eq!(now["status"], json!({ "phase": "Running", "podIP": "127.64.0.9" }));
    assert!(o.delete(KindId::Pod, "default", "p", &kill(Some(0))).await.unwrap().gone);
}

#[tokio::test]
async fn a_pod_that_is_always_restarted_does_not_end() {
    let o = objects().await;
    let pod = |name: &str, policy: &str| {
        json!({ "metadata": { "name": name }, "spec": { "nodeName": "n", "restartPolicy": policy },
            "status": { "phase": "Running" } })
    };
    for (name, policy) in [("a", "Always"), ("b", "Never"), ("c", "Always")] {
        let made = o.create(KindId::Pod, "default", pod(name, policy), WriteOptions::SYSTEM);
        made.await.unwrap();
    }
    let phase = async |name: &str, status: Value| {
        o.write_status(KindId::Pod, "default", name, &status).await.unwrap();
        o.get(KindId::Pod, "default", name).unwrap()["status"]["phase"].clone()
    };
    let ended = json!({ "phase": "Succeeded", "conditions": [] });
    assert_eq!(phase("a", ended.clone()).await, "Running", "its agent was stopped");
    assert_eq!(phase("b", ended.clone()).await, "Succeeded");
    assert_eq!(phase("c", json!({ "phase": "Failed", "reason": "Evicted" })).await, "Failed");
    o.delete(KindId::Pod, "default", "a", &DeleteOptions::default()).await.unwrap();
    assert_eq!(phase("a", ended).await, "Succeeded", "it was to end");
}

#[tokio::test]
async fn services_and_gateways_get_addresses_of_their_own() {
    let (registry, _) = registry().await;
    let o = registry.objects();
    let service = |name: &str| {
        json!({
            "metadata": { "name": name },
            "spec": { "ports": [{ "port": 80 }, { "name": "grpc", "port": 50051 }] },
        })
    };
    let mut seen = std::collections::BTreeSet::new();
    for i in 0..50 {
        let made = o.create(KindId::Service, "default", service(&format!("s{i}")), USER);
        let made = made.await.unwrap();
        let ip: std::net::IpAddr = made["spec"]["clusterIP"].as_str().unwrap().parse().unwrap();
        assert!(addresses::is_given(ip));
        assert!(seen.insert(ip.to_string()), "{ip} was given twice");
        let ports = admit::annotation(&made, admit::UPSTREAM_PORTS_ANNOTATION);
        let ports: std::collections::BTreeMap<String, u16> = serde_json::from_str(ports).unwrap();
        assert_eq!(ports.keys().collect::<Vec<_>>(), ["50051", "80"]);
        assert!(ports.values().all(|p| seen.insert(p.to_string())), "a port was given twice");
    }
    let before = o.get(KindId::Service, "default", "s7").unwrap();
    // A port more: the others keep their places. The address is not lost by leaving it out.
    let mut more = service("s7");
    more["spec"]["ports"] = json!([{ "port": 80 }, { "port": 81 }]);
    let after = o.update(KindId::Service, "default", more, Part::Spec, USER).await.unwrap();
    assert_eq!(after["spec"]["clusterIP"], before["spec"]["clusterIP"]);
    let ports = |v: &Value| -> Value {
        serde_json::from_str(admit::annotation(v, admit::UPSTREAM_PORTS_ANNOTATION)).unwrap()
    };
    assert_eq!(ports(&after)["80"], ports(&before)["80"]);
    assert_eq!(ports(&after).as_object().unwrap().len(), 2);
    // Deleted and made again: the same place, and nothing is left behind.
    let held =
        || registry.now().settings().filter(|(_, v)| v["owner"] == "Service default/s7").count();
    assert_eq!(held(), 3, "an address and two ports");
    o.delete(KindId::Service, "default", "s7", &DeleteOptions::default()).await.unwrap();
    assert_eq!(held(), 0);
    let again = o.create(KindId::Service, "default", service("s7"), USER).await.unwrap();
    assert_eq!(again["spec"]["clusterIP"], before["spec"]["clusterIP"]);

    let gateway = json!({ "metadata": { "name": "g" }, "spec": { "gatewayClassName": "weft" } });
    let made = o.create(KindId::Gateway, "default", gateway, USER).await.unwrap();
    assert!(admit::annotation(&made, admit::ADDRESS_ANNOTATION).starts_with("127.1"));
    let chosen = json!({ "metadata": { "name": "h" }, "spec": { "gatewayClassName": "weft",
        "addresses": [{ "value": "127.0.0.1" }] } });
    let made = o.create(KindId::Gateway, "default", chosen, USER).await.unwrap();
    assert_eq!(admit::annotation(&made, admit::ADDRESS_ANNOTATION), "");
}

#[tokio::test]
async fn a_gateway_has_no_address_of_another_object() {
    let (registry, _) = registry().await;
    let o = registry.objects();
    let gateway = |name: &str, noted: &str, asked: &[&str]| {
        let asked: Vec<Value> = asked.iter().map(|ip| json!({ "value": ip })).collect();
        json!({ "metadata": { "name": name, "annotations": { admit::ADDRESS_ANNOTATION: noted } },
            "spec": { "gatewayClassName": "weft", "addresses": asked } })
    };
    let create = |raw| o.create(KindId::Gateway, "default", raw, USER);
    let held = |name: &str| {
        let owner = format!("Gateway default/{name}");
        let now = registry.now();
        let all = now.settings().filter(|(_, v)| v["owner"] == *owner);
        all.map(|(at, _)| at.trim_start_matches("addresses/").to_owned()).collect::<Vec<_>>()
    };
    let service = json!({ "metadata": { "name": "s" }, "spec": { "ports": [{ "port": 80 }] } });
    let service = o.create(KindId::Service, "default", service, USER).await.unwrap();
    let service = service["spec"]["clusterIP"].as_str().unwrap().to_owned();
    let victim = create(gateway("a", "", &[])).await.unwrap();
    let given = admit::annotation(&victim, admit::ADDRESS_ANNOTATION).to_owned();
    assert_eq!(held("a"), [given.as_str()]);
    for (ip, by) in [(&*given, "Gateway default/a"), (&*service, "Service default/s")] {
        let error = create(gateway("b", "", &["127.0.0.1", ip])).await.unwrap_err().to_string();
        assert!(error.contains("spec.addresses") && error.contains(by), "{error}");
        // An annotation that is not its own counts for nothing.
        let name = format!("c{}", ip.replace('.', "-"));
        let made = create(gateway(&name, ip, &[])).await.unwrap();
        let own = admit::annotation(&made, admit::ADDRESS_ANNOTATION).to_owned();
        assert!(own != *ip && held(&name) == [own], "{made}");
    }
    // A free one is held, so that nobody is given it, and let go when it is asked for no more.
    let mut made = create(gateway("d", "", &["127.128.7.7", "192.0.2.1"])).await.unwrap();
    assert_eq!(held("d"), ["127.128.7.7"]);
    assert!(create(gateway("e", "", &["127.128.7.7"])).await.is_err());
    made["spec"]["addresses"] = json!([{ "value": "127.128.7.8" }]);
    o.update(KindId::Gateway, "default", made, Part::Spec, USER).await.unwrap();
    assert_eq!(held("d"), ["127.128.7.8"]);
    create(gateway("e", "", &["127.128.7.7"])).await.unwrap();
    o.delete(KindId::Gateway, "default", "e", &DeleteOptions::default()).await.unwrap();
    assert!(held("e").is_empty());
    // What is nobody's to give may be said by hand.
    let made = create(gateway("f", "127.0.0.1", &[])).await.unwrap();
    assert_eq!(admit::annotation(&made, admit::ADDRESS_ANNOTATION), "127.0.0.1");
    assert!(held("f").is_empty());
}

#[tokio::test]
async fn an_address_that_a_user_chose_is_honoured_or_refused() {
    let o = objects().await;
    let service = |name: &str, ip: &str| {
        json!({
            "metadata": { "name": name }, "spec": { "clusterIP": ip, "ports": [{ "port": 80 }] }
        })
    };
    let create = |raw| o.create(KindId::Service, "default", raw, USER);
    assert_eq!(
        create(service("a", "127.96.1.1")).await.unwrap()["spec"]["clusterIP"],
        "127.96.1.1"
    );
    let err = create(service("b", "127.96.1.1")).await.unwrap_err().to_string();
    assert!(
        err.contains("spec.clusterIP") && err.contains("allocated to Service default/a"),
        "{err}"
    );
    let err = create(service("b", "10.0.0.1")).await.unwrap_err().to_string();
    assert!(err.contains("127.96.0.0/12"), "{err}");
    assert_eq!(create(service("h", "None")).await.unwrap()["spec"]["clusterIP"], "None");
    let moved = o.update(KindId::Service, "default", service("a", "127.96.1.2"), Part::Spec, USER);
    assert!(moved.await.unwrap_err().to_string().contains("immutable"));
}

#[tokio::test]
async fn what_another_door_made_is_read_only() {
    let o = objects().await;
    let raw = json!({
        "metadata": { "name": "web", "annotations": { "weft.dev/owner": "consul" } },
        "spec": { "ports": [{ "port": 80 }] },
    });
    let err = o.create(KindId::Service, "default", raw.clone(), USER).await.unwrap_err();
    assert_eq!(err.code(), 409);
    o.create(KindId::Service, "default", raw.clone(), WriteOptions::SYSTEM).await.unwrap();
    let err =
        o.update(KindId::Service, "default", named("web"), Part::Spec, USER).await.unwrap_err();
    assert!(err.to_string().contains("owned by the consul door"), "{err}");
    let err = o.delete(KindId::Service, "default", "web", &DeleteOptions::default()).await;
    assert_eq!(err.unwrap_err().code(), 409);
}

#[tokio::test]
async fn a_name_that_consul_clients_registered_is_taken() {
    let o = objects().await;
    let record = json!({ "id": "web", "service": "web", "node": "n", "namespace": "default" });
    let txn = Txn::of([Op::put("/c/i/default/n/web", record.to_string())]);
    let out = o.registry.store().txn(txn).await.unwrap();
    o.registry.wait_revision(out.revision).await;
    let raw = json!({ "metadata": { "name": "web" }, "spec": { "ports": [{ "port": 80 }] } });
    let err = o.create(KindId::Service, "default", raw, USER).await.unwrap_err();
    assert!(err.to_string().contains("owned by the consul door"), "{err}");
}

#[tokio::test]
async fn a_restarted_agent_begins_with_nothing_ready() {
    let (registry, _) = registry().await;
    let o = registry.objects();
    let info = crate::NodeInfo {
        name: "laptop".into(),
        address: std::net::Ipv4Addr::LOCALHOST.into(),
        version: "v0.1.0".into(),
        kernel: "6.1".into(),
        cpus: 2,
        memory_bytes: 1 << 30,
        pods_max: 250,
    };
    registry.register_node(&info).await.unwrap();
    let pod = |name: &str, phase: &str| {
        json!({
            "metadata": { "name": name },
            "spec": { "nodeName": "laptop" },
            "status": { "phase": phase, "podIP": "127.64.0.9",
                "conditions": [{ "type": "Ready", "status": "True" },
                    { "type": "X", "status": "True" }],
                "containerStatuses": [{ "name": "c", "ready": true, "restartCount": 3 }] },
        })
    };
    for (name, phase) in [("a", "Running"), ("done", "Succeeded")] {
        o.create(KindId::Pod, "default", pod(name, phase), WriteOptions::SYSTEM).await.unwrap();
    }
    registry.node_gone("laptop", "it is stopping").await.unwrap();
    let ready = || o.get(KindId::Node, "", "laptop").unwrap()["status"]["conditions"][0].clone();
    assert_eq!((&ready()["status"], &ready()["reason"]), (&json!("False"), &json!("AgentGone")));
    registry.register_node(&info).await.unwrap();
    assert_eq!(ready()["status"], "True");
    let status = |name: &str| o.get(KindId::Pod, "default", name).unwrap()["status"].clone();
    let a = status("a");
    assert_eq!(a["conditions"][0]["status"], "False");
    assert_eq!(a["conditions"][1]["status"], "True");
    assert_eq!(
        a["containerStatuses"][0],
        json!({ "name": "c", "ready": false, "restartCount": 3 })
    );
    assert_eq!(a["podIP"], "127.64.0.9");
    assert_eq!(status("done"), pod("done", "Succeeded")["status"]);
}

/// The next World, soon.
async fn changed(world: &mut weft_base::snapshot::Snapshot<World>) {
    let limit = std::time::Duration::from_secs(60);
    assert!(tokio::time::timeout(limit, world.changed()).await.expect("nothing changes any more"));
}

#[tokio::test]
async fn events_are_counted_bounded_and_forgotten() {
    let (registry, time) = registry().await;
    let o = registry.objects();
    o.create(CM, "default", named("a"), USER).await.unwrap();
    let object = registry.now().get(CM, "default", "a").unwrap().clone();
    let note = |text: &str| crate::EventNote::about(&object, "Tested", text).by("test");
    let seen = async |n: usize, count: u64| {
        let mut world = registry.world();
        loop {
            let (_, events) = o.list(KindId::Event, Some("default"));
            if events.len() == n && events.iter().any(|e| e["count"] == count) {
                return events;
            }
            changed(&mut world).await;
        }
    };
    for _ in 0..3 {
        registry.note(note("the same"));
    }
    let events = seen(1, 3).await;
    assert_eq!(events[0]["involvedObject"]["name"], "a");
    assert_eq!(events[0]["involvedObject"]["uid"], *object.meta.uid);
    assert_eq!((&events[0]["reason"], &events[0]["type"]), (&json!("Tested"), &json!("Normal")));
    let own = json!({ "metadata": { "name": "by.hand" }, "reason": "Own", "count": 9 });
    o.create(KindId::Event, "default", own, USER).await.unwrap();
    seen(2, 9).await;
    o.delete(KindId::Event, "default", "by.hand", &DeleteOptions::default()).await.unwrap();
    let again = json!({ "metadata": { "name": "by.hand" }, "reason": "Own", "count": 9 });
    registry.note(note("another").warning());
    assert_eq!(seen(2, 3).await.iter().filter(|e| e["type"] == "Warning").count(), 1);
    o.create(KindId::Event, "default", again, USER).await.unwrap();
    time.advance(std::time::Duration::from_secs(2 * 3600));
    registry.store().tick().await.unwrap();
    let mut world = registry.world();
    while !o.list(KindId::Event, None).1.is_empty() {
        changed(&mut world).await;
    }
}

#[tokio::test]
async fn a_lost_log_is_read_again_and_watchers_are_told() {
    let (clock, _) = Clock::manual();
    let keep = weft_store::Retention { events: 8, ..Default::default() };
    let store = Arc::new(MemoryStore::with_retention(clock.clone(), keep));
    let registry = Registry::open(store.clone(), clock, TaskGroup::new()).await.unwrap();
    let (_, mut watch) = registry.watch_world();
    let setting = |i: u32| Txn::of([Op::put(format!("/s/x/{}", i % 100), i.to_string())]);
    let mut last = Revision(0);
    // Nothing here yields, so the pump sees none of it before its log is gone.
    for i in 0..1000 {
        last = store.txn(setting(i)).await.unwrap().revision;
    }
    let world = registry.wait_revision(last).await;
    assert_eq!(world.settings().filter(|(k, _)| k.starts_with("x/")).count(), 100);
    assert!(matches!(watch.next().await, Some(crate::WorldChange::Reset(_))));
    let next = store.txn(setting(7)).await.unwrap().revision;
    registry.wait_revision(next).await;
    assert!(matches!(watch.next().await, Some(crate::WorldChange::Delta(..))), "and goes on");
}

#[tokio::test]
async fn a_watch_continues_where_the_list_was_read() {
    let o = objects().await;
    o.create(CM, "default", named("a"), USER).await.unwrap();
    let (at, items) = o.list(CM, Some("default"));
    assert_eq!(items.len(), 1);
    let mut watch = o.watch(CM, Some("default"), at).unwrap();
    o.create(CM, "kube-system", named("elsewhere"), USER).await.unwrap();
    let b = o.create(CM, "default", named("b"), USER).await.unwrap();
    let mut changed = b.clone();
    changed["data"] = json!({ "k": "v" });
    let changed = o.update(CM, "default", changed, Part::Spec, USER).await.unwrap();
    o.delete(CM, "default", "b", &DeleteOptions::default()).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.extend(watch.next().await.unwrap());
    }
    assert_eq!((&seen[0].object, &seen[0].before, seen[0].deleted), (&b, &None, false));
    assert_eq!(seen[1].object, changed);
    assert!(seen[1].before.is_some());
    assert!(seen[2].deleted);
    assert_eq!(seen[2].object["data"], changed["data"], "a deletion carries the last object");
    assert_eq!(seen[2].object["metadata"]["resourceVersion"], seen[2].revision.to_string());

    o.registry.store().compact(Revision(u64::MAX)).await.unwrap();
    let err = o.watch(CM, None, at).unwrap_err();
    assert_eq!((err.code(), err.reason()), (410, "Expired"));
    assert!(o.watch(CM, None, o.list(CM, None).0).is_ok(), "list again");
}

#[tokio::test]
async fn a_dry_run_says_what_would_be_and_writes_nothing() {
    let o = objects().await;
    let dry = WriteOptions { dry_run: true, system: false };
    let made = o.create(CM, "default", named("a"), dry).await.unwrap();
    assert_eq!(text(&made, "namespace"), "default");
    assert!(o.get(CM, "default", "a").is_err());
    o.create(CM, "default", named("a"), USER).await.unwrap();
    let before = o.list(CM, None);
    assert_eq!(o.create(CM, "default", named("a"), dry).await.unwrap_err().code(), 409);
    let options = DeleteOptions { write: dry, ..DeleteOptions::default() };
    assert!(o.delete(CM, "default", "a", &options).await.unwrap().gone);
    assert_eq!(o.list(CM, None), before);
}

#[tokio::test]
async fn an_object_over_the_limit_is_refused_with_its_size() {
    let o = objects().await;
    let raw = json!({ "metadata": { "name": "big" }, "data": { "k": "x".repeat(1 << 20) } });
    let err = o.create(CM, "default", raw, USER).await.unwrap_err();
    assert_eq!(err.code(), 413);
    assert!(err.to_string().contains("over the limit of 1048576"), "{err}");
}

#[tokio::test]
async fn watchers_of_the_world_are_told_each_step() {
    let (registry, _) = registry().await;
    let o = registry.objects();
    let (world, mut watch) = registry.watch_world();
    let made = o.create(CM, "default", named("a"), USER).await.unwrap();
    let crate::WorldChange::Delta(now, delta) = watch.next().await.unwrap() else {
        panic!("a step was expected")
    };
    assert!(now.revision() > world.revision());
    assert_eq!(delta.objects().map(|k| &*k.name).collect::<Vec<_>>(), ["a"]);
    assert_eq!(now.revision().to_string(), made["metadata"]["resourceVersion"]);
}

#[tokio::test]
async fn a_registry_reopened_over_the_same_data_continues() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.redb");
    let clock = Clock::system();
    let open = || async {
        let store = weft_store::RedbStore::open_file(&path, clock.clone(), Default::default());
        let tasks = TaskGroup::new();
        (
            Registry::open(Arc::new(store.unwrap()), clock.clone(), tasks.clone()).await.unwrap(),
            tasks,
        )
    };
    let (registry, tasks) = open().await;
    let made = registry.objects().create(CM, "default", named("a"), USER).await.unwrap();
    tasks.shutdown(std::time::Duration::from_secs(60)).await;
    drop(registry);
    let (registry, _tasks) = open().await;
    let o = registry.objects();
    assert_eq!(o.get(CM, "default", "a").unwrap(), made);
    let (at, _) = o.list(CM, None);
    let mut watch = o.watch(CM, None, at).expect("a fresh list can be watched");
    let b = o.create(CM, "default", named("b"), USER).await.unwrap();
    assert_eq!(watch.next().await.unwrap()[0].object, b);
}
