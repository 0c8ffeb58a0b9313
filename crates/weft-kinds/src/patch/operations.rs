// SPDX-License-Identifier: Apache-2.0
//! JSON patch (RFC 6902) within bounds: a short patch may ask for much memory, depth or work.

use json_patch::PatchOperation::{self, Add, Copy, Move, Remove, Replace, Test};
use json_patch::jsonptr::{Pointer, index::Index};
use serde_json::Value;
use weft_base::limits::DOCUMENT_DEPTH_MAX;

use super::{COPIED_BYTES_MAX, OPERATIONS_MAX, PatchError, depth, measured};
use crate::guards;

/// How deep an object may seem to get between two operations before it is measured.
const NESTED_MAX: usize = 4 * DOCUMENT_DEPTH_MAX;
/// Steps of one patch: list entries that move up or down, and values that are looked at to measure
/// how deep an object is. So many take a third of a second; ten thousand removals at the front of
/// as long a list as a request can bring would take most of a minute.
const STEPS_MAX: usize = 64 * 1024 * 1024;

/// What a patch has cost so far.
#[derive(Default)]
struct Spent {
    copied: usize,
    steps: usize,
}

pub(super) fn apply(current: &Value, patch: &Value) -> Result<Value, PatchError> {
    let count = patch.as_array().map_or(0, Vec::len);
    if count > OPERATIONS_MAX {
        return Err(PatchError::TooLong(count));
    }
    let patch: json_patch::Patch =
        serde_json::from_value(patch.clone()).map_err(PatchError::NotOperations)?;
    let (mut out, mut spent) = (current.clone(), Spent::default());
    let mut deepest = depth(current, 0);
    for operation in patch.0 {
        spent.on(&operation, &out)?;
        deepest = deepest.max(depth_after(&operation, deepest));
        json_patch::patch(&mut out, &[operation])?;
        // What is moved into itself over and over nests until no stack is deep enough to drop it.
        if deepest > NESTED_MAX && guards::on("patch-depth") {
            deepest = measured(&out, 0, &mut spent.steps);
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

// === impl Spent ===

impl Spent {
    /// Takes an operation into account, which is done to `object` next.
    fn on(&mut self, operation: &PatchOperation, object: &Value) -> Result<(), PatchError> {
        self.steps += match operation {
            Add(add) => behind(object, &add.path),
            Remove(remove) => behind(object, &remove.path),
            Move(moved) => behind(object, &moved.from) + behind(object, &moved.path),
            Copy(copy) => behind(object, &copy.path),
            Replace(_) | Test(_) => 0,
        };
        if self.steps > STEPS_MAX && guards::on("patch-steps") {
            return Err(PatchError::TooMuchWork);
        }
        if let Copy(copy) = operation {
            // Copies of copies double; a short patch could fill the memory.
            self.copied += copy.from.resolve(object).map_or(0, |v| v.to_string().len());
            if self.copied > COPIED_BYTES_MAX && guards::on("patch-copies") {
                return Err(PatchError::TooMuchCopied);
            }
        }
        Ok(())
    }
}

/// Entries of a list that move when one is put at that place, or taken from it.
fn behind(object: &Value, place: &Pointer) -> usize {
    let Some((list, Ok(Index::Num(at)))) = place.split_back().map(|(l, i)| (l, i.to_index()))
    else {
        return 0;
    };
    let all = object.pointer(list.as_str()).and_then(Value::as_array);
    all.map_or(0, |all| all.len().saturating_sub(at))
}

/// How deep an operation may make an object that is no deeper than `deepest`, at most.
fn depth_after(operation: &PatchOperation, deepest: usize) -> usize {
    // What lies so far down is so much less deep itself.
    let put = |from: &Pointer, path: &Pointer| path.count() + deepest.saturating_sub(from.count());
    match operation {
        Add(add) => add.path.count() + depth(&add.value, 0),
        Replace(replace) => replace.path.count() + depth(&replace.value, 0),
        Move(moved) => put(&moved.from, &moved.path),
        Copy(copy) => put(&copy.from, &copy.path),
        Remove(_) | Test(_) => 0,
    }
}
