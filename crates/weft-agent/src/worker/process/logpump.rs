// SPDX-License-Identifier: Apache-2.0
//! From a process's pipe into its log, line by line, with bounded memory.

use std::os::fd::OwnedFd;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe::Receiver;

use crate::logs::{LINE_BYTES_MAX, Writer};

/// Copies until the pipe is closed by everyone who holds it.
pub(super) async fn pump(pipe: Option<OwnedFd>, stream: &str, log: &Writer) {
    let Some(pipe) = pipe else { return };
    let pipe = match Receiver::from_owned_fd(pipe) {
        Ok(pipe) => pipe,
        Err(error) => {
            tracing::warn!(%error, "a program's output cannot be read");
            return;
        }
    };
    let mut reader = BufReader::with_capacity(8 * 1024, pipe);
    let mut line = Vec::new();
    loop {
        let used = match reader.fill_buf().await {
            Ok([]) => break,
            Ok(bytes) => take(bytes, &mut line),
            Err(error) => {
                tracing::debug!(%error, "a program's output broke off");
                break;
            }
        };
        let (used, ended) = used;
        reader.consume(used);
        if ended {
            log.line(stream, line.strip_suffix(b"\r").unwrap_or(&line), true);
            line.clear();
        } else if line.len() >= LINE_BYTES_MAX {
            log.line(stream, &line, false);
            line.clear();
        }
    }
    if !line.is_empty() {
        log.line(stream, &line, true);
    }
}

/// Moves bytes up to the next newline, or up to the longest line. Returns how many were used and
/// whether the line is complete.
fn take(bytes: &[u8], line: &mut Vec<u8>) -> (usize, bool) {
    let room = LINE_BYTES_MAX.saturating_sub(line.len());
    let seen = bytes.get(..bytes.len().min(room)).unwrap_or(bytes);
    match seen.iter().position(|b| *b == b'\n') {
        Some(end) => {
            line.extend_from_slice(seen.get(..end).unwrap_or_default());
            (end + 1, true)
        }
        None => {
            line.extend_from_slice(seen);
            (seen.len(), false)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_at_newlines_and_at_the_limit() {
        let mut line = Vec::new();
        assert_eq!(take(b"ab\ncd", &mut line), (3, true));
        assert_eq!(line, b"ab");
        line.clear();
        let long = vec![b'x'; LINE_BYTES_MAX + 5];
        assert_eq!(take(&long, &mut line), (LINE_BYTES_MAX, false));
        assert_eq!(line.len(), LINE_BYTES_MAX);
    }
}
