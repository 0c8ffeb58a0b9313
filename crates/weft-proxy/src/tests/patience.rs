// SPDX-License-Identifier: Apache-2.0
//! How long is waited for an upstream: not beyond a limit that was set, and without one for as
//! long as its client still sends. Upgrades to ports of HTTP/2 are no exception.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use weft_base::task::TaskGroup;
use weft_model::*;

use super::bed::*;

/// Longer than a busy machine holds up a test between two of its steps.
const IDLE: Duration = Duration::from_secs(4);
/// Many times in that.
const PACE: Duration = Duration::from_millis(50);
/// Longer than any test takes.
const LONG_MS: u64 = 60_000;

async fn bed(at: SocketAddr, protocol: Protocol, policy: BackendPolicy, timeouts: Timeouts) -> Bed {
    let mut resources = service("user", protocol, policy, vec![endpoint("a", at)]);
    resources.push(gateway(None));
    let all = Rule { timeouts, ..rule("/", Action::Forward(vec![to("user", "", 1)])) };
    resources.push(gateway_route("r", &[], vec![all]));
    Bed::gateway(resources).await
}

async fn idle_bed(at: SocketAddr, protocol: Protocol) -> Bed {
    let idle_ms = u64::try_from(IDLE.as_millis()).ok();
    let timeouts = Timeouts { idle_ms, ..Timeouts::default() };
    bed(at, protocol, BackendPolicy::default(), timeouts).await
}

async fn head(stream: &mut TcpStream) -> String {
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        seen.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(seen).unwrap()
}

/// Begins an upload and goes on with it for twice what silence is allowed; with when its last byte
/// was about to be sent.
async fn uploaded(bed: &Bed) -> (TcpStream, String, Instant) {
    let mut stream = TcpStream::connect(bed.listener()).await.unwrap();
    let asks = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(asks).await.unwrap();
    let (began, mut sent) = (Instant::now(), String::new());
    let mut last = began;
    while began.elapsed() < 2 * IDLE {
        last = Instant::now();
        stream.write_all(b"1\r\nx\r\n").await.unwrap();
        sent.push('x');
        tokio::time::sleep(PACE).await;
    }
    (stream, sent, last)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_may_take_as_long_as_it_moves() {
    let of = async |protocol| {
        let server = Server::http(|_, request| async move {
            let whole = request.into_body().collect().await.unwrap().to_bytes();
            Response::new(Full::new(whole))
        })
        .await;
        let bed = idle_bed(server.address, protocol).await;
        let moves = async {
            let (mut stream, sent, _) = uploaded(&bed).await;
            stream.write_all(b"0\r\n\r\n").await.unwrap();
            let answer = head(&mut stream).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{protocol:?}: {answer}");
            let mut body = vec![0; sent.len()];
            stream.read_exact(&mut body).await.unwrap();
            assert_eq!(body, sent.as_bytes());
        };
        // One that moves no more is given up.
        let stops = async {
            let (mut stream, _, last) = uploaded(&bed).await;
            let answer = head(&mut stream).await;
            assert!(answer.starts_with("HTTP/1.1 504 "), "{protocol:?}: {answer}");
            assert!(last.elapsed() >= IDLE, "{:?}", last.elapsed());
        };
        tokio::join!(moves, stops);
    };
    tokio::join!(of(Protocol::Http1), of(Protocol::Http2));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_may_be_quiet_while_its_client_sends() {
    // Answers at once, and says nothing more before the request's end.
    let server = Server::raw(|_, mut stream| async move {
        let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nup\r\n";
        head(&mut stream).await;
        stream.write_all(answer).await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"0\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else { return };
            seen.push(byte);
        }
        stream.write_all(b"4\r\ndone\r\n0\r\n\r\n").await.unwrap();
    })
    .await;
    let bed = idle_bed(server.address, Protocol::Http1).await;
    let (mut stream, ..) = uploaded(&bed).await;
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    assert!(head(&mut stream).await.starts_with("HTTP/1.1 200 "));
    let mut body = [0; 21];
    stream.read_exact(&mut body).await.unwrap();
    assert_eq!(&body, b"2\r\nup\r\n4\r\ndone\r\n0\r\n\r\n");
}

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

async fn upgrade(bed: &Bed, to: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(bed.listener()).await.unwrap();
    stream.write_all(format!("{UPGRADE}Upgrade: {to}\r\n\r\n").as_bytes()).await.unwrap();
    let head = head(&mut stream).await;
    (stream, head)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_waits_no_longer_than_other_requests() {
    // Takes connections and says nothing: whether it takes protocols is never known.
    let server = Server::raw(|_, mut stream| async move {
        let mut buffer = [0u8; 1024];
        while stream.read(&mut buffer).await.unwrap_or(0) > 0 {}
    })
    .await;
    let policy = BackendPolicy { connect_timeout_ms: LONG_MS, ..BackendPolicy::default() };
    let timeouts = Timeouts { request_ms: Some(100), ..Timeouts::default() };
    let bed = bed(server.address, Protocol::Http2, policy, timeouts).await;
    let (_, answer) = upgrade(&bed, "websocket").await;
    assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
    assert!(answer.contains("x-weft-flags: UT\r\n"), "{answer}");
}

/// Of HTTP/2 it takes no protocols, of HTTP/1.1 it takes all.
async fn half_modern() -> Server {
    Server::raw(|_, mut stream| async move {
        let head = head(&mut stream).await;
        let answer: &[u8] = match head.starts_with("PRI ") {
            true => b"\0\0\0\x04\0\0\0\0\0",
            false => b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n",
        };
        stream.write_all(answer).await.unwrap();
        let mut buffer = [0u8; 1024];
        while stream.read(&mut buffer).await.unwrap_or(0) > 0 {}
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn upgrades_to_ports_of_http2_keep_to_the_limit_of_connections() {
    let server = half_modern().await;
    let limits = Limits { connections_max: Some(1), pending_max: Some(0), ..Limits::default() };
    let policy = BackendPolicy { limits, ..BackendPolicy::default() };
    let bed = bed(server.address, Protocol::Http2, policy, Timeouts::default()).await;
    let (_open, answer) = upgrade(&bed, "websocket").await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    let opened = server.hits();
    let (_, answer) = upgrade(&bed, "websocket").await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("UO"), "{answer}");
    assert_eq!(server.hits(), opened);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_protocols_http2_is_asked_for_the_websocket() {
    let server = Server::raw(|_, stream| async move {
        let mut builder = h2::server::Builder::new();
        builder.enable_connect_protocol();
        let mut connection = builder.handshake::<_, Bytes>(stream).await.unwrap();
        let tasks = TaskGroup::new();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            assert_eq!(request.method(), "CONNECT");
            let protocol = request.extensions().get::<h2::ext::Protocol>().unwrap();
            assert_eq!(protocol.as_str(), "websocket");
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            stream.send_data(Bytes::from_static(b"hello"), true).unwrap();
            tasks.spawn("request", async move { drop(request) });
        }
    })
    .await;
    let bed =
        bed(server.address, Protocol::Http2, BackendPolicy::default(), Timeouts::default()).await;
    let (mut stream, answer) = upgrade(&bed, "foo, WebSocket").await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    assert!(answer.contains("upgrade: websocket\r\n"), "{answer}");
    let mut said = [0; 5];
    stream.read_exact(&mut said).await.unwrap();
    assert_eq!(&said, b"hello");
}

/// A body that is not there in its time is not waited for; what is whole has no such time.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_comes_whole_in_its_time() {
    let server = Server::http(|_, request| async move {
        if request.into_body().collect().await.is_ok() {
            tokio::time::sleep(2 * IDLE).await;
        }
        Response::new(Full::new(Bytes::new()))
    })
    .await;
    let receive_ms = u64::try_from(IDLE.as_millis()).ok();
    let of = async |protocol| {
        let timeouts = Timeouts { receive_ms, ..Timeouts::default() };
        let bed = &bed(server.address, protocol, BackendPolicy::default(), timeouts).await;
        let asks = [
            ("Content-Length: 2\r\n\r\nx", 408),
            // The answer takes longer than the request may.
            ("Content-Length: 1\r\n\r\nx", 200),
            ("\r\n", 200),
        ];
        let each = asks.map(|(more, status)| async move {
            let mut stream = TcpStream::connect(bed.listener()).await.unwrap();
            let asks = format!("POST / HTTP/1.1\r\nHost: a\r\n{more}");
            stream.write_all(asks.as_bytes()).await.unwrap();
            let answer = head(&mut stream).await;
            let want = format!("HTTP/1.1 {status} ");
            assert!(answer.starts_with(&want), "{protocol:?} {more:?}: {answer}");
            // What would follow is no request.
            let closes = answer.to_lowercase().contains("connection: close");
            assert_eq!(closes, status == 408, "{answer}");
        });
        futures_util::future::join_all(each).await;
    };
    tokio::join!(of(Protocol::Http1), of(Protocol::Http2));
}
