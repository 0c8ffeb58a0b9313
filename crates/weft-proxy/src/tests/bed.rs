// SPDX-License-Identifier: Apache-2.0
//! The test bench: a proxy with its feed, real origins, real clients, resources in short form.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use weft_base::clock::Clock;
use weft_base::snapshot::Snapshot;
use weft_base::task::TaskGroup;
use weft_identity::Svid;
use weft_model::*;
use weft_testkit::ports;
use weft_xds::{Applied, Transaction};

use crate::config::{LogWhat, NodeId, Ports, ProxyConfig};
use crate::explain::Place;
use crate::ingest::source::{Feed, feed, transaction};
use crate::run::Proxy;
use crate::table::{Builder, Door, Table};

pub type Named = (ResourceName, Resource);

/// What a proxy makes of resources, where it need not run.
pub fn table_of(all: Vec<Named>) -> Arc<Table> {
    let all = all.into_iter().map(|(name, resource)| (name, Ok(resource)));
    Builder::new(1, Clock::system(), "shop".into()).apply(1, all.collect(), &[]).0
}

/// A request in plain text at the door of [`gateway`].
pub fn at_gateway(local: SocketAddr) -> Place {
    let door = Door::Gateway("shop/web/8000".into());
    Place { door, local, scheme: "http", server_name: None }
}

/// A running proxy under test.
pub struct Bed {
    pub proxy: Proxy,
    pub feed: Feed,
}

/// A server of the test's own.
pub struct Server {
    pub address: SocketAddr,
    pub hits: Arc<AtomicUsize>,
    pub tasks: TaskGroup,
}

/// What a client got.
#[derive(Debug)]
pub struct Got {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub body: String,
}

pub fn config(node: &str) -> ProxyConfig {
    let mut config = ProxyConfig::new(NodeId::parse(node).unwrap());
    config.ports = Ports { admin: 0, outbound: 0, mesh: 0, metrics: 0, ready: 0, peers: MESH_PORT };
    config.access_log.what = LogWhat::Nothing;
    // Longer than a busy machine holds up what is to end by itself.
    config.drain_grace = Duration::from_secs(60);
    config
}

// === impl Bed ===

impl Bed {
    pub async fn start(config: ProxyConfig, identity: Option<Snapshot<Svid>>) -> Self {
        let (feed, deliveries) = feed();
        let proxy = Proxy::start(config, identity, deliveries, Clock::system()).await.unwrap();
        Self { proxy, feed }
    }

    pub async fn sidecar(resources: Vec<Named>) -> Self {
        let bed = Self::start(config("sidecar~shop~client-1"), None).await;
        bed.apply(1, resources).await;
        bed
    }

    pub async fn gateway(resources: Vec<Named>) -> Self {
        let bed = Self::start(config("gateway~shop~web"), None).await;
        bed.apply(1, resources).await;
        bed
    }

    pub async fn apply(&self, generation: u64, resources: Vec<Named>) -> Applied {
        self.feed.apply(transaction(generation, resources).unwrap()).await.unwrap()
    }

    pub async fn remove(&self, generation: u64, removes: Vec<ResourceName>) -> Applied {
        let transaction = Transaction { generation, removes, ..Transaction::default() };
        self.feed.apply(transaction).await.unwrap()
    }

    /// The forward proxy's address.
    pub fn outbound(&self) -> SocketAddr {
        self.proxy.addresses().outbound.unwrap()
    }

    /// The address of a door that the table opened.
    pub fn door(&self, wanted: impl Fn(&Door) -> bool) -> SocketAddr {
        let sockets = self.proxy.status().sockets();
        sockets.iter().find(|(door, _)| wanted(door)).map(|(_, address)| *address).unwrap()
    }

    pub fn listener(&self) -> SocketAddr {
        self.door(|d| matches!(d, Door::Gateway(_)))
    }

    /// GET through the forward proxy.
    pub async fn get(&self, url: &str) -> Got {
        self.send(Request::get(url).body(Full::default()).unwrap()).await
    }

    /// Any request through the forward proxy, on a connection of its own.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Got {
        send(self.outbound(), request).await
    }

    /// The metrics text.
    pub async fn metrics(&self) -> String {
        let address = self.proxy.addresses().metrics;
        let request = Request::get("/metrics").header("host", "x").body(Full::default()).unwrap();
        send(address, request).await.body
    }
}

// === impl Server ===

impl Server {
    /// Answers 200 with its name.
    pub async fn named(name: &'static str) -> Self {
        Self::http(move |_, _| async move { text(200, name) }).await
    }

    /// HTTP/1.1 or HTTP/2, whichever the proxy speaks. The handler gets the number of the request.
    pub async fn http<F, Fut>(handler: F) -> Self
    where
        F: Fn(usize, Request<Incoming>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Response<Full<Bytes>>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        let count = Arc::new(AtomicUsize::new(0));
        let counter = count.clone();
        let made = Self::raw(move |_, stream| {
            let (handler, counter) = (handler.clone(), counter.clone());
            async move {
                let service = hyper::service::service_fn(move |request| {
                    let n = counter.fetch_add(1, Ordering::SeqCst);
                    let answer = handler(n, request);
                    async move { Ok::<_, std::convert::Infallible>(answer.await) }
                });
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            }
        })
        .await;
        Self { hits: count, ..made }
    }

    /// A socket handler; it gets the number of the connection. The address stays its own when it is
    /// killed: nobody else is given the port.
    pub async fn raw<F, Fut>(handler: F) -> Self
    where
        F: Fn(usize, TcpStream) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(("127.0.0.1", ports::free())).await.unwrap();
        let address = listener.local_addr().unwrap();
        let tasks = TaskGroup::new();
        let hits = Arc::new(AtomicUsize::new(0));
        let (connections, count) = (tasks.clone(), hits.clone());
        tasks.spawn("origin", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let n = count.fetch_add(1, Ordering::SeqCst);
                connections.spawn("origin connection", handler(n, stream));
            }
        });
        Self { address, hits, tasks }
    }

    /// Closes its socket and all connections.
    pub async fn kill(&self) {
        self.tasks.shutdown(Duration::ZERO).await;
    }

    pub fn hits(&self) -> usize {
        self.hits.load(Ordering::SeqCst)
    }
}

/// An address that nobody listens on, nor will: the socket stays bound without listening.
pub async fn nobody() -> SocketAddr {
    static HELD: std::sync::Mutex<Vec<tokio::net::TcpSocket>> = std::sync::Mutex::new(Vec::new());
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    HELD.lock().unwrap().push(socket);
    address
}

pub fn text(status: u16, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    Response::builder().status(status).body(Full::new(body.into())).unwrap()
}

/// One request on a new HTTP/1.1 connection.
pub async fn send(to: SocketAddr, request: Request<Full<Bytes>>) -> Got {
    let mut client = client(to).await;
    client.send(request).await
}

pub fn get(uri: &str, host: &str) -> Request<Full<Bytes>> {
    let uri: Uri = uri.parse().unwrap();
    Request::get(uri).header("host", host).body(Full::default()).unwrap()
}

pub fn post(uri: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::builder().method(Method::POST).uri(uri).body(Full::new(body.into())).unwrap()
}

/// A keep-alive HTTP/1.1 client.
pub struct Client {
    sender: hyper::client::conn::http1::SendRequest<Full<Bytes>>,
    _tasks: TaskGroup,
}

pub async fn client(to: SocketAddr) -> Client {
    client_on(TcpStream::connect(to).await.unwrap()).await
}

pub async fn client_on(stream: TcpStream) -> Client {
    let (sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let tasks = TaskGroup::new();
    tasks.spawn("client", async move {
        let _ = connection.await;
    });
    Client { sender, _tasks: tasks }
}

impl Client {
    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> Got {
        self.try_send(request).await.unwrap()
    }

    pub async fn try_send(&mut self, mut request: Request<Full<Bytes>>) -> Result<Got, String> {
        if let (None, Some(authority)) =
            (request.headers().get("host"), request.uri().authority().cloned())
        {
            request.headers_mut().insert("host", authority.as_str().parse().unwrap());
        }
        self.sender.ready().await.map_err(|e| e.to_string())?;
        let response = self.sender.send_request(request).await.map_err(|e| e.to_string())?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
        Ok(Got {
            status: head.status.as_u16(),
            headers: head.headers,
            body: String::from_utf8_lossy(&body).into_owned(),
        })
    }
}

// === impl Got ===

impl Got {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("")
    }
}

// === resources ===

pub fn fqdn(name: &str) -> String {
    format!("{name}.shop.svc.cluster.local")
}

pub fn endpoint(id: &str, address: SocketAddr) -> Endpoint {
    Endpoint {
        id: id.into(),
        address,
        labels: Labels::new(),
        locality: Locality::default(),
        weight: 1,
        health: Health::Healthy,
        identity: None,
        transport: Transport::Plaintext,
        workload: id.into(),
        mesh_address: None,
    }
}

/// Host, endpoint set and backend of one service with one port (80), with the upstream port of
/// the system's choice.
pub fn service(
    name: &str,
    protocol: Protocol,
    policy: BackendPolicy,
    endpoints: Vec<Endpoint>,
) -> Vec<Named> {
    let host: Arc<str> = fqdn(name).into();
    let root = Root::host(host.clone());
    let port = HostPort {
        port: 80,
        name: "main".into(),
        protocol,
        backend: backend_child(80, "").into(),
        upstream_port: Some(0),
    };
    let mut all = vec![
        (
            root.own(),
            Resource::Host(Host {
                name: host.clone(),
                aliases: vec![name.into(), format!("{name}.shop").into()],
                addresses: Vec::new(),
                ports: vec![port],
            }),
        ),
        backend(name, "", Labels::new(), policy),
    ];
    all.push(endpoints_of(name, protocol, endpoints));
    all
}

pub fn endpoints_of(name: &str, protocol: Protocol, endpoints: Vec<Endpoint>) -> Named {
    let set = EndpointSet {
        service: fqdn(name).into(),
        namespace: "shop".into(),
        port: 80,
        protocol,
        endpoints,
    };
    (Root::host(fqdn(name)).child(endpoints_child(80)), Resource::Endpoints(set))
}

pub fn backend(name: &str, subset: &str, selector: Labels, policy: BackendPolicy) -> Named {
    let backend = Backend {
        service: fqdn(name).into(),
        port: 80,
        subset: subset.into(),
        selector,
        policy,
        origin: None,
    };
    (Root::host(fqdn(name)).child(backend_child(80, subset)), Resource::Backend(backend))
}

pub fn http_service(name: &str, addresses: &[SocketAddr]) -> Vec<Named> {
    let endpoints = addresses.iter().enumerate();
    let endpoints = endpoints.map(|(i, a)| endpoint(&format!("{name}-{i}"), *a)).collect();
    service(name, Protocol::Http1, BackendPolicy::default(), endpoints)
}

pub fn origin_of(name: &str) -> Origin {
    Origin {
        kind: "HTTPRoute".into(),
        namespace: "shop".into(),
        name: name.into(),
        field: "spec.rules[0]".into(),
    }
}

pub fn to(name: &str, subset: &str, weight: u32) -> WeightedBackend {
    let target = Target::Backend(Root::host(fqdn(name)).child(backend_child(80, subset)));
    WeightedBackend { target, weight, filters: Vec::new() }
}

pub fn rule(prefix: &str, action: Action) -> Rule {
    let path = Some(PathMatch::ElementPrefix(prefix.into()));
    Rule {
        name: "".into(),
        matches: vec![Match { path, ..Match::default() }],
        filters: Vec::new(),
        action,
        timeouts: Timeouts::default(),
        retry: Retry::default(),
        session: None,
        origin: origin_of("r"),
        sources: weft_model::Sources::default(),
    }
}

fn rank(name: &str) -> Rank {
    Rank { dialect: Dialect::VirtualService, created_ms: 0, name: name.into() }
}

/// A mesh route of a service.
pub fn mesh_route(name: &str, rules: Vec<Rule>) -> Named {
    let root = Root::host(fqdn(name));
    let route = Route {
        parent: Parent::Host { root: root.clone(), port: None },
        scope: Scope::Any,
        matching: Matching::FirstMatch,
        rank: rank(name),
        rules,
        origin: origin_of(name),
    };
    (root.child(format!("route/virtualservice/shop/{name}")), Resource::Route(route))
}

/// A gateway listener on a port of the system's choice with one section.
pub fn gateway(hostname: Option<&str>) -> Named {
    let section = Section {
        name: "http".into(),
        hostname: hostname.map(Into::into),
        protocol: Protocol::Http1,
        tls: None,
    };
    let listener = GatewayListener::new(vec!["127.0.0.1:0".parse().unwrap()], vec![section]);
    let kind = ListenerKind::Gateway(listener);
    let root = Root::listener("shop/web/8000");
    (root.own(), Resource::Listener(Listener { name: "shop/web/8000".into(), kind, origin: None }))
}

pub fn gateway_route(name: &str, hostnames: &[&str], rules: Vec<Rule>) -> Named {
    let root = Root::listener("shop/web/8000");
    let route = Route {
        parent: Parent::Listener {
            root: root.clone(),
            sections: vec!["http".into()],
            hostnames: hostnames.iter().map(|h| (*h).into()).collect(),
        },
        scope: Scope::Any,
        matching: Matching::MostSpecific,
        rank: Rank { dialect: Dialect::ProducerHttpRoute, ..rank(name) },
        rules,
        origin: origin_of(name),
    };
    (root.child(format!("route/httproute/shop/{name}")), Resource::Route(route))
}

/// Waits until something holds; fails after a minute, since a machine may stand still for long.
pub async fn wait_until<F, Fut>(what: &str, mut condition: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting)
        .await
        .unwrap_or_else(|_| panic!("{what} did not come true"));
}
