// SPDX-License-Identifier: Apache-2.0
//! The data directory: mode 0700, one process at a time, and refused when a newer weft wrote it.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::StoreError;

/// The layout of the data directory that this weft writes.
pub const DATA_FORMAT: u64 = 1;

/// A data directory held by this process. The lock ends with the value, or with the process.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    lock: File,
}

// === impl DataDir ===

impl DataDir {
    /// Makes the directory when it is missing, locks it and checks its version.
    ///
    /// # Errors
    /// [`StoreError::Locked`] names the process that holds it; [`StoreError::Newer`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let path = path.into();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(|e| StoreError::path(&path, e))?;
        let lock = lock(&path)?;
        check_version(&path)?;
        Ok(Self { path, lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A subdirectory (`store`, `ca`, …), made when it is missing.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn sub(&self, name: &str) -> Result<PathBuf, StoreError> {
        let path = self.path.join(name);
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(|e| StoreError::path(&path, e))?;
        Ok(path)
    }
}

impl Drop for DataDir {
    fn drop(&mut self) {
        // Closing is not enough: a program that is being started has a copy until it runs.
        let _ = rustix::fs::flock(&self.lock, FlockOperation::Unlock);
    }
}

fn lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join("LOCK");
    let err = |e| StoreError::path(&path, e);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(err)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            let read = file.read_to_string(&mut text);
            let pid = read.ok().and_then(|_| text.trim().parse().ok());
            return Err(StoreError::Locked { path: dir.to_owned(), pid });
        }
        Err(e) => return Err(err(e.into())),
    }
    file.set_len(0).map_err(err)?;
    file.rewind().map_err(err)?;
    writeln!(file, "{}", std::process::id()).map_err(err)?;
    Ok(file)
}

fn check_version(dir: &Path) -> Result<(), StoreError> {
    let path = dir.join("VERSION");
    match fs::read_to_string(&path) {
        Ok(text) => {
            let found = text
                .trim()
                .parse()
                .map_err(|_| StoreError::Corrupt { key: path.display().to_string() })?;
            match found > DATA_FORMAT {
                true => Err(StoreError::Newer { path: dir.to_owned(), found, known: DATA_FORMAT }),
                false => Ok(()),
            }
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            fs::write(&path, format!("{DATA_FORMAT}\n")).map_err(|e| StoreError::path(&path, e))
        }
        Err(e) => Err(StoreError::path(&path, e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_at_a_time_and_the_second_is_told_who() {
        let dir = tempfile::tempdir().unwrap();
        let held = DataDir::open(dir.path()).unwrap();
        let err = DataDir::open(dir.path()).unwrap_err();
        let me = format!("process {}", std::process::id());
        assert!(err.to_string().contains(&me), "{err}");
        drop(held);
        DataDir::open(dir.path()).unwrap();
    }

    #[test]
    fn the_lock_ends_with_its_holder_though_a_child_is_just_being_started() {
        let dir = tempfile::tempdir().unwrap();
        let held = DataDir::open(dir.path()).unwrap();
        // What a child has between fork and exec.
        let _copy = held.lock.try_clone().unwrap();
        drop(held);
        DataDir::open(dir.path()).unwrap();
    }

    #[test]
    fn a_newer_directory_is_refused_with_a_sentence() {
        let dir = tempfile::tempdir().unwrap();
        drop(DataDir::open(dir.path()).unwrap());
        fs::write(dir.path().join("VERSION"), "2\n").unwrap();
        let err = DataDir::open(dir.path()).unwrap_err();
        assert!(err.to_string().contains("newer weft"), "{err}");
    }

    #[test]
    fn the_directory_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path().join("a/b")).unwrap();
        let sub = data.sub("ca").unwrap();
        for path in [data.path(), &sub] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o700);
        }
    }
}
