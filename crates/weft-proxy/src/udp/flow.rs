// SPDX-License-Identifier: Apache-2.0
//! One client's datagrams to one endpoint and back. Made by its door, which gives it what the
//! client sends; the flow's own task carries answers back, until nothing moved for a while.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::SendFlags;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weft_base::clock::Mono;
use weft_model::decide::Outcome;

use super::room::Place;
use super::{BUFFER, BYTES_MAX, Door, Ends, TURN};
use crate::config::ProxyConfig;
use crate::descriptors;
use crate::observe::access_log::Relayed;
use crate::observe::flags::{Flag, Flags};
use crate::table::BackendEntry;
use crate::tcp::route::Way;
use crate::upstream::pick::LocalEndpoint;
use crate::upstream::pool::InFlight;
use crate::worker::Worker;

/// A flow of a question and its answer is over sooner than one that goes on.
pub const ANSWERED_IDLE: Duration = Duration::from_secs(5);
const QUESTIONS_MAX: u64 = 2;
/// While the proxy drains, answers under way may still come.
const LAST_WORDS: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Flow {
    ends: Ends,
    upstream: UdpSocket,
    backend: Arc<BackendEntry>,
    endpoint: Rc<LocalEndpoint>,
    /// Of the table in which its endpoint was last found.
    generation: Cell<u64>,
    over: CancellationToken,
    began: (u64, Instant),
    moved: Cell<Instant>,
    idle: Duration,
    received: Sum,
    sent: Sum,
    flags: Cell<Flags>,
    place: RefCell<Option<Place>>,
    _flight: InFlight,
}

/// Datagrams and their bytes.
#[derive(Debug, Default)]
struct Sum(Cell<u64>, Cell<u64>);

/// A socket that talks to `peer` alone.
pub(super) async fn socket(config: &ProxyConfig, peer: SocketAddr) -> io::Result<UdpSocket> {
    if config.is_outside(peer.ip()) {
        return UdpSocket::from_std(config.host.udp(peer).await?);
    }
    let any: SocketAddr = match peer {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = std::net::UdpSocket::bind(any)?;
    socket.set_nonblocking(true)?;
    if descriptors::is_reserved(&socket) {
        return Err(io::Error::other("descriptors are short; raise the limit of open files"));
    }
    if let Some(mark) = config.mark {
        socket2::SockRef::from(&socket).set_mark(mark)?;
    }
    socket.connect(peer)?;
    UdpSocket::from_std(socket)
}

/// Whether an instance passes this proxy's own checks, and is not ejected.
pub(super) fn is_well(endpoint: &LocalEndpoint, now: Mono) -> bool {
    let shared = &endpoint.entry.shared;
    !shared.is_failing() && !shared.is_ejected(now)
}

// === impl Flow ===

impl Flow {
    pub fn new(
        door: &Door,
        ends: Ends,
        way: Way,
        (endpoint, upstream): (Rc<LocalEndpoint>, UdpSocket),
        place: Place,
    ) -> Rc<Self> {
        let worker = &door.worker;
        worker.metrics.cells.udp_flows.add(1);
        worker.metrics.cells.udp_flows_open.add(1);
        Rc::new(Self {
            ends,
            upstream,
            backend: way.backend,
            _flight: InFlight::begin(&endpoint, worker.id),
            endpoint,
            generation: Cell::new(worker.table().generation),
            over: CancellationToken::new(),
            began: (worker.clock.wall_ms(), Instant::now()),
            moved: Cell::new(Instant::now()),
            idle: way.idle.unwrap_or(worker.config.limits.udp_idle_timeout),
            received: Sum::default(),
            sent: Sum::default(),
            flags: Cell::default(),
            place: RefCell::new(Some(place)),
        })
    }

    /// Whether its endpoint is still one of its backend's.
    pub fn holds(&self, worker: &Worker) -> bool {
        if self.over.is_cancelled() {
            return false;
        }
        let table = worker.table();
        if table.generation == self.generation.get() {
            return true;
        }
        let own = &self.endpoint.entry;
        let holds = table.backend(&self.backend.name).is_some_and(|backend| {
            let mut all = backend.endpoints.iter();
            all.any(|e| Arc::ptr_eq(&e.shared, &own.shared) && backend.is_usable(&e.endpoint))
        });
        self.generation.set(table.generation);
        holds
    }

    pub fn endpoint(&self) -> &LocalEndpoint {
        &self.endpoint
    }

    pub fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.moved.set(Instant::now());
        self.received.add(bytes);
        // The system itself is asked: the runtime does not know a new socket's readiness yet.
        rustix::net::send(&self.upstream, bytes, SendFlags::DONTWAIT)?;
        Ok(())
    }

    pub fn silent_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.moved.get())
    }

    pub fn end(&self) {
        self.over.cancel();
    }

    /// Gives its place up, which it has once.
    pub fn leaves(&self) -> Option<Place> {
        self.place.take()
    }

    /// The endpoint does not take datagrams.
    pub fn failed(&self, worker: &Worker) {
        let mut flags = self.flags.get();
        flags.add(Flag::UF);
        self.flags.set(flags);
        let reporter = &worker.shared.reporter;
        reporter.note(&self.backend, &self.endpoint.entry, Outcome::Local, worker.id);
        self.end();
    }

    /// Carries answers back until the flow is over.
    pub async fn answers(self: Rc<Self>, door: Rc<Door>) {
        let worker = &door.worker;
        loop {
            let draining = worker.conns.is_draining();
            let idle = if draining { LAST_WORDS.min(self.idle()) } else { self.idle() };
            let due = self.moved.get() + idle;
            tokio::select! {
                biased;
                () = self.over.cancelled() => break,
                ready = self.upstream.ready(Interest::READABLE | Interest::ERROR) => {
                    let complaint = ready.and_then(|_| self.complaint());
                    match complaint.and_then(|()| self.carry(&door)) {
                        Err(error) if is_own(&error) => worker.metrics.cells.udp_dropped.add(1),
                        Err(_) => {
                            self.failed(worker);
                            break;
                        }
                        Ok(()) => {}
                    }
                }
                () = worker.conns.draining(), if !draining => {}
                () = tokio::time::sleep_until(due) => {
                    if self.moved.get() + idle <= Instant::now() {
                        break;
                    }
                }
            }
        }
        self.over.cancel();
        let mut flows = door.flows.borrow_mut();
        if flows.get(&self.ends).is_some_and(|known| Rc::ptr_eq(known, &self)) {
            flows.remove(&self.ends);
        }
        drop(flows);
        self.close(&door);
    }

    fn idle(&self) -> Duration {
        let asked = self.received.0.get();
        let answered = asked <= QUESTIONS_MAX && self.sent.0.get() >= asked;
        if answered { self.idle.min(ANSWERED_IDLE) } else { self.idle }
    }

    /// The other side's machine may say that nobody listens there.
    fn complaint(&self) -> io::Result<()> {
        match self.upstream.take_error()? {
            Some(error) => Err(error),
            None => {
                let nothing = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
                // Forgets an error that somebody else has seen already.
                let _ = self.upstream.try_io(Interest::ERROR, nothing);
                Ok(())
            }
        }
    }

    fn carry(&self, door: &Door) -> io::Result<()> {
        for _ in 0..TURN {
            let mut buffer = BUFFER.take().unwrap_or_else(|| vec![0; BYTES_MAX].into());
            let taken = self.upstream.try_recv(&mut buffer).map(|n| {
                let bytes = buffer.get(..n).unwrap_or_default();
                self.moved.set(Instant::now());
                self.sent.add(bytes);
                if self.sent.0.get() == 1 {
                    // It is there: what failed before is forgotten.
                    let (reporter, endpoint) = (&door.worker.shared.reporter, &self.endpoint.entry);
                    reporter.note(&self.backend, endpoint, Outcome::Success, door.worker.id);
                }
                match door.answer(bytes, self.ends) {
                    Ok(()) => door.worker.metrics.cells.udp_sent.add(1),
                    Err(_) => door.worker.metrics.cells.udp_dropped.add(1),
                }
            });
            BUFFER.set(Some(buffer));
            match taken {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn close(&self, door: &Door) {
        let worker = &door.worker;
        drop(self.leaves());
        worker.metrics.cells.udp_flows_open.sub(1);
        let (wall_ms, began) = self.began;
        let sentence = (!self.flags.get().is_empty())
            .then(|| format!("{} takes no datagrams", self.endpoint.entry.endpoint.address));
        worker.log.relayed(&Relayed {
            conn: &door.conn(self.ends),
            wall_ms,
            ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            backend: Some(&self.backend),
            endpoint: Some(&self.endpoint),
            upstream: None,
            handshake: false,
            tries: 1,
            flags: self.flags.get(),
            received: self.received.1.get(),
            sent: self.sent.1.get(),
            sentence,
        });
    }
}

/// Whether an error is about a datagram or this machine, and says nothing of the endpoint: no room
/// now, a datagram too long for the way, a filter of this machine that forbids it.
pub(super) fn is_own(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw_os_error);
    let own = [Errno::MSGSIZE, Errno::NOBUFS, Errno::NOMEM, Errno::PERM];
    error.kind() == io::ErrorKind::WouldBlock || code.is_some_and(|code| own.contains(&code))
}

// === impl Sum ===

impl Sum {
    fn add(&self, bytes: &[u8]) {
        self.0.set(self.0.get() + 1);
        self.1.set(self.1.get() + bytes.len() as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_endpoints_own_errors_count_against_it() {
        for own in [Errno::MSGSIZE, Errno::NOBUFS, Errno::NOMEM, Errno::PERM, Errno::AGAIN] {
            assert!(is_own(&own.into()), "{own:?}");
        }
        for its in [Errno::CONNREFUSED, Errno::HOSTUNREACH, Errno::NETUNREACH] {
            assert!(!is_own(&its.into()), "{its:?}");
        }
    }
}
