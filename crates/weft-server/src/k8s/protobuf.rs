// SPDX-License-Identifier: Apache-2.0
//! Kubernetes' protobuf bodies, which kubectl sends from 1.32 for some commands.

use serde_json::Value;
use weft_kinds::protobuf;

use super::status::ApiError;

const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// Whether a body is protobuf: by its type, or by its first bytes when it has none.
pub(super) fn is_protobuf(content_type: Option<&str>, body: &[u8]) -> bool {
    match content_type {
        Some(media) => media.trim_start().starts_with(MEDIA_TYPE),
        None => body.starts_with(protobuf::MAGIC),
    }
}

/// The object of a body, as JSON.
pub(super) fn decode(body: &[u8]) -> Result<Value, ApiError> {
    protobuf::decode(body).map_err(|error| match error {
        protobuf::ProtobufError::Unknown { .. } => {
            ApiError::media_type(MEDIA_TYPE, &format!("application/json; {error}"))
        }
        error => ApiError::bad_request(error.to_string()),
    })
}
