// SPDX-License-Identifier: Apache-2.0
//! What protects a backend and a proxy: active health checks, adaptive concurrency, local rate
//! limits, limits of bodies. Control compiles it from TrafficPolicies, the standalone proxy from
//! its file; the proxy obeys. Data only; the arithmetic is in `decide::limit`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Timeouts;

/// What a backend's policy asks for beyond balancing. Each part may be absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Protection {
    /// The proxy asks the endpoints itself how they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<Adaptive>,
    /// Of what this proxy sends there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rate_limits: Vec<Arc<RateLimit>>,
    /// Where the route says nothing.
    #[serde(skip_serializing_if = "Timeouts::is_usual")]
    pub timeouts: Timeouts,
    /// Largest request body in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_bytes_max: Option<u64>,
    /// Gateways pass on at once what may be too much for it, instead of keeping it in line.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ungated: bool,
}

/// How a proxy itself finds out whether endpoints are well. Envoy's words, with its defaults.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct HealthCheck {
    pub kind: CheckKind,
    pub interval_ms: u64,
    pub timeout_ms: u64,
    /// In the place of `interval_ms` while an endpoint is out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unhealthy_interval_ms: Option<u64>,
    /// Each pause is longer by up to this share of it, by chance.
    pub jitter_basis_points: u32,
    /// So many good answers in a row bring it back; the first check of all decides alone.
    pub healthy: u32,
    /// So many bad ones in a row take it out; an answer that says so itself (a status that is not
    /// expected) does at once where Envoy says so too.
    pub unhealthy: u32,
    /// Where to ask when that is not the endpoint's own port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckKind {
    Http(HttpCheck),
    /// `grpc.health.v1.Health/Check`; the empty service is the whole server.
    Grpc {
        service: Arc<str>,
        authority: Arc<str>,
    },
    /// A connection; then `send`, and what comes must contain each of `expect` in that order.
    Tcp {
        send: Vec<u8>,
        expect: Vec<Vec<u8>>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct HttpCheck {
    /// `GET` unless it says otherwise.
    pub method: Arc<str>,
    pub path: Arc<str>,
    /// The service's own name when empty.
    pub host: Arc<str>,
    pub headers: Vec<(Arc<str>, Arc<str>)>,
    /// Statuses from, to (inclusive) that are well; none is 200 alone.
    pub statuses: Vec<(u16, u16)>,
    pub http2: bool,
}

/// A limit of requests in flight that follows what the backend can do: it falls when answers
/// become slower than usual while requests pile up, and grows while more requests in flight bring
/// more answers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Adaptive {
    /// Of each worker; never less than this.
    pub limit_min: u32,
    pub limit_max: u32,
    /// Answers may be so many times slower than usual: 2,000 is twice.
    pub tolerance_permille: u32,
    /// There is no limit while those in line wait for less than this.
    pub wait_ms: u32,
}

/// At most so many requests in a time; each proxy counts for itself, all its workers together.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// Who says so: `TrafficPolicy shop/orders spec.rateLimits[0]`. What has one name counts
    /// together, over tables and routes.
    pub name: Arc<str>,
    pub requests: u32,
    pub per_ms: u64,
    /// Requests that may come at once after a time of quiet; 0 is as many as `requests`.
    #[serde(default)]
    pub burst: u32,
    /// What tells clients apart; none counts all together.
    #[serde(default)]
    pub by: Vec<LimitBy>,
    /// Clients told apart at one time; those beyond share one count.
    #[serde(default)]
    pub keys_max: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitBy {
    /// The address on the other end of the connection.
    Client,
    /// A header's value, its name in lower case; requests without it count together.
    Header(Arc<str>),
    /// The identity that mesh TLS proved; those without one count together.
    Identity,
}

/// Clients told apart when nobody says how many.
pub const KEYS_USUAL: u32 = 4_096;
/// At most; each costs 32 bytes.
pub const KEYS_MAX: u32 = 1 << 18;

// === impl Protection ===

impl Protection {
    /// Whether it refuses requests that nothing else would: a proxy that cannot does too much.
    pub fn refuses(&self) -> bool {
        !self.rate_limits.is_empty() || self.body_bytes_max.is_some()
    }
}

// === impl HttpCheck ===

impl HttpCheck {
    pub fn expects(&self, status: u16) -> bool {
        match self.statuses.as_slice() {
            [] => status == 200,
            ranges => ranges.iter().any(|(from, to)| (*from..=*to).contains(&status)),
        }
    }
}

// === impl RateLimit ===

impl RateLimit {
    /// Requests that may come at once.
    pub fn burst(&self) -> u32 {
        if self.burst == 0 { self.requests } else { self.burst }
    }

    pub fn keys(&self) -> u32 {
        if self.keys_max == 0 { KEYS_USUAL } else { self.keys_max.min(KEYS_MAX) }
    }
}

/// `10 per 1 s by header x-user, 20 at once`.
impl std::fmt::Display for RateLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} per ", self.requests)?;
        match self.per_ms {
            ms if ms % 1_000 == 0 => write!(f, "{} s", ms / 1_000)?,
            ms => write!(f, "{ms} ms")?,
        }
        for (i, by) in self.by.iter().enumerate() {
            f.write_str(if i == 0 { " by " } else { " and " })?;
            match by {
                LimitBy::Client => f.write_str("client address")?,
                LimitBy::Header(name) => write!(f, "header {name}")?,
                LimitBy::Identity => f.write_str("client identity")?,
            }
        }
        match self.burst() {
            burst if burst != self.requests => write!(f, ", {burst} at once"),
            _ => Ok(()),
        }
    }
}

// === defaults ===

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            kind: CheckKind::Tcp { send: Vec::new(), expect: Vec::new() },
            interval_ms: 5_000,
            timeout_ms: 2_000,
            unhealthy_interval_ms: None,
            jitter_basis_points: 1_000,
            healthy: 2,
            unhealthy: 3,
            port: None,
        }
    }
}

impl Default for HttpCheck {
    fn default() -> Self {
        Self {
            method: "GET".into(),
            path: "/".into(),
            host: "".into(),
            headers: Vec::new(),
            statuses: Vec::new(),
            http2: false,
        }
    }
}

impl Default for Adaptive {
    fn default() -> Self {
        Self { limit_min: 8, limit_max: 10_000, tolerance_permille: 2_000, wait_ms: 0 }
    }
}
