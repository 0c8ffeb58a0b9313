// SPDX-License-Identifier: Apache-2.0
//! Bytes into raw JSON values: JSON or YAML, one document or many, with the line of each.
//!
//! The doors, `weft up`, `weft apply` and `weft lint` come here first. Refuses duplicate keys,
//! depth and alias bombs; knows nothing about kinds except how to name one.

mod json;
mod yaml;

use serde_json::Value;
use weft_base::issue::{FieldPath, Issue, Issues};

use crate::codes;
use crate::kind::{KINDS, KindId, split_api_version};

pub use yaml::line_of;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    /// JSON is YAML too; errors then speak of YAML.
    Yaml,
}

/// One document of a body or file.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    pub value: Value,
    /// The line its text starts on, from 1.
    pub line: usize,
    /// Keys given twice, the last of which counts.
    pub duplicates: Vec<FieldPath>,
}

/// What a media type says of a body; absent means JSON.
pub fn format_of(content_type: Option<&str>) -> Option<Format> {
    let full = content_type.unwrap_or_default();
    let essence = full.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.as_str() {
        "" | "application/json" | "*/*" | "text/json" => Some(Format::Json),
        "application/yaml"
        | "application/x-yaml"
        | "text/yaml"
        | "application/apply-patch+yaml" => Some(Format::Yaml),
        e if e.ends_with("+json") => Some(Format::Json),
        e if e.ends_with("+yaml") => Some(Format::Yaml),
        _ => None,
    }
}

/// All documents of a text; `kind: List` is replaced by its items. Each unreadable document is
/// an issue of its own and does not hide the others.
pub fn documents(text: &[u8], format: Format) -> (Vec<Document>, Issues) {
    let mut out = Vec::new();
    let mut issues = Issues::default();
    match format {
        Format::Json => match json::parse(text) {
            Ok((value, duplicates)) => flatten(Document { value, line: 1, duplicates }, &mut out),
            Err(issue) => issues.0.push(issue),
        },
        Format::Yaml => yaml::documents(text, &mut issues, &mut |doc| flatten(doc, &mut out)),
    }
    (out, issues)
}

/// The only document of a text.
///
/// # Errors
/// When it cannot be read, or holds none or several.
pub fn document(text: &[u8], format: Format) -> Result<Document, Issue> {
    if format == Format::Json {
        let (value, duplicates) = json::parse(text)?;
        return Ok(Document { value, line: 1, duplicates });
    }
    let mut all = Vec::new();
    let mut issues = Issues::default();
    yaml::documents(text, &mut issues, &mut |doc| all.push(doc));
    if let Some(issue) = issues.0.into_iter().next() {
        return Err(issue);
    }
    match (all.pop(), all.len()) {
        (Some(one), 0) => Ok(one),
        (None, _) => Err(unreadable("the text holds no document; one object is expected")),
        (Some(_), more) => Err(unreadable(format!(
            "the text holds {} documents; one object is expected here",
            more + 1
        ))),
    }
}

/// The kind that a document names, and the version it is written in.
///
/// # Errors
/// When `apiVersion` or `kind` is missing or names nothing that is served.
pub fn kind_of(value: &Value) -> Result<(KindId, &'static str), Issue> {
    let word = |field: &str| {
        value.get(field).and_then(Value::as_str).filter(|s| !s.is_empty()).ok_or_else(|| {
            let path = FieldPath::root().field(field);
            Issue::error(path, "required value; every object names its apiVersion and kind")
                .with_code(codes::REQUIRED)
        })
    };
    let (api_version, kind) = (word("apiVersion")?, word("kind")?);
    let (group, version) = split_api_version(api_version);
    let row = KINDS.iter().find(|k| k.group == group && k.kind == kind);
    if let Some(row) = row {
        if let Some(version) = row.versions.iter().find(|v| **v == version) {
            return Ok((row.id, version));
        }
        let message =
            format!("{kind} is not served as {api_version:?}; use {:?}", row.api_version());
        let path = FieldPath::root().field("apiVersion");
        return Err(Issue::error(path, message).with_code(codes::UNKNOWN_KIND));
    }
    let near = nearest(kind, KINDS.iter().map(|k| k.kind));
    let mut message = format!("no kind {kind:?} is known in {api_version:?}");
    if let Some(row) = near.and_then(|near| {
        let mut named = KINDS.iter().filter(|k| k.kind == near);
        named.clone().find(|k| k.group == group).or_else(|| named.next())
    }) {
        let offer = row.api_version();
        message.push_str(&format!("; did you mean {:?} in {offer:?}?", row.kind));
    }
    Err(Issue::error(FieldPath::root().field("kind"), message).with_code(codes::UNKNOWN_KIND))
}

/// The most similar of some words, when one is similar enough to be what was meant.
pub fn nearest<'a>(word: &str, among: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    let most = 1 + word.len() / 5;
    among
        .map(|w| (distance(&lower, &w.to_lowercase(), most), w))
        .filter(|(d, _)| *d <= most)
        .min_by_key(|(d, w)| (*d, w.len().abs_diff(word.len())))
        .map(|(_, w)| w)
}

/// Edit distance with transpositions, given up above `most`.
fn distance(a: &str, b: &str, most: usize) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().abs_diff(b.len()) > most || a.len().max(b.len()) > 64 {
        return usize::MAX;
    }
    let mut before = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let change = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = change.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

fn flatten(doc: Document, out: &mut Vec<Document>) {
    let list = doc.value.get("kind").and_then(Value::as_str).is_some_and(|k| k.ends_with("List"));
    match doc.value {
        Value::Object(mut map) if list && map.get("items").is_some_and(Value::is_array) => {
            if let Some(Value::Array(items)) = map.remove("items") {
                let wrap = |value| Document { value, line: doc.line, duplicates: Vec::new() };
                out.extend(items.into_iter().map(wrap));
            }
        }
        value => out.push(Document { value, ..doc }),
    }
}

fn unreadable(message: impl Into<String>) -> Issue {
    Issue::error(FieldPath::root(), message).with_code(codes::UNREADABLE)
}

#[cfg(test)]
mod tests;
