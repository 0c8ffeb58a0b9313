// SPDX-License-Identifier: Apache-2.0
//! CONNECT, sniffing, opaque relays and upgrades.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_model::*;

use super::bed::*;
use crate::table::Door;

/// Opens a CONNECT through the forward proxy and returns the stream behind its answer.
async fn connect(bed: &Bed, target: &str) -> TcpStream {
    let mut stream = TcpStream::connect(bed.outbound()).await.unwrap();
    let ask = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
    stream
}

async fn line(stream: &mut TcpStream, until: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(until) {
        let mut buffer = [0u8; 4096];
        let n = stream.read(&mut buffer).await.unwrap();
        assert!(n > 0, "closed after {seen:?}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
    seen
}

/// Whether a connection ends before anything is said; the reset may come at once.
async fn is_refused(address: std::net::SocketAddr) -> bool {
    match TcpStream::connect(address).await {
        Ok(mut stream) => stream.read(&mut [0u8; 8]).await.unwrap_or(0) == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http_inside_connect_is_routed_and_measured_as_http() {
    let user = Server::named("user").await;
    let bed = Bed::sidecar(http_service("user", &[user.address])).await;
    let mut stream = connect(&bed, "user:80").await;
    for _ in 0..2 {
        stream.write_all(b"GET /x HTTP/1.1\r\nHost: whatever\r\n\r\n").await.unwrap();
        assert!(line(&mut stream, "user").await.starts_with("HTTP/1.1 200"));
    }
    let metrics = bed.metrics().await;
    let counted = metrics
        .lines()
        .any(|l| l.contains("destination_service_name=\"user\"") && l.ends_with(" 2"));
    assert!(counted, "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn server_first_protocols_inside_connect_are_not_stalled() {
    let greeting = Server::raw(|_, mut stream| async move {
        stream.write_all(b"220 ready\r\n").await.unwrap();
        let mut buffer = [0u8; 64];
        let n = stream.read(&mut buffer).await.unwrap();
        stream.write_all(&buffer[..n]).await.unwrap();
    })
    .await;
    let bed = Bed::sidecar(Vec::new()).await;
    let mut stream = connect(&bed, &greeting.address.to_string()).await;
    let greeted = tokio::time::timeout(Duration::from_secs(60), line(&mut stream, "\n")).await;
    assert_eq!(greeted.expect("who calls is not waited for"), "220 ready\r\n");
    stream.write_all(b"QUIT\r\n").await.unwrap();
    assert_eq!(line(&mut stream, "\n").await, "QUIT\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn undeclared_ports_are_looked_at() {
    let echo = Server::raw(|_, mut stream| async move {
        let (mut r, mut w) = stream.split();
        let _ = tokio::io::copy(&mut r, &mut w).await;
    })
    .await;
    let all = service(
        "user",
        Protocol::Detect,
        BackendPolicy::default(),
        vec![endpoint("a", echo.address)],
    );
    let bed = Bed::sidecar(all).await;
    let address = bed.door(|d| matches!(d, Door::Upstream { .. }));
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"\x16\x03\x01 not really TLS\n").await.unwrap();
    assert_eq!(line(&mut stream, "\n").await, "\x16\x03\x01 not really TLS\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_04_upgrade_before_101() {
    // Answers 101 to the right path and echoes from then on; anything else gets 200.
    let app = Server::raw(|_, mut stream| async move {
        let head = line(&mut stream, "\r\n\r\n").await;
        if head.starts_with("GET /ws ") {
            assert!(head.to_lowercase().contains("upgrade: websocket"), "{head}");
            let switch = b"HTTP/1.1 101 Switching Protocols\r\n\
                           connection: upgrade\r\nupgrade: websocket\r\n\r\n";
            stream.write_all(switch).await.unwrap();
            let (mut r, mut w) = stream.split();
            let _ = tokio::io::copy(&mut r, &mut w).await;
        } else {
            let no = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno";
            stream.write_all(no).await.unwrap();
            // Whatever was smuggled behind the upgrade would arrive here.
            let mut more = [0u8; 64];
            assert_eq!(stream.read(&mut more).await.unwrap_or(0), 0);
        }
    })
    .await;
    let bed = Bed::sidecar(http_service("user", &[app.address])).await;
    let address = bed.door(|d| matches!(d, Door::Upstream { .. }));
    let ask = |path: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
    };
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(ask("/ws").as_bytes()).await.unwrap();
    assert!(line(&mut stream, "\r\n\r\n").await.starts_with("HTTP/1.1 101"));
    stream.write_all(b"ping\n").await.unwrap();
    assert_eq!(line(&mut stream, "\n").await, "ping\n");

    let mut stream = TcpStream::connect(address).await.unwrap();
    let smuggled = ask("/no") + "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    stream.write_all(smuggled.as_bytes()).await.unwrap();
    let mut all = String::new();
    let reading =
        tokio::time::timeout(Duration::from_secs(60), stream.read_to_string(&mut all)).await;
    assert!(reading.is_ok(), "left open: {all}");
    assert_eq!(all.matches("HTTP/1.1 ").count(), 1, "{all}");
    assert!(all.contains("connection: close"), "{all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn opaque_connections_try_other_instances_and_count_what_fails() {
    let echo = Server::raw(|_, mut stream| async move {
        let (mut r, mut w) = stream.split();
        let _ = tokio::io::copy(&mut r, &mut w).await;
    })
    .await;
    let endpoints = vec![endpoint("a", nobody().await), endpoint("b", echo.address)];
    let all = service("user", Protocol::Tcp, BackendPolicy::default(), endpoints);
    let bed = Bed::sidecar(all).await;
    let address = bed.door(|d| matches!(d, Door::Upstream { .. }));
    for _ in 0..4 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"x\n").await.unwrap();
        assert_eq!(line(&mut stream, "\n").await, "x\n");
    }
    let dead = vec![endpoint("a", nobody().await)];
    bed.apply(2, vec![endpoints_of("user", Protocol::Tcp, dead)]).await;
    assert!(is_refused(address).await);
    wait_until("the failure is counted", || async {
        bed.metrics().await.contains("response_flags=\"UF\"")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_04_nothing_is_served_behind_a_refused_way_out() {
    let user = Server::named("user").await;
    let mut config = config("sidecar~shop~client-1");
    config.credential = Some("pod:secret".into());
    let bed = Bed::start(config, None).await;
    bed.apply(1, http_service("user", &[user.address])).await;
    let upstream = bed.door(|d| matches!(d, Door::Upstream { .. }));
    let upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\n";
    for (door, wish) in [
        // No credential; CONNECT where there is none; refused before any upstream was asked.
        (bed.outbound(), "CONNECT user:80 HTTP/1.1\r\nHost: user:80\r\n\r\n".to_owned()),
        (upstream, "CONNECT user:80 HTTP/1.1\r\nHost: user:80\r\n\r\n".to_owned()),
        (upstream, format!("GET /../x HTTP/1.1\r\nHost: a\r\n{upgrade}\r\n")),
        (bed.outbound(), format!("GET http://user/ HTTP/1.1\r\nHost: user\r\n{upgrade}\r\n")),
    ] {
        let mut stream = TcpStream::connect(door).await.unwrap();
        // Framing that the guard would refuse if it still looked.
        let smuggled = "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\
                        Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
        stream.write_all(format!("{wish}{smuggled}").as_bytes()).await.unwrap();
        let mut all = String::new();
        let _ = stream.read_to_string(&mut all).await;
        assert_eq!(all.matches("HTTP/1.1 ").count(), 1, "{wish:?}: {all}");
        assert!(all.contains("HTTP/1.1 4") && all.contains("connection: close"), "{all}");
    }
    assert_eq!(user.hits(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_rules_of_a_virtualservice_share_connections_by_subset() {
    let says = |name: &'static str| {
        Server::raw(move |_, mut stream| async move {
            let _ = stream.write_all(name.as_bytes()).await;
        })
    };
    let (v1, v2) = (says("1\n").await, says("2\n").await);
    let label = |v: &str| Labels::from([("version".into(), v.into())]);
    let endpoints = vec![
        Endpoint { labels: label("v1"), ..endpoint("a", v1.address) },
        Endpoint { labels: label("v2"), ..endpoint("b", v2.address) },
    ];
    let mut all = service("user", Protocol::Tcp, BackendPolicy::default(), endpoints);
    all.push(backend("user", "v1", label("v1"), BackendPolicy::default()));
    all.push(backend("user", "v2", label("v2"), BackendPolicy::default()));
    let split = |targets: Vec<WeightedBackend>| {
        let l4 = Rule { matches: Vec::new(), ..rule("/", Action::Forward(targets)) };
        mesh_route("user", vec![l4])
    };
    all.push(split(vec![to("user", "v1", 3), to("user", "v2", 1)]));
    let bed = Bed::sidecar(all).await;
    let address = bed.door(|d| matches!(d, Door::Upstream { .. }));
    let tally = async |n: usize| {
        let mut seen = [0usize; 2];
        for _ in 0..n {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let first = stream.read_u8().await.unwrap();
            seen[usize::from(first - b'1')] += 1;
        }
        seen
    };
    let seen = tally(400).await;
    // Seven standard errors of a binomial(400, 1/4) are 61.
    assert!((39..=161).contains(&seen[1]), "{seen:?}");
    bed.apply(2, vec![split(vec![to("user", "v2", 1)])]).await;
    assert_eq!(tally(20).await, [0, 20]);
    // A rule to nothing closes the connection; it does not fall back to the whole service.
    let nowhere = Target::Fail { status: 500, reason: "there is no such service".into() };
    let failing = WeightedBackend { target: nowhere, weight: 1, filters: Vec::new() };
    bed.apply(3, vec![split(vec![failing])]).await;
    assert!(is_refused(address).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_for_bytes_passes_them_on_by_its_route() {
    let greeting = Server::raw(|_, mut stream| async move {
        stream.write_all(b"220 ready\r\n").await.unwrap();
        let mut said = Vec::new();
        stream.read_to_end(&mut said).await.unwrap();
        stream.write_all(&said).await.unwrap();
    })
    .await;
    let (name, mut listener) = gateway(None);
    if let Resource::Listener(Listener { kind: ListenerKind::Gateway(g), .. }) = &mut listener {
        g.sections[0].protocol = Protocol::Tcp;
    }
    let all_bytes =
        Rule { matches: Vec::new(), ..rule("/", Action::Forward(vec![to("mail", "", 1)])) };
    let route = gateway_route("mail", &[], vec![all_bytes]);
    let all = http_service("mail", &[greeting.address]);
    let bed = Bed::gateway([vec![(name, listener), route], all].concat()).await;
    let address = bed.door(|d| matches!(d, Door::Gateway(_)));
    let mut stream = TcpStream::connect(address).await.unwrap();
    assert_eq!(line(&mut stream, "\n").await, "220 ready\r\n");
    stream.write_all(b"GET / whatever it means\r\n").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(line(&mut stream, "means\r\n").await, "GET / whatever it means\r\n");
}
