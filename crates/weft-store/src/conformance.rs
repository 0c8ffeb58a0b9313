// SPDX-License-Identifier: Apache-2.0
//! What every engine must do, written once and run over each of them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use weft_base::clock::{Clock, ManualClock};
use weft_base::limits;

use crate::{
    Class, Compare, Event, EventKind, LeaseId, MemoryStore, Op, RedbStore, Retention, Revision,
    Store, StoreError, Txn, WatchError,
};

#[cfg(feature = "testing")]
pub(crate) mod etcd;
#[cfg(feature = "testing")]
mod etcd_members;
#[cfg(feature = "testing")]
mod etcd_sim;
mod model;

/// A store under test with its clock.
pub(crate) struct Fixture {
    pub store: Arc<dyn Store>,
    pub time: Arc<ManualClock>,
    clock: Clock,
    retention: Retention,
    /// Where it is kept, when it is kept.
    dir: Option<tempfile::TempDir>,
    /// What must live as long as the store.
    server: Option<Box<dyn std::any::Any>>,
}

pub(crate) fn memory(retention: Retention) -> Fixture {
    let (clock, time) = Clock::manual();
    let store = Arc::new(MemoryStore::with_retention(clock.clone(), retention));
    Fixture { store, time, clock, retention, dir: None, server: None }
}

pub(crate) fn redb(retention: Retention) -> Fixture {
    let (clock, time) = Clock::manual();
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), &clock, retention);
    Fixture { store, time, clock, retention, dir: Some(dir), server: None }
}

fn open(dir: &std::path::Path, clock: &Clock, retention: Retention) -> Arc<dyn Store> {
    Arc::new(RedbStore::open_file(&dir.join("log.redb"), clock.clone(), retention).unwrap())
}

impl Fixture {
    /// The same data opened again; `None` when the engine keeps none.
    fn reopen(self) -> Option<Self> {
        let Self { store, time, clock, retention, dir, server } = self;
        drop(store);
        let dir = dir?;
        let store = open(dir.path(), &clock, retention);
        Some(Self { store, time, clock, retention, dir: Some(dir), server })
    }

    pub async fn put(&self, key: &str, value: &str) -> Revision {
        self.write(Op::put(key, value.to_owned())).await
    }

    async fn write(&self, op: Op) -> Revision {
        let out = self.store.txn(Txn::of([op])).await.unwrap();
        assert!(out.succeeded);
        out.revision
    }

    async fn value(&self, key: &str) -> Option<Bytes> {
        self.store.get(key).await.unwrap().1.map(|e| e.value)
    }

    async fn keys(&self, prefix: &str) -> Vec<String> {
        let page = self.store.range(prefix, 0, None).await.unwrap();
        page.entries.into_iter().map(|(k, _)| k.to_string()).collect()
    }
}

/// Runs every sentence below over every engine.
macro_rules! conformance {
    (every: $($name:ident),+; own_clock: $($timed:ident),+ $(,)?) => {
        mod over_memory {
            $(#[tokio::test] async fn $name() {
                super::$name(super::memory(Default::default())).await;
            })+
            $(#[tokio::test] async fn $timed() {
                super::$timed(super::memory(Default::default())).await;
            })+
        }
        mod over_redb {
            $(#[tokio::test] async fn $name() {
                super::$name(super::redb(Default::default())).await;
            })+
            $(#[tokio::test] async fn $timed() {
                super::$timed(super::redb(Default::default())).await;
            })+
        }
        #[cfg(feature = "testing")]
        mod over_etcd {
            $(#[tokio::test] async fn $name() {
                super::$name(super::etcd::fresh().await).await;
            })+
        }
    };
}

conformance!(
    every: a_comparison_guards_all_writes,
    a_transaction_is_one_revision,
    a_write_that_changes_nothing_takes_no_revision,
    a_prefix_is_deleted_as_one,
    pages_are_in_order_and_see_both_classes,
    a_watch_tells_history_then_the_present,
    a_deletion_carries_the_last_value,
    a_watch_sees_its_prefix_only,
    a_compacted_start_is_refused,
    a_slow_watch_is_cut_off_and_writers_go_on,
    a_watch_ends_with_its_store,
    a_revoked_lease_is_gone,
    limits_are_told_with_their_key,
    concurrent_writers_lose_nothing,
    a_key_may_change_its_class;
    own_clock: a_lease_takes_its_keys_with_it,
    a_lease_lives_while_it_is_kept_alive,
    a_key_leaves_its_lease_when_it_is_written_without,
    what_is_reopened_is_what_was_acknowledged,
    a_revision_never_goes_back,
    leases_restart_at_full_time,
);

async fn a_comparison_guards_all_writes(f: Fixture) {
    let put = |v: &str| Txn::of([Op::put("/a", v.to_owned()), Op::put("/b", v.to_owned())]);
    let first = f.store.txn(put("1").when(Compare::Absent("/a".into()))).await.unwrap();
    assert!(first.succeeded);
    let again = f.store.txn(put("2").when(Compare::Absent("/a".into()))).await.unwrap();
    assert_eq!((again.succeeded, again.failed, again.revision), (false, Some(0), first.revision));
    assert_eq!(f.value("/b").await.unwrap(), "1");

    let at = |r| Compare::ModRevision("/a".into(), r);
    let right = f.store.txn(put("3").when(at(first.revision))).await.unwrap();
    assert!(right.succeeded);
    let stale = f.store.txn(put("4").when(Compare::Exists("/a".into())).when(at(first.revision)));
    assert_eq!(stale.await.unwrap().failed, Some(1));
    assert_eq!(f.value("/b").await.unwrap(), "3");
    let gone = f.store.txn(put("5").when(Compare::Exists("/none".into()))).await.unwrap();
    assert!(!gone.succeeded);
}

async fn a_transaction_is_one_revision(f: Fixture) {
    let mut watch = f.store.watch("/", Revision(1)).unwrap();
    f.put("/old", "x").await;
    let txn = Txn::of([Op::put("/a", "1"), Op::delete("/old"), Op::put_ephemeral("/e", "2")]);
    let out = f.store.txn(txn).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 4 {
        seen.extend(watch.next().await.unwrap());
    }
    let last: Vec<_> = seen[1..].iter().map(|e| (e.revision, &*e.key)).collect();
    assert_eq!(last, [(out.revision, "/a"), (out.revision, "/old"), (out.revision, "/e")]);
    let (read, entry) = f.store.get("/a").await.unwrap();
    assert_eq!((read, entry.unwrap().modified), (out.revision, out.revision));
}

async fn a_write_that_changes_nothing_takes_no_revision(f: Fixture) {
    let r = f.put("/a", "1").await;
    assert_eq!(f.write(Op::delete("/none")).await, r);
    assert_eq!(f.store.txn(Txn::default()).await.unwrap().revision, r);
    assert_eq!(f.store.barrier().await.unwrap(), r);
    let e = f.put("/a", "2").await;
    let entry = f.store.get("/a").await.unwrap().1.unwrap();
    assert_eq!((entry.created, entry.modified), (r, e));
}

async fn a_prefix_is_deleted_as_one(f: Fixture) {
    for key in ["/p/1", "/p/2", "/q"] {
        f.put(key, "x").await;
    }
    f.write(Op::put_ephemeral("/p/3", "x")).await;
    let r = f.write(Op::DeletePrefix { prefix: "/p/".into() }).await;
    assert_eq!(f.keys("/").await, ["/q"]);
    let mut watch = f.store.watch("/p/", r).unwrap();
    let events = watch.next().await.unwrap();
    assert_eq!(events.iter().map(|e| &*e.key).collect::<Vec<_>>(), ["/p/1", "/p/2", "/p/3"]);
    assert!(events.iter().all(|e| e.revision == r && e.kind == EventKind::Delete));
}

async fn pages_are_in_order_and_see_both_classes(f: Fixture) {
    for i in 0..6 {
        let key = format!("/k/{i}");
        let op = if i % 2 == 0 { Op::put(key, "s") } else { Op::put_ephemeral(key, "e") };
        f.write(op).await;
    }
    f.put("/l", "x").await;
    let first = f.store.range("/k/", 4, None).await.unwrap();
    let keys = |p: &crate::Page| p.entries.iter().map(|(k, _)| k.to_string()).collect::<Vec<_>>();
    assert_eq!(
        (keys(&first), first.more),
        (["/k/0", "/k/1", "/k/2", "/k/3"].map(String::from).to_vec(), true)
    );
    let rest = f.store.range("/k/", 4, Some("/k/3")).await.unwrap();
    assert_eq!((keys(&rest), rest.more), (["/k/4", "/k/5"].map(String::from).to_vec(), false));
    assert_eq!(rest.revision, f.store.barrier().await.unwrap());
    assert_eq!(f.keys("/none").await, [""; 0]);
    assert_eq!(f.keys("").await.len(), 7);
}

async fn a_watch_tells_history_then_the_present(f: Fixture) {
    let mut expected = Vec::new();
    for i in 0..300 {
        expected.push(f.put(&format!("/k/{}", i % 7), &i.to_string()).await);
    }
    let mut watch = f.store.watch("/k/", expected[100]).unwrap();
    let mut seen: Vec<Event> = Vec::new();
    while seen.len() < 200 {
        seen.extend(watch.next().await.unwrap());
    }
    let next = f.put("/k/new", "now").await;
    seen.extend(watch.next().await.unwrap());
    let revisions: Vec<_> = seen.iter().map(|e| e.revision).collect();
    expected.push(next);
    assert_eq!(revisions, expected[100..], "no gap, no repeat, in order");
    assert_eq!(watch.try_next().unwrap(), []);
    assert_eq!(watch.position(), next.next());
}

async fn a_deletion_carries_the_last_value(f: Fixture) {
    f.put("/a", "1").await;
    f.put("/a", "2").await;
    f.write(Op::put_ephemeral("/e", "3")).await;
    f.write(Op::delete("/a")).await;
    f.write(Op::delete("/e")).await;
    let mut watch = f.store.watch("/", Revision(1)).unwrap();
    let mut events = Vec::new();
    while events.len() < 5 {
        events.extend(watch.next().await.unwrap());
    }
    let told: Vec<_> = events.iter().map(|e| (e.kind, &*e.value, e.prev.as_deref())).collect();
    use EventKind::{Delete, Put};
    assert_eq!(
        told,
        [
            (Put, &b"1"[..], None),
            (Put, b"2", Some(&b"1"[..])),
            (Put, b"3", None),
            (Delete, b"2", Some(b"2")),
            (Delete, b"3", Some(b"3")),
        ]
    );
    assert_eq!(events[4].class, Class::Ephemeral);
}

async fn a_watch_sees_its_prefix_only(f: Fixture) {
    let mut watch = f.store.watch("/b/", Revision(1)).unwrap();
    f.put("/a/1", "x").await;
    f.put("/b", "x").await;
    let r = f.put("/b/1", "x").await;
    f.put("/c/1", "x").await;
    let events = watch.next().await.unwrap();
    assert_eq!(events.iter().map(|e| e.revision).collect::<Vec<_>>(), [r]);
    // One that starts in the future waits for it.
    let now = f.store.barrier().await.unwrap();
    let mut later = f.store.watch("/", Revision(now.0 + 2)).unwrap();
    f.put("/z/1", "early").await;
    let r = f.put("/z/2", "due").await;
    assert_eq!(later.next().await.unwrap()[0].revision, r);
}

async fn a_compacted_start_is_refused(f: Fixture) {
    let (a, b) = (f.put("/a", "1").await, f.put("/a", "2").await);
    f.put("/a", "3").await;
    let mut held = f.store.watch("/", Revision(1)).unwrap();
    f.store.compact(b).await.unwrap();
    let err = f.store.watch("/", a).unwrap_err();
    assert_eq!(err, WatchError::Compacted { from: a, compacted: b });
    assert!(f.store.watch("/", b).is_err());
    assert_eq!(f.store.watch("/", b.next()).unwrap().next().await.unwrap().len(), 1);
    assert!(matches!(held.next().await, Err(WatchError::Compacted { .. })));
    assert_eq!(f.value("/a").await.unwrap(), "3", "present values stay");
    f.store.compact(Revision(u64::MAX)).await.unwrap();
    let head = f.store.barrier().await.unwrap();
    assert!(f.store.watch("/", head.next()).is_ok());
}

async fn a_slow_watch_is_cut_off_and_writers_go_on(f: Fixture) {
    let mut slow = f.store.watch("/", Revision(1)).unwrap();
    f.put("/k", "first").await;
    slow.next().await.unwrap();
    assert_eq!(slow.try_next().unwrap(), [], "it is live");
    let ops = |i: usize| (0..64).map(move |j| Op::put_ephemeral(format!("/k/{j}"), i.to_string()));
    for i in 0..=limits::STORE_WATCH_BACKLOG_MAX / 64 {
        f.store.txn(Txn::of(ops(i))).await.unwrap();
    }
    f.store.barrier().await.unwrap();
    assert_eq!(slow.next().await.unwrap_err(), WatchError::TooSlow);
    let head = f.store.barrier().await.unwrap();
    assert!(f.store.watch("/", head).is_ok(), "others are not disturbed");
}

async fn a_watch_ends_with_its_store(f: Fixture) {
    let mut watch = f.store.watch("/", Revision(1)).unwrap();
    f.put("/a", "1").await;
    f.store.barrier().await.unwrap();
    let Fixture { store, server, .. } = f;
    drop(store);
    assert_eq!(watch.next().await.unwrap().len(), 1, "what happened is still told");
    assert_eq!(watch.next().await.unwrap_err(), WatchError::Closed);
    drop(server);
}

fn leased(key: &str, class: Class, lease: LeaseId) -> Op {
    Op::Put { key: key.into(), value: "x".into(), class, lease: Some(lease) }
}

async fn a_lease_takes_its_keys_with_it(f: Fixture) {
    let lease = f.store.lease_grant(Duration::from_secs(10)).await.unwrap();
    f.write(leased("/s", Class::Synced, lease)).await;
    f.write(leased("/e", Class::Ephemeral, lease)).await;
    let before = f.put("/other", "x").await;
    f.time.advance(Duration::from_millis(9_999));
    assert_eq!(f.store.tick().await.unwrap(), 0);
    f.time.advance(Duration::from_millis(1));
    assert_eq!(f.store.tick().await.unwrap(), 1);
    assert_eq!(f.keys("/").await, ["/other"]);
    let mut watch = f.store.watch("/", before.next()).unwrap();
    let events = watch.next().await.unwrap();
    assert_eq!(events.len(), 2);
    assert!(events.iter().all(|e| e.kind == EventKind::Delete && e.revision == before.next()));
    let late = f.store.txn(Txn::of([leased("/s", Class::Synced, lease)])).await;
    assert!(matches!(late, Err(StoreError::NoLease(l)) if l == lease));
    assert!(f.store.lease_keep_alive(lease).await.is_err());
}

async fn a_lease_lives_while_it_is_kept_alive(f: Fixture) {
    let lease = f.store.lease_grant(Duration::from_secs(10)).await.unwrap();
    let r = f.write(leased("/e", Class::Ephemeral, lease)).await;
    for _ in 0..5 {
        f.time.advance(Duration::from_secs(9));
        assert_eq!(f.store.lease_keep_alive(lease).await.unwrap(), Duration::from_secs(10));
        assert_eq!(f.store.tick().await.unwrap(), 0);
    }
    assert_eq!(f.store.barrier().await.unwrap(), r, "a sign of life writes nothing");
    f.time.advance(Duration::from_secs(10));
    assert_eq!(f.store.tick().await.unwrap(), 1);
}

async fn a_key_leaves_its_lease_when_it_is_written_without(f: Fixture) {
    let lease = f.store.lease_grant(Duration::from_secs(1)).await.unwrap();
    f.write(leased("/kept", Class::Synced, lease)).await;
    f.write(leased("/deleted", Class::Synced, lease)).await;
    f.put("/kept", "mine").await;
    f.write(Op::delete("/deleted")).await;
    f.put("/deleted", "again").await;
    f.time.advance(Duration::from_secs(1));
    assert_eq!(f.store.tick().await.unwrap(), 1);
    assert_eq!(f.keys("/").await, ["/deleted", "/kept"]);
}

async fn a_revoked_lease_is_gone(f: Fixture) {
    let lease = f.store.lease_grant(Duration::from_secs(1)).await.unwrap();
    f.write(leased("/e", Class::Ephemeral, lease)).await;
    f.store.lease_revoke(lease).await.unwrap();
    assert_eq!(f.keys("/").await, [""; 0]);
    assert!(matches!(f.store.lease_revoke(lease).await, Err(StoreError::NoLease(_))));
    f.time.advance(Duration::from_secs(9));
    assert_eq!(f.store.tick().await.unwrap(), 0);
    let next = f.store.lease_grant(Duration::from_secs(1)).await.unwrap();
    assert_ne!(next, lease);
}

async fn limits_are_told_with_their_key(f: Fixture) {
    let before = f.store.barrier().await.unwrap();
    let many = (0..=limits::STORE_TXN_OPS_MAX).map(|i| Op::put(format!("/{i}"), "x"));
    let err = f.store.txn(Txn::of(many)).await.unwrap_err().to_string();
    assert_eq!(err, "a transaction of 129 operations is over the limit of 128; split it");
    let big = vec![0u8; limits::STORE_VALUE_BYTES_MAX + 1];
    let err = f.store.txn(Txn::of([Op::put("/big", big)])).await.unwrap_err().to_string();
    assert!(err.contains("\"/big\" is 1048577 bytes long"), "{err}");
    let long = "x".repeat(limits::STORE_KEY_BYTES_MAX + 1);
    let err = f.store.txn(Txn::of([Op::put(long, "x")])).await.unwrap_err().to_string();
    assert!(err.contains("1025 bytes long"), "{err}");
    assert!(f.store.txn(Txn::of([Op::put("", "x")])).await.is_err());
    let twice = Txn::of([Op::put("/a", "1"), Op::delete("/a")]);
    assert!(matches!(f.store.txn(twice).await, Err(StoreError::DuplicateKey { .. })));
    let over = Txn::of([Op::put("/p/1", "1"), Op::DeletePrefix { prefix: "/p/".into() }]);
    assert!(matches!(f.store.txn(over).await, Err(StoreError::DuplicateKey { .. })));
    assert_eq!(f.store.barrier().await.unwrap(), before, "nothing was written");
    let max = vec![0u8; limits::STORE_VALUE_BYTES_MAX];
    f.write(Op::put("/max", max)).await;
}

async fn concurrent_writers_lose_nothing(f: Fixture) {
    f.put("/n", "0").await;
    let increment = |store: Arc<dyn Store>| async move {
        for _ in 0..20 {
            loop {
                let (_, entry) = store.get("/n").await.unwrap();
                let entry = entry.unwrap();
                let n: u64 = std::str::from_utf8(&entry.value).unwrap().parse().unwrap();
                let txn = Txn::of([Op::put("/n", (n + 1).to_string())])
                    .when(Compare::ModRevision("/n".into(), entry.modified));
                if store.txn(txn).await.unwrap().succeeded {
                    break;
                }
            }
        }
    };
    futures_util::future::join_all((0..8).map(|_| increment(f.store.clone()))).await;
    assert_eq!(f.value("/n").await.unwrap(), "160");
}

async fn a_key_may_change_its_class(f: Fixture) {
    f.put("/k", "synced").await;
    f.write(Op::put_ephemeral("/k", "ephemeral")).await;
    assert_eq!(f.value("/k").await.unwrap(), "ephemeral");
    assert_eq!(f.keys("/").await, ["/k"]);
    f.put("/k", "synced again").await;
    f.write(Op::delete("/k")).await;
    assert_eq!(f.keys("/").await, [""; 0]);
}

async fn what_is_reopened_is_what_was_acknowledged(f: Fixture) {
    let made = f.put("/a", "1").await;
    let changed = f.put("/a", "2").await;
    f.put("/gone", "x").await;
    f.write(Op::delete("/gone")).await;
    f.write(Op::put_ephemeral("/e", "beat")).await;
    let Some(f) = f.reopen() else { return };
    assert_eq!(f.keys("").await, ["/a"], "ephemeral keys are gone");
    let entry = f.store.get("/a").await.unwrap().1.unwrap();
    assert_eq!((entry.created, entry.modified, &*entry.value), (made, changed, &b"2"[..]));
    let err = f.store.watch("/", changed).unwrap_err();
    assert!(matches!(err, WatchError::Compacted { .. }), "watches list again: {err}");
}

async fn a_revision_never_goes_back(f: Fixture) {
    f.put("/a", "1").await;
    for i in 0..10 {
        f.write(Op::put_ephemeral("/e", i.to_string())).await;
    }
    let last = f.store.barrier().await.unwrap();
    let Some(f) = f.reopen() else { return };
    assert!(f.store.barrier().await.unwrap() >= last);
    assert!(f.put("/a", "2").await > last);
}

async fn leases_restart_at_full_time(f: Fixture) {
    let lease = f.store.lease_grant(Duration::from_secs(10)).await.unwrap();
    f.write(leased("/s", Class::Synced, lease)).await;
    f.time.advance(Duration::from_secs(9));
    let Some(f) = f.reopen() else { return };
    f.time.advance(Duration::from_secs(9));
    assert_eq!(f.store.tick().await.unwrap(), 0);
    assert_eq!(f.keys("/").await, ["/s"]);
    f.time.advance(Duration::from_secs(1));
    assert_eq!(f.store.tick().await.unwrap(), 1);
    assert_eq!(f.keys("/").await, [""; 0]);
    let next = f.store.lease_grant(Duration::from_secs(1)).await.unwrap();
    assert!(next > lease, "ids are not used twice");
}

#[tokio::test]
async fn watches_are_bounded() {
    let f = memory(Retention::default());
    let mut held: Vec<_> =
        (0..limits::WATCHERS_MAX).map(|_| f.store.watch("/", Revision(1)).unwrap()).collect();
    assert_eq!(f.store.watch("/", Revision(1)).unwrap_err(), WatchError::TooManyWatches);
    assert_eq!(f.store.stats().watches, limits::WATCHERS_MAX);
    held.pop();
    assert!(f.store.watch("/", Revision(1)).is_ok());
}

/// History is bounded by events, bytes and age, whatever the engine.
#[tokio::test]
async fn history_is_bounded() {
    let age = Duration::from_secs(60);
    for f in [memory, redb].map(|f| f(Retention { events: 10, bytes: 1 << 20, age })) {
        for i in 0..30 {
            f.put("/k", &i.to_string()).await;
        }
        let head = f.store.barrier().await.unwrap();
        assert!(f.store.watch("/", Revision(head.0 - 10)).is_err());
        let mut watch = f.store.watch("/", Revision(head.0 - 9)).unwrap();
        assert_eq!(watch.next().await.unwrap().len(), 10);
        f.time.advance(age + Duration::from_secs(1));
        f.store.tick().await.unwrap();
        assert!(f.store.watch("/", Revision(head.0 - 1)).is_err(), "too old");
        assert!(f.store.watch("/", head).is_ok(), "the newest revision is always told");
    }
    // An event holds its value and the one before it.
    for f in [memory, redb].map(|f| f(Retention { events: 1000, bytes: 8192, age })) {
        for _ in 0..10 {
            f.put("/k", &"x".repeat(1024)).await;
        }
        let head = f.store.barrier().await.unwrap();
        assert!(f.store.watch("/", Revision(head.0 - 3)).is_err());
        assert!(f.store.watch("/", Revision(head.0 - 1)).is_ok());
        let (events, bytes) = (f.store.stats().history_events, f.store.stats().history_bytes);
        assert!(bytes >= events * 2048 && bytes <= 8192, "{bytes} bytes of {events} events");
    }
    // Who is back at once finds it all, who comes later the last of it.
    let age = 10 * crate::history::FRESH;
    for f in [memory, redb].map(|f| f(Retention { events: 1000, bytes: 80_000, age })) {
        for _ in 0..30 {
            f.put("/k", &"x".repeat(1024)).await;
        }
        let head = f.store.barrier().await.unwrap();
        let mut held = f.store.watch("/", head).unwrap();
        f.time.advance(crate::history::FRESH);
        f.store.tick().await.unwrap();
        assert!(f.store.watch("/", Revision(head.0 - 28)).is_ok());
        f.time.advance(Duration::from_secs(1));
        f.store.tick().await.unwrap();
        assert!(f.store.watch("/", Revision(head.0 - 28)).is_err());
        assert!(f.store.watch("/", Revision(head.0 - 2)).is_ok());
        assert!(f.store.stats().history_bytes <= 10_000);
        // One that is there misses nothing, and what is new is kept as before.
        assert_eq!(held.next().await.unwrap()[0].revision, head);
        for _ in 0..20 {
            f.put("/k", &"x".repeat(1024)).await;
        }
        assert!(f.store.watch("/", head.next()).is_ok());
    }
}
