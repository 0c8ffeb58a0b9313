// SPDX-License-Identifier: Apache-2.0
//! Heads of the usual form, found in one pass over their bytes, eight at a time: where each part
//! lies, nothing else. What is unusual in any way is left to [`super::head`], which looks at every
//! byte and can say what is wrong. Pure; called by `head`, which makes the same of both.

use http::Method;

/// Lines of a head that is usual, and how long it is at most.
const FIELDS_MAX: usize = 24;
const BYTES_MAX: usize = 4 * 1024;

/// Where a head's parts lie.
#[derive(Debug)]
pub(super) struct Usual {
    /// Behind the empty line.
    pub end: usize,
    fields: [Field; FIELDS_MAX],
    used: usize,
}

/// A request's first line, of HTTP/1.1: where its target lies.
#[derive(Debug)]
pub(super) struct RequestLine {
    pub method: Method,
    pub target: (usize, usize),
}

/// A line: from where to where its name and its value are.
#[derive(Clone, Copy, Debug, Default)]
struct Field {
    name: u16,
    colon: u16,
    value: u16,
    end: u16,
}

/// A request's head; `None` when it is not all there, or not usual.
pub(super) fn request(bytes: &[u8]) -> Option<(RequestLine, Usual)> {
    let (method, at) = method(bytes)?;
    let space = find(bytes, at, b' ')?;
    let version = bytes.get(space..)?.first_chunk::<11>()?;
    if version != b" HTTP/1.1\r\n" {
        return None;
    }
    let line = RequestLine { method, target: (at, space) };
    Some((line, fields(bytes, space + version.len())?))
}

/// An answer's head and its status, likewise.
pub(super) fn response(bytes: &[u8]) -> Option<(u16, Usual)> {
    let [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'1', b' ', a, b, c, b' ', ..] = bytes else {
        return None;
    };
    let digit = |d: &u8| d.is_ascii_digit().then(|| u16::from(d - b'0'));
    let status = digit(a)? * 100 + digit(b)? * 10 + digit(c)?;
    let end = line_end(bytes, 13)?;
    Some((status, fields(bytes, end + 2)?))
}

fn method(bytes: &[u8]) -> Option<(Method, usize)> {
    Some(match bytes {
        [b'G', b'E', b'T', b' ', ..] => (Method::GET, 4),
        [b'P', b'O', b'S', b'T', b' ', ..] => (Method::POST, 5),
        [b'P', b'U', b'T', b' ', ..] => (Method::PUT, 4),
        [b'H', b'E', b'A', b'D', b' ', ..] => (Method::HEAD, 5),
        [b'D', b'E', b'L', b'E', b'T', b'E', b' ', ..] => (Method::DELETE, 7),
        [b'P', b'A', b'T', b'C', b'H', b' ', ..] => (Method::PATCH, 6),
        _ => return None,
    })
}

/// The lines from `at` on, to the empty one. Line ends are nowhere but at their ends.
fn fields(bytes: &[u8], mut at: usize) -> Option<Usual> {
    let mut found = Usual { end: 0, fields: [Field::default(); FIELDS_MAX], used: 0 };
    loop {
        if let [b'\r', b'\n', ..] = bytes.get(at..)? {
            found.end = at + 2;
            return (found.end <= BYTES_MAX).then_some(found);
        }
        let colon = find(bytes, at, b':')?;
        let mut value = colon + 1;
        while bytes.get(value) == Some(&b' ') {
            value += 1;
        }
        let line_end = line_end(bytes, value)?;
        let mut end = line_end;
        while end > value && bytes.get(end - 1) == Some(&b' ') {
            end -= 1;
        }
        let short = |n| u16::try_from(n).ok();
        *found.fields.get_mut(found.used)? = Field {
            name: short(at)?,
            colon: short(colon)?,
            value: short(value)?,
            end: short(end)?,
        };
        found.used += 1;
        at = line_end + 2;
    }
}

// === impl Usual ===

impl Usual {
    /// Names and values in the bytes that this was found in.
    pub fn fields<'h>(&'h self, head: &'h [u8]) -> impl Iterator<Item = (&'h [u8], &'h [u8])> {
        self.fields.iter().take(self.used).map(|f| {
            let part = |from: u16, to: u16| head.get(usize::from(from)..usize::from(to));
            (part(f.name, f.colon).unwrap_or_default(), part(f.value, f.end).unwrap_or_default())
        })
    }
}

/// The lowest and the highest bit of each byte in a word.
const ONES: u64 = u64::MAX / 0xff;
const HIGH: u64 = ONES << 7;

/// Where a byte is next, in the same line.
#[inline]
fn find(bytes: &[u8], from: usize, byte: u8) -> Option<usize> {
    let marks = |word: u64| {
        let zero = word ^ (ONES * u64::from(byte));
        (zero.wrapping_sub(ONES) & !zero & HIGH) | controls(word)
    };
    let at = first(bytes, from, marks, |b| b == byte || b.is_ascii_control())?;
    (bytes.get(at) == Some(&byte)).then_some(at)
}

/// Where a line ends that has no control character, not even a tab.
#[inline]
fn line_end(bytes: &[u8], from: usize) -> Option<usize> {
    let end = first(bytes, from, controls, |b| b.is_ascii_control())?;
    (bytes.get(end..end + 2)? == b"\r\n").then_some(end)
}

/// Marks control characters.
#[inline]
fn controls(word: u64) -> u64 {
    let delete = word ^ (ONES * 0x7f);
    let delete = delete.wrapping_sub(ONES) & !delete;
    (word.wrapping_sub(ONES * 0x20) & !word | delete) & HIGH
}

/// The first byte that `marks` marks in a word of eight and `is` takes by itself. Of several marks
/// the first is right; those behind it may be of its making.
#[inline]
fn first(
    bytes: &[u8],
    from: usize,
    marks: impl Fn(u64) -> u64,
    is: impl Fn(u8) -> bool,
) -> Option<usize> {
    let mut at = from;
    while let Some(word) = bytes.get(at..)?.first_chunk::<8>() {
        let marks = marks(u64::from_le_bytes(*word));
        if marks != 0 {
            return Some(at + (marks.trailing_zeros() / 8) as usize);
        }
        at += 8;
    }
    bytes.get(at..)?.iter().position(|b| is(*b)).map(|n| at + n)
}
