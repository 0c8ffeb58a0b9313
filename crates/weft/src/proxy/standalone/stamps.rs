// SPDX-License-Identifier: Apache-2.0
//! Which files were read, and what they were just before: a change while they are read is seen at
//! the next look. Files that are named and missing are among them, and come to be seen.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Files, each with what it was before it was read.
pub type Seen = BTreeMap<PathBuf, Option<Stamp>>;

/// What changes when a file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    modified_ns: i128,
    bytes: u64,
    inode: u64,
}

/// Reads files and remembers which.
#[derive(Debug, Default)]
pub struct Stamps(RefCell<Seen>);

// === impl Stamp ===

impl Stamp {
    /// `None` when there is no such file.
    pub fn of(file: &Path) -> Option<Self> {
        let found = fs::metadata(file).ok()?;
        let seconds = i128::from(found.mtime()) * 1_000_000_000;
        let modified_ns = seconds + i128::from(found.mtime_nsec());
        Some(Self { modified_ns, bytes: found.len(), inode: found.ino() })
    }
}

// === impl Stamps ===

impl Stamps {
    /// Reads a file; what it was the first time is what counts.
    ///
    /// # Errors
    /// Those of the system.
    pub fn read(&self, file: &Path) -> io::Result<String> {
        let mut seen = self.0.borrow_mut();
        seen.entry(file.to_owned()).or_insert_with(|| Stamp::of(file));
        drop(seen);
        fs::read_to_string(file)
    }

    pub fn into_seen(self) -> Seen {
        self.0.into_inner()
    }
}

impl weft_envoy::Files for Stamps {
    fn read(&self, path: &Path) -> io::Result<String> {
        Self::read(self, path)
    }
}
