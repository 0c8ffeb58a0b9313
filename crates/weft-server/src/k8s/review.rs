// SPDX-License-Identifier: Apache-2.0
//! Questions about the caller, answered and not stored. Loopback doors admit the principal
//! `local`, which may do everything that the door offers.

use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};

use super::body;
use super::status::{ApiError, json_response};
use crate::json::Fields;

pub(super) fn answer(
    group: &str,
    kind: &'static str,
    content_type: Option<&str>,
    body: &[u8],
) -> Result<Response, ApiError> {
    let asked = body::options(content_type, body)?;
    let status = match kind {
        "SelfSubjectAccessReview" => {
            json!({"allowed": true, "reason": "the principal \"local\" may do everything here"})
        }
        "SelfSubjectRulesReview" => json!({
            "incomplete": false, "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
        }),
        _ => json!({"userInfo": {"username": "local", "groups": ["system:authenticated"]}}),
    };
    let mut out = json!({"kind": kind, "apiVersion": format!("{group}/v1"),
        "metadata": {"creationTimestamp": null}});
    if let Some(spec) = asked.get("spec").filter(|s| !Value::is_null(s)) {
        out.put("spec", spec.clone());
    }
    out.put("status", status);
    Ok(json_response(StatusCode::CREATED, &out))
}
