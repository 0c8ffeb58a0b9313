// SPDX-License-Identifier: Apache-2.0
//! An instance that is gone without a word costs those that were on their way to it, and not those
//! that come while they wait.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::timeout;
use weft_model::*;

use super::bed::*;
use super::{introduced, tunnels};

/// Longer than the test takes: who waits for that is still waiting in the end.
const LONG_MS: u64 = 120_000;
/// Much more than it takes until an instance is doubted.
const A_WHILE: Duration = Duration::from_millis(2_000);

fn never_ejected() -> BackendPolicy {
    let outlier = Outlier { consecutive_failures: 0, ..Outlier::default() };
    BackendPolicy { connect_timeout_ms: LONG_MS, outlier, ..BackendPolicy::default() }
}

async fn bed(addresses: &[std::net::SocketAddr], policy: BackendPolicy) -> Bed {
    let named = addresses.iter().enumerate();
    let endpoints = named.map(|(i, at)| endpoint(&format!("user-{i}"), *at)).collect();
    let mut resources = service("user", Protocol::Http1, policy, endpoints);
    resources.push(gateway(None));
    let all = rule("/", Action::Forward(vec![to("user", "", 1)]));
    resources.push(gateway_route("r", &[], vec![all]));
    Bed::gateway(resources).await
}

fn ask(bed: &Bed, asked: &mut JoinSet<Got>) {
    let at = bed.listener();
    asked.spawn(async move { send(at, get("/", "a")).await });
}

#[tokio::test(flavor = "multi_thread")]
async fn f14_requests_go_elsewhere_while_a_connection_is_overdue() {
    all_but_one_are_answered(&Server::named("good").await, never_ejected()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_client_finds_out_counts_for_those_with_connections_of_their_own() {
    let proxy_protocol = Some(ProxyVersion::V1);
    let policy = BackendPolicy { proxy_protocol, ..never_ejected() };
    all_but_one_are_answered(&introduced::strict().await, policy).await;
}

/// Of requests for a black hole and for `good`.
async fn all_but_one_are_answered(good: &Server, policy: BackendPolicy) {
    let (hole, _line) = tunnels::black_hole().await;
    let bed = bed(&[hole.local_addr().unwrap(), good.address], policy).await;
    let (mut asked, mut answered) = (JoinSet::new(), 0);
    for _ in 0..24 {
        ask(&bed, &mut asked);
        // One that is on its way into the hole is waited for no longer.
        if let Ok(got) = timeout(A_WHILE, asked.join_next()).await {
            assert_eq!(got.unwrap().unwrap().status, 200);
            answered += 1;
        }
    }
    // Every second one would be stuck without the doubt. The machine may be slow.
    while answered < 23 {
        let got = timeout(A_WHILE * 50, asked.join_next()).await;
        assert_eq!(got.expect("all but one are answered").unwrap().unwrap().status, 200);
        answered += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f14_where_there_is_nobody_else_it_is_waited_for() {
    let (hole, mut line) = tunnels::black_hole().await;
    let bed = bed(&[hole.local_addr().unwrap()], never_ejected()).await;
    let mut asked = JoinSet::new();
    (0..3).for_each(|_| ask(&bed, &mut asked));
    assert!(timeout(A_WHILE, asked.join_next()).await.is_err(), "nobody is there");
    // It was busy only: whoever waited is served.
    line.clear();
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let mut open = JoinSet::new();
        while let Ok((mut stream, _)) = hole.accept().await {
            open.spawn(async move {
                let mut buffer = [0u8; 1024];
                while stream.read(&mut buffer).await.unwrap_or(0) > 0 {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                    let _ = stream.write_all(answer).await;
                }
            });
        }
    });
    let mut answered = 0;
    while let Some(got) = asked.join_next().await {
        assert_eq!(got.unwrap().status, 200);
        answered += 1;
    }
    assert_eq!(answered, 3);
}
