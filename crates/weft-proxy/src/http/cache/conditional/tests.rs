// SPDX-License-Identifier: Apache-2.0
//! What clients get of one stored answer, as a table (RFC 9110 §13, §14).

use std::sync::Arc;

use bytes::Bytes;
use weft_base::clock::Mono;
use weft_model::Cache;

use super::super::object::{Exchange, storable};
use super::*;

const ETAG_A: &str = "ETag: \"a\"";
const MODIFIED: &str = "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT";

fn headers(lines: &[&str]) -> HeaderMap {
    let pair = |line: &&str| {
        let (name, value) = line.split_once(": ").unwrap();
        let name = HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()).unwrap();
        (name, HeaderValue::from_str(value).unwrap())
    };
    let mut out = HeaderMap::new();
    lines.iter().map(pair).for_each(|(name, value)| {
        out.append(name, value);
    });
    out
}

fn object(status: u16, lines: &[&str]) -> Object {
    let mut headers = headers(lines);
    headers.insert("cache-control", HeaderValue::from_static("max-age=60"));
    let exchange = Exchange { asked: Mono(0), came: Mono(0), wall_ms: 1_800_000_000_000 };
    let (status, none) = (StatusCode::from_u16(status).unwrap(), HeaderMap::new());
    let (said, times) = storable(&none, status, &headers, &Cache::default(), exchange).unwrap();
    let (body, lane) = (Bytes::from_static(b"0123456789"), Arc::from(""));
    Object { status, headers, body, said, times, vary: Vec::new(), lane }
}

#[test]
fn conditions_and_ranges_are_judged_as_the_origin_would() {
    use Part::{Bytes, NotModified, Unsatisfiable, Whole};
    let both = object(200, &[ETAG_A, MODIFIED]);
    let weak = object(200, &["ETag: W/\"a\"", MODIFIED]);
    let none = object(200, &["Date: Sun, 06 Nov 1994 08:49:37 GMT"]);
    let missing = object(404, &[ETAG_A, MODIFIED]);
    let rows: &[(&str, &Object, &[&str], Part)] = &[
        ("13.1.2", &both, &["If-None-Match: \"a\""], NotModified),
        ("13.1.2", &both, &["If-None-Match: W/\"a\""], NotModified),
        ("13.1.2", &weak, &["If-None-Match: \"a\""], NotModified),
        ("13.1.2", &both, &["If-None-Match: \"b\", \"a\""], NotModified),
        ("13.1.2", &both, &["If-None-Match: \"b\"", "If-None-Match: \"a\""], NotModified),
        ("13.1.2", &both, &["If-None-Match: *"], NotModified),
        ("13.1.2", &none, &["If-None-Match: *"], NotModified),
        ("13.1.2", &both, &["If-None-Match: \"b\""], Whole),
        ("13.1.2", &both, &["If-None-Match: \"A\""], Whole),
        ("13.1.2", &both, &["If-None-Match: a"], Whole),
        ("13.1.2", &none, &["If-None-Match: \"a\""], Whole),
        ("13.1.2", &both, &["If-None-Match: \"b, a\""], Whole),
        ("13.1.3", &both, &["If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT"], NotModified),
        ("13.1.3", &both, &["If-Modified-Since: Sun, 06 Nov 1994 08:49:38 GMT"], NotModified),
        ("13.1.3", &both, &["If-Modified-Since: Sun, 06 Nov 1994 08:49:36 GMT"], Whole),
        ("13.1.3", &both, &["If-Modified-Since: Sunday, 06-Nov-94 08:49:37 GMT"], NotModified),
        ("13.1.3", &both, &["If-Modified-Since: yesterday"], Whole),
        ("9111-4.3.2", &none, &["If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT"], NotModified),
        (
            "13.2.2",
            &both,
            &["If-None-Match: \"b\"", "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT"],
            Whole,
        ),
        ("15.4.5", &missing, &["If-None-Match: \"a\""], Whole),
        ("14.1.2", &both, &["Range: bytes=0-4"], Bytes(0..5)),
        ("14.1.2", &both, &["Range: bytes=5-"], Bytes(5..10)),
        ("14.1.2", &both, &["Range: bytes=-3"], Bytes(7..10)),
        ("14.1.2", &both, &["Range: bytes=-99"], Bytes(0..10)),
        ("14.1.2", &both, &["Range: bytes=8-99999999999999999999999"], Bytes(8..10)),
        ("14.1.2", &both, &["Range: Bytes=9-9"], Bytes(9..10)),
        ("14.1.2", &both, &["Range: bytes=10-"], Unsatisfiable),
        ("14.1.2", &both, &["Range: bytes=10-11"], Unsatisfiable),
        ("14.1.2", &both, &["Range: bytes=-0"], Unsatisfiable),
        ("14.1.1", &both, &["Range: bytes=4-2"], Whole),
        ("14.2", &both, &["Range: bytes=0-1,3-4"], Whole),
        ("14.2", &both, &["Range: lines=0-1"], Whole),
        ("14.2", &both, &["Range: bytes=a-b"], Whole),
        ("14.2", &both, &["Range: bytes"], Whole),
        ("14.2", &both, &["Range: bytes=+1-2"], Whole),
        ("14.2", &missing, &["Range: bytes=0-4"], Whole),
        ("13.1.5", &both, &["Range: bytes=0-4", "If-Range: \"a\""], Bytes(0..5)),
        ("13.1.5", &both, &["Range: bytes=0-4", "If-Range: \"b\""], Whole),
        ("13.1.5", &weak, &["Range: bytes=0-4", "If-Range: W/\"a\""], Whole),
        (
            "13.1.5",
            &both,
            &["Range: bytes=0-4", "If-Range: Sun, 06 Nov 1994 08:49:37 GMT"],
            Bytes(0..5),
        ),
        ("13.1.5", &both, &["Range: bytes=0-4", "If-Range: Sun, 06 Nov 1994 08:49:38 GMT"], Whole),
        ("13.2.2", &both, &["Range: bytes=0-4", "If-None-Match: \"a\""], NotModified),
    ];
    for (section, object, asked, want) in rows {
        assert_eq!(part(&headers(asked), false, object), *want, "§{section} {asked:?}");
    }
    assert_eq!(part(&headers(&["Range: bytes=0-4"]), true, &both), Whole, "HEAD has no ranges");
}

#[test]
fn answers_fit_their_part() {
    let both = object(200, &[ETAG_A, MODIFIED, "Content-Type: text/plain", "Content-Length: 10"]);
    for (part, status, length, range) in [
        (Part::Whole, 200, Some("10"), None),
        (Part::NotModified, 304, None, None),
        (Part::Bytes(2..5), 206, Some("3"), Some("bytes 2-4/10")),
        (Part::Unsatisfiable, 416, Some("0"), Some("bytes */10")),
    ] {
        let made = answer(&both, &part, false);
        let header = |name| made.headers().get(name).map(|v: &HeaderValue| v.to_str().unwrap());
        assert_eq!(made.status().as_u16(), status);
        assert_eq!(header(CONTENT_LENGTH), length, "{part:?}");
        assert_eq!(header(CONTENT_RANGE), range, "{part:?}");
        assert_eq!(header(ETAG), Some("\"a\""));
    }
    let head = answer(&both, &Part::Whole, true);
    assert_eq!(head.headers().get(CONTENT_LENGTH).unwrap(), "10");
    assert!(http_body::Body::is_end_stream(head.body()));
}

#[test]
fn the_origin_is_asked_about_what_is_stored() {
    let client = ["If-None-Match: \"mine\"", "Range: bytes=0-1", "If-Range: \"mine\"", "X: 1"];
    let mut asked = headers(&client);
    assert!(ask_whether(&mut asked, &object(200, &[ETAG_A, MODIFIED])));
    let since = "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT";
    assert_eq!(asked, headers(&["X: 1", "If-None-Match: \"a\"", since]));
    let mut asked = headers(&client);
    assert!(!ask_whether(&mut asked, &object(200, &[])));
    assert_eq!(asked, headers(&client));
}
