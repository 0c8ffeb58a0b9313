// SPDX-License-Identifier: Apache-2.0
//! Strategic merge, as `kubectl apply` sends it.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::PatchError;
use crate::schema::{List, PatchMerge, Schema, Shape};

const DIRECTIVE: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const ORDER: &str = "$setElementOrder/";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

type Done = Result<Value, PatchError>;

/// Merges an object's patch; `path` is for messages.
pub(super) fn object(
    schema: Option<&Schema>,
    current: &Value,
    patch: &Map<String, Value>,
    path: &str,
) -> Done {
    match patch.get(DIRECTIVE).and_then(Value::as_str) {
        Some("replace") => return Ok(plain(patch)),
        Some("delete") => return Ok(Value::Object(Map::new())),
        Some("merge") | None => {}
        Some(other) => return Err(unknown(path, other)),
    }
    let mut out = current.as_object().cloned().unwrap_or_default();
    if let Some(keep) = patch.get(RETAIN).and_then(Value::as_array) {
        let keep: HashSet<&str> = keep.iter().filter_map(Value::as_str).collect();
        out.retain(|name, _| keep.contains(name.as_str()));
    }
    // All at once: each that goes alone moves all that stand behind it.
    if patch.iter().any(is_gone) {
        out.retain(|name, _| !patch.get_key_value(name).is_some_and(is_gone));
    }
    for (name, value) in patch.iter().filter(|field| !is_gone(*field)) {
        let below = format!("{path}.{name}");
        if let Some(list) = name.strip_prefix(DELETE_FROM) {
            if let (Some(Value::Array(items)), Some(gone)) = (out.get_mut(list), value.as_array()) {
                let gone: HashSet<String> = gone.iter().map(Value::to_string).collect();
                items.retain(|i| !gone.contains(&i.to_string()));
            }
        } else if !name.starts_with('$') {
            merge_field(schema, &mut out, name, value, &below)?;
        }
    }
    for (name, order) in patch {
        if let Some((list, order)) = name.strip_prefix(ORDER).zip(order.as_array()) {
            let key = schema.and_then(|s| merge_key(s, list));
            let before = places(current.get(list), patch.get(list), key);
            if let Some(Value::Array(items)) = out.get_mut(list) {
                reorder(items, order, &before, key);
            }
        }
    }
    Ok(Value::Object(out))
}

/// Whether a field of a patch says that there is no such field any more.
fn is_gone((name, value): (&String, &Value)) -> bool {
    !name.starts_with('$')
        && (value.is_null() || value.get(DIRECTIVE).is_some_and(|d| d == "delete"))
}

fn merge_field(
    schema: Option<&Schema>,
    out: &mut Map<String, Value>,
    name: &str,
    patch: &Value,
    path: &str,
) -> Result<(), PatchError> {
    let inner = schema.and_then(|s| s.field(name)).map(|s| &**s);
    let merged = match (patch, out.get(name)) {
        (Value::Object(p), Some(current @ Value::Object(_))) => object(inner, current, p, path)?,
        (Value::Object(p), _) => object(inner, &Value::Object(Map::new()), p, path)?,
        (Value::Array(p), current) => {
            let current = current.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            match inner.map(|s| &s.shape) {
                Some(Shape::List(list)) => merge_list(list, current, p, path)?,
                _ => Value::Array(p.clone()),
            }
        }
        (other, _) => other.clone(),
    };
    out.insert(name.to_owned(), merged);
    Ok(())
}

fn merge_list(list: &List, current: &[Value], patch: &[Value], path: &str) -> Done {
    let PatchMerge::By(key) = &list.patch else {
        if list.patch == PatchMerge::Replace {
            return Ok(Value::Array(patch.to_vec()));
        }
        let known: HashSet<String> = current.iter().map(Value::to_string).collect();
        let new = patch.iter().filter(|p| !known.contains(&p.to_string()));
        let mut out: Vec<Value> = current.iter().chain(new).cloned().collect();
        reorder(&mut out, patch, current, None);
        return Ok(Value::Array(out));
    };
    let directive = |p: &Value| p.get(DIRECTIVE).and_then(Value::as_str).map(str::to_owned);
    let mut out = current.to_vec();
    if patch.iter().any(|p| p.get(&**key).is_none() && directive(p).as_deref() == Some("replace")) {
        let kept = patch.iter().filter(|p| directive(p).is_none());
        return Ok(Value::Array(kept.cloned().collect()));
    }
    // Gaps keep the places while entries go; the index makes long lists take linear time.
    let mut slots: Vec<Option<Value>> = out.drain(..).map(Some).collect();
    let id = |v: &Value| v.get(&**key).map(Value::to_string).unwrap_or_default();
    let mut places: HashMap<String, usize> =
        slots.iter().enumerate().rev().filter_map(|(i, v)| Some((id(v.as_ref()?), i))).collect();
    for entry in patch {
        let Value::Object(fields) = entry else { continue };
        if fields.get(&**key).is_none() {
            return Err(PatchError::MergeKey { path: path.to_owned(), key: key.to_string() });
        }
        let own = id(entry);
        match directive(entry).as_deref() {
            Some("delete") => {
                if let Some(slot) = places.remove(&own).and_then(|at| slots.get_mut(at)) {
                    *slot = None;
                }
            }
            None | Some("merge" | "replace") => {
                let empty = Value::Object(Map::new());
                let at = places.get(&own).copied();
                let base = at.and_then(|at| slots.get(at)).and_then(Option::as_ref);
                let merged = object(Some(&list.items), base.unwrap_or(&empty), fields, path)?;
                match at.and_then(|at| slots.get_mut(at)) {
                    Some(slot) => *slot = Some(merged),
                    None => {
                        places.insert(own, slots.len());
                        slots.push(Some(merged));
                    }
                }
            }
            Some(other) => return Err(unknown(path, other)),
        }
    }
    out.extend(slots.into_iter().flatten());
    // The patch's own order counts where it says none with `$setElementOrder`.
    let named: Vec<Value> = patch.iter().filter(|p| directive(p).is_none()).cloned().collect();
    reorder(&mut out, &named, current, Some(key));
    Ok(Value::Array(out))
}

/// Brings a merged list into the order that the patch wants; entries that only the server has
/// keep their places among those that both have.
fn reorder(items: &mut Vec<Value>, order: &[Value], before: &[Value], key: Option<&str>) {
    let id = |v: &Value| key.and_then(|k| v.get(k)).unwrap_or(v).to_string();
    let rank = |list: &[Value]| -> HashMap<String, usize> {
        list.iter().enumerate().map(|(i, v)| (id(v), i)).collect()
    };
    let (wanted, served) = (rank(order), rank(before));
    let (mut named, others): (Vec<Value>, Vec<Value>) =
        items.drain(..).partition(|v| wanted.contains_key(&id(v)));
    named.sort_by_key(|v| wanted.get(&id(v)).copied());
    let (mut left, mut right) = (named.into_iter().peekable(), others.into_iter().peekable());
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        let server_first = match (served.get(&id(a)), served.get(&id(b))) {
            (Some(a), Some(b)) => b < a,
            _ => false,
        };
        items.extend(if server_first { right.next() } else { left.next() });
    }
    items.extend(left);
    items.extend(right);
}

/// The order that counts as the server's once the patch's deletions and additions are done: what
/// is left, then what is new, as far as the list was long. Upstream's code does this by working
/// in place, and its clients see lists in this order.
fn places(current: Option<&Value>, patch: Option<&Value>, key: Option<&str>) -> Vec<Value> {
    let list = |v: Option<&Value>| v.and_then(Value::as_array).cloned().unwrap_or_default();
    let (mut out, patch) = (list(current), list(patch));
    let Some(key) = key else { return out };
    let id = |v: &Value| v.get(key).map(Value::to_string).unwrap_or_default();
    let (long, known) = (out.len(), out.iter().map(id).collect::<HashSet<_>>());
    let (gone, kept): (Vec<Value>, Vec<Value>) =
        patch.into_iter().partition(|p| p.get(DIRECTIVE).is_some_and(|d| d == "delete"));
    let gone: HashSet<String> = gone.iter().map(id).collect();
    out.retain(|v| !gone.contains(&id(v)));
    out.extend(kept.into_iter().filter(|v| !known.contains(&id(v)) || gone.contains(&id(v))));
    out.truncate(long);
    out
}

fn merge_key<'a>(schema: &'a Schema, list: &str) -> Option<&'a str> {
    match &schema.field(list)?.shape {
        Shape::List(List { patch: PatchMerge::By(key), .. }) => Some(key),
        _ => None,
    }
}

/// A patch's fields without its directives and nulls.
fn plain(patch: &Map<String, Value>) -> Value {
    let keep = patch.iter().filter(|(k, v)| !k.starts_with('$') && !v.is_null());
    Value::Object(keep.map(|(k, v)| (k.clone(), v.clone())).collect())
}

fn unknown(path: &str, directive: &str) -> PatchError {
    PatchError::Directive { path: path.to_owned(), directive: directive.to_owned() }
}
