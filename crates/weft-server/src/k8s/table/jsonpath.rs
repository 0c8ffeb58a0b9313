// SPDX-License-Identifier: Apache-2.0
//! The JSONPath of printer columns: fields, `[*]` and `[?(@.field=="value")]`.

use serde_json::Value;

/// A cell's value: scalars as they are, several joined by commas, lists as JSON.
pub(super) fn text(path: &str, object: &Value) -> Value {
    let found = all(path, object);
    match found.as_slice() {
        [] => "".into(),
        [one] => match one {
            Value::Object(_) | Value::Array(_) => one.to_string().into(),
            Value::Null => "".into(),
            scalar => (*scalar).clone(),
        },
        many => {
            let words: Vec<String> = many
                .iter()
                .map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
                .collect();
            words.join(",").into()
        }
    }
}

pub(super) fn first(path: &str, object: &Value) -> Option<Value> {
    all(path, object).first().map(|v| (*v).clone())
}

fn all<'a>(path: &str, object: &'a Value) -> Vec<&'a Value> {
    let mut found = vec![object];
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix('[') {
            let Some((step, tail)) = inner.split_once(']') else { return Vec::new() };
            rest = tail;
            let items = found.into_iter().filter_map(Value::as_array).flatten();
            found = match filter(step) {
                Some((field, wanted)) => {
                    items.filter(|v| v.get(field).is_some_and(|f| f == wanted)).collect()
                }
                None => items.collect(),
            };
        } else {
            let step = rest.strip_prefix('.').unwrap_or(rest);
            let end = step.find(['.', '[']).unwrap_or(step.len());
            let (name, tail) = step.split_at(end);
            found = found.into_iter().filter_map(|v| v.get(name)).collect();
            rest = tail;
        }
    }
    found
}

/// `?(@.type=="Accepted")`
fn filter(step: &str) -> Option<(&str, &str)> {
    let inner = step.strip_prefix("?(@.")?.strip_suffix(')')?;
    let (field, value) = inner.split_once("==")?;
    Some((field, value.trim_matches('"')))
}
