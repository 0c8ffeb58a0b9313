// SPDX-License-Identifier: Apache-2.0
//! Registries over files, as a crash leaves them: a copy of the file beside one that is open.

use std::path::{Path, PathBuf};

use weft_base::clock::{Clock, ManualClock};
use weft_kinds::views::catalog::{CheckRecord, NodeRecord, Registration, Status};
use weft_kinds::views::check::{CheckDefinition, Probe};
use weft_kinds::world::{CheckKey, RegistrationKey};
use weft_store::{MemoryStore, RedbStore};

use super::*;
use crate::catalog::ServiceRequest;
use crate::doctored::Doctored;
use crate::{Leader, Registry};

const TTL: Duration = Duration::from_secs(30);

struct Life {
    registry: Registry,
    time: Arc<ManualClock>,
    tasks: TaskGroup,
}

async fn life(file: &Path) -> Life {
    let (clock, time) = Clock::manual();
    let store = RedbStore::open_file(file, clock.clone(), Default::default()).unwrap();
    let tasks = TaskGroup::new();
    let registry = Registry::open(Arc::new(store), clock, tasks.clone()).await.unwrap();
    Life { registry, time, tasks }
}

fn key(id: &str) -> CheckKey {
    CheckKey { namespace: "default".into(), node: "n".into(), id: id.into() }
}

fn check(id: &str, probe: Probe) -> CheckRecord {
    let definition = CheckDefinition { probe, agent: true, ..CheckDefinition::default() };
    CheckRecord { id: id.into(), ..CheckRecord::default() }.with(&definition)
}

fn web(checks: Vec<CheckRecord>) -> ServiceRequest {
    ServiceRequest {
        registration: Registration {
            namespace: "default".into(),
            node: "n".into(),
            service: "web".into(),
            id: "web".into(),
            ..Registration::default()
        },
        checks,
        node: NodeRecord { node: "n".into(), address: "127.0.0.1".into(), ..<_>::default() },
        ..ServiceRequest::default()
    }
}

fn ttl() -> CheckRecord {
    check("ttl", Probe::Ttl { ttl_ms: u64::try_from(TTL.as_millis()).unwrap() })
}

fn tcp() -> CheckRecord {
    check("tcp", Probe::tcp("127.0.0.1:9"))
}

impl Life {
    fn health(&self) -> Vec<Status> {
        let world = self.registry.now();
        world.instances("default", "web").values().map(|i| i.health).collect()
    }

    fn said(&self, id: &str) -> (Status, String) {
        let world = self.registry.now();
        let said = world.catalog().result(&key(id)).map(|r| r.output.to_string());
        (world.catalog().status(&key(id)), said.unwrap_or_default())
    }

    /// When the instance was made, and since when a check is so.
    fn since(&self, id: &str) -> (u64, u64, u64) {
        let world = self.registry.now();
        let (namespace, node, id_of) = ("default".into(), "n".into(), "web".into());
        let web = RegistrationKey { namespace, node, id: id_of };
        let (catalog, web) = (world.catalog(), world.catalog().registration(&web).unwrap());
        let told = catalog.result(&key(id)).map_or(0, |r| r.modified.0);
        (web.created.0, web.modified.0, told)
    }

    async fn copies(&self) -> usize {
        self.registry.store().range(COPIES, 0, None).await.unwrap().entries.len()
    }

    async fn copied(&self, many: usize) {
        let end = Instant::now() + Duration::from_secs(60);
        while self.copies().await != many {
            assert!(Instant::now() < end, "{} copies, not {many}", self.copies().await);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// What a crash of this moment leaves.
    async fn crash(&self, dir: &Path) -> PathBuf {
        // The copies of all that is known are on disk: nothing is on its way to it.
        let image = dir.join("image.redb");
        std::fs::copy(dir.join("log.redb"), &image).unwrap();
        image
    }
}

#[tokio::test]
async fn a_crash_makes_nothing_critical_and_a_time_to_live_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let before = life(&dir.path().join("log.redb")).await;
    let catalog = before.registry.catalog();
    catalog.register_service(web(vec![ttl(), tcp()])).await.unwrap();
    assert_eq!(before.health(), [Status::Critical], "nobody has reported");
    catalog.report_ttl(&key("ttl"), Status::Warning, "hot").await.unwrap();
    catalog.report(&key("tcp"), Status::Passing, "TCP connect: Success").await.unwrap();
    let since = before.since("ttl");
    assert!(since.0 == since.1 && since.1 < since.2, "{since:?}");
    before.copied(2).await;
    let image = before.crash(dir.path()).await;

    let after = life(&image).await;
    assert_eq!(after.health(), [Status::Warning]);
    assert_eq!(after.since("ttl"), since);
    assert_eq!(after.said("ttl"), (Status::Warning, "hot".to_owned()));
    assert_eq!(after.said("tcp"), (Status::Passing, "TCP connect: Success".to_owned()));
    after.time.advance(TTL - Duration::from_millis(1));
    after.registry.catalog().tick().await;
    assert_eq!(after.said("ttl").0, Status::Warning, "its owner has all of its time");
    after.time.advance(Duration::from_millis(1));
    after.registry.catalog().tick().await;
    let over = "TTL expired (last output before timeout follows): hot";
    assert_eq!(after.said("ttl"), (Status::Critical, over.to_owned()), "and no more than that");
    assert_eq!(after.said("tcp").0, Status::Passing, "it is the prober's to say");
}

#[tokio::test]
async fn an_orderly_end_forgets_nothing_that_was_said_just_before() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("log.redb");
    let before = life(&file).await;
    let catalog = before.registry.catalog();
    catalog.register_service(web(vec![ttl()])).await.unwrap();
    catalog.report_ttl(&key("ttl"), Status::Passing, "").await.unwrap();
    before.tasks.shutdown(Duration::from_secs(60)).await;
    drop(before);
    let after = life(&file).await;
    assert_eq!(after.health(), [Status::Passing]);
    // A heartbeat that says the same says nothing new.
    let at = after.registry.store().barrier().await.unwrap();
    after.registry.catalog().report_ttl(&key("ttl"), Status::Passing, "").await.unwrap();
    assert_eq!(after.registry.store().barrier().await.unwrap(), at);
}

#[tokio::test]
async fn a_copy_goes_with_its_check_whoever_takes_that_away() {
    let dir = tempfile::tempdir().unwrap();
    let before = life(&dir.path().join("log.redb")).await;
    let (catalog, store) = (before.registry.catalog(), before.registry.store());
    catalog.register_service(web(vec![ttl(), tcp()])).await.unwrap();
    catalog.report(&key("ttl"), Status::Passing, "").await.unwrap();
    catalog.report(&key("tcp"), Status::Passing, "").await.unwrap();
    before.copied(2).await;
    catalog.deregister_check(&key("tcp")).await.unwrap();
    before.copied(1).await;
    let id = RegistrationKey { namespace: "default".into(), node: "n".into(), id: "web".into() };
    catalog.deregister_service(&id).await.unwrap();
    before.copied(0).await;
    // A crash came between the check's end and its copy's.
    let orphan = Op::put(format!("{COPIES}default/n/ttl"), r#"{"status":"passing"}"#);
    store.txn(Txn::of([orphan])).await.unwrap();
    let after = life(&before.crash(dir.path()).await).await;
    assert_eq!(after.copies().await, 0);
    after.registry.catalog().register_service(web(vec![ttl()])).await.unwrap();
    assert_eq!(after.health(), [Status::Critical], "it says nothing of another check of that name");
}

/// Another server opens a moved log at the same time, or hears of one of its checks.
#[tokio::test]
async fn a_result_that_is_there_keeps_no_other_from_being_put_back() {
    let (clock, _) = Clock::manual();
    let store = Doctored::new(clock.clone());
    let name = |id: u8| format!("default/n/c{id}");
    let both = (0..3)
        .flat_map(|id| [COPIES, CHECKS].map(|at| Op::put(format!("{at}{}", name(id)), "old")));
    store.txn(Txn::of(both)).await.unwrap();
    let put = Op::put(format!("{RESULTS}{}", name(1)), "new");
    store.precede(RESULTS, 0, Txn::of([put]));
    recall(&*store, true).await.unwrap();
    let kept = store.range(RESULTS, 0, None).await.unwrap().entries;
    let kept: Vec<_> = kept.iter().map(|(_, entry)| entry.value.clone()).collect();
    assert_eq!(kept, ["old", "new", "old"]);
    assert!(store.range(COPIES, 0, None).await.unwrap().entries.is_empty());
}

/// A log that was moved into a store of several servers.
#[tokio::test]
async fn among_several_servers_copies_become_results() {
    let (clock, _) = Clock::manual();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(clock.clone()));
    let alone = Registry::open(store.clone(), clock.clone(), TaskGroup::new()).await.unwrap();
    alone.catalog().register_service(web(vec![ttl()])).await.unwrap();
    drop(alone);
    let said = r#"{"status":"passing","output":"fine"}"#;
    let copies = [("ttl", said), ("gone", said)]
        .map(|(id, said)| Op::put(format!("{COPIES}default/n/{id}"), said));
    store.txn(Txn::of(copies)).await.unwrap();
    let leader = Leader::among("a", clock.clone());
    let tasks = TaskGroup::new();
    let among = Registry::open_as(store.clone(), clock, tasks, leader).await.unwrap();
    assert_eq!(among.now().catalog().status(&key("ttl")), Status::Passing);
    let kept = store.range(RESULTS, 0, None).await.unwrap().entries;
    let kept: Vec<_> = kept.iter().map(|(key, entry)| (&**key, entry.class)).collect();
    assert_eq!(kept, [("/e/k/default/n/ttl", weft_store::Class::Synced)]);
    assert!(store.range(COPIES, 0, None).await.unwrap().entries.is_empty());
}
