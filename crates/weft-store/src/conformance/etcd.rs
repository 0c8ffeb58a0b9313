// SPDX-License-Identifier: Apache-2.0
//! The same sentences over a real etcd, one of its own for each test, and what only an etcd can
//! do: end leases by its own clock, be compacted by others, be shared, go away and come back.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use weft_base::clock::Clock;
use weft_base::task::TaskGroup;

use super::{Fixture, leased};
use crate::{
    Class, EtcdConfig, EtcdStore, EventKind, Op, Retention, Revision, Store, StoreError, Txn,
    WatchError,
};

/// Long enough for a loaded machine; nothing waits for it when all is well.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// One member, killed when it is dropped.
pub(super) struct Server {
    child: Child,
    dir: tempfile::TempDir,
    client: SocketAddr,
    peer: SocketAddr,
}

impl Server {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (client, peer) = (free_port(), free_port());
        let child = spawn(dir.path(), client, peer);
        Self { child, dir, client, peer }
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn restart(&mut self) {
        self.child = spawn(self.dir.path(), self.client, self.peer);
    }

    fn config(&self) -> EtcdConfig {
        EtcdConfig::parse(&format!("etcd://{}/t", self.client)).unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn client(&self) -> SocketAddr {
        self.client
    }

    pub async fn open(&self) -> Arc<dyn Store> {
        open(self.config()).await
    }

    pub async fn open_with(&self, retention: Retention, clock: Clock) -> Arc<dyn Store> {
        open_with(self.config(), clock, retention).await
    }

    async fn other(&self, prefix: &str) -> Arc<dyn Store> {
        open(EtcdConfig { prefix: prefix.into(), ..self.config() }).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, weft_testkit::ports::free()).into()
}

fn spawn(dir: &Path, client: SocketAddr, peer: SocketAddr) -> Child {
    #[allow(clippy::disallowed_methods)] // a test's peer is named by whoever runs it
    let program = std::env::var("WEFT_ETCD").unwrap_or_else(|_| "etcd".into());
    let (client, peer) = (format!("http://{client}"), format!("http://{peer}"));
    Command::new(&program)
        .arg("--data-dir")
        .arg(dir)
        .args(["--name", "one", "--unsafe-no-fsync"])
        .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("one={peer}")])
        .env("ETCD_UNSUPPORTED_ARCH", "arm64")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|e| panic!("{program}: {e}; install Debian's etcd-server or set WEFT_ETCD"))
}

pub(super) async fn open(config: EtcdConfig) -> Arc<dyn Store> {
    open_with(config, Clock::system(), Retention::default()).await
}

pub(super) async fn open_with(
    config: EtcdConfig,
    clock: Clock,
    retention: Retention,
) -> Arc<dyn Store> {
    Arc::new(engine(config, clock, retention).await)
}

/// The engine itself, once its etcd answers.
async fn engine(config: EtcdConfig, clock: Clock, retention: Retention) -> EtcdStore {
    let opened = async {
        loop {
            match EtcdStore::open(config.clone(), clock.clone(), retention).await {
                Ok(store) => return store,
                Err(StoreError::Unreachable { .. }) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(err) => panic!("{err}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, opened).await.expect("etcd answers")
}

pub(super) async fn fresh() -> Fixture {
    let server = Server::start();
    let store = server.open().await;
    let (clock, time) = Clock::manual();
    let server: Option<Box<dyn std::any::Any>> = Some(Box::new(server));
    Fixture { store, time, clock, retention: Retention::default(), dir: None, server }
}

pub(super) async fn put(store: &Arc<dyn Store>, op: Op) -> Revision {
    let out = store.txn(Txn::of([op])).await.unwrap();
    assert!(out.succeeded);
    out.revision
}

async fn keys(store: &Arc<dyn Store>) -> Vec<String> {
    let page = store.range("", 0, None).await.unwrap();
    page.entries.into_iter().map(|(k, _)| k.to_string()).collect()
}

#[tokio::test]
async fn etcd_ends_a_lease_that_nobody_keeps_alive() {
    let server = Server::start();
    let store = server.open().await;
    // Time enough for a sign of life on a machine that is busy.
    let life = Duration::from_secs(5);
    let short = store.lease_grant(life).await.unwrap();
    let kept = store.lease_grant(life).await.unwrap();
    put(&store, leased("/short", Class::Synced, short)).await;
    put(&store, leased("/kept", Class::Ephemeral, kept)).await;
    let from = put(&store, Op::put("/other", "x")).await;
    let mut watch = store.watch("/", from.next()).unwrap();
    let ended = async {
        loop {
            tokio::select! {
                events = watch.next() => return events.unwrap(),
                () = tokio::time::sleep(Duration::from_millis(300)) => {
                    let ttl = store.lease_keep_alive(kept).await.unwrap();
                    assert!(ttl >= life, "{ttl:?}");
                }
            }
        }
    };
    let events = tokio::time::timeout(PATIENCE, ended).await.unwrap();
    let told: Vec<_> = events.iter().map(|e| (&*e.key, e.kind, &*e.value)).collect();
    assert_eq!(told, [("/short", EventKind::Delete, &b"x"[..])]);
    assert!(matches!(store.lease_keep_alive(short).await, Err(StoreError::NoLease(_))));
    let late = store.txn(Txn::of([leased("/late", Class::Synced, short)])).await;
    assert!(matches!(late, Err(StoreError::NoLease(l)) if l == short), "{late:?}");
    assert_eq!(keys(&store).await, ["/kept", "/other"]);
    let renewals =
        |what| counted(&store, &format!("weft_store_lease_renewals_total{{result=\"{what}\"}}"));
    assert!(renewals("kept") > 0 && renewals("ended") == 1 && renewals("failed") == 0);
}

#[tokio::test]
async fn two_servers_see_one_log() {
    let server = Server::start();
    let (one, two) = (server.open().await, server.open().await);
    let mut watch = two.watch("/", Revision(1)).unwrap();
    let made = put(&one, Op::put("/a", "1")).await;
    let beat = put(&one, Op::put_ephemeral("/e", "beat")).await;
    assert_eq!(two.barrier().await.unwrap(), beat, "what one wrote, the other's barrier waits for");
    let told = watch.try_next().unwrap();
    assert_eq!(told.iter().map(|e| e.revision).collect::<Vec<_>>(), [made, beat]);
    let entry = two.get("/e").await.unwrap().1.unwrap();
    assert_eq!((entry.class, entry.lease), (Class::Ephemeral, None));
}

#[tokio::test]
async fn ephemeral_keys_end_with_the_server_that_wrote_them() {
    let server = Server::start();
    let config = server.config();
    let (clock, keep) = (Clock::system(), Retention::default());
    let two = server.open().await;
    let dies = open_with(config.clone(), clock.clone(), keep).await;
    let leaves = engine(config, clock, keep).await;
    put(&two, Op::put_ephemeral("/two", "x")).await;
    put(&dies, Op::put_ephemeral("/dies", "x")).await;
    put(&dies, Op::put("/stays", "x")).await;
    leaves.txn(Txn::of([Op::put_ephemeral("/leaves", "x")])).await.unwrap();
    assert_eq!(keys(&two).await, ["/dies", "/leaves", "/stays", "/two"]);
    leaves.leave().await.unwrap();
    assert_eq!(keys(&two).await, ["/dies", "/stays", "/two"], "at once when it goes by itself");
    let from = two.barrier().await.unwrap();
    let mut watch = two.watch("/", from.next()).unwrap();
    drop(dies);
    let told = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
    assert_eq!((&*told[0].key, told[0].kind), ("/dies", EventKind::Delete));
    assert_eq!(keys(&two).await, ["/stays", "/two"]);
    // One whose lease ended while it could not reach etcd begins another.
    leaves.txn(Txn::of([Op::put_ephemeral("/again", "x")])).await.unwrap();
    assert_eq!(keys(&two).await, ["/again", "/stays", "/two"]);
}

#[tokio::test]
async fn other_users_of_the_same_etcd_disturb_nothing() {
    let server = Server::start();
    let (ours, theirs) = (server.open().await, server.other("/theirs/").await);
    let made = put(&ours, Op::put("/a", "1")).await;
    for i in 0..20 {
        put(&theirs, Op::put(format!("/{i}"), "x")).await;
    }
    assert_eq!(ours.barrier().await.unwrap(), made, "their changes are no revision of ours");
    assert_eq!(put(&ours, Op::delete("/none")).await, made);
    assert_eq!(keys(&ours).await, ["/a"]);
    put(&ours, Op::DeletePrefix { prefix: "/".into() }).await;
    assert_eq!(keys(&theirs).await.len(), 20);
}

#[tokio::test]
async fn a_watch_goes_on_when_etcd_comes_back() {
    let mut server = Server::start();
    let store = server.open().await;
    let mut watch = store.watch("/", Revision(1)).unwrap();
    let first = put(&store, Op::put("/a", "1")).await;
    assert_eq!(watch.next().await.unwrap()[0].revision, first);
    server.kill();
    let err = store.txn(Txn::of([Op::put("/lost", "x")])).await.unwrap_err();
    assert!(matches!(err, StoreError::Unreachable { .. }), "{err}");
    assert!(store.get("/a").await.is_err());
    server.restart();
    let again = async {
        loop {
            match store.txn(Txn::of([Op::put("/b", "2")])).await {
                Ok(out) => return out.revision,
                Err(StoreError::Unreachable { .. }) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(err) => panic!("{err}"),
            }
        }
    };
    let second = tokio::time::timeout(PATIENCE, again).await.unwrap();
    let mut seen = Vec::new();
    while seen.last() != Some(&second) {
        seen.extend(watch.next().await.unwrap().iter().map(|e| e.revision));
    }
    assert!(seen.is_sorted(), "{seen:?}");
    // An operator sees it.
    assert!(counted(&store, "weft_store_reconnects_total") > 0);
    assert!(counted(&store, "weft_store_watch_resumes_total") > 0);
    assert!(counted(&store, "weft_store_etcd_calls_total{result=\"unreachable\"}") > 0);
    assert!(counted(&store, "weft_store_commit_duration_seconds_count") >= 2);
    assert_eq!(counted(&store, "weft_store_compactions_met_total"), 0);
}

#[tokio::test]
async fn a_server_that_was_away_while_etcd_was_compacted_has_all_watches_list_again() {
    let server = Server::start();
    let direct = server.open().await;
    let wire = Lagging::before(server.client).await;
    let config = EtcdConfig::parse(&format!("etcd://{}/t", wire.address)).unwrap();
    let reader = open(config).await;
    let first = put(&direct, Op::put("/a", "1")).await;
    assert_eq!(reader.barrier().await.unwrap(), first);
    let mut watch = reader.watch("/", first.next()).unwrap();
    wire.lag(60_000);
    for n in ["2", "3"] {
        put(&direct, Op::put("/a", n)).await;
    }
    direct.compact(direct.barrier().await.unwrap()).await.unwrap();
    wire.lag(0);
    let told = tokio::time::timeout(PATIENCE, watch.next()).await;
    let why = told.expect("it is told").unwrap_err();
    assert!(matches!(why, WatchError::Compacted { .. } | WatchError::TooSlow), "{why}");
    assert_eq!(reader.get("/a").await.unwrap().1.unwrap().value, "3");
    assert!(counted(&reader, "weft_store_compactions_met_total") > 0);
    assert!(counted(&reader, "weft_store_reconnects_total") > 0);
}

/// A count as an operator reads it.
pub(super) fn counted(store: &Arc<dyn Store>, name: &str) -> u64 {
    let text = store.meter().unwrap().text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name}: {text}")).parse().unwrap()
}

#[tokio::test]
async fn what_etcd_forgot_is_listed_again() {
    let mut server = Server::start();
    let (reader, writer) = (server.open().await, server.open().await);
    let first = put(&writer, Op::put("/a", "1")).await;
    reader.barrier().await.unwrap();
    let mut watch = reader.watch("/", Revision(1)).unwrap();
    watch.next().await.unwrap();
    // While nobody can read, nothing can be compacted either: the reader must miss it. A second
    // engine that opens after the compaction stands for one that was away.
    let last = put(&writer, Op::put("/a", "2")).await;
    writer.compact(last).await.unwrap();
    server.kill();
    server.restart();
    let late = server.open().await;
    let err = late.watch("/", first).unwrap_err();
    assert!(matches!(err, WatchError::Compacted { .. }), "{err}");
    assert_eq!(late.get("/a").await.unwrap().1.unwrap().value, "2");
    let after = put(&late, Op::put("/a", "3")).await;
    let mut watch = late.watch("/", after).unwrap();
    assert_eq!(watch.next().await.unwrap()[0].prev.as_deref(), Some(&b"2"[..]));
}

#[tokio::test]
async fn a_revision_that_comes_in_fragments_is_told_whole() {
    let server = Server::start();
    let store = server.open().await;
    let ops = |n: char| ["/a", "/b"].map(|key| Op::put(key, n.to_string().repeat(700_000)));
    let first = store.txn(Txn::of(ops('1'))).await.unwrap().revision;
    store.barrier().await.unwrap();
    let mut watch = store.watch("/", first.next()).unwrap();
    // With what was there before, these events are over the 2 MiB that etcd sends at once.
    let second = store.txn(Txn::of(ops('2'))).await.unwrap().revision;
    let events = watch.next().await.unwrap();
    let told: Vec<_> = events.iter().map(|e| (&*e.key, e.revision)).collect();
    assert_eq!(told, [("/a", second), ("/b", second)]);
    assert!(events.iter().all(|e| e.prev.as_ref().is_some_and(|p| p.starts_with(b"1"))));
    assert_eq!(store.barrier().await.unwrap(), second);
}

/// Stands before a member: what it is asked arrives late, or nothing does for a while, and its
/// connections can be cut.
pub(super) struct Lagging {
    address: SocketAddr,
    late_ms: Arc<AtomicU64>,
    cuts: watch::Sender<u64>,
    held: watch::Sender<bool>,
    /// Bytes that it was sent and that wait.
    waiting: watch::Sender<usize>,
    tasks: TaskGroup,
}

impl Lagging {
    pub async fn before(member: SocketAddr) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cuts, tasks) = (watch::Sender::new(0), TaskGroup::new());
        let late_ms: Arc<AtomicU64> = Arc::default();
        let (held, waiting) = (watch::Sender::new(false), watch::Sender::new(0));
        let (late, cut, group) = (late_ms.clone(), cuts.clone(), tasks.clone());
        let hold = (held.clone(), waiting.clone());
        tasks.spawn("lagging member", async move {
            while let Ok((client, _)) = listener.accept().await {
                let (late, mut cut, hold) = (late.clone(), cut.subscribe(), hold.clone());
                group.spawn("lagging connection", async move {
                    tokio::select! {
                        _ = cut.changed() => {}
                        () = carry(client, member, &late, &hold) => {}
                    }
                });
            }
        });
        Self { address, late_ms, cuts, held, waiting, tasks }
    }

    /// From now on nothing arrives, in either direction, on any connection; or again all of it.
    pub fn hold(&self, held: bool) {
        self.waiting.send_replace(0);
        self.held.send_replace(held);
    }

    /// Resolves when it was sent something that does not arrive.
    pub async fn is_sent_something(&self) {
        self.waiting.subscribe().wait_for(|bytes| *bytes > 0).await.unwrap();
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn lag(&self, late_ms: u64) {
        self.late_ms.store(late_ms, Ordering::SeqCst);
        self.cuts.send_modify(|n| *n += 1);
    }
}

impl Drop for Lagging {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

async fn carry(
    client: TcpStream,
    member: SocketAddr,
    late_ms: &AtomicU64,
    (held, waiting): &(watch::Sender<bool>, watch::Sender<usize>),
) {
    let passes = async || held.subscribe().wait_for(|held| !*held).await.is_ok();
    let Ok(member) = TcpStream::connect(member).await else { return };
    let ((mut asked, mut back), (mut told, mut ask)) = (client.into_split(), member.into_split());
    let (sender, mut queue) = mpsc::channel(1024);
    let read = async {
        let mut bytes = vec![0; 65_536];
        while let Ok(n @ 1..) = asked.read(&mut bytes).await {
            let late = Duration::from_millis(late_ms.load(Ordering::SeqCst));
            let due = tokio::time::Instant::now() + late;
            if *held.borrow() {
                waiting.send_modify(|bytes| *bytes += n);
            }
            if sender.send((due, bytes[..n].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let write = async {
        while let Some((due, bytes)) = queue.recv().await {
            tokio::time::sleep_until(due).await;
            if !passes().await || ask.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    let answer = async {
        let mut bytes = vec![0; 65_536];
        while let Ok(n @ 1..) = told.read(&mut bytes).await {
            if !passes().await || back.write_all(&bytes[..n]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = read => {}
        () = write => {}
        () = answer => {}
    }
}

#[tokio::test]
async fn a_watch_begins_and_stays_with_members_that_answer_late() {
    let server = Server::start();
    let direct = server.open().await;
    let (one, two) = (Lagging::before(server.client).await, Lagging::before(server.client).await);
    let members = format!("etcd://{},{}/t", one.address, two.address);
    let store = open(EtcdConfig::parse(&members).unwrap()).await;
    let first = put(&direct, Op::put("/a", "1")).await;
    store.barrier().await.unwrap();
    let mut watch = store.watch("/", first).unwrap();
    assert_eq!(watch.next().await.unwrap()[0].revision, first);
    // Later than the time after which another member is looked for.
    one.lag(1_500);
    two.lag(1_500);
    let second = put(&direct, Op::put("/a", "2")).await;
    let told = tokio::time::timeout(PATIENCE, watch.next()).await;
    assert_eq!(told.expect("the watch begins").unwrap()[0].revision, second);
    let resumed = || counted(&store, "weft_store_watch_resumes_total");
    let before = resumed();
    for n in ["3", "4", "5"] {
        // A call that is late tells nothing of the watch.
        assert!(store.get("/a").await.unwrap().1.is_some());
        let next = put(&direct, Op::put("/a", n)).await;
        let told = tokio::time::timeout(PATIENCE, watch.next()).await;
        assert_eq!(told.expect("it is told").unwrap()[0].revision, next);
    }
    assert_eq!(resumed(), before, "the watch stays");
}
