// SPDX-License-Identifier: Apache-2.0
//! How large doses are, who looks behind one, and that nobody reads while too much is used: through
//! the codecs, on a thread that has a group of its own in files.

use std::fs;
use std::sync::atomic::AtomicUsize;
use std::task::Wake;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::{FILES, Gauge, HOLD_PERCENT, Used};
use super::*;
use crate::h1::buffers::{Read, poll_fill};
use crate::h2::budget::Peer;
use crate::h2::guard::Guard;

/// Far less than this process has, so that it is its use.
const LIMIT: u64 = 1_024_000;

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A group's memory, and what watches it with so many workers, of which this thread is one.
struct Group(tempfile::TempDir, Arc<Pressure>);

// === impl Group ===

impl Group {
    fn new(workers: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (current, stat) = (dir.path().join("current"), dir.path().join("stat"));
        let pressure = Arc::new(Pressure::new(workers));
        let used = Used::Group { current, stat, keys: FILES };
        pressure.gauge.set(Gauge { limit: LIMIT, used }).unwrap();
        READER.with(|reader| *reader.pressure.borrow_mut() = Some(pressure.clone()));
        let group = Self(dir, pressure);
        group.is_now(0);
        group
    }

    fn is_now(&self, percent: u64) {
        fs::write(self.0.path().join("current"), (LIMIT / 100 * percent).to_string()).unwrap();
    }

    /// What the watcher sees.
    fn noted(&self, percent: u64) -> u64 {
        self.is_now(percent);
        self.1.note(LIMIT / 100 * percent, LIMIT);
        self.1.doses.bytes.load(Ordering::Relaxed)
    }

    /// The watcher's turn; tasks that waited go on.
    fn looks(&self, since: &mut Option<Instant>, now: Instant) {
        let percent = self.1.percent();
        self.1.doses.looked(percent < HOLD_PERCENT, since, now);
    }
}

fn may_read() -> bool {
    poll_may_read(&Context::from_waker(Waker::noop())).is_ready()
}

fn read(bytes: u64) {
    note(usize::try_from(bytes).unwrap());
}

#[test]
fn doses_shrink_with_the_room_that_is_left() {
    let smallest = LIMIT / SMALLEST_PART;
    let one = Group::new(1);
    let seen = [0, 50, 86, 90, 91, 94].map(|percent| one.noted(percent) * 100 / LIMIT);
    assert_eq!(seen, [45, 20, 2, 2, 2, 0]);
    assert_eq!((one.noted(95), one.noted(99)), (smallest, smallest));
    // The workers share it.
    assert_eq!(Group::new(4).noted(50) * 100 / LIMIT, 5);
}

#[test]
fn behind_a_dose_a_worker_looks_and_what_is_too_much_holds_everybody() {
    let (group, mut since, now) = (Group::new(2), None, Instant::now());
    let dose = group.noted(50);
    // Between two looks of the watcher it has become too much.
    group.is_now(92);
    read(dose - 1);
    assert!(may_read(), "it is not known yet");
    read(1);
    assert!(!may_read());
    assert!(!group.1.is_high(), "what is free is given back before anybody is refused");
    group.looks(&mut since, now);
    assert!(may_read());
    // There is room: the next dose is a smaller one.
    assert!(group.noted(50) == dose);
    group.is_now(70);
    read(dose);
    assert!(may_read());
    assert_eq!(group.1.doses.bytes.load(Ordering::Relaxed), LIMIT / 100 * 20 / SHARE / 2);
}

#[test]
fn near_the_end_nobody_reads_for_as_long_as_can_be() {
    let (group, mut since, began) = (Group::new(1), None, Instant::now());
    let dose = group.noted(96);
    assert!(group.1.is_high() && may_read());
    read(dose);
    for ms in [0, 10, 100, 499] {
        group.looks(&mut since, began + Duration::from_millis(ms));
        assert!(!may_read(), "after {ms} ms");
    }
    group.looks(&mut since, began + HELD_MAX);
    assert!(may_read(), "who may not read answers nobody");
    // With less in use they go on at once.
    read(dose);
    assert!(!may_read());
    group.looks(&mut since, began + HELD_MAX);
    assert!(!may_read());
    group.noted(94);
    group.looks(&mut since, began + HELD_MAX);
    assert!(may_read());
}

#[tokio::test]
async fn codecs_read_nothing_meanwhile_and_go_on_behind_it() {
    let (group, mut since) = (Group::new(1), None);
    let keeping = tokio::task::LocalSet::new();
    keeping.spawn_local(keep(group.1.clone()));
    let reads = keeping.run_until(async {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut cx = Context::from_waker(&waker);
        let dose = group.noted(50);
        tokio::task::yield_now().await;
        let ((mut h1, mut client), (h2, mut other)) =
            (tokio::io::duplex(1 << 20), tokio::io::duplex(64));
        let (mut h2, _) = Guard::new(h2, Peer::Client);
        group.is_now(93);
        // HTTP/1 counts what it reads: an upload goes on to the end of its dose.
        client.write_all(&vec![b'x'; 1 << 20]).await.unwrap();
        let (mut taken, mut buffer) = (0, BytesMut::new());
        while let Poll::Ready(read) = poll_fill(&mut h1, &mut buffer, Read::More, &mut cx) {
            taken += read.unwrap() as u64;
            buffer.clear();
        }
        assert!((dose..dose + 32 * 1024).contains(&taken), "{taken} of {dose}");
        // Nor does HTTP/2 read, or anybody else.
        other.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
        let mut byte = [0];
        let mut reading = std::pin::pin!(h2.read_exact(&mut byte));
        assert!(reading.as_mut().poll(&mut cx).is_pending() && !may_read());
        group.noted(60);
        group.looks(&mut since, Instant::now());
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        assert!(woken.0.load(Ordering::Relaxed) >= 2, "both are woken");
        assert!(poll_fill(&mut h1, &mut buffer, Read::More, &mut cx).is_ready());
        assert!(reading.as_mut().poll(&mut cx).is_ready());
    });
    reads.await;
}
