// SPDX-License-Identifier: Apache-2.0
//! The Consul door, DNS and the agent's check runner over a memory store, on ports of the
//! system's choice: prints them as JSON, then serves until its standard input ends. For trying
//! Consul clients and dig by hand and in tests.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UdpSocket};
use weft_agent::checks::{CheckKey, CheckReport, CheckSink, CheckSpec, Checks, Runner};
use weft_agent::link::{BoxFuture, LinkError};
use weft_base::clock::Clock;
use weft_base::rng::Rng;
use weft_base::snapshot::snapshot;
use weft_base::task::TaskGroup;
use weft_kinds::views::check::CheckDefinition;
use weft_kinds::world::{self, World};
use weft_registry::Registry;
use weft_registry::catalog::{Handle, Runnable};
use weft_server::consul::{Config, Door};
use weft_server::dns::{Server, Zones};
use weft_store::MemoryStore;

const NODE: &str = "node1";

#[derive(Debug)]
struct Sink(Handle);

impl CheckSink for Sink {
    fn report_checks(&self, reports: Vec<CheckReport>) -> BoxFuture<Result<(), LinkError>> {
        let handle = self.0.clone();
        Box::pin(async move {
            for report in reports {
                let key = world::CheckKey {
                    namespace: report.key.namespace,
                    node: report.key.node,
                    id: report.key.id,
                };
                // A check that went meanwhile wants no result.
                let _ = handle.report(&key, report.status, &report.output).await;
            }
            Ok(())
        })
    }
}

fn checks(world: &World, known: &mut Runnable) -> Checks {
    let catalog = world.catalog();
    let of = |(key, definition): (&world::CheckKey, &Arc<CheckDefinition>)| {
        let definition = definition.clone();
        let status = catalog.status(key);
        let (namespace, node) = (key.namespace.clone(), key.node.clone());
        let key = CheckKey { namespace, node, id: key.id.clone() };
        (key, CheckSpec { definition, status, heard: false })
    };
    known.on(catalog, NODE).map(of).collect::<BTreeMap<_, _>>()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let tasks = TaskGroup::new();
    let clock = Clock::system();
    let store = Arc::new(MemoryStore::new(clock.clone()));
    let registry = Registry::open(store, clock.clone(), tasks.clone()).await?;

    let (publisher, wanted) = snapshot(Checks::new());
    let sink = Arc::new(Sink(registry.catalog().clone()));
    Runner::start(wanted, sink, clock, Rng::from_system(), &tasks);
    let mut world = registry.world();
    tasks.spawn("wanted checks", async move {
        let mut known = Runnable::default();
        loop {
            publisher.publish(checks(&world.load(), &mut known));
            if !world.changed().await {
                return;
            }
        }
    });

    let config = Config {
        node_name: NODE.into(),
        node_id: uuid::Uuid::now_v7().to_string(),
        address: "127.0.0.1".parse()?,
        datacenter: "dc1".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        hosts: Vec::new(),
    };
    let zones = Zones { datacenter: "dc1".into(), cluster_domain: "cluster.local".into() };
    let own = Arc::new(config.identity());
    let dns = Server::new(registry.world(), own, zones, Rng::from_system());
    let door = Door::new(&registry, config, &tasks);
    let http = TcpListener::bind("127.0.0.1:0").await?;
    let tcp = TcpListener::bind("127.0.0.1:0").await?;
    let udp = UdpSocket::bind(tcp.local_addr()?).await?;
    println!(
        "{}",
        serde_json::json!({"consul": http.local_addr()?.port(), "dns": tcp.local_addr()?.port()})
    );
    tasks.spawn("consul door", door.serve(http, tasks.clone()));
    tasks.spawn("dns tcp", dns.clone().serve_tcp(tcp, tasks.clone()));
    tasks.spawn("dns udp", dns.serve_udp(udp, tasks.clone()));

    tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()))
        .await??;
    tasks.shutdown(Duration::from_secs(5)).await;
    Ok(())
}
