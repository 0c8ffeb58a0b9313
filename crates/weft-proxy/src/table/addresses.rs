// SPDX-License-Identifier: Apache-2.0
//! Which hosts have an address, and which instance listens at one. The builder keeps it in step
//! with the hosts; captured connections ask. Never changes once published.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use weft_model::decide::{AddressBook, Instance};
use weft_model::{Endpoint, Host};

use super::{BackendEntry, HostEntry, Table};

#[derive(Clone, Debug, Default)]
pub struct Addresses {
    /// Canonical names, in their order.
    hosts: imbl::HashMap<IpAddr, Vec<Arc<str>>>,
    instances: imbl::HashMap<SocketAddr, Vec<Place>>,
}

/// A backend that an instance belongs to. Of several, the first stands for it: that of a headless
/// Service, since its clients learn instances' addresses, then the first by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    addressed: bool,
    host: Arc<str>,
    backend: Arc<str>,
}

// === impl Addresses ===

impl Addresses {
    pub fn hosts(&self, ip: IpAddr) -> &[Arc<str>] {
        self.hosts.get(&ip).map_or(&[], Vec::as_slice)
    }

    /// The hosts that have an instance at an address, whatever its port.
    pub fn of_instances(&self, ip: IpAddr) -> impl Iterator<Item = &Arc<str>> {
        let there = self.instances.iter().filter(move |(at, _)| at.ip() == ip);
        there.flat_map(|(_, places)| places.iter().map(|p| &p.host))
    }

    /// `instances` says whether single instances are asked for at all.
    pub fn add(&mut self, entry: &HostEntry, instances: bool) {
        let name = &entry.host.name;
        for ip in &entry.host.addresses {
            let names = self.hosts.entry(*ip).or_default();
            if let Err(at) = names.binary_search(name) {
                names.insert(at, name.clone());
            }
        }
        if !instances {
            return;
        }
        for (place, at) in places(entry) {
            let known = self.instances.entry(at).or_default();
            if let Err(index) = known.binary_search(&place) {
                known.insert(index, place);
            }
        }
    }

    pub fn remove(&mut self, entry: &HostEntry) {
        for ip in &entry.host.addresses {
            if let Some(names) = self.hosts.get_mut(ip) {
                names.retain(|n| *n != entry.host.name);
                if names.is_empty() {
                    self.hosts.remove(ip);
                }
            }
        }
        if self.instances.is_empty() {
            return;
        }
        for (place, at) in places(entry) {
            if let Some(known) = self.instances.get_mut(&at) {
                known.retain(|p| *p != place);
                if known.is_empty() {
                    self.instances.remove(&at);
                }
            }
        }
    }
}

/// Every instance of a host, once per port that it serves.
fn places(entry: &HostEntry) -> impl Iterator<Item = (Place, SocketAddr)> {
    let addressed = !entry.host.addresses.is_empty();
    entry.host.ports.iter().flat_map(move |port| {
        let place =
            Place { addressed, host: entry.host.name.clone(), backend: port.backend.clone() };
        instances(entry, &port.backend).map(move |e| (place.clone(), e.address))
    })
}

/// The instances of a backend, be it one that fails.
fn instances<'a>(entry: &'a HostEntry, backend: &'a str) -> impl Iterator<Item = &'a Endpoint> {
    let made = entry.backends.get(backend).map(|b: &Arc<BackendEntry>| &b.endpoints);
    let failing = entry.failing.iter().filter(move |(child, _)| **child == *backend);
    made.into_iter().flatten().map(|e| &*e.endpoint).chain(failing.map(|(_, e)| &**e))
}

impl AddressBook for Table {
    fn hosts_at<'a>(&'a self, ip: IpAddr, f: &mut dyn FnMut(&'a Host)) {
        let entries = self.addresses.hosts(ip).iter().filter_map(|name| self.hosts.get(name));
        entries.for_each(|entry| f(&entry.host));
    }

    fn instance_at(&self, at: SocketAddr) -> Option<Instance<'_>> {
        let place = self.addresses.instances.get(&at)?.first()?;
        let entry = self.hosts.get(&place.host)?;
        let port = entry.host.ports.iter().find(|p| p.backend == place.backend)?;
        let endpoint = instances(entry, &place.backend).find(|e| e.address == at)?;
        Some(Instance { host: &entry.host, port, endpoint })
    }

    fn host_named(&self, name: &str) -> Option<&Host> {
        self.host(name).map(|entry| &entry.host)
    }
}
