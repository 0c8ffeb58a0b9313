// SPDX-License-Identifier: Apache-2.0
//! Logs of containers: bounded files on disk, read and followed by the `pods/log` door.
//!
//! Written by `worker`, one [`Writer`] per process run; read through [`LogStore`], also after the
//! pod has gone. Lines are kept as the container runtimes do: `TIME STREAM F|P TEXT`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use weft_base::clock::Clock;
use weft_base::limits::POD_LOG_BYTES_MAX;

use crate::pod::PodKey;

mod read;

pub use read::{LogQuery, LogReader};

/// Bytes of one file; the newest two of each container are kept.
const FILE_BYTES_MAX: u64 = (POD_LOG_BYTES_MAX / 2) as u64;
/// Longest piece of a line written at once; longer lines are split, marked as parts.
pub const LINE_BYTES_MAX: usize = 16 * 1024;

/// All logs of one agent.
#[derive(Clone, Debug)]
pub struct LogStore {
    dir: Arc<PathBuf>,
    clock: Clock,
    live: Arc<Mutex<HashMap<LogKey, watch::Receiver<Position>>>>,
}

/// One container of one pod object (its uid, so that a successor of the same name is apart).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LogKey {
    pub pod: PodKey,
    pub uid: Arc<str>,
    pub container: Arc<str>,
}

/// How far a log has been written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    /// Which process of the container, from 0.
    pub(crate) run: u32,
    /// Which file of that run, from 0.
    pub(crate) part: u32,
    pub(crate) bytes: u64,
    /// No more will be written by this process.
    pub(crate) closed: bool,
}

/// Writes the log of one process. Clones write to the same log (stdout and stderr).
#[derive(Clone, Debug)]
pub struct Writer(Arc<Mutex<WriterState>>);

#[derive(Debug)]
struct WriterState {
    dir: PathBuf,
    file: File,
    position: Position,
    tell: watch::Sender<Position>,
    clock: Clock,
    /// The last lines, for sentences about exits.
    tail: Vec<String>,
}

// === impl LogStore ===

impl LogStore {
    pub fn new(dir: PathBuf, clock: Clock) -> Self {
        Self { dir: Arc::new(dir), clock, live: Arc::default() }
    }

    /// Begins the log of a container's next process.
    ///
    /// # Errors
    /// When its file cannot be made.
    pub fn begin(&self, key: &LogKey) -> io::Result<Writer> {
        let dir = self.dir_of(key);
        std::fs::create_dir_all(&dir)?;
        let files = parts(&dir);
        let run = files.last().map_or(0, |(run, _)| run + 1);
        // The run before last is nobody's `--previous` any more.
        for (old, part) in files.iter().filter(|(old, _)| old + 1 < run) {
            let _ = std::fs::remove_file(file_of(&dir, *old, *part));
        }
        let position = Position { run, ..Position::default() };
        let file = append(&file_of(&dir, run, 0))?;
        let (tell, told) = watch::channel(position);
        self.live.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), told);
        let clock = self.clock.clone();
        let state = WriterState { dir, file, position, tell, clock, tail: Vec::new() };
        Ok(Writer(Arc::new(Mutex::new(state))))
    }

    /// Opens a log for reading.
    ///
    /// # Errors
    /// When the container has no log (of that kind).
    pub fn read(&self, key: &LogKey, query: &LogQuery) -> io::Result<LogReader> {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned();
        LogReader::open(self.dir_of(key), live, query)
    }

    /// Removes a pod's logs, when its object is gone for good.
    pub fn forget(&self, pod: &PodKey, uid: &str) {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.retain(|k, _| !(k.pod == *pod && &*k.uid == uid));
        let _ = std::fs::remove_dir_all(self.dir.join(pod_dir(pod, uid)));
    }

    /// Removes the logs of pods that are not among these (after a restart).
    pub fn keep_only(&self, pods: &[(PodKey, Arc<str>)]) {
        let keep: Vec<String> = pods.iter().map(|(pod, uid)| pod_dir(pod, uid)).collect();
        for entry in std::fs::read_dir(&*self.dir).into_iter().flatten().flatten() {
            if !entry.file_name().to_str().is_some_and(|n| keep.iter().any(|k| k == n)) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }

    fn dir_of(&self, key: &LogKey) -> PathBuf {
        self.dir.join(pod_dir(&key.pod, &key.uid)).join(safe(&key.container))
    }
}

// === impl Writer ===

impl Writer {
    /// Appends one line, or part of one. Errors (a full disk) are told once per file: a program
    /// must not stand still because its log cannot be kept.
    pub fn line(&self, stream: &str, text: &[u8], whole: bool) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = state.append(stream, text, whole) {
            tracing::debug!(%error, "a log line is lost");
        }
    }

    /// The newest lines, oldest first.
    pub fn tail(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).tail.clone()
    }

    /// Nothing more will be written: followers end.
    pub fn close(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.position.closed = true;
        let position = state.position;
        state.tell.send_replace(position);
    }
}

// === impl WriterState ===

impl WriterState {
    fn append(&mut self, stream: &str, text: &[u8], whole: bool) -> io::Result<()> {
        if self.tail.len() >= 20 {
            self.tail.remove(0);
        }
        self.tail.push(String::from_utf8_lossy(text).chars().take(500).collect());
        if self.position.bytes >= FILE_BYTES_MAX {
            self.rotate()?;
        }
        let time = stamp(self.clock.wall_ms());
        let tag = if whole { 'F' } else { 'P' };
        let mut out = format!("{time} {stream} {tag} ").into_bytes();
        out.extend_from_slice(text);
        out.push(b'\n');
        self.file.write_all(&out)?;
        self.position.bytes += u64::try_from(out.len()).unwrap_or(0);
        let position = self.position;
        self.tell.send_replace(position);
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let Position { run, part, .. } = self.position;
        self.file = append(&file_of(&self.dir, run, part + 1))?;
        self.position = Position { part: part + 1, bytes: 0, ..self.position };
        // Two files of this run, or this one and what the run before left: never more than twice.
        for (old_run, old) in parts(&self.dir) {
            if old_run == run && old + 1 < part + 1 {
                let _ = std::fs::remove_file(file_of(&self.dir, old_run, old));
            }
        }
        Ok(())
    }
}

/// RFC 3339 in milliseconds, UTC.
pub(crate) fn stamp(wall_ms: u64) -> String {
    let ms = i64::try_from(wall_ms).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(ms).map_or_else(
        |_| "1970-01-01T00:00:00.000Z".to_owned(),
        |t| t.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string(),
    )
}

/// The files of a container's directory as (run, part), oldest first.
pub(crate) fn parts(dir: &Path) -> Vec<(u32, u32)> {
    let mut out: Vec<(u32, u32)> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|e| {
            let name = e.ok()?.file_name();
            let (run, part) = name.to_str()?.strip_suffix(".log")?.split_once('.')?;
            Some((run.parse().ok()?, part.parse().ok()?))
        })
        .collect();
    out.sort_unstable();
    out
}

pub(crate) fn file_of(dir: &Path, run: u32, part: u32) -> PathBuf {
    dir.join(format!("{run}.{part}.log"))
}

fn append(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().create(true).append(true).mode(0o600).open(path)
}

fn pod_dir(pod: &PodKey, uid: &str) -> String {
    format!("{}_{}_{}", safe(&pod.namespace), safe(&pod.name), safe(uid))
}

/// Names were checked at the door; here they become paths, so they are checked again.
fn safe(name: &str) -> String {
    let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    let text: String = name.chars().map(|c| if ok(c) { c } else { '-' }).collect();
    if text.starts_with('.') || text.is_empty() { format!("x{text}") } else { text }
}

#[cfg(test)]
mod tests;
