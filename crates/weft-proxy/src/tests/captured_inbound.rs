// SPDX-License-Identifier: Apache-2.0
//! What others send to a pod, captured: who may come to which port, and with what.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use weft_base::clock::Clock;
use weft_identity::{Alpn, ClientTls, Expected};
use weft_model::*;

use super::bed::*;
use super::captured::{Dialled, echo, exchange, greeter, rest};
use super::mtls::{Ca, inbound, meshed};

/// A sidecar that captures what is sent to its pod.
struct Pod {
    ca: Ca,
    dialled: Dialled,
    bed: Bed,
}

impl Pod {
    async fn new(resources: Vec<Named>) -> Self {
        let (ca, dialled) = (Ca::new(), Dialled::default());
        let (_, svid) = ca.source("user");
        let mut config = dialled.config("sidecar~shop~user-0");
        // A port of its own, open or not.
        config.capture.as_mut().unwrap().dns = vec!["127.0.0.1:15053".parse().unwrap()];
        let bed = Bed::start(config, Some(svid)).await;
        bed.apply(1, resources).await;
        Self { ca, dialled, bed }
    }

    fn door(&self) -> SocketAddr {
        self.bed.proxy.addresses().inbound.unwrap()
    }

    async fn dial(&self, to: SocketAddr) -> TcpStream {
        self.dialled.connect(self.door(), to).await
    }

    async fn get(&self, to: SocketAddr) -> Got {
        client_on(self.dial(to).await).await.send(get("/", "user")).await
    }

    /// What a sidecar's TLS on a connection would look like.
    async fn shake(
        &self,
        stream: TcpStream,
        port: u16,
    ) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let (_, svid) = self.ca.source("order");
        let tls = ClientTls::new(svid, Clock::system());
        let config = tls.config(&Expected::only(Ca::id("user")), Alpn::Http11).unwrap();
        let name = ServerName::try_from(mesh_server_name(port)).unwrap();
        TlsConnector::from(config).connect(name, stream).await
    }

    async fn mesh_get(&self, to: SocketAddr) -> std::io::Result<String> {
        let mut tls = self.shake(self.dial(to).await, to.port()).await?;
        tls.write_all(b"GET / HTTP/1.1\r\nhost: user\r\nconnection: close\r\n\r\n").await?;
        let mut all = Vec::new();
        // The peer may end without a TLS goodbye.
        let _ = tls.read_to_end(&mut all).await;
        Ok(String::from_utf8_lossy(&all).into_owned())
    }
}

fn port(app: SocketAddr, protocol: Protocol, mtls: MtlsMode) -> Named {
    let (name, mut resource) = inbound(app, protocol);
    if let Resource::Listener(Listener { kind: ListenerKind::Inbound(i), .. }) = &mut resource {
        i.mtls = mtls;
    }
    (name, resource)
}

fn capture(listener: CaptureListener) -> Named {
    let name: Arc<str> = "inbound~shop~user-0~capture".into();
    let kind = ListenerKind::Capture(listener);
    (Root::listener(name.clone()).own(), Resource::Listener(Listener { name, kind, origin: None }))
}

/// An app ends kept connections when it likes, and a request may cross that: nobody else than the
/// sidecar knows that it may be sent once more.
#[tokio::test(flavor = "multi_thread")]
async fn a_kept_connection_that_the_app_ends_costs_no_request() {
    let app = Server::raw(|n, mut stream| async move {
        let (mut seen, mut asked) = (Vec::new(), 0);
        while let Ok(byte) = stream.read_u8().await {
            seen.push(byte);
            if !seen.ends_with(b"\r\n\r\n") {
                continue;
            }
            asked += 1;
            if (n, asked) == (0, 2) {
                return;
            }
            seen.clear();
            let ok = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            stream.write_all(ok).await.unwrap();
        }
    })
    .await;
    let pod = Pod::new(vec![port(app.address, Protocol::Http1, MtlsMode::Permissive)]).await;
    for _ in 0..3 {
        let got = pod.get(app.address).await;
        assert_eq!(got.status, 200, "{}", got.body);
    }
    assert_eq!(app.hits(), 2, "the first connection was used again");
}

const RESET: Result<String, std::io::ErrorKind> = Err(std::io::ErrorKind::ConnectionReset);

#[tokio::test(flavor = "multi_thread")]
async fn permissive_takes_plaintext_and_a_sidecars_tls_on_the_same_port() {
    let (web, bytes, first) = (Server::named("web").await, echo().await, greeter().await);
    for declared in [true, false] {
        let of = |protocol| if declared { protocol } else { Protocol::Detect };
        let pod = Pod::new(vec![
            port(web.address, of(Protocol::Http1), MtlsMode::Permissive),
            port(bytes.address, of(Protocol::Tcp), MtlsMode::Permissive),
            port(first.address, of(Protocol::Tcp), MtlsMode::Permissive),
        ])
        .await;
        assert_eq!(pod.get(web.address).await.body, "web");
        assert!(pod.mesh_get(web.address).await.unwrap().ends_with("web"));
        let mut stream = pod.dial(bytes.address).await;
        stream.write_all(b"\0bytes").await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(rest(&mut stream).await.unwrap(), "\0bytes");
        // Servers that speak first do so here too.
        let mut stream = pod.dial(first.address).await;
        let mut greeting = [0u8; 11];
        stream.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"220 ready\r\n");
        let metrics = pod.bed.metrics().await;
        for policy in ["none", "mutual_tls"] {
            let counted = metrics.lines().any(|l| {
                l.starts_with("istio_requests_total{reporter=\"destination\"")
                    && l.contains(&format!("connection_security_policy=\"{policy}\""))
                    && l.contains("destination_service=\"user.shop.svc.cluster.local\"")
            });
            assert!(counted, "{policy}: {metrics}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strict_takes_a_sidecars_tls_only_and_tells_others_why() {
    let (web, bytes) = (Server::named("web").await, echo().await);
    let pod = Pod::new(vec![
        port(web.address, Protocol::Http1, MtlsMode::Strict),
        port(bytes.address, Protocol::Tcp, MtlsMode::Strict),
    ])
    .await;
    let got = pod.get(web.address).await;
    assert_eq!((got.status, got.header("x-weft-flags")), (403, "UAEX"));
    for part in ["plaintext is refused here", "takes mesh mTLS only", "permit plaintext"] {
        assert!(got.body.contains(part), "{part}: {}", got.body);
    }
    assert!(got.body.contains(&format!("original destination: {}", web.address)), "{}", got.body);
    let mut stream = pod.dial(bytes.address).await;
    stream.write_all(b"\0\0").await.unwrap();
    assert_eq!(rest(&mut stream).await, RESET);
    // TLS that is not a sidecar's is plaintext as far as the mesh is concerned.
    let mut stream = pod.dial(bytes.address).await;
    stream.write_all(b"\x16\x03\x01\0\x05hello").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(rest(&mut stream).await, RESET);
    // One that waits for the server to speak is not kept waiting for ever.
    let mut silent = pod.dial(bytes.address).await;
    let ended = tokio::time::timeout(Duration::from_secs(60), rest(&mut silent)).await;
    assert_eq!(ended.unwrap(), RESET);
    assert_eq!((web.hits(), bytes.hits()), (0, 0), "nothing reached the app");
    assert!(pod.mesh_get(web.address).await.unwrap().ends_with("web"));
    // A sidecar of another authority is not one of ours.
    let stranger = Ca::new();
    let (_, svid) = stranger.source("order");
    let tls = ClientTls::new(svid, Clock::system());
    let config = tls.config(&Expected::only(Ca::id("user")), Alpn::Http11).unwrap();
    let name = ServerName::try_from(mesh_server_name(web.address.port())).unwrap();
    let stream = pod.dial(web.address).await;
    assert!(TlsConnector::from(config).connect(name, stream).await.is_err());
    assert_eq!(web.hits(), 1);
    let metrics = pod.bed.metrics().await;
    let refused = metrics.lines().any(|l| {
        l.starts_with("istio_tcp_connections_opened_total{reporter=\"destination\"")
            && l.contains("response_flags=\"UAEX\"")
            && l.ends_with(" 3")
    });
    assert!(refused, "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn disabled_leaves_tls_to_the_app() {
    let bytes = echo().await;
    let pod = Pod::new(vec![port(bytes.address, Protocol::Tcp, MtlsMode::Disable)]).await;
    // The echo of a ClientHello is no ServerHello.
    assert!(pod.shake(pod.dial(bytes.address).await, bytes.address.port()).await.is_err());
    assert_eq!(bytes.hits(), 1);
    // With both allowed, TLS that is the app's own reaches it untouched.
    pod.bed.apply(2, vec![port(bytes.address, Protocol::Tls, MtlsMode::Permissive)]).await;
    let mut stream = pod.dial(bytes.address).await;
    let hello = b"\x16\x03\x01\0\x05hello and more";
    stream.write_all(hello).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, hello);
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_that_nobody_declared_follow_the_workloads_mode() {
    let (web, open) = (Server::named("web").await, Server::named("open").await);
    let listener = CaptureListener {
        mtls: MtlsMode::Strict,
        ports: [(open.address.port(), MtlsMode::Permissive)].into(),
        ..CaptureListener::default()
    };
    let pod = Pod::new(vec![capture(listener)]).await;
    assert_eq!(pod.get(web.address).await.status, 403);
    assert_eq!(pod.get(open.address).await.body, "open");
    assert!(pod.mesh_get(web.address).await.unwrap().ends_with("web"));
    assert!(pod.bed.metrics().await.contains("InboundPassthroughCluster"));
    // Without any word of control both are taken.
    pod.bed.remove(2, vec![capture(CaptureListener::default()).0]).await;
    assert_eq!(pod.get(web.address).await.body, "web");
}

#[tokio::test(flavor = "multi_thread")]
async fn own_ports_and_direct_connections_are_refused() {
    let pod = Pod::new(Vec::new()).await;
    assert_eq!(exchange(TcpStream::connect(pod.door()), b"").await, RESET);
    let dial = pod.dialled.try_connect(pod.door(), "127.0.0.1:15053");
    assert_eq!(exchange(dial, b"").await, RESET);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mesh_port_reaches_every_app_port_of_a_pod_with_a_namespace() {
    let (declared, other) = (Server::named("declared").await, Server::named("other").await);
    // The listener names another address: in its namespace the pod has more than one.
    let (name, mut resource) = port(declared.address, Protocol::Http1, MtlsMode::Strict);
    if let Resource::Listener(Listener { kind: ListenerKind::Inbound(i), .. }) = &mut resource {
        i.app = SocketAddr::new("10.244.0.9".parse().unwrap(), declared.address.port());
    }
    let pod = Pod::new(vec![(name, resource)]).await;
    let mesh = pod.bed.proxy.addresses().mesh.unwrap();
    let (_, svid) = pod.ca.source("order");
    let mut config = config("sidecar~shop~order-0");
    config.ports.peers = mesh.port();
    let near = Bed::start(config, Some(svid)).await;
    for (app, name) in [(&declared, "declared"), (&other, "other")] {
        let endpoints = vec![meshed(app.address, "user", Transport::MeshH2)];
        let all = service(name, Protocol::Http1, BackendPolicy::default(), endpoints);
        near.apply(1, all).await;
        assert_eq!(near.get(&format!("http://{name}/")).await.body, name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_connect_on_the_mesh_port_names_the_app_port() {
    let (web, bytes) = (Server::named("web").await, echo().await);
    let pod = Pod::new(vec![port(web.address, Protocol::Http1, MtlsMode::Strict)]).await;
    let mesh = pod.bed.proxy.addresses().mesh.unwrap();
    let (_, svid) = pod.ca.source("order");
    let tls = ClientTls::new(svid, Clock::system());
    let config = tls.config(&Expected::only(Ca::id("user")), Alpn::H2).unwrap();
    let name = ServerName::try_from("user.shop").unwrap();
    let stream = TcpStream::connect(mesh).await.unwrap();
    let stream = TlsConnector::from(config).connect(name, stream).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(
        hyper_util::rt::TokioExecutor::new(),
        hyper_util::rt::TokioIo::new(stream),
    )
    .await
    .unwrap();
    let tasks = weft_base::task::TaskGroup::new();
    tasks.spawn("client", async move { drop(connection.await) });
    let mut tunnel = async |to: SocketAddr| {
        let ask = http::Request::connect(to.to_string())
            .body(http_body_util::Full::<bytes::Bytes>::default())
            .unwrap();
        let answer = sender.send_request(ask).await.unwrap();
        assert_eq!(answer.status(), 200);
        hyper_util::rt::TokioIo::new(hyper::upgrade::on(answer).await.unwrap())
    };
    let mut io = tunnel(web.address).await;
    io.write_all(b"GET / HTTP/1.1\r\nhost: user\r\n\r\n").await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"web") {
        seen.push(io.read_u8().await.unwrap());
    }
    let mut io = tunnel(bytes.address).await;
    io.write_all(b"\0opaque").await.unwrap();
    io.shutdown().await.unwrap();
    let mut all = Vec::new();
    io.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"\0opaque");
}
