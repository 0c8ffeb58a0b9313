// SPDX-License-Identifier: Apache-2.0
//! The PROXY protocol towards HTTP backends: a connection says who one client is and carries
//! nobody else's requests.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use weft_model::*;

use super::bed::*;
use crate::tcp::proxy_header;

const V1: Option<ProxyVersion> = Some(ProxyVersion::V1);

/// The port of the client that a header of version 1 names.
async fn introduced<I: AsyncRead + Unpin>(io: &mut I) -> Option<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") && line.len() < 108 {
        line.push(io.read_u8().await.ok()?);
    }
    let line = String::from_utf8(line).ok()?;
    let parts: Vec<&str> = line.trim_end().split(' ').collect();
    assert_eq!(parts[..4], ["PROXY", "TCP4", "127.0.0.1", "127.0.0.1"], "{line}");
    Some(parts[4].to_owned())
}

/// Answers every request with the number of its connection and the client that this is for.
async fn served<I: AsyncRead + AsyncWrite + Unpin + Send + 'static>(n: usize, io: I, who: String) {
    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
        let said = format!("{n} {who} {:?}", request.version());
        async move { Ok::<_, std::convert::Infallible>(text(200, said)) }
    });
    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    let _ = builder.serve_connection(TokioIo::new(io), service).await;
}

pub(super) async fn strict() -> Server {
    Server::raw(|n, mut stream| async move {
        let Some(who) = introduced(&mut stream).await else { return };
        served(n, stream, who).await;
    })
    .await
}

fn all(protocol: Protocol, policy: BackendPolicy, at: SocketAddr) -> Vec<Named> {
    let mut all = service("web", protocol, policy, vec![endpoint("web-0", at)]);
    all.push(gateway(None));
    all.push(gateway_route("r", &[], vec![rule("/", Action::Forward(vec![to("web", "", 1)]))]));
    all
}

/// A client and the port that it comes from.
async fn from(to: SocketAddr) -> (Client, String) {
    let stream = TcpStream::connect(to).await.unwrap();
    let port = stream.local_addr().unwrap().port().to_string();
    (client_on(stream).await, port)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_carries_the_requests_of_one_client() {
    for (protocol, version) in [(Protocol::Http1, "HTTP/1.1"), (Protocol::Http2, "HTTP/2.0")] {
        let server = strict().await;
        let policy = BackendPolicy { proxy_protocol: V1, ..BackendPolicy::default() };
        let bed = Bed::gateway(all(protocol, policy, server.address)).await;
        let ((mut a, a_port), (mut b, b_port)) =
            (from(bed.listener()).await, from(bed.listener()).await);
        for _ in 0..3 {
            // The first to come has the first connection, and keeps it.
            assert_eq!(a.send(get("/", "x")).await.body, format!("0 {a_port} {version}"));
            assert_eq!(b.send(get("/", "x")).await.body, format!("1 {b_port} {version}"));
        }
        assert_eq!(server.hits(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn its_connections_close_with_the_client_and_never_serve_the_next() {
    let (told, mut heard) = tokio::sync::mpsc::channel(4);
    let server = Server::raw(move |n, mut stream| {
        let told = told.clone();
        async move {
            let Some(who) = introduced(&mut stream).await else { return };
            served(n, stream, who).await;
            let _ = told.send(n).await;
        }
    })
    .await;
    let policy = BackendPolicy { proxy_protocol: V1, ..BackendPolicy::default() };
    let bed = Bed::gateway(all(Protocol::Http1, policy, server.address)).await;
    let (mut a, _) = from(bed.listener()).await;
    assert_eq!(a.send(get("/", "x")).await.status, 200);
    drop(a);
    let closed = tokio::time::timeout(Duration::from_secs(60), heard.recv()).await;
    assert_eq!(closed.expect("it is not kept for anybody"), Some(0));
    let (mut b, port) = from(bed.listener()).await;
    assert_eq!(b.send(get("/", "x")).await.body, format!("1 {port} HTTP/1.1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn its_connections_close_with_their_endpoint() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let (told, mut heard) = tokio::sync::mpsc::channel(4);
        let server = Server::raw(move |n, mut stream| {
            let told = told.clone();
            async move {
                let Some(who) = introduced(&mut stream).await else { return };
                served(n, stream, who).await;
                let _ = told.send(n).await;
            }
        })
        .await;
        let policy = BackendPolicy { proxy_protocol: V1, ..BackendPolicy::default() };
        let bed = Bed::gateway(all(protocol, policy.clone(), server.address)).await;
        let (mut a, port) = from(bed.listener()).await;
        assert!(a.send(get("/", "x")).await.body.starts_with(&format!("0 {port} ")));
        // Its client stays and asks nothing.
        let other = strict().await;
        bed.apply(2, all(protocol, policy, other.address)).await;
        let closed = tokio::time::timeout(Duration::from_secs(60), heard.recv()).await;
        assert_eq!(closed.expect("nobody can ask for it any more"), Some(0), "{protocol:?}");
        assert!(a.send(get("/", "x")).await.body.starts_with(&format!("0 {port} ")));
        assert_eq!((server.hits(), other.hits()), (1, 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_in_use_when_its_endpoint_goes_closes_after_its_answer() {
    let (told, mut heard) = tokio::sync::mpsc::channel(4);
    let (answers, answer) = tokio::sync::watch::channel(false);
    let server = Server::raw(move |_, mut stream| {
        let (told, mut answer) = (told.clone(), answer.clone());
        async move {
            let _ = introduced(&mut stream).await;
            let mut seen = Vec::new();
            while !seen.ends_with(b"\r\n\r\n") {
                seen.push(stream.read_u8().await.unwrap());
            }
            told.send("asked").await.unwrap();
            answer.wait_for(|now| *now).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
            told.send("closed").await.unwrap();
        }
    })
    .await;
    let policy = BackendPolicy { proxy_protocol: V1, ..BackendPolicy::default() };
    let bed = Bed::gateway(all(Protocol::Http1, policy.clone(), server.address)).await;
    let (mut a, _) = from(bed.listener()).await;
    let asks = async {
        assert_eq!(a.send(get("/", "x")).await.body, "ok");
    };
    let swaps = async {
        assert_eq!(heard.recv().await, Some("asked"));
        let other = strict().await;
        bed.apply(2, all(Protocol::Http1, policy, other.address)).await;
        answers.send(true).unwrap();
    };
    tokio::join!(asks, swaps);
    let closed = tokio::time::timeout(Duration::from_secs(60), heard.recv()).await;
    assert_eq!(closed.expect("it is kept for nobody"), Some("closed"));
}

/// A server that closes what does not begin with a header, and says for whom each connection is.
async fn told() -> (Server, tokio::sync::mpsc::Receiver<Option<SocketAddr>>) {
    let (told, heard) = tokio::sync::mpsc::channel(64);
    let server = Server::raw(move |n, stream| {
        let told = told.clone();
        async move {
            let limit = Duration::from_secs(60);
            let read = proxy_header::read(stream, ProxyHeader::Required, limit).await;
            let Ok((who, stream)) = read else { return };
            let _ = told.try_send(who.map(|(client, _)| client));
            served(n, stream, String::new()).await;
        }
    })
    .await;
    (server, heard)
}

#[tokio::test(flavor = "multi_thread")]
async fn health_checks_say_that_they_are_the_proxys_own() {
    let tcp =
        CheckKind::Tcp { send: b"GET / HTTP/1.0\r\n\r\n".to_vec(), expect: vec![b"200".into()] };
    let http = |http2| CheckKind::Http(HttpCheck { http2, ..HttpCheck::default() });
    let versions = [ProxyVersion::V1, ProxyVersion::V2];
    let kinds = [http(false), http(true), tcp];
    for (kind, version) in kinds.iter().flat_map(|kind| versions.map(|version| (kind, version))) {
        let (server, mut heard) = told().await;
        let check = HealthCheck {
            kind: kind.clone(),
            timeout_ms: 60_000,
            unhealthy: 1,
            ..HealthCheck::default()
        };
        let protection = Protection { health_check: Some(check), ..Protection::default() };
        let policy = BackendPolicy {
            proxy_protocol: Some(version),
            protection: Some(Box::new(protection)),
            ..BackendPolicy::default()
        };
        let bed = Bed::gateway(all(Protocol::Http1, policy.clone(), server.address)).await;
        let first = tokio::time::timeout(Duration::from_secs(60), heard.recv()).await;
        assert_eq!(
            first.expect("a check begins with a header"),
            Some(None),
            "{kind:?} {version:?}"
        );
        // Another port is another server, which gets none.
        let plain = Server::named("plain").await;
        let mut elsewhere = policy.clone();
        let check = elsewhere.protection.as_mut().unwrap().health_check.as_mut().unwrap();
        (check.port, check.interval_ms) = (Some(plain.address.port()), 1_000);
        bed.apply(2, all(Protocol::Http1, elsewhere, server.address)).await;
        wait_until("the other port is asked in plain HTTP", async || plain.hits() > 0).await;
        let (mut a, _) = from(bed.listener()).await;
        assert_eq!(a.send(get("/", "x")).await.status, 200, "{kind:?} {version:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_ones_of_others_give_way_where_connections_are_few() {
    let server = strict().await;
    let limits = Limits { connections_max: Some(1), ..Limits::default() };
    let policy = BackendPolicy { proxy_protocol: V1, limits, ..BackendPolicy::default() };
    let mut config = config("gateway~shop~web");
    config.workers = 1;
    let bed = Bed::start(config, None).await;
    bed.apply(1, all(Protocol::Http1, policy, server.address)).await;
    let ((mut a, a_port), (mut b, b_port)) =
        (from(bed.listener()).await, from(bed.listener()).await);
    for n in 0..2 {
        assert_eq!(a.send(get("/", "x")).await.body, format!("{} {a_port} HTTP/1.1", 2 * n));
        assert_eq!(b.send(get("/", "x")).await.body, format!("{} {b_port} HTTP/1.1", 2 * n + 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_new_of_a_backend_counts_for_open_connections() {
    let (old, new) = (strict().await, Server::named("new").await);
    let policy = BackendPolicy { proxy_protocol: V1, ..BackendPolicy::default() };
    let bed = Bed::gateway(all(Protocol::Http1, policy.clone(), old.address)).await;
    let (mut a, port) = from(bed.listener()).await;
    assert_eq!(a.send(get("/", "x")).await.body, format!("0 {port} HTTP/1.1"));
    // The same endpoint in a new table: its connection goes on.
    let longer = BackendPolicy { connect_timeout_ms: 7_777, ..policy };
    bed.apply(2, all(Protocol::Http1, longer, old.address)).await;
    assert_eq!(a.send(get("/", "x")).await.body, format!("0 {port} HTTP/1.1"));
    // Another endpoint, which is told nothing.
    bed.apply(3, all(Protocol::Http1, BackendPolicy::default(), new.address)).await;
    assert_eq!(a.send(get("/", "x")).await.body, "new");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backends_tls_begins_behind_the_header() {
    let key = rcgen::KeyPair::generate().unwrap();
    let cert = rcgen::CertificateParams::new(vec!["web".to_owned()]).unwrap().self_signed(&key);
    let tls = rustls::ServerConfig::builder_with_provider(weft_identity::provider::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![cert.unwrap().der().clone()],
            rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let server = Server::raw(move |n, mut stream| {
        let acceptor = acceptor.clone();
        async move {
            let Some(who) = introduced(&mut stream).await else { return };
            if let Ok(stream) = acceptor.accept(stream).await {
                served(n, stream, who).await;
            }
        }
    })
    .await;
    let anyone = UpstreamTls { trust: Trust::Anyone, names: Names::Any, ..Default::default() };
    let tls = Some(Box::new(anyone));
    let policy = BackendPolicy { proxy_protocol: V1, tls, ..BackendPolicy::default() };
    // As HTTP, and as bytes that a CONNECT carries.
    let bed = Bed::gateway(all(Protocol::Http1, policy, server.address)).await;
    let (mut a, port) = from(bed.listener()).await;
    assert_eq!(a.send(get("/", "x")).await.body, format!("0 {port} HTTP/1.1"));
    let method = Some(StringMatch::Exact("CONNECT".into()));
    let mut tunnel = rule("/", Action::Forward(vec![to("web", "", 1)]));
    tunnel.matches = vec![Match { method, ..Match::default() }];
    bed.apply(2, vec![gateway_route("t", &[], vec![tunnel])]).await;
    let mut stream = TcpStream::connect(bed.listener()).await.unwrap();
    let port = stream.local_addr().unwrap().port();
    stream
        .write_all(b"CONNECT web.example:80 HTTP/1.1\r\nHost: web.example:80\r\n\r\n")
        .await
        .unwrap();
    let mut said = Vec::new();
    while !said.ends_with(b"\r\n\r\n") {
        said.push(stream.read_u8().await.unwrap());
    }
    assert!(said.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&said));
    let mut through = client_on(stream).await;
    assert_eq!(through.send(get("/", "x")).await.body, format!("1 {port} HTTP/1.1"));
}
