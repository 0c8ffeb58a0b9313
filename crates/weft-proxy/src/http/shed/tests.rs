// SPDX-License-Identifier: Apache-2.0
//! Which uploads are given up while memory is short, and what is said of them: real bodies of both
//! codecs, and an upstream that takes as many pieces as it is told to.

use std::cell::RefCell;
use std::future::pending;
use std::rc::Rc;
use std::task::Context;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;
use tokio::task::LocalSet;
use tokio::time::Instant;
use weft_base::task::TaskGroup;

use super::super::serve::Received;
use super::*;
use crate::h1::Wrong;
use crate::h2::budget::Peer;
use crate::overload::stuck::tell;
use crate::overload::tests::WATCHED_HERE;
use crate::{h1, h2};

const LONG: Duration = Duration::from_secs(3_600);

/// An upstream that takes so many pieces of a body, and answers when it is told to.
struct Upstream {
    pieces: usize,
    answers: Notify,
    came: RefCell<Option<Came>>,
}

/// What was sent, or why not.
type Came = Result<Result<(), String>, (Cause, String)>;

impl Upstream {
    async fn attempt(&self, body: Replay) {
        let mut attempt = body.attempt();
        let sending = async {
            for _ in 0..self.pieces {
                match attempt.frame().await {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Ok(Err(error.to_string())),
                    None => break,
                }
            }
            self.answers.notified().await;
            Ok(Ok(()))
        };
        let came = unless_shed(&body, sending).await;
        let came = came.map_err(|refusal| (refusal.cause, refusal.detail));
        assert!(
            body.failure().is_none_or(|failure| failure.cause() == Cause::Shed),
            "{:?}",
            body.failure()
        );
        *self.came.borrow_mut() = Some(came);
    }
}

impl h1::server::Service for Upstream {
    type Body = Full<Bytes>;

    async fn call(&self, request: Request<h1::Incoming>) -> Response<Full<Bytes>> {
        let body = Received::H1(request.into_body(), Rc::default());
        self.attempt(Replay::new(body, 0)).await;
        Response::new(Full::default())
    }

    fn refuse(&self, _: Wrong) -> Response<Full<Bytes>> {
        unreachable!("nothing is wrong")
    }

    fn drive(_: &mut Full<Bytes>, _: &mut Context<'_>) {}
}

impl h2::server::Service for Upstream {
    type Body = Full<Bytes>;

    async fn call(&self, request: Request<h2::Incoming>) -> Response<Full<Bytes>> {
        self.attempt(Replay::new(Received::H2(request.into_body()), 0)).await;
        Response::new(Full::default())
    }

    fn refuse(&self, _: Wrong) -> Response<Full<Bytes>> {
        unreachable!("nothing is wrong")
    }

    fn drive(_: &mut Full<Bytes>, _: &mut Context<'_>) {}
}

async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

/// How many are told when nothing can go on any more.
async fn told() -> u64 {
    settle().await;
    let told = tell(u64::MAX, Duration::ZERO, Instant::now());
    settle().await;
    told
}

const HEAD: &str = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";

/// How many were told, and what came of a body that its client sends so far.
async fn over_h1(pieces: usize, body: &str) -> (u64, Option<Came>) {
    WATCHED_HERE.set(true);
    let upstream = Upstream { pieces, answers: Notify::new(), came: RefCell::default() };
    let times = h1::server::Times { head: LONG, idle: LONG, body: LONG };
    let (near, far) = tokio::io::duplex(64 * 1024);
    let talking = async {
        let mut near = near;
        near.write_all(format!("{HEAD}{body}").as_bytes()).await.unwrap();
        let told = told().await;
        upstream.answers.notify_one();
        settle().await;
        told
    };
    // It ends when its client leaves, or once it said what is wrong.
    let serving = h1::server::serve(far, &upstream, times, pending());
    let told = tokio::join!(serving, talking).1;
    (told, upstream.came.take())
}

fn shed(why: &str) -> Option<Came> {
    Some(Err((Cause::Shed, why.into())))
}

#[tokio::test]
async fn an_upstream_that_takes_nothing_more_is_given_up() {
    let came = over_h1(0, "1\r\nx\r\n").await;
    assert_eq!(came, (1, shed("the upstream takes nothing of the body")));
    // All of it is on its way, and none of it was taken yet.
    let came = over_h1(0, "1\r\nx\r\n0\r\n\r\n").await;
    assert_eq!(came, (1, shed("the upstream takes nothing of the body")));
    let came = over_h1(1, "1\r\nx\r\n1\r\ny\r\n").await;
    assert_eq!(came, (1, shed("the upstream has some of the body, and takes nothing more of it")));
}

#[tokio::test]
async fn a_request_that_its_upstream_has_whole_is_left_to_be_answered() {
    for pieces in [1, 2, 9] {
        let came = over_h1(pieces, "1\r\nx\r\n0\r\n\r\n").await;
        assert_eq!(came, (0, Some(Ok(Ok(())))), "{pieces}");
    }
}

#[tokio::test]
async fn a_client_that_sends_nothing_is_one_wait() {
    // The codec's own; the attempt hears of it as of any body that breaks off.
    let (told, came) = over_h1(9, "1\r\nx\r\n").await;
    let broke = "the client sends nothing of the body".to_owned();
    assert_eq!((told, came), (1, Some(Ok(Err(broke.clone())))));
    let came = LocalSet::new().run_until(over_h2(9)).await;
    assert_eq!(came, (1, shed(&broke)));
    let came = LocalSet::new().run_until(over_h2(0)).await;
    assert_eq!(came, (1, shed("the upstream takes nothing of the body")));
}

async fn over_h2(pieces: usize) -> (u64, Option<Came>) {
    WATCHED_HERE.set(true);
    let upstream = Rc::new(Upstream { pieces, answers: Notify::new(), came: RefCell::default() });
    let (times, tasks) =
        (h2::server::Times { head: LONG, idle: LONG, body: LONG, streams: None }, TaskGroup::new());
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let (service, streams) = (upstream.clone(), tasks.clone());
    tasks.spawn_local("connection", async move {
        drop(h2::server::serve(ours, Peer::Client, service, times, &streams, pending()).await);
    });
    let (sender, connection) = ::h2::client::handshake(theirs).await.unwrap();
    tasks.spawn_local("client", async move { drop(connection.await) });
    let request = Request::post("http://a.example/").body(()).unwrap();
    let (_answer, mut to) = sender.ready().await.unwrap().send_request(request, false).unwrap();
    to.send_data(Bytes::from_static(b"x"), false).unwrap();
    let told = told().await;
    tasks.stop();
    (told, upstream.came.take())
}
