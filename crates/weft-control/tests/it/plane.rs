// SPDX-License-Identifier: Apache-2.0
//! A real server over a World and real proxies, over TCP on loopback. Peers are taken for the
//! service account `p` of namespace `shop`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use weft_base::clock::Clock;
use weft_base::rng::Rng;
use weft_base::snapshot::{Publisher, snapshot};
use weft_base::task::TaskGroup;
use weft_control::compile::Env;
use weft_control::mesh::Mesh;
use weft_control::push::{Driver, HoldLimits, MeshNodes, ProxyStatus, Pusher};
use weft_kinds::world::World;
use weft_proxy::config::{LogWhat, Ports};
use weft_proxy::ingest::source;
use weft_proxy::{NodeId, Proxy, ProxyConfig};
use weft_xds::NodeInfo;
use weft_xds::client::{self, Options, PlainTcp};
use weft_xds::server::{self, AdsService, Handshake, Peer};

/// Only guards: no test takes so long on any machine.
pub const LONG: Duration = Duration::from_secs(120);

/// A server that is compiled from a World.
pub struct Server {
    pub world: World,
    worlds: Publisher<World>,
    pub driver: Driver,
    pub address: SocketAddr,
    tasks: TaskGroup,
}

impl Server {
    pub async fn start(world: World, address: SocketAddr) -> Self {
        Self::start_with(world, address, HoldLimits::default()).await
    }

    /// The same with other limits of what a proxy is sent without asking.
    pub async fn start_with(world: World, address: SocketAddr, limits: HoldLimits) -> Self {
        let (mesh, mesh_reader) = snapshot(Mesh::default());
        let (worlds, world_reader) = snapshot(world.clone());
        let trust_domain: Arc<str> = "cluster.local".into();
        let nodes = MeshNodes { mesh: mesh_reader, world: world_reader, trust_domain };
        let tasks = TaskGroup::new();
        let pusher = Pusher::start_with(Arc::new(nodes), Clock::system(), limits, &tasks);
        let shake: Handshake<TcpStream> = Arc::new(|io| {
            let id = "spiffe://cluster.local/ns/shop/sa/p".into();
            let peer = Peer { spiffe_id: Some(id), address: None };
            async move { Ok((io, peer)) }.boxed()
        });
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = server::incoming(listener, shake, &tasks);
        let service = AdsService::new(Arc::new(pusher.clone()), tasks.clone()).into_server();
        let group = tasks.clone();
        tasks.spawn("server", async move {
            let served = server::builder().add_service(service);
            served.serve_with_incoming_shutdown(incoming, group.draining()).await.unwrap();
        });
        let (driver, _) = Driver::start(Env::default(), &world, mesh, pusher);
        Self { world, worlds, driver, address, tasks }
    }

    /// Something is done to the World, and the proxy has answered it.
    pub async fn change(&mut self, change: impl FnOnce(&mut World)) {
        change(&mut self.world);
        self.worlds.publish(self.world.clone());
        self.driver.reset(&self.world);
        self.driver.pusher().wait_acked(None, self.world.revision(), LONG).await.unwrap();
    }

    /// Waits until the status of the one proxy is as wanted.
    pub async fn until(&self, want: impl Fn(&ProxyStatus) -> bool) {
        let pusher = self.driver.pusher();
        let mut changes = pusher.changes();
        let fits = async {
            while !pusher.status().iter().any(&want) {
                changes.changed().await.unwrap();
            }
        };
        assert!(timeout(LONG, fits).await.is_ok(), "{:#?}", pusher.status());
    }

    pub async fn stop(self) -> World {
        self.tasks.shutdown(Duration::from_secs(5)).await;
        self.world
    }
}

/// A proxy with its stream.
pub struct Running {
    pub proxy: Proxy,
    tasks: TaskGroup,
}

impl Running {
    /// `change` is done to the usual configuration of a proxy under test.
    pub async fn start(
        node: &str,
        server: SocketAddr,
        change: impl FnOnce(&mut ProxyConfig),
    ) -> Self {
        let mut config = ProxyConfig::new(NodeId::parse(node).unwrap());
        config.ports = Ports { admin: 0, outbound: 0, mesh: 0, metrics: 0, ready: 0, peers: 1 };
        config.access_log.what = LogWhat::Nothing;
        change(&mut config);
        let (feed, deliveries) = weft_proxy::feed();
        let proxy = Proxy::start(config, None, deliveries, Clock::system()).await.unwrap();
        let tasks = TaskGroup::new();
        let options = Options {
            node: NodeInfo::this_release(node.parse().unwrap(), "test"),
            held: proxy.held().clone(),
            wanted: proxy.wanted(),
            rng: Rng::seeded(1),
        };
        let connect = Arc::new(PlainTcp { authority: server.to_string() });
        let handle = client::run(connect, options, &tasks);
        tasks.spawn("pump", source::pump(handle, feed, proxy.amended()));
        Self { proxy, tasks }
    }

    pub fn hosts(&self) -> usize {
        self.proxy.status().table.load().hosts().count()
    }

    /// Waits until as many hosts are held as wanted.
    pub async fn until(&self, want: impl Fn(usize) -> bool) {
        let mut table = self.proxy.status().table.clone();
        let fits = async {
            while !want(table.load().hosts().count()) {
                assert!(table.changed().await);
            }
        };
        assert!(timeout(LONG, fits).await.is_ok(), "{} hosts", self.hosts());
    }

    /// GET through the forward proxy: status and body.
    pub async fn forward(&self, host: &str) -> (u16, String) {
        self.get(host, self.proxy.addresses().outbound.unwrap().port()).await
    }

    /// GET at a port of it.
    pub async fn get(&self, host: &str, port: u16) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let request =
            format!("GET http://{host}/ HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(LONG, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    pub async fn stop(self) {
        self.tasks.shutdown(Duration::ZERO).await;
        assert!(self.proxy.drain().await);
    }
}
