// SPDX-License-Identifier: Apache-2.0
//! Datagrams on a socket that is bound to every address: which one was dialled, and answering from
//! it. Called by `udp` and `listen`; the only place of this room that speaks C.
#![allow(unsafe_code)]

use std::io;
use std::mem::{MaybeUninit, size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};

use socket2::SockAddr;

/// Room for one control message with an address, and its alignment.
#[repr(align(8))]
struct Control([u8; 64]);

/// Asks for the dialled address with every datagram.
///
/// # Errors
/// Those of the system.
pub fn tell_dialled(socket: &impl AsFd, v6: bool) -> io::Result<()> {
    let (level, name) = match v6 {
        true => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
        false => (libc::IPPROTO_IP, libc::IP_PKTINFO),
    };
    let on: libc::c_int = 1;
    let length = length_of::<libc::c_int>();
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed, and the value is a live integer of the length given.
    let done = unsafe { libc::setsockopt(fd, level, name, (&raw const on).cast(), length) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes one datagram: its length, who sent it, and which address of ours it came to.
///
/// # Errors
/// Those of the system; `WouldBlock` when there is none.
pub fn receive(
    socket: &impl AsFd,
    buffer: &mut [u8],
) -> io::Result<(usize, SocketAddr, Option<IpAddr>)> {
    let mut control = Control([0; 64]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let fd = socket.as_fd().as_raw_fd();
    let mut dialled = None;
    let mut taken = 0;
    // SAFETY: all pointers in the header outlive the call and have the lengths given; the storage
    // of the address is as large as `SockAddr` says, and is read only after the call filled it.
    let ((), from) = unsafe {
        SockAddr::try_init(|storage, length| {
            let mut header: libc::msghdr = zeroed();
            header.msg_name = storage.cast();
            header.msg_namelen = *length;
            header.msg_iov = &raw mut part;
            header.msg_iovlen = 1;
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_controllen = control.0.len();
            let n = libc::recvmsg(fd, &raw mut header, libc::MSG_DONTWAIT);
            if n < 0 {
                return Err(io::Error::last_os_error());
            }
            *length = header.msg_namelen;
            taken = usize::try_from(n).unwrap_or_default();
            dialled = address_in(&header);
            Ok(())
        })?
    };
    let from = from.as_socket().ok_or(io::ErrorKind::InvalidData)?;
    Ok((taken, from, dialled))
}

/// Sends one datagram from an address of ours.
///
/// # Errors
/// Those of the system.
pub fn send(socket: &impl AsFd, bytes: &[u8], to: SocketAddr, own: IpAddr) -> io::Result<()> {
    let to = SockAddr::from(to);
    let mut control = Control([0; 64]);
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: all pointers in the header outlive the call and have the lengths given; the bytes
    // are only read. The control buffer is aligned and has room for the larger of both messages.
    let sent = unsafe {
        let mut header: libc::msghdr = zeroed();
        header.msg_name = to.as_ptr().cast_mut().cast();
        header.msg_namelen = to.len();
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = control.0.len();
        header.msg_controllen = say_address(&header, own);
        libc::sendmsg(fd, &raw const header, libc::MSG_DONTWAIT)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The address that a received datagram was sent to.
///
/// # Safety
/// The header is one that `recvmsg` filled, with its control buffer still alive.
unsafe fn address_in(header: &libc::msghdr) -> Option<IpAddr> {
    // SAFETY: by the caller, the macros walk over a buffer that the kernel filled; each message is
    // read only as the type that its level and kind say, and without regard to alignment.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(header);
        while let Some(message) = at.as_ref() {
            let data = libc::CMSG_DATA(at);
            match (message.cmsg_level, message.cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info: libc::in_pktinfo = data.cast::<libc::in_pktinfo>().read_unaligned();
                    return Some(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr)).into());
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info: libc::in6_pktinfo = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    return Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into());
                }
                _ => at = libc::CMSG_NXTHDR(header, at),
            }
        }
        None
    }
}

/// Writes the address to send from; returns the bytes used.
///
/// # Safety
/// The header's control buffer is alive, aligned and at least 64 bytes long.
unsafe fn say_address(header: &libc::msghdr, own: IpAddr) -> usize {
    // SAFETY: by the caller there is room for the first message with either address.
    unsafe {
        let at = libc::CMSG_FIRSTHDR(header);
        match own {
            IpAddr::V4(ip) => {
                let mut info: libc::in_pktinfo = MaybeUninit::zeroed().assume_init();
                info.ipi_spec_dst.s_addr = u32::from(ip).to_be();
                (*at).cmsg_level = libc::IPPROTO_IP;
                (*at).cmsg_type = libc::IP_PKTINFO;
                (*at).cmsg_len = libc::CMSG_LEN(length_of::<libc::in_pktinfo>()) as usize;
                libc::CMSG_DATA(at).cast::<libc::in_pktinfo>().write_unaligned(info);
                libc::CMSG_SPACE(length_of::<libc::in_pktinfo>()) as usize
            }
            IpAddr::V6(ip) => {
                let mut info: libc::in6_pktinfo = MaybeUninit::zeroed().assume_init();
                info.ipi6_addr.s6_addr = ip.octets();
                (*at).cmsg_level = libc::IPPROTO_IPV6;
                (*at).cmsg_type = libc::IPV6_PKTINFO;
                (*at).cmsg_len = libc::CMSG_LEN(length_of::<libc::in6_pktinfo>()) as usize;
                libc::CMSG_DATA(at).cast::<libc::in6_pktinfo>().write_unaligned(info);
                libc::CMSG_SPACE(length_of::<libc::in6_pktinfo>()) as usize
            }
        }
    }
}

fn length_of<T>() -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn an_answer_comes_from_the_address_that_was_dialled() {
        for (any, own) in [("0.0.0.0:0", "127.0.0.77"), ("[::]:0", "::1")] {
            // Not every machine has the second family.
            let Ok(door) = UdpSocket::bind(any) else { continue };
            tell_dialled(&door, any.starts_with('[')).unwrap();
            let port = door.local_addr().unwrap().port();
            let own: IpAddr = own.parse().unwrap();
            let client = UdpSocket::bind(SocketAddr::new(own, 0)).unwrap();
            client.connect(SocketAddr::new(own, port)).unwrap();
            client.send(b"question").unwrap();
            door.set_nonblocking(false).unwrap();
            // It is there by the time that `send` returns: loopback delivers at once.
            let mut buffer = [0; 64];
            let (n, from, dialled) = receive(&door, &mut buffer).unwrap();
            assert_eq!((&buffer[..n], from), (&b"question"[..], client.local_addr().unwrap()));
            assert_eq!(dialled, Some(own));
            send(&door, b"answer", from, own).unwrap();
            // A connected socket takes nothing from any other address.
            let n = client.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..n], b"answer");
            assert_eq!(receive(&door, &mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
    }
}
