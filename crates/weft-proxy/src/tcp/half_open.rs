// SPDX-License-Identifier: Apache-2.0
//! Connections whose other end is gone without a word. What was sent to it is sent again and again
//! and never acknowledged; the system gives up after a quarter of an hour, we after some seconds.
//! Every worker looks at its own sockets now and then: no connection pays anything for it.
//!
//! Not `TCP_USER_TIMEOUT`: that also ends peers that are alive and read slowly.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
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

/// Nothing was heard for so long, and what was sent was sent again: once every 200 ms at first.
const MUTE_MS: u32 = 250;
/// Sockets of one address that are asked whether it is there.
const ASKED: usize = 32;

/// Questions without an answer.
const ASKED_IN_VAIN: u32 = 2;

thread_local! {
    static OPEN: RefCell<Sockets> = RefCell::default();
}

/// Those that are watched. Some of them are closed and not noticed yet.
#[derive(Debug, Default)]
struct Sockets {
    all: HashMap<RawFd, Watched>,
    /// Those with which an address was called: it is asked for while requests wait.
    to: HashMap<SocketAddr, HashSet<RawFd>>,
}

#[derive(Clone, Copy, Debug)]
struct Watched {
    /// Tells a socket from a later one with its number.
    cookie: u64,
    stuck: u8,
    /// Whom we called; nobody when we were called.
    to: Option<SocketAddr>,
}

/// What a socket says of whether the other end is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sign {
    Stuck,
    Heard,
    /// Nothing is under way on it, or not for long.
    None,
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
    OPEN.with_borrow_mut(|open| {
        let there: Vec<RawFd> = open.to.get(&address).into_iter().flatten().copied().collect();
        there.into_iter().filter(|fd| called_in_vain(open, *fd)).count()
    })
}

/// Whether a socket to somebody who answers no calls was given up.
fn called_in_vain(open: &mut Sockets, fd: RawFd) -> bool {
    let Ok(progress) = sys::progress(fd) else {
        open.remove(fd);
        return false;
    };
    if !in_vain(progress, ASKED_IN_VAIN) || progress.silent_ms < CALLED_SILENT_MS {
        return false;
    }
    let removed = open.remove(fd);
    removed.is_some_and(|watched| watched.is_it(fd)) && sys::give_up(fd).is_ok()
}

/// Whether what is sent to an address is sent again and again and never acknowledged, as far as a
/// few of the sockets tell that go there, and none of them heard anything. Ends none of them.
pub fn is_mute(address: SocketAddr) -> bool {
    OPEN.with_borrow(|open| {
        let there = open.to.get(&address).into_iter().flatten().take(ASKED);
        let signs: Vec<Sign> = there.map(|fd| open.sign(*fd)).collect();
        signs.contains(&Sign::Stuck) && !signs.contains(&Sign::Heard)
    })
}

/// Looks at all sockets of this thread from now on, a few at a time.
pub async fn keep_looking(mut ended: impl FnMut(usize)) {
    let mut pause = LOOK_EVERY;
    loop {
        // The round begins behind the pause: whoever was opened meanwhile is looked at, too.
        tokio::time::sleep(pause).await;
        let mut round = Round::begin(SLICE);
        pause = LOOK_EVERY / round.turns();
        ended(round.turn());
        while !round.is_over() {
            tokio::time::sleep(pause).await;
            ended(round.turn());
        }
    }
}

/// One look at all sockets that there are when it begins.
struct Round {
    left: Vec<RawFd>,
    slice: usize,
}

// === impl Watched ===

impl Watched {
    /// Whether the descriptor is still that of the socket that was watched.
    fn is_it(&self, fd: RawFd) -> bool {
        sys::cookie(fd).is_ok_and(|cookie| cookie == self.cookie)
    }
}

// === impl Sockets ===

impl Sockets {
    fn insert(&mut self, fd: RawFd, watched: Watched) {
        // What had the number before is closed.
        self.remove(fd);
        self.all.insert(fd, watched);
        if let Some(to) = watched.to {
            self.to.entry(to).or_default().insert(fd);
        }
    }

    fn remove(&mut self, fd: RawFd) -> Option<Watched> {
        let removed = self.all.remove(&fd)?;
        if let Some(to) = removed.to
            && let Some(there) = self.to.get_mut(&to)
        {
            there.remove(&fd);
            if there.is_empty() {
                self.to.remove(&to);
            }
        }
        Some(removed)
    }

    fn sign(&self, fd: RawFd) -> Sign {
        let Some(watched) = self.all.get(&fd) else { return Sign::None };
        let said = sys::progress(fd).map_or(Sign::None, sign);
        // The number may be another's by now, who says nothing of the address.
        if said == Sign::None || watched.is_it(fd) { said } else { Sign::None }
    }
}

// === impl Round ===

impl Round {
    fn begin(slice: usize) -> Self {
        Self { left: OPEN.with_borrow(|open| open.all.keys().copied().collect()), slice }
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
fn look(open: &mut Sockets, fd: RawFd) -> bool {
    let Some(watched) = open.all.get_mut(&fd) else { return false };
    let Ok(progress) = sys::progress(fd) else {
        open.remove(fd);
        return false;
    };
    watched.stuck = if is_stuck(progress) { watched.stuck + 1 } else { 0 };
    if watched.stuck < STUCK_LOOKS {
        return false;
    }
    let same = watched.is_it(fd);
    open.remove(fd);
    if same {
        tracing::debug!(fd, ?progress, "a peer is gone without a word");
    }
    same && sys::give_up(fd).is_ok()
}

fn is_stuck(progress: sys::Progress) -> bool {
    in_vain(progress, ASKED_IN_VAIN) && progress.silent_ms >= SILENT_MS
}

fn sign(progress: sys::Progress) -> Sign {
    match progress.silent_ms < MUTE_MS {
        true => Sign::Heard,
        false if in_vain(progress, 1) => Sign::Stuck,
        false => Sign::None,
    }
}

/// What was sent was sent again, or could not leave this machine (the system asks for it then, as
/// it does where a window is closed; whoever is alive answers that).
fn in_vain(progress: sys::Progress, asked: u32) -> bool {
    (progress.unacked > 0 && progress.resent > 0) || progress.asked >= asked
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
        OPEN.with_borrow(|open| {
            assert!(open.all.is_empty() && open.to.is_empty(), "closed sockets are forgotten");
        });
    }

    #[test]
    fn a_round_looks_at_all_and_at_few_at_a_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = |_| TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut open: Vec<TcpStream> = (0..7).map(connect).collect();
        open.iter().for_each(|stream| watch(stream, None));
        let known = || OPEN.with_borrow(|open| open.all.len());
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
        let stuck = sys::Progress { unacked: 1, resent: 2, silent_ms: 4_000, asked: 0 };
        assert!(is_stuck(stuck));
        // A first try after a long silence, a short gap, an idle connection, a closed window.
        assert!(!is_stuck(sys::Progress { resent: 0, ..stuck }));
        assert!(!is_stuck(sys::Progress { silent_ms: 300, ..stuck }));
        assert!(!is_stuck(sys::Progress { unacked: 0, ..stuck }));
        // What this machine's own rules drop was never sent; one question may just be on its way.
        assert!(is_stuck(sys::Progress { unacked: 0, asked: 2, ..stuck }));
        assert!(!is_stuck(sys::Progress { unacked: 0, asked: 1, ..stuck }));
    }

    #[test]
    fn one_that_hears_nothing_says_less_than_another_that_does() {
        let quiet = sys::Progress { unacked: 1, resent: 1, silent_ms: MUTE_MS, asked: 0 };
        assert_eq!(sign(quiet), Sign::Stuck);
        assert_eq!(sign(sys::Progress { silent_ms: MUTE_MS - 1, ..quiet }), Sign::Heard);
        assert_eq!(sign(sys::Progress { resent: 0, ..quiet }), Sign::None, "idle, or on its way");
    }

    #[test]
    fn an_address_is_asked_of_its_own_sockets() {
        let listeners = [0; 2].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let at = listeners.each_ref().map(|l| l.local_addr().unwrap());
        let there = |to| OPEN.with_borrow(|open| open.to.get(&to).map_or(0, HashSet::len));
        let open: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(at[0]).unwrap()).collect();
        open.iter().for_each(|stream| watch(stream, Some(at[0])));
        assert_eq!((there(at[0]), there(at[1])), (3, 0));
        assert!(!is_mute(at[0]), "it just answered a call");
        // Another connection with a number that was one's before.
        watch(&open[0], Some(at[1]));
        watch(&open[1], None);
        assert_eq!((there(at[0]), there(at[1])), (1, 1));
        let fd = open[0].as_raw_fd();
        OPEN.with_borrow_mut(|open| {
            assert!(open.all[&fd].is_it(fd));
            open.all.values_mut().for_each(|watched| watched.cookie ^= 1);
            assert_eq!(open.sign(fd), Sign::None, "it is another's");
        });
        drop(open);
        assert_eq!((look_at(at[0]), look_at(at[1])), (0, 0));
        assert_eq!((there(at[0]), there(at[1])), (0, 0));
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
