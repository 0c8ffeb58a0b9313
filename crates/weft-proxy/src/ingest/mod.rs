// SPDX-License-Identifier: Apache-2.0
//! From transactions to tables: builds the new table off the workers' threads, opens and closes
//! sockets, swaps the table in every worker, and only then says that it is applied.

mod lastgood;
pub mod source;
mod wants;
mod whole;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use weft_base::clock::Clock;
use weft_base::snapshot::{Publisher, Snapshot, snapshot};
use weft_model::{Fail, Resource, ResourceName};
use weft_xds::{Applied, Rejected, Transaction, Version};

use crate::config::ProxyConfig;
use crate::handover::Takes;
use crate::listen;
use crate::observe::metrics::lock;
use crate::on_demand::Ask;
use crate::table::{Builder, Door, Table};
use crate::worker::Command;

use wants::Wants;
use whole::Reserved;

pub use lastgood::LastGoodError;
pub use wants::Wanted;

/// How often what is left over is seen to.
const CHORES_EVERY: Duration = Duration::from_secs(1);
/// An address given up in the same transaction is waited for this long.
const REBIND_EVERY: Duration = Duration::from_millis(10);
const REBIND_TRIES: usize = 50;

/// What reaches a proxy from its source of configuration.
#[derive(Debug)]
pub enum Delivery {
    /// A transaction and where its answer goes.
    Transaction(Transaction, oneshot::Sender<Applied>),
    /// One that is taken whole or not at all; the answer says what kept it from being used.
    Whole(Transaction, oneshot::Sender<Result<Applied, Vec<Rejected>>>),
    /// The stream to the server is up, or down.
    Link(bool),
    /// A file says something that is refused whole, and why.
    Refused(String),
    /// Lookups of endpoints' names that found nothing.
    Unresolved(u64),
}

/// Names and versions of what a proxy has already.
pub type Held = Vec<(ResourceName, Version)>;

/// What the doors of the proxy show about its configuration.
#[derive(Clone, Debug)]
pub struct Status {
    pub table: Snapshot<Table>,
    /// A transaction was committed (or a file read) since the start.
    pub configured: Arc<AtomicBool>,
    /// The table came from the last-good file and no server has spoken yet.
    pub from_last_good: Arc<AtomicBool>,
    pub generation: Arc<AtomicU64>,
    pub rejected_total: Arc<AtomicU64>,
    /// Lookups of endpoints' names that found nothing.
    pub unresolved_total: Arc<AtomicU64>,
    /// Why the newest file is not in use.
    refused: Arc<Mutex<Option<String>>>,
    sockets: Arc<Mutex<BTreeMap<u64, (Door, SocketAddr)>>>,
}

/// The one writer of tables.
#[derive(Debug)]
pub struct Ingest {
    config: Arc<ProxyConfig>,
    clock: Clock,
    builder: Builder,
    workers: Vec<mpsc::Sender<Command>>,
    sockets: BTreeMap<(SocketAddr, Door), u64>,
    next_number: u64,
    /// Doors whose address could not be bound, and why; tried again.
    missing: Vec<(SocketAddr, Door, String)>,
    /// Sockets that were opened before the transaction that wants them is used.
    reserved: Reserved,
    /// What else the last transaction's answer refused.
    refused: Vec<Rejected>,
    wants: Wants,
    /// The last answer as it is now, when that changed since it was given.
    amended: watch::Sender<Applied>,
    unsaved: bool,
    saved_at: Option<Instant>,
    /// When the last table was made, if memory was not given back since.
    littered: Option<Instant>,
    publisher: Publisher<Table>,
    status: Status,
}

// === impl Status ===

impl Status {
    /// The doors that are open, with the addresses they got.
    pub fn sockets(&self) -> Vec<(Door, SocketAddr)> {
        lock(&self.sockets).values().cloned().collect()
    }

    /// Why the newest file is not in use, if that is so.
    pub fn refused(&self) -> Option<String> {
        lock(&self.refused).clone()
    }

    pub fn is_configured(&self) -> bool {
        self.configured.load(Ordering::Acquire)
    }
}

// === impl Ingest ===

impl Ingest {
    pub fn new(
        config: Arc<ProxyConfig>,
        clock: &Clock,
        workers: Vec<mpsc::Sender<Command>>,
    ) -> Self {
        let (publisher, table) = snapshot(Table::default());
        let status = Status {
            table,
            configured: Arc::default(),
            from_last_good: Arc::default(),
            generation: Arc::default(),
            rejected_total: Arc::default(),
            unresolved_total: Arc::default(),
            refused: Arc::default(),
            sockets: Arc::default(),
        };
        Self {
            builder: Builder::new(config.workers, clock.clone(), config.node.namespace.clone())
                .with_instances(config.capture.is_some())
                .located(config.own.clone()),
            workers,
            sockets: BTreeMap::new(),
            next_number: 0,
            missing: Vec::new(),
            reserved: Reserved::default(),
            refused: Vec::new(),
            wants: Wants::new(config.limits.on_demand),
            amended: watch::channel(Applied::default()).0,
            clock: clock.clone(),
            config,
            unsaved: false,
            saved_at: None,
            littered: None,
            publisher,
            status,
        }
    }

    pub fn status(&self) -> Status {
        self.status.clone()
    }

    /// The hosts that are asked for by name.
    pub fn wanted(&self) -> watch::Receiver<Wanted> {
        self.wants.subscribe()
    }

    /// Answers that became better after they were given.
    pub fn amended(&self) -> watch::Receiver<Applied> {
        self.amended.subscribe()
    }

    /// Opens a door that no table decides.
    ///
    /// # Errors
    /// When its address cannot be bound.
    pub async fn open_fixed(
        &mut self,
        address: SocketAddr,
        door: Door,
    ) -> Result<SocketAddr, listen::ListenError> {
        let number = self.number();
        self.open(address, door, number).await
    }

    /// Starts from the last good table, when there is one. Returns what is held now, so that a
    /// server need not send it again.
    ///
    /// # Errors
    /// When the file is there but cannot be read.
    pub async fn load_last_good(&mut self) -> Result<Held, LastGoodError> {
        let Some(path) = self.config.last_good.clone() else { return Ok(Vec::new()) };
        let Some(saved) = lastgood::read(&path)? else { return Ok(Vec::new()) };
        let mut held: Held = saved.resources.iter().map(|u| (u.name.clone(), u.version)).collect();
        self.status.from_last_good.store(true, Ordering::Relaxed);
        self.wants.restore(&saved.resources, saved.notes);
        self.builder.set_unheld(self.wants.unheld());
        let upserts = saved.resources.into_iter().map(|u| (u.name, u.resource)).collect();
        let rejected = self.install(saved.generation, upserts, &[]).await;
        // What cannot be used as it was saved is asked for again: it may be another by now, and if
        // not, the server is told so.
        for (name, version) in held.iter_mut().filter(|_| !rejected.is_empty()) {
            let text = name.to_string();
            if rejected.iter().any(|refused| refused.name == text) {
                *version = Version::default();
            }
        }
        Ok(held)
    }

    /// Applies transactions until their source is gone, and sees to what is left over: a table to
    /// save, an address that somebody else had.
    pub async fn run(
        mut self,
        mut deliveries: mpsc::Receiver<Delivery>,
        mut asks: mpsc::Receiver<Ask>,
    ) {
        let mut chores_at = Instant::now() + CHORES_EVERY;
        loop {
            let due = self.unsaved || self.littered.is_some();
            let chores = due || !self.missing.is_empty() || self.wants.is_active();
            tokio::select! {
                delivery = deliveries.recv() => match delivery {
                    Some(Delivery::Transaction(transaction, answer)) => {
                        let applied = self.apply(transaction).await;
                        // The stream may be gone by now; the table is in place all the same.
                        let _ = answer.send(applied);
                    }
                    Some(Delivery::Whole(transaction, answer)) => {
                        let applied = self.apply_whole(transaction).await;
                        // As above.
                        let _ = answer.send(applied);
                    }
                    Some(Delivery::Link(up)) => self.wants.connected = up,
                    Some(Delivery::Refused(why)) => {
                        self.status.rejected_total.fetch_add(1, Ordering::Relaxed);
                        *lock(&self.status.refused) = Some(why);
                    }
                    Some(Delivery::Unresolved(lookups)) => {
                        self.status.unresolved_total.fetch_add(lookups, Ordering::Relaxed);
                    }
                    None => break,
                },
                Some(ask) = asks.recv() => self.wants.ask(ask, &self.status.table.load()),
                () = tokio::time::sleep_until(chores_at), if chores => {
                    self.save();
                    self.open_missing().await;
                    self.wants.tidy(&self.status.table.load(), self.clock.now());
                    // While one change follows the other, the next one needs it again.
                    if self.littered.take_if(|at| at.elapsed() >= CHORES_EVERY).is_some() {
                        (self.config.give_back)();
                    }
                    chores_at = Instant::now() + CHORES_EVERY;
                }
            }
        }
        self.save();
    }

    /// Writes the table down if it changed since.
    fn save(&mut self) {
        if !std::mem::take(&mut self.unsaved) {
            return;
        }
        let Some(path) = &self.config.last_good else { return };
        let generation = self.status.generation.load(Ordering::Relaxed);
        let notes = self.wants.notes();
        if let Err(error) = lastgood::write(path, generation, &self.builder, &notes) {
            tracing::warn!(%error, "the last good table is not saved");
        }
        self.saved_at = Some(Instant::now());
    }

    async fn open_missing(&mut self) {
        let before = self.missing.len();
        for (address, door, why) in std::mem::take(&mut self.missing) {
            match self.ensure(address, door.clone()).await {
                Ok(()) => tracing::info!(%address, ?door, "the address is free now, listening"),
                Err(_) => self.missing.push((address, door, why)),
            }
        }
        if self.missing.len() < before {
            let generation = self.status.generation.load(Ordering::Relaxed);
            self.amended.send_replace(Applied { generation, rejected: self.rejected() });
        }
    }

    /// What of the last transaction is refused now.
    fn rejected(&self) -> Vec<Rejected> {
        let missing = self.missing.iter().map(|(_, door, why)| {
            let name = match door {
                Door::Gateway(name) | Door::Datagrams(name) => format!("listener:{name}"),
                Door::Upstream { host, .. } => format!("host:{host}"),
                Door::Mesh | Door::Forward | Door::Outbound | Door::Inbound => format!("{door:?}"),
            };
            Rejected::new(name, why)
        });
        self.refused.iter().cloned().chain(missing).collect()
    }

    /// Applies one transaction; resolves when every worker has passed it.
    pub async fn apply(&mut self, transaction: Transaction) -> Applied {
        self.wants.take(&transaction);
        self.builder.set_unheld(self.wants.unheld());
        let Transaction { generation, upserts, removes, .. } = transaction;
        let upserts = upserts.into_iter().map(|u| (u.name, u.resource)).collect();
        self.status.from_last_good.store(false, Ordering::Relaxed);
        let rejected = self.install(generation, upserts, &removes).await;
        self.wants.settle(&self.status.table.load());
        self.unsaved = self.config.last_good.is_some();
        // Many changes in a row are saved once.
        if self.saved_at.is_none_or(|at| at.elapsed() >= CHORES_EVERY) {
            self.save();
        }
        for refused in &rejected {
            tracing::warn!(name = refused.name, reason = refused.reason, "a resource was refused");
        }
        Applied { generation, rejected }
    }

    async fn install(
        &mut self,
        generation: u64,
        upserts: Vec<(ResourceName, Result<Resource, Fail>)>,
        removes: &[ResourceName],
    ) -> Vec<Rejected> {
        self.littered = Some(Instant::now());
        let (table, refused) = self.builder.apply(generation, upserts, removes);
        self.refused = refused;
        let upstream = self.config.has_upstream_ports();
        let wanted = table.doors(upstream.then_some(self.config.address));
        let closed = self.close_unwanted(&wanted).await;
        self.swap(&table).await;
        self.publisher.publish(table);
        self.missing.clear();
        for (address, door) in wanted {
            let mut opened = self.ensure(address, door.clone()).await;
            // What a worker was told to close is closed a moment later.
            for _ in 0..REBIND_TRIES {
                if !closed.contains(&address) || opened.is_ok() {
                    break;
                }
                tokio::time::sleep(REBIND_EVERY).await;
                opened = self.ensure(address, door.clone()).await;
            }
            if let Err(error) = opened {
                self.missing.push((address, door, error.to_string()));
            }
        }
        let rejected = self.rejected();
        let refused = rejected.len() as u64;
        self.status.rejected_total.fetch_add(refused, Ordering::Relaxed);
        self.status.generation.store(generation, Ordering::Relaxed);
        self.status.configured.store(true, Ordering::Release);
        rejected
    }

    /// Gives the table to every worker and waits until each uses it.
    async fn swap(&self, table: &Arc<Table>) {
        let mut waiting = Vec::with_capacity(self.workers.len());
        for worker in &self.workers {
            let (done, passed) = oneshot::channel();
            if worker.send(Command::Swap(table.clone(), done)).await.is_ok() {
                waiting.push(passed);
            }
        }
        for passed in waiting {
            // A worker that ended needs no table.
            let _ = passed.await;
        }
    }

    async fn ensure(&mut self, address: SocketAddr, door: Door) -> Result<(), listen::ListenError> {
        let key = (address, door);
        // A process that only finishes what is open leaves what is new to its successor.
        if self.sockets.contains_key(&key) || self.config.handover.has_ended() {
            return Ok(());
        }
        let number = self.number();
        self.open(address, key.1.clone(), number).await?;
        self.sockets.insert(key, number);
        Ok(())
    }

    async fn open(
        &mut self,
        address: SocketAddr,
        door: Door,
        number: u64,
    ) -> Result<SocketAddr, listen::ListenError> {
        if matches!(door, Door::Datagrams(_)) {
            return self.open_datagrams(address, door, number).await;
        }
        let sockets = match self.reserved.connections.remove(&address) {
            Some(sockets) => sockets,
            None if self.config.handover.is_handing() => return Err(listen::handing(address)),
            None => listen::bind_from(&self.config, address, self.workers.len()).await?,
        };
        let bound = sockets.first().and_then(|s| s.local_addr().ok()).unwrap_or(address);
        lock(&self.status.sockets).insert(number, (door.clone(), bound));
        for (worker, socket) in self.workers.iter().zip(sockets) {
            let listen = Command::Listen { number, door: door.clone(), socket };
            if worker.send(listen).await.is_err() {
                tracing::warn!(%bound, "a worker ended before it could listen");
            }
        }
        Ok(bound)
    }

    async fn open_datagrams(
        &mut self,
        address: SocketAddr,
        door: Door,
        number: u64,
    ) -> Result<SocketAddr, listen::ListenError> {
        let sockets = match self.reserved.datagrams.remove(&address) {
            Some(sockets) => sockets,
            None if self.config.handover.is_handing() => return Err(listen::handing(address)),
            None => listen::bind_datagrams(&self.config, address, self.workers.len()).await?,
        };
        let bound = sockets.first().and_then(|s| s.local_addr().ok()).unwrap_or(address);
        lock(&self.status.sockets).insert(number, (door.clone(), bound));
        for (worker, socket) in self.workers.iter().zip(sockets) {
            let take = Command::Datagrams { number, door: door.clone(), socket };
            if worker.send(take).await.is_err() {
                tracing::warn!(%bound, "a worker ended before it could take datagrams");
            }
        }
        Ok(bound)
    }

    async fn close_unwanted(&mut self, wanted: &[(SocketAddr, Door)]) -> Vec<SocketAddr> {
        let unwanted: Vec<_> =
            self.sockets.keys().filter(|k| wanted.binary_search(k).is_err()).cloned().collect();
        let mut closed = Vec::new();
        for key in unwanted {
            let Some(number) = self.sockets.remove(&key) else { continue };
            closed.extend(lock(&self.status.sockets).remove(&number).map(|(_, bound)| bound));
            if let Some(bound) = closed.last() {
                let takes = match key.1 {
                    Door::Datagrams(_) => Takes::Datagrams,
                    _ => Takes::Connections,
                };
                self.config.handover.forget(*bound, takes);
            }
            for worker in &self.workers {
                // A worker that ended has closed it.
                let _ = worker.send(Command::Close(number)).await;
            }
        }
        closed
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }
}
