// SPDX-License-Identifier: Apache-2.0
//! Every error of the Kubernetes door as a `Status` with reason, causes and a sentence.

use crate::json::Fields;
use std::collections::BTreeMap;

use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use serde_json::{Map, Value, json};
use weft_base::issue::Issues;
use weft_kinds::apply::Conflict;
use weft_kinds::codes;
use weft_kinds::kind::{Kind, KindId};
use weft_registry::ObjectError;

/// A refusal in Kubernetes' form.
#[derive(Clone, Debug)]
pub(super) struct ApiError {
    pub(super) code: StatusCode,
    pub(super) reason: &'static str,
    pub(super) message: String,
    details: Map<String, Value>,
}

// === impl ApiError ===

impl ApiError {
    pub(super) fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: Map::new() }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    pub(super) fn no_such_path() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            "the server could not find the requested resource",
        )
    }

    pub(super) fn method(method: &http::Method, what: &str) -> Self {
        let message = format!("{method} is not supported on {what}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
    }

    pub(super) fn media_type(found: &str, accepted: &str) -> Self {
        let message = format!(
            "the body of the request was in an unknown format ({found:?}) - accepted media types \
             include: {accepted}"
        );
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message)
    }

    pub(super) fn too_large(max: usize) -> Self {
        let message = format!("the request is too large: its body has more than {max} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", message)
    }

    /// Fields that do not hold what they must.
    pub(super) fn invalid(row: &Kind, name: &str, issues: &Issues) -> Self {
        let subject = match row.group {
            "" => row.kind.to_owned(),
            group => format!("{}.{group}", row.kind),
        };
        let list: Vec<String> =
            issues.0.iter().map(|i| format!("{}: {}", i.path, i.message)).collect();
        let found = match list.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let causes: Vec<Value> = issues
            .0
            .iter()
            .map(|i| {
                json!({"reason": cause(&i.code), "message": i.message, "field": i.path.as_str()})
            })
            .collect();
        let message = format!("{subject} {name:?} is invalid: {found}");
        let mut out = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message)
            .about(row.group, row.kind, name);
        out.details.insert("causes".into(), Value::Array(causes));
        out
    }

    /// Fields that other managers own.
    pub(super) fn conflicts(row: &Kind, name: &str, all: &[Conflict]) -> Self {
        let causes: Vec<Value> = all
            .iter()
            .map(|c| {
                let message = format!("conflict with {}", who(c));
                json!({"reason": "FieldManagerConflict", "message": message, "field": c.field})
            })
            .collect();
        let message = conflict_message(all);
        let mut out =
            Self::new(StatusCode::CONFLICT, "Conflict", message).about(row.group, row.plural, name);
        out.details.insert("causes".into(), Value::Array(causes));
        out
    }

    fn about(mut self, group: &str, kind: &str, name: &str) -> Self {
        self.details.insert("name".into(), name.into());
        if !group.is_empty() {
            self.details.insert("group".into(), group.into());
        }
        self.details.insert("kind".into(), kind.into());
        self
    }

    /// With a cause that clients look for.
    pub(super) fn because(mut self, reason: &str, message: String) -> Self {
        self.details.insert("causes".into(), json!([{"reason": reason, "message": message}]));
        self
    }

    pub(super) fn to_json(&self) -> Value {
        let mut out = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason,
        });
        if !self.details.is_empty() {
            out.put("details", Value::Object(self.details.clone()));
        }
        out.put("code", self.code.as_u16());
        out
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = json_response(self.code, &self.to_json());
        if self.code == StatusCode::TOO_MANY_REQUESTS {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<ObjectError> for ApiError {
    fn from(error: ObjectError) -> Self {
        let code = StatusCode::from_u16(error.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let about = |kind: KindId, name: &str| {
            let row = kind.row();
            Self::new(code, error.reason(), error.to_string()).about(row.group, row.plural, name)
        };
        match &error {
            ObjectError::Invalid { kind, name, issues } => Self::invalid(kind.row(), name, issues),
            ObjectError::NotFound { kind, name }
            | ObjectError::AlreadyExists { kind, name }
            | ObjectError::Conflict { kind, name, .. }
            | ObjectError::Owned { kind, name, .. }
            | ObjectError::Forbidden { kind, name, .. }
            | ObjectError::TooLarge { kind, name, .. } => about(*kind, name),
            ObjectError::BadRequest(_)
            | ObjectError::Expired { .. }
            | ObjectError::Busy(_)
            | ObjectError::Store(_) => Self::new(code, error.reason(), error.to_string()),
        }
    }
}

/// Who owns a conflicting field, in the API server's words.
fn who(conflict: &Conflict) -> String {
    let sub = match conflict.subresource.as_str() {
        "" => String::new(),
        sub => format!(" with subresource {sub:?}"),
    };
    let how = match &conflict.updated {
        Some(time) => format!(" using {} at {time}", conflict.api_version),
        None => String::new(),
    };
    format!("{:?}{sub}{how}", conflict.manager)
}

fn conflict_message(all: &[Conflict]) -> String {
    if let [one] = all {
        return format!("Apply failed with 1 conflict: conflict with {}: {}", who(one), one.field);
    }
    let mut by_manager: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for conflict in all {
        by_manager.entry(who(conflict)).or_default().push(&conflict.field);
    }
    let lines: Vec<String> = by_manager
        .iter()
        .map(|(who, fields)| format!("conflicts with {who}:\n- {}", fields.join("\n- ")))
        .collect();
    format!("Apply failed with {} conflicts: {}", all.len(), lines.join("\n"))
}

/// A success without an object: what most deletions answer.
pub(super) fn success(row: &Kind, name: &str, uid: &str) -> Value {
    let mut details = json!({"name": name, "kind": row.plural, "uid": uid});
    if !row.group.is_empty() {
        details.put("group", row.group);
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": details})
}

pub(super) fn json_response(code: StatusCode, value: &Value) -> Response {
    let mut response = (code, value.to_string()).into_response();
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// Kubernetes' word for a finding's code.
fn cause(code: &str) -> &'static str {
    match code {
        codes::WRONG_TYPE => "FieldValueTypeInvalid",
        codes::REQUIRED => "FieldValueRequired",
        codes::NOT_SUPPORTED => "FieldValueNotSupported",
        codes::DUPLICATE => "FieldValueDuplicate",
        codes::TOO_MANY => "FieldValueTooMany",
        codes::FORBIDDEN => "FieldValueForbidden",
        _ => "FieldValueInvalid",
    }
}
