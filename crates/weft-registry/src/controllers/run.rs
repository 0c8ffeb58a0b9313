// SPDX-License-Identifier: Apache-2.0
//! The one loop that runs the controllers: follows the World, sees to the items that are woken
//! with the newest World, commits their plans, and waits until the World shows them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use weft_kinds::world::World;
use weft_store::{Compare, Revision, Store, StoreError, Txn};

use super::autoscaler::Memory;
use super::plan::{Context, Plan};
use super::queue::Queue;
use super::{Item, everything, see_to, woken};
use crate::pump::unless_it_panics;
use crate::{Registry, WorldChange, WorldWatch};

/// Items seen to at once.
const BATCH: usize = 32;

const AFTER_PANIC: Duration = Duration::from_secs(60);

struct Runner {
    registry: Registry,
    queue: Queue,
    /// The World as of the last change told.
    seen: Arc<World>,
    watch: WorldWatch,
    /// What autoscalers asked to be told.
    memories: BTreeMap<Item, Memory>,
}

/// Runs the controllers until the registry's tasks drain.
pub fn run(registry: &Registry) {
    let (seen, watch) = registry.watch_world();
    let (queue, memories) = (Queue::default(), BTreeMap::new());
    let mut runner = Runner { registry: registry.clone(), queue, seen, watch, memories };
    let tasks = registry.tasks().clone();
    registry.tasks().spawn("controllers", async move {
        tokio::select! {
            () = tasks.draining() => {}
            () = runner.run() => {}
        }
    });
}

// === impl Runner ===

impl Runner {
    async fn run(&mut self) {
        loop {
            if !self.wait_to_lead().await {
                return;
            }
            self.push_all(everything(&self.seen.clone()));
            if !self.lead().await {
                return;
            }
        }
    }

    /// Follows the World without doing anything, until this server leads; `false` when it is over.
    async fn wait_to_lead(&mut self) -> bool {
        let leader = self.registry.leader().clone();
        let mut changes = leader.changes();
        while !leader.is_here() {
            tokio::select! {
                change = self.watch.next() => match change {
                    Some(WorldChange::Delta(world, _) | WorldChange::Reset(world)) => {
                        self.seen = world;
                    }
                    None => return false,
                },
                _ = changes.changed() => {}
            }
        }
        true
    }

    /// Sees to what is woken while this server leads; `false` when it is over.
    async fn lead(&mut self) -> bool {
        let leader = self.registry.leader().clone();
        let mut changes = leader.changes();
        loop {
            if !leader.is_here() {
                self.queue = Queue::default();
                self.memories.clear();
                return true;
            }
            let now = self.registry.clock().now();
            let items: Vec<Item> = std::iter::from_fn(|| self.queue.pop(now)).take(BATCH).collect();
            if items.is_empty() {
                let wait = self.queue.next_due().map(|at| at.since(now));
                tokio::select! {
                    change = self.watch.next() => match change {
                        Some(change) => self.note(change),
                        None => return false,
                    },
                    _ = changes.changed() => {}
                    () = pause(wait) => {}
                }
                continue;
            }
            self.see_to(items).await;
            // What just happened wakes others; take it in before the next items.
            while let Some(change) = futures_util::FutureExt::now_or_never(self.watch.next()) {
                match change {
                    Some(change) => self.note(change),
                    None => return false,
                }
            }
        }
    }

    fn note(&mut self, change: WorldChange) {
        let items = match change {
            WorldChange::Delta(world, delta) => {
                let items = woken(&self.seen, &world, &delta);
                self.seen = world;
                items
            }
            WorldChange::Reset(world) => {
                self.seen = world;
                everything(&self.seen)
            }
        };
        self.push_all(items);
    }

    fn push_all(&mut self, items: impl IntoIterator<Item = Item>) {
        let now = self.registry.clock().now();
        items.into_iter().for_each(|item| self.queue.push(item, now));
    }

    /// Sees to some items with one World. No two of them decide about the same thing; where two
    /// write the same object, the second is overtaken and looks again.
    async fn see_to(&mut self, items: Vec<Item>) {
        let world = self.registry.now();
        let (wall, usage) = (self.registry.clock().wall_ms(), self.registry.usage());
        let plans: Vec<Plan> = items
            .iter()
            .map(|item| {
                let seed = self.registry.with_rng(weft_base::rng::Rng::next_u64);
                let memory = self.memories.get(item).cloned();
                let ctx =
                    || Context::new(&world, wall, seed).knowing(usage.clone(), memory.clone());
                unless_it_panics(|| see_to(item, ctx())).unwrap_or_else(|| {
                    tracing::error!(?item, "a controller panicked; trying again much later");
                    Plan { again: Some(AFTER_PANIC), ..Plan::default() }
                })
            })
            .collect();
        // All at once, so that they share commits.
        let fence = self.registry.leader().fence();
        let store = &**self.registry.store();
        let commits = plans.iter().map(|plan| commit(store, &plan.txns, fence.as_ref()));
        let done = futures_util::future::join_all(commits).await;
        let newest = done.iter().map(|(_, newest)| *newest).max().unwrap_or_default();
        self.registry.wait_revision(newest).await;
        let now = self.registry.clock().now();
        for ((item, plan), (done, _)) in items.into_iter().zip(plans).zip(done) {
            self.registry.count_reconcile(matches!(done, Ok(true)));
            match done {
                Ok(true) => {
                    self.queue.worked(&item);
                    match plan.memory {
                        Some(memory) => drop(self.memories.insert(item.clone(), memory)),
                        None => drop(self.memories.remove(&item)),
                    }
                    plan.notes.into_iter().for_each(|note| self.registry.note(note));
                    if let Some(after) = plan.again {
                        self.queue.push(item, now.plus(after));
                    }
                }
                // Somebody else wrote first: what they wrote is looked at again.
                Ok(false) => self.queue.failed(item, now),
                Err(e) => {
                    tracing::warn!(?item, error = %e, "a controller's writes failed; trying again");
                    self.queue.failed(item, now);
                }
            }
        }
    }
}

/// Commits all of a plan; whether every transaction held, and the newest revision.
async fn commit(
    store: &dyn Store,
    txns: &[Txn],
    fence: Option<&Compare>,
) -> (Result<bool, StoreError>, Revision) {
    let (mut all, mut newest) = (Ok(true), Revision(0));
    let fenced = txns.iter().map(|txn| {
        let mut txn = txn.clone();
        txn.compares.extend(fence.cloned());
        store.txn(txn)
    });
    let outcomes = futures_util::future::join_all(fenced);
    for outcome in outcomes.await {
        match outcome {
            Ok(outcome) => {
                newest = newest.max(outcome.revision);
                if !outcome.succeeded && all.is_ok() {
                    all = Ok(false);
                }
            }
            Err(e) => all = Err(e),
        }
    }
    (all, newest)
}

async fn pause(wait: Option<Duration>) {
    match wait {
        // A clock that is moved by hand says when time has passed; look now and then.
        Some(wait) => tokio::time::sleep(wait.min(Duration::from_millis(250))).await,
        None => std::future::pending().await,
    }
}
