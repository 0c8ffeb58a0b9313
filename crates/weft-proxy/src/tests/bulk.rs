// SPDX-License-Identifier: Apache-2.0
//! Bodies that do not fit anywhere: they stream through, both ways, at the reader's pace.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use weft_base::task::TaskGroup;
use weft_model::*;

use super::bed::*;
use super::mtls::{Ca, meshed, peer, server};

type Sent = BoxBody<Bytes, Infallible>;

/// Sends back what it gets, as it comes.
async fn echo() -> Server {
    Server::raw(|_, stream| async move {
        let service = hyper::service::service_fn(|request: Request<Incoming>| async move {
            Ok::<_, Infallible>(Response::new(request.into_body()))
        });
        let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
        let _ = builder.serve_connection(TokioIo::new(stream), service).await;
    })
    .await
}

/// A body fed by hand.
fn fed() -> (mpsc::Sender<Bytes>, Sent) {
    let (tx, rx) = mpsc::channel::<Bytes>(1);
    let stream = futures_util::stream::unfold(rx, |mut rx| async move {
        rx.recv().await.map(|bytes| (Ok::<_, Infallible>(Frame::data(bytes)), rx))
    });
    (tx, StreamBody::new(stream).boxed())
}

async fn through_the_mesh(protocol: Protocol, transport: Transport) -> (Ca, Bed, Bed, Server) {
    let ca = Ca::new();
    let app = echo().await;
    let far = server(&ca, app.address, protocol).await;
    let near = peer(&ca, &far, protocol, vec![meshed(app.address, "user", transport)]).await;
    (ca, far, near, app)
}

async fn h1(
    to: std::net::SocketAddr,
) -> (hyper::client::conn::http1::SendRequest<Sent>, TaskGroup) {
    let io = TokioIo::new(TcpStream::connect(to).await.unwrap());
    let (sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    let tasks = TaskGroup::new();
    tasks.spawn("client", async move { drop(connection.await) });
    (sender, tasks)
}

fn ask(body: Sent) -> Request<Sent> {
    Request::post("http://user/").header("host", "user").body(body).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_pass_whole_in_both_directions() {
    for (protocol, transport) in
        [(Protocol::Http1, Transport::MeshH1), (Protocol::Http2, Transport::MeshH2)]
    {
        let (_ca, _far, near, _app) = through_the_mesh(protocol, transport).await;
        let (mut sender, _tasks) = h1(near.outbound()).await;
        let (feed, body) = fed();
        let chunks = 20 * 16;
        let sending = async move {
            for i in 0..chunks {
                let fill = u8::try_from(i % 251).unwrap();
                feed.send(Bytes::from(vec![fill; 64 * 1024])).await.unwrap();
            }
        };
        let receiving = async {
            let mut body = sender.send_request(ask(body)).await.unwrap().into_body();
            let (mut at, mut wrong) = (0usize, 0usize);
            while let Some(frame) = body.frame().await {
                let Ok(data) = frame.unwrap().into_data() else { continue };
                for byte in &data {
                    wrong += usize::from(usize::from(*byte) != (at / (64 * 1024)) % 251);
                    at += 1;
                }
            }
            (at, wrong)
        };
        let ((), got) = tokio::join!(sending, receiving);
        assert_eq!(got, (chunks * 64 * 1024, 0), "{protocol:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bidirectional_streams_answer_before_the_request_ends() {
    let (_ca, _far, near, _app) = through_the_mesh(Protocol::Grpc, Transport::MeshH2).await;
    let address = near.door(|d| matches!(d, crate::table::Door::Upstream { .. }));
    let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let tasks = TaskGroup::new();
    tasks.spawn("client", async move { drop(connection.await) });
    let (feed, body) = fed();
    feed.send(Bytes::from_static(b"one")).await.unwrap();
    let mut answer = sender.send_request(ask(body)).await.unwrap().into_body();
    for message in ["one", "two", "three"] {
        let frame = answer.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), message);
        if message != "three" {
            let next = if message == "one" { "two" } else { "three" };
            feed.send(Bytes::from_static(next.as_bytes())).await.unwrap();
        }
    }
    drop(feed);
    assert!(answer.collect().await.unwrap().to_bytes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stops_stops_the_writer() {
    let (_ca, _far, near, _app) = through_the_mesh(Protocol::Http1, Transport::MeshH1).await;
    let (mut sender, _tasks) = h1(near.outbound()).await;
    let (feed, body) = fed();
    let answer = sender.send_request(ask(body));
    // Nobody reads the answer: soon nothing more is taken of the request either.
    let chunk = Bytes::from(vec![0u8; 256 * 1024]);
    let mut taken = 0;
    let pushing = async {
        while tokio::time::timeout(Duration::from_millis(500), feed.send(chunk.clone()))
            .await
            .is_ok()
        {
            taken += chunk.len();
            assert!(taken < 256 * 1024 * 1024, "the proxies take without limit");
        }
    };
    let (answer, ()) = tokio::join!(answer, pushing);
    drop(feed);
    let body = answer.unwrap().into_body().collect().await.unwrap().to_bytes();
    assert!(body.len() >= taken, "{} of {taken}", body.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn chunked_and_counted_bodies_keep_their_length() {
    let (_ca, _far, near, _app) = through_the_mesh(Protocol::Http1, Transport::MeshH2).await;
    let (mut sender, _tasks) = h1(near.outbound()).await;
    let full = Full::new(Bytes::from_static(b"12345")).map_err(|e| match e {}).boxed();
    let response = sender.send_request(ask(full)).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "12345");
    let (feed, body) = fed();
    feed.send(Bytes::from_static(b"abc")).await.unwrap();
    drop(feed);
    sender.ready().await.unwrap();
    let response = sender.send_request(ask(body)).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "abc");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_comes_before_the_request_ends_is_delivered() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    // Refuses by the head alone, and closes on what is on its way.
    let strict = Server::raw(|_, mut stream| async move {
        let mut seen = vec![0u8; 4096];
        let _ = stream.read(&mut seen).await;
        let no = b"HTTP/1.1 413 Too Large\r\ncontent-length: 5\r\nconnection: close\r\n\r\nlarge";
        let _ = stream.write_all(no).await;
    })
    .await;
    let bed = Bed::sidecar(http_service("user", &[strict.address])).await;
    let door = bed.door(|d| matches!(d, crate::table::Door::Upstream { .. }));
    for round in 0..20 {
        let mut stream = TcpStream::connect(door).await.unwrap();
        let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 20000000\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        // A client that reads only once it has sent everything it can.
        let chunk = vec![b'x'; 256 * 1024];
        for _ in 0..76 {
            if stream.write_all(&chunk).await.is_err() {
                break;
            }
        }
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all).await;
        let all = String::from_utf8_lossy(&all);
        assert!(all.starts_with("HTTP/1.1 413 "), "round {round}: {all:?}");
        assert!(all.contains("connection: close"), "round {round}: {all:?}");
        assert!(all.ends_with("large"), "round {round}: {all:?}");
    }
}
