// SPDX-License-Identifier: Apache-2.0
//! What a DNS name asks for, in both naming schemes. Pure: looks at labels, not at the World.
//!
//! Consul: `[tag.]web.service[.dc1].consul`, `_web._tcp.service.consul`,
//! `web.service.<ns>.ns[.dc1.dc].consul`, `<node>.node[.dc1].consul`, `<hex ip>.addr.dc1.consul`,
//! `<query>.query.consul`, `web.connect.consul`, `web.virtual.consul`, `web.ingress.consul`; of
//! ports also `_web._tcp[.dc1].consul`.
//! Kubernetes: `web.shop.svc.cluster.local`, `_http._tcp.web.shop.svc.cluster.local`,
//! `10-0-0-1.web.shop.svc.cluster.local`, `web-0.web.shop.svc.cluster.local` (a pod's hostname),
//! `10-0-0-1.shop.pod.cluster.local`. Reverse: `1.0.244.10.in-addr.arpa`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use domain::base::iana::Rtype;

use crate::consul::view::DEFAULT_NAMESPACE;

/// The zones that are answered for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zones {
    pub datacenter: String,
    /// `cluster.local`.
    pub cluster_domain: String,
}

// === impl Zones ===

impl Zones {
    /// Whether a name is in one of them that nobody else has: names of addresses are everybody's.
    /// Labels in lower case, without the root.
    pub fn hold(&self, labels: &[&str]) -> bool {
        let zone = parse(labels, self, Rtype::A).map(|(zone, _)| zone);
        matches!(zone, Some(Zone::Consul | Zone::Cluster))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Zone {
    Consul,
    Cluster,
    ReverseV4,
    ReverseV6,
}

/// What a name stands for, if anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    Apex,
    /// `ns.<zone>`: this server.
    NameServer,
    ConsulService {
        namespace: String,
        service: String,
        tag: Option<String>,
    },
    Node(String),
    /// A prepared query, by name or id.
    Query(String),
    /// What speaks Connect for a service.
    Connect {
        namespace: String,
        service: String,
    },
    /// A service's one address as a whole.
    Virtual {
        namespace: String,
        service: String,
    },
    /// The gateways that lead to a service from outside.
    Ingress {
        namespace: String,
        service: String,
    },
    /// Which naming scheme of Kubernetes this is.
    Version,
    Address(IpAddr),
    Service {
        namespace: String,
        service: String,
    },
    /// `_port._protocol` of a Kubernetes service.
    Port {
        namespace: String,
        service: String,
        port: String,
        protocol: String,
    },
    /// One instance of a Kubernetes service, by its dashed address.
    Endpoint {
        namespace: String,
        service: String,
        address: IpAddr,
    },
    /// One instance of a Kubernetes service, by its pod's hostname.
    Hostname {
        namespace: String,
        service: String,
        hostname: String,
    },
    /// Whose address this is.
    Reverse(IpAddr),
    /// A name between: it has no records, names below it may.
    Between,
    Nothing,
}

/// The zone of a name and what it asks of it; `None` outside our zones. Labels come from the
/// left, in lower case, without the root. What is asked for decides about one form of name alone.
pub fn parse(labels: &[&str], zones: &Zones, rtype: Rtype) -> Option<(Zone, Lookup)> {
    let domain: Vec<&str> = zones.cluster_domain.split('.').collect();
    if let Some(rest) = labels.strip_suffix(domain.as_slice()) {
        return Some((Zone::Cluster, cluster(rest)));
    }
    if labels.last() == Some(&"arpa") {
        let (zone, address) = reverse(labels)?;
        return Some((zone, Lookup::Reverse(address)));
    }
    let rest = labels.strip_suffix(&["consul"])?;
    Some((Zone::Consul, consul(rest, &zones.datacenter, rtype == Rtype::SRV)))
}

fn consul(labels: &[&str], datacenter: &str, asks_ports: bool) -> Lookup {
    let labels = match labels {
        [] => return Lookup::Apex,
        ["ns"] => return Lookup::NameServer,
        [rest @ .., dc, "dc"] if *dc == datacenter => rest,
        [rest @ .., dc] if *dc == datacenter => rest,
        other => other,
    };
    match labels {
        []
        | [
            "service" | "node" | "addr" | "query" | "connect" | "virtual" | "ingress" | "ns" | "dc",
        ] => Lookup::Between,
        [rest @ .., "service"] => consul_service(rest, DEFAULT_NAMESPACE),
        [rest @ .., "service", ns, "ns"] => consul_service(rest, ns),
        [_, "ns"] => Lookup::Between,
        // A node's name may have dots.
        [name @ .., "node"] => Lookup::Node(name.join(".")),
        [query @ .., "query"] => Lookup::Query(prepared(query)),
        [rest @ .., kind @ ("connect" | "virtual" | "ingress"), ns, "ns"] => mesh(rest, kind, ns),
        [rest @ .., kind @ ("connect" | "virtual" | "ingress")] => {
            mesh(rest, kind, DEFAULT_NAMESPACE)
        }
        [hex, "addr"] => hex_address(hex).map_or(Lookup::Nothing, Lookup::Address),
        // Who asks for ports may leave the word `service` out.
        [name, tag] if is_port(name, tag) && asks_ports => {
            consul_service(&[name, tag], DEFAULT_NAMESPACE)
        }
        [name, tag, ns, "ns"] if is_port(name, tag) && asks_ports => {
            consul_service(&[name, tag], ns)
        }
        _ => Lookup::Nothing,
    }
}

/// `NAME.query`, whose name may have dots, and `_NAME._ANY.query`.
fn prepared(labels: &[&str]) -> String {
    match labels {
        [name, any] if is_port(name, any) => name.trim_start_matches('_').to_owned(),
        _ => labels.join("."),
    }
}

/// The first two labels of RFC 2782: `_NAME._PROTOCOL`.
fn is_port(name: &str, protocol: &str) -> bool {
    name.starts_with('_') && protocol.starts_with('_')
}

fn mesh(labels: &[&str], kind: &str, namespace: &str) -> Lookup {
    let [service] = labels else { return Lookup::Nothing };
    let (namespace, service) = (namespace.to_owned(), (*service).to_owned());
    match kind {
        "connect" => Lookup::Connect { namespace, service },
        "virtual" => Lookup::Virtual { namespace, service },
        _ => Lookup::Ingress { namespace, service },
    }
}

fn consul_service(labels: &[&str], namespace: &str) -> Lookup {
    let (service, tag) = match labels {
        [] => return Lookup::Between,
        [service] => (*service, None),
        // RFC 2782, as Consul reads it: `_web._tcp` is any instance, `_web._tag` those with the
        // tag, which any other protocol is too.
        [service, tag] if is_port(service, tag) => {
            let tag = tag.trim_start_matches('_');
            let tag = (tag != "tcp").then(|| tag.to_owned());
            (service.trim_start_matches('_'), tag)
        }
        [tag @ .., service] => (*service, Some(tag.join("."))),
    };
    Lookup::ConsulService { namespace: namespace.to_owned(), service: service.to_owned(), tag }
}

fn cluster(labels: &[&str]) -> Lookup {
    let own = |ns: &str, service: &str| (ns.to_owned(), service.to_owned());
    match labels {
        [] => Lookup::Apex,
        ["ns"] => Lookup::NameServer,
        ["dns-version"] => Lookup::Version,
        ["svc" | "pod"] | [_, "svc" | "pod"] => Lookup::Between,
        [address, _, "pod"] => dashed_address(address).map_or(Lookup::Nothing, Lookup::Address),
        [service, ns, "svc"] => {
            let (namespace, service) = own(ns, service);
            Lookup::Service { namespace, service }
        }
        ["_tcp" | "_udp" | "_sctp", _, _, "svc"] => Lookup::Between,
        [port, protocol, service, ns, "svc"] if port.starts_with('_') => {
            let (namespace, service) = own(ns, service);
            match protocol.strip_prefix('_') {
                Some(protocol) => Lookup::Port {
                    namespace,
                    service,
                    port: port.trim_start_matches('_').to_owned(),
                    protocol: protocol.to_owned(),
                },
                None => Lookup::Nothing,
            }
        }
        [endpoint, service, ns, "svc"] => {
            let (namespace, service) = own(ns, service);
            match dashed_address(endpoint) {
                Some(address) => Lookup::Endpoint { namespace, service, address },
                None => Lookup::Hostname { namespace, service, hostname: (*endpoint).to_owned() },
            }
        }
        _ => Lookup::Nothing,
    }
}

/// `4.3.2.1.in-addr.arpa`, and 32 digits before `ip6.arpa`.
fn reverse(labels: &[&str]) -> Option<(Zone, IpAddr)> {
    match labels {
        [d, c, b, a, "in-addr", "arpa"] => {
            let v4: Ipv4Addr = format!("{a}.{b}.{c}.{d}").parse().ok()?;
            Some((Zone::ReverseV4, v4.into()))
        }
        [digits @ .., "ip6", "arpa"] if digits.len() == 32 => {
            let single = digits.iter().all(|d| d.len() == 1);
            let hex: String = digits.iter().rev().copied().collect();
            let n = u128::from_str_radix(&hex, 16).ok().filter(|_| single)?;
            Some((Zone::ReverseV6, Ipv6Addr::from(n).into()))
        }
        _ => None,
    }
}

/// Consul's `7f000001` and its 32-digit form.
pub fn hex_address(hex: &str) -> Option<IpAddr> {
    if !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    match hex.len() {
        8 => u32::from_str_radix(hex, 16).ok().map(|n| Ipv4Addr::from(n).into()),
        32 => u128::from_str_radix(hex, 16).ok().map(|n| Ipv6Addr::from(n).into()),
        _ => None,
    }
}

pub fn to_hex(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => format!("{:08x}", u32::from(v4)),
        IpAddr::V6(v6) => format!("{:032x}", u128::from(v6)),
    }
}

/// Kubernetes' `10-0-0-1`, `fd00--1`.
pub fn dashed_address(text: &str) -> Option<IpAddr> {
    let v4: Option<Ipv4Addr> = text.replace('-', ".").parse().ok();
    v4.map(IpAddr::V4).or_else(|| text.replace('-', ":").parse::<Ipv6Addr>().ok().map(Into::into))
}

pub fn to_dashed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string().replace('.', "-"),
        // Written out: a leading or trailing dash is no host name.
        IpAddr::V6(v6) => v6.segments().map(|s| format!("{s:x}")).as_slice().join("-"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, expect: Option<Lookup>) {
        let zones = Zones { datacenter: "dc1".into(), cluster_domain: "cluster.local".into() };
        let labels: Vec<&str> = name.split('.').collect();
        let found = parse(&labels, &zones, Rtype::A).map(|(_, lookup)| lookup);
        assert_eq!(found, expect, "{name}");
    }

    fn consul(service: &str, ns: &str, tag: Option<&str>) -> Option<Lookup> {
        Some(Lookup::ConsulService {
            namespace: ns.into(),
            service: service.into(),
            tag: tag.map(Into::into),
        })
    }

    #[test]
    fn consuls_names() {
        check("web.service.consul", consul("web", "default", None));
        check("web.service.dc1.consul", consul("web", "default", None));
        check("v1.web.service.consul", consul("web", "default", Some("v1")));
        check("_web._tcp.service.consul", consul("web", "default", None));
        check("_web._v1.service.dc1.consul", consul("web", "default", Some("v1")));
        check("_web._udp.service.consul", consul("web", "default", Some("udp")));
        check("web.service.shop.ns.consul", consul("web", "shop", None));
        check("_web._tcp.service.shop.ns.dc1.dc.consul", consul("web", "shop", None));
        check("n1.node.consul", Some(Lookup::Node("n1".into())));
        check("a.b.node.dc1.consul", Some(Lookup::Node("a.b".into())));
        check("7f000001.addr.dc1.consul", Some(Lookup::Address([127, 0, 0, 1].into())));
        check("near.web.query.consul", Some(Lookup::Query("near.web".into())));
        check("web.query.dc1.consul", Some(Lookup::Query("web".into())));
        check("_web._tcp.query.dc1.dc.consul", Some(Lookup::Query("web".into())));
        check("_web._any.query.consul", Some(Lookup::Query("web".into())));
        let (namespace, service) = (String::from("default"), String::from("web"));
        let of = Lookup::Connect { namespace: namespace.clone(), service: service.clone() };
        check("web.connect.dc1.consul", Some(of));
        let of = Lookup::Ingress { namespace, service: service.clone() };
        check("web.ingress.consul", Some(of));
        let of = Lookup::Virtual { namespace: "shop".into(), service };
        check("web.virtual.shop.ns.consul", Some(of));
        check("a.web.virtual.consul", Some(Lookup::Nothing));
        check("query.consul", Some(Lookup::Between));
        check("consul", Some(Lookup::Apex));
        check("service.consul", Some(Lookup::Between));
        check("web.service.dc2.consul", Some(Lookup::Nothing));
        check("zz.addr.consul", Some(Lookup::Nothing));
        check("example.com", None);
        check("notconsul", None);
    }

    #[test]
    fn kubernetes_names() {
        let (namespace, service) = ("shop".to_owned(), "web".to_owned());
        let of = Lookup::Service { namespace: namespace.clone(), service: service.clone() };
        check("web.shop.svc.cluster.local", Some(of));
        let (port, protocol) = ("http".to_owned(), "tcp".to_owned());
        let of =
            Lookup::Port { namespace: namespace.clone(), service: service.clone(), port, protocol };
        check("_http._tcp.web.shop.svc.cluster.local", Some(of));
        let of = Lookup::Hostname {
            namespace: namespace.clone(),
            service: service.clone(),
            hostname: "web-0".into(),
        };
        check("web-0.web.shop.svc.cluster.local", Some(of));
        let of = Lookup::Endpoint { namespace, service, address: [10, 0, 0, 1].into() };
        check("10-0-0-1.web.shop.svc.cluster.local", Some(of));
        check("10-0-0-1.shop.pod.cluster.local", Some(Lookup::Address([10, 0, 0, 1].into())));
        check("shop.svc.cluster.local", Some(Lookup::Between));
        check("_tcp.web.shop.svc.cluster.local", Some(Lookup::Between));
        check("cluster.local", Some(Lookup::Apex));
        check("dns-version.cluster.local", Some(Lookup::Version));
        check("web.shop.cluster.local", Some(Lookup::Nothing));
        check("web.local", None);
    }

    #[test]
    fn names_of_addresses_are_not_the_meshs_alone() {
        let zones = Zones { datacenter: "dc1".into(), cluster_domain: "cluster.local".into() };
        let held = |name: &str| zones.hold(&name.split('.').collect::<Vec<_>>());
        assert!(held("web.service.consul") && held("web.shop.svc.cluster.local"));
        assert!(!held("8.8.8.8.in-addr.arpa") && !held("web.example"));
    }

    #[test]
    fn addresses_are_read_backwards() {
        let reverse = |text: &str| Some(Lookup::Reverse(text.parse().unwrap()));
        check("1.2.244.10.in-addr.arpa", reverse("10.244.2.1"));
        check("5.0.96.127.in-addr.arpa", reverse("127.96.0.5"));
        check("8.8.4.4.in-addr.arpa", reverse("4.4.8.8"));
        check("256.2.244.10.in-addr.arpa", None);
        let v6 = "7.0.3.0.4.f.a.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.6.7.7.0.0.d.f.ip6.arpa";
        check(v6, reverse("fd00:7766::af4:307"));
        check(&v6.replace("6.6.7.7", "6.6.7.g"), None);
    }

    #[test]
    fn addresses_come_back() {
        for text in ["10.0.0.1", "fd00::1", "::1", "2001:db8::"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(hex_address(&to_hex(address)), Some(address));
            assert_eq!(dashed_address(&to_dashed(address)), Some(address), "{text}");
        }
    }
}
