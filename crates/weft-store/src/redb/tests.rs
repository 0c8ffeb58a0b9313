// SPDX-License-Identifier: Apache-2.0
//! What only a file can get wrong: crashes, failing disks, newer formats, group commit.

use std::fs::File;
use std::io::{BufRead, BufReader, Error};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use redb::StorageBackend;
use weft_base::rng::Rng;

use super::*;
use crate::Op;

mod power;
mod sim;

/// Tells the re-executed test binary to be the writer that is killed.
const CHILD: &str = "WEFT_STORE_CRASH_CHILD";

fn open_at(path: &Path) -> RedbStore {
    RedbStore::open_file(path, Clock::system(), Retention::default()).unwrap()
}

/// A disk that can be told to fail, and that counts its syncs.
#[derive(Debug)]
struct FaultyDisk {
    file: File,
    fault: Arc<Fault>,
}

#[derive(Debug, Default)]
struct Fault {
    broken: AtomicBool,
    /// What is there can be written over, but the file cannot grow.
    full: AtomicBool,
    syncs: AtomicU64,
}

impl FaultyDisk {
    fn check(&self) -> Result<(), Error> {
        match self.fault.broken.load(Ordering::SeqCst) {
            true => Err(Error::from_raw_os_error(28)),
            false => Ok(()),
        }
    }
}

impl StorageBackend for FaultyDisk {
    fn len(&self) -> Result<u64, Error> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), Error> {
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> Result<(), Error> {
        self.check()?;
        if self.fault.full.load(Ordering::SeqCst) && len > self.len()? {
            return Err(Error::from_raw_os_error(28));
        }
        self.file.set_len(len)
    }

    fn sync_data(&self) -> Result<(), Error> {
        self.fault.syncs.fetch_add(1, Ordering::SeqCst);
        self.check()?;
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.check()?;
        self.file.write_all_at(data, offset)
    }
}

fn faulty(path: &Path) -> (RedbStore, Arc<Fault>) {
    let (path, fault) = (path.to_owned(), Arc::new(Fault::default()));
    let shared = fault.clone();
    let opener: Opener = Box::new(move || {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path).map_err(StoreError::storage)?;
        let disk = FaultyDisk { file, fault: shared.clone() };
        let mut builder = redb::Database::builder();
        builder.set_cache_size(1 << 20);
        builder.create_with_backend(disk).map_err(StoreError::storage)
    });
    (RedbStore::open_with(opener, Clock::system(), Retention::default()).unwrap(), fault)
}

#[tokio::test]
async fn a_full_disk_acknowledges_nothing_and_recovers_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let (store, fault) = faulty(&dir.path().join("log.redb"));
    store.txn(Txn::of([Op::put("/a", "1")])).await.unwrap();
    store.txn(Txn::of([Op::put_ephemeral("/e", "1")])).await.unwrap();
    let before = store.barrier().await.unwrap();
    let mut watch = store.watch("/", before.next()).unwrap();

    fault.broken.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        let err = store.txn(Txn::of([Op::put("/a", "2")])).await.unwrap_err();
        assert!(matches!(err, StoreError::Storage(_)), "{err}");
    }
    assert_eq!(store.stats().commit_failures, 3);
    fault.broken.store(false, Ordering::SeqCst);
    let out = store.txn(Txn::of([Op::put("/b", "3")])).await.unwrap();
    assert!(out.revision > before.next(), "revisions jump over what may have been used");
    let page = store.range("/", 0, None).await.unwrap();
    let value = |k: &str| page.entries.iter().find(|(n, _)| &**n == k).map(|(_, e)| &e.value[..]);
    assert_eq!(value("/b"), Some(&b"3"[..]));
    assert_eq!(value("/e"), Some(&b"1"[..]), "memory is not lost with the disk");
    // The write that failed may be there or not, but never half of it.
    assert!(matches!(value("/a"), Some(b"1" | b"2")));
    assert!(watch.next().await.is_err(), "watches list again");
    // An operator sees each commit, how long it took, and that the file was opened again.
    let text = store.meter().unwrap().text();
    let commits = format!("weft_store_commit_duration_seconds_count {}\n", store.stats().commits);
    assert!(store.stats().commits >= 2 && text.contains(&commits), "{text}");
    assert!(!text.contains("weft_store_reopens_total 0\n"), "{text}");
}

#[tokio::test]
async fn a_full_disk_can_be_read_and_written_again_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let (store, fault) = faulty(&dir.path().join("log.redb"));
    let large = "x".repeat(200_000);
    fault.full.store(true, Ordering::SeqCst);
    let mut written = 0;
    let refused = loop {
        assert!(written < 1_000, "the disk is never full");
        match store.txn(Txn::of([Op::put(format!("/{written:04}"), large.clone())])).await {
            Ok(_) => written += 1,
            Err(e) => break e,
        }
    };
    assert!(refused.to_string().contains("No space left"), "{refused}");
    assert!(refused.is_full() && refused.is_passing());
    for _ in 0..3 {
        store.txn(Txn::of([Op::put("/more", large.clone())])).await.unwrap_err();
        let page = store.range("/", 0, None).await.unwrap();
        assert_eq!(page.entries.len(), written, "reads go on");
        assert_eq!(page.revision, store.barrier().await.unwrap(), "and are not behind");
    }
    fault.full.store(false, Ordering::SeqCst);
    store.txn(Txn::of([Op::put("/more", large)])).await.unwrap();
    assert_eq!(store.range("/", 0, None).await.unwrap().entries.len(), written + 1);
}

#[tokio::test]
async fn writers_that_wait_share_a_commit_and_heartbeats_need_none() {
    let dir = tempfile::tempdir().unwrap();
    let (store, fault) = faulty(&dir.path().join("log.redb"));
    store.txn(Txn::of([Op::put("/first", "x")])).await.unwrap();
    let syncs = || fault.syncs.load(Ordering::SeqCst);
    let before = syncs();
    let writes = (0..200).map(|i| store.txn(Txn::of([Op::put(format!("/k/{i}"), "x")])));
    for out in futures_util::future::join_all(writes).await {
        assert!(out.unwrap().succeeded);
    }
    let shared = syncs() - before;
    assert!(shared < 100, "200 writes took {shared} syncs");
    let stats = store.stats();
    assert_eq!((stats.requests, stats.revision), (201, Revision(201)));
    assert!(stats.commits < 100, "{stats:?}");

    let before = syncs();
    for i in 0..100 {
        store.txn(Txn::of([Op::put_ephemeral("/e", i.to_string())])).await.unwrap();
    }
    store.txn(Txn::of([Op::delete("/e")])).await.unwrap();
    assert_eq!(syncs(), before, "ephemeral writes do not touch the disk");
}

#[tokio::test]
async fn a_newer_file_is_refused_with_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.redb");
    drop(open_at(&path));
    {
        let db = redb::Database::create(&path).unwrap();
        let txn = db.begin_write().unwrap();
        let meta = redb::TableDefinition::<&str, u64>::new("meta");
        txn.open_table(meta).unwrap().insert("format", disk::FORMAT + 1).unwrap();
        txn.commit().unwrap();
    }
    let err = RedbStore::open_file(&path, Clock::system(), Retention::default()).unwrap_err();
    assert!(err.to_string().contains("newer weft (format 2, this one knows up to 1)"), "{err}");
}

#[tokio::test]
async fn the_data_directory_is_held_while_the_store_lives() {
    let dir = tempfile::tempdir().unwrap();
    let data = Arc::new(DataDir::open(dir.path()).unwrap());
    let store = RedbStore::open(data, Clock::system()).unwrap();
    assert!(matches!(DataDir::open(dir.path()), Err(StoreError::Locked { .. })));
    drop(store);
    DataDir::open(dir.path()).unwrap();
    use std::os::unix::fs::PermissionsExt;
    let file = std::fs::metadata(dir.path().join("store/log.redb")).unwrap();
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
}

/// Not a test of its own: the process that is killed. Writes pairs of keys for ever, each pair in
/// one transaction, and says which are acknowledged.
#[test]
fn crash_child() {
    let Some(path) = child_path() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let store = Arc::new(open_at(&path));
        let start = store.barrier().await.unwrap().0;
        let write = |lane: u64| {
            let store = store.clone();
            async move {
                for i in 0.. {
                    let n = (start + i) * 8 + lane;
                    let value = format!("{n}-{}", "v".repeat(100));
                    let pair = [
                        Op::put(format!("/l/{n:020}"), value.clone()),
                        Op::put(format!("/r/{n:020}"), value),
                    ];
                    let out = store.txn(Txn::of(pair)).await.unwrap();
                    println!("ack {n} {}", out.revision);
                }
            }
        };
        futures_util::future::join_all((0..8).map(write)).await;
    });
}

fn child_path() -> Option<std::path::PathBuf> {
    std::env::vars_os().find(|(k, _)| k == CHILD).map(|(_, v)| v.into())
}

#[test]
fn a_killed_writer_loses_nothing_that_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.redb");
    drop(open_at(&path));
    let mut rng = Rng::seeded(11);
    let (mut acked, mut newest) = (Vec::<u64>::new(), 0);
    for _ in 0..12 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "redb::tests::crash_child", "--nocapture", "--test-threads=1"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Killed in the middle of whatever it does after a random number of acknowledgements.
        let until = 1 + rng.below(120);
        let mut note = |line: &str, acked: &mut Vec<u64>| {
            let mut words = line.split_once("ack ").map(|(_, w)| w.split(' '))?;
            acked.push(words.next()?.parse().ok()?);
            newest = newest.max(words.next()?.parse::<u64>().ok()?);
            Some(())
        };
        let mut seen = 0;
        while seen < until {
            let line = lines.next().expect("the child writes until it is killed").unwrap();
            seen += u64::from(note(&line, &mut acked).is_some());
        }
        child.kill().unwrap();
        // The last line may be torn by the kill; a torn number is not an acknowledgement.
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        for line in rest.iter().take(rest.len().saturating_sub(1)) {
            note(line, &mut acked);
        }
        child.wait().unwrap();
        verify(&path, &acked, newest);
    }
    assert!(acked.len() > 100, "only {} acknowledged writes were tried", acked.len());
}

fn verify(path: &Path, acked: &[u64], newest: u64) {
    let store = open_at(path);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (left, right) = runtime.block_on(async {
        (store.range("/l/", 0, None).await.unwrap(), store.range("/r/", 0, None).await.unwrap())
    });
    assert!(left.revision.0 >= newest, "the revision went back");
    let values = |page: &Page| {
        let rows = page.entries.iter().map(|(k, e)| (k[3..].to_owned(), e.value.clone()));
        rows.collect::<std::collections::BTreeMap<_, _>>()
    };
    let (left, right) = (values(&left), values(&right));
    assert_eq!(left, right, "a transaction is whole or not there");
    for n in acked {
        let value = left.get(&format!("{n:020}")).expect("an acknowledged write is lost");
        assert_eq!(value, &format!("{n}-{}", "v".repeat(100)));
    }
}
