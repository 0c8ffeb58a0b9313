// SPDX-License-Identifier: Apache-2.0
//! How long requests may take: a part of rules, and what policies fill in where those say nothing.

use serde::{Deserialize, Serialize};

/// Milliseconds; `None` is the proxy's default, `Some(0)` is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Timeouts {
    /// Whole request, all attempts.
    pub request_ms: Option<u64>,
    /// One attempt.
    pub backend_request_ms: Option<u64>,
    /// No byte in either direction.
    pub idle_ms: Option<u64>,
    /// From a request's beginning to the end of its stream, whatever it has become meanwhile: an
    /// answer under way, a call, an upgraded connection, a tunnel. `None` is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream_ms: Option<u64>,
    /// For a request to have come whole, with its body, unless its answer begins before that.
    /// `None` is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receive_ms: Option<u64>,
}

// === impl Timeouts ===

impl Timeouts {
    pub fn is_usual(&self) -> bool {
        *self == Self::default()
    }

    /// What a stream may last in all, as a request or as a stream; 0 is no limit.
    pub fn whole_ms(&self) -> Option<u64> {
        let both = [self.request_ms, self.stream_ms];
        both.into_iter().flatten().filter(|ms| *ms > 0).min()
    }

    /// Takes from `other` what it does not say itself.
    pub fn fill(&mut self, other: &Self) {
        self.request_ms = self.request_ms.or(other.request_ms);
        self.backend_request_ms = self.backend_request_ms.or(other.backend_request_ms);
        self.idle_ms = self.idle_ms.or(other.idle_ms);
        self.stream_ms = self.stream_ms.or(other.stream_ms);
        self.receive_ms = self.receive_ms.or(other.receive_ms);
    }
}
