// SPDX-License-Identifier: Apache-2.0
//! Header edits, as route configurations, virtual hosts, routes and weighted clusters have them.

use std::sync::Arc;

use weft_model::{Filter, HeaderEdit};

use crate::read::Message;

/// The filters of one level.
pub fn filters(message: &Message<'_>) -> Vec<Filter> {
    let request = edit(message, "request_headers_to_add", "request_headers_to_remove");
    let response = edit(message, "response_headers_to_add", "response_headers_to_remove");
    let empty = HeaderEdit::default();
    let mut out = Vec::new();
    if request != empty {
        out.push(Filter::RequestHeaders(request));
    }
    if response != empty {
        out.push(Filter::ResponseHeaders(response));
    }
    out
}

fn edit(message: &Message<'_>, add: &str, remove: &str) -> HeaderEdit {
    let mut out = HeaderEdit::default();
    message.each(add, |option| {
        let Some(header) = option.message("header") else { return };
        let keeps_empty = option.flag("keep_empty_value") == Some(true);
        let name = header.text("key").map(str::to_ascii_lowercase);
        let value = header.text("value").unwrap_or("");
        let Some(name) = name else { return };
        if name.starts_with(':') || name == "host" {
            header.unsupported("key", "use a rewrite for what is no header of its own");
            return;
        }
        let Some(value) = literal(value) else {
            header.unsupported("value", "operators are for access logs only");
            return;
        };
        let is_left_out = value.is_empty() && !keeps_empty;
        let pair: (Arc<str>, Arc<str>) = (name.into(), value.into());
        let legacy = match option.flag("append") {
            Some(false) => "OVERWRITE_IF_EXISTS_OR_ADD",
            _ => "APPEND_IF_EXISTS_OR_ADD",
        };
        match option.word("append_action").as_deref().unwrap_or(legacy) {
            _ if is_left_out => {}
            "APPEND_IF_EXISTS_OR_ADD" => out.add.push(pair),
            "OVERWRITE_IF_EXISTS_OR_ADD" => out.set.push(pair),
            other => option.unsupported("append_action", format!("weft adds or sets, not {other}")),
        }
    });
    out.remove = message.texts(remove).into_iter().map(|n| n.to_ascii_lowercase().into()).collect();
    out
}

/// The text of a value without operators; `%%` is one per cent sign.
fn literal(value: &str) -> Option<String> {
    let plain = value.replace("%%", "\u{0}");
    (!plain.contains('%')).then(|| plain.replace('\u{0}', "%"))
}
