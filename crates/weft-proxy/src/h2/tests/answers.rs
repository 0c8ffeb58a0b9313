// SPDX-License-Identifier: Apache-2.0
//! Answers of a server of HTTP/2 that are wrong or have no end, and what is said of each.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Front;
use super::frames::*;
use crate::tests::bed::{Server, wait_until};

/// A server of HTTP/2 that answers the first request with `frames`, and shows when it was left.
async fn answering(frames: Vec<u8>) -> (Server, Arc<Mutex<bool>>) {
    let left: Arc<Mutex<bool>> = Arc::default();
    let told = left.clone();
    let origin = Server::raw(move |_, mut stream| {
        let (frames, told) = (frames.clone(), told.clone());
        async move {
            stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
            let mut preface = [0; 24];
            stream.read_exact(&mut preface).await.unwrap();
            let mut wire = Wire(stream);
            assert!(wire.wait(HEADERS, 1).await.is_some());
            wire.send(&frames).await;
            while wire.next().await.is_some() {}
            *told.lock().unwrap() = true;
        }
    })
    .await;
    (origin, left)
}

/// A gateway whose backend speaks HTTP/2.
async fn before_http2(origin: Server) -> Front {
    super::passing::declared(origin, weft_model::Protocol::Http2).await
}

#[tokio::test]
async fn a_server_that_floods_is_left() {
    for flood in [
        frame(PING, 0, 0, &[0; 8]),
        frame(SETTINGS, 0, 0, &[]),
        frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1]),
        frame(0xfa, 0, 0, b"grease"),
        frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes()),
    ] {
        let (origin, left) = answering(flood.repeat(2000)).await;
        let front = before_http2(origin).await;
        let got = get_http1(&front).await;
        assert!(got.starts_with("HTTP/1.1 50"), "{got}");
        wait_until("its connection is closed", async || *left.lock().unwrap()).await;
    }
}

#[tokio::test]
async fn an_answer_that_its_server_cuts_off_is_never_whole() {
    // NO_ERROR, CANCEL, and the connection's end.
    for code in [Some(0u32), Some(8), None] {
        let mut frames = [frame(HEADERS, END_HEADERS, 1, &[0x88]), frame(DATA, 0, 1, b"half")];
        let end = match code {
            Some(code) => frame(RST_STREAM, 0, 1, &code.to_be_bytes()),
            None => frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 2]),
        };
        frames[1].extend(end);
        let (origin, _left) = answering(frames.concat()).await;
        let front = before_http2(origin).await;
        let mut wire = front.open().await;
        wire.send(&get(1)).await;
        let mut cut = false;
        while let Some(came) = wire.next().await {
            assert!(came.stream != 1 || came.flags & END_STREAM == 0 || came.kind > HEADERS);
            if came.kind == RST_STREAM {
                cut = true;
                break;
            }
            if came.kind == DATA && code.is_none() {
                front.origin.kill().await;
            }
        }
        assert!(cut, "{code:?}");
    }
}

/// All that a client of HTTP/1.1 gets.
async fn get_http1(front: &Front) -> String {
    let mut stream = tokio::net::TcpStream::connect(front.bed.listener()).await.unwrap();
    let asks = b"GET / HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n\r\n";
    stream.write_all(asks).await.unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).await.unwrap();
    said
}

/// A server of HTTP/2 that answers each request with what `of` makes for its stream; `None` ends
/// the connection.
async fn always(of: impl Fn(u32) -> Option<Vec<u8>> + Clone + Send + Sync + 'static) -> Front {
    let origin = Server::raw(move |_, mut stream| {
        let of = of.clone();
        async move {
            stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
            let mut preface = [0; 24];
            stream.read_exact(&mut preface).await.unwrap();
            let mut wire = Wire(stream);
            while let Some(came) = wire.next().await {
                if came.kind == HEADERS {
                    let Some(answer) = of(came.stream) else { return };
                    wire.send(&answer).await;
                }
            }
        }
    })
    .await;
    before_http2(origin).await
}

/// What the proxy says of it itself, under which flags.
fn refused(got: &str) -> (u16, &str) {
    // Behind what may come before it.
    let got = got.rfind("HTTP/1.1 ").and_then(|at| got.get(at..)).unwrap_or(got);
    let status = got.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0);
    let flags = got.lines().find_map(|line| line.strip_prefix("x-weft-flags: "));
    (status, flags.unwrap_or_default())
}

/// Heads, each in frames of its own: `:status` is the only one that an answer has.
#[tokio::test]
async fn reg_26_an_answer_has_no_pseudo_header_of_a_request() {
    let named = |name: &[u8]| [&[0x88], name].concat();
    for block in [
        named(&literal(":path", "/")),
        named(&literal(":method", "GET")),
        named(&[0x82]),
        named(&[&[0x41][..], &[1], b"a"].concat()),
    ] {
        let answer = move |id| Some(frame(HEADERS, END_STREAM | END_HEADERS, id, &block));
        let got = get_http1(&always(answer).await).await;
        assert_eq!(refused(&got), (502, "URX,UPE"), "passed on: {got}");
    }
}

#[tokio::test]
async fn reg_26_an_answers_trailers_have_no_pseudo_header() {
    let indexed = [0x88].to_vec();
    for (goes_on, block) in [
        (false, indexed.clone()),
        (false, literal(":status", "200")),
        (false, literal(":path", "/")),
        // Behind an answer before the answer, too, which has such a field itself.
        (true, indexed),
    ] {
        let answer = move |id| {
            let before = frame(HEADERS, END_HEADERS, id, &literal(":status", "103"));
            let frames = [
                if goes_on { before } else { Vec::new() },
                frame(HEADERS, END_HEADERS, id, &[0x88]),
                frame(DATA, 0, id, b"half"),
                frame(HEADERS, END_STREAM | END_HEADERS, id, &block),
            ];
            Some(frames.concat())
        };
        // What came with the head is refused with it; what comes later is cut off there.
        let got = get_http1(&always(answer).await).await;
        assert!(!got.ends_with("0\r\n\r\n"), "passed on as whole: {got}");
        assert!(got.contains("half") || refused(&got) == (502, "URX,UPE"), "{got}");
    }
}

/// The same frames without what is wrong with them: one of them is dynamic, in the second answer.
#[tokio::test]
async fn answers_before_the_answer_and_trailers_are_passed_on() {
    let entered = |name: &str, value: &str| {
        let mut block = literal(name, value);
        block[0] |= 0x40;
        block
    };
    let frames = [
        frame(HEADERS, END_HEADERS, 1, &entered(":status", "103")),
        frame(HEADERS, END_HEADERS, 1, &[0xbe]),
        frame(HEADERS, END_HEADERS, 1, &entered(":status", "200")),
        frame(DATA, 0, 1, b"whole"),
        frame(HEADERS, END_STREAM | END_HEADERS, 1, &literal("x-sum", "5")),
    ];
    let (origin, _left) = answering(frames.concat()).await;
    let got = get_http1(&before_http2(origin).await).await;
    assert!(got.contains("whole") && got.ends_with("0\r\nx-sum: 5\r\n\r\n"), "{got}");
}

#[tokio::test]
async fn an_answer_of_101_is_refused_at_once() {
    let head = |id| Some(frame(HEADERS, END_HEADERS, id, &literal(":status", "101")));
    let got = get_http1(&always(head).await).await;
    assert_eq!(refused(&got), (502, "URX,UPE"), "{got}");
}

/// Envoy's flags tell a stream that was reset from a connection that ended.
#[tokio::test]
async fn a_stream_that_its_server_resets_is_told_from_a_connection_that_ends() {
    // INTERNAL_ERROR, ENHANCE_YOUR_CALM, and REFUSED_STREAM: all are sent again in vain.
    for code in [2u32, 11, 7] {
        let reset = move |id| Some(frame(RST_STREAM, 0, id, &code.to_be_bytes()));
        let got = get_http1(&always(reset).await).await;
        assert_eq!(refused(&got), (503, "UR,URX"), "{code}: {got}");
    }
    let got = get_http1(&always(|_| None).await).await;
    assert_eq!(refused(&got), (503, "UC,URX"), "{got}");
}
