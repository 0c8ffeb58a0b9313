// SPDX-License-Identifier: Apache-2.0
//! What becomes of HTTP/2's table of headers when there is no memory for an entry: the process ends
//! there and then (and is started again by its agent), before anything can be read from a table
//! that is not what the client believes. Played by processes of their own, each of which gets a few
//! more allocations than the one before.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use http::Request;
use tokio::net::TcpStream;
use weft_base::task::TaskGroup;
use weft_model::Protocol;

use super::{read_head, start, sys};

const UPSTREAM: &str = "WEFT_TEST_UPSTREAM";
const ALLOCATIONS: &str = "WEFT_TEST_ALLOCATIONS";
const TEST: &str =
    "exhausted::reg_28_an_entry_without_memory_ends_the_process_before_anything_is_read_of_it";
/// From one process to the next.
const STEP: i64 = 3;
/// More than the three requests take.
const ENOUGH: i64 = 400;
const SIGABRT: i32 = 6;

/// The header that enters the table.
fn large() -> String {
    "v".repeat(1_000)
}

/// Keeps the heads that it is sent.
fn upstream() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, heads) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
    let kept = heads.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, kept) = (stream.unwrap(), kept.clone());
            std::thread::spawn(move || {
                while let Some(head) = read_head(&mut stream) {
                    kept.lock().unwrap().push(head);
                    if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").is_err() {
                        break;
                    }
                }
            });
        }
    });
    (address, heads)
}

/// A proxy that gets so many allocations for requests which make an entry and use it.
fn exhausted(upstream: SocketAddr, allocations: i64) {
    let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(rustix::process::Resource::Core, none).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("access.log");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let tasks = TaskGroup::new();
    runtime.block_on(async {
        let (_proxy, _feed, door) = start(&log, upstream, Protocol::Http1).await;
        let stream = TcpStream::connect(door).await.unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        tasks.spawn("client", async move { drop(connection.await) });
        let ask = async |value: &str| {
            let request = Request::get("http://shop.example/users/7").header("x-a", value);
            let mut sender = sender.clone().ready().await.unwrap();
            let (answer, _) = sender.send_request(request.body(()).unwrap(), true).unwrap();
            answer.await.unwrap().status().as_u16()
        };
        assert_eq!(ask("warm").await, 200);
        sys::fail_after(allocations);
        for _ in 0..3 {
            assert_eq!(ask(&large()).await, 200);
        }
        sys::fail_after(i64::MAX);
    });
    tasks.stop();
}

#[allow(clippy::disallowed_methods)] // Only how the test starts itself again.
fn told(variable: &str) -> Option<String> {
    std::env::var(variable).ok()
}

fn again(upstream: SocketAddr, allocations: i64) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "--nocapture", TEST]);
    command.env(UPSTREAM, upstream.to_string()).env(ALLOCATIONS, allocations.to_string());
    command.output().unwrap()
}

#[test]
fn reg_28_an_entry_without_memory_ends_the_process_before_anything_is_read_of_it() {
    if let (Some(upstream), Some(allocations)) = (told(UPSTREAM), told(ALLOCATIONS)) {
        return exhausted(upstream.parse().unwrap(), allocations.parse().unwrap());
    }
    let (upstream, heads) = upstream();
    let mut ended = 0;
    for allocations in (0..ENOUGH).step_by(STEP as usize) {
        let out = again(upstream, allocations);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        if out.status.success() {
            break;
        }
        assert_eq!(out.status.signal(), Some(SIGABRT), "after {allocations}: {said}");
        assert!(said.contains("memory allocation of "), "after {allocations}: {said}");
        ended += 1;
    }
    assert!((5..ENOUGH / STEP).contains(&ended), "{ended} ended for want of memory");
    let heads = heads.lock().unwrap();
    let values = heads.iter().flat_map(|head| head.lines().filter_map(|l| l.strip_prefix("x-a: ")));
    let wrong: Vec<&str> = values.filter(|value| *value != "warm" && *value != large()).collect();
    assert_eq!(wrong, [""; 0]);
    assert!(heads.iter().any(|head| head.contains(&large())), "some came as they should");
}
