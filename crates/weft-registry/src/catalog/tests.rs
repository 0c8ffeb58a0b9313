// SPDX-License-Identifier: Apache-2.0
//! The catalog over a memory store and a pump as small as one can be.

use weft_base::clock::ManualClock;
use weft_base::snapshot::snapshot;
use weft_kinds::views::catalog::Registration;
use weft_kinds::views::check::Probe;
use weft_store::{MemoryStore, Op, Revision};

use super::*;
use crate::doctored::Doctored;

mod aliases;
mod others;

struct Rig {
    handle: Handle,
    world: Snapshot<World>,
    clock: Arc<ManualClock>,
    store: Arc<Doctored>,
    tasks: TaskGroup,
}

async fn rig() -> Rig {
    rig_of(Leader::alone).await
}

async fn rig_of(leader: impl FnOnce(Clock) -> Leader) -> Rig {
    let (clock, manual) = Clock::manual();
    let store = Doctored::new(clock.clone());
    let (publisher, world) = snapshot(World::new());
    let mut watch = store.watch("/", Revision(1)).unwrap();
    let tasks = TaskGroup::new();
    tasks.spawn("pump", async move {
        let mut world = World::new();
        while let Ok(events) = watch.next().await {
            for event in events {
                let value = (event.kind == weft_store::EventKind::Put).then_some(&*event.value);
                world.apply(&event.key, value, event.revision.0);
            }
            publisher.publish(world.clone());
        }
    });
    let leader = leader(clock.clone());
    let handle = Handle::new(store.clone(), world.clone(), clock, leader);
    Rig { handle, world, clock: manual, store, tasks }
}

fn key(id: &str) -> CheckKey {
    CheckKey { namespace: "default".into(), node: "n".into(), id: id.into() }
}

fn web(checks: Vec<CheckRecord>) -> ServiceRequest {
    ServiceRequest {
        registration: Registration {
            namespace: "default".into(),
            node: "n".into(),
            service: "web".into(),
            ..Registration::default()
        },
        checks,
        node: NodeRecord { node: "n".into(), address: "127.0.0.1".into(), ..Default::default() },
        ..ServiceRequest::default()
    }
}

fn ttl(ttl_ms: u64) -> CheckRecord {
    let definition =
        CheckDefinition { probe: Probe::Ttl { ttl_ms }, agent: true, ..Default::default() };
    CheckRecord { id: "t".into(), ..CheckRecord::default() }.with(&definition)
}

impl Rig {
    fn health(&self) -> Vec<Status> {
        let world = self.world.load();
        world.instances("default", "web").values().map(|i| i.health).collect()
    }

    async fn revision(&self) -> Revision {
        self.store.barrier().await.unwrap()
    }
}

#[tokio::test]
async fn a_write_is_seen_when_it_returns() {
    let rig = rig().await;
    rig.handle.register_service(web(vec![ttl(1000)])).await.unwrap();
    assert_eq!(rig.health(), [Status::Critical]);
    rig.handle.report_ttl(&key("t"), Status::Passing, "fine").await.unwrap();
    assert_eq!(rig.health(), [Status::Passing]);
    let id = RegistrationKey { namespace: "default".into(), node: "n".into(), id: "web".into() };
    rig.handle.service_maintenance(&id, true, "upgrade").await.unwrap();
    assert_eq!(rig.health(), [Status::Critical]);
    rig.handle.service_maintenance(&id, false, "").await.unwrap();
    rig.handle.deregister_service(&id).await.unwrap();
    assert_eq!(rig.health(), []);
    assert!(rig.handle.report(&key("t"), Status::Passing, "").await.is_err());
    rig.tasks.shutdown(Duration::from_millis(1)).await;
}

#[tokio::test]
async fn only_an_agents_checks_are_timed() {
    let rig = rig().await;
    let definition = CheckDefinition { probe: Probe::Ttl { ttl_ms: 1000 }, ..Default::default() };
    let check = CheckRecord { initial: Status::Passing, ..ttl(1000) }.with(&definition);
    rig.handle.register_service(web(vec![check])).await.unwrap();
    rig.clock.advance(Duration::from_secs(3600));
    rig.handle.tick().await;
    assert_eq!(rig.health(), [Status::Passing], "as whoever wrote it to the catalog said");
    rig.tasks.shutdown(Duration::from_millis(1)).await;
}

#[tokio::test]
async fn an_unchanged_heartbeat_writes_nothing_and_keeps_it_alive() {
    let rig = rig().await;
    rig.handle.register_service(web(vec![ttl(1000)])).await.unwrap();
    rig.handle.report_ttl(&key("t"), Status::Passing, "ok").await.unwrap();
    let before = rig.revision().await;
    for _ in 0..10 {
        rig.clock.advance(Duration::from_millis(900));
        rig.handle.tick().await;
        rig.handle.report_ttl(&key("t"), Status::Passing, "ok").await.unwrap();
    }
    assert_eq!(rig.revision().await, before);
    assert_eq!(rig.health(), [Status::Passing]);
    rig.clock.advance(Duration::from_millis(1000));
    rig.handle.tick().await;
    assert_eq!(rig.health(), [Status::Critical]);
    let world = rig.world.load();
    let output = &world.catalog().result(&key("t")).unwrap().output;
    assert_eq!(&**output, "TTL expired (last output before timeout follows): ok");
}

#[tokio::test]
async fn a_heartbeat_counts_although_others_have_the_turn_and_its_client_hangs_up() {
    let rig = rig().await;
    rig.handle.register_service(web(vec![ttl(1000)])).await.unwrap();
    rig.handle.report_ttl(&key("t"), Status::Passing, "ok").await.unwrap();
    rig.clock.advance(Duration::from_millis(900));
    let (turn, check) = (rig.handle.turn("n", "t").await, key("t"));
    tokio::select! {
        biased;
        done = rig.handle.report_ttl(&check, Status::Passing, "ok") => panic!("{done:?}"),
        () = std::future::ready(()) => {}
    }
    drop(turn);
    rig.clock.advance(Duration::from_millis(900));
    rig.handle.tick().await;
    assert_eq!(rig.health(), [Status::Passing]);
    rig.tasks.shutdown(Duration::from_millis(1)).await;
}

#[tokio::test]
async fn those_who_wait_for_one_turn_share_what_the_store_is_asked() {
    let rig = rig_of(|clock| Leader::among("a", clock)).await;
    let again = || rig.handle.register_service(web(vec![ttl(1000)]));
    again().await.unwrap();
    let turn = rig.handle.turn("n", "web").await;
    let before = rig.handle.begun();
    let (one, other, ()) = tokio::join!(again(), again(), async { drop(turn) });
    one.unwrap();
    other.unwrap();
    assert_eq!(rig.handle.begun() - before, 1);
    rig.tasks.shutdown(Duration::from_millis(1)).await;
}

#[tokio::test]
async fn a_service_does_not_go_while_a_check_of_it_comes_with_another() {
    let rig = rig().await;
    let of = |id: &str| {
        let mut request = web(Vec::new());
        request.registration.id = id.into();
        request
    };
    for id in ["a", "b"] {
        rig.handle.register_service(of(id)).await.unwrap();
    }
    let on_b = CheckRecord { service_id: "b".into(), node: "n".into(), ..ttl(600_000) };
    let on_b = CheckRecord { namespace: "default".into(), ..on_b };
    let node = of("a").node;
    let turn = rig.handle.turn("n", "b").await;
    let with_a = ServiceRequest { others: vec![on_b.clone()], ..of("a") };
    let on_node = CheckRecord { id: "other".into(), service_id: "".into(), ..on_b.clone() };
    let both = [on_node, on_b];
    tokio::select! {
        biased;
        done = rig.handle.register_service(with_a) => panic!("{done:?}"),
        done = rig.handle.register_on((&node, false), &both) => panic!("{done:?}"),
        () = std::future::ready(()) => {}
    }
    drop(turn);
    rig.tasks.shutdown(Duration::from_millis(1)).await;
}

#[tokio::test]
async fn changes_of_output_alone_are_held_back_and_the_last_one_is_written() {
    let rig = rig().await;
    rig.handle.register_service(web(vec![ttl(600_000)])).await.unwrap();
    rig.handle.report_ttl(&key("t"), Status::Passing, "0").await.unwrap();
    let before = rig.revision().await.next();
    for n in 1..=100 {
        rig.handle.report_ttl(&key("t"), Status::Passing, &n.to_string()).await.unwrap();
    }
    assert_eq!(rig.revision().await, before, "the first at once, then none");
    assert_eq!(rig.handle.pending_output(&key("t")).as_deref(), Some("100"));
    rig.clock.advance(Duration::from_millis(OUTPUT_EVERY_MS));
    rig.handle.tick().await;
    assert_eq!(rig.revision().await, before.next(), "one write");
    let world = rig.world.load();
    assert_eq!(&*world.catalog().result(&key("t")).unwrap().output, "100");
    rig.handle.report_ttl(&key("t"), Status::Warning, "101").await.unwrap();
    assert_eq!(rig.health(), [Status::Warning], "a status is written at once");
}

#[tokio::test]
async fn a_service_that_stays_critical_is_deregistered_and_one_that_recovers_is_not() {
    let rig = rig().await;
    let reaped = CheckDefinition {
        probe: Probe::Ttl { ttl_ms: 10_000 },
        deregister_after_ms: 1_000, // raised to a minute
        agent: true,
        ..Default::default()
    };
    let check = CheckRecord { id: "t".into(), ..CheckRecord::default() }.with(&reaped);
    rig.handle.register_service(web(vec![check])).await.unwrap();
    rig.handle.report_ttl(&key("t"), Status::Passing, "ok").await.unwrap();
    let pass = async |seconds: u64| {
        for _ in 0..seconds {
            rig.clock.advance(Duration::from_secs(1));
            rig.handle.tick().await;
        }
    };
    // Silent for ten seconds and critical from then on; alive again before the minute is over.
    pass(60).await;
    assert_eq!(rig.health(), [Status::Critical]);
    rig.handle.report_ttl(&key("t"), Status::Passing, "back").await.unwrap();
    pass(9).await;
    assert_eq!(rig.health(), [Status::Passing]);
    pass(60).await;
    assert_eq!(rig.health(), [Status::Critical], "the minute began anew");
    pass(10).await;
    assert_eq!(rig.health(), [], "nobody wanted it back");
    let world = rig.world.load();
    assert!(world.catalog().check(&key("t")).is_none());
}

/// One that leads as far as it knows; another has taken over since when `overtaken`.
async fn leading(rig: &Rig, overtaken: bool) {
    let lead = async |who: &'static str| {
        let put = Op::put(crate::leader::KEY, who);
        rig.store.txn(Txn::of([put])).await.unwrap().revision
    };
    let at = lead("a").await;
    rig.handle.0.leader.lead(at, Mono(u64::MAX));
    if overtaken {
        lead("b").await;
    }
}

fn reaped() -> CheckRecord {
    let definition = CheckDefinition {
        probe: Probe::Ttl { ttl_ms: 1_000 },
        deregister_after_ms: 60_000,
        agent: true,
        ..Default::default()
    };
    CheckRecord { id: "t".into(), ..CheckRecord::default() }.with(&definition)
}

#[tokio::test]
async fn a_leader_that_was_overtaken_neither_reaps_nor_ends_a_check_that_nobody_hears() {
    let reap = Due::Reap { key: key("t"), service_id: "web".into() };
    for overtaken in [true, false] {
        let rig = rig_of(|clock| Leader::among("a", clock)).await;
        rig.handle.register_service(web(vec![reaped()])).await.unwrap();
        leading(&rig, overtaken).await;
        rig.clock.advance(Duration::from_secs(1));
        let ended = rig.handle.attend(&Due::Expired(key("t"))).await;
        let was_ended = rig.world.load().catalog().result(&key("t")).is_some();
        let gone = rig.handle.attend(&reap).await;
        let left = rig.health();
        if overtaken {
            assert!(matches!(ended, Err(CatalogError::Overtaken)), "{ended:?}");
            assert!(matches!(gone, Err(CatalogError::Overtaken)), "{gone:?}");
            assert!(!was_ended);
            assert_eq!(left, [Status::Critical]);
        } else {
            ended.unwrap();
            gone.unwrap();
            assert!(was_ended);
            assert_eq!(left, []);
        }
    }
}

#[tokio::test]
async fn a_service_that_passes_by_now_is_not_reaped() {
    let rig = rig().await;
    rig.handle.register_service(web(vec![reaped()])).await.unwrap();
    let reap = Due::Reap { key: key("t"), service_id: "web".into() };
    rig.handle.report_ttl(&key("t"), Status::Passing, "").await.unwrap();
    rig.handle.attend(&reap).await.unwrap();
    assert_eq!(rig.health(), [Status::Passing]);
}

#[tokio::test]
async fn what_kubernetes_made_is_read_only_here() {
    let rig = rig().await;
    let service = serde_json::json!({"metadata": {"name": "web", "namespace": "default"}});
    let at = "/o/core/services/default/web";
    rig.store.txn(Txn::of([Op::put(at, service.to_string())])).await.unwrap();
    let mut world = rig.world.clone();
    while world.load().revision() == 0 {
        world.changed().await;
    }
    let why = rig.handle.register_service(web(vec![])).await.unwrap_err();
    assert!(matches!(why, CatalogError::Owned { .. }));
    assert!(why.to_string().contains("owned by the Kubernetes door"), "{why}");
}

#[tokio::test]
async fn deadlines_are_kept_by_the_running_task() {
    let clock = Clock::system();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(clock.clone()));
    let (publisher, world) = snapshot(World::new());
    let mut watch = store.watch("/", Revision(1)).unwrap();
    let tasks = TaskGroup::new();
    tasks.spawn("pump", async move {
        let mut world = World::new();
        while let Ok(events) = watch.next().await {
            for event in events {
                let value = (event.kind == weft_store::EventKind::Put).then_some(&*event.value);
                world.apply(&event.key, value, event.revision.0);
            }
            publisher.publish(world.clone());
        }
    });
    let alone = Leader::alone(clock.clone());
    let handle = Handle::new(store, world.clone(), clock.clone(), alone);
    handle.run(&tasks);
    handle.register_service(web(vec![ttl(100)])).await.unwrap();
    // Its time begins somewhere within the report.
    let from = clock.now();
    handle.report_ttl(&key("t"), Status::Passing, "").await.unwrap();
    let mut changes = world.clone();
    while world.load().catalog().status(&key("t")) == Status::Passing {
        assert!(changes.changed().await);
    }
    let took = clock.now().since(from);
    assert!(took >= Duration::from_millis(99) && took < Duration::from_secs(60), "{took:?}");
}

/// What is asked of a node, as it follows a world.
fn asked(rig: &Rig, known: &mut Runnable) -> Vec<(String, Arc<CheckDefinition>)> {
    let world = rig.world.load();
    known.on(world.catalog(), "n").map(|(key, d)| (key.id.to_string(), d.clone())).collect()
}

#[tokio::test]
async fn what_is_asked_is_read_once_however_much_else_is_registered() {
    let rig = rig().await;
    let tcp = |id: &str, agent| {
        let probe = Probe::tcp("127.0.0.1:1");
        let definition = CheckDefinition { probe, agent, ..Default::default() };
        CheckRecord { id: id.into(), ..CheckRecord::default() }.with(&definition)
    };
    let checks = vec![tcp("a", true), tcp("b", true), tcp("written", false), ttl(1_000)];
    rig.handle.register_service(web(checks)).await.unwrap();
    let mut known = Runnable::default();
    let first = asked(&rig, &mut known);
    assert_eq!(first.iter().map(|(id, _)| &**id).collect::<Vec<_>>(), ["a", "b"]);

    let mut b = tcp("b", true);
    b.name = "another".into();
    rig.handle.register_service(web(vec![tcp("a", true), b])).await.unwrap();
    let then = asked(&rig, &mut known);
    assert_eq!(then, first);
    assert!(Arc::ptr_eq(&then[0].1, &first[0].1), "what did not change is not read again");
    assert!(!Arc::ptr_eq(&then[1].1, &first[1].1));

    rig.handle.deregister_check(&key("a")).await.unwrap();
    assert_eq!(asked(&rig, &mut known), then[1..]);
}
