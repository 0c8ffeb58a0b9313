// SPDX-License-Identifier: Apache-2.0
//! Instances to endpoint sets: the fast path. Reads the Service and its instances (of
//! captured pods also who may connect to them, of a Gateway's where it listens), nothing else, so
//! that a change of one endpoint compiles nothing but its service's sets.

use std::net::SocketAddr;
use std::sync::Arc;

use weft_base::name::ServiceKey;
use weft_kinds::views::catalog::Status;
use weft_kinds::views::core::ServicePort;
use weft_kinds::world::{Door, Instance};
use weft_model::{
    Endpoint, EndpointSet, Health, Locality, MtlsMode, Protocol, Resource, Transport,
    endpoints_child, udp_endpoints_child,
};

use super::peer_authentication::Book;
use super::{Env, Output, Reader, gateway, names, protocol, service};

pub(super) fn compile(reader: &Reader<'_>, env: &Env, key: &ServiceKey) -> Option<Output> {
    let (object, view) = reader.service(key)?;
    let mut out = Output::default();
    if &*view.spec.kind == "ExternalName" {
        return Some(out);
    }
    let instances = reader.instances(key);
    let root = names::host_root(key, env);
    // Whoever takes no mTLS is called without; that is known of captured pods only.
    let captured = instances.values().any(|i| i.captured);
    let book = captured.then(|| Book::read(reader, key.namespace.as_str()));
    for port in view.spec.ports.iter().filter(|p| service::is_meshed(p) || service::is_udp(p)) {
        let speaks = protocol::of_service(&object.meta, &view.spec, port);
        let endpoints = instances.values().filter_map(|i| {
            let mut endpoint = endpoint(env, i, port, speaks)?;
            if let Some(at) = gateway::reached_at(reader, i) {
                let port = env.bind_port(endpoint.address.port());
                endpoint.address = SocketAddr::new(at, port);
            }
            let policy = book.as_ref().filter(|_| i.captured).map(|b| b.of(&i.labels));
            let disabled =
                policy.is_some_and(|p| p.of(endpoint.address.port()) == MtlsMode::Disable);
            // The mesh carries no datagrams.
            if disabled || speaks == Protocol::Udp {
                endpoint.transport = Transport::Plaintext;
                endpoint.identity = None;
            }
            Some(endpoint)
        });
        let mut endpoints: Vec<Endpoint> = endpoints.collect();
        endpoints.shrink_to_fit();
        let set = EndpointSet {
            service: key.host(&env.cluster_domain).as_str().into(),
            namespace: key.namespace.as_str().into(),
            port: port.port,
            protocol: speaks,
            endpoints,
        };
        let child = match speaks {
            Protocol::Udp => udp_endpoints_child(port.port),
            _ => endpoints_child(port.port),
        };
        out.add(root.child(child), Resource::Endpoints(set));
    }
    Some(out)
}

/// The instance as an endpoint of one port; `None` when it does not have that port or has no
/// address yet.
fn endpoint(
    env: &Env,
    instance: &Instance,
    port: &ServicePort,
    speaks: Protocol,
) -> Option<Endpoint> {
    let own = match instance.origin {
        Door::Kubernetes => instance.ports.iter().find(|p| p.name == port.name)?,
        // A registration has one port, whatever the Service that shows it calls it.
        Door::Consul => instance.ports.first()?,
    };
    if instance.address.is_unspecified() || own.port == 0 {
        return None;
    }
    let health = match (instance.draining, instance.health) {
        (true, _) => Health::Draining,
        (false, Status::Critical) => Health::Unhealthy,
        (false, Status::Passing | Status::Warning) => Health::Healthy,
    };
    Some(Endpoint {
        id: instance.id.clone(),
        address: SocketAddr::new(instance.address, own.port),
        labels: instance.labels.clone(),
        locality: locality(instance),
        weight: instance.weight,
        health,
        identity: instance.mesh.then(|| identity(env, instance)),
        transport: transport(instance, speaks),
        workload: instance.workload.clone(),
        mesh_address: instance.mesh_address.as_deref().copied(),
    })
}

/// What its labels say; the slice's zone where they say nothing.
fn locality(instance: &Instance) -> Locality {
    let told = Locality::of_labels(&instance.labels);
    if told.is_unknown() { Locality { zone: instance.zone.clone(), ..told } } else { told }
}

fn identity(env: &Env, instance: &Instance) -> Arc<str> {
    let (namespace, account) = (&instance.service.namespace, &instance.service_account);
    format!("spiffe://{}/ns/{namespace}/sa/{account}", env.trust_domain).into()
}

fn transport(instance: &Instance, speaks: Protocol) -> Transport {
    match (instance.mesh, speaks) {
        (false, _) => Transport::Plaintext,
        (true, Protocol::Http2 | Protocol::Grpc) => Transport::MeshH2,
        (true, _) => Transport::MeshH1,
    }
}
