// SPDX-License-Identifier: Apache-2.0
//! Connections that have left HTTP: they stay counted at both ends, silence ends them, and an
//! upstream switches only to what was asked for.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_model::*;

use super::bed::*;
use crate::config::{LogFormat, LogWhat, ProxyConfig};
use crate::table::Door;

const ASK: &str = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// Grants `/ws` with the headers given and echoes from then on; answers anything else with the
/// head that it got.
async fn granting(headers: &'static str) -> Server {
    Server::raw(move |_, mut stream| async move {
        loop {
            let Ok(head) = head(&mut stream).await else { return };
            if head.starts_with("GET /ws ") {
                let switch = format!("HTTP/1.1 101 Switching Protocols\r\n{headers}\r\n");
                stream.write_all(switch.as_bytes()).await.unwrap();
                let (mut r, mut w) = stream.split();
                let _ = tokio::io::copy(&mut r, &mut w).await;
                return;
            }
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{head}", head.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await
}

const WEBSOCKET: &str = "connection: upgrade\r\nupgrade: WebSocket\r\n";

async fn head(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        seen.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8(seen).unwrap())
}

async fn bed(all: Vec<Named>, change: impl FnOnce(&mut ProxyConfig)) -> Bed {
    let mut config = config("sidecar~shop~client-1");
    change(&mut config);
    let bed = Bed::start(config, None).await;
    bed.apply(1, all).await;
    bed
}

async fn asked(bed: &Bed, ask: &str) -> (TcpStream, String) {
    let door = bed.door(|d| matches!(d, Door::Upstream { .. }));
    let mut stream = TcpStream::connect(door).await.unwrap();
    // A connection that is refused may be closed already.
    let _ = stream.write_all(ask.as_bytes()).await;
    let head = head(&mut stream).await.unwrap_or_default();
    (stream, head)
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_its_rule_lists_takes_a_request_out_of_http() {
    let app = granting(WEBSOCKET).await;
    for (listed, answer) in [
        (None, "HTTP/1.1 101 "),
        (Some(vec!["foo".into(), "websocket".into()]), "HTTP/1.1 101 "),
        (Some(vec!["foo".into()]), "HTTP/1.1 403 "),
        (Some(vec![]), "HTTP/1.1 403 "),
    ] {
        let mut all = http_service("user", &[app.address]);
        all.push(gateway(None));
        let mut every = rule("/", Action::Forward(vec![to("user", "", 1)]));
        every.filters.extend(listed.clone().map(Filter::Upgrades));
        all.push(gateway_route("r", &[], vec![every]));
        let bed = Bed::gateway(all).await;
        let before = app.hits();
        let mut stream = TcpStream::connect(bed.listener()).await.unwrap();
        stream.write_all(ASK.as_bytes()).await.unwrap();
        let head = head(&mut stream).await.unwrap();
        assert!(head.starts_with(answer), "{listed:?}: {head}");
        assert_eq!(app.hits() - before, usize::from(answer.contains("101")), "{listed:?}");
    }
}

async fn echoes(stream: &mut TcpStream) -> bool {
    let mut back = [0u8; 4];
    let said = stream.write_all(b"ping").await.is_ok();
    said && stream.read_exact(&mut back).await.is_ok() && &back == b"ping"
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_websockets_count_against_the_limit_of_clients() {
    let app = granting(WEBSOCKET).await;
    let bed =
        bed(http_service("user", &[app.address]), |config| config.limits.connections_max = 2).await;
    let (mut first, said) = asked(&bed, ASK).await;
    assert!(said.starts_with("HTTP/1.1 101 "), "{said}");
    let (second, said) = asked(&bed, ASK).await;
    assert!(said.starts_with("HTTP/1.1 101 "), "{said}");
    assert!(asked(&bed, ASK).await.1.is_empty(), "a third connection was served");
    assert!(echoes(&mut first).await);
    drop(second);
    wait_until("room for another one", || async {
        asked(&bed, ASK).await.1.starts_with("HTTP/1.1 101 ")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_inside_a_tunnel_count_too() {
    let app = granting(WEBSOCKET).await;
    let bed =
        bed(http_service("user", &[app.address]), |config| config.limits.connections_max = 1).await;
    let open = async || {
        let mut stream = TcpStream::connect(bed.outbound()).await.unwrap();
        let connect = b"CONNECT user:80 HTTP/1.1\r\nHost: user:80\r\n\r\n";
        let _ = stream.write_all(connect).await;
        let granted = head(&mut stream).await.is_ok_and(|h| h.starts_with("HTTP/1.1 200 "));
        (granted, stream)
    };
    let (granted, mut stream) = open().await;
    assert!(granted);
    stream.write_all(ASK.as_bytes()).await.unwrap();
    assert!(head(&mut stream).await.unwrap().starts_with("HTTP/1.1 101 "));
    assert!(!open().await.0, "a second connection was served");
    assert!(echoes(&mut stream).await);
    drop(stream);
    wait_until("room for another one", || async { open().await.0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_count_against_the_limits_of_their_backend() {
    let app = granting(WEBSOCKET).await;
    for limits in [
        Limits { requests_max: Some(1), ..Limits::default() },
        Limits { connections_max: Some(1), pending_max: Some(0), ..Limits::default() },
    ] {
        let policy = BackendPolicy { limits, ..BackendPolicy::default() };
        let endpoints = vec![endpoint("a", app.address)];
        let bed = bed(service("user", Protocol::Http1, policy, endpoints), |_| ()).await;
        let (mut open, said) = asked(&bed, ASK).await;
        assert!(said.starts_with("HTTP/1.1 101 "), "{said}");
        let got = bed.get("http://user/").await;
        assert_eq!((got.status, got.header("x-weft-flags")), (503, "UO"), "{}", got.body);
        assert!(echoes(&mut open).await);
        drop(open);
        wait_until("room again", || async { bed.get("http://user/").await.status == 200 }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_ends_websockets_and_opaque_connections() {
    let app = granting(WEBSOCKET).await;
    // Longer than a busy machine takes between two steps of this test.
    let idle = Duration::from_secs(3);
    for protocol in [Protocol::Http1, Protocol::Tcp] {
        let endpoints = vec![endpoint("a", app.address)];
        let all = service("user", protocol, BackendPolicy::default(), endpoints);
        let bed = bed(all, |config| config.limits.tunnel_idle_timeout = idle).await;
        let (mut stream, said) = asked(&bed, ASK).await;
        assert!(said.starts_with("HTTP/1.1 101 "), "{protocol:?}: {said}");
        let began = tokio::time::Instant::now();
        assert!(echoes(&mut stream).await);
        let ended = tokio::time::timeout(Duration::from_secs(60), stream.read_u8()).await;
        assert!(ended.is_ok_and(|read| read.is_err()), "{protocol:?} was never ended");
        assert!(began.elapsed() >= idle);
    }
}

/// The line of a tunnel that the proxy's end cut off says what it moved until then.
#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_that_a_drain_cuts_off_is_recorded_with_its_bytes() {
    let server = granting(WEBSOCKET).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let bed = bed(http_service("user", &[server.address]), |config| {
        config.drain_grace = Duration::from_millis(100);
        config.access_log.what = LogWhat::Everything;
        config.access_log.format = LogFormat::Json;
        config.access_log.path = Some(path.clone());
    })
    .await;
    let (mut client, answer) = asked(&bed, ASK).await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    assert!(echoes(&mut client).await);
    bed.proxy.drain().await;
    let text = std::fs::read_to_string(&path).unwrap();
    let line = text.lines().find(|line| line.contains("/ws")).unwrap_or_else(|| panic!("{text}"));
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    assert!(line["bytes_received"].as_u64() > Some(0), "{line}");
    assert_eq!(line["bytes_received"], line["bytes_sent"], "{line}");
    assert!(line.to_string().contains("while its tunnel was open"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_over_cleartext_is_asked_for_by_no_detour() {
    let app = granting(WEBSOCKET).await;
    let bed = bed(http_service("user", &[app.address]), |_| ()).await;
    for lines in [
        "Upgrade: h2c, websocket",
        "Upgrade: websocket ,H2C",
        "Upgrade: websocket\r\nUpgrade: h2c",
        "Upgrade: h2c\r\nUpgrade: x",
    ] {
        let ask = format!(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade, http2-settings\r\n\
             HTTP2-Settings: AA\r\n{lines}\r\n\r\n"
        );
        let (mut stream, said) = asked(&bed, &ask).await;
        assert!(said.starts_with("HTTP/1.1 200 ") && !said.contains("close"), "{lines}: {said}");
        let seen = head(&mut stream).await.unwrap().to_lowercase();
        assert!(!seen.contains("upgrade") && !seen.contains("http2"), "{lines}: {seen}");
    }
    // Several others reach the upstream together.
    let ask = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x, y\r\nUpgrade: z\r\n";
    let (mut stream, _) = asked(&bed, &format!("{ask}\r\n")).await;
    let seen = head(&mut stream).await.unwrap().to_lowercase();
    assert!(seen.contains("upgrade: x, y, z\r\n"), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_switches_only_to_what_was_asked_for() {
    for (headers, why) in [
        ("connection: upgrade\r\nupgrade: h2c\r\n", "it switched to \"h2c\""),
        ("connection: upgrade\r\nupgrade: websocket, x\r\n", "it switched to \"x\""),
        ("connection: upgrade\r\n", "does not say to which"),
    ] {
        let app = granting(headers).await;
        let bed = bed(http_service("user", &[app.address]), |_| ()).await;
        let (mut stream, said) = asked(&bed, ASK).await;
        assert!(said.starts_with("HTTP/1.1 502 "), "{headers}: {said}");
        assert!(said.contains("x-weft-flags: UPE\r\n"), "{headers}: {said}");
        let mut body = String::new();
        stream.read_to_string(&mut body).await.unwrap();
        assert!(body.contains(why), "{headers}: {body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_17_what_follows_a_wrong_handshake_is_no_request() {
    let server = granting(WEBSOCKET).await;
    let bed = bed(http_service("user", &[server.address]), |_| {}).await;
    let behind = "GET /behind HTTP/1.1\r\nHost: a\r\n\r\n";
    for (good, bad) in [
        ("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 99"),
        ("Sec-WebSocket-Version: 13\r\n", ""),
        ("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Version: 8"),
        ("dGhlIHNhbXBsZSBub25jZQ==", "short"),
        ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ==, dGhlIHNhbXBsZSBub25jZQ=="),
        ("GET /ws", "POST /ws"),
    ] {
        let door = bed.door(|d| matches!(d, Door::Upstream { .. }));
        let mut stream = TcpStream::connect(door).await.unwrap();
        let ask = ASK.replacen(good, bad, 1);
        assert_ne!(ask, ASK);
        stream.write_all(format!("{ask}{behind}").as_bytes()).await.unwrap();
        let mut all = String::new();
        let reading =
            tokio::time::timeout(Duration::from_secs(60), stream.read_to_string(&mut all)).await;
        assert!(reading.is_ok(), "granted: {bad}: {all}");
        assert!(all.starts_with("HTTP/1.1 400 "), "{bad}: {all}");
        assert_eq!(all.matches("HTTP/1.1 ").count(), 1, "{bad}: {all}");
    }
    assert_eq!(server.hits(), 0);
}
