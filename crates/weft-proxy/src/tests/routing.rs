// SPDX-License-Identifier: Apache-2.0
//! Where requests go, and what is said when they go nowhere.

use std::time::Duration;

use http::Request;
use http_body_util::Full;
use weft_model::*;
use weft_testkit::ports;

use super::bed::*;
use crate::config::UnknownDestinations;
use crate::table::Door;

#[tokio::test(flavor = "multi_thread")]
async fn forward_proxy_knows_services_by_every_name() {
    let user = Server::named("user").await;
    let bed = Bed::sidecar(http_service("user", &[user.address])).await;
    for host in ["user", "user.shop", "user.shop.svc.cluster.local", "USER.shop."] {
        let got = bed.get(&format!("http://{host}:80/x")).await;
        assert_eq!((got.status, got.body.as_str()), (200, "user"), "{host}");
    }
    assert_eq!(bed.get("http://user/").await.body, "user");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_destinations_pass_through_or_are_denied() {
    let outside = Server::named("outside").await;
    let bed = Bed::sidecar(Vec::new()).await;
    let url = format!("http://{}/", outside.address);
    assert_eq!(bed.get(&url).await.body, "outside");
    assert!(bed.metrics().await.contains("destination_service=\"PassthroughCluster\""));

    let mut strict = config("sidecar~shop~client-2");
    strict.unknown = UnknownDestinations::Deny;
    let bed = Bed::start(strict, None).await;
    let got = bed.get(&url).await;
    assert_eq!((got.status, got.header("x-weft-flags")), (502, "NR"));
    assert!(got.body.contains("not in the mesh"), "{}", got.body);
    assert_eq!(outside.hits(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_does_not_call_itself() {
    let bed = Bed::sidecar(Vec::new()).await;
    let got = bed.get(&format!("http://{}/", bed.outbound())).await;
    assert_eq!(got.status, 502);
    assert!(got.body.contains("this proxy itself"), "{}", got.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn circuit_breakers_refuse_what_is_over_their_limit() {
    for limits in [
        Limits { requests_max: Some(2), ..Limits::default() },
        Limits { connections_max: Some(2), pending_max: Some(0), ..Limits::default() },
    ] {
        over_the_limit(limits).await;
    }
}

async fn over_the_limit(limits: Limits) {
    let stuck = Server::http(|_, _| std::future::pending()).await;
    let policy = BackendPolicy { limits, ..BackendPolicy::default() };
    let all = service("user", Protocol::Http1, policy, vec![endpoint("a", stuck.address)]);
    let bed = Bed::sidecar(all).await;
    let waiting = futures_util::future::join(bed.get("http://user/"), bed.get("http://user/"));
    let third = async {
        wait_until("two are in flight", || async { stuck.hits() == 2 }).await;
        bed.get("http://user/").await
    };
    tokio::select! {
        _ = waiting => panic!("nobody answers these"),
        got = third => assert_eq!((got.status, got.header("x-weft-flags")), (503, "UO")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forward_proxy_admits_only_its_own_app() {
    let user = Server::named("user").await;
    let mut config = config("sidecar~shop~client-1");
    config.credential = Some("pod:secret".into());
    let bed = Bed::start(config, None).await;
    bed.apply(1, http_service("user", &[user.address])).await;
    assert_eq!(bed.get("http://user/").await.status, 407);
    let with = |credential: &str| {
        Request::get("http://user/")
            .header("proxy-authorization", credential)
            .body(Full::default())
            .unwrap()
    };
    // base64 of pod:wrong!, then pod:secret
    assert_eq!(bed.send(with("Basic cG9kOndyb25nIQ==")).await.status, 407);
    assert_eq!(bed.send(with("Basic cG9kOnNlY3JldA==")).await.status, 200);
    assert_eq!(user.hits(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn gateway_routes_by_host_and_path_and_hides_the_inside() {
    let users = Server::named("users").await;
    let orders = Server::named("orders").await;
    let mut all = http_service("user", &[users.address]);
    all.extend(http_service("order", &[orders.address]));
    all.push(gateway(Some("*.example.com")));
    all.push(gateway_route(
        "shop",
        &[],
        vec![
            rule("/users", Action::Forward(vec![to("user", "", 1)])),
            rule("/orders", Action::Forward(vec![to("order", "", 1)])),
        ],
    ));
    let bed = Bed::gateway(all).await;
    let address = bed.listener();
    let at = |path: &'static str, host: &'static str| send(address, get(path, host));
    assert_eq!(at("/users/1", "a.example.com").await.body, "users");
    assert_eq!(at("/orders", "b.example.com:8000").await.body, "orders");
    let none = at("/else", "a.example.com").await;
    assert_eq!((none.status, none.header("x-weft-flags")), (404, "NR"));
    // Outside clients learn flag and request id only.
    assert_eq!(none.body.trim(), format!("NR {}", none.header("x-request-id")));
    assert_eq!(at("/users", "example.com").await.status, 404);
    assert_eq!(at("/usersx", "a.example.com").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_edit_headers_rewrite_redirect_and_answer() {
    let echo = Server::http(|_, request| async move {
        let line = format!(
            "{} {} {} {}",
            request.uri(),
            request.headers().get("host").unwrap().to_str().unwrap(),
            request.headers().get("x-set").map_or("-", |v| v.to_str().unwrap()),
            request.headers().contains_key("x-drop"),
        );
        text(200, line)
    })
    .await;
    let mut all = http_service("user", &[echo.address]);
    let mut rewriting = rule("/old", Action::Forward(vec![to("user", "", 1)]));
    rewriting.filters = vec![
        Filter::RequestHeaders(HeaderEdit {
            set: vec![("x-set".into(), "yes".into())],
            remove: vec!["x-drop".into()],
            ..HeaderEdit::default()
        }),
        Filter::ResponseHeaders(HeaderEdit {
            add: vec![("x-out".into(), "1".into())],
            ..HeaderEdit::default()
        }),
        Filter::Rewrite(Rewrite {
            host: Some("inner".into()),
            path: Some(PathRewrite::Prefix("/new".into())),
        }),
    ];
    let redirect = Redirect { scheme: Some("https".into()), status: 301, ..Redirect::default() };
    let direct = Action::Direct { status: 418, body: "tea".into() };
    let fail = Action::Fail { status: 500, reason: "spec.x is wrong".into() };
    all.push(mesh_route(
        "user",
        vec![
            rewriting,
            rule("/moved", Action::Redirect(redirect)),
            rule("/tea", direct),
            rule("/bad", fail),
        ],
    ));
    let bed = Bed::sidecar(all).await;
    let request = Request::get("http://user/old/a?q=1").header("x-drop", "1");
    let got = bed.send(request.body(Full::default()).unwrap()).await;
    assert_eq!((got.body.as_str(), got.header("x-out")), ("/new/a?q=1 inner yes false", "1"));
    let moved = bed.get("http://user/moved").await;
    assert_eq!((moved.status, moved.header("location")), (301, "https://user/moved"));
    assert_eq!(bed.get("http://user/tea").await.status, 418);
    let bad = bed.get("http://user/bad").await;
    assert_eq!(bad.status, 500);
    assert!(bad.body.contains("spec.x is wrong") && bad.body.contains("HTTPRoute shop/r"));
    assert_eq!(bed.get("http://user/none").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn upstream_ports_decide_whatever_host_the_program_names() {
    let echo = Server::http(|_, request| async move {
        text(200, request.headers().get("host").unwrap().as_bytes().to_vec())
    })
    .await;
    let bed = Bed::sidecar(http_service("user", &[echo.address])).await;
    let address = bed.door(|d| matches!(d, Door::Upstream { .. }));
    let got = send(address, get("/", &address.to_string())).await;
    assert_eq!(got.body, format!("{}:80", fqdn("user")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_terminates_tls_by_server_name() {
    let user = Server::named("user").await;
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec!["shop.example.com".to_owned()];
    let cert = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    let mut all = http_service("user", &[user.address]);
    let (name, mut listener) = gateway(Some("shop.example.com"));
    let tls = |key_pem: String| Some(ServerTls::new(cert.pem(), key_pem));
    let mut set = |tls| {
        if let Resource::Listener(Listener { kind: ListenerKind::Gateway(g), .. }) = &mut listener {
            g.sections[0].tls = tls;
        }
        (name.clone(), listener.clone())
    };
    let (good, bad) = (set(tls(key.serialize_pem())), set(tls("no key".into())));
    all.push(good);
    all.push(gateway_route("r", &[], vec![rule("/", Action::Forward(vec![to("user", "", 1)]))]));
    let bed = Bed::gateway(all).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(weft_identity::provider::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let connect = async |name: &'static str| {
        let tcp = tokio::net::TcpStream::connect(bed.listener()).await.unwrap();
        connector.connect(name.try_into().unwrap(), tcp).await
    };
    let told = connect("other.example.com").await.unwrap_err().to_string();
    assert!(told.contains("UnrecognisedName"), "{told}");
    // A key that cannot be used is refused by name, and the good one stays.
    let applied = bed.apply(2, vec![bad]).await;
    assert!(applied.rejected[0].reason.contains("key of listener \"http\""), "{applied:?}");
    let io = hyper_util::rt::TokioIo::new(connect("shop.example.com").await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    let tasks = weft_base::task::TaskGroup::new();
    tasks.spawn("client", async move { drop(connection.await) });
    let response = sender.send_request(get("/", "shop.example.com")).await.unwrap();
    assert_eq!(response.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_whose_only_certificate_cannot_be_used_answers_nothing() {
    let user = Server::named("user").await;
    let (name, mut listener) = gateway(None);
    if let Resource::Listener(Listener { kind: ListenerKind::Gateway(g), .. }) = &mut listener {
        g.sections[0].tls = Some(ServerTls::new("no certificate", "no key"));
    }
    let mut all = http_service("user", &[user.address]);
    all.push((name, listener));
    all.push(gateway_route("r", &[], vec![rule("/", Action::Forward(vec![to("user", "", 1)]))]));
    let bed = Bed::gateway(all).await;
    let mut client = client(bed.listener()).await;
    assert!(client.try_send(get("/", "a")).await.is_err(), "nor in plain text");
    assert_eq!(user.hits(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_clients_of_a_gateway_speak_says_nothing_of_a_port_that_declares_nothing() {
    let old = Server::http(|_, request: Request<hyper::body::Incoming>| async move {
        text(200, format!("{:?}", request.version()))
    })
    .await;
    let all = || {
        let mut all = http_service("old", &[]);
        all.push(endpoints_of("old", Protocol::Detect, vec![endpoint("old-0", old.address)]));
        all.push(gateway(None));
        all.push(gateway_route("r", &[], vec![rule("/", Action::Forward(vec![to("old", "", 1)]))]));
        all
    };
    let mut standalone = config("gateway~shop~web");
    standalone.follows_client = true;
    let beds = [Bed::gateway(all()).await, Bed::start(standalone, None).await];
    beds[1].apply(1, all()).await;
    let mut answered = Vec::new();
    for bed in &beds {
        let io = tokio::net::TcpStream::connect(bed.listener()).await.unwrap();
        let io = hyper_util::rt::TokioIo::new(io);
        let executor = hyper_util::rt::TokioExecutor::new();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(executor, io).await.unwrap();
        let tasks = weft_base::task::TaskGroup::new();
        tasks.spawn("client", async move { drop(connection.await) });
        let request = Request::get("http://a/").body(Full::<bytes::Bytes>::default()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
        answered.push(String::from_utf8(body.to_bytes().to_vec()).unwrap());
    }
    assert_eq!(answered, ["HTTP/1.1", "HTTP/2.0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_route_waits_for_its_backend() {
    let old = Server::named("old").await;
    let new = Server::named("new").await;
    let mut all = http_service("old", &[old.address]);
    all.push(gateway(None));
    let bed = Bed::gateway(all).await;
    let path = get("/", "a");
    assert_eq!(send(bed.listener(), path.clone()).await.status, 404);
    // Its backend is not known yet: 404 goes on, never a 503.
    let forward = |name| vec![rule("/", Action::Forward(vec![to(name, "", 1)]))];
    bed.apply(2, vec![gateway_route("r", &[], forward("new"))]).await;
    assert_eq!(send(bed.listener(), path.clone()).await.status, 404);
    bed.apply(3, http_service("new", &[new.address])).await;
    assert_eq!(send(bed.listener(), path.clone()).await.body, "new");
    // A change to a backend that is not there keeps the form before it.
    bed.apply(4, vec![gateway_route("r", &[], forward("newer"))]).await;
    assert_eq!(send(bed.listener(), path.clone()).await.body, "new");
    bed.apply(5, vec![gateway_route("r", &[], forward("old"))]).await;
    assert_eq!(send(bed.listener(), path).await.body, "old");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_resources_are_named_and_the_rest_applies() {
    let user = Server::named("user").await;
    let bed = Bed::sidecar(Vec::new()).await;
    let mut all = http_service("user", &[user.address]);
    let (_, misplaced) = backend("user", "", Labels::new(), BackendPolicy::default());
    all.push((Root::host("x.y").child("route/x"), misplaced));
    let applied = bed.apply(2, all).await;
    assert_eq!(applied.generation, 2);
    assert_eq!(applied.rejected.len(), 1);
    assert_eq!(applied.rejected[0].name, "host:x.y/route/x");
    assert_eq!(bed.get("http://user/").await.body, "user");
    // A port in use is told by the name of what wanted it, and taken once it is free.
    let taken = std::net::TcpListener::bind(("127.0.0.1", ports::free())).unwrap();
    let wanted = taken.local_addr().unwrap();
    let (name, mut listener) = gateway(None);
    if let Resource::Listener(Listener { kind: ListenerKind::Gateway(g), .. }) = &mut listener {
        g.bind = vec![wanted];
    }
    let applied = bed.apply(3, vec![(name, listener)]).await;
    assert_eq!(applied.rejected[0].name, "listener:shop/web/8000");
    assert!(applied.rejected[0].reason.contains("in use"), "{applied:?}");
    drop(taken);
    wait_until("the port is listened on", || async {
        tokio::net::TcpStream::connect(wanted).await.is_ok()
    })
    .await;
}

/// A listener of its own, on one address.
fn bound(name: &str, address: std::net::SocketAddr) -> (ResourceName, Resource) {
    let (_, Resource::Listener(mut listener)) = gateway(None) else { panic!("it is one") };
    listener.name = name.into();
    if let ListenerKind::Gateway(g) = &mut listener.kind {
        g.bind = vec![address];
    }
    (Root::listener(name).own(), Resource::Listener(listener))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_taken_whole_or_not_at_all() {
    let at = |port| std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let (wanted, other) = (at(ports::free()), at(ports::free()));
    let taken = std::net::TcpListener::bind(wanted).unwrap();
    let says = |body: &str| {
        let action = Action::Direct { status: 200, body: body.to_owned().into() };
        gateway_route("r", &[], vec![rule("/", action)])
    };
    let bed = Bed::gateway(vec![gateway(None), says("old")]).await;
    let whole = |generation, all: Vec<(ResourceName, Resource)>| {
        bed.feed.apply_whole(crate::ingest::source::transaction(generation, all).unwrap())
    };
    let answer = || async { send(bed.listener(), get("/", "a")).await.body };

    let (one, two) = (bound("one", other), bound("two", wanted));
    let all = vec![one.clone(), two.clone(), says("new")];
    let refused = whole(2, all.clone()).await.unwrap().unwrap_err();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(refused[0].name, "listener:two");
    let why = &refused[0].reason;
    assert!(why.starts_with("bind[0]: ") && why.contains("in use"), "{why}");
    assert_eq!(answer().await, "old");
    assert!(tokio::net::TcpStream::connect(other).await.is_err(), "what could be opened is closed");
    assert_eq!(bed.proxy.status().sockets().len(), 1);

    // Two that want the same one are told so before anything else.
    let refused = whole(3, vec![one.clone(), bound("two", other)]).await.unwrap().unwrap_err();
    assert!(refused[0].reason.contains("listener:one"), "{refused:?}");

    drop(taken);
    let applied = whole(4, all).await.unwrap().unwrap();
    assert_eq!(applied.rejected, []);
    assert_eq!(answer().await, "new");
    assert_eq!(send(wanted, get("/", "a")).await.status, 404);
    // What a listener has it keeps, and may pass on.
    let applied = whole(5, vec![bound("one", wanted), bound("two", other)]).await.unwrap().unwrap();
    assert_eq!(applied.rejected, []);
    for address in [wanted, other] {
        assert_eq!(send(address, get("/", "a")).await.status, 404);
    }
    let refused = whole(6, vec![bound("three", other)]).await.unwrap().unwrap_err();
    assert!(refused[0].reason.contains("listener:two's too"), "{refused:?}");

    // Who is touched and stays gives nothing up: every address of a port is in the way of one.
    let one = at(ports::free());
    let every = std::net::SocketAddr::from(([0, 0, 0, 0], one.port()));
    whole(7, vec![bound("one", every)]).await.unwrap().unwrap();
    let both = vec![bound("one", every), bound("four", one)];
    let refused = whole(8, both).await.unwrap().unwrap_err();
    assert_eq!((refused.len(), &*refused[0].name), (1, "listener:four"), "{refused:?}");
    assert_eq!(bed.proxy.status().sockets().len(), 3);
    // Who goes does.
    let moved = vec![bound("one", one), bound("four", other)];
    let refused = whole(9, moved).await.unwrap().unwrap_err();
    assert!(refused[0].reason.contains("listener:two's too"), "{refused:?}");
    assert_eq!(whole(10, vec![bound("one", one)]).await.unwrap().unwrap().rejected, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_passes_from_one_listener_to_another_at_once() {
    let user = Server::named("user").await;
    let (old, listener) = gateway(None);
    let Resource::Listener(mut listener) = listener else { panic!("it is one") };
    if let ListenerKind::Gateway(g) = &mut listener.kind {
        g.bind = vec![([127, 0, 0, 1], ports::free()).into()];
    }
    let mut all = http_service("user", &[user.address]);
    all.push((old.clone(), Resource::Listener(listener.clone())));
    let bed = Bed::gateway(all).await;
    let address = bed.listener();
    let root = Root::listener("shop/other/8000");
    listener.name = "shop/other/8000".into();
    if let ListenerKind::Gateway(g) = &mut listener.kind {
        g.bind = vec![address];
    }
    // First the same address for another root, then back and forth.
    let swap = |generation, name: ResourceName, resource, remove| {
        let encoded = weft_xds::codec::encode(&resource).unwrap();
        let upserts = weft_xds::Upsert {
            name,
            version: encoded.version,
            bytes: encoded.bytes.len(),
            resource: Ok(resource),
        };
        bed.feed.apply(weft_xds::Transaction {
            generation,
            upserts: vec![upserts],
            removes: vec![remove],
            ..weft_xds::Transaction::default()
        })
    };
    let mut first = listener.clone();
    first.name = "shop/web/8000".into();
    for i in 0..5 {
        let other = Resource::Listener(listener.clone());
        let applied = swap(2 + 2 * i, root.own(), other, old.clone()).await.unwrap();
        assert_eq!(applied.rejected, []);
        let back = Resource::Listener(first.clone());
        let applied = swap(3 + 2 * i, old.clone(), back, root.own()).await.unwrap();
        assert_eq!(applied.rejected, []);
        assert_eq!(send(address, get("/", "a")).await.status, 404);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_good_table_serves_without_a_server() {
    let user = Server::named("user").await;
    let dir = tempfile::tempdir().unwrap();
    let mut config = config("sidecar~shop~client-1");
    config.last_good = Some(dir.path().join("table.cbor"));
    let bed = Bed::start(config.clone(), None).await;
    assert!(!bed.proxy.status().is_configured());
    bed.apply(7, http_service("user", &[user.address])).await;
    bed.proxy.drain().await;

    let bed = Bed::start(config, None).await;
    assert!(bed.proxy.status().is_configured());
    assert_eq!(bed.proxy.held().len(), 3);
    assert_eq!(bed.get("http://user/").await.body, "user");
    bed.remove(8, vec![Root::host(fqdn("user")).own()]).await;
    let got = bed.get("http://user/").await;
    assert_eq!(got.status, 502, "{got:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_used_of_the_last_good_table_is_asked_for_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config("gateway~shop~web");
    config.last_good = Some(dir.path().join("table.cbor"));
    let (name, mut listener) = gateway(None);
    if let Resource::Listener(Listener { kind: ListenerKind::Gateway(g), .. }) = &mut listener {
        g.sections[0].tls = Some(ServerTls::new("garbage", "garbage"));
    }
    let mut resources = http_service("user", &[]);
    resources.push((name.clone(), listener));
    let bed = Bed::start(config.clone(), None).await;
    let applied = bed.apply(7, resources).await;
    assert_eq!(applied.rejected.len(), 1, "{applied:?}");
    bed.proxy.drain().await;

    let bed = Bed::start(config, None).await;
    let held = bed.proxy.held();
    let unknown = held.iter().filter(|(_, version)| *version == weft_xds::Version::default());
    let unknown: Vec<String> = unknown.map(|(name, _)| name.to_string()).collect();
    assert_eq!(unknown, [name.to_string()]);
    assert_eq!(held.len(), 4, "what is not named would never be removed");
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_swap_under_load_without_a_failed_request() {
    let a = Server::named("a").await;
    let b = Server::named("b").await;
    let bed = Bed::sidecar(http_service("user", &[a.address])).await;
    let outbound = bed.outbound();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let load = (0..4).map(|_| {
        let stop = stop.clone();
        async move {
            let mut client = client(outbound).await;
            let mut done = 0u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let got = client.send(get("http://user/", "user")).await;
                assert_eq!(got.status, 200, "{}", got.body);
                done += 1;
            }
            done
        }
    });
    let swaps = async {
        for generation in 2.. {
            let address = if generation % 2 == 0 { b.address } else { a.address };
            bed.apply(generation, http_service("user", &[address])).await;
            tokio::time::sleep(Duration::from_millis(2)).await;
            // However little of the machine the load has.
            if generation >= 201 && a.hits() + b.hits() > 400 {
                break;
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let (done, ()) = tokio::join!(futures_util::future::join_all(load), swaps);
    assert!(done.iter().all(|n| *n > 0), "{done:?}");
    assert!(a.hits() > 0 && b.hits() > 0);
}
