// SPDX-License-Identifier: Apache-2.0
//! The pod network: one bridge in a namespace of weft's, and a cable from it to each pod.
//!
//! Called by the sandbox's roles: the holder makes the bridge in its own namespace, a pod's
//! first process plugs itself in. What a pod sends to an address that no pod has comes to the
//! bridge's namespace, which leads nowhere and says so, so that nothing waits for a timeout.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};

use super::capture::{self, CaptureSpec, Who};
use super::netlink::NetlinkError;
use super::route::{Route, Veth};

/// Pods of one machine.
pub const POD_NETWORK_V4: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 244, 0, 0), 16);
pub const POD_NETWORK_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfd00, 0x7766, 0, 0, 0, 0, 0, 0), 64);
/// The bridge's own addresses, which no pod may have.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x7766, 0, 0, 0, 0, 0, 1);

const BRIDGE: &str = "weft0";
const POD_LINK: &str = "eth0";
/// As pods of a cluster usually have it; the kernel carries larger pieces of TCP as one.
const MTU: u32 = 1500;
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// The pod network as seen from anywhere: its socket stays in its namespace.
#[derive(Debug)]
pub struct Network(Route);

/// Makes the pod network of the namespace in which this is called.
///
/// # Errors
/// With the step that the kernel refused.
pub fn bridge() -> Result<(), NetlinkError> {
    prepare_v6(&["all", "default"]);
    let mut route = Route::open()?;
    let lo = route.link("lo")?;
    route.set_up(&lo)?;
    let bridge = route.add_bridge(BRIDGE, MTU)?;
    route.add_address(&bridge, GATEWAY_V4.into(), POD_NETWORK_V4.1)?;
    if has_v6() {
        route.add_address(&bridge, GATEWAY_V6.into(), POD_NETWORK_V6.1)?;
        setting("ipv6/conf/all/forwarding", "1");
    }
    // It forwards, but knows no way: so senders are told at once that there is none.
    setting("ipv4/ip_forward", "1");
    Ok(())
}

/// Takes capture rules into a pod's namespace, in which this is called.
///
/// # Errors
/// With the rule that the kernel refused.
pub fn capture(spec: &CaptureSpec) -> Result<(), NetlinkError> {
    spec.install()
}

/// Tries in the pod network's namespace what a pod needs of it, and leaves nothing behind.
///
/// # Errors
/// With the step that the kernel refused.
pub fn trial() -> Result<(), NetlinkError> {
    let mut route = Route::open()?;
    let here = own_namespace()?;
    let master = route.link(BRIDGE)?.index;
    let pair = Veth {
        name: "weft-trial",
        master,
        mtu: MTU,
        peer: "weft-trial-1",
        peer_namespace: here.as_fd(),
    };
    route.add_veth(pair)?;
    route.delete(pair.name)?;
    CaptureSpec::new(Who::Pod).install()?;
    capture::remove()
}

// === impl Network ===

impl Network {
    /// Of the namespace in which this is called.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn open() -> Result<Self, NetlinkError> {
        Route::open().map(Self)
    }

    /// Connects the namespace in which this is called: its `eth0` with these addresses, and the
    /// way to everything else. `cable` names the other end at the bridge (15 bytes at most); one
    /// of that name that a pod left behind is replaced.
    ///
    /// # Errors
    /// With the step that the kernel refused.
    pub fn plug(mut self, cable: &str, addresses: &[IpAddr]) -> Result<(), NetlinkError> {
        let here = own_namespace()?;
        let master = self.0.link(BRIDGE)?.index;
        let pair =
            Veth { name: cable, master, mtu: MTU, peer: POD_LINK, peer_namespace: here.as_fd() };
        match self.0.add_veth(pair) {
            Err(e) if e.errno() == Some(rustix::io::Errno::EXIST) => {
                // Of a pod whose namespace the kernel has yet to take away.
                self.0.delete(cable)?;
                self.0.add_veth(pair)?;
            }
            done => done?,
        }
        inside_pod(addresses)
    }
}

fn inside_pod(addresses: &[IpAddr]) -> Result<(), NetlinkError> {
    prepare_v6(&["all", "default", POD_LINK]);
    let mut route = Route::open()?;
    let lo = route.link("lo")?;
    route.set_up(&lo)?;
    let link = route.link(POD_LINK)?;
    route.set_up(&link)?;
    for address in addresses.iter().filter(|a| a.is_ipv4() || has_v6()) {
        let (prefix, gateway) = match address {
            IpAddr::V4(_) => (POD_NETWORK_V4.1, IpAddr::from(GATEWAY_V4)),
            IpAddr::V6(_) => (POD_NETWORK_V6.1, IpAddr::from(GATEWAY_V6)),
        };
        route.add_address(&link, *address, prefix)?;
        match route.add_default(&link, gateway) {
            // A second address of the family.
            Err(e) if e.errno() == Some(rustix::io::Errno::EXIST) => {}
            done => done?,
        }
    }
    Ok(())
}

fn own_namespace() -> Result<OwnedFd, NetlinkError> {
    let opened = std::fs::File::open(OWN_NAMESPACE).map(OwnedFd::from);
    opened.map_err(|e| NetlinkError::before(format!("opening {OWN_NAMESPACE}"), e))
}

/// Whether this kernel speaks IPv6 at all.
fn has_v6() -> bool {
    std::path::Path::new("/proc/sys/net/ipv6").exists()
}

/// IPv6 as weft's own namespaces have it, for links that are not up yet: on, even where the
/// machine hands on that it is off; no neighbour's advertisement is believed; and an address,
/// which weft alone gives out, is used at once, not after a second of asking whose it is.
fn prepare_v6(links: &[&str]) {
    if !has_v6() {
        return;
    }
    for link in links {
        for name in ["disable_ipv6", "accept_ra", "accept_dad", "dad_transmits"] {
            setting(&format!("ipv6/conf/{link}/{name}"), "0");
        }
    }
}

/// A courtesy: where the setting cannot be made, everything works but less well.
fn setting(key: &str, value: &str) {
    if let Err(error) = std::fs::write(format!("/proc/sys/net/{key}"), value) {
        tracing::debug!(key, %error, "a network setting stays as it is");
    }
}
