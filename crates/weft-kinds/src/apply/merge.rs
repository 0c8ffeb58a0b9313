// SPDX-License-Identifier: Apache-2.0
//! The applied fields over the live ones, and the removal of what a manager no longer applies.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

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

/// Applied entries keep their order, live-only ones their places between them, as upstream's
/// structured merge interleaves them.
fn merge_list(list: &List, live: &[Value], applied: &[Value]) -> Value {
    let id = |v: &Value| element_of(&list.kind, &list.items, v);
    let (left, right): (Vec<String>, Vec<String>) =
        (live.iter().map(id).collect(), applied.iter().map(id).collect());
    let in_left: HashMap<&str, usize> =
        left.iter().enumerate().rev().map(|(i, e)| (e.as_str(), i)).collect();
    let in_right: HashSet<&str> = right.iter().map(String::as_str).collect();
    let mut shared = right.iter().filter(|e| in_left.contains_key(e.as_str()));
    let mut next = shared.next();
    let mut merged: HashSet<&str> = HashSet::new();
    let mut out = Vec::with_capacity(live.len().max(applied.len()));
    let (mut l, mut r) = (0, 0);
    while l < left.len() || r < right.len() {
        if let (Some(a), Some(b)) = (left.get(l), right.get(r))
            && a != b
            && in_right.contains(a.as_str())
            && next.is_some_and(|next| next != a)
        {
            // In both, but another one is due.
            l += 1;
            continue;
        }
        if let Some(a) = left.get(l).filter(|a| right.get(r) != Some(*a)) {
            if !in_right.contains(a.as_str()) {
                out.extend(live.get(l).cloned());
                l += 1;
                continue;
            }
            l += usize::from(merged.contains(a.as_str()));
        }
        let (Some(b), Some(entry)) = (right.get(r), applied.get(r)) else { continue };
        l += usize::from(left.get(l) == Some(b));
        merged.insert(b);
        out.push(match in_left.get(b.as_str()).and_then(|at| live.get(*at)) {
            Some(old) => merge(&list.items, old, entry),
            None => entry.clone(),
        });
        r += 1;
        if next == Some(b) {
            next = shared.next();
        }
    }
    Value::Array(out)
}

/// What a manager applied before, applies now, and what everyone else owns.
#[derive(Clone, Copy)]
pub(super) struct Claims<'a> {
    pub(super) last: &'a FieldSet,
    pub(super) now: &'a FieldSet,
    pub(super) others: &'a FieldSet,
}

/// Removes what was applied before, is not applied now and belongs to nobody else.
pub(super) fn prune(schema: &Schema, value: &mut Value, claims: Claims<'_>) {
    match (&schema.shape, value) {
        (Shape::Object(object), Value::Object(map)) if granular(object) => {
            map.retain(|name, value| match object.get(name) {
                Some(inner) => {
                    let named = object.named(name).is_some();
                    keep(inner, value, &format!("f:{name}"), named, claims)
                }
                None => true,
            });
        }
        (Shape::List(list), Value::Array(items)) if list.kind != ListKind::Atomic => {
            items.retain_mut(|item| {
                let element = element_of(&list.kind, &list.items, item);
                keep(&list.items, item, &element, false, claims)
            });
        }
        _ => {}
    }
}

/// Prunes one part; whether it stays. A field of the kind belongs to whoever owns something
/// below it; an entry of a list or map only to who owns the entry itself.
fn keep(
    schema: &Schema,
    value: &mut Value,
    element: &str,
    named: bool,
    claims: Claims<'_>,
) -> bool {
    let Some(last) = claims.last.child(element) else { return true };
    let (now, others) = (claims.now.child(element), claims.others.child(element));
    let claimed = |set: &FieldSet| set.own || (named && !set.is_empty());
    if claimed(last) && !now.is_some_and(claimed) && !others.is_some_and(claimed) {
        return false;
    }
    let none = FieldSet::default();
    let below = Claims { last, now: now.unwrap_or(&none), others: others.unwrap_or(&none) };
    let length = |v: &Value| v.as_array().map_or(0, Vec::len);
    let before = length(value);
    prune(schema, value, below);
    // A list goes with its last entry.
    before == 0 || length(value) > 0
}

fn granular(object: &Object) -> bool {
    !object.atomic && (!object.fields.is_empty() || object.values.is_some())
}
