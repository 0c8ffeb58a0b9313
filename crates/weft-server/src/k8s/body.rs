// SPDX-License-Identifier: Apache-2.0
//! A request's body: read within its limit, decoded by what it says it is.

use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use serde_json::Value;
use weft_base::limits::DOOR_BODY_BYTES_MAX;
use weft_kinds::decode::{self, Document, format_of};

use super::status::ApiError;

/// Bytes beyond the limit that are read and dropped, so that the client gets to read the answer
/// instead of a broken connection.
const DRAIN_BYTES_MAX: usize = 256 * 1024 * 1024;
const DRAIN_TIME_MAX: Duration = Duration::from_secs(20);
/// Time for a whole body.
const BODY_TIME_MAX: Duration = Duration::from_secs(60);

/// Reads a body within the limit.
pub(super) async fn read(body: Body) -> Result<Bytes, ApiError> {
    match tokio::time::timeout(BODY_TIME_MAX, read_all(body)).await {
        Ok(done) => done,
        Err(_) => Err(ApiError::new(
            http::StatusCode::REQUEST_TIMEOUT,
            "Timeout",
            format!("the body did not arrive within {} seconds", BODY_TIME_MAX.as_secs()),
        )),
    }
}

async fn read_all(mut body: Body) -> Result<Bytes, ApiError> {
    let mut out = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|e| ApiError::bad_request(format!("the body could not be read: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if out.len() + data.len() > DOOR_BODY_BYTES_MAX {
            drop(out);
            // Whether the rest came or not, the answer is the same.
            let _ = tokio::time::timeout(DRAIN_TIME_MAX, drain(body)).await;
            return Err(ApiError::too_large(DOOR_BODY_BYTES_MAX));
        }
        out.extend_from_slice(&data);
    }
    Ok(out.freeze())
}

async fn drain(mut body: Body) {
    let mut left = DRAIN_BYTES_MAX;
    while let Some(Ok(frame)) = body.frame().await {
        let size = frame.data_ref().map_or(0, Bytes::len);
        match left.checked_sub(size) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

/// One object from a body.
pub(super) fn document(content_type: Option<&str>, body: &[u8]) -> Result<Document, ApiError> {
    if super::protobuf::is_protobuf(content_type, body) {
        let value = super::protobuf::decode(body)?;
        return Ok(Document { value, line: 1, duplicates: Vec::new() });
    }
    let Some(format) = format_of(content_type) else {
        let accepted = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
        return Err(ApiError::media_type(content_type.unwrap_or_default(), accepted));
    };
    let document =
        decode::document(body, format).map_err(|issue| ApiError::bad_request(issue.to_string()))?;
    if !document.value.is_object() {
        let message = "the body is not an object; send one object of the kind that the path names";
        return Err(ApiError::bad_request(message));
    }
    Ok(document)
}

/// An optional body, such as DeleteOptions.
pub(super) fn options(content_type: Option<&str>, body: &[u8]) -> Result<Value, ApiError> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Null);
    }
    document(content_type, body).map(|d| d.value)
}
