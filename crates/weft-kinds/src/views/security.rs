// SPDX-License-Identifier: Apache-2.0
//! Views of `security.istio.io`: PeerAuthentication.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use super::Labels;

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PeerAuthentication {
    pub spec: PeerAuthenticationSpec,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerAuthenticationSpec {
    pub selector: WorkloadSelector,
    pub mtls: MutualTls,
    /// By the port of the workload, as text.
    pub port_level_mtls: BTreeMap<Arc<str>, MutualTls>,
}

/// Istio's selector: all labels must be there; empty is no selector.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadSelector {
    pub match_labels: Labels,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct MutualTls {
    /// `UNSET` (or absent), `DISABLE`, `PERMISSIVE`, `STRICT`.
    pub mode: Arc<str>,
}

// === impl WorkloadSelector ===

impl WorkloadSelector {
    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty()
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        self.match_labels.iter().all(|(k, v)| labels.get(k) == Some(v))
    }
}
