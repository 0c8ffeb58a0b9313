// SPDX-License-Identifier: Apache-2.0
//! What rules and policies ask for, each in all its forms, seen at real origins.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_base::task::TaskGroup;
use weft_model::*;

use super::bed::*;
use super::mtls::{Ca, meshed, peer, server};
use crate::table::Door;

fn pairs(list: &[(&str, &str)]) -> Vec<(Arc<str>, Arc<str>)> {
    list.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()
}

fn edit(set: &[(&str, &str)], add: &[(&str, &str)], remove: &[&str]) -> HeaderEdit {
    let remove = remove.iter().map(|r| (*r).into()).collect();
    HeaderEdit { set: pairs(set), add: pairs(add), remove }
}

/// The values of the headers whose names begin with `x-e`, sorted.
fn shown(headers: &http::HeaderMap) -> String {
    let mut lines: Vec<String> = headers
        .iter()
        .filter(|(name, _)| name.as_str().starts_with("x-e"))
        .map(|(name, value)| format!("{name}={}", value.to_str().unwrap()))
        .collect();
    lines.sort();
    lines.join(" ")
}

/// What a client must not miss when something is wrong, such as HSTS, is there then, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_rules_response_headers_are_on_answers_that_the_proxy_makes() {
    let silent = Server::http(|_, _| std::future::pending()).await;
    let mut all = http_service("slow", &[silent.address]);
    all.extend(http_service("down", &[nobody().await]));
    let forward = |name: &str| Action::Forward(vec![to(name, "", 1)]);
    let mut rules = vec![
        rule("/down", forward("down")),
        rule("/slow", forward("slow")),
        rule("/fault", forward("slow")),
    ];
    rules[1].timeouts.request_ms = Some(50);
    let abort = Some(Abort { answer: AbortAnswer::Http(555), share: Share::ALL });
    rules[2].filters.push(Filter::Fault(Fault { abort, ..Fault::default() }));
    for rule in &mut rules {
        let hsts = edit(&[("strict-transport-security", "max-age=1")], &[], &["x-weft-none"]);
        rule.filters.push(Filter::ResponseHeaders(hsts));
    }
    all.extend([gateway(None), gateway_route("r", &[], rules)]);
    let bed = Bed::gateway(all).await;
    for (path, status) in [("/down", 503), ("/slow", 504), ("/fault", 555)] {
        let got = send(bed.listener(), get(path, "a")).await;
        assert_eq!(got.status, status, "{path}: {}", got.body);
        assert_eq!(got.header("strict-transport-security"), "max-age=1", "{path}");
    }
    let other = send(bed.listener(), get("/other", "a")).await;
    assert!(!other.headers.contains_key("strict-transport-security"));
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_are_set_added_and_removed_in_both_directions_and_per_backend() {
    let echo = Server::http(|_, request| async move {
        let mut response = text(200, shown(request.headers()));
        for name in ["x-e1", "x-e2", "x-e3", "x-e5", "x-e6"] {
            response.headers_mut().insert(name, "old".parse().unwrap());
        }
        response
    })
    .await;
    let mut target = to("user", "", 1);
    target.filters = vec![Filter::RequestHeaders(edit(&[("x-e4", "backend")], &[], &[]))];
    let mut editing = rule("/", Action::Forward(vec![target]));
    // What is removed and written too is replaced: nothing of the client's is left.
    let edits = edit(
        &[("x-e1", "set"), ("x-e5", "set")],
        &[("x-e2", "added"), ("x-e6", "added")],
        &["x-e3", "x-e5", "x-e6"],
    );
    editing.filters = vec![Filter::RequestHeaders(edits.clone()), Filter::ResponseHeaders(edits)];
    let mut all = http_service("user", &[echo.address]);
    all.push(mesh_route("user", vec![editing]));
    let bed = Bed::sidecar(all).await;
    let mut request = Request::get("http://user/");
    for name in ["x-e1", "x-e2", "x-e3", "x-e5", "x-e6"] {
        request = request.header(name, "old");
    }
    let got = bed.send(request.body(Full::default()).unwrap()).await;
    assert_eq!(got.body, "x-e1=set x-e2=added x-e2=old x-e4=backend x-e5=set x-e6=added");
    assert_eq!(shown(&got.headers), "x-e1=set x-e2=added x-e2=old x-e5=set x-e6=added");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_path_is_rewritten_and_the_query_stays() {
    let echo = Server::http(|_, r| async move { text(200, r.uri().to_string()) }).await;
    let rewriting = |prefix: &str, path| {
        let mut rule = rule(prefix, Action::Forward(vec![to("user", "", 1)]));
        rule.filters = vec![Filter::Rewrite(Rewrite { host: None, path: Some(path) })];
        rule
    };
    let mut all = http_service("user", &[echo.address]);
    all.push(mesh_route(
        "user",
        vec![
            rewriting("/full", PathRewrite::Full("/one".into())),
            rewriting("/cut", PathRewrite::Prefix("/".into())),
        ],
    ));
    let bed = Bed::sidecar(all).await;
    assert_eq!(bed.get("http://user/full/a/b?q=1").await.body, "/one?q=1");
    assert_eq!(bed.get("http://user/cut/a/b?q=1").await.body, "/a/b?q=1");
    assert_eq!(bed.get("http://user/cut").await.body, "/");
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_of_every_status_change_what_they_name_and_nothing_else() {
    let redirect = |status, change: Redirect| Action::Redirect(Redirect { status, ..change });
    let path = |p| Redirect { path: Some(p), ..Redirect::default() };
    let rules = vec![
        rule("/301", redirect(301, Redirect { host: Some("b".into()), ..Redirect::default() })),
        rule("/302", redirect(302, Redirect { port: Some(8443), ..Redirect::default() })),
        rule("/303", redirect(303, path(PathRewrite::Full("/full".into())))),
        rule("/307", redirect(307, path(PathRewrite::Prefix("/new".into())))),
        rule(
            "/308",
            redirect(308, Redirect { scheme: Some("https".into()), ..Redirect::default() }),
        ),
    ];
    let mut all = http_service("user", &[nobody().await]);
    all.push(mesh_route("user", rules));
    let bed = Bed::sidecar(all).await;
    for (status, location) in [
        (301, "http://b/301/x?q=1"),
        (302, "http://user:8443/302/x?q=1"),
        (303, "http://user/full?q=1"),
        (307, "http://user/new/x?q=1"),
        (308, "https://user/308/x?q=1"),
    ] {
        let got = bed.get(&format!("http://user/{status}/x?q=1")).await;
        assert_eq!((got.status, got.header("location")), (status, location));
        assert_eq!(got.header("x-weft-flags"), "", "a redirect is no failure");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_one_http2_connection_are_spread_over_instances() {
    let (a, b) = (Server::named("a").await, Server::named("b").await);
    let endpoints = vec![endpoint("a", a.address), endpoint("b", b.address)];
    let bed =
        Bed::sidecar(service("user", Protocol::Grpc, BackendPolicy::default(), endpoints)).await;
    let door = bed.door(|d| matches!(d, Door::Upstream { .. }));
    let io = hyper_util::rt::TokioIo::new(TcpStream::connect(door).await.unwrap());
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    let tasks = TaskGroup::new();
    tasks.spawn("client", async move { drop(connection.await) });
    for _ in 0..100 {
        let request = Request::get("http://user/").body(Full::<Bytes>::default()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!((response.status().as_u16(), response.version()), (200, Version::HTTP_2));
    }
    assert_eq!((a.hits(), b.hits()), (50, 50));
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_statuses_are_retried_when_asked() {
    // Trailers-only answers, as a server sends that fails before its first message.
    let flaky = Server::http(|n, _| async move {
        let status = if n < 2 { "14" } else { "0" };
        Response::builder()
            .header("content-type", "application/grpc")
            .header("grpc-status", status)
            .body(Full::default())
            .unwrap()
    })
    .await;
    let endpoints = vec![endpoint("a", flaky.address)];
    let policy = BackendPolicy {
        outlier: Outlier { consecutive_failures: 0, ..Outlier::default() },
        ..BackendPolicy::default()
    };
    let mut all = service("user", Protocol::Grpc, policy, endpoints);
    let mut retrying = rule("/s.S/Asked", Action::Forward(vec![to("user", "", 1)]));
    retrying.retry = Retry {
        declared_idempotent: true,
        grpc_statuses: vec![14],
        backoff_ms: 1,
        ..Retry::default()
    };
    all.push(mesh_route("user", vec![retrying]));
    let bed = Bed::sidecar(all).await;
    let mut call = post("http://user/s.S/Asked", "\0\0\0\0\0");
    call.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    assert_eq!(bed.send(call.clone()).await.header("grpc-status"), "0");
    assert_eq!(flaky.hits(), 3);
    // Another method of the same service has no rule.
    *call.uri_mut() = "http://user/s.S/Other".parse().unwrap();
    assert_eq!(bed.send(call).await.header("grpc-status"), "12");
    assert_eq!(flaky.hits(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn pauses_between_attempts_grow_from_what_the_route_says() {
    let times = Arc::new(Mutex::new(Vec::new()));
    let seen = times.clone();
    let down = Server::http(move |_, _| {
        seen.lock().unwrap().push(Instant::now());
        async { text(503, "down") }
    })
    .await;
    let mut all = http_service("user", &[down.address]);
    let mut retrying = rule("/", Action::Forward(vec![to("user", "", 1)]));
    retrying.retry = Retry { statuses: vec![503], backoff_ms: 100, ..Retry::default() };
    all.push(mesh_route("user", vec![retrying]));
    let bed = Bed::sidecar(all).await;
    assert_eq!(bed.get("http://user/").await.status, 503);
    let times = times.lock().unwrap();
    let pauses: Vec<Duration> = times.windows(2).map(|w| w[1] - w[0]).collect();
    // Jitter takes up to half of it away: 50 to 100 ms, then 100 to 200 ms.
    let least = [Duration::from_millis(50), Duration::from_millis(100)];
    assert_eq!(pauses.len(), 2);
    assert!(pauses.iter().zip(least).all(|(pause, least)| *pause >= least), "{pauses:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_that_refuse_connections_are_ejected_too() {
    let good = Server::named("good").await;
    let policy = BackendPolicy {
        outlier: Outlier { consecutive_failures: 2, ..Outlier::default() },
        ..BackendPolicy::default()
    };
    let endpoints = vec![endpoint("gone", nobody().await), endpoint("good", good.address)];
    let bed = Bed::sidecar(service("user", Protocol::Http1, policy, endpoints)).await;
    let deadline = Instant::now() + Duration::from_secs(60);
    let ejected = async || {
        let admin = bed.proxy.addresses().admin;
        let clusters = send(admin, get("/clusters?format=json", "127.0.0.1")).await.body;
        clusters.contains("\"failed_outlier_check\": true")
    };
    while !ejected().await {
        assert!(Instant::now() < deadline, "nobody was ejected");
        assert_eq!(bed.get("http://user/").await.body, "good");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_go_through_two_sidecars() {
    let app = Server::raw(|_, mut stream| async move {
        let head = until_blank_line(&mut stream).await;
        assert!(head.to_lowercase().contains("upgrade: websocket"), "{head}");
        let switch = b"HTTP/1.1 101 Switching Protocols\r\n\
                       connection: upgrade\r\nupgrade: websocket\r\n\r\n";
        stream.write_all(switch).await.unwrap();
        let (mut r, mut w) = stream.split();
        let _ = tokio::io::copy(&mut r, &mut w).await;
    })
    .await;
    let ca = Ca::new();
    let far = server(&ca, app.address, Protocol::Http1).await;
    let endpoints = vec![meshed(app.address, "user", Transport::MeshH2)];
    let near = peer(&ca, &far, Protocol::Http1, endpoints).await;
    let door = near.door(|d| matches!(d, Door::Upstream { .. }));
    let mut stream = TcpStream::connect(door).await.unwrap();
    let ask = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(ask).await.unwrap();
    let head = until_blank_line(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    for word in ["ping", "pong"] {
        stream.write_all(word.as_bytes()).await.unwrap();
        let mut back = [0u8; 4];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(back, word.as_bytes());
    }
}

async fn until_blank_line(stream: &mut TcpStream) -> String {
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        seen.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(seen).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_that_only_fails_tells_no_route_from_no_backend() {
    for (status, flag) in [(404, "NR"), (500, "NC"), (503, "NC")] {
        let failing = rule("/", Action::Fail { status, reason: "it is said so".into() });
        let resources = vec![gateway(None), gateway_route("r", &[], vec![failing])];
        let bed = Bed::gateway(resources).await;
        let got = send(bed.listener(), get("/", "x")).await;
        assert_eq!((got.status, got.header("x-weft-flags")), (status, flag));
    }
}

/// Browsers ask without credentials: where CORS stands first they are answered all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_browsers_question_meets_access_lists_as_they_are_written() {
    let cors = Filter::Cors(Cors {
        origins: vec![StringMatch::Present],
        methods: vec!["GET".into()],
        headers: Vec::new(),
        expose: Vec::new(),
        max_age_s: None,
        credentials: false,
        forward_unmatched: false,
    });
    let access = Access { effect: Effect::Allow, policies: Vec::new() };
    let access = Filter::Access(Arc::new(access));
    for (filters, asked) in [([cors.clone(), access.clone()], 204), ([access, cors], 403)] {
        let direct = Action::Direct { status: 200, body: "".into() };
        let written = Rule { filters: filters.into(), ..rule("/", direct) };
        let resources = vec![gateway(None), gateway_route("r", &[], vec![written])];
        let bed = Bed::gateway(resources).await;
        let mut question = get("/", "x");
        *question.method_mut() = http::Method::OPTIONS;
        let headers = question.headers_mut();
        headers.insert("origin", "http://a.example".parse().unwrap());
        headers.insert("access-control-request-method", "GET".parse().unwrap());
        assert_eq!(send(bed.listener(), question).await.status, asked);
        let mut request = get("/", "x");
        request.headers_mut().insert("origin", "http://a.example".parse().unwrap());
        let got = send(bed.listener(), request).await;
        let told = got.headers.contains_key("access-control-allow-origin");
        assert_eq!((got.status, told), (403, asked == 204));
    }
}
