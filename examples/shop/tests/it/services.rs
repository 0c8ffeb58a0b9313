// SPDX-License-Identifier: Apache-2.0
//! What each service promises its callers.

use std::process::ExitStatus;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::routing::get;
use http::{HeaderMap, Method, StatusCode};
use rusqlite::Connection;
use rustix::process::Signal;
use serde_json::json;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::harness::{LOAD, ORDER, PRODUCT, Service, Shop, call, order, post, wait_until};

#[tokio::test]
async fn an_order_goes_through_all_three_services() {
    let shop = Shop::open(100).await;
    let (a, b) = tokio::join!(shop.order(&[("VERSION", "v7")]), shop.order(&[]));
    let body = json!({ "user": 2, "product": 3, "quantity": 4 });
    let reply = post(&a, &body, &[]).await.unwrap();
    assert_eq!(reply.status, StatusCode::CREATED, "{}", reply.body);
    assert_eq!(reply.headers["x-shop-version"], "v7");
    assert_eq!(reply.body["reserved_by"], "v1");
    let id = reply.body["id"].as_i64().unwrap();
    assert_eq!(reply.headers["location"], format!("/orders/{id}"));
    // The other replica shares the database.
    let seen = b.get(&format!("/orders/{id}")).await;
    assert_eq!((seen.status, &seen.body["state"]), (StatusCode::OK, &json!("confirmed")));
    assert_eq!(b.get("/orders").await.body[0]["id"], id);
    assert_eq!(shop.stock(3).await, 96);
    assert_eq!(shop.user.get("/users/2").await.body["name"], "Alan Turing");
    assert_eq!(shop.user.get("/users").await.body.as_array().unwrap().len(), 2);
    let books = shop.books(&[id]).await;
    assert_eq!(books["held"], true, "{books}");
}

#[tokio::test]
async fn what_cannot_be_ordered_says_why_and_takes_nothing() {
    let shop = Shop::open(5).await;
    let service = shop.order(&[]).await;
    let ask = async |user: i64, product: i64, quantity: i64| {
        let body = json!({ "user": user, "product": product, "quantity": quantity });
        let reply = post(&service, &body, &[]).await.unwrap();
        (reply.status.as_u16(), reply.body["field"].clone(), reply.body["error"].to_string())
    };
    let (status, field, error) = ask(9, 1, 1).await;
    assert_eq!((status, field), (422, json!("user")));
    assert!(error.contains("user 9 does not exist"), "{error}");
    let (status, field, error) = ask(1, 9, 1).await;
    assert_eq!((status, field), (422, json!("product")));
    assert!(error.contains("product 9 does not exist"), "{error}");
    let (status, field, error) = ask(1, 2, 6).await;
    assert_eq!((status, field), (409, json!("quantity")));
    assert!(error.contains("product 2 has 5 left, 6 were asked for"), "{error}");
    assert_eq!(ask(1, 2, 0).await.0, 400);
    assert_eq!(service.get("/order/1").await.status, StatusCode::NOT_FOUND);
    assert_eq!(service.get("/orders/1x").await.status, StatusCode::NOT_FOUND);
    let put = call(&service.http, Method::PUT, "/orders", &[], "").await.unwrap();
    assert_eq!(put.status, StatusCode::METHOD_NOT_ALLOWED);
    let huge = "x".repeat(70_000);
    let long = call(&service.http, Method::POST, "/orders", &[], &huge).await.unwrap();
    assert_eq!(long.status, StatusCode::PAYLOAD_TOO_LARGE);
    let books = shop.books(&[]).await;
    assert_eq!((&books["held"], &books["stock_left"]), (&json!(true), &json!(25)), "{books}");
}

#[tokio::test]
async fn a_repeated_idempotency_key_is_one_order() {
    let shop = Shop::open(100).await;
    let (a, b) = tokio::join!(shop.order(&[]), shop.order(&[]));
    let body = json!({ "user": 1, "product": 1, "quantity": 1 });
    let key = [("idempotency-key", "k1")];
    let (one, two) = tokio::join!(post(&a, &body, &key), post(&b, &body, &key));
    // At once on two replicas: one places it, the other may be told to ask again.
    for reply in [one.unwrap(), two.unwrap()] {
        assert!([201, 409].contains(&reply.status.as_u16()), "{}", reply.body);
    }
    let again = post(&b, &body, &key).await.unwrap();
    assert_eq!(again.status, StatusCode::CREATED, "{}", again.body);
    let other = post(&a, &json!({ "user": 1, "product": 1, "quantity": 2 }), &key).await.unwrap();
    assert_eq!(other.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", other.body);
    let books = shop.books(&[again.body["id"].as_i64().unwrap()]).await;
    assert_eq!((&books["held"], &books["orders_confirmed"]), (&json!(true), &json!(1)), "{books}");
}

#[tokio::test]
async fn an_unreachable_user_service_is_named_and_nothing_is_begun() {
    let mut shop = Shop::open(100).await;
    let service = shop.order(&[]).await;
    shop.user.child.kill().await.unwrap();
    let refused = order(&service, 1, 1).await.expect_err("no order");
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    let error = refused.body["error"].to_string();
    assert!(error.contains("user service:") && error.contains("refused"), "{error}");
    assert_eq!(service.get("/orders").await.body, json!([]));
}

#[tokio::test]
async fn grpc_health_and_reflection_answer() {
    let shop = Shop::open(1).await;
    let url = format!("http://{}", shop.product.grpc);
    let channel = tonic::transport::Endpoint::from_shared(url).unwrap().connect().await.unwrap();
    let mut health = HealthClient::new(channel.clone());
    for service in ["", "shop.product.v1.Products"] {
        let ask = HealthCheckRequest { service: service.to_owned() };
        let reply = health.check(ask).await.unwrap().into_inner();
        assert_eq!(reply.status(), tonic_health::pb::health_check_response::ServingStatus::Serving);
    }
    let mut reflection = ServerReflectionClient::new(channel);
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut replies =
        reflection.server_reflection_info(tokio_stream::iter([ask])).await.unwrap().into_inner();
    let reply = replies.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = reply else { panic!("{reply:?}") };
    let names: Vec<_> = list.service.iter().map(|s| s.name.as_str()).collect();
    assert!(names.contains(&"shop.product.v1.Products"), "{names:?}");
}

#[tokio::test]
async fn trace_headers_reach_the_user_service() {
    let seen: Arc<Mutex<HeaderMap>> = Arc::default();
    let saw = seen.clone();
    let app = Router::new().route(
        "/users/{id}",
        get(move |headers: HeaderMap| async move {
            *saw.lock().unwrap() = headers;
            r#"{"id":1,"name":"Ada","email":"ada@example.com"}"#
        }),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let recorder = tokio::spawn(async move { axum::serve(listener, app).await });
    let shop = Shop::open(10).await;
    let service = shop.order(&[("USER_ADDR", &addr)]).await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let body = json!({ "user": 1, "product": 1, "quantity": 1 });
    let headers = [("traceparent", trace), ("x-request-id", "r-1")];
    let reply = post(&service, &body, &headers).await.unwrap();
    assert_eq!(reply.status, StatusCode::CREATED, "{}", reply.body);
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen["traceparent"], trace);
    assert_eq!(seen["x-request-id"], "r-1");
    assert_eq!(seen["host"], "user.shop.svc.cluster.local");
    recorder.abort();
}

#[tokio::test]
async fn replicas_that_start_at_once_seed_once() {
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("deep/product.db").display().to_string();
    let envs = [("DATABASE", database.as_str()), ("STOCK", "70")];
    let mut replicas = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let envs: Vec<(String, String)> =
            envs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        replicas.spawn(async move {
            let envs: Vec<(&str, &str)> =
                envs.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            Service::start(PRODUCT, &envs).await
        });
    }
    let replicas = replicas.join_all().await;
    for replica in &replicas {
        let products = replica.get("/products").await.body;
        let stock: Vec<_> = products.as_array().unwrap().iter().map(|p| &p["stock"]).collect();
        assert_eq!(stock, [&json!(70); 5]);
    }
}

#[tokio::test]
async fn sigterm_first_drains_then_ends_well() {
    let shop = Shop::open(100).await;
    let mut service = shop.order(&[("DRAIN_MS", "400")]).await;
    assert_eq!(service.get("/healthz").await.status, StatusCode::OK);
    service.signal(Signal::TERM);
    wait_until("the service says it stops", async || {
        service.get("/healthz").await.status == StatusCode::SERVICE_UNAVAILABLE
    })
    .await;
    // Still serving, and telling its callers to go elsewhere.
    let reply = service.get("/orders").await;
    assert_eq!(
        (reply.status, &reply.headers["connection"]),
        (StatusCode::OK, &"close".parse().unwrap())
    );
    let id = order(&service, 1, 1).await.unwrap_or_else(|r| panic!("{}", r.body));
    let ended: ExitStatus = service.ended().await;
    assert!(ended.success(), "{ended}");
    // The last order was settled before the process ended: nobody is left to do it.
    let books = shop.books(&[id]).await;
    assert_eq!(books["held"], true, "{books}");
}

#[tokio::test]
async fn a_newer_database_is_refused_with_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("order.db");
    let conn = Connection::open(&database).unwrap();
    conn.pragma_update(None, "user_version", 99).unwrap();
    let out = tokio::process::Command::new(ORDER)
        .args(["--user-addr", "127.0.0.1:1", "--product-addr", "127.0.0.1:1", "--database"])
        .arg(&database)
        .output()
        .await
        .unwrap();
    assert_eq!(out.status.code(), Some(1));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(said.contains("made by a newer shop (schema 99"), "{said}");
}

#[tokio::test]
async fn the_load_client_counts_and_checks() {
    let shop = Shop::open(1_000_000).await;
    let service = shop.order(&[]).await;
    let (ids, report) = (shop.path("ids"), shop.path("report.json"));
    let run = tokio::process::Command::new(LOAD)
        .args(["--url", &format!("http://{}", service.http), "--mix", "order=3,orders=1"])
        .args(["--rps", "100", "--seconds", "2", "--ids"])
        .arg(&ids)
        .arg("--report")
        .arg(&report)
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{said}");
    let report: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&report).unwrap()).unwrap();
    assert_eq!((&report["sent"], &report["failed"]), (&json!(200), &json!(0)));
    let check = async |ids: &std::path::Path| {
        tokio::process::Command::new(LOAD)
            .args(["--check", "--order-db"])
            .arg(shop.path("order.db"))
            .arg("--product-db")
            .arg(shop.path("product.db"))
            .arg("--ids")
            .arg(ids)
            .output()
            .await
            .unwrap()
    };
    let good = check(&ids).await;
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stdout));
    // The load can fail: nobody there.
    let dead = tokio::process::Command::new(LOAD)
        .args(["--url", "http://127.0.0.1:1", "--rps", "20", "--seconds", "1"])
        .output()
        .await
        .unwrap();
    assert_eq!(dead.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&dead.stdout).contains("Connection refused"));
    // The check can fail: an answer that no order stands behind.
    let mut text = std::fs::read_to_string(&ids).unwrap();
    text.push_str("999999\n");
    std::fs::write(&ids, text).unwrap();
    let bad = check(&ids).await;
    assert_eq!(bad.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&bad.stdout).contains("order 999999 was answered"));
}
