// SPDX-License-Identifier: Apache-2.0
//! What a client that reads nothing makes its proxy hold: one piece of each answer and the next,
//! however many it asked for and however wide its windows are.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::pending;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use tokio::sync::{Notify, Semaphore};
use weft_base::task::TaskGroup;

use crate::h1::Wrong;
use crate::h2::Incoming;
use crate::h2::budget::Peer;
use crate::h2::server::{Service, Times, serve};

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
async fn answers_that_nobody_reads_are_held_by_the_piece() {
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
    let times = Times { head: long, idle: long, body: long };
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
