// SPDX-License-Identifier: Apache-2.0
//! The orders and their states. Every change is a compare-and-swap on the state, so that the
//! process that serves an order and one that recovers it can never both end it.
//!
//! ```text
//! pending ──► confirmed (settled 0 ► 1: the product service knows)
//!    └──────► cancelling ──► cancelled
//! ```
//!
//! `pending` is written before stock is reserved, so a reservation whose key is not in this
//! database will never be confirmed by anybody.

use rusqlite::{OptionalExtension, Row, Transaction, params};
use serde::Serialize;

use crate::db::{Schema, now_ms};

/// Tables of this service.
pub const SCHEMA: Schema = Schema { version: 1, apply: migrate, argument: 0 };

/// Where an order stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Begun; stock may be reserved.
    Pending,
    /// Done: the customer has it.
    Confirmed,
    /// Given up; its stock is not given back yet.
    Cancelling,
    /// Given up, nothing is held.
    Cancelled,
}

/// One order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Order {
    /// Number.
    pub id: i64,
    /// Customer.
    pub user: i64,
    /// Product.
    pub product: i64,
    /// How many.
    pub quantity: i64,
    /// Where it stands.
    pub state: State,
    /// Key of its reservation.
    #[serde(skip)]
    pub key: String,
    /// Key that the client chose, if it chose one.
    #[serde(skip)]
    pub client_key: Option<String>,
}

/// What a customer asks for.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Customer.
    pub user: i64,
    /// Product.
    pub product: i64,
    /// How many.
    pub quantity: i64,
    /// Key of the reservation, new for each order.
    pub key: String,
    /// The client's `Idempotency-Key`.
    pub client_key: Option<String>,
}

/// What [`begin`] found.
#[derive(Clone, Debug)]
pub enum Begun {
    /// A new pending order.
    New(Order),
    /// An earlier order under the same client key.
    Before(Order),
}

/// Work left behind.
#[derive(Clone, Debug, Default)]
pub struct Unfinished {
    /// Pending for too long.
    pub pending: Vec<Order>,
    /// Stock to give back.
    pub cancelling: Vec<Order>,
    /// Confirmed, but the product service was not told.
    pub unsettled: Vec<Order>,
}

// === impl State ===

impl State {
    fn name(self) -> &'static str {
        match self {
            State::Pending => "pending",
            State::Confirmed => "confirmed",
            State::Cancelling => "cancelling",
            State::Cancelled => "cancelled",
        }
    }

    fn parse(name: &str) -> State {
        match name {
            "confirmed" => State::Confirmed,
            "cancelling" => State::Cancelling,
            "cancelled" => State::Cancelled,
            _ => State::Pending,
        }
    }
}

// === functions ===

/// Writes a pending order, or finds the one that the client key stands for.
pub fn begin(tx: &Transaction<'_>, ask: &Ask) -> rusqlite::Result<Begun> {
    if let Some(client_key) = &ask.client_key {
        let sql = format!("{SELECT} WHERE client_key = ?1");
        if let Some(before) = tx.prepare_cached(&sql)?.query_row([client_key], order).optional()? {
            return Ok(Begun::Before(before));
        }
    }
    tx.prepare_cached(
        "INSERT INTO orders (key, client_key, user, product, quantity, state, settled,
                             created_ms, touched_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, 'pending', 0, ?6, ?6)",
    )?
    .execute(params![
        ask.key,
        ask.client_key,
        ask.user,
        ask.product,
        ask.quantity,
        now_ms()
    ])?;
    Ok(Begun::New(Order {
        id: tx.last_insert_rowid(),
        user: ask.user,
        product: ask.product,
        quantity: ask.quantity,
        state: State::Pending,
        key: ask.key.clone(),
        client_key: ask.client_key.clone(),
    }))
}

/// pending → confirmed. False when somebody else ended the order.
pub fn confirm(tx: &Transaction<'_>, id: i64) -> rusqlite::Result<bool> {
    advance(tx, id, State::Pending, State::Confirmed)
}

/// pending → cancelling. The client key is free again, so that a repeat is a new order.
pub fn cancel(tx: &Transaction<'_>, id: i64) -> rusqlite::Result<bool> {
    let done = advance(tx, id, State::Pending, State::Cancelling)?;
    if done {
        tx.prepare_cached("UPDATE orders SET client_key = NULL WHERE id = ?1")?.execute([id])?;
    }
    Ok(done)
}

/// cancelling → cancelled, once nothing is held for it.
pub fn cancelled(tx: &Transaction<'_>, id: i64) -> rusqlite::Result<bool> {
    advance(tx, id, State::Cancelling, State::Cancelled)
}

/// The product service has confirmed the reservation of a confirmed order.
pub fn settled(tx: &Transaction<'_>, id: i64) -> rusqlite::Result<()> {
    tx.prepare_cached("UPDATE orders SET settled = 1 WHERE id = ?1 AND state = 'confirmed'")?
        .execute([id])?;
    Ok(())
}

/// Work that nobody touched for `age_ms`, at most 100 of each kind, oldest first.
pub fn unfinished(conn: &rusqlite::Connection, age_ms: i64) -> rusqlite::Result<Unfinished> {
    let before = now_ms().saturating_sub(age_ms);
    let select = |state: &str| {
        let sql = format!(
            "{SELECT} WHERE settled = 0 AND state = ?1 AND touched_ms <= ?2
             ORDER BY touched_ms LIMIT 100"
        );
        let mut query = conn.prepare_cached(&sql)?;
        query.query_map(params![state, before], order)?.collect::<Result<Vec<_>, _>>()
    };
    Ok(Unfinished {
        pending: select("pending")?,
        cancelling: select("cancelling")?,
        unsettled: select("confirmed")?,
    })
}

/// One order by number.
pub fn get(conn: &rusqlite::Connection, id: i64) -> rusqlite::Result<Option<Order>> {
    conn.prepare_cached(&format!("{SELECT} WHERE id = ?1"))?.query_row([id], order).optional()
}

/// One order by the key of its reservation.
pub fn by_key(conn: &rusqlite::Connection, key: &str) -> rusqlite::Result<Option<Order>> {
    conn.prepare_cached(&format!("{SELECT} WHERE key = ?1"))?.query_row([key], order).optional()
}

/// The newest orders.
pub fn newest(conn: &rusqlite::Connection, limit: i64) -> rusqlite::Result<Vec<Order>> {
    let sql = format!("{SELECT} ORDER BY id DESC LIMIT ?1");
    conn.prepare_cached(&sql)?.query_map([limit], order)?.collect()
}

// === helpers ===

const SELECT: &str = "SELECT id, user, product, quantity, state, key, client_key FROM orders";

fn order(row: &Row<'_>) -> rusqlite::Result<Order> {
    let state: String = row.get(4)?;
    Ok(Order {
        id: row.get(0)?,
        user: row.get(1)?,
        product: row.get(2)?,
        quantity: row.get(3)?,
        state: State::parse(&state),
        key: row.get(5)?,
        client_key: row.get(6)?,
    })
}

fn advance(tx: &Transaction<'_>, id: i64, from: State, to: State) -> rusqlite::Result<bool> {
    let changed = tx
        .prepare_cached(
            "UPDATE orders SET state = ?3, touched_ms = ?4, settled = ?5
             WHERE id = ?1 AND state = ?2",
        )?
        .execute(params![id, from.name(), to.name(), now_ms(), to == State::Cancelled])?;
    Ok(changed == 1)
}

fn migrate(tx: &Transaction<'_>, _: i64) -> rusqlite::Result<()> {
    tx.execute_batch(
        "CREATE TABLE IF NOT EXISTS orders (
             id INTEGER PRIMARY KEY AUTOINCREMENT,
             key TEXT NOT NULL UNIQUE,
             client_key TEXT UNIQUE,
             user INTEGER NOT NULL, product INTEGER NOT NULL,
             quantity INTEGER NOT NULL CHECK (quantity > 0),
             state TEXT NOT NULL
                 CHECK (state IN ('pending', 'confirmed', 'cancelling', 'cancelled')),
             settled INTEGER NOT NULL,
             created_ms INTEGER NOT NULL, touched_ms INTEGER NOT NULL
         ) STRICT;
         CREATE INDEX IF NOT EXISTS orders_unfinished
             ON orders (state, touched_ms) WHERE settled = 0;",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::Connection;

    fn ask(key: &str, client_key: Option<&str>) -> Ask {
        let client_key = client_key.map(str::to_owned);
        Ask { user: 1, product: 2, quantity: 3, key: key.into(), client_key }
    }

    fn new(tx: &Transaction<'_>, ask: &Ask) -> Order {
        match begin(tx, ask).unwrap() {
            Begun::New(order) => order,
            Begun::Before(order) => panic!("order {} was there before", order.id),
        }
    }

    #[test]
    fn an_order_ends_in_one_way_only() {
        let mut conn = Connection::open_in_memory().unwrap();
        let tx = conn.transaction().unwrap();
        migrate(&tx, 0).unwrap();
        let (a, b) = (new(&tx, &ask("a", None)).id, new(&tx, &ask("b", None)).id);
        assert!(confirm(&tx, a).unwrap());
        assert!(!cancel(&tx, a).unwrap());
        assert!(cancel(&tx, b).unwrap());
        assert!(!confirm(&tx, b).unwrap());
        let left = unfinished(&tx, 0).unwrap();
        assert_eq!((left.pending.len(), left.cancelling.len(), left.unsettled.len()), (0, 1, 1));
        assert!(cancelled(&tx, b).unwrap());
        settled(&tx, a).unwrap();
        let left = unfinished(&tx, 0).unwrap();
        assert_eq!((left.cancelling.len(), left.unsettled.len()), (0, 0));
    }

    #[test]
    fn a_client_key_is_remembered_until_its_order_is_cancelled() {
        let mut conn = Connection::open_in_memory().unwrap();
        let tx = conn.transaction().unwrap();
        migrate(&tx, 0).unwrap();
        let first = new(&tx, &ask("a", Some("c")));
        let Begun::Before(again) = begin(&tx, &ask("b", Some("c"))).unwrap() else {
            panic!("a second order was made");
        };
        assert_eq!(again, first);
        assert!(cancel(&tx, first.id).unwrap());
        assert_ne!(new(&tx, &ask("b", Some("c"))).id, first.id);
    }
}
