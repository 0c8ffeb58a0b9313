// SPDX-License-Identifier: Apache-2.0
//! What a running proxy explains of itself: `/explain` of its admin door knows what it knows of
//! its instances, which a table alone does not say.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use weft_model::*;

use super::bed::*;

async fn explained(bed: &Bed, query: &str) -> Got {
    send(bed.proxy.addresses().admin, get(&format!("/explain?{query}"), "127.0.0.1")).await
}

async fn said(bed: &Bed, query: &str) -> Value {
    let got = explained(bed, query).await;
    assert_eq!(got.status, 200, "{}", got.body);
    serde_json::from_str(&got.body).unwrap()
}

fn instance<'v>(said: &'v Value, name: &str) -> &'v Value {
    let all = said["candidates"].as_array().unwrap();
    all.iter().find(|c| c["instance"] == name).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ejected_instance_is_explained_with_its_time_and_reason() {
    let good = Server::named("good").await;
    let bad = Server::http(|_, _| async { text(500, "bad") }).await;
    let all = vec![endpoint("good", good.address), endpoint("bad", bad.address)];
    let outlier =
        Outlier { consecutive_failures: 3, base_ejection_ms: 60_000, ..Outlier::default() };
    let policy = BackendPolicy { outlier, ..BackendPolicy::default() };
    let bed = Bed::sidecar(service("user", Protocol::Http1, policy, all)).await;
    let before = said(&bed, "url=http://user/").await;
    assert_eq!(instance(&before, "bad")["why"], "takes requests");
    assert_eq!(before["live"], serde_json::json!({"asked": true, "held": true}));
    wait_until("the ejection", || async {
        bed.get("http://user/").await;
        let said = said(&bed, "url=http://user/").await;
        instance(&said, "bad")["why"] == "is ejected after failures"
    })
    .await;
    let after = said(&bed, "url=http%3A%2F%2Fuser%2F&header=x-a:1&method=GET").await;
    let bad = instance(&after, "bad");
    let ejected = &bad["live"]["ejected"];
    assert!((1..=60_000).contains(&ejected["ms"].as_u64().unwrap()), "{bad}");
    assert_eq!((&ejected["times"], &bad["percent"]), (&1.into(), &0.0.into()), "{bad}");
    assert!(ejected["why"].as_str().unwrap().ends_with("failures in a row"), "{bad}");
    assert!(bad["state"].as_str().unwrap().contains("; ejected for "), "{bad}");
    assert_eq!(instance(&after, "good")["percent"], 100.0);
    assert_eq!(after["proxy"], "sidecar~shop~client-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn checks_load_and_full_breakers_are_explained() {
    let ill = std::sync::Arc::new(AtomicBool::new(false));
    let mood = ill.clone();
    let held = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let gate = held.clone();
    let server = Server::http(move |_, request| {
        let (ill, gate) = (mood.load(Ordering::Relaxed), gate.clone());
        async move {
            match (request.uri().path(), ill) {
                ("/health", true) => text(503, "ill"),
                ("/health", false) => text(200, ""),
                _ => {
                    let _permit = gate.acquire().await;
                    text(200, "done")
                }
            }
        }
    })
    .await;
    let check = HealthCheck {
        kind: CheckKind::Http(HttpCheck { path: "/health".into(), ..HttpCheck::default() }),
        interval_ms: 20,
        timeout_ms: 60_000,
        ..HealthCheck::default()
    };
    let protection = Protection { health_check: Some(check), ..Protection::default() };
    let policy = BackendPolicy {
        limits: Limits { requests_max: Some(1), ..Limits::default() },
        protection: Some(Box::new(protection)),
        ..BackendPolicy::default()
    };
    let only = vec![endpoint("only", server.address)];
    let bed = Bed::sidecar(service("user", Protocol::Http1, policy, only)).await;
    let holds = |what: &'static str, test: fn(&Value) -> bool| {
        let bed = &bed;
        wait_until(what, move || async move { test(&said(bed, "url=http://user/").await) })
    };
    holds("a check that passed", |s| instance(s, "only")["live"]["check"]["passed"] == true).await;
    let waiting = bed.get("http://user/slow");
    let seen = async {
        holds("one in flight", |s| instance(s, "only")["live"]["in_flight"] == 1).await;
        let full = said(&bed, "url=http://user/").await;
        assert_eq!(
            (&full["answer"]["status"], &full["answer"]["flag"]),
            (&503.into(), &"UO".into())
        );
        let refused = bed.get("http://user/").await;
        assert_eq!((refused.status, refused.header("x-weft-flags")), (503, "UO"));
        let limit = full["steps"].as_array().unwrap();
        let limit = limit.iter().find(|s| s["what"] == "requests in flight").unwrap();
        assert_eq!(limit["value"], "at most 1; 1 now: full");
        held.add_permits(1);
    };
    let (done, ()) = tokio::join!(waiting, seen);
    assert_eq!(done.status, 200);
    ill.store(true, Ordering::Relaxed);
    holds("a check that failed", |s| {
        let only = instance(s, "only");
        only["live"]["check"]["passed"] == false
            && only["live"]["check"]["why"].as_str().is_some_and(|why| why.contains("503"))
            && only["why"] == "fails this proxy's health check"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_is_none_is_refused_with_a_sentence() {
    let bed = Bed::sidecar(http_service("user", &[])).await;
    for (query, want) in [
        ("", "name the request: /explain?url=http://HOST/PATH"),
        ("method=GET", "name the request: ?url=http://HOST/PATH"),
        ("url=nonsense", "is no http or https URL"),
        ("url=http://user/&x=1", "\"x\" is not read; url, method, header, listener are"),
    ] {
        let got = explained(&bed, query).await;
        assert!(got.status == 400 && got.body.contains(want), "{query}: {}", got.body);
    }
    let admin = bed.proxy.addresses().admin;
    let mut put = get("/explain?url=http://user/", "127.0.0.1");
    *put.method_mut() = http::Method::POST;
    let put = send(admin, put).await;
    assert_eq!((put.status, put.header("allow")), (405, "GET"));
    let none = said(&bed, "url=http://user/").await;
    assert_eq!(none["answer"]["flag"], "UH", "{none}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_backend_of_a_rule_edits_is_named_with_its_place() {
    let user = Server::named("user").await;
    let mut all = http_service("user", &[user.address]);
    let edit = HeaderEdit { set: vec![("x-who".into(), "second".into())], ..HeaderEdit::default() };
    let mut second = to("user", "", 3);
    second.filters.push(Filter::RequestHeaders(edit));
    all.push(gateway(None));
    let forward = Action::Forward(vec![to("user", "", 1), second]);
    all.push(gateway_route("r", &[], vec![rule("/", forward)]));
    let bed = Bed::gateway(all).await;
    let said = said(&bed, "url=http://a.example/&listener=shop/web/8000").await;
    let steps = said["steps"].as_array().unwrap();
    let edited: Vec<_> = steps.iter().filter(|s| s["what"] == value::REQUEST_HEADERS).collect();
    let [edited] = edited.as_slice() else { panic!("{said}") };
    assert_eq!(edited["value"], "x-who: second");
    assert_eq!(edited["of"], said["shares"][1]["backend"]);
    let field = edited["field"].as_str().unwrap();
    assert!(field.ends_with(".backendRefs[1].filters"), "{field}");
}
