// SPDX-License-Identifier: Apache-2.0
//! The three kinds of patch besides apply: strategic merge (built-in kinds), JSON merge
//! (RFC 7386) and JSON patch (RFC 6902). Pure: raw JSON in, raw JSON out.

mod strategic;

use serde_json::Value;
use thiserror::Error;

use crate::schema::Schema;

/// Operations of one JSON patch.
const OPERATIONS_MAX: usize = 10_000;

#[derive(Debug, Error)]
pub enum PatchError {
    #[error("the patch is not an object; a merge patch is an object with the fields to change")]
    NotAnObject,
    #[error("the patch is not a JSON patch (a list of operations): {0}")]
    NotOperations(serde_json::Error),
    #[error("the patch has {0} operations; at most {OPERATIONS_MAX} are allowed")]
    TooLong(usize),
    #[error("operation cannot be done: {0}")]
    Operation(#[from] json_patch::PatchError),
    #[error("{path}: the merge key {key:?} is missing from an entry of the patch")]
    MergeKey { path: String, key: String },
    #[error("{path}: directive {directive:?} is not known; $patch is delete, merge or replace")]
    Directive { path: String, directive: String },
}

/// Strategic merge: lists merge by the schema's keys, `$` directives are obeyed.
///
/// # Errors
/// When the patch is no object, or a list entry has no merge key.
pub fn strategic(schema: &Schema, current: &Value, patch: &Value) -> Result<Value, PatchError> {
    let (Value::Object(_), Value::Object(patch)) = (current, patch) else {
        return Err(PatchError::NotAnObject);
    };
    strategic::object(Some(schema), current, patch, "")
}

/// JSON merge patch.
///
/// # Errors
/// When the patch is no object.
pub fn merge(current: &Value, patch: &Value) -> Result<Value, PatchError> {
    if !patch.is_object() {
        return Err(PatchError::NotAnObject);
    }
    let mut out = current.clone();
    json_patch::merge(&mut out, patch);
    Ok(out)
}

/// JSON patch; all operations or none.
///
/// # Errors
/// When an operation cannot be read or done.
pub fn operations(current: &Value, patch: &Value) -> Result<Value, PatchError> {
    let count = patch.as_array().map_or(0, Vec::len);
    if count > OPERATIONS_MAX {
        return Err(PatchError::TooLong(count));
    }
    let patch: json_patch::Patch =
        serde_json::from_value(patch.clone()).map_err(PatchError::NotOperations)?;
    let mut out = current.clone();
    json_patch::patch(&mut out, &patch)?;
    Ok(out)
}

#[cfg(test)]
mod tests;
