// SPDX-License-Identifier: Apache-2.0
//! A worker's own sockets: it accepts on them until they are closed, or until an operator says that
//! it is to take nothing new. Called by [`super::run`]; knows nothing of what a connection carries.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::Worker;
use super::neighbours::{Favour, Handed};
use crate::descriptors;
use crate::handover::Takes;
use crate::overload::dose;
use crate::table::Door;
use crate::tcp::accept::{self, Accepted};
use crate::tcp::half_open;
use crate::udp;

/// How long a worker waits after the system refused it another descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How a worker takes nothing new.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leave {
    /// Only what comes to the pod.
    pub inbound: bool,
    /// Clients are told to go with their next answer, and have the grace period for that.
    pub graceful: bool,
    /// Sockets stay open when that is over.
    pub stay: bool,
}

/// Open sockets by their numbers.
#[derive(Debug, Default)]
pub struct Doors {
    open: RefCell<HashMap<u64, Open>>,
    /// What is opened from now on is not, or what of it.
    left: Cell<Option<Leave>>,
}

#[derive(Debug)]
struct Open {
    inbound: bool,
    address: Option<SocketAddr>,
    takes: Takes,
    stop: CancellationToken,
}

/// Takes nothing new, now or when the grace period is over.
pub(super) fn leave(worker: &Rc<Worker>, leave: Leave) {
    if !leave.graceful {
        return worker.doors.leave(worker, leave);
    }
    // Who is idle may be about to ask, and is told to go by the answer.
    worker.patient.set(true);
    worker.conns.begin_drain();
    if leave.stay {
        return;
    }
    let (tasks, worker) = (worker.pool_context.tasks.clone(), worker.clone());
    tasks.spawn_local("drain of listeners", async move {
        tokio::time::sleep(worker.config.drain_grace).await;
        worker.doors.leave(&worker, leave);
    });
}

// === impl Doors ===

impl Doors {
    /// What stops a door that is open from now on; `None` when it is not to be open.
    fn open(
        &self,
        number: u64,
        door: &Door,
        address: Option<SocketAddr>,
        takes: Takes,
    ) -> Option<CancellationToken> {
        let inbound = door.is_inbound();
        if self.left.get().is_some_and(|leave| leave.means(inbound)) {
            return None;
        }
        let stop = CancellationToken::new();
        let open = Open { inbound, address, takes, stop: stop.clone() };
        self.open.borrow_mut().insert(number, open);
        Some(stop)
    }

    pub(super) fn close(&self, number: u64) {
        if let Some(open) = self.open.borrow_mut().remove(&number) {
            open.stop.cancel();
        }
    }

    pub(super) fn close_all(&self) {
        self.open.borrow_mut().drain().for_each(|(_, open)| open.stop.cancel());
    }

    fn leave(&self, worker: &Worker, leave: Leave) {
        self.left.set(Some(leave));
        self.open.borrow_mut().retain(|_, open| {
            let stays = !leave.means(open.inbound);
            if !stays {
                left(worker, open.address, open.takes);
                open.stop.cancel();
            }
            stays
        });
    }
}

// === impl Leave ===

impl Leave {
    fn means(self, inbound: bool) -> bool {
        inbound || !self.inbound
    }
}

/// A door is closed: with a copy of it kept the system would go on with taking connections.
fn left(worker: &Worker, address: Option<SocketAddr>, takes: Takes) {
    if let Some(address) = address {
        worker.config.handover.forget(address, takes);
    }
}

pub(super) fn listen(worker: &Rc<Worker>, number: u64, door: Door, socket: std::net::TcpListener) {
    let address = socket.local_addr().ok();
    let listener = match TcpListener::from_std(socket) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(?door, %error, "a socket cannot be used");
            return;
        }
    };
    let Some(stop) = worker.doors.open(number, &door, address, Takes::Connections) else {
        return left(worker, address, Takes::Connections);
    };
    let tasks = worker.conns.clone();
    let worker = worker.clone();
    tasks.spawn_local("accept", async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = accept_loop(&worker, &listener, &door) => {}
        }
        if let Err(error) = accept_rest(&worker, listener, &door) {
            tracing::debug!(?door, %error, "clients may have been left in the backlog");
        }
    });
}

pub(super) fn datagrams(worker: &Rc<Worker>, number: u64, door: Door, socket: std::net::UdpSocket) {
    let address = socket.local_addr().ok();
    let Some(stop) = worker.doors.open(number, &door, address, Takes::Datagrams) else {
        return left(worker, address, Takes::Datagrams);
    };
    let Door::Datagrams(listener) = door else { return };
    let serving = Box::pin(udp::serve(worker.clone(), listener, socket));
    worker.conns.spawn_local("datagrams", async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = serving => {}
        }
    });
}

/// Clients that the kernel has let in already would see a reset when the socket closes. Asks the
/// system itself: the runtime's idea of what is ready may be a moment old.
fn accept_rest(worker: &Rc<Worker>, listener: TcpListener, door: &Door) -> std::io::Result<()> {
    let listener = listener.into_std()?;
    loop {
        match listener.accept() {
            Ok((stream, remote)) => {
                stream.set_nonblocking(true)?;
                serve(worker, TcpStream::from_std(stream)?, remote, door);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

async fn accept_loop(worker: &Rc<Worker>, listener: &TcpListener, door: &Door) {
    loop {
        // What is not accepted holds nothing of ours.
        poll_fn(|cx| dose::poll_may_read(cx)).await;
        match listener.accept().await {
            Ok((stream, remote)) => {
                let last = descriptors::is_reserved(&stream);
                take(worker, stream, remote, door);
                // Clients wait in the kernel's line meanwhile.
                while last && !descriptors::have_room(listener) {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
            Err(error) => {
                // Descriptors are short, or the client gave up: neither may spin or end the door.
                tracing::debug!(?door, %error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves a new connection, or has it served by a worker that has far fewer.
fn take(worker: &Rc<Worker>, stream: TcpStream, remote: SocketAddr, door: &Door) {
    let neighbours = &worker.shared.neighbours;
    let Some(to) = neighbours.lighter(worker.id) else {
        return serve(worker, stream, remote, door);
    };
    let stream = match stream.into_std() {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(?door, %error, "a new connection is lost");
            return;
        }
    };
    match neighbours.hand(to, Handed { stream, remote, door: door.clone() }) {
        Ok(()) => worker.metrics.cells.handed_over.add(1),
        Err(handed) => serve_handed(worker, handed),
    }
}

/// Does what another worker asks for.
pub(super) fn favour(worker: &Rc<Worker>, favour: Favour) {
    match favour {
        Favour::GiveWay(quotas) => worker.give_way(&quotas),
        Favour::GiveWayToFlows => {
            worker.flows.give_way_to_others(worker.config.limits.udp_silent);
        }
        Favour::Serve(handed) => {
            serve_handed(worker, handed);
            // It was counted when it was on its way, and is now by itself.
            worker.shared.neighbours.closed(worker.id);
        }
    }
}

fn serve_handed(worker: &Rc<Worker>, handed: Handed) {
    match TcpStream::from_std(handed.stream) {
        Ok(stream) => serve(worker, stream, handed.remote, &handed.door),
        Err(error) => tracing::debug!(%error, "a connection that was handed over is lost"),
    }
}

fn serve(worker: &Rc<Worker>, stream: TcpStream, remote: SocketAddr, door: &Door) {
    let Some(open) = worker.open_connection() else { return };
    half_open::watch(&stream, None);
    // Boxed once, since every wrapper of a task would hold its own copy of the future.
    let accepted = Accepted { stream, remote, door: door.clone(), open: Some(Rc::new(open)) };
    let serving = Box::pin(accept::connection(worker.clone(), accepted));
    worker.conns.spawn_local("connection", serving);
}
