// SPDX-License-Identifier: Apache-2.0
//! Connections whose other end is gone without a word. What was sent to it is sent again and again
//! and never acknowledged; the system gives up after a quarter of an hour, we after some seconds.
//! Every worker looks at its own sockets now and then: no connection pays anything for it.
//!
//! Not `TCP_USER_TIMEOUT`: that also ends peers that are alive and read slowly.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use super::sys;

/// How often a worker looks.
pub const LOOK_EVERY: Duration = Duration::from_secs(4);
/// Looks at which a connection was stuck, in a row, before it is given up.
const STUCK_LOOKS: u8 = 3;
/// A connection is stuck when what was sent to it was sent again and nothing was heard for so long.
const SILENT_MS: u32 = 2_000;
/// The same for connections to an address that just did not answer a call.
const CALLED_SILENT_MS: u32 = 400;

thread_local! {
    static OPEN: RefCell<HashMap<RawFd, Watched>> = RefCell::default();
}

#[derive(Clone, Copy, Debug)]
struct Watched {
    /// Tells a socket from a later one with its number.
    cookie: u64,
    stuck: u8,
    /// Whom we called; nobody when we were called.
    to: Option<SocketAddr>,
}

/// Looks at this socket from now on, until it is closed. `to` is whom we called with it.
pub fn watch(socket: &impl AsFd, to: Option<SocketAddr>) {
    let fd = socket.as_fd().as_raw_fd();
    if let Ok(cookie) = sys::cookie(fd) {
        OPEN.with_borrow_mut(|open| open.insert(fd, Watched { cookie, stuck: 0, to }));
    }
}

/// Somebody took too long to answer a call: what is under way to the same address, was sent again
/// and heard nothing, ends now. Those who wait for it can ask elsewhere. Returns how many ended.
pub fn look_at(address: SocketAddr) -> usize {
    let mut given_up = 0;
    OPEN.with_borrow_mut(|open| {
        open.retain(|fd, watched| {
            if watched.to != Some(address) {
                return true;
            }
            let Ok(progress) = sys::progress(*fd) else { return false };
            let stuck = progress.silent_ms >= CALLED_SILENT_MS;
            if progress.unacked == 0 || progress.resent == 0 || !stuck {
                return true;
            }
            if sys::cookie(*fd).is_ok_and(|cookie| cookie == watched.cookie) {
                given_up += usize::from(sys::give_up(*fd).is_ok());
            }
            false
        });
    });
    given_up
}

/// Looks at all sockets of this thread; returns how many were given up.
pub fn look() -> usize {
    let mut given_up = 0;
    OPEN.with_borrow_mut(|open| {
        open.retain(|fd, watched| {
            let Ok(progress) = sys::progress(*fd) else { return false };
            watched.stuck = if is_stuck(progress) { watched.stuck + 1 } else { 0 };
            if watched.stuck < STUCK_LOOKS {
                return true;
            }
            if sys::cookie(*fd).is_ok_and(|cookie| cookie == watched.cookie) {
                tracing::debug!(fd, ?progress, "a peer is gone without a word");
                given_up += usize::from(sys::give_up(*fd).is_ok());
            }
            false
        });
    });
    given_up
}

fn is_stuck(progress: sys::Progress) -> bool {
    progress.unacked > 0 && progress.resent > 0 && progress.silent_ms >= SILENT_MS
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn who_is_alive_is_left_alone_however_slowly_it_reads() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        let to = listener.local_addr().ok();
        watch(&near, to);
        near.set_nonblocking(true).unwrap();
        // Until the other side's window is closed.
        while near.write(&[7; 65_536]).is_ok() {}
        for _ in 0..STUCK_LOOKS + 2 {
            assert_eq!((look(), look_at(to.unwrap())), (0, 0));
        }
        far.set_nonblocking(true).unwrap();
        assert!(far.read(&mut [0; 1024]).unwrap() > 0);
        drop(near);
        assert_eq!(look(), 0);
        OPEN.with_borrow(|open| assert!(open.is_empty(), "closed sockets are forgotten"));
    }

    #[test]
    fn stuck_is_what_is_sent_in_vain() {
        let stuck = sys::Progress { unacked: 1, resent: 2, silent_ms: 4_000 };
        assert!(is_stuck(stuck));
        // A first try after a long silence, a short gap, an idle connection, a closed window.
        assert!(!is_stuck(sys::Progress { resent: 0, ..stuck }));
        assert!(!is_stuck(sys::Progress { silent_ms: 300, ..stuck }));
        assert!(!is_stuck(sys::Progress { unacked: 0, ..stuck }));
    }

    #[test]
    fn what_is_given_up_is_a_reset_to_its_user() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (_far, _) = listener.accept().unwrap();
        sys::give_up(near.as_raw_fd()).unwrap();
        assert!(near.read(&mut [0; 8]).is_err());
        assert!(sys::progress(0).is_err() && sys::cookie(1_000_000).is_err());
    }
}
