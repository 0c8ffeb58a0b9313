// SPDX-License-Identifier: Apache-2.0
//! The forms of config entries' fields, and the one reader that makes a body into an entry by
//! them: keys whatever their case and underscores, values as loosely as Consul takes them, what
//! is empty left out. What is no field is refused by its path. Pure; the tables are in `kinds`.

use serde_json::{Map, Number, Value, json};

use crate::consul::body::same;
use crate::consul::duration;

/// What a field holds.
#[derive(Debug)]
pub enum Form {
    Text,
    Flag,
    /// A whole number, left out when it is 0.
    Whole,
    /// The same, kept when it is given.
    Given,
    /// A part of a hundred, to two places.
    Share,
    /// A duration: text or nanoseconds, shown as text.
    Span,
    /// The same, shown in nanoseconds: what Consul's own clients read as a number.
    Nanos,
    /// Anything.
    Free,
    /// A map of text.
    Texts,
    List(&'static Form),
    /// Parts by names that are the writer's own.
    Dict(&'static Form),
    Part(&'static [Field]),
}

/// A field's name as it is shown, and what it holds.
pub type Field = (&'static str, Form);

/// Largest number that is read.
const WHOLE_MAX: u64 = 1 << 53;

/// Reads an object by its fields.
///
/// # Errors
/// What is wrong, and where.
pub fn read(
    fields: &'static [Field],
    given: &Map<String, Value>,
    at: &str,
) -> Result<Map<String, Value>, String> {
    let mut out = Map::new();
    for (key, value) in given {
        let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
        let Some((name, form)) = fields.iter().find(|(name, _)| same(key, name)) else {
            return Err(format!("invalid config key {path:?}"));
        };
        if let Some(value) = one(form, value, &path)? {
            out.insert((*name).to_owned(), value);
        }
    }
    Ok(out)
}

/// Shows durations of an entry that an older version kept as text as they are kept now.
pub fn renew(fields: &'static [Field], entry: &mut Map<String, Value>) {
    for (name, form) in fields {
        if let Some(value) = entry.get_mut(*name) {
            renew_one(form, value);
        }
    }
}

fn renew_one(form: &'static Form, value: &mut Value) {
    match (form, value) {
        (Form::Nanos, value @ Value::String(_)) => {
            if let Some(number) = nanos(value) {
                *value = number.unwrap_or_else(|| empty(form));
            }
        }
        (Form::List(of), Value::Array(items)) => {
            items.iter_mut().for_each(|item| renew_one(of, item));
        }
        (Form::Dict(of), Value::Object(parts)) => {
            parts.values_mut().for_each(|part| renew_one(of, part));
        }
        (Form::Part(fields), Value::Object(part)) => renew(fields, part),
        _ => {}
    }
}

/// One value; nothing where it says nothing.
fn one(form: &'static Form, value: &Value, at: &str) -> Result<Option<Value>, String> {
    if value.is_null() {
        return Ok(None);
    }
    let wrong = |expected: &str| {
        let found: String = match value {
            Value::Object(_) => "an object".to_owned(),
            Value::Array(_) => "a list".to_owned(),
            scalar => scalar.to_string().chars().take(60).collect(),
        };
        format!("'{at}' expected {expected}, found {found}")
    };
    match form {
        Form::Text => {
            let text = text(value).ok_or_else(|| wrong("a string"))?;
            Ok((!text.is_empty()).then(|| Value::String(text)))
        }
        Form::Flag => match flag(value) {
            Some(flag) => Ok(flag.then_some(Value::Bool(true))),
            None => Err(wrong("a boolean")),
        },
        Form::Whole | Form::Given => {
            let number = whole(value).ok_or_else(|| wrong("a whole number"))?;
            Ok((number != 0 || matches!(form, Form::Given)).then(|| json!(number)))
        }
        Form::Share => {
            let number = value.as_f64().or_else(|| value.as_str()?.parse().ok());
            let share = number.map(|n| (n * 100.0).round() / 100.0).and_then(Number::from_f64);
            share.map(|n| Some(Value::Number(n))).ok_or_else(|| wrong("a number"))
        }
        Form::Span => span(value).ok_or_else(|| wrong("a duration such as \"10s\"")),
        Form::Nanos => nanos(value).ok_or_else(|| wrong("a duration such as \"10s\"")),
        Form::Free => Ok(Some(value.clone())),
        Form::Texts => {
            let texts = texts(value).ok_or_else(|| wrong("a map of strings"))?;
            Ok((!texts.is_empty()).then_some(Value::Object(texts)))
        }
        Form::List(of) => {
            let items = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            let mut out = Vec::with_capacity(items.len());
            for (i, item) in items.iter().enumerate() {
                let item = one(of, item, &format!("{at}[{i}]"))?;
                out.push(item.unwrap_or_else(|| empty(of)));
            }
            Ok((!out.is_empty()).then_some(Value::Array(out)))
        }
        Form::Dict(of) => {
            let map = value.as_object().ok_or_else(|| wrong("an object"))?;
            let mut out = Map::new();
            for (name, part) in map {
                let part = one(of, part, &format!("{at}[{name}]"))?;
                out.insert(name.clone(), part.unwrap_or_else(|| empty(of)));
            }
            Ok((!out.is_empty()).then_some(Value::Object(out)))
        }
        Form::Part(fields) => {
            // As a block of HCL comes.
            let part = match value {
                Value::Array(blocks) if blocks.len() == 1 => blocks.first(),
                other => Some(other),
            };
            let map = part.and_then(Value::as_object).ok_or_else(|| wrong("an object"))?;
            read(fields, map, at).map(|part| Some(Value::Object(part)))
        }
    }
}

// === helpers ===

/// What stands in a list for an item that says nothing.
fn empty(form: &Form) -> Value {
    match form {
        Form::Text | Form::Span => json!(""),
        Form::Flag => json!(false),
        Form::Whole | Form::Given | Form::Share | Form::Nanos => json!(0),
        Form::Free => Value::Null,
        Form::List(_) => json!([]),
        Form::Texts | Form::Dict(_) | Form::Part(_) => json!({}),
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(flag) => Some(if *flag { "1" } else { "0" }.to_owned()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn texts(value: &Value) -> Option<Map<String, Value>> {
    let pairs = value.as_object()?.iter().map(|(name, one)| {
        let own = if one.is_null() { String::new() } else { text(one)? };
        Some((name.clone(), Value::String(own)))
    });
    pairs.collect()
}

fn flag(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(flag) => Some(*flag),
        Value::Number(number) => Some(number.as_f64()? != 0.0),
        Value::String(text) => match text.as_str() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
            "" | "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

fn whole(value: &Value) -> Option<i64> {
    let number = match value {
        Value::Number(number) => number.as_i64().or_else(|| {
            let number = number.as_f64().filter(|n| n.fract() == 0.0)?;
            format!("{number:.0}").parse().ok()
        }),
        Value::String(text) if text.is_empty() => Some(0),
        Value::String(text) => text.parse().ok(),
        Value::Bool(flag) => Some(i64::from(*flag)),
        _ => None,
    };
    number.filter(|n| n.unsigned_abs() <= WHOLE_MAX)
}

/// In nanoseconds; a negative one stays what it is, for its judge to refuse.
fn nanos(value: &Value) -> Option<Option<Value>> {
    let read = |text: &str| i64::try_from(duration::parse(text)?.as_nanos()).ok();
    let nanos = match value {
        Value::String(text) if text.is_empty() => 0,
        Value::String(text) => match text.strip_prefix('-') {
            Some(rest) => -read(rest)?,
            None => read(text)?,
        },
        Value::Number(number) => number.as_i64()?,
        _ => return None,
    };
    Some((nanos != 0).then(|| json!(nanos)))
}

/// As text; a negative one stays what it is, for its judge to refuse.
fn span(value: &Value) -> Option<Option<Value>> {
    let shown = |text: &str| match text.strip_prefix('-') {
        Some(rest) => duration::parse(rest).map(|_| text.to_owned()),
        None => duration::parse(text).map(duration::exactly),
    };
    match value {
        Value::String(text) if text.is_empty() => Some(None),
        Value::String(text) => shown(text).map(|text| (text != "0s").then(|| json!(text))),
        Value::Number(number) => match number.as_i64()? {
            0 => Some(None),
            negative if negative < 0 => Some(Some(json!(format!("{negative}ns")))),
            nanos => shown(&format!("{nanos}ns")).map(|text| Some(json!(text))),
        },
        _ => None,
    }
}
