// SPDX-License-Identifier: Apache-2.0
//! Where a message ends: lines 1 to 3, 6, and 9 to 12.

use super::*;

fn post(lines: &str) -> Vec<u8> {
    format!("POST / HTTP/1.1\r\nHost: user\r\n{lines}").into_bytes()
}

fn length(value: &str) -> Vec<u8> {
    post(&format!("Content-Length: {value}\r\n\r\nabcde"))
}

fn encoding(value: &str) -> Vec<u8> {
    post(&format!("Transfer-Encoding: {value}\r\n\r\n3\r\nabc\r\n0\r\n\r\n"))
}

fn chunks(body: &str) -> Vec<u8> {
    post(&format!("Transfer-Encoding: chunked\r\n\r\n{body}"))
}

fn trailer(line: &str) -> Vec<u8> {
    chunks(&format!("3\r\nabc\r\n0\r\n{line}\r\n\r\n"))
}

refused! {
    reg_01_content_length_then_transfer_encoding 400 "both Content-Length"
        post("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    reg_01_transfer_encoding_then_content_length 400 "both Content-Length"
        post("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n");
    reg_01_content_length_zero_beside_transfer_encoding 400 "both Content-"
        post("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    reg_01_names_in_other_cases 400 "both Content-Length"
        post("CONTENT-LENGTH: 3\r\ntRANSFER-eNCODING: Chunked\r\n\r\n0\r\n\r\n");
    reg_01_far_apart 400 "both Content-Length"
        post(&format!("Content-Length: 3\r\n{}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "X-A: b\r\n".repeat(50)));
    reg_01_on_a_get 400 "both Content-Length"
        b"GET / HTTP/1.1\r\nHost: user\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n\
          0\r\n\r\n".to_vec();
}

refused! {
    reg_02_content_length_plus_sign 400 "is not a number" length("+5");
    reg_02_content_length_minus_zero 400 "is not a number" length("-0");
    reg_02_content_length_negative 400 "is not a number" length("-5");
    reg_02_content_length_hexadecimal 400 "is not a number" length("0x5");
    reg_02_content_length_with_a_space 400 "is not a number" length("5 5");
    reg_02_content_length_with_a_tab 400 "is not a number" length("5\t5");
    reg_02_content_length_underscore 400 "is not a number" length("1_0");
    reg_02_content_length_empty 400 "is not a number" length("");
    reg_02_content_length_blank 400 "is not a number" length(" \t ");
    reg_02_content_length_letters 400 "is not a number" length("abc");
    reg_02_content_length_trailing_letter 400 "is not a number" length("5a");
    reg_02_content_length_decimal 400 "is not a number" length("5.0");
    reg_02_content_length_exponent 400 "is not a number" length("5e0");
    reg_02_content_length_quoted 400 "is not a number" length("\"5\"");
    reg_02_content_length_semicolon 400 "is not a number" length("5;5");
    reg_02_content_length_beyond_64_bits 400 "is not a number"
        length("18446744073709551621");
    reg_02_content_length_full_width_digit 400 "is not a number" length("５");
    reg_02_content_length_list_of_equals 400 "is not a number" length("5, 5");
    reg_02_content_length_list_that_differs 400 "is not a number" length("5, 0");
    reg_02_content_length_trailing_comma 400 "is not a number" length("5,");
    reg_02_content_length_twice_the_same 400 "more than once"
        length("5\r\nContent-Length: 5");
    reg_02_content_length_twice_different 400 "more than once"
        length("5\r\nContent-Length: 0");
    reg_02_content_length_second_is_empty 400 "is not a number"
        length("5\r\nContent-Length:");
}

refused! {
    reg_03_chunked_in_http_1_0 400 "HTTP/1.0 has no Transfer-Encoding"
        b"POST / HTTP/1.0\r\nHost: user\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec();
    reg_03_chunked_in_http_1_0_kept_alive 400 "HTTP/1.0 has no Transfer-Encoding"
        b"POST / HTTP/1.0\r\nHost: user\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\
          \r\n0\r\n\r\n".to_vec();
}

refused! {
    reg_09_chunk_extension_with_lf 400 "without carriage return"
        chunks("3;a\nb\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_extension_with_control 400 "odd behind the number"
        chunks("3;a\x01b\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_extension_with_nul 400 "odd behind the number"
        chunks("3;a\0b\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_extension_with_cr 400 "odd behind the number"
        chunks("3;a\rb\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_extension_with_a_space 400 "odd behind the number"
        chunks("3; a=b\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_extension_name_no_token 400 "odd behind the number"
        chunks("3;a[=b\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_extension_value_missing 400 "odd behind the number"
        chunks("3;a=\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_extension_unclosed_quote 400 "odd behind the number"
        chunks("3;a=\"b\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_bare_semicolon 400 "odd behind the number"
        chunks("3;\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_size_0x 400 "not a hexadecimal number"
        chunks("0x3\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_size_underscore 400 "not a hexadecimal number"
        chunks("0_3\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_size_negative 400 "not a hexadecimal number"
        chunks("-3\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_size_plus 400 "not a hexadecimal number"
        chunks("+3\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_size_empty 400 "not a hexadecimal number"
        chunks("\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_size_leading_space 400 "not a hexadecimal number"
        chunks(" 3\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_size_trailing_space 400 "odd behind the number"
        chunks("3 \r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_size_trailing_tab 400 "odd behind the number"
        chunks("3\t\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_size_bare_lf 400 "without carriage return"
        chunks("3\nabc\r\n0\r\n\r\n");
    reg_09_chunk_size_overflow_64_bits 400 "more than 15 digits"
        chunks("10000000000000003\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_size_leading_zeros 400 "more than 15 digits"
        chunks("0000000000000003\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_without_crlf 400 "not followed by the end of a line"
        chunks("3\r\nabc0\r\n\r\n");
    reg_09_chunk_spill 400 "not followed by the end of a line"
        chunks("3\r\nabcdef\r\n0\r\n\r\n");
    reg_09_chunk_ended_by_lf 400 "not followed by the end of a line"
        chunks("3\r\nabc\n0\r\n\r\n");
    reg_09_last_chunk_ended_by_lf 400 "without carriage return"
        chunks("3\r\nabc\r\n0\n\r\n");
    reg_12_chunk_size_line_too_long 400 "longer than 64 bytes"
        chunks(&format!("3;{}", "a".repeat(70)));
    reg_12_chunk_size_line_of_zeros 400 "more than 15 digits"
        chunks(&"0".repeat(70));
}

refused! {
    reg_10_trailer_content_length 400 "only headers may have"
        trailer("Content-Length: 3");
    reg_10_trailer_transfer_encoding 400 "only headers may have"
        trailer("Transfer-Encoding: chunked");
    reg_10_trailer_host 400 "only headers may have" trailer("Host: other");
    reg_10_trailer_authorization 400 "only headers may have"
        trailer("Authorization: Bearer x");
    reg_10_trailer_cookie 400 "only headers may have" trailer("Cookie: a=b");
    reg_10_trailer_connection 400 "only headers may have"
        trailer("Connection: close");
    reg_10_trailer_forwarded_for 400 "only headers may have"
        trailer("X-Forwarded-For: 6.6.6.6");
    reg_10_trailer_of_wefts_own 400 "only headers may have"
        trailer("X-Weft-Source: admin");
    reg_10_trailer_bare_lf 400 "without carriage return" trailer("X-A: b\nX-C: d");
    reg_10_trailer_folded 400 "folded" trailer("X-A: b\r\n c");
    reg_10_trailer_without_colon 400 "no colon" trailer("X-A");
}

refused! {
    reg_11_encoding_xchunked 400 "does not end with one" encoding("xchunked");
    reg_11_encoding_chunked_identity 400 "does not end with one"
        encoding("chunked, identity");
    reg_11_encoding_identity 400 "does not end with one" encoding("identity");
    reg_11_encoding_doubled 400 "more than once" encoding("chunked, chunked");
    reg_11_encoding_two_lines 400 "more than once"
        encoding("chunked\r\nTransfer-Encoding: chunked");
    reg_11_encoding_trailing_comma 400 "does not end with one" encoding("chunked,");
    reg_11_encoding_leading_comma 400 "does not end with one" encoding(",chunked");
    reg_11_encoding_empty 400 "does not end with one" encoding("");
    reg_11_encoding_parameter 400 "does not end with one"
        encoding("chunked;q=1");
    reg_11_encoding_quoted 400 "does not end with one" encoding("\"chunked\"");
    reg_11_encoding_gzip_after_chunked 400 "does not end with one"
        encoding("chunked, gzip");
    reg_11_encoding_gzip_alone 400 "does not end with one" encoding("gzip");
    reg_11_encoding_vertical_tab 400 "control character" encoding("\x0bchunked");
    reg_11_encoding_form_feed 400 "control character" encoding("\x0cchunked");
    reg_11_encoding_nul 400 "zero byte" encoding("chunked\0");
    reg_11_encoding_non_ascii_space 400 "does not end with one"
        encoding("\u{a0}chunked");
    reg_11_encoding_gzip_then_chunked 501 "a coding besides" encoding("gzip, chunked");
    reg_11_encoding_space_before_colon 400 "between a header's name and its colon"
        post("Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n");
    reg_11_encoding_folded 400 "folded"
        post("Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n");
}

/// What the refused ones are like, but right.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_without_the_fault_is_taken() {
    for bytes in [
        length("5"),
        length(" 5 "),
        length("005"),
        encoding("chunked"),
        encoding("Chunked"),
        encoding(" chunked "),
        chunks("3;a=b\r\nabc\r\n0\r\n\r\n"),
        chunks("003\r\nabc\r\n000\r\n\r\n"),
        trailer("X-Sum: 9"),
    ] {
        let rig = Rig::sidecar().await;
        rig.takes(&bytes).await;
        assert!(rig.seen().contains("/last"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trailer_stays_behind_the_body() {
    let rig = Rig::sidecar().await;
    rig.takes(&trailer("X-Role: admin")).await;
    let seen = rig.seen().to_lowercase();
    let (head, rest) = seen.split_once("\r\n\r\n").unwrap();
    assert!(!head.contains("x-role"), "{seen}");
    assert!(rest.contains("\r\n0\r\nx-role: admin\r\n\r\n"), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_06_a_body_behind_an_answer_of_wefts_own_is_no_request() {
    let direct = Action::Direct { status: 404, body: "none".into() };
    let rules = vec![rule("/own", direct), rule("/", Action::Forward(vec![to("user", "", 1)]))];
    let rig = Rig::gateway(Edge::default(), rules).await;
    let n = SMUGGLED.len();
    let bytes =
        format!("POST /own HTTP/1.1\r\nHost: user\r\nContent-Length: {n}\r\n\r\n{SMUGGLED}{LAST}");
    let played = rig.play(bytes.as_bytes()).await;
    let answers: Vec<&str> = played.text.split("HTTP/1.1 ").skip(1).collect();
    assert!(answers[0].starts_with("404 "), "{played:?}");
    assert!(answers.len() <= 2 && !rig.seen().contains("/smuggled"), "{played:?}");
    if let Some(second) = answers.get(1) {
        assert!(second.starts_with("200 ") && rig.seen().contains("/last"), "{played:?}");
    } else {
        assert!(played.closed, "{played:?}");
    }
}

/// Stuck connections cost nothing: each is refused as soon as its line is too long.
#[tokio::test(flavor = "multi_thread")]
async fn reg_12_two_hundred_endless_size_lines_end() {
    let rig = Rig::sidecar().await;
    let bytes = chunks(&format!("3;{}", "a".repeat(64)));
    let all = (0..200).map(|_| rig.play(&bytes));
    for played in futures_util::future::join_all(all).await {
        assert!(played.closed && played.text.starts_with("HTTP/1.1 400 "), "{played:?}");
    }
}

/// A request's body never ends with its connection.
#[tokio::test(flavor = "multi_thread")]
async fn reg_03_an_old_request_without_a_length_has_no_body() {
    let rig = Rig::sidecar().await;
    let played = rig.play(b"POST / HTTP/1.0\r\nHost: user\r\n\r\nabcde").await;
    assert!(played.closed, "unanswered: {played:?}");
    let seen = rig.seen();
    assert!(!seen.contains("abcde") && !seen.contains("chunked"), "its body is passed on: {seen}");
}

/// Whatever was asked for: an answer that is not 101 ends the connection, and what came behind the
/// request is never the next one.
async fn ends_behind_an_upgrade(protocol: &str) {
    let rig = Rig::sidecar().await;
    let wish = format!(
        "GET /up HTTP/1.1\r\nHost: user\r\nConnection: upgrade\r\nUpgrade: {protocol}\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n{SMUGGLED}"
    );
    let played = rig.play(wish.as_bytes()).await;
    assert!(rig.seen().contains("GET /up ") && played.text.starts_with("HTTP/1.1 200 "));
    assert!(!rig.seen().contains("/smuggled"), "smuggled: {}", rig.seen());
    assert!(played.closed && played.answers() == 1, "left open: {played:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_04_an_upgrade_to_anything_that_gets_200_ends_the_connection() {
    ends_behind_an_upgrade("anything").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_04_an_upgrade_to_tls_that_gets_200_ends_the_connection() {
    ends_behind_an_upgrade("TLS/1.2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_04_a_websocket_that_gets_200_ends_the_connection() {
    ends_behind_an_upgrade("websocket").await;
}

async fn connects_nowhere(rig: &Rig) {
    let ask = format!("CONNECT user:80 HTTP/1.1\r\nHost: user:80\r\n\r\n{SMUGGLED}");
    let played = rig.play(ask.as_bytes()).await;
    assert!(!rig.seen().contains("/smuggled"), "forwarded before it was granted: {}", rig.seen());
    assert!(played.text.starts_with("HTTP/1.1 405 "), "granted: {played:?}");
    assert!(played.closed && played.answers() == 1, "answered twice: {played:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_05_connect_needs_a_rule_that_names_it() {
    let rules = vec![rule("/", Action::Forward(vec![to("user", "", 1)]))];
    connects_nowhere(&Rig::gateway(Edge::default(), rules).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_05_connect_is_nothing_for_a_port_of_a_service() {
    connects_nowhere(&Rig::sidecar().await).await;
}

/// A request without a path before an access list that asks for one: it is refused, and the proxy
/// goes on.
#[tokio::test(flavor = "multi_thread")]
async fn reg_64_connect_without_a_path_before_an_access_list() {
    let path = AccessTest::Path(PathMatch::StringPrefix("/admin".into()));
    let denied = AccessPolicy { name: "p".into(), who: AccessTest::Always, what: path };
    let list = Access { effect: Effect::Deny, policies: vec![denied] };
    let mut guarded = rule("/", Action::Forward(vec![to("user", "", 1)]));
    guarded.filters.push(Filter::Access(Arc::new(list)));
    guarded.matches.clear();
    let rig = Rig::gateway(Edge::default(), vec![guarded]).await;
    connects_nowhere(&rig).await;
    rig.takes(b"GET / HTTP/1.1\r\nHost: user\r\n\r\n").await;
    let denied = rig.play(b"GET /admin HTTP/1.1\r\nHost: user\r\nConnection: close\r\n\r\n").await;
    assert!(denied.text.starts_with("HTTP/1.1 403 "), "{denied:?}");
}

/// Granted by a rule, but there is nobody: what came with it goes nowhere.
#[tokio::test(flavor = "multi_thread")]
async fn reg_05_early_data_of_a_connect_that_fails_is_no_request() {
    let mut all = http_service("user", &[nobody().await]);
    all.push(gateway(None));
    let mut granted = rule("/", Action::Forward(vec![to("user", "", 1)]));
    granted.matches[0].path = None;
    granted.matches[0].method = Some(StringMatch::Exact("CONNECT".into()));
    let own = rule("/", Action::Direct { status: 200, body: "smuggled".into() });
    all.push(gateway_route("r", &[], vec![granted, own]));
    let bed = Bed::gateway(all).await;
    let (_origin, seen) = naive().await;
    let rig = Rig { at: bed.listener(), _bed: bed, seen, _origin };
    let ask = format!("CONNECT user:80 HTTP/1.1\r\nHost: user:80\r\n\r\n{SMUGGLED}");
    let played = rig.play(ask.as_bytes()).await;
    assert!(played.text.starts_with("HTTP/1.1 503 "), "{played:?}");
    assert!(played.closed && played.answers() == 1, "answered twice: {played:?}");
}
