// SPDX-License-Identifier: Apache-2.0
//! An answer's bytes: its head, JSON, what is made small for who takes that. Called by `http`.

use std::io::Write as _;

use bytes::Bytes;
use http::header::ACCEPT_ENCODING;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::Full;
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use serde_json::Value;

use super::http::Answer;
use super::reply::{Body, Reply};
use crate::meter::Part;

/// Smaller answers are not compressed.
const GZIP_BYTES_MIN: usize = 1400;

/// How an answer is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    gzip: bool,
    pretty: bool,
    /// What it is an answer of.
    pub part: Part,
}

/// As RFC 9110 writes it.
pub(super) fn date(wall_ms: u64) -> Option<HeaderValue> {
    let now = Timestamp::from_millisecond(i64::try_from(wall_ms).ok()?).ok()?;
    let text = DateTimePrinter::new().timestamp_to_rfc9110_string(&now).ok()?;
    HeaderValue::from_str(&text).ok()
}

pub(super) fn render(reply: Reply, form: Form) -> Answer {
    let (kind, mut bytes, small) = match reply.body {
        Body::Empty | Body::Later(_) | Body::Flow(..) => (None, Bytes::new(), None),
        Body::Text(text) => (Some("text/plain; charset=utf-8"), text.into(), None),
        Body::Json(value) => (Some("application/json"), encode(&value, form.pretty).into(), None),
        Body::Bytes(kind, bytes) => (Some(kind), bytes, None),
        Body::Shared(kind, written) => (Some(kind), written.plain().clone(), Some(written)),
        Body::Whole(bytes) => (None, bytes, None),
    };
    let mut response = Response::new(Full::default());
    *response.status_mut() = reply.status;
    let headers = response.headers_mut();
    let mut set = |name: &'static str, value: &'static str| {
        headers.insert(name, HeaderValue::from_static(value));
    };
    set("x-content-type-options", "nosniff");
    set("vary", "Accept-Encoding");
    if let Some(kind) = kind {
        set("content-type", kind);
    }
    if form.gzip && bytes.len() >= GZIP_BYTES_MIN {
        let small = match &small {
            Some(written) => written.small(compress),
            None => compress(&bytes),
        };
        if let Some(small) = small {
            set("content-encoding", "gzip");
            bytes = small;
        }
    }
    for (name, value) in &reply.headers {
        if let (Ok(name), Ok(value)) =
            (http::HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value))
        {
            response.headers_mut().insert(name, value);
        }
    }
    *response.body_mut() = Full::new(bytes);
    response
}

fn encode(value: &Value, pretty: bool) -> Vec<u8> {
    let made = match pretty {
        true => serde_json::to_vec_pretty(value),
        false => serde_json::to_vec(value),
    };
    let mut bytes = made.expect("a JSON value is always written");
    if pretty {
        bytes.push(b'\n');
    }
    bytes
}

fn compress(bytes: &Bytes) -> Option<Bytes> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).ok()?;
    out.finish().ok().map(Bytes::from)
}

// === impl Form ===

impl Form {
    pub(super) fn of<B>(request: &Request<B>) -> Self {
        let pretty = request.uri().query().is_some_and(|q| {
            q.split('&').any(|part| part == "pretty" || part.starts_with("pretty="))
        });
        let part = Part::of(request.uri().path());
        Self { gzip: accepts_gzip(request.headers()), pretty, part }
    }
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get(ACCEPT_ENCODING).and_then(|v| v.to_str().ok()).unwrap_or_default();
    accepted.split(',').any(|part| {
        let mut words = part.split(';').map(str::trim);
        words.next() == Some("gzip") && words.all(|q| q != "q=0" && q != "q=0.0")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_for_who_accepts_it() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, text.parse().unwrap());
            accepts_gzip(&headers)
        };
        assert!(of("gzip, deflate") && of("deflate, gzip;q=0.5"));
        assert!(!of("deflate") && !of("gzip;q=0"));
    }
}
