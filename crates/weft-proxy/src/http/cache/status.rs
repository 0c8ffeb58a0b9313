// SPDX-License-Identifier: Apache-2.0
//! How a cache says what it did: `Cache-Status` (RFC 9211) for clients, a word for the access log.
//! A table of words; decides nothing.

use std::fmt::Write as _;

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// What became of a request at the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered from the store, without asking anybody.
    Hit,
    /// The same, with an answer that is old and may be.
    Stale,
    /// The origin said that the stored answer holds.
    Revalidated,
    /// The stored answer in the place of the origin's error.
    InsteadOfError,
    Miss,
    /// Not a matter of the cache.
    Bypass,
    /// Nothing stored, and its client wanted nothing else.
    OnlyIfCached,
}

/// Why a request went on (RFC 9211 §2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    Bypass,
    Method,
    UriMiss,
    VaryMiss,
    Request,
    Stale,
}

/// The parameters of a forwarded request's member.
#[derive(Clone, Copy, Debug, Default)]
pub struct Details {
    pub status: Option<u16>,
    pub stored: bool,
    pub collapsed: bool,
    pub ttl_s: Option<i64>,
    pub why: Option<&'static str>,
}

// === impl Outcome ===

impl Outcome {
    /// For the access log.
    pub fn word(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Stale => "stale",
            Self::Revalidated => "revalidated",
            Self::InsteadOfError => "stale-if-error",
            Self::Miss => "miss",
            Self::Bypass => "bypass",
            Self::OnlyIfCached => "only-if-cached",
        }
    }

    /// Whether the client got what was stored.
    pub fn is_stored(self) -> bool {
        matches!(self, Self::Hit | Self::Stale | Self::Revalidated | Self::InsteadOfError)
    }
}

impl Forward {
    fn word(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Request => "request",
            Self::Stale => "stale",
        }
    }
}

/// Says that an answer was stored; `ttl_s` is for how long it is fresh still.
pub fn hit(headers: &mut HeaderMap, ttl_s: i64, detail: Option<&str>) {
    let mut text = format!("weft; hit; ttl={ttl_s}");
    if let Some(detail) = detail {
        let _ = write!(text, "; detail={detail}");
    }
    append(headers, &text);
}

/// Says why a request went on, and what became of its answer.
pub fn forwarded(headers: &mut HeaderMap, why: Forward, details: Details) {
    let mut text = format!("weft; fwd={}", why.word());
    if let Some(status) = details.status {
        let _ = write!(text, "; fwd-status={status}");
    }
    if let Some(ttl) = details.ttl_s {
        let _ = write!(text, "; ttl={ttl}");
    }
    if details.stored {
        text.push_str("; stored");
    }
    if details.collapsed {
        text.push_str("; collapsed");
    }
    if let Some(why) = details.why {
        let _ = write!(text, "; detail={why}");
    }
    append(headers, &text);
}

pub fn only_if_cached(headers: &mut HeaderMap) {
    append(headers, "weft; detail=only-if-cached");
}

fn append(headers: &mut HeaderMap, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.append(CACHE_STATUS, value);
    }
}
