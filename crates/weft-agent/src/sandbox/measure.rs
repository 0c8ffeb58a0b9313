// SPDX-License-Identifier: Apache-2.0
//! What a pod keeps on disk, and what it may: the `sizeLimit` of each emptyDir, and all of them
//! together against the containers' limits of `ephemeral-storage`. Asked from time to time by
//! `worker`, which evicts; it never removes anything. (In memory the kernel holds the limit.)

use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Dir, FileType};
use rustix::io::Errno;
use thiserror::Error;
use weft_base::limits::VOLUME_ENTRIES_MAX;

use super::host::volume_dir;
use super::remove::{is_dots, open_dir};
use crate::env;
use crate::pod::Pod;
use crate::pod::inside::EmptyDir;

/// Directories in one another that are measured, each an open descriptor meanwhile.
const DEPTH_MAX: usize = 256;

/// The limits of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    volumes: Vec<Bound>,
    /// Bytes in all volumes, and the limit as it is written.
    total: Option<u64>,
    /// Files and directories that are counted in one volume.
    entries: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Bound {
    name: Arc<str>,
    dir: PathBuf,
    limit: Option<(u64, String)>,
}

/// Why it is not known how much a directory holds.
#[derive(Debug, PartialEq, Eq, Error)]
enum Unmeasured {
    #[error("it holds more than {0} files and directories")]
    Many(usize),
    #[error("its directories are more than {DEPTH_MAX} levels deep")]
    Deep,
    #[error("a directory in it may not be read")]
    Unreadable,
    /// No doing of the pod.
    #[error("{0}")]
    Machine(Errno),
}

// === impl Bounds ===

impl Bounds {
    /// `None` when nothing is limited. `dir` is where the pod's files are.
    pub(crate) fn of(pod: &Pod, dir: &Path) -> Option<Self> {
        let on_disk = |e: &&EmptyDir| e.medium != "Memory";
        let volumes: Vec<Bound> = (pod.spec.volumes.iter())
            .filter_map(|v| Some((&v.name, v.empty_dir.as_ref().filter(on_disk)?)))
            .map(|(name, empty)| Bound {
                name: name.clone(),
                dir: volume_dir(dir, name),
                limit: limit(empty),
            })
            .collect();
        let limits = |c: &crate::pod::Container| {
            c.resources.limits.get("ephemeral-storage").and_then(env::quantity_milli)
        };
        let each: Vec<u64> = pod.programs().filter_map(limits).collect();
        let total = (!each.is_empty()).then(|| each.iter().sum::<u64>() / 1000);
        let any = total.is_some() || volumes.iter().any(|v| v.limit.is_some());
        (any && !volumes.is_empty()).then_some(Self { volumes, total, entries: VOLUME_ENTRIES_MAX })
    }

    /// Why the pod has to go. What it made unmeasurable counts as too much: else that would be the
    /// way around every limit. Reads directories: not for an async task's own thread.
    pub(crate) fn exceeded(&self) -> Option<String> {
        let mut all: u64 = 0;
        for volume in &self.volumes {
            if volume.limit.is_none() && self.total.is_none() {
                continue;
            }
            let name = &volume.name;
            let used = match used(&volume.dir, self.entries) {
                Ok(used) => used,
                Err(Unmeasured::Machine(error)) => {
                    tracing::warn!(volume = &**name, %error, "a pod's volume cannot be measured");
                    continue;
                }
                Err(why) => {
                    return Some(format!(
                        "EmptyDir volume {name:?} cannot be measured and so exceeds its limit: \
                         {why}. "
                    ));
                }
            };
            all = all.saturating_add(used);
            if let Some((limit, text)) = &volume.limit
                && used > *limit
            {
                return Some(format!(
                    "Usage of EmptyDir volume {name:?} exceeds the limit {text:?}. "
                ));
            }
        }
        let total = self.total.filter(|total| all > *total)?;
        Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {total}. "
        ))
    }
}

fn limit(empty: &EmptyDir) -> Option<(u64, String)> {
    let written = empty.size_limit.as_ref()?;
    let bytes = env::quantity_milli(written)? / 1000;
    let text = written.as_str().map_or_else(|| written.to_string(), str::to_owned);
    // Kubernetes' word for no limit.
    (bytes > 0).then_some((bytes, text))
}

/// Bytes of disk below a directory, each file once, links not followed. It goes from descriptor
/// to descriptor: paths may be longer than the kernel takes, and lead elsewhere a moment later.
fn used(dir: &Path, entries: usize) -> Result<u64, Unmeasured> {
    let Ok(name) = CString::new(dir.as_os_str().as_bytes()) else {
        return Err(Unmeasured::Machine(Errno::INVAL));
    };
    let Some(top) = present(open_dir(CWD, &name))? else { return Ok(0) };
    let (mut bytes, mut seen, mut linked) = (0_u64, 0, BTreeSet::new());
    let mut open = vec![opened(top)?];
    while let Some(dir) = open.last_mut() {
        let Some(entry) = dir.read() else {
            open.pop();
            continue;
        };
        let Some(entry) = present(entry)? else { continue };
        let name = entry.file_name();
        if is_dots(name) {
            continue;
        }
        seen += 1;
        if seen > entries {
            return Err(Unmeasured::Many(entries));
        }
        let at = dir.fd().map_err(Unmeasured::Machine)?;
        let stat = rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW);
        let Some(stat) = present(stat)? else { continue };
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if stat.st_nlink > 1 && !is_dir && !linked.insert((stat.st_dev, stat.st_ino)) {
            continue;
        }
        let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
        bytes = bytes.saturating_add(blocks.saturating_mul(512));
        if is_dir && let Some(below) = present(open_dir(at, name))? {
            if open.len() == DEPTH_MAX {
                return Err(Unmeasured::Deep);
            }
            open.push(opened(below)?);
        }
    }
    Ok(bytes)
}

fn opened(dir: std::os::fd::OwnedFd) -> Result<Dir, Unmeasured> {
    Dir::new(dir).map_err(Unmeasured::Machine)
}

/// What was asked of a file; `None` when that is gone or another by now.
fn present<T>(asked: Result<T, Errno>) -> Result<Option<T>, Unmeasured> {
    match asked {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(Errno::ACCESS | Errno::PERM) => Err(Unmeasured::Unreadable),
        Err(e) => Err(Unmeasured::Machine(e)),
    }
}

#[cfg(test)]
mod tests;
