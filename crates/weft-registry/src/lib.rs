// SPDX-License-Identifier: Apache-2.0
//! L2: what users and health checks said, kept. Owns the store and the one writer that folds its
//! log into [`World`]; writes Kubernetes-style objects ([`Objects`]) and the Consul catalog
//! ([`catalog`]); runs the controllers that turn what is wanted into what is.
//!
//! Called by every door, the agent's link and the binary. Control reads [`Registry::watch_world`]
//! and hands statuses back as data; it never sees the store.

pub mod catalog;
pub mod consul;
pub mod controllers;
#[cfg(test)]
#[path = "../../../tests/suites/doctored.rs"]
mod doctored;
pub mod drain;
mod events;
mod guards;
pub mod hosts;
pub mod leader;
mod nodes;
pub mod objects;
mod pods_mode;
mod pump;
mod resolved;
mod seeds;
pub mod servers;
pub mod usage;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{broadcast, mpsc};
use weft_base::clock::Clock;
use weft_base::metrics::Cell;
use weft_base::rng::Rng;
use weft_base::snapshot::Snapshot;
use weft_base::task::TaskGroup;
use weft_kinds::world::World;
use weft_store::{Revision, Store, StoreError};

pub use events::EventNote;
pub use leader::Leader;
pub use nodes::NodeInfo;
pub use objects::{
    Change, DeleteOptions, Deleted, ObjectError, ObjectEvent, ObjectWatch, Objects, Part,
    Preconditions, Propagation, WriteOptions,
};
pub use pump::{WorldChange, WorldWatch};
pub use usage::Usage;

/// A handle to the one registry of this process. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Registry {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Arc<dyn Store>,
    clock: Clock,
    tasks: TaskGroup,
    world: Snapshot<World>,
    /// Held by the pump: watches end with it.
    changes: broadcast::WeakSender<Arc<pump::Change>>,
    catalog: catalog::Handle,
    consul: consul::Handle,
    leader: Leader,
    notes: mpsc::Sender<EventNote>,
    event_lease: Arc<events::EventLease>,
    counts: Counts,
    rng: Mutex<Rng>,
    usage: Mutex<Arc<Usage>>,
}

/// The registry's own figures, for `/metrics`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub store: weft_store::Stats,
    /// The World's revision; behind the store's while events are on their way.
    pub world_revision: u64,
    /// Items that controllers saw to.
    pub reconciles: u64,
    /// Those that were overtaken or could not write, and were tried again.
    pub reconcile_retries: u64,
    /// Events dropped because too many waited.
    pub events_dropped: u64,
}

#[derive(Debug, Default)]
struct Counts {
    reconciles: Cell,
    retries: Cell,
    events_dropped: Cell,
}

// === impl Registry ===

impl Registry {
    /// Reads the whole store into a World, starts folding its log, and writes what every server
    /// has from the start (namespaces `default` and `kube-system`, GatewayClass `weft`).
    ///
    /// The World stops moving when `tasks` begins to drain: drain everything that writes or reads
    /// first, then these.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub async fn open(
        store: Arc<dyn Store>,
        clock: Clock,
        tasks: TaskGroup,
    ) -> Result<Self, RegistryError> {
        let leader = Leader::alone(clock.clone());
        Self::open_as(store, clock, tasks, leader).await
    }

    /// The same on a store that other servers use, too: what only one may do is done by whoever
    /// leads among them.
    ///
    /// # Errors
    /// As [`Registry::open`].
    pub async fn open_as(
        store: Arc<dyn Store>,
        clock: Clock,
        tasks: TaskGroup,
        leader: Leader,
    ) -> Result<Self, RegistryError> {
        let rng = Rng::from_system();
        let shelf = Arc::new(consul::Shelf::default());
        let shared = leader.is_shared();
        catalog::remember::recall(&*store, shared).await?;
        let (pump, world, changes) = pump::load(store.clone(), shelf.clone()).await?;
        let (notes, receiver) = mpsc::channel(events::QUEUE);
        let lease = events::EventLease::new(store.clone(), clock.clone());
        let recorder = events::Recorder {
            store: store.clone(),
            world: world.clone(),
            clock: clock.clone(),
            notes: receiver,
            lease: lease.clone(),
        };
        leader.start(&store, &tasks);
        let catalog =
            catalog::Handle::new(store.clone(), world.clone(), clock.clone(), leader.clone());
        let inner = Inner {
            notes,
            event_lease: lease,
            counts: Counts::default(),
            store: store.clone(),
            clock,
            tasks: tasks.clone(),
            consul: consul::Handle::new(
                store.clone(),
                world.clone(),
                shelf,
                catalog.clone(),
                tasks.clone(),
                leader.clone(),
            ),
            catalog,
            leader,
            world,
            changes,
            rng: Mutex::new(rng),
            usage: Mutex::default(),
        };
        tasks.spawn("registry pump", pump.run(tasks.clone()));
        tasks.spawn("events", recorder.run(tasks.clone()));
        if shared {
            let (catalog, leader) = (inner.catalog.clone(), inner.leader.clone());
            let minding = servers::mind(store.clone(), catalog, leader, tasks.clone());
            tasks.spawn("servers that are gone", minding);
        } else {
            let keeping = catalog::remember::keep(store.clone(), tasks.clone());
            tasks.spawn("check results", keeping);
        }
        tasks.spawn("store ticks", pump::tick(store, tasks.clone()));
        let registry = Self { inner: Arc::new(inner) };
        registry.inner.catalog.run(&tasks);
        registry.inner.consul.run(registry.watch_world().1);
        seeds::write(&registry).await?;
        Ok(registry)
    }

    /// The World now, and a way to wait for the next one.
    pub fn world(&self) -> Snapshot<World> {
        self.inner.world.clone()
    }

    /// The World now.
    pub fn now(&self) -> Arc<World> {
        self.inner.world.load()
    }

    /// Every change of the World after the one returned.
    pub fn watch_world(&self) -> (Arc<World>, WorldWatch) {
        let changes = match self.inner.changes.upgrade() {
            Some(changes) => changes.subscribe(),
            None => broadcast::channel(1).1,
        };
        let world = self.now();
        let watch = WorldWatch::new(changes, self.inner.world.clone(), world.revision());
        (world, watch)
    }

    /// Waits until the World holds everything up to `revision`: read your own writes. Returns at
    /// once when it does; never when the registry has stopped. Cancel-safe.
    pub async fn wait_revision(&self, revision: Revision) -> Arc<World> {
        let mut world = self.inner.world.clone();
        loop {
            let now = world.load();
            if now.revision() >= revision.0 || !world.changed().await {
                return now;
            }
        }
    }

    pub fn store(&self) -> &Arc<dyn Store> {
        &self.inner.store
    }

    pub fn clock(&self) -> &Clock {
        &self.inner.clock
    }

    pub fn tasks(&self) -> &TaskGroup {
        &self.inner.tasks
    }

    /// Kubernetes-style objects.
    pub fn objects(&self) -> Objects {
        Objects::new(self.clone())
    }

    /// Whether this server does what only one of several may do.
    pub fn leader(&self) -> &Leader {
        &self.inner.leader
    }

    /// What Consul clients register.
    pub fn catalog(&self) -> &catalog::Handle {
        &self.inner.catalog
    }

    /// What only Consul's API knows.
    pub fn consul(&self) -> &consul::Handle {
        &self.inner.consul
    }

    /// Records an Event. Never waits; when too many wait already, this one is dropped.
    pub fn note(&self, note: EventNote) {
        if let Err(e) = self.inner.notes.try_send(note) {
            self.inner.counts.events_dropped.add(1);
            tracing::debug!(error = %e, "an event is dropped");
        }
    }

    /// What pods use, as it was measured last.
    pub fn usage(&self) -> Arc<Usage> {
        self.inner.usage.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Processor and memory of all pods that were measured.
    pub fn note_resources(&self, resources: BTreeMap<usage::Name, usage::Resources>) {
        let mut usage = self.inner.usage.lock().unwrap_or_else(PoisonError::into_inner);
        *usage = Arc::new(Usage { resources, ..Usage::clone(&usage) });
    }

    /// Processor and memory of machines.
    pub fn note_nodes(&self, nodes: BTreeMap<usage::Name, usage::Resources>) {
        let mut usage = self.inner.usage.lock().unwrap_or_else(PoisonError::into_inner);
        *usage = Arc::new(Usage { nodes, ..Usage::clone(&usage) });
    }

    /// Requests per second, in thousandths: of pods as they arrive, of services as callers count.
    pub fn note_requests(
        &self,
        requests: BTreeMap<usage::Name, u64>,
        service_requests: BTreeMap<usage::Name, u64>,
    ) {
        let mut usage = self.inner.usage.lock().unwrap_or_else(PoisonError::into_inner);
        *usage = Arc::new(Usage { requests, service_requests, ..Usage::clone(&usage) });
    }

    /// The registry's own figures.
    pub fn stats(&self) -> Stats {
        let counts = &self.inner.counts;
        Stats {
            store: self.inner.store.stats(),
            world_revision: self.now().revision(),
            reconciles: counts.reconciles.get(),
            reconcile_retries: counts.retries.get(),
            events_dropped: counts.events_dropped.get(),
        }
    }

    pub(crate) fn event_lease(&self) -> &events::EventLease {
        &self.inner.event_lease
    }

    pub(crate) fn count_reconcile(&self, worked: bool) {
        self.inner.counts.reconciles.add(1);
        if !worked {
            self.inner.counts.retries.add(1);
        }
    }

    pub(crate) fn with_rng<R>(&self, f: impl FnOnce(&mut Rng) -> R) -> R {
        f(&mut self.inner.rng.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Why the registry did not open.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RegistryError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the first objects could not be written: {0}")]
    Seed(#[from] ObjectError),
}
