// SPDX-License-Identifier: Apache-2.0
//! One object against its schema: unknown fields ([`strict`]), defaults ([`default`]), and types,
//! bounds and rules ([`validate`]). Findings accumulate, each with its field path and code.
//!
//! Called by the doors before anything is stored, by `weft lint` and by `weft up`. Looks at one
//! object only; references to others are control's business.

mod default;
mod format;
mod strict;
mod types;

use serde_json::Value;
use weft_base::issue::{FieldPath, Issue, Issues};

use crate::schema::Schema;

/// Findings told of one object; a broken generator shall not fill the answer.
const FINDINGS_MAX: usize = 64;

pub use default::fill;
pub(crate) use format::matches as format_matches;
pub use strict::prune;

/// Types, required fields, bounds, enums, patterns, list keys and rules.
pub fn validate(schema: &Schema, value: &Value, old: Option<&Value>) -> Issues {
    let mut found = Issues::default();
    types::check(schema, value, old, Path::root(), &mut found);
    found
}

/// A path that lives on the stack while a value is walked; written out only for a finding.
#[derive(Clone, Copy)]
pub(crate) struct Path<'a>(Option<(&'a Path<'a>, Step<'a>)>);

#[derive(Clone, Copy)]
enum Step<'a> {
    Field(&'a str),
    Index(usize),
}

// === impl Path ===

impl<'a> Path<'a> {
    pub(crate) fn root() -> Self {
        Path(None)
    }

    pub(crate) fn field<'b>(&'b self, name: &'b str) -> Path<'b>
    where
        'a: 'b,
    {
        Path(Some((self, Step::Field(name))))
    }

    pub(crate) fn index<'b>(&'b self, index: usize) -> Path<'b>
    where
        'a: 'b,
    {
        Path(Some((self, Step::Index(index))))
    }

    pub(crate) fn written(&self) -> FieldPath {
        match &self.0 {
            None => FieldPath::root(),
            Some((parent, Step::Field(name))) => parent.written().field(name),
            Some((parent, Step::Index(i))) => parent.written().index(*i),
        }
    }
}

/// Adds a finding unless there are enough.
pub(crate) fn found(out: &mut Issues, path: &Path<'_>, code: &'static str, message: String) {
    if out.0.len() < FINDINGS_MAX {
        out.0.push(Issue::error(path.written(), message).with_code(code));
    }
}

/// A value as a message shows it: JSON, cut short.
pub(crate) fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 80 {
        return text;
    }
    let head: String = text.chars().take(77).collect();
    format!("{head}...")
}

#[cfg(test)]
mod tests;
