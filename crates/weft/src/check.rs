// SPDX-License-Identifier: Apache-2.0
//! Manifests against their schemas before anything is sent, and `weft schema`.

use anyhow::Result;
use serde_json::{Map, Value, json};
use weft_base::issue::{Issue, Issues};
use weft_kinds::check::{fill, prune, validate};
use weft_kinds::codes;
use weft_kinds::decode::Document;
use weft_kinds::kind::{Family, KINDS, KindId};
use weft_kinds::schema;

use crate::client::objects::kind_named;
use crate::print;

/// Everything wrong with one document: duplicate and unknown fields, types, bounds, rules.
pub fn strict(kind: KindId, version: &'static str, document: &Document) -> Vec<Issue> {
    let schema = schema::of(kind, version);
    let mut object = document.value.clone();
    let mut found: Vec<Issue> = document
        .duplicates
        .iter()
        .map(|path| {
            Issue::error(path.clone(), "is given twice; keep one").with_code(codes::DUPLICATE)
        })
        .collect();
    let Issues(unknown) = prune(&schema, &mut object);
    found.extend(unknown);
    fill(&schema, &mut object);
    let Issues(wrong) = validate(&schema, &object, None);
    found.extend(wrong);
    found
}

/// `weft schema [KIND]`.
pub fn print_schema(kind: Option<&str>) -> Result<()> {
    let Some(name) = kind else {
        for row in KINDS {
            println!("{:24} {}", row.kind, row.api_version());
        }
        return Ok(());
    };
    let row = kind_named(name)?;
    let version = row.storage_version();
    let document = match row.family {
        Family::Custom => {
            let mut schema = schema::raw(row.id, version);
            if let Some(map) = schema.as_object_mut() {
                map.insert("$schema".into(), json!(JSON_SCHEMA));
                map.insert("title".into(), json!(row.kind));
            }
            schema
        }
        Family::Builtin => builtin(row.id, version),
    };
    print::json(&document);
    Ok(())
}

const JSON_SCHEMA: &str = "https://json-schema.org/draft/2020-12/schema";

/// A built-in kind with all it refers to under `components`, so that its references resolve.
fn builtin(kind: KindId, version: &str) -> Value {
    let name = schema::component_name(kind, version);
    let all: Map<String, Value> =
        schema::raw_components(std::slice::from_ref(&name)).into_iter().collect();
    json!({
        "$schema": JSON_SCHEMA,
        "title": kind.row().kind,
        "$ref": format!("#/components/schemas/{name}"),
        "components": {"schemas": all},
    })
}
