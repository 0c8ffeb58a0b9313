// SPDX-License-Identifier: Apache-2.0
//! One service's SQLite file: a thread that reads and a thread that writes, so that a slow
//! commit never holds up a read or the event loop. Replicas share the file: WAL mode, a busy
//! timeout, and IMMEDIATE transactions, which take the write lock before they read.
//! Called by the three services; knows none of their tables.

use std::fmt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

/// Jobs that may wait for a thread before callers are refused.
const QUEUE: usize = 256;
/// How long a write waits for another process's transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long opening waits while other replicas create or recover the file.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);

/// Why a database job has no result.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// SQLite refused.
    #[error("database: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// Too many jobs wait already.
    #[error("database: {QUEUE} requests wait already, try again later")]
    Overloaded,
    /// The thread is gone, because the program is stopping.
    #[error("database: closed, the service is stopping")]
    Closed,
    /// The file was made by a newer program.
    #[error(
        "database {path}: made by a newer shop (schema {found}, this one knows {known}), \
         use that shop or another file"
    )]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// The directory or a thread could not be made.
    #[error("database {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

/// Tables and first rows of a service. `apply` runs in one transaction on every start, so it
/// must change nothing when everything is there.
#[derive(Clone, Copy)]
pub struct Schema {
    /// Raised when a change is not understood by older programs.
    pub version: i64,
    /// Creates tables and seeds rows.
    pub apply: fn(&Transaction<'_>, i64) -> rusqlite::Result<()>,
    /// A number for `apply`, such as the first stock.
    pub argument: i64,
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Schema").field("version", &self.version).finish_non_exhaustive()
    }
}

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// A handle to the file; clones share the two threads.
#[derive(Clone, Debug)]
pub struct Db {
    reader: mpsc::Sender<Job>,
    writer: mpsc::Sender<Job>,
}

// === impl Db ===

impl Db {
    /// Opens or creates the file and brings its schema up to date.
    pub fn open(path: &Path, schema: Schema) -> Result<Db, DbError> {
        if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            std::fs::create_dir_all(dir)
                .map_err(|source| DbError::Io { path: path.to_owned(), source })?;
        }
        let started = Instant::now();
        let writer = loop {
            match prepare(path, schema) {
                Err(DbError::Sqlite(e)) if is_busy(&e) && started.elapsed() < OPEN_TIMEOUT => {
                    thread::sleep(Duration::from_millis(5));
                }
                other => break other?,
            }
        };
        let reader = connect(path)?;
        reader.pragma_update(None, "query_only", true)?;
        Ok(Db { reader: spawn(path, "db-read", reader)?, writer: spawn(path, "db-write", writer)? })
    }

    /// Runs a query. When the caller goes away the query still runs; its result is dropped.
    pub async fn read<T, F>(&self, job: F) -> Result<T, DbError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        run(&self.reader, move |conn| job(conn)).await
    }

    /// Runs one transaction, committed when the job says Ok and rolled back otherwise.
    /// When the caller goes away the transaction still runs to its end.
    pub async fn write<T, F>(&self, job: F) -> Result<T, DbError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    {
        run(&self.writer, move |conn| transact(conn, job)).await
    }
}

// === helpers ===

/// Milliseconds since 1970, for timestamps that replicas compare.
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

async fn run<T, F>(queue: &mpsc::Sender<Job>, job: F) -> Result<T, DbError>
where
    T: Send + 'static,
    F: FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
{
    let (reply, result) = oneshot::channel();
    let job: Job = Box::new(move |conn| {
        // The caller may be gone; the work is done all the same.
        let _ = reply.send(job(conn));
    });
    queue.try_send(job).map_err(|e| match e {
        mpsc::error::TrySendError::Full(_) => DbError::Overloaded,
        mpsc::error::TrySendError::Closed(_) => DbError::Closed,
    })?;
    Ok(result.await.map_err(|_| DbError::Closed)??)
}

fn transact<T>(
    conn: &mut Connection,
    job: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let value = job(&tx)?;
    tx.commit()?;
    Ok(value)
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let conn = Connection::open(path)?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    // NORMAL: a killed process loses nothing; a power cut may lose the last transactions whole.
    conn.pragma_update(None, "synchronous", "NORMAL")?;
    conn.pragma_update(None, "foreign_keys", true)?;
    conn.pragma_update(None, "cache_size", -512)?;
    Ok(conn)
}

fn prepare(path: &Path, schema: Schema) -> Result<Connection, DbError> {
    let mut conn = connect(path)?;
    conn.pragma_update(None, "journal_mode", "WAL")?;
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: i64 = tx.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if found > schema.version {
        return Err(DbError::TooNew { path: path.to_owned(), found, known: schema.version });
    }
    (schema.apply)(&tx, schema.argument)?;
    tx.pragma_update(None, "user_version", schema.version)?;
    tx.commit()?;
    Ok(conn)
}

fn is_busy(error: &rusqlite::Error) -> bool {
    // Switching to WAL does not wait for the busy timeout, hence the loop in `open`.
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

fn spawn(path: &Path, name: &str, mut conn: Connection) -> Result<mpsc::Sender<Job>, DbError> {
    let (queue, mut jobs) = mpsc::channel::<Job>(QUEUE);
    thread::Builder::new()
        .name(name.to_owned())
        .stack_size(512 * 1024)
        .spawn(move || {
            while let Some(job) = jobs.blocking_recv() {
                job(&mut conn);
            }
        })
        .map_err(|source| DbError::Io { path: path.to_owned(), source })?;
    Ok(queue)
}
