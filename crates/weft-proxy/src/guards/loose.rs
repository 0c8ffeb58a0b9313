// SPDX-License-Identifier: Apache-2.0
//! Only in tests: which guard is left out, and how servers read that lack one rule of a grammar.
//! Each repairs what it should refuse, as such servers do.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use weft_base::limits::HEADERS_MAX;
use weft_model::decide::Authority;

use super::switched::{on, without};
use crate::h1::head::is_token;

/// How long a case waits for an end. What hangs where all guards are on is a fault, however slow
/// the machine is; without a guard it may be what the case shows.
pub(crate) fn patience() -> Duration {
    Duration::from_secs(if without().is_none() { 90 } else { 5 })
}

/// A test that makes a handler panic says so in a header.
pub(crate) fn explode(headers: &HeaderMap) {
    assert!(!headers.contains_key("x-test-panic"), "a handler panics on purpose");
}

/// A request's head as it is read without one rule of the grammar.
pub(crate) fn loose_head(head: Bytes) -> Bytes {
    let Some(guard) = without().filter(|c| c.starts_with("grammar-")) else { return head };
    let (first, lines) = cut(&head);
    let (mut first, mut lines) = (first.to_vec(), lines);
    let words: Vec<&[u8]> = first.split(|b| *b == b' ').collect();
    match (guard, words.as_slice()) {
        ("grammar-version", [method, target, _]) => {
            first = [method, target, &b"HTTP/1.1"[..]].join(&b' ');
        }
        ("grammar-words", [method, version]) => {
            first = [method, &b"/"[..], version].join(&b' ');
        }
        ("grammar-words", [method, target @ .., version]) => {
            first = [*method, &target.join(&b"%20"[..]), *version].join(&b' ');
        }
        ("grammar-target", [method, target, version]) => {
            let path = target.strip_prefix(b"http://").unwrap_or(target);
            first = [method, path, version].join(&b' ');
        }
        _ => repair(guard, &mut lines),
    }
    let mut out = first;
    out.extend_from_slice(b"\r\n");
    joined_lines(out, &lines)
}

/// Trailers likewise.
pub(crate) fn loose_lines(bytes: Bytes) -> Bytes {
    let Some(guard) = without().filter(|c| c.starts_with("grammar-")) else { return bytes };
    let mut lines = cut(&[b"\r\n", &bytes[..]].concat()).1;
    repair(guard, &mut lines);
    joined_lines(Vec::new(), &lines)
}

fn joined_lines(mut out: Vec<u8>, lines: &[Vec<u8>]) -> Bytes {
    for line in lines {
        out.extend_from_slice(line);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    out.into()
}

/// The first line and the others, up to the empty one.
fn cut(head: &[u8]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let mut lines = Vec::new();
    let mut rest = head;
    while let Some(end) = rest.windows(2).position(|w| w == b"\r\n") {
        lines.push(rest[..end].to_vec());
        rest = &rest[end + 2..];
    }
    if lines.last().is_some_and(Vec::is_empty) {
        lines.pop();
    }
    let others = lines.split_off(1.min(lines.len()));
    (lines.pop().unwrap_or_default(), others)
}

fn repair(guard: &str, lines: &mut Vec<Vec<u8>>) {
    let name_of = |line: &[u8]| line.iter().position(|b| *b == b':');
    match guard {
        // The list ends with what has no name.
        "grammar-name-empty" => {
            let end = lines.iter().position(|l| l.starts_with(b":")).unwrap_or(lines.len());
            lines.truncate(end);
        }
        "grammar-name-token" => lines.iter_mut().for_each(|line| {
            let end = name_of(line).unwrap_or(0);
            line[..end].iter_mut().filter(|b| !is_token(**b)).for_each(|b| *b = b'-');
        }),
        "grammar-name-blank" => lines.iter_mut().for_each(|line| {
            let end = name_of(line).unwrap_or(0);
            let kept = line[..end].trim_ascii_end().len();
            line.drain(kept..end);
        }),
        "grammar-colon" => lines.retain(|line| name_of(line).is_some()),
        "grammar-control" => lines.iter_mut().flatten().for_each(|b| {
            *b = if b.is_ascii_control() && *b != b'\t' { b' ' } else { *b };
        }),
        "grammar-fold" => {
            let mut whole: Vec<Vec<u8>> = Vec::new();
            for line in lines.drain(..) {
                let folded = line.starts_with(b" ") || line.starts_with(b"\t");
                match whole.last_mut().filter(|_| folded) {
                    Some(before) => before.extend_from_slice(&line),
                    None => whole.push(line.trim_ascii_start().to_vec()),
                }
            }
            whole.retain(|line| !line.is_empty());
            *lines = whole;
        }
        // A table of fixed size, and nobody looks whether it is full.
        "grammar-headers" => lines.truncate(HEADERS_MAX),
        // A length in eight bits.
        "grammar-name-bytes" => lines.iter_mut().for_each(|line| {
            let end = name_of(line).unwrap_or(0);
            line.drain(end & 0xff..end);
        }),
        _ => {}
    }
}

/// A host as it came, or as servers read it that look for the part they need.
pub(crate) fn loose_host(text: &str) -> Option<Authority> {
    let named = |host: &str| Some(Authority { host: host.to_owned(), port: None });
    match without()? {
        "host-raw" => named(text),
        "host-form" => {
            let behind = text.rsplit('@').next().unwrap_or_default();
            let odd = [',', ' ', '/', '\\', '%', ':', '[', ']'];
            named(behind.split(odd).find(|part| !part.is_empty()).unwrap_or("unnamed"))
        }
        _ => None,
    }
}

/// A path as servers compare it that do not tell small letters from capitals.
pub(crate) fn loose_path(path: &str) -> &str {
    if on("path-case") { path } else { path.to_ascii_lowercase().leak() }
}

/// Values of a header joined to one, or without those that are no text.
pub(crate) fn loosely_any(
    headers: &HeaderMap,
    name: &str,
    holds: &mut dyn FnMut(&[u8]) -> bool,
) -> Option<bool> {
    let values = headers.get_all(name).iter().map(HeaderValue::as_bytes);
    match without()? {
        "header-lines" => {
            let all: Vec<&[u8]> = values.collect();
            Some(!all.is_empty() && holds(&all.join(&b","[..])))
        }
        // What stands around a value counts as part of it.
        "header-blank" => Some(values.map(|v| [v, b" "].concat()).any(|v| holds(&v))),
        "header-bytes" => Some(values.filter(|v| v.is_ascii()).any(holds)),
        _ => None,
    }
}

/// What a server makes of a value that somebody wrote lines into.
pub(crate) fn split_lines(headers: &mut HeaderMap, name: &str, value: &str) {
    if on("value-lines") {
        return;
    }
    for line in format!("{name}: {value}").split(['\r', '\n', '\0']) {
        let Some((name, value)) = line.split_once(':') else { continue };
        let name = HeaderName::from_bytes(name.trim().as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value.trim())) {
            headers.append(name, value);
        }
    }
}
