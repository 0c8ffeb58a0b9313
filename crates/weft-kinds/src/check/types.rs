// SPDX-License-Identifier: Apache-2.0
//! Types, bounds, enums, patterns, list keys and combinators. Messages have the words of the
//! real API server where it has words for the case.

use serde_json::Value;
use weft_base::issue::Issues;

use super::{Path, format, found, shown};
use crate::cel;
use crate::codes::{DUPLICATE, INVALID, NOT_SUPPORTED, REQUIRED, RULE, TOO_MANY, WRONG_TYPE};
use crate::schema::{List, ListKind, Object, Range, Rules, Schema, Shape, Size, Text};

/// Checks a value; `old` is what stood there before, for rules about change.
pub(super) fn check(
    schema: &Schema,
    value: &Value,
    old: Option<&Value>,
    path: Path<'_>,
    out: &mut Issues,
) {
    if value.is_null() && schema.nullable {
        return;
    }
    let before = out.0.len();
    match (&schema.shape, value) {
        (Shape::Any, _) | (Shape::Boolean, Value::Bool(_)) => {}
        (Shape::Object(object), Value::Object(_)) => check_object(object, value, old, path, out),
        (Shape::List(list), Value::Array(items)) => check_list(list, items, old, path, out),
        (Shape::Text(text), Value::String(s)) => check_text(text, s, path, out),
        (Shape::Integer(range), Value::Number(n)) if n.is_i64() || n.is_u64() => {
            check_range(*range, value, path, out);
        }
        (Shape::Number(range), Value::Number(_)) => check_range(*range, value, path, out),
        (Shape::IntOrString(text), Value::String(s)) => check_text(text, s, path, out),
        (Shape::IntOrString(_), Value::Number(n)) if n.is_i64() || n.is_u64() => {}
        (Shape::Quantity, Value::Number(_)) => {}
        (Shape::Quantity, Value::String(s)) => {
            if !format::is_quantity(s) {
                let message = format!("Invalid value: {s:?}: expected a quantity such as 250m");
                found(out, &path, INVALID, message);
            }
        }
        _ => {
            let message =
                format!("Invalid value: {}: expected {}", shown(value), schema.type_name());
            found(out, &path, WRONG_TYPE, message);
        }
    }
    // Rules speak of well-formed values only.
    if let Some(rules) = schema.rules.as_deref().filter(|_| out.0.len() == before) {
        check_rules(rules, value, old, path, out);
    }
}

fn check_object(
    object: &Object,
    value: &Value,
    old: Option<&Value>,
    path: Path<'_>,
    out: &mut Issues,
) {
    let Value::Object(map) = value else { return };
    for name in &object.required {
        if map.get(&**name).is_none_or(Value::is_null) {
            let what = object.named(name).map_or("a value", |s| s.type_name());
            found(out, &path.field(name), REQUIRED, format!("Required value: {what}"));
        }
    }
    if !object.size.holds(map.len()) {
        found(out, &path, TOO_MANY, sized("properties", object.size, map.len()));
    }
    for (name, child) in map {
        if let Some(schema) = object.get(name) {
            check(schema, child, old.and_then(|o| o.get(name)), path.field(name), out);
        }
    }
}

fn check_list(list: &List, items: &[Value], old: Option<&Value>, path: Path<'_>, out: &mut Issues) {
    if !list.size.holds(items.len()) {
        found(out, &path, TOO_MANY, sized("items", list.size, items.len()));
    }
    for (i, item) in items.iter().enumerate() {
        let was = match &list.kind {
            ListKind::Map(keys) => old.and_then(Value::as_array).and_then(|all| {
                all.iter().find(|o| keys.iter().all(|k| o.get(&**k) == item.get(&**k)))
            }),
            _ => None,
        };
        check(&list.items, item, was, path.index(i), out);
    }
    match &list.kind {
        ListKind::Atomic => {}
        ListKind::Set => {
            let mut seen = std::collections::HashSet::new();
            for (i, item) in items.iter().enumerate() {
                if !seen.insert(item.to_string()) {
                    let message = format!("Duplicate value: {}", shown(item));
                    found(out, &path.index(i), DUPLICATE, message);
                }
            }
        }
        ListKind::Map(keys) => check_keys(keys, items, path, out),
    }
}

fn check_keys(keys: &[Box<str>], items: &[Value], path: Path<'_>, out: &mut Issues) {
    let mut seen = std::collections::HashSet::new();
    for (i, item) in items.iter().enumerate() {
        let own: Vec<String> = keys
            .iter()
            .map(|k| format!("{k:?}:{}", item.get(&**k).unwrap_or(&Value::Null)))
            .collect();
        let own = format!("{{{}}}", own.join(","));
        if !seen.insert(own.clone()) {
            found(out, &path.index(i), DUPLICATE, format!("Duplicate value: {own}"));
        }
    }
}

fn check_text(text: &Text, s: &str, path: Path<'_>, out: &mut Issues) {
    if !text.one_of.is_empty() && !text.one_of.iter().any(|one| &**one == s) {
        let all: Vec<_> = text.one_of.iter().map(|v| format!("{v:?}")).collect();
        let message = format!("Unsupported value: {s:?}: supported values: {}", all.join(", "));
        found(out, &path, NOT_SUPPORTED, message);
        return;
    }
    let length = s.chars().count();
    if text.size.max.is_some_and(|max| length as u64 > max) {
        let max = text.size.max.unwrap_or_default();
        let message = format!("Too long: may not be more than {max} bytes, it has {length}");
        found(out, &path, TOO_MANY, message);
        return;
    }
    if text.size.min.is_some_and(|min| (length as u64) < min) {
        let min = text.size.min.unwrap_or_default();
        let message = format!("Invalid value: {s:?}: should be at least {min} chars long");
        found(out, &path, INVALID, message);
        return;
    }
    if let Some(pattern) = text.pattern.as_deref().filter(|p| !format::matches(p, s)) {
        let cut = shown(&Value::String(s.to_owned()));
        let message = format!("Invalid value: {cut}: should match '{pattern}'");
        found(out, &path, INVALID, message);
    }
    if let Some(wrong) = text.format.as_deref().and_then(|f| format::wrong(f, s)) {
        let cut = shown(&Value::String(s.to_owned()));
        found(out, &path, INVALID, format!("Invalid value: {cut}: {wrong}"));
    }
}

fn check_range(range: Range, value: &Value, path: Path<'_>, out: &mut Issues) {
    let Some(n) = value.as_f64() else { return };
    let bound = |word: &str, bound: f64, strict: bool| {
        let or = if strict { "" } else { " or equal to" };
        format!("Invalid value: {value}: should be {word} than{or} {bound}")
    };
    if let Some(min) = range.min.filter(|min| n < *min || (range.min_exclusive && n <= *min)) {
        found(out, &path, INVALID, bound("greater", min, range.min_exclusive));
    }
    if let Some(max) = range.max.filter(|max| n > *max || (range.max_exclusive && n >= *max)) {
        found(out, &path, INVALID, bound("less", max, range.max_exclusive));
    }
}

fn check_rules(
    rules: &Rules,
    value: &Value,
    old: Option<&Value>,
    path: Path<'_>,
    out: &mut Issues,
) {
    for schema in &rules.all_of {
        check(schema, value, old, path, out);
    }
    let holds = |schema: &Schema| {
        let mut inner = Issues::default();
        check(schema, value, None, Path::root(), &mut inner);
        inner.is_empty()
    };
    if !rules.any_of.is_empty() && !rules.any_of.iter().any(holds) {
        found(out, &path, RULE, format!("must have {}", alternatives(&rules.any_of)));
    }
    if !rules.one_of.is_empty() {
        let n = rules.one_of.iter().filter(|s| holds(s)).count();
        if n != 1 {
            let wanted = alternatives(&rules.one_of);
            found(out, &path, RULE, format!("must have exactly one of: {wanted}"));
        }
    }
    if rules.not.as_ref().is_some_and(holds) {
        let unwanted = rules.not.as_ref().map(|n| alternatives(std::slice::from_ref(n)));
        found(out, &path, RULE, format!("must not have {}", unwanted.unwrap_or_default()));
    }
    for rule in &rules.cel {
        match cel::evaluate(&rule.rule, value, old) {
            Ok(true) => {}
            Ok(false) => {
                let said = rule.message.as_deref().unwrap_or("the kind's rule does not hold");
                let message = match &rule.message {
                    Some(_) => said.to_owned(),
                    None => format!("{said}: {}", rule.rule),
                };
                found(out, &path, RULE, format!("Invalid value: {message}"));
            }
            // A test holds every committed rule against the evaluator; should one slip through,
            // it is not held against the user.
            Err(cel::CelError::Unsupported(_) | cel::CelError::Syntax(_)) => {}
            Err(error) => {
                let said = rule.message.as_deref().unwrap_or("the kind's rule cannot be judged");
                found(out, &path, RULE, format!("Invalid value: {said} ({error})"));
            }
        }
    }
}

/// The fields that branches ask for, in words.
fn alternatives(branches: &[Schema]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for branch in branches {
        if let Some(object) = branch.object() {
            names.extend(object.required.iter().map(AsRef::as_ref));
        }
        if let Some(rules) = &branch.rules {
            let inner = rules.any_of.iter().chain(&rules.one_of).filter_map(Schema::object);
            names.extend(inner.flat_map(|o| o.required.iter().map(AsRef::as_ref)));
        }
    }
    names.dedup();
    names.join(", ")
}

fn sized(what: &str, size: Size, n: usize) -> String {
    match (size.max, size.min) {
        (Some(max), _) if n as u64 > max => {
            format!("Too many: {n}: must have at most {max} {what}")
        }
        (_, Some(min)) => format!("Invalid value: {n}: must have at least {min} {what}"),
        _ => String::new(),
    }
}
