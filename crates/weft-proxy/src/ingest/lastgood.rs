// SPDX-License-Identifier: Apache-2.0
//! The last good table on disk: written to a new file that replaces the old one whole.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use thiserror::Error;
use weft_model::Root;
use weft_xds::codec::CodecError;
use weft_xds::last_good::{self, Carried, LastGood, Notes};

use crate::table::Builder;

#[derive(Debug, Error)]
pub enum LastGoodError {
    #[error("cannot read or write {path}: {source}; check that its directory is the proxy's own")]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} is no saved table; remove it, the server sends everything again")]
    Form {
        path: PathBuf,
        #[source]
        source: CodecError,
    },
}

/// `None` when there is no file yet.
pub fn read(path: &Path) -> Result<Option<LastGood>, LastGoodError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(LastGoodError::Io { path: path.into(), source }),
    };
    let form = |source| LastGoodError::Form { path: path.into(), source };
    last_good::decode(&bytes).map(Some).map_err(form)
}

pub fn write(
    path: &Path,
    generation: u64,
    builder: &Builder,
    notes: &Notes,
) -> Result<(), LastGoodError> {
    let carried = carried(path, builder, notes);
    let bytes = last_good::encode(generation, builder.resources(), notes, carried)
        .map_err(|source| LastGoodError::Form { path: path.into(), source })?;
    let io = |source| LastGoodError::Io { path: path.into(), source };
    // The whole name, as names of pods have dots in them, but no tilde.
    let mut new = path.as_os_str().to_owned();
    new.push("~new");
    let mut options = std::fs::OpenOptions::new();
    // Gateways' keys are in it.
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(&new);
    file.and_then(|mut f| f.write_all(&bytes)).map_err(io)?;
    std::fs::rename(&new, path).map_err(io)
}

/// What was given back is in no table any more: the file itself is where it is kept.
fn carried(path: &Path, builder: &Builder, notes: &Notes) -> Carried {
    let away: BTreeSet<Root> =
        notes.evicted.iter().filter(|root| !builder.has(root)).cloned().collect();
    if away.is_empty() {
        return Carried::default();
    }
    // Without the old file there is nothing to carry; the table itself is written all the same.
    let old = std::fs::read(path).unwrap_or_default();
    last_good::carry(&old, &away).unwrap_or_default()
}
