// SPDX-License-Identifier: Apache-2.0
//! Drill F26: a panic in a handler ends its stream, is counted, and disturbs nobody else. In a
//! process of its own, since other tests say that nothing panicked in theirs.

use std::process::Command;

use tokio::net::TcpStream;
use weft_base::task::{TaskGroup, panics_total};
use weft_model::*;

use super::bed::*;

async fn gateway_to(address: std::net::SocketAddr) -> Bed {
    let mut all = http_service("user", &[address]);
    all.push(gateway(None));
    all.push(gateway_route("r", &[], vec![rule("/", Action::Forward(vec![to("user", "", 1)]))]));
    Bed::gateway(all).await
}

fn ask(panics: bool) -> http::Request<()> {
    let request = http::Request::get("http://a/");
    let request = if panics { request.header("x-test-panic", "1") } else { request };
    request.body(()).unwrap()
}

/// Set in the process that may panic.
const HERE: &str = "WEFT_TEST_PANICS";

#[allow(clippy::disallowed_methods)] // How tests start themselves again.
pub(super) fn is_here() -> bool {
    std::env::var(HERE).is_ok()
}

/// Runs tests of this program in a process of their own, where [`is_here`] holds; what they wrote.
pub(super) fn played_alone(cases: &[&str]) -> String {
    let passed = format!("{} passed", cases.len());
    let cases = cases.iter().map(|case| format!("tests::{case}"));
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", "--nocapture"]).args(cases).env(HERE, "1").output();
    let output = output.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains(&passed), "{text}{said}");
    text
}

/// How often: the drill in full says `FULL`.
#[allow(clippy::disallowed_methods)] // As above.
fn rounds() -> usize {
    if std::env::var("FULL").is_ok() { 2_000 } else { 20 }
}

#[test]
fn f26_a_panic_in_a_handler_ends_one_stream() {
    let text = played_alone(&[
        "panics::f26_over_http2_only_the_stream_dies",
        "panics::f26_over_http1_only_the_connection_dies",
    ]);
    // libtest writes names without a line's end.
    let said = text.match_indices("F26 ").filter_map(|(at, _)| text.get(at..)?.lines().next());
    let said: Vec<&str> = said.collect();
    assert_eq!(said.len(), 2, "{text}");
    println!("F26: {}", said.join("; ").replace("F26 ", ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn f26_over_http2_only_the_stream_dies() {
    if !is_here() {
        return;
    }
    let user = Server::named("user").await;
    let bed = gateway_to(user.address).await;
    let before = panics_total();
    let stream = TcpStream::connect(bed.listener()).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    let tasks = TaskGroup::new();
    tasks.spawn("client", async move { drop(connection.await) });
    let mut client = client.ready().await.unwrap();
    for round in 0..rounds() {
        let (good, _) = client.send_request(ask(false), true).unwrap();
        let (bad, _) = client.send_request(ask(true), true).unwrap();
        let (other, _) = client.send_request(ask(false), true).unwrap();
        let error = bad.await.unwrap_err();
        assert!(error.is_reset() && !error.is_go_away(), "{round}: {error}");
        assert_eq!(good.await.unwrap().status(), 200, "{round}");
        assert_eq!(other.await.unwrap().status(), 200, "{round}");
    }
    // The other case counts in the same process.
    assert!(panics_total() - before >= rounds() as u64);
    assert_eq!(user.hits(), 2 * rounds());
    let (bad, good) = (rounds(), 2 * rounds());
    println!("F26 {bad} panics on one HTTP/2 connection, {good} streams beside them answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn f26_over_http1_only_the_connection_dies() {
    if !is_here() {
        return;
    }
    let user = Server::named("user").await;
    let bed = gateway_to(user.address).await;
    let mut other = client(bed.listener()).await;
    assert_eq!(other.send(get("/", "a")).await.status, 200);
    for _ in 0..rounds() {
        let mut request = get("/", "a");
        request.headers_mut().insert("x-test-panic", "1".parse().unwrap());
        assert!(client(bed.listener()).await.try_send(request).await.is_err());
        assert_eq!(other.send(get("/", "a")).await.status, 200, "its worker goes on");
    }
    assert_eq!(user.hits(), rounds() + 1);
    println!("F26 {0} on HTTP/1 connections of their own, {0} answers beside them", rounds());
}
