// SPDX-License-Identifier: Apache-2.0
//! The records behind a name, from one look at the World. Pure: what a look had to search for is
//! kept in the [`Directory`]. Only instances that may take new requests are answered with.

mod cluster;
mod consul;

use std::collections::HashSet;
use std::net::IpAddr;

use domain::base::iana::Rtype;
use weft_base::limits::DNS_ANSWERS_MAX;
use weft_kinds::views::View as KindView;
use weft_kinds::views::catalog::Status;
use weft_kinds::world::{Index, Instance};
use weft_registry::consul::State;
use weft_registry::objects::addresses::is_given;

use super::directory::Directory;
use super::names::{Lookup, Zone, Zones};
use crate::consul::view::View;
use crate::consul::{Who, duration};

/// Longest time that an answer may be kept, whatever somebody wrote.
const TTL_SECS_MAX: u64 = 24 * 3600;
/// The version of Kubernetes' DNS specification (`dns-version.cluster.local`).
const SPECIFICATION: &str = "1.1.0";

/// Answers and what goes with them, names as text below the zone's apex.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Whether the name exists: with it NODATA, without it NXDOMAIN.
    pub exists: bool,
    pub answers: Vec<Data>,
    /// What the alias in `answers` leads to: absolute names and their data.
    pub chain: Vec<(String, Data)>,
    /// Addresses of the targets in `answers`: absolute names.
    pub additional: Vec<(String, IpAddr)>,
    /// How long the answers may be kept, in seconds, if not as long as the zone's.
    pub ttl: Option<u32>,
    /// Something that was not in the World decided: it may change without it.
    pub passing: bool,
    /// Nearest first: not to be shuffled.
    pub in_order: bool,
}

/// One record's data; its owner is the name asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    Address(IpAddr),
    Srv {
        weight: u16,
        port: u16,
        target: String,
    },
    Cname(String),
    Ptr(String),
    Txt(String),
    /// The zone's own start of authority and name server.
    Soa,
    Ns,
}

/// What is looked at.
pub struct Look<'a> {
    pub view: &'a View,
    pub zones: &'a Zones,
    /// The Consul door's records, where there are any: prepared queries, gateways.
    pub records: Option<&'a State>,
    /// Who sees Consul's names.
    pub who: &'a Who,
    /// Who holds a prepared query's own token.
    pub holder: &'a (dyn Fn(&str) -> Who + Sync),
    /// Instances whose checks warn are left out of Consul's names.
    pub only_passing: bool,
    pub directory: &'a mut Directory,
}

/// Looks a name up. `None` when it turns out to be nobody's here.
pub fn find(look: &mut Look, zone: Zone, lookup: &Lookup, rtype: Rtype) -> Option<Found> {
    let found = looked_up(look, zone, lookup, rtype)?;
    let below = found.exists && found.answers.is_empty() && zone == Zone::Consul;
    Some(if below { below_apex(look, found, rtype) } else { found })
}

fn looked_up(look: &mut Look, zone: Zone, lookup: &Lookup, rtype: Rtype) -> Option<Found> {
    let (view, zones) = (look.view, look.zones);
    Some(match lookup {
        Lookup::Nothing => Found::default(),
        Lookup::Between => Found::nodata(),
        Lookup::Apex => apex(view, zone, zones, rtype),
        Lookup::NameServer => addresses([own_address(view)].into_iter().flatten(), rtype),
        Lookup::Version => texts([SPECIFICATION.to_owned()], rtype),
        Lookup::Address(address) => addresses([*address], rtype),
        Lookup::Node(name) => consul::node(look, name, rtype),
        Lookup::ConsulService { namespace, service, tag } => {
            consul::service(look, (namespace, service, tag.as_deref()), rtype)
        }
        Lookup::Query(name) => consul::query(look, name, rtype),
        Lookup::Connect { namespace, service } => {
            consul::connect(look, (namespace, service), rtype)
        }
        Lookup::Virtual { namespace, service } => {
            consul::virtual_address(look, (namespace, service), rtype)
        }
        Lookup::Ingress { namespace, service } => {
            consul::ingress(look, (namespace, service), rtype)
        }
        Lookup::Service { namespace, service } => {
            cluster::service(view, zones, namespace, service, rtype)
        }
        Lookup::Port { namespace, service, port, protocol } => {
            cluster::port(view, zones, (namespace, service), (port, protocol), rtype)
        }
        Lookup::Endpoint { namespace, service, address } => {
            cluster::endpoint(view, namespace, service, *address, rtype)
        }
        Lookup::Hostname { namespace, service, hostname } => {
            cluster::pod_hostname(view, namespace, service, hostname, rtype)
        }
        Lookup::Reverse(address) if is_given(*address) => {
            cluster::reverse(view, zones, *address, rtype)
        }
        Lookup::Reverse(address) => return consul::reverse(look, *address, rtype),
    })
}

/// A host of a ServiceEntry that says where it is; what has to be looked up is not ours to say.
pub fn entry(view: &View, name: &str, rtype: Rtype) -> Option<Found> {
    let objects = view.world.index(Index::ServiceEntriesByHost, name);
    let entries = objects.filter_map(|o| match &o.view {
        KindView::ServiceEntry(entry) => Some((o.meta.created_ms(), &o.key, &entry.spec)),
        _ => None,
    });
    let (_, _, spec) = entries.min_by_key(|(age, key, _)| (*age, (*key).clone()))?;
    let own: Vec<IpAddr> = spec.addresses.iter().filter_map(|a| a.parse().ok()).collect();
    let all = match own.is_empty() {
        false => own,
        true if &*spec.resolution == "STATIC" => {
            spec.endpoints.iter().filter_map(|e| e.address.parse().ok()).collect()
        }
        true => return None,
    };
    Some(addresses(all, rtype))
}

// === zones ===

fn apex(view: &View, zone: Zone, zones: &Zones, rtype: Rtype) -> Found {
    let mut found = Found::nodata();
    match rtype {
        Rtype::SOA => found.answers.push(Data::Soa),
        Rtype::NS => {
            found.answers.push(Data::Ns);
            found.additional.extend(own_address(view).map(|a| (name_server(zone, zones), a)));
        }
        Rtype::ANY => found.answers.extend([Data::Soa, Data::Ns]),
        _ => {}
    }
    found
}

/// As Consul answers for every name of its zone: with the apex's own records, under its name.
fn below_apex(look: &Look, mut found: Found, rtype: Rtype) -> Found {
    let data = match rtype {
        Rtype::SOA => Data::Soa,
        Rtype::NS => Data::Ns,
        _ => return found,
    };
    found.chain.push((apex_name(Zone::Consul, look.zones).to_owned(), data));
    if rtype == Rtype::NS {
        let server = name_server(Zone::Consul, look.zones);
        found.additional.extend(own_address(look.view).map(|address| (server, address)));
    }
    found
}

/// `consul`, the cluster domain, or where reverse names hang.
pub fn apex_name(zone: Zone, zones: &Zones) -> &str {
    match zone {
        Zone::Consul => "consul",
        Zone::Cluster => &zones.cluster_domain,
        Zone::ReverseV4 => "in-addr.arpa",
        Zone::ReverseV6 => "ip6.arpa",
    }
}

pub fn name_server(zone: Zone, zones: &Zones) -> String {
    match zone {
        Zone::Consul => "ns.consul".to_owned(),
        Zone::Cluster | Zone::ReverseV4 | Zone::ReverseV6 => format!("ns.{}", zones.cluster_domain),
    }
}

fn own_address(view: &View) -> Option<IpAddr> {
    view.own.node.address.parse().ok()
}

// === helpers ===

impl Found {
    /// The alias that this answer ends with, when another type was asked for.
    pub fn loose_end(&self, rtype: Rtype) -> Option<String> {
        if matches!(rtype, Rtype::CNAME | Rtype::ANY) {
            return None;
        }
        let last = self.chain.last().map(|(_, data)| data).or_else(|| self.answers.last());
        match last {
            Some(Data::Cname(target)) => Some(target.clone()),
            _ => None,
        }
    }

    fn nodata() -> Self {
        Self { exists: true, ..Self::default() }
    }

    fn alias(name: &str) -> Self {
        Self { exists: true, answers: vec![Data::Cname(name.to_owned())], ..Self::default() }
    }
}

/// Whether an instance is in the answers to Consul's names.
fn shows(instance: &Instance, only_passing: bool) -> bool {
    takes(instance) && (!only_passing || instance.health == Status::Passing)
}

/// Whether an instance may take new requests.
fn takes(instance: &Instance) -> bool {
    instance.health != Status::Critical && !instance.draining
}

/// Addresses of the family asked for, each once, as many as an answer may have.
fn addresses(all: impl IntoIterator<Item = IpAddr>, rtype: Rtype) -> Found {
    let mut found = Found::nodata();
    let mut seen = HashSet::new();
    for address in all {
        let wanted = match rtype {
            Rtype::A => address.is_ipv4(),
            Rtype::AAAA => address.is_ipv6(),
            Rtype::ANY => true,
            _ => false,
        };
        if wanted && seen.insert(address) {
            found.answers.push(Data::Address(address));
        }
        if found.answers.len() == DNS_ANSWERS_MAX {
            break;
        }
    }
    found
}

fn texts(all: impl IntoIterator<Item = String>, rtype: Rtype) -> Found {
    let mut found = Found::nodata();
    if matches!(rtype, Rtype::TXT | Rtype::ANY) {
        found.answers.extend(all.into_iter().map(Data::Txt));
    }
    found
}

/// A duration as Go writes it, in whole seconds; nothing when it is none.
fn ttl_of(text: &str) -> Option<u32> {
    let secs = duration::parse(text)?.as_secs().min(TTL_SECS_MAX);
    u32::try_from(secs).ok()
}
