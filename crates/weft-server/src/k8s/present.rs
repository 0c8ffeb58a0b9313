// SPDX-License-Identifier: Apache-2.0
//! How objects are shown: in the asked version, whole, as metadata only, or as table rows.

use http::HeaderMap;
use http::header::ACCEPT;
use serde_json::{Value, json};
use weft_kinds::kind::Kind;

use super::query::Query;
use super::status::ApiError;
use super::table;
use crate::json::Fields;

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Whole,
    /// `as=PartialObjectMetadata(List)`
    Metadata,
    /// `as=Table`; what each row carries.
    Table(Include),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Include {
    None,
    Metadata,
    Object,
}

// === impl Shape ===

impl Shape {
    /// The first form of `Accept` that is served.
    pub(super) fn of(headers: &HeaderMap, query: &Query) -> Result<Self, ApiError> {
        let accept = headers.get(ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        if accept.is_empty() {
            return Ok(Self::Whole);
        }
        for part in accept.split(',') {
            let mut words = part.split(';').map(str::trim);
            let essence = words.next().unwrap_or_default();
            let mut form = "";
            let mut version = "v1";
            for word in words {
                match word.split_once('=') {
                    Some(("as", f)) => form = f,
                    Some(("v", v)) => version = v,
                    _ => {}
                }
            }
            let json = matches!(essence, "application/json" | "*/*" | "application/*");
            match form {
                _ if !json => {}
                "" => return Ok(Self::Whole),
                "Table" if matches!(version, "v1" | "v1beta1") => {
                    return Ok(Self::Table(include(query)));
                }
                "PartialObjectMetadata" | "PartialObjectMetadataList" => {
                    return Ok(Self::Metadata);
                }
                _ => {}
            }
        }
        if accept.contains("text/") || accept.contains("yaml") {
            // A browser or curl: JSON is the best there is.
            return Ok(Self::Whole);
        }
        let message = format!(
            "only the following media types are served: application/json, \
             application/json;as=Table;v=v1;g=meta.k8s.io; asked for: {accept}"
        );
        Err(ApiError::new(http::StatusCode::NOT_ACCEPTABLE, "NotAcceptable", message))
    }

    /// One object.
    pub(super) fn object(self, row: &Kind, version: &str, object: Value, now_ms: u64) -> Value {
        let object = in_version(row, version, object);
        match self {
            Self::Whole => object,
            Self::Metadata => metadata(&object),
            Self::Table(include) => {
                let meta = json!({"resourceVersion": object.at("metadata").at("resourceVersion")});
                table::table(row, &[object], include, meta, now_ms)
            }
        }
    }

    /// A list's answer.
    pub(super) fn list(
        self,
        row: &Kind,
        version: &str,
        items: Vec<Value>,
        meta: Value,
        now_ms: u64,
    ) -> Value {
        let api = row.api_version_of(version);
        match self {
            Self::Table(include) => {
                let items: Vec<Value> =
                    items.into_iter().map(|o| in_version(row, version, o)).collect();
                table::table(row, &items, include, meta, now_ms)
            }
            Self::Metadata => {
                let items: Vec<Value> =
                    items.into_iter().map(|o| metadata(&in_version(row, version, o))).collect();
                json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                    "metadata": meta, "items": items})
            }
            Self::Whole => {
                let items: Vec<Value> =
                    items.into_iter().map(|o| in_version(row, version, o)).collect();
                json!({"kind": format!("{}List", row.kind), "apiVersion": api, "metadata": meta,
                    "items": items})
            }
        }
    }
}

/// Versions of one kind differ in nothing but their name.
pub(super) fn in_version(row: &Kind, version: &str, mut object: Value) -> Value {
    if version != row.storage_version() {
        object.put("apiVersion", row.api_version_of(version));
    }
    object
}

fn metadata(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": object.at("metadata")})
}

fn include(query: &Query) -> Include {
    match query.text("includeObject") {
        "None" => Include::None,
        "Object" => Include::Object,
        _ => Include::Metadata,
    }
}
