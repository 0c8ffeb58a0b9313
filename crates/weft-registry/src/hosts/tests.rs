// SPDX-License-Identifier: Apache-2.0
//! Hosts over a real (memory) store whose time is moved by hand.

use weft_base::clock::{Clock, ManualClock};
use weft_kinds::views::catalog::NodeRecord;
use weft_kinds::views::catalog::Status;
use weft_store::Store;

use super::*;
use crate::doctored::Doctored;

mod machines;

struct Bed {
    registry: Registry,
    hosts: Hosts,
    time: Arc<ManualClock>,
    clock: Clock,
    store: Arc<Doctored>,
}

async fn bed() -> Bed {
    let (clock, time) = Clock::manual();
    let store = Doctored::new(clock.clone());
    let (registry, hosts) = open(&store, &clock).await;
    Bed { registry, hosts, time, clock, store }
}

async fn open(store: &Arc<Doctored>, clock: &Clock) -> (Registry, Hosts) {
    let tasks = TaskGroup::new();
    let registry = Registry::open(store.clone(), clock.clone(), tasks.clone()).await.unwrap();
    let hosts = Hosts::start(registry.clone(), "server", &tasks).await.unwrap();
    (registry, hosts)
}

fn info(name: &str, instance: &str) -> HostInfo {
    HostInfo {
        node: NodeInfo {
            name: name.into(),
            address: "10.9.0.2".parse().unwrap(),
            version: "weft-1".into(),
            kernel: "6".into(),
            cpus: 2,
            memory_bytes: 1 << 30,
            pods_max: 110,
        },
        addresses: vec!["10.9.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
        labels: BTreeMap::from([("zone".into(), "a".into())]),
        boot_id: "b".into(),
        instance: instance.into(),
    }
}

impl Bed {
    fn node(&self, name: &str) -> Option<Value> {
        Some(Value::clone(&self.registry.now().get(KindId::Node, "", name)?.raw))
    }

    fn is_ready(&self, name: &str) -> bool {
        self.node(name).is_some_and(|n| nodes::is_ready(&n))
    }

    /// A pod of the host that its agent said is ready.
    async fn pod(&self, host: &str) {
        let objects = self.registry.objects();
        let pod = json!({
            "metadata": { "name": "p" },
            "spec": { "nodeName": host, "containers": [{ "name": "c", "image": "i" }] },
        });
        objects.create(KindId::Pod, "default", pod, WriteOptions::SYSTEM).await.unwrap();
        self.pod_is_ready().await;
    }

    async fn pod_is_ready(&self) {
        let status = json!({
            "phase": "Running",
            "conditions": [{ "type": "Ready", "status": "True" }],
            "containerStatuses": [{ "name": "c", "ready": true }],
        });
        let objects = self.registry.objects();
        objects.write_status(KindId::Pod, "default", "p", &status).await.unwrap();
    }

    /// The pod's condition: status and reason.
    fn pod_ready(&self) -> (String, String) {
        let world = self.registry.now();
        let pod = world.get(KindId::Pod, "default", "p").unwrap();
        let ready = &pod.raw["status"]["conditions"][0];
        let text = |key: &str| ready[key].as_str().unwrap_or("").to_owned();
        (text("status"), text("reason"))
    }

    async fn wait(&self, what: impl Fn(&Self) -> bool) {
        let mut world = self.registry.world();
        let waiting = async {
            while !what(self) {
                assert!(world.changed().await);
            }
        };
        tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("it comes about");
    }

    async fn pass(&self, time: Duration) {
        self.time.advance(time);
        self.store.tick().await.unwrap();
    }
}

#[tokio::test]
async fn a_host_is_ready_while_it_is_heard_of_and_its_pods_only_then() {
    let bed = bed().await;
    bed.hosts.join("m1", false, "j1", &json!("placed")).await.unwrap();
    assert!(!bed.is_ready("m1"));
    assert!(bed.hosts.heartbeat(&info("m1", "i1")).await.unwrap(), "all must be told");
    assert!(bed.is_ready("m1"));
    let node = bed.node("m1").unwrap();
    assert_eq!(node["metadata"]["labels"]["zone"], "a");
    assert_eq!(node["metadata"]["annotations"][JOIN_ANNOTATION], "j1");
    let addresses = node["status"]["addresses"].as_array().unwrap();
    assert!(addresses.iter().any(|a| a["address"] == "10.9.0.2"), "{addresses:?}");
    assert!(addresses.iter().any(|a| a["address"] == "fd00::2"), "{addresses:?}");

    bed.pod("m1").await;
    let before = bed.store.barrier().await.unwrap();
    for _ in 0..5 {
        bed.pass(SILENCE_MAX / 2).await;
        assert!(!bed.hosts.heartbeat(&info("m1", "i1")).await.unwrap());
    }
    assert_eq!(bed.store.barrier().await.unwrap(), before, "signs of life write nothing");

    bed.pass(SILENCE_MAX + Duration::from_secs(1)).await;
    bed.wait(|b| !b.is_ready("m1") && b.pod_ready().0 == "False").await;
    assert_eq!(bed.pod_ready().1, "NodeNotReady");
    let node = bed.node("m1").unwrap();
    let why = node["status"]["conditions"][0]["message"].as_str().unwrap().to_owned();
    assert!(why.contains("not heard of for 5 s"), "{why}");

    assert!(bed.hosts.heartbeat(&info("m1", "i1")).await.unwrap());
    assert!(bed.is_ready("m1"));
    assert_eq!(bed.pod_ready().0, "False", "the agent has not said so again");
}

#[tokio::test]
async fn an_agent_that_started_anew_runs_nothing_yet() {
    let bed = bed().await;
    bed.hosts.join("m1", false, "j1", &json!("placed")).await.unwrap();
    bed.hosts.heartbeat(&info("m1", "i1")).await.unwrap();
    bed.pod("m1").await;
    // A changed label is told and changes nothing else.
    let mut other = info("m1", "i1");
    other.labels.insert("zone".into(), "b".into());
    assert!(!bed.hosts.heartbeat(&other).await.unwrap(), "not that often");
    bed.pass(DESCRIPTION_EVERY).await;
    assert!(bed.hosts.heartbeat(&other).await.unwrap());
    assert_eq!(bed.pod_ready().0, "True");
    assert_eq!(bed.node("m1").unwrap()["metadata"]["labels"]["zone"], "b");
    bed.pass(DESCRIPTION_EVERY).await;
    bed.hosts.heartbeat(&info("m1", "i2")).await.unwrap();
    assert_eq!(bed.pod_ready(), ("False".into(), "AgentRestarted".into()));
}

#[tokio::test]
async fn one_that_leaves_is_not_waited_for() {
    let bed = bed().await;
    bed.hosts.join("m1", false, "j1", &json!("placed")).await.unwrap();
    bed.hosts.heartbeat(&info("m1", "i1")).await.unwrap();
    bed.pod("m1").await;
    bed.hosts.leave("m1").await.unwrap();
    assert_eq!((bed.is_ready("m1"), bed.pod_ready().0.as_str()), (false, "False"));
    let why = || bed.node("m1").unwrap()["status"]["conditions"][0]["message"].clone();
    assert_eq!(why(), "its agent was stopped");
    let before = bed.registry.now().revision();
    bed.pass(SILENCE_MAX * 2).await;
    assert_eq!((why(), bed.registry.now().revision()), (json!("its agent was stopped"), before));
    assert!(bed.hosts.heartbeat(&info("m1", "i2")).await.unwrap());
    assert!(bed.is_ready("m1"));
}

#[tokio::test]
async fn names_belong_to_who_has_them() {
    let bed = bed().await;
    let own = info("server", "").node;
    bed.registry.register_node(&own).await.unwrap();
    let join = |name: &'static str, named, id: &'static str| {
        let hosts = bed.hosts.clone();
        async move { hosts.join(name, named, id, &json!("placed")).await }
    };
    assert!(matches!(join("server", true, "j").await, Err(HostError::Own(_))));
    join("m1", false, "j1").await.unwrap();
    assert!(matches!(join("m1", false, "j2").await, Err(HostError::Taken(_))));
    assert_eq!(bed.node("m1").unwrap()["metadata"]["annotations"][JOIN_ANNOTATION], "j1");
    // Nor does the server's need a Node, and names of Consul's catalog take a token that says so.
    let (registry, hosts) = (bed.registry.clone(), bed.hosts.clone());
    let options = crate::DeleteOptions::default();
    registry.objects().delete(KindId::Node, "", "server", &options).await.unwrap();
    bed.wait(|b| b.node("server").is_none()).await;
    for named in [false, true] {
        let own = hosts.join("server", named, "j", &json!("placed")).await;
        assert!(matches!(own, Err(HostError::Own(_))), "{own:?}");
    }
    let record =
        NodeRecord { node: "DB1".into(), address: "10.9.0.7".into(), ..Default::default() };
    registry.catalog().register_node(&record, false).await.unwrap();
    bed.wait(|b| b.registry.now().catalog().node("DB1").is_some()).await;
    let refused = join("db1", false, "j4").await;
    assert!(matches!(&refused, Err(HostError::Registered(_))), "{refused:?}");
    assert!(refused.unwrap_err().to_string().contains("weft token create --host db1"));
    assert!(bed.node("db1").is_none());
    join("db1", true, "j5").await.unwrap();
    // A token that names it takes it over, and the older joining is over.
    join("m1", true, "j3").await.unwrap();
    assert_eq!(bed.node("m1").unwrap()["metadata"]["annotations"][JOIN_ANNOTATION], "j3");

    bed.hosts.heartbeat(&info("m1", "i1")).await.unwrap();
    let options = crate::DeleteOptions::default();
    bed.registry.objects().delete(KindId::Node, "", "m1", &options).await.unwrap();
    let gone = bed.hosts.heartbeat(&info("m1", "i1")).await;
    assert!(matches!(gone, Err(HostError::Removed(_))), "{gone:?}");
}

#[tokio::test]
async fn a_server_that_starts_anew_gives_hosts_their_time() {
    let mut bed = bed().await;
    bed.hosts.join("m1", false, "j1", &json!("placed")).await.unwrap();
    bed.hosts.heartbeat(&info("m1", "i1")).await.unwrap();
    bed.pod("m1").await;
    let (registry, hosts) = open(&bed.store, &bed.clock).await;
    bed.registry = registry;
    bed.hosts = hosts;
    bed.pass(SILENCE_MAX / 2).await;
    assert_eq!(bed.pod_ready().0, "True", "what runs goes on");
    assert!(bed.hosts.heartbeat(&info("m1", "i1")).await.unwrap());
    assert!(bed.is_ready("m1"));
    assert_eq!(bed.pod_ready().0, "True");
    bed.pass(SILENCE_MAX + Duration::from_secs(1)).await;
    bed.wait(|b| !b.is_ready("m1") && b.pod_ready().0 == "False").await;
}

#[tokio::test]
async fn a_token_is_used_by_one_of_two() {
    let bed = bed().await;
    let hour = Duration::from_secs(3600);
    bed.hosts.add_token("abc", &json!({ "used": 0 }), hour).await.unwrap();
    let take = || {
        bed.hosts.change_token("abc", |old| match old["used"].as_u64() {
            Some(0) => Ok(json!({ "used": 1 })),
            _ => Err(StoreError::Closed),
        })
    };
    let (a, b) = tokio::join!(take(), take());
    assert_eq!([a.is_ok(), b.is_ok()].iter().filter(|ok| **ok).count(), 1);
    assert_eq!(bed.hosts.tokens().await.unwrap(), [("abc".into(), json!({ "used": 1 }))]);
    assert_eq!(bed.hosts.change_token("none", Ok::<_, StoreError>).await.unwrap(), None);
    assert!(bed.hosts.delete_token("abc").await.unwrap());
    assert!(!bed.hosts.delete_token("abc").await.unwrap());
    bed.hosts.add_token("def", &json!({}), hour).await.unwrap();
    bed.pass(hour + Duration::from_secs(1)).await;
    assert_eq!(bed.hosts.tokens().await.unwrap(), []);
}
