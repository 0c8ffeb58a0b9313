// SPDX-License-Identifier: Apache-2.0
//! Compile: from what users said to what it means, one unit at a time.
//!
//! [`compile`] is a pure function of one [`Unit`] and the World; it returns resources, the status
//! of the unit's object, and every question it asked. The compiler (`compiler.rs`) decides which
//! units run. A unit is one user object, or the endpoints of one service, so that a changed
//! endpoint compiles no route. A bad part becomes a `Fail` with a sentence, and a condition in
//! the object's own status; nothing here stops anything else.

mod backend_tls;
mod balancer;
mod client_tls;
mod destination_rule;
pub mod duration;
mod edge;
mod endpoints;
mod gateway;
mod http_policy;
mod http_route;
mod http_rule;
mod inbound;
mod istio_fields;
mod istio_gateway;
mod istio_tls;
mod listener_set;
mod listener_tls;
mod listeners;
mod names;
mod neighbours;
mod peer_authentication;
mod policy_attachment;
mod pool_terms;
mod protocol;
mod proxy_header;
mod reader;
mod retries;
mod rule_clients;
mod service;
mod service_entry;
mod sidecar;
mod sources;
mod traffic_policy;
mod virtual_service;
mod vs_delegate;
mod vs_everything;
mod vs_headers;
mod vs_l4;
mod vs_policy;
mod vs_rule;

use std::collections::{BTreeMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use weft_base::issue::Issues;
use weft_base::name::ServiceKey;
use weft_kinds::views::View;
use weft_kinds::world::{KindId, Object, ObjectKey, ReadKey, World};
use weft_model::{Labels, Origin, Resource, ResourceName, Root};
use weft_xds::NodeId;

pub use gateway::ADDRESS_ANNOTATION;
pub use istio_fields::{
    DESTINATION_RULE, Field, Fields, VIRTUAL_SERVICE, canonical, find as field_of,
};
pub use listeners::{listener_roots, section_of};
pub use peer_authentication::{Policy as MtlsPolicy, ROOT_NAMESPACE, effective, is_enforced};
pub use protocol::PROTOCOL_ANNOTATION;
pub use reader::Reader;
pub use retries::{IDEMPOTENT_ANNOTATION, IDEMPOTENT_ROUTES_ANNOTATION};
pub use rule_clients::Shared;
pub use service::UPSTREAM_PORTS_ANNOTATION;
pub(crate) use virtual_service::UNMATCHED;
pub(crate) use vs_everything::EVERYTHING;

use crate::mesh::Namespaces;
use crate::status::{Condition, StatusBody, StatusUpdate};

/// What is compiled at a time.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unit {
    Object(ObjectKey),
    /// The endpoint sets of all ports of a service.
    Endpoints(ServiceKey),
}

/// What compiling needs to know beside the World.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Env {
    pub cluster_domain: Arc<str>,
    pub trust_domain: Arc<str>,
    /// Whether gateways may bind ports below 1024; otherwise they bind 8000 + port.
    pub low_ports: bool,
}

/// What one unit gives.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Output {
    pub resources: BTreeMap<ResourceName, Draft>,
    pub status: Option<StatusUpdate>,
    /// Statuses of other objects, whose own units give none.
    pub told: Vec<StatusUpdate>,
    /// Gateways and their sections that a route is attached to.
    pub attached: Vec<(ObjectKey, Arc<str>)>,
    /// The proxy that the object stands for, with its labels.
    pub node: Option<(NodeId, Labels)>,
    /// Hosts that only these namespaces may see.
    pub restricted: Vec<(Root, Namespaces)>,
}

/// One compiled resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft {
    pub resource: Arc<Resource>,
    /// It names something that does not exist (yet).
    pub unresolved: bool,
}

/// The kinds whose objects are units.
const COMPILED: [KindId; 18] = [
    KindId::Service,
    KindId::Pod,
    KindId::GatewayClass,
    KindId::Gateway,
    KindId::ListenerSet,
    KindId::HttpRoute,
    KindId::GrpcRoute,
    KindId::TlsRoute,
    KindId::TcpRoute,
    KindId::UdpRoute,
    KindId::VirtualService,
    KindId::DestinationRule,
    KindId::IstioGateway,
    KindId::ServiceEntry,
    KindId::Sidecar,
    KindId::PeerAuthentication,
    KindId::TrafficPolicy,
    KindId::BackendTlsPolicy,
];

/// Compiles one unit; `None` when its object is gone. `shared` is of all units of the same World.
pub fn compile<'w>(
    unit: &Unit,
    world: &'w World,
    env: &Env,
    shared: &Rc<Shared<'w>>,
) -> (Option<Output>, HashSet<ReadKey>) {
    let reader = Reader::sharing(world, shared.clone());
    let output = match unit {
        Unit::Endpoints(service) => endpoints::compile(&reader, env, service),
        Unit::Object(key) => reader.key(key).map(|object| compile_object(&reader, env, object)),
    };
    (output, reader.into_reads())
}

/// The units that an object gives.
pub fn units_of(key: &ObjectKey) -> Vec<Unit> {
    if !COMPILED.contains(&key.kind) {
        return Vec::new();
    }
    let mut units = vec![Unit::Object(key.clone())];
    if key.kind == KindId::Service {
        let service = ServiceKey::new(&key.namespace, &key.name);
        units.extend(service.ok().map(Unit::Endpoints));
    }
    units
}

/// Every unit of a World.
pub fn all_units(world: &World) -> Vec<Unit> {
    COMPILED.iter().flat_map(|k| world.objects(*k, None)).flat_map(|o| units_of(&o.key)).collect()
}

fn compile_object<'w>(reader: &Reader<'w>, env: &Env, object: &'w Object) -> Output {
    match &object.view {
        View::Service(service) => service::compile(reader, env, object, service),
        View::Pod(pod) => inbound::compile(reader, env, object, pod),
        View::GatewayClass(class) => gateway::compile_class(object, class),
        View::Gateway(gateway) => gateway::compile(reader, env, object, gateway),
        View::ListenerSet(set) => listener_set::compile(reader, object, set),
        View::HttpRoute(route) | View::GrpcRoute(route) | View::StreamRoute(route) => {
            http_route::compile(reader, env, object, route)
        }
        View::VirtualService(vs) => virtual_service::compile(reader, env, object, vs),
        View::DestinationRule(rule) => destination_rule::compile(reader, env, object, rule),
        View::IstioGateway(gateway) => istio_gateway::compile(reader, env, object, gateway),
        View::ServiceEntry(entry) => service_entry::compile(reader, env, object, entry),
        View::Sidecar(sidecar) => sidecar::compile(reader, object, sidecar),
        View::PeerAuthentication(p) => peer_authentication::compile(reader, object, p),
        View::TrafficPolicy(p) => policy_attachment::compile(reader, object, &p.spec),
        View::BackendTlsPolicy(p) => backend_tls::compile(reader, object, &p.spec),
        View::Invalid(issues) if has_conditions(object.key.kind) => invalid(object, issues),
        _ => Output::default(),
    }
}

/// Kinds whose status is weft's to write as plain conditions.
fn has_conditions(kind: KindId) -> bool {
    matches!(
        kind,
        KindId::VirtualService
            | KindId::DestinationRule
            | KindId::IstioGateway
            | KindId::ServiceEntry
            | KindId::Sidecar
            | KindId::PeerAuthentication
    )
}

/// A bad object fails itself, visibly.
fn invalid(object: &Object, issues: &Issues) -> Output {
    let condition = Condition::new("Accepted", false, "Invalid", issues.to_string());
    Output {
        status: Some(StatusUpdate {
            object: object.key.clone(),
            generation: object.meta.generation,
            body: StatusBody::Conditions(vec![condition]),
        }),
        ..Output::default()
    }
}

// === impl Output ===

impl Output {
    fn add(&mut self, name: ResourceName, resource: Resource) {
        self.draft(name, resource, false);
    }

    fn draft(&mut self, name: ResourceName, resource: Resource, unresolved: bool) {
        self.resources.insert(name, Draft { resource: Arc::new(resource), unresolved });
    }
}

// === impl Env ===

impl Env {
    /// The port that is bound for a declared one.
    pub fn bind_port(&self, port: u16) -> u16 {
        if port < 1024 && !self.low_ports { 8000 + port } else { port }
    }
}

impl Default for Env {
    fn default() -> Self {
        Self {
            cluster_domain: "cluster.local".into(),
            trust_domain: "cluster.local".into(),
            low_ports: false,
        }
    }
}

/// Where in which object something was said.
fn origin(object: &Object, field: impl Into<Arc<str>>) -> Origin {
    Origin {
        kind: object.key.kind.row().kind.into(),
        namespace: object.key.namespace.clone(),
        name: object.key.name.clone(),
        field: field.into(),
    }
}
