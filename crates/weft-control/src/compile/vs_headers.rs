// SPDX-License-Identifier: Apache-2.0
//! The edits of headers that a VirtualService asks for, of a rule or of one destination.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_base::issue::FieldPath;
use weft_kinds::views::istio::{HeaderOperations, Headers};
use weft_model::{Filter, HeaderEdit};

use super::http_policy::unsendable;
use super::vs_rule::{Context, is_host};

type Pairs = Vec<(Arc<str>, Arc<str>)>;

impl Context<'_, '_> {
    pub(super) fn header_filters(&mut self, headers: &Headers, path: &FieldPath) -> Vec<Filter> {
        let mut edit = |operations: &Option<HeaderOperations>, side: &str| {
            let edit = self.header_edit(operations.as_ref()?, &path.field(side));
            (edit != HeaderEdit::default()).then_some(edit)
        };
        let request = edit(&headers.request, "request").map(Filter::RequestHeaders);
        let response = edit(&headers.response, "response").map(Filter::ResponseHeaders);
        request.into_iter().chain(response).collect()
    }

    fn header_edit(&mut self, edit: &HeaderOperations, path: &FieldPath) -> HeaderEdit {
        HeaderEdit {
            set: self.pairs(&edit.set, &path.field("set")),
            add: self.pairs(&edit.add, &path.field("add")),
            remove: edit.remove.iter().map(|n| n.to_ascii_lowercase().into()).collect(),
        }
    }

    /// `Host` is a rewrite, and no header.
    fn pairs(&mut self, map: &BTreeMap<Arc<str>, Arc<str>>, path: &FieldPath) -> Pairs {
        let mut out = Vec::new();
        for (name, value) in map.iter().filter(|(name, _)| !is_host(name)) {
            let value = literal(value).map_err(|operator| {
                format!("{operator} is Envoy's to fill in, and would be sent as it is written")
            });
            let sendable = |value: Arc<str>| match unsendable(name, &value) {
                None => Ok(value),
                Some(why) => Err(why.to_owned()),
            };
            match value.and_then(sendable) {
                Ok(value) => out.push((name.to_ascii_lowercase().into(), value)),
                Err(why) => self.issues.warning(path.field(name), format!("not applied: {why}")),
            }
        }
        out
    }
}

/// A value as Envoy reads it: `%%` is a percent sign. One that begins nothing stays.
///
/// # Errors
/// The operator that Envoy would fill in.
fn literal(value: &Arc<str>) -> Result<Arc<str>, String> {
    if !value.contains('%') {
        return Ok(value.clone());
    }
    let (mut out, mut rest) = (String::new(), &**value);
    while let Some((before, after)) = rest.split_once('%') {
        if let Some(operator) = operator(after) {
            return Err(format!("%{operator}%"));
        }
        out.push_str(before);
        out.push('%');
        rest = after.strip_prefix('%').unwrap_or(after);
    }
    out.push_str(rest);
    Ok(out.into())
}

/// `NAME`, `NAME(ARGUMENTS)` or either with `:LENGTH`, when a percent sign ends it.
fn operator(text: &str) -> Option<&str> {
    text.starts_with(|c: char| c.is_ascii_uppercase()).then_some(())?;
    let word = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let mut rest = text.trim_start_matches(word);
    if let Some(arguments) = rest.strip_prefix('(') {
        (_, rest) = arguments.split_once(')')?;
    }
    if let Some(length) = rest.strip_prefix(':') {
        rest = length.trim_start_matches(|c: char| c.is_ascii_digit());
    }
    rest.starts_with('%').then(|| text.strip_suffix(rest)).flatten()
}
