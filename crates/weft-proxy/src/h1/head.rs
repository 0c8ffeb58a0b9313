// SPDX-License-Identifier: Apache-2.0
//! Heads of requests and answers: those of the usual form as [`super::usual`] finds them; of others
//! finds where one ends, line by line and each byte once, then parses it over httparse with what
//! RFC 9112 wants beyond it. Pure; called by the drivers.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Uri, Version, request, response};
use httparse::{Header, Status};
use weft_base::limits::{HEADER_BYTES_MAX, HEADERS_MAX};

use super::framing::{Claims, Framing};
use super::names;
use super::usual::{self, RequestLine, Usual};
use super::wrong::Wrong;
use crate::guards;
use crate::http::made;
use crate::sys;

const METHOD_MAX: usize = 32;
/// Room for parsed headers that nothing is written to before.
const NO_HEADER: MaybeUninit<Header<'static>> = MaybeUninit::uninit();

/// How far a head was looked through.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scan {
    at: usize,
    /// The empty line that may stand before a request was seen.
    skipped: bool,
}

/// A request's head.
#[derive(Debug)]
pub struct RequestHead {
    pub parts: request::Parts,
    pub framing: Framing,
    /// The client allows another request on this connection.
    pub keep_alive: bool,
    /// It waits for 100 before it sends its body.
    pub expects: bool,
    /// It asks for another protocol on this connection.
    pub upgrade: bool,
}

/// An answer's head.
#[derive(Debug)]
pub struct ResponseHead {
    pub parts: response::Parts,
    pub framing: Framing,
    /// The peer allows another request on this connection.
    pub keep_alive: bool,
}

/// What headers say to the codec itself.
#[derive(Debug, Default)]
struct Seen {
    claims: Claims,
    close: bool,
    keep_alive: bool,
    upgrade_named: bool,
    upgrade: bool,
    /// Among the protocols to upgrade to is HTTP/2 over cleartext.
    h2c: bool,
    expects: bool,
}

// === impl Scan ===

impl Scan {
    /// Begun already, so that no head is taken for a usual one.
    #[cfg(test)]
    pub(super) const BEGUN: Self = Self { at: 1, skipped: false };

    /// Looks for the empty line that ends a head; returns what is behind it.
    ///
    /// # Errors
    /// A line does not end as lines do, or there are too many bytes.
    pub fn end(&mut self, bytes: &[u8], max: usize) -> Result<Option<usize>, Wrong> {
        loop {
            let rest = bytes.get(self.at..).unwrap_or_default();
            let Some(n) = memchr::memchr(b'\n', rest) else {
                self.at = bytes.len();
                let too_large = bytes.len() > max && guards::on("head-bytes");
                return if too_large { Err(Wrong::HeadTooLarge) } else { Ok(None) };
            };
            let end = self.at + n;
            let bare = end == 0 || bytes.get(end - 1) != Some(&b'\r');
            if bare && guards::on("bare-lf") {
                return Err(Wrong::BareLf);
            }
            if end > max && guards::on("head-bytes") {
                return Err(Wrong::HeadTooLarge);
            }
            self.at = end + 1;
            // The line is empty when it is the first, or follows the end of another.
            if end == 1 || end.checked_sub(2).and_then(|i| bytes.get(i)) == Some(&b'\n') {
                return Ok(Some(self.at));
            }
        }
    }
}

/// Looks at the beginning of a request: whoever speaks something else need not be waited for.
///
/// # Errors
/// It cannot become one.
pub fn may_be_request(bytes: &[u8]) -> Result<(), Wrong> {
    let word = bytes.iter().position(|b| !is_token(*b)).unwrap_or(bytes.len());
    if word > METHOD_MAX {
        return Err(Wrong::Method);
    }
    match bytes.get(word) {
        None | Some(b'\r') => Ok(()),
        Some(b' ') if word > 0 => Ok(()),
        Some(0) => Err(Wrong::Nul),
        Some(b'\n') => Err(Wrong::BareLf),
        Some(_) => Err(Wrong::Method),
    }
}

/// Looks at the beginning of an answer likewise.
///
/// # Errors
/// It cannot become one.
pub fn may_be_response(bytes: &[u8]) -> Result<(), Wrong> {
    let begin = b"HTTP/1.";
    let n = bytes.len().min(begin.len());
    if bytes.get(..n) == begin.get(..n) { Ok(()) } else { Err(Wrong::StatusLine) }
}

/// Takes one request head off the buffer; `None` needs more bytes.
///
/// # Errors
/// What is wrong with it; the connection cannot be understood any further.
pub fn take_request(buffer: &mut BytesMut, scan: &mut Scan) -> Result<Option<RequestHead>, Wrong> {
    while buffer.starts_with(b"\r\n") {
        // RFC 9112 §2.2: an empty line before a request is ignored.
        if scan.skipped {
            return Err(Wrong::EmptyLines);
        }
        drop(buffer.split_to(2));
        *scan = Scan { at: 0, skipped: true };
    }
    if buffer.is_empty() {
        return Ok(None);
    }
    if scan.at == 0
        && let Some((line, usual)) = usual::request(buffer)
    {
        *scan = Scan::default();
        let head = buffer.split_to(usual.end).freeze();
        let made = usual_request(&head, line, &usual);
        // What is wrong is for the one to say who looks at every byte.
        return made.or_else(|_| request(head)).map(Some);
    }
    let end = match scan.end(buffer, HEADER_BYTES_MAX) {
        Ok(Some(end)) => end,
        Ok(None) => {
            may_be_request(buffer)?;
            return Ok(None);
        }
        Err(Wrong::HeadTooLarge) if !buffer.iter().take(HEADER_BYTES_MAX).any(|b| *b == b'\n') => {
            return Err(Wrong::TargetTooLong);
        }
        Err(wrong) => return Err(first_trouble(buffer).unwrap_or(wrong)),
    };
    *scan = Scan::default();
    request(buffer.split_to(end).freeze()).map(Some)
}

/// Takes one head of an answer to `method` off the buffer; `None` needs more bytes.
///
/// # Errors
/// What is wrong with it; the connection cannot be understood any further.
pub fn take_response(
    buffer: &mut BytesMut,
    scan: &mut Scan,
    method: &Method,
) -> Result<Option<ResponseHead>, Wrong> {
    if scan.at == 0
        && let Some((status, usual)) = usual::response(buffer)
    {
        let head = buffer.split_to(usual.end).freeze();
        let made =
            made_response(&head, (Some(status), Version::HTTP_11), usual.fields(&head), method);
        return made.or_else(|_| response(head, method)).map(Some);
    }
    let Some(end) = scan.end(buffer, HEADER_BYTES_MAX)? else {
        may_be_response(buffer)?;
        return Ok(None);
    };
    *scan = Scan::default();
    response(buffer.split_to(end).freeze(), method).map(Some)
}

fn request(head: Bytes) -> Result<RequestHead, Wrong> {
    let head = guards::loose_head(head);
    let mut headers = [NO_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut []);
    match parsed.parse_with_uninit_headers(&head, &mut headers) {
        Ok(Status::Complete(n)) if n == head.len() => {}
        Ok(_) => return Err(Wrong::RequestLine),
        Err(error) => return Err(cold_request(&head, error)),
    }
    let method = parsed.method.unwrap_or_default();
    if method.len() > METHOD_MAX && guards::on("method-bytes") {
        return Err(Wrong::Method);
    }
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| Wrong::Method)?;
    let target = target(&head, parsed.path.unwrap_or_default().as_bytes(), &method)?;
    let line = (method, target, version(parsed.version));
    made_request(&head, line, parsed.headers.iter().map(|f| (f.name.as_bytes(), f.value)))
}

fn usual_request(head: &Bytes, line: RequestLine, usual: &Usual) -> Result<RequestHead, Wrong> {
    let (from, to) = line.target;
    let target = target(head, head.get(from..to).unwrap_or_default(), &line.method)?;
    made_request(head, (line.method, target, Version::HTTP_11), usual.fields(head))
}

/// What a request's head says, whose lines are well-formed.
fn made_request<'h>(
    head: &'h Bytes,
    (method, uri, version): (Method, Uri, Version),
    fields: impl Iterator<Item = (&'h [u8], &'h [u8])>,
) -> Result<RequestHead, Wrong> {
    let mut parts = http::Request::new(()).into_parts().0;
    (parts.method, parts.uri, parts.version) = (method, uri, version);
    let mut seen = Seen::default();
    parts.headers = made::map();
    for (name, text) in fields {
        let name = names::name(name)?;
        seen.request(&name, text)?;
        append(&mut parts.headers, name, value(head, text)?)?;
    }
    let framing = seen.claims.request(&parts.method, parts.version)?;
    let keep_alive = seen.keeps(parts.version);
    let upgrade = seen.upgrade
        && seen.upgrade_named
        && !seen.h2c
        && framing == Framing::Empty
        && parts.version == Version::HTTP_11;
    let expects = seen.expects && parts.version == Version::HTTP_11;
    Ok(RequestHead { parts, framing, keep_alive, expects, upgrade })
}

fn response(head: Bytes, method: &Method) -> Result<ResponseHead, Wrong> {
    let mut headers = [NO_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    match config.parse_response_with_uninit_headers(&mut parsed, &head, &mut headers) {
        Ok(Status::Complete(n)) if n == head.len() => {}
        Ok(_) => return Err(Wrong::StatusLine),
        Err(error) => return Err(cold_response(&head, error)),
    }
    let line = (parsed.code, version(parsed.version));
    let fields = parsed.headers.iter().map(|f| (f.name.as_bytes(), f.value));
    made_response(&head, line, fields, method)
}

/// What the head of an answer to `method` says, whose lines are well-formed.
fn made_response<'h>(
    head: &'h Bytes,
    (code, version): (Option<u16>, Version),
    fields: impl Iterator<Item = (&'h [u8], &'h [u8])>,
    method: &Method,
) -> Result<ResponseHead, Wrong> {
    let mut parts = http::Response::new(()).into_parts().0;
    let status = code.filter(|code| (100..600).contains(code));
    let status = status.and_then(|code| StatusCode::from_u16(code).ok());
    parts.status = status.ok_or(Wrong::StatusLine)?;
    parts.version = version;
    let mut seen = Seen::default();
    parts.headers = made::map();
    for (name, text) in fields {
        let name = names::name(name)?;
        if name == header::CONTENT_LENGTH {
            let again = seen.claims.length.is_some();
            seen.claims.content_length_of_answer(text)?;
            if again {
                continue;
            }
            // A list of equal numbers becomes one of them.
            let one = match text.iter().all(u8::is_ascii_digit) {
                true => value(head, text)?,
                false => HeaderValue::from(seen.claims.length.unwrap_or_default()),
            };
            append(&mut parts.headers, name, one)?;
            continue;
        }
        seen.common(&name, text)?;
        append(&mut parts.headers, name, value(head, text)?)?;
    }
    let framing = seen.claims.response(method, parts.status, parts.version)?;
    let keep_alive = seen.keeps(parts.version) && framing != Framing::UntilClose;
    Ok(ResponseHead { parts, framing, keep_alive })
}

/// Parses trailers: header lines and the empty one.
///
/// # Errors
/// One is malformed, or has a name that means something before a body only.
pub fn trailers(lines: Bytes) -> Result<HeaderMap, Wrong> {
    trailers_if(lines, |name| match may_trail(name) || !guards::on("trailer-names") {
        true => Ok(true),
        false => Err(Wrong::TrailerForbidden),
    })
}

/// The same of an answer, which is whole all the same: what may not trail is dropped, as RFC 9110
/// §6.5.1 has it of what a recipient does not understand.
///
/// # Errors
/// One is malformed.
pub fn trailers_of_answer(lines: Bytes) -> Result<HeaderMap, Wrong> {
    trailers_if(lines, |name| Ok(may_trail(name) || !guards::on("trailer-names")))
}

fn trailers_if(
    lines: Bytes,
    keeps: impl Fn(&HeaderName) -> Result<bool, Wrong>,
) -> Result<HeaderMap, Wrong> {
    let lines = guards::loose_lines(lines);
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let parsed = match httparse::parse_headers(&lines, &mut headers) {
        Ok(Status::Complete((_, parsed))) => parsed,
        Ok(Status::Partial) => return Err(Wrong::NoColon),
        Err(error) => {
            return Err(first_trouble(&lines).unwrap_or_else(|| in_lines(&lines, error)));
        }
    };
    let mut map = HeaderMap::with_capacity(parsed.len());
    for field in parsed {
        let name = names::name(field.name.as_bytes())?;
        if keeps(&name)? {
            append(&mut map, name, value(&lines, field.value)?)?;
        }
    }
    Ok(map)
}

/// Framing, routing, credentials and what a recipient needs before the body (RFC 9110 §6.5.1).
pub fn may_trail(name: &HeaderName) -> bool {
    const NEVER: &[HeaderName] = &[
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::HOST,
        header::AUTHORIZATION,
        header::PROXY_AUTHORIZATION,
        header::CONNECTION,
        header::UPGRADE,
        header::TE,
        header::TRAILER,
        header::EXPECT,
        header::COOKIE,
        header::SET_COOKIE,
        header::CONTENT_ENCODING,
        header::CONTENT_TYPE,
        header::CONTENT_RANGE,
        header::CACHE_CONTROL,
        header::MAX_FORWARDS,
    ];
    let text = name.as_str();
    let ours = ["x-weft-", "x-envoy-", "x-forwarded-", "proxy-"];
    !NEVER.contains(name) && !ours.iter().any(|p| text.starts_with(p)) && text != "keep-alive"
}

/// A slice of the head, not a copy.
fn value(head: &Bytes, value: &[u8]) -> Result<HeaderValue, Wrong> {
    sys::value::value(head.slice_ref(value)).ok_or(Wrong::HeaderValue)
}

fn append(map: &mut HeaderMap, name: HeaderName, value: HeaderValue) -> Result<(), Wrong> {
    map.try_append(name, value).map(|_| ()).map_err(|_| Wrong::TooManyHeaders)
}

fn version(minor: Option<u8>) -> Version {
    if minor == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 }
}

/// Origin form, absolute form, `host:port` of CONNECT, `*` of OPTIONS (RFC 9112 §3.2).
fn target(head: &Bytes, bytes: &[u8], method: &Method) -> Result<Uri, Wrong> {
    if memchr::memchr(b'#', bytes).is_some() && guards::on("fragment") {
        return Err(Wrong::Fragment);
    }
    let (connect, options) = (method == Method::CONNECT, method == Method::OPTIONS);
    let form = match bytes.first() {
        Some(b'/') => !connect,
        Some(b'*') => options && bytes.len() == 1,
        Some(_) if connect => !bytes.iter().any(|b| matches!(b, b'/' | b'?' | b'@')),
        Some(_) => is_absolute(bytes),
        None => false,
    };
    if !(form && bytes.is_ascii()) && guards::on("target-form") {
        return Err(Wrong::Target);
    }
    let uri = Uri::from_maybe_shared(head.slice_ref(bytes)).map_err(|_| Wrong::Target)?;
    let connectable = uri.authority().is_some_and(|a| a.port_u16().is_some());
    if connect && !connectable {
        return Err(Wrong::Target);
    }
    Ok(uri)
}

fn is_absolute(target: &[u8]) -> bool {
    let parts = std::str::from_utf8(target).ok().and_then(|t| t.split_once("://"));
    parts.is_some_and(|(scheme, rest)| {
        let known = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
        known && !rest.starts_with(['/', '?'])
    })
}

/// What a header's value lists.
pub fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|e| !e.is_empty())
}

pub fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

// === impl Seen ===

impl Seen {
    fn request(&mut self, name: &HeaderName, value: &[u8]) -> Result<(), Wrong> {
        if name == header::CONTENT_LENGTH {
            return self.claims.content_length(value);
        }
        if name == header::EXPECT {
            if !value.eq_ignore_ascii_case(b"100-continue") {
                return Err(Wrong::Expectation);
            }
            self.expects = true;
        }
        self.common(name, value)
    }

    fn common(&mut self, name: &HeaderName, value: &[u8]) -> Result<(), Wrong> {
        if name == header::TRANSFER_ENCODING {
            return self.claims.transfer_encoding(value);
        }
        if name == header::UPGRADE {
            self.upgrade = true;
            let h2c = elements(value).any(|e| e.eq_ignore_ascii_case(b"h2c"));
            self.h2c |= h2c && guards::on("h2c");
        }
        if name == header::CONNECTION {
            for option in value.split(|b| *b == b',') {
                let option = option.trim_ascii();
                if !option.iter().all(|b| is_token(*b)) && guards::on("connection-tokens") {
                    return Err(Wrong::Connection);
                }
                self.close |= option.eq_ignore_ascii_case(b"close");
                self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                self.upgrade_named |= option.eq_ignore_ascii_case(b"upgrade");
            }
        }
        Ok(())
    }

    fn keeps(&self, version: Version) -> bool {
        !self.close && (version == Version::HTTP_11 || self.keep_alive)
    }
}

// === naming what httparse refused; cold ===

fn cold_request(head: &[u8], error: httparse::Error) -> Wrong {
    if let Some(wrong) = first_trouble(head) {
        return wrong;
    }
    let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
    let words: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    match (error, words.as_slice()) {
        (httparse::Error::TooManyHeaders, _) => Wrong::TooManyHeaders,
        (_, [method, ..]) if method.is_empty() || !method.iter().all(|b| is_token(*b)) => {
            Wrong::Method
        }
        (_, [_, target, _]) if target.iter().any(|b| !b.is_ascii_graphic()) => Wrong::Target,
        (_, [_, _, version]) if !matches!(*version, b"HTTP/1.1" | b"HTTP/1.0") => match version {
            [b'H', b'T', b'T', b'P', b'/', a, b'.', b]
                if a.is_ascii_digit() && b.is_ascii_digit() =>
            {
                Wrong::Version
            }
            _ => Wrong::RequestLine,
        },
        (_, [_, target, _]) if !target.is_empty() => match error {
            httparse::Error::Token => Wrong::Target,
            _ => in_lines(behind_first_line(head), error),
        },
        _ => Wrong::RequestLine,
    }
}

fn cold_response(head: &[u8], error: httparse::Error) -> Wrong {
    if let Some(wrong) = first_trouble(head) {
        return wrong;
    }
    match error {
        httparse::Error::TooManyHeaders => Wrong::TooManyHeaders,
        httparse::Error::Status | httparse::Error::Version | httparse::Error::Token => {
            Wrong::StatusLine
        }
        _ => in_lines(behind_first_line(head), error),
    }
}

fn behind_first_line(head: &[u8]) -> &[u8] {
    let end = memchr::memchr(b'\n', head).map_or(head.len(), |n| n + 1);
    head.get(end..).unwrap_or_default()
}

/// What is wrong with the first bad one of header lines.
fn in_lines(lines: &[u8], error: httparse::Error) -> Wrong {
    for line in lines.split(|b| *b == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            continue;
        }
        if matches!(line.first(), Some(b' ' | b'\t')) {
            return Wrong::Folded;
        }
        let Some(colon) = memchr::memchr(b':', line) else { return Wrong::NoColon };
        let (name, value) = line.split_at(colon);
        if let [token @ .., b' ' | b'\t'] = name
            && !token.is_empty()
        {
            return Wrong::SpaceBeforeColon;
        }
        if name.is_empty() || !name.iter().all(|b| is_token(*b)) {
            return Wrong::HeaderName;
        }
        if value.iter().any(|b| b.is_ascii_control() && *b != b'\t') {
            return Wrong::HeaderValue;
        }
    }
    if error == httparse::Error::TooManyHeaders {
        Wrong::TooManyHeaders
    } else {
        Wrong::HeaderValue
    }
}

/// Bytes that no head may have anywhere, by which comes first.
fn first_trouble(head: &[u8]) -> Option<Wrong> {
    head.iter().enumerate().find_map(|(i, b)| match b {
        0 => Some(Wrong::Nul),
        b'\r' if head.get(i + 1).is_some_and(|n| *n != b'\n') => Some(Wrong::BareCr),
        b'\n' if i == 0 || head.get(i - 1) != Some(&b'\r') => Some(Wrong::BareLf),
        _ => None,
    })
}
