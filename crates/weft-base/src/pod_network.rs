// SPDX-License-Identifier: Apache-2.0
//! The network that pods in namespaces share: one owner's IPv6 address is made of its IPv4
//! address, so that either leads to the other. The registry gives addresses out by this; a proxy
//! finds an instance by whichever of the two was dialled. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Pods have addresses of 10.244.0.0/16.
pub const PODS_V4: ([u8; 2], u8) = ([10, 244], 16);
/// And of fd00:7766::/64, whose last 32 bits are the IPv4 address.
pub const PODS_V6: [u16; 6] = [0xfd00, 0x7766, 0, 0, 0, 0];

/// The IPv6 address of the pod that has this IPv4 address.
pub fn pod_v6(v4: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = v4.octets();
    let [s0, s1, s2, s3, s4, s5] = PODS_V6;
    let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    Ipv6Addr::new(s0, s1, s2, s3, s4, s5, high, low)
}

/// The IPv4 address of the pod that has this IPv6 address; `None` when it is no pod's.
pub fn pod_v4(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let [head @ .., high, low] = v6.segments();
    let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
    (head == PODS_V6 && [a, b] == PODS_V4.0).then(|| Ipv4Addr::new(a, b, c, d))
}

/// One form for an address: IPv4 where there is one, mapped or paired.
pub fn canonical(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => pod_v4(v6).map_or(IpAddr::V6(v6), IpAddr::V4),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_address_leads_to_the_other() {
        let v4 = Ipv4Addr::new(10, 244, 3, 7);
        assert_eq!(pod_v6(v4).to_string(), "fd00:7766::af4:307");
        assert_eq!(pod_v4(pod_v6(v4)), Some(v4));
        for (text, want) in [
            ("fd00:7766::af4:307", "10.244.3.7"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            // The bridge, Services and everybody else are no pods.
            ("fd00:7766::1", "fd00:7766::1"),
            ("fd00:7766:1::af4:307", "fd00:7766:1::af4:307"),
            ("2001:db8::af4:307", "2001:db8::af4:307"),
        ] {
            assert_eq!(canonical(text.parse().unwrap()).to_string(), want);
        }
    }
}
