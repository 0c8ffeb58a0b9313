// SPDX-License-Identifier: Apache-2.0
//! Where a captured connection goes, by the address that the app dialled.
//!
//! A Service's address decides, as it does in a cluster without a mesh: whatever an HTTP client
//! writes into `Host`, it reaches the Service that it dialled. `Host` refines in two cases only:
//! several hosts share the address (it picks among those that declare the port), or the address
//! is none of the mesh's (a host of the mesh that is resolved outside, like `api.example.com` of
//! a ServiceEntry). An instance's own address leads to that instance.

use std::net::{IpAddr, SocketAddr};

use weft_base::pod_network::canonical;

use crate::{Endpoint, Host, HostPort, Protocol};

/// What a proxy's table says about addresses and names.
pub trait AddressBook {
    /// Calls `f` with each host that has this service address, in the order of their names.
    fn hosts_at<'a>(&'a self, ip: IpAddr, f: &mut dyn FnMut(&'a Host));

    /// The instance that listens at this address, and the service port that it is one of.
    fn instance_at(&self, at: SocketAddr) -> Option<Instance<'_>>;

    /// The host that a name in a request means.
    fn host_named(&self, name: &str) -> Option<&Host>;
}

/// An instance, and the port of the host that it belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Instance<'a> {
    pub host: &'a Host,
    pub port: &'a HostPort,
    pub endpoint: &'a Endpoint,
}

/// What an original destination means.
#[derive(Clone, Copy, Debug)]
pub enum Captured<'a> {
    /// A Service's port: its routes, or its backend, decide.
    Service { host: &'a Host, port: &'a HostPort },
    /// One instance, named by its own address.
    Instance(Instance<'a>),
    /// A Service's address, on a port that it does not declare.
    NoSuchPort { host: &'a Host },
    /// Nothing that the mesh knows.
    Outside,
}

// === impl Captured ===

impl Captured<'_> {
    /// What is spoken there, when somebody declared it.
    pub fn protocol(&self) -> Protocol {
        match self {
            Self::Service { port, .. } => port.protocol,
            Self::Instance(instance) => instance.port.protocol,
            Self::NoSuchPort { .. } | Self::Outside => Protocol::Detect,
        }
    }
}

/// Decides by the address alone. Of several hosts that share it, the first by name that declares
/// the port.
pub fn by_original_dst<B: AddressBook + ?Sized>(book: &B, dst: SocketAddr) -> Captured<'_> {
    let ip = canonical(dst.ip());
    let (mut service, mut other) = (None, None);
    book.hosts_at(ip, &mut |host| match port_of(host, dst.port()) {
        Some(port) if service.is_none() => service = Some((host, port)),
        Some(_) => {}
        None => other = other.or(Some(host)),
    });
    match (service, other) {
        (Some((host, port)), _) => Captured::Service { host, port },
        (None, Some(host)) => Captured::NoSuchPort { host },
        (None, None) => book
            .instance_at(SocketAddr::new(ip, dst.port()))
            .map_or(Captured::Outside, Captured::Instance),
    }
}

/// Decides for an HTTP request on a captured connection; `name` is its canonical host.
pub fn by_original_dst_and_host<'a, B: AddressBook + ?Sized>(
    book: &'a B,
    dst: SocketAddr,
    name: &str,
) -> Captured<'a> {
    let found = by_original_dst(book, dst);
    if !matches!(found, Captured::Service { .. } | Captured::Outside) {
        return found;
    }
    let Some(named) = book.host_named(name) else { return found };
    let Some(port) = port_of(named, dst.port()) else { return found };
    let may = match found {
        Captured::Service { host, .. } => {
            host.name != named.name && named.addresses.contains(&canonical(dst.ip()))
        }
        _ => port.protocol.is_http() || port.protocol == Protocol::Detect,
    };
    if may { Captured::Service { host: named, port } } else { found }
}

fn port_of(host: &Host, port: u16) -> Option<&HostPort> {
    host.ports.iter().find(|p| p.port == port)
}

#[cfg(test)]
mod tests;
