// SPDX-License-Identifier: Apache-2.0
//! The `scale` subresource: an object's replica count as an `autoscaling/v1` Scale.

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};
use weft_base::issue::{FieldPath, Issues};
use weft_kinds::patch;

use super::path::Objects;
use super::status::{ApiError, json_response};
use super::{Ask, Door, body};
use crate::json::Fields;

// === scaling ===

impl Door {
    pub(super) fn get_scale(&self, target: &Objects, _: &Ask) -> Result<Response, ApiError> {
        let namespace = target.namespace.as_deref().unwrap_or_default();
        let name = target.name.as_deref().unwrap_or_default();
        let object = self.registry.objects().get(target.kind, namespace, name)?;
        Ok(json_response(StatusCode::OK, &scale(&object)))
    }

    pub(super) async fn set_scale(
        &self,
        target: &Objects,
        ask: &Ask,
        body: Body,
    ) -> Result<Response, ApiError> {
        let bytes = body::read(body).await?;
        let work = self.work(target, ask)?;
        let put = ask.parts.method == http::Method::PUT;
        let media = ask.content_type().unwrap_or_default();
        let given = if put {
            body::document(ask.content_type(), &bytes)?.value
        } else {
            let read = weft_kinds::decode::document(&bytes, weft_kinds::decode::Format::Json);
            read.map_err(|issue| ApiError::bad_request(issue.to_string()))?.value
        };
        let done = self
            .modify(&work, |old| {
                let before = scale(old);
                let wanted = if put {
                    given.clone()
                } else if media.starts_with("application/json-patch") {
                    patch::operations(&before, &given)
                        .map_err(|e| ApiError::bad_request(e.to_string()))?
                } else {
                    patch::merge(&before, &given)
                        .map_err(|e| ApiError::bad_request(e.to_string()))?
                };
                let version =
                    wanted.at("metadata").at("resourceVersion").as_str().unwrap_or_default();
                work.expect_version(old, version)?;
                let mut new = old.clone();
                let replicas = replicas(&work, &wanted)?;
                if let Some(spec) = new.get_mut("spec") {
                    spec.put("replicas", replicas);
                }
                Ok(new)
            })
            .await?;
        Ok(json_response(StatusCode::OK, &scale(&done)))
    }
}

fn replicas(work: &super::write::Work, wanted: &Value) -> Result<i64, ApiError> {
    let given = wanted.at("spec").at("replicas");
    let count = if given.is_null() { Some(0) } else { given.as_i64() };
    match count.filter(|n| (0..=i64::from(i32::MAX)).contains(n)) {
        Some(count) => Ok(count),
        None => {
            let mut issues = Issues::default();
            let message = format!("Invalid value: {given}: must be greater than or equal to 0");
            issues.error(FieldPath::new("spec.replicas"), message);
            let name = wanted.at("metadata").at("name").as_str().unwrap_or_default();
            Err(ApiError::invalid(work.row(), name, &issues))
        }
    }
}

fn scale(object: &Value) -> Value {
    let meta = object.at("metadata");
    let mut kept = serde_json::Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if !meta.at(field).is_null() {
            kept.insert(field.into(), meta.at(field).clone());
        }
    }
    let labels =
        object.at("spec").at("selector").at("matchLabels").as_object().into_iter().flatten();
    let selector: Vec<String> =
        labels.map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": kept,
        "spec": {"replicas": object.at("spec").at("replicas").as_i64().unwrap_or(1)},
        "status": {"replicas": object.at("status").at("replicas").as_i64().unwrap_or(0),
            "selector": selector.join(",")},
    })
}
