// SPDX-License-Identifier: Apache-2.0
//! An answer before it is bytes: status, body, and the headers that every client relies on.

use std::borrow::Cow;
use std::sync::Arc;

use http::StatusCode;
use serde_json::Value;

use super::error::Refusal;
use super::flow::Flow;
use super::params::Blocking;
use super::shared::Written;
use super::wait::Later;

#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub body: Body,
    pub headers: Vec<(Cow<'static, str>, String)>,
}

#[derive(Debug)]
pub enum Body {
    Empty,
    Json(Value),
    Text(String),
    /// With its content type.
    Bytes(&'static str, bytes::Bytes),
    /// The same, which many get.
    Shared(&'static str, Arc<Written>),
    /// Its content type is among the headers.
    Whole(bytes::Bytes),
    /// There is nothing new yet.
    Later(Box<Later>),
    /// Text or JSON in parts, by its content type, until nobody reads any more.
    Flow(&'static str, Flow),
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

    pub fn shared(kind: &'static str, written: Arc<Written>) -> Self {
        Self { body: Body::Shared(kind, written), ..Self::empty() }
    }

    /// Without an end of its own.
    pub fn flow(kind: &'static str, flow: Flow) -> Self {
        Self { body: Body::Flow(kind, flow), ..Self::empty() }
    }

    /// To be asked again when that has moved.
    pub fn later(later: Later) -> Self {
        Self { body: Body::Later(Box::new(later)), ..Self::empty() }
    }

    #[must_use]
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
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
        let reply = self
            .with("X-Consul-Index", index.max(1).to_string())
            .with("X-Consul-KnownLeader", "true")
            .with("X-Consul-LastContact", "0")
            .with("X-Consul-Effective-Consistency", consistency);
        // Every answer comes from what this process has at hand, as new as it is.
        match blocking.cached {
            true => reply.with("X-Cache", "HIT").with("Age", "0"),
            false => reply,
        }
    }
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Self {
        let reply = Self::text(refusal.status, refusal.text);
        let reply = match refusal.body {
            Some(body) => Self { body: Body::Json(*body), ..reply },
            None => reply,
        };
        let reply = match refusal.to {
            Some(to) => reply.with("Location", to),
            None => reply,
        };
        match refusal.allow {
            Some(allow) => reply.with("Allow", allow),
            None => reply,
        }
    }
}
