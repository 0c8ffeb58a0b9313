// SPDX-License-Identifier: Apache-2.0
//! Instances: endpoint sets and their endpoints.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Protocol;

pub type Labels = BTreeMap<Arc<str>, Arc<str>>;

/// All instances of one port of one service. Instances are never copied per subset.
/// Named `host:FQDN/endpoints/PORT`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSet {
    pub service: Arc<str>,
    pub namespace: Arc<str>,
    pub port: u16,
    pub protocol: Protocol,
    pub endpoints: Vec<Endpoint>,
}

/// One instance of a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    /// Stable over its life: pod name, or the Consul service id.
    pub id: Arc<str>,
    /// Where the app listens.
    pub address: SocketAddr,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
    #[serde(default, skip_serializing_if = "Locality::is_unknown")]
    pub locality: Locality,
    /// Relative share; 0 takes no new requests.
    pub weight: u32,
    pub health: Health,
    /// SPIFFE ID that its certificate must carry. `None` only with plaintext.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Arc<str>>,
    pub transport: Transport,
    /// Workload (owner) name for metrics: `user`, `product-v1`.
    #[serde(default)]
    pub workload: Arc<str>,
    /// Where its sidecar takes mesh connections when that is not port 15008 of `address`: pods of
    /// machines whose own addresses are all that others reach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh_address: Option<SocketAddr>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Locality {
    #[serde(default)]
    pub region: Arc<str>,
    #[serde(default)]
    pub zone: Arc<str>,
    #[serde(default)]
    pub sub_zone: Arc<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    Healthy,
    /// A check is critical or the readiness probe fails.
    Unhealthy,
    /// Finishes what it has, takes nothing new.
    Draining,
}

/// How to reach an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    Plaintext,
    /// TLS that the app itself terminates.
    Tls,
    /// Mesh mTLS on the app's own port.
    MtlsAppPort,
    /// Mesh mTLS to port 15008 of the endpoint's address; the app port travels as SNI
    /// ([`mesh_server_name`]). HTTP/1.1 by ALPN. Opaque TCP: `CONNECT` in it, then raw bytes.
    MeshH1,
    /// The same with HTTP/2 by ALPN.
    MeshH2,
    /// HTTP/2 CONNECT tunnel (Istio's HBONE).
    Hbone,
}

/// The mesh port of every sidecar.
pub const MESH_PORT: u16 = 15008;

/// The TLS server name that carries an app port to a mesh port: `p8080.mesh.weft.internal`.
pub fn mesh_server_name(port: u16) -> String {
    format!("p{port}.mesh.weft.internal")
}

/// The port in a mesh server name.
pub fn mesh_server_port(sni: &str) -> Option<u16> {
    sni.strip_suffix(".mesh.weft.internal")?.strip_prefix('p')?.parse().ok()
}

/// The child name of an endpoint set.
pub fn endpoints_child(port: u16) -> String {
    format!("endpoints/{port}")
}

/// The same of a set that takes datagrams.
pub fn udp_endpoints_child(port: u16) -> String {
    format!("endpoints/{port}{}", crate::UDP_MARK)
}

// === impl Endpoint ===

impl Endpoint {
    /// Where to connect: the app itself, or its sidecar's mesh port.
    pub fn connect_address(&self) -> SocketAddr {
        match self.transport {
            Transport::MeshH1 | Transport::MeshH2 | Transport::Hbone => {
                let usual = SocketAddr::new(self.address.ip(), MESH_PORT);
                self.mesh_address.unwrap_or(usual)
            }
            Transport::Plaintext | Transport::Tls | Transport::MtlsAppPort => self.address,
        }
    }

    /// Whether it may take new requests, ejection aside.
    pub fn is_candidate(&self) -> bool {
        self.health == Health::Healthy && self.weight > 0
    }

    pub fn ip(&self) -> IpAddr {
        self.address.ip()
    }
}

// === impl Locality ===

impl Locality {
    pub fn is_unknown(&self) -> bool {
        self.region.is_empty() && self.zone.is_empty() && self.sub_zone.is_empty()
    }
}
