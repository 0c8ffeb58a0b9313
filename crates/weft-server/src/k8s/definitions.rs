// SPDX-License-Identifier: Apache-2.0
//! `customresourcedefinitions`, for tools that look whether a kind is installed. The kinds are
//! built in: definitions can be read, and installing one that is served changes nothing.

use axum::response::Response;
use http::header::WARNING;
use http::{HeaderValue, Method, StatusCode};
use serde_json::{Value, json};
use weft_kinds::kind::{Cell, Column, Family, KINDS, Kind, KindId, Subresource};
use weft_kinds::schema::bundle;

use super::present::Shape;
use super::status::{ApiError, json_response};
use super::{Ask, Door, body};
use crate::json::Fields;

pub(super) const GROUP: &str = "apiextensions.k8s.io";
pub(super) const PLURAL: &str = "customresourcedefinitions";

/// How the definitions themselves are shown.
const ROW: Kind = Kind {
    group: GROUP,
    versions: &["v1"],
    kind: "CustomResourceDefinition",
    plural: PLURAL,
    singular: "customresourcedefinition",
    short_names: &["crd", "crds"],
    categories: &["api-extensions"],
    namespaced: false,
    family: Family::Builtin,
    subresources: &[],
    columns: COLUMNS,
    // Not in the table itself; nothing asks this row which one it is.
    id: KindId::Namespace,
};

const COLUMNS: &[Column] = &[
    Column { name: "Name", ty: "string", wide: false, cell: Cell::Path(".metadata.name") },
    Column {
        name: "Created At",
        ty: "string",
        wide: false,
        cell: Cell::Path(".metadata.creationTimestamp"),
    },
];

// === definitions ===

impl Door {
    pub(super) async fn definitions(
        &self,
        name: Option<&str>,
        ask: &Ask,
        body: axum::body::Body,
    ) -> Result<Response, ApiError> {
        let shape = Shape::of(&ask.parts.headers, &ask.query)?;
        let row = name.and_then(find);
        let revision = self.registry.now().revision();
        match (&ask.parts.method, name, row) {
            (&Method::GET, Some(_), Some(row)) => {
                let object = definition(row, revision);
                let value = shape.object(&ROW, "v1", object, self.now_ms());
                Ok(json_response(StatusCode::OK, &value))
            }
            (&Method::GET, None, _) => {
                let wanted = ask.query.text("fieldSelector").strip_prefix("metadata.name=");
                let items = KINDS.iter().filter(|k| k.family == Family::Custom);
                let items = items.filter(|k| wanted.is_none_or(|w| k.resource() == w));
                let items = items.map(|row| definition(row, revision)).collect();
                let meta = json!({"resourceVersion": revision.to_string()});
                let value = shape.list(&ROW, "v1", items, meta, self.now_ms());
                Ok(json_response(StatusCode::OK, &value))
            }
            // Tutorials begin by installing definitions; those that are served are there already.
            (&Method::PUT | &Method::PATCH, Some(_), Some(row)) => {
                body::read(body).await?;
                let object = definition(row, revision);
                let value = shape.object(&ROW, "v1", object, self.now_ms());
                let mut response = json_response(StatusCode::OK, &value);
                let warning = "299 - \"weft serves this kind itself; its definition is unchanged\"";
                response.headers_mut().insert(WARNING, HeaderValue::from_static(warning));
                Ok(response)
            }
            (&Method::POST | &Method::PUT | &Method::PATCH, ..) => {
                let bytes = body::read(body).await?;
                let given = body::document(ask.content_type(), &bytes)?.value;
                let own = given.at("metadata").at("name").as_str().unwrap_or_default();
                match find(own) {
                    Some(_) => Err(refused(
                        StatusCode::CONFLICT,
                        "AlreadyExists",
                        format!("{PLURAL}.{GROUP} {own:?} already exists; weft serves it itself"),
                    )),
                    None => Err(refused(
                        StatusCode::FORBIDDEN,
                        "Forbidden",
                        format!(
                            "{PLURAL}.{GROUP} {own:?} is forbidden: weft serves a fixed set of \
                             kinds and takes no definitions of others"
                        ),
                    )),
                }
            }
            (&Method::GET, Some(name), None) => Err(refused(
                StatusCode::NOT_FOUND,
                "NotFound",
                format!("{PLURAL}.{GROUP} {name:?} not found"),
            )),
            (method, ..) => Err(ApiError::method(method, PLURAL)),
        }
    }
}

fn refused(code: StatusCode, reason: &'static str, message: String) -> ApiError {
    ApiError::new(code, reason, message)
}

fn find(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|k| k.family == Family::Custom && k.resource() == name)
}

fn definition(row: &Kind, revision: u64) -> Value {
    let columns: Vec<Value> = row
        .columns
        .iter()
        .filter_map(|c| match c.cell {
            Cell::Path(path) if c.name != "Name" => Some(json!({
                "name": c.name, "type": c.ty, "jsonPath": path, "priority": i32::from(c.wide)})),
            _ => None,
        })
        .collect();
    let status = row.has(Subresource::Status);
    let versions: Vec<Value> = row
        .versions
        .iter()
        .map(|version| {
            let mut out = json!({
                "name": version, "served": true, "storage": *version == row.storage_version(),
                "schema": {"openAPIV3Schema": bundle::raw(row.id, version)},
                "additionalPrinterColumns": columns,
            });
            if status {
                out.put("subresources", json!({"status": {}}));
            }
            out
        })
        .collect();
    let names = json!({
        "plural": row.plural, "singular": row.singular, "kind": row.kind,
        "listKind": format!("{}List", row.kind), "shortNames": row.short_names,
        "categories": row.categories,
    });
    let condition = |kind: &str, reason: &str, message: &str| {
        json!({"type": kind, "status": "True", "reason": reason, "message": message,
            "lastTransitionTime": "1970-01-01T00:00:00Z"})
    };
    json!({
        "apiVersion": format!("{GROUP}/v1"), "kind": "CustomResourceDefinition",
        "metadata": {"name": row.resource(), "uid": row.resource(), "generation": 1,
            "resourceVersion": revision.to_string(), "creationTimestamp": "1970-01-01T00:00:00Z"},
        "spec": {"group": row.group, "names": names, "versions": versions,
            "scope": if row.namespaced { "Namespaced" } else { "Cluster" },
            "conversion": {"strategy": "None"}},
        "status": {"acceptedNames": names, "storedVersions": [row.storage_version()],
            "conditions": [
                condition("NamesAccepted", "NoConflicts", "no conflicts found"),
                condition("Established", "InitialNamesAccepted", "built into weft"),
            ]},
    })
}
