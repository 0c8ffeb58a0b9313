// SPDX-License-Identifier: Apache-2.0
//! The pusher over real gRPC on loopback, with real clients that stand for proxies.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::FutureExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use weft_base::clock::Clock;
use weft_base::rng::Rng;
use weft_base::task::TaskGroup;
use weft_model::{
    Backend, Endpoint, EndpointSet, Fail, Health, Host, HostPort, InboundListener, Listener,
    ListenerKind, MtlsMode, Protocol, Resource, ResourceName, Root, Transport,
};
use weft_xds::client::{self, Connect, Handle, Options, PlainTcp};
use weft_xds::server::{self, AdsService, Handshake, Peer};
use weft_xds::{Applied, NodeId, NodeInfo, NodeKind, Rejected, Transaction, Version};

use super::*;

mod book;
mod driver;
mod hold;
mod mtls;
mod wire;

/// Only guards: no test takes so long on any machine.
const LONG: Duration = Duration::from_secs(120);

/// Sidecars see all hosts but those of namespace `hidden`, and their own inbound listeners.
#[derive(Debug)]
pub(super) struct SidecarScope {
    inbound: String,
    pub(super) hidden: bool,
}

impl NodeScope for SidecarScope {
    fn sees(&self, name: &ResourceName, _resource: &Resource) -> bool {
        match &name.root {
            Root::Host(host) => self.hidden || !host.contains(".hidden."),
            Root::Listener(listener) => listener.starts_with(&self.inbound),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct TestNodes {
    /// When set, only this identity may speak.
    only: Option<Arc<str>>,
    pub(super) gone: Mutex<BTreeSet<NodeId>>,
    pub(super) sees_hidden: Mutex<BTreeSet<NodeId>>,
}

impl Nodes for TestNodes {
    fn admit(&self, peer: &Peer, node: &NodeId) -> Result<(), String> {
        match &self.only {
            Some(only) if peer.spiffe_id.as_ref() != Some(only) => {
                Err(format!("{:?} may not speak for {node}", peer.spiffe_id))
            }
            _ => Ok(()),
        }
    }

    fn scope(&self, node: &NodeId) -> Option<Arc<dyn NodeScope>> {
        assert_eq!(node.kind, NodeKind::Sidecar);
        if self.gone.lock().unwrap().contains(node) {
            return None;
        }
        let inbound = format!("inbound~{}~{}~", node.namespace, node.name);
        let hidden = self.sees_hidden.lock().unwrap().contains(node);
        Some(Arc::new(SidecarScope { inbound, hidden }))
    }
}

/// A server process: a pusher behind a socket.
pub(super) struct Server {
    pub(super) pusher: Pusher,
    pub(super) nodes: Arc<TestNodes>,
    pub(super) address: SocketAddr,
    tasks: TaskGroup,
}

impl Server {
    pub(super) async fn start() -> Self {
        Self::start_with(TestNodes::default(), "127.0.0.1:0".parse().unwrap()).await
    }

    async fn start_with(nodes: TestNodes, address: SocketAddr) -> Self {
        Self::start_over(nodes, address, server::plaintext()).await
    }

    async fn start_over<T>(nodes: TestNodes, address: SocketAddr, shake: Handshake<T>) -> Self
    where
        T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let tasks = TaskGroup::new();
        let nodes = Arc::new(nodes);
        let pusher = Pusher::start(nodes.clone(), Clock::system(), &tasks);
        let address = serve(&pusher, address, shake, &tasks).await;
        Self { pusher, nodes, address, tasks }
    }

    async fn stop(self) {
        self.tasks.shutdown(Duration::from_secs(5)).await;
    }

    pub(super) async fn synced(&self, nodes: usize) {
        let mut changes = self.pusher.changes();
        let all = async {
            loop {
                changes.mark_unchanged();
                let status = self.pusher.status();
                if status.iter().filter(|s| s.synced).count() == nodes {
                    return;
                }
                changes.changed().await.unwrap();
            }
        };
        let waited = tokio::time::timeout(LONG, all).await;
        assert!(waited.is_ok(), "not synced: {:#?}", self.pusher.status());
    }

    /// Waits until a generation is pushed, answered or not.
    async fn published(&self, generation: u64) {
        let mut changes = self.pusher.changes();
        let pushed = async {
            while self.pusher.generation() < generation {
                changes.changed().await.unwrap();
            }
        };
        assert!(tokio::time::timeout(LONG, pushed).await.is_ok(), "{generation} is not pushed");
    }

    fn status_of(&self, node: &str) -> ProxyStatus {
        self.pusher.status().into_iter().find(|s| s.node == node).unwrap()
    }
}

/// Serves a pusher on a socket; returns its address.
async fn serve<T>(
    pusher: &Pusher,
    address: SocketAddr,
    shake: Handshake<T>,
    tasks: &TaskGroup,
) -> SocketAddr
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = server::incoming(listener, shake, tasks);
    let service = AdsService::new(Arc::new(pusher.clone()), tasks.clone()).into_server();
    let group = tasks.clone();
    tasks.spawn("test server", async move {
        let served = server::builder().add_service(service);
        served.serve_with_incoming_shutdown(incoming, group.draining()).await.unwrap();
    });
    address
}

type Table = BTreeMap<ResourceName, (Version, Resource)>;
type Refuses = fn(&Resource) -> Option<&'static str>;

/// A proxy without sockets: applies transactions to a table and answers.
pub(super) struct Proxy {
    id: String,
    table: watch::Receiver<Table>,
    status: watch::Receiver<client::Status>,
    /// Upserts and removes of each transaction.
    log: Arc<Mutex<Vec<(usize, usize)>>>,
    /// A permit for each transaction that it may apply.
    gate: Arc<Semaphore>,
    tasks: TaskGroup,
}

impl Proxy {
    pub(super) fn start(server: SocketAddr, id: &str) -> Self {
        Self::start_from(server, id, Table::new(), Semaphore::MAX_PERMITS, |_| None)
    }

    fn start_from(
        server: SocketAddr,
        id: &str,
        last_good: Table,
        permits: usize,
        refuses: Refuses,
    ) -> Self {
        let connect = Arc::new(PlainTcp { authority: server.to_string() });
        Self::start_over(connect, id, last_good, permits, refuses)
    }

    fn start_over(
        connect: Arc<dyn Connect>,
        id: &str,
        last_good: Table,
        permits: usize,
        refuses: Refuses,
    ) -> Self {
        let tasks = TaskGroup::new();
        let node = NodeInfo::this_release(id.parse().unwrap(), "test");
        let held = last_good.iter().map(|(name, (version, _))| (name.clone(), *version)).collect();
        let wanted = client::nothing_more();
        let options = Options { node, held, wanted, rng: Rng::seeded(1) };
        let handle = client::run(connect, options, &tasks);
        let status = handle.status.clone();
        let (table_tx, table) = watch::channel(last_good);
        let log = Arc::new(Mutex::new(Vec::new()));
        let gate = Arc::new(Semaphore::new(permits));
        let applying = Self::apply(handle, table_tx, log.clone(), gate.clone(), refuses);
        tasks.spawn("test proxy", applying);
        Self { id: id.to_owned(), table, status, log, gate, tasks }
    }

    async fn apply(
        mut handle: Handle,
        table: watch::Sender<Table>,
        log: Arc<Mutex<Vec<(usize, usize)>>>,
        gate: Arc<Semaphore>,
        refuses: Refuses,
    ) {
        while let Some(transaction) = handle.transactions.recv().await {
            gate.acquire().await.unwrap().forget();
            let Transaction { generation, upserts, removes, .. } = transaction;
            log.lock().unwrap().push((upserts.len(), removes.len()));
            let mut rejected = Vec::new();
            table.send_modify(|table| {
                for name in removes {
                    table.remove(&name).unwrap();
                }
                for u in upserts {
                    let resource = u.resource.unwrap();
                    match refuses(&resource) {
                        Some(reason) => rejected.push(Rejected::new(u.name.to_string(), reason)),
                        None => drop(table.insert(u.name, (u.version, resource))),
                    }
                }
            });
            if handle.applied.send(Applied { generation, rejected }).await.is_err() {
                return;
            }
        }
    }

    async fn until(&mut self, want: impl FnMut(&Table) -> bool) {
        let waited = tokio::time::timeout(LONG, self.table.wait_for(want)).await;
        assert!(waited.is_ok(), "{}: {:?}", self.id, self.status.borrow());
    }

    /// Like a kill: what it was doing is not finished.
    async fn stop(self) -> Table {
        self.tasks.shutdown(Duration::ZERO).await;
        self.table.borrow().clone()
    }
}

pub(super) fn host_root(service: &str) -> Root {
    Root::host(format!("{service}.shop.svc.cluster.local"))
}

pub(super) fn endpoints(service: &str, ips: &[&str]) -> (ResourceName, Arc<Resource>) {
    let endpoint = |ip: &&str| Endpoint {
        id: format!("{service}-{ip}").into(),
        address: SocketAddr::new(ip.parse().unwrap(), 8080),
        labels: [("version".into(), "v1".into())].into(),
        locality: Default::default(),
        weight: 1,
        health: Health::Healthy,
        identity: Some("spiffe://cluster.local/ns/shop/sa/default".into()),
        transport: Transport::MeshH2,
        workload: service.into(),
        mesh_address: None,
    };
    let set = EndpointSet {
        service: service.into(),
        namespace: "shop".into(),
        port: 80,
        protocol: Protocol::Http1,
        endpoints: ips.iter().map(endpoint).collect(),
    };
    (host_root(service).child("endpoints/80"), Arc::new(Resource::Endpoints(set)))
}

/// A service with one port: host, backend and endpoints.
pub(super) fn service(name: &str) -> Vec<(ResourceName, Arc<Resource>)> {
    let root = host_root(name);
    let fqdn: Arc<str> = format!("{name}.shop.svc.cluster.local").into();
    let port = HostPort {
        port: 80,
        name: "http".into(),
        protocol: Protocol::Http1,
        backend: "backend/80".into(),
        upstream_port: Some(20_000),
    };
    let host = Host {
        name: fqdn.clone(),
        aliases: vec![format!("{name}.shop").into()],
        addresses: vec!["127.96.0.1".parse().unwrap()],
        ports: vec![port],
    };
    let backend = Backend {
        service: fqdn,
        port: 80,
        subset: "".into(),
        selector: Default::default(),
        policy: Default::default(),
        origin: None,
    };
    vec![
        (root.own(), Arc::new(Resource::Host(host))),
        (root.child("backend/80"), Arc::new(Resource::Backend(backend))),
        endpoints(name, &["127.64.0.1", "127.64.0.2"]),
    ]
}

pub(super) fn inbound(pod: &str, port: u16) -> (ResourceName, Arc<Resource>) {
    let root = crate::mesh::inbound_root("shop", pod, port);
    let listener = InboundListener {
        port,
        app: SocketAddr::new("127.64.0.1".parse().unwrap(), port),
        protocol: Protocol::Http1,
        services: Vec::new(),
        mtls: MtlsMode::Permissive,
    };
    let kind = ListenerKind::Inbound(listener);
    let name = root.to_string().trim_start_matches("listener:").into();
    (root.own(), Arc::new(Resource::Listener(Listener { name, kind, origin: None })))
}

pub(super) fn fail(service: &str, reason: &str) -> (ResourceName, Arc<Resource>) {
    let resource = Resource::Fail(Fail { reason: reason.into(), origin: None });
    (host_root(service).child("route/r"), Arc::new(resource))
}

pub(super) fn delta(
    generation: u64,
    upserts: impl IntoIterator<Item = (ResourceName, Arc<Resource>)>,
) -> Delta {
    Delta { generation, upserts: upserts.into_iter().collect(), ..Delta::default() }
}
