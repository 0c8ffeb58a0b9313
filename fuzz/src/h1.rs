// SPDX-License-Identifier: Apache-2.0
//! HTTP/1 heads, bodies and paths: whatever the bytes, the verdict does not depend on how they
//! arrive, and what is accepted reads the same once it is passed on.

use bytes::BytesMut;
use http::header::HOST;
use http::{HeaderValue, Method, Uri, Version};
use weft_base::limits::HEADERS_MAX;
use weft_model::decide::Authority;
use weft_proxy::h1::body::{Decoder, Piece};
use weft_proxy::h1::encode::{self, Instead};
use weft_proxy::h1::framing::Framing;
use weft_proxy::h1::head::{RequestHead, Scan, take_request, take_response};
use weft_proxy::http::normalise;

struct Message {
    head: RequestHead,
    body: Vec<u8>,
}

/// Every request that can be read, and whether something was wrong then.
fn requests(bytes: &[u8], step: usize) -> (Vec<Message>, bool) {
    let (mut buffer, mut scan) = (BytesMut::new(), Scan::default());
    let mut open: Option<(Message, Decoder)> = None;
    let mut all = Vec::new();
    for part in bytes.chunks(step.max(1)) {
        buffer.extend_from_slice(part);
        loop {
            let Some((message, decoder)) = &mut open else {
                match take_request(&mut buffer, &mut scan) {
                    Err(_) => return (all, true),
                    Ok(None) => break,
                    Ok(Some(head)) if head.framing == Framing::Tunnel => return (all, false),
                    Ok(Some(head)) => {
                        let decoder = Decoder::new(head.framing);
                        open = Some((Message { head, body: Vec::new() }, decoder));
                        continue;
                    }
                }
            };
            match decoder.next(&mut buffer) {
                Err(_) => return (all, true),
                Ok(Some(Piece::Data(data))) => message.body.extend_from_slice(&data),
                Ok(Some(Piece::Trailers(_))) => {}
                Ok(None) if !decoder.is_done() => break,
                Ok(None) => all.extend(open.take().map(|(message, _)| message)),
            }
        }
    }
    (all, false)
}

fn shown(messages: &[Message]) -> String {
    let each = messages.iter().map(|m| {
        let parts = &m.head.parts;
        format!("{} {} {:?} {:?}", parts.method, parts.uri, parts.headers, m.body)
    });
    each.collect::<Vec<_>>().join("\n")
}

/// The first byte says in what steps the others arrive.
pub fn request(data: &[u8]) {
    let Some((step, bytes)) = data.split_first() else { return };
    let (whole, wrong) = requests(bytes, bytes.len());
    let (parts, wrong_too) = requests(bytes, usize::from(*step));
    assert_eq!(shown(&whole), shown(&parts));
    assert_eq!(wrong, wrong_too);
}

/// The first byte says what was asked.
pub fn response(data: &[u8]) {
    let Some((asked, bytes)) = data.split_first() else { return };
    let method = [Method::GET, Method::HEAD, Method::CONNECT][usize::from(asked % 3)].clone();
    let mut buffer = BytesMut::from(bytes);
    let mut scan = Scan::default();
    while let Ok(Some(head)) = take_response(&mut buffer, &mut scan, &method) {
        let mut decoder = Decoder::new(head.framing);
        while let Ok(Some(_)) = decoder.next(&mut buffer) {}
        if !decoder.is_done() {
            return;
        }
    }
}

/// What was accepted, written by us, is read by a parser that shares no line with ours.
pub fn round_trip(data: &[u8]) {
    for Message { head, body } in requests(data, data.len()).0 {
        let parts = &head.parts;
        let mut out = Vec::new();
        let line = (&parts.method, &parts.uri);
        encode::request(&mut out, line, &parts.headers, Instead::default());
        encode::framing(&mut out, Framing::Length(body.len() as u64));
        let second = plainly(&out);
        let target = parts.uri.path_and_query().map_or("/", |p| p.as_str());
        assert_eq!(second.line, format!("{} {target} HTTP/1.1", parts.method).as_bytes());
        let own = ["content-length", "transfer-encoding", "connection"];
        let kept = parts.headers.iter().filter(|(name, _)| !own.contains(&name.as_str()));
        let mut expected: Vec<(Vec<u8>, Vec<u8>)> =
            kept.map(|(n, v)| (n.as_str().into(), v.as_bytes().into())).collect();
        expected.push((b"content-length".to_vec(), body.len().to_string().into_bytes()));
        assert_eq!(second.fields, expected);
        // And by our own again, unless the length was one field more than we read.
        if expected.len() > HEADERS_MAX {
            continue;
        }
        out.extend_from_slice(&body);
        let (again, wrong) = requests(&out, out.len());
        assert!(!wrong && again.len() == 1, "our own output is refused");
        assert_eq!(again[0].body, body);
    }
}

struct Plain<'a> {
    line: &'a [u8],
    fields: Vec<(Vec<u8>, Vec<u8>)>,
}

/// As naive as a parser can be: lines at CRLF, names up to the first colon.
fn plainly(bytes: &[u8]) -> Plain<'_> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").expect("our heads end");
    assert_eq!(end + 4, bytes.len(), "nothing stands behind the empty line");
    let mut lines = Vec::new();
    let mut rest = &bytes[..end];
    while let Some(at) = rest.windows(2).position(|w| w == b"\r\n") {
        lines.push(&rest[..at]);
        rest = &rest[at + 2..];
    }
    lines.push(rest);
    assert!(lines.iter().all(|l| !l.iter().any(|b| matches!(b, b'\r' | b'\n' | 0))));
    let (line, lines) = lines.split_first().expect("a first line");
    let field = |line: &&[u8]| {
        let at = line.iter().position(|b| *b == b':').expect("a colon");
        let (name, value) = line.split_at(at);
        (name.to_vec(), value[1..].trim_ascii().to_vec())
    };
    Plain { line, fields: lines.iter().map(field).collect() }
}

/// No way that a server may read an accepted path is missing from its readings.
pub fn path(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(request) = http::Request::get(text).header("host", "a").body(()) else { return };
    if normalise::canonical(&request, None).is_err() {
        return;
    }
    let path = request.uri().path();
    let readings = normalise::readings(path);
    for reading in readings.iter().map(String::as_str).chain([path]) {
        assert!(reading == "*" || reading.starts_with('/'), "{path}: {reading}");
        assert!(!reading.contains(['\\', '\0', '\r', '\n']), "{path}: {reading}");
        let dots = reading.split('/').any(|s| matches!(s, "." | ".."));
        assert!(!dots, "{path}: {reading}");
    }
    let decoded = decoded(path);
    if decoded.contains("//") || decoded != path {
        assert!(!readings.is_empty() || path.len() == decoded.len(), "{path}");
    }
}

/// What a request is for, read two ways, is one host, in one form. The first line is the Host
/// header, the second, if there is one, `:authority` of HTTP/2.
pub fn authority(data: &[u8]) {
    let mut lines = data.splitn(2, |b| *b == b'\n');
    let (host, target) = (lines.next().unwrap_or_default(), lines.next());
    let mut request = http::Request::get("/").body(()).expect("a plain request");
    let Ok(value) = HeaderValue::from_bytes(host) else { return };
    request.headers_mut().insert(HOST, value);
    if let Some(target) = target {
        let Ok(target) =
            Uri::builder().scheme("https").path_and_query("/").authority(target).build()
        else {
            return;
        };
        *request.uri_mut() = target;
        *request.version_mut() = Version::HTTP_2;
    }
    let Ok(found) = normalise::canonical(&request, None) else { return };
    let read = |text: &[u8]| Authority::parse(std::str::from_utf8(text).expect("it was taken"));
    assert_eq!(read(host).as_ref(), Some(&found), "by the Host header");
    assert_eq!(read(target.unwrap_or(host)).as_ref(), Some(&found), "by :authority");
    let shown = match (found.host.contains(':'), found.port) {
        (true, Some(port)) => format!("[{}]:{port}", found.host),
        (true, None) => format!("[{}]", found.host),
        (false, Some(port)) => format!("{}:{port}", found.host),
        (false, None) => found.host.clone(),
    };
    assert_eq!(Authority::parse(&shown).as_ref(), Some(&found), "its own form is another");
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.:".contains(&b);
    assert!(!found.host.is_empty() && found.host.bytes().all(plain), "{found:?}");
    // An IPv4 address of IPv6 ends as one, whose text has points.
    assert!(!found.host.ends_with('.') && found.host.len() <= 253, "{found:?}");
}

fn decoded(path: &str) -> String {
    let mut out = String::new();
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        match rest.get(at + 1..at + 3).and_then(|d| u8::from_str_radix(d, 16).ok()) {
            Some(b) if b.is_ascii_graphic() && b != b'%' => out.push(char::from(b)),
            _ => out.push_str(rest.get(at..at + 3).unwrap_or("%")),
        }
        rest = rest.get(at + 3..).unwrap_or_default();
    }
    out + rest
}
