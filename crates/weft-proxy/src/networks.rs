// SPDX-License-Identifier: Apache-2.0
//! Which addresses are inside the pod network. The dialer and the capture doors ask; pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use thiserror::Error;

/// An address range such as `10.244.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    ip: IpAddr,
    bits: u8,
}

#[derive(Debug, Error)]
#[error("{0:?} is no address range; write it like 10.244.0.0/16 or fd00:7766::/64")]
pub struct CidrError(String);

/// The ranges that pods and Services have their addresses from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Networks {
    pub pods: Vec<Cidr>,
    pub services: Vec<Cidr>,
}

// === impl Cidr ===

impl Cidr {
    pub fn contains(&self, ip: IpAddr) -> bool {
        let (own, other) = match (self.ip, ip.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                // Both as the upper half of a longer number, so that one shift serves both.
                (u128::from(own.to_bits()) << 96, u128::from(other.to_bits()) << 96)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => (own.to_bits(), other.to_bits()),
            _ => return false,
        };
        (own ^ other).leading_zeros() >= u32::from(self.bits)
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let wrong = || CidrError(text.to_owned());
        let (ip, bits) = text.split_once('/').ok_or_else(wrong)?;
        let ip: IpAddr = ip.parse().map_err(|_| wrong())?;
        let bits: u8 = bits.parse().map_err(|_| wrong())?;
        let most = if ip.is_ipv4() { 32 } else { 128 };
        if bits > most { Err(wrong()) } else { Ok(Self { ip, bits }) }
    }
}

// === impl Networks ===

impl Networks {
    pub fn is_pod(&self, ip: IpAddr) -> bool {
        self.pods.iter().any(|c| c.contains(ip))
    }

    pub fn is_service(&self, ip: IpAddr) -> bool {
        self.services.iter().any(|c| c.contains(ip))
    }
}

impl Default for Networks {
    /// What pods in namespaces get when nobody chose other ranges.
    fn default() -> Self {
        let v4 = |a, b, bits| Cidr { ip: Ipv4Addr::new(a, b, 0, 0).into(), bits };
        let v6 =
            |c, bits| Cidr { ip: Ipv6Addr::new(0xfd00, 0x7766, c, 0, 0, 0, 0, 0).into(), bits };
        Self { pods: vec![v4(10, 244, 16), v6(0, 64)], services: vec![v4(10, 96, 16), v6(1, 112)] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_contain_what_begins_like_them() {
        let networks = Networks::default();
        for (ip, pod, service) in [
            ("10.244.0.1", true, false),
            ("10.244.255.255", true, false),
            ("::ffff:10.244.3.4", true, false),
            ("10.245.0.0", false, false),
            ("10.96.0.1", false, true),
            ("fd00:7766::1:2", true, false),
            ("fd00:7766:1::ffff", false, true),
            ("fd00:7766:1::1:0", false, false),
            ("fd00:7766:0:1::", false, false),
            ("127.0.0.1", false, false),
        ] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!((networks.is_pod(ip), networks.is_service(ip)), (pod, service), "{ip}");
        }
        let all: Cidr = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("192.0.2.1".parse().unwrap()));
        assert!(!all.contains("::1".parse().unwrap()));
        let one: Cidr = "::1/128".parse().unwrap();
        assert!(one.contains("::1".parse().unwrap()) && !one.contains("::2".parse().unwrap()));
        for wrong in ["", "10.0.0.0", "10.0.0.0/33", "::/129", "x/8", "10.0.0.0/-1"] {
            assert!(wrong.parse::<Cidr>().is_err(), "{wrong}");
        }
    }
}
