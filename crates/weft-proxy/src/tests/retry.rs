// SPDX-License-Identifier: Apache-2.0
//! What is sent again, what never is, and when an instance is left alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_model::*;

use super::bed::*;

/// Reads a request head, and then closes without a word.
async fn hang_up(mut stream: TcpStream) {
    let mut buffer = [0u8; 1024];
    let _ = stream.read(&mut buffer).await;
}

fn with_policy(
    name: &str,
    policy: BackendPolicy,
    addresses: &[std::net::SocketAddr],
) -> Vec<Named> {
    let endpoints = addresses.iter().enumerate();
    let endpoints = endpoints.map(|(i, a)| endpoint(&format!("{name}-{i}"), *a)).collect();
    service(name, Protocol::Http1, policy, endpoints)
}

fn never_ejected() -> BackendPolicy {
    BackendPolicy {
        outlier: Outlier { consecutive_failures: 0, ..Outlier::default() },
        ..BackendPolicy::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_never_established_are_retried_for_every_method() {
    let good = Server::named("good").await;
    let bed = Bed::sidecar(with_policy(
        "user",
        never_ejected(),
        &[nobody().await, good.address, nobody().await],
    ))
    .await;
    for i in 0..30 {
        let got = bed.send(post("http://user/", "body")).await;
        assert_eq!((got.status, got.body.as_str()), (200, "good"), "{i}");
    }
    assert_eq!(good.hits(), 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_have_had_an_effect_is_never_sent_twice() {
    let bad = Server::raw(|_, stream| hang_up(stream)).await;
    let bed = Bed::sidecar(with_policy("user", never_ejected(), &[bad.address])).await;
    let got = bed.send(post("http://user/pay", "1")).await;
    assert_eq!((got.status, got.header("x-weft-flags")), (503, "UC"));
    assert!(got.body.contains("not declared idempotent"), "{}", got.body);
    assert_eq!(bad.hits(), 1);
    // A read is tried again, and says so when all attempts failed.
    let got = bed.get("http://user/read").await;
    assert_eq!((got.status, got.header("x-weft-flags")), (503, "UC,URX"));
    assert_eq!(bad.hits(), 4);
    for part in ["user.shop.svc.cluster.local:80", "1 of 1", "attempts: 3", "next: "] {
        assert!(got.body.contains(part), "{part} in {}", got.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_declared_call_is_sent_again_with_its_body() {
    let origin = Server::raw(|n, mut stream| async move {
        let mut seen = Vec::new();
        let mut buffer = [0u8; 1024];
        while !seen.ends_with(b"all of it") {
            let read = stream.read(&mut buffer).await.unwrap();
            if read == 0 {
                return;
            }
            seen.extend_from_slice(&buffer[..read]);
        }
        if n > 0 {
            let _ = stream.write_all(b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n").await;
        }
    })
    .await;
    let mut all = with_policy("user", never_ejected(), &[origin.address]);
    let mut declared = rule("/", Action::Forward(vec![to("user", "", 1)]));
    declared.retry.declared_idempotent = true;
    all.push(mesh_route("user", vec![declared]));
    let bed = Bed::sidecar(all).await;
    let got = bed.send(post("http://user/", "all of it")).await;
    assert_eq!(got.status, 201, "{}", got.body);
    assert_eq!(origin.hits(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_larger_than_what_is_kept_is_not_replayed() {
    let bad = Server::raw(|_, mut stream| async move {
        let mut taken = 0;
        let mut buffer = [0u8; 64 * 1024];
        while taken < 200 * 1024 {
            taken += stream.read(&mut buffer).await.unwrap_or(0);
        }
    })
    .await;
    let mut all = with_policy("user", never_ejected(), &[bad.address]);
    let mut declared = rule("/", Action::Forward(vec![to("user", "", 1)]));
    declared.retry.declared_idempotent = true;
    all.push(mesh_route("user", vec![declared]));
    let bed = Bed::sidecar(all).await;
    let got = bed.send(post("http://user/", vec![b'x'; 256 * 1024])).await;
    assert_eq!(got.status, 503, "{}", got.body);
    assert!(got.body.contains("could not be sent again"), "{}", got.body);
    assert_eq!(bad.hits(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_are_retried_when_asked_and_passed_on_in_the_end() {
    let flaky =
        Server::http(
            |n, _| async move { if n < 2 { text(503, "later") } else { text(200, "now") } },
        )
        .await;
    let down = Server::http(|_, _| async move { text(503, "down") }).await;
    let mut all = with_policy("user", never_ejected(), &[flaky.address]);
    all.extend(with_policy("down", never_ejected(), &[down.address]));
    for name in ["user", "down"] {
        let mut retrying = rule("/", Action::Forward(vec![to(name, "", 1)]));
        retrying.retry = Retry { statuses: vec![503], backoff_ms: 1, ..Retry::default() };
        all.push(mesh_route(name, vec![retrying]));
    }
    let bed = Bed::sidecar(all).await;
    assert_eq!(bed.get("http://user/").await.body, "now");
    let got = bed.get("http://down/").await;
    assert_eq!((got.status, got.body.as_str()), (503, "down"));
    assert_eq!(down.hits(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn f13_the_budget_bounds_a_retry_storm() {
    let down = Server::http(|_, _| async move { text(503, "down") }).await;
    let mut policy = never_ejected();
    policy.retry_budget =
        RetryBudget { basis_points: 2_000, min_per_second: 1, ..RetryBudget::default() };
    let mut all = with_policy("down", policy, &[down.address]);
    let mut retrying = rule("/", Action::Forward(vec![to("down", "", 1)]));
    retrying.retry = Retry { attempts: 3, statuses: vec![503], backoff_ms: 1, ..Retry::default() };
    all.push(mesh_route("down", vec![retrying]));
    let bed = Bed::sidecar(all).await;
    let mut client = client(bed.outbound()).await;
    let began = tokio::time::Instant::now();
    for _ in 0..500 {
        assert_eq!(client.send(get("http://down/", "down")).await.status, 503);
    }
    // A fifth of them, and one for each second of the first interval and of those that followed.
    let most = 610 + usize::try_from(began.elapsed().as_secs()).unwrap();
    let sent = down.hits();
    assert!((500..=most).contains(&sent), "{sent} attempts for 500 requests");
    assert!(bed.metrics().await.contains("weft_retries_denied_total"));
}

/// A server that ends each connection over a request gets it as often as its rule says, however
/// many connections were kept; and once more, since any of these might have been closed before.
#[tokio::test(flavor = "multi_thread")]
async fn kept_connections_are_no_attempts_beside_the_budget() {
    const KEPT: usize = 10;
    for (attempts, most) in [(0, 1), (2, 4)] {
        let killed = Arc::new(AtomicUsize::new(0));
        let (count, all) = (killed.clone(), Arc::new(tokio::sync::Barrier::new(KEPT)));
        let server = Server::raw(move |_, mut stream| {
            let (count, all) = (count.clone(), all.clone());
            async move {
                let mut head = Vec::new();
                while let Ok(byte) = stream.read_u8().await {
                    head.push(byte);
                    if !head.ends_with(b"\r\n\r\n") {
                        continue;
                    }
                    if head.starts_with(b"GET /kill ") {
                        count.fetch_add(1, Ordering::SeqCst);
                        return;
                    }
                    head.clear();
                    all.wait().await;
                    let ok = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                    stream.write_all(ok).await.unwrap();
                }
            }
        })
        .await;
        let mut resources = with_policy("user", never_ejected(), &[server.address]);
        let mut kills = rule("/", Action::Forward(vec![to("user", "", 1)]));
        kills.retry.attempts = attempts;
        resources.push(mesh_route("user", vec![kills]));
        let bed = Bed::sidecar(resources).await;
        let filling = (0..KEPT).map(|_| bed.get("http://user/"));
        let filled = futures_util::future::join_all(filling).await;
        assert!(filled.iter().all(|got| got.status == 200));
        let got = bed.get("http://user/kill").await;
        assert_eq!(got.status, 503, "{}", got.body);
        let killed = killed.load(Ordering::SeqCst);
        assert!((1..=most).contains(&killed), "{killed} times with {attempts} attempts more");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn time_limits_of_request_and_attempt() {
    // Takes the request and never answers.
    let silent = Server::raw(|_, mut stream| async move {
        let mut buffer = [0u8; 1024];
        while stream.read(&mut buffer).await.unwrap_or(0) > 0 {}
    })
    .await;
    let good = Server::named("good").await;
    let mut all = with_policy("slow", never_ejected(), &[silent.address]);
    all.extend(with_policy("mixed", never_ejected(), &[silent.address, good.address]));
    let mut whole = rule("/", Action::Forward(vec![to("slow", "", 1)]));
    whole.timeouts.request_ms = Some(80);
    let mut tries = rule("/", Action::Forward(vec![to("mixed", "", 1)]));
    tries.timeouts = Timeouts {
        request_ms: Some(60_000),
        backend_request_ms: Some(2_000),
        ..Timeouts::default()
    };
    all.push(mesh_route("slow", vec![whole]));
    all.push(mesh_route("mixed", vec![tries]));
    let bed = Bed::sidecar(all).await;
    let started = tokio::time::Instant::now();
    let got = bed.get("http://slow/").await;
    assert_eq!((got.status, got.header("x-weft-flags")), (504, "UT"), "{}", got.body);
    assert!(started.elapsed() > Duration::from_millis(75));
    assert!(started.elapsed() < Duration::from_secs(20));
    // The other instance answers within its own attempt.
    for _ in 0..4 {
        assert_eq!(bed.get("http://mixed/").await.body, "good");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_body_that_stalls_is_cut_by_the_idle_limit() {
    let stalling = Server::raw(|_, mut stream| async move {
        let mut buffer = [0u8; 1024];
        let _ = stream.read(&mut buffer).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf").await;
        let _ = stream.read(&mut buffer).await;
    })
    .await;
    let mut all = with_policy("user", never_ejected(), &[stalling.address]);
    let mut idle = rule("/", Action::Forward(vec![to("user", "", 1)]));
    // Longer than a busy machine takes for the head, which is to come before.
    idle.timeouts.idle_ms = Some(3_000);
    all.push(mesh_route("user", vec![idle]));
    let bed = Bed::sidecar(all).await;
    let mut client = client(bed.outbound()).await;
    let broken = client.try_send(get("http://user/", "user")).await;
    assert!(broken.is_err(), "{broken:?}");
    wait_until("the cut is counted", || async {
        bed.metrics().await.contains("response_flags=\"SI\"")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failing_instances_are_ejected_and_admitted_again() {
    let failing = Arc::new(AtomicUsize::new(1));
    let state = failing.clone();
    let bad = Server::http(move |_, _| {
        let fails = state.load(Ordering::SeqCst) == 1;
        async move { if fails { text(500, "bad") } else { text(200, "mended") } }
    })
    .await;
    let good = Server::named("good").await;
    let policy = BackendPolicy {
        outlier: Outlier {
            consecutive_failures: 3,
            // Longer than a busy machine takes until the requests below are answered.
            base_ejection_ms: 6_000,
            max_ejection_ms: 6_000,
            ..Outlier::default()
        },
        ..BackendPolicy::default()
    };
    let bed = Bed::sidecar(with_policy("user", policy, &[bad.address, good.address])).await;
    let mut client = client(bed.outbound()).await;
    let mut failed = 0;
    while failed < 3 {
        failed += usize::from(client.send(get("http://user/", "user")).await.status == 500);
    }
    let ejected = || async {
        let admin = bed.proxy.addresses().admin;
        let clusters = send(admin, get("/clusters?format=json", "127.0.0.1")).await.body;
        clusters.contains("\"failed_outlier_check\": true")
    };
    wait_until("the bad instance is ejected", ejected).await;
    let before = bad.hits();
    for _ in 0..20 {
        assert_eq!(client.send(get("http://user/", "user")).await.status, 200);
    }
    assert_eq!(bad.hits(), before);
    failing.store(0, Ordering::SeqCst);
    loop {
        let got = client.send(get("http://user/", "user")).await;
        assert_eq!(got.status, 200);
        if got.body == "mended" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_healthy_instance_is_said_so() {
    let good = Server::named("good").await;
    let mut sick = endpoint("user-0", good.address);
    sick.health = Health::Unhealthy;
    let mut leaving = endpoint("user-1", good.address);
    leaving.health = Health::Draining;
    let all = service("user", Protocol::Http1, BackendPolicy::default(), vec![sick, leaving]);
    let bed = Bed::sidecar(all).await;
    let got = bed.get("http://user/").await;
    assert_eq!((got.status, got.header("x-weft-flags")), (503, "UH"));
    assert!(got.body.contains("instances healthy: 0 of 2"), "{}", got.body);
    assert_eq!(good.hits(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn f01_an_instance_killed_under_load_fails_no_read() {
    let origins = [Server::named("a").await, Server::named("b").await, Server::named("c").await];
    let addresses: Vec<_> = origins.iter().map(|o| o.address).collect();
    let bed = Bed::sidecar(http_service("user", &addresses)).await;
    let outbound = bed.outbound();
    let load = (0..4).map(|_| async move {
        let mut client = client(outbound).await;
        for i in 0..400 {
            let got = client.send(get("http://user/", "user")).await;
            assert_eq!(got.status, 200, "request {i}: {}", got.body);
        }
    });
    let kill = async {
        wait_until("some load", || async { origins[0].hits() > 100 }).await;
        origins[0].kill().await;
    };
    tokio::join!(futures_util::future::join_all(load), kill);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_instance_is_tried_again_after_a_pause_though_it_may_be_tried_again() {
    let mut all = http_service("down", &[nobody().await]);
    let mut retrying = rule("/", Action::Forward(vec![to("down", "", 1)]));
    let retry = Retry::default();
    retrying.retry = Retry { attempts: 2, tried_too: true, backoff_ms: 400, ..retry };
    all.push(mesh_route("down", vec![retrying]));
    let bed = Bed::sidecar(all).await;
    let began = tokio::time::Instant::now();
    assert_eq!(bed.get("http://down/").await.status, 503);
    let took = began.elapsed();
    // Half of 400 ms at least, and then half of twice that.
    assert!(took >= std::time::Duration::from_millis(500), "{took:?}");
}

/// An attempt's own time is for the beginning of its answer, which may be a stream; a backend's is
/// for all of it.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_has_begun_is_not_cut_by_the_time_of_an_attempt() {
    const TRY_MS: u64 = 1_500;
    let slow = Server::raw(|_, mut stream| async move {
        let mut buffer = [0u8; 1024];
        while stream.read(&mut buffer).await.unwrap_or(0) > 0 {
            let head = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab";
            stream.write_all(head).await.unwrap();
            tokio::time::sleep(Duration::from_millis(3 * TRY_MS)).await;
            if stream.write_all(b"cd").await.is_err() {
                return;
            }
        }
    })
    .await;
    let forward = || Action::Forward(vec![to("user", "", 1)]);
    let [mut tries, mut whole] = ["/tries", "/whole"].map(|path| rule(path, forward()));
    tries.retry.per_try_timeout_ms = Some(TRY_MS);
    whole.timeouts.backend_request_ms = Some(TRY_MS);
    let mut all = with_policy("user", never_ejected(), &[slow.address]);
    all.push(mesh_route("user", vec![tries, whole]));
    let bed = Bed::sidecar(all).await;
    for (path, is_whole) in [("tries", true), ("whole", false)] {
        let mut client = TcpStream::connect(bed.outbound()).await.unwrap();
        let ask =
            format!("GET http://user/{path} HTTP/1.1\r\nHost: user\r\nConnection: close\r\n\r\n");
        client.write_all(ask.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // What is cut ends with a reset.
        let _ = client.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
        assert_eq!(answer.ends_with("\r\n\r\nabcd"), is_whole, "{path}: {answer}");
    }
}
