// SPDX-License-Identifier: Apache-2.0
//! Heads, chunks and trailers as bytes. The codec alone says how a body is delimited: what the
//! headers said about it is replaced. Pure; called by the drivers.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Uri, Version};

use super::framing::Framing;
use super::head;
use crate::guards;
use crate::http::present;
use crate::observe::quick;

/// What follows the data of a chunk.
pub const CHUNK_END: &[u8] = b"\r\n";
/// What follows the data of the last chunk, when no trailers do.
pub const LAST_CHUNK_END: &[u8] = b"\r\n0\r\n\r\n";
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What a request says in the place of its own headers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Instead<'a> {
    pub host: Option<&'a str>,
    /// Headers of the proxy's own.
    pub with: &'a [(HeaderName, HeaderValue)],
}

/// What headers say to the codec, found while they were written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// The Content-Length that they name, if they name one.
    pub length: Option<u64>,
    pub upgrade: bool,
    pub te: bool,
    pub expects: bool,
}

/// A request line and headers, without the empty line.
pub fn request(
    out: &mut Vec<u8>,
    (method, uri): (&Method, &Uri),
    headers: &HeaderMap,
    instead: Instead<'_>,
) -> Said {
    out.reserve(512);
    out.extend_from_slice(method.as_str().as_bytes());
    out.push(b' ');
    if method == Method::CONNECT {
        out.extend_from_slice(uri.authority().map_or("", |a| a.as_str()).as_bytes());
    } else {
        out.extend_from_slice(uri.path_and_query().map_or("/", |p| p.as_str()).as_bytes());
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    if let Some(host) = instead.host {
        out.extend_from_slice(b"host: ");
        out.extend_from_slice(host.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    for (name, value) in instead.with {
        field(out, name, value);
    }
    fields(out, headers, |name| {
        (instead.host.is_some() && name == "host")
            || instead.with.iter().any(|(with, _)| with == name)
    })
}

/// A status line and headers, without the empty line.
pub fn response(
    out: &mut Vec<u8>,
    version: Version,
    status: StatusCode,
    headers: &HeaderMap,
) -> Said {
    out.reserve(512);
    let old = version == Version::HTTP_10;
    if !old && status == StatusCode::OK {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    } else {
        out.extend_from_slice(if old { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
        out.extend_from_slice(status.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(status.canonical_reason().unwrap_or("").as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    fields(out, headers, |_| false)
}

/// Headers, but those that the codec itself says and those that are said already.
fn fields(out: &mut Vec<u8>, headers: &HeaderMap, is_said: impl Fn(&str) -> bool) -> Said {
    let mut said = Said::default();
    for (name, value) in headers {
        let text = name.as_str();
        // Nearly all are none of these by their length alone.
        match text.len() {
            2 => said.te |= text == "te",
            6 => said.expects |= text == "expect",
            7 => said.upgrade |= text == "upgrade",
            10 if text == "connection" => continue,
            14 if text == "content-length" && guards::on("own-framing") => {
                said.length = said.length.or_else(|| length_in(value));
                continue;
            }
            17 if text == "transfer-encoding" => continue,
            _ => {}
        }
        if !is_said(text) {
            line(out, text, value);
        }
    }
    said
}

/// How the body is delimited, and the empty line.
pub fn framing(out: &mut Vec<u8>, framing: Framing) {
    match framing {
        Framing::Length(n) => length(out, n),
        Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        Framing::Empty | Framing::UntilClose | Framing::Tunnel => {}
    }
    out.extend_from_slice(b"\r\n");
}

/// A Content-Length field.
pub fn length(out: &mut Vec<u8>, n: u64) {
    out.extend_from_slice(b"content-length: ");
    digits(out, n, 10);
    out.extend_from_slice(b"\r\n");
}

pub fn field(out: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue) {
    line(out, name.as_str(), value);
}

fn line(out: &mut Vec<u8>, name: &str, value: &HeaderValue) {
    quick::append(out, name.as_bytes());
    out.extend_from_slice(b": ");
    quick::append(out, value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// A chunk's size line.
pub fn chunk_size(out: &mut Vec<u8>, n: usize) {
    digits(out, n as u64, 16);
    out.extend_from_slice(b"\r\n");
}

/// The last chunk with trailers behind it; what may not trail is left out.
pub fn trailers(out: &mut Vec<u8>, trailers: &HeaderMap) {
    out.extend_from_slice(b"0\r\n");
    if !guards::on("trailer-section") {
        out.extend_from_slice(b"\r\n");
    }
    for (name, value) in trailers.iter().filter(|(name, _)| head::may_trail(name)) {
        field(out, name, value);
    }
    out.extend_from_slice(b"\r\n");
}

/// The Content-Length that a message's own headers name, if they name one.
pub fn named_length(headers: &HeaderMap) -> Option<u64> {
    length_in(present::get(headers, &header::CONTENT_LENGTH)?)
}

fn length_in(value: &HeaderValue) -> Option<u64> {
    let value = value.as_bytes();
    let fits = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
    fits.then(|| value.iter().fold(0, |n, b| n * 10 + u64::from(b - b'0')))
}

/// Data as one chunk, or as it is.
pub(super) fn data(out: &mut super::outbox::Outbox, framing: Framing, data: Bytes, is_last: bool) {
    if framing != Framing::Chunked {
        return out.push(data, b"");
    }
    chunk_size(out.head(), data.len());
    out.push(data, if is_last { LAST_CHUNK_END } else { CHUNK_END });
}

fn digits(out: &mut Vec<u8>, mut n: u64, base: u64) {
    let mut text = [0u8; 20];
    let mut used = 0;
    for place in text.iter_mut().rev() {
        let digit = u8::try_from(n % base).unwrap_or_default();
        *place = if digit < 10 { b'0' + digit } else { b'a' + digit - 10 };
        used += 1;
        n /= base;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(text.get(text.len() - used..).unwrap_or_default());
}
