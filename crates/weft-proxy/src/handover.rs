// SPDX-License-Identifier: Apache-2.0
//! Listening sockets that outlive a process: copies of those that are open, to be handed to the
//! next one, and those that an earlier one handed over, to be used in the place of new ones.
//!
//! The binary moves them between processes; `listen` asks here first. A proxy that hands nothing
//! over keeps no copies.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use socket2::SockRef;
use tokio::sync::watch;

use crate::observe::metrics::lock;

/// What a socket takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Takes {
    Connections,
    Datagrams,
}

/// A door's address and what it takes.
pub type Place = (SocketAddr, Takes);

/// Sockets by where they listen.
#[derive(Debug, Default)]
pub struct Sockets {
    /// Whether copies are kept at all.
    keeps: bool,
    /// This process ends: what it opened now would wait for nobody.
    ended: AtomicBool,
    /// A newer process has copies and does not serve yet: what was opened now would be none of
    /// them.
    handing: watch::Sender<bool>,
    open: Mutex<BTreeMap<Place, Vec<OwnedFd>>>,
    inherited: Mutex<BTreeMap<Place, Vec<OwnedFd>>>,
}

/// While this is there copies are on their way, and this process opens no new door.
#[derive(Debug)]
pub struct Handing<'s> {
    of: &'s Sockets,
    succeeded: bool,
}

// === impl Sockets ===

impl Sockets {
    /// Keeps copies of what is opened, and begins with what an earlier process left.
    ///
    /// # Errors
    /// When something inherited is no socket.
    pub fn keeping(inherited: Vec<OwnedFd>) -> io::Result<Self> {
        let out = Self { keeps: true, ..Self::default() };
        for fd in inherited {
            let place = place_of(&fd)?;
            lock(&out.inherited).entry(place).or_default().push(fd);
        }
        Ok(out)
    }

    /// The sockets that an earlier process had there, one for each worker. When there were fewer,
    /// workers share those for connections; those for datagrams are never shared, since what one
    /// client sends must come to one worker, so that some workers have none.
    pub fn take(&self, address: SocketAddr, takes: Takes, workers: usize) -> Option<Vec<OwnedFd>> {
        let mut found = lock(&self.inherited).remove(&(address, takes))?;
        if found.len() > workers {
            let (had, more) = (found.len(), found.len() - workers);
            tracing::warn!(%address, had, workers, "{more} of its waiting queues are closed");
            found.truncate(workers);
        }
        let had = found.len();
        let wanted = if takes == Takes::Datagrams { had } else { workers };
        for i in had..wanted {
            let copy = found.get(i % had.max(1))?.try_clone().ok()?;
            found.push(copy);
        }
        Some(found)
    }

    /// Remembers sockets that were opened.
    pub fn keep<S>(&self, takes: Takes, sockets: &[S])
    where
        S: std::os::fd::AsFd,
    {
        if !self.keeps || self.has_ended() {
            return;
        }
        let copy = |s: &S| s.as_fd().try_clone_to_owned().ok();
        let copies: Vec<OwnedFd> = sockets.iter().filter_map(copy).collect();
        let at = sockets.first().and_then(|s| SockRef::from(s).local_addr().ok());
        if let Some(address) = at.and_then(|at| at.as_socket()) {
            lock(&self.open).insert((address, takes), copies);
        }
    }

    /// A door was closed: the system must not go on taking connections for it.
    pub fn forget(&self, address: SocketAddr, takes: Takes) {
        lock(&self.open).remove(&(address, takes));
    }

    /// Copies of everything that is open, for the next process.
    ///
    /// # Errors
    /// When descriptors are short.
    pub fn copies(&self) -> io::Result<Vec<OwnedFd>> {
        let open = lock(&self.open);
        open.values().flatten().map(OwnedFd::try_clone).collect()
    }

    /// From now on no door is opened, until what this returns is dropped or this process ends.
    pub fn hand(&self) -> Handing<'_> {
        self.handing.send_replace(true);
        Handing { of: self, succeeded: false }
    }

    /// Whether a newer process may take this one's place any moment.
    pub fn is_handing(&self) -> bool {
        *self.handing.borrow()
    }

    /// Waits until it has, or did not come to serve.
    pub async fn handed(&self) {
        let mut handing = self.handing.subscribe();
        // The sender is here.
        let _ = handing.wait_for(|handing| !handing).await;
    }

    /// Whether this process ends, so that it may open no door: its successor has to.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Keeps nothing any more: this process ends.
    pub fn close(&self) {
        self.ended.store(true, Ordering::Release);
        self.handing.send_replace(false);
        lock(&self.open).clear();
        lock(&self.inherited).clear();
    }

    /// Closes what was inherited and nobody asked for; how many places those were.
    pub fn drop_unclaimed(&self) -> usize {
        let mut inherited = lock(&self.inherited);
        let unclaimed = inherited.len();
        inherited.clear();
        unclaimed
    }
}

// === impl Handing ===

impl Handing<'_> {
    /// The newer process serves: there is nothing more to open here.
    pub fn succeeded(mut self) {
        self.succeeded = true;
    }
}

impl Drop for Handing<'_> {
    fn drop(&mut self) {
        if !self.succeeded {
            self.of.handing.send_replace(false);
        }
    }
}

fn place_of(fd: &OwnedFd) -> io::Result<Place> {
    let socket = SockRef::from(fd);
    let address = socket.local_addr()?.as_socket();
    let address = address.ok_or_else(|| io::Error::other("it has no IP address"))?;
    let takes = match socket.r#type()? {
        socket2::Type::STREAM => Takes::Connections,
        _ => Takes::Datagrams,
    };
    socket.set_nonblocking(true)?;
    Ok((address, takes))
}

/// Descriptors as listeners.
pub fn listeners(fds: Vec<OwnedFd>) -> Vec<TcpListener> {
    fds.into_iter().map(TcpListener::from).collect()
}

/// Descriptors as sockets for datagrams.
pub fn datagrams(fds: Vec<OwnedFd>) -> Vec<UdpSocket> {
    fds.into_iter().map(UdpSocket::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_process_had_open_the_next_one_takes_by_its_address() {
        let first = Sockets { keeps: true, ..Sockets::default() };
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let listeners_ = crate::listen::bind(any, 2).unwrap();
        let at = listeners_[0].local_addr().unwrap();
        first.keep(Takes::Connections, &listeners_);
        let next = Sockets::keeping(first.copies().unwrap()).unwrap();
        assert!(next.take(at, Takes::Datagrams, 1).is_none());
        let taken = listeners(next.take(at, Takes::Connections, 3).unwrap());
        assert_eq!(taken.len(), 3);
        drop(listeners_);
        first.close();
        // Nobody but the next process holds it now, and a client still gets in.
        let client = std::net::TcpStream::connect(at).unwrap();
        let accepted = taken.iter().find_map(|l| l.accept().ok());
        assert_eq!(accepted.unwrap().1, client.local_addr().unwrap());
        assert!(next.take(at, Takes::Connections, 1).is_none(), "taken once");
    }

    #[test]
    fn sockets_for_datagrams_are_shared_by_no_two_workers() {
        let sockets: Vec<OwnedFd> = vec![UdpSocket::bind("127.0.0.1:0").unwrap().into()];
        let at = place_of(&sockets[0]).unwrap().0;
        let next = Sockets::keeping(sockets).unwrap();
        assert_eq!(next.take(at, Takes::Datagrams, 4).unwrap().len(), 1);
    }

    #[test]
    fn a_process_that_ends_keeps_nothing_that_comes_later() {
        let sockets = Sockets::keeping(Vec::new()).unwrap();
        sockets.close();
        assert!(sockets.has_ended());
        let late = TcpListener::bind(("127.0.0.1", weft_testkit::ports::free())).unwrap();
        let at = late.local_addr().unwrap();
        sockets.keep(Takes::Connections, &[late]);
        assert!(std::net::TcpStream::connect(at).is_err());
    }

    #[tokio::test]
    async fn while_doors_are_handed_over_none_is_opened() {
        let sockets = Sockets::keeping(Vec::new()).unwrap();
        let handing = sockets.hand();
        assert!(sockets.is_handing());
        let mut waiting = Box::pin(sockets.handed());
        assert!(futures_util::poll!(&mut waiting).is_pending());
        // The newer one did not come to serve.
        drop(handing);
        waiting.await;
        let handing = sockets.hand();
        handing.succeeded();
        let mut waiting = Box::pin(sockets.handed());
        assert!(futures_util::poll!(&mut waiting).is_pending());
        sockets.close();
        waiting.await;
        assert!(sockets.has_ended());
    }

    #[test]
    fn what_nobody_asks_for_is_closed() {
        let socket = TcpListener::bind(("127.0.0.1", weft_testkit::ports::free())).unwrap();
        let at = socket.local_addr().unwrap();
        let next = Sockets::keeping(vec![socket.into()]).unwrap();
        assert_eq!(next.drop_unclaimed(), 1);
        assert!(std::net::TcpStream::connect(at).is_err());
    }
}
