// SPDX-License-Identifier: Apache-2.0
//! Heads of requests and of answers, as bytes. Called by `line.rs`; does no I/O.

use std::borrow::Cow;
use std::fmt::Write as _;

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
    Wrong(Wrong),
}

/// Why something is no request: a status, and a sentence for who sent it.
pub type Wrong = (StatusCode, &'static str);

const TOO_LARGE: Wrong = (
    StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
    "the request line and its headers are larger than this door takes, or too many",
);

/// What Go's server takes in a request line and a URI has in escapes only.
const ESCAPED: [u8; 6] = *b"\"<>\\^`";

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
            true => Found::Wrong(TOO_LARGE),
            false => Found::Part,
        };
    };
    let head = held.split_to(from + end + 4);
    read(&head).map_or_else(Found::Wrong, Found::Head)
}

fn read(head: &[u8]) -> Result<Head, Wrong> {
    let wrong = |why| (StatusCode::BAD_REQUEST, why);
    if head.len() > HEADER_BYTES_MAX {
        return Err(TOO_LARGE);
    }
    // A lone line feed ends a line for some readers, and none for others.
    if head.split(|b| *b == b'\n').rev().skip(1).any(|line| !line.ends_with(b"\r")) {
        return Err(wrong("a line of the head ends without a carriage return"));
    }
    let mut fields = vec![httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut fields);
    match parsed.parse(head) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Err(httparse::Error::Version) => {
            let why = "this door speaks HTTP/1.1 and HTTP/1.0";
            return Err((StatusCode::HTTP_VERSION_NOT_SUPPORTED, why));
        }
        Err(httparse::Error::TooManyHeaders) => return Err(TOO_LARGE),
        Err(httparse::Error::Token) => {
            return Err(wrong("the request line cannot be read: METHOD PATH HTTP/1.1"));
        }
        _ => return Err(wrong("the request line or a header cannot be read")),
    }
    let version = match parsed.version {
        Some(1) => Version::HTTP_11,
        _ => Version::HTTP_10,
    };
    let method = Method::from_bytes(parsed.method.unwrap_or_default().as_bytes());
    let method = method.map_err(|_| wrong("the method cannot be read"))?;
    let uri: Result<Uri, _> = escaped(parsed.path.unwrap_or_default()).parse();
    let uri = uri.map_err(|_| wrong("the path or query has what none may: write it as %XX"))?;
    let mut headers = HeaderMap::with_capacity(parsed.headers.len());
    for field in parsed.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(field.value)) else {
            return Err(wrong("a header's name or value has what none may"));
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

/// A path and query as a URI has them: people and curl write quotes of filters as they are.
fn escaped(target: &str) -> Cow<'_, str> {
    if !target.bytes().any(|b| ESCAPED.contains(&b)) {
        return target.into();
    }
    let mut out = String::with_capacity(target.len() + 16);
    for c in target.chars() {
        match u8::try_from(c).ok().filter(|b| ESCAPED.contains(b)) {
            Some(byte) => {
                let _ = write!(out, "%{byte:02X}");
            }
            None => out.push(c),
        }
    }
    out.into()
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
