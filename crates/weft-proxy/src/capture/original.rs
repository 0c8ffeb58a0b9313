// SPDX-License-Identifier: Apache-2.0
//! The address that a redirected connection was made to. Called once per captured connection.

use std::io;
use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::TcpStream;

/// How the address is learned.
#[derive(Clone, Default)]
pub enum OriginalDst {
    /// The kernel remembers it (`SO_ORIGINAL_DST`).
    #[default]
    Kernel,
    /// A test names it, by the client's address.
    #[cfg(test)]
    Given(std::sync::Arc<dyn Fn(SocketAddr) -> Option<SocketAddr> + Send + Sync>),
}

// === impl OriginalDst ===

impl OriginalDst {
    /// `None` when nothing redirected the connection: somebody dialled the capture port itself.
    ///
    /// # Errors
    /// When the system cannot tell.
    pub fn of(&self, stream: &TcpStream) -> io::Result<Option<SocketAddr>> {
        let local = stream.local_addr()?;
        let found = match self {
            Self::Kernel => kernel(stream, local),
            #[cfg(test)]
            Self::Given(given) => Ok(given(stream.peer_addr()?)),
        }?;
        Ok(found.filter(|original| *original != local))
    }
}

fn kernel(stream: &TcpStream, local: SocketAddr) -> io::Result<Option<SocketAddr>> {
    let socket = SockRef::from(stream);
    let found = if local.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    match found {
        Ok(address) => Ok(address.as_socket()),
        // Connection tracking does not know it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl std::fmt::Debug for OriginalDst {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kernel => "Kernel",
            #[cfg(test)]
            Self::Given(_) => "Given",
        })
    }
}
