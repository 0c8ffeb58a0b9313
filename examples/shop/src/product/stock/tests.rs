// SPDX-License-Identifier: Apache-2.0
//! Reservations on a database in memory.

use rusqlite::Connection;

use super::*;

fn shop(stock: i64) -> Connection {
    let mut conn = Connection::open_in_memory().unwrap();
    let tx = conn.transaction().unwrap();
    migrate(&tx, stock).unwrap();
    tx.commit().unwrap();
    conn
}

fn ask(key: &str, product: i64, quantity: i64) -> Request {
    Request { key: key.into(), product, quantity, holder: "order".into() }
}

fn left(tx: &Transaction<'_>, id: i64) -> i64 {
    stock_of(tx, id).unwrap().unwrap()
}

#[test]
fn a_repeated_reservation_takes_stock_once() {
    let mut conn = shop(10);
    let tx = conn.transaction().unwrap();
    let first = reserve(&tx, &ask("k", 2, 3)).unwrap().unwrap();
    assert_eq!(reserve(&tx, &ask("k", 2, 3)).unwrap(), Ok(first));
    assert_eq!(left(&tx, 2), 7);
    let other = reserve(&tx, &ask("k", 2, 4)).unwrap();
    assert_eq!(other, Err(Refused::KeyReused("k".into())));
    assert_eq!(left(&tx, 2), 7);
}

#[test]
fn refusals_take_nothing() {
    let mut conn = shop(10);
    let tx = conn.transaction().unwrap();
    assert_eq!(reserve(&tx, &ask("a", 6, 1)).unwrap(), Err(Refused::NoProduct(6)));
    let want = Refused::OutOfStock { product: 1, stock: 10, asked: 11 };
    assert_eq!(reserve(&tx, &ask("b", 1, 11)).unwrap(), Err(want));
    assert_eq!(left(&tx, 1), 10);
    // A refused key is not remembered, so the same order can succeed later.
    assert!(reserve(&tx, &ask("b", 1, 10)).unwrap().is_ok());
}

#[test]
fn release_gives_back_once_and_confirm_is_final() {
    let mut conn = shop(10);
    let tx = conn.transaction().unwrap();
    reserve(&tx, &ask("a", 1, 4)).unwrap().unwrap();
    reserve(&tx, &ask("b", 1, 5)).unwrap().unwrap();
    for _ in 0..2 {
        assert_eq!(release(&tx, "a").unwrap().unwrap().state, State::Released);
        assert_eq!(confirm(&tx, "b").unwrap().unwrap().state, State::Confirmed);
        assert_eq!(left(&tx, 1), 5);
    }
    assert_eq!(release(&tx, "b").unwrap(), Err(Refused::Confirmed("b".into())));
    assert_eq!(confirm(&tx, "a").unwrap(), Err(Refused::Released("a".into())));
    assert_eq!(confirm(&tx, "c").unwrap(), Err(Refused::Unknown("c".into())));
    assert_eq!(left(&tx, 1), 5);
}

#[test]
fn a_reservation_that_arrives_after_its_release_is_refused() {
    let mut conn = shop(10);
    let tx = conn.transaction().unwrap();
    release(&tx, "late").unwrap().unwrap();
    let late = reserve(&tx, &ask("late", 1, 1)).unwrap();
    assert_eq!(late, Err(Refused::Released("late".into())));
    assert_eq!(left(&tx, 1), 10);
}

#[test]
fn only_reservations_without_a_holder_run_out() {
    let mut conn = shop(10);
    let tx = conn.transaction().unwrap();
    reserve(&tx, &ask("held", 1, 1)).unwrap().unwrap();
    reserve(&tx, &Request { holder: String::new(), ..ask("loose", 1, 2) }).unwrap().unwrap();
    assert_eq!(release_unheld(&tx, 60_000).unwrap(), 0);
    assert_eq!(release_unheld(&tx, 0).unwrap(), 1);
    assert_eq!(left(&tx, 1), 9);
    assert_eq!(unconfirmed(&tx, "order", 0, 10).unwrap(), ["held"]);
    assert!(unconfirmed(&tx, "order", 60_000, 10).unwrap().is_empty());
}

#[test]
fn seeding_again_changes_nothing() {
    let mut conn = shop(10);
    let tx = conn.transaction().unwrap();
    reserve(&tx, &ask("a", 1, 4)).unwrap().unwrap();
    migrate(&tx, 99).unwrap();
    assert_eq!(left(&tx, 1), 6);
    assert_eq!(list(&tx).unwrap().len(), 5);
}
