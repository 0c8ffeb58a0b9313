// SPDX-License-Identifier: Apache-2.0
//! A client's connection over an in-memory stream: what is answered, kept, closed, handed over.

use std::cell::Cell;
use std::future::pending;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::time::Instant;

use crate::h1::server::{Ended, Service, Times, serve};
use crate::h1::{Handover, Incoming, Wrong};
use crate::tcp::socket::Socket;

/// Longer than any test takes.
const TIMES: Times = Times {
    head: Duration::from_secs(60),
    idle: Duration::from_secs(60),
    body: Duration::from_secs(60),
};
/// Short enough to be waited for, one after the other, and longer than a busy machine holds up what
/// is to come before.
const SHORT: Times = Times {
    head: Duration::from_millis(1_500),
    idle: Duration::from_millis(2_000),
    body: Duration::from_millis(1_500),
};

/// Answers by path: `/echo` the body, `/ignore` nothing of it, `/never` not at all, `/close` once,
/// `/large` much, `/switch` leaves HTTP; anything else its own path.
#[derive(Default)]
struct Paths {
    /// Requests that were dropped before they were answered.
    dropped: Rc<Cell<u32>>,
}

struct OnDrop(Rc<Cell<u32>>, bool);

impl Drop for OnDrop {
    fn drop(&mut self) {
        if !self.1 {
            self.0.set(self.0.get() + 1);
        }
    }
}

impl Service for Paths {
    type Body = Full<Bytes>;

    async fn call(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let mut guard = OnDrop(self.dropped.clone(), false);
        let (mut head, body) = request.into_parts();
        let plain = |text: String| Response::new(Full::new(Bytes::from(text)));
        let mut response = match head.uri.path() {
            "/echo" => match body.collect().await {
                Ok(whole) => Response::new(Full::new(whole.to_bytes())),
                Err(error) => {
                    let mut response = plain(error.to_string());
                    *response.status_mut() = http::StatusCode::BAD_REQUEST;
                    response
                }
            },
            "/never" => pending().await,
            "/large" => plain("x".repeat(1_000_000)),
            path => plain(path.to_owned()),
        };
        match head.uri.path() {
            "/close" => drop(response.headers_mut().insert("connection", "close".parse().unwrap())),
            "/switch" => {
                let handover = head.extensions.remove::<Handover>().unwrap();
                *response.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
                weft_base::task::TaskGroup::new().spawn("upgraded", async move {
                    let mut stream = handover.stream().await.unwrap();
                    let mut said = [0u8; 5];
                    stream.read_exact(&mut said).await.unwrap();
                    stream.write_all(&said).await.unwrap();
                });
            }
            _ => {}
        }
        guard.1 = true;
        response
    }

    fn refuse(&self, wrong: Wrong) -> Response<Full<Bytes>> {
        let mut response =
            Response::new(Full::new(Bytes::from_static(wrong.sentence().as_bytes())));
        *response.status_mut() = http::StatusCode::from_u16(wrong.status()).unwrap();
        response
    }

    fn drive(_: &mut Full<Bytes>, _: &mut Context<'_>) {}
}

/// Serves what `client` says; returns how that ended.
async fn with<F: Future>(
    client: impl FnOnce(DuplexStream) -> F,
    times: Times,
) -> (Result<(), Ended>, F::Output) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let paths = Paths::default();
    tokio::join!(serve(far, &paths, times, pending()), client(near))
}

/// Says everything, and reads until the end.
async fn says(text: &str) -> String {
    says_to(TIMES, text).await
}

async fn says_to(times: Times, text: &str) -> String {
    let said = async |mut stream: DuplexStream| {
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut all = String::new();
        let reading =
            tokio::time::timeout(Duration::from_secs(10), stream.read_to_string(&mut all));
        reading.await.expect("it is left open").unwrap();
        all
    };
    with(said, times).await.1
}

fn bodies(answers: &str) -> Vec<&str> {
    answers.split("HTTP/1.").skip(1).map(|a| a.split_once("\r\n\r\n").unwrap().1).collect()
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let all = says(
        "GET /a HTTP/1.1\r\nHost: x\r\n\r\n\
         POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n\
         GET /close HTTP/1.1\r\nHost: x\r\n\r\nGET /never HTTP/1.1\r\nHost: x\r\n\r\n",
    )
    .await;
    assert_eq!(bodies(&all), ["/a", "abc", "/close"], "{all}");
    assert_eq!(all.matches("connection: close").count(), 1, "{all}");
}

#[tokio::test]
async fn http_1_0_is_kept_only_when_asked() {
    let kept = "GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /b HTTP/1.0\r\n\r\n";
    let all = says(kept).await;
    assert_eq!(bodies(&all), ["/a", "/b"], "{all}");
    assert!(all.starts_with("HTTP/1.0 200 OK\r\nconnection: keep-alive\r\n"), "{all}");
    assert!(all.contains("connection: close"), "{all}");
}

#[tokio::test]
async fn answers_to_head_have_the_length_and_no_body() {
    let all = says("HEAD /abc HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(all.ends_with("\r\n\r\n") && !all.contains("/abc"), "{all}");
}

#[tokio::test]
async fn reg_06_a_body_that_nobody_read_is_never_the_next_request() {
    // Small: read over, and the connection goes on.
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    let all = says(&format!(
        "POST /ignore HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{smuggled}\
         GET /close HTTP/1.1\r\nHost: x\r\n\r\n",
        smuggled.len()
    ))
    .await;
    assert_eq!(bodies(&all), ["/ignore", "/close"], "{all}");
    // Large: the connection ends, and says so.
    let all = says("POST /ignore HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nabc").await;
    assert_eq!(bodies(&all), ["/ignore"], "{all}");
    assert!(all.contains("connection: close"), "{all}");
    // One that was never told to go on may or may not send it.
    let all = says(
        "POST /ignore HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n\
         GET /never HTTP/1.1\r\nHost: x\r\n\r\n",
    )
    .await;
    assert_eq!(bodies(&all), ["/ignore"], "{all}");
    assert!(!all.contains("100 Continue") && all.contains("connection: close"), "{all}");
}

#[tokio::test]
async fn who_waits_is_told_to_send_the_body_when_it_is_read() {
    let asks = async |mut stream: DuplexStream| {
        let head = "POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\
                    Content-Length: 3\r\nConnection: close\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut told = [0u8; 25];
        stream.read_exact(&mut told).await.unwrap();
        assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(b"abc").await.unwrap();
        let mut all = String::new();
        stream.read_to_string(&mut all).await.unwrap();
        all
    };
    let (_, all) = with(asks, TIMES).await;
    assert!(all.ends_with("abc"), "{all}");
}

/// Answers at once, with the request's body as it comes.
struct Mirror;

impl Service for Mirror {
    type Body = Incoming;

    async fn call(&self, request: Request<Incoming>) -> Response<Incoming> {
        Response::new(request.into_body())
    }

    fn refuse(&self, _: Wrong) -> Response<Incoming> {
        Response::new(Incoming::empty())
    }

    fn drive(_: &mut Incoming, _: &mut Context<'_>) {}
}

#[tokio::test]
async fn nobody_is_told_to_go_on_in_the_middle_of_an_answer() {
    let (mut near, far) = tokio::io::duplex(64 * 1024);
    let asks = async {
        let head =
            "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
        near.write_all(head.as_bytes()).await.unwrap();
        let mut all = Vec::new();
        while !all.ends_with(b"\r\n\r\n") {
            near.read_buf(&mut all).await.unwrap();
        }
        near.write_all(b"abc").await.unwrap();
        near.read_to_end(&mut all).await.unwrap();
        String::from_utf8(all).unwrap()
    };
    let (_, all) = tokio::join!(serve(far, &Mirror, TIMES, pending()), asks);
    assert!(!all.contains("100 Continue"), "{all}");
    assert!(all.starts_with("HTTP/1.1 200") && all.contains("abc"), "{all}");
}

#[tokio::test]
async fn what_is_wrong_gets_its_status_and_sentence_and_the_end() {
    let good = "GET /a HTTP/1.1\r\nHost: x\r\n\r\n";
    for (bad, status) in [
        ("GET / HTTP/1.1\r\nX : y\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nExpect: x\r\n\r\n", 417),
        ("\x16\x03", 400),
    ] {
        let all = says(&format!("{good}{bad}{good}")).await;
        assert!(bodies(&all)[0] == "/a", "{all}");
        assert!(all.contains(&format!("HTTP/1.1 {status} ")), "{all}");
        assert_eq!(all.matches("HTTP/1.1 ").count(), 2, "{all}");
    }
    // A body that breaks its framing reaches whoever reads it, and ends the connection.
    let all = says(&format!(
        "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{good}"
    ))
    .await;
    assert_eq!(bodies(&all), [Wrong::ChunkSize.sentence()], "{all}");
}

#[tokio::test]
async fn reg_04_only_a_granted_upgrade_leaves_http() {
    let wish = "Connection: upgrade\r\nUpgrade: x\r\n\r\n";
    let all = says(&format!("GET /switch HTTP/1.1\r\nHost: x\r\n{wish}hello")).await;
    assert!(all.starts_with("HTTP/1.1 101 ") && all.ends_with("\r\n\r\nhello"), "{all}");
    let next = "GET /never HTTP/1.1\r\nHost: x\r\n\r\n";
    let all = says(&format!("GET /no HTTP/1.1\r\nHost: x\r\n{wish}{next}")).await;
    assert_eq!(bodies(&all), ["/no"], "{all}");
    assert!(all.contains("connection: close"), "{all}");
    // Over HTTP/2's cleartext upgrade nothing is lost: it is ignored, and HTTP/1.1 goes on.
    let h2c = "Connection: upgrade, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n";
    let close = "GET /close HTTP/1.1\r\nHost: x\r\n\r\n";
    let all = says(&format!("GET /a HTTP/1.1\r\nHost: x\r\n{h2c}{close}")).await;
    assert_eq!(bodies(&all), ["/a", "/close"], "{all}");
}

#[tokio::test]
async fn silence_has_its_limits() {
    // Between requests: the connection just ends.
    let began = Instant::now();
    let waits = async |mut stream: DuplexStream| {
        stream.write_all(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut all = String::new();
        stream.read_to_string(&mut all).await.unwrap();
        all
    };
    let (ended, all) = with(waits, SHORT).await;
    assert!(ended.is_ok() && bodies(&all) == ["/a"], "{ended:?} {all}");
    assert!(began.elapsed() >= SHORT.idle);
    // Within a head: it is told.
    let began = Instant::now();
    let all = says_to(SHORT, "GET /a HTTP/1.1\r\nHo").await;
    assert!(all.starts_with("HTTP/1.1 408 "), "{all}");
    assert!(began.elapsed() >= SHORT.head);
    // Within a body.
    let silent = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\na";
    let all = says_to(SHORT, silent).await;
    assert!(all.contains("silent for too long"), "{all}");
    // A reader that takes nothing of an answer.
    let (mut near, far) = tokio::io::duplex(64 * 1024);
    near.write_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let paths = Paths::default();
    let ended = serve(far, &paths, SHORT, pending()).await;
    assert!(matches!(ended, Err(Ended::Stalled)), "{ended:?}");
}

#[tokio::test]
async fn who_leaves_frees_its_request() {
    let (near, far) = tokio::io::duplex(1024);
    let paths = Paths::default();
    let dropped = paths.dropped.clone();
    let leaving = async {
        let mut near = near;
        near.write_all(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        tokio::task::yield_now().await;
        drop(near);
    };
    let (ended, ()) = tokio::join!(serve(far, &paths, TIMES, pending()), leaving);
    assert!(matches!(ended, Err(Ended::Gone)), "{ended:?}");
    assert_eq!(dropped.get(), 1);
}

#[tokio::test]
async fn draining_answers_what_was_asked_and_ends_what_is_idle() {
    let asks = async |mut stream: DuplexStream| {
        stream.write_all(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut all = String::new();
        stream.read_to_string(&mut all).await.unwrap();
        all
    };
    // It drains from the first moment on; what is there already is answered all the same.
    let (near, far) = tokio::io::duplex(1024);
    let paths = Paths::default();
    let all = tokio::join!(asks(near), serve(far, &paths, TIMES, std::future::ready(()))).0;
    assert_eq!(bodies(&all), ["/a"], "{all}");
}

#[tokio::test]
async fn connect_is_a_tunnel_only_when_granted() {
    struct Grants(bool);
    impl Service for Grants {
        type Body = Full<Bytes>;
        async fn call(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
            assert_eq!(request.method(), Method::CONNECT);
            let mut response = Response::new(Full::default());
            let status = if self.0 { 200 } else { 403 };
            *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
            if let Some(handover) = request.extensions().get::<Handover>().cloned()
                && self.0
            {
                weft_base::task::TaskGroup::new().spawn("tunnel", async move {
                    let mut stream = handover.stream().await.unwrap();
                    let _ = stream.write_all(b"inside").await;
                });
            }
            response
        }
        fn refuse(&self, _: Wrong) -> Response<Full<Bytes>> {
            Response::default()
        }
        fn drive(_: &mut Full<Bytes>, _: &mut Context<'_>) {}
    }
    for granted in [true, false] {
        let (mut near, far) = tokio::io::duplex(1024);
        let grants = Grants(granted);
        let asking = async {
            near.write_all(b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\nGET / HTTP/1.1\r\n\r\n")
                .await
                .unwrap();
            let mut all = String::new();
            near.read_to_string(&mut all).await.unwrap();
            all
        };
        let (_, all) = tokio::join!(serve(far, &grants, TIMES, pending()), asking);
        assert_eq!(all.ends_with("\r\n\r\ninside"), granted, "{all}");
        assert_eq!(all.contains("connection: close"), !granted, "{all}");
        assert_eq!(all.matches("HTTP/1.1 ").count(), 1, "{all}");
    }
}

/// A connection whose end nobody takes: its shutdown never gets anywhere.
struct Unending(DuplexStream);

impl AsyncRead for Unending {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Unending {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl Socket for Unending {}

#[tokio::test]
async fn who_takes_no_farewell_is_left() {
    let (mut near, far) = tokio::io::duplex(64 * 1024);
    near.write_all(b"GET /close HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let paths = Paths::default();
    let serving = serve(Unending(far), &paths, TIMES, pending());
    let ended = tokio::time::timeout(TIMES.body, serving).await;
    assert!(matches!(ended, Ok(Err(Ended::Stalled))), "{ended:?}");
}
