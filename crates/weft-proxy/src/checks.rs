// SPDX-License-Identifier: Apache-2.0
//! Checks that guard against attacks, by name. A test may run a proxy without one of them, to show
//! that the cases which rely on it can fail; every other build has all of them, at no cost.

/// Whether a check is in force.
#[cfg(not(test))]
#[inline(always)]
pub(crate) const fn on(_check: &str) -> bool {
    true
}

/// The variable that names the check to do without.
#[cfg(test)]
pub(crate) const WITHOUT: &str = "WEFT_TEST_WITHOUT_CHECK";

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // Only tests, and only how they start themselves again.
pub(crate) fn on(check: &str) -> bool {
    static OFF: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    OFF.get_or_init(|| std::env::var(WITHOUT).ok()).as_deref() != Some(check)
}

/// Where a test makes a handler panic.
#[cfg(not(test))]
#[inline(always)]
pub(crate) fn explode(_headers: &http::HeaderMap) {}

#[cfg(test)]
pub(crate) fn explode(headers: &http::HeaderMap) {
    assert!(!headers.contains_key("x-test-panic"), "a handler panics on purpose");
}
