// SPDX-License-Identifier: Apache-2.0
//! Reading and following a log: what `kubectl logs` can ask. Blocking reads of small pieces of
//! local files; a follower sleeps on the writer's position.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::PathBuf;

use tokio::sync::watch;

use super::{Position, file_of, parts};

/// What is wanted of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogQuery {
    pub follow: bool,
    /// The process before the present one.
    pub previous: bool,
    pub timestamps: bool,
    pub tail_lines: Option<usize>,
    /// Only lines from then on, in milliseconds of the wall clock.
    pub since_wall_ms: Option<u64>,
    pub limit_bytes: Option<u64>,
}

/// Yields a log piece by piece.
#[derive(Debug)]
pub struct LogReader {
    dir: PathBuf,
    live: Option<watch::Receiver<Position>>,
    /// Files still to open, oldest first.
    files: VecDeque<(u32, u32)>,
    file: Option<((u32, u32), BufReader<File>)>,
    /// Bytes of a line whose end is not written yet.
    line: Vec<u8>,
    query: LogQuery,
    since: Option<String>,
    skip: usize,
    left: u64,
}

/// Bytes returned at once, about.
const PIECE_BYTES: usize = 32 * 1024;

// === impl LogReader ===

impl LogReader {
    pub(super) fn open(
        dir: PathBuf,
        live: Option<watch::Receiver<Position>>,
        query: &LogQuery,
    ) -> io::Result<Self> {
        let all = parts(&dir);
        let none = |what| io::Error::new(io::ErrorKind::NotFound, what);
        let newest = all.last().map(|(run, _)| *run).ok_or_else(|| none("it wrote no log yet"))?;
        let run = match query.previous {
            false => newest,
            true => newest.checked_sub(1).ok_or_else(|| none("there was no process before"))?,
        };
        let files: VecDeque<_> = all.into_iter().filter(|(r, _)| *r == run).collect();
        if files.is_empty() {
            return Err(none("the log of the process before is gone"));
        }
        let since = query.since_wall_ms.map(super::stamp);
        let mut reader = Self {
            dir,
            live: live.filter(|_| query.follow && !query.previous),
            files,
            file: None,
            line: Vec::new(),
            query: query.clone(),
            since,
            skip: 0,
            left: query.limit_bytes.unwrap_or(u64::MAX),
        };
        if let Some(tail) = query.tail_lines {
            reader.skip = reader.count_lines()?.saturating_sub(tail);
        }
        // Held open from now on, so that a follower sees the end of a pod that is deleted.
        reader.open_next()?;
        Ok(reader)
    }

    /// The next piece; `None` at the end, which a followed log has when its process ended.
    /// Cancel-safe.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            // Before reading: what is written meanwhile wakes us.
            let position = self.live.as_mut().map(|l| *l.borrow_and_update());
            let piece = self.read_piece(position)?;
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
            let ended = self.left == 0 || position.is_none_or(|p| self.has_ended(p));
            let live = match (&mut self.live, ended) {
                (Some(live), false) => live,
                _ => return Ok(None),
            };
            if live.changed().await.is_err() {
                // The writer is gone: one last look.
                self.live = None;
            }
        }
    }

    fn has_ended(&self, position: Position) -> bool {
        let own = self.file.as_ref().map(|((run, _), _)| *run);
        position.closed || own.is_some_and(|run| run != position.run)
    }

    fn read_piece(&mut self, position: Option<Position>) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        while out.len() < PIECE_BYTES && self.left > 0 {
            if self.file.is_none() && !self.open_next()? {
                break;
            }
            let Some((_, file)) = &mut self.file else { break };
            // Appends to the half line that may be there already.
            let got = file.read_until(b'\n', &mut self.line)?;
            if got == 0 {
                let more = !self.files.is_empty() || self.rotated(position);
                if !more {
                    break;
                }
                self.finish_file();
                continue;
            }
            if self.line.last() != Some(&b'\n') {
                continue;
            }
            let line = std::mem::take(&mut self.line);
            self.render(&line, &mut out);
        }
        Ok(out)
    }

    fn open_next(&mut self) -> io::Result<bool> {
        while let Some((run, part)) = self.files.pop_front() {
            match File::open(file_of(&self.dir, run, part)) {
                Ok(file) => {
                    self.file = Some(((run, part), BufReader::new(file)));
                    return Ok(true);
                }
                // Rotated away while we were reading an older one.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(false)
    }

    /// Whether the writer has gone on to another file of this run.
    fn rotated(&self, position: Option<Position>) -> bool {
        match (&self.file, position) {
            (Some(((run, part), _)), Some(p)) => p.run == *run && p.part > *part,
            _ => false,
        }
    }

    fn finish_file(&mut self) {
        let ended = self.file.take().map(|(file, _)| file);
        if let Some((run, part)) = ended.filter(|_| self.files.is_empty()) {
            let newer = parts(&self.dir).into_iter().filter(|f| *f > (run, part));
            self.files = newer.filter(|(r, _)| *r == run).collect();
        }
    }

    /// One stored line as the reader wants it.
    fn render(&mut self, line: &[u8], out: &mut Vec<u8>) {
        if self.skip > 0 {
            self.skip -= 1;
            return;
        }
        let mut fields = line.splitn(4, |b| *b == b' ');
        let (Some(time), Some(_stream), Some(tag), Some(text)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            return;
        };
        if self.since.as_ref().is_some_and(|since| time < since.as_bytes()) {
            return;
        }
        let before = out.len();
        if self.query.timestamps {
            out.extend_from_slice(time);
            out.push(b' ');
        }
        let text = if tag == b"P" { text.strip_suffix(b"\n").unwrap_or(text) } else { text };
        out.extend_from_slice(text);
        let added = u64::try_from(out.len() - before).unwrap_or(u64::MAX);
        if added > self.left {
            let keep = before + usize::try_from(self.left).unwrap_or(0);
            out.truncate(keep);
            self.left = 0;
        } else {
            self.left -= added;
        }
    }

    fn count_lines(&self) -> io::Result<usize> {
        let mut count = 0;
        for (run, part) in &self.files {
            let Ok(file) = File::open(file_of(&self.dir, *run, *part)) else { continue };
            for line in BufReader::new(file).split(b'\n') {
                line?;
                count += 1;
            }
        }
        Ok(count)
    }
}
