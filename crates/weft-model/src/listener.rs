// SPDX-License-Identifier: Apache-2.0
//! Listeners: gateway listeners, and what a sidecar accepts for its own app.

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

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MtlsMode {
    Disable,
    #[default]
    Permissive,
    Strict,
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerTls(redacted)")
    }
}
