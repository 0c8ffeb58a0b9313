// SPDX-License-Identifier: Apache-2.0
//! Which kinds of headers a message has, by one look at each of its names: whole steps of the
//! phases have nothing to do for most messages, and a look costs less than a search for each name.
//! Pure; called by the phases and their steps, changes nothing.

use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::observe::quick;

/// Kinds of headers that are there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Present(u16);

/// A search by name costs more than to look at so many.
const FEW: usize = 8;

/// A header of this name, when it is the first; names of weft's own are not cheap to search for.
pub fn get<'m>(headers: &'m HeaderMap, name: &HeaderName) -> Option<&'m HeaderValue> {
    if headers.len() > FEW {
        return headers.get(name);
    }
    headers.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
}

/// Whether there is a header of this name.
pub fn has(headers: &HeaderMap, name: &HeaderName) -> bool {
    if headers.len() > FEW {
        return headers.contains_key(name);
    }
    headers.keys().any(|known| known == name)
}

// === impl Present ===

impl Present {
    /// What belongs to one connection only (RFC 9110 §7.6.1).
    pub const HOP: Self = Self(1);
    /// `x-weft-*`
    pub const OWN: Self = Self(1 << 1);
    /// What says something of the way here: `x-forwarded-*`, `x-envoy-*` and the like.
    pub const TOLD: Self = Self(1 << 2);
    pub const COOKIE: Self = Self(1 << 3);
    pub const REQUEST_ID: Self = Self(1 << 4);
    /// Trace contexts of W3C and B3.
    pub const TRACE: Self = Self(1 << 5);
    /// Names with an underscore.
    pub const UNDERSCORE: Self = Self(1 << 6);
    /// `grpc-*`
    pub const GRPC: Self = Self(1 << 7);

    pub fn of(headers: &HeaderMap) -> Self {
        headers
            .keys()
            .fold(Self::default(), |all, name| Self(all.0 | of(name.as_str().as_bytes()).0))
    }

    /// The others of these kinds.
    pub fn but(self, kind: Self) -> Self {
        Self(self.0 & !kind.0)
    }

    pub fn has(self, kind: Self) -> bool {
        self.0 & kind.0 != 0
    }
}

/// Names are in lower case. Told apart by length and first letter before they are compared.
fn of(name: &[u8]) -> Present {
    let is = |known: &[u8], kind| if name == known { kind } else { Present::default() };
    let kind = match (name.first(), name.len()) {
        (Some(b'x'), _) => of_ours(name),
        (Some(b'g'), _) if name.starts_with(b"grpc-") => Present::GRPC,
        (Some(b'c'), 6) => is(b"cookie", Present::COOKIE),
        (Some(b'c'), 10) => is(b"connection", Present::HOP),
        (Some(b'k'), 10) => is(b"keep-alive", Present::HOP),
        (Some(b'u'), 7) => is(b"upgrade", Present::HOP),
        (Some(b'h'), 14) => is(b"http2-settings", Present::HOP),
        (Some(b'p'), 16) => is(b"proxy-connection", Present::HOP),
        (Some(b'p'), 18) => is(b"proxy-authenticate", Present::HOP),
        (Some(b'p'), 19) => is(b"proxy-authorization", Present::HOP),
        (Some(b't'), 2) => is(b"te", Present::HOP),
        (Some(b't'), 17) => is(b"transfer-encoding", Present::HOP),
        (Some(b't'), 11) => is(b"traceparent", Present::TRACE),
        (Some(b't'), 10) => is(b"tracestate", Present::TRACE),
        (Some(b'b'), 2) => is(b"b3", Present::TRACE),
        (Some(b'f'), 9) => is(b"forwarded", Present::TOLD),
        (Some(b't'), 14) => is(b"true-client-ip", Present::TOLD),
        _ => Present::default(),
    };
    match quick::has(name, b'_') {
        true => Present(kind.0 | Present::UNDERSCORE.0),
        false => kind,
    }
}

/// Names that begin with `x`.
fn of_ours(name: &[u8]) -> Present {
    match name {
        b"x-request-id" => Present::REQUEST_ID,
        b"x-real-ip" | b"x-client-ip" => Present::TOLD,
        _ if name.starts_with(b"x-weft-") => Present::OWN,
        _ if name.starts_with(b"x-b3-") => Present::TRACE,
        _ if name.starts_with(b"x-forwarded-") || name.starts_with(b"x-envoy-") => Present::TOLD,
        _ => Present::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(names: &[&'static str]) -> Present {
        let map: HeaderMap = names
            .iter()
            .map(|n| (HeaderName::from_static(n), HeaderValue::from_static("1")))
            .collect();
        Present::of(&map)
    }

    #[test]
    fn every_kind_is_known_by_its_names() {
        let plain = ["host", "user-agent", "accept", "x-forwarded", "x-weftless", "grpcx", "x-b"];
        assert_eq!(of(&plain), Present::default());
        for (kind, names) in [
            (
                Present::HOP,
                &[
                    "connection",
                    "keep-alive",
                    "proxy-connection",
                    "transfer-encoding",
                    "upgrade",
                    "http2-settings",
                    "proxy-authenticate",
                    "proxy-authorization",
                    "te",
                ][..],
            ),
            (Present::OWN, &["x-weft-source", "x-weft-", "x-weft-flags"]),
            (
                Present::TOLD,
                &[
                    "x-forwarded-for",
                    "x-forwarded-client-cert",
                    "x-envoy-internal",
                    "forwarded",
                    "x-real-ip",
                    "x-client-ip",
                    "true-client-ip",
                ],
            ),
            (Present::COOKIE, &["cookie"]),
            (Present::REQUEST_ID, &["x-request-id"]),
            (Present::TRACE, &["traceparent", "tracestate", "b3", "x-b3-traceid", "x-b3-flags"]),
            (Present::UNDERSCORE, &["x_a", "_", "abcdefghijklmnopq_"]),
            (Present::GRPC, &["grpc-status", "grpc-timeout"]),
        ] {
            for name in names {
                assert_eq!(of(&[name]), kind, "{name}");
                let mut all = plain.to_vec();
                all.push(name);
                assert!(of(&all).has(kind), "{name}");
            }
        }
        let both = of(&["x-weft_source", "cookie"]);
        assert!(both.has(Present::UNDERSCORE) && both.has(Present::COOKIE));
    }

    #[test]
    fn a_look_finds_what_a_search_finds() {
        let mut map = HeaderMap::new();
        let names: Vec<HeaderName> =
            (0..12).map(|i| HeaderName::try_from(format!("x-{i}")).unwrap()).collect();
        for (i, name) in names.iter().enumerate() {
            assert_eq!(get(&map, name), None);
            map.append(name, HeaderValue::from(i));
            map.append(name, HeaderValue::from(99));
            for known in &names {
                assert_eq!(get(&map, known), map.get(known), "{i}");
                assert_eq!(has(&map, known), map.contains_key(known), "{i}");
            }
        }
    }
}
