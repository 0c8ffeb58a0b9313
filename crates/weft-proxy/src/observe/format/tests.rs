// SPDX-License-Identifier: Apache-2.0
//! Formats as users write them, over a record of every kind of value.

use std::rc::Rc;

use http::Request;
use serde_json::{Value, json};
use weft_base::issue::FieldPath;

use super::*;
use crate::http::body::BodyError;
use crate::memory::MemoryProxy;
use crate::observe::access_log::Relayed;
use crate::observe::flags::{Flag, Flags};
use crate::observe::record::Record;
use crate::table::Door;
use crate::upstream::pool::Break;
use crate::worker::Conn;

/// A request that was answered by nobody, with what a client may send.
fn record(agent: &[u8]) -> Record {
    let config = crate::tests::bed::config("sidecar~shop~client-1");
    let worker = MemoryProxy::new(config, Arc::default()).worker;
    let mut conn =
        Conn::new(Door::Forward, "127.0.0.1:8000".parse().unwrap(), "[::1]:40000".parse().unwrap());
    conn.server_name = Some("a.example".into());
    conn.told_by = Some(Box::new("192.0.2.1:444".parse().unwrap()));
    let request = Request::builder()
        .method("POST")
        .uri("/a?b=%22c")
        .header("user-agent", agent)
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .header("x-b", "second")
        .body(());
    let request = request.unwrap();
    let mut record = Record::begin(&worker, &Rc::new(conn), &request);
    record.wall_ms = 1_700_000_000_123;
    record.authority = Some("user:80".into());
    record.route = Some("HTTPRoute shop/users spec.rules[0]".into());
    record.status = 503;
    record.grpc_status = Some(14);
    record.flags = Flags::from(Flag::UF);
    record.flags.add(Flag::URX);
    record.sentence = Some("no \"way\"".into());
    record.generation = 7;
    record.bytes_sent = 12;
    record.attempts = 3;
    record
}

fn line(format: &Format, record: &mut Record, answer: &HeaderMap) -> String {
    let request = http::HeaderMap::from_iter([
        (HeaderName::from_static("x-b"), HeaderValue::from_static("second")),
        (
            HeaderName::from_static("traceparent"),
            HeaderValue::from_static("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ),
    ]);
    record.noted = Some(Box::new(Noted {
        request: Noted::of(&format.wanted().request, &request),
        response: Noted::of(&format.wanted().response, answer),
        trailers: Vec::new(),
    }));
    let mut out = Vec::new();
    format.write(&Entry::Request(record, 45), &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn an_answer_that_breaks_off_behind_its_head_is_told_from_none() {
    let of = |flag: Flag, broken: Option<Break>| {
        let mut record = record(b"curl/8");
        record.flags = Flags::from(flag);
        if let Some(by) = broken {
            record.broke(&BodyError::Upstream("reset".into(), by));
        }
        let format = json!("%RESPONSE_CODE_DETAILS%");
        let format = Format::parse(&format, &FieldPath::root()).unwrap();
        line(&format, &mut record, &HeaderMap::new())
    };
    for (flag, by, why) in [
        (Flag::UC, Break::Closed, "connection_termination"),
        (Flag::UR, Break::Reset, "remote_reset"),
        (Flag::UPE, Break::Garbage, "protocol_error"),
    ] {
        assert_eq!(of(flag, None), format!("upstream_reset_before_response_started{{{why}}}"));
        assert_eq!(of(flag, Some(by)), format!("upstream_reset_after_response_started{{{why}}}"));
    }
}

#[test]
fn every_operator_shows_what_envoys_does() {
    let mut record = record(b"curl/8");
    let answer = HeaderMap::from_iter([(
        HeaderName::from_static("content-type"),
        HeaderValue::from_static("text/plain"),
    )]);
    for (format, want) in [
        ("plain, 100 %%", "plain, 100 %"),
        ("%REQ(:METHOD)% %REQ(:PATH)%", "POST /a?b=%22c"),
        ("%REQ(X-ENVOY-ORIGINAL-PATH?:PATH):2%", "/a"),
        ("%REQ(:AUTHORITY)% %REQ(:SCHEME)% %PROTOCOL%", "user:80 http HTTP/1.1"),
        ("%REQ(X-A?X-B)% %REQ(X-A)% %REQ(X-B):3%", "second - sec"),
        ("%RESP(Content-Type)% %RESP(:STATUS)% %TRAILER(GRPC-STATUS)%", "text/plain 503 -"),
        ("%RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_SENT% %DURATION%", "503 UF,URX 12 45"),
        ("%RESPONSE_CODE_DETAILS%", "upstream_reset_before_response_started{connection_failure}"),
        ("%RESPONSE_FLAGS_LONG%", "UpstreamConnectionFailure,UpstreamRetryLimitExceeded"),
        ("%GRPC_STATUS% %GRPC_STATUS(SNAKE_STRING)%", "Unavailable UNAVAILABLE"),
        ("%GRPC_STATUS(NUMBER)% %GRPC_STATUS_NUMBER%", "14 14"),
        ("%START_TIME%", "2023-11-14T22:13:20.123Z"),
        ("%START_TIME(%Y/%m/%dT%H:%M:%S.%3f%z)%", "2023/11/14T22:13:20.123+0000"),
        ("%START_TIME(\"%s\")%x", "1700000000x"),
        ("%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_REMOTE_PORT%", "[::1]:40000 40000"),
        ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "::1"),
        ("%DOWNSTREAM_DIRECT_REMOTE_ADDRESS% %DOWNSTREAM_DIRECT_REMOTE_PORT%", "192.0.2.1:444 444"),
        ("%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%", "192.0.2.1"),
        ("%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_PORT%", "127.0.0.1:8000 8000"),
        ("%UPSTREAM_HOST% %UPSTREAM_CLUSTER% %VIRTUAL_CLUSTER_NAME%", "- - -"),
        ("%REQUESTED_SERVER_NAME% %DOWNSTREAM_PEER_URI_SAN%", "a.example -"),
        ("%REQUESTED_SERVER_NAME(SNI_FIRST)%", "a.example"),
        ("%REQUESTED_SERVER_NAME(HOST_FIRST:ORIG)%", "user:80"),
        ("%REQUESTED_SERVER_NAME(SNI_ONLY:HOST)%", "a.example"),
        ("%QUERY_PARAMS% %QUERY_PARAMS(ORIG)% %QUERY_PARAMS(DECODED)%", "b=%22c b=%22c b=\\\"c"),
        ("%ROUTE_NAME%", "HTTPRoute shop/users spec.rules[0]"),
        ("%TRACE_ID%", "0af7651916cd43dd8448eb211c80319c"),
        ("%WEFT_GENERATION% %UPSTREAM_REQUEST_ATTEMPT_COUNT%", "7 3"),
        ("\"%WEFT_SENTENCE%\" %HOSTNAME%", "\"no \\\"way\\\"\" client-1"),
    ] {
        let compiled = Format::text(format).unwrap();
        assert_eq!(line(&compiled, &mut record, &answer), want, "{format}");
    }
    record.status = 0;
    let none = Format::text("%RESP(:STATUS)% %RESPONSE_CODE%").unwrap();
    assert_eq!(line(&none, &mut record, &answer), "- 0", "there was no answer");
    // Every operator of the list that needs no argument is known.
    for (name, _) in OPERATORS {
        let (name, argument) = name.split_once('(').map_or((*name, ""), |(n, _)| (n, "(X-A)"));
        let argument = if matches!(name, "START_TIME" | "GRPC_STATUS") { "" } else { argument };
        let format = Format::text(&format!("%{name}{argument}%"));
        assert!(format.is_ok(), "{name}: {format:?}");
    }
}

/// A cut that fell into an escape left a line that is no JSON, for whoever sent the header.
#[test]
fn a_cut_falls_into_no_escape() {
    let sent = b"ab\"cd?\"e";
    for (most, want) in [(2, "ab"), (3, "ab\""), (4, "ab\"c"), (99, "ab\"cd")] {
        let format = json!({"a": format!("%REQ_WITHOUT_QUERY(USER-AGENT):{most}%")});
        let format = Format::parse(&format, &FieldPath::root()).unwrap();
        let said = line(&format, &mut record(sent), &HeaderMap::new());
        let read: serde_json::Value = serde_json::from_str(&said).expect(&said);
        assert_eq!(read["a"], want);
    }
}

#[test]
fn what_is_no_format_says_where() {
    for (format, want) in [
        ("%", "the % at byte 0 begins no operator that ends"),
        ("a %REQ(", "the % at byte 2 begins no operator that ends"),
        ("%FOO%", "%FOO% is no operator of the access log"),
        ("%FOO(X)%", "%FOO(X)% is no operator of the access log"),
        ("%COMMON_DURATION(DS_RX_BEG:ever)%", "\"ever\" is no time that weft records"),
        ("%REQ%", "%REQ%: it names no header"),
        ("%REQ(a b)%", "\"a b\" cannot be the name of a header"),
        ("%REQ(A):x%", "after the colon stands a number of bytes"),
        ("%REQ(A)x%", "after the bracket stands nothing but :LENGTH"),
        ("%PROTOCOL(x)%", "%PROTOCOL(x)%: it takes no argument"),
        ("%REQUESTED_SERVER_NAME(x)%", "SNI_ONLY, SNI_FIRST or HOST_FIRST"),
        ("%REQUESTED_SERVER_NAME(SNI_FIRST:HOST)%", "is not recorded; write ORIG"),
        ("%QUERY_PARAMS(x)%", "ORIG (as they were sent) or DECODED"),
        ("%GRPC_STATUS(x)%", "CAMEL_STRING, SNAKE_STRING or NUMBER"),
        ("%START_TIME(%Q %k %!)%", "is no form of a time"),
    ] {
        let wrong = Format::text(format).unwrap_err().to_string();
        assert!(wrong.contains(want), "{format}: {wrong}");
    }
    // Envoy's, which mean nothing here: they are told and taken.
    let odd = "%DYNAMIC_METADATA(a:b)% %CEL(request.headers['x'])%:3 %DYNAMIC_METADATA(a:b)%";
    let never: Vec<String> =
        Format::text(odd).unwrap().never().iter().map(ToString::to_string).collect();
    assert_eq!(never, ["DYNAMIC_METADATA(a:b)", "CEL(request.headers['x'])"]);
    for name in [
        "BYTES_RETRANSMITTED",
        "DOWNSTREAM_CX_RTT",
        "REQUEST_TX_DURATION",
        "LOCAL_REPLY_BODY",
        "ROUTE_RESOLUTION_COUNT",
        "UPSTREAM_SERVER_NAME",
        "DOWNSTREAM_TLS_GROUP",
        "UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID",
        "DOWNSTREAM_PEER_OTHERNAME_SAN",
        "DOWNSTREAM_PEER_CHAIN_SERIALS",
        "DOWNSTREAM_PEER_ISSUER_FINGERPRINT_256",
    ] {
        let format = Format::text(&format!("%{name}%")).unwrap();
        assert_eq!(&*format.never()[0], name);
    }
    assert!(Format::istio().never().is_empty() && Format::json().never().is_empty());
    let at = FieldPath::new("spec.accessLog.format");
    let map = json!({"a": "%PROTOCOL%", "b": {"c": "%FOO%", "d.e": ["%BAR%"]}, "f": 1});
    let issues = Format::parse(&map, &at).unwrap_err();
    let paths: Vec<&str> = issues.iter().map(|i| i.path.as_str()).collect();
    assert_eq!(paths, ["spec.accessLog.format.b.c", "spec.accessLog.format.b[\"d.e\"][0]"]);
    assert!(Format::parse(&json!(1), &at).is_err());
    let long = "x".repeat(17_000);
    assert!(Format::text(&long).unwrap_err().to_string().contains("at most 16384"));
}

#[test]
fn a_dictionary_keeps_types_and_says_null() {
    let mut record = record(b"curl/8");
    let map = json!({
        "code": "%RESPONSE_CODE%", "who": "%REQ(USER-AGENT)%", "none": "%UPSTREAM_HOST%",
        "text": "%PROTOCOL% %RESPONSE_CODE% %UPSTREAM_HOST%", "fixed": 7,
        "deep": {"a": ["%DURATION%"]},
    });
    let format = Format::parse(&map, &FieldPath::root()).unwrap();
    let shown: Value =
        serde_json::from_str(&line(&format, &mut record, &HeaderMap::new())).unwrap();
    let want = json!({
        "code": 503, "who": "curl/8", "none": null, "text": "HTTP/1.1 503 -", "fixed": 7,
        "deep": {"a": [45]},
    });
    assert_eq!(shown, want);
    let shown = line(&format.omitting_empty(true), &mut record, &HeaderMap::new());
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((shown.get("none"), &shown["text"]), (None, &json!("HTTP/1.1 503 ")));
}

#[test]
fn an_opaque_connection_has_dashes_where_http_would_stand() {
    let conn =
        Conn::new(Door::Forward, "127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap());
    let relayed = Relayed {
        conn: &conn,
        wall_ms: 0,
        ms: 5,
        backend: None,
        endpoint: None,
        upstream: None,
        handshake: false,
        tries: 1,
        flags: Flag::UF.into(),
        received: 3,
        sent: 4,
        sentence: Some("gone".into()),
    };
    let entry = Entry::Connection(&relayed);
    let mut text = Vec::new();
    Format::istio().write(&entry, &mut text);
    let text = String::from_utf8(text).unwrap();
    let want = "[1970-01-01T00:00:00.000Z] \"- - -\" 0 UF - \
        upstream_reset_before_response_started{connection_failure} \"gone\" 3 4 5 - \"-\" \"-\" \
        \"-\" \"-\" \"-\" - - 127.0.0.1:1 127.0.0.1:2 - - generation=- node=-";
    assert_eq!(text, want);
    let mut json = Vec::new();
    Format::json().write(&entry, &mut json);
    let json: Value = serde_json::from_slice(&json).unwrap();
    assert_eq!((&json["method"], &json["bytes_sent"]), (&Value::Null, &json!(4)));
    assert_eq!(json.get("generation"), None);
}

/// CVE numbers stand in the project's list of regressions; the class is a peer that writes lines.
#[test]
fn reg_44_nothing_a_client_sends_ends_a_line_or_a_field() {
    let (text, json) = (Format::istio(), Format::json());
    let agents: [&[u8]; 7] = [
        b"a\" 200 - via_upstream \"",
        b"back\\slash\\",
        b"tab\there",
        b"\xff\xfe latin",
        "ü\u{85}\u{2028}\u{2029}".as_bytes(),
        "\u{202e}right to left".as_bytes(),
        b"%REQ(AUTHORIZATION)% %s {} \x1b",
    ];
    for agent in agents {
        // What no header may have is refused before a record is begun.
        let Ok(value) = HeaderValue::from_bytes(agent) else {
            assert!(agent.contains(&0x1b), "{agent:?}");
            continue;
        };
        let mut record = record(b"x");
        record.user_agent = Some(value);
        let plain = line(&text, &mut record, &HeaderMap::new());
        assert_eq!(plain.lines().count(), 1, "{plain:?}");
        assert!(!plain.chars().any(|c| c.is_control() || "\u{2028}\u{2029}".contains(c)));
        let quotes = plain.replace("\\\\", "").replace("\\\"", "").matches('"').count();
        assert_eq!(quotes, 14, "seven quoted fields and no more: {plain}");
        let written = line(&json, &mut record, &HeaderMap::new());
        assert_eq!(written.lines().count(), 1);
        let read: Value = serde_json::from_str(&written).unwrap();
        assert_eq!(read.as_object().map(serde_json::Map::len), Some(26), "{written}");
        if let Ok(agent) = std::str::from_utf8(agent) {
            assert_eq!(read["user_agent"], agent);
        }
    }
}

#[test]
fn any_value_makes_one_line_of_each_form() {
    let (text, json) = (Format::istio(), Format::json());
    let mut rng = weft_base::rng::Rng::seeded(44);
    let mut record = record(b"x");
    for _ in 0..2_000 {
        let n = usize::try_from(rng.below(40)).unwrap();
        let bytes: Vec<u8> = (0..n).map(|_| u8::try_from(rng.below(256)).unwrap()).collect();
        record.user_agent = HeaderValue::from_bytes(&bytes).ok();
        record.authority = Some(String::from_utf8_lossy(&bytes).into_owned().into());
        assert_eq!(line(&text, &mut record, &HeaderMap::new()).lines().count(), 1);
        let written = line(&json, &mut record, &HeaderMap::new());
        let read: Value = serde_json::from_str(&written).unwrap();
        assert_eq!(read["authority"], *String::from_utf8_lossy(&bytes), "{written}");
    }
}
