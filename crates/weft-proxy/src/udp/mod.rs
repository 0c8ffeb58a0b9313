// SPDX-License-Identifier: Apache-2.0
//! Datagrams of a gateway's listener: each client has a flow, which is one endpoint and one socket
//! towards it, so that answers find their way back. Opened by `worker`; knows nothing of what the
//! datagrams say. What cannot be passed on is dropped and counted, never kept.
//!
//! Workers have sockets of their own on one address: the kernel leads a client's datagrams to the
//! same one each time, so that flows are shared by nobody; their number is (`room.rs`).

mod flow;
mod room;
pub mod sys;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::time::Instant;

use crate::tcp::relay;
use crate::tcp::route::{self, Way, Who};
use crate::upstream::ask::Key;
use crate::upstream::pick::{Ask, LocalEndpoint};
use crate::worker::{Conn, Worker};
pub use flow::ANSWERED_IDLE;
use flow::Flow;
pub use room::Flows;
use room::Place;

/// Longest datagram.
const BYTES_MAX: usize = 65_535;
/// Datagrams that a door takes before others have their turn.
const TURN: usize = 64;
/// How often room is looked for, and how often a refusal is logged.
const LOOK_EVERY: Duration = Duration::from_secs(1);

thread_local! {
    static BUFFER: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// A rule's backend, and one of its instances.
type Picked = (Way, Rc<LocalEndpoint>);

/// What tells flows apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Ends {
    client: SocketAddr,
    /// The address of ours that it dialled, where there are several.
    own: Option<IpAddr>,
}

/// One listening socket of one worker.
#[derive(Debug)]
struct Door {
    worker: Rc<Worker>,
    listener: Arc<str>,
    socket: UdpSocket,
    local: SocketAddr,
    flows: RefCell<HashMap<Ends, Rc<Flow>>>,
    logged: Cell<Option<Instant>>,
}

/// Serves a socket until it is dropped; flows that are open end by themselves.
pub async fn serve(worker: Rc<Worker>, listener: Arc<str>, socket: std::net::UdpSocket) {
    let made = UdpSocket::from_std(socket).and_then(|s| Ok((s.local_addr()?, s)));
    let (local, socket) = match made {
        Ok(made) => made,
        Err(error) => {
            tracing::error!(%listener, %error, "a socket for datagrams cannot be used");
            return;
        }
    };
    let door = Rc::new(Door {
        worker,
        listener,
        socket,
        local,
        flows: RefCell::default(),
        logged: Cell::default(),
    });
    door.worker.flows.add(&door);
    let door = Closing(door);
    let door = &door.0;
    loop {
        if door.socket.readable().await.is_err() {
            return;
        }
        for _ in 0..TURN {
            let mut buffer = BUFFER.take().unwrap_or_else(|| vec![0; BYTES_MAX].into());
            let taken = door.receive(&mut buffer);
            let goes_on = match taken {
                Ok((n, ends)) => {
                    door.take(buffer.get(..n).unwrap_or_default(), ends).await;
                    true
                }
                // Others are errors of earlier answers, to clients that went away.
                Err(error) => error.kind() != io::ErrorKind::WouldBlock,
            };
            BUFFER.set(Some(buffer));
            if !goes_on {
                break;
            }
        }
        tokio::task::yield_now().await;
    }
}

/// Ends the flows of a door that is closed, since they hold its address. While the proxy drains,
/// answers that are under way may still come.
struct Closing(Rc<Door>);

impl Drop for Closing {
    fn drop(&mut self) {
        if !self.0.worker.conns.is_draining() {
            self.0.flows.borrow().values().for_each(|flow| flow.end());
        }
    }
}

// === impl Door ===

impl Door {
    fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, Ends)> {
        self.socket.try_io(Interest::READABLE, || {
            if self.local.ip().is_unspecified() {
                let (n, client, own) = sys::receive(&self.socket, buffer)?;
                return Ok((n, Ends { client, own }));
            }
            let (n, client) =
                rustix::net::recvfrom(&self.socket, buffer, rustix::net::RecvFlags::DONTWAIT)
                    .map(|(n, _, from)| (n, from))?;
            let client = client.and_then(|c| SocketAddr::try_from(c).ok());
            let client = client.ok_or(io::ErrorKind::InvalidData)?;
            Ok((n, Ends { client, own: None }))
        })
    }

    /// Sends an answer from the address that its client dialled.
    fn answer(&self, bytes: &[u8], ends: Ends) -> io::Result<()> {
        match ends.own {
            Some(own) => sys::send(&self.socket, bytes, ends.client, own),
            None => {
                let flags = rustix::net::SendFlags::DONTWAIT;
                rustix::net::sendto(&self.socket, bytes, flags, &ends.client)?;
                Ok(())
            }
        }
    }

    async fn take(self: &Rc<Self>, bytes: &[u8], ends: Ends) {
        let cells = &self.worker.metrics.cells;
        cells.udp_received.add(1);
        let known = self.flows.borrow().get(&ends).cloned();
        let known = known.filter(|flow| {
            let holds = flow.holds(&self.worker);
            if !holds {
                flow.end();
            }
            holds
        });
        let better = known.as_deref().and_then(|flow| self.better(flow, ends));
        let flow = match (known, better) {
            (Some(flow), None) => Some(flow),
            (Some(flow), Some(picked)) => {
                flow.end();
                self.open(ends, flow.leaves(), picked).await
            }
            (None, _) => self.begin(ends).await,
        };
        let Some(flow) = flow else { return cells.udp_dropped.add(1) };
        if let Err(error) = flow.send(bytes) {
            cells.udp_dropped.add(1);
            if !flow::is_own(&error) {
                // Nobody listens there: the next datagram may find somebody else.
                flow.failed(&self.worker);
            }
        }
    }

    /// Where a client goes on whose instance is not well any more, if another one is.
    fn better(&self, flow: &Flow, ends: Ends) -> Option<Picked> {
        let now = self.worker.clock.now();
        if flow::is_well(flow.endpoint(), now) {
            return None;
        }
        self.pick(ends).ok().filter(|(_, endpoint)| flow::is_well(endpoint, now))
    }

    /// A flow for a client that has none.
    async fn begin(self: &Rc<Self>, ends: Ends) -> Option<Rc<Flow>> {
        match self.pick(ends) {
            Ok(picked) => self.open(ends, None, picked).await,
            Err(why) => {
                self.refuse(ends, &why);
                None
            }
        }
    }

    /// A flow to an instance, in the place of one that has ended, or its own.
    async fn open(
        self: &Rc<Self>,
        ends: Ends,
        place: Option<Place>,
        (way, endpoint): Picked,
    ) -> Option<Rc<Flow>> {
        let Some(place) = place.or_else(|| room::place(&self.worker)) else {
            self.worker.metrics.cells.udp_full.add(1);
            return None;
        };
        let peer = endpoint.entry.endpoint.address;
        let opened = flow::socket(&self.worker.config, peer).await;
        let upstream = match opened {
            Ok(socket) => socket,
            Err(error) => {
                self.refuse(ends, &format!("no socket for datagrams to {peer}: {error}"));
                return None;
            }
        };
        let flow = Flow::new(self, ends, way, (endpoint, upstream), place);
        self.flows.borrow_mut().insert(ends, flow.clone());
        let serving = Box::pin(flow.clone().answers(self.clone()));
        self.worker.conns.spawn_local("datagrams", serving);
        Some(flow)
    }

    fn pick(&self, ends: Ends) -> Result<Picked, String> {
        let worker = &self.worker;
        let table = worker.table();
        let who = Who::at(ends.client.ip());
        let way =
            route::backend_of_listener(&table, &self.listener, who, &mut worker.rng.borrow_mut())?;
        let entry = &way.backend;
        let local = worker.backend(entry);
        let hash = Key::of_connection(&entry.backend.policy.lb, ends.client.ip());
        let (mut rng, now) = (worker.rng.borrow_mut(), worker.clock.now());
        let picked = local.borrow_mut().pick(Ask { hash, tried: &[] }, &mut rng, now);
        let picked = picked.ok_or_else(|| {
            let (healthy, total) = (entry.healthy, entry.total());
            format!("no instance of {} takes datagrams: {healthy} of {total}", entry.label())
        })?;
        Ok((way, picked))
    }

    fn flows_silent_for(&self, silent: Duration, now: Instant) -> Vec<Rc<Flow>> {
        let flows = self.flows.borrow();
        flows.values().filter(|flow| flow.silent_for(now) >= silent).cloned().collect()
    }

    /// Logs at most once in a while: nobody proved that the client is who it says.
    fn refuse(&self, ends: Ends, why: &str) {
        let now = Instant::now();
        if self.logged.get().is_some_and(|at| now - at < LOOK_EVERY) {
            return;
        }
        self.logged.set(Some(now));
        relay::refused(&self.worker, &self.conn(ends), why);
    }

    fn conn(&self, ends: Ends) -> Conn {
        let local = SocketAddr::new(ends.own.unwrap_or(self.local.ip()), self.local.port());
        Conn::new(crate::table::Door::Datagrams(self.listener.clone()), local, ends.client)
    }
}
