// SPDX-License-Identifier: Apache-2.0
//! The three kinds of patch besides apply: strategic merge (built-in kinds), JSON merge
//! (RFC 7386) and JSON patch (RFC 6902). Pure: raw JSON in, raw JSON out.

mod strategic;

use serde_json::Value;
use thiserror::Error;
use weft_base::limits::DOCUMENT_DEPTH_MAX;

use crate::guards;
use crate::schema::Schema;

/// Bytes that the copies of one JSON patch may add.
const COPIED_BYTES_MAX: usize = 3 * 1024 * 1024;
/// Operations of one JSON patch.
const OPERATIONS_MAX: usize = 10_000;
/// How deep an object may seem to get between two operations before it is measured.
const NESTED_MAX: usize = 4 * DOCUMENT_DEPTH_MAX;

#[derive(Debug, Error)]
pub enum PatchError {
    #[error("the patch is not an object; a merge patch is an object with the fields to change")]
    NotAnObject,
    #[error("the patch is not a JSON patch (a list of operations): {0}")]
    NotOperations(serde_json::Error),
    #[error("the patch has {0} operations; at most {OPERATIONS_MAX} are allowed")]
    TooLong(usize),
    #[error("the patch copies more than {COPIED_BYTES_MAX} bytes; send the values themselves")]
    TooMuchCopied,
    #[error("the patch nests the object deeper than {DOCUMENT_DEPTH_MAX} levels")]
    TooDeep,
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
    let (mut out, mut copied) = (current.clone(), 0);
    let mut deepest = depth(current, 0);
    for operation in patch.0 {
        if let json_patch::PatchOperation::Copy(copy) = &operation {
            // Copies of copies double; a short patch could fill the memory.
            let size = copy.from.resolve(&out).map_or(0, |v| v.to_string().len());
            copied += size;
            if copied > COPIED_BYTES_MAX && guards::on("patch-copies") {
                return Err(PatchError::TooMuchCopied);
            }
        }
        deepest = deepest.max(depth_after(&operation, deepest));
        json_patch::patch(&mut out, &[operation])?;
        // What is moved into itself over and over nests until no stack is deep enough to drop it.
        if deepest > NESTED_MAX && guards::on("patch-depth") {
            deepest = depth(&out, 0);
            if deepest > DOCUMENT_DEPTH_MAX {
                return Err(PatchError::TooDeep);
            }
        }
    }
    if depth(&out, 0) > DOCUMENT_DEPTH_MAX && guards::on("patch-depth") {
        return Err(PatchError::TooDeep);
    }
    Ok(out)
}

/// How deep an operation may make an object that is no deeper than `deepest`, at most.
fn depth_after(operation: &json_patch::PatchOperation, deepest: usize) -> usize {
    use json_patch::PatchOperation::{Add, Copy, Move, Remove, Replace, Test};
    match operation {
        Add(add) => add.path.count() + depth(&add.value, 0),
        Replace(replace) => replace.path.count() + depth(&replace.value, 0),
        Move(moved) => moved.path.count() + deepest,
        Copy(copy) => copy.path.count() + deepest,
        Remove(_) | Test(_) => 0,
    }
}

/// How deep a value nests below so many levels; what is too deep is not measured further.
pub(crate) fn depth(value: &Value, above: usize) -> usize {
    if above > DOCUMENT_DEPTH_MAX {
        return above;
    }
    let below = |v: &Value| depth(v, above + 1);
    match value {
        Value::Object(map) => map.values().map(below).max().unwrap_or(above + 1),
        Value::Array(all) => all.iter().map(below).max().unwrap_or(above + 1),
        _ => above,
    }
}

#[cfg(test)]
mod tests;
