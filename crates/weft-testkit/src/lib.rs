// SPDX-License-Identifier: Apache-2.0
//! Dev: what tests of several planes share. [`ports`] gives ports; [`random`] writes users' objects
//! and requests; [`reference`] says what must become of a request, from those objects and the texts
//! of Gateway API and Istio alone.
//!
//! Invariant: the library depends on no crate that decides anything, so that the reference cannot
//! agree with weft by calling it.

pub mod ports;
pub mod random;
pub mod reference;

/// A request as its client means it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    pub method: &'static str,
    pub host: String,
    pub path: String,
    /// Without `?`; empty when there is none.
    pub query: String,
    /// Names in lower case, each once.
    pub headers: Vec<(&'static str, &'static str)>,
    /// What the instances answer first: so many times this status, then 200.
    pub failures: (usize, u16),
}

// === impl Ask ===

impl Ask {
    pub fn header(&self, name: &str) -> Option<&'static str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| *v)
    }

    /// The value of a query parameter; requests of these tests name each once.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        let pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.into_iter().find(|(n, _)| *n == name).map(|(_, v)| v)
    }

    /// Path and query.
    pub fn target(&self) -> String {
        with_query(&self.path, &self.query)
    }
}

pub(crate) fn with_query(path: &str, query: &str) -> String {
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}
