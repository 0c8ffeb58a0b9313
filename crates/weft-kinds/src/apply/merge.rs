// SPDX-License-Identifier: Apache-2.0
//! The applied fields over the live ones, and the removal of what a manager no longer applies.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::set::{FieldSet, element_of};
use crate::schema::{List, ListKind, Object, Schema, Shape};

/// `live` with everything that `applied` says.
pub(super) fn merge(schema: &Schema, live: &Value, applied: &Value) -> Value {
    match (&schema.shape, live, applied) {
        (Shape::Object(object), Value::Object(l), Value::Object(a)) if granular(object) => {
            let mut out = l.clone();
            for (name, value) in a {
                let merged = match (object.get(name), l.get(name)) {
                    (Some(inner), Some(old)) => merge(inner, old, value),
                    _ => value.clone(),
                };
                out.insert(name.clone(), merged);
            }
            Value::Object(out)
        }
        (Shape::List(list), Value::Array(l), Value::Array(a)) if list.kind != ListKind::Atomic => {
            merge_list(list, l, a)
        }
        _ => applied.clone(),
    }
}

/// Applied entries in their order, with live-only entries where they stood before the next
/// entry that both have.
fn merge_list(list: &List, live: &[Value], applied: &[Value]) -> Value {
    let id = |v: &Value| element_of(&list.kind, &list.items, v);
    let wanted: HashSet<String> = applied.iter().map(id).collect();
    let known: HashMap<String, usize> =
        live.iter().enumerate().rev().map(|(i, v)| (id(v), i)).collect();
    let (mut out, mut told) = (Vec::new(), 0);
    let only_live = |range: std::ops::Range<usize>| {
        let part = live.get(range).unwrap_or_default();
        part.iter().filter(|v| !wanted.contains(&id(v))).cloned()
    };
    for entry in applied {
        match known.get(&id(entry)).and_then(|at| Some((*at, live.get(*at)?))) {
            Some((at, old)) => {
                out.extend(only_live(told..at.max(told)));
                told = told.max(at + 1);
                out.push(merge(&list.items, old, entry));
            }
            None => out.push(entry.clone()),
        }
    }
    out.extend(only_live(told..live.len()));
    Value::Array(out)
}

/// Removes what was applied before, is not applied now and belongs to nobody else.
pub(super) fn prune(
    schema: &Schema,
    value: &mut Value,
    last: &FieldSet,
    now: &FieldSet,
    others: &FieldSet,
) {
    match (&schema.shape, value) {
        (Shape::Object(object), Value::Object(map)) if granular(object) => {
            prune_object(object, map, last, now, others);
        }
        (Shape::List(list), Value::Array(items)) if list.kind != ListKind::Atomic => {
            items.retain_mut(|item| {
                let element = element_of(&list.kind, &list.items, item);
                keep(&list.items, item, &element, (last, now, others))
            });
        }
        _ => {}
    }
}

fn prune_object(
    object: &Object,
    map: &mut Map<String, Value>,
    last: &FieldSet,
    now: &FieldSet,
    others: &FieldSet,
) {
    let names: Vec<String> = map.keys().cloned().collect();
    for name in names {
        let (Some(inner), Some(value)) = (object.get(&name), map.get_mut(&name)) else { continue };
        if !keep(inner, value, &format!("f:{name}"), (last, now, others)) {
            map.shift_remove(&name);
        }
    }
}

/// Prunes one part; whether it stays.
fn keep(
    schema: &Schema,
    value: &mut Value,
    element: &str,
    (last, now, others): (&FieldSet, &FieldSet, &FieldSet),
) -> bool {
    let Some(was) = last.child(element) else { return true };
    let none = FieldSet::default();
    let (now, others) = (now.child(element), others.child(element));
    if now.is_none() && others.is_none() && was.own {
        return false;
    }
    let filled = !is_empty(value);
    prune(schema, value, was, now.unwrap_or(&none), others.unwrap_or(&none));
    // A container that was emptied goes with its last field.
    match filled && is_empty(value) {
        true => now.is_some() || others.is_some(),
        false => true,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

fn granular(object: &Object) -> bool {
    !object.atomic && (!object.fields.is_empty() || object.values.is_some())
}
