// SPDX-License-Identifier: Apache-2.0
//! Instances: the one noun that the doors and the compiler read, whichever door made them.
//!
//! Folded from EndpointSlices (with their pods) and from catalog registrations (with their
//! checks). EndpointSlices that mirror the catalog are skipped, so nothing counts twice.
//!
//! Architecture invariant: registrations are instances of a Service that mirrors them or of none,
//! never of one that Kubernetes made: nobody reaches a pod's port at what a Consul client says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use weft_base::name::ServiceKey;

use super::catalog::Catalog;
use super::{
    Index, KindId, Object, ObjectKey, PodsMode, RegistrationKey, World, service_of_registration,
};
use crate::views::catalog::{Registration, Status};
use crate::views::core::Pod;
use crate::views::discovery::{EndpointSlice, SliceEndpoint, SlicePort};
use crate::views::{Labels, Meta, View};

/// Stable over the instance's life: the pod's name, or `node/service-id`.
pub type InstanceId = Arc<str>;

/// One running instance of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    pub id: InstanceId,
    pub service: ServiceKey,
    pub node: Arc<str>,
    /// Unspecified (`0.0.0.0`) when it was registered by a host name; see `hostname`.
    pub address: IpAddr,
    /// The name it was registered with when that is no address.
    pub hostname: Option<Arc<str>>,
    pub ports: Vec<InstancePort>,
    /// The pod's labels, or the registration's meta: what subsets select by.
    pub labels: Labels,
    pub tags: Vec<Arc<str>>,
    /// Relative share.
    pub weight: u32,
    pub health: Status,
    /// Finishes what it has, takes nothing new.
    pub draining: bool,
    pub origin: Door,
    /// The owner's name: `user`, `product-v1`; the service's own for registrations.
    pub workload: Arc<str>,
    /// Empty for registrations: registering a service never grants an identity.
    pub service_account: Arc<str>,
    /// It has a sidecar of its own.
    pub mesh: bool,
    /// All that reaches it passes its sidecar.
    pub captured: bool,
    /// Where its sidecar is reached from other machines, when not at `address`.
    pub mesh_address: Option<Box<SocketAddr>>,
    pub zone: Arc<str>,
}

/// A port under the Service port's name; registrations have one, named ``.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InstancePort {
    pub name: Arc<str>,
    pub port: u16,
}

/// Which door something came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Door {
    Kubernetes,
    Consul,
}

/// Names the owner of an object that another door made: `consul` on mirrored objects.
pub const OWNER_ANNOTATION: &str = "weft.dev/owner";
/// `gateway` on pods that are only a proxy.
pub const PROXY_ANNOTATION: &str = "weft.dev/proxy";
/// `"false"` on pods that want no sidecar; Istio's own word is understood too.
pub const INJECT_ANNOTATION: &str = "weft.dev/inject";
/// On pods that are drained by hand, with the reason: they finish what they have.
pub const DRAIN_ANNOTATION: &str = "weft.dev/drain";
/// A relative share of a pod, 0 to 65535; 1 when absent.
pub const WEIGHT_ANNOTATION: &str = "weft.dev/weight";
/// On pods of machines that others reach by the machine's address only: where the sidecar takes
/// mesh connections.
pub const MESH_ADDRESS_ANNOTATION: &str = "weft.dev/mesh-address";

// There may be a hundred thousand: with its two counts one fits into 256 bytes.
const _: () = assert!(size_of::<Instance>() <= 240);

pub(super) type Instances = imbl::OrdMap<InstanceId, Arc<Instance>>;

/// Whether an object only mirrors what the Consul door made.
pub fn is_mirror(meta: &Meta) -> bool {
    meta.annotation(OWNER_ANNOTATION).is_some_and(|o| o == "consul" || o.starts_with("consul/"))
}

/// The name of the proxy that passes connections on to a Service of type LoadBalancer, as if it
/// were a Gateway's: no Service's name has a dot.
pub fn balancer_node(service: &str) -> String {
    format!("{service}.balancer")
}

/// Whether a pod has a sidecar of its own.
pub fn has_sidecar(meta: &Meta) -> bool {
    const ISTIO: &str = "sidecar.istio.io/inject";
    meta.annotation(PROXY_ANNOTATION) != Some("gateway")
        && meta.annotation(INJECT_ANNOTATION) != Some("false")
        && meta.annotation(ISTIO) != Some("false")
        && meta.label(ISTIO) != Some("false")
}

/// The name of what a pod belongs to: its Deployment, other owner, or itself.
pub fn workload(meta: &Meta) -> Arc<str> {
    let Some(owner) = meta.controller() else { return meta.name.clone() };
    let hash = meta.label("pod-template-hash").filter(|_| &*owner.kind == "ReplicaSet");
    hash.and_then(|hash| owner.name.strip_suffix(hash)?.strip_suffix('-'))
        .map_or_else(|| owner.name.clone(), Into::into)
}

// === impl Instance ===

impl Instance {
    /// The registration's meta; nothing for Kubernetes origin.
    pub fn meta(&self, name: &str) -> Option<&Arc<str>> {
        self.labels.get(name).filter(|_| self.origin == Door::Consul)
    }
}

/// All instances of one service, computed anew from its slices and registrations.
pub(super) fn fold(world: &World, service: &ServiceKey) -> Instances {
    let mut found = BTreeMap::new();
    let pair = super::pair(service.namespace.as_str(), service.name.as_str());
    for object in world.index(Index::SlicesByService, &pair) {
        if let View::EndpointSlice(slice) = &object.view
            && !is_mirror(&object.meta)
        {
            add_slice(world, service, object, slice, &mut found);
        }
    }
    for (key, registration) in world.joined(service) {
        let instance = from_registration(world.catalog(), service, key, registration);
        found.insert(instance.id.clone(), instance);
    }
    found.into_iter().map(|(id, i)| (id, Arc::new(i))).collect()
}

/// The same, computed from what it was, where only these registrations, their checks or their
/// nodes are others: registering one of many costs what that one does.
pub(super) fn fold_some(
    world: &World,
    service: &ServiceKey,
    old: &Instances,
    keys: &BTreeSet<RegistrationKey>,
) -> Instances {
    let (catalog, mut out) = (world.catalog(), old.clone());
    let foreign = world.is_foreign(service);
    for key in keys {
        let id = instance_id(key);
        let is_its = |r: &Registration| service_of_registration(key, r).as_ref() == Some(service);
        let registration = catalog.registration(key).filter(|r| !foreign && is_its(r));
        let new = registration.map(|r| from_registration(catalog, service, key, r));
        match (old.get(&id), new) {
            (Some(old), Some(new)) if **old == new => {}
            (_, Some(new)) => drop(out.insert(new.id.clone(), Arc::new(new))),
            (_, None) => drop(out.remove(&id)),
        }
    }
    out
}

fn instance_id(key: &RegistrationKey) -> InstanceId {
    super::pair(&key.node, &key.id)
}

fn add_slice(
    world: &World,
    service: &ServiceKey,
    object: &Object,
    slice: &EndpointSlice,
    found: &mut BTreeMap<InstanceId, Instance>,
) {
    for endpoint in &slice.endpoints {
        let Some(instance) = from_endpoint(world, service, object, endpoint, &slice.ports) else {
            continue;
        };
        match found.get_mut(&instance.id) {
            // The same pod in a second slice: other ports, or its address of the other family.
            Some(known) => {
                for port in instance.ports {
                    if !known.ports.contains(&port) {
                        known.ports.push(port);
                    }
                }
                known.ports.sort();
                if known.address.is_ipv6() && instance.address.is_ipv4() {
                    known.address = instance.address;
                }
            }
            None => {
                found.insert(instance.id.clone(), instance);
            }
        }
    }
}

fn from_endpoint(
    world: &World,
    service: &ServiceKey,
    slice: &Object,
    endpoint: &SliceEndpoint,
    ports: &[SlicePort],
) -> Option<Instance> {
    let text = endpoint.addresses.first()?;
    let address: Option<IpAddr> = text.parse().ok();
    let pod_name = endpoint.target_ref.as_ref().filter(|t| &*t.kind == "Pod").map(|t| &t.name);
    let pod = pod_name.and_then(|name| {
        let key = ObjectKey::new(KindId::Pod, slice.key.namespace.clone(), name.clone());
        match world.object(&key).map(|o| (&o.meta, &o.view)) {
            Some((meta, View::Pod(pod))) => Some((meta, pod)),
            _ => None,
        }
    });
    let conditions = endpoint.conditions;
    let ready = conditions.ready.unwrap_or(true);
    let drained = pod.is_some_and(|(meta, _)| meta.annotation(DRAIN_ANNOTATION).is_some());
    let draining = drained || conditions.terminating.unwrap_or(false);
    let serving = if draining { conditions.serving.unwrap_or(ready) } else { ready };
    let id = pod_name.unwrap_or(text).clone();
    let mut ports: Vec<InstancePort> =
        ports.iter().map(|p| InstancePort { name: p.name.clone(), port: p.port }).collect();
    ports.sort();
    Some(Instance {
        service: service.clone(),
        node: endpoint.node_name.clone(),
        address: address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        hostname: address.is_none().then(|| text.clone()),
        ports,
        labels: pod.map(|(meta, _)| meta.labels.clone()).unwrap_or_default(),
        tags: Vec::new(),
        weight: pod.and_then(|(meta, _)| pod_weight(meta)).unwrap_or(1),
        health: if serving { Status::Passing } else { Status::Critical },
        draining,
        origin: Door::Kubernetes,
        workload: pod.map_or_else(|| id.clone(), |(meta, _)| workload(meta)),
        service_account: pod
            .map_or_else(|| "".into(), |(_, p): (_, &Pod)| p.service_account().into()),
        mesh: pod.is_some_and(|(meta, _)| has_sidecar(meta)),
        captured: pod
            .is_some_and(|(meta, _)| has_sidecar(meta) && PodsMode::of(meta).is_captured()),
        mesh_address: pod.and_then(|(meta, _)| mesh_address(meta)).map(Box::new),
        zone: endpoint.zone.clone(),
        id,
    })
}

/// Where a pod's sidecar is reached from other machines.
fn mesh_address(meta: &Meta) -> Option<SocketAddr> {
    meta.annotation(MESH_ADDRESS_ANNOTATION)?.parse().ok().filter(|_| has_sidecar(meta))
}

fn pod_weight(meta: &Meta) -> Option<u32> {
    meta.annotation(WEIGHT_ANNOTATION)?.parse::<u16>().ok().map(u32::from)
}

fn from_registration(
    catalog: &Catalog,
    service: &ServiceKey,
    key: &RegistrationKey,
    registration: &Registration,
) -> Instance {
    let text = match &*registration.address {
        "" => catalog.node(&key.node).map_or_else(Arc::default, |n| n.address.clone()),
        _ => registration.address.clone(),
    };
    let address: Option<IpAddr> = match &*text {
        "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        text => text.parse().ok(),
    };
    let health = catalog.health(key);
    let weights = registration.weights;
    Instance {
        id: instance_id(key),
        service: service.clone(),
        node: key.node.clone(),
        address: address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        hostname: address.is_none().then_some(text),
        ports: vec![InstancePort { name: Arc::default(), port: registration.port }],
        labels: registration.meta.clone(),
        tags: registration.tags.clone(),
        weight: if health == Status::Warning { weights.warning } else { weights.passing },
        health,
        draining: catalog.is_in_maintenance(key),
        origin: Door::Consul,
        workload: registration.service.clone(),
        service_account: Arc::default(),
        mesh: false,
        captured: false,
        mesh_address: None,
        zone: Arc::default(),
    }
}
