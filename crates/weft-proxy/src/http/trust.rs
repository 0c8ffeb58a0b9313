// SPDX-License-Identifier: Apache-2.0
//! What a client may say about itself and about the way here. A gateway believes the proxies in
//! front of it that its listener counts, and nobody else; header names that servers confuse are
//! refused. Called by the phases, pure but for the headers it edits; routes and decides nothing.

use std::net::IpAddr;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use weft_model::Edge;

use super::headers::{CLIENT_CERT, FORWARDED_FOR, FORWARDED_PROTO, REQUEST_ID};
use super::made;
use super::present::Present;
use crate::guards;
use crate::observe::quick::Short;

/// What proxies tell about a request's way, besides `x-forwarded-*` and `x-envoy-*`.
const TOLD: &[&str] = &["forwarded", "x-real-ip", "x-client-ip", "true-client-ip"];

/// Headers that a `Connection` header must not be able to remove, besides those with a prefix of
/// [`OWN_PREFIXES`]: whoever put them there meant them for the app.
const KEPT: &[&str] = &[
    "host",
    "content-length",
    "content-type",
    "content-encoding",
    "authorization",
    "cookie",
    "cache-control",
    "origin",
    "range",
    "x-request-id",
    "x-real-ip",
    "x-client-ip",
    "true-client-ip",
    "forwarded",
    "traceparent",
    "tracestate",
    "b3",
    "grpc-timeout",
];
const OWN_PREFIXES: &[&str] = &["x-weft-", "x-envoy-", "x-forwarded-", "x-b3-"];

/// Whether a `Connection` header may name this one, so that it goes no further.
pub fn is_droppable(name: &HeaderName) -> bool {
    let text = name.as_str();
    let owned = KEPT.contains(&text) || OWN_PREFIXES.iter().any(|p| text.starts_with(p));
    !owned || !guards::on("connection-owned")
}

/// Servers that make variables of headers write `_` for `-`, so that `x_real_ip` is `x-real-ip`.
/// A gateway takes no such name unless its listener says so; elsewhere a name is refused when it
/// is another header's double, or that of one that weft or a front proxy writes.
///
/// # Errors
/// A sentence that says which name.
pub fn check_names(headers: &HeaderMap, allowed: bool) -> Result<(), String> {
    if !guards::on("underscores") {
        return Ok(());
    }
    for name in headers.keys() {
        let text = name.as_str();
        if memchr::memchr(b'_', text.as_bytes()).is_none() {
            continue;
        }
        if !allowed {
            return Err(format!("its header {text:?} has an underscore in its name"));
        }
        let dashed = text.replace('_', "-");
        let known = HeaderName::from_bytes(dashed.as_bytes()).ok();
        let owned = known.is_none_or(|n| headers.contains_key(&n) || !is_droppable(&n))
            || is_told(&dashed)
            || ["transfer-encoding", "connection", "upgrade", "te"].contains(&&*dashed);
        if owned {
            return Err(format!("servers may take its header {text:?} for {dashed:?}"));
        }
    }
    Ok(())
}

/// Takes nothing about the way here from an outside client, but what the trusted hops in front
/// wrote, and says what is known; the way here is returned, too. `present` is what came along.
pub fn from_outside(
    headers: &mut HeaderMap,
    present: Present,
    remote: IpAddr,
    scheme: &'static str,
    edge: Edge,
) -> Option<HeaderValue> {
    if !guards::on("outside") {
        return headers.get(FORWARDED_FOR).cloned();
    }
    let hops = usize::from(edge.trusted_hops);
    if present.has(Present::TOLD) {
        // What is written below in any case need not be taken away.
        let replaced = |n: &HeaderName| *n == FORWARDED_FOR || *n == FORWARDED_PROTO;
        let untrusted: Vec<HeaderName> = headers
            .keys()
            .filter(|n| match n.as_str() {
                text if text.starts_with("x-envoy-") => true,
                text if hops == 0 => is_told(text) && !replaced(n),
                _ => *n == CLIENT_CERT,
            })
            .cloned()
            .collect();
        for name in untrusted {
            headers.remove(name);
        }
    }
    let way = match hops {
        0 => made::value(Short::of_ip(remote).as_bytes()),
        _ => made::value(way(headers, remote, hops).as_bytes()),
    };
    match &way {
        Some(value) => drop(headers.insert(FORWARDED_FOR, value.clone())),
        None => drop(headers.remove(FORWARDED_FOR)),
    }
    let told = || headers.get(FORWARDED_PROTO).map(HeaderValue::as_bytes);
    if hops == 0 || !matches!(told(), Some(b"http" | b"https")) {
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(scheme));
    }
    if hops == 0 && present.has(Present::REQUEST_ID) {
        headers.remove(REQUEST_ID);
    }
    way
}

/// `X-Forwarded-For` as it goes on: of what came, the entries that trusted hops added, then the
/// address that connected to us.
fn way(headers: &HeaderMap, remote: IpAddr, hops: usize) -> String {
    let lines = headers.get_all(FORWARDED_FOR).iter().filter_map(|v| v.to_str().ok());
    let mut kept: Vec<&str> = lines.flat_map(|line| line.split(',')).map(str::trim).collect();
    let others = kept.len().saturating_sub(hops);
    kept.drain(..others);
    let remote = remote.to_string();
    kept.push(&remote);
    kept.join(", ")
}

fn is_told(name: &str) -> bool {
    name.starts_with("x-forwarded-") || TOLD.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().fold(HeaderMap::new(), |mut map, (name, value)| {
            map.append(*name, HeaderValue::from_static(value));
            map
        })
    }

    fn outside(hops: u8, pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = map(pairs);
        let edge = Edge { trusted_hops: hops, ..Edge::default() };
        let (present, remote) = (Present::of(&headers), "10.0.0.9".parse().unwrap());
        let way = from_outside(&mut headers, present, remote, "http", edge);
        assert_eq!(way.as_ref(), headers.get(FORWARDED_FOR));
        headers
    }

    #[test]
    fn reg_41_only_counted_hops_are_believed() {
        let told = [
            ("x-forwarded-for", "6.6.6.6, 1.2.3.4"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "shop.example"),
            ("x-forwarded-client-cert", "URI=spiffe://x"),
            ("x-envoy-internal", "true"),
            ("forwarded", "for=6.6.6.6"),
            ("x-real-ip", "6.6.6.6"),
            ("x-request-id", "theirs"),
        ];
        let direct = map(&[("x-forwarded-for", "10.0.0.9"), ("x-forwarded-proto", "http")]);
        assert_eq!(outside(0, &told), direct);
        let seen = outside(2, &told);
        assert_eq!(seen.get("x-forwarded-for").unwrap(), "1.2.3.4, 10.0.0.1, 10.0.0.9");
        assert_eq!(seen.get("x-forwarded-proto").unwrap(), "https");
        assert_eq!(seen.get("x-forwarded-host").unwrap(), "shop.example");
        assert_eq!(seen.get("x-request-id").unwrap(), "theirs");
        assert!(!seen.contains_key("x-forwarded-client-cert"));
        assert!(!seen.contains_key("x-envoy-internal"));
        let odd = outside(1, &[("x-forwarded-proto", "gopher")]);
        assert_eq!(odd, direct, "neither entries nor a scheme that exists");
    }

    #[test]
    fn reg_42_what_weft_owns_is_not_droppable() {
        for name in ["authorization", "x-weft-source", "x-forwarded-for", "x-envoy-x", "b3"] {
            assert!(!is_droppable(&HeaderName::from_static(name)), "{name}");
        }
        assert!(is_droppable(&HeaderName::from_static("x-hop")));
    }

    #[test]
    fn reg_43_names_that_are_doubles() {
        let plain = map(&[("user_id", "1"), ("x-user", "2")]);
        assert!(check_names(&plain, false).is_err());
        assert_eq!(check_names(&plain, true), Ok(()));
        for pair in [
            &[("x_forwarded_for", "1")][..],
            &[("content_length", "1")],
            &[("transfer_encoding", "chunked")],
            &[("x_weft_source", "1")],
            &[("x-weft_source", "1")],
            &[("x_user", "1"), ("x-user", "2")],
            &[("x_real_ip", "1")],
        ] {
            assert!(check_names(&map(pair), true).is_err(), "{pair:?}");
        }
    }
}
