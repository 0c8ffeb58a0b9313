// SPDX-License-Identifier: Apache-2.0
//! Headers between the two sides: what must not pass on, what the proxy adds, and the edits that
//! rules ask for. Pure but for the random numbers handed in.

use std::time::Duration;

use http::header::{
    CONNECTION, COOKIE, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};
use weft_base::rng::Rng;
use weft_model::HeaderEdit;

use super::made;
use super::present::Present;
use crate::guards;
use crate::observe::quick;

pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// `workload.namespace` of the calling sidecar, for the metrics of the called one.
pub const SOURCE: HeaderName = HeaderName::from_static("x-weft-source");
pub const NOT_FORWARDED: HeaderName = HeaderName::from_static("x-weft-not-forwarded");
pub const FLAGS: HeaderName = HeaderName::from_static("x-weft-flags");
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
/// An option of `Connection`; and whoever sends a header of that name names it with it.
const CLOSE: &str = "close";
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// How long a gRPC client is going to wait (`grpc-timeout: 100m`). What is not of that form says
/// nothing.
pub fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(GRPC_TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(n * 3600)),
        "M" => Some(Duration::from_secs(n * 60)),
        "S" => Some(Duration::from_secs(n)),
        "m" => Some(Duration::from_millis(n)),
        "u" => Some(Duration::from_micros(n)),
        "n" => Some(Duration::from_nanos(n)),
        _ => None,
    }
}

/// Says how long the client still waits, where it said so: what was spent here, on other attempts
/// too, the upstream cannot spend again.
pub fn shorten_grpc_timeout(headers: &mut HeaderMap, left: Duration) {
    let Some(value) = headers.get_mut(GRPC_TIMEOUT) else { return };
    let ms = left.as_millis().max(1);
    // At most eight digits.
    let text = if ms < 100_000_000 { format!("{ms}m") } else { format!("{}S", ms / 1000) };
    if let Some(text) = HeaderValue::try_from(text).ok().filter(|t| t.len() <= 9) {
        *value = text;
    }
}

/// Removes what belongs to one connection only (RFC 9110 §7.6.1).
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if !guards::on("hop-by-hop") {
        return;
    }
    if headers.contains_key(CONNECTION) {
        let mut close = false;
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
            .map(str::trim)
            .inspect(|option| close |= option.eq_ignore_ascii_case(CLOSE))
            .filter(|option| !is_usual_option(option))
            .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
            .filter(super::trust::is_droppable)
            .collect();
        for name in named {
            if name != TE {
                headers.remove(name);
            }
        }
        if close {
            headers.remove(CLOSE);
        }
        headers.remove(CONNECTION);
    }
    for name in [KEEP_ALIVE, PROXY_CONNECTION, TRANSFER_ENCODING, UPGRADE, HTTP2_SETTINGS] {
        headers.remove(name);
    }
    headers.remove(PROXY_AUTHENTICATE);
    headers.remove(PROXY_AUTHORIZATION);
    if let Some(te) = headers.get(TE) {
        // gRPC needs `te: trailers`; other codings were for us.
        let trailers = te.as_bytes().eq_ignore_ascii_case(b"trailers");
        headers.remove(TE);
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
    }
}

/// What most `Connection` headers say: names of headers that are looked after without making a
/// name of them.
fn is_usual_option(option: &str) -> bool {
    ["keep-alive", CLOSE, "upgrade"].iter().any(|o| option.eq_ignore_ascii_case(o))
}

/// Removes weft's own headers, which only its proxies may set.
pub fn strip_own(headers: &mut HeaderMap) {
    if !guards::on("own-headers") {
        return;
    }
    let own: Vec<HeaderName> =
        headers.keys().filter(|n| n.as_str().starts_with("x-weft-")).cloned().collect();
    for name in own {
        headers.remove(name);
    }
}

/// Every request has an id and a trace context; those that came along are kept.
/// `present` is what came along.
pub fn identify(headers: &mut HeaderMap, present: Present, rng: &mut Rng) -> Option<HeaderValue> {
    let known = present.has(Present::REQUEST_ID).then(|| headers.get(REQUEST_ID).cloned());
    let id = known.flatten().or_else(|| {
        let id = made::value(&random_id(rng))?;
        headers.insert(REQUEST_ID, id.clone());
        Some(id)
    });
    super::trace::keep_or_begin(headers, present, rng);
    id
}

/// A random UUID (version 4 of RFC 9562).
fn random_id(rng: &mut Rng) -> [u8; 36] {
    let bytes = (u128::from(rng.next_u64()) << 64) | u128::from(rng.next_u64());
    let version = (bytes & !(0xf << 76)) | (0x4 << 76);
    let bytes = ((version & !(0x3 << 62)) | (0x2 << 62)).to_be_bytes();
    let mut text = [b'-'; 36];
    for (from, of) in [(0, 0..4), (9, 4..6), (14, 6..8), (19, 8..10), (24, 10..16)] {
        let digits = text.get_mut(from..from + 2 * of.len()).unwrap_or_default();
        quick::hex(bytes.get(of).unwrap_or_default(), digits);
    }
    text
}

/// HTTP/2 may split cookies over several headers; HTTP/1.1 servers want one (RFC 9113 §8.2.3).
pub fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(COOKIE).iter();
    if let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) {
        let mut joined = first.as_bytes().to_vec();
        for crumb in std::iter::once(second).chain(crumbs) {
            joined.extend_from_slice(b"; ");
            joined.extend_from_slice(crumb.as_bytes());
        }
        if let Ok(joined) = HeaderValue::from_bytes(&joined) {
            headers.insert(COOKIE, joined);
        }
    }
}

/// Applies a rule's edit in the order remove, set, add, so that what is removed and set is replaced
/// whatever the client said (Envoy, Istio). A name or value that no header may have was refused
/// when the rule was compiled; here it is left out.
pub fn edit(headers: &mut HeaderMap, edit: &HeaderEdit) {
    let parse = |name: &str, value: &str| {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        // Blanks around a value are no part of it, and strict servers of HTTP/2 refuse them.
        Some((name, HeaderValue::from_str(value.trim_matches([' ', '\t'])).ok()?))
    };
    for name in &edit.remove {
        headers.remove(&**name);
    }
    for (name, value) in &edit.set {
        if let Some((name, value)) = parse(name, value) {
            headers.insert(name, value);
        } else {
            guards::split_lines(headers, name, value);
        }
    }
    for (name, value) in &edit.add {
        if let Some((name, value)) = parse(name, value) {
            headers.append(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn grpc_timeouts_have_a_number_and_a_unit() {
        let read = |text: &'static str| {
            grpc_timeout(&HeaderMap::from_iter([(GRPC_TIMEOUT, HeaderValue::from_static(text))]))
        };
        assert_eq!(read("100m"), Some(Duration::from_millis(100)));
        assert_eq!(read("2S"), Some(Duration::from_secs(2)));
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(read("5u"), Some(Duration::from_micros(5)));
        for wrong in ["", "m", "100", "1.5S", "-1S", "123456789m", "1x", "+1m"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn edits_write_no_blanks_around_a_value() {
        let mut headers = map(&[("x-set", "old")]);
        let pair = |name: &str, value: &str| (name.into(), value.into());
        let changes = HeaderEdit {
            set: vec![pair("x-set", " a b\t")],
            add: vec![pair("x-add", "c ")],
            remove: vec![],
        };
        edit(&mut headers, &changes);
        assert_eq!(headers, map(&[("x-set", "a b"), ("x-add", "c")]));
    }

    #[test]
    fn what_is_left_of_a_grpc_timeout_is_said() {
        let left = |text: &'static str, ms| {
            let mut headers = map(&[("grpc-timeout", text)]);
            shorten_grpc_timeout(&mut headers, Duration::from_millis(ms));
            headers.get(GRPC_TIMEOUT).unwrap().to_str().unwrap().to_owned()
        };
        assert_eq!(left("5S", 1_250), "1250m");
        assert_eq!(left("5S", 0), "1m");
        assert_eq!(left("99999999H", 100_000_000), "100000S");
        let mut none = HeaderMap::new();
        shorten_grpc_timeout(&mut none, Duration::from_secs(1));
        assert!(none.is_empty());
    }

    #[test]
    fn reg_15_42_connection_headers_stay_on_their_connection() {
        let mut h = map(&[
            ("connection", "keep-alive, X-Drop, Upgrade, HTTP2-Settings, authorization"),
            ("x-drop", "1"),
            ("authorization", "kept"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABkAARAAAAAAAIAAAAA"),
            ("te", "gzip"),
            ("proxy-authorization", "Basic x"),
            ("x-keep", "1"),
        ]);
        strip_hop_by_hop(&mut h);
        let mut left: Vec<&str> = h.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["authorization", "x-keep"]);
        let mut close = map(&[("connection", "x-a , Close"), ("close", "1"), ("x-a", "1")]);
        strip_hop_by_hop(&mut close);
        assert!(close.is_empty(), "{close:?}");
        let mut unnamed = map(&[("connection", "keep-alive"), ("close", "1")]);
        strip_hop_by_hop(&mut unnamed);
        assert_eq!(unnamed, map(&[("close", "1")]));
        let mut grpc = map(&[("te", "trailers")]);
        strip_hop_by_hop(&mut grpc);
        assert_eq!(grpc.get("te").unwrap(), "trailers");
    }

    #[test]
    fn cookie_crumbs_become_one_header() {
        let mut h = map(&[("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")]);
        join_cookies(&mut h);
        assert_eq!(h, map(&[("cookie", "a=1; b=2; c=3")]));
    }

    #[test]
    fn ids_are_made_once_and_kept() {
        let mut rng = Rng::seeded(1);
        let mut h = HeaderMap::new();
        let id = identify(&mut h, Present::default(), &mut rng).unwrap();
        let read = uuid::Uuid::try_parse(id.to_str().unwrap()).unwrap();
        assert_eq!((id.len(), read.get_version_num()), (36, 4));
        assert_eq!(
            (read.get_variant(), read.to_string()),
            (uuid::Variant::RFC4122, id.to_str().unwrap().to_owned())
        );
        let trace = h.get("traceparent").cloned().unwrap();
        let present = Present::of(&h);
        assert_eq!(identify(&mut h, present, &mut rng), Some(id));
        assert_eq!(h.get("traceparent"), Some(&trace));
    }
}
