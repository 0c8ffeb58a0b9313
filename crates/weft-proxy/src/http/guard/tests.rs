// SPDX-License-Identifier: Apache-2.0
//! What the guard refuses and lets pass, whole and byte by byte.

use super::Framing;

fn check(text: &str) -> Result<(), &'static str> {
    let whole = Framing::default().take(text.as_bytes()).map_err(|(_, why)| why);
    let mut framing = Framing::default();
    let bytewise = text.bytes().try_for_each(|b| framing.take(&[b]).map_err(|(_, why)| why));
    assert_eq!(whole, bytewise, "{text:?}");
    whole
}

#[test]
fn ordinary_requests_pass() {
    for good in [
        "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        "\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\nContent-Length: 3\r\n\r\nab\nGET / HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nx: y\r\n\r\n",
        "CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n\0\0\n\n",
        "GET /ws HTTP/1.1\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n\x01\n\n",
    ] {
        assert_eq!(check(good), Ok(()), "{good:?}");
    }
}

#[test]
fn reg_01_02_03_smuggled_framing_is_refused() {
    for bad in [
        "POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 3, 3\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: -0\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 0x5\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 5 5\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 1_0\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length:\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
    ] {
        assert!(check(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn reg_07_11_odd_headers_are_refused() {
    for bad in [
        "GET / HTTP/1.1\r\n: x\r\n\r\n",
        "GET / HTTP/1.1\r\nhost : a\r\n\r\n",
        "GET / HTTP/1.1\r\n host: a\r\n\r\n",
        "GET / HTTP/1.1\r\nx: a\r\n b\r\n\r\n",
        "GET / HTTP/1.1\r\nx: a\rb\r\n\r\n",
        "GET / HTTP/1.1\r\nx: a\0b\r\n\r\n",
        "GET / HTTP/1.1\r\nx: a\n\r\n",
        "GET / HTTP/1.1\r\nno-colon\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: identity, chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding:\x0bchunked\r\n\r\n",
        "\r\n\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    ] {
        assert!(check(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn reg_09_10_12_odd_chunks_are_refused() {
    let start = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    for bad in [
        "\r\n".to_owned(),
        "0x3\r\nabc\r\n".into(),
        "1_0\r\n".into(),
        "-1\r\n".into(),
        "3;\r\nabc\r\n".into(),
        "3;a\x01\r\nabc\r\n".into(),
        "3;a\nabc\r\n".into(),
        "3 \r\nabc\r\n".into(),
        "ffffffffffffffffff\r\n".into(),
        "1".repeat(65),
        "0\r\nContent-Length: 3\r\n\r\n".into(),
        "0\r\nHost: b\r\n\r\n".into(),
    ] {
        assert!(check(&format!("{start}{bad}")).is_err(), "{bad:?}");
    }
}
