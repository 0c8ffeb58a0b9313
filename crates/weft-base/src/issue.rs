// SPDX-License-Identifier: Apache-2.0
//! Configuration errors: they accumulate, each names its field, what was found and what to do.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where in an object something is: `spec.rules[0].matches[1].path`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FieldPath(String);

/// How bad an [`Issue`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The object, or the part named by the path, is not used.
    Error,
    /// It is used, but not as its author may think.
    Warning,
}

/// One finding about one field of one object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Issue {
    pub severity: Severity,
    /// Stable code such as `W1003`; indexed in `docs/errors.md`. Empty when it has none.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub code: std::borrow::Cow<'static, str>,
    pub path: FieldPath,
    /// Lower case, no full stop: what was found, what was expected, what to do.
    pub message: String,
}

/// Collects issues while a value is read; never stops at the first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Issues(pub Vec<Issue>);

// === impl FieldPath ===

impl FieldPath {
    pub fn root() -> Self {
        Self::default()
    }

    /// A path from its written form.
    pub fn new(path: impl Into<String>) -> Self {
        Self(path.into())
    }

    /// This path's child field. Names with `.`, `[` or `/` are quoted: `labels["a/b"]`.
    #[must_use]
    pub fn field(&self, name: &str) -> Self {
        let mut out = self.0.clone();
        if name.contains(['.', '[', ']', '/', '"']) {
            out.push_str(&format!("[{name:?}]"));
        } else {
            if !out.is_empty() {
                out.push('.');
            }
            out.push_str(name);
        }
        Self(out)
    }

    /// This path's list element.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Issue ===

impl Issue {
    pub fn error(path: FieldPath, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, code: "".into(), path, message: message.into() }
    }

    pub fn warning(path: FieldPath, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(path, message) }
    }

    #[must_use]
    pub fn with_code(mut self, code: &'static str) -> Self {
        self.code = code.into();
        self
    }
}

impl fmt::Display for Issue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_root() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        if !self.code.is_empty() {
            write!(f, " ({})", self.code)?;
        }
        Ok(())
    }
}

// === impl Issues ===

impl Issues {
    pub fn error(&mut self, path: FieldPath, message: impl Into<String>) {
        self.0.push(Issue::error(path, message));
    }

    pub fn warning(&mut self, path: FieldPath, message: impl Into<String>) {
        self.0.push(Issue::warning(path, message));
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|i| i.severity == Severity::Error)
    }
}

impl fmt::Display for Issues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, issue) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            issue.fmt(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_reads_as_people_write_it() {
        let p = FieldPath::root().field("spec").field("rules").index(0).field("matches").index(1);
        assert_eq!(p.to_string(), "spec.rules[0].matches[1]");
        assert_eq!(p.field("a.b/c").to_string(), "spec.rules[0].matches[1][\"a.b/c\"]");
    }

    #[test]
    fn issue_names_its_field_first() {
        let i = Issue::error(FieldPath::new("spec.port"), "expected a number").with_code("W1001");
        assert_eq!(i.to_string(), "spec.port: expected a number (W1001)");
    }
}
