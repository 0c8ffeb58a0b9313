// SPDX-License-Identifier: Apache-2.0
//! After a run: every 201 is in the order database exactly once, and no stock appeared or
//! disappeared. Opens both files read-only, while the services may still run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};

/// Problems that are listed one by one.
const PROBLEMS_KEPT: usize = 50;

/// Where to look.
#[derive(Clone, Debug, clap::Args)]
pub struct CheckOptions {
    /// Database of the order service.
    #[arg(long, value_name = "FILE", default_value = "examples/shop/.data/order.db")]
    pub order_db: PathBuf,

    /// Database of the product service.
    #[arg(long, value_name = "FILE", default_value = "examples/shop/.data/product.db")]
    pub product_db: PathBuf,

    /// How long unfinished orders may take to be recovered.
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    pub settle: u64,
}

#[derive(Debug, PartialEq, Eq)]
struct OrderRow {
    id: i64,
    product: i64,
    quantity: i64,
    state: String,
    settled: bool,
}

#[derive(Debug)]
struct Reserved {
    product: i64,
    quantity: i64,
    state: String,
}

#[derive(Debug)]
struct Stock {
    id: i64,
    left: i64,
    first: i64,
}

/// One look at both databases.
#[derive(Debug)]
struct Books {
    orders: BTreeMap<String, OrderRow>,
    reserved: BTreeMap<String, Reserved>,
    stock: Vec<Stock>,
}

/// Waits until nothing is unfinished, then compares. The answer has `held` and `problems`.
pub fn check(options: &CheckOptions, ids: &[i64]) -> anyhow::Result<Value> {
    let deadline = Instant::now() + Duration::from_secs(options.settle);
    loop {
        let books = Books::read(options)?;
        let unfinished = books.unfinished();
        if unfinished == 0 || Instant::now() >= deadline {
            return Ok(verdict(&books, ids, unfinished));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Reads ids as the load client writes them.
pub fn read_ids(path: &Path) -> anyhow::Result<Vec<i64>> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| anyhow::anyhow!("cannot read {}: {e}", path.display()))?;
    text.lines()
        .map(|line| {
            line.trim().parse().map_err(|_| {
                anyhow::anyhow!("{}: '{line}' is not the number of an order", path.display())
            })
        })
        .collect()
}

// === impl Books ===

impl Books {
    fn read(options: &CheckOptions) -> anyhow::Result<Books> {
        // Orders first: an order that is final there has its final reservation in the product
        // database already or will get it, so waiting is enough to make the two agree.
        let orders = open(&options.order_db)?;
        let orders = orders
            .prepare("SELECT key, id, product, quantity, state, settled FROM orders")?
            .query_map([], |row| {
                let order = OrderRow {
                    id: row.get(1)?,
                    product: row.get(2)?,
                    quantity: row.get(3)?,
                    state: row.get(4)?,
                    settled: row.get(5)?,
                };
                Ok((row.get(0)?, order))
            })?
            .collect::<Result<_, _>>()?;
        let mut products = open(&options.product_db)?;
        // One transaction, so that stock and reservations are of one moment.
        let tx = products.transaction()?;
        let reserved = tx
            .prepare("SELECT key, product, quantity, state FROM reservations")?
            .query_map([], |row| {
                let held =
                    Reserved { product: row.get(1)?, quantity: row.get(2)?, state: row.get(3)? };
                Ok((row.get(0)?, held))
            })?
            .collect::<Result<_, _>>()?;
        let stock = tx
            .prepare("SELECT id, stock, first_stock FROM products ORDER BY id")?
            .query_map([], |row| {
                Ok(Stock { id: row.get(0)?, left: row.get(1)?, first: row.get(2)? })
            })?
            .collect::<Result<_, _>>()?;
        drop(tx);
        Ok(Books { orders, reserved, stock })
    }

    fn unfinished(&self) -> usize {
        let orders = self.orders.values().filter(|o| !o.settled).count();
        orders + self.reserved.values().filter(|r| r.state == "reserved").count()
    }

    fn confirmed(&self) -> impl Iterator<Item = (&String, &OrderRow)> {
        self.orders.iter().filter(|(_, order)| order.state == "confirmed")
    }
}

// === helpers ===

fn open(path: &Path) -> anyhow::Result<Connection> {
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .map_err(|e| anyhow::anyhow!("cannot open {}: {e}", path.display()))?;
    conn.busy_timeout(Duration::from_secs(5))?;
    Ok(conn)
}

fn verdict(books: &Books, ids: &[i64], unfinished: usize) -> Value {
    let mut problems = Vec::new();
    if unfinished > 0 {
        problems.push(format!("{unfinished} orders or reservations are still unfinished"));
    }
    answers(books, ids, &mut problems);
    reservations(books, &mut problems);
    stock(books, &mut problems);
    let found = problems.len();
    problems.truncate(PROBLEMS_KEPT);
    let confirmed = books.confirmed().count();
    json!({
        "held": found == 0,
        "problems_found": found,
        "problems": problems,
        "answers": ids.len(),
        "orders_confirmed": confirmed,
        // Confirmed, but the answer was lost on the way: allowed, and worth knowing.
        "orders_without_answer": confirmed.saturating_sub(ids.len()),
        "orders_cancelled": books.orders.values().filter(|o| o.state == "cancelled").count(),
        "pieces_ordered": books.confirmed().map(|(_, o)| o.quantity).sum::<i64>(),
        "stock_left": books.stock.iter().map(|s| s.left).sum::<i64>(),
        "stock_first": books.stock.iter().map(|s| s.first).sum::<i64>(),
    })
}

/// Every 201 names one confirmed order, and no two name the same.
fn answers(books: &Books, ids: &[i64], problems: &mut Vec<String>) {
    let mut rows: BTreeMap<i64, usize> = BTreeMap::new();
    for (_, order) in books.confirmed() {
        *rows.entry(order.id).or_default() += 1;
    }
    let mut answered: BTreeMap<i64, usize> = BTreeMap::new();
    for id in ids {
        *answered.entry(*id).or_default() += 1;
    }
    for (id, times) in answered {
        if times != 1 {
            problems.push(format!("order {id} was answered {times} times"));
        }
        match rows.get(&id).copied().unwrap_or(0) {
            1 => {}
            0 => problems.push(format!("order {id} was answered with 201 and is not confirmed")),
            more => problems.push(format!("order {id} is in the database {more} times")),
        }
    }
}

/// Confirmed orders and confirmed reservations are the same ones.
fn reservations(books: &Books, problems: &mut Vec<String>) {
    for (key, order) in books.confirmed() {
        let id = order.id;
        match books.reserved.get(key) {
            Some(r) if r.state == "released" => {
                problems.push(format!("order {id} is confirmed and its stock was given back"));
            }
            Some(r) if (r.product, r.quantity) != (order.product, order.quantity) => {
                problems.push(format!("order {id} and its reservation differ"));
            }
            Some(_) => {}
            None => problems.push(format!("order {id} is confirmed and holds no stock")),
        }
    }
    for (key, held) in books.reserved.iter().filter(|(_, r)| r.state == "confirmed") {
        if books.orders.get(key).is_none_or(|o| o.state != "confirmed") {
            let (quantity, product) = (held.quantity, held.product);
            problems.push(format!("{quantity} of product {product} are held by no order ({key})"));
        }
    }
}

/// Stock left and stock ordered are the stock at the start.
fn stock(books: &Books, problems: &mut Vec<String>) {
    for Stock { id, left, first } in &books.stock {
        let ordered: i64 =
            books.confirmed().filter(|(_, o)| o.product == *id).map(|(_, o)| o.quantity).sum();
        if left + ordered != *first {
            problems.push(format!(
                "product {id}: {left} left and {ordered} ordered are not the first {first}"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(id: i64, state: &str) -> OrderRow {
        OrderRow { id, product: 1, quantity: 2, state: state.into(), settled: true }
    }

    fn held(state: &str) -> Reserved {
        Reserved { product: 1, quantity: 2, state: state.into() }
    }

    fn books() -> Books {
        Books {
            orders: [("a".into(), order(1, "confirmed")), ("b".into(), order(2, "cancelled"))]
                .into(),
            reserved: [("a".into(), held("confirmed")), ("b".into(), held("released"))].into(),
            stock: vec![Stock { id: 1, left: 8, first: 10 }],
        }
    }

    fn problem(books: &Books, ids: &[i64]) -> String {
        let verdict = verdict(books, ids, books.unfinished());
        assert_eq!(verdict["held"], false, "{verdict}");
        verdict["problems"].to_string()
    }

    #[test]
    fn good_books_hold() {
        let verdict = verdict(&books(), &[1], 0);
        assert_eq!(verdict["held"], true, "{verdict}");
        assert_eq!(verdict["orders_without_answer"], 0);
    }

    #[test]
    fn each_kind_of_loss_is_found() {
        assert!(problem(&books(), &[1, 1]).contains("answered 2 times"));
        assert!(problem(&books(), &[2]).contains("order 2 was answered with 201"));
        assert!(problem(&books(), &[9]).contains("order 9 was answered with 201"));
        let mut lost = books();
        lost.stock[0].left = 7;
        assert!(problem(&lost, &[1]).contains("7 left and 2 ordered are not the first 10"));
        let mut given_back = books();
        given_back.reserved.insert("a".into(), held("released"));
        assert!(problem(&given_back, &[1]).contains("was given back"));
        let mut nobody = books();
        nobody.reserved.insert("c".into(), held("confirmed"));
        assert!(problem(&nobody, &[1]).contains("held by no order (c)"));
        let mut open = books();
        open.reserved.insert("d".into(), held("reserved"));
        assert!(problem(&open, &[1]).contains("1 orders or reservations are still unfinished"));
    }
}
