// SPDX-License-Identifier: Apache-2.0
//! Numbers, addresses and times as text, without the formatter's machinery: an access-log line
//! has a dozen of them. Called by `format` and by whoever writes such a value per request.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Digits of the longest number.
pub const DIGITS_MAX: usize = 20;

/// The decimal digits of a number, at the end of `room`.
pub fn digits(mut n: u64, room: &mut [u8; DIGITS_MAX]) -> &str {
    let mut used = 0;
    for place in room.iter_mut().rev() {
        *place = b'0' + u8::try_from(n % 10).unwrap_or_default();
        used += 1;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    let written = room.get(DIGITS_MAX - used..).unwrap_or_default();
    std::str::from_utf8(written).unwrap_or_default()
}

pub fn number(out: &mut String, n: u64) {
    out.push_str(digits(n, &mut [0; DIGITS_MAX]));
}

pub fn ip(out: &mut String, ip: IpAddr) {
    match ip {
        IpAddr::V4(v4) => ipv4(out, v4, None),
        // Writing into a text does not fail.
        IpAddr::V6(v6) => drop(write!(out, "{v6}")),
    }
}

pub fn address(out: &mut String, address: SocketAddr) {
    match address {
        SocketAddr::V4(v4) => ipv4(out, *v4.ip(), Some(v4.port())),
        SocketAddr::V6(v6) => drop(write!(out, "{v6}")),
    }
}

fn ipv4(out: &mut String, ip: Ipv4Addr, port: Option<u16>) {
    // Written from its end: four octets, four signs, five digits.
    let mut room = [0; 21];
    let mut free = room.len();
    if let Some(port) = port {
        free = digits_before(&mut room, free, port);
        free = byte_before(&mut room, free, b':');
    }
    for (i, octet) in ip.octets().into_iter().rev().enumerate() {
        if i > 0 {
            free = byte_before(&mut room, free, b'.');
        }
        free = digits_before(&mut room, free, octet.into());
    }
    let written = room.get(free..).unwrap_or_default();
    out.push_str(std::str::from_utf8(written).unwrap_or_default());
}

fn digits_before(room: &mut [u8], mut free: usize, mut n: u16) -> usize {
    loop {
        free = byte_before(room, free, b'0' + u8::try_from(n % 10).unwrap_or_default());
        n /= 10;
        if n == 0 {
            return free;
        }
    }
}

fn byte_before(room: &mut [u8], free: usize, byte: u8) -> usize {
    let at = free.saturating_sub(1);
    if let Some(place) = room.get_mut(at) {
        *place = byte;
    }
    at
}

/// RFC 3339 with milliseconds, in UTC. All but the milliseconds is made once in a second.
pub fn timestamp(out: &mut String, wall_ms: u64) {
    thread_local! {
        static LAST: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
    }
    let (second, ms) = (wall_ms / 1_000, wall_ms % 1_000);
    LAST.with_borrow_mut(|(at, text)| {
        if *at != second {
            text.clear();
            let time =
                i64::try_from(second).ok().and_then(|s| jiff::Timestamp::from_second(s).ok());
            match time {
                Some(time) => drop(write!(text, "{time:.0}")),
                None => number(text, second),
            }
            *at = second;
        }
        out.push_str(text.strip_suffix('Z').unwrap_or(text));
    });
    let mut room = [0; DIGITS_MAX];
    // 1 and three digits, of which the 1 is left out.
    let padded = digits(1_000 + ms, &mut room);
    out.push('.');
    out.push_str(padded.get(1..).unwrap_or_default());
    out.push('Z');
}

/// Lower-case hexadecimal digits of all bytes.
pub fn hex(bytes: &[u8], room: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (byte, place) in bytes.iter().zip(room.chunks_exact_mut(2)) {
        let (high, low) = (usize::from(byte >> 4), usize::from(byte & 15));
        if let ([a, b], Some(h), Some(l)) = (place, DIGITS.get(high), DIGITS.get(low)) {
            (*a, *b) = (*h, *l);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl FnOnce(&mut String)) -> String {
        let mut out = String::new();
        write(&mut out);
        out
    }

    #[test]
    fn what_is_quick_is_what_the_formatter_says() {
        for n in [0, 1, 9, 10, 99, 100, 12_345, u64::MAX] {
            assert_eq!(text(|out| number(out, n)), n.to_string());
        }
        for at in ["127.0.0.1:80", "255.1.20.0:65535", "[2001:db8::1]:443", "[::ffff:1.2.3.4]:1"] {
            let at: SocketAddr = at.parse().unwrap();
            assert_eq!(text(|out| address(out, at)), at.to_string());
            assert_eq!(text(|out| ip(out, at.ip())), at.ip().to_string());
        }
        for ms in [0, 7, 1_700_000_000_123, 1_700_000_000_999, 1_700_000_001_000, 4_102_444_800_050]
        {
            let at = jiff::Timestamp::from_millisecond(i64::try_from(ms).unwrap()).unwrap();
            assert_eq!(text(|out| timestamp(out, ms)), format!("{at:.3}"));
        }
        let mut room = [0; 6];
        hex(&[0x00, 0x9a, 0xff], &mut room);
        assert_eq!(&room, b"009aff");
    }
}
