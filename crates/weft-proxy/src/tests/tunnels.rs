// SPDX-License-Identifier: Apache-2.0
//! CONNECT is granted once there is somebody to speak to, and what a rule says of silence holds for
//! what has left HTTP too.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use weft_model::*;

use super::bed::*;
use super::mtls::{Ca, meshed, peer, server};

const PACE: Duration = Duration::from_millis(25);

async fn echo() -> Server {
    Server::raw(|_, mut stream| async move {
        let (mut r, mut w) = stream.split();
        let _ = tokio::io::copy(&mut r, &mut w).await;
    })
    .await
}

/// Sends a head and reads the answer's, and its body when it says how long that is.
async fn asked(at: std::net::SocketAddr, ask: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |n| n.parse().unwrap())];
    stream.read_exact(&mut body).await.unwrap();
    (stream, head + std::str::from_utf8(&body).unwrap())
}

fn connect(target: &str) -> String {
    format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")
}

async fn is_echoed(stream: &mut TcpStream) -> bool {
    let mut back = [0u8; 4];
    stream.write_all(b"ping").await.is_ok()
        && stream.read_exact(&mut back).await.is_ok()
        && &back == b"ping"
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_to_an_app_that_is_down_is_refused_with_the_reason() {
    let (ca, down) = (Ca::new(), nobody().await);
    let server = server(&ca, down, Protocol::Tcp).await;
    let only = vec![meshed(down, "user", Transport::MeshH1)];
    let client = peer(&ca, &server, Protocol::Tcp, only).await;
    let (_, answer) = asked(client.outbound(), &connect("user:80")).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("x-weft-flags: UF\r\n"), "{answer}");
    // What the app's own sidecar says of it, not only that it said no.
    for part in ["refused the tunnel with status 503: ", &format!("connecting to {down} failed")] {
        assert!(answer.contains(part), "{part}: {answer}");
    }
    // The same through a port of the service: the connection ends, and nothing was promised.
    let door = client.door(|d| matches!(d, crate::table::Door::Upstream { .. }));
    let mut stream = TcpStream::connect(door).await.unwrap();
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap_or(0), 0);
    let metrics = server.metrics().await;
    assert!(metrics.contains("response_flags=\"UF\""), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_that_one_instance_refuses_leads_to_another() {
    let (ca, down, app) = (Ca::new(), nobody().await, echo().await);
    let server = server(&ca, app.address, Protocol::Tcp).await;
    server.apply(2, vec![super::mtls::inbound(down, Protocol::Tcp)]).await;
    let both = [down, app.address].map(|at| meshed(at, "user", Transport::MeshH1));
    let client = peer(&ca, &server, Protocol::Tcp, both.to_vec()).await;
    for _ in 0..4 {
        let (mut stream, answer) = asked(client.outbound(), &connect("user:80")).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(is_echoed(&mut stream).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_rule_says_of_silence_holds_for_tunnels_and_upgrades() {
    let app = Server::raw(|_, mut stream| async move {
        let mut seen = Vec::new();
        while !seen.ends_with(b"ping") {
            let Ok(byte) = stream.read_u8().await else { return };
            seen.push(byte);
            if seen.ends_with(b"\r\n\r\n") {
                let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                              upgrade: other\r\n\r\n";
                stream.write_all(switch.as_bytes()).await.unwrap();
            }
        }
        stream.write_all(b"ping").await.unwrap();
        let _ = stream.read_u8().await;
    })
    .await;
    let idle = Duration::from_millis(300);
    let idle_ms = u64::try_from(idle.as_millis()).ok();
    let timeouts = Timeouts { idle_ms, ..Timeouts::default() };
    let method = Some(StringMatch::Exact("CONNECT".into()));
    let tunnels = Rule {
        matches: vec![Match { method, ..Match::default() }],
        timeouts: timeouts.clone(),
        ..rule("/", Action::Forward(vec![to("user", "", 1)]))
    };
    let others = Rule { timeouts, ..rule("/", Action::Forward(vec![to("user", "", 1)])) };
    let mut resources = http_service("user", &[app.address]);
    resources.push(gateway(None));
    resources.push(gateway_route("r", &[], vec![tunnels, others]));
    let bed = Bed::gateway(resources).await;
    let upgrade = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n";
    for (ask, granted) in [(connect("a:80"), " 200 "), (upgrade.to_owned(), " 101 ")] {
        let (mut stream, answer) = asked(bed.listener(), &ask).await;
        assert!(answer.contains(granted), "{answer}");
        assert!(is_echoed(&mut stream).await, "{ask}");
        let began = Instant::now();
        let ended = tokio::time::timeout(Duration::from_secs(10), stream.read_u8()).await;
        assert!(ended.is_ok_and(|read| read.is_err()), "{ask} was never ended");
        assert!(began.elapsed() + PACE >= idle, "{ask}: {:?}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_may_be_silent_while_its_answer_flows() {
    let silence = Duration::from_millis(300);
    // Says something all the time, and in the end what it was told.
    let app = Server::raw(|_, mut stream| async move {
        let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"0\r\n\r\n") {
            match tokio::time::timeout(PACE, stream.read_u8()).await {
                Ok(Ok(byte)) => seen.push(byte),
                Ok(Err(_)) => return,
                Err(_) => drop(stream.write_all(b"1\r\n.\r\n").await),
            }
        }
        let text = String::from_utf8(seen).unwrap().to_lowercase();
        let told = format!("{}", text.contains("first") && text.contains("second"));
        let last = format!("{:x}\r\n{told}\r\n0\r\n\r\n", told.len());
        stream.write_all(last.as_bytes()).await.unwrap();
    })
    .await;
    let mut config = config("gateway~shop~web");
    config.limits.stream_idle_timeout = silence;
    let bed = Bed::start(config, None).await;
    let mut resources = http_service("user", &[app.address]);
    resources.push(gateway(None));
    let all = rule("/", Action::Forward(vec![to("user", "", 1)]));
    resources.push(gateway_route("r", &[], vec![all]));
    bed.apply(1, resources).await;
    let post = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n";
    let (mut stream, answer) = asked(bed.listener(), post).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let began = Instant::now();
    let mut seen = Vec::new();
    while began.elapsed() < 4 * silence {
        seen.push(stream.read_u8().await.unwrap());
    }
    stream.write_all(b"6\r\nsecond\r\n0\r\n\r\n").await.unwrap();
    while !seen.ends_with(b"0\r\n\r\n") {
        seen.push(stream.read_u8().await.unwrap());
    }
    let text = String::from_utf8(seen).unwrap();
    assert!(text.ends_with("4\r\ntrue\r\n0\r\n\r\n"), "{text}");
}
