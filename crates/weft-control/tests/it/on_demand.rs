// SPDX-License-Identifier: Apache-2.0
//! A mesh of more hosts than a proxy holds: a real server, a real proxy, real requests over TCP.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::Instant;
use weft_base::task::TaskGroup;
use weft_control::push::HoldLimits;
use weft_kinds::world::World;
use weft_proxy::config::{OnDemandLimits, UnknownDestinations};

use crate::plane::{LONG, Running, Server};

const SERVICES: usize = 2_500;
/// Of the proxy, so that the test sees hosts given back.
const BACKENDS_MAX: usize = 20;
/// What a request waits for an answer of the server, which is spent in full where there is none.
const WAIT: Duration = Duration::from_secs(20);
/// Between one look at a condition and the next.
const BRIEF: Duration = Duration::from_millis(5);
const NODE: &str = "sidecar~shop~p";

fn put(world: &mut World, key: &str, value: &Value) -> weft_kinds::world::WorldDelta {
    world.apply(key, Some(value.to_string().as_bytes()), world.revision() + 1)
}

/// A Service whose one instance is `origin`.
fn put_service(world: &mut World, name: &str, namespace: &str, origin: SocketAddr) {
    let service = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"ports": [{"name": "http", "port": 80}]}});
    put(world, &format!("/o/core/services/{namespace}/{name}"), &service);
    let slice = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [origin.ip().to_string()], "conditions": {"ready": true}}],
        "ports": [{"name": "http", "port": origin.port(), "protocol": "TCP"}]});
    put(world, &format!("/o/discovery.k8s.io/endpointslices/{namespace}/{name}"), &slice);
}

fn remove_service(world: &mut World, name: &str, namespace: &str) {
    for kind in ["core/services", "discovery.k8s.io/endpointslices"] {
        world.apply(&format!("/o/{kind}/{namespace}/{name}"), None, world.revision() + 1);
    }
}

/// The pod of the sidecar under test.
fn put_pod(world: &mut World) {
    let pod = json!({"metadata": {"name": "p"},
        "spec": {"nodeName": "n", "serviceAccountName": "p", "containers": [{"name": "c"}]},
        "status": {"podIP": "127.64.0.1"}});
    put(world, "/o/core/pods/shop/p", &pod);
}

/// What nearby services look like, of whose hosts a far one is needed by a route.
fn world(origin: SocketAddr) -> World {
    let mut world = World::new();
    put_pod(&mut world);
    put_service(&mut world, "near", "shop", origin);
    for i in 0..SERVICES {
        put_service(&mut world, &format!("s{i:04}"), "far", origin);
    }
    let route = json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": "near", "namespace": "shop"},
        "spec": {"hosts": ["near"], "http": [{"route": [
            {"destination": {"host": "s2400.far.svc.cluster.local"}}]}]}});
    put(&mut world, "/o/networking.istio.io/virtualservices/shop/near", &route);
    world
}

/// Answers 200 with the host that it was asked for.
async fn origin(tasks: &TaskGroup) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = tasks.clone();
    tasks.spawn("origin", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn("origin connection", async move {
                let mut text = String::new();
                let mut buffer = [0; 4096];
                while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                    text.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
                    let Some((head, rest)) = text.split_once("\r\n\r\n") else { continue };
                    let host = head.lines().find_map(|l| l.strip_prefix("host: ")).unwrap();
                    let length = host.len();
                    let answer =
                        format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{host}");
                    text = rest.to_owned();
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
    address
}

fn far(i: usize) -> String {
    format!("s{i:04}.far.svc.cluster.local")
}

async fn sidecar(server: SocketAddr, last_good: &Path) -> Running {
    let limits = OnDemandLimits {
        backends_max: BACKENDS_MAX,
        idle: Duration::ZERO,
        wait: WAIT,
        ..OnDemandLimits::default()
    };
    let change = |config: &mut weft_proxy::ProxyConfig| {
        config.unknown = UnknownDestinations::Deny;
        config.last_good = Some(last_good.to_owned());
        config.limits.on_demand = limits;
    };
    Running::start(NODE, server, change).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn far_hosts_are_there_when_they_are_asked_for_and_given_back_when_they_are_not() {
    let tasks = TaskGroup::new();
    let origin = origin(&tasks).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("table");
    let address = SocketAddr::from(([127, 0, 0, 1], weft_testkit::ports::free()));
    let mut server = Server::start(world(origin), address).await;
    let sidecar = sidecar(address, &file).await;
    sidecar.until(|n| n > 0).await;
    // Its own namespace, and what a route there leads to.
    assert_eq!(sidecar.hosts(), 2);
    assert!(server.driver.pusher().metrics().resources.get() < 20);
    assert_eq!(sidecar.forward("near").await.0, 200);

    // The first request works, whatever name it uses.
    for host in [far(7), "s1234.far".to_owned(), "s2499.far.svc".to_owned()] {
        assert_eq!(sidecar.forward(&host).await, (200, host));
    }
    // One that does not exist is answered at once, and found when it comes.
    let begun = Instant::now();
    let (status, why) = sidecar.forward("new.far").await;
    assert!(status == 502 && why.contains("not in the mesh"), "{status} {why}");
    assert!(begun.elapsed() < WAIT, "{:?}", begun.elapsed());
    server.change(|world| put_service(world, "new", "far", origin)).await;
    assert_eq!(sidecar.forward("new.far").await.0, 200);

    // More than it holds: every request works, and the longest unused are given back.
    for i in 100..160 {
        assert_eq!(sidecar.forward(&far(i)).await, (200, far(i)));
    }
    sidecar.until(|n| n <= BACKENDS_MAX).await;
    server.until(|status| status.partial && status.asked <= BACKENDS_MAX + 1).await;

    // Without a server: what is held works, and stays however long that lasts; of what is not,
    // nobody can say.
    server.until(|status| status.synced).await;
    let world = server.stop().await;
    let held = sidecar.hosts();
    let table = sidecar.proxy.status().table.load();
    let names: Vec<String> = table.hosts().map(|h| h.host.name.to_string()).collect();
    for host in &names {
        assert_eq!(sidecar.forward(host).await.0, 200, "{host}");
    }
    let (status, why) = sidecar.forward(&far(2000)).await;
    assert!(status == 503 && why.contains("not known yet"), "{status} {why}");
    assert_eq!(sidecar.hosts(), held);
    // Nobody waits for it any more, so the next server is not asked for it.
    let mut wanted = sidecar.proxy.wanted();
    let forgotten = wanted.wait_for(|wanted| !wanted.contains(far(2000).as_str()));
    assert!(tokio::time::timeout(LONG, forgotten).await.is_ok());

    // A new server: nothing is lost, nothing is sent again, and all can be asked for again.
    let server = Server::start(world, address).await;
    server.until(|status| status.synced).await;
    assert_eq!(server.driver.pusher().metrics().resources.get(), 0);
    let table = sidecar.proxy.status().table.load();
    assert!(names.iter().all(|name| table.host(name).is_some()));
    assert_eq!(sidecar.forward(&far(2000)).await.0, 200);

    // A proxy that starts without a server has what it held, and what it had given back.
    sidecar.until(|n| n <= BACKENDS_MAX).await;
    server.stop().await;
    while !std::fs::read(&file).unwrap().windows(5).any(|text| text == b"s2000") {
        tokio::time::sleep(BRIEF).await;
    }
    sidecar.stop().await;
    let again = self::sidecar(address, &file).await;
    for i in [7, 100, 130, 159, 2000] {
        assert_eq!(again.forward(&far(i)).await, (200, far(i)));
    }
    again.stop().await;
    tasks.shutdown(Duration::ZERO).await;
}

/// A mesh grows beyond what a proxy holds and shrinks again, while far hosts are in use.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_notices_when_the_mesh_becomes_too_large_for_a_proxy_or_fits_again() {
    let tasks = TaskGroup::new();
    let origin = origin(&tasks).await;
    let mut world = World::new();
    put_pod(&mut world);
    put_service(&mut world, "near", "shop", origin);
    for i in 0..10 {
        put_service(&mut world, &format!("s{i:04}"), "far", origin);
    }
    let limits = HoldLimits { backends_max: 20, ..HoldLimits::default() };
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let mut server = Server::start_with(world, any, limits).await;
    let change = |config: &mut weft_proxy::ProxyConfig| config.limits.on_demand.wait = WAIT;
    let sidecar = Running::start(NODE, server.address, change).await;
    sidecar.until(|n| n == 11).await;
    let (ended, requests) = (AtomicBool::new(false), AtomicUsize::new(0));
    let client = async {
        while !ended.load(Ordering::Relaxed) {
            let n = requests.load(Ordering::Relaxed);
            let host = far(n % 10);
            assert_eq!(sidecar.forward(&host).await, (200, host), "request {n}");
            requests.store(n + 1, Ordering::Relaxed);
        }
    };
    let operator = async {
        for _ in 0..3 {
            for (partial, hosts) in [(true, 10..30), (false, 10..30)] {
                let change = |world: &mut World| {
                    for i in hosts {
                        let name = format!("s{i:04}");
                        if partial {
                            put_service(world, &name, "far", origin);
                        } else {
                            remove_service(world, &name, "far");
                        }
                    }
                };
                server.change(change).await;
                server.until(|status| status.synced && status.partial == partial).await;
                // All ten are in use, so all ten are there soon.
                sidecar.until(|n| n == 11).await;
                // And all ten are asked for before the next change.
                let so_many = requests.load(Ordering::Relaxed) + 10;
                while requests.load(Ordering::Relaxed) < so_many {
                    tokio::time::sleep(BRIEF).await;
                }
            }
        }
        ended.store(true, Ordering::Relaxed);
    };
    tokio::join!(client, operator);
    server.stop().await;
    sidecar.stop().await;
    tasks.shutdown(Duration::ZERO).await;
}
