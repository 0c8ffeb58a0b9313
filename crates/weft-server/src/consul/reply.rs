// SPDX-License-Identifier: Apache-2.0
//! An answer before it is bytes: status, body, and the headers that every client relies on.

use http::StatusCode;
use serde_json::Value;

use super::error::Refusal;
use super::params::Blocking;

#[derive(Clone, Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub body: Body,
    pub headers: Vec<(&'static str, String)>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    Empty,
    Json(Value),
    Text(String),
    /// With its content type.
    Bytes(&'static str, bytes::Bytes),
}

// === impl Reply ===

impl Reply {
    /// Done, with nothing to say.
    pub fn empty() -> Self {
        Self { status: StatusCode::OK, body: Body::Empty, headers: Vec::new() }
    }

    pub fn json(value: Value) -> Self {
        Self { body: Body::Json(value), ..Self::empty() }
    }

    pub fn text(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, body: Body::Text(text.into()), headers: Vec::new() }
    }

    pub fn bytes(kind: &'static str, bytes: impl Into<bytes::Bytes>) -> Self {
        Self { body: Body::Bytes(kind, bytes.into()), ..Self::empty() }
    }

    #[must_use]
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// The index and what goes with it. An index is never 0: clients take that for broken.
    #[must_use]
    pub fn at(self, index: u64, blocking: &Blocking) -> Self {
        let consistency = match (blocking.consistent, blocking.stale) {
            (true, _) => "consistent",
            (_, true) => "stale",
            _ => "leader",
        };
        self.with("X-Consul-Index", index.max(1).to_string())
            .with("X-Consul-KnownLeader", "true")
            .with("X-Consul-LastContact", "0")
            .with("X-Consul-Effective-Consistency", consistency)
    }
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Self {
        let reply = Self::text(refusal.status, refusal.text);
        let reply = match refusal.body {
            Some(body) => Self { body: Body::Json(*body), ..reply },
            None => reply,
        };
        match refusal.allow {
            Some(allow) => reply.with("Allow", allow),
            None => reply,
        }
    }
}
