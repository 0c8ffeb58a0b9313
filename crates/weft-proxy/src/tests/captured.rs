// SPDX-License-Identifier: Apache-2.0
//! What a pod sends, captured. The kernel's redirect is replaced by a table of who dialled what;
//! everything else is real. With the kernel: `tests/test_capture.py`.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use weft_base::sockets::{SocketFactory, bind_door, serve_door};
use weft_base::task::TaskGroup;
use weft_model::*;

use super::bed::*;
use super::mtls::{Ca, meshed, server};
use crate::capture::original::OriginalDst;
use crate::config::{Capture, LogFormat, LogWhat, ProxyConfig};

/// Who dialled what.
#[derive(Clone, Default)]
pub struct Dialled(Arc<Mutex<HashMap<SocketAddr, SocketAddr>>>);

impl Dialled {
    /// A sidecar that captures, on ports of the system's choice.
    pub fn config(&self, node: &str) -> ProxyConfig {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let known = self.0.clone();
        let mut made = config(node);
        made.capture = Some(Capture {
            outbound: vec![any],
            inbound: vec![any],
            dns: vec![any],
            mesh: vec![any],
            resolver: None,
            original: OriginalDst::Given(Arc::new(move |client| {
                known.lock().unwrap().get(&client).copied()
            })),
        });
        made
    }

    /// A connection that was made to `to` and redirected to `door`.
    pub async fn connect(&self, door: SocketAddr, to: impl ToString) -> TcpStream {
        self.try_connect(door, to).await.unwrap()
    }

    pub async fn try_connect(&self, door: SocketAddr, to: impl ToString) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let to = to.to_string().parse().unwrap();
        self.0.lock().unwrap().insert(socket.local_addr().unwrap(), to);
        socket.connect(door).await
    }
}

/// Sends some bytes and reads until the end. A reset may come as early as the connection.
pub async fn exchange(
    connecting: impl Future<Output = io::Result<TcpStream>>,
    bytes: &[u8],
) -> Result<String, io::ErrorKind> {
    let mut stream = connecting.await.map_err(|e| e.kind())?;
    match stream.write_all(bytes).await {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e.kind()),
        _ => rest(&mut stream).await,
    }
}

/// The same of a client that says when it has nothing more to send.
async fn exchange_half(
    connecting: impl Future<Output = io::Result<TcpStream>>,
) -> Result<String, io::ErrorKind> {
    let mut stream = connecting.await.map_err(|e| e.kind())?;
    stream.write_all(b"\0\0").await.map_err(|e| e.kind())?;
    stream.shutdown().await.map_err(|e| e.kind())?;
    rest(&mut stream).await
}

/// A sidecar that captures what its pod sends.
struct Pod {
    dialled: Dialled,
    bed: Bed,
}

impl Pod {
    async fn new(resources: Vec<Named>) -> Self {
        Self::with(resources, |_| {}).await
    }

    async fn with(resources: Vec<Named>, change: impl FnOnce(&mut ProxyConfig)) -> Self {
        let dialled = Dialled::default();
        let mut config = dialled.config("sidecar~shop~client-1");
        change(&mut config);
        let bed = Bed::start(config, None).await;
        bed.apply(1, resources).await;
        Self { dialled, bed }
    }

    async fn dial(&self, to: impl ToString) -> TcpStream {
        self.dialled.connect(self.bed.outbound(), to).await
    }

    async fn get(&self, to: impl ToString, path: &str, host: &str) -> Got {
        client_on(self.dial(to).await).await.send(get(path, host)).await
    }
}

/// Gives a service an address of its own.
pub fn addressed(mut resources: Vec<Named>, address: &str) -> Vec<Named> {
    for (_, resource) in &mut resources {
        if let Resource::Host(host) = resource {
            host.addresses.push(address.parse().unwrap());
        }
    }
    resources
}

pub async fn echo() -> Server {
    Server::raw(|_, mut stream| async move {
        let (mut r, mut w) = stream.split();
        let _ = tokio::io::copy(&mut r, &mut w).await;
        let _ = w.shutdown().await;
    })
    .await
}

pub async fn greeter() -> Server {
    Server::raw(|_, mut stream| async move {
        stream.write_all(b"220 ready\r\n").await.unwrap();
        let mut buffer = [0u8; 64];
        let n = stream.read(&mut buffer).await.unwrap_or(0);
        let _ = stream.write_all(&buffer[..n]).await;
    })
    .await
}

/// Reads until the end; `Err` when it was a reset.
pub async fn rest(stream: &mut TcpStream) -> Result<String, io::ErrorKind> {
    let mut all = Vec::new();
    match stream.read_to_end(&mut all).await {
        Ok(_) => Ok(String::from_utf8_lossy(&all).into_owned()),
        Err(error) => Err(error.kind()),
    }
}

const RESET: Result<String, io::ErrorKind> = Err(io::ErrorKind::ConnectionReset);

#[tokio::test(flavor = "multi_thread")]
async fn the_dialled_address_decides_and_what_is_measured_names_its_service() {
    let (user, order) = (Server::named("user").await, Server::named("order").await);
    let mut all = addressed(http_service("user", &[user.address]), "10.96.0.1");
    all.extend(addressed(http_service("order", &[order.address]), "10.96.0.2"));
    all.extend(addressed(http_service("empty", &[]), "fd00::3"));
    let pod = Pod::new(all).await;
    for host in ["user", "user.shop:80", "10.96.0.1", "order", "example.org"] {
        assert_eq!(pod.get("10.96.0.1:80", "/", host).await.body, "user", "{host}");
    }
    assert_eq!(pod.get("10.96.0.2:80", "/", "x").await.body, "order");
    let got = pod.get("[fd00::3]:80", "/", "x").await;
    assert_eq!((got.status, got.header("x-weft-flags")), (503, "UH"));
    assert!(got.body.contains("original destination: [fd00::3]:80"), "{}", got.body);
    // HTTP/1.0 need not name a host.
    let mut old = pod.dial("10.96.0.1:80").await;
    old.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    assert!(rest(&mut old).await.unwrap().ends_with("user"));
    let metrics = pod.bed.metrics().await;
    let counted = |service: &str, n: usize| {
        metrics.lines().any(|l| {
            l.starts_with("istio_requests_total{")
                && l.contains(&format!("destination_service=\"{}\"", fqdn(service)))
                && l.contains("reporter=\"source\"")
                && l.ends_with(&format!(" {n}"))
        })
    };
    assert!(counted("user", 6) && counted("order", 1), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_dialled_by_its_own_address_is_reached_by_mesh_mtls() {
    let ca = Ca::new();
    let apps = [Server::named("0").await, Server::named("1").await];
    let far = server(&ca, apps[0].address, Protocol::Http1).await;
    far.apply(2, vec![super::mtls::inbound(apps[1].address, Protocol::Http1)]).await;
    // Headless; the second one is not ready, and its clients may mean it all the same.
    let endpoints = vec![
        Endpoint { id: "user-0".into(), ..meshed(apps[0].address, "user", Transport::MeshH2) },
        Endpoint {
            id: "user-1".into(),
            workload: "user-1".into(),
            health: Health::Unhealthy,
            ..meshed(apps[1].address, "user", Transport::MeshH1)
        },
    ];
    let all = service("user", Protocol::Http1, BackendPolicy::default(), endpoints);
    let dialled = Dialled::default();
    let mut config = dialled.config("sidecar~shop~client-1");
    config.ports.peers = far.proxy.addresses().mesh.unwrap().port();
    let (_, svid) = ca.source("order");
    let bed = Bed::start(config, Some(svid)).await;
    bed.apply(1, all).await;
    let pod = Pod { dialled, bed };
    for (app, name) in apps.iter().zip(["0", "1"]) {
        for _ in 0..5 {
            assert_eq!(pod.get(app.address, "/", "user").await.body, name);
        }
    }
    assert!(far.metrics().await.contains("connection_security_policy=\"mutual_tls\""));
    let metrics = pod.bed.metrics().await;
    assert!(metrics.contains("destination_workload=\"user-1\""), "{metrics}");
}

/// Instances of one service share its limit, however they are dialled and by whichever worker.
#[tokio::test(flavor = "multi_thread")]
async fn what_one_instance_has_idle_gives_way_to_another() {
    for (workers, protocol) in [(1, Protocol::Http1), (1, Protocol::Http2), (2, Protocol::Http1)] {
        let apps = [Server::named("0").await, Server::named("1").await];
        let limits = Limits { connections_max: Some(1), ..Limits::default() };
        let policy = BackendPolicy { limits, ..BackendPolicy::default() };
        let endpoints = vec![endpoint("0", apps[0].address), endpoint("1", apps[1].address)];
        let resources = addressed(service("user", protocol, policy, endpoints), "10.96.0.1");
        let pod = Pod::with(resources, |config| config.workers = workers).await;
        // As many clients as workers meet each of them.
        let mut clients = Vec::new();
        for app in [&apps[0], &apps[1], &apps[1], &apps[0]] {
            clients.push(client_on(pod.dial(app.address).await).await);
        }
        for _ in 0..2 {
            for (client, name) in clients.iter_mut().zip(["0", "1", "1", "0"]) {
                let got = client.send(get("/", "user")).await;
                assert_eq!((got.status, &*got.body), (200, name), "{workers} {protocol:?}");
            }
        }
        // Whoever dials the service shares it, too.
        let got = pod.get("10.96.0.1:80", "/", "user").await;
        assert_eq!(got.status, 200, "{workers} {protocol:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_passes_to_an_instance_whose_tls_cannot_be_spoken() {
    let (app, other) = (echo().await, echo().await);
    let of = |tls: Option<UpstreamTls>| {
        let policy = BackendPolicy { tls: tls.map(Box::new), ..BackendPolicy::default() };
        service("user", Protocol::Detect, policy, vec![endpoint("user-0", app.address)])
    };
    let pod = Pod::new(of(None)).await;
    let try_dial = |to| pod.dialled.try_connect(pod.bed.outbound(), to);
    assert_eq!(exchange_half(try_dial(app.address)).await.unwrap(), "\0\0");
    let before = app.hits();
    let star = UpstreamTls { server_name: Some("*.example".into()), ..UpstreamTls::default() };
    pod.bed.apply(2, of(Some(star))).await;
    // By its own address it is known all the same: nothing goes there in plaintext.
    assert_eq!(exchange(try_dial(app.address), b"\0\0").await, RESET);
    let got = pod.get(app.address, "/", "example.org").await;
    assert_eq!((got.status, got.header("x-weft-flags")), (503, "NC"));
    assert!(got.body.contains("is no server name"), "{}", got.body);
    assert_eq!(app.hits(), before);
    // What nobody knows passes as before.
    assert_eq!(exchange_half(try_dial(other.address)).await.unwrap(), "\0\0");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_mesh_does_not_know_passes_and_is_counted() {
    let (outside, raw) = (Server::named("outside").await, greeter().await);
    let named = Server::named("named").await;
    let pod = Pod::new(http_service("api", &[named.address])).await;
    assert_eq!(pod.get(outside.address, "/", "example.org").await.body, "outside");
    let mut stream = pod.dial(raw.address).await;
    stream.write_all(b"QUIT\r\n").await.unwrap();
    assert_eq!(rest(&mut stream).await.unwrap(), "220 ready\r\nQUIT\r\n");
    // A host of the mesh that is resolved elsewhere is known by its name.
    let got = pod.get("192.0.2.1:80", "/", &fqdn("api")).await;
    assert_eq!(got.body, "named");
    wait_until("both are counted", || async {
        let metrics = pod.bed.metrics().await;
        let passed = |name: &str| {
            let of = |l: &&str| l.starts_with(name) && l.contains("PassthroughCluster");
            metrics.lines().filter(of).count() == 1
        };
        passed("istio_requests_total{") && passed("istio_tcp_connections_opened_total{")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_is_not_balanced_is_where_its_client_dialled_it() {
    let (dialled, instance) = (Server::named("dialled").await, Server::named("instance").await);
    let at = dialled.address;
    let of = |lb: LbPolicy, tls: Option<UpstreamTls>| {
        let policy = BackendPolicy { lb, tls: tls.map(Box::new), ..BackendPolicy::default() };
        let instances = vec![endpoint("api-0", instance.address)];
        let mut all = addressed(service("api", Protocol::Http1, policy, instances), "10.96.0.1");
        for (_, resource) in &mut all {
            let Resource::Host(host) = resource else { continue };
            host.ports.iter_mut().for_each(|port| port.port = at.port());
        }
        all
    };
    let pod = Pod::new(of(LbPolicy::Random, None)).await;
    let own = format!("10.96.0.1:{}", at.port());
    assert_eq!(pod.get(at, "/", &fqdn("api")).await.body, "instance");
    pod.bed.apply(2, of(LbPolicy::Passthrough, None)).await;
    for _ in 0..3 {
        assert_eq!(pod.get(at, "/", &fqdn("api")).await.body, "dialled");
    }
    // The service's own address stands for no instance.
    assert_eq!(pod.get(&own, "/", &fqdn("api")).await.body, "instance");
    // Nothing goes there in plaintext where instances are spoken to by TLS.
    let tls = UpstreamTls { server_name: Some("api.example".into()), ..UpstreamTls::default() };
    pod.bed.apply(3, of(LbPolicy::Passthrough, Some(tls))).await;
    let got = pod.get(at, "/", &fqdn("api")).await;
    assert_eq!((got.status, dialled.hits()), (503, 3), "{}", got.body);
    // Nor where they are spoken to by the mesh's.
    let instances = vec![meshed(instance.address, "api", Transport::MeshH2)];
    let set = endpoints_of("api", Protocol::Http1, instances);
    let mut meshed_api = of(LbPolicy::Passthrough, None);
    meshed_api.retain(|(name, _)| *name != set.0);
    meshed_api.push(set);
    pod.bed.apply(4, meshed_api).await;
    let got = pod.get(at, "/", &fqdn("api")).await;
    assert_eq!((got.status, dialled.hits()), (503, 3), "{}", got.body);
    // Nor where the mesh does not know and others are denied.
    let mut denied = of(LbPolicy::Passthrough, None);
    let name: Arc<str> = "inbound~shop~client-1~capture".into();
    let listener = CaptureListener { egress: Egress::Deny, ..CaptureListener::default() };
    let kind = ListenerKind::Capture(listener);
    let root = Root::listener(name.clone());
    denied.push((root.own(), Resource::Listener(Listener { name, kind, origin: None })));
    pod.bed.apply(5, denied).await;
    assert_eq!(pod.get(at, "/", &fqdn("api")).await.body, "instance");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_not_pass_is_answered_or_reset_and_says_why() {
    let outside = greeter().await;
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let mut all = addressed(http_service("user", &[nobody().await]), "10.96.0.1");
    let name: Arc<str> = "inbound~shop~client-1~capture".into();
    let listener = CaptureListener { egress: Egress::Deny, ..CaptureListener::default() };
    let kind = ListenerKind::Capture(listener);
    let root = Root::listener(name.clone());
    all.push((root.own(), Resource::Listener(Listener { name, kind, origin: None })));
    let path = log.clone();
    let pod = Pod::with(all, move |config| {
        config.access_log.what = LogWhat::Failures;
        config.access_log.format = LogFormat::Json;
        config.access_log.path = Some(path);
    })
    .await;
    let got = pod.get(outside.address, "/", "example.org").await;
    assert_eq!((got.status, got.header("x-weft-flags")), (502, "NR"));
    assert!(got.body.contains("is not in the mesh, and others are denied"), "{}", got.body);
    // Bytes that are no HTTP cannot be answered.
    let try_dial = |to: String| pod.dialled.try_connect(pod.bed.outbound(), to);
    assert_eq!(exchange(try_dial(outside.address.to_string()), b"\0\0\0").await, RESET);
    // Addresses of Services that are none, and ports that a Service does not have.
    for to in ["10.96.7.7:80", "10.96.0.1:81"] {
        assert_eq!(exchange(try_dial(to.to_owned()), b"\0").await, RESET, "{to}");
    }
    // Nobody redirected this one: it would go round in circles.
    assert_eq!(exchange(TcpStream::connect(pod.bed.outbound()), b"").await, RESET);
    assert_eq!(outside.hits(), 0);
    let metrics = pod.bed.metrics().await;
    assert!(metrics.lines().any(|l| l.starts_with("istio_tcp_connections_opened_total{")
        && l.contains("destination_service=\"BlackHoleCluster\"")
        && l.contains("response_flags=\"NR\"")));
    assert!(
        metrics.lines().any(|l| l.starts_with("istio_requests_total{")
            && l.contains("destination_service=\"BlackHoleCluster\"")),
        "{metrics}"
    );
    let root = Root::listener("inbound~shop~client-1~capture");
    pod.bed.remove(2, vec![root.own()]).await;
    let mut stream = pod.dial(outside.address).await;
    stream.write_all(b"QUIT").await.unwrap();
    assert_eq!(rest(&mut stream).await.unwrap(), "220 ready\r\nQUIT");
    wait_until("each is in the log with its reason", || async {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        [
            "no service has the address 10.96.7.7",
            "has no port 81",
            "10.96.0.1:81",
            "only takes connections that were redirected",
        ]
        .iter()
        .all(|part| text.contains(part))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_greeting_is_hardly_later_than_without_a_proxy() {
    let server = greeter().await;
    let endpoints = vec![endpoint("a", server.address)];
    let all = service("db", Protocol::Detect, BackendPolicy::default(), endpoints);
    let pod = Pod::new(addressed(all, "10.96.0.1")).await;
    let mut best = [Duration::MAX; 2];
    let added = |best: [Duration; 2]| best[1].saturating_sub(best[0]);
    const HARDLY: Duration = Duration::from_millis(5);
    // A busy machine is late now and then, but not each time.
    for round in 0..500 {
        if round >= 20 && added(best) <= HARDLY {
            break;
        }
        for (through, best) in [false, true].into_iter().zip(&mut best) {
            let began = tokio::time::Instant::now();
            let mut stream = match through {
                true => pod.dial("10.96.0.1:80").await,
                false => TcpStream::connect(server.address).await.unwrap(),
            };
            let mut greeting = [0u8; 11];
            stream.read_exact(&mut greeting).await.unwrap();
            assert_eq!(&greeting, b"220 ready\r\n");
            *best = began.elapsed().min(*best);
        }
    }
    assert!(added(best) <= HARDLY, "{:?} later", added(best));
}

#[tokio::test(flavor = "multi_thread")]
async fn undeclared_ports_carry_http_of_both_versions_and_bytes_with_half_close() {
    let web = Server::http(|_, request| async move {
        text(200, format!("{:?} {}", request.version(), request.uri().path()))
    })
    .await;
    let bytes = echo().await;
    let detect = |name: &str, at: SocketAddr| {
        let endpoints = vec![endpoint("a", at)];
        service(name, Protocol::Detect, BackendPolicy::default(), endpoints)
    };
    let mut all = addressed(detect("web", web.address), "10.96.0.1");
    all.extend(addressed(detect("raw", bytes.address), "10.96.0.2"));
    let pod = Pod::new(all).await;
    assert_eq!(pod.get("10.96.0.1:80", "/a", "web").await.body, "HTTP/1.1 /a");
    let io = hyper_util::rt::TokioIo::new(pod.dial("10.96.0.1:80").await);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    let tasks = TaskGroup::new();
    tasks.spawn("client", async move { drop(connection.await) });
    let answer = sender.send_request(get("http://web/b", "web")).await.unwrap();
    let body = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
    assert_eq!(&body[..], b"HTTP/2.0 /b");
    // The answer comes after the question's end.
    let mut stream = pod.dial("10.96.0.2:80").await;
    let sent: Vec<u8> = (0..3_000_000u32).map(|i| i.to_le_bytes()[(i % 3) as usize]).collect();
    let (mut r, mut w) = stream.split();
    let sending = async {
        w.write_all(&sent).await.unwrap();
        w.shutdown().await.unwrap();
    };
    let mut got = Vec::new();
    let (_, read) = tokio::join!(sending, r.read_to_end(&mut got));
    read.unwrap();
    assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_passes_an_undeclared_port() {
    let app = Server::raw(|_, mut stream| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        assert!(String::from_utf8_lossy(&head).to_lowercase().contains("upgrade: websocket"));
        let switch = b"HTTP/1.1 101 Switching Protocols\r\n\
                       connection: upgrade\r\nupgrade: websocket\r\n\r\n";
        stream.write_all(switch).await.unwrap();
        let (mut r, mut w) = stream.split();
        let _ = tokio::io::copy(&mut r, &mut w).await;
    })
    .await;
    let endpoints = vec![endpoint("a", app.address)];
    let all = service("ws", Protocol::Detect, BackendPolicy::default(), endpoints);
    let pod = Pod::new(addressed(all, "10.96.0.1")).await;
    let mut stream = pod.dial("10.96.0.1:80").await;
    let ask = b"GET /chat HTTP/1.1\r\nHost: ws\r\nConnection: Upgrade\r\n\
                Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(ask).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "));
    stream.write_all(b"ping").await.unwrap();
    let mut pong = [0u8; 4];
    stream.read_exact(&mut pong).await.unwrap();
    assert_eq!(&pong, b"ping");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_outside_of_the_pod_network_goes_through_the_hosts_door() {
    let inside = Server::named("inside").await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("door");
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (tasks, seen) = (TaskGroup::new(), asked.clone());
    let rule = move |_: &weft_base::sockets::Peer, ask: &weft_base::sockets::Ask| {
        seen.lock().unwrap().push(ask.to_string());
        Ok(())
    };
    tasks.spawn("door", serve_door(bind_door(&path).unwrap(), rule, tasks.clone()));
    let here = inside.address;
    let pod = Pod::with(http_service("user", &[here]), |config| {
        config.host = SocketFactory::door(&path);
        // One port of loopback stands for the pod network.
        config.networks.pods = vec!["127.0.0.1/32".parse().unwrap()];
        config.admin_address = Some("127.0.0.2".parse().unwrap());
    })
    .await;
    let doors = asked.lock().unwrap().len();
    assert_eq!(doors, 3, "admin, metrics, readiness: {asked:?}");
    assert_eq!(pod.bed.proxy.addresses().metrics.ip().to_string(), "127.0.0.2");
    assert_eq!(pod.get(inside.address, "/", "user").await.body, "inside");
    assert_eq!(asked.lock().unwrap().len(), doors, "an instance is dialled from here");
    let elsewhere = tokio::net::TcpListener::bind("127.0.0.3:0").await.unwrap();
    let at = elsewhere.local_addr().unwrap();
    tasks.spawn("server", async move {
        let (mut stream, _) = elsewhere.accept().await.unwrap();
        stream.write_all(b"hello\n").await.unwrap();
    });
    let mut stream = pod.dial(at).await;
    assert_eq!(rest(&mut stream).await.unwrap(), "hello\n");
    let last = asked.lock().unwrap().last().unwrap().clone();
    assert!(last.contains(&at.to_string()), "{last}");
    // The door refuses: the app is told.
    tasks.shutdown(Duration::ZERO).await;
    let got = pod.get("127.0.0.4:80", "/", "x").await;
    assert_eq!((got.status, got.header("x-weft-flags")), (503, "UF,URX"));
    assert!(got.body.contains("door"), "{}", got.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_lets_captured_connections_finish_and_waits_for_no_silent_one() {
    let bytes = echo().await;
    let endpoints = vec![endpoint("a", bytes.address)];
    let all = service("raw", Protocol::Detect, BackendPolicy::default(), endpoints);
    let pod = Pod::new(addressed(all, "10.96.0.1")).await;
    let mut busy = pod.dial("10.96.0.1:80").await;
    busy.write_all(b"\0one").await.unwrap();
    let mut seen = [0u8; 4];
    busy.read_exact(&mut seen).await.unwrap();
    let mut silent = pod.dial("10.96.0.1:80").await;
    wait_until("the silent one has its upstream", || async { bytes.hits() == 2 }).await;
    let (door, dialled) = (pod.bed.outbound(), pod.dialled.clone());
    let (began, grace) = (tokio::time::Instant::now(), config("sidecar~shop~x").drain_grace);
    let (ended, draining) = tokio::sync::oneshot::channel();
    let tasks = TaskGroup::new();
    tasks.spawn("drain", async move { ended.send(pod.bed.proxy.drain().await).unwrap() });
    wait_until("nothing new is taken", || async {
        dialled.try_connect(door, "10.96.0.1:80").await.is_err()
    })
    .await;
    assert_eq!(rest(&mut silent).await.unwrap(), "");
    busy.write_all(b"\0two").await.unwrap();
    busy.shutdown().await.unwrap();
    assert_eq!(rest(&mut busy).await.unwrap(), "\0two");
    assert!(draining.await.unwrap());
    assert!(began.elapsed() < grace * 3 / 4, "the silent one was waited for");
}
