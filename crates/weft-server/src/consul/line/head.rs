// SPDX-License-Identifier: Apache-2.0
//! Heads of requests and of answers, as bytes. Called by `line.rs`; does no I/O.

use bytes::{Buf, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version};
use weft_base::limits::{HEADER_BYTES_MAX, HEADERS_MAX};

use super::Manner;

#[derive(Debug)]
pub struct Head {
    pub request: Box<Request<()>>,
    pub manner: Manner,
}

#[derive(Debug)]
pub enum Found {
    Head(Head),
    /// There is not all of it yet.
    Part,
    Wrong(StatusCode),
}

/// Takes a request's head off what was read. `seen` is how much of it was looked at before: a head
/// is taken apart only once its end is there.
pub fn take(held: &mut BytesMut, seen: &mut usize) -> Found {
    // Empty lines before a request are nothing, however they come.
    while held.starts_with(b"\r\n") {
        held.advance(2);
        *seen = 0;
    }
    let from = seen.saturating_sub(3);
    let end = held.get(from..).unwrap_or_default().windows(4).position(|four| four == b"\r\n\r\n");
    *seen = held.len();
    let Some(end) = end else {
        return match held.len() > HEADER_BYTES_MAX {
            true => Found::Wrong(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
            false => Found::Part,
        };
    };
    let head = held.split_to(from + end + 4);
    read(&head).map_or_else(Found::Wrong, Found::Head)
}

fn read(head: &[u8]) -> Result<Head, StatusCode> {
    let wrong = StatusCode::BAD_REQUEST;
    if head.len() > HEADER_BYTES_MAX {
        return Err(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    }
    // A lone line feed ends a line for some readers, and none for others.
    if head.split(|b| *b == b'\n').rev().skip(1).any(|line| !line.ends_with(b"\r")) {
        return Err(wrong);
    }
    let mut fields = vec![httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut fields);
    match parsed.parse(head) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Err(httparse::Error::Version) => return Err(StatusCode::HTTP_VERSION_NOT_SUPPORTED),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        }
        _ => return Err(wrong),
    }
    let version = match parsed.version {
        Some(1) => Version::HTTP_11,
        _ => Version::HTTP_10,
    };
    let method = Method::from_bytes(parsed.method.unwrap_or_default().as_bytes());
    let uri: Result<Uri, _> = parsed.path.unwrap_or_default().parse();
    let (Ok(method), Ok(uri)) = (method, uri) else { return Err(wrong) };
    let mut headers = HeaderMap::with_capacity(parsed.headers.len());
    for field in parsed.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(field.value)) else {
            return Err(wrong);
        };
        headers.append(name, value);
    }
    let manner = Manner::of(&method, version, &headers)?;
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.version_mut() = version;
    *request.headers_mut() = headers;
    Ok(Head { request: Box::new(request), manner })
}

/// An answer's head, with room for a small body behind it. A body without a length ends with its
/// connection.
pub fn answer(
    status: StatusCode,
    headers: &HeaderMap,
    length: Option<usize>,
    keep: bool,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(512 + length.unwrap_or(0).min(super::COPIED_BYTES_MAX));
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or("Unknown").as_bytes());
    let mut field = |name: &str, value: &[u8]| {
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value);
    };
    for (name, value) in headers {
        field(name.as_str(), value.as_bytes());
    }
    let has_length = status != StatusCode::NO_CONTENT && !status.is_informational();
    if let Some(length) = length.filter(|_| has_length) {
        field("content-length", length.to_string().as_bytes());
    }
    if !keep {
        field("connection", b"close");
    }
    out.extend_from_slice(b"\r\n\r\n");
    out
}
