// SPDX-License-Identifier: Apache-2.0
//! What a Consul client sees of the World: entries (a node, an instance on it, the checks that
//! decide about it), whichever door made them. Read by the HTTP endpoints, by the index table
//! and by DNS. It never writes, and it never waits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_base::name::{ServiceKey, service_slug};
use weft_kinds::views::catalog::{CheckRecord, NodeRecord, Registration, Since, Status};
use weft_kinds::views::check::SERF_HEALTH;
use weft_kinds::world::{
    CheckKey, Door as Origin, Instance, RegistrationKey, World, service_of_registration,
};

use super::stamp::Stamps;

/// The service that every Consul datacentre lists: its servers.
pub const CONSUL_SERVICE: &str = "consul";
/// In the meta of a server's node: what Consul's version it speaks like.
pub const VERSION_META: &str = "consul-version";
/// The port that Consul's servers would answer RPC on; a name in `status/leader`, nothing more.
pub const SERVER_RPC_PORT: u16 = 8300;
/// The namespace that a client is in when it names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Who this agent is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its record, as nodes are listed.
    pub node: Arc<NodeRecord>,
    pub datacenter: Arc<str>,
    /// Consul's version that the door speaks like, with weft's own behind it.
    pub version: Arc<str>,
}

/// An instance as Consul lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub node: Arc<NodeRecord>,
    pub service: Arc<Registration>,
    pub checks: Vec<CheckView>,
    /// Takes nothing new though its checks may pass.
    pub draining: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckView {
    pub record: Arc<CheckRecord>,
    pub status: Status,
    pub output: Arc<str>,
    /// The tags of the instance it speaks for.
    pub tags: Vec<Arc<str>>,
    /// When it was last written or turned, where the store knows it.
    pub modified: Since,
}

/// One look at the World.
#[derive(Clone, Debug)]
pub struct View {
    pub world: Arc<World>,
    pub own: Arc<Identity>,
    /// When its records were made and changed.
    pub stamps: Stamps,
}

// === impl View ===

impl View {
    pub fn new(world: Arc<World>, own: Arc<Identity>) -> Self {
        let stamps = Stamps::since(world.revision().max(1));
        Self { world, own, stamps }
    }

    /// Services of a namespace and the union of their instances' tags, by the names that their
    /// makers gave them.
    pub fn services(&self, ns: &str) -> BTreeMap<Arc<str>, Vec<Arc<str>>> {
        let mut out: BTreeMap<Arc<str>, Vec<Arc<str>>> = BTreeMap::new();
        if ns == DEFAULT_NAMESPACE {
            out.insert(CONSUL_SERVICE.into(), Vec::new());
        }
        for (key, instances) in self.world.services_with_instances() {
            if key.namespace.as_str() != ns {
                continue;
            }
            if instances.values().any(|i| i.origin == Origin::Kubernetes) {
                out.entry(key.name.as_str().into()).or_default();
            }
            for (_, registration) in self.world.joined(key) {
                let tags = out.entry(registration.service.clone()).or_default();
                for tag in &registration.tags {
                    if !tags.contains(tag) {
                        tags.push(tag.clone());
                    }
                }
            }
        }
        for tags in out.values_mut() {
            tags.sort();
        }
        out
    }

    /// The entries of a service, by the name that a client uses.
    pub fn entries(&self, ns: &str, service: &str) -> Vec<Entry> {
        let mut out = self.entries_by_slug(ns, &service_slug(service));
        if ns == DEFAULT_NAMESPACE && service.eq_ignore_ascii_case(CONSUL_SERVICE) {
            out.extend(self.server_entries());
        }
        out
    }

    /// The nodes of the servers, by name: this one, and those that share its store.
    pub fn servers(&self) -> Vec<Arc<NodeRecord>> {
        let own = &self.own.node;
        let mut out = BTreeMap::from([(own.node.clone(), self.node(&own.node))]);
        if own.server {
            let others = self.world.catalog().nodes().filter(|(_, node)| node.server);
            out.extend(others.map(|(name, node)| (name.clone(), node.clone())));
        }
        out.into_values().collect()
    }

    /// The service that they are.
    pub fn server_entries(&self) -> impl Iterator<Item = Entry> {
        self.servers().into_iter().map(|node| self.server_entry(node))
    }

    /// Whether a node is a server's.
    pub fn is_server(&self, name: &str) -> bool {
        let own = &self.own.node;
        let other = || self.world.catalog().node(name).is_some_and(|node| node.server);
        *name == *own.node || (own.server && other())
    }

    /// The same by slug, without the synthetic `consul`.
    pub fn entries_by_slug(&self, ns: &str, slug: &str) -> Vec<Entry> {
        let mut out = Vec::new();
        for instance in self.world.instances(ns, slug).values() {
            if instance.origin == Origin::Kubernetes {
                out.push(self.kubernetes_entry(instance));
            }
        }
        if let Ok(key) = ServiceKey::new(ns, slug) {
            for (key, registration) in self.world.joined(&key) {
                out.push(self.catalog_entry(key, registration));
            }
        }
        out
    }

    /// Every entry of a namespace once, however often its service's name is spelled, without the
    /// synthetic `consul`.
    pub fn entries_in(&self, ns: &str) -> impl Iterator<Item = Entry> {
        let keys = self.world.services_with_instances().map(|(key, _)| key);
        let here = keys.filter(move |key| key.namespace.as_str() == ns);
        here.flat_map(move |key| self.entries_by_slug(ns, key.name.as_str()))
    }

    /// What speaks Connect for a service, or for another with the same slug.
    pub fn speakers(&self, ns: &str, service: &str) -> Vec<Entry> {
        let Ok(key) = ServiceKey::new(ns, &service_slug(service)) else { return Vec::new() };
        let all = self.world.catalog().speakers(&key);
        let joined = all.filter(|(key, registration)| {
            let own = service_of_registration(key, registration);
            own.is_some_and(|own| !self.world.is_foreign(&own))
        });
        joined.map(|(key, registration)| self.catalog_entry(key, registration)).collect()
    }

    /// One instance on a node, by its id.
    pub fn instance(&self, key: &RegistrationKey) -> Option<Entry> {
        let others = || self.unregistered_on(&key.namespace, &key.node).into_iter();
        self.registered(key).or_else(|| others().find(|entry| entry.service.id == key.id))
    }

    /// One check on a node, by its id.
    pub fn check_of(&self, key: &CheckKey) -> Option<CheckView> {
        if let Some(record) = self.world.catalog().check(key) {
            let (namespace, node) = (key.namespace.clone(), key.node.clone());
            let of = RegistrationKey { namespace, node, id: record.service_id.clone() };
            return match (record.service_id.is_empty(), self.world.catalog().registration(&of)) {
                (true, _) => Some(self.check(key, record, &[])),
                (false, of) => of.map(|of| self.check(key, record, &of.tags)),
            };
        }
        let pods = self.unregistered_on(&key.namespace, &key.node).into_iter();
        let mut all = self.node_checks(&key.node).into_iter().chain(pods.flat_map(|e| e.checks));
        all.find(|check| check.record.id == key.id)
    }

    /// One registered instance.
    pub fn registered(&self, key: &RegistrationKey) -> Option<Entry> {
        let registration = self.world.catalog().registration(key)?;
        Some(self.catalog_entry(key, registration))
    }

    /// The entries on one node.
    pub fn on_node(&self, ns: &str, node: &str) -> Vec<Entry> {
        let registered = self.world.catalog().on_node(node);
        let registered = registered.filter(|(key, _)| &*key.namespace == ns);
        let mut out = self.unregistered_on(ns, node);
        out.extend(registered.map(|(key, registration)| self.catalog_entry(key, registration)));
        out
    }

    /// Those of them that nobody registered: a server, and pods.
    fn unregistered_on(&self, ns: &str, node: &str) -> Vec<Entry> {
        let mut out = Vec::new();
        if ns == DEFAULT_NAMESPACE && self.is_server(node) {
            out.push(self.server_entry(self.node(node)));
        }
        for key in self.pods_on(node).filter(|key| key.namespace.as_str() == ns) {
            let instances = self.world.instances(ns, key.name.as_str()).values();
            let here =
                instances.filter(|i| i.origin == Origin::Kubernetes && &*self.node_name(i) == node);
            out.extend(here.map(|i| self.kubernetes_entry(i)));
        }
        out
    }

    /// The services of which a pod is on a node: here is where those are that name none.
    fn pods_on(&self, node: &str) -> impl Iterator<Item = &ServiceKey> {
        let here = self.world.services_on(node);
        let unnamed = (*node == *self.own.node.node).then(|| self.world.services_on(""));
        let unnamed = unnamed.into_iter().flatten();
        // Once each.
        let named: BTreeSet<&ServiceKey> = here.chain(unnamed).collect();
        named.into_iter()
    }

    /// Every node: this one, those that were registered, those that pods run on.
    pub fn nodes(&self) -> Vec<Arc<NodeRecord>> {
        let mut out: BTreeMap<Arc<str>, Arc<NodeRecord>> = BTreeMap::new();
        out.insert(self.own.node.node.clone(), self.own.node.clone());
        for (name, record) in self.world.catalog().nodes() {
            out.insert(name.clone(), record.clone());
        }
        let catalog = self.world.catalog();
        let used = catalog.places_with_something().filter(|n| catalog.on_node(n).next().is_some());
        let used = used.chain(self.world.nodes_of_pods().filter(|node| !node.is_empty()));
        for name in used {
            out.entry(name.clone()).or_insert_with(|| self.node(name));
        }
        out.into_values().collect()
    }

    /// Whether a client would find this node in the list.
    pub fn has_node(&self, name: &str) -> bool {
        name == &*self.own.node.node
            || self.world.catalog().node(name).is_some()
            || self.world.catalog().on_node(name).next().is_some()
            || self.world.services_on(name).next().is_some()
    }

    /// A node's name as it is spelled here, however a client wrote it: names of nodes differ by
    /// more than case. A name that nobody has stays as it is.
    pub fn spelled(&self, name: &str) -> Arc<str> {
        let (catalog, own) = (self.world.catalog(), &self.own.node.node);
        if catalog.node(name).is_some() {
            return name.into();
        }
        let names = std::iter::once(own).chain(catalog.nodes().map(|(name, _)| name));
        let known = names.into_iter().find(|known| known.eq_ignore_ascii_case(name));
        known.cloned().unwrap_or_else(|| name.into())
    }

    /// A node's record; one that nobody registered is reached where this one is.
    pub fn node(&self, name: &str) -> Arc<NodeRecord> {
        if let Some(record) = self.world.catalog().node(name) {
            return record.clone();
        }
        if name == &*self.own.node.node {
            return self.own.node.clone();
        }
        Arc::new(NodeRecord {
            node: name.into(),
            address: self.own.node.address.clone(),
            datacenter: self.own.datacenter.clone(),
            ..NodeRecord::default()
        })
    }

    /// The checks of a node itself. The agents of other machines are listened to, and the catalog
    /// says whether they are heard; the server's own node is alive as long as it answers; one that
    /// was only registered from outside has the checks that it was registered with.
    pub fn node_checks(&self, name: &str) -> Vec<CheckView> {
        let catalog = self.world.catalog();
        let mut out = Vec::new();
        let foreign = catalog.node(name).is_some() && name != &*self.own.node.node;
        let watched = catalog.node_checks(name).any(|(key, _)| &*key.id == SERF_HEALTH);
        if !foreign && !watched {
            out.push(serf_health(name));
        }
        for (key, record) in catalog.node_checks(name) {
            out.push(self.check(key, record, &[]));
        }
        out
    }

    /// Every check on a node in a namespace, its instances' included.
    pub fn checks_on_node(&self, ns: &str, name: &str) -> Vec<CheckView> {
        let mut out = self.node_checks(name);
        for entry in self.on_node(ns, name) {
            out.extend(entry.checks.into_iter().filter(|c| !c.record.service_id.is_empty()));
        }
        out
    }

    /// Every check of a namespace, or those in one state.
    pub fn all_checks(&self, ns: &str, state: Option<Status>) -> Vec<CheckView> {
        let is = |status: Status| state.is_none_or(|state| state == status);
        let mut out: Vec<CheckView> =
            self.nodes().iter().flat_map(|node| self.node_checks(&node.node)).collect();
        out.retain(|check| is(check.status));
        for (key, instances) in self.world.services_with_instances() {
            if key.namespace.as_str() != ns {
                continue;
            }
            for instance in instances.values().filter(|i| i.origin == Origin::Kubernetes) {
                let check = self.readiness(instance, &self.node_name(instance));
                out.extend(is(check.status).then_some(check));
            }
            let catalog = self.world.catalog();
            for (key, registration) in self.world.joined(key) {
                let own = catalog.checks_of(key).filter(|(key, _)| is(catalog.status(key)));
                out.extend(own.map(|(key, record)| self.check(key, record, &registration.tags)));
            }
        }
        out
    }

    /// Whether an id is an instance that the Kubernetes door made, and of which service.
    pub fn kubernetes_instance(&self, ns: &str, id: &str) -> Option<Arc<str>> {
        let nodes = self.world.nodes_of_pods();
        let services = nodes.flat_map(|node| self.world.services_on(node));
        // Each is on many nodes.
        let services: BTreeSet<_> = services.filter(|key| key.namespace.as_str() == ns).collect();
        services
            .into_iter()
            .find(|key| {
                let mut instances = self.world.instances(ns, key.name.as_str()).values();
                instances.any(|i| i.origin == Origin::Kubernetes && service_id(i) == id)
            })
            .map(|key| key.name.as_str().into())
    }

    fn catalog_entry(&self, key: &RegistrationKey, registration: &Arc<Registration>) -> Entry {
        let mut checks = self.node_checks(&key.node);
        let own = self.world.catalog().checks_of(key);
        checks.extend(own.map(|(key, record)| self.check(key, record, &registration.tags)));
        Entry { node: self.node(&key.node), service: registration.clone(), checks, draining: false }
    }

    fn kubernetes_entry(&self, instance: &Instance) -> Entry {
        let node = self.node_name(instance);
        let service = kubernetes_service(instance, &node);
        let mut checks = self.node_checks(&node);
        checks.push(self.readiness(instance, &node));
        Entry {
            node: self.node(&node),
            service: Arc::new(service),
            checks,
            draining: instance.draining,
        }
    }

    fn readiness(&self, instance: &Instance, node: &Arc<str>) -> CheckView {
        let id = service_id(instance);
        let pod = &instance.id;
        let ns = &instance.service.namespace;
        let (status, output) = match (instance.draining, instance.health) {
            (true, _) => (Status::Critical, format!("Pod \"{ns}/{pod}\" is draining")),
            (false, Status::Passing) => (Status::Passing, format!("Pod \"{ns}/{pod}\" is ready")),
            (false, other) => (other, format!("Pod \"{ns}/{pod}\" is not ready")),
        };
        let record = CheckRecord {
            id: format!("service:{id}").into(),
            name: "Kubernetes Readiness Check".into(),
            node: node.clone(),
            namespace: ns.as_str().into(),
            service_id: id.into(),
            service_name: instance.service.name.as_str().into(),
            kind: "kubernetes-readiness".into(),
            ..CheckRecord::default()
        };
        CheckView {
            record: Arc::new(record),
            status,
            output: output.into(),
            tags: Vec::new(),
            modified: Since::default(),
        }
    }

    fn check(&self, key: &CheckKey, record: &Arc<CheckRecord>, tags: &[Arc<str>]) -> CheckView {
        let catalog = self.world.catalog();
        let (output, told) = match catalog.result(key) {
            Some(result) => (result.output.clone(), result.modified),
            None => (record.initial_output(), Since::default()),
        };
        CheckView {
            record: record.clone(),
            status: catalog.status(key),
            output,
            tags: tags.to_vec(),
            modified: Since(record.modified.0.max(told.0)),
        }
    }

    fn server_entry(&self, node: Arc<NodeRecord>) -> Entry {
        let version = node.meta.get(VERSION_META).unwrap_or(&self.own.version);
        let meta = [("version", &**version), ("non_voter", "false")];
        let service = Registration {
            id: CONSUL_SERVICE.into(),
            service: CONSUL_SERVICE.into(),
            node: node.node.clone(),
            namespace: DEFAULT_NAMESPACE.into(),
            port: SERVER_RPC_PORT,
            meta: meta.into_iter().map(|(k, v)| (k.into(), v.into())).collect(),
            ..Registration::default()
        };
        let checks = self.node_checks(&node.node);
        Entry { node, service: Arc::new(service), checks, draining: false }
    }

    fn node_name(&self, instance: &Instance) -> Arc<str> {
        if instance.node.is_empty() { self.own.node.node.clone() } else { instance.node.clone() }
    }
}

// === impl Entry ===

impl Entry {
    /// The worst of its checks.
    pub fn status(&self) -> Status {
        self.checks.iter().map(|c| c.status).max().unwrap_or(Status::Passing)
    }

    /// Whether it may be given new requests.
    pub fn takes(&self) -> bool {
        self.status() != Status::Critical && !self.draining
    }

    /// Where a client reaches it.
    pub fn address(&self) -> &Arc<str> {
        if self.service.address.is_empty() { &self.node.address } else { &self.service.address }
    }

    /// Its share now.
    pub fn weight(&self) -> u32 {
        match self.status() {
            Status::Warning => self.service.weights.warning,
            _ => self.service.weights.passing,
        }
    }
}

// === impl CheckView ===

impl CheckView {
    /// An operator's doing rather than a failure.
    pub fn is_maintenance(&self) -> bool {
        self.record.is_maintenance()
    }
}

/// What Consul says of several checks at once.
pub fn aggregated<'a>(checks: impl IntoIterator<Item = &'a CheckView>) -> &'static str {
    let mut worst = Status::Passing;
    for check in checks {
        if check.is_maintenance() {
            return "maintenance";
        }
        worst = worst.max(check.status);
    }
    worst.as_str()
}

// === helpers ===

/// As consul-k8s names the instances that it registers: a pod may serve several services.
fn service_id(instance: &Instance) -> String {
    format!("{}-{}", instance.id, instance.service.name)
}

/// A Kubernetes instance as a registration. Consul knows one port per instance: the first one;
/// all are in the meta.
fn kubernetes_service(instance: &Instance, node: &Arc<str>) -> Registration {
    let ns = instance.service.namespace.as_str();
    let mut meta: BTreeMap<Arc<str>, Arc<str>> = BTreeMap::from([
        ("external-source".into(), "kubernetes".into()),
        ("k8s-namespace".into(), ns.into()),
        ("pod-name".into(), instance.id.clone()),
    ]);
    for port in instance.ports.iter().filter(|p| !p.name.is_empty()) {
        meta.insert(format!("port-{}", port.name).into(), port.port.to_string().into());
    }
    let address = instance.hostname.clone().unwrap_or_else(|| instance.address.to_string().into());
    Registration {
        id: service_id(instance).into(),
        service: instance.service.name.as_str().into(),
        node: node.clone(),
        namespace: ns.into(),
        address,
        port: instance.ports.first().map_or(0, |p| p.port),
        meta: meta.into_iter().collect(),
        weights: weft_kinds::views::catalog::Weights {
            passing: instance.weight,
            warning: instance.weight,
        },
        ..Registration::default()
    }
}

/// The services that an instance speaks Connect for, by slug.
pub fn speaks_connect(service: &Registration) -> impl Iterator<Item = String> {
    service.speaks_for().map(service_slug)
}

fn serf_health(node: &str) -> CheckView {
    let record = CheckRecord {
        id: SERF_HEALTH.into(),
        name: "Serf Health Status".into(),
        node: node.into(),
        ..CheckRecord::default()
    };
    CheckView {
        record: Arc::new(record),
        status: Status::Passing,
        output: "Agent alive and reachable".into(),
        tags: Vec::new(),
        modified: Since::default(),
    }
}
