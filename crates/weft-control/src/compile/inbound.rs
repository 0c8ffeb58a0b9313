// SPDX-License-Identifier: Apache-2.0
//! Pod to inbound listeners: one root per app port behind its sidecar. Reads the pod and the
//! Services it is an instance of, never its readiness. Of a pod whose traffic is captured, also
//! the policies about who may connect.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use weft_kinds::views::core::{IntOrString, Pod, ServicePort};
use weft_kinds::world::{Object, PodsMode, has_sidecar};
use weft_model::{
    CaptureListener, Egress, InboundListener, Listener, ListenerKind, Protocol, Resource,
};
use weft_xds::NodeId;

use super::peer_authentication::{Book, Policy};
use super::{Env, Output, Reader, origin, protocol, service, sidecar};
use crate::mesh::{capture_root, inbound_root};

pub(super) fn compile(reader: &Reader<'_>, env: &Env, object: &Object, pod: &Pod) -> Output {
    let mut out = Output::default();
    if !has_sidecar(&object.meta) || pod.is_finished() {
        return out;
    }
    let (ns, name) = (&*object.key.namespace, &*object.key.name);
    // A name that no node can have has no sidecar either.
    let Ok(node) = NodeId::sidecar(ns, name) else { return out };
    out.node = Some((node, object.meta.labels.clone()));
    let Ok(ip) = pod.status.pod_ip.parse::<IpAddr>() else { return out };
    let captured = PodsMode::of(&object.meta).is_captured();
    // Nothing binds where nothing is captured.
    let policy = match captured {
        true => Book::read(reader, ns).of(&object.meta.labels),
        false => Policy::default(),
    };
    if captured {
        let egress = sidecar::egress_of(reader, ns, &object.meta.labels);
        capture(object, &policy, egress, &mut out);
    }
    for (port, found) in ports(reader, env, object, pod) {
        let root = inbound_root(ns, name, port);
        let inbound = InboundListener {
            port,
            app: SocketAddr::new(ip, port),
            protocol: found.protocol,
            services: found.services,
            mtls: policy.of(port),
        };
        let listener = Listener {
            name: root.to_string().trim_start_matches("listener:").into(),
            kind: ListenerKind::Inbound(inbound),
            origin: Some(origin(object, "spec.containers")),
        };
        out.add(root.own(), Resource::Listener(listener));
    }
    out
}

/// What holds for captured traffic: to ports that nobody declared, and to what nobody knows.
fn capture(object: &Object, policy: &Policy, egress: Egress, out: &mut Output) {
    let root = capture_root(&object.key.namespace, &object.key.name);
    let listener = Listener {
        name: root.to_string().trim_start_matches("listener:").into(),
        kind: ListenerKind::Capture(CaptureListener {
            mtls: policy.mode,
            ports: policy.ports.clone(),
            egress,
            ..CaptureListener::default()
        }),
        origin: Some(origin(object, "spec")),
    };
    out.add(root.own(), Resource::Listener(listener));
}

struct Found {
    protocol: Protocol,
    services: Vec<Arc<str>>,
}

/// Every port of the pod that may be asked for: what its containers declare, and what Services
/// forward to. A Service's word about the protocol beats the container port's name.
fn ports(reader: &Reader<'_>, env: &Env, object: &Object, pod: &Pod) -> BTreeMap<u16, Found> {
    let mut out = BTreeMap::new();
    for port in pod.ports().filter(|p| p.container_port != 0 && &*p.protocol != "UDP") {
        let protocol = protocol::of_container_port(&port.name, port.container_port, &port.protocol);
        out.insert(port.container_port, Found { protocol, services: Vec::new() });
    }
    for key in reader.services_of_pod(&object.key.namespace, &object.key.name) {
        let Some((service_object, view)) = reader.service(&key) else { continue };
        for port in view.spec.ports.iter().filter(|p| service::is_meshed(p)) {
            let Some(target) = target_port(pod, port) else { continue };
            let speaks = protocol::of_service(&service_object.meta, &view.spec, port);
            let found = out
                .entry(target)
                .or_insert_with(|| Found { protocol: speaks, services: Vec::new() });
            if found.services.is_empty() || found.protocol == Protocol::Detect {
                found.protocol = speaks;
            }
            let host: Arc<str> = key.host(&env.cluster_domain).as_str().into();
            if !found.services.contains(&host) {
                found.services.push(host);
            }
        }
    }
    out
}

fn target_port(pod: &Pod, port: &ServicePort) -> Option<u16> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(n)) => u16::try_from(*n).ok(),
        Some(IntOrString::String(name)) => {
            pod.ports().find(|p| p.name == *name).map(|p| p.container_port)
        }
    }
}
