// SPDX-License-Identifier: Apache-2.0
//! The one writer of the World: reads the store once, then follows its log. When the log is lost
//! (the store was cut off, or opened again after a failure) it reads everything again and says so
//! with [`WorldChange::Reset`].

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;
use weft_base::snapshot::{Publisher, Snapshot, snapshot};
use weft_base::task::TaskGroup;
use weft_kinds::world::{World, WorldDelta};
use weft_store::{Event, EventKind, Revision, Store, StoreError, Watch, WatchError};

use crate::consul::Shelf;

/// Changes that a reader may be behind before it must look at the whole World again.
const BACKLOG: usize = 256;
const TICK: Duration = Duration::from_millis(500);

/// One step of the World.
#[derive(Debug)]
pub(crate) struct Change {
    world: Arc<World>,
    /// `None` when everything may be different.
    delta: Option<Arc<WorldDelta>>,
}

/// What a watcher of the World is told.
#[derive(Clone, Debug)]
pub enum WorldChange {
    /// A step from the World told before.
    Delta(Arc<World>, Arc<WorldDelta>),
    /// Steps were missed: think everything again.
    Reset(Arc<World>),
}

/// Follows the World step by step.
#[derive(Debug)]
pub struct WorldWatch {
    changes: broadcast::Receiver<Arc<Change>>,
    world: Snapshot<World>,
    seen: u64,
}

/// The store's log on its way into the World.
#[derive(Debug)]
pub(crate) struct Pump {
    store: Arc<dyn Store>,
    shelf: Arc<Shelf>,
    log: Watch,
    publisher: Publisher<World>,
    changes: broadcast::Sender<Arc<Change>>,
}

type Loaded = (Pump, Snapshot<World>, broadcast::WeakSender<Arc<Change>>);

/// Reads the store and prepares to follow it.
pub(crate) async fn load(store: Arc<dyn Store>, shelf: Arc<Shelf>) -> Result<Loaded, StoreError> {
    let (world, log) = read(&*store, &shelf).await?;
    let (publisher, snapshot) = snapshot(world);
    let (changes, _) = broadcast::channel(BACKLOG);
    let weak = changes.downgrade();
    Ok((Pump { store, shelf, log, publisher, changes }, snapshot, weak))
}

/// Ends leases that are due and old history, twice a second.
pub(crate) async fn tick(store: Arc<dyn Store>, tasks: TaskGroup) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = tasks.draining() => return,
            _ = interval.tick() => {}
        }
        if let Err(e) = store.tick().await {
            tracing::warn!(error = %e, "leases that are due could not be ended; trying again");
        }
    }
}

/// The whole store as a World and on Consul's shelf, and the log from there on.
async fn read(store: &dyn Store, shelf: &Shelf) -> Result<(World, Watch), StoreError> {
    loop {
        let page = store.range("", 0, None).await?;
        let log = match store.watch("", page.revision.next()) {
            Ok(log) => log,
            // Compacted between the two calls; the next reading is newer.
            Err(WatchError::Compacted { .. } | WatchError::TooSlow) => continue,
            Err(_) => return Err(StoreError::Closed),
        };
        let mut world = World::new();
        for (key, entry) in &page.entries {
            world.load(key, &entry.value, entry.created.0, entry.modified.0);
        }
        reach(&mut world, page.revision);
        shelf.reset(&page);
        return Ok((world, log));
    }
}

/// Notes a revision at which nothing of the World changed: what is listed at it can be watched
/// from there. `/` is no key that the World reads.
fn reach(world: &mut World, revision: Revision) {
    world.apply("/", None, revision.0);
}

// === impl Pump ===

impl Pump {
    /// Until the tasks drain or the store closes.
    pub async fn run(mut self, tasks: TaskGroup) {
        loop {
            let next = tokio::select! {
                () = tasks.draining() => return,
                next = self.log.next() => next,
            };
            let change = match next {
                Ok(events) => self.fold(&events),
                Err(WatchError::Closed) => return,
                Err(e) => match self.again(e).await {
                    Ok(change) => change,
                    Err(StoreError::Closed) => return,
                    Err(e) => {
                        tracing::warn!(error = %e, "the store cannot be read; trying again");
                        tokio::time::sleep(TICK).await;
                        continue;
                    }
                },
            };
            self.publisher.publish(change.world.clone());
            // Nobody listening is fine.
            let _ = self.changes.send(Arc::new(change));
        }
    }

    fn fold(&self, events: &[Event]) -> Change {
        let world = self.publisher.load();
        // First, so that who waits for the World finds both.
        self.shelf.fold(events);
        let all = || fold(&world, events);
        let (world, delta) = unless_it_panics(all).unwrap_or_else(|| one_by_one(&world, events));
        Change { world: Arc::new(world), delta: Some(Arc::new(delta)) }
    }

    async fn again(&mut self, why: WatchError) -> Result<Change, StoreError> {
        tracing::warn!(error = %why, "the log was lost; reading the whole store again");
        let (world, log) = read(&*self.store, &self.shelf).await?;
        self.log = log;
        Ok(Change { world: Arc::new(world), delta: None })
    }
}

fn fold(world: &World, events: &[Event]) -> (World, WorldDelta) {
    let mut world = world.clone();
    let delta = world.apply_all(events.iter().map(|event| {
        let value = (event.kind == EventKind::Put).then_some(&*event.value);
        (&*event.key, value, event.revision.0)
    }));
    (world, delta)
}

/// One of the events cannot be folded: it is left out, and the rest goes on.
fn one_by_one(world: &World, events: &[Event]) -> (World, WorldDelta) {
    let (mut world, mut delta) = (world.clone(), WorldDelta::default());
    for event in events {
        match unless_it_panics(|| fold(&world, std::slice::from_ref(event))) {
            Some((next, more)) => {
                world = next;
                delta.merge(more);
            }
            None => {
                tracing::error!(key = %event.key, "an event cannot be folded and is left out");
                reach(&mut world, event.revision);
            }
        }
    }
    (world, delta)
}

/// A mistake in one place must not end what everything waits for. Counted as a bug.
pub(crate) fn unless_it_panics<R>(f: impl FnOnce() -> R) -> Option<R> {
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
    result.inspect_err(|_| weft_base::error::count_bug()).ok()
}

// === impl WorldWatch ===

impl WorldWatch {
    pub(crate) fn new(
        changes: broadcast::Receiver<Arc<Change>>,
        world: Snapshot<World>,
        seen: u64,
    ) -> Self {
        Self { changes, world, seen }
    }

    /// The next change; `None` when the registry has stopped. Cancel-safe.
    pub async fn next(&mut self) -> Option<WorldChange> {
        loop {
            let change = match self.changes.recv().await {
                Ok(change) => change,
                Err(broadcast::error::RecvError::Closed) => return None,
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    let world = self.world.load();
                    self.seen = world.revision();
                    return Some(WorldChange::Reset(world));
                }
            };
            let revision = change.world.revision();
            match &change.delta {
                Some(_) if revision <= self.seen => {}
                Some(delta) => {
                    self.seen = revision;
                    return Some(WorldChange::Delta(change.world.clone(), delta.clone()));
                }
                None => {
                    self.seen = revision;
                    return Some(WorldChange::Reset(change.world.clone()));
                }
            }
        }
    }
}
