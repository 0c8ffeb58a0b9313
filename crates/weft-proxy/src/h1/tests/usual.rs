// SPDX-License-Identifier: Apache-2.0
//! A head that is taken in one pass means what it means to the parser that looks at every byte;
//! what the one leaves to the other loses nothing.

use bytes::BytesMut;
use http::Method;

use crate::h1::head::{self, Scan};
use crate::h1::usual;

const REQUESTS: &[&str] = &[
    "GET / HTTP/1.1\r\nHost: bench.local\r\n\r\n",
    "POST /a/b?c=d HTTP/1.1\r\nhost: a:80\r\nContent-Length: 12\r\nX-Request-Id: a-b\r\n\r\nhello",
    "PUT /x HTTP/1.1\r\nHost:a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n0\r\n",
    "GET / HTTP/1.1\r\nHost: a \r\nConnection: Upgrade\r\nUpgrade: h2c, b\r\nTE: trailers\r\n\r\n",
    "HEAD http://a.b/c HTTP/1.1\r\nHost: a.b\r\nAccept:\r\nX-Odd_Name: \"q\\z\"\r\n\r\nGET",
];
const ANSWERS: &[&str] = &[
    "HTTP/1.1 200 OK\r\ncontent-length: 10\r\nDate: Sat, 21 Nov 2026\r\n\r\n0123456789",
    "HTTP/1.1 204 No Content\r\nserver: a\r\nVary: b\r\nset-cookie: a=b\r\nSet-Cookie: d\r\n\r\n",
    "HTTP/1.1 404 \r\nTransfer-Encoding: chunked\r\nConnection: close\r\nX-A: b\r\n\r\n0\r\n\r\n",
    "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nraw",
    "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\nContent-Length: 5\r\n\r\n01234",
];
const ODD: &[u8] = b"\0\t\n\r \"#%,-/059:;?@AZaz\\_\x7f\x80\xff";

/// The text, and every text that is one byte away from it.
fn near(text: &str) -> Vec<Vec<u8>> {
    let bytes = text.as_bytes();
    let mut all = vec![bytes.to_vec()];
    for at in 0..bytes.len() {
        let mut without = bytes.to_vec();
        without.remove(at);
        all.push(without);
        for odd in ODD {
            let mut other = bytes.to_vec();
            other[at] = *odd;
            all.push(other);
            let mut longer = bytes.to_vec();
            longer.insert(at, *odd);
            all.push(longer);
        }
    }
    all
}

#[test]
fn a_usual_request_is_what_a_thorough_look_finds() {
    let mut taken = 0;
    for text in REQUESTS.iter().flat_map(|text| near(text)) {
        // An empty line before is ignored; and what was looked through does not end there.
        if text.starts_with(b"\r\n") || text.starts_with(b"\n") {
            continue;
        }
        let look = |mut scan: Scan| {
            let mut buffer = BytesMut::from(&*text);
            let found = head::take_request(&mut buffer, &mut scan).map(|head| {
                head.map(|h| {
                    let said = (h.framing, h.keep_alive, h.expects, h.upgrade);
                    (h.parts.method, h.parts.uri, h.parts.version, h.parts.headers, said)
                })
            });
            let rest = if found.is_ok() { buffer } else { BytesMut::new() };
            (found, rest)
        };
        taken += usize::from(usual::request(&text).is_some());
        let shown = String::from_utf8_lossy(&text);
        assert_eq!(look(Scan::default()), look(Scan::BEGUN), "{shown:?}");
    }
    assert!(taken > 1_000, "only {taken} were taken in one pass");
}

#[test]
fn a_usual_answer_is_what_a_thorough_look_finds() {
    let mut taken = 0;
    for text in ANSWERS.iter().flat_map(|text| near(text)) {
        if text.starts_with(b"\n") {
            continue;
        }
        let look = |mut scan: Scan, method: &Method| {
            let mut buffer = BytesMut::from(&*text);
            let found = head::take_response(&mut buffer, &mut scan, method).map(|head| {
                head.map(|h| {
                    let said = (h.framing, h.keep_alive);
                    (h.parts.status, h.parts.version, h.parts.headers, said)
                })
            });
            let rest = if found.is_ok() { buffer } else { BytesMut::new() };
            (found, rest)
        };
        taken += usize::from(usual::response(&text).is_some());
        let shown = String::from_utf8_lossy(&text);
        for method in [Method::GET, Method::HEAD] {
            assert_eq!(look(Scan::default(), &method), look(Scan::BEGUN, &method), "{shown:?}");
        }
    }
    assert!(taken > 1_000, "only {taken} were taken in one pass");
}

/// What few clients send is not taken in one pass, however it goes on.
#[test]
fn what_is_not_usual_is_left_to_the_thorough_look() {
    for text in [
        "OPTIONS / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\tb\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n\x7f",
        "GET / HTTP/1.1\r\nHost: a\r\n",
    ] {
        assert!(usual::request(text.as_bytes()).is_none(), "{text:?}");
    }
    let many = |n: usize| {
        let lines: String = (0..n).map(|i| format!("x-{i}: 1\r\n")).collect();
        format!("GET / HTTP/1.1\r\n{lines}\r\n")
    };
    assert!(usual::request(many(24).as_bytes()).is_some());
    assert!(usual::request(many(25).as_bytes()).is_none());
    let long = format!("GET / HTTP/1.1\r\na: {}\r\n\r\n", "b".repeat(4 * 1024));
    assert!(usual::request(long.as_bytes()).is_none());
}
