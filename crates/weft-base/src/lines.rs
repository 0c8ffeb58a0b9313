// SPDX-License-Identifier: Apache-2.0
//! The lines of this process's log, for whoever wants to read along. What writes the log hands
//! each line on; it costs nothing while nobody reads, and never waits for who does.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc::{Receiver, Sender, channel};
use tracing::Level;

/// Readers at a time, and lines that wait for one of them. Further ones it does not see.
pub const READERS_MAX: usize = 16;
const WAITING_MAX: usize = 512;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub level: Level,
    /// Which part of weft says it.
    pub target: String,
    pub message: String,
    /// What it is about, by name.
    pub fields: Vec<(&'static str, String)>,
}

/// There are as many readers as may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany;

static IS_READ: AtomicBool = AtomicBool::new(false);
static READERS: Mutex<Vec<Sender<Arc<Line>>>> = Mutex::new(Vec::new());

/// Every line from now on, until what is returned is dropped.
///
/// # Errors
/// When there are [`READERS_MAX`] readers.
pub fn read() -> Result<Receiver<Arc<Line>>, TooMany> {
    let mut readers = readers();
    readers.retain(|reader| !reader.is_closed());
    if readers.len() >= READERS_MAX {
        return Err(TooMany);
    }
    let (reader, lines) = channel(WAITING_MAX);
    readers.push(reader);
    IS_READ.store(true, Ordering::Relaxed);
    Ok(lines)
}

/// Whether anybody reads. It may be that the last one has just gone.
pub fn is_read() -> bool {
    IS_READ.load(Ordering::Relaxed)
}

/// Hands a line to all who read.
pub fn hand(line: Line) {
    let line = Arc::new(line);
    let mut readers = readers();
    // Who is slow misses lines; nobody waits for it.
    readers.retain(|reader| {
        let _ = reader.try_send(line.clone());
        !reader.is_closed()
    });
    IS_READ.store(!readers.is_empty(), Ordering::Relaxed);
}

fn readers() -> MutexGuard<'static, Vec<Sender<Arc<Line>>>> {
    READERS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Display for TooMany {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{READERS_MAX} readers follow this log already; try again later")
    }
}

impl std::error::Error for TooMany {}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(message: String) -> Line {
        Line { level: Level::WARN, target: "t".into(), message, fields: Vec::new() }
    }

    #[test]
    fn readers_have_a_limit_and_hold_nobody_up() {
        let mut all: Vec<_> = (0..READERS_MAX).map(|_| read().unwrap()).collect();
        assert_eq!(read().unwrap_err(), TooMany);
        for n in 0..2 * WAITING_MAX {
            hand(line(n.to_string()));
        }
        let mut first = all.remove(0);
        assert_eq!(first.try_recv().unwrap().message, "0");
        assert_eq!(first.len(), WAITING_MAX - 1);
        drop(all);
        drop(first);
        hand(line("nobody reads".into()));
        assert!(!is_read());
        assert!(read().is_ok());
    }
}
