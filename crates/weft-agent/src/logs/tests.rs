// SPDX-License-Identifier: Apache-2.0
//! Logs on disk, asked as `kubectl logs` asks.

use std::time::Duration;

use weft_base::clock::ManualClock;

use super::*;

fn store() -> (tempfile::TempDir, LogStore, Arc<ManualClock>) {
    let dir = tempfile::tempdir().unwrap();
    let (clock, hand) = Clock::manual();
    let store = LogStore::new(dir.path().into(), clock);
    (dir, store, hand)
}

fn key() -> LogKey {
    LogKey { pod: PodKey::new("shop", "order-1"), uid: "u".into(), container: "app".into() }
}

async fn all(store: &LogStore, query: LogQuery) -> String {
    let mut reader = store.read(&key(), &query).unwrap();
    let mut out = Vec::new();
    while let Some(piece) = reader.next().await.unwrap() {
        out.extend(piece);
    }
    String::from_utf8(out).unwrap()
}

#[tokio::test]
async fn what_kubectl_logs_can_ask() {
    let (_dir, store, hand) = store();
    assert!(store.read(&key(), &LogQuery::default()).is_err());
    let w = store.begin(&key()).unwrap();
    w.line("stdout", b"one", true);
    hand.advance(Duration::from_secs(10));
    w.line("stderr", b"two ", false);
    w.line("stderr", b"halves", true);
    hand.advance(Duration::from_secs(10));
    w.line("stdout", b"three", true);

    let q = LogQuery::default;
    assert_eq!(all(&store, q()).await, "one\ntwo halves\nthree\n");
    assert_eq!(all(&store, LogQuery { tail_lines: Some(1), ..q() }).await, "three\n");
    assert_eq!(all(&store, LogQuery { tail_lines: Some(0), ..q() }).await, "");
    let recent = LogQuery { since_wall_ms: Some(store.clock.wall_ms() - 10_000), ..q() };
    assert_eq!(all(&store, recent).await, "two halves\nthree\n");
    assert_eq!(all(&store, LogQuery { limit_bytes: Some(6), ..q() }).await, "one\ntw");
    let stamped = LogQuery { timestamps: true, tail_lines: Some(1), ..q() };
    assert_eq!(all(&store, stamped).await, "2023-11-14T22:13:40.000Z three\n");
    assert!(store.read(&key(), &LogQuery { previous: true, ..q() }).is_err());

    w.close();
    let w2 = store.begin(&key()).unwrap();
    w2.line("stdout", b"again", true);
    assert_eq!(all(&store, q()).await, "again\n");
    let previous = LogQuery { previous: true, ..q() };
    assert_eq!(all(&store, previous.clone()).await, "one\ntwo halves\nthree\n");
    // A third run lets go of the first.
    store.begin(&key()).unwrap().line("stdout", b"third", true);
    assert_eq!(all(&store, previous).await, "again\n");
    assert_eq!(w2.tail(), ["again"]);

    store.forget(&key().pod, "u");
    assert!(store.read(&key(), &q()).is_err());
}

#[tokio::test]
async fn a_follower_sees_every_line_over_rotations_and_ends_with_the_process() {
    let (_dir, store, _) = store();
    let w = store.begin(&key()).unwrap();
    w.line("stdout", b"0", true);
    let mut reader = store.read(&key(), &LogQuery { follow: true, ..LogQuery::default() }).unwrap();
    assert_eq!(reader.next().await.unwrap().unwrap(), b"0\n");
    let big = "x".repeat(LINE_BYTES_MAX);
    let lines = usize::try_from(FILE_BYTES_MAX).unwrap() / LINE_BYTES_MAX + 10;
    let writer = async {
        for i in 0..lines {
            w.line("stdout", format!("{i} {big}").as_bytes(), true);
            tokio::task::yield_now().await;
        }
        w.close();
    };
    let follower = async {
        let mut out = Vec::new();
        while let Some(piece) = reader.next().await.unwrap() {
            out.extend(piece);
        }
        out
    };
    let ((), out) = tokio::join!(writer, follower);
    let text = String::from_utf8(out).unwrap();
    let seen: Vec<usize> =
        text.lines().map(|l| l.split(' ').next().unwrap().parse().unwrap()).collect();
    assert_eq!(seen, (0..lines).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_disk_used_is_bounded() {
    let (dir, store, _) = store();
    let w = store.begin(&key()).unwrap();
    let line = vec![b'x'; LINE_BYTES_MAX];
    for _ in 0..(5 * POD_LOG_BYTES_MAX / LINE_BYTES_MAX) {
        w.line("stdout", &line, true);
    }
    let files = parts(&dir.path().join("shop_order-1_u/app"));
    assert_eq!(files.len(), 2);
    let read = all(&store, LogQuery::default()).await.len();
    assert!(
        (POD_LOG_BYTES_MAX / 2..=POD_LOG_BYTES_MAX + 2 * LINE_BYTES_MAX).contains(&read),
        "{read}"
    );
}

#[test]
fn names_cannot_leave_the_directory() {
    assert_eq!(safe("../../etc"), "x..-..-etc");
    assert_eq!(safe(".."), "x..");
    assert_eq!(safe("a/b"), "a-b");
    assert_eq!(safe(""), "x");
}
