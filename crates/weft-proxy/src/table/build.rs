// SPDX-License-Identifier: Apache-2.0
//! Builds tables from resources, root by root. Ingest owns one builder; it is the only writer.
//!
//! A route whose backend is not here yet keeps its previous form (or stays away), so that a new
//! route goes from 404 to 200 without a 503 between. A bad resource keeps its last good form, but
//! a backend whose TLS cannot be spoken fails: its last form may be one in plaintext. A section of
//! a gateway's port whose TLS cannot be used is not served; the others may be somebody else's.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use weft_base::clock::Clock;
use weft_model::decide::{Own, Routes, places};
use weft_model::{
    Backend, BackendPolicy, Certificate, Endpoint, Fail, Health, Host, InboundListener, Labels,
    Listener, ListenerKind, Locality, Outlier, Resource, ResourceName, Root, Route, Transport,
    UDP_MARK, UpstreamTls, endpoints_child, udp_endpoints_child,
};
use weft_xds::Rejected;

use crate::upstream::breaker::Quotas;
use crate::upstream::budget::Budget;

use super::{
    BackendEntry, CaptureEntry, EndpointEntry, EndpointShared, GatewayEntry, HostEntry,
    InboundEntry, OriginTls, SetShared, Table, Unheld, WindowEnd, tls,
};

mod clients;
mod held;
mod kept;
mod shown;

use held::Held;
pub(super) use held::HeldSet;

type Child = Arc<str>;
type SharedKey = (Arc<str>, u16, Arc<str>, SocketAddr);

/// Resources as they were sent, and the table made of them.
#[derive(Debug)]
pub struct Builder {
    workers: usize,
    clock: Clock,
    namespace: Arc<str>,
    /// Instances are looked up by their own addresses.
    instances: bool,
    /// Routes are looked up however few they are.
    indexed: bool,
    roots: BTreeMap<Root, BTreeMap<Child, Held>>,
    /// Routes in effect: the newest version whose backends are all known.
    routes: BTreeMap<ResourceName, Arc<Route>>,
    /// Routes that wait for a backend, so that they are looked at again.
    waiting: BTreeSet<ResourceName>,
    shared: HashMap<SharedKey, Arc<EndpointShared>>,
    /// See [`BackendEntry::set`], by service and port.
    sets: HashMap<(Arc<str>, u16), Arc<SetShared>>,
    /// See [`BackendEntry::quotas`].
    quotas: HashMap<ResourceName, Arc<Quotas>>,
    origins: HashMap<UpstreamTls, Arc<OriginTls>>,
    /// See [`GatewayListener::backend_certificate`](weft_model::GatewayListener).
    shown: Option<Certificate>,
    /// Where this proxy is.
    own: Own,
    /// Backends whose requests are shared by zone.
    zoned: BTreeSet<ResourceName>,
    table: Table,
}

// === impl Builder ===

impl Builder {
    /// `namespace` is the proxy's own: its services may be named without it.
    pub fn new(workers: usize, clock: Clock, namespace: Arc<str>) -> Self {
        Self {
            workers,
            clock,
            namespace,
            instances: false,
            indexed: false,
            roots: BTreeMap::new(),
            routes: BTreeMap::new(),
            waiting: BTreeSet::new(),
            shared: HashMap::new(),
            sets: HashMap::new(),
            quotas: HashMap::new(),
            origins: HashMap::new(),
            shown: None,
            own: Own::default(),
            zoned: BTreeSet::new(),
            table: Table::default(),
        }
    }

    /// The same for a sidecar that captures, which must know instances by their addresses.
    #[must_use]
    pub fn with_instances(self, instances: bool) -> Self {
        Self { instances, ..self }
    }

    /// The same for tests, which have few routes: the index for thousands finds them all the same.
    #[must_use]
    pub fn indexed(self) -> Self {
        Self { indexed: true, ..self }
    }

    /// The same for a proxy that knows where it is.
    #[must_use]
    pub fn located(self, own: Own) -> Self {
        Self { own, ..self }
    }

    /// Applies one transaction and returns the new table with what was refused of it.
    pub fn apply(
        &mut self,
        generation: u64,
        upserts: Vec<(ResourceName, Result<Resource, Fail>)>,
        removes: &[ResourceName],
    ) -> (Arc<Table>, Vec<Rejected>) {
        let mut rejected = Vec::new();
        let mut touched: BTreeSet<Root> = BTreeSet::new();
        for (name, resource) in upserts {
            touched.insert(name.root.clone());
            self.upsert(name, resource, &mut rejected);
        }
        for name in removes {
            touched.insert(name.root.clone());
            self.remove(name);
        }
        touched.extend(self.settle_routes(&touched));
        touched.extend(self.count_callers());
        touched.extend(self.note_shown(&touched));
        for root in &touched {
            self.rebuild(root);
        }
        self.sweep();
        self.table.generation = generation;
        (Arc::new(self.table.clone()), rejected)
    }

    /// What the next table says of hosts that it does not hold.
    pub fn set_unheld(&mut self, unheld: Unheld) {
        self.table.unheld = unheld;
    }

    /// Counts the instances of this proxy's own service by zone: with them, callers share out what
    /// they send. Returns what must be looked at again.
    fn count_callers(&mut self) -> BTreeSet<Root> {
        let (roots, zoned) = (&self.roots, &mut self.zoned);
        zoned.retain(
            |name| matches!(other(roots, name), Some(Resource::Backend(b)) if b.policy.is_zoned()),
        );
        if zoned.is_empty() || self.own.id.is_empty() {
            return BTreeSet::new();
        }
        let (own, namespace) = (&self.own, &self.namespace);
        let is_own = |set: &&Arc<HeldSet>| {
            set.namespace == *namespace && set.endpoints.iter().any(|e| e.id == own.id)
        };
        let mut sets = roots.values().flat_map(|c| c.values()).filter_map(|held| match held {
            Held::Endpoints(set) => Some(set),
            _ => None,
        });
        let mut callers = BTreeMap::new();
        for endpoint in sets.find(is_own).iter().flat_map(|set| &*set.endpoints) {
            if endpoint.is_candidate() && endpoint.locality.region == own.locality.region {
                *callers.entry(endpoint.locality.zone.clone()).or_default() += 1;
            }
        }
        if callers == own.callers {
            return BTreeSet::new();
        }
        self.own.callers = callers;
        self.zoned.iter().map(|name| name.root.clone()).collect()
    }

    /// Whether anything of a root is known.
    pub fn has(&self, root: &Root) -> bool {
        self.roots.contains_key(root)
    }

    /// Everything known, for the last-good file.
    pub fn resources(&self) -> impl Iterator<Item = (ResourceName, Cow<'_, Resource>)> {
        self.roots.iter().flat_map(|(root, children)| {
            children.iter().map(|(child, held)| (root.child(child.clone()), held.resource()))
        })
    }

    /// What would be refused of these. Makes no table.
    pub fn refusals<'a>(
        &mut self,
        resources: impl IntoIterator<Item = (&'a ResourceName, &'a Resource)>,
    ) -> Vec<Rejected> {
        let mut rejected = Vec::new();
        for (name, resource) in resources {
            let wrong = fits(name, resource).and_then(|()| self.check_origin(resource)).err();
            rejected.extend(unusable(name, resource, &self.clock));
            rejected.extend(wrong.map(|reason| Rejected::new(name.to_string(), reason)));
        }
        rejected
    }

    fn upsert(
        &mut self,
        name: ResourceName,
        resource: Result<Resource, Fail>,
        rejected: &mut Vec<Rejected>,
    ) {
        let refused = resource.as_ref().is_err();
        let checked = resource.map_err(|f| f.reason.to_string());
        let checked = checked.and_then(|r| fits(&name, &r).map(|()| r));
        rejected.extend(checked.as_ref().ok().and_then(|r| unusable(&name, r, &self.clock)));
        let unspoken = checked.as_ref().ok().and_then(|r| self.check_origin(r).err());
        let is_unspoken = unspoken.is_some();
        let checked = unspoken.map_or(checked, Err);
        if let Ok(Resource::Backend(backend)) = &checked
            && backend.policy.is_zoned()
        {
            self.zoned.insert(name.clone());
        }
        let children = self.roots.entry(name.root.clone()).or_default();
        match checked {
            Ok(resource) => {
                let held = Held::new(resource, children.get(&name.child));
                children.insert(name.child, held);
            }
            Err(reason) => {
                // The last good form stays; what never had one becomes a visible failure.
                if is_unspoken || !children.contains_key(&name.child) {
                    let fail = Fail { reason: reason.as_str().into(), origin: None };
                    children.insert(name.child.clone(), Held::new(Resource::Fail(fail), None));
                }
                // What did not decode is in the client machine's answer already.
                if !refused {
                    rejected.push(Rejected::new(name.to_string(), reason));
                }
            }
        }
    }

    /// A backend's certificates and authorities must be usable before any connection needs them:
    /// without them it would be spoken to in plaintext.
    fn check_origin(&mut self, resource: &Resource) -> Result<(), String> {
        match resource {
            Resource::Backend(Backend { policy: BackendPolicy { tls: Some(tls), .. }, .. }) => {
                self.said(tls).map(drop)
            }
            _ => Ok(()),
        }
    }

    fn remove(&mut self, name: &ResourceName) {
        if name.child.is_empty() {
            self.roots.remove(&name.root);
            return;
        }
        if let Some(children) = self.roots.get_mut(&name.root) {
            children.remove(&name.child);
            if children.is_empty() {
                self.roots.remove(&name.root);
            }
        }
    }

    /// Decides which version of each route is in effect; returns roots whose routes changed.
    fn settle_routes(&mut self, touched: &BTreeSet<Root>) -> BTreeSet<Root> {
        let mut changed = BTreeSet::new();
        let roots = &self.roots;
        self.routes.retain(|name, _| {
            let stays = matches!(child(roots, name), Some(Held::Route(_)));
            if !stays {
                changed.insert(name.root.clone());
            }
            stays
        });
        let mut look: BTreeSet<ResourceName> = std::mem::take(&mut self.waiting);
        for root in touched {
            let Some(children) = self.roots.get(root) else { continue };
            let routes = children.iter().filter(|(_, held)| matches!(held, Held::Route(_)));
            look.extend(routes.map(|(child, _)| root.child(child.clone())));
        }
        for name in look {
            let Some(Held::Route(route)) = child(&self.roots, &name) else { continue };
            if !targets(route).all(|t| self.is_known(t)) {
                self.waiting.insert(name);
                continue;
            }
            if self.routes.get(&name).is_none_or(|old| old != route) {
                changed.insert(name.root.clone());
                self.routes.insert(name, route.clone());
            }
        }
        changed
    }

    fn is_known(&self, target: &ResourceName) -> bool {
        matches!(other(&self.roots, target), Some(Resource::Backend(_) | Resource::Fail(_)))
    }

    fn rebuild(&mut self, root: &Root) {
        match root {
            Root::Host(name) => self.rebuild_host(root, name),
            Root::Listener(name) => self.rebuild_listener(root, name),
        }
    }

    fn rebuild_host(&mut self, root: &Root, name: &Arc<str>) {
        let old = self.table.hosts.remove(name);
        let used = old
            .as_ref()
            .map_or_else(|| Arc::new(AtomicU64::new(self.clock.now().0)), |old| old.used.clone());
        if let Some(old) = &old {
            for alias in &old.host.aliases {
                if self.table.aliases.get(alias) == Some(name) {
                    self.table.aliases.remove(alias);
                }
            }
            self.table.addresses.remove(old);
        }
        let Some(children) = self.roots.get(root).cloned() else { return };
        let children = clients::preferred(children);
        let host = match children.get("").and_then(Held::other) {
            Some(Resource::Host(host)) => self.with_short_name(host),
            // Children may come before their root within one push; without it nobody can ask.
            _ => Host {
                name: name.clone(),
                aliases: Vec::new(),
                addresses: Vec::new(),
                ports: Vec::new(),
            },
        };
        let mut entry = HostEntry {
            routes: self.routes_of(root),
            backends: HashMap::new(),
            fails: HashMap::new(),
            failing: Vec::new(),
            used,
            host,
        };
        for (child, held) in &children {
            match held.other() {
                Some(Resource::Backend(backend)) => {
                    let set = endpoints_of(&children, child, backend.port);
                    let tls = backend.policy.tls.as_deref().map(|tls| self.origin(tls));
                    let tls = match tls.transpose() {
                        Ok(tls) => tls,
                        Err(why) => {
                            let origin = backend.origin.clone();
                            entry.fail(child, Fail { reason: why.into(), origin }, set);
                            continue;
                        }
                    };
                    let name = root.child(child.clone());
                    let mut made = self.backend(name, backend.clone(), set, tls);
                    if let Some(before) = old.as_ref().and_then(|old| old.backends.get(child)) {
                        made.goes_on_after(before);
                    }
                    entry.backends.insert(child.clone(), Arc::new(made));
                }
                Some(Resource::Fail(fail)) => {
                    let port = entry.host.ports.iter().find(|p| p.backend == *child);
                    let set = port.and_then(|p| endpoints_of(&children, child, p.port));
                    entry.fail(child, fail.clone(), set);
                }
                _ => {}
            }
        }
        for alias in &entry.host.aliases {
            self.table.aliases.insert(alias.clone(), name.clone());
        }
        self.table.addresses.add(&entry, self.instances);
        self.table.hosts.insert(name.clone(), Arc::new(entry));
    }

    /// `user` names `user.<own namespace>`. Control sends one form of a host to every namespace,
    /// so the proxy adds what only it may say.
    fn with_short_name(&self, host: &Host) -> Host {
        let mut host = host.clone();
        let mut parts = host.name.split('.');
        if let (Some(service), Some(namespace), Some("svc")) =
            (parts.next(), parts.next(), parts.next())
            && *namespace == *self.namespace
        {
            let short: Arc<str> = service.into();
            host.aliases.push(short);
        }
        host
    }

    fn rebuild_listener(&mut self, root: &Root, name: &Arc<str>) {
        let before = self.table.gateways.remove(name);
        // Inbound listeners are keyed by port: drop those whose name this root gave.
        let stale: Vec<u16> = self
            .table
            .inbound
            .iter()
            .filter(|(_, e)| e.backend.name.root == *root)
            .map(|(port, _)| *port)
            .collect();
        for port in stale {
            self.table.inbound.remove(&port);
        }
        self.table.capture.take_if(|c| c.name == *name);
        let own = self.roots.get(root).and_then(|c| c.get("")).and_then(Held::other);
        let Some(Resource::Listener(listener)) = own else { return };
        match listener.kind.clone() {
            ListenerKind::Gateway(listener) => {
                let routes = self.routes_of(root);
                let tls = tls::configs(&listener, before.as_deref(), &self.clock);
                let entry = GatewayEntry { name: name.clone(), listener, routes, tls };
                self.table.gateways.insert(name.clone(), Arc::new(entry));
            }
            ListenerKind::Inbound(listener) => {
                let (backend, set) = app_backend(&listener);
                let made = self.backend(root.own(), backend, Some(&set), None);
                let port = listener.port;
                let entry = InboundEntry { listener, backend: Arc::new(made) };
                self.table.inbound.insert(port, Arc::new(entry));
            }
            ListenerKind::Capture(listener) => {
                self.table.capture = Some(Arc::new(CaptureEntry { name: name.clone(), listener }));
            }
        }
    }

    fn routes_of(&self, root: &Root) -> Routes {
        let mut routes: Vec<Arc<Route>> = self
            .routes
            .range(root.own()..)
            .take_while(|(name, _)| name.root == *root)
            .map(|(_, route)| route.clone())
            .collect();
        routes.sort_by(|a, b| a.rank.cmp(&b.rank));
        if self.indexed { Routes::indexed(routes) } else { Routes::new(routes) }
    }

    fn backend(
        &mut self,
        name: ResourceName,
        backend: Backend,
        set: Option<&HeldSet>,
        tls: Option<Arc<OriginTls>>,
    ) -> BackendEntry {
        let workers = self.workers;
        // What befalls datagrams says nothing of connections to the same port.
        let owner: Arc<str> = match name.child.ends_with(UDP_MARK) {
            true => format!("{}{UDP_MARK}", backend.service).into(),
            false => backend.service.clone(),
        };
        let mut endpoints = Vec::new();
        for endpoint in set.iter().flat_map(|s| &*s.endpoints).filter(|e| backend.selects(e)) {
            let key = (owner.clone(), backend.port, endpoint.id.clone(), endpoint.address);
            let shared =
                self.shared.entry(key).or_insert_with(|| Arc::new(EndpointShared::new(workers)));
            shared.set_healthy(endpoint.health == Health::Healthy, self.clock.now());
            let (mut endpoint, tls) = (endpoint.clone(), tls.clone());
            if tls.is_some() && endpoint.transport != Transport::Plaintext {
                // The app itself answers, not its sidecar.
                Arc::make_mut(&mut endpoint).transport = Transport::Plaintext;
            }
            let entry = EndpointEntry { endpoint, shared: shared.clone(), tls };
            endpoints.push(Arc::new(entry));
        }
        let healthy = endpoints.iter().filter(|e| e.endpoint.health == Health::Healthy).count();
        let cluster = match &name.root {
            Root::Listener(_) => format!("inbound|{}||", backend.port),
            Root::Host(_) => {
                format!("outbound|{}|{}|{}", backend.port, backend.subset, backend.service)
            }
        };
        let set_key = (owner, backend.port);
        BackendEntry {
            set: self.sets.entry(set_key).or_default().clone(),
            quotas: self.quotas_of(&name, &backend),
            places: places(
                &backend.policy.locality,
                &self.own,
                endpoints.iter().map(|e: &Arc<EndpointEntry>| &*e.endpoint),
            ),
            ring: OnceLock::new(),
            budget: Budget::new(&backend.policy.retry_budget, workers),
            window: WindowEnd::default(),
            namespace: set.map(|s| s.namespace.clone()).unwrap_or_default(),
            protocol: set.map_or(weft_model::Protocol::Detect, |s| s.protocol),
            cluster: cluster.into(),
            name,
            backend,
            endpoints,
            healthy,
        }
    }
}

/// The instances of a backend's port.
fn endpoints_of<'a>(
    children: &'a BTreeMap<Child, Held>,
    backend: &Child,
    port: u16,
) -> Option<&'a HeldSet> {
    let udp = backend.ends_with(UDP_MARK);
    let name = if udp { udp_endpoints_child(port) } else { endpoints_child(port) };
    match children.get(&*name) {
        Some(Held::Endpoints(set)) => Some(set),
        _ => None,
    }
}

fn child<'a>(
    roots: &'a BTreeMap<Root, BTreeMap<Child, Held>>,
    name: &ResourceName,
) -> Option<&'a Held> {
    roots.get(&name.root)?.get(&name.child)
}

/// The same, if it is neither a route nor a set.
fn other<'a>(
    roots: &'a BTreeMap<Root, BTreeMap<Child, Held>>,
    name: &ResourceName,
) -> Option<&'a Resource> {
    child(roots, name)?.other()
}

/// What a resource must be to be taken under its name.
fn fits(name: &ResourceName, resource: &Resource) -> Result<(), String> {
    let fits = match (resource, &name.root) {
        (Resource::Listener(_), Root::Listener(_)) | (Resource::Host(_), Root::Host(_)) => {
            name.child.is_empty()
        }
        (Resource::Route(_), _) => name.child.starts_with("route/"),
        (Resource::Backend(_), Root::Host(_)) => name.child.starts_with("backend/"),
        (Resource::Endpoints(_), Root::Host(_)) => name.child.starts_with("endpoints/"),
        (Resource::Fail(_), _) => true,
        _ => false,
    };
    if fits {
        Ok(())
    } else {
        Err(format!("a resource of this type does not belong under the name {name}"))
    }
}

/// What of a gateway's certificates cannot be used.
fn unusable(name: &ResourceName, resource: &Resource, clock: &Clock) -> Option<Rejected> {
    match resource {
        Resource::Listener(Listener { kind: ListenerKind::Gateway(gateway), .. }) => {
            let (reason, sections) = tls::unusable(gateway, clock)?;
            Some(Rejected { name: name.to_string(), reason, sections })
        }
        _ => None,
    }
}

fn targets(route: &Route) -> impl Iterator<Item = &ResourceName> {
    route.targets().map(|(name, _)| name)
}

/// The app behind a sidecar, as a backend of one endpoint that is never ejected or retried.
fn app_backend(listener: &InboundListener) -> (Backend, HeldSet) {
    let service: Arc<str> = listener.services.first().cloned().unwrap_or_default();
    let endpoint = Endpoint {
        id: "app".into(),
        address: listener.app,
        labels: Labels::new(),
        locality: Locality::default(),
        weight: 1,
        health: Health::Healthy,
        identity: None,
        transport: Transport::Plaintext,
        workload: "".into(),
        mesh_address: None,
    };
    let policy = BackendPolicy { outlier: Outlier::off(), ..BackendPolicy::default() };
    let backend = Backend {
        service: service.clone(),
        port: listener.port,
        subset: "".into(),
        selector: Labels::new(),
        policy,
        origin: None,
    };
    let set = HeldSet {
        service,
        namespace: "".into(),
        port: listener.port,
        protocol: listener.protocol,
        endpoints: [Arc::new(endpoint)].into(),
    };
    (backend, set)
}

#[cfg(test)]
mod tests;
