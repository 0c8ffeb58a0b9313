// SPDX-License-Identifier: Apache-2.0
//! How pods run: as plain processes, or in namespaces of their own where traffic is captured. A
//! third kind runs nothing: it stands for programs of a machine whose traffic its agent captures.
//!
//! The server's setting says what is meant for new pods (a node may differ, by annotation); the
//! pod controller writes it on each pod as it gives the pod its addresses, so that compile and
//! the agent read it of the pod and of nothing else.

use std::net::IpAddr;

use serde_json::Value;

use super::{KindId, Object, World};
use crate::views::{Meta, View};

/// The setting: `{"mode": "namespace"}`; without it, processes.
pub const PODS_SETTING: &str = "pods";
/// On Nodes and pods: `namespace` or `process`; on pods also `machine`.
pub const PODS_ANNOTATION: &str = "weft.dev/pods";
/// On captured pods: their loopback address on the host's side, where the sidecar's admin,
/// metrics and readiness listen. Other pods have their only address there.
pub const HOST_ADDRESS_ANNOTATION: &str = "weft.dev/host-address";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PodsMode {
    #[default]
    Process,
    Namespace,
    /// Programs of the machine, at the machine's own address: `weft agent --capture`.
    Machine,
}

// === impl PodsMode ===

impl PodsMode {
    /// As it is written in settings and annotations.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Namespace => "namespace",
            Self::Machine => "machine",
        }
    }

    /// Whether what reaches such pods passes their sidecars, and what they send too.
    pub fn is_captured(self) -> bool {
        self != Self::Process
    }

    /// What an annotation says; absent and unknown words are processes, which promise less.
    pub fn of(meta: &Meta) -> Self {
        Self::read(meta.annotation(PODS_ANNOTATION))
    }

    fn read(word: Option<&str>) -> Self {
        match word {
            Some("namespace") => Self::Namespace,
            Some("machine") => Self::Machine,
            _ => Self::Process,
        }
    }

    /// The value of the setting.
    pub fn setting(self) -> Value {
        serde_json::json!({ "mode": self.as_str() })
    }

    /// What the setting's value says.
    pub fn from_setting(value: Option<&Value>) -> Self {
        Self::read(value.and_then(|v| v["mode"].as_str()))
    }
}

// === impl World ===

impl World {
    /// How pods run unless their node says otherwise.
    pub fn pods_mode(&self) -> PodsMode {
        PodsMode::from_setting(self.setting(PODS_SETTING).map(|v| &**v))
    }

    /// How the pods of a node run.
    pub fn pods_mode_of(&self, node: &str) -> PodsMode {
        let node = self.get(KindId::Node, "", node);
        let word = node.and_then(|n| n.meta.annotation(PODS_ANNOTATION));
        if word.is_some() { PodsMode::read(word) } else { self.pods_mode() }
    }
}

/// Where a pod is reached from the host's side: what scrapes and asks proxies connects there.
pub fn host_address(pod: &Object) -> Option<IpAddr> {
    if let Some(text) = pod.meta.annotation(HOST_ADDRESS_ANNOTATION) {
        return text.parse().ok();
    }
    match &pod.view {
        View::Pod(view) => view.status.pod_ip.parse().ok(),
        _ => None,
    }
}
