// SPDX-License-Identifier: Apache-2.0
//! What holds for the whole proxy, however many workers it has: limits, and that none of them has
//! far more connections than the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::{Barrier, Semaphore};
use weft_model::*;

use super::bed::*;

/// A sidecar of so many workers. New connections are spread by what workers have, so that as many
/// clients as workers meet each of them.
async fn bed_of(workers: usize, resources: Vec<Named>) -> Bed {
    let mut config = config("sidecar~shop~client-1");
    config.workers = workers;
    let bed = Bed::start(config, None).await;
    bed.apply(1, resources).await;
    bed
}

/// A server that notes how many requests it has at a time.
async fn busy(at_once: Arc<AtomicUsize>, most: Arc<AtomicUsize>) -> Server {
    Server::http(move |_, _| {
        let (at_once, most) = (at_once.clone(), most.clone());
        async move {
            most.fetch_max(at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(2)).await;
            at_once.fetch_sub(1, Ordering::SeqCst);
            text(200, "ok")
        }
    })
    .await
}

fn limited(protocol: Protocol, limits: Limits, server: &Server) -> Vec<Named> {
    let policy = BackendPolicy { limits, ..BackendPolicy::default() };
    service("user", protocol, policy, vec![endpoint("a", server.address)])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_connections_is_one_of_all_workers_and_serves_each() {
    let most = Arc::new(AtomicUsize::new(0));
    let server = busy(Arc::default(), most.clone()).await;
    let limits = Limits { connections_max: Some(3), ..Limits::default() };
    let bed = bed_of(8, limited(Protocol::Http1, limits, &server)).await;
    let mut clients = Vec::new();
    for _ in 0..24 {
        clients.push(client(bed.outbound()).await);
    }
    let asking = clients.iter_mut().map(|client| async {
        for _ in 0..12 {
            let got = client.send(get("http://user/", "user")).await;
            assert_eq!(got.status, 200, "{}", got.body);
        }
    });
    join_all(asking).await;
    assert_eq!(most.load(Ordering::SeqCst), 3, "requests at a time, one for each connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_worker_has_idle_gives_way_to_another() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let server = Server::named("user").await;
        let limits = Limits { connections_max: Some(1), ..Limits::default() };
        let bed = bed_of(8, limited(protocol, limits, &server)).await;
        let mut clients = Vec::new();
        for _ in 0..8 {
            clients.push(client(bed.outbound()).await);
        }
        for round in 0..2 {
            for client in &mut clients {
                let got = client.send(get("http://user/", "user")).await;
                assert_eq!(got.status, 200, "{protocol:?} {round}: {}", got.body);
            }
        }
    }
}

/// A connection of HTTP/2 that is never idle would leave the other workers with nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_never_idle_is_left_for_who_has_none() {
    let (held, at_once) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (permits, count) = (held.clone(), at_once.clone());
    let server = Server::http(move |_, request| {
        let (permits, count) = (permits.clone(), count.clone());
        async move {
            if request.uri().path() == "/held" {
                count.fetch_add(1, Ordering::SeqCst);
                permits.acquire().await.unwrap().forget();
                count.fetch_sub(1, Ordering::SeqCst);
            }
            text(200, "ok")
        }
    })
    .await;
    let limits = Limits { connections_max: Some(1), ..Limits::default() };
    let bed = bed_of(2, limited(Protocol::Http2, limits, &server)).await;
    let [mut ours, mut theirs] = clients_of_two(&bed, 4).await;
    assert_eq!((ours.len(), theirs.len()), (2, 2));
    // Two clients of one worker ask so that one of them is always under way.
    let asking = join_all(ours.iter_mut().map(|client| async {
        loop {
            assert_eq!(client.send(get("http://user/held", "user")).await.status, 200);
        }
    }));
    let feeding = async {
        loop {
            let both = async {
                while at_once.load(Ordering::SeqCst) < 2 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            let _ = tokio::time::timeout(Duration::from_millis(100), both).await;
            // One for each: what is left over would let the next one pass at once.
            if at_once.load(Ordering::SeqCst) > 0 && held.available_permits() == 0 {
                held.add_permits(1);
            }
        }
    };
    let other = async {
        wait_until("they ask", || async { at_once.load(Ordering::SeqCst) > 0 }).await;
        theirs[0].send(get("http://user/", "user")).await
    };
    tokio::select! {
        _ = asking => unreachable!("they ask for ever"),
        () = feeding => unreachable!("they are fed for ever"),
        other = other => assert_eq!(other.status, 200, "{}", other.body),
    }
}

/// Who joins the opening of a connection that then has no room for it is in line like any other.
#[tokio::test(flavor = "multi_thread")]
async fn who_finds_a_joined_connection_full_waits_for_another() {
    let one = Connections { streams_max: Some(1), ..Connections::default() };
    let once = Connections { requests_max: Some(1), ..Connections::default() };
    for connections in [one, once] {
        let most = Arc::new(AtomicUsize::new(0));
        let server = busy(Arc::default(), most.clone()).await;
        let limits = Limits { connections_max: Some(3), ..Limits::default() };
        let connections = Some(Arc::new(connections));
        let policy = BackendPolicy { limits, connections, ..BackendPolicy::default() };
        let only = vec![endpoint("a", server.address)];
        let mut all = service("user", Protocol::Http2, policy, only);
        // Nobody is sent again to be served after all.
        let retry = Retry { attempts: 0, ..Retry::default() };
        let action = Action::Forward(vec![to("user", "", 1)]);
        all.push(mesh_route("user", vec![Rule { retry, ..rule("/", action) }]));
        let bed = bed_of(1, all).await;
        let mut clients = Vec::new();
        for _ in 0..24 {
            clients.push(client(bed.outbound()).await);
        }
        for _ in 0..3 {
            let asking = clients.iter_mut().map(|c| c.send(get("http://user/", "user")));
            for got in join_all(asking).await {
                assert_eq!(got.status, 200, "{}", got.body);
            }
        }
        let most = most.load(Ordering::SeqCst);
        assert!(most <= 3, "{most} requests at a time on three connections");
    }
}

/// Who waits for a connection is not in flight yet.
#[tokio::test(flavor = "multi_thread")]
async fn those_in_line_count_as_no_requests_in_flight() {
    let most = Arc::new(AtomicUsize::new(0));
    let server = busy(Arc::default(), most.clone()).await;
    let limits = Limits { connections_max: Some(2), requests_max: Some(2), ..Limits::default() };
    let bed = bed_of(4, limited(Protocol::Http1, limits, &server)).await;
    let mut clients = Vec::new();
    for _ in 0..16 {
        clients.push(client(bed.outbound()).await);
    }
    let asking = clients.iter_mut().map(|client| async {
        for _ in 0..12 {
            let got = client.send(get("http://user/", "user")).await;
            assert_eq!(got.status, 200, "{}", got.body);
        }
    });
    join_all(asking).await;
    assert_eq!(most.load(Ordering::SeqCst), 2);
}

/// One that waits is given one connection, and not all that are idle.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_one_connection_leaves_others_theirs() {
    const MOST: usize = 8;
    let (open, all) = (Arc::new(AtomicUsize::new(0)), Arc::new(Barrier::new(MOST)));
    let (count, barrier) = (open.clone(), all.clone());
    let server = Server::raw(move |_, stream| {
        let (count, barrier) = (count.clone(), barrier.clone());
        async move {
            count.fetch_add(1, Ordering::SeqCst);
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let barrier = barrier.clone();
                async move {
                    if request.uri().path() == "/all" {
                        barrier.wait().await;
                    }
                    Ok::<_, std::convert::Infallible>(text(200, ""))
                }
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            count.fetch_sub(1, Ordering::SeqCst);
        }
    })
    .await;
    let limits = Limits { connections_max: u32::try_from(MOST).ok(), ..Limits::default() };
    let one = Connections { streams_max: Some(1), ..Connections::default() };
    let connections = Some(Arc::new(one));
    let policy = BackendPolicy { limits, connections, ..BackendPolicy::default() };
    let only = vec![endpoint("a", server.address)];
    let bed = bed_of(2, service("user", Protocol::Http2, policy, only)).await;
    let [mut ours, mut theirs] = clients_of_two(&bed, 3 * MOST).await;
    let asking = ours.iter_mut().take(MOST).map(|c| c.send(get("http://user/all", "user")));
    assert!(join_all(asking).await.iter().all(|got| got.status == 200));
    assert_eq!(open.load(Ordering::SeqCst), MOST);
    assert_eq!(theirs[0].send(get("http://user/", "user")).await.status, 200);
    let left = open.load(Ordering::SeqCst);
    assert!(left > MOST / 2, "{left} of {MOST} are open");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_line_for_connections_is_one_of_all_workers() {
    let held = Arc::new(Semaphore::new(0));
    let permits = held.clone();
    let server = Server::http(move |_, _| {
        let permits = permits.clone();
        async move {
            permits.acquire().await.unwrap().forget();
            text(200, "ok")
        }
    })
    .await;
    let limits = Limits { connections_max: Some(1), pending_max: Some(2), ..Limits::default() };
    let bed = bed_of(8, limited(Protocol::Http1, limits, &server)).await;
    let refused = AtomicUsize::new(0);
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(client(bed.outbound()).await);
    }
    let asking = clients.iter_mut().map(|client| async {
        let got = client.send(get("http://user/", "user")).await;
        if got.status == 503 && refused.fetch_add(1, Ordering::SeqCst) == 4 {
            // Room for the others only once all that are too many were refused.
            held.add_permits(3);
        }
        (got.status, got.header("x-weft-flags").to_owned())
    });
    let mut got = join_all(asking).await;
    got.sort();
    let ok = (200, String::new());
    let full = (503, "UO".to_owned());
    assert_eq!(got[..3], [ok.clone(), ok.clone(), ok]);
    assert!(got[3..].iter().all(|g| *g == full), "{got:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_and_requests_in_flight_are_limited_over_all_workers() {
    let release = Arc::new(Semaphore::new(0));
    let all_here = Arc::new(tokio::sync::Barrier::new(8));
    let permits = release.clone();
    let server = Server::http(move |n, _| {
        let (permits, all_here) = (permits.clone(), all_here.clone());
        async move {
            if n >= 8 {
                permits.acquire().await.unwrap().forget();
            } else {
                all_here.wait().await;
            }
            text(503, "bad")
        }
    })
    .await;
    let limits = Limits { retries_max: Some(1), ..Limits::default() };
    let mut all = limited(Protocol::Http1, limits, &server);
    let action = Action::Forward(vec![to("user", "", 1)]);
    let retry = Retry { statuses: vec![503], attempts: 1, ..Retry::default() };
    all.push(mesh_route("user", vec![Rule { retry, ..rule("/", action) }]));
    let bed = bed_of(8, all).await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(client(bed.outbound()).await);
    }
    // Eight first attempts fail, each on a worker of its own; one goes again and hangs.
    let answered = AtomicUsize::new(0);
    let asking = clients.iter_mut().map(|client| async {
        let got = client.send(get("http://user/", "user")).await;
        if answered.fetch_add(1, Ordering::SeqCst) == 6 {
            release.add_permits(1);
        }
        got.status
    });
    assert_eq!(join_all(asking).await, [503; 8]);
    assert_eq!(server.hits(), 9);
    // The same server, which now holds everything, and two requests at a time.
    let limits = Limits { requests_max: Some(2), ..Limits::default() };
    bed.apply(2, limited(Protocol::Http1, limits, &server)).await;
    let refused = AtomicUsize::new(0);
    let asking = clients.iter_mut().map(|client| async {
        let got = client.send(get("http://user/", "user")).await;
        if got.header("x-weft-flags") == "UO" && refused.fetch_add(1, Ordering::SeqCst) == 5 {
            // Both are sent again once.
            release.add_permits(4);
        }
        got.body
    });
    let bodies = join_all(asking).await;
    assert_eq!(bodies.iter().filter(|body| *body == "bad").count(), 2, "{bodies:?}");
}

/// A share of no requests and one retry per second: ten of the interval, whichever workers ask.
#[tokio::test(flavor = "multi_thread")]
async fn the_retry_budget_is_one_of_all_workers() {
    let server = Server::http(|_, _| async move { text(503, "bad") }).await;
    let budget =
        RetryBudget { basis_points: 0, min_per_second: 1, interval_ms: 10_000, min_concurrent: 0 };
    let policy =
        BackendPolicy { retry_budget: budget, outlier: Outlier::off(), ..BackendPolicy::default() };
    let only = vec![endpoint("a", server.address)];
    let mut all = service("user", Protocol::Http1, policy, only);
    let action = Action::Forward(vec![to("user", "", 1)]);
    let retry = Retry { statuses: vec![503], attempts: 1, backoff_ms: 1, ..Retry::default() };
    all.push(mesh_route("user", vec![Rule { retry, ..rule("/", action) }]));
    let bed = bed_of(4, all).await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(client(bed.outbound()).await);
    }
    let asking = clients.iter_mut().map(|client| async {
        for _ in 0..10 {
            assert_eq!(client.send(get("http://user/", "user")).await.status, 503);
        }
    });
    let began = tokio::time::Instant::now();
    join_all(asking).await;
    // More only if the test took so long that the first of them are over.
    let over = usize::try_from(began.elapsed().as_secs() / 10).unwrap() * 10;
    let retried = server.hits() - 40;
    assert!((10..=10 + over).contains(&retried), "{retried} of 40 were sent again");
}

/// Open connections of each worker.
async fn by_worker(bed: &Bed) -> Vec<usize> {
    let metrics = bed.metrics().await;
    let lines = metrics.lines().filter(|l| l.starts_with("weft_worker_connections{"));
    lines.map(|l| l.rsplit(' ').next().unwrap().parse().unwrap()).collect()
}

/// So many clients of two workers, each of which has about half of them.
async fn clients_of_two(bed: &Bed, total: usize) -> [Vec<Client>; 2] {
    let mut clients = [Vec::new(), Vec::new()];
    let mut before = settled(bed, 0).await;
    for n in 1..=total {
        let client = client(bed.outbound()).await;
        let now = settled(bed, n).await;
        clients[usize::from(now[1] > before[1])].push(client);
        before = now;
    }
    clients
}

async fn settled(bed: &Bed, total: usize) -> Vec<usize> {
    wait_until("all are counted", || async { by_worker(bed).await.iter().sum::<usize>() == total })
        .await;
    by_worker(bed).await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_worker_has_far_more_connections_than_the_others() {
    let user = Server::named("user").await;
    let bed = bed_of(4, http_service("user", &[user.address])).await;
    let (mut open, mut before) = (Vec::new(), settled(&bed, 0).await);
    for n in 1..=60 {
        let stream = TcpStream::connect(bed.outbound()).await.unwrap();
        let now = settled(&bed, n).await;
        let worker = now.iter().zip(&before).position(|(now, before)| now > before).unwrap();
        open.push((worker, stream));
        before = now;
    }
    assert_eq!(before.len(), 4);
    // 1.25 times the mean of 15, which is a whole connection more.
    assert!(before.iter().all(|n| *n <= 19), "{before:?}");
    // All of them leave but those of one worker: what comes now goes to the others.
    open.retain(|(worker, _)| *worker == 0);
    let stay = open.len();
    settled(&bed, stay).await;
    for _ in 0..60 {
        open.push((0, TcpStream::connect(bed.outbound()).await.unwrap()));
    }
    let now = settled(&bed, stay + 60).await;
    let most = (stay + 60).div_ceil(4) * 5 / 4;
    assert!(now.iter().all(|n| *n <= most.max(stay)), "{now:?}");
    let metrics = bed.metrics().await;
    let handed =
        metrics.lines().find_map(|l| l.strip_prefix("weft_connections_handed_over_total "));
    assert!(handed.is_some_and(|n| n != "0"), "{handed:?}");
    // Whoever serves them answers.
    for (_, stream) in open {
        assert_eq!(client_on(stream).await.send(get("http://user/", "user")).await.body, "user");
    }
}
