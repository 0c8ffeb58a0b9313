// SPDX-License-Identifier: Apache-2.0
//! Whatever dies in the middle, no order is lost and no stock appears or disappears.

use std::time::Duration;

use http::StatusCode;
use rustix::process::Signal;
use serde_json::json;
use shop::pb;
use shop::pb::products_client::ProductsClient;

use crate::harness::{PRODUCT, Service, Shop, exists, order, post, wait_until};

#[tokio::test]
async fn killed_between_reserve_and_write_loses_no_stock() {
    let shop = Shop::open(100).await;
    let marker = shop.path("crashed");
    let crash = [("SHOP_CRASH_AFTER_RESERVE_ONCE", marker.to_str().unwrap())];
    let mut victim = shop.order(&crash).await;
    let lost = post(&victim, &json!({ "user": 1, "product": 2, "quantity": 7 }), &[]).await;
    assert!(lost.is_err(), "the process died before it could answer");
    victim.ended().await;
    assert!(exists(&marker));
    assert_eq!(shop.stock(2).await, 93, "stock is held by an order of a dead process");
    // The next process, with the same switch: the marker says it has happened.
    let service = shop.order(&crash).await;
    let id = order(&service, 2, 1).await.unwrap_or_else(|r| panic!("{}", r.body));
    let books = shop.books(&[id]).await;
    assert_eq!(books["held"], true, "{books}");
    assert_eq!((&books["orders_cancelled"], &books["orders_confirmed"]), (&json!(1), &json!(1)));
    assert_eq!(shop.stock(2).await, 99);
}

#[tokio::test]
async fn killed_with_an_idempotency_key_is_finished_and_can_be_asked_again() {
    let shop = Shop::open(100).await;
    let marker = shop.path("crashed");
    let mut victim =
        shop.order(&[("SHOP_CRASH_AFTER_RESERVE_ONCE", marker.to_str().unwrap())]).await;
    let body = json!({ "user": 1, "product": 2, "quantity": 7 });
    let key = [("idempotency-key", "again")];
    assert!(post(&victim, &body, &key).await.is_err());
    victim.ended().await;
    let service = shop.order(&[]).await;
    wait_until("the order is finished", async || {
        post(&service, &body, &key).await.unwrap().status == StatusCode::CREATED
    })
    .await;
    let id = post(&service, &body, &key).await.unwrap().body["id"].as_i64().unwrap();
    let books = shop.books(&[id]).await;
    assert_eq!((&books["held"], &books["orders_confirmed"]), (&json!(true), &json!(1)), "{books}");
    assert_eq!(shop.stock(2).await, 93);
}

#[tokio::test]
async fn a_failed_write_gives_the_stock_back_and_says_so() {
    let shop = Shop::open(100).await;
    let marker = shop.path("failed");
    // Recovery is far away: the saga itself has to compensate.
    let slow = [
        ("SHOP_FAIL_AFTER_RESERVE_ONCE", marker.to_str().unwrap()),
        ("RECOVER_AFTER_MS", "3600000"),
        ("RECLAIM_AFTER_MS", "3600000"),
    ];
    let service = shop.order(&slow).await;
    let refused = order(&service, 1, 5).await.expect_err("no order");
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    let books = shop.books(&[]).await;
    assert_eq!((&books["held"], &books["orders_cancelled"]), (&json!(true), &json!(1)), "{books}");
    assert_eq!(shop.stock(1).await, 100);
    order(&service, 1, 5).await.unwrap_or_else(|r| panic!("{}", r.body));
}

#[tokio::test]
async fn a_reservation_that_belongs_to_no_order_is_given_back() {
    let shop = Shop::open(100).await;
    let reserve = |key: &str| pb::ReserveRequest {
        key: key.into(),
        product: 4,
        quantity: 10,
        holder: "order".into(),
    };
    let mut products = shop.products().await;
    products.reserve(reserve("nobody")).await.unwrap();
    assert_eq!(shop.stock(4).await, 90);
    let _service = shop.order(&[]).await;
    wait_until("the stock is back", async || shop.stock(4).await == 100).await;
    // A copy of the request that was on its way all the time takes nothing any more.
    let late = products.reserve(reserve("nobody")).await.unwrap_err();
    assert_eq!(late.code(), tonic::Code::Aborted);
    assert_eq!(shop.stock(4).await, 100);
}

#[tokio::test]
async fn an_unreachable_product_service_leaves_nothing_behind() {
    let mut shop = Shop::open(100).await;
    let service = shop.order(&[("CALL_TIMEOUT_MS", "1000")]).await;
    order(&service, 1, 1).await.unwrap_or_else(|r| panic!("{}", r.body));
    shop.product.child.kill().await.unwrap();
    let refused = order(&service, 1, 1).await.expect_err("no order");
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    let error = refused.body["error"].to_string();
    assert!(error.contains("product service:"), "{error}");
    // The service comes back where it was, with its database.
    let (ip, port) = shop.product.grpc.rsplit_once(':').unwrap();
    let database = shop.path("product.db").display().to_string();
    let envs = [("DATABASE", database.as_str()), ("POD_IP", ip), ("GRPC_PORT", port)];
    shop.product = crate::harness::Service::start(crate::harness::PRODUCT, &envs).await;
    let id = service.get("/orders?limit=1000").await.body;
    let confirmed: Vec<i64> = id
        .as_array()
        .unwrap()
        .iter()
        .filter(|o| o["state"] == "confirmed")
        .map(|o| o["id"].as_i64().unwrap())
        .collect();
    let books = shop.books(&confirmed).await;
    assert_eq!((&books["held"], &books["orders_confirmed"]), (&json!(true), &json!(1)), "{books}");
}

#[tokio::test]
async fn a_process_that_stood_still_does_not_confirm_what_was_cancelled() {
    let shop = Shop::open(100).await;
    let marker = shop.path("stopped");
    let victim = shop.order(&[("SHOP_STOP_AFTER_RESERVE_ONCE", marker.to_str().unwrap())]).await;
    let (http, body) = (victim.http.clone(), r#"{"user":1,"product":2,"quantity":7}"#);
    let asked = tokio::spawn(async move {
        crate::harness::call(&http, http::Method::POST, "/orders", &[], body).await
    });
    wait_until("it stands still", async || exists(&marker)).await;
    let other = shop.order(&[]).await;
    wait_until("the other one cancels it", async || {
        other.get("/orders").await.body[0]["state"] == "cancelled"
    })
    .await;
    assert_eq!(shop.stock(2).await, 100);
    victim.signal(Signal::CONT);
    let answer = asked.await.unwrap().unwrap();
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.body);
    assert!(answer.body["error"].to_string().contains("was cancelled, order again"));
    let books = shop.books(&[]).await;
    assert_eq!((&books["held"], &books["orders_confirmed"]), (&json!(true), &json!(0)), "{books}");
}

#[tokio::test]
async fn replicas_reserve_one_key_once_and_never_more_than_there_is() {
    let shop = Shop::open(50).await;
    let database = shop.path("product.db").display().to_string();
    let second = Service::start(PRODUCT, &[("DATABASE", &database)]).await;
    let mut clients = [shop.products().await, {
        ProductsClient::connect(format!("http://{}", second.grpc)).await.unwrap()
    }];
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..80_usize {
        let mut client = clients[n % 2].clone();
        calls.spawn(async move {
            // Product 1: 80 orders for 50 pieces. Product 2: one order, asked 80 times.
            let many = pb::ReserveRequest {
                key: format!("many-{n}"),
                product: 1,
                quantity: 1,
                holder: "test".into(),
            };
            let one = pb::ReserveRequest { key: "one".into(), product: 2, ..many.clone() };
            client.reserve(one).await.expect("every copy gets the same answer");
            client.reserve(many).await.map(|_| ()).map_err(|status| status.code())
        });
    }
    let results = calls.join_all().await;
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 50);
    let refused = results.iter().filter(|r| **r == Err(tonic::Code::FailedPrecondition));
    assert_eq!(refused.count(), 30);
    assert_eq!((shop.stock(1).await, shop.stock(2).await), (0, 49));
    // Given back twice by two replicas at once, counted once.
    let [a, b] = &mut clients;
    let release = || pb::ReleaseRequest { key: "one".into() };
    let (x, y) = tokio::join!(a.release(release()), b.release(release()));
    assert!(x.is_ok() && y.is_ok());
    assert_eq!(shop.stock(2).await, 50);
}

/// Two order processes are killed again and again under load; the books hold all the same.
#[tokio::test]
async fn random_kills_under_load_keep_the_books() {
    let shop = Shop::open(100_000).await;
    let mut ids = Vec::new();
    for round in 0..6_u64 {
        let (a, b) = tokio::join!(shop.order(&[]), shop.order(&[]));
        let victim = if round % 2 == 0 { &a } else { &b };
        let killer = async {
            tokio::time::sleep(Duration::from_millis(40 + 13 * round)).await;
            victim.signal(Signal::KILL);
        };
        let load = async {
            let mut placed = Vec::new();
            for n in 0..40 {
                let at = if n % 2 == 0 { &a } else { &b };
                let body = json!({ "user": 1, "product": 1 + n % 5, "quantity": 1 + n % 3 });
                // An order at a dead process fails; that is the caller's to see.
                if let Ok(reply) = post(at, &body, &[]).await
                    && reply.status == StatusCode::CREATED
                {
                    placed.push(reply.body["id"].as_i64().unwrap());
                }
            }
            placed
        };
        let (placed, ()) = tokio::join!(load, killer);
        ids.extend(placed);
    }
    let _last = shop.order(&[]).await;
    assert!(ids.len() >= 120, "the surviving replica kept working: {}", ids.len());
    let books = shop.books(&ids).await;
    assert_eq!(books["held"], true, "{books}");
}
