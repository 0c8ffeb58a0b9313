// SPDX-License-Identifier: Apache-2.0
//! Links, addresses and routes of one network namespace, over rtnetlink. Called by `pods`.
//!
//! Names of links are the caller's; a link that exists is an error, and nothing is changed that
//! was not named.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::Timespec;
use rustix::io::Errno;
use rustix::thread::{ClockId, clock_nanosleep_relative};

use super::netlink::{
    Answer, Attrs, CREATE, EXCL, Message, Netlink, NetlinkError, REPLACE, attrs, number, text,
};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWNEIGH: u16 = 28;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_NET_NS_FD: u16 = 28;
const VETH_INFO_PEER: u16 = 1;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// No duplicate address detection: an address is usable at once.
const IFA_F_NODAD: u8 = 0x02;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
/// Never asked about and never forgotten; not counted in the machine's table of neighbours.
const NUD_PERMANENT: u16 = 0x80;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RT_SCOPE_HOST: u8 = 254;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IFF_UP: u32 = 1;
const IF_OPER_UP: u8 = 6;
/// How often, and with which pauses, a kernel before 6.8 is asked whether a link sends.
const ASKED_MAX: u32 = 250;
const ASKED_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
const IFINFO_BYTES: usize = 16;
const IFADDR_BYTES: usize = 8;

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub up: bool,
    /// Its carrier is there, and the kernel has taken note.
    pub sends: bool,
    pub mtu: u32,
    /// The address on the wire.
    pub mac: Vec<u8>,
}

/// A pair of links, the far one in another namespace.
#[derive(Clone, Copy, Debug)]
pub struct Veth<'a> {
    pub name: &'a str,
    pub mtu: u32,
    pub peer: &'a str,
    pub peer_namespace: BorrowedFd<'a>,
}

/// Links, addresses and routes of the namespace in which this was opened.
#[derive(Debug)]
pub struct Route(Netlink);

// === impl Route ===

impl Route {
    /// # Errors
    /// When the kernel gives no socket.
    pub fn open() -> Result<Self, NetlinkError> {
        Netlink::route().map(Self)
    }

    /// Of another namespace.
    ///
    /// # Errors
    /// When it may not be entered.
    pub fn open_in(namespace: BorrowedFd<'_>) -> Result<Self, NetlinkError> {
        super::inside(namespace, Self::open)
            .map_err(|e| NetlinkError::before("entering the network namespace", e))?
    }

    /// # Errors
    /// When the kernel does not say.
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let header = ifinfo(0, 0, 0);
        let all = Message::new("listing links", RTM_GETLINK, 0, &header, &Attrs::new());
        Ok(self.0.list(all)?.iter().filter_map(link).collect())
    }

    /// # Errors
    /// `NODEV` when there is none of that name.
    pub fn link(&mut self, name: &str) -> Result<Link, NetlinkError> {
        let (what, attrs) = (format!("finding link {name}"), Attrs::new().text(IFLA_IFNAME, name));
        let one = Message::new(&what, RTM_GETLINK, 0, &ifinfo(0, 0, 0), &attrs);
        let found = self.0.get(one)?.iter().find_map(link);
        found.ok_or_else(|| NetlinkError::kernel(what, Errno::NODEV))
    }

    /// Waits until a link sends that is up at both ends. To the end that came up first the kernel
    /// gives its queue later, by a worker of its own, and what is to be sent meanwhile is lost: a
    /// connection would begin with a second of silence, a question over UDP end with it. Newer
    /// kernels do it at once for who asks. One that never says so is believed to send.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn await_sending(&mut self, name: &str) -> Result<(), NetlinkError> {
        for _ in 0..ASKED_MAX {
            if self.link(name)?.sends {
                break;
            }
            // Interrupted, it asks sooner.
            let _ = clock_nanosleep_relative(ClockId::Monotonic, &ASKED_PAUSE);
        }
        Ok(())
    }

    /// Addresses by link, with prefix lengths.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn addresses(&mut self) -> Result<Vec<(u32, IpAddr, u8)>, NetlinkError> {
        let header = [0; IFADDR_BYTES];
        let all = Message::new("listing addresses", RTM_GETADDR, 0, &header, &Attrs::new());
        Ok(self.0.list(all)?.iter().filter_map(address).collect())
    }

    /// # Errors
    /// When there is no such link.
    pub fn set_up(&mut self, link: &Link) -> Result<(), NetlinkError> {
        let what = format!("bringing up link {}", link.name);
        let header = ifinfo(link.index, IFF_UP, IFF_UP);
        self.0.ask(Message::new(what, RTM_NEWLINK, 0, &header, &Attrs::new()))
    }

    /// A pair whose far link is made in the other namespace from the start, so that no name of
    /// it is ever seen here. The near one is up, the far one down.
    ///
    /// # Errors
    /// When one of the names is taken, or the other namespace is not ours to change.
    pub fn add_veth(&mut self, pair: Veth<'_>) -> Result<(), NetlinkError> {
        let namespace = u32::try_from(pair.peer_namespace.as_raw_fd()).unwrap_or(u32::MAX);
        let peer = Attrs::new()
            .raw(&ifinfo(0, 0, 0))
            .text(IFLA_IFNAME, pair.peer)
            .u32(IFLA_MTU, pair.mtu)
            .u32(IFLA_NET_NS_FD, namespace);
        let data = Attrs::new().nest(VETH_INFO_PEER, &peer);
        let info = Attrs::new().text(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, &data);
        let attrs = Attrs::new()
            .text(IFLA_IFNAME, pair.name)
            .u32(IFLA_MTU, pair.mtu)
            .nest(IFLA_LINKINFO, &info);
        let what = format!("adding the veth pair {}", pair.name);
        let header = ifinfo(0, IFF_UP, IFF_UP);
        self.0.ask(Message::new(what, RTM_NEWLINK, CREATE | EXCL, &header, &attrs))
    }

    /// Removes a link, and the other end of a pair with it.
    ///
    /// # Errors
    /// `NODEV` when there is none of that name.
    pub fn delete(&mut self, name: &str) -> Result<(), NetlinkError> {
        let attrs = Attrs::new().text(IFLA_IFNAME, name);
        let what = format!("deleting link {name}");
        self.0.ask(Message::new(what, RTM_DELLINK, 0, &ifinfo(0, 0, 0), &attrs))
    }

    /// # Errors
    /// When the link has it already, or the family is switched off.
    pub fn add_address(
        &mut self,
        link: &Link,
        address: IpAddr,
        prefix: u8,
    ) -> Result<(), NetlinkError> {
        let octets = octets(address);
        let header = [
            &[family(address), prefix, IFA_F_NODAD, RT_SCOPE_UNIVERSE][..],
            &link.index.to_ne_bytes(),
        ]
        .concat();
        let attrs = Attrs::new().bytes(IFA_LOCAL, &octets).bytes(IFA_ADDRESS, &octets);
        let what = format!("adding address {address}/{prefix} to link {}", link.name);
        self.0.ask(Message::new(what, RTM_NEWADDR, CREATE | EXCL, &header, &attrs))
    }

    /// The address is at the other end of the link, whatever other route there was to it.
    ///
    /// # Errors
    /// When the link is down or gone.
    pub fn set_route(&mut self, link: &Link, to: IpAddr) -> Result<(), NetlinkError> {
        let whole = if to.is_ipv4() { 32 } else { 128 };
        let attrs = Attrs::new().bytes(RTA_DST, &octets(to)).u32(RTA_OIF, link.index);
        let what = format!("adding the route to {to} by link {}", link.name);
        let header = route_header(family(to), whole, (RT_SCOPE_LINK, RTN_UNICAST));
        self.0.ask(Message::new(what, RTM_NEWROUTE, CREATE | REPLACE, &header, &attrs))
    }

    /// Everything that no other route leads to goes to this neighbour.
    ///
    /// # Errors
    /// When the neighbour is on no link.
    pub fn set_default(&mut self, link: &Link, via: IpAddr) -> Result<(), NetlinkError> {
        let attrs = Attrs::new().bytes(RTA_GATEWAY, &octets(via)).u32(RTA_OIF, link.index);
        let what = format!("adding the default route by {via}");
        let header = route_header(family(via), 0, (RT_SCOPE_UNIVERSE, RTN_UNICAST));
        self.0.ask(Message::new(what, RTM_NEWROUTE, CREATE | REPLACE, &header, &attrs))
    }

    /// Every address of the family that no other route leads to is this namespace's own: where
    /// nothing listens, senders are refused at once. (Told that there is no way, a connection
    /// asks again after a second before it believes.)
    ///
    /// # Errors
    /// When the link is down or gone.
    pub fn set_own_rest(&mut self, lo: &Link, v4: bool) -> Result<(), NetlinkError> {
        let (family, name) = if v4 { (AF_INET, "IPv4") } else { (AF_INET6, "IPv6") };
        let attrs = Attrs::new().u32(RTA_OIF, lo.index);
        let what = format!("taking all other {name} addresses");
        let header = route_header(family, 0, (RT_SCOPE_HOST, RTN_LOCAL));
        self.0.ask(Message::new(what, RTM_NEWROUTE, CREATE | REPLACE, &header, &attrs))
    }

    /// Who has the address at the other end of the link, so that nobody is ever asked.
    ///
    /// # Errors
    /// When the link is gone.
    pub fn set_neighbour(
        &mut self,
        link: &Link,
        address: IpAddr,
        mac: &[u8],
    ) -> Result<(), NetlinkError> {
        let mut header = vec![family(address), 0, 0, 0];
        header.extend(link.index.to_ne_bytes());
        header.extend(NUD_PERMANENT.to_ne_bytes());
        header.extend([0, 0]);
        let attrs = Attrs::new().bytes(NDA_DST, &octets(address)).bytes(NDA_LLADDR, mac);
        let what = format!("naming the neighbour {address} on link {}", link.name);
        self.0.ask(Message::new(what, RTM_NEWNEIGH, CREATE | REPLACE, &header, &attrs))
    }
}

/// `struct rtmsg`.
fn route_header(family: u8, prefix: u8, (scope, kind): (u8, u8)) -> Vec<u8> {
    let mut out = vec![family, prefix, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, scope, kind];
    out.extend(0_u32.to_ne_bytes());
    out
}

/// `struct ifinfomsg`.
fn ifinfo(index: u32, flags: u32, change: u32) -> [u8; IFINFO_BYTES] {
    let mut out = [0; IFINFO_BYTES];
    let (_, rest) = out.split_at_mut(4);
    let words = [index, flags, change].into_iter().flat_map(u32::to_ne_bytes);
    rest.iter_mut().zip(words).for_each(|(slot, byte)| *slot = byte);
    out
}

fn link(answer: &Answer) -> Option<Link> {
    if answer.kind != RTM_NEWLINK {
        return None;
    }
    let (header, rest) = answer.body.split_at_checked(IFINFO_BYTES)?;
    let index = number(header.get(4..8)?)?;
    let up = number(header.get(8..12)?)? & IFF_UP != 0;
    let mut out = Link { index, up, ..Link::default() };
    for (kind, value) in attrs(rest) {
        match kind {
            IFLA_IFNAME => out.name = text(value),
            IFLA_MTU => out.mtu = number(value)?,
            IFLA_OPERSTATE => out.sends = value.first() == Some(&IF_OPER_UP),
            IFLA_ADDRESS => out.mac = value.to_vec(),
            _ => {}
        }
    }
    Some(out)
}

fn address(answer: &Answer) -> Option<(u32, IpAddr, u8)> {
    if answer.kind != RTM_NEWADDR {
        return None;
    }
    let (header, rest) = answer.body.split_at_checked(IFADDR_BYTES)?;
    let prefix = *header.get(1)?;
    let index = number(header.get(4..8)?)?;
    let found = attrs(rest).find(|(kind, _)| *kind == IFA_ADDRESS)?.1;
    let ip = match <[u8; 4]>::try_from(found) {
        Ok(v4) => IpAddr::from(v4),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(found).ok()?),
    };
    Some((index, ip, prefix))
}

fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
