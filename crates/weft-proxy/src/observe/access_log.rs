// SPDX-License-Identifier: Apache-2.0
//! The access log: a worker formats its line, one task of the control runtime writes lines in
//! batches. A full queue drops lines and counts them; it never holds a request up.

use std::io::Write as _;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::flags::Flags;
use super::format::{Entry, Format, Wanted};
use super::metrics::WorkerCells;
use super::record::Record;
use crate::config::{AccessLog, LogFormat, LogWhat};
use crate::table::BackendEntry;
use crate::upstream::pick::LocalEndpoint;
use crate::worker::Conn;

/// Lines that may wait for the writer.
const LINES_MAX: usize = 4096;

/// Longest line about that is expected; longer ones grow.
const LINE_BYTES: usize = 512;

/// A worker's end.
#[derive(Clone, Debug)]
pub struct LogSender {
    what: LogWhat,
    format: Arc<Format>,
    lines: mpsc::Sender<String>,
    cells: Arc<WorkerCells>,
}

#[derive(Debug)]
pub struct LogWriter {
    lines: mpsc::Receiver<String>,
    path: Option<std::path::PathBuf>,
}

/// One opaque connection, for its line.
#[derive(Debug)]
pub struct Relayed<'a> {
    pub conn: &'a Conn,
    pub wall_ms: u64,
    pub ms: u64,
    pub backend: Option<&'a BackendEntry>,
    pub endpoint: Option<&'a LocalEndpoint>,
    pub tries: u32,
    pub flags: Flags,
    pub received: u64,
    pub sent: u64,
    pub sentence: Option<String>,
}

/// The writer's end and what each worker's [`LogSender`] is made of.
pub fn channel(config: &AccessLog) -> (mpsc::Sender<String>, LogWriter) {
    let (tx, rx) = mpsc::channel(LINES_MAX);
    (tx, LogWriter { lines: rx, path: config.path.clone() })
}

// === impl LogSender ===

impl LogSender {
    pub fn new(config: &AccessLog, lines: mpsc::Sender<String>, cells: Arc<WorkerCells>) -> Self {
        let format = match &config.format {
            LogFormat::Text => Arc::new(Format::istio()),
            LogFormat::Json => Arc::new(Format::json()),
            LogFormat::Of(format) => format.clone(),
        };
        Self { what: config.what, format, lines, cells }
    }

    /// Headers that must be noted for the line; `None` when there are none, or no line.
    pub fn wanted(&self) -> Option<&Wanted> {
        let wanted = self.format.wanted();
        (self.what != LogWhat::Nothing && !wanted.is_empty()).then_some(wanted)
    }

    pub fn request(&self, record: &Record, ms: u64) {
        let wanted = match self.what {
            LogWhat::Nothing => false,
            LogWhat::Failures => !record.flags.is_empty() || record.status >= 500,
            LogWhat::Everything => true,
        };
        if !wanted {
            return;
        }
        self.line(&Entry::Request(record, ms));
    }

    /// A connection that was relayed, or could not be.
    pub fn relayed(&self, relayed: &Relayed<'_>) {
        let wanted = match self.what {
            LogWhat::Nothing => false,
            LogWhat::Failures => !relayed.flags.is_empty(),
            LogWhat::Everything => true,
        };
        if wanted {
            self.line(&Entry::Connection(relayed));
        }
    }

    fn line(&self, entry: &Entry<'_>) {
        let mut text = String::with_capacity(LINE_BYTES);
        self.format.write(entry, &mut text);
        if self.lines.try_send(text).is_err() {
            self.cells.log_dropped.add(1);
        }
    }
}

// === impl LogWriter ===

impl LogWriter {
    /// Writes until all workers are gone.
    pub async fn run(mut self) {
        let mut batch = Vec::new();
        let mut file = self.path.as_ref().and_then(|path| {
            let opened = std::fs::OpenOptions::new().append(true).create(true).open(path);
            opened
                .inspect_err(|error| {
                    tracing::error!(path = %path.display(), %error, "no access log: cannot open");
                })
                .ok()
        });
        while self.lines.recv_many(&mut batch, 256).await > 0 {
            let mut text = String::new();
            for line in batch.drain(..) {
                text.push_str(&line);
                text.push('\n');
            }
            let written = match (&mut file, &self.path) {
                (Some(file), _) => file.write_all(text.as_bytes()),
                (None, None) => std::io::stdout().lock().write_all(text.as_bytes()),
                (None, Some(_)) => Ok(()),
            };
            if let Err(error) = written {
                tracing::warn!(%error, "access log lines are lost");
            }
        }
    }
}
