// SPDX-License-Identifier: Apache-2.0
//! Host names: canonical form of what a client sent, and how well a pattern fits it.

use std::net::{IpAddr, Ipv6Addr};

use crate::{GatewayListener, Section};

/// How well a host pattern fits; greater is more specific (Gateway API: exact before wildcard,
/// then more characters).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostFit {
    exact: bool,
    characters: usize,
}

/// A request's authority, taken apart (RFC 3986 §3.2 without userinfo).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// Lower case, no trailing dot, IPv6 without brackets.
    pub host: String,
    pub port: Option<u16>,
}

// === impl Authority ===

impl Authority {
    /// Reads `host`, `host:port`, `[v6]` or `[v6]:port`. `None` for anything else: userinfo, zone
    /// ids, empty hosts and stray characters are refused, never repaired.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(rest) = text.strip_prefix('[') {
            let (v6, after) = rest.split_once(']')?;
            let ip: Ipv6Addr = v6.parse().ok()?;
            let port = match after {
                "" => None,
                _ => Some(parse_port(after.strip_prefix(':')?)?),
            };
            return Some(Self { host: ip.to_string(), port });
        }
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, Some(parse_port(port)?)),
            None => (text, None),
        };
        let host = weft_base::name::Hostname::new(host).ok()?;
        Some(Self { host: host.as_str().to_owned(), port })
    }

    /// The host as an address, when it is one.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

/// How `pattern` fits the canonical `host`. `*.example.com` takes one or more labels in its
/// place; `*` takes all.
pub fn host_fit(pattern: &str, host: &str) -> Option<HostFit> {
    if pattern == "*" || pattern.is_empty() {
        return Some(HostFit { exact: false, characters: 0 });
    }
    if let Some(suffix) = pattern.strip_prefix('*') {
        let fits = suffix.starts_with('.') && host.len() > suffix.len() && host.ends_with(suffix);
        return fits.then_some(HostFit { exact: false, characters: pattern.len() });
    }
    pattern.eq_ignore_ascii_case(host).then_some(HostFit { exact: true, characters: host.len() })
}

/// The section of a gateway listener that serves `host`: the most specific host name wins.
pub fn pick_section<'a>(listener: &'a GatewayListener, host: &str) -> Option<&'a Section> {
    listener
        .sections
        .iter()
        .filter_map(|s| Some((host_fit(s.hostname.as_deref().unwrap_or("*"), host)?, s)))
        .reduce(|best, next| if next.0 > best.0 { next } else { best })
        .map(|(_, section)| section)
}

fn parse_port(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}
