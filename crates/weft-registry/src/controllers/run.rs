// SPDX-License-Identifier: Apache-2.0
//! The one loop that runs the controllers: follows the World, sees to one item at a time with
//! the newest World, commits its plan, and waits until the World shows it before the next.

use std::sync::Arc;
use std::time::Duration;

use weft_kinds::world::World;
use weft_store::{Revision, StoreError, Txn};

use super::queue::Queue;
use super::{Item, everything, reconcile, woken};
use crate::{Registry, WorldChange, WorldWatch};

struct Runner {
    registry: Registry,
    queue: Queue,
    /// The World as of the last change told.
    seen: Arc<World>,
    watch: WorldWatch,
}

/// Runs the controllers until the registry's tasks drain.
pub fn run(registry: &Registry) {
    let (seen, watch) = registry.watch_world();
    let mut runner = Runner { registry: registry.clone(), queue: Queue::default(), seen, watch };
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
        self.push_all(everything(&self.seen.clone()));
        loop {
            let now = self.registry.clock().now();
            let Some(item) = self.queue.pop(now) else {
                let wait = self.queue.next_due().map(|at| at.since(now));
                tokio::select! {
                    change = self.watch.next() => match change {
                        Some(change) => self.note(change),
                        None => return,
                    },
                    () = pause(wait) => {}
                }
                continue;
            };
            self.see_to(item).await;
            // What just happened wakes others; take it in before the next item.
            while let Some(change) = futures_util::FutureExt::now_or_never(self.watch.next()) {
                match change {
                    Some(change) => self.note(change),
                    None => return,
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

    async fn see_to(&mut self, item: Item) {
        let world = self.registry.now();
        let wall = self.registry.clock().wall_ms();
        let seed = self.registry.with_rng(weft_base::rng::Rng::next_u64);
        let plan = reconcile(&item, &world, wall, seed);
        let (again, notes) = (plan.again, plan.notes);
        let done = self.commit(plan.txns).await;
        let now = self.registry.clock().now();
        match done {
            Ok(true) => {
                self.queue.worked(&item);
                notes.into_iter().for_each(|note| self.registry.note(note));
                if let Some(after) = again {
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

    /// Commits all of a plan at once; whether every transaction held.
    async fn commit(&self, txns: Vec<Txn>) -> Result<bool, StoreError> {
        let store = self.registry.store();
        let txns = txns.into_iter().map(|txn| store.txn(txn));
        let (mut all, mut newest) = (true, Revision(0));
        let mut failed = None;
        for outcome in futures_util::future::join_all(txns).await {
            match outcome {
                Ok(outcome) => {
                    all &= outcome.succeeded;
                    newest = newest.max(outcome.revision);
                }
                Err(e) => failed = Some(e),
            }
        }
        self.registry.wait_revision(newest).await;
        failed.map_or(Ok(all), Err)
    }
}

async fn pause(wait: Option<Duration>) {
    match wait {
        // A clock that is moved by hand says when time has passed; look now and then.
        Some(wait) => tokio::time::sleep(wait.min(Duration::from_millis(250))).await,
        None => std::future::pending().await,
    }
}
