// SPDX-License-Identifier: Apache-2.0
//! Both modes and the way between them, over a real (memory) store with the real controllers.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use serde_json::json;
use weft_base::clock::Clock;
use weft_base::task::TaskGroup;
use weft_kinds::world::{Object, host_address};
use weft_store::MemoryStore;

use super::*;
use crate::{DeleteOptions, NodeInfo, controllers};

const USER: WriteOptions = WriteOptions { dry_run: false, system: false };

async fn registry(mode: PodsMode) -> Registry {
    let clock = Clock::system();
    let store = Arc::new(MemoryStore::new(clock.clone()));
    let registry = Registry::open(store, clock, TaskGroup::new()).await.unwrap();
    registry.set_pods_mode(mode).await.unwrap();
    registry
}

async fn with_node(mode: PodsMode) -> Registry {
    let registry = registry(mode).await;
    controllers::run(&registry);
    let node = NodeInfo {
        name: "n1".into(),
        address: Ipv4Addr::LOCALHOST.into(),
        version: "0".into(),
        kernel: "0".into(),
        cpus: 1,
        memory_bytes: 1 << 30,
        pods_max: 10,
    };
    registry.register_node(&node).await.unwrap();
    registry
}

async fn service(registry: &Registry, name: &str, spec: Value) -> Result<Value, String> {
    let mut spec = spec;
    spec["ports"] = json!([{ "port": 80 }]);
    let raw = json!({ "metadata": { "name": name }, "spec": spec });
    let made = registry.objects().create(KindId::Service, "default", raw, USER).await;
    made.map(|m| m["spec"].clone()).map_err(|e| e.to_string())
}

/// Waits until the World's pod holds.
async fn pod_when(registry: &Registry, holds: impl Fn(&Object) -> bool) -> Arc<Object> {
    let mut world = registry.world();
    loop {
        let now = world.load();
        match now.get(KindId::Pod, "default", "web") {
            Some(pod) if holds(pod) => return pod.clone(),
            _ => assert!(world.changed().await),
        }
    }
}

fn ip(value: &Value) -> IpAddr {
    value.as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn services_have_addresses_of_the_families_they_ask_for() {
    let registry = registry(PodsMode::Namespace).await;
    let one = service(&registry, "one", json!({})).await.unwrap();
    assert!(one["clusterIP"].as_str().unwrap().starts_with("10.96."), "{one}");
    assert_eq!(one["ipFamilies"], json!(["IPv4"]));

    let both = json!({ "ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv4"] });
    let both = service(&registry, "both", both).await.unwrap();
    assert_eq!(both["ipFamilies"], json!(["IPv4", "IPv6"]));
    let (v4, v6) = (ip(&both["clusterIPs"][0]), ip(&both["clusterIPs"][1]));
    assert!(v4.is_ipv4() && v6.to_string().starts_with("fd00:7766:1::"), "{v4} {v6}");

    let six = service(&registry, "six", json!({ "ipFamilies": ["IPv6"] })).await.unwrap();
    assert!(ip(&six["clusterIP"]).is_ipv6(), "{six}");
    assert_eq!(six["clusterIPs"].as_array().unwrap().len(), 1);

    let chosen = json!({ "clusterIP": "fd00:7766:1::1234", "ipFamilies": ["IPv6"] });
    let chosen = service(&registry, "chosen", chosen).await.unwrap();
    assert_eq!(chosen["clusterIP"], "fd00:7766:1::1234");
    // The IPv4 address of the same place is taken with it.
    let taken = service(&registry, "taken", json!({ "clusterIP": "10.96.18.52" })).await;
    let why = taken.unwrap_err();
    assert!(why.contains("already allocated to Service default/chosen"), "{why}");

    let odd = json!({ "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "SingleStack" });
    let why = service(&registry, "odd", odd).await.unwrap_err();
    assert!(why.contains("spec.ipFamilies"), "{why}");
}

#[tokio::test]
async fn processes_have_ipv4_services_and_say_so() {
    let registry = registry(PodsMode::Process).await;
    let prefer = json!({ "ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv4"] });
    let prefer = service(&registry, "prefer", prefer).await.unwrap();
    assert_eq!(prefer["ipFamilies"], json!(["IPv4"]));
    for spec in [
        json!({ "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4"] }),
        json!({ "ipFamilies": ["IPv6"], "ipFamilyPolicy": "SingleStack" }),
    ] {
        let why = service(&registry, "no", spec).await.unwrap_err();
        assert!(why.contains("--pods=namespace"), "{why}");
    }
}

#[tokio::test]
async fn a_pod_of_the_inside_network_keeps_an_address_on_the_host() {
    let registry = with_node(PodsMode::Namespace).await;
    let raw = json!({ "metadata": { "name": "web" }, "spec": { "containers": [] } });
    registry.objects().create(KindId::Pod, "default", raw, USER).await.unwrap();
    let pod = pod_when(&registry, |p| p.raw["status"]["podIP"].is_string()).await;
    assert_eq!(PodsMode::of(&pod.meta), PodsMode::Namespace);
    let all = &pod.raw["status"]["podIPs"];
    let Some(IpAddr::V4(v4)) = all[0]["ip"].as_str().map(|t| t.parse().unwrap()) else {
        panic!("{all}")
    };
    assert!(is_inside_pod(v4) && all[0]["ip"] == pod.raw["status"]["podIP"], "{all}");
    let [a, b, c, d] = v4.octets();
    let v6 =
        format!("fd00:7766::{:x}:{:x}", u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    assert_eq!(all[1]["ip"], v6);
    let host = host_address(&pod).unwrap();
    assert!(host.is_loopback(), "{host}");
    // An agent that knows one address of it does not take the other away.
    let told = json!({ "phase": "Running", "podIP": v4, "podIPs": [{ "ip": v4 }] });
    registry.objects().write_status(KindId::Pod, "default", "web", &told).await.unwrap();
    let pod = pod_when(&registry, |p| p.raw["status"]["phase"] == "Running").await;
    assert_eq!(pod.raw["status"]["podIPs"][1]["ip"], v6);

    let options = DeleteOptions { grace_s: Some(0), ..DeleteOptions::default() };
    registry.objects().delete(KindId::Pod, "default", "web", &options).await.unwrap();
    let left = registry.now();
    let left: Vec<_> = left.settings().filter(|(_, v)| v["owner"] == "Pod default/web").collect();
    assert!(left.is_empty(), "both addresses are free again: {left:?}");
}

#[tokio::test]
async fn a_change_of_the_mode_moves_services_and_pods() {
    let registry = with_node(PodsMode::Process).await;
    let before = service(&registry, "user", json!({})).await.unwrap();
    let raw = json!({ "metadata": { "name": "web" }, "spec": { "containers": [] } });
    registry.objects().create(KindId::Pod, "default", raw, USER).await.unwrap();
    let was = pod_when(&registry, |p| p.raw["status"]["podIP"].is_string()).await;
    let loopback = host_address(&was).unwrap();

    registry.set_pods_mode(PodsMode::Namespace).await.unwrap();
    let moved = registry.objects().get(KindId::Service, "default", "user").unwrap();
    assert!(moved["spec"]["clusterIP"].as_str().unwrap().starts_with("10.96."), "{moved}");
    let is = pod_when(&registry, |p| PodsMode::of(&p.meta) == PodsMode::Namespace).await;
    assert!(is.raw["status"]["podIP"].as_str().unwrap().starts_with("10.244."));
    assert_eq!(host_address(&is), Some(loopback), "the host's side stays");

    registry.set_pods_mode(PodsMode::Process).await.unwrap();
    let back = pod_when(&registry, |p| {
        PodsMode::of(&p.meta) == PodsMode::Process && p.raw["status"]["podIP"].is_string()
    })
    .await;
    assert_eq!(host_address(&back), Some(loopback));
    let again = registry.objects().get(KindId::Service, "default", "user").unwrap();
    assert_eq!(again["spec"]["clusterIP"], before["clusterIP"]);
    let world = registry.now();
    let inside = world.settings().filter(|(name, _)| name.starts_with("addresses/10."));
    assert_eq!(inside.count(), 0, "nothing of the inside network is held any more");
}
