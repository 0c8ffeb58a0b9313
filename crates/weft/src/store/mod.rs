// SPDX-License-Identifier: Apache-2.0
//! `weft store check|repair|backup|restore|migrate`: what is done to a data directory at rest. The
//! work is `weft_store`'s; this finds the files, holds the directory and tells how it went.
//!
//! Exit codes: 3 when a check found faults or damage, 1 when something could not be done.

mod args;
#[cfg(test)]
#[path = "../../../../tests/suites/doctored.rs"]
pub mod doctored;
pub mod etcd;
mod migrate;

pub use migrate::MIGRATING;

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, IsTerminal as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use weft_base::clock::{Clock, Mono};
use weft_store::backup::{Counts, Item, Reader};
use weft_store::redb::tools::{self, Progress, Report};
use weft_store::{DataDir, StoreError};

pub use args::{AtRest, BackupArgs, MigrateArgs, RestoreArgs, StoreCommand};

use crate::client::Api;
use crate::exit::{CheckFailed, Usage};
use crate::{data, state_home};

/// Where a running server hands out its log.
pub const BACKUP_PATH: &str = "/v1/weft/store/backup";
/// What belongs to a mesh besides its log: its authority, and the one for Consul's clients.
const FILES: [&str; 4] =
    ["ca/root.pem", "ca/bundle.pem", "consul-ca/root.pem", "consul-ca/bundle.pem"];
/// Work that takes less than this is not told about.
const TELL_AFTER: Duration = Duration::from_secs(1);
const TELL_EVERY: Duration = Duration::from_millis(500);

pub async fn run(command: &StoreCommand) -> Result<()> {
    match command {
        StoreCommand::Check(args) => check(args),
        StoreCommand::Repair(args) => repair(args),
        StoreCommand::Backup(args) => match &args.server {
            Some(server) => fetch(server, &args.file).await,
            None => backup(args),
        },
        StoreCommand::Restore(args) => restore(args),
        StoreCommand::Migrate(args) => migrate::run(args).await,
    }
}

fn check(args: &AtRest) -> Result<()> {
    let (_held, log) = held(args)?;
    let report = looked(tools::check(&log, &progress(args.quiet)))?;
    tell(&log, &report);
    match report.is_sound() {
        true => Ok(()),
        false => Err(anyhow!(CheckFailed(
            "the log has faults: mend it with `weft store repair`, or restore a backup".into()
        ))),
    }
}

fn repair(args: &AtRest) -> Result<()> {
    let (_held, log) = held(args)?;
    let report = looked(tools::repair(&log, &progress(args.quiet)))?;
    for line in &report.mended {
        crate::say!("{line}");
    }
    tell(&log, &report);
    match &report.kept {
        Some(kept) => crate::say!("the log as it was is {}; delete it in time", kept.display()),
        None if report.is_sound() => crate::say!("nothing had to be mended"),
        None => {}
    }
    match report.is_sound() {
        true => Ok(()),
        false => Err(anyhow!(CheckFailed("faults are left: restore a backup".into()))),
    }
}

/// A log that is damaged is what was to be found out, as a fault in it is.
fn looked(done: Result<Report, StoreError>) -> Result<Report> {
    done.map_err(|why| match why.is_damage() {
        true => anyhow!(CheckFailed(why.to_string())),
        false => why.into(),
    })
}

fn backup(args: &BackupArgs) -> Result<()> {
    let (held, log) = held(&args.at)?;
    let file = Draft::create(&args.file)?;
    let told = progress(args.at.quiet);
    let mut writer = tools::backup(&log, Clock::system().wall_ms(), &file, &told)?;
    if !args.without_ca {
        for name in FILES {
            let path = held.path().join(name);
            match fs::read(&path) {
                Ok(data) => writer.put(&Item::File(name.into(), data))?,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(e).with_context(|| path.display().to_string()),
            }
        }
    }
    writer.finish()?;
    let counts = file.keep(&args.file)?;
    crate::say!("{} written: {}", args.file.display(), amount(&counts));
    if counts.files > 0 {
        crate::say!("it holds the authority's keys: who has it can take on any identity");
    }
    Ok(())
}

/// A running server's log, as of one revision.
async fn fetch(server: &str, to: &Path) -> Result<()> {
    let file = Draft::create(to)?;
    Api::new(server).download(BACKUP_PATH, &mut &file).await?;
    let counts = file.keep(to)?;
    crate::say!("{} written: {}", to.display(), amount(&counts));
    crate::say!("the authorities are not in it: back up its ca/ and consul-ca/ folders as well");
    Ok(())
}

fn restore(args: &RestoreArgs) -> Result<()> {
    let (head, counts) = Reader::verify(&args.file)?;
    let dir = location(&args.at);
    let log = dir.join("store/log.redb");
    let files = FILES.iter().filter(|name| name.ends_with("root.pem")).map(|name| dir.join(name));
    let there = std::iter::once(log.clone()).chain(files).find(|path| path.exists());
    if let Some(there) = there.filter(|_| !args.force) {
        bail!(Usage(format!(
            "{} is there already; name another --data, or replace it with --force",
            there.display()
        )));
    }
    let held = DataDir::open(&dir)?;
    held.sub("store")?;
    let mut file = |name: &Path, data: &[u8]| replace(&dir.join(name), data);
    let from = Reader::open(&args.file)?;
    let done = tools::restore(&log, from, &mut file, &progress(args.at.quiet))?;
    let revision = done.revision;
    crate::say!("{} restored: {}", dir.display(), amount(&counts));
    if let Some(kept) = done.replaced {
        crate::say!("the log that was there is {}; delete it in time", kept.display());
    }
    crate::say!(
        "it shows revision {}; the next one is after {revision}, so that none is given out twice",
        head.revision
    );
    if counts.files == 0 {
        crate::say!(
            "the backup holds no authority: what is in {0}/ca and {0}/consul-ca stays, or is made",
            dir.display()
        );
    }
    Ok(())
}

// === what several use ===

fn location(args: &AtRest) -> PathBuf {
    data::location(args.data.as_deref(), None, &state_home())
}

/// The data directory, held, and its log.
fn held(args: &AtRest) -> Result<(DataDir, PathBuf)> {
    let dir = location(args);
    let log = dir.join("store/log.redb");
    if !log.exists() {
        bail!(Usage(format!(
            "{} is not there; name the data directory of a server or of `weft up` with --data",
            log.display()
        )));
    }
    Ok((DataDir::open(dir)?, log))
}

fn tell(log: &Path, report: &Report) {
    crate::say!(
        "{}: format {}, revision {}, {} keys of {} bytes, {} leases; the file has {} bytes",
        log.display(),
        report.format,
        report.revision,
        report.keys,
        report.value_bytes,
        report.leases,
        report.file_bytes
    );
    if report.left_open {
        crate::say!(
            "a crash left it open: opening it repairs that, and leaves out a newest write that is \
             not whole on disk"
        );
    }
    for fault in &report.faults {
        crate::say!("fault: {fault}");
    }
    if report.more_faults > 0 {
        crate::say!("and {} more", report.more_faults);
    }
    if report.is_sound() {
        crate::say!("it is sound");
    }
}

fn amount(counts: &Counts) -> String {
    let Counts { keys, leases, files } = counts;
    format!("{keys} keys, {leases} leases, {files} files")
}

/// Tells on stderr how far long work is, a line at a time, or in place on a terminal.
fn progress(quiet: bool) -> Progress {
    let clock = Clock::system();
    let (began, last) = (clock.now(), Mutex::new(Mono::default()));
    let terminal = std::io::stderr().is_terminal();
    Arc::new(move |what, done, of| {
        let now = clock.now();
        let Ok(mut last) = last.lock() else { return };
        if quiet || now.since(began) < TELL_AFTER || now.since(*last) < TELL_EVERY {
            return;
        }
        *last = now;
        let share = match of {
            0 if done == 0 => String::new(),
            0 => format!(": {done}"),
            of => format!(": {} %", done * 100 / of),
        };
        let end = if terminal { "\r" } else { "\n" };
        eprint!("weft: {what}{share}   {end}");
    })
}

/// Writes a private file; one that is there and says something else is kept under another name.
fn replace(path: &Path, data: &[u8]) -> Result<(), StoreError> {
    let same = fs::read(path).is_ok_and(|old| old == data);
    if !same && let Some(kept) = tools::replaced(path)? {
        crate::say!("the {} that was there is kept as {}", path.display(), kept.display());
    }
    put_private(path, data)
}

/// Writes a file that only its owner may read, whole or not at all.
pub fn put_private(path: &Path, data: &[u8]) -> Result<(), StoreError> {
    let failed = |source: std::io::Error| StoreError::Path {
        path: path.to_owned(),
        source: Arc::new(source),
    };
    if let Some(parent) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(failed)?;
    }
    let new = path.with_extension("new");
    let _ = fs::remove_file(&new);
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new);
    let mut file = made.map_err(failed)?;
    file.write_all(data).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&new, path).map_err(failed)
}

/// A backup on its way: under its name only when it is whole and on disk.
struct Draft {
    path: PathBuf,
    out: Mutex<BufWriter<File>>,
    kept: std::cell::Cell<bool>,
}

// === impl Draft ===

impl Draft {
    fn create(to: &Path) -> Result<Self> {
        if to.exists() {
            bail!(Usage(format!("{} is there already; choose another name", to.display())));
        }
        let mut name = to.file_name().unwrap_or_default().to_owned();
        name.push(".part");
        let path = to.with_file_name(name);
        let _ = fs::remove_file(&path);
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let out = made.with_context(|| format!("{} cannot be made", path.display()))?;
        Ok(Self { path, out: Mutex::new(BufWriter::new(out)), kept: false.into() })
    }

    /// Reads it back, and gives it its name when it is whole.
    fn keep(&self, to: &Path) -> Result<Counts> {
        let mut out = self.out.lock().map_err(|_| anyhow!("writing it failed"))?;
        out.flush()?;
        out.get_ref().sync_all()?;
        let (_, counts) = Reader::verify(&self.path)?;
        fs::rename(&self.path, to)?;
        self.kept.set(true);
        Ok(counts)
    }
}

impl std::io::Write for &Draft {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.out.lock().map_err(|_| std::io::Error::other("it failed before"))?.write(data)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.lock().map_err(|_| std::io::Error::other("it failed before"))?.flush()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.kept.get() {
            let _ = fs::remove_file(&self.path);
        }
    }
}
