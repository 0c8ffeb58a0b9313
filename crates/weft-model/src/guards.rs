// SPDX-License-Identifier: Apache-2.0
//! Guards against attacks, by name. A test may do without one of them, to show that the
//! cases which rely on it can fail; every other build has all of them, at no cost.

/// Whether a guard is in force.
#[cfg(not(test))]
#[inline(always)]
pub(crate) const fn on(_guard: &str) -> bool {
    true
}

#[cfg(not(test))]
pub(crate) fn like(_pattern: &str, _text: &[u8]) -> bool {
    false
}

/// Whether a text fits a literal that is taken for a pattern.
#[cfg(test)]
pub(crate) fn like(pattern: &str, text: &[u8]) -> bool {
    let source = format!("^(?:{})$", pattern.replace('*', ".*"));
    regex::bytes::Regex::new(&source).is_ok_and(|r| r.is_match(text))
}

#[cfg(test)]
pub(crate) use switched::on;

#[cfg(test)]
#[path = "../../../tests/suites/switched.rs"]
mod switched;

#[test]
fn every_case_fails_without_its_guard() {
    switched::prove();
}
