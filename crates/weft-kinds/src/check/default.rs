// SPDX-License-Identifier: Apache-2.0
//! What an object says by saying nothing: the schema's defaults. Also brings it into the form
//! that is stored: no nulls where none are allowed, quantities as text.

use serde_json::{Map, Value};

use crate::schema::{Object, Schema, Shape};

/// Fills in defaults, drops nulls that mean "absent" and writes quantities as text.
pub fn fill(schema: &Schema, value: &mut Value) {
    match (&schema.shape, &mut *value) {
        (Shape::Object(object), Value::Object(map)) => fill_object(object, map),
        (Shape::List(list), Value::Array(items)) => {
            items.iter_mut().for_each(|item| fill(&list.items, item));
        }
        (Shape::Quantity, Value::Number(n)) => *value = Value::String(n.to_string()),
        _ => {}
    }
}

fn fill_object(object: &Object, map: &mut Map<String, Value>) {
    map.retain(|name, v| !v.is_null() || object.get(name).is_none_or(|s| s.nullable));
    for (name, schema) in &object.fields {
        if let Some(default) = schema.default.as_ref().filter(|_| !map.contains_key(&**name)) {
            map.insert(name.to_string(), default.clone());
        }
    }
    for (name, value) in map.iter_mut() {
        if let Some(schema) = object.get(name) {
            fill(schema, value);
        }
    }
}
