// SPDX-License-Identifier: Apache-2.0
//! What `weft store` does to a log at rest: look at it, mend it, back it up, restore it. The caller
//! holds the data directory. Looking changes nothing: a log that a crash left open is repaired in
//! memory beside the file.

mod guard;
mod overlay;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata};
use weft_base::limits;

use self::guard::guarded;
use self::overlay::Overlay;
use super::RedbStore;
use super::disk::{self, FORMAT, KEYS, LEASES, META};
use crate::backup::{Head, Item, Reader, Writer};
use crate::{Entry, LeaseId, Revision, StoreError};

/// Told what is being done and how far it is, of how much (0 when that is not known).
pub type Progress = Arc<dyn Fn(&'static str, u64, u64) + Send + Sync>;

/// Given the name and the bytes of a file that travelled with a backup.
pub type TakeFile<'a> = &'a mut dyn FnMut(&Path, &[u8]) -> Result<(), StoreError>;

/// Faults that are told one by one; more are counted.
const FAULTS_TOLD: usize = 20;
const PROGRESS_EVERY: u64 = 4096;
/// Records restored by one commit.
const RESTORE_BATCH: usize = 8192;
/// Revisions left out by restoring: those that clients saw after the backup was made are not given
/// out again.
pub const RESTORE_JUMP: u64 = 1 << 30;

/// What a log was found to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub format: u64,
    /// No later one was ever given out.
    pub revision: Revision,
    pub keys: u64,
    pub leases: u64,
    pub value_bytes: u64,
    pub file_bytes: u64,
    /// A crash left it open; opening it repairs that, and leaves out a newest write that is not
    /// whole on disk, as one that the crash cut short is.
    pub left_open: bool,
    /// What should not be.
    pub faults: Vec<String>,
    /// How many more there are.
    pub more_faults: u64,
    /// What repairing did.
    pub mended: Vec<String>,
    /// Where the log is kept as it was before, when repairing changed it.
    pub kept: Option<PathBuf>,
}

/// What a restore left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The next revision is after this one.
    pub revision: Revision,
    /// Where the log is kept that was there before.
    pub replaced: Option<PathBuf>,
}

// === looking ===

/// Looks at every page and every record. Changes nothing.
///
/// # Errors
/// When the file cannot be read at all, or was written by a newer weft.
pub fn check(path: &Path, progress: &Progress) -> Result<Report, StoreError> {
    guarded(path, || {
        let file_bytes = size(path)?;
        let (overlay, written) = Overlay::open(path).map_err(|e| StoreError::path(path, e))?;
        let mut builder = Database::builder();
        let left_open = Arc::new(AtomicBool::new(false));
        let (noted, told) = (left_open.clone(), progress.clone());
        builder.set_repair_callback(move |session| {
            noted.store(true, Ordering::Relaxed);
            told("repairing a copy in memory", percent(session.progress()), 100);
        });
        let mut db = builder.create_with_backend(overlay).map_err(|e| unusable(path, e))?;
        let mut report = Report { file_bytes, ..Report::default() };
        report.left_open = left_open.load(Ordering::Relaxed);
        progress("checking pages", 0, 0);
        match db.check_integrity() {
            Ok(true) => {}
            Ok(false) => report.fault("pages do not match their checksums".to_owned()),
            Err(e) => return Err(unusable(path, e)),
        }
        look(&db, &mut report, progress)?;
        drop(db);
        tracing::debug!(pages = written.pages(), "pages that checking would have written");
        Ok(report)
    })
}

/// Every record, and whether they fit each other.
fn look(db: &Database, report: &mut Report, progress: &Progress) -> Result<(), StoreError> {
    let txn = db.begin_read().map_err(StoreError::storage)?;
    let Ok(meta) = txn.open_table(META) else {
        report.fault("it has no table of facts".to_owned());
        return Ok(());
    };
    report.format = disk::meta_get(&meta, "format")?.unwrap_or(0);
    if report.format > FORMAT {
        let (path, known) = (PathBuf::from("store/log.redb"), FORMAT);
        return Err(StoreError::Newer { path, found: report.format, known });
    }
    report.revision = Revision(disk::meta_get(&meta, "revision")?.unwrap_or(0));
    let mut leases = BTreeSet::new();
    if let Ok(table) = txn.open_table(LEASES) {
        for row in table.iter().map_err(StoreError::storage)? {
            leases.insert(LeaseId(row.map_err(StoreError::storage)?.0.value()));
        }
    }
    report.leases = u64::try_from(leases.len()).unwrap_or(u64::MAX);
    let Ok(keys) = txn.open_table(KEYS) else {
        report.fault("it has no table of keys".to_owned());
        return Ok(());
    };
    let of = keys.len().map_err(StoreError::storage)?;
    for row in keys.iter().map_err(StoreError::storage)? {
        let (key, value) = row.map_err(StoreError::storage)?;
        report.keys += 1;
        if report.keys.is_multiple_of(PROGRESS_EVERY) {
            progress("reading records", report.keys, of);
        }
        match disk::decode(key.value(), value.value()) {
            Err(_) => report.fault(format!("{:?} holds a record that cannot be read", key.value())),
            Ok(entry) => {
                report.value_bytes += u64::try_from(entry.value.len()).unwrap_or(0);
                let revision = report.revision;
                wrongs(key.value(), &entry, revision, &leases).for_each(|why| report.fault(why));
            }
        }
    }
    Ok(())
}

/// What does not fit in one record.
fn wrongs<'a>(
    key: &'a str,
    entry: &'a Entry,
    revision: Revision,
    leases: &'a BTreeSet<LeaseId>,
) -> impl Iterator<Item = String> + 'a {
    let orphan = entry.lease.filter(|lease| !leases.contains(lease));
    let all = [
        (entry.modified > revision, "is of a revision that was never given out"),
        (entry.created > entry.modified, "was created after it was changed"),
        (orphan.is_some(), "hangs on a lease that is not there"),
        (key.is_empty() || key.len() > limits::STORE_KEY_BYTES_MAX, "has a key of a wrong length"),
    ];
    all.into_iter().filter(|(wrong, _)| *wrong).map(move |(_, why)| format!("{key:?} {why}"))
}

// === mending ===

/// Mends what can be: what a crash left of pages, then records. The file as it was is kept beside
/// it when anything was changed, under a name that nothing had: an earlier repair's copy stays. A
/// sound log comes out as it went in, only without free space.
///
/// # Errors
/// When it is beyond repair, as one is with damage in a page that is in use, or there is no room
/// for a copy: then the log is as it was.
pub fn repair(path: &Path, progress: &Progress) -> Result<Report, StoreError> {
    // What is beyond repair is not touched.
    check(path, progress).map_err(StoreError::beyond_repair)?;
    progress("keeping a copy", 0, 0);
    let kept = keep(path, "before-repair", copy)?;
    let mended = guarded(path, || mend(path, progress));
    let done = mended.and_then(|mended| Ok((mended, check(path, progress)?)));
    let (mended, report) = match done {
        Ok(done) => done,
        Err(why) => {
            disk::put_in_place(&kept, path)?;
            return Err(why.beyond_repair());
        }
    };
    if mended.is_empty() {
        fs::remove_file(&kept).map_err(|e| StoreError::path(&kept, e))?;
        return Ok(report);
    }
    tracing::warn!(kept = %kept.display(), "the log as it was before the repair is kept");
    Ok(Report { mended, kept: Some(kept), ..report })
}

fn mend(path: &Path, progress: &Progress) -> Result<Vec<String>, StoreError> {
    let left_open = Arc::new(AtomicBool::new(false));
    let (noted, told) = (left_open.clone(), progress.clone());
    let mut db = disk::database(path, move |done| {
        noted.store(true, Ordering::Relaxed);
        told("repairing", percent(done), 100);
    })?;
    let mut mended = Vec::new();
    // A newest write that was not whole is not there any more, whatever kept it from being so.
    if left_open.load(Ordering::Relaxed) {
        mended.push("rebuilt what a crash left open".into());
    }
    progress("checking pages", 0, 0);
    match db.check_integrity() {
        Ok(true) => {}
        Ok(false) => mended.push("rebuilt what said which pages are in use".into()),
        Err(e) => return Err(unusable(path, e)),
    }
    mend_records(&db, &mut mended)?;
    progress("removing free space", 0, 0);
    db.compact().map_err(StoreError::storage)?;
    Ok(mended)
}

fn mend_records(db: &Database, mended: &mut Vec<String>) -> Result<(), StoreError> {
    let mut report = Report::default();
    look(db, &mut report, &(Arc::new(|_, _, _| {}) as Progress))?;
    let txn = db.begin_write().map_err(StoreError::storage)?;
    {
        let mut keys = txn.open_table(KEYS).map_err(StoreError::storage)?;
        let mut meta = txn.open_table(META).map_err(StoreError::storage)?;
        let leases = txn.open_table(LEASES).map_err(StoreError::storage)?;
        let mut there = BTreeSet::new();
        for row in leases.iter().map_err(StoreError::storage)? {
            there.insert(LeaseId(row.map_err(StoreError::storage)?.0.value()));
        }
        let (mut bad, mut newest) = (Vec::new(), report.revision);
        for row in keys.iter().map_err(StoreError::storage)? {
            let (key, value) = row.map_err(StoreError::storage)?;
            let entry = disk::decode(key.value(), value.value()).ok();
            newest = newest.max(entry.as_ref().map_or(newest, |e| e.modified));
            let sound = entry.as_ref().is_some_and(|entry| {
                wrongs(key.value(), entry, Revision(u64::MAX), &there).next().is_none()
            });
            if !sound {
                bad.push((key.value().to_owned(), entry));
            }
        }
        for (key, entry) in bad {
            mended.push(mend_record(&mut keys, &key, entry, &there)?);
        }
        if newest > report.revision || report.format == 0 {
            meta.insert("revision", newest.0).map_err(StoreError::storage)?;
            meta.insert("format", FORMAT).map_err(StoreError::storage)?;
            mended.push(format!("set the newest revision to {newest}, as records have it"));
        }
    }
    txn.commit().map_err(StoreError::storage)
}

fn mend_record(
    keys: &mut redb::Table<'_, &'static str, &'static [u8]>,
    key: &str,
    entry: Option<Entry>,
    leases: &BTreeSet<LeaseId>,
) -> Result<String, StoreError> {
    let fits = !key.is_empty() && key.len() <= limits::STORE_KEY_BYTES_MAX;
    let Some(mut entry) = entry.filter(|_| fits) else {
        keys.remove(key).map_err(StoreError::storage)?;
        return Ok(format!("removed {key:?}, whose record cannot be read"));
    };
    // Its lease was to end it, and has ended.
    if entry.lease.is_some_and(|lease| !leases.contains(&lease)) {
        keys.remove(key).map_err(StoreError::storage)?;
        return Ok(format!("removed {key:?}, whose lease is gone"));
    }
    entry.created = entry.created.min(entry.modified);
    keys.insert(key, disk::encode(&entry).as_slice()).map_err(StoreError::storage)?;
    Ok(format!("set when {key:?} was created"))
}

// === backing up ===

/// Writes everything in a log at rest.
///
/// # Errors
/// When the log cannot be read or the backup not written.
pub fn backup<W: Write>(
    path: &Path,
    wall_ms: u64,
    out: W,
    progress: &Progress,
) -> Result<Writer<W>, StoreError> {
    guarded(path, || {
        size(path)?;
        let told = progress.clone();
        let db = disk::database(path, move |done| told("repairing", percent(done), 100))?;
        let txn = db.begin_read().map_err(StoreError::storage)?;
        let meta = txn.open_table(META).map_err(|e| unusable(path, e))?;
        let word = |name| disk::meta_get(&meta, name).map(Option::unwrap_or_default);
        let (revision, next_lease) = (Revision(word("revision")?), word("next_lease")?);
        let head = Head { revision, next_lease, wall_ms };
        let mut writer = Writer::new(out, head).map_err(StoreError::storage)?;
        let leases = txn.open_table(LEASES).map_err(|e| unusable(path, e))?;
        for row in leases.iter().map_err(StoreError::storage)? {
            let (id, ms) = row.map_err(StoreError::storage)?;
            let ttl = Duration::from_millis(ms.value());
            writer.put(&Item::Lease(LeaseId(id.value()), ttl)).map_err(StoreError::storage)?;
        }
        let keys = txn.open_table(KEYS).map_err(|e| unusable(path, e))?;
        let (of, mut done) = (keys.len().map_err(StoreError::storage)?, 0);
        for row in disk::scan(&keys, "", None)? {
            let (key, entry) = row?;
            writer.put(&Item::Key(key, entry)).map_err(StoreError::storage)?;
            done += 1;
            if u64::is_multiple_of(done, PROGRESS_EVERY) {
                progress("writing records", done, of);
            }
        }
        Ok(writer)
    })
}

impl RedbStore {
    /// The leases that are there, and how long each lives without a sign of life.
    pub fn leases(&self) -> Vec<(LeaseId, Duration)> {
        let view = self.shared.view();
        view.state.leases.iter().map(|(id, lease)| (*id, lease.ttl)).collect()
    }

    /// The same of a log that is open, as of one revision. Writers are not held up.
    ///
    /// # Errors
    /// As [`backup`].
    pub fn backup<W: Write>(&self, wall_ms: u64, out: W) -> Result<Writer<W>, StoreError> {
        let view = self.shared.view();
        let state = &view.state;
        let head = Head { revision: state.revision, next_lease: state.next_lease, wall_ms };
        let mut writer = Writer::new(out, head).map_err(StoreError::storage)?;
        for (id, lease) in &state.leases {
            writer.put(&Item::Lease(*id, lease.ttl)).map_err(StoreError::storage)?;
        }
        for row in disk::scan(view.keys()?, "", None)? {
            let (key, entry) = row?;
            writer.put(&Item::Key(key, entry)).map_err(StoreError::storage)?;
        }
        Ok(writer)
    }
}

// === restoring ===

/// Makes a log from a backup's records and puts it in place once it is whole; then files that
/// travelled with it are given to `file`. Revisions jump by [`RESTORE_JUMP`]. A log that is there
/// is kept under a name that nothing had, and is in its place until the new one takes it: a crash
/// leaves the one or the other.
///
/// # Errors
/// When the backup is not whole, or the log cannot be written: then nothing is changed. What `file`
/// says comes after the log is in place.
pub fn restore<R: io::Read>(
    path: &Path,
    from: Reader<R>,
    file: TakeFile<'_>,
    progress: &Progress,
) -> Result<Restored, StoreError> {
    let new = path.with_extension("restored");
    match fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(StoreError::path(&new, e)),
        _ => {}
    }
    let (revision, files) = build(&new, from, progress).inspect_err(|_| {
        // It is no log, and may have filled the disk.
        let _ = fs::remove_file(&new);
    })?;
    let replaced = replaced(path)?;
    disk::put_in_place(&new, path)?;
    for (name, data) in files {
        file(&name, &data)?;
    }
    Ok(Restored { revision, replaced })
}

type Files = Vec<(PathBuf, Vec<u8>)>;

/// A whole log under a name of its own, and the files of the backup.
fn build<R: io::Read>(
    new: &Path,
    mut from: Reader<R>,
    progress: &Progress,
) -> Result<(Revision, Files), StoreError> {
    let db = disk::database(new, |_| {})?;
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(new, private).map_err(|e| StoreError::path(new, e))?;
    let head = from.head();
    let revision = Revision(head.revision.0.saturating_add(RESTORE_JUMP));
    let (mut files, mut done) = (Vec::new(), 0);
    loop {
        let txn = db.begin_write().map_err(StoreError::storage)?;
        let mut tables = disk::tables(&txn)?;
        let mut ended = false;
        for _ in 0..RESTORE_BATCH {
            match from.next()? {
                Some(Item::Key(key, entry)) => crate::draft::Table::put(&mut tables, &key, &entry)?,
                Some(Item::Lease(id, ttl)) => {
                    crate::draft::Table::put_lease(&mut tables, id, Some(ttl))?;
                }
                Some(Item::File(name, data)) => files.push((name, data)),
                None => ended = true,
            }
            if ended {
                break;
            }
            done += 1;
        }
        drop(tables);
        disk::stamp(&txn, revision, head.next_lease)?;
        txn.commit().map_err(StoreError::storage)?;
        progress("restoring records", done, 0);
        if ended {
            return Ok((revision, files));
        }
    }
}

// === keeping what is replaced ===

/// Keeps a file that is about to be replaced as `NAME.replaced`, or with a number behind it;
/// nothing when there is none. It stays under its own name, too.
///
/// # Errors
/// When it cannot be kept: then it must not be replaced.
pub fn replaced(path: &Path) -> Result<Option<PathBuf>, StoreError> {
    match path.try_exists().map_err(|e| StoreError::path(path, e))? {
        true => keep(path, "replaced", link).map(Some),
        false => Ok(None),
    }
}

/// The file under another name of its directory, which nothing had before.
fn keep(
    path: &Path,
    suffix: &str,
    how: fn(&Path, &Path) -> io::Result<()>,
) -> Result<PathBuf, StoreError> {
    let mut number = 1_u32;
    loop {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(match number {
            1 => format!(".{suffix}"),
            n => format!(".{suffix}.{n}"),
        });
        let kept = path.with_file_name(name);
        match how(path, &kept) {
            Ok(()) => return disk::sync_names(path).map(|()| kept),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(e) => return Err(StoreError::path(&kept, e)),
        }
    }
}

/// A second name; where the filesystem has none of that, a copy.
fn link(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => copy(from, to),
        done => done,
    }
}

/// A copy that is on disk, or none.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut from = fs::File::open(from)?;
    let mut options = fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut made = options.write(true).create_new(true).open(to)?;
    let copied = io::copy(&mut from, &mut made).and_then(|_| made.sync_all());
    copied.inspect_err(|_| {
        let _ = fs::remove_file(to);
    })
}

// === impl Report ===

impl Report {
    /// Whether nothing is wrong with it.
    pub fn is_sound(&self) -> bool {
        self.faults.is_empty()
    }

    fn fault(&mut self, why: String) {
        match self.faults.len() < FAULTS_TOLD {
            true => self.faults.push(why),
            false => self.more_faults += 1,
        }
    }
}

// === helpers ===

fn size(path: &Path) -> Result<u64, StoreError> {
    match fs::metadata(path).map_err(|e| StoreError::path(path, e))?.len() {
        0 => Err(StoreError::Emptied { path: path.to_owned() }),
        bytes => Ok(bytes),
    }
}

fn unusable(path: &Path, why: impl std::fmt::Display) -> StoreError {
    StoreError::Damaged { path: path.to_owned(), why: why.to_string() }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // of a share, clamped
fn percent(share: f64) -> u64 {
    (share.clamp(0.0, 1.0) * 100.0) as u64
}

#[cfg(test)]
mod tests;
