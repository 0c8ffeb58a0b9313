// SPDX-License-Identifier: Apache-2.0
//! Istio Gateway: listener roots served by weft's own gateway proxy. The selector's workloads are
//! Istio's ingress pods, which do not exist here, so it is not looked at. VirtualServices attach
//! themselves from their own units.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use weft_base::issue::{FieldPath, Issues};
use weft_kinds::views::View;
use weft_kinds::views::istio::{Gateway, Server};
use weft_kinds::world::{KindId, Object};
use weft_model::{GatewayListener, ListenerKind, Protocol, Resource, Section, ServerTls};
use weft_xds::NodeId;

use super::gateway::{ADDRESS_ANNOTATION, is_ours, secret_pem};
use super::http_route::narrower;
use super::{Env, Output, Reader, origin};
use crate::mesh::gateway_root;
use crate::status::{Condition, StatusBody, StatusUpdate};

/// One host of one server.
#[derive(Debug)]
pub(super) struct ServerSection<'a> {
    pub name: Arc<str>,
    /// Namespaces that may attach: `*`, `.` or a name.
    namespace: &'a str,
    host: &'a str,
    server: &'a Server,
    index: usize,
}

/// The Gateway that a VirtualService names; `None` when there is none, or a Gateway API Gateway
/// of ours has its name and so its place.
pub(super) fn find<'w>(reader: &Reader<'w>, namespace: &str, name: &str) -> Option<&'w Gateway> {
    let object = reader.object(KindId::IstioGateway, namespace, name)?;
    match &object.view {
        View::IstioGateway(gateway) if !is_displaced(reader, namespace, name) => Some(gateway),
        _ => None,
    }
}

/// The HTTP sections by port, in written order.
pub(super) fn sections(gateway: &Gateway) -> BTreeMap<u16, Vec<ServerSection<'_>>> {
    let mut out: BTreeMap<u16, Vec<ServerSection<'_>>> = BTreeMap::new();
    for (index, server) in gateway.spec.servers.iter().enumerate() {
        if !is_http(server) {
            continue;
        }
        for (i, host) in server.hosts.iter().enumerate() {
            let (namespace, host) = host.split_once('/').unwrap_or(("*", host));
            let name = format!("{}-{index}-{i}", server.port.name).into();
            let section = ServerSection { name, namespace, host, server, index };
            out.entry(server.port.number).or_default().push(section);
        }
    }
    out
}

pub(super) fn compile(
    reader: &Reader<'_>,
    env: &Env,
    object: &Object,
    gateway: &Gateway,
) -> Output {
    let mut out = Output::default();
    let (ns, name) = (&*object.key.namespace, &*object.key.name);
    let mut issues = Issues::default();
    let displaced = is_displaced(reader, ns, name);
    if !displaced {
        out.node = NodeId::gateway(ns, name).ok().map(|n| (n, object.meta.labels.clone()));
        for (port, sections) in sections(gateway) {
            listener(reader, env, object, (port, &sections), &mut out, &mut issues);
        }
    }
    for (i, server) in gateway.spec.servers.iter().enumerate() {
        let path = FieldPath::new("spec.servers").index(i);
        if !is_http(server) {
            let text = format!("protocol {} is not served by this version", server.port.protocol);
            issues.warning(path.field("port").field("protocol"), text);
        }
        if server.tls.as_ref().is_some_and(|t| t.https_redirect) {
            super::destination_rule::not_done(&mut issues, &path.field("tls.httpsRedirect"));
        }
    }
    let accepted = if displaced {
        let text = format!("the Gateway API Gateway {ns}/{name} has this name and is served");
        Condition::new("Accepted", false, "Conflicted", text)
    } else if out.resources.is_empty() {
        Condition::new("Accepted", false, "Invalid", "no server can be served")
    } else {
        let text = format!("on {}", address(object));
        Condition::new("Accepted", true, "Accepted", text)
    };
    let conditions = std::iter::once(accepted).chain(Condition::warning(&issues)).collect();
    out.status = Some(StatusUpdate {
        object: object.key.clone(),
        generation: object.meta.generation,
        body: StatusBody::Conditions(conditions),
    });
    out
}

fn listener(
    reader: &Reader<'_>,
    env: &Env,
    object: &Object,
    (port, sections): (u16, &[ServerSection<'_>]),
    out: &mut Output,
    issues: &mut Issues,
) {
    let (ns, name) = (&*object.key.namespace, &*object.key.name);
    let mut usable = Vec::new();
    for section in sections {
        match tls(reader, ns, section.server) {
            Ok(tls) => usable.push(Section {
                name: section.name.clone(),
                hostname: (section.host != "*").then(|| section.host.to_ascii_lowercase().into()),
                protocol: Protocol::Http1,
                tls,
            }),
            Err(text) => {
                let path = FieldPath::new("spec.servers").index(section.index);
                issues.warning(path.field("tls"), text);
            }
        }
    }
    if usable.is_empty() {
        return;
    }
    let bind = vec![SocketAddr::new(address(object), env.bind_port(port))];
    let listener = weft_model::Listener {
        name: format!("{ns}~{name}~{port}").into(),
        kind: ListenerKind::Gateway(GatewayListener::new(bind, usable)),
        origin: Some(origin(object, "spec.servers")),
    };
    out.add(gateway_root(ns, name, port).own(), Resource::Listener(listener));
}

/// The annotated address; loopback when there is none.
fn address(object: &Object) -> IpAddr {
    let annotated = object.meta.annotation(ADDRESS_ANNOTATION).and_then(|a| a.parse().ok());
    annotated.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

fn is_http(server: &Server) -> bool {
    matches!(&*server.port.protocol, "HTTP" | "HTTP2" | "GRPC" | "HTTPS")
}

fn tls(reader: &Reader<'_>, namespace: &str, server: &Server) -> Result<Option<ServerTls>, String> {
    if &*server.port.protocol != "HTTPS" {
        return Ok(None);
    }
    let tls = server.tls.as_ref().ok_or("an HTTPS server needs tls")?;
    if &*tls.mode != "SIMPLE" {
        return Err(format!("mode {} is not served by this version; SIMPLE is", tls.mode));
    }
    let name = &tls.credential_name;
    let pem = secret_pem(reader, namespace, name);
    pem.map(Some).ok_or_else(|| format!("Secret {namespace}/{name} is no kubernetes.io/tls Secret"))
}

fn is_displaced(reader: &Reader<'_>, namespace: &str, name: &str) -> bool {
    let other = reader.object(KindId::Gateway, namespace, name);
    other.is_some_and(|o| matches!(&o.view, View::Gateway(g) if is_ours(reader, g)))
}

// === impl ServerSection ===

impl ServerSection<'_> {
    /// The hosts of a VirtualService that this section serves.
    pub fn common_hosts(
        &self,
        hosts: &[Arc<str>],
        namespace: &str,
        gateway_namespace: &str,
    ) -> Vec<Arc<str>> {
        let allowed = match self.namespace {
            "*" => true,
            "." => namespace == gateway_namespace,
            other => namespace == other,
        };
        if !allowed {
            return Vec::new();
        }
        hosts.iter().filter_map(|h| narrower(self.host, h)).collect()
    }
}
