// SPDX-License-Identifier: Apache-2.0
//! Listeners: gateway listeners, what a sidecar accepts for its own app, and what it does with
//! traffic that was captured.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Certificate, Origin, Protocol, ServerTls};

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
    /// Of datagrams when the first one is.
    pub sections: Vec<Section>,
    /// Whether connections begin with the PROXY protocol's header, which says who the client is.
    #[serde(default, skip_serializing_if = "ProxyHeader::is_off")]
    pub proxy_header: ProxyHeader,
    /// What is believed of what clients say about themselves.
    #[serde(default, skip_serializing_if = "Edge::is_default")]
    pub edge: Edge,
    /// What the proxy shows to backends that ask for a certificate and have no word of their own
    /// on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_certificate: Option<Box<Certificate>>,
    /// How clients are served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Arc<ClientLimits>>,
}

/// For how long and how much clients are served, and how large a request's head may be. What is
/// absent is as the proxy usually does, and nothing goes beyond that but the times.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClientLimits {
    /// A connection without a request is closed after this; 0 is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_ms: Option<u64>,
    /// For a request's head, once its connection waits for it; 0 is no limit of the listener's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_ms: Option<u64>,
    /// A connection so old takes no more requests; those under way are finished.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_ms_max: Option<u64>,
    /// Requests on one connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_max: Option<u32>,
    /// Requests at a time on one connection of HTTP/2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streams_max: Option<u32>,
    /// Header fields of one request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers_max: Option<u32>,
    /// Bytes of their names and values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_bytes_max: Option<u32>,
}

/// How a gateway's clients are met. The default trusts nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Edge {
    /// Proxies in front of this one that append to `X-Forwarded-For`: what so many of its last
    /// entries say is kept, with their other `X-Forwarded-*` and their request id.
    pub trusted_hops: u8,
    /// Header names may have underscores. Servers that make variables of headers cannot tell them
    /// from dashes.
    pub underscores: bool,
    #[serde(skip_serializing_if = "Slashes::is_default")]
    pub slashes: Slashes,
}

/// What becomes of slashes in paths before anything is decided by them. By default a path is
/// passed on as it came, and refused where its readings would be decided differently.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Slashes {
    /// Several in a row become one, behind what `escaped` makes.
    pub merge: bool,
    pub escaped: EscapedSlashes,
}

/// What becomes of a path with `%2F` in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EscapedSlashes {
    #[default]
    Keep,
    /// It is answered 400.
    Refuse,
    /// The client is sent to the path with slashes in their place (307), so that all on the way
    /// see it; a gRPC call is answered 400.
    Redirect,
    /// It is passed on with slashes in their place.
    Unescape,
}

/// What a listener does with the header of the PROXY protocol (versions 1 and 2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProxyHeader {
    /// None is looked for; one that comes is the client's own bytes.
    #[default]
    Off,
    /// A connection without one is closed.
    Required,
    /// A connection without one is taken as it is.
    Optional,
}

/// One listener of a Gateway: a host name on a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    pub name: Arc<str>,
    /// `None` takes every host; `*.example.com` takes one or more labels in its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<Arc<str>>,
    /// What is inside of `tls`, if that is there. `Tls` without it is passed on unopened.
    pub protocol: Protocol,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ServerTls>,
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

// === impl GatewayListener ===

impl GatewayListener {
    pub fn new(bind: Vec<SocketAddr>, sections: Vec<Section>) -> Self {
        Self {
            bind,
            sections,
            proxy_header: ProxyHeader::default(),
            edge: Edge::default(),
            backend_certificate: None,
            limits: None,
        }
    }
}

// === impl Section ===

impl Section {
    /// Nobody is let in.
    pub fn is_closed(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.closed)
    }
}

// === impl Edge ===

impl Edge {
    // Its signature is serde's.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

// === impl Slashes ===

impl Slashes {
    // Its signature is serde's.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

// === impl ProxyHeader ===

impl ProxyHeader {
    // Its signature is serde's.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    pub fn is_off(&self) -> bool {
        *self == Self::Off
    }
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
