// SPDX-License-Identifier: Apache-2.0
//! Fields that a kind does not have: found, and taken out.

use serde_json::Value;
use weft_base::issue::Issues;

use super::{Path, found};
use crate::codes;
use crate::decode::nearest;
use crate::schema::{Object, Schema, Shape};

/// Removes every field that the schema does not know and tells each, with the field that was
/// probably meant.
pub fn prune(schema: &Schema, value: &mut Value) -> Issues {
    let mut out = Issues::default();
    walk(schema, value, Path::root(), &mut out);
    out
}

fn walk(schema: &Schema, value: &mut Value, path: Path<'_>, out: &mut Issues) {
    match (&schema.shape, value) {
        (Shape::Object(object), Value::Object(map)) => {
            if !object.open && object.values.is_none() {
                let unknown = map.keys().filter(|k| object.named(k).is_none());
                unknown.for_each(|name| tell(object, name, path, out));
                map.retain(|name, _| object.named(name).is_some());
            }
            for (name, child) in map.iter_mut() {
                if let Some(inner) = object.get(name) {
                    walk(inner, child, path.field(name), out);
                }
            }
        }
        (Shape::List(list), Value::Array(items)) => {
            for (i, child) in items.iter_mut().enumerate() {
                walk(&list.items, child, path.index(i), out);
            }
        }
        _ => {}
    }
}

fn tell(object: &Object, name: &str, path: Path<'_>, out: &mut Issues) {
    if out.0.len() >= super::FINDINGS_MAX {
        // Looking for what was meant takes time; nobody would read it.
        return;
    }
    let near = nearest(name, object.fields.iter().map(|(n, _)| n.as_ref()));
    let message = match near {
        Some(near) => format!("unknown field; did you mean {near:?}?"),
        None => {
            let names: Vec<_> = object.fields.iter().take(12).map(|(n, _)| n.as_ref()).collect();
            let more = if object.fields.len() > 12 { ", ..." } else { "" };
            format!("unknown field; known here: {}{more}", names.join(", "))
        }
    };
    found(out, &path.field(name), codes::UNKNOWN_FIELD, message);
}
