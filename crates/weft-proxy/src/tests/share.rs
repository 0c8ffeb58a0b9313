// SPDX-License-Identifier: Apache-2.0
//! Shares: exact per cycle for instances, within three standard errors for splits.

use std::collections::BTreeMap;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_model::*;

use super::bed::*;

async fn tally(bed: &Bed, n: usize) -> BTreeMap<String, usize> {
    let mut client = client(bed.outbound()).await;
    let mut counts = BTreeMap::new();
    for _ in 0..n {
        *counts.entry(client.send(get("http://user/", "user")).await.body).or_default() += 1;
    }
    counts
}

fn weighted(addresses: &[(&'static str, std::net::SocketAddr, u32)]) -> Vec<Endpoint> {
    let made = addresses.iter();
    made.map(|(id, a, weight)| Endpoint { weight: *weight, ..endpoint(id, *a) }).collect()
}

/// Sends `n` requests on one connection without waiting for answers, so that a hundred thousand
/// take seconds, and counts the answers by their one-letter bodies.
pub async fn pipelined(to: std::net::SocketAddr, n: usize) -> BTreeMap<char, usize> {
    let (mut reader, mut writer) = TcpStream::connect(to).await.unwrap().into_split();
    let asking = async move {
        let hundred = "GET / HTTP/1.1\r\nHost: user\r\n\r\n".repeat(100);
        for _ in 0..n / 100 {
            writer.write_all(hundred.as_bytes()).await.unwrap();
        }
        writer
    };
    let counting = async {
        let (mut counts, mut answers) = (BTreeMap::new(), 0);
        let mut buffer = Vec::new();
        while answers < n {
            assert!(reader.read_buf(&mut buffer).await.unwrap() > 0, "closed after {answers}");
            let mut done = 0;
            while let Some(end) = buffer[done..].windows(4).position(|w| w == b"\r\n\r\n") {
                let Some(body) = buffer.get(done + end + 4) else { break };
                assert!(buffer[done..].starts_with(b"HTTP/1.1 200 "));
                *counts.entry(char::from(*body)).or_default() += 1;
                answers += 1;
                done += end + 5;
            }
            buffer.drain(..done);
        }
        counts
    };
    tokio::join!(asking, counting).1
}

/// Every share is within three standard errors of `n` times its part of the weights' sum.
pub fn expect_shares(counts: &BTreeMap<char, usize>, weights: &[(char, u32)]) {
    assert!(are_shares(counts, weights), "a share of {weights:?} is off: {counts:?}");
}

fn are_shares(counts: &BTreeMap<char, usize>, weights: &[(char, u32)]) -> bool {
    let n = counts.values().sum::<usize>() as f64;
    let sum = f64::from(weights.iter().map(|(_, w)| w).sum::<u32>());
    assert_eq!(counts.len(), weights.len(), "{counts:?}");
    weights.iter().all(|(name, weight)| {
        let share = f64::from(*weight) / sum;
        let off = (counts[name] as f64 - n * share).abs();
        off <= 3.0 * (n * share * (1.0 - share)).sqrt()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_requests_are_shared_by_weight_with_and_without_a_critical_instance() {
    const N: usize = 100_000;
    let (a, b, c) = (Server::named("a").await, Server::named("b").await, Server::named("c").await);
    let endpoints = weighted(&[("a", a.address, 5), ("b", b.address, 3), ("c", c.address, 2)]);
    let policy = BackendPolicy { lb: LbPolicy::Random, ..BackendPolicy::default() };
    let mut config = config("sidecar~shop~client-1");
    // The same draws in every run, so that one run in a hundred does not fail by chance.
    config.seed = Some(1);
    let bed = Bed::start(config, None).await;
    bed.apply(1, service("user", Protocol::Http1, policy, endpoints.clone())).await;
    let door = bed.door(|d| matches!(d, crate::table::Door::Upstream { .. }));
    expect_shares(&pipelined(door, N).await, &[('a', 5), ('b', 3), ('c', 2)]);
    // With b critical every other share is T·R_i over the sum of what is left.
    let mut sick = endpoints;
    sick[1].health = Health::Unhealthy;
    bed.apply(2, vec![endpoints_of("user", Protocol::Http1, sick)]).await;
    let before = b.hits();
    expect_shares(&pipelined(door, N).await, &[('a', 5), ('c', 2)]);
    assert_eq!(b.hits(), before);
}

/// [`expect_shares`] where it is not known how many draws went before: once in a hundred runs a
/// share is beyond three standard errors by chance, and in no other run again.
async fn expect_shares_of(to: std::net::SocketAddr, n: usize, weights: &[(char, u32)]) {
    for _ in 0..4 {
        let counts = pipelined(to, n).await;
        if are_shares(&counts, weights) {
            return;
        }
    }
    expect_shares(&pipelined(to, n).await, weights);
}

/// Asks until an instance is ejected.
async fn until_ejected(bed: &Bed, id: &str) {
    let mut client = client(bed.outbound()).await;
    let is_out = || {
        let table = bed.proxy.status().table.load();
        let backend = &table.host("user").unwrap().backends["backend/80"];
        let mut out = backend.endpoints.iter().filter(|e| &*e.endpoint.id == id);
        out.any(|e| e.shared.ejected_until.load(std::sync::atomic::Ordering::Relaxed) != 0)
    };
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    while !is_out() {
        client.send(get("http://user/", "user")).await;
        assert!(tokio::time::Instant::now() < deadline, "{id} was not ejected");
    }
}

fn ejecting() -> BackendPolicy {
    let outlier = Outlier {
        consecutive_failures: 3,
        base_ejection_ms: 600_000,
        max_ejection_basis_points: 10_000,
        ..Outlier::default()
    };
    BackendPolicy { lb: LbPolicy::Random, outlier, ..BackendPolicy::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_requests_are_shared_by_weight_while_one_is_ejected() {
    let failing = Server::http(|_, _| async { text(500, "b") }).await;
    let (a, c) = (Server::named("a").await, Server::named("c").await);
    let endpoints =
        weighted(&[("a", a.address, 5), ("b", failing.address, 3), ("c", c.address, 2)]);
    let mut config = config("sidecar~shop~client-1");
    config.seed = Some(2);
    let bed = Bed::start(config, None).await;
    bed.apply(1, service("user", Protocol::Http1, ejecting(), endpoints)).await;
    until_ejected(&bed, "b").await;
    let before = failing.hits();
    let door = bed.door(|d| matches!(d, crate::table::Door::Upstream { .. }));
    // T·R_i over the sum of what is left, as if it were critical.
    expect_shares_of(door, 100_000, &[('a', 5), ('c', 2)]).await;
    assert_eq!(failing.hits(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_requests_fail_over_by_weight_while_one_is_ejected() {
    let failing = Server::http(|_, _| async { text(500, "b") }).await;
    let (a, c, d) = (Server::named("a").await, Server::named("c").await, Server::named("d").await);
    let mut endpoints = weighted(&[
        ("a", a.address, 1),
        ("b", failing.address, 1),
        ("c", c.address, 2),
        ("d", d.address, 1),
    ]);
    for (endpoint, place) in endpoints.iter_mut().zip(["eu/a", "eu/a", "eu/b", "eu/b"]) {
        endpoint.locality = Locality::parse(place);
    }
    let locality = LocalityPolicy::Failover(Failover::default());
    let policy = BackendPolicy { locality, ..ejecting() };
    let mut config = config("sidecar~shop~client-1");
    config.own = decide::Own { locality: Locality::parse("eu/a"), ..decide::Own::default() };
    config.seed = Some(3);
    let bed = Bed::start(config, None).await;
    bed.apply(1, service("user", Protocol::Http1, policy, endpoints)).await;
    until_ejected(&bed, "b").await;
    let before = failing.hits();
    let door = bed.door(|d| matches!(d, crate::table::Door::Upstream { .. }));
    // Half of the near place is left: 1.4 times that is its share, and the next place's two
    // instances have the rest by their weights.
    expect_shares_of(door, 100_000, &[('a', 70), ('c', 20), ('d', 10)]).await;
    assert_eq!(failing.hits(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn smooth_weighted_round_robin_is_exact_per_cycle() {
    let (a, b, c) = (Server::named("a").await, Server::named("b").await, Server::named("c").await);
    let endpoints = weighted(&[("a", a.address, 5), ("b", b.address, 3), ("c", c.address, 2)]);
    let bed =
        Bed::sidecar(service("user", Protocol::Http1, BackendPolicy::default(), endpoints.clone()))
            .await;
    let want = |a, b, c| {
        [("a", a), ("b", b), ("c", c)]
            .into_iter()
            .filter(|(_, n)| *n > 0)
            .map(|(k, n)| (k.to_owned(), n))
            .collect::<BTreeMap<_, usize>>()
    };
    assert_eq!(tally(&bed, 100).await, want(50, 30, 20));
    // With b critical the others share what is left by their weights.
    let mut sick = endpoints;
    sick[1].health = Health::Unhealthy;
    bed.apply(2, vec![endpoints_of("user", Protocol::Http1, sick)]).await;
    assert_eq!(tally(&bed, 70).await, want(50, 0, 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_round_robin_takes_turns() {
    let (a, b) = (Server::named("a").await, Server::named("b").await);
    let bed = Bed::sidecar(http_service("user", &[a.address, b.address])).await;
    let counts = tally(&bed, 40).await;
    assert_eq!(counts.values().copied().collect::<Vec<_>>(), [20, 20]);
}

#[tokio::test(flavor = "multi_thread")]
async fn splits_by_subset_follow_their_weights_and_change_at_once() {
    let (v1, v2) = (Server::named("v1").await, Server::named("v2").await);
    let label = |v: &str| Labels::from([("version".into(), v.into())]);
    let endpoints = vec![
        Endpoint { labels: label("v1"), ..endpoint("a", v1.address) },
        Endpoint { labels: label("v2"), ..endpoint("b", v2.address) },
    ];
    let mut all = service("user", Protocol::Http1, BackendPolicy::default(), endpoints);
    all.push(backend("user", "v1", label("v1"), BackendPolicy::default()));
    all.push(backend("user", "v2", label("v2"), BackendPolicy::default()));
    let split = |a, b| {
        let action = Action::Forward(vec![to("user", "v1", a), to("user", "v2", b)]);
        mesh_route("user", vec![rule("/", action)])
    };
    all.push(split(90, 10));
    let bed = Bed::sidecar(all).await;
    let counts = tally(&bed, 1_000).await;
    // Seven standard errors of a binomial(1000, 0.1) are 66.
    assert!((34..=166).contains(&counts["v2"]), "{counts:?}");
    bed.apply(2, vec![split(0, 100)]).await;
    assert_eq!(tally(&bed, 50).await, BTreeMap::from([("v2".to_owned(), 50)]));
    bed.apply(3, vec![split(0, 0)]).await;
    assert_eq!(bed.get("http://user/").await.status, 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn least_request_avoids_the_busy_instance() {
    let busy = Server::http(|_, _| async move {
        // Much longer than a busy machine makes the other one wait.
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        text(200, "busy")
    })
    .await;
    let free = Server::named("free").await;
    let policy = BackendPolicy { lb: LbPolicy::LeastRequest, ..BackendPolicy::default() };
    let endpoints = weighted(&[("busy", busy.address, 1), ("free", free.address, 1)]);
    let bed = Bed::sidecar(service("user", Protocol::Http1, policy, endpoints)).await;
    let outbound = bed.outbound();
    let clients = (0..8).map(|_| async move {
        let mut client = client(outbound).await;
        let mut free = 0;
        for _ in 0..10 {
            let got = client.send(get("http://user/", "user")).await;
            free += usize::from(got.body == "free");
        }
        free
    });
    let free: usize = futures_util::future::join_all(clients).await.into_iter().sum();
    assert!(free >= 50, "{free} of 80 went to the free instance");
}
