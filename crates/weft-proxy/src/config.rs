// SPDX-License-Identifier: Apache-2.0
//! What a proxy is told when it starts: who it is, where it listens, how much it may use.
//! The binary builds this from flags; nothing here reads the environment.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

/// Everything a proxy needs to know before its first transaction.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    pub node: NodeId,
    /// A sidecar's own pod address: its doors bind it and what it dials on loopback comes from it.
    pub address: IpAddr,
    /// Workload (owner) name for metrics; the node's name when empty.
    pub workload: Arc<str>,
    pub cluster_domain: Arc<str>,
    pub trust_domain: Arc<str>,
    pub workers: usize,
    /// Seed of the workers' choices; `None` takes one from the system (every real proxy).
    pub seed: Option<u64>,
    /// `user:password` that the forward proxy asks for; `None` admits everybody who can connect.
    pub credential: Option<Arc<str>>,
    /// Where the last good table is kept, to start from when no server answers.
    pub last_good: Option<PathBuf>,
    pub ports: Ports,
    pub unknown: UnknownDestinations,
    pub access_log: AccessLog,
    pub limits: ProxyLimits,
    /// How long requests in flight may take once draining has begun.
    pub drain_grace: Duration,
}

/// `sidecar~NAMESPACE~POD` or `gateway~NAMESPACE~GATEWAY`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeId {
    pub kind: NodeKind,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    Sidecar,
    Gateway,
}

/// Ports of a proxy's own doors; 0 lets the system choose (tests).
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    pub admin: u16,
    pub outbound: u16,
    pub mesh: u16,
    pub metrics: u16,
    pub ready: u16,
    /// Where other sidecars take mesh connections.
    pub peers: u16,
}

/// What the forward proxy does with a destination that the mesh does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownDestinations {
    /// Passed through as it is, counted as `PassthroughCluster`.
    AllowAny,
    /// Answered 502, counted as `BlackHoleCluster`.
    Deny,
}

#[derive(Clone, Debug)]
pub struct AccessLog {
    pub what: LogWhat,
    pub format: LogFormat,
    /// Standard output when absent.
    pub path: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogWhat {
    Nothing,
    /// Only what the proxy answered itself, and 5xx.
    Failures,
    Everything,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Istio's default format.
    Text,
    Json,
}

#[derive(Clone, Copy, Debug)]
pub struct ProxyLimits {
    pub connections_max: usize,
    /// Time for a complete request head, HTTP/1.
    pub header_timeout: Duration,
    /// Time for a TLS handshake.
    pub handshake_timeout: Duration,
    /// A downstream connection without a request is closed after this.
    pub idle_timeout: Duration,
    /// No byte in either direction within a request, when its route says nothing.
    pub stream_idle_timeout: Duration,
    /// Largest request body; 0 is no limit.
    pub body_bytes_max: u64,
}

#[derive(Debug, Error)]
pub enum ConfigError {
    #[error(
        "node id {0:?} is not of the form sidecar~NAMESPACE~POD or gateway~NAMESPACE~GATEWAY; \
         check --node"
    )]
    Node(String),
}

// === impl NodeId ===

impl NodeId {
    /// # Errors
    /// When the text has another form.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let wrong = || ConfigError::Node(text.to_owned());
        let mut parts = text.split('~');
        let kind = match parts.next() {
            Some("sidecar") => NodeKind::Sidecar,
            Some("gateway") => NodeKind::Gateway,
            _ => return Err(wrong()),
        };
        match (parts.next(), parts.next(), parts.next()) {
            (Some(ns), Some(name), None) if !ns.is_empty() && !name.is_empty() => {
                Ok(Self { kind, namespace: ns.into(), name: name.into() })
            }
            _ => Err(wrong()),
        }
    }
}

impl std::fmt::Display for NodeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.kind {
            NodeKind::Sidecar => "sidecar",
            NodeKind::Gateway => "gateway",
        };
        write!(f, "{kind}~{}~{}", self.namespace, self.name)
    }
}

// === impl ProxyConfig ===

impl ProxyConfig {
    /// The standard configuration of a node.
    pub fn new(node: NodeId) -> Self {
        Self {
            workload: node.name.clone(),
            node,
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            cluster_domain: "cluster.local".into(),
            trust_domain: "cluster.local".into(),
            workers: 1,
            seed: None,
            credential: None,
            last_good: None,
            ports: Ports::default(),
            unknown: UnknownDestinations::AllowAny,
            access_log: AccessLog { what: LogWhat::Failures, format: LogFormat::Text, path: None },
            limits: ProxyLimits::default(),
            drain_grace: Duration::from_secs(15),
        }
    }

    pub fn door(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address, port)
    }

    pub fn is_gateway(&self) -> bool {
        self.node.kind == NodeKind::Gateway
    }
}

// === defaults ===

impl Default for Ports {
    fn default() -> Self {
        Self {
            admin: 15000,
            outbound: 15001,
            mesh: weft_model::MESH_PORT,
            metrics: 15020,
            ready: 15021,
            peers: weft_model::MESH_PORT,
        }
    }
}

impl Default for ProxyLimits {
    fn default() -> Self {
        Self {
            connections_max: weft_base::limits::CONNECTIONS_MAX,
            header_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(300),
            stream_idle_timeout: Duration::from_secs(300),
            body_bytes_max: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ids_have_three_parts() {
        let node = NodeId::parse("sidecar~shop~user-1").unwrap();
        assert_eq!(
            (node.kind, &*node.namespace, &*node.name),
            (NodeKind::Sidecar, "shop", "user-1")
        );
        assert_eq!(node.to_string(), "sidecar~shop~user-1");
        for bad in ["", "sidecar", "sidecar~a", "waypoint~a~b", "sidecar~a~b~c", "sidecar~~b"] {
            assert!(NodeId::parse(bad).is_err(), "{bad}");
        }
    }
}
