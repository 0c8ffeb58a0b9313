// SPDX-License-Identifier: Apache-2.0
//! Whether a request that asks for a WebSocket is one (RFC 6455 §4.2.1). Servers that are less
//! strict would answer it in HTTP while its client's next bytes are taken for frames, or the
//! reverse. Called before an upgrade is passed on; other protocols are none of its business.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION};
use http::request::Parts;
use http::{Method, Version};

use super::reply::{Cause, Refusal};
use crate::guards;
use crate::h1::head::elements;

/// # Errors
/// The refusal of a handshake that is none.
pub fn judge(head: &Parts, version: Version, protocols: &HeaderValue) -> Result<(), Refusal> {
    if !guards::on("websocket-handshake") {
        return Ok(());
    }
    let mut asked = elements(protocols.as_bytes());
    // HTTP/2 has neither key nor version in the hands of its client.
    if version != Version::HTTP_11 || !asked.any(|p| p.eq_ignore_ascii_case(b"websocket")) {
        return Ok(());
    }
    let bad = |why: &str| Err(Refusal::new(Cause::BadRequest, why));
    if head.method != Method::GET {
        return bad("a WebSocket is asked for with GET");
    }
    if only(&head.headers, &SEC_WEBSOCKET_VERSION) != Some(b"13") {
        return bad("a WebSocket's handshake has Sec-WebSocket-Version: 13, once");
    }
    let key = only(&head.headers, &SEC_WEBSOCKET_KEY);
    match key.and_then(|key| STANDARD.decode(key).ok()) {
        Some(nonce) if nonce.len() == 16 => Ok(()),
        _ => bad("a WebSocket's handshake has one Sec-WebSocket-Key of 16 bytes in base64"),
    }
}

/// The value of a header that is there once.
fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h [u8]> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    values.next().is_none().then(|| first.as_bytes().trim_ascii())
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    const VERSION_13: (&str, &str) = ("sec-websocket-version", "13");
    const KEY_16: (&str, &str) = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");

    fn check(method: &str, headers: &[(&str, &str)]) -> Result<(), String> {
        let mut request = Request::builder().method(method).uri("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let head = request.body(()).unwrap().into_parts().0;
        judge(&head, Version::HTTP_11, &HeaderValue::from_static("foo, WebSocket"))
            .map_err(|refusal| refusal.detail)
    }

    #[test]
    fn reg_17_websocket_handshakes_are_whole_or_none() {
        assert!(check("GET", &[VERSION_13, KEY_16]).is_ok());
        assert!(check("GET", &[("sec-websocket-version", " 13 "), KEY_16]).is_ok());
        let refused = check("POST", &[VERSION_13, KEY_16]).expect_err("taken all the same");
        assert!(refused.contains("GET"));
    }

    #[test]
    fn reg_17_websocket_of_another_version() {
        let (version, key) = (VERSION_13, KEY_16);
        for wrong in ["12", "13, 8", "013", "", "0x0d", "banana"] {
            let got = check("GET", &[("sec-websocket-version", wrong), key]);
            assert!(got.expect_err("taken all the same").contains("Version"), "{wrong}");
        }
        assert!(check("GET", &[version, version, key]).unwrap_err().contains("Version"));
        assert!(check("GET", &[key]).unwrap_err().contains("Version"));
    }

    #[test]
    fn reg_17_websocket_with_a_wrong_key() {
        let (version, key) = (VERSION_13, KEY_16);
        for wrong in ["", "dGhlIHNhbXBsZQ==", "dGhlIHNhbXBsZSBub25jZQ", "!", "AAAA AAAA"] {
            let got = check("GET", &[version, ("sec-websocket-key", wrong)]);
            assert!(got.expect_err("taken all the same").contains("Key"), "{wrong}");
        }
        assert!(check("GET", &[version, key, key]).unwrap_err().contains("Key"));
        assert!(check("GET", &[version]).unwrap_err().contains("Key"));
    }

    #[test]
    fn other_protocols_are_left_alone() {
        let head = Request::get("/").body(()).unwrap().into_parts().0;
        for (version, protocol) in [
            (Version::HTTP_11, "TLS/1.2"),
            (Version::HTTP_11, "websockets"),
            (Version::HTTP_2, "websocket"),
        ] {
            assert!(judge(&head, version, &HeaderValue::from_static(protocol)).is_ok());
        }
    }
}
