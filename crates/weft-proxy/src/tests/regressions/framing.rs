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

refused! { BOTH:
    reg_01_content_length_then_transfer_encoding "length-and-encoding" 400 "both Content-Length"
        post("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    reg_01_transfer_encoding_then_content_length "length-and-encoding" 400 "both Content-Length"
        post("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n");
    reg_01_content_length_zero_beside_transfer_encoding "length-and-encoding" 400 "both Content-"
        post("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    reg_01_names_in_other_cases "length-and-encoding" 400 "both Content-Length"
        post("CONTENT-LENGTH: 3\r\ntRANSFER-eNCODING: Chunked\r\n\r\n0\r\n\r\n");
    reg_01_far_apart "length-and-encoding" 400 "both Content-Length"
        post(&format!("Content-Length: 3\r\n{}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "X-A: b\r\n".repeat(50)));
    reg_01_on_a_get "length-and-encoding" 400 "both Content-Length"
        b"GET / HTTP/1.1\r\nHost: user\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n\
          0\r\n\r\n".to_vec();
}

refused! { LENGTH:
    reg_02_content_length_plus_sign "length-number" 400 "is not a number" length("+5");
    reg_02_content_length_minus_zero "length-number" 400 "is not a number" length("-0");
    reg_02_content_length_negative "length-number" 400 "is not a number" length("-5");
    reg_02_content_length_hexadecimal "length-number" 400 "is not a number" length("0x5");
    reg_02_content_length_with_a_space "length-number" 400 "is not a number" length("5 5");
    reg_02_content_length_with_a_tab "length-number" 400 "is not a number" length("5\t5");
    reg_02_content_length_underscore "length-number" 400 "is not a number" length("1_0");
    reg_02_content_length_empty "length-number" 400 "is not a number" length("");
    reg_02_content_length_blank "length-number" 400 "is not a number" length(" \t ");
    reg_02_content_length_letters "length-number" 400 "is not a number" length("abc");
    reg_02_content_length_trailing_letter "length-number" 400 "is not a number" length("5a");
    reg_02_content_length_decimal "length-number" 400 "is not a number" length("5.0");
    reg_02_content_length_exponent "length-number" 400 "is not a number" length("5e0");
    reg_02_content_length_quoted "length-number" 400 "is not a number" length("\"5\"");
    reg_02_content_length_semicolon "length-number" 400 "is not a number" length("5;5");
    reg_02_content_length_beyond_64_bits "length-number" 400 "is not a number"
        length("18446744073709551621");
    reg_02_content_length_full_width_digit "length-number" 400 "is not a number" length("５");
    reg_02_content_length_list_of_equals "length-number" 400 "is not a number" length("5, 5");
    reg_02_content_length_list_that_differs "length-number" 400 "is not a number" length("5, 0");
    reg_02_content_length_trailing_comma "length-number" 400 "is not a number" length("5,");
    reg_02_content_length_twice_the_same "length-twice" 400 "more than once"
        length("5\r\nContent-Length: 5");
    reg_02_content_length_twice_different "length-twice" 400 "more than once"
        length("5\r\nContent-Length: 0");
    reg_02_content_length_second_is_empty "length-number" 400 "is not a number"
        length("5\r\nContent-Length:");
}

refused! { OLD:
    reg_03_chunked_in_http_1_0 "encoding-old" 400 "HTTP/1.0 has no Transfer-Encoding"
        b"POST / HTTP/1.0\r\nHost: user\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec();
    reg_03_chunked_in_http_1_0_kept_alive "encoding-old" 400 "HTTP/1.0 has no Transfer-Encoding"
        b"POST / HTTP/1.0\r\nHost: user\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\
          \r\n0\r\n\r\n".to_vec();
}

refused! { CHUNKS:
    reg_09_chunk_extension_with_lf "chunk-size-line" 400 "without carriage return"
        chunks("3;a\nb\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_extension_with_control "chunk-extension" 400 "odd behind the number"
        chunks("3;a\x01b\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_extension_with_nul "chunk-extension" 400 "odd behind the number"
        chunks("3;a\0b\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_extension_with_cr "chunk-extension" 400 "odd behind the number"
        chunks("3;a\rb\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_extension_with_a_space "chunk-extension" 400 "odd behind the number"
        chunks("3; a=b\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_extension_name_no_token "chunk-extension" 400 "odd behind the number"
        chunks("3;a[=b\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_extension_value_missing "chunk-extension" 400 "odd behind the number"
        chunks("3;a=\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_extension_unclosed_quote "chunk-extension" 400 "odd behind the number"
        chunks("3;a=\"b\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_bare_semicolon "chunk-extension" 400 "odd behind the number"
        chunks("3;\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_size_0x "chunk-size-line" 400 "not a hexadecimal number"
        chunks("0x3\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_size_underscore "chunk-size-line" 400 "not a hexadecimal number"
        chunks("0_3\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_size_negative "chunk-size-line" 400 "not a hexadecimal number"
        chunks("-3\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_size_plus "chunk-size-line" 400 "not a hexadecimal number"
        chunks("+3\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_size_empty "chunk-size-line" 400 "not a hexadecimal number"
        chunks("\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_size_leading_space "chunk-size-line" 400 "not a hexadecimal number"
        chunks(" 3\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_size_trailing_space "chunk-extension" 400 "odd behind the number"
        chunks("3 \r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_size_trailing_tab "chunk-extension" 400 "odd behind the number"
        chunks("3\t\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_size_bare_lf "chunk-size-line" 400 "without carriage return"
        chunks("3\nabc\r\n0\r\n\r\n");
    reg_09_chunk_size_overflow_64_bits "chunk-overflow" 400 "more than 15 digits"
        chunks("10000000000000003\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_size_leading_zeros "chunk-overflow" 400 "more than 15 digits"
        chunks("0000000000000003\r\nabc\r\n0\r\n\r\n");
    reg_09_chunk_without_crlf "chunk-end" 400 "not followed by the end of a line"
        chunks("3\r\nabc0\r\n\r\n");
    reg_09_chunk_spill "chunk-end" 400 "not followed by the end of a line"
        chunks("3\r\nabcdef\r\n0\r\n\r\n");
    reg_09_chunk_ended_by_lf "chunk-end" 400 "not followed by the end of a line"
        chunks("3\r\nabc\n0\r\n\r\n");
    reg_09_last_chunk_ended_by_lf "chunk-size-line" 400 "without carriage return"
        chunks("3\r\nabc\r\n0\n\r\n");
    reg_12_chunk_size_line_too_long "chunk-line-long" 400 "longer than 64 bytes"
        chunks(&format!("3;{}", "a".repeat(70)));
    reg_12_chunk_size_line_of_zeros "chunk-overflow" 400 "more than 15 digits"
        chunks(&"0".repeat(70));
}

refused! { TRAILERS:
    reg_10_trailer_content_length "trailer-names" 400 "only headers may have"
        trailer("Content-Length: 3");
    reg_10_trailer_transfer_encoding "trailer-names" 400 "only headers may have"
        trailer("Transfer-Encoding: chunked");
    reg_10_trailer_host "trailer-names" 400 "only headers may have" trailer("Host: other");
    reg_10_trailer_authorization "trailer-names" 400 "only headers may have"
        trailer("Authorization: Bearer x");
    reg_10_trailer_cookie "trailer-names" 400 "only headers may have" trailer("Cookie: a=b");
    reg_10_trailer_connection "trailer-names" 400 "only headers may have"
        trailer("Connection: close");
    reg_10_trailer_forwarded_for "trailer-names" 400 "only headers may have"
        trailer("X-Forwarded-For: 6.6.6.6");
    reg_10_trailer_of_wefts_own "trailer-names" 400 "only headers may have"
        trailer("X-Weft-Source: admin");
    reg_10_trailer_bare_lf "bare-lf" 400 "without carriage return" trailer("X-A: b\nX-C: d");
    reg_10_trailer_folded "grammar" 400 "folded" trailer("X-A: b\r\n c");
    reg_10_trailer_without_colon "grammar" 400 "no colon" trailer("X-A");
}

refused! { ENCODING:
    reg_11_encoding_xchunked "encoding-list" 400 "does not end with one" encoding("xchunked");
    reg_11_encoding_chunked_identity "encoding-list" 400 "does not end with one"
        encoding("chunked, identity");
    reg_11_encoding_identity "encoding-list" 400 "does not end with one" encoding("identity");
    reg_11_encoding_doubled "encoding-list" 400 "more than once" encoding("chunked, chunked");
    reg_11_encoding_two_lines "encoding-list" 400 "more than once"
        encoding("chunked\r\nTransfer-Encoding: chunked");
    reg_11_encoding_trailing_comma "encoding-list" 400 "does not end with one" encoding("chunked,");
    reg_11_encoding_leading_comma "encoding-list" 400 "does not end with one" encoding(",chunked");
    reg_11_encoding_empty "encoding-list" 400 "does not end with one" encoding("");
    reg_11_encoding_parameter "encoding-list" 400 "does not end with one"
        encoding("chunked;q=1");
    reg_11_encoding_quoted "encoding-list" 400 "does not end with one" encoding("\"chunked\"");
    reg_11_encoding_gzip_after_chunked "encoding-list" 400 "does not end with one"
        encoding("chunked, gzip");
    reg_11_encoding_gzip_alone "grammar" 400 "does not end with one" encoding("gzip");
    reg_11_encoding_vertical_tab "grammar" 400 "control character" encoding("\x0bchunked");
    reg_11_encoding_form_feed "grammar" 400 "control character" encoding("\x0cchunked");
    reg_11_encoding_nul "grammar" 400 "zero byte" encoding("chunked\0");
    reg_11_encoding_non_ascii_space "encoding-list" 400 "does not end with one"
        encoding("\u{a0}chunked");
    reg_11_encoding_gzip_then_chunked "grammar" 501 "a coding besides" encoding("gzip, chunked");
    reg_11_encoding_space_before_colon "grammar" 400 "between a header's name and its colon"
        post("Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n");
    reg_11_encoding_folded "grammar" 400 "folded"
        post("Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n");
}

pub(super) const CASES: &[&[(&str, &str)]] = &[BOTH, LENGTH, OLD, CHUNKS, TRAILERS, ENCODING];

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
async fn reg_10_a_trailer_stays_behind_the_body() {
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
