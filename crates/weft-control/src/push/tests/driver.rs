// SPDX-License-Identifier: Apache-2.0
//! From World to proxies: compiled, scoped, pushed over mTLS-less sockets, admitted by identity.

use serde_json::{Value, json};
use weft_base::snapshot::{Publisher, snapshot};
use weft_kinds::world::{World, WorldDelta};

use super::*;
use crate::compile::Env;
use crate::mesh::Mesh;

const USER: &str = "user.shop.svc.cluster.local";

fn put(world: &mut World, key: &str, value: &Value) -> WorldDelta {
    world.apply(key, Some(value.to_string().as_bytes()), world.revision() + 1)
}

fn pod(account: &str, ip: &str) -> Value {
    json!({"metadata": {"name": "p", "labels": {"app": "x"}},
           "spec": {"nodeName": "n", "serviceAccountName": account,
                    "containers": [{"name": "c", "ports": [{"containerPort": 8080}]}]},
           "status": {"podIP": ip}})
}

fn service_object(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
           "spec": {"clusterIP": "127.96.0.1", "selector": {"app": name},
                    "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}})
}

fn slice(service: &str, ips: &[&str]) -> Value {
    let endpoints: Vec<Value> = ips
        .iter()
        .map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}, "nodeName": "n"}))
        .collect();
    json!({"metadata": {"name": service, "labels": {"kubernetes.io/service-name": service}},
           "addressType": "IPv4", "endpoints": endpoints,
           "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]})
}

fn slice_key(service: &str) -> String {
    format!("/o/discovery.k8s.io/endpointslices/shop/{service}")
}

/// A server whose mesh is compiled from a World.
struct Plane {
    world: World,
    worlds: Publisher<World>,
    driver: Driver,
    address: SocketAddr,
    _tasks: TaskGroup,
}

impl Plane {
    async fn start(world: World, peer: Option<&str>) -> Self {
        let (mesh, mesh_reader) = snapshot(Mesh::default());
        let (worlds, world_reader) = snapshot(world.clone());
        let trust_domain: Arc<str> = "cluster.local".into();
        let nodes = MeshNodes { mesh: mesh_reader, world: world_reader, trust_domain };
        let tasks = TaskGroup::new();
        let pusher = Pusher::start(Arc::new(nodes), Clock::system(), &tasks);
        let peer: Option<Arc<str>> = peer.map(Into::into);
        let shake: Handshake<TcpStream> = Arc::new(move |io| {
            let peer = Peer { spiffe_id: peer.clone(), address: None };
            async move { Ok((io, peer)) }.boxed()
        });
        let address = serve(&pusher, "127.0.0.1:0".parse().unwrap(), shake, &tasks).await;
        let (driver, _) = Driver::start(Env::default(), &world, mesh, pusher);
        Self { world, worlds, driver, address, _tasks: tasks }
    }

    fn put(&mut self, key: &str, value: &Value) {
        let delta = put(&mut self.world, key, value);
        self.worlds.publish(self.world.clone());
        self.driver.step(&self.world, &delta);
    }

    async fn acked(&self) {
        let pusher = self.driver.pusher();
        pusher.wait_acked(None, self.world.revision(), LONG).await.unwrap();
    }
}

fn shop() -> World {
    let mut world = World::new();
    for i in 0..20 {
        let name = format!("svc-{i}");
        put(&mut world, &format!("/o/core/services/shop/{name}"), &service_object(&name));
        put(&mut world, &slice_key(&name), &slice(&name, &["127.64.1.1"]));
    }
    put(&mut world, "/o/core/services/shop/user", &service_object("user"));
    put(&mut world, &slice_key("user"), &slice("user", &["127.64.0.1"]));
    put(&mut world, "/o/core/pods/shop/user-1", &pod("user", "127.64.0.1"));
    put(&mut world, "/o/core/pods/shop/order-1", &pod("order", "127.64.0.2"));
    world
}

#[tokio::test]
async fn one_changed_endpoint_of_the_world_is_one_small_resource_at_the_proxy() {
    let mut plane = Plane::start(shop(), Some("spiffe://cluster.local/ns/shop/sa/user")).await;
    let mut proxy = Proxy::start(plane.address, "sidecar~shop~user-1");
    let set = Root::host(USER).child("endpoints/80");
    proxy.until(|t| t.contains_key(&set)).await;
    plane.acked().await;
    assert!(plane.driver.pusher().inbound_acked("shop", "user-1", &[8080]));
    let inbound =
        |t: &Table, pod: &str| t.contains_key(&crate::mesh::inbound_root("shop", pod, 8080).own());
    assert!(inbound(&proxy.table.borrow(), "user-1"));
    assert!(!inbound(&proxy.table.borrow(), "order-1"));
    let bytes = plane.driver.pusher().metrics().bytes.get();

    plane.put(&slice_key("user"), &slice("user", &["127.64.0.1", "127.64.0.9"]));
    let two = |t: &Table| match t.get(&set) {
        Some((_, Resource::Endpoints(e))) => e.endpoints.len() == 2,
        _ => false,
    };
    proxy.until(two).await;
    plane.acked().await;
    assert_eq!(proxy.log.lock().unwrap().last(), Some(&(1, 0)));
    let bytes = plane.driver.pusher().metrics().bytes.get() - bytes;
    assert!((50..1_000).contains(&bytes), "{bytes}");

    // A status alone is no news for proxies.
    let mut touched = service_object("user");
    touched["status"] = json!({"loadBalancer": {}});
    let transactions = proxy.log.lock().unwrap().len();
    plane.put("/o/core/services/shop/user", &touched);
    plane.acked().await;
    assert_eq!(proxy.log.lock().unwrap().len(), transactions);
}

#[tokio::test]
async fn another_pods_identity_may_not_speak_for_a_sidecar() {
    for (peer, word) in [
        (Some("spiffe://cluster.local/ns/shop/sa/order"), "whose identity is"),
        (Some("spiffe://cluster.local/ns/other/sa/user"), "whose identity is"),
        (None, "must show its certificate"),
    ] {
        let plane = Plane::start(shop(), peer).await;
        let mut proxy = Proxy::start(plane.address, "sidecar~shop~user-1");
        let denied = proxy.status.wait_for(|s| s.error.as_ref().is_some_and(|e| e.contains(word)));
        tokio::time::timeout(LONG, denied).await.unwrap().unwrap();
        assert!(proxy.table.borrow().is_empty());
    }
}

#[tokio::test]
async fn after_missed_steps_proxies_get_only_the_difference() {
    let identity = "spiffe://cluster.local/ns/shop/sa/user";
    let mut plane = Plane::start(shop(), Some(identity)).await;
    let mut proxy = Proxy::start(plane.address, "sidecar~shop~user-1");
    proxy.until(|t| t.contains_key(&Root::host(USER).own())).await;
    plane.acked().await;
    let before = proxy.table.borrow().len();

    let world = &mut plane.world;
    world.apply("/o/core/services/shop/svc-3", None, world.revision() + 1);
    world.apply(&slice_key("svc-3"), None, world.revision() + 1);
    put(world, "/o/core/services/shop/new", &service_object("new"));
    plane.worlds.publish(plane.world.clone());
    plane.driver.reset(&plane.world);
    plane.acked().await;
    let new = Root::host("new.shop.svc.cluster.local");
    proxy.until(|t| t.contains_key(&new.own())).await;
    let gone = Root::host("svc-3.shop.svc.cluster.local");
    assert!(proxy.table.borrow().keys().all(|n| n.root != gone));
    assert_eq!(proxy.table.borrow().len(), before);
    let (upserts, removes) = *proxy.log.lock().unwrap().last().unwrap();
    assert_eq!(upserts, removes, "one service came, one went, nothing else moved");

    // The pod is deleted: its proxy has nothing more to say here.
    plane.world.apply("/o/core/pods/shop/user-1", None, plane.world.revision() + 1);
    plane.worlds.publish(plane.world.clone());
    plane.driver.reset(&plane.world);
    let lost = proxy.status.wait_for(|s| !s.connected && s.error.is_some());
    tokio::time::timeout(LONG, lost).await.unwrap().unwrap();
}

/// A gateway's listeners carry keys: only its own pods' identity reads them.
#[test]
fn a_gateway_is_spoken_for_by_its_own_pods_only() {
    let mut world = shop();
    let mut gateway = pod("web-gateway", "127.64.0.7");
    gateway["metadata"]["annotations"] =
        json!({"weft.dev/proxy": "gateway", "weft.dev/gateway": "web"});
    put(&mut world, "/o/core/pods/shop/web-gateway-x", &gateway);
    let trust_domain = "cluster.local".into();
    let (mesh, world) = (snapshot(Mesh::default()).1, snapshot(world).1);
    let nodes = MeshNodes { mesh, world, trust_domain };
    let admit = |account: &str, node: &str| {
        let id = format!("spiffe://cluster.local/ns/shop/sa/{account}").into();
        let peer = Peer { spiffe_id: Some(id), address: None };
        nodes.admit(&peer, &node.parse().unwrap()).is_ok()
    };
    assert!(admit("web-gateway", "gateway~shop~web"));
    for (account, node) in [
        ("user", "gateway~shop~web"),
        ("web-gateway", "gateway~shop~other"),
        ("web-gateway", "gateway~other~web"),
        ("web-gateway", "sidecar~shop~web-gateway-x"),
        ("web-gateway", "sidecar~shop~user-1"),
    ] {
        assert!(!admit(account, node), "{account} as {node}");
    }
}
