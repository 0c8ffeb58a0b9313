// SPDX-License-Identifier: Apache-2.0
//! Declarations over a real (memory) store, and where the controllers place their pods.

use std::sync::Arc;

use weft_base::clock::{Clock, ManualClock};
use weft_base::task::TaskGroup;
use weft_kinds::world::{HOST_ADDRESS_ANNOTATION, MESH_ADDRESS_ANNOTATION};
use weft_store::MemoryStore;

use super::*;
use crate::hosts::HostInfo;
use crate::{NodeInfo, Registry, controllers};

struct Bed {
    registry: Registry,
    hosts: Hosts,
    time: Arc<ManualClock>,
}

async fn bed() -> Bed {
    let (clock, time) = Clock::manual();
    let store = Arc::new(MemoryStore::new(clock.clone()));
    let tasks = TaskGroup::new();
    let registry = Registry::open(store, clock, tasks.clone()).await.unwrap();
    let hosts = Hosts::start(registry.clone(), "server", &tasks).await.unwrap();
    let bed = Bed { registry, hosts, time };
    bed.create(KindId::Namespace, "", json!({ "metadata": { "name": "shop" } })).await;
    bed
}

impl Bed {
    async fn create(&self, kind: KindId, namespace: &str, object: Value) {
        let objects = self.registry.objects();
        let made = objects.create(kind, namespace, object, WriteOptions::SYSTEM).await.unwrap();
        self.hosts.seen(&made).await;
    }

    fn pods(&self) -> Vec<Value> {
        self.registry.objects().list(KindId::Pod, Some("shop")).1
    }

    async fn declare(&self, workload: &Workload) -> Result<Placed, String> {
        self.declare_at("m1", workload).await
    }

    fn services(&self) -> Vec<String> {
        let all = self.registry.objects().list(KindId::Service, Some("shop")).1;
        all.iter().map(|s| s["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    }

    async fn declare_at(&self, host: &str, workload: &Workload) -> Result<Placed, String> {
        let declared = self.hosts.declare(host, Some(workload)).await;
        declared.map(|placed| placed.unwrap()).map_err(|e| e.to_string())
    }

    async fn heartbeat(&self, address: &str) {
        // A host that describes itself anew is not written down at once.
        self.time.advance(std::time::Duration::from_secs(2));
        let address = address.parse().unwrap();
        let node = NodeInfo {
            name: "m1".into(),
            address,
            version: "weft-1".into(),
            kernel: "6".into(),
            cpus: 2,
            memory_bytes: 1 << 30,
            pods_max: 110,
        };
        let info = HostInfo {
            node,
            addresses: vec![address],
            labels: BTreeMap::new(),
            boot_id: "b".into(),
            instance: "i".into(),
        };
        self.hosts.heartbeat(&info).await.unwrap();
    }
}

fn workload() -> Workload {
    Workload {
        namespace: "shop".into(),
        service_account: "legacy".into(),
        service: Some("billing".into()),
        ports: vec![(8080, "http".into())],
        labels: BTreeMap::from([("version".into(), "v1".into())]),
    }
}

#[tokio::test]
async fn a_declaration_is_one_pod_and_its_service() {
    let bed = bed().await;
    let placed = bed.declare(&workload()).await.unwrap();
    assert_eq!(placed.name, "billing-m1");
    let service = bed.registry.objects().get(KindId::Service, "shop", "billing").unwrap();
    assert_eq!(service["spec"]["selector"], json!({ "app": "billing" }));
    assert_eq!(service["spec"]["ports"][0]["name"], "http-8080");
    let [pod] = bed.pods().try_into().unwrap();
    assert_eq!(pod["metadata"]["labels"], json!({ "app": "billing", "version": "v1" }));
    assert_eq!(pod["spec"]["nodeName"], "m1");
    assert_eq!(pod["spec"]["serviceAccountName"], "legacy");
    // Said again, also after an agent was started again, it is the same one.
    assert_eq!(bed.declare(&workload()).await.unwrap(), placed);
    // Declared otherwise it is another, and the first is gone.
    let other = Workload { service_account: "other".into(), ..workload() };
    let second = bed.declare(&other).await.unwrap();
    assert!(second.uid != placed.uid);
    let moved = Workload { service: None, ports: Vec::new(), ..workload() };
    assert_eq!(bed.declare(&moved).await.unwrap().name, "legacy-m1");
    let [pod] = bed.pods().try_into().unwrap();
    assert!(pod["spec"]["containers"][0]["readinessProbe"].is_null());
    // Nothing any more: it is asked to go, and its agent has a word in that.
    assert_eq!(bed.hosts.declare("m1", None).await.unwrap(), None);
    let [pod] = bed.pods().try_into().unwrap();
    assert!(pod["metadata"]["deletionTimestamp"].is_string(), "{pod}");
    // Another host's declarations are its own.
    assert_eq!(bed.hosts.declare("m2", None).await.unwrap(), None);
}

#[tokio::test]
async fn an_existing_service_says_what_its_instances_are_called() {
    let bed = bed().await;
    let service = |name: &str, selector: Value, target: Value| {
        json!({
            "metadata": { "name": name },
            "spec": { "selector": selector, "ports": [{ "port": 80, "targetPort": target }] },
        })
    };
    let selector = json!({ "app": "bills", "tier": "back" });
    for (name, selector, target) in [
        ("billing", selector.clone(), json!(8080)),
        ("named", selector.clone(), json!("web")),
        ("elsewhere", selector.clone(), json!(9090)),
        ("anybody", json!({}), json!(8080)),
    ] {
        bed.create(KindId::Service, "shop", service(name, selector, target)).await;
    }
    let of = |name: &str| Workload { service: Some(name.into()), ..workload() };
    bed.declare(&of("billing")).await.unwrap();
    let [pod] = bed.pods().try_into().unwrap();
    let labels = json!({ "app": "bills", "tier": "back", "version": "v1" });
    assert_eq!(pod["metadata"]["labels"], labels);
    bed.declare(&of("named")).await.unwrap();
    let [pod] = bed.pods().try_into().unwrap();
    assert_eq!(pod["spec"]["containers"][0]["ports"][0]["name"], "web");
    for (name, word) in [("elsewhere", "targetPort"), ("anybody", "selects no pods")] {
        let why = bed.declare(&of(name)).await.unwrap_err();
        assert!(why.contains(word), "{why}");
    }
}

#[tokio::test]
async fn what_does_not_go_is_said() {
    let bed = bed().await;
    for (workload, word) in [
        (Workload { namespace: "nowhere".into(), ..workload() }, "kubectl create namespace"),
        (Workload { namespace: "a/b".into(), ..workload() }, "the namespace"),
        (Workload { service_account: "A B".into(), ..workload() }, "the service account"),
        (Workload { ports: Vec::new(), ..workload() }, "--port"),
        (Workload { ports: vec![(1, "sctp".into())], ..workload() }, "no protocol"),
        (Workload { ports: vec![(1, String::new()); 17], ..workload() }, "more than 16 ports"),
    ] {
        let why = bed.declare(&workload).await.unwrap_err();
        assert!(why.contains(word), "{why}");
    }
    // A pod that somebody else made keeps its name.
    let pod = json!({
        "metadata": { "name": "billing-m1" },
        "spec": { "nodeName": "m2", "containers": [{ "name": "c", "image": "i" }] },
    });
    bed.create(KindId::Pod, "shop", pod).await;
    let why = bed.declare(&workload()).await.unwrap_err();
    assert!(why.contains("is there already"), "{why}");
}

#[tokio::test]
async fn its_pod_has_the_machines_address_and_moves_with_it() {
    let bed = bed().await;
    bed.hosts.join("m1", false, "j1", &json!("placed")).await.unwrap();
    bed.heartbeat("10.9.0.2").await;
    controllers::run(&bed.registry);
    bed.declare(&workload()).await.unwrap();
    let (_, mut changes) = bed.registry.watch_world();
    let placed_at = async |changes: &mut crate::WorldWatch, ip: &str| loop {
        let pods = bed.pods();
        if let Some(pod) = pods.iter().find(|p| p["status"]["podIP"] == ip) {
            return pod.clone();
        }
        changes.next().await.unwrap();
    };
    let pod = placed_at(&mut changes, "10.9.0.2").await;
    assert_eq!(pod["status"]["podIPs"], json!([{ "ip": "10.9.0.2" }]));
    let noted = &pod["metadata"]["annotations"];
    assert_eq!(noted[PODS_ANNOTATION], "machine");
    assert!(noted[HOST_ADDRESS_ANNOTATION].as_str().unwrap().starts_with("127."), "{noted}");
    let mesh: std::net::SocketAddr =
        noted[MESH_ADDRESS_ANNOTATION].as_str().unwrap().parse().unwrap();
    assert_eq!(mesh.ip().to_string(), "10.9.0.2");
    // The machine moved: nobody would come to the old address. Its agent declares again.
    bed.hosts.join("m1", true, "j2", &json!("placed")).await.unwrap();
    bed.heartbeat("10.9.0.3").await;
    loop {
        if bed.pods().iter().all(|p| p["metadata"]["deletionTimestamp"].is_string()) {
            break;
        }
        changes.next().await.unwrap();
    }
    bed.declare(&workload()).await.unwrap();
    placed_at(&mut changes, "10.9.0.3").await;
}

fn of_service(name: &str) -> Workload {
    Workload { service: Some(name.into()), ..workload() }
}

#[tokio::test]
async fn a_host_has_one_made_service_at_a_time_and_none_when_it_ends() {
    let bed = bed().await;
    for n in 0..20 {
        bed.declare(&of_service(&format!("s{n}"))).await.unwrap();
        assert_eq!(bed.services(), [format!("s{n}")]);
    }
    // Nor are they left by declarations that fail afterwards.
    for n in 20..25 {
        let taken = json!({
            "metadata": { "name": format!("s{n}-m1") },
            "spec": { "containers": [{ "name": "c", "image": "i" }] },
        });
        bed.create(KindId::Pod, "shop", taken).await;
        bed.declare(&of_service(&format!("s{n}"))).await.unwrap_err();
        assert_eq!(bed.services().len(), 1, "{:?}", bed.services());
    }
    bed.declare(&of_service("billing")).await.unwrap();
    bed.declare(&of_service("billing")).await.unwrap();
    assert_eq!(bed.services(), ["billing"]);
    bed.declare(&Workload { service: None, ..workload() }).await.unwrap();
    assert!(bed.services().is_empty());
    bed.declare(&of_service("billing")).await.unwrap();
    bed.hosts.declare("m1", None).await.unwrap();
    assert!(bed.services().is_empty());
    // Declared again at once, it is made again.
    bed.declare(&of_service("billing")).await.unwrap();
    assert_eq!(bed.services(), ["billing"]);
}

#[tokio::test]
async fn a_made_service_stays_while_somebody_else_needs_it() {
    let bed = bed().await;
    // Programs of two hosts are its instances; the first one goes.
    bed.declare(&of_service("both")).await.unwrap();
    bed.declare_at("m2", &of_service("both")).await.unwrap();
    bed.hosts.declare("m1", None).await.unwrap();
    assert_eq!(bed.services(), ["both"]);
    bed.hosts.declare("m2", None).await.unwrap();
    assert!(bed.services().is_empty());
    // The programs were moved into pods that the server runs.
    bed.declare(&of_service("moved")).await.unwrap();
    let pod = json!({
        "metadata": { "name": "p", "labels": { "app": "moved" } },
        "spec": { "containers": [{ "name": "c", "image": "i" }] },
    });
    bed.create(KindId::Pod, "shop", pod).await;
    bed.hosts.declare("m1", None).await.unwrap();
    assert_eq!(bed.services(), ["moved"]);
    // People made one, or made it theirs.
    let service = json!({
        "metadata": { "name": "own" },
        "spec": { "selector": { "app": "own" }, "ports": [{ "port": 8080 }] },
    });
    bed.create(KindId::Service, "shop", service).await;
    bed.declare(&of_service("own")).await.unwrap();
    bed.declare(&of_service("edited")).await.unwrap();
    let mut edited = bed.registry.objects().get(KindId::Service, "shop", "edited").unwrap();
    edited["metadata"]["managedFields"] = json!([{ "manager": "kubectl", "operation": "Update" }]);
    let options = WriteOptions::SYSTEM;
    let (kind, part) = (KindId::Service, crate::Part::All);
    let change = crate::Change { kind, namespace: "shop", name: "edited", part, options };
    bed.registry.objects().modify(change, |_| Ok(edited.clone())).await.unwrap();
    bed.hosts.declare("m1", None).await.unwrap();
    assert_eq!(bed.services(), ["edited", "moved", "own"]);
}
