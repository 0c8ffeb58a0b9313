// SPDX-License-Identifier: Apache-2.0
//! The listeners of a Gateway, its own and those of its ListenerSets, as the one list that Gateway
//! API makes of them: which are served, and what of each is wrong. Called by `gateway`,
//! `listener_set` and routes; binds nothing and counts no routes.
//!
//! The Gateway's own come first, then the sets by age, then by name. The first that has a port, or
//! a host name on a port, keeps it. Sets that begin after the last listener that a Gateway may
//! have are not looked into.

use std::collections::HashMap;
use std::sync::Arc;

use weft_base::limits::{GATEWAY_LISTENERS_MAX, GATEWAY_PORT_BYTES_MAX};
use weft_kinds::views::View;
use weft_kinds::views::gateway::{self as view, Gateway, Listener, RouteNamespaces};
use weft_kinds::world::{KindId, Object, ObjectKey};
use weft_model::{Protocol, Root, Section, ServerTls};

use super::listener_tls::Clients;
use super::neighbours::Taken;
use super::{Env, Reader, listener_set, listener_tls};
use crate::mesh::{gateway_root, udp_gateway_root};
use crate::status::{Condition, ListenerStatus};

/// A condition's reason and a sentence.
pub(super) type Wrong = (&'static str, String);

/// One listener, and what becomes of it.
#[derive(Debug)]
pub(super) struct Judged<'w> {
    /// The Gateway, or a ListenerSet.
    pub owner: &'w Object,
    pub listener: &'w Listener,
    pub section: Result<Section, Failed>,
    /// What it names and cannot have: `ResolvedRefs` does not hold.
    pub unresolved: Option<Wrong>,
}

/// Why a listener is not served.
#[derive(Debug)]
pub(super) enum Failed {
    /// Another has its place.
    Conflict(Wrong),
    /// It is not accepted.
    Refused(Wrong),
    /// See [`Judged::unresolved`].
    Unresolved,
}

/// A Gateway with what adds to its listeners.
#[derive(Debug)]
pub(super) struct Whole<'w> {
    pub object: &'w Object,
    pub gateway: &'w Gateway,
    /// Those that it takes, in order.
    pub sets: Vec<&'w Object>,
    /// Those that it would take, had it no more listeners than it may have already.
    pub beyond: Vec<&'w Object>,
    /// What it asks of clients.
    pub clients: Clients,
}

/// A port, and whether of datagrams.
pub(super) type Place = (u16, bool);

/// Bytes of a section beside its texts, with room to spare.
const SECTION_BYTES: usize = 256;

/// Who has what on the ports of one Gateway.
#[derive(Debug, Default)]
struct Ports<'w>(HashMap<Place, Held<'w>>);

#[derive(Debug)]
struct Held<'w> {
    by: (&'w Object, &'w Listener),
    hosts: HashMap<String, (&'w Object, &'w Listener)>,
    /// Of all sections so far.
    bytes: usize,
}

// === impl Whole ===

impl<'w> Whole<'w> {
    pub fn read(reader: &Reader<'w>, object: &'w Object, gateway: &'w Gateway) -> Self {
        let mut sets = listener_set::taken(reader, object, gateway);
        let mut count = gateway.spec.listeners.len();
        let within = sets.iter().take_while(|set| {
            let fits = count < GATEWAY_LISTENERS_MAX;
            count += listeners_of(set).len();
            fits
        });
        let within = within.count();
        let beyond = sets.split_off(within);
        Self { object, gateway, sets, beyond, clients: Clients::default() }
    }

    /// A Gateway without the sets that it takes.
    pub fn alone(object: &'w Object, gateway: &'w Gateway) -> Self {
        let clients = Clients::default();
        Self { object, gateway, sets: Vec::new(), beyond: Vec::new(), clients }
    }

    /// Every listener with its owner, in the order in which they count.
    fn listeners(&self) -> impl Iterator<Item = (&'w Object, &'w Listener)> {
        let own = self.gateway.spec.listeners.iter().map(|l| (self.object, l));
        let sets = self.sets.iter().flat_map(|set| listeners_of(set).iter().map(|l| (*set, l)));
        own.chain(sets)
    }

    /// What becomes of each listener.
    pub fn judged(&self, reader: &Reader<'w>, env: &Env, taken: &Taken) -> Vec<Judged<'w>> {
        let mut ports = Ports::default();
        let mut out = Vec::new();
        for (at, (owner, listener)) in self.listeners().enumerate() {
            let place = (env.bind_port(listener.port), is_udp(listener));
            let by_others = || taken.by(place, owner.key != self.object.key);
            let protocol = match protocol(listener) {
                Err(wrong) => Err(wrong),
                Ok(_) if at >= GATEWAY_LISTENERS_MAX => {
                    let text = format!("the Gateway has {GATEWAY_LISTENERS_MAX} listeners already");
                    Err(Failed::Refused(("TooManyListeners", text)))
                }
                Ok(protocol) => match (ports.claim(place, owner, listener), by_others()) {
                    (Some(failed), _) => Err(failed),
                    (None, Some(by)) => Err(Failed::Refused(("PortUnavailable", by.to_owned()))),
                    (None, None) => Ok(protocol),
                },
            };
            let mut judged = self.judge(reader, owner, listener, protocol);
            if let Some(wrong) = judged.section.as_ref().ok().and_then(|s| ports.add(place, s)) {
                judged.section = Err(Failed::Refused(wrong));
            }
            out.push(judged);
        }
        out
    }

    fn judge(
        &self,
        reader: &Reader<'w>,
        owner: &'w Object,
        listener: &'w Listener,
        protocol: Result<Protocol, Failed>,
    ) -> Judged<'w> {
        let mut unresolved = foreign_kinds(listener);
        let section = protocol.and_then(|protocol| {
            let tls = listener_tls::served(reader, self, owner, listener, &mut unresolved)?;
            let hostname = listener.hostname.as_deref().filter(|h| !h.is_empty());
            Ok(Section {
                name: section_name(owner, listener),
                hostname: hostname.map(|h| h.to_ascii_lowercase().into()),
                protocol,
                tls,
            })
        });
        Judged { owner, listener, section, unresolved }
    }
}

/// The listeners of a ListenerSet.
fn listeners_of(set: &Object) -> &[Listener] {
    match &set.view {
        View::ListenerSet(view) => &view.spec.listeners,
        _ => &[],
    }
}

/// The listeners of a Gateway or a ListenerSet by name, with what a proxy is sent for each.
pub fn listener_roots(object: &Object) -> Vec<(Arc<str>, Root)> {
    let own = &object.key.namespace;
    let (listeners, gateway) = match &object.view {
        View::Gateway(gateway) => (&gateway.spec.listeners, object.key.clone()),
        View::ListenerSet(set) => {
            let parent = &set.spec.parent_ref;
            let ns = parent.namespace.as_deref().unwrap_or(own);
            (&set.spec.listeners, ObjectKey::new(KindId::Gateway, ns, &*parent.name))
        }
        _ => return Vec::new(),
    };
    listeners.iter().map(|l| (l.name.clone(), root_of(&gateway, l))).collect()
}

/// A listener whose TLS cannot be had: its names are answered by no other.
pub(super) fn closed(owner: &Object, listener: &Listener) -> Section {
    let hostname = listener.hostname.as_deref().filter(|h| !h.is_empty());
    Section {
        name: section_name(owner, listener),
        hostname: hostname.map(|h| h.to_ascii_lowercase().into()),
        protocol: if &*listener.protocol == "TLS" { Protocol::Tcp } else { Protocol::Http1 },
        tls: Some(ServerTls::closed()),
    }
}

/// What a proxy calls a listener: names of sets may be those of the Gateway, so they say whose.
pub(super) fn section_name(owner: &Object, listener: &Listener) -> Arc<str> {
    section_of(owner, &listener.name)
}

/// The same of a listener's name.
pub fn section_of(owner: &Object, listener: &str) -> Arc<str> {
    match owner.key.kind {
        KindId::ListenerSet => {
            let (ns, set) = (&owner.key.namespace, &owner.key.name);
            format!("listenerset/{ns}/{set}/{listener}").into()
        }
        _ => listener.into(),
    }
}

/// The root that a listener is a section of.
pub(super) fn root_of(gateway: &ObjectKey, listener: &Listener) -> Root {
    let root = if is_udp(listener) { udp_gateway_root } else { gateway_root };
    root(&gateway.namespace, &gateway.name, listener.port)
}

pub(super) fn is_udp(listener: &Listener) -> bool {
    &*listener.protocol == "UDP"
}

pub(super) fn is_passthrough(listener: &Listener) -> bool {
    listener.tls.as_ref().is_some_and(|tls| tls.mode.as_deref() == Some("Passthrough"))
}

/// Whether objects of a namespace may attach to one of `own`.
pub(super) fn in_namespaces(
    reader: &Reader<'_>,
    allowed: &RouteNamespaces,
    default: &str,
    own: &str,
    namespace: &str,
) -> bool {
    allowed.takes(default, own, namespace, || {
        Some(reader.object(KindId::Namespace, "", namespace)?.meta.labels.clone())
    })
}

// === kinds ===

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

fn foreign_kinds(listener: &Listener) -> Option<Wrong> {
    let can = route_kinds(listener);
    let foreign = listener.allowed_routes.kinds.iter().any(|k| !can.contains(&&*k.kind));
    foreign.then(|| {
        let text = format!(
            "allowedRoutes.kinds names kinds that this listener cannot take; it takes {}",
            can.join(" and ")
        );
        ("InvalidRouteKinds", text)
    })
}

fn protocol(listener: &Listener) -> Result<Protocol, Failed> {
    match &*listener.protocol {
        "HTTP" | "HTTPS" => Ok(Protocol::Http1),
        "TLS" if is_passthrough(listener) => Ok(Protocol::Tls),
        // What is inside of TLS that ends here.
        "TLS" | "TCP" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        other => {
            let text = format!(
                "protocol {other} is not served by this version of weft; HTTP, HTTPS, TLS, TCP \
                 and UDP are"
            );
            Err(Failed::Refused(("UnsupportedProtocol", text)))
        }
    }
}

// === impl Ports ===

impl<'w> Ports<'w> {
    /// Takes a place for a listener, or says who has it. Different protocols cannot share a port,
    /// unless both are told apart by TLS's server name.
    fn claim(
        &mut self,
        place: (u16, bool),
        owner: &'w Object,
        listener: &'w Listener,
    ) -> Option<Failed> {
        let named = |l: &Listener| matches!(&*l.protocol, "HTTPS" | "TLS");
        let host = listener.hostname.as_deref().unwrap_or("").to_ascii_lowercase();
        let held = self.0.entry(place).or_insert_with(|| Held {
            by: (owner, listener),
            hosts: HashMap::new(),
            bytes: 0,
        });
        let by = held.by.1;
        if by.port != listener.port {
            let text = format!("{} is bound to port {} already", called(held.by, owner), place.0);
            return Some(Failed::Refused(("PortUnavailable", text)));
        }
        if by.protocol != listener.protocol && !(named(by) && named(listener)) {
            let text = format!("{} has port {} already", called(held.by, owner), by.port);
            return Some(Failed::Conflict(("ProtocolConflict", text)));
        }
        if let Some(other) = held.hosts.get(&host) {
            let text = format!("{} has this port and host name already", called(*other, owner));
            return Some(Failed::Conflict(("HostnameConflict", text)));
        }
        held.hosts.insert(host, (owner, listener));
        None
    }

    /// Counts a section in, or says why it finds no room.
    fn add(&mut self, place: Place, section: &Section) -> Option<Wrong> {
        let held = self.0.get_mut(&place)?;
        let text = section.name.len() + section.hostname.as_ref().map_or(0, |h| h.len());
        let tls = section.tls.as_ref().map_or(0, |tls| {
            let clients = tls.clients.as_ref().map_or(0, |c| c.ca_pem.len());
            tls.chain_pem.len() + tls.key_pem.len() + clients
        });
        let bytes = held.bytes + text + tls + SECTION_BYTES;
        if bytes > GATEWAY_PORT_BYTES_MAX {
            let text = format!(
                "with it, certificates, keys and authorities of the listeners of port {} would \
                 have more than {GATEWAY_PORT_BYTES_MAX} bytes",
                held.by.1.port
            );
            return Some(("TooManyListeners", text));
        }
        held.bytes = bytes;
        None
    }
}

/// A listener as the author of another one may know it: no names of other people's sets.
fn called((by, listener): (&Object, &Listener), asks: &Object) -> String {
    match by.key.kind {
        _ if by.key == asks.key => format!("listener {}", listener.name),
        KindId::ListenerSet => "a listener of an older ListenerSet".to_owned(),
        _ => format!("listener {} of the Gateway", listener.name),
    }
}

// === impl Judged ===

impl Judged<'_> {
    pub fn is_served(&self) -> bool {
        self.section.is_ok()
    }

    pub fn status(&self, has_address: bool) -> ListenerStatus {
        let (conflict, refused) = match &self.section {
            Err(Failed::Conflict(wrong)) => (Some(wrong), Some(wrong)),
            Err(Failed::Refused(wrong)) => (None, Some(wrong)),
            Ok(_) | Err(Failed::Unresolved) => (None, None),
        };
        let accepted = no(refused, "Accepted", "Accepted");
        let conflicted = match conflict {
            Some((reason, text)) => Condition::new("Conflicted", true, reason, text.clone()),
            None => Condition::new("Conflicted", false, "NoConflicts", ""),
        };
        let resolved = no(self.unresolved.as_ref(), "ResolvedRefs", "ResolvedRefs");
        let failed = |reason, text: &str| Condition::new("Programmed", false, reason, text);
        let programmed = match &self.section {
            Err(Failed::Conflict((reason, text))) => failed(reason, text),
            Err(Failed::Refused((_, text))) => failed("Invalid", text),
            Err(Failed::Unresolved) => failed("Invalid", &resolved.message),
            Ok(_) if has_address => Condition::new("Programmed", true, "Programmed", ""),
            Ok(_) => failed("Pending", "the Gateway has no address yet"),
        };
        ListenerStatus {
            name: self.listener.name.clone(),
            attached_routes: 0,
            supported_kinds: taken_kinds(self.listener),
            conditions: vec![accepted, conflicted, resolved, programmed],
        }
    }
}

/// A condition that holds unless something is wrong.
fn no(wrong: Option<&Wrong>, kind: &'static str, yes: &'static str) -> Condition {
    match wrong {
        Some((reason, text)) => Condition::new(kind, false, reason, text.clone()),
        None => Condition::new(kind, true, yes, ""),
    }
}
