// SPDX-License-Identifier: Apache-2.0
//! The three kinds of patch besides apply: strategic merge (built-in kinds), JSON merge
//! (RFC 7386) and JSON patch (RFC 6902). Pure: raw JSON in, raw JSON out.

mod operations;
mod strategic;

use serde_json::Value;
use thiserror::Error;
use weft_base::limits::DOCUMENT_DEPTH_MAX;

use crate::schema::Schema;

/// Bytes that the copies of one JSON patch may add.
const COPIED_BYTES_MAX: usize = 3 * 1024 * 1024;
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
    #[error("the patch copies more than {COPIED_BYTES_MAX} bytes; send the values themselves")]
    TooMuchCopied,
    #[error(
        "the patch moves too many entries of long lists, or nests too often; replace the list, or \
         send fewer operations at a time"
    )]
    TooMuchWork,
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
/// When an operation cannot be read or done, or the patch asks for too much.
pub fn operations(current: &Value, patch: &Value) -> Result<Value, PatchError> {
    operations::apply(current, patch)
}

/// How deep a value nests below so many levels; what is too deep is not measured further.
pub(crate) fn depth(value: &Value, above: usize) -> usize {
    measured(value, above, &mut 0)
}

/// The same; each value that is looked at is a step.
fn measured(value: &Value, above: usize, steps: &mut usize) -> usize {
    *steps += 1;
    if above > DOCUMENT_DEPTH_MAX {
        return above;
    }
    let below = |v: &Value| measured(v, above + 1, steps);
    match value {
        Value::Object(map) => map.values().map(below).max().unwrap_or(above + 1),
        Value::Array(all) => all.iter().map(below).max().unwrap_or(above + 1),
        _ => above,
    }
}

#[cfg(test)]
mod tests;
