// SPDX-License-Identifier: Apache-2.0
//! What the kernel knows of a connection, and giving one up. Called by `half_open` alone; the only
//! place of this room that speaks C.
#![allow(unsafe_code)]

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{BorrowedFd, RawFd};

/// What of `tcp_info` says whether the other end is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Segments that were sent and not acknowledged.
    pub unacked: u32,
    /// How often in a row they were sent again in vain.
    pub resent: u8,
    /// Since the last acknowledgement.
    pub silent_ms: u32,
    /// Questions whether the other end may get more, or is there, without an answer.
    pub asked: u32,
}

/// # Errors
/// When the descriptor is no TCP socket, or none at all any more.
pub fn progress(fd: RawFd) -> io::Result<Progress> {
    // SAFETY: the structure is plain data, and its own size is given with it; a number that is no
    // open descriptor is an error of the call.
    let (done, info) = unsafe {
        let mut info: libc::tcp_info = zeroed();
        let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).unwrap_or(0);
        let at = (&raw mut info).cast();
        let done = libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, at, &raw mut length);
        (done, info)
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Progress {
        unacked: info.tcpi_unacked,
        resent: info.tcpi_retransmits,
        silent_ms: info.tcpi_last_ack_recv,
        asked: u32::from(info.tcpi_probes),
    })
}

/// The kernel's own number of a socket, which no other one ever gets.
pub fn cookie(fd: RawFd) -> io::Result<u64> {
    // SAFETY: the descriptor is used for this one call only; when it is not open, that fails.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    socket2::SockRef::from(&fd).cookie()
}

/// Ends a connection at once: whoever reads or writes it sees a reset.
///
/// # Errors
/// Those of the system.
pub fn give_up(fd: RawFd) -> io::Result<()> {
    // SAFETY: the descriptor is used for this one call only; when it is not open, that fails.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    Ok(rustix::net::connect_unspec(fd)?)
}
