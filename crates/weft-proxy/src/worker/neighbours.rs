// SPDX-License-Identifier: Apache-2.0
//! What the workers of a proxy are to each other: how many connections each has, so that one that
//! has too many hands new ones on, and favours that they ask of each other. Called by the doors
//! and by whoever waits for a backend's connection; a favour is done on the thread of who does it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::mpsc;
use weft_base::metrics::Cell;

use crate::table::{BackendEntry, Door};
use crate::upstream::breaker::Quotas;
use crate::upstream::quota::Quota;

/// Favours that may wait for a worker.
const FAVOURS_MAX: usize = 1_024;
/// A worker hands new connections on from so many quarters of the mean on.
const QUARTERS: u64 = 5;

/// What one worker asks of another.
#[derive(Debug)]
pub enum Favour {
    /// Let connections go that are idle and counted there, for who waits for them.
    GiveWay(Arc<Quotas>),
    /// Let flows of datagrams go that have been silent: a client of mine finds no room.
    GiveWayToFlows,
    /// Serve a client, which is counted with you already.
    Serve(Handed),
}

/// A connection that one worker accepted and another one serves.
#[derive(Debug)]
pub struct Handed {
    pub stream: std::net::TcpStream,
    pub remote: SocketAddr,
    pub door: Door,
}

#[derive(Debug)]
pub struct Neighbours {
    all: Box<[Neighbour]>,
    /// Clients of the whole proxy.
    pub clients: Quota,
    /// Its flows of datagrams.
    pub flows: Quota,
}

#[derive(Debug)]
struct Neighbour {
    inbox: mpsc::Sender<Favour>,
    /// Open connections of clients, and those that are on their way to it.
    open: Cell,
    /// It takes no more.
    leaves: AtomicBool,
}

// === impl Neighbours ===

impl Neighbours {
    /// With what each of so many workers reads its favours from.
    pub fn new(workers: usize) -> (Arc<Self>, Vec<mpsc::Receiver<Favour>>) {
        let workers = workers.max(1);
        let (mut all, mut inboxes) = (Vec::with_capacity(workers), Vec::with_capacity(workers));
        for _ in 0..workers {
            let (inbox, favours) = mpsc::channel(FAVOURS_MAX);
            all.push(Neighbour { inbox, open: Cell::default(), leaves: AtomicBool::new(false) });
            inboxes.push(favours);
        }
        let (clients, flows) = (Quota::new(workers), Quota::new(workers));
        (Arc::new(Self { all: all.into(), clients, flows }), inboxes)
    }

    /// A client's connection is a worker's.
    pub fn opened(&self, worker: usize) {
        self.all.get(worker).iter().for_each(|own| own.open.add(1));
    }

    pub fn closed(&self, worker: usize) {
        self.all.get(worker).iter().for_each(|own| own.open.sub(1));
    }

    /// Nothing is handed to it any more.
    pub fn leaves(&self, worker: usize) {
        self.all.get(worker).iter().for_each(|own| own.leaves.store(true, Ordering::Relaxed));
    }

    /// Who serves a new connection in the place of `worker`, if that has more than 1.25 times the
    /// mean: the one that has least.
    pub fn lighter(&self, worker: usize) -> Option<usize> {
        let workers = self.all.len() as u64;
        if workers < 2 {
            return None;
        }
        let own = self.all.get(worker)?.open.get();
        let total: u64 = self.all.iter().map(|n| n.open.get()).sum();
        if (own + 1) * workers * 4 <= (total + 1) * QUARTERS {
            return None;
        }
        let others = self.all.iter().enumerate();
        let takes = others.filter(|(_, n)| !n.leaves.load(Ordering::Relaxed));
        let (least, open) = takes.map(|(i, n)| (i, n.open.get())).min_by_key(|(_, open)| *open)?;
        (open < own).then_some(least)
    }

    /// Hands a connection to another worker, which counts it from now on.
    ///
    /// # Errors
    /// The connection, when that takes no more.
    pub fn hand(&self, to: usize, handed: Handed) -> Result<(), Handed> {
        let Some(neighbour) = self.all.get(to) else { return Err(handed) };
        neighbour.open.add(1);
        match neighbour.inbox.try_send(Favour::Serve(handed)) {
            Ok(()) => Ok(()),
            Err(error) => {
                neighbour.open.sub(1);
                match error.into_inner() {
                    Favour::Serve(handed) => Err(handed),
                    Favour::GiveWay(_) | Favour::GiveWayToFlows => Ok(()),
                }
            }
        }
    }

    /// Asks those that have connections to a backend to let idle ones go. Who is too busy to be
    /// asked is asked again by those that wait.
    pub fn ask_for_way(&self, worker: usize, entry: &BackendEntry) {
        let Some(quotas) = &entry.quotas else { return };
        for (i, neighbour) in self.all.iter().enumerate() {
            if i != worker && quotas.is_connected(i) {
                let _ = neighbour.inbox.try_send(Favour::GiveWay(quotas.clone()));
            }
        }
    }

    /// Asks those that have flows of datagrams to let silent ones go.
    pub fn ask_for_flows(&self, worker: usize) {
        for (i, neighbour) in self.all.iter().enumerate() {
            if i != worker && self.flows.used_by(i) > 0 {
                let _ = neighbour.inbox.try_send(Favour::GiveWayToFlows);
            }
        }
    }

    /// A worker gives back what it has leased of what they share and did not use for a while.
    pub fn rest(&self, worker: usize) {
        self.clients.rest(worker);
        self.flows.rest(worker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_has_more_than_a_quarter_above_the_mean_for_long() {
        let (neighbours, _inboxes) = Neighbours::new(4);
        for n in 1..=1_000u64 {
            // All come to one worker.
            let worker = neighbours.lighter(0).unwrap_or(0);
            neighbours.opened(worker);
            let open = neighbours.all.iter().map(|n| n.open.get());
            let most = open.max().unwrap_or(0);
            assert!(most * 4 * 4 <= n * 5 || most <= n.div_ceil(4), "{most} of {n}");
        }
    }

    #[test]
    fn who_leaves_is_handed_nothing() {
        let (neighbours, _inboxes) = Neighbours::new(2);
        neighbours.opened(0);
        assert_eq!(neighbours.lighter(0), Some(1));
        assert_eq!(neighbours.lighter(1), None);
        neighbours.leaves(1);
        assert_eq!(neighbours.lighter(0), None);
        assert_eq!(Neighbours::new(1).0.lighter(0), None);
    }
}
