// SPDX-License-Identifier: Apache-2.0
//! What a warm worker asks the allocator for: nothing per HTTP/1 request, and no more than was
//! counted per HTTP/2 request. A real proxy with one
//! worker, real sockets, metrics, routing, trace headers and an access log of every request.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use weft_base::clock::Clock;
use weft_model::*;
use weft_proxy::config::{LogWhat, Ports};
use weft_proxy::ingest::source::{Feed, transaction};
use weft_proxy::table::Door;
use weft_proxy::{NodeId, Proxy, ProxyConfig, feed};

mod exhausted;
mod http2;
mod sys;
mod tables;

#[global_allocator]
static ALLOCATOR: sys::Counting = sys::Counting;

/// The count is of all workers of this process: one test at a time.
static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

const CLIENTS: usize = 8;
/// Of a round.
const REQUESTS: usize = 2_000;
/// Rounds before anything is counted, and after that until one is as it should be.
const WARM: usize = 2;
const ROUNDS: usize = 20;

/// An upstream with a thread for each connection; answers every head with 1 KiB.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                stream.set_nodelay(true).unwrap();
                let head = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\
                            date: Sat, 21 Nov 2026 09:00:00 GMT\r\ncontent-length: 1024\r\n\r\n";
                let answer = format!("{head}{}", "x".repeat(1024));
                while read_head(&mut stream).is_some() {
                    if stream.write_all(answer.as_bytes()).is_err() {
                        break;
                    }
                }
            });
        }
    });
    address
}

fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    Some(String::from_utf8(head).unwrap())
}

fn ask(client: &mut TcpStream) {
    client.write_all(b"GET /users/7?x=1 HTTP/1.1\r\nhost: shop.example\r\n\r\n").unwrap();
    let head = read_head(client).unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    let mut body = [0; 1024];
    client.read_exact(&mut body).unwrap();
}

/// A gateway with one route to one backend.
fn resources(upstream: SocketAddr, protocol: Protocol) -> Vec<(ResourceName, Resource)> {
    let service: Arc<str> = "users.shop.svc.cluster.local".into();
    let (host, door) = (Root::host(service.clone()), Root::listener("shop/web/80"));
    let origin = Origin {
        kind: "HTTPRoute".into(),
        namespace: "shop".into(),
        name: "users".into(),
        field: "spec.rules[0]".into(),
    };
    let endpoint = Endpoint {
        id: "users-1".into(),
        address: upstream,
        labels: Labels::new(),
        locality: Locality::default(),
        weight: 1,
        health: Health::Healthy,
        identity: None,
        transport: Transport::Plaintext,
        workload: "users".into(),
        mesh_address: None,
    };
    let port = HostPort {
        port: 80,
        name: "http".into(),
        protocol,
        backend: backend_child(80, "").into(),
        upstream_port: None,
    };
    let backend = Backend {
        service: service.clone(),
        port: 80,
        subset: "".into(),
        selector: Labels::new(),
        policy: BackendPolicy::default(),
        origin: None,
    };
    let set = EndpointSet {
        service: service.clone(),
        namespace: "shop".into(),
        port: 80,
        protocol,
        endpoints: vec![endpoint],
    };
    let target = Target::Backend(host.child(backend_child(80, "")));
    let share = WeightedBackend { target, weight: 1, filters: Vec::new() };
    let rule = Rule {
        name: "".into(),
        matches: vec![Match {
            path: Some(PathMatch::ElementPrefix("/users".into())),
            ..Match::default()
        }],
        filters: Vec::new(),
        action: Action::Forward(vec![share]),
        timeouts: Timeouts { request_ms: Some(15_000), ..Timeouts::default() },
        retry: Retry::default(),
        session: None,
        origin: origin.clone(),
        sources: weft_model::Sources::default(),
    };
    let route = Route {
        parent: Parent::Listener {
            root: door.clone(),
            sections: vec!["http".into()],
            hostnames: vec!["shop.example".into()],
        },
        scope: Scope::Any,
        matching: Matching::MostSpecific,
        rank: Rank { dialect: Dialect::ProducerHttpRoute, created_ms: 0, name: "users".into() },
        rules: vec![rule],
        origin,
    };
    let section = Section { name: "http".into(), hostname: None, protocol, tls: None };
    let listener = GatewayListener {
        bind: vec!["127.0.0.1:0".parse().unwrap()],
        sections: vec![section],
        edge: Edge::default(),
        proxy_header: Default::default(),
        backend_certificate: None,
        limits: None,
    };
    let kind = ListenerKind::Gateway(listener);
    let listener = Listener { name: "shop/web/80".into(), kind, origin: None };
    let named = Host { name: service, aliases: vec![], addresses: vec![], ports: vec![port] };
    vec![
        (host.own(), Resource::Host(named)),
        (host.child(backend_child(80, "")), Resource::Backend(backend)),
        (host.child(endpoints_child(80)), Resource::Endpoints(set)),
        (door.own(), Resource::Listener(listener)),
        (door.child("route/httproute/shop/users"), Resource::Route(route)),
    ]
}

async fn start(
    log: &std::path::Path,
    upstream: SocketAddr,
    protocol: Protocol,
) -> (Proxy, Feed, SocketAddr) {
    let mut config = ProxyConfig::new(NodeId::parse("gateway~shop~web").unwrap());
    config.ports = Ports { admin: 0, outbound: 0, mesh: 0, metrics: 0, ready: 0, peers: 0 };
    config.access_log.what = LogWhat::Everything;
    config.access_log.path = Some(log.into());
    let (feed, deliveries) = feed();
    let proxy = Proxy::start(config, None, deliveries, Clock::system()).await.unwrap();
    feed.apply(transaction(1, resources(upstream, protocol)).unwrap()).await.unwrap();
    let sockets = proxy.status().sockets();
    let door = sockets.iter().find(|(door, _)| matches!(door, Door::Gateway(_))).unwrap().1;
    (proxy, feed, door)
}

#[test]
fn a_warm_worker_allocates_nothing_per_http1_request() {
    let _turn = TURN.lock().unwrap_or_else(|broken| broken.into_inner());
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("access.log");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (proxy, _feed, door) = runtime.block_on(start(&log, upstream(), Protocol::Http1));
    let mut clients: Vec<TcpStream> =
        (0..CLIENTS).map(|_| TcpStream::connect(door).unwrap()).collect();
    let mut ask_all = |times: usize| {
        for i in 0..times {
            ask(&mut clients[i % CLIENTS]);
        }
    };
    let mut asked = 0;
    let mut round = || {
        let before = sys::of_workers();
        ask_all(REQUESTS);
        let allocations = sys::of_workers() - before;
        asked += REQUESTS;
        runtime.block_on(written(&log, asked));
        allocations
    };
    for _ in 0..WARM {
        round();
    }
    // What is per request is there every time; a writer that the machine holds up is not.
    let mut least = u64::MAX;
    for _ in 0..ROUNDS {
        least = least.min(round());
        if least <= MOST {
            break;
        }
    }
    println!("{least} allocations in {REQUESTS} requests");
    assert!(least <= MOST, "{least} allocations in {REQUESTS} requests");
    drop(clients);
    assert!(runtime.block_on(proxy.drain()));
}

/// Waits until every request has its line: so many do not overrun a writer that is held up.
async fn written(log: &std::path::Path, lines: usize) {
    let all = || std::fs::read_to_string(log).unwrap_or_default().lines().count() == lines;
    let waiting = async {
        while !all() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), waiting).await;
    waited.expect("every request has its line");
}

/// Not per request: a text for lines of the log, while the writer still has the others.
const MOST: u64 = 4;
