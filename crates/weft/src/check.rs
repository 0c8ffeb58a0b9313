// SPDX-License-Identifier: Apache-2.0
//! Manifests against their schemas before anything is sent, and `weft schema`.

use anyhow::Result;
use weft_base::issue::{Issue, Issues};
use weft_kinds::check::{fill, prune, validate};
use weft_kinds::codes;
use weft_kinds::decode::Document;
use weft_kinds::kind::{KINDS, KindId};
use weft_kinds::{openapi, schema};

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
            crate::say!("{:24} {}", row.kind, row.api_version());
        }
        return Ok(());
    };
    let row = kind_named(name)?;
    print::json(&openapi::json_schema(row.id, row.storage_version()));
    Ok(())
}
