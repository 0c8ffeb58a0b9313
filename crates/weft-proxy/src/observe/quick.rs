// SPDX-License-Identifier: Apache-2.0
//! Numbers, addresses and times as text, without the formatter's machinery: an access-log line
//! has a dozen of them. Called by `format` and by whoever writes such a value per request.

use std::cell::RefCell;
use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Digits of the longest number.
pub const DIGITS_MAX: usize = 20;
/// Longest address as text, with brackets, scope and port.
const ADDRESS_MAX: usize = 64;

/// Text that takes ASCII.
pub trait Ascii {
    fn put(&mut self, ascii: &[u8]);
}

impl Ascii for Vec<u8> {
    #[inline]
    fn put(&mut self, ascii: &[u8]) {
        append(self, ascii);
    }
}

impl Ascii for String {
    fn put(&mut self, ascii: &[u8]) {
        self.push_str(std::str::from_utf8(ascii).unwrap_or_default());
    }
}

/// A short text on the stack.
#[derive(Debug)]
pub struct Short {
    bytes: [u8; ADDRESS_MAX],
    used: usize,
}

impl Short {
    pub fn of_ip(ip: IpAddr) -> Self {
        let mut short = Self { bytes: [0; ADDRESS_MAX], used: 0 };
        self::ip(&mut short, ip);
        short
    }

    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.used).unwrap_or_default()
    }
}

impl Ascii for Short {
    /// What has no room is cut off.
    #[inline]
    fn put(&mut self, ascii: &[u8]) {
        let room = self.bytes.get_mut(self.used..).unwrap_or_default();
        for (place, byte) in room.iter_mut().zip(ascii) {
            *place = *byte;
            self.used += 1;
        }
    }
}

impl fmt::Write for Short {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.put(text.as_bytes());
        Ok(())
    }
}

/// Appends what mostly is short: a few words are moved in place, where a call to move so little
/// costs more than the move.
#[inline]
pub fn append(out: &mut Vec<u8>, text: &[u8]) {
    const SHORT: usize = 32;
    let (at, n) = (out.len(), text.len());
    if n > SHORT {
        return out.extend_from_slice(text);
    }
    out.extend_from_slice(&[0; SHORT]);
    if let Some(place) = out.get_mut(at..at + n) {
        // Both ends, which may lie over each other.
        match n {
            0 => {}
            1..=3 => place.iter_mut().zip(text).for_each(|(place, byte)| *place = *byte),
            4..=7 => ends::<4>(place, text),
            8..=15 => ends::<8>(place, text),
            _ => ends::<16>(place, text),
        }
    }
    out.truncate(at + n);
}

#[inline]
fn ends<const N: usize>(place: &mut [u8], text: &[u8]) {
    if let (Some(place), Some(text)) = (place.first_chunk_mut::<N>(), text.first_chunk()) {
        *place = *text;
    }
    if let (Some(place), Some(text)) = (place.last_chunk_mut::<N>(), text.last_chunk()) {
        *place = *text;
    }
}

/// The decimal digits of a number, at the end of `room`.
#[inline]
pub fn digits(mut n: u64, room: &mut [u8; DIGITS_MAX]) -> &[u8] {
    let mut used = 0;
    for place in room.iter_mut().rev() {
        *place = b'0' + u8::try_from(n % 10).unwrap_or_default();
        used += 1;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    room.get(DIGITS_MAX - used..).unwrap_or_default()
}

pub fn number(out: &mut impl Ascii, n: u64) {
    out.put(digits(n, &mut [0; DIGITS_MAX]));
}

pub fn ip(out: &mut impl Ascii, ip: IpAddr) {
    match ip {
        IpAddr::V4(v4) => ipv4(out, v4, None),
        IpAddr::V6(v6) => formatted(out, v6),
    }
}

pub fn address(out: &mut impl Ascii, address: SocketAddr) {
    match address {
        SocketAddr::V4(v4) => ipv4(out, *v4.ip(), Some(v4.port())),
        SocketAddr::V6(v6) => formatted(out, v6),
    }
}

fn formatted(out: &mut impl Ascii, value: impl fmt::Display) {
    let mut short = Short { bytes: [0; ADDRESS_MAX], used: 0 };
    // Writing into a short text does not fail.
    let _ = write!(short, "{value}");
    out.put(short.as_bytes());
}

/// The digits of every byte with a point behind them, and how many characters that is.
#[allow(clippy::indexing_slicing)] // Made when it is compiled.
static BYTES: [([u8; 4], usize); 256] = {
    let mut all = [([0; 4], 0); 256];
    let mut n = 0u8;
    loop {
        let (a, b, c) = (b'0' + n / 100, b'0' + n / 10 % 10, b'0' + n % 10);
        all[n as usize] = match n {
            0..10 => ([c, b'.', 0, 0], 2),
            10..100 => ([b, c, b'.', 0], 3),
            _ => ([a, b, c, b'.'], 4),
        };
        if n == u8::MAX {
            break all;
        }
        n += 1;
    }
};

fn ipv4(out: &mut impl Ascii, ip: Ipv4Addr, port: Option<u16>) {
    // Four octets of three digits and a sign each, five digits.
    let mut room = [0; 4 * 4 + 5];
    let mut used = 0;
    for octet in ip.octets() {
        let place = room.get_mut(used..).and_then(<[u8]>::first_chunk_mut::<4>);
        if let (Some((text, n)), Some(place)) = (BYTES.get(usize::from(octet)), place) {
            *place = *text;
            used += n;
        }
    }
    // In the place of the last point, or nothing.
    used = used.saturating_sub(1);
    if let Some(port) = port {
        let mut room_of_port = [0; DIGITS_MAX];
        let port = digits(port.into(), &mut room_of_port);
        if let Some([sign, place @ ..]) = room.get_mut(used..=used + port.len()) {
            *sign = b':';
            place.copy_from_slice(port);
            used += 1 + port.len();
        }
    }
    out.put(room.get(..used).unwrap_or_default());
}

/// Whether a text is ASCII that is shown as it is, in quotation marks too: no control character,
/// no quotation mark, no backslash.
#[inline]
pub fn is_plain(text: &[u8]) -> bool {
    let (words, rest) = text.as_chunks::<8>();
    let odd = words.iter().fold(0, |odd, word| odd | odd_in(u64::from_le_bytes(*word)));
    match text.last_chunk::<8>() {
        _ if rest.is_empty() => odd == 0,
        // The last word lies over the one before.
        Some(last) => odd | odd_in(u64::from_le_bytes(*last)) == 0,
        None => rest.iter().all(|b| matches!(b, b' '..=b'~') && *b != b'"' && *b != b'\\'),
    }
}

/// Whether a short text has this byte.
#[inline]
pub fn has(text: &[u8], byte: u8) -> bool {
    let zero = |word: [u8; 8]| {
        let word = u64::from_le_bytes(word) ^ (ONES * u64::from(byte));
        word.wrapping_sub(ONES) & !word & HIGH
    };
    let (words, rest) = text.as_chunks::<8>();
    let found = words.iter().fold(0, |found, word| found | zero(*word));
    match text.last_chunk::<8>() {
        _ if rest.is_empty() => found != 0,
        Some(last) => found | zero(*last) != 0,
        None => rest.contains(&byte),
    }
}

/// The lowest and the highest bit of each byte in a word.
const ONES: u64 = u64::MAX / 0xff;
const HIGH: u64 = ONES << 7;

/// Marks when any of eight bytes is none of those.
#[inline]
fn odd_in(word: u64) -> u64 {
    let is = |byte: u8| {
        let zero = word ^ (ONES * u64::from(byte));
        zero.wrapping_sub(ONES) & !zero
    };
    let control = word.wrapping_sub(ONES * 0x20) & !word;
    (word | control | is(0x7f) | is(b'"') | is(b'\\')) & HIGH
}

/// RFC 3339 with milliseconds, in UTC. All but the milliseconds is made once in a second.
pub fn timestamp(out: &mut impl Ascii, wall_ms: u64) {
    thread_local! {
        static LAST: RefCell<Stamp> =
            const { RefCell::new(Stamp { ms: u64::MAX, text: Vec::new(), whole: 0 }) };
    }
    LAST.with_borrow_mut(|last| {
        if last.ms != wall_ms {
            last.set(wall_ms);
        }
        out.put(&last.text);
    });
}

/// A time and its text, of which the first bytes are the second's.
struct Stamp {
    ms: u64,
    text: Vec<u8>,
    whole: usize,
}

impl Stamp {
    fn set(&mut self, wall_ms: u64) {
        let (second, ms) = (wall_ms / 1_000, wall_ms % 1_000);
        if self.ms / 1_000 != second || self.text.is_empty() {
            self.text.clear();
            let time =
                i64::try_from(second).ok().and_then(|s| jiff::Timestamp::from_second(s).ok());
            match time {
                Some(time) => formatted(&mut self.text, format_args!("{time:.0}")),
                None => number(&mut self.text, second),
            }
            self.whole = self.text.strip_suffix(b"Z").unwrap_or(&self.text).len();
        }
        self.ms = wall_ms;
        self.text.truncate(self.whole);
        let mut room = [0; DIGITS_MAX];
        // 1 and three digits, of which the 1 is left out.
        let padded = digits(1_000 + ms, &mut room);
        self.text.push(b'.');
        self.text.extend_from_slice(padded.get(1..).unwrap_or_default());
        self.text.push(b'Z');
    }
}

/// Lower-case hexadecimal digits of all bytes.
pub fn hex(bytes: &[u8], room: &mut [u8]) {
    #[allow(clippy::indexing_slicing)] // Made when it is compiled.
    static DIGITS: [[u8; 2]; 256] = {
        let digits = b"0123456789abcdef";
        let mut all = [[0; 2]; 256];
        let mut n = 0;
        while n < all.len() {
            all[n] = [digits[n / 16], digits[n % 16]];
            n += 1;
        }
        all
    };
    for (byte, place) in bytes.iter().zip(room.as_chunks_mut::<2>().0) {
        if let Some(digits) = DIGITS.get(usize::from(*byte)) {
            *place = *digits;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_is_quick_is_what_the_formatter_says() {
        for n in [0, 1, 9, 10, 99, 100, 12_345, u64::MAX] {
            assert_eq!(text(|out| number(out, n)), n.to_string());
        }
        for at in [
            "127.0.0.1:80",
            "255.1.20.0:65535",
            "0.0.0.0:0",
            "255.255.255.255:65535",
            "10.99.100.9:1",
            "[2001:db8::1]:443",
            "[::ffff:1.2.3.4]:1",
            "[fe80:1111:2222:3333:4444:5555:6666:7777%4294967295]:65535",
        ] {
            let at: SocketAddr = at.parse().unwrap();
            assert_eq!(text(|out| address(out, at)), at.to_string());
            assert_eq!(text(|out| ip(out, at.ip())), at.ip().to_string());
            assert_eq!(Short::of_ip(at.ip()).as_bytes(), at.ip().to_string().as_bytes());
        }
        for ms in [0, 7, 1_700_000_000_123, 1_700_000_000_999, 1_700_000_001_000, 4_102_444_800_050]
        {
            let at = jiff::Timestamp::from_millisecond(i64::try_from(ms).unwrap()).unwrap();
            assert_eq!(text(|out| timestamp(out, ms)), format!("{at:.3}"));
        }
        // Back and forth within a second, and over its end.
        for ms in [5_000u64, 5_001, 5_999, 6_000, 5_999, 5_001] {
            let at = jiff::Timestamp::from_millisecond(ms.cast_signed()).unwrap();
            assert_eq!(text(|out| timestamp(out, ms)), format!("{at:.3}"));
        }
        let mut room = [0; 6];
        hex(&[0x00, 0x9a, 0xff], &mut room);
        assert_eq!(&room, b"009aff");
    }

    #[test]
    fn what_is_appended_is_all_of_it() {
        let text: Vec<u8> = (1..=80).collect();
        let (mut out, mut expected) = (Vec::new(), Vec::new());
        for n in 0..=80 {
            append(&mut out, &text[..n]);
            expected.extend_from_slice(&text[..n]);
            assert_eq!(out, expected, "{n}");
        }
    }

    #[test]
    fn plain_is_what_needs_no_escape() {
        let plain = |b: u8| (b' '..=b'~').contains(&b) && b != b'"' && b != b'\\';
        for length in 0..40 {
            let usual: Vec<u8> = (0..length).map(|i| b"/aZ09 ~!#-"[i % 10]).collect();
            assert!(is_plain(&usual), "{length}");
            for at in 0..length {
                for byte in 0..=u8::MAX {
                    let mut text = usual.clone();
                    text[at] = byte;
                    assert_eq!(is_plain(&text), plain(byte), "{byte} at {at} of {length}");
                    assert_eq!(has(&text, byte), text.contains(&byte));
                    assert_eq!(has(&text, b'_'), byte == b'_', "{byte} at {at} of {length}");
                }
            }
        }
    }
}
