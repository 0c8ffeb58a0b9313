// SPDX-License-Identifier: Apache-2.0
//! Pipes through which the kernel moves bytes from one socket to another without showing them to
//! us (`splice`). Each worker keeps a few that are empty; `joined` borrows one while bytes flow.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::pipe::{PipeFlags, SpliceFlags};
use weft_base::limits::RELAY_PIPES_MAX;

use crate::descriptors;

/// Bytes asked of the kernel for one pipe; it may give fewer.
const ROOM: usize = 256 * 1024;
/// Empty pipes that a worker keeps.
const SPARE_MAX: usize = 16;

thread_local! {
    static SPARE: RefCell<Vec<(OwnedFd, OwnedFd)>> = const { RefCell::new(Vec::new()) };
    /// Pipes of this thread, spare and lent.
    static OPEN: Cell<usize> = const { Cell::new(0) };
}

/// A pipe and the bytes in it.
#[derive(Debug)]
pub struct Pipe {
    ends: Option<(OwnedFd, OwnedFd)>,
    held: usize,
}

// === impl Pipe ===

impl Pipe {
    /// A spare one, or a new one within the limit; `None` when there is none to be had.
    pub fn borrow() -> Option<Self> {
        if let Some(ends) = SPARE.with_borrow_mut(Vec::pop) {
            return Some(Self { ends: Some(ends), held: 0 });
        }
        if OPEN.get() >= RELAY_PIPES_MAX {
            return None;
        }
        let ends = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        if descriptors::is_reserved(&ends.1) {
            return None;
        }
        // A smaller pipe serves as well, in more calls.
        let _ = rustix::pipe::fcntl_setpipe_size(&ends.1, ROOM);
        OPEN.set(OPEN.get() + 1);
        Some(Self { ends: Some(ends), held: 0 })
    }

    pub fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Moves what a socket has into the pipe; 0 is its end.
    ///
    /// # Errors
    /// Those of the socket; `WouldBlock` when it has nothing now.
    pub fn fill(&mut self, from: impl AsFd) -> io::Result<usize> {
        let Some((_, write)) = &self.ends else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let moved = rustix::pipe::splice(from, None, write, None, ROOM, flags)?;
        self.held += moved;
        Ok(moved)
    }

    /// Moves what the pipe holds into a socket.
    ///
    /// # Errors
    /// Those of the socket; `WouldBlock` when it takes nothing now.
    pub fn pour(&mut self, to: impl AsFd) -> io::Result<usize> {
        let Some((read, _)) = &self.ends else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let moved = rustix::pipe::splice(read, None, to, None, self.held, flags)?;
        self.held = self.held.saturating_sub(moved);
        Ok(moved)
    }
}

#[cfg(test)]
impl Pipe {
    /// Pipes of this thread, spare and lent.
    pub fn open() -> usize {
        OPEN.get()
    }

    pub fn spare() -> usize {
        SPARE.with_borrow(Vec::len)
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let Some(ends) = self.ends.take() else { return };
        // One with somebody's bytes in it is nobody else's.
        let kept = self.held == 0
            && SPARE.with_borrow_mut(|spare| {
                let room = spare.len() < SPARE_MAX;
                if room {
                    spare.push(ends);
                }
                room
            });
        if !kept {
            OPEN.set(OPEN.get().saturating_sub(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_pipe_moves_bytes_and_is_kept_only_when_it_is_empty() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let (c, mut d) = UnixStream::pair().unwrap();
        let mut pipe = Pipe::borrow().unwrap();
        a.write_all(b"some bytes").unwrap();
        assert_eq!(pipe.fill(&b).unwrap(), 10);
        assert!(!pipe.is_empty());
        assert_eq!(pipe.pour(&c).unwrap(), 10);
        let mut seen = [0; 10];
        d.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"some bytes");
        b.set_nonblocking(true).unwrap();
        assert_eq!(pipe.fill(&b).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(pipe);
        assert_eq!(SPARE.with_borrow(Vec::len), 1);
        let mut pipe = Pipe::borrow().unwrap();
        a.write_all(b"x").unwrap();
        pipe.fill(&b).unwrap();
        drop(pipe);
        assert_eq!((SPARE.with_borrow(Vec::len), OPEN.get()), (0, 0));
        drop(a);
        let mut pipe = Pipe::borrow().unwrap();
        assert_eq!(pipe.fill(&b).unwrap(), 0, "the end");
    }

    #[test]
    fn there_is_a_limit() {
        let all: Vec<Pipe> = std::iter::from_fn(Pipe::borrow).take(RELAY_PIPES_MAX + 1).collect();
        assert!(all.len() <= RELAY_PIPES_MAX);
        drop(all);
        assert_eq!(SPARE.with_borrow(Vec::len), SPARE_MAX);
        assert_eq!(OPEN.get(), SPARE_MAX);
    }
}
