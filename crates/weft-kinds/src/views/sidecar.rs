// SPDX-License-Identifier: Apache-2.0
//! View of `networking.istio.io` Sidecar. Fields that weft does not do yet are read as raw JSON,
//! so that the compiler can name them in a warning.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::Labels;

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Sidecar {
    pub spec: SidecarSpec,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SidecarSpec {
    pub workload_selector: SidecarSelector,
    pub ingress: Vec<Value>,
    pub egress: Vec<Value>,
    pub inbound_connection_pool: Option<Value>,
    pub outbound_traffic_policy: OutboundTrafficPolicy,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct SidecarSelector {
    /// Empty is no selector.
    pub labels: Labels,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OutboundTrafficPolicy {
    /// `ALLOW_ANY` (or absent) or `REGISTRY_ONLY`.
    pub mode: Arc<str>,
    pub egress_proxy: Option<Value>,
}

// === impl SidecarSelector ===

impl SidecarSelector {
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        self.labels.iter().all(|(k, v)| labels.get(k) == Some(v))
    }
}
