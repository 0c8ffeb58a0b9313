// SPDX-License-Identifier: Apache-2.0
//! Where a check may go. Clients say whom to ask, and the one that asks is this machine: what
//! answers only the machine itself, such as a cloud's metadata with the machine's credentials, is
//! never asked. Judged by the address that is dialled, so that no name leads around it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::guard;

/// Metadata and host agents of clouds that are not link-local: Alibaba's, Oracle's, Azure's.
const HOSTS_OWN: [Ipv4Addr; 3] = [
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
    Ipv4Addr::new(168, 63, 129, 16),
];
/// Amazon's over IPv6.
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

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
    if !guard::on("reach") {
        return None;
    }
    match ip {
        IpAddr::V4(v4) => refusal_v4(v4),
        IpAddr::V6(v6) => match within(v6) {
            Some(v4) => refusal_v4(v4),
            None if v6 == METADATA_V6 => Some("it is a metadata service"),
            None if v6.is_unicast_link_local() => Some("link-local addresses are the machine's"),
            None if v6.is_multicast() => Some("it is a multicast address"),
            None => None,
        },
    }
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

/// The IPv4 address that an IPv6 one stands for: mapped, compatible, or behind NAT64.
fn within(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, g, h] = ip.segments();
    let embedded = matches!([a, b, c, d, e], [0, 0, 0, 0, 0]) && (f == 0xffff || f == 0)
        || [a, b, c, d, e, f] == [0x64, 0xff9b, 0, 0, 0, 0];
    let [[g1, g2], [h1, h2]] = [g.to_be_bytes(), h.to_be_bytes()];
    // `::` and `::1` stand for nobody else.
    (embedded && !(f == 0 && a == 0 && g == 0 && h <= 1)).then(|| Ipv4Addr::new(g1, g2, h1, h2))
}
