// SPDX-License-Identifier: Apache-2.0
//! Two and three servers on one store, which is in memory here: who leads, and what a server that
//! was paused may still do.

use serde_json::json;
use weft_base::clock::ManualClock;
use weft_kinds::kind::KindId;
use weft_kinds::views::catalog::{CheckRecord, NodeRecord, Registration, Status};
use weft_kinds::views::check::{CheckDefinition, Probe};
use weft_kinds::world::CheckKey;
use weft_store::MemoryStore;

use super::*;
use crate::catalog::ServiceRequest;
use crate::consul::Session;
use crate::hosts::{HostInfo, Hosts};
use crate::servers::{self, Said};
use crate::{ObjectError, Registry, WriteOptions, controllers};

mod gone;

struct Server {
    name: &'static str,
    registry: Registry,
    tasks: TaskGroup,
    store: Arc<dyn Store>,
}

struct Rig {
    store: Arc<dyn Store>,
    clock: Clock,
    time: Arc<ManualClock>,
}

impl Rig {
    fn new() -> Self {
        let (clock, time) = Clock::manual();
        Self { store: Arc::new(MemoryStore::new(clock.clone())), clock, time }
    }

    async fn server(&self, name: &'static str) -> Server {
        let (tasks, store) = (TaskGroup::new(), self.store.clone());
        let leader = Leader::among(name, self.clock.clone());
        let said = Said { run: leader.run_id().into(), place: name.into(), ..Said::default() };
        let own = servers::Server::claim(store.clone(), name, said).await.unwrap();
        let opened = Registry::open_as(store.clone(), self.clock.clone(), tasks.clone(), leader);
        let registry = opened.await.unwrap();
        let staying = registry.clone();
        tasks.spawn("among servers", async move { own.stay(&staying).await });
        Server { name, registry, tasks, store }
    }

    /// Lets time pass a little at a time until something holds.
    async fn until(&self, what: &str, holds: impl Fn() -> bool) {
        // A minute of the servers' time: leases and looks take a few seconds of it, one by one.
        for _ in 0..3_000 {
            if holds() {
                return;
            }
            self.time.advance(Duration::from_millis(20));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("never: {what}");
    }
}

impl Server {
    fn leads(&self) -> bool {
        self.registry.leader().is_here()
    }

    async fn kill(self) {
        // As a kill: nothing is handed over. Dropping the tasks' group stops them.
        self.tasks.stop();
        // As its lease in etcd would.
        let over = Op::delete(format!("{SERVERS}{}", self.name));
        self.store.txn(Txn::of([over])).await.unwrap();
    }
}

#[tokio::test]
async fn one_leads_and_another_follows_when_it_is_gone() {
    let rig = Rig::new();
    let a = rig.server("a").await;
    rig.until("a leads", || a.leads()).await;
    let b = rig.server("b").await;
    rig.until("b knows", || b.registry.leader().who().as_deref() == Some("a")).await;
    assert!(!b.leads());
    a.kill().await;
    rig.until("b leads", || b.leads()).await;
    assert_eq!(b.registry.leader().times(), 1);
    let c = rig.server("c").await;
    rig.until("c knows", || c.registry.leader().who().as_deref() == Some("b")).await;
    // One that ends by itself hands over at once: no time passes.
    b.tasks.shutdown(Duration::from_secs(5)).await;
    let (_, left) = rig.store.get(KEY).await.unwrap();
    assert!(left.is_none_or(|entry| entry.value == "c"));
    rig.until("c leads", || c.leads()).await;
}

#[tokio::test]
async fn a_leader_that_was_overtaken_writes_nothing() {
    let rig = Rig::new();
    let a = rig.server("a").await;
    rig.until("a leads", || a.leads()).await;
    let config = json!({ "metadata": { "name": "x", "namespace": "default" } });
    let objects = a.registry.objects();
    objects.create(KindId::ConfigMap, "default", config, WriteOptions::SYSTEM).await.unwrap();
    // What it decided while it led, written after another took over while it was paused.
    let paused = a.registry.objects().as_leader();
    let fence = a.registry.leader().fence().unwrap();
    let put = Op::put(KEY, "another");
    rig.store.txn(Txn::of([put])).await.unwrap();
    let late = paused
        .modify(
            crate::Change {
                kind: KindId::ConfigMap,
                namespace: "default",
                name: "x",
                part: crate::Part::All,
                options: WriteOptions::SYSTEM,
            },
            |old| {
                let mut new = old.clone();
                new["data"] = json!({ "stale": "yes" });
                Ok(new)
            },
        )
        .await;
    assert!(matches!(late, Err(ObjectError::Busy(_))), "{late:?}");
    let stale = Txn::of([Op::put("/o/x", "stale")]).when(fence);
    assert!(!rig.store.txn(stale).await.unwrap().succeeded);
    rig.until("a knows that it does not lead", || !a.leads()).await;
}

#[tokio::test]
async fn controllers_run_where_the_leader_is() {
    let rig = Rig::new();
    let (a, b) = (rig.server("a").await, rig.server("b").await);
    rig.until("one leads", || a.leads() != b.leads()).await;
    controllers::run(&a.registry);
    controllers::run(&b.registry);
    let (leads, follows) = if a.leads() { (a, b) } else { (b, a) };
    let settled = || {
        let world = follows.registry.now();
        world.objects(KindId::ServiceAccount, None).count() >= 2
    };
    rig.until("accounts are made", settled).await;
    assert_eq!(follows.registry.stats().reconciles, 0);
    assert!(leads.registry.stats().reconciles > 0);
    leads.kill().await;
    rig.until("the other leads", || follows.leads()).await;
    let namespace = json!({ "metadata": { "name": "new" } });
    let objects = follows.registry.objects();
    objects.create(KindId::Namespace, "", namespace, WriteOptions::SYSTEM).await.unwrap();
    let made = || {
        let world = follows.registry.now();
        world.get(KindId::ServiceAccount, "new", "default").is_some()
    };
    rig.until("its account is made", made).await;
}

fn ttl_check() -> (CheckKey, ServiceRequest) {
    let probe = Probe::Ttl { ttl_ms: 3_000 };
    let definition = CheckDefinition { probe, agent: true, ..CheckDefinition::default() };
    let check = CheckRecord {
        id: "ttl".into(),
        name: "ttl".into(),
        node: "n".into(),
        namespace: "default".into(),
        service_id: "web".into(),
        definition: Some(weft_kinds::views::catalog::Packed::new(&definition).unwrap()),
        ..CheckRecord::default()
    };
    let registration = Registration {
        id: "web".into(),
        service: "web".into(),
        node: "n".into(),
        namespace: "default".into(),
        ..Registration::default()
    };
    let node = NodeRecord { node: "n".into(), address: "127.0.0.1".into(), ..<_>::default() };
    let key = crate::catalog::check_key(&check);
    let request = ServiceRequest {
        registration,
        checks: vec![check],
        replace_checks: true,
        node,
        ..ServiceRequest::default()
    };
    (key, request)
}

/// Registered with one server and renewed with another, a check lives; when it is renewed nowhere,
/// it ends once.
#[tokio::test]
async fn a_heartbeat_counts_whichever_server_hears_it() {
    let rig = Rig::new();
    let (a, b) = (rig.server("a").await, rig.server("b").await);
    rig.until("one leads", || a.leads() != b.leads()).await;
    let (key, request) = ttl_check();
    a.registry.catalog().register_service(request).await.unwrap();
    let status = |s: &Server| s.registry.now().catalog().status(&key);
    a.registry.catalog().report_ttl(&key, Status::Passing, "").await.unwrap();
    rig.until("b sees it", || status(&b) == Status::Passing).await;
    for _ in 0..10 {
        b.registry.catalog().report_ttl(&key, Status::Passing, "").await.unwrap();
        for _ in 0..2 {
            rig.time.advance(Duration::from_secs(1));
            a.registry.catalog().tick().await;
            b.registry.catalog().tick().await;
            assert_eq!((status(&a), status(&b)), (Status::Passing, Status::Passing));
        }
    }
    // Not the whole store's revision: so much time has passed that who leads is decided again.
    let written = async || {
        let results = rig.store.range("/e/k/", 0, None).await.unwrap().entries;
        results.iter().map(|(_, result)| result.modified).collect::<Vec<_>>()
    };
    let before = written().await;
    for _ in 0..20 {
        b.registry.catalog().report_ttl(&key, Status::Passing, "").await.unwrap();
    }
    assert_eq!(before.len(), 1);
    assert_eq!(written().await, before, "an unchanged heartbeat writes nothing");
    rig.until("it expires", || status(&a) == Status::Critical).await;
}

/// A leader that was overtaken does not know it yet when a session's time ends and a host falls
/// silent: what the others make of it stands.
#[tokio::test]
async fn a_leader_that_was_overtaken_ends_no_session_and_no_host() {
    let rig = Rig::new();
    let a = rig.server("a").await;
    rig.until("a leads", || a.leads()).await;
    Hosts::start(a.registry.clone(), "a", &a.tasks).await.unwrap();
    let b = rig.server("b").await;
    let heard = Hosts::start(b.registry.clone(), "b", &b.tasks).await.unwrap();
    heard.join("m1", false, "j1", &json!("placed")).await.unwrap();
    heard.heartbeat(&host("m1")).await.unwrap();
    let node = NodeRecord { node: "n".into(), address: "127.0.0.1".into(), ..<_>::default() };
    b.registry.catalog().register_node(&node, true).await.unwrap();
    let session = Session {
        id: "s1".into(),
        namespace: "default".into(),
        node: "n".into(),
        ttl_ms: 10_000,
        ..Session::default()
    };
    b.registry.consul().create_session(session).await.unwrap();
    let lives = || a.registry.consul().state().session("s1").is_some();
    rig.until("a sees the session", lives).await;
    b.kill().await;

    let beat = crate::consul::keys::beat("s1");
    let over = [Op::put(KEY, "another"), Op::delete(beat.clone()), Op::delete("/e/h/m1")];
    rig.store.txn(Txn::of(over)).await.unwrap();
    let told = || a.registry.consul().state().item(&beat).is_none();
    rig.until("a knows what ended, and not that it leads no more", told).await;
    rig.until("a knows that it does not lead", || !a.leads()).await;
    assert!(lives(), "the session is the other's to end");
    let world = a.registry.now();
    let node = world.get(KindId::Node, "", "m1").unwrap();
    assert!(crate::nodes::is_ready(&node.raw), "and so is the host");
}

fn host(name: &str) -> HostInfo {
    HostInfo {
        node: crate::NodeInfo {
            name: name.into(),
            address: "10.9.0.2".parse().unwrap(),
            version: "weft-1".into(),
            kernel: "6".into(),
            cpus: 2,
            memory_bytes: 1 << 30,
            pods_max: 110,
        },
        addresses: vec!["10.9.0.2".parse().unwrap()],
        labels: <_>::default(),
        boot_id: "b".into(),
        instance: "i1".into(),
    }
}

/// The server that heard a check is gone, and what it heard stands: whoever leads counts anew.
#[tokio::test]
async fn a_check_whose_server_is_gone_is_minded_by_the_leader() {
    let rig = Rig::new();
    let (a, b) = (rig.server("a").await, rig.server("b").await);
    rig.until("one leads", || a.leads() != b.leads()).await;
    let (leads, other) = if a.leads() { (a, b) } else { (b, a) };
    let (key, request) = ttl_check();
    other.registry.catalog().register_service(request).await.unwrap();
    other.registry.catalog().report_ttl(&key, Status::Passing, "").await.unwrap();
    let status = || leads.registry.now().catalog().status(&key);
    rig.until("it is seen", || status() == Status::Passing).await;
    let run: Arc<str> = other.registry.leader().run_id().into();
    other.kill().await;
    rig.until("it is gone", || !leads.registry.leader().is_there(&run)).await;
    assert_eq!(status(), Status::Passing, "a server's end says nothing of a check");
    leads.registry.catalog().tick().await;
    rig.time.advance(Duration::from_millis(2_000));
    leads.registry.catalog().tick().await;
    assert_eq!(status(), Status::Passing, "not before its time to live");
    rig.until("it expires", || status() == Status::Critical).await;
}

/// The leader itself is gone with what it heard: who leads next had no part in it.
#[tokio::test]
async fn who_leads_next_gives_each_check_its_whole_time() {
    let rig = Rig::new();
    let a = rig.server("a").await;
    rig.until("a leads", || a.leads()).await;
    let b = rig.server("b").await;
    let (key, request) = ttl_check();
    // b heard it once, long ago.
    b.registry.catalog().register_service(request).await.unwrap();
    b.registry.catalog().report_ttl(&key, Status::Passing, "").await.unwrap();
    let status = || b.registry.now().catalog().status(&key);
    let by = || b.registry.now().catalog().result(&key).map(|r| r.by.clone());
    let run: Arc<str> = a.registry.leader().run_id().into();
    a.registry.catalog().report_ttl(&key, Status::Passing, "").await.unwrap();
    rig.until("b sees that a heard it", || by().as_ref() == Some(&run)).await;
    for _ in 0..4 {
        rig.time.advance(Duration::from_secs(1));
        a.registry.catalog().report_ttl(&key, Status::Passing, "").await.unwrap();
        b.registry.catalog().tick().await;
    }
    a.kill().await;
    rig.until("b leads", || b.leads()).await;
    b.registry.catalog().tick().await;
    assert_eq!(status(), Status::Passing, "it has its whole time from now on");
    rig.until("it expires", || status() == Status::Critical).await;
}

/// What aliases are is written by whoever leads, and would end with the one that led.
#[tokio::test]
async fn a_new_leader_takes_over_what_aliases_are() {
    let rig = Rig::new();
    let (a, b) = (rig.server("a").await, rig.server("b").await);
    rig.until("one leads", || a.leads() != b.leads()).await;
    let (leads, other) = if a.leads() { (a, b) } else { (b, a) };
    let (mut key, mut request) = ttl_check();
    key.id = "alias".into();
    let probe = Probe::Alias { node: String::new(), service_id: "web".into() };
    let definition = CheckDefinition { probe, agent: true, ..CheckDefinition::default() };
    let alias = CheckRecord {
        id: key.id.clone(),
        node: "n".into(),
        namespace: "default".into(),
        ..CheckRecord::default()
    };
    request.checks.clear();
    let node = request.node.clone();
    let catalog = leads.registry.catalog();
    catalog.register_service(request).await.unwrap();
    catalog.register_check(&node, alias.with(&definition)).await.unwrap();
    let by = || {
        let world = other.registry.now();
        world.catalog().result(&key).map(|r| (r.status, r.by.clone())).unwrap_or_default()
    };
    let is_by =
        |server: &Server| by() == (Status::Passing, server.registry.leader().run_id().into());
    rig.until("it is worked out", || is_by(&leads)).await;
    leads.kill().await;
    rig.until("the other leads", || other.leads()).await;
    rig.until("the other says it", || is_by(&other)).await;
}
