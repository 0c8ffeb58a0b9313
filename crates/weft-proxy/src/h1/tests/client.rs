// SPDX-License-Identifier: Apache-2.0
//! An upstream's connection over an in-memory stream: what is sent, what an answer means, and
//! when the connection may be used again.

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, request, response};
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::BoxBody};
use hyper::body::Frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::Instant;

use crate::h1::Exchange;
use crate::h1::client::Failure;
use crate::h1::wrong::Wrong;

type Sent = BoxBody<Bytes, std::io::Error>;
type Under = Exchange<DuplexStream, Sent>;

fn empty() -> Sent {
    Empty::new().map_err(|e| match e {}).boxed()
}

fn full(text: &'static str) -> Sent {
    Full::new(Bytes::from_static(text.as_bytes())).map_err(|e| match e {}).boxed()
}

/// A body of unknown length.
fn pieces(all: Vec<Result<Bytes, std::io::Error>>) -> Sent {
    let frames = all.into_iter().map(|piece| piece.map(Frame::data));
    BodyExt::boxed(StreamBody::new(futures_util::stream::iter(frames)))
}

fn head(method: &str, headers: &[(&'static str, &'static str)]) -> request::Parts {
    let mut builder = Request::builder().method(method).uri("/x?y").header("host", "a");
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(()).unwrap().into_parts().0
}

/// An exchange and the peer's end of its stream.
fn pair(size: usize) -> (Under, DuplexStream) {
    let (near, far) = tokio::io::duplex(size);
    (Exchange::new(near), far)
}

async fn sent(under: &mut Under) -> Result<response::Parts, Failure> {
    poll_fn(|cx| under.poll_head(cx)).await
}

async fn body(under: &mut Under) -> Result<String, String> {
    let mut all = String::new();
    while let Some(frame) = poll_fn(|cx| under.poll_frame(cx)).await {
        match frame?.into_data() {
            Ok(data) => all.push_str(&String::from_utf8_lossy(&data)),
            Err(frame) => all.push_str(&format!("{:?}", frame.into_trailers().unwrap())),
        }
    }
    Ok(all)
}

/// Sends one request to a peer that says `answer` at once and may close; what it got, and the
/// answer with its body.
async fn exchange(
    request: (request::Parts, Sent),
    answer: &str,
) -> (String, Result<(u16, Result<String, String>), Failure>, bool) {
    let (mut under, mut peer) = pair(64 * 1024);
    under.begin(&request.0, request.1);
    peer.write_all(answer.as_bytes()).await.unwrap();
    peer.shutdown().await.unwrap();
    let result = match sent(&mut under).await {
        Ok(parts) => Ok((parts.status.as_u16(), body(&mut under).await)),
        Err(failure) => Err(failure),
    };
    let reusable = under.is_reusable();
    drop(under);
    let mut got = String::new();
    peer.read_to_string(&mut got).await.unwrap();
    (got, result, reusable)
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// The answer is whole all the same, and its connection may be used again.
#[tokio::test]
async fn reg_10_an_answers_trailers_lose_what_only_headers_may_have() {
    for line in ["Content-Length: 3", "Transfer-Encoding: chunked", "Host: b", "X-Weft-Flags: UC"] {
        for (more, kept) in [("", ""), ("X-Sum: 9\r\n", "{\"x-sum\": \"9\"}")] {
            let answer = format!(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
                 3\r\nabc\r\n0\r\n{more}{line}\r\n\r\n"
            );
            let (_, result, reusable) = exchange((head("GET", &[]), empty()), &answer).await;
            let (status, body) = result.unwrap();
            let want = Ok(format!("abc{kept}"));
            assert_eq!((status, body), (200, want), "it is kept: {line}");
            assert!(reusable, "{line}");
        }
    }
}

#[tokio::test]
async fn requests_are_framed_by_their_bodies() {
    let chunks = || pieces(vec![Ok(Bytes::from_static(b"abc")), Ok(Bytes::from(vec![b'x'; 2000]))]);
    for (request, expected) in [
        ((head("GET", &[]), empty()), "GET /x?y HTTP/1.1\r\nhost: a\r\n\r\n".to_owned()),
        (
            (head("POST", &[]), empty()),
            "POST /x?y HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n".into(),
        ),
        (
            (head("POST", &[]), full("abc")),
            "POST /x?y HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc".into(),
        ),
        (
            // What the headers say of it is never passed on beside what it is.
            (head("POST", &[("transfer-encoding", "chunked")]), full("abc")),
            "POST /x?y HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc".into(),
        ),
        (
            (head("PUT", &[("te", "trailers")]), chunks()),
            format!(
                "PUT /x?y HTTP/1.1\r\nhost: a\r\nte: trailers\r\nconnection: te\r\n\
                 transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n7d0\r\n{}\r\n0\r\n\r\n",
                "x".repeat(2000)
            ),
        ),
        (
            (head("PUT", &[("content-length", "2003")]), chunks()),
            format!(
                "PUT /x?y HTTP/1.1\r\nhost: a\r\ncontent-length: 2003\r\n\r\nabc{}",
                "x".repeat(2000)
            ),
        ),
    ] {
        let (got, result, reusable) = exchange(request, OK).await;
        assert_eq!(got, expected);
        assert_eq!(result.unwrap(), (200, Ok("ok".into())));
        assert!(reusable, "{expected}");
    }
}

#[tokio::test]
async fn reg_13_a_body_that_is_not_as_long_as_it_says_never_completes() {
    for length in ["2", "4"] {
        let request = head("POST", &[("content-length", length)]);
        let (mut under, mut peer) = pair(1024);
        under.begin(&request, pieces(vec![Ok(Bytes::from_static(b"abc"))]));
        let sending = tokio::time::timeout(std::time::Duration::from_secs(60), sent(&mut under));
        let failure = sending.await.expect("passed on as whole").unwrap_err();
        assert!(matches!(failure, Failure::Body(_)), "{failure:?}");
        assert!(!under.is_reusable());
        drop(under);
        let mut got = String::new();
        peer.read_to_string(&mut got).await.unwrap();
        assert!(!got.contains("abc\r\n"), "{got}");
    }
}

#[tokio::test]
async fn answers_end_where_they_say_and_nowhere_else() {
    let get = || (head("GET", &[]), empty());
    for (answer, status, text, kept) in [
        (OK, 200, "ok", true),
        ("HTTP/1.1 204 No Content\r\n\r\n", 204, "", true),
        ("HTTP/1.1 304 X\r\ncontent-length: 9\r\n\r\n", 304, "", true),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            200,
            "ok",
            true,
        ),
        (
            "HTTP/1.1 103 X\r\nlink: a\r\n\r\nHTTP/1.1 100 X\r\n\r\nHTTP/1.1 204 X\r\n\r\n",
            204,
            "",
            true,
        ),
        ("HTTP/1.1 200 OK\r\n\r\nuntil the end", 200, "until the end", false),
        ("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", 200, "ok", false),
        ("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok", 200, "ok", false),
        // More than was asked for: what follows cannot be the next answer.
        ("HTTP/1.1 204 X\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 204, "", false),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok!", 200, "ok", false),
    ] {
        let (_, result, reusable) = exchange(get(), answer).await;
        assert_eq!(result.unwrap(), (status, Ok(text.into())), "{answer}");
        assert_eq!(reusable, kept, "{answer}");
    }
    for (answer, why) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok", Wrong::Truncated),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n", Wrong::Truncated),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nokx", Wrong::ChunkEnd),
    ] {
        let (_, result, reusable) = exchange(get(), answer).await;
        assert_eq!(result.unwrap(), (200, Err(why.to_string())), "{answer}");
        assert!(!reusable, "{answer}");
    }
}

#[tokio::test]
async fn failures_say_what_may_be_sent_again() {
    let get = || (head("GET", &[]), empty());
    let failure =
        |answer: &'static str| async move { exchange(get(), answer).await.1.unwrap_err() };
    assert!(matches!(failure("").await, Failure::Reset { silent: true, .. }));
    assert!(matches!(failure("HTTP/1.1 2").await, Failure::Reset { silent: false, .. }));
    assert!(matches!(failure("SSH-2.0\r\n").await, Failure::Garbage(Wrong::StatusLine)));
    let switched = "HTTP/1.1 101 X\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n";
    assert!(matches!(failure(switched).await, Failure::Garbage(Wrong::Switched)));
    // The peer was gone before anything was written.
    let (mut under, peer) = pair(1024);
    drop(peer);
    under.begin(&head("GET", &[]), empty());
    let failure = sent(&mut under).await.unwrap_err();
    assert!(matches!(failure, Failure::Unsent(_)), "{failure:?}");
    // The client's own body broke.
    let (mut under, _peer) = pair(1024);
    under.begin(&head("POST", &[]), pieces(vec![Err(std::io::Error::other("gone"))]));
    assert!(matches!(sent(&mut under).await.unwrap_err(), Failure::Body(_)));
}

#[tokio::test]
async fn an_early_answer_is_read_though_the_request_cannot_be_sent() {
    let (near, mut far) = tokio::io::duplex(16 * 1024);
    let mut under: Under = Exchange::new(near);
    let endless = vec![Ok(Bytes::from(vec![b'x'; 64 * 1024]))];
    under.begin(&head("POST", &[]), pieces(endless));
    let refuses = async move {
        let mut some = [0u8; 100];
        far.read_exact(&mut some).await.unwrap();
        far.write_all(b"HTTP/1.1 413 X\r\ncontent-length: 2\r\n\r\nno").await.unwrap();
        // And closes on the rest.
    };
    let (parts, ()) = tokio::join!(sent(&mut under), refuses);
    assert_eq!(parts.unwrap().status, 413);
    assert_eq!(body(&mut under).await.unwrap(), "no");
    assert!(!under.is_reusable());
}

#[tokio::test]
async fn a_held_body_waits_for_100_or_for_a_second() {
    let request = || (head("POST", &[("expect", "100-continue")]), full("abc"));
    // Told to go on: a busy machine is late now and then, but not each time.
    let mut took = Duration::MAX;
    for _ in 0..20 {
        took = took.min(told_to_go_on(request()).await);
        if took < Duration::from_millis(900) {
            break;
        }
    }
    assert!(took < Duration::from_millis(900), "{took:?}");
    // Never told.
    let (mut under, mut peer) = pair(1024);
    let (parts, sent_body) = request();
    under.begin(&parts, sent_body);
    let began = Instant::now();
    let silent = async {
        let mut got = String::new();
        while !got.ends_with("abc") {
            let mut some = [0u8; 256];
            let n = peer.read(&mut some).await.unwrap();
            got.push_str(std::str::from_utf8(&some[..n]).unwrap());
        }
        peer.write_all(OK.as_bytes()).await.unwrap();
    };
    let (answered, ()) = tokio::join!(sent(&mut under), silent);
    assert_eq!(answered.unwrap().status, 200);
    assert!(began.elapsed() >= Duration::from_secs(1));
    // Refused: the body is never sent, and the connection is of no more use.
    let (got, result, reusable) =
        exchange(request(), "HTTP/1.1 417 X\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(result.unwrap(), (417, Ok(String::new())));
    assert!(got.ends_with("\r\n\r\n") && !reusable, "{got}");
}

/// What it takes until a body has gone whose head is answered with 100.
async fn told_to_go_on((parts, sent_body): (request::Parts, Sent)) -> Duration {
    let (mut under, mut peer) = pair(1024);
    let began = Instant::now();
    under.begin(&parts, sent_body);
    let tells = async {
        let mut got = vec![0u8; 1024];
        let n = peer.read(&mut got).await.unwrap();
        assert!(got[..n].ends_with(b"\r\n\r\n"), "{got:?}");
        peer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
        let n = peer.read(&mut got).await.unwrap();
        assert_eq!(&got[..n], b"abc");
        peer.write_all(OK.as_bytes()).await.unwrap();
    };
    let (answered, ()) = tokio::join!(sent(&mut under), tells);
    assert_eq!(answered.unwrap().status, 200);
    began.elapsed()
}

#[tokio::test]
async fn an_idle_connection_is_trusted_only_while_it_is_silent() {
    let (mut under, mut peer) = pair(1024);
    for _ in 0..3 {
        under.begin(&head("GET", &[]), empty());
        peer.write_all(OK.as_bytes()).await.unwrap();
        sent(&mut under).await.unwrap();
        assert_eq!(body(&mut under).await.unwrap(), "ok");
        assert!(under.is_reusable() && under.is_silent());
    }
    peer.write_all(b"HTTP/1.1 408 X\r\n\r\n").await.unwrap();
    assert!(!under.is_silent());
    let (mut under, peer) = pair(1024);
    assert!(under.is_silent());
    drop(peer);
    assert!(!under.is_silent());
}
