// SPDX-License-Identifier: Apache-2.0
//! Service of type LoadBalancer to listeners of a proxy of its own: one root per TCP port, bound
//! at the address that the Service was given, with one route, to the Service itself. Bytes are
//! passed on as they are. Called by `service`; a Gateway's own Service has no address here.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde_json::json;
use weft_base::name::ServiceKey;
use weft_kinds::views::core::Service;
use weft_kinds::world::{Object, balancer_node};
use weft_model::{
    Action, Dialect, GatewayListener, Listener, ListenerKind, Matching, Parent, Protocol, Rank,
    Resource, ResourceName, Route, Rule, Scope, Section, Target, WeightedBackend,
};
use weft_xds::NodeId;

use super::gateway::ADDRESS_ANNOTATION;
use super::service::is_meshed;
use super::{Env, Output, names, origin};
use crate::mesh::gateway_root;

const SECTION: &str = "tcp";

pub(super) fn compile(env: &Env, object: &Object, service: &Service, out: &mut Output) {
    let given = object.meta.annotation(ADDRESS_ANNOTATION).and_then(|ip| ip.parse().ok());
    let (Some(ip), "LoadBalancer") = (given, &*service.spec.kind) else { return };
    let (ns, name) = (&*object.key.namespace, &*object.key.name);
    let (Ok(key), node) = (ServiceKey::new(ns, name), balancer_node(name)) else { return };
    let Ok(id) = NodeId::gateway(ns, &node) else { return };
    out.node = Some((id, object.meta.labels.clone()));
    for port in service.spec.ports.iter().filter(|p| is_meshed(p)).map(|p| p.port) {
        let root = gateway_root(ns, &node, port);
        out.add(root.own(), Resource::Listener(listener(env, object, ip, &node, port)));
        let target = names::backend_name(&key, port, "", env);
        let route = Route {
            parent: Parent::Listener {
                root: root.clone(),
                sections: vec![SECTION.into()],
                hostnames: Vec::new(),
            },
            scope: Scope::Any,
            matching: Matching::FirstMatch,
            rank: Rank {
                dialect: Dialect::ProducerHttpRoute,
                created_ms: object.meta.created_ms(),
                name: format!("{ns}/{name}").into(),
            },
            rules: vec![rule(object, target)],
            origin: origin(object, "spec.ports"),
        };
        out.add(root.child(format!("route/service/{ns}/{name}")), Resource::Route(route));
    }
}

/// Everything to one backend; the rest of a rule is what the model has where nothing is said.
fn rule(object: &Object, target: ResourceName) -> Rule {
    let backend =
        WeightedBackend { target: Target::Backend(target), weight: 1, filters: Vec::new() };
    let said = json!({
        "action": Action::Forward(vec![backend]),
        "origin": origin(object, "spec.ports"),
    });
    serde_json::from_value(said).expect("an action and an origin make a rule")
}

fn listener(env: &Env, object: &Object, ip: IpAddr, node: &str, port: u16) -> Listener {
    let section =
        Section { name: Arc::from(SECTION), hostname: None, protocol: Protocol::Tcp, tls: None };
    Listener {
        name: format!("{}~{node}~{port}", object.key.namespace).into(),
        kind: ListenerKind::Gateway(GatewayListener::new(
            vec![SocketAddr::new(ip, env.bind_port(port))],
            vec![section],
        )),
        origin: Some(origin(object, "spec.ports")),
    }
}
