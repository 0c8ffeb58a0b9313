// SPDX-License-Identifier: Apache-2.0
//! Messages that are wrong, and ends that are not ends: nothing of them is passed on as whole.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_model::{Action, NamedMatch, StringMatch};

use super::Front;
use super::frames::*;
use crate::tests::bed::{Bed, Server, gateway, gateway_route, http_service, rule, to, wait_until};

const PROTOCOL_ERROR: [u8; 4] = 1u32.to_be_bytes();

/// The bytes of each connection, and whether it was closed.
type Seen = Arc<Mutex<Vec<(Vec<u8>, bool)>>>;

/// An upstream that answers nothing and shows what it got on each of its connections, and whether
/// it was closed.
async fn listening() -> (Front, Seen) {
    let seen = Seen::default();
    let log = seen.clone();
    let origin = Server::raw(move |n, mut stream| {
        let log = log.clone();
        async move {
            log.lock().unwrap().resize(n + 1, Default::default());
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                log.lock().unwrap()[n].0.extend_from_slice(&buffer[..read]);
            }
            log.lock().unwrap()[n].1 = true;
        }
    })
    .await;
    (Front::before(origin, |_| {}).await, seen)
}

fn post_of(length: &str, stream: u32) -> Vec<u8> {
    let block = [request("POST"), literal("content-length", length)].concat();
    frame(HEADERS, END_HEADERS, stream, &block)
}

/// A request whose body is not what its length says: its stream is reset, and the upstream sees the
/// end of its connection before the end of a request.
async fn not_as_long(length: &str, sent: &[u8]) {
    let (front, seen) = listening().await;
    let mut wire = front.open().await;
    wire.send(&post_of(length, 1)).await;
    wait_until("the request arrives", async || {
        length == "0" || seen.lock().unwrap().first().is_some_and(|(b, _)| !b.is_empty())
    })
    .await;
    wire.send(&frame(DATA, END_STREAM, 1, sent)).await;
    assert_eq!(wire.refusal(1).await, 1);
    wait_until("its connection is closed", async || {
        seen.lock().unwrap().iter().all(|(_, closed)| *closed)
    })
    .await;
    for (bytes, _) in seen.lock().unwrap().iter() {
        let text = String::from_utf8_lossy(bytes);
        let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        assert!(body.len() < 5, "{text}");
    }
}

#[tokio::test]
async fn reg_13_a_body_must_be_as_long_as_it_says() {
    not_as_long("5", b"123").await;
}

#[tokio::test]
async fn reg_13_a_body_longer_than_it_says_is_no_request() {
    not_as_long("5", b"1234567").await;
}

#[tokio::test]
async fn reg_13_a_body_where_none_was_said_is_no_request() {
    not_as_long("0", b"x").await;
}

#[tokio::test]
async fn reg_13_lengths_that_differ_are_refused() {
    let front = Front::fast().await;
    let mut wire = front.open().await;
    for (id, other) in [(1, "6"), (3, "+5"), (5, "5, 5")] {
        let mut block = [request("POST"), literal("content-length", "5")].concat();
        block.extend(literal("content-length", other));
        wire.send(&frame(HEADERS, END_STREAM | END_HEADERS, id, &block)).await;
        assert_eq!(wire.refusal(id).await, 1);
    }
    assert!(wire.is_fine(7).await);
    assert_eq!(front.origin.hits(), 1);
}

#[tokio::test]
async fn a_body_that_its_client_cuts_off_is_never_whole() {
    // NO_ERROR and CANCEL too: only END_STREAM ends a message.
    for code in [0u32, 8] {
        let (front, seen) = listening().await;
        let mut wire = front.open().await;
        wire.send(&[post(1), frame(DATA, 0, 1, b"half")].concat()).await;
        wait_until("the half arrives", async || {
            let seen = seen.lock().unwrap();
            seen.first().is_some_and(|(bytes, _)| bytes.ends_with(b"half\r\n"))
        })
        .await;
        wire.send(&frame(RST_STREAM, 0, 1, &code.to_be_bytes())).await;
        wait_until("its connection is closed", async || seen.lock().unwrap()[0].1).await;
        assert!(!seen.lock().unwrap()[0].0.ends_with(b"0\r\n\r\n"));
    }
}

#[tokio::test]
async fn reg_26_trailers_must_end_their_stream() {
    let (front, seen) = listening().await;
    let mut wire = front.open().await;
    wire.send(&[post(1), frame(DATA, 0, 1, b"body")].concat()).await;
    wait_until("the body arrives", async || {
        seen.lock().unwrap().first().is_some_and(|(bytes, _)| bytes.ends_with(b"body\r\n"))
    })
    .await;
    let trailers = frame(HEADERS, END_HEADERS, 1, &literal("x-trailer", "1"));
    wire.send(&[trailers, frame(DATA, END_STREAM, 1, b"more")].concat()).await;
    assert_eq!(wire.refusal(1).await, 1);
    wait_until("its connection is closed", async || seen.lock().unwrap()[0].1).await;
    assert!(!seen.lock().unwrap()[0].0.ends_with(b"0\r\n\r\n"));
}

/// A body that has begun, and then trailers that end it.
async fn trailed(block: &[u8]) -> (Wire, Seen, Front) {
    let (front, seen) = listening().await;
    let mut wire = front.open().await;
    wire.send(&[post(1), frame(DATA, 0, 1, b"body")].concat()).await;
    wait_until("the body arrives", async || {
        seen.lock().unwrap().first().is_some_and(|(bytes, _)| bytes.ends_with(b"body\r\n"))
    })
    .await;
    wire.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, block)).await;
    (wire, seen, front)
}

async fn is_cut_off(seen: &Seen) {
    wait_until("its connection is closed", async || seen.lock().unwrap()[0].1).await;
    assert!(!seen.lock().unwrap()[0].0.ends_with(b"0\r\n\r\n"), "passed on as whole");
}

#[tokio::test]
async fn reg_26_trailers_have_no_pseudo_header() {
    let named = [&[0x44][..], &[1], b"/"].concat();
    for block in [literal(":path", "/z"), literal(":status", "200"), vec![0x84], named] {
        let (mut wire, seen, _front) = trailed(&block).await;
        assert_eq!(wire.goaway().await, 1);
        is_cut_off(&seen).await;
    }
}

/// Rules and a server of HTTP/1 read the same value.
#[tokio::test]
async fn reg_31_a_value_is_judged_without_the_blanks_around_it() {
    let origin = Server::named("user").await;
    let mut all = http_service("user", &[origin.address]);
    let mut admins = rule("/", Action::Direct { status: 404, body: "".into() });
    let role = NamedMatch { name: "x-role".into(), value: StringMatch::Exact("admin".into()) };
    admins.matches[0].headers.push(role);
    let others = rule("/", Action::Forward(vec![to("user", "", 1)]));
    all.extend([gateway(None), gateway_route("r", &[], vec![admins, others])]);
    let bed = Bed::gateway(all).await;
    let mut wire = Wire::open(bed.listener()).await;
    for (n, value) in ["admin", " admin", "admin\t", "\t admin "].into_iter().enumerate() {
        let id = u32::try_from(n).unwrap() * 2 + 1;
        let block = with("x-role", value);
        wire.send(&frame(HEADERS, END_STREAM | END_HEADERS, id, &block)).await;
        let answer = wire.wait(HEADERS, id).await.unwrap();
        assert_eq!(answer.payload[0], 0x8d, "{value:?} is another role to rules");
    }
    assert_eq!(origin.hits(), 0);
}

#[tokio::test]
async fn a_value_is_passed_on_without_the_blanks_around_it() {
    let (front, seen) = listening().await;
    let mut wire = front.open().await;
    let block = with("x-role", " admin\t");
    wire.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &block)).await;
    wait_until("the request arrives", async || {
        seen.lock().unwrap().first().is_some_and(|(bytes, _)| bytes.ends_with(b"\r\n\r\n"))
    })
    .await;
    let text = String::from_utf8_lossy(&seen.lock().unwrap()[0].0).to_ascii_lowercase();
    assert!(text.contains("\r\nx-role: admin\r\n"), "{text}");
}

#[tokio::test]
async fn reg_27_frames_after_our_reset_reach_nobody() {
    let (front, seen) = listening().await;
    let mut wire = front.open().await;
    let late = [
        post_of("3", 1),
        frame(DATA, 0, 1, b"1234"),
        frame(DATA, 0, 1, b"late"),
        frame(HEADERS, END_STREAM | END_HEADERS, 1, &literal("x-late", "1")),
    ];
    wire.send(&late.concat()).await;
    assert_eq!(wire.refusal(1).await, 1);
    wire.send(&frame(PING, 0, 0, &[9; 8])).await;
    assert!(wire.wait(PING, 0).await.is_some());
    let all: Vec<u8> = seen.lock().unwrap().iter().flat_map(|(bytes, _)| bytes.clone()).collect();
    assert!(!String::from_utf8_lossy(&all).contains("late"));
}

fn asks(method: &str, path: &str, authority: &str) -> Vec<u8> {
    [
        literal(":method", method),
        literal(":scheme", "http"),
        literal(":path", path),
        literal(":authority", authority),
    ]
    .concat()
}

fn with(name: &str, value: &str) -> Vec<u8> {
    [asks("GET", "/", "a.example"), literal(name, value)].concat()
}

/// A request that is refused, and nothing of it reaches the upstream.
async fn refused(block: Vec<u8>) {
    let front = Front::fast().await;
    let mut wire = front.open().await;
    wire.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &block)).await;
    loop {
        let came = wire.next().await.expect("it is not answered");
        // What the h2 crate cannot read at all ends the connection. 400 is indexed as 12.
        let refused = match came.kind {
            RST_STREAM => came.payload == PROTOCOL_ERROR,
            GOAWAY => came.payload[4..8] == PROTOCOL_ERROR,
            HEADERS => came.payload[0] == 0x8c,
            _ => continue,
        };
        assert!(refused, "answered as if it were right: {came:?}");
        break;
    }
    assert_eq!(front.origin.hits(), 0);
    assert!(front.open().await.is_fine(1).await);
}

/// Cases of one kind: a name, and the headers of a request.
macro_rules! ambiguous {
    ($($name:ident $block:expr;)+) => {
        $(
            #[tokio::test]
            async fn $name() {
                refused($block).await;
            }
        )+
    };
}

ambiguous! {
    reg_30_a_method_in_small_letters asks("get", "/", "a.example");
    reg_30_a_method_in_letters_of_both_kinds asks("Get", "/", "a.example");
    reg_30_a_method_with_a_space asks("GE T", "/", "a.example");
    reg_30_a_method_with_a_line asks("GET\r\nx: y", "/", "a.example");
    reg_31_a_path_without_a_slash asks("GET", "x", "a.example");
    reg_31_a_path_of_nothing asks("GET", "", "a.example");
    reg_31_a_path_with_a_line asks("GET", "/a\r\nx: y", "a.example");
    reg_31_a_path_with_a_fragment asks("GET", "/a#/../b", "a.example");
    reg_31_a_path_with_a_space asks("GET", "/a b", "a.example");
    reg_31_an_authority_with_a_line asks("GET", "/", "a.example\r\nx: y");
    reg_31_an_authority_with_a_user_name asks("GET", "/", "user@a.example");
    reg_31_an_authority_and_another_host with("host", "b.example");
    reg_31_two_paths with(":path", "/b");
    reg_31_two_authorities with(":authority", "b.example");
    reg_31_a_pseudo_header_behind_others
        [literal("x", "1"), asks("GET", "/", "a.example")].concat();
    reg_31_a_header_with_capitals with("X-Upper", "1");
    reg_31_a_header_with_a_line with("x", "a\nb");
    reg_31_a_header_with_a_return with("x", "a\rb");
    reg_31_a_header_with_a_zero with("x", "a\0b");
    reg_31_a_header_whose_name_has_a_line with("x\r\ny", "1");
    reg_31_a_header_whose_name_has_a_colon with("x:y", "1");
    reg_15_a_header_connection with("connection", "close");
    reg_15_a_header_upgrade with("upgrade", "h2c");
    reg_15_a_header_transfer_encoding with("transfer-encoding", "chunked");
    reg_15_a_header_te with("te", "gzip");
}

#[tokio::test]
async fn reg_15_no_protocol_smuggles_http2() {
    let front = Front::fast().await;
    for protocol in ["h2c", "H2C", "websocket, h2c", "web socket", ""] {
        let before = front.origin.hits();
        let mut wire = front.open().await;
        let block = [
            literal(":method", "CONNECT"),
            literal(":protocol", protocol),
            literal(":scheme", "http"),
            literal(":path", "/"),
            literal(":authority", "a.example"),
        ];
        wire.send(&frame(HEADERS, END_HEADERS, 1, &block.concat())).await;
        let refused = wire.wait(HEADERS, 1).await.unwrap();
        // 501 is a literal of three digits.
        assert_ne!(refused.payload[0], 0x88, "granted: {protocol}");
        assert_eq!(front.origin.hits(), before, "passed on: {protocol}");
        assert!(wire.is_fine(3).await);
    }
}

#[tokio::test]
async fn an_answer_to_head_has_no_body_and_its_length() {
    let front = Front::fast().await;
    let mut wire = front.open().await;
    let block = [literal(":method", "HEAD"), request("GET")[1..].to_vec()].concat();
    wire.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &block)).await;
    let head = wire.wait(HEADERS, 1).await.unwrap();
    assert_ne!(head.flags & END_STREAM, 0);
    assert!(wire.is_fine(3).await);
}

#[tokio::test]
async fn a_client_is_told_to_go_on_when_its_body_is_wanted() {
    let origin = Server::raw(|_, mut stream| async move {
        let mut seen = Vec::new();
        let mut buffer = [0; 4096];
        while !seen.ends_with(b"body") {
            let Ok(read @ 1..) = stream.read(&mut buffer).await else { return };
            seen.extend_from_slice(&buffer[..read]);
        }
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        tokio::time::sleep(Duration::from_secs(5)).await;
    })
    .await;
    let front = Front::before(origin, |_| {}).await;
    let mut wire = front.open().await;
    let block =
        [request("POST"), literal("content-length", "4"), literal("expect", "100-continue")];
    wire.send(&frame(HEADERS, END_HEADERS, 1, &block.concat())).await;
    let go_on = wire.wait(HEADERS, 1).await.unwrap();
    assert_eq!(go_on.flags & END_STREAM, 0);
    wire.send(&frame(DATA, END_STREAM, 1, b"body")).await;
    assert_eq!(wire.wait(HEADERS, 1).await.unwrap().payload[0], 0x88);
}

#[tokio::test]
async fn idle_connections_are_closed_politely_and_silent_ones_hard() {
    // Longer than a busy machine takes for the first request.
    let idle = Duration::from_secs(3);
    let front = Front::slow(Duration::ZERO, |c| c.limits.idle_timeout = idle).await;
    let mut wire = front.open().await;
    assert!(wire.is_fine(1).await);
    // A client that answers PINGs is told to go; the last word is NO_ERROR.
    let mut code = None;
    while let Some(came) = wire.next().await {
        match came.kind {
            PING if came.flags == 0 => {
                wire.send(&frame(PING, 1, 0, &came.payload)).await;
            }
            GOAWAY => code = came.payload.get(4..8).map(<[u8]>::to_vec),
            _ => {}
        }
    }
    assert_eq!(code, Some(vec![0; 4]));
    let head = Duration::from_millis(100);
    let silent = |c: &mut crate::ProxyConfig| {
        (c.limits.idle_timeout, c.limits.header_timeout) = (idle, head)
    };
    let front = Front::slow(Duration::ZERO, silent).await;
    let mut wire = front.open().await;
    // Whatever comes, comes soon.
    while wire.next().await.is_some() {}
}

#[tokio::test]
async fn reg_14_values_that_rules_make_have_no_lines() {
    use weft_model::{Action, BackendPolicy, Filter, HeaderEdit, Protocol, Rewrite};

    use crate::tests::bed::{
        Bed, config, endpoint, gateway, gateway_route, get as ask, rule, send, service, text, to,
    };

    let line = "b\r\nx-evil: 1";
    let host = Rewrite { host: Some(line.into()), ..Rewrite::default() };
    let header = HeaderEdit { set: vec![("x-a".into(), line.into())], ..HeaderEdit::default() };
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let origin = Server::http(|_, request| async move {
            text(if request.headers().contains_key("x-evil") { 500 } else { 200 }, "")
        })
        .await;
        let bed = Bed::start(config("gateway~shop~web"), None).await;
        let at = vec![endpoint("users-0", origin.address)];
        let mut resources = service("users", protocol, BackendPolicy::default(), at);
        resources.push(gateway(None));
        let mut rules = Vec::new();
        for (path, filter) in [
            ("/host", Filter::Rewrite(host.clone())),
            ("/header", Filter::RequestHeaders(header.clone())),
        ] {
            let mut made = rule(path, Action::Forward(vec![to("users", "", 1)]));
            made.filters.push(filter);
            rules.push(made);
        }
        resources.push(gateway_route("r", &[], rules));
        bed.apply(1, resources).await;
        let got = send(bed.listener(), ask("/host", "a.example")).await;
        assert!(got.status >= 400 && origin.hits() == 0, "{protocol:?}: {got:?}");
        let got = send(bed.listener(), ask("/header", "a.example")).await;
        assert_eq!((got.status, origin.hits()), (200, 1), "{protocol:?}: {got:?}");
    }
}
