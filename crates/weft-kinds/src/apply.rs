// SPDX-License-Identifier: Apache-2.0
//! Server-side apply: who manages which field, what an apply changes, and where two managers
//! want different things. `metadata.managedFields` has Kubernetes' `FieldsV1` form.
//!
//! Called by the Kubernetes-style door for every write. Pure: the door stores the result.

mod managers;
mod merge;
mod set;

use serde_json::Value;

use crate::schema::Schema;
use managers::Managers;
pub use set::FieldSet;

/// Who writes, as `managedFields` names it.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    pub manager: &'a str,
    pub api_version: &'a str,
    /// RFC 3339, seconds.
    pub time: &'a str,
    /// `status`, or empty.
    pub subresource: &'a str,
}

/// A field that another manager owns with another value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    pub manager: String,
    pub api_version: String,
    pub subresource: String,
    /// When an updater wrote it; absent for who applied it.
    pub updated: Option<String>,
    /// `.spec.template.spec.containers[name="a"].image`
    pub field: String,
}

/// The live object after `applied`, with its `managedFields`; `live` is absent on creation.
///
/// # Errors
/// Every field that another manager owns with another value, unless `force`.
pub fn apply(
    schema: &Schema,
    live: Option<&Value>,
    applied: &Value,
    writer: Writer<'_>,
    force: bool,
) -> Result<Value, Vec<Conflict>> {
    let wanted = set::of(schema, applied);
    let empty = Value::Object(serde_json::Map::new());
    let before = live.unwrap_or(&empty);
    let mut managers = Managers::read(before);
    let mut out = merge::merge(schema, before, applied);
    let changed = set::changes(schema, before, &out).written();
    let conflicts = managers.conflicts(writer, &wanted.intersection(&changed));
    if !conflicts.is_empty() && !force {
        return Err(conflicts);
    }
    if force {
        managers.take_over(writer, &wanted.intersection(&changed));
    }
    let last = managers.applied_by(writer);
    let others = managers.others(writer);
    // Names and the like are nobody's, but who applies an object claims that it has them.
    let now = set::of_whole(schema, applied);
    let claims = merge::Claims { last: &last, now: &now, others: &others };
    merge::prune(schema, &mut out, claims);
    // Upstream takes from everyone what an apply removed, with what is below it.
    let gone = set::changes(schema, before, &out).removed;
    managers.removed(writer, &gone);
    managers.set_applied(writer, wanted);
    managers.forget_absent(&set::of_all(schema, &out));
    managers.write(&mut out, live);
    Ok(out)
}

/// Notes who changed what by a create, an update or a patch other than apply.
pub fn track(schema: &Schema, live: Option<&Value>, new: &mut Value, writer: Writer<'_>) {
    let empty = Value::Object(serde_json::Map::new());
    let before = live.unwrap_or(&empty);
    // A client may clear the list, never write it.
    let cleared = new["metadata"]["managedFields"].as_array().is_some_and(Vec::is_empty);
    let mut managers = if cleared { Managers::default() } else { Managers::read(before) };
    let changes = set::changes(schema, before, new);
    managers.updated(writer, &changes);
    managers.forget_absent(&set::of_all(schema, new));
    managers.write(new, live);
}

#[cfg(test)]
mod tests;
