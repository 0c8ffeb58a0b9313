// SPDX-License-Identifier: Apache-2.0
//! What an operator of a proxy notices: rotated logs, lines about TLS and about clients that never
//! got in, a server's greeting, a drain of listeners, events that arrive when they are sent.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Empty, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use weft_model::*;

use super::bed::*;
use crate::config::{LogFormat, LogWhat};
use crate::observe::format::Format;
use crate::table::Door;

/// A configuration whose lines go to a file.
fn logging(node: &str, format: &str) -> (crate::ProxyConfig, PathBuf, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let mut config = config(node);
    config.access_log.what = LogWhat::Everything;
    config.access_log.format = LogFormat::Of(Arc::new(Format::text(format).unwrap()));
    config.access_log.path = Some(path.clone());
    (config, path, dir)
}

/// Where a proxy's lines go, for as long as this lives.
pub struct Log {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Log {
    pub fn of(node: &str, format: &str) -> (crate::ProxyConfig, Self) {
        let (config, path, dir) = logging(node, format);
        (config, Self { path, _dir: dir })
    }

    pub fn lines(&self) -> Vec<String> {
        lines(&self.path)
    }
}

fn lines(path: &std::path::Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

async fn lines_come(path: &std::path::Path, n: usize) -> Vec<String> {
    wait_until("the lines are written", || async { lines(path).len() == n }).await;
    lines(path)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_renamed_is_opened_again_under_its_name() {
    let user = Server::named("user").await;
    let (config, path, dir) = logging("sidecar~shop~client-1", "%REQ(:PATH)%");
    let bed = Bed::start(config, None).await;
    bed.apply(1, http_service("user", &[user.address])).await;
    bed.get("http://user/1").await;
    lines_come(&path, 1).await;
    let old = dir.path().join("access.log.1");
    std::fs::rename(&path, &old).unwrap();
    bed.get("http://user/2").await;
    lines_come(&old, 2).await;
    bed.proxy.reopen_logs();
    wait_until("it is opened again", || async { path.exists() }).await;
    bed.get("http://user/3").await;
    assert_eq!(lines_come(&path, 1).await, ["/3"]);
    assert_eq!(lines(&old), ["/1", "/2"]);
    // Where it cannot be opened, lines go where they went.
    let older = dir.path().join("access.log.2");
    std::fs::rename(&path, &older).unwrap();
    std::fs::create_dir(&path).unwrap();
    bed.proxy.reopen_logs();
    bed.get("http://user/4").await;
    assert_eq!(lines_come(&older, 2).await, ["/3", "/4"]);
    std::fs::remove_dir(&path).unwrap();
    // Envoy's path for the same.
    assert_eq!(post(&bed, "/reopen_logs").await.body, "OK\n");
    wait_until("it is opened again", || async { path.is_file() }).await;
    bed.get("http://user/5").await;
    lines_come(&path, 1).await;
}

struct Pair {
    chain: String,
    key: String,
    der: rustls::pki_types::CertificateDer<'static>,
}

fn pair(name: &str) -> Pair {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let cert = params.self_signed(&key).unwrap();
    Pair { chain: cert.pem(), key: key.serialize_pem(), der: cert.der().clone() }
}

/// A gateway with TLS that asks clients for certificates, in front of `user`.
fn guarded(server: &Pair, client: &Pair, user: &Server) -> Vec<Named> {
    let clients =
        ClientCertificates { ca_pem: client.chain.clone().into(), required: true, insecure: false };
    let own = ServerTls::new(server.chain.clone(), server.key.clone());
    let section = Section {
        name: "https".into(),
        hostname: Some("a.example".into()),
        protocol: Protocol::Http1,
        tls: Some(ServerTls { clients: Some(Box::new(clients)), ..own }),
    };
    let (name, _) = gateway(None);
    let binds = vec!["127.0.0.1:0".parse().unwrap()];
    let kind = ListenerKind::Gateway(GatewayListener::new(binds, vec![section]));
    let mut all = http_service("user", &[user.address]);
    let listener = Listener { name: "shop/web/8000".into(), kind, origin: None };
    all.push((name, Resource::Listener(listener)));
    let forward = Action::Forward(vec![to("user", "", 1)]);
    let mut route = gateway_route("r", &[], vec![rule("/", forward)]);
    if let Resource::Route(Route { parent: Parent::Listener { sections, .. }, .. }) = &mut route.1 {
        *sections = vec!["https".into()];
    }
    all.push(route);
    all
}

fn connector(server: &Pair, client: Option<&Pair>) -> TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(server.der.clone()).unwrap();
    let builder = rustls::ClientConfig::builder_with_provider(weft_identity::provider::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match client {
        None => builder.with_no_client_auth(),
        Some(client) => {
            let key = client.key.as_bytes();
            let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(key).unwrap();
            builder.with_client_auth_cert(vec![client.der.clone()], key).unwrap()
        }
    };
    TlsConnector::from(Arc::new(config))
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_tell_of_both_connections_and_of_times() {
    let user = Server::named("user").await;
    let (server, client) = (pair("a.example"), pair("client.example"));
    let format = "%DOWNSTREAM_TLS_VERSION% %DOWNSTREAM_TLS_CIPHER% %DOWNSTREAM_PEER_SUBJECT% \
        %DOWNSTREAM_PEER_ISSUER% %DOWNSTREAM_PEER_DNS_SAN% %DOWNSTREAM_PEER_CERT_V_START(%Y)% \
        %DOWNSTREAM_PEER_URI_SAN%|%DOWNSTREAM_PEER_FINGERPRINT_256%|%UPSTREAM_LOCAL_ADDRESS%|\
        %UPSTREAM_PROTOCOL% %UPSTREAM_TLS_VERSION% %CONNECTION_ID% %STREAM_ID% \
        %UPSTREAM_CONNECTION_ID%|%REQ_WITHOUT_QUERY(:PATH)% %PATH(NQ)% %PATH(WQ)% \
        %QUERY_PARAM(k)% %QUERY_PARAM(none)%|%REQUEST_DURATION% %RESPONSE_DURATION% \
        %RESPONSE_TX_DURATION% %COMMON_DURATION(DS_RX_BEG:DS_TX_END:us)%|%FILTER_CHAIN_NAME% \
        %ACCESS_LOG_TYPE% %DYNAMIC_METADATA(a:b)%";
    let (config, path, _dir) = logging("gateway~shop~web", format);
    let bed = Bed::start(config, None).await;
    bed.apply(1, guarded(&server, &client, &user)).await;
    let tcp = TcpStream::connect(bed.listener()).await.unwrap();
    let name = "a.example".to_owned().try_into().unwrap();
    let mut tls = connector(&server, Some(&client)).connect(name, tcp).await.unwrap();
    for close in ["keep-alive", "close"] {
        let ask =
            format!("GET /x?k=v&l=w HTTP/1.1\r\nHost: a.example\r\nConnection: {close}\r\n\r\n");
        tls.write_all(ask.as_bytes()).await.unwrap();
        lines_come(&path, if close == "close" { 2 } else { 1 }).await;
    }
    let mut all = Vec::new();
    let _ = tls.read_to_end(&mut all).await;
    let both = lines(&path);
    let parts: Vec<Vec<&str>> = both.iter().map(|line| line.split('|').collect()).collect();
    for parts in &parts {
        let [session, sha, local, ids, paths, times, chain] = parts.as_slice() else {
            panic!("{parts:?}")
        };
        let who = "CN=client.example CN=client.example client.example 1975 -";
        assert!(session.starts_with("TLSv1.3 TLS_AES_"), "{session}");
        assert!(session.ends_with(who), "{session}");
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &client.der);
        let hex: String = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(*sha, hex);
        assert!(local.starts_with("127.0.0.1:"), "{local}");
        assert!(ids.starts_with("HTTP/1.1 - "), "{ids}");
        assert_eq!(*paths, "/x /x /x?k=v&l=w v -");
        let times: Vec<u64> = times.split(' ').map(|ms| ms.parse().unwrap()).collect();
        assert_eq!(times[0], 0, "there was no body to wait for");
        assert!(times[1] + times[2] <= times[3] / 1_000, "{times:?}");
        assert_eq!(*chain, "https DownstreamEnd -");
    }
    // One connection of the client, one upstream, and two requests.
    let ids = |n: usize| parts[n][3].split(' ').skip(2).collect::<Vec<_>>();
    let (first, second) = (ids(0), ids(1));
    assert_eq!((first[0], first[2]), (second[0], second[2]));
    assert_ne!(first[1], second[1]);
    assert_eq!(parts[0][2], parts[1][2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_tell_of_the_connection_of_an_attempt_that_failed() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let user = Server::raw(move |_, mut stream| {
        let count = count.clone();
        async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { return };
                head.push(byte);
            }
            count.fetch_add(1, Ordering::SeqCst);
            if !head.starts_with(b"GET /closed ") {
                std::future::pending::<()>().await;
            }
        }
    })
    .await;
    let format = "%REQ(:PATH)% %RESPONSE_FLAGS% %UPSTREAM_PROTOCOL% %UPSTREAM_LOCAL_ADDRESS%";
    let (config, path, _dir) = logging("gateway~shop~web", format);
    let bed = Bed::start(config, None).await;
    let mut all = http_service("user", &[user.address]);
    all.extend(http_service("nobody", &[nobody().await]));
    all.push(gateway(None));
    let led = |path: &str, name: &str, backend_request_ms: Option<u64>| {
        let mut rule = rule(path, Action::Forward(vec![to(name, "", 1)]));
        rule.timeouts.backend_request_ms = backend_request_ms;
        rule.retry.attempts = 0;
        rule
    };
    let rules = vec![
        led("/closed", "user", None),
        led("/late", "user", Some(1_000)),
        led("/left", "user", None),
        led("/nobody", "nobody", None),
    ];
    all.push(gateway_route("r", &[], rules));
    bed.apply(1, all).await;
    for (n, (path_of, line)) in [
        ("closed", "/closed UC HTTP/1.1 127.0.0.1:"),
        ("late", "/late UT HTTP/1.1 127.0.0.1:"),
        ("left", "/left DC HTTP/1.1 127.0.0.1:"),
        ("nobody", "/nobody UF - -"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut stream = TcpStream::connect(bed.listener()).await.unwrap();
        let before = asked.load(Ordering::SeqCst);
        let ask = format!("GET /{path_of} HTTP/1.1\r\nHost: a\r\n\r\n");
        stream.write_all(ask.as_bytes()).await.unwrap();
        if path_of == "left" {
            wait_until("it has come", || async { asked.load(Ordering::SeqCst) > before }).await;
            drop(stream);
        }
        let lines = lines_come(&path, n + 1).await;
        assert!(lines[n].starts_with(line), "{lines:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_fails_is_counted_and_has_a_line_with_its_reason() {
    let user = Server::named("user").await;
    let (server, client) = (pair("a.example"), pair("client.example"));
    let format = "%RESPONSE_FLAGS% %REQUESTED_SERVER_NAME% %DOWNSTREAM_TRANSPORT_FAILURE_REASON%";
    let (config, path, _dir) = logging("gateway~shop~web", format);
    let bed = Bed::start(config, None).await;
    bed.apply(1, guarded(&server, &client, &user)).await;
    let shake = async |connector: TlsConnector, name: &str| {
        let tcp = TcpStream::connect(bed.listener()).await.unwrap();
        let name = name.to_owned().try_into().unwrap();
        let Ok(mut tls) = connector.connect(name, tcp).await else { return };
        // Within TLS 1.3 a client learns of it later.
        let _ = tls.read(&mut [0; 1]).await;
    };
    // Who only looks whether the port is open is no failure.
    drop(TcpStream::connect(bed.listener()).await.unwrap());
    shake(connector(&server, Some(&client)), "b.example").await;
    let line = lines_come(&path, 1).await.remove(0);
    let why = "DPE b.example TLS handshake: no certificate serves the name \\\"b.example\\\"";
    assert_eq!(line, why);
    shake(connector(&server, None), "a.example").await;
    let line = lines_come(&path, 2).await.remove(1);
    assert!(line.starts_with("DPE a.example TLS handshake: "), "{line}");
    assert!(line.contains("certificate"), "{line}");
    let mut plain = TcpStream::connect(bed.listener()).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    lines_come(&path, 3).await;
    let metrics = bed.metrics().await;
    assert!(metrics.contains("weft_tls_handshakes_failed_total 3\n"), "{metrics}");
    // Whoever knocks again and again: all are counted, few have a line.
    for _ in 0..200 {
        shake(connector(&server, Some(&client)), "b.example").await;
    }
    let all = "weft_tls_handshakes_failed_total 203\n";
    wait_until("all are counted", || async { bed.metrics().await.contains(all) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_greeting_is_not_held_up_where_nobody_declared_the_protocol() {
    let greeting = Server::raw(|_, mut stream| async move {
        let _ = stream.write_all(b"220 ready\r\n").await;
        let _ = stream.read(&mut [0; 64]).await;
    })
    .await;
    let up = vec![endpoint("a", greeting.address)];
    let all = service("user", Protocol::Detect, BackendPolicy::default(), up);
    let bed = Bed::sidecar(all).await;
    let port = bed.door(|d| matches!(d, Door::Upstream { .. }));
    let by_connect = async || {
        let mut stream = TcpStream::connect(bed.outbound()).await.unwrap();
        let ask = b"CONNECT user:80 HTTP/1.1\r\nHost: user:80\r\n\r\n";
        stream.write_all(ask).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        stream
    };
    let by_port = async || TcpStream::connect(port).await.unwrap();
    let greeted = async |mut stream: TcpStream| {
        let began = Instant::now();
        let mut seen = [0; 11];
        stream.read_exact(&mut seen).await.unwrap();
        assert_eq!(&seen, b"220 ready\r\n");
        began.elapsed()
    };
    // The best of some: a machine may be busy, and what held it up was there every time.
    let sniffing = Duration::from_millis(weft_base::limits::SNIFF_MS_MAX);
    let (mut connect, mut direct) = (sniffing, sniffing);
    for _ in 0..100 {
        if connect.max(direct) < sniffing / 2 {
            break;
        }
        connect = connect.min(greeted(by_connect().await).await);
        direct = direct.min(greeted(by_port().await).await);
    }
    assert!(connect < sniffing / 2, "by CONNECT: {connect:?}");
    assert!(direct < sniffing / 2, "by its port: {direct:?}");
}

async fn post(bed: &Bed, path: &str) -> Got {
    let request = Request::builder().method(Method::POST).uri(path).header("host", "127.0.0.1");
    send(bed.proxy.addresses().admin, request.body(Full::default()).unwrap()).await
}

async fn ask(stream: &mut TcpStream) -> String {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: user\r\n\r\n").await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"user") {
        seen.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(seen).unwrap()
}

/// A gateway that leads to an origin that says its name.
async fn fronted() -> (Bed, Server) {
    let user = Server::named("user").await;
    let mut all = http_service("user", &[user.address]);
    all.push(gateway(None));
    let forward = Action::Forward(vec![to("user", "", 1)]);
    all.push(gateway_route("r", &[], vec![rule("/", forward)]));
    (Bed::gateway(all).await, user)
}

#[tokio::test(flavor = "multi_thread")]
async fn drained_listeners_take_nothing_new_and_the_proxy_goes_on() {
    let (bed, _user) = fronted().await;
    let at = bed.listener();
    let mut kept = TcpStream::connect(at).await.unwrap();
    assert!(ask(&mut kept).await.starts_with("HTTP/1.1 200"));
    for odd in ["/drain_listeners?skip_exit", "/drain_listeners?gracefully"] {
        assert_eq!(post(&bed, odd).await.status, 400, "{odd}");
    }
    // A gateway has no inbound listeners.
    assert_eq!(post(&bed, "/drain_listeners?inboundonly").await.body, "OK\n");
    assert_eq!(post(&bed, "/drain_listeners").await.body, "OK\n");
    let refused = || async { TcpStream::connect(at).await.is_err() };
    wait_until("nobody new is let in", refused).await;
    let answer = ask(&mut kept).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(!answer.to_lowercase().contains("connection: close"), "{answer}");
    let admin = bed.proxy.addresses().admin;
    assert_eq!(send(admin, get("/ready", "127.0.0.1")).await.status, 503);
    assert!(tokio::time::timeout(Duration::ZERO, bed.proxy.asked_to_quit()).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_graceful_drain_tells_clients_to_go_and_takes_new_ones_meanwhile() {
    let (bed, _user) = fronted().await;
    let mut kept = TcpStream::connect(bed.listener()).await.unwrap();
    assert!(!ask(&mut kept).await.to_lowercase().contains("connection: close"));
    assert_eq!(post(&bed, "/drain_listeners?graceful&skip_exit").await.body, "OK\n");
    let told = || async {
        let mut fresh = TcpStream::connect(bed.listener()).await.unwrap();
        ask(&mut fresh).await.to_lowercase().contains("connection: close")
    };
    wait_until("a client is told to go", told).await;
    // Who was idle then may ask once more.
    let answer = ask(&mut kept).await.to_lowercase();
    assert!(answer.starts_with("http/1.1 200") && answer.contains("connection: close"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_door_that_is_opened_after_all_were_left_takes_nobody() {
    let mut config = config("gateway~shop~web");
    config.handover = Arc::new(crate::handover::Sockets::keeping(Vec::new()).unwrap());
    let bed = Bed::start(config, None).await;
    assert_eq!(post(&bed, "/drain_listeners").await.body, "OK\n");
    let user = Server::named("user").await;
    let mut all = http_service("user", &[user.address]);
    all.push(gateway(None));
    bed.apply(1, all).await;
    let at = bed.listener();
    let refused = || async { TcpStream::connect(at).await.is_err() };
    wait_until("nobody is let in who would wait for ever", refused).await;
}

/// Events that wait to be sent.
const EVENTS_MAX: usize = 512;

/// Sends each event when it is told to.
async fn events() -> (Server, tokio::sync::mpsc::Sender<String>) {
    let (tx, rx) = tokio::sync::mpsc::channel::<String>(EVENTS_MAX);
    let rx = Arc::new(tokio::sync::Mutex::new(rx));
    let server = Server::raw(move |_, mut stream| {
        let rx = rx.clone();
        async move {
            let mut seen = Vec::new();
            while !seen.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { return };
                seen.push(byte);
            }
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                Transfer-Encoding: chunked\r\n\r\n";
            if stream.write_all(head.as_bytes()).await.is_err() {
                return;
            }
            let mut rx = rx.lock().await;
            while let Some(event) = rx.recv().await {
                let chunk = format!("{:x}\r\n{event}\r\n", event.len());
                if stream.write_all(chunk.as_bytes()).await.is_err() {
                    return;
                }
            }
            let _ = stream.write_all(b"0\r\n\r\n").await;
        }
    })
    .await;
    (server, tx)
}

async fn streaming(server: &Server) -> Bed {
    let mut all = http_service("user", &[server.address]);
    all.push(gateway(None));
    let forward = Action::Forward(vec![to("user", "", 1)]);
    all.push(gateway_route("r", &[], vec![rule("/", forward)]));
    Bed::gateway(all).await
}

async fn body_of(bed: &Bed, h2: bool) -> hyper::body::Incoming {
    let io = TokioIo::new(TcpStream::connect(bed.listener()).await.unwrap());
    let request = Request::get("http://user/").header("accept", "text/event-stream");
    let request = request.header("host", "user").body(Empty::<Bytes>::new()).unwrap();
    let answer = if h2 {
        let shaken = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await;
        let (mut sender, driver) = shaken.unwrap();
        weft_base::task::TaskGroup::new().spawn("client", async move { drop(driver.await) });
        sender.send_request(request).await.unwrap()
    } else {
        let (mut sender, driver) = hyper::client::conn::http1::handshake(io).await.unwrap();
        weft_base::task::TaskGroup::new().spawn("client", async move { drop(driver.await) });
        sender.send_request(request).await.unwrap()
    };
    assert_eq!(answer.headers().get("content-type").unwrap(), "text/event-stream");
    answer.into_body()
}

/// Reads until all of `wanted` has come; whatever comes beyond it is kept.
async fn read_to(body: &mut hyper::body::Incoming, seen: &mut String, wanted: &str) {
    let reading = async {
        while !seen.ends_with(wanted) {
            let frame = body.frame().await.expect("it goes on").unwrap();
            seen.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
        }
    };
    let read = tokio::time::timeout(Duration::from_secs(60), reading).await;
    read.unwrap_or_else(|_| panic!("{wanted:?} is held back"));
}

async fn events_come_one_by_one(h2: bool) {
    let (server, events) = events().await;
    let bed = streaming(&server).await;
    // The head comes before there is any event.
    let mut body = body_of(&bed, h2).await;
    let mut seen = String::new();
    for n in 0..20 {
        // Sent only when the one before was read: whatever waits for more waits for ever.
        let event = format!("id: {n}\ndata: {}\n\n", "x".repeat(n % 3));
        events.try_send(event.clone()).unwrap();
        read_to(&mut body, &mut seen, &event).await;
    }
    drop(events);
    let rest = body.collect().await.expect("the end is passed on");
    assert!(rest.to_bytes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn server_sent_events_arrive_when_they_are_sent_over_http1() {
    events_come_one_by_one(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn server_sent_events_arrive_when_they_are_sent_over_http2() {
    events_come_one_by_one(true).await;
}

/// Somebody who reads slowly loses no event, and holds up nobody else.
async fn a_slow_reader_loses_nothing(h2: bool) {
    let (server, events) = events().await;
    let bed = streaming(&server).await;
    let body = body_of(&bed, h2).await;
    let event = |n: usize| format!("id: {n}\ndata: {}\n\n", "y".repeat(16 * 1024));
    let all: String = (0..EVENTS_MAX).map(event).collect();
    (0..EVENTS_MAX).for_each(|n| events.try_send(event(n)).unwrap());
    // Eight megabytes wait, more than windows and sockets hold, and the proxy answers others.
    let metrics = bed.metrics().await;
    assert!(metrics.contains("weft_downstream_connections_open 1\n"), "{metrics}");
    drop(events);
    let read = body.collect();
    let read = tokio::time::timeout(Duration::from_secs(60), read).await.unwrap().unwrap();
    assert!(read.to_bytes() == all.as_bytes(), "an event is lost, or changed its place");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_events_slowly_loses_none_over_http1() {
    a_slow_reader_loses_nothing(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_events_slowly_loses_none_over_http2() {
    a_slow_reader_loses_nothing(true).await;
}
