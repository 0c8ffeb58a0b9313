// SPDX-License-Identifier: Apache-2.0
//! Text formats and patterns. Patterns come from the committed schemas only, never from a user.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use regex::{Regex, RegexBuilder};

/// Compiled patterns kept; the schemas have about a hundred.
const PATTERNS_MAX: usize = 256;

static PATTERNS: Mutex<Option<HashMap<String, Regex>>> = Mutex::new(None);

/// Whether a pattern holds; one that cannot be compiled here holds.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let mut guard = PATTERNS.lock().unwrap_or_else(PoisonError::into_inner);
    let all = guard.get_or_insert_default();
    if let Some(regex) = all.get(pattern) {
        return regex.is_match(text);
    }
    let Ok(regex) = RegexBuilder::new(pattern).size_limit(1 << 20).build() else { return true };
    let holds = regex.is_match(text);
    if all.len() >= PATTERNS_MAX {
        all.clear();
    }
    all.insert(pattern.to_owned(), regex);
    holds
}

/// What is wrong with a text of a known format.
pub(super) fn wrong(format: &str, text: &str) -> Option<&'static str> {
    match format {
        "date-time" => text
            .parse::<jiff::Timestamp>()
            .is_err()
            .then_some("expected a time such as 2026-01-31T12:00:00Z"),
        "byte" => STANDARD.decode(text).is_err().then_some("expected base64"),
        "ipv4" => text.parse::<std::net::Ipv4Addr>().is_err().then_some("expected an IPv4 address"),
        "ipv6" => text.parse::<std::net::Ipv6Addr>().is_err().then_some("expected an IPv6 address"),
        _ => None,
    }
}

/// Whether a text is a Kubernetes quantity: `250m`, `1.5`, `2Gi`, `1e3`.
pub(super) fn is_quantity(text: &str) -> bool {
    const SUFFIXES: &[&str] =
        &["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let digits = number.chars().any(|c| c.is_ascii_digit()) && number.matches('.').count() <= 1;
    let exponent = || {
        let rest = suffix.strip_prefix(['e', 'E']).unwrap_or_default();
        let rest = rest.strip_prefix(['+', '-']).unwrap_or(rest);
        !rest.is_empty() && rest.chars().all(|c| c.is_ascii_digit())
    };
    digits && (SUFFIXES.contains(&suffix) || exponent())
}
