// SPDX-License-Identifier: Apache-2.0
//! The resolver of pods in namespaces: a DNS door on a loopback port that only their sidecars are
//! told (`weft proxy --dns`). It knows all that the public door knows, and asks the machine's own
//! resolvers for the rest.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use weft_base::clock::Clock;
use weft_base::rng::Rng;
use weft_registry::Registry;
use weft_server::consul::Door;
use weft_server::consul::view::Identity;
use weft_server::dns::{Options, Server, Servers, Upstream, Zones, outside};

use super::{CLUSTER_DOMAIN, DATACENTER, consul_config};

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// A port that is free for datagrams may be taken for connections.
const TRIES: usize = 32;

/// Opens the door; where it is.
pub fn start(registry: &Registry, node: &str, eyes: Door) -> Result<SocketAddr> {
    let (udp, tcp) = bind().context("the resolver of pods finds no free port")?;
    let at = udp.local_addr()?;
    udp.set_nonblocking(true)?;
    tcp.set_nonblocking(true)?;
    let udp = tokio::net::UdpSocket::from_std(udp)?;
    let tcp = tokio::net::TcpListener::from_std(tcp)?;
    let server = names(registry, node, Some(eyes));
    let tasks = registry.tasks();
    // One of its own, so that look-ups and pods do not wait for each other.
    let other = machines_own(registry.clock());
    tasks.spawn("names outside", outside::run(registry.clone(), other));
    tasks.spawn("pod dns over udp", server.clone().serve_udp(udp, tasks.clone()));
    tasks.spawn("pod dns over tcp", server.serve_tcp(tcp, tasks.clone()));
    Ok(at)
}

/// What the mesh's own names end in.
pub fn zones() -> Zones {
    Zones { datacenter: DATACENTER.into(), cluster_domain: CLUSTER_DOMAIN.into() }
}

/// All names, those of the machine's own resolvers too; Consul's as far as `eyes` see them.
pub fn names(registry: &Registry, node: &str, eyes: Option<Door>) -> Server {
    let own = match &eyes {
        Some(door) => door.identity().clone(),
        None => Arc::new(consul_config(node).identity()),
    };
    let clock = registry.clock().clone();
    let upstream = Some(machines_own(&clock));
    let records = Some(registry.consul().clone());
    let options = Options { upstream, records, eyes, ..Options::new(clock) };
    Server::with(registry.world(), own, zones(), Rng::from_system(), options)
}

/// Names of what a machine's own registry has, and of nothing else.
pub fn of_own(registry: &Registry, own: Arc<Identity>, only_passing: bool) -> Server {
    let options = Options { only_passing, ..Options::new(registry.clock().clone()) };
    Server::with(registry.world(), own, zones(), Rng::from_system(), options)
}

/// The resolvers that this machine names for itself.
pub fn machines_own(clock: &Clock) -> Upstream {
    Upstream::new(Servers::File(RESOLV_CONF.into()), clock.clone(), Rng::from_system())
}

/// A loopback port for both, and nobody's before.
pub fn bind() -> std::io::Result<(UdpSocket, TcpListener)> {
    let mut last = None;
    for _ in 0..TRIES {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        match UdpSocket::bind(tcp.local_addr()?) {
            Ok(udp) => return Ok((udp, tcp)),
            Err(e) => last = Some(e),
        }
    }
    Err(last.unwrap_or_else(|| std::io::ErrorKind::AddrInUse.into()))
}
