// SPDX-License-Identifier: Apache-2.0
//! Reading and changing raw JSON without a way to panic: what is not there is null, and what is
//! not an object takes no fields.

use serde_json::Value;

static NULL: Value = Value::Null;

/// Fields of a JSON value.
pub(crate) trait Fields {
    /// The field's value; null when there is none.
    fn at(&self, field: &str) -> &Value;
    /// Sets a field of an object; anything else stays as it is.
    fn put(&mut self, field: &str, value: impl Into<Value>);
}

impl Fields for Value {
    fn at(&self, field: &str) -> &Value {
        self.get(field).unwrap_or(&NULL)
    }

    fn put(&mut self, field: &str, value: impl Into<Value>) {
        if let Value::Object(map) = self {
            map.insert(field.to_owned(), value.into());
        }
    }
}
