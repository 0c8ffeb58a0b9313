// SPDX-License-Identifier: Apache-2.0
//! Where a check may go. Clients say whom to ask, and the one that asks is this machine: what
//! answers only the machine itself, such as a cloud's metadata with the machine's credentials, is
//! never asked. Judged by the address that is dialled, so that no name leads around it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::guards;

/// Metadata and host agents of clouds that are not link-local: Alibaba's, Oracle's, Azure's.
const HOSTS_OWN: [Ipv4Addr; 3] = [
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
    Ipv4Addr::new(168, 63, 129, 16),
];
/// The networks in which clouds' metadata answers over IPv6: Amazon's (with the agents that hand
/// out its pods' credentials) and Google's; and Scaleway's, which is one address.
const METADATA_V6: [[u16; 2]; 2] = [[0xfd00, 0xec2], [0xfd20, 0xce]];
const METADATA_V6_HOST: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42);

/// The addresses of a `host:port` that may be asked.
///
/// # Errors
/// A sentence: the name has none, or none that may be asked.
pub async fn reachable(target: &str) -> Result<Vec<SocketAddr>, String> {
    let found = tokio::net::lookup_host(target).await;
    let found: Vec<SocketAddr> = found.map_err(|e| format!("lookup {target}: {e}"))?.collect();
    if found.is_empty() {
        return Err(format!("lookup {target}: no such host"));
    }
    match found.iter().find_map(|a| refusal(a.ip())) {
        // One bad address spoils the name: it may lead there at the next question.
        Some(why) => Err(format!("{target} is not asked: {why}")),
        None => Ok(found),
    }
}

/// Why an address is not asked.
pub fn refusal(ip: IpAddr) -> Option<&'static str> {
    if !guards::on("check-reach") {
        return None;
    }
    match ip {
        IpAddr::V4(v4) => refusal_v4(v4),
        IpAddr::V6(v6) if is_metadata(v6) => Some("it is a metadata service"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            Some("link-local addresses are the machine's")
        }
        IpAddr::V6(v6) if v6.is_multicast() => Some("it is a multicast address"),
        IpAddr::V6(v6) => within(v6).into_iter().flatten().find_map(refusal_v4),
    }
}

fn is_metadata(ip: Ipv6Addr) -> bool {
    let [a, b, ..] = ip.segments();
    METADATA_V6.contains(&[a, b]) || ip == METADATA_V6_HOST
}

fn refusal_v4(ip: Ipv4Addr) -> Option<&'static str> {
    if ip.is_link_local() {
        return Some("link-local addresses are the machine's");
    }
    if HOSTS_OWN.contains(&ip) {
        return Some("it is a metadata service");
    }
    (ip.is_multicast() || ip.is_broadcast()).then_some("it is a multicast address")
}

/// The IPv4 addresses that an IPv6 one may stand for: mapped, compatible, translated, behind NAT64
/// or 6to4. Where a NAT64 of one's own puts the address (RFC 8215, 6052) nobody else knows: any
/// place counts.
fn within(ip: Ipv6Addr) -> [Option<Ipv4Addr>; 4] {
    let bytes = ip.octets();
    let at = |places: [usize; 4]| {
        let [a, b, c, d] = places.map(|place| bytes.get(place).copied().unwrap_or(0));
        Some(Ipv4Addr::new(a, b, c, d))
    };
    let last = at([12, 13, 14, 15]);
    match ip.segments() {
        // `::` and `::1` stand for nobody else.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => [None; 4],
        [0, 0, 0, 0, 0, 0 | 0xffff, ..]
        | [0, 0, 0, 0, 0xffff, 0, ..]
        | [0x64, 0xff9b, 0, 0, 0, 0, ..] => [last, None, None, None],
        [0x64, 0xff9b, 1, ..] => [last, at([6, 7, 9, 10]), at([7, 9, 10, 11]), at([9, 10, 11, 12])],
        [0x2002, ..] => [at([2, 3, 4, 5]), None, None, None],
        _ => [None; 4],
    }
}
