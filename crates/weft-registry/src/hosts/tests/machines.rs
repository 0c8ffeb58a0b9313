// SPDX-License-Identifier: Apache-2.0
//! What Consul's clients are told of machines: silent ones, such as another server hears, and such
//! as were removed.

use Status::{Critical, Passing};
use weft_kinds::views::check::{SERF_HEALTH, SERF_NAMESPACE};
use weft_kinds::world::{CheckKey, StoreKey};

use super::*;

/// What Consul's clients registered on a machine.
async fn service_on(bed: &Bed, node: &str) {
    let registration = weft_kinds::views::catalog::Registration {
        namespace: "default".into(),
        node: node.into(),
        service: "web".into(),
        id: "web".into(),
        port: 80,
        ..Default::default()
    };
    let record = NodeRecord { node: node.into(), address: "10.9.0.2".into(), ..Default::default() };
    let request =
        crate::catalog::ServiceRequest { registration, node: record, ..Default::default() };
    bed.registry.catalog().register_service(request).await.unwrap();
}

fn service_health(registry: &Registry) -> Vec<Status> {
    registry.now().instances("default", "web").values().map(|i| i.health).collect()
}

#[tokio::test]
async fn services_of_a_silent_machine_are_critical_until_it_is_heard_again() {
    let bed = bed().await;
    bed.hosts.join("m1", false, "j1", &json!("placed")).await.unwrap();
    bed.hosts.heartbeat(&info("m1", "i1")).await.unwrap();
    service_on(&bed, "m1").await;
    assert_eq!(service_health(&bed.registry), [Passing]);
    for _ in 0..4 {
        bed.pass(SILENCE_MAX / 2).await;
        bed.hosts.heartbeat(&info("m1", "i1")).await.unwrap();
    }
    assert_eq!(service_health(&bed.registry), [Passing]);
    bed.pass(SILENCE_MAX - Duration::from_millis(1)).await;
    assert_eq!(service_health(&bed.registry), [Passing], "not before the lease ends");
    bed.pass(Duration::from_millis(2)).await;
    bed.wait(|b| service_health(&b.registry) == [Critical]).await;

    // A server that starts meanwhile has not forgotten it, though results do not survive it.
    let (second, hosts) = open(&bed.store, &bed.clock).await;
    assert_eq!(service_health(&second), [Critical]);
    hosts.heartbeat(&info("m1", "i1")).await.unwrap();
    bed.wait(|b| service_health(&b.registry) == [Passing]).await;

    // One that leaves, and one that is removed, are not waited for.
    hosts.leave("m1").await.unwrap();
    bed.wait(|b| service_health(&b.registry) == [Critical]).await;
    hosts.heartbeat(&info("m1", "i2")).await.unwrap();
    bed.wait(|b| service_health(&b.registry) == [Passing]).await;
    let options = crate::DeleteOptions::default();
    second.objects().delete(KindId::Node, "", "m1", &options).await.unwrap();
    bed.wait(|b| b.node("m1").is_none()).await;
    let removed = hosts.heartbeat(&info("m1", "i2")).await;
    assert!(removed.is_err(), "{removed:?}");
    bed.wait(|b| service_health(&b.registry) == [Critical]).await;
}

/// A machine that is heard of, with a service and a pod.
async fn machine() -> Bed {
    let bed = bed().await;
    bed.hosts.join("m1", false, "j1", &json!("placed")).await.unwrap();
    bed.hosts.heartbeat(&info("m1", "i1")).await.unwrap();
    service_on(&bed, "m1").await;
    bed.pod("m1").await;
    bed
}

fn serf(node: &str) -> CheckKey {
    CheckKey { namespace: SERF_NAMESPACE.into(), node: node.into(), id: SERF_HEALTH.into() }
}

impl Bed {
    fn serf(&self) -> Option<Status> {
        let world = self.registry.now();
        world.catalog().check(&serf("m1")).map(|check| check.initial)
    }

    /// Another server said so; this one's World does not show it yet.
    async fn said_elsewhere(&self, status: Status) {
        let world = self.registry.now();
        let mut record = (**world.catalog().check(&serf("m1")).unwrap()).clone();
        record.initial = status;
        let value = serde_json::to_vec(&record).unwrap();
        let put = Op::put(StoreKey::Check(serf("m1")).to_string(), value);
        self.store.txn(Txn::of([put])).await.unwrap();
    }

    async fn remove(&self) {
        let options = crate::DeleteOptions::default();
        self.registry.objects().delete(KindId::Node, "", "m1", &options).await.unwrap();
        self.wait(|b| b.node("m1").is_none()).await;
    }
}

#[tokio::test]
async fn silence_that_could_not_be_written_is_written_later() {
    let check = StoreKey::Check(serf("m1")).to_string();
    let pods = ObjectKey::new(KindId::Pod, "default", "p").store_key();
    for refused in [&*check, &*node_key("m1"), &*pods] {
        let bed = machine().await;
        bed.store.fail(refused, 1);
        bed.pass(SILENCE_MAX + Duration::from_secs(1)).await;
        bed.wait(|b| {
            let critical = service_health(&b.registry) == [Critical];
            critical && !b.is_ready("m1") && b.pod_ready().0 == "False"
        })
        .await;
        assert_eq!(bed.store.left(), 0, "{refused}");
    }
}

#[tokio::test]
async fn a_stop_that_could_not_be_written_is_written_later() {
    let bed = machine().await;
    bed.store.fail(&node_key("m1"), 1);
    bed.hosts.leave("m1").await.unwrap_err();
    bed.wait(|b| !b.is_ready("m1") && b.pod_ready().0 == "False").await;
    assert_eq!((bed.serf(), bed.store.left()), (Some(Critical), 0));
}

#[tokio::test]
async fn a_machine_that_was_heard_half_goes_silent_all_the_same() {
    let bed = machine().await;
    bed.hosts.leave("m1").await.unwrap();
    bed.store.fail(&node_key("m1"), 1);
    bed.hosts.heartbeat(&info("m1", "i2")).await.unwrap_err();
    assert_eq!(bed.serf(), Some(Passing));
    bed.pass(SILENCE_MAX + Duration::from_secs(1)).await;
    bed.wait(|b| b.serf() == Some(Critical)).await;
}

#[tokio::test]
async fn what_another_server_said_meanwhile_is_not_taken_for_this_ones_word() {
    let bed = machine().await;
    bed.pass(DESCRIPTION_EVERY).await;
    bed.said_elsewhere(Critical).await;
    assert_eq!(bed.serf(), Some(Passing), "not known here yet");
    assert!(bed.hosts.heartbeat(&info("m1", "i2")).await.unwrap());
    assert_eq!(bed.serf(), Some(Passing), "it was written again");
    let at = StoreKey::Check(serf("m1")).to_string();
    let (_, entry) = bed.store.get(&at).await.unwrap();
    let written: Value = serde_json::from_slice(&entry.unwrap().value).unwrap();
    assert_eq!(
        written,
        serde_json::to_value(&**bed.registry.now().catalog().check(&serf("m1")).unwrap()).unwrap()
    );

    // Nor does a sign of life that says nothing new pass over it.
    bed.said_elsewhere(Critical).await;
    bed.wait(|b| b.serf() == Some(Critical)).await;
    assert!(bed.hosts.heartbeat(&info("m1", "i2")).await.unwrap());
    assert_eq!(bed.serf(), Some(Passing));
    assert!(!bed.hosts.heartbeat(&info("m1", "i2")).await.unwrap());
}

#[tokio::test]
async fn one_that_leaves_here_is_still_heard_elsewhere() {
    let bed = machine().await;
    let (_second, elsewhere) = open(&bed.store, &bed.clock).await;
    elsewhere.heartbeat(&info("m1", "i1")).await.unwrap();
    bed.hosts.leave("m1").await.unwrap();
    assert_eq!((bed.serf(), bed.is_ready("m1")), (Some(Passing), true));
    elsewhere.leave("m1").await.unwrap();
    bed.wait(|b| b.serf() == Some(Critical) && !b.is_ready("m1")).await;
}

#[tokio::test]
async fn nothing_is_said_of_a_removed_machine_once_nothing_is_registered_there() {
    let bed = machine().await;
    bed.hosts.forget_removed().await.unwrap();
    assert_eq!(bed.serf(), Some(Passing), "it is there");
    bed.remove().await;
    bed.hosts.heartbeat(&info("m1", "i1")).await.unwrap_err();
    bed.hosts.forget_removed().await.unwrap();
    assert_eq!(bed.serf(), Some(Critical), "a service is registered there");
    let web = weft_kinds::world::RegistrationKey {
        namespace: "default".into(),
        node: "m1".into(),
        id: "web".into(),
    };
    bed.registry.catalog().deregister_service(&web).await.unwrap();
    // Its last word may count for a moment yet.
    bed.pass(SILENCE_MAX + Duration::from_secs(1)).await;
    bed.hosts.forget_removed().await.unwrap();
    assert_eq!(bed.serf(), None);
    // Nor is anything said of it again, or of one that never was.
    let before = bed.store.barrier().await.unwrap();
    for name in ["m1", "m2"] {
        let gone = bed.hosts.heartbeat(&info(name, "i1")).await;
        assert!(matches!(gone, Err(HostError::Removed(_))), "{gone:?}");
    }
    assert_eq!(bed.store.barrier().await.unwrap(), before);
}
