// SPDX-License-Identifier: Apache-2.0
//! The pod network: a namespace of weft's that routes, and a cable from it to each pod.
//!
//! Called by the sandbox's roles: the holder makes its own namespace the router, a pod's first
//! process plugs itself in.
//!
//! Routed and not bridged, with every neighbour told and none asked, for three reasons. The
//! kernel has one table of neighbours for all namespaces of the machine (1024 entries, unless
//! root raises it), which pods that find each other by asking fill, and then the machine's own
//! network fails. When a pod ends, its link and with it the route end, so that whoever dials it
//! is refused at once instead of waiting. And no pod can pose as another.
//!
//! What a pod sends to an address that no pod has ends at the router, where nothing listens.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};

use super::capture::{self, CaptureSpec, Who};
use super::netlink::NetlinkError;
use super::route::{Link, Route, Veth};

/// Pods of one machine.
pub const POD_NETWORK_V4: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 244, 0, 0), 16);
pub const POD_NETWORK_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfd00, 0x7766, 0, 0, 0, 0, 0, 0), 64);
/// The router's own addresses, which no pod may have.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x7766, 0, 0, 0, 0, 0, 1);

const POD_LINK: &str = "eth0";
/// As pods of a cluster usually have it; the kernel carries larger pieces of TCP as one.
const MTU: u32 = 1500;
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// The pod network as seen from anywhere: its socket stays in its namespace.
#[derive(Debug)]
pub struct Network(Route);

/// Makes the namespace in which this is called the router of a pod network.
///
/// # Errors
/// With the step that the kernel refused.
pub fn router() -> Result<(), NetlinkError> {
    prepare_v6(&["all", "default"]);
    let mut route = Route::open()?;
    let lo = route.link("lo")?;
    route.set_up(&lo)?;
    route.add_address(&lo, GATEWAY_V4.into(), 32)?;
    route.set_own_rest(&lo, true)?;
    setting("ipv4/ip_forward", "1");
    if has_v6() {
        route.add_address(&lo, GATEWAY_V6.into(), 128)?;
        route.set_own_rest(&lo, false)?;
        setting("ipv6/conf/all/forwarding", "1");
    }
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
    let pair =
        Veth { name: "weft-trial", mtu: MTU, peer: "weft-trial-1", peer_namespace: here.as_fd() };
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
    /// way to everything else. `cable` names the other end at the router (15 bytes at most); one
    /// of that name that a pod left behind is replaced.
    ///
    /// # Errors
    /// With the step that the kernel refused.
    pub fn plug(mut self, cable: &str, addresses: &[IpAddr]) -> Result<(), NetlinkError> {
        let here = own_namespace()?;
        let pair = Veth { name: cable, mtu: MTU, peer: POD_LINK, peer_namespace: here.as_fd() };
        match self.0.add_veth(pair) {
            Err(e) if e.errno() == Some(rustix::io::Errno::EXIST) => {
                // Of a pod whose namespace the kernel has yet to take away.
                self.0.delete(cable)?;
                self.0.add_veth(pair)?;
            }
            done => done?,
        }
        let near = self.0.link(cable)?;
        let usable: Vec<IpAddr> =
            addresses.iter().copied().filter(|a| a.is_ipv4() || has_v6()).collect();
        let far = inside_pod(&usable, &near)?;
        for address in usable {
            self.0.set_neighbour(&near, address, &far.mac)?;
            self.0.set_route(&near, address)?;
        }
        self.0.await_sending(cable)
    }
}

/// The pod's own end, and its way out.
fn inside_pod(addresses: &[IpAddr], near: &Link) -> Result<Link, NetlinkError> {
    prepare_v6(&["all", "default", POD_LINK]);
    let mut route = Route::open()?;
    let lo = route.link("lo")?;
    route.set_up(&lo)?;
    let far = route.link(POD_LINK)?;
    route.set_up(&far)?;
    for address in addresses {
        let (whole, gateway) = match address {
            IpAddr::V4(_) => (32, IpAddr::from(GATEWAY_V4)),
            IpAddr::V6(_) => (128, IpAddr::from(GATEWAY_V6)),
        };
        route.add_address(&far, *address, whole)?;
        route.set_neighbour(&far, gateway, &near.mac)?;
        route.set_route(&far, gateway)?;
        route.set_default(&far, gateway)?;
    }
    Ok(far)
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
/// which weft alone gives out, is used at once, not after a second of asking whose it is. Links
/// have no addresses that weft did not give them.
fn prepare_v6(links: &[&str]) {
    if !has_v6() {
        return;
    }
    for link in links {
        for name in ["disable_ipv6", "accept_ra", "accept_dad", "dad_transmits"] {
            setting(&format!("ipv6/conf/{link}/{name}"), "0");
        }
        setting(&format!("ipv6/conf/{link}/addr_gen_mode"), "1");
    }
}

/// A courtesy: where the setting cannot be made, everything works but less well.
fn setting(key: &str, value: &str) {
    if let Err(error) = std::fs::write(format!("/proc/sys/net/{key}"), value) {
        tracing::debug!(key, %error, "a network setting stays as it is");
    }
}
