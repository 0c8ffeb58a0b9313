// SPDX-License-Identifier: Apache-2.0
//! What a rule asks of a gateway's store of answers (RFC 9111). Data only: origins decide what may
//! be stored and for how long, by their headers; this says where weft obeys them and how much it
//! keeps. The proxy's `http/cache` is the only reader.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Answers to GET may be stored and given to later requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cache {
    /// Who says so: `TrafficPolicy shop/assets spec.cache`.
    pub name: Arc<str>,
    /// A larger body is passed on and not stored; 0 is no cache, for a route whose gateway has one.
    pub object_bytes_max: u64,
    /// How long an answer is fresh at most that has a `Last-Modified` and says no time itself: a
    /// tenth of its age (RFC 9111 §4.2.2). 0 is never.
    pub heuristic_ms_max: u64,
    /// Answers with `Set-Cookie` are stored with it. Never, unless somebody says so.
    pub set_cookie: bool,
    /// How long requests wait for an answer that another request is already fetching; 0 is not at
    /// all.
    pub wait_ms: u64,
}

// === impl Cache ===

impl Cache {
    /// Its largest `object_bytes_max`.
    pub const OBJECT_BYTES_MAX: u64 = 16 * 1024 * 1024;
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            name: Arc::default(),
            object_bytes_max: 1024 * 1024,
            heuristic_ms_max: 0,
            set_cookie: false,
            wait_ms: 5_000,
        }
    }
}

/// `bodies up to 1048576 bytes, as their headers allow`
impl std::fmt::Display for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "bodies up to {} bytes, as their headers allow", self.object_bytes_max)?;
        if self.heuristic_ms_max > 0 {
            let most = self.heuristic_ms_max;
            write!(f, "; a tenth of the age where they say nothing, at most {most} ms")?;
        }
        if self.set_cookie {
            f.write_str("; with their cookies")?;
        }
        Ok(())
    }
}
