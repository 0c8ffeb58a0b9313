// SPDX-License-Identifier: Apache-2.0
//! Verdicts from RFC 9110 and RFC 9112, one row each in `table.txt`: the section, what kind of
//! message, what is expected, and the bytes. Every row is fed whole and byte by byte.

use bytes::BytesMut;
use http::Method;

use crate::h1::body::{Decoder, Piece};
use crate::h1::framing::Framing;
use crate::h1::head::{Scan, take_request, take_response};
use crate::h1::wrong::Wrong;

const TABLE: &str = include_str!("table.txt");

/// One message out of the buffer, as text; `None` wants more bytes.
type Take = dyn FnMut(&mut BytesMut) -> Result<Option<String>, Wrong>;

/// `\r`, `\n`, `\t`, `\0`, `\\`, `\xNN`, and `{a*5}` for repetition.
fn bytes(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, more)) = rest.split_first() {
        rest = more;
        match (first, rest) {
            (b'\\', [b'x', hi, lo, more @ ..]) => {
                let digit = |d: &u8| char::from(*d).to_digit(16).unwrap();
                out.push(u8::try_from(digit(hi) * 16 + digit(lo)).unwrap());
                rest = more;
            }
            (b'\\', [escaped, more @ ..]) => {
                out.push(match escaped {
                    b'r' => b'\r',
                    b'n' => b'\n',
                    b't' => b'\t',
                    b'0' => 0,
                    other => *other,
                });
                rest = more;
            }
            (b'{', _) if text.contains('*') => {
                let end = rest.iter().position(|b| *b == b'}').unwrap();
                let inner = std::str::from_utf8(&rest[..end]).unwrap();
                let (unit, times) = inner.rsplit_once('*').unwrap();
                out.extend(bytes(unit).repeat(times.parse().unwrap()));
                rest = &rest[end + 1..];
            }
            _ => out.push(first),
        }
    }
    out
}

/// The body as it comes, `|` between nothing: pieces depend on how bytes arrived.
#[derive(Default)]
struct Body {
    text: String,
    trailers: String,
}

impl Body {
    fn take(&mut self, decoder: &mut Decoder, buffer: &mut BytesMut) -> Result<bool, Wrong> {
        while let Some(piece) = decoder.next(buffer)? {
            match piece {
                Piece::Data(data) => self.text.push_str(&String::from_utf8_lossy(&data)),
                Piece::Trailers(map) => {
                    for (name, value) in &map {
                        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
                        self.trailers.push_str(&format!(" trailer {name}={value}"));
                    }
                }
            }
        }
        Ok(decoder.is_done())
    }
}

/// `METHOD target 1.1 framing[ body=…][ trailer a=b][ close][ expects][ upgrade]`.
fn requests() -> Box<Take> {
    let mut scan = Scan::default();
    let mut open: Option<(String, Decoder, Body)> = None;
    Box::new(move |buffer| {
        if open.is_none() {
            let Some(head) = take_request(buffer, &mut scan)? else { return Ok(None) };
            let parts = &head.parts;
            let minor = if parts.version == http::Version::HTTP_10 { "1.0" } else { "1.1" };
            let mut said = format!("{} {} {minor} {}", parts.method, parts.uri, name(head.framing));
            for (flag, text) in [
                (!head.keep_alive, " close"),
                (head.expects, " expects"),
                (head.upgrade, " upgrade"),
            ] {
                said.push_str(if flag { text } else { "" });
            }
            open = Some((said, Decoder::new(head.framing), Body::default()));
        }
        finish(&mut open, buffer)
    })
}

/// `STATUS framing[ body=…][ trailer a=b][ close]`.
fn responses(method: Method) -> Box<Take> {
    let mut scan = Scan::default();
    let mut open: Option<(String, Decoder, Body)> = None;
    Box::new(move |buffer| {
        if open.is_none() {
            let taken = take_response(buffer, &mut scan, &method)?;
            let Some(head) = taken else { return Ok(None) };
            let close = if head.keep_alive { "" } else { " close" };
            let said = format!("{} {}{close}", head.parts.status.as_u16(), name(head.framing));
            open = Some((said, Decoder::new(head.framing), Body::default()));
        }
        finish(&mut open, buffer)
    })
}

fn finish(
    open: &mut Option<(String, Decoder, Body)>,
    buffer: &mut BytesMut,
) -> Result<Option<String>, Wrong> {
    let Some((_, decoder, body)) = open else { return Ok(None) };
    let done = body.take(decoder, buffer)?;
    // A body that ends with its connection is never done here.
    if !done && !matches!(decoder, Decoder::UntilClose) {
        return Ok(None);
    }
    if !done && body.text.is_empty() {
        return Ok(None);
    }
    let (mut said, _, body) = open.take().unwrap();
    if !body.text.is_empty() {
        said.push_str(&format!(" body={}", body.text));
    }
    Ok(Some(said + &body.trailers))
}

fn name(framing: Framing) -> String {
    match framing {
        Framing::Empty => "empty".into(),
        Framing::Length(n) => format!("length {n}"),
        Framing::Chunked => "chunked".into(),
        Framing::UntilClose => "until-close".into(),
        Framing::Tunnel => "tunnel".into(),
    }
}

/// What becomes of the bytes: messages with ` / ` between, then `more` if one is not complete,
/// or what is wrong.
fn verdict(mut take: Box<Take>, bytes: &[u8], step: usize) -> String {
    let mut buffer = BytesMut::new();
    let mut said: Vec<String> = Vec::new();
    for part in bytes.chunks(step) {
        buffer.extend_from_slice(part);
        loop {
            match take(&mut buffer) {
                Ok(Some(message)) if message.contains(" tunnel") => {
                    said.push(message);
                    return said.join(" / ");
                }
                Ok(Some(message)) => said.push(message),
                Ok(None) => break,
                Err(wrong) => {
                    said.push(format!("{wrong:?} {}", wrong.status()));
                    return said.join(" / ");
                }
            }
        }
    }
    if said.is_empty() || !buffer.is_empty() {
        said.push("more".into());
    }
    said.join(" / ")
}

fn check(kind: &str, expected: &str, bytes: &[u8]) -> Result<(), String> {
    let take = || match kind {
        "request" => requests(),
        "response" => responses(Method::GET),
        "response-to-HEAD" => responses(Method::HEAD),
        "response-to-CONNECT" => responses(Method::CONNECT),
        other => panic!("no kind {other}"),
    };
    let whole = verdict(take(), bytes, bytes.len().max(1));
    let bytewise = verdict(take(), bytes, 1);
    // Until a connection ends its pieces are all there is to see.
    let same = whole == bytewise || whole.contains("until-close");
    match (whole == expected, same) {
        (true, true) => Ok(()),
        (false, _) => Err(format!("says {whole:?}, expected {expected:?}")),
        (_, false) => Err(format!("byte by byte says {bytewise:?}, expected {expected:?}")),
    }
}

#[test]
fn verdicts_are_those_of_the_rfcs() {
    let (mut rows, mut wrong) = (0, Vec::new());
    for (n, line) in TABLE.lines().enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let columns: Vec<&str> = line.splitn(4, " | ").collect();
        let [section, kind, expected, text] = columns[..] else { panic!("line {}", n + 1) };
        rows += 1;
        if let Err(why) = check(kind, expected, &bytes(text)) {
            wrong.push(format!("line {}: {section}: {text}: {why}", n + 1));
        }
    }
    assert!(wrong.is_empty(), "{} of {rows} rows:\n{}", wrong.len(), wrong.join("\n"));
    assert!(rows >= 215, "{rows} rows");
}

/// Every kind of trouble that bytes alone can show has a row of its own.
#[test]
fn every_sentence_has_a_row() {
    let only_drivers = [
        Wrong::Truncated,
        Wrong::HeadTruncated,
        Wrong::Switched,
        Wrong::Protocol,
        Wrong::HeadTimeout,
    ];
    for (wrong, status, sentence) in crate::h1::wrong::WRONGS {
        assert_eq!((wrong.status(), wrong.sentence()), (*status, *sentence));
        let row = format!("{wrong:?} {status}");
        let found = TABLE.lines().any(|l| l.split(" | ").nth(2).is_some_and(|e| e.ends_with(&row)));
        assert!(found || only_drivers.contains(wrong), "{wrong:?} has no row");
    }
}

/// A table that could not fail would prove nothing.
#[test]
fn a_wrong_expectation_fails() {
    let good = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(check("request", "GET / 1.1 empty", good), Ok(()));
    assert!(check("request", "GET / 1.1 chunked", good).is_err());
    assert!(check("request", "BareLf 400", good).is_err());
}

/// Regressions by their numbers: what each text after a good request becomes.
fn refused(kind: &str, text: &str) -> String {
    let bytes = bytes(text);
    let take = || if kind == "request" { requests() } else { responses(Method::GET) };
    let whole = verdict(take(), &bytes, bytes.len());
    assert_eq!(whole, verdict(take(), &bytes, 1), "{text}");
    whole
}

fn all_refused(start: &str, cases: &[&str]) {
    for case in cases {
        let text = format!("{start}{case}");
        let said = refused("request", &text);
        let last = said.rsplit(" / ").next().unwrap();
        assert!(last.ends_with(" 400") || last.ends_with(" 501"), "{text}: {said}");
        assert_eq!(said.matches(" / ").count(), 0, "{text}: {said}");
    }
}

const POST: &str = "POST / HTTP/1.1\\r\\nHost: a\\r\\n";
const CHUNKED: &str = "POST / HTTP/1.1\\r\\nHost: a\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n";

#[test]
fn reg_01_length_beside_encoding() {
    all_refused(
        POST,
        &[
            "Content-Length: 3\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n0\\r\\n\\r\\n",
            "Transfer-Encoding: chunked\\r\\nContent-Length: 3\\r\\n\\r\\n0\\r\\n\\r\\n",
            "Transfer-Encoding: chunked\\r\\nContent-Length: 0\\r\\n\\r\\n0\\r\\n\\r\\n",
        ],
    );
}

#[test]
fn reg_02_lengths_that_differ_or_are_no_numbers() {
    all_refused(
        POST,
        &[
            "Content-Length: 3\\r\\nContent-Length: 4\\r\\n\\r\\nabc",
            "Content-Length: 3, 3\\r\\n\\r\\nabc",
            "Content-Length: +5\\r\\n\\r\\nabcde",
            "Content-Length: -0\\r\\n\\r\\n",
            "Content-Length: 0x5\\r\\n\\r\\nabcde",
            "Content-Length: 5 5\\r\\n\\r\\nabcde",
            "Content-Length: 1_0\\r\\n\\r\\nabcde",
            "Content-Length:\\r\\n\\r\\n",
        ],
    );
}

#[test]
fn reg_03_http_1_0_has_no_chunks() {
    let old = "POST / HTTP/1.0\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n0\\r\\n\\r\\n";
    assert_eq!(refused("request", old), "EncodingOld 400");
}

#[test]
fn reg_07_names_and_values_that_servers_disagree_about() {
    all_refused(
        POST,
        &[
            ": x\\r\\n\\r\\n",
            "name : x\\r\\n\\r\\n",
            "name: a\\0b\\r\\n\\r\\n",
            "name: a\\rb\\r\\n\\r\\n",
            "name: a\\r\\n folded\\r\\n\\r\\n",
            " name: a\\r\\n\\r\\n",
        ],
    );
}

#[test]
fn reg_08_a_name_of_any_length_is_a_name_or_431() {
    let long = format!("{POST}{{a*65600}}: x\\r\\n\\r\\n");
    assert_eq!(refused("request", &long), "HeadTooLarge 431");
}

#[test]
fn reg_09_chunks_that_servers_disagree_about() {
    all_refused(
        CHUNKED,
        &[
            "3;a\\nb\\r\\nabc\\r\\n0\\r\\n\\r\\n",
            "3;a\\x01\\r\\nabc\\r\\n0\\r\\n\\r\\n",
            "3;\\r\\nabc\\r\\n0\\r\\n\\r\\n",
            "0x3\\r\\nabc\\r\\n0\\r\\n\\r\\n",
            "0_3\\r\\nabc\\r\\n0\\r\\n\\r\\n",
            "-3\\r\\nabc\\r\\n0\\r\\n\\r\\n",
            "10000000000000003\\r\\nabc\\r\\n0\\r\\n\\r\\n",
            "3\\r\\nabc0\\r\\n\\r\\n",
            "3\\r\\nabcdef\\r\\n0\\r\\n\\r\\n",
        ],
    );
}

#[test]
fn reg_10_trailers_that_would_be_headers() {
    for name in ["Content-Length: 3", "Transfer-Encoding: chunked", "Host: b", "Authorization: x"] {
        all_refused(CHUNKED, &[&format!("0\\r\\n{name}\\r\\n\\r\\n")]);
    }
}

#[test]
fn reg_11_encodings_that_are_not_one_chunked() {
    let say = |v: &str| format!("Transfer-Encoding: {v}\\r\\n\\r\\n0\\r\\n\\r\\n");
    for value in [
        "xchunked",
        "chunked, identity",
        "\\x0bchunked",
        "chunked\\0",
        "chunked,",
        "chunked, chunked",
    ] {
        all_refused(POST, &[&say(value)]);
    }
}

#[test]
fn reg_12_a_size_line_without_end_is_refused_within_66_bytes() {
    let mut take = requests();
    let mut buffer = BytesMut::from(&bytes(CHUNKED)[..]);
    assert_eq!(take(&mut buffer), Ok(None));
    buffer.extend_from_slice(b"3;");
    let refused_at = (2..100).find(|_| {
        buffer.extend_from_slice(b"a");
        take(&mut buffer).is_err()
    });
    assert!(refused_at.is_some_and(|n| n <= 66), "refused at: {refused_at:?}");
}
