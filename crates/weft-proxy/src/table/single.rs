// SPDX-License-Identifier: Apache-2.0
//! Backends of exactly one endpoint, made for one request or connection: a destination outside,
//! an instance that was dialled by its own address, the app behind this sidecar.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use weft_model::decide::{Instance, Places};
use weft_model::{
    Backend, BackendPolicy, Endpoint, Health, Labels, Locality, Outlier, Protocol, ResourceName,
    Root, Transport,
};

use super::{BackendEntry, EndpointEntry, EndpointShared, InboundEntry, Table, WindowEnd};
use crate::upstream::budget::Budget;

/// What requests to app ports that no Service speaks of are counted as.
const INBOUND_PASSTHROUGH: &str = "InboundPassthroughCluster";
/// The world is farther away than the mesh: a lost SYN is sent again after a second, then two.
const OUTSIDE_CONNECT_MS: u64 = 5_000;

// === impl BackendEntry ===

impl BackendEntry {
    /// A destination outside the mesh: one endpoint, reached in plaintext, never ejected.
    pub fn outside(address: SocketAddr, workers: usize) -> Arc<Self> {
        let service: Arc<str> = "PassthroughCluster".into();
        let mut backend = plain_backend(service.clone(), address.port());
        backend.policy.connect_timeout_ms = OUTSIDE_CONNECT_MS;
        let budget = Budget::new(&backend.policy.retry_budget, workers);
        Arc::new(Self {
            name: Root::host(format!("outside.{address}")).own(),
            backend,
            namespace: "unknown".into(),
            protocol: Protocol::Detect,
            endpoints: vec![plain_endpoint("outside", "unknown", address, workers)],
            healthy: 1,
            places: Places::default(),
            set: Arc::default(),
            quotas: None,
            budget,
            ring: OnceLock::new(),
            window: WindowEnd::default(),
            cluster: service,
        })
    }

    /// One instance of a service, whatever its health: its client chose it by address.
    ///
    /// # Errors
    /// Why nothing may go there.
    pub fn instance(table: &Table, found: &Instance<'_>) -> Result<Arc<Self>, String> {
        let at = found.endpoint.address;
        let gone = || format!("the instance at {at} is gone");
        let entry = table.hosts.get(&found.host.name).ok_or_else(gone)?;
        let whole = entry.default_backend(found.port);
        let whole = whole.ok_or_else(|| entry.why_missing(found.port))?;
        let known = whole.endpoints.iter().find(|e| e.endpoint.address == at).ok_or_else(gone)?;
        let endpoint = Endpoint { health: Health::Healthy, weight: 1, ..(*known.endpoint).clone() };
        let mut backend = whole.backend.clone();
        backend.policy.outlier = Outlier::off();
        Ok(Arc::new(Self {
            name: whole.name.root.child(format!("instance/{at}")),
            backend,
            namespace: whole.namespace.clone(),
            protocol: whole.protocol,
            endpoints: vec![Arc::new(EndpointEntry {
                endpoint: Arc::new(endpoint),
                shared: known.shared.clone(),
                tls: known.tls.clone(),
            })],
            healthy: 1,
            places: Places::default(),
            set: Arc::default(),
            quotas: whole.quotas.clone(),
            budget: whole.budget.clone(),
            ring: OnceLock::new(),
            window: WindowEnd::default(),
            cluster: whole.cluster.clone(),
        }))
    }

    /// Its backend at an address that its client chose, of which nothing else is known; `None` when
    /// that would be spoken to in another way than its instances are.
    pub fn dialled(&self, outside: &Self) -> Option<Arc<Self>> {
        let only = outside.endpoints.first()?;
        let meshed = |e: &Arc<EndpointEntry>| e.endpoint.transport != Transport::Plaintext;
        if self.endpoints.iter().any(meshed) {
            return None;
        }
        let tls = self.endpoints.iter().find_map(|e| e.tls.clone());
        if self.backend.policy.tls.is_some() && tls.is_none() {
            return None;
        }
        let endpoint = only.endpoint.clone();
        let shared = only.shared.clone();
        Some(Arc::new(Self {
            name: self.name.root.child(format!("dialled/{}", endpoint.address)),
            backend: self.backend.clone(),
            namespace: self.namespace.clone(),
            protocol: self.protocol,
            endpoints: vec![Arc::new(EndpointEntry { endpoint, shared, tls })],
            healthy: 1,
            places: Places::default(),
            set: Arc::default(),
            quotas: self.quotas.clone(),
            budget: self.budget.clone(),
            ring: OnceLock::new(),
            window: WindowEnd::default(),
            cluster: self.cluster.clone(),
        }))
    }

    /// The app at an address of the pod; `inbound` is what is known about its port.
    pub fn app(address: SocketAddr, inbound: Option<&InboundEntry>) -> Arc<Self> {
        let Some(inbound) = inbound else {
            // Nobody weighs the requests in flight of the only endpoint.
            let endpoint = plain_endpoint("app", "", address, 1);
            let service: Arc<str> = INBOUND_PASSTHROUGH.into();
            let backend = plain_backend(service.clone(), address.port());
            return Arc::new(Self {
                name: Root::listener(format!("app/{address}")).own(),
                budget: Budget::new(&backend.policy.retry_budget, 1),
                backend,
                namespace: "".into(),
                protocol: Protocol::Detect,
                endpoints: vec![endpoint],
                healthy: 1,
                places: Places::default(),
                set: Arc::default(),
                quotas: None,
                ring: OnceLock::new(),
                window: WindowEnd::default(),
                cluster: service,
            });
        };
        let known = &inbound.backend;
        // What is in flight to the port is counted in one place, by whichever address it came.
        let endpoints = known.endpoints.iter().map(|e| {
            let endpoint = Arc::new(Endpoint { address, ..(*e.endpoint).clone() });
            Arc::new(EndpointEntry { endpoint, shared: e.shared.clone(), tls: None })
        });
        let name =
            ResourceName { root: known.name.root.clone(), child: format!("app/{address}").into() };
        Arc::new(Self {
            name,
            backend: known.backend.clone(),
            namespace: known.namespace.clone(),
            protocol: known.protocol,
            endpoints: endpoints.collect(),
            healthy: 1,
            places: Places::default(),
            set: Arc::default(),
            quotas: known.quotas.clone(),
            budget: known.budget.clone(),
            ring: OnceLock::new(),
            window: WindowEnd::default(),
            cluster: known.cluster.clone(),
        })
    }
}

fn plain_backend(service: Arc<str>, port: u16) -> Backend {
    Backend {
        service,
        port,
        subset: "".into(),
        selector: Labels::new(),
        policy: BackendPolicy { outlier: Outlier::off(), ..BackendPolicy::default() },
        origin: None,
    }
}

fn plain_endpoint(
    id: &str,
    workload: &str,
    address: SocketAddr,
    workers: usize,
) -> Arc<EndpointEntry> {
    let endpoint = Endpoint {
        id: id.into(),
        address,
        labels: Labels::new(),
        locality: Locality::default(),
        weight: 1,
        health: Health::Healthy,
        identity: None,
        transport: Transport::Plaintext,
        workload: workload.into(),
        mesh_address: None,
    };
    let shared = Arc::new(EndpointShared::new(workers));
    Arc::new(EndpointEntry { endpoint: Arc::new(endpoint), shared, tls: None })
}
