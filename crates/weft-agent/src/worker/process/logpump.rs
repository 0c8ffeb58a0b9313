// SPDX-License-Identifier: Apache-2.0
//! From a process's pipe into its log, line by line, with bounded memory.

use tokio::io::{AsyncBufReadExt, BufReader};

use crate::exec::attach::{Output, Source, Taps};
use crate::logs::{LINE_BYTES_MAX, Writer};

/// Copies until the pipe is closed by everyone who holds it.
pub(super) async fn pump(source: Option<Source>, output: Output, taps: &Taps, log: &Writer) {
    let Some(source) = source else { return };
    let stream = if output == Output::Stdout { "stdout" } else { "stderr" };
    let mut reader = BufReader::with_capacity(8 * 1024, source);
    let mut line = Vec::new();
    // Bytes at the front of the buffer that attached clients have seen already.
    let mut shown = 0;
    loop {
        let used = match reader.fill_buf().await {
            Ok([]) => break,
            Ok(bytes) => {
                if shown == 0 {
                    taps.show(output, bytes);
                    shown = bytes.len();
                }
                take(bytes, &mut line)
            }
            Err(error) => {
                tracing::debug!(%error, "a program's output broke off");
                break;
            }
        };
        let (used, ended) = used;
        reader.consume(used);
        shown = shown.saturating_sub(used);
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
