// SPDX-License-Identifier: Apache-2.0
//! How long the controllers take over a real file, and what history and World cost:
//! `cargo run --release -p weft-registry --example settle -- DEPLOYMENTS REPLICAS`.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use weft_base::clock::Clock;
use weft_base::task::TaskGroup;
use weft_kinds::kind::KindId;
use weft_kinds::views::View;
use weft_registry::{NodeInfo, Registry, WriteOptions, controllers};
use weft_store::RedbStore;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<usize>());
    let deployments = args.next().unwrap_or(Ok(5))?;
    let replicas = args.next().unwrap_or(Ok(3))?;
    let dir = tempfile::tempdir()?;
    let clock = Clock::system();
    let path = dir.path().join("log.redb");
    let store = Arc::new(RedbStore::open_file(&path, clock.clone(), Default::default())?);
    let tasks = TaskGroup::new();
    let registry = Registry::open(store, clock.clone(), tasks.clone()).await?;
    registry.register_node(&node()).await?;
    controllers::run(&registry);
    let start = clock.now();
    let objects = registry.objects();
    for i in 0..deployments {
        let (name, user) = (format!("d{i}"), WriteOptions::default());
        let service = json!({ "metadata": { "name": name }, "spec": {
            "selector": { "app": name }, "ports": [{ "port": 80, "targetPort": 8080 }] } });
        objects.create(KindId::Service, "default", service, user).await?;
        let labels = json!({ "app": name });
        let deployment = json!({ "metadata": { "name": name }, "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels },
                "spec": { "containers": [{ "name": "c", "image": "i" }] } } } });
        objects.create(KindId::Deployment, "default", deployment, user).await?;
    }
    println!("written after {:?}", clock.now().since(start));
    let mut world = registry.world();
    loop {
        let now = world.load();
        let has_address = |view: &View| match view {
            View::Pod(pod) => !pod.status.pod_ip.is_empty(),
            _ => false,
        };
        let pods = now.objects(KindId::Pod, None);
        let placed = pods.filter(|o| has_address(&o.view)).count();
        let listed: usize = now
            .objects(KindId::EndpointSlice, None)
            .map(|s| s.raw["endpoints"].as_array().map_or(0, Vec::len))
            .sum();
        if placed == deployments * replicas && listed == placed {
            break;
        }
        world.changed().await;
    }
    println!("placed and listed after {:?}", clock.now().since(start));
    println!("revision {}", registry.now().revision());
    let status = std::fs::read_to_string("/proc/self/status")?;
    let mut memory = status.lines().filter(|l| l.starts_with("VmRSS"));
    println!("{}", memory.next().unwrap_or_default());
    tasks.shutdown(Duration::from_secs(5)).await;
    Ok(())
}

fn node() -> NodeInfo {
    NodeInfo {
        name: "n1".into(),
        address: std::net::Ipv4Addr::LOCALHOST.into(),
        version: "v0".into(),
        kernel: "k".into(),
        cpus: 1,
        memory_bytes: 1 << 30,
        pods_max: usize::MAX,
    }
}
