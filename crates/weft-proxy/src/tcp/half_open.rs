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

/// How often a worker looks at a socket, and at how many at a time: each is a call of the system,
/// and requests wait meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(4);
const SLICE: usize = 500;
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

/// Looks at all sockets of this thread from now on, a few at a time.
pub async fn keep_looking(mut ended: impl FnMut(usize)) {
    loop {
        let mut round = Round::begin(SLICE);
        let pause = LOOK_EVERY / round.turns();
        loop {
            tokio::time::sleep(pause).await;
            ended(round.turn());
            if round.is_over() {
                break;
            }
        }
    }
}

/// One look at all sockets that there are when it begins.
struct Round {
    left: Vec<RawFd>,
    slice: usize,
}

// === impl Round ===

impl Round {
    fn begin(slice: usize) -> Self {
        Self { left: OPEN.with_borrow(|open| open.keys().copied().collect()), slice }
    }

    fn turns(&self) -> u32 {
        u32::try_from(self.left.len().div_ceil(self.slice)).unwrap_or(u32::MAX).max(1)
    }

    /// Looks at the next few; returns how many were given up.
    fn turn(&mut self) -> usize {
        let rest = self.left.len().saturating_sub(self.slice);
        let these = self.left.drain(rest..);
        OPEN.with_borrow_mut(|open| these.filter(|fd| look(open, *fd)).count())
    }

    fn is_over(&self) -> bool {
        self.left.is_empty()
    }
}

/// Looks at one socket; whether it was given up. One that is closed is forgotten.
fn look(open: &mut HashMap<RawFd, Watched>, fd: RawFd) -> bool {
    let Some(watched) = open.get_mut(&fd) else { return false };
    let Ok(progress) = sys::progress(fd) else {
        open.remove(&fd);
        return false;
    };
    watched.stuck = if is_stuck(progress) { watched.stuck + 1 } else { 0 };
    if watched.stuck < STUCK_LOOKS {
        return false;
    }
    let same = sys::cookie(fd).is_ok_and(|cookie| cookie == watched.cookie);
    open.remove(&fd);
    if same {
        tracing::debug!(fd, ?progress, "a peer is gone without a word");
    }
    same && sys::give_up(fd).is_ok()
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
            assert_eq!((Round::begin(SLICE).turn(), look_at(to.unwrap())), (0, 0));
        }
        far.set_nonblocking(true).unwrap();
        assert!(far.read(&mut [0; 1024]).unwrap() > 0);
        drop(near);
        assert_eq!(Round::begin(SLICE).turn(), 0);
        OPEN.with_borrow(|open| assert!(open.is_empty(), "closed sockets are forgotten"));
    }

    #[test]
    fn a_round_looks_at_all_and_at_few_at_a_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = |_| TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut open: Vec<TcpStream> = (0..7).map(connect).collect();
        open.iter().for_each(|stream| watch(stream, None));
        let known = || OPEN.with_borrow(HashMap::len);
        let mut round = Round::begin(3);
        assert_eq!((round.turns(), known()), (3, 7));
        // What is closed is forgotten when it is looked at: so it shows who was.
        drop(open.drain(..));
        for left in [4, 1, 0] {
            assert!(!round.is_over());
            assert_eq!((round.turn(), known()), (0, left));
        }
        assert!(round.is_over());
        assert_eq!(Round::begin(3).turns(), 1, "nothing to look at takes one turn");
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
