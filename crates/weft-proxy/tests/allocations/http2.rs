// SPDX-License-Identifier: Apache-2.0
//! The same of HTTP/2 in and out: the h2 crate has streams, tables and slabs of its own to keep, so
//! it is not nothing; but it may only become less.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, Response};
use tokio::net::{TcpListener, TcpStream};
use weft_base::task::TaskGroup;
use weft_model::Protocol;

use super::{start, sys};

const AT_A_TIME: usize = 10;
const WARM: usize = 200;
const ROUNDS: usize = 200;
/// Allocations per request: 14 were counted, and some room for the order of things.
const MOST: u64 = 18;

/// An upstream of HTTP/2 that answers every request with 1 KiB.
async fn upstream(tasks: TaskGroup) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let streams = tasks.clone();
    tasks.spawn("upstream", async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            streams.spawn("connection", async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let head = Response::builder().header("content-type", "text/plain");
                    let mut body = respond.send_response(head.body(()).unwrap(), false).unwrap();
                    body.send_data(Bytes::from_static(&[b'x'; 1024]), true).unwrap();
                }
            });
        }
    });
    address
}

async fn ask(sender: h2::client::SendRequest<Bytes>) {
    let request = Request::get("http://shop.example/users/7?x=1").body(()).unwrap();
    let (answer, _) = sender.ready().await.unwrap().send_request(request, true).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 200);
    let (mut body, mut bytes) = (answer.into_body(), 0);
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        bytes += data.len();
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    assert_eq!(bytes, 1024);
}

#[test]
fn a_request_of_http2_allocates_no_more_than_it_did() {
    let _turn = super::TURN.lock().unwrap_or_else(|broken| broken.into_inner());
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("access.log");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let tasks = TaskGroup::new();
    let allocations = runtime.block_on(async {
        let upstream = upstream(tasks.clone()).await;
        let (proxy, _feed, door) = start(&log, upstream, Protocol::Http2).await;
        let stream = TcpStream::connect(door).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        tasks.spawn("client", async move { drop(connection.await) });
        let mut before = 0;
        for round in 0..WARM + ROUNDS {
            if round == WARM {
                super::written(&log, WARM * AT_A_TIME).await;
                before = sys::of_workers();
            }
            let all = (0..AT_A_TIME).map(|_| ask(sender.clone()));
            futures_util::future::join_all(all).await;
        }
        let allocations = sys::of_workers() - before;
        drop(sender);
        super::written(&log, (WARM + ROUNDS) * AT_A_TIME).await;
        assert!(proxy.drain().await);
        allocations
    });
    tasks.stop();
    let each = allocations.div_ceil((ROUNDS * AT_A_TIME) as u64);
    println!("{each} allocations per request");
    assert!(each <= MOST, "{each} allocations per request");
}
