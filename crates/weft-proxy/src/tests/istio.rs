// SPDX-License-Identifier: Apache-2.0
//! What VirtualServices say below HTTP: by the server name, by addresses, beside HTTP on a port
//! that declares nothing; and the longest duration of a stream.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_model::*;

use super::bed::*;
use crate::table::Door;

/// Says who it is, to whoever says something.
async fn named(name: &'static str) -> Server {
    Server::raw(move |_, mut stream| async move {
        let mut heard = [0u8; 2048];
        if stream.read(&mut heard).await.is_ok_and(|n| n > 0) {
            let _ = stream.write_all(name.as_bytes()).await;
        }
    })
    .await
}

fn of(name: &str, protocol: Protocol, at: SocketAddr) -> Vec<Named> {
    service(name, protocol, BackendPolicy::default(), vec![endpoint(name, at)])
}

/// Rules for a service's port 80, as a VirtualService gives them.
fn rules(name: &str, rules: Vec<(Option<Match>, &str)>) -> Named {
    let rules = rules.into_iter().map(|(matched, target)| {
        let all = rule("/", Action::Forward(vec![to(target, "", 1)]));
        Rule { matches: matched.into_iter().collect(), ..all }
    });
    mesh_route(name, rules.collect())
}

fn bytes_from(sources: &[(&str, u8)]) -> Option<Match> {
    let range =
        |(base, bits): &(&str, u8)| AddressRange { base: base.parse().unwrap(), bits: *bits };
    let sources = sources.iter().map(range).collect();
    let ends = ConnectionMatch { sources, destinations: Vec::new() };
    Some(Match { connection: Some(Box::new(ends)), ..Match::default() })
}

async fn says(address: SocketAddr, words: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(words).await.unwrap();
    let mut heard = Vec::new();
    // It may end with a reset.
    let reading = stream.read_to_end(&mut heard);
    let _ = tokio::time::timeout(Duration::from_secs(60), reading).await.expect("it ends");
    String::from_utf8_lossy(&heard).into_owned()
}

fn door_of(bed: &Bed, name: &str) -> SocketAddr {
    bed.door(|d| matches!(d, Door::Upstream { host, .. } if host.starts_with(&format!("{name}."))))
}

/// A ClientHello for a name, as a client writes it.
fn hello(name: &'static str) -> Vec<u8> {
    let config = rustls::ClientConfig::builder_with_provider(weft_identity::provider::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = name.try_into().unwrap();
    let mut client = rustls::ClientConnection::new(std::sync::Arc::new(config), name).unwrap();
    let mut out = Vec::new();
    client.write_tls(&mut out).unwrap();
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_of_the_mesh_goes_by_the_server_name_that_its_client_asks_for() {
    let (own, other) = (named("own").await, named("other").await);
    let by_name = |name: &str| {
        let authority = Some(StringMatch::Exact(name.into()));
        Some(Match { authority, ..Match::default() })
    };
    let all = [
        of("user", Protocol::Tls, own.address),
        of("item", Protocol::Tls, other.address),
        vec![rules("user", vec![(by_name("b.example"), "item")])],
    ];
    let bed = Bed::sidecar(all.concat()).await;
    let at = door_of(&bed, "user");
    assert_eq!(says(at, &hello("b.example")).await, "other");
    assert_eq!(says(at, &hello("a.example")).await, "own");
    // What is no TLS asks for no name.
    assert_eq!(says(at, b"GET / HTTP/1.1\r\nHost: b.example\r\n\r\n").await, "own");
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_for_bytes_take_no_requests_and_no_other_clients() {
    let (own, other) =
        (named("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nown").await, named("other").await);
    for (source, bytes) in
        [(&[][..], "other"), (&[("127.0.0.0", 8)], "other"), (&[("10.9.9.0", 24)], "own")]
    {
        let all = [
            of("user", Protocol::Detect, own.address),
            of("item", Protocol::Tcp, other.address),
            vec![rules("user", vec![(bytes_from(source), "item")])],
        ];
        let bed = Bed::sidecar(all.concat()).await;
        let at = door_of(&bed, "user");
        let heard = says(at, b"\x00\x01 bytes\n").await;
        assert!(heard.ends_with(bytes), "{source:?}: {heard}");
        let got = send(at, Request::get("http://user/").body(Full::default()).unwrap()).await;
        assert_eq!((got.status, &*got.body), (200, "own"), "{source:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_it_has_lasted_for_as_long_as_it_may() {
    // Its answer goes on for as long as somebody reads it.
    let endless = Server::raw(|_, mut stream| async move {
        let mut heard = [0u8; 2048];
        let _ = stream.read(&mut heard).await;
        let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        let mut sent = stream.write_all(head).await;
        while sent.is_ok() {
            sent = stream.write_all(b"1\r\nx\r\n").await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let silent = Server::http(|_, _: Request<hyper::body::Incoming>| async move {
        std::future::pending::<Response<Full<Bytes>>>().await
    })
    .await;
    let limited = |name: &str| {
        let all = rule("/", Action::Forward(vec![to(name, "", 1)]));
        // Longer than a busy machine takes for the head of an answer.
        let timeouts = Timeouts { stream_ms: Some(3_000), idle_ms: Some(0), ..Timeouts::default() };
        mesh_route(name, vec![Rule { matches: Vec::new(), timeouts, ..all }])
    };
    let all = [
        http_service("user", &[endless.address]),
        http_service("item", &[silent.address]),
        vec![limited("user"), limited("item")],
    ];
    let bed = Bed::sidecar(all.concat()).await;
    // The answer was under way: it breaks off.
    let heard = says(door_of(&bed, "user"), b"GET / HTTP/1.1\r\nHost: user\r\n\r\n").await;
    assert!(heard.starts_with("HTTP/1.1 200") && !heard.ends_with("0\r\n\r\n"), "{heard}");
    // There was none yet: it is answered.
    let got =
        send(door_of(&bed, "item"), Request::get("http://item/").body(Full::default()).unwrap())
            .await;
    assert_eq!(got.status, 504, "{}", got.body);
}
