// SPDX-License-Identifier: Apache-2.0
//! The controllers as the server runs them, with an agent that follows the World.

use super::*;

/// The same through the real loop, with an agent that follows the World.
#[tokio::test]
async fn the_loop_keeps_up_with_the_world() {
    use crate::{Part, Registry, WorldChange, WriteOptions};
    let clock = Clock::system();
    let tasks = weft_base::task::TaskGroup::new();
    let store = Arc::new(MemoryStore::new(clock.clone()));
    let registry = Registry::open(store, clock, tasks.clone()).await.unwrap();
    let o = registry.objects();
    let system = WriteOptions::SYSTEM;
    o.create(KindId::Node, "", json!({ "metadata": { "name": "n1" } }), system).await.unwrap();
    run(&registry);
    let agent = registry.clone();
    tasks.spawn("agent", async move {
        let (mut world, mut watch) = agent.watch_world();
        loop {
            let pods: Vec<_> = world.objects(KindId::Pod, None).cloned().collect();
            for pod in pods {
                let View::Pod(view) = &pod.view else { continue };
                let (ns, name) = (&*pod.key.namespace, &*pod.key.name);
                let status = json!({ "phase": "Running", "conditions":
                    [{ "type": "Ready", "status": "True" }] });
                if pod.meta.is_deleting() {
                    let now = DeleteOptions { grace_s: Some(0), ..DeleteOptions::default() };
                    let _ = agent.objects().delete(KindId::Pod, ns, name, &now).await;
                } else if pod::is_placed(&pod) && !view.is_ready() {
                    let _ = agent.objects().write_status(KindId::Pod, ns, name, &status).await;
                }
            }
            match watch.next().await {
                Some(WorldChange::Delta(now, _) | WorldChange::Reset(now)) => world = now,
                None => return,
            }
        }
    });
    let user = WriteOptions::default();
    let made = deployment("web", 3, "web:1");
    o.create(KindId::Deployment, "default", made, user).await.unwrap();
    let done = |image: &'static str, n: u64| {
        let o = o.clone();
        move || {
            let (_, pods) = o.list(KindId::Pod, Some("default"));
            let status = o.get(KindId::Deployment, "default", "web").unwrap()["status"].clone();
            status["availableReplicas"] == n
                && status["updatedReplicas"] == n
                && pods.len() as u64 == n
                && pods.iter().all(|p| p["spec"]["containers"][0]["image"] == image)
        }
    };
    wait(&registry, done("web:1", 3)).await;
    let mut next = o.get(KindId::Deployment, "default", "web").unwrap();
    *template(&mut next) = json!("web:2");
    next["spec"]["replicas"] = json!(5);
    o.modify(
        crate::Change {
            kind: KindId::Deployment,
            namespace: "default",
            name: "web",
            part: Part::Spec,
            options: user,
        },
        |_| {
            let mut next = next.clone();
            crate::objects::meta::metadata_mut(&mut next).remove("resourceVersion");
            Ok(next)
        },
    )
    .await
    .unwrap();
    wait(&registry, done("web:2", 5)).await;
    let said = |reason: &'static str| {
        let o = o.clone();
        let (_, events) = o.list(KindId::Event, Some("default"));
        events.iter().any(|e| e["reason"] == reason)
    };
    wait(&registry, || said("ScalingReplicaSet") && said("Scheduled")).await;
    let stats = registry.stats();
    assert!(stats.reconciles > 0 && stats.events_dropped == 0, "{stats:?}");
    assert!(registry.wait_revision(stats.store.revision).await.revision() >= stats.world_revision);
    assert!(tasks.shutdown(std::time::Duration::from_secs(60)).await, "everything drains");
}

async fn wait(registry: &crate::Registry, done: impl Fn() -> bool) {
    let mut world = registry.world();
    let all = async {
        while !done() {
            assert!(world.changed().await);
        }
    };
    let limit = std::time::Duration::from_secs(120);
    tokio::time::timeout(limit, all).await.expect("the world never got there");
}
