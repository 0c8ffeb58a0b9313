// SPDX-License-Identifier: Apache-2.0
//! Ports for tests that name one before anybody listens there. Whoever can listen first, on port 0,
//! does that instead.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the kernel's range for outgoing connections and "any port" (from 32768), out of which
/// somebody else may be given a port between our asking and its use; below those that sidecars have
/// (15000 and a few after it); and beside the range of the tests against real peers.
const RANGE: std::ops::Range<u16> = 10_000..15_000;

/// A port on which nobody listens, over TCP or UDP at any IPv4 address; each call of a process
/// gives another one.
///
/// # Panics
/// When every port of the range is taken.
pub fn free() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let begin = u16::try_from(std::process::id() % 100 * 50).unwrap_or_default();
    let mut tries = RANGE.map(|_| {
        let n = NEXT.fetch_add(1, Ordering::Relaxed) % 5_000;
        RANGE.start + (begin + n) % 5_000
    });
    tries.find(|port| is_free(*port)).expect("one of 5,000 ports is free")
}

fn is_free(port: u16) -> bool {
    let at = (Ipv4Addr::UNSPECIFIED, port);
    TcpListener::bind(at).is_ok() && UdpSocket::bind(at).is_ok()
}
