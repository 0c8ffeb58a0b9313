// SPDX-License-Identifier: Apache-2.0
//! Connections that are kept and not trusted for the moment.

use std::cell::Cell;
use std::sync::Arc;

use http::Request;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use weft_base::task::TaskGroup;
use weft_model::MESH_PORT;

use super::*;
use crate::http::body::Replay;
use crate::tests::bed::config;
use crate::upstream::breaker::{Breaker, Grant, Quotas};
use crate::upstream::connect::{Dialer, Peer};
use crate::upstream::pool::{Closed, PoolContext, Wire};

const LIMIT: Duration = Duration::from_secs(60);

fn pool(listener: &TcpListener) -> Rc<Pool> {
    let config = Arc::new(config("sidecar~shop~a"));
    let dialer = Dialer { source: None, tls: None, mesh_port: MESH_PORT, config };
    let context = PoolContext {
        dialer: Arc::new(dialer),
        tasks: TaskGroup::new(),
        opened: Cell::new(0),
        noting: false,
    };
    Pool::new(Peer::plain(listener.local_addr().unwrap()), Rc::new(context))
}

fn how() -> How<'static> {
    How {
        wire: Wire::H1,
        connect_timeout: LIMIT,
        connections: None,
        careful: false,
        again: Cell::new(true),
        body: Replay::default(),
        interim: None,
        grant: Grant::default(),
        on: None,
    }
}

/// One request; its answer is read, and its connection is kept.
async fn ask(pool: &Rc<Pool>) {
    ask_as(pool, how()).await;
}

async fn ask_as(pool: &Rc<Pool>, how: How<'_>) {
    let head = Request::builder().uri("/").header("host", "a").body(()).unwrap().into_parts().0;
    let due = Due::At(Instant::now() + LIMIT, LIMIT);
    let sent = pool.send_h1((&head, Instead::default()), &how, due).await;
    let (answer, lease) = sent.unwrap().unwrap();
    lease.finished(&mut answer.into_body());
}

async fn answer(stream: &mut TcpStream) {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        assert!(stream.read_buf(&mut read).await.unwrap() > 0);
    }
    stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
}

#[tokio::test]
async fn a_connection_that_is_not_trusted_is_no_room_and_gives_way() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let pool = pool(&listener);
    let accepting = async {
        let mut stream = listener.accept().await.unwrap().0;
        answer(&mut stream).await;
        stream
    };
    let breaker = Breaker::new(Some(Quotas::new(1)), 0);
    let counted = How { grant: Grant::of(breaker.clone(), 1, None), ..how() };
    let (_first, ()) = tokio::join!(accepting, ask_as(&pool, counted));
    assert!(pool.has_room(&how()));
    // Another request would open a connection: whoever counts them has to know that.
    pool.doubt.set_mute(true);
    assert!(!pool.has_room(&how()));
    assert_eq!(pool.connections(), 1);
    assert_eq!(pool.close_idle(&Breaker::new(Some(Quotas::new(1)), 0)), None, "it is another's");
    assert_eq!(pool.close_idle(&breaker), Some(Closed::Now));
    assert_eq!(pool.connections(), 0);
}

#[tokio::test]
async fn an_answer_on_one_connection_is_trust_for_those_that_are_kept() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let pool = pool(&listener);
    let both = async {
        let mut first = listener.accept().await.unwrap().0;
        let mut second = listener.accept().await.unwrap().0;
        answer(&mut first).await;
        answer(&mut second).await;
        (first, second)
    };
    let ((mut first, mut second), (), ()) = tokio::join!(both, ask(&pool), ask(&pool));
    assert_eq!(pool.connections(), 2);
    // One is asked again, and what was sent seems to be lost for a while.
    let answering = async {
        let (mut one, mut other) = ([0; 1], [0; 1]);
        let asked = tokio::select! {
            read = first.peek(&mut one) => read.map(|_| true),
            read = second.peek(&mut other) => read.map(|_| false),
        };
        pool.doubt.set_mute(true);
        assert!(!pool.has_room(&how()));
        answer(if asked.unwrap() { &mut first } else { &mut second }).await;
    };
    tokio::join!(answering, ask(&pool));
    assert!(pool.has_room(&how()), "the other one too");
    assert_eq!((pool.connections(), pool.context.opened.get()), (2, 2));
}
