// SPDX-License-Identifier: Apache-2.0
//! Binds listening sockets, exclusively first: a port in use is an error, also when its owner
//! shares it. The control runtime calls this; workers only accept on what they are handed.
//! Sockets of the host's namespace come through its door.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use thiserror::Error;

use crate::config::ProxyConfig;
use crate::handover::{self, Takes};
use crate::udp::sys;

/// Connections the kernel keeps before they are accepted.
const BACKLOG: i32 = 1024;
/// What Linux takes at most of its keepalive settings.
const KEEPALIVE_S_MAX: u32 = 32_767;
const KEEPALIVE_PROBES_MAX: u32 = 127;

#[derive(Debug, Error)]
#[error("cannot listen on {address}: {source}{}", hint(source))]
pub struct ListenError {
    pub address: SocketAddr,
    #[source]
    pub source: io::Error,
}

// === impl ListenError ===

impl ListenError {
    /// The machine has no addresses of this family.
    pub fn is_no_family(&self) -> bool {
        let code = self.source.raw_os_error();
        let none = code == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error());
        self.address.is_ipv6() && (none || self.source.kind() == io::ErrorKind::AddrNotAvailable)
    }
}

/// Why no door is opened just now; it is tried again.
pub fn handing(address: SocketAddr) -> ListenError {
    let source = io::Error::other("a newer process is taking over what is open; it is tried again");
    ListenError { address, source }
}

/// One socket per worker, all on `address`. With port 0 the system chooses one port for all.
///
/// # Errors
/// When the address is in use, not local, or not permitted.
pub fn bind(address: SocketAddr, workers: usize) -> Result<Vec<TcpListener>, ListenError> {
    bind_all(address, workers.max(1)).map_err(|source| ListenError { address, source })
}

/// The same for an address that may be in the host's namespace. Workers then share one socket,
/// since only its maker could make others that join it.
///
/// # Errors
/// As [`bind`], and when the host's side does not answer.
pub async fn bind_from(
    config: &ProxyConfig,
    address: SocketAddr,
    workers: usize,
) -> Result<Vec<TcpListener>, ListenError> {
    let takes = Takes::Connections;
    let sockets = match config.handover.take(address, takes, workers.max(1)) {
        Some(inherited) => handover::listeners(inherited),
        None => make_from(config, address, workers).await?,
    };
    config.handover.keep(takes, &sockets);
    Ok(sockets)
}

async fn make_from(
    config: &ProxyConfig,
    address: SocketAddr,
    workers: usize,
) -> Result<Vec<TcpListener>, ListenError> {
    // What capture leads to is always here, whatever its address.
    let captures = config.capture.as_ref().is_some_and(|c| {
        c.outbound.iter().chain(&c.inbound).chain(&c.mesh).any(|door| *door == address)
    });
    if captures {
        let sockets = bind(address, workers)?;
        sockets.iter().try_for_each(|socket| own(config, address, socket))?;
        return Ok(sockets);
    }
    if !config.is_outside(address.ip()) {
        return bind(address, workers);
    }
    let wrong = |source| ListenError { address, source };
    let first = config.host.listen_async(address, false).await.map_err(wrong)?;
    first.set_nonblocking(true).map_err(wrong)?;
    let socket = SockRef::from(&first);
    socket.set_tcp_nodelay(true).map_err(wrong)?;
    socket.set_tcp_keepalive(&keepalive()).map_err(wrong)?;
    let more = (1..workers.max(1)).map(|_| first.try_clone()).collect::<io::Result<Vec<_>>>();
    let mut sockets = more.map_err(wrong)?;
    sockets.insert(0, first);
    Ok(sockets)
}

/// One socket for datagrams per worker, all on `address`: the kernel leads what one client sends
/// to the same one. On an address of the host's namespace there is one, and of an older process
/// there are as many as it had, since what a client sends must not be shared out among workers.
///
/// # Errors
/// When the address is in use, not local, or not permitted.
pub async fn bind_datagrams(
    config: &ProxyConfig,
    address: SocketAddr,
    workers: usize,
) -> Result<Vec<UdpSocket>, ListenError> {
    let wrong = |source| ListenError { address, source };
    if config.is_outside(address.ip()) {
        let only = config.host.datagrams(address).await.map_err(wrong)?;
        if address.ip().is_unspecified() {
            sys::tell_dialled(&only, address.is_ipv6()).map_err(wrong)?;
        }
        return Ok(vec![only]);
    }
    let takes = Takes::Datagrams;
    let sockets = match config.handover.take(address, takes, workers.max(1)) {
        Some(inherited) => handover::datagrams(inherited),
        None => {
            let made = bind_each(address, workers.max(1), datagram_socket).map_err(wrong)?;
            made.into_iter().map(UdpSocket::from).collect()
        }
    };
    config.handover.keep(takes, &sockets);
    Ok(sockets)
}

fn datagram_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    if address.ip().is_unspecified() {
        sys::tell_dialled(&socket, address.is_ipv6())?;
    }
    Ok(socket)
}

/// Marks a socket that capture leads to: on a machine nothing is led to other programs' sockets.
///
/// # Errors
/// When this process may not.
pub fn own(
    config: &ProxyConfig,
    address: SocketAddr,
    socket: &impl AsFd,
) -> Result<(), ListenError> {
    let Some(mark) = config.mark else { return Ok(()) };
    let marked = SockRef::from(socket).set_mark(mark);
    marked.map_err(|source| ListenError { address, source })
}

fn bind_all(address: SocketAddr, workers: usize) -> io::Result<Vec<TcpListener>> {
    let sockets = bind_each(address, workers, socket)?;
    for socket in &sockets {
        socket.listen(BACKLOG)?;
    }
    Ok(sockets.into_iter().map(TcpListener::from).collect())
}

/// Bound sockets on one address that nobody else has.
fn bind_each(
    address: SocketAddr,
    workers: usize,
    socket: fn(SocketAddr) -> io::Result<Socket>,
) -> io::Result<Vec<Socket>> {
    let first = socket(address)?;
    first.bind(&address.into())?;
    let bound = first.local_addr()?.as_socket().unwrap_or(address);
    let mut sockets = vec![first];
    if workers > 1 {
        // Nobody else has the port now; from here on only sockets of ours may join it.
        for socket in &sockets {
            socket.set_reuse_port(true)?;
        }
        for _ in 1..workers {
            let next = socket(bound)?;
            next.set_reuse_port(true)?;
            next.bind(&bound.into())?;
            sockets.push(next);
        }
    }
    Ok(sockets)
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    // Accepted sockets inherit it on Linux, which saves a system call for each.
    socket.set_tcp_nodelay(true)?;
    // Peers that vanished without a word do not hold a connection for ever.
    socket.set_tcp_keepalive(&keepalive())?;
    Ok(socket)
}

/// Probes after a minute of silence, gone after about one and a half.
pub fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(10))
        .with_retries(3)
}

/// The same with what somebody says in its place, as far as the kernel takes it.
pub fn keepalive_of(said: Option<&weft_model::TcpKeepalive>) -> TcpKeepalive {
    let Some(said) = said else { return keepalive() };
    let seconds = |n: u32| Duration::from_secs(n.clamp(1, KEEPALIVE_S_MAX).into());
    let mut out = keepalive();
    if let Some(n) = said.idle_s {
        out = out.with_time(seconds(n));
    }
    if let Some(n) = said.interval_s {
        out = out.with_interval(seconds(n));
    }
    match said.probes {
        Some(n) => out.with_retries(n.clamp(1, KEEPALIVE_PROBES_MAX)),
        None => out,
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; stop the process that has it, or choose another port",
        io::ErrorKind::AddrNotAvailable => "; the address is not one of this machine's",
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need privilege, choose one above or grant CAP_NET_BIND_SERVICE"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_an_error_even_between_sharers() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let first = bind(any, 3).unwrap();
        assert_eq!(first.len(), 3);
        let address = first[0].local_addr().unwrap();
        assert!(first.iter().all(|l| l.local_addr().unwrap() == address));
        let error = bind(address, 3).unwrap_err();
        assert!(error.to_string().contains("stop the process"), "{error}");
        assert!(bind(address, 1).is_err());
    }
}
