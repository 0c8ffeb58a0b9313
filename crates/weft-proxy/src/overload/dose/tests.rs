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
pub(crate) struct Group(tempfile::TempDir, Arc<Pressure>);

// === impl Group ===

impl Group {
    pub fn new(workers: usize) -> Self {
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

    /// So much is used that nobody may read.
    pub fn hold(&self) {
        read(self.noted(96));
        assert!(!may_read());
    }

    /// There is room again, and those that waited go on.
    pub fn free(&self) {
        self.noted(60);
        self.looks(&mut None, Instant::now());
        READER.with(Reader::wake);
    }

    /// Bytes that were counted since somebody looked.
    pub fn counted(&self) -> u64 {
        READER.with(|reader| reader.read.get())
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

#[test]
fn whoever_waits_is_woken_once_and_not_before_it_may_read() {
    let (group, mut since) = (Group::new(1), None);
    read(group.noted(96));
    let asks = |waker: &Waker| poll_may_read(&Context::from_waker(waker)).is_pending();
    let woken: Vec<Arc<Woken>> = (0..WAITING_MAX).map(|_| Arc::default()).collect();
    let wakers: Vec<Waker> = woken.iter().map(|woken| woken.clone().into()).collect();
    for round in 0..3 {
        assert!(wakers.iter().all(asks), "round {round}");
    }
    assert!(!asks(Waker::noop()), "where there is no place to wait it reads");
    let times = |n: usize| woken.iter().all(|woken| woken.0.load(Ordering::Relaxed) == n);
    assert!(times(0), "to ask again is all that they could do");
    group.noted(60);
    group.looks(&mut since, Instant::now());
    READER.with(Reader::wake);
    assert!(times(1) && !wakers.iter().any(asks));
}

#[test]
fn a_look_is_used_again_for_a_moment_while_there_is_room_for_what_was_read_since() {
    let (group, now) = (Group::new(1), Instant::now());
    let dose = || group.1.doses.bytes.load(Ordering::Relaxed);
    group.noted(50);
    group.is_now(60);
    group.1.look_again(dose(), now);
    assert_eq!(dose(), LIMIT / 100 * 15, "a worker has looked");
    // It cannot have become more than was read since.
    group.is_now(92);
    group.1.look_again(dose(), now + SEEN_FOR / 2);
    assert!(may_read());
    assert_eq!(dose(), LIMIT / 1_000 * 75, "as if all of it stayed");
    group.1.look_again(dose(), now + SEEN_FOR);
    assert!(!may_read(), "behind a moment it looks again");
    // Nor does a look last for more bytes than there was room for.
    let group = Group::new(1);
    group.noted(80);
    let mut reads = 0;
    while may_read() {
        let dose = group.1.doses.bytes.load(Ordering::Relaxed);
        reads += dose;
        group.is_now(80 + reads * 100 / LIMIT);
        group.1.look_again(dose, now);
    }
    assert!((LIMIT / 100 * 10..LIMIT / 100 * 11).contains(&reads), "{reads} of {LIMIT}");
}

#[tokio::test]
async fn codecs_read_nothing_meanwhile_and_go_on_behind_it() {
    let (group, mut since) = (Group::new(1), None);
    let keeping = tokio::task::LocalSet::new();
    keeping.spawn_local(keep(group.1.clone()));
    let reads = keeping.run_until(async {
        let woken: [Arc<Woken>; 2] = Default::default();
        let wakers = woken.each_ref().map(|woken| Waker::from(woken.clone()));
        let [mut cx, mut other_cx] = wakers.each_ref().map(Context::from_waker);
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
        assert!(reading.as_mut().poll(&mut other_cx).is_pending() && !may_read());
        group.noted(60);
        group.looks(&mut since, Instant::now());
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        let times = woken.map(|woken| woken.0.load(Ordering::Relaxed));
        assert!(times.iter().all(|n| *n > 0), "both are woken: {times:?}");
        assert!(poll_fill(&mut h1, &mut buffer, Read::More, &mut cx).is_ready());
        assert!(reading.as_mut().poll(&mut cx).is_ready());
    });
    reads.await;
}
