// SPDX-License-Identifier: Apache-2.0
//! Which traffic goes through the sidecar, as nf_tables rules (ADR 2). One table, `inet weft`, in
//! the namespace of whoever calls; it is made whole, or stays as it was.
//!
//! Called by `pods` for a pod, and by `weft pod-capture` for users or a control group of a
//! machine. The rules are a pure function of a [`CaptureSpec`].
//!
//! **In a pod** all TCP is the sidecar's. What passes it by: `lo`; the sidecar's own sockets, by
//! their mark; the mesh port; what is excluded; UDP (other than DNS, unless it is asked of another
//! pod), ICMP and ICMPv6, which the pod network carries between pods and nowhere else. Other
//! protocols (SCTP, DCCP, UDP-Lite …) are dropped, as is TCP that connection tracking cannot
//! place: the guard chains let nothing by that was not redirected, whatever the reason. Both
//! families are treated alike, whether the pod has IPv6 addresses or not.
//!
//! **On a machine** it is the TCP that the named users (or control group) begin, their DNS, and
//! what comes from outside to the declared ports. Connections that were there before stay as
//! they are, so only first packets are looked at and there is no guard; connections between
//! processes of the machine over `lo` are not captured, unless they are to addresses of the mesh,
//! which in process mode are loopback addresses. The table stays when the agent is killed, so
//! that its end opens no way around: until it is back, or the capture is removed, captured
//! connections are refused.
//!
//! When the sidecar is away, the ports that rules lead to are closed and connections are refused.
//! Any program of a machine may open them then: what is led to a socket without the sidecar's
//! mark, which takes a capability, is dropped.
//!
//! A sidecar that answers DNS on UDP must listen on 127.0.0.1 and ::1 themselves, not on all
//! addresses: an answer from another address of the pod is not the one that was asked.

use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::io::Errno;
use weft_base::sockets::PROXY_MARK;

use super::netlink::{Message, Netlink, NetlinkError};
use super::nft::{Batch, Elements, Hook, ICMP, ICMPV6, Match, TCP, UDP, Verdict};
use super::pods::{POD_NETWORK_V4, POD_NETWORK_V6};

const TABLE: &str = "weft";
/// Has hooks like the other for a moment, with rules that match nobody.
const TRIAL: &str = "weft-trial";
/// The last number that could be a user's, which no system gives.
const NO_USER: u32 = u32::MAX - 1;
const DNS: u16 = 53;
/// Where control groups of version 2 are, by themselves or beside those of version 1.
const CGROUP_ROOTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
const CGROUP2_MAGIC: u64 = 0x6367_7270;

const EXCLUDED_PORTS: &str = "exclude_outbound_ports";
const OPEN_PORTS: &str = "open_inbound_ports";
const DECLARED_PORTS: &str = "inbound_ports";
const SIDECAR_PORTS: &str = "sidecar_ports";
const USERS: &str = "users";
const PASSING: &str = "passing";

/// What is captured, and where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureSpec {
    pub who: Who,
    pub outbound_port: u16,
    pub inbound_port: u16,
    pub dns_port: u16,
    /// Where other sidecars come in; open to the outside.
    pub mesh_port: u16,
    /// On the sidecar's own sockets.
    pub mark: u32,
    /// Where other pods are: names asked of one of them are that pod's to answer.
    pub pod_networks: Vec<(IpAddr, u8)>,
    /// On a machine: addresses of pods and Services that the kernel takes for its own.
    pub mesh_networks: Vec<(IpAddr, u8)>,
    pub exclude_inbound_ports: Vec<u16>,
    /// 53 among them leaves DNS alone.
    pub exclude_outbound_ports: Vec<u16>,
    /// Networks with their prefix lengths. DNS is captured all the same.
    pub exclude_outbound: Vec<(IpAddr, u8)>,
}

/// Whose traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// Everybody's in this namespace.
    Pod,
    /// Of processes of these users, and what comes to these ports.
    Users { users: Vec<u32>, inbound_ports: Vec<u16> },
    /// Of processes in a control group (version 2) and beneath it.
    Cgroup { level: u32, id: u64, inbound_ports: Vec<u16> },
}

// === impl CaptureSpec ===

impl CaptureSpec {
    /// With the sidecar's usual ports and nothing excluded.
    pub fn new(who: Who) -> Self {
        Self {
            who,
            outbound_port: 15001,
            inbound_port: 15006,
            dns_port: 15053,
            mesh_port: 15008,
            mark: PROXY_MARK,
            pod_networks: vec![
                (POD_NETWORK_V4.0.into(), POD_NETWORK_V4.1),
                (POD_NETWORK_V6.0.into(), POD_NETWORK_V6.1),
            ],
            mesh_networks: Vec::new(),
            exclude_inbound_ports: Vec::new(),
            exclude_outbound_ports: Vec::new(),
            exclude_outbound: Vec::new(),
        }
    }

    /// Puts the rules in place of those that were there, at once.
    ///
    /// # Errors
    /// With the rule that the kernel refused; then nothing has changed.
    pub fn install(&self) -> Result<(), NetlinkError> {
        let mut kernel = Netlink::netfilter()?;
        // Taking rules away costs the kernel a wait of some milliseconds for all processors,
        // which a new pod can do without.
        match kernel.batch(&ruleset(Batch::making(TABLE), self)) {
            Err(e) if e.errno() == Some(Errno::EXIST) => {
                kernel.batch(&ruleset(Batch::replacing(TABLE), self))
            }
            done => done,
        }
    }

    /// Puts the rules there when there are none, since a firewall that is loaded anew begins with
    /// none. Whether that was so.
    ///
    /// # Errors
    /// With the rule that the kernel refused.
    pub fn ensure(&self) -> Result<bool, NetlinkError> {
        match Netlink::netfilter()?.batch(&ruleset(Batch::making(TABLE), self)) {
            Ok(()) => Ok(true),
            Err(e) if e.errno() == Some(Errno::EXIST) => Ok(false),
            Err(e) => Err(e),
        }
    }
}

/// Whether this process may make such rules where it is; nothing is left behind.
///
/// # Errors
/// When it may not, or the system knows no such rules.
pub fn trial() -> Result<(), NetlinkError> {
    let spec = CaptureSpec::new(Who::Users { users: vec![NO_USER], inbound_ports: Vec::new() });
    let mut kernel = Netlink::netfilter()?;
    let made = kernel.batch(&ruleset(Batch::making(TRIAL), &spec));
    let removed = kernel.batch(&Batch::removing(TRIAL).finish());
    made.and(removed)
}

/// Takes the rules away, if there are any.
///
/// # Errors
/// When the kernel refuses.
pub fn remove() -> Result<(), NetlinkError> {
    Netlink::netfilter()?.batch(&Batch::removing(TABLE).finish())
}

/// The transaction that makes the rules in the batch's table.
pub fn ruleset(mut batch: Batch, spec: &CaptureSpec) -> Vec<Message> {
    if !spec.exclude_outbound_ports.is_empty() {
        batch.set(EXCLUDED_PORTS, &Elements::Ports(spec.exclude_outbound_ports.clone()));
    }
    match &spec.who {
        Who::Pod => pod(&mut batch, spec),
        Who::Users { users, inbound_ports } => {
            batch.set(USERS, &Elements::Users(users.clone()));
            machine(&mut batch, spec, Match::UserIn(USERS), inbound_ports);
        }
        Who::Cgroup { level, id, inbound_ports } => {
            machine(&mut batch, spec, Match::Cgroup { level: *level, id: *id }, inbound_ports);
        }
    }
    batch.finish()
}

// === impl Who ===

impl Who {
    /// A control group by its path beneath the root of version 2, such as
    /// `/system.slice/shop.service`. It is meant as it is now: one made anew is another.
    ///
    /// # Errors
    /// When there is none, or no version 2.
    pub fn cgroup(path: &str, inbound_ports: Vec<u16>) -> io::Result<Self> {
        let path = path.trim_matches('/');
        let is_v2 = |root: &&&str| {
            // The magic's type differs between machines.
            rustix::fs::statfs(**root).is_ok_and(|s| u64::try_from(s.f_type) == Ok(CGROUP2_MAGIC))
        };
        let root = CGROUP_ROOTS.iter().find(is_v2).ok_or_else(|| {
            io::Error::other("this machine has no control groups of version 2 in /sys/fs/cgroup")
        })?;
        let id = std::fs::metadata(Path::new(root).join(path))?.ino();
        let level = path.split('/').filter(|part| !part.is_empty()).count();
        let level = u32::try_from(level).unwrap_or(u32::MAX);
        Ok(Self::Cgroup { level, id, inbound_ports })
    }
}

// === rules ===

fn pod(batch: &mut Batch, spec: &CaptureSpec) {
    let mut open = spec.exclude_inbound_ports.clone();
    open.push(spec.mesh_port);
    batch.set(OPEN_PORTS, &Elements::Ports(open));
    batch.set(PASSING, &Elements::Protocols(vec![UDP, ICMP, ICMPV6]));
    let lo_out = (Match::ToLoopback, "inside the pod");
    let lo_in = (Match::FromLoopback, "inside the pod");

    let chain = "outbound";
    batch.chain(chain, Some(Hook::NatOutput));
    batch.rule(chain, "the sidecar's own", &[Match::Mark(spec.mark)], &Verdict::Accept);
    batch.rule(chain, lo_out.1, std::slice::from_ref(&lo_out.0), &Verdict::Accept);
    dns(batch, chain, spec);
    excluded(batch, chain, spec);
    let tcp = Match::Protocol(TCP);
    let to_sidecar = Verdict::Redirect(spec.outbound_port);
    batch.rule(chain, "what leaves goes to the sidecar", std::slice::from_ref(&tcp), &to_sidecar);

    let chain = "inbound";
    batch.chain(chain, Some(Hook::NatPrerouting));
    batch.rule(chain, lo_in.1, std::slice::from_ref(&lo_in.0), &Verdict::Accept);
    let open = [tcp.clone(), Match::PortIn(OPEN_PORTS)];
    batch.rule(chain, "the mesh port and excluded ports", &open, &Verdict::Accept);
    let to_sidecar = Verdict::Redirect(spec.inbound_port);
    let all = std::slice::from_ref(&tcp);
    batch.rule(chain, "what arrives goes to the sidecar", all, &to_sidecar);

    let chain = "guard_outbound";
    batch.chain(chain, Some(Hook::FilterOutput));
    batch.rule(chain, lo_out.1, &[lo_out.0], &Verdict::Accept);
    batch.rule(chain, "the sidecar's own", &[Match::Mark(spec.mark)], &Verdict::Accept);
    placed(batch, chain);
    excluded(batch, chain, spec);
    batch.rule(chain, "nothing passes the sidecar by", &[], &Verdict::Drop);

    let chain = "guard_inbound";
    batch.chain(chain, Some(Hook::FilterInput));
    batch.rule(chain, lo_in.1, &[lo_in.0], &Verdict::Accept);
    placed(batch, chain);
    batch.rule(chain, "the mesh port and excluded ports", &open, &Verdict::Accept);
    // What was for this port already is not redirected; the sidecar refuses it itself.
    let own = [tcp, Match::Port(spec.inbound_port)];
    batch.rule(chain, "the sidecar's own port", &own, &Verdict::Accept);
    batch.rule(chain, "nothing passes the sidecar by", &[], &Verdict::Drop);
}

/// What a guard knows to be right.
fn placed(batch: &mut Batch, chain: &str) {
    batch.rule(chain, "went to the sidecar", &[Match::Redirected], &Verdict::Accept);
    batch.rule(chain, "answers", &[Match::Reply], &Verdict::Accept);
    let passing = [Match::ProtocolIn(PASSING)];
    batch.rule(chain, "protocols that are not captured", &passing, &Verdict::Accept);
}

fn dns(batch: &mut Batch, chain: &str, spec: &CaptureSpec) {
    if spec.exclude_outbound_ports.contains(&DNS) {
        return;
    }
    for (protocol, as_ever) in
        [(UDP, Verdict::Accept), (TCP, Verdict::Redirect(spec.outbound_port))]
    {
        let asked = [Match::Protocol(protocol), Match::Port(DNS)];
        for (ip, prefix) in &spec.pod_networks {
            let mut of_pod = asked.to_vec();
            of_pod.push(Match::Destination(*ip, *prefix));
            batch.rule(chain, "names asked of a pod", &of_pod, &as_ever);
        }
        batch.rule(chain, "names", &asked, &Verdict::Redirect(spec.dns_port));
    }
}

fn excluded(batch: &mut Batch, chain: &str, spec: &CaptureSpec) {
    let tcp = Match::Protocol(TCP);
    if !spec.exclude_outbound_ports.is_empty() {
        let ports = [tcp.clone(), Match::PortIn(EXCLUDED_PORTS)];
        batch.rule(chain, "excluded ports", &ports, &Verdict::Accept);
    }
    for (ip, prefix) in &spec.exclude_outbound {
        let network = [tcp.clone(), Match::Destination(*ip, *prefix)];
        batch.rule(chain, "excluded addresses", &network, &Verdict::Accept);
    }
}

/// What the rules led to the sidecar's ports goes to the sidecar or nowhere.
fn usurped(batch: &mut Batch, spec: &CaptureSpec) {
    let ports = vec![spec.outbound_port, spec.inbound_port, spec.dns_port];
    batch.set(SIDECAR_PORTS, &Elements::Ports(ports));
    let chain = "usurped";
    batch.chain(chain, Some(Hook::FilterInput));
    batch.rule(chain, "answers", &[Match::Reply], &Verdict::Accept);
    for protocol in [TCP, UDP] {
        let other = [
            Match::Protocol(protocol),
            Match::PortIn(SIDECAR_PORTS),
            Match::Redirected,
            Match::OtherSocket(spec.mark),
        ];
        batch.rule(chain, "another's socket at the sidecar's port", &other, &Verdict::Drop);
    }
}

fn machine(batch: &mut Batch, spec: &CaptureSpec, whose: Match, inbound_ports: &[u16]) {
    let first = [Match::Protocol(TCP), Match::Syn];
    // The rules of the captured are a chain of their own, so that a packet without a socket,
    // of which nobody knows whose it is, is nobody's.
    let chain = "outbound";
    batch.chain(chain, None);
    batch.rule(chain, "the sidecar's own", &[Match::Mark(spec.mark)], &Verdict::Accept);
    // Before `lo`: the machine's resolver is often there.
    dns(batch, chain, spec);
    let to_sidecar = Verdict::Redirect(spec.outbound_port);
    for (ip, prefix) in &spec.mesh_networks {
        let mut of_mesh = first.to_vec();
        of_mesh.push(Match::Destination(*ip, *prefix));
        batch.rule(chain, "addresses of the mesh", &of_mesh, &to_sidecar);
    }
    batch.rule(chain, "inside the machine", &[Match::ToLoopback], &Verdict::Accept);
    excluded(batch, chain, spec);
    batch.rule(chain, "what leaves goes to the sidecar", &first, &to_sidecar);
    batch.chain("output", Some(Hook::NatOutput));
    batch.rule("output", "who is captured", &[whose], &Verdict::Jump(chain));
    usurped(batch, spec);

    let open = |port: &u16| *port != spec.mesh_port && !spec.exclude_inbound_ports.contains(port);
    let declared: Vec<u16> = inbound_ports.iter().copied().filter(open).collect();
    if declared.is_empty() {
        return;
    }
    batch.set(DECLARED_PORTS, &Elements::Ports(declared));
    let chain = "inbound";
    batch.chain(chain, Some(Hook::NatPrerouting));
    batch.rule(chain, "inside the machine", &[Match::FromLoopback], &Verdict::Accept);
    let [tcp, syn] = first;
    let to_sidecar = Verdict::Redirect(spec.inbound_port);
    let declared = [tcp, Match::PortIn(DECLARED_PORTS), syn];
    batch.rule(chain, "what arrives goes to the sidecar", &declared, &to_sidecar);
}
