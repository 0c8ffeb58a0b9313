// SPDX-License-Identifier: Apache-2.0
//! Guards against attacks, by name. A test may do without one of them, to show that the
//! cases which rely on it can fail; every other build has all of them, at no cost.

/// Whether a guard is in force.
#[cfg(not(test))]
#[inline(always)]
pub(crate) const fn on(_guard: &str) -> bool {
    true
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
