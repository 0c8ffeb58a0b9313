// SPDX-License-Identifier: Apache-2.0
//! Ends what was begun. Three sources of work, all safe to repeat and safe to do twice at once:
//!
//! 1. the settle queue: an order just ended here, the product service has to be told;
//! 2. the database: orders that nobody has touched for a while, because their process died or a
//!    call failed. A pending one is finished when its client can ask for it again (it sent an
//!    `Idempotency-Key`), otherwise cancelled, since its client saw a failure;
//! 3. the product service: reservations held for us that belong to no order of ours, or to one
//!    that is ended. `pending` is written before reserving, so an unknown key has no future.

use std::time::Duration;

use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tonic::{Code, Status};

use super::store::{self, Order, State};
use super::upstream::{Products, ReserveError};
use crate::db::{Db, DbError};
use crate::headers::Propagated;
use crate::server::{self, Lifecycle};

/// Orders that may wait to be settled; more are left to the database scan.
const SETTLE_QUEUE: usize = 1024;

/// How old things are before they are picked up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) recover_after: Duration,
    pub(super) recover_every: Duration,
    pub(super) reclaim_after: Duration,
}

/// Hands ended orders to the background.
#[derive(Clone, Debug)]
pub(super) struct Settler(mpsc::Sender<Order>);

/// The background work.
#[derive(Clone, Debug)]
pub(super) struct Recovery {
    db: Db,
    products: Products,
    times: Times,
}

/// Why a step was not done; it is done again later.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error("{0}")]
    Db(#[from] DbError),
    #[error("product service: {}: {}", .0.code(), .0.message())]
    Product(#[from] Status),
    #[error("{0}")]
    Reserve(#[from] ReserveError),
}

/// The queue between sagas and the background.
pub(super) fn settle_queue() -> (Settler, mpsc::Receiver<Order>) {
    let (sender, receiver) = mpsc::channel(SETTLE_QUEUE);
    (Settler(sender), receiver)
}

// === impl Settler ===

impl Settler {
    /// Tells the product service soon. When the queue is full the scan does it.
    pub(super) fn settle(&self, order: &Order) {
        let _ = self.0.try_send(order.clone());
    }
}

// === impl Recovery ===

impl Recovery {
    pub(super) fn new(db: Db, products: Products, times: Times) -> Recovery {
        Recovery { db, products, times }
    }

    /// Starts both loops. The future ends when the queue is closed and empty.
    pub(super) fn start(
        self,
        mut queue: mpsc::Receiver<Order>,
        life: &Lifecycle,
    ) -> impl Future<Output = ()> + use<> {
        let settling = self.clone();
        let settle = tokio::spawn(async move {
            while let Some(order) = queue.recv().await {
                let done = settling.settle(&order).await;
                report("settle", &order, done);
            }
        });
        let stop = life.stopping.clone();
        let scan = tokio::spawn(async move {
            tokio::select! { () = stop.cancelled() => {}, () = self.scan() => {} }
        });
        async move {
            let _ = tokio::join!(settle, scan);
        }
    }

    async fn scan(&self) {
        let mut ticks = interval(self.times.recover_every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let reclaim_every = self.times.reclaim_after.max(self.times.recover_every) / 2;
        let mut reclaim_at = Instant::now();
        loop {
            ticks.tick().await;
            if let Err(e) = self.recover().await {
                server::log("order", "recovery_failed", json!({ "error": e.to_string() }));
                // The database is in trouble; the other source needs it too.
                continue;
            }
            if Instant::now() >= reclaim_at {
                reclaim_at = Instant::now() + reclaim_every;
                if let Err(e) = self.reclaim().await {
                    server::log("order", "reclaim_failed", json!({ "error": e.to_string() }));
                    sleep_until(Instant::now() + self.times.recover_every).await;
                }
            }
        }
    }

    async fn recover(&self) -> Result<(), DbError> {
        let age = i64::try_from(self.times.recover_after.as_millis()).unwrap_or(i64::MAX);
        let found = self.db.read(move |conn| store::unfinished(conn, age)).await?;
        for order in &found.pending {
            report("recover", order, self.recover_one(order).await);
        }
        for order in found.cancelling.iter().chain(&found.unsettled) {
            report("settle", order, self.settle(order).await);
        }
        Ok(())
    }

    async fn recover_one(&self, order: &Order) -> Result<(), StepError> {
        let id = order.id;
        if order.client_key.is_some() {
            match self.products.reserve(order, &Propagated::default()).await {
                Ok(_) => {
                    if self.db.write(move |tx| store::confirm(tx, id)).await? {
                        server::log("order", "finished", json!({ "order": id }));
                        let order = Order { state: State::Confirmed, ..order.clone() };
                        return self.settle(&order).await;
                    }
                    return Ok(());
                }
                // It stays pending and is tried again.
                Err(unknown @ ReserveError::Unknown(_)) if !was_released(&unknown) => {
                    return Err(unknown.into());
                }
                Err(_) => {}
            }
        }
        if self.db.write(move |tx| store::cancel(tx, id)).await? {
            server::log("order", "cancelled", json!({ "order": id }));
            return self.settle(&Order { state: State::Cancelling, ..order.clone() }).await;
        }
        Ok(())
    }

    /// Tells the product service how an order ended, then remembers that it knows.
    async fn settle(&self, order: &Order) -> Result<(), StepError> {
        let id = order.id;
        match order.state {
            State::Confirmed => {
                self.products.confirm(&order.key).await?;
                self.db.write(move |tx| store::settled(tx, id)).await?;
            }
            State::Cancelling => {
                self.products.release(&order.key).await?;
                self.db.write(move |tx| store::cancelled(tx, id)).await?;
            }
            State::Pending | State::Cancelled => {}
        }
        Ok(())
    }

    /// Looks from the product service's side, for reservations that no order will end.
    async fn reclaim(&self) -> Result<(), StepError> {
        for key in self.products.unconfirmed(self.times.reclaim_after).await? {
            let wanted = key.clone();
            let order = self.db.read(move |conn| store::by_key(conn, &wanted)).await?;
            match order.map(|o| o.state) {
                Some(State::Confirmed) => self.products.confirm(&key).await?,
                None | Some(State::Cancelled) => {
                    self.products.release(&key).await?;
                    server::log("order", "reclaimed", json!({ "key": key }));
                }
                // The scan of the database ends these.
                Some(State::Pending | State::Cancelling) => {}
            }
        }
        Ok(())
    }
}

// === helpers ===

fn was_released(error: &ReserveError) -> bool {
    matches!(error, ReserveError::Unknown(status) if status.code() == Code::Aborted)
}

fn report(step: &str, order: &Order, done: Result<(), StepError>) {
    if let Err(e) = done {
        let details = json!({ "step": step, "order": order.id, "error": e.to_string() });
        server::log("order", "left_for_later", details);
    }
}
