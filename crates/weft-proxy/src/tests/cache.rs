// SPDX-License-Identifier: Apache-2.0
//! Answers from a store, through whole gateways of two workers, with real origins and clients.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use weft_model::*;

use super::bed::*;

/// What an origin says of a path, and how often it was asked.
#[derive(Clone, Default)]
struct Pages(Arc<Mutex<BTreeMap<String, Vec<Page>>>>);

/// Status, headers and body.
type Page = (u16, Vec<(&'static str, String)>, String);

impl Pages {
    /// The path's next answer; the last one stays.
    fn say(&self, path: &str, status: u16, headers: &[(&'static str, &str)], body: &str) {
        let headers = headers.iter().map(|(n, v)| (*n, (*v).to_owned())).collect();
        let mut pages = self.0.lock().unwrap();
        pages.entry(path.into()).or_default().push((status, headers, body.into()));
    }

    fn answer(&self, path: &str, n: usize) -> Response<Full<Bytes>> {
        let mut pages = self.0.lock().unwrap();
        let all = pages.get_mut(path).unwrap();
        let (status, headers, body) =
            if all.len() > 1 { all.remove(0) } else { all.first().cloned().unwrap() };
        let mut response = text(status, body.replace("{n}", &n.to_string()));
        for (name, value) in headers {
            response.headers_mut().append(name, value.parse().unwrap());
        }
        response
    }
}

async fn origin(pages: &Pages) -> Server {
    let pages = pages.clone();
    Server::http(move |n, request| {
        let pages = pages.clone();
        async move {
            let answer = pages.answer(request.uri().path(), n);
            let _ = request.into_body().collect().await;
            answer
        }
    })
    .await
}

fn cached(prefix: &str, name: &str, cache: Cache) -> Rule {
    let filters = vec![Filter::Cache(Arc::new(cache))];
    Rule { filters, ..rule(prefix, Action::Forward(vec![to(name, "", 1)])) }
}

fn resources(rules: Vec<Rule>, services: &[(&str, &Server)]) -> Vec<Named> {
    let services = services.iter().flat_map(|(name, s)| http_service(name, &[s.address]));
    [gateway(None), gateway_route("r", &[], rules)].into_iter().chain(services).collect()
}

async fn bed(rules: Vec<Rule>, services: &[(&str, &Server)]) -> Bed {
    let mut config = config("gateway~shop~web");
    config.workers = 2;
    let bed = Bed::start(config, None).await;
    bed.apply(1, resources(rules, services)).await;
    bed
}

async fn asked(bed: &Bed, method: &str, path: &str, headers: &[(&str, &str)]) -> Got {
    let builder = Request::builder().method(method).uri(path).header("host", "a.example");
    let builder = headers.iter().fold(builder, |b, (name, value)| b.header(*name, *value));
    send(bed.listener(), builder.body(Full::default()).unwrap()).await
}

async fn got(bed: &Bed, path: &str) -> Got {
    asked(bed, "GET", path, &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_worker_stored_both_answer_from() {
    let pages = Pages::default();
    let cacheable = [("cache-control", "max-age=60"), ("etag", "\"a\""), ("x-page", "1")];
    pages.say("/page", 200, &cacheable, "page {n}");
    pages.say("/plain", 200, &[], "plain {n}");
    let origin = origin(&pages).await;
    let bed = bed(vec![cached("/", "web", Cache::default())], &[("web", &origin)]).await;
    let first = got(&bed, "/page").await;
    assert_eq!((first.status, &*first.body), (200, "page 0"));
    assert_eq!(first.header("cache-status"), "weft; fwd=uri-miss; fwd-status=200; ttl=60; stored");
    // Connections fall to either worker.
    for _ in 0..20 {
        let again = got(&bed, "/page").await;
        assert_eq!((again.status, &*again.body, again.header("x-page")), (200, "page 0", "1"));
        assert_eq!(again.header("content-length"), "6");
        assert!(again.header("cache-status").starts_with("weft; hit; ttl="));
        assert!(!again.header("age").is_empty() && !again.header("date").is_empty());
        assert!(!again.header("x-request-id").is_empty());
    }
    assert_eq!(origin.hits(), 1);
    let head = asked(&bed, "HEAD", "/page", &[]).await;
    assert_eq!((head.status, &*head.body, head.header("content-length")), (200, "", "6"));
    let same = asked(&bed, "GET", "/page", &[("if-none-match", "\"a\"")]).await;
    assert_eq!((same.status, &*same.body), (304, ""));
    let part = asked(&bed, "GET", "/page", &[("range", "bytes=0-3")]).await;
    assert_eq!((part.status, &*part.body), (206, "page"));
    assert_eq!(part.header("content-range"), "bytes 0-3/6");
    let none = asked(&bed, "GET", "/page", &[("range", "bytes=9-")]).await;
    assert_eq!((none.status, none.header("content-range")), (416, "bytes */6"));
    assert_eq!(origin.hits(), 1);
    for n in 1..4 {
        assert_eq!(got(&bed, "/plain").await.body, format!("plain {n}"));
    }
    // Another query is another page.
    assert_eq!(got(&bed, "/page?x").await.body, "page 4");
    let metrics = bed.metrics().await;
    assert!(metrics.contains("weft_cache_hits_total 24"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_wants_nothing_stored_is_told_when_there_is_nothing() {
    let pages = Pages::default();
    pages.say("/page", 200, &[("cache-control", "max-age=60")], "page");
    let origin = origin(&pages).await;
    let bed = bed(vec![cached("/", "web", Cache::default())], &[("web", &origin)]).await;
    let only = [("cache-control", "only-if-cached")];
    assert_eq!(asked(&bed, "GET", "/page", &only).await.status, 504);
    assert_eq!(origin.hits(), 0);
    got(&bed, "/page").await;
    assert_eq!(asked(&bed, "GET", "/page", &only).await.status, 200);
    let fresh = asked(&bed, "GET", "/page", &[("cache-control", "no-cache")]).await;
    assert!(fresh.header("cache-status").starts_with("weft; fwd=request"), "{fresh:?}");
    let unkept = asked(&bed, "GET", "/page", &[("cache-control", "no-store")]).await;
    assert_eq!(unkept.header("cache-status"), "weft; fwd=bypass");
    assert_eq!(origin.hits(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_origin_says_that_a_stored_answer_holds() {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    let origin = Server::http(move |n, request| {
        let counter = counter.clone();
        async move {
            let known = request.headers().get("if-none-match").is_some_and(|v| v == "\"a\"");
            let status = if known { 304 } else { 200 };
            counter.fetch_add(usize::from(known), Ordering::SeqCst);
            let mut answer = text(status, if known { "" } else { "whole" });
            let headers = answer.headers_mut();
            headers.insert("etag", "\"a\"".parse().unwrap());
            headers.insert("cache-control", "max-age=0, must-revalidate".parse().unwrap());
            headers.insert("x-n", n.into());
            answer
        }
    })
    .await;
    let bed = bed(vec![cached("/", "web", Cache::default())], &[("web", &origin)]).await;
    assert_eq!(got(&bed, "/").await.body, "whole");
    for n in 1..4 {
        let again = got(&bed, "/").await;
        assert_eq!((again.status, &*again.body), (200, "whole"));
        assert_eq!(again.header("x-n"), n.to_string(), "the newer headers");
        assert!(again.header("cache-status").contains("fwd=stale; fwd-status=304"), "{again:?}");
    }
    // A client's own condition is judged by what is stored, not sent on.
    let same = asked(&bed, "GET", "/", &[("if-none-match", "\"a\"")]).await;
    assert_eq!(same.status, 304);
    let other = asked(&bed, "GET", "/", &[("if-none-match", "\"b\"")]).await;
    assert_eq!((other.status, &*other.body), (200, "whole"));
    let part = asked(&bed, "GET", "/", &[("range", "bytes=1-2")]).await;
    assert_eq!((part.status, &*part.body), (206, "ho"));
    let head = asked(&bed, "HEAD", "/", &[]).await;
    assert_eq!((head.status, head.header("content-length")), (200, "5"));
    assert_eq!(count.load(Ordering::SeqCst), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_is_given_while_or_instead() {
    let pages = Pages::default();
    let swr = [("cache-control", "max-age=0, stale-while-revalidate=60")];
    pages.say("/swr", 200, &swr, "swr {n}");
    let sie = [("cache-control", "max-age=0, stale-if-error=60")];
    pages.say("/sie", 200, &sie, "good");
    pages.say("/sie", 503, &[], "bad");
    pages.say(
        "/strict",
        200,
        &[("cache-control", "max-age=0, must-revalidate"), ("etag", "\"a\"")],
        "good",
    );
    pages.say("/strict", 503, &[], "bad");
    let origin = origin(&pages).await;
    let bed = bed(vec![cached("/", "web", Cache::default())], &[("web", &origin)]).await;
    let first = got(&bed, "/swr").await.body;
    let second = got(&bed, "/swr").await;
    assert_eq!(second.body, first, "at once, and the origin is asked behind it");
    wait_until("a newer one comes", || async { got(&bed, "/swr").await.body != first }).await;
    assert_eq!(got(&bed, "/sie").await.body, "good");
    let instead = got(&bed, "/sie").await;
    assert_eq!((instead.status, &*instead.body), (200, "good"));
    assert!(instead.header("cache-status").contains("fwd-status=503"), "{instead:?}");
    assert_eq!(got(&bed, "/strict").await.body, "good");
    assert_eq!(got(&bed, "/strict").await.status, 503);
    // Nobody is there at all.
    origin.kill().await;
    assert_eq!(got(&bed, "/sie").await.body, "good");
    assert_eq!(got(&bed, "/strict").await.status, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_makes_void_what_it_changed() {
    let pages = Pages::default();
    for path in ["/page", "/other", "/third"] {
        pages.say(path, 200, &[("cache-control", "max-age=60")], "{n}");
    }
    let bed_pages = pages.clone();
    let origin = Server::http(move |n, request| {
        let pages = bed_pages.clone();
        async move {
            match request.method().as_str() {
                "GET" => pages.answer(request.uri().path(), n),
                "PUT" => text(500, "no"),
                "OPTIONS" => text(200, "asked"),
                _ => {
                    let mut done = text(201, "done");
                    let at = request.headers().get("x-at").cloned();
                    at.map(|at| done.headers_mut().insert("location", at));
                    done
                }
            }
        }
    })
    .await;
    let bed = bed(vec![cached("/", "web", Cache::default())], &[("web", &origin)]).await;
    let body = |path: &'static str| async { got(&bed, path).await.body };
    let (page, other) = (body("/page").await, body("/other").await);
    for method in ["PUT", "OPTIONS"] {
        asked(&bed, method, "/page", &[]).await;
        assert_eq!(body("/page").await, page, "{method}");
    }
    for method in ["POST", "DELETE", "PATCH", "FROB"] {
        let before = body("/page").await;
        asked(&bed, method, "/page", &[]).await;
        assert_ne!(body("/page").await, before, "{method}");
    }
    assert_eq!(body("/other").await, other);
    asked(&bed, "POST", "/page", &[("x-at", "/other")]).await;
    assert_ne!(body("/other").await, other);
    // What another origin is named for is none of its business.
    let other = body("/other").await;
    for elsewhere in ["http://b.example/other", "https://a.example/other", "//a.example/other"] {
        asked(&bed, "POST", "/page", &[("x-at", elsewhere)]).await;
        assert_eq!(body("/other").await, other, "{elsewhere}");
    }
    asked(&bed, "POST", "/page", &[("x-at", "http://A.example:80/other#x")]).await;
    assert_ne!(body("/other").await, other);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_ask_at_once_are_one_fetch() {
    let gate = Arc::new(Semaphore::new(0));
    let door = gate.clone();
    let origin = Server::http(move |n, request| {
        let door = door.clone();
        async move {
            let _ = door.acquire().await;
            let mut answer = text(200, format!("answer {n}"));
            let private = request.uri().path() == "/private";
            let said = if private { "private" } else { "max-age=60" };
            answer.headers_mut().insert("cache-control", said.parse().unwrap());
            answer
        }
    })
    .await;
    let bed = bed(vec![cached("/", "web", Cache::default())], &[("web", &origin)]).await;
    let crowd =
        |path: &'static str| futures_util::future::join_all((0..30).map(|_| got(&bed, path)));
    let open = async {
        let counted = || async {
            let text = bed.metrics().await;
            text.contains("weft_downstream_connections_open 30") && origin.hits() == 1
        };
        wait_until("all are there", counted).await;
        gate.add_permits(1_000);
    };
    let (all, ()) = tokio::join!(crowd("/page"), open);
    assert!(all.iter().all(|one| one.body == "answer 0"), "{all:?}");
    assert_eq!(origin.hits(), 1);
    // What cannot be stored: they wait for the first head only, then all go by themselves.
    let private = crowd("/private").await;
    let bodies: BTreeSet<String> = private.into_iter().map(|one| one.body).collect();
    assert_eq!((bodies.len(), origin.hits()), (30, 31));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_fetches_and_leaves_does_not_hold_the_others_up() {
    let (begun, go) = (Arc::new(Notify::new()), Arc::new(Semaphore::new(0)));
    let (tell, wait) = (begun.clone(), go.clone());
    let origin = Server::raw(move |_, mut stream| {
        let (tell, wait) = (tell.clone(), wait.clone());
        async move {
            let mut buffer = [0u8; 4096];
            while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {
                let head = b"HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\n\
                    content-length: 10\r\n\r\n01234";
                let _ = stream.write_all(head).await;
                tell.notify_one();
                let _ = wait.acquire().await.map(tokio::sync::SemaphorePermit::forget);
                let _ = stream.write_all(b"56789").await;
            }
        }
    })
    .await;
    let bed = bed(vec![cached("/", "web", Cache::default())], &[("web", &origin)]).await;
    let mut first = TcpStream::connect(bed.listener()).await.unwrap();
    first.write_all(b"GET /x HTTP/1.1\r\nhost: a.example\r\n\r\n").await.unwrap();
    begun.notified().await;
    let mut seen = Vec::new();
    while !seen.ends_with(b"01234") {
        seen.push(first.read_u8().await.unwrap());
    }
    let leaving = async {
        // The first leaves in the middle: half an answer is never stored.
        drop(first);
        begun.notified().await;
        go.add_permits(2);
    };
    let (second, ()) = tokio::join!(got(&bed, "/x"), leaving);
    assert_eq!(second.body, "0123456789");
    assert!(got(&bed, "/x").await.header("cache-status").starts_with("weft; hit"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_given_what_another_claim_made() {
    // An origin that builds answers of what its client says about the host, without Vary.
    let origin = Server::http(move |n, request| async move {
        let of = |name: &str| {
            request.headers().get(name).map_or("-", |v| v.to_str().unwrap()).to_owned()
        };
        let body = format!("{n} {} {} {}", of("host"), of("x-forwarded-host"), of("x-tenant"));
        let mut answer = text(200, body);
        answer.headers_mut().insert("cache-control", "max-age=60".parse().unwrap());
        answer
    })
    .await;
    let edit =
        HeaderEdit { set: vec![("x-tenant".into(), "beta".into())], ..HeaderEdit::default() };
    let mut beta = cached("/", "web", Cache::default());
    beta.filters.push(Filter::RequestHeaders(edit));
    beta.matches[0]
        .headers
        .push(NamedMatch { name: "x-beta".into(), value: StringMatch::Exact("1".into()) });
    let rules = vec![beta, cached("/", "web", Cache::default())];
    let mut all = resources(rules, &[("web", &origin)]);
    // A proxy in front is believed what it says of the host.
    let Resource::Listener(Listener { kind: ListenerKind::Gateway(listener), .. }) = &mut all[0].1
    else {
        panic!()
    };
    listener.edge.trusted_hops = 1;
    let bed = Bed::gateway(all).await;
    let usual = got(&bed, "/").await.body;
    for claim in [
        ("x-forwarded-host", "evil"),
        ("x-original-url", "/admin"),
        ("x-http-method-override", "DELETE"),
        ("x-forwarded-ssl", "on"),
        ("front-end-https", "on"),
        ("x-url-scheme", "https"),
        ("x-beta", "1"),
    ] {
        let claimed = asked(&bed, "GET", "/", &[claim]).await.body;
        assert_ne!(claimed, usual, "{claim:?}");
        assert_eq!(asked(&bed, "GET", "/", &[claim]).await.body, claimed, "their own is stored");
    }
    assert_eq!(got(&bed, "/").await.body, usual);
    // The port that a client names is part of what the origin is asked.
    let port = Request::get("/").header("host", "a.example:1337").body(Full::default()).unwrap();
    assert!(send(bed.listener(), port).await.body.contains("a.example:1337"));
    let cased = Request::get("/").header("host", "A.EXAMPLE").body(Full::default()).unwrap();
    assert_eq!(send(bed.listener(), cased).await.body, usual);
    assert_eq!(got(&bed, "/").await.body, usual);
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_6_a_question_with_a_body_is_never_answered_from_the_store() {
    let pages = Pages::default();
    pages.say("/page", 200, &[("cache-control", "max-age=60")], "page {n}");
    let origin = origin(&pages).await;
    let bed = bed(vec![cached("/", "web", Cache::default())], &[("web", &origin)]).await;
    assert_eq!(got(&bed, "/page").await.body, "page 0");
    // The second request is within the body of the first: it must be no request.
    let inner = "GET /smuggled HTTP/1.1\r\nhost: a.example\r\n\r\n";
    let outer = format!(
        "GET /page HTTP/1.1\r\nhost: a.example\r\ncontent-length: {}\r\n\r\n{inner}\
         GET /page HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n\r\n",
        inner.len()
    );
    let mut client = TcpStream::connect(bed.listener()).await.unwrap();
    client.write_all(outer.as_bytes()).await.unwrap();
    let mut all = String::new();
    client.read_to_string(&mut all).await.unwrap();
    assert_eq!(all.matches("HTTP/1.1 200").count(), 2, "{all}");
    assert!(all.contains("page 1") && all.contains("fwd=bypass"), "{all}");
    assert!(all.ends_with("page 0"), "{all}");
    assert_eq!(origin.hits(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_and_rules_that_are_off() {
    let pages = Pages::default();
    let large = "x".repeat(2_000);
    for path in ["/page", "/off", "/other"] {
        pages.say(path, 200, &[("cache-control", "max-age=60")], &large);
    }
    let chunked = [("cache-control", "max-age=60"), ("set-cookie", "a=b")];
    pages.say("/cookie", 200, &chunked, "cookie");
    let origin = origin(&pages).await;
    let small = Cache { object_bytes_max: 1_000, ..Cache::default() };
    let off = Cache { object_bytes_max: 0, ..Cache::default() };
    let rules = vec![
        cached("/off", "web", off),
        cached("/cookie", "web", Cache::default()),
        rule("/other", Action::Forward(vec![to("web", "", 1)])),
        cached("/page", "web", small),
    ];
    let bed = bed(rules, &[("web", &origin)]).await;
    let status = |path: &'static str| async {
        got(&bed, path).await;
        got(&bed, path).await.header("cache-status").to_owned()
    };
    assert!(status("/page").await.ends_with("detail=too-large"));
    assert!(status("/cookie").await.ends_with("detail=set-cookie"));
    assert_eq!((&*status("/off").await, &*status("/other").await), ("", ""));
    assert_eq!(origin.hits(), 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_door_shows_and_forgets() {
    let pages = Pages::default();
    for path in ["/a/1", "/a/2", "/b"] {
        pages.say(path, 200, &[("cache-control", "max-age=60")], "{n}");
    }
    let origin = origin(&pages).await;
    let bed = bed(vec![cached("/", "web", Cache::default())], &[("web", &origin)]).await;
    for path in ["/a/1", "/a/2", "/b"] {
        got(&bed, path).await;
    }
    let admin = bed.proxy.addresses().admin;
    let shown = send(admin, get("/cache", "127.0.0.1")).await.body;
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&shown["objects"], &shown["stored"]), (&3.into(), &3.into()));
    let purge = |query: &str| {
        let uri = format!("/cache/purge{query}");
        let request = Request::post(uri).header("host", "127.0.0.1").body(Full::default());
        send(admin, request.unwrap())
    };
    assert_eq!(purge("").await.status, 400);
    let done = purge("?prefix=http://a.example/a/").await;
    assert!(done.body.contains("\"forgotten\": 2"), "{}", done.body);
    got(&bed, "/b").await;
    assert_eq!(origin.hits(), 3);
    got(&bed, "/a/1").await;
    assert_eq!(origin.hits(), 4);
    let refused = send(admin, get("/cache/purge?prefix=http", "127.0.0.1")).await;
    assert_eq!(refused.status, 405);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_client_alone_asked_for_is_not_stored_for_all() {
    let pages = Pages::default();
    let cacheable = [("cache-control", "max-age=60")];
    pages.say("/part", 416, &cacheable, "no such part");
    pages.say("/part", 200, &cacheable, "part {n}");
    pages.say("/if", 404, &cacheable, "not that one");
    pages.say("/if", 200, &cacheable, "if {n}");
    pages.say("/odd", 431, &cacheable, "too much");
    pages.say("/odd", 200, &cacheable, "odd {n}");
    let origin = origin(&pages).await;
    let bed = bed(vec![cached("/", "web", Cache::default())], &[("web", &origin)]).await;
    for (path, asks, status, why) in [
        ("/part", ("range", "bytes=900-"), 416, "client-error"),
        ("/if", ("if-none-match", "\"x\""), 404, "conditional"),
        ("/odd", ("x-large", "1"), 431, "client-error"),
    ] {
        let first = asked(&bed, "GET", path, &[asks]).await;
        assert_eq!(first.status, status, "{path}");
        let said = first.header("cache-status");
        assert!(said.ends_with(&format!("detail={why}")), "{path}: {said}");
        let others = got(&bed, path).await;
        assert_eq!(others.status, 200, "{path}");
        assert_eq!(got(&bed, path).await.body, others.body, "{path} is stored now");
    }
    // An origin that takes no notice of the part says all there is: that may be stored.
    pages.say("/whole", 200, &cacheable, "whole {n}");
    let whole = asked(&bed, "GET", "/whole", &[("range", "bytes=0-0")]).await;
    assert_eq!((whole.status, got(&bed, "/whole").await.body), (200, whole.body));
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_of_one_take_nothing_from_others() {
    let origin = Server::http(move |n, request| async move {
        let own = request.headers().contains_key("authorization");
        let said = if own { "private" } else { "max-age=0, stale-while-revalidate=60" };
        let mut answer = text(200, format!("{n}"));
        answer.headers_mut().insert("cache-control", said.parse().unwrap());
        answer
    })
    .await;
    let bed = bed(vec![cached("/", "web", Cache::default())], &[("web", &origin)]).await;
    let shared = got(&bed, "/").await.body;
    let auth = ("authorization", "Basic eDp5");
    for method in ["GET", "HEAD"] {
        let own = asked(&bed, method, "/", &[auth, ("cache-control", "no-cache")]).await;
        assert_eq!(own.status, 200);
    }
    // Who may have what is stored gets it, and is not the one who renews it.
    assert_eq!(asked(&bed, "GET", "/", &[auth]).await.body, shared);
    assert_eq!(origin.hits(), 3);
    let after = got(&bed, "/").await;
    assert_eq!(after.body, shared);
    assert!(after.header("cache-status").starts_with("weft; hit"), "{after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn refreshes_count_for_the_limits_of_their_backend() {
    let pages = Pages::default();
    pages.say("/", 200, &[("cache-control", "max-age=0, stale-while-revalidate=60")], "{n}");
    let origin = origin(&pages).await;
    let mut all = resources(vec![cached("/", "web", Cache::default())], &[("web", &origin)]);
    let limit = RateLimit {
        name: "web".into(),
        requests: 2,
        per_ms: 3_600_000,
        burst: 0,
        by: Vec::new(),
        keys_max: 0,
    };
    let protection = Protection { rate_limits: vec![limit.into()], ..Protection::default() };
    let policy =
        BackendPolicy { protection: Some(Box::new(protection)), ..BackendPolicy::default() };
    all.push(backend("web", "", Labels::new(), policy));
    let bed = Bed::gateway(all).await;
    assert_eq!(got(&bed, "/").await.body, "0");
    wait_until("it is renewed once", || async { got(&bed, "/").await.body == "1" }).await;
    for _ in 0..20 {
        assert_eq!(got(&bed, "/").await.body, "1", "stale, and nobody asks any more");
    }
    assert_eq!(origin.hits(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_nothing_is_not_waited_for() {
    const BYTES: usize = 8 << 20;
    let origin = Server::raw(move |_, mut stream| async move {
        let mut buffer = [0u8; 4096];
        while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {
            let head = b"HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\n\
                transfer-encoding: chunked\r\n\r\n";
            let _ = stream.write_all(head).await;
            let chunk = format!("10000\r\n{}\r\n", "x".repeat(1 << 16));
            for _ in 0..BYTES >> 16 {
                if stream.write_all(chunk.as_bytes()).await.is_err() {
                    return;
                }
            }
            let _ = stream.write_all(b"0\r\n\r\n").await;
        }
    })
    .await;
    let patient = Cache { object_bytes_max: 16 << 20, wait_ms: 600_000, ..Cache::default() };
    let bed = bed(vec![cached("/", "web", patient)], &[("web", &origin)]).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stuck = socket.connect(bed.listener()).await.unwrap();
    stuck.write_all(b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n").await.unwrap();
    wait_until("it is being fetched", || async { origin.hits() == 1 }).await;
    let waits = tokio::time::timeout(Duration::from_secs(60), got(&bed, "/")).await;
    assert_eq!(waits.expect("it goes on without the other").body.len(), BYTES);
    assert_eq!(origin.hits(), 2);
    assert!(got(&bed, "/").await.header("cache-status").starts_with("weft; hit"));
    drop(stuck);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_of_a_request_counts_while_it_waits() {
    let origin = Server::http(|_, _| async { std::future::pending().await }).await;
    let patient = Cache { wait_ms: 600_000, ..Cache::default() };
    let timeouts = Timeouts { request_ms: Some(6_000), ..Timeouts::default() };
    let rule = Rule { timeouts, ..cached("/", "web", patient) };
    let bed = bed(vec![rule], &[("web", &origin)]).await;
    let second = async {
        wait_until("the first is on its way", || async { origin.hits() == 1 }).await;
        let began = Instant::now();
        (got(&bed, "/").await, began.elapsed())
    };
    let (first, (second, took)) = tokio::join!(got(&bed, "/"), second);
    assert_eq!((first.status, second.status), (504, 504));
    assert!(second.header("x-weft-flags").contains("UT"), "{second:?}");
    assert!(took < Duration::from_millis(11_500), "its own time and the other's: {took:?}");
}
