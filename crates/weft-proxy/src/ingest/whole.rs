// SPDX-License-Identifier: Apache-2.0
//! Transactions that are taken whole or not at all: every address that is new in one is opened
//! before anything of it is used. An address that a listener gives up in the same transaction is
//! opened once that listener is gone, since it is ours until then.
//!
//! Called by [`Ingest::run`] for what files say. It never changes a table.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener, UdpSocket};

use weft_model::{Listener, ListenerKind, Protocol, Resource};
use weft_xds::{Applied, Rejected, Transaction};

use super::Ingest;
use crate::handover::Takes;
use crate::listen;
use crate::observe::metrics::lock;
use crate::table::Door;

/// Sockets by the address that was asked for.
#[derive(Debug, Default)]
pub struct Reserved {
    pub connections: BTreeMap<SocketAddr, Vec<TcpListener>>,
    pub datagrams: BTreeMap<SocketAddr, Vec<UdpSocket>>,
}

/// An address that a listener wants.
type Place = (SocketAddr, Takes);

// === impl Ingest ===

impl Ingest {
    /// Applies a transaction if all its addresses can be opened.
    pub(super) async fn apply_whole(
        &mut self,
        transaction: Transaction,
    ) -> Result<Applied, Vec<Rejected>> {
        let refused = self.reserve(&transaction).await;
        if !refused.is_empty() {
            self.give_up();
            return Err(refused);
        }
        *lock(&self.status.refused) = None;
        let applied = self.apply(transaction).await;
        // What the table did not want after all.
        self.give_up();
        Ok(applied)
    }

    /// Opens what is new; the addresses that cannot be had, each with the listener that wants it.
    async fn reserve(&mut self, transaction: &Transaction) -> Vec<Rejected> {
        let upserted = transaction.upserts.iter().map(|u| u.name.to_string());
        let touched: BTreeSet<String> =
            upserted.chain(transaction.removes.iter().map(ToString::to_string)).collect();
        let mut taken = self.staying(&touched);
        let wanted = wanted(&transaction.upserts);
        let mut refused = Vec::new();
        for upsert in &transaction.upserts {
            let Ok(Resource::Listener(listener)) = &upsert.resource else { continue };
            let ListenerKind::Gateway(gateway) = &listener.kind else { continue };
            let name = upsert.name.to_string();
            let udp = gateway.sections.first().is_some_and(|s| s.protocol == Protocol::Udp);
            let takes = if udp { Takes::Datagrams } else { Takes::Connections };
            // The system finds a free port for 0.
            for (i, address) in gateway.bind.iter().enumerate().filter(|(_, a)| a.port() != 0) {
                let place = (*address, takes);
                let why = match taken.insert(place, name.clone()) {
                    Some(other) if other != name => Some(format!("{address} is {other}'s too")),
                    Some(_) => None,
                    None if self.is_given_up(place, &touched, &wanted) => None,
                    None => self.reserve_one(place).await.err().map(|e| e.to_string()),
                };
                let said = |why: String| Rejected::new(name.clone(), format!("bind[{i}]: {why}"));
                refused.extend(why.map(said));
            }
        }
        refused
    }

    /// Addresses of listeners that the transaction does not speak of.
    fn staying(&self, touched: &BTreeSet<String>) -> BTreeMap<Place, String> {
        let each = self.sockets.keys().filter_map(|(address, door)| {
            let (name, takes) = owner(door)?;
            (!touched.contains(&name)).then_some(((*address, takes), name))
        });
        each.collect()
    }

    /// Whether what has the address now is a listener that the transaction takes from there.
    fn is_given_up(
        &self,
        (address, takes): Place,
        touched: &BTreeSet<String>,
        wanted: &BTreeSet<(String, SocketAddr)>,
    ) -> bool {
        self.sockets.keys().any(|(open, door)| {
            let Some((name, kind)) = owner(door) else { return false };
            let goes = touched.contains(&name) && !wanted.contains(&(name, *open));
            let all = open.ip().is_unspecified() || address.ip().is_unspecified();
            let meet = open.ip() == address.ip() || (all && open.is_ipv4() == address.is_ipv4());
            // What stays on the very same address is passed on as it is.
            (goes || *open == address) && kind == takes && open.port() == address.port() && meet
        })
    }

    async fn reserve_one(&mut self, (address, takes): Place) -> Result<(), listen::ListenError> {
        // A newer process would find the address taken by a socket that it was not given.
        self.config.handover.handed().await;
        let workers = self.workers.len();
        match takes {
            // Its successor's affair.
            _ if self.config.handover.has_ended() => {}
            Takes::Connections => {
                let sockets = listen::bind_from(&self.config, address, workers).await?;
                self.reserved.connections.insert(address, sockets);
            }
            Takes::Datagrams => {
                let sockets = listen::bind_datagrams(&self.config, address, workers).await?;
                self.reserved.datagrams.insert(address, sockets);
            }
        }
        Ok(())
    }

    /// Closes what was opened and is not used.
    fn give_up(&mut self) {
        let Reserved { connections, datagrams } = std::mem::take(&mut self.reserved);
        for address in connections.into_keys() {
            self.config.handover.forget(address, Takes::Connections);
        }
        for address in datagrams.into_keys() {
            self.config.handover.forget(address, Takes::Datagrams);
        }
    }
}

/// The addresses that listeners are to have.
fn wanted(upserts: &[weft_xds::Upsert]) -> BTreeSet<(String, SocketAddr)> {
    let each = upserts.iter().flat_map(|upsert| match &upsert.resource {
        Ok(Resource::Listener(Listener { kind: ListenerKind::Gateway(gateway), .. })) => {
            gateway.bind.iter().map(|at| (upsert.name.to_string(), *at)).collect()
        }
        _ => Vec::new(),
    });
    each.collect()
}

/// The listener that a door is of, by its name in transactions.
fn owner(door: &Door) -> Option<(String, Takes)> {
    match door {
        Door::Gateway(name) => Some((format!("listener:{name}"), Takes::Connections)),
        Door::Datagrams(name) => Some((format!("listener:{name}"), Takes::Datagrams)),
        _ => None,
    }
}
