// SPDX-License-Identifier: Apache-2.0
//! Who is answered over UDP, where anybody can write any sender on a question: ports that answer
//! back are not, sources that ask too much are told to come over TCP, and whoever shows a cookie
//! of ours (RFC 7873, made as RFC 9018 says) is who it says. Called by `mod.rs` before a question
//! is looked at. Pure but for its key; its memory does not grow.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};

use weft_base::clock::Mono;
use weft_base::limits::DNS_SOURCES_MAX;

/// Services that answer whatever comes, and name servers: two of a kind would talk for ever.
/// Echo, discard, daytime, quotes, characters, time, names, and no port at all.
const LOOPING: [u16; 8] = [0, 7, 9, 13, 17, 19, 37, 53];
/// A source may save up as many questions as it is allowed in this many seconds.
const BURST_SECS: u64 = 2;
/// Cookies are taken for an hour, and from clocks that are five minutes ahead (RFC 9018, 4.3).
const COOKIE_SECS: u32 = 3600;
const AHEAD_SECS: u32 = 300;
const VERSION: u8 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Answer,
    /// Only what makes it come again over TCP.
    Again,
    Drop,
}

/// Counts the questions of each source. Sources share a place now and then; none takes another
/// one's name away.
#[derive(Debug)]
pub struct Guard {
    /// Questions a second; 0 is without bound.
    rate: u32,
    loopback: bool,
    places: Vec<Place>,
    seed: RandomState,
}

#[derive(Clone, Copy, Debug, Default)]
struct Place {
    /// Thousandths of questions that it may still ask.
    left: u64,
    at: Mono,
    refused: u32,
    used: bool,
}

/// Makes and knows this server's cookies.
pub struct Cookies {
    key: [u8; 16],
}

/// Whether a question's sender is one that would answer our answer.
pub fn is_loop(from: SocketAddr) -> bool {
    LOOPING.contains(&from.port())
}

// === impl Guard ===

impl Guard {
    /// `rate` questions a second for each source; `None` for no bound. Loopback counts only when
    /// it is said: no question from elsewhere says that it is from there.
    pub fn new(rate: Option<u32>, loopback: bool) -> Self {
        let rate = rate.unwrap_or(0);
        let places = if rate == 0 { 0 } else { DNS_SOURCES_MAX };
        Self { rate, loopback, places: vec![Place::default(); places], seed: RandomState::new() }
    }

    /// Whether questions of a source are counted.
    pub fn counts(&self, from: IpAddr) -> bool {
        self.rate != 0 && (self.loopback || !from.to_canonical().is_loopback())
    }

    /// One more question of a source.
    pub fn admit(&mut self, from: IpAddr, now: Mono) -> Verdict {
        let from = from.to_canonical();
        if !self.counts(from) {
            return Verdict::Answer;
        }
        let rate = u64::from(self.rate);
        let full = rate * BURST_SECS * 1000;
        let count = self.places.len().max(1) as u64;
        let at = usize::try_from(self.seed.hash_one(network(from)) % count).unwrap_or(0);
        let Some(place) = self.places.get_mut(at) else { return Verdict::Answer };
        if !place.used {
            *place = Place { left: full, at: now, refused: 0, used: true };
        }
        let passed = u64::try_from(now.since(place.at).as_millis()).unwrap_or(u64::MAX);
        place.left = place.left.saturating_add(passed.saturating_mul(rate)).min(full);
        place.at = now;
        if place.left >= 1000 {
            place.left -= 1000;
            return Verdict::Answer;
        }
        place.refused = place.refused.wrapping_add(1);
        // A victim is sent half as many as there were questions, each about as long; a
        // real client hears of it soon.
        if place.refused % 2 == 1 { Verdict::Again } else { Verdict::Drop }
    }
}

/// Who counts as one: an IPv4 address, or the network that one IPv6 customer has.
pub fn network(from: IpAddr) -> u128 {
    match from {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => (u128::from(v6) >> 72) | 1 << 64,
    }
}

// === impl Cookies ===

impl Cookies {
    pub fn new(key: [u8; 16]) -> Self {
        Self { key }
    }

    /// The client's cookie and ours for it.
    pub fn make(&self, client: [u8; 8], from: IpAddr, now_secs: u32) -> [u8; 24] {
        let [t0, t1, t2, t3] = now_secs.to_be_bytes();
        let mut text = Vec::with_capacity(32);
        text.extend_from_slice(&client);
        text.extend_from_slice(&[VERSION, 0, 0, 0, t0, t1, t2, t3]);
        match from {
            IpAddr::V4(v4) => text.extend_from_slice(&v4.octets()),
            IpAddr::V6(v6) => text.extend_from_slice(&v6.octets()),
        }
        let hash = siphash_2_4(self.key, &text).to_le_bytes();
        let mut out = [0; 24];
        let whole = text.iter().take(16).chain(&hash);
        for (place, byte) in out.iter_mut().zip(whole) {
            *place = *byte;
        }
        out
    }

    /// Whether a cookie is one that this server gave this client not long ago.
    pub fn knows(&self, cookie: &[u8], from: IpAddr, now_secs: u32) -> bool {
        let Ok(cookie) = <[u8; 24]>::try_from(cookie) else { return false };
        let (Some(client), Some(time)) =
            (cookie.first_chunk::<8>(), cookie.get(12..16).and_then(|t| t.first_chunk::<4>()))
        else {
            return false;
        };
        let made = u32::from_be_bytes(*time);
        // Serial numbers: the clock may wrap (RFC 1982).
        let (age, ahead) = (now_secs.wrapping_sub(made), made.wrapping_sub(now_secs));
        (age <= COOKIE_SECS || ahead <= AHEAD_SECS) && self.make(*client, from, made) == cookie
    }
}

impl std::fmt::Debug for Cookies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cookies")
    }
}

/// SipHash-2-4 (Aumasson and Bernstein).
fn siphash_2_4(key: [u8; 16], text: &[u8]) -> u64 {
    let word =
        |bytes: &[u8]| bytes.iter().rev().fold(0u64, |word, byte| (word << 8) | u64::from(*byte));
    let (low, high) = key.split_at(8);
    let (k0, k1) = (word(low), word(high));
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    let chunks = text.chunks_exact(8);
    // The last word ends with the length's low byte.
    let last = word(chunks.remainder()) | ((text.len() as u64) << 56);
    for m in chunks.map(word).chain([last]) {
        v[3] ^= m;
        sip_rounds(&mut v, 2);
        v[0] ^= m;
    }
    v[2] ^= 0xff;
    sip_rounds(&mut v, 4);
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

fn sip_rounds(v: &mut [u64; 4], rounds: u32) {
    let [mut a, mut b, mut c, mut d] = *v;
    for _ in 0..rounds {
        a = a.wrapping_add(b);
        b = b.rotate_left(13) ^ a;
        a = a.rotate_left(32);
        c = c.wrapping_add(d);
        d = d.rotate_left(16) ^ c;
        a = a.wrapping_add(d);
        d = d.rotate_left(21) ^ a;
        c = c.wrapping_add(b);
        b = b.rotate_left(17) ^ c;
        c = c.rotate_left(32);
    }
    *v = [a, b, c, d];
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const KEY: [u8; 16] = [
        0xe5, 0xe9, 0x73, 0xe5, 0xa6, 0xb2, 0xa4, 0x3f, 0x48, 0xe7, 0xdc, 0x84, 0x9e, 0x37, 0xbf,
        0xcf,
    ];

    #[test]
    fn cookies_are_those_of_rfc_9018() {
        // Its appendix A.1.
        let client = 0x2464_c4ab_cf10_c957_u64.to_be_bytes();
        let from = IpAddr::from([198, 51, 100, 100]);
        let cookie = Cookies::new(KEY).make(client, from, 1_559_731_985);
        let (head, hash) = (0x0100_0000_5cf7_9f11_u64, 0x1f81_30c3_eee2_9480_u64);
        assert_eq!(cookie[8..16], head.to_be_bytes());
        assert_eq!(cookie[16..], hash.to_be_bytes());
    }

    #[test]
    fn a_cookie_is_known_for_an_hour_from_where_it_went() {
        let cookies = Cookies::new(KEY);
        let from = IpAddr::from([192, 0, 2, 1]);
        let cookie = cookies.make([7; 8], from, 10_000);
        assert!(cookies.knows(&cookie, from, 10_000));
        assert!(cookies.knows(&cookie, from, 13_600) && cookies.knows(&cookie, from, 9_700));
        assert!(!cookies.knows(&cookie, from, 13_601) && !cookies.knows(&cookie, from, 9_699));
        assert!(!cookies.knows(&cookie, IpAddr::from([192, 0, 2, 2]), 10_000));
        assert!(!cookies.knows(&cookie[..16], from, 10_000));
        let mut other = cookie;
        other[23] ^= 1;
        assert!(!cookies.knows(&other, from, 10_000));
        assert!(!Cookies::new([0; 16]).knows(&cookie, from, 10_000));
    }

    #[test]
    fn a_source_that_asks_too_much_is_told_or_dropped_and_others_are_not() {
        let mut guard = Guard::new(Some(10), false);
        let (loud, quiet) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 77]));
        let mut now = Mono(1_000);
        let answered = |guard: &mut Guard, from, now, times: usize| {
            let all = (0..times).map(|_| guard.admit(from, now));
            let verdicts: Vec<Verdict> = all.collect();
            let count = |which| verdicts.iter().filter(|v| **v == which).count();
            (count(Verdict::Answer), count(Verdict::Again), count(Verdict::Drop))
        };
        assert_eq!(answered(&mut guard, loud, now, 100), (20, 40, 40));
        assert_eq!(answered(&mut guard, quiet, now, 20), (20, 0, 0));
        now = now.plus(Duration::from_secs(1));
        assert_eq!(answered(&mut guard, loud, now, 20), (10, 5, 5));
        // An IPv6 customer is one, however many addresses it has.
        let v6 = |n: u16| IpAddr::from([0x2001, 0xdb8, 0, 0x100, 0, 0, 0, n]);
        let all = (0..30).filter(|n| guard.admit(v6(*n), now) == Verdict::Answer).count();
        assert_eq!(all, 20);
        assert_eq!(answered(&mut guard, IpAddr::from([127, 0, 0, 1]), now, 50), (50, 0, 0));
        let mut strict = Guard::new(Some(10), true);
        assert_eq!(answered(&mut strict, IpAddr::from([127, 0, 0, 1]), now, 50).0, 20);
        let mut open = Guard::new(None, true);
        assert_eq!(answered(&mut open, loud, now, 500).0, 500);
    }
}
