// SPDX-License-Identifier: Apache-2.0
//! Listeners: gateway listeners, what a sidecar accepts for its own app, and what it does with
//! traffic that was captured.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Origin, Protocol};

/// A socket (or, inbound, one app port) and what happens to what arrives there. Always a root:
/// `listener:NAME`; a gateway's routes are its children (`route/...`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    pub name: Arc<str>,
    pub kind: ListenerKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ListenerKind {
    Gateway(GatewayListener),
    Inbound(InboundListener),
    Capture(CaptureListener),
}

/// One port of a Gateway with all listeners (sections) that share it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayListener {
    /// Every address to bind; dual stack has two.
    pub bind: Vec<SocketAddr>,
    pub sections: Vec<Section>,
}

/// One listener of a Gateway: a host name on a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    pub name: Arc<str>,
    /// `None` takes every host; `*.example.com` takes one or more labels in its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<Arc<str>>,
    pub protocol: Protocol,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ServerTls>,
}

/// A certificate that a listener presents. Keys travel only to the proxy that serves them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerTls {
    pub chain_pem: Arc<str>,
    pub key_pem: Arc<str>,
}

/// One port of the app behind a sidecar.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InboundListener {
    /// Port that clients name (by SNI on the mesh port).
    pub port: u16,
    /// Where the app listens.
    pub app: SocketAddr,
    pub protocol: Protocol,
    /// Services that this port is an instance of, for metrics.
    #[serde(default)]
    pub services: Vec<Arc<str>>,
    pub mtls: MtlsMode,
}

/// What holds for captured traffic beyond single ports; at most one per sidecar. A sidecar that
/// captures and has none does as the default says.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct CaptureListener {
    /// For app ports that no [`InboundListener`] speaks of.
    pub mtls: MtlsMode,
    /// The same, port by port, where it differs.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<u16, MtlsMode>,
    /// Destinations that the mesh does not know.
    pub egress: Egress,
    /// How long a client's first bytes may leave the protocol of an undeclared port open.
    pub sniff_timeout_ms: u64,
}

/// Who may connect to an app port from outside of its pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MtlsMode {
    /// Everybody in plaintext; bytes that look like TLS are the app's own.
    Disable,
    /// Mesh mTLS and plaintext.
    #[default]
    Permissive,
    /// Mesh mTLS only.
    Strict,
}

/// What becomes of traffic to destinations that the mesh does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Egress {
    /// Passed through as it is, counted as `PassthroughCluster`.
    #[default]
    Allow,
    /// Refused, counted as `BlackHoleCluster`.
    Deny,
}

// === impl CaptureListener ===

impl CaptureListener {
    /// What holds for an app port that no inbound listener speaks of.
    pub fn mtls_of(&self, port: u16) -> MtlsMode {
        self.ports.get(&port).copied().unwrap_or(self.mtls)
    }
}

impl Default for CaptureListener {
    fn default() -> Self {
        Self {
            mtls: MtlsMode::default(),
            ports: BTreeMap::new(),
            egress: Egress::default(),
            sniff_timeout_ms: weft_base::limits::SNIFF_MS_MAX,
        }
    }
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerTls(redacted)")
    }
}
