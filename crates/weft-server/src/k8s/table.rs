// SPDX-License-Identifier: Apache-2.0
//! `kubectl get`: objects as rows. Columns come from the table of kinds; computed cells are in
//! `cells`.

mod cells;
mod jsonpath;
mod workloads;

use serde_json::{Value, json};
use weft_kinds::kind::{Cell, Column, Kind};

use super::present::Include;
use crate::json::Fields;

/// The `Table` of some objects.
pub(super) fn table(
    row: &Kind,
    objects: &[Value],
    include: Include,
    meta: Value,
    now_ms: u64,
) -> Value {
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let all: Vec<Value> =
                row.columns.iter().map(|c| cell(row, c, object, now_ms)).collect();
            let mut out = json!({"cells": all});
            let kept = match include {
                Include::None => None,
                Include::Object => Some(object.clone()),
                Include::Metadata => Some(json!({
                    "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                    "metadata": object.at("metadata"),
                })),
            };
            if let Some(kept) = kept {
                out.put("object", kept);
            }
            out
        })
        .collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": meta,
        "columnDefinitions": definitions(row), "rows": rows,
    })
}

fn definitions(row: &Kind) -> Vec<Value> {
    row.columns
        .iter()
        .map(|c| {
            let format = if c.name == "Name" { "name" } else { "" };
            json!({"name": c.name, "type": c.ty, "format": format, "description": c.name,
                "priority": i32::from(c.wide)})
        })
        .collect()
}

fn cell(row: &Kind, column: &Column, object: &Value, now_ms: u64) -> Value {
    match column.cell {
        Cell::Computed => cells::computed(row.id, column.name, object, now_ms),
        Cell::Path(path) if column.ty == "date" => {
            let found = jsonpath::first(path, object);
            let time = found.as_ref().and_then(Value::as_str).unwrap_or_default();
            cells::age(time, now_ms).into()
        }
        Cell::Path(path) => jsonpath::text(path, object),
    }
}

#[cfg(test)]
mod tests;
