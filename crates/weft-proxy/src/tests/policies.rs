// SPDX-License-Identifier: Apache-2.0
//! What rules do beside forwarding: faults, copies, CORS, sessions, rewrites by expression; seen
//! by real clients and at real origins.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use tokio::io::AsyncReadExt;
use tokio::time::Instant;
use weft_model::*;

use super::bed::*;
use crate::explain::{Place, explain};
use crate::table::{Builder, Door};

/// `METHOD path host body`, in the order of arrival.
type Seen = Arc<Mutex<Vec<String>>>;

async fn noting(name: &'static str) -> (Server, Seen) {
    let seen = Seen::default();
    let notes = seen.clone();
    let server = Server::http(move |_, request| {
        let notes = notes.clone();
        async move {
            let (head, body) = request.into_parts();
            let host = head.headers.get("host").map_or("", |h| h.to_str().unwrap()).to_owned();
            let read = body.collect().await;
            let body = read.map_or_else(|_| "broken".into(), |b| b.to_bytes());
            let body = String::from_utf8_lossy(&body).into_owned();
            let body = if body.len() > 64 { format!("{} bytes", body.len()) } else { body };
            notes.lock().unwrap().push(format!("{} {} {host} {body}", head.method, head.uri));
            text(200, name)
        }
    })
    .await;
    (server, seen)
}

fn filtering(filters: Vec<Filter>) -> Rule {
    let mut rule = rule("/", Action::Forward(vec![to("user", "", 1)]));
    rule.filters = filters;
    rule
}

async fn bed_of(origin: &Server, rule: Rule) -> Bed {
    let mut all = http_service("user", &[origin.address]);
    all.push(mesh_route("user", vec![rule]));
    Bed::sidecar(all).await
}

fn fault(delay: Option<Delay>, abort: Option<Abort>) -> Filter {
    Filter::Fault(Fault { delay, abort })
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_abort_and_delay_their_share() {
    let origin = Server::named("user").await;
    let abort = |answer, share| Some(Abort { answer, share });
    let all =
        fault(Some(Delay { ms: 50, share: Share::ALL }), abort(AbortAnswer::Http(418), Share::ALL));
    let bed = bed_of(&origin, filtering(vec![all])).await;
    let began = Instant::now();
    let got = bed.get("http://user/").await;
    assert!(began.elapsed() >= Duration::from_millis(50));
    assert_eq!((got.status, got.header("x-weft-flags"), origin.hits()), (418, "DI,FI", 0));
    assert!(got.body.contains("fault policy aborts this request; status 418"), "{}", got.body);
    assert!(got.body.contains("HTTPRoute shop/r spec.rules[0]"), "{}", got.body);
    let mut call = post("http://user/a.B/C", "");
    call.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    assert_eq!(bed.send(call).await.header("grpc-status"), "2");

    let some = fault(None, abort(AbortAnswer::Grpc(14), Share::of(1, 4)));
    let bed = bed_of(&origin, filtering(vec![some])).await;
    let mut client = client(bed.outbound()).await;
    let (mut aborted, requests) = (0u32, 2_000);
    for _ in 0..requests {
        let got = client.send(get("http://user/", "user")).await;
        aborted += u32::from(got.status == 503);
        assert!(got.status == 503 || got.body == "user");
    }
    // A quarter: 500 with a standard deviation of 19.4; seven of them.
    assert!((364..=636).contains(&aborted), "{aborted} of {requests}");
    assert_eq!(origin.hits(), usize::try_from(requests - aborted).unwrap());
}

fn mirror(name: &str, share: Share, mark_host: bool) -> Filter {
    let Target::Backend(target) = to(name, "", 1).target else { panic!() };
    Filter::Mirror(Mirror { target: Target::Backend(target), share, mark_host })
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_go_to_every_mirror_and_nobody_waits_for_them() {
    let (origin, seen) = noting("user").await;
    let (first, copies) = noting("first").await;
    let (second, marked) = noting("second").await;
    let stuck = Server::raw(|_, stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let mut all = http_service("user", &[origin.address]);
    all.extend(http_service("first", &[first.address]));
    all.extend(http_service("second", &[second.address]));
    all.extend(http_service("stuck", &[stuck.address]));
    all.extend(http_service("gone", &[nobody().await]));
    let rewrite = Rewrite { host: None, path: Some(PathRewrite::Prefix("/new".into())) };
    let mut copying = rule("/a", Action::Forward(vec![to("user", "", 1)]));
    copying.filters = vec![
        mirror("first", Share::ALL, false),
        mirror("second", Share::ALL, true),
        mirror("stuck", Share::ALL, false),
        mirror("gone", Share::ALL, false),
        Filter::Rewrite(rewrite),
    ];
    all.push(mesh_route("user", vec![copying]));
    let bed = Bed::sidecar(all).await;
    assert_eq!(bed.send(post("http://user/a/b?q=1", "hello")).await.body, "user");
    assert_eq!(*seen.lock().unwrap(), ["POST /new/b?q=1 user hello"]);
    let arrived = |notes: &Seen| notes.lock().unwrap().first().cloned();
    wait_until("both copies", || async {
        arrived(&copies).is_some() && arrived(&marked).is_some()
    })
    .await;
    assert_eq!(arrived(&copies).unwrap(), "POST /new/b?q=1 user hello");
    assert_eq!(arrived(&marked).unwrap(), "POST /new/b?q=1 user-shadow hello");

    // More than a slow mirror may lag behind: its copy breaks and is counted, the request does not.
    let large = vec![b'x'; 16 << 20];
    assert_eq!(bed.send(post("http://user/a", large)).await.body, "user");
    assert_eq!(seen.lock().unwrap()[1], format!("POST /new user {} bytes", 16 << 20));
    stuck.kill().await;
    wait_until("it is counted", || async {
        let metrics = bed.metrics().await;
        let dropped = metrics.lines().find(|l| l.starts_with("weft_mirrors_dropped_total"));
        dropped.is_some_and(|line| !line.ends_with(" 0"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_is_slow_to_begin_gets_bodies_whole() {
    // It reads all of a body before it answers.
    let (origin, _) = noting("user").await;
    let (go, gone) = tokio::sync::watch::channel(false);
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let mirror_server = Server::raw(move |_, mut stream| {
        let (mut gone, tell) = (gone.clone(), tell.clone());
        async move {
            // It takes nothing before the request itself is answered.
            gone.wait_for(|gone| *gone).await.unwrap();
            let (mut seen, mut buffer) = (0, vec![0; 1 << 16]);
            while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                seen += n;
                if seen >= 1_000_000 {
                    break;
                }
            }
            tell.send(seen).await.unwrap();
        }
    })
    .await;
    let mut all = http_service("user", &[origin.address]);
    all.extend(http_service("copy", &[mirror_server.address]));
    all.push(mesh_route("user", vec![filtering(vec![mirror("copy", Share::ALL, false)])]));
    let bed = Bed::sidecar(all).await;
    assert_eq!(bed.send(post("http://user/", vec![b'x'; 1_000_000])).await.body, "user");
    go.send(true).unwrap();
    let seen = told.recv().await.unwrap();
    assert!(seen >= 1_000_000, "{seen} bytes arrived");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_gets_its_share() {
    let origin = Server::named("user").await;
    let copy = Server::named("copy").await;
    let mut all = http_service("user", &[origin.address]);
    all.extend(http_service("copy", &[copy.address]));
    all.push(mesh_route("user", vec![filtering(vec![mirror("copy", Share::of(1, 5), false)])]));
    let bed = Bed::sidecar(all).await;
    let mut client = client(bed.outbound()).await;
    for _ in 0..1_000 {
        assert_eq!(client.send(get("http://user/", "user")).await.body, "user");
    }
    // A fifth: 200 with a standard deviation of 12.6; seven of them.
    wait_until("copies", || async { copy.hits() >= 111 }).await;
    assert!(copy.hits() <= 289, "{}", copy.hits());
    assert_eq!(origin.hits(), 1_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_of_allowed_origins_get_leave_with_every_answer() {
    let origin = Server::http(|_, _| async move {
        let mut response = text(200, "user");
        let wide = "*".parse().unwrap();
        response.headers_mut().insert("access-control-allow-origin", wide);
        response
    })
    .await;
    let cors = Filter::Cors(Cors {
        origins: vec![StringMatch::Exact("https://a.com".into())],
        methods: vec!["PUT".into()],
        headers: vec!["x-a".into()],
        max_age_s: Some(60),
        credentials: true,
        ..Cors::default()
    });
    let mut all = http_service("user", &[origin.address]);
    all.extend(http_service("gone", &[nobody().await]));
    let mut failing = rule("/gone", Action::Forward(vec![to("gone", "", 1)]));
    failing.filters = vec![cors.clone()];
    failing.retry = Retry { attempts: 0, ..Retry::default() };
    let mut direct = rule("/direct", Action::Direct { status: 200, body: "here".into() });
    direct.filters = vec![cors.clone()];
    all.push(mesh_route("user", vec![failing, direct, filtering(vec![cors])]));
    let bed = Bed::sidecar(all).await;
    let ask = |method: &str, path: &str, from: &str| {
        let request = Request::builder().method(method).uri(format!("http://user{path}"));
        let request = request.header("origin", from);
        request.header("access-control-request-method", "PUT").body(Full::<Bytes>::default())
    };
    let leave = |got: &Got| got.header("access-control-allow-origin").to_owned();

    let got = bed.send(ask("OPTIONS", "/", "https://a.com").unwrap()).await;
    assert_eq!((got.status, leave(&got), origin.hits()), (204, "https://a.com".into(), 0));
    let said = ["methods", "headers", "credentials"]
        .map(|what| got.header(&format!("access-control-allow-{what}")).to_owned());
    assert_eq!(said, ["PUT", "x-a", "true"]);
    assert_eq!((got.header("access-control-max-age"), got.header("vary")), ("60", "origin"));

    let got = bed.send(ask("OPTIONS", "/", "https://b.com").unwrap()).await;
    assert_eq!((got.status, leave(&got), origin.hits()), (204, String::new(), 0));

    for (path, status) in [("/", 200), ("/direct", 200), ("/gone", 503)] {
        let got = bed.send(ask("GET", path, "https://a.com").unwrap()).await;
        assert_eq!((got.status, leave(&got)), (status, "https://a.com".into()), "{path}");
    }
    // Others' answers must not stand for theirs in a cache.
    let plain = [ask("GET", "/", "https://b.com").unwrap(), get("http://user/", "user")];
    for request in plain {
        let got = bed.send(request).await;
        assert_eq!((got.status, got.header("vary")), (200, "origin"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_is_rewritten_by_an_expression() {
    let echo = Server::http(|_, r| async move { text(200, r.uri().to_string()) }).await;
    let regex = RegexRewrite::new("/v([0-9]+)/([a-z]+)", r"/\2/\1").unwrap();
    let rewrite = Rewrite { host: None, path: Some(PathRewrite::Regex(regex)) };
    let bed = bed_of(&echo, filtering(vec![Filter::Rewrite(rewrite)])).await;
    assert_eq!(bed.get("http://user/v1/ab/v22/c?q=/v1/x").await.body, "/ab/1/c/22?q=/v1/x");
    assert_eq!(bed.get("http://user/other").await.body, "/other");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_rewrite_leads_out_of_its_prefix_and_explain_knows() {
    let echo = Server::http(|_, r| async move { text(200, r.uri().to_string()) }).await;
    let path = Some(PathMatch::StringPrefix("/api".into()));
    let prefix = PathRewrite::Prefix("/".into());
    let expression = PathRewrite::Regex(RegexRewrite::new("^/api", "/").unwrap());
    for rewrite in [prefix, expression] {
        let rewrites = vec![Filter::Rewrite(Rewrite { host: None, path: Some(rewrite.clone()) })];
        let mut of_rule = filtering(rewrites.clone());
        of_rule.matches = vec![Match { path: path.clone(), ..Match::default() }];
        let mut of_share = of_rule.clone();
        of_share.filters.clear();
        let Action::Forward(shares) = &mut of_share.action else { panic!() };
        shares[0].filters = rewrites;
        for rule in [of_rule, of_share] {
            let mut all = http_service("user", &[echo.address]);
            all.push(mesh_route("user", vec![rule]));
            let bed = Bed::sidecar(all.clone()).await;
            let all = all.into_iter().map(|(name, resource)| (name, Ok(resource))).collect();
            let clock = weft_base::clock::Clock::system();
            let table = Builder::new(1, clock, "shop".into()).apply(1, all, &[]).0;
            let (door, local) = (Door::Forward, bed.outbound());
            let place = Place { door, local, scheme: "http", server_name: None };
            let long = format!("/api/{}", "a".repeat(9_000));
            let too_long = if matches!(rewrite, PathRewrite::Regex(_)) { 414 } else { 200 };
            for (path, status) in [
                ("/api/admin", 200),
                ("/api../admin", 400),
                ("/api%2E.;x/admin", 400),
                (&long, too_long),
            ] {
                let url = format!("http://user{path}");
                let got = bed.get(&url).await;
                assert_eq!(got.status, status, "{rewrite:?} {path}: {}", got.body);
                let asked = Request::get(&url).header("host", "user").body(()).unwrap();
                let said = explain(&table, &place, &asked).answer;
                let flag = if status == 200 { "" } else { "DPE" };
                assert_eq!(got.header("x-weft-flags"), flag, "{path}");
                match status {
                    200 => assert_eq!(said.kind, "forwarded", "{path}: {said:?}"),
                    _ => assert_eq!((said.status, &*said.flag), (Some(status), flag), "{said:?}"),
                }
            }
        }
    }
}

fn session(by: SessionBy) -> Option<Session> {
    Some(Session { by, name: "keep".into(), absolute_s: Some(3_600) })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_stays_with_its_instance_and_its_share() {
    let (a, b, c) = (Server::named("a").await, Server::named("b").await, Server::named("c").await);
    let all = |user: &[(&str, std::net::SocketAddr)]| {
        let endpoints = user.iter().map(|(id, at)| endpoint(id, *at)).collect();
        let mut all = service("user", Protocol::Http1, BackendPolicy::default(), endpoints);
        all.extend(http_service("other", &[c.address]));
        let mut kept = rule("/", Action::Forward(vec![to("user", "", 1), to("other", "", 1)]));
        kept.session = session(SessionBy::Cookie { permanent: true });
        all.push(mesh_route("user", vec![kept]));
        all
    };
    let (one, two) = (("a", a.address), ("b", b.address));
    let bed = Bed::sidecar(all(&[one, two])).await;
    let send = async |cookie: &str| {
        let request = Request::get("http://user/").header("cookie", format!("x=1; {cookie}"));
        bed.send(request.body(Full::default()).unwrap()).await
    };
    let mut homes = std::collections::BTreeMap::new();
    for _ in 0..100 {
        let got = send("").await;
        let line = got.header("set-cookie").to_owned();
        let (cookie, rest) = line.split_once("; ").unwrap();
        assert_eq!(rest, "Path=/; HttpOnly; Max-Age=3600");
        homes.insert(got.body, cookie.to_owned());
    }
    assert_eq!(homes.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    for (home, cookie) in &homes {
        for _ in 0..10 {
            let got = send(cookie).await;
            assert_eq!((&got.body, got.header("set-cookie")), (home, ""));
        }
    }
    // Its instance is gone: another takes it over, and says so.
    bed.apply(2, all(&[two])).await;
    let got = send(&homes["a"]).await;
    assert!(["b", "c"].contains(&&*got.body) && !got.header("set-cookie").is_empty());
    assert_eq!(send(&homes["b"]).await.body, "b", "the others stay");
    assert!(!send("keep=ffffffffffffffff.1").await.header("set-cookie").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_may_be_kept_in_a_header() {
    let (a, b) = (Server::named("a").await, Server::named("b").await);
    let mut all = http_service("user", &[a.address, b.address]);
    let mut kept = rule("/", Action::Forward(vec![to("user", "", 1)]));
    kept.session = session(SessionBy::Header);
    all.push(mesh_route("user", vec![kept]));
    let bed = Bed::sidecar(all).await;
    let first = bed.get("http://user/").await;
    for _ in 0..6 {
        let request = Request::get("http://user/").header("keep", first.header("keep"));
        let got = bed.send(request.body(Full::default()).unwrap()).await;
        assert_eq!((&got.body, got.header("keep")), (&first.body, ""));
    }
}
