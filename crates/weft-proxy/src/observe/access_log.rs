// SPDX-License-Identifier: Apache-2.0
//! The access log: a worker gathers its lines, one task of the control runtime writes what was
//! gathered. A full queue drops lines and counts them; it never holds a request up. Texts go back
//! and forth, so that nothing is allocated per line, and nobody is woken per line.

use std::cell::{Cell, RefCell};
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::facts;
use super::flags::{Flag, Flags};
use super::format::{Entry, Format, Wanted};
use super::metrics::WorkerCells;
use super::record::Record;
use crate::config::{AccessLog, LogFormat, LogWhat};
use crate::table::BackendEntry;
use crate::upstream::pick::LocalEndpoint;
use crate::worker::Conn;

/// Batches that may wait for the writer.
const BATCHES_MAX: usize = 64;
/// A batch of this size goes at once.
const BATCH_BYTES: usize = 16 * 1024;
/// Longest that a line waits for others.
const GATHER: Duration = Duration::from_millis(20);
/// Lines about failed handshakes in a second, of each worker.
const UNSHAKEN_LINES_MAX: u32 = 10;
/// How often it is said that lines cannot be written.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// Empty texts that a worker is given back.
const SPARE_MAX: usize = 4;

/// A worker's end.
#[derive(Debug)]
pub struct LogSender {
    what: LogWhat,
    format: Arc<Format>,
    batch: RefCell<Batch>,
    /// There is a first line.
    filled: Notify,
    lines: mpsc::Sender<Lines>,
    cells: Arc<WorkerCells>,
    /// Lines about failed handshakes in a second.
    unshaken: Cell<(u64, u32)>,
}

#[derive(Debug)]
struct Batch {
    text: Vec<u8>,
    lines: u64,
    spare: mpsc::Receiver<Vec<u8>>,
    back: mpsc::Sender<Vec<u8>>,
}

/// Whole lines of one worker, on their way to the writer.
#[derive(Debug)]
pub struct Lines {
    pub text: Vec<u8>,
    count: u64,
    /// Where they count if they are lost.
    cells: Arc<WorkerCells>,
    /// Where the empty text may go.
    back: mpsc::Sender<Vec<u8>>,
}

#[derive(Debug)]
pub struct LogWriter {
    lines: mpsc::Receiver<Lines>,
    path: Option<std::path::PathBuf>,
    reopen: Reopen,
}

/// Lines that could not be written since that was said last.
#[derive(Debug, Default)]
struct Lost {
    lines: u64,
    told: Option<Instant>,
}

/// Asks the writer to open its file again: whoever rotates logs has given the old one another name.
#[derive(Clone, Debug, Default)]
pub struct Reopen(Arc<Notify>);

/// One opaque connection, for its line.
#[derive(Debug)]
pub struct Relayed<'a> {
    pub conn: &'a Conn,
    pub wall_ms: u64,
    pub ms: u64,
    pub backend: Option<&'a BackendEntry>,
    pub endpoint: Option<&'a LocalEndpoint>,
    pub upstream: Option<&'a facts::Upstream>,
    /// It did not come to more than a handshake.
    pub handshake: bool,
    pub tries: u32,
    pub flags: Flags,
    pub received: u64,
    pub sent: u64,
    pub sentence: Option<String>,
}

/// The writer's end and what each worker's [`LogSender`] is made of.
pub fn channel(config: &AccessLog) -> (mpsc::Sender<Lines>, LogWriter, Reopen) {
    let ((tx, lines), reopen) = (mpsc::channel(BATCHES_MAX), Reopen::default());
    (tx, LogWriter { lines, path: config.path.clone(), reopen: reopen.clone() }, reopen)
}

// === impl LogSender ===

impl LogSender {
    pub fn new(config: &AccessLog, lines: mpsc::Sender<Lines>, cells: Arc<WorkerCells>) -> Self {
        let format = match &config.format {
            LogFormat::Text => Arc::new(Format::istio()),
            LogFormat::Json => Arc::new(Format::json()),
            LogFormat::Of(format) => format.clone(),
        };
        let (back, spare) = mpsc::channel(SPARE_MAX);
        let batch = RefCell::new(Batch { text: Vec::new(), lines: 0, spare, back });
        let (filled, unshaken) = (Notify::new(), Cell::default());
        Self { what: config.what, format, batch, filled, lines, cells, unshaken }
    }

    /// Headers that must be noted for the line; `None` when there are none, or no line.
    pub fn wanted(&self) -> Option<&Wanted> {
        let wanted = self.format.wanted();
        (self.what != LogWhat::Nothing && !wanted.is_empty()).then_some(wanted)
    }

    /// Whether lines tell of the TLS of clients' connections.
    pub fn tells_session(&self) -> bool {
        self.what != LogWhat::Nothing && self.format.wanted().session
    }

    /// Whether lines tell of upstream connections.
    pub fn tells_upstream(&self) -> bool {
        self.what != LogWhat::Nothing && self.format.wanted().upstream
    }

    /// A client whose TLS handshake came to nothing. All are counted; whoever knocks at every
    /// second gets no more lines than others' requests leave room for.
    pub fn unshaken(&self, conn: &Conn, wall_ms: u64, ms: u64, why: String) {
        self.cells.handshakes_failed.add(1);
        let (second, lines) = self.unshaken.get();
        let now = wall_ms / 1_000;
        let lines = if second == now { lines + 1 } else { 1 };
        self.unshaken.set((now, lines));
        if lines > UNSHAKEN_LINES_MAX {
            return;
        }
        self.relayed(&Relayed {
            conn,
            wall_ms,
            ms,
            backend: None,
            endpoint: None,
            upstream: None,
            handshake: true,
            tries: 0,
            flags: Flags::from(Flag::DPE),
            received: 0,
            sent: 0,
            sentence: Some(why),
        });
    }

    pub fn request(&self, record: &Record, ms: u64) {
        let wanted = match self.what {
            LogWhat::Nothing => false,
            LogWhat::Failures => record.flags.tells_failure() || record.status >= 500,
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
        let mut batch = self.batch.borrow_mut();
        let first = batch.text.is_empty();
        if first && batch.text.capacity() == 0 {
            batch.text.reserve(BATCH_BYTES + BATCH_BYTES / 8);
        }
        self.format.write(entry, &mut batch.text);
        batch.text.push(b'\n');
        batch.lines += 1;
        if batch.text.len() >= BATCH_BYTES {
            drop(batch);
            self.flush();
        } else if first {
            self.filled.notify_one();
        }
    }

    /// Hands over what was gathered.
    pub fn flush(&self) {
        let mut batch = self.batch.borrow_mut();
        if batch.text.is_empty() {
            return;
        }
        let spare = batch.spare.try_recv().unwrap_or_default();
        let text = std::mem::replace(&mut batch.text, spare);
        let count = std::mem::take(&mut batch.lines);
        let lines = Lines { text, count, cells: self.cells.clone(), back: batch.back.clone() };
        if let Err(lost) = self.lines.try_send(lines) {
            self.cells.log_dropped.add(count);
            lost.into_inner().give_back();
        }
    }

    /// Hands over what was gathered for long enough, for as long as the worker runs.
    pub async fn keep_flushing(&self) {
        loop {
            self.filled.notified().await;
            tokio::time::sleep(GATHER).await;
            self.flush();
        }
    }
}

impl Drop for LogSender {
    fn drop(&mut self) {
        self.flush();
    }
}

// === impl Lines ===

impl Lines {
    /// The worker uses the memory again, unless it has enough of it.
    fn give_back(mut self) {
        self.text.clear();
        if self.text.capacity() <= 4 * BATCH_BYTES {
            let _ = self.back.try_send(self.text);
        }
    }
}

// === impl Lost ===

impl Lost {
    /// Counts lines; returns how many to speak of, if it is time for that.
    fn add(&mut self, lines: u64, now: Instant) -> Option<u64> {
        self.lines += lines;
        if self.told.is_some_and(|at| now.saturating_duration_since(at) < TELL_EVERY) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.lines))
    }
}

// === impl Reopen ===

impl Reopen {
    /// What is written from now on is in the file that has the name then.
    pub fn ask(&self) {
        self.0.notify_one();
    }
}

// === impl LogWriter ===

impl LogWriter {
    /// Writes until all workers are gone.
    pub async fn run(mut self) {
        let (mut file, mut lost) = (self.open(), Lost::default());
        loop {
            let lines = tokio::select! {
                biased;
                () = self.reopen.0.notified() => {
                    // What cannot be opened leaves the lines where they went.
                    file = self.open().or(file);
                    continue;
                }
                lines = self.lines.recv() => lines,
            };
            let Some(lines) = lines else { return };
            let text = &lines.text;
            let written = match (&mut file, &self.path) {
                (Some(file), _) => file.write_all(text),
                (None, None) => std::io::stdout().lock().write_all(text),
                (None, Some(_)) => Err(std::io::Error::other("its file is not open")),
            };
            if let Err(error) = written {
                lines.cells.log_dropped.add(lines.count);
                if let Some(count) = lost.add(lines.count, Instant::now()) {
                    tracing::warn!(%error, "{count} lines of the access log are lost");
                }
            }
            lines.give_back();
        }
    }

    fn open(&self) -> Option<std::fs::File> {
        let path = self.path.as_ref()?;
        let opened = std::fs::OpenOptions::new().append(true).create(true).open(path);
        let told = opened.inspect_err(|error| {
            tracing::error!(path = %path.display(), %error, "the access log cannot be opened");
        });
        told.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_lines_are_lost_is_said_now_and_then() {
        let (mut lost, began) = (Lost::default(), Instant::now());
        assert_eq!(lost.add(7, began), Some(7));
        for ms in 0..1_000 {
            assert_eq!(lost.add(20, began + Duration::from_millis(ms)), None);
        }
        assert_eq!(lost.add(1, began + TELL_EVERY), Some(20_001));
        assert_eq!(lost.add(1, began + TELL_EVERY * 3), Some(1));
    }

    /// What a file that cannot be written loses is counted like any other lost line.
    #[tokio::test]
    async fn lines_that_cannot_be_written_are_counted() {
        let full = std::path::PathBuf::from("/dev/full");
        let config =
            AccessLog { what: LogWhat::Everything, format: LogFormat::Text, path: Some(full) };
        let (lines, writer, _reopen) = channel(&config);
        let cells = Arc::new(WorkerCells::default());
        let (back, _spare) = mpsc::channel(1);
        for count in [3, 4] {
            let (text, cells, back) = (b"line\n".to_vec(), cells.clone(), back.clone());
            lines.send(Lines { text, count, cells, back }).await.unwrap();
        }
        drop(lines);
        writer.run().await;
        assert_eq!(cells.log_dropped.get(), 7);
    }
}
