// SPDX-License-Identifier: Apache-2.0
//! GatewayClass and Gateway: one root per port with its listeners, and those of ListenerSets, as
//! sections, and their status. Routes are compiled by their own units; how many attached is
//! counted by the compiler.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use weft_kinds::views::View;
use weft_kinds::views::gateway::{self as view, Gateway, GatewayClass};
use weft_kinds::world::{Instance, KindId, Object, ObjectKey};
use weft_model::{Certificate, GatewayListener, ListenerKind, Resource, Root, Section};
use weft_xds::NodeId;

use super::listeners::{self, Failed, Judged, Whole, Wrong, is_udp};
use super::{Env, Output, Reader};
use super::{edge, listener_set, listener_tls, neighbours, origin, proxy_header};
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
    "GatewayAddressEmpty",
    "GatewayBackendClientCertificate",
    "GatewayFrontendClientCertificateValidation",
    "GatewayFrontendClientCertificateValidationInsecureFallback",
    "GatewayHTTPListenerIsolation",
    "GatewayHTTPSListenerDetectMisdirectedRequests",
    "GatewayInfrastructure",
    "GatewayPort8080",
    "GatewayStaticAddresses",
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
    "ListenerSet",
    "Mesh",
    "ReferenceGrant",
    "TCPRoute",
    "TLSRoute",
    "TLSRouteModeMixed",
    "TLSRouteModeTerminate",
    "UDPRoute",
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

pub(super) fn compile<'w>(
    reader: &Reader<'w>,
    env: &Env,
    object: &'w Object,
    gateway: &'w Gateway,
) -> Output {
    let mut out = Output::default();
    if !is_ours(reader, gateway) {
        return out;
    }
    let (ns, name) = (&*object.key.namespace, &*object.key.name);
    out.node = NodeId::gateway(ns, name).ok().map(|n| (n, object.meta.labels.clone()));
    let addresses = addresses(object, gateway);
    let whole = Whole::read(reader, object, gateway);
    let taken = neighbours::taken(reader, env, &whole, &addresses);
    let judged = whole.judged(reader, env, &taken);
    out.told = listener_set::statuses(&whole, &judged, &addresses);
    let mut header = proxy_header::read(object, gateway);
    let shown = listener_tls::shown(reader, object, gateway);
    let given = Given {
        ips: addresses.as_deref().unwrap_or_default(),
        edge: edge::read(object, &mut header.issues),
        header: &header,
        certificate: shown.as_ref().and_then(|shown| shown.as_ref().ok()),
    };
    let sockets = emit(env, object, &judged, &given, &mut out);
    let listeners: Vec<ListenerStatus> = judged
        .iter()
        .filter(|j| j.owner.key == object.key)
        .map(|j| j.status(addresses.is_ok()))
        .collect();
    let usable =
        judged.iter().any(|j| !matches!(j.section, Err(Failed::Conflict(_) | Failed::Refused(_))));
    let mut conditions = conditions(&addresses, &listeners, usable, &sockets);
    conditions.extend(shown.as_ref().map(|shown| match shown {
        Ok(_) => Condition::new("ResolvedRefs", true, "ResolvedRefs", ""),
        Err((reason, text)) => Condition::new("ResolvedRefs", false, reason, text.clone()),
    }));
    conditions.extend(insecure(gateway));
    conditions.extend(Condition::warning(&header.issues));
    let sets: BTreeSet<&ObjectKey> =
        judged.iter().filter(|j| j.is_served()).map(|j| &j.owner.key).collect();
    let listener_sets = sets.iter().filter(|key| key.kind == KindId::ListenerSet).count();
    let body = StatusBody::Gateway {
        conditions,
        addresses: addresses.unwrap_or_default(),
        listeners,
        listener_sets,
    };
    let (object, generation) = (object.key.clone(), object.meta.generation);
    out.status = Some(StatusUpdate { object, generation, body });
    out
}

/// What holds for every port of a Gateway.
struct Given<'a> {
    ips: &'a [IpAddr],
    header: &'a proxy_header::Accepted,
    edge: weft_model::Edge,
    certificate: Option<&'a Certificate>,
}

/// One root for each port; returns the sockets, for people.
fn emit(
    env: &Env,
    object: &Object,
    judged: &[Judged<'_>],
    given: &Given<'_>,
    out: &mut Output,
) -> Vec<String> {
    let mut ports: BTreeMap<(u16, bool), (Root, Vec<Section>)> = BTreeMap::new();
    for j in judged {
        let section = match &j.section {
            Ok(section) => section.clone(),
            // Its names stay its own: a wider listener is another owner's.
            Err(Failed::Unresolved) => listeners::closed(j.owner, j.listener),
            Err(_) => continue,
        };
        let at = (j.listener.port, is_udp(j.listener));
        let root = || (listeners::root_of(&object.key, j.listener), Vec::new());
        ports.entry(at).or_insert_with(root).1.push(section);
    }
    ports.retain(|_, (_, sections)| !sections.iter().all(Section::is_closed));
    let mut sockets = Vec::new();
    for ((port, udp), (root, sections)) in ports.into_iter().filter(|_| !given.ips.is_empty()) {
        let bind: Vec<SocketAddr> =
            given.ips.iter().map(|ip| SocketAddr::new(*ip, env.bind_port(port))).collect();
        let socket = |at: &SocketAddr| if udp { format!("{at}/udp") } else { at.to_string() };
        sockets.extend(bind.iter().map(socket));
        let kind = GatewayListener {
            proxy_header: given.header.of(&sections),
            edge: given.edge,
            backend_certificate: given.certificate.cloned().map(Box::new),
            ..GatewayListener::new(bind, sections)
        };
        let listener = weft_model::Listener {
            name: root.name().clone(),
            kind: ListenerKind::Gateway(kind),
            origin: Some(origin(object, "spec.listeners")),
        };
        out.add(root.own(), Resource::Listener(listener));
    }
    sockets
}

/// Whether a Gateway is of a class of ours.
pub(super) fn is_ours(reader: &Reader<'_>, gateway: &Gateway) -> bool {
    let class = reader.object(KindId::GatewayClass, "", &gateway.spec.gateway_class_name);
    class.is_some_and(
        |c| matches!(&c.view, View::GatewayClass(c) if &*c.spec.controller_name == CONTROLLER),
    )
}

/// The Gateway of ours that a route's parent is, or is a ListenerSet of.
pub(super) fn behind<'w>(
    reader: &Reader<'w>,
    namespace: &str,
    parent: &view::ParentRef,
) -> Option<&'w ObjectKey> {
    let ns = parent.namespace.as_deref().unwrap_or(namespace);
    if parent.is_listener_set() {
        let object = reader.object(KindId::ListenerSet, ns, &parent.name)?;
        let View::ListenerSet(set) = &object.view else { return None };
        let (gateway, view) = listener_set::parent(reader, object, set)?.ok()?;
        return listener_set::is_taken(reader, (gateway, view), object).then_some(&gateway.key);
    }
    let found = reader.object(KindId::Gateway, ns, &parent.name).filter(|_| parent.is_gateway())?;
    matches!(&found.view, View::Gateway(view) if is_ours(reader, view)).then_some(&found.key)
}

// === addresses ===

/// The addresses that a Gateway binds, or a condition's reason and a sentence.
pub(super) type Addresses = Result<Vec<IpAddr>, Wrong>;

/// The addresses to bind: asked for in the spec, else, or where that has no value, given by
/// annotation.
pub(super) fn addresses(object: &Object, gateway: &Gateway) -> Addresses {
    if gateway.spec.infrastructure.parameters_ref.is_some() {
        let text = "spec.infrastructure.parametersRef: weft reads no parameters; leave it out";
        return Err(("InvalidParameters", text.to_owned()));
    }
    let asked = &gateway.spec.addresses;
    let mut out = Vec::new();
    for (i, address) in asked.iter().enumerate() {
        out.extend(asked_address(i, address)?);
    }
    if asked.is_empty() || out.len() < asked.len() {
        let given = object.meta.annotation(ADDRESS_ANNOTATION).and_then(|a| a.parse().ok());
        let none = || ("AddressNotAssigned", "no address has been assigned yet".to_owned());
        let given = given.ok_or_else(none)?;
        if !out.contains(&given) {
            out.push(given);
        }
    }
    Ok(out)
}

/// Why a Gateway is not accepted as a whole.
pub(super) fn rejection(addresses: &Addresses) -> Option<&Wrong> {
    let wrong = addresses.as_ref().err()?;
    matches!(wrong.0, "UnsupportedAddress" | "InvalidParameters").then_some(wrong)
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

fn asked_address(i: usize, address: &view::Address) -> Result<Option<IpAddr>, Wrong> {
    if address.kind.as_deref().is_some_and(|k| k != "IPAddress") {
        let text = format!("spec.addresses[{i}].type: only IPAddress is served");
        return Err(("UnsupportedAddress", text));
    }
    if address.value.is_empty() {
        return Ok(None);
    }
    address.value.parse().map(Some).map_err(|_| {
        let text = format!("spec.addresses[{i}].value: {:?} is no address", address.value);
        ("AddressNotUsable", text)
    })
}

// === status ===

/// Clients that are let in without a certificate that holds are worth a condition of their own.
fn insecure(gateway: &Gateway) -> Option<Condition> {
    let ports = listener_tls::insecure_ports(gateway);
    let named = |port: &u16| match port {
        0 => "every other port".to_owned(),
        port => format!("port {port}"),
    };
    let text: Vec<String> = ports.iter().map(named).collect();
    (!ports.is_empty()).then(|| {
        let text = format!("AllowInsecureFallback: {} asks and lets in anybody", text.join(", "));
        Condition::new("InsecureFrontendValidationMode", true, "ConfigurationChanged", text)
    })
}

fn conditions(
    addresses: &Addresses,
    listeners: &[ListenerStatus],
    usable: bool,
    sockets: &[String],
) -> Vec<Condition> {
    let is_true =
        |l: &ListenerStatus, kind: &str| l.conditions.iter().any(|c| c.kind == kind && c.holds);
    let bad: Vec<_> = listeners
        .iter()
        .filter(|l| !is_true(l, "Accepted") || !is_true(l, "ResolvedRefs"))
        .map(|l| l.name.to_string())
        .collect();
    let rejected = rejection(addresses);
    let accepted = match rejected {
        Some((reason, text)) => Condition::new("Accepted", false, reason, text.clone()),
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
        Err((_, text)) if rejected.is_some() => {
            Condition::new("Programmed", false, "Invalid", text.clone())
        }
        Err((reason, text)) => Condition::new("Programmed", false, reason, text.clone()),
    };
    vec![accepted, programmed]
}
