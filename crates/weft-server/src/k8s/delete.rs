// SPDX-License-Identifier: Apache-2.0
//! Deletion of one object or of all that match.

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};
use weft_kinds::kind::KindId;
use weft_registry::{DeleteOptions, ObjectError, Preconditions, Propagation, WriteOptions};

use super::path::Objects;
use super::present::{Shape, in_version};
use super::read::selector;
use super::status::{ApiError, json_response, success};
use super::{Ask, Door, body};
use crate::json::Fields;

// === deleting ===

impl Door {
    pub(super) async fn delete(
        &self,
        target: Objects,
        ask: &Ask,
        body: Body,
    ) -> Result<Response, ApiError> {
        let shape = Shape::of(&ask.parts.headers, &ask.query)?;
        let options = options(ask, body).await?;
        let row = target.kind.row();
        let namespace = target.namespace.as_deref().unwrap_or_default();
        let name = target.name.as_deref().unwrap_or_default();
        let done = self.registry.objects().delete(target.kind, namespace, name, &options).await?;
        // Some kinds answer with what they were, as their clients' models expect.
        let whole = matches!(target.kind, KindId::Service | KindId::Pod | KindId::ServiceAccount);
        if done.gone && !whole {
            let uid = done.object.at("metadata").at("uid").as_str().unwrap_or_default();
            return Ok(json_response(StatusCode::OK, &success(row, name, uid)));
        }
        let value = shape.object(row, target.version, done.object, self.now_ms());
        Ok(json_response(StatusCode::OK, &value))
    }

    pub(super) async fn delete_all(
        &self,
        target: Objects,
        ask: &Ask,
        body: Body,
    ) -> Result<Response, ApiError> {
        let row = target.kind.row();
        if row.namespaced && target.namespace.is_none() {
            return Err(ApiError::method(&ask.parts.method, "a collection over all namespaces"));
        }
        let selector = selector(&target, ask)?;
        let options = options(ask, body).await?;
        let objects = self.registry.objects();
        let (revision, all) = objects.list(target.kind, target.namespace.as_deref());
        let mut gone = Vec::new();
        for object in all.into_iter().filter(|o| selector.holds(o)) {
            let meta = object.at("metadata");
            let word = |f: &str| meta.at(f).as_str().unwrap_or_default().to_owned();
            let (namespace, name) = (word("namespace"), word("name"));
            match objects.delete(target.kind, &namespace, &name, &options).await {
                Ok(done) => gone.push(in_version(row, target.version, done.object)),
                // Someone else was faster, or it belongs to another door and stays.
                Err(ObjectError::NotFound { .. } | ObjectError::Owned { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let value = json!({
            "kind": format!("{}List", row.kind), "apiVersion": row.api_version_of(target.version),
            "metadata": {"resourceVersion": revision.to_string()}, "items": gone,
        });
        Ok(json_response(StatusCode::OK, &value))
    }
}

/// `DeleteOptions` from the body, else from the query.
async fn options(ask: &Ask, body: Body) -> Result<DeleteOptions, ApiError> {
    let bytes = body::read(body).await?;
    options_of(ask, &body::options(ask.content_type(), &bytes)?)
}

/// The same from `DeleteOptions` that were read.
pub(super) fn options_of(ask: &Ask, given: &Value) -> Result<DeleteOptions, ApiError> {
    let word = |name: &str| -> String {
        let own = given.at(name).as_str().unwrap_or_else(|| ask.query.text(name));
        own.to_owned()
    };
    let propagation = match word("propagationPolicy").as_str() {
        "" if given.at("orphanDependents") == true || ask.query.flag("orphanDependents") => {
            Some(Propagation::Orphan)
        }
        "" => None,
        "Orphan" => Some(Propagation::Orphan),
        "Background" => Some(Propagation::Background),
        "Foreground" => Some(Propagation::Foreground),
        other => {
            return Err(ApiError::bad_request(format!(
                "propagationPolicy: Unsupported value: {other:?}: supported values: \"Orphan\", \
                 \"Background\", \"Foreground\""
            )));
        }
    };
    let grace = match given.at("gracePeriodSeconds").as_i64() {
        Some(seconds) => Some(seconds),
        None => ask.query.number("gracePeriodSeconds")?.map(|n| i64::try_from(n).unwrap_or(0)),
    };
    let wanted: &Value = given.at("preconditions");
    let revision = wanted.at("resourceVersion").as_str();
    let all = given.at("dryRun").as_array().is_some_and(|l| l.iter().any(|v| v == "All"));
    let preconditions = Preconditions {
        uid: wanted.at("uid").as_str().map(str::to_owned),
        revision: revision.map(super::read::revision_of).transpose()?,
    };
    let write = WriteOptions { dry_run: all || ask.query.dry_run()?, system: false };
    let mut out = DeleteOptions::default();
    out.propagation = propagation;
    out.grace_s = grace;
    out.preconditions = preconditions;
    out.write = write;
    Ok(out)
}
