// SPDX-License-Identifier: Apache-2.0
//! What a client that reads nothing makes its proxy hold: on its own side one piece of each answer
//! and the next, however many it asked for and however wide its windows are; on an upstream's
//! connection of HTTP/2 what one stream's window lets in, and nothing of the others' windows. The
//! same of an upload that its upstream does not read.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::{Request, Response};
use http_body::{Body, Frame};
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore};
use weft_base::task::TaskGroup;
use weft_model::Protocol;

use super::passing::{declared, http2};
use crate::h1::Wrong;
use crate::h2::budget::Peer;
use crate::h2::server::{Service, Times, serve};
use crate::h2::{Incoming, STREAM_WINDOW};
use crate::tests::bed::wait_until;

const STREAMS: usize = 64;
const PIECE: usize = 16 * 1024;

/// Answers without an end, once they may begin.
struct Endless {
    calls: Cell<usize>,
    called: Notify,
    begin: Semaphore,
    taken: Rc<Cell<usize>>,
}

/// Counts what is taken of it.
struct Flood(Rc<Cell<usize>>);

impl Body for Flood {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.set(self.0.get() + PIECE);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[0; PIECE])))))
    }
}

impl Service for Endless {
    type Body = Flood;

    async fn call(&self, _: Request<Incoming>) -> Response<Flood> {
        self.calls.set(self.calls.get() + 1);
        self.called.notify_one();
        self.begin.acquire().await.unwrap().forget();
        Response::new(Flood(self.taken.clone()))
    }

    fn refuse(&self, _: Wrong) -> Response<Flood> {
        unreachable!("nothing is wrong")
    }

    fn drive(_: &mut Flood, _: &mut Context<'_>) {}
}

#[tokio::test]
async fn reg_22_answers_that_nobody_reads_are_held_by_the_piece() {
    tokio::task::LocalSet::new().run_until(stuck()).await;
}

async fn stuck() {
    let service = Rc::new(Endless {
        calls: Cell::new(0),
        called: Notify::new(),
        begin: Semaphore::new(0),
        taken: Rc::default(),
    });
    let (ours, theirs) = tokio::io::duplex(1024);
    let (tasks, long) = (TaskGroup::new(), Duration::from_secs(60));
    let times = Times { head: long, idle: long, body: long, streams: None };
    let (serving, streams) = (service.clone(), tasks.clone());
    tasks.spawn_local("connection", async move {
        drop(serve(ours, Peer::Client, serving, times, &streams, pending()).await);
    });
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(1 << 24).initial_connection_window_size(1 << 30);
    let (mut sender, mut connection) = builder.handshake::<_, Bytes>(theirs).await.unwrap();
    let asking = async {
        let mut answers = Vec::new();
        for _ in 0..STREAMS {
            sender = sender.clone().ready().await.unwrap();
            let request = Request::get("http://a.example/").body(()).unwrap();
            answers.push(sender.send_request(request, true).unwrap());
        }
        while service.calls.get() < STREAMS {
            service.called.notified().await;
        }
        answers
    };
    let answers = tokio::select! {
        answers = asking => answers,
        ended = &mut connection => unreachable!("{ended:?}"),
    };
    // From here on its client reads nothing.
    service.begin.add_permits(STREAMS);
    let mut taken = 0;
    loop {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        if std::mem::replace(&mut taken, service.taken.get()) == service.taken.get() {
            break;
        }
    }
    // What is queued, and the piece that waits; and something on the way to the socket.
    let most = STREAMS * 2 * PIECE + 128 * 1024;
    assert!((STREAMS * PIECE..=most).contains(&taken), "{taken} bytes were taken, {most} may be");
    drop((answers, connection));
    tasks.stop();
}

/// Sends so many bytes, as fast as the window opens.
async fn push(to: &mut SendStream<Bytes>, bytes: usize, sent: &AtomicUsize) {
    let mut left = bytes;
    while left > 0 {
        to.reserve_capacity(left.min(PIECE));
        while to.capacity() == 0 {
            let Some(Ok(_)) = poll_fn(|cx| to.poll_capacity(cx)).await else { return };
        }
        let piece = to.capacity().min(left);
        if to.send_data(Bytes::from(vec![0; piece]), piece == left).is_err() {
            return;
        }
        left -= piece;
        sent.fetch_add(piece, Ordering::SeqCst);
    }
}

async fn read(mut body: RecvStream) -> usize {
    let mut bytes = 0;
    while let Some(piece) = body.data().await {
        let piece = piece.unwrap().len();
        body.flow_control().release_capacity(piece).unwrap();
        bytes += piece;
    }
    bytes
}

/// Requests whose body nobody reads, nor their answer's, share both connections with one that all
/// is read of.
#[tokio::test]
async fn a_stream_that_nobody_reads_leaves_the_others_their_windows() {
    const LIVE: usize = 1 << 20;
    const STUCK: usize = 4;
    let (down, up) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let sent = down.clone();
    let origin = http2(move |request, mut respond| {
        let sent = sent.clone();
        async move {
            let mut to = respond.send_response(Response::new(()), false).unwrap();
            if request.uri().path() == "/stuck" {
                push(&mut to, usize::MAX, &sent).await;
                drop(request);
            } else {
                assert_eq!(read(request.into_body()).await, LIVE);
                push(&mut to, LIVE, &AtomicUsize::new(0)).await;
            }
        }
    });
    let front = declared(origin.await, Protocol::Http2).await;
    let stream = TcpStream::connect(front.bed.listener()).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder.initial_connection_window_size(1 << 30);
    let (sender, connection) = builder.handshake::<_, Bytes>(stream).await.unwrap();
    let tasks = TaskGroup::new();
    tasks.spawn("client", async move { drop(connection.await) });
    let post = async |path: &str, bytes, sent: Arc<AtomicUsize>| {
        let request = Request::post(format!("http://a.example{path}")).body(()).unwrap();
        let mut sender = sender.clone().ready().await.unwrap();
        let (answer, mut to) = sender.send_request(request, false).unwrap();
        tasks.spawn("upload", async move { push(&mut to, bytes, &sent).await });
        answer.await.unwrap().into_body()
    };
    let mut unread = Vec::new();
    for _ in 0..STUCK {
        unread.push(post("/stuck", usize::MAX, up.clone()).await);
    }
    // The stream's window at the proxy, that of its next, and what is between them.
    let (least, most) = (STUCK * STREAM_WINDOW as usize, STUCK * 512 * 1024);
    let (last, still) = (Cell::new(0), Cell::new(0));
    wait_until("both ways are stuck", async || {
        let ways = [&down, &up].map(|sent| sent.load(Ordering::SeqCst));
        let now = ways.iter().sum();
        still.set(if last.replace(now) == now { still.get() + 1 } else { 0 });
        // A machine that stands still is not what they are stuck by.
        still.get() >= 40 && ways.iter().all(|sent| *sent >= least)
    })
    .await;
    for sent in [&down, &up] {
        let sent = sent.load(Ordering::SeqCst);
        assert!(sent <= most, "{sent} bytes were sent, {most} may be");
    }
    let live = async { read(post("/live", LIVE, Arc::default()).await).await };
    let live = tokio::time::timeout(Duration::from_secs(60), live).await;
    assert_eq!(live.expect("the live stream is stuck, too"), LIVE);
    assert_eq!(front.origin.hits(), 1, "connections to the upstream");
    drop(unread);
}

/// Nobody reads one stream, and what comes of it is more frames than the h2 crate would keep.
#[tokio::test]
async fn small_frames_that_nobody_reads_end_no_connection_that_others_share() {
    const FRAMES: usize = 100_000;
    const LIVE: usize = 1 << 16;
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    let origin = http2(move |request, mut respond| {
        let sent = counted.clone();
        async move {
            let mut to = respond.send_response(Response::new(()), false).unwrap();
            if request.uri().path() == "/live" {
                return push(&mut to, LIVE, &sent).await;
            }
            for n in 0..FRAMES {
                to.reserve_capacity(1);
                while to.capacity() == 0 {
                    let Some(Ok(_)) = poll_fn(|cx| to.poll_capacity(cx)).await else { return };
                }
                let byte = Bytes::copy_from_slice(&[u8::try_from(n % 251).unwrap()]);
                to.send_data(byte, n + 1 == FRAMES).unwrap();
                sent.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    let front = declared(origin.await, Protocol::Http2).await;
    let stream = TcpStream::connect(front.bed.listener()).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(1_000).initial_connection_window_size(1 << 24);
    let (sender, connection) = builder.handshake::<_, Bytes>(stream).await.unwrap();
    let tasks = TaskGroup::new();
    tasks.spawn("client", async move { drop(connection.await) });
    let ask = async |path: &str| {
        let request = Request::get(format!("http://a.example{path}")).body(()).unwrap();
        let mut sender = sender.clone().ready().await.unwrap();
        sender.send_request(request, true).unwrap().0.await.unwrap().into_body()
    };
    let mut slow = ask("/slow").await;
    wait_until("all of it is on its way", async || sent.load(Ordering::SeqCst) == FRAMES).await;
    assert_eq!(read(ask("/live").await).await, LIVE);
    assert_eq!(front.origin.hits(), 1, "connections to the upstream");
    // And nothing of it is lost, once it is read.
    let mut n = 0;
    while let Some(piece) = slow.data().await {
        let piece = piece.unwrap();
        slow.flow_control().release_capacity(piece.len()).unwrap();
        for byte in piece {
            assert_eq!(usize::from(byte), n % 251, "byte {n}");
            n += 1;
        }
    }
    assert_eq!(n, FRAMES);
}
