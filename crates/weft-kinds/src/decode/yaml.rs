// SPDX-License-Identifier: Apache-2.0
//! YAML as Kubernetes reads it (YAML 1.1 booleans and octal numbers), and the way back from a
//! field path to a line.

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_saphyr::{Options, Spanned};
use weft_base::issue::{FieldPath, Issues};
use weft_base::limits::DOCUMENT_DEPTH_MAX;

use super::{Document, unreadable};
use crate::guards;

/// Splits a stream into documents and reads each; `sink` gets the readable ones.
pub(super) fn documents(text: &[u8], issues: &mut Issues, sink: &mut dyn FnMut(Document)) {
    let text = match std::str::from_utf8(text) {
        Ok(text) => text,
        Err(e) => {
            let at = text.iter().take(e.valid_up_to()).filter(|b| **b == b'\n').count() + 1;
            issues.0.push(unreadable(format!("line {at} is not UTF-8 text")));
            return;
        }
    };
    for (line, part) in split(text) {
        if part.lines().all(|l| l.trim().is_empty() || l.trim_start().starts_with('#')) {
            continue;
        }
        match serde_saphyr::from_str_with_options::<Value>(part, options()) {
            Ok(Value::Null) => {}
            Ok(value) => sink(Document { value, line, duplicates: Vec::new() }),
            Err(error) => {
                let error = error.without_snippet();
                let place = error.location().map(|l| place(line, l.line(), l.column()));
                let what = sentence(&error.to_string());
                issues.0.push(unreadable(format!(
                    "not readable as YAML{}: {what}",
                    place.unwrap_or_default()
                )));
            }
        }
    }
}

fn place(first: usize, line: u64, column: u64) -> String {
    let line = first as u64 + line.saturating_sub(1);
    format!(" at line {line}, column {column}")
}

/// The message without the place that its writer appended; the place is told for the whole file.
fn sentence(text: &str) -> String {
    let first = text.lines().next().unwrap_or_default();
    let first = first.split(" at line ").next().unwrap_or(first);
    let first = first.strip_prefix("error: ").unwrap_or(first);
    let first =
        first.split_once(": ").filter(|(p, _)| p.starts_with("line ")).map_or(first, |p| p.1);
    first.trim_end_matches('.').to_owned()
}

/// The line (from 1, within the whole text) of a field: of its key, or of the nearest parent's
/// that the text holds. `line` is the document's first line.
pub fn line_of(text: &str, line: usize, path: &FieldPath) -> Option<usize> {
    let (_, part) = split(text).into_iter().find(|(at, _)| *at == line)?;
    let root: Spanned<Node> = serde_saphyr::from_str_with_options(part, options()).ok()?;
    let mut node = &root.value;
    let mut found = root.referenced.line();
    for step in steps(path.as_str()) {
        let next = match (node, &step) {
            (Node::Map(entries), Step::Field(name)) => {
                entries.iter().find(|(k, _)| k.value == *name).map(|(k, v)| (k.referenced, v))
            }
            (Node::List(items), Step::Index(i)) => items.get(*i).map(|v| (v.referenced, v)),
            _ => None,
        };
        let Some((at, value)) = next else { break };
        found = at.line();
        node = &value.value;
    }
    usize::try_from(found).ok().map(|l| line + l.saturating_sub(1))
}

fn options() -> Options {
    let deepest = if guards::on("yaml-depth") { DOCUMENT_DEPTH_MAX } else { usize::MAX };
    serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_depth: deepest },
        legacy_octal_numbers: true,
        with_snippet: false
    }
}

/// Documents with their first lines; `---` alone on a line, or with a comment, separates.
fn split(text: &str) -> Vec<(usize, &str)> {
    let mut out = Vec::new();
    let (mut start, mut first, mut at) = (0, 1, 0);
    for (i, line) in text.split_inclusive('\n').enumerate() {
        let rest = line.strip_prefix("---").map(str::trim);
        if rest.is_some_and(|r| r.is_empty() || r.starts_with('#')) {
            out.push((first, text.get(start..at).unwrap_or_default()));
            start = at + line.len();
            first = i + 2;
        }
        at += line.len();
    }
    out.push((first, text.get(start..).unwrap_or_default()));
    out
}

enum Step {
    Field(String),
    Index(usize),
}

/// A written path, `spec.rules[0].labels["a/b"]`, as steps.
fn steps(path: &str) -> Vec<Step> {
    let mut out = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix('[') {
            let quoted = inner.starts_with('"');
            let end = if quoted { inner.find("\"]").map(|e| e + 1) } else { inner.find(']') };
            let Some(end) = end else { break };
            let word = inner.get(..end).unwrap_or_default();
            out.push(match word.parse() {
                Ok(index) => Step::Index(index),
                Err(_) => Step::Field(word.trim_matches('"').to_owned()),
            });
            rest = inner.get(end + 1..).unwrap_or_default();
        } else {
            let rest_of = rest.strip_prefix('.').unwrap_or(rest);
            let end = rest_of.find(['.', '[']).unwrap_or(rest_of.len());
            out.push(Step::Field(rest_of.get(..end).unwrap_or_default().to_owned()));
            rest = rest_of.get(end..).unwrap_or_default();
        }
    }
    out
}

/// A document's shape with the place of everything.
enum Node {
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
    List(Vec<Spanned<Node>>),
    Leaf,
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        struct Shape;
        impl<'de> Visitor<'de> for Shape {
            type Value = Node;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("YAML")
            }
            fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_str<E>(self, _: &str) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_none<E>(self) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_some<D: Deserializer<'de>>(self, source: D) -> Result<Node, D::Error> {
                Node::deserialize(source)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
                let mut out = Vec::new();
                while let Some(item) = seq.next_element()? {
                    out.push(item);
                }
                Ok(Node::List(out))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
                let mut out = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    out.push(entry);
                }
                Ok(Node::Map(out))
            }
        }
        source.deserialize_any(Shape)
    }
}
