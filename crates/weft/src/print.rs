// SPDX-License-Identifier: Apache-2.0
//! Output: aligned tables, JSON, YAML.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// Prints rows under a header, columns three spaces apart; says so when there are none.
pub fn table(header: &[String], rows: &[Vec<String>]) {
    print_text(&render(header, rows));
}

/// The text of a table.
pub fn render(header: &[String], rows: &[Vec<String>]) -> String {
    if rows.is_empty() {
        return "nothing found\n".into();
    }
    let mut widths: Vec<usize> = header.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in std::iter::once(header).chain(rows.iter().map(Vec::as_slice)) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:width$}   "));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

pub fn json(value: &Value) {
    print_text(&format!("{value:#}\n"));
}

pub fn yaml(value: &Value) -> Result<()> {
    let text = serde_saphyr::to_string(value).context("print as YAML")?;
    print_text(&text);
    if !text.ends_with('\n') {
        print_text("\n");
    }
    Ok(())
}

/// A table cell from JSON: strings bare, nothing for null.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

/// `println!` that does not panic when the reader is gone (`| head`).
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => {{
        let _ = $crate::print::print_text(&format!("{}\n", format_args!($($arg)*)));
    }};
}

/// Writes to standard output; a reader that went away (`| head`) is no error. Says whether there
/// still is one.
pub fn print_text(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

/// How this program was called, for hints that can be pasted as they stand: `weft` when the
/// shell finds it by that name, else its path.
pub fn own_name() -> String {
    #[allow(clippy::disallowed_methods)] // asked once, for a hint
    let (called, path) = (std::env::args_os().next(), std::env::var_os("PATH"));
    let Some(called) = called.map(PathBuf::from) else { return "weft".into() };
    if called.components().count() > 1 {
        let own = fs::canonicalize(&called).ok();
        let on_path = std::env::split_paths(&path.unwrap_or_default())
            .any(|dir| own.is_some() && fs::canonicalize(dir.join("weft")).ok() == own);
        if !on_path {
            return called.display().to_string();
        }
    }
    "weft".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align() {
        let header = ["NAME".to_owned(), "READY".to_owned()];
        let rows = [vec!["a".to_owned(), "1/1".to_owned()], vec!["longer".into(), "0/1".into()]];
        assert_eq!(render(&header, &rows), "NAME     READY\na        1/1\nlonger   0/1\n");
    }
}
