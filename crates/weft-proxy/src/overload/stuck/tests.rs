// SPDX-License-Identifier: Apache-2.0
//! Who is given up while memory is short, and who is not: the order and the count, and each codec
//! that waits, over an in-memory stream whose other end does not move, or does.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::LocalSet;
use weft_base::task::TaskGroup;

use super::super::tests::WATCHED_HERE;
use super::*;
use crate::h1::Wrong;
use crate::h2::budget::Peer;
use crate::tests::bed::wait_until;
use crate::{h1, h2};

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Tells all whose waits began before; how many there were.
fn tell_older(than: Instant) -> u64 {
    tell(u64::MAX, Duration::from_nanos(1), than)
}

#[test]
fn who_has_waited_longest_is_told_and_who_moves_is_young_again() {
    WATCHED_HERE.set(true);
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    let cx = Context::from_waker(&waker);
    let tell = |most| tell(most, Duration::ZERO, Instant::now());
    let [mut a, mut b, mut c, mut gone] = [const { Stuck(0) }; 4];
    for stuck in [&mut a, &mut gone, &mut b, &mut c] {
        assert!(stuck.poll(&cx).is_pending() && stuck.poll(&cx).is_pending());
    }
    drop(gone);
    a.moved();
    assert!(a.poll(&cx).is_pending());
    assert_eq!((tell(1), woken.0.load(Ordering::Relaxed)), (1, 1));
    assert!(b.poll(&cx).is_ready() && a.poll(&cx).is_pending() && c.poll(&cx).is_pending());
    assert_eq!((tell(5), woken.0.load(Ordering::Relaxed)), (2, 3));
    assert!(a.poll(&cx).is_ready() && c.poll(&cx).is_ready());
    assert_eq!(tell(5), 0);
    // Where nobody watches nothing is kept.
    WATCHED_HERE.set(false);
    c.moved();
    assert!(c.poll(&cx).is_pending());
    assert_eq!((tell(5), c.0), (0, 0));
}

#[test]
fn what_is_coming_back_is_not_asked_for_twice() {
    let mut relief = Relief::new();
    let now = Instant::now();
    assert_eq!(relief.due(10 * EACH_BYTES + 1, now), 11);
    relief.note(11, 0, now);
    assert_eq!(relief.due(10 * EACH_BYTES, now), 0);
    // More came meanwhile.
    let later = now + SEEN_AFTER / 2;
    assert_eq!(relief.due(14 * EACH_BYTES, later), 3);
    relief.note(3, 0, later);
    assert_eq!(relief.due(8 * EACH_BYTES, now + SEEN_AFTER), 5);
    assert_eq!(relief.due(8 * EACH_BYTES, later + SEEN_AFTER), 8);
}

#[test]
fn patience_is_short_near_the_end_and_long_where_nothing_is_gained() {
    let mut relief = Relief::new();
    let patience = |relief: &Relief| [80, 90, 94, 97, 98, 120].map(|p| relief.patience(p));
    let second = Duration::from_secs(1);
    let at_first = [second, second, second / 2, second / 8, Duration::ZERO, Duration::ZERO];
    assert_eq!(patience(&relief), at_first);
    let mut now = Instant::now();
    let mut round = |relief: &mut Relief, fell: u64| {
        let before = 1_000 * EACH_BYTES;
        relief.note(100, before, now);
        // What more are told meanwhile is not what is looked at.
        relief.note(500, before / 2, now + SEEN_AFTER / 2);
        relief.judge(before, now + SEEN_AFTER / 2);
        now += SEEN_AFTER;
        relief.judge(before - fell * EACH_BYTES, now);
        relief.patience
    };
    assert_eq!(round(&mut relief, 50), second);
    let futile: Vec<u64> = (0..6).map(|_| round(&mut relief, 49).as_secs()).collect();
    assert_eq!(futile, [2, 4, 8, 16, 16, 16]);
    assert_eq!(relief.patience(98), Duration::ZERO);
    assert_eq!(round(&mut relief, 100), second);
}

#[test]
fn a_wait_that_is_young_is_not_told() {
    WATCHED_HERE.set(true);
    let (mut old, mut young) = (Stuck::default(), Stuck::default());
    let cx = Context::from_waker(Waker::noop());
    assert!(old.poll(&cx).is_pending());
    let between = Instant::now();
    assert!(young.poll(&cx).is_pending());
    let later = between + PATIENCE;
    assert_eq!(tell(5, PATIENCE, between), 0);
    assert_eq!((tell(5, PATIENCE, later), old.poll(&cx).is_ready()), (1, true));
    assert!(young.poll(&cx).is_pending());
    assert_eq!(tell(5, PATIENCE, later + PATIENCE), 1);
}

#[tokio::test]
async fn pressure_has_old_waits_given_up_and_each_that_is_counted() {
    WATCHED_HERE.set(true);
    let (pressure, given_up) = (Arc::new(Pressure::default()), Rc::new(Cell::new(0)));
    let count = given_up.clone();
    let relieving = relieve(pressure.clone(), 1, move || count.set(count.get() + 1));
    let cx = Context::from_waker(Waker::noop());
    let test = async {
        let [mut waits, mut left] = [const { Stuck(0) }; 2];
        assert!(waits.poll(&cx).is_pending() && left.poll(&cx).is_pending());
        let began = Instant::now();
        // A thousand times what both of them hold, and some time before the end.
        pressure.note(91 << 20, 100 << 20);
        tokio::time::sleep(5 * OFTEN).await;
        let is_young = began.elapsed() < PATIENCE / 2;
        assert!(!is_young || waits.poll(&cx).is_pending(), "after {:?}", began.elapsed());
        pressure.note(99 << 20, 100 << 20);
        wait_until("all are told", async || WAITING.with_borrow(|w| w.by_age.is_empty())).await;
        // One of them has moved before it heard of it.
        left.moved();
        assert!(waits.poll(&cx).is_ready() && given_up.get() == 1, "{}", given_up.get());
    };
    tokio::select! {
        () = relieving => unreachable!("it never ends"),
        () = test => {}
    }
}

/// Answers without an end. At `/upload` it reads the request's body first, and says why that
/// ended; at `/ignored` it looks at it once.
#[derive(Default)]
struct Floods {
    broke: RefCell<Option<String>>,
}

struct Flood;

impl Body for Flood {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[0; 1024])))))
    }
}

impl h1::server::Service for Floods {
    type Body = Flood;

    async fn call(&self, request: Request<h1::Incoming>) -> Response<Flood> {
        let (head, mut body) = request.into_parts();
        let mut next = async || poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
        match head.uri.path() {
            "/upload" => {
                while let Some(piece) = next().await {
                    if let Err(broke) = piece {
                        *self.broke.borrow_mut() = Some(broke.to_string());
                        break;
                    }
                }
            }
            "/ignored" => tokio::select! {
                biased;
                _ = next() => unreachable!("it brings nothing"),
                () = tokio::task::yield_now() => {}
            },
            _ => {}
        }
        Response::new(Flood)
    }

    fn refuse(&self, _: Wrong) -> Response<Flood> {
        unreachable!("nothing is wrong")
    }

    fn drive(_: &mut Flood, _: &mut Context<'_>) {}
}

impl h2::server::Service for Floods {
    type Body = Flood;

    async fn call(&self, _: Request<h2::Incoming>) -> Response<Flood> {
        Response::new(Flood)
    }

    fn refuse(&self, _: Wrong) -> Response<Flood> {
        unreachable!("nothing is wrong")
    }

    fn drive(_: &mut Flood, _: &mut Context<'_>) {}
}

/// Until all that can go on without the test has.
async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

/// `step` moves something, again and again: no wait is older.
async fn survives(mut step: impl AsyncFnMut()) {
    for _ in 0..16 {
        let before = Instant::now();
        step().await;
        settle().await;
        assert_eq!(tell_older(before), 0, "what moves is told");
    }
}

/// How many wait when nothing can go on any more.
async fn stuck() -> u64 {
    settle().await;
    tell_older(Instant::now())
}

/// Serves what `client` does, who says this first.
async fn floods(
    ask: &str,
    client: impl AsyncFnOnce(&mut DuplexStream, &Floods),
) -> Result<(), h1::server::Ended> {
    WATCHED_HERE.set(true);
    let long = Duration::from_secs(3_600);
    let times = h1::server::Times { head: long, idle: long, body: long };
    let ((mut near, far), service) = (tokio::io::duplex(1024), Floods::default());
    let talking = async {
        near.write_all(ask.as_bytes()).await.unwrap();
        settle().await;
        client(&mut near, &service).await;
        settle().await;
    };
    let serving = h1::server::serve(far, &service, times, pending());
    tokio::join!(serving, talking).0
}

#[tokio::test]
async fn an_answer_that_nobody_reads_is_given_up_and_one_that_is_read_slowly_is_not() {
    let ended = floods("GET / HTTP/1.1\r\nHost: x\r\n\r\n", async |near, _| {
        let mut some = [0; 256];
        survives(async || assert_eq!(near.read_exact(&mut some).await.unwrap(), 256)).await;
        assert_eq!(stuck().await, 1);
    })
    .await;
    assert!(matches!(ended, Err(h1::server::Ended::Shed)), "{ended:?}");
}

#[tokio::test]
async fn an_upload_that_stops_is_given_up_and_one_that_drips_is_not() {
    let ask = "POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n";
    let ended = floods(ask, async |near, service| {
        survives(async || near.write_all(b"x").await.unwrap()).await;
        assert_eq!(*service.broke.borrow(), None);
        assert_eq!(stuck().await, 1);
        settle().await;
        let broke = service.broke.borrow().clone();
        assert_eq!(broke.as_deref(), Some("memory is short, and the client sends nothing of it"));
        // What is left is the answer, which nobody reads.
        assert_eq!(stuck().await, 1);
    })
    .await;
    assert!(matches!(ended, Err(h1::server::Ended::Shed)), "{ended:?}");
}

#[tokio::test]
async fn a_body_that_nobody_wants_any_more_is_no_wait_of_its_own() {
    let ask = "POST /ignored HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n";
    let ended = floods(ask, async |_, _| {
        assert_eq!(stuck().await, 1, "the answer is all that waits");
    })
    .await;
    assert!(matches!(ended, Err(h1::server::Ended::Shed)), "{ended:?}");
}

#[tokio::test]
async fn a_stream_that_nobody_reads_is_given_up_and_one_that_is_read_slowly_is_not() {
    LocalSet::new().run_until(streams()).await;
}

async fn streams() {
    WATCHED_HERE.set(true);
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let (tasks, long) = (TaskGroup::new(), Duration::from_secs(3_600));
    let (times, streams) =
        (h2::server::Times { head: long, idle: long, body: long, streams: None }, tasks.clone());
    tasks.spawn_local("connection", async move {
        let service = Rc::new(Floods::default());
        drop(h2::server::serve(ours, Peer::Client, service, times, &streams, pending()).await);
    });
    let (mut sender, connection) = ::h2::client::handshake(theirs).await.unwrap();
    tasks.spawn_local("client", async move { drop(connection.await) });
    let mut ask = async || {
        sender = sender.clone().ready().await.unwrap();
        let request = Request::get("http://a.example/").body(()).unwrap();
        sender.send_request(request, true).unwrap().0.await.unwrap().into_body()
    };
    let mut answer = ask().await;
    settle().await;
    survives(async || {
        // Half a window is what it takes for a client to say that it has room again.
        let mut taken = 0;
        while taken < 40_000 {
            let piece = answer.data().await.unwrap().unwrap();
            answer.flow_control().release_capacity(piece.len()).unwrap();
            taken += piece.len();
        }
    })
    .await;
    assert_eq!(stuck().await, 1);
    let error = loop {
        if let Err(error) = answer.data().await.unwrap() {
            break error;
        }
    };
    assert_eq!(error.reason(), Some(::h2::Reason::ENHANCE_YOUR_CALM));
    tasks.stop();
}
