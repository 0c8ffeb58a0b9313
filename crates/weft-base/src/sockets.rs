// SPDX-License-Identifier: Apache-2.0
//! Sockets made here, or in another network namespace by the process that lives there.
//!
//! Used by the proxy (the *host door*: what must reach the machine from inside a pod) and by the
//! agent (the *pod door*: probes and forwarding into a pod). A door is a Unix socket; one exchange
//! asks for one socket and gets its descriptor, and the kernel says who asks. This room knows
//! nothing of namespaces, and never decides who may have what: the owner of a door does.
//!
//! Every socket comes non-blocking and closed on exec.

mod door;
mod here;
#[cfg(test)]
mod tests;
mod wire;

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use door::{Peer, bind_door, serve_door};
pub use wire::Ask;

/// The mark on a proxy's own sockets, by which capture lets them pass ("weft" in ASCII).
pub const PROXY_MARK: u32 = 0x7765_6674;

/// Where sockets come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketFactory {
    /// This process's own network namespace.
    Here,
    /// The namespace of the process that serves the door at this path.
    Door(Arc<Path>),
}

/// Why the other side of a door made no socket. The `io::Error` around it has the kind of the
/// error over there, and [`errno`] gives its number.
#[derive(Debug)]
pub struct DoorError {
    errno: i32,
    why: String,
}

// === impl SocketFactory ===

impl SocketFactory {
    pub fn door(path: &Path) -> Self {
        Self::Door(path.into())
    }

    /// A TCP connection. Cancel-safe: a connection whose caller went away is given up.
    ///
    /// # Errors
    /// When it cannot be made within `timeout`, or the door refuses or does not answer.
    pub async fn connect(&self, to: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
        match self {
            Self::Here => here::connect(to, timeout).await,
            Self::Door(path) => Ok(door::ask(path, Ask::Connect { to, timeout }).await?.into()),
        }
    }

    /// A TCP listener. Blocks for as long as a door takes; for start-up and control threads.
    /// An IPv6 listener takes IPv6 only.
    ///
    /// # Errors
    /// When the address is in use or not to be had, or the door refuses or does not answer.
    pub fn listen(&self, at: SocketAddr, reuse_port: bool) -> io::Result<TcpListener> {
        match self {
            Self::Here => here::listen(at, reuse_port),
            Self::Door(path) => {
                Ok(door::ask_blocking(path, Ask::Listen { at, reuse_port })?.into())
            }
        }
    }

    /// [`listen`](Self::listen) without blocking. Cancel-safe.
    ///
    /// # Errors
    /// As `listen`.
    pub async fn listen_async(&self, at: SocketAddr, reuse_port: bool) -> io::Result<TcpListener> {
        match self {
            Self::Here => here::listen(at, reuse_port),
            Self::Door(path) => Ok(door::ask(path, Ask::Listen { at, reuse_port }).await?.into()),
        }
    }

    /// A UDP socket that talks to `peer` alone. Cancel-safe.
    ///
    /// # Errors
    /// When there is no way to `peer`, or the door refuses or does not answer.
    pub async fn udp(&self, peer: SocketAddr) -> io::Result<UdpSocket> {
        match self {
            Self::Here => here::udp(peer),
            Self::Door(path) => Ok(door::ask(path, Ask::Udp { peer }).await?.into()),
        }
    }

    /// A UDP socket that takes what anybody sends to `at`. Cancel-safe.
    ///
    /// # Errors
    /// When the address is in use or not to be had, or the door refuses or does not answer.
    pub async fn datagrams(&self, at: SocketAddr) -> io::Result<UdpSocket> {
        match self {
            Self::Here => here::datagrams(at),
            Self::Door(path) => Ok(door::ask(path, Ask::Datagrams { at }).await?.into()),
        }
    }
}

/// Puts [`PROXY_MARK`] on a socket. Needs CAP_NET_ADMIN or CAP_NET_RAW over its namespace.
///
/// # Errors
/// `PermissionDenied` without those.
pub fn set_mark(socket: impl AsFd) -> io::Result<()> {
    socket2::SockRef::from(&socket).set_mark(PROXY_MARK)
}

/// The system's error number, wherever the error came from.
pub fn errno(error: &io::Error) -> Option<i32> {
    error
        .raw_os_error()
        .or_else(|| error.get_ref().and_then(|e| e.downcast_ref::<DoorError>()).map(|e| e.errno))
}

// === impl DoorError ===

impl DoorError {
    fn into_io(self) -> io::Error {
        io::Error::new(io::Error::from_raw_os_error(self.errno).kind(), self)
    }
}

impl fmt::Display for DoorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for DoorError {}
