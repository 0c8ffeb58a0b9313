// SPDX-License-Identifier: Apache-2.0
//! Heads and bodies, whole and in pieces; what is held of them.

use http_body::Body as _;
use http_body_util::BodyExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};

use super::body::{Left, Step};
use super::*;

fn head_of(text: &str) -> Found {
    head::take(&mut BytesMut::from(text), &mut 0)
}

#[track_caller]
fn check(head: &str, expected: std::result::Result<(Framing, bool), u16>) {
    let found = match head_of(&format!("{head}\r\n\r\n")) {
        Found::Head(Head { manner, .. }) => Ok((manner.framing, manner.keep)),
        Found::Wrong((status, _)) => Err(status.as_u16()),
        Found::Part => panic!("not whole: {head:?}"),
    };
    assert_eq!(found, expected, "{head:?}");
}

#[test]
fn a_request_ends_in_one_way_or_is_refused() {
    let with = |fields: &str| format!("PUT / HTTP/1.1\r\nHost: a\r\n{fields}");
    check("GET / HTTP/1.1\r\nHost: a", Ok((Framing::Length(0), true)));
    check("GET / HTTP/1.0\r\nConnection: keep-alive", Ok((Framing::Length(0), false)));
    check("\r\n\r\nGET / HTTP/1.1", Ok((Framing::Length(0), true)));
    check(&with("Content-Length: 12"), Ok((Framing::Length(12), true)));
    check(&with("Connection: a, Close"), Ok((Framing::Length(0), false)));
    check(&with("Transfer-Encoding: Chunked"), Ok((Framing::Chunked, true)));
    for fields in [
        "Content-Length: 1\r\nContent-Length: 1",
        "Content-Length: 1\r\nTransfer-Encoding: chunked",
        "Content-Length: +1",
        "Content-Length: 1, 1",
        "Content-Length:",
        "Content-Length: 99999999999999999999",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding : chunked",
        "Host: a\r\n b",
        "Host: a\nContent-Length: 1",
        "Host: a\rContent-Length: 1",
    ] {
        check(&with(fields), Err(400));
    }
    check("PUT / HTTP/1.0\r\nTransfer-Encoding: chunked", Err(400));
    check(&with("Transfer-Encoding: gzip, chunked"), Err(501));
    check(&with("Expect: the-best"), Err(417));
    check("PRI * HTTP/2.0", Err(505));
    check("GET  / HTTP/1.1", Err(400));
    check(&with(&"X: y\r\n".repeat(200)), Err(431));
    check(&with(&format!("X: {}", "y".repeat(70_000))), Err(431));
}

#[test]
fn a_head_may_come_byte_by_byte_and_leaves_what_follows() {
    let text = "\r\n\r\nGET /v1/kv/a HTTP/1.1\r\nHost: a\r\n\r\nGET /next";
    let (mut held, mut seen) = (BytesMut::new(), 0);
    for (at, byte) in text.bytes().enumerate() {
        held.extend_from_slice(&[byte]);
        match head::take(&mut held, &mut seen) {
            Found::Part => assert!(at < 4 || !text[..=at].ends_with("\r\n\r\n")),
            Found::Head(Head { request, .. }) => {
                assert_eq!(request.uri().path(), "/v1/kv/a");
                assert!(held.is_empty() && text[..=at].ends_with("\r\n\r\n"));
                return;
            }
            Found::Wrong((status, why)) => panic!("{status} {why}"),
        }
    }
    panic!("no head was found");
}

#[test]
fn what_people_write_in_a_request_line_is_escaped_for_them() {
    let found =
        head_of("GET /v1/kv/<a>^`?filter=Service==\"w\\b\"&x={|} HTTP/1.1\r\nHost: a\r\n\r\n");
    let Found::Head(Head { request, .. }) = found else { panic!("{found:?}") };
    assert_eq!(request.uri().path(), "/v1/kv/%3Ca%3E%5E%60");
    assert_eq!(request.uri().query(), Some("filter=Service==%22w%5Cb%22&x={|}"));
}

/// What a body is when it comes in pieces of a length: its data, what follows it, or nothing.
fn chunks(text: &str, piece: usize) -> Option<(String, String)> {
    let (mut held, mut left, mut out) = (BytesMut::new(), Left::new(Framing::Chunked), Vec::new());
    let mut rest = text.as_bytes().chunks(piece);
    loop {
        match left.step(&mut held) {
            Step::Data(bytes) => out.extend_from_slice(&bytes),
            Step::Wrong => return None,
            Step::More => held.extend_from_slice(rest.next()?),
            Step::End => {
                assert!(left.is_over());
                let after = [&held[..], &rest.flatten().copied().collect::<Vec<_>>()].concat();
                let text = |bytes| String::from_utf8(bytes).unwrap();
                return Some((text(out), text(after)));
            }
        }
    }
}

#[test]
fn chunks_read_alike_however_they_come_and_nothing_else_is_taken() {
    let good =
        "5\r\nhello\r\n1;a=b\r\n \r\n0A \t;x\r\n0123456789\r\n000\r\nTrailer: x\r\n\r\nGET /";
    for piece in 1..good.len() {
        let (data, after) = chunks(good, piece).unwrap();
        assert_eq!((&*data, &*after), ("hello 0123456789", "GET /"), "{piece}");
    }
    let endless = format!("1;{}", "a".repeat(20_000));
    let digits = "0".repeat(20_000);
    let trailers = format!("0\r\n{}\r\n", "a: b\r\n".repeat(5_000));
    let extended = "1;aaaaaaaa\r\nx\r\n".repeat(2_000);
    for bad in [
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhellox\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        "5 5\r\nhello\r\n0\r\n\r\n",
        "5;\rx\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        &endless,
        &digits,
        &extended,
        &trailers,
    ] {
        for piece in [1, 3, 1000] {
            assert_eq!(chunks(bad, piece), None, "{bad:.60?} by {piece}");
        }
    }
    assert_eq!(chunks("5\r\nhel", 2), None, "it has not all come");
}

#[test]
fn how_small_chunks_are_does_not_count() {
    let body = "x".repeat(100_000);
    for size in [1, 4, 100] {
        let parts = body.len() / size;
        let sent = format!("{size:x}\r\n{}\r\n", &body[..size]).repeat(parts) + "0\r\n\r\nGET";
        let (data, after) = chunks(&sent, 2048).unwrap();
        assert!(data == body && after == "GET", "{size}");
    }
}

#[tokio::test]
async fn nothing_is_held_of_a_request_whose_answer_may_be_minutes_away() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let mut line = Line::new(listener.accept().await.unwrap().0);
    for sent in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
        "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    ] {
        client.write_all(sent.as_bytes()).await.unwrap();
        let Next::Request(_, manner) = line.next().await else { panic!("{sent:?} is refused") };
        let over = Notify::new();
        let mut body = line.body(manner, &over);
        while let Some(frame) = body.frame().await {
            frame.unwrap();
        }
        over.notified().await;
        assert_eq!(line.held.capacity(), 0, "{sent:?}");
    }
    // What follows already is not lost.
    client.write_all(b"GET / HTTP/1.1\r\n\r\nGET /next").await.unwrap();
    let Next::Request(_, manner) = line.next().await else { panic!("it is refused") };
    assert!(line.body(manner, &Notify::new()).is_end_stream());
    while line.held.len() < 9 {
        line.more().await.unwrap();
    }
    assert_eq!(line.held, "GET /next");
}
