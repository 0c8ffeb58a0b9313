// SPDX-License-Identifier: Apache-2.0
//! What a proxy is told when it starts: who it is, where it listens, how much it may use.
//! The binary builds this from flags; nothing here reads the environment.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use weft_base::sockets::SocketFactory;
use weft_model::decide::Own;

use crate::capture::original::OriginalDst;
use crate::handover::Sockets;
use crate::networks::Networks;
use crate::observe::format::Format;

/// Where the kernel hands over what a pod sends, what is sent to it, and what it asks.
pub const OUTBOUND_PORT: u16 = 15001;
pub const INBOUND_PORT: u16 = 15006;
pub const DNS_PORT: u16 = 15053;

/// Everything a proxy needs to know before its first transaction.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    pub node: NodeId,
    /// Ports that do not declare their HTTP version are spoken to in their client's.
    pub follows_client: bool,
    /// It serves what a file says: there is no server that could be asked.
    pub from_file: bool,
    /// A sidecar's own pod address: its doors bind it and what it dials on loopback comes from it.
    pub address: IpAddr,
    /// Where its admin, metrics and readiness doors bind; `address` when absent.
    pub admin_address: Option<IpAddr>,
    /// Where sockets come from whose other end is outside of the pod network: the control plane,
    /// its own admin doors, listeners of a gateway, destinations that are no pods.
    pub host: SocketFactory,
    /// What is inside, when `host` is a door.
    pub networks: Networks,
    /// Where other machines reach its mesh door, in the place of the mesh port of `address`.
    pub mesh_address: Option<SocketAddr>,
    /// Traffic of its pod that the kernel hands over; `None` in process mode.
    pub capture: Option<Capture>,
    /// Mark of the sockets that it connects itself, so that they are not captured again.
    pub mark: Option<u32>,
    /// Workload (owner) name for metrics; the node's name when empty.
    pub workload: Arc<str>,
    pub cluster_domain: Arc<str>,
    pub trust_domain: Arc<str>,
    pub workers: usize,
    /// Where it is, for policies that prefer what is near.
    pub own: Own,
    /// Seed of the workers' choices; `None` takes one from the system (every real proxy).
    pub seed: Option<u64>,
    /// `user:password` that the forward proxy asks for; `None` admits everybody who can connect.
    pub credential: Option<Arc<str>>,
    /// Where the last good table is kept, to start from when no server answers.
    pub last_good: Option<PathBuf>,
    pub ports: Ports,
    /// Listening sockets that go from one process to the next.
    pub handover: Arc<Sockets>,
    /// The admin door also shows metrics and readiness; they have no doors of their own.
    pub one_door: bool,
    pub unknown: UnknownDestinations,
    pub access_log: AccessLog,
    pub limits: ProxyLimits,
    /// How long requests in flight may take once draining has begun.
    pub drain_grace: Duration,
    /// The same once another process has taken this one's place: nobody waits for its end.
    pub succession_grace: Duration,
    /// Returns memory that nobody uses any more to the system: only the program knows its
    /// allocator. Called once no table was made for a while.
    pub give_back: fn(),
    /// Has the allocator return the pages that it does not use, and nothing else: called while
    /// memory is short.
    pub purge: fn(),
    /// Changes what this process logs, by the words of its log filter, and says what it logs then.
    /// Only the program knows its log.
    pub log_filter: fn(Option<&str>) -> Result<String, String>,
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

/// Where captured traffic arrives. Every list has one address per family.
#[derive(Clone, Debug)]
pub struct Capture {
    /// Connections that the pod makes.
    pub outbound: Vec<SocketAddr>,
    /// Connections to the pod.
    pub inbound: Vec<SocketAddr>,
    /// Questions that the pod asks (UDP and TCP).
    pub dns: Vec<SocketAddr>,
    /// Mesh connections; they are not redirected.
    pub mesh: Vec<SocketAddr>,
    /// The server's resolver for pods, reached as everything outside is.
    pub resolver: Option<SocketAddr>,
    /// How the address is learned that a connection was made to.
    pub original: OriginalDst,
}

/// What the forward proxy does with a destination that the mesh does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownDestinations {
    /// Passed through as it is, counted as `PassthroughCluster`.
    AllowAny,
    /// Answered 502, counted as `BlackHoleCluster`.
    Deny,
}

#[derive(Clone, Debug, PartialEq, Eq)]
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

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Istio's default format.
    Text,
    Json,
    /// The user's own.
    Of(Arc<Format>),
}

#[derive(Clone, Debug)]
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
    /// No byte in either direction of a connection that is no HTTP, or has left it.
    pub tunnel_idle_timeout: Duration,
    /// No datagram in either direction between a client and its endpoint.
    pub udp_idle_timeout: Duration,
    /// With no room left for flows, those that were silent for this long give way.
    pub udp_silent: Duration,
    /// Clients of datagrams that are kept apart, all workers together.
    pub udp_flows_max: usize,
    /// Largest request body; 0 is no limit.
    pub body_bytes_max: u64,
    /// Memory of this process beyond which requests are refused; its control group's when absent.
    pub memory_bytes_max: Option<u64>,
    /// Bytes of stored answers, all workers together; 0 stores nothing.
    pub cache_bytes_max: u64,
    pub on_demand: OnDemandLimits,
}

/// Of hosts that are asked for by name, in a mesh of more hosts than a proxy holds.
#[derive(Clone, Copy, Debug)]
pub struct OnDemandLimits {
    /// More than this, the longest unused is given back.
    pub backends_max: usize,
    pub bytes_max: usize,
    /// Requests and connections that wait for an answer, and how long.
    pub waiting_max: usize,
    pub wait: Duration,
    /// What was used within this time is not given back.
    pub idle: Duration,
    /// Names remembered that are no hosts.
    pub absent_max: usize,
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
            follows_client: node.kind == NodeKind::Sidecar,
            from_file: false,
            node,
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            mesh_address: None,
            admin_address: None,
            host: SocketFactory::Here,
            networks: Networks::default(),
            capture: None,
            mark: None,
            cluster_domain: "cluster.local".into(),
            trust_domain: "cluster.local".into(),
            workers: 1,
            own: Own::default(),
            seed: None,
            credential: None,
            last_good: None,
            ports: Ports::default(),
            handover: Arc::default(),
            one_door: false,
            unknown: UnknownDestinations::AllowAny,
            access_log: AccessLog { what: LogWhat::Failures, format: LogFormat::Text, path: None },
            limits: ProxyLimits::default(),
            drain_grace: Duration::from_secs(15),
            succession_grace: Duration::from_secs(600),
            give_back: || {},
            purge: || {},
            log_filter: |_| Err("this process has no log to change".into()),
        }
    }

    pub fn door(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address, port)
    }

    /// Address of an admin door.
    pub fn admin_door(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.admin_address.unwrap_or(self.address), port)
    }

    /// How long what is open may take once this process ends, `succeeded` by another one or not.
    pub fn grace(&self, succeeded: bool) -> Duration {
        if succeeded { self.succession_grace.max(self.drain_grace) } else { self.drain_grace }
    }

    pub fn is_gateway(&self) -> bool {
        self.node.kind == NodeKind::Gateway
    }

    /// Whether it opens a port per Service for programs that ignore proxies.
    pub fn has_upstream_ports(&self) -> bool {
        !self.is_gateway() && self.capture.is_none()
    }

    /// Whether a port of the pod's addresses is the proxy's own, and so never the app's.
    pub fn is_own_port(&self, port: u16) -> bool {
        let captured = self.capture.iter().flat_map(|c| {
            c.outbound.iter().chain(&c.inbound).chain(&c.dns).chain(&c.mesh).map(SocketAddr::port)
        });
        let p = &self.ports;
        port != 0 && captured.chain([p.admin, p.metrics, p.ready]).any(|own| own == port)
    }

    /// Whether sockets towards an address are made in the host's namespace.
    pub fn is_outside(&self, ip: IpAddr) -> bool {
        matches!(self.host, SocketFactory::Door(_))
            && ip.to_canonical() != self.address
            && !self.networks.is_pod(ip)
    }
}

// === impl Capture ===

impl Capture {
    /// The usual ports. What the pod itself sends arrives on loopback, what others send on the
    /// pod's addresses.
    pub fn new(resolver: Option<SocketAddr>) -> Self {
        let on = |port| move |ip: IpAddr| SocketAddr::new(ip, port);
        let own = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        Self {
            outbound: own.map(on(OUTBOUND_PORT)).into(),
            inbound: any.map(on(INBOUND_PORT)).into(),
            dns: own.map(on(DNS_PORT)).into(),
            mesh: any.map(on(weft_model::MESH_PORT)).into(),
            resolver,
            original: OriginalDst::Kernel,
        }
    }
}

// === defaults ===

impl Default for Ports {
    fn default() -> Self {
        Self {
            admin: 15000,
            outbound: OUTBOUND_PORT,
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
            tunnel_idle_timeout: Duration::from_secs(3600),
            udp_idle_timeout: Duration::from_secs(60),
            udp_silent: Duration::from_secs(5),
            udp_flows_max: weft_base::limits::UDP_FLOWS_MAX,
            body_bytes_max: 0,
            memory_bytes_max: None,
            cache_bytes_max: weft_base::limits::CACHE_BYTES_MAX,
            on_demand: OnDemandLimits::default(),
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
