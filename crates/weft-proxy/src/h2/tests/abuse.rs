// SPDX-License-Identifier: Apache-2.0
//! Clients that mean harm. Each kind is stopped within a thousand frames, with GOAWAY, and while
//! at most a hundred of its requests have reached the upstream.
//!
//! That they can fail: each is run again without the purse that it empties. Where the h2 crate
//! itself ends the connection too (pending resets, CONTINUATION, empty DATA, what it takes for
//! errors of the connection, the size of headers), the case is played at a [`peer`](super::peer)
//! that ends nothing.

use std::time::Duration;

use super::Front;
use super::frames::*;
use crate::guards::patience;
use crate::tests::bed::{Server, text};

/// Longer than any of these tests: nothing is answered while one goes on.
const NEVER: Duration = Duration::from_secs(600);
const FRAMES_MAX: u32 = 1000;
const UPSTREAM_MAX: usize = 100;

/// Sends `piece(stream)` for one stream after the other until the proxy has had enough.
async fn flood(front: &Front, frames: u32, piece: impl Fn(u32) -> Vec<u8>) -> u32 {
    let mut wire = front.open().await;
    let mut bytes = Vec::new();
    for n in 0..FRAMES_MAX / frames {
        bytes.extend(piece(2 * n + 1));
    }
    wire.send(&bytes).await;
    let code = wire.goaway().await;
    let hits = front.origin.hits();
    assert!(hits <= UPSTREAM_MAX, "{hits} requests reached the upstream");
    code
}

/// The same on one open stream.
async fn flood_on_one(before: Vec<u8>, piece: &[u8]) -> (Front, u32) {
    let front = Front::slow(NEVER, |_| {}).await;
    let mut wire = front.open().await;
    wire.send(&before).await;
    wire.send(&piece.repeat(FRAMES_MAX as usize - 1)).await;
    let code = wire.goaway().await;
    (front, code)
}

#[tokio::test]
async fn reg_19_29_rapid_reset_in_one_burst() {
    // `max_pending_accept_reset_streams` of the h2 crate, then the purse of resets.
    let front = Front::slow(NEVER, |_| {}).await;
    assert_eq!(flood(&front, 2, |id| [get(id), reset(id)].concat()).await, CALM);
}

#[tokio::test]
async fn reg_19_rapid_reset_of_requests_that_are_under_way() {
    let front = Front::slow(NEVER, |_| {}).await;
    let mut wire = front.open().await;
    let (mut resets, began) = (0, tokio::time::Instant::now());
    for n in 0..FRAMES_MAX / 2 {
        wire.send(&get(2 * n + 1)).await;
        // Each has reached the upstream before it is reset, or none does any more.
        let reached = async {
            while front.origin.hits() <= n as usize {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            () = reached => {}
            () = wire.hears_goaway() => break,
        }
        wire.send(&reset(2 * n + 1)).await;
        resets = n;
    }
    assert_eq!(wire.goaway().await, CALM);
    // The purse, and what time puts into it.
    let most = UPSTREAM_MAX + 10 * usize::try_from(began.elapsed().as_secs()).unwrap();
    assert!((resets as usize) < most && front.origin.hits() <= most, "{resets}");
}

/// The six ways of MadeYouReset: the client makes the server reset its streams, whose requests
/// go on behind it.
async fn made_you_reset(begin: fn(u32) -> Vec<u8>, spoil: impl Fn(u32) -> Vec<u8>) {
    let front = Front::slow(NEVER, |_| {}).await;
    let code = flood(&front, 2, |id| [begin(id), spoil(id)].concat()).await;
    // A zero increment and a wrong length are the connection's errors to the h2 crate.
    assert!([CALM, 1, 3, 6].contains(&code), "GOAWAY has code {code}");
}

#[tokio::test]
async fn reg_20_made_you_reset_by_a_window_update_of_zero() {
    made_you_reset(post, |id| frame(WINDOW_UPDATE, 0, id, &[0; 4])).await;
}

#[tokio::test]
async fn reg_20_made_you_reset_by_a_window_that_overflows() {
    made_you_reset(post, |id| frame(WINDOW_UPDATE, 0, id, &0x7fff_ffffu32.to_be_bytes())).await;
}

#[tokio::test]
async fn reg_20_made_you_reset_by_a_priority_of_wrong_length() {
    made_you_reset(post, |id| frame(PRIORITY, 0, id, &[0; 4])).await;
}

#[tokio::test]
async fn reg_20_made_you_reset_by_a_stream_that_depends_on_itself() {
    made_you_reset(post, |id| frame(PRIORITY, 0, id, &[&id.to_be_bytes()[..], &[16]].concat()))
        .await;
}

#[tokio::test]
async fn reg_20_made_you_reset_by_headers_on_a_stream_that_ended() {
    made_you_reset(get, get).await;
}

#[tokio::test]
async fn reg_20_made_you_reset_by_data_on_a_stream_that_ended() {
    made_you_reset(get, |id| frame(DATA, 0, id, b"x")).await;
}

#[tokio::test]
async fn reg_21_continuation_flood() {
    // The h2 crate's limit of CONTINUATION frames, of the size of headers.
    let begun = frame(HEADERS, END_STREAM, 1, &request("GET"));
    let more = frame(CONTINUATION, 0, 1, &literal("x", &"y".repeat(1000)));
    let (front, code) = flood_on_one(begun, &more).await;
    assert_eq!((code, front.origin.hits()), (CALM, 0));
}

#[tokio::test]
async fn reg_21_22_empty_continuation_flood() {
    let begun = frame(HEADERS, END_STREAM, 1, &request("GET"));
    let (front, code) = flood_on_one(begun, &frame(CONTINUATION, 0, 1, &[])).await;
    assert_eq!((code, front.origin.hits()), (CALM, 0));
}

#[tokio::test]
async fn reg_22_empty_data_flood() {
    let (front, code) = flood_on_one(post(1), &frame(DATA, 0, 1, &[])).await;
    assert_eq!(code, CALM);
    assert!(front.origin.hits() <= 1);
}

#[tokio::test]
async fn small_data_is_a_body_like_any_other() {
    // `data_frame_budget` of the h2 crate: 8 MiB of its overhead per frame.
    let front = Front::slow(NEVER, |_| {}).await;
    let mut wire = front.open().await;
    wire.send(&post(1)).await;
    assert_eq!(wire.wait(SETTINGS, 0).await.map(|came| came.kind), Some(SETTINGS));
    wire.send(&frame(DATA, 0, 1, b"x").repeat(1000)).await;
    // So few are a body like any other.
    assert!(wire.send(&frame(DATA, END_STREAM, 1, b"x")).await);
    wire.send(&frame(PING, 0, 0, &[7; 8])).await;
    assert!(wire.wait(PING, 0).await.is_some());
}

#[tokio::test]
async fn reg_22_empty_headers_flood() {
    let front = Front::slow(NEVER, |_| {}).await;
    let code = flood(&front, 1, |id| frame(HEADERS, END_STREAM | END_HEADERS, id, &[])).await;
    assert_eq!((code, front.origin.hits()), (CALM, 0));
}

#[tokio::test]
async fn reg_22_reset_flood_by_requests_that_are_none() {
    // A header of the connection's own: the stream is reset, which costs its client nothing.
    let front = Front::slow(NEVER, |_| {}).await;
    let block = [request("GET"), literal("connection", "close")].concat();
    let wrong = |id| frame(HEADERS, END_STREAM | END_HEADERS, id, &block);
    assert_eq!((flood(&front, 1, wrong).await, front.origin.hits()), (CALM, 0));
}

#[tokio::test]
async fn reg_22_settings_flood() {
    let (_front, code) = flood_on_one(Vec::new(), &frame(SETTINGS, 0, 0, &[])).await;
    assert_eq!(code, CALM);
}

#[tokio::test]
async fn settings_that_are_too_long_are_refused_by_their_head() {
    let front = Front::slow(NEVER, |_| {}).await;
    let mut wire = front.open().await;
    // Their end never comes.
    wire.send(&frame(SETTINGS, 0, 0, &[0; 1_026])[..9]).await;
    assert_eq!(wire.goaway().await, CALM);
}

#[tokio::test]
async fn reg_22_ping_flood() {
    let (_front, code) = flood_on_one(Vec::new(), &frame(PING, 0, 0, &[0; 8])).await;
    assert_eq!(code, CALM);
}

#[tokio::test]
async fn reg_22_priority_flood() {
    let (_front, code) = flood_on_one(Vec::new(), &frame(PRIORITY, 0, 5, &[0, 0, 0, 3, 1])).await;
    assert_eq!(code, CALM);
}

#[tokio::test]
async fn reg_22_unknown_frame_flood() {
    let (_front, code) = flood_on_one(Vec::new(), &frame(0xfa, 0, 0, b"grease")).await;
    assert_eq!(code, CALM);
}

#[tokio::test]
async fn reg_22_window_update_storm() {
    let (_front, code) =
        flood_on_one(Vec::new(), &frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes())).await;
    assert_eq!(code, CALM);
}

#[tokio::test]
async fn reg_22_data_dribble_through_a_tiny_window() {
    let long = Server::http(|_, _| async { text(200, "a longer answer") }).await;
    let front = Front::before(long, |_| {}).await;
    let mut wire = Wire::open(front.bed.listener()).await;
    // SETTINGS_INITIAL_WINDOW_SIZE = 0: each byte is asked for by itself.
    wire.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await;
    for id in 0..100 {
        wire.send(&get(2 * id + 1)).await;
        wire.wait(HEADERS, 2 * id + 1).await.unwrap();
    }
    let one = 1u32.to_be_bytes();
    // Many more than the purse holds, and at once: it is filled again by time.
    let mut dribble = Vec::new();
    for id in 0..100 {
        dribble.extend(frame(WINDOW_UPDATE, 0, 2 * id + 1, &one).repeat(8));
    }
    wire.send(&dribble).await;
    assert_eq!(wire.goaway().await, CALM);
}

#[tokio::test]
async fn reg_23_frames_that_never_end() {
    let ping = frame(PING, 0, 0, &[0; 8]);
    let open = frame(HEADERS, END_STREAM, 1, &request("GET"));
    for begun in [&ping[..4], &ping[..12], &get(1)[..20], &open] {
        // Longer than a busy machine takes until it has begun.
        let head = Duration::from_secs(2);
        let front = Front::slow(Duration::ZERO, |c| c.limits.header_timeout = head).await;
        let mut wire = front.open().await;
        wire.send(begun).await;
        let ended = tokio::time::timeout(patience(), wire.ended()).await;
        assert_eq!(ended.expect("it is still open"), CALM);
        assert_eq!(front.origin.hits(), 0);
    }
}

#[tokio::test]
async fn a_client_that_never_begins_is_let_go() {
    let head = Duration::from_millis(100);
    let front = Front::slow(Duration::ZERO, |c| c.limits.header_timeout = head).await;
    let mut wire = Wire(tokio::net::TcpStream::connect(front.bed.listener()).await.unwrap());
    wire.send(b"PRI * HTTP/2.0\r\n\r\nSM").await;
    // It is answered as what it looks like, and closed.
    let mut said = Vec::new();
    let reading = tokio::io::AsyncReadExt::read_to_end(&mut wire.0, &mut said);
    let read = tokio::time::timeout(Duration::from_secs(60), reading).await;
    assert!(read.is_ok(), "it is still open");
    assert_eq!(front.origin.hits(), 0);
}

/// A header of 4,000 bytes once, then a byte for each of its copies.
fn bomb(name: &str, copies: usize) -> Vec<u8> {
    let mut block = request("GET");
    // With incremental indexing: it becomes entry 62.
    let mut entry = literal(name, &"v".repeat(4000 - name.len()));
    entry[0] = 0x40;
    block.extend(entry);
    block.extend(vec![0x80 | 62; copies]);
    block
}

#[tokio::test]
async fn reg_24_header_bombs_are_measured_unpacked() {
    for name in ["x-bomb", "cookie"] {
        // 17 copies are more than 64 KiB: 431. 2,000 are 8 MB: the connection ends.
        let front = Front::fast().await;
        let mut wire = front.open().await;
        wire.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &bomb(name, 17))).await;
        let refused = wire.wait(HEADERS, 1).await.unwrap();
        assert!(
            refused.payload.ends_with(b"431") || refused.payload.starts_with(&[0x48]),
            "{refused:?}"
        );
        assert!(wire.is_fine(3).await);
        let hits = front.origin.hits();
        wire.send(&frame(HEADERS, END_STREAM | END_HEADERS, 5, &bomb(name, 2000))).await;
        assert_eq!(wire.goaway().await, CALM);
        assert_eq!(front.origin.hits(), hits);
    }
}

/// Too many headers of one name are refused, whatever becomes of them later.
async fn counted(name: &str) {
    let front = Front::fast().await;
    let mut wire = front.open().await;
    let mut block = request("GET");
    for _ in 0..200 {
        block.extend(literal(name, "a=1"));
    }
    wire.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &block)).await;
    let refused = wire.wait(HEADERS, 1).await.unwrap();
    assert_ne!(refused.payload[0], 0x88, "answered as if they were few");
    let too_many = refused.payload.ends_with(b"431") || refused.payload.starts_with(&[0x48]);
    assert!(too_many, "refused as something else: {refused:?}");
    assert!(wire.is_fine(3).await);
    assert_eq!(front.origin.hits(), 1);
}

#[tokio::test]
async fn reg_24_cookies_are_counted_before_they_are_joined() {
    counted("cookie").await;
}

#[tokio::test]
async fn reg_25_copies_of_host_are_counted_before_they_are_dropped() {
    counted("host").await;
}

#[tokio::test]
async fn copies_of_any_header_are_counted() {
    counted("x-a").await;
}

#[tokio::test]
async fn reg_28_a_client_cannot_enlarge_our_table() {
    // A size update to 1 MiB, above the 4,096 that we allow.
    let mut update = Vec::new();
    integer(&mut update, 5, 0x20, 1024 * 1024);
    unpackable(&[[update, request("GET")].concat()]).await;
}

/// The last of these blocks of headers cannot be unpacked: the connection ends.
async fn unpackable(blocks: &[Vec<u8>]) {
    let front = Front::fast().await;
    let mut wire = front.open().await;
    for (n, block) in blocks.iter().enumerate() {
        let stream = 2 * u32::try_from(n).unwrap() + 1;
        wire.send(&frame(HEADERS, END_STREAM | END_HEADERS, stream, block)).await;
        if n + 1 < blocks.len() {
            let came = wire.wait(HEADERS, stream).await.unwrap();
            assert_eq!(came.payload[0], 0x88, "block {n}");
        }
    }
    assert!([1, 9].contains(&wire.goaway().await));
    assert_eq!(front.origin.hits(), blocks.len() - 1);
}

/// A header that enters the table as its newest entry, 62.
fn kept(name: &str, bytes: usize) -> Vec<u8> {
    let mut entry = literal(name, &"v".repeat(bytes));
    entry[0] = 0x40;
    [request("GET"), entry].concat()
}

/// A request with an entry of the table.
fn entry(index: u8) -> Vec<u8> {
    [request("GET"), vec![0x80 | index]].concat()
}

#[tokio::test]
async fn reg_28_entries_beyond_the_tables_size_are_gone() {
    // Each fits, both do not: the older one is dropped.
    unpackable(&[kept("x-a", 3000), kept("x-b", 3000), entry(63)]).await;
}

#[tokio::test]
async fn reg_28_an_entry_larger_than_the_table_empties_it() {
    unpackable(&[kept("x-a", 100), kept("x-b", 5000), entry(62)]).await;
}

#[tokio::test]
async fn reg_28_a_table_may_be_shrunk_to_nothing() {
    unpackable(&[kept("x-a", 100), [vec![0x20], request("GET")].concat(), entry(62)]).await;
}

#[tokio::test]
async fn reg_28_entries_that_were_never_made_do_not_exist() {
    unpackable(&[entry(62)]).await;
}

#[tokio::test]
async fn reg_22_headers_without_name_or_value() {
    let front = Front::slow(NEVER, |_| {}).await;
    let block = [request("GET"), literal("", "")].concat();
    let empty = |id| frame(HEADERS, END_STREAM | END_HEADERS, id, &block);
    assert!([CALM, 1].contains(&flood(&front, 1, empty).await));
    assert_eq!(front.origin.hits(), 0);
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_its_answer_is_let_go() {
    let body = Duration::from_secs(2);
    let front = Front::slow(Duration::ZERO, |c| c.limits.stream_idle_timeout = body).await;
    let mut wire = front.open().await;
    wire.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await;
    wire.send(&get(1)).await;
    assert!(wire.wait(HEADERS, 1).await.is_some());
    let ended = wire.wait(RST_STREAM, 1).await.unwrap();
    assert_eq!(ended.payload, 8u32.to_be_bytes());
}

#[tokio::test]
async fn a_client_that_takes_one_byte_of_its_answer_is_let_go() {
    let body = Duration::from_secs(2);
    let front = Front::slow(Duration::ZERO, |c| c.limits.stream_idle_timeout = body).await;
    let mut wire = front.open().await;
    wire.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 1])).await;
    wire.send(&get(1)).await;
    let first = wire.wait(DATA, 1).await.unwrap();
    assert_eq!((&first.payload[..], first.flags & END_STREAM), (&b"a"[..], 0));
    // It is there, and takes no more.
    wire.send(&frame(PING, 0, 0, &[7; 8])).await;
    assert!(wire.wait(PING, 0).await.is_some());
    let ended = wire.wait(RST_STREAM, 1).await.unwrap();
    assert_eq!(ended.payload, 8u32.to_be_bytes());
    // What it was to have is not owed any more: the connection is as it was.
    wire.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff])).await;
    assert!(wire.is_fine(3).await);
}

#[tokio::test]
async fn an_answer_comes_whole_through_windows_of_any_size() {
    let front = Front::fast().await;
    let mut wire = front.open().await;
    wire.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 1])).await;
    for (id, step) in [(1, 1), (3, 2), (5, 5), (7, 100)] {
        wire.send(&get(id)).await;
        let mut said = Vec::new();
        loop {
            let came = wire.wait(DATA, id).await.unwrap();
            said.extend(came.payload);
            if came.flags & END_STREAM != 0 {
                break;
            }
            wire.send(&frame(WINDOW_UPDATE, 0, id, &u32::to_be_bytes(step))).await;
        }
        assert_eq!(said, b"answer", "steps of {step}");
    }
}

#[tokio::test]
async fn work_is_never_taken_for_abuse() {
    let front = Front::fast().await;
    let mut wire = front.open().await;
    for id in 0..2_000 {
        let id = 2 * id + 1;
        // Many clients reset what they have, update windows for each answer, and PING.
        let chatter = [
            get(id),
            frame(WINDOW_UPDATE, 0, 0, &6u32.to_be_bytes()),
            frame(0x10, 0, 0, b"\0\0\0\x01u=3"),
            frame(PING, 0, 0, &[1; 8]),
        ];
        wire.send(&chatter.concat()).await;
        let mut last = wire.wait(DATA, id).await.unwrap();
        while last.flags & END_STREAM == 0 {
            last = wire.wait(DATA, id).await.unwrap();
        }
        wire.send(&reset(id)).await;
    }
    assert_eq!(front.origin.hits(), 2_000);
}
