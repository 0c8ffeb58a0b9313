// SPDX-License-Identifier: Apache-2.0
//! gRPC-Web for backends that speak gRPC: a browser's call becomes a gRPC call, and trailers, which
//! browsers cannot read, the last message of its answer. `-text` is the same in base64. Called by
//! the phases where a backend's port says gRPC; of other backends calls pass as they are. What
//! browsers of other origins may do is the business of the route's CORS policy.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TE};
use http::{Response, Version};
use http_body::Frame;

use super::body::{Replay, ReplyBody};
use super::present;

const WEB: &str = "application/grpc-web";
const TEXT: &str = "application/grpc-web-text";
const GRPC: &str = "application/grpc";
const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
/// The first byte of a message that is trailers.
const TRAILERS: u8 = 0x80;

/// How a browser's call is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Web {
    text: bool,
}

/// Turns an answer's frames into a browser's.
#[derive(Debug)]
pub struct Encoder {
    text: bool,
    ended: bool,
}

/// Unpacks base64 that comes in pieces, each of which may be padded (the protocol allows to join
/// messages that were encoded one by one).
#[derive(Debug, Default)]
pub struct Decoder {
    /// Less than four characters.
    rest: BytesMut,
}

/// How a browser's call is written, whatever its backend speaks; `None` when it is not one.
pub fn asked(headers: &HeaderMap) -> Option<Web> {
    kind(headers).map(|(web, _)| web)
}

/// The same, with the messages' format or parameters behind it.
fn kind(headers: &HeaderMap) -> Option<(Web, &str)> {
    let given = present::get(headers, &CONTENT_TYPE)?.to_str().ok()?;
    let (text, kind) = match given.strip_prefix(TEXT) {
        Some(kind) => (true, kind),
        None => (false, given.strip_prefix(WEB)?),
    };
    Some((Web { text }, suffix(kind)?))
}

/// Makes a browser's call a gRPC call; `None` when it is not one.
pub fn translate(headers: &mut HeaderMap, body: &Replay) -> Option<Web> {
    let (web, kind) = kind(headers)?;
    let plain = HeaderValue::from_str(&format!("{GRPC}{kind}")).ok()?;
    headers.insert(CONTENT_TYPE, plain);
    headers.insert(TE, HeaderValue::from_static("trailers"));
    headers.entry(ACCEPT_ENCODING).or_insert(HeaderValue::from_static("identity"));
    if web.text {
        headers.remove(CONTENT_LENGTH);
        body.unpack();
    }
    Some(web)
}

/// `+proto` and the like, or parameters.
fn suffix(kind: &str) -> Option<&str> {
    (kind.is_empty() || kind.starts_with(['+', ';'])).then_some(kind)
}

// === impl Web ===

impl Web {
    /// Makes a gRPC answer a browser's; one that is no gRPC passes as it is.
    pub fn answer(self, response: Response<ReplyBody>) -> Response<ReplyBody> {
        let given = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
        let kind = given.and_then(|given| suffix(given.strip_prefix(GRPC)?));
        let name = if self.text { TEXT } else { WEB };
        let Some(Ok(kind)) = kind.map(|kind| {
            let kind = if kind.is_empty() { "+proto" } else { kind };
            HeaderValue::from_str(&format!("{name}{kind}"))
        }) else {
            return response;
        };
        let (mut parts, body) = response.into_parts();
        parts.headers.insert(CONTENT_TYPE, kind);
        parts.headers.remove(CONTENT_LENGTH);
        parts.headers.remove(http::header::TRAILER);
        parts.version = Version::HTTP_11;
        // A status in the head is one that browsers can read.
        let whole = parts.headers.contains_key("grpc-status");
        let body = if whole { body } else { body.encoded(Encoder::new(self.text)) };
        Response::from_parts(parts, body)
    }
}

// === impl Encoder ===

impl Encoder {
    fn new(text: bool) -> Self {
        Self { text, ended: false }
    }

    /// Nothing follows.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// The frame as a browser gets it; `None` at the end.
    pub fn frame(&mut self, frame: Option<Frame<Bytes>>) -> Option<Frame<Bytes>> {
        let bytes = match frame.map(Frame::into_data) {
            None => {
                self.ended = true;
                return None;
            }
            Some(Ok(data)) => data,
            Some(Err(frame)) => {
                self.ended = true;
                trailers(&frame.into_trailers().unwrap_or_default())
            }
        };
        Some(Frame::data(if self.text { STANDARD.encode(&bytes).into() } else { bytes }))
    }
}

/// A message of trailers: lines as HTTP/1 has them, names in lower case.
fn trailers(map: &HeaderMap) -> Bytes {
    let mut lines = Vec::new();
    for (name, value) in map {
        lines.extend_from_slice(name.as_str().as_bytes());
        lines.extend_from_slice(b": ");
        lines.extend_from_slice(value.as_bytes());
        lines.extend_from_slice(b"\r\n");
    }
    let mut message = BytesMut::with_capacity(5 + lines.len());
    message.put_u8(TRAILERS);
    message.put_u32(u32::try_from(lines.len()).unwrap_or(u32::MAX));
    message.extend_from_slice(&lines);
    message.freeze()
}

// === impl Decoder ===

impl Decoder {
    /// What is whole of what came so far.
    ///
    /// # Errors
    /// It is not base64.
    pub fn unpack(&mut self, data: &[u8]) -> Result<Bytes, &'static str> {
        const WHY: &str = "the body is not base64";
        self.rest.extend_from_slice(data);
        let whole = self.rest.len() / 4 * 4;
        let mut out = BytesMut::with_capacity(whole / 4 * 3);
        let mut quads = self.rest.split_to(whole);
        while quads.has_remaining() {
            // A padded quad ends a piece; another may follow at once.
            let end =
                quads.iter().position(|b| *b == b'=').map_or(quads.len(), |at| at / 4 * 4 + 4);
            let piece = quads.split_to(end.min(quads.len()));
            out.extend_from_slice(&STANDARD.decode(&piece).map_err(|_| WHY)?);
        }
        Ok(out.freeze())
    }

    /// Whether the body may end here.
    pub fn is_whole(&self) -> bool {
        self.rest.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(value))])
    }

    #[test]
    fn only_grpc_web_is_translated() {
        let translated = |given| {
            let mut headers = typed(given);
            let web = translate(&mut headers, &Replay::default())?;
            assert_eq!(headers.get(TE).unwrap(), "trailers");
            Some((headers.get(CONTENT_TYPE)?.to_str().ok()?.to_owned(), web.text))
        };
        let is = |given, kind: &str, text| assert_eq!(translated(given), Some((kind.into(), text)));
        is("application/grpc-web", "application/grpc", false);
        is("application/grpc-web+proto", "application/grpc+proto", false);
        is("application/grpc-web-text", "application/grpc", true);
        is("application/grpc-web-text+proto", "application/grpc+proto", true);
        is("application/grpc-web;charset=utf-8", "application/grpc;charset=utf-8", false);
        for other in ["application/grpc", "application/grpc-websocket", "text/plain"] {
            assert_eq!(translated(other), None, "{other}");
        }
    }

    #[test]
    fn trailers_are_the_last_message() {
        let mut encoder = Encoder::new(false);
        let data = Frame::data(Bytes::from_static(b"\0\0\0\0\x01x"));
        let same = encoder.frame(Some(data)).unwrap().into_data().unwrap();
        assert_eq!(&same[..], b"\0\0\0\0\x01x");
        assert!(!encoder.is_ended());
        let mut map = HeaderMap::new();
        map.insert("grpc-status", HeaderValue::from_static("5"));
        let last = encoder.frame(Some(Frame::trailers(map))).unwrap().into_data().unwrap();
        assert_eq!(&last[..], b"\x80\0\0\0\x10grpc-status: 5\r\n");
        assert!(encoder.is_ended());
    }

    #[test]
    fn base64_is_unpacked_however_it_is_cut() {
        let text = format!("{}{}{}", STANDARD.encode("a"), STANDARD.encode("bcdef"), "Z2hp");
        for cut in 1..text.len() {
            let mut decoder = Decoder::default();
            let mut out = Vec::new();
            for piece in text.as_bytes().chunks(cut) {
                out.extend_from_slice(&decoder.unpack(piece).unwrap());
            }
            assert_eq!(out, b"abcdefghi", "pieces of {cut}");
            assert!(decoder.is_whole());
        }
        assert!(Decoder::default().unpack(b"????").is_err());
        let mut half = Decoder::default();
        half.unpack(b"YW").unwrap();
        assert!(!half.is_whole());
    }
}
