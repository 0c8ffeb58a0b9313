// SPDX-License-Identifier: Apache-2.0
//! Two sidecars with certificates of one authority between a client and an app.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_base::clock::Clock;
use weft_base::snapshot::{Publisher, Snapshot, snapshot};
use weft_identity::{Authority, SpiffeId, Svid};
use weft_model::*;

use super::bed::*;

pub struct Ca {
    authority: Authority,
    _dir: tempfile::TempDir,
}

impl Ca {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(&dir.path().join("ca"), None, &Clock::system()).unwrap();
        Self { authority, _dir: dir }
    }

    pub fn id(account: &str) -> SpiffeId {
        SpiffeId::new(&format!("spiffe://cluster.local/ns/shop/sa/{account}")).unwrap()
    }

    pub fn svid(&self, account: &str) -> Svid {
        self.authority.own_svid(&Self::id(account), Duration::from_secs(3600)).unwrap()
    }

    pub fn source(&self, account: &str) -> (Publisher<Svid>, Snapshot<Svid>) {
        snapshot(self.svid(account))
    }
}

pub fn inbound(app: SocketAddr, protocol: Protocol) -> Named {
    let name: Arc<str> = format!("inbound/{}", app.port()).into();
    let kind = ListenerKind::Inbound(InboundListener {
        port: app.port(),
        app,
        protocol,
        services: vec![fqdn("user").into()],
        mtls: MtlsMode::Strict,
    });
    (Root::listener(name.clone()).own(), Resource::Listener(Listener { name, kind, origin: None }))
}

pub fn meshed(app: SocketAddr, account: &str, transport: Transport) -> Endpoint {
    Endpoint {
        identity: Some(Ca::id(account).as_str().into()),
        transport,
        ..endpoint("user-0", app)
    }
}

/// The app's sidecar.
pub async fn server(ca: &Ca, app: SocketAddr, protocol: Protocol) -> Bed {
    let (_, svid) = ca.source("user");
    let bed = Bed::start(config("sidecar~shop~user-0"), Some(svid)).await;
    bed.apply(1, vec![inbound(app, protocol)]).await;
    bed
}

/// The client's sidecar, with the service `user` behind `server`.
pub async fn peer(ca: &Ca, server: &Bed, protocol: Protocol, endpoints: Vec<Endpoint>) -> Bed {
    let (_, svid) = ca.source("order");
    let mut config = config("sidecar~shop~order-0");
    config.ports.peers = server.proxy.addresses().mesh.unwrap().port();
    config.workload = "order".into();
    let bed = Bed::start(config, Some(svid)).await;
    bed.apply(1, service("user", protocol, BackendPolicy::default(), endpoints)).await;
    bed
}

async fn who_asks() -> Server {
    Server::http(|_, request| async move {
        let seen = |name: &str| {
            request.headers().get(name).map_or("-", |v| v.to_str().unwrap()).to_owned()
        };
        let line = format!(
            "{:?} {} {}",
            request.version(),
            seen("x-forwarded-client-cert"),
            seen("x-weft-source"),
        );
        text(200, line)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_of_another_machine_is_reached_at_that_machines_address() {
    let ca = Ca::new();
    let app = who_asks().await;
    let (_, svid) = ca.source("user");
    let mut own = config("sidecar~shop~user-0");
    own.mesh_address = Some("127.0.0.9:0".parse().unwrap());
    let server = Bed::start(own, Some(svid)).await;
    server.apply(1, vec![inbound(app.address, Protocol::Http1)]).await;
    let at = server.proxy.addresses().mesh.unwrap();
    assert_eq!(at.ip().to_string(), "127.0.0.9");
    let usual = meshed(app.address, "user", Transport::MeshH1);
    let there = Endpoint { mesh_address: Some(at), ..usual.clone() };
    let client = peer(&ca, &server, Protocol::Http1, vec![there]).await;
    let got = client.get("http://user/").await;
    assert_eq!(got.status, 200, "{}", got.body);
    // Nobody listens at the pod's own address.
    let client = peer(&ca, &server, Protocol::Http1, vec![usual]).await;
    assert_eq!(client.get("http://user/").await.status, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_between_sidecars_carry_a_proven_identity() {
    let ca = Ca::new();
    let app = who_asks().await;
    for (protocol, transport, version) in [
        (Protocol::Http1, Transport::MeshH1, "HTTP/1.1"),
        (Protocol::Http1, Transport::MeshH2, "HTTP/1.1"),
        (Protocol::Http2, Transport::MeshH2, "HTTP/2.0"),
        (Protocol::Detect, Transport::MeshH2, "HTTP/1.1"),
    ] {
        let server = server(&ca, app.address, protocol).await;
        let endpoints = vec![meshed(app.address, "user", transport)];
        let client = peer(&ca, &server, protocol, endpoints).await;
        let got = client.get("http://user/").await;
        let proof = "By=spiffe://cluster.local/ns/shop/sa/user;\
                     URI=spiffe://cluster.local/ns/shop/sa/order";
        assert_eq!(got.body, format!("{version} {proof} -"), "{protocol:?} {transport:?}");
        let metrics = server.metrics().await;
        let line = metrics.lines().find(|l| l.starts_with("istio_requests_total{")).unwrap();
        for part in [
            "reporter=\"destination\"",
            "source_workload=\"order\"",
            "source_principal=\"spiffe://cluster.local/ns/shop/sa/order\"",
            "connection_security_policy=\"mutual_tls\"",
            "response_code=\"200\"",
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_another_identity_is_not_spoken_to() {
    let ca = Ca::new();
    let app = Server::named("user").await;
    let server = server(&ca, app.address, Protocol::Http1).await;
    let endpoints = vec![meshed(app.address, "product", Transport::MeshH2)];
    let client = peer(&ca, &server, Protocol::Http1, endpoints).await;
    let got = client.send(post("http://user/", "secret")).await;
    assert_eq!((got.status, got.header("x-weft-flags")), (503, "UF,URX"));
    assert!(got.body.contains("TLS handshake"), "{}", got.body);
    assert!(got.body.contains("ns/shop/sa/product"), "{}", got.body);
    assert_eq!(app.hits(), 0);
    // And a foreign authority's clients are not let in.
    let other = Ca::new();
    let endpoints = vec![meshed(app.address, "user", Transport::MeshH2)];
    let client = peer(&other, &server, Protocol::Http1, endpoints).await;
    assert_eq!(client.get("http://user/").await.status, 503);
    assert_eq!(app.hits(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_is_down_is_never_established_and_retried_elsewhere() {
    let ca = Ca::new();
    let up = Server::named("up").await;
    let down = nobody().await;
    let server = server(&ca, up.address, Protocol::Http1).await;
    server.apply(2, vec![inbound(down, Protocol::Http1)]).await;
    let endpoints = vec![
        meshed(down, "user", Transport::MeshH1),
        meshed(up.address, "user", Transport::MeshH1),
    ];
    let client = peer(&ca, &server, Protocol::Http1, endpoints).await;
    for _ in 0..10 {
        // Not even a POST was seen by the app that is down.
        let got = client.send(post("http://user/", "x")).await;
        assert_eq!((got.status, got.body.as_str()), (200, "up"));
    }
    // With nothing else to go to, the answer says why.
    let only = vec![meshed(down, "user", Transport::MeshH1)];
    client.apply(2, vec![endpoints_of("user", Protocol::Http1, only)]).await;
    let got = client.send(post("http://user/", "x")).await;
    assert_eq!(got.status, 503);
    assert!(got.body.contains("its sidecar could not reach the app"), "{}", got.body);
    assert!(!got.headers.contains_key("x-weft-not-forwarded"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_killed_while_it_works_fails_reads_nowhere_and_writes_once() {
    let ca = Ca::new();
    let dying = Server::raw(|_, mut stream| async move {
        let _ = stream.read(&mut [0u8; 512]).await;
    })
    .await;
    let good = Server::named("good").await;
    let server = server(&ca, good.address, Protocol::Http1).await;
    server.apply(2, vec![inbound(dying.address, Protocol::Http1)]).await;
    let endpoints = vec![
        meshed(dying.address, "user", Transport::MeshH2),
        meshed(good.address, "user", Transport::MeshH2),
    ];
    let client = peer(&ca, &server, Protocol::Http1, endpoints).await;
    for _ in 0..4 {
        let got = client.get("http://user/").await;
        assert_eq!((got.status, got.body.as_str()), (200, "good"));
    }
    let before = dying.hits();
    let mut failed = 0;
    for _ in 0..2 {
        failed += usize::from(client.send(post("http://user/", "x")).await.status == 503);
    }
    assert_eq!((failed, dying.hits() - before), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn opaque_bytes_go_through_the_mesh_in_both_directions_with_half_close() {
    let ca = Ca::new();
    let app = Server::raw(|_, mut stream| async move {
        stream.write_all(b"banner ").await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        all.reverse();
        stream.write_all(&all).await.unwrap();
    })
    .await;
    let server = server(&ca, app.address, Protocol::Tcp).await;
    let endpoints = vec![meshed(app.address, "user", Transport::MeshH1)];
    let client = peer(&ca, &server, Protocol::Tcp, endpoints).await;
    let address = client.door(|d| matches!(d, crate::table::Door::Upstream { .. }));
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut banner = [0u8; 7];
    stream.read_exact(&mut banner).await.unwrap();
    assert_eq!(&banner, b"banner ");
    stream.write_all(b"abc").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "cba");
    wait_until("connection and bytes are counted", async || {
        let metrics = client.metrics().await;
        let mut lines = metrics.lines();
        metrics.contains("istio_tcp_connections_opened_total{")
            && lines.any(|l| l.starts_with("istio_tcp_sent_bytes_total{") && l.ends_with(" 10"))
    })
    .await;
}

/// Who of a proxy's instances fails its check: lines of the admin door's `/clusters`.
async fn failing(bed: &Bed) -> Vec<String> {
    let text = send(bed.proxy.addresses().admin, get("/clusters", "127.0.0.1")).await.body;
    text.lines().filter(|l| l.contains("/failed_active_hc")).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn checks_of_bytes_ask_the_app_and_not_its_sidecar() {
    let ca = Ca::new();
    let app = Server::raw(|_, mut stream| async move {
        let mut seen = [0; 64];
        while let Ok(1..) = stream.read(&mut seen).await {
            let answer: &[u8] = if seen.starts_with(b"PING") { b"+PONG" } else { b"-ERR" };
            let _ = stream.write_all(answer).await;
        }
    })
    .await;
    let down = nobody().await;
    let server = server(&ca, app.address, Protocol::Tcp).await;
    server.apply(2, vec![inbound(down, Protocol::Tcp)]).await;
    let asked = CheckKind::Tcp { send: b"PING\r\n".to_vec(), expect: vec![b"+PONG".to_vec()] };
    let plain = CheckKind::Tcp { send: Vec::new(), expect: Vec::new() };
    for kind in [asked, plain] {
        let check = HealthCheck {
            kind,
            interval_ms: 20,
            timeout_ms: 60_000,
            healthy: 1,
            unhealthy: 1,
            jitter_basis_points: 0,
            ..HealthCheck::default()
        };
        let protection = Protection { health_check: Some(check), ..Protection::default() };
        let policy =
            BackendPolicy { protection: Some(Box::new(protection)), ..BackendPolicy::default() };
        let client = peer(&ca, &server, Protocol::Tcp, Vec::new()).await;
        let before = app.hits();
        let both = [app.address, down].map(|at| Endpoint {
            id: format!("user-{}", at.port()).into(),
            ..meshed(at, "user", Transport::MeshH1)
        });
        client.apply(2, service("user", Protocol::Tcp, policy, both.to_vec())).await;
        // Whoever is well is asked again and again.
        wait_until("both were asked", async || {
            app.hits() >= before + 3 && !failing(&client).await.is_empty()
        })
        .await;
        let out = failing(&client).await;
        assert!(out.len() == 1 && out[0].contains(&down.to_string()), "{out:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f08_certificates_rotate_under_load_without_a_failed_request() {
    let ca = Ca::new();
    let app = Server::named("user").await;
    let server = server(&ca, app.address, Protocol::Http1).await;
    let (publisher, svid) = ca.source("order");
    let mut config = config("sidecar~shop~order-0");
    config.ports.peers = server.proxy.addresses().mesh.unwrap().port();
    let bed = Bed::start(config, Some(svid)).await;
    let endpoints = vec![meshed(app.address, "user", Transport::MeshH1)];
    bed.apply(1, service("user", Protocol::Http1, BackendPolicy::default(), endpoints)).await;
    for _ in 0..20 {
        publisher.publish(ca.svid("order"));
        for _ in 0..5 {
            assert_eq!(bed.get("http://user/").await.status, 200);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mesh_door_speaks_to_proven_peers_only() {
    let ca = Ca::new();
    let app = Server::named("user").await;
    let server = server(&ca, app.address, Protocol::Http1).await;
    let mesh = server.proxy.addresses().mesh.unwrap();
    // Plain HTTP and garbage get nothing, many times over.
    for bytes in [&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..], b"\x16\x03\x01\x00\x05hello", b"\0"] {
        let garbage = (0..100).map(|_| async move {
            let mut stream = TcpStream::connect(mesh).await.unwrap();
            let _ = stream.write_all(bytes).await;
            let _ = stream.shutdown().await;
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
        });
        futures_util::future::join_all(garbage).await;
    }
    assert_eq!(app.hits(), 0);
    // A name that is no app port of this sidecar is not forwarded, and said so.
    let other = nobody().await;
    let endpoints = vec![meshed(other, "user", Transport::MeshH1)];
    let client = peer(&ca, &server, Protocol::Http1, endpoints).await;
    let got = client.get("http://user/").await;
    assert_eq!(got.status, 503, "{}", got.body);
    let endpoints = vec![meshed(app.address, "user", Transport::MeshH1)];
    let client = peer(&ca, &server, Protocol::Http1, endpoints).await;
    assert_eq!(client.get("http://user/").await.status, 200);
}
