// SPDX-License-Identifier: Apache-2.0
//! The data directory: mode 0700, one process at a time, refusing what a newer weft wrote.
//!
//! `LOCK` (held while a server runs; holds its process id), `VERSION`, `store/`, `ca/`,
//! `lastgood/`, `logs/`, `run/` (sockets).

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};
use weft_base::name::slug;

/// Layout version of the data directory.
const VERSION: u32 = 1;

/// An opened data directory; the lock is held while this lives.
#[derive(Debug)]
pub struct DataDir {
    pub path: PathBuf,
    _lock: File,
}

// === impl DataDir ===

impl DataDir {
    /// Opens or makes the directory and takes its lock.
    pub fn open(path: &Path) -> Result<Self> {
        make_private(path)?;
        let lock = take_lock(path)?;
        check_version(path)?;
        for sub in ["store", "ca", "lastgood", "logs", "run"] {
            make_private(&path.join(sub))?;
        }
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    pub fn sub(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// The data directory of a run: the given one, or one named after the manifests' folder.
pub fn location(given: Option<&Path>, manifests: Option<&Path>, state_home: &Path) -> PathBuf {
    if let Some(path) = given {
        return path.to_owned();
    }
    let name = match manifests.map(|p| fs::canonicalize(p).unwrap_or_else(|_| p.to_owned())) {
        Some(path) => {
            let last = path.file_name().map(|n| n.to_string_lossy().into_owned());
            let hash = weft_base::name::fnv1a(path.as_os_str().as_encoded_bytes());
            format!("{}-{:08x}", slug(&last.unwrap_or_default()), hash & 0xffff_ffff)
        }
        None => "server".into(),
    };
    state_home.join("weft").join(name)
}

/// The process that holds a data directory's lock, if one does.
pub fn holder(path: &Path) -> Option<u32> {
    let mut file = File::open(path.join("LOCK")).ok()?;
    if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
        return None;
    }
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn take_lock(path: &Path) -> Result<File> {
    let file = path.join("LOCK");
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&file)
        .with_context(|| format!("cannot open {}", file.display()))?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        let holder = holder(path).map_or_else(|| "another process".into(), |p| format!("PID {p}"));
        bail!(
            "the data directory {} is in use by {holder}; stop that with `weft down --data {}`, \
             or give this run its own with `--data DIR`",
            path.display(),
            path.display()
        );
    }
    lock.set_len(0)?;
    lock.rewind()?;
    writeln!(lock, "{}", std::process::id())?;
    Ok(lock)
}

fn check_version(path: &Path) -> Result<()> {
    let file = path.join("VERSION");
    match fs::read_to_string(&file) {
        Ok(text) => match text.trim().parse::<u32>() {
            Ok(found) if found > VERSION => bail!(
                "the data directory {} has format {found}, written by a newer weft; this one \
                 knows format {VERSION}. Run the newer weft, or choose another `--data DIR`",
                path.display()
            ),
            Ok(_) => Ok(()),
            Err(_) => bail!("{} should hold a number, but holds {text:?}", file.display()),
        },
        Err(_) => fs::write(&file, format!("{VERSION}\n"))
            .with_context(|| format!("cannot write {}", file.display())),
    }
}

fn make_private(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make the directory {}", path.display()))?;
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))
            .with_context(|| format!("cannot make {} private (0700)", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("weft-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        dir
    }

    #[test]
    fn one_process_at_a_time_and_private() {
        let dir = scratch("lock");
        let held = DataDir::open(&dir).unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(holder(&dir), Some(std::process::id()));
        let error = DataDir::open(&dir).unwrap_err().to_string();
        assert!(error.contains("in use by PID") && error.contains("weft down"), "{error}");
        drop(held);
        assert_eq!(holder(&dir), None);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_newer_format_is_refused_with_a_sentence() {
        let dir = scratch("version");
        drop(DataDir::open(&dir).unwrap());
        fs::write(dir.join("VERSION"), "99\n").unwrap();
        let error = DataDir::open(&dir).unwrap_err().to_string();
        assert!(error.contains("newer weft"), "{error}");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn folders_have_data_of_their_own() {
        let home = Path::new("/state");
        let a = location(None, Some(Path::new("/a/shop")), home);
        let b = location(None, Some(Path::new("/b/shop")), home);
        assert_ne!(a, b);
        assert!(a.to_string_lossy().starts_with("/state/weft/shop-"));
        assert_eq!(location(Some(Path::new("/x")), None, home), Path::new("/x"));
    }
}
