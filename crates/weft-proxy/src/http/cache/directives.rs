// SPDX-License-Identifier: Apache-2.0
//! What `Cache-Control` says, of a request or of an answer (RFC 9111 §5.2, RFC 5861). Pure; what
//! cannot be read makes an answer older, never fresher.

use http::HeaderMap;
use http::header::{CACHE_CONTROL, HeaderName, PRAGMA};

/// Seconds beyond this are as many (RFC 9111 §1.2.2).
pub const SECONDS_MAX: u64 = 1 << 31;

/// Directives by name; those of the other direction stay empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directives {
    pub no_store: bool,
    pub no_cache: bool,
    pub private: bool,
    pub public: bool,
    pub must_revalidate: bool,
    pub proxy_revalidate: bool,
    pub must_understand: bool,
    pub only_if_cached: bool,
    pub max_age: Option<u64>,
    pub s_maxage: Option<u64>,
    pub min_fresh: Option<u64>,
    /// Without a number it is any staleness.
    pub max_stale: Option<u64>,
    pub stale_while_revalidate: Option<u64>,
    pub stale_if_error: Option<u64>,
}

// === impl Directives ===

impl Directives {
    pub fn of_response(headers: &HeaderMap) -> Self {
        Self::read(headers, &CACHE_CONTROL)
    }

    /// `Pragma` counts where there is no `Cache-Control` (RFC 9111 §5.4).
    pub fn of_request(headers: &HeaderMap) -> Self {
        let mut said = Self::read(headers, &CACHE_CONTROL);
        if !headers.contains_key(CACHE_CONTROL) {
            said.no_cache = Self::read(headers, &PRAGMA).no_cache;
        }
        said
    }

    /// Of an answer: those with credentials of their own may share it (RFC 9111 §3.5).
    pub fn is_shared(&self) -> bool {
        self.public || self.must_revalidate || self.s_maxage.is_some()
    }

    fn read(headers: &HeaderMap, name: &HeaderName) -> Self {
        let mut said = Self::default();
        for line in headers.get_all(name) {
            // What is no text cannot be understood; a cache that does not understand keeps nothing.
            match line.to_str() {
                Ok(line) => members(line).for_each(|member| said.take(member)),
                Err(_) => said.no_store = true,
            }
        }
        said
    }

    fn take(&mut self, member: &str) {
        let (name, value) = match member.split_once('=') {
            Some((name, value)) => (name.trim(), Some(value.trim())),
            None => (member.trim(), None),
        };
        match &*name.to_ascii_lowercase() {
            "no-store" => self.no_store = true,
            // Those that name fields are taken as if they named none (§5.2.2.4, §5.2.2.7).
            "no-cache" => self.no_cache = true,
            "private" => self.private = true,
            "public" => self.public = true,
            "must-revalidate" => self.must_revalidate = true,
            "proxy-revalidate" => self.proxy_revalidate = true,
            "must-understand" => self.must_understand = true,
            "only-if-cached" => self.only_if_cached = true,
            "max-age" => once(&mut self.max_age, seconds(value).unwrap_or(0)),
            "s-maxage" => once(&mut self.s_maxage, seconds(value).unwrap_or(0)),
            "min-fresh" => self.min_fresh = seconds(value).or(Some(SECONDS_MAX)),
            "max-stale" if value.is_none() => self.max_stale = Some(SECONDS_MAX),
            "max-stale" => self.max_stale = seconds(value),
            "stale-while-revalidate" => once(&mut self.stale_while_revalidate, or_none(value)),
            "stale-if-error" => once(&mut self.stale_if_error, or_none(value)),
            _ => {}
        }
    }
}

/// A directive said twice with different times is none (RFC 9111 §4.2.1).
fn once(slot: &mut Option<u64>, value: u64) {
    *slot = Some(if slot.is_some_and(|before| before != value) { 0 } else { value });
}

fn or_none(value: Option<&str>) -> u64 {
    seconds(value).unwrap_or(0)
}

/// Digits, quoted or not; too many are the most there is.
pub fn seconds(value: Option<&str>) -> Option<u64> {
    let value = value?;
    let quoted = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
    let digits = quoted.unwrap_or(value);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(digits.parse().unwrap_or(SECONDS_MAX).min(SECONDS_MAX))
}

/// The members of a list: commas within quotes are theirs.
pub fn members(line: &str) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    line.split(move |c| {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ',' => return !quoted,
            _ => {}
        }
        false
    })
    .map(str::trim)
    .filter(|member| !member.is_empty())
}

#[cfg(test)]
mod tests {
    use http::header::HeaderValue;

    use super::*;

    fn said(lines: &[&str]) -> Directives {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(CACHE_CONTROL, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        Directives::of_response(&headers)
    }

    #[test]
    fn times_are_digits_and_anything_else_is_stale() {
        for (line, want) in [
            ("max-age=5", Some(5)),
            ("MAX-AGE=5", Some(5)),
            ("max-age=\"5\"", Some(5)),
            ("foo=\"a, max-age=9\", max-age=5", Some(5)),
            ("foo=\"\\\", max-age=9\", max-age=5", Some(5)),
            ("max-age = 5", Some(5)),
            ("max-age=99999999999999999999999", Some(SECONDS_MAX)),
            ("max-age=-1", Some(0)),
            ("max-age=1.5", Some(0)),
            ("max-age=x", Some(0)),
            ("max-age", Some(0)),
            ("max-age=5, max-age=5", Some(5)),
            ("max-age=5, max-age=3600", Some(0)),
            ("s-max-age=5", None),
            ("xmax-age=5", None),
        ] {
            assert_eq!(said(&[line]).max_age, want, "{line}");
        }
        assert_eq!(said(&["max-age=5", "public"]), said(&["public, max-age=5"]));
    }

    #[test]
    fn directives_are_read_by_name() {
        let all = said(&["no-store, no-cache=\"a, b\", private, public, must-revalidate", ",,"]);
        assert!(all.no_store && all.no_cache && all.private && all.public && all.must_revalidate);
        assert!(said(&["no-store\u{fc}"]).no_store, "what is no text is not kept");
        let stale = said(&["stale-while-revalidate=5, stale-if-error=x, max-stale, min-fresh=3"]);
        assert_eq!(stale.stale_while_revalidate, Some(5));
        assert_eq!((stale.stale_if_error, stale.max_stale), (Some(0), Some(SECONDS_MAX)));
        assert_eq!(stale.min_fresh, Some(3));
    }

    #[test]
    fn pragma_counts_alone() {
        let mut headers = HeaderMap::from_iter([(PRAGMA, HeaderValue::from_static("no-cache"))]);
        assert!(Directives::of_request(&headers).no_cache);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("max-age=5"));
        assert!(!Directives::of_request(&headers).no_cache);
    }
}
