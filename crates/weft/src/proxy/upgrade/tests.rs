// SPDX-License-Identifier: Apache-2.0
//! One process plays both parts: the older one offers, the newer one asks.

use std::net::TcpListener;

use weft_proxy::handover::Takes;

use super::*;

/// Waits for what a task or another process does.
async fn until(what: &str, condition: impl Fn() -> bool) {
    within(Duration::from_secs(60), condition).await.expect(what);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_that_never_serves_replaces_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("door");
    let sockets = Arc::new(Sockets::keeping(Vec::new()).unwrap());
    sockets.keep(Takes::Connections, &[TcpListener::bind("127.0.0.1:0").unwrap()]);
    let tasks = TaskGroup::new();
    let mut replaced = offer(&path, sockets.clone(), Started::default(), &tasks).unwrap();
    let ask_there = || {
        let path = path.clone();
        tokio::task::spawn_blocking(move || ask(&path).unwrap())
    };
    let (older, fds) = ask_there().await.unwrap().unwrap();
    assert_eq!(fds.len(), 1);
    assert!(sockets.is_handing(), "a door that is opened now would be no part of that");
    // It has no table in time, says nothing and ends.
    let error = within(Duration::from_millis(30), || false).await.unwrap_err();
    assert!(error.to_string().contains("the older proxy goes on"), "{error}");
    drop(older);
    until("doors may be opened again", || !sockets.is_handing()).await;
    // Whoever comes next is answered as if nothing had been.
    let (older, fds) = ask_there().await.unwrap().unwrap();
    assert_eq!(fds.len(), 1);
    assert!(replaced.try_recv().is_err());
    tokio::task::spawn_blocking(|| older.serving()).await.unwrap();
    replaced.await.unwrap();
    assert!(ask_there().await.unwrap().is_none(), "it has let go of the path");
}

#[tokio::test]
async fn the_end_of_a_process_that_was_started_is_noticed() {
    let (started, tasks) = (Started::default(), TaskGroup::new());
    let mut sleeping = Command::new("sleep");
    sleeping.arg("600");
    start(sleeping, &started, &tasks).unwrap();
    let pid = started.pid().unwrap();
    assert!(start_successor(&started, &tasks).is_err(), "one at a time");
    let exists = || std::path::Path::new(&format!("/proc/{pid}/stat")).exists();
    assert!(exists());
    let process = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
    until("it is forgotten", || started.pid().is_none()).await;
    // Not even its entry is left.
    assert!(!exists());
    assert!(!started.is(pid));
}
