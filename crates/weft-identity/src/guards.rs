// SPDX-License-Identifier: Apache-2.0
//! Guards against attacks, by name. A test may do without one of them, to show that the
//! cases which rely on it can fail; every other build has all of them, at no cost.

use std::sync::Arc;

use rustls::server::{ServerSessionMemoryCache, StoresServerSessions};

/// Sessions of one configuration, which no other takes up.
#[cfg(not(test))]
pub(crate) fn sessions(most: usize) -> Arc<dyn StoresServerSessions> {
    ServerSessionMemoryCache::new(most)
}

#[cfg(test)]
pub(crate) fn sessions(most: usize) -> Arc<dyn StoresServerSessions> {
    static ALL: std::sync::OnceLock<Arc<dyn StoresServerSessions>> = std::sync::OnceLock::new();
    match on("tls-sessions") {
        true => ServerSessionMemoryCache::new(most),
        false => ALL.get_or_init(|| ServerSessionMemoryCache::new(most)).clone(),
    }
}

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
