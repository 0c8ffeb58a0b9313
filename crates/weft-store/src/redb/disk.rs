// SPDX-License-Identifier: Apache-2.0
//! What is in the file: three tables, the record's form, opening and its version.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use redb::{Database, ReadOnlyTable, ReadableTable, TableDefinition, WriteTransaction};

use crate::draft::{Lease, State, Table};
use crate::{Class, Entry, Key, LeaseId, Revision, StoreError};

/// The form of the file that this weft writes.
pub(super) const FORMAT: u64 = 1;
/// Pages that redb may keep in memory: the upper ones of a large file. The World holds what is
/// read, and the system's page cache has the rest, also what a large commit touches: a registration
/// costs no more than with four times as many.
const CACHE_BYTES: usize = 512 * 1024;
/// A file of this size is looked at when it is opened, whether it is mostly free space: then it is
/// made smaller. Reading how much of it is used takes longer than opening it.
const HOLLOW_BYTES_MIN: u64 = 32 * 1024 * 1024;
const HOLLOW_FACTOR: u64 = 3;
/// `created`, `modified` and the lease (0 for none), each 8 bytes little endian.
const HEADER: usize = 24;

pub(super) const KEYS: TableDefinition<&str, &[u8]> = TableDefinition::new("keys");
pub(super) const LEASES: TableDefinition<u64, u64> = TableDefinition::new("leases");
pub(super) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

pub(super) type ReadKeys = ReadOnlyTable<&'static str, &'static [u8]>;

/// Opens the database, also again after a failure.
pub(super) type Opener = Box<dyn Fn() -> Result<Database, StoreError> + Send>;

/// A database just opened and what was found in it.
pub(super) struct Opened {
    pub db: Database,
    pub keys: ReadKeys,
    pub state: State,
    /// No revision beyond this one was ever given out.
    pub reserved: Revision,
}

/// The tables of an open write transaction.
pub(super) struct Tables<'t> {
    keys: redb::Table<'t, &'static str, &'static [u8]>,
    leases: redb::Table<'t, u64, u64>,
}

/// Reads alone, for a batch that was judged to touch memory only.
pub(super) struct NoDisk<'v>(pub &'v ReadKeys);

pub(super) fn file(path: PathBuf) -> Opener {
    Box::new(move || {
        let mut db = match fs::metadata(&path) {
            Ok(meta) if meta.len() == 0 => return Err(StoreError::Emptied { path: path.clone() }),
            Ok(_) => database(&path, |_| {})?,
            Err(e) if e.kind() == ErrorKind::NotFound => fresh(&path)?,
            Err(e) => return Err(StoreError::path(&path, e)),
        };
        // redb makes the file with the usual mode; objects hold secrets.
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(&path, private).map_err(|e| StoreError::path(&path, e))?;
        if is_hollow(&db, &path)? {
            tracing::info!(file = %path.display(), "most of the store's file is free: compacting");
            db.compact().map_err(StoreError::storage)?;
        }
        Ok(db)
    })
}

/// Opens a file that is there; `progress` is told how far repairing one that a crash left is.
pub(super) fn database(
    path: &Path,
    progress: impl Fn(f64) + 'static,
) -> Result<Database, StoreError> {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder.set_repair_callback(move |session| progress(session.progress()));
    builder.create(path).map_err(|e| match e {
        redb::DatabaseError::DatabaseAlreadyOpen => {
            StoreError::Locked { path: path.to_owned(), pid: None }
        }
        redb::DatabaseError::Storage(redb::StorageError::Corrupted(why)) => {
            StoreError::Damaged { path: path.to_owned(), why }
        }
        e => StoreError::storage(e),
    })
}

/// A new file, put in place only once it is one: an empty file is never a new store.
pub(super) fn fresh(path: &Path) -> Result<Database, StoreError> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(StoreError::path(&new, e)),
        _ => {}
    }
    let db = database(&new, |_| {})?;
    put_in_place(&new, path)?;
    Ok(db)
}

/// Renames a file for good.
pub(super) fn put_in_place(new: &Path, path: &Path) -> Result<(), StoreError> {
    fs::rename(new, path).map_err(|e| StoreError::path(path, e))?;
    sync_names(path)
}

/// Makes the names in a file's directory last.
pub(super) fn sync_names(path: &Path) -> Result<(), StoreError> {
    let parent = path.parent().unwrap_or(Path::new("."));
    let synced = fs::File::open(parent).and_then(|dir| dir.sync_all());
    synced.map_err(|e| StoreError::path(parent, e))
}

/// Whether a large file is mostly free space, as after much was deleted.
fn is_hollow(db: &Database, path: &Path) -> Result<bool, StoreError> {
    let len = fs::metadata(path).map_err(|e| StoreError::path(path, e))?.len();
    if len < HOLLOW_BYTES_MIN {
        return Ok(false);
    }
    let txn = db.begin_write().map_err(StoreError::storage)?;
    let stats = txn.stats().map_err(StoreError::storage)?;
    let page = u64::try_from(stats.page_size()).unwrap_or(u64::MAX);
    let used = stats.allocated_pages().saturating_mul(page);
    txn.abort().map_err(StoreError::storage)?;
    Ok(used.saturating_mul(HOLLOW_FACTOR) < len)
}

pub(super) fn open(opener: &Opener) -> Result<Opened, StoreError> {
    let db = opener()?;
    let txn = db.begin_write().map_err(StoreError::storage)?;
    let (mut state, reserved);
    {
        let mut meta = txn.open_table(META).map_err(StoreError::storage)?;
        let found = meta_get(&meta, "format")?;
        match found {
            Some(found) if found > FORMAT => {
                let path = PathBuf::from("store/log.redb");
                return Err(StoreError::Newer { path, found, known: FORMAT });
            }
            Some(_) => {}
            None => {
                meta.insert("format", FORMAT).map_err(StoreError::storage)?;
            }
        }
        reserved = Revision(meta_get(&meta, "revision")?.unwrap_or(0));
        txn.open_table(KEYS).map_err(StoreError::storage)?;
        let leases = txn.open_table(LEASES).map_err(StoreError::storage)?;
        state = State { revision: reserved, ..State::default() };
        state.next_lease = meta_get(&meta, "next_lease")?.unwrap_or(0);
        for row in leases.iter().map_err(StoreError::storage)? {
            let (id, ttl) = row.map_err(StoreError::storage)?;
            let lease = Lease { ttl: Duration::from_millis(ttl.value()), ..Lease::default() };
            state.leases.insert(LeaseId(id.value()), lease);
        }
    }
    txn.commit().map_err(StoreError::storage)?;
    let keys = snapshot(&db)?;
    if !state.leases.is_empty() {
        attach(&mut state, &keys)?;
    }
    Ok(Opened { db, keys, state, reserved })
}

/// Finds the keys that hang on a lease.
fn attach(state: &mut State, keys: &ReadKeys) -> Result<(), StoreError> {
    for row in scan(keys, "", None)? {
        let (key, entry) = row?;
        if let Some(lease) = entry.lease.and_then(|id| state.leases.get_mut(&id)) {
            lease.keys.insert(key);
        }
    }
    Ok(())
}

/// The keys as of the last commit.
pub(super) fn snapshot(db: &Database) -> Result<ReadKeys, StoreError> {
    use redb::ReadableDatabase;
    let txn = db.begin_read().map_err(StoreError::storage)?;
    txn.open_table(KEYS).map_err(StoreError::storage)
}

pub(super) fn tables(txn: &WriteTransaction) -> Result<Tables<'_>, StoreError> {
    Ok(Tables {
        keys: txn.open_table(KEYS).map_err(StoreError::storage)?,
        leases: txn.open_table(LEASES).map_err(StoreError::storage)?,
    })
}

/// Notes how far revisions and leases may go before the file is written again.
pub(super) fn reserve(
    txn: &WriteTransaction,
    reserved: Revision,
    next_lease: u64,
) -> Result<(), StoreError> {
    let mut meta = txn.open_table(META).map_err(StoreError::storage)?;
    meta.insert("revision", reserved.0).map_err(StoreError::storage)?;
    meta.insert("next_lease", next_lease).map_err(StoreError::storage)?;
    Ok(())
}

/// The same, with the form of the file: for a file that is made whole.
pub(super) fn stamp(
    txn: &WriteTransaction,
    reserved: Revision,
    next_lease: u64,
) -> Result<(), StoreError> {
    let mut meta = txn.open_table(META).map_err(StoreError::storage)?;
    meta.insert("format", FORMAT).map_err(StoreError::storage)?;
    drop(meta);
    reserve(txn, reserved, next_lease)
}

pub(super) fn get(
    keys: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
) -> Result<Option<Entry>, StoreError> {
    let found = keys.get(key).map_err(StoreError::storage)?;
    found.map(|guard| decode(key, guard.value())).transpose()
}

/// Keys under a prefix in order, after `after` when given.
pub(super) fn scan<'t, R: ReadableTable<&'static str, &'static [u8]>>(
    keys: &'t R,
    prefix: &str,
    after: Option<&str>,
) -> Result<impl Iterator<Item = Result<(Key, Entry), StoreError>> + use<'t, R>, StoreError> {
    let start = after.map_or(prefix, |a| a.max(prefix));
    let rows = keys.range(start..).map_err(StoreError::storage)?;
    let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
    let rows = rows.map(|row| {
        let (key, value) = row.map_err(StoreError::storage)?;
        Ok((Key::from(key.value()), value))
    });
    Ok(rows
        .take_while(move |row| row.as_ref().map_or(true, |(k, _)| k.starts_with(&prefix)))
        .filter(move |row| {
            row.as_ref().map_or(true, |(k, _)| after.as_ref().is_none_or(|a| **k > **a))
        })
        .map(|row: Result<(Key, redb::AccessGuard<'_, &[u8]>), StoreError>| {
            let (key, value) = row?;
            let entry = decode(&key, value.value())?;
            Ok((key, entry))
        }))
}

pub(super) fn meta_get(
    meta: &impl ReadableTable<&'static str, u64>,
    key: &str,
) -> Result<Option<u64>, StoreError> {
    Ok(meta.get(key).map_err(StoreError::storage)?.map(|v| v.value()))
}

pub(super) fn encode(entry: &Entry) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + entry.value.len());
    out.extend(entry.created.0.to_le_bytes());
    out.extend(entry.modified.0.to_le_bytes());
    out.extend(entry.lease.map_or(0, |l| l.0).to_le_bytes());
    out.extend(&entry.value);
    out
}

pub(super) fn decode(key: &str, bytes: &[u8]) -> Result<Entry, StoreError> {
    let corrupt = || StoreError::Corrupt { key: key.to_owned() };
    let (header, value) = bytes.split_at_checked(HEADER).ok_or_else(corrupt)?;
    let mut words = header.chunks_exact(8).map(|c| c.try_into().map(u64::from_le_bytes));
    let mut word = || words.next().and_then(Result::ok).ok_or_else(corrupt);
    let (created, modified, lease) = (Revision(word()?), Revision(word()?), word()?);
    let lease = (lease != 0).then_some(LeaseId(lease));
    let value = Bytes::copy_from_slice(value);
    Ok(Entry { value, created, modified, class: Class::Synced, lease })
}

// === impl Tables ===

impl Table for Tables<'_> {
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        get(&self.keys, key)
    }

    fn put(&mut self, key: &str, entry: &Entry) -> Result<(), StoreError> {
        let bytes = encode(entry);
        self.keys.insert(key, bytes.as_slice()).map_err(StoreError::storage)?;
        Ok(())
    }

    fn remove(&mut self, key: &str) -> Result<(), StoreError> {
        self.keys.remove(key).map_err(StoreError::storage)?;
        Ok(())
    }

    fn keys(&self, prefix: &str, max: usize) -> Result<Vec<Key>, StoreError> {
        scan(&self.keys, prefix, None)?.take(max).map(|row| Ok(row?.0)).collect()
    }

    fn put_lease(&mut self, lease: LeaseId, ttl: Option<Duration>) -> Result<(), StoreError> {
        match ttl {
            Some(ttl) => {
                let ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
                self.leases.insert(lease.0, ms).map_err(StoreError::storage)?;
            }
            None => {
                self.leases.remove(lease.0).map_err(StoreError::storage)?;
            }
        }
        Ok(())
    }
}

// === impl NoDisk ===

impl NoDisk<'_> {
    fn refuse() -> StoreError {
        weft_base::bug!("a batch judged to touch memory only wrote to disk");
        #[allow(unreachable_code)]
        StoreError::storage(std::io::Error::other("the batch was misjudged; nothing is written"))
    }
}

impl Table for NoDisk<'_> {
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        get(self.0, key)
    }

    fn put(&mut self, _: &str, _: &Entry) -> Result<(), StoreError> {
        Err(Self::refuse())
    }

    fn remove(&mut self, _: &str) -> Result<(), StoreError> {
        Err(Self::refuse())
    }

    fn keys(&self, prefix: &str, max: usize) -> Result<Vec<Key>, StoreError> {
        scan(self.0, prefix, None)?.take(max).map(|row| Ok(row?.0)).collect()
    }

    fn put_lease(&mut self, _: LeaseId, _: Option<Duration>) -> Result<(), StoreError> {
        Err(Self::refuse())
    }
}
