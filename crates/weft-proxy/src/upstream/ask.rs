// SPDX-License-Identifier: Apache-2.0
//! What of a request the balancer hashes, and the cookie for a client that has none yet. Called
//! by the attempt loop once per request; pure but for the random source.

use std::net::IpAddr;

use http::header::{COOKIE, DATE, HeaderMap, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode, Uri};
use weft_base::clock::Clock;
use weft_base::limits::RETRY_AFTER_MS_MAX;
use weft_base::rng::Rng;
use weft_model::decide::{cookie, key_hash};
use weft_model::{HashBy, HashCookie, LbPolicy};

use crate::http::cache::date;

/// The key's hash, and what to tell the client.
#[derive(Debug, Default)]
pub struct Key {
    pub hash: Option<u64>,
    /// A `Set-Cookie` for the answer.
    pub given: Option<HeaderValue>,
}

/// How long an answer asks its clients to stay away: in seconds, or until a date (RFC 9110 10.2.3),
/// which is a time of its own `Date` if it says one, so that no two clocks must agree.
pub fn pause_ms<B>(answer: &Response<B>, clock: &Clock) -> Option<u64> {
    retry_after_ms(answer.status(), answer.headers(), || clock.wall_ms())
}

fn retry_after_ms(
    status: StatusCode,
    headers: &HeaderMap,
    wall_ms: impl FnOnce() -> u64,
) -> Option<u64> {
    let asked = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    if !asked {
        return None;
    }
    let said = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let seconds = match said.parse::<u64>() {
        Ok(seconds) => seconds,
        Err(_) if !said.is_empty() && said.bytes().all(|b| b.is_ascii_digit()) => u64::MAX,
        Err(_) => {
            let now = date(headers, &DATE).unwrap_or_else(|| wall_ms() / 1_000);
            date(headers, &RETRY_AFTER)?.saturating_sub(now)
        }
    };
    Some(seconds.saturating_mul(1_000).min(RETRY_AFTER_MS_MAX))
}

// === impl Key ===

impl Key {
    pub fn of(
        lb: &LbPolicy,
        headers: &HeaderMap,
        uri: &Uri,
        client: IpAddr,
        rng: &mut Rng,
    ) -> Self {
        let LbPolicy::Hash(hashing) = lb else { return Self::default() };
        let hash = match &hashing.by {
            HashBy::Header(name) => headers.get(&**name).map(|v| key_hash(v.as_bytes())),
            HashBy::SourceIp => Some(Self::of_ip(client)),
            HashBy::Query(name) => query(uri, name).map(|v| key_hash(v.as_bytes())),
            HashBy::Cookie(of) => {
                let sent = headers.get_all(COOKIE).iter().filter_map(|v| v.to_str().ok());
                match sent.filter_map(|text| cookie(text, &of.name)).next() {
                    Some(value) => Some(key_hash(value.as_bytes())),
                    None => return Self::given(of, rng),
                }
            }
        };
        Self { hash, given: None }
    }

    /// Of a connection that is no HTTP: all there is to it is its client.
    pub fn of_connection(lb: &LbPolicy, client: IpAddr) -> Option<u64> {
        match lb {
            LbPolicy::Hash(hashing) if hashing.by == HashBy::SourceIp => Some(Self::of_ip(client)),
            _ => None,
        }
    }

    fn of_ip(client: IpAddr) -> u64 {
        match client.to_canonical() {
            IpAddr::V4(ip) => key_hash(&ip.octets()),
            IpAddr::V6(ip) => key_hash(&ip.octets()),
        }
    }

    /// A new client gets a key of its own, when the policy gives cookies at all.
    fn given(of: &HashCookie, rng: &mut Rng) -> Self {
        let Some(ttl_ms) = of.ttl_ms else { return Self::default() };
        let value = format!("{:016x}", rng.next_u64());
        let mut text = format!("{}={value}", of.name);
        if ttl_ms > 0 {
            text.push_str(&format!("; Max-Age={}", ttl_ms.div_ceil(1_000)));
        }
        if !of.path.is_empty() {
            text.push_str("; Path=");
            text.push_str(&of.path);
        }
        text.push_str("; HttpOnly");
        for attribute in &of.attributes {
            text.push_str("; ");
            text.push_str(attribute);
        }
        Self { hash: Some(key_hash(value.as_bytes())), given: HeaderValue::from_str(&text).ok() }
    }
}

fn query<'a>(uri: &'a Uri, name: &str) -> Option<&'a str> {
    let mut pairs = uri.query()?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use weft_model::{HashTable, Hashing};

    use super::*;

    fn key(by: HashBy, headers: &HeaderMap, uri: &str) -> Key {
        let table = HashTable::Ring { points_min: 1 };
        let lb = LbPolicy::Hash(Box::new(Hashing { by, table, load_max_basis_points: None }));
        let (uri, client) = (uri.parse().unwrap(), [10, 0, 0, 1].into());
        Key::of(&lb, headers, &uri, client, &mut Rng::seeded(1))
    }

    #[test]
    fn keys_come_from_where_the_policy_says() {
        let mut headers = HeaderMap::new();
        headers.insert("x-user", HeaderValue::from_static("ann"));
        headers.append(COOKIE, HeaderValue::from_static("a=1; b=2"));
        headers.append(COOKIE, HeaderValue::from_static("sid=ann"));
        let ann = Some(key_hash(b"ann"));
        assert_eq!(key(HashBy::Header("x-user".into()), &headers, "/").hash, ann);
        assert_eq!(key(HashBy::Header("x-other".into()), &headers, "/").hash, None);
        assert_eq!(key(HashBy::Query("u".into()), &headers, "/p?v=1&u=ann&w").hash, ann);
        assert_eq!(key(HashBy::Query("u".into()), &headers, "/p?uu=ann").hash, None);
        let cookie = |name: &str| {
            let ttl_ms = Some(1_500);
            let path = "/app".into();
            HashBy::Cookie(HashCookie {
                name: name.into(),
                ttl_ms,
                path,
                attributes: vec!["SameSite=Strict".into()],
            })
        };
        let known = key(cookie("sid"), &headers, "/");
        assert_eq!((known.hash, known.given), (ann, None));
        let new = key(cookie("other"), &headers, "/");
        let given = new.given.unwrap();
        let (pair, attributes) = given.to_str().unwrap().split_once("; ").unwrap();
        assert_eq!(attributes, "Max-Age=2; Path=/app; HttpOnly; SameSite=Strict");
        // The client comes back with it and means the same.
        headers.insert(COOKIE, pair.parse().unwrap());
        assert_eq!(key(cookie("other"), &headers, "/").hash, new.hash);
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        assert_eq!(key(HashBy::SourceIp, &headers, "/").hash, Some(Key::of_ip(mapped)));
    }

    #[test]
    fn only_refusals_for_now_ask_for_a_pause() {
        let of = |status: u16, text: &'static str| {
            let headers = [(RETRY_AFTER, HeaderValue::from_static(text))].into_iter().collect();
            retry_after_ms(StatusCode::from_u16(status).unwrap(), &headers, || 784_111_777_000)
        };
        assert_eq!(
            [of(429, "2"), of(503, " 1 "), of(200, "2"), of(301, "2")],
            [Some(2_000), Some(1_000), None, None]
        );
        assert_eq!(
            [of(429, "999999"), of(429, "-1"), of(429, "soon"), of(429, "")],
            [Some(RETRY_AFTER_MS_MAX), None, None, None]
        );
        assert_eq!(of(503, "99999999999999999999999"), Some(RETRY_AFTER_MS_MAX));
        // 1994-11-06 08:49:37 is now, in all three forms that recipients must take.
        assert_eq!(
            [
                of(503, "Sun, 06 Nov 1994 08:49:47 GMT"),
                of(429, "Sunday, 06-Nov-94 08:49:38 GMT"),
                of(503, "Sun Nov  6 08:49:37 1994"),
                of(503, "Sun, 06 Nov 1994 08:49:00 GMT"),
                of(200, "Sun, 06 Nov 1994 08:49:47 GMT"),
            ],
            [Some(10_000), Some(1_000), Some(0), Some(0), None]
        );
        let both = [
            (RETRY_AFTER, "Thu, 01 Jan 2026 00:00:09 GMT"),
            (DATE, "Thu, 01 Jan 2026 00:00:00 GMT"),
        ];
        let both = both.into_iter().map(|(n, v)| (n, HeaderValue::from_static(v))).collect();
        let ours = || panic!("the answer's own clock tells");
        assert_eq!(retry_after_ms(StatusCode::SERVICE_UNAVAILABLE, &both, ours), Some(9_000));
    }
}
