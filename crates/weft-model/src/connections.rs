// SPDX-License-Identifier: Apache-2.0
//! How connections to a backend's endpoints are used: for how long and for how much, what they
//! speak, and how it is found out that a silent peer is gone. Control compiles it from
//! DestinationRules and TrafficPolicies, Envoy's clusters say the same; the proxy's pools obey.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// What is absent is as the proxy usually does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Connections {
    /// A connection ends after so many requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_max: Option<u32>,
    /// A connection takes no more requests when it is so old; one of bytes ends then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_ms_max: Option<u64>,
    /// Requests at a time on one connection of HTTP/2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streams_max: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keepalive: Option<TcpKeepalive>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pings: Option<Pings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speaks: Option<Speaks>,
    /// Bytes go through another proxy; requests of HTTP do not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub through: Option<Through>,
}

/// A tunnel that the endpoints are asked for, and where it leads.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Through {
    /// A host name or an address.
    pub host: Arc<str>,
    pub port: u16,
    #[serde(default)]
    pub method: ThroughMethod,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThroughMethod {
    #[default]
    Connect,
    /// Known and refused: nothing is sent another way.
    Post,
}

/// The kernel's probes of a silent TCP connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct TcpKeepalive {
    /// Silence before the first one, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_s: Option<u32>,
    /// Seconds between two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval_s: Option<u32>,
    /// So many without an answer end the connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probes: Option<u32>,
}

/// PINGs of HTTP/2 (RFC 9113 §6.7), whether or not anything is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pings {
    pub interval_ms: u32,
    /// A connection ends when nothing at all was heard for so long after one.
    pub timeout_ms: u32,
}

/// Which HTTP is spoken, whatever the port declares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Speaks {
    Http2,
    /// What the client speaks.
    LikeClient,
}

/// gRPC's time for the answer to a PING, when only the interval is given.
pub const PING_TIMEOUT_MS: u32 = 20_000;

// === impl Connections ===

impl Connections {
    /// Nothing is asked for that is not done anyhow.
    pub fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}
