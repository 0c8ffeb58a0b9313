// SPDX-License-Identifier: Apache-2.0
//! A `:path` with a fragment, however a block of headers says it: 400, and nobody else's request of
//! the connection is touched.

use super::Front;
use super::frames::*;

const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
const ENDS: u8 = END_STREAM | END_HEADERS;
/// `/a#b`, and `/a%23b`, in Huffman's code.
const CODED: &[u8] = &[0x60, 0x7f, 0xf5, 0x1f];
const ESCAPED: &[u8] = &[0x60, 0x6a, 0x89, 0x98, 0xff];
/// Of the static table.
const PATH: u8 = 4;
/// The newest entry of the connection's table, and the one before it.
const NEWEST: u8 = 62;

/// A request but for its path, which is one field.
fn asks(path: &[u8]) -> Vec<u8> {
    [&[0x82, 0x86][..], path, &literal(":authority", "a.example")].concat()
}

/// A value for a name of either table; what is `kept` enters the table (RFC 7541 §6.2).
fn named(name: u8, kept: bool, huffman: bool, value: &[u8]) -> Vec<u8> {
    let mut field = Vec::new();
    match kept {
        true => integer(&mut field, 6, 0x40, name.into()),
        false => integer(&mut field, 4, 0, name.into()),
    }
    integer(&mut field, 7, if huffman { 0x80 } else { 0 }, value.len());
    [&field[..], value].concat()
}

/// A field that enters the table.
fn kept(name: &str, value: &str) -> Vec<u8> {
    let mut field = literal(name, value);
    field[0] = 0x40;
    field
}

async fn answered(wire: &mut Wire, stream: u32, frames: &[u8]) -> u8 {
    wire.send(frames).await;
    wire.wait(HEADERS, stream).await.expect("the connection ended").payload[0]
}

async fn refused(wire: &mut Wire, stream: u32, frames: &[u8]) {
    let status = answered(wire, stream, frames).await;
    assert_eq!(status, 0x8c, "answered as if it were right: {stream}");
}

async fn passes(wire: &mut Wire, stream: u32, path: &[u8]) {
    passes_with(wire, stream, path, &[]).await;
}

/// With one more field.
async fn passes_with(wire: &mut Wire, stream: u32, path: &[u8], field: &[u8]) {
    let block = [&asks(path), field].concat();
    let status = answered(wire, stream, &frame(HEADERS, ENDS, stream, &block)).await;
    assert_eq!(status, 0x88, "stream {stream} is refused");
}

#[tokio::test]
async fn reg_31_a_fragment_in_code() {
    let front = Front::fast().await;
    let mut wire = front.open().await;
    let coded = asks(&named(PATH, false, true, CODED));
    refused(&mut wire, 1, &frame(HEADERS, ENDS, 1, &coded)).await;
    passes(&mut wire, 3, &named(PATH, false, true, ESCAPED)).await;
    // Elsewhere it is a letter as others.
    passes_with(&mut wire, 5, &[0x84], &literal("x-color", "#ff0000")).await;
    assert_eq!(front.origin.hits(), 2);
}

#[tokio::test]
async fn reg_31_a_fragment_in_an_entry_of_the_table() {
    let front = Front::fast().await;
    let mut wire = front.open().await;
    let whole = asks(&named(PATH, true, true, CODED));
    refused(&mut wire, 1, &frame(HEADERS, ENDS, 1, &whole)).await;
    refused(&mut wire, 3, &frame(HEADERS, ENDS, 3, &asks(&[0x80 | NEWEST]))).await;
    passes(&mut wire, 5, &named(PATH, true, false, b"/right")).await;
    passes(&mut wire, 7, &[0x80 | NEWEST]).await;
    refused(&mut wire, 9, &frame(HEADERS, ENDS, 9, &asks(&[0x80 | (NEWEST + 1)]))).await;
    assert_eq!(front.origin.hits(), 2);
}

#[tokio::test]
async fn reg_31_a_fragment_whose_name_is_an_entry_of_the_table() {
    let front = Front::fast().await;
    let mut wire = front.open().await;
    passes(&mut wire, 1, &kept(":path", "/a")).await;
    // Its name is that of the entry of before, its value is new.
    let other = asks(&named(NEWEST, false, false, b"/a#b"));
    refused(&mut wire, 3, &frame(HEADERS, ENDS, 3, &other)).await;
    // A field moves it on by one, and has no path's name.
    passes_with(&mut wire, 5, &[0x84], &kept("x-later", "/a#b")).await;
    passes_with(&mut wire, 7, &[0x84], &named(NEWEST, false, false, b"/a#b")).await;
    let other = asks(&named(NEWEST + 1, false, true, CODED));
    refused(&mut wire, 9, &frame(HEADERS, ENDS, 9, &other)).await;
    assert_eq!(front.origin.hits(), 3);
}

#[tokio::test]
async fn reg_31_a_fragment_in_pieces() {
    let front = Front::fast().await;
    let mut wire = front.open().await;
    let block = asks(&[&[0][..], &[0x84, 0xb9, 0x58, 0xd3, 0x3f, 0x84], CODED].concat());
    let mut stream = 1;
    for cut in 0..=block.len() {
        let (first, last) = block.split_at(cut);
        let lead = [3, 0, 0, 0, 0, 16];
        let first = [&lead[..], first, &[0; 3]].concat();
        let flags = END_STREAM | PADDED | PRIORITY;
        let frames =
            [frame(HEADERS, flags, stream, &first), frame(CONTINUATION, END_HEADERS, stream, last)];
        for byte in frames.concat() {
            wire.send(&[byte]).await;
        }
        refused(&mut wire, stream, &[]).await;
        stream += 2;
    }
    assert!(wire.is_fine(stream).await);
    assert_eq!(front.origin.hits(), 1);
}

#[tokio::test]
async fn reg_31_a_block_that_is_not_read_enters_no_table() {
    let front = Front::fast().await;
    let mut wire = front.open().await;
    let whole = asks(&named(PATH, true, true, CODED));
    refused(&mut wire, 1, &frame(HEADERS, ENDS, 1, &whole)).await;
    // A stream that depends on itself is reset, and its block is passed over.
    let block = asks(&named(PATH, true, false, b"/right"));
    let itself = [&[0, 0, 0, 3, 16][..], &block].concat();
    wire.send(&frame(HEADERS, ENDS | PRIORITY, 3, &itself)).await;
    assert_eq!(wire.refusal(3).await, 1);
    refused(&mut wire, 5, &frame(HEADERS, ENDS, 5, &asks(&[0x80 | NEWEST]))).await;
    assert_eq!(front.origin.hits(), 0);
}
