// SPDX-License-Identifier: Apache-2.0
//! View of `networking.istio.io` ServiceEntry: hosts that are no Services, and where they are.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::Labels;

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ServiceEntry {
    pub spec: ServiceEntrySpec,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceEntrySpec {
    pub hosts: Vec<Arc<str>>,
    pub addresses: Vec<Arc<str>>,
    pub ports: Vec<EntryPort>,
    /// `MESH_EXTERNAL` (or absent) or `MESH_INTERNAL`.
    pub location: Arc<str>,
    /// `NONE` (or absent), `STATIC`, `DNS`, `DNS_ROUND_ROBIN`.
    pub resolution: Arc<str>,
    pub endpoints: Vec<EntryEndpoint>,
    pub workload_selector: Option<Value>,
    pub export_to: Vec<Arc<str>>,
    pub subject_alt_names: Vec<Arc<str>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EntryPort {
    pub number: u16,
    pub protocol: Arc<str>,
    pub name: Arc<str>,
    pub target_port: Option<u16>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct EntryEndpoint {
    /// An address, or a name where the resolution is DNS.
    pub address: Arc<str>,
    /// By the entry's port name.
    pub ports: BTreeMap<Arc<str>, u16>,
    pub labels: Labels,
    /// `region/zone/sub-zone`.
    pub locality: Arc<str>,
    /// Absent means 1.
    pub weight: Option<u32>,
}

// === impl ServiceEntry ===

impl ServiceEntrySpec {
    pub fn is_dns(&self) -> bool {
        matches!(&*self.resolution, "DNS" | "DNS_ROUND_ROBIN")
    }

    /// The names that somebody has to look up for it.
    pub fn names_to_resolve(&self) -> impl Iterator<Item = &Arc<str>> {
        let (hosts, endpoints) = match (self.is_dns(), self.endpoints.is_empty()) {
            (false, _) => (&[][..], &[][..]),
            (true, true) => (self.hosts.as_slice(), &[][..]),
            (true, false) => (&[][..], self.endpoints.as_slice()),
        };
        let all = hosts.iter().chain(endpoints.iter().map(|e| &e.address));
        all.filter(|n| !n.contains('*') && n.parse::<std::net::IpAddr>().is_err())
    }
}

impl EntryPort {
    /// Where it is served unless an endpoint says otherwise.
    pub fn target(&self) -> u16 {
        self.target_port.unwrap_or(self.number)
    }
}
