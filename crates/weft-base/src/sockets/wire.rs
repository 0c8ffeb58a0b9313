// SPDX-License-Identifier: Apache-2.0
//! What goes over a door: one request of fixed size, one reply of an error number, a sentence
//! and, when the number is zero, one descriptor. Bytes in, bytes out; `door` does the I/O.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// Bytes of a request.
pub(super) const ASK_BYTES: usize = 32;
/// Bytes of a reply before its sentence.
const REPLY_HEAD_BYTES: usize = 8;
/// Bytes kept of a sentence.
const WHY_BYTES_MAX: usize = 512;
/// Largest reply.
const REPLY_BYTES_MAX: usize = REPLY_HEAD_BYTES + WHY_BYTES_MAX;
const VERSION: u8 = 1;

/// A socket that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// A TCP connection.
    Connect { to: SocketAddr, timeout: Duration },
    /// A TCP listener.
    Listen { at: SocketAddr, reuse_port: bool },
    /// A UDP socket that talks to one peer.
    Udp { peer: SocketAddr },
    /// A UDP socket that takes what anybody sends.
    Datagrams { at: SocketAddr },
}

/// A reply as it arrives, perhaps in pieces.
#[derive(Debug, Default)]
pub(super) struct Reply {
    bytes: Vec<u8>,
    fd: Option<OwnedFd>,
}

// === impl Ask ===

impl Ask {
    /// The address that is asked for.
    pub fn address(&self) -> SocketAddr {
        match *self {
            Self::Connect { to, .. } => to,
            Self::Listen { at, .. } => at,
            Self::Udp { peer } => peer,
            Self::Datagrams { at } => at,
        }
    }

    pub(super) fn encode(&self) -> [u8; ASK_BYTES] {
        let (op, flags, timeout) = match self {
            Self::Connect { timeout, .. } => (1, 0, *timeout),
            Self::Listen { reuse_port, .. } => (2, u8::from(*reuse_port), Duration::ZERO),
            Self::Udp { .. } => (3, 0, Duration::ZERO),
            Self::Datagrams { .. } => (4, 0, Duration::ZERO),
        };
        let ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        let address = self.address();
        let (family, ip, scope) = match address {
            SocketAddr::V4(v4) => (4, v4.ip().to_ipv6_mapped(), 0),
            SocketAddr::V6(v6) => (6, *v6.ip(), v6.scope_id()),
        };
        let mut out = [0; ASK_BYTES];
        let parts = [
            &[VERSION, op, flags, family][..],
            &ms.to_be_bytes(),
            &scope.to_be_bytes(),
            &ip.octets(),
            &address.port().to_be_bytes(),
        ];
        for (slot, byte) in out.iter_mut().zip(parts.iter().copied().flatten()) {
            *slot = *byte;
        }
        out
    }

    /// `None` when the bytes are not a request of this version.
    pub(super) fn decode(bytes: &[u8; ASK_BYTES]) -> Option<Self> {
        let (&[version, op, flags, family], rest) = bytes.split_first_chunk()?;
        let (ms, rest) = rest.split_first_chunk()?;
        let (scope, rest) = rest.split_first_chunk()?;
        let (ip, rest) = rest.split_first_chunk::<16>()?;
        let (port, _) = rest.split_first_chunk()?;
        let (ip, port) = (Ipv6Addr::from(*ip), u16::from_be_bytes(*port));
        let address = match family {
            4 => SocketAddr::new(IpAddr::V4(v4(ip)?), port),
            6 => SocketAddrV6::new(ip, port, 0, u32::from_be_bytes(*scope)).into(),
            _ => return None,
        };
        let timeout = Duration::from_millis(u64::from(u32::from_be_bytes(*ms)));
        match (version, op, flags) {
            (VERSION, 1, 0) => Some(Self::Connect { to: address, timeout }),
            (VERSION, 2, 0 | 1) => Some(Self::Listen { at: address, reuse_port: flags == 1 }),
            (VERSION, 3, 0) => Some(Self::Udp { peer: address }),
            (VERSION, 4, 0) => Some(Self::Datagrams { at: address }),
            _ => None,
        }
    }
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect { to, .. } => write!(f, "a connection to {to}"),
            Self::Listen { at, .. } => write!(f, "a listener at {at}"),
            Self::Udp { peer } => write!(f, "a UDP socket to {peer}"),
            Self::Datagrams { at } => write!(f, "a UDP socket at {at}"),
        }
    }
}

fn v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    ip.to_ipv4_mapped()
}

// === impl Reply ===

impl Reply {
    /// Takes what has arrived; true when the reply is whole. Never blocks on a non-blocking
    /// descriptor.
    pub(super) fn receive(&mut self, from: impl AsFd) -> io::Result<bool> {
        let mut buffer = [0; REPLY_BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let got = rustix::io::retry_on_intr(|| {
            rustix::net::recvmsg(&from, &mut slices, &mut control, flags)
        })?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fd = self.fd.take().or_else(|| fds.into_iter().next());
            }
        }
        if got.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.bytes.extend(buffer.iter().take(got.bytes));
        Ok(self.parts().is_some())
    }

    /// The descriptor, or the other side's error number and sentence.
    pub(super) fn finish(self) -> io::Result<OwnedFd> {
        let bad = || io::Error::new(io::ErrorKind::InvalidData, "no reply of a door");
        let (errno, why) = self.parts().ok_or_else(bad)?;
        if errno == 0 {
            return self.fd.ok_or_else(bad);
        }
        Err(super::DoorError { errno, why }.into_io())
    }

    fn parts(&self) -> Option<(i32, String)> {
        let (&[_version, _, high, low], rest) = self.bytes.split_first_chunk()?;
        let (errno, why) = rest.split_first_chunk()?;
        let whole = usize::from(u16::from_be_bytes([high, low])).min(WHY_BYTES_MAX);
        let why = why.get(..whole)?;
        Some((i32::from_be_bytes(*errno), String::from_utf8_lossy(why).into_owned()))
    }
}

/// Sends a reply in one piece. Never blocks on a non-blocking descriptor.
pub(super) fn send_reply(to: impl AsFd, made: &Result<OwnedFd, (i32, String)>) -> io::Result<()> {
    let (errno, why, fd): (i32, &str, Option<BorrowedFd<'_>>) = match made {
        Ok(fd) => (0, "", Some(fd.as_fd())),
        Err((errno, why)) => (*errno, why, None),
    };
    let why = why.get(..why.floor_char_boundary(WHY_BYTES_MAX)).unwrap_or_default();
    let length = u16::try_from(why.len()).unwrap_or_default().to_be_bytes();
    let head = [[VERSION, 0], length].concat();
    let bytes = [&head[..], &errno.to_be_bytes(), why.as_bytes()].concat();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("no room for the descriptor"));
    }
    let slices = [IoSlice::new(&bytes)];
    let sent = rustix::net::sendmsg(to, &slices, &mut control, SendFlags::NOSIGNAL)?;
    if sent != bytes.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(())
}
