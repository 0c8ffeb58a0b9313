// SPDX-License-Identifier: Apache-2.0
//! The runtime form of the model: one immutable value that a request pins once. Ingest builds a
//! new one per transaction, sharing every root that did not change; workers only read.

mod addresses;
mod build;
mod origin;
mod shared;
mod single;
pub(crate) mod tls;

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use weft_base::clock::Mono;
use weft_model::decide::{HashRing, Member, Places, Routes, Shares, host_fit, warm_basis_points};
use weft_model::{
    Backend, CaptureListener, Endpoint, Fail, GatewayListener, HashTable, Health, Host, HostPort,
    InboundListener, Protocol, ResourceName, Root, Section,
};

use crate::upstream::breaker::Quotas;
use crate::upstream::budget::Budget;

pub use build::Builder;
use build::HeldSet;
pub use origin::{Inside, OriginTls};
pub use shared::{EndpointShared, SetShared, WindowEnd};

/// All that a proxy knows, at one generation.
#[derive(Clone, Debug, Default)]
pub struct Table {
    pub generation: u64,
    hosts: imbl::HashMap<Arc<str>, Arc<HostEntry>>,
    /// Aliases to canonical names.
    aliases: imbl::HashMap<Arc<str>, Arc<str>>,
    addresses: addresses::Addresses,
    gateways: imbl::HashMap<Arc<str>, Arc<GatewayEntry>>,
    inbound: imbl::HashMap<u16, Arc<InboundEntry>>,
    capture: Option<Arc<CaptureEntry>>,
    pub unheld: Unheld,
}

/// What is known of hosts that a table does not hold.
#[derive(Clone, Debug, Default)]
pub struct Unheld {
    /// They may exist all the same: control is asked by name.
    pub partial: bool,
    /// Names that control was asked for and that are no hosts.
    pub absent: imbl::HashSet<Arc<str>>,
}

/// A service host with everything under its root.
#[derive(Debug)]
pub struct HostEntry {
    pub host: Host,
    pub routes: Routes,
    pub backends: HashMap<Arc<str>, Arc<BackendEntry>>,
    /// Children that could not be made, by child name.
    pub fails: HashMap<Arc<str>, Fail>,
    /// Instances of backends that could not be made, with the child's name: who dials one by its
    /// address is refused, for it is not unknown.
    pub failing: Vec<(Arc<str>, Arc<Endpoint>)>,
    /// Monotonic milliseconds of its last use, about; it outlives the table.
    pub used: Arc<AtomicU64>,
}

/// A backend with the endpoints it selects.
#[derive(Debug)]
pub struct BackendEntry {
    pub name: ResourceName,
    pub backend: Backend,
    /// Namespace of the service, for metrics.
    pub namespace: Arc<str>,
    pub protocol: Protocol,
    pub endpoints: Vec<Arc<EndpointEntry>>,
    pub healthy: usize,
    /// Where its endpoints stand, seen from this proxy.
    pub places: Places,
    /// What is shared about its set; it outlives the table.
    pub set: Arc<SetShared>,
    /// Its limits, as all workers share them, if it ever had any; they outlive the table.
    pub quotas: Option<Arc<Quotas>>,
    /// What of its requests may be sent again, all workers together; it outlives the table.
    pub budget: Arc<Budget>,
    pub window: WindowEnd,
    /// Made when the first worker needs it.
    pub ring: OnceLock<HashRing>,
    /// Envoy's form `outbound|8080|v1|product.shop.svc.cluster.local`.
    pub cluster: Arc<str>,
}

/// An endpoint and what all workers share about it; the shared part outlives table swaps.
#[derive(Debug)]
pub struct EndpointEntry {
    pub endpoint: Arc<Endpoint>,
    pub shared: Arc<EndpointShared>,
    /// Its backend speaks TLS itself.
    pub tls: Option<Arc<OriginTls>>,
}

/// A gateway port and its routes.
#[derive(Debug)]
pub struct GatewayEntry {
    pub name: Arc<str>,
    pub listener: GatewayListener,
    pub routes: Routes,
    /// Of each section that has a certificate; see [`tls::ServedName`].
    pub tls: Vec<tls::ServedName>,
}

/// An app port behind this sidecar, as a backend of exactly one endpoint.
#[derive(Debug)]
pub struct InboundEntry {
    pub listener: InboundListener,
    pub backend: Arc<BackendEntry>,
}

/// What holds for captured traffic, and the listener that says so.
#[derive(Debug, Default)]
pub struct CaptureEntry {
    pub name: Arc<str>,
    pub listener: CaptureListener,
}

// === impl Table ===

impl Table {
    /// The host that a name or address in a request means.
    pub fn host(&self, name: &str) -> Option<&Arc<HostEntry>> {
        if let Some(host) = self.hosts.get(name) {
            return Some(host);
        }
        if let Some(canonical) = self.aliases.get(name) {
            return self.hosts.get(canonical);
        }
        let ip: IpAddr = name.parse().ok()?;
        self.hosts.get(self.addresses.hosts(ip).first()?)
    }

    /// Every host that a name or address may mean.
    pub fn means(&self, name: &str) -> impl Iterator<Item = &Arc<HostEntry>> {
        let names: BTreeSet<&Arc<str>> = match name.parse::<IpAddr>() {
            Ok(ip) => {
                self.addresses.hosts(ip).iter().chain(self.addresses.of_instances(ip)).collect()
            }
            Err(_) => self.host(name).map(|entry| &entry.host.name).into_iter().collect(),
        };
        names.into_iter().filter_map(|name| self.hosts.get(name))
    }

    pub fn hosts(&self) -> impl Iterator<Item = &Arc<HostEntry>> {
        self.hosts.values()
    }

    pub fn backend(&self, name: &ResourceName) -> Option<&Arc<BackendEntry>> {
        match &name.root {
            Root::Host(host) => self.hosts.get(host)?.backends.get(&name.child),
            // The app ports of one sidecar are few.
            Root::Listener(_) => {
                self.inbound.values().map(|e| &e.backend).find(|b| b.name == *name)
            }
        }
    }

    /// Why a child of a host is missing, when control said so.
    pub fn fail(&self, name: &ResourceName) -> Option<&Fail> {
        let Root::Host(host) = &name.root else { return None };
        self.hosts.get(host)?.fails.get(&name.child)
    }

    pub fn gateway(&self, name: &str) -> Option<&Arc<GatewayEntry>> {
        self.gateways.get(name)
    }

    pub fn gateways(&self) -> impl Iterator<Item = &Arc<GatewayEntry>> {
        self.gateways.values()
    }

    pub fn inbound(&self, port: u16) -> Option<&Arc<InboundEntry>> {
        self.inbound.get(&port)
    }

    pub fn inbounds(&self) -> impl Iterator<Item = &Arc<InboundEntry>> {
        self.inbound.values()
    }

    /// What holds for captured traffic when control says anything about it.
    pub fn capture(&self) -> Option<&CaptureListener> {
        self.capture.as_ref().map(|c| &c.listener)
    }

    pub fn backends(&self) -> impl Iterator<Item = &Arc<BackendEntry>> {
        self.hosts.values().flat_map(|h| h.backends.values())
    }
}

// === impl Door ===

impl Door {
    /// Whether what arrives is for the app behind this sidecar.
    pub fn is_inbound(&self) -> bool {
        matches!(self, Self::Mesh | Self::Inbound)
    }
}

// === impl HostEntry ===

impl HostEntry {
    /// Notes why a backend of these instances could not be made.
    fn fail(&mut self, child: &Arc<str>, fail: Fail, set: Option<&HeldSet>) {
        self.fails.insert(child.clone(), fail);
        let known = set.iter().flat_map(|set| &*set.endpoints);
        self.failing.extend(known.map(|e| (child.clone(), e.clone())));
    }

    /// The port that a request names; the only one when it names none that exists.
    pub fn port(&self, port: u16) -> Option<&HostPort> {
        self.host.ports.iter().find(|p| p.port == port)
    }

    pub fn upstream_port(&self, listening: u16) -> Option<&HostPort> {
        self.host.ports.iter().find(|p| p.upstream_port == Some(listening))
    }

    /// Notes its use. Written at most once a second, so that workers do not fight over it.
    pub fn touch(&self, now_ms: u64) {
        if now_ms.saturating_sub(self.used_ms()) >= 1_000 {
            self.used.store(now_ms, Ordering::Relaxed);
        }
    }

    pub fn used_ms(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub fn default_backend(&self, port: &HostPort) -> Option<&Arc<BackendEntry>> {
        self.backends.get(&port.backend)
    }

    /// Why it has none.
    pub fn why_missing(&self, port: &HostPort) -> String {
        self.fails.get(&port.backend).map_or_else(
            || format!("{} has no backend {:?}", self.host.name, port.backend),
            |fail| fail.reason.to_string(),
        )
    }
}

// === impl BackendEntry ===

impl BackendEntry {
    /// Whether an endpoint may get requests at all: those that fail their checks may when a panic
    /// threshold is set.
    pub fn is_usable(&self, endpoint: &Endpoint) -> bool {
        let panics = self.backend.policy.panic_basis_points > 0;
        let unhealthy = endpoint.health == Health::Unhealthy && endpoint.weight > 0;
        endpoint.is_candidate() || (panics && unhealthy)
    }

    /// Goes on with what is counted from one of its forms to the next.
    fn goes_on_after(&mut self, before: &Self) {
        self.window = before.window.goes_on();
        self.budget = Budget::after(&before.budget, &self.backend.policy.retry_budget);
    }

    /// An endpoint as its share is decided now, and until when that holds by itself.
    pub fn member(&self, index: usize, entry: &EndpointEntry, now: Mono) -> (Member, u64) {
        let (endpoint, shared) = (&entry.endpoint, &entry.shared);
        let mut until = shared.changes_at(now);
        let mut warm = 10_000;
        if let Some(warmup) = &self.backend.policy.warmup {
            let age = shared.healthy_ms(now);
            warm = warm_basis_points(warmup, age);
            if age < warmup.duration_ms {
                // A hundred steps, none shorter than a clock's.
                until = until.min(now.0 + (warmup.duration_ms / 100).max(1));
            }
        }
        let member = Member {
            weight: endpoint.weight,
            health: endpoint.health,
            failing: shared.is_failing(),
            ejected: shared.is_ejected(now),
            pausing: shared.is_pausing(now),
            warm_basis_points: warm,
            place: self.places.of(index),
        };
        (member, until)
    }

    /// Who of its endpoints gets which share now, and why the others get none, in their order.
    pub fn shares(&self, now: Mono) -> Shares {
        let members = self.endpoints.iter().enumerate().map(|(i, e)| self.member(i, e, now).0);
        let members: Vec<Member> = members.collect();
        let mut shares = Shares::default();
        shares.settle(&members, &self.places.rule, self.backend.policy.panic_basis_points);
        shares
    }

    /// The table of a policy that hashes.
    pub fn ring(&self, table: HashTable) -> &HashRing {
        self.ring.get_or_init(|| {
            let weight = |e: &Endpoint| if e.health == Health::Draining { 0 } else { e.weight };
            let members = self.endpoints.iter().map(|e| (&*e.endpoint.id, weight(&e.endpoint)));
            HashRing::new(table, &members.collect::<Vec<_>>())
        })
    }

    pub fn total(&self) -> usize {
        self.endpoints.len()
    }

    /// The name people know: `product.shop:8080`, with `/v1` for a subset.
    pub fn label(&self) -> String {
        let b = &self.backend;
        if b.subset.is_empty() {
            format!("{}:{}", b.service, b.port)
        } else {
            format!("{}:{}/{}", b.service, b.port, b.subset)
        }
    }
}

// === impl GatewayEntry ===

impl GatewayEntry {
    /// Whether its bytes are passed on as they are.
    pub fn is_opaque(&self) -> bool {
        let mut sections = self.listener.sections.iter();
        sections.next().is_some_and(|s| s.protocol == Protocol::Tcp && s.tls.is_none())
    }

    /// Whether it is a port of UDP.
    pub fn takes_datagrams(&self) -> bool {
        let mut sections = self.listener.sections.iter();
        sections.next().is_some_and(|s| s.protocol == Protocol::Udp)
    }

    /// Whether TLS is passed on unopened for some server names.
    pub fn passes_tls_on(&self) -> bool {
        self.listener.sections.iter().any(|s| s.protocol == Protocol::Tls && s.tls.is_none())
    }

    /// Each section that has a certificate, with what is presented there.
    pub fn presented(&self) -> impl Iterator<Item = (&Section, Option<&tls::Presented>)> {
        let with_tls = self.listener.sections.iter().filter(|s| s.tls.is_some());
        with_tls.zip(&self.tls).map(|(section, (_, presented))| (section, presented.as_deref()))
    }

    /// The certificate for a TLS server name. None that is less specific stands in for one that
    /// cannot be used.
    pub fn tls_for(&self, name: Option<&str>) -> Option<Arc<rustls::ServerConfig>> {
        let name = name.unwrap_or("").to_ascii_lowercase();
        let fits = self.tls.iter().filter_map(|(host, what)| Some((host_fit(host, &name)?, what)));
        let best = fits.reduce(|best, next| if next.0 > best.0 { next } else { best });
        best.and_then(|(_, presented)| Some(presented.as_ref()?.config.clone()))
    }
}

/// The socket addresses that a table wants served, with what is served there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Door {
    /// A gateway listener, by name.
    Gateway(Arc<str>),
    /// The same of one that takes datagrams.
    Datagrams(Arc<str>),
    /// Mesh mTLS from other sidecars.
    Mesh,
    /// The HTTP forward proxy.
    Forward,
    /// What the pod sends, captured.
    Outbound,
    /// What others send to the pod, captured.
    Inbound,
    /// One port of one host, for programs that ignore proxies.
    Upstream { host: Arc<str>, port: u16 },
}

impl Table {
    /// Every socket the table wants, besides the fixed doors: `own` is the address of upstream
    /// ports, for a sidecar that has them.
    pub fn doors(&self, own: Option<IpAddr>) -> Vec<(SocketAddr, Door)> {
        let mut out = Vec::new();
        for gateway in self.gateways() {
            let name = gateway.name.clone();
            let door =
                if gateway.takes_datagrams() { Door::Datagrams(name) } else { Door::Gateway(name) };
            out.extend(gateway.listener.bind.iter().map(|a| (*a, door.clone())));
        }
        if let Some(own) = own {
            for host in self.hosts() {
                for port in &host.host.ports {
                    if let Some(listening) = port.upstream_port {
                        let door = Door::Upstream { host: host.host.name.clone(), port: port.port };
                        out.push((SocketAddr::new(own, listening), door));
                    }
                }
            }
        }
        out.sort();
        out
    }
}
