// SPDX-License-Identifier: Apache-2.0
//! Answers that do not go smoothly: those that break off where only the connection's end says
//! where they end, and interim ones that their client is slow to read.

use std::cell::RefCell;
use std::future::pending;
use std::io;
use std::rc::Rc;
use std::task::Context;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, LocalBoxStream};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::h1::server::{Ended, Service, Times, serve};
use crate::h1::{Incoming, Wrong};
use crate::http::interim::Interim;

const TIMES: Times = Times {
    head: Duration::from_secs(60),
    idle: Duration::from_secs(60),
    body: Duration::from_secs(60),
};

type Pieces = StreamBody<LocalBoxStream<'static, Result<Frame<Bytes>, io::Error>>>;

fn pieces(breaks: bool) -> Response<Pieces> {
    let data = stream::iter([Ok(Frame::data(Bytes::from_static(b"half")))]);
    let end = stream::iter(breaks.then(|| Err(io::Error::other("it broke"))));
    Response::new(StreamBody::new(data.chain(end).boxed_local()))
}

/// Answers in two pieces at `/whole`, and without the second one elsewhere.
struct Halves;

impl Service for Halves {
    type Body = Pieces;

    async fn call(&self, request: Request<Incoming>) -> Response<Pieces> {
        pieces(request.uri().path() != "/whole")
    }

    fn refuse(&self, _: Wrong) -> Response<Pieces> {
        pieces(false)
    }

    fn drive(_: &mut Pieces, _: &mut Context<'_>) {}
}

async fn halves(ask: &str) -> (Result<(), Ended>, io::Result<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (far, _) = listener.accept().await.unwrap();
    near.write_all(ask.as_bytes()).await.unwrap();
    let mut all = Vec::new();
    tokio::join!(serve(far, &Halves, TIMES, pending()), near.read_to_end(&mut all))
}

#[tokio::test]
async fn an_answer_cut_short_never_looks_whole() {
    // Of HTTP/1.0: nothing but the end of the connection says that it was all.
    let (ended, read) = halves("GET /whole HTTP/1.0\r\n\r\n").await;
    assert!(ended.is_ok() && read.is_ok(), "{ended:?} {read:?}");
    let (ended, read) = halves("GET /cut HTTP/1.0\r\n\r\n").await;
    assert!(matches!(ended, Err(Ended::Broke)), "{ended:?}");
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    // A chunked one has an end of its own, and what there is of it is not lost.
    let (ended, read) = halves("GET /cut HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(matches!(ended, Err(Ended::Broke)), "{ended:?}");
    assert!(read.is_ok(), "{read:?}");
}

/// Says much before its answer, which comes at once at `/at-once`, else when it is told to.
#[derive(Default)]
struct Talks {
    interim: Interim,
    go_on: Rc<Notify>,
}

const HINTS: usize = 24;

impl Service for Talks {
    type Body = Pieces;

    async fn call(&self, request: Request<Incoming>) -> Response<Pieces> {
        if request.uri().path() == "/quiet" {
            return pieces(false);
        }
        for n in 0..HINTS {
            let long = format!("{n}{}", "x".repeat(4_000));
            let hint = Response::builder().status(103).header("link", long).body(()).unwrap();
            self.interim.push(hint);
        }
        if request.uri().path() != "/at-once" {
            self.go_on.notified().await;
        }
        pieces(false)
    }

    fn refuse(&self, _: Wrong) -> Response<Pieces> {
        pieces(false)
    }

    fn interim(&self) -> Option<&Interim> {
        Some(&self.interim)
    }

    fn drive(_: &mut Pieces, _: &mut Context<'_>) {}
}

#[tokio::test]
async fn interim_answers_wait_for_a_slow_client_outside_of_its_buffer() {
    let talks = Talks::default();
    let (mut near, far) = tokio::io::duplex(1024);
    let seen = RefCell::new(String::new());
    let client = async {
        near.write_all(b"GET /later HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut first = [0u8; 100];
        near.read_exact(&mut first).await.unwrap();
        let left: Vec<_> = std::iter::from_fn(|| talks.interim.take()).collect();
        assert!(left.len() >= HINTS - 6, "{} of {HINTS} wait", left.len());
        left.into_iter().for_each(|head| talks.interim.push(head));
        let mut all = String::from_utf8(first.to_vec()).unwrap();
        let mut buffer = [0u8; 1024];
        while all.matches("\r\n\r\n").count() < HINTS {
            let n = near.read(&mut buffer).await.unwrap();
            all.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
        }
        talks.go_on.notify_one();
        near.write_all(b"GET /at-once HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let last = "GET /quiet HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        near.write_all(last.as_bytes()).await.unwrap();
        near.read_to_string(&mut all).await.unwrap();
        seen.replace(all);
    };
    let (ended, ()) = tokio::join!(serve(far, &talks, TIMES, pending()), client);
    assert!(ended.is_ok(), "{ended:?}");
    let all = seen.into_inner();
    let answers: Vec<&str> = all.split(" 200 OK").collect();
    let [first, second, third, _] = answers[..] else { panic!("{} answers", answers.len() - 1) };
    let hints = |text: &str| text.matches(" 103 ").count();
    assert_eq!(hints(first), HINTS);
    for n in 0..HINTS {
        assert!(first.contains(&format!("link: {n}x")), "{n}");
    }
    // Those without room are behind their answer by now, and of no other request.
    assert!((1..HINTS).contains(&hints(second)), "{}", hints(second));
    assert_eq!(hints(third), 0);
}
