// SPDX-License-Identifier: Apache-2.0
//! What a backend's policy says of connections: how much each serves, for how long, what it
//! speaks, and that a peer which answers no PING is let go.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Barrier;
use tokio::time::Instant;
use weft_model::*;

use super::bed::*;

const BOTH: [Protocol; 2] = [Protocol::Http1, Protocol::Http2];
/// Longer than anything takes that is to happen.
const PATIENCE: Duration = Duration::from_secs(60);

fn policy(connections: Connections) -> BackendPolicy {
    BackendPolicy { connections: Some(Arc::new(connections)), ..BackendPolicy::default() }
}

/// A gateway that sends everything to one endpoint.
async fn bed(at: SocketAddr, protocol: Protocol, policy: BackendPolicy) -> Bed {
    let mut resources = service("user", protocol, policy, vec![endpoint("a", at)]);
    resources.push(gateway(None));
    resources.push(gateway_route(
        "r",
        &[],
        vec![rule("/", Action::Forward(vec![to("user", "", 1)]))],
    ));
    Bed::gateway(resources).await
}

/// A server whose hits are connections; it answers as its handler does.
async fn counted<F, Fut>(handler: F) -> Server
where
    F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    Server::raw(move |_, stream| {
        let handler = handler.clone();
        async move {
            let service = hyper::service::service_fn(move |request| {
                let answer = handler(request);
                async move { Ok::<_, std::convert::Infallible>(answer.await) }
            });
            let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        }
    })
    .await
}

/// One that says which version it was asked in.
async fn plain() -> Server {
    counted(|request| async move { text(200, format!("{:?}", request.version())) }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_serves_as_many_requests_as_it_may() {
    for protocol in BOTH {
        for (requests_max, connections) in [(None, 1), (Some(0), 1), (Some(3), 3), (Some(1), 7)] {
            let server = plain().await;
            let terms = Connections { requests_max, ..Connections::default() };
            let bed = bed(server.address, protocol, policy(terms)).await;
            let mut client = client(bed.listener()).await;
            for _ in 0..7 {
                assert_eq!(client.send(get("/", "a")).await.status, 200);
            }
            assert_eq!(server.hits(), connections, "{protocol:?} {requests_max:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_connection_takes_no_more_requests_and_finishes_those_it_has() {
    for protocol in BOTH {
        let release = Arc::new(tokio::sync::Notify::new());
        let held = release.clone();
        let server = counted(move |request| {
            let held = held.clone();
            async move {
                if request.uri().path() == "/slow" {
                    held.notified().await;
                }
                text(200, "")
            }
        })
        .await;
        let terms = Connections { age_ms_max: Some(100), ..Connections::default() };
        let bed = bed(server.address, protocol, policy(terms)).await;
        let mut quick = client(bed.listener()).await;
        let mut slow = client(bed.listener()).await;
        let slow = slow.send(get("/slow", "a"));
        let asking = async {
            let began = Instant::now();
            // Whoever comes later than its age finds another one, again and again.
            while server.hits() < 4 {
                assert_eq!(quick.send(get("/", "a")).await.status, 200);
                assert!(began.elapsed() < PATIENCE, "{} connections", server.hits());
            }
            assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
            release.notify_one();
        };
        let (slow, ()) = tokio::join!(slow, asking);
        assert_eq!(slow.status, 200, "{protocol:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_has_as_many_streams_as_it_may() {
    for (streams_max, connections) in [(None, 1), (Some(0), 1), (Some(2), 3), (Some(1_000), 1)] {
        // Nobody is answered before everybody has asked.
        let all = Arc::new(Barrier::new(6));
        let server = counted(move |_| {
            let all = all.clone();
            async move {
                all.wait().await;
                text(200, "")
            }
        })
        .await;
        let terms = Connections { streams_max, ..Connections::default() };
        let bed = bed(server.address, Protocol::Http2, policy(terms)).await;
        let asking = (0..6).map(|_| send(bed.listener(), get("/", "a")));
        let answers = futures_util::future::join_all(asking).await;
        assert!(answers.iter().all(|got| got.status == 200), "{answers:?}");
        assert_eq!(server.hits(), connections, "{streams_max:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_spoken_is_what_the_policy_says() {
    for (declared, speaks, spoken) in [
        (Protocol::Http1, None, "HTTP/1.1"),
        (Protocol::Http1, Some(Speaks::Http2), "HTTP/2.0"),
        (Protocol::Detect, Some(Speaks::Http2), "HTTP/2.0"),
        (Protocol::Http2, None, "HTTP/2.0"),
        (Protocol::Http2, Some(Speaks::LikeClient), "HTTP/1.1"),
    ] {
        let server = plain().await;
        let terms = Connections { speaks, ..Connections::default() };
        let bed = bed(server.address, declared, policy(terms)).await;
        let got = send(bed.listener(), get("/", "a")).await;
        assert_eq!((got.status, &*got.body), (200, spoken), "{declared:?} {speaks:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_answers_no_ping_is_let_go() {
    // It speaks HTTP/2 as far as nobody notices that it does not.
    let server = Server::raw(|_, mut stream| async move {
        let _ = stream.write_all(b"\0\0\0\x04\0\0\0\0\0").await;
        let mut bytes = [0; 1024];
        while stream.read(&mut bytes).await.is_ok_and(|n| n > 0) {}
    })
    .await;
    let pings = Some(Pings { interval_ms: 50, timeout_ms: 50 });
    let terms = Connections { pings, ..Connections::default() };
    let bed = bed(server.address, Protocol::Http2, policy(terms)).await;
    let asking = send(bed.listener(), get("/", "a"));
    let got = tokio::time::timeout(PATIENCE, asking).await.expect("it is not waited for");
    assert!([502, 503].contains(&got.status), "{got:?}");
}

// === clients ===

/// A gateway whose listener says something of its clients.
async fn limited(limits: ClientLimits, at: SocketAddr) -> Bed {
    let (name, mut listener) = gateway(None);
    if let Resource::Listener(Listener { kind: ListenerKind::Gateway(g), .. }) = &mut listener {
        g.limits = Some(Arc::new(limits));
    }
    let mut resources = http_service("user", &[at]);
    resources.push((name, listener));
    let all = rule("/", Action::Forward(vec![to("user", "", 1)]));
    resources.push(gateway_route("r", &[], vec![all]));
    Bed::gateway(resources).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_connection_ends_after_its_last_request() {
    let server = plain().await;
    let limits = ClientLimits { requests_max: Some(2), ..ClientLimits::default() };
    let bed = limited(limits, server.address).await;
    let mut client = client(bed.listener()).await;
    assert_eq!(client.send(get("/", "a")).await.header("connection"), "");
    assert_eq!(client.send(get("/", "a")).await.header("connection"), "close");
    assert!(client.try_send(get("/", "a")).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_connection_of_a_client_is_closed_when_nothing_is_asked() {
    let server = plain().await;
    for limits in [
        // Longer than a busy machine takes for the answer, which is to come before.
        ClientLimits { age_ms_max: Some(3_000), ..ClientLimits::default() },
        ClientLimits { idle_ms: Some(3_000), ..ClientLimits::default() },
    ] {
        let bed = limited(limits.clone(), server.address).await;
        let began = Instant::now();
        let mut stream = tokio::net::TcpStream::connect(bed.listener()).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let mut all = Vec::new();
        let reading = stream.read_to_end(&mut all);
        tokio::time::timeout(PATIENCE, reading).await.expect("it is closed").unwrap();
        assert!(all.starts_with(b"HTTP/1.1 200 "), "{limits:?}");
        assert!(began.elapsed() >= Duration::from_millis(3_000), "{:?}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_are_as_large_as_the_listener_lets_them_be() {
    let server = plain().await;
    let limits =
        ClientLimits { headers_max: Some(3), head_bytes_max: Some(100), ..ClientLimits::default() };
    let bed = limited(limits, server.address).await;
    let with = |more: &[(&'static str, &str)]| {
        let mut request = get("/", "a");
        for (name, value) in more {
            request.headers_mut().append(*name, value.parse().unwrap());
        }
        request
    };
    let long = "x".repeat(100);
    for (more, status) in [
        (&[("x-a", "1"), ("x-b", "2")][..], 200),
        (&[("x-a", "1"), ("x-b", "2"), ("x-c", "3")], 431),
        (&[("x-a", &*long)], 431),
    ] {
        assert_eq!(send(bed.listener(), with(more)).await.status, status, "{more:?}");
    }
    assert_eq!(server.hits(), 1);
}
