// SPDX-License-Identifier: Apache-2.0
//! Guards against attacks, by name. A test may run a proxy without one of them, to show
//! that the cases which rely on it can fail; every other build has all of them, at no cost. Where
//! a guard is the grammar of a library, the test reads as a server does that lacks one rule of it.

#[cfg(test)]
mod loose;

#[cfg(test)]
pub(crate) use self::loose::*;
#[cfg(not(test))]
pub(crate) use self::strict::*;
#[cfg(test)]
pub(crate) use self::switched::on;

#[cfg(test)]
#[path = "../../../tests/suites/switched.rs"]
mod switched;

#[test]
fn every_case_fails_without_its_guard() {
    switched::prove();
}

/// What all builds but the tests have.
#[cfg(not(test))]
mod strict {
    use bytes::Bytes;
    use http::HeaderMap;
    use weft_model::decide::Authority;

    /// Whether a guard is in force.
    #[inline(always)]
    pub(crate) const fn on(_guard: &str) -> bool {
        true
    }

    #[inline(always)]
    pub(crate) fn loose_head(head: Bytes) -> Bytes {
        head
    }

    #[inline(always)]
    pub(crate) fn loose_lines(lines: Bytes) -> Bytes {
        lines
    }

    #[inline(always)]
    pub(crate) fn loose_host(_text: &str) -> Option<Authority> {
        None
    }

    #[inline(always)]
    pub(crate) fn loose_path(path: &str) -> &str {
        path
    }

    #[inline(always)]
    pub(crate) fn loosely_any(
        _headers: &HeaderMap,
        _name: &str,
        _holds: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Option<bool> {
        None
    }

    #[inline(always)]
    pub(crate) fn split_lines(_headers: &mut HeaderMap, _name: &str, _value: &str) {}

    /// Where a test makes a handler panic.
    #[inline(always)]
    pub(crate) fn explode(_headers: &HeaderMap) {}
}
