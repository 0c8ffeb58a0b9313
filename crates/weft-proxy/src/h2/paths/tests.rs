// SPDX-License-Identifier: Apache-2.0
//! Blocks of random fields, in pieces, beside what they were made of.

use proptest::prelude::*;

use super::super::frames::{DATA, END_HEADERS};
use super::*;

/// Codes of each length there is (RFC 7541, appendix B): the letter, its code, and its bits.
const CODES: [(u8, u32, u32); 19] = [
    (b'/', 0x18, 6),
    (b'a', 0x3, 5),
    (b'0', 0x0, 5),
    (b'b', 0x23, 6),
    (b'p', 0x2b, 6),
    (b'z', 0x7b, 7),
    (b'?', 0x3fc, 10),
    (b'X', 0xfc, 8),
    (b'&', 0xf8, 8),
    (b'#', 0xffa, 12),
    (b'>', 0xffb, 12),
    (b'!', 0x3f8, 10),
    (b'<', 0x7ffc, 15),
    (b'{', 0x7ffe, 15),
    (b'|', 0x7fc, 11),
    (b'\n', 0x3fff_fffc, 30),
    (0xc3, 0x7fff1, 19),
    (0xa9, 0x003f_ffdd, 22),
    (0xf0, 0x03ff_ffeb, 26),
];

fn coded(text: &[usize]) -> Vec<u8> {
    let mut bits: Vec<u8> = Vec::new();
    for letter in text {
        let (_, code, length) = CODES[*letter];
        bits.extend((0..length).rev().map(|n| u8::try_from(code >> n & 1).unwrap()));
    }
    bits.resize(bits.len().next_multiple_of(8), 1);
    bits.chunks(8).map(|bits| bits.iter().fold(0, |byte, bit| byte << 1 | bit)).collect()
}

#[derive(Clone, Debug)]
enum Op {
    /// A field in words: whether it enters the table, its name, and its value's letters.
    Words(bool, Called, bool, Vec<usize>),
    /// An entry of the connection's table, as far as there is one.
    Entry(usize),
    Static(u8),
    Size,
}

#[derive(Clone, Copy, Debug)]
enum Called {
    Path,
    Coded,
    Static,
    Other,
    /// As an entry of the table.
    Entry(usize),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let called = prop_oneof![
        Just(Called::Path),
        Just(Called::Coded),
        Just(Called::Static),
        Just(Called::Other),
        (0..9usize).prop_map(Called::Entry),
    ];
    let letters = prop::collection::vec(0..CODES.len(), 0..200);
    let words = (any::<bool>(), called, any::<bool>(), letters);
    let op = prop_oneof![
        4 => words.prop_map(|(kept, called, coded, text)| Op::Words(kept, called, coded, text)),
        2 => (0..9usize).prop_map(Op::Entry),
        1 => (1..62u8).prop_map(Op::Static),
        1 => Just(Op::Size),
    ];
    prop::collection::vec(op, 0..8)
}

fn integer(block: &mut Vec<u8>, mask: u8, pattern: u8, n: usize) {
    let most = usize::from(mask);
    if n < most {
        return block.push(pattern | u8::try_from(n).unwrap());
    }
    block.push(pattern | mask);
    let mut rest = n - most;
    while rest >= 128 {
        block.push(u8::try_from(rest % 128 + 128).unwrap());
        rest /= 128;
    }
    block.push(u8::try_from(rest).unwrap());
}

fn text(block: &mut Vec<u8>, huffman: bool, text: &[u8]) {
    integer(block, 0x7f, if huffman { 0x80 } else { 0 }, text.len());
    block.extend_from_slice(text);
}

/// Writes a block, and says whether it names a fragment. `table` has the newest entry first.
fn write(ops: &[Op], table: &mut Vec<(bool, bool)>) -> (Vec<u8>, bool) {
    let (mut block, mut found) = (Vec::new(), false);
    for op in ops {
        match op {
            Op::Size => block.push(0x3e),
            Op::Static(index) => block.push(0x80 | index),
            Op::Entry(n) => {
                let Some((_, fragment)) = table.get(*n) else { continue };
                found |= fragment;
                integer(&mut block, 0x7f, 0x80, 62 + n);
            }
            Op::Words(kept, called, huffman, value) => {
                let entry = match called {
                    Called::Entry(n) => table.get(*n).map(|(path, _)| (62 + n, *path)),
                    Called::Static => Some((5, true)),
                    _ => None,
                };
                let (mask, pattern) = if *kept { (0x3f, 0x40) } else { (0xf, 0x10) };
                integer(&mut block, mask, pattern, entry.map_or(0, |(index, _)| index));
                let path = match called {
                    _ if entry.is_some() => entry.is_some_and(|(_, path)| path),
                    Called::Path => {
                        text(&mut block, false, b":path");
                        true
                    }
                    Called::Coded => {
                        text(&mut block, true, &[0xb9, 0x58, 0xd3, 0x3f]);
                        true
                    }
                    _ => {
                        text(&mut block, false, b"x-ath");
                        false
                    }
                };
                let plain: Vec<u8> = value.iter().map(|n| CODES[*n].0).collect();
                let bytes = if *huffman { coded(value) } else { plain.clone() };
                text(&mut block, *huffman, &bytes);
                let fragment = path && plain.contains(&b'#');
                found |= fragment;
                if *kept {
                    table.insert(0, (path, fragment));
                }
            }
        }
    }
    (block, found)
}

/// Gives a payload in pieces, with what comes behind it.
fn give(paths: &mut Paths, head: Head, payload: &[u8], cut: usize) {
    paths.frame(head, &[]);
    let all = [payload, b"\x00\x00\x01 another"].concat();
    all.chunks(cut).for_each(|piece| paths.payload(piece));
}

fn head(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Head {
    Head { kind, flags, bytes: u32::try_from(payload.len()).unwrap(), stream }
}

proptest! {
    #[test]
    fn what_a_block_says_is_known_however_it_comes(
        blocks in prop::collection::vec((ops(), 0..64usize, 1..40usize), 1..6),
        padded in any::<bool>(),
        priority in any::<bool>(),
    ) {
        let (mut paths, mut table, mut stream) = (Paths::default(), Vec::new(), 1);
        for (ops, end, cut) in blocks {
            let (block, found) = write(&ops, &mut table);
            let (first, last) = block.split_at(end.min(block.len()));
            let mut payload = Vec::new();
            payload.extend(padded.then_some(7));
            payload.extend_from_slice(if priority { &[0x80, 0, 0, 0, 1] } else { &[] });
            payload.extend_from_slice(first);
            payload.extend_from_slice(if padded { b":path#." } else { &[] });
            let flags = if padded { PADDED } else { 0 } | if priority { PRIORITY } else { 0 };
            stream += 2;
            give(&mut paths, head(HEADERS, flags, stream, &payload), &payload, cut);
            give(&mut paths, head(CONTINUATION, END_HEADERS, stream, last), last, cut);
            paths.frame(head(DATA, 0, stream, b"#"), b"#");
            prop_assert_eq!(paths.take(stream), found);
            prop_assert!(!paths.take(stream), "asked twice");
        }
    }

    #[test]
    fn a_fragment_is_found_in_code(letters in prop::collection::vec(0..CODES.len(), 0..60)) {
        let bytes = coded(&letters);
        let mut path = Path::default();
        bytes.chunks(3).for_each(|piece| path.push(piece, true));
        let fragment = letters.iter().any(|n| CODES[*n].0 == b'#');
        prop_assert_eq!(path.has_fragment(), fragment);
    }
}

#[test]
fn in_doubt_all_are_refused() {
    let endless = [0x40, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff];
    let mut paths = Paths::default();
    paths.frame(head(HEADERS, END_HEADERS, 1, &endless), &endless);
    assert!(paths.take(1) && paths.take(3), "an integer without an end");
    let mut paths = Paths::default();
    paths.frame(head(PUSH_PROMISE, END_HEADERS, 1, &[]), &[]);
    assert!(paths.take(1) && paths.take(3), "a promise of a client");
    let mut paths = Paths::default();
    let fragment = b"\x04\x02/#";
    for stream in 0..=NOTED_MAX {
        assert!(!paths.noted.all, "{stream}");
        let stream = u32::try_from(stream).unwrap() * 2 + 1;
        paths.frame(head(HEADERS, END_HEADERS, stream, fragment), fragment);
    }
    assert!(paths.take(1_000_001), "more of them than anybody answers");
}

#[test]
fn an_entry_is_remembered_as_long_as_a_table_can_hold_it() {
    let mut table = Table::default();
    let insert = |table: &mut Table, path, fragment| {
        enter(&mut table.paths, path);
        enter(&mut table.fragments, fragment);
    };
    insert(&mut table, true, true);
    for n in 0..127 {
        assert!(table.is_path(DYNAMIC + n) && table.is_fragment(DYNAMIC + n), "{n}");
        insert(&mut table, n % 2 == 0, false);
    }
    assert!(table.is_fragment(DYNAMIC + 127));
    assert!(!table.is_fragment(DYNAMIC + 128) && !table.is_path(u32::MAX) && !table.is_path(0));
}
