// SPDX-License-Identifier: Apache-2.0
//! Gateways below HTTP: TLS passed on by its server name or ended for bytes, datagrams, the PROXY
//! protocol both ways, limits of connections, resets that stay resets.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio_rustls::client::TlsStream;
use weft_base::task::TaskGroup;
use weft_model::*;
use weft_testkit::ports;

use super::bed::*;
use crate::config::{LogFormat, LogWhat, ProxyLimits};
use crate::table::Door;

/// A gateway with one listener of these sections, its log, and the resources given.
async fn gateway_of(
    sections: Vec<Section>,
    change: impl FnOnce(&mut GatewayListener),
    mut all: Vec<Named>,
) -> (Bed, Log) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let mut config = config("gateway~shop~web");
    config.access_log.what = LogWhat::Everything;
    config.access_log.format = LogFormat::Json;
    config.access_log.path = Some(path.clone());
    let (name, mut listener) = gateway(None);
    if let Resource::Listener(Listener { kind: ListenerKind::Gateway(g), .. }) = &mut listener {
        g.sections = sections;
        change(g);
    }
    all.push((name, listener));
    let bed = Bed::start(config, None).await;
    let applied = bed.apply(1, all).await;
    assert!(applied.rejected.is_empty(), "{applied:?}");
    (bed, Log(path, dir))
}

struct Log(PathBuf, #[allow(dead_code)] tempfile::TempDir);

impl Log {
    /// Waits for a line with a part in it.
    async fn line(&self, part: &str) -> serde_json::Value {
        wait_until(part, async || self.find(part).is_some()).await;
        serde_json::from_str(&self.find(part).unwrap()).unwrap()
    }

    fn find(&self, part: &str) -> Option<String> {
        let text = std::fs::read_to_string(&self.0).unwrap_or_default();
        text.lines().find(|l| l.contains(part)).map(str::to_owned)
    }
}

fn section(name: &str, hostname: Option<&str>, protocol: Protocol) -> Section {
    Section { name: name.into(), hostname: hostname.map(Into::into), protocol, tls: None }
}

/// A route that takes all that comes to the sections, for these names.
fn route(name: &str, sections: &[&str], hostnames: &[&str], to: Vec<WeightedBackend>) -> Named {
    let all = Rule { matches: Vec::new(), ..rule("/", Action::Forward(to)) };
    let (resource, mut made) = gateway_route(name, hostnames, vec![all]);
    if let Resource::Route(Route { parent: Parent::Listener { sections: of, .. }, .. }) = &mut made
    {
        *of = sections.iter().map(|s| (*s).into()).collect();
    }
    (resource, made)
}

/// Its name first, then what it hears.
async fn echo(name: &'static str) -> Server {
    Server::raw(move |_, mut stream| async move {
        let _ = stream.write_all(name.as_bytes()).await;
        let (mut r, mut w) = stream.split();
        let _ = tokio::io::copy(&mut r, &mut w).await;
    })
    .await
}

fn tcp_service(name: &str, policy: BackendPolicy, addresses: &[SocketAddr]) -> Vec<Named> {
    let each = addresses.iter().enumerate();
    let each = each.map(|(i, a)| endpoint(&format!("{name}-{i}"), *a)).collect();
    service(name, Protocol::Tcp, policy, each)
}

// === TLS ===

struct Certificate {
    pem: String,
    key: String,
    der: rustls::pki_types::CertificateDer<'static>,
}

fn certificate(name: &str) -> Certificate {
    let key = rcgen::KeyPair::generate().unwrap();
    let cert = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key);
    let cert = cert.unwrap();
    Certificate { pem: cert.pem(), key: key.serialize_pem(), der: cert.der().clone() }
}

/// A TLS server that says which it is.
async fn tls_server(says: &'static str, certificate: &Certificate) -> Server {
    let key = rustls::pki_types::PrivateKeyDer::try_from(
        rcgen::KeyPair::from_pem(&certificate.key).unwrap().serialize_der(),
    )
    .unwrap();
    let config = rustls::ServerConfig::builder_with_provider(weft_identity::provider::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der.clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    Server::raw(move |_, stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            stream.write_all(says.as_bytes()).await.unwrap();
            let (mut r, mut w) = tokio::io::split(stream);
            let _ = tokio::io::copy(&mut r, &mut w).await;
            let _ = w.shutdown().await;
        }
    })
    .await
}

fn connector(trusted: &Certificate) -> tokio_rustls::TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.der.clone()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(weft_identity::provider::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tokio_rustls::TlsConnector::from(Arc::new(config))
}

async fn tls(
    to: SocketAddr,
    name: &str,
    trusted: &Certificate,
) -> std::io::Result<TlsStream<TcpStream>> {
    let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
    connector(trusted).connect(name, TcpStream::connect(to).await?).await
}

async fn said(stream: &mut (impl AsyncReadExt + Unpin), n: usize) -> String {
    let mut text = vec![0; n];
    stream.read_exact(&mut text).await.unwrap();
    String::from_utf8(text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_passed_on_by_its_server_name_or_ended_on_the_same_port() {
    let (a, b, own) =
        (certificate("a.example"), certificate("x.b.example"), certificate("own.example"));
    let (one, two) = (tls_server("one", &a).await, tls_server("two", &b).await);
    let plain = echo("bytes").await;
    let opened = Section {
        tls: Some(ServerTls::new(own.pem.clone(), own.key.clone())),
        ..section("opened", Some("own.example"), Protocol::Tcp)
    };
    let sections = vec![section("passed", None, Protocol::Tls), opened];
    let all = [
        tcp_service("one", BackendPolicy::default(), &[one.address]),
        tcp_service("two", BackendPolicy::default(), &[two.address]),
        tcp_service("plain", BackendPolicy::default(), &[plain.address]),
        vec![
            route("a", &["passed"], &["a.example"], vec![to("one", "", 1)]),
            route("b", &["passed"], &["*.b.example"], vec![to("two", "", 1)]),
            route("own", &["opened"], &["own.example"], vec![to("plain", "", 1)]),
        ],
    ];
    let (bed, log) = gateway_of(sections, |_| {}, all.concat()).await;
    let at = bed.listener();
    let mut stream = tls(at, "a.example", &a).await.unwrap();
    assert_eq!(said(&mut stream, 3).await, "one");
    stream.write_all(b"more").await.unwrap();
    assert_eq!(said(&mut stream, 4).await, "more");
    assert_eq!(said(&mut tls(at, "x.b.example", &b).await.unwrap(), 3).await, "two");
    let mut stream = tls(at, "own.example", &own).await.unwrap();
    assert_eq!(said(&mut stream, 5).await, "bytes");
    stream.write_all(b"inside").await.unwrap();
    assert_eq!(said(&mut stream, 6).await, "inside");
    // Nobody opened what was passed on: the certificate was the server's own.
    assert!(tls(at, "a.example", &own).await.is_err());
    // Names that no route has, none at all, and what is not TLS are refused with the reason.
    assert!(tls(at, "c.example", &a).await.is_err());
    let line = log.line("c.example").await;
    assert_eq!(line["response_flags"], "NR", "{line}");
    assert!(tls(at, "127.0.0.1", &a).await.is_err());
    log.line("asks for no server name").await;
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let _ = stream.read(&mut [0; 8]).await;
    let line = log.line("does not begin with a TLS handshake").await;
    assert_eq!(line["response_flags"], "DPE", "{line}");
}

// === the PROXY protocol ===

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_who_the_header_says() {
    let user = Server::http(|_, request| async move {
        let told = request.headers().get("x-forwarded-for").map(|v| v.to_str().unwrap().to_owned());
        text(200, told.unwrap_or_default())
    })
    .await;
    let all = [
        http_service("user", &[user.address]),
        vec![gateway_route("r", &[], vec![rule("/", Action::Forward(vec![to("user", "", 1)]))])],
    ];
    let sections = vec![section("http", None, Protocol::Http1)];
    let required = |g: &mut GatewayListener| g.proxy_header = ProxyHeader::Required;
    let (bed, log) = gateway_of(sections, required, all.concat()).await;
    let get = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let ask = async |header: &[u8]| {
        let mut stream = TcpStream::connect(bed.listener()).await.unwrap();
        let _ = stream.write_all(&[header, get.as_bytes()].concat()).await;
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        answer
    };
    let answer = ask(b"PROXY TCP4 192.0.2.7 10.0.0.1 8080 443\r\n").await;
    assert!(answer.ends_with("192.0.2.7"), "{answer}");
    let mut binary = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24".to_vec();
    binary.extend("2001:db8::7".parse::<std::net::Ipv6Addr>().unwrap().octets());
    binary.extend([0; 16]);
    binary.extend([1, 2, 3, 4]);
    let answer = ask(&binary).await;
    assert!(answer.ends_with("2001:db8::7"), "{answer}");
    let line = log.line("2001:db8::7").await;
    assert!(line.to_string().contains("[2001:db8::7]:258"), "{line}");
    // A balancer that asks for itself.
    let answer = ask(b"\r\n\r\n\0\r\nQUIT\n\x20\x00\0\0").await;
    assert!(answer.ends_with("127.0.0.1"), "{answer}");
    // Without, or with a wrong one, nothing is answered and the log says why.
    assert_eq!(ask(b"").await, "");
    assert_eq!(log.line("has no header of the PROXY protocol").await["response_flags"], "DPE");
    assert_eq!(ask(b"PROXY TCP4 192.0.2.7\r\n").await, "");
    log.line("line of the PROXY protocol is malformed").await;
    binary[15] += 1;
    assert_eq!(ask(&binary[..binary.len() - 1]).await, "");
    assert_eq!(user.hits(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn backends_are_told_who_the_client_is() {
    for (version, begins) in [
        (ProxyVersion::V1, &b"PROXY TCP4 127.0.0.1 127.0.0.1 "[..]),
        (ProxyVersion::V2, b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01"),
    ] {
        let server = echo("").await;
        let policy = BackendPolicy { proxy_protocol: Some(version), ..BackendPolicy::default() };
        let all = [
            tcp_service("mail", policy, &[server.address]),
            vec![route("r", &["tcp"], &[], vec![to("mail", "", 1)])],
        ];
        let sections = vec![section("tcp", None, Protocol::Tcp)];
        let (bed, _log) = gateway_of(sections, |_| {}, all.concat()).await;
        let mut stream = TcpStream::connect(bed.listener()).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut seen = Vec::new();
        stream.read_to_end(&mut seen).await.unwrap();
        assert!(seen.starts_with(begins), "{seen:?}");
        let (own, dialled) = (stream.local_addr().unwrap().port(), bed.listener().port());
        let rest = &seen[begins.len()..];
        match version {
            ProxyVersion::V1 => {
                assert_eq!(rest, format!("{own} {dialled}\r\nhello").as_bytes());
            }
            ProxyVersion::V2 => {
                let ports = [own.to_be_bytes(), dialled.to_be_bytes()].concat();
                assert_eq!(rest, [&ports[..], b"hello"].concat());
            }
        }
    }
}

// === bytes ===

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_a_backends_limit_are_reset_and_said_so() {
    let server = echo("here").await;
    let limits = Limits { connections_max: Some(2), ..Limits::default() };
    let policy = BackendPolicy { limits, ..BackendPolicy::default() };
    let all = [
        tcp_service("mail", policy, &[server.address]),
        vec![route("r", &["tcp"], &[], vec![to("mail", "", 1)])],
    ];
    let sections = vec![section("tcp", None, Protocol::Tcp)];
    let (bed, log) = gateway_of(sections, |_| {}, all.concat()).await;
    let open = async || {
        let mut stream = TcpStream::connect(bed.listener()).await?;
        let mut seen = [0; 4];
        stream.read_exact(&mut seen).await.map(|_| stream)
    };
    let (first, _second) = (open().await.unwrap(), open().await.unwrap());
    assert_eq!(open().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    let line = log.line("2 connections to").await;
    assert_eq!(line["response_flags"], "UO", "{line}");
    let metrics = bed.metrics().await;
    let refused =
        metrics.lines().find(|l| l.contains("tcp_connections_opened") && l.contains("UO"));
    assert!(refused.is_some_and(|l| l.ends_with(" 1")), "{metrics}");
    assert_eq!(server.hits(), 2);
    drop(first);
    wait_until("there is room again", async || open().await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_lasts_for_as_long_as_its_backends_may() {
    let server = Server::raw(|_, mut stream| async move {
        let mut bytes = [0; 64];
        while let Ok(n @ 1..) = stream.read(&mut bytes).await {
            let _ = stream.write_all(&bytes[..n]).await;
        }
    })
    .await;
    let age = Duration::from_millis(300);
    let terms = Connections { age_ms_max: Some(300), ..Connections::default() };
    let policy = BackendPolicy { connections: Some(Arc::new(terms)), ..BackendPolicy::default() };
    let all = [
        tcp_service("mail", policy, &[server.address]),
        vec![route("r", &["tcp"], &[], vec![to("mail", "", 1)])],
    ];
    let sections = vec![section("tcp", None, Protocol::Tcp)];
    let (bed, log) = gateway_of(sections, |_| {}, all.concat()).await;
    let began = tokio::time::Instant::now();
    let mut stream = TcpStream::connect(bed.listener()).await.unwrap();
    // It is never silent.
    let ended = loop {
        let mut echo = [0; 1];
        let sent = stream.write_all(b"x").await;
        if let Err(error) = sent.and(stream.read_exact(&mut echo).await.map(drop)) {
            break error.kind();
        }
    };
    assert!(began.elapsed() >= age, "{:?}", began.elapsed());
    // It was cut, and does not look whole.
    assert_ne!(ended, ErrorKind::UnexpectedEof);
    let line = log.line("its longest duration").await;
    assert_eq!(line["response_flags"], "DT", "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_on_one_side_is_a_reset_on_the_other() {
    let (told, mut heard) = tokio::sync::mpsc::channel(4);
    let server = Server::raw(move |n, mut stream| {
        let told = told.clone();
        async move {
            let mut seen = [0; 5];
            stream.read_exact(&mut seen).await.unwrap();
            if n == 0 {
                SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                return;
            }
            let ended = stream.read(&mut seen).await.map_err(|e| e.kind());
            told.send(ended).await.unwrap();
        }
    })
    .await;
    let all = [
        tcp_service("mail", BackendPolicy::default(), &[server.address]),
        vec![route("r", &["tcp"], &[], vec![to("mail", "", 1)])],
    ];
    let sections = vec![section("tcp", None, Protocol::Tcp)];
    let (bed, _log) = gateway_of(sections, |_| {}, all.concat()).await;
    let open = async || {
        let mut stream = TcpStream::connect(bed.listener()).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        stream
    };
    let error = open().await.read(&mut [0; 8]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let stream = open().await;
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    wait_until("the server has the bytes", async || server.hits() == 2).await;
    drop(stream);
    assert_eq!(heard.recv().await.unwrap(), Err(ErrorKind::ConnectionReset));
    let mut stream = open().await;
    stream.shutdown().await.unwrap();
    assert_eq!(heard.recv().await.unwrap(), Ok(0), "an orderly end stays one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_says_how_long_silence_may_last() {
    let server = echo("a:").await;
    // 0 is for ever, whatever the proxy's own limit is.
    for (own, usual_ms, ends) in [(Some(200), 3_600_000, true), (Some(0), 200, false)] {
        let (name, mut listener) = gateway(None);
        if let Resource::Listener(Listener { kind: ListenerKind::Gateway(g), .. }) = &mut listener {
            g.sections = vec![section("tcp", None, Protocol::Tcp)];
        }
        let (child, mut way) = route("r", &["tcp"], &[], vec![to("mail", "", 1)]);
        if let Resource::Route(route) = &mut way {
            route.rules[0].timeouts.idle_ms = own;
        }
        let mut config = config("gateway~shop~web");
        config.limits.tunnel_idle_timeout = Duration::from_millis(usual_ms);
        let bed = Bed::start(config, None).await;
        let mut all = tcp_service("mail", BackendPolicy::default(), &[server.address]);
        all.extend([(name, listener), (child, way)]);
        bed.apply(1, all).await;
        let mut stream = TcpStream::connect(bed.listener()).await.unwrap();
        assert_eq!(said(&mut stream, 2).await, "a:");
        let patience = Duration::from_millis(if ends { 60_000 } else { 800 });
        let ended = tokio::time::timeout(patience, stream.read_u8()).await;
        assert_eq!(ended.is_ok(), ends, "{own:?}");
    }
}

// === datagrams ===

/// Answers each datagram with its name before it.
async fn answering(name: &'static str) -> (SocketAddr, TaskGroup) {
    answering_on(name, UdpSocket::bind("127.0.0.1:0").await.unwrap())
}

fn answering_on(name: &'static str, socket: UdpSocket) -> (SocketAddr, TaskGroup) {
    let address = socket.local_addr().unwrap();
    let tasks = TaskGroup::new();
    tasks.spawn("udp server", async move {
        let mut buffer = vec![0; 65_535];
        while let Ok((n, from)) = socket.recv_from(&mut buffer).await {
            let answer = [name.as_bytes(), &buffer[..n]].concat();
            let _ = socket.send_to(&answer, from).await;
        }
    });
    (address, tasks)
}

/// The same, and what its checks ask, on the same port.
async fn checked(name: &'static str) -> (SocketAddr, TaskGroup, Server) {
    loop {
        let checks = Server::raw(|_, _| async {}).await;
        if let Ok(socket) = UdpSocket::bind(checks.address).await {
            let (address, tasks) = answering_on(name, socket);
            return (address, tasks, checks);
        }
    }
}

fn udp_service(name: &str, lb: LbPolicy, endpoints: Vec<Endpoint>) -> Vec<Named> {
    let root = Root::host(fqdn(name));
    let policy = BackendPolicy { lb, ..BackendPolicy::default() };
    let (_, mut backend) = backend(name, "", Labels::new(), policy);
    let (_, mut set) = endpoints_of(name, Protocol::Udp, endpoints);
    if let (Resource::Backend(b), Resource::Endpoints(s)) = (&mut backend, &mut set) {
        (b.port, s.port) = (53, 53);
    }
    vec![(root.child(udp_backend_child(53)), backend), (root.child(udp_endpoints_child(53)), set)]
}

fn to_udp(name: &str) -> Vec<WeightedBackend> {
    let target = Target::Backend(Root::host(fqdn(name)).child(udp_backend_child(53)));
    vec![WeightedBackend { target, weight: 1, filters: Vec::new() }]
}

async fn udp_bed(bind: &str, lb: LbPolicy, endpoints: Vec<Endpoint>) -> (Bed, Log) {
    let all = [udp_service("dns", lb, endpoints), vec![route("r", &["udp"], &[], to_udp("dns"))]];
    let sections = vec![section("udp", None, Protocol::Udp)];
    let bind = bind.parse().unwrap();
    gateway_of(sections, |g| g.bind = vec![bind], all.concat()).await
}

fn datagrams(bed: &Bed) -> SocketAddr {
    bed.door(|d| matches!(d, Door::Datagrams(_)))
}

async fn ask(client: &UdpSocket, question: &[u8]) -> String {
    client.send(question).await.unwrap();
    let mut buffer = vec![0; 65_535];
    let n = client.recv(&mut buffer);
    let n = tokio::time::timeout(Duration::from_secs(60), n).await.expect("an answer").unwrap();
    String::from_utf8(buffer[..n].to_vec()).unwrap()
}

async fn client_of(at: SocketAddr) -> UdpSocket {
    let own: IpAddr = if at.is_ipv4() { "127.0.0.1" } else { "::1" }.parse().unwrap();
    let client = UdpSocket::bind((own, 0)).await.unwrap();
    client.connect(at).await.unwrap();
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_of_a_client_go_to_one_instance_and_answers_find_back() {
    let ((a, _one), (b, _two)) = (answering("a:").await, answering("b:").await);
    let both = vec![endpoint("a", a), endpoint("b", b)];
    let (bed, _log) = udp_bed("127.0.0.1:0", LbPolicy::RoundRobin, both.clone()).await;
    let at = datagrams(&bed);
    let mut tally = [0, 0];
    let mut clients = Vec::new();
    for i in 0..20 {
        let client = client_of(at).await;
        let first = ask(&client, format!("{i}").as_bytes()).await;
        assert!(first.ends_with(&format!(":{i}")), "{first}");
        tally[usize::from(first.starts_with("b:"))] += 1;
        // At once: a flow that was asked little and has answered all is over before others.
        for _ in 0..3 {
            assert!(ask(&client, b"again").await.starts_with(&first[..2]));
        }
        clients.push((client, first[..2].to_owned()));
    }
    assert_eq!(tally, [10, 10]);
    // As long as a datagram can be, and as short.
    let long = "x".repeat(60_000);
    assert_eq!(ask(&clients[0].0, long.as_bytes()).await, format!("{}{long}", clients[0].1));
    assert_eq!(ask(&clients[0].0, b"").await, clients[0].1);
    // The last one is counted behind its way to us.
    wait_until("all are counted", async || {
        let metrics = bed.metrics().await;
        let lines = [
            "weft_udp_flows_open 20",
            "weft_udp_flows_total 20",
            "weft_udp_datagrams_sent_total 82",
        ];
        lines.iter().all(|line| metrics.contains(line))
    })
    .await;
    // Who is gone from the table gets nothing more; its clients go elsewhere.
    let left = vec![endpoint("b", b)];
    bed.apply(2, udp_service("dns", LbPolicy::RoundRobin, left)).await;
    for (client, _) in &clients {
        assert_eq!(ask(client, b"!").await, "b:!");
    }
    // A listener that is gone gives its address back, however fresh its flows are.
    bed.remove(3, vec![Root::listener("shop/web/8000").own()]).await;
    wait_until("it is free", async || UdpSocket::bind(at).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_turns_ill_leaves_its_clients_to_one_that_is_well() {
    let ((a, _one, a_well), (b, _two, b_well)) = (checked("a").await, checked("b").await);
    let both = vec![endpoint("a", a), endpoint("b", b)];
    let mut all = udp_service("dns", LbPolicy::RoundRobin, both);
    let check = HealthCheck {
        kind: CheckKind::Tcp { send: Vec::new(), expect: Vec::new() },
        interval_ms: 20,
        timeout_ms: 60_000,
        healthy: 1,
        unhealthy: 2,
        jitter_basis_points: 0,
        ..HealthCheck::default()
    };
    if let Resource::Backend(backend) = &mut all[0].1 {
        let protection = Protection { health_check: Some(check), ..Protection::default() };
        backend.policy.protection = Some(Box::new(protection));
    }
    all.push(route("r", &["udp"], &[], to_udp("dns")));
    let sections = vec![section("udp", None, Protocol::Udp)];
    let bind = vec!["127.0.0.1:0".parse().unwrap()];
    let (bed, log) = gateway_of(sections, |g| g.bind = bind, all).await;
    let at = datagrams(&bed);
    let client = client_of(at).await;
    let first = ask(&client, b"").await;
    assert_eq!(ask(&client, b"").await, first);
    let (ill, other, well) = match &*first {
        "a" => (&a_well, "b", &b_well),
        _ => (&b_well, "a", &a_well),
    };
    // Its datagrams would be answered, if it got any.
    ill.kill().await;
    wait_until("the other one answers", async || ask(&client, b"").await == other).await;
    // Where nobody is well, nobody is better.
    well.kill().await;
    wait_until("nobody is well", async || {
        client_of(at).await.send(b"").await.unwrap();
        log.find("takes datagrams").is_some()
    })
    .await;
    assert_eq!(ask(&client, b"").await, other);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hashing_policy_leads_all_of_a_clients_datagrams_to_one_instance() {
    let ((a, _one), (b, _two)) = (answering("a:").await, answering("b:").await);
    let hashing = Hashing {
        by: HashBy::SourceIp,
        table: HashTable::Maglev { size: 1_021 },
        load_max_basis_points: None,
    };
    let both = vec![endpoint("a", a), endpoint("b", b)];
    let (bed, _log) = udp_bed("127.0.0.1:0", LbPolicy::Hash(Box::new(hashing)), both).await;
    let first = ask(&client_of(datagrams(&bed)).await, b"").await;
    for _ in 0..10 {
        assert_eq!(ask(&client_of(datagrams(&bed)).await, b"").await, first);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_come_from_the_address_that_was_dialled() {
    let (a, _one) = answering("a:").await;
    let (bed, _log) = udp_bed("0.0.0.0:0", LbPolicy::RoundRobin, vec![endpoint("a", a)]).await;
    let port = datagrams(&bed).port();
    for own in ["127.0.0.1", "127.0.0.9", "127.1.2.3"] {
        // A connected socket takes answers from no other address.
        let client = client_of(SocketAddr::new(own.parse().unwrap(), port)).await;
        assert_eq!(ask(&client, own.as_bytes()).await, format!("a:{own}"));
    }
    // One socket that dials two of our addresses has two flows.
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for own in ["127.0.0.1", "127.0.0.9"] {
        let to = SocketAddr::new(own.parse().unwrap(), port);
        client.send_to(own.as_bytes(), to).await.unwrap();
        let mut buffer = [0; 64];
        let (n, from) = client.recv_from(&mut buffer).await.unwrap();
        assert_eq!((from, &buffer[..n]), (to, format!("a:{own}").as_bytes()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_noticed_and_said() {
    let dead = ([127, 0, 0, 1], ports::free()).into();
    let (a, _one) = answering("a:").await;
    let (bed, log) = udp_bed("127.0.0.1:0", LbPolicy::RoundRobin, vec![endpoint("x", dead)]).await;
    let client = client_of(datagrams(&bed)).await;
    client.send(b"x").await.unwrap();
    let line = log.line("takes no datagrams").await;
    assert_eq!(line["response_flags"], "UF", "{line}");
    bed.apply(2, udp_service("dns", LbPolicy::RoundRobin, vec![endpoint("a", a)])).await;
    assert_eq!(ask(&client, b"x").await, "a:x");
    bed.apply(3, udp_service("dns", LbPolicy::RoundRobin, Vec::new())).await;
    client.send(b"x").await.unwrap();
    log.line("no instance of").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_answers_again_begins_anew() {
    let at = ([127, 0, 0, 1], ports::free()).into();
    let mut all = udp_service("dns", LbPolicy::RoundRobin, vec![endpoint("x", at)]);
    if let Resource::Backend(backend) = &mut all[0].1 {
        backend.policy.outlier =
            Outlier { consecutive_failures: 2, base_ejection_ms: 60_000, ..Outlier::default() };
    }
    all.push(route("r", &["udp"], &[], to_udp("dns")));
    let sections = vec![section("udp", None, Protocol::Udp)];
    let (bed, log) =
        gateway_of(sections, |g| g.bind = vec!["127.0.0.1:0".parse().unwrap()], all).await;
    for round in 1..=3 {
        client_of(datagrams(&bed)).await.send(b"x").await.unwrap();
        wait_until("the failure is noticed", async || {
            let text = std::fs::read_to_string(&log.0).unwrap_or_default();
            text.matches("takes no datagrams").count() >= round
        })
        .await;
        // It is back, and answers: two failures that are not in a row eject nobody.
        let back = UdpSocket::bind(at).await.unwrap();
        let client = client_of(datagrams(&bed)).await;
        client.send(b"y").await.unwrap();
        let answering = async {
            let mut buffer = [0; 8];
            let (n, from) = back.recv_from(&mut buffer).await.unwrap();
            back.send_to(&buffer[..n], from).await.unwrap();
            client.recv(&mut buffer).await.unwrap()
        };
        let answered = tokio::time::timeout(Duration::from_secs(60), answering).await;
        assert_eq!(answered.expect("it was ejected"), 1);
    }
}

/// A flow that was asked so much is no question that was answered: it lasts.
async fn lives(client: &UdpSocket) {
    for _ in 0..3 {
        assert_eq!(ask(client, b"x").await, "a:x");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_have_a_limit_that_is_counted() {
    let (bed, _server) = flows_of_workers(1, |limits| {
        limits.udp_flows_max = 3;
        limits.udp_silent = Duration::from_secs(3_600);
    })
    .await;
    let at = datagrams(&bed);
    let known = [client_of(at).await, client_of(at).await, client_of(at).await];
    for client in &known {
        lives(client).await;
    }
    let late = client_of(at).await;
    late.send(b"x").await.unwrap();
    wait_until("it is counted", async || {
        let metrics = bed.metrics().await;
        metrics.contains("weft_udp_flows_refused_total 1")
            && metrics.contains("weft_udp_datagrams_dropped_total 1")
    })
    .await;
    // Those that are known go on.
    for client in &known {
        assert_eq!(ask(client, b"y").await, "a:y");
    }
}

/// A gateway of several workers that passes datagrams to one server.
async fn flows_of_workers(
    workers: usize,
    limits: impl FnOnce(&mut ProxyLimits),
) -> (Bed, TaskGroup) {
    let (a, server) = answering("a:").await;
    let mut config = config("gateway~shop~web");
    config.workers = workers;
    limits(&mut config.limits);
    let bed = Bed::start(config, None).await;
    let (name, mut listener) = gateway(None);
    if let Resource::Listener(Listener { kind: ListenerKind::Gateway(g), .. }) = &mut listener {
        g.sections = vec![section("udp", None, Protocol::Udp)];
    }
    let mut all = udp_service("dns", LbPolicy::RoundRobin, vec![endpoint("a", a)]);
    all.extend([(name, listener), route("r", &["udp"], &[], to_udp("dns"))]);
    bed.apply(1, all).await;
    (bed, server)
}

/// Whichever workers the kernel leads clients to.
#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_flows_is_one_of_all_workers() {
    let (bed, _server) = flows_of_workers(4, |limits| {
        limits.udp_flows_max = 12;
        limits.udp_silent = Duration::from_secs(3_600);
    })
    .await;
    let at = datagrams(&bed);
    let mut known = Vec::new();
    for _ in 0..12 {
        let client = client_of(at).await;
        lives(&client).await;
        known.push(client);
    }
    for refused in 1..=8 {
        let late = client_of(at).await;
        late.send(b"x").await.unwrap();
        let counted = format!("weft_udp_flows_refused_total {refused}\n");
        wait_until("it is counted", async || bed.metrics().await.contains(&counted)).await;
    }
    for client in &known {
        assert_eq!(ask(client, b"y").await, "a:y");
    }
}

/// The one flow that there may be goes round, whichever worker has it.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_flow_gives_way_to_another_workers_client() {
    let (bed, _server) = flows_of_workers(4, |limits| {
        limits.udp_flows_max = 1;
        limits.udp_silent = Duration::from_millis(50);
    })
    .await;
    let at = datagrams(&bed);
    for i in 0..4 {
        let client = client_of(at).await;
        let client = &client;
        wait_until(&format!("client {i} is served"), async || {
            let mut buffer = [0; 8];
            client.send(b"x").await.unwrap();
            let answer = client.recv(&mut buffer);
            let answer = tokio::time::timeout(Duration::from_millis(100), answer).await;
            answer.is_ok_and(|got| got.unwrap() == 3)
        })
        .await;
    }
}

/// Clients of datagrams, each of which has asked and was answered.
async fn answered_clients(bed: &Bed) -> Vec<UdpSocket> {
    let mut clients = Vec::new();
    for _ in 0..12 {
        let client = client_of(datagrams(bed)).await;
        for i in 0..4 {
            assert_eq!(ask(&client, format!("{i}").as_bytes()).await, format!("a:{i}"));
        }
        clients.push(client);
    }
    clients
}

#[tokio::test(flavor = "multi_thread")]
async fn several_workers_share_an_address() {
    let (bed, _server) = flows_of_workers(3, |_| {}).await;
    answered_clients(&bed).await;
    let total = bed.metrics().await;
    assert!(total.contains("weft_udp_flows_total 12\n"), "{total}");
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_end_by_themselves() {
    let idle = Duration::from_millis(300);
    let (bed, _server) = flows_of_workers(3, |limits| limits.udp_idle_timeout = idle).await;
    let clients = answered_clients(&bed).await;
    let open = async || {
        let metrics = bed.metrics().await;
        let line = metrics.lines().find(|l| l.starts_with("weft_udp_flows_open ")).unwrap();
        line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    wait_until("silent flows are over", async || open().await == 0).await;
    assert_eq!(ask(&clients[0], b"x").await, "a:x");
    assert!(bed.proxy.drain().await);
}
