// SPDX-License-Identifier: Apache-2.0
//! GatewayClass and Gateway: one root per port with its listeners as sections, and their status.
//! Routes are compiled by their own units; how many attached is counted by the compiler.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use base64::Engine as _;
use weft_kinds::views::View;
use weft_kinds::views::gateway::{self as view, Gateway, GatewayClass, Listener};
use weft_kinds::world::{Instance, KindId, Object};
use weft_model::{GatewayListener, ListenerKind, Protocol, Resource, Root, Section, ServerTls};
use weft_xds::NodeId;

use super::http_rule::granted;
use super::{Env, Output, Reader, edge, origin, proxy_header};
use crate::mesh::{gateway_root, udp_gateway_root};
use crate::status::{CONTROLLER, Condition, ListenerStatus, StatusBody, StatusUpdate};

/// The address of a Gateway that names none: written by the addresses controller (or a person).
pub const ADDRESS_ANNOTATION: &str = "weft.dev/address";

/// The features of Gateway API's conformance suite that weft passes, sorted: the suite reads them
/// from the class and runs their tests (GEP-2162).
const FEATURES: &[&str] = &[
    "BackendTLSPolicy",
    "BackendTLSPolicySANValidation",
    "GRPCRoute",
    "GRPCRouteNamedRouteRule",
    "Gateway",
    "GatewayHTTPListenerIsolation",
    "GatewayPort8080",
    "HTTPRoute",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteBackendProtocolH2C",
    "HTTPRouteBackendProtocolWebSocket",
    "HTTPRouteBackendRequestHeaderModification",
    "HTTPRouteBackendTimeout",
    "HTTPRouteCORS",
    "HTTPRouteDestinationPortMatching",
    "HTTPRouteHostRewrite",
    "HTTPRouteMethodMatching",
    "HTTPRouteNamedRouteRule",
    "HTTPRouteParentRefPort",
    "HTTPRoutePathRedirect",
    "HTTPRoutePathRewrite",
    "HTTPRoutePortRedirect",
    "HTTPRouteQueryParamMatching",
    "HTTPRouteRequestMirror",
    "HTTPRouteRequestMultipleMirrors",
    "HTTPRouteRequestPercentageMirror",
    "HTTPRouteRequestTimeout",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteRetry",
    "HTTPRouteSchemeRedirect",
    "Mesh",
    "ReferenceGrant",
];

/// Gateway API's label on what a Gateway causes: its pods, above all.
const NAME_LABEL: &str = "gateway.networking.k8s.io/gateway-name";

pub(super) fn compile_class(object: &Object, class: &GatewayClass) -> Output {
    if &*class.spec.controller_name != CONTROLLER {
        return Output::default();
    }
    let accepted = Condition::new("Accepted", true, "Accepted", "served by weft");
    Output {
        status: Some(StatusUpdate {
            object: object.key.clone(),
            generation: object.meta.generation,
            body: StatusBody::Class { conditions: vec![accepted], features: FEATURES },
        }),
        ..Output::default()
    }
}

pub(super) fn compile(
    reader: &Reader<'_>,
    env: &Env,
    object: &Object,
    gateway: &Gateway,
) -> Output {
    let mut out = Output::default();
    if !is_ours(reader, gateway) {
        return out;
    }
    let (ns, name) = (&*object.key.namespace, &*object.key.name);
    out.node = NodeId::gateway(ns, name).ok().map(|n| (n, object.meta.labels.clone()));
    let addresses = addresses(object, gateway);
    let taken = taken(reader, env, object, addresses.as_deref().unwrap_or_default());
    let mut header = proxy_header::read(object, gateway);
    let edge = edge::read(object, &mut header.issues);
    let mut listeners = Vec::new();
    let mut sections: BTreeMap<(u16, bool), Vec<Section>> = BTreeMap::new();
    for listener in &gateway.spec.listeners {
        let state = judge(reader, env, object, gateway, listener, &taken);
        listeners.push(listener_status(listener, &state, addresses.is_ok()));
        if let Ok(section) = state.section {
            sections.entry((listener.port, is_udp(listener))).or_default().push(section);
        }
    }
    let mut sockets = Vec::new();
    if let Ok(ips) = &addresses {
        for ((port, udp), sections) in sections {
            let bind: Vec<SocketAddr> =
                ips.iter().map(|ip| SocketAddr::new(*ip, env.bind_port(port))).collect();
            let socket = |at: &SocketAddr| if udp { format!("{at}/udp") } else { at.to_string() };
            sockets.extend(bind.iter().map(socket));
            let proxy_header = header.of(&sections);
            let kind =
                GatewayListener { proxy_header, edge, ..GatewayListener::new(bind, sections) };
            let root = if udp { udp_gateway_root } else { gateway_root }(ns, name, port);
            let listener = weft_model::Listener {
                name: root.name().clone(),
                kind: ListenerKind::Gateway(kind),
                origin: Some(origin(object, "spec.listeners")),
            };
            out.add(root.own(), Resource::Listener(listener));
        }
    }
    out.status = Some(StatusUpdate {
        object: object.key.clone(),
        generation: object.meta.generation,
        body: StatusBody::Gateway {
            conditions: conditions(&addresses, &listeners, &sockets)
                .into_iter()
                .chain(Condition::warning(&header.issues))
                .collect(),
            addresses: addresses.unwrap_or_default(),
            listeners,
        },
    });
    out
}

/// Whether a Gateway is of a class of ours.
pub(super) fn is_ours(reader: &Reader<'_>, gateway: &Gateway) -> bool {
    let class = reader.object(KindId::GatewayClass, "", &gateway.spec.gateway_class_name);
    class.is_some_and(
        |c| matches!(&c.view, View::GatewayClass(c) if &*c.spec.controller_name == CONTROLLER),
    )
}

/// The kinds of routes that there are for a listener's protocol.
fn route_kinds(listener: &Listener) -> &'static [&'static str] {
    match &*listener.protocol {
        "HTTP" | "HTTPS" => &["HTTPRoute", "GRPCRoute"],
        "TLS" => &["TLSRoute"],
        "TCP" => &["TCPRoute"],
        "UDP" => &["UDPRoute"],
        _ => &[],
    }
}

/// The kinds of routes that a listener takes.
pub(super) fn taken_kinds(listener: &Listener) -> Vec<&'static str> {
    let kinds = &listener.allowed_routes.kinds;
    let listed = |kind: &str| {
        kinds.is_empty()
            || kinds.iter().any(|k| {
                &*k.kind == kind && k.group.as_deref().unwrap_or(view::GROUP) == view::GROUP
            })
    };
    route_kinds(listener).iter().copied().filter(|kind| listed(kind)).collect()
}

/// The root that a listener is a section of.
pub(super) fn root_of(namespace: &str, gateway: &str, listener: &Listener) -> Root {
    let root = if is_udp(listener) { udp_gateway_root } else { gateway_root };
    root(namespace, gateway, listener.port)
}

fn is_udp(listener: &Listener) -> bool {
    &*listener.protocol == "UDP"
}

// === addresses ===

/// The addresses to bind: asked for in the spec, else given by annotation.
fn addresses(object: &Object, gateway: &Gateway) -> Result<Vec<IpAddr>, (&'static str, String)> {
    let asked = &gateway.spec.addresses;
    if !asked.is_empty() {
        return asked.iter().enumerate().map(|(i, a)| asked_address(i, a)).collect();
    }
    let given = object.meta.annotation(ADDRESS_ANNOTATION).and_then(|a| a.parse().ok());
    let none = || ("AddressNotAssigned", "no address has been assigned yet".to_owned());
    given.map(|ip| vec![ip]).ok_or_else(none)
}

/// Where the proxy of a Gateway listens, when an instance is one: on the host's side, whatever
/// network its pod has.
pub(super) fn reached_at(reader: &Reader<'_>, instance: &Instance) -> Option<IpAddr> {
    let name = instance.labels.get(NAME_LABEL).filter(|_| !instance.mesh)?;
    let namespace = instance.service.namespace.as_str();
    let find = |kind| reader.object(kind, namespace, name);
    let ip = match find(KindId::Gateway).or_else(|| find(KindId::IstioGateway)) {
        Some(object) => match &object.view {
            View::Gateway(gateway) => *addresses(object, gateway).ok()?.first()?,
            _ => object.meta.annotation(ADDRESS_ANNOTATION)?.parse().ok()?,
        },
        None => return None,
    };
    Some(match ip {
        IpAddr::V4(v4) if v4.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(v6) if v6.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    })
}

fn asked_address(i: usize, address: &view::Address) -> Result<IpAddr, (&'static str, String)> {
    if address.kind.as_deref().is_some_and(|k| k != "IPAddress") {
        let text = format!("spec.addresses[{i}].type: only IPAddress is served");
        return Err(("UnsupportedAddress", text));
    }
    address.value.parse().map_err(|_| {
        let text = format!("spec.addresses[{i}].value: {:?} is no address", address.value);
        ("AddressNotUsable", text)
    })
}

/// Ports, and whether of datagrams, with who has them.
type Taken = BTreeMap<(u16, bool), String>;

/// Ports that older Gateways bind on these addresses, and which those are.
fn taken(reader: &Reader<'_>, env: &Env, object: &Object, ips: &[IpAddr]) -> Taken {
    let mut out = BTreeMap::new();
    // Addresses that weft gave are nobody else's.
    if ips.is_empty() || object.meta.annotation(ADDRESS_ANNOTATION).is_some() {
        return out;
    }
    let age = |o: &Object| (o.meta.created_ms(), o.key.clone());
    for other in reader.kind(KindId::Gateway, None) {
        let View::Gateway(view) = &other.view else { continue };
        if age(other) >= age(object) || !is_ours(reader, view) {
            continue;
        }
        let theirs = addresses(other, view).unwrap_or_default();
        if let Some(ip) = theirs.iter().find(|ip| ips.contains(ip)) {
            for listener in &view.spec.listeners {
                let port = env.bind_port(listener.port);
                out.entry((port, is_udp(listener)))
                    .or_insert_with(|| format!("{} has {ip}:{port} already", other.key));
            }
        }
    }
    out
}

// === listeners ===

struct State {
    /// The section, or why there is none: condition, reason, sentence.
    section: Result<Section, (&'static str, &'static str, String)>,
    /// Route kinds that it lists but cannot take.
    foreign_kinds: bool,
}

fn judge(
    reader: &Reader<'_>,
    env: &Env,
    object: &Object,
    gateway: &Gateway,
    listener: &Listener,
    taken: &Taken,
) -> State {
    let kinds = &listener.allowed_routes.kinds;
    let foreign_kinds = kinds.iter().any(|k| !route_kinds(listener).contains(&&*k.kind));
    let section = protocol(listener)
        .and_then(|protocol| conflict(env, gateway, listener).map_or(Ok(protocol), Err))
        .and_then(|protocol| match taken.get(&(env.bind_port(listener.port), is_udp(listener))) {
            Some(by) => Err(("Accepted", "PortUnavailable", by.clone())),
            None => Ok(protocol),
        })
        .and_then(|protocol| {
            let tls = tls(reader, object, listener)?;
            let hostname = listener.hostname.as_deref().filter(|h| !h.is_empty());
            Ok(Section {
                name: listener.name.clone(),
                hostname: hostname.map(|h| h.to_ascii_lowercase().into()),
                protocol,
                tls,
            })
        });
    State { section, foreign_kinds }
}

fn protocol(listener: &Listener) -> Result<Protocol, (&'static str, &'static str, String)> {
    match &*listener.protocol {
        "HTTP" | "HTTPS" => Ok(Protocol::Http1),
        "TLS" if is_passthrough(listener) => Ok(Protocol::Tls),
        // What is inside of TLS that ends here.
        "TLS" | "TCP" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        other => Err((
            "Accepted",
            "UnsupportedProtocol",
            format!(
                "protocol {other} is not served by this version of weft; HTTP, HTTPS, TLS, TCP \
                 and UDP are"
            ),
        )),
    }
}

fn is_passthrough(listener: &Listener) -> bool {
    listener.tls.as_ref().is_some_and(|tls| tls.mode.as_deref() == Some("Passthrough"))
}

/// The first of two listeners with one port and host name keeps it; different protocols cannot
/// share a port, unless both are told apart by TLS's server name.
fn conflict(
    env: &Env,
    gateway: &Gateway,
    listener: &Listener,
) -> Option<(&'static str, &'static str, String)> {
    let bound = env.bind_port(listener.port);
    let before = gateway.spec.listeners.iter().take_while(|l| l.name != listener.name);
    let named = |l: &Listener| matches!(&*l.protocol, "HTTPS" | "TLS");
    let same_socket =
        |l: &&Listener| env.bind_port(l.port) == bound && is_udp(l) == is_udp(listener);
    for other in before.filter(same_socket) {
        if other.port != listener.port {
            let text = format!("listener {} is bound to port {bound} already", other.name);
            return Some(("Accepted", "PortUnavailable", text));
        }
        if other.protocol != listener.protocol && !(named(other) && named(listener)) {
            let text = format!("listener {} has port {} already", other.name, other.port);
            return Some(("Conflicted", "ProtocolConflict", text));
        }
        let host = |l: &Listener| l.hostname.as_deref().unwrap_or("").to_ascii_lowercase();
        if host(other) == host(listener) {
            let text = format!("listener {} has this port and host name already", other.name);
            return Some(("Conflicted", "HostnameConflict", text));
        }
    }
    None
}

fn tls(
    reader: &Reader<'_>,
    object: &Object,
    listener: &Listener,
) -> Result<Option<ServerTls>, (&'static str, &'static str, String)> {
    let opened = match &*listener.protocol {
        "HTTPS" => true,
        "TLS" => !is_passthrough(listener),
        _ => false,
    };
    if !opened {
        return Ok(None);
    }
    let bad = |reason, text: String| ("ResolvedRefs", reason, text);
    let Some(tls) = &listener.tls else {
        return Err(bad("InvalidCertificateRef", "tls.certificateRefs is missing".into()));
    };
    if tls.mode.as_deref().is_some_and(|m| m != "Terminate") {
        let text = "tls.mode: this listener terminates TLS".to_owned();
        return Err(("Accepted", "UnsupportedValue", text));
    }
    let Some(reference) = tls.certificate_refs.first() else {
        return Err(bad("InvalidCertificateRef", "tls.certificateRefs is empty".into()));
    };
    let (group, kind) = (reference.group.as_deref(), reference.kind.as_deref());
    if group.is_some_and(|g| !g.is_empty()) || kind.is_some_and(|k| k != "Secret") {
        let text = format!(
            "tls.certificateRefs: {:?} of group {:?} holds no certificate; name a Secret",
            kind.unwrap_or("Secret"),
            group.unwrap_or(""),
        );
        return Err(bad("InvalidCertificateRef", text));
    }
    let own = &*object.key.namespace;
    let ns = reference.namespace.as_deref().unwrap_or(own);
    let to = ("", "Secret", &*reference.name);
    if ns != own && !granted(reader, "Gateway", own, to, ns) {
        let text = format!("no ReferenceGrant in {ns} allows Gateways of {own} to use its Secrets");
        return Err(bad("RefNotPermitted", text));
    }
    let pem = secret_pem(reader, ns, &reference.name);
    let text = || format!("Secret {ns}/{} is no kubernetes.io/tls Secret", reference.name);
    pem.map(Some).ok_or_else(|| bad("InvalidCertificateRef", text()))
}

/// The certificate and key in a TLS Secret.
pub(super) fn secret_pem(reader: &Reader<'_>, namespace: &str, name: &str) -> Option<ServerTls> {
    let object = reader.object(KindId::Secret, namespace, name)?;
    let View::Secret(secret) = &object.view else { return None };
    let text = |key: &str| -> Option<Arc<str>> {
        let encoded = secret.data.get(key)?;
        let bytes = base64::engine::general_purpose::STANDARD.decode(encoded.as_bytes()).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        text.contains("-----BEGIN ").then(|| text.into())
    };
    Some(ServerTls::new(text("tls.crt")?, text("tls.key")?))
}

// === status ===

fn listener_status(listener: &Listener, state: &State, has_address: bool) -> ListenerStatus {
    let failed = state.section.as_ref().err();
    let condition = |kind: &'static str, yes: &'static str, no_failure: bool| match failed {
        Some((of, reason, text)) if *of == kind => {
            Condition::new(kind, !no_failure, reason, text.clone())
        }
        _ => Condition::new(kind, no_failure, yes, ""),
    };
    let resolved = match failed {
        Some(("ResolvedRefs", ..)) => condition("ResolvedRefs", "ResolvedRefs", true),
        _ if state.foreign_kinds => Condition::new(
            "ResolvedRefs",
            false,
            "InvalidRouteKinds",
            format!(
                "allowedRoutes.kinds names kinds that this listener cannot take; it takes {}",
                route_kinds(listener).join(" and ")
            ),
        ),
        _ => condition("ResolvedRefs", "ResolvedRefs", true),
    };
    let programmed = match failed {
        None if has_address => Condition::new("Programmed", true, "Programmed", ""),
        None => Condition::new("Programmed", false, "Pending", "the Gateway has no address yet"),
        Some((_, _, text)) => Condition::new("Programmed", false, "Invalid", text.clone()),
    };
    ListenerStatus {
        name: listener.name.clone(),
        attached_routes: 0,
        supported_kinds: taken_kinds(listener),
        conditions: vec![
            condition("Accepted", "Accepted", true),
            condition("Conflicted", "NoConflicts", false),
            resolved,
            programmed,
        ],
    }
}

fn conditions(
    addresses: &Result<Vec<IpAddr>, (&'static str, String)>,
    listeners: &[ListenerStatus],
    sockets: &[String],
) -> Vec<Condition> {
    let is_true =
        |l: &ListenerStatus, kind: &str| l.conditions.iter().any(|c| c.kind == kind && c.holds);
    let bad: Vec<_> = listeners
        .iter()
        .filter(|l| !is_true(l, "Accepted") || !is_true(l, "ResolvedRefs"))
        .map(|l| l.name.to_string())
        .collect();
    let usable = listeners.iter().any(|l| is_true(l, "Accepted") && !is_true(l, "Conflicted"));
    let accepted = match addresses {
        Err((reason @ "UnsupportedAddress", text)) => {
            Condition::new("Accepted", false, reason, text.clone())
        }
        _ if bad.is_empty() => Condition::new("Accepted", true, "Accepted", "served by weft"),
        _ => {
            let text = format!("see the conditions of listener {}", bad.join(", "));
            Condition::new("Accepted", usable, "ListenersNotValid", text)
        }
    };
    let programmed = match addresses {
        Ok(_) if usable => {
            let text = format!("listening on {}", sockets.join(", "));
            Condition::new("Programmed", true, "Programmed", text)
        }
        Ok(_) => Condition::new("Programmed", false, "Invalid", "no listener can be served"),
        Err(("UnsupportedAddress", text)) => {
            Condition::new("Programmed", false, "Invalid", text.clone())
        }
        Err((reason, text)) => Condition::new("Programmed", false, reason, text.clone()),
    };
    vec![accepted, programmed]
}
