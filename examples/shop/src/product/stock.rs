// SPDX-License-Identifier: Apache-2.0
//! Stock and reservations: the only code that changes them. Every function runs inside one
//! transaction of the caller's and may be repeated with the same key.
//!
//! The rule that holds after every transaction, for each product: stock + quantities reserved +
//! quantities confirmed = first stock.

use rusqlite::{OptionalExtension, Row, Transaction, params};
use serde::Serialize;

use crate::db::{Schema, now_ms};

/// Tables of this service; the argument is the first stock of each product.
pub const SCHEMA: Schema = Schema { version: 1, apply: migrate, argument: 1_000_000 };

/// A released key is forgotten after a day: no call lives so long.
const RELEASED_KEEP_MS: i64 = 24 * 60 * 60 * 1000;

/// Something to buy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Product {
    /// Number.
    pub id: i64,
    /// Name.
    pub name: String,
    /// Price.
    pub price_cents: i64,
    /// How many are left.
    pub stock: i64,
}

/// Where a reservation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Stock is taken, the order is not final.
    Reserved,
    /// Stock is taken for good.
    Confirmed,
    /// Stock was given back, or never taken.
    Released,
}

/// What an order asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Chosen once per order.
    pub key: String,
    /// Which product.
    pub product: i64,
    /// How many.
    pub quantity: i64,
    /// Who will confirm or release; empty for nobody.
    pub holder: String,
}

/// One row of the reservations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// The order's key.
    pub key: String,
    /// Which product; 0 when the key was released before it was ever reserved.
    pub product: i64,
    /// How many.
    pub quantity: i64,
    /// Where it stands.
    pub state: State,
}

/// Why a call changes nothing. Repeating it gives the same answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is no such product.
    #[error("product {0} does not exist")]
    NoProduct(i64),
    /// Not enough left.
    #[error("product {product} has {stock} left, {asked} were asked for")]
    OutOfStock {
        /// Which.
        product: i64,
        /// What is left.
        stock: i64,
        /// What was asked for.
        asked: i64,
    },
    /// The key stands for another order.
    #[error("key {0} was used before for another product or quantity, choose a new key")]
    KeyReused(String),
    /// The key was given back.
    #[error("key {0} was released, choose a new key")]
    Released(String),
    /// The key is final.
    #[error("key {0} is confirmed and cannot be released")]
    Confirmed(String),
    /// Nothing is known under the key.
    #[error("key {0} was never reserved")]
    Unknown(String),
}

/// SQLite's refusal outside, the shop's inside.
pub type Outcome = rusqlite::Result<Result<Reservation, Refused>>;

// === impl State ===

impl State {
    fn name(self) -> &'static str {
        match self {
            State::Reserved => "reserved",
            State::Confirmed => "confirmed",
            State::Released => "released",
        }
    }

    fn parse(name: &str) -> State {
        match name {
            "confirmed" => State::Confirmed,
            "released" => State::Released,
            _ => State::Reserved,
        }
    }
}

// === functions ===

/// Takes stock under a key.
pub fn reserve(tx: &Transaction<'_>, ask: &Request) -> Outcome {
    if let Some(have) = find(tx, &ask.key)? {
        return Ok(match have.state {
            State::Released => Err(Refused::Released(have.key)),
            _ if have.product == ask.product && have.quantity == ask.quantity => Ok(have),
            _ => Err(Refused::KeyReused(have.key)),
        });
    }
    let Some(stock) = stock_of(tx, ask.product)? else {
        return Ok(Err(Refused::NoProduct(ask.product)));
    };
    if stock < ask.quantity {
        let (product, asked) = (ask.product, ask.quantity);
        return Ok(Err(Refused::OutOfStock { product, stock, asked }));
    }
    add_stock(tx, ask.product, -ask.quantity)?;
    insert(tx, ask, State::Reserved)?;
    Ok(Ok(Reservation {
        key: ask.key.clone(),
        product: ask.product,
        quantity: ask.quantity,
        state: State::Reserved,
    }))
}

/// Gives the stock of a key back; an unknown key is remembered as released.
pub fn release(tx: &Transaction<'_>, key: &str) -> Outcome {
    let Some(have) = find(tx, key)? else {
        let never = Request { key: key.to_owned(), product: 0, quantity: 0, holder: String::new() };
        insert(tx, &never, State::Released)?;
        let (key, state) = (never.key, State::Released);
        return Ok(Ok(Reservation { key, product: 0, quantity: 0, state }));
    };
    Ok(match have.state {
        State::Released => Ok(have),
        State::Confirmed => Err(Refused::Confirmed(have.key)),
        State::Reserved => {
            add_stock(tx, have.product, have.quantity)?;
            set_state(tx, key, State::Released)?;
            Ok(Reservation { state: State::Released, ..have })
        }
    })
}

/// Makes a reservation final.
pub fn confirm(tx: &Transaction<'_>, key: &str) -> Outcome {
    let Some(have) = find(tx, key)? else {
        return Ok(Err(Refused::Unknown(key.to_owned())));
    };
    Ok(match have.state {
        State::Released => Err(Refused::Released(have.key)),
        State::Confirmed => Ok(have),
        State::Reserved => {
            set_state(tx, key, State::Confirmed)?;
            Ok(Reservation { state: State::Confirmed, ..have })
        }
    })
}

/// Keys of one holder that are still only reserved, oldest first.
pub fn unconfirmed(
    conn: &rusqlite::Connection,
    holder: &str,
    older_than_ms: i64,
    limit: i64,
) -> rusqlite::Result<Vec<String>> {
    let before = now_ms().saturating_sub(older_than_ms.max(0));
    let mut query = conn.prepare_cached(
        "SELECT key FROM reservations
         WHERE state = 'reserved' AND holder = ?1 AND created_ms <= ?2
         ORDER BY created_ms LIMIT ?3",
    )?;
    query.query_map(params![holder, before, limit], |row| row.get(0))?.collect()
}

/// Releases reservations that name no holder and are older than `ttl_ms`, and forgets released
/// keys after a day. Returns how many were released.
pub fn release_unheld(tx: &Transaction<'_>, ttl_ms: i64) -> rusqlite::Result<usize> {
    let keys = unconfirmed(tx, "", ttl_ms, 100)?;
    for key in &keys {
        // The keys were read in this transaction, so each is still reserved.
        let _ = release(tx, key)?;
    }
    tx.execute(
        "DELETE FROM reservations WHERE state = 'released' AND updated_ms < ?1",
        [now_ms().saturating_sub(RELEASED_KEEP_MS)],
    )?;
    Ok(keys.len())
}

/// All products.
pub fn list(conn: &rusqlite::Connection) -> rusqlite::Result<Vec<Product>> {
    let mut query = conn.prepare_cached(
        "SELECT id, name, price_cents, stock FROM products ORDER BY id LIMIT 1000",
    )?;
    query.query_map([], product)?.collect()
}

/// One product.
pub fn get(conn: &rusqlite::Connection, id: i64) -> rusqlite::Result<Option<Product>> {
    let mut query =
        conn.prepare_cached("SELECT id, name, price_cents, stock FROM products WHERE id = ?1")?;
    query.query_row([id], product).optional()
}

// === helpers ===

fn product(row: &Row<'_>) -> rusqlite::Result<Product> {
    Ok(Product { id: row.get(0)?, name: row.get(1)?, price_cents: row.get(2)?, stock: row.get(3)? })
}

fn find(tx: &Transaction<'_>, key: &str) -> rusqlite::Result<Option<Reservation>> {
    tx.prepare_cached("SELECT key, product, quantity, state FROM reservations WHERE key = ?1")?
        .query_row([key], |row| {
            let state: String = row.get(3)?;
            Ok(Reservation {
                key: row.get(0)?,
                product: row.get(1)?,
                quantity: row.get(2)?,
                state: State::parse(&state),
            })
        })
        .optional()
}

fn insert(tx: &Transaction<'_>, ask: &Request, state: State) -> rusqlite::Result<()> {
    tx.prepare_cached(
        "INSERT INTO reservations (key, product, quantity, holder, state, created_ms, updated_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6)",
    )?
    .execute(params![
        ask.key,
        ask.product,
        ask.quantity,
        ask.holder,
        state.name(),
        now_ms()
    ])?;
    Ok(())
}

fn set_state(tx: &Transaction<'_>, key: &str, state: State) -> rusqlite::Result<()> {
    tx.prepare_cached("UPDATE reservations SET state = ?2, updated_ms = ?3 WHERE key = ?1")?
        .execute(params![key, state.name(), now_ms()])?;
    Ok(())
}

fn stock_of(tx: &Transaction<'_>, id: i64) -> rusqlite::Result<Option<i64>> {
    tx.prepare_cached("SELECT stock FROM products WHERE id = ?1")?
        .query_row([id], |row| row.get(0))
        .optional()
}

fn add_stock(tx: &Transaction<'_>, id: i64, amount: i64) -> rusqlite::Result<()> {
    tx.prepare_cached("UPDATE products SET stock = stock + ?2 WHERE id = ?1")?
        .execute([id, amount])?;
    Ok(())
}

fn migrate(tx: &Transaction<'_>, first_stock: i64) -> rusqlite::Result<()> {
    tx.execute_batch(
        "CREATE TABLE IF NOT EXISTS products (
             id INTEGER PRIMARY KEY, name TEXT NOT NULL, price_cents INTEGER NOT NULL,
             stock INTEGER NOT NULL CHECK (stock >= 0), first_stock INTEGER NOT NULL
         ) STRICT;
         CREATE TABLE IF NOT EXISTS reservations (
             key TEXT PRIMARY KEY, product INTEGER NOT NULL, quantity INTEGER NOT NULL,
             holder TEXT NOT NULL,
             state TEXT NOT NULL CHECK (state IN ('reserved', 'confirmed', 'released')),
             created_ms INTEGER NOT NULL, updated_ms INTEGER NOT NULL
         ) STRICT, WITHOUT ROWID;
         CREATE INDEX IF NOT EXISTS reservations_open
             ON reservations (holder, created_ms) WHERE state = 'reserved';
         CREATE INDEX IF NOT EXISTS reservations_released
             ON reservations (updated_ms) WHERE state = 'released';",
    )?;
    let goods = [("Bolt", 25), ("Nut", 15), ("Loom", 249_900), ("Shuttle", 4_550), ("Yarn", 899)];
    let mut insert = tx.prepare("INSERT OR IGNORE INTO products VALUES (?1, ?2, ?3, ?4, ?4)")?;
    for (id, (name, price)) in (1_i64..).zip(goods) {
        insert.execute(params![id, name, price, first_stock])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
