// SPDX-License-Identifier: Apache-2.0
//! The saga of one order, top to bottom in [`Sagas::run`]: read the user, write a pending order,
//! reserve stock, confirm the order; compensate when a later step fails. Called by `http.rs`.
//! It never answers 201 before the order is confirmed in its own database.

use http::StatusCode;
use serde_json::json;
use tokio_util::task::TaskTracker;

use super::fault::Faults;
use super::recovery::Settler;
use super::store::{self, Ask, Begun, Order, State};
use super::upstream::{Products, ReserveError, UserError, Users};
use crate::db::Db;
use crate::headers::Propagated;
use crate::server::{self, Refusal};

/// A finished order for the client.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) order: Order,
    /// Version of the product service that reserved the stock, when it was asked just now.
    pub(super) reserved_by: Option<String>,
}

/// Runs sagas.
#[derive(Clone, Debug)]
pub(super) struct Sagas {
    db: Db,
    users: Users,
    products: Products,
    settler: Settler,
    faults: Faults,
    running: TaskTracker,
}

// === impl Sagas ===

impl Sagas {
    pub(super) fn new(
        db: Db,
        users: Users,
        products: Products,
        settler: Settler,
        faults: Faults,
    ) -> Sagas {
        Sagas { db, users, products, settler, faults, running: TaskTracker::new() }
    }

    /// Places an order. It runs to its end even when the caller goes away.
    pub(super) async fn place(&self, ask: Ask, context: Propagated) -> Result<Placed, Refusal> {
        let this = self.clone();
        let task = self.running.spawn(async move { this.run(ask, &context).await });
        task.await.unwrap_or_else(|e| {
            Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the order failed: {e}")))
        })
    }

    /// Waits for the sagas that still run.
    pub(super) async fn finished(&self) {
        self.running.close();
        self.running.wait().await;
    }

    async fn run(&self, ask: Ask, context: &Propagated) -> Result<Placed, Refusal> {
        self.users.get(ask.user, context).await.map_err(no_user)?;
        let order = match self.begin(ask).await? {
            Begun::New(order) => order,
            Begun::Before(order) => return repeated(order),
        };
        let version = match self.products.reserve(&order, context).await {
            Ok(version) => version,
            Err(why) => return Err(self.give_up(&order, why).await),
        };
        self.write(order, version).await
    }

    async fn begin(&self, ask: Ask) -> Result<Begun, Refusal> {
        let wanted = (ask.user, ask.product, ask.quantity);
        let begun = self.db.write(move |tx| store::begin(tx, &ask)).await?;
        if let Begun::Before(o) = &begun
            && (o.user, o.product, o.quantity) != wanted
        {
            return Err(Refusal::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "this Idempotency-Key was used for another order, choose a new one",
            ));
        }
        Ok(begun)
    }

    /// Stock is held: confirm the order, or give the stock back.
    async fn write(&self, order: Order, version: String) -> Result<Placed, Refusal> {
        let id = order.id;
        let written = if self.faults.after_reserve() {
            Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the write failed, as asked for"))
        } else {
            self.db.write(move |tx| store::confirm(tx, id)).await.map_err(Refusal::from)
        };
        match written {
            Ok(true) => {
                self.settler.settle(&order);
                let order = Order { state: State::Confirmed, ..order };
                Ok(Placed { order, reserved_by: Some(version) })
            }
            Ok(false) => self.ended_elsewhere(id).await,
            Err(refusal) => {
                self.compensate(&order).await;
                Err(refusal)
            }
        }
    }

    /// Reserving failed. What the product service refused holds nothing; anything else may.
    async fn give_up(&self, order: &Order, why: ReserveError) -> Refusal {
        let text = why.to_string();
        self.compensate(order).await;
        match why {
            ReserveError::Refused(status) => match status.code() {
                tonic::Code::NotFound => {
                    Refusal::field(StatusCode::UNPROCESSABLE_ENTITY, "product", text)
                }
                tonic::Code::FailedPrecondition => {
                    Refusal::field(StatusCode::CONFLICT, "quantity", text)
                }
                _ => Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, text),
            },
            ReserveError::Unknown(_) => Refusal::new(StatusCode::SERVICE_UNAVAILABLE, text),
        }
    }

    /// Cancels the order and releases its stock; what cannot be done now, recovery does.
    async fn compensate(&self, order: &Order) {
        let id = order.id;
        match self.db.write(move |tx| store::cancel(tx, id)).await {
            Ok(true) => self.settler.settle(&Order { state: State::Cancelling, ..order.clone() }),
            Ok(false) => {}
            Err(e) => {
                let details = json!({ "order": id, "error": e.to_string() });
                server::log("order", "cancel_left_to_recovery", details);
            }
        }
    }

    /// Recovery was faster, because this process stood still. What it decided is the answer.
    async fn ended_elsewhere(&self, id: i64) -> Result<Placed, Refusal> {
        match self.db.read(move |conn| store::get(conn, id)).await? {
            Some(order) if order.state == State::Confirmed => {
                Ok(Placed { order, reserved_by: None })
            }
            _ => Err(Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "the order took too long and was cancelled, order again",
            )),
        }
    }
}

// === helpers ===

fn no_user(error: UserError) -> Refusal {
    let text = error.to_string();
    match error {
        UserError::NotFound(_) => Refusal::field(StatusCode::UNPROCESSABLE_ENTITY, "user", text),
        UserError::Failed(_) => Refusal::new(StatusCode::SERVICE_UNAVAILABLE, text),
    }
}

fn repeated(order: Order) -> Result<Placed, Refusal> {
    if order.state == State::Confirmed {
        return Ok(Placed { order, reserved_by: None });
    }
    Err(Refusal::new(
        StatusCode::CONFLICT,
        "an order with this Idempotency-Key is being placed, ask again in a second",
    ))
}
