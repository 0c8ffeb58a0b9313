// SPDX-License-Identifier: Apache-2.0
//! Logs at rest: sound ones, those that a crash left, damaged ones, and large ones.

use std::io::{Seek, SeekFrom};
use std::path::PathBuf;

use weft_base::clock::Clock;

use super::*;
use crate::{Class, Op, Retention, Store, Txn};

fn quiet() -> Progress {
    Arc::new(|_, _, _| {})
}

fn open(path: &Path) -> RedbStore {
    RedbStore::open_file(path, Clock::system(), Retention::default()).unwrap()
}

/// A log with some keys, one of them on a lease.
async fn written(dir: &Path) -> PathBuf {
    let path = dir.join("log.redb");
    let store = open(&path);
    for i in 0..300 {
        let value = format!("{i}-{}", "v".repeat(50));
        store.txn(Txn::of([Op::put(format!("/k/{i:03}"), value)])).await.unwrap();
    }
    let lease = store.lease_grant(Duration::from_secs(60)).await.unwrap();
    let key = "/leased".into();
    let op = Op::Put { key, value: "x".into(), class: Class::Synced, lease: Some(lease) };
    store.txn(Txn::of([op, Op::put_ephemeral("/e", "y")])).await.unwrap();
    path
}

fn digest(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap()
}

#[tokio::test]
async fn a_sound_log_is_found_sound_and_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path()).await;
    let before = digest(&path);
    let report = check(&path, &quiet()).unwrap();
    assert!(report.is_sound() && !report.left_open, "{report:?}");
    assert_eq!((report.keys, report.leases, report.format), (301, 1, FORMAT));
    assert!(digest(&path) == before, "looking changes nothing");
}

#[tokio::test]
async fn a_log_that_a_crash_left_is_looked_at_without_a_change() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.redb");
    let store = open(&path);
    store.txn(Txn::of([Op::put("/a", "1")])).await.unwrap();
    // What a kill leaves: the file as it is while the store is open.
    let crashed = dir.path().join("crashed.redb");
    fs::copy(&path, &crashed).unwrap();
    drop(store);
    let before = digest(&crashed);
    let report = check(&crashed, &quiet()).unwrap();
    assert!(report.left_open && report.is_sound(), "{report:?}");
    assert_eq!(report.keys, 1);
    assert!(digest(&crashed) == before, "looking changes nothing");
    let report = repair(&crashed, &quiet()).unwrap();
    assert!(!report.left_open && report.is_sound(), "{report:?}");
    // What it leaves out of the newest write, if anything, nobody can tell from there on.
    assert_eq!(report.mended, ["rebuilt what a crash left open"]);
    assert!(digest(&report.kept.expect("it is kept")) == before);
    assert_eq!(repair(&crashed, &quiet()).unwrap().mended, Vec::<String>::new());
}

#[tokio::test]
async fn records_that_do_not_fit_are_told_and_mended() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path()).await;
    {
        let db = Database::create(&path).unwrap();
        let txn = db.begin_write().unwrap();
        {
            let mut keys = txn.open_table(KEYS).unwrap();
            keys.insert("/torn", &b"short"[..]).unwrap();
            let entry = |created, modified, lease| {
                disk::encode(&Entry {
                    value: "x".into(),
                    created: Revision(created),
                    modified: Revision(modified),
                    class: Class::Synced,
                    lease,
                })
            };
            keys.insert("/future", entry(1, 1 << 40, None).as_slice()).unwrap();
            keys.insert("/orphan", entry(1, 1, Some(LeaseId(99))).as_slice()).unwrap();
            keys.insert("/early", entry(3, 2, None).as_slice()).unwrap();
        }
        txn.commit().unwrap();
    }
    let report = check(&path, &quiet()).unwrap();
    let text = report.faults.join("\n");
    for part in ["\"/torn\" holds", "\"/future\" is of", "\"/orphan\" hangs", "\"/early\" was"] {
        assert!(text.contains(part), "{text}");
    }
    let report = repair(&path, &quiet()).unwrap();
    assert!(report.is_sound(), "{report:?}");
    assert_eq!(report.mended.len(), 4, "{report:?}");
    assert!(dir.path().join("log.redb.before-repair").exists());
    let store = open(&path);
    assert_eq!(store.get("/torn").await.unwrap().1, None);
    assert_eq!(store.get("/orphan").await.unwrap().1, None);
    assert_eq!(
        store.get("/k/007").await.unwrap().1.unwrap().value,
        format!("7-{}", "v".repeat(50))
    );
    assert!(store.barrier().await.unwrap().0 >= 1 << 40);
}

#[tokio::test]
async fn damage_in_the_file_is_told_never_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path()).await;
    let whole = digest(&path);
    let mut found = 0;
    for at in (0..whole.len() as u64).step_by(whole.len() / 40) {
        fs::write(&path, &whole).unwrap();
        let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&[0xa5; 600]).unwrap();
        drop(file);
        // Free pages may hold anything; used ones are told by an error or a fault.
        match check(&path, &quiet()) {
            Ok(report) => found += u64::from(!report.is_sound()),
            Err(_) => found += 1,
        }
    }
    assert!(found > 0, "no damage was found");
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    check(&path, &quiet()).unwrap_err();
    fs::write(&path, b"").unwrap();
    let err = check(&path, &quiet()).unwrap_err().to_string();
    assert!(err.contains("is empty, but a log was there"), "{err}");
}

#[tokio::test]
async fn what_is_beyond_repair_is_said_so_and_left_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path()).await;
    let whole = digest(&path);
    let places = || (0..whole.len()).filter(|at| whole[*at..].starts_with(b"/k/007"));
    assert!(places().count() > 0);
    // A letter of it changed, wherever it stands; the pages that it stands in overwritten; half.
    let mut letter = whole.clone();
    places().for_each(|at| letter[at + 5] ^= 1);
    let mut pages = whole.clone();
    places().for_each(|at| pages[at / 4096 * 4096..][..4000].fill(0xa5));
    for spoilt in [letter, pages, whole[..whole.len() / 2].to_vec()] {
        fs::write(&path, &spoilt).unwrap();
        let found = check(&path, &quiet()).unwrap_err();
        assert!(matches!(found, StoreError::Damaged { .. }), "{found}");
        let left = repair(&path, &quiet()).unwrap_err();
        assert!(matches!(left, StoreError::BeyondRepair { .. }), "{left}");
        assert!(digest(&path) == spoilt, "it is as it was");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no copy of it is left");
    }
}

#[tokio::test]
async fn a_restored_log_holds_what_was_backed_up_and_revisions_go_on_later() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path()).await;
    let saved = dir.path().join("saved");
    let out = fs::File::create(&saved).unwrap();
    let mut writer = backup(&path, 5, out, &quiet()).unwrap();
    writer.put(&Item::File("ca/root.pem".into(), b"secret".to_vec())).unwrap();
    let (_, counts) = writer.finish().unwrap();
    assert_eq!((counts.keys, counts.leases, counts.files), (301, 1, 1));

    let fresh = dir.path().join("fresh.redb");
    let mut files = Vec::new();
    let mut take = |name: &Path, data: &[u8]| {
        files.push((name.to_owned(), data.to_vec()));
        Ok(())
    };
    let reader = Reader::open(&saved).unwrap();
    let done = restore(&fresh, reader, &mut take, &quiet()).unwrap();
    let (revision, replaced) = (done.revision, done.replaced);
    assert_eq!(replaced, None);
    assert_eq!(files, [(PathBuf::from("ca/root.pem"), b"secret".to_vec())]);
    let (old, new) = (open(&path), open(&fresh));
    let (was, is) =
        (old.range("/", 0, None).await.unwrap(), new.range("/", 0, None).await.unwrap());
    assert_eq!(was.entries, is.entries, "values, revisions and leases");
    assert!(is.revision >= revision && is.revision > was.revision, "{is:?}");
    let lease = is.entries.iter().find(|(k, _)| &**k == "/leased").unwrap().1.lease.unwrap();
    assert!(new.lease_keep_alive(lease).await.is_ok());
    assert_ne!(new.lease_grant(Duration::from_secs(9)).await.unwrap(), lease);
}

#[tokio::test]
async fn a_backup_of_an_open_store_is_of_one_moment() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(open(&dir.path().join("log.redb")));
    let pair = |i: u64| Txn::of([Op::put("/l", i.to_string()), Op::put("/r", i.to_string())]);
    store.txn(pair(0)).await.unwrap();
    let writing = {
        let store = store.clone();
        async move {
            for i in 1..200 {
                store.txn(pair(i)).await.unwrap();
            }
        }
    };
    let reading = async {
        for _ in 0..50 {
            let (saved, _) = store.backup(0, Vec::new()).unwrap().finish().unwrap();
            let mut reader = Reader::new(&saved[..], Path::new("saved")).unwrap();
            let mut values = Vec::new();
            while let Some(item) = reader.next().unwrap() {
                let Item::Key(_, entry) = item else { panic!("{item:?}") };
                assert!(entry.modified <= reader.head().revision);
                values.push(entry.value);
            }
            assert_eq!(values.len(), 2);
            assert_eq!(values[0], values[1], "both of one transaction");
            tokio::task::yield_now().await;
        }
    };
    futures_util::future::join(writing, reading).await;
}

#[tokio::test]
async fn a_torn_backup_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path()).await;
    let (saved, _) = backup(&path, 5, Vec::new(), &quiet()).unwrap().finish().unwrap();
    let before = digest(&path);
    let reader = Reader::new(&saved[..saved.len() - 40], Path::new("saved")).unwrap();
    let err = restore(&path, reader, &mut |_, _| Ok(()), &quiet()).unwrap_err();
    assert!(err.to_string().contains("ends in the middle"), "{err}");
    assert!(digest(&path) == before);
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert_eq!(left, ["log.redb"], "neither half a log nor a second name");
}

/// What is replaced stays until a whole log takes its place, and nothing that was kept is lost.
#[tokio::test]
async fn a_replaced_log_is_there_until_the_new_one_is_and_is_kept_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path()).await;
    let mut writer = backup(&path, 5, Vec::new(), &quiet()).unwrap();
    writer.put(&Item::File("ca/root.pem".into(), b"secret".to_vec())).unwrap();
    let (saved, _) = writer.finish().unwrap();
    let reader = || Reader::new(&saved[..], Path::new("saved")).unwrap();
    let first = digest(&path);
    let replaced = dir.path().join("log.redb.replaced");
    // The log is in place before the files are: when they fail, no empty store is begun.
    let mut refuse = |_: &Path, _: &[u8]| Err(StoreError::Closed);
    restore(&path, reader(), &mut refuse, &quiet()).unwrap_err();
    assert!(check(&path, &quiet()).unwrap().revision.0 > RESTORE_JUMP);
    assert!(digest(&replaced) == first);
    let second = digest(&path);
    let done = restore(&path, reader(), &mut |_, _| Ok(()), &quiet()).unwrap();
    let again = dir.path().join("log.redb.replaced.2");
    assert_eq!(done.replaced.as_ref(), Some(&again));
    assert!(digest(&replaced) == first && digest(&again) == second);
}

#[tokio::test]
async fn a_second_repair_leaves_the_first_ones_copy() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path()).await;
    let spoil = |key: &str| {
        let db = Database::create(&path).unwrap();
        let txn = db.begin_write().unwrap();
        txn.open_table(KEYS).unwrap().insert(key, &b"short"[..]).unwrap();
        txn.commit().unwrap();
    };
    let kept = |name: &str| dir.path().join(format!("log.redb.before-repair{name}"));
    spoil("/torn");
    let first = digest(&path);
    assert_eq!(repair(&path, &quiet()).unwrap().kept, Some(kept("")));
    // Nothing to mend: nothing is kept, and what was kept is not taken away.
    assert_eq!(repair(&path, &quiet()).unwrap().kept, None);
    assert!(digest(&kept("")) == first);
    spoil("/again");
    assert_eq!(repair(&path, &quiet()).unwrap().kept, Some(kept(".2")));
    assert!(digest(&kept("")) == first);
}

/// A million overwrites of a hundred keys leave a file of a size that a hundred keys need, and
/// what was once large becomes small again when it is opened.
#[tokio::test]
async fn a_file_stays_small_and_becomes_small_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.redb");
    let store = open(&path);
    let value = "v".repeat(100);
    for round in 0..100_u32 {
        let writes = (0..100).map(|i| {
            let keys = (0..100).map(|k| Op::put(format!("/k/{k}"), format!("{round}-{i}-{value}")));
            store.txn(Txn::of(keys))
        });
        for out in futures_util::future::join_all(writes).await {
            out.unwrap();
        }
    }
    let stats = store.stats();
    assert_eq!(stats.revision, Revision(10_000));
    let overwritten = fs::metadata(&path).unwrap().len();
    assert!(overwritten < 4 << 20, "{overwritten} bytes after a million overwrites");
    assert!(stats.history_bytes <= Retention::default().bytes + (1 << 20));

    let large = "x".repeat(500_000);
    for i in 0..120 {
        store.txn(Txn::of([Op::put(format!("/large/{i}"), large.clone())])).await.unwrap();
    }
    assert!(fs::metadata(&path).unwrap().len() > 48 << 20);
    store.txn(Txn::of([Op::DeletePrefix { prefix: "/large/".into() }])).await.unwrap();
    drop(store);
    let store = open(&path);
    let again = fs::metadata(&path).unwrap().len();
    assert!(again < 8 << 20, "{again} bytes after what was large is gone");
    assert_eq!(store.range("/", 0, None).await.unwrap().entries.len(), 100);
}
