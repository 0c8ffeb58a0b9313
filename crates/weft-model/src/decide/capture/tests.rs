// SPDX-License-Identifier: Apache-2.0
//! Every kind of address, with and without a `Host` that refines it.

use super::*;
use crate::{Health, Labels, Locality, Transport};

struct Book {
    hosts: Vec<Host>,
    instances: Vec<(usize, Endpoint)>,
}

impl AddressBook for Book {
    fn hosts_at<'a>(&'a self, ip: IpAddr, f: &mut dyn FnMut(&'a Host)) {
        self.hosts.iter().filter(|h| h.addresses.contains(&ip)).for_each(f);
    }

    fn instance_at(&self, at: SocketAddr) -> Option<Instance<'_>> {
        let (host, endpoint) = self.instances.iter().find(|(_, e)| e.address == at)?;
        let host = &self.hosts[*host];
        Some(Instance { host, port: &host.ports[0], endpoint })
    }

    fn host_named(&self, name: &str) -> Option<&Host> {
        self.hosts.iter().find(|h| &*h.name == name)
    }
}

fn host(name: &str, addresses: &[&str], port: u16, protocol: Protocol) -> Host {
    Host {
        name: name.into(),
        aliases: Vec::new(),
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        ports: vec![HostPort {
            port,
            name: "p".into(),
            protocol,
            backend: format!("backend/{port}").into(),
            upstream_port: None,
        }],
    }
}

fn book() -> Book {
    let endpoint = Endpoint {
        id: "db-0".into(),
        address: "10.244.0.9:5432".parse().unwrap(),
        labels: Labels::new(),
        locality: Locality::default(),
        weight: 1,
        health: Health::Healthy,
        identity: None,
        transport: Transport::MeshH1,
        workload: "db".into(),
        mesh_address: None,
    };
    Book {
        hosts: vec![
            host("user", &["10.96.0.1", "fd00::1"], 80, Protocol::Http1),
            host("db", &[], 5432, Protocol::Tcp),
            host("a.shared", &["10.96.0.9"], 80, Protocol::Http1),
            host("b.shared", &["10.96.0.9"], 80, Protocol::Http1),
            host("b.shared.more", &["10.96.0.9"], 81, Protocol::Http1),
            host("api.example.com", &[], 80, Protocol::Http1),
            host("raw.example.com", &[], 80, Protocol::Tcp),
        ],
        instances: vec![(1, endpoint)],
    }
}

fn shown(found: Captured<'_>) -> String {
    match found {
        Captured::Service { host, port } => format!("{}:{}", host.name, port.port),
        Captured::Instance(i) => format!("{} of {}", i.endpoint.id, i.host.name),
        Captured::NoSuchPort { host } => format!("no such port of {}", host.name),
        Captured::Outside => "outside".into(),
    }
}

#[test]
fn addresses_decide() {
    let book = book();
    for (dst, expected) in [
        ("10.96.0.1:80", "user:80"),
        ("[fd00::1]:80", "user:80"),
        ("[::ffff:10.96.0.1]:80", "user:80"),
        ("10.96.0.1:81", "no such port of user"),
        ("10.96.0.9:80", "a.shared:80"),
        ("10.96.0.9:81", "b.shared.more:81"),
        ("10.244.0.9:5432", "db-0 of db"),
        ("[::ffff:10.244.0.9]:5432", "db-0 of db"),
        // The same pod by its other address.
        ("[fd00:7766::af4:9]:5432", "db-0 of db"),
        ("[fd00:7766::af4:a]:5432", "outside"),
        ("10.244.0.9:5433", "outside"),
        ("192.0.2.1:80", "outside"),
    ] {
        assert_eq!(shown(by_original_dst(&book, dst.parse().unwrap())), expected, "{dst}");
    }
    let db = by_original_dst(&book, "10.244.0.9:5432".parse().unwrap());
    assert_eq!(db.protocol(), Protocol::Tcp);
    let nobody = by_original_dst(&book, "192.0.2.1:80".parse().unwrap());
    assert_eq!(nobody.protocol(), Protocol::Detect);
}

#[test]
fn host_refines_what_the_address_leaves_open_and_nothing_else() {
    let book = book();
    for (dst, name, expected) in [
        // The Service that was dialled stays, whatever the client says.
        ("10.96.0.1:80", "user", "user:80"),
        ("10.96.0.1:80", "a.shared", "user:80"),
        ("10.96.0.1:80", "example.org", "user:80"),
        // Hosts that share an address.
        ("10.96.0.9:80", "b.shared", "b.shared:80"),
        ("10.96.0.9:80", "elsewhere", "a.shared:80"),
        // It does not declare the port.
        ("10.96.0.9:80", "b.shared.more", "a.shared:80"),
        // Known by name, resolved elsewhere.
        ("192.0.2.1:80", "api.example.com", "api.example.com:80"),
        ("192.0.2.1:80", "raw.example.com", "outside"),
        ("192.0.2.1:8080", "api.example.com", "outside"),
        ("192.0.2.1:80", "example.org", "outside"),
        ("10.244.0.9:5432", "user", "db-0 of db"),
        ("10.96.0.1:81", "user", "no such port of user"),
    ] {
        let found = by_original_dst_and_host(&book, dst.parse().unwrap(), name);
        assert_eq!(shown(found), expected, "{dst} with host {name}");
    }
}
