// SPDX-License-Identifier: Apache-2.0
//! What protects backends, through whole proxies: health checks, rate limits, body limits,
//! adaptive concurrency.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;
use weft_model::*;

use super::bed::*;

fn protecting(protection: Protection) -> BackendPolicy {
    let protection = Some(Box::new(protection));
    BackendPolicy { protection, outlier: Outlier::off(), ..BackendPolicy::default() }
}

fn checking(kind: CheckKind) -> Protection {
    let check = HealthCheck {
        kind,
        interval_ms: 20,
        timeout_ms: 60_000,
        healthy: 2,
        unhealthy: 2,
        jitter_basis_points: 0,
        ..HealthCheck::default()
    };
    Protection { health_check: Some(check), ..Protection::default() }
}

/// Two instances of `user` under a policy; `a` may be told to be ill.
async fn two(protocol: Protocol, kind: CheckKind, addresses: [std::net::SocketAddr; 2]) -> Bed {
    let each = ["a", "b"].into_iter().zip(addresses).map(|(id, at)| endpoint(id, at)).collect();
    Bed::sidecar(service("user", protocol, protecting(checking(kind)), each)).await
}

async fn moody(name: &'static str) -> (Server, Arc<AtomicBool>) {
    let ill = Arc::new(AtomicBool::new(false));
    let mood = ill.clone();
    let server = Server::http(move |_, request: Request<hyper::body::Incoming>| {
        let ill = mood.load(Ordering::Relaxed);
        async move {
            match request.uri().path() {
                "/health" if ill => text(503, "ill"),
                "/health" => text(204, ""),
                _ => text(200, name),
            }
        }
    })
    .await;
    (server, ill)
}

/// Who answers ten requests.
async fn answered(bed: &Bed) -> String {
    let mut out = Vec::new();
    for _ in 0..10 {
        let got = bed.get("http://user/").await;
        out.push(if got.status == 200 { got.body } else { got.status.to_string() });
    }
    out.sort();
    out.dedup();
    out.join(" ")
}

async fn until(bed: &Bed, who: &str) {
    wait_until(who, || async { answered(bed).await == who }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_says_it_is_ill_gets_no_requests_until_it_is_well() {
    let ((a, ill), (b, ill_too)) = (moody("a").await, moody("b").await);
    let statuses = vec![(200, 299)];
    let kind =
        CheckKind::Http(HttpCheck { path: "/health".into(), statuses, ..HttpCheck::default() });
    let bed = two(Protocol::Http1, kind, [a.address, b.address]).await;
    until(&bed, "a b").await;
    ill.store(true, Ordering::Relaxed);
    until(&bed, "b").await;
    // Nobody is left: refused with a reason, and nothing is sent anywhere.
    ill_too.store(true, Ordering::Relaxed);
    until(&bed, "503").await;
    let got = bed.get("http://user/").await;
    assert_eq!(got.header("x-weft-flags"), "UH");
    assert!(got.body.contains("fail this proxy's health check"), "{}", got.body);
    ill.store(false, Ordering::Relaxed);
    until(&bed, "a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_are_sent_and_expected_over_tcp() {
    let says = Arc::new(AtomicUsize::new(0));
    let mood = says.clone();
    let a = Server::raw(move |_, mut stream| {
        let says = mood.clone();
        async move {
            let mut buffer = [0; 256];
            let n = stream.read(&mut buffer).await.unwrap_or(0);
            let answer: &[u8] = match (&buffer[..n], says.load(Ordering::Relaxed)) {
                (b"PING\r\n", 0) => b"+PO",
                (b"PING\r\n", _) => b"-ERR\r\n",
                _ => b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\nconnection: close\r\n\r\na",
            };
            let _ = stream.write_all(answer).await;
            if answer == b"+PO" {
                let _ = stream.write_all(b"NG\r\n").await;
            }
        }
    })
    .await;
    let (b, _) = moody("b").await;
    let kind = CheckKind::Tcp { send: b"PING\r\n".to_vec(), expect: vec![b"+PONG".to_vec()] };
    let bed = two(Protocol::Http1, kind.clone(), [a.address, b.address]).await;
    // `b` does not know the protocol.
    until(&bed, "a").await;
    says.store(1, Ordering::Relaxed);
    until(&bed, "503").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_is_not_there_is_out_before_anybody_asks() {
    let (b, _) = moody("b").await;
    let kind = CheckKind::Tcp { send: Vec::new(), expect: Vec::new() };
    let bed = two(Protocol::Http1, kind, [nobody().await, b.address]).await;
    let flags = || async {
        let admin = bed.proxy.addresses().admin;
        send(admin, get("/clusters", "127.0.0.1")).await.body.contains("/failed_active_hc")
    };
    wait_until("the admin door says so", flags).await;
    until(&bed, "b").await;
}

fn limit(name: &str, requests: u32, by: Vec<LimitBy>) -> Arc<RateLimit> {
    let name = format!("TrafficPolicy shop/{name} spec.rateLimits[0]").into();
    // Nothing of it comes back while a test lasts.
    Arc::new(RateLimit { name, requests, per_ms: 3_600_000, burst: 0, by, keys_max: 0 })
}

fn asking(user: &str) -> Request<Full<Bytes>> {
    let request = Request::get("http://user/").header("host", "user").header("x-user", user);
    request.body(Full::default()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_limits_each_user_and_says_when_to_come_again() {
    let user = Server::named("user").await;
    let mut limited = rule("/", Action::Forward(vec![to("user", "", 1)]));
    limited.filters =
        vec![Filter::RateLimit(limit("each", 3, vec![LimitBy::Header("x-user".into())]))];
    let mut all = http_service("user", &[user.address]);
    all.push(mesh_route("user", vec![limited]));
    let bed = Bed::sidecar(all).await;
    for name in ["ann", "bob"] {
        for _ in 0..3 {
            assert_eq!(bed.send(asking(name)).await.status, 200);
        }
        let got = bed.send(asking(name)).await;
        assert_eq!((got.status, got.header("x-weft-flags")), (429, "RL"), "{name}");
        // A third of the hour, without what went by since the first of them.
        let after: u64 = got.header("retry-after").parse().unwrap();
        assert!((1_080..=1_200).contains(&after), "{after}");
        assert_eq!(got.header("ratelimit-policy"), "\"weft\";q=3;w=3600");
        assert_eq!(got.header("ratelimit"), format!("\"weft\";r=0;t={after}"));
        let why = format!(
            "a rate limit is reached; 3 per 3600 s by header x-user (TrafficPolicy shop/each \
             spec.rateLimits[0]); again in {after} s"
        );
        assert!(got.body.starts_with(&why), "{}", got.body);
    }
    assert_eq!(user.hits(), 6);
    assert!(bed.metrics().await.contains("weft_rate_limited_total 2"));
    let mut call = asking("ann");
    call.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    assert_eq!(bed.send(call).await.header("grpc-status"), "8");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_backend_takes_is_limited_whoever_leads_to_it() {
    let user = Server::http(|_, request: Request<hyper::body::Incoming>| async move {
        let body = request.into_body().collect().await.map(|b| b.to_bytes().len());
        text(200, body.map_or_else(|_| "broken".into(), |n| n.to_string()))
    })
    .await;
    let mut all = http_service("user", &[user.address]);
    let protection = Protection {
        rate_limits: vec![limit("all", 5, Vec::new())],
        body_bytes_max: Some(1_000),
        ..Protection::default()
    };
    all.push(backend("user", "", Labels::new(), protecting(protection)));
    let bed = Bed::sidecar(all).await;
    assert_eq!(bed.send(post("http://user/", vec![b'x'; 1_000])).await.body, "1000");
    let got = bed.send(post("http://user/", vec![b'x'; 1_001])).await;
    assert_eq!((got.status, got.header("x-weft-flags")), (413, "DPE"));
    assert!(got.body.contains("it has 1001 bytes, at most 1000 are allowed"), "{}", got.body);
    // A length that is not said beforehand is counted.
    let mut stream = tokio::net::TcpStream::connect(bed.outbound()).await.unwrap();
    let head = "POST http://user/ HTTP/1.1\r\nhost: user\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..3 {
        stream.write_all(format!("190\r\n{}\r\n", "y".repeat(400)).as_bytes()).await.unwrap();
    }
    let mut seen = vec![0; 64];
    let n = stream.read(&mut seen).await.unwrap();
    assert!(seen[..n].starts_with(b"HTTP/1.1 413"), "{}", String::from_utf8_lossy(&seen[..n]));
    assert_eq!(bed.get("http://user/").await.status, 200);
    assert_eq!(bed.get("http://user/").await.status, 200);
    assert_eq!(bed.get("http://user/").await.status, 429, "two were refused after they counted");
}

/// A server of ten places, 20 ms each, with a line without end.
async fn narrow() -> Server {
    let places = Arc::new(tokio::sync::Semaphore::new(10));
    Server::http(move |_, _| {
        let places = places.clone();
        async move {
            let _place = places.acquire().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            text(200, "done")
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_what_a_backend_can_do_requests_are_refused_at_once() {
    let server = narrow().await;
    let mut all = http_service("user", &[server.address]);
    let protection = Protection { adaptive: Some(Adaptive::default()), ..Protection::default() };
    all.push(backend("user", "", Labels::new(), protecting(protection)));
    let bed = Arc::new(Bed::sidecar(all).await);
    // 500 per second is what it can do; three times as much comes until some are refused. How many
    // are answered all the same is shown by the model's tests and by a drill.
    let refused = Arc::new(AtomicUsize::new(0));
    let mut tick = tokio::time::interval(Duration::from_millis(5));
    let mut calls = tokio::task::JoinSet::new();
    let began = Instant::now();
    while refused.load(Ordering::Relaxed) < 50 {
        tick.tick().await;
        assert!(began.elapsed() < Duration::from_secs(60), "nothing is refused");
        for _ in 0..8 {
            let (bed, refused) = (bed.clone(), refused.clone());
            calls.spawn(async move {
                let got = bed.get("http://user/").await;
                if got.status != 200 {
                    assert_eq!((got.status, got.header("x-weft-flags")), (503, "UO"));
                    assert!(got.body.contains("may be in flight now"), "{}", got.body);
                    refused.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    }
    while let Some(ended) = calls.join_next().await {
        ended.unwrap();
    }
    assert_eq!(bed.get("http://user/").await.status, 200, "there is room again");
}

/// The request's own deadline ends it at the gate as it does at the backend.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_at_a_gateways_gate_ends_with_its_own_deadline() {
    let places = Arc::new(tokio::sync::Semaphore::new(10));
    let reached = Arc::new(AtomicUsize::new(0));
    let hits = reached.clone();
    let server = Server::http(move |_, request| {
        let (places, quick) = (places.clone(), request.uri().path() == "/quick");
        hits.fetch_add(usize::from(quick), Ordering::Relaxed);
        async move {
            let _place = places.acquire().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            text(200, "done")
        }
    })
    .await;
    let mut all = http_service("user", &[server.address]);
    all.push(gateway(None));
    let forward = || Action::Forward(vec![to("user", "", 1)]);
    let timeouts = Timeouts { request_ms: Some(50), ..Timeouts::default() };
    let quick = Rule { timeouts, ..rule("/quick", forward()) };
    all.push(gateway_route("r", &[], vec![quick, rule("/", forward())]));
    let bed = Bed::gateway(all).await;
    let (at, done) = (bed.listener(), Arc::new(AtomicUsize::new(0)));
    let (mut clients, mut calls) = (tokio::task::JoinSet::new(), tokio::task::JoinSet::new());
    let held = "weft_backend_held_total{backend=\"user.shop.svc.cluster.local:80\"} ";
    let held = async || -> Option<u64> {
        bed.metrics().await.lines().find_map(|line| line.strip_prefix(held)?.parse().ok())
    };
    let mut tick = tokio::time::interval(Duration::from_millis(5));
    let began = Instant::now();
    // Some never come to the backend: they wait until their end.
    while held().await.is_none_or(|held| held < 100)
        || done.load(Ordering::Relaxed) < reached.load(Ordering::Relaxed) + 50
    {
        assert!(began.elapsed() < Duration::from_secs(60), "nothing waits at the gate");
        for _ in 0..10 {
            tick.tick().await;
            for _ in 0..8 {
                clients.spawn(send(at, get("/", "user")));
            }
            let done = done.clone();
            calls.spawn(async move {
                let got = send(at, get("/quick", "user")).await;
                done.fetch_add(1, Ordering::Relaxed);
                (got.status, got.header("x-weft-flags").to_owned())
            });
        }
    }
    while let Some(ended) = calls.join_next().await {
        let (status, flags) = ended.unwrap();
        assert!(status == 200 || (status, &*flags) == (504, "UT"), "{status} {flags}");
    }
}
