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
use weft_kinds::world::{KindId, Object, pair};
use weft_model::{
    Action, Dialect, GatewayListener, ListenerKind, Matching, Parent, Protocol, Rank, Redirect,
    Resource, Retry, Root, Route, Rule, Scope, Section, ServerTls, Timeouts,
};
use weft_xds::NodeId;

use super::gateway::{ADDRESS_ANNOTATION, is_ours};
use super::http_route::narrower;
use super::{Env, Output, Reader, istio_tls, origin};
use crate::mesh::gateway_root;
use crate::status::{Condition, StatusBody, StatusUpdate};

/// What arrives at a server, and so which rules it follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carries {
    /// `http[]`
    Http,
    /// TLS that stays closed: `tls[]`.
    Names,
    /// `tcp[]`
    Bytes,
}

/// One host of one server.
#[derive(Debug)]
pub(super) struct ServerSection<'a> {
    pub name: Arc<str>,
    pub carries: Carries,
    /// Namespaces that may attach: `*`, `.` or a name.
    namespace: &'a str,
    host: &'a str,
    server: &'a Server,
    index: usize,
}

/// The Gateway that a VirtualService names; `None` when there is none, or a Gateway API Gateway
/// of ours has its name and so its place.
pub(super) fn find<'w>(
    reader: &Reader<'w>,
    namespace: &str,
    name: &str,
) -> Option<(&'w Object, &'w Gateway)> {
    let object = reader.object(KindId::IstioGateway, namespace, name)?;
    match &object.view {
        View::IstioGateway(gateway) if !is_displaced(reader, namespace, name) => {
            Some((object, gateway))
        }
        _ => None,
    }
}

/// The sections that can be served, by port, in written order.
pub(super) fn sections(gateway: &Gateway) -> BTreeMap<u16, Vec<ServerSection<'_>>> {
    let mut out: BTreeMap<u16, Vec<ServerSection<'_>>> = BTreeMap::new();
    for (index, server) in gateway.spec.servers.iter().enumerate() {
        let Ok(carries) = carries(server) else { continue };
        let on_port = out.entry(server.port.number).or_default();
        if on_port.first().is_some_and(|first| first.excludes(server, carries)) {
            continue;
        }
        for (i, host) in server.hosts.iter().enumerate() {
            let (namespace, host) = host.split_once('/').unwrap_or(("*", host));
            let name = format!("{}-{index}-{i}", server.port.name).into();
            on_port.push(ServerSection { name, carries, namespace, host, server, index });
        }
    }
    out.retain(|_, sections| !sections.is_empty());
    out
}

/// What a server carries.
///
/// # Errors
/// Why it is not served.
fn carries(server: &Server) -> Result<Carries, String> {
    let mode = server.tls.as_ref().map_or("", |tls| &*tls.mode);
    if mode == "AUTO_PASSTHROUGH" {
        return Err("AUTO_PASSTHROUGH, which joins networks by Istio's own names, is not served; \
                    say PASSTHROUGH and give tls[] rules"
            .to_owned());
    }
    match &*server.port.protocol {
        "HTTPS" | "TLS" if mode == "PASSTHROUGH" => Ok(Carries::Names),
        "HTTP" | "HTTP2" | "GRPC" | "HTTPS" | "GRPC-WEB" => Ok(Carries::Http),
        "TLS" | "TCP" | "MONGO" | "MYSQL" | "REDIS" => Ok(Carries::Bytes),
        other => Err(format!("protocol {other} is not served by this version")),
    }
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
    judge(gateway, &mut issues);
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

/// What of its servers is not served.
fn judge(gateway: &Gateway, issues: &mut Issues) {
    let served = sections(gateway);
    for (i, server) in gateway.spec.servers.iter().enumerate() {
        let path = FieldPath::new("spec.servers").index(i);
        let on_port = served.get(&server.port.number).map(Vec::as_slice).unwrap_or_default();
        if let Err(why) = carries(server) {
            issues.warning(path.field("port").field("protocol"), why);
        } else if let Some(first) = on_port.first()
            && on_port.iter().all(|section| section.index != i)
            && !server.hosts.is_empty()
        {
            let text = format!(
                "not served: port {} is spec.servers[{}]'s, which speaks otherwise",
                server.port.number, first.index
            );
            issues.warning(path.field("port"), text);
        }
        if let Some(bind) = server.bind.as_deref().filter(|bind| !bind.is_empty()) {
            let text =
                format!("{bind} is not bound; say it in the annotation {ADDRESS_ANNOTATION}");
            issues.warning(path.field("bind"), text);
        }
        istio_tls::judge(server, &path, issues);
    }
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
    let mut all = Vec::new();
    let mut redirected = Vec::new();
    for section in sections {
        let tls = match istio_tls::served(reader, ns, section.server, section.carries) {
            Ok(tls) => {
                redirected.extend(section.is_redirected().then(|| section.name.clone()));
                tls
            }
            Err(text) => {
                let path = FieldPath::new("spec.servers").index(section.index);
                issues.warning(path.field("tls"), text);
                // Its names stay its own: a wider server would ask less of their clients.
                Some(ServerTls::closed())
            }
        };
        all.push(Section {
            name: section.name.clone(),
            hostname: section.hostname(),
            protocol: match section.carries {
                Carries::Http => Protocol::Http1,
                Carries::Names => Protocol::Tls,
                Carries::Bytes => Protocol::Tcp,
            },
            tls,
        });
    }
    if all.iter().all(Section::is_closed) {
        return;
    }
    let bind = vec![SocketAddr::new(address(object), env.bind_port(port))];
    let listener = weft_model::Listener {
        name: format!("{ns}~{name}~{port}").into(),
        kind: ListenerKind::Gateway(GatewayListener::new(bind, all)),
        origin: Some(origin(object, "spec.servers")),
    };
    let root = gateway_root(ns, name, port);
    out.add(root.own(), Resource::Listener(listener));
    if !redirected.is_empty() {
        let child = root.child(format!("route/gateway/{ns}/{name}"));
        out.add(child, Resource::Route(to_https(object, root, redirected)));
    }
}

/// Every request of `httpsRedirect` is sent to the same place by TLS.
fn to_https(object: &Object, root: Root, sections: Vec<Arc<str>>) -> Route {
    let redirect = Redirect { scheme: Some("https".into()), status: 301, ..Redirect::default() };
    let said = origin(object, "spec.servers");
    let rule = Rule {
        name: "".into(),
        matches: Vec::new(),
        filters: Vec::new(),
        action: Action::Redirect(redirect),
        timeouts: Timeouts::default(),
        retry: Retry::default(),
        session: None,
        origin: said.clone(),
        sources: weft_model::Sources::default(),
    };
    let name = pair(&object.key.namespace, &object.key.name);
    Route {
        parent: Parent::Listener { root, sections, hostnames: Vec::new() },
        scope: Scope::Any,
        matching: Matching::FirstMatch,
        rank: Rank { dialect: Dialect::VirtualService, created_ms: 0, name },
        rules: vec![rule],
        origin: said,
    }
}

/// The annotated address; loopback when there is none.
fn address(object: &Object) -> IpAddr {
    let annotated = object.meta.annotation(ADDRESS_ANNOTATION).and_then(|a| a.parse().ok());
    annotated.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

fn is_displaced(reader: &Reader<'_>, namespace: &str, name: &str) -> bool {
    let other = reader.object(KindId::Gateway, namespace, name);
    other.is_some_and(|o| matches!(&o.view, View::Gateway(g) if is_ours(reader, g)))
}

// === impl ServerSection ===

impl ServerSection<'_> {
    /// Whether another server cannot have the same port: TLS tells names apart, nothing else does.
    fn excludes(&self, other: &Server, carries: Carries) -> bool {
        let tls = istio_tls::is_opened(other) || carries == Carries::Names;
        if self.has_tls() || tls {
            return self.has_tls() != tls;
        }
        self.carries != carries
    }

    fn has_tls(&self) -> bool {
        self.carries == Carries::Names || istio_tls::is_opened(self.server)
    }

    /// Whether who comes cannot say which host is meant.
    pub fn is_nameless(&self) -> bool {
        self.carries == Carries::Bytes && !self.has_tls()
    }

    /// Whether it sends everybody to TLS, whatever the rules say.
    pub fn is_redirected(&self) -> bool {
        let asks = self.server.tls.as_ref().is_some_and(|tls| tls.https_redirect);
        asks && self.carries == Carries::Http && !self.has_tls()
    }

    fn hostname(&self) -> Option<Arc<str>> {
        let named = self.host != "*" && !self.is_nameless();
        named.then(|| self.host.to_ascii_lowercase().into())
    }

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
