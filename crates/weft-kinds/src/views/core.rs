// SPDX-License-Identifier: Apache-2.0
//! Views of Kubernetes core kinds.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Labels;

/// A port number or a port's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum IntOrString {
    Int(i64),
    String(Arc<str>),
}

impl IntOrString {
    /// The number, or the share of `total` that a percentage is; `None` when it is neither.
    pub fn of(&self, total: u32, round_up: bool) -> Option<u32> {
        match self {
            Self::Int(n) => u32::try_from(*n).ok(),
            Self::String(text) => {
                let percent: u32 = text.strip_suffix('%')?.parse().ok()?;
                let scaled = u64::from(percent) * u64::from(total);
                u32::try_from(if round_up { scaled.div_ceil(100) } else { scaled / 100 }).ok()
            }
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Service {
    pub spec: ServiceSpec,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    #[serde(rename = "type")]
    pub kind: Arc<str>,
    /// Empty while not allocated, `None` for headless services.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Arc<str>,
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Vec<Arc<str>>,
    /// `IPv4`, `IPv6`; empty means what the server has.
    pub ip_families: Vec<Arc<str>>,
    pub selector: Labels,
    pub ports: Vec<ServicePort>,
    pub external_name: Arc<str>,
    pub publish_not_ready_addresses: bool,
    /// `PreferClose`, `PreferSameZone` or `PreferSameNode`.
    pub traffic_distribution: Option<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    pub name: Arc<str>,
    pub protocol: Arc<str>,
    pub app_protocol: Option<Arc<str>>,
    pub port: u16,
    pub target_port: Option<IntOrString>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Pod {
    pub spec: PodSpec,
    pub status: PodStatus,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    pub node_name: Arc<str>,
    pub service_account_name: Arc<str>,
    pub containers: Vec<Container>,
    pub host_network: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Container {
    pub name: Arc<str>,
    pub image: Arc<str>,
    pub ports: Vec<ContainerPort>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    pub name: Arc<str>,
    pub container_port: u16,
    pub protocol: Arc<str>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    pub phase: Arc<str>,
    #[serde(rename = "podIP")]
    pub pod_ip: Arc<str>,
    pub conditions: Vec<Condition>,
}

/// A condition's word and answer; times and messages are no inputs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: Arc<str>,
    pub status: Arc<str>,
    pub reason: Arc<str>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Namespace {}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ServiceAccount {}

#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Secret {
    #[serde(rename = "type")]
    pub kind: Arc<str>,
    /// Base64, as stored.
    pub data: BTreeMap<Arc<str>, Arc<str>>,
}

// === impl Service ===

impl ServiceSpec {
    pub fn is_headless(&self) -> bool {
        &*self.cluster_ip == "None"
    }
}

impl Default for ServicePort {
    fn default() -> Self {
        Self {
            name: "".into(),
            protocol: "TCP".into(),
            app_protocol: None,
            port: 0,
            target_port: None,
        }
    }
}

// === impl Pod ===

impl Pod {
    pub fn is_ready(&self) -> bool {
        self.status.conditions.iter().any(|c| &*c.kind == "Ready" && &*c.status == "True")
    }

    /// Whether it ended (`Succeeded` or `Failed`).
    pub fn is_finished(&self) -> bool {
        matches!(&*self.status.phase, "Succeeded" | "Failed")
    }

    pub fn service_account(&self) -> &str {
        if self.spec.service_account_name.is_empty() {
            "default"
        } else {
            &self.spec.service_account_name
        }
    }

    /// All declared container ports in written order.
    pub fn ports(&self) -> impl Iterator<Item = &ContainerPort> {
        self.spec.containers.iter().flat_map(|c| &c.ports)
    }
}

impl Default for ContainerPort {
    fn default() -> Self {
        Self { name: "".into(), container_port: 0, protocol: "TCP".into() }
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret").field("kind", &self.kind).finish_non_exhaustive()
    }
}
