// SPDX-License-Identifier: Apache-2.0
//! What a server holds in memory, counted: for each registered instance with its check, and for
//! each query that waits. All parts that a registration passes are there: a store on disk, the
//! registry with its controllers (which mirror services for kubectl), the compiler, what proxies
//! would be pushed, and the Consul door on a socket.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use weft_base::clock::Clock;
use weft_base::snapshot::snapshot;
use weft_base::task::TaskGroup;
use weft_control::compile::Env;
use weft_control::mesh::Mesh;
use weft_control::push::{Driver, MeshNodes, Pusher};
use weft_kinds::views::catalog::{CheckRecord, NodeRecord, Registration, Status};
use weft_kinds::world::KindId;
use weft_registry::catalog::ServiceRequest;
use weft_registry::{Registry, WorldChange, controllers};
use weft_server::consul::{Config, Door};
use weft_store::{RedbStore, Retention};

mod sys;

#[global_allocator]
static ALLOCATOR: sys::Counting = sys::Counting;

/// What is held is of the whole process: one test at a time.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

struct Rig {
    registry: Registry,
    pusher: Pusher,
    address: std::net::SocketAddr,
    tasks: TaskGroup,
    _folder: tempfile::TempDir,
}

async fn rig() -> Rig {
    let folder = tempfile::tempdir().unwrap();
    let (clock, tasks) = (Clock::system(), TaskGroup::new());
    // What is kept of the log for watches is of one size, whatever is registered.
    let keep = Retention { events: 1_000, bytes: 64 * 1024, ..Retention::default() };
    let store = RedbStore::open_file(&folder.path().join("log"), clock.clone(), keep).unwrap();
    let registry = Registry::open(Arc::new(store), clock.clone(), tasks.clone()).await.unwrap();
    controllers::run(&registry);
    let pusher = control(&registry, clock, &tasks);
    let config = Config {
        node_name: "server".into(),
        node_id: "0190a6c8-0000-7000-8000-000000000001".into(),
        address: "127.0.0.1".parse().unwrap(),
        datacenter: "dc1".into(),
        version: "0.1.0".into(),
        hosts: Vec::new(),
    };
    let door = Door::new(&registry, config, &tasks);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks.spawn("consul door", door.serve(listener, tasks.clone()));
    Rig { registry, pusher, address, tasks, _folder: folder }
}

fn control(registry: &Registry, clock: Clock, tasks: &TaskGroup) -> Pusher {
    let (publisher, mesh) = snapshot(Mesh::default());
    let domain: Arc<str> = "weft.test".into();
    let world = registry.world();
    let nodes = MeshNodes { mesh, world, trust_domain: domain.clone() };
    let pusher = Pusher::start(Arc::new(nodes), clock, tasks);
    let env =
        Env { cluster_domain: "cluster.local".into(), trust_domain: domain, low_ports: false };
    let (world, mut watch) = registry.watch_world();
    let (mut driver, _) = Driver::start(env, &world, publisher, pusher.clone());
    tasks.spawn("compile", async move {
        while let Some(change) = watch.next().await {
            match change {
                WorldChange::Delta(world, delta) => driver.step(&world, &delta),
                WorldChange::Reset(world) => driver.reset(&world),
            };
        }
    });
    pusher
}

/// As the registry's bench has them: ten instances of a service, a hundred nodes.
fn request(n: usize) -> ServiceRequest {
    let (node, id) = (format!("n{}", n % 100), format!("i{n}"));
    let registration = Registration {
        id: id.as_str().into(),
        service: format!("s{}", n / 10).into(),
        node: node.as_str().into(),
        namespace: "default".into(),
        address: format!("10.{}.{}.{}", 1 + (n >> 16), (n >> 8) & 255, n & 255).into(),
        port: 8080,
        ..Registration::default()
    };
    let check = CheckRecord {
        id: format!("c{n}").into(),
        name: "alive".into(),
        initial: Status::Passing,
        ..CheckRecord::default()
    };
    let address = format!("10.9.0.{}", n % 100).into();
    let node = NodeRecord { node: node.as_str().into(), address, ..NodeRecord::default() };
    ServiceRequest { registration, checks: vec![check], node, ..ServiceRequest::default() }
}

impl Rig {
    /// Registers instances up to this number, and waits until everything follows.
    async fn fill(&self, from: usize, to: usize) {
        let all: Vec<usize> = (from..to).collect();
        for some in all.chunks(100) {
            let catalog = self.registry.catalog();
            let done = some.iter().map(|n| catalog.register_service(request(*n)));
            for done in futures_util::future::join_all(done).await {
                done.unwrap();
            }
        }
        until(|| self.mirrored() == to).await;
        let revision = self.registry.now().revision();
        until(|| self.pusher.generation() >= revision).await;
    }

    fn mirrored(&self) -> usize {
        let world = self.registry.now();
        let slices = world.objects(KindId::EndpointSlice, None);
        slices.map(|slice| slice.raw.fresh()["endpoints"].as_array().map_or(0, Vec::len)).sum()
    }

    async fn ask(&self, path: &str) -> TcpStream {
        self.ask_with(path, "").await
    }

    async fn ask_with(&self, path: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let length = body.len();
        let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}");
        let ask = format!("{head}\r\n\r\n{body}");
        stream.write_all(ask.as_bytes()).await.unwrap();
        stream
    }

    async fn blocked(&self) -> usize {
        let mut stream = self.ask("/v1/agent/metrics?format=prometheus").await;
        let text = answer(&mut stream).await;
        let line = text.lines().find(|line| line.contains("block") && !line.starts_with('#'));
        line.unwrap().rsplit(' ').next().unwrap().parse::<f64>().unwrap() as usize
    }
}

/// A whole answer.
async fn answer(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let length = stream.read(&mut piece).await.unwrap();
        assert!(length > 0, "ended early: {}", String::from_utf8_lossy(&text));
        text.extend_from_slice(&piece[..length]);
        let all = String::from_utf8_lossy(&text).into_owned();
        let Some((head, body)) = all.split_once("\r\n\r\n") else { continue };
        let head = head.to_ascii_lowercase();
        let size = head.split("content-length: ").nth(1).unwrap();
        if body.len() >= size.lines().next().unwrap().parse::<usize>().unwrap() {
            return all;
        }
    }
}

async fn until(mut holds: impl FnMut() -> bool) {
    while !holds() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// What each instance may take, the first thousand with all that is needed once included.
const EACH_BYTES_MAX: usize = 4 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_with_its_check_is_small() {
    let _turn = TURN.lock().await;
    let rig = rig().await;
    let (few, many) = (1_000, 3_000);
    let empty = sys::taken();
    rig.fill(0, few).await;
    let before = sys::taken();
    rig.fill(few, many).await;
    let (first, each) = ((before - empty) / few, (sys::taken() - before) / (many - few));
    println!("{first} bytes for each of the first {few} instances, {each} for each further one");
    assert!(first <= EACH_BYTES_MAX, "{first} bytes for each of the first {few} instances");
    assert!(each <= EACH_BYTES_MAX, "{each} bytes for each further instance");
    // The same for few and for many: neither is 1.5 times the other.
    assert!(first * 2 <= each * 3 && each * 2 <= first * 3, "{first} bytes, then {each}");
    rig.tasks.shutdown(Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_that_waits_is_small() {
    let _turn = TURN.lock().await;
    let rig = rig().await;
    rig.fill(0, 10).await;
    let text = answer(&mut rig.ask("/v1/health/service/s0").await).await.to_ascii_lowercase();
    let index = text.split("x-consul-index: ").nth(1).unwrap().lines().next().unwrap().to_owned();
    let path = format!("/v1/health/service/s0?index={index}&wait=300s");
    // Means nothing with a question, and is not kept.
    let body = "x".repeat(20_000);
    let mut waiting = Vec::new();
    let mut held = Vec::new();
    for _ in 0..2 {
        for _ in 0..200 {
            waiting.push(rig.ask_with(&path, &body).await);
        }
        while rig.blocked().await < waiting.len() {
            tokio::task::yield_now().await;
        }
        held.push(sys::held());
    }
    // The client's ends are of this process, too, and are the smaller part.
    let each = (held[1] - held[0]) / 200;
    println!("{each} bytes for each query that waits, its client's end included");
    assert!(each <= 4096, "{each} bytes for each query that waits");
    drop(waiting);
    rig.tasks.shutdown(Duration::from_secs(10)).await;
}
